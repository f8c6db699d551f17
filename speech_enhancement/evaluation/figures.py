"""The pictures: spectrograms of a test file, and the training curve. PNG files, no window."""

import io
import os
import warnings
from typing import NamedTuple

import numpy as np

from config import log_epsilon, n_window, sample_rate
from speech_enhancement.data.mixture_features import read_features
from speech_enhancement.data.mixtures import read_mixtures
from speech_enhancement.errors import InputError
from speech_enhancement.features import N_HOP, magnitudes
from speech_enhancement.files import parse_number, read_table, write_bytes
from speech_enhancement.workspace import (
    enhanced_path,
    find_training,
    mixed_audio_path,
    spectrogram_figure_path,
    training_figure_path,
    training_stats_path,
)

COLOUR_MAP = "magma"
COLOUR_RANGE_DB = 80  # below the loudest point of the mixture
N_COLOURS = 64  # of a picture of the report: steps of 1.25 dB
MAX_COLUMNS = 2000  # of such a picture; longer ones show the loudest of neighbouring frames


# --- Spectrograms -----------------------------------------------------------------------------


def draw_test_spectrograms(workspace: str, te_snr: float) -> None:
    """Draw mixture, clean and enhanced spectrogram of each file of the test set.

    Args:
      workspace: folder with the test mixture CSV, features, mixed and enhanced waves.
      te_snr: signal-to-noise ratio of the test mixtures in dB.
    Raises:
      InputError: a file is missing or damaged.
    """
    from speech_enhancement.data.audio_files import read_audio

    mixtures = read_mixtures(workspace, "test")
    for mixture in mixtures:
        _, speech_magnitude, _ = read_features(workspace, "test", te_snr, mixture)
        mixed = read_audio(mixed_audio_path(workspace, "test", te_snr, mixture.name))
        enhanced = read_audio(enhanced_path(workspace, te_snr, mixture.name))
        spectra = {
            "mixture": magnitudes(mixed),
            "clean speech": speech_magnitude,
            "enhanced": magnitudes(enhanced),
        }
        title = f"{mixture.speech_name} in {mixture.noise_name} at {te_snr:g} dB"
        path = spectrogram_figure_path(workspace, te_snr, mixture.name)
        save_spectrograms(path, spectra, title)

    folder = os.path.dirname(spectrogram_figure_path(workspace, te_snr, ""))
    print(f"{len(mixtures)} pictures -> {folder}")


def save_spectrograms(path: str, spectra: dict[str, np.ndarray], title: str) -> None:
    """Draw spectrograms one below the other, in dB below the loudest point of the first.

    Args:
      path: PNG file to write.
      spectra: magnitudes by name, each (n_frames, n_freq); the first is the mixture.
      title: a line above them.
    """
    from librosa.display import specshow
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * len(spectra)), layout="constrained")
    all_axes = figure.subplots(len(spectra), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    loudest = float(np.max(next(iter(spectra.values()))))
    scales = {"x_axis": "s", "y_axis": "hz", "sr": sample_rate}
    colour_scale = {"vmin": -COLOUR_RANGE_DB, "vmax": 0, "cmap": COLOUR_MAP}

    for axes, (name, spectrum) in zip(all_axes, spectra.items(), strict=True):
        middles_s = (np.arange(len(spectrum)) * N_HOP + n_window / 2) / sample_rate
        levels = level_db(spectrum, loudest).T
        image = specshow(levels, ax=axes, x_coords=middles_s, **scales, **colour_scale)
        axes.set_title(name, loc="left", fontsize="medium")
        axes.set(xlabel="", ylabel="frequency (Hz)")
        axes.label_outer()

    all_axes[-1].set_xlabel("time (s)")
    figure.colorbar(image, ax=list(all_axes), label="magnitude (dB)")
    figure.suptitle(title, parse_math=False)
    _save(path, figure)


def level_db(spectrum: np.ndarray, loudest: float) -> np.ndarray:
    """Return magnitudes of any shape in dB relative to the loudest."""
    import librosa

    return librosa.amplitude_to_db(spectrum, ref=loudest, amin=log_epsilon, top_db=None)


def save_plain_spectrogram(path: str, spectrum: np.ndarray, loudest: float) -> None:
    """Write a spectrogram as a picture without axes: one column a frame, 0 Hz at the bottom.

    Args:
      path: PNG file to write.
      spectrum: (n_frames, n_freq) magnitudes.
      loudest: magnitude of the brightest colour; COLOUR_RANGE_DB below it is the darkest.
    """
    from PIL import Image

    if len(spectrum) > MAX_COLUMNS:
        starts = np.arange(MAX_COLUMNS) * len(spectrum) // MAX_COLUMNS
        spectrum = np.maximum.reduceat(spectrum, starts)
    shares = 1 + level_db(spectrum, loudest) / COLOUR_RANGE_DB  # 0 to 1
    indices = np.clip(shares * N_COLOURS, 0, N_COLOURS - 1).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(indices.T[::-1]))
    image.putpalette(bytes.fromhex("".join(colours()).replace("#", "")))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    write_bytes(path, buffer.getvalue())


def colours() -> list[str]:
    """Return the colours of a plain spectrogram from quiet to loud, as #rrggbb."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps[COLOUR_MAP](np.linspace(0, 1, N_COLOURS))]


# --- The training curve -----------------------------------------------------------------------


class LoggedLosses(NamedTuple):
    """What a training recorded: its name, the iterations, and the losses at them by name."""

    tr_name: str
    iterations: list[float]
    losses: dict[str, list[float]]


def read_losses(workspace: str, tr_name: str) -> LoggedLosses:
    """Read the losses that a training recorded.

    Raises:
      InputError: the file is missing or malformed.
    """
    columns, rows = read_table(training_stats_path(workspace, tr_name), ",", made_by="train")
    numbers = [[parse_number(field, where) for field in fields] for where, fields in rows]
    iterations, *losses = ([row[index] for row in numbers] for index in range(len(columns)))
    return LoggedLosses(tr_name, iterations, dict(zip(columns[1:], losses, strict=True)))


def plot_training_stat(
    workspace: str,
    tr_snr: list[float] | None = None,
    tr_snr_range: list[float] | None = None,
    bgn_iter: int = 0,
    fin_iter: int | None = None,
    interval_iter: int = 1,
) -> None:
    """Draw the losses against the iteration.

    Args:
      workspace: folder with training_stats/; the picture goes to figures/.
      tr_snr, tr_snr_range: signal-to-noise ratios of the training, or their range, in dB; without
        them the training that ran last.
      bgn_iter, fin_iter, interval_iter: the iterations range(bgn_iter, fin_iter, interval_iter);
        fin_iter itself is left out; None draws to the end.
    Raises:
      InputError: no recorded iteration is among them.
    """
    tr_name = find_training(workspace, tr_snr, tr_snr_range)
    source = training_stats_path(workspace, tr_name)
    _, iterations, losses = read_losses(workspace, tr_name)
    if not iterations:
        raise InputError(f"{source} has a header and no iteration; run train again")

    end = max(iterations) + 1 if fin_iter is None else fin_iter
    kept = [
        index
        for index, iteration in enumerate(iterations)
        if bgn_iter <= iteration < end and (iteration - bgn_iter) % interval_iter == 0
    ]
    if not kept:
        raise InputError(
            f"{source} has no iteration in range({bgn_iter}, {end:g}, {interval_iter}); "
            f"it has {', '.join(f'{value:g}' for value in iterations)}"
        )

    path = training_figure_path(workspace, tr_name)
    losses = {name: [values[index] for index in kept] for name, values in losses.items()}
    save_training_curve(path, [iterations[index] for index in kept], losses)
    print(f"{len(kept)} evaluations -> {path}")


def save_training_curve(path: str, iterations: list[float], losses: dict[str, list[float]]) -> None:
    """Draw losses, by name, against the iteration."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    labels = {
        "tr_loss": "training set",
        "te_loss": "test set",
        "valid_loss": "held-out training speakers",
    }
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, values in losses.items():
        axes.plot(iterations, values, marker="o", markersize=3, label=labels.get(name, name))
    axes.set_xlabel("iteration")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    _save(path, figure)


def _save(path: str, figure) -> None:
    """Write a figure to a PNG file."""
    picture = io.BytesIO()
    with warnings.catch_warnings():
        # The font may lack letters of a file name; they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(picture, format="png", dpi=100)
    write_bytes(path, picture.getvalue())
