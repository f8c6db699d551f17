"""Train the network on packed features, and enhance the test mixtures with it."""

import argparse
import contextlib
import os
import time

import numpy as np

from command_line import add_step, decibels, positive_float, positive_int, run_step, say, track
from config import log_epsilon, loss, n_overlap, n_window, sample_rate
from errors import InputError, require_file
from workspace import (
    Mixture,
    csv_text,
    enhanced_path,
    features_path,
    mixed_audio_path,
    model_path,
    read_mixtures,
    spectrogram_figure_path,
    training_stats_path,
)

STATS_COLUMNS = ["iteration", "tr_loss", "te_loss"]
EVALUATION_BATCHES = 100  # at most so many batches of each set are evaluated

# --- train ------------------------------------------------------------------------------------


def train(
    workspace: str,
    tr_snr: float,
    te_snr: float,
    lr: float = 1e-4,
    n_iterations: int = 10000,
    eval_every: int = 1000,
    save_every: int = 5000,
    batch_size: int = 500,
    seed: int = 0,
) -> None:
    """Train the network of config.py from random weights: mean absolute error, Adam.

    Writes models/{tr_snr}/md_{iteration}iters.keras and, at each evaluation,
    training_stats/{tr_snr}/stats.csv. The last iteration is always evaluated and saved.

    Working set: the network with its optimizer, and a pool of shuffled rows (see batches.py).

    Args:
      workspace: folder with the packed features and the scaler.
      tr_snr, te_snr: signal-to-noise ratio of the training and the test mixtures in dB.
      lr: learning rate.
      n_iterations: training steps, one batch each.
      eval_every, save_every: steps between evaluations and between saved models.
      batch_size: context windows in a batch.
      seed: of the first weights, dropout and the order of the batches.
    Raises:
      InputError: data or scaler are missing, damaged or made with different settings.
    """
    from batches import check_same_data, open_packed, read_scaler
    from network import build_network, import_keras, save_model

    scaler = read_scaler(workspace, tr_snr)
    with contextlib.ExitStack() as stack:
        train_set = open_packed(stack, workspace, "train", tr_snr, scaler)
        test_set = open_packed(stack, workspace, "test", te_snr, scaler)
        check_same_data(workspace, tr_snr, te_snr, scaler, train_set, test_set)
        keras = import_keras()
        print(f"train on {', '.join(keras.distribution.list_devices())}, Keras backend {keras.backend.backend()}")
        model = build_network(train_set.n_concat, train_set.n_freq, seed)
        model.compile(optimizer=keras.optimizers.Adam(lr), loss=loss)
        stats = []
        began = time.time()
        batches = training_batches(train_set, batch_size, seed)
        for iteration in track(range(n_iterations + 1), n_iterations + 1, "iterations", log_lines=0):
            last = iteration == n_iterations
            if iteration % eval_every == 0 or last:
                stats.append(evaluate_model(keras, model, train_set, test_set, iteration, batch_size))
                write_stats(training_stats_path(workspace, tr_snr), stats)
            if iteration > 0 and (iteration % save_every == 0 or last):
                path = model_path(workspace, tr_snr, iteration)
                save_model(path, model, model_settings(train_set.n_concat, tr_snr, iteration, scaler))
                say(f"Saved model to {path}")
            if not last:
                model.train_on_batch(*next(batches))
        print(f"Training time: {time.time() - began:.1f} s")


def training_batches(train_set, batch_size: int, seed: int):
    """Yield batches epoch after epoch, without end, in an order that the seed determines."""
    rng = np.random.default_rng(seed)
    while True:
        yield from train_set.epoch(rng, batch_size)


def evaluate_model(keras, model, train_set, test_set, iteration: int, batch_size: int) -> list:
    """Print the losses on (at most 100 batches of) the two sets; return a row of stats.csv."""
    losses = [mean_loss(keras, model, data, batch_size) for data in (train_set, test_set)]
    say(f"Iteration: {iteration}, tr_loss: {losses[0]:.6f}, te_loss: {losses[1]:.6f}")
    return [iteration, *(f"{value:.6f}" for value in losses)]


def mean_loss(keras, model, data, batch_size: int) -> float:
    """Return the loss of the model, dropout off, averaged over the rows of the sampled batches."""
    loss_function = keras.losses.get(loss)
    total, n_rows = 0.0, 0
    for x, y in data.sample(batch_size, EVALUATION_BATCHES):
        of_rows = keras.ops.convert_to_numpy(loss_function(y, model.predict_on_batch(x)))  # (n_rows,)
        total, n_rows = total + float(of_rows.sum()), n_rows + len(of_rows)
    return total / n_rows


def write_stats(path: str, stats: list[list]) -> None:
    """Write the losses recorded so far."""
    from safe_files import write_text

    write_text(path, csv_text(STATS_COLUMNS, stats))


def model_settings(n_concat: int, tr_snr: float, iteration: int, scaler: dict):
    """Collect what inference needs to know beside the weights."""
    from network import Settings

    mean, std = scaler["mean"].tolist(), scaler["std"].tolist()
    return Settings(sample_rate, n_window, n_overlap, log_epsilon, n_concat, float(tr_snr), iteration, mean, std)


# --- inference --------------------------------------------------------------------------------


def inference(
    workspace: str,
    tr_snr: float,
    te_snr: float,
    iteration: int,
    n_concat: int | None = None,
    visualize: bool = False,
) -> None:
    """Enhance every mixture of the test set with a trained model and the phase of the mixture.

    Writes enh_wavs/test/{te_snr}/SPEECH.NOISE.enh.wav, each exactly as long as its mixture.

    Working set: the network and one mixture.

    Args:
      workspace: folder with the model, the test mixture CSV and the mixed waves.
      tr_snr, te_snr: signal-to-noise ratio that the model was trained at, and of the test mixtures, in dB.
      iteration: which of the saved models.
      n_concat: frames in the model's window, as a check; None takes it from the model.
      visualize: also draw the spectrograms of each file under figures/.
    Raises:
      InputError: a file is missing or damaged, or n_concat is not the model's.
    """
    from audio_files import read_audio, write_wave
    from network import load_model

    mixtures = read_mixtures(workspace, "test")
    for mixture in mixtures:
        require_file(mixed_audio_path(workspace, "test", te_snr, mixture.name), "calculate_mixture_features")
        if visualize:
            require_file(features_path(workspace, "test", te_snr, mixture.name), "calculate_mixture_features")
    path = model_path(workspace, tr_snr, iteration)
    model, settings = load_model(path)
    if n_concat not in (None, settings.n_concat):
        raise InputError(
            f"{path} was trained with n_concat {settings.n_concat}, found --n_concat {n_concat}; leave it out"
        )
    for mixture in track(mixtures, len(mixtures), "mixtures"):
        mixed = read_audio(mixed_audio_path(workspace, "test", te_snr, mixture.name))
        enhanced = enhance_audio(model, settings, mixed)
        write_wave(enhanced_path(workspace, te_snr, mixture.name), enhanced)
        if visualize:
            draw_spectrograms(workspace, te_snr, mixture, mixed, enhanced)
    print(f"{len(mixtures)} enhanced waves -> {os.path.dirname(enhanced_path(workspace, te_snr, ''))}")
    if visualize:
        print(f"{len(mixtures)} pictures -> {os.path.dirname(spectrogram_figure_path(workspace, te_snr, ''))}")


def enhance_audio(model, settings, mixed: np.ndarray) -> np.ndarray:
    """Enhance (n_samples,) audio at 16 kHz; the result has the same length.

    The last partial frame is completed with zeros, so no sample is lost.
    """
    from features import log_magnitude, pad_to_whole_frames, stft
    from network import predict_log_magnitude
    from spectrogram_to_wave import recover_wav

    mixture_stft = stft(pad_to_whole_frames(mixed, n_window, n_overlap), n_window, n_overlap)
    magnitude = np.exp(predict_log_magnitude(model, settings, log_magnitude(mixture_stft)))
    wave = recover_wav(magnitude, mixture_stft, n_overlap, np.hamming, len(mixed))
    return wave * np.sqrt(np.sum(np.hamming(n_window) ** 2))  # stft divided by it


def draw_spectrograms(workspace: str, te_snr: float, mixture: Mixture, mixed: np.ndarray, enhanced: np.ndarray) -> None:
    """Draw mixture, clean and enhanced spectrogram of a test file."""
    from features import stft
    from figures import save_spectrograms
    from prepare_data import read_features

    _, speech_magnitude = read_features(workspace, "test", te_snr, mixture)
    magnitudes = {
        "mixture": np.abs(stft(mixed, n_window, n_overlap)),
        "clean speech": speech_magnitude,
        "enhanced": np.abs(stft(enhanced, n_window, n_overlap)),
    }
    title = f"{mixture.speech_name} in {mixture.noise_name} at {te_snr:g} dB"
    save_spectrograms(spectrogram_figure_path(workspace, te_snr, mixture.name), magnitudes, title)


# --- Command line -----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the step that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")
    training = add_step(steps, train, "train the network from random weights")
    enhancing = add_step(steps, inference, "enhance the test mixtures with a trained model")
    for step in (training, enhancing):
        step.add_argument("--workspace", required=True, help="folder of all intermediate files and results")
        step.add_argument("--tr_snr", type=decibels, required=True, help="SNR of the training mixtures in dB")
        step.add_argument("--te_snr", type=decibels, required=True, help="SNR of the test mixtures in dB")
    training.add_argument("--lr", type=positive_float, default=1e-4, help="learning rate of Adam, per iteration")
    training.add_argument("--n_iterations", type=positive_int, default=10000, help="training steps, one batch each")
    training.add_argument("--eval_every", type=positive_int, default=1000, help="iterations between evaluations")
    training.add_argument("--save_every", type=positive_int, default=5000, help="iterations between saved models")
    training.add_argument("--batch_size", type=positive_int, default=500, help="context windows in a batch")
    training.add_argument("--seed", type=int, default=0, help="of the first weights, dropout and the order of batches")
    enhancing.add_argument("--iteration", type=int, required=True, help="which saved model: the iterations it trained")
    enhancing.add_argument(
        "--n_concat", type=int, help="frames in the model's window, as a check; default: the model's"
    )
    enhancing.add_argument("--visualize", action="store_true", help="draw the spectrograms of each file to PNG files")
    return run_step(parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
