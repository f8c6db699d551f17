"""Objective scores of one wave against its clean reference; PESQ comes from the ITU's program.

PESQ, STOI, ESTOI and SI-SDR do not depend on the level of the degraded wave. Segmental SNR and
log-spectral distortion do: `at_level_in` brings the reference to the level that it has in the
degraded wave.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config import n_window, sample_rate
from speech_enhancement.data.audio_files import write_pcm16
from speech_enhancement.errors import InputError, MissingFileError
from speech_enhancement.features import magnitudes


class Measure(NamedTuple):
    """How a score is shown: the heading of a table, its unit, and its decimals in a table."""

    heading: str
    unit: str
    n_decimals: int


MEASURES = {  # by column of scores.csv
    "pesq_raw_mos": Measure("PESQ", "MOS", 2),
    "pesq_nb_mos_lqo": Measure("PESQ LQO narrow", "MOS-LQO", 2),
    "pesq_wb_mos_lqo": Measure("PESQ LQO wide", "MOS-LQO", 2),
    "stoi": Measure("STOI", "correlation", 3),
    "estoi": Measure("ESTOI", "correlation", 3),
    "si_sdr": Measure("SI-SDR (dB)", "dB", 1),
    "segmental_snr": Measure("Seg. SNR (dB)", "dB", 1),
    "log_spectral_distortion": Measure("LSD (dB)", "dB", 2),
}
SCORE_COLUMNS = list(MEASURES)
PESQ_COLUMNS = SCORE_COLUMNS[:3]
PESQ = str(Path(__file__).resolve().parents[2] / "pesq")  # where pesq_tool/build.sh puts it

# Share of an energy, -200 dB: less than this is what the rounding of 64-bit sums leaves.
_ROUNDING = 1e-20
SEGMENT = 480  # samples of a frame of the segmental SNR: 30 ms
SEGMENT_HOP = 120  # samples from one such frame to the next
SEGMENT_LIMITS = (-10.0, 35.0)  # dB
LOG_SPECTRAL_RANGE = 50.0  # dB


class UnscorableError(Exception):
    """A measure is not defined for this pair, or its program failed; the message says why."""


def require_pesq(program: str) -> str:
    """Return the absolute path of the PESQ program.

    Raises:
      InputError: it is missing or not executable.
    """
    if not os.path.isfile(program):
        raise MissingFileError(
            f"{program} is missing; run pesq_tool/build.sh, or name the program with --pesq"
        )
    if not os.access(program, os.X_OK):
        raise InputError(
            f"{program} is not executable; run chmod +x on it, or remove it and run "
            "pesq_tool/build.sh"
        )
    return os.path.abspath(program)


def pesq_scores(
    program: str, reference: np.ndarray, degraded: np.ndarray, rate: int = sample_rate
) -> dict[str, float | None]:
    """Score a wave with ITU-T P.862 (raw MOS), P.862.1 and P.862.2 (narrow and wide MOS-LQO).

    The ITU program keeps paths in buffers of 128 bytes, takes every header for 44 bytes long, and
    may write a file of results where it runs. So it runs inside a temporary folder, on two
    short-named files of 16-bit mono RIFF. PESQ aligns levels itself; where a wave exceeds full
    scale it is scaled down instead of clipped.

    Args:
      program: absolute path of the ITU program, of 2005 or of 2002 (which knows no wide band).
      reference, degraded: (n_samples,).
      rate: their sample rate in Hz, 16000 or 8000 (which has no wide band).
    Returns:
      PESQ_COLUMNS by name; the wide-band score is None where there is none.
    Raises:
      UnscorableError: the program failed.
      InputError: the temporary folder cannot be written to.
    """
    with _temporary_folder() as folder:
        for name, audio in (("ref.wav", reference), ("deg.wav", degraded)):
            write_pcm16(os.path.join(folder, name), audio, rate)
        narrow = _run_pesq(program, folder, f"+{rate}")
        raw, *lqo = _numbers_after(r"(?:Raw MOS, MOS-LQO\)|PESQ_MOS)\s*:?\s*=", narrow)
        wide = _run_pesq(program, folder, f"+{rate}", "+wb") if lqo and rate == sample_rate else ""
    return {
        "pesq_raw_mos": raw,
        "pesq_nb_mos_lqo": lqo[0] if lqo else round(mos_lqo(raw), 3),
        "pesq_wb_mos_lqo": _numbers_after(r"\(MOS-LQO\)\s*:?\s*=", wide)[0] if wide else None,
    }


def _temporary_folder() -> tempfile.TemporaryDirectory:
    """Return a context manager that makes a folder for the time of a block."""
    try:
        return tempfile.TemporaryDirectory(prefix="pesq-")
    except OSError as error:
        raise InputError(
            f"no temporary folder for PESQ ({error.strerror}); set TMPDIR to one with space"
        ) from error


def mos_lqo(raw_mos: float) -> float:
    """Map a raw P.862 score to the scale of listeners' opinions, ITU-T P.862.1."""
    return 0.999 + 4.0 / (1.0 + float(np.exp(-1.4945 * raw_mos + 4.6607)))


def _run_pesq(program: str, folder: str, *options: str) -> str:
    command = [program, "ref.wav", "deg.wav", *options]
    try:
        result = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        advice = "remove it and run pesq_tool/build.sh"
        raise InputError(
            f"{program} does not run on this machine ({error.strerror}); {advice}"
        ) from error
    if result.returncode != 0:
        lines = (result.stderr + result.stdout).strip().splitlines()
        raise UnscorableError(
            f"PESQ failed: {lines[-1] if lines else f'status {result.returncode}'}"
        )
    return result.stdout


def _numbers_after(label: str, output: str) -> list[float]:
    """Return the numbers that follow a label in the program's output."""
    found = re.search(label + r"\s*(-?\d[\d.]*)(?:\s+(-?\d[\d.]*))?", output)
    if found is None:
        raise UnscorableError(f"PESQ printed no score: {' '.join(output.split())[-200:]}")
    return [float(number) for number in found.groups() if number is not None]


# --- Intelligibility --------------------------------------------------------------------------


def stoi_scores(reference: np.ndarray, degraded: np.ndarray) -> dict[str, float]:
    """Return the short-time objective intelligibility, STOI, and the extended one, ESTOI.

    Both are mean correlations of spectra in 15 third-octave bands over 30 frames (0.4 s): STOI of
    each band over time, ESTOI of each frame over the bands. Frames of 25.6 ms in which the
    reference is 40 dB below its loudest are left out. pystoi's functions make the spectra, once for
    both. Where one of the signals does not vary, the correlation is 0.

    Args:
      reference, degraded: (n_samples,) at 16 kHz, of one length.
    Returns:
      stoi and estoi.
    Raises:
      UnscorableError: fewer than 30 frames with speech in them.
    Reference:
      Taal, Hendriks, Heusdens and Jensen, IEEE TASLP 19(7), 2011: STOI.
      Jensen and Taal, IEEE/ACM TASLP 24(11), 2016: ESTOI.
    """
    from pystoi.stoi import BETA, N

    bands = _third_octave_bands(reference, degraded)
    if bands[0].shape[1] < N:
        raise UnscorableError("less than 0.4 s of speech")
    segments = [np.lib.stride_tricks.sliding_window_view(band, N, axis=1) for band in bands]
    norms = [np.linalg.norm(of_wave, axis=2, keepdims=True) for of_wave in segments]
    (clean, noisy), gain = segments, norms[0] / (norms[1] + _EPSILON)
    limited = np.minimum(noisy * gain, clean * (1 + 10 ** (-BETA / 20)))  # no worse than -15 dB
    n_bands, n_segments = clean.shape[:2]
    by_band = np.sum(_normalized(limited, 2) * _normalized(clean, 2))
    by_frame = np.sum(_normalized(_normalized(noisy, 2), 0) * _normalized(_normalized(clean, 2), 0))
    return {
        "stoi": float(by_band / (n_bands * n_segments)),
        "estoi": float(by_frame / (N * n_segments)),
    }


def _third_octave_bands(reference: np.ndarray, degraded: np.ndarray) -> list[np.ndarray]:
    """Return both waves in third-octave bands, (n_bands, n_frames), where there is speech."""
    from pystoi import utils
    from pystoi.stoi import DYN_RANGE, FS, N_FRAME, NFFT, OBM

    waves = [utils.resample_oct(audio, FS, sample_rate) for audio in (reference, degraded)]
    if len(waves[0]) <= N_FRAME:
        return [np.empty((len(OBM), 0))] * 2
    waves = utils.remove_silent_frames(*waves, DYN_RANGE, N_FRAME, N_FRAME // 2)
    if len(waves[0]) <= N_FRAME:
        return [np.empty((len(OBM), 0))] * 2
    spectra = [utils.stft(audio, N_FRAME, NFFT, overlap=2) for audio in waves]  # (n_frames, n_freq)
    # Not a matrix product: too little work for the threads that NumPy would start for one.
    return [np.sqrt(np.einsum("bf,tf->bt", OBM, np.abs(spectrum) ** 2)) for spectrum in spectra]


_EPSILON = np.finfo(float).eps  # as in pystoi: keeps a division by the norm of zeros at 0


def _normalized(values: np.ndarray, axis: int) -> np.ndarray:
    """Return values with mean 0 and norm 1 along an axis; zeros where they do not vary."""
    values = values - values.mean(axis=axis, keepdims=True)
    return values / (np.linalg.norm(values, axis=axis, keepdims=True) + _EPSILON)


# --- Ratios in decibels -----------------------------------------------------------------------


def at_level_in(reference: np.ndarray, degraded: np.ndarray) -> np.ndarray:
    """Return the reference at the level that it has in the degraded wave.

    This is the least-squares projection of `degraded` on `reference`, both without their mean: the
    "target" of SI-SDR.

    Args:
      reference, degraded: (n_samples,) float64.
    Raises:
      UnscorableError: one of the waves is constant, or nothing of the reference is left in the
        degraded one.
    """
    centred, other = _without_mean(reference), _without_mean(degraded)
    gain = np.sum(other * centred) / np.sum(centred**2)
    if gain**2 * np.sum(centred**2) <= _ROUNDING * np.sum(other**2):
        raise UnscorableError("nothing of the reference is left in the degraded wave")
    return gain * reference


def _without_mean(audio: np.ndarray) -> np.ndarray:
    centred = audio - audio.mean()
    if np.sum(centred**2) <= _ROUNDING * np.sum(audio**2):
        raise UnscorableError("one of the waves is constant")
    return centred


def si_sdr(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Return the scale-invariant signal-to-distortion ratio in dB.

    The degraded wave, without its mean, is split into a multiple of the reference, without its
    mean, and the rest, which is orthogonal to it; the score is the ratio of their energies over the
    whole wave.

    Args:
      reference, degraded: (n_samples,) float64.
    Raises:
      UnscorableError: one of the waves is constant, or the ratio is beyond +-200 dB, which is
        rounding.
    Reference:
      Le Roux, Wisdom, Erdogan and Hershey, "SDR - half-baked or well done?", ICASSP 2019.
    """
    target = _without_mean(at_level_in(reference, degraded))
    kept, lost = np.sum(target**2), np.sum((_without_mean(degraded) - target) ** 2)
    if lost <= _ROUNDING * kept:
        raise UnscorableError("the two waves are the same, up to their level")
    return float(10 * np.log10(kept / lost))


def segmental_snr(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Return the segmental signal-to-noise ratio in dB.

    The mean over frames of the ratio of the energy of the reference to that of the difference, each
    ratio limited to [-10, 35] dB. Frames are 30 ms long, begin every 7.5 ms and are weighted by a
    Hann window. Frames in which the reference is digital silence, where no ratio is defined, and
    samples after the last whole frame are left out; pauses with some noise in the reference count.

    Args:
      reference, degraded: (n_samples,) at 16 kHz, of one length and one level (see at_level_in).
    Raises:
      UnscorableError: no whole frame, or none that is not silent.
    Reference:
      Hansen and Pellom, "An effective quality evaluation protocol for speech enhancement
        algorithms", ICSLP 1998.
    """
    if len(reference) < SEGMENT:
        raise UnscorableError("shorter than a frame of 30 ms")
    signal, noise = _segment_energies(reference), _segment_energies(degraded - reference)
    signal, noise = signal[signal > 0], noise[signal > 0]
    if len(signal) == 0:
        raise UnscorableError("the reference is silent")
    with np.errstate(divide="ignore"):  # no noise: infinite, then 35 dB
        ratios = 10 * np.log10(signal / noise)
    return float(np.mean(np.clip(ratios, *SEGMENT_LIMITS)))


def _segment_energies(audio: np.ndarray) -> np.ndarray:
    """Return the energy of each windowed frame, (n_frames,)."""
    window = np.hanning(SEGMENT + 2)[1:-1]
    frames = np.lib.stride_tricks.sliding_window_view(audio**2, SEGMENT)[::SEGMENT_HOP]
    return np.einsum("ij,j->i", frames, window**2)


def log_spectral_distortion(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Return the log-spectral distortion in dB; lower is better.

    The root mean square over frequencies of the difference of the two power spectra in dB, then the
    mean over frames. The spectra are those of features.stft with the window and overlap of
    config.py (32 ms, 50 %, Hamming). Powers more than 50 dB below the largest of the reference are
    raised to that floor, in both; no frame is left out, but where both are below the floor they are
    the same.

    Args:
      reference, degraded: (n_samples,), of one length and one level (see at_level_in).
    Raises:
      UnscorableError: shorter than a frame, or the reference is silent.
    Reference:
      Gray and Markel, "Distance measures for speech processing", IEEE TASSP 24(5), 1976: the rms
        distance of log spectra.
    """
    if len(reference) < n_window:
        raise UnscorableError("shorter than a frame of 32 ms")
    powers = [magnitudes(audio) ** 2 for audio in (reference, degraded)]
    floor = 10 ** (-LOG_SPECTRAL_RANGE / 10) * powers[0].max()
    if floor == 0:
        raise UnscorableError("the reference is silent")
    levels = [10 * np.log10(np.maximum(power, floor)) for power in powers]  # (n_frames, n_freq)
    return float(np.mean(np.sqrt(np.mean((levels[1] - levels[0]) ** 2, axis=1))))
