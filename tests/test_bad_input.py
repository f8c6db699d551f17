"""Bad input: one line that names the file, exit status 2, nothing half-written."""

import contextlib
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import (
    MINI,
    PESQ,
    ROOT,
    calculate,
    calculate_pesq,
    create,
    expect_refusal,
    files_below,
    inference,
    needs_pesq,
    pack,
    run,
    run_process,
    scale,
    train,
    write_csv,
)

from speech_enhancement.workspace import model_path


@pytest.fixture
def workspace(tmp_path):
    return tmp_path / "workspace"


@pytest.fixture
def speech(tmp_path):
    """A folder with one good speech file."""
    folder = tmp_path / "speech"
    folder.mkdir()
    shutil.copy(MINI / "train_speech" / "en_allison_wrong.wav", folder / "good.wav")
    return folder


def test_a_missing_or_empty_folder(tmp_path, workspace, capsys):
    expect_refusal(
        capsys,
        create(workspace, "train", tmp_path / "nowhere"),
        tmp_path / "nowhere",
        "does not exist",
    )
    (tmp_path / "empty").mkdir()
    expect_refusal(
        capsys,
        create(workspace, "train", None, tmp_path / "empty"),
        tmp_path / "empty",
        "holds no .wav",
    )
    expect_refusal(
        capsys, create(workspace, "train", MINI / "SOURCES.txt"), "SOURCES.txt", "is a file"
    )
    assert not workspace.exists()


def write_truncated(path):
    soundfile.write(path, np.random.default_rng(0).uniform(-0.1, 0.1, 48000), 16000)
    content = path.read_bytes()
    path.write_bytes(content[:30000])


UNUSABLE = {
    "text": (lambda path: path.write_text("not a wave"), "not readable as audio"),
    "truncated": (write_truncated, "cut short"),
    "zero-length": (lambda path: path.write_bytes(b""), "not readable as audio"),
    "no-samples": (lambda path: soundfile.write(path, np.zeros(0), 16000), "no samples"),
    "one-sample": (lambda path: soundfile.write(path, np.ones(1), 16000), "too short"),
    "under-a-frame": (lambda path: soundfile.write(path, np.ones(511) / 2, 16000), "too short"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_speech_file_is_found_when_the_mixtures_are_listed(
    workspace, speech, capsys, kind
):
    make, message = UNUSABLE[kind]
    make(speech / f"{kind}.wav")
    expect_refusal(capsys, create(workspace, "train", speech), f"{kind}.wav", message)
    assert not workspace.exists()


UNMIXABLE = {
    "silent": (lambda path: soundfile.write(path, np.zeros(48000), 16000), "silent"),
    "nan": (
        lambda path: soundfile.write(path, np.full(48000, np.nan), 16000, subtype="FLOAT"),
        "NaN",
    ),
}


@pytest.mark.parametrize("kind", UNMIXABLE)
@pytest.mark.parametrize("where", ["speech", "noise"])
def test_silence_and_nan_are_found_when_mixing(tmp_path, workspace, speech, capsys, kind, where):
    make, message = UNMIXABLE[kind]
    noise = tmp_path / "noise"
    noise.mkdir()
    make((speech if where == "speech" else noise) / f"{kind}.wav")
    if where == "speech":
        shutil.copy(MINI / "train_noise" / "water.wav", noise)
    status = create(workspace, "test", speech, noise)  # which looks into the noises, for silence
    assert status == (2 if (where, kind) == ("noise", "nan") else 0)
    status = status or calculate(workspace, "test", speech, noise)
    expect_refusal(capsys, status, f"{kind}.wav", message)
    assert not [name for name in files_below(workspace) if f"{kind}" in name or "tmp" in name]


def test_more_noises_asked_for_than_there_are(workspace, capsys):
    expect_refusal(
        capsys,
        create(workspace, "train", None, None, "--magnification", 4),
        "magnification 4",
        "3 noises",
    )


def test_each_step_names_the_one_it_needs(workspace, capsys):
    plot = ("plot_training_stat", "--workspace", workspace, "--tr_snr", 0)
    stats = ("get_stats", "--workspace", workspace, "--te_snr", 0)
    expect_refusal(capsys, calculate(workspace), "train.csv is missing; run create_mixture_csv")
    expect_refusal(capsys, run("evaluate", *plot), "stats.csv is missing; run train")
    expect_refusal(capsys, run("evaluate", *stats), "scores.csv is missing; run calculate_pesq")
    expect_refusal(capsys, scale(workspace), "data.h5 is missing; run pack_features")
    create(workspace)
    create(workspace, "test")
    capsys.readouterr()
    expect_refusal(capsys, pack(workspace), ".npz is missing; run calculate_mixture_features")
    expect_refusal(capsys, inference(workspace, "--iteration", 1), "run calculate_mixture_features")
    calculate(workspace)
    pack(workspace)
    capsys.readouterr()
    expect_refusal(capsys, train(workspace), "scaler.npz is missing; run compute_scaler")
    scale(workspace)
    capsys.readouterr()
    expect_refusal(
        capsys, train(workspace), "data.h5 is missing; run pack_features --data_type test"
    )
    calculate(workspace, "test")
    capsys.readouterr()
    expect_refusal(
        capsys,
        inference(workspace, "--iteration", 1),
        "md_1iters.keras is missing; check its name, or run train first",
    )
    with contextlib.suppress(FileNotFoundError):
        assert not list((workspace / "models").rglob("*"))


@needs_pesq
def test_scoring_before_inference(workspace, capsys):
    create(workspace, "test")
    calculate(workspace, "test")
    capsys.readouterr()
    expect_refusal(capsys, calculate_pesq(workspace), ".enh.wav is missing; run inference")


def test_rows_of_a_hand_written_csv(workspace, capsys):
    good = ("en_allison_wrong.wav", "water.wav", 1000, 44514)
    cases = [
        ([good, good], "row 3", "row 2 too"),
        ([(*good[:2], 1000, 44513)], "expected 43514 samples"),
        ([(*good[:2], 60000, 103514)], "ends at 56000 samples"),
        ([(*good[:2], -1, 43513)], "row 2", "noise_onset"),
        ([(*good[:2], "1e3", 44514)], "row 2", "noise_onset"),
        ([good[:3]], "row 2: expected 4 fields, found 3"),
        ([("nowhere.wav", *good[1:])], "nowhere.wav is missing"),
        ([], "lists no mixture"),
    ]
    for rows, *words in cases:
        write_csv(workspace, rows)
        expect_refusal(capsys, calculate(workspace), *words)
    path = write_csv(workspace, [good])
    path.write_text("a,b\n")
    expect_refusal(capsys, calculate(workspace), "expected the tab-separated header")
    path.write_bytes(b"\xff\xfe\x00")
    expect_refusal(capsys, calculate(workspace), "not a UTF-8 CSV")


def test_two_pairs_with_one_output_name(tmp_path, workspace, capsys):
    write_csv(workspace, [("a.b.wav", "c.wav", 0, 1000), ("a.wav", "b.c.wav", 0, 1000)])
    expect_refusal(
        capsys, calculate(workspace), "a.b.wav with c.wav", "a.wav with b.c.wav", "a.b.c"
    )


@pytest.mark.parametrize(
    "flags", [("--n_concat", 4), ("--n_concat", 0), ("--n_concat", -1), ("--n_hop", 0)]
)
def test_windows_that_cannot_be(prepared, tmp_path, capsys, flags):
    workspace = shutil.copytree(prepared, tmp_path / "w")
    before = files_below(workspace)
    expect_refusal(capsys, pack(workspace, "train", 0, *flags), flags[0].strip("-"), flags[1])
    assert files_below(workspace) == before


def test_an_unknown_iteration_and_another_n_concat(trained, capsys):
    before = files_below(trained)
    expect_refusal(
        capsys, inference(trained, "--iteration", 7), "md_7iters.keras", "--iteration can be 4"
    )
    expect_refusal(
        capsys, inference(trained, "--iteration", 4, "--n_concat", 5), "n_concat 7", "--n_concat 5"
    )
    assert files_below(trained).keys() == before.keys()


@pytest.mark.parametrize("damage", ["text", "foreign"])
def test_a_file_that_is_no_model_of_ours(trained, tmp_path, capsys, damage):
    import keras

    workspace = shutil.copytree(trained, tmp_path / "w")
    path = model_path(str(workspace), "0db", 4)
    if damage == "text":
        with open(path, "w") as file:
            file.write("no model")
    else:
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(path)
    expect_refusal(
        capsys, inference(workspace, "--iteration", 4), path, "not a model of this program"
    )


def test_damaged_features_scaler_and_scores(prepared, tmp_path, capsys):
    workspace = shutil.copytree(prepared, tmp_path / "w")
    scaler = workspace / "packed_features/spectrogram/train/0db/scaler.npz"
    scaler.write_bytes(scaler.read_bytes()[:100])
    expect_refusal(capsys, train(workspace), "scaler.npz is damaged")
    features = next((workspace / "features/spectrogram/train/0db").iterdir())
    features.write_bytes(b"PK")
    expect_refusal(capsys, pack(workspace), features.name, "run calculate_mixture_features")
    scores = workspace / "scores/test/0db/scores.csv"
    scores.parent.mkdir(parents=True)
    scores.write_text(
        "speech_name,noise_name,signal,pesq_raw_mos,pesq_nb_mos_lqo,pesq_wb_mos_lqo,stoi\na,b,noisy,x,,,\n"
    )
    stats = ("get_stats", "--workspace", workspace, "--te_snr", 0)
    expect_refusal(capsys, run("evaluate", *stats), "row 2: expected a number, found 'x'")


@needs_pesq
def test_clean_speech_that_is_not_that_of_the_mixtures(trained, tmp_path, capsys):
    for path in (MINI / "test_speech").iterdir():
        soundfile.write(tmp_path / path.name, soundfile.read(path)[0][:20000], 16000)
    expect_refusal(capsys, calculate_pesq(trained, speech=tmp_path), "check --speech_dir")
    expect_refusal(capsys, calculate_pesq(trained, speech=MINI / "train_speech"), "is missing")


@needs_pesq
def test_waves_that_cannot_be_scored_keep_a_row_and_too_many_are_an_error(
    trained, tmp_path, capsys
):
    workspace = shutil.copytree(trained, tmp_path / "w")
    path = workspace / "enh_wavs/test/0db/ru_ivrvoice_nobody.vinyl.enh.wav"
    soundfile.write(path, np.zeros(soundfile.info(path).frames), 16000, subtype="FLOAT")
    status = calculate_pesq(workspace)
    captured = capsys.readouterr()
    lines = (workspace / "scores/test/0db/scores.csv").read_text().splitlines()
    assert "ru_ivrvoice_nobody.wav,vinyl.wav,enhanced" + 8 * "," in lines
    assert status == 2 and "1 of 4 enhanced waves could not be scored" in captured.err
    assert (
        "not scored: enhanced ru_ivrvoice_nobody.vinyl" in captured.out
        and "is silent" in captured.out
    )


def test_losses_that_are_no_numbers_stop_the_training(prepared, tmp_path, capsys):
    workspace = shutil.copytree(prepared, tmp_path / "w")
    status = train(workspace, "--n_iterations", 3, "--eval_every", 1, "--lr", "1e30")
    expect_refusal(capsys, status, "no longer finite", "lower --lr")


def test_one_byte_changed_in_a_model(trained, tmp_path, capsys):
    workspace = shutil.copytree(trained, tmp_path / "w")
    path = model_path(str(workspace), "0db", 4)
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 255]))
    expect_refusal(capsys, inference(workspace, "--iteration", 4), path, "is damaged")


def test_a_pesq_that_does_not_run(trained, tmp_path, capsys):
    (tmp_path / "pesq").write_text("not a program")
    (tmp_path / "pesq").chmod(0o755)
    expect_refusal(
        capsys, calculate_pesq(trained, "--pesq", tmp_path / "pesq"), "does not run on this machine"
    )


def test_a_folder_linked_into_itself_is_listed_once(speech, workspace):
    (speech / "self").symlink_to(speech)
    assert create(workspace, "train", speech) == 0
    assert len((workspace / "mixture_csvs" / "train.csv").read_text().splitlines()) == 2


def mount_small_disk(folder, size):
    """Mount a small disk, or skip where we may not."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 700 kB; the waves and features of one mini mixture need 660 kB."""
    folder = tmp_path / "disk"
    mount_small_disk(folder, "700k")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk, prepared, capsys):
    workspace = small_disk / "w"
    assert create(workspace) == 0
    capsys.readouterr()
    status = calculate(workspace)
    expect_refusal(capsys, status, "the disk is full", workspace)
    assert not [name for name in files_below(workspace) if "tmp" in name]


@pytest.mark.parametrize("step", ["pack", "train", "inference", "scores"])
def test_a_disk_that_is_full_for_one_file(small_disk, trained, tmp_path, capsys, step):
    workspace = shutil.copytree(trained, tmp_path / "w")
    name = {
        "pack": "packed_features/spectrogram/train",
        "train": "models",
        "inference": "enh_wavs",
        "scores": "scores",
    }
    folder = workspace / name[step]
    shutil.rmtree(folder, ignore_errors=True)
    (small_disk / "fill").write_bytes(bytes(600_000))
    folder.symlink_to(small_disk)
    if step == "pack":
        status = pack(workspace)
    elif step == "train":
        status = train(workspace, "--n_iterations", 1)
    elif step == "inference":
        status = inference(workspace, "--iteration", 4)
    else:
        if not PESQ.exists():
            pytest.skip("./pesq is not built")
        with contextlib.suppress(OSError):
            (small_disk / "fill2").write_bytes(bytes(700_000))
        status = calculate_pesq(workspace)
    expect_refusal(capsys, status, "the disk is full")
    assert not [name for name in files_below(small_disk) if "tmp" in name]


def test_a_read_only_workspace(small_disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    expect_refusal(capsys, create(small_disk / "w"), small_disk, "read-only")
    expect_refusal(capsys, create(small_disk), small_disk, "read-only")


def test_a_file_where_the_workspace_should_be(tmp_path, capsys):
    (tmp_path / "w").write_text("")
    expect_refusal(capsys, create(tmp_path / "w"), "a file is where a folder must be")


def test_a_bug_keeps_its_traceback(tmp_path):
    code = "import sys, prepare_data; from speech_enhancement.data import audio_files; "
    code += "audio_files.list_audio = lambda *a: 1 / 0; sys.exit(prepare_data.main(sys.argv[1:]))"
    folders = ("--workspace", tmp_path, "--speech_dir", tmp_path, "--noise_dir", tmp_path)
    command = [sys.executable, "-c", code, "create_mixture_csv", *folders, "--data_type", "test"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (
        result.returncode == 1
        and "ZeroDivisionError" in result.stderr
        and "Traceback" in result.stderr
    )


@pytest.mark.parametrize(
    "script, flags",
    [
        ("prepare_data", ("create_mixture_csv", "--data_type", "dev")),
        ("prepare_data", ("calculate_mixture_features", "--snr", "nan")),
        ("main_dnn", ("train", "--lr", "-1")),
        ("main_dnn", ("train", "--batch_size", "0")),
        ("evaluate", ("nothing",)),
    ],
)
def test_flags_that_cannot_be(script, flags):
    result = run_process(script, *flags)
    assert result.returncode == 2 and "usage:" in result.stderr and "Traceback" not in result.stderr
