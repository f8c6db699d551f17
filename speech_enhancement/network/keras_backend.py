"""Importing Keras, late and quietly, on a backend that is installed."""

import importlib.util
import json
import os
import sys

from speech_enhancement.errors import InputError

BACKENDS = ("tensorflow", "jax", "torch")  # in this order where nothing else is asked for
PROCESSORS = "/proc/cpuinfo"  # Linux's list of them


def import_keras():
    """Import Keras without what TensorFlow writes to standard error as it starts.

    Who sets TF_CPP_MIN_LOG_LEVEL (0 for everything) sees it.

    Raises:
      InputError: no backend is installed, or not the one that is asked for; or Keras' settings in
        keras.json are not for this program.
    """
    if "keras" in sys.modules:
        return sys.modules["keras"]
    choose_backend()
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return _import_keras()

    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.stderr.flush()
    standard_error = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)

    try:
        keras = _import_keras()
        if keras.backend.backend() == "tensorflow":
            keras.random.uniform((1,))  # TensorFlow reports its devices when it first computes
        elif importlib.util.find_spec("tensorflow"):
            import tensorflow  # noqa: F401 (where it is installed, Keras imports it to save a model)
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
        del os.environ["TF_CPP_MIN_LOG_LEVEL"]
    return keras


def _import_keras():
    try:
        import keras
    except ImportError as error:
        backend = os.environ["KERAS_BACKEND"]
        raise InputError(
            f"Keras on {backend} cannot be imported ({error}); "
            f"install it again, or set KERAS_BACKEND "
            f"to one of {', '.join(BACKENDS)} that works"
        ) from error
    return keras


def choose_backend() -> None:
    """Set KERAS_BACKEND to what Keras is to run on, before Keras is imported.

    It is what KERAS_BACKEND says already, or else keras.json, or else the first of BACKENDS that
    is installed. A keras.json that Keras wrote says "tensorflow", which is nobody's choice: where
    TensorFlow is not installed, that is ignored.

    Raises:
      InputError: see import_keras.
    """
    installed = [name for name in BACKENDS if importlib.util.find_spec(name) is not None]
    if not installed:
        raise InputError(
            "expected TensorFlow, JAX or PyTorch for Keras to run on, found none; run ./setup.sh"
        )
    settings, where = _keras_json(), "KERAS_BACKEND"
    asked = os.environ.get("KERAS_BACKEND")
    if not asked:
        asked, where = settings.get("backend", installed[0]), "the backend in Keras' keras.json"
    if asked == "tensorflow" and "KERAS_BACKEND" not in os.environ:
        asked = installed[0]
    if asked not in installed:
        advice = f"pip install {asked}" if asked in BACKENDS else "correct it"
        raise InputError(
            f"{where} is {asked}, expected one that is installed: {', '.join(installed)}; "
            f"{advice}, or set KERAS_BACKEND to one of these"
        )
    os.environ["KERAS_BACKEND"] = asked


def _keras_json() -> dict:
    """Return Keras' own settings, after a check that Keras and this program can work with them."""
    home = os.path.expanduser("~")
    if not os.access(home, os.W_OK):
        home = "/tmp"  # as Keras does
    folder = os.environ.get("KERAS_HOME", os.path.join(home, ".keras"))
    path = os.path.expanduser(os.path.join(folder, "keras.json"))
    advice = "correct the file, or remove it: Keras writes it anew"

    try:
        with open(path, encoding="utf-8") as file:
            settings = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:  # closed to us, or no JSON
        raise InputError(f"{path} cannot be read as Keras' settings ({error}); {advice}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: expected Keras' settings by name, found {settings!r}; {advice}")

    expected = {"floatx": ["float32"], "image_data_format": ["channels_last", "channels_first"]}
    for name, values in expected.items():
        if settings.get(name, values[0]) not in values:
            raise InputError(
                f"{path}: expected {name} {' or '.join(values)}, found {settings[name]}; {advice}"
            )
    if not isinstance(settings.get("epsilon", 1e-7), float):
        raise InputError(
            f"{path}: expected a number like 1e-07 as epsilon, "
            f"found {settings['epsilon']}; {advice}"
        )
    return settings


def has_bfloat16() -> bool:
    """Return whether networks on this machine are faster in bfloat16 than in float32.

    A graphics card of the last years is, and so is TensorFlow on processors that say so: Intel's
    and AMD's with AVX-512 BF16 or AMX, Arm's with BF16. Where the system does not tell (macOS,
    Windows), the answer is no. JAX and PyTorch gain nothing from such processors.
    """
    if not all(device.startswith("cpu") for device in device_names()):
        return True
    says_so = {"avx512_bf16", "amx_bf16", "bf16"} & set(_processor_flags())
    return import_keras().backend.backend() == "tensorflow" and bool(says_so)


def device_names() -> list[str]:
    """Return the devices that Keras computes on, such as "cpu:0"."""
    keras = import_keras()
    if keras.backend.backend() == "torch":  # Keras does not list PyTorch's devices
        import torch

        return ["gpu" if torch.cuda.is_available() else "cpu"]
    return keras.distribution.list_devices()


def _processor_flags() -> list[str]:
    """Return what the first processor of Linux's list can do, nothing where there is no list."""
    try:
        with open(PROCESSORS, encoding="ascii", errors="replace") as file:
            lines = [line for line in file if line.lower().startswith(("flags", "features"))]
    except OSError:
        return []
    return lines[0].split() if lines else []
