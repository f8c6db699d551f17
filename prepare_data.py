"""Prepare the data: list the mixtures, mix and transform them, pack the features, compute the scaler."""

import argparse
import hashlib
import os

import numpy as np

from command_line import add_step, decibels, positive_int, run_step, track
from config import log_epsilon, n_overlap, n_window, sample_rate
from errors import InputError
from workspace import (
    Mixture,
    features_path,
    mixed_audio_path,
    mixture_csv_path,
    packed_path,
    read_mixtures,
    scaler_path,
    write_mixtures,
)

N_FREQ = n_window // 2 + 1
STFT_SETTINGS = {"sample_rate": sample_rate, "n_window": n_window, "n_overlap": n_overlap, "log_epsilon": log_epsilon}


# --- create_mixture_csv -----------------------------------------------------------------------


def create_mixture_csv(
    workspace: str,
    speech_dir: str,
    noise_dir: str,
    data_type: str,
    magnification: int = 1,
    speech_list: str | None = None,
    noise_list: str | None = None,
) -> None:
    """List which speech is mixed with which part of which noise.

    Train: each speech with `magnification` noises; test: each speech with every noise. The draws
    depend on the names of a pair alone, so a new speech file changes no other row, and a new noise
    only the rows that it enters.

    Args:
      workspace: folder to write mixture_csvs/{data_type}.csv in.
      speech_dir, noise_dir: folders of .wav, .flac or .ogg files, nested or not.
      data_type: "train" or "test".
      magnification: noises for each speech (train only).
      speech_list, noise_list: text files that name the files to use; None uses all.
    Raises:
      InputError: a folder or list without usable files, or fewer noises than `magnification`.
    """
    from audio_files import audio_length, check_speech_length, list_audio

    speech_names = list_audio(speech_dir, "speech", speech_list)
    noise_names = list_audio(noise_dir, "noise", noise_list)
    if data_type == "train" and magnification > len(noise_names):
        raise InputError(
            f"magnification {magnification} is more than the {len(noise_names)} noises in {noise_dir}; "
            f"lower --magnification or add noises"
        )
    noise_lengths = {name: audio_length(os.path.join(noise_dir, name)) for name in noise_names}
    mixtures = []
    for speech_name in speech_names:
        speech_path = os.path.join(speech_dir, speech_name)
        n_speech = audio_length(speech_path)
        check_speech_length(n_speech, speech_path)
        chosen = draw_noises(speech_name, noise_names, magnification) if data_type == "train" else noise_names
        for noise_name in chosen:
            onset, offset = draw_segment(speech_name, noise_name, n_speech, noise_lengths[noise_name])
            mixtures.append(Mixture(speech_name, noise_name, onset, offset))
    path = mixture_csv_path(workspace, data_type)
    write_mixtures(path, mixtures)
    print(f"{len(speech_names)} speech and {len(noise_names)} noise files: {len(mixtures)} mixtures -> {path}")


def keyed_number(*keys: str) -> int:
    """Return a large pseudo-random integer that depends on the keys alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\n".join(keys).encode()).digest(), "big")


def draw_noises(speech_name: str, noise_names: list[str], magnification: int) -> list[str]:
    """Draw noises for a speech without replacement: the first of an order that the names define."""
    return sorted(noise_names, key=lambda noise_name: keyed_number("rank", speech_name, noise_name))[:magnification]


def draw_segment(speech_name: str, noise_name: str, n_speech: int, n_noise: int) -> tuple[int, int]:
    """Draw which part of a noise goes with a speech.

    Args:
      speech_name, noise_name: the pair that the draw depends on.
      n_speech, n_noise: lengths at 16 kHz, in samples.
    Returns:
      onset and offset in samples at 16 kHz, n_speech apart. The onset is 0 where the noise is no
      longer than the speech: it is then repeated.
    """
    onset = keyed_number("onset", speech_name, noise_name) % (n_noise - n_speech + 1) if n_noise > n_speech else 0
    return onset, onset + n_speech


# --- calculate_mixture_features ---------------------------------------------------------------


def calculate_mixture_features(workspace: str, speech_dir: str, noise_dir: str, data_type: str, snr: float) -> None:
    """Mix each row of the mixture CSV; write the mixed wave and the spectra.

    The features of a mixture are the complex spectrum of the mixture, `mixture_stft`, and the
    magnitude spectrum of the clean speech in it, `speech_magnitude`, each (n_frames, n_freq).

    Working set: one mixture, and a cache of decoded files (64 MiB, or one file if that is larger).

    Args:
      workspace: folder with mixture_csvs/{data_type}.csv.
      speech_dir, noise_dir: the folders that the names in it are relative to.
      data_type: "train" or "test".
      snr: signal-to-noise ratio in dB.
    Raises:
      InputError: a file that is missing, unreadable, silent or too short.
    """
    from audio_files import AudioCache

    mixtures = read_mixtures(workspace, data_type)
    cache = AudioCache()
    for mixture in track(mixtures, len(mixtures), "mixtures"):
        speech, noise = read_pair(cache, mixture, speech_dir, noise_dir)
        write_mixture(workspace, data_type, snr, mixture, speech, noise)
    folder = os.path.dirname(features_path(workspace, data_type, snr, ""))
    print(f"{len(mixtures)} mixtures at {snr:g} dB -> {folder}")


def read_pair(cache, mixture: Mixture, speech_dir: str, noise_dir: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the speech of a mixture and as much of its noise, each (n_samples,) float64.

    Raises:
      InputError: the row does not fit the files, or one of the two signals is silent.
    """
    from audio_files import check_speech_length

    speech_path = os.path.join(speech_dir, mixture.speech_name)
    noise_path = os.path.join(noise_dir, mixture.noise_name)
    speech, noise = cache.read(speech_path), cache.read(noise_path)
    check_speech_length(len(speech), speech_path)
    onset, offset = mixture.noise_onset, mixture.noise_offset
    row = f"mixture {mixture.name}: noise_onset {onset}, noise_offset {offset}"
    if offset - onset != len(speech):
        raise InputError(
            f"{row}: expected {len(speech)} samples, as {speech_path} has at {sample_rate} Hz; mend the CSV"
        )
    if onset >= len(noise):
        raise InputError(f"{row}: {noise_path} ends at {len(noise)} samples at {sample_rate} Hz; mend the CSV")
    noise = np.resize(noise, offset)[onset:]  # np.resize repeats the noise where it is too short
    for path, audio in ((speech_path, speech), (noise_path, noise)):
        if not audio.any():
            raise InputError(f"{row}: {path} is silent there, so no SNR can be reached; remove the row or the file")
    return speech, noise


def mixture_settings(mixture: Mixture, snr: float) -> dict[str, float | int | str]:
    """Return what a feature file says about its origin: the row of the CSV, the SNR and the transform."""
    return {**mixture._asdict(), "snr_db": float(snr), **STFT_SETTINGS}


def write_mixture(
    workspace: str, data_type: str, snr: float, mixture: Mixture, speech: np.ndarray, noise: np.ndarray
) -> None:
    """Mix two signals of one length at `snr` dB and write the mixed wave and the features."""
    from audio_files import write_wave
    from features import mix_at_snr, stft
    from safe_files import write_npz

    mixed, speech, _, scaling_factor, alpha = mix_at_snr(speech, noise, snr)
    mixture_stft = stft(mixed, n_window, n_overlap)
    write_wave(mixed_audio_path(workspace, data_type, snr, mixture.name), mixed)
    write_npz(
        features_path(workspace, data_type, snr, mixture.name),
        mixture_stft=mixture_stft.astype(np.complex64),
        speech_magnitude=np.abs(stft(speech, n_window, n_overlap)).astype(np.float32),
        n_frames=len(mixture_stft),
        scaling_factor=scaling_factor,
        alpha=alpha,
        **mixture_settings(mixture, snr),
    )


# --- pack_features ----------------------------------------------------------------------------


def pack_features(workspace: str, data_type: str, snr: float, n_concat: int = 7, n_hop: int = 3) -> None:
    """Pack the features of all mixtures into one HDF5 file of context windows and targets.

    Dataset `x` (n_segs, n_concat, n_freq): windows of the mixture's log magnitude; dataset `y`
    (n_segs, n_freq): the log magnitude of the clean speech at the centre of each window; float32.

    Working set: the windows of one mixture.

    Args:
      workspace: folder with the features.
      data_type: "train" or "test".
      snr: signal-to-noise ratio in dB.
      n_concat: frames in a window, odd.
      n_hop: frames from one window to the next.
    Raises:
      InputError: n_concat is even, or features are missing or belong to another mixture CSV.
    """
    from features import context_windows, log_magnitude
    from safe_files import new_hdf5

    check_n_concat(n_concat)
    if n_hop < 1:
        raise InputError(f"n_hop {n_hop}: expected at least 1 frame")
    mixtures = read_mixtures(workspace, data_type)
    n_segs = [-(-read_n_frames(workspace, data_type, snr, mixture) // n_hop) for mixture in mixtures]
    path = packed_path(workspace, data_type, snr)
    shapes = {"x": (sum(n_segs), n_concat, N_FREQ), "y": (sum(n_segs), N_FREQ)}
    attributes = {
        "snr_db": float(snr),
        "n_concat": n_concat,
        "n_hop": n_hop,
        "n_mixtures": len(mixtures),
        **STFT_SETTINGS,
    }
    with new_hdf5(path, shapes, attributes) as packed:
        start = 0
        for mixture, n_new in track(zip(mixtures, n_segs, strict=True), len(mixtures), "mixtures"):
            mixture_stft, speech_magnitude = read_features(workspace, data_type, snr, mixture)
            rows = slice(start, start + n_new)
            packed["x"][rows] = context_windows(log_magnitude(mixture_stft), n_concat, n_hop)
            packed["y"][rows] = log_magnitude(speech_magnitude)[::n_hop]
            start += n_new
    print(f"{len(mixtures)} mixtures: x {shapes['x']}, y {shapes['y']} -> {path}")


def check_n_concat(n_concat: int) -> None:
    """Raise InputError unless n_concat is odd and positive, so that a window has a centre frame."""
    if n_concat < 1 or n_concat % 2 == 0:
        raise InputError(f"n_concat {n_concat}: expected an odd number of frames of at least 1, such as 7")


def read_n_frames(workspace: str, data_type: str, snr: float, mixture: Mixture) -> int:
    """Return how many frames the feature file of a mixture holds, after a look that it belongs to it.

    Raises:
      InputError: it was made from another row, at another SNR or with another transform.
    """
    from safe_files import read_npz

    path = features_path(workspace, data_type, snr, mixture.name)
    expected = mixture_settings(mixture, snr)
    found = read_npz(path, ("n_frames", *expected), made_by="calculate_mixture_features")
    for key, value in expected.items():
        if found[key] != value:
            raise InputError(
                f"{path}: expected {key} {value}, found {found[key]}; run calculate_mixture_features again"
            )
    return found["n_frames"]


def read_features(workspace: str, data_type: str, snr: float, mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Return mixture_stft, complex64, and speech_magnitude, float32, each (n_frames, n_freq)."""
    from safe_files import read_npz

    path = features_path(workspace, data_type, snr, mixture.name)
    features = read_npz(path, ("mixture_stft", "speech_magnitude"), made_by="calculate_mixture_features")
    return features["mixture_stft"], features["speech_magnitude"]


# --- compute_scaler ---------------------------------------------------------------------------


def compute_scaler(workspace: str, data_type: str, snr: float) -> None:
    """Compute the mean and standard deviation of each frequency bin of the packed mixtures.

    Writes scaler.npz beside data.h5, with mean and std, each (n_freq,). The same scaler serves x and y.

    Working set: 1024 windows.

    Args:
      workspace: folder with the packed features.
      data_type: "train" (or "test").
      snr: signal-to-noise ratio in dB.
    Raises:
      InputError: data.h5 is missing or damaged.
    """
    from features import RunningStatistics
    from safe_files import open_hdf5, write_npz

    statistics = RunningStatistics()
    with open_hdf5(packed_path(workspace, data_type, snr), ("x", "y"), made_by="pack_features") as packed:
        x = packed["x"]
        starts = range(0, len(x), 1024)
        for start in track(starts, len(starts), "blocks"):
            statistics.add(x[start : start + 1024].reshape(-1, N_FREQ))
        n_concat, n_hop, n_segs = int(packed.attrs["n_concat"]), int(packed.attrs["n_hop"]), len(x)
    path = scaler_path(workspace, data_type, snr)
    write_npz(path, mean=statistics.mean, std=statistics.std, n_concat=n_concat, n_hop=n_hop, n_segs=n_segs)
    print(f"{statistics.count} frames -> {path}")


# --- Command line -----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the step that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")
    create = add_step(steps, create_mixture_csv, "list which speech is mixed with which part of which noise")
    calculate = add_step(steps, calculate_mixture_features, "mix, and write waves and spectra")
    pack = add_step(steps, pack_features, "pack context windows and targets of all mixtures into one HDF5 file")
    scale = add_step(steps, compute_scaler, "compute mean and standard deviation of each frequency bin")
    for step in (create, calculate, pack, scale):
        step.add_argument("--workspace", required=True, help="folder of all intermediate files and results")
        step.add_argument("--data_type", required=True, choices=["train", "test"], help="which data set")
    for step in (create, calculate):
        step.add_argument("--speech_dir", required=True, help="folder of clean speech (.wav, .flac, .ogg)")
        step.add_argument("--noise_dir", required=True, help="folder of noises (.wav, .flac, .ogg)")
    for step in (calculate, pack, scale):
        step.add_argument("--snr", type=decibels, required=True, help="signal-to-noise ratio of the mixtures in dB")
    create.add_argument(
        "--magnification", type=positive_int, default=1, help="noises mixed with each training speech, drawn at random"
    )
    create.add_argument("--speech_list", help="text file naming the speech files to use, one per line; default: all")
    create.add_argument("--noise_list", help="text file naming the noise files to use, one per line; default: all")
    pack.add_argument("--n_concat", type=int, default=7, help="frames in a context window, odd")
    pack.add_argument("--n_hop", type=int, default=3, help="frames from one context window to the next")
    return run_step(parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
