"""Score waves of files against their clean reference: one pair, or the test set on all cores."""

import functools
import os
from collections.abc import Iterator

import numpy as np

from config import n_window, sample_rate
from speech_enhancement.errors import InputError, MissingFileError, require_dir, require_file
from speech_enhancement.parallel import in_processes
from speech_enhancement.workspace import SIGNALS, Mixture, enhanced_path, mixed_audio_path

# Scores by measure (None: the PESQ program does not know it), and why the others are not defined, by measure.
NARROW_BAND_RATE = 8000  # Hz
Scored = tuple[dict[str, float | None], dict[str, str]]


# --- A pair of files --------------------------------------------------------------------------


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
    from speech_enhancement.data.audio_files import read_audio
    from speech_enhancement.evaluation.measures import SCORE_COLUMNS

    paths = (reference_path, degraded_path)
    reference, degraded = map(read_audio, paths)
    if abs(len(reference) - len(degraded)) > n_window:
        raise InputError(
            f"{degraded_path} has {len(degraded)} samples at {sample_rate} Hz, its clean speech {reference_path} "
            f"{len(reference)}; check {reference_flag}"
        )
    n_samples = min(
        len(reference), len(degraded)
    )  # resampled speech may be a sample longer or shorter
    reference, degraded = reference[:n_samples], degraded[:n_samples]
    for path, audio in zip(paths, (reference, degraded), strict=True):
        if not audio.any():
            return {}, dict.fromkeys(SCORE_COLUMNS, f"{path} is silent")
    return score_arrays(program, reference, degraded, narrow_band(*paths))


def narrow_band(*paths: str) -> list[np.ndarray] | None:
    """Return waves at 8 kHz and of one length if all files are at that rate, otherwise None."""
    from speech_enhancement.data.audio_files import file_rate, read_audio

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
    """Score a wave against its reference, each (n_samples,) float32, neither silent; see score_wave.

    Args:
      narrow: reference and degraded at 8 kHz, for PESQ; None: they had another rate.
    """
    from speech_enhancement.evaluation.measures import (
        PESQ_COLUMNS,
        UnscorableError,
        at_level_in,
        log_spectral_distortion,
        pesq_scores,
        segmental_snr,
        si_sdr,
        stoi_scores,
    )

    rate = NARROW_BAND_RATE if narrow else sample_rate
    clean, noisy = reference.astype(np.float64), degraded.astype(np.float64)
    measures = (
        (
            PESQ_COLUMNS,
            lambda: pesq_scores(program, *(narrow or (reference, degraded)), rate).values(),
        ),
        (["stoi", "estoi"], lambda: stoi_scores(reference, degraded).values()),
        (["si_sdr"], lambda: [si_sdr(clean, noisy)]),
        (["segmental_snr"], lambda: [segmental_snr(at_level_in(noisy, clean), noisy)]),
        (
            ["log_spectral_distortion"],
            lambda: [log_spectral_distortion(at_level_in(noisy, clean), noisy)],
        ),
    )
    scores, reasons = {}, {}
    for names, measure in measures:
        try:
            scores.update(zip(names, measure(), strict=True))
        except UnscorableError as error:
            reasons.update(dict.fromkeys(names, str(error)))
    return scores, reasons


# --- The test set -----------------------------------------------------------------------------


def score_test_set(
    workspace: str,
    speech_dir: str,
    te_snr: float,
    mixtures: list[Mixture],
    program: str,
    n_jobs: int | None,
) -> Iterator[tuple[Mixture, str, Scored]]:
    """Return an iterator over each mixture with each signal (noisy, enhanced) and its scores, in order.

    The waves are scored by n_jobs processes: a quarter of the work is Python beside the ITU program's, and
    threads of one process do only one piece of that at a time. Scores do not depend on n_jobs.

    Working set: three waves and their spectra for each job.

    Args:
      workspace, speech_dir, te_snr: as in calculate_pesq.
      mixtures: of the test set.
      program: absolute path of the ITU program.
      n_jobs: processes; None takes all cores.
    Raises:
      InputError: a wave is missing or unreadable.
    """
    require_waves(workspace, speech_dir, te_snr, mixtures)
    pairs = [(mixture, signal) for mixture in mixtures for signal in SIGNALS]
    score = functools.partial(score_signal, workspace, speech_dir, te_snr, program)
    scored = in_processes(score, pairs, n_jobs)
    return ((*pair, scores) for pair, scores in zip(pairs, scored, strict=True))


def score_signal(
    workspace: str, speech_dir: str, te_snr: float, program: str, pair: tuple[Mixture, str]
) -> Scored:
    """Score the noisy or the enhanced wave of a test mixture."""
    from speech_enhancement.data.audio_files import audio_path

    mixture, signal = pair
    reference = audio_path(speech_dir, mixture.speech_name)
    return score_wave(program, reference, signal_path(workspace, te_snr, mixture, signal))


def require_waves(workspace: str, speech_dir: str, te_snr: float, mixtures: list[Mixture]) -> None:
    """Raise MissingFileError unless the waves of the test mixtures and their clean speech are there."""
    from speech_enhancement.data.audio_files import audio_path

    require_dir(speech_dir, "the clean test speech")
    for mixture in mixtures:
        require_file(signal_path(workspace, te_snr, mixture, "noisy"), "calculate_mixture_features")
        require_file(signal_path(workspace, te_snr, mixture, "enhanced"), "inference")
        reference = audio_path(speech_dir, mixture.speech_name)
        if not os.path.isfile(reference):
            raise MissingFileError(
                f"{reference} is missing; check --speech_dir against the test mixture CSV"
            )


def signal_path(workspace: str, te_snr: float, mixture: Mixture, signal: str) -> str:
    """Return the path of the noisy or the enhanced wave of a test mixture."""
    if signal == "noisy":
        return mixed_audio_path(workspace, "test", te_snr, mixture.name)
    return enhanced_path(workspace, te_snr, mixture.name)
