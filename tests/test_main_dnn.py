"""Training and inference through their commands on the mini data, and the batches they draw."""

import csv
import shutil
import zipfile

import h5py
import numpy as np
import pytest
from conftest import inference, pack, scale, train

from main_dnn import enhance_audio
from speech_enhancement.data.audio_files import read_audio
from speech_enhancement.features import context_windows, log_magnitude, pad_to_whole_frames, stft
from speech_enhancement.network.network import answers, load_model
from speech_enhancement.network_input import Scaler
from speech_enhancement.training.devices import Share
from speech_enhancement.training.packed_batches import BLOCK_ROWS, POOL_ROWS, PackedData
from speech_enhancement.workspace import (
    enhanced_path,
    mixed_audio_path,
    model_path,
    read_mixtures,
    training_stats_path,
)


def read_stats(workspace):
    with open(training_stats_path(str(workspace), "0db"), encoding="utf-8") as file:
        return [
            (int(row["iteration"]), float(row["tr_loss"]), float(row["te_loss"]))
            for row in csv.DictReader(file)
        ]


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
    losses = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        workspace = shutil.copytree(prepared, tmp_path / name)
        assert train(workspace, "--n_iterations", 6, "--eval_every", 3, "--seed", seed) == 0
        losses.append(np.array(read_stats(workspace)))
    # Sums of threads differ in their order: far below 1e-3 after so few steps.
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-4)
    assert not np.allclose(losses[0][:, 1], losses[2][:, 1], rtol=0, atol=1e-4)


def windows_and_clean(workspace, scaler):
    """Return the scaled rows of the test set, as the reference implementation has them."""
    with h5py.File(workspace / "packed_features/spectrogram/test/0db/data.h5") as packed:
        return scaler.frames(packed["x"][:]), scaler.frames(packed["y"][:])


def test_the_loss_is_the_mean_absolute_error_over_all_rows(trained):
    model, settings = load_model(model_path(str(trained), "0db", 4))
    x, y = windows_and_clean(trained, settings.scaler)
    # The recorded loss has six decimals.
    assert read_stats(trained)[-1][2] == pytest.approx(
        np.mean(np.abs(y - model.predict(x, verbose=0)[:, 0])), abs=2e-6
    )


def test_the_network_is_that_of_the_reference_implementation(trained):
    model, settings = load_model(model_path(str(trained), "0db", 4))
    weights = model.get_weights()
    shapes = [
        (7 * 257, 2048),
        (2048,),
        (2048, 2048),
        (2048,),
        (2048, 2048),
        (2048,),
        (2048, 257),
        (257,),
    ]
    assert [weight.shape for weight in weights] == shapes
    assert [layer.rate for layer in model.layers if type(layer).__name__ == "Dropout"] == [0.2] * 3
    assert (settings.recipe.input.n_concat, settings.snr, settings.iteration) == (7, "0db", 4)
    x, _ = windows_and_clean(trained, settings.scaler)
    hidden = x.reshape(len(x), -1)  # Flatten, 3 x [Dense 2048 ReLU], Dense 257
    for layer in range(3):
        hidden = np.maximum(hidden @ weights[2 * layer] + weights[2 * layer + 1], 0)
    expected = hidden @ weights[6] + weights[7]
    # Single precision sums of 2048 terms.
    np.testing.assert_allclose(model.predict(x, verbose=0)[:, 0], expected, rtol=0, atol=1e-4)


def test_a_model_carries_the_scaler_and_no_code(trained):
    _, settings = load_model(model_path(str(trained), "0db", 4))
    with np.load(trained / "packed_features/spectrogram/train/0db/scaler.npz") as scaler:
        np.testing.assert_array_equal(settings.scaler.mean, scaler["mean"])
        np.testing.assert_array_equal(settings.scaler.std, scaler["std"])
    with zipfile.ZipFile(model_path(str(trained), "0db", 4)) as archive:
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

    def predict_on_batch(self, inputs):
        return inputs[0][:, 3:-3]


def test_enhancing_with_a_network_that_changes_nothing_gives_the_mixture(trained):
    _, settings = load_model(model_path(str(trained), "0db", 4))
    for mixture in read_mixtures(str(trained), "test"):
        mixed = read_audio(mixed_audio_path(str(trained), "test", 0, mixture.name))
        # Single precision logarithms; the reference implementation has the same 1e-5.
        np.testing.assert_allclose(enhance_audio(Echo(), settings, mixed), mixed, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_samples", [512, 300 * 256 + 100, 1030 * 256])
def test_frames_in_parts_are_answered_like_windows(trained, n_samples):
    model, settings = load_model(model_path(str(trained), "0db", 4))
    audio = np.random.default_rng(0).uniform(-1, 1, n_samples)
    log = log_magnitude(stft(pad_to_whole_frames(audio, 512, 256), 512, 256))
    expected = model.predict(context_windows(settings.scaler.frames(log), 7, 1), verbose=0)[:, 0]
    # Matrix products of other sizes add in another order: some roundings of numbers of order 10.
    found = answers(model, settings, log, np.empty((len(log), 0, 257)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


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
        packed["x"] = np.broadcast_to(
            np.arange(n_segs, dtype=np.float32)[:, None, None], (n_segs, 3, 2)
        )
        packed["y"] = np.broadcast_to(np.arange(n_segs, dtype=np.float32)[:, None], (n_segs, 2))
    return h5py.File(path, "r")


def packed_data(hdf5, batch_size=500, ranges=None, *share):
    scaler = Scaler(np.zeros(2), np.ones(2), np.zeros((0, 2)), np.ones((0, 2)))
    return PackedData([hdf5], [ranges or [(0, len(hdf5["x"]))]], 3, scaler, batch_size, *share)


def row_numbers(batch):
    """Return the numbers of the rows in a batch, after a look that inputs and targets belong together."""
    (x,), y = batch
    np.testing.assert_array_equal(x[:, 1], y[:, 0])
    return x[:, 0, 0]


@pytest.mark.parametrize("n_segs", [1, 499, 500, 1203, POOL_ROWS, 3 * POOL_ROWS + 77])
def test_an_epoch_visits_each_row_once_with_its_target(tmp_path, n_segs):
    with packed_file(tmp_path / "data.h5", n_segs) as hdf5:
        batches = [
            row_numbers(batch) for batch in packed_data(hdf5).epoch(np.random.default_rng(0))
        ]
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(n_segs))
    assert [len(rows) for rows in batches[:-1]] == [500] * (
        len(batches) - 1
    )  # only the last may be short


def test_epochs_are_shuffled_anew_and_batches_come_from_many_places(tmp_path):
    with packed_file(tmp_path / "data.h5", 10 * POOL_ROWS) as hdf5:
        batches = packed_data(hdf5).batches(seed=0)
        first = row_numbers(next(batches))
        second = row_numbers(next(packed_data(hdf5).batches(0, first=-(-10 * POOL_ROWS // 500))))
    assert not np.array_equal(first, second)
    # The pool has 125 blocks, and each run of eight rows is in eight batches.
    assert len(np.unique(first // BLOCK_ROWS)) == 125


def test_batches_go_on_from_any_number(tmp_path):
    with packed_file(tmp_path / "data.h5", 1203) as hdf5:
        all_batches = packed_data(hdf5).batches(seed=1)
        expected = [row_numbers(next(all_batches)) for _ in range(8)]  # three batches an epoch
        for first in (1, 3, 5):
            later = packed_data(hdf5).batches(1, first)
            for rows in expected[first:]:
                np.testing.assert_array_equal(row_numbers(next(later)), rows)


@pytest.mark.parametrize(
    ("n_segs", "batch_size"), [(3 * POOL_ROWS + 77, 500), (1203, 512), (20000, 6000)]
)
def test_processes_together_read_the_batches_of_one_and_each_its_share(
    tmp_path, n_segs, batch_size
):
    def batches_and_rows_read(hdf5, *share):
        data = packed_data(hdf5, batch_size, None, Share(*share))
        read, n_read = data._read, []
        data._read = lambda *arguments: n_read.append(len(rows := read(*arguments))) or rows
        return [row_numbers(batch) for batch in data.epoch(np.random.default_rng(0))], sum(
            n_read
        ) / 2

    with packed_file(tmp_path / "data.h5", n_segs) as hdf5:
        expected, _ = batches_and_rows_read(hdf5)
        parts = [batches_and_rows_read(hdf5, index, 4, 4) for index in range(4)]
    for batch, *of_processes in zip(expected, *(batches for batches, _ in parts), strict=True):
        together = np.concatenate(of_processes)
        assert len(batch) - len(together) < 4  # what four devices cannot share evenly
        np.testing.assert_array_equal(together, [row for row in batch if row in together])
    if (
        n_segs > POOL_ROWS
    ):  # in a last pool, a short batch may have rows of its own beyond the share
        assert all(abs(n_read - n_segs / 4) < 8 + 500 * (batch_size > 500) for _, n_read in parts)


def test_only_the_rows_of_a_set_are_drawn(tmp_path):
    with packed_file(tmp_path / "data.h5", 1000) as hdf5:
        data = packed_data(hdf5, 100, [(50, 200), (700, 790)])
        rows = np.concatenate(
            [row_numbers(batch) for batch in data.epoch(np.random.default_rng(0))]
        )
    np.testing.assert_array_equal(np.sort(rows), [*range(50, 200), *range(700, 790)])


def test_evaluation_samples_the_whole_data_set(tmp_path):
    with packed_file(tmp_path / "data.h5", 5000) as hdf5:
        starts = [row_numbers(batch)[0] for batch in packed_data(hdf5, 100).sample(10)]
        assert starts == [row_numbers(batch)[0] for batch in packed_data(hdf5, 100).sample(10)]
        assert len(starts) == 10 and starts[0] == 0 and starts[-1] == 4900
        assert sum(len(row_numbers(batch)) for batch in packed_data(hdf5, 300).sample(100)) == 5000
