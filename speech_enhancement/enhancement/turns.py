"""Frames half a hop apart: of networks that decide together, in turns, or of one that looks twice.

What a network multiplies a bin by wavers from frame to frame. Networks of different kinds err in
different places, so the geometric mean of their gains wavers less. Networks that look at the same
frames still share what lies between two looks; when they take turns they do not, and the mean of
the waves of both turns is smoother, for the same number of frames that go through a network.

A network with memory that needs no frame of the future looks twice while it is alone: at the frames
of both turns, each time with a memory of its own.
"""

from collections.abc import Sequence

import numpy as np

from config import n_window
from speech_enhancement.enhancement.enhance_audio import FeatureStream, Ready, WaveStream, joined
from speech_enhancement.features import N_FREQ, N_HOP
from speech_enhancement.network.network import Settings
from speech_enhancement.network.running import NetworkRun, magnitude_of_output
from speech_enhancement.network_input import FRAMES_PER_ESTIMATE

PRIMING_FRAMES = 62  # 1 s
EARLIER = N_HOP // 2  # samples by which the frames of the second turn begin before the first's
Models = Sequence[tuple]  # of a network and its Settings, as network.load_model returns them
Frames = tuple[np.ndarray, np.ndarray]  # spectrum, complex64, and gain, float32; (n_frames, n_freq)


def in_turns(items: Sequence) -> list[Sequence]:
    """Deal items out to two turns, the first, third, ... and the others; a single one has one."""
    return [items[first::2] for first in range(min(len(items), 2))]


def n_turns(models: Models) -> int:
    """Return from how many turns the wave is made: one, or two half a hop apart."""
    return 2 if len(models) > 1 else models[0][1].recipe.n_looks


# --- What goes into the networks ------------------------------------------------------------------


def are_primed(models: Models) -> list[bool]:
    """Return which models hear the first second twice: those with memory, where there are several.

    One alone does not, so that the result of a live model is the same live.
    """
    return [len(models) > 1 and settings.recipe.network.kind == "memory" for _, settings in models]


def open_streams(
    models: Models, peak_of_recording: float | None, n_together: int = FRAMES_PER_ESTIMATE
) -> list["MirroredStream"]:
    """Return what turns the samples of a channel into frames, for each model or each of its looks.

    Args:
      models: one or several.
      peak_of_recording: see Level.
      n_together: see FeatureStream.
    """
    all_settings = [settings for _, settings in models]
    if len(models) == 1:
        all_settings *= n_turns(models)
    n_primed = [PRIMING_FRAMES * N_HOP * is_primed for is_primed in are_primed(models)]
    n_before = [
        n_primed[number % len(models)] + EARLIER * (number % 2)
        for number in range(len(all_settings))
    ]
    return [
        MirroredStream(FeatureStream(settings.recipe.input, peak_of_recording, n_together), n)
        for settings, n in zip(all_settings, n_before, strict=True)
    ]


class MirroredStream:
    """Feeds a FeatureStream that begins some samples before the recording, with its mirror image.

    A network with memory has heard nothing at first. What it hears before the
    recording begins is much like the beginning, and joins it without a jump.

    Args:
      stream: what the samples go to.
      n_before: samples.
    """

    def __init__(self, stream: FeatureStream, n_before: int):
        self._stream, self._n_before = stream, n_before
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
    One that looks twice sees the frames of both turns.

    Args:
      models: one or several.
      smallest_gain: no part of the spectrum is attenuated by more than this factor.
    """

    def __init__(self, models: Models, smallest_gain: float):
        self._looks = BothLooks(*models[0]) if n_turns(models) > len(models) else None
        turns = zip(in_turns(models), in_turns(are_primed(models)), strict=True)
        self._joints = [] if self._looks else [JointGain(*turn) for turn in turns]
        self._shares = [len(turn) / len(models) for turn in in_turns(models)]
        self._smallest_gain = np.float32(smallest_gain)
        nothing = np.empty((0, N_FREQ), np.complex64), np.empty((0, N_FREQ), np.float32)
        self._held: list[Frames] = [nothing for _ in self._joints]  # whose neighbours are missing
        self._before = nothing[1]  # gain of the first turn's frame before those

    def add(self, ready: Sequence[Ready], is_last: bool) -> list[Frames]:
        """Take in what is ready for each network, or look; return the next frames of each turn."""
        turns = self._looks.add(*ready) if self._looks else self._of_all(ready, is_last)
        return [(spectrum, np.maximum(gain, self._smallest_gain)) for spectrum, gain in turns]

    def _of_all(self, ready: Sequence[Ready], is_last: bool) -> list[Frames]:
        """Return the next frames of each turn, with the gain of all networks."""
        new = [joint.add(turn) for joint, turn in zip(self._joints, in_turns(ready), strict=True)]
        if len(new) == 1:
            return new
        both = zip(self._held, new, strict=True)
        self._held = [tuple(map(np.concatenate, zip(*pair, strict=True))) for pair in both]
        return self._joined(is_last)

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


class BothLooks:
    """Runs a network with memory at the frames of both turns of a channel.

    They go through it in the order in which they begin, the earlier look's first, each look with a
    memory of its own.

    Args:
      model, settings: as network.load_model returns them, or onnx_network.load_onnx.
    """

    def __init__(self, model, settings: Settings):
        self._run = NetworkRun(model, settings, n_looks=2)
        self._held: list[Ready] | None = None  # frames of both turns that wait for others
        self._next = 1  # the turn whose frame is next; the second begins half a hop earlier

    def add(self, *ready: Ready) -> list[Frames]:
        """Take in what is ready of both looks; return spectrum and gain of the next frames."""
        held = self._held or [Ready(*(array[:0] for array in of_one)) for of_one in ready]
        known = [joined(*pair) for pair in zip(held, ready, strict=True)]
        first, second = known[self._next], known[1 - self._next]
        n_first = min(len(first.spectrum), len(second.spectrum) + 1)
        n_second = min(len(second.spectrum), n_first)

        frames = np.empty((n_first + n_second, N_FREQ), np.float32)
        frames[::2], frames[1::2] = first.frames[:n_first], second.frames[:n_second]
        gains = self._run.add(frames, first.statistics[:0])
        turns = [(first.spectrum[:n_first], gains[::2]), (second.spectrum[:n_second], gains[1::2])]
        rest = [
            Ready(*(array[n:] for array in of_one))
            for of_one, n in ((first, n_first), (second, n_second))
        ]
        in_order = slice(None, None, -1 if self._next else 1)
        self._held = rest[in_order]
        self._next = self._next if n_first == n_second else 1 - self._next
        return turns[in_order]


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
