"""--speech_list and --noise_list of create_mixture_csv, through the command."""

import pytest
from conftest import MINI, create, expect_refusal

from speech_enhancement.data.audio_files import list_audio
from speech_enhancement.data.mixtures import read_mixtures

SPEECH = sorted(path.name for path in (MINI / "train_speech").iterdir())
NOISE = sorted(path.name for path in (MINI / "train_noise").iterdir())


def names_used(workspace):
    mixtures = read_mixtures(str(workspace), "train")
    return (
        sorted({mixture.speech_name for mixture in mixtures}),
        sorted({mixture.noise_name for mixture in mixtures}),
    )


def write_list(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_only_what_the_lists_name_is_mixed(tmp_path, capsys):
    speech = write_list(tmp_path / "speech.txt", "# two of them", SPEECH[2], "", SPEECH[0])
    noise = write_list(tmp_path / "noise.txt", NOISE[1])
    flags = ("--speech_list", speech, "--noise_list", noise)
    assert create(tmp_path, "train", None, None, *flags) == 0
    assert names_used(tmp_path) == ([SPEECH[0], SPEECH[2]], [NOISE[1]])
    assert "speech.txt: 2 of 2 names found" in capsys.readouterr().out


@pytest.mark.parametrize("flag, number", [("--speech_list", 0), ("--noise_list", 1)])
def test_each_list_concerns_its_own_folder(tmp_path, flag, number):
    everything = (SPEECH, NOISE)
    listed = write_list(tmp_path / "list.txt", everything[number][0])
    assert create(tmp_path, "train", None, None, "--magnification", 1, flag, listed) == 0
    used = names_used(tmp_path)
    assert used[number] == [everything[number][0]]
    assert create(tmp_path, "train", None, None, "--magnification", len(NOISE)) == 0
    assert names_used(tmp_path) == everything
    if flag == "--speech_list":
        assert len(read_mixtures(str(tmp_path), "train")) == len(SPEECH) * len(NOISE)


def test_noises_are_drawn_among_the_listed_ones(tmp_path, capsys):
    listed = write_list(tmp_path / "noise.txt", *NOISE[:2])
    flags = ("--noise_list", listed, "--magnification")
    assert create(tmp_path, "train", None, None, *flags, 2) == 0
    assert names_used(tmp_path) == (SPEECH, NOISE[:2])
    capsys.readouterr()
    status = create(tmp_path, "train", None, None, *flags, 3)
    expect_refusal(capsys, status, "magnification 3", "2 noises")


def test_names_that_are_not_there_are_said(tmp_path, capsys):
    listed = write_list(tmp_path / "list.txt", SPEECH[0], "nobody.wav")
    assert create(tmp_path, "train", None, None, "--speech_list", listed) == 0
    output = capsys.readouterr().out
    assert "1 of 2 names found" in output and "nobody.wav" in output
    assert names_used(tmp_path)[0] == [SPEECH[0]]


@pytest.mark.parametrize("flag", ["--speech_list", "--noise_list"])
def test_lists_of_no_use(tmp_path, capsys, flag):
    listed = tmp_path / "list.txt"
    for content, message in (
        (None, "is missing"),
        (b"nobody.wav\n", "names none"),
        (b"\xff", "UTF-8"),
    ):
        if content is not None:
            listed.write_bytes(content)
        status = create(tmp_path / "w", "train", None, None, flag, listed)
        expect_refusal(capsys, status, listed, message)
    assert not (tmp_path / "w").exists()


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path):
    listed = write_list(tmp_path / "list.txt", "\ufeff" + NOISE[0])
    assert list_audio(str(MINI / "train_noise"), "noise", str(listed)) == [NOISE[0]]


def test_a_name_in_another_case_is_found_and_the_exact_one_preferred(tmp_path):
    for name in ("SA1.WAV", "sa2.wav", "SA2.wav"):
        (tmp_path / name).touch()
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system does not tell the case of letters apart")
    listed = write_list(tmp_path / "list.txt", "sa1.wav", "SA2")
    assert list_audio(str(tmp_path), "speech", str(listed)) == ["SA1.WAV", "SA2.wav"]
