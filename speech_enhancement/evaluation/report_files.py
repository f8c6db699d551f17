"""Write the report: a page to look at and listen to, with the waves and pictures that it shows."""

import contextlib
import functools
import os
import re

import numpy as np

from config import n_overlap, n_window, sample_rate
from speech_enhancement.data.audio_files import audio_path, read_audio, write_pcm16
from speech_enhancement.data.mixture_features import check_features, read_features
from speech_enhancement.data.mixtures import Mixture, read_mixtures
from speech_enhancement.errors import InputError, foreseen_disk_errors
from speech_enhancement.evaluation.figures import (
    colours,
    read_losses,
    save_plain_spectrogram,
    save_training_curve,
)
from speech_enhancement.evaluation.report_page import Page, Signal, TestFile, page_text
from speech_enhancement.evaluation.score_table import ScoreTable, read_score_table
from speech_enhancement.evaluation.scoring import require_waves
from speech_enhancement.features import N_HOP, istft, magnitudes
from speech_enhancement.files import write_text
from speech_enhancement.parallel import in_threads
from speech_enhancement.progress import track
from speech_enhancement.workspace import (
    enhanced_path,
    mixed_audio_path,
    recorded_trainings,
    report_dir,
    require_training,
    scores_path,
)


def report(
    workspace: str,
    te_snr: float,
    speech_dir: str | None = None,
    tr_snr: list[float] | None = None,
    tr_snr_range: list[float] | None = None,
) -> None:
    """Write report/index.html with the waves and pictures that it shows; it needs no network.

    It replaces an earlier report. The page is written last: a run that is killed leaves none.

    Working set: the waves and spectrograms of one mixture for each core, and some kB of text for
    each mixture.

    Args:
      workspace: folder with scores/, the mixed and the enhanced waves and the features of the test
        set.
      te_snr: signal-to-noise ratio of the test mixtures in dB.
      speech_dir: folder of the clean test speech; None makes it of its magnitudes in the feature
        files and the mixtures' phase.
      tr_snr, tr_snr_range: of the training whose losses are shown; without them those of all.
    Raises:
      InputError: there are no scores, they are not those of the test mixtures, or a file is missing
        or damaged.
    """
    tr_name = require_training(workspace, tr_snr, tr_snr_range)
    path = scores_path(workspace, te_snr)
    table = read_score_table(path)
    mixtures = read_mixtures(workspace, "test")
    check_scores(path, table, mixtures)
    require_waves(workspace, speech_dir, te_snr, mixtures)
    for mixture in mixtures:
        check_features(workspace, "test", te_snr, mixture)
    at_snrs = read_tables_at_snrs(workspace)
    trainings = [read_losses(workspace, name) for name in recorded_trainings(workspace)]

    folder = report_dir(workspace)
    index = os.path.join(folder, "index.html")
    remove_file(index)
    write = functools.partial(write_test_file, workspace, te_snr, speech_dir)
    files = list(track(in_threads(write, enumerate(mixtures, start=1)), len(mixtures), "mixtures"))
    curves = {}
    shown = [one for one in trainings if one.iterations and tr_name in (None, one.tr_name)]
    for number, training in enumerate(shown, start=1):
        curves[training.tr_name] = name = f"training-{number}.png"
        picture = os.path.join(folder, "files", name)
        save_training_curve(picture, training.iterations, training.losses)

    names = {name for file in files for name in file.file_names()}
    remove_others(os.path.join(folder, "files"), {*curves.values(), *names})
    write_text(index, page_text(Page(te_snr, table, files, at_snrs, curves, colours())))
    print(f"report of {len(mixtures)} files -> {index}")


# --- What it reads ----------------------------------------------------------------------------


def check_scores(path: str, table: ScoreTable, mixtures: list[Mixture]) -> None:
    """Raise InputError unless the scores are those of the test mixtures."""
    listed = {(mixture.speech_name, mixture.noise_name) for mixture in mixtures}
    for speech_name, noise_name in sorted(listed - table.of_files.keys()):
        raise InputError(
            f"{path} has no scores of {speech_name} with {noise_name}; run calculate_pesq again"
        )
    for speech_name, noise_name in sorted(table.of_files.keys() - listed):
        raise InputError(
            f"{path} scores {speech_name} with {noise_name}, which the test mixture CSV does not "
            "list; run calculate_pesq again"
        )


def read_tables_at_snrs(workspace: str) -> dict[float, ScoreTable]:
    """Return the scores of the test set at each SNR that it was scored at, in rising order."""
    folder = os.path.dirname(os.path.dirname(scores_path(workspace, 0)))
    found = (re.fullmatch(r"(-?\d+(\.\d+)?(e-?\d+)?)db", name) for name in os.listdir(folder))
    snrs = sorted(float(match[1]) for match in found if match)
    paths = {snr: scores_path(workspace, snr) for snr in snrs}
    return {snr: read_score_table(path) for snr, path in paths.items() if os.path.isfile(path)}


# --- What it writes ---------------------------------------------------------------------------


def write_test_file(
    workspace: str, te_snr: float, speech_dir: str | None, numbered: tuple[int, Mixture]
) -> TestFile:
    """Write the waves and spectrograms of a test mixture; return what the page says of it.

    All three waves are scaled by one factor, so that none clips and they can be compared.

    Args:
      workspace, te_snr, speech_dir: as in `report`.
      numbered: the mixture's number, which its files are named by, and the mixture.
    """
    number, mixture = numbered
    mixed = read_audio(mixed_audio_path(workspace, "test", te_snr, mixture.name))
    path = enhanced_path(workspace, te_snr, mixture.name)
    enhanced = with_length(read_audio(path), len(mixed), path, "run inference again")
    clean, of_clean = clean_speech(workspace, te_snr, speech_dir, mixture, len(mixed))

    waves = {"noisy": mixed, "enhanced": enhanced, "clean": clean}
    spectra = {"noisy": magnitudes(mixed), "enhanced": magnitudes(enhanced), "clean": of_clean}
    gain = 1 / max(1.0, *(float(np.max(np.abs(wave))) for wave in waves.values()))
    loudest = float(spectra["noisy"].max())

    folder = os.path.join(report_dir(workspace), "files")
    signals = []
    for signal, wave in waves.items():
        base = f"{number:04d}-{safe_name(mixture.name)}.{signal}"
        write_pcm16(os.path.join(folder, f"{base}.wav"), gain * wave)
        save_plain_spectrogram(os.path.join(folder, f"{base}.png"), spectra[signal], loudest)
        label = "clean (mixture's phase)" if signal == "clean" and speech_dir is None else signal
        place = place_in_time(spectra[signal], len(wave))
        signals.append(Signal(label, f"{base}.wav", f"{base}.png", *place))

    duration_s = len(mixed) / sample_rate
    return TestFile(number, mixture.speech_name, mixture.noise_name, duration_s, signals)


def clean_speech(
    workspace: str, te_snr: float, speech_dir: str | None, mixture: Mixture, n_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the clean speech of a mixture, at its level there, and its magnitudes.

    Without the folder of the speech, the wave is recovered from the magnitudes with the mixture's
    phase.

    Returns:
      (n_samples,) wave and (n_frames, n_freq) magnitudes.
    """
    if speech_dir is None:
        mixture_stft, speech_magnitude, _ = read_features(workspace, "test", te_snr, mixture)
        return istft(speech_magnitude, mixture_stft, n_overlap, n_samples), speech_magnitude
    facts = check_features(workspace, "test", te_snr, mixture)
    path = audio_path(speech_dir, mixture.speech_name)
    speech = with_length(read_audio(path), n_samples, path, "check --speech_dir")
    speech = facts["scaling_factor"] * facts["alpha"] * speech
    return speech, magnitudes(speech)


def with_length(audio: np.ndarray, n_samples: int, path: str, advice: str) -> np.ndarray:
    """Return (n_samples,) audio, cut or filled with zeros by less than a frame.

    Raises:
      InputError: it is longer or shorter than its mixture by more.
    """
    if abs(len(audio) - n_samples) > n_window:
        raise InputError(
            f"{path} has {len(audio)} samples at {sample_rate} Hz, "
            f"its mixture {n_samples}; {advice}"
        )
    return np.pad(audio[:n_samples], (0, max(0, n_samples - len(audio))))


def safe_name(name: str) -> str:
    """Return a name of ASCII letters, digits and `._-` alone; different names may give the same.

    >>> safe_name("dr1/müller <b>.pink")
    'dr1_m_ller_b_.pink'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:80]


def place_in_time(spectrum: np.ndarray, n_samples: int) -> tuple[float, float]:
    """Return where a spectrogram's picture begins, and its width, in lengths of the wave.

    Frame k is centred on sample k * hop + n_window / 2, and a column of the picture is a hop wide.
    """
    return (n_window - N_HOP) / 2 / n_samples, len(spectrum) * N_HOP / n_samples


def remove_others(folder: str, names: set[str]) -> None:
    """Remove the files of a folder that are not among the names: an earlier report's."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name not in names and not entry.is_dir(follow_symlinks=False):
            remove_file(entry.path)


def remove_file(path: str) -> None:
    """Remove a file if it is there.

    Raises:
      InputError: it cannot be removed.
    """
    with foreseen_disk_errors(path), contextlib.suppress(FileNotFoundError):
        os.remove(path)
