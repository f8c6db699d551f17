"""Score our models and what people use instead in noise that comes and goes, and on clean speech.

    python benchmarks/bursts.py --corpus CORPUS --noise_dir DIR --out DIR [--only NAME ...]
                                [--model MODEL.keras ...]

The test speech of the corpus at 0 dB in synthetic shots, in one recording of --noise_dir each (of
kinds that no model was trained on: effects.txt names those of the documents), and by itself.
Prints PESQ / STOI and writes all scores to DIR/bursts.csv. The packages are those of peers.py.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import peers
import quality
import scipy.signal
from common import make_parser, print_head, print_row

from config import sample_rate
from speech_enhancement.data.audio_files import list_audio, read_audio
from speech_enhancement.enhancement.blocks import enhance_with_all
from speech_enhancement.evaluation.measures import require_pesq
from speech_enhancement.evaluation.scoring import score_arrays
from speech_enhancement.features import mix_at_snr
from speech_enhancement.files import csv_text, write_text
from speech_enhancement.network.network import load_model

SETS = ("shots", "recordings", "clean")
SHOTS_A_SECOND, SHOT_S, CUTOFF_HZ = (2, 11), (0.02, 0.08), (1500, 4000)


def shots(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Make bursts of low-passed noise that begin suddenly and die away, with silence between."""
    rate, cutoff = rng.uniform(*SHOTS_A_SECOND), rng.uniform(*CUTOFF_HZ)
    filter_ = scipy.signal.butter(4, cutoff, fs=sample_rate, output="sos")
    wave, start = np.zeros(n_samples + sample_rate), int(rng.uniform(0, 0.2) * sample_rate)
    while start < n_samples:
        n_shot = int(rng.uniform(*SHOT_S) * sample_rate)
        shot = rng.standard_normal(n_shot) * np.exp(-np.linspace(0, 3, n_shot))
        wave[start : start + n_shot] += scipy.signal.sosfilt(filter_, shot)
        start += n_shot + int(rng.exponential(1 / rate) * sample_rate)
    return wave[:n_samples]


def mixtures(arguments) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the name of a set, a mixture and its clean speech."""
    speech_dir, noise_dir = arguments.corpus / "test_speech", arguments.noise_dir
    noise_names = list_audio(str(noise_dir), "noise")
    for number, name in enumerate(list_audio(str(speech_dir), "speech")):
        rng = np.random.default_rng(number)
        speech = read_audio(str(speech_dir / name)).astype(np.float64)
        recording = read_audio(str(noise_dir / noise_names[number % len(noise_names)]))
        noises = {
            "shots": shots(rng, len(speech)),
            "recordings": np.resize(recording, len(speech)).astype(np.float64),
        }
        for of_set, noise in noises.items():
            mixed, clean, *_ = mix_at_snr(speech, noise, 0)
            yield of_set, mixed, clean
        yield "clean", speech, speech


SYSTEMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "unprocessed": lambda audio: audio,
    "log-MMSE": quality.with_logmmse,
    **peers.PEERS,
}


def score(name: str, enhance: Callable, arguments, program: str) -> list[tuple]:
    """Enhance and score all mixtures with a system; return rows of system, set, PESQ, STOI."""
    rows, delay = [], None
    for of_set, mixed, clean in mixtures(arguments):
        if delay is None:
            delay = peers.measure_delay(enhance, clean)
        enhanced = peers.without_delay(enhance(mixed), delay, len(clean))
        scores, _ = score_arrays(program, clean, enhanced)
        rows.append((name, of_set, scores["pesq_raw_mos"], scores["stoi"]))
    return rows


def main(argv: list[str] | None = None) -> None:
    """Print a line for each system that is asked for."""
    parser = make_parser(__doc__, SYSTEMS)
    parser.add_argument("--noise_dir", type=peers.Path, required=True, help="folder of recordings")
    help_of_model = "score this model too; may be given several times"
    parser.add_argument("--model", action="append", default=[], help=help_of_model)
    parser.add_argument("--pesq", default="./pesq", help="the ITU-T P.862 program (./pesq)")
    arguments = parser.parse_args(argv)
    program, table = require_pesq(arguments.pesq), []
    arguments.out.mkdir(parents=True, exist_ok=True)
    print_head("system", *SETS)
    systems = {name: SYSTEMS[name] for name in arguments.only}
    for path in arguments.model:
        systems[path] = functools.partial(enhance_with_all, [load_model(path)])
    for name, enhance in systems.items():
        rows = score(name, enhance, arguments, program)
        table += rows
        means = [np.mean([row[2:] for row in rows if row[1] == of_set], axis=0) for of_set in SETS]
        print_row(name, *(f"{pesq:.2f} / {stoi:.3f}" for pesq, stoi in means))
    columns = ["system", "set", "pesq_raw_mos", "stoi"]
    write_text(str(arguments.out / "bursts.csv"), csv_text(columns, table))


if __name__ == "__main__":
    main()
