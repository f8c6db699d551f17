"""Enhancing blocks of a recording while it arrives, with one network or several."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from speech_enhancement.enhancement.enhance_audio import Ready
from speech_enhancement.enhancement.turns import (
    Frames,
    Models,
    TurnGains,
    TurnWave,
    n_turns,
    open_streams,
)
from speech_enhancement.parallel import ahead

TOP_BINS = slice(-33, -1)  # the uppermost kilohertz, but for the bin at half the sample rate


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
      models: one or several; see turns.TurnGains.
      blocks: of samples, (n_samples, n_channels) each.
      n_channels: how many.
      smallest_gain: no part of the spectrum is attenuated by more than this factor.
      peaks: the largest absolute value of each channel; None where it is not known; see Level.
    Yields:
      samples, (n_samples, n_channels) float32, which lag behind the blocks; and the gain at the top
      of the band of each frame of the first turn, (n_frames, n_channels). In the end up to a
      frame more samples than arrived.
    """
    ready = ahead(_ready_blocks(models, blocks, peaks or [None] * n_channels))
    estimated = ahead(_estimated(models, ready, smallest_gain))
    waves = [TurnWave(n_turns(models)) for _ in range(n_channels)]
    for channels, is_last in estimated:
        samples = [wave.add(turns, is_last) for wave, turns in zip(waves, channels, strict=True)]
        top_gains = [np.minimum(gain[:, TOP_BINS].mean(axis=1), 1) for (_, gain), *_ in channels]
        yield np.stack(samples, axis=1).astype(np.float32), np.stack(top_gains, axis=1)


def enhance_with_all(models: Models, audio: np.ndarray) -> np.ndarray:
    """Enhance a recording that is in memory with one model or several together.

    Args:
      models: see turns.TurnGains.
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
    streams = [open_streams(models, peak) for peak in peaks]

    def ready(block: np.ndarray, is_last: bool = False) -> list[list[Ready]]:
        channels = zip(streams, block.T, strict=True)
        return [[stream.add(row, is_last) for stream in of_one] for of_one, row in channels]

    for block in blocks:
        yield ready(block), False
    yield ready(np.empty((0, len(peaks)), np.float32), is_last=True), True


def _estimated(
    models: Models, ready_blocks: Iterable, smallest_gain: float
) -> Iterator[tuple[list[list[Frames]], bool]]:
    """Yield the next frames of each channel in each turn, and whether they are the last."""
    gains: list[TurnGains] = []
    for channels, is_last in ready_blocks:
        gains = gains or [TurnGains(models, smallest_gain) for _ in channels]
        of_all = zip(gains, channels, strict=True)
        yield [of_one.add(ready, is_last) for of_one, ready in of_all], is_last
