"""The loss that a recipe chooses: with its weights, its compression and its scaler."""

import itertools

import numpy as np
import pytest
from test_recipes import small

from speech_enhancement.network.hearing import (
    disturbance_distance,
    envelope_distance,
    loudness_distance,
)
from speech_enhancement.network.keras_backend import import_keras
from speech_enhancement.network.losses import make_loss

MEAN, STD = np.full(257, -1, np.float32), np.full(257, 2, np.float32)


def magnitudes_and_outputs():
    """Return magnitudes of speech and mixture, and what networks might output: mask, estimate."""
    rng = np.random.default_rng(0)
    speech, mixture = np.exp(rng.normal(-1, 1, (2, 2, 3, 257))).astype(np.float32)
    mask = rng.uniform(0, 1, (2, 3, 257)).astype(np.float32)
    return speech, mixture, mask, rng.standard_normal((2, 3, 257)).astype(np.float32)


def numbers(tensor):
    """Return a tensor of any backend as an array."""
    return import_keras().ops.convert_to_numpy(tensor)


def loss(recipe, y, output):
    """Return the loss of each frame, (2, 3), with the scaler above."""
    return numbers(make_loss(recipe, MEAN, STD)(y, output))


@pytest.mark.parametrize("loudness_weight", [0.0, 0.25])
def test_the_loss_of_a_mask_has_the_compression_and_the_weight_of_its_recipe(loudness_weight):
    speech, mixture, mask, _ = magnitudes_and_outputs()
    recipe = small("default", target={"compression": 0.5, "loudness_weight": loudness_weight})
    found = loss(recipe, np.log(np.stack([speech, mixture], axis=-2)), mask)
    expected = np.mean(((mask * mixture + 1e-6) ** 0.5 - (speech + 1e-6) ** 0.5) ** 2, axis=-1)
    expected += loudness_weight * numbers(loudness_distance(speech**2, (mask * mixture) ** 2))
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # single precision


@pytest.mark.parametrize("mask_weight", [0.5, 2.0])
def test_the_loss_of_two_outputs_has_the_weight_of_its_recipe_and_the_scaler(mask_weight):
    speech, mixture, mask, estimate = magnitudes_and_outputs()
    recipe = small("xu2015_multi", target={"mask_weight": mask_weight})
    output = np.concatenate([estimate, mask], axis=-1)
    found = loss(recipe, np.log(np.stack([speech, mixture], axis=-2)), output)
    expected = np.mean((estimate - (np.log(speech) + 1) / 2) ** 2, axis=-1)
    expected += mask_weight * np.mean((mask - np.minimum(1, speech / mixture)) ** 2, axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # single precision


def test_the_loss_of_log_magnitudes_compares_them_scaled():
    speech, _, _, estimate = magnitudes_and_outputs()
    found = loss(small("original"), np.log(speech), estimate)
    expected = np.mean(np.abs(estimate - (np.log(speech) + 1) / 2), axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # single precision


def run_of_powers(n_frames=60):
    """Return powers of a run whose level changes and rests at first, and of an estimate of it."""
    rng = np.random.default_rng(1)
    level = np.repeat(rng.uniform(0.01, 3, n_frames // 4), 4)[:, None]
    level[: n_frames // 2] = 1e-7  # a pause
    speech = level * rng.chisquare(2, (n_frames, 257))
    noise = 0.3 * rng.chisquare(2, (n_frames, 257))
    return speech, speech * rng.uniform(0.1, 1, (n_frames, 257)) + noise


@pytest.mark.parametrize("factor", [1, 1e-4])
def test_the_distance_of_envelopes_is_the_mean_correlation_of_third_octaves_over_384_ms(factor):
    powers, frequency = factor * np.array(run_of_powers()), np.arange(257) * 31.25
    centres = 150 * 2 ** (np.arange(15) / 3)
    speech, estimate = (
        [power[:, abs(np.log2(frequency / f + 1e-9)) < 1 / 6].sum(axis=1) for f in centres]
        for power in powers
    )
    speech, estimate = np.sqrt(np.array(speech) + 1e-4), np.sqrt(np.array(estimate) + 1e-4)
    stretches = [slice(start, start + 24) for start in range(0, 60 - 24 + 1, 4)]
    powers_of_speech = [(speech[:, stretch].mean(axis=1) ** 2).sum() for stretch in stretches]
    heard = np.array(powers_of_speech) > 1e-3 * max(powers_of_speech)
    assert heard.all() == (factor < 1)  # where it is loud, stretches of the pause do not count
    correlations = []
    for stretch in itertools.compress(stretches, heard):
        for one, other in zip(speech[:, stretch], estimate[:, stretch], strict=True):
            covariance = np.mean((one - one.mean()) * (other - other.mean()))
            variances = (one.var() + 1e-3) * (other.var() + 1e-3)
            correlations.append(covariance / np.sqrt(variances))
    expected = 1 - np.mean(correlations)
    assert 0.05 < expected < 0.99  # the two differ, and are alike

    found = envelope_distance(*(power[None].astype("float32") for power in powers))
    # Variances are differences of means in single precision, of numbers up to 100.
    np.testing.assert_allclose(numbers(found), [[expected]], atol=1e-3)


def test_envelopes_without_change_are_no_division_by_zero():
    still = np.ones((1, 30, 257), "float32")
    # The squares of envelopes, up to 25 in single precision, beside the least variance of 1e-3.
    np.testing.assert_allclose(numbers(envelope_distance(still, still)), [[1]], atol=5e-3)
    assert np.isfinite(numbers(envelope_distance(0 * still, still))).all()


def test_envelopes_are_weighted_by_the_recipe_and_each_run_has_its_own():
    rng = np.random.default_rng(2)
    speech, mixture = np.exp(rng.normal(-1, 1, (2, 3, 30, 257))).astype("float32")
    mask = rng.uniform(0, 1, (3, 30, 257)).astype("float32")
    y = np.log(np.stack([speech, mixture], axis=-2))
    without = loss(small("live", target={"envelope_weight": 0.0, "loudness_weight": 0.0}), y, mask)
    found = loss(small("live", target={"envelope_weight": 0.5, "loudness_weight": 0.0}), y, mask)
    of_runs = [
        numbers(envelope_distance(one[None] ** 2, (m * other)[None] ** 2))[0, 0]
        for one, other, m in zip(speech, mixture, mask, strict=True)
    ]
    assert np.ptp(of_runs) > 1e-3
    # Variances are small differences of single-precision means.
    expected = without + 0.5 * np.array(of_runs)[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_disturbance_is_weighted_by_the_recipe():
    speech, mixture, mask, _ = magnitudes_and_outputs()
    y = np.log(np.stack([speech, mixture], axis=-2))
    others = {"envelope_weight": 0.0, "loudness_weight": 0.0}
    without, found = (
        loss(small("live", target=others | {"disturbance_weight": weight}), y, mask)
        for weight in (0.0, 0.5)
    )
    expected = without + 0.5 * numbers(disturbance_distance(speech**2, (mask * mixture) ** 2))
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # single precision
