"""Headers with no length or a wrong one: all samples are read, and missing ones are reported."""

import os
import re
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile
from conftest import ROOT
from test_audio_files import sphere

from speech_enhancement.data.audio_files import audio_length, read_audio
from speech_enhancement.enhancement.pipe import Source, stream_blocks
from speech_enhancement.errors import InputError

N = 30_000
RNG = np.random.default_rng(0)
SAMPLES = (3000 * np.sin(np.arange(N) / 10) + RNG.normal(0, 300, N)).astype(np.int16)
LIST = b"LIST" + struct.pack("<I", 4) + b"INFO"


def encoded(folder, name, samples=SAMPLES, rate=16000, **kind) -> bytes:
    """Return the bytes of a file as libsndfile writes it."""
    path = folder / f"encoded-{name}"
    soundfile.write(path, samples, rate, **kind)
    content = path.read_bytes()
    path.unlink()
    return content


def with_bytes(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


def check(path, expected):
    """Check that all readers agree on a file, and on these samples."""
    audio = read_audio(str(path))
    assert len(audio) == audio_length(str(path)) == len(expected)
    np.testing.assert_array_equal(audio, np.asarray(expected) / np.float32(32768))


# --- Chunks ---------------------------------------------------------------------------------------

# Extension: kind, mark, where the size of the samples is behind the mark, its format, what it adds.
CHUNKS = {
    "wav": ({"format": "WAV"}, b"data", 4, "<I", 0),
    "rf64": ({"format": "RF64"}, b"ds64", 16, "<Q", 0),
    "aiff": ({"format": "AIFF"}, b"SSND", 4, ">I", 8),
    "w64": ({"format": "W64"}, b"data\xf3", 16, "<q", 24),
    "caf": ({"format": "CAF"}, b"data", 4, ">q", 4),
    "au": ({"format": "AU", "endian": "BIG"}, b".snd", 8, ">I", 0),
}
UNKNOWN = {
    "zero": 0,
    "31 bits": 2**31 - 1,
    "sox": 0x7FFFF000,
    "arecord": 2**31,
    "32 bits": 2**32 - 1,
    "ffmpeg": 2**32 - 53,
}


def announcing(folder, extension, n_bytes):
    """Write a file whose header announces so many bytes of samples; return its path."""
    kind, mark, distance, size, added = CHUNKS[extension]
    content = encoded(folder, f"a.{extension}", subtype="PCM_16", **kind)
    field = struct.pack(size, (n_bytes + added) % 256 ** struct.calcsize(size))
    path = folder / f"a.{extension}"
    path.write_bytes(with_bytes(content, content.index(mark) + distance, field))
    return path


@pytest.mark.parametrize("extension", CHUNKS)
@pytest.mark.parametrize("what", UNKNOWN)
def test_a_length_that_the_writer_did_not_know(tmp_path, capsys, extension, what):
    check(announcing(tmp_path, extension, UNKNOWN[what]), SAMPLES)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("extension", CHUNKS)
def test_a_length_that_is_too_small_is_said_with_both_numbers(tmp_path, capsys, extension):
    check(announcing(tmp_path, extension, 1000), SAMPLES)
    assert re.search(
        rf"a\.{extension} announces 1000 bytes of samples, {2 * N} found", capsys.readouterr().out
    )


@pytest.mark.parametrize("extension", CHUNKS)
def test_a_file_that_ends_before_its_announced_end_is_refused_with_both_numbers(
    tmp_path, extension
):
    for n_bytes in (2 * N + 2, 4 * N):
        path = announcing(tmp_path, extension, n_bytes)
        for reader in (audio_length, read_audio):
            with pytest.raises(
                InputError, match=rf"cut short: {n_bytes} bytes of samples announced, {2 * N} found"
            ):
                reader(str(path))


@pytest.mark.parametrize("n_bytes", [0, 1000, 2**31 - 1, 2**32 - 1, 2 * N])
def test_chunks_behind_the_samples_are_no_samples(tmp_path, n_bytes):
    content = encoded(tmp_path, "a.wav", subtype="PCM_16")
    path = tmp_path / "a.wav"
    path.write_bytes(with_bytes(content, 40, struct.pack("<I", n_bytes)) + LIST)
    if n_bytes == 2 * N:
        check(path, SAMPLES)
    else:  # nobody can tell where the samples end: all is read, but nothing is lost
        np.testing.assert_array_equal(read_audio(str(path))[:N], SAMPLES / np.float32(32768))
        assert audio_length(str(path)) == N + len(LIST) // 2


@pytest.mark.parametrize(
    "n_bytes, extra", [(5 * 2**30, b""), (5 * 2**30, LIST), (9 * 2**30 + 2, LIST)]
)
@pytest.mark.parametrize("announced", ["wrapped", "endless"])
def test_a_wave_beyond_4_gib(tmp_path, n_bytes, extra, announced):
    head = encoded(tmp_path, "a.wav", subtype="PCM_16")[:40]
    path = tmp_path / "a.wav"
    if announced == "endless":
        extra = b""
    with open(path, "wb") as file:
        file.write(
            head + (struct.pack("<I", n_bytes % 2**32) if announced == "wrapped" else b"\xff" * 4)
        )
        file.truncate(44 + n_bytes)  # zeros that take no space
        file.seek(44 + n_bytes - 2000)
        file.write(SAMPLES[:1000].tobytes() + extra)
    assert audio_length(str(path)) == n_bytes // 2


def test_a_wave_of_nearly_2_gib_is_no_endless_length(tmp_path):
    n_bytes = 2**31 - 4096
    head = encoded(tmp_path, "a.wav", subtype="PCM_16")[:40]
    path = tmp_path / "a.wav"
    with open(path, "wb") as file:
        file.write(head + struct.pack("<I", n_bytes))
        file.truncate(44 + n_bytes)  # zeros that take no space
        file.seek(44 + n_bytes)
        file.write(LIST)
    assert audio_length(str(path)) == n_bytes // 2


def test_a_tag_of_mp3_players_behind_the_samples_is_no_sound(tmp_path):
    content = encoded(tmp_path, "a.wav", subtype="PCM_16")
    (tmp_path / "a.wav").write_bytes(content + b"TAG" + bytes(125))
    check(tmp_path / "a.wav", SAMPLES)


def test_a_sphere_file_that_announces_too_little_is_said_with_both_numbers(tmp_path, capsys):
    (tmp_path / "a.wav").write_bytes(sphere(SAMPLES, announced=100))
    check(tmp_path / "a.wav", SAMPLES)
    assert f"announces 100 samples, {N} found" in capsys.readouterr().out


@pytest.mark.parametrize("extension", ["rf64", "w64"])
def test_many_hours_are_no_endless_length(tmp_path, extension):
    n_samples = 7 * 3600 * 96_000
    kind, mark, distance, size, added = CHUNKS[extension]
    content = encoded(tmp_path, f"a.{extension}", subtype="PCM_16", **kind)
    content = with_bytes(
        content, content.index(mark) + distance, struct.pack(size, 2 * n_samples + added)
    )
    path = tmp_path / f"a.{extension}"
    with open(path, "wb") as file:
        file.write(content[: -2 * N])
        file.truncate(len(content) - 2 * N + 2 * n_samples)
    assert audio_length(str(path)) == n_samples


def test_a_creative_voice_file_that_ends_early_is_refused(tmp_path):
    content = encoded(tmp_path, "a.voc", format="VOC", subtype="PCM_16")
    (tmp_path / "a.voc").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"a\.voc is cut short"):
        read_audio(str(tmp_path / "a.voc"))


# --- Frames and pages -----------------------------------------------------------------------------


def flac(folder, samples=SAMPLES, announced=None, rate=16000):
    content = encoded(folder, "a.flac", samples, rate)
    if announced is None:
        return content
    head = with_bytes(content, 21, bytes([content[21] & 0xF0 | announced >> 32]))
    return with_bytes(head, 22, struct.pack(">I", announced % 2**32))


@pytest.mark.parametrize("announced", [0, 2**36 - 1, 1000, None])
def test_a_flac_of_unknown_or_wrong_length(tmp_path, capsys, announced):
    (tmp_path / "a.flac").write_bytes(flac(tmp_path, announced=announced))
    check(tmp_path / "a.flac", SAMPLES)
    assert ("announces 1000 samples, 30000 found" in capsys.readouterr().out) == (announced == 1000)


@pytest.mark.parametrize("number", [b"\xff" * 12, b"\x85" + bytes(11)])
def test_bytes_that_look_like_a_flac_frame_but_have_no_number_change_nothing(tmp_path, number):
    (tmp_path / "a.flac").write_bytes(flac(tmp_path) + b"\xff\xf8\xc9\xcc" + number)
    check(tmp_path / "a.flac", SAMPLES)


@pytest.mark.parametrize("n_parts", [2, 3])
def test_joined_flac_is_read_to_its_end(tmp_path, n_parts):
    (tmp_path / "a.flac").write_bytes(flac(tmp_path) * n_parts)
    check(tmp_path / "a.flac", np.tile(SAMPLES, n_parts))


def test_a_flac_that_ends_early_or_is_damaged_is_refused_with_both_numbers(tmp_path):
    whole = flac(tmp_path)
    for content, numbers in (
        (flac(tmp_path, announced=2 * N), f"{2 * N} samples announced, {N} found"),
        (whole[: len(whole) // 2], f"{N} samples announced, [0-9]+ found"),
        (with_bytes(whole, len(whole) // 2, bytes(300)), f"{N} samples announced, [0-9]+ found"),
    ):
        (tmp_path / "a.flac").write_bytes(content)
        with pytest.raises(InputError, match=rf"a\.flac is cut short.*{numbers}"):
            read_audio(str(tmp_path / "a.flac"))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_is_read_to_its_end(tmp_path, subtype):
    parts = [
        encoded(tmp_path, "a.ogg", samples, subtype=subtype)
        for samples in (SAMPLES, SAMPLES[:9000])
    ]
    singles = []
    for part in parts:
        (tmp_path / "part.ogg").write_bytes(part)
        singles.append(read_audio(str(tmp_path / "part.ogg")))
    (tmp_path / "a.ogg").write_bytes(b"".join(parts))
    audio = read_audio(str(tmp_path / "a.ogg"))
    np.testing.assert_array_equal(audio, np.concatenate(singles))
    assert audio_length(str(tmp_path / "a.ogg")) == len(audio) == N + 9000
    (tmp_path / "a.ogg").write_bytes(b"".join(parts)[:-100])
    with pytest.raises(InputError, match="cut short"):
        read_audio(str(tmp_path / "a.ogg"))


def test_joined_streams_of_two_rates_are_refused(tmp_path):
    (tmp_path / "a.flac").write_bytes(flac(tmp_path) + flac(tmp_path, rate=44100))
    with pytest.raises(InputError, match="16000 Hz, 1 channels and 44100 Hz"):
        read_audio(str(tmp_path / "a.flac"))


def mp3(folder, samples, rate=44100):
    """Return an MP3 with its first frame, which tells the length, and without it."""
    content = encoded(folder, "a.mp3", samples, rate)
    return content, content[
        content.index(content[:2], max(content.find(b"Xing"), content.find(b"Info"))) :
    ]


@pytest.mark.parametrize("n_quiet", [0, 88_200])
def test_an_mp3_without_its_first_frame_is_read_to_its_end(tmp_path, n_quiet):
    samples = np.concatenate([np.zeros(n_quiet, np.int16), np.tile(SAMPLES, 4)])
    whole, bare = mp3(tmp_path, samples)
    lengths = {}
    for name, content in {
        "whole": whole,
        "bare": bare,
        "joined": bare + bare,
        "twice": whole * 2,
    }.items():
        path = tmp_path / f"{name}.mp3"
        path.write_bytes(content)
        assert audio_length(str(path)) == len(read_audio(str(path)))
        lengths[name] = audio_length(str(path)) * 44100 / 16000
    assert lengths["whole"] == pytest.approx(len(samples), abs=3)  # rounded up to 16 kHz
    assert lengths["twice"] == pytest.approx(2 * len(samples), abs=3)
    # Without the first frame nobody knows how much of the first and the last frame is filling: up
    # to 3 of 1152 samples.
    assert len(samples) <= lengths["bare"] < len(samples) + 3 * 1152
    assert 2 * len(samples) <= lengths["joined"] < 2 * (len(samples) + 3 * 1152)


# --- Pipes ----------------------------------------------------------------------------------------


def through_a_pipe(content: bytes) -> tuple[np.ndarray, Source]:
    """Return what libsndfile reads of a WAV that comes from a pipe."""
    reading, writing = os.pipe()

    def write():
        with open(writing, "wb") as file:
            file.write(content)

    threading.Thread(target=write).start()
    source = Source(reading)
    with soundfile.SoundFile(source.open(), closefd=True) as file:
        samples = np.concatenate(list(stream_blocks(file, 1600)))
    for thread in threading.enumerate():
        if "_hand_on" in thread.name:  # still reads, up to the end
            thread.join()
    os.close(reading)
    return samples[:, 0], source


@pytest.mark.parametrize("container", ["WAV", "RF64", "WAVEX"])
@pytest.mark.parametrize("announced", [0, 1000, 2**31 - 1, 2**32 - 1, 2 * N])
def test_all_that_comes_from_a_pipe_is_read(tmp_path, capsys, container, announced):
    content = encoded(tmp_path, "a.wav", subtype="PCM_16", format=container)
    place = content.index(b"data") + 4
    samples, source = through_a_pipe(with_bytes(content, place, struct.pack("<I", announced)))
    np.testing.assert_array_equal(samples, SAMPLES / np.float32(32768))
    source.check_end()
    assert ("announced 1000 bytes of samples, 60000 came" in capsys.readouterr().err) == (
        announced == 1000
    )


@pytest.mark.parametrize("subtype", ["PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64"])
def test_samples_of_every_kind_pass_a_pipe(tmp_path, container, subtype):
    content = encoded(tmp_path, "a.wav", subtype=subtype, format=container)
    (tmp_path / "a.wav").write_bytes(content)
    samples, _ = through_a_pipe(content)
    np.testing.assert_array_equal(samples, read_audio(str(tmp_path / "a.wav")))


def test_chunks_behind_the_samples_of_a_pipe_are_no_samples(tmp_path):
    samples, source = through_a_pipe(encoded(tmp_path, "a.wav", subtype="PCM_16") + LIST)
    source.check_end()
    np.testing.assert_array_equal(samples, SAMPLES / np.float32(32768))


def test_a_pipe_that_breaks_off_is_said_after_what_came(tmp_path):
    content = encoded(tmp_path, "a.wav", subtype="PCM_16")[: 44 + 20_000]
    command = [sys.executable, str(ROOT / "main_dnn.py"), "enhance", "-"]
    done = subprocess.run(command, input=content, capture_output=True, check=False)
    assert done.returncode == 2 and len(done.stdout) == 44 + 20_000
    assert b"60000 bytes of samples announced, 20000 came" in done.stderr
