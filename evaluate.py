"""Evaluate: draw the training curve, score the waves, print the table, write the report."""

import argparse

from speech_enhancement.command_line import (
    add_step,
    add_training_choice,
    decibels,
    positive_int,
    run_step,
)
from speech_enhancement.evaluation.figures import plot_training_stat
from speech_enhancement.evaluation.measures import MEASURES, PESQ
from speech_enhancement.evaluation.report_files import report
from speech_enhancement.evaluation.score_table import get_stats
from speech_enhancement.evaluation.scoring import calculate_pesq, score


def main(argv: list[str] | None = None) -> int:
    """Run the step that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")

    plot = add_step(steps, plot_training_stat, "draw training and test loss against the iteration")
    waves = add_step(
        steps, calculate_pesq, "score noisy and enhanced waves against the clean speech"
    )
    pair = add_step(steps, score, "print all scores of one wave against its clean reference")
    table = add_step(steps, get_stats, "print the table of PESQ, or of another score")
    page = add_step(
        steps, report, "write a page with scores, spectrograms and sound to open in a browser"
    )

    for step in (plot, waves, table, page):
        step.add_argument(
            "--workspace", required=True, help="folder of all intermediate files and results"
        )
    for step in (waves, table, page):
        step.add_argument(
            "--te_snr", type=decibels, required=True, help="SNR of the test mixtures in dB"
        )
    for step in (plot, table, page):
        add_training_choice(step)
    add_plot_flags(plot)
    add_score_flags(waves, pair)
    table.add_argument(
        "--measure",
        choices=MEASURES,
        default="pesq_raw_mos",
        help="column of scores.csv: PESQ in MOS, STOI and ESTOI up to 1, the other three in dB",
    )
    page.add_argument(
        "--speech_dir",
        help="folder of the clean test speech; default: the feature files' magnitudes with the "
        "mixture's phase",
    )
    return run_step(parser, argv)


def add_plot_flags(plot: argparse.ArgumentParser) -> None:
    """Add which iterations of a training are drawn."""
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


def add_score_flags(waves: argparse.ArgumentParser, pair: argparse.ArgumentParser) -> None:
    """Add what is scored, of the test set and of one pair."""
    waves.add_argument(
        "--speech_dir", required=True, help="folder of the clean test speech, any sample rate in Hz"
    )
    waves.add_argument(
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
    for step in (waves, pair):
        step.add_argument(
            "--pesq", default=PESQ, help="the ITU-T P.862 program that pesq_tool/build.sh makes"
        )


if __name__ == "__main__":
    raise SystemExit(main())
