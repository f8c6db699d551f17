"""The names and folders of a workspace and the mixture CSV: one function builds each name and path."""

import csv
import hashlib
import io
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from speech_enhancement.errors import InputError, require_file
from speech_enhancement.files import write_text

CSV_COLUMNS = ["speech_name", "noise_name", "noise_onset", "noise_offset"]
KEY_COLUMNS = ["speech_name", "noise_name", "signal"]  # of scores.csv; the measures follow them
SIGNALS = ("noisy", "enhanced")
MOST_BYTES = 240  # of a mixture's name; file systems take 255 with the longest extension, .enh.wav


def flat_name(relative_path: str) -> str:
    """Return the name that a speech or noise file has in output names.

    >>> flat_name("TRAIN/DR1/FCJF0/SA1.WAV")
    'TRAIN_DR1_FCJF0_SA1'
    """
    return os.path.splitext(relative_path)[0].replace("/", "_")


def shortened(name: str) -> str:
    """Return a name as it is, or the beginning of it and a checksum if it has more than MOST_BYTES."""
    content = name.encode()
    if len(content) <= MOST_BYTES:
        return name
    begin = content[: MOST_BYTES - 13].decode(errors="ignore")
    return f"{begin}~{hashlib.sha256(content).hexdigest()[:12]}"


def check_output_names(outputs: list[tuple[str, str]], where: str) -> None:
    """Raise InputError if two inputs would share an output name.

    Args:
      outputs: pairs of (output name, input that it is made from).
      where: the folder or file that the inputs come from.
    """
    taken = {}
    for output, source in outputs:
        other = taken.setdefault(output, source)
        if other != source:
            raise InputError(
                f"{where}: {other} and {source} would share the output name {output}; rename or remove one of them"
            )


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
        """The name of the mixture's files: SPEECH.NOISE, shortened where a file system would not take it."""
        return shortened(f"{flat_name(self.speech_name)}.{flat_name(self.noise_name)}")


def snr_name(*snrs: float) -> str:
    """Return the folder name of a signal-to-noise ratio, or of several, exact to the last digit.

    >>> snr_name(0.0), snr_name(-0.0), snr_name(2.5), snr_name(-5, 0, 5)
    ('0db', '0db', '2.5db', '-5db_0db_5db')
    """
    return "_".join(repr(float(snr) + 0.0).removesuffix(".0") + "db" for snr in snrs)


def mixture_csv_path(workspace: str, data_type: str) -> str:
    """Return the path of the list of mixtures of the train or test set."""
    return os.path.join(workspace, "mixture_csvs", f"{data_type}.csv")


def mixed_audio_path(workspace: str, data_type: str, snr: float, name: str) -> str:
    """Return the path of a mixture's wave."""
    return os.path.join(
        workspace, "mixed_audios", "spectrogram", data_type, snr_name(snr), f"{name}.wav"
    )


def features_path(workspace: str, data_type: str, snr: float, name: str) -> str:
    """Return the path of a mixture's spectra."""
    return os.path.join(
        workspace, "features", "spectrogram", data_type, snr_name(snr), f"{name}.npz"
    )


def packed_path(workspace: str, data_type: str, snr: float) -> str:
    """Return the path of the context windows and targets of all mixtures."""
    return os.path.join(
        workspace, "packed_features", "spectrogram", data_type, snr_name(snr), "data.h5"
    )


def scaler_path(workspace: str, data_type: str, snrs: list[float]) -> str:
    """Return the path of the mean and standard deviation of each bin, over data at one or several SNRs."""
    return os.path.join(
        workspace, "packed_features", "spectrogram", data_type, snr_name(*snrs), "scaler.npz"
    )


def models_dir(workspace: str, tr_name: str) -> str:
    """Return the folder of the models trained at signal-to-noise ratios; `tr_name` is what snr_name says of them."""
    return os.path.join(workspace, "models", tr_name)


def model_path(workspace: str, tr_name: str, iteration: int | str) -> str:
    """Return the path of the model saved after an iteration, or of the "best" one."""
    return os.path.join(
        models_dir(workspace, tr_name), f"md_{iteration}iters.keras".replace("bestiters", "best")
    )


def saved_iterations(folder: str) -> list[int]:
    """Return the iterations that a folder of models was saved at, in rising order."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = (re.fullmatch(r"md_(\d+)iters\.keras", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def training_state_path(workspace: str, tr_name: str) -> str:
    """Return the path of all that a training needs to go on."""
    return os.path.join(models_dir(workspace, tr_name), "state.npz")


def training_stats_path(workspace: str, tr_name: str) -> str:
    """Return the path of the losses recorded during training."""
    return os.path.join(workspace, "training_stats", tr_name, "stats.csv")


def training_name(snrs: Sequence[float], snr_range: Sequence[float] | None = None) -> str:
    """Return the name of the folders of a training: of its SNRs, or of the ends of their range.

    >>> training_name([0, 5]), training_name([], [-5, 15])
    ('0db_5db', '-5dbto15db')
    """
    return "to".join(map(snr_name, snr_range)) if snr_range else snr_name(*snrs)


def find_training(
    workspace: str, tr_snr: list[float] | None = None, tr_snr_range: list[float] | None = None
) -> str:
    """Return the name of the folders of a training: that at the SNRs or their range, or the last one.

    Raises:
      InputError: SNRs and a range are given, or neither and there is no training.
    """
    if tr_snr and tr_snr_range:
        raise InputError("expected --tr_snr or --tr_snr_range, found both; leave one out")
    if tr_snr or tr_snr_range:
        return training_name(tr_snr or [], tr_snr_range)
    written = _recorded_trainings(workspace)
    last = max(written, key=written.get)
    if len(written) > 1:
        print(
            f"{workspace} holds the trainings {', '.join(written)}: taking {last}, which ran last; "
            f"--tr_snr or --tr_snr_range choose another"
        )
    return last


def require_training(
    workspace: str, tr_snr: list[float] | None, tr_snr_range: list[float] | None
) -> str | None:
    """Return the name of the training that the SNRs or their range name; None where neither is given.

    Raises:
      InputError: there is none.
    """
    if not tr_snr and not tr_snr_range:
        return None
    name, names = find_training(workspace, tr_snr, tr_snr_range), _recorded_trainings(workspace)
    if name not in names:
        raise InputError(f"{workspace} holds the trainings {', '.join(names)}, not {name}")
    return name


def _recorded_trainings(workspace: str) -> dict[str, float]:
    """Return when each training of a workspace last recorded its losses, by name.

    Raises:
      InputError: there is no training.
    """
    folder = os.path.join(workspace, "training_stats")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    written = {
        name: os.path.getmtime(training_stats_path(workspace, name))
        for name in names
        if os.path.isfile(training_stats_path(workspace, name))
    }
    if not written:
        raise InputError(f"{folder} holds no training; run train first")
    return written


def enhanced_path(workspace: str, te_snr: float, name: str) -> str:
    """Return the path of an enhanced test wave."""
    return os.path.join(workspace, "enh_wavs", "test", snr_name(te_snr), f"{name}.enh.wav")


def scores_path(workspace: str, te_snr: float) -> str:
    """Return the path of the scores of the test set."""
    return os.path.join(workspace, "scores", "test", snr_name(te_snr), "scores.csv")


def spectrogram_figure_path(workspace: str, te_snr: float, name: str) -> str:
    """Return the path of the picture of a test file's spectrograms."""
    return os.path.join(workspace, "figures", "test", snr_name(te_snr), f"{name}.png")


def training_figure_path(workspace: str, tr_name: str) -> str:
    """Return the path of the picture of the losses during training."""
    return os.path.join(workspace, "figures", f"training_stat_{tr_name}.png")


def report_dir(workspace: str) -> str:
    """Return the folder of the page that shows scores, pictures and sound."""
    return os.path.join(workspace, "report")


def csv_text(columns: list[str], rows: list, delimiter: str = ",") -> str:
    """Return a header and rows as the text of a CSV file; a tab-separated one has no quotes."""
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator="\n", **_quoting(delimiter)).writerows(
        [columns, *rows]
    )
    return buffer.getvalue()


def _quoting(delimiter: str) -> dict:
    """Tab-separated files are the original's, which knows no quotes; names hold no tabs."""
    return {"quoting": csv.QUOTE_NONE, "quotechar": None} if delimiter == "\t" else {}


def read_table(
    path: str, delimiter: str, made_by: str
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Read a CSV file.

    Returns:
      The header, and pairs of ("FILE row 3", for messages; the fields of the row). The header is row 1.
    Raises:
      InputError: no such file, no UTF-8, no header, a row with another number of fields.
    """
    require_file(path, made_by)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, delimiter=delimiter, **_quoting(delimiter)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} is not a UTF-8 CSV file ({error}); run {made_by} again"
        ) from error
    if not lines:
        raise InputError(f"{path} is empty; run {made_by} again")
    header = lines[0]
    rows = [
        (f"{path} row {number}", fields)
        for number, fields in enumerate(lines[1:], start=2)
        if fields
    ]
    for where, fields in rows:
        if len(fields) != len(header):
            raise InputError(
                f"{where}: expected {len(header)} fields, found {len(fields)}; fix or remove the row"
            )
    return header, rows


def parse_number(field: str, where: str) -> float:
    """Read a number from a field of a CSV file; `where` names the row for the message."""
    try:
        return float(field)
    except ValueError as error:
        raise InputError(
            f"{where}: expected a number, found {field!r}; fix the row or make the file again"
        ) from error


def read_csv(
    path: str, columns: list[str], delimiter: str, made_by: str
) -> list[tuple[str, list[str]]]:
    """Read the rows of a CSV file that starts with a given header; see read_table."""
    header, rows = read_table(path, delimiter, made_by)
    if header != columns:
        separated = "tab" if delimiter == "\t" else "comma"
        raise InputError(
            f"{path}: expected the {separated}-separated header {columns}, found {header}; fix it"
        )
    return rows


def write_mixtures(path: str, mixtures: list[Mixture]) -> None:
    """Write a mixture CSV (tab separated, with a header)."""
    write_text(path, csv_text(CSV_COLUMNS, mixtures, delimiter="\t"))


def read_mixtures(workspace: str, data_type: str) -> list[Mixture]:
    """Read the mixture CSV of the train or test set, made by create_mixture_csv or by hand.

    Raises:
      InputError: missing, malformed or empty; a pair that stands in it twice; two pairs that would
        share an output name.
    """
    path = mixture_csv_path(workspace, data_type)
    mixtures, rows_of_pairs = [], {}
    for where, (speech_name, noise_name, onset, offset) in read_csv(
        path, CSV_COLUMNS, "\t", "create_mixture_csv"
    ):
        are_numbers = onset.isdecimal() and offset.isdecimal() and max(len(onset), len(offset)) < 16
        if not (are_numbers and int(onset) < int(offset)):
            raise InputError(
                f"{where}: expected integers 0 <= noise_onset < noise_offset, found {onset} and {offset}"
            )
        first = rows_of_pairs.setdefault((speech_name, noise_name), where)
        if first != where:
            raise InputError(
                f"{where}: {speech_name} with {noise_name} stands in {first} too; remove one of them"
            )
        mixtures.append(Mixture(speech_name, noise_name, int(onset), int(offset)))
    if not mixtures:
        raise InputError(f"{path} lists no mixture; run create_mixture_csv again")
    check_output_names(
        [
            (mixture.name, f"{mixture.speech_name} with {mixture.noise_name}")
            for mixture in mixtures
        ],
        path,
    )
    return mixtures
