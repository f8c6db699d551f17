"""Which backend Keras gets, and what is said where it cannot have it."""

import importlib.util
import json
from types import SimpleNamespace

import pytest

from speech_enhancement.errors import InputError
from speech_enhancement.network import keras_backend
from speech_enhancement.network.keras_backend import choose_backend, has_bfloat16


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that pretends what is installed, asked for and in keras.json."""

    def pretend(installed, asked=None, settings=None):
        known = {name: object() for name in installed}
        monkeypatch.setattr(importlib.util, "find_spec", known.get)
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        # Set first, so that what choose_backend sets is undone even where nothing was set before.
        monkeypatch.setenv("KERAS_BACKEND", asked or "")
        if asked is None:
            monkeypatch.delenv("KERAS_BACKEND")
        if settings is not None:
            text = settings if isinstance(settings, str) else json.dumps(settings)
            (tmp_path / "keras.json").write_text(text)

    return pretend


ALL = ("tensorflow", "jax", "torch")


@pytest.mark.parametrize(
    ("installed", "asked", "settings", "chosen"),
    [
        (ALL, None, None, "tensorflow"),
        (("torch", "jax"), None, None, "jax"),
        (("torch",), "", None, "torch"),
        (ALL, "jax", {"backend": "torch"}, "jax"),
        (ALL, None, {"backend": "torch"}, "torch"),
        (("jax",), None, {"backend": "tensorflow", "floatx": "float32", "epsilon": 1e-7}, "jax"),
    ],
)
def test_the_backend_asked_for_or_the_first_that_is_installed(
    machine, installed, asked, settings, chosen
):
    import os

    machine(installed, asked, settings)
    choose_backend()
    assert os.environ["KERAS_BACKEND"] == chosen


@pytest.mark.parametrize(
    ("installed", "asked", "settings", "words"),
    [
        ((), None, None, "found none; run ./setup.sh"),
        (("jax",), "torch", None, "KERAS_BACKEND is torch, .* installed: jax; pip install torch"),
        (("jax",), "tensorflow", None, "KERAS_BACKEND is tensorflow"),
        (ALL, "theano", None, "KERAS_BACKEND is theano, .* correct it"),
        (("jax",), None, {"backend": "torch"}, "keras.json is torch"),
        (ALL, None, {"floatx": "float64"}, "keras.json: expected floatx float32, found float64"),
        (ALL, "jax", {"floatx": "float16"}, "keras.json: expected floatx float32, found float16"),
        (ALL, None, {"epsilon": "small"}, "keras.json: expected a number"),
        (ALL, None, {"image_data_format": 3}, "keras.json: expected image_data_format"),
        (ALL, None, "[1]", "keras.json: expected Keras' settings by name"),
        (ALL, None, '{"floatx": ', "keras.json cannot be read"),
    ],
)
def test_what_cannot_be_is_an_input_error(machine, installed, asked, settings, words):
    machine(installed, asked, settings)
    with pytest.raises(InputError, match=words):
        choose_backend()


X86 = "processor : 0\nflags : fpu sse {}\nprocessor : 1\nflags : fpu\n"
ARM = "processor : 0\nFeatures : fp asimd {}\n"


@pytest.mark.parametrize(
    ("backend", "devices", "processors", "expected"),
    [
        ("tensorflow", ["cpu:0"], X86.format("avx512_bf16"), True),
        ("tensorflow", ["cpu:0"], X86.format("amx_bf16"), True),
        ("tensorflow", ["cpu:0"], ARM.format("bf16"), True),
        ("tensorflow", ["cpu:0"], X86.format("avx512f"), False),
        ("tensorflow", ["cpu:0"], ARM.format(""), False),
        ("tensorflow", ["cpu:0"], "", False),
        ("tensorflow", ["cpu:0"], None, False),
        ("tensorflow", ["gpu:0"], None, True),
        ("jax", ["cpu:0"], X86.format("amx_bf16"), False),
        ("jax", ["cuda:0"], X86.format(""), True),
    ],
)
def test_bfloat16_where_it_is_faster(backend, devices, processors, expected, monkeypatch, tmp_path):
    keras = SimpleNamespace(
        backend=SimpleNamespace(backend=lambda: backend),
        distribution=SimpleNamespace(list_devices=lambda: devices),
    )
    monkeypatch.setattr(keras_backend, "import_keras", lambda: keras)
    monkeypatch.setattr(keras_backend, "PROCESSORS", str(tmp_path / "cpuinfo"))
    if processors is not None:
        (tmp_path / "cpuinfo").write_text(processors)
    assert has_bfloat16() is expected
