"""Small models with random weights, and noise to try them on."""

import dataclasses

import numpy as np

from config import stft_settings
from speech_enhancement.network.architectures import build_network
from speech_enhancement.network.network import Settings, save_model
from speech_enhancement.network_input import Scaler
from speech_enhancement.recipe import load_recipe, recipe_from_dict


def make_model(path, name="default", bias=0.0):
    """Save a network of a recipe with random weights.

    `bias`, a number or one for each bin, is added to what its last layer outputs.
    """
    recipe = load_recipe(name)
    recipe = dataclasses.replace(
        recipe, network=dataclasses.replace(recipe.network, hidden_units=16)
    )
    shape = (recipe.input.n_statistics, 257)
    scaler = Scaler(
        np.full(257, -3.0), np.full(257, 2.0), np.full(shape, -4.0), np.full(shape, 2.0)
    )
    model = build_network(recipe, 257, seed=0)
    weights = model.get_weights()
    model.set_weights([*weights[:-1], weights[-1] + bias])
    save_model(
        str(path),
        model,
        Settings(**stft_settings, snr="0db", iteration=0, recipe=recipe, scaler=scaler),
    )
    return path


def memory_recipe(look_ahead=0, dilations=(1, 2, 4), percentiles=()):
    """Return the recipe `live` with a few small blocks, and batches of 16 runs of 5 s.

    With percentiles it knows a window around each frame.
    """
    content = dataclasses.asdict(load_recipe("live"))
    content["input"] |= {"look_ahead": look_ahead}
    if percentiles:
        content["input"] |= {"level_memory_s": 0.0, "level_window_s": 5.0}
        content["input"] |= {"noise_estimate": "percentiles", "percentiles": list(percentiles)}
    content["network"] |= {"hidden_units": 12, "memory_units": 20, "dilations": list(dilations)}
    content["training"] |= {"batch_size": 16 * 312}
    return recipe_from_dict(content, "test")


def with_random_weights(model, seed=0, size=0.15):
    """Set all weights of a network at random, those too that are 0 or 1 at first."""
    rng = np.random.default_rng(seed)
    model.set_weights([size * rng.standard_normal(w.shape) for w in model.get_weights()])
    return model


def make_memory_model(path, look_ahead=0, percentiles=()):
    """Save a small network with memory with random weights."""
    recipe, shape = memory_recipe(look_ahead, percentiles=percentiles), (len(percentiles), 257)
    scaler = Scaler(np.full(257, -1.0), np.full(257, 2.0), np.full(shape, -2.0), np.ones(shape))
    settings = Settings(**stft_settings, snr="0db", iteration=0, recipe=recipe, scaler=scaler)
    save_model(str(path), with_random_weights(build_network(recipe, 257, 0)), settings)
    return path


def noise(n_samples, n_channels=None, level=0.1, seed=0):
    shape = (n_samples,) if n_channels is None else (n_samples, n_channels)
    return level * np.random.default_rng(seed).standard_normal(shape)
