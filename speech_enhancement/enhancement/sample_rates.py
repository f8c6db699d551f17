"""Enhancing at any sample rate: down to the model's and back, with what lies above its band."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from config import n_window, sample_rate
from speech_enhancement.enhancement.blocks import Models, enhanced_blocks
from speech_enhancement.features import N_HOP


def enhanced_at_rate(
    models: Models,
    blocks: Iterator[np.ndarray],
    rate: int,
    n_channels: int,
    smallest_gain: float,
    peaks=None,
) -> Iterator[np.ndarray]:
    """Enhance blocks of (n_samples, n_channels) at any sample rate; their length is kept.

    What lies above the model's band is multiplied by the gain at the top of the band.
    """
    counted = Counted(blocks)
    if rate == sample_rate:
        pairs = enhanced_blocks(models, counted, n_channels, smallest_gain, peaks)
        yield from cut_to(counted, (samples for samples, _ in pairs))
        return
    band = Band(counted, rate, n_channels)
    pairs = enhanced_blocks(models, band.resampled(), n_channels, smallest_gain, peaks)
    yield from cut_to(counted, band.restored(pairs))


class Counted:
    """Passes blocks on and counts their samples."""

    def __init__(self, blocks: Iterator[np.ndarray]):
        self._blocks, self.n_samples = blocks, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the blocks."""
        for block in self._blocks:
            self.n_samples += len(block)
            yield block


def cut_to(counted: Counted, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield blocks up to the number of samples counted, which is known before the last."""
    n_done, held = 0, None
    for block in blocks:
        if held is not None:
            # Only after the end does more come out than went in, perhaps in the last two blocks.
            held = held[: counted.n_samples - n_done]
            n_done += len(held)
            yield held
        held = block
    if held is not None:
        missing = counted.n_samples - n_done - len(held)
        yield np.pad(held, ((0, max(0, missing)), (0, 0)))[: counted.n_samples - n_done]


class Band:
    """Takes a recording to the model's sample rate and back, and keeps what lies above its band.

    Args:
      blocks: (n_samples, n_channels) each.
      rate: their sample rate in Hz.
      n_channels: how many.
      keeps_top: whether `restored` will be called.
    """

    def __init__(
        self, blocks: Iterable[np.ndarray], rate: int, n_channels: int, keeps_top: bool = True
    ):
        self._blocks = blocks
        self._keeps_top = keeps_top and rate > sample_rate
        self._rate, self._n_channels = rate, n_channels
        self._full: list[np.ndarray] = []  # blocks as they came, while they are needed
        self._low: list[np.ndarray] = []  # the same in the model's band

    def _resampler(self, to: int, n_channels: int):
        import soxr

        rates = (self._rate, sample_rate) if to == sample_rate else (sample_rate, self._rate)
        return soxr.ResampleStream(*rates, n_channels, dtype="float32", quality="HQ")

    def resampled(self) -> Iterator[np.ndarray]:
        """Yield the blocks at the model's sample rate."""
        down = self._resampler(sample_rate, self._n_channels)
        for block in self._blocks:
            low = down.resample_chunk(block)
            if self._keeps_top:
                self._full.append(block)
                self._low.append(low)
            yield low
        low = down.resample_chunk(np.empty((0, self._n_channels), np.float32), last=True)
        self._low.append(low)
        yield low

    def restored(self, pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
        """Yield the enhanced blocks at the recording's own sample rate.

        At a higher rate than the model's, (enhanced, unprocessed) are resampled side by side; the
        recording less the unprocessed is the part above the band.
        """
        has_top = self._rate > sample_rate
        up = self._resampler(self._rate, self._n_channels * (2 if has_top else 1))
        top = TopGain(self._rate, self._n_channels)
        last = np.empty((0, self._n_channels), np.float32)
        for enhanced, gains in itertools.chain(pairs, [(last, None)]):
            if has_top:
                yield self._raised(up, enhanced, gains, top)
            else:
                yield up.resample_chunk(enhanced, last=gains is None)

    def _raised(
        self, up, enhanced: np.ndarray, gains: np.ndarray | None, top: "TopGain"
    ) -> np.ndarray:
        """Return the next samples at the recording's rate, with the part above the band.

        Without gains they are the last.
        """
        if gains is not None:
            top.add(gains)
        low = take(self._low, len(enhanced), self._n_channels)
        both = up.resample_chunk(np.concatenate([enhanced, low], axis=1), last=gains is None)
        full = take(self._full, len(both), self._n_channels)
        inside, unprocessed = np.split(both, 2, axis=1)
        return inside + top.next(len(both)) * (full - unprocessed)


def take(blocks: list[np.ndarray], n_samples: int, n_channels: int) -> np.ndarray:
    """Remove and return the first n_samples of a list of blocks, with zeros where it ends."""
    parts, n_found = [], 0
    while blocks and n_found < n_samples:
        block = blocks.pop(0)
        n_used = min(len(block), n_samples - n_found)
        parts.append(block[:n_used])
        n_found += n_used
        if n_used < len(block):
            blocks.insert(0, block[n_used:])
    return np.concatenate([*parts, np.zeros((n_samples - n_found, n_channels), np.float32)])


class TopGain:
    """The gain at the top of the band for each sample, interpolated between centres of frames."""

    def __init__(self, rate: int, n_channels: int):
        self._rate = rate
        self._gains = np.empty((0, n_channels), np.float32)
        self._first_frame, self._n_done = 0, 0

    def add(self, gains: np.ndarray) -> None:
        """Take in the gains of the next frames, (n_frames, n_channels)."""
        self._gains = np.concatenate([self._gains, gains])

    def next(self, n_samples: int) -> np.ndarray:
        """Return the gains of the next samples, (n_samples, n_channels)."""
        if n_samples == 0:
            return np.empty((0, self._gains.shape[1]), np.float32)
        times = (self._n_done + np.arange(n_samples)) * (sample_rate / self._rate)
        centres = (self._first_frame + np.arange(len(self._gains))) * N_HOP + n_window / 2
        gains = np.stack([np.interp(times, centres, column) for column in self._gains.T], axis=1)
        self._n_done += n_samples
        n_begun = int(self._n_done * sample_rate / self._rate - n_window / 2) // N_HOP
        n_past = max(0, min(n_begun - 1 - self._first_frame, len(self._gains) - 1))
        self._gains, self._first_frame = self._gains[n_past:], self._first_frame + n_past
        return gains.astype(np.float32)
