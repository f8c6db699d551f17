"""Random choices that depend on the names of files alone: the same on every machine, and unmoved by other files."""

import hashlib
import os
import unicodedata


def keyed_number(*keys: str) -> int:
    """Return a large pseudo-random integer that depends on the keys alone, the same on every machine.

    Accented letters count as the same however they are encoded; macOS and Linux store them differently.
    """
    text = unicodedata.normalize("NFC", "\n".join(keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def draw_noises(speech_name: str, noise_names: list[str], magnification: int) -> list[str]:
    """Draw noises for a speech without replacement: the first of an order that the names define."""
    return sorted(
        noise_names, key=lambda noise_name: keyed_number("rank", speech_name, noise_name)
    )[:magnification]


def draw_segment(
    speech_name: str, noise_name: str, n_speech: int, n_noise: int, attempt: int = 0
) -> tuple[int, int]:
    """Draw which part of a noise goes with a speech.

    Args:
      speech_name, noise_name: the pair that the draw depends on.
      n_speech, n_noise: lengths at 16 kHz, in samples.
      attempt: how many draws before this one hit upon silence.
    Returns:
      onset and offset in samples at 16 kHz, n_speech apart. The onset is 0 where the noise is no
      longer than the speech: it is then repeated.
    """
    keys = ["onset", speech_name, noise_name, *([str(attempt)] if attempt else [])]
    onset = keyed_number(*keys) % (n_noise - n_speech + 1) if n_noise > n_speech else 0
    return onset, onset + n_speech


def held_out_speech(speech_names: list[str], fraction: float) -> set[str]:
    """Choose the speech that is kept out of training, to choose the best model on.

    Whole speakers: a folder of files is taken for a speaker, and a file that lies in no folder, too. The
    draw depends on their names alone.
    """
    speakers = {name: os.path.dirname(name) or name for name in speech_names}
    ranked = sorted(set(speakers.values()), key=lambda speaker: keyed_number("valid", speaker))
    n_held_out = min(len(ranked) - 1, max(1, round(fraction * len(ranked)))) if fraction > 0 else 0
    held_out = set(ranked[:n_held_out])
    return {name for name, speaker in speakers.items() if speaker in held_out}
