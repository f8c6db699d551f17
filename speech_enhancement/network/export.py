"""A trained model for other programs: as an ONNX graph, or as a .keras file of half the size."""

import io
import json
import os
import zipfile

import numpy as np

from speech_enhancement.errors import InputError
from speech_enhancement.files import replacing, write_bytes
from speech_enhancement.network.architectures import WITHOUT_LOOK_AHEAD
from speech_enhancement.network.network import Settings, load_model, plain_settings, save_model
from speech_enhancement.network_input import FLOOR, FRAMES_PER_ESTIMATE, LOWEST_OF_LEVEL, SILENCE

FORMATS = {"onnx": ".onnx", "float16": ".keras"}  # and how the names of their files end
WEIGHTS_MEMBER = "model.weights.h5"  # in the .keras file, as Keras names it
OPSET = 17  # of ONNX: the first with LayerNormalization; runtimes from 2022 on read it
ACTIVATIONS = {"linear": "Identity", "relu": "Relu", "sigmoid": "Sigmoid"}  # Keras' and ONNX's
ACTIVATIONS |= {"tanh": "Tanh", "elu": "Elu"}
END = np.iinfo(np.int64).max  # of an axis, for slices
LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


def export(model: str, output: str, format: str) -> None:
    """Write a trained model for other programs, or smaller.

    Working set: the network, three times.

    Args:
      model: .keras file that train wrote.
      output: file to write, .onnx or .keras; one that exists is replaced.
      format: "onnx", see write_onnx, or "float16", see write_float16.
    Raises:
      InputError: the model is missing, damaged or cannot be written in this format; the name of the
        output does not fit the format, or it is the model's; the package onnx is not installed.
    """
    if not output.endswith(FORMATS[format]):
        raise InputError(
            f"expected the --output of --format {format} to end in {FORMATS[format]}, "
            f"found {output}"
        )
    if format == "onnx":
        import_onnx()
    network, settings = load_model(model)
    replaces = os.path.exists(output)
    if replaces and os.path.samefile(model, output):
        raise InputError(f"--output {output} is the --model itself; give another name")
    write = {"onnx": write_onnx, "float16": write_float16}[format]
    write(output, network, settings)
    note = ", in place of an older file" if replaces else ""
    print(
        f"{model}, {network.count_params()} weights "
        f"-> {output}, {os.path.getsize(output) / 1e6:.2f} MB{note}"
    )


# --- float16 ----------------------------------------------------------------------------------


def write_float16(path: str, network, settings: Settings) -> None:
    """Save a model with its weights rounded to 16-bit floats, compressed.

    The file holds them as 32-bit floats, whose last 13 bits are zero and take no space once
    compressed. So it is read like any other model.

    Args:
      path: .keras file to write.
      network, settings: as load_model returns them; the network's weights are rounded in place.
    Raises:
      InputError: a weight is too large for a 16-bit float, or not a number.
    """
    weights = network.get_weights()
    largest = max(float(np.max(np.abs(weight))) for weight in weights)
    if not largest <= LARGEST_FLOAT16:
        found = f"found a weight of {largest:g}, 16-bit floats end at {LARGEST_FLOAT16:g}"
        raise InputError(f"{path} cannot be written: {found}; export it with --format onnx")
    network.set_weights([weight.astype(np.float16).astype(np.float32) for weight in weights])
    with replacing(path) as temporary:
        save_model(temporary, network, settings)
        compress(temporary)


def compress(path: str) -> None:
    """Compress the weights and the text in a .keras file, in place."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[WEIGHTS_MEMBER] = compressed_hdf5(members[WEIGHTS_MEMBER])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def compressed_hdf5(content: bytes) -> bytes:
    """Return an HDF5 file with the same groups and datasets, these compressed.

    HDF5 sorts the bytes of numbers by significance before it deflates them, all of a dataset
    together. This makes smaller files than to deflate the archive.
    """
    import h5py

    target = io.BytesIO()
    with h5py.File(io.BytesIO(content), "r") as old, h5py.File(target, "w") as new:

        def copy(name: str, item) -> None:
            if isinstance(item, h5py.Dataset):
                together = {"chunks": item.shape, "shuffle": True, "compression": "gzip"}
                made = new.create_dataset(name, data=item[()], **together)
            else:
                made = new.require_group(name)
            made.attrs.update(item.attrs)

        new.attrs.update(old.attrs)
        old.visititems(copy)
    return target.getvalue()


# --- ONNX -------------------------------------------------------------------------------------


def import_onnx():
    """Import the package onnx, which only this step needs."""
    try:
        import onnx
    except ImportError as error:
        raise InputError(
            f"export --format onnx needs the package onnx ({error}); pip install onnx"
        ) from error
    return onnx


def write_onnx(path: str, network, settings: Settings) -> None:
    """Write the network with its scaler as an ONNX file; its metadata hold all settings as JSON.

    Inputs are float32 `frames` (n_frames + n_concat - 1, n_freq), with the neighbours of the first
    and the last frame, and, if the recipe has any, `statistics` (n_frames, n_statistics, n_freq);
    both as network_input.frames_and_statistics returns them. Outputs are `log_magnitude` of clean
    speech, with the variance equalised, or `mask`, or both, (n_frames, n_freq); the choice that
    keep_noisy_above and keep_estimate_below describe is left to the reader.

    A network with memory takes `frames` (n_frames, n_freq), any number of them, `statistics` of the
    frames look_ahead before, if the recipe has any, and its states `state_0`, `state_1`, ..., zeros
    at first; it gives the masks of the frames look_ahead before, so that the first look_ahead of
    all belong to no frame, and `next_state_0`, `next_state_1`, ... for the next call. Where the
    recipe's n_looks is 2, frames of two looks come in turn, the earlier one's first.

    The graph is built here layer by layer: Keras' own export needs another converter on each
    backend, and has none that takes these networks on PyTorch.

    Raises:
      InputError: the network has a layer or an activation that is not known here.
    """
    onnx = import_onnx()
    graph = Graph(onnx, settings.recipe.n_looks)
    n_freq, target = len(settings.scaler.mean), settings.recipe.target.output
    inputs = add_scaler(graph, settings)
    output = add_layers(graph, network)
    outputs = ["log_magnitude", "mask"] if target == "log_magnitude_and_mask" else [target]
    for index, name in enumerate(outputs):
        part = graph.slice(output, index * n_freq, (index + 1) * n_freq, axis=1)
        if name == "log_magnitude":
            part = graph.add("Mul", [part, graph.constant(settings.gv_beta * settings.scaler.std)])
            part = graph.add("Add", [part, graph.constant(settings.scaler.mean)])
        graph.add("Identity", [part], output=name)
    shapes = {name: ["n_frames", n_freq] for name in outputs}
    for number, (state, shape) in enumerate(graph.states):
        inputs[f"state_{number}"] = shapes[f"next_state_{number}"] = shape
        graph.add("Identity", [state], output=f"next_state_{number}")
    model = graph.model(inputs, shapes)
    onnx.helper.set_model_props(
        model,
        {name: json.dumps(value, allow_nan=False) for name, value in metadata(settings).items()},
    )
    onnx.checker.check_model(model, full_check=True)
    write_bytes(path, model.SerializeToString())


def metadata(settings: Settings) -> dict:
    """Return all that enhancing with the network needs besides it, as plain data."""
    constants = {
        "frames_per_estimate": FRAMES_PER_ESTIMATE,
        "floor": FLOOR,
        "silence": SILENCE,
        "lowest_of_level": LOWEST_OF_LEVEL,
        "n_looks": settings.recipe.n_looks,
    }
    return {**plain_settings(settings), **constants}


class Graph:
    """An ONNX graph in the making; each of its values has a name.

    Args:
      onnx: the package.
      n_looks: frames of so many looks come in turn; see architectures.with_states.
    """

    def __init__(self, onnx, n_looks: int = 1):
        self.n_looks = n_looks
        self._helper, self._float = onnx.helper, onnx.TensorProto.FLOAT
        self._from_array = onnx.numpy_helper.from_array
        self._nodes, self._constants = [], []
        self.states: list[tuple[str, list[int]]] = []  # the new value and the shape of each

    def constant(self, values) -> str:
        """Add an array, of whole numbers as int64, of others as float32; return its name."""
        values = np.asarray(values)
        values = values.astype(np.int64 if values.dtype.kind == "i" else np.float32)
        name = f"constant_{len(self._constants)}"
        self._constants.append(self._from_array(values, name))
        return name

    def add(self, operator: str, inputs: list[str], output: str | None = None, **attributes) -> str:
        """Add a node; return the name of its output."""
        output = output or f"value_{len(self._nodes)}"
        self._nodes.append(self._helper.make_node(operator, inputs, [output], **attributes))
        return output

    def slice(self, value: str, start: int, end: int, axis: int) -> str:
        """Cut a value from start to end, as in Python; return the name of what is left."""
        numbers = [self.constant([number]) for number in (start, end, axis)]
        return self.add("Slice", [value, *numbers])

    def remember(self, value: str, n_frames: int, n_units: int) -> str:
        """Put the last n_frames of a value in the call before in front of it; return its name."""
        state = f"state_{len(self.states)}"
        both = self.add("Concat", [state, value], axis=0)
        self.states.append((self.slice(both, -n_frames, END, axis=0), [n_frames, n_units]))
        return both

    def model(self, inputs: dict[str, list], outputs: dict[str, list]):
        """Return the onnx.ModelProto with float32 inputs and outputs of these names and shapes."""
        make = self._helper.make_tensor_value_info
        values = [
            [make(name, self._float, shape) for name, shape in shapes.items()]
            for shapes in (inputs, outputs)
        ]
        opsets = [self._helper.make_opsetid("", OPSET)]
        graph = self._helper.make_graph(self._nodes, "speech_enhancement", *values, self._constants)
        version = self._helper.find_min_ir_version_for(opsets)  # an older runtime reads the file
        return self._helper.make_model(graph, opset_imports=opsets, ir_version=version)


def add_scaler(graph: Graph, settings: Settings) -> dict[str, list]:
    """Add the scaling of the inputs; return their names and shapes.

    The scaled ones are named like the network's inputs, with "scaled_" before.
    """
    scaler, n_concat = settings.scaler, settings.recipe.input.n_concat
    n_rows = "n_frames" if n_concat == 1 else f"n_frames + {n_concat - 1}"
    inputs = {"frames": [n_rows, len(scaler.mean)]}
    parts = {"frames": (scaler.mean, scaler.std)}
    if settings.recipe.input.n_statistics:
        inputs["statistics"] = ["n_frames", *scaler.statistics_mean.shape]
        parts["statistics"] = (scaler.statistics_mean, scaler.statistics_std)
    for name, (mean, std) in parts.items():
        centred = graph.add("Sub", [name, graph.constant(mean)])
        scaled = graph.add("Div", [centred, graph.constant(std)])
        graph.add("Flatten", [scaled], f"scaled_{name}", axis=1)
    return inputs


def add_layers(graph: Graph, network) -> str:
    """Add the layers of a network, without its axis of segments; return the name of its output."""
    names = {}  # in the graph, by Keras' names
    for layer in network.layers:
        if type(layer).__name__ == "InputLayer":
            names[layer.output.name] = f"scaled_{layer.name}"
            continue
        given = layer.input if isinstance(layer.input, list) else [layer.input]
        inputs = [names[tensor.name] for tensor in given]
        names[layer.output.name] = add_layer(graph, layer, inputs)
    return names[network.outputs[0].name]


def add_layer(graph: Graph, layer, inputs: list[str]) -> str:
    """Add one layer; return the name of its output.

    Raises:
      InputError: the layer is of a kind that network.build_network does not make.
    """
    match type(layer).__name__:
        case "Cropping1D":
            first, last = layer.cropping
            if layer.name == WITHOUT_LOOK_AHEAD:
                return inputs[0]
            return graph.slice(inputs[0], first, -last if last else END, axis=0)
        case "ZeroPadding1D":
            n_frames = graph.n_looks * layer.padding[0]
            return graph.remember(inputs[0], n_frames, layer.output.shape[-1])
        case "Conv1D":
            return add_activation(graph, layer, add_convolution(graph, layer, inputs[0]))
        case "Add":
            return graph.add("Add", inputs)
        case "Concatenate":
            return graph.add("Concat", inputs, axis=1)
        case "Dense":
            product = graph.add("Gemm", inputs + constants_of(graph, layer))
            return add_activation(graph, layer, product)
        case "LayerNormalization":
            weights = constants_of(graph, layer)
            return graph.add("LayerNormalization", inputs + weights, axis=-1, epsilon=layer.epsilon)
        case "Activation":
            return add_activation(graph, layer, inputs[0])
        case "Dropout":  # only while training
            return inputs[0]
        case other:
            raise InputError(
                f"layer {layer.name}: {other} cannot be exported to onnx; was it made by train?"
            )


def constants_of(graph: Graph, layer) -> list[str]:
    """Add the weights of a layer as constants; return their names."""
    return [graph.constant(weight) for weight in layer.get_weights()]


def add_convolution(graph: Graph, layer, value: str) -> str:
    """Add a dilated convolution, as a product with frames side by side; return its name."""
    kernel, bias = layer.get_weights()
    n_kernel, dilation = len(kernel), graph.n_looks * layer.dilation_rate[0]
    parts = []
    for number in range(n_kernel):
        n_after = (n_kernel - 1 - number) * dilation
        parts.append(graph.slice(value, number * dilation, -n_after if n_after else END, axis=0))
    side_by_side = graph.add("Concat", parts, axis=1)
    weights = kernel.reshape(-1, kernel.shape[-1])
    return graph.add("Gemm", [side_by_side, graph.constant(weights), graph.constant(bias)])


def add_activation(graph: Graph, layer, value: str) -> str:
    """Add the activation of a layer; return the name of its output.

    Raises:
      InputError: it is not in ACTIVATIONS.
    """
    name = getattr(layer.activation, "__name__", type(layer.activation).__name__)
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise InputError(
            f"layer {layer.name}: {name} cannot be exported to onnx, {known} can; "
            "train with one of these"
        )
    return value if name == "linear" else graph.add(ACTIVATIONS[name], [value])
