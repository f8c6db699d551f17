"""Training a network: the loop, the losses on the way, what is saved, and going on after a kill."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np

from config import stft_settings
from speech_enhancement.errors import InputError
from speech_enhancement.features import N_FREQ, RunningStatistics
from speech_enhancement.files import csv_text, write_text
from speech_enhancement.network.architectures import build_network
from speech_enhancement.network.keras_backend import import_keras
from speech_enhancement.network.losses import make_loss
from speech_enhancement.network.network import Settings, save_model
from speech_enhancement.parallel import ahead
from speech_enhancement.progress import say, track
from speech_enhancement.recipe import Recipe
from speech_enhancement.training.devices import ALONE, Share, say_device, start_distribution
from speech_enhancement.training.first_weights import weights_of_model
from speech_enhancement.training.on_the_fly import open_mixing_on_the_fly
from speech_enhancement.training.options import TrainingOptions, chosen_recipe, with_training
from speech_enhancement.training.packed_batches import (
    BatchSource,
    TrainingData,
    open_packed_training,
)
from speech_enhancement.training.state import (
    N_ITERATIONS,
    PRECISION,
    facts_of,
    read_state,
    write_state,
)
from speech_enhancement.training.tensorboard import make_tensorboard
from speech_enhancement.workspace import (
    model_path,
    models_dir,
    saved_iterations,
    training_name,
    training_state_path,
    training_stats_path,
)

AVERAGE_EVERY = 8  # iterations between updates of the averaged weights


class Training:
    """A network in training: its optimizer, its averaged weights, and the losses recorded so far.

    Args:
      options: as the flags of train.
      recipe: with all that the options override.
      data: what is read.
      share: of several processes each trains on its part of every batch.
    """

    def __init__(
        self, options: TrainingOptions, recipe: Recipe, data: TrainingData, share: Share = ALONE
    ):
        self.options, self.recipe, self.data, self.share = options, recipe, data, share
        self.name = training_name(recipe.training.snr_db, recipe.training.snr_range_db)
        self.iteration, self.stats = 0, []
        self.facts = facts_of(options, recipe, data.made_from)
        scaled = data.scaler.mean.astype(np.float32), data.scaler.std.astype(np.float32)
        self.loss = make_loss(recipe, *scaled)

        # What is evaluated and saved: float32, on one device, without loss and optimizer.
        self.result = build_network(recipe, N_FREQ, options.seed)
        with share.scope():
            self.trained = build_network(recipe, N_FREQ, options.seed, recipe.training.precision)
            self.trained.compile(optimizer=make_optimizer(recipe), loss=self.loss)
            self.trained.optimizer.build(self.trained.trainable_variables)
            averages = recipe.training.weight_average > 0
            self.average = build_network(recipe, N_FREQ, options.seed) if averages else None
        has_board = options.tensorboard and share.is_first
        self._board = make_tensorboard(options.tensorboard, self.trained) if has_board else None

    def begin_with(self, weights: list[np.ndarray]) -> None:
        """Put the weights of a model, in Keras' order, in place of the random ones."""
        with self.share.scope():
            for network in filter(None, (self.trained, self.average)):
                network.set_weights(weights)

    def update_result(self) -> None:
        """Copy the weights, or their average if the recipe averages, to the result.

        The result is the network that is evaluated and saved.
        """
        source = self.trained if self.average is None else self.average
        self.result.set_weights(source.get_weights())

    def step(self, batch) -> None:
        """Take one training step."""
        with self.share.scope():
            self.trained.train_on_batch(*batch)
            self.iteration += 1
            if self.average is not None and self.iteration % AVERAGE_EVERY == 0:
                # Early on the average follows faster, so that the random first weights are soon
                # forgotten.
                kept = (
                    min(self.recipe.training.weight_average, self.iteration / (10 + self.iteration))
                    ** AVERAGE_EVERY
                )
                for old, new in zip(self.average.weights, self.trained.weights, strict=True):
                    old.assign(kept * old + (1 - kept) * new)

    def evaluate(self) -> None:
        """Print and record the losses; save the model as best if its valid_loss is the lowest."""
        self.update_result()
        losses = {name: self.mean_loss(source) for name, source in self.data.evaluated.items()}
        if not np.isfinite(list(losses.values())).all():
            raise InputError(
                f"the losses are no longer finite at iteration {self.iteration}: "
                f"{losses}; lower --lr"
            )
        text = ", ".join(f"{name}: {value:.6f}" for name, value in losses.items())
        say(f"Iteration: {self.iteration}, {text}")

        earlier = [row["valid_loss"] for row in self.stats if "valid_loss" in row]
        self.stats.append({"iteration": self.iteration, **losses})
        table = [[row["iteration"], *(f"{row[name]:.6f}" for name in losses)] for row in self.stats]
        text = csv_text(["iteration", *losses], table)
        write_text(training_stats_path(self.options.workspace, self.name), text)
        if self._board is not None:
            self._board.on_epoch_end(self.iteration, losses)
        if "valid_loss" in losses and losses["valid_loss"] <= min(earlier, default=np.inf):
            path = model_path(self.options.workspace, self.name, "best")
            save_model(path, self.result, self.settings())

    def mean_loss(self, source: BatchSource) -> float:
        """Return the loss, dropout off, averaged over the frames of a sample of batches."""
        total, n_frames, result, ops = 0.0, 0, self.result, import_keras().ops
        for inputs, y in source.sample():
            output = ops.convert_to_tensor(result.predict_on_batch(inputs))
            of_frames = np.asarray(
                ops.convert_to_numpy(self.loss(ops.convert_to_tensor(y), output))
            )
            total, n_frames = total + float(of_frames.sum()), n_frames + of_frames.size
        return total / n_frames

    def evaluate_and_save_where_due(self) -> None:
        """Evaluate and save at the iterations that the options ask for, and at the last one."""
        is_last = self.iteration == self.recipe.training.n_iterations
        is_evaluated = self.stats and self.stats[-1]["iteration"] == self.iteration
        if not self.share.is_first:
            return
        if not is_evaluated and (self.iteration % self.options.eval_every == 0 or is_last):
            self.evaluate()
        if is_last or (self.iteration % self.options.save_every == 0 and self.iteration > 0):
            self.save()

    def settings(self) -> Settings:
        """Collect what inference needs to know beside the weights."""
        settings = Settings(
            **stft_settings,
            snr=self.name,
            iteration=self.iteration,
            recipe=self.recipe,
            scaler=self.data.scaler,
        )
        if self.recipe.postprocessing.global_variance:
            settings.gv_beta = self.global_variance_ratio()
        return settings

    def global_variance_ratio(self) -> float:
        """Return beta = sqrt(GV_ref / GV_est) of [1], over frames and bins together.

        This is [1] as far as we know it. GV_ref is the variance of the training sample's scaled
        clean log magnitudes, GV_est that of the outputs.
        """
        reference, estimate, result = RunningStatistics(), RunningStatistics(), self.result
        for inputs, y in self.data.evaluated["tr_loss"].sample():
            clean = y if self.recipe.target.output == "log_magnitude" else y[..., 0, :]
            output = np.asarray(result.predict_on_batch(inputs))[..., :N_FREQ]
            reference.add(self.data.scaler.frames(clean).reshape(-1, 1))
            estimate.add(output.reshape(-1, 1))
        return float(reference.std[0] / estimate.std[0])

    # --- Files ---

    def save(self) -> None:
        """Save the model and the state to go on from; remove all but the last models to keep."""
        self.check_finite()
        self.update_result()
        path = model_path(self.options.workspace, self.name, self.iteration)
        save_model(path, self.result, self.settings())
        self.save_state()
        say(f"Saved model to {path}")
        if self.options.keep is not None:
            saved = saved_iterations(models_dir(self.options.workspace, self.name))
            of_this = [iteration for iteration in saved if iteration <= self.iteration]
            for iteration in of_this[: -self.options.keep]:
                os.remove(model_path(self.options.workspace, self.name, iteration))

    def variables(self) -> list:
        """List all that training changes: weights, dropout states, optimizer, averaged weights."""
        averaged = [] if self.average is None else self.average.weights
        return [
            *self.trained.non_trainable_variables,
            *self.trained.trainable_variables,
            *self.trained.optimizer.variables,
            *averaged,
        ]

    def check_finite(self) -> None:
        """Raise InputError if a number is no longer finite, so that what was saved before stays."""
        to_numpy = import_keras().ops.convert_to_numpy
        if not all(np.isfinite(to_numpy(variable)).all() for variable in self.variables()):
            raise InputError(
                f"the weights are no longer finite at iteration {self.iteration}: nothing is "
                "saved; lower --lr"
            )

    def save_state(self) -> None:
        """Save all that a training needs to go on; of several processes the first does."""
        if not self.share.is_first:
            return
        self.check_finite()
        path = training_state_path(self.options.workspace, self.name)
        arrays = [import_keras().ops.convert_to_numpy(variable) for variable in self.variables()]
        write_state(path, self.facts, self.data.scaler, self.iteration, self.stats, arrays)

    def load_state(self) -> None:
        """Continue from the saved state.

        Raises:
          InputError: there is none, it is of another training, or it has taken more steps than are
            asked for.
        """
        path = training_state_path(self.options.workspace, self.name)
        variables = self.variables()
        before, iteration, self.stats, arrays = read_state(
            path, self.facts, self.data.scaler, [tuple(variable.shape) for variable in variables]
        )
        n_before, n_iterations = before[N_ITERATIONS], self.recipe.training.n_iterations
        if iteration > n_iterations:
            raise InputError(
                f"{path} is at iteration {iteration} already, --n_iterations asks for "
                f"{n_iterations}; give more, or train without --resume"
            )
        with self.share.scope():
            for variable, array in zip(variables, arrays, strict=True):
                variable.assign(array)
        self.iteration = iteration
        say(f"Resume at iteration {iteration}")
        precision_before, precision = before[PRECISION], self.recipe.training.precision
        if precision_before != precision:
            say(f"it was trained in {precision_before} so far, and goes on in {precision}")
        if n_before != n_iterations and self.recipe.training.cosine_decay:
            recipe_before = with_training(self.recipe, {"n_iterations": n_before})
            rate_before, rate = (
                learning_rate_at(recipe, iteration) for recipe in (recipe_before, self.recipe)
            )
            say(
                f"n_iterations was {n_before} and is {n_iterations}: the learning rate goes from "
                f"{rate_before:.3g} to {rate:.3g} here, and falls to 0 at the new end"
            )


# --- The optimizer ----------------------------------------------------------------------------


def learning_rate_schedule(recipe: Recipe):
    """Return the learning rate as Keras takes it: a number, or a function of the iteration.

    It rises in a straight line over the warm-up and then stays, or falls as half a cosine to 0 at
    the last iteration. The warm-up has the recipe's length, but at most a tenth of all iterations.
    """
    settings = recipe.training
    rate, warm_up = settings.learning_rate, min(settings.warm_up, settings.n_iterations // 10)
    if not warm_up and not settings.cosine_decay:
        return rate
    return import_keras().optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warm_up else rate,
        decay_steps=max(1, settings.n_iterations - warm_up),
        alpha=0.0 if settings.cosine_decay else 1.0,  # share of the rate that is left in the end
        warmup_target=rate if warm_up else None,
        warmup_steps=warm_up,
    )


def learning_rate_at(recipe: Recipe, iteration: int) -> float:
    """Return the learning rate of the step after `iteration` steps."""
    rate = learning_rate_schedule(recipe)
    return float(rate(iteration)) if callable(rate) else rate


def make_optimizer(recipe: Recipe):
    """Return Adam with the learning rate and the clipping of a recipe."""
    return import_keras().optimizers.Adam(
        learning_rate_schedule(recipe), global_clipnorm=recipe.training.clip_norm or None
    )


# --- The loop ---------------------------------------------------------------------------------


def train(options: TrainingOptions) -> int:
    """Train the network of a recipe from random weights or a model's, or go on from a saved state.

    Writes models/{tr_snr}/md_{iteration}iters.keras and, at each evaluation,
    training_stats/{tr_snr}/stats.csv. With valid_fraction the model with the lowest loss on
    held-out training speech is models/{tr_snr}/md_best.keras.

    Working set: the network with its optimizer, and a pool of shuffled rows (see packed_batches.py)
    or, on the fly, some blocks of mixtures (see on_the_fly.py) and the decoded waves.

    Returns:
      The exit status: 0, or 128 + the number of the signal that stopped it.
    Raises:
      InputError: data or scaler are missing, damaged or made with different settings.
    """
    share = start_distribution() if options.distribute else ALONE
    recipe = chosen_recipe(options)
    open_data = open_mixing_on_the_fly if options.on_the_fly else open_packed_training
    with open_data(options, recipe, share) as data:
        say_device(share, recipe.training.precision)
        first = None
        if options.initial_model:
            first = weights_of_model(options.initial_model, recipe, data)
        training = Training(options, recipe, data, share)
        if options.resume:
            training.load_state()
        elif first is not None:
            training.begin_with(first)
        return run_training(training)


def run_training(training: Training) -> int:
    """Train up to the recipe's last iteration; return the exit status as of train."""
    began = time.time()
    remaining = range(training.iteration, training.recipe.training.n_iterations)
    batches = ahead(training.data.trained_on.batches(training.iteration))
    with noted_signals(training.share) as signals, contextlib.closing(batches):
        training.evaluate_and_save_where_due()
        for _ in track(remaining, len(remaining), "iterations", log_lines=0):
            try:
                batch = next(batches)
            except InputError:
                training.save_state()
                raise
            training.step(batch)
            training.evaluate_and_save_where_due()
            if signals:
                break
    if signals:
        training.save_state()
        by = f"stopped by {signal.Signals(signals[0]).name} at iteration {training.iteration}"
        print(f"{by}: the state is saved, go on with --resume", file=sys.stderr)
        return 128 + signals[0]

    if training.share.is_first:
        say(f"Training time: {time.time() - began:.1f} s")
    return 0


@contextlib.contextmanager
def noted_signals(share: Share) -> Iterator[list[int]]:
    """Yield a list that notes Ctrl-C and SIGTERM, so that training can end between two steps.

    A second signal acts as usual. Where a signal is ignored it stays so. Of several processes each
    ends at once, because the others would wait for one that takes fewer steps.
    """
    noted, usual = [], {}

    def note(number: int, _frame) -> None:
        noted.append(number)
        signal.signal(number, usual[number])

    if share.n_processes == 1 and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            usual[number] = signal.getsignal(number) or signal.SIG_DFL
            if usual[number] != signal.SIG_IGN:
                signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
