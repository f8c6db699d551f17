"""Scoring and showing a test set: limits, what is looked at first, and what belongs to what."""

import os
import shutil

import numpy as np
import pytest
import soundfile
from conftest import expect_refusal, files_below, run

from speech_enhancement.data.audio_files import read_audio, write_wave
from speech_enhancement.data.mixtures import Mixture, read_mixtures
from speech_enhancement.errors import InputError
from speech_enhancement.evaluation import figures, scoring
from speech_enhancement.files import csv_text, write_text
from speech_enhancement.workspace import (
    KEY_COLUMNS,
    SIGNALS,
    enhanced_path,
    features_path,
    mixed_audio_path,
    scores_path,
    training_stats_path,
)

STATS_HEADER = "iteration,tr_loss,te_loss\n"
STATS_ROW = "10,0.5,0.7\n"


@pytest.fixture
def workspace(prepared, tmp_path):
    """The prepared test set, scored by hand; the n-th enhanced wave is n / 2 times the mixture."""
    folder = str(shutil.copytree(prepared, tmp_path / "w"))
    rows = []
    for number, mixture in enumerate(read_mixtures(folder, "test"), start=1):
        mixed = read_audio(mixed_audio_path(folder, "test", 0, mixture.name))
        write_wave(enhanced_path(folder, 0, mixture.name), number / 2 * mixed)
        rows += [[*mixture[:2], signal, 2.5] for signal in SIGNALS]
    write_text(scores_path(folder, 0), csv_text([*KEY_COLUMNS, "pesq_raw_mos"], rows))
    return folder


def write_report(workspace, *flags):
    return run("evaluate", "report", "--workspace", workspace, "--te_snr", 0, *flags)


# --- Scores -----------------------------------------------------------------------------------


def score_with_more_samples(tmp_path, n_more):
    """Score a silent wave, which no program is run for, against a shorter one."""
    for name, n_samples in (("clean.wav", 9000), ("longer.wav", 9000 + n_more)):
        soundfile.write(tmp_path / name, np.zeros(n_samples), 16000)
    paths = (str(tmp_path / "clean.wav"), str(tmp_path / "longer.wav"))
    return scoring.score_wave("no program", *paths)


def test_waves_may_differ_by_a_frame_in_length(tmp_path):
    scores, reasons = score_with_more_samples(tmp_path, 512)
    assert scores == {}
    assert all(reason.endswith("is silent") for reason in reasons.values())


def test_waves_that_differ_by_more_than_a_frame_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"9513 samples.*9000; check --speech_dir"):
        score_with_more_samples(tmp_path, 513)


@pytest.mark.parametrize("n_failed, status", [(1, 0), (2, 2)])
def test_one_wave_in_twenty_may_stay_without_a_score(tmp_path, monkeypatch, n_failed, status):
    mixtures = [Mixture(f"{number}.wav", "n.wav", 0, 600) for number in range(20)]

    def score_signal(workspace, speech_dir, te_snr, program, pair):
        is_scored = mixtures.index(pair[0]) >= n_failed
        return ({"pesq_raw_mos": 2.0} if is_scored else {}), {}

    monkeypatch.setattr(scoring, "require_pesq", lambda program: program)
    monkeypatch.setattr(scoring, "read_mixtures", lambda *arguments: mixtures)
    monkeypatch.setattr(scoring, "require_waves", lambda *arguments: None)
    monkeypatch.setattr(scoring, "score_signal", score_signal)
    # One job runs in this process, where the functions above are replaced.
    flags = ("--workspace", tmp_path, "--speech_dir", tmp_path, "--te_snr", 0, "--n_jobs", 1)
    assert run("evaluate", "calculate_pesq", *flags) == status
    lines = (tmp_path / "scores/test/0db/scores.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * len(mixtures)


# --- The report -------------------------------------------------------------------------------


def test_features_are_looked_at_before_an_earlier_report_is_removed(workspace, capsys):
    assert write_report(workspace) == 0
    mixture = read_mixtures(workspace, "test")[0]
    os.remove(features_path(workspace, "test", 0, mixture.name))
    before = files_below(workspace)
    capsys.readouterr()
    status = write_report(workspace)
    expect_refusal(capsys, status, ".npz is missing; run calculate_mixture_features first")
    assert files_below(workspace) == before


@pytest.mark.parametrize("flags, expected", [((), ["10db", "5db"]), (("--tr_snr", 5), ["5db"])])
def test_trainings_with_an_iteration_are_shown_or_the_one_asked_for(workspace, flags, expected):
    all_stats = {"0db": STATS_HEADER, "5db": STATS_HEADER + STATS_ROW}
    all_stats["10db"] = all_stats["5db"]
    for tr_name, stats in all_stats.items():
        write_text(training_stats_path(workspace, tr_name), stats)
    assert write_report(workspace, *flags) == 0
    with open(os.path.join(workspace, "report", "index.html"), encoding="utf-8") as file:
        text = file.read()
    shown = [tr_name for tr_name in all_stats if f"trained at {tr_name}<" in text]
    assert sorted(shown) == expected


# --- The pictures -----------------------------------------------------------------------------


def test_each_spectrogram_of_a_picture_has_its_own_signal(workspace, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save_spectrograms", lambda *arguments: drawn.append(arguments))
    figures.draw_test_spectrograms(workspace, 0)
    assert len(drawn) == 4
    for number, (_, spectra, _) in enumerate(drawn, start=1):
        assert list(spectra) == ["mixture", "clean speech", "enhanced"]
        # Waves and spectra are in single precision.
        np.testing.assert_allclose(
            spectra["enhanced"], number / 2 * spectra["mixture"], rtol=1e-4, atol=1e-6
        )
