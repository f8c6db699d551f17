"""Importing Keras, late and quietly."""

import importlib.util
import os
import sys


def import_keras():
    """Import Keras without what TensorFlow writes to standard error as it starts.

    Who sets TF_CPP_MIN_LOG_LEVEL (0 for everything) sees it.
    """
    if "keras" in sys.modules or "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        import keras

        return keras
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.stderr.flush()
    standard_error = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import keras

        if keras.backend.backend() == "tensorflow":
            keras.random.uniform((1,))  # TensorFlow reports its devices when it first computes
        elif importlib.util.find_spec("tensorflow"):
            import tensorflow  # noqa: F401 (where it is installed, Keras imports it to save a model)
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
        del os.environ["TF_CPP_MIN_LOG_LEVEL"]
    return keras


def has_bfloat16() -> bool:
    """Return whether this machine multiplies matrices faster in bfloat16 than in float32.

    A graphics card of the last years does, and so do processors that say so: Intel's and AMD's with AVX-512 BF16 or
    AMX, Arm's with BF16. Where the system does not tell (macOS, Windows), the answer is no.
    """
    keras = import_keras()
    if keras.backend.backend() == "torch":  # Keras does not list PyTorch's devices
        import torch

        if torch.cuda.is_available():
            return True
    elif not all(device.startswith("cpu") for device in keras.distribution.list_devices()):
        return True
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next(
                (line for line in file if line.lower().startswith(("flags", "features"))), ""
            )
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.split())
