"""How fast `enhance` is, with the shipped models and the 2048-unit network, beside log-MMSE.

    python benchmarks/enhance_speed.py        (needs the package logmmse)

A 10-minute file is made from mini_data/; start-up is left out, reading and writing are in. The
real-time factor is the time it takes over the duration of the audio, the best of three runs;
log-MMSE is the baseline. The row of bfloat16 is left out where the processor has none.
"""

import argparse
import functools
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from common import ROOT, print_head, print_row

from config import sample_rate, stft_settings
from speech_enhancement.data.audio_files import list_audio, read_audio
from speech_enhancement.enhancement.enhance import SHIPPED_MODEL, SHIPPED_TOGETHER, models_of
from speech_enhancement.enhancement.recordings import enhance_file
from speech_enhancement.network import keras_backend
from speech_enhancement.network.architectures import build_network
from speech_enhancement.network.network import Settings, load_model
from speech_enhancement.network_input import Scaler
from speech_enhancement.parallel import n_cores
from speech_enhancement.progress import Progress
from speech_enhancement.recipe import load_recipe

DURATION_S = 600


def make_recording(path: Path) -> None:
    """Write 10 minutes of the mini data's speech with noise, 16-bit, 16 kHz, mono."""
    folders = (ROOT / "mini_data" / name for name in ("test_speech", "test_noise"))
    speech, noise = (
        np.concatenate(
            [read_audio(f"{folder}/{name}") for name in list_audio(str(folder), "audio")]
        )
        for folder in folders
    )
    n_samples = DURATION_S * sample_rate
    mixed = np.resize(speech, n_samples) + np.resize(noise, n_samples)
    soundfile.write(path, 0.9 * mixed / np.abs(mixed).max(), sample_rate, subtype="PCM_16")


def original_model():
    """Return the network of `original`, 3 x 2048 units; random weights are as slow as others."""
    recipe, none = load_recipe("original"), np.zeros((0, 257))
    scaler = Scaler(np.full(257, -6.0), np.full(257, 2.0), none, none)
    settings = Settings(**stft_settings, snr="0db", iteration=0, recipe=recipe, scaler=scaler)
    return build_network(recipe, 257, seed=0), settings


def systems() -> list[tuple[str, list[tuple]]]:
    """Return what is measured beside log-MMSE: names, and models as enhance_file takes them."""
    shipped = [("the two models for files", models_of(SHIPPED_TOGETHER, "float32"))]
    if keras_backend.has_bfloat16():
        together = models_of(SHIPPED_TOGETHER, "bfloat16")
        shipped.append(("the two with `--precision bfloat16`", together))
    window = ("the first of them", [load_model(SHIPPED_MODEL)])
    return [*shipped, window, ("2048-unit network", [original_model()])]


def best_of_three(function) -> float:
    """Return the shortest duration of three runs, in seconds."""
    durations = []
    for _ in range(3):
        began = time.perf_counter()
        function()
        durations.append(time.perf_counter() - began)
    return min(durations)


def run_logmmse(source: Path, target: Path) -> None:
    """Enhance with log-MMSE, reading and writing included, a minute at a time to save memory."""
    from logmmse import logmmse

    audio, rate = soundfile.read(source, dtype="float32")
    minutes = [
        logmmse(audio[start : start + 60 * rate], rate) for start in range(0, len(audio), 60 * rate)
    ]
    soundfile.write(target, np.concatenate(minutes), rate, subtype="PCM_16")


def main(argv: list[str] | None = None) -> None:
    """Print the real-time factors and their ratios to log-MMSE's."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, Progress(10**9, "s") as progress:
        source, target = Path(folder) / "in.wav", Path(folder) / "out.wav"
        make_recording(source)
        baseline = best_of_three(lambda: run_logmmse(source, target)) / DURATION_S
        print_head(f"system, {n_cores()} cores", "real-time factor", "ratio to log-MMSE")
        print_row("log-MMSE, one core", f"{baseline:.4f}", "1")
        for name, models in systems():
            enhance = functools.partial(
                enhance_file, models, str(source), str(target), 0.0, progress
            )
            factor = best_of_three(enhance) / DURATION_S
            print_row(f"`enhance`, {name}", f"{factor:.4f}", f"{factor / baseline:.2f}")


if __name__ == "__main__":
    main()
