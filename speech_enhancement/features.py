"""Signals and spectra as arrays: mixing, the Fourier transform, context windows, statistics.

Pure functions of arrays: no files, no printing. Arrays are time first.
"""

import functools

import numpy as np

from config import log_epsilon, n_overlap, n_window, sample_rate
from spectrogram_to_wave import recover_wav

N_FREQ = n_window // 2 + 1  # frequency bins of a frame
N_HOP = n_window - n_overlap  # samples from one frame to the next
FRAMES_PER_SECOND = sample_rate / N_HOP
FRAMES_AT_ONCE = 64  # transformed together


def root_mean_square(audio: np.ndarray) -> float:
    """Return the root mean square of (n_samples,) audio."""
    return float(np.sqrt(np.mean(audio**2)))


def peak(audio: np.ndarray) -> float:
    """Return the largest absolute value of audio of any shape; 0 where there is none."""
    return float(max(audio.max(), -audio.min())) if audio.size else 0.0


def level_gain(peak_of_recording: float) -> float:
    """Return the factor that brings a recording to the level of all features: a peak of 1.

    This is the one definition of the level. Mixtures are scaled by it when they are made, on disk
    and on the fly; recordings are when they are enhanced with a recipe that does not normalise the
    level around each frame. Silence keeps its level.
    """
    return 1 / peak_of_recording if peak_of_recording > 0 else 1.0


def mix_at_snr(
    speech: np.ndarray, noise: np.ndarray, snr: float, speech_rms: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    """Mix speech and noise at a signal-to-noise ratio and scale the mixture to a peak of 1.

    It is the *speech* that is scaled to reach the ratio, over the whole utterance:
    20 lg(rms(speech) / rms(noise)) = snr. Then all three signals are multiplied by
    alpha = 1 / max|mixture|. At an infinite ratio, and with silent noise, the mixture is clean
    speech.

    Args:
      speech, noise: (n_samples,) float.
      snr: signal-to-noise ratio in dB; inf is clean speech.
      speech_rms: root mean square of the whole utterance where `speech` is a part of it; None: of
        `speech`.
    Returns:
      mixture, speech, noise, each (n_samples,) and scaled such that mixture = speech + noise;
      scaling_factor, what the speech was multiplied by before alpha; and alpha.
    """
    noise_rms = root_mean_square(noise)
    scaling_factor = 1.0
    if np.isinf(snr) or noise_rms == 0:
        noise = np.zeros_like(noise)
    else:
        scaling_factor = 10 ** (snr / 20) * noise_rms / (speech_rms or root_mean_square(speech))
    speech = scaling_factor * speech
    mixture = speech + noise
    alpha = level_gain(peak(mixture))
    mixture *= alpha
    speech *= alpha
    return mixture, speech, alpha * noise, scaling_factor, alpha


def window_scale(n_window: int) -> float:
    """Return the root energy of the window, which `stft` divides by."""
    return float(np.sqrt(np.sum(np.hamming(n_window) ** 2)))


@functools.cache
def _unit_window(n_window: int) -> np.ndarray:
    """Return the window that `stft` multiplies by, (n_window,), of unit energy."""
    return np.hamming(n_window) / window_scale(n_window)


def stft(audio: np.ndarray, n_window: int, n_overlap: int) -> np.ndarray:
    """Return the short-time Fourier transform of real audio, Hamming window, no padding.

    Divided by the root energy of the window: white noise of unit variance has unit mean power in
    each inner bin. Samples after the last whole frame are left out.

    Args:
      audio: (n_samples,) float; single precision gives a single-precision spectrum.
      n_window, n_overlap: length of a frame and what neighbours share, in samples.
    Returns:
      (n_frames, n_window // 2 + 1) complex.
    Raises:
      ValueError: audio is not 1-D, or shorter than one window.
    """
    if audio.ndim != 1 or len(audio) < n_window:
        raise ValueError(
            f"audio must be 1-D with at least n_window={n_window} samples, got shape {audio.shape}"
        )
    window = _unit_window(n_window).astype(np.result_type(audio, np.float32))
    frames = np.lib.stride_tricks.sliding_window_view(audio, n_window)[:: n_window - n_overlap]
    spectrum = np.empty((len(frames), n_window // 2 + 1), np.result_type(window, np.complex64))
    # Few enough at once to stay in the processor's cache.
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        part = slice(start, start + FRAMES_AT_ONCE)
        np.fft.rfft(frames[part] * window, out=spectrum[part])
    return spectrum


def magnitudes(audio: np.ndarray) -> np.ndarray:
    """Return the magnitudes of (n_samples,) audio as config.py has them, (n_frames, n_freq)."""
    return np.abs(stft(audio, n_window, n_overlap))


def istft(
    magnitude: np.ndarray, spectrum: np.ndarray, n_overlap: int, n_samples: int | None = None
) -> np.ndarray:
    """Return the wave with given magnitudes and the phase of a spectrum: the inverse of `stft`.

    Args:
      magnitude: (n_frames, n_freq), on the scale of `stft`.
      spectrum: (n_frames, n_freq) complex, lends its phase.
      n_overlap: samples that neighbouring frames share.
      n_samples: the wave is cut, or filled with zeros, to this length; None keeps all that there
        is.
    Returns:
      (n_samples,) float64.
    """
    n_window = 2 * (spectrum.shape[1] - 1)
    wave = recover_wav(magnitude, spectrum, n_overlap, np.hamming, n_samples)
    return window_scale(n_window) * wave


def power_of_frames(spectrum: np.ndarray) -> np.ndarray:
    """Return the mean power of the bins of each frame, (n_frames,)."""
    parts = spectrum.view(spectrum.real.dtype)  # real and imaginary, side by side
    return np.einsum("ij,ij->i", parts, parts) / spectrum.shape[1]


def hz_to_bark(frequency: np.ndarray) -> np.ndarray:
    """Return frequencies in Hz, any shape, on the Bark scale (Schroeder, 1977)."""
    return 7 * np.arcsinh(frequency / 650)


def bark_to_hz(bark: np.ndarray) -> np.ndarray:
    """Return what hz_to_bark came from."""
    return 650 * np.sinh(bark / 7)


def pad_to_whole_frames(audio: np.ndarray, n_window: int, n_overlap: int) -> np.ndarray:
    """Append the zeros that complete the last partial frame, so that `stft` covers every sample."""
    n_hop = n_window - n_overlap
    n_missing = -(len(audio) - n_window) % n_hop if len(audio) > n_window else n_window - len(audio)
    return np.pad(audio, (0, n_missing))


def log_magnitude(spectrum: np.ndarray, floor_db: float = 0.0) -> np.ndarray:
    """Return ln(|spectrum| + 1e-8) of complex spectra or of magnitudes, any shape.

    With a floor, magnitudes that lie more than floor_db dB below 1 are raised to there; 0 sets
    none.
    """
    magnitude = np.abs(spectrum)
    if floor_db > 0:
        magnitude = np.maximum(magnitude, 10 ** (-floor_db / 20))
    return np.log(magnitude + log_epsilon)


def context_windows(frames: np.ndarray, n_concat: int, n_hop: int) -> np.ndarray:
    """Return windows of n_concat neighbouring frames, one centred on every n_hop-th frame.

    Beyond the borders the first and the last frame are repeated.

    Args:
      frames: (n_frames, n_freq).
      n_concat: frames in a window, odd.
      n_hop: frames from one window to the next.
    Returns:
      (n_segs, n_concat, n_freq), a copy; n_segs = ceil(n_frames / n_hop).
    """
    n_side = (n_concat - 1) // 2
    centres = np.arange(0, len(frames), n_hop)
    neighbours = centres[:, None] + np.arange(-n_side, n_side + 1)
    return frames[np.clip(neighbours, 0, len(frames) - 1)]


def moments(rows: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the number of rows, and each column's mean and sum of squared deviations from it."""
    rows = rows.astype(np.float64)
    mean = rows.mean(axis=0)
    rows -= mean
    return len(rows), mean, np.einsum("ij,ij->j", rows, rows)


class RunningStatistics:
    """Mean and standard deviation of the columns of rows that arrive in chunks.

    The moments of chunks are merged pairwise (Chan, Golub and LeVeque, 1983), in double precision;
    memory is two rows, however many arrive.
    """

    def __init__(self):
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # sum of squared deviations from the mean

    def add(self, rows: np.ndarray) -> None:
        """Take in (n_rows, n_columns)."""
        self.merge(moments(rows))

    def merge(self, chunk: tuple[int, np.ndarray, np.ndarray]) -> None:
        """Take in the moments of a chunk of rows."""
        count, mean, squares = chunk
        total = self.count + count
        shift = mean - self.mean
        self._squares = self._squares + squares + shift**2 * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    @property
    def std(self) -> np.ndarray:
        """Standard deviation (ddof 0) of each column, (n_columns,); 1 where it is 0."""
        std = np.sqrt(self._squares / self.count)
        return np.where(std == 0, 1.0, std)
