"""Prepare the data: list mixtures, mix and transform them, pack features, compute the scaler."""

import argparse

from speech_enhancement.command_line import COMMON_FLAGS, add_step, decibels, positive_int, run_step
from speech_enhancement.data.mixture_features import calculate_mixture_features
from speech_enhancement.data.mixtures import create_mixture_csv
from speech_enhancement.data.packed_data import compute_scaler, pack_features

FLAGS = COMMON_FLAGS | {  # by argument of the steps
    "speech_dir": {"help": "folder of clean speech (.wav, .flac, .ogg)"},
    "noise_dir": {"help": "folder of noises (.wav, .flac, .ogg)"},
    "data_type": {"help": "which data set", "choices": ["train", "test"]},
    "snr": {"help": "signal-to-noise ratio of the mixtures in dB", "type": decibels},
    "magnification": {
        "help": "noises mixed with each training speech, drawn at random",
        "type": positive_int,
    },
    "speech_list": {"help": "text file naming the speech files to use, one per line; default: all"},
    "noise_list": {"help": "text file naming the noise files to use, one per line; default: all"},
    "n_concat": {"help": "frames in a context window, odd; default: the recipe's", "type": int},
    "n_hop": {"help": "frames from one context window to the next", "type": int},
    "recipe": {"help": "name of a recipe in recipes/, or a TOML file"},
}
SEVERAL_SNRS = {**FLAGS["snr"], "help": f"{FLAGS['snr']['help']}, or several", "nargs": "+"}


def main(argv: list[str] | None = None) -> int:
    """Run the step that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")
    for step, summary in (
        (create_mixture_csv, "list which speech is mixed with which part of which noise"),
        (calculate_mixture_features, "mix, and write waves and spectra"),
        (pack_features, "pack context windows and targets of all mixtures into one HDF5 file"),
    ):
        add_step(steps, step, summary, FLAGS)
    summary = "compute mean and standard deviation of each frequency bin"
    add_step(steps, compute_scaler, summary, FLAGS | {"snr": SEVERAL_SNRS})
    return run_step(parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
