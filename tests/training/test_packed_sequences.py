"""Runs of frames from data.h5 for networks with memory."""

import numpy as np
import pytest
from conftest import calculate, create, pack, read_stats, scale, train, write_recipe
from small_models import memory_recipe

from speech_enhancement.errors import InputError
from speech_enhancement.network_input import Scaler
from speech_enhancement.training.devices import Share
from speech_enhancement.training.packed_batches import of_mixtures
from speech_enhancement.training.packed_sequences import PackedSequences, starts_of_runs


class FakeFile(dict):
    """An open data.h5 whose row r holds the number r; statistics are 1000 and 2000 more."""

    filename = "data.h5"

    def __init__(self, n_rows, first_rows=(0,), n_hop=1, n_statistics=0):
        rows = np.arange(n_rows, dtype=np.float32)
        x = rows[:, None, None] + 1000 * np.arange(1 + n_statistics)[:, None] + np.zeros(257)
        y = np.repeat(x[:, :1], 2, axis=1)
        super().__init__(x=x, y=y, first_rows=np.array(first_rows))
        self.attrs = {"n_hop": n_hop}


UNSCALED = Scaler(np.zeros(257), np.ones(257), np.zeros((0, 257)), np.ones((0, 257)))


def sequences(file, ranges, look_ahead=0, **options):
    return PackedSequences([file], [ranges], memory_recipe(look_ahead), UNSCALED, **options)


def rows_of(batch):
    (frames,), targets = batch
    assert frames.dtype == np.float32 and targets.shape[2:] == (2, 257)
    return frames[:, :, 0].astype(int), targets[:, :, 0, 0].astype(int)


def test_a_mixture_is_cut_into_runs_and_the_last_begins_earlier():
    assert starts_of_runs(100, 100 + 312) == [100]
    assert starts_of_runs(100, 100 + 700) == [100, 412, 488]
    assert starts_of_runs(100, 200) == [100]


def test_each_run_of_each_mixture_is_read_once_an_epoch_in_another_order():
    file = FakeFile(312 * 40)
    ranges = [(0, 312 * 10), (312 * 15, 312 * 40)]
    stream, epochs = sequences(file, ranges, seed=3).batches(), []
    for _ in range(2):
        batches = [rows_of(next(stream))[0] for _ in range(3)]  # of 16, 16 and 3 runs
        assert [len(batch) for batch in batches] == [16, 16, 3]
        rows = np.concatenate(batches)
        assert np.all(np.diff(rows, axis=1) == 1)
        epochs.append(rows[:, 0].tolist())
    assert sorted(epochs[0]) == sorted(epochs[1]) != epochs[0] != epochs[1]
    assert sorted(epochs[0]) == [*range(0, 3120, 312), *range(312 * 15, 312 * 40, 312)]


def test_batches_go_on_from_any_number():
    file, ranges = FakeFile(312 * 40), [(0, 312 * 40)]
    stream = sequences(file, ranges).batches()
    whole = [rows_of(next(stream))[0] for _ in range(7)]
    later = sequences(file, ranges).batches(4)
    for expected in whole[4:]:
        np.testing.assert_array_equal(rows_of(next(later))[0], expected)


@pytest.mark.parametrize("process", [0, 1])
def test_batches_of_several_devices_go_on_from_any_number(process):
    # Of 17 runs the last one is left over each epoch: it cannot be shared by two.
    file, ranges, share = FakeFile(312 * 17), [(0, 312 * 17)], Share(process, 2, 2)
    stream = sequences(file, ranges, share=share).batches()
    whole = [rows_of(next(stream))[0] for _ in range(4)]
    assert [len(batch) for batch in whole] == [8] * 4
    for number in (1, 3):
        later = rows_of(next(sequences(file, ranges, share=share).batches(number)))[0]
        np.testing.assert_array_equal(later, whole[number])


def test_frames_ahead_are_those_that_follow_and_repeat_the_last_at_the_end():
    batch = next(sequences(FakeFile(700), [(0, 700)], look_ahead=3).sample())
    frames, targets = rows_of(batch)
    assert targets.shape == (3, 312) and frames.shape == (3, 315)
    np.testing.assert_array_equal(frames[0], np.arange(315))
    np.testing.assert_array_equal(frames[2, -5:], [698, 699, 699, 699, 699])
    np.testing.assert_array_equal(targets[2], np.arange(388, 700))


def test_each_frame_goes_with_the_statistics_as_many_frames_before_as_the_network_looks_ahead():
    shape = (2, 257)
    scaler = Scaler(np.zeros(257), np.ones(257), np.full(shape, 500), np.full(shape, 2))
    recipe, file = memory_recipe(3, percentiles=(20, 50)), FakeFile(900, n_statistics=2)
    batches = PackedSequences([file], [[(100, 800), (800, 900)]], recipe, scaler).sample()
    (frames, statistics), targets = next(batches)
    assert statistics.shape == (4, 315, 514) and targets.shape == (4, 312, 2, 257)
    found = 2 * statistics[:, :, [0, 256, 257, 513]] + 500
    of_run = [np.maximum(np.arange(start - 3, start + 312), 100) for start in (100, 412, 488)]
    of_short = 800 + np.clip(np.arange(-3, 312), 0, 99)
    expected = np.stack([*of_run, of_short])[:, :, None] + [1000, 1000, 2000, 2000]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(frames[1, :, 0], np.arange(412, 412 + 315))
    np.testing.assert_array_equal(targets[1, :, 0, 0], np.arange(412, 412 + 312))


def test_a_short_mixture_is_repeated():
    frames, targets = rows_of(next(sequences(FakeFile(500), [(400, 500)]).sample()))
    np.testing.assert_array_equal(frames[0], 400 + np.arange(312) % 100)
    np.testing.assert_array_equal(targets, frames)


def test_ranges_are_cut_where_mixtures_begin():
    file = FakeFile(50, first_rows=(0, 10, 30))
    assert of_mixtures(file, [(0, 50)]) == [(0, 10), (10, 30), (30, 50)]
    assert of_mixtures(file, [(10, 30), (30, 50)]) == [(10, 30), (30, 50)]


def test_runs_are_shared_by_processes_and_too_few_are_refused():
    file, ranges = FakeFile(312 * 40), [(0, 312 * 40)]
    whole = rows_of(next(sequences(file, ranges).batches()))[0]
    halves = [
        rows_of(next(sequences(file, ranges, share=Share(index, 2, 2)).batches()))[0]
        for index in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate(halves), whole)
    with pytest.raises(InputError, match="batch of 16 runs of 312 frames, of 1, cannot be shared"):
        sequences(FakeFile(312), [(0, 312)], share=Share(0, 2, 2))


def test_rows_that_leave_frames_out_are_refused():
    with pytest.raises(InputError, match=r"data\.h5 was packed with n_hop 3.*--n_hop 1"):
        sequences(FakeFile(50, n_hop=3), [(0, 50)])


def test_rows_that_leave_frames_out_are_not_even_packed(tmp_path, capsys):
    assert create(tmp_path, "test") == calculate(tmp_path, "test") == 0
    assert pack(tmp_path, "test", 0, "--recipe", "live") == 2
    assert "n_hop 3: the network with memory of recipe live" in capsys.readouterr().err
    assert not list(tmp_path.rglob("data.h5"))


def test_a_network_with_memory_learns_from_packed_mixtures(tmp_path):
    recipe = write_recipe(tmp_path / "small.toml", "live")
    for data_type in ("train", "test"):
        assert create(tmp_path, data_type, None, None, "--magnification", 1) == 0
        assert calculate(tmp_path, data_type) == 0
        assert pack(tmp_path, data_type, 0, "--recipe", recipe, "--n_hop", 1) == 0
    assert scale(tmp_path) == 0
    flags = ("--recipe", recipe, "--n_iterations", 60, "--eval_every", 30, "--lr", 3e-3)
    assert train(tmp_path, *flags, "--batch_size", 1248) == 0
    losses = [[float(value) for value in row] for row in read_stats(tmp_path)]
    assert losses[-1][1] < 0.7 * losses[0][1] and losses[-1][2] < losses[0][2]
