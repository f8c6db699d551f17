"""The feature file of a mixture: what it says of its origin, and reading it."""

import json

import numpy as np

from config import stft_settings
from errors import InputError
from safe_files import read_npz
from workspace import Mixture, features_path


def mixture_settings(mixture: Mixture, snr: float) -> dict[str, float | int | str]:
    """Return what a feature file says about its origin: the row of the CSV, the SNR and the transform."""
    return {**mixture._asdict(), "snr_db": float(snr), **stft_settings}


def check_features(workspace: str, data_type: str, snr: float, mixture: Mixture) -> dict[str, float | int]:
    """Check that the feature file of a mixture belongs to it.

    Returns:
      n_frames, and the factors scaling_factor and alpha that the mixture was scaled by.
    Raises:
      InputError: it is missing, or was made from another row, at another SNR or with another transform.
    """
    path = features_path(workspace, data_type, snr, mixture.name)
    made_by = "calculate_mixture_features"
    origin = str(read_npz(path, ("origin",), made_by)["origin"])
    try:
        found = json.loads(origin)
        facts = {name: found[name] for name in ("n_frames", "scaling_factor", "alpha")}
        for key, value in mixture_settings(mixture, snr).items():
            if found[key] != value:
                raise InputError(f"{path}: expected {key} {value}, found {found[key]}; run {made_by} again")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not say what it was made from ({error!r}); run {made_by} again") from error
    return facts


def read_features(workspace: str, data_type: str, snr: float, mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Return mixture_stft, complex64, and speech_magnitude, float32, each (n_frames, n_freq)."""
    path = features_path(workspace, data_type, snr, mixture.name)
    features = read_npz(path, ("mixture_stft", "speech_magnitude"), made_by="calculate_mixture_features")
    return features["mixture_stft"], features["speech_magnitude"]
