"""Exported models output what the ones they were made from do, and need nothing else."""

import dataclasses
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import onnxruntime
import pytest
from conftest import MINI, OTHERS, ROOT, environment, files_below

from config import log_epsilon, n_overlap, n_window, sample_rate
from speech_enhancement.data.audio_files import read_audio, write_wave
from speech_enhancement.enhancement.enhance_audio import enhance_audio
from speech_enhancement.errors import InputError, MissingFileError
from speech_enhancement.network.architectures import build_network
from speech_enhancement.network.export import ACTIVATIONS, export, write_float16, write_onnx
from speech_enhancement.network.network import Settings, load_model, save_model
from speech_enhancement.network.running import outputs
from speech_enhancement.network_input import Scaler
from speech_enhancement.recipe import load_recipe, recipe_from_dict

N_FREQ = n_window // 2 + 1
RECIPES = ("default", "original", "xu2015", "xu2015_multi")


def random_model(recipe="default", n_freq=N_FREQ, **network):
    """Make a network with random weights and settings with a random scaler; small by default."""
    chosen = load_recipe(recipe)
    chosen = dataclasses.replace(
        chosen, network=dataclasses.replace(chosen.network, **{"hidden_units": 16, **network})
    )
    rng, shape = np.random.default_rng(1), (chosen.input.n_statistics, n_freq)
    scaler = Scaler(
        rng.normal(-1, 1, n_freq),
        rng.uniform(1, 2, n_freq),
        rng.normal(-2, 1, shape),
        np.full(shape, 1.5),
    )
    settings = Settings(
        sample_rate, n_window, n_overlap, log_epsilon, "0db", 7, chosen, scaler, gv_beta=1.2
    )
    return build_network(chosen, n_freq, seed=2), settings


def random_input(settings, n_frames=40):
    """Return frames and statistics as network_input makes them, and the frames padded.

    Padded frames begin and end with copies of the first and the last one as their neighbours.
    """
    rng, n_side = np.random.default_rng(3), settings.recipe.input.n_concat // 2
    frames = rng.normal(-1, 2, (n_frames, len(settings.scaler.mean))).astype(np.float32)
    shape = settings.scaler.statistics_mean.shape
    statistics = (
        rng.normal(-2, 2, (-(-n_frames // 32), *shape))
        .astype(np.float32)
        .repeat(32, axis=0)[:n_frames]
    )
    return frames, statistics, np.pad(frames, ((n_side, n_side), (0, 0)), mode="edge")


def run_onnx(path, padded, statistics):
    """Run an exported model on the inputs that it has; return its outputs by name."""
    session = onnxruntime.InferenceSession(path)
    given = {"frames": padded, "statistics": statistics}
    outputs = session.run(None, {value.name: given[value.name] for value in session.get_inputs()})
    return dict(zip([value.name for value in session.get_outputs()], outputs, strict=True))


def saved(path, model, settings):
    save_model(str(path), model, settings)
    return str(path)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """The file of a small model of the default recipe."""
    return saved(tmp_path_factory.mktemp("model") / "small.keras", *random_model())


# --- ONNX -------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_onnxruntime_gives_what_keras_does(recipe, tmp_path):
    model, settings = random_model(recipe)
    path = str(tmp_path / "small.onnx")
    export(saved(tmp_path / "small.keras", model, settings), path, "onnx")
    for n_frames in (1, 40):
        frames, statistics, padded = random_input(settings, n_frames)
        output, exported = (
            outputs(model, settings, frames, statistics),
            run_onnx(path, padded, statistics),
        )
        expected = {}
        if recipe != "default":
            estimate = output[:, :N_FREQ]
            expected["log_magnitude"] = (
                settings.gv_beta * estimate * settings.scaler.std + settings.scaler.mean
            )
        if recipe in ("default", "xu2015_multi"):
            expected["mask"] = output[:, -N_FREQ:]
        assert list(exported) == list(expected)
        for name in expected:
            # Single precision sums of up to 3855 terms of order 1, through four layers.
            np.testing.assert_allclose(exported[name], expected[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "relu"])
def test_each_known_activation_is_keras(activation, tmp_path):
    model, settings = random_model(n_freq=9, activation=activation)
    frames, statistics, padded = random_input(settings)
    write_onnx(str(tmp_path / "small.onnx"), model, settings)
    found = run_onnx(str(tmp_path / "small.onnx"), padded, statistics)["mask"]
    # Single precision, as above.
    np.testing.assert_allclose(
        found, outputs(model, settings, frames, statistics), rtol=0, atol=1e-4
    )


def test_an_onnx_file_describes_itself(tmp_path):
    model, settings = random_model("xu2015_multi")
    write_onnx(str(tmp_path / "small.onnx"), model, settings)
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"))
    shapes = {value.name: value.shape for value in [*session.get_inputs(), *session.get_outputs()]}
    shape = ["n_frames", N_FREQ]
    inputs = {"frames": ["n_frames + 10", N_FREQ], "statistics": ["n_frames", 1, N_FREQ]}
    assert shapes == {**inputs, "log_magnitude": shape, "mask": shape}
    texts = session.get_modelmeta().custom_metadata_map
    # No Infinity and NaN, which only Python reads.
    about = {key: json.loads(text, parse_constant=pytest.fail) for key, text in texts.items()}
    assert recipe_from_dict(about["recipe"], "small.onnx") == settings.recipe
    for name in (
        "sample_rate",
        "n_window",
        "n_overlap",
        "log_epsilon",
        "snr",
        "iteration",
        "gv_beta",
    ):
        assert about[name] == getattr(settings, name)
    for name, values in about["scaler"].items():
        np.testing.assert_array_equal(values, getattr(settings.scaler, name))


@pytest.mark.parametrize("backend", OTHERS)
def test_each_backend_exports_the_same_bytes(backend, model_file, tmp_path):
    export(model_file, str(tmp_path / "here.onnx"), "onnx")
    there = str(tmp_path / "there.onnx")
    code = "from speech_enhancement.network.export import export; "
    code += f"export({model_file!r}, {there!r}, 'onnx')"
    options = {"cwd": ROOT, "env": environment(backend), "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], check=False, **options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there.onnx").read_bytes() == (tmp_path / "here.onnx").read_bytes()


@pytest.mark.parametrize(
    "n_repeats", [1, 4]
)  # 3 s have one estimate of the noise; 12 s have several
def test_the_example_enhances_like_the_pipeline(n_repeats, tmp_path):
    model, settings = random_model()
    write_onnx(str(tmp_path / "small.onnx"), model, settings)
    mixed = np.tile(read_audio(str(MINI / "test_speech" / "ru_ivrvoice_nobody.wav")), n_repeats)
    mixed = mixed * np.linspace(0.1, 1, len(mixed))  # the estimates differ
    mixed[len(mixed) // 2 :][:16000] = 0
    write_wave(str(tmp_path / "noisy.wav"), mixed)
    mixed = read_audio(str(tmp_path / "noisy.wav"))
    files = [str(tmp_path / name) for name in ("small.onnx", "noisy.wav", "enhanced.wav")]
    subprocess.run(
        [sys.executable, ROOT / "docs" / "onnx_example.py", *files], cwd=tmp_path, check=True
    )
    expected = enhance_audio(model, settings, mixed)
    # Masks differ by 1e-6, the spectra of the pipeline are in single precision.
    difference = np.max(np.abs(read_audio(files[2]) - expected)) / np.max(np.abs(expected))
    assert len(expected) == len(mixed) and difference < 1e-4


# --- float16 ----------------------------------------------------------------------------------


def test_weights_of_16_bits_take_half_the_space_and_answer_alike(tmp_path):
    model, settings = random_model(hidden_units=64)
    assert model.count_params() > 1e5
    path, smaller = (
        saved(tmp_path / "model.keras", model, settings),
        str(tmp_path / "smaller.keras"),
    )
    export(path, smaller, "float16")
    assert os.path.getsize(smaller) < 0.62 * os.path.getsize(path)
    found, its_settings = load_model(smaller)
    assert its_settings.recipe == settings.recipe
    for ours, its in zip(model.get_weights(), found.get_weights(), strict=True):
        assert its.dtype == np.float32
        np.testing.assert_array_equal(its, ours.astype(np.float16))
    frames, statistics, _ = random_input(settings)
    expected = outputs(model, settings, frames, statistics)
    # Relative roundings of 2^-11 in each of the sums, through four layers; masks are of order 1.
    np.testing.assert_allclose(
        outputs(found, its_settings, frames, statistics), expected, rtol=0, atol=1e-2
    )


def test_a_smaller_model_is_exported_again_without_a_loss(model_file, tmp_path):
    once, twice, converted = (
        str(tmp_path / name) for name in ("once.keras", "twice.keras", "converted.onnx")
    )
    export(model_file, once, "float16")
    export(once, twice, "float16")
    export(once, converted, "onnx")
    for one, two in zip(
        load_model(once)[0].get_weights(), load_model(twice)[0].get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    with zipfile.ZipFile(twice) as archive:
        assert len(set(archive.namelist())) == len(archive.namelist()) == 4


@pytest.mark.parametrize("value", [7e4, np.nan])
def test_weights_beyond_16_bits_are_refused(value, tmp_path):
    model, settings = random_model(n_freq=9)
    weights = model.get_weights()
    weights[0][0, 0] = value
    model.set_weights(weights)
    with pytest.raises(
        InputError, match=rf"a weight of ({value:g}|nan), 16-bit floats end at 65504; .*onnx"
    ):
        write_float16(str(tmp_path / "model.keras"), model, settings)
    assert not list(tmp_path.iterdir())


# --- What can be wrong --------------------------------------------------------------------------


def test_the_line_that_is_printed_says_what_was_replaced(model_file, tmp_path, capsys):
    path = str(tmp_path / "new" / "model.onnx")  # folders are made
    export(model_file, path, "onnx")
    export(model_file, path, "onnx")
    lines = capsys.readouterr().out.splitlines()
    line = f"{model_file}, {load_model(model_file)[0].count_params()} weights -> {path}, "
    line += f"{os.path.getsize(path) / 1e6:.2f} MB"
    assert lines == [line, f"{line}, in place of an older file"]


def test_an_activation_without_a_counterpart_is_refused(tmp_path):
    path = saved(tmp_path / "model.keras", *random_model(activation="mish"))
    with pytest.raises(
        InputError, match=r"layer activation.*: mish cannot be exported to onnx, linear, relu"
    ):
        export(path, str(tmp_path / "model.onnx"), "onnx")
    assert list(files_below(tmp_path)) == ["model.keras"]


def test_wrong_models_and_outputs_are_refused_in_one_line(model_file, tmp_path, monkeypatch):
    strange = tmp_path / "strange.keras"
    strange.write_bytes(b"no zip")
    output = str(tmp_path / "model.onnx")
    with pytest.raises(MissingFileError, match=r"none\.keras is missing"):
        export(str(tmp_path / "none.keras"), output, "onnx")
    with pytest.raises(InputError, match=r"strange\.keras is damaged or not a model"):
        export(str(strange), output, "onnx")
    with pytest.raises(
        InputError, match=r"expected the --output of --format float16 to end in \.keras, found"
    ):
        export(model_file, output, "float16")
    with pytest.raises(InputError, match="is the --model itself"):
        export(model_file, model_file, "float16")
    for name in ("onnx", "keras"):
        with pytest.raises(InputError, match="a file is where a folder must be"):
            export(
                model_file,
                str(strange / f"model.{name}"),
                {"onnx": "onnx", "keras": "float16"}[name],
            )
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"needs the package onnx .*; pip install onnx"):
        export(model_file, output, "onnx")
    assert list(files_below(tmp_path)) == ["strange.keras"]


def test_readme_shows_the_example_that_is_tested():
    example = (ROOT / "docs" / "onnx_example.py").read_text(encoding="utf-8")
    assert example[example.index("import json") :].rstrip() in (
        ROOT / "docs" / "exported_models.md"
    ).read_text(encoding="utf-8")
