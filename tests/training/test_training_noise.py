"""Changes to mixtures that are made on the fly: bursts, sums, tones, bands, other voices."""

import dataclasses

import numpy as np
import pytest
import soundfile

from speech_enhancement.data.audio_files import AudioCache
from speech_enhancement.errors import InputError
from speech_enhancement.features import root_mean_square
from speech_enhancement.recipe import TrainingNoise, load_recipe
from speech_enhancement.training.on_the_fly import MixtureStream
from speech_enhancement.training.training_noise import (
    FREQUENCY,
    NoiseSource,
    Recordings,
    bursts,
    dull,
    harmonics,
    level_steps,
    modulation,
    narrow_band,
    other_voice,
    pitch_path,
    smooth_response,
    sum_of_two,
    tones,
)

N = 80_000  # 5 s


def rng(seed=0):
    return np.random.default_rng(seed)


def source(folder, **changes):
    """Make a source of one recording of noise, white, and of two talkers, tones."""
    paths = {"noise": rng(1).standard_normal(N), "a": tone(400), "b": 0.01 * tone(900)}
    for name, audio in paths.items():
        soundfile.write(folder / f"{name}.wav", 0.1 * audio, 16000, subtype="FLOAT")
    cache = AudioCache()
    noise = Recordings([str(folder / "noise.wav")], cache)
    speech = Recordings([str(folder / "a.wav"), str(folder / "b.wav")], cache)
    return NoiseSource(noise, speech, TrainingNoise(**changes), N)


def tone(frequency):
    return np.sin(2 * np.pi * frequency * np.arange(N) / 16000)


def test_without_changes_noise_is_a_recording(tmp_path):
    drawn = source(tmp_path).draw(rng())
    recording = source(tmp_path).draw(rng(5))
    np.testing.assert_allclose(np.sort(drawn), np.sort(recording))  # from another place


@pytest.mark.parametrize(
    "change", ["bursts", "two_noises", "level_steps", "babble", "tones", "modulation"]
)
def test_each_change_is_drawn_for_its_share(tmp_path, change):
    """Half of the noises are other than without it, and the rest are as before."""
    plain = np.sort(source(tmp_path).draw(rng()))
    changed = source(tmp_path, **{change: 0.5})
    drawn = [np.sort(changed.draw(rng(seed))) for seed in range(60)]
    n_changed = sum(not np.allclose(noise, plain, atol=1e-6) for noise in drawn)
    assert 17 <= n_changed <= 43  # 0.5 +- 3.3 standard deviations of 60 draws


def test_noise_is_played_up_to_half_an_octave_faster_or_slower(tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.tile(tone(1000), 2), 16000, subtype="FLOAT")
    noise = Recordings([str(tmp_path / "a.wav")], AudioCache())
    at_speeds = NoiseSource(noise, noise, TrainingNoise(speed=True), N)
    spectra = [np.abs(np.fft.rfft(at_speeds.draw(rng(seed)))) for seed in range(30)]
    pitches = [spectrum.argmax() / 5 for spectrum in spectra]  # Hz: the spectra are of 5 s
    # From 2**-0.5 to 2**0.5 kHz: of 30 draws some lie near both ends.
    assert 707 <= min(pitches) < 800 and 1250 < max(pitches) <= 1415


def test_bursts_are_loud_and_between_them_it_is_silent_or_soft():
    envelopes = [bursts(rng(seed), N) for seed in range(200)]
    assert all(envelope.min() >= 0 for envelope in envelopes)
    silent_between = np.mean([envelope.min() == 0 for envelope in envelopes])
    assert 0.55 < silent_between < 0.8  # two thirds, +- 3 standard deviations, and some are full
    shares, rates = [], []
    for envelope in envelopes:
        is_on = envelope > 0.1 * envelope.max()
        shares.append(is_on.mean())
        rates.append(np.count_nonzero(np.diff(is_on.astype(int)) == 1) / 5)
    assert np.quantile(shares, 0.1) < 0.1 and np.quantile(shares, 0.9) > 0.6
    assert np.quantile(rates, 0.2) < 2 and np.quantile(rates, 0.8) > 5  # bursts a second


def test_a_burst_begins_within_its_ramp_and_lasts_5_ms_or_more():
    envelope = next(
        e for e in (bursts(rng(seed), N) for seed in range(99)) if np.mean(e == 0) > 0.8
    )
    edges = np.flatnonzero(np.diff((envelope > 0).astype(int)))
    starts, ends = edges[::2], edges[1::2]
    assert np.min(ends - starts[: len(ends)]) >= 78  # 80 less the ends of the ramps, which are 0
    first = envelope[starts[1] : starts[1] + 170]  # 10 ms and some
    assert first.argmax() > 0 and first.max() > 0.5 * envelope[starts[1] : ends[1]].max()


def test_a_level_changes_one_to_three_times_within_its_limits():
    for seed in range(30):
        gain = level_steps(rng(seed), N)
        changes = np.count_nonzero(np.diff(gain))
        assert 1 <= changes <= 3 or gain[0] != 1  # a change may stand at the start
        assert 20 * np.log10(gain.min()) >= -20.001 and 20 * np.log10(gain.max()) <= 10.001


def peaks(wave):
    """Return what stands out of the spectrum of a second: frequencies in Hz and levels in dB."""
    level = 20 * np.log10(np.abs(np.fft.rfft(wave[:16000] * np.blackman(16000))) + 1e-9)
    is_peak = (level[1:-1] > level[:-2]) & (level[1:-1] >= level[2:])
    found = 1 + np.flatnonzero(is_peak & (level[1:-1] > level.max() - 40))
    return found, level[found] - level.max()


def test_harmonics_get_weaker_with_their_number_and_end_at_half_the_sample_rate():
    frequencies, levels = peaks(harmonics(rng(), np.full(N, 1500.0), 9, 1.5))
    np.testing.assert_array_equal(frequencies, 1500 * np.arange(1, 6))  # not 7000, of 9000 Hz
    # The blackman window leaks less than 60 dB below.
    np.testing.assert_allclose(levels, -30 * np.log10(np.arange(1, 6)), atol=0.05)


def test_sounds_with_a_pitch_are_one_to_three_pure_or_harmonic_ones():
    found = [peaks(tones(rng(seed), N))[0] for seed in range(300)]
    pure = [peak[0] for peak in found if len(peak) == 1]
    # Alone, pure, and the same for a second or more: 1 in 12 and some. From 50 to 4000 Hz.
    assert 14 <= len(pure) <= 60 and min(pure) < 200 and 2000 < max(pure) <= 4001
    harmonic = [peak for peak in found if len(peak) > 3 and np.all(peak % peak[0] <= 4)]
    assert len(harmonic) > 3
    assert len(pure) + len(harmonic) < 200  # the others are of several pitches, or these move


def test_a_pitch_stays_steps_or_glides_within_an_octave():
    paths = [pitch_path(rng(seed), N) for seed in range(200)]
    moving = [path for path in paths if path.any()]
    assert 75 <= len(moving) <= 125  # half of 200, +- 3.5 standard deviations
    assert all(len(path) == N and 0.3 < np.abs(path).max() <= 1 for path in moving)
    n_steps = [np.count_nonzero(np.diff(path)) for path in moving]
    stepping = [number for number in n_steps if number < 101]  # 5 s in notes of 50 ms or more
    assert 30 <= len(stepping) <= 70 and min(stepping) >= 4 and max(stepping) > 50


def test_a_regular_level_goes_up_and_down_at_its_rate():
    rates, depths = [], []
    for seed in range(60):
        level = 20 * np.log10(modulation(rng(seed), N))
        assert level.min() >= -40.001 and level.max() <= 0.001
        depths.append(-level.min())
        is_low = level < level.min() / 2
        rates.append(np.count_nonzero(np.diff(is_low.astype(int)) == 1) / 5)
    assert 6 <= min(depths) < 10 and max(depths) > 36
    assert 0.6 <= min(rates) < 2 and 13 < max(rates) <= 26  # 1 to 20 a second, wavering by a tenth


def test_the_rate_of_a_regular_level_wavers():
    spreads = []
    for seed in range(60):
        level = modulation(rng(seed), N)
        is_low = level < np.sqrt(level.min())
        lengths = np.diff(np.flatnonzero(np.diff(is_low.astype(int)) == 1))
        if len(lengths) > 20:
            spreads.append(np.std(lengths) / np.mean(lengths))
    # A tenth, between knots a second apart, of which a draw of 5 s has few.
    assert 0.04 < np.median(spreads) < 0.12


def test_a_noise_goes_up_and_down_with_its_level(tmp_path):
    noise = source(tmp_path, modulation=1.0)
    for seed in range(20):
        drawn = noise.draw(rng(seed))
        assert abs(drawn.mean()) < 0.05 * root_mean_square(drawn)  # still noise, and nothing else
        power = np.square(drawn).reshape(-1, 160).mean(axis=1)  # of 10 ms
        # By 6 dB or more; white noise alone differs by 2 dB from one 10 ms to the next.
        low, high = np.quantile(power, [0.1, 0.9])
        assert 10 * np.log10(high / low) > 4


def test_a_sum_of_two_has_the_difference_asked_for():
    first, second = 3 * tone(500), 0.2 * tone(2000)
    both = sum_of_two(first, second, 6.0)
    levels = [np.abs(both @ part) / (part @ part) for part in (tone(500), tone(2000))]
    assert 20 * np.log10(levels[1] / levels[0]) == pytest.approx(6, abs=0.01)


def test_babble_is_of_the_training_speech_at_equal_levels(tmp_path):
    noise = source(tmp_path, babble=1.0)
    for seed in range(5):
        spectrum = np.abs(np.fft.rfft(noise.draw(rng(seed)))) / N
        frequency = np.fft.rfftfreq(N, 1 / 16000)
        of_tones = (np.abs(frequency - 400) < 20) | (np.abs(frequency - 900) < 20)
        # Tones that go on where the recording is repeated leak, but little.
        assert np.sum(spectrum[of_tones] ** 2) > 0.98 * np.sum(spectrum**2)


def test_dull_noise_has_nothing_an_octave_above_its_end():
    noise = rng().standard_normal(N).astype(np.float32)
    power = np.abs(np.fft.rfft(dull(noise, 1000))) ** 2 / np.abs(np.fft.rfft(noise)) ** 2
    frequency = np.fft.rfftfreq(N, 1 / 16000)
    assert np.median(power[frequency < 900]) == pytest.approx(1, abs=0.02)  # padding at the end
    assert 10 * np.log10(np.median(power[frequency > 2100])) < -50


def test_a_narrow_band_begins_and_ends_where_telephones_do():
    for seed in range(20):
        response = narrow_band(rng(seed))
        passed = FREQUENCY[response > -3]
        assert 30 < passed[0] < 400 + 32 and 3400 - 32 < passed[-1] <= 8000
        if passed[-1] < 6000:
            assert response[1.15 * passed[-1] < FREQUENCY].max() < -60


def mixtures_of(speech, tmp_path, **training):
    """Return a stream of mixtures at 0 dB of some speech and white noise, changed only so."""
    recipe = load_recipe("live")
    training = dataclasses.replace(
        recipe.training, **{"narrow_band": 0.0, **training}, snr_db=(0.0,)
    )
    recipe = dataclasses.replace(recipe, training=training, training_noise=TrainingNoise())
    soundfile.write(tmp_path / "s.wav", 0.1 * speech, 16000)
    soundfile.write(tmp_path / "n.wav", 0.1 * rng(3).standard_normal(N), 16000)
    cache = AudioCache()
    parts = [Recordings([str(tmp_path / name)], cache) for name in ("s.wav", "n.wav")]
    return MixtureStream(*parts, recipe, [0])


def test_other_voices_are_higher_or_lower_by_up_to_a_seventh():
    pitches = []
    for seed in range(30):
        tone = np.sin(2 * np.pi * 1000 / 16000 * np.arange(2 * N)).astype(np.float32)
        speech, change = other_voice(tone, N, rng(seed))
        assert speech.shape == (N,) and speech.dtype == np.float32
        pitches.append(np.argmax(np.abs(np.fft.rfft(speech))) * 16000 / N)
        assert pitches[-1] == pytest.approx(1000 * 2 ** rng(seed).uniform(-0.2, 0.2), abs=1)
        # The tone had a root mean square of sqrt(1/2); filters begin and end in 1 % of it.
        assert root_mean_square(speech) == pytest.approx(change * 0.5**0.5, rel=0.01)
    assert min(pitches) < 900 and max(pitches) > 1110


def test_other_voices_have_a_smooth_response():
    white = rng(0).standard_normal(2 * N).astype(np.float32)
    levels = []
    for seed in range(20):
        power = np.abs(np.fft.rfft(other_voice(white, N, rng(seed))[0])) ** 2
        bands = power[: len(power) * 3 // 4].reshape(-1, len(power) * 3 // 4 // 12)
        levels.append(10 * np.log10(bands.mean(axis=1)))
    # 3 dB in each knot, less between two of them; 20 responses tell it to a fifth.
    assert 1.5 < np.std(levels, axis=0).mean() < 4


def test_other_voices_keep_the_snr(tmp_path):
    speech = dull(rng(2).standard_normal(2 * N).astype(np.float32), 2500)
    mixtures = mixtures_of(speech, tmp_path, voices=1.0)
    for seed in range(10):
        mixture, speech = mixtures.mixture(rng(seed))
        # Speech and noise of one power, and no correlation: the sum has twice as much. 5 s of noise
        # that fills a quarter of the band have 1 % of chance.
        ratio = np.sum(np.abs(mixture) ** 2) / np.sum(speech**2)
        assert ratio == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize(("share", "n_pitches"), [(0.0, 1), (1.0, 4)])
def test_a_share_of_the_speech_has_other_voices(tmp_path, share, n_pitches):
    mixtures = mixtures_of(tone(1000), tmp_path, voices=share)
    loudest = {int(mixtures.mixture(rng(seed))[1].sum(axis=0).argmax()) for seed in range(8)}
    assert len(loudest) >= n_pitches and (share or loudest == {32})


def test_a_narrow_band_is_that_of_speech_and_noise(tmp_path):
    stream = mixtures_of(rng(2).standard_normal(N), tmp_path, narrow_band=1.0)
    response = next(
        response
        for response in (stream.mixture(rng(seed)) for seed in range(20))
        if root_mean_square(np.abs(response[0][:, 250])) < 1e-3
    )
    for magnitude in map(np.abs, response):  # mixture and speech
        assert np.mean(magnitude[:, 250]) < 1e-2 * np.mean(magnitude[:, 60])


@pytest.mark.parametrize("seed", range(4))
def test_synthetic_noise_has_the_slope_and_the_response_that_were_drawn(tmp_path, seed):
    drawn = source(tmp_path, synthetic=1.0).draw(rng(seed))
    again = rng(seed)
    knots = again.standard_normal(8)
    again.random()
    slope = again.uniform(-10, 3)  # dB per octave, above and below 1 kHz
    octaves = np.log2(np.maximum(FREQUENCY, 62.5) / 1000)
    expected = slope * octaves + 4 * smooth_response(knots)
    window = np.blackman(512)  # a Hamming window leaks too much to what lies 40 dB lower
    frames = np.lib.stride_tricks.sliding_window_view(drawn.astype(np.float64), 512)[::256]
    power = np.mean(np.abs(np.fft.rfft(frames * window)) ** 2, axis=0) / np.sum(window**2)
    error = 10 * np.log10(power) - expected
    # The mean of 312 frames is right to 0.25 dB, the largest error of 237 bins four times that.
    # Below 500 Hz the response changes by dB from bin to bin.
    assert np.abs(error[16:-4]).max() < 1.2


def test_recordings_that_cannot_be_used_are_an_error_at_every_draw(tmp_path, capsys):
    names = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    recordings = Recordings(names, AudioCache())
    for _ in range(3):  # by several threads: each has to hear of it
        with pytest.raises(InputError, match=r"none of 2 files can be used; .* is missing"):
            recordings.draw(rng())
    assert capsys.readouterr().out.count("skipped:") == 2
