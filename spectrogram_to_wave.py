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
    n_window = frames.shape[1]
    n_hop = n_window - n_overlap
    window_sum = overlap_add(np.broadcast_to(winfunc(n_window), frames.shape), n_hop)
    wave = overlap_add(frames, n_hop) / window_sum
    if wav_len is None:
        return wave
    return np.pad(wave[:wav_len], (0, max(0, wav_len - len(wave))))


def overlap_add(frames: np.ndarray, n_hop: int) -> np.ndarray:
    """Add frames, each n_hop samples after the one before.

    Args:
      frames: (n_frames, n_window).
      n_hop: at most n_window.
    Returns:
      ((n_frames - 1) * n_hop + n_window,).
    """
    n_frames, n_window = frames.shape
    n_parts = -(-n_window // n_hop)  # hops that a frame covers, the last perhaps in part
    rows = np.zeros((n_frames + n_parts - 1, n_hop), frames.dtype)
    for part in range(n_parts):
        piece = frames[:, part * n_hop : (part + 1) * n_hop]
        rows[part : part + n_frames, : piece.shape[1]] += piece
    return rows.ravel()[: (n_frames - 1) * n_hop + n_window]
