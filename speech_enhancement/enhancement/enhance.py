"""What `main_dnn.py enhance` does with files, with a pipe, and live."""

import os
import sys
from collections.abc import Sequence

from speech_enhancement.errors import InputError
from speech_enhancement.recipe import PROGRAM_DIR

SHIPPED_MODEL, SHIPPED_AHEAD_MODEL, SHIPPED_LIVE_MODEL = (
    os.path.join(PROGRAM_DIR, "pretrained", f"{name}.keras") for name in ("model", "ahead", "live")
)
SHIPPED_TOGETHER = SHIPPED_MODEL, SHIPPED_AHEAD_MODEL  # for files; see turns.TurnGains


def enhance(
    inputs: list[str],
    output_dir: str | None = None,
    model: str | Sequence[str] = SHIPPED_TOGETHER,
    overwrite: bool = False,
    attenuation_limit: float | None = None,
    precision: str = "float32",
) -> int:
    """Clean recordings of any length, format, sample rate and number of channels.

    The outputs have the name, format, sample rate, channels and length of the inputs, without
    delay. `-` means a WAV from standard input, which goes to standard output while it comes: after
    5.5 s at first, then 4.1 s behind.

    Working set: the networks, and some seconds of each channel.

    Args:
      inputs: files, folders with files, or "-" alone.
      output_dir: folder to write in.
      model: a model that train saved, or several, which then decide together.
      overwrite: whether outputs that exist are written anew.
      attenuation_limit: no part of the spectrum is attenuated by more than this, in dB; None sets
        no limit.
      precision: of the networks, "float32" or "bfloat16"; see models_of.
    Returns:
      0, or 1 if some of several files could not be done; they are named.
    Raises:
      InputError: the only file cannot be done, or the flags do not fit together.
    """
    from speech_enhancement.enhancement.pipe import enhance_stream
    from speech_enhancement.enhancement.recordings import enhance_files

    is_stream = inputs == ["-"]
    if not inputs or is_stream != (output_dir is None) or (not is_stream and "-" in inputs):
        raise InputError(
            "expected files and an --output_dir, or - alone for standard input to standard output"
        )
    models = models_of([model] if isinstance(model, str) else model, precision)
    limit = smallest_gain(attenuation_limit)
    if is_stream:
        enhance_stream(models, limit)
        return 0
    return enhance_files(models, inputs, output_dir, overwrite, limit)


def models_of(paths: Sequence[str], precision: str) -> list[tuple]:
    """Load models, with networks that compute in a given precision.

    Where this machine is not faster in bfloat16, the networks compute in float32, and standard
    error says so.

    Args:
      paths: of models that train saved or, in float32, export wrote for ONNX.
      precision: "float32" or "bfloat16".
    Returns:
      What NetworkRun takes, and Settings, for each.
    Raises:
      InputError: as of load_any, or an ONNX file is to be run in bfloat16.
    """
    from speech_enhancement.network.architectures import in_precision
    from speech_enhancement.network.keras_backend import has_bfloat16
    from speech_enhancement.network.onnx_network import load_any

    for path in paths:
        if precision != "float32" and path.endswith(".onnx"):
            raise InputError(f"{path}: expected a .keras file for --precision {precision}")
    models = [load_any(path) for path in paths]
    if precision == "float32":
        return models
    if not has_bfloat16():
        print("this processor has no bfloat16: cleaning in float32", file=sys.stderr)
        return models
    return [
        (in_precision(network, settings.recipe, precision), settings)
        for network, settings in models
    ]


def enhance_live(
    inputs: list[str],
    model: str = SHIPPED_LIVE_MODEL,
    attenuation_limit: float | None = None,
    rate: int | None = None,
    devices: tuple[str, str] | None = None,
) -> None:
    """Clean sound while it is heard: each sample goes out 32 ms after it came.

    Working set: the network, and two frames of each channel.

    Args:
      inputs: "-" alone for standard input to standard output; none for microphone to loudspeaker.
      model: one that tracks the level (level_memory_s), which train saved or export wrote for ONNX.
      attenuation_limit: as of enhance.
      rate: of raw samples from standard input, in Hz; None if a WAV comes.
      devices: microphone and loudspeaker, number or name; None for the system's.
    Raises:
      InputError: the flags do not fit together, or no sound comes in or can go out.
    """
    from speech_enhancement.enhancement.live_sound import enhance_live_pipe, enhance_microphone
    from speech_enhancement.network.onnx_network import load_any

    if inputs not in ([], ["-"]):
        raise InputError(f"expected --live alone or with -, found {', '.join(inputs)}")
    if (rate and not inputs) or (devices and inputs):
        raise InputError("--rate goes with --live -, and --devices with --live alone")
    network, settings = load_any(model)
    limit = smallest_gain(attenuation_limit)
    if inputs:
        enhance_live_pipe(network, settings, rate, limit)
    else:
        enhance_microphone(network, settings, devices, limit)


def smallest_gain(attenuation_limit: float | None) -> float:
    """Return the factor of a limit in dB; 0 without one."""
    return 0.0 if attenuation_limit is None else 10 ** (-attenuation_limit / 20)
