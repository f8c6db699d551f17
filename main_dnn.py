"""Train the network on packed features or on mixtures made on the fly, and enhance with it."""

import argparse
import os

from speech_enhancement.command_line import (
    add_step,
    add_training_choice,
    decibels,
    positive_float,
    run_step,
)
from speech_enhancement.errors import InputError
from speech_enhancement.network.export import FORMATS, export
from speech_enhancement.training.options import TrainingOptions, add_flags
from speech_enhancement.workspace import (
    find_training,
)

SHIPPED_MODEL = os.path.join(
    os.path.dirname(os.path.realpath(__file__)), "pretrained", "model.keras"
)

# --- train ------------------------------------------------------------------------------------


def train(**flags) -> int:
    """Train as the flags say, which are training.options.TrainingOptions."""
    from speech_enhancement.training import training

    return training.train(TrainingOptions(**flags))


# --- inference --------------------------------------------------------------------------------


def inference(
    workspace: str,
    te_snr: float,
    iteration: int | str,
    tr_snr: list[float] | None = None,
    tr_snr_range: list[float] | None = None,
    n_concat: int | None = None,
    visualize: bool = False,
) -> None:
    """Enhance the test mixtures, and draw their spectrograms if asked; see enhancement.test_set."""
    from speech_enhancement.enhancement.test_set import enhance_test_set

    training = find_training(workspace, tr_snr, tr_snr_range)
    enhance_test_set(workspace, te_snr, training, iteration, n_concat, needs_features=visualize)
    if visualize:
        from speech_enhancement.evaluation.figures import draw_test_spectrograms

        draw_test_spectrograms(workspace, te_snr)


# --- enhance ----------------------------------------------------------------------------------


def enhance(
    inputs: list[str],
    output_dir: str | None = None,
    model: str = SHIPPED_MODEL,
    overwrite: bool = False,
    attenuation_limit: float | None = None,
) -> int:
    """Clean recordings of any length, format, sample rate and number of channels.

    The outputs have the name, format, sample rate, channels and length of the inputs, without
    delay. `-` means a WAV from standard input, which goes to standard output while it comes: after
    5.5 s at first, then 3.6 s behind.

    Working set: the network, and some seconds of each channel.

    Args:
      inputs: files, folders with files, or "-" alone.
      output_dir: folder to write in.
      model: a model that train saved.
      overwrite: whether outputs that exist are written anew.
      attenuation_limit: no part of the spectrum is attenuated by more than this, in dB; None sets
        no limit.
    Returns:
      0, or 1 if some of several files could not be done; they are named.
    Raises:
      InputError: the only file cannot be done, or the flags do not fit together.
    """
    from speech_enhancement.enhancement.pipe import enhance_stream
    from speech_enhancement.enhancement.recordings import enhance_files
    from speech_enhancement.network.network import load_model

    is_stream = inputs == ["-"]
    if is_stream != (output_dir is None) or (not is_stream and "-" in inputs):
        raise InputError(
            "expected files and an --output_dir, or - alone for standard input to standard output"
        )
    network, settings = load_model(model)
    smallest_gain = 0.0 if attenuation_limit is None else 10 ** (-attenuation_limit / 20)
    if is_stream:
        enhance_stream(network, settings, smallest_gain)
        return 0
    return enhance_files(network, settings, inputs, output_dir, overwrite, smallest_gain)


# --- Command line -----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the step that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")

    training = add_step(steps, train, "train a network from random weights, or go on with --resume")
    add_flags(training, TrainingOptions)

    enhancing = add_step(steps, inference, "enhance the test mixtures with a trained model")
    enhancing.add_argument(
        "--workspace", required=True, help="folder of all intermediate files and results"
    )
    enhancing.add_argument(
        "--te_snr", type=decibels, required=True, help="SNR of the test mixtures in dB"
    )
    add_training_choice(enhancing)
    enhancing.add_argument(
        "--iteration",
        type=iteration_or_best,
        required=True,
        help="which saved model: iterations it trained, or best",
    )
    enhancing.add_argument(
        "--n_concat",
        type=int,
        help="frames in the model's window, as a check; default: the model's",
    )
    enhancing.add_argument(
        "--visualize", action="store_true", help="draw the spectrograms of each file to PNG files"
    )

    add_enhance_flags(add_step(steps, enhance, "clean your own recordings"))

    exporting = add_step(
        steps, export, "write a model for other programs, or as a file of half the size"
    )
    exporting.add_argument("--model", required=True, help="the .keras file of a trained model")
    exporting.add_argument(
        "--format", choices=FORMATS, required=True, help="onnx, or .keras with weights of 16 bits"
    )
    exporting.add_argument(
        "--output", required=True, help="file to write, .onnx or .keras; replaced if it exists"
    )
    return run_step(parser, argv)


def add_enhance_flags(cleaning: argparse.ArgumentParser) -> None:
    """Add the flags of enhance."""
    add = cleaning.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="audio files, folders of them, or - for a WAV from standard input",
    )
    add("--output_dir", help="folder to write the enhanced files in, under their own names")
    add("--model", default=SHIPPED_MODEL, help="a model that train saved")
    add("--overwrite", action="store_true", help="write outputs anew that exist")
    add(
        "--attenuation_limit",
        type=positive_float,
        metavar="DB",
        help="attenuate nothing by more than so many dB; default: no limit",
    )


def iteration_or_best(text: str) -> int | str:
    """Read the flag --iteration."""
    return text if text == "best" else int(text)


if __name__ == "__main__":
    raise SystemExit(main())
