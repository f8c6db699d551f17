"""Beginning a training with the weights of a model instead of random ones."""

import hashlib

import numpy as np

from speech_enhancement.errors import InputError
from speech_enhancement.network.network import load_model
from speech_enhancement.network_input import Scaler
from speech_enhancement.recipe import Recipe, flat
from speech_enhancement.training.packed_batches import TrainingData

FREE = ("[network] dropout", "[network] input_dropout")  # no weight depends on them


def weights_of_model(path: str, recipe: Recipe, data: TrainingData) -> list[np.ndarray]:
    """Read the weights to begin with, and let the training see its data as the model does.

    The scaler of the model takes the place of the data's own, because the weights were made for it.

    Args:
      path: of a model that train or `export --format float16` wrote.
      recipe: of the training; its network is that of the model.
      data: its scalers are replaced, and what it is made from tells of the model.
    Returns:
      The weights, in Keras' order.
    Raises:
      InputError: no such model, a damaged one, or one whose network sees, is or gives something
        else than the recipe's.
    """
    model, settings = load_model(path)
    its, ours = shape_of(settings.recipe), shape_of(recipe)
    differences = [
        f"{name} {its[name]}, now {ours[name]}" for name in ours if its[name] != ours[name]
    ]
    if differences:
        raise InputError(
            f"{path} has a network with {'; '.join(differences[:4])}"
            f"{'; ...' * (len(differences) > 4)}: give a recipe with what it has, or train without "
            "--initial_model"
        )
    weights = model.get_weights()
    digest = hashlib.sha256(b"".join(weight.tobytes() for weight in weights)).hexdigest()
    data.made_from["first weights"] = f"those of a model, {digest[:12]}"
    take_scaler(data, settings.scaler)
    return weights


def shape_of(recipe: Recipe) -> dict:
    """Return by name all values of a recipe that a network's inputs, weights or outputs go by."""
    values = flat(recipe)
    names = [name for name in values if name.startswith(("[input]", "[network]"))]
    return {name: values[name] for name in [*names, "[target] output"] if name not in FREE}


def take_scaler(data: TrainingData, scaler: Scaler) -> None:
    """Put a model's scaler in place of those of all that a training reads."""
    shape = (-1, len(scaler.mean))  # a file does not keep that of no statistics
    rows = (scaler.statistics_mean.reshape(shape), scaler.statistics_std.reshape(shape))
    data.scaler = scaler = Scaler(scaler.mean, scaler.std, *rows)
    for source in (data.trained_on, *data.evaluated.values()):
        source.scaler = scaler
