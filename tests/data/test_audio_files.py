"""Audio in all the formats and states that users have."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from conftest import MINI

from speech_enhancement.data import audio_files
from speech_enhancement.data.audio_files import (
    AudioCache,
    audio_length,
    list_audio,
    read_audio,
    write_wave,
)
from speech_enhancement.errors import InputError
from speech_enhancement.workspace import flat_name

SPEECH = MINI / "train_speech" / "en_allison_wrong.wav"


def sphere(samples: np.ndarray, rate: int = 16000, announced: int | None = None) -> bytes:
    """Return a NIST SPHERE file as TIMIT has them."""
    fields = {
        "database_id -s5": "TIMIT",
        "channel_count -i": 1,
        "sample_count -i": len(samples) if announced is None else announced,
        "sample_rate -i": rate,
        "sample_n_bytes -i": 2,
        "sample_byte_format -s2": "01",
        "sample_sig_bits -i": 16,
        "sample_coding -s3": "pcm",
    }
    header = (
        "NIST_1A\n   1024\n"
        + "".join(f"{key} {value}\n" for key, value in fields.items())
        + "end_head\n"
    )
    return header.encode().ljust(1024) + samples.astype("<i2").tobytes()


@pytest.fixture
def samples():
    return soundfile.read(SPEECH, dtype="int16")[0]


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.wav", {"subtype": "PCM_16"}),
        ("a.WAV", {"subtype": "PCM_24"}),
        ("b.wav", {"subtype": "FLOAT"}),
        ("c.wav", {"subtype": "DOUBLE"}),
        ("d.Wav", {"format": "WAVEX", "subtype": "PCM_16"}),
        ("e.FLAC", {"format": "FLAC"}),
    ],
)
def test_lossless_formats_give_the_same_samples(tmp_path, samples, name, options):
    options = {"format": "WAV", **options}
    in_float = options.get("subtype") in ("FLOAT", "DOUBLE")
    soundfile.write(tmp_path / name, samples / 32768 if in_float else samples, 16000, **options)
    assert list_audio(str(tmp_path), "speech") == [name]
    assert audio_length(str(tmp_path / name)) == len(samples)
    np.testing.assert_array_equal(read_audio(str(tmp_path / name)), samples / 32768)


def test_nist_sphere_is_read(tmp_path, samples):
    path = tmp_path / "SA1.WAV"
    path.write_bytes(sphere(samples))
    assert audio_length(str(path)) == len(samples)
    np.testing.assert_array_equal(read_audio(str(path)), samples / 32768)


def test_ogg_is_read_at_full_length(tmp_path, samples):
    soundfile.write(tmp_path / "a.ogg", samples, 16000)
    audio = read_audio(str(tmp_path / "a.ogg"))
    assert len(audio) == audio_length(str(tmp_path / "a.ogg")) == len(samples)
    # A lossy format: Vorbis at its default quality keeps speech correlated above 0.99.
    assert np.corrcoef(audio, samples)[0, 1] > 0.99


def test_channels_are_averaged(tmp_path, samples):
    soundfile.write(tmp_path / "a.wav", np.stack([samples, samples // 2], axis=1), 16000)
    np.testing.assert_allclose(
        read_audio(str(tmp_path / "a.wav")), (samples + samples // 2) / 65536, atol=1e-15
    )


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_a_tone_survives_resampling(tmp_path, rate):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(tmp_path / "a.wav", tone, rate, subtype="DOUBLE")
    audio = read_audio(str(tmp_path / "a.wav"))
    assert len(audio) == audio_length(str(tmp_path / "a.wav")) == 16000
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    # Away from the borders, where the resampler's filter hangs over, it is good to 16 bits (1e-4).
    np.testing.assert_allclose(audio[1000:-1000], expected[1000:-1000], rtol=0, atol=1e-4)


@pytest.mark.parametrize("rate, expected", [(44100, 16001), (11025, 64002)])
def test_a_length_that_is_no_whole_number_at_16_khz_is_rounded_up(tmp_path, rate, expected):
    soundfile.write(tmp_path / "a.wav", np.ones(44101) / 2, rate)
    assert len(read_audio(str(tmp_path / "a.wav"))) == expected
    assert audio_length(str(tmp_path / "a.wav")) == expected


def write_opposite_channels(path, share):
    """Write noise and, in the other channel, a share of it with the opposite sign."""
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 9000)
    soundfile.write(path, np.stack([audio, -share * audio], axis=1), 16000, subtype="FLOAT")
    return audio


def test_channels_that_cancel_in_part_leave_a_weak_mean(tmp_path):
    audio = write_opposite_channels(tmp_path / "a.wav", 0.98)
    # Rounding of single precision, at samples below 0.5.
    np.testing.assert_allclose(read_audio(str(tmp_path / "a.wav")), 0.01 * audio, rtol=0, atol=1e-6)


@pytest.mark.parametrize("share", [0.9999, 1.0])
def test_channels_that_cancel_but_for_a_rest_are_refused(tmp_path, share):
    write_opposite_channels(tmp_path / "a.wav", share)
    with pytest.raises(InputError, match=r"a\.wav: its channels cancel each other"):
        read_audio(str(tmp_path / "a.wav"))


def test_a_written_wave_is_float_and_exceeds_full_scale_unclipped(tmp_path):
    audio = np.array([0.0, 1.5, -2.5, 0.25])
    write_wave(str(tmp_path / "a.wav"), audio)
    assert soundfile.info(tmp_path / "a.wav").subtype == "FLOAT"
    np.testing.assert_array_equal(read_audio(str(tmp_path / "a.wav")), audio)
    content = (tmp_path / "a.wav").read_bytes()
    peak = content.index(b"PEAK")
    assert content[peak + 12 : peak + 16] == bytes(4)  # the time of writing


def truncated(tmp_path, samples, name):
    """Write the first 60 % of an audio file."""
    path = tmp_path / name
    soundfile.write(path, samples, 16000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])


BROKEN = {
    "text.wav": (
        lambda folder, samples: (folder / "text.wav").write_text("no wave"),
        "not readable as audio",
    ),
    "zero.wav": (
        lambda folder, samples: (folder / "zero.wav").write_bytes(b""),
        "not readable as audio",
    ),
    "none.wav": (
        lambda folder, samples: soundfile.write(folder / "none.wav", samples[:0], 16000),
        "no samples",
    ),
    "cut.wav": (lambda folder, samples: truncated(folder, samples, "cut.wav"), "cut short"),
    "cut.flac": (
        lambda folder, samples: truncated(folder, samples, "cut.flac"),
        "cut short|not readable",
    ),
    "cut.ogg": (
        lambda folder, samples: truncated(folder, samples, "cut.ogg"),
        "cut short|no samples|not readable",
    ),
    "CUT.WAV": (
        lambda folder, samples: (folder / "CUT.WAV").write_bytes(
            sphere(samples, announced=2 * len(samples))
        ),
        "cut short",
    ),
    "nan.wav": (
        lambda folder, samples: soundfile.write(
            folder / "nan.wav", [0.0, np.nan, 0.1] * 600, 16000, subtype="FLOAT"
        ),
        "NaN",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, samples, name):
    make, message = BROKEN[name]
    make(tmp_path, samples)
    with pytest.raises(InputError, match=rf"{name}.*({message})"):
        read_audio(str(tmp_path / name))


def test_a_wave_streamed_to_a_pipe_announces_an_endless_length_and_is_read(tmp_path, samples):
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(content)
    np.testing.assert_array_equal(read_audio(str(tmp_path / "a.wav")), samples / 32768)


def test_folders_are_listed_below_sorted_and_hidden_files_left_out(tmp_path):
    names = [
        "b.wav",
        "TRAIN/DR1/FCJF0/SA1.WAV",
        "a b.c.flac",
        "notes.txt",
        ".hidden.wav",
        ".dir/x.wav",
        "Grüße.ogg",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_audio(str(tmp_path), "speech") == [
        "Grüße.ogg",
        "TRAIN/DR1/FCJF0/SA1.WAV",
        "a b.c.flac",
        "b.wav",
    ]
    assert flat_name("TRAIN/DR1/FCJF0/SA1.WAV") == "TRAIN_DR1_FCJF0_SA1"
    assert flat_name("a b.c.flac") == "a b.c"


@pytest.mark.parametrize(
    "first, second", [("a.wav", "a.flac"), ("a/b.wav", "a_b.wav"), ("a.WAV", "a.wav")]
)
def test_two_inputs_with_one_output_name_are_both_named(tmp_path, first, second):
    for name in (first, second):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    if len(list(tmp_path.rglob("*.*"))) < 2:
        pytest.skip("this file system does not tell the case of letters apart")
    with pytest.raises(InputError) as error:
        list_audio(str(tmp_path), "noise")
    assert first in str(error.value) and second in str(error.value)


@pytest.mark.parametrize("entry", ["DR1/SA1.WAV", "DR1/SA1", "DR1_SA1.WAV", "DR1_SA1"])
def test_a_list_names_files_by_path_or_flat_name(tmp_path, capsys, entry):
    (tmp_path / "speech" / "DR1").mkdir(parents=True)
    for name in ("SA1.WAV", "SA2.WAV"):
        (tmp_path / "speech" / "DR1" / name).touch()
    names = tmp_path / "list.csv"
    names.write_text(f"# name\torigin\n{entry}\tsomewhere\nDR1/SX9.WAV\n")
    assert list_audio(str(tmp_path / "speech"), "speech", str(names)) == ["DR1/SA1.WAV"]
    assert "missing in" in (printed := capsys.readouterr().out) and "DR1/SX9.WAV" in printed


def test_a_list_that_names_nothing_is_an_error(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "list.txt").write_text("b.wav\n")
    with pytest.raises(InputError, match=r"list\.txt names none"):
        list_audio(str(tmp_path), "noise", str(tmp_path / "list.txt"))


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded, in order."""
    names = []

    def read(path):
        names.append(os.path.basename(path))
        return read_audio(path)

    monkeypatch.setattr(audio_files, "read_audio", read)
    return names


def write_waves(folder, lengths):
    rng = np.random.default_rng(0)
    for name, n_samples in lengths.items():
        soundfile.write(folder / name, rng.uniform(-0.5, 0.5, n_samples), 16000)
    return {name: str(folder / name) for name in lengths}


def test_the_cache_forgets_what_was_used_longest_ago(tmp_path, decoded):
    paths = write_waves(tmp_path, {"a.wav": 1000, "b.wav": 1000, "c.wav": 1000, "long.wav": 9000})
    cache = AudioCache(max_bytes=8000)  # two waves of 1000 samples
    for name in ("a.wav", "b.wav", "a.wav", "c.wav", "a.wav"):
        np.testing.assert_array_equal(cache.read(paths[name]), read_audio(paths[name]))
    assert decoded == ["a.wav", "b.wav", "c.wav"]
    cache.read(paths["b.wav"])  # was forgotten for c.wav
    assert decoded[3:] == ["b.wav"]
    for name in ("long.wav", "long.wav", "b.wav"):  # one larger than the cache has it for itself
        cache.read(paths[name])
    assert decoded[4:] == ["long.wav", "b.wav"]


def test_the_cache_reads_a_changed_file_again(tmp_path, decoded):
    path = write_waves(tmp_path, {"a.wav": 1000})["a.wav"]
    cache = AudioCache()
    assert len(cache.read(path)) == 1000
    write_waves(tmp_path, {"a.wav": 2000})
    assert len(cache.read(path)) == 2000 and decoded == ["a.wav", "a.wav"]


def test_the_cache_reads_a_file_again_that_changed_at_the_same_length(tmp_path):
    path = str(tmp_path / "a.wav")
    cache = AudioCache()
    for time, value in ((1, 0.25), (2, 0.5)):
        soundfile.write(path, np.full(1000, value), 16000)
        os.utime(path, (time, time))
        assert cache.read(path)[0] == value


def test_threads_that_want_one_file_wait_for_one_decoding(tmp_path, monkeypatch):
    path = write_waves(tmp_path, {"a.wav": 1000})["a.wav"]
    begun, go_on, n_decoded = threading.Event(), threading.Event(), []

    def slow_read(path):
        n_decoded.append(path)
        begun.set()
        assert go_on.wait(60)
        return read_audio(path)

    monkeypatch.setattr(audio_files, "read_audio", slow_read)
    cache = AudioCache()
    with ThreadPoolExecutor(4) as pool:
        waves = [pool.submit(cache.read, path) for _ in range(4)]
        assert begun.wait(60)
        go_on.set()
        assert len({id(wave.result()) for wave in waves}) == 1 and len(n_decoded) == 1
