"""Cleaning in bfloat16: close to float32, and refused or left where it cannot be."""

import numpy as np
import pytest
import soundfile
from conftest import run
from small_models import make_model, noise

from speech_enhancement.data.audio_files import read_audio

HAS_BFLOAT16 = "speech_enhancement.network.keras_backend.has_bfloat16"


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(100_000), 16000, subtype="FLOAT")
    return path


def cleaned(recording, name, *flags):
    """Return what `enhance` makes of a recording."""
    folder = recording.parent / name
    assert run("main_dnn", "enhance", recording, "--output_dir", folder, *flags) == 0
    return read_audio(str(folder / recording.name))


# With look-ahead, without, and with two outputs of which one is a log magnitude.
@pytest.mark.parametrize("recipes", [("default", "live"), ("xu2015_multi",)])
def test_bfloat16_is_close_to_float32(recipes, recording, tmp_path, monkeypatch):
    monkeypatch.setattr(HAS_BFLOAT16, lambda: True)
    models = [make_model(tmp_path / f"{name}.keras", name) for name in recipes]
    flags = [part for model in models for part in ("--model", model)]
    exact = cleaned(recording, "exact", *flags)
    np.testing.assert_array_equal(cleaned(recording, "32", *flags, "--precision", "float32"), exact)
    rounded = cleaned(recording, "16", *flags, "--precision", "bfloat16")
    error_db = 10 * np.log10(np.sum((rounded - exact) ** 2) / np.sum(exact**2))
    assert -80 < error_db < -35  # 8 bits in each layer; -150 would be float32


def test_a_processor_without_bfloat16_cleans_in_float32(recording, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(HAS_BFLOAT16, lambda: False)
    flags = ("--model", make_model(tmp_path / "m.keras"))
    exact = cleaned(recording, "exact", *flags)
    assert "bfloat16" not in capsys.readouterr().err
    np.testing.assert_array_equal(
        cleaned(recording, "16", *flags, "--precision", "bfloat16"), exact
    )
    assert "no bfloat16: cleaning in float32" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--output_dir", "out", "--model", "m.onnx"), "m.onnx: expected a .keras file"),
        (("--live",), "--precision goes without --live"),
    ],
)
def test_bfloat16_where_it_cannot_be_is_one_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    inputs = ("-",) if "--live" in flags else ("a.wav",)
    assert run("main_dnn", "enhance", *inputs, *flags, "--precision", "bfloat16") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
