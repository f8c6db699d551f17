"""The same commands on each of Keras' backends, and on several devices and processes."""

import importlib.util
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import (
    DEFAULT,
    OTHERS,
    ROOT,
    environment,
    needs,
    on_the_fly_flags,
    pack,
    run_process,
    scale,
    train,
    write_recipe,
)

from speech_enhancement.data.audio_files import read_audio
from speech_enhancement.data.mixtures import read_mixtures
from speech_enhancement.network.network import load_model
from speech_enhancement.workspace import enhanced_path, model_path


def link(source, target, *names):
    """Make a workspace with links to some folders of another."""
    target.mkdir()
    for name in names:
        (target / name).symlink_to(source / name)
    return target


@pytest.mark.parametrize("backend", OTHERS)
def test_a_model_of_one_backend_enhances_alike_on_another(backend, trained, tmp_path):
    copy = link(
        trained,
        tmp_path / "copy",
        "models",
        "mixed_audios",
        "mixture_csvs",
        "training_stats",
        "features",
    )
    flags = ("inference", "--workspace", copy, "--te_snr", 0, "--iteration", 4)
    done = run_process("main_dnn", *flags, env=environment(backend))
    assert done.returncode == 0, done.stderr
    for mixture in read_mixtures(str(trained), "test"):
        expected, found = (
            read_audio(enhanced_path(str(place), 0, mixture.name)) for place in (trained, copy)
        )
        # Single precision through four layers; waves of order 1.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["original", "default", "xu2015_multi"])
@pytest.mark.parametrize("backend", OTHERS)
def test_each_backend_trains_resumes_and_its_models_load_here(
    backend, name, prepared, test_set, tmp_path
):
    source, tr_name = (test_set, DEFAULT) if name == "default" else (prepared, "0db")
    names = ["packed_features", "mixed_audios", "mixture_csvs", "features"]
    recipe = write_recipe(tmp_path / "small.toml", name)
    workspace = link(source, tmp_path / "ws", *names)
    if name == "xu2015_multi":
        (workspace / "packed_features").unlink()
        for data_type in ("train", "test"):
            assert pack(workspace, data_type, 0, "--recipe", recipe) == 0
        assert scale(workspace) == 0
    flags = on_the_fly_flags(workspace, recipe)
    if name != "default":
        flags = ("--workspace", workspace, "--te_snr", 0, "--tr_snr", 0, "--recipe", recipe)
    for more in (("--n_iterations", 8, "--save_every", 4), ("--n_iterations", 8, "--resume")):
        done = run_process(
            "main_dnn", "train", *flags, "--eval_every", 4, *more, env=environment(backend)
        )
        assert done.returncode == 0 and f"Keras backend {backend}" in done.stdout, done.stderr
        assert done.stderr == ""
    network, settings = load_model(model_path(str(workspace), tr_name, 8))
    assert settings.iteration == 8 and all(
        np.isfinite(weights).all() for weights in network.get_weights()
    )


@pytest.mark.parametrize(
    ("kind", "made"),
    [("processes", "on the fly"), ("processes", "packed"), ("devices", "on the fly")],
)
@needs("jax")
def test_several_processes_or_devices_get_the_weights_of_one(
    kind, made, prepared, test_set, tmp_path
):
    source, tr_name = (prepared, "0db") if made == "packed" else (test_set, DEFAULT)
    recipe = write_recipe(
        tmp_path / "small.toml", "original" if made == "packed" else "default", weight_average=0.9
    )
    flags = ["--n_iterations", 12, "--eval_every", 6, "--save_every", 6, "--valid_fraction", 0.3]
    workspaces = [
        link(source, tmp_path / name, "packed_features", "mixture_csvs") for name in ("one", "two")
    ]

    def start(workspace, *more, **variables):
        if made == "packed":
            data = ("--workspace", workspace, "--te_snr", 0, "--tr_snr", 0, "--recipe", recipe)
        else:
            data = on_the_fly_flags(workspace, recipe)
        line = [sys.executable, "main_dnn.py", "train", *data, *flags, *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(
            [*map(str, line)], cwd=ROOT, env=environment("jax", **variables), **pipes
        )

    started = [start(workspaces[0])]
    if kind == "devices":
        started.append(
            start(
                workspaces[1], "--distribute", XLA_FLAGS="--xla_force_host_platform_device_count=2"
            )
        )
    else:
        with socket.create_server(("localhost", 0)) as server:
            address = f"localhost:{server.getsockname()[1]}"
        joined = {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
            "KERAS_DISTRIBUTION_NUM_PROCESSES": 2,
        }
        for index in (0, 1):
            started.append(
                start(workspaces[1], "--distribute", **joined, KERAS_DISTRIBUTION_PROCESS_ID=index)
            )
    outputs = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), outputs
    for iteration in (6, 12):
        paths = [model_path(str(workspace), tr_name, iteration) for workspace in workspaces]
        for expected, found in zip(
            *(load_model(path)[0].get_weights() for path in paths), strict=True
        ):
            # The sums over a batch are taken in another order, in single precision; weights are of
            # order 1.
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert (
        len((workspaces[1] / f"training_stats/{tr_name}/stats.csv").read_text().splitlines())
        == 1 + 3
    )


@needs("tensorflow")
def test_distributing_without_jax_and_with_half_of_the_variables(tmp_path):
    flags = ("train", "--workspace", tmp_path, "--te_snr", 0, "--tr_snr", 0, "--distribute")
    done = run_process("main_dnn", *flags, env=environment("tensorflow"))
    assert (
        done.returncode == 2 and "--distribute needs Keras on JAX, found tensorflow" in done.stderr
    )
    if importlib.util.find_spec("jax"):
        done = run_process(
            "main_dnn", *flags, env=environment("jax", KERAS_DISTRIBUTION_PROCESS_ID=0)
        )
        assert done.returncode == 2 and "set all three" in done.stderr
    assert not list(tmp_path.iterdir())


@needs("tensorflow")
def test_the_losses_go_to_tensorboard_too(prepared, tmp_path):
    workspace = link(prepared, tmp_path / "ws", "packed_features", "mixture_csvs")
    recipe = write_recipe(tmp_path / "small.toml", "original")
    assert (
        train(
            workspace, "--recipe", recipe, "--n_iterations", 2, "--tensorboard", tmp_path / "board"
        )
        == 0
    )
    event_files = list((tmp_path / "board").rglob("events.out.tfevents.*"))
    assert event_files and b"te_loss" in b"".join(path.read_bytes() for path in event_files)
