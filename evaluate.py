"""Evaluate: draw the training curve, score the waves, print the table, write the report."""

import argparse

from speech_enhancement.command_line import COMMON_FLAGS, add_step, positive_int, run_step
from speech_enhancement.evaluation.figures import plot_training_stat
from speech_enhancement.evaluation.measures import MEASURES
from speech_enhancement.evaluation.report_files import report
from speech_enhancement.evaluation.score_table import get_stats
from speech_enhancement.evaluation.scoring import calculate_pesq, score

FLAGS = COMMON_FLAGS | {  # by argument of the steps
    "bgn_iter": {"help": "first iteration drawn", "type": int},
    "fin_iter": {"help": "iteration to stop before; default: after the last", "type": int},
    "interval_iter": {"help": "iterations from one point to the next", "type": positive_int},
    "speech_dir": {"help": "folder of the clean test speech, any sample rate in Hz"},
    "pesq": {"help": "the ITU-T P.862 program that pesq_tool/build.sh makes"},
    "reference": {"help": "clean speech (.wav, .flac, .ogg), any sample rate in Hz"},
    "degraded": {"help": "the wave to score, as long as the reference, at any level"},
    "measure": {
        "help": "column of scores.csv: PESQ in MOS, STOI and ESTOI up to 1, the other three in dB",
        "choices": MEASURES,
    },
}
SHOWN_SPEECH = {
    "help": "folder of the clean test speech; default: the feature files' magnitudes with the "
    "mixture's phase"
}


def main(argv: list[str] | None = None) -> int:
    """Run the step that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")
    for step, summary in (
        (plot_training_stat, "draw training and test loss against the iteration"),
        (calculate_pesq, "score noisy and enhanced waves against the clean speech"),
        (score, "print all scores of one wave against its clean reference"),
        (get_stats, "print the table of PESQ, or of another score"),
    ):
        add_step(steps, step, summary, FLAGS)
    summary = "write a page with scores, spectrograms and sound to open in a browser"
    add_step(steps, report, summary, FLAGS | {"speech_dir": SHOWN_SPEECH})
    return run_step(parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
