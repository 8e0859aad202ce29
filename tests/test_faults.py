"""Bad input, end to end: what a user meets who gives it to the shipped experiments and the shipped
model.

The ten kinds that the tutorial `3_when_something_is_wrong` shows are tested here and in the files
of their chapters (the folder is `tests/`):

* a TextGrid that stops in mid-file
    test_faults_data.py::test_textgrid_that_stops_in_mid_file
* a log whose triggers do not match the responses
    test_faults_data.py::test_log_whose_triggers_do_not_match_the_responses
* a participant without data, made and real
    test_faults_data.py::test_the_all_zero_participant_is_refused_by_name
    test_faults.py::test_s33_is_refused_by_name
* milliseconds for seconds
    test_faults_data.py::test_milliseconds_for_seconds
* a word table whose times run backwards
    test_faults_data.py::test_faulty_word_tables
* an unknown parameter
    test_cli.py::test_bad_parameters_run_nothing
    test_faults.py::test_unknown_parameter_of_a_shipped_experiment
* an output folder that holds a finished run
    test_cli.py::test_finished_folder_is_refused_before_anything_runs
    test_faults.py::test_finished_run_is_refused_by_every_command
* a backbone folder without weights
    test_text_features.py::test_a_folder_without_weights_is_refused
    test_faults.py::test_hollow_copy_of_the_shipped_model
* a tokenizer that does not fit its model
    test_text_features.py::test_a_tokenizer_that_does_not_fit_its_model_is_refused
    test_faults.py::test_foreign_tokenizer_beside_the_shipped_model
* a release that was changed
    test_release.py::test_what_was_changed_is_refused
"""

import re
import shutil
from pathlib import Path

import papermill
import pytest
from conftest import ROOT

from braintune_nb.cli import experiments, main
from braintune_nb.core import DataError, ModelError, Run
from braintune_nb.data.alice2016 import load_alice2016
from braintune_nb.model.backbone import load_backbone


def refusal(words, capsys):
    "(exit status, message) of a command that must not run anything."
    with pytest.raises(SystemExit) as stop:
        main(words)
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err and "next step:" in captured.err
    return stop.value.code, captured.err


@pytest.fixture
def nothing_runs(monkeypatch, tmp_path):
    "An empty working folder, and a failure if a notebook is executed."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        papermill, "execute_notebook", lambda *a, **k: pytest.fail("the notebook was run")
    )
    return tmp_path


def test_the_list_above_is_true():
    places = re.findall(r"(test_\w+\.py)::(test_\w+)", __doc__)
    assert len(places) == 15 and len(re.findall(r"^\* ", __doc__, flags=re.M)) == 10
    for file, name in places:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf8"), (file, name)


def test_the_tutorial_shows_ten():
    import nbformat

    cells = nbformat.read(ROOT / "nbs/tutorials/3_when_something_is_wrong.ipynb", 4).cells
    assert sum(c.source.startswith("## ") for c in cells if c.cell_type == "markdown") == 10
    shown = [c for c in cells if c.cell_type == "code" and "except " in c.source]
    assert len(shown) == 11 and all(
        len(c.outputs) == 1 and "next step" in c.outputs[0].text and "/tmp" not in c.outputs[0].text
        for c in shown
        if "alice2016" not in c.source
    )


def test_s33_is_refused_by_name(real_data):
    with pytest.raises(DataError) as caught:
        load_alice2016(real_data / "alice2016", participants=["s18", "s33"])
    assert (
        "participant s33 are constant" in caught.value.what
        and caught.value.found == "all zeros"
        and Path(caught.value.file).name == "s33-timecourses.txt"
        and caught.value.next_step
    )
    dataset = load_alice2016(real_data / "alice2016")
    assert (
        len(dataset.participants) == 22
        and "s33" not in dataset.participants
        and "s33" in dataset.notes[0]
    )


@pytest.mark.parametrize("name", sorted(experiments()))
def test_unknown_parameter_of_a_shipped_experiment(nothing_runs, capsys, name):
    wrong, right = ("sze", "size") if name == "demonstration" else ("sed", "seed")
    code, message = refusal(["run", name, "-p", wrong, "3", "--out", "r"], capsys)
    assert (
        code == 2
        and f"{name} has no parameter '{wrong}'" in message
        and f"did you mean '{right}'" in message
        and list(nothing_runs.iterdir()) == []
    )


@pytest.mark.parametrize(
    "name, value",
    [("epochs", "three"), ("learning_rate", "1e-4x"), ("motion", "perhaps"), ("knobs", "snr=1")],
)
def test_value_of_another_type_for_a_shipped_experiment(nothing_runs, capsys, name, value):
    code, message = refusal(["run", "tune_text", "-p", name, value], capsys)
    assert (
        code == 2
        and repr(value) in message
        and name in message
        and list(nothing_runs.iterdir()) == []
    )


@pytest.mark.parametrize(
    "command", [["quickstart"], *(["run", name] for name in sorted(experiments()))], ids=" ".join
)
def test_finished_run_is_refused_by_every_command(nothing_runs, capsys, command):
    Run.start(nothing_runs / "r", dict(seed=0)).finish({})
    before = {p.name: p.read_bytes() for p in (nothing_runs / "r").iterdir()}
    with pytest.raises(SystemExit) as stop:
        main([*command, "--out", "r"])
    assert stop.value.code == 1 and "finished run" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in (nothing_runs / "r").iterdir()} == before and [
        p.name for p in nothing_runs.iterdir()
    ] == ["r"]


def test_hollow_copy_of_the_shipped_model(tmp_path):
    shutil.copytree(
        load_backbone("tiny").folder,
        tmp_path / "hollow",
        ignore=shutil.ignore_patterns("*.safetensors"),
    )
    with pytest.raises(ModelError) as caught:
        load_backbone(tmp_path / "hollow")
    assert (
        "no weights" in caught.value.what
        and caught.value.file == tmp_path / "hollow"
        and "model.safetensors" in caught.value.next_step
    )


def test_foreign_tokenizer_beside_the_shipped_model(tmp_path):
    tiny = load_backbone("tiny")
    shutil.copytree(tiny.folder, tmp_path / "foreign")
    tiny.tokenizer.add_tokens([f"new{i}" for i in range(50)])
    tiny.tokenizer.save_pretrained(tmp_path / "foreign")
    with pytest.raises(ModelError) as caught:
        load_backbone(tmp_path / "foreign")
    rows = tiny.model.get_input_embeddings().num_embeddings
    assert (
        "does not fit its model" in caught.value.what
        and str(rows) in str(caught.value.expected)
        and str(len(tiny.tokenizer)) in str(caught.value.found)
    )
