"""A model's file or a scaler that is damaged in one of its parts: one line that names the file."""

import io
import json
import shutil
import tempfile
import zipfile

import numpy as np
import pytest
from conftest import ROOT, train

from speech_enhancement.errors import InputError
from speech_enhancement.network.network import SETTINGS_MEMBER, load_model
from speech_enhancement.workspace import scaler_path

MODEL = ROOT / "pretrained" / "model.keras"
WEIGHTS = "model.weights.h5"


@pytest.fixture(scope="module")
def members():
    with zipfile.ZipFile(MODEL) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return str(path)


def with_settings(members, change):
    """Change the settings in a model's file."""
    settings = json.loads(members[SETTINGS_MEMBER])
    change(settings)
    return {**members, SETTINGS_MEMBER: json.dumps(settings)}


def with_a_weight(members, value):
    """Set a weight of the first layer that has any."""
    import h5py

    file = io.BytesIO(members[WEIGHTS])
    with h5py.File(file, "r+") as hdf5:
        found = []
        hdf5.visititems(lambda name, item: found.append(name) if hasattr(item, "shape") else None)
        kernel = next(hdf5[name] for name in found if hdf5[name].ndim == 2)
        kernel[0, 0] = value
    return {**members, WEIGHTS: file.getvalue()}


DAMAGES = {
    "no HDF5": (lambda old: {**old, WEIGHTS: b"no weights"}, "refused by Keras"),
    "cut": (lambda old: {**old, WEIGHTS: old[WEIGHTS][:100_000]}, "refused by Keras"),
    "overwritten": (
        lambda old: {**old, WEIGHTS: old[WEIGHTS][:96] + bytes(4000) + old[WEIGHTS][4096:]},
        "refused by Keras",
    ),
    "no weights": (
        lambda old: {name: part for name, part in old.items() if name != WEIGHTS},
        "refused by Keras",
    ),
    "config": (lambda old: {**old, "config.json": b"[7]"}, "refused by Keras"),
    "NaN": (lambda old: with_a_weight(old, np.nan), "weights that are NaN or infinite"),
    "infinite": (lambda old: with_a_weight(old, np.inf), "weights that are NaN or infinite"),
    "short scaler": (
        lambda old: with_settings(old, lambda new: new["scaler"]["mean"].pop()),
        r"expected \(257,\) numbers as mean",
    ),
    "scaler of words": (
        lambda old: with_settings(old, lambda new: new["scaler"].update(std=["a"] * 257)),
        "damaged",
    ),
    "scaler without spread": (
        lambda old: with_settings(old, lambda new: new["scaler"]["std"].__setitem__(3, 0)),
        "std of the scaler",
    ),
    "other window": (
        lambda old: with_settings(old, lambda new: new["recipe"]["input"].update(n_concat=3)),
        "expected a network that makes|refused by Keras",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_part_of_a_model_is_looked_at(kind, members, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    damage, words = DAMAGES[kind]
    path = write(tmp_path / "damaged.keras", damage(members))
    with pytest.raises(InputError, match=words) as found:
        load_model(path)
    assert path in str(found.value) and "\n" not in str(found.value)
    assert not list((tmp_path / "temporary").iterdir())


def encrypt(path):
    """Set the flag of encryption in both headers of each member of a zip archive."""
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        place = content.find(signature)
        while place >= 0:
            content[place + flags] |= 1
            place = content.find(signature, place + 4)
    path.write_bytes(content)


def test_an_encrypted_model_is_told_as_that(members, tmp_path):
    path = tmp_path / "m.keras"
    write(path, {SETTINGS_MEMBER: members[SETTINGS_MEMBER]})
    encrypt(path)
    with pytest.raises(InputError, match=r"m\.keras is encrypted"):
        load_model(str(path))


def test_a_full_folder_of_temporary_files_is_not_the_models_fault(monkeypatch):
    import keras

    def fill(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.models, "load_model", fill)
    with pytest.raises(OSError, match="No space"):
        load_model(str(MODEL))


@pytest.mark.parametrize("kind", ["short", "encrypted"])
def test_a_scaler_that_does_not_fit(kind, prepared, tmp_path, capsys):
    workspace = shutil.copytree(prepared, tmp_path / "w")
    path = tmp_path / "w" / scaler_path(str(workspace), "train", [0])
    with np.load(path) as arrays:
        content = dict(arrays)
    if kind == "short":
        content = {**content, "mean": content["mean"][:100]}
    np.savez(path, **content)
    if kind == "encrypted":
        encrypt(path)
    capsys.readouterr()
    assert train(workspace, "--n_iterations", 1) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "scaler.npz" in line and "compute_scaler" in line
    assert not (workspace / "models").exists()
