"""Signals as they come: digital silence, a constant, narrow bands, absurd samples and models."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr
from conftest import MINI, ROOT, run
from small_models import make_model

from speech_enhancement.constant_offset import OffsetStream, without_offset
from speech_enhancement.data.audio_files import read_audio
from speech_enhancement.enhancement.blocks import enhance_with_all
from speech_enhancement.enhancement.enhance import SHIPPED_TOGETHER
from speech_enhancement.enhancement.enhance_audio import FeatureStream
from speech_enhancement.enhancement.sample_rates import enhanced_at_rate
from speech_enhancement.errors import InputError
from speech_enhancement.evaluation.measures import si_sdr
from speech_enhancement.features import stft
from speech_enhancement.network.network import load_model, save_model
from speech_enhancement.network_input import (
    frames_and_statistics,
)
from speech_enhancement.recipe import load_recipe

LSB = 2**-15


@pytest.fixture(scope="module")
def shipped():
    return [load_model(path) for path in SHIPPED_TOGETHER]


@pytest.fixture(scope="module")
def speech():
    """10 s of speech without a constant, at -26 dB."""
    names = ("en_librivox_disposed", "ru_ivrvoice_nobody")
    waves = [read_audio(str(MINI / "test_speech" / f"{name}.wav")) for name in names]
    speech = np.concatenate([wave - wave.mean() for wave in waves * 2])[:160_000]
    return 0.05 * speech / np.sqrt(np.mean(speech**2))


@pytest.fixture(scope="module")
def mixture(speech):
    """The speech with white noise at 5 dB."""
    noise = np.random.default_rng(0).standard_normal(len(speech))
    return (speech + 0.05 * 10**-0.25 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def plain(shipped, mixture):
    return enhance_with_all(shipped, mixture)


# --- Digital silence ------------------------------------------------------------------------------


def silence(n_samples, n_lsb=0):
    return n_lsb * LSB * np.random.default_rng(1).choice([-1.0, 0.0, 1.0], n_samples)


@pytest.mark.parametrize("n_lsb", [0, 1])
@pytest.mark.parametrize(
    "duration, place", [(0.1, 80_000), (1, 80_000), (4, 0), (4, 80_000), (4, 160_000), (70, 80_000)]
)
def test_silence_does_not_spoil_what_stands_beside_it(
    shipped, speech, mixture, plain, duration, place, n_lsb
):
    gap = silence(round(16000 * duration), n_lsb).astype(np.float32)
    found = enhance_with_all(shipped, np.concatenate([mixture[:place], gap, mixture[place:]]))
    assert np.abs(found[place + 512 : place + len(gap) - 512]).max(initial=0) < 2 * LSB
    found = np.concatenate([found[:place], found[place + len(gap) :]])
    beside = slice(max(0, place - 32_000), place + 32_000)
    # Beside the silence less of the noise is known. Counted as noise, it costs 5 to 12 dB.
    assert si_sdr(speech[beside], found[beside]) > si_sdr(speech[beside], plain[beside]) - 1


def test_frames_without_signal_are_left_out_of_level_and_percentiles():
    settings = load_recipe("default").input
    spectrum = stft(np.random.default_rng(0).standard_normal(512 + 99 * 256), 512, 256)
    with_silence = np.insert(spectrum, [20] * 30 + [100] * 50, 0, axis=0)
    frames, statistics = frames_and_statistics(with_silence, settings)
    expected_frames, expected = frames_and_statistics(spectrum, settings)
    heard = np.abs(with_silence).any(axis=1)
    np.testing.assert_allclose(statistics[0], expected[0], rtol=0, atol=1e-12)  # rounding
    np.testing.assert_allclose(frames[heard], expected_frames, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(frames[~heard], statistics[~heard][:, 2])  # as noise goes on


def test_the_first_frames_of_noise_aware_training_hold_signal():
    settings = load_recipe("xu2015").input
    audio = np.random.default_rng(0).standard_normal(512 + 99 * 256)
    spectrum = stft(audio, 512, 256)
    delayed = np.insert(spectrum, [0] * 30, 0, axis=0)
    found, expected = (frames_and_statistics(x, settings)[1][0] for x in (delayed, spectrum))
    np.testing.assert_array_equal(found, expected)


# --- A constant offset ----------------------------------------------------------------------------


def test_a_recording_that_stops_and_starts_stays_clear(shipped, speech, mixture, plain):
    is_on = np.arange(len(mixture)) // 8000 % 2 == 0
    found = enhance_with_all(shipped, mixture * is_on)
    # 4 to 5 dB where each border of a silence is a context that the networks do not know.
    assert si_sdr(speech[is_on], found[is_on]) > si_sdr(speech[is_on], plain[is_on]) - 1.5


@pytest.mark.parametrize("offset", [0.1, -0.5])
def test_a_constant_does_no_harm(shipped, speech, mixture, plain, offset):
    found = enhance_with_all(shipped, mixture + np.float32(offset))
    assert len(found) == len(speech)
    assert si_sdr(speech, found) > si_sdr(speech, plain) - 0.3
    assert abs(found.mean()) < 0.005  # it is taken out; 3 % of the level may stay


def test_a_constant_that_stops_for_a_while_does_no_harm(shipped, speech, mixture, plain):
    shifted = np.insert(mixture + np.float32(0.1), [80_000] * 16_000, 0)
    found = enhance_with_all(shipped, shifted)[48_000:80_000]
    assert (
        si_sdr(speech[48_000:80_000], found)
        > si_sdr(speech[48_000:80_000], plain[48_000:80_000]) - 2
    )


def test_what_has_no_constant_stays_as_it_is(mixture):
    settings = load_recipe("default").input
    spectrum = stft(mixture, 512, 256)
    assert without_offset(spectrum, settings) is spectrum


def test_as_much_of_a_constant_is_taken_out_as_it_is_large_and_steady():
    n_frames, width = 200, 100
    settings = dataclasses.replace(load_recipe("default").input, level_window_s=width * 0.016)
    # Deviations of the frames' means are 0.05: a constant of 0.1 is half steady, one of 0.4 wholly.
    audio = np.random.default_rng(0).standard_normal(512 + 256 * (n_frames - 1))
    audio += np.repeat([0.1, -0.4], len(audio) // 2)
    spectrum, of_one = stft(audio, 512, 256), stft(np.ones(512), 512, 256)[0]
    constant, power = spectrum[:, 0].real / of_one[0].real, np.abs(spectrum) ** 2
    expected, shares = np.empty_like(spectrum), np.empty(n_frames)
    for frame in range(n_frames):
        end = max(frame + 1, 62)  # 1 s
        recent, around = constant[max(end - 62, 0) : end], power[max(end - width, 0) : end]
        mean = recent.mean()
        rest = around.mean() - mean**2 * np.mean(np.abs(of_one) ** 2)
        shares[frame] = np.clip(abs(mean) / recent.std() / 1.5 - 1, 0, 1)
        amount = np.sign(mean) * max(abs(mean) - 0.03 * np.sqrt(rest), 0) * shares[frame]
        expected[frame] = spectrum[frame] - amount * of_one
    for n_at_once in (200, 70, 7):  # at once, or in parts as a stream has them
        stream, starts = OffsetStream(settings), range(0, n_frames, n_at_once)
        parts = [spectrum[start : start + n_at_once] for start in starts]
        found = [stream.add(part, is_last=part is parts[-1]) for part in parts]
        # Differences of long sums.
        np.testing.assert_allclose(np.concatenate(found), expected, rtol=0, atol=1e-10)
    assert shares.min() == 0 and shares.max() == 1 and np.any((shares > 0.2) & (shares < 0.8))


@pytest.mark.parametrize("value", [0.1, -0.3])
def test_nothing_is_left_of_a_constant_alone(value):
    spectrum = stft(np.full(512 + 256 * 99, value), 512, 256)
    left = without_offset(spectrum, load_recipe("default").input)
    # The rest is 0 but for the rounding of a difference, the root of 1e-16 of the constant's power.
    assert np.abs(left).max() < 1e-6 * np.abs(spectrum).max()


# --- Narrow bands ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n_bins, level_above, is_filled",
    [
        (48, 0, False),
        (56, 0, True),
        (128, 0, True),
        (128, 1e-4, True),  # 80 dB lower: none
        (128, 3e-3, False),  # 50 dB lower: soft, but signal
        (232, 0, True),
        (240, 0, False),
    ],
)
def test_what_lies_above_the_band_mirrors_its_upper_half(n_bins, level_above, is_filled):
    spectrum = stft(np.random.default_rng(0).standard_normal(512 + 256 * 99), 512, 256)
    spectrum[:, n_bins:] *= level_above
    bins = np.arange(257)
    if is_filled:  # bands from 2 to 7.5 kHz
        upper_half = np.arange(n_bins // 2, n_bins)
        bins[n_bins:] = np.resize([*upper_half[::-1], *upper_half], 257 - n_bins)
    magnitude = np.abs(spectrum)[:, bins]
    level = np.log(np.mean(magnitude**2)) / 2
    log = np.log(magnitude + 1e-8)
    expected = [np.percentile(log, p, axis=0, method="nearest") for p in (10, 20, 50, 80)]
    frames, statistics = frames_and_statistics(spectrum, load_recipe("default").input)
    # 1e-8 is added to magnitudes of 1e-3 and more before the level is measured.
    np.testing.assert_allclose(frames, np.maximum(log - level, -9.2), rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        statistics[0], np.maximum(np.array(expected) - level, -9.2), rtol=0, atol=1e-5
    )


def test_the_band_is_found_with_another_transform():
    lines = [
        "import config",
        "config.sample_rate, config.n_window, config.n_overlap = 8000, 256, 128",
        "import numpy as np",
        "from speech_enhancement.features import stft",
        "from speech_enhancement.network_input import band_end",
        "spectrum = stft(np.random.default_rng(0).standard_normal(40000), 256, 128)",
        "spectrum[:, 64:] = 0",
        "print(band_end(spectrum, np.mean(np.abs(spectrum) ** 2)))",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(found.stdout) == 64 + 8  # the next band has what its neighbour leaks to it


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 14000])
@pytest.mark.parametrize("n_models", [1, 2])
def test_a_lower_sample_rate_costs_little(shipped, speech, mixture, rate, n_models):
    def low(audio):
        return soxr.resample(audio, 16000, rate)

    models, blocks = shipped[:n_models], iter([low(mixture)[:, None].astype(np.float32)])
    found = np.concatenate(list(enhanced_at_rate(models, blocks, rate, 1, 0.0)))[:, 0]
    expected = low(enhance_with_all(models, mixture))[: len(found)]
    reference = low(speech)[: len(found)]
    # 2 to 3 dB where the empty part of the band is taken for the absence of noise.
    assert si_sdr(reference, found) > si_sdr(reference, expected) - 1


# --- All roads ------------------------------------------------------------------------------------


def test_parts_give_what_the_whole_gives(shipped, speech, mixture):
    narrow = soxr.resample(soxr.resample(mixture[:100_000], 16000, 8000), 8000, 16000)
    odd = np.concatenate(
        [
            silence(90_000, 1),
            narrow,
            silence(20_000),
            mixture + 0.2,
            0.1 * mixture,
            silence(170_000),
        ]
    ).astype(np.float32)
    whole = enhance_with_all(shipped, odd)
    for n_block in (1600, 100_003):
        blocks = (odd[start : start + n_block, None] for start in range(0, len(odd), n_block))
        parts = np.concatenate(list(enhanced_at_rate(shipped, blocks, 16000, 1, 0.0)))[:, 0]
        np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5)  # single precision

    settings = load_recipe("default").input
    stream = FeatureStream(settings)
    ready = [stream.add(odd), stream.add(odd[:0], is_last=True)]
    expected = frames_and_statistics(stft(odd, 512, 256), settings)[1]
    found = np.concatenate([part.statistics for part in ready])[: len(expected)]
    inner = slice(0, len(expected) - 400)  # the stream completes the last frame with zeros
    np.testing.assert_allclose(found[inner], expected[inner], rtol=0, atol=1e-3)


# --- Absurd samples and models --------------------------------------------------------------------


@pytest.mark.parametrize("sample", [3e38, -1e20, np.inf, np.nan])
def test_absurd_samples_get_one_line(sample, mixture, tmp_path, capsys):
    audio = mixture[:16000].copy()
    audio[9000] = sample
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
    assert run("main_dnn", "enhance", tmp_path / "a.wav", "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "a.wav holds samples that are NaN or infinite or beyond 1e+10" in error
    assert error.count("\n") == 1 and not list((tmp_path / "out").glob("*"))
    with pytest.raises(InputError, match="beyond 1e"):
        read_audio(str(tmp_path / "a.wav"))


def test_absurd_samples_in_a_pipe_get_one_line(mixture, tmp_path):
    audio = mixture[:16000].copy()
    audio[9000] = 3e38
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
    command = [sys.executable, str(ROOT / "main_dnn.py"), "enhance", "-"]
    done = subprocess.run(
        command, input=(tmp_path / "a.wav").read_bytes(), capture_output=True, check=False
    )
    assert done.returncode == 2 and b"standard input holds samples that are NaN" in done.stderr


def test_channels_that_cancel_are_named(mixture, tmp_path):
    integers = np.round(mixture * 2**15).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", np.stack([integers, -integers], axis=1), 44100)
    with pytest.raises(InputError, match="its channels cancel each other"):
        read_audio(str(tmp_path / "a.wav"))
    soundfile.write(tmp_path / "b.wav", np.zeros((9000, 2)), 44100)
    assert not read_audio(str(tmp_path / "b.wav")).any()


def broken(path, kind):
    """Save a small model whose weights are NaN, or whose output overflows."""
    make_model(path, "original" if kind == "magnitude" else "default")
    network, settings = load_model(str(path))
    weights = network.get_weights()
    if kind == "weights":
        weights[0][3] = np.nan
    elif kind == "magnitude":
        weights[-1] += 1e4
    else:
        weights = [np.full_like(weight, 1e30) for weight in weights]
    network.set_weights(weights)
    save_model(str(path), network, settings)
    return path


@pytest.mark.parametrize(
    "kind, message",
    [
        ("weights", "has weights that are NaN or infinite"),
        ("output", "outputs NaN or infinity"),
        ("magnitude", "outputs log magnitudes beyond 40"),
    ],
)
def test_a_broken_model_is_named_in_one_line(kind, message, mixture, tmp_path, capsys):
    model = broken(tmp_path / "broken.keras", kind)
    soundfile.write(tmp_path / "a.wav", mixture, 16000)
    flags = (tmp_path / "a.wav", "--output_dir", tmp_path / "out", "--model", model)
    capsys.readouterr()
    assert run("main_dnn", "enhance", *flags) == 2
    error = capsys.readouterr().err
    assert f"broken.keras {message}" in error and error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))
