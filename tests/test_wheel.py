"The wheel holds everything that runs need, and works from an empty folder without the repository."

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

from tools import export


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "A wheel built from a copy, so that nothing left over in build/ can slip in."
    source = tmp_path_factory.mktemp("source")
    for name in (
        "setup.py",
        "pyproject.toml",
        "settings.ini",
        "MANIFEST.in",
        "LICENSE",
        "README.md",
    ):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "braintune_nb", source / "braintune_nb", ignore=shutil.ignore_patterns("__pycache__")
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "-w",
            "out",
            ".",
        ],
        cwd=source,
        check=True,
    )
    return next((source / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    """Function: arguments of Python -> what it prints, with only the unpacked wheel of ours, in
    an empty folder."""
    unpacked, empty = tmp_path_factory.mktemp("unpacked"), tmp_path_factory.mktemp("empty")
    zipfile.ZipFile(wheel).extractall(unpacked)
    environment = os.environ | {"PYTHONPATH": str(unpacked)}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run.folder = unpacked
    return run


def test_holds_modules_experiments_weights_and_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "braintune_nb").rglob("*.py")
        if "__pycache__" not in p.parts
    }
    for folder, pattern in export.COPIED:
        wanted |= {
            f"braintune_nb/{folder}/{p.as_posix()}"
            for p in export.sources(ROOT / "nbs", folder, pattern)
        }
    assert wanted - names == set() and any(n.endswith("licenses/LICENSE") for n in names)
    assert any(n.endswith("tune_text.ipynb") for n in names) and any(
        n.endswith(".safetensors") for n in names
    )
    assert not [n for n in names if n.split("/")[0] in ("tests", "tools", "nbs")]


def test_is_small(wheel):
    assert wheel.stat().st_size < 15e6


def test_declares_its_licence_and_command(wheel):
    content = zipfile.ZipFile(wheel)
    text = {
        n.rpartition("/")[2]: content.read(n).decode()
        for n in content.namelist()
        if ".dist-info/" in n
    }
    assert (
        "License-Expression: Apache-2.0" in text["METADATA"]
        and "braintune = braintune_nb.cli:main" in text["entry_points.txt"]
    )


def test_runs_in_an_empty_folder(elsewhere):
    where = elsewhere("-c", "import braintune_nb; print(braintune_nb.__file__)")
    assert where.startswith(str(elsewhere.folder))
    shown = elsewhere("-m", "braintune_nb.cli", "--help")
    for command in ("quickstart", "run", "check", "report"):
        assert command in shown


def test_finds_what_was_packed(elsewhere):
    code = (
        "from importlib.resources import files; p = files('braintune_nb'); print(*sorted(f.name for"
        " d in ('experiments', 'weights') for f in p.joinpath(d).iterdir()))"
    )
    assert {"tune_text.ipynb", "tiny_text"} <= set(elsewhere("-c", code).split())


def test_nothing_of_the_tool_chain_is_imported(elsewhere):
    "The installed package imports no nbdev and no fastcore: they are for development."
    code = (
        "import pkgutil, importlib, sys, braintune_nb\nfor m in"
        " pkgutil.walk_packages(braintune_nb.__path__, 'braintune_nb.'):\n    if not"
        " m.name.endswith('_modidx'):"
        " importlib.import_module(m.name)\nprint(sorted({n.split('.')[0] for n in sys.modules} &"
        " {'nbdev', 'fastcore', 'execnb', 'pytest', 'jupyter_book'}))"
    )
    assert elsewhere("-c", code).strip() == "[]"
