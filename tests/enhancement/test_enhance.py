"""Cleaning recordings of any kind: against enhancing as a whole, and by what must come out."""

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile
from conftest import MINI, ROOT, files_below, run
from small_models import make_model, noise
from test_bad_input import small_disk  # noqa: F401 (a fixture)

from config import sample_rate
from speech_enhancement.data.audio_files import list_audio, read_audio
from speech_enhancement.data.mixtures import read_mixtures
from speech_enhancement.enhancement.enhance import SHIPPED_TOGETHER
from speech_enhancement.enhancement.enhance_audio import FeatureStream, enhance_audio
from speech_enhancement.enhancement.recordings import limited
from speech_enhancement.enhancement.sample_rates import TopGain, enhanced_at_rate
from speech_enhancement.evaluation.measures import si_sdr, stoi_scores
from speech_enhancement.network.network import load_model
from speech_enhancement.recipe import load_recipe
from speech_enhancement.workspace import mixed_audio_path

RECORDING = MINI / "test_speech" / list_audio(str(MINI / "test_speech"), "speech")[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "model.keras")


@pytest.fixture(scope="module")
def passing_model(tmp_path_factory):
    """A model whose mask is 1 everywhere: what goes in has to come out."""
    return make_model(tmp_path_factory.mktemp("passing") / "model.keras", bias=50.0)


def enhance(*flags):
    return run("main_dnn", "enhance", *flags)


def in_blocks(signal, n_block):
    return (signal[start : start + n_block] for start in range(0, len(signal), n_block))


# --- Against enhancing as a whole -----------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["default", "original", "xu2015", "xu2015_multi"])
@pytest.mark.parametrize(
    "n_samples, n_block", [(600, 600), (79_960, 7000), (80_300, 65_536), (330_017, 20_011)]
)
def test_blocks_give_what_the_whole_gives(recipe, n_samples, n_block, tmp_path):
    network, settings = load_model(str(make_model(tmp_path / "model.keras", recipe)))
    level = np.repeat(np.random.default_rng(1).uniform(0.1, 1, n_samples // 8000 + 1), 8000)[
        :n_samples
    ]
    audio = (noise(n_samples) * level).astype(np.float32)
    whole = enhance_audio(network, settings, audio)
    blocks = enhanced_at_rate(
        [(network, settings)], in_blocks(audio[:, None], n_block), 16000, 1, 0.0
    )
    parts = np.concatenate(list(blocks))[:, 0]
    # Single precision in another order of frames; waves of order 1, or louder.
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5 * max(1, np.abs(whole).max()))


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_what_passes_comes_back_without_delay_at_any_rate(rate, passing_model):
    network, settings = load_model(str(passing_model))
    signal = noise(3 * rate + 17, 2).astype(np.float32)
    if rate < sample_rate:  # the edge of the resampler's band is lost: a tone inside it is kept
        signal = 0.1 * np.sin(
            2 * np.pi * np.array([440, 1000]) * np.arange(len(signal))[:, None] / rate
        )
    blocks = enhanced_at_rate(
        [(network, settings)], in_blocks(signal.astype(np.float32), 9973), rate, 2, 0.0
    )
    found = np.concatenate(list(blocks))
    assert found.shape == signal.shape
    inner = slice(rate // 20, -rate // 20)  # resampling a tone that begins abruptly rings
    np.testing.assert_allclose(found[inner], signal[inner], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "rate, n_samples", [(44100, 101_672), (24000, 63_107), (48000, 50_001), (8000, 12_345)]
)
def test_as_many_samples_come_out_as_went_in(rate, n_samples, passing_model):
    network, settings = load_model(str(passing_model))
    signal = noise(n_samples, 1).astype(np.float32)
    blocks = enhanced_at_rate([(network, settings)], in_blocks(signal, 2**18), rate, 1, 0.0)
    assert sum(map(len, blocks)) == n_samples


@pytest.mark.parametrize("top_passes", [True, False])
def test_what_lies_above_the_band_is_attenuated_like_its_top(top_passes, tmp_path):
    # A mask of 1 in the uppermost kilohertz and of 0 below it, or the other way round.
    is_top = np.arange(257) >= 224
    bias = np.where(is_top == top_passes, 50.0, -50.0)
    network, settings = load_model(str(make_model(tmp_path / "model.keras", bias=bias)))
    rate = 48000
    low, high = noise(2 * rate), 0.1 * np.sin(2 * np.pi * 15_000 * np.arange(2 * rate) / rate)
    both = [part[:, None].astype(np.float32) for part in (low, low + high)]
    without, with_high = (
        np.concatenate(
            list(enhanced_at_rate([(network, settings)], in_blocks(part, 8192), rate, 1, 0.0))
        )[:, 0]
        for part in both
    )
    tone = np.abs(np.fft.rfft((with_high - without)[rate // 2 : -rate // 2])).max() / (rate / 2)
    assert tone == pytest.approx(0.1 if top_passes else 0, abs=1e-4)  # single precision


def test_the_gain_at_the_top_is_interpolated_between_the_centres_of_frames():
    top = TopGain(48000, 1)
    top.add(np.arange(10, dtype=np.float32)[:, None])
    found = np.concatenate([top.next(n_samples) for n_samples in (1000, 500, 3000)])[:, 0]
    # Frame k, whose gain is k, has its centre 256 k + 256 samples of 16 kHz behind the start.
    expected = np.clip((np.arange(4500) / 3 - 256) / 256, 0, 9)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # single precision


@pytest.mark.parametrize("recipe", ["default", "live", "original", "xu2015"])
def test_what_a_stream_holds_does_not_grow_with_the_recording(recipe):
    stream, held = FeatureStream(load_recipe(recipe).input, 1.0), []
    second = noise(16000).astype(np.float32)
    tracemalloc.start()
    for _ in range(2):
        for _ in range(20):
            stream.add(second)
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[1] < held[0] + 500_000  # 20 s more of frames are 1.3 MB


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, rate, channels, kind",
    [
        ("a.wav", 16000, 1, {"subtype": "PCM_16"}),
        ("b.wav", 44100, 2, {"subtype": "PCM_24"}),
        ("c.flac", 48000, 3, {"subtype": "PCM_24"}),
        ("d.wav", 8000, 1, {"subtype": "ULAW"}),
        ("e.wav", 22050, 1, {"subtype": "FLOAT"}),
        ("f.ogg", 44100, 2, {"subtype": "VORBIS"}),
        ("g.aiff", 32000, 1, {"subtype": "PCM_16"}),
        ("h.mp3", 44100, 1, {"subtype": "MPEG_LAYER_III"}),
        ("i.sph", 16000, 1, {"format": "NIST", "subtype": "PCM_16"}),
        ("j.au", 16000, 1, {"subtype": "G721_32"}),
    ],
)
def test_outputs_are_of_the_kind_of_the_inputs(name, rate, channels, kind, model, tmp_path):
    source, target = tmp_path / name, tmp_path / "out" / name
    soundfile.write(source, noise(rate + 123, channels), rate, **kind)
    before = soundfile.info(source)
    assert enhance(source, "--output_dir", tmp_path / "out", "--model", model) == 0
    after = soundfile.info(target)
    for fact in ("samplerate", "channels", "frames", "format", "subtype", "endian"):
        assert getattr(after, fact) == getattr(before, fact)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_folders_keep_their_shape_and_one_bad_file_stops_no_other(model, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.wav", "deep/a.wav", "deep/b.flac"):
        soundfile.write(folder / name, noise(8000), 16000)
    (folder / "broken.wav").write_bytes(b"RIFF" + bytes(60))
    soundfile.write(folder / "cut.mp3", noise(200_000), 16000)
    (folder / "cut.mp3").write_bytes((folder / "cut.mp3").read_bytes()[:9000])
    (folder / "notes.txt").write_text("not audio")
    assert enhance(folder, "--output_dir", out, "--model", model) == 1
    text = capsys.readouterr().out
    assert (
        "not enhanced" in text and "broken.wav is not readable" in text and "3 of 5 files" in text
    )
    assert "cut.mp3 is cut short" in text
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.*")) == [
        "a.wav",
        "deep/a.wav",
        "deep/b.flac",
    ]
    assert "real-time factor" in text
    assert enhance(folder / "a.wav", "--output_dir", out, "--model", model) == 2
    assert "exists; give --overwrite" in capsys.readouterr().err
    assert enhance(folder / "a.wav", "--output_dir", out, "--model", model, "--overwrite") == 0


def test_a_file_named_alone_and_with_its_folder_counts_once(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", noise(4000), 16000)
    inputs = (tmp_path / "in", f"{tmp_path}/in/a.wav", f"{tmp_path}/./in/a.wav")
    flags = ("--output_dir", tmp_path / "out", "--model", model)
    assert run("main_dnn", "enhance", *inputs, *flags) == 0
    assert "1 of 1 files" in capsys.readouterr().out


@pytest.mark.parametrize("sign", [1, -1])
def test_each_channel_is_enhanced_at_its_own_peak_up_or_down(tmp_path, sign):
    path = str(make_model(tmp_path / "m.keras", "original"))
    loaded, audio = load_model(path), noise(40_000, 2) * (1, 0.01)
    audio[1000] = 3 * sign * audio.max(axis=0)  # the peak, on one side alone
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
    flags = ("--output_dir", tmp_path / "out", "--model", path)
    assert run("main_dnn", "enhance", tmp_path / "a.wav", *flags) == 0
    found = soundfile.read(tmp_path / "out" / "a.wav")[0]
    for channel in (0, 1):
        expected = enhance_audio(*loaded, audio[:, channel].astype(np.float32))
        error = np.abs(found[:, channel] - expected).max()
        assert error < 1e-4 * np.abs(expected).max()  # single precision


def test_silence_stays_silence_and_loud_noise_does_not_clip(model, passing_model, tmp_path):
    silence, loud = tmp_path / "silence.wav", tmp_path / "loud.wav"
    soundfile.write(silence, np.zeros((30_000, 2)), 44100, subtype="PCM_16")
    soundfile.write(loud, np.sign(noise(50_000)) * (1 - 2**-15), 44100, subtype="PCM_16")
    for name, chosen in (("model", model), ("passing", passing_model)):
        assert enhance(silence, loud, "--output_dir", tmp_path / name, "--model", chosen) == 0
        assert not soundfile.read(tmp_path / name / "silence.wav")[0].any()
        integers = soundfile.read(tmp_path / name / "loud.wav", dtype="int16")[0].astype(int)
        at_full_scale = np.abs(integers) >= 32767
        # What clips stays at full scale for samples in a row; the input does so, its copy may.
        assert name == "passing" or not np.any(at_full_scale[1:] & at_full_scale[:-1])


def test_the_limiter_leaves_all_but_peaks_alone():
    signal = noise(20_000, 2, level=0.2)
    signal[7000] = [1.5, 0.3]
    signal[7100] = [-1.2, 0.2]
    parts = np.concatenate(list(limited(in_blocks(signal, 777), 16000)))
    assert parts.shape == signal.shape and np.abs(parts).max() < 1
    far = np.abs(np.arange(20_000) - 7050) > 50 + 256
    np.testing.assert_array_equal(parts[far], signal[far])
    whole = np.concatenate(list(limited(iter([signal]), 16000)))
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-12)


def test_the_attenuation_has_its_limit(tmp_path):
    closed = make_model(tmp_path / "closed.keras", bias=-50.0)  # a mask of 0
    soundfile.write(tmp_path / "a.wav", noise(40_000), 16000, subtype="FLOAT")
    assert enhance(tmp_path / "a.wav", "--output_dir", tmp_path / "0", "--model", closed) == 0
    flags = ("--model", closed, "--attenuation_limit", 12)
    assert enhance(tmp_path / "a.wav", "--output_dir", tmp_path / "12", *flags) == 0
    signal = read_audio(str(tmp_path / "a.wav"))
    assert np.abs(read_audio(str(tmp_path / "0" / "a.wav"))).max() < 1e-6
    np.testing.assert_allclose(
        read_audio(str(tmp_path / "12" / "a.wav")), signal * 10 ** (-12 / 20), atol=1e-5
    )


# --- The model that ships ---------------------------------------------------------------------


def test_the_shipped_models_are_small_and_make_speech_clearer(prepared, tmp_path):
    assert all(os.path.getsize(path) <= 10e6 for path in SHIPPED_TOGETHER)
    mixtures = read_mixtures(str(prepared), "test")
    waves = [mixed_audio_path(str(prepared), "test", 0, mixture.name) for mixture in mixtures]
    assert enhance(*waves, "--output_dir", tmp_path) == 0
    gains = []

    def stoi(reference, degraded):
        return stoi_scores(reference, degraded)["stoi"]

    for mixture, wave in zip(mixtures, waves, strict=True):
        clean = read_audio(str(MINI / "test_speech" / mixture.speech_name))
        noisy, enhanced = read_audio(wave), read_audio(str(tmp_path / os.path.basename(wave)))
        gains.append(
            [measure(clean, enhanced) - measure(clean, noisy) for measure in (stoi, si_sdr)]
        )
    # 0.07 and 3.8 dB when it was made.
    assert np.all(np.mean(gains, axis=0) > [0.03, 2.0])


# --- Streams --------------------------------------------------------------------------------------


def test_a_stream_gives_what_the_file_gives(model, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(150_000, 2), 22050, subtype="PCM_16")
    assert enhance(tmp_path / "a.wav", "--output_dir", tmp_path / "out", "--model", model) == 0
    command = [sys.executable, str(ROOT / "main_dnn.py"), "enhance", "-", "--model", str(model)]
    done = subprocess.run(
        command, input=(tmp_path / "a.wav").read_bytes(), capture_output=True, check=True
    )
    (tmp_path / "streamed.wav").write_bytes(done.stdout)
    expected = soundfile.read(tmp_path / "out" / "a.wav", dtype="int16")[0]
    streamed = np.frombuffer(done.stdout[44:], "<i2").reshape(-1, 2)
    # Other blocks, so that the last bit may round the other way.
    assert streamed.shape == expected.shape and np.abs(streamed.astype(int) - expected).max() <= 1
    assert soundfile.info(tmp_path / "streamed.wav").samplerate == 22050


def test_a_stream_lags_as_far_behind_as_the_help_says():
    stream, n_out, lags = FeatureStream(load_recipe("default").input), 0, []
    for number, block in enumerate(in_blocks(noise(20 * 16000), 1600), start=1):
        n_out += len(stream.add(block).spectrum) * 256
        lags.append(number / 10 - n_out / 16000)
    assert max(lags) < 5.1 and max(lags[60:]) < 3.3


# --- Bad input ------------------------------------------------------------------------------------


def bad_files(folder):
    folder.mkdir()
    (folder / "text.wav").write_text("hello")
    soundfile.write(folder / "empty.wav", np.empty(0), 16000)
    soundfile.write(folder / "one.wav", np.zeros(1), 16000)
    soundfile.write(folder / "nan.wav", np.full(9000, np.nan), 16000, subtype="FLOAT")
    soundfile.write(folder / "slow.wav", noise(9000), 3000)
    soundfile.write(folder / "many.wav", noise(9000, 64), 16000)
    return {
        "text.wav": "is not readable as audio",
        "empty.wav": "holds no samples",
        "one.wav": "is too short: expected 512 samples",
        "nan.wav": "NaN or infinite",
        "slow.wav": "has 3000 samples a second",
        "many.wav": "has 64 channels",
        "none.wav": "is missing",
    }


def test_bad_files_get_a_line_each_and_leave_nothing(model, tmp_path, capsys):
    for name, message in bad_files(tmp_path / "in").items():
        assert (
            enhance(tmp_path / "in" / name, "--output_dir", tmp_path / "out", "--model", model) == 2
        )
        error = capsys.readouterr().err
        assert message in error and name in error and error.count("\n") == 1
    assert not list((tmp_path / "out").rglob("*"))


def test_bad_flags_and_models_get_a_line(model, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", noise(8000), 16000)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    soundfile.write(tmp_path / "other" / "a.wav", noise(8000), 16000)
    (tmp_path / "no_model.keras").write_text("hello")
    out = ("--output_dir", tmp_path / "out", "--model", model)
    for flags, message in (
        ((tmp_path / "a.wav", "--output_dir", tmp_path, "--model", model), "is the input itself"),
        ((tmp_path / "empty", *out), "holds no .wav"),
        ((tmp_path / "a.wav", tmp_path / "other" / "a.wav", *out), "would both become"),
        ((tmp_path / "a.wav", "--model", model), "expected files and an --output_dir"),
        (("-", *out), "expected files and an --output_dir"),
        (
            (tmp_path / "a.wav", *out[:3], tmp_path / "no_model.keras"),
            "not a model of this program",
        ),
        ((tmp_path / "a.wav", *out[:3], tmp_path / "none.keras"), "is missing"),
    ):
        assert enhance(*flags) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_output(model, small_disk, tmp_path, capsys):
    (small_disk / "fill").write_bytes(bytes(600_000))
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, noise(300_000), 16000)
        assert enhance(tmp_path / name, "--output_dir", small_disk, "--model", model) == 2
        assert "cannot be written" in capsys.readouterr().err
        assert list(files_below(small_disk)) == ["fill"]
