"""Speech that is held out from training: of the very mixtures that were packed."""

import shutil

from conftest import expect_refusal, train, write_csv, write_recipe

from speech_enhancement.data.mixtures import read_mixtures


def test_a_csv_whose_rows_have_changed_since_packing_is_refused(prepared, tmp_path, capsys):
    workspace = shutil.copytree(prepared, tmp_path / "w")
    recipe = write_recipe(tmp_path / "small.toml", "original")
    flags = ("--recipe", recipe, "--n_iterations", 1, "--valid_fraction", 0.3)
    assert train(workspace, *flags) == 0
    capsys.readouterr()
    mixtures = read_mixtures(str(workspace), "train")
    write_csv(workspace, [tuple(mixture) for mixture in reversed(mixtures)])
    expect_refusal(capsys, train(workspace, *flags), "was packed from another train.csv")
