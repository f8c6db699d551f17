"""The loss functions, written in Keras' operations: they run on every backend.

Each takes the targets of network_input.targets and the network's outputs, and returns one number
for each frame; the mean over frames is what training minimises.
"""

import functools
from collections.abc import Callable

import numpy as np

from config import n_window, sample_rate
from speech_enhancement.network.hearing import disturbance_distance, loudness_distance
from speech_enhancement.network.keras_backend import import_keras
from speech_enhancement.recipe import Recipe, Target

MAGNITUDE_FLOOR = 1e-6  # added before a magnitude is compressed, so that its slope stays finite
ENVELOPE_FRAMES = 24  # in which envelopes are correlated: 384 ms
ENVELOPE_STEP = 4  # frames from one such stretch to the next
ENVELOPE_FLOOR = 1e-4  # power of a band, in that of speech in a bin
LEAST_VARIANCE = 1e-3  # of an envelope, so that one without change is not divided by 0
LEAST_SPEECH = 1e-3  # power of a stretch, in that of the loudest of its run, for it to count


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


# --- Envelopes --------------------------------------------------------------------------------


def envelope_distance(speech_power, estimate_power):
    """Return how far the envelopes of an estimate are from going up and down with the speech's.

    Intelligibility goes with the correlation of envelopes in third-octave bands over 384 ms (Taal
    et al., 2011, equations 1 and 5; without its clipping). The distance is 1 less the mean
    correlation over all bands and all stretches that hold speech. It belongs to the whole run, and
    each of its frames has it.

    Args:
      speech_power, estimate_power: (n_runs, n_frames, n_freq), neighbouring frames, at least
        ENVELOPE_FRAMES of them; 1 is the mean power of the speech.
    Returns:
      (n_runs, 1).
    """
    ops = import_keras().ops
    bands = ops.convert_to_tensor(_third_octaves(n_window, sample_rate))

    def mean(values):
        return ops.average_pool(values, ENVELOPE_FRAMES, ENVELOPE_STEP, padding="valid")

    speech, estimate = (
        ops.sqrt(ops.matmul(power, bands) + ENVELOPE_FLOOR)
        for power in (speech_power, estimate_power)
    )
    of_speech, of_estimate = mean(speech), mean(estimate)
    covariance = mean(speech * estimate) - of_speech * of_estimate
    variances = [
        ops.maximum(mean(ops.square(envelope)) - ops.square(average), 0.0) + LEAST_VARIANCE
        for envelope, average in ((speech, of_speech), (estimate, of_estimate))
    ]
    correlation = ops.mean(covariance / ops.sqrt(variances[0] * variances[1]), axis=-1)

    power = ops.sum(ops.square(of_speech), axis=-1)  # of each stretch
    counts = power > LEAST_SPEECH * ops.max(power, axis=1, keepdims=True)
    counts = ops.cast(counts, correlation.dtype)
    total = ops.sum(counts * correlation, axis=1, keepdims=True)
    return 1.0 - total / ops.sum(counts, axis=1, keepdims=True)


@functools.cache
def _third_octaves(n_window: int, sample_rate: int) -> np.ndarray:
    """Return the bins of 15 bands of a third of an octave from 150 Hz on, (n_freq, n_bands)."""
    frequency = np.arange(n_window // 2 + 1)[:, None] * sample_rate / n_window
    centre = 150 * 2 ** (np.arange(15) / 3)  # Hz
    is_inside = (frequency >= centre * 2 ** (-1 / 6)) & (frequency < centre * 2 ** (1 / 6))
    return is_inside.astype(np.float32)
