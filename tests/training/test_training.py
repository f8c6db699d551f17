"""Training through its command on the mini data."""

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import (
    DEFAULT,
    MINI,
    calculate,
    inference,
    on_the_fly_flags,
    pack,
    read_stats,
    run,
    scale,
    train,
    write_csv,
    write_recipe,
)

from speech_enhancement.data.mixtures import held_out_speech, read_mixtures
from speech_enhancement.network.network import load_model
from speech_enhancement.workspace import model_path, scaler_path, training_stats_path


def copy(workspace, tmp_path):
    return shutil.copytree(workspace, tmp_path / "workspace")


def test_training_lowers_the_loss_and_prints_the_originals_lines(tmp_path, prepared, capsys):
    workspace = copy(prepared, tmp_path)
    assert train(workspace, "--n_iterations", 25, "--eval_every", 10, "--save_every", 20) == 0
    stats = read_stats(workspace)
    assert [row[0] for row in stats] == [0, 10, 20, 25]  # the last iteration is always evaluated
    assert stats[-1][1] < 0.7 * stats[0][1]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train on cpu:0") or lines[0].startswith("train on gpu:0")
    assert f"Iteration: 10, tr_loss: {stats[1][1]:.6f}, te_loss: {stats[1][2]:.6f}" in lines
    saved = [model_path(str(workspace), "0db", iteration) for iteration in (20, 25)]
    assert [line for line in lines if line.startswith("Saved")] == [
        f"Saved model to {path}" for path in saved
    ]
    assert lines[-1].startswith("Training time: ") and lines[-1].endswith(" s")


def test_one_seed_gives_one_training(tmp_path, prepared):
    losses, recipe = [], write_recipe(tmp_path / "small.toml", "original")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        workspace = shutil.copytree(prepared, tmp_path / name)
        flags = ("--recipe", recipe, "--n_iterations", 6, "--eval_every", 3)
        assert train(workspace, *flags, "--seed", seed) == 0
        losses.append(np.array(read_stats(workspace)))
    # Sums of threads differ in their order: far below 1e-3 after so few steps.
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-4)
    assert not np.allclose(losses[0][:, 1], losses[2][:, 1], rtol=0, atol=1e-4)


def test_two_workspaces_with_other_context_do_not_mix(tmp_path, prepared, capsys):
    workspace = copy(prepared, tmp_path)
    pack(workspace, "train", 0, "--n_concat", 3, "--n_hop", 1)
    flags = ("--n_concat", 3)

    def refused(*flags):
        capsys.readouterr()
        assert train(workspace, "--n_iterations", 1, *flags) == 2
        return capsys.readouterr().err

    assert "with n_concat 3, the recipe has 7; give train --n_concat 3" in refused()
    assert "is of other data than data.h5 holds now" in refused(*flags)
    scale(workspace)
    assert "test/0db/data.h5 was packed with n_concat 7, the recipe has 3" in refused(*flags)
    assert not (workspace / "models").exists()
    pack(workspace, "test", 0, "--n_concat", 3, "--n_hop", 1)
    assert train(workspace, "--n_iterations", 1, *flags) == 0
    assert inference(workspace, "--iteration", 1, "--n_concat", 3) == 0
    assert inference(workspace, "--iteration", 1, "--n_concat", 7) == 2


def test_the_default_recipe_trains_on_the_fly_and_travels_in_the_model(test_set, tmp_path):
    workspace = shutil.copytree(test_set, tmp_path / "w")
    recipe = write_recipe(tmp_path / "mine.toml")
    flags = on_the_fly_flags(workspace, recipe)
    assert (
        run(
            "main_dnn",
            "train",
            *flags,
            "--n_iterations",
            20,
            "--eval_every",
            10,
            "--valid_fraction",
            0.25,
        )
        == 0
    )
    name = DEFAULT
    header, *rows = Path(training_stats_path(str(workspace), name)).read_text().splitlines()
    assert header == "iteration,tr_loss,te_loss,valid_loss" and len(rows) == 3
    assert float(rows[-1].split(",")[1]) < float(rows[0].split(",")[1])
    _, settings = load_model(model_path(str(workspace), name, 20))
    assert settings.recipe.network.hidden_units == 32 and settings.snr == name
    for iteration in (20, "best"):
        assert (
            run(
                "main_dnn",
                "inference",
                "--workspace",
                workspace,
                "--te_snr",
                0,
                "--iteration",
                iteration,
            )
            == 0
        )
    assert len(os.listdir(workspace / "enh_wavs/test/0db")) == 4


def test_flags_override_the_recipe(test_set, tmp_path, capsys):
    workspace = shutil.copytree(test_set, tmp_path / "w")
    flags = on_the_fly_flags(workspace, write_recipe(tmp_path / "mine.toml"))
    assert (
        run("main_dnn", "train", *flags, "--n_iterations", 1, "--tr_snr", -5, 2.5, "--lr", 0.5) == 0
    )
    _, settings = load_model(model_path(str(workspace), "-5db_2.5db", 1))
    assert (
        settings.recipe.training.snr_db == (-5, 2.5)
        and settings.recipe.training.learning_rate == 0.5
    )
    capsys.readouterr()
    assert run("main_dnn", "train", *flags[:-4]) == 2
    assert "needs --speech_dir and --noise_dir" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["xu2015", "xu2015_multi"])
def test_the_papers_recipes_train_and_enhance(test_set, tmp_path, name):
    workspace = shutil.copytree(test_set, tmp_path / "w")
    recipe = write_recipe(tmp_path / "mine.toml", name)
    assert pack(workspace, "test", 0, "--recipe", recipe) == 0
    assert (
        run(
            "main_dnn",
            "train",
            *on_the_fly_flags(workspace, recipe),
            "--n_iterations",
            4,
            "--eval_every",
            2,
        )
        == 0
    )
    assert (
        run("main_dnn", "inference", "--workspace", workspace, "--te_snr", 0, "--iteration", 4) == 0
    )
    _, settings = load_model(model_path(str(workspace), "-5db_0db_5db_10db_15db_20db_infdb", 4))
    assert (settings.gv_beta != 1) == (name == "xu2015")


def test_features_packed_for_another_recipe_are_refused(test_set, prepared, tmp_path, capsys):
    status = run("main_dnn", "train", *on_the_fly_flags(test_set, "xu2015"), "--n_iterations", 1)
    assert status == 2 and "packed for another recipe" in capsys.readouterr().err
    assert train(prepared, "--recipe", "default", "--tr_snr", 0) == 2
    assert "packed for another recipe" in capsys.readouterr().err


def test_several_snrs_are_read_with_one_scaler_over_all(prepared, tmp_path):
    workspace = shutil.copytree(prepared, tmp_path / "w")
    assert calculate(workspace, snr=5) == pack(workspace, "train", 5) == 0
    data = ("--workspace", workspace, "--data_type", "train")
    assert run("prepare_data", "compute_scaler", *data, "--snr", 0, 5) == 0
    rows = []
    for snr in ("0db", "5db"):
        with h5py.File(workspace / f"packed_features/spectrogram/train/{snr}/data.h5") as packed:
            rows.append(packed["x"][:].reshape(-1, 257))
    with np.load(scaler_path(str(workspace), "train", [0, 5])) as scaler:
        np.testing.assert_allclose(
            scaler["mean"], np.concatenate(rows).mean(axis=0), rtol=0, atol=1e-4
        )
        np.testing.assert_allclose(
            scaler["std"], np.concatenate(rows).std(axis=0), rtol=0, atol=1e-4
        )
    assert (
        run(
            "main_dnn",
            "train",
            "--workspace",
            workspace,
            "--te_snr",
            0,
            "--tr_snr",
            0,
            5,
            "--n_iterations",
            2,
        )
        == 0
    )
    assert inference(workspace, "--iteration", 2, "--tr_snr", 0, 5) == 0


@pytest.mark.parametrize("limits", [(15, -5), ("-5", "inf")])
def test_a_range_of_snrs_goes_up_from_number_to_number(test_set, tmp_path, capsys, limits):
    flags = on_the_fly_flags(test_set, write_recipe(tmp_path / "small.toml"))
    assert run("main_dnn", "train", *flags, "--tr_snr_range", *limits) == 2
    error = capsys.readouterr().err
    assert (
        "expected a range of SNRs from LOW up to HIGH dB" in error and len(error.split("\n")) == 2
    )


def test_held_out_speakers_are_whole_and_the_draw_depends_on_names_alone():
    names = [f"{speaker}/{sentence}.wav" for speaker in "abcdefghij" for sentence in "xyz"]
    held_out = held_out_speech(names, 0.2)
    speakers = {name[0] for name in held_out}
    assert len(speakers) == 2 and len(held_out) == 6
    assert held_out_speech([*reversed(names)], 0.2) == held_out
    assert held_out_speech(names, 0) == set()
    # The same in every version: speakers that one held out, the next must not train on.
    assert held_out_speech([f"{name}/x.wav" for name in "abcdefghij"], 0.2) == {
        "e/x.wav",
        "h/x.wav",
    }
    assert len(held_out_speech(["a.wav", "b.wav"], 0.9)) == 1  # something is left to train on


@pytest.mark.parametrize(("lr", "kind"), [(1e-4, "falls"), (1.0, "rises")])
def test_the_best_model_is_that_of_the_lowest_loss_on_held_out_speech(prepared, tmp_path, lr, kind):
    workspace = shutil.copytree(prepared, tmp_path / "w")
    recipe = write_recipe(tmp_path / "small.toml", "original", dropout=0.0)
    flags = ("--recipe", recipe, "--n_iterations", 4, "--eval_every", 1, "--valid_fraction", 0.3)
    assert train(workspace, *flags, "--lr", lr) == 0
    valid_losses = [row[3] for row in read_stats(workspace)]
    _, settings = load_model(model_path(str(workspace), "0db", "best"))
    assert settings.iteration == np.argmin(valid_losses)
    assert (settings.iteration == 4) == (kind == "falls")


def test_one_speaker_cannot_be_split(prepared, tmp_path, capsys):
    workspace = shutil.copytree(prepared, tmp_path / "w")
    mixtures = read_mixtures(str(workspace), "train")
    write_csv(workspace, [(f"speaker/{row.speech_name}", *row[1:]) for row in mixtures])
    speech = tmp_path / "speech"
    speech.mkdir()
    shutil.copy(MINI / "train_speech" / "en_allison_leader.wav", speech)
    capsys.readouterr()
    packed = ("--workspace", workspace, "--te_snr", 0, "--tr_snr", 0)
    noise = ("--noise_dir", MINI / "train_noise")
    on_the_fly = (*packed, "--on_the_fly", "--speech_dir", speech, *noise)
    for flags in (packed, on_the_fly):
        assert run("main_dnn", "train", *flags, "--valid_fraction", 0.5, "--n_iterations", 1) == 2
        assert "--valid_fraction 0.5 needs speech of two speakers" in capsys.readouterr().err


def test_a_training_over_a_range_of_snrs_can_be_named(test_set, tmp_path, capsys):
    workspace = shutil.copytree(test_set, tmp_path / "w")
    flags = (*on_the_fly_flags(workspace, write_recipe(tmp_path / "s.toml")), "--n_iterations", 1)
    of_range = ("--tr_snr_range", -2.5, 5)
    assert run("main_dnn", "train", *flags, *of_range) == 0
    assert run("main_dnn", "train", *flags, "--tr_snr", 0) == 0
    _, settings = load_model(model_path(str(workspace), "-2.5dbto5db", 1))
    assert settings.recipe.training.snr_range_db == (-2.5, 5) and settings.snr == "-2.5dbto5db"
    assert run("main_dnn", "train", *flags, *of_range, "--tr_snr", 0) == 2
    assert "found both or none" in capsys.readouterr().err

    enhance = ("--workspace", workspace, "--te_snr", 0, "--iteration", 1)
    plot = ("--workspace", workspace)
    for named, expected in ((of_range, "-2.5dbto5db"), (("--tr_snr", 0), "0db"), ((), "0db")):
        capsys.readouterr()
        assert run("main_dnn", "inference", *enhance, *named) == 0
        assert run("evaluate", "plot_training_stat", *plot, *named) == 0
        lines = capsys.readouterr().out
        assert lines.rstrip().endswith(f"training_stat_{expected}.png")
        assert lines.count("taking 0db, which ran last") == (2 if named == () else 0)
    other = ("--workspace", workspace, "--te_snr", 0, "--tr_snr_range", -5, 15)
    for step in ("get_stats", "report"):
        assert run("evaluate", step, *other) == 2
        assert "holds the trainings -2.5dbto5db, 0db, not -5dbto15db" in capsys.readouterr().err


def test_keep_leaves_the_last_model_of_a_shorter_training(prepared, tmp_path):
    workspace = shutil.copytree(prepared, tmp_path / "w")
    for n_iterations in (4, 2):
        assert train(workspace, "--n_iterations", n_iterations, "--keep", 1) == 0
    assert "md_2iters.keras" in {path.name for path in (workspace / "models/0db").iterdir()}


def test_keep_prunes_older_models(prepared, tmp_path):
    workspace = shutil.copytree(prepared, tmp_path / "w")
    assert (
        train(workspace, "--n_iterations", 5, "--eval_every", 5, "--save_every", 1, "--keep", 2)
        == 0
    )
    models = sorted(os.listdir(workspace / "models/0db"))
    assert models == ["md_4iters.keras", "md_5iters.keras", "state.npz"]
