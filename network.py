"""The regression network: building it, its file with all that inference needs, running it on frames."""

import json
import os
import re
import sys
import zipfile
from dataclasses import asdict, dataclass

import numpy as np

import config
from errors import InputError, MissingFileError
from safe_files import replacing

SETTINGS_MEMBER = "speech_enhancement.json"  # in the .keras file, which is a zip archive
FRAMES_AT_ONCE = 1024  # predicted together: 16 s of audio, 8 MB of context windows


def import_keras():
    """Import Keras without what TensorFlow writes to standard error as it starts.

    Who sets TF_CPP_MIN_LOG_LEVEL (0 for everything) sees it.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        import keras

        return keras
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.stderr.flush()
    standard_error = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import keras

        keras.random.uniform((1,))  # the backend reports its devices when it first computes
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
        del os.environ["TF_CPP_MIN_LOG_LEVEL"]
    return keras


@dataclass
class Settings:
    """What inference needs besides the weights; it travels in the model's file.

    Attributes:
      sample_rate: in Hz.
      n_window, n_overlap: of the STFT, in samples.
      log_epsilon: added to magnitudes before the logarithm.
      n_concat: frames in the input window.
      tr_snr: signal-to-noise ratio of the training mixtures in dB.
      iteration: training steps taken.
      mean, std: of each frequency bin of the training mixtures' log magnitude, n_freq numbers.
    """

    sample_rate: int
    n_window: int
    n_overlap: int
    log_epsilon: float
    n_concat: int
    tr_snr: float
    iteration: int
    mean: list[float]
    std: list[float]


def build_network(n_concat: int, n_freq: int, seed: int):
    """Build the network of [1] as the reference implementation has it, with random weights.

    Flatten, hidden layers of rectified linear units with dropout, a linear output: the scaled log
    magnitude of the centre frame.

    Args:
      n_concat: frames in a window.
      n_freq: frequency bins of a frame.
      seed: of the first weights and of dropout.
    Returns:
      keras.Model from (n_segs, n_concat, n_freq) to (n_segs, n_freq).
    """
    keras = import_keras()
    seeds = iter(np.random.SeedSequence(seed).generate_state(2 * config.n_hidden_layers + 1).tolist())
    layers = [keras.Input((n_concat, n_freq)), keras.layers.Flatten()]
    for _ in range(config.n_hidden_layers):
        first_weights = keras.initializers.GlorotUniform(seed=next(seeds))
        layers.append(keras.layers.Dense(config.n_hidden_units, activation="relu", kernel_initializer=first_weights))
        layers.append(keras.layers.Dropout(config.dropout, seed=next(seeds)))
    layers.append(keras.layers.Dense(n_freq, kernel_initializer=keras.initializers.GlorotUniform(seed=next(seeds))))
    return keras.Sequential(layers)


def save_model(path: str, model, settings: Settings) -> None:
    """Save a model without its optimizer as a .keras file, with the settings as one JSON member of the archive."""
    with replacing(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(SETTINGS_MEMBER, json.dumps(asdict(settings), indent=1))


def load_model(path: str):
    """Load a model and its settings; Keras' safe mode keeps a stranger's file from running code.

    Returns:
      keras.Model and Settings.
    Raises:
      MissingFileError: no such file; the message names the iterations that there are.
      InputError: the file is damaged, not one of ours, or made for another transform than config.py's.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f"{path} is missing; {_saved_iterations(os.path.dirname(path))}")
    try:
        with zipfile.ZipFile(path) as archive:
            settings = Settings(**json.loads(archive.read(SETTINGS_MEMBER)))
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged or not a model of this program ({error}); train it again") from error
    for name in ("sample_rate", "n_window", "n_overlap", "log_epsilon"):
        ours, its = getattr(config, name), getattr(settings, name)
        if ours != its:
            raise InputError(f"{path} was trained with {name} {its}, config.py has {ours}; make them equal")
    return import_keras().models.load_model(path, compile=False, safe_mode=True), settings


def _saved_iterations(folder: str) -> str:
    """Say which iterations were saved in a folder of models."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    saved = sorted(int(found[1]) for found in (re.fullmatch(r"md_(\d+)iters\.keras", name) for name in names) if found)
    return f"--iteration can be {', '.join(map(str, saved))}" if saved else "run train first"


def predict_log_magnitude(model, settings: Settings, mixture_log: np.ndarray) -> np.ndarray:
    """Estimate the log magnitude of the clean speech, frame by frame.

    Working set: the windows of FRAMES_AT_ONCE frames.

    Args:
      model, settings: as load_model returns them.
      mixture_log: (n_frames, n_freq) log magnitude of the mixture.
    Returns:
      (n_frames, n_freq).
    """
    from features import context_windows

    n_side = (settings.n_concat - 1) // 2
    mean, std = np.array(settings.mean, np.float32), np.array(settings.std, np.float32)
    scaled = (mixture_log.astype(np.float32) - mean) / std
    padded = np.pad(scaled, ((n_side, n_side), (0, 0)), mode="edge")
    estimates = []
    for start in range(0, len(scaled), FRAMES_AT_ONCE):
        part = padded[start : start + FRAMES_AT_ONCE + 2 * n_side]
        windows = context_windows(part, settings.n_concat, 1)[n_side : len(part) - n_side]
        estimates.append(model.predict_on_batch(windows))
    return np.concatenate(estimates) * std + mean
