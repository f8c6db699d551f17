"""Inference by its command on the mini data, with the reference implementation's network."""

import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import inference, read_stats
from small_models import make_memory_model

from speech_enhancement.data.audio_files import read_audio
from speech_enhancement.data.mixtures import read_mixtures
from speech_enhancement.enhancement.blocks import enhance_with_all
from speech_enhancement.enhancement.enhance_audio import enhance_audio
from speech_enhancement.features import context_windows, log_magnitude, pad_to_whole_frames, stft
from speech_enhancement.network.network import load_model
from speech_enhancement.network.running import outputs
from speech_enhancement.workspace import enhanced_path, mixed_audio_path, model_path


def windows_and_clean(workspace, scaler):
    """Return the scaled rows of the test set, as the reference implementation has them."""
    with h5py.File(workspace / "packed_features/spectrogram/test/0db/data.h5") as packed:
        return scaler.frames(packed["x"][:]), scaler.frames(packed["y"][:])


def test_the_loss_is_the_mean_absolute_error_over_all_rows(trained):
    model, settings = load_model(model_path(str(trained), "0db", 4))
    x, y = windows_and_clean(trained, settings.scaler)
    # The recorded loss has six decimals.
    assert read_stats(trained)[-1][2] == pytest.approx(
        np.mean(np.abs(y - model.predict(x, verbose=0)[:, 0])), abs=2e-6
    )


def test_the_network_is_that_of_the_reference_implementation(trained):
    model, settings = load_model(model_path(str(trained), "0db", 4))
    weights = model.get_weights()
    shapes = [
        (7 * 257, 2048),
        (2048,),
        (2048, 2048),
        (2048,),
        (2048, 2048),
        (2048,),
        (2048, 257),
        (257,),
    ]
    assert [weight.shape for weight in weights] == shapes
    assert [layer.rate for layer in model.layers if type(layer).__name__ == "Dropout"] == [0.2] * 3
    assert (settings.recipe.input.n_concat, settings.snr, settings.iteration) == (7, "0db", 4)
    x, _ = windows_and_clean(trained, settings.scaler)
    hidden = x.reshape(len(x), -1)  # Flatten, 3 x [Dense 2048 ReLU], Dense 257
    for layer in range(3):
        hidden = np.maximum(hidden @ weights[2 * layer] + weights[2 * layer + 1], 0)
    expected = hidden @ weights[6] + weights[7]
    # Single precision sums of 2048 terms.
    np.testing.assert_allclose(model.predict(x, verbose=0)[:, 0], expected, rtol=0, atol=1e-4)


def test_a_model_carries_the_scaler_and_no_code(trained):
    _, settings = load_model(model_path(str(trained), "0db", 4))
    with np.load(trained / "packed_features/spectrogram/train/0db/scaler.npz") as scaler:
        np.testing.assert_array_equal(settings.scaler.mean, scaler["mean"])
        np.testing.assert_array_equal(settings.scaler.std, scaler["std"])
    with zipfile.ZipFile(model_path(str(trained), "0db", 4)) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".pkl", ".npy", ".py"))]


def test_enhanced_waves_are_as_long_as_their_mixtures_and_stored_in_float(trained):
    mixtures = read_mixtures(str(trained), "test")
    for mixture in mixtures:
        enhanced = read_audio(enhanced_path(str(trained), 0, mixture.name))
        mixed = read_audio(mixed_audio_path(str(trained), "test", 0, mixture.name))
        assert len(enhanced) == len(mixed) and np.isfinite(enhanced).all() and enhanced.any()
    assert len(list((trained / "enh_wavs/test/0db").iterdir())) == len(mixtures)


def test_a_live_model_enhances_the_test_set_as_it_enhances_files(trained, tmp_path):
    for name in ("mixture_csvs", "mixed_audios"):
        shutil.copytree(trained / name, tmp_path / name)
    path = Path(model_path(str(tmp_path), "0db", 1))
    path.parent.mkdir(parents=True)
    loaded = load_model(str(make_memory_model(path)))
    assert inference(tmp_path, "--iteration", 1) == 0
    for mixture in read_mixtures(str(tmp_path), "test"):
        mixed = read_audio(mixed_audio_path(str(tmp_path), "test", 0, mixture.name))
        found = read_audio(enhanced_path(str(tmp_path), 0, mixture.name))
        np.testing.assert_array_equal(found, enhance_with_all([loaded], mixed))


class Echo:
    """A network that outputs the centre frame of its input."""

    def predict_on_batch(self, inputs):
        return inputs[0][:, 3:-3]


def test_enhancing_with_a_network_that_changes_nothing_gives_the_mixture(trained):
    _, settings = load_model(model_path(str(trained), "0db", 4))
    for mixture in read_mixtures(str(trained), "test"):
        mixed = read_audio(mixed_audio_path(str(trained), "test", 0, mixture.name))
        # Single precision logarithms; the reference implementation has the same 1e-5.
        np.testing.assert_allclose(enhance_audio(Echo(), settings, mixed), mixed, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_samples", [512, 300 * 256 + 100, 1030 * 256])
def test_frames_in_parts_give_what_windows_do(trained, n_samples):
    model, settings = load_model(model_path(str(trained), "0db", 4))
    audio = np.random.default_rng(0).uniform(-1, 1, n_samples)
    log = log_magnitude(stft(pad_to_whole_frames(audio, 512, 256), 512, 256))
    expected = model.predict(context_windows(settings.scaler.frames(log), 7, 1), verbose=0)[:, 0]
    # Matrix products of other sizes add in another order: some roundings of numbers of order 10.
    found = outputs(model, settings, log, np.empty((len(log), 0, 257)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
