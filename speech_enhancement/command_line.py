"""What the three command-line scripts share: running a step and reading flags."""

import argparse
import math
import sys

from speech_enhancement.errors import InputError


def run_step(parser: argparse.ArgumentParser, argv: list[str] | None) -> int:
    """Parse the command line and call the step it names (set as `run`) with its flags.

    Returns:
      The exit status: 0 or what the step returned, or 2 after the one line that a foreseen error is worth.
    """
    flags = vars(parser.parse_args(argv))
    step, name = flags.pop("run"), flags.pop("step_name")
    try:
        status = step(**flags)
    except InputError as error:
        print(f"{parser.prog} {name}: {error}", file=sys.stderr)
        return 2
    return status or 0


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default of a flag to its help, unless it has none or the help tells it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def add_step(steps, step, summary: str) -> argparse.ArgumentParser:
    """Add the subcommand that calls the function `step`; its flags are the function's arguments."""
    parser = steps.add_parser(
        step.__name__, help=summary, description=summary, formatter_class=_HelpFormatter
    )
    parser.set_defaults(run=step, step_name=step.__name__)
    return parser


def decibels(text: str) -> float:
    """Read a number of decibels from a flag; beyond 200 dB one of the signals would vanish in rounding."""
    value = float(text)
    if not (abs(value) <= 200 or value == math.inf):
        raise argparse.ArgumentTypeError(
            f"expected a number from -200 to 200 dB, or inf for clean, found {text}"
        )
    return value + 0.0  # no negative zero


def positive_int(text: str) -> int:
    """Read an integer of at least 1 from a flag."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, found {text}")
    return value


def natural(text: str) -> int:
    """Read an integer of at least 0 from a flag."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, found {text}")
    return value


def positive_float(text: str) -> float:
    """Read a finite number above 0 from a flag."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return value


def fraction(text: str) -> float:
    """Read a number from 0 to below 1 from a flag."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, found {text}")
    return value
