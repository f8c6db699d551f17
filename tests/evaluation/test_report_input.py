"""The report: what it refuses, and which of its parts belong to what."""

import re
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from conftest import MINI, files_below
from PIL import Image
from test_report import (  # noqa: F401 (fixtures)
    Parsed,
    page,
    scored,
    wave_paths,
    workspace,
    write_report,
)

from speech_enhancement.data.audio_files import write_wave
from speech_enhancement.data.mixtures import read_mixtures
from speech_enhancement.evaluation.report_files import place_in_time
from speech_enhancement.features import stft
from speech_enhancement.workspace import enhanced_path

# --- Bad input --------------------------------------------------------------------------------


def refused(capsys, workspace, *words, flags=()):
    """Check that the report ends with one line that holds the words, and writes nothing."""
    before = files_below(workspace)
    assert write_report(workspace, *flags) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and all(word in error for word in words), error
    assert files_below(workspace) == before


def test_what_is_missing_or_does_not_fit_is_named(workspace, tmp_path, capsys):
    flags = ("--speech_dir", MINI / "test_speech")
    refused(capsys, workspace, "is missing; check --speech_dir", flags=flags)
    refused(
        capsys, workspace, "nowhere does not exist", flags=("--speech_dir", tmp_path / "nowhere")
    )
    scores = workspace / "scores/test/0db/scores.csv"
    text = scores.read_text(encoding="utf-8")
    for wrong, words in {
        "".join(text.splitlines(True)[:-2]): ["has no scores of", "run calculate_pesq again"],
        text + "a.wav,b.wav,noisy,1,1,1,1\n": ["scores a.wav with b.wav", "does not list"],
        text.replace("enhanced", "loud", 1): ["row 3", "noisy or enhanced", "'loud'"],
        text.replace("0.75", "good"): ["row 3", "expected a number", "'good'"],
        text.replace("signal", "sound"): ["expected the header"],
    }.items():
        scores.write_text(wrong, encoding="utf-8")
        refused(capsys, workspace, "scores.csv", *words)
    scores.unlink()
    refused(capsys, workspace, "scores.csv is missing; run calculate_pesq first")
    scores.write_text(text, encoding="utf-8")
    mixture = read_mixtures(str(workspace), "test")[0]
    wave = workspace / enhanced_path(str(workspace), 0, mixture.name)
    content = wave.read_bytes()
    wave.unlink()
    refused(capsys, workspace, ".enh.wav is missing; run inference first")
    wave.write_bytes(content)
    (workspace / "report").write_text("a file")
    refused(capsys, workspace, "report/index.html", "a file is where a folder must be")


def test_waves_of_another_length_are_refused(workspace, capsys):
    mixture = read_mixtures(str(workspace), "test")[1]
    write_wave(enhanced_path(str(workspace), 0, mixture.name), np.ones(20000))
    assert write_report(workspace) == 2
    assert "has 20000 samples" in capsys.readouterr().err
    assert not (workspace / "report/index.html").exists()


# --- What belongs to what ---------------------------------------------------------------------


def test_each_signal_has_its_own_picture_name_and_place(scored, page):
    mixtures = read_mixtures(str(scored), "test")
    parsed = Parsed(page)
    pictures = [
        attributes
        for tag, attributes in parsed.elements
        if tag == "img"
        and attributes["src"].endswith((".noisy.png", ".enhanced.png", ".clean.png"))
    ]
    assert len(pictures) == 3 * len(mixtures)
    for number, mixture in enumerate(mixtures, start=1):
        names = ("noisy", "enhanced", "clean")
        noisy, enhanced, clean = pictures[3 * number - 3 : 3 * number]
        for picture, signal in zip((noisy, enhanced, clean), names, strict=True):
            assert picture["src"].startswith(f"files/{number:04d}-")
            assert picture["src"].endswith(f".{signal}.png")
            assert picture["alt"] == (
                f"Spectrogram, {signal}: {mixture.speech_name} in {mixture.noise_name}"
            )
        shown = [
            np.asarray(Image.open(page.parent / unquote(picture["src"]))).astype(float)
            for picture in (noisy, enhanced, clean)
        ]
        # The enhanced wave is number / 2 times the mixture: steps of 1.25 dB, but where the colours
        # end.
        steps = 20 * np.log10(number / 2) / 1.25
        inside = (shown[0] > 20) & (shown[0] < 40)
        assert np.mean(shown[1][inside] - shown[0][inside]) == pytest.approx(steps, abs=0.2)
        # The brightest colour is the last 1.25 dB below the loudest point of the mixture.
        heard = np.abs(stft(soundfile.read(wave_paths(page.parent, number)[0])[0], 512, 256))
        n_brightest = np.sum(20 * np.log10(heard / heard.max() + 1e-9) >= -1.25)
        assert np.sum(shown[0] == 63) == pytest.approx(n_brightest, abs=2)
        assert np.mean(shown[2]) < np.mean(shown[0]) - 1
        n_samples = soundfile.info(wave_paths(page.parent, number)[0]).frames
        begin, width = place_in_time(shown[0].T, n_samples)
        assert noisy["style"] == f"left:{100 * begin:.2f}%;width:{100 * width:.2f}%"
    assert any("-en_librivox_disposed.printer.noisy.png" in each["src"] for each in pictures)


def test_the_marks_of_time_are_to_scale(page):
    text = page.read_text(encoding="utf-8")
    durations = [float(value) for value in re.findall(r'data-duration="([\d.]+)"', text)][::3]
    times = re.findall(r'<div class="times".*?</div>', text, re.DOTALL)
    assert len(times) == len(durations) == 4
    for marks, duration in zip(times, durations, strict=True):
        found = re.findall(r'left:([\d.]+)%">([\d.]+) s<', marks)
        assert len(found) > 3
        for place, second in found:
            assert float(place) == pytest.approx(100 * float(second) / duration, abs=0.005)


def test_a_short_enhanced_wave_is_filled_up_to_a_frame(workspace):
    mixture = read_mixtures(str(workspace), "test")[0]
    path = enhanced_path(str(workspace), 0, mixture.name)
    audio = soundfile.read(path)[0]
    write_wave(path, audio[:-512])
    assert write_report(workspace) == 0
    write_wave(path, audio[:-513])
    assert write_report(workspace) == 2
