"""Mixing speech and noise; writing and reading the feature files, and what they were made from."""

import functools
import itertools
import json
import os

import numpy as np

from config import n_overlap, n_window, sample_rate, stft_settings
from speech_enhancement.data.mixtures import Mixture, read_mixtures
from speech_enhancement.errors import InputError
from speech_enhancement.features import (
    N_FREQ,
    N_HOP,
    magnitudes,
    mix_at_snr,
    root_mean_square,
    stft,
)
from speech_enhancement.files import read_npz, write_npz
from speech_enhancement.parallel import in_processes
from speech_enhancement.progress import track
from speech_enhancement.workspace import features_path, mixed_audio_path

MADE_BY = "calculate_mixture_features"
MIXTURES_AT_ONCE = 16  # by one process


# --- Mixing -------------------------------------------------------------------------------------


def calculate_mixture_features(
    workspace: str,
    speech_dir: str,
    noise_dir: str,
    data_type: str,
    snr: float,
    n_jobs: int | None = None,
) -> None:
    """Mix each row of the mixture CSV; write the mixed wave and the spectra.

    The features of a mixture are the complex spectrum of the mixture, `mixture_stft`, and the
    magnitude spectrum of the clean speech in it, `speech_magnitude`, each (n_frames, n_freq).

    The mixtures of a noise are made one after the other, so that a process decodes each noise once.

    Working set, for each job: one mixture, and decoded speech and noise (64 MiB of each, or one
    file if that is larger).

    Args:
      workspace: folder with mixture_csvs/{data_type}.csv.
      speech_dir, noise_dir: the folders that the names in it are relative to.
      data_type: "train" or "test".
      snr: signal-to-noise ratio in dB.
      n_jobs: processes; None takes all cores.
    Raises:
      InputError: a file that is missing, unreadable, silent or too short.
    """
    mixtures = read_mixtures(workspace, data_type)
    make = functools.partial(make_mixtures, workspace, speech_dir, noise_dir, data_type, snr)
    made = itertools.chain.from_iterable(in_processes(make, runs_of_one_noise(mixtures), n_jobs))
    for _ in track(made, len(mixtures), "mixtures"):
        pass
    folder = os.path.dirname(features_path(workspace, data_type, snr, ""))
    print(f"{len(mixtures)} mixtures at {snr:g} dB -> {folder}")


def make_mixtures(
    workspace: str,
    speech_dir: str,
    noise_dir: str,
    data_type: str,
    snr: float,
    mixtures: list[Mixture],
) -> range:
    """Read and mix some pairs and write the mixtures; return a range with an item for each."""
    for mixture in mixtures:
        speech, noise = read_pair(audio_caches(), mixture, speech_dir, noise_dir)
        write_mixture(workspace, data_type, snr, mixture, speech, noise)
    return range(len(mixtures))


@functools.cache
def audio_caches() -> tuple:
    """Return the caches of decoded speech and noise of this process."""
    from speech_enhancement.data.audio_files import AudioCache

    return AudioCache(), AudioCache()


def runs_of_one_noise(mixtures: list[Mixture]) -> list[list[Mixture]]:
    """Return the mixtures in runs of one noise, at most MIXTURES_AT_ONCE in each.

    Runs of the same noise follow each other.
    """
    runs = []
    by_noise = sorted(mixtures, key=lambda mixture: mixture.noise_name)
    for _, same in itertools.groupby(by_noise, lambda mixture: mixture.noise_name):
        while run := list(itertools.islice(same, MIXTURES_AT_ONCE)):
            runs.append(run)
    return runs


def read_pair(
    caches: tuple, mixture: Mixture, speech_dir: str, noise_dir: str
) -> tuple[np.ndarray, np.ndarray]:
    """Read the speech of a mixture and as much of its noise, each (n_samples,) float64.

    Args:
      caches: an AudioCache for speech and one for noise.
      mixture: the row of the CSV.
      speech_dir, noise_dir: the folders that its names are relative to.
    Raises:
      InputError: the row does not fit the files, or one of the two signals is silent.
    """
    from speech_enhancement.data.audio_files import audio_path, check_speech_length

    speech_path = audio_path(speech_dir, mixture.speech_name)
    noise_path = audio_path(noise_dir, mixture.noise_name)
    speech, noise = caches[0].read(speech_path), caches[1].read(noise_path)
    check_speech_length(len(speech), speech_path)
    onset, offset = mixture.noise_onset, mixture.noise_offset
    row = f"mixture {mixture.name}: noise_onset {onset}, noise_offset {offset}"
    if offset - onset != len(speech):
        raise InputError(
            f"{row}: expected {len(speech)} samples, as {speech_path} has "
            f"at {sample_rate} Hz; fix the CSV"
        )
    if onset >= len(noise):
        raise InputError(
            f"{row}: {noise_path} ends at {len(noise)} samples at {sample_rate} Hz; fix the CSV"
        )
    # A noise that is too short is repeated.
    noise = noise[onset:offset] if offset <= len(noise) else np.resize(noise, offset)[onset:]

    speech, noise = speech.astype(np.float64), noise.astype(np.float64)
    for path, audio in ((speech_path, speech), (noise_path, noise)):
        if root_mean_square(audio) == 0:
            raise InputError(
                f"{row}: {path} is silent there, so no SNR can be reached; "
                "remove the row or the file"
            )
    return speech, noise


def write_mixture(
    workspace: str,
    data_type: str,
    snr: float,
    mixture: Mixture,
    speech: np.ndarray,
    noise: np.ndarray,
) -> None:
    """Mix two signals of one length at `snr` dB and write the mixed wave and the features."""
    from speech_enhancement.data.audio_files import write_wave

    mixed, speech, _, scaling_factor, alpha = mix_at_snr(speech, noise, snr)
    mixture_stft = stft(mixed, n_window, n_overlap)
    facts = {"scaling_factor": scaling_factor, "alpha": alpha}
    write_wave(mixed_audio_path(workspace, data_type, snr, mixture.name), mixed)
    write_npz(
        features_path(workspace, data_type, snr, mixture.name),
        mixture_stft=mixture_stft.astype(np.complex64),
        speech_magnitude=magnitudes(speech).astype(np.float32),
        origin=json.dumps({**mixture_settings(mixture, snr), **facts}),
    )


# --- The feature file -----------------------------------------------------------------------------


def n_frames_of(mixture: Mixture) -> int:
    """Return how many frames the features of a mixture have.

    Raises:
      InputError: its row of the CSV is shorter than a frame.
    """
    n_samples = mixture.noise_offset - mixture.noise_onset
    if n_samples < n_window:
        raise InputError(
            f"mixture {mixture.name}: expected at least {n_window} samples, "
            f"found {n_samples}; fix the CSV"
        )
    return (n_samples - n_window) // N_HOP + 1


def mixture_settings(mixture: Mixture, snr: float) -> dict[str, float | int | str]:
    """Return what a feature file says of its origin: the row of the CSV, SNR and transform."""
    return {**mixture._asdict(), "snr_db": float(snr), **stft_settings}


def check_features(
    workspace: str, data_type: str, snr: float, mixture: Mixture
) -> dict[str, float]:
    """Check that the feature file of a mixture belongs to it.

    Returns:
      scaling_factor and alpha, which the mixture was scaled by.
    Raises:
      InputError: it is missing, or was made from another row, at another SNR or with another
        transform.
    """
    path = features_path(workspace, data_type, snr, mixture.name)
    return _facts(read_npz(path, ("origin",), MADE_BY)["origin"], path, mixture, snr)


def read_features(
    workspace: str, data_type: str, snr: float, mixture: Mixture
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Read the feature file of a mixture, after a check that it belongs to it.

    Returns:
      mixture_stft, complex64, and speech_magnitude, float32, each (n_frames, n_freq); and what
      check_features does.
    Raises:
      InputError: as of check_features.
    """
    path = features_path(workspace, data_type, snr, mixture.name)
    features = read_npz(path, ("mixture_stft", "speech_magnitude", "origin"), MADE_BY)
    facts = _facts(features["origin"], path, mixture, snr)
    mixture_stft, speech_magnitude = features["mixture_stft"], features["speech_magnitude"]
    expected = (n_frames_of(mixture), N_FREQ)
    if mixture_stft.shape != expected or speech_magnitude.shape != expected:
        found = f"{mixture_stft.shape} and {speech_magnitude.shape}"
        raise InputError(
            f"{path}: expected spectra of the shape {expected}, found {found}; run {MADE_BY} again"
        )
    return mixture_stft, speech_magnitude, facts


def _facts(origin: str, path: str, mixture: Mixture, snr: float) -> dict[str, float]:
    """Return the facts of check_features from the JSON text that a feature file holds."""
    try:
        found = json.loads(origin)
        facts = {name: found[name] for name in ("scaling_factor", "alpha")}
        for key, value in mixture_settings(mixture, snr).items():
            if found[key] != value:
                raise InputError(
                    f"{path}: expected {key} {value}, found {found[key]}; run {MADE_BY} again"
                )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not say what it was made from ({error!r}); run {MADE_BY} again"
        ) from error
    return facts
