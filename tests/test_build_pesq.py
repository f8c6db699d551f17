"""The branches of pesq_tool/build.sh, with small sources and stand-ins for pip: no network."""

import io
import os
import shutil
import subprocess
import tarfile

import pytest
from conftest import ROOT

HELLO = '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n'
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("gcc", "clang", "cc"))), reason="no C compiler"
)


@pytest.fixture
def repository(tmp_path):
    """A copy of pesq_tool/ alone; the program is built beside it."""
    shutil.copytree(
        ROOT / "pesq_tool", tmp_path / "pesq_tool", ignore=shutil.ignore_patterns("build", "*.c")
    )
    return tmp_path


def build(repository, **environment):
    inherited = {key: value for key, value in os.environ.items() if key not in ("CC", "PYTHON")}
    return subprocess.run(
        [shutil.which("bash"), str(repository / "pesq_tool/build.sh")],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def refused(repository, *words, **environment):
    """Check that the build ends with one line that holds the words and leaves nothing behind."""
    result = build(repository, **environment)
    line = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 2 and line.startswith("pesq_tool/build.sh: expected "), result
    assert all(word in line for word in words), line
    assert not (repository / "pesq_tool/build").is_dir()
    return result.stderr


def python(repository, script):
    """Write a stand-in for Python that answers `-m pip`; return its path."""
    path = repository / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


# --- What is there ----------------------------------------------------------------------------


def test_a_program_that_is_there_is_used_as_it_is(repository):
    program = repository / "pesq"
    program.write_text("mine")
    refused(repository, "an executable file", "chmod +x")
    program.chmod(0o755)
    result = build(repository, CC="no_such_compiler")
    assert result.returncode == 0 and "used as it is" in result.stdout
    assert program.read_text() == "mine"


def test_a_compiler_that_is_missing_is_named(repository, tmp_path):
    refused(repository, "found no no_such_compiler (from CC)", CC="no_such_compiler -O1")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "dirname").symlink_to(shutil.which("dirname"))
    refused(repository, "neither gcc nor clang nor cc", PATH=str(tools))


@needs_compiler
def test_a_folder_that_cannot_be_written(repository):
    (repository / "pesq_tool/build").write_text("in the way")
    refused(repository, "to write to", "cannot be written")


# --- Own sources ------------------------------------------------------------------------------


@needs_compiler
def test_own_sources_are_compiled_and_nothing_else_is_left(repository):
    killed = repository / "pesq_tool/build/99999999"  # no process has this number
    killed.mkdir(parents=True)
    (repository / "pesq_tool/one.c").write_text("int tentative;\n" + HELLO)
    (repository / "pesq_tool/two.c").write_text(
        "int tentative;\n"
    )  # defined twice, as the ITU does
    result = build(repository, PYTHON="no_such_python")  # which is not needed
    assert result.returncode == 0 and "pesq_tool/*.c, compiled with" in result.stdout, result
    printed = subprocess.run([repository / "pesq"], capture_output=True, text=True, check=True)
    assert printed.stdout == "hello\n"
    assert sorted(path.name for path in repository.iterdir()) == ["pesq", "pesq_tool"]
    assert not (repository / "pesq_tool/build").exists()


@needs_compiler
def test_sources_that_do_not_compile_leave_no_program(repository):
    (repository / "pesq_tool/one.c").write_text("int main(void) { return nothing; }\n")
    errors = refused(repository, "to compile", "the errors above")
    assert "one.c" in errors and not (repository / "pesq").exists()


# --- The download -----------------------------------------------------------------------------


@needs_compiler
def test_a_python_without_pip_and_downloads_that_fail(repository):
    refused(repository, "pip, found none", PYTHON=python(repository, "exit 1"))
    failing = 'case "$*" in *--version) ;; *) echo "{}"; exit 1 ;; esac'
    script = failing.format("ERROR: no route to the index")
    refused(
        repository, "to download pesq==", "no route to the index", PYTHON=python(repository, script)
    )
    script = failing.format("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES")
    refused(repository, "found another file; do not use it", PYTHON=python(repository, script))


@needs_compiler
def test_downloaded_sources_are_compiled_with_our_main(repository):
    (repository / "pesq_tool/main").mkdir(exist_ok=True)
    (repository / "pesq_tool/main/pesq_main.c").write_text('#include "answer.h"\n' + HELLO)
    archive = repository / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for name, content in {"answer.h": b"int answer(void);\n", "answer.c": b"int x;\n"}.items():
            member = tarfile.TarInfo(f"pesq-0.0.4/pesq/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    # The last argument of `pip download` is the folder; the file of requirements has the sum.
    script = f"""for last; do :; done
case "$*" in
    *" download "*) grep -q -- --hash=sha256: "$last/requirements.txt" &&
        cp {archive} "$last/pesq-0.0.4.tar.gz" ;;
esac"""
    result = build(repository, PYTHON=python(repository, script))
    assert result.returncode == 0 and "the source distribution of pesq==0.0.4" in result.stdout
    assert subprocess.run([repository / "pesq"], capture_output=True, check=True).stdout
    assert not (repository / "pesq_tool/build").exists()
