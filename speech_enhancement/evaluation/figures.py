"""The pictures: spectrograms of a test file, and the training curve. PNG files, no window."""

import io
import warnings

import numpy as np

from config import log_epsilon, n_overlap, n_window, sample_rate
from speech_enhancement.files import write_bytes

COLOUR_RANGE_DB = 80  # below the loudest point of the mixture


def save_spectrograms(path: str, magnitudes: dict[str, np.ndarray], title: str) -> None:
    """Draw log-magnitude spectrograms one below the other, with one colour scale in dB.

    Args:
      path: PNG file to write.
      magnitudes: by name, each (n_frames, n_freq).
      title: a line above them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * len(magnitudes)), layout="constrained")
    all_axes = figure.subplots(len(magnitudes), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    levels = {
        name: 20 * np.log10(magnitude + log_epsilon) for name, magnitude in magnitudes.items()
    }
    top = float(np.max(next(iter(levels.values()))))
    seconds_per_frame = (n_window - n_overlap) / sample_rate
    for axes, (name, level) in zip(all_axes, levels.items(), strict=True):
        # Frame k is centred on sample k * hop + n_window / 2.
        begin = (n_window / 2 / sample_rate) - seconds_per_frame / 2
        extent = (begin, begin + len(level) * seconds_per_frame, 0, sample_rate / 2000)
        image = axes.imshow(
            level.T,
            origin="lower",
            aspect="auto",
            extent=extent,
            vmin=top - COLOUR_RANGE_DB,
            vmax=top,
            cmap="magma",
        )
        axes.set_title(name, loc="left", fontsize="medium")
        axes.set_ylabel("frequency (kHz)")
    all_axes[-1].set_xlabel("time (s)")
    figure.colorbar(image, ax=list(all_axes), label="magnitude (dB)")
    figure.suptitle(title, parse_math=False)
    _save(path, figure)


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
