"""The table of scores, scores.csv: reading it, its averages, and printing them."""

import math
from typing import NamedTuple

import numpy as np

from speech_enhancement.errors import InputError
from speech_enhancement.evaluation.measures import MEASURES
from speech_enhancement.files import parse_number, read_table
from speech_enhancement.workspace import (
    KEY_COLUMNS,
    SIGNALS,
    flat_name,
    require_training,
    scores_path,
    snr_name,
)


class ScoreTable(NamedTuple):
    """The scores of a test set: the measures, named as the columns, and the scores of each file.

    `of_files` has for each (speech_name, noise_name) and each signal (noisy, enhanced) the scores
    by measure, without those that are not defined.
    """

    measures: list[str]
    of_files: dict[tuple[str, str], dict[str, dict[str, float]]]

    def of_file(
        self, key: tuple[str, str], measure: str
    ) -> tuple[float | None, float | None, float | None]:
        """Return the scores of noisy and enhanced speech and the gain; None where there is none."""
        signals = self.of_files[key]
        noisy, enhanced = (signals.get(signal, {}).get(measure) for signal in SIGNALS)
        return noisy, enhanced, None if noisy is None or enhanced is None else enhanced - noisy


class Statistics(NamedTuple):
    """Mean and standard deviation of noisy, enhanced and gain, each (3,), over n_files."""

    mean: np.ndarray
    std: np.ndarray
    n_files: int


def read_score_table(path: str) -> ScoreTable:
    """Read scores.csv with whatever measures it has.

    Raises:
      InputError: it is missing or malformed, or a score is not finite.
    """
    header, rows = read_table(path, ",", made_by="calculate_pesq")
    n_keys = len(KEY_COLUMNS)
    if header[:n_keys] != KEY_COLUMNS or len(header) == n_keys:
        raise InputError(
            f"{path}: expected the header {KEY_COLUMNS} and measures, found {header}; "
            "run calculate_pesq again"
        )

    measures, of_files = header[n_keys:], {}
    for where, (speech_name, noise_name, signal, *fields) in rows:
        if signal not in SIGNALS:
            raise InputError(
                f"{where}: expected the signal {' or '.join(SIGNALS)}, found {signal!r}; "
                "fix the row"
            )
        of_file = of_files.setdefault((speech_name, noise_name), {})
        of_file[signal] = {
            name: _finite_number(field, where)
            for name, field in zip(measures, fields, strict=True)
            if field
        }
    return ScoreTable(measures, of_files)


def _finite_number(field: str, where: str) -> float:
    number = parse_number(field, where)
    if not math.isfinite(number):
        raise InputError(
            f"{where}: expected a finite number, or nothing where there is no score, "
            f"found {field!r}; fix the row or run calculate_pesq again"
        )
    return number


def statistics_by_noise(table: ScoreTable, measure: str) -> dict[str, Statistics | None]:
    """Return the statistics over each noise's files with both scores; None where none has."""
    by_noise = {}
    for key in table.of_files:
        scores = table.of_file(key, measure)
        of_noise = by_noise.setdefault(flat_name(key[1]), [])
        if None not in scores:
            of_noise.append(scores)
    return {
        noise: Statistics(np.mean(rows, axis=0), np.std(rows, axis=0), len(rows)) if rows else None
        for noise, rows in by_noise.items()
    }


def average(by_noise: dict[str, Statistics | None]) -> Statistics | None:
    """Return the means of the noises' means and of their deviations; None without a score."""
    scored = [statistics for statistics in by_noise.values() if statistics is not None]
    if not scored:
        return None
    means, deviations, n_files = zip(*scored, strict=True)
    return Statistics(np.mean(means, axis=0), np.mean(deviations, axis=0), sum(n_files))


def get_stats(
    workspace: str,
    te_snr: float,
    measure: str = "pesq_raw_mos",
    tr_snr: list[float] | None = None,
    tr_snr_range: list[float] | None = None,
) -> None:
    """Print the averages of a measure: a row for each noise, mean +- standard deviation over files.

    `Avg.` is the mean of the rows' means +- the mean of their deviations. Files without a score
    are left out.

    Args:
      workspace: folder with scores/.
      te_snr: signal-to-noise ratio of the test mixtures in dB.
      measure: one of measures.MEASURES.
      tr_snr, tr_snr_range: of the training; only a check that there is one, since the scores are
        those of the waves that inference wrote last.
    Raises:
      InputError: there are no scores, or no column of this measure.
    """
    require_training(workspace, tr_snr, tr_snr_range)
    path = scores_path(workspace, te_snr)
    table = read_score_table(path)
    if measure not in table.measures:
        raise InputError(f"{path} has no column {measure}; run calculate_pesq again")
    by_noise = statistics_by_noise(table, measure)
    total = average(by_noise)
    if total is None:
        raise InputError(f"{path} holds no score; listen to the enhanced waves")

    first_width = max(16, *map(len, by_noise))
    layout = f"{{:<{first_width}}} {{:<16}} {{:<16}} {{}}"
    line = "-" * (first_width + 40)
    heading, _, n_decimals = MEASURES[measure]

    corner = f"Noise({snr_name(te_snr).replace('db', 'dB')})"
    print(layout.format(corner, heading, "unprocessed", "files"))
    print(line)
    for noise, statistics in by_noise.items():
        print(layout.format(noise, *_cells(statistics, n_decimals)))
    print(line)
    print(layout.format("Avg.", *_cells(total, n_decimals)))


def _cells(statistics: Statistics | None, n_decimals: int) -> list:
    """Return "1.36 +- 0.05" of enhanced and of noisy speech, and the number of files."""
    if statistics is None:
        return ["not scored", "not scored", 0]
    noisy, enhanced, _ = (
        f"{mean:z.{n_decimals}f} +- {std:.{n_decimals}f}"
        for mean, std in zip(statistics.mean, statistics.std, strict=True)
    )
    return [enhanced, noisy, statistics.n_files]
