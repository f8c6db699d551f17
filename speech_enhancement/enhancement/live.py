"""Cleaning sound while it is heard: chunks of any size go in, chunks of the same size come out."""

import math
import os

import numpy as np

from config import n_window, sample_rate
from speech_enhancement.data.sound_file import check_samples
from speech_enhancement.enhancement.recordings import check_signal
from speech_enhancement.enhancement.turns import (
    MirroredStream,
    TurnGains,
    TurnWave,
    n_turns,
    open_streams,
)
from speech_enhancement.errors import InputError
from speech_enhancement.features import N_HOP
from speech_enhancement.network.onnx_network import load_any

REACH_S = 0.001  # of the filters that change the sample rate, before and after a sample
OUTPUTS_AT_ONCE = 4096  # of a filter; it holds some hundred inputs for each
BETA = 6.0  # of their Kaiser window: what lies above the band falls by 60 dB


class LiveEnhancer:
    """Cleans one or several channels as they come, each alone, with a network like that of `live`.

        live = LiveEnhancer("pretrained/live.keras", rate=48000)
        while True:
            play(live.process(record()))

    The outputs are those of the whole recording, however it is cut into chunks. At other rates than
    the model's, what lies above its band is left out.

    Args:
      model: a file that train or, for ONNX, export wrote; or what load_any made of one, so that
        several enhancers share it.
      rate: samples a second.
      n_channels: how many.
      smallest_gain: no part of the spectrum is attenuated by more than this factor.
    Attributes:
      delay: samples, at `rate`, by which the outputs are behind.
    Raises:
      InputError: the network knows a window around each frame, so that it needs seconds of the
        future; the rate is too low, or the channels are too many.
    """

    def __init__(
        self,
        model: str | os.PathLike | tuple,
        rate: int = sample_rate,
        n_channels: int = 1,
        smallest_gain: float = 0.0,
    ):
        network, settings = model if isinstance(model, tuple) else load_any(os.fspath(model))
        if not settings.recipe.input.level_memory_s:
            raise InputError(
                f"{settings.path} needs seconds of the future; for live use expected a model of a "
                "recipe with level_memory_s, such as live"
            )
        check_signal("live sound", rate, n_channels)
        self._n_channels = n_channels
        model = [(network, settings)]
        channels = range(n_channels)
        self._streams = [open_streams(model, None, n_together=1) for _ in channels]
        self._gains = [TurnGains(model, smallest_gain) for _ in channels]
        self._waves = [TurnWave(n_turns(model)) for _ in channels]
        self._down = self._up = None
        waits_for = n_window + settings.recipe.input.look_ahead * N_HOP
        n_waiting, self.delay = waits_for, waits_for
        if rate != sample_rate:
            self._down = Resampler(rate, sample_rate, n_channels)
            self._up = Resampler(sample_rate, rate, n_channels)
            n_waiting = math.ceil(waits_for * rate / sample_rate)
            self.delay = n_waiting + round((self._down.delay_s + self._up.delay_s) * rate)
        self._output = np.zeros((n_waiting, n_channels), np.float32)

    def process(self, chunk: np.ndarray) -> np.ndarray:
        """Take in the next samples; return as many, `delay` samples behind.

        Args:
          chunk: (n_samples,), or (n_samples, n_channels), full scale at 1.
        Returns:
          float32 of the same shape.
        Raises:
          InputError: the chunk holds NaN or absurd samples, which would stay in the memory.
        """
        samples = np.asarray(chunk, np.float32).reshape(-1, self._n_channels)
        check_samples(samples, "the chunk")
        at_16_khz = samples if self._down is None else self._down.process(samples)
        enhanced = np.stack(
            [
                self._enhanced(*parts)
                for parts in zip(at_16_khz.T, self._streams, self._gains, self._waves, strict=True)
            ],
            axis=1,
        )
        new = enhanced if self._up is None else self._up.process(enhanced)
        output = np.concatenate([self._output, new])
        self._output = output[len(samples) :]
        return output[: len(samples)].reshape(np.shape(chunk))

    def _enhanced(
        self,
        samples: np.ndarray,
        streams: list[MirroredStream],
        gains: TurnGains,
        wave: TurnWave,
    ) -> np.ndarray:
        """Return the samples of a channel that are ready, (n_samples,) float32."""
        ready = [stream.add(samples) for stream in streams]
        turns = gains.add(ready, is_last=False)
        return wave.add(turns, is_last=False).astype(np.float32)


class Resampler:
    """Changes the sample rate of what comes in chunks, with a delay of a millisecond.

    The filters of soxr, which files pass through, look 20 to 40 ms ahead. Here each output sample
    is a sum of inputs up to REACH_S around it, weighted by a low-pass filter:
    y_n = sum over i of h(n D - i U) x_i, for a rate of U / D times the old one.

    Args:
      from_rate, to_rate: in Hz.
      n_channels: how many.
    Attributes:
      delay_s: seconds by which the outputs are behind.
    """

    def __init__(self, from_rate: int, to_rate: int, n_channels: int):
        from scipy.signal import firwin

        divisor = math.gcd(from_rate, to_rate)
        self._up, self._down = to_rate // divisor, from_rate // divisor
        n_taps = 2 * math.ceil(REACH_S * from_rate)  # inputs in a sum
        n_filter = n_taps * self._up
        lower = min(from_rate, to_rate) / 2
        filter_ = firwin(n_filter - 1, lower, window=("kaiser", BETA), fs=from_rate * self._up)
        # Row p has the weights of the inputs, the newest first, for outputs p / up after an input.
        self._weights = (self._up * np.append(filter_, 0)).reshape(n_taps, self._up).T
        self._weights = self._weights.astype(np.float32)
        self._held = np.zeros((n_taps - 1, n_channels), np.float32)
        self._next = 0  # where the next output lies, in units of 1 / up inputs, from the first held
        self.delay_s = (n_filter / 2 - 1) / (from_rate * self._up)

    def process(self, chunk: np.ndarray) -> np.ndarray:
        """Take in (n_samples, n_channels); return the samples at the new rate that are ready."""
        n_before = self._weights.shape[1] - 1
        samples = np.concatenate([self._held, chunk])
        places = np.arange(self._next, self._up * len(chunk), self._down)
        self._next += len(places) * self._down - self._up * len(chunk)
        self._held = samples[len(samples) - n_before :]

        output = np.empty((len(places), samples.shape[1]), np.float32)
        for start in range(0, len(places), OUTPUTS_AT_ONCE):
            part = slice(start, start + OUTPUTS_AT_ONCE)
            newest, phase = np.divmod(places[part], self._up)
            inputs = samples[(newest + n_before)[:, None] - np.arange(n_before + 1)]
            output[part] = np.einsum("nkc,nk->nc", inputs, self._weights[phase])
        return output
