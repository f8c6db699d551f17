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
