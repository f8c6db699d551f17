"""The benchmarks with tiny numbers: each runs to its end; its tables are means of its scores."""

import csv
import itertools
import json
import re
import sys
import types

import numpy as np
import pytest
from conftest import MINI, ROOT, needs_pesq, run
from small_models import make_model
from test_evaluate import fake_pesq

sys.path.insert(0, str(ROOT / "benchmarks"))

import bursts
import enhance_speed
import frequencies
import own_noise
import peers
import quality
import throughput

from speech_enhancement import parallel

# What the ITU's program prints, with narrow and with wide band.
PESQ_OUTPUT = """case "$*" in
    *+wb) echo "P.862.2 Prediction (MOS-LQO):  = 1.250" ;;
    *) echo "P.862 Prediction (Raw MOS, MOS-LQO):  = 1.500 1.375" ;;
esac"""


def small_recipe(name):
    """Return a shipped recipe with a small network, as nested dictionaries."""
    recipe = RECIPE_OF(name)
    recipe["network"] |= {"hidden_layers": 1, "hidden_units": 8}
    return recipe


RECIPE_OF = quality.recipe_dict


@pytest.fixture
def corpus(tmp_path):
    """A corpus of two or three files in each folder, links to the mini data."""
    folder = tmp_path / "corpus"
    for name, source, n_files in (
        ("train_speech", "train_speech", 3),
        ("train_noise", "train_noise", 2),
        ("train_noise_free", "train_noise", 2),
        ("test_speech", "test_speech", 2),
        ("test_noise", "test_noise", 1),
    ):
        (folder / name).mkdir(parents=True)
        for path in sorted((MINI / source).iterdir())[:n_files]:
            (folder / name / path.name).symlink_to(path)
    return folder


@pytest.fixture
def pesq(tmp_path):
    return fake_pesq(tmp_path / "pesq", PESQ_OUTPUT)


@pytest.fixture
def logmmse(monkeypatch):
    """A stand-in for the package logmmse that leaves the audio as it is."""
    module = types.ModuleType("logmmse")
    module.logmmse = lambda audio, rate: audio
    monkeypatch.setitem(sys.modules, "logmmse", module)


@pytest.fixture
def one_core(monkeypatch):
    """Everything in this process: starting others beside a deep-learning library takes seconds."""
    for module in (parallel, throughput):
        monkeypatch.setattr(module, "n_cores", lambda: 1)


def table_rows(text):
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()]


# --- quality.py and peers.py ------------------------------------------------------------------


def test_quality_trains_enhances_scores_and_prints(
    corpus, pesq, logmmse, one_core, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(quality, "SNRS", (0, 5))
    monkeypatch.setattr(quality, "recipe_dict", small_recipe)
    out = tmp_path / "out"
    flags = ["--corpus", corpus, "--out", out, "--pesq", pesq, "--n_iterations", 2]
    names = ["logmmse", "+ mask"]
    quality.main([*map(str, flags), "--only", *names])
    rows = table_rows(capsys.readouterr().out)
    assert [row[0] for row in rows if row[1:2] == ["1.50"]] == [
        *("unprocessed", "logmmse", "plus_mask"),  # at 0 dB
        *("unprocessed", "logmmse"),  # at 5 dB, where the ladder is not scored
    ]
    with open(out / "quality.csv", encoding="utf-8") as file:
        scores = list(csv.DictReader(file))
    assert len(scores) == 2 * 5
    by_system = {(row["system"], row["snr"]): float(row["si_sdr"]) for row in scores}
    # log-MMSE's stand-in leaves the mixture as it is; 4 digits are kept.
    assert by_system["logmmse", "5.0"] == by_system["unprocessed", "5.0"]
    assert by_system["unprocessed", "5.0"] == pytest.approx(5, abs=0.5)
    assert (out / "gain.png").stat().st_size > 1000
    # Run again, it does nothing that was done.
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*/*") if path.is_file()}
    quality.main([*map(str, flags), "--only", *names])
    assert before and all(path.stat().st_mtime_ns == time for path, time in before.items())


def score_rows():
    """Return rows of quality.csv by hand: two speakers in two noises, one with a single score."""
    rows = []
    for system, values in {
        "unprocessed": {("a", "noisex_1"): 1.0, ("a", "street"): 2.0, ("b", "noisex_1"): 1.5},
        "ours": {("a", "noisex_1"): 1.5, ("a", "street"): 2.25, ("b", "noisex_1"): 2.5},
    }.items():
        for (speech, noise), value in values.items():
            scores = dict.fromkeys(quality.MEASURES, value)
            rows.append({"system": system, "snr": 0, "speech": speech, "noise": noise, **scores})
    return rows


def test_the_table_of_quality_has_means_gains_and_their_interval(capsys):
    quality.print_table(score_rows(), 0, "")
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "0 dB, all noises, 3 mixtures"
    unprocessed, ours = table_rows("\n".join(lines[3:]))
    assert unprocessed[:3] == ["unprocessed", "1.50", "+0.00"]
    assert unprocessed[3] == "+0.00 to +0.00"
    # The gains of the speakers are (0.5 + 0.25) / 2 and 1; of two, both are drawn twice a quarter
    # of the time.
    assert ours == ["ours", "2.08", "+0.58", "+0.38 to +1.00", "2.08", "2.08", "2.083", "2.1"]
    quality.print_table(score_rows(), 0, "noisex")
    assert "0 dB, noises noisex*, 2 mixtures" in capsys.readouterr().out
    quality.print_table(score_rows(), 5, "")
    assert capsys.readouterr().out == ""


def test_the_interval_is_that_of_the_mean():
    gains = {str(number): [value] for number, value in enumerate(np.linspace(-1, 3, 400))}
    low, high = quality.bootstrap_interval(gains)
    # A mean of 400 values of standard deviation 1.157 has one of 0.0579, so 95 % lie within 0.113
    # of 1; 2000 draws give a quantile of 2.5 % with a standard deviation of 0.0035.
    assert (low, high) == pytest.approx((1 - 0.113, 1 + 0.113), abs=0.015)


def test_the_ladder_goes_from_regression_to_the_default_one_idea_at_a_time():
    names = [*quality.LADDER]
    recipes = [json.loads(json.dumps(quality.ladder_recipe(name))) for name in names]
    assert recipes[0]["target"]["output"] == "log_magnitude"
    as_lists = json.loads(json.dumps(quality.recipe_dict("default")))  # a recipe has tuples
    assert recipes[-1] == as_lists
    for row, (before, after) in enumerate(itertools.pairwise(recipes), start=1):
        changed = {section for section in after if after[section] != before[section]}
        assert changed == set(quality.LADDER[names[row]])


def test_a_peer_is_scored_without_its_delay_cold_and_warm(
    corpus, pesq, tmp_path, monkeypatch, capsys
):
    def slow_starter(audio):
        """Return the second half at half its level, the first with other noise, 7 samples later."""
        half = len(audio) // 2
        other = 0.1 * np.random.default_rng(0).standard_normal(half)
        return np.concatenate([np.zeros(7), audio[:half] + other, 0.5 * audio[half:]])

    monkeypatch.setitem(peers.PEERS, "noisereduce", slow_starter)
    flags = ["--corpus", corpus, "--out", tmp_path / "out", "--pesq", pesq]
    peers.main([*map(str, flags), "--only", "noisereduce"])
    text = capsys.readouterr().out
    assert re.search(r"noisereduce +7 samples +\d", text)
    rows = {row[0]: row for row in table_rows(text)}
    # Warm, the mixture comes back at half its level, which is neither better nor worse.
    assert rows["noisereduce warm"][1:] == rows["unprocessed"][1:] != rows["noisereduce"][1:]


def test_frames_of_peers_are_whole_and_48_khz_comes_back():
    assert peers.split_frames(np.arange(1, 6), 4).tolist() == [[1, 2, 3, 4], [5, 0, 0, 0]]
    tone = np.sin(2 * np.pi * 440 / 16000 * np.arange(16000))
    back = peers.from_48_khz(peers.at_48_khz(tone))
    assert len(back) == 16000 + peers.MAX_DELAY
    # The resampler rings at the ends.
    np.testing.assert_allclose(back[500:15500], tone[500:15500], rtol=0, atol=1e-3)


def test_shots_are_sudden_and_have_silence_between_them():
    for seed in range(20):
        wave = bursts.shots(np.random.default_rng(seed), 80_000)
        is_on = wave != 0
        starts = np.flatnonzero(is_on[1:] & ~is_on[:-1])
        assert len(wave) == 80_000 and 5 <= len(starts) <= 60 and np.mean(is_on) < 0.6
        power = np.abs(np.fft.rfft(wave)) ** 2
        assert power[40_000 * 5 // 8 :].sum() < 0.05 * power.sum()  # above 5 kHz


@needs_pesq
def test_bursts_scores_each_set_and_takes_delays_out(tmp_path, capsys, monkeypatch):
    late = {"late": lambda audio: np.concatenate([np.zeros(300), audio])}
    monkeypatch.setattr(bursts, "SYSTEMS", {**bursts.SYSTEMS, **late})
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/test_speech").symlink_to(MINI / "test_speech")
    flags = ["--corpus", tmp_path / "corpus", "--noise_dir", MINI / "test_noise"]
    other = str(make_model(tmp_path / "other.keras"))
    flags += ["--model", other, "--out", tmp_path / "o", "--only", "unprocessed", "late"]
    bursts.main([*map(str, flags)])
    lines = capsys.readouterr().out.splitlines()
    line = lines[-3].split("|")
    assert [cell.strip() for cell in line[1:2] + line[4:5]] == ["unprocessed", "4.50 / 1.000"]
    head, *rows = (tmp_path / "o/bursts.csv").read_text().splitlines()
    assert head == "system,set,pesq_raw_mos,stoi" and len(rows) == 3 * 3 * 2
    assert [row.split(",")[1] for row in rows[:3]] == ["shots", "recordings", "clean"]
    # The wave is the same once the delay is out.
    scores = [row.split(",")[1:] for row in rows]
    assert scores[:6] == scores[6:12] != scores[12:]
    assert other in lines[-1]


def test_frequencies_finds_the_band_of_an_error(corpus, tmp_path, capsys, monkeypatch):
    def with_tone(frequency, delay=0):
        def system(audio):
            tone = np.sin(2 * np.pi * frequency / 16000 * np.arange(len(audio)))
            tone *= 0.1 * np.sqrt(2 * np.mean(audio**2))
            return np.concatenate([np.zeros(delay), audio + tone])

        return system

    systems = {"unprocessed": lambda audio: audio}
    systems |= {"rumble": with_tone(30), "whistle": with_tone(1000, delay=200)}
    monkeypatch.setattr(bursts, "SYSTEMS", systems)
    flags = ["--corpus", str(corpus), "--out", str(tmp_path / "o"), "--snr", "60"]
    frequencies.main(flags)
    rows = {row[0]: row[1:] for row in table_rows(capsys.readouterr().out)}
    # At 60 dB the error of unprocessed speech is the noise, and a tone of -20 dB is all of it.
    assert float(rows["unprocessed"][0]) == pytest.approx(60, abs=0.5)
    # Speech has a little at these frequencies, which the tones meet in or out of phase.
    full, above = ([float(rows[name][k]) for name in ("rumble", "whistle")] for k in (0, 1))
    assert full == pytest.approx([20, 20], abs=0.2)
    # Below 100 Hz lies a quarter of the energy of one utterance, which goes: 1.4 dB, mean 0.7.
    assert above[0] > 45 and above[1] == pytest.approx(19.3, abs=0.2)
    assert rows["rumble"][2:] == ["100 %", "0 %", "0 %", "0 %"]
    assert rows["whistle"][2:] == ["0 %", "0 %", "100 %", "0 %"]
    head, *lines = (tmp_path / "o/frequencies.csv").read_text().splitlines()
    assert head.startswith("system,speech,noise,si_sdr,si_sdr_above_100_hz,0 to 100 Hz,")
    assert len(lines) == 3 * 2 and lines[2].split(",")[0] == "rumble"


@needs_pesq
def test_own_noise_gives_back_what_the_clean_speech_lost(corpus, tmp_path, capsys, monkeypatch):
    def late(audio):
        return np.concatenate([np.zeros(200), audio])

    systems = {"quieter": lambda audio: late(0.25 * audio), "late": late}
    monkeypatch.setattr(bursts, "SYSTEMS", systems)
    own_noise.main(["--corpus", str(corpus), "--out", str(tmp_path / "o"), "--snr", "10"])
    rows = {tuple(row[:2]): row[2:] for row in table_rows(capsys.readouterr().out)[2:]}
    (noise,) = {noise for _, noise in rows} - {"all"}
    sdr = {name: [float(cell.split()[-1]) for cell in rows[name, noise]] for name, _ in rows}
    # A quarter of the mixture and three of the speech: the noise is 12 dB lower. The sums of speech
    # and noise are a little correlated.
    assert sdr["quieter"] == pytest.approx([10, 10, 22], abs=0.5)
    assert sdr["late"] == pytest.approx([10, 10, 10], abs=0.5)
    assert rows["late", noise][1] == rows["late", noise][2]

    head, *lines = (tmp_path / "o/own_noise.csv").read_text().splitlines()
    assert head == "system,speech,noise,signal,pesq_raw_mos,stoi,si_sdr" and len(lines) == 12
    values = [float(line.split(",")[6]) for line in lines if line.startswith("late,")]
    last = [float(cell.split()[-1]) for cell in rows["late", "all"]]
    assert last == pytest.approx(np.reshape(values, (2, 3)).mean(axis=0), abs=0.05)  # rounding


@pytest.mark.parametrize("program", [quality, peers, bursts, frequencies, own_noise, throughput])
def test_flags_of_benchmarks_that_cannot_be(program, capsys):
    for flags in ([], ["--corpus", "c", "--out", "o", "--only", "nothing"]):
        with pytest.raises(SystemExit) as stopped:
            program.main(flags)
        assert stopped.value.code == 2 and "usage:" in capsys.readouterr().err


# --- enhance_speed.py and throughput.py -------------------------------------------------------


@pytest.mark.parametrize("bfloat16", [True, False])
def test_enhance_speed_prints_each_system(bfloat16, logmmse, monkeypatch, capsys):
    monkeypatch.setattr(enhance_speed.keras_backend, "has_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(enhance_speed, "DURATION_S", 2)
    enhance_speed.main([])
    head, _, *rows = table_rows(capsys.readouterr().out)
    assert len(head) == 3
    assert [row[0] for row in rows] == [
        "log-MMSE, one core",
        "`enhance`, the two models for files",
        *["`enhance`, the two with `--precision bfloat16`"] * bfloat16,
        "`enhance`, the first of them",
        "`enhance`, 2048-unit network",
    ]
    assert all(float(row[1]) > 0 for row in rows)


def test_throughput_prints_a_table_for_each_part(corpus, one_core, tmp_path, monkeypatch, capsys):
    def in_this_process(script, step, *flags):
        assert run(script, step, *flags) == 0
        return 1.0, 100.0

    recipe = tmp_path / "tiny.toml"
    quality.write_recipe(recipe, small_recipe("original"))
    for name, value in {
        "run": in_this_process,
        "RECIPE": str(recipe),
        "N_MIXTURES": (2, 4),
        "N_WARM_UP": 1,
        "N_STEPS": 1,
        "N_ITERATIONS": 1,
        "HOURS": (0.01, 0.02),
        "CUT_S": 1,
        "ROOT": tmp_path,
    }.items():
        monkeypatch.setattr(throughput, name, value)
    fake_pesq(tmp_path / "pesq", PESQ_OUTPUT)
    throughput.main(["--corpus", str(corpus), "--out", str(tmp_path / "out")])
    rows = {row[0]: row[1:] for row in table_rows(capsys.readouterr().out) if len(row) > 1}
    assert {"2 mixtures of 1 s", "4 mixtures of 1 s", "data.h5", "on the fly"} <= rows.keys()
    assert {"shipped model", "one job"} <= rows.keys()


def test_throughput_measures_a_step_as_a_process_of_its_own(corpus, tmp_path):
    flags = ["--workspace", tmp_path / "w", "--data_type", "test"]
    flags += ["--speech_dir", corpus / "test_speech", "--noise_dir", corpus / "test_noise"]
    seconds, memory = throughput.run("prepare_data", "create_mixture_csv", *flags)
    assert seconds > 0 and memory > 10 and (tmp_path / "w/mixture_csvs/test.csv").exists()
    with pytest.raises(SystemExit, match="failed"):
        throughput.run("prepare_data", "create_mixture_csv", *flags[:-1], tmp_path / "nowhere")
