"""Show where the error of enhanced speech lies: SI-SDR with and without the low end, and by band.

    python benchmarks/frequencies.py --corpus CORPUS --out DIR [--snr 20] [--only NAME ...]

The test speech of the corpus in each of its test noises. Recordings of speech have rumble of their
own below 100 Hz, which SI-SDR counts as speech: a system that takes it out with the noise scores
low, though no word is lost. Prints SI-SDR as it is, SI-SDR of speech and output above 100
Hz, and how the energy of the error spreads over bands; writes all of it to DIR/frequencies.csv. The
packages are those of peers.py.
"""

import itertools
from collections.abc import Iterator

import bursts
import numpy as np
import peers
import scipy.signal
from common import make_parser, print_head, print_row

from config import sample_rate
from speech_enhancement.data.audio_files import list_audio, read_audio
from speech_enhancement.evaluation.measures import at_level_in, si_sdr
from speech_enhancement.features import mix_at_snr
from speech_enhancement.files import csv_text, write_text

LOW_END_HZ = 100
EDGES_HZ = (0, 100, 500, 2000, 8000)
BANDS = [f"{low} to {high} Hz" for low, high in itertools.pairwise(EDGES_HZ)]


def without_low_end(audio: np.ndarray) -> np.ndarray:
    """Take out what lies below 100 Hz, without delay: 48 dB an octave."""
    sections = scipy.signal.butter(4, LOW_END_HZ, "highpass", fs=sample_rate, output="sos")
    return scipy.signal.sosfiltfilt(sections, audio)


def error_shares(reference: np.ndarray, degraded: np.ndarray) -> np.ndarray:
    """Return each band's share of the energy of the error that SI-SDR counts; they sum to 1."""
    error = degraded - at_level_in(reference, degraded)
    energy = np.abs(np.fft.rfft(error)) ** 2
    frequency = np.fft.rfftfreq(len(error), 1 / sample_rate)
    band = np.digitize(frequency, EDGES_HZ[1:-1])
    shares = np.bincount(band, energy, minlength=len(BANDS))
    return shares / shares.sum()


def mixtures(arguments) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Yield the names of speech and noise, the mixture, and its clean speech."""
    speech_dir, noise_dir = (arguments.corpus / name for name in ("test_speech", "test_noise"))
    for speech_name in list_audio(str(speech_dir), "speech"):
        speech = read_audio(str(speech_dir / speech_name)).astype(np.float64)
        for noise_name in list_audio(str(noise_dir), "noise"):
            noise = read_audio(str(noise_dir / noise_name)).astype(np.float64)
            mixed, clean, *_ = mix_at_snr(speech, np.resize(noise, len(speech)), arguments.snr)
            yield speech_name, noise_name, mixed, clean


def measure(name: str, arguments) -> list[list]:
    """Return a row for each mixture: system, speech, noise, SI-SDR twice, shares of the error."""
    rows, delay = [], None
    for speech_name, noise_name, mixed, clean in mixtures(arguments):
        if delay is None:
            delay = peers.measure_delay(bursts.SYSTEMS[name], clean)
        enhanced = peers.without_delay(bursts.SYSTEMS[name](mixed), delay, len(clean))
        above = si_sdr(without_low_end(clean), without_low_end(enhanced))
        shares = error_shares(clean, enhanced)
        rows.append([name, speech_name, noise_name, si_sdr(clean, enhanced), above, *shares])
    return rows


def main(argv: list[str] | None = None) -> None:
    """Print a line for each system that is asked for."""
    parser = make_parser(__doc__, bursts.SYSTEMS)
    parser.add_argument("--snr", type=float, default=20, help="SNR of the mixtures in dB (20)")
    arguments = parser.parse_args(argv)
    table: list[list] = []
    arguments.out.mkdir(parents=True, exist_ok=True)
    print_head("system", "SI-SDR", f"above {LOW_END_HZ} Hz", *(f"error, {band}" for band in BANDS))
    for name in arguments.only:
        rows = measure(name, arguments)
        table += rows
        full, above, *shares = np.mean([row[3:] for row in rows], axis=0)
        cells = [f"{full:.1f}", f"{above:.1f}", *(f"{100 * share:.0f} %" for share in shares)]
        print_row(name, *cells)
    columns = ["system", "speech", "noise", "si_sdr", f"si_sdr_above_{LOW_END_HZ}_hz", *BANDS]
    write_text(str(arguments.out / "frequencies.csv"), csv_text(columns, table))


if __name__ == "__main__":
    main()
