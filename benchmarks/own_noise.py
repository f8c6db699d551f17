"""Show how much of the harm at a high SNR is done to the clean recordings themselves.

    python benchmarks/own_noise.py --corpus CORPUS --out DIR [--snr 20] [--only NAME ...]

Recordings of clean speech have noise of their own, which a system takes out with the noise that was
added; scores count it as lost speech. Here it is given back: what the system takes from the clean
speech alone is added to the enhanced mixture. Prints PESQ / STOI / SI-SDR for each test noise of
the corpus: of the mixtures, of the output, and of the output with that given back; writes all of it
to DIR/own_noise.csv. The packages are those of peers.py.
"""

import bursts
import frequencies
import numpy as np
import peers
from common import make_parser, print_head, print_row

from speech_enhancement.evaluation.measures import require_pesq
from speech_enhancement.evaluation.scoring import score_arrays
from speech_enhancement.files import csv_text, write_text

SIGNALS = ("unprocessed", "enhanced", "given back")
MEASURES = ("pesq_raw_mos", "stoi", "si_sdr")


def measure(name: str, arguments, program: str) -> list[list]:
    """Return a row for each mixture and signal: system, speech, noise, signal, scores."""
    rows, delay = [], None

    def output(audio: np.ndarray) -> np.ndarray:
        return peers.without_delay(bursts.SYSTEMS[name](audio), delay, len(audio))

    for speech_name, noise_name, mixed, clean in frequencies.mixtures(arguments):
        if delay is None:
            delay = peers.measure_delay(bursts.SYSTEMS[name], clean)
        enhanced = output(mixed)
        given_back = enhanced + clean - output(clean)
        for signal, degraded in zip(SIGNALS, (mixed, enhanced, given_back), strict=True):
            scores, _ = score_arrays(program, clean, degraded)
            values = [scores[key] for key in MEASURES]
            rows.append([name, speech_name, noise_name, signal, *values])
    return rows


def print_means(name: str, rows: list[list]) -> None:
    """Print a line for each noise, and one for all."""
    for noise in [*sorted({row[2] for row in rows}), "all"]:
        cells = []
        for signal in SIGNALS:
            of_signal = [r[4:] for r in rows if r[3] == signal and noise in (r[2], "all")]
            pesq, stoi, sdr = np.mean(of_signal, axis=0)
            cells.append(f"{pesq:.2f} / {stoi:.3f} / {sdr:.1f}")
        print_row(name, noise, *cells)


def main(argv: list[str] | None = None) -> None:
    """Print some lines for each system that is asked for."""
    parser = make_parser(__doc__, bursts.SYSTEMS)
    parser.add_argument("--snr", type=float, default=20, help="SNR of the mixtures in dB (20)")
    parser.add_argument("--pesq", default="./pesq", help="the ITU-T P.862 program (./pesq)")
    arguments = parser.parse_args(argv)
    program, table = require_pesq(arguments.pesq), []
    arguments.out.mkdir(parents=True, exist_ok=True)
    print_head("system", "noise", *SIGNALS)
    for name in arguments.only:
        rows = measure(name, arguments, program)
        table += rows
        print_means(name, rows)
    columns = ["system", "speech", "noise", "signal", *MEASURES]
    write_text(str(arguments.out / "own_noise.csv"), csv_text(columns, table))


if __name__ == "__main__":
    main()
