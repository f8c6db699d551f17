"""Mixing, transform, windows and statistics against the reference program, definitions, scipy."""

import numpy as np
import pytest
import scipy.signal
from conftest import MINI

from spectrogram_to_wave import recover_wav
from speech_enhancement.data.audio_files import AudioCache
from speech_enhancement.data.mixture_features import read_pair
from speech_enhancement.data.mixtures import Mixture
from speech_enhancement.features import (
    RunningStatistics,
    context_windows,
    log_magnitude,
    mix_at_snr,
    pad_to_whole_frames,
    root_mean_square,
    stft,
)


def assert_close_to_maximum(actual, expected):
    # The golden arrays were stored in single precision: 1e-5 of the maximum is 100 roundings.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.max(np.abs(expected)))


@pytest.fixture(scope="module")
def pair():
    """The speech and the noise segment that the golden arrays were made from."""
    mixture = Mixture("en_allison_wrong.wav", "water.wav", 1000, 44514)
    return read_pair(
        (AudioCache(), AudioCache()), mixture, str(MINI / "train_speech"), str(MINI / "train_noise")
    )


@pytest.mark.parametrize("snr", [0, 5, -2.5])
def test_mixture_and_features_equal_the_reference_implementation(golden, pair, snr):
    expected = {
        key.split("_", 1)[1]: value for key, value in golden.items() if key.startswith(f"snr{snr}_")
    }
    mixture, speech, _, scaling_factor, alpha = mix_at_snr(*pair, snr)
    mixture_stft, speech_stft = stft(mixture, 512, 256), stft(speech, 512, 256)
    assert len(mixture_stft) == expected["n_frames"]
    np.testing.assert_allclose(
        [scaling_factor, alpha], [expected["scaling_factor"], expected["alpha"]], rtol=1e-6
    )
    assert_close_to_maximum(mixture, expected["mixture"])
    assert_close_to_maximum(speech, expected["speech"])
    assert_close_to_maximum(mixture_stft[:12], expected["mixture_stft"])
    assert_close_to_maximum(np.abs(speech_stft)[:12], expected["speech_magnitude"])
    # Logarithms of magnitudes near 0 amplify the rounding of the stored arrays.
    np.testing.assert_allclose(
        log_magnitude(mixture_stft)[:12], expected["mixture_log"], rtol=0, atol=5e-4
    )


def test_windows_scaler_and_wave_equal_the_reference_implementation(golden, pair):
    mixture = mix_at_snr(*pair, 0)[0]
    mixture_stft = stft(mixture, 512, 256)
    windows = context_windows(log_magnitude(mixture_stft), 7, 3)
    assert len(windows) == golden["snr0_n_segs"]
    np.testing.assert_allclose(windows[:4], golden["snr0_context_windows_log"], rtol=0, atol=5e-4)
    statistics = RunningStatistics()
    for start in range(0, len(windows), 10):
        statistics.add(windows[start : start + 10].reshape(-1, 257))
    assert_close_to_maximum(statistics.mean, golden["snr0_scaler_mean"])
    assert_close_to_maximum(statistics.std, golden["snr0_scaler_scale"])
    recovered = recover_wav(np.abs(mixture_stft), mixture_stft, 256, np.hamming) * np.sqrt(
        np.sum(np.hamming(512) ** 2)
    )
    assert_close_to_maximum(recovered, golden["snr0_recovered"])


@pytest.mark.parametrize("n_window, n_overlap", [(512, 256), (64, 48), (16, 0)])
def test_stft_is_the_windowed_dft_of_each_frame(n_window, n_overlap):
    audio = np.random.default_rng(0).standard_normal(2000)
    n, k = np.arange(n_window), np.arange(n_window // 2 + 1)
    window = 0.54 - 0.46 * np.cos(2 * np.pi * n / (n_window - 1))
    dft = np.exp(-2j * np.pi * np.outer(k, n) / n_window) / np.sqrt(np.sum(window**2))
    starts = range(0, len(audio) - n_window + 1, n_window - n_overlap)
    expected = np.array([dft @ (window * audio[i : i + n_window]) for i in starts])
    # float64 sums of at most 512 terms of order 1: rounding stays far below 1e-10.
    np.testing.assert_allclose(stft(audio, n_window, n_overlap), expected, rtol=0, atol=1e-10)


def test_stft_magnitude_is_that_of_scipy():
    audio = np.random.default_rng(1).standard_normal(4000)
    window = np.hamming(512)
    # The original: scipy.signal.spectrogram, density scaling at fs = 1 divides by the window's
    # energy.
    _, _, expected = scipy.signal.spectrogram(
        audio, 1.0, window, 512, 256, detrend=False, mode="psd"
    )
    power = np.abs(stft(audio, 512, 256)) ** 2
    power[:, 1:-1] *= 2  # scipy's spectrum is one-sided
    np.testing.assert_allclose(power, expected.T, rtol=1e-9, atol=1e-12)


def test_white_noise_of_unit_variance_has_unit_power_in_each_bin():
    power = np.mean(
        np.abs(stft(np.random.default_rng(2).standard_normal(512 * 2000), 512, 256)) ** 2, axis=0
    )
    # Means of 3999 overlapping frames have a standard deviation below 0.025; 4 of them cover the
    # worst of 255 bins.
    np.testing.assert_allclose(power[1:-1], 1, atol=0.1)


def test_stft_says_what_is_wrong_with_short_audio():
    with pytest.raises(ValueError, match=r"n_window=512.*\(100,\)"):
        stft(np.zeros(100), 512, 256)


@pytest.mark.parametrize("n_samples", [512, 513, 767, 768, 769, 20000])
def test_a_wave_survives_the_transform_at_full_length(n_samples):
    audio = np.random.default_rng(3).uniform(-1, 1, n_samples)
    spectrum = stft(pad_to_whole_frames(audio, 512, 256), 512, 256)
    wave = recover_wav(np.abs(spectrum), spectrum, 256, np.hamming, n_samples) * np.sqrt(
        np.sum(np.hamming(512) ** 2)
    )
    # The window falls to 0.08 at the borders, which amplifies float64 rounding by 12.
    np.testing.assert_allclose(wave, audio, rtol=0, atol=1e-10)


def test_recover_wav_fills_with_zeros_or_cuts():
    spectrum = stft(np.ones(1024), 512, 256)
    assert len(recover_wav(np.abs(spectrum), spectrum, 256, np.hamming)) == 1024
    longer = recover_wav(np.abs(spectrum), spectrum, 256, np.hamming, 1100)
    assert len(longer) == 1100 and not longer[1024:].any()
    assert len(recover_wav(np.abs(spectrum), spectrum, 256, np.hamming, 700)) == 700


@pytest.mark.parametrize("snr", [-5, 0, 2.5, 20])
def test_a_mixture_is_speech_plus_noise_at_the_snr(snr):
    rng = np.random.default_rng(4)
    mixture, speech, noise, _, alpha = mix_at_snr(
        rng.standard_normal(9000), 0.1 * rng.standard_normal(9000), snr
    )
    np.testing.assert_allclose(mixture, speech + noise, rtol=0, atol=1e-14)
    assert 20 * np.log10(root_mean_square(speech) / root_mean_square(noise)) == pytest.approx(
        snr, abs=1e-9
    )
    assert np.max(np.abs(mixture)) == pytest.approx(1, abs=1e-12) and alpha > 0


def original_windows(frames, n_concat, n_hop):
    """Cut windows as the original does: pad by repetition, then step through the frames."""
    n_side = (n_concat - 1) // 2
    padded = np.concatenate([frames[:1]] * n_side + [frames] + [frames[-1:]] * n_side)
    return np.array([padded[i : i + n_concat] for i in range(0, len(padded) - n_concat + 1, n_hop)])


@pytest.mark.parametrize("n_frames", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("n_concat, n_hop", [(1, 1), (3, 1), (7, 3), (11, 2), (7, 50)])
def test_context_windows_are_the_originals(n_frames, n_concat, n_hop):
    frames = np.random.default_rng(5).standard_normal((n_frames, 4))
    windows = context_windows(frames, n_concat, n_hop)
    np.testing.assert_array_equal(windows, original_windows(frames, n_concat, n_hop))
    np.testing.assert_array_equal(windows[:, (n_concat - 1) // 2], frames[::n_hop])


def test_running_statistics_are_those_of_all_rows():
    rows = np.random.default_rng(6).normal(-5, 2, (1000, 3)).astype(np.float32)
    rows[:, 2] = 7
    statistics = RunningStatistics()
    for part in np.split(rows, [1, 10, 500]):
        statistics.add(part)
    np.testing.assert_allclose(statistics.mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(
        statistics.std, [*rows.std(axis=0, dtype=np.float64)[:2], 1], rtol=1e-12
    )
