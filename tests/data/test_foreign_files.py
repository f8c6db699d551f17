"""Files as other programs leave them: tags behind the sound, names and rights in the way."""

import io
import os

import numpy as np
import pytest
import soundfile
from conftest import MINI, calculate, expect_refusal, run_process, write_csv

from speech_enhancement.data.audio_files import SoundFinder, audio_length, read_audio
from speech_enhancement.data.mixtures import draw_sounding
from speech_enhancement.data.sound_file import opened
from speech_enhancement.errors import InputError, foreseen_machine_error

TAIL = b"APETAGEX" + bytes(20_000)


@pytest.mark.parametrize("tail", [bytes(20_000), TAIL, b"ID3\x03\0\0\0\0\x40\0" + bytes(8192)])
def test_what_lies_behind_the_last_frame_of_a_flac_is_no_damage(tmp_path, tail):
    path = tmp_path / "a.flac"
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 50_000)
    soundfile.write(path, audio, 16000, subtype="PCM_16")
    path.write_bytes(path.read_bytes() + tail)
    assert audio_length(str(path)) == 50_000
    # Half a step of 16 bits, and rounding to single precision.
    np.testing.assert_allclose(read_audio(str(path)), audio, rtol=0, atol=0.51 / 2**15)


def test_the_texts_of_an_mp3_are_read(tmp_path):
    title = b"TIT2\0\0\0\x06\0\0\0Title"
    tag = b"ID3\x03\0\0" + bytes([0, 0, 0, len(title)]) + title
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).uniform(-0.1, 0.1, 44100), 44100, format="MP3")
    content = buffer.getvalue()
    if content[:3] == b"ID3":
        content = content[10 + int.from_bytes(content[6:10], "big") :]
    (tmp_path / "a.mp3").write_bytes(tag + content)
    with opened(str(tmp_path / "a.mp3")) as file:
        assert file.texts.get("title") == "Title"


def test_the_first_sound_of_a_noise_does_not_depend_on_the_speech_before(tmp_path):
    noise, path = np.zeros(3_000_000, np.float32), str(tmp_path / "clicks.flac")
    noise[[100_000, 2_500_000]] = 0.5
    soundfile.write(path, noise, 16000)
    finder = SoundFinder()
    assert finder.first_sound(path, 2_400_000, 2_600_000) == 2_500_000
    chosen = draw_sounding(finder.first_sound, "s.wav", "clicks.flac", 1, path, len(noise))
    assert chosen == (100_000, 100_001)


def test_names_that_standard_output_cannot_show_are_printed_with_escapes(tmp_path):
    workspace = os.fsencode(tmp_path) + b"/w\xe9"
    folders = ("--speech_dir", MINI / "test_speech", "--noise_dir", MINI / "test_noise")
    flags = ("create_mixture_csv", "--data_type", "test", "--workspace", os.fsdecode(workspace))
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = run_process("prepare_data", *flags, *folders, env=strict)
    assert done.returncode == 0 and "w\\udce9" in done.stdout, done.stderr


def test_a_table_without_permission_is_told_as_that(tmp_path, monkeypatch, capsys):
    path = write_csv(tmp_path, [("a.wav", "b.wav", 0, 600)])
    readable = os.access  # who runs this test may read all files
    monkeypatch.setattr(
        os, "access", lambda each, how: str(each) != str(path) and readable(each, how)
    )
    expect_refusal(capsys, calculate(tmp_path), f"{path} cannot be read: no permission")


def test_files_without_permission_are_foreseen_wherever_they_are_opened():
    error = foreseen_machine_error(PermissionError(13, "Permission denied", "mine.toml"))
    assert isinstance(error, InputError) and str(error).startswith("mine.toml: no permission")
    assert foreseen_machine_error(PermissionError(13, "Permission denied")) is None
