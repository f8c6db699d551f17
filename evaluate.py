"""Evaluate: draw the training curve, score the enhanced waves, print the table, write the report."""

import argparse
import os

import numpy as np

from speech_enhancement.command_line import add_step, decibels, positive_int, run_step
from speech_enhancement.errors import InputError, MissingFileError
from speech_enhancement.evaluation.measures import MEASURES, require_pesq
from speech_enhancement.evaluation.report import report
from speech_enhancement.files import write_text
from speech_enhancement.progress import say, track
from speech_enhancement.workspace import (
    KEY_COLUMNS,
    SIGNALS,
    csv_text,
    find_training,
    flat_name,
    parse_number,
    read_mixtures,
    read_table,
    scores_path,
    snr_name,
    training_figure_path,
    training_stats_path,
)

PESQ = os.path.join(
    os.path.dirname(os.path.realpath(__file__)), "pesq"
)  # where pesq_tool/build.sh puts it
MEASURE_HELP = "column of scores.csv: PESQ in MOS, STOI and ESTOI up to 1, the other three in dB"
MAX_UNSCORABLE = 0.05  # share of files; more of them are an error

# --- plot_training_stat -----------------------------------------------------------------------


def plot_training_stat(
    workspace: str,
    tr_snr: list[float] | None = None,
    bgn_iter: int = 0,
    fin_iter: int | None = None,
    interval_iter: int = 1,
) -> None:
    """Draw the losses against the iteration.

    Args:
      workspace: folder with training_stats/; the picture goes to figures/.
      tr_snr: signal-to-noise ratios of the training in dB; None takes the only training there is.
      bgn_iter, fin_iter, interval_iter: the iterations range(bgn_iter, fin_iter, interval_iter);
        fin_iter itself is left out; None draws to the end.
    Raises:
      InputError: no recorded iteration is among them.
    """
    from speech_enhancement.evaluation.figures import save_training_curve

    tr_name = find_training(workspace, tr_snr)
    source = training_stats_path(workspace, tr_name)
    columns, rows = read_table(source, ",", made_by="train")
    recorded = [[parse_number(field, where) for field in fields] for where, fields in rows]
    fin_iter = fin_iter or 1 + int(max(row[0] for row in recorded))
    stats = [row for row in recorded if row[0] in range(bgn_iter, fin_iter, interval_iter)]
    if not stats:
        found = ", ".join(f"{row[0]:g}" for row in recorded) or "none"
        raise InputError(
            f"{source} has no iteration in range({bgn_iter}, {fin_iter}, {interval_iter}); it has {found}"
        )
    path = training_figure_path(workspace, tr_name)
    iterations, *losses = zip(*stats, strict=True)
    save_training_curve(path, iterations, dict(zip(columns[1:], losses, strict=True)))
    print(f"{len(stats)} evaluations -> {path}")


# --- calculate_pesq ---------------------------------------------------------------------------


def calculate_pesq(
    workspace: str, speech_dir: str, te_snr: float, pesq: str = PESQ, n_jobs: int | None = None
) -> None:
    """Score each mixture and each enhanced wave of the test set against its clean speech.

    Writes scores/test/{te_snr}/scores.csv, a row for each file and signal (noisy, enhanced), a column for each
    of scores.MEASURES. A score that is not defined is an empty field and is named on the screen. The file
    does not depend on n_jobs.

    Working set: three waves and their spectra for each job.

    Args:
      workspace: folder with the test mixture CSV, the mixed and the enhanced waves.
      speech_dir: folder of the clean test speech, in any format.
      te_snr: signal-to-noise ratio of the test mixtures in dB.
      pesq: the ITU program that pesq_tool/build.sh makes.
      n_jobs: processes; None takes all cores.
    Raises:
      InputError: a wave or the program is missing, or more than 5 % of the enhanced waves cannot be scored.
    """
    from speech_enhancement.evaluation.scoring import score_test_set

    program = require_pesq(pesq)
    mixtures = read_mixtures(workspace, "test")
    n_waves = len(mixtures) * len(SIGNALS)
    rows, n_failed = [], 0
    scored = score_test_set(workspace, speech_dir, te_snr, mixtures, program, n_jobs)
    for mixture, signal, (scores, reasons) in track(scored, n_waves, "waves"):
        say_not_scored(f"{signal} {mixture.name}", reasons)
        n_failed += signal == "enhanced" and "pesq_raw_mos" not in scores
        fields = ["" if scores.get(name) is None else f"{scores[name]:.4g}" for name in MEASURES]
        rows.append([mixture.speech_name, mixture.noise_name, signal, *fields])
    path = scores_path(workspace, te_snr)
    write_text(path, csv_text([*KEY_COLUMNS, *MEASURES], rows))
    print(f"{n_waves} waves scored -> {path}")
    if n_failed > MAX_UNSCORABLE * len(mixtures):
        raise InputError(
            f"{path}: {n_failed} of {len(mixtures)} enhanced waves could not be scored; see the lines above"
        )


def say_not_scored(wave: str, reasons: dict[str, str]) -> None:
    """Print why measures of a wave are not defined, a line for each reason."""
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name in reasons if reasons[name] == reason]
        which = "" if len(names) == len(MEASURES) else f"{', '.join(names)}: "
        say(f"not scored: {wave}: {which}{reason}")


# --- score ------------------------------------------------------------------------------------


def score(reference: str, degraded: str, pesq: str = PESQ) -> None:
    """Print all scores of one wave against its clean reference, a line for each: name, value, unit.

    Two files at 8 kHz get PESQ in the program's own mode for that rate, which knows no wide band.

    Args:
      reference, degraded: audio files of one length, in any format; the degraded at any level.
      pesq: the ITU program that pesq_tool/build.sh makes.
    Raises:
      InputError: a file or the program is missing or unreadable, or the lengths differ by more than a frame.
    """
    from speech_enhancement.evaluation.scoring import score_wave

    program = require_pesq(pesq)
    for flag, path in (("--reference", reference), ("--degraded", degraded)):
        if not os.path.isfile(path):
            raise MissingFileError(f"{path} is missing; check {flag}")
    scores, reasons = score_wave(program, reference, degraded, "--reference and --degraded")
    for name, measure in MEASURES.items():
        if scores.get(name) is None:
            print(
                f"{name:<24} not defined: {reasons.get(name, 'the PESQ program knows no wide band for this')}"
            )
        else:
            print(f"{name:<24} {scores[name]:>z8.{measure.n_decimals + 1}f} {measure.unit}")


# --- get_stats --------------------------------------------------------------------------------


def get_stats(workspace: str, te_snr: float, measure: str = "pesq_raw_mos") -> None:
    """Print the table of a measure: a row for each noise, mean +- standard deviation over files.

    `Avg.` is the mean of the rows' means +- the mean of their deviations. Files without a score
    are left out.

    Args:
      workspace: folder with scores/.
      te_snr: signal-to-noise ratio of the test mixtures in dB.
      measure: one of scores.MEASURES.
    Raises:
      InputError: there are no scores, or no column of this measure.
    """
    path = scores_path(workspace, te_snr)
    pairs = read_score_pairs(path, measure)
    scored = {
        noise: np.array(of_noise) for noise, of_noise in pairs.items() if of_noise
    }  # (n_files, 2)
    if not scored:
        raise InputError(f"{path} holds no score; listen to the enhanced waves")
    layout = "{:<16} {:<16} {:<16} {}"
    heading, n_decimals = MEASURES[measure].heading, MEASURES[measure].n_decimals
    print(
        layout.format(
            f"Noise({snr_name(te_snr).replace('db', 'dB')})", heading, "unprocessed", "files"
        )
    )
    print("-" * 56)
    for noise in pairs:
        if noise in scored:
            cells = mean_and_std(scored[noise].mean(axis=0), scored[noise].std(axis=0), n_decimals)
            print(layout.format(noise, *cells, len(scored[noise])))
        else:
            print(layout.format(noise, "not scored", "not scored", 0))
    print("-" * 56)
    means = np.mean([values.mean(axis=0) for values in scored.values()], axis=0)
    deviations = np.mean([values.std(axis=0) for values in scored.values()], axis=0)
    print(
        layout.format(
            "Avg.", *mean_and_std(means, deviations, n_decimals), sum(map(len, scored.values()))
        )
    )


def read_score_pairs(path: str, measure: str) -> dict[str, list[tuple[float, float]]]:
    """Return for each noise the scores (enhanced, noisy) of the files that have both."""
    columns, rows = read_table(path, ",", made_by="calculate_pesq")
    missing = [name for name in (*KEY_COLUMNS, measure) if name not in columns]
    if missing:
        raise InputError(f"{path} has no column {missing[0]}; run calculate_pesq again")
    scores = {}
    for where, fields in rows:
        row = dict(zip(columns, fields, strict=True))
        of_file = scores.setdefault((row["noise_name"], row["speech_name"]), {})
        if row[measure] != "":
            of_file[row["signal"]] = parse_number(row[measure], where)
    pairs = {}
    for (noise_name, _), of_file in scores.items():
        of_noise = pairs.setdefault(flat_name(noise_name), [])
        if of_file.keys() >= set(SIGNALS):
            of_noise.append((of_file["enhanced"], of_file["noisy"]))
    return pairs


def mean_and_std(means: np.ndarray, deviations: np.ndarray, n_decimals: int) -> list[str]:
    """Return "1.36 +- 0.05" for each mean and its deviation."""
    return [
        f"{mean:z.{n_decimals}f} +- {std:.{n_decimals}f}"
        for mean, std in zip(means, deviations, strict=True)
    ]


# --- Command line -----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the step that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")
    plot = add_step(steps, plot_training_stat, "draw training and test loss against the iteration")
    scoring = add_step(
        steps, calculate_pesq, "score noisy and enhanced waves against the clean speech"
    )
    pair = add_step(steps, score, "print all scores of one wave against its clean reference")
    table = add_step(steps, get_stats, "print the table of PESQ, or of another score")
    page = add_step(
        steps, report, "write a page with scores, spectrograms and sound to open in a browser"
    )
    for step in (plot, scoring, table, page):
        step.add_argument(
            "--workspace", required=True, help="folder of all intermediate files and results"
        )
    plot.add_argument(
        "--tr_snr",
        type=decibels,
        nargs="+",
        help="SNRs of the training in dB; default: the only training there is",
    )
    plot.add_argument("--bgn_iter", type=int, default=0, help="first iteration drawn")
    plot.add_argument(
        "--fin_iter", type=int, help="iteration to stop before; default: after the last"
    )
    plot.add_argument(
        "--interval_iter",
        type=positive_int,
        default=1,
        help="iterations from one point to the next",
    )
    for step in (scoring, table, page):
        step.add_argument(
            "--te_snr", type=decibels, required=True, help="SNR of the test mixtures in dB"
        )
    scoring.add_argument(
        "--speech_dir", required=True, help="folder of the clean test speech, any sample rate in Hz"
    )
    scoring.add_argument(
        "--n_jobs", type=positive_int, help="parallel jobs; default: one for each processor core"
    )
    pair.add_argument(
        "--reference", required=True, help="clean speech (.wav, .flac, .ogg), any sample rate in Hz"
    )
    pair.add_argument(
        "--degraded",
        required=True,
        help="the wave to score, as long as the reference, at any level",
    )
    for step in (scoring, pair):
        step.add_argument(
            "--pesq", default=PESQ, help="the ITU-T P.862 program that pesq_tool/build.sh makes"
        )
    table.add_argument("--measure", choices=MEASURES, default="pesq_raw_mos", help=MEASURE_HELP)
    page.add_argument(
        "--speech_dir",
        help="folder of the clean test speech; default: the feature files' magnitudes with the mixture's phase",
    )
    return run_step(parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
