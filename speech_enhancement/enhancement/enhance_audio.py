"""Enhancing a recording that arrives in parts, with the same result as enhancing it as a whole.

What the network knows of a recording lies within some seconds around a frame, so a few seconds
are all that has to be kept. `NormalizedStream`, `FeatureStream` and `WaveStream` each take what
arrives and return what is ready; nothing is delayed against the recording, it only comes out later.
"""

from typing import NamedTuple, TypeVar

import numpy as np

from config import n_overlap, n_window, sample_rate
from spectrogram_to_wave import overlap_add
from speech_enhancement.constant_offset import OffsetStream, without_offset
from speech_enhancement.features import (
    FRAMES_PER_SECOND,
    N_FREQ,
    N_HOP,
    istft,
    level_gain,
    log_magnitude,
    pad_to_whole_frames,
    peak,
    stft,
    window_scale,
)
from speech_enhancement.network.network import Settings
from speech_enhancement.network.running import estimate_magnitude
from speech_enhancement.network_input import (
    FIRST_FRAMES_WITHIN,
    FRAMES_PER_ESTIMATE,
    Measured,
    RunningLevel,
    first_frames_estimate,
    less_level,
    measure,
    window_estimates,
    without_statistics,
)
from speech_enhancement.recipe import Input

Arrays = TypeVar("Arrays", bound=tuple)  # Measured or Ready
PEAK_S = 5.0  # of a pipe are heard before its level is judged


def enhance_audio(model, settings: Settings, audio: np.ndarray) -> np.ndarray:
    """Enhance a recording as a whole; the last partial frame is completed with zeros.

    Args:
      model, settings: as network.load_model returns them.
      audio: (n_samples,) at 16 kHz.
    Returns:
      (n_samples,) float64.
    """
    gain = 1.0 if settings.recipe.input.follows_level else level_gain(peak(audio))
    whole_frames = gain * pad_to_whole_frames(audio, n_window, n_overlap)
    spectrum = without_offset(stft(whole_frames, n_window, n_overlap), settings.recipe.input)
    magnitude = estimate_magnitude(model, settings, spectrum)
    return istft(magnitude, spectrum, n_overlap, len(audio)) / gain


class Ready(NamedTuple):
    """Frames of one channel that can go through the network.

    Attributes:
      spectrum: (n_frames, n_freq) complex64, at the level of the recording.
      gain: (n_frames, 1), what brings each frame to the level of all features; see
        features.level_gain.
      frames: (n_frames + n_around, n_freq), with the neighbours of the first and the last; see
        Input.borders.
      statistics: (n_frames, n_statistics, n_freq).
    """

    spectrum: np.ndarray
    gain: np.ndarray
    frames: np.ndarray
    statistics: np.ndarray


class NormalizedStream:
    """Does what network_input.normalized does, for spectra that arrive in parts."""

    def __init__(self, settings: Input):
        self._settings = settings
        self._width = round(settings.level_window_s * FRAMES_PER_SECOND)
        self._measured: Measured | None = None  # the frames from number self._first on
        self._first, self._n_done = 0, 0
        self._estimate: np.ndarray | None = None
        self._level = RunningLevel(settings) if settings.level_memory_s > 0 else None

    def add(self, spectrum: np.ndarray, is_last: bool) -> tuple[np.ndarray, np.ndarray]:
        """Take in (n_frames, n_freq) complex; return what is ready: frames and statistics."""
        if self._level is not None:
            return self._level.add(spectrum)
        if self._settings.noise_estimate == "none":
            return without_statistics(log_magnitude(spectrum, self._settings.floor_db))
        measured = measure(spectrum, self._settings.floor_db)
        if self._measured is not None:
            measured = joined(self._measured, measured)
        self._measured = measured
        if self._settings.noise_estimate == "first_frames":
            return self._with_first_frames(measured, is_last)
        return self._with_percentiles(is_last)

    def _with_first_frames(
        self, measured: Measured, is_last: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Hold frames back until there are enough for the estimate from the first ones."""
        log = measured.log
        if self._estimate is None:
            if len(log) < FIRST_FRAMES_WITHIN and not is_last:
                return log[:0], np.empty((0, 1, log.shape[1]), log.dtype)
            self._estimate = first_frames_estimate(log, measured.power, self._settings.first_frames)
        self._measured = None
        return log, np.broadcast_to(self._estimate, (len(log), 1, log.shape[1]))

    def _with_percentiles(self, is_last: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the frames whose window of level and noise is complete; see estimate_windows."""
        first, done = self._first, self._n_done
        starts, width, n_ready = self._complete_windows(is_last)
        estimates = window_estimates(
            self._measured, starts - first, width, self._settings.percentiles
        )
        of_frame = np.minimum(np.arange(n_ready - done) // FRAMES_PER_ESTIMATE, len(starts) - 1)
        ready = Measured(*(array[done - first : n_ready - first] for array in self._measured))
        frames = less_level(ready, estimates, of_frame)

        # The next window begins before its frames, at the end of the recording so far before that.
        n_frames = first + len(self._measured.log)
        begin = n_ready + FRAMES_PER_ESTIMATE // 2 - self._width // 2
        self._n_done, self._first = n_ready, max(0, min(begin, n_frames - self._width))
        self._measured = Measured(*(array[self._first - first :] for array in self._measured))
        return frames, estimates.statistics[of_frame]

    def _complete_windows(self, is_last: bool) -> tuple[np.ndarray, int, int]:
        """Return the starts of complete windows, their width, and the end of the frames served."""
        n_frames, width = self._first + len(self._measured.log), self._width
        if is_last and n_frames <= width:
            return np.array([0]), n_frames, n_frames
        next_number = self._n_done // FRAMES_PER_ESTIMATE
        numbers = np.arange(next_number, -(-n_frames // FRAMES_PER_ESTIMATE))
        centres = numbers * FRAMES_PER_ESTIMATE + FRAMES_PER_ESTIMATE // 2
        starts = np.maximum(centres - width // 2, 0)
        is_complete = starts + width <= n_frames
        starts = np.minimum(starts, n_frames - width) if is_last else starts[is_complete]
        n_ready = min((next_number + len(starts)) * FRAMES_PER_ESTIMATE, n_frames)
        return starts, width, n_ready


def joined(held: Arrays, new: Arrays) -> Arrays:
    """Return what is known of two runs of frames, one behind the other."""
    return type(held)(*(np.concatenate(pair) for pair in zip(held, new, strict=True)))


class Level:
    """The gain to the level of all features, of one channel, for recipes that take the peak.

    In a file the peak is known. In a pipe it is that of what has come so far, of PEAK_S seconds at
    least: should something louder come later, what came before was enhanced as if the recording
    were quieter.

    Args:
      settings: the recipe's section [input].
      peak_of_recording: largest absolute value of the channel at 16 kHz; None in a pipe.
    """

    def __init__(self, settings: Input, peak_of_recording: float | None):
        self._is_followed = settings.follows_level
        self._known, self._peak = peak_of_recording, 0.0
        self._waiting, self._n_heard = np.empty((0, N_FREQ), np.complex64), 0

    def add(
        self, spectrum: np.ndarray, samples: np.ndarray, is_last: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take in new frames, and the samples that they came with.

        Returns:
          The frames whose level is known, (n_frames, n_freq), and the gain of each, (n_frames, 1)
          float32.
        """
        if self._is_followed:
            gain = 1.0
        elif self._known is not None:
            gain = level_gain(self._known)
        else:
            self._peak, self._n_heard = max(self._peak, peak(samples)), self._n_heard + len(samples)
            spectrum, self._waiting = np.concatenate([self._waiting, spectrum]), spectrum[:0]
            if self._n_heard < PEAK_S * sample_rate and not is_last:
                spectrum, self._waiting = self._waiting, spectrum
            gain = level_gain(self._peak)
        return spectrum, np.full((len(spectrum), 1), gain, np.float32)


class FeatureStream:
    """Turns the samples of one channel into frames that are ready for the network.

    Args:
      settings: the recipe's section [input].
      peak_of_recording: see Level.
      n_together: the number of frames that are ready is a multiple of it, but for the last ones.
    """

    def __init__(
        self,
        settings: Input,
        peak_of_recording: float | None = None,
        n_together: int = FRAMES_PER_ESTIMATE,
    ):
        self._n_together = n_together
        self._borders = settings.borders
        self._offset = OffsetStream(settings)
        self._level = Level(settings, peak_of_recording)
        self._normalized = NormalizedStream(settings)
        self._samples = np.empty(0, np.float32)
        self._n_frames = 0
        self._held: Ready | None = None  # frames whose neighbours are not there yet

    def add(self, samples: np.ndarray, is_last: bool = False) -> Ready:
        """Take in (n_samples,) at 16 kHz; return the frames that are ready."""
        new_samples = samples
        samples = np.concatenate([self._samples, samples.astype(np.float32, copy=False)])
        if is_last and (len(samples) > n_overlap or self._n_frames == 0):
            samples = pad_to_whole_frames(samples, n_window, n_overlap)
        n_new = max(0, (len(samples) - n_overlap) // N_HOP)
        self._samples = samples[n_new * N_HOP :]
        self._n_frames += n_new
        spectrum = np.empty((0, N_FREQ), np.complex64)
        if n_new:
            spectrum = stft(samples, n_window, n_overlap)
        spectrum = self._offset.add(spectrum, is_last)
        spectrum, gain = self._level.add(spectrum, new_samples, is_last)
        return self._with_neighbours(
            Ready(spectrum, gain, *self._normalized.add(spectrum * gain, is_last)), is_last
        )

    def _with_neighbours(self, new: Ready, is_last: bool) -> Ready:
        """Hold frames back until their neighbours are there; at the borders repeat the last."""
        if self._held is None:
            self._held = Ready(*(array[:0] for array in new))
        if len(new.frames) and not len(self._held.frames):
            before = np.repeat(new.frames[:1], self._borders[0], axis=0)
            self._held = self._held._replace(frames=before)

        known = joined(self._held, new)
        if is_last:
            frames = np.pad(known.frames, ((0, self._borders[1]), (0, 0)), mode="edge")
            known = known._replace(frames=frames)
        n_ready = max(0, len(known.frames) - sum(self._borders))
        if not is_last:
            n_ready -= n_ready % self._n_together  # segments of frames with the same statistics
        self._held = Ready(*(array[n_ready:] for array in known))
        ready = Ready(*(array[:n_ready] for array in known))
        return ready._replace(frames=known.frames[: n_ready + sum(self._borders)])


class WaveStream:
    """Turns spectra of one channel into its wave, as spectrogram_to_wave.recover_wav does.

    Args:
      weighted: frames are multiplied by the window once more, and divided by the sum of its
        squares: of all waves, this one's spectrogram has the least squared error (Griffin and Lim,
        1984, eq. 6).
    """

    def __init__(self, weighted: bool = False):
        window = np.hamming(n_window)
        self._weight = window_scale(n_window) * (window if weighted else np.ones(n_window))
        self._window = self._weight * window / window_scale(n_window)
        self._wave = self._window_sum = np.zeros(n_overlap)

    def add(self, spectrum: np.ndarray, is_last: bool = False) -> np.ndarray:
        """Take in (n_frames, n_freq) complex; return the samples that no later frame adds to."""
        frames = self._weight * np.fft.irfft(spectrum)
        wave, window_sum = self._wave, self._window_sum
        if len(frames):
            wave = overlap_add(frames, N_HOP)
            window_sum = overlap_add(np.broadcast_to(self._window, frames.shape), N_HOP)
            wave[: len(self._wave)] += self._wave
            window_sum[: len(self._wave)] += self._window_sum
        n_ready = len(wave) if is_last else len(frames) * N_HOP
        self._wave, self._window_sum = wave[n_ready:], window_sum[n_ready:]
        ready = wave[:n_ready]
        return np.divide(ready, window_sum[:n_ready], out=ready, where=window_sum[:n_ready] > 0)
