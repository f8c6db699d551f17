"""The seed of a training: the order of packed batches and the draws on the fly depend on it."""

import numpy as np
from conftest import MINI, write_recipe

from speech_enhancement.training.devices import Share
from speech_enhancement.training.on_the_fly import open_mixing_on_the_fly
from speech_enhancement.training.options import TrainingOptions, chosen_recipe
from speech_enhancement.training.packed_batches import open_packed_training


def first_targets(open_data, workspace, seed, **options):
    """Return the targets of the first batch that a training with this seed gets."""
    options = TrainingOptions(workspace=str(workspace), te_snr=0.0, seed=seed, **options)
    with open_data(options, chosen_recipe(options), Share()) as data:
        batches = data.trained_on.batches()
        _, targets = next(batches)
        batches.close()
    return targets


def test_another_seed_gives_another_order_of_packed_batches(prepared):
    first, again, other = (
        first_targets(open_packed_training, prepared, seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_another_seed_gives_other_draws_on_the_fly(test_set, tmp_path):
    options = {
        "recipe": str(write_recipe(tmp_path / "small.toml")),
        "on_the_fly": True,
        "speech_dir": str(MINI / "train_speech"),
        "noise_dir": str(MINI / "train_noise"),
    }
    first, again, other = (
        first_targets(open_mixing_on_the_fly, test_set, seed, **options) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
