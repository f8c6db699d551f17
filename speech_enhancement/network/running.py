"""Running the network of a recipe on recordings, whole or in parts."""

import functools

import numpy as np

from config import n_window
from speech_enhancement.errors import InputError
from speech_enhancement.features import N_FREQ, log_magnitude, window_scale
from speech_enhancement.network.architectures import with_states
from speech_enhancement.network.keras_backend import import_keras
from speech_enhancement.network.network import Settings
from speech_enhancement.network_input import FRAMES_PER_ESTIMATE, hold_signal, normalized

FRAMES_AT_ONCE = 1024  # predicted together: 16 s of audio
SIZES_AT_ONCE = (256, 32, 2, 1)  # frames that a network with memory sees together
SEGMENTS_TOGETHER = 4  # their number is a multiple of it
LARGEST_MAGNITUDE = np.hamming(n_window).sum() / window_scale(n_window)  # of a peak of 1: 19.4
ABSURD_LOG_MAGNITUDE = 40.0  # no training ends here, however short


def outputs(model, settings: Settings, frames: np.ndarray, statistics: np.ndarray) -> np.ndarray:
    """Run the network on all frames of a recording.

    Beyond the borders the first and the last frame are repeated, as far as the network sees.

    Working set: FRAMES_AT_ONCE frames in the network.

    Args:
      model, settings: as load_model returns them.
      frames, statistics: as network_input.frames_and_statistics returns them.
    Returns:
      (n_frames, n_outputs).
    """
    run, n_around = NetworkRun(model, settings), sum(settings.recipe.input.borders)
    padded = np.pad(frames, (settings.recipe.input.borders, (0, 0)), mode="edge")
    parts = [
        run.add(padded[start : start + FRAMES_AT_ONCE + n_around], statistics[start:])
        for start in range(0, len(frames), FRAMES_AT_ONCE)
    ]
    return np.concatenate(parts)


class NetworkRun:
    """Runs the network on the frames of one channel, in parts; one with memory goes on from each.

    Args:
      model, settings: as load_model returns them, or onnx_network.load_onnx.
      n_looks: frames of so many looks come in turn, each with a memory of its own; see
        architectures.with_states.
    """

    def __init__(self, model, settings: Settings, n_looks: int = 1):
        self._model, self._settings, self._n_looks = model, settings, n_looks
        self._states = model.first_states() if hasattr(model, "first_states") else None
        if settings.recipe.network.kind == "memory" and self._states is None:
            self._model = _stepwise(model, n_looks)
            self._states = self._model.first_states()
        self._n_ahead = 0  # of the frames given, those that the memory has already seen
        self._last_mask = np.ones((1, N_FREQ), np.float32)
        self._n_given, self._is_heard = 0, False  # frames; whether the first look's last reached it

    def add(self, frames: np.ndarray, statistics: np.ndarray) -> np.ndarray:
        """Run the network on the next frames, which have all their neighbours.

        Args:
          frames: (n_frames + n_around, n_freq), n_around as Input.borders tells.
          statistics: (n_frames or more, n_statistics, n_freq).
        Returns:
          (n_frames, n_outputs).
        Raises:
          InputError: the network outputs NaN or infinity.
        """
        if self._states is None:
            output = outputs_inside(self._model, self._settings, frames, statistics)
        else:
            output = self._remembering(frames, statistics)
        if not np.isfinite(output).all():
            raise InputError(f"{self._settings.path} outputs NaN or infinity; train it again")
        return output

    def _remembering(self, frames: np.ndarray, statistics: np.ndarray) -> np.ndarray:
        """Run a network with memory on (n_frames + look_ahead, n_freq) frames; (n_frames, n_freq).

        Where the level is tracked, frames without signal do not reach the memory and get the mask
        of the frame before them: behind a silence the noise is still known. A network that looks
        ahead or knows a window around a frame sees all frames.
        """
        scaled, section = self._settings.scaler.frames(frames), self._settings.recipe.input
        if section.look_ahead or not section.level_memory_s:
            return self._stepped(scaled, statistics)
        is_heard = self._like_first_look(hold_signal(frames))
        heard = self._stepped(scaled[is_heard], statistics[:0])
        masks = np.concatenate([self._last_mask, heard])
        self._last_mask = masks[-1:]
        return masks[np.cumsum(is_heard)]

    def _like_first_look(self, is_heard: np.ndarray) -> np.ndarray:
        """Let a frame of a later look reach the memory where that of the first look before it does.

        So the looks stay in turn.
        """
        numbers = np.arange(len(is_heard))
        place = (self._n_given + numbers) % self._n_looks
        of_first = np.maximum(numbers - place, -1)  # -1: in the call before
        is_heard = np.append(is_heard, self._is_heard)[of_first]
        self._n_given += len(is_heard)
        self._is_heard = is_heard[-1] if len(is_heard) else self._is_heard
        return is_heard

    def _stepped(self, frames: np.ndarray, statistics: np.ndarray) -> np.ndarray:
        """Run the network on scaled frames, a few sizes at once; the outputs of no frame go.

        Each frame goes with the statistics around the frame look_ahead before it.
        """
        look_ahead = self._settings.recipe.input.look_ahead
        n_early = look_ahead - self._n_ahead  # outputs of no frame
        inputs = [frames[self._n_ahead :]]
        if self._settings.recipe.input.n_statistics and len(inputs[0]):
            scaled = self._settings.scaler.statistics(statistics[: len(frames) - look_ahead])
            inputs.append(np.pad(scaled, ((n_early, 0), (0, 0)), mode="edge"))

        outputs, start = [frames[:0]], 0
        for size in SIZES_AT_ONCE:  # few different shapes occur
            while start + size <= len(inputs[0]):
                part = [array[start : start + size] for array in inputs]
                output, self._states = self._model.step(part, self._states)
                outputs.append(output)
                start += size
        self._n_ahead = look_ahead
        return np.concatenate(outputs)[n_early:]


class Stepwise:
    """A network with memory in Keras, for frames that arrive in parts.

    Args:
      model: as load_model returns it.
      n_looks: see architectures.with_states.
    """

    def __init__(self, model, n_looks: int):
        self._model, self._n_inputs = with_states(model, n_looks), len(model.inputs)

    def first_states(self) -> list[np.ndarray]:
        """Return the states before the first frame."""
        shapes = (tensor.shape[1:] for tensor in self._model.inputs[self._n_inputs :])
        return [np.zeros((1, *shape), np.float32) for shape in shapes]

    def step(self, inputs: list, states: list) -> tuple[np.ndarray, list]:
        """Run the network on some frames; return outputs and new states.

        Args:
          inputs: scaled frames, (n_frames, n_freq), and statistics, if it takes any.
          states: as first_states or the last call returned them.
        """
        output, *states = self._model.predict_on_batch([*(part[None] for part in inputs), *states])
        return np.asarray(import_keras().ops.convert_to_numpy(output))[0], states


@functools.lru_cache(2)
def _stepwise(model, n_looks: int) -> Stepwise:
    """Return Stepwise of a model, one for all channels and recordings."""
    return Stepwise(model, n_looks)


def outputs_inside(
    model, settings: Settings, frames: np.ndarray, statistics: np.ndarray
) -> np.ndarray:
    """Run a network without memory on frames that have all their neighbours.

    They run as segments of the FRAMES_PER_ESTIMATE frames that one estimate serves, filled up to a
    multiple of SEGMENTS_TOGETHER segments, so that few different shapes occur.

    Args:
      model, settings: as load_model returns them.
      frames: (n_frames + n_concat - 1, n_freq).
      statistics: (n_frames or more, n_statistics, n_freq), equal for all frames of a segment.
    Returns:
      (n_frames, n_outputs).
    """
    n_concat = settings.recipe.input.n_concat
    n_frames, n_rows = len(frames) - n_concat + 1, FRAMES_PER_ESTIMATE
    n_segments = -(-n_frames // (SEGMENTS_TOGETHER * n_rows)) * SEGMENTS_TOGETHER
    padded = np.pad(settings.scaler.frames(frames), ((0, n_segments * n_rows - n_frames), (0, 0)))
    rows = n_rows * np.arange(n_segments)[:, None] + np.arange(n_rows + n_concat - 1)
    inputs = [padded[rows]]
    if settings.recipe.input.n_statistics:
        scaled = settings.scaler.statistics(statistics[:n_frames:n_rows])
        inputs.append(np.pad(scaled, ((0, n_segments - len(scaled)), (0, 0)))[:, None])
    output = np.asarray(import_keras().ops.convert_to_numpy(model.predict_on_batch(inputs)))
    return output.reshape(-1, output.shape[-1])[:n_frames]


def estimate_magnitude(model, settings: Settings, mixture_stft: np.ndarray) -> np.ndarray:
    """Estimate the magnitude spectrum of the clean speech in a mixture.

    Args:
      model, settings: as load_model returns them.
      mixture_stft: (n_frames, n_freq) complex, as network_input.without_offset returns it.
    Returns:
      (n_frames, n_freq).
    """
    inputs = normalized(mixture_stft, settings.recipe.input)
    return magnitude_of_output(settings, outputs(model, settings, *inputs), mixture_stft)


def magnitude_of_output(
    settings: Settings, output: np.ndarray, mixture_stft: np.ndarray
) -> np.ndarray:
    """Return the magnitude spectrum of clean speech that the network's output describes.

    The recipe's section [postprocessing] is applied: global variance equalisation multiplies the
    scaled estimate by beta, [1]. Where the network also outputs a mask, the mask decides whether
    the noisy magnitude, the estimate or the mean of the two logarithms is taken, [3]. No magnitude
    is larger than a recording with a peak of 1 can have, and digital silence stays silent.

    Args:
      settings: as load_model returns them.
      output: (n_frames, n_outputs).
      mixture_stft: (n_frames, n_freq) complex.
    Returns:
      (n_frames, n_freq).
    Raises:
      InputError: an estimate is absurd, so the weights must be damaged.
    """
    recipe, scaler = settings.recipe, settings.scaler
    if recipe.target.output == "mask":
        return output * np.abs(mixture_stft)
    n_freq = mixture_stft.shape[1]
    estimate = settings.gv_beta * output[:, :n_freq] * scaler.std + scaler.mean
    if recipe.target.output == "log_magnitude_and_mask":
        mask, noisy = output[:, n_freq:], log_magnitude(mixture_stft)
        between = np.where(
            mask <= recipe.postprocessing.keep_estimate_below, estimate, (noisy + estimate) / 2
        )
        estimate = np.where(mask >= recipe.postprocessing.keep_noisy_above, noisy, between)
    if estimate.max(initial=0) > ABSURD_LOG_MAGNITUDE:
        raise InputError(
            f"{settings.path} outputs log magnitudes beyond {ABSURD_LOG_MAGNITUDE:.0f}, where "
            f"those of a recording end at {np.log(LARGEST_MAGNITUDE):.0f}; train it again"
        )
    magnitude = np.exp(np.minimum(estimate, np.log(LARGEST_MAGNITUDE)))
    return np.where(mixture_stft == 0, 0, magnitude)
