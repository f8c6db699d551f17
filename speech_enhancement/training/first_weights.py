"""Beginning a training with the weights of a model instead of random ones."""

import dataclasses
import hashlib

import numpy as np

from speech_enhancement.errors import InputError
from speech_enhancement.network.architectures import build_network
from speech_enhancement.network.network import load_model
from speech_enhancement.network_input import Scaler
from speech_enhancement.recipe import Input, Recipe, flat
from speech_enhancement.training.packed_batches import TrainingData

FREE = ("[network] dropout", "[network] input_dropout")  # no weight depends on them


def weights_of_model(path: str, recipe: Recipe, data: TrainingData) -> list[np.ndarray]:
    """Read the weights to begin with, and let the training see its data as the model does.

    The scaler of the model takes the place of the data's own, because the weights were made for it.
    A network with memory may see more than that of the model, if this sees the past alone: frames
    ahead, or percentiles of a window, whose level is subtracted then. What is new has the weights
    0.

    Args:
      path: of a model that train or `export --format float16` wrote.
      recipe: of the training; its network is that of the model, or sees more.
      data: its scalers are replaced, and what it is made from tells of the model.
    Returns:
      The weights, in Keras' order.
    Raises:
      InputError: no such model, a damaged one, or one whose network sees, is or gives something
        else than the recipe's.
    """
    model, settings = load_model(path)
    its = shape_of(settings.recipe)
    ours = shape_of(without_more(recipe, settings.recipe.input))
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
    wide = widened(weights, recipe, len(settings.scaler.mean))
    changed = [new.shape for new in wide] != [old.shape for old in weights]
    if changed and recipe.input == settings.recipe.input:
        raise InputError(
            f"{path} has weights of other shapes than its recipe asks for: an earlier version made "
            "it; train without --initial_model"
        )
    return wide


def without_more(recipe: Recipe, its: Input) -> Recipe:
    """Return a recipe with memory without what it sees more than a model that sees the past alone.

    Args:
      recipe: of the training.
      its: the section [input] of the model.
    """
    if recipe.network.kind != "memory" or its.look_ahead or its.n_statistics:
        return recipe
    ours = dataclasses.replace(recipe.input, look_ahead=0)
    if ours.n_statistics:
        names = ("level_window_s", "level_memory_s", "noise_estimate", "percentiles")
        ours = dataclasses.replace(ours, **{name: getattr(its, name) for name in names})
    return dataclasses.replace(recipe, input=ours)


def widened(weights: list[np.ndarray], recipe: Recipe, n_freq: int) -> list[np.ndarray]:
    """Return weights for the network of a recipe: those given, and 0 for what it sees more.

    Frames ahead are the last in the kernel of a convolution; the weights of statistics follow those
    of the frames.
    """
    shapes = [weight.shape for weight in build_network(recipe, n_freq, 0).get_weights()]
    if len(shapes) == len(weights) + 1:
        weights = [*weights[:2], np.zeros(shapes[2], np.float32), *weights[2:]]
    wide = [np.zeros(shape, np.float32) for shape in shapes]
    for new, old in zip(wide, weights, strict=True):
        new[: len(old)] = old
    return wide


def shape_of(recipe: Recipe) -> dict:
    """Return by name all values of a recipe that a network's inputs, weights or outputs go by."""
    values = flat(recipe)
    names = [name for name in values if name.startswith(("[input]", "[network]"))]
    return {name: values[name] for name in [*names, "[target] output"] if name not in FREE}


def take_scaler(data: TrainingData, scaler: Scaler) -> None:
    """Put a model's scaler in place of those of all that a training reads.

    Of statistics that the model does not see the data's own stays.
    """
    its = scaler if scaler.statistics_mean.size else data.scaler  # a model may have no statistics
    shape = (-1, len(scaler.mean))  # a file does not keep that of no statistics
    rows = (its.statistics_mean.reshape(shape), its.statistics_std.reshape(shape))
    data.scaler = scaler = Scaler(scaler.mean, scaler.std, *rows)
    for source in (data.trained_on, *data.evaluated.values()):
        source.scaler = scaler
