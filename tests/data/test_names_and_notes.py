"""Names and folders as disks have them, and what files say about themselves."""

import os
import shutil
import struct
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import soundfile
from conftest import MINI, PESQ, ROOT, calculate, create, files_below, needs_pesq, run
from small_models import make_model, noise

from speech_enhancement.data.audio_files import SoundFinder, find_audio, first_sound, list_audio
from speech_enhancement.data.containers import WAV, notes
from speech_enhancement.data.mixtures import Mixture, draw_sounding, read_mixtures
from speech_enhancement.data.sound_file import opened
from speech_enhancement.errors import InputError
from speech_enhancement.files import replacing
from speech_enhancement.workspace import MOST_BYTES

SPEECH = MINI / "train_speech" / "en_allison_wrong.wav"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "model.keras")


def enhance(model, *flags):
    return run("main_dnn", "enhance", "--model", model, *flags)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


# --- Names ----------------------------------------------------------------------------------------


def test_names_may_be_as_long_as_the_file_system_takes(model, tmp_path):
    name = "з" * 125 + "x.wav"  # 255 bytes
    (tmp_path / "in").mkdir()
    shutil.copy(SPEECH, tmp_path / "in" / name)
    assert enhance(model, tmp_path / "in", "--output_dir", tmp_path / "out") == 0
    assert os.listdir(tmp_path / "out") == [name]
    assert (
        create(tmp_path / "ws", "test", tmp_path / "in")
        == calculate(tmp_path / "ws", "test", tmp_path / "in")
        == 0
    )
    names = [mixture.name for mixture in read_mixtures(str(tmp_path / "ws"), "test")]
    assert len(set(names)) == 2 and all(len(name.encode()) <= MOST_BYTES for name in names)


def test_a_shortened_name_is_the_same_everywhere_and_short_ones_are_kept():
    assert Mixture("a/b.wav", "c.flac", 0, 1).name == "a_b.c"
    long = Mixture("x" * 200 + ".wav", "y" * 100 + ".wav", 0, 1).name
    assert long == Mixture("x" * 200 + ".flac", "y" * 100 + ".ogg", 0, 1).name and long.startswith(
        "x" * 200 + ".y"
    )
    assert long != Mixture("x" * 200 + ".wav", "y" * 99 + "z.wav", 0, 1).name


@pytest.mark.parametrize("on_disk, in_list", [("NFD", "NFC"), ("NFC", "NFD")])
def test_two_encodings_of_one_name_are_one_name(tmp_path, on_disk, in_list):
    rows = {}
    for form in (on_disk, in_list):
        speech = tmp_path / form
        speech.mkdir()
        shutil.copy(SPEECH, speech / unicodedata.normalize(form, "Bär.wav"))
    (tmp_path / "list.txt").write_text(
        unicodedata.normalize(in_list, "Bär.wav\n"), encoding="utf-8"
    )
    for form in (on_disk, in_list):
        flags = ("--speech_list", tmp_path / "list.txt")
        assert create(tmp_path / f"ws_{form}", "train", tmp_path / form, None, *flags) == 0
        rows[form] = [
            mixture[1:] for mixture in read_mixtures(str(tmp_path / f"ws_{form}"), "train")
        ]
    assert rows[on_disk] == rows[in_list]  # the same draws
    assert (
        calculate(tmp_path / f"ws_{on_disk}", "train", tmp_path / in_list) == 0
    )  # a CSV from another machine


@pytest.mark.parametrize("name", ["a\tb.wav", "a\nb.wav", b"\xe9.wav"])
def test_names_that_fit_into_no_table_are_refused(tmp_path, name):
    with open(os.path.join(os.fsencode(tmp_path), os.fsencode(name)), "wb"):
        pass
    with pytest.raises(InputError, match="rename the file"):
        list_audio(str(tmp_path), "noise")


# --- Folders --------------------------------------------------------------------------------------


def test_the_names_do_not_depend_on_the_order_of_the_disk(tmp_path, monkeypatch):
    touch(tmp_path / "in", "z/a.wav", "z/deep/b.wav", "c.wav")
    (tmp_path / "in" / "a_link").symlink_to(tmp_path / "in" / "z")
    (tmp_path / "in" / "b_link").symlink_to(tmp_path / "in" / "z" / "deep")
    touch(tmp_path / "other", "d.wav")
    (tmp_path / "in" / "y_link").symlink_to(tmp_path / "other")
    (tmp_path / "in" / "x_link").symlink_to(tmp_path / "other")
    expected = ["c.wav", "x_link/d.wav", "z/a.wav", "z/deep/b.wav"]
    assert find_audio(str(tmp_path / "in"), "speech")[0] == expected
    scandir = os.scandir
    monkeypatch.setattr(
        "os.scandir", lambda path: sorted(scandir(path), key=lambda entry: entry.name, reverse=True)
    )
    assert find_audio(str(tmp_path / "in"), "speech")[0] == expected


def test_what_is_skipped_is_counted_in_one_line(tmp_path, capsys):
    touch(tmp_path, "a.wav", "b.m4a", "c.mp3", "d.MP3", "README", ".hidden.m4a")
    assert list_audio(str(tmp_path), "speech") == ["a.wav"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "4 files of other kinds skipped (2 .mp3, " in lines[0]
    assert "1 .m4a" in lines[0] and "1 no extension" in lines[0]


def test_a_folder_that_cannot_be_listed_is_named_and_the_rest_is_done(
    tmp_path, capsys, monkeypatch
):
    touch(tmp_path, "a/a.wav", "locked/b.wav")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)  # root may list everything
    assert list_audio(str(tmp_path), "noise") == ["a/a.wav"]
    assert "locked cannot be listed (Permission denied): skipped" in capsys.readouterr().out


def test_a_file_without_permission_is_told_as_that(tmp_path, monkeypatch):
    shutil.copy(SPEECH, tmp_path / "a.wav")

    def refusing(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refusing)
    with (
        pytest.raises(InputError, match=r"a\.wav cannot be read: no permission"),
        opened(str(tmp_path / "a.wav")),
    ):
        pass


def test_the_output_folder_in_the_input_folder_is_left_out(model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    shutil.copy(SPEECH, tmp_path / "a.wav")
    for flags in ((), ("--overwrite",)):
        assert enhance(model, tmp_path, "--output_dir", tmp_path / "cleaned", *flags) == 0
        assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.wav")] == [
            "a.wav",
            "cleaned/a.wav",
        ]
    assert (
        enhance(model, tmp_path / "empty", tmp_path / "a.wav", "--output_dir", tmp_path / "o") == 0
    )
    assert "empty holds no .wav" in capsys.readouterr().out


def test_two_runs_do_not_share_temporary_names_and_leftovers_are_removed(tmp_path):
    """A killed process leaves a file; one that runs keeps its own."""
    code = "import sys, os, time; from speech_enhancement.files import replacing; "
    code += "r = replacing(sys.argv[1]); open(r.__enter__(), 'w').close(); "
    code += "print('', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path / "a.wav")]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for process in runs:
            process.stdout.readline()
        assert len(os.listdir(tmp_path)) == 2
        runs[0].kill()
        runs[0].wait()
        with (
            replacing(str(tmp_path / ("b" * 251 + ".wav"))) as temporary,
            open(temporary, "w") as file,
        ):
            file.write("b")
        names = os.listdir(tmp_path)
        assert len(names) == 2 and sum(f"-{runs[1].pid}-" in name for name in names) == 1
    finally:
        for process in runs:
            process.kill()
            process.wait()
            process.stdout.close()


def test_leftovers_of_another_machine_are_kept(tmp_path):
    other = tmp_path / ".tmp-000000-4194305-0123456789ab.wav"  # no process has this number
    other.touch()
    with replacing(str(tmp_path / "a")) as temporary, open(temporary, "w") as file:
        file.write("a")
    assert sorted(os.listdir(tmp_path)) == [other.name, "a"]


@needs_pesq
def test_the_scripts_find_their_files_from_anywhere_and_through_links(tmp_path):
    (tmp_path / "e.py").symlink_to(ROOT / "evaluate.py")
    (tmp_path / "m.py").symlink_to(ROOT / "main_dnn.py")
    wave = str(SPEECH)
    command = [sys.executable, "e.py", "score", "--reference", wave, "--degraded", wave]
    assert subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout.startswith(
        b"pesq_raw_mos"
    )
    code = "import runpy; runpy.run_path('m.py'); "
    code += "from speech_enhancement.enhancement.enhance import SHIPPED_MODEL as m; print(m)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )
    assert os.path.isfile(found.stdout.strip()) and PESQ.parent == ROOT
    (tmp_path / "r").symlink_to(ROOT / "runme.sh")
    done = subprocess.run(
        ["./r"], cwd=tmp_path, env={**os.environ, "ITERATION": "x"}, capture_output=True, text=True
    )
    assert "expected a positive integer" in done.stderr
    text = (ROOT / "runme.sh").read_text()
    assert 'readlink -f "${BASH_SOURCE[0]}"' in text


# --- Noise with silence ---------------------------------------------------------------------------


def test_a_noise_with_silent_stretches_is_drawn_where_it_sounds(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "half").mkdir()
    half = np.concatenate([np.zeros(320_000), 0.1 * rng.standard_normal(320_000)])
    soundfile.write(tmp_path / "half" / "half.wav", half, 16000)
    click = np.zeros(3_000_000)
    click[2_345_678] = 0.5
    soundfile.write(tmp_path / "half" / "click.flac", click, 16000)
    for workspace in ("one", "two"):
        assert create(tmp_path / workspace, "test", None, tmp_path / "half") == 0
        assert calculate(tmp_path / workspace, "test", None, tmp_path / "half") == 0
    assert files_below(tmp_path / "one" / "mixture_csvs") == files_below(
        tmp_path / "two" / "mixture_csvs"
    )
    for mixture in read_mixtures(str(tmp_path / "one"), "test"):
        if mixture.noise_name == "click.flac":
            assert mixture.noise_onset <= 2_345_678 < mixture.noise_offset


def test_the_first_sound_of_a_noise_is_told_in_samples_at_16_khz(tmp_path):
    noise = np.zeros(4 * 48000)
    noise[-4800:] = 0.1
    path = str(tmp_path / "late.wav")
    soundfile.write(path, noise, 48000)
    assert first_sound(path, 0, 16000) is None
    assert first_sound(path, 0, 64000) == 64000 - 1600


def test_a_noise_that_sounds_only_at_its_end_gives_its_last_part(tmp_path):
    noise = np.zeros(3_000_000)
    noise[-10] = 0.5
    path = str(tmp_path / "late.flac")
    soundfile.write(path, noise, 16000)
    hear = SoundFinder().first_sound
    part = draw_sounding(hear, "s.wav", "late.flac", 16000, path, len(noise))
    assert part == (len(noise) - 16000, len(noise))


# --- Notes ----------------------------------------------------------------------------------------


def with_chunk(content: bytes, name: bytes, body: bytes, size=">I") -> bytes:
    """Put a chunk at the front of a WAV or AIFF."""
    chunk = name + struct.pack(size, len(body)) + body + bytes(len(body) % 2)
    (length,) = struct.unpack(size, content[4:8])
    return (
        content[:4] + struct.pack(size, length + len(chunk)) + content[8:12] + chunk + content[12:]
    )


def read_chunk(content: bytes, name: bytes, size: str) -> bytes:
    place = content.index(name)
    (length,) = struct.unpack(size, content[place + 4 : place + 8])
    return content[place + 8 : place + 8 + length]


@pytest.mark.parametrize("name", ["a.wav", "odd.wav", "a.rf64", "a.aiff"])
def test_chunks_about_a_recording_are_kept(model, tmp_path, name):
    size = ">I" if name.endswith("aiff") else "<I"
    kind = {"subtype": "PCM_24" if name == "odd.wav" else "PCM_16"}
    soundfile.write(tmp_path / name, noise(20_001), 16000, **kind)
    bodies = {
        b"bext": b"Interview 7".ljust(603, b"\0"),
        b"iXML": b"<BWFXML/>",
        b"cue ": struct.pack("<I", 0),
    }
    content = (tmp_path / name).read_bytes()
    if not name.endswith("rf64"):
        for chunk, body in bodies.items():
            content = with_chunk(content, chunk, body, size)
    else:  # behind the samples, where the length of the whole file is told elsewhere
        content += (
            bytes(len(content) % 2) + b"bext" + struct.pack("<I", 604) + bodies[b"bext"] + b"\0"
        )
        bodies = {b"bext": bodies[b"bext"] + b"\0"}
    (tmp_path / name).write_bytes(content)
    assert enhance(model, tmp_path / name, "--output_dir", tmp_path / "out") == 0
    written = (tmp_path / "out" / name).read_bytes()
    for chunk, body in bodies.items():
        assert written.count(chunk) == 1 and read_chunk(written, chunk, size) == body
    assert soundfile.info(tmp_path / "out" / name).frames == 20_001
    length = (
        struct.unpack("<Q", written[20:28])[0]
        if name.endswith("rf64")
        else struct.unpack(size, written[4:8])[0]
    )
    assert length == len(written) - 8 and len(written) % 2 == 0


def test_a_chunk_behind_an_odd_number_of_bytes_is_found(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(9001), 16000, subtype="PCM_24")
    content = path.read_bytes()
    assert len(content) % 2 == 0  # with the byte that fills up the chunk of samples
    path.write_bytes(content + b"bext" + struct.pack("<I", 604) + bytes(604))
    with opened(str(path)) as file:
        assert file.n_samples() == 9001 and not file.note
    with open(path, "rb") as file:
        assert [chunk.name for chunk in notes(file, WAV)] == [b"bext"]


def test_texts_are_kept_and_what_is_lost_is_said_once(model, tmp_path, capsys):
    for name in ("a.flac", "a.wav", "a.ogg"):
        with soundfile.SoundFile(tmp_path / name, "w", 16000, 1) as file:
            file.title = "Ein Título"
            file.write(noise(20_000))
    content = (tmp_path / "a.flac").read_bytes()  # a picture behind the first block
    (tmp_path / "a.flac").write_bytes(
        content[:42] + b"\x06" + (32).to_bytes(3, "big") + bytes(32) + content[42:]
    )
    names = [tmp_path / name for name in ("a.flac", "a.wav", "a.ogg")]
    assert enhance(model, *names, "--output_dir", tmp_path / "out") == 0
    assert capsys.readouterr().out.count("not copied to the output: picture") == 1
    for name in ("a.flac", "a.wav", "a.ogg"):
        with soundfile.SoundFile(tmp_path / "out" / name) as file:
            assert file.title == "Ein Título"
