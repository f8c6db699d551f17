"""The pictures by what is drawn in them: places, levels and names."""

import numpy as np
import pytest

from speech_enhancement.evaluation import figures
from speech_enhancement.features import stft


@pytest.fixture
def saved(monkeypatch):
    """The figures, by path, instead of their files."""
    found = {}
    monkeypatch.setattr(figures, "_save", found.__setitem__)
    return found


def test_a_click_and_a_tone_are_where_they_are_heard_and_at_their_level(saved):
    click = np.zeros(16000)
    click[9000] = 1.0
    tone = np.sin(2 * np.pi * 2000 / 16000 * np.arange(16000))
    magnitudes = {
        "mixture": np.abs(stft(tone, 512, 256)),
        "clean speech": np.abs(stft(click, 512, 256)),
        "enhanced": 0.1 * np.abs(stft(tone, 512, 256)),
    }
    figures.save_spectrograms("p.png", magnitudes, "a $title$")
    figure = saved["p.png"]
    axes = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [one.get_title(loc="left") for one in axes] == [*magnitudes]
    assert figure.get_suptitle() == "a $title$"
    tone_mesh, click_mesh, soft_mesh = (one.collections[0] for one in axes)

    # Corners of the cells: a frame is 16 ms wide around its middle, a bin 31.25 Hz.
    corners = click_mesh.get_coordinates()
    levels = click_mesh.get_array().reshape(corners.shape[0] - 1, corners.shape[1] - 1)
    frame = np.argmax(levels.sum(axis=0))
    assert corners[0, [frame, frame + 1], 0].mean() == pytest.approx(9000 / 16000, abs=0.008)
    np.testing.assert_allclose(np.diff(corners[0, :, 0]), 0.016)

    levels = tone_mesh.get_array().reshape(levels.shape)
    bin_index = np.argmax(levels[:, 10])
    assert corners[[bin_index, bin_index + 1], 0, 1].mean() == pytest.approx(2000, abs=16)
    # The loudest of the mixture is 0 dB; a tenth of it is 20 dB below. Rounding of logarithms.
    assert levels.max() == pytest.approx(0, abs=1e-4)
    assert soft_mesh.get_array().max() == pytest.approx(-20, abs=1e-4)
    assert {mesh.get_clim() for mesh in (tone_mesh, click_mesh, soft_mesh)} == {(-80, 0)}


def test_losses_are_drawn_by_name_against_the_iteration(saved):
    losses = {"tr_loss": [3, 2], "te_loss": [4, 3.5], "valid_loss": [5, 1], "other": [0, 0]}
    figures.save_training_curve("p.png", [0, 10], losses)
    (axes,) = saved["p.png"].axes
    assert axes.get_xlabel() == "iteration" and axes.get_ylabel() == "loss"
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn == {
        "training set": [[0, 3], [10, 2]],
        "test set": [[0, 4], [10, 3.5]],
        "held-out training speakers": [[0, 5], [10, 1]],
        "other": [[0, 0], [10, 0]],
    }


def test_the_plain_picture_has_a_colour_for_each_step_of_the_range(tmp_path):
    from PIL import Image

    # One frame; from the loudest down to 80 dB below it and beyond.
    levels_db = np.array([20.0, 0, -1.2, -1.3, -40, -79.9, -80.1, -200])
    figures.save_plain_spectrogram(str(tmp_path / "p.png"), 3 * 10 ** (levels_db[None] / 20), 3.0)
    picture = Image.open(tmp_path / "p.png")
    assert np.asarray(picture)[::-1, 0].tolist() == [63, 63, 63, 62, 32, 0, 0, 0]
    palette = picture.getpalette()
    assert sum(palette[: 3 * 1]) < 10 and sum(palette[3 * 63 : 3 * 64]) > 600  # dark to bright
