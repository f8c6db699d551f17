"""Train the network on packed features or on mixtures made on the fly, and enhance the test mixtures with it."""

import argparse
import contextlib
import os

import numpy as np

from config import n_overlap, n_window
from speech_enhancement.command_line import (
    add_step,
    decibels,
    fraction,
    natural,
    positive_float,
    positive_int,
    run_step,
)
from speech_enhancement.errors import InputError, require_file
from speech_enhancement.network.export import FORMATS, export
from speech_enhancement.progress import track
from speech_enhancement.workspace import (
    Mixture,
    enhanced_path,
    features_path,
    find_training,
    mixed_audio_path,
    model_path,
    read_mixtures,
    spectrogram_figure_path,
)

DECODED_MB = 256  # of waves kept decoded for mixing on the fly
SHIPPED_MODEL = os.path.join(
    os.path.dirname(os.path.realpath(__file__)), "pretrained", "model.keras"
)

# --- train ------------------------------------------------------------------------------------


def train(
    workspace: str,
    te_snr: float,
    tr_snr: list[float] | None = None,
    tr_snr_range: list[float] | None = None,
    recipe: str = "original",
    lr: float | None = None,
    n_iterations: int | None = None,
    batch_size: int | None = None,
    precision: str | None = None,
    eval_every: int = 1000,
    save_every: int = 5000,
    keep: int | None = None,
    seed: int = 0,
    valid_fraction: float = 0.0,
    resume: bool = False,
    on_the_fly: bool = False,
    speech_dir: str | None = None,
    noise_dir: str | None = None,
    cache_mb: int = DECODED_MB,
    distribute: bool = False,
    tensorboard: str | None = None,
) -> None:
    """Train the network of a recipe from random weights, or go on with --resume.

    Writes models/{tr_snr}/md_{iteration}iters.keras and, at each evaluation,
    training_stats/{tr_snr}/stats.csv. The last iteration is always evaluated and saved. With
    valid_fraction the model with the lowest loss on held-out training speech is models/{tr_snr}/md_best.keras.

    Working set: the network with its optimizer, and a pool of shuffled rows (see batches.py) or, on
    the fly, some blocks of mixtures (see on_the_fly.py) and the decoded waves.

    Args:
      workspace: folder with the packed features and the scaler; on the fly with those of the test set.
      te_snr: signal-to-noise ratio of the test mixtures in dB.
      tr_snr: one or several signal-to-noise ratios of the training mixtures in dB.
      tr_snr_range: two ends of a range to draw from, in dB; on the fly only.
      recipe: name of a recipe, or a TOML file. None in the following takes it from there, as for the SNRs.
      lr: learning rate.
      n_iterations: training steps, one batch each.
      batch_size: frames in a batch.
      precision: of products and activations, "float32" or "bfloat16", where the machine has it.
      eval_every, save_every: steps between evaluations and between saved models.
      keep: how many of the saved models to keep; None keeps all.
      seed: of the first weights, dropout, the order of the batches and the draws on the fly.
      valid_fraction: share of the training speakers that is held out.
      resume: go on from the last saved state.
      on_the_fly: make the training mixtures as they are needed, from speech_dir and noise_dir.
      speech_dir, noise_dir: folders of training speech and noise, for on_the_fly.
      cache_mb: MB of waves to keep decoded.
      distribute: train on all devices of this machine, and with those of others; see distribution.py.
      tensorboard: folder for the losses as TensorBoard reads them.
    Raises:
      InputError: data or scaler are missing, damaged or made with different settings.
    """
    from speech_enhancement.training.devices import Share, start_distribution
    from speech_enhancement.training.training import Training, run_training
    from speech_enhancement.training.training_sets import (
        on_the_fly_sets,
        packed_sets,
        resolve_recipe,
        say_device,
        training_name,
    )

    share = start_distribution() if distribute else Share()
    schedule = {
        "learning_rate": lr,
        "n_iterations": n_iterations,
        "batch_size": batch_size,
        "precision": precision,
    }
    chosen = resolve_recipe(recipe, tr_snr=tr_snr, tr_snr_range=tr_snr_range, **schedule)
    tr_name = training_name(chosen)
    with contextlib.ExitStack() as stack:
        if on_the_fly:
            chosen, sets = on_the_fly_sets(
                stack,
                workspace,
                te_snr,
                chosen,
                speech_dir,
                noise_dir,
                seed,
                valid_fraction,
                cache_mb,
                share,
            )
        else:
            chosen, sets = packed_sets(
                stack, workspace, te_snr, chosen, seed, valid_fraction, share
            )
        say_device(share, chosen.training.precision)
        training = Training(workspace, tr_name, chosen, sets, seed, share, tensorboard)
        if resume:
            training.load_state()
        run_training(training, eval_every, save_every, keep)


# --- inference --------------------------------------------------------------------------------


def inference(
    workspace: str,
    te_snr: float,
    iteration: int | str,
    tr_snr: list[float] | None = None,
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
      tr_snr: signal-to-noise ratios that the model was trained at, in dB; None takes the only training there is.
      n_concat: frames in the model's window, as a check; None takes it from the model.
      visualize: also draw the spectrograms of each file under figures/.
    Raises:
      InputError: a file is missing or damaged, or n_concat is not the model's.
    """
    from speech_enhancement.data.audio_files import read_audio, write_wave
    from speech_enhancement.data.mixture_features import check_features
    from speech_enhancement.network.network import load_model

    mixtures = read_mixtures(workspace, "test")
    for mixture in mixtures:
        require_file(
            mixed_audio_path(workspace, "test", te_snr, mixture.name), "calculate_mixture_features"
        )
        if visualize or os.path.isfile(features_path(workspace, "test", te_snr, mixture.name)):
            check_features(workspace, "test", te_snr, mixture)
    path = model_path(workspace, find_training(workspace, tr_snr), iteration)
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
        print(
            f"{len(mixtures)} pictures -> {os.path.dirname(spectrogram_figure_path(workspace, te_snr, ''))}"
        )


def enhance_audio(model, settings, mixed: np.ndarray) -> np.ndarray:
    """Enhance (n_samples,) audio at 16 kHz; the result has the same length.

    The last partial frame is completed with zeros, so no sample is lost.
    """
    from speech_enhancement.features import istft, level_gain, pad_to_whole_frames, peak, stft
    from speech_enhancement.network.network import estimate_magnitude

    gain = level_gain(peak(mixed)) if settings.recipe.input.level_window_s == 0 else 1.0
    mixture_stft = stft(gain * pad_to_whole_frames(mixed, n_window, n_overlap), n_window, n_overlap)
    magnitude = estimate_magnitude(model, settings, mixture_stft)
    return istft(magnitude, mixture_stft, n_overlap, len(mixed)) / gain


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

    The outputs have the name, format, sample rate, channels and length of the inputs, without delay. `-` stands for
    a WAV from standard input, which goes to standard output while it comes: after 5.5 s at first, then 3.6 s behind.

    Working set: the network, and some seconds of each channel.

    Args:
      inputs: files, folders with files, or "-" alone.
      output_dir: folder to write in.
      model: a model that train saved.
      overwrite: whether outputs that exist are written anew.
      attenuation_limit: no part of the spectrum is attenuated by more than this, in dB; None sets no limit.
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
    enhancing = add_step(steps, inference, "enhance the test mixtures with a trained model")
    for step in (training, enhancing):
        step.add_argument(
            "--workspace", required=True, help="folder of all intermediate files and results"
        )
        step.add_argument(
            "--te_snr", type=decibels, required=True, help="SNR of the test mixtures in dB"
        )
    add_training_flags(training)
    enhancing.add_argument(
        "--tr_snr",
        type=decibels,
        nargs="+",
        help="SNRs of the model's training in dB; default: the only training there is",
    )
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


def add_training_flags(training: argparse.ArgumentParser) -> None:
    """Add the flags of train that inference does not have."""
    add = training.add_argument
    add("--recipe", default="original", help="name of a recipe in recipes/, or a TOML file")
    add(
        "--tr_snr",
        type=decibels,
        nargs="+",
        help="SNRs of the training mixtures in dB; default: the recipe's",
    )
    add(
        "--tr_snr_range",
        type=decibels,
        nargs=2,
        help="draw the SNR from LOW to HIGH dB instead; on the fly only",
    )
    add(
        "--lr",
        type=positive_float,
        help="learning rate of Adam, per iteration; default: the recipe's",
    )
    add(
        "--n_iterations",
        type=positive_int,
        help="training steps, one batch each; default: the recipe's",
    )
    add("--batch_size", type=positive_int, help="frames in a batch; default: the recipe's")
    add(
        "--precision",
        choices=["float32", "bfloat16"],
        help="of products while training; default: the recipe's",
    )
    add("--eval_every", type=positive_int, default=1000, help="iterations between evaluations")
    add("--save_every", type=positive_int, default=5000, help="iterations between saved models")
    add("--keep", type=positive_int, help="how many of the saved models to keep; default: all")
    add(
        "--seed",
        type=natural,
        default=0,
        help="of the first weights, dropout, the order of batches and draws on the fly",
    )
    add(
        "--valid_fraction",
        type=fraction,
        default=0.0,
        help="share of the training speakers held out for md_best.keras",
    )
    add("--resume", action="store_true", help="go on from the last saved state")
    add(
        "--on_the_fly",
        action="store_true",
        help="make the training mixtures as they are needed, of the two folders:",
    )
    add("--speech_dir", help="folder of training speech, for --on_the_fly")
    add("--noise_dir", help="folder of training noise, for --on_the_fly")
    add(
        "--distribute",
        action="store_true",
        help="train on all devices, here and on other machines; JAX only",
    )
    add(
        "--tensorboard",
        metavar="DIR",
        help="folder to write the losses to for TensorBoard too; default: none",
    )
    add(
        "--cache_mb",
        type=positive_int,
        default=DECODED_MB,
        help="MB of waves to keep decoded, for --on_the_fly",
    )


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
