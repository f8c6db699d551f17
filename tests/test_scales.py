"""The Bark scale, and the way back from a spectrum to a wave."""

import numpy as np
import pytest
import soundfile

from speech_enhancement.data.audio_files import write_pcm16
from speech_enhancement.features import bark_to_hz, hz_to_bark, istft, pad_to_whole_frames, stft


def test_the_bark_scale_is_zwickers_up_to_4_khz():
    # Zwicker, JASA 33, 1961: edges of the critical bands. Schroeder's formula is within 0.2 of them
    # there.
    edges = {1: 100, 2: 200, 5: 510, 9: 1080, 13: 2000, 17: 3700}
    np.testing.assert_allclose(hz_to_bark(np.array([*edges.values()])), [*edges], atol=0.2)
    np.testing.assert_allclose(bark_to_hz(hz_to_bark(np.array([0, 62.5, 7000]))), [0, 62.5, 7000])


@pytest.mark.parametrize("n_window, n_overlap", [(512, 256), (64, 40)])
@pytest.mark.parametrize("n_more", [0, 1, 23, 24, 25, 255, 256, 257])
def test_padding_completes_the_last_frame_and_no_more(n_window, n_overlap, n_more):
    audio, n_hop = np.ones(n_window + n_more), n_window - n_overlap
    padded = pad_to_whole_frames(audio, n_window, n_overlap)
    n_zeros = len(padded) - len(audio)
    assert 0 <= n_zeros < n_hop and (len(padded) - n_window) % n_hop == 0
    np.testing.assert_array_equal(padded, [*audio, *np.zeros(n_zeros)])
    assert len(pad_to_whole_frames(audio[: n_window // 3], n_window, n_overlap)) == n_window


@pytest.mark.parametrize("n_samples", [512, 700, 2000])
def test_istft_is_the_inverse_of_stft(n_samples):
    audio = np.random.default_rng(1).uniform(-1, 1, n_samples)
    spectrum = stft(pad_to_whole_frames(audio, 512, 256), 512, 256)
    # The window falls to 0.08 at the borders, which amplifies rounding of 64 bits by 12.
    wave = istft(np.abs(spectrum), spectrum, 256, n_samples)
    np.testing.assert_allclose(wave, audio, rtol=0, atol=1e-10)


def test_samples_of_16_bits_come_out_unchanged_and_loud_ones_are_scaled_down(tmp_path):
    path = str(tmp_path / "a.wav")
    exact = np.array([-32768, -1, 0, 1, 32767]) / 32768
    write_pcm16(path, exact)
    np.testing.assert_array_equal(soundfile.read(path)[0], exact)
    write_pcm16(path, 4 * exact)
    assert soundfile.info(path).subtype == "PCM_16" and soundfile.info(path).samplerate == 16000
    # The peak, of -4, lies at full scale; half a step of rounding.
    expected = exact * 32767 / 32768
    np.testing.assert_allclose(soundfile.read(path)[0], expected, rtol=0, atol=0.5 / 32768)
