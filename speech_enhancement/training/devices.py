"""Training on several devices and machines: keras.distribution, which the JAX backend has.

Each process runs the same commands. It makes or reads its part of every batch; Keras adds up the
gradients, so that all processes keep the same weights.
"""

import contextlib
import os
from dataclasses import dataclass

from speech_enhancement.errors import InputError
from speech_enhancement.network.keras_backend import device_names, import_keras
from speech_enhancement.progress import say

_VARIABLES = [
    f"KERAS_DISTRIBUTION_{name}" for name in ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")
]


@dataclass(frozen=True)
class Share:
    """Which part of each batch this process works on.

    Attributes:
      index, n_processes: this process, from 0, of so many.
      n_devices: of all processes together.
      parallel: keras.distribution.DataParallel; None on a single device.
    """

    index: int = 0
    n_processes: int = 1
    n_devices: int = 1
    parallel: object = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that evaluates, prints and writes."""
        return self.index == 0

    def scope(self):
        """Return the context in which the network is made and trained."""
        return contextlib.nullcontext() if self.parallel is None else self.parallel.scope()

    def part(self, n_items: int) -> slice:
        """Return which of n_items are this process's.

        What the devices cannot share evenly is left out.
        """
        n_each = n_items // self.n_devices * (self.n_devices // self.n_processes)
        return slice(self.index * n_each, (self.index + 1) * n_each)

    def n_batches(self, n_items: int, batch_size: int) -> int:
        """Return how many batches an epoch has.

        A short last batch counts if each device gets something of it.
        """
        n_whole, n_rest = divmod(n_items, batch_size)
        return n_whole + (n_rest >= self.n_devices)


ALONE = Share()  # a single process with a single device


def start_distribution() -> Share:
    """Join the processes that the KERAS_DISTRIBUTION_* variables announce; use all their devices.

    It has to be called before Keras computes anything.

    Raises:
      InputError: another backend than JAX, or variables that do not fit together.
    """
    keras = import_keras()
    if keras.backend.backend() != "jax":
        found = keras.backend.backend()
        raise InputError(
            f"--distribute needs Keras on JAX, found {found}: "
            "pip install jax, and set KERAS_BACKEND=jax"
        )

    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    index, n_processes = 0, 1
    if given:
        numbers = [given.get(name, "") for name in _VARIABLES[1:]]
        are_numbers = len(given) == 3 and all(number.isdecimal() for number in numbers)
        if not are_numbers or int(numbers[1]) >= int(numbers[0]):
            expected = "an address, a number of processes and an id below it"
            raise InputError(
                f"{', '.join(_VARIABLES)}: expected {expected}, found {given}; set all three"
            )
        n_processes, index = map(int, numbers)
        keras.distribution.initialize()

    parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
    return Share(index, n_processes, len(keras.distribution.list_devices()), parallel)


def say_device(share: Share, precision: str) -> None:
    """Print what the training runs on."""
    backend = import_keras().backend.backend()
    devices = device_names() if share.n_devices > 1 else device_names()[:1]
    process = f", process {share.index} of {share.n_processes}" if share.n_processes > 1 else ""
    say(f"train on {', '.join(devices)} in {precision}, Keras backend {backend}{process}")
