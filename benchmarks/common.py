"""What the benchmarks share: their flags, tables in Markdown, and the way to the package."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def make_parser(description: str, parts: Iterable[str]) -> argparse.ArgumentParser:
    """Return a parser of --corpus, --out and --only, which names some of the parts."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, names = parser.add_argument, list(parts)
    add("--corpus", type=Path, required=True, help="folder of the folders of audio")
    add("--out", type=Path, required=True, help="folder of all data and results")
    help_of_only = f"some of {', '.join(names)}; default: all"
    add("--only", nargs="*", choices=names, default=names, metavar="NAME", help=help_of_only)
    return parser


def print_head(*headings: str) -> None:
    """Print the head of a table."""
    print_row(*headings)
    print("|" + "---|" * len(headings))


def print_row(*cells: str) -> None:
    """Print a row of a table."""
    print("|", " | ".join(cells), "|", flush=True)
