"""Distances between spectra as they are heard, written in Keras' operations.

Each takes powers of speech and of an estimate of it in which 1 is the mean power of the speech, and
returns one number for each frame or, of envelopes, for each run.
"""

import functools

import numpy as np

from config import n_window, sample_rate
from speech_enhancement.features import bark_to_hz, hz_to_bark
from speech_enhancement.network.keras_backend import import_keras

SPEECH_LEVEL = 1e6  # mean power of speech in a bin, over the threshold of hearing: 60 dB
AUDIBLE = 5e3  # power of a frame from which its level is aligned
TELEPHONE_HZ = 50, 100, 125, 160, 200, 250, 300, 350, 400, 500, 600, 3250, 3500, 4000, 5000
TELEPHONE_DB = -52, -32, -24, -18, -12, -8, -6, -4, -2, -1, 0, 0, -8, -40, -200
SMOOTHING = 0.8, 0.16, 0.04  # of the level that P.862 aligns: of a frame and the two before
WEIGHT_OF_ADDED = 0.3  # beside that of all differences: P.862 takes 0.1 and 0.0309 off its score
ENVELOPE_FRAMES = 24  # in which envelopes are correlated: 384 ms
ENVELOPE_STEP = 4  # frames from one such stretch to the next
ENVELOPE_FLOOR = 1e-4  # power of a band, in that of speech in a bin
LEAST_VARIANCE = 1e-3  # of an envelope, so that one without change is not divided by 0
LEAST_SPEECH = 1e-3  # power of a stretch, in that of the loudest of its run, for it to count


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
    speech, estimate = ops.matmul(speech_power, bands), ops.matmul(estimate_power, bands)
    estimate = estimate * _ratio_of_levels(speech, estimate)
    loudness = [(power + 1.0) ** 0.23 - 1.0 for power in (speech, estimate)]
    difference = ops.square(loudness[1] - loudness[0])
    weight = ops.cast(weight, difference.dtype)
    return ops.sqrt(ops.sum(difference * weight, axis=-1) / ops.sum(weight) + 1e-4)


def disturbance_distance(speech_power, estimate_power):
    """Return how much an estimate disturbs beside the speech, frame by frame.

    After ITU-T P.862, section 10.2, the model behind PESQ: differences of loudness in the telephone
    band that the speech does not mask, and once more those that were added, by how many times they
    exceed the speech: noise that is left disturbs more than speech that is missing. Before, the
    response of the system under test is taken out and its level is made equal, with some inertia.
    What differs: the bands are half a Bark wide, their threshold of hearing is one, and its norms
    over time are a mean, because those, which go by the worst frames, teach less.

    Args:
      speech_power, estimate_power: (n_runs, n_frames, n_freq), neighbouring frames; 1 is the mean
        power of the speech.
    Returns:
      (n_runs, n_frames).
    """
    ops = import_keras().ops
    bands = ops.convert_to_tensor(_telephone_bands(n_window, sample_rate))
    speech, estimate = ops.matmul(speech_power, bands), ops.matmul(estimate_power, bands)
    speech = speech * ops.stop_gradient(_response(speech, estimate))
    estimate = estimate * _smoothed(_ratio_of_levels(speech, estimate))

    # Zwicker's law from the threshold on. 3.4 makes the distance about as large as P.862's, which
    # adds up bands by their widths.
    of_speech, of_estimate = (
        3.4 * ops.maximum((0.5 + 0.5 * power) ** 0.23 - 1.0, 0.0) for power in (speech, estimate)
    )
    difference = of_estimate - of_speech
    masked = 0.25 * ops.minimum(of_speech, of_estimate)
    difference = ops.sign(difference) * ops.maximum(ops.abs(difference) - masked, 0.0)
    every = ops.sqrt(ops.mean(ops.square(difference), axis=-1) + 1e-3)

    ratio = ((estimate + 50.0) / (speech + 50.0)) ** 1.2
    # Where the estimate is the softer one, its factor is 0.
    factor = ops.stop_gradient(ops.where(ratio < 3.0, 0.0, ops.minimum(ratio, 12.0)))
    added = ops.mean(difference * factor, axis=-1)
    weight = ((ops.sum(speech, axis=-1) + 1e5) / 1e7) ** -0.04  # soft frames count more
    return weight * (every + WEIGHT_OF_ADDED * added)


def _ratio_of_levels(speech, estimate):
    """Return the power of each frame of the speech by that of the estimate, (..., 1)."""
    ops = import_keras().ops
    level = [ops.sum(power, axis=-1, keepdims=True) + AUDIBLE for power in (speech, estimate)]
    return level[0] / level[1]


def _response(speech, estimate):
    """Return how much stronger an estimate is in each band during speech, (n_runs, 1, n_bands)."""
    ops = import_keras().ops
    total = ops.sum(speech, axis=-1, keepdims=True)
    is_speech = ops.cast(total > 1e-3 * ops.mean(total, axis=1, keepdims=True), speech.dtype)
    n_frames = ops.sum(is_speech, axis=1, keepdims=True) + 1e-6
    of_speech, of_estimate = (
        ops.sum(is_speech * power, axis=1, keepdims=True) / n_frames + 1000
        for power in (speech, estimate)
    )
    return ops.clip(of_estimate / of_speech, 0.01, 100.0)


def _smoothed(level):
    """Return levels, (n_runs, n_frames, 1), that follow within two frames, between limits."""
    ops = import_keras().ops
    padded = ops.concatenate([level[:, :1], level[:, :1], level], axis=1)
    now, before, earlier = SMOOTHING
    level = now * padded[:, 2:] + before * padded[:, 1:-1] + earlier * padded[:, :-2]
    return ops.clip(level, 3e-4, 5.0)


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


# --- Bands ----------------------------------------------------------------------------------------


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
    """Return the bands of _bark_bands as a telephone's receiver has them, (n_freq, n_bands).

    The response is that of P.862's receiver, less its 12 dB and with a softer end at 4 kHz. Bands
    of which less than a thousandth is heard are left out.
    """
    frequency = np.arange(n_window // 2 + 1) * sample_rate / n_window
    response = 10 ** (np.interp(frequency, TELEPHONE_HZ, TELEPHONE_DB) / 10)
    matrix = _bark_bands(n_window, sample_rate)[0] * response[:, None]
    return matrix[:, matrix.sum(axis=0) > 1e-3 * SPEECH_LEVEL].astype(np.float32)


@functools.cache
def _third_octaves(n_window: int, sample_rate: int) -> np.ndarray:
    """Return the bins of 15 bands of a third of an octave from 150 Hz on, (n_freq, n_bands)."""
    frequency = np.arange(n_window // 2 + 1)[:, None] * sample_rate / n_window
    centre = 150 * 2 ** (np.arange(15) / 3)  # Hz
    is_inside = (frequency >= centre * 2 ** (-1 / 6)) & (frequency < centre * 2 ** (1 / 6))
    return is_inside.astype(np.float32)
