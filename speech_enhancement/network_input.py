"""What the network sees of a mixture and what its output is to be; pure functions of arrays.

A mixture becomes `frames`, the log magnitude of each frame (less the level, if the recipe says
so), and `statistics`, what is known of the noise around each frame. The network sees a window of
n_concat frames and the statistics of its centre.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from config import log_epsilon
from speech_enhancement.constant_offset import without_offset
from speech_enhancement.features import (
    FRAMES_PER_SECOND,
    N_FREQ,
    RunningStatistics,
    context_windows,
    log_magnitude,
    power_of_frames,
)
from speech_enhancement.recipe import Input, Recipe

FRAMES_PER_ESTIMATE = 32  # level and percentiles are computed anew every 0.5 s
FLOOR = 9.2  # 80 dB in nepers: what lies so far below the level is lifted to there
SILENCE = 1e-6  # a frame with less of the power of the loudest frame around it holds no signal
EMPTY = 10**-6.5  # a band with less of the mean power of a bin holds no signal
FRAMES_PER_LOOK = 8  # one of so many frames is looked at for the upper end of the signal
BAND_BINS = 8  # 250 Hz: in such steps
NARROWEST = N_FREQ // 4  # bins, 2 kHz, of a band that is still filled up
# 7.5 kHz: what lacks only the roll-off of a resampling filter is left as it is.
WIDEST = (N_FREQ - 1) * 15 // 16 // BAND_BINS * BAND_BINS
LOWEST_OF_LEVEL = 2  # bins up to 31 Hz hold what a constant leaks
FIRST_FRAMES_WITHIN = 312  # 5 s, in which the first frames with signal are looked for


def frames_and_statistics(spectrum: np.ndarray, settings: Input) -> tuple[np.ndarray, np.ndarray]:
    """Return what the network sees of a mixture: the constant is taken out, then see `normalized`.

    Args:
      spectrum: (n_frames, n_freq) complex, of a recording at the level of features.level_gain.
      settings: the recipe's section [input].
    Returns:
      frames: (n_frames, n_freq); statistics: (n_frames, n_statistics, n_freq), a view that may
      repeat rows.
    """
    return normalized(without_offset(spectrum, settings), settings)


def normalized(spectrum: np.ndarray, settings: Input) -> tuple[np.ndarray, np.ndarray]:
    """Return the log magnitudes of a mixture without a constant, and what is known of its noise.

    With noise_estimate "first_frames" the one statistic is the mean of the first frames' log
    magnitude, as in noise-aware training, [1], as far as we know it: z = (1/T) sum of y_t,
    t = 1..T. With "percentiles" it is some percentiles of each bin's log magnitude over the window
    of level_window_s seconds around the frame; the window is moved inwards at the ends of a
    recording. Both are of frames that hold signal; see least_power. With level_memory_s there are
    no statistics; see RunningLevel.

    Args:
      spectrum: (n_frames, n_freq) complex, as without_offset returns it.
      settings: the recipe's section [input].
    Returns:
      frames, statistics: as frames_and_statistics returns them.
    """
    if settings.level_memory_s > 0:
        return RunningLevel(settings).add(spectrum)
    if settings.noise_estimate == "none":
        return without_statistics(log_magnitude(spectrum, settings.floor_db))
    if settings.noise_estimate == "first_frames":
        frames = log_magnitude(spectrum, settings.floor_db)
        estimate = first_frames_estimate(frames, power_of_frames(spectrum), settings.first_frames)
        return frames, np.broadcast_to(estimate, (len(frames), 1, frames.shape[1]))
    measured = measure(spectrum, settings.floor_db)
    starts, width = estimate_windows(len(spectrum), settings.level_window_s)
    estimates = window_estimates(measured, starts, width, settings.percentiles)
    of_frame = np.minimum(np.arange(len(spectrum)) // FRAMES_PER_ESTIMATE, len(starts) - 1)
    return less_level(measured, estimates, of_frame), estimates.statistics[of_frame]


def without_statistics(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (n_frames, n_freq) frames, and the statistics (n_frames, 0, n_freq) of none."""
    return frames, np.empty((len(frames), 0, frames.shape[1]), frames.dtype)


# --- The level of what came so far --------------------------------------------------------------


class RunningLevel:
    """Takes the level out of frames that arrive in parts, knowing only what came before.

    The level of frame t is the mean power of the frames up to t that hold signal, each weighted by
    exp(-n / N) if n of them came after it; N frames are level_memory_s seconds. Frames hold none
    that lie 60 dB below the loudest so far: digital silence keeps the level, and its frames are all
    floor. The lowest bins do not count, and look to the network like the next: so a constant does
    no harm.

    Args:
      settings: the recipe's section [input].
    """

    def __init__(self, settings: Input):
        self._kept = np.exp(-1 / (settings.level_memory_s * FRAMES_PER_SECOND))
        self._floor_db = settings.floor_db
        self._power = self._weight = self._loudest = 0.0

    def add(self, spectrum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take in (n_frames, n_freq) complex; return frames and statistics, see normalized."""
        power = power_of_frames(np.ascontiguousarray(spectrum[:, LOWEST_OF_LEVEL:]))
        levels = np.empty((len(power), 1), spectrum.real.dtype)
        is_silent = np.zeros(len(power), bool)
        for index, of_frame in enumerate(power.tolist()):
            self._loudest = max(self._loudest, of_frame)
            if of_frame > SILENCE * self._loudest:
                self._power = self._kept * self._power + of_frame
                self._weight = self._kept * self._weight + 1
            else:
                is_silent[index] = True
            levels[index] = self._power / max(self._weight, 1)
        frames = log_magnitude(spectrum, self._floor_db) - np.log(levels + log_epsilon**2) / 2
        frames[:, :LOWEST_OF_LEVEL] = frames[:, LOWEST_OF_LEVEL, None]
        frames[is_silent] = -FLOOR
        return without_statistics(np.maximum(frames, -FLOOR, out=frames))


def hold_signal(frames: np.ndarray) -> np.ndarray:
    """Return which of the frames of a RunningLevel hold signal, (n_frames,) bool."""
    return (frames > -FLOOR).any(axis=1)


# --- What is measured of each frame -----------------------------------------------------------


class Measured(NamedTuple):
    """What the estimates need of some frames.

    Attributes:
      log: (n_frames, n_freq) log magnitudes.
      power: (n_frames,) mean power of the bins.
      spectrum: (n_frames, n_freq) complex.
    """

    log: np.ndarray
    power: np.ndarray
    spectrum: np.ndarray


def measure(spectrum: np.ndarray, floor_db: float) -> Measured:
    """Measure (n_frames, n_freq) complex frames."""
    return Measured(log_magnitude(spectrum, floor_db), power_of_frames(spectrum), spectrum)


def least_power(power: np.ndarray) -> float:
    """Return the power of the weakest frame that may hold signal: digital silence is not noise.

    Frames hold none that lie 60 dB below the loudest, as digital silence does, with dither or
    without it, and as the pauses of a recording hardly do.
    """
    return SILENCE * power.max(initial=0)


def band_end(spectrum: np.ndarray, mean_power: float) -> int:
    """Return the first bin above the band that frames have signal in, n_freq if that is all.

    Recordings at lower sample rates have no signal above half their rate. Bands of BAND_BINS bins
    are looked at. One that ends below NARROWEST or above WIDEST is taken as the whole.

    Args:
      spectrum: (n_frames, n_freq) complex.
      mean_power: of their bins.
    """
    n_freq, floor = spectrum.shape[1], EMPTY * mean_power
    if sharp_power(spectrum[:, WIDEST - 1 :]).max(initial=0) > floor:
        return n_freq
    n_bands = WIDEST // BAND_BINS
    bands = sharp_power(spectrum[:, : WIDEST + 1])
    bands = np.pad(bands, (1, 0)).reshape(n_bands, BAND_BINS).mean(axis=1)
    in_use = np.flatnonzero(bands > floor)
    end = (int(in_use[-1]) + 1) * BAND_BINS if len(in_use) else 0
    return end if end >= NARROWEST else n_freq


def sharp_power(spectrum: np.ndarray) -> np.ndarray:
    """Return the mean power of all bins but the first and last, without leaks of distant bins.

    A tone leaks to all bins, through a Hamming window 55 dB lower and less. Differences of
    neighbouring bins are the spectrum through a window that also is multiplied by Hann's, which
    leaks 100 dB less far away.

    Args:
      spectrum: (n_frames, n_bins) complex.
    """
    sharp = (spectrum[:, 1:-1] - (spectrum[:, :-2] + spectrum[:, 2:]) / 2) / 2
    return (sharp.real**2 + sharp.imag**2).mean(axis=0)


def filled(log: np.ndarray, end: int) -> np.ndarray:
    """Return log magnitudes whose bins above the band are those of its upper half, mirrored.

    The network was trained with recordings of the whole band, and takes an empty part of it for the
    absence of noise. The uppermost bins in the band, where resampling filters fall off, are
    replaced too.

    Args:
      log: (n_frames, n_freq).
      end: as band_end returns it.
    """
    top = end - BAND_BINS
    upper_half = np.arange(top // 2, top)
    source = np.resize(np.concatenate([upper_half[::-1], upper_half]), log.shape[1] - top)
    return np.concatenate([log[:, :top], log[:, source]], axis=1)


# --- Estimates of noise and level -------------------------------------------------------------


class Estimates(NamedTuple):
    """What is known around each FRAMES_PER_ESTIMATE frames.

    Attributes:
      level: (n_windows, 1) log magnitude.
      statistics: (n_windows, n_percentiles, n_freq), less the level.
      ends: (n_windows,), where the band ends that holds signal; see band_end.
      least: (n_windows,), as least_power returns it.
    """

    level: np.ndarray
    statistics: np.ndarray
    ends: np.ndarray
    least: np.ndarray


def window_estimates(
    measured: Measured, starts: np.ndarray, width: int, percents: Sequence[float]
) -> Estimates:
    """Return the level of each window of frames that hold signal, and percentiles of each bin.

    Args:
      measured: of n_frames frames.
      starts: (n_windows,), the first frame of each window.
      width: frames in a window.
      percents: which percentiles.
    """
    n_freq = measured.log.shape[1]
    statistics = np.empty((len(starts), len(percents), n_freq), measured.log.dtype)
    level = np.empty((len(starts), 1), measured.log.dtype)
    ends, least = np.full(len(starts), n_freq), np.empty(len(starts))
    for row, start in enumerate(starts):
        log, power, spectrum = (array[start : start + width] for array in measured)
        ends[row] = band_end(spectrum[::FRAMES_PER_LOOK], power.mean())
        least[row] = least_power(power)
        heard = power >= least[row]
        if ends[row] < n_freq:
            log = filled(log, ends[row])
            power = np.exp(2 * log).mean(axis=1)
        if not heard.all():
            log, power = log[heard], power[heard]
        statistics[row] = percentiles(log, percents)
        level[row] = np.log(power.mean() + log_epsilon**2) / 2
    return Estimates(level, np.maximum(statistics - level[:, None], -FLOOR), ends, least)


def less_level(measured: Measured, estimates: Estimates, of_frame: np.ndarray) -> np.ndarray:
    """Return (n_frames, n_freq) log magnitudes less the level around them.

    Bins above the band are filled. Frames without signal have the statistic in the middle, as if
    the noise went on: the network knows no context of silence.

    Args:
      measured: of n_frames frames.
      estimates: as window_estimates returns them.
      of_frame: (n_frames,), which estimate serves each frame.
    """
    frames = measured.log - estimates.level[of_frame]
    for row in np.flatnonzero(estimates.ends < frames.shape[1]):
        frames[of_frame == row] = filled(frames[of_frame == row], estimates.ends[row])
    silent = measured.power < estimates.least[of_frame]
    middle = estimates.statistics.shape[1] // 2
    frames[silent] = estimates.statistics[of_frame[silent], middle]
    return np.maximum(frames, -FLOOR, out=frames)


def first_frames_estimate(frames: np.ndarray, power: np.ndarray, n_first: int) -> np.ndarray:
    """Return the mean of the first frames that hold signal, (n_freq,), of FIRST_FRAMES_WITHIN."""
    power = power[:FIRST_FRAMES_WITHIN]
    heard = power >= least_power(power)
    return frames[: len(heard)][heard][:n_first].mean(axis=0)


def estimate_windows(n_frames: int, window_s: float) -> tuple[np.ndarray, int]:
    """Return where the windows of the noise estimates start, and how many frames they have.

    The first window serves frames 0 to 31, the second 32 to 63, and so on; each is centred on them
    and moved inwards at the ends. A recording that is no longer than a window has one for all.
    """
    width = round(window_s * FRAMES_PER_SECOND)
    if n_frames <= width:
        return np.array([0]), n_frames
    centres = np.arange(0, n_frames, FRAMES_PER_ESTIMATE) + FRAMES_PER_ESTIMATE // 2
    return np.clip(centres - width // 2, 0, n_frames - width), width


def percentiles(rows: np.ndarray, percents: Sequence[float]) -> np.ndarray:
    """Return percentiles of each column, (len(percents), n_columns), each the value of a row."""
    ranks = [round(percent / 100 * (len(rows) - 1)) for percent in percents]
    return np.sort(rows.T, axis=1)[:, ranks].T  # faster than np.partition at several ranks


def windows_with_statistics(
    frames: np.ndarray, statistics: np.ndarray, n_concat: int, n_hop: int
) -> np.ndarray:
    """Return the rows of data.h5: windows of frames, then the statistics of the centre frame.

    Returns:
      (n_segs, n_concat + n_statistics, n_freq).
    """
    return np.concatenate([context_windows(frames, n_concat, n_hop), statistics[::n_hop]], axis=1)


def targets(mixture_stft: np.ndarray, speech_magnitude: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return what the network is to output.

    For the output "log_magnitude" the clean log magnitude, (n_frames, n_freq). A loss through a
    mask needs the mixture too: then log magnitudes of clean speech and mixture, (n_frames, 2,
    n_freq); for a mask alone both are divided by the speech's root mean square over these frames:
    those of the whole utterance from data.h5, of its 5 s on the fly.
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

    @classmethod
    def of(cls, frames: RunningStatistics, statistics: RunningStatistics) -> "Scaler":
        """Return the scaler for frames, and for the statistics of each side by side."""
        shape = (-1, len(frames.mean))
        rows = (statistics.mean.reshape(shape), statistics.std.reshape(shape))
        return cls(frames.mean, frames.std, *rows)

    def frames(self, frames: np.ndarray) -> np.ndarray:
        """Scale (..., n_freq) frames, to float32."""
        scaled = frames - self.mean.astype(np.float32)
        scaled /= self.std.astype(np.float32)
        return scaled.astype(np.float32, copy=False)

    def statistics(self, statistics: np.ndarray) -> np.ndarray:
        """Scale (..., n_statistics, n_freq) statistics, to (..., n_statistics * n_freq) float32."""
        mean, std = self.statistics_mean.astype(np.float32), self.statistics_std.astype(np.float32)
        scaled = ((statistics - mean) / std).astype(np.float32, copy=False)
        return scaled.reshape(*statistics.shape[:-2], -1)
