"""What is written: rounded to the nearest step, silent where the input is, and told if unread."""

import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import ROOT, expect_refusal, run
from small_models import make_memory_model, make_model, noise

from speech_enhancement.data.sound_file import opened
from speech_enhancement.enhancement import recordings
from speech_enhancement.enhancement.enhance_audio import enhance_audio
from speech_enhancement.enhancement.recordings import check_signal, output_kind
from speech_enhancement.errors import InputError
from speech_enhancement.network.network import load_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "model.keras")


@pytest.mark.parametrize(
    "name, subtype, bits",
    [
        ("a.wav", "PCM_U8", 8),
        ("a.wav", "PCM_16", 16),
        ("a.wav", "PCM_24", 24),
        ("a.aiff", "PCM_S8", 8),
        ("a.aiff", "PCM_16", 16),
        ("a.flac", "PCM_16", 16),
    ],
)
def test_samples_are_rounded_to_the_nearest_step(model, tmp_path, name, subtype, bits):
    soundfile.write(tmp_path / name, noise(30_000), 16000, subtype=subtype)
    audio = soundfile.read(tmp_path / name)[0]
    soundfile.write(tmp_path / "exact.wav", audio, 16000, subtype="FLOAT")
    flags = ("--model", model, "--output_dir", tmp_path / "out")
    assert run("main_dnn", "enhance", tmp_path / name, tmp_path / "exact.wav", *flags) == 0
    written, exact = (soundfile.read(tmp_path / "out" / each)[0] for each in (name, "exact.wav"))
    # Half a step, and rounding to single precision.
    assert np.abs(written - exact).max() * 2 ** (bits - 1) < 0.51


@pytest.mark.parametrize("recipe", ["original", "xu2015", "xu2015_multi", "default"])
def test_digital_silence_stays_silent_as_a_whole(recipe, tmp_path):
    loaded = load_model(str(make_model(tmp_path / "model.keras", recipe)))
    audio = noise(40_000)
    audio[12_000:28_000] = 0
    # Frames that lie in the silence as a whole.
    assert not enhance_audio(*loaded, audio)[12_512:27_488].any()


@pytest.mark.parametrize("live", [(), ("--live",)])
def test_a_reader_that_goes_away_ends_a_pipe_without_a_word(tmp_path, live):
    make = make_memory_model if live else make_model
    path = make(tmp_path / "model.keras")
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(400_000), 16000, format="WAV", subtype="PCM_16")
    command = [sys.executable, ROOT / "main_dnn.py", "enhance", *live, "-", "--model", path]
    (tmp_path / "in.wav").write_bytes(buffer.getvalue())
    with (
        open(tmp_path / "in.wav", "rb") as file,
        subprocess.Popen(
            list(map(str, command)), stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process,
    ):
        process.stdout.read(1000)
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 141 and b"broke off" not in said and b"Traceback" not in said


def test_a_file_named_raw_gets_a_line(model, tmp_path, capsys):
    (tmp_path / "a.raw").write_bytes(bytes(4000))
    flags = ("--model", model, "--output_dir", tmp_path / "out")
    status = run("main_dnn", "enhance", tmp_path / "a.raw", *flags)
    expect_refusal(capsys, status, "a.raw is not readable as audio")


def test_a_rate_that_no_sound_has_is_refused():
    check_signal("a.wav", 768_000, 2)
    with pytest.raises(InputError, match="expected at most 768000"):
        check_signal("a.wav", 1_500_000_000, 2)


@pytest.mark.parametrize(("name", "kind"), [("a.wav", "RF64"), ("a.flac", "FLAC")])
def test_a_wave_beyond_4_gib_becomes_an_rf64_and_others_stay(tmp_path, monkeypatch, name, kind):
    soundfile.write(tmp_path / name, noise(4000), 16000)
    with opened(str(tmp_path / name)) as file:
        before = output_kind(file)
        monkeypatch.setattr(recordings, "LARGEST", 1000)
        after = output_kind(file)
    assert before["format"] == name[2:].upper()
    assert after["format"] == kind and after["subtype"] == before["subtype"]


def test_an_aiff_beyond_4_gib_is_refused(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.aiff", noise(4000), 16000)
    monkeypatch.setattr(recordings, "LARGEST", 1000)
    with (
        opened(str(tmp_path / "a.aiff")) as file,
        pytest.raises(InputError, match=r"a\.aiff is larger than 4 GiB, which AIFF cannot be"),
    ):
        output_kind(file)


def test_the_texts_of_an_mp3_come_out_and_empty_ones_are_left_out(model, tmp_path):
    title = b"TIT2\0\0\0\x06\0\0\0Title"
    before = b"ID3\x03\0\0" + bytes([0, 0, 0, len(title)]) + title
    soundfile.write(tmp_path / "plain.mp3", noise(90_000), 44100)
    content = (tmp_path / "plain.mp3").read_bytes()
    # Behind the sound a tag whose artist, album, year and comment are empty.
    (tmp_path / "a.mp3").write_bytes(before + content + b"TAGTitle".ljust(128, b"\0"))
    flags = ("--model", model, "--output_dir", tmp_path / "out")
    assert run("main_dnn", "enhance", tmp_path / "a.mp3", *flags) == 0
    with soundfile.SoundFile(tmp_path / "out" / "a.mp3") as file:
        assert file.title == "Title"
