"""The list of mixtures: which speech goes with which part of which noise.

The draws depend on the names of files alone: the same on every machine, and unmoved by other files.
"""

import hashlib
import os
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from speech_enhancement.errors import InputError
from speech_enhancement.files import csv_text, read_table, write_text
from speech_enhancement.workspace import check_output_names, flat_name, mixture_csv_path, shortened

ATTEMPTS = 50  # to draw a part of a noise that is not silent
CSV_COLUMNS = ["speech_name", "noise_name", "noise_onset", "noise_offset"]


class Mixture(NamedTuple):
    """One row of a mixture CSV: which speech, which part of which noise.

    Names are paths relative to the speech and the noise folder; onset and offset count samples of
    the noise at 16 kHz. A noise that ends before the offset is repeated.
    """

    speech_name: str
    noise_name: str
    noise_onset: int
    noise_offset: int

    @property
    def name(self) -> str:
        """The name of the mixture's files: SPEECH.NOISE, cut if too long for file systems."""
        return shortened(f"{flat_name(self.speech_name)}.{flat_name(self.noise_name)}")


# --- The list ------------------------------------------------------------------------------------


def create_mixture_csv(
    workspace: str,
    speech_dir: str,
    noise_dir: str,
    data_type: str,
    magnification: int = 1,
    speech_list: str | None = None,
    noise_list: str | None = None,
) -> None:
    """List which speech is mixed with which part of which noise.

    Train: each speech with `magnification` noises; test: each speech with every noise. The draws
    depend on the names of a pair alone, so a new speech file changes no other row, and a new noise
    only the rows that it enters.

    Args:
      workspace: folder to write mixture_csvs/{data_type}.csv in.
      speech_dir, noise_dir: folders of .wav, .flac or .ogg files, nested or not.
      data_type: "train" or "test".
      magnification: noises for each speech (train only).
      speech_list, noise_list: text files that name the files to use; None uses all.
    Raises:
      InputError: a folder or list without usable files, or fewer noises than `magnification`.
    """
    from speech_enhancement.data.audio_files import (
        SoundFinder,
        audio_length,
        check_speech_length,
        list_audio,
    )

    speech_names = list_audio(speech_dir, "speech", speech_list)
    noise_names = list_audio(noise_dir, "noise", noise_list)
    if data_type == "train" and magnification > len(noise_names):
        raise InputError(
            f"magnification {magnification} is more than the {len(noise_names)} noises "
            f"in {noise_dir}; lower --magnification or add noises"
        )

    noise_lengths = {name: audio_length(os.path.join(noise_dir, name)) for name in noise_names}
    hear = SoundFinder().first_sound
    mixtures = []
    for speech_name in speech_names:
        speech_path = os.path.join(speech_dir, speech_name)
        n_speech = audio_length(speech_path)
        check_speech_length(n_speech, speech_path)
        chosen = noise_names
        if data_type == "train":
            chosen = draw_noises(speech_name, noise_names, magnification)
        for noise_name in chosen:
            noise_path, n_noise = os.path.join(noise_dir, noise_name), noise_lengths[noise_name]
            names = (speech_name, noise_name)
            part = draw_sounding(hear, *names, n_speech, noise_path, n_noise)
            mixtures.append(Mixture(*names, *part))

    path = mixture_csv_path(workspace, data_type)
    write_text(path, csv_text(CSV_COLUMNS, mixtures, delimiter="\t"))
    print(
        f"{len(speech_names)} speech and {len(noise_names)} noise files: "
        f"{len(mixtures)} mixtures -> {path}"
    )


def draw_sounding(
    hear: Callable, speech_name: str, noise_name: str, n_speech: int, noise_path: str, n_noise: int
) -> tuple[int, int]:
    """Draw which part of a noise goes with a speech, a part that is not digital silence.

    A part that is silent is drawn again, up to ATTEMPTS times; see draw_segment. Where a noise is
    silent nearly everywhere, its first sound is taken.

    Args:
      hear: SoundFinder.first_sound of audio_files.
    """
    for attempt in range(ATTEMPTS):
        onset, offset = draw_segment(speech_name, noise_name, n_speech, n_noise, attempt)
        if n_noise <= n_speech or hear(noise_path, onset, offset) is not None:
            return onset, offset
    from speech_enhancement.data.audio_files import first_sound

    # Not `hear`: what it knows depends on the speech before.
    onset = min(first_sound(noise_path, 0, n_noise) or 0, n_noise - n_speech)
    return onset, onset + n_speech


def read_mixtures(workspace: str, data_type: str) -> list[Mixture]:
    """Read the mixture CSV of the train or test set, made by create_mixture_csv or by hand.

    Raises:
      InputError: missing, malformed or empty; a pair that it lists twice; two pairs that would
        share an output name.
    """
    path = mixture_csv_path(workspace, data_type)
    header, rows = read_table(path, "\t", "create_mixture_csv")
    if header != CSV_COLUMNS:
        raise InputError(
            f"{path}: expected the tab-separated header {CSV_COLUMNS}, found {header}; fix it"
        )
    mixtures, rows_of_pairs = [], {}
    for where, (speech_name, noise_name, onset, offset) in rows:
        are_numbers = onset.isdecimal() and offset.isdecimal() and max(len(onset), len(offset)) < 16
        if not (are_numbers and int(onset) < int(offset)):
            raise InputError(
                f"{where}: expected integers 0 <= noise_onset < noise_offset, "
                f"found {onset} and {offset}"
            )
        first = rows_of_pairs.setdefault((speech_name, noise_name), where)
        if first != where:
            raise InputError(
                f"{where}: {speech_name} with {noise_name} is in {first} too; remove one of them"
            )
        mixtures.append(Mixture(speech_name, noise_name, int(onset), int(offset)))

    if not mixtures:
        raise InputError(f"{path} lists no mixture; run create_mixture_csv again")
    pairs = [f"{mixture.speech_name} with {mixture.noise_name}" for mixture in mixtures]
    names = [mixture.name for mixture in mixtures]
    check_output_names(list(zip(names, pairs, strict=True)), path)
    return mixtures


def digest_of(mixtures: list[Mixture]) -> str:
    """Return some letters that change with any row of a mixture CSV, and with their order."""
    return hashlib.sha256(repr([tuple(mixture) for mixture in mixtures]).encode()).hexdigest()[:16]


# --- Draws -------------------------------------------------------------------------------------


def keyed_number(*keys: str) -> int:
    """Return a large pseudo-random integer that depends on the keys alone.

    It is the same on every machine. Accented letters count as the same however they are encoded;
    macOS and Linux store them differently.
    """
    text = unicodedata.normalize("NFC", "\n".join(keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def draw_noises(speech_name: str, noise_names: list[str], magnification: int) -> list[str]:
    """Draw noises for a speech without replacement: the first of an order that the names define."""
    ranked = sorted(noise_names, key=lambda name: keyed_number("rank", speech_name, name))
    return ranked[:magnification]


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

    Whole speakers: a folder of files is taken for a speaker, and a file that lies in no folder,
    too. The draw depends on their names alone.
    """
    speakers = {name: os.path.dirname(name) or name for name in speech_names}
    ranked = sorted(set(speakers.values()), key=lambda speaker: keyed_number("valid", speaker))
    n_held_out = min(len(ranked) - 1, max(1, round(fraction * len(ranked)))) if fraction > 0 else 0
    held_out = set(ranked[:n_held_out])
    return {name for name, speaker in speakers.items() if speaker in held_out}
