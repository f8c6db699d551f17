"""The network of a recipe: saving it with all that inference needs, and loading it."""

import dataclasses
import json
import os
import zipfile
from dataclasses import dataclass

import numpy as np

from config import stft_settings
from speech_enhancement.errors import InputError, MissingFileError, foreseen_machine_error
from speech_enhancement.files import DAMAGED_ARCHIVE, own_temporary_folder, replacing
from speech_enhancement.network.keras_backend import import_keras
from speech_enhancement.network_input import Scaler
from speech_enhancement.recipe import Recipe, plain, recipe_from_dict
from speech_enhancement.workspace import saved_iterations

SETTINGS_MEMBER = "speech_enhancement.json"  # in the .keras file, which is a zip archive
# What damaged files raise: the archive, the settings in it, Keras as it reads the rest.
_DAMAGE = (*DAMAGED_ARCHIVE, AttributeError, IndexError)


@dataclass
class Settings:
    """What inference needs besides the weights; it travels in the model's file.

    Attributes:
      sample_rate: in Hz.
      n_window, n_overlap: of the STFT, in samples.
      log_epsilon: added to magnitudes before the logarithm.
      snr: of the training mixtures, as in the name of the models' folder.
      iteration: training steps taken.
      recipe: the recipe the model was made with.
      scaler: of what the network sees.
      gv_beta: factor that equalises the variance of the estimates, [1]; 1 where it is not used.
    """

    sample_rate: int
    n_window: int
    n_overlap: int
    log_epsilon: float
    snr: str
    iteration: int
    recipe: Recipe
    scaler: Scaler
    gv_beta: float = 1.0
    path = "the model"  # the file that it was loaded from; not a field, so that it is not saved


def save_model(path: str, model, settings: Settings) -> None:
    """Save a model without its optimizer as a .keras file, with its settings inside.

    The settings are one JSON member of the archive.
    """
    with replacing(path) as temporary:
        with own_temporary_folder(os.path.dirname(path)):
            model.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            content = json.dumps(plain_settings(settings), indent=1, allow_nan=False)
            archive.writestr(SETTINGS_MEMBER, content)


def plain_settings(settings: Settings) -> dict:
    """Return settings as nested dictionaries and lists, as JSON can hold them."""
    content = {**dataclasses.asdict(settings), "recipe": plain(settings.recipe)}
    content["scaler"] = {name: value.tolist() for name, value in content["scaler"].items()}
    return content


def load_model(path: str):
    """Load a model and its settings; Keras' safe mode keeps a stranger's file from running code.

    Returns:
      keras.Model and Settings.
    Raises:
      MissingFileError: no such file; the message names the iterations that there are.
      InputError: the file is damaged, not one of ours, or made for another transform than
        config.py's.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f"{path} is missing; {_say_saved(os.path.dirname(path))}")
    settings = _read_settings(path)
    check_transform(settings, path)
    n_freq, n_statistics = settings.n_window // 2 + 1, settings.recipe.input.n_statistics
    check_scaler(settings.scaler, n_freq, n_statistics, path, "train the model again")
    settings.path = path
    return _read_network(path, settings.recipe, n_freq), settings


def _read_settings(path: str) -> Settings:
    """Read the settings in a model's file, after a check that its archive is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.flag_bits & 1 for member in archive.infolist()):
                raise InputError(f"{path} is encrypted; decrypt it, or train it again")
            damaged = archive.testzip()
            if damaged:
                raise InputError(f"{path} is damaged at {damaged}; train it again")
            content = json.loads(archive.read(SETTINGS_MEMBER))
        content["scaler"] = Scaler(
            **{name: np.array(value, float) for name, value in content["scaler"].items()}
        )
        content["recipe"] = recipe_from_dict(content["recipe"], path)
        return Settings(**content)
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(
            f"{path} is damaged or not a model of this program ({error}); train it again"
        ) from error


def _read_network(path: str, recipe: Recipe, n_freq: int):
    """Let Keras read the network in a model's file; check that it is one of the recipe."""
    keras, section = import_keras(), recipe.input
    shapes = [(1, section.n_concat + section.look_ahead, n_freq)]
    if section.n_statistics:
        shapes.append((1, 1, section.n_statistics * n_freq))
    n_outputs = n_freq * (2 if recipe.target.output == "log_magnitude_and_mask" else 1)

    try:
        with own_temporary_folder():
            model = keras.models.load_model(path, compile=False, safe_mode=True)
        output_shape = tuple(model.compute_output_shape(shapes if len(shapes) > 1 else shapes[0]))
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and foreseen_machine_error(error):
            raise  # not the file's fault
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is refused by Keras ({reason}); train it again") from error

    if output_shape != (1, 1, n_outputs):
        raise InputError(
            f"{path} is damaged: expected a network that makes {(1, 1, n_outputs)} of {shapes}, "
            f"found {output_shape}; train it again"
        )
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        raise InputError(f"{path} has weights that are NaN or infinite; train it again")
    return model


def check_transform(settings: Settings, path: str) -> None:
    """Raise InputError unless a model, read from `path`, was made for config.py's transform."""
    for name, ours in stft_settings.items():
        its = getattr(settings, name)
        if ours != its:
            raise InputError(
                f"{path} was trained with {name} {its}, config.py has {ours}; make them equal"
            )


def check_scaler(scaler: Scaler, n_freq: int, n_statistics: int, path: str, advice: str) -> None:
    """Raise InputError unless a scaler has a number for each bin, and deviations above 0.

    Args:
      scaler: as read from the file `path`.
      n_freq, n_statistics: bins of a frame, and statistics beside the frames.
      path, advice: for the message, what was read and what to do.
    """
    for name, array in vars(scaler).items():
        shape = (n_statistics, n_freq) if name.startswith("statistics") else (n_freq,)
        is_numeric = np.issubdtype(array.dtype, np.number)
        if not is_numeric or (array.shape != shape and not array.size == np.prod(shape) == 0):
            raise InputError(
                f"{path}: expected {shape} numbers as {name} of the scaler, found {array.shape} "
                f"of type {array.dtype}; {advice}"
            )
        if not np.isfinite(array).all() or (name.endswith("std") and not (array > 0).all()):
            raise InputError(
                f"{path}: {name} of the scaler holds NaN, infinity or a deviation of 0; {advice}"
            )


def _say_saved(folder: str) -> str:
    """Say which iterations were saved in a folder of models."""
    saved = saved_iterations(folder)
    return (
        f"--iteration can be {', '.join(map(str, saved))}"
        if saved
        else "check its name, or run train first"
    )
