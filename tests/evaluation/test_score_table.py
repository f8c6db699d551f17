"""The tables of scores and of losses: averages against their definition, and small ones."""

import pytest
from conftest import run


def test_the_table_is_the_mean_over_files_and_over_rows(tmp_path, capsys):
    path = tmp_path / "scores/test/2.5db/scores.csv"
    path.parent.mkdir(parents=True)
    lines = ["speech_name,noise_name,signal,pesq_raw_mos,pesq_nb_mos_lqo,pesq_wb_mos_lqo,stoi"]
    values = {
        ("a", "x"): (1.0, 2.0),
        ("b", "x"): (1.5, 3.0),
        ("a", "y z"): (2.0, 2.5),
        ("b", "y z"): ("", 2.5),
    }
    for (speech, noise), (noisy, enhanced) in values.items():
        lines.append(f"{speech}.wav,{noise}.wav,noisy,{noisy},,,")
        lines.append(f"{speech}.wav,{noise}.wav,enhanced,{enhanced},,,")
    path.write_text("\n".join(lines) + "\n")
    assert run("evaluate", "get_stats", "--workspace", tmp_path, "--te_snr", 2.5) == 0
    table = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    table = [[cell.strip() for cell in row if cell.strip()] for row in table]
    assert table[0] == ["Noise(2.5dB)", "PESQ", "unprocessed", "files"]
    assert table[2] == ["x", "2.50 +- 0.50", "1.25 +- 0.25", "2"]
    assert table[3] == [
        "y z",
        "2.50 +- 0.00",
        "2.00 +- 0.00",
        "1",
    ]  # a file without a score leaves the row
    assert table[5] == ["Avg.", "2.50 +- 0.25", "1.62 +- 0.12", "3"]


def scores_file(workspace, *lines):
    path = workspace / "scores/test/0db/scores.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def stats(workspace, *flags):
    return run("evaluate", "get_stats", "--workspace", workspace, "--te_snr", 0, *flags)


@pytest.mark.parametrize(
    "measure, heading, cells",
    [
        ("pesq_raw_mos", "PESQ", ("2.00 +- 0.50", "1.00 +- 0.00")),
        ("stoi", "STOI", ("0.750 +- 0.050", "0.600 +- 0.000")),
        ("si_sdr", "SI-SDR (dB)", ("-3.0 +- 1.0", "-12.5 +- 0.5")),
    ],
)
def test_the_table_of_each_measure(tmp_path, capsys, measure, heading, cells):
    lines = [
        "speech_name,noise_name,signal,pesq_raw_mos,stoi,si_sdr",
        "a.wav,x.wav,noisy,1,0.6,-13",
    ]
    lines += [
        "a.wav,x.wav,enhanced,1.5,0.7,-4",
        "b.wav,x.wav,noisy,1,0.6,-12",
        "b.wav,x.wav,enhanced,2.5,0.8,-2",
    ]
    scores_file(tmp_path, *lines)
    assert stats(tmp_path, "--measure", measure) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{'Noise(0dB)':<16} {heading:<16} {'unprocessed':<16} files",
        "-" * 56,
        f"{'x':<16} {cells[0]:<16} {cells[1]:<16} 2",
        "-" * 56,
        f"{'Avg.':<16} {cells[0]:<16} {cells[1]:<16} 2",
    ]


def test_scores_of_an_earlier_version_have_no_column_of_a_new_measure(tmp_path, capsys):
    path = scores_file(
        tmp_path, "speech_name,noise_name,signal,pesq_raw_mos", "a,b,noisy,1", "a,b,enhanced,2"
    )
    assert stats(tmp_path, "--measure", "estoi") == 2
    assert capsys.readouterr().err.endswith(
        f"{path} has no column estoi; run calculate_pesq again\n"
    )
    assert stats(tmp_path) == 0


# --- Small tables -----------------------------------------------------------------------------


def test_a_score_that_is_no_number_is_refused_with_its_row(tmp_path, capsys):
    header = "speech_name,noise_name,signal,pesq_raw_mos"
    path = scores_file(tmp_path, header, "a.wav,x.wav,noisy,1.5", "a.wav,x.wav,enhanced,nan")
    for field in ("nan", "-inf"):
        path.write_text(path.read_text().replace("nan", field))
        assert stats(tmp_path) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "scores.csv row 3: expected a finite number" in error
        assert repr(field) in error


def test_the_columns_stay_in_line_under_a_long_name_and_without_a_score(tmp_path, capsys):
    long = "a_noise_with_a_long_name_of_its_own"
    lines = ["speech_name,noise_name,signal,pesq_raw_mos"]
    for noise, noisy, enhanced in ((long, 1, 2), ("x", "", 3), ("y", 1, 4)):
        lines += [f"a.wav,{noise}.wav,noisy,{noisy}", f"a.wav,{noise}.wav,enhanced,{enhanced}"]
    scores_file(tmp_path, *lines)
    assert stats(tmp_path) == 0
    table = capsys.readouterr().out.splitlines()
    width = len(long) + 1
    assert [line[width : width + 16].strip() for line in table] == [
        *("PESQ", "-" * 16, "2.00 +- 0.00", "not scored", "4.00 +- 0.00", "-" * 16, "3.00 +- 0.00")
    ]
    assert [line[width + 34 :] for line in table if "-----" not in line] == [
        *("files", "1", "0", "1", "2")
    ]
    assert {len(line) for line in table if "-----" in line} == {len(table[0])}


def test_scores_that_are_all_missing_are_an_error(tmp_path, capsys):
    scores_file(tmp_path, "speech_name,noise_name,signal,stoi", "a,b,noisy,", "a,b,enhanced,1")
    assert stats(tmp_path, "--measure", "stoi") == 2
    assert "holds no score" in capsys.readouterr().err


def stats_file(workspace, *lines):
    path = workspace / "training_stats/0db/stats.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")


def plot(workspace, *flags):
    return run("evaluate", "plot_training_stat", "--workspace", workspace, *flags)


def test_a_training_without_an_evaluation_has_no_curve(tmp_path, capsys):
    stats_file(tmp_path, "iteration,tr_loss,te_loss")
    assert plot(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "stats.csv has a header and no iteration; run train again" in error
    assert not (tmp_path / "figures").exists()


def test_the_iterations_that_are_drawn(tmp_path, capsys, monkeypatch):
    from speech_enhancement.evaluation import figures

    stats_file(
        tmp_path, "iteration,tr_loss,te_loss", *(f"{k},{k}.5,{k}.25" for k in range(0, 9, 2))
    )
    drawn = []
    monkeypatch.setattr(figures, "save_training_curve", lambda *arguments: drawn.append(arguments))
    for flags, iterations in (
        ((), [0, 2, 4, 6, 8]),
        (("--fin_iter", 8), [0, 2, 4, 6]),
        (("--bgn_iter", 2), [2, 4, 6, 8]),
        (("--bgn_iter", 2, "--interval_iter", 4), [2, 6]),
        (("--fin_iter", -1), None),
        (("--fin_iter", 0), None),  # before the first: there is none
        (("--bgn_iter", 1, "--interval_iter", 2), None),
    ):
        drawn.clear()
        assert plot(tmp_path, *flags) == (2 if iterations is None else 0)
        if iterations is None:
            assert "has no iteration in range(" in capsys.readouterr().err and not drawn
        else:
            ((path, found, losses),) = drawn
            assert path.endswith("figures/training_stat_0db.png") and found == iterations
            assert losses == {
                "tr_loss": [k + 0.5 for k in iterations],
                "te_loss": [k + 0.25 for k in iterations],
            }
