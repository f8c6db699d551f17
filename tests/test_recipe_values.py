"""Values of a recipe: those that no training can have, and what they become in files."""

import json

import numpy as np
import pytest
from test_recipes import small

from speech_enhancement.errors import InputError
from speech_enhancement.network.architectures import build_network
from speech_enhancement.recipe import changes_on_the_fly, plain, recipe_from_dict


def test_the_first_layer_begins_within_glorots_limits_of_all_its_inputs():
    recipe = small("default", network={"hidden_units": 64})
    n_in = (recipe.input.n_concat + recipe.input.n_statistics) * 257
    limit = np.sqrt(6 / (n_in + 64))
    kernels = [w for w in build_network(recipe, 257, 0).get_weights() if w.ndim == 2]
    assert [len(kernel) for kernel in kernels[:2]] == [11 * 257, 4 * 257]
    for kernel in kernels[:2]:
        assert np.abs(kernel).max() <= limit
        assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.02)  # of 65 000 draws


def test_an_activation_that_keras_does_not_have_is_named():
    recipe = small("original", network={"activation": "rellu"})
    with pytest.raises(InputError, match='activation is "rellu"; expected one that Keras has'):
        build_network(recipe, 257, 0)


@pytest.mark.parametrize(
    ("section", "name", "value", "expected"),
    [
        ("training", "learning_rate", -1.0, "at least 1e-12, found -1.0"),
        ("training", "weight_average", 1.5, "at least 0 and at most 0.999999, found 1.5"),
        ("training", "batch_size", 0, "at least 1, found 0"),
        ("network", "hidden_layers", -1, "at least 1, found -1"),
        ("network", "dropout", 1.0, "at least 0 and at most 0.999999, found 1.0"),
        ("target", "mask_weight", -1.0, "at least 0, found -1.0"),
        ("training_noise", "bursts", 1.01, "at least 0 and at most 1, found 1.01"),
        ("training", "learning_rate", float("nan"), "at least 1e-12, found nan"),
        ("training", "clip_norm", float("inf"), "finite, found inf"),
        ("training", "snr_db", [0.0, float("nan")], "at least -200, found nan"),
        ("training", "snr_db", [float("-inf")], "at least -200, found -inf"),
        ("training", "snr_range_db", [0, float("inf")], "at least -200 and at most 200, found inf"),
        ("input", "percentiles", [float("nan")], "finite, found nan"),
    ],
)
def test_values_that_no_training_can_have_are_named(section, name, value, expected):
    with pytest.raises(InputError, match=f"expected {name} to be {expected}; fix it"):
        recipe_from_dict({section: {name: value}}, "mine.toml")


def test_what_data_h5_cannot_hold_is_listed():
    assert changes_on_the_fly(small("original")) == []
    training = {"narrow_band": 0.1, "voices": 0.5}
    recipe = small("xu2015", training=training, training_noise={"two_noises": 0.2})
    assert changes_on_the_fly(recipe) == ["two_noises", "narrow_band", "voices"]


def test_recipes_inside_models_are_json_that_every_program_reads(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    recipe = small("xu2015")
    assert recipe.training.snr_db[-1] == np.inf
    text = json.dumps(plain(recipe), allow_nan=False)
    assert recipe_from_dict(json.loads(text, parse_constant=refuse), "test") == recipe
