"""The loss that a recipe chooses: with its weights, its compression and its scaler."""

import numpy as np
import pytest
from test_recipes import small

from speech_enhancement.network.keras_backend import import_keras
from speech_enhancement.network.losses import loudness_distance, make_loss

MEAN, STD = np.full(257, -1, np.float32), np.full(257, 2, np.float32)


def magnitudes_and_outputs():
    """Return magnitudes of speech and mixture, and what networks might output: mask, estimate."""
    rng = np.random.default_rng(0)
    speech, mixture = np.exp(rng.normal(-1, 1, (2, 2, 3, 257))).astype(np.float32)
    mask = rng.uniform(0, 1, (2, 3, 257)).astype(np.float32)
    return speech, mixture, mask, rng.standard_normal((2, 3, 257)).astype(np.float32)


def loss(recipe, y, output):
    """Return the loss of each frame, (2, 3), with the scaler above."""
    return import_keras().ops.convert_to_numpy(make_loss(recipe, MEAN, STD)(y, output))


@pytest.mark.parametrize("loudness_weight", [0.0, 0.25])
def test_the_loss_of_a_mask_has_the_compression_and_the_weight_of_its_recipe(loudness_weight):
    speech, mixture, mask, _ = magnitudes_and_outputs()
    recipe = small("default", target={"compression": 0.5, "loudness_weight": loudness_weight})
    found = loss(recipe, np.log(np.stack([speech, mixture], axis=-2)), mask)
    expected = np.mean(((mask * mixture + 1e-6) ** 0.5 - (speech + 1e-6) ** 0.5) ** 2, axis=-1)
    loudness = loudness_distance(speech**2, (mask * mixture) ** 2)
    expected += loudness_weight * import_keras().ops.convert_to_numpy(loudness)
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
