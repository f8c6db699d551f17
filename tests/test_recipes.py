"""Recipes: the files, the losses and the post-processing that they name."""

import dataclasses
import json
import tomllib

import numpy as np
import pytest
from conftest import ROOT

from speech_enhancement.errors import InputError
from speech_enhancement.features import log_magnitude, stft
from speech_enhancement.network.architectures import build_network
from speech_enhancement.network.hearing import loudness_distance
from speech_enhancement.network.keras_backend import import_keras
from speech_enhancement.network.losses import (
    compressed_loss,
    log_magnitude_loss,
    multi_objective_loss,
)
from speech_enhancement.network.network import Settings, load_model, save_model
from speech_enhancement.network.running import estimate_magnitude
from speech_enhancement.network_input import (
    Scaler,
    estimate_windows,
    frames_and_statistics,
    percentiles,
    targets,
)
from speech_enhancement.recipe import (
    Recipe,
    Target,
    load_recipe,
    recipe_from_dict,
    with_n_concat,
)

SHIPPED = sorted(path.stem for path in (ROOT / "recipes").glob("*.toml"))


def small(name: str, **sections):
    """Return a shipped recipe with small layers and some values replaced."""
    content = dataclasses.asdict(load_recipe(name))
    content["network"] |= {"hidden_units": 16, "hidden_layers": 2}
    for section, values in sections.items():
        content[section] |= values
    return recipe_from_dict(content, "test")


def spectrum(n_frames, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n_frames, 257)) + 1j * rng.standard_normal((n_frames, 257))


def test_five_recipes_ship_and_stay_within_16_million_parameters():
    assert SHIPPED == ["default", "live", "original", "xu2015", "xu2015_multi"]
    for name in SHIPPED:
        recipe = load_recipe(name)
        assert build_network(recipe, 257, 0).count_params() <= 16_000_000
        assert recipe.input.level_window_s <= 10


def test_the_papers_values_stand_in_its_recipe():
    recipe = load_recipe("xu2015")
    assert (recipe.input.n_concat, recipe.input.first_frames) == (11, 6)
    assert (recipe.network.hidden_layers, recipe.network.hidden_units) == (3, 2048)
    assert (recipe.network.input_dropout, recipe.network.dropout) == (0.1, 0.2)
    assert recipe.training.snr_db == (-5, 0, 5, 10, 15, 20, np.inf)
    assert recipe.postprocessing.global_variance and recipe.target.loss == "mean_squared_error"


def test_what_a_recipe_does_not_name_is_as_in_the_original():
    with open(ROOT / "recipes" / "original.toml", "rb") as file:
        content = tomllib.load(file)
    assert recipe_from_dict({}, "empty") == recipe_from_dict(content, "original.toml")
    named = {section: set(values) for section, values in content.items()}
    assert named == {
        section: set(values) for section, values in dataclasses.asdict(Recipe()).items()
    }


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("n_concat = 7", "n_concat = 8", "odd n_concat, found 8"),
        ("n_concat = 7", "n_concat = 7.5", "n_concat to be of type int, found 7.5"),
        ("hidden_units = 2048", "hidden_unit = 2048", "found an unknown hidden_unit"),
        ('output = "log_magnitude"', 'output = "phase"', "output to be one of log_magnitude, mask"),
        ('output = "log_magnitude"', 'output = "mask"', "go together"),
        ("[input]", "[input", "not a TOML file"),
        (
            'noise_estimate = "none"',
            'noise_estimate = "percentiles"',
            "level_window_s from 5 to 10 s, found 0.0",
        ),
    ],
)
def test_a_mistake_in_a_recipe_is_named(tmp_path, old, new, message):
    text = (ROOT / "recipes" / "original.toml").read_text()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        load_recipe(str(tmp_path / "mine.toml"))


def test_a_network_with_memory_takes_no_windows():
    assert with_n_concat(load_recipe("live"), 1) == load_recipe("live")
    with pytest.raises(InputError, match="n_concat 3: the network with memory"):
        with_n_concat(load_recipe("live"), 3)


def test_a_recipe_that_is_not_there_lists_those_that_are():
    with pytest.raises(
        FileNotFoundError, match="--recipe is one of default, live, original, xu2015, xu2015_multi"
    ):
        load_recipe("defualt")


def test_a_recipe_survives_in_the_model(tmp_path):
    recipe = small("xu2015")
    scaler = Scaler(np.zeros(257), np.ones(257), np.zeros((1, 257)), np.ones((1, 257)))
    settings = Settings(16000, 512, 256, 1e-8, "0db", 3, recipe, scaler, gv_beta=1.25)
    save_model(str(tmp_path / "m.keras"), build_network(recipe, 257, 0), settings)
    _, loaded = load_model(str(tmp_path / "m.keras"))
    assert loaded.recipe == recipe and loaded.gv_beta == 1.25


# --- What the network sees ----------------------------------------------------------------------


def test_percentiles_are_numpys_nearest():
    rows = np.random.default_rng(0).standard_normal((57, 9))
    for percent in (0, 10, 20, 50, 80, 100):
        expected = np.percentile(rows, percent, axis=0, method="nearest")
        np.testing.assert_array_equal(percentiles(rows, [percent, 50])[0], expected)


def test_estimates_come_from_a_bounded_window_around_each_frame():
    assert [
        list(starts) for starts, _ in (estimate_windows(312, 5.0), estimate_windows(100, 5.0))
    ] == [[0], [0]]
    starts, width = estimate_windows(1000, 5.0)
    assert width == 312 and len(starts) == -(-1000 // 32)
    centres = 32 * np.arange(len(starts)) + 16
    inner = (centres >= 156) & (centres <= 1000 - 156)
    np.testing.assert_array_equal(starts[inner] + 156, centres[inner])
    assert starts[0] == 0 and starts[-1] == 1000 - 312


def test_frames_and_statistics_follow_their_definition():
    settings = small("default").input
    mixture = spectrum(700) * np.exp(np.linspace(0, 3, 700))[:, None]
    frames, statistics = frames_and_statistics(mixture, settings)
    assert frames.shape == (700, 257) and statistics.shape == (700, 4, 257)
    log = log_magnitude(mixture)
    for frame in (0, 333, 699):
        start = int(np.clip(frame // 32 * 32 + 16 - 156, 0, 700 - 312))
        window = slice(start, start + 312)
        level = np.log(np.mean(np.abs(mixture[window]) ** 2)) / 2
        expected = [
            np.percentile(log[window], p, axis=0, method="nearest") - level
            for p in (10, 20, 50, 80)
        ]
        np.testing.assert_allclose(statistics[frame], np.maximum(expected, -9.2), rtol=0, atol=1e-9)
        np.testing.assert_allclose(frames[frame], np.maximum(log[frame] - level, -9.2), atol=1e-9)


def test_the_level_of_a_recording_changes_nothing_but_the_level():
    settings = small("default").input
    for quiet, loud in zip(
        *(frames_and_statistics(gain * spectrum(100), settings) for gain in (0.01, 1)), strict=True
    ):
        np.testing.assert_allclose(quiet, loud, rtol=0, atol=1e-3)  # 1e-8 beside magnitudes of 1e-5


def test_noise_aware_training_sees_the_mean_of_the_first_six_frames():
    mixture = spectrum(20)
    frames, statistics = frames_and_statistics(mixture, small("xu2015").input)
    np.testing.assert_array_equal(frames, log_magnitude(mixture))
    np.testing.assert_allclose(
        statistics[13, 0], log_magnitude(mixture)[:6].mean(axis=0), rtol=1e-12
    )


def test_a_floor_raises_what_lies_below_it_in_frames_and_targets():
    recipe = small("original", input={"floor_db": 60.0})
    mixture, speech = spectrum(9) * 10.0 ** -np.arange(9)[:, None], np.abs(spectrum(9, 1)) * 1e-2
    for found, magnitude in (
        (frames_and_statistics(mixture, recipe.input)[0], np.abs(mixture)),
        (targets(mixture, speech, recipe), speech),
    ):
        np.testing.assert_allclose(
            found, np.log(np.maximum(magnitude, 1e-3) + 1e-8), rtol=0, atol=1e-12
        )


# --- The network ----------------------------------------------------------------------------------


def numpy_network(network, recipe, frames, statistics):
    """Compute the network's equations for a window of frames (n_concat, n_freq) and statistics."""
    settings, n_statistics = recipe.network, recipe.input.n_statistics
    dense = [layer for layer in network.layers if type(layer).__name__ == "Dense"]
    norms = [
        layer.get_weights()
        for layer in network.layers
        if type(layer).__name__ == "LayerNormalization"
    ]
    of_statistics = [layer for layer in dense if not layer.use_bias]
    dense = [layer for layer in dense if layer.use_bias]
    assert (
        len(of_statistics) == (n_statistics > 0)
        and len(norms) == settings.hidden_layers * settings.layer_normalization
    )
    hidden = frames.reshape(-1)
    for number in range(settings.hidden_layers):
        kernel, bias = dense[number].get_weights()
        hidden = hidden @ kernel + bias
        if number == 0 and n_statistics:
            hidden = hidden + statistics.reshape(-1) @ of_statistics[0].get_weights()[0]
        if settings.layer_normalization:
            scale, shift = norms[number]
            hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-3) * scale + shift
        hidden = np.maximum(hidden, 0)
    parts = []
    for layer in dense[settings.hidden_layers :]:
        kernel, bias = layer.get_weights()
        output = hidden @ kernel + bias
        if layer.activation.__name__ == "sigmoid":
            output = 1 / (1 + np.exp(-output))
        elif settings.residual:
            output = output + frames[recipe.input.n_concat // 2]
        parts.append(output)
    return np.concatenate(parts)


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-4), ("bfloat16", 0.1)])
@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "live"])
def test_each_network_is_its_equations(name, precision, tolerance):
    recipe = small(name)
    network = build_network(recipe, 257, 3, precision)
    rng = np.random.default_rng(4)
    for layer in network.layers:  # biases and scales that are not 0 and 1
        layer.set_weights(
            [weight + 0.1 * rng.standard_normal(weight.shape) for weight in layer.get_weights()]
        )
    frames = rng.standard_normal((1, recipe.input.n_concat + 1, 257)).astype(np.float32)
    inputs, n_statistics = [frames], recipe.input.n_statistics
    statistics = rng.standard_normal((1, 1, 257 * n_statistics)).astype(np.float32)
    if n_statistics:
        inputs.append(statistics)
    found = np.asarray(network.predict_on_batch(inputs))
    assert found.dtype == np.float32
    for frame in range(2):
        window = frames[0, frame : frame + recipe.input.n_concat]
        expected = numpy_network(network, recipe, window, statistics)
        # Sums of thousands of terms of order 1, rounded to 24 bits, or to 8 bits after each layer.
        error = found[0, frame] - expected
        assert np.sqrt(np.mean(error**2)) < tolerance * np.sqrt(np.mean(expected**2))
    if precision == "bfloat16":
        assert all(weight.dtype == "float32" for weight in network.trainable_variables)
        assert np.any(error != 0) and "bfloat16" in {
            layer.compute_dtype for layer in network.layers
        }


# --- Losses ---------------------------------------------------------------------------------------


def test_losses_equal_their_definitions():
    rng = np.random.default_rng(1)
    speech, mixture = np.exp(rng.normal(-1, 1, (2, 3, 5, 257)))
    mask, estimate = rng.uniform(0, 1, (3, 5, 257)), rng.standard_normal((3, 5, 257))
    y = np.log(np.stack([speech, mixture], axis=-2))
    convert = import_keras().ops.convert_to_numpy
    found = convert(compressed_loss(y, mask, Target(compression=0.3)))
    expected = np.mean(((mask * mixture + 1e-6) ** 0.3 - (speech + 1e-6) ** 0.3) ** 2, axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # single precision
    found = convert(log_magnitude_loss(np.log(speech), estimate, "mean_absolute_error"))
    np.testing.assert_allclose(
        found, np.mean(np.abs(estimate - np.log(speech)), axis=-1), rtol=1e-4
    )
    output = np.concatenate([estimate, mask], axis=-1)
    found = convert(multi_objective_loss(y, output, -1.0, 2.0, "mean_squared_error", 0.5))
    of_magnitude = np.mean((estimate - (np.log(speech) + 1) / 2) ** 2, axis=-1)
    of_mask = np.mean((mask - np.minimum(1, speech / mixture)) ** 2, axis=-1)
    np.testing.assert_allclose(found, of_magnitude + 0.5 * of_mask, rtol=1e-4)


def test_loudness_is_blind_to_level_and_grows_with_the_difference_in_shape():
    convert = import_keras().ops.convert_to_numpy
    speech = np.abs(spectrum(4)) ** 2
    tilt = np.linspace(-1, 1, 257)
    same, louder, tilted, more = (
        convert(loudness_distance(speech, speech * factor))
        for factor in (np.ones(257), 4 * np.ones(257), 10**tilt, 10 ** (2 * tilt))
    )
    np.testing.assert_allclose(
        same, 0.01, atol=1e-3
    )  # the root of 1e-4, which keeps the slope finite
    np.testing.assert_allclose(louder, same, atol=0.05)  # of loudness around 30
    assert np.all(tilted > same + 0.5) and np.all(more > tilted)


def test_targets_of_a_mask_are_relative_to_the_speech():
    mixture, speech = spectrum(30), np.abs(spectrum(30, 1))
    for gain in (1, 7):
        both = targets(gain * mixture, gain * speech, small("default"))
        assert np.sqrt(np.mean(np.exp(2 * both[:, 0]))) == pytest.approx(1, rel=1e-5)
        np.testing.assert_allclose(
            both[:, 1] - both[:, 0], np.log(np.abs(mixture) / speech), rtol=0, atol=1e-5
        )
    np.testing.assert_array_equal(
        targets(mixture, speech, small("original")), log_magnitude(speech)
    )


# --- Post-processing ------------------------------------------------------------------------------


class Fixed:
    """A network with a fixed output."""

    def __init__(self, output):
        self.output = output

    def predict_on_batch(self, inputs):
        n_segments = len(inputs[0])  # of 32 frames
        padding = 32 * n_segments - len(self.output)
        return np.pad(self.output, ((0, padding), (0, 0))).reshape(n_segments, 32, -1)


def fixed_settings(recipe, n_statistics, beta=1.0):
    scaler = Scaler(
        np.full(257, -2.0),
        np.full(257, 3.0),
        np.zeros((n_statistics, 257)),
        np.ones((n_statistics, 257)),
    )
    return Settings(16000, 512, 256, 1e-8, "0db", 1, recipe, scaler, beta)


def test_global_variance_equalisation_multiplies_the_scaled_estimate():
    # Small enough that no magnitude is beyond that of a peak of 1.
    output = 0.25 * np.random.default_rng(2).standard_normal((9, 257))
    found = estimate_magnitude(
        Fixed(output), fixed_settings(small("xu2015"), 1, beta=1.5), spectrum(9)
    )
    np.testing.assert_allclose(np.log(found), 1.5 * 3 * output - 2, rtol=0, atol=1e-6)


def test_no_magnitude_is_larger_than_a_peak_of_1_can_have():
    full_scale = np.cos(np.pi * 64 / 256 * np.arange(512))  # in the middle of bin 64
    largest = np.abs(stft(full_scale, 512, 256)).max() * 2  # a constant of 1 has twice as much
    output = np.full((2, 257), 5.0)  # scaled: exp(13)
    found = estimate_magnitude(Fixed(output), fixed_settings(small("original"), 0), spectrum(2))
    np.testing.assert_allclose(found, largest, rtol=1e-3)  # the cosine's other half leaks a little


def test_the_mask_decides_what_is_kept():
    mixture = spectrum(3)
    estimate, mask = np.zeros((3, 257)), np.repeat([[0.1], [0.5], [0.9]], 257, axis=1)
    output = np.concatenate([estimate, mask], axis=1)
    found = np.log(
        estimate_magnitude(Fixed(output), fixed_settings(small("xu2015_multi"), 1), mixture)
    )
    noisy = log_magnitude(mixture)
    np.testing.assert_allclose(
        found, [np.full(257, -2.0), (noisy[1] - 2) / 2, noisy[2]], rtol=0, atol=1e-6
    )


def test_a_mask_of_one_keeps_the_mixture():
    mixture = spectrum(400)
    found = estimate_magnitude(
        Fixed(np.ones((400, 257))), fixed_settings(small("default"), 4), mixture
    )
    np.testing.assert_allclose(found, np.abs(mixture), rtol=1e-12)


def test_recipes_are_plain_data():
    for name in SHIPPED:
        content = json.loads(json.dumps(dataclasses.asdict(load_recipe(name))))
        assert recipe_from_dict(content, "json") == load_recipe(name)
