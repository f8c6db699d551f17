"""Evaluate: draw the training curve, score the enhanced waves, print the table."""

import argparse
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from command_line import add_step, decibels, positive_int, run_step, say, track
from config import n_window, sample_rate
from errors import InputError, MissingFileError, require_dir, require_file
from parallel import n_cores
from safe_files import write_text
from workspace import (
    Mixture,
    csv_text,
    enhanced_path,
    find_training,
    mixed_audio_path,
    read_csv,
    read_mixtures,
    read_table,
    scores_path,
    snr_name,
    training_figure_path,
    training_stats_path,
)

KEY_COLUMNS = ["speech_name", "noise_name", "signal"]
SIGNALS = ("noisy", "enhanced")
MAX_UNSCORABLE = 0.05  # share of files; more of them are an error

# --- plot_training_stat -----------------------------------------------------------------------


def plot_training_stat(
    workspace: str,
    tr_snr: list[float] | None = None,
    bgn_iter: int = 0,
    fin_iter: int | None = None,
    interval_iter: int = 1,
) -> None:
    """Draw the losses against the iteration.

    Args:
      workspace: folder with training_stats/; the picture goes to figures/.
      tr_snr: signal-to-noise ratios of the training in dB; None takes the only training there is.
      bgn_iter, fin_iter, interval_iter: the iterations range(bgn_iter, fin_iter, interval_iter);
        fin_iter itself is left out; None draws to the end.
    Raises:
      InputError: no recorded iteration is among them.
    """
    from figures import save_training_curve

    tr_name = find_training(workspace, tr_snr)
    source = training_stats_path(workspace, tr_name)
    columns, rows = read_table(source, ",", made_by="train")
    recorded = [[parse_number(field, where) for field in fields] for where, fields in rows]
    fin_iter = fin_iter or 1 + int(max(row[0] for row in recorded))
    stats = [row for row in recorded if row[0] in range(bgn_iter, fin_iter, interval_iter)]
    if not stats:
        found = ", ".join(f"{row[0]:g}" for row in recorded) or "none"
        raise InputError(f"{source} has no iteration in range({bgn_iter}, {fin_iter}, {interval_iter}); it has {found}")
    path = training_figure_path(workspace, tr_name)
    iterations, *losses = zip(*stats, strict=True)
    save_training_curve(path, iterations, dict(zip(columns[1:], losses, strict=True)))
    print(f"{len(stats)} evaluations -> {path}")


def parse_number(field: str, where: str) -> float:
    """Read a number from a field of a CSV file; `where` names the row for the message."""
    try:
        return float(field)
    except ValueError as error:
        raise InputError(f"{where}: expected a number, found {field!r}; mend the row or make the file again") from error


# --- calculate_pesq ---------------------------------------------------------------------------


def calculate_pesq(workspace: str, speech_dir: str, te_snr: float, pesq: str = "./pesq") -> None:
    """Score each mixture and each enhanced wave of the test set against its clean speech.

    Writes scores/test/{te_snr}/scores.csv, a row for each file and signal (noisy, enhanced). A file
    that cannot be scored keeps its row with empty fields and is named on the screen. Files are
    scored in parallel on all cores.

    Working set: three waves for each core.

    Args:
      workspace: folder with the test mixture CSV, the mixed and the enhanced waves.
      speech_dir: folder of the clean test speech, in any format.
      te_snr: signal-to-noise ratio of the test mixtures in dB.
      pesq: the ITU program that pesq_tool/build.sh makes.
    Raises:
      InputError: a wave or the program is missing, or more than 5 % of the enhanced waves cannot be scored.
    """
    from scores import SCORE_COLUMNS, require_pesq

    program = require_pesq(pesq)
    remove_leftovers(workspace, te_snr)
    require_dir(speech_dir, "the clean test speech")
    mixtures = read_mixtures(workspace, "test")
    jobs = [(mixture, signal) for mixture in mixtures for signal in SIGNALS]
    for mixture, signal in jobs:
        require_wave(workspace, te_snr, mixture, signal)
        reference = os.path.join(speech_dir, mixture.speech_name)
        if not os.path.isfile(reference):
            raise MissingFileError(f"{reference} is missing; check --speech_dir against the test mixture CSV")
    path = scores_path(workspace, te_snr)
    rows, n_failed = [], 0
    for (mixture, signal), (scores, problems) in zip(
        jobs, track(score_jobs(jobs, program, workspace, speech_dir, te_snr), len(jobs), "waves"), strict=True
    ):
        for problem in problems:
            say(f"not scored: {signal} {mixture.name}: {problem}")
        n_failed += signal == "enhanced" and "pesq_raw_mos" not in scores
        fields = ["" if scores.get(name) is None else f"{scores[name]:.4g}" for name in SCORE_COLUMNS]
        rows.append([mixture.speech_name, mixture.noise_name, signal, *fields])
    write_text(path, csv_text([*KEY_COLUMNS, *SCORE_COLUMNS], rows))
    print(f"{len(jobs)} waves scored -> {path}")
    if n_failed > MAX_UNSCORABLE * len(mixtures):
        raise InputError(
            f"{path}: {n_failed} of {len(mixtures)} enhanced waves could not be scored; see the lines above"
        )


def remove_leftovers(workspace: str, te_snr: float) -> None:
    """Remove the folders that PESQ worked in when a scoring was killed."""
    folder = os.path.dirname(scores_path(workspace, te_snr))
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if name.startswith(".tmp-pesq-"):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def signal_path(workspace: str, te_snr: float, mixture: Mixture, signal: str) -> str:
    """Return the path of the noisy or the enhanced wave of a test mixture."""
    if signal == "noisy":
        return mixed_audio_path(workspace, "test", te_snr, mixture.name)
    return enhanced_path(workspace, te_snr, mixture.name)


def require_wave(workspace: str, te_snr: float, mixture: Mixture, signal: str) -> None:
    """Raise MissingFileError unless the noisy or the enhanced wave of a test mixture is there."""
    made_by = "calculate_mixture_features" if signal == "noisy" else "inference"
    require_file(signal_path(workspace, te_snr, mixture, signal), made_by)


def score_jobs(jobs: list[tuple[Mixture, str]], program: str, workspace: str, speech_dir: str, te_snr: float):
    """Score waves in parallel; yield score_wave's answers in the order of the jobs.

    Most of the work is the ITU program's, each run a process of its own, so threads keep all cores busy.
    """
    folder = os.path.dirname(scores_path(workspace, te_snr))

    def score(number: int) -> tuple[dict[str, float | None], list[str]]:
        mixture, signal = jobs[number]
        reference = os.path.join(speech_dir, mixture.speech_name)
        degraded = signal_path(workspace, te_snr, mixture, signal)
        return score_wave(program, reference, degraded, os.path.join(folder, f".tmp-pesq-{number}"))

    with warnings.catch_warnings(), ThreadPoolExecutor(n_cores()) as pool:
        warnings.filterwarnings("ignore", message="Not enough STFT frames")  # stoi_score says it
        yield from pool.map(score, range(len(jobs)))


def score_wave(
    program: str, reference_path: str, degraded_path: str, folder: str
) -> tuple[dict[str, float | None], list[str]]:
    """Score a wave file against its clean reference.

    Args:
      program: absolute path of the ITU program.
      reference_path, degraded_path: audio files of one length.
      folder: a folder for PESQ to work in, made and removed.
    Returns:
      The scores by name, without those that are not defined; and why those are not.
    Raises:
      InputError: a file is unreadable, or the two differ in length.
    """
    from audio_files import read_audio
    from scores import UnscorableError, pesq_scores, stoi_score

    reference, degraded = read_audio(reference_path), read_audio(degraded_path)
    if abs(len(reference) - len(degraded)) > n_window:
        raise InputError(
            f"{degraded_path} has {len(degraded)} samples at {sample_rate} Hz, its clean speech {reference_path} "
            f"{len(reference)}; check --speech_dir"
        )
    n_samples = min(len(reference), len(degraded))  # resampled speech may be a sample longer or shorter
    reference, degraded = reference[:n_samples], degraded[:n_samples]
    for path, audio in ((reference_path, reference), (degraded_path, degraded)):
        if not audio.any():
            return {}, [f"{path} is silent"]
    scores, problems = {}, []
    for measure in (
        lambda: pesq_scores(program, reference, degraded, folder),
        lambda: {"stoi": stoi_score(reference, degraded)},
    ):
        try:
            scores.update(measure())
        except UnscorableError as error:
            problems.append(str(error))
    return scores, problems


# --- get_stats --------------------------------------------------------------------------------


def get_stats(workspace: str, te_snr: float) -> None:
    """Print the table of raw P.862 scores: a row for each noise, mean +- standard deviation over files.

    `Avg.` is the mean of the rows' means +- the mean of their deviations. Files without a score
    are left out.

    Args:
      workspace: folder with scores/.
      te_snr: signal-to-noise ratio of the test mixtures in dB.
    Raises:
      InputError: there are no scores.
    """
    path = scores_path(workspace, te_snr)
    pairs = read_score_pairs(path)
    scored = {noise: np.array(of_noise) for noise, of_noise in pairs.items() if of_noise}  # (n_files, 2)
    if not scored:
        raise InputError(f"{path} holds no score; listen to the enhanced waves")
    layout = "{:<16} {:<16} {:<16} {}"
    print(layout.format(f"Noise({snr_name(te_snr).replace('db', 'dB')})", "PESQ", "unprocessed", "files"))
    print("-" * 56)
    for noise in pairs:
        if noise in scored:
            cells = map(mean_and_std, scored[noise].mean(axis=0), scored[noise].std(axis=0))
            print(layout.format(noise, *cells, len(scored[noise])))
        else:
            print(layout.format(noise, "not scored", "not scored", 0))
    print("-" * 56)
    means = np.mean([values.mean(axis=0) for values in scored.values()], axis=0)
    deviations = np.mean([values.std(axis=0) for values in scored.values()], axis=0)
    print(layout.format("Avg.", *map(mean_and_std, means, deviations), sum(map(len, scored.values()))))


def read_score_pairs(path: str) -> dict[str, list[tuple[float, float]]]:
    """Return for each noise the raw P.862 scores (enhanced, noisy) of the files that have both."""
    from audio_files import flat_name
    from scores import SCORE_COLUMNS

    columns = [*KEY_COLUMNS, *SCORE_COLUMNS]
    raw_scores = {}
    for where, fields in read_csv(path, columns, ",", made_by="calculate_pesq"):
        row = dict(zip(columns, fields, strict=True))
        of_file = raw_scores.setdefault((row["noise_name"], row["speech_name"]), {})
        if row["pesq_raw_mos"] != "":
            of_file[row["signal"]] = parse_number(row["pesq_raw_mos"], where)
    pairs = {}
    for (noise_name, _), of_file in raw_scores.items():
        of_noise = pairs.setdefault(flat_name(noise_name), [])
        if of_file.keys() >= set(SIGNALS):
            of_noise.append((of_file["enhanced"], of_file["noisy"]))
    return pairs


def mean_and_std(mean: float, std: float) -> str:
    """Return "1.36 +- 0.05"."""
    return f"{mean:.2f} +- {std:.2f}"


# --- Command line -----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the step that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")
    plot = add_step(steps, plot_training_stat, "draw training and test loss against the iteration")
    score = add_step(steps, calculate_pesq, "score noisy and enhanced waves against the clean speech")
    table = add_step(steps, get_stats, "print the table of PESQ scores")
    for step in (plot, score, table):
        step.add_argument("--workspace", required=True, help="folder of all intermediate files and results")
    plot.add_argument(
        "--tr_snr", type=decibels, nargs="+", help="SNRs of the training in dB; default: the only training there is"
    )
    plot.add_argument("--bgn_iter", type=int, default=0, help="first iteration drawn")
    plot.add_argument("--fin_iter", type=int, help="iteration to stop before; default: after the last")
    plot.add_argument("--interval_iter", type=positive_int, default=1, help="iterations from one point to the next")
    for step in (score, table):
        step.add_argument("--te_snr", type=decibels, required=True, help="SNR of the test mixtures in dB")
    score.add_argument("--speech_dir", required=True, help="folder of the clean test speech, any sample rate in Hz")
    score.add_argument("--pesq", default="./pesq", help="the ITU-T P.862 program that pesq_tool/build.sh makes")
    return run_step(parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
