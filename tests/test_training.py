"""Mixing on the fly, going on after a kill, validation on held-out speech, several SNRs."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
from conftest import MINI, ROOT, calculate, create, inference, pack, run, run_process, train
from test_main_dnn import read_stats

from config import n_overlap, n_window
from speech_enhancement.data.audio_files import AudioCache, list_audio
from speech_enhancement.data.mixtures import held_out_speech
from speech_enhancement.errors import InputError
from speech_enhancement.features import root_mean_square, stft
from speech_enhancement.network.network import load_model
from speech_enhancement.network_input import frames_and_statistics
from speech_enhancement.recipe import TrainingNoise, load_recipe
from speech_enhancement.training.devices import Share
from speech_enhancement.training.on_the_fly import (
    BATCHES_PER_BLOCK,
    SEGMENT_FRAMES,
    SEGMENT_SAMPLES,
    MixtureStream,
    Snrs,
    played_at,
    segment,
    smooth_response,
    with_response,
)
from speech_enhancement.workspace import model_path, scaler_path, training_stats_path

NOT_SHARED = Share()


def paths(kind):
    return [str(MINI / kind / name) for name in list_audio(str(MINI / kind), kind)]


def stream(snrs=None, recipe="default", seed=0, share=NOT_SHARED, **training_noise):
    snrs = snrs or Snrs(low=-5, high=15)
    chosen = load_recipe(recipe)
    training_noise = dataclasses.replace(chosen.training_noise, **training_noise)
    training = dataclasses.replace(chosen.training, batch_size=64)
    chosen = dataclasses.replace(chosen, training_noise=training_noise, training=training)
    made = MixtureStream(
        paths("train_speech"), paths("train_noise"), chosen, snrs, [seed], AudioCache(), share
    )
    made.compute_scaler(n_blocks=1)
    return made


def write_recipe(path, name="default", **values):
    """Write a shipped recipe with small layers and other values."""
    lines = (ROOT / "recipes" / f"{name}.toml").read_text().splitlines()
    values = {"hidden_units": 32, "batch_size": 64, "warm_up": 2, **values}
    for index, line in enumerate(lines):
        key = line.split(" = ")[0]
        if key in values:
            lines[index] = f"{key} = {values[key]}"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def test_set(tmp_path_factory):
    """A workspace with the test set, packed for the default recipe."""
    workspace = tmp_path_factory.mktemp("on_the_fly")
    assert create(workspace, "test") == calculate(workspace, "test") == 0
    assert pack(workspace, "test", 0, "--recipe", "default") == 0
    return workspace


def on_the_fly_flags(workspace, recipe):
    folders = ("--speech_dir", MINI / "train_speech", "--noise_dir", MINI / "train_noise")
    return ("--workspace", workspace, "--te_snr", 0, "--recipe", recipe, "--on_the_fly", *folders)


# --- Mixtures made on the fly -------------------------------------------------------------------


@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_the_snr_of_a_mixture_is_that_of_the_whole_utterance(tmp_path, snr):
    rng = np.random.default_rng(0)
    speech, noise = rng.standard_normal((2, 2 * SEGMENT_SAMPLES)) / 10
    speech[SEGMENT_SAMPLES:] *= 0.1  # a quieter second half
    noise = noise[:SEGMENT_SAMPLES]
    for name, audio in (("speech", speech), ("noise", noise)):
        soundfile.write(tmp_path / f"{name}.wav", audio, 16000, subtype="FLOAT")
    recipe = dataclasses.replace(
        load_recipe("xu2015"), training_noise=TrainingNoise()
    )  # begins at the beginning
    names = ([str(tmp_path / "speech.wav")], [str(tmp_path / "noise.wav")])
    made = MixtureStream(*names, recipe, Snrs((snr,)), [0], AudioCache())
    mixed, speech_magnitude = made.mixture(rng)
    of_speech, of_noise = (
        stft(audio[:SEGMENT_SAMPLES], n_window, n_overlap) for audio in (speech, noise)
    )
    factor = np.sum(speech_magnitude * np.abs(of_speech)) / np.sum(np.abs(of_speech) ** 2)
    alpha = np.real(
        np.sum((mixed - factor * of_speech) * of_noise.conj()) / np.sum(np.abs(of_noise) ** 2)
    )
    found = 20 * np.log10(factor * root_mean_square(speech) / (alpha * root_mean_square(noise)))
    assert found == pytest.approx(snr, abs=1e-3)  # single precision


def test_a_random_equalisation_has_its_response():
    noise = np.random.default_rng(0).standard_normal(80000).astype(np.float32)
    response = smooth_response(np.array([0.0, 6, -6, 12, 0, -20, 3, 0]))
    before, after = (
        np.mean(np.abs(stft(audio, 512, 256)) ** 2, axis=0)
        for audio in (noise, with_response(noise, response))
    )
    # Within a bin of 31 Hz the response changes by up to 1 dB where it is steep, at low frequencies.
    np.testing.assert_allclose(10 * np.log10(after / before), response, rtol=0, atol=1.0)


def test_an_infinite_snr_is_clean_speech():
    mixed, speech_magnitude = stream(Snrs(values=(np.inf,))).mixture(np.random.default_rng(0))
    np.testing.assert_allclose(np.abs(mixed), speech_magnitude, rtol=1e-6)  # rounding


def test_snrs_are_drawn_from_all_values_or_evenly_from_the_range():
    rng = np.random.default_rng(0)
    assert {Snrs(values=(-5.0, 0.0, 5.0)).draw(rng) for _ in range(50)} == {-5, 0, 5}
    drawn = [Snrs(low=-5, high=15).draw(rng) for _ in range(2000)]
    # Mean of 2000 even draws from 20 dB: standard deviation 0.13.
    assert min(drawn) >= -5 and max(drawn) <= 15 and np.mean(drawn) == pytest.approx(5, abs=0.6)


def test_a_block_depends_on_seed_and_number_alone():
    first, second, other = stream(), stream(), stream(seed=1)
    second.block(0)
    for name in ("frames", "statistics", "targets", "runs"):
        np.testing.assert_array_equal(getattr(first.block(3), name), getattr(second.block(3), name))
    assert not np.array_equal(first.block(3).frames, other.block(3).frames)
    assert not np.array_equal(first.block(3).frames, first.block(4).frames)


def test_batches_go_on_from_any_number():
    made = stream()
    all_batches = made.batches()
    expected = [next(all_batches) for _ in range(BATCHES_PER_BLOCK + 3)]
    all_batches.close()
    for first in (1, BATCHES_PER_BLOCK, BATCHES_PER_BLOCK + 2):
        later = made.batches(first)
        (frames, statistics), y = next(later)
        later.close()
        np.testing.assert_array_equal(frames, expected[first][0][0])
        np.testing.assert_array_equal(statistics, expected[first][0][1])
        np.testing.assert_array_equal(y, expected[first][1])


def test_a_block_uses_each_frame_at_most_once_and_inputs_fit_targets():
    block = stream().block(0)
    for runs in block.runs:
        assert sorted(runs) == list(range(0, SEGMENT_FRAMES, 4))
    (frames, statistics), y = block.batch(0)
    assert (
        frames.shape == (16, 4 + 10, 257)
        and statistics.shape == (16, 1, 4 * 257)
        and y.shape == (16, 4, 2, 257)
    )
    first = block.runs[1, 1]  # 4 runs of each of 4 segments: the second run of the second
    np.testing.assert_array_equal(y[5], block.targets[1, first : first + 4])
    np.testing.assert_array_equal(frames[5], block.frames[1, first : first + 14])


def test_the_shares_of_several_processes_make_the_batch_of_one():
    whole, *parts = stream(), stream(share=Share(0, 2, 2)), stream(share=Share(1, 2, 2))
    for number in (0, 7):
        (frames, statistics), y = whole.block(1).batch(number)
        shared = [part.block(1).batch(number) for part in parts]
        np.testing.assert_array_equal(np.concatenate([inputs[0] for inputs, _ in shared]), frames)
        np.testing.assert_array_equal(
            np.concatenate([inputs[1] for inputs, _ in shared]), statistics
        )
        np.testing.assert_array_equal(np.concatenate([targets for _, targets in shared]), y)
    with pytest.raises(InputError, match="cannot be shared by 3 devices"):
        stream(share=Share(0, 1, 3))


def test_the_scaler_is_mean_and_deviation_of_mixtures_that_training_does_not_see():
    made = stream()
    scaler, seen = made.compute_scaler(n_blocks=2), []
    for number in range(2):
        rng = np.random.default_rng([0, 1, number])  # training has 0 in the second place
        seen += [
            frames_and_statistics(made.mixture(rng)[0], load_recipe("default").input)
            for _ in range(4)
        ]
    frames = np.concatenate([frames for frames, _ in seen])
    statistics = np.stack([statistics[0] for _, statistics in seen])
    # Moments of single-precision values, merged in double precision.
    np.testing.assert_allclose(scaler.mean, frames.mean(axis=0, dtype=float), rtol=0, atol=1e-5)
    np.testing.assert_allclose(scaler.std, frames.std(axis=0, dtype=float), rtol=1e-5)
    np.testing.assert_allclose(
        scaler.statistics_mean, statistics.mean(axis=0, dtype=float), rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(
        scaler.statistics_std, statistics.std(axis=0, dtype=float), rtol=1e-5
    )


def test_a_segment_repeats_audio_that_is_too_short():
    rng = np.random.default_rng(0)
    for _ in range(20):
        cut = segment(np.arange(10), 25, rng)
        np.testing.assert_array_equal(np.diff(cut) % 10, np.ones(24))
        inside = segment(np.arange(100), 25, rng)
        np.testing.assert_array_equal(np.diff(inside), np.ones(24))
    np.testing.assert_array_equal(segment(np.arange(100), 25, rng, at_start=True), np.arange(25))


@pytest.mark.parametrize("speed", [0.75, 1.3])
def test_faster_noise_sounds_higher(speed):
    tone = np.sin(2 * np.pi * 500 * np.arange(round(SEGMENT_SAMPLES * speed) + 1) / 16000)
    spectrum = np.abs(np.fft.rfft(played_at(tone, speed)[:SEGMENT_SAMPLES]))
    assert np.argmax(spectrum) * 16000 / SEGMENT_SAMPLES == pytest.approx(500 * speed, abs=1)
    assert root_mean_square(played_at(tone, speed)[1000:-1000]) == pytest.approx(
        np.sqrt(0.5), rel=0.01
    )


# --- The command ----------------------------------------------------------------------------------


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
    name = "-5dbto15db"
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


def test_flags_go_over_the_recipe(test_set, tmp_path, capsys):
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


def test_held_out_speakers_are_whole_and_the_draw_depends_on_names_alone():
    names = [f"{speaker}/{sentence}.wav" for speaker in "abcdefghij" for sentence in "xyz"]
    held_out = held_out_speech(names, 0.2)
    speakers = {name[0] for name in held_out}
    assert len(speakers) == 2 and len(held_out) == 6
    assert held_out_speech([*reversed(names)], 0.2) == held_out
    assert held_out_speech(names, 0) == set()
    assert len(held_out_speech(["a.wav", "b.wav"], 0.9)) == 1  # something is left to train on


def test_validation_rows_are_not_trained_on(prepared, tmp_path):
    from speech_enhancement.training.packed_batches import split_rows

    path = prepared / "packed_features/spectrogram/train/0db/data.h5"
    with h5py.File(path) as packed:
        train_rows, valid_rows = split_rows(str(prepared), [packed], 0.3)
        covered = sorted(
            row for pairs in (*train_rows, *valid_rows) for pair in pairs for row in range(*pair)
        )
        assert covered == list(range(len(packed["x"]))) and valid_rows[0] and train_rows[0]
    workspace = shutil.copytree(prepared, tmp_path / "w")
    assert train(workspace, "--n_iterations", 2, "--eval_every", 1, "--valid_fraction", 0.3) == 0
    assert (workspace / "models/0db/md_best.keras").exists()


def test_resuming_gives_the_losses_of_the_undisturbed_run(prepared, tmp_path):
    losses = []
    for name, parts in (("whole", [6]), ("parts", [2, 3, 6])):
        workspace = shutil.copytree(prepared, tmp_path / name)
        for number, n_iterations in enumerate(parts):
            resume = ["--resume"] if number else []
            assert train(workspace, "--n_iterations", n_iterations, "--eval_every", 3, *resume) == 0
        losses.append({row[0]: row[1:] for row in read_stats(workspace)})
    for iteration in (0, 3, 6):
        # Sums of threads differ in their order.
        np.testing.assert_allclose(losses[0][iteration], losses[1][iteration], rtol=0, atol=1e-4)


def test_resuming_after_a_kill_on_the_fly_with_schedule_and_average(test_set, tmp_path):
    recipe = write_recipe(tmp_path / "mine.toml")
    losses = []
    for name in ("undisturbed", "killed"):
        workspace = shutil.copytree(test_set, tmp_path / name)
        flags = [
            *on_the_fly_flags(workspace, recipe),
            "--n_iterations",
            24,
            "--eval_every",
            8,
            "--save_every",
            8,
        ]
        if name == "killed":
            command = [sys.executable, ROOT / "main_dnn.py", "train", *flags]
            process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
            while process.poll() is None and not list(workspace.glob("models/*/state.npz")):
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            process.wait()
            flags.append("--resume")
        assert run_process("main_dnn", "train", *flags).returncode == 0
        text = Path(training_stats_path(str(workspace), "-5dbto15db")).read_text().splitlines()[1:]
        losses.append(np.array([[float(field) for field in line.split(",")] for line in text]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-4)


def test_resume_refuses_what_it_cannot_continue(trained, tmp_path, capsys):
    workspace = shutil.copytree(trained, tmp_path / "w")
    capsys.readouterr()
    assert train(workspace, "--n_iterations", 8, "--resume", "--lr", 0.01) == 2
    assert "another recipe or other flags" in capsys.readouterr().err
    os.remove(workspace / "models/0db/state.npz")
    assert train(workspace, "--n_iterations", 8, "--resume") == 2
    assert "state.npz is missing; run train without --resume first" in capsys.readouterr().err


def test_keep_prunes_older_models(prepared, tmp_path):
    workspace = shutil.copytree(prepared, tmp_path / "w")
    assert (
        train(workspace, "--n_iterations", 5, "--eval_every", 5, "--save_every", 1, "--keep", 2)
        == 0
    )
    models = sorted(os.listdir(workspace / "models/0db"))
    assert models == ["md_4iters.keras", "md_5iters.keras", "state.npz"]
