"""The measures beside PESQ: against closed forms, their definitions and other people's programs."""

import numpy as np
import pystoi
import pytest
from conftest import GOLDEN

from speech_enhancement.data.audio_files import read_audio
from speech_enhancement.evaluation.measures import (
    UnscorableError,
    _numbers_after,
    at_level_in,
    log_spectral_distortion,
    segmental_snr,
    si_sdr,
    stoi_scores,
)

N_SAMPLES = 16000


def noise(seed=0, n_samples=N_SAMPLES):
    return np.random.default_rng(seed).standard_normal(n_samples)


def golden_pair(name):
    speaker = "_".join(name.split("_")[:3])
    return (read_audio(str(GOLDEN / f"{stem}.wav")).astype(np.float64) for stem in (speaker, name))


def orthogonal_noise(reference):
    """Return noise orthogonal to the reference and of its energy, both without their means."""
    centred = reference - reference.mean()
    other = noise(seed=1, n_samples=len(reference))
    other -= other.mean()
    other -= centred * (other @ centred) / (centred @ centred)
    return other * np.sqrt((centred @ centred) / (other @ other))


# --- STOI and ESTOI ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["en_librivox_disposed_printer_0db", "ru_ivrvoice_nobody_vinyl_10db"]
)
def test_stoi_and_estoi_are_pystois(name):
    reference, degraded = golden_pair(name)
    scores = stoi_scores(reference, degraded)
    # The same sums in another order, and pystoi adds noise of 2e-16 to the spectra for ESTOI.
    assert scores["stoi"] == pytest.approx(pystoi.stoi(reference, degraded, 16000), abs=1e-12)
    assert scores["estoi"] == pytest.approx(
        pystoi.stoi(reference, degraded, 16000, extended=True), abs=1e-12
    )


def test_stoi_and_estoi_are_one_for_the_reference_at_any_level_and_less_for_less():
    reference, degraded = golden_pair("ru_ivrvoice_nobody_printer_10db")
    for gain in (1, 0.01):
        # The norms are raised by 2e-16 against division by 0; the smallest are of order 1e-6.
        assert stoi_scores(reference, gain * reference) == pytest.approx(
            {"stoi": 1, "estoi": 1}, abs=1e-8
        )
    assert all(0 < score < 0.95 for score in stoi_scores(reference, degraded).values())


def test_stoi_and_estoi_of_gaps_are_the_same_each_time():
    reference, degraded = golden_pair("ru_ivrvoice_nobody_printer_10db")
    degraded[8000:30000] = 0
    scores = stoi_scores(reference, degraded)
    assert scores == stoi_scores(reference, degraded)
    # pystoi fills the gap with noise, whose correlation with speech is 0 on average.
    assert scores["estoi"] == pytest.approx(
        pystoi.stoi(reference, degraded, 16000, extended=True), abs=0.02
    )


@pytest.mark.parametrize("n_samples", [1, 400, 4000])
def test_stoi_of_too_little_speech_is_not_defined(n_samples):
    with pytest.raises(UnscorableError, match=r"less than 0\.4 s of speech"):
        stoi_scores(noise(0, n_samples), noise(1, n_samples))


# --- SI-SDR -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio_db", [-30.0, 0.0, 12.5, 60.0, 150.0])
@pytest.mark.parametrize("gain", [1, -3, 1e-3])
def test_si_sdr_of_orthogonal_noise_is_its_ratio_at_any_level(ratio_db, gain):
    reference = noise() + 0.3
    degraded = reference + 10 ** (-ratio_db / 20) * orthogonal_noise(reference)
    # Rounding of 64-bit sums over 16000 samples, up to 60 or 150 dB below the signal.
    tolerance = 1e-8 if ratio_db <= 60 else 1e-3
    assert si_sdr(reference, gain * degraded + 0.1) == pytest.approx(ratio_db, abs=tolerance)
    assert si_sdr(7 * reference, degraded) == pytest.approx(ratio_db, abs=tolerance)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("ru_ivrvoice_nobody_printer_0db", 0.17798402),
        ("ru_ivrvoice_nobody_vinyl_10db", 10.03029101),
    ],
)
def test_si_sdr_is_that_of_fast_bss_eval(name, expected):
    # fast_bss_eval 0.1.4, numpy.si_sdr(zero_mean=True), printed to eight decimals.
    assert si_sdr(*golden_pair(name)) == pytest.approx(expected, abs=1e-8)


def test_si_sdr_that_is_infinite_is_not_defined():
    reference = noise()
    for degraded in (reference, 0.3 * reference, 0.3 * reference + 0.1):
        with pytest.raises(UnscorableError, match="the same, up to their level"):
            si_sdr(reference, degraded)
    for value in (0.3, -0.3, 1e-6, 1e6, 0.0):
        constant = np.full(N_SAMPLES, value)
        for pair in ((reference, constant), (constant, reference)):
            with pytest.raises(UnscorableError, match="constant"):
                si_sdr(*pair)
    with pytest.raises(UnscorableError, match="nothing of the reference is left"):
        si_sdr(reference, orthogonal_noise(reference))


def test_the_reference_is_brought_to_its_level_in_the_degraded_wave():
    reference = noise()
    degraded = 0.2 * (reference + orthogonal_noise(reference)) + 0.1
    # Rounding of 64-bit sums over 16000 samples of order 1.
    np.testing.assert_allclose(
        at_level_in(reference, degraded), 0.2 * reference, rtol=0, atol=1e-12
    )


# --- Segmental SNR ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ratio_db, expected",
    [(-9.9, -9.9), (0, 0), (20, 20), (34.9, 34.9), (-10.1, -10), (-60, -10), (35.1, 35), (90, 35)],
)
def test_segmental_snr_of_equal_frames_is_theirs_within_the_limits(ratio_db, expected):
    reference = noise()
    degraded = reference * (1 + 10 ** (-ratio_db / 20))
    assert segmental_snr(reference, degraded) == pytest.approx(expected, abs=1e-9)  # rounding


def test_segmental_snr_is_the_mean_over_frames_and_leaves_out_digital_silence():
    reference = noise(n_samples=480 + 120 * 99)  # 100 frames
    degraded = reference.copy()
    degraded[: 480 + 120 * 49] *= (
        2  # 50 frames of 0 dB; 3 more reach into them, the others have no noise
    )
    assert 35 / 2 - 1.1 < segmental_snr(reference, degraded) < 35 / 2
    silence = np.zeros(12000)
    longer = np.concatenate([reference, silence]), np.concatenate([2 * reference, silence + 0.1])
    # But for the frames over the seam: 3 of 103, in which the noise grows.
    assert segmental_snr(*longer) == pytest.approx(0, abs=0.1)
    assert segmental_snr(reference, reference) == 35


@pytest.mark.parametrize(
    "name, expected",
    [
        ("ru_ivrvoice_nobody_printer_0db", -2.92586022096837),
        ("ru_ivrvoice_nobody_vinyl_10db", 5.789270918825962),
    ],
)
def test_segmental_snr_is_that_of_pysepm(name, expected):
    # pysepm_evo 0.1.1, SNRseg, after Loizou's comp_snr.m; with 120 zeros appended, as it leaves out
    # the last frame. It adds 2e-16 to the energies.
    assert segmental_snr(*golden_pair(name)) == pytest.approx(expected, abs=1e-9)


def test_segmental_snr_that_is_not_defined():
    with pytest.raises(UnscorableError, match="shorter than a frame of 30 ms"):
        segmental_snr(noise(0, 479), noise(1, 479))
    with pytest.raises(UnscorableError, match="the reference is silent"):
        segmental_snr(np.zeros(480), noise(1, 480))


# --- Log-spectral distortion ------------------------------------------------------------------


def pulses(n_frames=20):
    """Return one pulse in each frame, 128 or 384 samples from its start: all spectra are flat."""
    audio = np.zeros(512 + 256 * (n_frames - 1))
    audio[128::512] = 1
    return audio


@pytest.mark.parametrize("gain", [1, 3, 0.1])
def test_log_spectral_distortion_of_a_gain_is_the_gain_in_decibels(gain):
    # All bins are within 50 dB of the loudest. Rounding of logarithms.
    assert log_spectral_distortion(pulses(), gain * pulses()) == pytest.approx(
        abs(20 * np.log10(gain)), abs=1e-9
    )


def test_powers_below_the_floor_count_as_50_db_below_the_loudest():
    window = np.hamming(512)
    below_loudest = 20 * np.log10(window[384] / window[128])  # of each second frame
    silent = log_spectral_distortion(pulses(), 0 * pulses())
    assert silent == pytest.approx(
        (50 + 50 + below_loudest) / 2, abs=1e-9
    )  # rounding of logarithms
    assert log_spectral_distortion(pulses(), 1e-6 * pulses()) == silent


def test_log_spectral_distortion_is_its_definition():
    reference, degraded = (audio[:4000] for audio in golden_pair("en_librivox_disposed_vinyl_10db"))
    window, starts = np.hamming(512), range(0, 4000 - 512 + 1, 256)
    spectra = [
        [np.abs(np.fft.fft(window * audio[i : i + 512])[:257]) ** 2 for i in starts]
        for audio in (reference, degraded)
    ]
    floor = 1e-5 * np.max(spectra[0])
    frames = []
    for clean, noisy in zip(*spectra, strict=True):
        differences = [
            10 * np.log10(max(a, floor) / max(b, floor)) for a, b in zip(clean, noisy, strict=True)
        ]
        frames.append(np.sqrt(sum(difference**2 for difference in differences) / 257))
    # The same sums in another order.
    assert log_spectral_distortion(reference, degraded) == pytest.approx(np.mean(frames), abs=1e-9)


def test_log_spectral_distortion_that_is_not_defined():
    with pytest.raises(UnscorableError, match="shorter than a frame of 32 ms"):
        log_spectral_distortion(noise(0, 511), noise(1, 511))
    with pytest.raises(UnscorableError, match="the reference is silent"):
        log_spectral_distortion(np.zeros(512), noise(1, 512))


# --- What the PESQ program prints -----------------------------------------------------------------


def test_numbers_behind_a_label():
    assert _numbers_after(r"MOS\s*=", "MOS = -0.5 1.25\n") == [-0.5, 1.25]
    assert _numbers_after(r"MOS\s*=", "MOS = 4.5\n") == [4.5]


@pytest.mark.parametrize("number", ["-nan", "nan", "-", "inf"])
def test_what_is_no_number_is_no_score(number):
    with pytest.raises(UnscorableError, match="printed no score"):
        _numbers_after(r"MOS\s*=", f"MOS = {number} 1.0\n")
