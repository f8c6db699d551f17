"""The order of the house: which way imports point, and how much is in one place."""

import ast

import pytest
from conftest import ROOT

PACKAGE = "speech_enhancement"
TOP = {"config", "spectrogram_to_wave"}  # what the package may import from the top level
OWN = TOP | {PACKAGE}
MAY_IMPORT = {  # by folder of the package, which folders beside itself
    PACKAGE: OWN,
    "data": OWN,
    "network": OWN | {"data"},
    "training": OWN | {"data", "network"},
    "enhancement": OWN | {"data", "network"},
    "evaluation": OWN | {"data"},
}
SOURCES = sorted(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0][0] != ".")
CODE = [path for path in SOURCES if "tests" not in path.relative_to(ROOT).parts]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def rooms_imported(path):
    """Yield the room of each module of ours that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module or PACKAGE}.{name}" for name in names]
        for module in names:
            first, *rest = module.split(".")
            if first == PACKAGE:
                yield rest[0] if rest and rest[0] in MAY_IMPORT else PACKAGE
            elif (ROOT / f"{first}.py").exists():
                yield first


@pytest.mark.parametrize("path", sorted((ROOT / PACKAGE).rglob("*.py")), ids=name_of)
def test_imports_point_one_way(path):
    room = path.parent.name
    assert set(rooms_imported(path)) <= MAY_IMPORT[room] | {room}


def test_the_top_level_shows_what_a_user_runs():
    names = sorted(path.stem for path in ROOT.glob("*.py"))
    assert names == ["config", "evaluate", "main_dnn", "prepare_data", "spectrogram_to_wave"]


def test_no_file_is_long():
    lengths = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_function_has_many_arguments():
    functions = [
        (
            name_of(path),
            node.name,
            len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs),
        )
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    assert [function for function in functions if function[2] > 8] == []
