"""The report: its waves against the features, its numbers against their definition."""

import csv
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from conftest import MINI, calculate, create, files_below, run
from PIL import Image

from speech_enhancement.data.audio_files import write_wave
from speech_enhancement.data.mixture_features import read_features
from speech_enhancement.data.mixtures import read_mixtures
from speech_enhancement.evaluation import report_files
from speech_enhancement.evaluation.figures import save_plain_spectrogram
from speech_enhancement.evaluation.report_files import place_in_time
from speech_enhancement.evaluation.report_page import Axis, Page, page_text, ticks
from speech_enhancement.evaluation.score_table import ScoreTable
from speech_enhancement.features import stft
from speech_enhancement.workspace import enhanced_path, mixed_audio_path, scores_path

NASTY = "<img src=x onerror=pwned=1>&\"'{{files}}#?%41.wav"  # a file may be called so
HEADER = [
    "speech_name",
    "noise_name",
    "signal",
    "pesq_raw_mos",
    "stoi",
    "log_spectral_distortion",
    "a_new_one",
]
# By file and signal; the last measure is not known, and one score is not defined.
NUMBERS = {
    (0, "noisy"): (1.0, 0.5, 9, 5),
    (0, "enhanced"): (2.0, 0.75, 7, 5.5),
    (1, "noisy"): (1.5, 0.25, 8, 20),
    (1, "enhanced"): (3.0, 0.125, 9, 100),
    (2, "noisy"): (2.0, 0.5, 7, 3),
    (2, "enhanced"): (2.5, 0.5, 7, ""),
    (3, "noisy"): (1.0, 0.5, 6, -7),
    (3, "enhanced"): (0.5, 0.5, 5, -6),
}


def write_scores(workspace, snr=0, numbers=NUMBERS):
    mixtures = read_mixtures(str(workspace), "test")
    rows = [[*mixtures[index][:2], signal, *values] for (index, signal), values in numbers.items()]
    path = scores_path(str(workspace), snr)
    (workspace / "scores/test" / path.split("/")[-2]).mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A workspace with two speech files in two noises, a nasty name among each, scored by hand."""
    folder = tmp_path_factory.mktemp("scored")
    for kind in ("speech", "noise"):
        (folder / kind).mkdir()
        for number, source in enumerate(sorted((MINI / f"test_{kind}").iterdir())):
            shutil.copy(source, folder / kind / (NASTY if number else source.name))
    workspace = folder / "w"
    assert create(workspace, "test", folder / "speech", folder / "noise", "--magnification", 2) == 0
    assert calculate(workspace, "test", folder / "speech", folder / "noise") == 0
    for number, mixture in enumerate(read_mixtures(str(workspace), "test"), start=1):
        mixed = soundfile.read(mixed_audio_path(str(workspace), "test", 0, mixture.name))[0]
        write_wave(
            enhanced_path(str(workspace), 0, mixture.name), number / 2 * mixed
        )  # the fourth has a peak of 2
    write_scores(workspace)
    stats = workspace / "training_stats/5db"
    stats.mkdir(parents=True)
    (stats / "stats.csv").write_text("iteration,tr_loss,te_loss\n0,1.5,1.6\n10,0.5,0.7\n")
    return workspace


@pytest.fixture
def workspace(scored, tmp_path):
    return shutil.copytree(scored, tmp_path / "w", ignore=shutil.ignore_patterns("report"))


@pytest.fixture(scope="module")
def page(scored):
    """The report of the workspace, with the clean speech."""
    assert write_report(scored, "--speech_dir", scored.parent / "speech") == 0
    return scored / "report/index.html"


def write_report(workspace, *flags):
    return run("evaluate", "report", "--workspace", workspace, "--te_snr", 0, *flags)


class Parsed(HTMLParser):
    """The elements of a page, the links in it, the cells of its tables and its text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.links, self.tables, self.text = [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.links += [value for key, value in attributes if key in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data.strip("\n")


def wave_paths(folder, number):
    return [
        next((folder / "files").glob(f"{number:04d}-*.{signal}.wav"))
        for signal in ("noisy", "enhanced", "clean")
    ]


# --- The files --------------------------------------------------------------------------------


def test_every_link_is_to_a_file_of_the_report_or_into_the_page(page):
    parsed = Parsed(page)
    links = {link for link in parsed.links if not link.startswith(("#", "data:"))}
    anchors = {link[1:] for link in parsed.links if link.startswith("#")}
    assert {unquote(link) for link in links} == files_below(page.parent).keys() - {"index.html"}
    assert anchors <= {attributes.get("id") for _, attributes in parsed.elements}
    assert len(links) == 4 * 3 * 2 + 1  # waves and spectrograms, and the training curve
    assert all(re.fullmatch(r"files/[\w.-]+", link, re.ASCII) for link in links)
    assert "http" not in page.read_text(encoding="utf-8")


def test_names_stay_text(page):
    parsed = Parsed(page)
    assert all("onerror" not in attributes for _, attributes in parsed.elements)
    assert [attributes.get("src") == "x" for _, attributes in parsed.elements].count(True) == 0
    assert f"{NASTY} in {NASTY}" in parsed.text
    assert (
        page.read_text(encoding="utf-8").count("<article") == 4
    )  # {{files}} in a name brings nothing in


def test_the_waves_have_one_factor_and_the_clean_speech_its_level_in_the_mixture(scored, page):
    for number, mixture in enumerate(read_mixtures(str(scored), "test"), start=1):
        mixed = soundfile.read(mixed_audio_path(str(scored), "test", 0, mixture.name))[0]
        noisy, enhanced, clean = (
            soundfile.read(path)[0] for path in wave_paths(page.parent, number)
        )
        factor = 1 / max(1, number / 2)
        # Rounding to 16 bits, and their full scale of 32767 instead of 32768.
        np.testing.assert_allclose(noisy, factor * mixed, rtol=0, atol=5e-5)
        np.testing.assert_allclose(enhanced, factor * number / 2 * mixed, rtol=0, atol=5e-5)
        _, speech_magnitude, _ = read_features(str(scored), "test", 0, mixture)
        # White rounding noise of 1/2^15/sqrt(12) rms has about that magnitude in each bin; ten
        # times is far out.
        np.testing.assert_allclose(
            np.abs(stft(clean, 512, 256)), factor * speech_magnitude, rtol=1e-3, atol=1e-4
        )
        assert {soundfile.info(path).subtype for path in wave_paths(page.parent, number)} == {
            "PCM_16"
        }


def test_without_the_speech_folder_the_clean_wave_has_the_mixtures_phase(workspace):
    assert write_report(workspace) == 0
    parsed = Parsed(workspace / "report/index.html")
    assert parsed.text.count("clean (mixture's phase)") == 4
    mixture = read_mixtures(str(workspace), "test")[0]
    clean = soundfile.read(wave_paths(workspace / "report", 1)[2])[0]
    mixture_stft, speech_magnitude, _ = read_features(str(workspace), "test", 0, mixture)
    expected = speech_magnitude * np.exp(1j * np.angle(mixture_stft))
    # No wave has exactly these magnitudes with this phase; the nearest are about 10 dB from it.
    error = np.sum(np.abs(stft(clean, 512, 256) - expected) ** 2) / np.sum(speech_magnitude**2)
    assert error < 0.25


def test_a_spectrogram_shows_a_click_where_it_is_heard(tmp_path):
    audio = np.zeros(16000)
    audio[9000] = 1.0
    magnitudes = np.abs(stft(audio, 512, 256))
    save_plain_spectrogram(str(tmp_path / "s.png"), magnitudes, magnitudes.max())
    picture = np.asarray(Image.open(tmp_path / "s.png"))
    assert (
        picture.shape == (257, len(magnitudes)) and picture.max() == 63 and picture[:, 0].max() == 0
    )
    begin, width = place_in_time(magnitudes, len(audio))
    heard = begin + width * (np.argmax(picture.sum(axis=0)) + 0.5) / picture.shape[1]
    assert heard * len(audio) == pytest.approx(9000, abs=128)  # half a hop


def test_low_frequencies_are_at_the_bottom_and_long_pictures_keep_short_sounds(tmp_path):
    magnitudes = np.full((6500, 257), 1e-6)
    magnitudes[:, 0] = 1.0
    magnitudes[3333, 128] = 1.0
    save_plain_spectrogram(str(tmp_path / "s.png"), magnitudes, 1.0)
    picture = np.asarray(Image.open(tmp_path / "s.png"))
    assert picture.shape == (257, 2000)
    assert picture[256].min() == 63 and picture[128].max() == 63 and np.sum(picture[:256] > 0) == 1


def test_a_rerun_leaves_nothing_of_an_earlier_report(workspace, capsys):
    assert write_report(workspace) == 0
    expected = files_below(workspace / "report")
    (workspace / "report/files/0009-gone.noisy.wav").write_text("")
    (workspace / "report/files/.tmp-0001-cut.noisy.wav").write_text("")
    (workspace / "report/mine.txt").write_text("")
    capsys.readouterr()
    assert write_report(workspace) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == f"report of 4 files -> {workspace}/report/index.html"
    )
    assert files_below(workspace / "report") == {**expected, "mine.txt": b""}


def test_a_report_that_is_killed_has_no_page(workspace, monkeypatch):
    assert write_report(workspace) == 0

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report_files, "write_test_file", killed)
    assert write_report(workspace) == 130  # as Ctrl-C ends a command
    assert not (workspace / "report/index.html").exists()


# --- The numbers ------------------------------------------------------------------------------


def test_the_tables_hold_the_scores_of_the_file_and_their_statistics(page):
    summary, scores = Parsed(page).tables
    assert scores[0] == ["speech", "noise", "PESQ", "STOI", "LSD (dB)", "a new one"]
    assert scores[1] == ["noisy", "enhanced", "gain"] * 4
    assert scores[3][2:8] == ["1.50", "3.00", "+1.50", "0.250", "0.125", "-0.125"]
    assert scores[3][8:] == ["8.00", "9.00", "+1.00", "20.000", "100.000", "+80.000"]
    assert scores[4][-3:] == ["3.000", "–", "–"]
    rows = {row[0]: row[1:] for row in summary[2:]}
    nasty, other = sorted({name for name in rows if name != "Avg."}, key=len, reverse=True)
    # Files 0 and 2 are in one noise, 1 and 3 in the other.
    by_noise = {nasty: rows[nasty], other: rows[other]}
    assert sorted(cells[1] for cells in by_noise.values()) == ["1.25 ± 0.25", "1.50 ± 0.50"]
    assert sorted(cells[3] for cells in by_noise.values()) == ["+0.50 ± 1.00", "+0.75 ± 0.25"]
    assert rows["Avg."][:4] == ["4", "1.38 ± 0.38", "2.00 ± 0.75", "+0.62 ± 0.62"]


def test_less_distortion_is_better(page):
    cells = [
        attributes
        for tag, attributes in Parsed(page).elements
        if tag == "td" and "data-value" in attributes
    ]
    gains = {(cell["class"].split()[-1], cell["data-value"]) for cell in cells}
    assert {
        ("better", "-2"),
        ("worse", "1"),
        ("better", "1"),
        ("worse", "-0.125"),
        ("number", "0"),
    } <= gains


def svg(css, tables):
    """Return the first chart of a page with the gains in PESQ of each table.

    The tables are {SNR: {(speech, noise): gain}}.
    """
    tables = {
        snr: ScoreTable(
            ["pesq_raw_mos"],
            {
                pair: {"noisy": {"pesq_raw_mos": 2.0}, "enhanced": {"pesq_raw_mos": 2.0 + gain}}
                for pair, gain in gains.items()
            },
        )
        for snr, gains in tables.items()
    }
    text = page_text(Page(0, tables[0], [], tables, {}, ["#000000"]))
    return re.search(f'<svg class="{css}".*?</svg>', text, re.DOTALL)[0]


def test_bars_are_to_scale():
    gains = {("p", "a"): 0.5, ("q", "a"): 1.5, ("p", "<b>"): -0.5}
    chart = svg("bars", {0: gains})
    bars = re.findall(r'<rect class="bar (\w+)" x="([\d.]+)%" [^>]*width="([\d.]+)%"', chart)
    (better, right_of, long), (worse, left_of, short) = bars
    assert (better, worse) == ("better", "worse")
    # Numbers have two decimals.
    assert float(long) == pytest.approx(2 * float(short), abs=0.02)
    zero = float(re.search(r'class="zero" x1="([\d.]+)%"', chart)[1])
    assert float(right_of) == zero
    assert float(left_of) + float(short) == pytest.approx(zero, abs=0.02)
    spread = re.search(r'class="spread" x1="([\d.]+)%" x2="([\d.]+)%"', chart)
    begin, end = map(float, spread.groups())
    # A deviation of 0.5 to either side of a mean of 1, whose bar is as long.
    assert end - begin == pytest.approx(float(long), abs=0.02)
    assert (begin + end) / 2 == pytest.approx(zero + float(long), abs=0.02)
    assert "<b>" not in chart and "-0.50 ± 0.00" in chart and "+1.00 ± 0.50" in chart
    assert 'aria-label="gain in PESQ per noise: a +1.00; &lt;b&gt; -0.50"' in chart


def test_deviations_fit_into_the_chart():
    chart = svg("bars", {0: {("p", "a"): -0.5, ("q", "a"): 1.5}})  # a mean of 0.5, 1 to either side
    spread = re.search(r'class="spread" x1="(-?[\d.]+)%" x2="(-?[\d.]+)%"', chart).groups()
    assert 0 < float(spread[0]) < float(spread[1]) < 100


def test_lines_are_to_scale():
    chart = svg("lines", {-5: {("p", "a"): 1}, 0: {("p", "a"): 3}, 5: {("p", "a"): 2}})
    x, y = np.array(re.findall(r'cx="([\d.]+)%" cy="([\d.]+)"', chart), float).T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.02) and x[0] < x[1]
    # One decimal; less is further down.
    assert y[0] - y[1] == pytest.approx(2 * (y[2] - y[1]), abs=0.2) and y[1] < y[2] < y[0]
    pieces = re.findall(
        r'class="curve" x1="([\d.]+)%" y1="([\d.]+)" x2="([\d.]+)%" y2="([\d.]+)"', chart
    )
    np.testing.assert_array_equal(
        np.array(pieces, float), np.stack([x[:-1], y[:-1], x[1:], y[1:]], axis=1)
    )


@pytest.mark.parametrize(
    "values, low, high",
    [([1, 3], 0, 3.12), ([-1, 3], -1.16, 3.16), ([-2, -1], -2.08, 0), ([0], 0, 1)],
)
def test_an_axis_holds_zero_and_a_margin_beyond_the_values(values, low, high):
    axis = Axis(values)
    # Rounding of 64 bits.
    assert (axis.low, axis.high) == pytest.approx((low, high), abs=1e-12)
    assert (axis.place(low), axis.place(high)) == pytest.approx((0, 1), abs=1e-12)


def test_ticks_are_round_numbers_within_the_range():
    assert ticks(0, 3, 6) == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert ticks(-0.13, 0.31) == pytest.approx([-0.1, 0, 0.1, 0.2, 0.3])


def test_gain_against_snr_is_drawn_once_there_are_several(workspace):
    assert write_report(workspace) == 0
    assert "Gain against SNR" not in Parsed(workspace / "report/index.html").text
    write_scores(workspace, 2.5)
    write_scores(workspace, -5)
    (workspace / "scores/test/old notes").mkdir()
    assert write_report(workspace) == 0
    parsed = Parsed(workspace / "report/index.html")
    charts = [
        attributes["aria-label"]
        for tag, attributes in parsed.elements
        if attributes.get("class") == "lines"
    ]
    assert charts[0] == "gain in PESQ against SNR: -5 dB +0.62; 0 dB +0.62; 2.5 dB +0.62"


def test_a_workspace_without_training_says_so(workspace):
    shutil.rmtree(workspace / "training_stats")
    assert write_report(workspace) == 0
    assert "has no training statistics" in Parsed(workspace / "report/index.html").text
