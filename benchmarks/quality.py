"""Train recipes, score them on unseen speakers and noises, and print the ablation table.

    python benchmarks/quality.py --corpus CORPUS --out DIR [--only NAME ...]

CORPUS has the folders train_speech, train_noise, train_noise_free, test_speech and test_noise.
Every system has a workspace of its own in DIR. What is there already is not done again, so a run
that was killed, or given other names with --only, goes on where it stopped. DIR/quality.csv has one
row for each file.

The ladder goes from regression to the default recipe, one idea at a time, each row with the same
number of iterations on the same mixtures. Nothing is chosen on the test set.
"""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import scipy.stats
from common import make_parser, print_head, print_row

import evaluate
import main_dnn
import prepare_data
from speech_enhancement.data.audio_files import list_audio, read_audio, write_wave
from speech_enhancement.data.mixtures import read_mixtures
from speech_enhancement.evaluation import measures
from speech_enhancement.evaluation.score_table import read_score_table
from speech_enhancement.files import csv_text, write_text
from speech_enhancement.recipe import load_recipe
from speech_enhancement.workspace import enhanced_path, mixed_audio_path, scores_path

KEYS = ("system", "snr", "speech", "noise")  # of quality.csv; the measures follow them
MEASURES = ("pesq_raw_mos", "pesq_nb_mos_lqo", "pesq_wb_mos_lqo", "stoi", "si_sdr")
SNRS = (-5, 0, 5, 10, 15, 20)  # dB
LADDER = {  # name: what is changed against the row before
    "regression": {  # of log magnitudes, the default's frames, units and SNRs
        "input": {"noise_estimate": "none", "percentiles": [], "level_window_s": 0.0},
        "network": {"layer_normalization": False},
        "target": {"output": "log_magnitude", "loss": "mean_squared_error", "loudness_weight": 0.0},
        "training": {
            "learning_rate": 1e-4,
            "warm_up": 0,
            "cosine_decay": False,
            "clip_norm": 0.0,
            "weight_average": 0.0,
        },
        "training_noise": {"speed": False, "synthetic": 0.0, "equalization_db": 0.0, "bursts": 0.0},
    },
    "+ mask": {"target": {"output": "mask", "loss": "compressed_magnitude"}},
    "+ noise estimates": {
        "input": {"noise_estimate": "percentiles", "percentiles": [20], "level_window_s": 5.0}
    },
    "+ four percentiles": {"input": {"percentiles": [10, 20, 50, 80]}},
    "+ layer normalization": {"network": {"layer_normalization": True}},
    "+ schedule, average": {"training": None},  # None: as in the default
    "+ noise variety": {
        "training_noise": {"speed": True, "synthetic": 0.2, "equalization_db": 6.0}
    },
    "+ loudness": {"target": None},
    "+ bursts (default)": {"training_noise": None},
}
LONG = ("default", "original")


# --- Recipes of the ladder ----------------------------------------------------------------------


def ladder_recipe(name: str) -> dict:
    """Return the recipe of a row of the ladder as nested dictionaries."""
    default = recipe_dict("default")
    recipe = json.loads(json.dumps(default))
    for row, changes in LADDER.items():
        for section, values in changes.items():
            recipe[section].update(default[section] if values is None else values)
        if row == name:
            return recipe
    raise KeyError(name)


def recipe_dict(name: str) -> dict:
    """Return a shipped recipe as nested dictionaries."""
    return dataclasses.asdict(load_recipe(name))


def write_recipe(path: Path, recipe: dict) -> None:
    """Write a recipe as TOML; JSON's spelling of these values is also TOML's."""
    lines = []
    for section, values in recipe.items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines).replace("Infinity", "inf") + "\n", encoding="utf-8")


# --- Systems --------------------------------------------------------------------------------------


def run(script, step: str, *flags: str, **values) -> None:
    """Run a step of the pipeline in this process, with --name=value for each of the values.

    If the step fails it has said why, and the program stops.
    """
    status = script.main([step, *flags, *(f"--{name}={value}" for name, value in values.items())])
    if status != 0:
        raise SystemExit(status)


def training_noise_dir(corpus: Path, out: Path) -> Path:
    """Return a folder that links to both folders of training noise."""
    folder = out / "train_noise"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train_noise", "train_noise_free"):
        if (corpus / name).is_dir() and not (folder / name).exists():
            (folder / name).symlink_to((corpus / name).resolve())
    return folder


def prepare_test_set(corpus: Path, workspace: Path, snrs: list[float]) -> None:
    """Mix the test set at each SNR: every test speech with every test noise."""
    places = {
        "workspace": workspace,
        "speech_dir": corpus / "test_speech",
        "noise_dir": corpus / "test_noise",
        "data_type": "test",
    }
    run(prepare_data, "create_mixture_csv", **places)
    for snr in snrs:
        run(prepare_data, "calculate_mixture_features", **places, snr=snr)


def prepare_training_set(corpus: Path, workspace: Path, noise_dir: Path) -> None:
    """Prepare the packed training set of the original: 0 dB, two noises for each speech."""
    common = {"workspace": workspace, "data_type": "train"}
    places = {**common, "speech_dir": corpus / "train_speech", "noise_dir": noise_dir}
    run(prepare_data, "create_mixture_csv", **places, magnification=2)
    run(prepare_data, "calculate_mixture_features", **places, snr=0)
    run(prepare_data, "pack_features", **common, snr=0, n_hop=3)
    run(prepare_data, "compute_scaler", **common, snr=0)


def train(name: str, corpus: Path, out: Path, workspace: Path, n_iterations: int) -> None:
    """Train a system, going on from its last saved state."""
    recipe = workspace / "recipe.toml"
    write_recipe(recipe, ladder_recipe(name) if name in LADDER else recipe_dict(name))
    noise_dir = training_noise_dir(corpus, out)
    run(prepare_data, "pack_features", workspace=workspace, data_type="test", snr=0, recipe=recipe)

    flags, values = [], {"workspace": workspace, "te_snr": 0, "recipe": recipe}
    values |= {"n_iterations": n_iterations, "eval_every": max(1, n_iterations // 10)}
    values |= {"save_every": max(1, n_iterations // 4), "keep": 1}
    if name == "original":
        if not (workspace / "packed_features/spectrogram/train/0db/scaler.npz").exists():
            prepare_training_set(corpus, workspace, noise_dir)
    else:
        flags.append("--on_the_fly")
        values |= {"speech_dir": corpus / "train_speech", "noise_dir": noise_dir, "cache_mb": 2000}
    if name in LONG:
        values["valid_fraction"] = 0.1
    if list(workspace.glob("models/*/state.npz")):
        flags.append("--resume")
    run(main_dnn, "train", *flags, **values)


def iteration_to_score(name: str, workspace: Path, n_iterations: int) -> int | str:
    """Return which model is scored: of `original` the best on held-out training speakers."""
    has_best = any(workspace.glob("models/*/md_best.keras"))
    return "best" if name == "original" and has_best else n_iterations


def with_logmmse(audio: np.ndarray) -> np.ndarray:
    """Enhance with log-MMSE (Ephraim and Malah, 1985) of the package logmmse."""
    from logmmse import logmmse

    enhanced = np.asarray(logmmse(audio.astype(np.float32), 16000), np.float64)
    return np.pad(enhanced, (0, max(0, len(audio) - len(enhanced))))[: len(audio)]


def enhance_with_logmmse(workspace: Path, snr: float) -> None:
    """Enhance the test set with log-MMSE."""
    for mixture in read_mixtures(str(workspace), "test"):
        mixed = read_audio(mixed_audio_path(str(workspace), "test", snr, mixture.name))
        write_wave(enhanced_path(str(workspace), snr, mixture.name), with_logmmse(mixed))


def run_system(
    name: str, corpus: Path, out: Path, snrs: list[float], n_iterations: int, pesq: str
) -> None:
    """Train (where there is something to train), enhance and score one system at each SNR."""
    workspace = out / name.replace(" ", "_").replace("+_", "plus_")
    missing = [snr for snr in snrs if not os.path.exists(scores_path(str(workspace), snr))]
    if not missing:
        return
    prepare_test_set(corpus, workspace, missing)
    if name != "logmmse" and not list(workspace.glob(f"models/*/md_{n_iterations}iters.keras")):
        train(name, corpus, out, workspace, n_iterations)
    for snr in missing:
        if name == "logmmse":
            enhance_with_logmmse(workspace, snr)
        else:
            iteration = iteration_to_score(name, workspace, n_iterations)
            run(main_dnn, "inference", workspace=workspace, te_snr=snr, iteration=iteration)
        score_test_set(corpus, workspace, snr, pesq)


def score_test_set(corpus: Path, workspace: Path, snr: float, pesq: str) -> None:
    """Score the enhanced test set at an SNR."""
    places = {"workspace": workspace, "speech_dir": corpus / "test_speech"}
    run(evaluate, "calculate_pesq", **places, te_snr=snr, pesq=pesq)


# --- Scores ---------------------------------------------------------------------------------------


def collect(out: Path) -> list[dict]:
    """Read all scores and write quality.csv; noisy waves are the system "unprocessed"."""
    rows = {}
    for path in sorted(out.glob("*/scores/test/*/scores.csv")):
        workspace, snr = path.parents[3].name, float(path.parent.name.removesuffix("db"))
        for pair, signals in read_score_table(str(path)).of_files.items():
            for signal, scores in signals.items():
                key = ("unprocessed" if signal == "noisy" else workspace, snr, *pair)
                if "pesq_raw_mos" in scores and key not in rows:
                    rows[key] = dict(zip(KEYS, key, strict=True))
                    rows[key] |= {name: scores[name] for name in MEASURES if name in scores}
    columns = [*KEYS, *MEASURES]
    table = [[row.get(name, "") for name in columns] for row in rows.values()]
    write_text(str(out / "quality.csv"), csv_text(columns, table))
    return list(rows.values())


def bootstrap_interval(gains: dict[str, list[float]]) -> tuple[float, float]:
    """Return the 95 % interval of a mean gain; an utterance is drawn with all its noises."""
    means = [np.mean(values) for values in gains.values()]
    if len(set(means)) == 1:  # nothing to draw from
        return means[0], means[0]
    result = scipy.stats.bootstrap(
        (means,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    )
    return tuple(result.confidence_interval)


def print_table(rows: list[dict], snr: float, noises: str) -> None:
    """Print the means of each system at an SNR over the noises whose names start with `noises`."""
    chosen = [row for row in rows if row["snr"] == snr and row["noise"].startswith(noises)]
    noisy = {(row["speech"], row["noise"]): row for row in chosen if row["system"] == "unprocessed"}
    if not noisy:
        return

    print(f"\n{snr:g} dB, {f'noises {noises}*' if noises else 'all noises'}, {len(noisy)} mixtures")
    of_gain = ("raw PESQ", "gain", "95 % interval")
    print_head("system", *of_gain, "LQO narrow", "LQO wide", "STOI", "SI-SDR dB")

    systems = {row["system"] for row in chosen}
    for system in sorted(systems, key=lambda name: (name != "unprocessed", name)):
        of_system = [row for row in chosen if row["system"] == system]
        gains = {}
        for row in of_system:
            gain = row["pesq_raw_mos"] - noisy[row["speech"], row["noise"]]["pesq_raw_mos"]
            gains.setdefault(row["speech"], []).append(gain)
        mean = {name: np.mean([row[name] for row in of_system if name in row]) for name in MEASURES}
        low, high = bootstrap_interval(gains)
        gain = mean["pesq_raw_mos"] - np.mean([row["pesq_raw_mos"] for row in noisy.values()])
        pesq, *others = (
            f"{mean[name]:.{measures.MEASURES[name].n_decimals}f}" for name in MEASURES
        )
        print_row(system, pesq, f"{gain:+.2f}", f"{low:+.2f} to {high:+.2f}", *others)


def draw_gain(rows: list[dict], path: Path) -> None:
    """Draw the gain in raw PESQ against the SNR, for the systems that were scored at several."""
    from matplotlib.figure import Figure

    means = {}
    for row in rows:
        means.setdefault((row["system"], row["snr"]), []).append(row["pesq_raw_mos"])
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for system in sorted({name for name, _ in means} - {"unprocessed"}):
        snrs = sorted(snr for name, snr in means if name == system)
        if len(snrs) > 1:
            scores, noisy = (
                [np.mean(means[of, snr]) for snr in snrs] for of in (system, "unprocessed")
            )
            axes.plot(snrs, np.subtract(scores, noisy), marker="o", label=system)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xlabel="SNR (dB)", ylabel="gain in raw P.862 MOS over unprocessed")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


def main(argv: list[str] | None = None) -> None:
    """Run the systems that are asked for, then print the tables of all that were scored."""
    parser = make_parser(
        __doc__, ["logmmse", "original", "xu2015", "xu2015_multi", *LADDER, "default"]
    )
    for name, default, what in (
        ("--n_iterations", 4000, "each row of the ladder"),
        ("--long_iterations", 60000, "default and original"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"of {what} ({default})")
    parser.add_argument("--pesq", default="./pesq", help="the ITU-T P.862 program (./pesq)")

    arguments = parser.parse_args(argv)
    list_audio(str(arguments.corpus / "test_speech"), "speech")
    for name in arguments.only:
        n_iterations = arguments.long_iterations if name in LONG else arguments.n_iterations
        snrs = SNRS if name in ("default", "logmmse") else (0,)
        run_system(name, arguments.corpus, arguments.out, snrs, n_iterations, arguments.pesq)

    rows = collect(arguments.out)
    for snr in SNRS:
        for noises in ("", "noisex"):
            print_table(rows, snr, noises)
    draw_gain(rows, arguments.out / "gain.png")


if __name__ == "__main__":
    main()
