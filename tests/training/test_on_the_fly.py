"""Mixtures made on the fly: what is drawn, what is skipped, what a block holds."""

import dataclasses

import numpy as np
import pytest
import soundfile
from conftest import MINI, write_recipe

from config import n_overlap, n_window
from speech_enhancement.data import audio_files
from speech_enhancement.data.audio_files import AudioCache
from speech_enhancement.errors import InputError
from speech_enhancement.features import istft, peak, root_mean_square, stft
from speech_enhancement.network_input import frames_and_statistics
from speech_enhancement.recipe import load_recipe
from speech_enhancement.training.devices import Share
from speech_enhancement.training.on_the_fly import (
    SEGMENT_FRAMES,
    SEGMENT_SAMPLES,
    MixtureStream,
    listing,
    open_mixing_on_the_fly,
)
from speech_enhancement.training.options import TrainingOptions, chosen_recipe
from speech_enhancement.training.training_noise import (
    Recordings,
    played_at,
    segment,
    smooth_response,
    with_response,
)

NOT_SHARED = Share()
BATCHES_PER_BLOCK = 19  # of a network of windows


def recordings(*paths):
    return Recordings([str(path) for path in paths], AudioCache())


def mini(kind):
    return recordings(*sorted((MINI / kind).glob("*.wav")))


def stream(snrs=(0.0,), recipe="default", seed=0, share=NOT_SHARED, **changes):
    """Make a stream of mixtures of the mini data, or of the `speech` and `noise` of changes."""
    chosen, training = load_recipe(recipe), {"snr_db": snrs, "batch_size": 64}
    speech = changes.pop("speech", None) or mini("train_speech")
    noise = changes.pop("noise", None) or mini("train_noise")
    chosen = dataclasses.replace(
        chosen,
        training=dataclasses.replace(chosen.training, **training),
        training_noise=dataclasses.replace(chosen.training_noise, **changes),
    )
    made = MixtureStream(speech, noise, chosen, [seed], share)
    made.compute_scaler(n_blocks=1)
    return made


def write(path, audio):
    soundfile.write(path, audio, 16000, subtype="FLOAT")
    return path


@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_the_snr_of_a_mixture_is_that_of_the_whole_utterance(tmp_path, snr):
    rng = np.random.default_rng(0)
    speech, noise = rng.standard_normal((2, 2 * SEGMENT_SAMPLES)) / 10
    speech[SEGMENT_SAMPLES:] *= 0.1  # a quieter second half
    noise = noise[:SEGMENT_SAMPLES]
    waves = [
        recordings(write(tmp_path / "s.wav", speech)),
        recordings(write(tmp_path / "n.wav", noise)),
    ]
    # The recipe begins at the beginning of the speech; the noise has no other beginning.
    made = stream((snr,), "xu2015", speech=waves[0], noise=waves[1])
    mixed, speech_magnitude = made.mixture(rng)
    of_speech, of_noise = (
        stft(audio[:SEGMENT_SAMPLES], n_window, n_overlap) for audio in (speech, noise)
    )
    factor = np.sum(speech_magnitude * np.abs(of_speech)) / np.sum(np.abs(of_speech) ** 2)
    alpha = np.real(
        np.sum((mixed - factor * of_speech) * of_noise.conj()) / np.sum(np.abs(of_noise) ** 2)
    )
    found = 20 * np.log10(factor * root_mean_square(speech) / (alpha * root_mean_square(noise)))
    assert found == pytest.approx(snr, abs=1e-3)  # single precision


def test_a_random_equalisation_has_its_response():
    noise = np.random.default_rng(0).standard_normal(80000).astype(np.float32)
    response = smooth_response(np.array([0.0, 6, -6, 12, 0, -20, 3, 0]))
    before, after = (
        np.mean(np.abs(stft(audio, 512, 256)) ** 2, axis=0)
        for audio in (noise, with_response(noise, response))
    )
    # Within a bin of 31 Hz the response changes by up to 1 dB where it is steep, at low
    # frequencies.
    np.testing.assert_allclose(10 * np.log10(after / before), response, rtol=0, atol=1.0)


def test_an_infinite_snr_is_clean_speech():
    mixed, speech_magnitude = stream((np.inf,)).mixture(np.random.default_rng(0))
    np.testing.assert_allclose(np.abs(mixed), speech_magnitude, rtol=1e-6)  # rounding


def snr_of(mixture_stft, speech_magnitude, speech_stft):
    """Return the SNR of a mixture whose speech is known up to a factor."""
    factor = np.sum(speech_magnitude * np.abs(speech_stft)) / np.sum(np.abs(speech_stft) ** 2)
    noise = mixture_stft - factor * speech_stft
    return 10 * np.log10(np.sum(speech_magnitude**2) / np.sum(np.abs(noise) ** 2))


@pytest.mark.parametrize(
    "training", [{"snr_db": (-5.0, 0.0, 10.0)}, {"snr_db": (), "snr_range_db": (-5.0, 15.0)}]
)
def test_snrs_are_drawn_from_all_values_or_evenly_from_the_range(tmp_path, training):
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((2, SEGMENT_SAMPLES)) / 10
    waves = [recordings(write(tmp_path / f"{n}.wav", wave)) for n, wave in enumerate(audio)]
    recipe = load_recipe("original")
    recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, **training))
    made, speech = MixtureStream(*waves, recipe, [0]), stft(audio[0], n_window, n_overlap)
    found = np.array([snr_of(*made.mixture(rng), speech) for _ in range(60)])
    # The power of a wave and of its frames differ by the first and the last half window: 0.02 dB
    # here.
    if recipe.training.snr_db:
        assert set(np.round(found, 1) + 0.0) == {-5, 0, 10}
    else:
        # Of 60 even draws from 20 dB: the mean deviates by 0.75 (one sigma), and 10 fall into a
        # sixth.
        assert (
            found.min() > -5.1 and found.max() < 15.1 and np.mean(found) == pytest.approx(5, abs=3)
        )
        assert np.histogram(found, 6, (-5, 15))[0].min() >= 2


def test_a_block_depends_on_seed_and_number_alone():
    first, second, other = stream(), stream(), stream(seed=1)
    second.block(0)
    for name in ("frames", "statistics", "targets", "runs"):
        np.testing.assert_array_equal(getattr(first.block(3), name), getattr(second.block(3), name))
    assert not np.array_equal(first.block(3).frames, other.block(3).frames)
    assert not np.array_equal(first.block(3).frames, first.block(4).frames)


def test_batches_go_on_from_any_number():
    made = stream()
    all_batches = made.batches()
    expected = [next(all_batches) for _ in range(BATCHES_PER_BLOCK + 3)]
    all_batches.close()
    for first in (1, BATCHES_PER_BLOCK, BATCHES_PER_BLOCK + 2):
        later = made.batches(first)
        (frames, statistics), y = next(later)
        later.close()
        np.testing.assert_array_equal(frames, expected[first][0][0])
        np.testing.assert_array_equal(statistics, expected[first][0][1])
        np.testing.assert_array_equal(y, expected[first][1])


def test_a_block_uses_each_frame_once_in_random_order_and_inputs_fit_targets():
    block = stream().block(0)
    for runs in block.runs:
        assert sorted(runs) == list(range(0, SEGMENT_FRAMES, 4))
        # A batch takes four runs of 78 of a segment: by chance neighbours are rare.
        assert np.mean(np.diff(runs) == 4) < 0.2
    assert not np.array_equal(block.runs[0], block.runs[1])
    (frames, statistics), y = block.batch(0)
    assert (
        frames.shape == (16, 4 + 10, 257)
        and statistics.shape == (16, 1, 4 * 257)
        and y.shape == (16, 4, 2, 257)
    )
    first = block.runs[1, 1]  # 4 runs of each of 4 segments: the second run of the second
    np.testing.assert_array_equal(y[5], block.targets[1, first : first + 4])
    np.testing.assert_array_equal(frames[5], block.frames[1, first : first + 14])


def test_the_shares_of_several_processes_make_the_batch_of_one():
    whole, *parts = stream(), stream(share=Share(0, 2, 2)), stream(share=Share(1, 2, 2))
    for number in (0, 7):
        (frames, statistics), y = whole.block(1).batch(number)
        shared = [part.block(1).batch(number) for part in parts]
        np.testing.assert_array_equal(np.concatenate([inputs[0] for inputs, _ in shared]), frames)
        np.testing.assert_array_equal(
            np.concatenate([inputs[1] for inputs, _ in shared]), statistics
        )
        np.testing.assert_array_equal(np.concatenate([targets for _, targets in shared]), y)
    with pytest.raises(InputError, match=r"cannot be shared by 3 devices; .* a multiple of 48"):
        stream(share=Share(0, 1, 3))


def test_the_scaler_is_mean_and_deviation_of_mixtures_that_training_does_not_see():
    made = stream()
    scaler, seen = made.compute_scaler(n_blocks=2), []
    for number in range(2):
        rng = np.random.default_rng([0, 1, number])  # training has 0 in the second place
        seen += [
            frames_and_statistics(made.mixture(rng)[0], load_recipe("default").input)
            for _ in range(4)
        ]
    frames = np.concatenate([frames for frames, _ in seen])
    statistics = np.stack([statistics[0] for _, statistics in seen])
    # Moments of single-precision values, merged in double precision.
    np.testing.assert_allclose(scaler.mean, frames.mean(axis=0, dtype=float), rtol=0, atol=1e-5)
    np.testing.assert_allclose(scaler.std, frames.std(axis=0, dtype=float), rtol=1e-5)
    np.testing.assert_allclose(
        scaler.statistics_mean, statistics.mean(axis=0, dtype=float), rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(
        scaler.statistics_std, statistics.std(axis=0, dtype=float), rtol=1e-5
    )


def test_a_segment_repeats_audio_that_is_too_short():
    rng = np.random.default_rng(0)
    for _ in range(20):
        cut = segment(np.arange(10), 25, rng)
        np.testing.assert_array_equal(np.diff(cut) % 10, np.ones(24))
        inside = segment(np.arange(100), 25, rng)
        np.testing.assert_array_equal(np.diff(inside), np.ones(24))
    np.testing.assert_array_equal(segment(np.arange(100), 25, rng, at_start=True), np.arange(25))


def test_a_segment_begins_anywhere():
    rng = np.random.default_rng(0)
    # All but surely each of 11 or 10 places is drawn in 300 times: a miss has a chance of 1e-11.
    assert {segment(np.arange(35), 25, rng)[0] for _ in range(300)} == set(range(11))
    assert {segment(np.arange(10), 25, rng)[0] for _ in range(300)} == set(range(10))


@pytest.mark.parametrize("speed", [0.75, 1.3])
def test_faster_noise_sounds_higher(speed):
    tone = np.sin(2 * np.pi * 500 * np.arange(round(SEGMENT_SAMPLES * speed) + 1) / 16000)
    spectrum = np.abs(np.fft.rfft(played_at(tone, speed, SEGMENT_SAMPLES)))
    assert np.argmax(spectrum) * 16000 / SEGMENT_SAMPLES == pytest.approx(500 * speed, abs=1)
    assert root_mean_square(played_at(tone, speed, SEGMENT_SAMPLES)[1000:-1000]) == pytest.approx(
        np.sqrt(0.5), rel=0.01
    )


def test_noise_of_a_recording_is_equalised_as_far_as_the_recipe_says(tmp_path):
    noise = write(tmp_path / "white.wav", np.random.default_rng(0).standard_normal(160000) / 10)
    spread = {}
    for deviation_db in (0.0, 6.0):
        plain = {"noise": recordings(noise), "synthetic": 0.0, "bursts": 0.0}
        made = stream((-60.0,), **plain, equalization_db=deviation_db)
        power = [
            np.mean(np.abs(made.mixture(np.random.default_rng(seed))[0]) ** 2, axis=0)
            for seed in range(40)
        ]
        bands = np.array(
            [[one[20:30].mean(), one[120:130].mean()] for one in power]
        )  # 0.8, 3.9 kHz
        spread[deviation_db] = np.std(10 * np.log10(bands[:, 0] / bands[:, 1]))
    # Ten bins of 312 frames of white noise: 0.1 dB. Two independent levels: sqrt(2) * 6 = 8.5 dB,
    # less what lies between two knots, with a standard error of 11 %.
    assert spread[0.0] < 0.5 and 4 < spread[6.0] < 12


def test_noise_aware_training_hears_an_utterance_from_its_start(tmp_path):
    audio = np.random.default_rng(0).standard_normal(3 * SEGMENT_SAMPLES) / 10
    audio[:8000] = 0  # half a second of pause
    speech, has_pause = recordings(write(tmp_path / "speech.wav", audio)), {}
    for recipe in ("xu2015", "default"):
        made = stream((np.inf,), recipe, speech=speech)
        drawn = [made.mixture(np.random.default_rng(seed))[1] for seed in range(8)]
        has_pause[recipe] = [not magnitude[:20].any() for magnitude in drawn]
    # The chance that one of eight random onsets is the start is 1 in 20 000.
    assert all(has_pause["xu2015"]) and not any(has_pause["default"])


def test_recordings_that_cannot_be_used_are_named_once_and_skipped(tmp_path, capsys):
    rng = np.random.default_rng(0)
    good = [write(tmp_path / f"good{n}.wav", rng.standard_normal(20000) / 10) for n in range(2)]
    silent = write(tmp_path / "silent.wav", np.zeros(20000))
    damaged = write(tmp_path / "damaged.wav", rng.standard_normal(20000))
    damaged.write_bytes(b"not audio")
    mixed = [*good, silent, damaged, tmp_path / "missing.wav"]
    made = stream(speech=recordings(*mixed), noise=recordings(*mixed[::-1]))
    again = stream(speech=recordings(*mixed), noise=recordings(*mixed[::-1]))
    np.testing.assert_array_equal(again.block(2).frames, made.block(2).frames)
    assert all(np.abs(made.mixture(rng)[0]).max() > 0 for _ in range(20))
    lines = capsys.readouterr().out.splitlines()
    for path in (
        silent,
        damaged,
        tmp_path / "missing.wav",
    ):  # of two streams, as speech and as noise
        assert len([line for line in lines if str(path) in line]) == 4
    assert all(line.startswith("skipped: ") for line in lines)
    with pytest.raises(InputError, match="none of 2 files can be used"):
        stream(speech=recordings(silent, damaged))


def test_a_silent_stretch_of_a_recording_is_not_drawn(tmp_path):
    audio = np.zeros(20 * SEGMENT_SAMPLES)
    audio[:SEGMENT_SAMPLES] = np.random.default_rng(0).standard_normal(SEGMENT_SAMPLES) / 10
    wave = recordings(write(tmp_path / "mostly_silent.wav", audio))
    made = stream(speech=wave, noise=wave, synthetic=0.0)
    for seed in range(10):
        mixed, speech_magnitude = made.mixture(np.random.default_rng(seed))
        assert speech_magnitude.any() and np.any(np.abs(mixed) > 2 * speech_magnitude)


def test_held_out_speech_is_opened_for_validation_alone(test_set, tmp_path, monkeypatch):
    opened = []
    read = AudioCache.read

    def spy(self, path):
        opened.append(path)
        return read(self, path)

    monkeypatch.setattr(AudioCache, "read", spy)
    options = TrainingOptions(
        workspace=str(test_set),
        te_snr=0.0,
        recipe=str(write_recipe(tmp_path / "small.toml")),
        valid_fraction=0.5,
        speech_dir=str(MINI / "train_speech"),
        noise_dir=str(MINI / "train_noise"),
    )

    def speech_of(batches, n_batches):
        opened.clear()
        for _ in range(n_batches):
            next(batches)
        batches.close()
        return {path for path in opened if "train_speech" in path}

    with open_mixing_on_the_fly(options, chosen_recipe(options), NOT_SHARED) as data:
        of_scaler = {path for path in opened if "train_speech" in path}
        of_training = speech_of(data.trained_on.batches(), 120)  # of several blocks
        of_sample = speech_of(data.evaluated["tr_loss"].sample(), 16)
        of_validation = speech_of(data.evaluated["valid_loss"].sample(), 16)
    everything = {str(path) for path in (MINI / "train_speech").glob("*.wav")}
    assert of_validation and of_training == of_scaler == everything - of_validation
    assert of_sample <= of_training and len(of_validation) == len(everything) // 2


@pytest.mark.parametrize(("cache_mb", "decodes_again"), [(256, False), (1, True)])
def test_waves_are_kept_decoded_as_far_as_the_cache_goes(
    cache_mb, decodes_again, test_set, tmp_path, monkeypatch
):
    decoded = []
    monkeypatch.setattr(audio_files, "read_audio", lambda path: decoded.append(path) or wave)
    wave = np.random.default_rng(0).standard_normal(150000).astype(np.float32)  # 0.6 MB
    options = TrainingOptions(
        workspace=str(test_set),
        te_snr=0.0,
        recipe=str(write_recipe(tmp_path / "small.toml")),
        speech_dir=str(MINI / "train_speech"),
        noise_dir=str(MINI / "train_noise"),
        cache_mb=cache_mb,
    )
    with open_mixing_on_the_fly(options, chosen_recipe(options), NOT_SHARED) as data:
        data.trained_on.block(0)
    n_files = len({*decoded})
    assert n_files == len(list((MINI / "train_speech").iterdir())) + 3
    assert (len(decoded) > 2 * n_files) == decodes_again


def test_a_link_to_nowhere_is_skipped_by_name(tmp_path, capsys):
    speech = tmp_path / "speech"
    speech.mkdir()
    for path in (MINI / "train_speech").glob("*.wav"):
        (speech / path.name).symlink_to(path)
    (speech / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    names = sorted(path.name for path in speech.iterdir())
    assert listing(str(speech), names).startswith(f"{len(names)} files of ")
    source = recordings(*(speech / name for name in names))
    for seed in range(20):
        source.draw(np.random.default_rng(seed))
    assert capsys.readouterr().out.count("gone.wav is missing") == 1


def test_narrow_mixtures_have_the_level_of_all_others():
    mixtures = stream(recipe="xu2015")
    training = dataclasses.replace(mixtures._recipe.training, narrow_band=1.0)
    mixtures._recipe = dataclasses.replace(mixtures._recipe, training=training)
    for seed in range(20):
        spectrum, _ = mixtures.mixture(np.random.default_rng(seed))
        audio = istft(np.abs(spectrum), spectrum, n_overlap, SEGMENT_SAMPLES)
        # What the half windows at both ends make of a peak that lies there is not seen.
        assert peak(audio[n_window:-n_window]) < 1 + 1e-5
        assert peak(audio) > 0.9


def test_narrow_speech_has_the_level_of_its_mixture():
    mixtures = stream((np.inf,), recipe="xu2015")
    training = dataclasses.replace(mixtures._recipe.training, narrow_band=1.0)
    mixtures._recipe = dataclasses.replace(mixtures._recipe, training=training)
    spectrum, speech_magnitude = mixtures.mixture(np.random.default_rng(0))
    # Clean speech is its own mixture; single precision, magnitudes of order 1.
    np.testing.assert_allclose(np.abs(spectrum), speech_magnitude, rtol=0, atol=1e-5)
