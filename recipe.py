"""Recipes: everything about a model, in one TOML file; and the same as plain data inside a trained model."""

import dataclasses
import json
import os
import tomllib
from dataclasses import dataclass

from errors import InputError, MissingFileError

RECIPES_DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "recipes")


@dataclass(frozen=True)
class Input:
    """What the network sees; recipes/original.toml explains each name, here and below."""

    n_concat: int
    level_window_s: float
    noise_estimate: str
    first_frames: int
    percentiles: list

    @property
    def n_statistics(self) -> int:
        """How many rows of statistics stand behind the n_concat frames of a window."""
        return {"none": 0, "first_frames": 1, "percentiles": len(self.percentiles)}[self.noise_estimate]


@dataclass(frozen=True)
class Network:
    """Layers and regularisation."""

    hidden_layers: int
    hidden_units: int
    activation: str
    layer_normalization: bool
    input_dropout: float
    dropout: float


@dataclass(frozen=True)
class Target:
    """What the network is to answer, and the loss."""

    output: str
    loss: str
    compression: float
    loudness_weight: float
    mask_weight: float


@dataclass(frozen=True)
class Training:
    """Mixtures and schedule."""

    snr_db: list
    snr_range_db: list
    learning_rate: float
    warm_up: int
    cosine_decay: bool
    clip_norm: float
    weight_average: float
    batch_size: int
    n_iterations: int


@dataclass(frozen=True)
class TrainingNoise:
    """Changes to the noise of mixtures that are made on the fly."""

    speed: bool
    synthetic: float
    equalization_db: float


@dataclass(frozen=True)
class Postprocessing:
    """What is done to the network's answer."""

    global_variance: bool
    keep_noisy_above: float
    keep_estimate_below: float


@dataclass(frozen=True)
class Recipe:
    """All sections of a recipe file."""

    input: Input
    network: Network
    target: Target
    training: Training
    training_noise: TrainingNoise
    postprocessing: Postprocessing


_CHOICES = {
    "noise_estimate": ("none", "first_frames", "percentiles"),
    "output": ("log_magnitude", "mask", "log_magnitude_and_mask"),
    "loss": ("mean_absolute_error", "mean_squared_error", "compressed_magnitude"),
}


def load_recipe(name: str) -> Recipe:
    """Load a recipe that ships (`default`, `original`, ...) or a TOML file.

    Raises:
      InputError: no such recipe, no TOML, or a name in it that is missing, unknown or of the wrong kind.
    """
    path = name if name.endswith(".toml") else os.path.join(RECIPES_DIR, f"{name}.toml")
    if not os.path.isfile(path):
        shipped = ", ".join(sorted(entry.removesuffix(".toml") for entry in os.listdir(RECIPES_DIR)))
        raise MissingFileError(f"{path} is missing; --recipe is one of {shipped}, or a path that ends in .toml")
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a TOML file ({error}); mend it") from error
    return recipe_from_dict(content, path)


def recipe_from_dict(content: dict, path: str) -> Recipe:
    """Make a recipe from nested dictionaries; `path` names their origin in messages.

    Raises:
      InputError: a name is missing, unknown or of the wrong kind.
    """
    sections = {field.name: field.type for field in dataclasses.fields(Recipe)}
    _check_names(content, sections, path)
    recipe = Recipe(**{name: _section(kind, content[name], f"{path} [{name}]") for name, kind in sections.items()})
    _check_input(recipe.input, f"{path} [input]")
    if (recipe.target.output == "mask") != (recipe.target.loss == "compressed_magnitude"):
        raise InputError(f"{path} [target]: output mask and loss compressed_magnitude go together; mend it")
    return recipe


def with_n_concat(recipe: Recipe, n_concat: int) -> Recipe:
    """Return a recipe with windows of so many frames.

    Raises:
      InputError: n_concat is even or not positive, so that a window has no centre frame.
    """
    if n_concat < 1 or n_concat % 2 == 0:
        raise InputError(f"n_concat {n_concat}: expected an odd number of frames of at least 1, such as 7")
    return dataclasses.replace(recipe, input=dataclasses.replace(recipe.input, n_concat=n_concat))


def _check_input(settings: Input, where: str) -> None:
    """Raise InputError if the values of the section [input] do not fit together."""
    if settings.n_concat < 1 or settings.n_concat % 2 == 0:
        raise InputError(f"{where}: expected an odd n_concat, found {settings.n_concat}; mend it")
    if settings.noise_estimate != "percentiles":
        return
    # Mixtures made on the fly last 5 s and have one estimate; 10 s are what a stream may be kept waiting for.
    if not 5 <= settings.level_window_s <= 10:
        raise InputError(f"{where}: expected a level_window_s from 5 to 10 s, found {settings.level_window_s}; mend it")
    if not settings.percentiles or not all(0 <= percent <= 100 for percent in settings.percentiles):
        raise InputError(f"{where}: expected percentiles from 0 to 100, found {settings.percentiles}; mend it")


def _section(kind: type, content: dict, where: str):
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    _check_names(content, fields, where)
    for name, expected in fields.items():
        value = content[name]
        is_number = expected is float and isinstance(value, int) and not isinstance(value, bool)
        if not (type(value) is expected or is_number):
            raise InputError(f"{where}: expected {name} to be of type {expected.__name__}, found {value!r}; mend it")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise InputError(f"{where}: expected {name} to be one of {', '.join(_CHOICES[name])}, found {value!r}")
    return kind(**{name: expected(content[name]) for name, expected in fields.items()})


def _check_names(content: dict, expected: dict, where: str) -> None:
    missing, unknown = (
        [name for name in expected if name not in content],
        [name for name in content if name not in expected],
    )
    if missing or unknown:
        found = [f"no {name}" for name in missing] + [f"an unknown {name}" for name in unknown]
        raise InputError(f"{where}: found {', '.join(found)}; compare with recipes/original.toml")


def data_settings(recipe: Recipe) -> str:
    """Return, as JSON, what of a recipe decides the content of a data.h5, n_concat apart."""
    content = {**dataclasses.asdict(recipe.input), "output": recipe.target.output}
    del content["n_concat"]
    return json.dumps(content, sort_keys=True)
