"""Which files are enhanced: at the limits of what is accepted, and what is said of them."""

import struct

import pytest
import soundfile
from conftest import expect_refusal, run
from small_models import make_model, noise

from speech_enhancement.data.audio_files import audio_length
from speech_enhancement.data.sound_file import opened


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "model.keras")


def enhance(model, folder, name):
    flags = ("--output_dir", folder / "out", "--model", model)
    return run("main_dnn", "enhance", folder / name, *flags)


def test_as_many_channels_and_as_few_samples_as_announced_are_enhanced(model, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(512, 32), 16000)
    assert enhance(model, tmp_path, "a.wav") == 0
    assert soundfile.read(tmp_path / "out" / "a.wav")[0].shape == (512, 32)


@pytest.mark.parametrize(
    ("n_samples", "n_channels", "message"),
    [
        (511, 1, "expected 512 samples or more, found 511"),
        (512, 33, "has 33 channels; expected at most 32"),
    ],
)
def test_one_sample_less_or_one_channel_more_is_refused(
    model, tmp_path, capsys, n_samples, n_channels, message
):
    soundfile.write(tmp_path / "a.wav", noise(n_samples, n_channels), 16000)
    expect_refusal(capsys, enhance(model, tmp_path, "a.wav"), message)


def test_a_wrong_length_in_a_header_is_said_where_the_file_is_enhanced(model, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", noise(30_000), 16000, subtype="PCM_16")
    content = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(content[:40] + struct.pack("<I", 1000) + content[44:])
    assert enhance(model, tmp_path, "a.wav") == 0
    assert "a.wav announces 1000 bytes of samples, 60000 found" in capsys.readouterr().out
    assert soundfile.info(tmp_path / "out" / "a.wav").frames == 30_000


def test_an_mp3_between_tags_is_as_long_as_without_and_its_picture_is_named(tmp_path):
    soundfile.write(tmp_path / "plain.mp3", noise(90_000), 44100)
    content = (tmp_path / "plain.mp3").read_bytes()
    body = b"\0image/png\0\x03\0" + bytes(239)
    picture = b"APIC" + struct.pack(">I", len(body)) + bytes(2) + body
    # The length of an ID3v2 has seven bits in each of four bytes.
    before = b"ID3\x03\0\0" + bytes([0, 0, len(picture) // 128, len(picture) % 128]) + picture
    (tmp_path / "tagged.mp3").write_bytes(before + content + b"TAG".ljust(128, b"\0"))
    plain, tagged = (audio_length(str(tmp_path / f"{name}.mp3")) for name in ("plain", "tagged"))
    assert tagged == plain
    with opened(str(tmp_path / "tagged.mp3")) as file:
        assert file.lost_notes().endswith("tagged.mp3: not copied to the output: picture")
