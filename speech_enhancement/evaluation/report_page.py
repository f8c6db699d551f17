"""The text of the report's page: tables, charts and players as HTML and SVG. No files but the template."""

import os
import re
from html import escape
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from speech_enhancement.evaluation.charts import bar_chart, line_chart, ticks
from speech_enhancement.evaluation.measures import MEASURES
from speech_enhancement.workspace import flat_name

Scores = dict[
    tuple[str, str], dict[str, dict[str, float]]
]  # (speech_name, noise_name): signal: measure: score

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report_template.html")
COLUMNS = ("noisy", "enhanced", "gain")
LEADING_MEASURES = ("pesq_raw_mos", "stoi", "si_sdr")  # their charts are seen at once


class Signal(NamedTuple):
    """A wave of a test file and its picture, which begins and is wide as fractions of the wave's length."""

    label: str
    wave: str
    picture: str
    begin: float
    width: float


class TestFile(NamedTuple):
    """A mixture of the test set and its signals."""

    number: int
    speech_name: str
    noise_name: str
    duration_s: float
    signals: list[Signal]

    __test__ = False  # no test case, whatever pytest thinks of the name

    def file_names(self) -> list[str]:
        """Return the names of all waves and pictures."""
        return [name for signal in self.signals for name in (signal.wave, signal.picture)]


class LoggedLosses(NamedTuple):
    """What a training recorded: its name, the columns (the first is the iteration) and the rows."""

    tr_name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]


class Page(NamedTuple):
    """All that the page shows."""

    te_snr: float
    measures: list[str]
    scores: Scores
    files: list[TestFile]
    at_snrs: dict[float, Scores]
    curves: dict[LoggedLosses, str]  # the pictures
    colours: list[str]


def page_text(page: Page) -> str:
    """Return the page as HTML; every name in it is escaped."""
    with open(TEMPLATE, encoding="utf-8") as file:
        template = file.read()
    n_noises = len({file.noise_name for file in page.files})
    parts = {
        "snr": f"{page.te_snr:g}",
        "n_files": f"{count(len(page.files), 'test file')}, {count(n_noises, 'noise')}",
        "tiles": tiles(page),
        "summary": summary_table(page),
        "gains": gain_charts(page),
        "gain_against_snr": gain_against_snr(page),
        "training": training(page),
        "scores": score_table(page),
        "colours": ", ".join(page.colours),
        "files": "".join(file_section(file, page) for file in page.files),
    }
    # In one pass: what a name brings in is not searched for places again.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def count(number: int, what: str) -> str:
    """Return "1 noise" or "2 noises"."""
    return f"{number} {what}" + ("" if number == 1 else "s")


# --- Numbers ----------------------------------------------------------------------------------


def scores_by_noise(scores: Scores, measure: str) -> dict[str, np.ndarray]:
    """Return for each noise the scores of the files that have both: (n_files, 3) noisy, enhanced and the gain."""
    rows = {}
    for (_, noise_name), of_file in scores.items():
        of_noise = rows.setdefault(flat_name(noise_name), [])
        noisy, enhanced = (of_file.get(signal, {}).get(measure) for signal in ("noisy", "enhanced"))
        if noisy is not None and enhanced is not None:
            of_noise.append((noisy, enhanced, enhanced - noisy))
    return {noise: np.array(of_noise).reshape(-1, 3) for noise, of_noise in rows.items()}


def average(by_noise: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the mean of the noises' means and the mean of their standard deviations, each (3,), as get_stats does.

    None without any score.
    """
    scored = [values for values in by_noise.values() if len(values)]
    if not scored:
        return None
    means, deviations = (
        [getattr(values, name)(axis=0) for values in scored] for name in ("mean", "std")
    )
    return np.mean(means, axis=0), np.mean(deviations, axis=0)


def label(measure: str) -> str:
    """Return the name of a measure for readers; of one that is not known, its column's."""
    return MEASURES[measure].heading if measure in MEASURES else measure.replace("_", " ")


def decimals(measure: str) -> str:
    """Return the format of a measure's numbers."""
    return f"z.{MEASURES[measure].n_decimals if measure in MEASURES else 3}f"  # z: no negative zero


def lower_is_better(measure: str) -> bool:
    """Return whether a measure counts distortion."""
    return "distortion" in measure


def quality(measure: str, gain: float) -> str:
    """Return the CSS class of a gain: "better", "worse" or none."""
    if float(f"{gain:{decimals(measure)}}") == 0:
        return ""
    return "better" if (gain < 0) == lower_is_better(measure) else "worse"


# --- Tables -----------------------------------------------------------------------------------


def tiles(page: Page) -> str:
    """Return a tile for each measure: noisy, enhanced and gain, averaged over noises."""
    text = []
    for measure in page.measures:
        averages = average(scores_by_noise(page.scores, measure))
        if averages is None:
            continue
        form = decimals(measure)
        noisy, enhanced, gain = averages[0]
        text.append(
            f'<div class="tile"><dt>{escape(label(measure))}</dt><dd><strong class="{quality(measure, gain)}">'
            f"{gain:+{form}}</strong>{noisy:{form}} → {enhanced:{form}}</dd></div>"
        )
    return "".join(text)


def sortable_header(texts: list[str], measures: list[str]) -> str:
    """Return the head of a table: columns of text, then three for each measure; a button in each sorts by it."""

    def heading(column: int, text: str, spoken: str, rows: str = "") -> str:
        return (
            f'<th scope="col" data-column="{column}" aria-sort="none"{rows}>'
            f'<button type="button" aria-label="sort by {escape(spoken)}">{escape(text)}</button></th>'
        )

    first = [heading(column, text, text, ' rowspan="2"') for column, text in enumerate(texts)]
    groups = [
        f'<th scope="colgroup" colspan="3">{escape(label(measure))}</th>' for measure in measures
    ]
    pairs = [(measure, name) for measure in measures for name in COLUMNS]
    second = [
        heading(column, name, f"{label(measure)}, {name}")
        for column, (measure, name) in enumerate(pairs, len(texts))
    ]
    return f"<thead><tr>{''.join(first + groups)}</tr><tr>{''.join(second)}</tr></thead>"


def number_cell(value: float | None, text: str, css: str = "") -> str:
    """Return a cell with a number that the table is sorted by; None is an empty one."""
    if value is None:
        return '<td class="number" data-value="">–</td>'
    return f'<td class="number {css}" data-value="{value:.6g}">{text}</td>'


def score_table(page: Page) -> str:
    """Return the table of scores, a row for each test file."""
    rows = []
    for file in page.files:
        cells = [
            f'<td><a href="#file-{file.number}">{escape(file.speech_name)}</a></td><td>{escape(file.noise_name)}</td>'
        ]
        for measure in page.measures:
            noisy, enhanced, gain = file_scores(page, file, measure)
            form = decimals(measure)
            cells += [number_cell(value, f"{value or 0:{form}}") for value in (noisy, enhanced)]
            cells.append(number_cell(gain, f"{gain or 0:+{form}}", quality(measure, gain or 0)))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    header = sortable_header(["speech", "noise"], page.measures)
    return (
        f'<table class="sortable" id="scores-table">{header}<tbody>{"".join(rows)}</tbody></table>'
    )


def file_scores(
    page: Page, file: TestFile, measure: str
) -> tuple[float | None, float | None, float | None]:
    """Return the scores of noisy and enhanced speech and the gain; None where there is none."""
    of_file = page.scores[file.speech_name, file.noise_name]
    noisy, enhanced = (of_file.get(signal, {}).get(measure) for signal in ("noisy", "enhanced"))
    return noisy, enhanced, None if noisy is None or enhanced is None else enhanced - noisy


def summary_table(page: Page) -> str:
    """Return the table of each noise: mean and standard deviation over files, and their averages below."""
    by_measure = {measure: scores_by_noise(page.scores, measure) for measure in page.measures}
    n_files = {}
    for _, noise_name in page.scores:
        n_files[flat_name(noise_name)] = n_files.get(flat_name(noise_name), 0) + 1
    rows = []
    for noise, number in n_files.items():
        cells = [f"<td>{escape(noise)}</td>", number_cell(number, str(number))]
        for measure, by_noise in by_measure.items():
            values = by_noise[noise]
            statistics = (values.mean(axis=0), values.std(axis=0)) if len(values) else None
            cells += statistics_cells(statistics, measure, decimals(measure))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    foot = ["<td>Avg.</td>", number_cell(len(page.scores), str(len(page.scores)))]
    for measure, by_noise in by_measure.items():
        foot += statistics_cells(average(by_noise), measure, decimals(measure))
    return (
        f'<table class="sortable">{sortable_header(["noise", "files"], page.measures)}<tbody>{"".join(rows)}</tbody>'
        f"<tfoot><tr>{''.join(foot)}</tr></tfoot></table>"
    )


def statistics_cells(
    statistics: tuple[np.ndarray, np.ndarray] | None, measure: str, form: str
) -> list[str]:
    """Return three cells, noisy, enhanced and gain, each with mean and standard deviation."""
    if statistics is None:
        return [number_cell(None, "")] * 3
    cells = []
    for name, mean, std in zip(COLUMNS, *statistics, strict=True):
        sign, css = ("+", quality(measure, mean)) if name == "gain" else ("", "")
        cells.append(number_cell(mean, f"{mean:{sign}{form}} <small>± {std:{form}}</small>", css))
    return cells


# --- Charts -----------------------------------------------------------------------------------


def in_measures(charts: dict[str, str]) -> str:
    """Return the charts of the leading measures, and those of the others folded away."""
    figures = {
        measure: f'<figure class="chart"><figcaption>{escape(label(measure))}'
        f"{' (lower is better)' if lower_is_better(measure) else ''}</figcaption>{chart}</figure>"
        for measure, chart in charts.items()
    }
    leading = [figures.pop(measure) for measure in LEADING_MEASURES if measure in figures]
    shown, folded = (leading, figures.values()) if leading else (figures.values(), [])
    text = f'<div class="charts">{"".join(shown)}</div>'
    if folded:
        text += f'<details><summary>Other measures</summary><div class="charts">{"".join(folded)}</div></details>'
    return text


def gain_charts(page: Page) -> str:
    """Return a bar chart of the gain per noise for each measure."""
    charts = {}
    for measure in page.measures:
        scored = {
            noise: values[:, 2]
            for noise, values in scores_by_noise(page.scores, measure).items()
            if len(values)
        }
        if scored:
            statistics = [
                (noise, float(gains.mean()), float(gains.std())) for noise, gains in scored.items()
            ]
            bars = [(noise, mean, std, quality(measure, mean)) for noise, mean, std in statistics]
            charts[measure] = bar_chart(
                f"gain in {label(measure)} per noise", bars, decimals(measure)
            )
    return in_measures(charts) if charts else "<p>No file has a score.</p>"


def gain_against_snr(page: Page) -> str:
    """Return the section with the gain at each SNR, or nothing where the test set was scored at one alone."""
    charts = {}
    for measure in page.measures:
        averages = {
            snr: average(scores_by_noise(scores, measure)) for snr, scores in page.at_snrs.items()
        }
        points = [
            (snr, float(both[0][2]), float(both[1][2]))
            for snr, both in averages.items()
            if both is not None
        ]
        if len(points) > 1:
            charts[measure] = line_chart(
                f"gain in {label(measure)} against SNR", points, "dB", decimals(measure)
            )
    if not charts:
        return ""
    return (
        '<section id="snr"><h2>Gain against SNR</h2><p>Enhanced less noisy, averaged over noises; the lines through '
        "the points are as long as the noises' mean standard deviation to either side.</p>"
        f"{in_measures(charts)}</section>"
    )


def training(page: Page) -> str:
    """Return the training curves, or a sentence where there are none."""
    if not page.curves:
        return "<p>The workspace has no training statistics, so there is no curve to show.</p>"
    return "".join(
        f'<figure class="training"><img loading="lazy" src="{link(picture)}" '
        f'alt="Losses against the iteration"><figcaption>trained at {escape(losses.tr_name)}</figcaption></figure>'
        for losses, picture in page.curves.items()
    )


# --- Players ----------------------------------------------------------------------------------


def link(name: str) -> str:
    """Return the link to a file of the report, relative to the page."""
    return escape(f"files/{quote(name)}")


def file_section(file: TestFile, page: Page) -> str:
    """Return the players and spectrograms of a test file."""
    gains = []
    for measure in page.measures:
        noisy, enhanced, gain = file_scores(page, file, measure)
        if gain is not None:
            form = decimals(measure)
            gains.append(
                f"<li>{escape(label(measure))} {noisy:{form}} → {enhanced:{form}} "
                f'<b class="{quality(measure, gain)}">{gain:+{form}}</b></li>'
            )
    signals = "".join(signal_figure(signal, file) for signal in file.signals)
    marks = "".join(
        f'<span style="left:{100 * tick / file.duration_s:.2f}%">{tick:g} s</span>'
        for tick in ticks(0, file.duration_s, 8)
    )
    return (
        f'<article id="file-{file.number}"><h3>{escape(file.speech_name)} '
        f"<span>in {escape(file.noise_name)}</span></h3>"
        f'<ul class="gains">{"".join(gains) or "<li>not scored</li>"}</ul>{signals}<div class="times" '
        f'aria-hidden="true"><div>{marks}</div></div></article>'
    )


def signal_figure(signal: Signal, file: TestFile) -> str:
    """Return the player of a signal and its spectrogram, which fills the time from 0 to the end of the wave."""
    name = f"{signal.label}: {file.speech_name} in {file.noise_name}"
    return (
        f'<figure class="signal"><figcaption>{escape(signal.label)}</figcaption>'
        f'<audio controls preload="none" src="{link(signal.wave)}" aria-label="{escape(name)}"></audio>'
        '<div class="frequencies" aria-hidden="true"><span>8 kHz</span><span>4</span><span>0</span></div>'
        f'<div class="spectrogram" data-duration="{file.duration_s:.6f}" title="play from here">'
        f'<img loading="lazy" src="{link(signal.picture)}" alt="Spectrogram, {escape(name)}" draggable="false" '
        f'style="left:{100 * signal.begin:.3f}%;width:{100 * signal.width:.3f}%">'
        '<span class="playhead"></span></div></figure>'
    )
