"""The loss functions, written in Keras' operations: they run on every backend.

Each takes the targets of network_input.targets and the network's outputs, and returns one number
for each frame; the mean over frames is what training minimises.
"""

from collections.abc import Callable

import numpy as np

from speech_enhancement.network.hearing import (
    disturbance_distance,
    envelope_distance,
    loudness_distance,
)
from speech_enhancement.network.keras_backend import import_keras
from speech_enhancement.recipe import Recipe, Target

MAGNITUDE_FLOOR = 1e-6  # added before a magnitude is compressed, so that its slope stays finite


def make_loss(recipe: Recipe, mean: np.ndarray, std: np.ndarray) -> Callable:
    """Return the loss function of a recipe.

    Args:
      recipe: its section [target] chooses the loss.
      mean, std: (n_freq,) of the scaler; log magnitudes are compared after scaling.
    Returns:
      A function of targets and outputs, each (n_segs, n_frames, ...), with values (n_segs,
      n_frames).
    """
    target, constant = recipe.target, import_keras().ops.convert_to_tensor
    if target.output == "log_magnitude":
        return lambda y, output: log_magnitude_loss(
            (y - constant(mean)) / constant(std), output, target.loss
        )
    if target.output == "mask":
        return lambda y, output: compressed_loss(y, output, target)
    return lambda y, output: multi_objective_loss(
        y, output, constant(mean), constant(std), target.loss, target.mask_weight
    )


def log_magnitude_loss(target, output, kind: str):
    """Return the mean absolute or squared error over the bins of scaled log magnitudes."""
    ops = import_keras().ops
    error = output - target
    return ops.mean(ops.abs(error) if kind == "mean_absolute_error" else ops.square(error), axis=-1)


def multi_objective_loss(y, output, mean, std, kind: str, mask_weight: float):
    """Return the error of the log magnitude plus the weighted squared error of the mask, [3].

    The mask is min(1, |S| / |Y|), an ideal ratio mask of magnitudes; the network's second half is
    its estimate.
    """
    ops = import_keras().ops
    speech, mixture = y[..., 0, :], y[..., 1, :]
    n_freq = speech.shape[-1]
    mask = ops.exp(ops.minimum(speech - mixture, 0.0))
    of_magnitude = log_magnitude_loss((speech - mean) / std, output[..., :n_freq], kind)
    return of_magnitude + mask_weight * ops.mean(ops.square(output[..., n_freq:] - mask), axis=-1)


def compressed_loss(y, mask, target: Target):
    """Return the mean squared error of compressed magnitudes plus three weighted distances.

    (mask |Y|)^c is compared with |S|^c: the mask is judged by what comes out of it, and soft parts
    of the spectrum count as they do to the ear. The distances are those of loudness, frame by
    frame, of P.862 and of envelopes, both over neighbouring frames.
    """
    ops = import_keras().ops
    speech, mixture = ops.exp(y[..., 0, :]), ops.exp(y[..., 1, :])
    estimate = mask * mixture
    error = (estimate + MAGNITUDE_FLOOR) ** target.compression
    error -= (speech + MAGNITUDE_FLOOR) ** target.compression
    value = ops.mean(ops.square(error), axis=-1)
    powers = ops.square(speech), ops.square(estimate)
    if target.loudness_weight > 0:
        value = value + target.loudness_weight * loudness_distance(*powers)
    if target.disturbance_weight > 0:
        value = value + target.disturbance_weight * disturbance_distance(*powers)
    if target.envelope_weight > 0:
        value = value + target.envelope_weight * envelope_distance(*powers)
    return value
