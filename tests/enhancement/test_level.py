"""One level on every road: packed, on the fly, whole recordings, files, pipes; for every recipe."""

import dataclasses
import json
import signal
import sys

import numpy as np
import pytest
import soundfile
from conftest import MINI, calculate, create, pack, run, write_csv
from test_recipes import SHIPPED, small

from speech_enhancement.data.audio_files import AudioCache, read_audio
from speech_enhancement.data.mixtures import read_mixtures
from speech_enhancement.data.packed_data import open_packed_file
from speech_enhancement.enhancement.enhance_audio import FeatureStream, enhance_audio
from speech_enhancement.features import level_gain, mix_at_snr, peak, root_mean_square
from speech_enhancement.network.architectures import build_network
from speech_enhancement.network.network import Settings, load_model, save_model
from speech_enhancement.network_input import Scaler, windows_with_statistics
from speech_enhancement.recipe import Training, TrainingNoise
from speech_enhancement.training.on_the_fly import (
    SEGMENT_FRAMES,
    SEGMENT_SAMPLES,
    MixtureStream,
)
from speech_enhancement.training.training_noise import Recordings
from speech_enhancement.workspace import mixed_audio_path

SNR = 5.0  # dB


def small_file(path, name, **sections):
    """Write a shipped recipe with small layers, and some values replaced, to a TOML file."""
    content = dataclasses.asdict(small(name, **sections))
    sections = (
        f"[{section}]\n"
        + "".join(
            f"{key} = {json.dumps(value).replace('Infinity', 'inf')}\n"
            for key, value in values.items()
        )
        for section, values in content.items()
    )
    path.write_text("".join(sections))
    return path


@pytest.fixture(scope="module")
def five_seconds(tmp_path_factory):
    """A workspace with one mixture of as many samples as a segment that is made on the fly."""
    folder = tmp_path_factory.mktemp("five_seconds")
    for kind, name in (("speech", "en_allison_leader"), ("noise", "water")):
        (folder / kind).mkdir()
        audio = np.resize(read_audio(str(MINI / f"train_{kind}" / f"{name}.wav")), SEGMENT_SAMPLES)
        soundfile.write(folder / kind / "a.wav", audio, 16000, subtype="FLOAT")
    write_csv(folder, [("a.wav", "a.wav", 0, SEGMENT_SAMPLES)])
    assert calculate(folder, "train", folder / "speech", folder / "noise", SNR) == 0
    return folder


@pytest.mark.parametrize("name", SHIPPED)
def test_all_roads_give_the_same_features_and_targets(five_seconds, tmp_path, name):
    recipe_file = small_file(tmp_path / "small.toml", name)
    assert pack(five_seconds, "train", SNR, "--recipe", recipe_file, "--n_hop", 1) == 0
    with open_packed_file(str(five_seconds), "train", SNR) as packed:
        x, y = packed["x"][:], packed["y"][:]
    recipe = dataclasses.replace(
        small(name), training=Training(snr_db=(SNR,), batch_size=16), training_noise=TrainingNoise()
    )
    n_side = (recipe.input.n_concat - 1) // 2

    # Rounding to single precision; bins near 0 in the mixture have the largest in their logarithms.
    def expect_equal(found, expected):
        assert found.shape == expected.shape
        assert np.mean(np.abs(found - expected)) < 1e-5
        assert np.max(np.abs(found - expected)) < 0.05

    waves = [
        Recordings([str(five_seconds / kind / "a.wav")], AudioCache())
        for kind in ("speech", "noise")
    ]
    stream = MixtureStream(*waves, recipe, [0])
    n_rows = recipe.input.n_statistics
    stream.scaler = Scaler(
        np.zeros(257), np.ones(257), np.zeros((n_rows, 257)), np.ones((n_rows, 257))
    )
    block = stream.block(0)
    windows = np.lib.stride_tricks.sliding_window_view(
        block.frames[0], recipe.input.n_concat, axis=0
    )
    expect_equal(windows.transpose(0, 2, 1), x[:, : recipe.input.n_concat])
    expect_equal(block.targets[0], y)
    if n_rows:
        expect_equal(block.statistics[0].reshape(n_rows, 257), x[0, recipe.input.n_concat :])

    mixed = read_audio(
        mixed_audio_path(
            str(five_seconds), "train", SNR, read_mixtures(str(five_seconds), "train")[0].name
        )
    )
    # A window's level is subtracted after 1e-8 was added to magnitudes: quiet bins would differ.
    quiet = np.float32(1 if recipe.input.follows_level else 0.01) * mixed
    for road in (
        FeatureStream(recipe.input, peak(quiet)),
        FeatureStream(recipe.input),
    ):  # a file, a pipe
        parts = [road.add(part) for part in np.array_split(quiet, 7)] + [
            road.add(quiet[:0], is_last=True)
        ]
        statistics = np.concatenate([part.statistics for part in parts])
        kept = [len(part.spectrum) for part in parts]
        assert sum(kept) == SEGMENT_FRAMES
        inner = np.concatenate(
            [part.frames[n_side : n_side + n] for part, n in zip(parts, kept, strict=True)]
        )
        expect_equal(windows_with_statistics(inner, statistics, recipe.input.n_concat, 1), x)


class Recorder:
    """Stands in for a network; keeps what it is given."""

    def __init__(self, n_answers):
        self.frames, self._n_answers = [], n_answers

    def predict_on_batch(self, inputs):
        self.frames.append(inputs[0])
        return np.zeros((len(inputs[0]), 32, self._n_answers))


class RecorderWithMemory(Recorder):
    """Stands in for a network with memory, which has no state."""

    def first_states(self):
        return []

    def step(self, inputs, states):
        self.frames.append(inputs[0])
        return np.zeros((len(inputs[0]), self._n_answers)), states


@pytest.mark.parametrize("name", SHIPPED)
def test_inference_sees_a_quiet_recording_as_it_sees_a_loud_one(name):
    recipe = small(name)
    n_rows = recipe.input.n_statistics
    scaler = Scaler(np.zeros(257), np.ones(257), np.zeros((n_rows, 257)), np.ones((n_rows, 257)))
    settings = Settings(16000, 512, 256, 1e-8, "0db", 1, recipe, scaler)
    audio = read_audio(str(MINI / "test_speech" / "ru_ivrvoice_nobody.wav"))
    n_answers = 514 if recipe.target.output == "log_magnitude_and_mask" else 257
    seen = []
    for gain in (1 / peak(audio), 0.01):
        kind = RecorderWithMemory if recipe.network.kind == "memory" else Recorder
        network = kind(n_answers)
        enhance_audio(network, settings, np.float32(gain) * audio)
        seen.append(np.concatenate(network.frames))
    # Where a window's level is subtracted, 1e-8 is added to magnitudes that are 40 dB smaller.
    assert np.mean(np.abs(seen[0] - seen[1])) < (1e-3 if recipe.input.follows_level else 1e-5)


@pytest.fixture(scope="module", params=SHIPPED)
def model(request, tmp_path_factory):
    """A small model of each recipe, with random weights and a scaler that fits speech."""
    recipe = small(request.param)
    n_rows = recipe.input.n_statistics
    scaler = Scaler(
        np.full(257, -4.0),
        np.full(257, 2.0),
        np.full((n_rows, 257), -4.0),
        np.full((n_rows, 257), 2.0),
    )
    path = str(tmp_path_factory.mktemp("model") / "m.keras")
    save_model(
        path,
        build_network(recipe, 257, 0),
        Settings(16000, 512, 256, 1e-8, "0db", 1, recipe, scaler),
    )
    return path


@pytest.mark.parametrize("rate, n_channels", [(16000, 1), (44100, 2)])
def test_a_recording_40_dB_quieter_gives_the_same_40_dB_quieter(model, tmp_path, rate, n_channels):
    rng = np.random.default_rng(0)
    audio = np.outer(np.repeat(rng.uniform(0, 0.5, 14), rate // 2), rng.uniform(0.1, 1, n_channels))
    audio *= rng.standard_normal(audio.shape) / 4
    for folder, gain in (("loud", 1), ("quiet", 0.01)):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "a.wav", gain * audio, rate, subtype="FLOAT")
        flags = (
            tmp_path / folder / "a.wav",
            "--output_dir",
            tmp_path / folder / "out",
            "--model",
            model,
        )
        assert run("main_dnn", "enhance", *flags) == 0
    loud, quiet = (
        soundfile.read(tmp_path / folder / "out" / "a.wav")[0] for folder in ("loud", "quiet")
    )
    # 0.1 dB of the level everywhere is an error of 1.2 %; the difference is 1e-8 beside quiet bins.
    assert root_mean_square(100 * quiet - loud) < 0.012 * root_mean_square(loud)
    assert root_mean_square(loud) > 0


def piped(model, audio, folder, monkeypatch):
    """Return what `enhance -` makes of a float WAV in this process."""
    soundfile.write(folder / "in.wav", audio, 16000, subtype="FLOAT")
    with (
        open(folder / "in.wav") as source,
        open(folder / "out.wav", "w") as target,
        monkeypatch.context() as patched,
    ):
        patched.setattr(sys, "stdin", source)
        patched.setattr(sys, "stdout", target)
        patched.setattr(signal, "signal", lambda *_: None)  # Ctrl-C still ends the tests
        assert run("main_dnn", "enhance", "-", "--model", model) == 0
    return np.frombuffer((folder / "out.wav").read_bytes()[44:], "<f4")


def test_a_pipe_of_a_model_that_needs_the_peak_says_what_it_cannot_know(
    model, tmp_path, monkeypatch, capsys
):
    rng = np.random.default_rng(1)
    audio = rng.standard_normal(16000 * 8) * np.repeat([0.02, 0.05], 16000 * 4)
    follows_level = load_model(model)[1].recipe.input.follows_level
    outputs = []
    for gain in (1, 0.01):
        outputs.append(piped(model, gain * audio, tmp_path, monkeypatch))
        says_so = "scales a recording by its peak" in capsys.readouterr().err
        assert says_so != follows_level
    assert len(outputs[0]) == len(audio)
    assert root_mean_square(100 * outputs[1] - outputs[0]) < 0.012 * root_mean_square(outputs[0])


@pytest.mark.parametrize("name", SHIPPED)
def test_before_training_the_losses_on_the_fly_and_of_the_same_files_agree(tmp_path, name):
    plain = {}
    if name in ("default", "live"):  # bursts, babble and narrow bands have other losses
        plain["training"] = {"narrow_band": 0.0}
        plain["training_noise"] = dataclasses.asdict(TrainingNoise())
    recipe = small_file(tmp_path / "small.toml", name, **plain)
    assert create(tmp_path, "test") == calculate(tmp_path, "test") == 0
    assert pack(tmp_path, "test", 0, "--recipe", recipe, "--n_hop", 1) == 0
    folders = ("--speech_dir", MINI / "test_speech", "--noise_dir", MINI / "test_noise")
    flags = (
        "--workspace",
        tmp_path,
        "--te_snr",
        0,
        "--tr_snr",
        0,
        "--recipe",
        recipe,
        "--on_the_fly",
        *folders,
    )
    assert run("main_dnn", "train", *flags, "--n_iterations", 1) == 0
    header, first, *_ = (tmp_path / "training_stats" / "0db" / "stats.csv").read_text().splitlines()
    losses = dict(zip(header.split(","), map(float, first.split(",")), strict=True))
    assert losses["iteration"] == 0
    assert losses["tr_loss"] == pytest.approx(losses["te_loss"], rel=0.1)


def test_clean_speech_is_a_mixture_without_noise():
    rng = np.random.default_rng(2)
    speech, noise = rng.standard_normal((2, 1000))
    mixture, scaled, silent, factor, alpha = mix_at_snr(speech, noise, np.inf)
    np.testing.assert_array_equal(mixture, scaled)
    np.testing.assert_allclose(mixture, speech / np.max(np.abs(speech)), rtol=1e-12)  # rounding
    assert not silent.any() and factor == 1 and alpha == level_gain(peak(speech))
