"""Writing into the middle of a file, with and without memory maps."""

import numpy as np
import pytest

from speech_enhancement import files


@pytest.mark.parametrize("can_map", [True, False])
def test_an_array_is_written_at_its_place_and_nothing_else_changes(tmp_path, monkeypatch, can_map):
    if not can_map:
        monkeypatch.setattr(files, "MADV_POPULATE_WRITE", 999)  # refused, as by an older Linux
    path, before = tmp_path / "a", bytes(range(256)) * 64
    path.write_bytes(before)
    rows = np.arange(2000, dtype=np.float32).reshape(20, 100)
    files.write_at(str(path), 4097, rows)
    after = before[:4097] + rows.tobytes() + before[4097 + rows.nbytes :]
    assert path.read_bytes() == after
