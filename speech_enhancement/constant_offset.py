"""Taking a constant (DC) out of the spectra of a recording; pure functions of arrays."""

import numpy as np

from config import n_window
from speech_enhancement.features import FRAMES_PER_SECOND, power_of_frames, window_scale
from speech_enhancement.recipe import Input

OFFSET_FRAMES = round(FRAMES_PER_SECOND)  # 1 s, in which a constant is looked for
OFFSET_SHARE = 0.03  # of the root mean square: a constant up to there does no harm and is left
OFFSET_SPREAD = 1.5  # standard deviations of the frames' means; what has fewer is deep noise
CONSTANT = np.fft.rfft(np.hamming(n_window)) / window_scale(n_window)  # a frame of ones


def without_offset(spectrum: np.ndarray, settings: Input) -> np.ndarray:
    """Return (n_frames, n_freq) frames of a recording without its constant; see OffsetStream."""
    return OffsetStream(settings).add(spectrum, is_last=True)


class OffsetStream:
    """Takes a constant (DC) out of spectra that arrive in parts, for recipes with a level window.

    The constant at a frame is the mean of the OFFSET_FRAMES frames that end with it; frames near
    the start have that of the first OFFSET_FRAMES. The part of it that exceeds OFFSET_SHARE of the
    root mean square of the rest over level_window_s seconds is taken out, if the constant is
    steady: nothing up to OFFSET_SPREAD times the standard deviation of the frames' means, all from
    twice that on. So recordings without a constant stay as they are to the last bit, however deep
    their noise is.
    """

    def __init__(self, settings: Input):
        self._width = round(settings.level_window_s * FRAMES_PER_SECOND)
        self._waiting: np.ndarray | None = None  # the first frames, until there are enough
        self._past = np.empty((2, 0))  # bin 0 and power of the frames before
        self._has_begun = False

    def add(self, spectrum: np.ndarray, is_last: bool) -> np.ndarray:
        """Take in (n_frames, n_freq) complex; return the frames that are ready."""
        if self._width == 0:
            return spectrum
        if not self._has_begun:
            if self._waiting is not None:
                spectrum = np.concatenate([self._waiting, spectrum])
            self._waiting = spectrum
            if len(spectrum) < OFFSET_FRAMES and not is_last:
                return spectrum[:0]
            self._has_begun, self._waiting = True, None
        new = np.stack([spectrum[:, 0].real, power_of_frames(spectrum)]).astype(np.float64)
        frames = np.concatenate([self._past, new], axis=1)
        amount = offsets(*frames, self._width)[self._past.shape[1] :, None]
        self._past = frames[:, -self._width :]
        if not amount.any():
            return spectrum
        return spectrum - amount.astype(spectrum.real.dtype) * CONSTANT.astype(spectrum.dtype)


def offsets(bin_0: np.ndarray, power: np.ndarray, width: int) -> np.ndarray:
    """Return how much of a constant is to be taken out of each frame, (n_frames,).

    Args:
      bin_0: (n_frames,), the real parts of the bins at 0 Hz.
      power: (n_frames,) as power_of_frames returns it.
      width: frames before each, itself included, whose root mean square it is compared with.
    """
    ends = np.maximum(np.arange(len(bin_0)) + 1, min(OFFSET_FRAMES, len(bin_0)))

    def mean_of_last(values: np.ndarray, n_frames: int) -> np.ndarray:
        sums = np.concatenate([[0], np.cumsum(values)])
        starts = np.maximum(ends - n_frames, 0)
        return (sums[ends] - sums[starts]) / (ends - starts)

    constants = bin_0 / CONSTANT[0].real
    mean = mean_of_last(constants, OFFSET_FRAMES)
    spread = np.sqrt(np.maximum(mean_of_last(constants**2, OFFSET_FRAMES) - mean**2, 0))
    rest = mean_of_last(power, width) - mean**2 * power_of_frames(CONSTANT[None])[0]
    excess = np.maximum(np.abs(mean) - OFFSET_SHARE * np.sqrt(np.maximum(rest, 0)), 0)
    steadiness = np.abs(mean) / np.maximum(spread, 1e-30) / OFFSET_SPREAD - 1
    return np.sign(mean) * excess * np.clip(steadiness, 0, 1)
