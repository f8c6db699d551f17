"""Train the network on packed features or on mixtures made on the fly, and enhance with it."""

import argparse

from speech_enhancement.command_line import (
    COMMON_FLAGS,
    add_step,
    positive_float,
    positive_int,
    run_step,
)
from speech_enhancement.errors import InputError
from speech_enhancement.network.export import FORMATS, export
from speech_enhancement.training.options import TRAINING_FLAGS, TrainingOptions
from speech_enhancement.workspace import find_training

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


def enhance(live: bool = False, list_devices: bool = False, **flags) -> int | None:
    """Clean recordings, or sound while it is heard; the flags are those of enhancement.enhance."""
    from speech_enhancement.enhancement import enhance, live_sound

    given = {name: value for name, value in flags.items() if value not in (None, False)}
    if list_devices:
        return live_sound.list_devices()
    only_live = [name for name in ("rate", "devices") if name in given]
    only_files = [name for name in ("output_dir", "overwrite", "precision") if name in given]
    misplaced = only_files if live else only_live
    if misplaced:
        raise InputError(f"--{misplaced[0]} goes {'without' if live else 'with'} --live")
    if not live:
        return enhance.enhance(**given)
    models = given.pop("model", [enhance.SHIPPED_LIVE_MODEL])
    if len(models) > 1:
        raise InputError(f"--live takes one --model, found {len(models)}")
    return enhance.enhance_live(model=models[0], **given)


# --- Command line -----------------------------------------------------------------------------


def iteration_or_best(text: str) -> int | str:
    """Read the flag --iteration."""
    return text if text == "best" else int(text)


FLAGS = COMMON_FLAGS | {  # by argument of inference and export
    "iteration": {
        "help": "which saved model: iterations it trained, or best",
        "type": iteration_or_best,
    },
    "n_concat": {
        "help": "frames in the model's window, as a check; default: the model's",
        "type": int,
    },
    "visualize": {"help": "draw the spectrograms of each file to PNG files"},
    "model": {"help": "the .keras file of a trained model"},
    "output": {"help": "file to write, .onnx or .keras; replaced if it exists"},
    "format": {"help": "onnx, or .keras with weights of 16 bits", "choices": FORMATS},
}


def main(argv: list[str] | None = None) -> int:
    """Run the step that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")

    summary = "train a network, go on with --resume, or adapt a model with --initial_model"
    add_step(steps, train, summary, TRAINING_FLAGS, options=TrainingOptions)
    add_step(steps, inference, "enhance the test mixtures with a trained model", FLAGS)
    add_enhance_flags(add_step(steps, enhance, "clean your own recordings", {}))
    summary = "write a model for other programs, or as a file of half the size"
    add_step(steps, export, summary, FLAGS)
    return run_step(parser, argv)


def add_enhance_flags(cleaning: argparse.ArgumentParser) -> None:
    """Add the flags of enhance."""
    add = cleaning.add_argument
    add(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="audio files, folders of them, or - for a WAV from standard input",
    )
    add("--output_dir", help="folder to write the enhanced files in, under their own names")
    add(
        "--model",
        action="append",
        help="a model that train saved, or an exported one with memory; given several times, the "
        "models decide together; default: ours, for files two of them",
    )
    add("--overwrite", action="store_true", help="write outputs anew that exist")
    add(
        "--attenuation_limit",
        type=positive_float,
        metavar="DB",
        help="attenuate nothing by more than so many dB; default: no limit",
    )
    add(
        "--precision",
        choices=["float32", "bfloat16"],
        help="of the networks; bfloat16 is faster on processors that have it; default: float32",
    )
    add(
        "--live",
        action="store_true",
        help="clean the microphone, or -, while it is heard, 32 ms behind",
    )
    add(
        "--rate",
        type=positive_int,
        metavar="HZ",
        help="with --live -: raw samples of 16 bits, mono, at this rate; default: a WAV",
    )
    add(
        "--devices",
        nargs=2,
        metavar=("IN", "OUT"),
        help="microphone and loudspeaker, number or name; default: the system's",
    )
    add("--list_devices", action="store_true", help="print the sound devices instead")


if __name__ == "__main__":
    raise SystemExit(main())
