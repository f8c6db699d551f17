"""Score waves of files against their clean reference: one pair, or the test set on all cores."""

import functools
import os

import numpy as np

from config import n_window, sample_rate
from speech_enhancement.data.audio_files import audio_path, file_rate, read_audio
from speech_enhancement.data.mixtures import Mixture, read_mixtures
from speech_enhancement.errors import InputError, MissingFileError, require_dir, require_file
from speech_enhancement.evaluation.measures import (
    MEASURES,
    PESQ,
    PESQ_COLUMNS,
    SCORE_COLUMNS,
    UnscorableError,
    at_level_in,
    log_spectral_distortion,
    pesq_scores,
    require_pesq,
    segmental_snr,
    si_sdr,
    stoi_scores,
)
from speech_enhancement.files import csv_text, write_text
from speech_enhancement.parallel import in_processes
from speech_enhancement.progress import say, track
from speech_enhancement.workspace import (
    KEY_COLUMNS,
    SIGNALS,
    enhanced_path,
    mixed_audio_path,
    scores_path,
)

# Scores by measure (None: the PESQ program does not know it), and why the others are not defined,
# by measure.
Scored = tuple[dict[str, float | None], dict[str, str]]
NARROW_BAND_RATE = 8000  # Hz
MAX_UNSCORABLE = 0.05  # share of the enhanced waves; more of them are an error


# --- A pair of files --------------------------------------------------------------------------


def score(reference: str, degraded: str, pesq: str = PESQ) -> None:
    """Print all scores of one wave against its clean reference, a line for each: name, value, unit.

    Two files at 8 kHz get PESQ in the program's own mode for that rate, which knows no wide band.

    Args:
      reference, degraded: audio files of one length, in any format; the degraded at any level.
      pesq: the ITU program that pesq_tool/build.sh makes.
    Raises:
      InputError: a file or the program is missing or unreadable, or the lengths differ by more than
        a frame.
    """
    program = require_pesq(pesq)
    for flag, path in (("--reference", reference), ("--degraded", degraded)):
        if not os.path.isfile(path):
            raise MissingFileError(f"{path} is missing; check {flag}")
    scores, reasons = score_wave(program, reference, degraded, "--reference and --degraded")
    for name, measure in MEASURES.items():
        if scores.get(name) is None:
            reason = reasons.get(name, "the PESQ program knows no wide band for this")
            print(f"{name:<24} not defined: {reason}")
        else:
            print(f"{name:<24} {scores[name]:>z8.{measure.n_decimals + 1}f} {measure.unit}")


def score_wave(
    program: str, reference_path: str, degraded_path: str, reference_flag: str = "--speech_dir"
) -> Scored:
    """Score a wave file against its clean reference.

    PESQ scores two files at 8 kHz at that rate; all other scores are those at 16 kHz.

    Args:
      program: absolute path of the ITU program.
      reference_path, degraded_path: audio files of one length.
      reference_flag: the flag that the reference comes from, for messages.
    Returns:
      The scores by name, without those that are not defined; and why those are not, by name.
    Raises:
      InputError: a file is unreadable, or the two differ in length by more than a frame.
    """
    paths = (reference_path, degraded_path)
    reference, degraded = map(read_audio, paths)
    if abs(len(reference) - len(degraded)) > n_window:
        raise InputError(
            f"{degraded_path} has {len(degraded)} samples at {sample_rate} Hz, "
            f"its clean speech {reference_path} {len(reference)}; check {reference_flag}"
        )
    # Resampled speech may be a sample longer or shorter.
    n_samples = min(len(reference), len(degraded))
    reference, degraded = reference[:n_samples], degraded[:n_samples]
    for path, audio in zip(paths, (reference, degraded), strict=True):
        if not audio.any():
            return {}, dict.fromkeys(SCORE_COLUMNS, f"{path} is silent")
    return score_arrays(program, reference, degraded, narrow_band(*paths))


def narrow_band(*paths: str) -> list[np.ndarray] | None:
    """Return waves at 8 kHz and of one length if all files are at that rate, otherwise None."""
    if any(file_rate(path) != NARROW_BAND_RATE for path in paths):
        return None
    waves = [read_audio(path, NARROW_BAND_RATE) for path in paths]
    return [wave[: min(map(len, waves))] for wave in waves]


def score_arrays(
    program: str,
    reference: np.ndarray,
    degraded: np.ndarray,
    narrow: list[np.ndarray] | None = None,
) -> Scored:
    """Score a wave against its reference, each (n_samples,) float32, neither silent.

    Args:
      narrow: reference and degraded at 8 kHz, for PESQ; None: they had another rate.
    """
    rate = NARROW_BAND_RATE if narrow else sample_rate
    waves = narrow or (reference, degraded)
    clean, noisy = reference.astype(np.float64), degraded.astype(np.float64)
    at_level = functools.partial(at_level_in, clean, noisy)
    measures = (
        (PESQ_COLUMNS, lambda: pesq_scores(program, *waves, rate).values()),
        (["stoi", "estoi"], lambda: stoi_scores(reference, degraded).values()),
        (["si_sdr"], lambda: [si_sdr(clean, noisy)]),
        (["segmental_snr"], lambda: [segmental_snr(at_level(), noisy)]),
        (["log_spectral_distortion"], lambda: [log_spectral_distortion(at_level(), noisy)]),
    )

    scores, reasons = {}, {}
    for names, measure in measures:
        try:
            scores.update(zip(names, measure(), strict=True))
        except UnscorableError as error:
            reasons.update(dict.fromkeys(names, str(error)))
    return scores, reasons


# --- The test set -----------------------------------------------------------------------------


def calculate_pesq(
    workspace: str, speech_dir: str, te_snr: float, pesq: str = PESQ, n_jobs: int | None = None
) -> None:
    """Score each mixture and each enhanced wave of the test set against its clean speech.

    Writes scores/test/{te_snr}/scores.csv, a row for each file and signal (noisy, enhanced), a
    column for each of MEASURES. A score that is not defined is an empty field and is named on the
    screen. The file does not depend on n_jobs.

    The waves are scored by n_jobs processes: a quarter of the work is Python beside the ITU
    program's, and threads of one process do only one piece of that at a time.

    Working set: three waves and their spectra for each job.

    Args:
      workspace: folder with the test mixture CSV, the mixed and the enhanced waves.
      speech_dir: folder of the clean test speech, in any format.
      te_snr: signal-to-noise ratio of the test mixtures in dB.
      pesq: the ITU program that pesq_tool/build.sh makes.
      n_jobs: processes; None takes all cores.
    Raises:
      InputError: a wave or the program is missing, or more than 5 % of the enhanced waves cannot be
        scored.
    """
    program = require_pesq(pesq)
    mixtures = read_mixtures(workspace, "test")
    require_waves(workspace, speech_dir, te_snr, mixtures)

    pairs = [(mixture, signal) for mixture in mixtures for signal in SIGNALS]
    score_pair = functools.partial(score_signal, workspace, speech_dir, te_snr, program)
    rows, n_failed = [], 0
    all_scored = track(in_processes(score_pair, pairs, n_jobs), len(pairs), "waves")
    for (mixture, signal), (scores, reasons) in zip(pairs, all_scored, strict=True):
        say_not_scored(f"{signal} {mixture.name}", reasons)
        n_failed += signal == "enhanced" and "pesq_raw_mos" not in scores
        fields = ["" if scores.get(name) is None else f"{scores[name]:.4g}" for name in MEASURES]
        rows.append([mixture.speech_name, mixture.noise_name, signal, *fields])

    path = scores_path(workspace, te_snr)
    write_text(path, csv_text([*KEY_COLUMNS, *MEASURES], rows))
    print(f"{len(pairs)} waves scored -> {path}")
    if n_failed > MAX_UNSCORABLE * len(mixtures):
        raise InputError(
            f"{path}: {n_failed} of {len(mixtures)} enhanced waves could not be scored; "
            "see the lines above"
        )


def score_signal(
    workspace: str, speech_dir: str, te_snr: float, program: str, pair: tuple[Mixture, str]
) -> Scored:
    """Score the noisy or the enhanced wave of a test mixture."""
    mixture, signal = pair
    reference = audio_path(speech_dir, mixture.speech_name)
    return score_wave(program, reference, signal_path(workspace, te_snr, mixture, signal))


def say_not_scored(wave: str, reasons: dict[str, str]) -> None:
    """Print why measures of a wave are not defined, a line for each reason."""
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name in reasons if reasons[name] == reason]
        which = "" if len(names) == len(MEASURES) else f"{', '.join(names)}: "
        say(f"not scored: {wave}: {which}{reason}")


def require_waves(
    workspace: str, speech_dir: str | None, te_snr: float, mixtures: list[Mixture]
) -> None:
    """Raise MissingFileError unless the waves of the test mixtures and of clean speech exist."""
    if speech_dir is not None:
        require_dir(speech_dir, "the clean test speech")
    for mixture in mixtures:
        require_file(signal_path(workspace, te_snr, mixture, "noisy"), "calculate_mixture_features")
        require_file(signal_path(workspace, te_snr, mixture, "enhanced"), "inference")
        reference = speech_dir and audio_path(speech_dir, mixture.speech_name)
        if reference and not os.path.isfile(reference):
            raise MissingFileError(
                f"{reference} is missing; check --speech_dir against the test mixture CSV"
            )


def signal_path(workspace: str, te_snr: float, mixture: Mixture, signal: str) -> str:
    """Return the path of the noisy or the enhanced wave of a test mixture."""
    if signal == "noisy":
        return mixed_audio_path(workspace, "test", te_snr, mixture.name)
    return enhanced_path(workspace, te_snr, mixture.name)
