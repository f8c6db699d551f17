"""The machine around the commands: full disks, lost readers, no shared memory, odd streams."""

import argparse
import errno
import os
import signal
import subprocess
import sys
import tempfile

import pytest
from conftest import MINI, ROOT

from speech_enhancement.command_line import READER_GONE, add_step, run_step
from speech_enhancement.errors import InputError
from speech_enhancement.parallel import in_processes

LIST = ("create_mixture_csv", "--speech_dir", MINI / "test_speech", "--noise_dir")
LIST += (MINI / "test_noise", "--data_type", "test", "--workspace", "ws")


def run_one(error):
    """Run a step that raises an error, as the scripts run theirs."""

    def fail():
        raise error

    parser = argparse.ArgumentParser(prog="script.py")
    add_step(parser.add_subparsers(required=True), fail, "fails", {})
    return run_step(parser, ["fail"])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_folder_of_temporary_files_is_one_line(code, capsys):
    assert run_one(OSError(code, os.strerror(code))) == 2
    line = capsys.readouterr().err
    assert line.startswith("script.py fail: ") and line.count("\n") == 1
    assert tempfile.gettempdir() in line and "TMPDIR" in line


def test_no_folder_for_temporary_files_is_one_line(monkeypatch, capsys):
    def nowhere():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in [...]")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(FileNotFoundError) as found:
        tempfile.gettempdir()
    assert run_one(found.value) == 2
    assert "found none that can be written; set TMPDIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("a"),
        KeyError("b"),
        OSError(errno.EBADF, "c"),
        FileNotFoundError(errno.ENOENT, "d"),  # while there is a folder for temporary files
        FileNotFoundError(errno.ENOENT, "d", "name"),
    ],
)
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)):
        run_one(bug)


def start(script, *flags, **options):
    command = [sys.executable, str(ROOT / f"{script}.py"), *map(str, flags)]
    return subprocess.run(command, text=True, stderr=subprocess.PIPE, check=False, **options)


@pytest.mark.parametrize("flags", [LIST, ("--help",)])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_on_a_full_disk(flags, unbuffered, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = start("prepare_data", *flags, stdout=full, cwd=tmp_path, env=environment)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "standard output cannot be written: the disk is full" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_ends_a_command_quietly(unbuffered, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = start("prepare_data", *LIST, stdout=writing, cwd=tmp_path, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (READER_GONE, "")


@pytest.mark.parametrize("closed", ["0<&-", ">&-", "2>&-", "0<&- >&- 2>&-"])
def test_closed_streams_do_not_matter(closed, tmp_path):
    command = [sys.executable, ROOT / "prepare_data.py", *LIST]
    line = " ".join(map(str, command)) + " " + closed
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0 and done.stderr == b""
    assert len((tmp_path / "ws/mixture_csvs/test.csv").read_text().splitlines()) == 1 + 4


def test_without_shared_memory_one_process_does_the_work(monkeypatch, capsys):
    import concurrent.futures

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", refuse)
    assert list(in_processes(abs, [-1, 2, -3], 2)) == [1, 2, 3]
    assert "no shared memory for 2 processes" in capsys.readouterr().err


def end_process(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_process_that_the_system_ends_is_one_line():
    with pytest.raises(InputError, match=r"the system ended one of 2 processes.*fewer --n_jobs"):
        list(in_processes(end_process, range(4), 2))


def test_the_scripts_find_their_own_files_through_links_and_from_any_folder(tmp_path):
    (tmp_path / "program").symlink_to(ROOT)
    (tmp_path / "script.py").symlink_to(ROOT / "main_dnn.py")
    code = "import sys, runpy; sys.argv = [sys.argv[1], '--help']\n"
    code += "try: runpy.run_path(sys.argv[0])\nexcept SystemExit: pass\n"
    code += "from speech_enhancement.enhancement.enhance import SHIPPED_MODEL\n"
    code += "import os; print(os.path.isfile(SHIPPED_MODEL))"
    for script in ("script.py", "program/main_dnn.py"):
        command = [sys.executable, "-c", code, script]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
        )
        assert done.stdout.strip() == "True", done.stderr
    link = tmp_path / "other.py"
    link.symlink_to(ROOT / "prepare_data.py")
    done = subprocess.run(
        [sys.executable, link, *map(str, LIST)], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
