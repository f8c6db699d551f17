"""Prepare the data: list the mixtures, mix and transform them, pack the features, compute the scaler."""

import argparse
import functools
import itertools
import json
import os
from collections.abc import Callable

import numpy as np

from config import n_overlap, n_window, sample_rate
from speech_enhancement.command_line import add_step, decibels, positive_int, run_step
from speech_enhancement.data.draws import draw_noises, draw_segment
from speech_enhancement.data.packed_data import compute_scaler, pack_features
from speech_enhancement.errors import InputError
from speech_enhancement.parallel import in_processes
from speech_enhancement.progress import track
from speech_enhancement.workspace import (
    Mixture,
    features_path,
    mixed_audio_path,
    mixture_csv_path,
    read_mixtures,
    write_mixtures,
)

MIXTURES_AT_ONCE = 16  # by one process
ATTEMPTS = 50  # to draw a part of a noise that is not silent


# --- create_mixture_csv -----------------------------------------------------------------------


def create_mixture_csv(
    workspace: str,
    speech_dir: str,
    noise_dir: str,
    data_type: str,
    magnification: int = 1,
    speech_list: str | None = None,
    noise_list: str | None = None,
) -> None:
    """List which speech is mixed with which part of which noise.

    Train: each speech with `magnification` noises; test: each speech with every noise. The draws
    depend on the names of a pair alone, so a new speech file changes no other row, and a new noise
    only the rows that it enters.

    Args:
      workspace: folder to write mixture_csvs/{data_type}.csv in.
      speech_dir, noise_dir: folders of .wav, .flac or .ogg files, nested or not.
      data_type: "train" or "test".
      magnification: noises for each speech (train only).
      speech_list, noise_list: text files that name the files to use; None uses all.
    Raises:
      InputError: a folder or list without usable files, or fewer noises than `magnification`.
    """
    from speech_enhancement.data.audio_files import (
        SoundFinder,
        audio_length,
        check_speech_length,
        list_audio,
    )

    speech_names = list_audio(speech_dir, "speech", speech_list)
    noise_names = list_audio(noise_dir, "noise", noise_list)
    if data_type == "train" and magnification > len(noise_names):
        raise InputError(
            f"magnification {magnification} is more than the {len(noise_names)} noises in {noise_dir}; "
            f"lower --magnification or add noises"
        )
    noise_lengths = {name: audio_length(os.path.join(noise_dir, name)) for name in noise_names}
    hear = SoundFinder().first_sound
    mixtures = []
    for speech_name in speech_names:
        speech_path = os.path.join(speech_dir, speech_name)
        n_speech = audio_length(speech_path)
        check_speech_length(n_speech, speech_path)
        chosen = (
            draw_noises(speech_name, noise_names, magnification)
            if data_type == "train"
            else noise_names
        )
        for noise_name in chosen:
            noise_path, n_noise = os.path.join(noise_dir, noise_name), noise_lengths[noise_name]
            onset, offset = draw_sounding(
                hear, speech_name, noise_name, n_speech, noise_path, n_noise
            )
            mixtures.append(Mixture(speech_name, noise_name, onset, offset))
    path = mixture_csv_path(workspace, data_type)
    write_mixtures(path, mixtures)
    print(
        f"{len(speech_names)} speech and {len(noise_names)} noise files: {len(mixtures)} mixtures -> {path}"
    )


def draw_sounding(
    hear: Callable, speech_name: str, noise_name: str, n_speech: int, noise_path: str, n_noise: int
) -> tuple[int, int]:
    """Draw which part of a noise goes with a speech, again as long as it is digital silence; see draw_segment.

    Where a noise is silent nearly everywhere, its first sound is taken.

    Args:
      hear: SoundFinder.first_sound of audio_files.
    """
    for attempt in range(ATTEMPTS):
        onset, offset = draw_segment(speech_name, noise_name, n_speech, n_noise, attempt)
        if n_noise <= n_speech or hear(noise_path, onset, offset) is not None:
            return onset, offset
    onset = min(hear(noise_path, 0, n_noise) or 0, n_noise - n_speech)
    return onset, onset + n_speech


# --- calculate_mixture_features ---------------------------------------------------------------


def calculate_mixture_features(
    workspace: str,
    speech_dir: str,
    noise_dir: str,
    data_type: str,
    snr: float,
    n_jobs: int | None = None,
) -> None:
    """Mix each row of the mixture CSV; write the mixed wave and the spectra.

    The features of a mixture are the complex spectrum of the mixture, `mixture_stft`, and the
    magnitude spectrum of the clean speech in it, `speech_magnitude`, each (n_frames, n_freq).

    The mixtures of a noise are made one after the other, so that a process decodes each noise once.

    Working set, for each job: one mixture, and decoded speech and noise (64 MiB of each, or one file if that
    is larger).

    Args:
      workspace: folder with mixture_csvs/{data_type}.csv.
      speech_dir, noise_dir: the folders that the names in it are relative to.
      data_type: "train" or "test".
      snr: signal-to-noise ratio in dB.
      n_jobs: processes; None takes all cores.
    Raises:
      InputError: a file that is missing, unreadable, silent or too short.
    """
    mixtures = read_mixtures(workspace, data_type)
    make = functools.partial(make_mixtures, workspace, speech_dir, noise_dir, data_type, snr)
    made = itertools.chain.from_iterable(in_processes(make, runs_of_one_noise(mixtures), n_jobs))
    for _ in track(made, len(mixtures), "mixtures"):
        pass
    folder = os.path.dirname(features_path(workspace, data_type, snr, ""))
    print(f"{len(mixtures)} mixtures at {snr:g} dB -> {folder}")


def make_mixtures(
    workspace: str,
    speech_dir: str,
    noise_dir: str,
    data_type: str,
    snr: float,
    mixtures: list[Mixture],
) -> range:
    """Read and mix some pairs and write the mixtures; return a range as long as they are many."""
    for mixture in mixtures:
        speech, noise = read_pair(audio_caches(), mixture, speech_dir, noise_dir)
        write_mixture(workspace, data_type, snr, mixture, speech, noise)
    return range(len(mixtures))


@functools.cache
def audio_caches() -> tuple:
    """Return the caches of decoded speech and noise of this process."""
    from speech_enhancement.data.audio_files import AudioCache

    return AudioCache(), AudioCache()


def runs_of_one_noise(mixtures: list[Mixture]) -> list[list[Mixture]]:
    """Return the mixtures in runs of at most MIXTURES_AT_ONCE with one noise; runs of a noise follow each other."""
    runs = []
    by_noise = sorted(mixtures, key=lambda mixture: mixture.noise_name)
    for _, same in itertools.groupby(by_noise, lambda mixture: mixture.noise_name):
        same = list(same)
        runs += [
            same[start : start + MIXTURES_AT_ONCE]
            for start in range(0, len(same), MIXTURES_AT_ONCE)
        ]
    return runs


def read_pair(
    caches: tuple, mixture: Mixture, speech_dir: str, noise_dir: str
) -> tuple[np.ndarray, np.ndarray]:
    """Read the speech of a mixture and as much of its noise, each (n_samples,) float64.

    Args:
      caches: an AudioCache for speech and one for noise.
      mixture: the row of the CSV.
      speech_dir, noise_dir: the folders that its names are relative to.
    Raises:
      InputError: the row does not fit the files, or one of the two signals is silent.
    """
    from speech_enhancement.data.audio_files import audio_path, check_speech_length
    from speech_enhancement.features import root_mean_square

    speech_path = audio_path(speech_dir, mixture.speech_name)
    noise_path = audio_path(noise_dir, mixture.noise_name)
    speech, noise = caches[0].read(speech_path), caches[1].read(noise_path)
    check_speech_length(len(speech), speech_path)
    onset, offset = mixture.noise_onset, mixture.noise_offset
    row = f"mixture {mixture.name}: noise_onset {onset}, noise_offset {offset}"
    if offset - onset != len(speech):
        raise InputError(
            f"{row}: expected {len(speech)} samples, as {speech_path} has at {sample_rate} Hz; fix the CSV"
        )
    if onset >= len(noise):
        raise InputError(
            f"{row}: {noise_path} ends at {len(noise)} samples at {sample_rate} Hz; fix the CSV"
        )
    noise = (
        noise[onset:offset] if offset <= len(noise) else np.resize(noise, offset)[onset:]
    )  # repeated
    speech, noise = speech.astype(np.float64), noise.astype(np.float64)
    for path, audio in ((speech_path, speech), (noise_path, noise)):
        if root_mean_square(audio) == 0:
            raise InputError(
                f"{row}: {path} is silent there, so no SNR can be reached; remove the row or the file"
            )
    return speech, noise


def write_mixture(
    workspace: str,
    data_type: str,
    snr: float,
    mixture: Mixture,
    speech: np.ndarray,
    noise: np.ndarray,
) -> None:
    """Mix two signals of one length at `snr` dB and write the mixed wave and the features."""
    from speech_enhancement.data.audio_files import write_wave
    from speech_enhancement.data.mixture_features import mixture_settings
    from speech_enhancement.features import mix_at_snr, stft
    from speech_enhancement.files import write_npz

    mixed, speech, _, scaling_factor, alpha = mix_at_snr(speech, noise, snr)
    mixture_stft = stft(mixed, n_window, n_overlap)
    facts = {"scaling_factor": scaling_factor, "alpha": alpha}
    write_wave(mixed_audio_path(workspace, data_type, snr, mixture.name), mixed)
    write_npz(
        features_path(workspace, data_type, snr, mixture.name),
        mixture_stft=mixture_stft.astype(np.complex64),
        speech_magnitude=np.abs(stft(speech, n_window, n_overlap)).astype(np.float32),
        origin=json.dumps({**mixture_settings(mixture, snr), **facts}),
    )


# --- Command line -----------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run the step that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")
    create = add_step(
        steps, create_mixture_csv, "list which speech is mixed with which part of which noise"
    )
    calculate = add_step(steps, calculate_mixture_features, "mix, and write waves and spectra")
    pack = add_step(
        steps, pack_features, "pack context windows and targets of all mixtures into one HDF5 file"
    )
    scale = add_step(
        steps, compute_scaler, "compute mean and standard deviation of each frequency bin"
    )
    for step in (create, calculate, pack, scale):
        step.add_argument(
            "--workspace", required=True, help="folder of all intermediate files and results"
        )
        step.add_argument(
            "--data_type", required=True, choices=["train", "test"], help="which data set"
        )
    for step in (create, calculate):
        step.add_argument(
            "--speech_dir", required=True, help="folder of clean speech (.wav, .flac, .ogg)"
        )
        step.add_argument("--noise_dir", required=True, help="folder of noises (.wav, .flac, .ogg)")
    for step in (calculate, pack):
        step.add_argument(
            "--snr",
            type=decibels,
            required=True,
            help="signal-to-noise ratio of the mixtures in dB",
        )
    scale.add_argument(
        "--snr",
        type=decibels,
        nargs="+",
        required=True,
        help="signal-to-noise ratio of the mixtures in dB, or several",
    )
    for step in (calculate, pack, scale):
        step.add_argument(
            "--n_jobs",
            type=positive_int,
            help="parallel jobs; default: one for each processor core",
        )
    create.add_argument(
        "--magnification",
        type=positive_int,
        default=1,
        help="noises mixed with each training speech, drawn at random",
    )
    create.add_argument(
        "--speech_list", help="text file naming the speech files to use, one per line; default: all"
    )
    create.add_argument(
        "--noise_list", help="text file naming the noise files to use, one per line; default: all"
    )
    pack.add_argument(
        "--recipe", default="original", help="name of a recipe in recipes/, or a TOML file"
    )
    pack.add_argument(
        "--n_concat", type=int, help="frames in a context window, odd; default: the recipe's"
    )
    pack.add_argument(
        "--n_hop", type=int, default=3, help="frames from one context window to the next"
    )
    return run_step(parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
