"""Networks that decide together, and take turns: every other one looks half a hop earlier.

What a network multiplies a bin by wavers from frame to frame. Networks of different kinds err in
different places, so the geometric mean of their gains wavers less. Networks that look at the same
frames still share what lies between two looks; when they take turns they do not, and the mean of
the waves of both turns is smoother, for the same number of frames that go through a network.
"""

from collections.abc import Sequence

import numpy as np

from config import n_window
from speech_enhancement.enhancement.enhance_audio import FeatureStream, Ready, WaveStream
from speech_enhancement.features import N_FREQ, N_HOP
from speech_enhancement.network.network import Settings
from speech_enhancement.network.running import NetworkRun, magnitude_of_output

PRIMING_FRAMES = 62  # 1 s
EARLIER = N_HOP // 2  # samples by which the frames of the second turn begin before the first's
Models = Sequence[tuple]  # of a network and its Settings, as network.load_model returns them
Frames = tuple[np.ndarray, np.ndarray]  # spectrum, complex64, and gain, float32; (n_frames, n_freq)


def in_turns(items: Sequence) -> list[Sequence]:
    """Deal items out to two turns, the first, third, ... and the others; a single one has one."""
    return [items[first::2] for first in range(min(len(items), 2))]


# --- What goes into the networks ------------------------------------------------------------------


def are_primed(models: Models) -> list[bool]:
    """Return which models hear the first second twice: those with memory, where there are several.

    One alone does not, so that the result of a live model is the same live.
    """
    return [len(models) > 1 and settings.recipe.network.kind == "memory" for _, settings in models]


def open_streams(models: Models, peak_of_recording: float | None) -> list["MirroredStream"]:
    """Return what turns the samples of a channel into frames for each model; see Level."""
    return [
        MirroredStream(
            settings, peak_of_recording, PRIMING_FRAMES * N_HOP * is_primed + EARLIER * (number % 2)
        )
        for number, ((_, settings), is_primed) in enumerate(
            zip(models, are_primed(models), strict=True)
        )
    ]


class MirroredStream:
    """A FeatureStream that begins some samples before the recording, with its mirror image.

    A network with memory has heard nothing at first. What it hears before the
    recording begins is much like the beginning, and joins it without a jump.

    Args:
      settings: of the model.
      peak_of_recording: see Level.
      n_before: samples.
    """

    def __init__(self, settings: Settings, peak_of_recording: float | None, n_before: int):
        self._stream = FeatureStream(settings.recipe.input, peak_of_recording)
        self._n_before = n_before
        self._held: np.ndarray | None = np.empty(0, np.float32)  # None once it has begun

    def add(self, samples: np.ndarray, is_last: bool = False) -> Ready:
        """Take in (n_samples,); return what is ready, with the frames before the recording."""
        if self._held is None:
            return self._stream.add(samples, is_last)
        samples = np.concatenate([self._held, samples])
        if len(samples) <= self._n_before and not is_last:
            self._held = samples
            return self._stream.add(samples[:0])
        self._held = None
        mode = "reflect" if len(samples) else "constant"
        samples = np.pad(samples, (self._n_before, 0), mode)
        if is_last:  # at least a frame of the recording
            samples = np.pad(samples, (0, max(0, self._n_before + n_window - len(samples))))
        return self._stream.add(samples, is_last)


# --- What the bins are multiplied by --------------------------------------------------------------


class TurnGains:
    """Runs one network or several on a channel, in turns, and joins what each multiplies a bin by.

    The gain of a frame is the geometric mean of what all networks would multiply it by. Those whose
    turn it is have seen that frame. For the others it is the geometric mean of their gains in the
    frames half a hop before and after it; beyond the first or the last frame that one counts twice.

    Args:
      models: one or several.
      smallest_gain: no part of the spectrum is attenuated by more than this factor.
    """

    def __init__(self, models: Models, smallest_gain: float):
        turns = zip(in_turns(models), in_turns(are_primed(models)), strict=True)
        self._joints = [JointGain(*turn) for turn in turns]
        self._shares = [len(turn) / len(models) for turn in in_turns(models)]
        self._smallest_gain = np.float32(smallest_gain)
        nothing = np.empty((0, N_FREQ), np.complex64), np.empty((0, N_FREQ), np.float32)
        self._held: list[Frames] = [nothing for _ in self._joints]  # whose neighbours are missing
        self._before = nothing[1]  # gain of the first turn's frame before those

    def add(self, ready: Sequence[Ready], is_last: bool) -> list[Frames]:
        """Take in what is ready for each network; return the next frames of each turn."""
        new = [joint.add(turn) for joint, turn in zip(self._joints, in_turns(ready), strict=True)]
        joined = new
        if len(new) == 2:
            both = zip(self._held, new, strict=True)
            self._held = [tuple(map(np.concatenate, zip(*pair, strict=True))) for pair in both]
            joined = self._joined(is_last)
        return [(spectrum, np.maximum(gain, self._smallest_gain)) for spectrum, gain in joined]

    def _joined(self, is_last: bool) -> list[Frames]:
        """Take the frames whose neighbours are known from those held, and return them.

        Frame t of the second turn lies between frames t - 1 and t of the first.
        """
        (spectrum, gain), (other_spectrum, other_gain) = self._held
        n = n_other = max(0, min(len(gain), len(other_gain) - 1))
        if is_last:
            n, n_other = len(gain), len(other_gain)
        of_first = np.concatenate([self._before if len(self._before) else gain[:1], gain])
        share, other_share = self._shares
        joint = gain[:n] ** share * between(other_gain, n) ** other_share
        other_joint = other_gain[:n_other] ** other_share * between(of_first, n_other) ** share

        self._before = of_first[n : n + 1]
        self._held = [(spectrum[n:], gain[n:]), (other_spectrum[n_other:], other_gain[n_other:])]
        return [(spectrum[:n], joint), (other_spectrum[:n_other], other_joint)]


def between(gains: np.ndarray, n_frames: int) -> np.ndarray:
    """Return the geometric means of neighbours, frames 0 and 1 first; the last is its own."""
    if not n_frames:
        return gains[:0]
    roots = np.sqrt(gains[np.minimum(np.arange(n_frames + 1), len(gains) - 1)])
    return roots[:-1] * roots[1:]


class JointGain:
    """Runs one network or several that look at the same frames of a channel.

    Their gain is their geometric mean. Each looks ahead as far as its recipe says; the last to be
    ready sets the pace.

    Args:
      models: one or several; the first one's spectrum, without a constant, is what is enhanced.
      primed: which of them have PRIMING_FRAMES before the recording.
    """

    def __init__(self, models: Models, primed: Sequence[bool]):
        self._settings = [settings for _, settings in models]
        self._runs = [NetworkRun(*model) for model in models]
        self._gains = [np.empty((0, N_FREQ), np.float32) for _ in models]  # not used yet
        self._n_early = [PRIMING_FRAMES * is_primed for is_primed in primed]
        self._spectrum = np.empty((0, N_FREQ), np.complex64)

    def add(self, ready: Sequence[Ready]) -> Frames:
        """Take in what is ready for each network; return spectrum and gain of the next frames."""
        new = [
            spectral_gain(run, settings, of_one)
            for run, settings, of_one in zip(self._runs, self._settings, ready, strict=True)
        ]
        n_early = [min(pair) for pair in zip(self._n_early, map(len, new), strict=True)]
        self._n_early = [n - n_now for n, n_now in zip(self._n_early, n_early, strict=True)]
        new = [gain[n:] for gain, n in zip(new, n_early, strict=True)]
        gains = [np.concatenate(pair) for pair in zip(self._gains, new, strict=True)]
        spectrum = np.concatenate([self._spectrum, ready[0].spectrum[n_early[0] :]])
        n_ready = min(len(gain) for gain in gains)
        self._gains, self._spectrum = [gain[n_ready:] for gain in gains], spectrum[n_ready:]
        return spectrum[:n_ready], geometric_mean([gain[:n_ready] for gain in gains])


def geometric_mean(gains: Sequence[np.ndarray]) -> np.ndarray:
    """Return the geometric mean of arrays of one shape; that of one array is the array itself."""
    if len(gains) == 1:
        return gains[0]
    # In a bin of silence a gain can be 1e13; the product of several does not fit into float32.
    product = np.prod(gains, axis=0, dtype=np.float64)
    return (product ** (1 / len(gains))).astype(np.float32)


def spectral_gain(run: NetworkRun, settings: Settings, ready: Ready) -> np.ndarray:
    """Return what a network would multiply each bin by, (n_frames, n_freq)."""
    if not len(ready.spectrum):
        return np.empty(ready.spectrum.shape, np.float32)
    output = run.add(ready.frames, ready.statistics)
    if settings.recipe.target.output == "mask":
        return output
    spectrum = ready.gain * ready.spectrum
    magnitude = magnitude_of_output(settings, output, spectrum)
    return (magnitude / np.maximum(np.abs(spectrum), 1e-12)).astype(np.float32)


# --- What comes out -------------------------------------------------------------------------------


class TurnWave:
    """Turns the frames of one channel into its wave.

    That of two turns is the mean of their waves. Each is made of weighted frames, which count most
    in their middle: there the frames of the other turn join.

    Args:
      n_turns: one or two.
    """

    def __init__(self, n_turns: int):
        self._streams = [WaveStream(weighted=n_turns == 2) for _ in range(n_turns)]
        self._n_early = [0, EARLIER][:n_turns]  # samples before the recording
        self._held = [np.empty(0) for _ in range(n_turns)]  # samples that the other turn lacks

    def add(self, frames: Sequence[Frames], is_last: bool) -> np.ndarray:
        """Take in the next frames of each turn; return the samples that no later frame adds to."""
        waves = []
        for turn, (stream, (spectrum, gain)) in enumerate(zip(self._streams, frames, strict=True)):
            new = stream.add(spectrum * gain, is_last)
            n_early = min(self._n_early[turn], len(new))
            self._n_early[turn] -= n_early
            waves.append(np.concatenate([self._held[turn], new[n_early:]]))
        n_ready = min(map(len, waves))
        self._held = [wave[n_ready:] for wave in waves]
        return np.mean([wave[:n_ready] for wave in waves], axis=0)
