"""How the steps scale with the data and the cores: preparation, training, scoring, inference.

    python benchmarks/throughput.py --corpus CORPUS --out FOLDER [--only preparation training memory
    scoring]

Every part prints a table with a baseline that it measures in the same run: one core, the smaller
set, or a bare `train_on_batch` on one fixed batch. CORPUS has the folders train_speech,
train_noise_free, test_speech, test_noise; the part memory needs 20 GB in FOLDER.
"""

import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import soundfile
from common import ROOT, make_parser, print_head, print_row

import main_dnn
from config import sample_rate
from speech_enhancement.data.audio_files import list_audio, read_audio
from speech_enhancement.data.packed_data import new_packed
from speech_enhancement.enhancement.enhance import SHIPPED_MODEL
from speech_enhancement.features import N_HOP
from speech_enhancement.network.network import load_model
from speech_enhancement.parallel import ahead, n_cores
from speech_enhancement.training.devices import Share
from speech_enhancement.training.on_the_fly import open_mixing_on_the_fly
from speech_enhancement.training.options import TrainingOptions, chosen_recipe, with_training
from speech_enhancement.training.packed_batches import open_packed_training
from speech_enhancement.training.training import Training

CUT_S = 3
RECIPE = "original"  # 3 x 2048 units, batches of 500
N_MIXTURES = (500, 2000)  # of preparation
N_WARM_UP = 8  # training steps that are not timed
N_STEPS = 60  # of training, timed
N_ITERATIONS = 40  # of the trainings whose memory is measured
HOURS = (1, 20)
PRECISIONS = ("float32", "bfloat16")


def run(script: str, step: str, *flags) -> tuple[float, float]:
    """Run a step as a command; return its seconds, and the peak MB of its largest process."""
    command = [sys.executable, str(ROOT / f"{script}.py"), step, *map(str, flags)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


# --- Preparation ----------------------------------------------------------------------------------


def cut_speech(corpus: Path, folder: Path, n_cuts: int) -> None:
    """Write n_cuts pieces of 3 s of the training speech; neighbours share a sixth."""
    if len(list(folder.glob("*.flac"))) == n_cuts:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names, n_done = list_audio(str(corpus / "train_speech"), "speech"), 0
    for name in names:
        audio = read_audio(str(corpus / "train_speech" / name))
        for start in range(0, len(audio) - CUT_S * sample_rate + 1, CUT_S * sample_rate * 5 // 6):
            if n_done == n_cuts:
                return
            piece = audio[start : start + CUT_S * sample_rate]
            path = folder / f"{name.removesuffix('.flac')}_{start}.flac"
            soundfile.write(path, piece, sample_rate)
            n_done += 1
    if n_done < n_cuts:
        raise SystemExit(f"{corpus} has only {n_done} of the {n_cuts} pieces of {CUT_S} s")


def prepare(
    corpus: Path, out: Path, n_mixtures: int, n_jobs: int, name: str = ""
) -> tuple[float, float]:
    """Mix, pack and scale, two noises for each speech; return seconds in all, and peak MB."""
    speech_dir = out / f"speech_{n_mixtures}"
    workspace = out / f"prepared_{n_mixtures}_{n_jobs}{name}"
    cut_speech(corpus, speech_dir, n_mixtures // 2)
    common = ("--workspace", workspace, "--data_type", "train")
    folders = ("--speech_dir", speech_dir, "--noise_dir", corpus / "train_noise_free")
    run("prepare_data", "create_mixture_csv", *common, *folders, "--magnification", 2)
    jobs = ("--snr", 0, "--n_jobs", n_jobs)
    os.sync()  # otherwise the system would still be writing the run before to the disk
    steps = [
        run("prepare_data", "calculate_mixture_features", *common, *folders, *jobs),
        run("prepare_data", "pack_features", *common, *jobs),
        run("prepare_data", "compute_scaler", *common, *jobs),
    ]
    return sum(seconds for seconds, _ in steps), max(memory for _, memory in steps)


def measure_preparation(corpus: Path, out: Path) -> None:
    """Print what the three steps of preparation cost for N_MIXTURES, on one core and on all.

    Three runs each, taken in turns: on a virtual machine, the system may need much longer to find
    memory for new files in one minute than in the next. The ratio to one job is the median of those
    of neighbouring runs. Every run writes new folders, which are removed in the end, because a file
    system may be slow to make files for some minutes after thousands were removed.
    """
    done = set(out.glob("prepared_*"))
    jobs = (1, n_cores())
    runs = {(n_mixtures, n_jobs): [] for n_mixtures in N_MIXTURES for n_jobs in jobs}
    for repeat in range(3):
        for kind, of_kind in runs.items():
            of_kind.append(prepare(corpus, out, *kind, f"_{os.getpid()}_{repeat}"))

    of_time = ("s, best and worst", "times real time", "ms a mixture", f"to {N_MIXTURES[0]}")
    print_head("preparation", "jobs", *of_time, "to one job", "peak MB")
    for (n_mixtures, n_jobs), of_kind in runs.items():
        seconds, memory = (np.array(values) for values in zip(*of_kind, strict=True))
        alone = np.array([second for second, _ in runs[n_mixtures, 1]])
        per_mixture = 1000 * seconds.min() / n_mixtures
        growth = per_mixture / (1000 * min(runs[N_MIXTURES[0], n_jobs])[0] / N_MIXTURES[0])
        real_time = " to ".join(
            f"{n_mixtures * CUT_S / value:.0f}" for value in (seconds.max(), seconds.min())
        )
        of_time = (f"{seconds.min():.2f}, {seconds.max():.2f}", real_time, f"{per_mixture:.2f}")
        ratios = (f"{growth:.2f}", f"{np.median(alone / seconds):.2f}")
        kind = (f"{n_mixtures} mixtures of {CUT_S} s", str(n_jobs))
        print_row(*kind, *of_time, *ratios, f"{memory.max():.0f}")

    for workspace in set(out.glob("prepared_*")) - done:
        shutil.rmtree(workspace)


# --- Training -------------------------------------------------------------------------------------


def packed_training_set(corpus: Path, out: Path) -> Path:
    """Return the workspace of the larger training set; prepare it if it is not there."""
    workspace = out / f"prepared_{N_MIXTURES[-1]}_{n_cores()}"
    if not workspace.exists():
        prepare(corpus, out, N_MIXTURES[-1], n_cores())
    return workspace


def test_set(corpus: Path, workspace: Path, recipe: str) -> None:
    """Prepare the test set that a training evaluates."""
    common = ("--workspace", workspace, "--data_type", "test")
    folders = ("--speech_dir", corpus / "test_speech", "--noise_dir", corpus / "test_noise")
    run("prepare_data", "create_mixture_csv", *common, *folders)
    run("prepare_data", "calculate_mixture_features", *common, *folders, "--snr", 0)
    run("prepare_data", "pack_features", *common, "--snr", 0, "--recipe", recipe)


def long_speech(corpus: Path, folder: Path, hours: float) -> Path:
    """Make a folder of links to the training speech, as often as the hours need."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    names = list_audio(str(corpus / "train_speech"), "speech")
    total = sum(soundfile.info(corpus / "train_speech" / name).duration for name in names)
    for copy in range(max(1, round(hours * 3600 / total))):
        for name in names:
            (folder / f"{copy}_{name}").symlink_to((corpus / "train_speech" / name).resolve())
    return folder


def long_packed(source: Path, workspace: Path, hours: float) -> None:
    """Write a data.h5 of so many hours that repeats the rows of another, and its scaler."""
    place = Path("packed_features/spectrogram/train/0db")
    with h5py.File(source / place / "data.h5") as small:
        n_rows = round(hours * 3600 * sample_rate / N_HOP / 3)
        shapes = {name: (n_rows, *small[name].shape[1:]) for name in ("x", "y")}
        path, attributes = str(workspace / place / "data.h5"), dict(small.attrs)
        with new_packed(path, shapes, attributes, np.array([0])) as packed:
            block = {name: small[name][:4096] for name in ("x", "y")}
            for start in range(0, n_rows, 4096):
                for name in ("x", "y"):
                    packed.write(name, start, block[name][: n_rows - start])
    shutil.copy(source / place / "scaler.npz", workspace / place / "scaler.npz")


def step_rate(training, batches, n_steps: int) -> tuple[float, float]:
    """Return training steps a second, after some to warm up, and the share of the time waited."""
    for _ in range(N_WARM_UP):
        training.step(next(batches))
    waited, began = 0.0, time.perf_counter()
    for _ in range(n_steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        training.step(batch)
    seconds = time.perf_counter() - began
    return n_steps / seconds, waited / seconds


def measure_training(corpus: Path, out: Path) -> None:
    """Print the step rate on the fly and with a data.h5, against one fixed batch."""
    workspace = out / "training"
    test_set(corpus, workspace, RECIPE)
    packed_from = packed_training_set(corpus, out)
    for name in ("packed_features/spectrogram/train", "mixture_csvs/train.csv"):
        if not (workspace / name).exists():
            (workspace / name).symlink_to((packed_from / name).resolve())
    options = TrainingOptions(
        workspace=str(workspace),
        te_snr=0.0,
        tr_snr=[0.0],
        speech_dir=str(corpus / "train_speech"),
        noise_dir=str(corpus / "train_noise_free"),
        cache_mb=2000,
    )

    print_head("training, 2048 units, batch 500", "steps a second", "ratio", "waiting for data")
    kinds = {"data.h5": open_packed_training, "on the fly": open_mixing_on_the_fly}
    for name, open_data in kinds.items():
        rates = step_rates(options, name, open_data)
        for (precision, source), (rate, waited) in rates.items():
            bare, single = rates[precision, "a fixed batch"][0], rates["float32", source][0]
            compared = f"{rate / bare:.3f} of a fixed batch, {rate / single:.2f} of float32"
            print_row(f"{precision}, {source}", f"{rate:.2f}", compared, f"{100 * waited:.1f} %")


def step_rates(options: TrainingOptions, name: str, open_data) -> dict:
    """Return step_rate by precision and source of batches, which are `name` and a fixed one."""
    recipe, rates = chosen_recipe(options), {}
    with open_data(options, recipe, Share()) as data:
        batches = ahead(data.trained_on.batches())
        sources = {"a fixed batch": itertools.repeat(next(batches)), name: batches}
        trainings = {
            precision: Training(options, with_training(recipe, {"precision": precision}), data)
            for precision in PRECISIONS
        }
        for _ in range(2):  # in turn, since the speed of a machine drifts
            for precision, training in trainings.items():
                for source, of_source in sources.items():
                    rate = step_rate(training, of_source, N_STEPS)
                    rates[precision, source] = max(rate, rates.get((precision, source), rate))
        batches.close()
    return rates


def measure_memory(corpus: Path, out: Path) -> None:
    """Print peak memory, and the time to the first iteration, of trainings on 1 and on 20 hours."""
    packed_from = packed_training_set(corpus, out)
    of_run = ("hours", "peak MB", "growth MB", "s in all")
    print_head(f"training, {N_ITERATIONS} iterations", *of_run)
    for kind in ("on the fly", "data.h5"):
        first = None
        for hours in HOURS:
            workspace = out / f"memory_{hours}"
            test_set(corpus, workspace, RECIPE)
            flags = ["--workspace", workspace, "--te_snr", 0, "--tr_snr", 0, "--recipe", RECIPE]
            flags += ["--n_iterations", N_ITERATIONS]
            if kind == "on the fly":
                flags += ["--on_the_fly", "--cache_mb", 32]  # both fill it within a few blocks
                flags += ["--speech_dir", long_speech(corpus, out / f"speech_{hours}h", hours)]
                flags += ["--noise_dir", corpus / "train_noise_free"]
            else:
                long_packed(packed_from, workspace, hours)

            seconds, memory = run("main_dnn", "train", *flags)
            first = first or memory
            growth = f"{memory - first:+.0f}"
            print_row(kind, str(hours), f"{memory:.0f}", growth, f"{seconds:.0f}")
            shutil.rmtree(workspace)


# --- Scoring and inference ------------------------------------------------------------------------


def measure_scoring(corpus: Path, out: Path) -> None:
    """Print how fast the test set is enhanced, and scored by one core and by all."""
    workspace = out / "scoring"
    test_set(corpus, workspace, RECIPE)
    target = workspace / "models/0db/md_0iters.keras"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(SHIPPED_MODEL, target)
    load_model(str(target))  # start-up is left out

    waves = (workspace / "mixed_audios/spectrogram/test/0db").iterdir()
    audio_s = sum(soundfile.info(path).duration for path in waves)
    durations = []
    for _ in range(3):
        began = time.perf_counter()
        main_dnn.inference(str(workspace), 0, 0, [0.0])
        durations.append(time.perf_counter() - began)
    print()
    print_head(f"inference of {audio_s:.0f} s, loading in", "real-time factor")
    print_row("shipped model", f"{min(durations) / audio_s:.4f}")

    flags = ["--workspace", workspace, "--te_snr", 0, "--pesq", ROOT / "pesq"]
    flags += ["--speech_dir", corpus / "test_speech"]
    alone, _ = run("evaluate", "calculate_pesq", *flags, "--n_jobs", 1)
    together, _ = run("evaluate", "calculate_pesq", *flags)
    print_head("scoring", "s", "ratio to one job")
    print_row("one job", f"{alone:.1f}", "1")
    print_row(f"{n_cores()} jobs", f"{together:.1f}", f"{alone / together:.2f}")


PARTS = {
    "preparation": measure_preparation,
    "training": measure_training,
    "memory": measure_memory,
    "scoring": measure_scoring,
}


def main(argv: list[str] | None = None) -> None:
    """Measure the parts that are asked for."""
    arguments = make_parser(__doc__, PARTS).parse_args(argv)
    for name in arguments.only:
        PARTS[name](arguments.corpus, arguments.out)


if __name__ == "__main__":
    main()
