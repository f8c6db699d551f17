"""The batches that training draws from data.h5."""

import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from conftest import train

from speech_enhancement.data.mixtures import held_out_speech, read_mixtures
from speech_enhancement.network.network import Scaler
from speech_enhancement.training.devices import Share
from speech_enhancement.training.options import TrainingOptions, chosen_recipe
from speech_enhancement.training.packed_batches import (
    POOL_ROWS,
    STRETCH_ROWS,
    PackedData,
    open_packed_training,
)

NOT_SHARED = Share()


def packed_file(path, n_segs):
    """Make a data.h5 whose rows are numbered."""
    with h5py.File(path, "w") as packed:
        packed["x"] = np.broadcast_to(
            np.arange(n_segs, dtype=np.float32)[:, None, None], (n_segs, 3, 2)
        )
        packed["y"] = np.broadcast_to(np.arange(n_segs, dtype=np.float32)[:, None], (n_segs, 2))
    return h5py.File(path, "r")


def packed_data(hdf5, batch_size=500, ranges=None, share=NOT_SHARED):
    scaler = Scaler(np.zeros(2), np.ones(2), np.zeros((0, 2)), np.ones((0, 2)))
    return PackedData([hdf5], [ranges or [(0, len(hdf5["x"]))]], 3, scaler, batch_size, 0, share)


def row_numbers(batch):
    """Return the row numbers of a batch, after a check that inputs and targets belong together."""
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
        batches = packed_data(hdf5).batches()
        first = row_numbers(next(batches))
        second = row_numbers(next(packed_data(hdf5).batches(-(-10 * POOL_ROWS // 500))))
    assert not np.array_equal(first, second)
    # The pool has 125 stretches, and each eight rows of one are in eight batches.
    assert len(np.unique(first // STRETCH_ROWS)) == 125


def test_the_stretches_of_a_pool_come_from_the_whole_set(tmp_path):
    with packed_file(tmp_path / "data.h5", 10 * POOL_ROWS) as hdf5:
        rows = row_numbers(next(packed_data(hdf5).batches()))
    assert rows.min() < POOL_ROWS and rows.max() > 9 * POOL_ROWS


def test_batches_go_on_from_any_number(tmp_path):
    with packed_file(tmp_path / "data.h5", 1203) as hdf5:
        all_batches = packed_data(hdf5).batches()
        expected = [row_numbers(next(all_batches)) for _ in range(8)]  # three batches an epoch
        for first in (1, 3, 5):
            later = packed_data(hdf5).batches(first)
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


def test_evaluation_samples_as_many_rows_of_single_mixtures(tmp_path):
    every_other = [(start, start + 25) for start in range(0, 5000, 50)]
    with packed_file(tmp_path / "data.h5", 5000) as hdf5:
        batches = list(packed_data(hdf5, 100, every_other).sample(10))
    assert [len(row_numbers(batch)) for batch in batches] == [25] * 40  # as 10 batches of 100
    assert row_numbers(batches[0])[0] == 0 and row_numbers(batches[-1])[0] == 4950


def test_held_out_speech_is_read_for_validation_alone(prepared):
    options = TrainingOptions(
        workspace=str(prepared), te_snr=0.0, batch_size=50, valid_fraction=0.5
    )
    with open_packed_training(options, chosen_recipe(options), NOT_SHARED) as data:
        rng = np.random.default_rng(0)
        batches = {
            "trained on": data.trained_on.epoch(rng),
            "tr_loss": data.evaluated["tr_loss"].sample(),
            "valid_loss": data.evaluated["valid_loss"].sample(),
        }
        rows = {
            name: {row.tobytes() for _, y in some for row in y} for name, some in batches.items()
        }
    mixtures = read_mixtures(str(prepared), "train")
    held_out = held_out_speech([mixture.speech_name for mixture in mixtures], 0.5)
    expected = {True: set(), False: set()}
    with h5py.File(prepared / "packed_features/spectrogram/train/0db/data.h5") as packed:
        stops = [*packed["first_rows"][1:], len(packed["y"])]
        for mixture, start, stop in zip(mixtures, packed["first_rows"], stops, strict=True):
            of_set = expected[mixture.speech_name in held_out]
            of_set |= {row.tobytes() for row in packed["y"][start:stop]}
    assert expected[True] and rows["valid_loss"] == expected[True]
    assert rows["trained on"] == rows["tr_loss"] == expected[False]


def test_a_file_that_another_program_has_open_is_in_use(prepared, tmp_path, capsys):
    workspace = shutil.copytree(prepared, tmp_path / "w")
    path = workspace / "packed_features/spectrogram/train/0db/data.h5"
    code = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print(1, flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes) as other:
        other.stdout.readline()
        status = train(workspace, "--n_iterations", 1)
        other.communicate(b"\n")
    error = capsys.readouterr().err
    assert status == 2 and f"{path} is in use" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("n_items", "n_devices", "expected"),
    [(12, 2, 3), (13, 2, 3), (14, 2, 4), (13, 1, 4), (3, 1, 1)],  # in batches of 4
)
def test_a_short_last_batch_counts_if_each_device_gets_something(n_items, n_devices, expected):
    assert Share(0, n_devices, n_devices).n_batches(n_items, 4) == expected
