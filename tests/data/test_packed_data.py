"""data.h5 and its scaler, made by their commands: contents by definition, and what goes wrong."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import (
    MINI,
    calculate,
    create,
    expect_refusal,
    files_below,
    pack,
    run,
    scale,
    train,
    write_csv,
)

from config import stft_settings
from speech_enhancement.data import packed_data
from speech_enhancement.data.mixture_features import n_frames_of, read_features
from speech_enhancement.data.mixtures import digest_of, read_mixtures
from speech_enhancement.data.packed_data import NewPacked, new_packed, open_packed_file, read_scaler
from speech_enhancement.errors import InputError
from speech_enhancement.features import log_magnitude
from speech_enhancement.network_input import frames_and_statistics, targets
from speech_enhancement.recipe import data_settings, load_recipe, with_n_concat
from speech_enhancement.workspace import features_path, packed_path, scaler_path

FOLDER = "packed_features/spectrogram/train/0db"


@pytest.fixture
def workspace(prepared, tmp_path):
    """A copy of the prepared mini data; train has 8 mixtures."""
    return Path(shutil.copytree(prepared, tmp_path / "w"))


def compute(workspace, *snrs, n_jobs=1):
    flags = ("--workspace", workspace, "--data_type", "train", "--snr", *snrs, "--n_jobs", n_jobs)
    return run("prepare_data", "compute_scaler", *flags)


# --- Packing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe, n_concat, n_hop", [("original", 5, 2), ("xu2015", 3, 4), ("default", 7, 3)]
)
def test_rows_are_windows_statistics_and_targets_of_each_mixture(
    workspace, recipe, n_concat, n_hop
):
    flags = ("--recipe", recipe, "--n_concat", n_concat, "--n_hop", n_hop)
    assert pack(workspace, "train", 0, *flags) == 0
    settings = with_n_concat(load_recipe(recipe), n_concat)
    mixtures = read_mixtures(str(workspace), "train")
    with h5py.File(packed_path(str(workspace), "train", 0)) as packed:
        x, y, first_rows = packed["x"][:], packed["y"][:], packed["first_rows"][:]
    assert x.dtype == y.dtype == np.float32

    row = 0
    for mixture, first_row in zip(mixtures, first_rows, strict=True):
        assert row == first_row
        spectra = read_features(str(workspace), "train", 0, mixture)[:2]
        frames, statistics = frames_and_statistics(spectra[0], settings.input)
        clean = targets(*spectra, settings)
        for centre in range(0, len(frames), n_hop):
            places = np.arange(centre - n_concat // 2, centre + n_concat // 2 + 1)
            window = frames[np.clip(places, 0, len(frames) - 1)]
            np.testing.assert_array_equal(x[row], [*window, *statistics[centre]])
            np.testing.assert_array_equal(y[row], clean[centre])
            row += 1
    assert row == len(x) == len(y)


def test_the_target_of_the_original_is_the_clean_log_magnitude_at_the_centre(prepared):
    mixture = read_mixtures(str(prepared), "train")[-1]
    speech_magnitude = read_features(str(prepared), "train", 0, mixture)[1]
    with open_packed_file(str(prepared), "train", 0) as packed:
        y = packed["y"][packed["first_rows"][-1] :]
    np.testing.assert_array_equal(y, log_magnitude(speech_magnitude)[::3])


def test_a_packed_file_says_what_it_was_made_from(prepared):
    with open_packed_file(str(prepared), "train", 0) as packed:
        attributes = dict(packed.attrs)
    assert len(attributes.pop("fingerprint")) == 64
    recipe = data_settings(load_recipe("original"))
    expected = {"snr_db": 0, "n_concat": 7, "n_hop": 3, "recipe": recipe, "n_mixtures": 8}
    expected["mixtures"] = digest_of(read_mixtures(str(prepared), "train"))
    assert attributes == {**expected, **stft_settings}


def fingerprint(workspace, *flags, snr=0):
    assert pack(workspace, "train", snr, *flags) == 0
    with open_packed_file(str(workspace), "train", snr) as packed:
        return packed.attrs["fingerprint"]


def test_the_fingerprint_changes_with_the_content_alone(workspace):
    first = fingerprint(workspace)
    assert fingerprint(workspace, "--n_jobs", 1) == first
    others = [fingerprint(workspace, *flags) for flags in (("--n_hop", 2), ("--n_concat", 5))]
    # Louder speech: the same names, lengths and settings, but other mixtures.
    shutil.copytree(MINI / "train_noise", workspace / "noise")
    for mixture in read_mixtures(str(workspace), "train"):
        shutil.copy(MINI / "test_noise/vinyl.wav", workspace / "noise" / mixture.noise_name)
    assert calculate(workspace, "train", None, workspace / "noise") == 0
    others.append(fingerprint(workspace))
    assert len({first, *others}) == 4


def test_clean_speech_is_packed_as_mixture_and_target(workspace):
    assert calculate(workspace, snr="inf") == pack(workspace, "train", "inf") == 0
    assert compute(workspace, "inf") == 0
    with open_packed_file(str(workspace), "train", np.inf) as packed:
        assert packed.attrs["snr_db"] == np.inf
        # Both are rounded to single precision before their logarithm, whose argument is at least
        # 1e-8.
        np.testing.assert_allclose(packed["x"][:, 3], packed["y"], rtol=0, atol=1e-3)
        read_scaler(str(workspace), [np.inf], [packed])


# --- The disk ---------------------------------------------------------------------------------


def refuse_to_reserve(*arguments):
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


@pytest.fixture(params=["reserves", "refuses", "cannot"])
def space(request, monkeypatch):
    """A system that reserves disk space, one that refuses to, and one without such a call."""
    if request.param == "refuses":
        monkeypatch.setattr("os.posix_fallocate", refuse_to_reserve, raising=False)
    elif request.param == "cannot":
        monkeypatch.delattr("os.posix_fallocate", raising=False)
    return request.param


def test_every_system_gets_the_same_file(workspace, space):
    expected = (workspace / FOLDER / "data.h5").read_bytes()
    assert pack(workspace, "train", 0, "--n_jobs", 1) == 0
    assert (workspace / FOLDER / "data.h5").read_bytes() == expected


def test_the_space_of_a_packed_file_is_taken_before_it_is_filled(tmp_path, space):
    shapes, first_rows = {"x": (1000, 7, 257), "y": (1000, 257)}, np.arange(20000)
    with new_packed(str(tmp_path / "data.h5"), shapes, {"n_hop": 3}, first_rows):
        (path,) = tmp_path.iterdir()
        status = os.stat(path)
        assert 512 * status.st_blocks >= status.st_size > 4 * 1000 * 8 * 257 + 8 * 20000
    assert os.listdir(tmp_path) == ["data.h5"]


def test_a_file_that_becomes_too_large_leaves_nothing(workspace, capsys, space):
    before = files_below(workspace)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        status = pack(workspace, "train", 0, "--n_jobs", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    expect_refusal(capsys, status, "data.h5 cannot be written", "larger than the file system")
    assert files_below(workspace) == before


def test_features_are_looked_at_before_disk_space_is_taken(workspace, capsys, monkeypatch):
    monkeypatch.setattr(packed_data, "take_space", None)  # to call it would be an error
    mixtures = read_mixtures(str(workspace), "train")
    shortest = min(mixtures, key=n_frames_of)
    os.remove(features_path(str(workspace), "train", 0, shortest.name))
    expect_refusal(capsys, pack(workspace), f"{shortest.name}.npz is missing")

    longer = mixtures[0]._replace(noise_offset=mixtures[0].noise_offset + 10**12)
    write_csv(workspace, [longer])
    expect_refusal(capsys, pack(workspace), f"expected noise_offset {longer.noise_offset}")


def test_a_disk_that_fails_while_rows_are_written_leaves_nothing(workspace, capsys, monkeypatch):
    before = files_below(workspace)

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(NewPacked, "write", fail)
    status = pack(workspace, "train", 0, "--n_jobs", 1)
    expect_refusal(capsys, status, "data.h5 cannot be written: the disk is full")
    assert files_below(workspace) == before


# --- Files that are not as they should be -----------------------------------------------------


@pytest.mark.parametrize("damage", ["text", "cut", "no-datasets"])
def test_a_damaged_data_h5(workspace, capsys, damage):
    path = workspace / FOLDER / "data.h5"
    if damage == "text":
        path.write_text("no HDF5")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        h5py.File(path, "w").close()
    expect_refusal(capsys, scale(workspace), path, "is damaged", "run pack_features")
    expect_refusal(capsys, train(workspace, "--n_iterations", 1), path, "run pack_features")
    assert not (workspace / "models").exists()


def replace(packed, name, content):
    del packed[name]
    packed[name] = content


UNFIT = {
    "another SNR": (lambda packed: packed.attrs.modify("snr_db", 5.0), "expected snr_db 0.0"),
    "no recipe": (lambda packed: packed.attrs.pop("recipe"), "are not what"),
    "no fingerprint": (lambda packed: packed.attrs.pop("fingerprint"), "are not what"),
    "no log_epsilon": (lambda packed: packed.attrs.pop("log_epsilon"), "found None"),
    "no rows": (
        lambda packed: [replace(packed, name, packed[name][:0]) for name in ("x", "y")],
        "are not what",
    ),
    "fewer targets": (lambda packed: replace(packed, "y", packed["y"][1:]), "are not what"),
    "fewer bins": (lambda packed: replace(packed, "x", packed["x"][:, :, 1:]), "are not what"),
    "fewer bins in y": (lambda packed: replace(packed, "y", packed["y"][:, 1:]), "are not what"),
    "flat windows": (lambda packed: replace(packed, "x", packed["x"][:, 0]), "are not what"),
    "no first rows": (lambda packed: packed.pop("first_rows"), "is damaged"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_data_h5_that_is_not_what_packing_writes(workspace, capsys, kind):
    change, message = UNFIT[kind]
    with h5py.File(workspace / FOLDER / "data.h5", "r+") as packed:
        change(packed)
    expect_refusal(capsys, scale(workspace), workspace / FOLDER / "data.h5", message)


@pytest.mark.parametrize("ends", ["later", "killed"])
def test_a_data_h5_that_another_program_writes_to(workspace, capsys, ends):
    # HDF5 locks a file; in its newer formats, a writer that is killed leaves a mark in it.
    code = "import h5py, os, sys; f = h5py.File(sys.argv[1], 'a', libver='latest'); "
    code += "f.create_dataset('a', (1,)); f.flush(); print('open', flush=True); "
    code += "sys.stdin.read(); os._exit(1)"
    path = workspace / FOLDER / "data.h5"
    path.unlink()
    command = [sys.executable, "-c", code, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == b"open\n"
        if ends == "killed":
            other.kill()
            other.wait()
        status = scale(workspace)
        other.stdin.close()
    expect_refusal(capsys, status, f"{path} is in use", "run this step again")


def test_a_data_h5_that_may_not_be_read(workspace, capsys, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(h5py, "File", refuse)  # the one who runs the tests may read every file
    expect_refusal(capsys, scale(workspace), "data.h5 cannot be read", "permission")


def test_settings_of_another_transform_are_refused(prepared, capsys, monkeypatch):
    monkeypatch.setitem(packed_data.stft_settings, "n_overlap", 128)
    expect_refusal(capsys, scale(prepared), "data.h5: expected n_overlap 128, found 256")
    expect_refusal(capsys, train(prepared), "n_overlap")


def test_features_of_another_snr_are_refused(workspace, capsys):
    features = workspace / "features" / "spectrogram" / "train"
    shutil.copytree(features / "0db", features / "5db")
    expect_refusal(capsys, pack(workspace, "train", 5), "expected snr_db 5.0, found 0.0")


# --- The scaler -------------------------------------------------------------------------------


def test_the_scaler_is_that_of_all_rows_at_all_snrs(workspace, monkeypatch):
    monkeypatch.setattr(packed_data, "BLOCK_ROWS", 100)  # no multiple of the rows
    flags = ("--recipe", "default", "--n_concat", 3)
    assert calculate(workspace, snr=20) == pack(workspace, "train", 0, *flags) == 0
    assert pack(workspace, "train", 20, *flags, "--n_hop", 1) == 0  # three times as many rows
    assert compute(workspace, 0, 20, n_jobs=3) == 0

    files = [packed_path(str(workspace), "train", snr) for snr in (0, 20)]
    with h5py.File(files[0]) as one, h5py.File(files[1]) as two:
        assert len(two["x"]) > 2.9 * len(one["x"])
        x = np.concatenate([one["x"], two["x"]]).astype(np.float64)
        scaler = read_scaler(str(workspace), [0, 20], [one, two])
    frames, statistics = x[:, :3].reshape(-1, 257), x[:, 3:]
    # Sums in double precision, in another order.
    close = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(scaler.mean, frames.mean(axis=0), **close)
    np.testing.assert_allclose(scaler.std, frames.std(axis=0), **close)
    np.testing.assert_allclose(scaler.statistics_mean, statistics.mean(axis=0), **close)
    np.testing.assert_allclose(scaler.statistics_std, statistics.std(axis=0), **close)
    assert scaler.statistics_mean.shape == (4, 257)

    assert pack(workspace, "train", 20, *flags) == 0
    with (
        h5py.File(files[0]) as one,
        h5py.File(files[1]) as two,
        pytest.raises(InputError, match="of other data"),
    ):
        read_scaler(str(workspace), [0, 20], [one, two])


def test_a_bin_that_never_changes_has_a_deviation_of_one(workspace):
    with h5py.File(workspace / FOLDER / "data.h5", "r+") as packed:
        packed["x"][:, :, 5] = -3.25
    assert scale(workspace) == 0
    with np.load(workspace / FOLDER / "scaler.npz") as scaler:
        assert scaler["mean"][5] == -3.25 and scaler["std"][5] == 1 and scaler["std"][4] != 1


@pytest.mark.parametrize("flags", [("--n_concat", 5), ("--recipe", "xu2015", "--n_concat", 7)])
def test_one_scaler_needs_one_recipe(workspace, capsys, flags):
    assert calculate(workspace, snr=5) == pack(workspace, "train", 5, *flags) == 0
    capsys.readouterr()
    expect_refusal(capsys, compute(workspace, 0, 5), "5db/data.h5 has", "0db/data.h5 has")
    assert not os.path.exists(scaler_path(str(workspace), "train", [0, 5]))


def test_a_scaler_of_other_data(workspace, capsys):
    create(workspace, "train", None, None, "--magnification", 1)
    assert calculate(workspace, snr=0) == pack(workspace) == 0
    capsys.readouterr()
    expect_refusal(capsys, train(workspace, "--n_iterations", 1), "scaler.npz is of other data")


@pytest.mark.parametrize("name", ["mean", "std", "statistics_mean", "statistics_std"])
@pytest.mark.parametrize("fault", ["too long", "not a number", "text", "missing"])
def test_a_scaler_that_does_not_fit(workspace, capsys, name, fault):
    assert pack(workspace, "train", 0, "--recipe", "xu2015") == scale(workspace) == 0
    path = workspace / FOLDER / "scaler.npz"
    with np.load(path) as arrays:
        content = dict(arrays)
    if fault == "too long":
        content[name] = np.concatenate([content[name], content[name][..., :1]], axis=-1)
    elif fault == "not a number":
        content[name].flat[3] = np.nan
    elif fault == "text":
        content[name] = np.full(content[name].shape, "a")
    else:
        del content[name]
    np.savez(path, **content)
    capsys.readouterr()
    with open_packed_file(str(workspace), "train", 0) as packed, pytest.raises(InputError) as error:
        read_scaler(str(workspace), [0], [packed])
    assert name in str(error.value) and str(path) in str(error.value)


def test_a_scaler_of_the_wrong_length_is_one_line(workspace, capsys):
    path = workspace / FOLDER / "scaler.npz"
    with np.load(path) as arrays:
        content = {**arrays, "mean": arrays["mean"][:129]}
    np.savez(path, **content)
    expected = ("scaler.npz: expected mean to be", "(257,)", "(129,)", "run compute_scaler")
    expect_refusal(capsys, train(workspace, "--n_iterations", 1), *expected)
    assert not (workspace / "models").exists()
