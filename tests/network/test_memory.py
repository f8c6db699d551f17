"""The network with memory: its equations, its states, its level, and what a recipe may say."""

import dataclasses

import numpy as np
import pytest
from small_models import memory_recipe, with_random_weights

from speech_enhancement.errors import InputError
from speech_enhancement.network.architectures import build_network
from speech_enhancement.network.export import write_onnx
from speech_enhancement.network.network import Settings, load_model, save_model
from speech_enhancement.network.onnx_network import load_onnx
from speech_enhancement.network.running import NetworkRun
from speech_enhancement.network_input import FLOOR, RunningLevel, Scaler, hold_signal
from speech_enhancement.recipe import load_recipe, recipe_from_dict

RNG = np.random.default_rng(0)
FRAMES = RNG.standard_normal((200, 257)).astype(np.float32)
NO_STATISTICS = np.empty((200, 0, 257), np.float32)
PERCENTILES = {"noise_estimate": "percentiles", "percentiles": [20]}
STATISTICS = RNG.standard_normal((200, 2, 257)).astype(np.float32)


def settings_of(recipe):
    shape = (recipe.input.n_statistics, 257)
    scaler = Scaler(np.full(257, 0.5), np.full(257, 2.0), np.full(shape, 0.3), np.full(shape, 1.5))
    return Settings(16000, 512, 256, 1e-8, "0db", 1, recipe, scaler)


def relu(values):
    return np.maximum(values, 0)


def frame(values, t):
    """Return frame t; before the first frame all is 0."""
    return values[t] if t >= 0 else np.zeros(values.shape[1])


def numpy_memory_network(model, recipe, frames, statistics=None):
    """Return the masks of (n + look_ahead, 257) frames, (n, 257), by the equations.

    In the time of the masks, as the docstring has them, but that what would lie before frame
    -look_ahead, and is not computed there, is 0.
    """
    weights = iter([weight.astype(np.float64) for weight in model.get_weights()])
    look_ahead, total = recipe.input.look_ahead, len(frames)
    hidden = frames @ next(weights) + next(weights)
    if statistics is not None:
        hidden = hidden + statistics @ next(weights)
    hidden, late = relu(hidden), 0  # hidden[t] is of frame t - late
    for dilation in map(int, recipe.network.dilations):
        kernel, bias, of_inner, last_bias = (next(weights) for _ in range(4))
        n_ahead = len(kernel) - 3
        assert n_ahead == (dilation <= look_ahead - late)
        late += n_ahead * dilation
        sees = [[frame(hidden, t - k * dilation) for k in range(len(kernel))] for t in range(total)]
        inner = relu(sum(np.array(sees)[:, k] @ kernel[-1 - k] for k in range(len(kernel))) + bias)
        before = np.array([frame(hidden, t - n_ahead * dilation) for t in range(total)])
        hidden = before + inner @ of_inner + last_bias
    delayed = np.array([frame(frames, t - look_ahead) for t in range(total)])
    rest = {weight.shape: weight for weight in weights}  # the order of the last layers is Keras'
    n_hidden = recipe.network.hidden_units
    of_frame, of_hidden = rest[257, n_hidden], rest[n_hidden, n_hidden]
    hidden = relu(hidden @ of_hidden + rest[n_hidden,] + delayed @ of_frame)
    mask = 1 / (1 + np.exp(-(hidden @ rest[n_hidden, 257] + rest[257,])))
    return mask[look_ahead:]


@pytest.mark.parametrize("look_ahead", [0, 2, 6, 7])
@pytest.mark.parametrize("percentiles", [(), (20, 50)])
def test_the_network_is_its_equations(look_ahead, percentiles):
    recipe = memory_recipe(look_ahead, percentiles=percentiles)
    model = with_random_weights(build_network(recipe, 257, 0))
    inputs = [FRAMES, *([STATISTICS.reshape(200, -1)] if percentiles else [])]
    expected = numpy_memory_network(model, recipe, *(part.astype(np.float64) for part in inputs))
    found = np.asarray(model.predict_on_batch([part[None] for part in inputs]))[0]
    assert found.shape == (200 - look_ahead, 257) and np.std(expected) > 0.05
    # Sums of some hundred terms of order 1 in single precision, through a sigmoid of slope 1/4.
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_blocks_begin_as_if_they_were_not_there():
    few, many = (build_network(memory_recipe(dilations=d), 257, 0) for d in ([1], [1, 2, 4]))
    weights = many.get_weights()
    few.set_weights([*weights[:6], *weights[-5:]])
    assert not np.any(weights[4]) and np.any(weights[2])
    found = [np.asarray(model.predict_on_batch(FRAMES[None])) for model in (few, many)]
    np.testing.assert_array_equal(*found)


def test_bfloat16_is_close_and_keeps_weights_and_output_in_float32():
    recipe = memory_recipe()
    models = [build_network(recipe, 257, 0, precision) for precision in ("float32", "bfloat16")]
    models[1].set_weights(with_random_weights(models[0]).get_weights())
    exact, rounded = (np.asarray(model.predict_on_batch(FRAMES[None])) for model in models)
    assert rounded.dtype == np.float32 and models[1].weights[0].dtype == "float32"
    difference = np.sqrt(np.mean((exact - rounded) ** 2))
    assert 0 < difference < 0.02  # 8 bits in each of some layers


@pytest.mark.parametrize("look_ahead", [0, 3])
@pytest.mark.parametrize("percentiles", [(), (20, 50)])
@pytest.mark.parametrize("road", ["keras", "onnx"])
def test_frames_in_parts_give_the_masks_of_the_whole(tmp_path, look_ahead, percentiles, road):
    recipe = memory_recipe(look_ahead, percentiles=percentiles)
    settings = settings_of(recipe)
    model = with_random_weights(build_network(recipe, 257, 0))
    statistics, inputs = STATISTICS[:, : len(percentiles)], [settings.scaler.frames(FRAMES)[None]]
    if percentiles:  # each goes with the frame look_ahead later
        seen = statistics[np.maximum(np.arange(200) - look_ahead, 0)]
        inputs.append(settings.scaler.statistics(seen)[None])
    whole = np.asarray(model.predict_on_batch(inputs))[0]
    if road == "onnx":
        pytest.importorskip("onnxruntime")
        write_onnx(str(tmp_path / "m.onnx"), model, settings)
        model, settings = load_onnx(str(tmp_path / "m.onnx"))
        assert settings.recipe == recipe
    n_looks = recipe.n_looks if road == "onnx" else 1  # two looks see the same frames here
    run, found, start = NetworkRun(model, settings, n_looks), [], 0
    for n_frames in (1, 2, 40, 1, len(whole) - 44):
        part = FRAMES[start : start + n_frames + look_ahead].repeat(n_looks, axis=0)
        found.append(run.add(part, statistics[start:])[n_looks - 1 :: n_looks])
        start += n_frames
    assert [len(part) for part in found] == [1, 2, 40, 1, len(whole) - 44]
    np.testing.assert_allclose(np.concatenate(found), whole, atol=1e-5)  # single precision


@pytest.mark.parametrize("sizes", [(400,), (1, 2, 3, 45, 61, 151, 137), (2,) * 200])
@pytest.mark.parametrize("road", ["keras", "onnx"])
def test_two_looks_in_turn_have_each_a_memory_of_its_own(tmp_path, sizes, road):
    recipe = memory_recipe()
    model, settings = with_random_weights(build_network(recipe, 257, 0)), settings_of(recipe)
    expected = [
        NetworkRun(model, settings).add(part, NO_STATISTICS) for part in (FRAMES, FRAMES[::-1])
    ]
    if road == "onnx":
        pytest.importorskip("onnxruntime")
        write_onnx(str(tmp_path / "m.onnx"), model, settings)
        model, settings = load_onnx(str(tmp_path / "m.onnx"))
    in_turn = np.stack([FRAMES, FRAMES[::-1]], axis=1).reshape(400, 257)
    run, starts = NetworkRun(model, settings, n_looks=2), np.cumsum([0, *sizes])
    parts = [in_turn[start : start + n] for start, n in zip(starts, sizes, strict=False)]
    found = np.concatenate([run.add(part, NO_STATISTICS) for part in parts])
    for look in (0, 1):  # single precision
        np.testing.assert_allclose(found[look::2], expected[look], atol=1e-5)


@pytest.mark.parametrize("sizes", [(80,), (1, 2, 3, 74), (1,) * 80])
def test_a_frame_of_the_second_look_is_heard_where_the_one_before_it_is(sizes):
    recipe = memory_recipe()
    model, settings = with_random_weights(build_network(recipe, 257, 0)), settings_of(recipe)
    frames, is_heard = FRAMES[:80].copy(), np.ones(40, bool)
    frames[[20, 22, 41, 61, 62, 63]] = -FLOOR  # of the first look alone, the second, both
    is_heard[[10, 11, 31]] = False
    heard = frames.reshape(40, 2, 257)[is_heard].reshape(-1, 257)
    expected = NetworkRun(model, settings, n_looks=2).add(heard, NO_STATISTICS)
    of_pair = np.cumsum(is_heard) - 1
    run, starts = NetworkRun(model, settings, n_looks=2), np.cumsum([0, *sizes])
    parts = [frames[start : start + n] for start, n in zip(starts, sizes, strict=False)]
    found = np.concatenate([run.add(part, NO_STATISTICS) for part in parts]).reshape(40, 2, 257)
    for pair, masks in enumerate(found):  # silence has the last mask of all
        last = expected[2 * of_pair[pair] :][:2]
        wanted = last if is_heard[pair] else last[[1, 1]]
        np.testing.assert_allclose(masks, wanted, atol=1e-5)


def test_only_a_network_that_needs_no_future_looks_twice():
    assert memory_recipe().n_looks == load_recipe("live").n_looks == 2
    for recipe in (memory_recipe(1), memory_recipe(0, percentiles=(20,)), load_recipe("default")):
        assert recipe.n_looks == 1


def test_channels_do_not_share_their_memory():
    recipe = memory_recipe()
    model, settings = with_random_weights(build_network(recipe, 257, 0)), settings_of(recipe)
    alone, one, other = (NetworkRun(model, settings) for _ in range(3))
    expected = alone.add(FRAMES, NO_STATISTICS)
    first = one.add(FRAMES[:50], NO_STATISTICS)
    other.add(-FRAMES[:77], NO_STATISTICS)
    found = np.concatenate([first, one.add(FRAMES[50:], NO_STATISTICS)])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_network_with_memory_survives_in_its_file(tmp_path):
    recipe = memory_recipe(look_ahead=2)
    model = with_random_weights(build_network(recipe, 257, 0))
    save_model(str(tmp_path / "m.keras"), model, settings_of(recipe))
    loaded, settings = load_model(str(tmp_path / "m.keras"))
    assert settings.recipe == recipe
    pair = [np.asarray(network.predict_on_batch(FRAMES[None])) for network in (model, loaded)]
    np.testing.assert_array_equal(*pair)


@pytest.mark.parametrize("sizes", [(260,), (1, 2, 45, 61, 151)])
def test_silence_leaves_the_memory_as_it_is_and_keeps_the_last_mask(sizes):
    recipe = memory_recipe()
    model = with_random_weights(build_network(recipe, 257, 0))
    expected = NetworkRun(model, settings_of(recipe)).add(FRAMES, NO_STATISTICS)
    places = np.repeat([0, 40, 100, 200], [5, 20, 1, 34])
    frames = np.insert(FRAMES, places, -FLOOR, axis=0)
    run, starts = NetworkRun(model, settings_of(recipe)), np.cumsum([0, *sizes])
    parts = [frames[start : start + n] for start, n in zip(starts, sizes, strict=False)]
    found = np.concatenate([run.add(part, NO_STATISTICS) for part in parts])
    before = np.concatenate([np.ones((1, 257)), expected])[[0, 40, 100, 200]]
    is_silent = ~hold_signal(frames)
    np.testing.assert_allclose(found[~is_silent], expected, atol=1e-6)  # other sizes at once
    np.testing.assert_allclose(found[is_silent], before.repeat([5, 20, 1, 34], 0), atol=1e-6)


# --- The level so far -----------------------------------------------------------------------------


def spectra(n_frames, seed=1):
    rng = np.random.default_rng(seed)
    parts = rng.standard_normal((2, n_frames, 257)) * np.exp(rng.standard_normal((n_frames, 1)))
    return parts[0] + 1j * parts[1]


def test_the_level_is_the_mean_power_of_what_came_before_that_fades():
    settings, spectrum = memory_recipe().input, spectra(120)
    spectrum[40:60] = 0  # digital silence does not count
    frames, statistics = RunningLevel(settings).add(spectrum)
    assert statistics.shape == (120, 0, 257)
    power = np.mean(np.abs(spectrum[:, 2:]) ** 2, axis=1)
    heard = np.flatnonzero(power > 0)
    for t in (0, 1, 39, 50, 119):
        past = heard[heard <= t]
        weights = np.exp(-(np.searchsorted(heard, t, "right") - 1 - np.arange(len(past))) / 187.5)
        level = 0.5 * np.log(np.sum(weights * power[past]) / np.sum(weights))
        expected = np.maximum(np.log(np.abs(spectrum[t]) + 1e-8) - level, -9.2)
        np.testing.assert_allclose(frames[t, 2:], expected[2:], atol=1e-6)  # epsilons of 1e-8
        np.testing.assert_array_equal(frames[t, :2], frames[t, 2])


def test_frames_60_db_below_the_loudest_are_all_floor():
    settings, spectrum = memory_recipe().input, np.ones((6, 257), complex)
    spectrum *= np.array([0, 1e-3, 1, 1.01e-3, 0.99e-3, 2])[:, None]
    frames, _ = RunningLevel(settings).add(spectrum)
    # The second is the loudest so far.
    assert hold_signal(frames).tolist() == [False, True, True, True, False, True]
    assert np.all(frames[[0, 4]] == -FLOOR)


def test_neither_the_level_of_a_recording_nor_a_constant_reaches_the_network():
    settings, spectrum = memory_recipe().input, spectra(80)
    expected = RunningLevel(settings).add(spectrum)[0]
    found = RunningLevel(settings).add(0.01 * spectrum)[0]
    np.testing.assert_allclose(found, expected, atol=1e-3)  # 1e-8 beside magnitudes of 1e-5
    with_constant = spectrum.copy()
    with_constant[:, :2] += 50
    np.testing.assert_array_equal(RunningLevel(settings).add(with_constant)[0], expected)


def test_a_level_in_parts_is_that_of_the_whole():
    settings, spectrum = memory_recipe().input, spectra(90)
    whole, parts = RunningLevel(settings).add(spectrum)[0], RunningLevel(settings)
    found = [parts.add(spectrum[start : start + 17])[0] for start in range(0, 90, 17)]
    np.testing.assert_allclose(np.concatenate(found), whole, atol=1e-12)


# --- Recipes --------------------------------------------------------------------------------------


def test_the_live_recipe_needs_no_frame_of_the_future():
    recipe = load_recipe("live")
    assert recipe.input.borders == (0, 0) and recipe.input.follows_level
    later = FRAMES.copy()
    later[100:] += 1
    model = with_random_weights(build_network(memory_recipe(), 257, 0))
    before, after = (
        np.asarray(model.predict_on_batch(frames[None]))[0] for frames in (FRAMES, later)
    )
    np.testing.assert_array_equal(before[:100], after[:100])
    assert np.all(np.any(before[100:110] != after[100:110], axis=1))


@pytest.mark.parametrize(
    "section, changes, message",
    [
        ("input", {"n_concat": 3}, "n_concat 1"),
        ("input", {"level_memory_s": 0.0}, "either level_memory_s, or level_window_s"),
        ("input", {"level_window_s": 5.0}, "either level_memory_s, or level_window_s"),
        ("input", PERCENTILES, "either level_memory_s, or level_window_s"),
        (
            "input",
            {**PERCENTILES, "level_memory_s": 0.0, "level_window_s": 2.0},
            "a level_window_s from 5 to 10 s",
        ),
        (
            "input",
            {**PERCENTILES, "level_window_s": 5.0},
            "either level_memory_s, or level_window_s",
        ),
        ("input", {"noise_estimate": "first_frames"}, "either level_memory_s, or level_window_s"),
        ("network", {"dilations": []}, "dilations of 1 frame or more"),
        ("network", {"dilations": [1, 0.5]}, "dilations of 1 frame or more"),
        ("network", {"kind": "window"}, 'for networks of the kind "memory"'),
        ("network", {"kind": "lstm"}, "kind to be one of window, memory"),
    ],
)
def test_a_mistake_in_a_recipe_with_memory_is_named(section, changes, message):
    content = dataclasses.asdict(memory_recipe())
    content[section] |= changes
    with pytest.raises(InputError, match=message):
        recipe_from_dict(content, "mine.toml")


def test_a_memory_gives_masks_alone():
    content = dataclasses.asdict(memory_recipe())
    content["target"] |= {"output": "log_magnitude", "loss": "mean_squared_error"}
    with pytest.raises(InputError, match='expected the output "mask"'):
        recipe_from_dict(content, "mine.toml")


@pytest.mark.parametrize(
    "section, names",
    [
        ("target", ["envelope_weight"]),
        ("target", ["disturbance_weight"]),
        ("target", ["disturbance_weight", "envelope_weight"]),
        ("input", ["level_memory_s"]),
        ("input", ["look_ahead", "level_memory_s"]),
    ],
)
def test_a_window_has_nothing_that_needs_neighbouring_frames(section, names):
    content = dataclasses.asdict(load_recipe("default"))
    content[section] |= dict.fromkeys(names, 1)
    verb = "is" if len(names) == 1 else "are"
    expected = rf'mine\.toml: {", ".join(names)} {verb} for networks .*"memory".*; set 0'
    with pytest.raises(InputError, match=expected):
        recipe_from_dict(content, "mine.toml")
