"""From a magnitude spectrogram back to a wave, with the phase of another spectrogram."""

from collections.abc import Callable

import numpy as np


def recover_wav(
    pd_abs_x: np.ndarray,
    gt_x: np.ndarray,
    n_overlap: int,
    winfunc: Callable[[int], np.ndarray],
    wav_len: int | None = None,
) -> np.ndarray:
    """Recover a wave from magnitudes and the phase of a complex spectrogram, by overlap-add.

    The inverse transforms of the frames are added where they overlap and divided by the sum of
    the windows there. A spectrogram that was divided by a factor (`features.stft` divides by
    sqrt(sum(window**2))) gives a wave that is smaller by that factor: multiply the result by it.

    Args:
      pd_abs_x: (n_frames, n_freq) magnitudes, predicted or true.
      gt_x: (n_frames, n_freq) complex spectrogram that lends its phase.
      n_overlap: samples shared by neighbouring frames.
      winfunc: the analysis window, a function of its length, such as np.hamming.
      wav_len: samples of the wave; it is cut, or filled with zeros, to this length.
        None keeps all samples that the frames cover.
    Returns:
      (wav_len,) float64 wave.
    """
    frames = np.fft.irfft(pd_abs_x * np.exp(1j * np.angle(gt_x)))  # (n_frames, n_window)
    n_frames, n_window = frames.shape
    n_hop = n_window - n_overlap
    wave = np.zeros((n_frames - 1) * n_hop + n_window)
    window_sum = np.zeros_like(wave)
    window = winfunc(n_window)
    for start, frame in zip(range(0, n_frames * n_hop, n_hop), frames, strict=True):
        wave[start : start + n_window] += frame
        window_sum[start : start + n_window] += window
    wave /= window_sum
    if wav_len is None:
        return wave
    return np.pad(wave[:wav_len], (0, max(0, wav_len - len(wave))))
