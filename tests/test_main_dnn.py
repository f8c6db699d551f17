"""Training and inference through their commands on the mini data, and the batches they draw."""

import csv
import shutil
import zipfile

import h5py
import numpy as np
import pytest
from conftest import inference, pack, scale, train

from audio_files import read_audio
from batches import BLOCK_ROWS, POOL_ROWS, PackedData
from features import context_windows, log_magnitude, pad_to_whole_frames, stft
from main_dnn import enhance_audio
from network import load_model, predict_log_magnitude
from workspace import enhanced_path, mixed_audio_path, model_path, read_mixtures, training_stats_path


def read_stats(workspace):
    with open(training_stats_path(str(workspace), 0), encoding="utf-8") as file:
        return [(int(row["iteration"]), float(row["tr_loss"]), float(row["te_loss"])) for row in csv.DictReader(file)]


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
    saved = [model_path(str(workspace), 0, iteration) for iteration in (20, 25)]
    assert [line for line in lines if line.startswith("Saved")] == [f"Saved model to {path}" for path in saved]
    assert lines[-1].startswith("Training time: ") and lines[-1].endswith(" s")


def test_one_seed_gives_one_training(tmp_path, prepared):
    losses = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        workspace = shutil.copytree(prepared, tmp_path / name)
        assert train(workspace, "--n_iterations", 6, "--eval_every", 3, "--seed", seed) == 0
        losses.append(np.array(read_stats(workspace)))
    # Sums of threads differ in their order: far below 1e-3 after so few steps.
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-4)
    assert not np.allclose(losses[0][:, 1], losses[2][:, 1], rtol=0, atol=1e-4)


def test_the_loss_is_the_mean_absolute_error_over_all_rows(trained):
    model, settings = load_model(model_path(str(trained), 0, 4))
    with h5py.File(trained / "packed_features/spectrogram/test/0db/data.h5") as packed:
        x, y = (
            (packed[key][:] - np.array(settings.mean, np.float32)) / np.array(settings.std, np.float32) for key in "xy"
        )
    # The recorded loss has six decimals.
    assert read_stats(trained)[-1][2] == pytest.approx(np.mean(np.abs(y - model.predict(x, verbose=0))), abs=2e-6)


def test_the_network_is_that_of_the_paper(trained):
    model, settings = load_model(model_path(str(trained), 0, 4))
    # Flatten, 3 x [Dense 2048, Dropout], Dense 257.
    assert model.count_params() == (7 * 257 + 1) * 2048 + 2 * (2048 + 1) * 2048 + (2048 + 1) * 257
    assert [layer.rate for layer in model.layers if type(layer).__name__ == "Dropout"] == [0.2] * 3
    assert (settings.n_concat, settings.tr_snr, settings.iteration) == (7, 0.0, 4)


def test_a_model_carries_the_scaler_and_no_code(trained):
    _, settings = load_model(model_path(str(trained), 0, 4))
    with np.load(trained / "packed_features/spectrogram/train/0db/scaler.npz") as scaler:
        np.testing.assert_array_equal(settings.mean, scaler["mean"])
        np.testing.assert_array_equal(settings.std, scaler["std"])
    with zipfile.ZipFile(model_path(str(trained), 0, 4)) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".pkl", ".npy", ".py"))]


def test_enhanced_waves_are_as_long_as_their_mixtures_and_stored_in_float(trained):
    mixtures = read_mixtures(str(trained), "test")
    for mixture in mixtures:
        enhanced = read_audio(enhanced_path(str(trained), 0, mixture.name))
        mixed = read_audio(mixed_audio_path(str(trained), "test", 0, mixture.name))
        assert len(enhanced) == len(mixed) and np.isfinite(enhanced).all() and enhanced.any()
    assert len(list((trained / "enh_wavs/test/0db").iterdir())) == len(mixtures)


class Echo:
    """A network that answers the centre frame of its input."""

    def predict_on_batch(self, windows):
        return windows[:, windows.shape[1] // 2]


def test_enhancing_with_a_network_that_changes_nothing_gives_the_mixture(trained):
    _, settings = load_model(model_path(str(trained), 0, 4))
    for mixture in read_mixtures(str(trained), "test"):
        mixed = read_audio(mixed_audio_path(str(trained), "test", 0, mixture.name))
        # Single precision logarithms; the reference implementation has the same 1e-5.
        np.testing.assert_allclose(enhance_audio(Echo(), settings, mixed), mixed, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_samples", [512, 300 * 256 + 100, 1030 * 256])
def test_prediction_in_parts_equals_prediction_of_all_windows(trained, n_samples):
    model, settings = load_model(model_path(str(trained), 0, 4))
    audio = np.random.default_rng(0).uniform(-1, 1, n_samples)
    log = log_magnitude(stft(pad_to_whole_frames(audio, 512, 256), 512, 256))
    mean, std = np.array(settings.mean, np.float32), np.array(settings.std, np.float32)
    windows = context_windows(((log - mean) / std).astype(np.float32), 7, 1)
    expected = model.predict(windows, verbose=0) * std + mean
    # Matrix products of other sizes add in another order: some roundings of numbers of order 10.
    np.testing.assert_allclose(predict_log_magnitude(model, settings, log), expected, rtol=0, atol=1e-4)


def test_two_workspaces_with_other_context_do_not_mix(tmp_path, prepared):
    workspace = copy(prepared, tmp_path)
    pack(workspace, "train", 0, "--n_concat", 3, "--n_hop", 1)
    assert train(workspace, "--n_iterations", 1) == 2  # the scaler is of other data
    scale(workspace)
    assert train(workspace, "--n_iterations", 1) == 2  # the test set has 7 frames
    pack(workspace, "test", 0, "--n_concat", 3, "--n_hop", 1)
    assert train(workspace, "--n_iterations", 1) == 0
    assert inference(workspace, "--iteration", 1, "--n_concat", 3) == 0
    assert inference(workspace, "--iteration", 1, "--n_concat", 7) == 2


def packed_file(path, n_segs):
    """Make a data.h5 whose rows are numbered."""
    with h5py.File(path, "w") as packed:
        packed["x"] = np.broadcast_to(np.arange(n_segs, dtype=np.float32)[:, None, None], (n_segs, 3, 2))
        packed["y"] = np.broadcast_to(np.arange(n_segs, dtype=np.float32)[:, None], (n_segs, 2))
    return h5py.File(path, "r")


@pytest.mark.parametrize("n_segs", [1, 499, 500, 1203, POOL_ROWS, 3 * POOL_ROWS + 77])
def test_an_epoch_visits_each_row_once_with_its_target(tmp_path, n_segs):
    with packed_file(tmp_path / "data.h5", n_segs) as hdf5:
        data = PackedData(hdf5, np.zeros(2), np.ones(2))
        batches = list(data.epoch(np.random.default_rng(0), 500))
    rows = np.concatenate([x[:, 0, 0] for x, _ in batches])
    np.testing.assert_array_equal(np.sort(rows), np.arange(n_segs))
    for x, y in batches:
        np.testing.assert_array_equal(x[:, 1], y)
    assert [len(x) for x, _ in batches[:-1]] == [500] * (len(batches) - 1)  # only the last may be short


def test_epochs_are_shuffled_anew_and_batches_come_from_many_places(tmp_path):
    n_segs = 10 * POOL_ROWS
    with packed_file(tmp_path / "data.h5", n_segs) as hdf5:
        data = PackedData(hdf5, np.zeros(2), np.ones(2))
        rng = np.random.default_rng(0)
        first, second = (next(data.epoch(rng, 500))[0][:, 0, 0] for _ in range(2))
    assert not np.array_equal(first, second)
    # 500 rows out of 128 blocks: all but e^-3.9 = 2 % of the blocks take part.
    assert len(np.unique(first // BLOCK_ROWS)) > 115


def test_evaluation_samples_the_whole_data_set(tmp_path):
    with packed_file(tmp_path / "data.h5", 5000) as hdf5:
        data = PackedData(hdf5, np.zeros(2), np.ones(2))
        starts = [x[0, 0, 0] for x, _ in data.sample(100, 10)]
        assert starts == [x[0, 0, 0] for x, _ in data.sample(100, 10)]
        assert len(starts) == 10 and starts[0] == 0 and starts[-1] == 4900
        assert sum(len(x) for x, _ in data.sample(300, 100)) == 5000
