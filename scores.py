"""Objective scores of one wave against its clean reference: PESQ by the ITU-T program, and STOI."""

import io
import os
import re
import shutil
import subprocess

import numpy as np
import soundfile

from config import sample_rate
from errors import InputError, MissingFileError
from safe_files import write_bytes

PESQ_COLUMNS = ["pesq_raw_mos", "pesq_nb_mos_lqo", "pesq_wb_mos_lqo"]
SCORE_COLUMNS = [*PESQ_COLUMNS, "stoi"]


class UnscorableError(Exception):
    """A measure is not defined for this pair of signals, or its program failed; the message says why."""


def require_pesq(program: str) -> str:
    """Return the absolute path of the PESQ program.

    Raises:
      InputError: it is missing or not executable.
    """
    if not os.path.isfile(program):
        raise MissingFileError(f"{program} is missing; run pesq_tool/build.sh, or name the program with --pesq")
    if not os.access(program, os.X_OK):
        raise InputError(f"{program} is not executable; run chmod +x on it, or pesq_tool/build.sh after removing it")
    return os.path.abspath(program)


def pesq_scores(program: str, reference: np.ndarray, degraded: np.ndarray, folder: str) -> dict[str, float | None]:
    """Score a wave with ITU-T P.862 (raw MOS), P.862.1 (narrow-band MOS-LQO) and P.862.2 (wide-band MOS-LQO).

    The ITU program keeps paths in buffers of 128 bytes, takes every header for 44 bytes long, and
    may write a file of results where it stands. So it runs inside `folder`, on two
    short-named files of 16-bit mono RIFF. PESQ aligns levels itself; where a wave exceeds full scale
    it is scaled down instead of clipped.

    Args:
      program: absolute path of the ITU program, of 2005 or of 2002 (which knows no wide band).
      reference, degraded: (n_samples,) at 16 kHz.
      folder: a folder to make, work in and remove.
    Returns:
      PESQ_COLUMNS by name; the wide-band score is None where the program has none.
    Raises:
      UnscorableError: the program failed.
    """
    try:
        for name, audio in (("ref.wav", reference), ("deg.wav", degraded)):
            _write_pcm16(os.path.join(folder, name), audio)
        narrow = _run_pesq(program, folder)
        raw, *lqo = _numbers_after(r"(?:Raw MOS, MOS-LQO\)|PESQ_MOS)\s*:?\s*=", narrow)
        wide = _run_pesq(program, folder, "+wb") if lqo else ""
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "pesq_raw_mos": raw,
        "pesq_nb_mos_lqo": lqo[0] if lqo else round(mos_lqo(raw), 3),
        "pesq_wb_mos_lqo": _numbers_after(r"\(MOS-LQO\)\s*:?\s*=", wide)[0] if wide else None,
    }


def mos_lqo(raw_mos: float) -> float:
    """Map a raw P.862 score to the scale of listeners' opinions, ITU-T P.862.1."""
    return 0.999 + 4.0 / (1.0 + float(np.exp(-1.4945 * raw_mos + 4.6607)))


def _run_pesq(program: str, folder: str, *options: str) -> str:
    command = [program, "ref.wav", "deg.wav", f"+{sample_rate}", *options]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        advice = "remove it and run pesq_tool/build.sh"
        raise InputError(f"{program} does not run on this machine ({error.strerror}); {advice}") from error
    if result.returncode != 0:
        lines = (result.stderr + result.stdout).strip().splitlines()
        raise UnscorableError(f"PESQ failed: {lines[-1] if lines else f'status {result.returncode}'}")
    return result.stdout


def _numbers_after(label: str, output: str) -> list[float]:
    """Return the numbers that stand behind a label in the program's output."""
    found = re.search(label + r"\s*([-\d.]+)(?:\s+([-\d.]+))?", output)
    if found is None:
        raise UnscorableError(f"PESQ printed no score: {' '.join(output.split())[-200:]}")
    return [float(number) for number in found.groups() if number is not None]


def _write_pcm16(path: str, audio: np.ndarray) -> None:
    """Write 16-bit mono RIFF; a file of 16-bit samples that was read as floats comes out unchanged."""
    peak = float(np.max(np.abs(audio)))
    samples = audio * (32767 / 32768 / peak) if peak > 1 else audio
    integers = np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, integers, sample_rate, format="WAV", subtype="PCM_16")
    write_bytes(path, buffer.getvalue())


def stoi_score(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Return the short-time objective intelligibility (Taal et al., 2011), as pystoi computes it.

    Args:
      reference, degraded: (n_samples,) at 16 kHz, of one length.
    Raises:
      UnscorableError: fewer than 30 frames with speech in them; pystoi then warns and answers 1e-5.
    """
    from pystoi import stoi

    score = float(stoi(reference, degraded, sample_rate))
    if score == 1e-5:
        raise UnscorableError("STOI is not defined: less than 0.4 s of speech")
    return score
