"""The saved state of a training, and what two runs must share for one to continue the other."""

import dataclasses
import json

import numpy as np

from config import stft_settings
from speech_enhancement.errors import InputError
from speech_enhancement.files import read_npz, replacing
from speech_enhancement.network_input import Scaler
from speech_enhancement.recipe import Recipe, flat
from speech_enhancement.training.options import TrainingOptions

N_ITERATIONS = "[training] n_iterations"
PRECISION = "[training] precision"  # weights are float32 in both; not every machine has bfloat16
SAME_SCALER = 1e-3  # nepers; sums on another machine differ by less, other data by more


def facts_of(options: TrainingOptions, recipe: Recipe, made_from: dict[str, str]) -> dict:
    """Return by name all that makes a training what it is: recipe, flags, transform and data."""
    flags = {
        f"--{name}": getattr(options, name) for name in ("seed", "valid_fraction", "on_the_fly")
    }
    return {**flat(recipe), **flags, **stft_settings, **made_from}


def write_state(
    path: str, facts: dict, scaler: Scaler, iteration: int, stats: list[dict], variables: list
) -> None:
    """Save all that a training needs to go on.

    Args:
      path: of the .npz file.
      facts: as of facts_of.
      scaler: of what the network sees.
      iteration: steps taken.
      stats: a dictionary of iteration and losses for each evaluation; at least one.
      variables: arrays, all that changes in training.
    """
    arrays = {f"variable_{number}": variable for number, variable in enumerate(variables)}
    arrays |= {f"scaler_{name}": value for name, value in dataclasses.asdict(scaler).items()}
    arrays["stats"] = np.array([list(row.values()) for row in stats])
    arrays["columns"] = np.array(list(stats[0]))
    with replacing(path) as temporary:
        np.savez(
            temporary, allow_pickle=False, iteration=iteration, facts=json.dumps(facts), **arrays
        )


def read_state(
    path: str, facts: dict, scaler: Scaler, shapes: list[tuple]
) -> tuple[dict, int, list[dict], list[np.ndarray]]:
    """Read the state of a training, after a check that it is the one to continue.

    Args:
      path, facts, scaler: as of write_state, of the training that is to go on.
      shapes: of its variables.
    Returns:
      facts, iteration, stats and variables, as of write_state.
    Raises:
      InputError: there is none, it is damaged, or of another training; the message names what
        differs.
    """
    made_by = "train without --resume"
    saved = json.loads(read_npz(path, ("facts",), made_by)["facts"])
    before = {**flat(Recipe()), **saved}  # what an earlier version did not know has its default
    differences = [
        f"{name} {before.get(name)}, now {facts.get(name)}"
        for name in {**before, **facts}
        if name not in (N_ITERATIONS, PRECISION) and before.get(name) != facts.get(name)
    ]

    scaler_names = [f"scaler_{field.name}" for field in dataclasses.fields(Scaler)]
    names = [f"variable_{number}" for number in range(len(shapes))]
    if not differences:
        found = read_npz(path, ("iteration", "stats", "columns", *scaler_names, *names), made_by)
        pairs = zip(scaler_names, dataclasses.astuple(scaler), strict=True)
        if not all(np.allclose(found[name], now, 0, SAME_SCALER) for name, now in pairs):
            differences = ["mean and deviation of its data, so these are other data"]
        elif [np.shape(found[name]) for name in names] != shapes:
            differences = ["weights of other shapes, so an earlier version made it"]
    if differences:
        raise InputError(
            f"{path} is of a training with {'; '.join(differences[:4])}"
            f"{'; ...' * (len(differences) > 4)}: give it what it had, or train without --resume"
        )

    columns = found["columns"].tolist()
    stats = [dict(zip(columns, row, strict=True)) for row in found["stats"].tolist()]
    for row in stats:
        row["iteration"] = int(row["iteration"])
    return before, found["iteration"], stats, [found[name] for name in names]
