"""Scores against the ITU's, the table against its definition, the pictures by their content."""

import csv
import os
import stat

import numpy as np
import pytest
import soundfile
from conftest import GOLDEN, MINI, PESQ, calculate_pesq, inference, needs_pesq, run
from matplotlib.image import imread
from scipy.signal import resample_poly

from audio_files import read_audio
from evaluate import score_wave
from scores import UnscorableError, mos_lqo, pesq_scores, require_pesq, stoi_score
from workspace import scores_path


def golden_pairs():
    with open(GOLDEN / "pesq_pairs.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_rows(workspace):
    with open(scores_path(str(workspace), 0), encoding="utf-8") as file:
        return list(csv.DictReader(file))


@needs_pesq
@pytest.mark.parametrize("row", golden_pairs(), ids=lambda row: row["degraded"])
def test_scores_are_the_itus(tmp_path, row):
    paths = str(GOLDEN / row["reference"]), str(GOLDEN / row["degraded"])
    scores, problems = score_wave(str(PESQ), *paths, str(tmp_path / "t"))
    assert not problems
    for name in ("pesq_raw_mos", "pesq_nb_mos_lqo", "pesq_wb_mos_lqo"):
        assert scores[name] == pytest.approx(float(row[name]), abs=0.002)  # the third decimal may round the other way
    assert scores["stoi"] == pytest.approx(float(row["stoi"]), abs=1e-4)  # given to four decimals
    assert not list(tmp_path.iterdir())


@needs_pesq
def test_a_deep_folder_changes_no_score(tmp_path):
    reference, degraded = (read_audio(str(GOLDEN / golden_pairs()[0][key])) for key in ("reference", "degraded"))
    near = pesq_scores(str(PESQ), reference, degraded, str(tmp_path / "t"))
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    assert pesq_scores(str(PESQ), reference, degraded, str(deep / "t")) == near


@needs_pesq
def test_loud_waves_are_scaled_instead_of_clipped(tmp_path):
    reference, degraded = (read_audio(str(GOLDEN / golden_pairs()[0][key])) for key in ("reference", "degraded"))
    scores = [pesq_scores(str(PESQ), reference, gain * degraded, str(tmp_path)) for gain in (1, 4)]
    # PESQ aligns levels; what is left is the rounding to 16 bits.
    assert scores[0]["pesq_raw_mos"] == pytest.approx(scores[1]["pesq_raw_mos"], abs=0.005)


def test_mos_lqo_is_p862_1s_table():
    # ITU-T P.862.1: the mapping's ends, and the pairs that the ITU program of 2005 prints.
    for row in golden_pairs():
        assert mos_lqo(float(row["pesq_raw_mos"])) == pytest.approx(float(row["pesq_nb_mos_lqo"]), abs=1e-3)
    assert mos_lqo(4.5) == pytest.approx(4.549, abs=1e-3) and mos_lqo(-0.5) == pytest.approx(1.017, abs=1e-3)


def fake_pesq(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_program_of_2002_is_understood(tmp_path):
    program = fake_pesq(tmp_path / "pesq2002", 'echo "Prediction : PESQ_MOS = 1.563"')
    scores = pesq_scores(program, np.ones(9), np.ones(9), str(tmp_path / "t"))
    assert scores == {"pesq_raw_mos": 1.563, "pesq_nb_mos_lqo": 1.355, "pesq_wb_mos_lqo": None}


@pytest.mark.parametrize("script", ["echo An error of type 5; exit 1", "echo nothing to read", "kill -9 $$"])
def test_a_program_that_fails_scores_nothing(tmp_path, script):
    program = fake_pesq(tmp_path / "pesq", script)
    with pytest.raises(UnscorableError):
        pesq_scores(program, np.ones(9), np.ones(9), str(tmp_path / "t"))
    assert not (tmp_path / "t").exists()


def test_stoi_of_itself_is_one_and_of_too_little_speech_undefined():
    speech = read_audio(str(MINI / "test_speech" / "ru_ivrvoice_nobody.wav"))
    assert stoi_score(speech, speech) == pytest.approx(1, abs=1e-6)
    with pytest.warns(RuntimeWarning), pytest.raises(UnscorableError):
        stoi_score(speech[10000:14000], speech[10000:14000])


@needs_pesq
def test_calculate_pesq_writes_a_row_for_each_file_and_signal(trained, capsys):
    assert calculate_pesq(trained) == 0
    rows = read_rows(trained)
    assert list(rows[0]) == [
        *("speech_name", "noise_name", "signal"),
        *("pesq_raw_mos", "pesq_nb_mos_lqo", "pesq_wb_mos_lqo", "stoi"),
    ]
    assert [row["signal"] for row in rows] == ["noisy", "enhanced"] * 4
    for row in rows:
        assert -0.5 <= float(row["pesq_raw_mos"]) <= 4.5 and 0 < float(row["stoi"]) < 1
    assert not [name for name in os.listdir(trained / "scores/test/0db") if name.startswith(".")]


@needs_pesq
def test_the_format_of_the_clean_speech_changes_no_score(trained, tmp_path):
    calculate_pesq(trained)
    expected = read_rows(trained)
    for path in (MINI / "test_speech").iterdir():
        speech = resample_poly(soundfile.read(path)[0], 441, 160)
        soundfile.write(tmp_path / path.name, np.stack([speech, speech], axis=1), 44100, subtype="PCM_24")
    assert calculate_pesq(trained, speech=tmp_path) == 0
    for row, other in zip(expected, read_rows(trained), strict=True):
        # Two resamplers in a row leave the band edge 0.1 dB off; the bound is 0.005.
        assert float(row["pesq_raw_mos"]) == pytest.approx(float(other["pesq_raw_mos"]), abs=0.005)
        assert float(row["stoi"]) == pytest.approx(float(other["stoi"]), abs=0.005)


def test_the_table_is_the_mean_over_files_and_over_rows(tmp_path, capsys):
    path = tmp_path / "scores/test/2.5db/scores.csv"
    path.parent.mkdir(parents=True)
    lines = ["speech_name,noise_name,signal,pesq_raw_mos,pesq_nb_mos_lqo,pesq_wb_mos_lqo,stoi"]
    values = {("a", "x"): (1.0, 2.0), ("b", "x"): (1.5, 3.0), ("a", "y z"): (2.0, 2.5), ("b", "y z"): ("", 2.5)}
    for (speech, noise), (noisy, enhanced) in values.items():
        lines.append(f"{speech}.wav,{noise}.wav,noisy,{noisy},,,")
        lines.append(f"{speech}.wav,{noise}.wav,enhanced,{enhanced},,,")
    path.write_text("\n".join(lines) + "\n")
    assert run("evaluate", "get_stats", "--workspace", tmp_path, "--te_snr", 2.5) == 0
    table = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    table = [[cell.strip() for cell in row if cell.strip()] for row in table]
    assert table[0] == ["Noise(2.5dB)", "PESQ", "unprocessed", "files"]
    assert table[2] == ["x", "2.50 +- 0.50", "1.25 +- 0.25", "2"]
    assert table[3] == ["y z", "2.50 +- 0.00", "2.00 +- 0.00", "1"]  # a file without a score leaves the row
    assert table[5] == ["Avg.", "2.50 +- 0.25", "1.62 +- 0.12", "3"]


def test_the_training_curve_is_drawn_from_the_iterations_asked_for(trained, capsys):
    flags = ("--workspace", trained, "--tr_snr", 0)
    assert run("evaluate", "plot_training_stat", *flags, "--fin_iter", 5, "--interval_iter", 2) == 0
    assert capsys.readouterr().out.startswith("3 evaluations")
    assert run("evaluate", "plot_training_stat", *flags, "--fin_iter", 4, "--interval_iter", 2) == 0
    assert capsys.readouterr().out.startswith("2 evaluations")  # fin_iter is left out
    picture = imread(trained / "figures" / "training_stat_0db.png")
    assert picture.shape[0] > 300 and picture.std() > 0.05
    assert run("evaluate", "plot_training_stat", *flags, "--bgn_iter", 7) == 2
    assert "it has 0, 2, 4" in capsys.readouterr().err


def test_visualize_draws_a_picture_for_each_test_file(trained):
    assert inference(trained, "--iteration", 4, "--visualize") == 0
    pictures = sorted(path.name for path in (trained / "figures/test/0db").iterdir())
    assert pictures == sorted(
        f"{speech}.{noise}.png"
        for speech in ("en_librivox_disposed", "ru_ivrvoice_nobody")
        for noise in ("printer", "vinyl")
    )
    assert imread(trained / "figures/test/0db" / pictures[0]).std() > 0.1


def test_a_missing_program_or_one_that_is_not_executable_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pesq is missing; run pesq_tool/build.sh"):
        require_pesq(str(tmp_path / "pesq"))
    (tmp_path / "pesq").write_text("")
    with pytest.raises(ValueError, match="not executable"):
        require_pesq(str(tmp_path / "pesq"))
