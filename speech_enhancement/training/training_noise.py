"""What training mixtures that are made on the fly are made of: recordings, and changes to them."""

import threading

import numpy as np
from scipy import fft

from config import n_window, sample_rate
from speech_enhancement.data.audio_files import AudioCache
from speech_enhancement.errors import InputError
from speech_enhancement.features import N_FREQ, hz_to_bark, root_mean_square
from speech_enhancement.progress import say
from speech_enhancement.recipe import TrainingNoise

FREQUENCY = np.arange(N_FREQ) * sample_rate / n_window  # Hz, of the bins
BARK = hz_to_bark(FREQUENCY)
OCTAVES = np.log2(np.maximum(FREQUENCY, 62.5) / 1000)  # above 1 kHz
BURST_S = 0.005, 0.5  # usual length of a burst, and of the pause between two; in s
PAUSE_S = 0.03, 1.0
SHORTEST_BURST = 80  # samples: 5 ms
RAMP_S = 0.0005, 0.01  # in which a burst begins and ends
DULL_HZ = 800, 7000  # above which dull bursts have nothing
LOW_HZ, HIGH_HZ = (50, 400), (3400, 8000)  # where recordings of a narrow band begin and end
STEP_DB = -20, 10  # by which the level of a noise changes
TALKERS = 3, 8  # in a babble
PITCH_HZ = 50, 4000
VOICE_OCTAVES, VOICE_DB = 0.2, 3.0  # by which speech is moved at most; deviation of its response
NOTE_S = 0.05, 1.0  # how long a sound with a pitch keeps it, or glides to the next
MODULATION_HZ, MODULATION_DB = (1, 20), (6, 40)


class Recordings:
    """Audio files to draw from; what cannot be used is named once, and skipped from then on.

    Args:
      paths: of the files.
      cache: keeps some of them decoded. Several sets and threads may share it.
    """

    def __init__(self, paths: list[str], cache: AudioCache):
        self._paths, self._cache = paths, cache
        self._usable: set[str] = set()
        self._skipped: dict[str, InputError] = {}
        self._lock = threading.Lock()

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a recording, (n_samples,) float32, not to be written to.

        Raises:
          InputError: none of the files can be used.
        """
        while True:
            if len(self._skipped) == len(self._paths):
                *_, reason = self._skipped.values()
                raise InputError(f"none of {len(self._paths)} files can be used; {reason}")
            path = self._paths[rng.integers(len(self._paths))]
            if path in self._skipped:
                continue
            try:
                audio = self._cache.read(path)
                if path not in self._usable and not audio.any():
                    raise InputError(f"{path} is silent; replace or remove it")
            except InputError as error:
                self._skip(path, error)
                continue
            self._usable.add(path)
            return audio

    def _skip(self, path: str, error: InputError) -> None:
        """Name a file that cannot be used, once."""
        with self._lock:
            if path not in self._skipped:
                self._skipped[path] = error
                say(f"skipped: {error}")


class NoiseSource:
    """Draws noise for mixtures, recorded or made up, and changes it as a recipe says.

    Args:
      noise: recordings of noise.
      speech: recordings of speech, for babble.
      changes: the recipe's section [training_noise].
      n_samples: how long each noise is to be.
    """

    def __init__(
        self, noise: Recordings, speech: Recordings, changes: TrainingNoise, n_samples: int
    ):
        self._noise, self._speech = noise, speech
        self._changes, self._n_samples = changes, n_samples

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a noise, (n_samples,) float32, that is not all silent."""
        while True:
            noise = self._one(rng)
            if chosen(rng, self._changes.two_noises):
                noise = sum_of_two(noise, self._one(rng), rng.uniform(-10, 10))
            if noise.any():
                return noise

    def _one(self, rng: np.random.Generator) -> np.ndarray:
        """Draw one noise and change it in time."""
        changes = self._changes
        if chosen(rng, changes.babble):
            noise = self._babble(rng)
        elif chosen(rng, changes.tones):
            noise = tones(rng, self._n_samples)
        else:
            noise = self._recorded_or_synthetic(rng)
        if chosen(rng, changes.modulation):
            noise = noise * modulation(rng, len(noise))
        if chosen(rng, changes.bursts):
            if rng.random() < 0.3:
                noise = dull(noise, log_uniform(rng, DULL_HZ))
            noise = noise * bursts(rng, len(noise))
        if chosen(rng, changes.level_steps):
            noise = noise * level_steps(rng, len(noise))
        return noise

    def _recorded_or_synthetic(self, rng: np.random.Generator) -> np.ndarray:
        """Draw noise of a recording, or coloured stationary noise."""
        changes = self._changes
        knots = rng.standard_normal(8)
        if rng.random() < changes.synthetic:
            slope = rng.uniform(-10, 3)  # dB per octave
            noise = rng.standard_normal(self._n_samples, np.float32)
            return with_response(noise, slope * OCTAVES + 4 * smooth_response(knots))
        noise = self._recorded(rng)
        if changes.equalization_db == 0:
            return noise
        return with_response(noise, changes.equalization_db * smooth_response(knots))

    def _recorded(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a piece of a recording that is not all silent, at a random speed if asked for."""
        while True:
            recording = self._noise.draw(rng)
            speed = 2 ** rng.uniform(-0.5, 0.5) if self._changes.speed else 1.0
            n_needed = self._n_samples if speed == 1 else round(self._n_samples * speed) + 1
            noise = played_at(segment(recording, n_needed, rng), speed, self._n_samples)
            if noise.any():
                return noise

    def _babble(self, rng: np.random.Generator) -> np.ndarray:
        """Draw several talkers at once."""
        n_talkers = rng.integers(*TALKERS)
        talkers = (segment(self._speech.draw(rng), self._n_samples, rng) for _ in range(n_talkers))
        return np.sum([talker / (root_mean_square(talker) + 1e-9) for talker in talkers], axis=0)


# --- Sounds with a pitch --------------------------------------------------------------------------


def tones(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Draw one to three sounds with a pitch: hum, horns, whistles, sirens, beeps; (n_samples,).

    Half of them keep their pitch, the others glide or step from one to the next, within an octave.
    Half are pure, the others have harmonics that get weaker with their number.
    """
    total = np.zeros(n_samples)
    for _ in range(rng.integers(1, 4)):
        pitch = log_uniform(rng, PITCH_HZ) * 2 ** pitch_path(rng, n_samples)  # Hz
        n_harmonics = 1 if rng.random() < 0.5 else int(rng.integers(2, 16))
        level = 10 ** (-rng.uniform(0, 20) / 20)
        total += level * harmonics(rng, pitch, n_harmonics, rng.uniform(0, 2))
    return total.astype(np.float32)


def harmonics(
    rng: np.random.Generator, pitch: np.ndarray, n_harmonics: int, slope: float
) -> np.ndarray:
    """Return harmonics of a pitch in Hz, (n_samples,), weaker with a power of their number.

    Those above half the sample rate are left out, since they would come back as other tones.
    """
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    total = np.zeros(len(pitch))
    for number in range(1, n_harmonics + 1):
        wave = np.sin(number * phase + rng.uniform(0, 2 * np.pi))
        total += number**-slope * (number * pitch < sample_rate / 2) * wave
    return total


def pitch_path(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Draw by how many octaves a pitch changes over time, (n_samples,); 0 where it stays."""
    kind, length = rng.random(), log_uniform(rng, NOTE_S) * sample_rate
    if kind < 0.5:
        return np.zeros(n_samples)
    place = np.arange(n_samples) / length
    octaves = rng.uniform(-1, 1, int(place[-1]) + 2)
    if kind < 0.75:
        return octaves[place.astype(int)]
    return np.interp(place, np.arange(len(octaves)), octaves)


# --- Pieces of recordings -------------------------------------------------------------------------


def segment(
    audio: np.ndarray, n_samples: int, rng: np.random.Generator, at_start: bool = False
) -> np.ndarray:
    """Cut n_samples from a random place; repeat audio that is too short."""
    n_free = len(audio) - n_samples
    onset = 0 if at_start else int(rng.integers(n_free + 1 if n_free >= 0 else len(audio)))
    if onset + n_samples <= len(audio):
        return audio[onset : onset + n_samples]
    return np.resize(np.roll(audio, -onset), n_samples)


def played_at(audio: np.ndarray, speed: float, n_samples: int) -> np.ndarray:
    """Return n_samples of audio as it sounds when it is played `speed` times as fast."""
    if speed != 1:
        import soxr

        audio = soxr.resample(audio, sample_rate * speed, sample_rate, quality="LQ")
    return np.pad(audio, (0, max(0, n_samples - len(audio))))[:n_samples]


def chosen(rng: np.random.Generator, share: float) -> bool:
    """Return whether this one is of a share of all; where the share is 0, nothing is drawn."""
    return share > 0 and rng.random() < share


def other_voice(
    utterance: np.ndarray, n_samples: int, rng: np.random.Generator, at_start: bool = False
) -> tuple[np.ndarray, float]:
    """Cut a piece of speech that sounds like another person in another place.

    It is played up to a seventh faster or slower, which moves pitch and formants, and passes a
    smooth frequency response.

    Returns:
      (n_samples,) float32, and the factor by which the response changed its root mean square.
    """
    speed = 2 ** rng.uniform(-VOICE_OCTAVES, VOICE_OCTAVES)
    piece = segment(utterance, round(n_samples * speed) + 1, rng, at_start)
    played = played_at(piece, speed, n_samples)
    speech = with_response(played, VOICE_DB * smooth_response(rng.standard_normal(8)))
    return speech, root_mean_square(speech) / (root_mean_square(played) + 1e-9)


# --- Changes in frequency -------------------------------------------------------------------------


def smooth_response(knots: np.ndarray) -> np.ndarray:
    """Return a frequency response through a few values evenly spaced in Bark, (n_freq,)."""
    return np.interp(BARK / BARK[-1] * (len(knots) - 1), np.arange(len(knots)), knots)


def with_response(audio: np.ndarray, response_db: np.ndarray) -> np.ndarray:
    """Filter audio with a frequency response; its phase is kept.

    Args:
      audio: (n_samples,) float32.
      response_db: (n_freq,) gains in dB, evenly spaced from 0 Hz to half the sample rate.
    """
    n_padded = fft.next_fast_len(len(audio) + n_window, real=True)
    spectrum = fft.rfft(audio, n_padded)
    places = np.linspace(0, len(response_db) - 1, len(spectrum))
    gain = np.interp(
        places, np.arange(len(response_db)), 10 ** (np.clip(response_db, -60, 60) / 20)
    )
    filtered = fft.irfft(spectrum * gain.astype(np.float32), n_padded)
    return filtered[: len(audio)].astype(np.float32, copy=False)


def dull(noise: np.ndarray, cutoff: float) -> np.ndarray:
    """Return noise without what lies above a frequency in Hz; it falls by 60 dB in an octave."""
    octaves = np.log2(np.maximum(FREQUENCY, 1) / cutoff)
    return with_response(noise, -60 * np.clip(octaves, 0, 1))


def narrow_band(rng: np.random.Generator) -> np.ndarray:
    """Draw the response of a recording without the lowest and highest frequencies, (n_freq,) dB."""
    low, high = log_uniform(rng, LOW_HZ), log_uniform(rng, HIGH_HZ)
    octaves = np.log2(np.maximum(FREQUENCY, 1) / np.array([[low], [high]]))
    return -24 * np.maximum(-octaves[0], 0) - 600 * np.maximum(octaves[1], 0)


# --- Changes in time ------------------------------------------------------------------------------


def bursts(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Draw the envelope of sounds that come and go: shots, blows, keys, drips; (n_samples,).

    Length, pause and strength of the bursts vary around values of their own for each noise, by
    more for some than for others. Half of the noises have bursts that die away. Between bursts
    there is silence, or in a third of the noises a remainder 20 to 50 dB lower.
    """
    length, pause = log_uniform(rng, BURST_S), log_uniform(rng, PAUSE_S)
    spread = rng.uniform(0, 0.7)
    dies_away, remainder = rng.random() < 0.5, 0.0
    if rng.random() < 1 / 3:
        remainder = 10 ** (-rng.uniform(20, 50) / 20)
    envelope = np.full(n_samples, remainder, np.float32)

    position = int(rng.uniform(0, pause) * sample_rate)
    while position < n_samples:
        n_on = max(SHORTEST_BURST, int(sample_rate * length * varied(rng, spread)))
        shape = np.full(n_on, 10 ** (6 * spread * rng.standard_normal() / 20), np.float32)
        if dies_away:
            shape *= np.exp(-np.linspace(0, rng.uniform(1, 5), n_on, dtype=np.float32))
        n_ramp = min(n_on // 2, int(sample_rate * rng.uniform(*RAMP_S)))
        ramp = np.linspace(0, 1, n_ramp, dtype=np.float32)
        shape[:n_ramp] *= ramp
        shape[n_on - n_ramp :] *= ramp[::-1]
        envelope[position : position + n_on] += shape[: n_samples - position]
        position += n_on + int(sample_rate * pause * varied(rng, spread))
    return envelope


def modulation(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Draw a level that goes up and down regularly, as of brushes, engines, alarms; (n_samples,).

    It does so 1 to 20 times a second, by 6 to 40 dB, with a rate that wavers by a tenth.
    """
    n_knots = 2 + n_samples // sample_rate
    wavering = np.exp(0.1 * rng.standard_normal(n_knots))
    places = np.linspace(0, n_knots - 1, n_samples)
    rate = log_uniform(rng, MODULATION_HZ) * np.interp(places, np.arange(n_knots), wavering)
    phase = 2 * np.pi * (np.cumsum(rate) / sample_rate + rng.random())
    lowering = ((1 + np.cos(phase)) / 2) ** log_uniform(rng, (0.3, 3))
    return (10 ** (-rng.uniform(*MODULATION_DB) * lowering / 20)).astype(np.float32)


def level_steps(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Draw one to three sudden changes of level, (n_samples,) factors."""
    gain = np.ones(n_samples, np.float32)
    for start in np.sort(rng.integers(0, n_samples, rng.integers(1, 4))):
        gain[start:] = 10 ** (rng.uniform(*STEP_DB) / 20)
    return gain


def sum_of_two(first: np.ndarray, second: np.ndarray, difference_db: float) -> np.ndarray:
    """Return the sum of two noises, the second so many dB above the first; (n_samples,)."""
    parts = [noise / (root_mean_square(noise) + 1e-9) for noise in (first, second)]
    return (parts[0] + 10 ** (difference_db / 20) * parts[1]).astype(np.float32)


def log_uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    """Draw a number whose logarithm is evenly distributed between those of two limits."""
    return float(np.exp(rng.uniform(*np.log(limits))))


def varied(rng: np.random.Generator, spread: float) -> float:
    """Draw a factor around 1, with so much standard deviation of its logarithm."""
    return float(np.exp(spread * rng.standard_normal()))
