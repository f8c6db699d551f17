"""A training whose numbers are no longer finite: what was saved before stays."""

import shutil

import numpy as np
from conftest import expect_refusal, files_below, train, write_recipe


def test_a_diverged_training_saves_nothing(prepared, tmp_path, capsys):
    workspace = shutil.copytree(prepared, tmp_path / "w")
    recipe = write_recipe(tmp_path / "small.toml", "original")
    flags = ("--recipe", recipe, "--keep", 1, "--save_every", 1, "--eval_every", 1000)
    assert train(workspace, *flags, "--n_iterations", 2) == 0
    before = files_below(workspace / "models")
    capsys.readouterr()
    status = train(workspace, *flags, "--n_iterations", 6, "--lr", 1e39)  # beyond float32
    expect_refusal(capsys, status, "no longer finite at iteration", "lower --lr")
    after = files_below(workspace / "models")
    assert after == before
    with np.load(workspace / "models" / "0db" / "state.npz") as state:
        arrays = [state[name] for name in state.files if name.startswith("variable")]
    assert all(np.isfinite(array).all() for array in arrays)


def test_a_board_that_cannot_be_made_is_refused_before_the_training(prepared, tmp_path, capsys):
    (tmp_path / "board").touch()
    recipe = write_recipe(tmp_path / "small.toml", "original")
    workspace = shutil.copytree(prepared, tmp_path / "w")
    flags = ("--recipe", recipe, "--n_iterations", 2, "--tensorboard", tmp_path / "board")
    status = train(workspace, *flags)
    captured = capsys.readouterr()
    assert status == 2 and captured.err.count("\n") == 1 and "Iteration" not in captured.out
