"""Sound cleaned while it is heard: chunks, rates, pipes, devices, and the example in docs/."""

import contextlib
import io
import os
import subprocess
import sys
import tracemalloc
import types

import numpy as np
import pytest
import soundfile
from conftest import GOLDEN, MINI, ROOT, run
from small_models import make_memory_model, make_model, noise

from speech_enhancement.data.audio_files import read_audio
from speech_enhancement.enhancement import live_sound
from speech_enhancement.enhancement.blocks import enhance_with_all
from speech_enhancement.enhancement.enhance import SHIPPED_LIVE_MODEL
from speech_enhancement.enhancement.live import LiveEnhancer, Resampler
from speech_enhancement.errors import InputError
from speech_enhancement.evaluation.measures import si_sdr, stoi_scores
from speech_enhancement.features import mix_at_snr
from speech_enhancement.network.export import export
from speech_enhancement.network.network import load_model
from speech_enhancement.network.onnx_network import load_onnx
from speech_enhancement.training.training_noise import dull


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return make_memory_model(tmp_path_factory.mktemp("live") / "m.keras")


@pytest.fixture(scope="module")
def loaded(model_path):
    return load_model(str(model_path))


@pytest.fixture(scope="module")
def onnx_path(model_path):
    pytest.importorskip("onnxruntime")
    export(str(model_path), str(model_path.with_suffix(".onnx")), "onnx")
    return model_path.with_suffix(".onnx")


def in_chunks(live, audio, sizes):
    """Clean audio in chunks of these sizes in turn; return all that comes out."""
    chunks, start = [], 0
    while start < len(audio):
        chunk = audio[start : start + sizes[len(chunks) % len(sizes)]]
        chunks.append(live.process(chunk))
        assert chunks[-1].shape == chunk.shape and chunks[-1].dtype == np.float32
        start += len(chunk)
    return np.concatenate(chunks)


@pytest.mark.parametrize("sizes", [(256,), (1, 7, 300), (160,), (5000,), (0, 511)])
def test_chunks_of_any_size_give_the_recording_enhanced_as_a_whole(loaded, sizes):
    audio = noise(12_000)
    whole = enhance_with_all([loaded], audio)
    live = LiveEnhancer(loaded)
    found = in_chunks(live, audio, sizes)
    assert live.delay == 512 and not found[:512].any()  # 32 ms: one window
    # Single precision; the last frames of the whole have samples that had not come.
    np.testing.assert_allclose(found[512:], whole[:-512], atol=1e-6)


def test_frames_ahead_add_to_the_delay(tmp_path):
    loaded = load_model(str(make_memory_model(tmp_path / "m.keras", look_ahead=2)))
    audio, live = noise(9000), LiveEnhancer(loaded)
    assert live.delay == 512 + 2 * 256
    found, whole = in_chunks(live, audio, (333,)), enhance_with_all([loaded], audio)
    np.testing.assert_allclose(found[1024:], whole[:-1024], atol=1e-6)


def test_files_in_blocks_are_enhanced_as_wholes(tmp_path, model_path, loaded):
    audio = noise(40_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
    flags = ("--model", model_path, "--output_dir", tmp_path / "out")
    assert run("main_dnn", "enhance", tmp_path / "a.wav", *flags) == 0
    found = read_audio(str(tmp_path / "out" / "a.wav"))
    np.testing.assert_allclose(found, enhance_with_all([loaded], audio), atol=1e-6)


def test_each_channel_is_cleaned_alone(loaded):
    audio = noise(6000, 2)
    both = in_chunks(LiveEnhancer(loaded, n_channels=2), audio, (400,))
    for channel in (0, 1):
        alone = in_chunks(LiveEnhancer(loaded), audio[:, channel], (400,))
        np.testing.assert_array_equal(both[:, channel], alone)


def test_a_limit_of_attenuation_holds(loaded):
    audio = noise(8000)
    kept = in_chunks(LiveEnhancer(loaded, smallest_gain=1.0), audio, (256,))
    np.testing.assert_allclose(kept[512:], audio[:-512], atol=1e-5)  # masks of 1: nothing changes


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
def test_at_any_rate_the_delay_is_as_announced(loaded, rate):
    live = LiveEnhancer(loaded, rate, smallest_gain=1.0)
    tone = 0.5 * np.sin(2 * np.pi * 700 * np.arange(rate) / rate)
    found = in_chunks(live, tone, (rate // 100, 1, 333))
    expected, found = tone[: -live.delay], found[live.delay :]
    middle = slice(rate // 4, -rate // 4)
    assert live.delay / rate < 0.036  # a window and two filters of 1 ms
    # The delay is rounded to a sample: half of one is 0.28 rad of 700 Hz at 8 kHz.
    limit = 1e-3 + 0.5 * np.pi * 700 / rate
    assert np.max(np.abs(found[middle] - expected[middle])) < limit


@pytest.mark.parametrize("rate", [8000, 44100])
def test_samples_that_come_one_by_one_never_run_out(loaded, rate):
    one_by_one = in_chunks(LiveEnhancer(loaded, rate), noise(3000), (1,))
    at_once = in_chunks(LiveEnhancer(loaded, rate), noise(3000), (3000,))
    np.testing.assert_allclose(one_by_one, at_once, atol=1e-6)  # single precision


@pytest.mark.parametrize("pair", [(48000, 16000), (16000, 44100), (8000, 16000)])
def test_a_resampler_keeps_the_band_and_nothing_else(pair):
    times = np.arange(pair[0]) / pair[0]
    for frequency in (1000, 7000, 20000):
        if frequency >= pair[0] / 2:
            continue
        resampler = Resampler(*pair, 1)
        tone = np.sin(2 * np.pi * frequency * times)[:, None].astype(np.float32)
        found = np.concatenate([resampler.process(part) for part in np.array_split(tone, 77)])[:, 0]
        assert abs(len(found) - pair[1]) <= 1
        moment = np.arange(len(found)) / pair[1] - resampler.delay_s
        expected = np.sin(2 * np.pi * frequency * moment)
        kept = frequency < 0.45 * min(pair)
        # The filters fall by 60 dB; 7 kHz lies where they begin to fall.
        limit = {1000: 2e-3, 7000: 0.3, 20000: 2e-3}[frequency]
        error = found - (expected if kept else 0)
        assert np.max(np.abs(error[200:-200])) < limit


def test_a_long_chunk_needs_little_more_memory_than_itself():
    resampler, chunk = Resampler(48000, 16000, 1), np.zeros((2_000_000, 1), np.float32)
    tracemalloc.start()
    resampler.process(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The chunk once more, its third, the places of the outputs as int64; all filters: 98 times.
    assert peak < 4 * chunk.nbytes


def test_a_file_or_what_was_loaded_of_it_is_the_same(model_path, onnx_path, loaded):
    audio, expected = noise(4000), in_chunks(LiveEnhancer(loaded), noise(4000), (256,))
    for model in (model_path, str(model_path), onnx_path):
        found = in_chunks(LiveEnhancer(model), audio, (256,))
        np.testing.assert_allclose(found, expected, atol=1e-6)  # single precision


def test_absurd_samples_do_not_reach_the_memory(loaded):
    live, undisturbed = LiveEnhancer(loaded), LiveEnhancer(loaded)
    for bad in (np.nan, np.inf, 3e38):
        with pytest.raises(InputError, match="the chunk holds samples that are NaN or infinite"):
            live.process(np.full(300, bad))
    audio = noise(3000)
    np.testing.assert_array_equal(live.process(audio), undisturbed.process(audio))


def test_onnxruntime_hears_what_keras_hears(loaded, onnx_path):
    audio = noise(9000)
    pair = [
        in_chunks(LiveEnhancer(network), audio, (256,))
        for network in (loaded, load_onnx(str(onnx_path)))
    ]
    np.testing.assert_allclose(*pair, atol=1e-6)


def test_the_example_in_docs_enhances_as_the_program_does(tmp_path, loaded, onnx_path):
    audio = read_audio(str(next((MINI / "test_speech").glob("*.wav"))))
    audio = np.insert(audio, np.repeat([0, 20_000], [3000, 9000]), 0)  # digital silence
    audio[30_000:40_000] *= 1e-4
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
    command = [sys.executable, ROOT / "docs" / "live_onnx_example.py", onnx_path]
    subprocess.run([*command, "a.wav", "b.wav"], cwd=tmp_path, check=True)
    found, whole = read_audio(str(tmp_path / "b.wav")), enhance_with_all([loaded], audio)
    assert len(found) == len(audio)
    np.testing.assert_allclose(found[:-512], whole[:-512], atol=1e-5)  # single precision


def test_the_documents_show_the_example_that_is_tested():
    example = (ROOT / "docs" / "live_onnx_example.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "live.md").read_text(encoding="utf-8")
    assert example[example.index("import json") :].rstrip() in page


def test_a_model_that_looks_ahead_seconds_is_refused(tmp_path):
    wide = make_memory_model(tmp_path / "wide_m.keras", 3, (20, 50))
    for path in (wide, make_model(tmp_path / "m.keras")):
        with pytest.raises(InputError, match=r"m\.keras needs seconds of the future"):
            LiveEnhancer(path)


# --- The model that ships -------------------------------------------------------------------------


def test_the_shipped_live_model_is_small_and_clears_steady_noise_and_bursts():
    assert os.path.getsize(SHIPPED_LIVE_MODEL) <= 10e6
    shipped = load_model(SHIPPED_LIVE_MODEL)
    speech = read_audio(str(GOLDEN / "en_librivox_disposed.wav")).astype(float)
    bursts = dull(noise(len(speech)).astype(np.float32), 3000)
    times = np.arange(len(speech)) % 2400  # 6.7 bursts a second, of 50 ms
    burst_mixture, its_speech, *_ = mix_at_snr(speech, bursts * (times < 800), 0.0)
    steady = read_audio(str(GOLDEN / "en_librivox_disposed_vinyl_0db.wav"))
    # Measured: STOI +0.019 and +0.04, SI-SDR +2.6 and +5 dB; half of that is still a gain.
    for clean, noisy, gain_in_stoi, gain_in_db in (
        (speech[: len(steady)], steady, 0.01, 1.3),
        (its_speech, burst_mixture, 0.02, 2.5),
    ):
        live = LiveEnhancer(shipped)
        enhanced = live.process(np.pad(noisy, (0, live.delay)))[live.delay :]
        pairs = [stoi_scores(clean, audio)["stoi"] for audio in (enhanced, noisy)]
        assert pairs[0] - pairs[1] > gain_in_stoi
        assert si_sdr(clean, enhanced) - si_sdr(clean, noisy) > gain_in_db


# --- Pipes ----------------------------------------------------------------------------------------


def live_pipe(model, content, *flags):
    command = [sys.executable, ROOT / "main_dnn.py", "enhance", "--live", "-", "--model", model]
    return subprocess.run([*command, *flags], input=content, capture_output=True, check=False)


def test_a_wav_and_raw_samples_come_out_as_long_as_they_went_in(onnx_path, loaded):
    audio = np.round(noise(10_001) * 2**15) / 2**15
    whole = enhance_with_all([loaded], audio)
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, 16000, format="WAV", subtype="PCM_16")
    done = live_pipe(onnx_path, buffer.getvalue())
    assert done.returncode == 0, done.stderr
    found, rate = soundfile.read(io.BytesIO(done.stdout))
    raw = (audio * 2**15).astype("<i2").tobytes()
    of_raw = live_pipe(onnx_path, raw, "--rate", "16000").stdout
    assert rate == 16000 and len(found) == len(audio) and len(of_raw) == len(raw)
    np.testing.assert_array_equal(np.frombuffer(of_raw, "<i2") / 2**15, found)
    np.testing.assert_allclose(found[:-512], whole[:-512], atol=2**-15)  # 16 bits


def test_floats_of_two_channels_at_48_khz_pass_the_pipe(onnx_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(9600, 2), 48000, format="WAV", subtype="FLOAT")
    done = live_pipe(onnx_path, buffer.getvalue())
    found, rate = soundfile.read(io.BytesIO(done.stdout))
    assert done.returncode == 0 and rate == 48000 and found.shape == (9600, 2)


def test_what_does_not_fit_together_is_one_line(onnx_path, tmp_path, capsys):
    for flags, message in (
        (("a.wav", "--live"), "expected --live alone or with -, found a.wav"),
        (("--live", "-", "--output_dir", tmp_path), "--output_dir goes without --live"),
        (("a.wav", "--output_dir", tmp_path, "--rate", 16000), "--rate goes with --live"),
        (("--live", "--rate", 16000), "--rate goes with --live -"),
        (("--output_dir", tmp_path), "expected files and an --output_dir"),
    ):
        assert run("main_dnn", "enhance", *flags) == 2
        assert message in capsys.readouterr().err
    done = live_pipe(onnx_path, b"no sound")
    assert done.returncode == 2 and b"is not a WAV" in done.stderr
    done = live_pipe(onnx_path, b"", "--rate", "16000")
    assert done.returncode == 2 and b"standard input holds no samples" in done.stderr
    done = live_pipe(onnx_path, b"123", "--rate", "4000")
    assert done.returncode == 2 and b"expected at least 8000" in done.stderr


# --- Devices --------------------------------------------------------------------------------------


class FakeSound(types.ModuleType):
    """The package sounddevice, with a microphone that hears a recording and then Ctrl-C."""

    class PortAudioError(Exception):
        pass

    def __init__(self, heard, rate, fails=False):
        super().__init__("sounddevice")
        self._heard, self._rate, self._fails, self.played = heard, rate, fails, []
        self.opened_with, self.late = [], set()  # late: blocks that are heard after the next

    def check_input_settings(self, device, n_channels, dtype, samplerate):
        assert (n_channels, dtype) == (1, "float32")
        if samplerate != self._rate:
            raise self.PortAudioError("another rate")

    check_output_settings = check_input_settings

    def query_devices(self, device=None, kind=None):
        if self._fails:
            raise self.PortAudioError("no device")
        return {"default_samplerate": float(self._rate)} if kind else "0 a microphone"

    @contextlib.contextmanager
    def InputStream(self, rate, n_samples, device, callback, **_):
        self.opened_with.append((rate, n_samples, device))
        self._hear = callback
        yield

    def OutputStream(self, rate, n_samples, device, callback, **_):
        self.opened_with.append((rate, n_samples, device))
        waiting = []
        for number, start in enumerate(range(0, len(self._heard) - n_samples, n_samples)):
            waiting.append(self._heard[start : start + n_samples, None].astype(np.float32))
            while waiting and number not in self.late:
                self._hear(waiting.pop(0), n_samples, None, None)
            played = np.empty((n_samples, 1), np.float32)
            callback(played, n_samples, None, None)
            self.played.append(played)
        raise KeyboardInterrupt


def test_the_loudspeaker_plays_what_the_microphone_hears_cleaned(
    model_path, loaded, monkeypatch, capsys
):
    audio = noise(8000)
    sound = FakeSound(audio, 16000)
    monkeypatch.setitem(sys.modules, "sounddevice", sound)
    flags = ("--model", model_path, "--devices", "0", "USB headset")
    assert run("main_dnn", "enhance", "--live", *flags) == 0
    assert sound.opened_with == [(16000, 256, 0), (16000, 256, "USB headset")]
    expected = LiveEnhancer(loaded)
    expected.process(np.zeros(512))  # that the first hop is not slow
    played = np.concatenate(sound.played)[:, 0]
    # 32 ms later than it could be: a block may be so late.
    assert not np.any(played[:512])
    whole = expected.process(audio[: len(played) - 512])
    np.testing.assert_allclose(played[512:], whole, atol=1e-6)
    assert "ended; 0 blocks were late" in capsys.readouterr().out
    assert run("main_dnn", "enhance", "--list_devices") == 0
    assert "0 a microphone" in capsys.readouterr().out


def test_devices_without_16_khz_are_opened_at_their_own_rate(model_path, monkeypatch):
    sound = FakeSound(noise(8000), 48000)
    monkeypatch.setitem(sys.modules, "sounddevice", sound)
    assert run("main_dnn", "enhance", "--live", "--model", model_path) == 0
    assert sound.opened_with == [(48000, 768, None)] * 2  # 16 ms


def test_what_is_late_does_not_stay_late(model_path, loaded, monkeypatch, capsys):
    audio = noise(16_000)
    sound = FakeSound(audio, 16000)
    sound.late = {10, 11, 20, 21, 22, 30, 31, 32, 33, 34, 35}
    monkeypatch.setitem(sys.modules, "sounddevice", sound)
    assert run("main_dnn", "enhance", "--live", "--model", model_path) == 0
    # Two may be late from the start; what waits since the second gap fills half of the third.
    assert "ended; 4 blocks were late" in capsys.readouterr().out
    expected = LiveEnhancer(loaded)
    expected.process(np.zeros(512))
    whole = expected.process(audio)
    silent = [number for number, block in enumerate(sound.played) if not np.any(block)]
    assert silent == [0, 1, 22, 33, 34, 35]  # at first the hops by which a block may be late
    np.testing.assert_allclose(sound.played[11][:, 0], whole[9 * 256 : 10 * 256], atol=1e-6)
    # The newest four hops wait, three of them behind the one that is played.
    np.testing.assert_allclose(sound.played[36][:, 0], whole[33 * 256 : 34 * 256], atol=1e-6)
    np.testing.assert_allclose(sound.played[50][:, 0], whole[47 * 256 : 48 * 256], atol=1e-6)


def test_devices_that_are_missing_are_one_line(model_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSound(noise(100), 48000, fails=True))
    assert run("main_dnn", "enhance", "--live", "--model", model_path) == 2
    assert "cannot be used (no device); see --list_devices" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(InputError, match="needs the package sounddevice"):
        live_sound.list_devices()
