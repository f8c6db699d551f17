"""Exported networks with memory that cannot be used: damaged, of another kind or an old version."""

import contextlib

import numpy as np
import pytest
from conftest import run
from small_models import make_memory_model, make_model

from config import stft_settings
from speech_enhancement.errors import InputError
from speech_enhancement.network.export import export
from speech_enhancement.network.onnx_network import load_onnx


@pytest.fixture(scope="module")
def onnx_path(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    path = make_memory_model(tmp_path_factory.mktemp("onnx") / "m.keras")
    export(str(path), str(path.with_suffix(".onnx")), "onnx")
    return path.with_suffix(".onnx")


def test_an_onnx_file_of_another_transform_is_named(onnx_path, monkeypatch):
    monkeypatch.setitem(stft_settings, "n_overlap", 384)
    with pytest.raises(InputError, match="was trained with n_overlap 256, "):
        load_onnx(str(onnx_path))


def test_an_onnx_file_for_one_look_is_to_be_exported_again(onnx_path, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(onnx_path))
    kept = [entry for entry in model.metadata_props if entry.key != "n_looks"]
    assert len(kept) == len(model.metadata_props) - 1
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, str(tmp_path / "old.onnx"))
    with pytest.raises(InputError, match=r"old\.onnx: expected a network for 2 looks .* again"):
        load_onnx(str(tmp_path / "old.onnx"))


def test_an_onnx_file_damaged_anywhere_is_refused_or_runs(tmp_path, onnx_path):
    content = onnx_path.read_bytes()
    for place in np.linspace(0, len(content) - 9, 150).astype(int):
        damaged = content[:place] + bytes(255 - byte for byte in content[place : place + 8])
        (tmp_path / "m.onnx").write_bytes(damaged + content[place + 8 :])
        with contextlib.suppress(InputError):  # bytes of weights do not show
            load_onnx(str(tmp_path / "m.onnx"))


def test_an_onnx_file_that_cannot_be_used_is_named(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    (tmp_path / "damaged.onnx").write_bytes(b"no graph")
    export(str(make_model(tmp_path / "m.keras")), str(tmp_path / "window.onnx"), "onnx")
    for name, message in (
        ("damaged.onnx", "is damaged or not exported by this program"),
        ("window.onnx", "is of a recipe without memory"),
        ("no.onnx", "no.onnx is missing"),
    ):
        flags = ("enhance", "--live", "-", "--model", tmp_path / name)
        assert run("main_dnn", *flags) == 2
        assert message in capsys.readouterr().err
