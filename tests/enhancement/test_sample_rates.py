"""Other sample rates than the model's: the limit of attenuation, and what lies above the band."""

import numpy as np
import pytest
from small_models import make_model, noise

from speech_enhancement.enhancement.sample_rates import enhanced_at_rate
from speech_enhancement.network.network import load_model

RATE = 48_000


def enhanced(model, signal, smallest_gain=0.0):
    """Return what a model makes of (n_samples,) at 48 kHz."""
    blocks = iter([signal[:, None].astype(np.float32)])
    loaded = [load_model(str(model))]
    return np.concatenate(list(enhanced_at_rate(loaded, blocks, RATE, 1, smallest_gain)))[:, 0]


def test_the_limit_of_attenuation_holds_in_the_band_and_above_it(tmp_path):
    closed = make_model(tmp_path / "closed.keras", bias=-50.0)  # a mask of 0
    signal = noise(2 * RATE)
    # The band and the rest of the signal add up to it, but for the ripple of the resamplers.
    np.testing.assert_allclose(enhanced(closed, signal, 0.25), 0.25 * signal, rtol=0, atol=1e-3)


def test_the_gain_above_the_band_is_the_mean_of_the_masks_from_7_to_8_khz(tmp_path):
    # A mask of 1 from 7.5 kHz on, and of 0 below.
    bias = np.where(np.arange(257) >= 240, 50.0, -50.0)
    model = make_model(tmp_path / "model.keras", bias=bias)
    low, high = noise(2 * RATE), 0.1 * np.sin(2 * np.pi * 15_000 * np.arange(2 * RATE) / RATE)
    found = enhanced(model, low + high) - enhanced(model, low)
    middle = found[RATE // 2 : -RATE // 2]
    tone = np.abs(np.fft.rfft(middle)).max() / (len(middle) / 2)
    assert tone == pytest.approx(0.5 * 0.1, abs=1e-4)  # single precision
