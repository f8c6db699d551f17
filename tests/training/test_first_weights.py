"""Beginning with the weights of a model: to adapt it to other data."""

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import (
    expect_refusal,
    on_the_fly_flags,
    pack,
    read_stats,
    run,
    train,
    write_recipe,
)
from small_models import make_memory_model, memory_recipe

from speech_enhancement.errors import InputError
from speech_enhancement.network import architectures
from speech_enhancement.network.architectures import build_network
from speech_enhancement.network.network import load_model
from speech_enhancement.network_input import Scaler
from speech_enhancement.training.first_weights import weights_of_model
from speech_enhancement.training.packed_batches import TrainingData
from speech_enhancement.workspace import model_path


@pytest.fixture(scope="module")
def adapted(prepared, tmp_path_factory):
    """A model of 3 iterations, the workspace of a training on clean speech from there, its recipe.

    Read only.
    """
    folder = tmp_path_factory.mktemp("adapted")
    recipe = write_recipe(folder / "small.toml", "original")
    first, second = (shutil.copytree(prepared, folder / name) for name in ("first", "second"))
    flags = ("--recipe", recipe, "--eval_every", 3)
    assert train(first, *flags, "--n_iterations", 3) == 0
    model = model_path(str(first), "0db", 3)
    change_scaler(second)
    flags = (*flags, "--seed", 1, "--initial_model", model)
    assert train(second, *flags, "--n_iterations", 3) == 0
    return model, second, flags


def change_scaler(workspace):
    """Change the mean of a workspace's scaler, as that of other data would be another."""
    (path,) = workspace.glob("packed_features/**/scaler*.npz")
    with np.load(path) as arrays:
        changed = {name: arrays[name] for name in arrays}
    changed["mean"] = changed["mean"] + 1
    np.savez(path, **changed)


def test_a_training_begins_where_the_model_ended(adapted):
    model, workspace, _ = adapted
    first = read_stats(workspace.parent / "first")
    began, ended = read_stats(workspace)
    # Printed to 1e-6. The same test data, scaler and weights, though not the same training sample.
    assert began[0] == 0 and began[2] == pytest.approx(first[-1][2], abs=2e-6)
    assert ended[1] < began[1]
    before, settings = load_model(model)
    after, its = load_model(model_path(str(workspace), "0db", 3))
    np.testing.assert_array_equal(its.scaler.mean, settings.scaler.mean)
    np.testing.assert_array_equal(its.scaler.std, settings.scaler.std)
    steps = [
        np.abs(new - old).max()
        for new, old in zip(after.get_weights(), before.get_weights(), strict=True)
    ]
    assert 0 < max(steps) < 4e-4  # Adam moves a weight by the learning rate, 1e-4, a step


def test_it_is_resumed_with_the_same_model_only(adapted, tmp_path, capsys):
    _, before, flags = adapted
    workspace = shutil.copytree(before, tmp_path / "w")
    longer = ("--n_iterations", 5, "--resume")
    capsys.readouterr()
    status = train(workspace, *flags[:-2], *longer)
    expect_refusal(capsys, status, "first weights those of a model, ", ", now None")
    assert train(workspace, *flags, *longer) == 0
    assert [row[0] for row in read_stats(workspace)] == [0, 3, 5]


def test_a_model_of_another_shape_is_refused(adapted, tmp_path, capsys):
    model, before, _ = adapted
    workspace = shutil.copytree(before, tmp_path / "w")
    for name, value in (("hidden_units", 16), ("activation", '"sigmoid"')):
        recipe = write_recipe(tmp_path / "other.toml", "original", **{name: value})
        capsys.readouterr()
        status = train(workspace, "--recipe", recipe, "--initial_model", model)
        found = {"hidden_units": "32, now 16", "activation": "relu, now sigmoid"}[name]
        expect_refusal(capsys, status, model, f"[network] {name} {found}", "give a recipe")
    without = write_recipe(tmp_path / "other.toml", "original", dropout=0.0)  # moves no weight
    flags = ("--recipe", without, "--n_iterations", 1, "--initial_model", model)
    assert train(workspace, *flags) == 0


def test_all_that_a_training_reads_is_scaled_as_for_the_model(adapted):
    model, _, _ = adapted
    trained_on, evaluated = SimpleNamespace(scaler=None), SimpleNamespace(scaler=None)
    nothing = np.zeros((0, 257))
    scaler = Scaler(np.zeros(257), np.ones(257), nothing, nothing)
    data = TrainingData(trained_on, {"te_loss": evaluated}, scaler, {})
    network, settings = load_model(model)
    weights = weights_of_model(model, settings.recipe, data)
    for scaler in (data.scaler, trained_on.scaler, evaluated.scaler):
        np.testing.assert_array_equal(scaler.mean, settings.scaler.mean)
    for found, expected in zip(weights, network.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["default", "live"])
def test_on_the_fly_the_average_begins_there_too(test_set, tmp_path, name):
    workspace = shutil.copytree(test_set, tmp_path / "w")
    recipe = write_recipe(tmp_path / "small.toml", name, batch_size=312, memory_units=16)
    assert pack(workspace, "test", 0, "--recipe", recipe, "--n_hop", 1) == 0
    flags = on_the_fly_flags(workspace, recipe)
    assert run("main_dnn", "train", *flags, "--n_iterations", 8) == 0
    (path,) = workspace.glob("models/*/md_8iters.keras")
    model = shutil.copy(path, tmp_path / "first.keras")
    assert run("main_dnn", "train", *flags, "--n_iterations", 2, "--initial_model", model) == 0
    # The average changes at every eighth iteration.
    pairs = (load_model(str(path))[0] for path in (model, path.with_name("md_2iters.keras")))
    for old, new in zip(*(network.get_weights() for network in pairs), strict=True):
        np.testing.assert_array_equal(new, old)


# --- Networks that see more than the model ---


def data_with_scaler():
    """Return training data with a scaler of its own, for two statistics."""
    rng, shape = np.random.default_rng(1), (2, 257)
    scaler = Scaler(*rng.random((2, 257)), rng.random(shape), rng.random(shape))
    return TrainingData(SimpleNamespace(), {"te_loss": SimpleNamespace()}, scaler, {})


@pytest.mark.parametrize("percentiles", [(), (20, 50)])
@pytest.mark.parametrize("look_ahead", [0, 3, 7])
def test_what_a_network_sees_more_has_no_weight_at_first(tmp_path, look_ahead, percentiles):
    model, settings = load_model(str(make_memory_model(tmp_path / "m.keras")))
    recipe, data = memory_recipe(look_ahead, percentiles=percentiles), data_with_scaler()
    wide = build_network(recipe, 257, 0)
    wide.set_weights(weights_of_model(str(tmp_path / "m.keras"), recipe, data))

    frames = np.random.default_rng(0).standard_normal((1, 90, 257)).astype(np.float32)
    inputs = [frames, *([np.ones((1, 1, 2 * 257), np.float32)] if percentiles else [])]
    expected, found = (
        np.asarray(net.predict_on_batch(x)) for net, x in ((model, frames), (wide, inputs))
    )
    # What lies before the first frame is not 0 in layers that look ahead. 14 frames before a frame
    # and as many as that are ahead of it, the outputs know nothing of it.
    n = 14 + look_ahead
    np.testing.assert_allclose(found[:, n:], expected[:, n : 90 - look_ahead], atol=1e-5)

    np.testing.assert_array_equal(data.scaler.mean, settings.scaler.mean)
    kept = data_with_scaler().scaler
    np.testing.assert_array_equal(data.scaler.statistics_std, kept.statistics_std)
    np.testing.assert_array_equal(data.trained_on.scaler.statistics_mean, kept.statistics_mean)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"level_memory_s": 1.0}, "level_memory_s 3.0, now 1.0"),
        ({"look_ahead": 3, "floor_db": 1.0}, "floor_db 0.0, now 1.0"),
    ],
)
def test_a_network_that_sees_something_else_is_refused(tmp_path, changes, found):
    path, content = make_memory_model(tmp_path / "m.keras"), memory_recipe()
    recipe = dataclasses.replace(content, input=dataclasses.replace(content.input, **changes))
    with pytest.raises(InputError, match=rf"m\.keras has a network with \[input\] {found}: give"):
        weights_of_model(str(path), recipe, data_with_scaler())


def test_a_network_that_sees_less_or_other_frames_ahead_is_refused(tmp_path):
    path = str(make_memory_model(tmp_path / "m.keras", look_ahead=3))
    for look_ahead in (0, 2, 7):
        with pytest.raises(InputError, match=f"look_ahead 3, now {look_ahead}: give"):
            weights_of_model(path, memory_recipe(look_ahead), data_with_scaler())


def test_a_model_of_earlier_blocks_that_did_not_look_ahead_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(architectures, "blocks_ahead", lambda recipe: [(d, False) for d in (1, 2, 4)])
        path = str(make_memory_model(tmp_path / "old.keras", look_ahead=3))
    with pytest.raises(InputError, match=r"old\.keras has weights of other shapes"):
        weights_of_model(path, memory_recipe(3), data_with_scaler())


def test_a_live_model_becomes_one_that_looks_ahead(test_set, tmp_path):
    workspace = shutil.copytree(test_set, tmp_path / "w")
    live = write_recipe(tmp_path / "live.toml", "live", batch_size=312, memory_units=16)
    assert pack(workspace, "test", 0, "--recipe", live, "--n_hop", 1) == 0
    flags = on_the_fly_flags(workspace, live)
    assert run("main_dnn", "train", *flags, "--n_iterations", 1) == 0
    (path,) = workspace.glob("models/*/md_1iters.keras")
    first = shutil.copy(path, tmp_path / "first.keras")

    more = 'look_ahead = 7\nlevel_window_s = 5.0\nnoise_estimate = "percentiles"\n'
    wide = tmp_path / "wide.toml"
    wide.write_text(live.read_text().replace("level_memory_s = 3.0", more + "percentiles = [20]"))
    assert pack(workspace, "test", 0, "--recipe", wide, "--n_hop", 1) == 0
    flags = on_the_fly_flags(workspace, wide)
    assert run("main_dnn", "train", *flags, "--n_iterations", 2, "--initial_model", first) == 0
    (path,) = workspace.glob("models/*/md_2iters.keras")
    network, settings = load_model(str(path))
    assert settings.recipe.input.look_ahead == 7 and settings.scaler.statistics_mean.shape[0] == 1
    assert network.count_params() > load_model(str(first))[0].count_params()
    assert read_stats(workspace, path.parent.name)[0][2] > 0  # of data.h5, which has statistics
    assert (
        run("main_dnn", "inference", "--workspace", workspace, *flags[2:4], "--iteration", 2) == 0
    )
