"""What a training reads: the recipe with the flags over it, and packed features or mixtures made on the fly."""

import dataclasses
import os

from speech_enhancement.data.audio_files import AudioCache, list_audio
from speech_enhancement.data.mixtures import held_out_speech
from speech_enhancement.data.packed_data import read_scaler
from speech_enhancement.errors import InputError
from speech_enhancement.network.keras_backend import has_bfloat16, import_keras
from speech_enhancement.parallel import ahead
from speech_enhancement.progress import say
from speech_enhancement.recipe import Recipe, load_recipe, with_n_concat
from speech_enhancement.training.on_the_fly import MixtureStream, Snrs
from speech_enhancement.training.packed_batches import (
    PackedData,
    check_same_recipe,
    open_packed,
    split_rows,
)
from speech_enhancement.training.training import Sets
from speech_enhancement.workspace import snr_name

EVALUATION_BATCHES = 100  # at most so many batches of each packed set are evaluated
EVALUATION_BATCHES_ON_THE_FLY = 16  # they are made anew each time


def resolve_recipe(name: str, **flags) -> Recipe:
    """Load a recipe and put the flags of train over its section [training]; None leaves what the recipe says.

    Args:
      name: of the recipe, or a TOML file.
      flags: tr_snr and tr_snr_range, which replace each other, or names of recipe.Training.
    Raises:
      InputError: there is no such recipe, or both or neither of SNRs and a range of them.
    """
    tr_snr, tr_snr_range = flags.pop("tr_snr", None), flags.pop("tr_snr_range", None)
    overrides = {key: value for key, value in flags.items() if value is not None}
    if tr_snr or tr_snr_range:
        overrides |= {"snr_db": tuple(tr_snr or ()), "snr_range_db": tuple(tr_snr_range or ())}
    recipe = with_training(load_recipe(name), overrides)
    if bool(recipe.training.snr_db) == bool(recipe.training.snr_range_db):
        raise InputError(
            f"recipe {name}: expected SNRs or a range of them, found both or none; give --tr_snr"
        )
    if recipe.training.precision == "bfloat16" and not has_bfloat16():
        say("this processor has no bfloat16: training in float32")
        return with_training(recipe, {"precision": "float32"})
    return recipe


def with_training(recipe, overrides: dict):
    """Return a recipe with some values of its section [training] replaced."""
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, **overrides))


def training_name(recipe) -> str:
    """Return the name of the folders of a training: of its SNRs, or of the ends of their range."""
    low_and_high = recipe.training.snr_range_db
    return (
        "to".join(map(snr_name, low_and_high))
        if low_and_high
        else snr_name(*recipe.training.snr_db)
    )


def say_device(share, precision: str) -> None:
    """Print what the training runs on."""
    keras = import_keras()
    backend = keras.backend.backend()
    if backend == "torch":  # Keras does not list PyTorch's devices
        import torch

        devices = ["gpu" if torch.cuda.is_available() else "cpu"]
    else:
        devices = keras.distribution.list_devices()
        devices = devices if share.n_devices > 1 else devices[:1]
    process = f", process {share.index} of {share.n_processes}" if share.n_processes > 1 else ""
    say(f"train on {', '.join(devices)} in {precision}, Keras backend {backend}{process}")


def packed_sets(
    stack, workspace: str, te_snr: float, recipe, seed: int, valid_fraction: float, share
):
    """Open the packed training and test set; return the recipe, with their n_concat, and training.Sets."""
    snrs = recipe.training.snr_db
    if not snrs:
        raise InputError(
            "packed features exist at single SNRs in dB; give --tr_snr, or train --on_the_fly"
        )
    files = open_packed(stack, workspace, "train", snrs)
    n_concat = int(files[0].attrs["n_concat"])
    scaler = read_scaler(workspace, snrs, files)
    test_files = open_packed(stack, workspace, "test", [te_snr])
    check_same_recipe([*files, *test_files], recipe, n_concat)
    recipe = with_n_concat(recipe, n_concat)
    train_rows, valid_rows = split_rows(workspace, files, valid_fraction)
    whole_test = [[(0, len(test_files[0]["x"]))]]
    n_freq = files[0]["x"].shape[-1]

    def packed(some_files: list, rows: list, *shared) -> PackedData:
        return PackedData(some_files, rows, n_concat, scaler, recipe.training.batch_size, *shared)

    train_set = packed(files, train_rows, share)
    if min(recipe.training.batch_size, train_set.n_segs) < share.n_devices:
        found = f"{recipe.training.batch_size} of {train_set.n_segs} windows"
        raise InputError(
            f"a batch of {found} cannot be shared by {share.n_devices} devices; give a larger --batch_size"
        )
    sampled = {"tr_loss": train_set, "te_loss": packed(test_files, whole_test)}
    if valid_fraction > 0:
        sampled["valid_loss"] = packed(files, valid_rows)
    samples = {
        name: (lambda data=data: data.sample(EVALUATION_BATCHES)) for name, data in sampled.items()
    }
    return recipe, Sets(
        lambda first: ahead(train_set.batches(seed, first)), samples, scaler, n_freq
    )


def on_the_fly_sets(
    stack,
    workspace: str,
    te_snr: float,
    recipe,
    speech_dir,
    noise_dir,
    seed: int,
    valid_fraction: float,
    cache_mb: int,
    share,
):
    """Set up streams of training mixtures and the packed test set; return the recipe and training.Sets."""
    if not speech_dir or not noise_dir:
        raise InputError(
            "--on_the_fly needs --speech_dir and --noise_dir, folders of training speech and noise"
        )
    test_files = open_packed(stack, workspace, "test", [te_snr])
    recipe = with_n_concat(recipe, int(test_files[0].attrs["n_concat"]))
    check_same_recipe(test_files, recipe, recipe.input.n_concat)
    speech_names, noise_names = list_audio(speech_dir, "speech"), list_audio(noise_dir, "noise")
    held_out = held_out_speech(speech_names, valid_fraction)
    noise_paths = [os.path.join(noise_dir, name) for name in noise_names]
    snrs, cache = (
        Snrs(tuple(recipe.training.snr_db), *recipe.training.snr_range_db),
        AudioCache(cache_mb * 2**20),
    )

    def stream(names: list[str], number: int, *shared) -> MixtureStream:
        speech_paths = [os.path.join(speech_dir, name) for name in names]
        return MixtureStream(
            speech_paths, noise_paths, recipe, snrs, [seed, number], cache, *shared
        )

    trained_on = [name for name in speech_names if name not in held_out]
    train_stream = stream(trained_on, 0, share)
    scaler = train_stream.compute_scaler()
    sampled = {"tr_loss": stream(trained_on, 1)}
    if held_out:
        sampled["valid_loss"] = stream(sorted(held_out), 2)
    for other in sampled.values():
        other.scaler = scaler
    test_set = PackedData(
        test_files,
        [[(0, len(test_files[0]["x"]))]],
        recipe.input.n_concat,
        scaler,
        recipe.training.batch_size,
    )
    samples = {
        name: (lambda other=other: other.sample(EVALUATION_BATCHES_ON_THE_FLY))
        for name, other in sampled.items()
    }
    samples["te_loss"] = lambda: test_set.sample(EVALUATION_BATCHES)
    samples = {
        name: samples[name] for name in ("tr_loss", "te_loss", "valid_loss") if name in samples
    }
    return recipe, Sets(train_stream.batches, samples, scaler, test_files[0]["x"].shape[-1])
