"""The names and folders of a workspace: one function builds each name and path."""

import hashlib
import os
import re
from collections.abc import Sequence

from speech_enhancement.errors import InputError

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
    """Return a name, or if it has more than MOST_BYTES its beginning and a checksum."""
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
                f"{where}: {other} and {source} would share the output name {output}; "
                f"rename or remove one of them"
            )


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
    return os.path.join(_folder(workspace, "mixed_audios", data_type, snr), f"{name}.wav")


def features_path(workspace: str, data_type: str, snr: float, name: str) -> str:
    """Return the path of a mixture's spectra."""
    return os.path.join(_folder(workspace, "features", data_type, snr), f"{name}.npz")


def packed_path(workspace: str, data_type: str, snr: float) -> str:
    """Return the path of the context windows and targets of all mixtures."""
    return os.path.join(_folder(workspace, "packed_features", data_type, snr), "data.h5")


def scaler_path(workspace: str, data_type: str, snrs: list[float]) -> str:
    """Return the path of the mean and standard deviation of each bin, at one or several SNRs."""
    return os.path.join(_folder(workspace, "packed_features", data_type, *snrs), "scaler.npz")


def _folder(workspace: str, kind: str, data_type: str, *snrs: float) -> str:
    """Return the folder of mixtures, or of what was made of them, at one or several SNRs."""
    return os.path.join(workspace, kind, "spectrogram", data_type, snr_name(*snrs))


def models_dir(workspace: str, tr_name: str) -> str:
    """Return the folder of the models of a training, given the name that training_name makes."""
    return os.path.join(workspace, "models", tr_name)


def model_path(workspace: str, tr_name: str, iteration: int | str) -> str:
    """Return the path of the model saved after an iteration, or of the "best" one."""
    name = "md_best.keras" if iteration == "best" else f"md_{iteration}iters.keras"
    return os.path.join(models_dir(workspace, tr_name), name)


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
    """Return the name of the folders of a training: the one at some SNRs or a range, or the last.

    Raises:
      InputError: SNRs and a range are given, or neither and there is no training.
    """
    if tr_snr and tr_snr_range:
        raise InputError("expected --tr_snr or --tr_snr_range, found both; leave one out")
    if tr_snr or tr_snr_range:
        return training_name(tr_snr or [], tr_snr_range)
    written = _require_trainings(workspace)
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
    """Return the name of the training at some SNRs or a range; None where neither is given.

    Raises:
      InputError: there is none.
    """
    if not tr_snr and not tr_snr_range:
        return None
    name, names = find_training(workspace, tr_snr, tr_snr_range), _require_trainings(workspace)
    if name not in names:
        raise InputError(f"{workspace} holds the trainings {', '.join(names)}, not {name}")
    return name


def recorded_trainings(workspace: str) -> dict[str, float]:
    """Return when each training of a workspace last recorded its losses, by name, in order."""
    folder = os.path.join(workspace, "training_stats")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    paths = {name: training_stats_path(workspace, name) for name in names}
    return {name: os.path.getmtime(path) for name, path in paths.items() if os.path.isfile(path)}


def _require_trainings(workspace: str) -> dict[str, float]:
    """Return recorded_trainings; raise InputError if there is none."""
    written = recorded_trainings(workspace)
    if not written:
        folder = os.path.join(workspace, "training_stats")
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
