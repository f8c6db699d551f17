"""Bars on a terminal, lines in a log file."""

import sys
from collections.abc import Iterable, Iterator


def track(items: Iterable, total: int, what: str, log_lines: int = 10) -> Iterator:
    """Yield the items, with a bar on a terminal and about `log_lines` lines in a log file."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, unit=f" {what}", leave=False)
        return
    for count, item in enumerate(items, start=1):
        yield item
        if count * log_lines // total != (count - 1) * log_lines // total:
            print(f"{what} {count}/{total}", flush=True)


class Progress:
    """Shows how much of a total is done: a bar on a terminal, about ten lines in a log file."""

    def __init__(self, total: int, what: str):
        self._total, self._what, self._done, self._bar = max(1, total), what, 0.0, None
        self._last_line = f"{what} 0/{self._total}"

    def __enter__(self) -> "Progress":
        """Open the bar."""
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, unit=f" {self._what}", leave=False, bar_format=_BAR)
        return self

    def __exit__(self, *exception) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def add(self, amount: float) -> None:
        """Say that so much more is done."""
        before, self._done = self._done, self._done + amount
        if self._bar is not None:
            self._bar.update(amount)
        elif int(10 * self._done / self._total) > int(10 * before / self._total):
            line = f"{self._what} {self._done:.0f}/{self._total}"
            if line != self._last_line:  # of a small total, tenths look the same
                print(line, flush=True)
            self._last_line = line


_BAR = "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f}{unit} [{elapsed}<{remaining}]"


def say(text: str) -> None:
    """Print a line at once, also while a progress bar is shown."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(text)
    else:
        print(text, flush=True)
