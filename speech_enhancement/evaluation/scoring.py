"""Score waves of files against their clean reference: one pair, or the test set on all cores."""

import functools
import os
import shutil
from collections.abc import Iterator

import numpy as np

from config import n_window, sample_rate
from speech_enhancement.errors import InputError, MissingFileError, require_dir, require_file
from speech_enhancement.parallel import in_processes
from speech_enhancement.workspace import (
    SIGNALS,
    Mixture,
    enhanced_path,
    mixed_audio_path,
    scores_path,
)

# Scores by measure (None: the PESQ program does not know it), and why the others are not defined, by measure.
Scored = tuple[dict[str, float | None], dict[str, str]]


# --- A pair of files --------------------------------------------------------------------------


def score_wave(
    program: str,
    reference_path: str,
    degraded_path: str,
    folder: str,
    reference_flag: str = "--speech_dir",
) -> Scored:
    """Score a wave file against its clean reference.

    Args:
      program: absolute path of the ITU program.
      reference_path, degraded_path: audio files of one length.
      folder: a folder for PESQ to work in, made and removed.
      reference_flag: the flag that the reference comes from, for messages.
    Returns:
      The scores by name, without those that are not defined; and why those are not, by name.
    Raises:
      InputError: a file is unreadable, or the two differ in length by more than a frame.
    """
    from speech_enhancement.data.audio_files import read_audio
    from speech_enhancement.evaluation.measures import SCORE_COLUMNS

    reference, degraded = read_audio(reference_path), read_audio(degraded_path)
    if abs(len(reference) - len(degraded)) > n_window:
        raise InputError(
            f"{degraded_path} has {len(degraded)} samples at {sample_rate} Hz, its clean speech {reference_path} "
            f"{len(reference)}; check {reference_flag}"
        )
    n_samples = min(
        len(reference), len(degraded)
    )  # resampled speech may be a sample longer or shorter
    reference, degraded = reference[:n_samples], degraded[:n_samples]
    for path, audio in ((reference_path, reference), (degraded_path, degraded)):
        if not audio.any():
            return {}, dict.fromkeys(SCORE_COLUMNS, f"{path} is silent")
    return score_arrays(program, reference, degraded, folder)


def score_arrays(program: str, reference: np.ndarray, degraded: np.ndarray, folder: str) -> Scored:
    """Score a wave against its reference, each (n_samples,) float32, neither silent; see score_wave."""
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

    clean, noisy = reference.astype(np.float64), degraded.astype(np.float64)
    measures = (
        (PESQ_COLUMNS, lambda: pesq_scores(program, reference, degraded, folder).values()),
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
    remove_leftovers(workspace, te_snr)
    pairs = [(mixture, signal) for mixture in mixtures for signal in SIGNALS]
    score = functools.partial(score_signal, workspace, speech_dir, te_snr, program)
    scored = in_processes(score, enumerate(pairs), n_jobs)
    return ((*pair, scores) for pair, scores in zip(pairs, scored, strict=True))


def score_signal(
    workspace: str,
    speech_dir: str,
    te_snr: float,
    program: str,
    numbered: tuple[int, tuple[Mixture, str]],
) -> Scored:
    """Score the noisy or the enhanced wave of a test mixture; its number names a folder for PESQ."""
    number, (mixture, signal) = numbered
    folder = os.path.join(os.path.dirname(scores_path(workspace, te_snr)), f".tmp-pesq-{number}")
    reference = os.path.join(speech_dir, mixture.speech_name)
    return score_wave(program, reference, signal_path(workspace, te_snr, mixture, signal), folder)


def require_waves(workspace: str, speech_dir: str, te_snr: float, mixtures: list[Mixture]) -> None:
    """Raise MissingFileError unless the waves of the test mixtures and their clean speech are there."""
    require_dir(speech_dir, "the clean test speech")
    for mixture in mixtures:
        require_file(signal_path(workspace, te_snr, mixture, "noisy"), "calculate_mixture_features")
        require_file(signal_path(workspace, te_snr, mixture, "enhanced"), "inference")
        reference = os.path.join(speech_dir, mixture.speech_name)
        if not os.path.isfile(reference):
            raise MissingFileError(
                f"{reference} is missing; check --speech_dir against the test mixture CSV"
            )


def remove_leftovers(workspace: str, te_snr: float) -> None:
    """Remove the folders that PESQ worked in when a scoring was killed."""
    folder = os.path.dirname(scores_path(workspace, te_snr))
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if name.startswith(".tmp-pesq-"):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def signal_path(workspace: str, te_snr: float, mixture: Mixture, signal: str) -> str:
    """Return the path of the noisy or the enhanced wave of a test mixture."""
    if signal == "noisy":
        return mixed_audio_path(workspace, "test", te_snr, mixture.name)
    return enhanced_path(workspace, te_snr, mixture.name)
