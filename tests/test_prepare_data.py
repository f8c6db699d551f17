"""The preparation steps, through their commands, on the mini data."""

import json
import shutil

import h5py
import numpy as np
import pytest
import soundfile
from conftest import (
    MINI,
    calculate,
    create,
    expect_refusal,
    files_below,
    pack,
    prepare,
    run,
    run_process,
    scale,
    write_csv,
)

from speech_enhancement.data.audio_files import read_audio
from speech_enhancement.data.mixtures import Mixture, draw_noises, draw_segment, read_mixtures
from speech_enhancement.features import (
    context_windows,
    log_magnitude,
    mix_at_snr,
    root_mean_square,
    stft,
)
from speech_enhancement.workspace import features_path, packed_path, scaler_path, snr_name


def rows_of(workspace, data_type="train"):
    return [tuple(mixture) for mixture in read_mixtures(str(workspace), data_type)]


def test_each_test_speech_meets_every_noise_and_each_training_speech_some(tmp_path):
    assert (
        create(tmp_path, "test") == create(tmp_path, "train", None, None, "--magnification", 2) == 0
    )
    assert len(rows_of(tmp_path, "test")) == 2 * 2
    rows = rows_of(tmp_path)
    assert len(rows) == 4 * 2 == len({row[:2] for row in rows})
    for speech_name, noise_name, onset, offset in rows:
        n_speech = soundfile.info(MINI / "train_speech" / speech_name).frames
        n_noise = soundfile.info(MINI / "train_noise" / noise_name).frames
        assert offset - onset == n_speech and onset >= 0 and offset <= n_noise


def test_the_csv_is_in_the_originals_format(tmp_path):
    create(tmp_path, "test")
    lines = (tmp_path / "mixture_csvs" / "test.csv").read_text().splitlines()
    assert lines[0] == "speech_name\tnoise_name\tnoise_onset\tnoise_offset"
    assert lines[1].split("\t")[:2] == ["en_librivox_disposed.wav", "printer.wav"]


def test_draws_do_not_change_between_machines_and_versions():
    # Written down when the draw was defined; every mixture of a published experiment hangs on them.
    noises = [f"n{i}.wav" for i in range(1, 9)]
    assert draw_noises("TRAIN/DR1/FCJF0/SA1.WAV", noises, 3) == KNOWN_NOISES
    assert draw_segment("TRAIN/DR1/FCJF0/SA1.WAV", "n1.wav", 46797, 320000) == KNOWN_SEGMENT
    assert (
        draw_segment("a.wav", "b.wav", 1000, 1000)
        == draw_segment("a.wav", "b.wav", 1000, 999)
        == (0, 1000)
    )


def test_draws_after_silence_do_not_change_either():
    # Written down when the draw was defined, as those above.
    pair = ("TRAIN/DR1/FCJF0/SA1.WAV", "n1.wav")
    assert draw_segment(*pair, 46797, 320000, attempt=1) == KNOWN_SECOND_SEGMENT


KNOWN_NOISES = ["n3.wav", "n8.wav", "n5.wav"]
KNOWN_SEGMENT = (5989, 52786)
KNOWN_SECOND_SEGMENT = (136750, 183547)


def test_onsets_are_spread_evenly():
    onsets = [draw_segment(f"s{i}.wav", "n.wav", 10, 1009)[0] for i in range(5000)]
    counts, _ = np.histogram(onsets, bins=10, range=(0, 1000))
    assert min(onsets) >= 0 and max(onsets) <= 999
    # Binomial(5000, 0.1): standard deviation 21; 5 of them.
    assert np.all(np.abs(counts - 500) < 106)


def test_a_new_file_changes_no_other_row(tmp_path):
    shutil.copytree(MINI / "train_speech", tmp_path / "speech")
    shutil.copytree(MINI / "train_noise", tmp_path / "noise")
    folders = (tmp_path / "speech", tmp_path / "noise")
    create(tmp_path, "train", *folders, "--magnification", 2)
    before = rows_of(tmp_path)
    shutil.copy(MINI / "test_speech" / "ru_ivrvoice_nobody.wav", tmp_path / "speech" / "aaa.wav")
    create(tmp_path, "train", *folders, "--magnification", 2)
    assert [row for row in rows_of(tmp_path) if row[0] != "aaa.wav"] == before
    shutil.copy(MINI / "test_noise" / "vinyl.wav", tmp_path / "noise" / "aaa.wav")
    create(tmp_path, "train", *folders, "--magnification", 2)
    assert {row for row in rows_of(tmp_path) if "aaa.wav" not in row[:2]} <= set(before)


def test_two_runs_give_identical_csvs_and_equal_arrays(tmp_path, prepared):
    prepare(tmp_path)
    first, second = files_below(prepared), files_below(tmp_path)
    assert first.keys() == second.keys()
    for name in first:
        if name.endswith((".csv", ".wav")):
            assert first[name] == second[name], name
    for data_type in ("train", "test"):
        one, two = (
            h5py.File(packed_path(str(folder), data_type, 0)) for folder in (prepared, tmp_path)
        )
        with one, two:
            np.testing.assert_array_equal(one["x"], two["x"])
            np.testing.assert_array_equal(one["y"], two["y"])
            assert one["x"].dtype == one["y"].dtype == np.float32


def test_the_noise_onset_counts_samples_after_resampling(tmp_path):
    # A click 1 s into a 48 kHz noise must be at sample 16000.
    rng = np.random.default_rng(0)
    noise = 1e-3 * rng.standard_normal(48000 * 4)
    noise[48000] = 1.0
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "click.wav", noise, 48000, subtype="FLOAT")
    speech = MINI / "train_speech"
    name = "en_allison_wrong.wav"
    n_speech = soundfile.info(speech / name).frames
    write_csv(tmp_path, [(name, "click.wav", 15000, 15000 + n_speech)])
    assert calculate(tmp_path, "train", speech, tmp_path / "noise", snr=-40) == 0
    mixed = read_audio(
        str(tmp_path / "mixed_audios/spectrogram/train/-40db/en_allison_wrong.click.wav")
    )
    assert np.argmax(np.abs(mixed)) == 1000


def test_hand_written_csv_gives_the_mixture_of_the_definition(tmp_path):
    speech = read_audio(str(MINI / "train_speech" / "en_allison_wrong.wav")).astype(np.float64)
    noise = read_audio(str(MINI / "train_noise" / "water.wav")).astype(np.float64)
    write_csv(tmp_path, [("en_allison_wrong.wav", "water.wav", 1000, 1000 + len(speech))])
    assert calculate(tmp_path, snr=2.5) == pack(tmp_path, "train", 2.5) == scale(tmp_path, 2.5) == 0
    mixed = mix_at_snr(speech, noise[1000 : 1000 + len(speech)], 2.5)[0]
    written = read_audio(
        str(tmp_path / "mixed_audios/spectrogram/train/2.5db/en_allison_wrong.water.wav")
    )
    np.testing.assert_array_equal(written, mixed.astype(np.float32))
    windows = context_windows(log_magnitude(stft(mixed, 512, 256)), 7, 3)
    with h5py.File(packed_path(str(tmp_path), "train", 2.5)) as packed:
        # Stored spectra are complex64; its rounding matters only near ln(1e-8).
        np.testing.assert_allclose(packed["x"], windows, rtol=0, atol=5e-4)
        assert dict(packed.attrs)["n_concat"] == 7 and packed.attrs["snr_db"] == 2.5
    with np.load(scaler_path(str(tmp_path), "train", [2.5])) as scaler:
        frames = windows.reshape(-1, 257)
        np.testing.assert_allclose(scaler["mean"], frames.mean(axis=0), rtol=0, atol=1e-5)
        np.testing.assert_allclose(scaler["std"], frames.std(axis=0), rtol=0, atol=1e-5)


def test_a_noise_shorter_than_the_speech_is_repeated(tmp_path):
    noise = read_audio(str(MINI / "train_noise" / "water.wav"))[:10000]
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "short.wav", noise, 16000)
    assert create(tmp_path, "train", None, tmp_path / "noise") == 0
    assert calculate(tmp_path, "train", None, tmp_path / "noise") == 0
    for mixture in read_mixtures(str(tmp_path), "train"):
        assert mixture.noise_onset == 0
        speech = read_audio(str(MINI / "train_speech" / mixture.speech_name))
        expected = mix_at_snr(speech, np.resize(noise, len(speech)), 0)[0]
        mixed = read_audio(
            str(tmp_path / "mixed_audios/spectrogram/train/0db" / f"{mixture.name}.wav")
        )
        # The mixture is stored in single precision.
        np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-6)


def test_a_noise_that_ends_within_its_part_goes_on_at_its_beginning(tmp_path):
    noise = read_audio(str(MINI / "train_noise" / "water.wav"))[:10000]
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "short.wav", noise, 16000, subtype="FLOAT")
    name = "en_allison_wrong.wav"
    speech = read_audio(str(MINI / "train_speech" / name))
    write_csv(tmp_path, [(name, "short.wav", 3000, 3000 + len(speech))])
    assert calculate(tmp_path, "train", None, tmp_path / "noise") == 0
    expected = mix_at_snr(speech, np.resize(np.roll(noise, -3000), len(speech)), 0)[0]
    mixed = read_audio(
        str(tmp_path / "mixed_audios/spectrogram/train/0db/en_allison_wrong.short.wav")
    )
    # The mixture is stored in single precision.
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-6)


def test_speech_of_one_frame_goes_through_all_steps(tmp_path):
    (tmp_path / "speech").mkdir()
    soundfile.write(tmp_path / "speech" / "a.wav", np.ones(512) / 2, 16000)
    assert create(tmp_path, "train", tmp_path / "speech") == 0
    assert calculate(tmp_path, "train", tmp_path / "speech") == 0
    assert pack(tmp_path) == 0
    with h5py.File(packed_path(str(tmp_path), "train", 0)) as packed:
        assert len(packed["y"]) == 1


def test_a_csv_may_begin_with_a_byte_order_mark(tmp_path):
    row = ("en_allison_wrong.wav", "water.wav", 1000, 44514)
    path = write_csv(tmp_path, [row])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert rows_of(tmp_path) == [row]


@pytest.mark.parametrize("digits", ["9" * 5000, "²"])
def test_digits_that_are_no_number_of_samples_are_refused(tmp_path, capsys, digits):
    write_csv(tmp_path, [("a.wav", "b.wav", 0, digits)])
    expect_refusal(capsys, calculate(tmp_path), "row 2: expected integers")


def test_feature_files_hold_the_snr_that_was_asked_for(tmp_path):
    create(tmp_path)
    assert calculate(tmp_path, snr=-2.5) == 0
    for mixture in read_mixtures(str(tmp_path), "train"):
        with np.load(features_path(str(tmp_path), "train", -2.5, mixture.name)) as features:
            origin = json.loads(str(features["origin"]))
            assert origin["snr_db"] == -2.5 and origin["n_window"] == 512
            assert features["mixture_stft"].shape == features["speech_magnitude"].shape
        speech = read_audio(str(MINI / "train_speech" / mixture.speech_name))
        noise = read_audio(str(MINI / "train_noise" / mixture.noise_name))[
            mixture.noise_onset : mixture.noise_offset
        ]
        _, scaled, noise, *_ = mix_at_snr(speech, noise, -2.5)
        assert 20 * np.log10(root_mean_square(scaled) / root_mean_square(noise)) == pytest.approx(
            -2.5
        )


def test_folders_keep_the_snr_exact():
    names = [snr_name(snr) for snr in (2.5, 2, 0.5, -0.5, 0.0, -0.0, -5, 12.25)]
    assert snr_name(-5, 0, 2.5) == "-5db_0db_2.5db"
    assert names == ["2.5db", "2db", "0.5db", "-0.5db", "0db", "0db", "-5db", "12.25db"]


def test_nested_and_awkward_names_go_through_all_steps(tmp_path):
    names = ["TRAIN/DR1/FCJF0/SA1.WAV", "a.b.wav", "with space.flac", "Grüße/日本.ogg"]
    speech = soundfile.read(MINI / "train_speech" / "en_allison_wrong.wav")[0]
    for name in names:
        path = tmp_path / "speech" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech, 16000)
    assert (
        create(tmp_path, "train", tmp_path / "speech")
        == calculate(tmp_path, "train", tmp_path / "speech")
        == 0
    )
    assert pack(tmp_path) == scale(tmp_path) == 0
    mixed = {
        path.name.rsplit(".", 2)[0]
        for path in (tmp_path / "mixed_audios/spectrogram/train/0db").iterdir()
    }
    assert mixed == {"TRAIN_DR1_FCJF0_SA1", "a.b", "with space", "Grüße_日本"}


def test_stale_files_of_an_earlier_run_do_not_join_the_data(tmp_path):
    prepare(tmp_path)
    rows = rows_of(tmp_path)
    write_csv(tmp_path, rows[:1])
    assert pack(tmp_path) == 0
    with h5py.File(packed_path(str(tmp_path), "train", 0)) as packed:
        assert packed.attrs["n_mixtures"] == 1
    onset, offset = rows[0][2:]
    write_csv(tmp_path, [(*rows[0][:2], onset + 1, offset + 1)])
    assert pack(tmp_path) == 2  # the features are of another part of the noise


def test_mixture_name():
    assert Mixture("TRAIN/DR1/FCJF0/SA1.WAV", "n.1.wav", 0, 1).name == "TRAIN_DR1_FCJF0_SA1.n.1"


def test_many_processes_write_the_same_bytes_as_one(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two", tmp_path / "three"]
    create(tmp_path / "csv", "train", None, None, "--magnification", 3)
    dirs = ("--speech_dir", MINI / "train_speech", "--noise_dir", MINI / "train_noise")
    for folder, n_jobs in zip(folders, (1, 2, 3), strict=True):
        shutil.copytree(tmp_path / "csv", folder)
        for step, flags in (
            ("calculate_mixture_features", dirs),
            ("pack_features", ()),
            ("compute_scaler", ()),
        ):
            flags = (
                step,
                "--workspace",
                folder,
                "--data_type",
                "train",
                "--snr",
                0,
                "--n_jobs",
                n_jobs,
                *flags,
            )
            if n_jobs == 3:  # as a command it starts its processes in another way
                assert run_process("prepare_data", *flags).returncode == 0
            else:
                assert run("prepare_data", *flags) == 0
    one, two, three = map(files_below, folders)
    assert one == two == three and len(one) == 1 + 2 * 12 + 2
