"""Recipes: everything about a model, in a TOML file, or as plain data inside a trained model."""

import dataclasses
import json
import math
import os
import sys
import tomllib
from dataclasses import dataclass

from speech_enhancement.errors import InputError, MissingFileError
from speech_enhancement.recipe_values import check_names, make_section

PROGRAM_DIR = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
RECIPES_DIR = os.path.join(PROGRAM_DIR, "recipes")


@dataclass(frozen=True)
class Input:
    """What the network sees; recipes/original.toml explains each name, here and below."""

    n_concat: int = 7
    look_ahead: int = 0
    level_window_s: float = 0.0
    level_memory_s: float = 0.0
    floor_db: float = 0.0
    noise_estimate: str = "none"
    first_frames: int = 6
    percentiles: tuple = ()

    @property
    def n_statistics(self) -> int:
        """How many rows of statistics follow the n_concat frames of a window."""
        counts = {"none": 0, "first_frames": 1, "percentiles": len(self.percentiles)}
        return counts[self.noise_estimate]

    @property
    def follows_level(self) -> bool:
        """Whether the level around a frame is subtracted; else the whole recording is scaled."""
        return self.level_window_s > 0 or self.level_memory_s > 0

    @property
    def borders(self) -> tuple[int, int]:
        """How many frames before and after a frame are given to the network with it."""
        n_side = (self.n_concat - 1) // 2
        return n_side, n_side + self.look_ahead


@dataclass(frozen=True)
class Network:
    """Layers and regularisation."""

    kind: str = "window"
    hidden_layers: int = 3
    hidden_units: int = 2048
    activation: str = "relu"
    layer_normalization: bool = False
    residual: bool = False
    input_dropout: float = 0.0
    dropout: float = 0.2
    memory_units: int = 384
    dilations: tuple = ()


@dataclass(frozen=True)
class Target:
    """What the network is to output, and the loss."""

    output: str = "log_magnitude"
    loss: str = "mean_absolute_error"
    compression: float = 0.3
    loudness_weight: float = 0.0
    disturbance_weight: float = 0.0
    envelope_weight: float = 0.0
    mask_weight: float = 0.0


@dataclass(frozen=True)
class Training:
    """Mixtures and schedule."""

    snr_db: tuple = (0.0,)
    snr_range_db: tuple = ()
    narrow_band: float = 0.0
    voices: float = 0.0
    learning_rate: float = 1e-4
    warm_up: int = 0
    cosine_decay: bool = False
    clip_norm: float = 0.0
    weight_average: float = 0.0
    precision: str = "float32"
    batch_size: int = 500
    n_iterations: int = 10000


@dataclass(frozen=True)
class TrainingNoise:
    """Changes to the noise of mixtures that are made on the fly."""

    speed: bool = False
    synthetic: float = 0.0
    equalization_db: float = 0.0
    bursts: float = 0.0
    two_noises: float = 0.0
    level_steps: float = 0.0
    babble: float = 0.0
    tones: float = 0.0
    modulation: float = 0.0


@dataclass(frozen=True)
class Postprocessing:
    """What is done to the network's output."""

    global_variance: bool = False
    keep_noisy_above: float = 1.0
    keep_estimate_below: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """All sections of a recipe file; what it does not name is as in recipes/original.toml."""

    input: Input = Input()
    network: Network = Network()
    target: Target = Target()
    training: Training = Training()
    training_noise: TrainingNoise = TrainingNoise()
    postprocessing: Postprocessing = Postprocessing()

    @property
    def n_looks(self) -> int:
        """How many looks the network takes at a recording while it is alone.

        The second look is at frames half a hop before those of the first. A network takes it that
        needs no frame of the future: both have a memory of their own. See turns.BothLooks.
        """
        is_live = self.network.kind == "memory" and self.input.level_memory_s > 0
        return 2 if is_live and not self.input.look_ahead else 1


def load_recipe(name: str) -> Recipe:
    """Load a recipe that ships (`default`, `original`, ...) or a TOML file.

    Raises:
      InputError: no such recipe, no TOML, or a name in it that is unknown or of the wrong kind.
    """
    path = name if name.endswith(".toml") else os.path.join(RECIPES_DIR, f"{name}.toml")
    if not os.path.isfile(path):
        names = sorted(entry.removesuffix(".toml") for entry in os.listdir(RECIPES_DIR))
        expected = f"one of {', '.join(names)}, or a path that ends in .toml"
        raise MissingFileError(f"{path} is missing; --recipe is {expected}")
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a TOML file ({error}); fix it") from error
    return recipe_from_dict(content, path)


def recipe_from_dict(content: dict, path: str) -> Recipe:
    """Make a recipe from nested dictionaries; `path` names their origin in messages.

    Raises:
      InputError: a name is unknown, or a value of the wrong kind.
    """
    sections = {field.name: field.type for field in dataclasses.fields(Recipe)}
    check_names(content, sections, path)
    recipe = Recipe(
        **{
            name: make_section(sections[name], content[name], f"{path} [{name}]")
            for name in content
        }
    )
    if recipe.network.kind == "memory":
        _check_memory(recipe, path)
    else:
        _check_window(recipe, path)
    _check_input(recipe.input, f"{path} [input]")
    if (recipe.target.output == "mask") != (recipe.target.loss == "compressed_magnitude"):
        raise InputError(
            f"{path} [target]: output mask and loss compressed_magnitude go together; fix it"
        )
    return recipe


def with_n_concat(recipe: Recipe, n_concat: int) -> Recipe:
    """Return a recipe with windows of so many frames.

    Raises:
      InputError: n_concat is even or not positive, so that a window has no centre frame; or the
        network has a memory instead of windows.
    """
    if recipe.network.kind == "memory" and n_concat != 1:
        raise InputError(
            f"n_concat {n_concat}: the network with memory of this recipe sees frame after frame; "
            "leave n_concat out, or take a recipe of windows"
        )
    if n_concat < 1 or n_concat % 2 == 0:
        raise InputError(
            f"n_concat {n_concat}: expected an odd number of frames of at least 1, such as 7"
        )
    return dataclasses.replace(recipe, input=dataclasses.replace(recipe.input, n_concat=n_concat))


def _check_input(settings: Input, where: str) -> None:
    """Raise InputError if the values of the section [input] do not fit together."""
    if settings.n_concat < 1 or settings.n_concat % 2 == 0:
        raise InputError(f"{where}: expected an odd n_concat, found {settings.n_concat}; fix it")
    if settings.noise_estimate != "percentiles":
        return
    # Mixtures made on the fly last 5 s and have one estimate; 10 s are what a stream may be kept
    # waiting for.
    if not 5 <= settings.level_window_s <= 10:
        raise InputError(
            f"{where}: expected a level_window_s from 5 to 10 s, "
            f"found {settings.level_window_s}; fix it"
        )
    if not settings.percentiles or not all(0 <= percent <= 100 for percent in settings.percentiles):
        raise InputError(
            f"{where}: expected percentiles from 0 to 100, found {settings.percentiles}; fix it"
        )


def _check_window(recipe: Recipe, path: str) -> None:
    """Raise InputError if a recipe for a window has what needs neighbouring frames."""
    used = [
        name
        for section, names in (
            (recipe.input, ("look_ahead", "level_memory_s")),
            (recipe.target, ("disturbance_weight", "envelope_weight")),
        )
        for name in names
        if getattr(section, name)
    ]
    if used:
        raise InputError(
            f"{path}: {', '.join(used)} {'is' if len(used) == 1 else 'are'} for networks of the "
            'kind "memory", which train on neighbouring frames; set 0, or choose that kind'
        )


def _check_memory(recipe: Recipe, path: str) -> None:
    """Raise InputError unless the values of a recipe fit a network with memory."""
    settings = recipe.input
    level = settings.level_memory_s > 0, settings.level_window_s > 0
    if settings.n_concat != 1 or (*level, settings.noise_estimate) not in (
        (True, False, "none"),
        (False, True, "percentiles"),
    ):
        raise InputError(
            f'{path} [input]: expected n_concat 1 of a network of the kind "memory", and either '
            'level_memory_s, or level_window_s and noise_estimate "percentiles"; fix it'
        )
    dilations = recipe.network.dilations
    if not dilations or not all(number == int(number) >= 1 for number in dilations):
        raise InputError(
            f"{path} [network]: expected dilations of 1 frame or more, found {dilations}; fix it"
        )
    if recipe.target.output != "mask":
        raise InputError(
            f'{path}: expected the output "mask" of a network of the kind "memory", '
            f'found "{recipe.target.output}"; fix it'
        )


def plain(recipe: Recipe) -> dict:
    """Return a recipe as nested dictionaries that JSON can hold: inf becomes "inf"."""
    content = dataclasses.asdict(recipe)
    for section in content.values():
        for name, value in section.items():
            if isinstance(value, tuple):
                section[name] = ["inf" if number == math.inf else number for number in value]
    return content


def flat(recipe: Recipe) -> dict:
    """Return all values of a recipe as plain data, by "[section] name"."""
    return {
        f"[{section}] {name}": list(value) if isinstance(value, tuple) else value
        for section, values in dataclasses.asdict(recipe).items()
        for name, value in values.items()
    }


def changes_on_the_fly(recipe: Recipe) -> list[str]:
    """Name the changes to training mixtures that a recipe asks for and data.h5 cannot hold.

    They are those of the section [training_noise], narrow_band and voices; mixing on the fly makes
    them.
    """
    changes = {
        **dataclasses.asdict(recipe.training_noise),
        "narrow_band": recipe.training.narrow_band,
        "voices": recipe.training.voices,
    }
    return [name for name, value in changes.items() if value]


def data_settings(recipe: Recipe) -> str:
    """Return, as JSON, what of a recipe decides the content of a data.h5, n_concat apart."""
    content = {**dataclasses.asdict(recipe.input), "output": recipe.target.output}
    del content["n_concat"], content["look_ahead"]
    return json.dumps(content, sort_keys=True)


def fits_data(text: str, recipe: Recipe) -> bool:
    """Return whether data with these data_settings are what a recipe needs.

    A name that earlier versions did not know has its default.
    """
    known = json.loads(data_settings(Recipe()))
    return {**known, **json.loads(text)} == json.loads(data_settings(recipe))


def main(argv: list[str]) -> int:
    """Print what runme.sh needs of a recipe; return the exit status.

    With "kind" or "n_iterations" behind the recipe: the kind of its network, or how many steps its
    training takes; else the flags that name its SNRs.
    """
    try:
        recipe = load_recipe(argv[0])
    except InputError as error:
        print(f"recipe: {error}", file=sys.stderr)
        return 2
    if argv[1:] == ["kind"]:
        print(recipe.network.kind)
        return 0
    training = recipe.training
    if argv[1:] == ["n_iterations"]:
        print(training.n_iterations)
        return 0
    flag, snrs = "--tr_snr", training.snr_db
    if training.snr_range_db:
        flag, snrs = "--tr_snr_range", training.snr_range_db
    print(flag, *(repr(snr).removesuffix(".0") for snr in snrs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
