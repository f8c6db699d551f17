"""Enhancing blocks of a recording while it arrives, with one network or several."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from speech_enhancement.enhancement.enhance_audio import FeatureStream, Ready, WaveStream
from speech_enhancement.features import N_FREQ, N_HOP
from speech_enhancement.network.network import NetworkRun, Settings, magnitude_of_output
from speech_enhancement.parallel import ahead

PRIMING_FRAMES = 62  # 1 s
TOP_BINS = slice(-33, -1)  # the uppermost kilohertz, but for the bin at half the sample rate
Models = Sequence[tuple]  # of a network and its Settings, as network.load_model returns them


def follow_level(models: Models) -> bool:
    """Return whether all models track the level, so that a recording's peak does not matter."""
    return all(settings.recipe.input.follows_level for _, settings in models)


def enhanced_blocks(
    models: Models,
    blocks: Iterable[np.ndarray],
    n_channels: int,
    smallest_gain: float = 0.0,
    peaks: Sequence[float] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Enhance the channels of a recording at 16 kHz, each alone, while it arrives.

    Three threads share the work: transforming what arrives, the networks, transforming back.

    Working set: some seconds of each channel, and four blocks.

    Args:
      models: one or several; see JointGain.
      blocks: of samples, (n_samples, n_channels) each.
      n_channels: how many.
      smallest_gain: no part of the spectrum is attenuated by more than this factor.
      peaks: the largest absolute value of each channel; None where it is not known; see Level.
    Yields:
      samples, (n_samples, n_channels) float32, which lag behind the blocks; and the gain at the top
      of the band of each of their frames, (n_frames, n_channels). In the end up to a frame more
      samples than arrived.
    """
    ready = ahead(_ready_blocks(models, blocks, peaks or [None] * n_channels))
    estimated = ahead(_estimated(models, ready, smallest_gain))
    waves = [WaveStream() for _ in range(n_channels)]
    for spectra, top_gains, is_last in estimated:
        samples = [
            wave.add(spectrum, is_last) for wave, spectrum in zip(waves, spectra, strict=True)
        ]
        yield np.stack(samples, axis=1).astype(np.float32), np.stack(top_gains, axis=1)


def enhance_with_all(models: Models, audio: np.ndarray) -> np.ndarray:
    """Enhance a recording that is in memory with one model or several together.

    Args:
      models: see JointGain.
      audio: (n_samples,) at 16 kHz.
    Returns:
      (n_samples,) float32.
    """
    peaks = [float(np.abs(audio).max(initial=0))]
    parts = [part for part, _ in enhanced_blocks(models, [audio[:, None]], 1, peaks=peaks)]
    return np.concatenate(parts)[: len(audio), 0]


def _ready_blocks(
    models: Models, blocks: Iterable[np.ndarray], peaks: Sequence
) -> Iterator[tuple[list, bool]]:
    """Yield what is ready of each channel for each network, and whether it is the last."""
    primed = are_primed(models)
    streams = [
        [
            PrimedStream(settings, peak)
            if is_primed
            else FeatureStream(settings.recipe.input, peak)
            for (_, settings), is_primed in zip(models, primed, strict=True)
        ]
        for peak in peaks
    ]

    def ready(block: np.ndarray, is_last: bool = False) -> list[list[Ready]]:
        channels = zip(streams, block.T, strict=True)
        return [[stream.add(row, is_last) for stream in of_one] for of_one, row in channels]

    for block in blocks:
        yield ready(block), False
    yield ready(np.empty((0, len(peaks)), np.float32), is_last=True), True


def _estimated(
    models: Models, ready_blocks: Iterable, smallest_gain: float
) -> Iterator[tuple[list, list, bool]]:
    """Yield each channel's enhanced spectra and gains at the top, and whether they are the last."""
    joints: list[JointGain] = []
    for channels, is_last in ready_blocks:
        joints = joints or [JointGain(models, smallest_gain) for _ in channels]
        pairs = [joint.add(ready) for joint, ready in zip(joints, channels, strict=True)]
        spectra = [spectrum * gain for spectrum, gain in pairs]
        top_gains = [np.minimum(gain[:, TOP_BINS].mean(axis=1), 1) for _, gain in pairs]
        yield spectra, top_gains, is_last


def are_primed(models: Models) -> list[bool]:
    """Return which models hear the first second twice: those with memory, where there are several.

    One alone does not, so that the result of a live model is the same live.
    """
    return [len(models) > 1 and settings.recipe.network.kind == "memory" for _, settings in models]


class PrimedStream:
    """A FeatureStream that begins with the first second of the recording, mirrored.

    A network with memory has heard nothing at first. What it hears before the
    recording begins is much like the beginning, and joins it without a jump.

    Args:
      settings: of the model.
      peak_of_recording: see Level.
    """

    def __init__(self, settings: Settings, peak_of_recording: float | None):
        self._stream = FeatureStream(settings.recipe.input, peak_of_recording)
        self._held: np.ndarray | None = np.empty(0, np.float32)  # None once it has begun

    def add(self, samples: np.ndarray, is_last: bool = False) -> Ready:
        """Take in (n_samples,); return what is ready, PRIMING_FRAMES more than of the recording."""
        if self._held is None:
            return self._stream.add(samples, is_last)
        samples, n_before = np.concatenate([self._held, samples]), PRIMING_FRAMES * N_HOP
        if len(samples) <= n_before and not is_last:
            self._held = samples
            return self._stream.add(samples[:0])
        self._held = None
        mode = "reflect" if len(samples) else "constant"
        return self._stream.add(np.pad(samples, (n_before, 0), mode), is_last)


class JointGain:
    """Runs one network or several on a channel, and joins what each would multiply a bin by.

    The gain of several is their geometric mean: networks of different kinds err in different
    places. Each looks ahead as far as its recipe says; the last to be ready sets the pace.

    Args:
      models: one or several; the first one's spectrum, without a constant, is what is enhanced.
      smallest_gain: no part of the spectrum is attenuated by more than this factor.
    """

    def __init__(self, models: Models, smallest_gain: float):
        self._settings = [settings for _, settings in models]
        self._runs = [NetworkRun(*model) for model in models]
        self._gains = [np.empty((0, N_FREQ), np.float32) for _ in models]  # not used yet
        self._n_early = [PRIMING_FRAMES * is_primed for is_primed in are_primed(models)]
        self._spectrum = np.empty((0, N_FREQ), np.complex64)
        self._smallest_gain = smallest_gain

    def add(self, ready: Sequence[Ready]) -> tuple[np.ndarray, np.ndarray]:
        """Take in what is ready for each network; return spectrum and gain of the next frames.

        Returns:
          (n_frames, n_freq) complex64 and float32.
        """
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
        joint = geometric_mean([gain[:n_ready] for gain in gains])
        return spectrum[:n_ready], np.maximum(joint, np.float32(self._smallest_gain))


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
