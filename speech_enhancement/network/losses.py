"""The loss functions, written in Keras' operations: they run on every backend.

Each takes the targets of network_input.targets and the network's outputs, and returns one number
for each frame; the mean over frames is what training minimises.
"""

import functools
from collections.abc import Callable

import numpy as np

from config import n_window, sample_rate
from speech_enhancement.features import bark_to_hz, hz_to_bark
from speech_enhancement.network.keras_backend import import_keras
from speech_enhancement.recipe import Recipe, Target

SPEECH_LEVEL = 1e6  # mean power of speech in a bin, over the threshold of hearing: 60 dB
AUDIBLE = 5e3  # power of a frame from which its level is aligned
RESIDUE_FLOOR = 50.0  # power, over the threshold of hearing, below which ratios do not count
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
    of the spectrum count as they do to the ear. The distances are those of loudness and of residual
    noise, frame by frame, and of envelopes, over all frames of a run.
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
    if target.residue_weight > 0:
        value = value + target.residue_weight * residue_distance(*powers)
    if target.envelope_weight > 0:
        value = value + target.envelope_weight * envelope_distance(*powers)
    return value


# --- Loudness ---------------------------------------------------------------------------------


def loudness_distance(speech_power, estimate_power):
    """Return the root mean square difference in specific loudness, frame by frame.

    The textbook's hearing: powers are summed in bands of half a Bark, and loudness grows with the
    power of 0.23 above the threshold (Zwicker and Fastl, Psychoacoustics, chapter 8). The levels of
    speech and estimate are made equal in each frame first: this judges the shape of the spectrum,
    and the compressed magnitudes judge the level.

    Args:
      speech_power, estimate_power: (..., n_freq); 1 is the mean power of the speech.
    Returns:
      (...,).
    """
    ops = import_keras().ops
    bands, weight = map(ops.convert_to_tensor, _bark_bands(n_window, sample_rate))
    powers = _powers_at_one_level(speech_power, estimate_power, bands)
    of_speech, of_estimate = map(_loudness, powers)
    difference = ops.square(of_estimate - of_speech)
    weight = ops.cast(weight, difference.dtype)
    return ops.sqrt(ops.sum(difference * weight, axis=-1) / ops.sum(weight) + 1e-4)


def residue_distance(speech_power, estimate_power):
    """Return how loud that is which the estimate has and the speech has not, frame by frame.

    Noise that is left over disturbs more than speech that is missing (ITU-T P.862, section 10.2,
    asymmetric disturbance; here without its masking and its norms over time). In bands of half a
    Bark of telephone speech, what is louder in the estimate counts by the power of 1.2 of the ratio
    of powers, at most 12 times; where that is less than 3, not at all. Levels are made equal as for
    loudness.

    Args:
      speech_power, estimate_power: (..., n_freq); 1 is the mean power of the speech.
    Returns:
      (...,).
    """
    ops = import_keras().ops
    bands = ops.convert_to_tensor(_telephone_bands(n_window, sample_rate))
    speech, estimate = _powers_at_one_level(speech_power, estimate_power, bands)
    louder = ops.maximum(_loudness(estimate) - _loudness(speech), 0.0)
    ratio = ((estimate + RESIDUE_FLOOR) / (speech + RESIDUE_FLOOR)) ** 1.2
    factor = ops.where(ratio < 3.0, 0.0, ops.minimum(ratio, 12.0))
    return ops.mean(louder * ops.stop_gradient(factor), axis=-1)


def _powers_at_one_level(speech_power, estimate_power, bands):
    """Return the powers in bands of speech and estimate, those of each frame made equally loud."""
    ops = import_keras().ops
    speech, estimate = ops.matmul(speech_power, bands), ops.matmul(estimate_power, bands)
    level = [ops.sum(power, axis=-1, keepdims=True) + AUDIBLE for power in (speech, estimate)]
    return speech, estimate * (level[0] / level[1])


def _loudness(power):
    """Return the specific loudness of powers in bands, without a unit."""
    return (power + 1.0) ** 0.23 - 1.0


@functools.cache
def _bark_bands(n_window: int, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bins of each band of half a Bark, (n_freq, n_bands), and weights, (n_bands,).

    The matrix also brings powers to a scale on which 1 is the threshold of hearing. Bands above 3.6
    kHz, where telephone speech ends, weigh 0.3; those below 100 Hz are left out.
    """
    frequency = np.arange(n_window // 2 + 1) * sample_rate / n_window
    half_barks = 2 * hz_to_bark(frequency)
    band = np.minimum(half_barks.astype(int), int(np.ceil(half_barks[-1])) - 1)
    used = np.unique(band)
    centre = bark_to_hz((used + 0.5) / 2)  # Hz
    used, centre = used[centre > 100], centre[centre > 100]
    matrix = (band[:, None] == used) * SPEECH_LEVEL
    return matrix.astype(np.float32), np.where(centre < 3600, 1, 0.3).astype(np.float32)


@functools.cache
def _telephone_bands(n_window: int, sample_rate: int) -> np.ndarray:
    """Return the bands of _bark_bands whose bins lie within 300 to 3600 Hz, (n_freq, n_bands)."""
    matrix, _ = _bark_bands(n_window, sample_rate)
    frequency = np.arange(n_window // 2 + 1) * sample_rate / n_window
    is_outside = (frequency < 300) | (frequency > 3600)
    return matrix[:, ~matrix[is_outside].any(axis=0)]


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
