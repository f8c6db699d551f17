"""Distances between spectra as they are heard, against another way to write them."""

import numpy as np
import pytest

from speech_enhancement.network.hearing import disturbance_distance, loudness_distance
from speech_enhancement.network.keras_backend import import_keras

BANDS = np.floor(14 * np.arcsinh(np.arange(257) * 31.25 / 650)).astype(int)  # half a Bark each
CENTRES = 650 * np.sinh((np.arange(50) + 0.5) / 14)  # Hz


def numbers(tensor):
    """Return a tensor of any backend as an array."""
    return import_keras().ops.convert_to_numpy(tensor)


def test_loudness_is_that_of_half_bark_bands_weighted_by_their_frequency():
    # Powers within 20 dB of each other, so that every band is audible.
    speech, estimate = 10 ** np.random.default_rng(0).uniform(-1, 1, (2, 257))
    frequency = np.arange(257) * 31.25  # Hz
    bands = np.floor(14 * np.arcsinh(frequency / 650)).astype(int)
    bands[-1] = min(bands[-1], int(np.ceil(14 * np.arcsinh(8000 / 650))) - 1)
    total, weights = 0.0, 0.0
    centres = {band: 650 * np.sinh((band + 0.5) / 14) for band in sorted(set(bands))}
    heard = [band for band, centre in centres.items() if centre > 100]
    powers = {
        band: [1e6 * audio[bands == band].sum() for audio in (speech, estimate)] for band in heard
    }
    level = [sum(power[signal] for power in powers.values()) + 5e3 for signal in (0, 1)]
    for band, (of_speech, of_estimate) in powers.items():
        weight = 1 if centres[band] < 3600 else 0.3  # where telephone speech ends
        aligned = of_estimate * level[0] / level[1]
        total += weight * ((aligned + 1) ** 0.23 - (of_speech + 1) ** 0.23) ** 2
        weights += weight
    found = loudness_distance(speech[None].astype("float32"), estimate[None].astype("float32"))
    # Loudness of about 25 in single precision.
    assert numbers(found)[0] == pytest.approx(np.sqrt(total / weights + 1e-4), rel=1e-4)


def telephone_powers(power):
    """Return the powers of frames, (n, 257), in the bands of a telephone's receiver, (n, 34)."""
    hertz = [50, 100, 125, 160, 200, 250, 300, 350, 400, 500, 600, 3250, 3500, 4000, 5000]
    decibels = [-52, -32, -24, -18, -12, -8, -6, -4, -2, -1, 0, 0, -8, -40, -200]
    gain = 10 ** (np.interp(np.arange(257) * 31.25, hertz, decibels) / 10)
    bands = [
        band
        for band in np.unique(BANDS)
        if CENTRES[band] > 100 and gain[band == BANDS].sum() > 1e-3
    ]
    return np.stack([1e6 * power[:, band == BANDS] @ gain[band == BANDS] for band in bands], axis=1)


def disturbance(speech, estimate, held=None):
    """Return the disturbance of a run, (n_frames, 257) each, and what has no slope, or is held."""
    speech, estimate = telephone_powers(speech), telephone_powers(estimate)
    is_speech = speech.sum(axis=1) > 1e-3 * speech.sum(axis=1).mean()
    means = speech[is_speech].mean(axis=0) + 1000, estimate[is_speech].mean(axis=0) + 1000
    held = held or [np.clip(means[1] / means[0], 0.01, 100)]
    speech = speech * held[0]
    level = (speech.sum(axis=1) + 5e3) / (estimate.sum(axis=1) + 5e3)
    level = np.convolve([level[0], level[0], *level], [0.8, 0.16, 0.04], "valid")
    estimate = estimate * np.clip(level, 3e-4, 5)[:, None]
    loudness = [3.4 * np.maximum(0, (0.5 + x / 2) ** 0.23 - 1) for x in (speech, estimate)]
    difference = loudness[1] - loudness[0]
    masked = np.minimum(*loudness) / 4
    difference = np.where(
        difference > masked,
        difference - masked,
        np.where(difference < -masked, difference + masked, 0),
    )
    ratio = ((estimate + 50) / (speech + 50)) ** 1.2
    factors = held[1] if len(held) > 1 else np.where(ratio < 3, 0, np.minimum(ratio, 12))
    every = np.sqrt(np.mean(difference**2, axis=1) + 1e-3)
    added = np.mean(np.maximum(difference, 0) * factors, axis=1)
    return (every + 0.3 * added) / ((speech.sum(axis=1) + 1e5) / 1e7) ** 0.04, [held[0], factors]


def frames(n_frames=40):
    """Return powers of speech that rests at times and of an estimate with another response."""
    rng = np.random.default_rng(1)
    speech = 10 ** rng.uniform(-6, 0, (n_frames, 50))
    speech[10:14] *= 1e-5  # a pause, in which more than the limit is left
    speech[15] *= 5e-3  # soft
    ratio = np.where(speech > 0.1, 1, 10 ** rng.uniform(-1, 1.5, (n_frames, 50)))
    estimate = speech * ratio * 10 ** rng.uniform(-0.5, 0.5, 50)
    estimate[10:14] += 1
    estimate[20:22] *= 1e-3  # lost
    estimate[:, 20] *= 1e-3  # beyond the limits of a response
    estimate[:, 30] *= 1e3
    return speech[:, BANDS].astype("float32"), estimate[:, BANDS].astype("float32")


def test_disturbance_is_that_of_p862_in_the_telephone_band():
    speech, estimate = frames()
    expected, (_, factors) = disturbance(speech, estimate)
    assert np.unique(np.digitize(factors, [2.9, 3.3, 11, 12])).size == 5  # also near to the limits
    found = numbers(disturbance_distance(speech[None], estimate[None]))
    np.testing.assert_allclose(found[0], expected, rtol=1e-3)  # single precision


def test_the_slope_of_disturbance_is_that_with_factors_and_response_held():
    if import_keras().backend.backend() != "tensorflow":
        pytest.skip("each backend has gradients of its own; one is enough")
    import tensorflow

    speech, estimate = (power.astype(float) for power in frames())
    toward = estimate * np.random.default_rng(2).uniform(-1, 1, estimate.shape)
    _, held = disturbance(speech, estimate)
    ends = [disturbance(speech, estimate + step * toward, held)[0].sum() for step in (-1e-3, 1e-3)]
    with tensorflow.GradientTape() as tape:
        variable = tensorflow.Variable(estimate[None], dtype="float32")
        found = disturbance_distance(speech[None].astype("float32"), variable)
    slope = np.sum(tape.gradient(found, variable).numpy()[0] * toward)
    # Single precision, and the difference for the derivative.
    assert slope == pytest.approx((ends[1] - ends[0]) / 2e-3, rel=1e-2)


def test_a_response_that_stays_is_no_disturbance():
    speech = np.random.default_rng(3).chisquare(2, (1, 60, 257)).astype("float32")
    tilted = speech * 10 ** np.linspace(-1, 1, 257, dtype="float32")
    assert numbers(loudness_distance(speech, tilted)).mean() > 0.5
    # The root of 1e-3, which keeps the slope finite.
    assert numbers(disturbance_distance(speech, tilted)).mean() < 0.05


def test_each_run_has_a_disturbance_of_its_own():
    speech, estimate = frames()
    runs = [np.stack([power[:20], power[20:]]) for power in (speech, estimate)]
    found = numbers(disturbance_distance(*runs))
    for run, one, other in zip(found, *runs, strict=True):
        np.testing.assert_allclose(run, disturbance(one, other)[0], rtol=1e-3)  # single precision


def test_each_frame_of_each_segment_has_a_loudness_of_its_own():
    speech, estimate = np.random.default_rng(0).uniform(0.1, 1, (2, 3, 4, 257)).astype("float32")
    found = numbers(loudness_distance(speech, estimate))
    frames = numbers(loudness_distance(speech.reshape(-1, 257), estimate.reshape(-1, 257)))
    # Sums in another order, in single precision.
    np.testing.assert_allclose(found, frames.reshape(3, 4), rtol=1e-3)
