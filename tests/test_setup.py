"""setup.sh and pesq_tool/build.sh with stand-ins for Python, pip and the compiler; no network."""

import os
import shutil
import subprocess
import sys
import tarfile

import pytest
from conftest import ROOT

TOOLS = "basename bash cat cmp cp chmod dirname grep ln mkdir mv readlink rm rmdir sed tail tar"
TOOLS += " touch gzip"

# A Python of another version: it runs code with that version, and writes down the rest.
PYTHON = """#!{bash}
echo "$(basename "$0") $*" >> "$LOG"
case "$1" in
    -c) exec {python} -c 'import sys; sys.version_info = ({version}, 0)
for name in "{missing}".split(): sys.modules[name] = None
exec(sys.argv[1])' "$2" ;;
esac
case "$2" in
    venv)
        rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" &&
            touch "$4/bin/pip" && chmod +x "$4/bin/pip"
        ;;
    pip) {pip} ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    """A copy of what is tested, and a PATH with few tools; programs are put there by `install`."""
    (tmp_path / "bin").mkdir()
    for name in TOOLS.split():
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    repository = tmp_path / "the program"
    for folder in ("tests", "pesq_tool/main"):
        (repository / folder).mkdir(parents=True)
    for name in (
        "setup.sh",
        "requirements.txt",
        "tests/requirements.txt",
        "pesq_tool/build.sh",
        "pesq_tool/main/pesq_main.c",
    ):
        shutil.copy(ROOT / name, repository / name)
    return tmp_path


def install(machine, name, text):
    path = machine / "bin" / name
    path.write_text(text)
    path.chmod(0o755)


def install_python(machine, name, version, missing="", pip=":"):
    values = {"bash": shutil.which("bash"), "python": sys.executable, "version": version}
    install(machine, name, PYTHON.format(**values, missing=missing, pip=pip))


def call(machine, *command, **variables):
    """Run a script of the copy; return its result and what the stand-ins wrote down."""
    log = machine / "log"
    log.write_text("")
    environment = {"PATH": str(machine / "bin"), "LOG": str(log), "HOME": str(machine), **variables}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=machine,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, log.read_text()


def setup(machine, *flags, **variables):
    return call(machine, machine / "the program" / "setup.sh", *flags, **variables)


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3": "3, 12"}, "python3"),
        ({"python3": "3, 14", "python3.12": "3, 12"}, "python3.12"),
        ({"python3": "3, 10", "python3.11": "3, 11"}, "python3.11"),
        ({"python3": "3, 14"}, "python3"),
        ({"python3": "3, 15", "python": "3, 13"}, "python"),
    ],
)
def test_a_python_that_tensorflow_supports_is_preferred(machine, pythons, chosen):
    for name, version in pythons.items():
        install_python(machine, name, version)
    done, log = setup(machine)
    venv = machine / "the program" / ".venv"
    assert done.returncode == 0, done.stderr
    assert f"{chosen} -m venv --clear {venv}" in log
    requirements = machine / "the program" / "requirements.txt"
    assert f"-r {requirements}" in log
    assert ("Keras runs on JAX" in done.stdout) == (pythons[chosen] == "3, 14")
    assert f"    . {venv}/bin/activate".replace(" program", "\\ program") in done.stdout
    assert "main_dnn.py enhance recording.wav --output_dir cleaned" in done.stdout
    # Once more: nothing is made or installed.
    done, log = setup(machine)
    assert done.returncode == 0 and "-m" not in log and "JAX" not in done.stdout


def test_a_python_without_venv_gives_way_to_another_or_is_named(machine):
    install_python(machine, "python3", "3, 12", missing="ensurepip")
    done, _ = setup(machine)
    assert done.returncode == 2 and "python3 has no working venv module" in done.stderr
    install_python(machine, "python3.11", "3, 11")
    done, log = setup(machine)
    assert done.returncode == 0 and "python3.11 -m venv" in log


def test_no_python_or_an_old_one(machine):
    for version in (None, "3, 10"):
        if version:
            install_python(machine, "python3", version)
        done, _ = setup(machine)
        assert done.returncode == 2 and "expected Python 3.11 or newer" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (machine / "the program" / ".venv").exists()


def test_pip_that_fails_is_tried_again(machine):
    install_python(machine, "python3", "3, 12", pip="exit 1")
    done, _ = setup(machine)
    assert done.returncode == 2 and "pip could not install" in done.stderr
    assert "ready" not in done.stdout
    _, log = setup(machine)
    assert "-m pip install" in log


def test_an_environment_whose_python_is_gone_is_made_anew(machine):
    install_python(machine, "python3", "3, 12")
    setup(machine)
    python = machine / "the program" / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3.9")
    done, log = setup(machine)
    assert done.returncode == 0 and "-m venv --clear" in log and "-m pip install" in log


def test_an_environment_that_was_moved_or_copied_is_made_anew(machine):
    install_python(machine, "python3", "3, 12")
    setup(machine)
    venv = machine / "the program" / ".venv"
    activate = venv / "bin" / "activate"
    activate.write_text(f'VIRTUAL_ENV="{venv}"')
    assert "-m venv" not in setup(machine)[1]
    activate.write_text('VIRTUAL_ENV="/before/the program/.venv"')
    done, log = setup(machine)
    assert done.returncode == 0 and "-m venv --clear" in log and "-m pip install" in log


def test_an_environment_that_cannot_be_made_is_not_blamed_on_the_module(machine):
    install_python(machine, "python3", "3, 12")
    (machine / "bin" / "mkdir").unlink()  # with which the stand-in makes it
    done, _ = setup(machine)
    assert done.returncode == 2 and "python3 could not make" in done.stderr
    assert "no working venv module" not in done.stderr


def test_pip_installs_into_the_environment_whatever_the_user_has_set(machine):
    install_python(machine, "python3", "3, 12", pip='[ "$PIP_USER" = 0 ] || exit 1')
    done, _ = setup(machine, PIP_USER="1")
    assert done.returncode == 0, done.stderr


def test_the_activated_environment_is_used(machine):
    install_python(machine, "python3", "3, 12")
    (machine / "mine" / "bin").mkdir(parents=True)
    shutil.copy(machine / "bin" / "python3", machine / "mine" / "bin" / "python")
    done, log = setup(machine, VIRTUAL_ENV=str(machine / "mine"))
    assert done.returncode == 0 and "-m venv" not in log and "bin/activate" not in done.stdout
    assert not (machine / "the program" / ".venv").exists()
    (machine / "mine" / "bin" / "python").unlink()
    done, _ = setup(machine, VIRTUAL_ENV=str(machine / "mine"))
    assert done.returncode == 2 and "activate another environment, or none" in done.stderr


def test_sourced_it_only_defines_and_through_a_link_it_finds_its_folder(machine):
    install_python(machine, "python3", "3, 12")
    (machine / "link.sh").symlink_to(machine / "the program" / "setup.sh")
    done, log = call(machine, "bash", "-c", '. ./link.sh; echo "$repository"')
    assert (done.stdout.strip(), log) == (str(machine / "the program"), "")
    done, _ = call(machine, machine / "link.sh", CDPATH="/:.")
    assert done.returncode == 0 and (machine / "the program" / ".venv").is_dir()


def test_flags_of_setup(machine):
    assert "set up, and say how to go on" in setup(machine, "--help")[0].stdout
    done, log = setup(machine, "--train")
    assert done.returncode == 2 and "expected no argument, found --train" in done.stderr
    assert log == ""


def test_the_requirements_name_one_backend_for_each_python():
    from packaging.requirements import Requirement

    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [Requirement(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]
    for version, backend in (("3.11", "tensorflow"), ("3.13", "tensorflow"), ("3.14", "jax")):
        names = [
            requirement.name
            for requirement in found
            if requirement.name in ("tensorflow", "jax")
            and (not requirement.marker or requirement.marker.evaluate({"python_version": version}))
        ]
        assert names == [backend], version


# --- pesq_tool/build.sh -----------------------------------------------------------------------

COMPILER = """#!{bash}
echo "$(basename "$0") $*" >> "$LOG"
{first}
while [ "$1" != -o ]; do shift; done
echo compiled > "$2"
chmod +x "$2"
"""


def install_compiler(machine, name="gcc", first=""):
    install(machine, name, COMPILER.format(bash=shutil.which("bash"), first=first))


def build(machine, **variables):
    return call(machine, machine / "the program" / "pesq_tool" / "build.sh", **variables)


def expect_failure(done, words):
    assert done.returncode == 2, done.stdout
    assert words in done.stderr.splitlines()[-1]


def test_a_pesq_that_is_there_is_kept(machine):
    pesq = machine / "the program" / "pesq"
    pesq.write_text("mine")
    pesq.chmod(0o755)
    done, log = build(machine)
    assert done.returncode == 0 and "used as it is" in done.stdout and log == ""
    pesq.chmod(0o644)
    expect_failure(build(machine)[0], "make it executable")
    assert pesq.read_text() == "mine"


def test_which_compiler(machine):
    (machine / "the program" / "pesq_tool" / "own.c").write_text("")
    expect_failure(build(machine)[0], "found neither gcc nor clang nor cc")
    install_compiler(machine, "cc")
    expect_failure(build(machine, CC="icc -fast")[0], "found no icc (from CC)")
    install_compiler(machine, "icc")
    done, log = build(machine, CC="icc -fast")
    assert done.returncode == 0 and log.startswith("icc -fast -fcommon")
    (machine / "the program" / "pesq").unlink()
    done, log = build(machine)
    assert done.returncode == 0 and log.startswith("cc -fcommon") and "own.c" in log
    assert not (machine / "the program" / "pesq_tool" / "build").exists()


def test_a_compiler_that_fails_leaves_nothing(machine):
    (machine / "the program" / "pesq_tool" / "own.c").write_text("")
    install_compiler(machine, first='echo "own.c:1: wrong" >&2; exit 1')
    done, _ = build(machine)
    assert "own.c:1: wrong" in done.stderr
    expect_failure(done, "expected gcc to compile")
    assert not (machine / "the program" / "pesq").exists()
    assert not (machine / "the program" / "pesq_tool" / "build").exists()


@pytest.mark.parametrize(
    ("pip", "words"),
    [
        ("[ $3 != --version ]", "found none that python3 -m pip starts"),
        (
            'case "$*" in *download*) echo "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"; '
            "exit 1 ;; esac",
            "found another file; do not use it",
        ),
        (
            'case "$*" in *install*) echo "ERROR: no network"; exit 1 ;; esac',
            "found: ERROR: no network; check the network",
        ),
    ],
)
def test_sources_that_cannot_be_had(machine, pip, words):
    install_compiler(machine)
    install_python(machine, "python3", "3, 12", pip=pip)
    done, _ = build(machine)
    expect_failure(done, words)
    assert not (machine / "the program" / "pesq").exists()
    assert not (machine / "the program" / "pesq_tool" / "build").exists()


def test_the_sources_of_the_package_are_compiled_with_our_main(machine):
    (machine / "pesq-0.0.4" / "pesq").mkdir(parents=True)
    (machine / "pesq-0.0.4" / "pesq" / "dsp.c").write_text("")
    with tarfile.open(machine / "package.tar.gz", "w:gz") as archive:
        archive.add(machine / "pesq-0.0.4", "pesq-0.0.4")
    copy = f'cp {machine}/package.tar.gz "${{@: -1}}/pesq-0.0.4.tar.gz"'
    pip = f'case "$*" in *download*) {copy} ;; esac'
    install_python(machine, "python3.12", "3, 12", pip=pip)
    install_compiler(machine)
    old = (
        machine / "the program" / "pesq_tool" / "build" / "999999999"
    )  # of a build that was killed
    old.mkdir(parents=True)
    done, log = build(machine, PYTHON="python3.12")
    assert done.returncode == 0, done.stderr
    compiled = log.splitlines()[-1]
    assert "pesq_main.c" in compiled and "pesq-0.0.4/pesq/dsp.c" in compiled
    assert "--require-hashes" in log and os.access(machine / "the program" / "pesq", os.X_OK)
    assert not (machine / "the program" / "pesq_tool" / "build").exists()
