"""What the three command-line scripts share: running a step and reading flags."""

import argparse
import contextlib
import inspect
import math
import os
import sys
from collections.abc import Callable

from speech_enhancement.errors import InputError, foreseen_disk_errors, foreseen_machine_error

READER_GONE = 141  # what a shell reports of a program that ended because its reader did


def run_step(parser: argparse.ArgumentParser, argv: list[str] | None) -> int:
    """Parse the command line and call the step it names (set as `run`) with its flags.

    Returns:
      The exit status: 0 or what the step returned; 2 after one line about a foreseen error;
      READER_GONE, without a line, when the reader of the output went away (`| head`); 130 after
      Ctrl-C.
    """
    _prepare_standard_streams()
    name, line = parser.prog, None
    try:
        with contextlib.redirect_stdout(sys.stdout and _Output(sys.stdout)):
            try:
                flags = vars(parser.parse_args(argv))
                step, name = flags.pop("run"), f"{parser.prog} {flags.pop('step_name')}"
                status = step(**flags) or 0
            except SystemExit as end:  # of argparse, after the help or a line about a wrong flag
                status = end.code
            if sys.stdout is not None:
                sys.stdout.flush()
        return status
    except InputError as error:
        line, status = error, 2
    except KeyboardInterrupt:
        line, status = "interrupted", 130
    except BrokenPipeError:
        status = READER_GONE
    except OSError as error:
        line, status = foreseen_machine_error(error), 2
        if line is None:
            raise

    with contextlib.suppress(OSError):
        if line is not None:
            print(f"{name}: {line}", file=sys.stderr)
    _drop_unwritten_output()
    return status


class _Output:
    """Standard output; where its disk is full, that is told apart from errors of other files."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with foreseen_disk_errors("standard output"):
            return self._stream.write(text)

    def flush(self) -> None:
        with foreseen_disk_errors("standard output"):
            self._stream.flush()


def _drop_unwritten_output() -> None:
    """Drop what cannot be written: Python would try again as it ends, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _prepare_standard_streams() -> None:
    """Open the null device for each closed standard stream, lest a file takes its number.

    Names of files that standard output cannot encode are printed with escapes.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that are not UTF-8
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (for as long as the program runs)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default of a flag to its help, unless it has none or the help tells it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def add_step(
    steps, step: Callable, summary: str, flags: dict[str, dict], options: type | None = None
) -> argparse.ArgumentParser:
    """Add the subcommand that calls the function `step`; its flags are the function's arguments.

    An argument without a default must be given; one that is False by default is a switch.

    Args:
      steps: what argparse.add_subparsers returned.
      step: the function.
      summary: what it does.
      flags: by argument, what else argparse should know of its flag: help, type and so on. An
        argument that is not in it gets no flag.
      options: a dataclass whose fields are the arguments, where `step` takes any.
    """
    parser = steps.add_parser(
        step.__name__, help=summary, description=summary, formatter_class=_HelpFormatter
    )
    parser.set_defaults(run=step, step_name=step.__name__)

    for name, argument in inspect.signature(options or step).parameters.items():
        if argument.default is inspect.Parameter.empty:
            rest = {"required": True}
        elif argument.default is False:
            rest = {"action": "store_true"}
        else:
            rest = {"default": argument.default}
        if name in flags:
            parser.add_argument(f"--{name}", **rest, **flags[name])
    return parser


def decibels(text: str) -> float:
    """Read a number of decibels from a flag: from -200 to 200, or inf for clean speech.

    Beyond 200 dB one of the signals would vanish in rounding.
    """
    value = float(text)
    if not (abs(value) <= 200 or value == math.inf):
        raise argparse.ArgumentTypeError(
            f"expected a number from -200 to 200 dB, or inf for clean, found {text}"
        )
    return value + 0.0  # no negative zero


def _number(name: str, kind: type, fits: Callable, expected: str) -> Callable[[str], float]:
    """Return a function of some name that reads a number from a flag, if it fits."""

    def read(text: str):
        value = kind(text)
        if not fits(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, found {text}")
        return value

    read.__name__ = name  # argparse's word for what it expected
    return read


positive_int = _number("positive_int", int, lambda n: n >= 1, "an integer of at least 1")
natural = _number("natural", int, lambda n: n >= 0, "an integer of at least 0")
positive_float = _number("positive_float", float, lambda x: 0 < x < math.inf, "a number above 0")
fraction = _number("fraction", float, lambda x: 0 <= x < 1, "a number from 0 to below 1")

COMMON_FLAGS = {  # of several scripts; see add_step
    "workspace": {"help": "folder of all intermediate files and results"},
    "te_snr": {"help": "SNR of the test mixtures in dB", "type": decibels},
    "n_jobs": {"help": "parallel jobs; default: one for each processor core", "type": positive_int},
    "tr_snr": {
        "help": "SNRs of the training in dB; default: the training that ran last",
        "type": decibels,
        "nargs": "+",
    },
    "tr_snr_range": {
        "help": "of a training that drew its SNRs from a range: the range in dB",
        "type": decibels,
        "nargs": 2,
        "metavar": ("LOW", "HIGH"),
    },
}
