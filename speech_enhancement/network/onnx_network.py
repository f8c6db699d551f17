"""Running an exported network with memory in onnxruntime, without Keras."""

import json
import os

import numpy as np

from speech_enhancement.errors import InputError, MissingFileError
from speech_enhancement.network.network import Settings, check_transform, load_model
from speech_enhancement.network_input import Scaler
from speech_enhancement.recipe import recipe_from_dict


class OnnxNetwork:
    """An exported network with memory; see running.Stepwise for what it does.

    Args:
      session: onnxruntime.InferenceSession.
    """

    def __init__(self, session):
        self._session, self._inputs = session, session.get_inputs()

    def first_states(self) -> list[np.ndarray]:
        """Return the states before the first frame."""
        states = (value for value in self._inputs if value.name.startswith("state_"))
        return [np.zeros(state.shape, np.float32) for state in states]

    def step(self, inputs: list, states: list) -> tuple[np.ndarray, list]:
        """Run the network on some frames; return outputs and new states."""
        pairs = zip(self._inputs, [*inputs, *states], strict=True)
        feeds = {value.name: array.reshape(-1, *value.shape[1:]) for value, array in pairs}
        output, *states = self._session.run(None, feeds)
        return output, states


def load_onnx(path: str) -> tuple[OnnxNetwork, Settings]:
    """Load a network with memory that `export --format onnx` wrote, to run on one core.

    The file scales what the network sees; so the scaler of the settings changes nothing.

    Raises:
      MissingFileError: there is no such file.
      InputError: the package onnxruntime is missing, or the file is damaged, no such network, or
        made for another transform than config.py's.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f"{path} is missing; export a model of a recipe with memory")
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors
    except ImportError as error:
        raise InputError(
            f"{path} needs the package onnxruntime ({error}); pip install onnxruntime"
        ) from error
    damage = (errors.Fail, errors.InvalidProtobuf, errors.InvalidGraph, errors.InvalidArgument)
    damage += (errors.NotImplemented, errors.RuntimeException, KeyError, TypeError, ValueError)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # more cost time with a frame at once
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map
        content = {name: json.loads(value) for name, value in text.items()}
        recipe = recipe_from_dict(content["recipe"], path)
        names = ("sample_rate", "n_window", "n_overlap", "log_epsilon", "snr", "iteration")
        values = {name: content[name] for name in names}
        n_looks = content.get("n_looks", 1)
    except damage as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path} is damaged or not exported by this program ({reason}); export it again"
        ) from error
    if recipe.network.kind != "memory":
        raise InputError(
            f"{path} is of a recipe without memory; give the .keras file that it was exported from"
        )
    if n_looks != recipe.n_looks:
        raise InputError(
            f"{path}: expected a network for {recipe.n_looks} looks in turn, found one for "
            f"{n_looks}, as earlier versions exported it; export the .keras file again"
        )
    n_freq = values["n_window"] // 2 + 1
    shape = (recipe.input.n_statistics, n_freq)
    nothing = Scaler(np.zeros(n_freq), np.ones(n_freq), np.zeros(shape), np.ones(shape))
    settings = Settings(**values, recipe=recipe, scaler=nothing)
    settings.path = path
    check_transform(settings, path)
    return OnnxNetwork(session), settings


def load_any(path: str):
    """Load a model that train saved, or an exported one with memory, by the end of its name.

    Returns:
      What running.NetworkRun takes, and Settings.
    Raises:
      InputError: as of load_model and load_onnx.
    """
    return load_onnx(path) if path.endswith(".onnx") else load_model(path)
