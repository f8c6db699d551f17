"""Microphone and loudspeaker: their rate, the limit of attenuation, and that they can go away."""

import contextlib
import sys

import numpy as np
import pytest
from conftest import run
from small_models import make_memory_model, noise
from test_live import FakeSound

from speech_enhancement.enhancement.live import LiveEnhancer
from speech_enhancement.enhancement.live_sound import rate_of_devices
from speech_enhancement.errors import InputError


class AskedSound(FakeSound):
    """The package sounddevice, which keeps what it is asked; one device is unable to do 16 kHz."""

    def __init__(self, unable):
        super().__init__(heard=None, rate=16000)
        self._unable, self.asked = unable, []

    def _check(self, kind, device):
        self.asked.append((kind, device))
        if device == self._unable:
            raise self.PortAudioError("another rate")

    def check_input_settings(self, device, *_, samplerate):
        self._check("input", device)

    def check_output_settings(self, device, *_, samplerate):
        self._check("output", device)

    def query_devices(self, device=None, kind=None):
        self.asked.append((kind, device))
        return {"default_samplerate": 44100.0}


MICROPHONE, LOUDSPEAKER = ("input", "microphone"), ("output", "loudspeaker")


@pytest.mark.parametrize(
    ("unable", "rate", "asked"),
    [
        (None, 16000, [MICROPHONE, LOUDSPEAKER]),
        ("microphone", 44100, [MICROPHONE, MICROPHONE]),
        ("loudspeaker", 44100, [MICROPHONE, LOUDSPEAKER, MICROPHONE]),
    ],
)
def test_the_microphone_is_asked_for_input_and_the_loudspeaker_for_output(unable, rate, asked):
    sound = AskedSound(unable)
    assert rate_of_devices(sound, ("microphone", "loudspeaker")) == rate
    assert sound.asked == asked


def test_the_limit_of_attenuation_holds_for_the_microphone(tmp_path, monkeypatch):
    audio = noise(16_000)
    sound = FakeSound(audio, 16000)
    monkeypatch.setitem(sys.modules, "sounddevice", sound)
    flags = ("--model", make_memory_model(tmp_path / "m.keras"), "--attenuation_limit", 0.001)
    assert run("main_dnn", "enhance", "--live", *flags) == 0
    played = np.concatenate(sound.played)[:, 0]
    behind = 512 + 512  # a window, and the two hops of silence that come first
    # 0.001 dB of samples up to 0.5, and single precision.
    np.testing.assert_allclose(played[behind:], audio[: len(played) - behind], rtol=0, atol=1e-4)


class LeavingSound(FakeSound):
    """The package sounddevice; one of the devices goes away in place of Ctrl-C."""

    def __init__(self, leaving):
        super().__init__(noise(8000), 16000)
        self._leaving, self._ends = leaving, {}

    def InputStream(self, *args, finished_callback, **options):
        self._ends["microphone"] = finished_callback
        return super().InputStream(*args, **options)

    def OutputStream(self, *args, finished_callback, **options):
        self._ends["loudspeaker"] = finished_callback
        with contextlib.suppress(KeyboardInterrupt):
            super().OutputStream(*args, **options)
        self._ends[self._leaving]()
        return contextlib.nullcontext()


@pytest.mark.parametrize("leaving", ["microphone", "loudspeaker"])
def test_a_device_that_goes_away_is_one_line(leaving, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sounddevice", LeavingSound(leaving))
    model = make_memory_model(tmp_path / "m.keras")
    assert run("main_dnn", "enhance", "--live", "--model", model) == 2
    error = capsys.readouterr().err
    assert " enhance: the microphone, the loudspeaker or the sound server is gone" in error
    assert error.count("\n") == 1


class AbortingSound(FakeSound):
    """The package sounddevice: a callback that raises CallbackAbort ends its device."""

    class CallbackAbort(Exception):
        pass

    def OutputStream(self, *args, finished_callback, **options):
        try:
            return super().OutputStream(*args, **options)
        except self.CallbackAbort:
            finished_callback()
            return contextlib.nullcontext()


@pytest.mark.parametrize("error", [InputError("m.keras outputs NaN"), ZeroDivisionError("a bug")])
def test_what_fails_while_it_hears_is_said_and_no_device_blamed(
    error, tmp_path, monkeypatch, capsys
):
    def fail(live, samples):
        if samples.any():  # the silence before the devices run is cleaned
            raise error
        return samples

    monkeypatch.setattr(LiveEnhancer, "process", fail)
    monkeypatch.setitem(sys.modules, "sounddevice", AbortingSound(noise(8000), 16000))
    flags = ("enhance", "--live", "--model", make_memory_model(tmp_path / "m.keras"))
    if isinstance(error, InputError):
        assert run("main_dnn", *flags) == 2
        assert capsys.readouterr().err.endswith("enhance: m.keras outputs NaN\n")
    else:
        with pytest.raises(ZeroDivisionError):
            run("main_dnn", *flags)
