"""The feature file of a mixture: what it says of its origin, and reading it."""

import json

import numpy as np

from config import n_window, stft_settings
from speech_enhancement.errors import InputError
from speech_enhancement.features import N_FREQ, N_HOP
from speech_enhancement.files import read_npz
from speech_enhancement.workspace import Mixture, features_path

MADE_BY = "calculate_mixture_features"


def n_frames_of(mixture: Mixture) -> int:
    """Return how many frames the features of a mixture have.

    Raises:
      InputError: its row of the CSV is shorter than a frame.
    """
    n_samples = mixture.noise_offset - mixture.noise_onset
    if n_samples < n_window:
        raise InputError(
            f"mixture {mixture.name}: expected at least {n_window} samples, found {n_samples}; mend the CSV"
        )
    return (n_samples - n_window) // N_HOP + 1


def mixture_settings(mixture: Mixture, snr: float) -> dict[str, float | int | str]:
    """Return what a feature file says about its origin: the row of the CSV, the SNR and the transform."""
    return {**mixture._asdict(), "snr_db": float(snr), **stft_settings}


def check_features(
    workspace: str, data_type: str, snr: float, mixture: Mixture
) -> dict[str, float]:
    """Check that the feature file of a mixture belongs to it.

    Returns:
      scaling_factor and alpha, which the mixture was scaled by.
    Raises:
      InputError: it is missing, or was made from another row, at another SNR or with another transform.
    """
    path = features_path(workspace, data_type, snr, mixture.name)
    return _facts(read_npz(path, ("origin",), MADE_BY)["origin"], path, mixture, snr)


def read_features(
    workspace: str, data_type: str, snr: float, mixture: Mixture
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Read the feature file of a mixture, after a look that it belongs to it.

    Returns:
      mixture_stft, complex64, and speech_magnitude, float32, each (n_frames, n_freq); and what check_features does.
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
