"""Train the network on packed features or on mixtures made on the fly, and enhance with it."""

import argparse
import os

import numpy as np

from config import n_overlap, n_window
from speech_enhancement.command_line import (
    add_step,
    add_training_choice,
    decibels,
    positive_float,
    run_step,
)
from speech_enhancement.data.mixtures import Mixture, read_mixtures
from speech_enhancement.errors import InputError, require_file
from speech_enhancement.network.export import FORMATS, export
from speech_enhancement.progress import track
from speech_enhancement.training.options import TrainingOptions, add_flags
from speech_enhancement.workspace import (
    enhanced_path,
    features_path,
    find_training,
    mixed_audio_path,
    model_path,
    spectrogram_figure_path,
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
    """Enhance every mixture of the test set with a trained model and the phase of the mixture.

    Writes enh_wavs/test/{te_snr}/SPEECH.NOISE.enh.wav, each exactly as long as its mixture.

    Working set: the network and one mixture.

    Args:
      workspace: folder with the model, the test mixture CSV and the mixed waves.
      te_snr: signal-to-noise ratio of the test mixtures in dB.
      iteration: which of the saved models, or "best".
      tr_snr, tr_snr_range: signal-to-noise ratios that the model was trained at, or their range, in
        dB; without them the training that ran last.
      n_concat: frames in the model's window, as a check; None takes it from the model.
      visualize: also draw the spectrograms of each file under figures/.
    Raises:
      InputError: a file is missing or damaged, or n_concat is not the model's.
    """
    from speech_enhancement.data.audio_files import read_audio, write_wave
    from speech_enhancement.data.mixture_features import check_features
    from speech_enhancement.enhancement.enhance_audio import enhance_audio
    from speech_enhancement.network.network import load_model

    mixtures = read_mixtures(workspace, "test")
    for mixture in mixtures:
        require_file(
            mixed_audio_path(workspace, "test", te_snr, mixture.name), "calculate_mixture_features"
        )
        if visualize or os.path.isfile(features_path(workspace, "test", te_snr, mixture.name)):
            check_features(workspace, "test", te_snr, mixture)

    path = model_path(workspace, find_training(workspace, tr_snr, tr_snr_range), iteration)
    model, settings = load_model(path)
    trained = settings.recipe.input.n_concat
    if n_concat not in (None, trained):
        raise InputError(
            f"{path} was trained with n_concat {trained}, found --n_concat {n_concat}; leave it out"
        )

    for mixture in track(mixtures, len(mixtures), "mixtures"):
        mixed = read_audio(mixed_audio_path(workspace, "test", te_snr, mixture.name))
        enhanced = enhance_audio(model, settings, mixed)
        write_wave(enhanced_path(workspace, te_snr, mixture.name), enhanced)
        if visualize:
            draw_spectrograms(workspace, te_snr, mixture, mixed, enhanced)

    print(
        f"{len(mixtures)} enhanced waves -> {os.path.dirname(enhanced_path(workspace, te_snr, ''))}"
    )
    if visualize:
        folder = os.path.dirname(spectrogram_figure_path(workspace, te_snr, ""))
        print(f"{len(mixtures)} pictures -> {folder}")


def draw_spectrograms(
    workspace: str, te_snr: float, mixture: Mixture, mixed: np.ndarray, enhanced: np.ndarray
) -> None:
    """Draw mixture, clean and enhanced spectrogram of a test file."""
    from speech_enhancement.data.mixture_features import read_features
    from speech_enhancement.evaluation.figures import save_spectrograms
    from speech_enhancement.features import stft

    _, speech_magnitude, _ = read_features(workspace, "test", te_snr, mixture)
    magnitudes = {
        "mixture": np.abs(stft(mixed, n_window, n_overlap)),
        "clean speech": speech_magnitude,
        "enhanced": np.abs(stft(enhanced, n_window, n_overlap)),
    }
    title = f"{mixture.speech_name} in {mixture.noise_name} at {te_snr:g} dB"
    save_spectrograms(spectrogram_figure_path(workspace, te_snr, mixture.name), magnitudes, title)


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
