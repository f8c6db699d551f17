"""Shared fixtures: the mini data, and workspaces that the commands made from it."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evaluate
import main_dnn
import prepare_data
from speech_enhancement.network.keras_backend import choose_backend
from speech_enhancement.workspace import training_stats_path

choose_backend()  # also for tests that import Keras themselves

ROOT = Path(__file__).resolve().parent.parent
MINI = ROOT / "mini_data"
GOLDEN = ROOT / "tests" / "golden"
PESQ = ROOT / "pesq"
SCRIPTS = {"prepare_data": prepare_data, "main_dnn": main_dnn, "evaluate": evaluate}


def run(script: str, step: str, *flags) -> int:
    """Run a step in this process as the command line does; return its exit status."""
    return SCRIPTS[script].main([step, *map(str, flags)])


def run_process(script: str, *flags, **options) -> subprocess.CompletedProcess:
    """Run a script in a process of its own."""
    command = [sys.executable, str(ROOT / f"{script}.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def create(workspace, data_type="train", speech=None, noise=None, *flags) -> int:
    speech, noise = speech or MINI / f"{data_type}_speech", noise or MINI / f"{data_type}_noise"
    folders = (
        "--workspace",
        workspace,
        "--speech_dir",
        speech,
        "--noise_dir",
        noise,
        "--data_type",
        data_type,
    )
    return run("prepare_data", "create_mixture_csv", *folders, *flags)


def calculate(workspace, data_type="train", speech=None, noise=None, snr=0) -> int:
    speech, noise = speech or MINI / f"{data_type}_speech", noise or MINI / f"{data_type}_noise"
    folders = (
        "--workspace",
        workspace,
        "--speech_dir",
        speech,
        "--noise_dir",
        noise,
        "--data_type",
        data_type,
    )
    return run("prepare_data", "calculate_mixture_features", *folders, "--snr", snr)


def pack(workspace, data_type="train", snr=0, *flags) -> int:
    return run(
        "prepare_data",
        "pack_features",
        "--workspace",
        workspace,
        "--data_type",
        data_type,
        "--snr",
        snr,
        *flags,
    )


def scale(workspace, snr=0) -> int:
    return run(
        "prepare_data",
        "compute_scaler",
        "--workspace",
        workspace,
        "--data_type",
        "train",
        "--snr",
        snr,
    )


def prepare(workspace, *pack_flags) -> None:
    """Run all preparation steps on the mini data at 0 dB."""
    for data_type in ("train", "test"):
        assert create(workspace, data_type, None, None, "--magnification", 2) == 0
        assert calculate(workspace, data_type) == 0
        assert pack(workspace, data_type, 0, *pack_flags) == 0
    assert scale(workspace) == 0


def train(workspace, *flags) -> int:
    return run("main_dnn", "train", "--workspace", workspace, "--tr_snr", 0, "--te_snr", 0, *flags)


def inference(workspace, *flags) -> int:
    return run(
        "main_dnn", "inference", "--workspace", workspace, "--tr_snr", 0, "--te_snr", 0, *flags
    )


def calculate_pesq(workspace, *flags, speech=MINI / "test_speech") -> int:
    flags = (
        "--workspace",
        workspace,
        "--speech_dir",
        speech,
        "--te_snr",
        0,
        "--pesq",
        PESQ,
        *flags,
    )
    return run("evaluate", "calculate_pesq", *flags)


def write_csv(workspace, rows, data_type="train") -> Path:
    """Write a mixture CSV by hand, in the original's format."""
    path = Path(workspace) / "mixture_csvs" / f"{data_type}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [("speech_name", "noise_name", "noise_onset", "noise_offset"), *rows]
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
    return path


def files_below(folder) -> dict[str, bytes]:
    """Return the content of every file below a folder by its relative path."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {os.path.relpath(path, folder): path.read_bytes() for path in paths}


def expect_refusal(capsys, status, *words):
    """Check status 2 and one line on standard error that holds the words."""
    captured = capsys.readouterr()
    assert status == 2, captured.out + captured.err
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    for word in words:
        assert str(word) in captured.err, captured.err


@pytest.fixture(scope="session")
def golden():
    """The arrays of the reference implementation, and the waves they were made from."""
    with np.load(GOLDEN / "original_features.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A workspace with the mini data prepared at 0 dB. Read only: copy it before changing it."""
    workspace = tmp_path_factory.mktemp("prepared")
    prepare(workspace)
    return workspace


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A workspace with a model of 4 iterations and its enhanced waves. Read only."""
    workspace = tmp_path_factory.mktemp("trained")
    prepare(workspace)
    assert train(workspace, "--n_iterations", 4, "--eval_every", 2) == 0
    assert inference(workspace, "--iteration", 4) == 0
    return workspace


@pytest.fixture(scope="session")
def test_set(tmp_path_factory):
    """A workspace with the test set, packed for the default recipe. Copy it before changing it."""
    workspace = tmp_path_factory.mktemp("on_the_fly")
    assert create(workspace, "test") == calculate(workspace, "test") == 0
    assert pack(workspace, "test", 0, "--recipe", "default") == 0
    return workspace


def write_recipe(path, name="default", **values):
    """Write a shipped recipe with small layers and other values."""
    lines = (ROOT / "recipes" / f"{name}.toml").read_text().splitlines()
    values = {"hidden_units": 32, "batch_size": 64, "warm_up": 2, **values}
    for index, line in enumerate(lines):
        key = line.split(" = ")[0]
        if key in values:
            lines[index] = f"{key} = {values[key]}"
    path.write_text("\n".join(lines))
    return path


def on_the_fly_flags(workspace, recipe):
    folders = ("--speech_dir", MINI / "train_speech", "--noise_dir", MINI / "train_noise")
    return ("--workspace", workspace, "--te_snr", 0, "--recipe", recipe, "--on_the_fly", *folders)


def read_stats(workspace, name="0db"):
    """Return the losses that a training recorded: iteration, tr_loss, te_loss and what follows."""
    with open(training_stats_path(str(workspace), name), encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    return [(int(row[0]), *map(float, row[1:])) for row in rows]


DEFAULT = "-5db_0db_5db_10db_15db_20db"  # the name of a training with the default recipe
needs_pesq = pytest.mark.skipif(
    not PESQ.exists(), reason="./pesq is not built; run pesq_tool/build.sh"
)


def needs(package):
    """Return a mark that skips a test where a package is not installed."""
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed (pip install {package})")


OTHERS = [pytest.param(name, marks=needs(name)) for name in ("jax", "torch")]


def environment(backend, **variables) -> dict[str, str]:
    """Return the environment of a process on one of Keras' backends."""
    return {
        **os.environ,
        "KERAS_BACKEND": backend,
        **{name: str(value) for name, value in variables.items()},
    }
