"""The commands as processes: kills, memory, start without heavy imports, all of runme.sh."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import soundfile
from conftest import MINI, PESQ, ROOT, files_below, run_process, train, write_csv

from speech_enhancement.data.audio_files import read_audio
from speech_enhancement.data.mixture_features import write_mixture
from speech_enhancement.data.mixtures import Mixture
from speech_enhancement.workspace import training_stats_path


def start(script, *flags):
    """Start a step as a process of its own."""
    command = [sys.executable, str(ROOT / f"{script}.py"), *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_when(process, happened):
    """Kill a process as soon as something has happened; return whether it was still running."""
    while process.poll() is None and not happened():
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def folders(data_type):
    return (
        "--speech_dir",
        MINI / f"{data_type}_speech",
        "--noise_dir",
        MINI / f"{data_type}_noise",
    )


@pytest.mark.parametrize("n_files", [1, 2, 5])
def test_a_killed_feature_step_repeats_to_the_same_files(tmp_path, prepared, n_files):
    workspace = tmp_path / "w"
    shutil.copytree(prepared / "mixture_csvs", workspace / "mixture_csvs")
    features = workspace / "features/spectrogram/train/0db"
    flags = (
        "calculate_mixture_features",
        "--workspace",
        workspace,
        "--data_type",
        "train",
        "--snr",
        0,
    )
    process = start("prepare_data", *flags, *folders("train"))
    assert kill_when(process, lambda: features.exists() and len(os.listdir(features)) >= n_files)
    whole = files_below(prepared / "features/spectrogram/train/0db")
    for path in features.iterdir():  # each file is whole, or has a temporary name
        with contextlib.suppress(FileNotFoundError):  # a worker, still ending, has renamed it
            assert path.name.startswith(".tmp-") or path.stat().st_size == len(whole[path.name])
    assert run_process("prepare_data", *flags, *folders("train")).returncode == 0
    assert files_below(workspace / "mixed_audios") == {
        name: content
        for name, content in files_below(prepared / "mixed_audios").items()
        if "train" in name.split(os.sep)
    }
    assert files_below(features).keys() == whole.keys()
    for name in whole:
        with (
            np.load(features / name) as one,
            np.load(prepared / "features/spectrogram/train/0db" / name) as two,
        ):
            np.testing.assert_array_equal(one["mixture_stft"], two["mixture_stft"])


def test_a_killed_packing_step_leaves_the_old_file_and_repeats(tmp_path, prepared):
    workspace = shutil.copytree(prepared, tmp_path / "w")
    folder = workspace / "packed_features/spectrogram/train/0db"
    before = (folder / "data.h5").read_bytes()
    flags = (
        "pack_features",
        "--workspace",
        workspace,
        "--data_type",
        "train",
        "--snr",
        0,
        "--n_hop",
        1,
    )
    kill_when(start("prepare_data", *flags), lambda: any(folder.glob(".tmp-*.h5")))
    assert (folder / "data.h5").read_bytes() == before
    assert run_process("prepare_data", *flags).returncode == 0
    assert sorted(os.listdir(folder)) == ["data.h5", "scaler.npz"]
    with h5py.File(folder / "data.h5") as packed:
        assert packed.attrs["n_hop"] == 1 and np.all(packed["x"][-1] != 0)


def test_a_killed_training_repeats_to_the_same_losses(tmp_path, prepared):
    disturbed, undisturbed = (shutil.copytree(prepared, tmp_path / name) for name in ("a", "b"))
    flags = ("--n_iterations", 4, "--eval_every", 1, "--save_every", 2)
    models = disturbed / "models/0db"
    snrs = ("--tr_snr", 0, "--te_snr", 0)
    process = start("main_dnn", "train", "--workspace", disturbed, *snrs, *flags)
    assert kill_when(process, lambda: models.exists() and os.listdir(models))
    assert train(disturbed, *flags) == train(undisturbed, *flags) == 0
    assert sorted(os.listdir(models)) == ["md_2iters.keras", "md_4iters.keras", "state.npz"]
    losses = [
        np.genfromtxt(training_stats_path(str(workspace), "0db"), delimiter=",", skip_header=1)
        for workspace in (disturbed, undisturbed)
    ]
    # Sums of threads differ in their order.
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-4)


def many_mixtures(workspace, n_mixtures):
    """Prepare a training set of many mixtures, up to the features: mini speech, numbered noises."""
    names = sorted(path.name for path in (MINI / "train_speech").iterdir())
    waves = {name: read_audio(str(MINI / "train_speech" / name)) for name in names}
    rng = np.random.default_rng(0)
    rows = []
    for number in range(n_mixtures):
        speech = waves[names[number % 4]]
        mixture = Mixture(names[number % 4], f"n{number}.wav", 0, len(speech))
        write_mixture(
            str(workspace), "train", 0.0, mixture, speech, rng.standard_normal(len(speech))
        )
        rows.append(mixture)
    write_csv(workspace, rows)


def peak_memory_mb(script, *flags) -> float:
    """Return the peak resident memory of a step in MB.

    A small process starts it: a process inherits the peak of the one it was forked from.
    """
    code = "import resource, subprocess, sys; "
    code += "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    command = [sys.executable, "-c", code, sys.executable, ROOT / f"{script}.py", *flags]
    result = subprocess.run(
        [str(part) for part in command], check=True, capture_output=True, text=True
    )
    return int(result.stdout) / (1024**2 if sys.platform == "darwin" else 1024)


def test_memory_does_not_grow_with_the_data(tmp_path, prepared):
    peaks = {}
    for n_mixtures in (20, 400):
        workspace = shutil.copytree(prepared, tmp_path / str(n_mixtures))
        many_mixtures(workspace, n_mixtures)
        data = ("--workspace", workspace, "--data_type", "train", "--snr", 0)
        snrs = ("--workspace", workspace, "--tr_snr", 0, "--te_snr", 0)
        peaks[n_mixtures] = np.array(
            [
                peak_memory_mb("prepare_data", "pack_features", *data),
                peak_memory_mb("prepare_data", "compute_scaler", *data),
                peak_memory_mb(  # three pools of eight batches
                    "main_dnn", "train", *snrs, "--n_iterations", 24, "--eval_every", 24
                ),
            ]
        )
        shutil.rmtree(workspace)
    print(peaks)
    # 380 mixtures more are 165 MB of packed features; a pool of 33 MB is what may be kept of them.
    assert np.all(peaks[400] - peaks[20] < 100), peaks
    assert np.all(peaks[400] < 1500), peaks


@pytest.mark.parametrize("script", ["prepare_data", "main_dnn", "evaluate"])
def test_help_imports_nothing_heavy_and_explains_each_flag(script):
    code = f"import sys, {script} as s\ntry: s.main(sys.argv[1:])\n"
    code += "except SystemExit: pass\nprint('MODULES', *sys.modules)"
    steps = {
        "prepare_data": [
            "create_mixture_csv",
            "calculate_mixture_features",
            "pack_features",
            "compute_scaler",
        ],
        "main_dnn": ["train", "inference", "enhance", "export"],
        "evaluate": ["plot_training_stat", "calculate_pesq", "get_stats", "score", "report"],
    }[script]
    for arguments in (["--help"], *([step, "--help"] for step in steps)):
        command = [sys.executable, "-c", code, *arguments]
        output = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        text, modules = output.split("MODULES")
        assert not {"tensorflow", "keras", "librosa", "matplotlib", "scipy", "h5py"} & set(
            modules.split()
        )
        flags = {"enhance": "--output_dir", "export": "--output", "score": "--reference"}
        assert flags.get(arguments[0], "--workspace") in text or all(step in text for step in steps)


def environment(**variables):
    """Return the environment for runme.sh: the tests' own Python, and these variables."""
    names = "MINIDATA RECIPE TR_SPEECH_DIR TR_NOISE_DIR TE_SPEECH_DIR TE_NOISE_DIR TR_SNR TE_SNR "
    names += "WORKSPACE ITERATION MAGNIFICATION N_HOP N_CONCAT LEARNING_RATE ON_THE_FLY"
    inherited = {key: value for key, value in os.environ.items() if key not in names.split()}
    return {**inherited, "VIRTUAL_ENV": sys.prefix, **variables}


def runme(*flags, cwd=None, **variables):
    command = [str(ROOT / "runme.sh"), *flags]
    return subprocess.run(
        command, env=environment(**variables), cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not PESQ.exists(), reason="./pesq is not built; run pesq_tool/build.sh")
@pytest.mark.parametrize("on_the_fly", ["0", "1"])
def test_runme_mixes_at_the_recipes_snrs_before_training_or_while_it(tmp_path, on_the_fly):
    recipe = tmp_path / "mine.toml"
    text = (ROOT / "recipes" / "default.toml").read_text()
    text = text.replace("[-5, 0, 5, 10, 15, 20]", "[-2.5, inf]")
    recipe.write_text(text.replace("hidden_units = 1536", "hidden_units = 16"))
    workspace = tmp_path / "w"
    variables = {"WORKSPACE": str(workspace), "RECIPE": str(recipe), "ON_THE_FLY": on_the_fly}
    result = runme(**variables, ITERATION="2", MAGNIFICATION="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (workspace / "models/-2.5db_infdb/md_2iters.keras").exists()
    left_out = "speed, synthetic, equalization_db, bursts are left out"
    assert (left_out in result.stdout) == (on_the_fly == "0")
    mixed = workspace / "mixed_audios/spectrogram/train"
    if on_the_fly == "1":
        assert not mixed.exists()
        return
    assert sorted(path.name for path in mixed.iterdir()) == ["-2.5db", "infdb"]
    for path in (mixed / "infdb").iterdir():  # clean speech with a peak of 1
        clean = read_audio(str(MINI / "train_speech" / f"{path.name.split('.')[0]}.wav"))
        clean /= np.max(np.abs(clean))
        np.testing.assert_allclose(read_audio(str(path)), clean, rtol=0, atol=1e-6)  # rounding


@pytest.mark.parametrize(
    ("flags", "variables", "words"),
    [
        ((), {"ON_THE_FLY": "yes"}, "expected ON_THE_FLY 0 or 1, found yes"),
        ((), {"MINIDATA": "2"}, "expected MINIDATA 0 or 1, found 2"),
        (("--visualize", "--help"), {}, "found --visualize --help"),
    ],
)
def test_runme_refuses_what_it_does_not_know(tmp_path, flags, variables, words):
    result = runme(*flags, WORKSPACE=str(tmp_path / "w"), **variables)
    assert result.returncode == 2 and words in result.stderr and not list(tmp_path.iterdir())


@pytest.mark.skipif(not PESQ.exists(), reason="./pesq is not built; run pesq_tool/build.sh")
def test_runme_ends_with_the_table_and_names_the_pictures(tmp_path):
    workspace = tmp_path / "w s"
    result = runme(
        "--visualize", WORKSPACE=str(workspace), ITERATION="3", N_CONCAT="3", TR_SNR="2.5"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    table = result.stdout[result.stdout.index("Noise(0dB)") :].splitlines()
    assert table[0].split() == ["Noise(0dB)", "PESQ", "unprocessed", "files"]
    assert [line.split()[0] for line in table[2:6:1] if line[0] != "-"] == [
        "printer",
        "vinyl",
        "Avg.",
    ]
    assert f"Pictures: {workspace}/figures" in result.stdout
    for name in (
        "enh_wavs/test/0db",
        "figures/test/0db",
        "models/2.5db",
        "scores/test/0db",
        "training_stats/2.5db",
    ):
        assert list((workspace / name).iterdir()), name
    assert not [name for name in files_below(workspace) if "tmp" in name]


@pytest.mark.skipif(not PESQ.exists(), reason="./pesq is not built; run pesq_tool/build.sh")
def test_runme_runs_all_steps_of_the_original_from_any_folder(tmp_path):
    shutil.copytree(MINI, tmp_path / "data")
    text = (ROOT / "recipes" / "original.toml").read_text()
    recipe = tmp_path / "original.toml"
    recipe.write_text(text.replace("n_iterations = 10000", "n_iterations = 2"))
    names = ("TR_SPEECH_DIR", "TR_NOISE_DIR", "TE_SPEECH_DIR", "TE_NOISE_DIR")
    long = {"TR": "train", "TE": "test"}
    folders = {name: f"data/{long[name[:2]]}_{name[3:-4].lower()}" for name in names}
    result = runme(RECIPE=str(recipe), MINIDATA="0", cwd=tmp_path, **folders)
    assert result.returncode == 0, result.stdout + result.stderr
    workspace = tmp_path / "workspace_original"
    for name in ("packed_features/spectrogram/train/0db/scaler.npz", "models/0db/md_2iters.keras"):
        assert (workspace / name).exists(), name
    assert "Avg." in result.stdout


def test_runme_stops_at_the_step_that_fails_and_names_it(tmp_path):
    result = runme(WORKSPACE=str(tmp_path / "w"), MINIDATA="0")
    assert result.returncode == 2 and "TR_SPEECH_DIR" in result.stderr
    if not PESQ.exists():
        pytest.skip("./pesq is not built; run pesq_tool/build.sh")
    result = runme(WORKSPACE=str(tmp_path / "w"), TE_SPEECH_DIR=str(tmp_path / "nowhere"))
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert (
        len(lines) == 2
        and "nowhere does not exist" in lines[0]
        and "create_mixture_csv" in lines[1]
    )
    assert not (tmp_path / "w" / "models").exists()


def test_the_mini_data_are_complete():
    waves = sorted(path.relative_to(MINI).as_posix() for path in MINI.rglob("*.wav"))
    listed = [
        line.split("\t")[0]
        for line in (MINI / "SOURCES.txt").read_text().splitlines()
        if ".wav\t" in line
    ]
    assert waves == sorted(listed)
    assert all(soundfile.info(MINI / name).samplerate == 16000 for name in waves)
