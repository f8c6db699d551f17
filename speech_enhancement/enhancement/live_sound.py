"""Where live sound comes from and goes to: a pipe, or the microphone and the loudspeaker."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

import numpy as np

from config import sample_rate
from speech_enhancement.enhancement.live import LiveEnhancer
from speech_enhancement.enhancement.pipe import (
    check_connected,
    opened_input,
    sample_bytes,
    stream_blocks,
    wav_header,
)
from speech_enhancement.errors import InputError, foreseen_disk_errors
from speech_enhancement.features import N_HOP

BLOCKS_PER_SECOND = 100  # are read from a WAV
READ_BYTES = 2**14  # of raw samples, at most
FULL_SCALE = 2**15
HOPS_AT_FIRST = 2  # 32 ms: so much may a block be late without a gap
HOPS_WAITING = 4  # 64 ms: no more than that waits after a gap
GONE = "the microphone, the loudspeaker or the sound server is gone; connect it and run this again"


# --- Pipes ----------------------------------------------------------------------------------------


def enhance_live_pipe(model, settings, rate: int | None, smallest_gain: float) -> None:
    """Clean what comes from standard input, and write it to standard output as soon as it can be.

    Each sample goes out LiveEnhancer.delay samples after it came; nothing is lost at the end, and
    nothing is put before the beginning, so that output and input are equally long.

    Args:
      model, settings: as of LiveEnhancer.
      rate: of raw samples in Hz, mono, 16 bits, little-endian; None for a WAV, which says it.
      smallest_gain: no part of the spectrum is attenuated by more than this factor.
    Raises:
      InputError: no sound comes in, or standard output cannot be written.
    """
    if rate is not None:
        check_connected()
        live = LiveEnhancer((model, settings), rate, 1, smallest_gain)
        write_live(live, raw_blocks(sys.stdin.fileno()), b"", is_float=False)
        return

    source, file = opened_input("for samples without a header give --rate")
    with file:
        rate, n_channels = file.samplerate, file.channels
        live = LiveEnhancer((model, settings), rate, n_channels, smallest_gain)
        is_float = file.subtype in ("FLOAT", "DOUBLE")
        blocks = stream_blocks(file, rate // BLOCKS_PER_SECOND)
        write_live(live, blocks, wav_header(rate, n_channels, is_float), is_float)
    source.check_end()


def write_live(
    live: LiveEnhancer, blocks: Iterator[np.ndarray], head: bytes, is_float: bool
) -> None:
    """Clean blocks of (n_samples, n_channels) and write them to standard output without delay."""
    output, n_late = sys.stdout.buffer, live.delay

    def write(samples: np.ndarray) -> None:
        output.write(sample_bytes(samples, is_float))
        output.flush()

    with foreseen_disk_errors("standard output"):
        output.write(head)
        for block in blocks:
            write(live.process(block)[n_late:])
            n_late = max(0, n_late - len(block))
        write(live.process(np.zeros((live.delay, block.shape[1]), np.float32))[n_late:])


def raw_blocks(descriptor: int) -> Iterator[np.ndarray]:
    """Yield samples of 16 bits, (n_samples, 1) from -1 to 1, as soon as they come.

    Raises:
      InputError: none came.
    """
    held, n_read = b"", 0
    while content := os.read(descriptor, READ_BYTES):
        held += content
        n_whole = len(held) - len(held) % 2
        yield np.frombuffer(held[:n_whole], "<i2").astype(np.float32)[:, None] / FULL_SCALE
        held, n_read = held[n_whole:], n_read + n_whole
    if n_read == 0:
        raise InputError("standard input holds no samples")
    if held:
        print("standard input ends within a sample, which is left out", file=sys.stderr)


# --- Microphone and loudspeaker -------------------------------------------------------------------


def import_sounddevice():
    """Import the package sounddevice, which only the microphone needs."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: without the library PortAudio
        raise InputError(
            f"the microphone needs the package sounddevice and the library PortAudio ({error}); "
            "pip install sounddevice, and install libportaudio2"
        ) from error
    return sounddevice


def list_devices() -> None:
    """Print the sound devices of this machine, with the numbers and names to give --devices."""
    print(import_sounddevice().query_devices())


def rate_of_devices(sound, pair: tuple) -> int:
    """Return the model's sample rate if two devices have it, else the microphone's usual one."""
    microphone, loudspeaker = pair
    try:
        sound.check_input_settings(microphone, 1, "float32", samplerate=sample_rate)
        sound.check_output_settings(loudspeaker, 1, "float32", samplerate=sample_rate)
    except sound.PortAudioError:
        return int(sound.query_devices(microphone, kind="input")["default_samplerate"])
    return sample_rate


class Waiting:
    """Cleaned samples on their way to the loudspeaker, at most HOPS_WAITING hops of them.

    HOPS_AT_FIRST hops of silence come first, so that blocks may be late. Should one be later, the
    loudspeaker plays silence; the oldest samples are dropped then, so that what follows is not late
    too.

    Attributes:
      n_late: how many blocks were not there in time.
    """

    def __init__(self, n_hop: int):
        self._samples = np.empty((0, 1), np.float32)
        self._n_most, self._lock = HOPS_WAITING * n_hop, threading.Lock()
        self._has_begun, self.n_late = False, 0

    def put(self, samples: np.ndarray) -> None:
        """Add (n_samples, 1)."""
        with self._lock:
            if not self._has_begun:
                self._samples = np.zeros((HOPS_AT_FIRST * len(samples), 1), np.float32)
            self._samples = np.concatenate([self._samples, samples])[-self._n_most :]
            self._has_begun = True

    def take(self, n_samples: int) -> np.ndarray:
        """Remove and return (n_samples, 1), or silence if there are not so many."""
        with self._lock:
            if len(self._samples) < n_samples:
                self.n_late += self._has_begun
                return np.zeros((n_samples, 1), np.float32)
            taken, self._samples = np.split(self._samples, [n_samples])
            return taken


def enhance_microphone(
    model, settings, devices: tuple[str, str] | None, smallest_gain: float
) -> None:
    """Play what the microphone hears, cleaned, until Ctrl-C.

    Args:
      model, settings: as of LiveEnhancer.
      devices: number or name of the microphone and of the loudspeaker; None for the system's.
      smallest_gain: no part of the spectrum is attenuated by more than this factor.
    Raises:
      InputError: there is no such device, it cannot be used, or it is gone; or the model outputs
        NaN or infinity.
    """
    sound = import_sounddevice()
    pair = tuple(int(name) if name.isdecimal() else name for name in devices or ()) or (None, None)
    with foreseen_device_errors(sound):
        rate = rate_of_devices(sound, pair)
    live = LiveEnhancer((model, settings), rate, 1, smallest_gain)
    n_hop = N_HOP * rate // sample_rate
    live.process(np.zeros(2 * n_hop, np.float32))  # what is slow the first time
    waiting, gone, failures = Waiting(n_hop), threading.Event(), []

    def hear(heard, *_) -> None:
        try:
            waiting.put(live.process(heard))
        except Exception as error:  # is raised again below: this thread is PortAudio's
            failures.append(error)
            raise sound.CallbackAbort from error

    def play(played, n_samples, *_) -> None:
        played[:] = waiting.take(n_samples)

    try:
        with open_devices(sound, pair, (rate, n_hop), (hear, play), gone.set):
            own = 1000 * live.delay / rate
            print(f"cleaning the microphone at {rate} Hz, {own:.0f} ms behind; Ctrl-C ends it")
            gone.wait()
    except KeyboardInterrupt:
        print(f"ended; {waiting.n_late} blocks were late")
        return
    raise failures[0] if failures else InputError(GONE)


@contextlib.contextmanager
def open_devices(sound, pair: tuple, rate_and_block: tuple, callbacks: tuple, ended) -> Iterator:
    """Let a microphone and a loudspeaker run.

    Args:
      sound: the package sounddevice.
      pair: number or name of each, None for the system's.
      rate_and_block: sample rate in Hz, and samples of a block.
      callbacks: what each calls with a block.
      ended: what each calls when it stops, of itself or not.
    """
    options = {"channels": 1, "dtype": "float32", "latency": "low", "finished_callback": ended}
    with (
        foreseen_device_errors(sound),
        sound.InputStream(*rate_and_block, pair[0], callback=callbacks[0], **options),
        sound.OutputStream(*rate_and_block, pair[1], callback=callbacks[1], **options),
    ):
        yield


@contextlib.contextmanager
def foreseen_device_errors(sound) -> Iterator[None]:
    """Make what sounddevice says of devices an InputError; unknown names are ValueErrors there."""
    try:
        yield
    except (sound.PortAudioError, ValueError) as error:
        raise InputError(
            f"the sound devices cannot be used ({error}); see --list_devices"
        ) from error
