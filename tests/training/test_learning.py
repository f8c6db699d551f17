"""What training does with batches: learning rate, clipping, averages, losses; on made-up data."""

import numpy as np
import pytest

from speech_enhancement.features import N_FREQ
from speech_enhancement.network.architectures import build_network
from speech_enhancement.network.keras_backend import import_keras
from speech_enhancement.network.network import Scaler, load_model
from speech_enhancement.recipe import Input, Network, Postprocessing, Recipe, Target
from speech_enhancement.recipe import Training as Schedule
from speech_enhancement.training.devices import Share
from speech_enhancement.training.options import TrainingOptions
from speech_enhancement.training.packed_batches import TrainingData
from speech_enhancement.training.training import Training, make_optimizer
from speech_enhancement.workspace import model_path

SCALER = Scaler(np.zeros(N_FREQ), np.ones(N_FREQ), np.zeros((0, N_FREQ)), np.ones((0, N_FREQ)))


class RandomBatches:
    """Batches of given sizes of random frames and targets, the same at each call."""

    def __init__(self, *sizes):
        rng = np.random.default_rng(0)
        frames = [rng.standard_normal((2, size, 1, N_FREQ)).astype(np.float32) for size in sizes]
        self.all = [([x], y * (1 + number)) for number, (x, y) in enumerate(frames)]

    def sample(self):
        return iter(self.all)


def make_training(workspace, evaluated=None, sections=None, **schedule):
    """Make a training of a small network of one frame of context."""
    network = Network(hidden_layers=1, hidden_units=4, dropout=0.0)
    sections = {"network": network, "training": Schedule(**schedule), **(sections or {})}
    recipe = Recipe(Input(n_concat=1), **sections)
    options = TrainingOptions(workspace=str(workspace), te_snr=0.0)
    evaluated = evaluated or {"tr_loss": RandomBatches(3)}
    data = TrainingData(None, evaluated, SCALER, {"training data": "made up"})
    return Training(options, recipe, data, Share())


# --- The learning rate ------------------------------------------------------------------------


def rise_and_fall(step, rate, warm_up, n_iterations, falls):
    """The definition: a straight line from 0, then half a cosine to 0 at the end, or level."""
    if step < warm_up:
        return rate * step / warm_up
    share = (step - warm_up) / (n_iterations - warm_up)
    return rate * (1 + np.cos(np.pi * share)) / 2 if falls else rate


@pytest.mark.parametrize(
    ("warm_up", "n_iterations", "falls", "used"),
    [
        (2, 20, True, 2),
        (0, 20, True, 0),
        (500, 20, True, 2),  # at most a tenth of the iterations
        (500, 5, True, 0),
        (2, 20, False, 2),
        (0, 20, False, 0),
    ],
)
def test_the_learning_rate_of_each_iteration_is_that_of_its_definition(
    tmp_path, warm_up, n_iterations, falls, used
):
    training = make_training(
        tmp_path, learning_rate=0.1, warm_up=warm_up, n_iterations=n_iterations, cosine_decay=falls
    )
    ((inputs, y),) = RandomBatches(3).all
    rates = []
    for _ in range(n_iterations):
        rates.append(float(training.trained.optimizer.learning_rate))
        training.step((inputs, y))
    expected = [rise_and_fall(k, 0.1, used, n_iterations, falls) for k in range(n_iterations)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-8)  # single precision


@pytest.mark.parametrize(("clip_norm", "second"), [(1.0, [1.0, 0.0]), (0.0, [1000.0, 0.0])])
def test_gradients_are_clipped_by_their_norm_over_all_weights(clip_norm, second):
    """Two steps of Adam by hand: gradients of norm 1000, then of norm 1."""
    keras, schedule = import_keras(), Schedule(learning_rate=0.1, clip_norm=clip_norm)
    optimizer = make_optimizer(Recipe(training=schedule))
    weights = [keras.Variable(np.zeros(2, np.float32)), keras.Variable(np.zeros(1, np.float32))]
    first = np.array([600.0, 0.0, 800.0])
    scale = 1000 if clip_norm else 1
    expected, mean, square = np.zeros(3), np.zeros(3), np.zeros(3)
    for step, gradient in enumerate((first, np.array([0.6, 0.0, 0.8])), start=1):
        parts = np.float32(gradient[:2]), np.float32(gradient[2:])
        optimizer.apply([keras.ops.convert_to_tensor(part) for part in parts], weights)
        clipped = gradient / scale if step == 1 else gradient
        mean, square = 0.9 * mean + 0.1 * clipped, 0.999 * square + 0.001 * clipped**2
        root = np.sqrt(square / (1 - 0.999**step)) + 1e-7
        expected -= 0.1 * mean / (1 - 0.9**step) / root
    found = np.concatenate([keras.ops.convert_to_numpy(weight) for weight in weights])
    np.testing.assert_allclose(
        found, expected, rtol=1e-3, atol=1e-7
    )  # Adam's 1e-7 is placed otherwise


def test_inputs_and_hidden_units_are_switched_off_only_while_training():
    frames = np.ones((1, 1, N_FREQ), np.float32)
    for rates in ({"input_dropout": 0.5, "dropout": 0.0}, {"input_dropout": 0.0, "dropout": 0.5}):
        recipe = Recipe(Input(n_concat=1), Network(hidden_layers=1, hidden_units=64, **rates))
        network = build_network(recipe, N_FREQ, seed=0)
        still, moving = (
            [np.asarray(network([frames], training=training)) for _ in range(2)]
            for training in (False, True)
        )
        np.testing.assert_array_equal(*still)
        assert not np.allclose(*moving) and not np.allclose(still[0], moving[0])


# --- What is evaluated ------------------------------------------------------------------------


def test_losses_are_means_over_frames_and_not_over_batches(tmp_path):
    batches = RandomBatches(5, 1)
    training = make_training(tmp_path, {"tr_loss": batches, "te_loss": RandomBatches(2)})
    training.evaluate()
    errors = [
        np.abs(training.trained.predict_on_batch(inputs) - y).mean(axis=-1).ravel()
        for inputs, y in batches.all
    ]
    over_batches = np.mean([of_batch.mean() for of_batch in errors])
    expected = np.concatenate(errors).mean()
    assert abs(expected - over_batches) > 0.01
    # Single precision.
    assert training.stats[0]["tr_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_averaged_weights_are_evaluated_and_saved(tmp_path):
    batches = RandomBatches(3)
    training = make_training(
        tmp_path, {"valid_loss": batches}, learning_rate=0.1, weight_average=0.6, n_iterations=23
    )
    average = training.trained.get_weights()
    for step in range(1, 24):
        training.step(batches.all[0])
        if step % 8 == 0:  # every eighth step, with the share of old weights of eight steps
            kept = min(0.6, step / (10 + step)) ** 8
            raw = training.trained.get_weights()
            average = [kept * old + (1 - kept) * new for old, new in zip(average, raw, strict=True)]
    training.evaluate()
    training.save()
    for iteration in ("best", 23):
        saved, _ = load_model(model_path(str(tmp_path), "0db", iteration))
        for found, expected in zip(saved.get_weights(), average, strict=True):
            # Single precision, weights of order 1.
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    ((inputs, y),) = batches.all
    losses = [
        np.abs(network.predict_on_batch(inputs) - y).mean() for network in (saved, training.trained)
    ]
    assert training.stats[-1]["valid_loss"] == pytest.approx(losses[0], rel=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_a_model_saved_between_evaluations_has_the_weights_of_its_iteration(tmp_path):
    training = make_training(tmp_path, learning_rate=0.1, n_iterations=9)
    training.evaluate()
    training.step(RandomBatches(3).all[0])
    training.save()
    saved, _ = load_model(model_path(str(tmp_path), "0db", 1))
    for found, expected in zip(saved.get_weights(), training.trained.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_training_computes_in_the_precision_of_its_recipe_and_evaluation_in_float32(tmp_path):
    training = make_training(tmp_path, precision="bfloat16")
    trained, result = (
        {layer.compute_dtype for layer in network.layers}
        for network in (training.trained, training.result)
    )
    assert "bfloat16" in trained and result == {"float32"}


@pytest.mark.parametrize("output", ["log_magnitude", "log_magnitude_and_mask"])
def test_global_variance_is_that_of_clean_speech_over_that_of_the_outputs(tmp_path, output):
    batches = RandomBatches(5, 2)
    if output == "log_magnitude_and_mask":  # targets of speech and, at another level, mixture
        batches.all = [(x, np.stack([y, 10 * y], axis=2)) for x, y in batches.all]
    sections = {"target": Target(output), "postprocessing": Postprocessing(global_variance=True)}
    training = make_training(tmp_path, {"tr_loss": batches}, sections)
    clean = [y if output == "log_magnitude" else y[:, :, 0] for _, y in batches.all]
    results = [training.result.predict_on_batch(inputs) for inputs, _ in batches.all]
    outputs = [result[..., :N_FREQ] for result in results]  # without the mask
    reference, estimate = (
        np.std(np.concatenate([*map(np.ravel, values)])) for values in (clean, outputs)
    )
    # Single precision.
    assert training.settings().gv_beta == pytest.approx(reference / estimate, rel=1e-4)


def test_without_global_variance_the_output_stays_as_it_is(tmp_path):
    assert make_training(tmp_path).settings().gv_beta == 1


def test_a_state_holds_all_that_the_next_step_depends_on(tmp_path):
    """Weights, optimizer, average and the state of dropout: two steps, a state, two steps."""
    sections = {"network": Network(hidden_layers=2, hidden_units=8, dropout=0.5)}
    schedule = {"learning_rate": 0.1, "weight_average": 0.99, "n_iterations": 20}
    batches = RandomBatches(3, 5, 4, 3).all * 5

    def make():
        return make_training(tmp_path, sections=sections, **schedule)

    whole = make()
    for batch in batches[:18]:
        whole.step(batch)
    first = make()
    for batch in batches[:9]:
        first.step(batch)
    first.evaluate()  # a state has one evaluation at least
    first.save_state()
    second = make()
    second.load_state()
    for before, after in zip(first.variables(), second.variables(), strict=True):
        np.testing.assert_array_equal(before, after)
    for batch in batches[9:18]:
        second.step(batch)
    for network in ("trained", "average"):
        pairs = zip(
            getattr(whole, network).get_weights(),
            getattr(second, network).get_weights(),
            strict=True,
        )
        for expected, found in pairs:
            # Sums of threads differ in their order; other dropout masks differ by 0.1 and more.
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
