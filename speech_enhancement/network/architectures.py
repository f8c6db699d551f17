"""The networks that a recipe can choose: over a window of frames, or with a memory of frames."""

import numpy as np

from speech_enhancement.errors import InputError
from speech_enhancement.network.keras_backend import import_keras
from speech_enhancement.recipe import Recipe

WITHOUT_LOOK_AHEAD = "without_look_ahead"  # the layer that cuts off outputs of no frame
KERNEL = 3  # frames of the past and present that a block with memory sees, a dilation apart


def build_network(recipe: Recipe, n_freq: int, seed: int, precision: str = "float32"):
    """Build the network of a recipe with random weights: its kind is "window" or "memory".

    Args:
      recipe: sections [input], [network] and [target].
      n_freq: frequency bins of a frame.
      seed: of the first weights and of dropout.
      precision: of products and activations; with "bfloat16" weights, inputs and outputs still are
        float32.
    Returns:
      keras.Model, as window_network or memory_network returns it.
    """
    make = Layers(recipe, seed, "mixed_bfloat16" if precision == "bfloat16" else "float32")
    kinds = {"window": window_network, "memory": memory_network}
    inputs, output = kinds[recipe.network.kind](make, recipe, n_freq)
    if precision == "bfloat16":
        output = make("Activation", "linear", dtype="float32")(output)
    return import_keras().Model(inputs, output)


def in_precision(network, recipe: Recipe, precision: str):
    """Return a network with the same weights that computes in another precision.

    Args:
      network, recipe: as build_network takes and returns them.
      precision: as of build_network.
    """
    other = build_network(recipe, network.inputs[0].shape[-1], 0, precision)
    other.set_weights(network.get_weights())
    return other


def window_network(make: "Layers", recipe: Recipe, n_freq: int) -> tuple[list, object]:
    """Lay out a network that sees a window of n_concat frames, and the statistics of its centre.

    It slides over frames: with n_concat frames it makes one output, with n more frames n more
    outputs. Hidden layers compute each from the flattened window of n_concat frames and the
    statistics behind it; so a run of frames needs no n_concat-fold copy. The statistics have a
    kernel of their own in the first layer, so that its product with them is made once for all
    frames that they serve. With `residual` the last layer adds to the centre frame, and the sum is
    the log magnitude.

    Args:
      make: makes the layers.
      recipe: sections [input], [network] and [target].
      n_freq: frequency bins of a frame.
    Returns:
      Inputs and output: from frames (n_segs, n + n_concat - 1, n_freq) and, if the recipe has any,
      statistics (n_segs, n or 1, n_statistics * n_freq), to (n_segs, n, n_freq); two outputs of
      n_freq side by side for "log_magnitude_and_mask".
    """
    n_concat, n_statistics = recipe.input.n_concat, recipe.input.n_statistics
    frames = make("Input", (None, n_freq), name="frames", dtype="float32")
    rows = [make("Cropping1D", (i, n_concat - 1 - i))(frames) for i in range(n_concat)]
    parts = [make("Concatenate")(rows) if n_concat > 1 else rows[0]]
    if n_statistics:
        shape = (None, n_statistics * n_freq)
        parts.append(make("Input", shape, name="statistics", dtype="float32"))

    hidden = make.hidden_layers(parts)
    outputs = []
    if recipe.target.output != "mask":
        estimate = make.dense(n_freq)(hidden)
        if recipe.network.residual:
            centre = make("Cropping1D", (n_concat // 2, n_concat // 2), dtype="float32")(frames)
            estimate = make("Add", dtype="float32")([centre, estimate])
        outputs.append(estimate)
    if recipe.target.output != "log_magnitude":
        outputs.append(make.dense(n_freq, activation="sigmoid")(hidden))

    output = make("Concatenate", dtype="float32")(outputs) if len(outputs) > 1 else outputs[0]
    return [frames, *parts[1:]], output


def memory_network(make: "Layers", recipe: Recipe, n_freq: int) -> tuple[list, object]:
    """Lay out a network that remembers frames: a stack of dilated convolutions.

    With x_t the scaled frame at t, z_t the statistics around frame t - look_ahead, d_l the dilation
    of block l = 1 .. L, a_l = 1 if the block looks ahead, else 0, and relu(v) = max(0, v),

        h_t^0 = relu(A x_t + S z_t + a)
        u_t^l = relu(sum over k = -a_l .. 2 of V_k^l h_(t - k d_l)^(l - 1) + v^l)
        h_t^l = h_t^(l - 1) + W^l u_t^l + w^l
        m_t   = sigmoid(M relu(B h_(t + r)^L + C x_t + b) + m)

    where m_t is the mask of frame t. See blocks_ahead for a_l and r; without look_ahead all are 0,
    and the network is causal. What lies before the first frame is 0 in every layer; but a layer
    that is late because of blocks that look ahead computes so many frames before the first, too.
    The last layer cuts off the outputs that belong to no frame. The padding with zeros is what a
    stream replaces by the frames before; see with_states. W^l and w^l are 0 at first, so that all
    blocks begin as if they were not there.

    Args:
      make: makes the layers.
      recipe: sections [input], [network] and [target].
      n_freq: frequency bins of a frame.
    Returns:
      Inputs and output: from frames (n_segs, n + look_ahead, n_freq) and, if the recipe has any,
      statistics (n_segs, n + look_ahead or 1, n_statistics * n_freq) to masks (n_segs, n, n_freq).
    """
    settings, n_statistics = recipe.network, recipe.input.n_statistics
    frames = make("Input", (None, n_freq), name="frames", dtype="float32")
    inputs, hidden = [frames], make.dense(settings.hidden_units)(frames)
    if n_statistics:
        shape = (None, n_statistics * n_freq)
        inputs.append(make("Input", shape, name="statistics", dtype="float32"))
        of_statistics = make.dense(settings.hidden_units, use_bias=False)(inputs[1])
        hidden = make("Add")([hidden, of_statistics])
    hidden = make("Activation", "relu")(hidden)

    for dilation, is_ahead in blocks_ahead(recipe):
        n_ahead = dilation * is_ahead
        known = make("ZeroPadding1D", ((KERNEL - 1) * dilation + n_ahead, 0))(hidden)
        inner = make.convolution(settings.memory_units, KERNEL + is_ahead, dilation)(known)
        inner = make.dropout(settings.dropout, inner)
        change = make("Dense", settings.hidden_units, kernel_initializer="zeros")(inner)
        hidden = make("Add")([make.delay(hidden, n_ahead), change])

    of_frame = make.dense(settings.hidden_units, use_bias=False)
    of_frame = of_frame(make.delay(frames, recipe.input.look_ahead))
    hidden = make("Add")([make.dense(settings.hidden_units)(hidden), of_frame])
    output = make.dense(n_freq, activation="sigmoid")(make("Activation", "relu")(hidden))
    if recipe.input.look_ahead:
        output = make("Cropping1D", (recipe.input.look_ahead, 0), name=WITHOUT_LOOK_AHEAD)(output)
    return inputs, output


def blocks_ahead(recipe: Recipe) -> list[tuple[int, bool]]:
    """Return the dilation of each block with memory, and whether it looks ahead.

    One that does sees a frame more, a dilation ahead. From the first block on, each looks ahead
    whose dilation fits in what is left of look_ahead. What is left in the end is r of the
    equations: the last layers wait for it.
    """
    blocks, n_left = [], recipe.input.look_ahead
    for dilation in map(int, recipe.network.dilations):
        is_ahead = dilation <= n_left
        n_left -= dilation * is_ahead
        blocks.append((dilation, is_ahead))
    return blocks


def with_states(network, n_looks: int = 1):
    """Return a network with memory as one that carries its memory from call to call.

    Each layer that pads with zeros becomes an input, a state: the last frames of the call before,
    zeros at first. So frames can come one by one, and outputs are those of the whole.

    Frames of several looks can come in turn: with n_looks = 2 frames 0, 2, 4, ... have one memory
    and frames 1, 3, 5, ... another. Padding and dilations are n_looks times as long for that.

    Args:
      network: as build_network returns it; the weights are shared, but for those of convolutions
        where there are several looks.
      n_looks: see above.
    Returns:
      keras.Model from the inputs of the network, of one run of n frames, and states (1, n_frames,
      n_units), to outputs (1, n, n_freq), the first look_ahead of which belong to no frame, and the
      states for the next call.
    """
    keras = import_keras()
    inputs = [keras.Input(tensor.shape[1:], name=tensor.name) for tensor in network.inputs]
    tensors = {tensor.name: tensor for tensor in inputs}
    before, after = [], []
    for layer in network.layers:
        given = layer.input if isinstance(layer.input, list) else [layer.input]
        if isinstance(layer, keras.layers.InputLayer):
            continue
        given = [tensors[tensor.name] for tensor in given]
        if isinstance(layer, keras.layers.ZeroPadding1D):
            n_frames = n_looks * layer.padding[0]
            before.append(keras.Input((n_frames, given[0].shape[-1]), dtype=given[0].dtype))
            output = keras.ops.concatenate([before[-1], given[0]], axis=1)
            after.append(output[:, -n_frames:])
        elif layer.name == WITHOUT_LOOK_AHEAD:
            output = given[0]
        else:
            apply = _skipping_other_looks(layer, n_looks)
            output = apply(given if len(given) > 1 else given[0])
        tensors[layer.output.name] = output
    return keras.Model([*inputs, *before], [tensors[network.outputs[0].name], *after])


def _skipping_other_looks(layer, n_looks: int):
    """Return a layer for frames of several looks in turn; only that of a convolution is new."""
    if n_looks == 1 or not isinstance(layer, import_keras().layers.Conv1D):
        return layer
    settings = layer.get_config()
    dilation = n_looks * layer.dilation_rate[0]
    copy = type(layer).from_config({**settings, "dilation_rate": dilation})
    copy.build(layer.input.shape)
    copy.set_weights(layer.get_weights())
    return copy


class Layers:
    """Makes the layers of one network: each random one takes the next seed, all have one precision.

    Args:
      recipe: section [network].
      seed: of the first weights and of dropout.
      precision: Keras' name of the data type that layers compute in.
    """

    def __init__(self, recipe: Recipe, seed: int, precision: str):
        self._settings, self._precision = recipe.network, precision
        seeds = np.random.SeedSequence(seed).generate_state(
            2 * max(self._settings.hidden_layers, len(self._settings.dilations)) + 8
        )
        self._seeds = iter((seeds % 2**31).tolist())  # PyTorch takes no larger ones

    def __call__(self, kind: str, *args, **kwargs):
        """Make a layer of keras.layers."""
        return getattr(import_keras().layers, kind)(*args, **{"dtype": self._precision, **kwargs})

    def dense(self, n_units: int, limit: float | None = None, **kwargs):
        """Make a dense layer with Glorot's uniform weights, or with weights up to a given limit."""
        initializers, seed = import_keras().initializers, next(self._seeds)
        kernel = initializers.GlorotUniform(seed)
        if limit:
            kernel = initializers.RandomUniform(-limit, limit, seed)
        return self("Dense", n_units, kernel_initializer=kernel, **kwargs)

    def convolution(self, n_units: int, n_frames: int, dilation: int):
        """Make a convolution over some frames, `dilation` apart, with He's uniform weights."""
        kernel = import_keras().initializers.HeUniform(next(self._seeds))
        return self(
            "Conv1D",
            n_units,
            n_frames,
            dilation_rate=dilation,
            activation="relu",
            kernel_initializer=kernel,
        )

    def delay(self, tensor, n_frames: int):
        """Put frames of zeros before a tensor, and cut off as many at its end."""
        if not n_frames:
            return tensor
        return self("Cropping1D", (0, n_frames))(self("ZeroPadding1D", (n_frames, 0))(tensor))

    def activation(self, tensor):
        """Apply the activation of hidden units.

        Raises:
          InputError: Keras has none of this name.
        """
        name = self._settings.activation
        try:
            import_keras().activations.get(name)
        except ValueError as error:
            raise InputError(
                f'the recipe\'s activation is "{name}"; expected one that Keras has, such as '
                '"relu" or "sigmoid"'
            ) from error
        return self("Activation", name)(tensor)

    def dropout(self, rate: float, tensor):
        """Switch off a share of a tensor while training."""
        return self("Dropout", rate, seed=next(self._seeds))(tensor) if rate > 0 else tensor

    def hidden_layers(self, parts: list):
        """Apply the hidden layers to the windows of frames and to the statistics, if any."""
        settings = self._settings
        parts = [self.dropout(settings.input_dropout, part) for part in parts]
        # Glorot's limits for all inputs of the first layer together.
        limit = np.sqrt(6 / (sum(part.shape[-1] for part in parts) + settings.hidden_units))
        hidden = parts[0]
        for number in range(settings.hidden_layers):
            first_of_two = number == 0 and len(parts) > 1
            hidden = self.dense(settings.hidden_units, limit if first_of_two else None)(hidden)
            if first_of_two:
                of_statistics = self.dense(settings.hidden_units, limit, use_bias=False)(parts[1])
                hidden = self("Add")([hidden, of_statistics])
            if settings.layer_normalization:
                hidden = self("LayerNormalization")(hidden)
            hidden = self.activation(hidden)
            hidden = self.dropout(settings.dropout, hidden)
        return hidden
