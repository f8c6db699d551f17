"""Bars and log lines: what a step prints while it works."""

import io
import sys

import pytest

from speech_enhancement.progress import Progress, say, track


@pytest.mark.parametrize(
    "total, counts",
    [
        (3, [1, 2, 3]),
        (10, [*range(1, 11)]),
        (25, [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]),
        (1000, [*range(100, 1001, 100)]),
    ],
)
def test_a_log_has_a_line_for_each_tenth_of_the_items(capsys, total, counts):
    assert list(track(range(total), total, "waves")) == [*range(total)]
    assert capsys.readouterr().out.splitlines() == [f"waves {count}/{total}" for count in counts]


def test_a_line_comes_after_the_work_on_its_item(capsys):
    items = track("ab", 2, "files")
    assert next(items) == "a" and capsys.readouterr().out == ""
    assert next(items) == "b" and capsys.readouterr().out == "files 1/2\n"


def test_an_amount_is_logged_at_each_tenth_that_shows(capsys):
    with Progress(20, "s") as progress:
        for _ in range(40):
            progress.add(0.5)
    lines = [f"s {2 * tenth}/20" for tenth in range(1, 11)]
    assert capsys.readouterr().out.splitlines() == lines
    with Progress(0, "s") as progress:  # of nothing, as of one second
        for _ in range(10):
            progress.add(0.125)
    assert capsys.readouterr().out.splitlines() == ["s 1/1"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_and_lines_beside_it(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for _ in track(range(4), 4, "waves"):
        say("a word")
    with Progress(4, "s") as progress:
        progress.add(1)
        progress.add(1)
    bars = sys.stderr.getvalue()
    assert "waves" in bars and "0/4 s" in bars and "\n" not in bars
    assert capsys.readouterr().out == "a word\n" * 4
