"""The text of the report's page: what its template shows, as numbers. No files but the template."""

import os
from collections import Counter
from typing import NamedTuple
from urllib.parse import quote

from speech_enhancement.evaluation.measures import MEASURES
from speech_enhancement.evaluation.score_table import (
    ScoreTable,
    Statistics,
    average,
    statistics_by_noise,
)
from speech_enhancement.workspace import flat_name

TEMPLATE = "report_template.html"
LEADING_MEASURES = ("pesq_raw_mos", "stoi", "si_sdr")  # their charts are seen at once


class Signal(NamedTuple):
    """A wave of a test file and its picture: where that begins, and its width, in waves."""

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

    @property
    def key(self) -> tuple[str, str]:
        """What its scores are found by."""
        return self.speech_name, self.noise_name

    def file_names(self) -> list[str]:
        """Return the names of all waves and pictures."""
        return [name for signal in self.signals for name in (signal.wave, signal.picture)]


class Page(NamedTuple):
    """All that the page shows."""

    te_snr: float
    table: ScoreTable
    files: list[TestFile]
    at_snrs: dict[float, ScoreTable]
    curves: dict[str, str]  # name of the training: picture
    colours: list[str]


class ShownMeasure:
    """A column of scores.csv as the page shows it.

    Args:
      name: of the column, known or not.
      page: what is shown.
    """

    def __init__(self, name: str, page: Page):
        known = MEASURES.get(name)
        self.name = name
        self.label = known.heading if known else name.replace("_", " ")
        self.n_decimals = known.n_decimals if known else 3
        self.lower_is_better = "distortion" in name
        self.by_noise = statistics_by_noise(page.table, name)
        self.average = average(self.by_noise)
        of_snrs = {
            snr: average(statistics_by_noise(table, name)) for snr, table in page.at_snrs.items()
        }
        self.at_snrs = {snr: one for snr, one in of_snrs.items() if one is not None}

    def text(self, value: float, sign: str = "") -> str:
        """Return a score, or with the sign "+" a gain, as text."""
        return f"{value:{sign}z.{self.n_decimals}f}"  # z: no negative zero

    def quality(self, gain: float) -> str:
        """Return the CSS class of a gain: "better", "worse" or none."""
        if float(self.text(gain)) == 0:
            return ""
        return "better" if (gain < 0) == self.lower_is_better else "worse"


class Axis:
    """A range that holds values and 0, a little wider than they are, to draw them in."""

    def __init__(self, values: list[float]):
        low, high = min(0.0, *values), max(0.0, *values)
        margin = 0.04 * (high - low) or 1.0
        self.low = low - margin * (low < 0)
        self.high = high + margin * (high > 0 or low == 0)

    def place(self, value: float) -> float:
        """Return where a value lies, from 0 to 1."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return the round numbers to mark."""
        return ticks(self.low, self.high)


def gain_axis(statistics: list[Statistics]) -> Axis:
    """Return an axis for gains and their deviations."""
    return Axis([one.mean[2] + sign * one.std[2] for one in statistics for sign in (-1, 1)])


def ticks(low: float, high: float, n_most: int = 6) -> list[float]:
    """Return round numbers from low to high, at most about n_most."""
    from matplotlib.ticker import MaxNLocator

    values = MaxNLocator(n_most, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(value) + 0.0 for value in values if low - 1e-9 <= value <= high + 1e-9]


def page_text(page: Page) -> str:
    """Return the page as HTML; every name in it is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    measures = [ShownMeasure(name, page) for name in page.table.measures]
    environment = Environment(
        loader=FileSystemLoader(os.path.dirname(os.path.abspath(__file__))),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        page=page,
        measures=measures,
        measures_at_several_snrs=[measure for measure in measures if len(measure.at_snrs) > 1],
        leading_measures=LEADING_MEASURES,
        n_files_of_noises=Counter(flat_name(noise) for _, noise in page.table.of_files),
        gain_axis=gain_axis,
        ticks=ticks,
        link=lambda name: f"files/{quote(name)}",  # relative to the page
        counted=lambda number, what: f"{number} {what}" + ("" if number == 1 else "s"),
    )
