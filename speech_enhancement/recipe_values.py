"""The values of a recipe, each alone: their kinds, and their limits."""

import dataclasses
import math

from speech_enhancement.errors import InputError

_CHOICES = {
    "kind": ("window", "memory"),
    "noise_estimate": ("none", "first_frames", "percentiles"),
    "output": ("log_magnitude", "mask", "log_magnitude_and_mask"),
    "loss": ("mean_absolute_error", "mean_squared_error", "compressed_magnitude"),
    "precision": ("float32", "bfloat16"),
}
_FROM_1 = "first_frames hidden_layers hidden_units memory_units batch_size n_iterations"
_FROM_0 = (
    "look_ahead level_window_s level_memory_s floor_db loudness_weight disturbance_weight "
    "envelope_weight mask_weight warm_up clip_norm equalization_db"
)
_SHARES = "narrow_band voices synthetic bursts two_noises level_steps babble tones modulation"
_LIMITS = {  # lowest and highest value of numbers; others are bound by their kind alone
    **dict.fromkeys(_FROM_1.split(), (1, math.inf)),
    **dict.fromkeys(_FROM_0.split(), (0, math.inf)),
    **dict.fromkeys([*_SHARES.split(), "keep_noisy_above", "keep_estimate_below"], (0, 1)),
    **dict.fromkeys(["input_dropout", "dropout", "weight_average"], (0, 0.999999)),
    "learning_rate": (1e-12, math.inf),
    "compression": (0.001, 1),
    "snr_db": (-200, math.inf),  # inf is clean speech
    "snr_range_db": (-200, 200),
}


def make_section(kind: type, content: dict, where: str):
    """Make a section of a recipe from a dictionary; `where` names it in messages.

    Raises:
      InputError: a name is unknown, or a value of the wrong kind.
    """
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a section, found {content!r}; fix it")
    check_names(content, fields, where)
    values = {name: _value(name, fields[name], value, where) for name, value in content.items()}
    return kind(**values)


def _value(name: str, expected: type, value, where: str):
    """Return a value of a recipe as what it is expected to be; lists of numbers become tuples."""
    if expected is tuple:
        if isinstance(value, list | tuple):
            value = [math.inf if number == "inf" else number for number in value]  # see plain
        fits = isinstance(value, list | tuple) and {*map(type, value)} <= {int, float}
    else:
        fits = type(value) in ((int, float) if expected is float else (expected,))
    if not fits:
        kind = "numbers in brackets" if expected is tuple else f"of type {expected.__name__}"
        raise InputError(f"{where}: expected {name} to be {kind}, found {value!r}; fix it")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise InputError(
            f"{where}: expected {name} to be one of {', '.join(_CHOICES[name])}, "
            f"found {value!r}; fix it"
        )
    if expected in (int, float, tuple):
        _check_numbers(name, value if expected is tuple else [value], where)
    return tuple(map(float, value)) if expected is tuple else expected(value)


def _check_numbers(name: str, numbers: list, where: str) -> None:
    """Raise InputError unless numbers are within their limits; only an SNR may be infinite."""
    low, high = _LIMITS.get(name, (-math.inf, math.inf))
    for number in numbers:
        if name in _LIMITS and not low <= number <= high:
            most = "" if high == math.inf else f" and at most {high:g}"
            raise InputError(
                f"{where}: expected {name} to be at least {low:g}{most}, found {number}; fix it"
            )
        if not math.isfinite(number) and name != "snr_db":
            raise InputError(f"{where}: expected {name} to be finite, found {number}; fix it")


def check_names(content: dict, expected: dict, where: str) -> None:
    """Raise InputError if a dictionary has names that are not expected."""
    unknown = [name for name in content if name not in expected]
    if unknown:
        raise InputError(
            f"{where}: found an unknown {', '.join(unknown)}; compare with recipes/original.toml"
        )
