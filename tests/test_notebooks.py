"Every chapter and every tutorial runs from top to bottom, by nbdev's own runner."

import os
from configparser import ConfigParser

import pytest
from conftest import ROOT

from tools.outputs import notebooks

SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf8")


@pytest.fixture
def same_process():
    """What a chapter may change in this process is put back: folder, environment, figures,
    search path."""
    import sys

    folder, environment, path = os.getcwd(), dict(os.environ), list(sys.path)
    yield
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.mark.parametrize("notebook", notebooks(), ids=lambda p: p.stem)
def test_runs(notebook, same_process, capsys):
    from nbdev.test import test_nb

    passed, _ = test_nb(
        notebook, skip_flags=SETTINGS["DEFAULT"]["tst_flags"].split(), basepath=ROOT
    )
    if not passed:
        pytest.fail(capsys.readouterr().err[-6000:], pytrace=False)


def test_the_runner_sees_a_failing_cell(tmp_path, same_process, capsys):
    import nbformat
    from nbdev.test import test_nb

    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 + 1 == 3")])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nb, tmp_path / "wrong.ipynb")
    passed, _ = test_nb(tmp_path / "wrong.ipynb")
    assert not passed and "AssertionError" in capsys.readouterr().err
