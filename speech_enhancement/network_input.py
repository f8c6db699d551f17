"""What the network sees of a mixture and what it is to answer, as a recipe says; pure array functions.

A mixture becomes `frames`, the log magnitude of each frame (less the level, if the
recipe says so), and `statistics`, what is known of the noise around each frame. The network sees a
window of n_concat frames and the statistics of its centre.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from config import log_epsilon, n_overlap, n_window, sample_rate
from speech_enhancement.features import context_windows, log_magnitude
from speech_enhancement.recipe import Input, Recipe

FRAMES_PER_SECOND = sample_rate / (n_window - n_overlap)
FRAMES_PER_ESTIMATE = 32  # level and percentiles are computed anew every 0.5 s
FLOOR = 9.2  # 80 dB in nepers: what lies so far below the level is lifted to there


def frames_and_statistics(spectrum: np.ndarray, settings: Input) -> tuple[np.ndarray, np.ndarray]:
    """Return what the network sees of a mixture.

    With noise_estimate "first_frames" the one statistic is the mean of the first frames' log
    magnitude, as in noise-aware training, [1], as far as we know it: z = (1/T) sum of y_t, t = 1..T. With
    "percentiles" it is some percentiles of each bin's log magnitude over the window of
    level_window_s seconds around the frame; the window is moved inwards at the ends of a recording.

    Args:
      spectrum: (n_frames, n_freq) complex, of a recording at the level of features.level_gain.
      settings: the recipe's section [input].
    Returns:
      frames: (n_frames, n_freq); statistics: (n_frames, n_statistics, n_freq), a view that may repeat rows.
    """
    frames = log_magnitude(spectrum, settings.floor_db)
    n_frames, n_freq = frames.shape
    if settings.noise_estimate == "none":
        return frames, np.empty((n_frames, 0, n_freq), frames.dtype)
    if settings.noise_estimate == "first_frames":
        estimate = frames[: settings.first_frames].mean(axis=0)
        return frames, np.broadcast_to(estimate, (n_frames, 1, n_freq))
    starts, width = estimate_windows(n_frames, settings.level_window_s)
    level, statistics = window_estimates(
        frames, power_of_frames(spectrum), starts, width, settings.percentiles
    )
    of_frame = np.minimum(np.arange(n_frames) // FRAMES_PER_ESTIMATE, len(starts) - 1)
    return np.maximum(frames - level[of_frame], -FLOOR), statistics[of_frame]


def power_of_frames(spectrum: np.ndarray) -> np.ndarray:
    """Return the mean power of the bins of each frame, (n_frames,)."""
    return np.square(np.abs(spectrum)).mean(axis=1)


def window_estimates(
    frames: np.ndarray, power: np.ndarray, starts: np.ndarray, width: int, percents: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the level of each window of `width` frames, and percentiles of each bin in it, less the level.

    Args:
      frames: (n_frames, n_freq) log magnitudes.
      power: (n_frames,) as power_of_frames returns it.
      starts: (n_windows,), the first frame of each window.
      width: frames in a window.
      percents: which percentiles.
    Returns:
      level, (n_windows, 1) log magnitude; statistics, (n_windows, len(percents), n_freq).
    """
    statistics = np.empty((len(starts), len(percents), frames.shape[1]), frames.dtype)
    level = np.empty((len(starts), 1), frames.dtype)
    for row, start in enumerate(starts):
        statistics[row] = percentiles(frames[start : start + width], percents)
        level[row] = np.log(power[start : start + width].mean() + log_epsilon**2) / 2
    return level, np.maximum(statistics - level[:, None], -FLOOR)


def estimate_windows(n_frames: int, window_s: float) -> tuple[np.ndarray, int]:
    """Return where the windows of the noise estimates start, and how many frames they have.

    The first window serves frames 0 to 31, the second 32 to 63, and so on; each is centred on them
    and moved inwards at the ends. A recording that is no longer than a window has one for all.
    """
    width = round(window_s * FRAMES_PER_SECOND)
    if n_frames <= width:
        return np.array([0]), n_frames
    centres = np.arange(
        FRAMES_PER_ESTIMATE // 2, n_frames + FRAMES_PER_ESTIMATE // 2, FRAMES_PER_ESTIMATE
    )
    return np.clip(centres - width // 2, 0, n_frames - width), width


def percentiles(rows: np.ndarray, percents: Sequence[float]) -> np.ndarray:
    """Return the value of each column that a percentage of the rows does not exceed, (len(percents), n_columns)."""
    ranks = [round(percent / 100 * (len(rows) - 1)) for percent in percents]
    return np.sort(rows.T, axis=1)[:, ranks].T  # faster than np.partition at several ranks


def windows_with_statistics(
    frames: np.ndarray, statistics: np.ndarray, n_concat: int, n_hop: int
) -> np.ndarray:
    """Return the rows of data.h5: windows of frames, and behind each the statistics of its centre frame.

    Returns:
      (n_segs, n_concat + n_statistics, n_freq).
    """
    return np.concatenate([context_windows(frames, n_concat, n_hop), statistics[::n_hop]], axis=1)


def targets(mixture_stft: np.ndarray, speech_magnitude: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return what the network is to answer.

    For the output "log_magnitude" the clean log magnitude, (n_frames, n_freq). A loss through a mask
    needs the mixture too: then log magnitudes of clean speech and mixture, (n_frames, 2, n_freq);
    for a mask alone both are divided by the speech's root mean square over the whole utterance.
    """
    if recipe.target.output == "log_magnitude":
        return log_magnitude(speech_magnitude, recipe.input.floor_db)
    both = np.stack([speech_magnitude, np.abs(mixture_stft)], axis=1)
    if recipe.target.output == "mask":
        return log_magnitude(both / np.sqrt(np.mean(np.square(speech_magnitude)) + log_epsilon**2))
    return log_magnitude(both, recipe.input.floor_db)


@dataclass
class Scaler:
    """Mean and standard deviation of what the network sees.

    Attributes:
      mean, std: of each bin of the frames, (n_freq,).
      statistics_mean, statistics_std: of each bin of each statistic, (n_statistics, n_freq).
    """

    mean: np.ndarray
    std: np.ndarray
    statistics_mean: np.ndarray
    statistics_std: np.ndarray

    def frames(self, frames: np.ndarray) -> np.ndarray:
        """Scale (..., n_freq) frames, to float32."""
        scaled = frames - self.mean.astype(np.float32)
        scaled /= self.std.astype(np.float32)
        return scaled.astype(np.float32, copy=False)

    def statistics(self, statistics: np.ndarray) -> np.ndarray:
        """Scale (..., n_statistics, n_freq) statistics, to (..., n_statistics * n_freq) float32."""
        mean, std = self.statistics_mean.astype(np.float32), self.statistics_std.astype(np.float32)
        return (
            ((statistics - mean) / std)
            .astype(np.float32, copy=False)
            .reshape(*statistics.shape[:-2], -1)
        )
