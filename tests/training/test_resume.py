"""Going on with a training that was stopped, killed or is to be longer."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
from conftest import (
    DEFAULT,
    MINI,
    ROOT,
    files_below,
    on_the_fly_flags,
    pack,
    read_stats,
    run,
    run_process,
    scale,
    train,
    write_recipe,
)

from speech_enhancement.errors import InputError
from speech_enhancement.network_input import Scaler
from speech_enhancement.recipe import Recipe, flat
from speech_enhancement.training.devices import Share
from speech_enhancement.training.on_the_fly import MixtureStream
from speech_enhancement.training.state import read_state, write_state
from speech_enhancement.training.training import noted_signals
from speech_enhancement.workspace import model_path, training_stats_path


def test_resuming_gives_the_losses_of_the_undisturbed_run(prepared, tmp_path):
    losses, recipe = [], write_recipe(tmp_path / "small.toml", "original")
    for name, parts in (("whole", [6]), ("parts", [2, 3, 6])):
        workspace = shutil.copytree(prepared, tmp_path / name)
        for number, n_iterations in enumerate(parts):
            resume = ["--resume"] if number else []
            flags = ("--recipe", recipe, "--n_iterations", n_iterations, "--eval_every", 3)
            assert train(workspace, *flags, *resume) == 0
        losses.append({row[0]: row[1:] for row in read_stats(workspace)})
    for iteration in (0, 3, 6):
        # Sums of threads differ in their order.
        np.testing.assert_allclose(losses[0][iteration], losses[1][iteration], rtol=0, atol=1e-4)


def test_resuming_after_a_kill_on_the_fly_with_schedule_and_average(test_set, tmp_path):
    recipe = write_recipe(tmp_path / "mine.toml")
    losses = []
    for name in ("undisturbed", "killed"):
        workspace = shutil.copytree(test_set, tmp_path / name)
        flags = [
            *on_the_fly_flags(workspace, recipe),
            "--n_iterations",
            24,
            "--eval_every",
            8,
            "--save_every",
            8,
        ]
        if name == "killed":
            command = [sys.executable, ROOT / "main_dnn.py", "train", *flags]
            process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
            while process.poll() is None and not list(workspace.glob("models/*/state.npz")):
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            process.wait()
            flags.append("--resume")
        assert run_process("main_dnn", "train", *flags).returncode == 0
        text = Path(training_stats_path(str(workspace), DEFAULT)).read_text().splitlines()[1:]
        losses.append(np.array([[float(field) for field in line.split(",")] for line in text]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def small(prepared, tmp_path_factory):
    """A workspace with a small network trained for two iterations, and its recipe. Read only."""
    folder = tmp_path_factory.mktemp("small")
    recipe = write_recipe(folder / "small.toml", "original")
    workspace = shutil.copytree(prepared, folder / "w")
    assert train(workspace, "--recipe", recipe, "--n_iterations", 2) == 0
    return workspace, recipe


@pytest.mark.parametrize(
    ("flags", "differs"),
    [
        (("--lr", 0.01), "[training] learning_rate 0.0001, now 0.01"),
        (("--seed", 1), "--seed 0, now 1"),
        (("--valid_fraction", 0.3), "--valid_fraction 0.0, now 0.3"),
        (("--batch_size", 50), "[training] batch_size 64, now 50"),
    ],
)
def test_resume_refuses_another_training_and_names_what_differs(small, flags, differs, capsys):
    workspace, recipe = small
    before = files_below(workspace)
    capsys.readouterr()
    more = ("--recipe", recipe, "--n_iterations", 4, "--resume")
    assert train(workspace, *more, *flags) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"is of a training with {differs}: give it what it had" in lines[0]
    assert files_below(workspace) == before


def test_a_training_goes_on_where_there_is_no_bfloat16(small, tmp_path, monkeypatch, capsys):
    workspace, recipe = shutil.copytree(small[0], tmp_path / "w"), small[1]
    state = next(workspace.glob("models/*/state.npz"))
    content = dict(np.load(state))
    facts = json.loads(str(content["facts"])) | {"[training] precision": "bfloat16"}
    np.savez(state, **{**content, "facts": json.dumps(facts)})  # as a machine that has it writes
    monkeypatch.setattr("speech_enhancement.training.options.has_bfloat16", lambda: False)
    more = ("--recipe", recipe, "--n_iterations", 4, "--precision", "bfloat16", "--resume")
    assert train(workspace, *more) == 0
    said = capsys.readouterr().out
    assert "Resume at iteration 2" in said
    assert "it was trained in bfloat16 so far, and goes on in float32" in said


def test_what_an_earlier_version_did_not_know_has_its_default(small, tmp_path):
    workspace, recipe = shutil.copytree(small[0], tmp_path / "w"), small[1]
    state = next(workspace.glob("models/*/state.npz"))
    content = dict(np.load(state))
    facts = json.loads(str(content["facts"]))
    del facts["[network] kind"], facts["[training_noise] bursts"]
    np.savez(state, **{**content, "facts": json.dumps(facts)})
    for packed in workspace.rglob("data.h5"):
        with h5py.File(packed, "r+") as file:
            settings = json.loads(file.attrs["recipe"])
            del settings["level_memory_s"]
            file.attrs["recipe"] = json.dumps(settings)
    assert train(workspace, "--recipe", recipe, "--n_iterations", 4, "--resume") == 0


def test_resume_refuses_other_data(small, tmp_path, capsys):
    workspace, recipe = shutil.copytree(small[0], tmp_path / "w"), small[1]
    again = ("--recipe", recipe, "--n_iterations", 4, "--resume")
    assert pack(workspace, "test", 0, "--n_hop", 2) == 0
    assert train(workspace, *again) == 2
    assert "is of a training with test data 0 dB, data.h5 " in capsys.readouterr().err
    assert pack(workspace, "train", 0, "--n_hop", 2) == 0 == scale(workspace)
    assert train(workspace, *again) == 2
    assert "is of a training with training data data.h5 " in capsys.readouterr().err
    assert pack(workspace, "train") == 0 == scale(workspace)  # as it was
    assert pack(workspace, "test") == 0
    assert train(workspace, *again) == 0


def test_resume_refuses_other_speech_and_waves_under_old_names(test_set, tmp_path, capsys):
    workspace = shutil.copytree(test_set, tmp_path / "w")
    speech = shutil.copytree(MINI / "train_speech", tmp_path / "speech")
    flags = on_the_fly_flags(workspace, write_recipe(tmp_path / "small.toml"))
    flags = (*flags, "--speech_dir", speech)
    assert run("main_dnn", "train", *flags, "--n_iterations", 1) == 0

    elsewhere = shutil.copytree(speech, tmp_path / "moved")  # the same files in another place
    again = (*flags, "--n_iterations", 2, "--resume")
    assert run("main_dnn", "train", *again, "--speech_dir", elsewhere) == 0

    capsys.readouterr()
    rng = np.random.default_rng(0)
    for path in speech.iterdir():  # others of the same names and lengths
        info = soundfile.info(path)
        noise = rng.standard_normal(info.frames) / 10
        soundfile.write(path, noise, info.samplerate, subtype=info.subtype)
    assert run("main_dnn", "train", *again, "--n_iterations", 3) == 2
    error = capsys.readouterr().err
    assert "so these are other data" in error or "training speech" in error

    shutil.copy(MINI / "test_speech" / sorted(os.listdir(MINI / "test_speech"))[0], speech)
    assert run("main_dnn", "train", *again, "--n_iterations", 3) == 2
    assert "training speech 4 files of" in capsys.readouterr().err


def test_resume_without_a_state_with_an_old_one_and_behind_the_end(small, tmp_path, capsys):
    workspace, recipe = shutil.copytree(small[0], tmp_path / "w"), small[1]
    state = workspace / "models/0db/state.npz"
    again = ("--recipe", recipe, "--resume")
    assert train(workspace, *again, "--n_iterations", 1) == 2
    assert "is at iteration 2 already, --n_iterations asks for 1" in capsys.readouterr().err
    assert train(workspace, *again, "--n_iterations", 2) == 0  # nothing is left to do
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2])
    assert train(workspace, *again, "--n_iterations", 4) == 2
    assert "state.npz is damaged" in capsys.readouterr().err
    np.savez(state, identity="of an earlier version")
    assert train(workspace, *again, "--n_iterations", 4) == 2
    assert "run train without --resume again" in capsys.readouterr().err
    state.unlink()
    assert train(workspace, *again, "--n_iterations", 4) == 2
    assert "state.npz is missing; run train without --resume first" in capsys.readouterr().err


def test_a_longer_training_says_what_the_schedule_makes_of_it(prepared, tmp_path, capsys):
    workspace = shutil.copytree(prepared, tmp_path / "w")
    recipe = write_recipe(
        tmp_path / "s.toml", "original", cosine_decay="true", learning_rate=0.01, warm_up=0
    )
    assert train(workspace, "--recipe", recipe, "--n_iterations", 2) == 0
    capsys.readouterr()
    assert train(workspace, "--recipe", recipe, "--n_iterations", 8, "--resume") == 0
    said = capsys.readouterr().out
    # At iteration 2 of 2 the half cosine is at 0; at 2 of 8 it is (1 + cos(45 degrees)) / 2 =
    # 0.854.
    assert "n_iterations was 2 and is 8: the learning rate goes from 0 to 0.00854 here" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_saves_its_state_and_goes_on(number, test_set, tmp_path):
    recipe = write_recipe(tmp_path / "small.toml")
    workspace = shutil.copytree(test_set, tmp_path / "w")
    flags = (*on_the_fly_flags(workspace, recipe), "--n_iterations", 100000, "--eval_every", 10)
    command = [sys.executable, ROOT / "main_dnn.py", "train", *flags]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Tests that run in the background of a shell inherit an ignored Ctrl-C, which stays ignored.
    options["preexec_fn"] = lambda: signal.signal(number, signal.SIG_DFL)
    with subprocess.Popen([str(part) for part in command], **options) as process:
        for line in process.stdout:
            if line.startswith("Iteration: 10,"):
                process.send_signal(number)
        errors = process.stderr.read()
    assert process.returncode == 128 + number and errors.count("\n") == 1
    stopped = re.fullmatch(
        rf"stopped by {signal.Signals(number).name} at iteration (\d+): the state is saved, "
        r"go on with --resume\n",
        errors,
    )
    iteration = int(stopped[1])
    flags = (*flags, "--resume", "--n_iterations", iteration + 1)
    assert run("main_dnn", "train", *flags) == 0
    assert [row[0] for row in read_stats(workspace, DEFAULT)][:2] == [0, 10]
    assert Path(model_path(str(workspace), DEFAULT, iteration + 1)).exists()


@pytest.fixture
def usual_ctrl_c():
    """Ctrl-C as Python has it; tests in the background of a shell inherit an ignored one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_acts_as_usual(usual_ctrl_c):
    with noted_signals(Share()) as noted:
        signal.raise_signal(signal.SIGINT)
        assert noted == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert noted == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_the_state_is_saved_when_the_data_give_out(test_set, tmp_path, monkeypatch, capsys):
    def batches(self, first=0):
        yield self.block(0).batch(0)
        raise InputError("speech/a.wav is damaged")

    monkeypatch.setattr(MixtureStream, "batches", batches)
    workspace = shutil.copytree(test_set, tmp_path / "w")
    flags = on_the_fly_flags(workspace, write_recipe(tmp_path / "small.toml"))
    assert run("main_dnn", "train", *flags, "--n_iterations", 5) == 2
    assert "speech/a.wav is damaged" in capsys.readouterr().err
    with np.load(workspace / "models" / DEFAULT / "state.npz") as state:
        assert state["iteration"] == 1


def test_a_state_with_weights_of_other_shapes_is_refused(tmp_path):
    path, facts, none = str(tmp_path / "state.npz"), flat(Recipe()), np.zeros((0, 257))
    scaler = Scaler(np.zeros(257), np.ones(257), none, none)
    write_state(path, facts, scaler, 3, [{"iteration": 3, "tr_loss": 0.5}], [np.ones((3, 2))])
    _, iteration, stats, (weights,) = read_state(path, facts, scaler, [(3, 2)])
    assert (iteration, stats, weights.sum()) == (3, [{"iteration": 3, "tr_loss": 0.5}], 6)
    for shape in ((4, 2), (2, 3), (3, 2, 1)):
        with pytest.raises(InputError, match="weights of other shapes, so an earlier version"):
            read_state(path, facts, scaler, [shape])
