"""Opening a data.h5, with a look that it is whole and was made with today's settings."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from config import stft_settings
from speech_enhancement.errors import InputError
from speech_enhancement.files import open_hdf5
from speech_enhancement.workspace import packed_path

if TYPE_CHECKING:
    import h5py


@contextlib.contextmanager
def open_packed_file(workspace: str, data_type: str, snr: float) -> Iterator["h5py.File"]:
    """Yield the data.h5 of a data set at an SNR in dB, opened to read.

    Raises:
      InputError: it is missing, damaged or empty, or was made with another transform than config.py's.
    """
    path = packed_path(workspace, data_type, snr)
    made_by = f"pack_features --data_type {data_type}"
    with open_hdf5(path, ("x", "y", "first_rows"), made_by) as packed:
        expected = {"snr_db": float(snr), **stft_settings}
        for name, value in expected.items():
            found = packed.attrs.get(name)
            if found != value:
                raise InputError(
                    f"{path}: expected {name} {value}, found {found}; run {made_by} again"
                )
        n_freq = stft_settings["n_window"] // 2 + 1
        x, y = packed["x"].shape, packed["y"].shape
        lacks = {"n_concat", "recipe", "n_mixtures", "fingerprint"} - set(packed.attrs)
        if lacks or len(x) != 3 or x[0] != y[0] or x[0] == 0 or x[2] != n_freq or y[-1] != n_freq:
            raise InputError(f"{path}: x {x} and y {y} are not what {made_by} writes; run it again")
        yield packed
