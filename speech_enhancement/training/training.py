"""Training a network: the loop, the losses on the way, what is saved, and going on after a kill."""

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from config import stft_settings
from speech_enhancement.errors import InputError
from speech_enhancement.files import read_npz, replacing, write_text
from speech_enhancement.network.keras_backend import import_keras
from speech_enhancement.network.losses import make_loss
from speech_enhancement.network.network import Settings, build_network, save_model
from speech_enhancement.network_input import Scaler
from speech_enhancement.progress import say, track
from speech_enhancement.recipe import Recipe
from speech_enhancement.training.devices import Share
from speech_enhancement.workspace import (
    csv_text,
    model_path,
    models_dir,
    training_state_path,
    training_stats_path,
)

AVERAGE_EVERY = 8  # iterations between updates of the averaged weights


@dataclass
class Sets:
    """What a training reads.

    Attributes:
      batches: a function of a batch number: yields training batches from there on, without end.
      samples: by name (tr_loss, te_loss, valid_loss), a function that yields the batches to evaluate.
      scaler: of what the network sees.
      n_freq: frequency bins of a frame.
    """

    batches: Callable[[int], Iterator]
    samples: dict[str, Callable[[], Iterator]]
    scaler: Scaler
    n_freq: int


class Training:
    """A network in training: its optimizer, its averaged weights, and the losses recorded so far.

    Args:
      workspace, tr_name: folder, and name of the folders in it.
      recipe: with all that the flags of train put over it.
      sets: what is read.
      seed: of first weights and dropout.
      share: of several processes each trains on its part of every batch.
      tensorboard: folder for TensorBoard's files; None writes none.
    """

    def __init__(
        self,
        workspace: str,
        tr_name: str,
        recipe: Recipe,
        sets: Sets,
        seed: int,
        share: Share = Share(),  # noqa: B008 (it is frozen)
        tensorboard: str | None = None,
    ):
        self.workspace, self.tr_name, self.recipe, self.sets = workspace, tr_name, recipe, sets
        self.iteration, self.stats, self.share = 0, [], share
        self.identity = training_identity(recipe, seed)
        scaled = sets.scaler.mean.astype(np.float32), sets.scaler.std.astype(np.float32)
        self.loss = make_loss(recipe, *scaled)
        # What is evaluated and saved: float32, on one device, without loss and optimizer.
        self.result = build_network(recipe, sets.n_freq, seed)
        with share.scope():
            self.trained = build_network(recipe, sets.n_freq, seed, recipe.training.precision)
            self.trained.compile(optimizer=make_optimizer(recipe), loss=self.loss)
            self.trained.optimizer.build(self.trained.trainable_variables)
            averages = recipe.training.weight_average > 0
            self.average = build_network(recipe, sets.n_freq, seed) if averages else None
        self._tensorboard = (
            make_tensorboard(tensorboard, self.trained) if tensorboard and share.is_first else None
        )

    def update_result(self) -> None:
        """Copy the weights, or their average if the recipe averages, to the network that is evaluated and saved."""
        source = self.trained if self.average is None else self.average
        self.result.set_weights(source.get_weights())

    def step(self, batch) -> None:
        """Take one training step."""
        with self.share.scope():
            self.trained.train_on_batch(*batch)
            self.iteration += 1
            if self.average is not None and self.iteration % AVERAGE_EVERY == 0:
                # Early on the average follows faster, so that the random first weights are soon forgotten.
                kept = (
                    min(self.recipe.training.weight_average, self.iteration / (10 + self.iteration))
                    ** AVERAGE_EVERY
                )
                for old, new in zip(self.average.weights, self.trained.weights, strict=True):
                    old.assign(kept * old + (1 - kept) * new)

    def evaluate(self) -> None:
        """Print and record the losses; keep the model as the best if its valid_loss is the lowest so far."""
        self.update_result()
        losses = {name: self.mean_loss(batches) for name, batches in self.sets.samples.items()}
        if not np.isfinite(list(losses.values())).all():
            raise InputError(
                f"the losses are no longer finite at iteration {self.iteration}: {losses}; lower --lr"
            )
        text = ", ".join(f"{name}: {value:.6f}" for name, value in losses.items())
        say(f"Iteration: {self.iteration}, {text}")
        rows = [row for row in self.stats if row["iteration"] < self.iteration]
        earlier = [row["valid_loss"] for row in rows if "valid_loss" in row]
        self.stats = [*rows, {"iteration": self.iteration, **losses}]
        columns = ["iteration", *losses]
        table = [[row["iteration"], *(f"{row[name]:.6f}" for name in losses)] for row in self.stats]
        write_text(training_stats_path(self.workspace, self.tr_name), csv_text(columns, table))
        if self._tensorboard is not None:
            self._tensorboard.on_epoch_end(self.iteration, losses)
        if "valid_loss" in losses and losses["valid_loss"] <= min(earlier, default=np.inf):
            save_model(
                model_path(self.workspace, self.tr_name, "best"), self.result, self.settings()
            )

    def mean_loss(self, batches: Callable[[], Iterator]) -> float:
        """Return the loss, dropout off, averaged over the frames of some batches."""
        total, n_frames, result, ops = 0.0, 0, self.result, import_keras().ops
        for inputs, y in batches():
            answer = ops.convert_to_tensor(result.predict_on_batch(inputs))
            of_frames = np.asarray(
                ops.convert_to_numpy(self.loss(ops.convert_to_tensor(y), answer))
            )
            total, n_frames = total + float(of_frames.sum()), n_frames + of_frames.size
        return total / n_frames

    def settings(self) -> Settings:
        """Collect what inference needs to know beside the weights."""
        settings = Settings(
            **stft_settings,
            snr=self.tr_name,
            iteration=self.iteration,
            recipe=self.recipe,
            scaler=self.sets.scaler,
        )
        if self.recipe.postprocessing.global_variance:
            settings.gv_beta = self.global_variance_ratio()
        return settings

    def global_variance_ratio(self) -> float:
        """Return beta = sqrt(GV_ref / GV_est) of [1], as far as we know it, over frames and bins together.

        GV_ref is the variance of the training sample's scaled clean log magnitudes, GV_est that of the answers.
        """
        from speech_enhancement.features import RunningStatistics

        reference, estimate, result = RunningStatistics(), RunningStatistics(), self.result
        for inputs, y in self.sets.samples["tr_loss"]():
            clean = y if self.recipe.target.output == "log_magnitude" else y[..., 0, :]
            answer = np.asarray(result.predict_on_batch(inputs))[..., : self.sets.n_freq]
            reference.add(self.sets.scaler.frames(clean).reshape(-1, 1))
            estimate.add(answer.reshape(-1, 1))
        return float(reference.std[0] / estimate.std[0])

    # --- Files ---

    def save(self, keep: int | None) -> None:
        """Save the model and the state to go on from; remove all but the last `keep` models."""
        self.update_result()
        path = model_path(self.workspace, self.tr_name, self.iteration)
        save_model(path, self.result, self.settings())
        self.save_state()
        say(f"Saved model to {path}")
        if keep is not None:
            folder = models_dir(self.workspace, self.tr_name)
            numbered = [
                (int(found[1]), found[0])
                for found in map(_MODEL_NAME.fullmatch, os.listdir(folder))
                if found
            ]
            for _, name in sorted(numbered)[:-keep]:
                os.remove(os.path.join(folder, name))

    def variables(self) -> list:
        """List all that changes in training: weights, states of dropout, optimizer, averaged weights."""
        averaged = [] if self.average is None else self.average.weights
        return [
            *self.trained.non_trainable_variables,
            *self.trained.trainable_variables,
            *self.trained.optimizer.variables,
            *averaged,
        ]

    def save_state(self) -> None:
        """Save all that a training needs to go on."""
        convert = import_keras().ops.convert_to_numpy
        arrays = {
            f"variable_{number}": convert(variable)
            for number, variable in enumerate(self.variables())
        }
        arrays["stats"] = np.array([list(row.values()) for row in self.stats])
        arrays["columns"] = np.array(list(self.stats[0]))
        with replacing(training_state_path(self.workspace, self.tr_name)) as temporary:
            np.savez(
                temporary,
                allow_pickle=False,
                iteration=self.iteration,
                identity=self.identity,
                **arrays,
            )

    def load_state(self) -> None:
        """Continue from the saved state.

        Raises:
          InputError: there is none, or it is of another recipe.
        """
        path = training_state_path(self.workspace, self.tr_name)
        variables = self.variables()
        names = [f"variable_{number}" for number in range(len(variables))]
        found = read_npz(path, ("identity",), made_by="train without --resume")
        if found["identity"] != self.identity:
            raise InputError(
                f"{path} is of a training with another recipe or other flags; train without --resume"
            )
        found = read_npz(
            path, ("iteration", "stats", "columns", *names), made_by="train without --resume"
        )
        with self.share.scope():
            for variable, name in zip(variables, names, strict=True):
                variable.assign(found[name])
        self.iteration = found["iteration"]
        columns = found["columns"].tolist()
        self.stats = [dict(zip(columns, row, strict=True)) for row in found["stats"].tolist()]
        for row in self.stats:
            row["iteration"] = int(row["iteration"])
        say(f"Resume at iteration {self.iteration}")


_MODEL_NAME = re.compile(r"md_(\d+)iters\.keras")


def training_identity(recipe: Recipe, seed: int) -> str:
    """Return what two trainings must share for one to continue the other.

    The number of iterations may grow, unless the learning rate depends on it.
    """
    if not recipe.training.cosine_decay:
        recipe = dataclasses.replace(
            recipe, training=dataclasses.replace(recipe.training, n_iterations=0)
        )
    return f"{recipe} seed {seed}"


def make_optimizer(recipe: Recipe):
    """Return Adam with the recipe's learning rate, warm-up, decay and clipping."""
    keras, settings = import_keras(), recipe.training
    rate = settings.learning_rate
    if settings.cosine_decay:
        n_decay = max(1, settings.n_iterations - settings.warm_up)
        rises = (
            {"warmup_target": rate, "warmup_steps": settings.warm_up} if settings.warm_up else {}
        )
        rate = keras.optimizers.schedules.CosineDecay(0.0 if rises else rate, n_decay, **rises)
    return keras.optimizers.Adam(rate, global_clipnorm=settings.clip_norm or None)


def make_tensorboard(folder: str, model):
    """Return Keras' callback that writes the losses for TensorBoard.

    Raises:
      InputError: its packages are missing.
    """
    missing = [
        name for name in ("tensorflow", "tensorboard") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise InputError(
            f"--tensorboard needs TensorFlow and TensorBoard; pip install {' '.join(missing)}"
        )
    callback = import_keras().callbacks.TensorBoard(folder, write_graph=False)
    callback.set_model(model)
    return callback


def run_training(training: Training, eval_every: int, save_every: int, keep: int | None) -> None:
    """Train up to the recipe's last iteration, which is always evaluated and saved (by the first process)."""
    n_iterations = training.recipe.training.n_iterations
    began = time.time()
    batches = training.sets.batches(training.iteration)
    is_first = training.share.is_first
    if training.iteration == 0 and is_first:
        training.evaluate()
    remaining = range(training.iteration, n_iterations)
    for _ in track(remaining, len(remaining), "iterations", log_lines=0):
        training.step(next(batches))
        last = training.iteration == n_iterations
        if is_first and (training.iteration % eval_every == 0 or last):
            training.evaluate()
        if is_first and (training.iteration % save_every == 0 or last):
            training.save(keep)
    if is_first:
        say(f"Training time: {time.time() - began:.1f} s")
