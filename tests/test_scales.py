"""The Bark scale and the loudness made from it, and the way back from a spectrum to a wave."""

import numpy as np
import pytest
import soundfile

from speech_enhancement.data.audio_files import write_pcm16
from speech_enhancement.features import bark_to_hz, hz_to_bark, istft, pad_to_whole_frames, stft
from speech_enhancement.network.keras_backend import import_keras
from speech_enhancement.network.losses import loudness_distance, residue_distance


def test_the_bark_scale_is_zwickers_up_to_4_khz():
    # Zwicker, JASA 33, 1961: edges of the critical bands. Schroeder's formula is within 0.2 of them
    # there.
    edges = {1: 100, 2: 200, 5: 510, 9: 1080, 13: 2000, 17: 3700}
    np.testing.assert_allclose(hz_to_bark(np.array([*edges.values()])), [*edges], atol=0.2)
    np.testing.assert_allclose(bark_to_hz(hz_to_bark(np.array([0, 62.5, 7000]))), [0, 62.5, 7000])


def test_loudness_is_that_of_half_bark_bands_weighted_by_their_frequency():
    # Powers within 20 dB of each other, so that every band is audible.
    speech, estimate = 10 ** np.random.default_rng(0).uniform(-1, 1, (2, 257))
    frequency = np.arange(257) * 31.25  # Hz
    bands = np.floor(14 * np.arcsinh(frequency / 650)).astype(int)
    bands[-1] = min(bands[-1], int(np.ceil(14 * np.arcsinh(8000 / 650))) - 1)
    total, weights = 0.0, 0.0
    centres = {band: 650 * np.sinh((band + 0.5) / 14) for band in sorted(set(bands))}
    heard = [band for band, centre in centres.items() if centre > 100]
    powers = {
        band: [1e6 * audio[bands == band].sum() for audio in (speech, estimate)] for band in heard
    }
    level = [sum(power[signal] for power in powers.values()) + 5e3 for signal in (0, 1)]
    for band, (of_speech, of_estimate) in powers.items():
        weight = 1 if centres[band] < 3600 else 0.3  # where telephone speech ends
        aligned = of_estimate * level[0] / level[1]
        total += weight * ((aligned + 1) ** 0.23 - (of_speech + 1) ** 0.23) ** 2
        weights += weight
    found = loudness_distance(speech[None].astype("float32"), estimate[None].astype("float32"))
    # Loudness of about 25 in single precision.
    found = float(import_keras().ops.convert_to_numpy(found)[0])
    assert found == pytest.approx(np.sqrt(total / weights + 1e-4), rel=1e-4)


def residue(speech, estimate, held=None):
    """Return the residue of a frame, (257,) each, with the factors of its bands or held ones."""
    bands = np.floor(14 * np.arcsinh(np.arange(257) * 31.25 / 650)).astype(int)
    inside = [
        band
        for band in np.unique(bands)
        if all(300 <= bin * 31.25 <= 3600 for bin in np.flatnonzero(bands == band))
    ]
    powers = [[1e6 * x[bands == band].sum() for x in (speech, estimate)] for band in inside]
    level = np.sum(powers, axis=0) + 5e3
    louder, factors = [], []
    for of_speech, of_estimate in powers * np.array([1, level[0] / level[1]]):
        ratio = ((of_estimate + 50) / (of_speech + 50)) ** 1.2
        factors.append(0 if ratio < 3 else min(ratio, 12))
        louder.append(max(0, (of_estimate + 1) ** 0.23 - (of_speech + 1) ** 0.23))
    return np.mean(np.multiply(held or factors, louder)), factors


def frames_with_residue():
    """Return 30 frames of speech and an estimate, with bands below and above every limit."""
    bands = np.floor(14 * np.arcsinh(np.arange(257) * 31.25 / 650)).astype(int)
    rng = np.random.default_rng(1)
    speech = 10 ** rng.uniform(-6, 0, (30, 50))  # powers from below the floor of the ratios on
    estimate = speech * np.where(speech > 0.1, 1, 10 ** rng.uniform(-1, 1.5, (30, 50)))
    return speech[:, bands].astype("float32"), estimate[:, bands].astype("float32")


def test_residue_is_what_is_louder_in_telephone_bands_weighted_by_the_ratio_of_powers():
    frames = frames_with_residue()
    expected, factors = zip(*map(residue, *frames), strict=True)
    limits = np.digitize(np.concatenate(factors), [2.9, 3.3, 11, 12])
    assert np.unique(limits).size == 5  # also near to the limits
    found = import_keras().ops.convert_to_numpy(residue_distance(*frames))
    np.testing.assert_allclose(found, expected, rtol=1e-3)  # single precision


def test_the_slope_of_residue_is_that_of_loudness_with_the_factors_held():
    if import_keras().backend.backend() != "tensorflow":
        pytest.skip("each backend has gradients of its own; one is enough")
    import tensorflow

    speech, estimate = (power[0].astype(float) for power in frames_with_residue())
    toward = estimate * np.random.default_rng(2).uniform(-1, 1, 257)
    _, factors = residue(speech, estimate)
    ends = [residue(speech, estimate + step * toward, factors)[0] for step in (-1e-3, 1e-3)]
    with tensorflow.GradientTape() as tape:
        variable = tensorflow.Variable(estimate[None], dtype="float32")
        found = residue_distance(speech[None].astype("float32"), variable)
    slope = np.sum(tape.gradient(found, variable).numpy()[0] * toward)
    # Single precision, and the difference for the derivative.
    assert slope == pytest.approx((ends[1] - ends[0]) / 2e-3, rel=1e-2)


@pytest.mark.parametrize("distance", [loudness_distance, residue_distance])
def test_each_frame_of_each_segment_has_a_distance_of_its_own(distance):
    speech, estimate = np.random.default_rng(0).uniform(0.01, 1, (2, 3, 4, 257)).astype("float32")
    convert = import_keras().ops.convert_to_numpy
    found = convert(distance(speech, estimate))
    frames = convert(distance(speech.reshape(-1, 257), estimate.reshape(-1, 257)))
    assert np.unique(found).size > 8
    # Sums in another order, in single precision.
    np.testing.assert_allclose(found, frames.reshape(3, 4), rtol=1e-3)


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
