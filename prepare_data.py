"""Prepare the data: list mixtures, mix and transform them, pack features, compute the scaler."""

import argparse

from speech_enhancement.command_line import add_step, decibels, positive_int, run_step
from speech_enhancement.data.mixture_features import calculate_mixture_features
from speech_enhancement.data.mixtures import create_mixture_csv
from speech_enhancement.data.packed_data import compute_scaler, pack_features


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
