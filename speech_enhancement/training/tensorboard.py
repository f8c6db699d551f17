"""The losses of a training for TensorBoard."""

import importlib.util
import os

from speech_enhancement.errors import InputError, foreseen_disk_errors
from speech_enhancement.network.keras_backend import import_keras


def make_tensorboard(folder: str, model):
    """Return Keras' callback that writes the losses for TensorBoard.

    Raises:
      InputError: its packages are missing, or the folder cannot be made.
    """
    missing = [
        name for name in ("tensorflow", "tensorboard") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise InputError(
            f"--tensorboard needs TensorFlow and TensorBoard; pip install {' '.join(missing)}"
        )
    with foreseen_disk_errors(folder):
        os.makedirs(folder, exist_ok=True)
    callback = import_keras().callbacks.TensorBoard(folder, write_graph=False)
    callback.set_model(model)
    return callback
