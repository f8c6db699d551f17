"""PESQ against the ITU's, the scoring commands, the table by its definition, the pictures."""

import csv
import os
import re
import shutil
import stat
import subprocess
import tempfile

import numpy as np
import pytest
import soundfile
from conftest import GOLDEN, MINI, PESQ, calculate_pesq, inference, needs_pesq, run
from matplotlib.image import imread
from scipy.signal import resample_poly
from test_score_table import stats

from speech_enhancement.data.audio_files import read_audio
from speech_enhancement.evaluation.measures import (
    MEASURES,
    UnscorableError,
    mos_lqo,
    pesq_scores,
    require_pesq,
)
from speech_enhancement.evaluation.scoring import say_not_scored, score_wave
from speech_enhancement.workspace import scores_path


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder that temporary folders are made in."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def golden_pairs():
    with open(GOLDEN / "pesq_pairs.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_rows(workspace):
    with open(scores_path(str(workspace), 0), encoding="utf-8") as file:
        return list(csv.DictReader(file))


@needs_pesq
@pytest.mark.parametrize("row", golden_pairs(), ids=lambda row: row["degraded"])
def test_scores_are_the_itus(temporary, row):
    paths = str(GOLDEN / row["reference"]), str(GOLDEN / row["degraded"])
    scores, problems = score_wave(str(PESQ), *paths)
    assert not problems
    for name in ("pesq_raw_mos", "pesq_nb_mos_lqo", "pesq_wb_mos_lqo"):
        assert scores[name] == pytest.approx(
            float(row[name]), abs=0.002
        )  # the third decimal may round the other way
    assert scores["stoi"] == pytest.approx(float(row["stoi"]), abs=1e-4)  # given to four decimals
    assert not list(temporary.iterdir())


@needs_pesq
def test_a_deep_folder_changes_no_score(tmp_path, monkeypatch):
    reference, degraded = (
        read_audio(str(GOLDEN / golden_pairs()[0][key])) for key in ("reference", "degraded")
    )
    near = pesq_scores(str(PESQ), reference, degraded)
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert pesq_scores(str(PESQ), reference, degraded) == near


@needs_pesq
def test_loud_waves_are_scaled_instead_of_clipped():
    reference, degraded = (
        read_audio(str(GOLDEN / golden_pairs()[0][key])) for key in ("reference", "degraded")
    )
    scores = [pesq_scores(str(PESQ), reference, gain * degraded) for gain in (1, 4)]
    # PESQ aligns levels; what is left is the rounding to 16 bits.
    assert scores[0]["pesq_raw_mos"] == pytest.approx(scores[1]["pesq_raw_mos"], abs=0.005)


def test_mos_lqo_is_p862_1s_table():
    # ITU-T P.862.1: the mapping's ends, and the pairs that the ITU program of 2005 prints.
    for row in golden_pairs():
        assert mos_lqo(float(row["pesq_raw_mos"])) == pytest.approx(
            float(row["pesq_nb_mos_lqo"]), abs=1e-3
        )
    assert mos_lqo(4.5) == pytest.approx(4.549, abs=1e-3) and mos_lqo(-0.5) == pytest.approx(
        1.017, abs=1e-3
    )


def fake_pesq(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_program_of_2002_is_understood(tmp_path):
    program = fake_pesq(tmp_path / "pesq2002", 'echo "Prediction : PESQ_MOS = 1.563"')
    scores = pesq_scores(program, np.ones(9), np.ones(9))
    assert scores == {"pesq_raw_mos": 1.563, "pesq_nb_mos_lqo": 1.355, "pesq_wb_mos_lqo": None}


@pytest.mark.parametrize(
    "script", ["echo An error of type 5; exit 1", "echo nothing to read", "kill -9 $$"]
)
def test_a_program_that_fails_scores_nothing(tmp_path, temporary, script):
    program = fake_pesq(tmp_path / "pesq", script)
    with pytest.raises(UnscorableError):
        pesq_scores(program, np.ones(9), np.ones(9))
    assert not list(temporary.iterdir())


@needs_pesq
def test_a_pair_at_8_khz_is_scored_in_the_programs_own_mode(tmp_path, capsys):
    import soxr

    paths = [tmp_path / name for name in ("reference.wav", "degraded.wav")]
    for path, key in zip(paths, ("reference", "degraded"), strict=True):
        audio = read_audio(str(GOLDEN / golden_pairs()[0][key]))
        soundfile.write(path, soxr.resample(audio, 16000, 8000), 8000, subtype="PCM_16")
    expected = subprocess.run(
        [PESQ, *paths, "+8000"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert run("evaluate", "score", "--reference", paths[0], "--degraded", paths[1]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    raw = float(re.search(r"=\s*([\d.]+)", expected)[1])
    assert float(lines["pesq_raw_mos"].split()[0]) == raw
    assert lines["pesq_wb_mos_lqo"].startswith("not defined")


@needs_pesq
def test_calculate_pesq_writes_a_row_for_each_file_and_signal(trained, capsys):
    assert calculate_pesq(trained, "--n_jobs", 1) == 0
    rows = read_rows(trained)
    assert list(rows[0]) == [
        *("speech_name", "noise_name", "signal"),
        *("pesq_raw_mos", "pesq_nb_mos_lqo", "pesq_wb_mos_lqo", "stoi"),
        *("estoi", "si_sdr", "segmental_snr", "log_spectral_distortion"),
    ]
    assert [row["signal"] for row in rows] == ["noisy", "enhanced"] * 4
    for row in rows:
        assert -0.5 <= float(row["pesq_raw_mos"]) <= 4.5 and 0 < float(row["stoi"]) < 1
        assert -10 <= float(row["segmental_snr"]) <= 35 and float(row["estoi"]) < float(row["stoi"])
        if row["signal"] == "noisy":
            assert (
                abs(float(row["si_sdr"])) < 0.5
            )  # mixed at 0 dB; speech and noise are correlated by chance
    assert not [name for name in os.listdir(trained / "scores/test/0db") if name.startswith(".")]


@needs_pesq
def test_scores_do_not_depend_on_the_number_of_jobs(trained):
    path = trained / "scores/test/0db/scores.csv"
    contents = []
    for n_jobs in (1, 2):
        assert calculate_pesq(trained, "--n_jobs", n_jobs) == 0
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


@needs_pesq
def test_the_format_of_the_clean_speech_changes_no_score(trained, tmp_path):
    calculate_pesq(trained)
    expected = read_rows(trained)
    for path in (MINI / "test_speech").iterdir():
        speech = resample_poly(soundfile.read(path)[0], 441, 160)
        soundfile.write(
            tmp_path / path.name, np.stack([speech, speech], axis=1), 44100, subtype="PCM_24"
        )
    assert calculate_pesq(trained, speech=tmp_path) == 0
    for row, other in zip(expected, read_rows(trained), strict=True):
        # Two resamplers in a row leave the band edge 0.1 dB off; the bound is 0.005. After
        # 4 iterations the enhanced waves are noise in which PESQ looks for speech, and a rounding
        # may decide where it finds any.
        if row["signal"] == "noisy":
            assert float(row["pesq_raw_mos"]) == pytest.approx(
                float(other["pesq_raw_mos"]), abs=0.005
            )
        assert float(row["stoi"]) == pytest.approx(float(other["stoi"]), abs=0.005)


# --- score: one pair --------------------------------------------------------------------------


def score(reference, degraded, pesq=PESQ):
    return run(
        "evaluate", "score", "--reference", reference, "--degraded", degraded, "--pesq", pesq
    )


@needs_pesq
def test_all_scores_of_a_pair_are_printed_with_their_units(tmp_path, capsys):
    row = golden_pairs()[-1]
    reference, degraded = GOLDEN / row["reference"], GOLDEN / row["degraded"]
    louder = tmp_path / "louder.flac"
    soundfile.write(
        louder, 1.5 * read_audio(str(degraded)) / np.abs(read_audio(str(degraded))).max() / 2, 16000
    )
    printed = []
    for path in (degraded, louder):
        assert score(reference, path) == 0
        printed.append([line.split() for line in capsys.readouterr().out.splitlines()])
    names = [line[0] for line in printed[0]]
    assert [line[2] for line in printed[0]] == [
        "MOS",
        "MOS-LQO",
        "MOS-LQO",
        *["correlation"] * 2,
        *["dB"] * 3,
    ]
    for name in ("pesq_raw_mos", "pesq_nb_mos_lqo", "pesq_wb_mos_lqo", "stoi"):
        # PESQ's third decimal may round the other way; STOI is given to four.
        assert float(printed[0][names.index(name)][1]) == pytest.approx(float(row[name]), abs=0.002)
    for line, other in zip(*printed, strict=True):
        # No score depends on the level of the degraded wave, but for its rounding to 16 bits.
        assert float(line[1]) == pytest.approx(float(other[1]), abs=0.01)


@needs_pesq
def test_what_is_not_defined_is_printed_with_its_reason(tmp_path, capsys):
    speech = read_audio(str(GOLDEN / golden_pairs()[0]["reference"]))
    soundfile.write(tmp_path / "short.wav", speech[10000:15000], 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(5000), 16000)
    assert score(tmp_path / "short.wav", tmp_path / "short.wav") == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert len(lines) == 8
    assert lines["stoi"] == lines["estoi"] == "not defined: less than 0.4 s of speech"
    assert lines["si_sdr"].startswith("not defined: ") and "the same" in lines["si_sdr"]
    assert lines["segmental_snr"] == "35.00 dB" and lines["log_spectral_distortion"] == "0.000 dB"
    assert score(tmp_path / "short.wav", tmp_path / "silent.wav") == 0
    assert capsys.readouterr().out.count("silent.wav is silent") == 8


def test_pairs_that_cannot_be_scored_get_one_line(tmp_path, capsys):
    program = fake_pesq(tmp_path / "pesq", "exit 1")
    speech = GOLDEN / golden_pairs()[0]["reference"]
    longer, text = tmp_path / "longer.wav", tmp_path / "text.wav"
    soundfile.write(longer, np.ones(60000), 16000)
    text.write_text("no audio")
    for reference, degraded, pesq, message in (
        (speech, longer, program, "longer.wav has 60000 samples at 16000 Hz, its clean speech"),
        (speech, tmp_path / "none.wav", program, "none.wav is missing; check --degraded"),
        (tmp_path / "none.wav", speech, program, "none.wav is missing; check --reference"),
        (text, speech, program, "text.wav is not readable as audio"),
        (speech, speech, tmp_path / "none", "none is missing; run pesq_tool/build.sh"),
    ):
        assert score(reference, degraded, pesq) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


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


# --- The test set with a program that takes no time -------------------------------------------


def test_scores_have_four_digits_and_a_mixture_without_one_is_no_error(trained, tmp_path, capsys):
    workspace = tmp_path / "w"
    for folder in ("mixture_csvs", "mixed_audios/spectrogram/test", "enh_wavs"):
        shutil.copytree(trained / folder, workspace / folder)
    name = "ru_ivrvoice_nobody.vinyl"
    silent = workspace / f"mixed_audios/spectrogram/test/0db/{name}.wav"
    soundfile.write(silent, np.zeros(soundfile.info(silent).frames), 16000, subtype="FLOAT")
    script = 'echo "(Raw MOS, MOS-LQO): = 1.23456 2.5"; echo "(MOS-LQO): = 1.5"'
    program = fake_pesq(tmp_path / "pesq", script)
    assert calculate_pesq(workspace, "--n_jobs", 1, "--pesq", program) == 0
    rows = read_rows(workspace)
    assert [row["pesq_raw_mos"] for row in rows] == [*["1.235"] * 6, "", "1.235"]
    assert (rows[6]["speech_name"], rows[6]["signal"]) == ("ru_ivrvoice_nobody.wav", "noisy")
    output = capsys.readouterr().out
    assert f"not scored: noisy {name}: {silent} is silent" in output
    assert "8 waves scored" in output and "waves 8/8" in output
    assert stats(workspace) == 0
    vinyl = [line for line in capsys.readouterr().out.splitlines() if line.startswith("vinyl")]
    assert vinyl[0].split()[-1] == "1"


def test_a_reason_that_holds_for_some_measures_names_them(capsys):
    say_not_scored("enhanced a.b", {"stoi": "too short", "estoi": "too short", "si_sdr": "same"})
    assert capsys.readouterr().out.splitlines() == [
        "not scored: enhanced a.b: stoi, estoi: too short",
        "not scored: enhanced a.b: si_sdr: same",
    ]
    say_not_scored("enhanced a.b", dict.fromkeys(MEASURES, "silent"))
    assert capsys.readouterr().out == "not scored: enhanced a.b: silent\n"
