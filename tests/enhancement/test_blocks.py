"""Models that decide together: their gain is the geometric mean, on every road."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.signal
import soundfile
from conftest import ROOT, run
from small_models import make_memory_model, make_model, noise

from config import n_overlap, n_window
from speech_enhancement.data.audio_files import read_audio
from speech_enhancement.enhancement.blocks import enhance_with_all, enhanced_blocks, follow_level
from speech_enhancement.enhancement.enhance_audio import WaveStream, enhance_audio
from speech_enhancement.enhancement.turns import PRIMING_FRAMES, geometric_mean
from speech_enhancement.features import N_HOP, pad_to_whole_frames, stft, window_scale
from speech_enhancement.network.network import load_model
from speech_enhancement.network.running import estimate_magnitude

AUDIO = noise(130_000).astype(np.float32) * np.linspace(1, 0.1, 130_000, dtype=np.float32)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Models of four kinds: a window of 5 s, a memory, both in one, the peak of the recording."""
    folder = tmp_path_factory.mktemp("models")
    makers = {
        "window": make_model,
        "memory": make_memory_model,
        "wide": lambda path: make_memory_model(path, 9, (20, 50)),
        "peak": lambda path: make_model(path, "xu2015"),
    }
    return {name: str(make(folder / f"{name}.keras")) for name, make in makers.items()}


@pytest.fixture(scope="module")
def models(paths):
    return {name: load_model(path) for name, path in paths.items()}


def whole_gain(model, settings, audio):
    """Return the gain of each bin of a recording as a whole."""
    spectrum = stft(pad_to_whole_frames(audio, n_window, n_overlap), n_window, n_overlap)
    return estimate_magnitude(model, settings, spectrum) / np.abs(spectrum), spectrum


def gain_in_turn(number, model, settings, audio):
    """Return the gain of the model of this number among several, in its turn.

    Those with memory have heard the first second backwards; the second, fourth, ... look at frames
    that begin half a hop earlier.
    """
    n_priming = PRIMING_FRAMES if settings.recipe.network.kind == "memory" else 0
    n_before = n_priming * N_HOP + number % 2 * N_HOP // 2
    gain, spectrum = whole_gain(
        model, settings, np.concatenate([audio[n_before:0:-1], audio] if n_before else [audio])
    )
    return gain[n_priming:], spectrum[n_priming:]


def weighted_wave(spectrum):
    """Return the wave that scipy makes of weighted frames."""
    window = np.hamming(n_window)
    scaled = spectrum.T * window_scale(n_window) / window.sum()
    return scipy.signal.istft(scaled, 1, window, n_window, n_overlap, boundary=False)[1]


def joint(pair, audio=AUDIO, limit=0.0):
    """Return what two models make of a recording, and the gains of the first turn's frames."""
    (gain, spectrum), (later, later_spectrum) = (
        gain_in_turn(number, *model, audio) for number, model in enumerate(pair)
    )
    waves, gains = [], []
    for own, others, of_own, shift in (
        (gain, later, spectrum, 0),
        (later, gain, later_spectrum, -1),
    ):
        joined = np.empty_like(own)
        for t in range(len(own)):
            first, second = (others[min(max(t + shift + i, 0), len(others) - 1)] for i in (0, 1))
            joined[t] = np.sqrt(own[t]) * (first * second) ** 0.25
        n_samples = len(audio) - N_HOP // 2 * shift
        gains.append(np.maximum(joined, limit))
        wave = weighted_wave(gains[-1] * of_own)[:n_samples]
        waves.append(wave[-N_HOP // 2 * shift :])
    return np.mean(waves, axis=0), gains[0]


# After 8400 samples the earlier look has 32 frames, which are ready together, and the other none.
@pytest.mark.parametrize(
    "sizes", [(30_000,), (1, 399, 7001, 22_599), (300,) * 100, (8400, 8192, 13_408)]
)
def test_a_live_model_alone_looks_twice(models, sizes):
    audio, waves = AUDIO[:30_000], []
    for n_before in (0, N_HOP // 2):  # the second look begins with the mirrored recording
        before = audio[n_before:0:-1] if n_before else audio[:0]
        gain, spectrum = whole_gain(*models["memory"], np.concatenate([before, audio]))
        waves.append(weighted_wave(gain * spectrum)[n_before:][: len(audio)])
    expected = np.mean(waves, axis=0)
    assert np.std(waves[0] - waves[1]) > 1e-4  # of waves of order 0.1: the looks differ
    blocks = np.split(audio[:, None], np.cumsum(sizes)[:-1])
    parts = [part for part, _ in enhanced_blocks([models["memory"]], blocks, 1)]
    # Single precision, in other orders.
    np.testing.assert_allclose(np.concatenate(parts)[: len(audio), 0], expected, atol=1e-6)


@pytest.mark.parametrize("n_samples", [0, 1, 128, 129, 384, 385, 700])
def test_a_live_model_cleans_recordings_of_any_length(models, n_samples):
    found = enhance_with_all([models["memory"]], AUDIO[:n_samples])
    assert len(found) == n_samples and np.isfinite(found).all()


def test_the_mean_of_gains_that_are_huge_in_silence_is_finite():
    gains = np.full((3, 2, 257), 1e13, np.float32)
    np.testing.assert_allclose(geometric_mean(gains), gains[0], rtol=1e-6)  # single precision
    assert geometric_mean(gains).dtype == np.float32


def test_the_geometric_mean_of_gains():
    gains = [np.array([0.1, 1, 0]), np.array([0.4, 1, 1]), np.array([0.2, 1, 1])]
    np.testing.assert_allclose(geometric_mean(gains), [0.2, 1, 0], atol=1e-12)
    assert geometric_mean(gains[:1]) is gains[0]


@pytest.mark.parametrize("sizes", [(130_000,), (20_000, 90_000, 20_000), (7000,) * 19])
@pytest.mark.parametrize("names", [("window", "memory"), ("wide", "memory"), ("window", "wide")])
def test_two_models_multiply_each_bin_by_the_mean_of_their_gains(models, names, sizes):
    pair = [models[name] for name in names]
    gains = [gain_in_turn(0, *model, AUDIO)[0] for model in pair]
    assert np.std(np.log(gains[0] / gains[1])) > 0.1  # they are not alike
    expected, first_gains = joint(pair)
    blocks = np.split(AUDIO[:, None], np.cumsum(sizes)[:-1])
    found, top_gains = map(np.concatenate, zip(*enhanced_blocks(pair, blocks, 1), strict=True))
    # Single precision in other orders, of waves of order 0.1 and gains below 1.
    top = np.minimum(first_gains[:, -33:-1].mean(axis=1), 1)
    np.testing.assert_allclose(top_gains[:, 0], top, atol=1e-5)
    np.testing.assert_allclose(found[: len(AUDIO), 0], expected, atol=1e-6)
    np.testing.assert_allclose(enhance_with_all(pair, AUDIO), expected, atol=1e-6)


@pytest.mark.parametrize("n_samples", [0, 1, 128, 129, 700, PRIMING_FRAMES * N_HOP, 30_000])
@pytest.mark.parametrize("first", ["window", "wide"])
def test_recordings_shorter_than_what_comes_before_them(models, first, n_samples):
    pair, audio = [models[first], models["memory"]], AUDIO[:n_samples]
    found = enhance_with_all(pair, audio)
    assert len(found) == n_samples and np.isfinite(found).all()
    blocks = [audio[start : start + 300, None] for start in range(0, n_samples, 300)]
    parts = [part for part, _ in enhanced_blocks(pair, blocks, 1)]
    np.testing.assert_allclose(np.concatenate(parts)[:n_samples, 0], found, atol=1e-6)


def test_weighted_frames_give_the_wave_with_the_nearest_spectrogram():
    spectrum = stft(AUDIO[:5120], n_window, n_overlap)
    spectrum *= np.random.default_rng(4).uniform(0, 1, spectrum.shape)  # no frame fits the next

    def error(wave):
        return np.sum(np.fft.irfft(stft(wave, n_window, n_overlap) - spectrum) ** 2)

    plain, best = (WaveStream(weighted).add(spectrum, is_last=True) for weighted in (False, True))
    assert error(best) < 0.99 * error(plain)
    for seed in range(5):
        step = 1e-4 * np.random.default_rng(seed).standard_normal(len(best))
        assert error(best) < min(error(best + step), error(best - step))


def test_one_model_is_itself(models):
    for model in (models[name] for name in ("window", "wide", "peak")):
        expected = enhance_audio(*model, AUDIO)
        np.testing.assert_allclose(enhance_with_all([model], AUDIO), expected, atol=1e-5)


def test_the_limit_is_one_of_what_they_decide_together(models):
    pair = [models["window"], models["memory"]]
    limit = float(np.median(gain_in_turn(0, *pair[0], AUDIO)[0]))
    expected, _ = joint(pair, limit=limit)
    parts = [part for part, _ in enhanced_blocks(pair, [AUDIO[:, None]], 1, limit)]
    np.testing.assert_allclose(np.concatenate(parts)[: len(AUDIO), 0], expected, atol=1e-6)


def test_the_peak_matters_if_it_does_to_one(models):
    assert follow_level([models["window"], models["memory"]])
    assert not follow_level([models["memory"], models["peak"]])


def test_files_and_pipes_with_several_models(paths, models, tmp_path):
    soundfile.write(tmp_path / "a.wav", AUDIO, 16000, subtype="FLOAT")
    flags = ["--model", paths["window"], "--model", paths["memory"]]
    assert run("main_dnn", "enhance", tmp_path / "a.wav", "--output_dir", tmp_path, *flags) == 2
    output = tmp_path / "out"
    assert run("main_dnn", "enhance", tmp_path / "a.wav", "--output_dir", output, *flags) == 0
    expected = enhance_with_all([models["window"], models["memory"]], AUDIO)
    np.testing.assert_allclose(read_audio(str(output / "a.wav")), expected, atol=1e-6)
    command = [sys.executable, ROOT / "main_dnn.py", "enhance", "-", *flags]
    done = subprocess.run(
        command, input=(tmp_path / "a.wav").read_bytes(), capture_output=True, check=True
    )
    (tmp_path / "pipe.wav").write_bytes(done.stdout)
    np.testing.assert_allclose(read_audio(str(tmp_path / "pipe.wav")), expected, atol=1e-6)


def test_files_are_cleaned_by_both_models_that_ship(tmp_path):
    soundfile.write(tmp_path / "a.wav", AUDIO, 16000, subtype="FLOAT")
    assert run("main_dnn", "enhance", tmp_path / "a.wav", "--output_dir", tmp_path / "out") == 0
    names = ("model.keras", "ahead.keras")
    shipped = [load_model(str(ROOT / "pretrained" / name)) for name in names]
    expected = enhance_with_all(shipped, AUDIO)
    np.testing.assert_allclose(read_audio(str(tmp_path / "out/a.wav")), expected, atol=1e-6)


def test_the_readmes_lines_give_what_enhance_gives(tmp_path, monkeypatch):
    for name in ("pretrained", "mini_data"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    exec(text.split("```python\n")[1].split("```")[0], {})
    wave = "mini_data/test_noise/vinyl.wav"
    assert run("main_dnn", "enhance", wave, "--output_dir", "files") == 0
    by_lines, by_command = read_audio("workspace/clean.wav"), read_audio("files/vinyl.wav")
    # The file has the 16 bits of its input.
    np.testing.assert_allclose(by_lines, by_command, rtol=0, atol=2 / 32768)


def test_live_takes_one_model(paths, capsys):
    flags = ["--model", paths["memory"], "--model", paths["memory"]]
    assert run("main_dnn", "enhance", "--live", *flags) == 2
    assert "--live takes one --model, found 2" in capsys.readouterr().err
