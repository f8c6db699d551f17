"""The options of a training: each is a flag of `main_dnn.py train`, explained by its help."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from speech_enhancement.command_line import (
    decibels,
    fraction,
    natural,
    positive_float,
    positive_int,
)
from speech_enhancement.errors import InputError
from speech_enhancement.network.keras_backend import has_bfloat16
from speech_enhancement.progress import say
from speech_enhancement.recipe import Recipe, load_recipe, with_n_concat


def _flag(explanation: str, default=dataclasses.MISSING, **how):
    """Return the field of an option; `how` is what argparse should know of its flag."""
    metadata = {"help": explanation, **how}
    return dataclasses.field(default=default, metadata=metadata, kw_only=True)


@dataclass(frozen=True)
class TrainingOptions:
    """What a training run varies; what makes the model is its recipe."""

    workspace: str = _flag("folder of all intermediate files and results")
    te_snr: float = _flag("SNR of the test mixtures in dB", type=decibels)
    recipe: str = _flag("name of a recipe in recipes/, or a TOML file", "original")
    tr_snr: Sequence[float] | None = _flag(
        "SNRs of the training mixtures in dB; default: the recipe's", None, type=decibels, nargs="+"
    )
    tr_snr_range: Sequence[float] | None = _flag(
        "draw the SNR from LOW to HIGH dB instead; on the fly only",
        None,
        type=decibels,
        nargs=2,
        metavar=("LOW", "HIGH"),
    )
    n_concat: int | None = _flag(
        "frames in a context window, odd; default: the recipe's", None, type=positive_int
    )
    lr: float | None = _flag(
        "learning rate of Adam, per iteration; default: the recipe's", None, type=positive_float
    )
    n_iterations: int | None = _flag(
        "training steps, one batch each; default: the recipe's", None, type=positive_int
    )
    batch_size: int | None = _flag(
        "frames in a batch; default: the recipe's", None, type=positive_int
    )
    precision: str | None = _flag(
        "of products while training; default: the recipe's", None, choices=["float32", "bfloat16"]
    )
    eval_every: int = _flag("iterations between evaluations", 1000, type=positive_int)
    save_every: int = _flag("iterations between saved models", 5000, type=positive_int)
    keep: int | None = _flag(
        "how many of the saved models to keep; default: all", None, type=positive_int
    )
    seed: int = _flag(
        "of the first weights, dropout, the order of batches and draws on the fly", 0, type=natural
    )
    valid_fraction: float = _flag(
        "share of the training speakers held out for md_best.keras", 0.0, type=fraction
    )
    initial_model: str | None = _flag(
        "a model whose weights and scaler to begin with; default: random weights", None
    )
    resume: bool = _flag("go on from the last saved state", False)
    on_the_fly: bool = _flag(
        "make the training mixtures as they are needed, of the two folders:", False
    )
    speech_dir: str | None = _flag("folder of training speech, for --on_the_fly", None)
    noise_dir: str | None = _flag("folder of training noise, for --on_the_fly", None)
    cache_mb: int = _flag("MB of waves to keep decoded, for --on_the_fly", 256, type=positive_int)
    distribute: bool = _flag("train on all devices, here and on other machines; JAX only", False)
    tensorboard: str | None = _flag(
        "folder to write the losses to for TensorBoard too; default: none", None, metavar="DIR"
    )


TRAINING_FLAGS = {field.name: field.metadata for field in dataclasses.fields(TrainingOptions)}


def chosen_recipe(options: TrainingOptions) -> Recipe:
    """Load the recipe and let the options override its values; an option that is None leaves them.

    Raises:
      InputError: there is no such recipe, n_concat is even, or both or neither of SNRs and a range
        of them are given.
    """
    recipe = load_recipe(options.recipe)
    if options.n_concat is not None:
        recipe = with_n_concat(recipe, options.n_concat)

    overrides = {
        "learning_rate": options.lr,
        "n_iterations": options.n_iterations,
        "batch_size": options.batch_size,
        "precision": options.precision,
    }
    if options.tr_snr or options.tr_snr_range:  # each replaces what the recipe says of both
        overrides["snr_db"] = tuple(options.tr_snr or ())
        overrides["snr_range_db"] = tuple(options.tr_snr_range or ())
    recipe = with_training(recipe, overrides)

    if bool(recipe.training.snr_db) == bool(recipe.training.snr_range_db):
        raise InputError(
            f"recipe {options.recipe}: expected SNRs or a range of them, found both or none; "
            f"give --tr_snr or --tr_snr_range"
        )
    check_range(recipe.training.snr_range_db, f"recipe {options.recipe}")
    if recipe.training.precision == "bfloat16" and not has_bfloat16():
        say("this processor has no bfloat16: training in float32")
        recipe = with_training(recipe, {"precision": "float32"})
    return recipe


def check_range(limits: Sequence[float], where: str) -> None:
    """Raise InputError unless a range of SNRs is empty or goes from one number up to another."""
    if limits and not (
        len(limits) == 2 and all(map(math.isfinite, limits)) and limits[0] <= limits[1]
    ):
        raise InputError(
            f"{where}: expected a range of SNRs from LOW up to HIGH dB, found "
            f"{' '.join(f'{limit:g}' for limit in limits)}; correct --tr_snr_range or snr_range_db"
        )


def with_training(recipe: Recipe, overrides: dict) -> Recipe:
    """Return a recipe with the values of its section [training] that are not None replaced."""
    given = {name: value for name, value in overrides.items() if value is not None}
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, **given))
