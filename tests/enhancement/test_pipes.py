"""Pipes: headers of every shape, the flags of files, peaks, and input that is awaited or ends."""

import io
import os
import select
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import ROOT, run
from small_models import make_memory_model, make_model, noise

from speech_enhancement.enhancement.pipe import Source, stream_blocks

LIST = b"LIST" + struct.pack("<I", 4) + b"INFO"


def encoded(audio, **kind) -> bytes:
    """Return the bytes of a WAV at 16 kHz."""
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, 16000, **{"format": "WAV", "subtype": "PCM_16", **kind})
    return buffer.getvalue()


def command(model, *flags):
    return [sys.executable, str(ROOT / "main_dnn.py"), "enhance", *flags, "--model", str(model)]


def through_source(path, content):
    """Return the samples of a WAV that Source hands on, and Source at its end."""
    path.write_bytes(content)
    source = Source(os.open(path, os.O_RDONLY))  # left open: its thread reads on to the end
    with soundfile.SoundFile(source.open(), closefd=True) as file:
        samples = np.concatenate(list(stream_blocks(file, 1600)))[:, 0]
    return samples, source


# --- Headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "before", "behind"),
    [
        ({}, b"bext" + struct.pack("<I", 5) + bytes(6), b""),  # filled up to an even number
        ({"subtype": "PCM_24"}, b"", LIST),  # samples that are filled up
        ({"format": "RF64"}, b"", LIST),  # the length of the samples is told elsewhere
    ],
)
def test_chunks_around_the_samples_of_a_pipe_are_no_samples(tmp_path, capsys, kind, before, behind):
    audio = np.round(noise(20_001) * 2**15) / 2**15
    content = encoded(audio, **kind)
    content = content[:12] + before + content[12:] + behind
    samples, source = through_source(tmp_path / "a.wav", content)
    np.testing.assert_array_equal(samples, audio.astype(np.float32))
    source.check_end()
    assert capsys.readouterr().err == ""


# --- What comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [(), ("--live",)])
def test_the_limit_of_attenuation_holds_in_a_pipe(tmp_path, live):
    model = tmp_path / "model.keras"
    if live:
        make_memory_model(model)
    else:
        make_model(model, bias=-50.0)  # a mask of 0
    audio = noise(30_000).astype(np.float32)
    flags = (*live, "-", "--attenuation_limit", "0.001")
    content = encoded(audio, subtype="FLOAT")
    done = subprocess.run(command(model, *flags), input=content, capture_output=True, check=True)
    # 0.001 dB of samples up to 0.5, and single precision.
    np.testing.assert_allclose(np.frombuffer(done.stdout[44:], "<f4"), audio, rtol=0, atol=1e-4)


def test_peaks_of_a_pipe_are_limited_like_those_of_a_file(tmp_path):
    is_low = np.arange(257) < 40
    dull = make_model(tmp_path / "model.keras", bias=np.where(is_low, 50.0, -50.0))
    square = np.repeat(np.tile([1, -1], 200), 100) * (1 - 2**-15)  # without its top it overshoots
    (tmp_path / "a.wav").write_bytes(encoded(square))
    flags = ("--output_dir", tmp_path / "out", "--model", dull)
    assert run("main_dnn", "enhance", tmp_path / "a.wav", *flags) == 0
    done = subprocess.run(
        command(dull, "-"), input=encoded(square), capture_output=True, check=True
    )
    found = np.frombuffer(done.stdout[44:], "<i2").astype(int)
    of_file = soundfile.read(tmp_path / "out" / "a.wav", dtype="int16")[0]
    # Other blocks, so that the last bit may round the other way.
    assert np.abs(found - of_file).max() <= 1


# --- While input is awaited, and where it ends ----------------------------------------------------


def test_a_live_pipe_writes_what_it_has_while_more_is_awaited(tmp_path):
    model = make_memory_model(tmp_path / "model.keras")
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    # Python writes at once where this is set, whatever the program does.
    options["env"] = {**os.environ, "PYTHONUNBUFFERED": ""}
    n_ready = 4000 - 512 - 160  # less a window, which is the delay, and a block
    with subprocess.Popen(command(model, "--live", "-"), **options) as process:
        process.stdin.write(encoded(noise(30_000))[: 44 + 2 * 4000])
        process.stdin.flush()
        descriptor, found = process.stdout.fileno(), b""
        while (
            len(found) < 44 + 2 * n_ready
            and select.select([descriptor], [], [], 60)[0]
            and (part := os.read(descriptor, 2**16))
        ):
            found += part
        process.stdin.close()
        process.stdout.read()
    assert len(found) >= 44 + 2 * n_ready


def test_a_live_pipe_that_breaks_off_is_said_as_of_any_pipe(tmp_path):
    model = make_memory_model(tmp_path / "model.keras")
    content = encoded(noise(30_000))[: 44 + 20_000]
    done = subprocess.run(
        command(model, "--live", "-"), input=content, capture_output=True, check=False
    )
    assert done.returncode == 2 and len(done.stdout) == 44 + 20_000
    message = "standard input broke off: 60000 bytes of samples announced, 20000 came"
    assert message.encode() in done.stderr
