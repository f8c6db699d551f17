"""Write the page to look at and listen to: scores, gains, training curves, each test file's sound and spectrograms."""

import functools
import io
import os
import re

import numpy as np
import soundfile

from config import log_epsilon, n_overlap, n_window, sample_rate
from speech_enhancement.errors import (
    InputError,
    MissingFileError,
    foreseen_disk_error,
    require_dir,
    require_file,
)
from speech_enhancement.evaluation.report_page import (
    LoggedLosses,
    Page,
    Scores,
    Signal,
    TestFile,
    page_text,
)
from speech_enhancement.files import write_bytes, write_text
from speech_enhancement.parallel import in_threads
from speech_enhancement.progress import track
from speech_enhancement.workspace import (
    KEY_COLUMNS,
    SIGNALS,
    Mixture,
    enhanced_path,
    mixed_audio_path,
    parse_number,
    read_mixtures,
    read_table,
    report_dir,
    scores_path,
    training_stats_path,
)

N_COLOURS = 64  # of a spectrogram: steps of 1.25 dB
MAX_COLUMNS = 2000  # of a spectrogram; longer ones show the loudest of neighbouring frames


def report(workspace: str, te_snr: float, speech_dir: str | None = None) -> None:
    """Write report/index.html with the waves and pictures that it shows; a browser opens it without a network.

    It replaces an earlier report. The page is written last: a run that is killed leaves none.

    Working set: the waves and spectrograms of one mixture for each core, and some kB of text for each mixture.

    Args:
      workspace: folder with scores/, the mixed and the enhanced waves and the features of the test set.
      te_snr: signal-to-noise ratio of the test mixtures in dB.
      speech_dir: folder of the clean test speech; None makes it of its magnitudes in the feature files and the
        mixtures' phase.
    Raises:
      InputError: there are no scores, they are not those of the test mixtures, or a file is missing or damaged.
    """
    path = scores_path(workspace, te_snr)
    measures, scores = read_scores(path)
    mixtures = read_mixtures(workspace, "test")
    check_scores(path, scores, mixtures)
    check_sources(workspace, te_snr, speech_dir, mixtures)
    at_snrs, trainings = read_scores_at_snrs(workspace), read_trainings(workspace)
    folder = report_dir(workspace)
    index = os.path.join(folder, "index.html")
    remove_file(index)
    write = functools.partial(write_test_file, workspace, te_snr, speech_dir)
    files = list(track(in_threads(write, enumerate(mixtures, start=1)), len(mixtures), "mixtures"))
    curves = [
        draw_training(folder, number, losses) for number, losses in enumerate(trainings, start=1)
    ]
    remove_others(
        os.path.join(folder, "files"),
        {*curves, *(name for file in files for name in file.file_names())},
    )
    page = Page(
        te_snr,
        measures,
        scores,
        files,
        at_snrs,
        dict(zip(trainings, curves, strict=True)),
        colours(),
    )
    write_text(index, page_text(page))
    print(f"report of {len(mixtures)} files -> {index}")


# --- What it reads ----------------------------------------------------------------------------


def read_scores(path: str) -> tuple[list[str], Scores]:
    """Read scores.csv with whatever measures it has.

    Returns:
      The measures, as the columns are named; and for each (speech_name, noise_name) and signal the scores by
      measure, without those that are not defined.
    Raises:
      InputError: it is missing or malformed.
    """
    header, rows = read_table(path, ",", made_by="calculate_pesq")
    n_keys = len(KEY_COLUMNS)
    if header[:n_keys] != KEY_COLUMNS or len(header) == n_keys:
        raise InputError(
            f"{path}: expected the header {KEY_COLUMNS} and measures, found {header}; mend it"
        )
    measures, scores = header[n_keys:], {}
    for where, (speech_name, noise_name, signal, *fields) in rows:
        if signal not in SIGNALS:
            raise InputError(
                f"{where}: expected the signal {' or '.join(SIGNALS)}, found {signal!r}; mend the row"
            )
        numbers = {
            name: parse_number(field, where)
            for name, field in zip(measures, fields, strict=True)
            if field
        }
        of_file = scores.setdefault((speech_name, noise_name), {})
        of_file[signal] = {name: number for name, number in numbers.items() if np.isfinite(number)}
    return measures, scores


def check_scores(path: str, scores: Scores, mixtures: list[Mixture]) -> None:
    """Raise InputError unless the scores are those of the test mixtures."""
    listed = {(mixture.speech_name, mixture.noise_name) for mixture in mixtures}
    for speech_name, noise_name in sorted(listed - scores.keys()):
        raise InputError(
            f"{path} has no scores of {speech_name} with {noise_name}; run calculate_pesq again"
        )
    for speech_name, noise_name in sorted(scores.keys() - listed):
        raise InputError(
            f"{path} scores {speech_name} with {noise_name}, which the test mixture CSV does not list; "
            "run calculate_pesq again"
        )


def check_sources(
    workspace: str, te_snr: float, speech_dir: str | None, mixtures: list[Mixture]
) -> None:
    """Raise InputError unless all waves and features of the mixtures are there."""
    from speech_enhancement.data.audio_files import audio_path
    from speech_enhancement.data.mixture_features import check_features

    if speech_dir is not None:
        require_dir(speech_dir, "the clean test speech")
    for mixture in mixtures:
        require_file(
            mixed_audio_path(workspace, "test", te_snr, mixture.name), "calculate_mixture_features"
        )
        require_file(enhanced_path(workspace, te_snr, mixture.name), "inference")
        check_features(workspace, "test", te_snr, mixture)
        speech_path = speech_dir and audio_path(speech_dir, mixture.speech_name)
        if speech_path and not os.path.isfile(speech_path):
            raise MissingFileError(
                f"{speech_path} is missing; check --speech_dir against the test mixture CSV"
            )


def read_scores_at_snrs(workspace: str) -> dict[float, Scores]:
    """Return the scores of the test set at each SNR that it was scored at, in rising order."""
    folder = os.path.dirname(os.path.dirname(scores_path(workspace, 0)))
    snrs = [
        float(name[:-2])
        for name in os.listdir(folder)
        if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?db", name)
    ]
    paths = {snr: scores_path(workspace, snr) for snr in sorted(snrs)}
    return {snr: read_scores(path)[1] for snr, path in paths.items() if os.path.isfile(path)}


def read_trainings(workspace: str) -> list[LoggedLosses]:
    """Return the losses that each training in the workspace recorded; trainings without any are left out."""
    folder = os.path.join(workspace, "training_stats")
    trainings = []
    for tr_name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        path = training_stats_path(workspace, tr_name)
        if not os.path.isfile(path):
            continue
        columns, rows = read_table(path, ",", made_by="train")
        numbers = [tuple(parse_number(field, where) for field in fields) for where, fields in rows]
        if numbers:
            trainings.append(LoggedLosses(tr_name, tuple(columns), tuple(numbers)))
    return trainings


# --- What it writes ---------------------------------------------------------------------------


def write_test_file(
    workspace: str, te_snr: float, speech_dir: str | None, numbered: tuple[int, Mixture]
) -> TestFile:
    """Write the waves and spectrograms of a test mixture to report/files/; return what the page says of it.

    All three waves are scaled by one factor, so that none clips and they can be compared.

    Args:
      workspace, te_snr, speech_dir: as in `report`.
      numbered: the mixture's number, which its files are named by, and the mixture.
    """
    from speech_enhancement.data.audio_files import read_audio

    number, mixture = numbered
    mixed = read_audio(mixed_audio_path(workspace, "test", te_snr, mixture.name))
    path = enhanced_path(workspace, te_snr, mixture.name)
    enhanced = with_length(read_audio(path), len(mixed), path, "run inference again")
    clean, clean_magnitude = clean_speech(workspace, te_snr, speech_dir, mixture, len(mixed))
    waves = {"noisy": mixed, "enhanced": enhanced, "clean": clean}
    magnitudes = {
        "noisy": magnitude(mixed),
        "enhanced": magnitude(enhanced),
        "clean": clean_magnitude,
    }
    gain = 1 / max(1.0, *(float(np.max(np.abs(wave))) for wave in waves.values()))
    top_db = level_db(magnitudes["noisy"].max())
    folder = os.path.join(report_dir(workspace), "files")
    signals = []
    for signal, wave in waves.items():
        base = f"{number:04d}-{safe_name(mixture.name)}.{signal}"
        write_pcm16(os.path.join(folder, f"{base}.wav"), gain * wave)
        write_spectrogram(os.path.join(folder, f"{base}.png"), magnitudes[signal], top_db)
        label = "clean (mixture's phase)" if signal == "clean" and speech_dir is None else signal
        signals.append(
            Signal(
                label, f"{base}.wav", f"{base}.png", *place_in_time(magnitudes[signal], len(wave))
            )
        )
    return TestFile(
        number, mixture.speech_name, mixture.noise_name, len(mixed) / sample_rate, signals
    )


def clean_speech(
    workspace: str, te_snr: float, speech_dir: str | None, mixture: Mixture, n_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the clean speech of a mixture, at its level there, and its magnitudes.

    Without the folder of the speech, the wave is recovered from the magnitudes with the mixture's phase.

    Returns:
      (n_samples,) wave and (n_frames, n_freq) magnitudes.
    """
    from spectrogram_to_wave import recover_wav
    from speech_enhancement.data.audio_files import audio_path, read_audio
    from speech_enhancement.data.mixture_features import check_features, read_features

    if speech_dir is None:
        mixture_stft, speech_magnitude, _ = read_features(workspace, "test", te_snr, mixture)
        wave = recover_wav(speech_magnitude, mixture_stft, n_overlap, np.hamming, n_samples)
        return wave * np.sqrt(
            np.sum(np.hamming(n_window) ** 2)
        ), speech_magnitude  # stft divided by it
    facts = check_features(workspace, "test", te_snr, mixture)
    path = audio_path(speech_dir, mixture.speech_name)
    speech = with_length(read_audio(path), n_samples, path, "check --speech_dir")
    speech = facts["scaling_factor"] * facts["alpha"] * speech
    return speech, magnitude(speech)


def with_length(audio: np.ndarray, n_samples: int, path: str, advice: str) -> np.ndarray:
    """Return (n_samples,) audio, cut or filled with zeros by less than a frame.

    Raises:
      InputError: it is longer or shorter than its mixture by more.
    """
    if abs(len(audio) - n_samples) > n_window:
        raise InputError(
            f"{path} has {len(audio)} samples at {sample_rate} Hz, its mixture {n_samples}; {advice}"
        )
    return np.pad(audio[:n_samples], (0, max(0, n_samples - len(audio))))


def safe_name(name: str) -> str:
    """Return a name with letters, digits and `._-` of ASCII alone, not too long; different names may give the same.

    >>> safe_name("dr1/müller <b>.pink")
    'dr1_m_ller_b_.pink'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:80]


def write_pcm16(path: str, audio: np.ndarray) -> None:
    """Write (n_samples,) audio within [-1, 1] as a 16 kHz mono WAV of 16 bits, which every browser plays."""
    buffer = io.BytesIO()
    soundfile.write(
        buffer,
        np.round(32767 * audio).astype(np.int16),
        sample_rate,
        format="WAV",
        subtype="PCM_16",
    )
    write_bytes(path, buffer.getvalue())


def magnitude(audio: np.ndarray) -> np.ndarray:
    """Return the magnitudes of (n_samples,) audio, (n_frames, n_freq)."""
    from speech_enhancement.features import stft

    return np.abs(stft(audio, n_window, n_overlap))


def level_db(magnitudes: np.ndarray) -> np.ndarray:
    """Return magnitudes of any shape in dB."""
    return 20 * np.log10(magnitudes + log_epsilon)


def place_in_time(magnitudes: np.ndarray, n_samples: int) -> tuple[float, float]:
    """Return where the picture of a spectrogram begins and how wide it is, as fractions of the wave's length.

    Frame k is centred on sample k * hop + n_window / 2, and a column of the picture is a hop wide.
    """
    n_hop = n_window - n_overlap
    return (n_window - n_hop) / 2 / n_samples, len(magnitudes) * n_hop / n_samples


def colours() -> list[str]:
    """Return the colours of a spectrogram from quiet to loud, as #rrggbb."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps["magma"](np.linspace(0, 1, N_COLOURS))]


def write_spectrogram(path: str, magnitudes: np.ndarray, top_db: float) -> None:
    """Write (n_frames, n_freq) magnitudes as a picture without axes: one column a frame, 0 Hz at the bottom.

    Args:
      path: PNG file to write.
      magnitudes: of the signal.
      top_db: the level of the brightest colour; figures.COLOUR_RANGE_DB below it is the darkest.
    """
    from PIL import Image

    from speech_enhancement.evaluation.figures import COLOUR_RANGE_DB

    if len(magnitudes) > MAX_COLUMNS:
        starts = np.arange(MAX_COLUMNS) * len(magnitudes) // MAX_COLUMNS
        magnitudes = np.maximum.reduceat(magnitudes, starts)
    shares = 1 + (level_db(magnitudes) - top_db) / COLOUR_RANGE_DB  # 0 to 1
    indices = np.clip(shares * N_COLOURS, 0, N_COLOURS - 1).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(indices.T[::-1]))
    image.putpalette(bytes.fromhex("".join(colours()).replace("#", "")))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    write_bytes(path, buffer.getvalue())


def draw_training(folder: str, number: int, losses: LoggedLosses) -> str:
    """Draw the losses of a training to the report's files; return the name of the picture."""
    from speech_enhancement.evaluation.figures import save_training_curve

    name = f"training-{number}.png"
    iterations, *curves = zip(*losses.rows, strict=True)
    save_training_curve(
        os.path.join(folder, "files", name),
        iterations,
        dict(zip(losses.columns[1:], curves, strict=True)),
    )
    return name


def remove_others(folder: str, names: set[str]) -> None:
    """Remove the files of a folder that are not among the names: those of an earlier report, or of a killed run."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name not in names and not entry.is_dir(follow_symlinks=False):
            remove_file(entry.path)


def remove_file(path: str) -> None:
    """Remove a file if it is there.

    Raises:
      InputError: it cannot be removed.
    """
    try:
        os.remove(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        foreseen = foreseen_disk_error(error, path)
        if foreseen is None:
            raise
        raise foreseen from error
