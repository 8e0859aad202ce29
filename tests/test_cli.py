"""The command, as a user types it, in an empty folder: strict parameters, live output, clean
failures, continuing."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from braintune_nb import cli
from braintune_nb.cli import experiments, known_parameters, main, parse_value
from braintune_nb.core import ParameterError, RunError

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 900  # s until a command counts as hanging; how long one takes is the machine's affair
PARAMETERS = """seed: int = 0  # feeds every generator
rate: float = 0.5  # step = speed
layers: list[int] = [1, 2]  # which layers
label: str | None = None  # a word
motion: bool = True  # a switch
out: str = ""  # folder of the run"""
BODY = """import os, sys, time, tqdm.auto
from braintune_nb.core import DataError, ParameterError, Run, note_read
if label == "early": raise ParameterError("No such label", place="label")
run = Run.start(out)
if label == "refused": raise ParameterError("No such label", place="label")
if label == "unread": raise DataError("The file is broken", file="data.txt")
if os.path.exists("data.txt"): note_read("data.txt")
print("in", os.getcwd(), flush=True)
if not run.done("one"):
    with run.stage("one"): run.path("one.txt").write_text(sys.executable)
    print("stage one", flush=True)
if label == "bad" and not os.path.exists("mended"):
    raise DataError("The file is broken", file="a.txt", next_step="mend it")
if label == "late": raise ParameterError("No such label", place="label")
if label == "full": raise OSError(28, "No space left on device", "scores.npz")
if label == "rust": raise RuntimeError("IoError(Os { code: 28, kind: StorageFull })")
if label == "escape": print("story \\x1b]0;owned\\x07 \\x1b[2J", flush=True)
if label == "escape": raise DataError("Bad", file="a\\x1b[2Jb", found="\\x9b1m")
if label == "bug": 1/0
if label == "dies": os.kill(os.getpid(), 9)
if label == "slow": time.sleep(1800)
for _ in tqdm.auto.tqdm(range(3), desc="epochs"): pass
run.finish(dict(seed=seed, layers=layers, motion=motion))"""


@pytest.fixture
def here(tmp_path):
    cells = [
        new_markdown_cell("# Tiny\n\n> A tiny experiment."),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(BODY),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "tiny.ipynb")
    return tmp_path


def hear_interrupts():
    "A process in the background of a shell ignores SIGINT, and so would all that it starts."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(here, *words, **env):
    return subprocess.Popen(
        [sys.executable, "-m", "braintune_nb.cli", *map(str, words)],
        cwd=here,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=hear_interrupts,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **env},
    )


def braintune(here, *words, **env):
    process = start(here, *words, **env)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def test_run_from_an_empty_folder(here):
    code, out, err = braintune(
        here,
        "run",
        "tiny.ipynb",
        "-p",
        "seed",
        7,
        "-p",
        "layers",
        "3,4",
        "-p",
        "motion",
        "no",
        "--out",
        "deep/result",
    )
    assert code == 0, err
    folder = here / "deep" / "result"
    assert json.loads((folder / "summary.json").read_text()) | {
        "seconds": 0,
        "peak_memory_mb": 0,
    } == {"seed": 7, "layers": [3, 4], "motion": False, "seconds": 0, "peak_memory_mb": 0}
    assert (
        folder / "one.txt"
    ).read_text() == sys.executable  # this Python, not some kernel called python3
    assert f"in {here}" in out and "stage one" in out and str(folder) in out
    assert (
        "epochs" in err and "Warning" not in err and "WARN" not in err
    )  # the bar as text, and no noise
    assert any("seed = 7" in c.source for c in nbformat.read(folder / "notebook.ipynb", 4).cells)
    assert sorted(p.name for p in here.iterdir()) == ["deep", "tiny.ipynb"]  # nothing left behind


def test_a_kernel_called_python3_of_another_python_is_not_used(here):
    spec = here / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false"], "display_name": "other", "language": "python"})
    )
    code, _, err = braintune(
        here, "run", "tiny.ipynb", "--out", "r", JUPYTER_PATH=str(here / "jupyter")
    )
    assert code == 0, err


@pytest.mark.parametrize(
    "words, message",
    [
        (("-p", "sede", "7"), "did you mean 'seed'?"),
        (("-p", "zzz", "7"), "seed, rate, layers, label, motion"),
        (("-p", "seed", "7.5"), "'7.5'"),
        (("-p", "rate", "fast"), "float, e.g. 0.5"),
        (("-p", "layers", "a"), "list[int]"),
        (("-p", "motion", "2"), "bool"),
        (("-p", "out", "x"), "--out DIR"),
        (("-p", "seed", "1", "-p", "seed", "2"), "given twice"),
        (("-p", "seed", "--out", "x"), "without a value"),
        (("-p",), "without a name"),
    ],
)
def test_bad_parameters_run_nothing(here, monkeypatch, capsys, words, message):
    monkeypatch.chdir(here)
    with pytest.raises(SystemExit) as stop:
        main(["run", "tiny.ipynb", *words])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert [p.name for p in here.iterdir()] == ["tiny.ipynb"]


def test_papermill_itself_would_let_them_pass(here):
    """Why the names are checked: papermill runs on, with the notebook's own values, and loses
    parameters whose type has a bar."""
    notebook = nbformat.read(here / "tiny.ipynb", 4)
    notebook.metadata.kernelspec = {
        "name": "python3",
        "display_name": "Python",
        "language": "python",
    }
    nbformat.write(notebook, here / "tiny.ipynb")
    papermill.execute_notebook(
        str(here / "tiny.ipynb"),
        None,
        {"sede": 7, "out": str(here / "r")},
        cwd=str(here),
        progress_bar=False,
        prepare_only=True,
    )
    theirs, ours = (
        papermill.inspect_notebook(str(here / "tiny.ipynb")),
        known_parameters(here / "tiny.ipynb"),
    )
    assert set(ours) - set(theirs) == {"label", "rate"}
    for name, p in theirs.items():
        assert (ours[name]["type"], ours[name]["help"]) == (p["inferred_type_name"], p["help"])


def test_finished_folder_is_refused_before_anything_runs(here, monkeypatch, capsys):
    (here / "r").mkdir()
    (here / "r" / "run.json").write_text("{}")
    monkeypatch.chdir(here)
    monkeypatch.setattr(
        papermill, "execute_notebook", lambda *a, **k: pytest.fail("the notebook was run")
    )
    with pytest.raises(SystemExit) as stop:
        main(["run", "tiny.ipynb", "--out", "r"])
    captured = capsys.readouterr()
    assert (
        stop.value.code == 1
        and "finished run" in captured.err
        and "--out" in captured.err
        and captured.out == ""
    )


def test_failure_is_a_message_and_the_same_command_continues(here):
    words = ("run", "tiny.ipynb", "-p", "label", "bad", "--out", "r")
    code, out, err = braintune(here, *words)
    assert code == 1 and "Traceback" not in err
    assert err.splitlines()[:3] == [
        "braintune: The file is broken",
        "  file: a.txt",
        "  next step: mend it",
    ]
    assert (
        (here / "r.partial" / "one.txt").exists()
        and (here / "r.partial" / "notebook.ipynb").exists()
        and not (here / "r").exists()
    )
    code, _, err = braintune(here, "run", "tiny.ipynb", "-p", "label", "other", "--out", "r")
    assert code == 1 and "other parameters" in err and "label='bad'" in err
    (here / "mended").touch()
    code, out, err = braintune(here, *words)
    assert code == 0 and "stage one" not in out, err  # it was not done twice
    assert (here / "r" / "summary.json").exists() and not (here / "r.partial").exists()


def test_a_bug_shows_its_traceback_only_on_request(here):
    code, _, err = braintune(here, "run", "tiny.ipynb", "-p", "label", "bug", "--out", "r")
    assert code == 1 and "ZeroDivisionError" in err and "--debug" in err and "Traceback" not in err
    code, _, err = braintune(
        here, "run", "tiny.ipynb", "-p", "label", "bug", "--out", "r", "--debug"
    )
    assert code == 1 and "1/0" in err


def test_a_kernel_that_does_not_start_is_said_so(here, monkeypatch):
    def execute(*args, **settings):
        assert settings["start_timeout"] == 600
        raise RuntimeError("Kernel didn't respond in 600 seconds")

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    with pytest.raises(RunError, match="did not start") as error:
        cli.run_experiment(here / "tiny.ipynb", {}, here / "r")
    assert error.value.found == "Kernel didn't respond in 600 seconds"
    assert not (here / "r.partial").exists()


def test_a_killed_kernel_is_said_so(here):
    code, _, err = braintune(here, "run", "tiny.ipynb", "-p", "label", "dies", "--out", "r")
    assert (
        code == 1
        and "killed" in err
        and "Traceback" not in err
        and (here / "r.partial" / "one.txt").exists()
    )


def test_output_is_live_and_an_interrupt_leaves_no_kernel(here):
    process = start(here, "run", "tiny.ipynb", "-p", "label", "slow", "--out", "r")
    lines = []
    while "stage one\n" not in lines:
        lines.append(process.stdout.readline())  # arrives while the notebook sleeps
    assert process.poll() is None
    owner = json.loads((here / "r.partial" / ".lock.json").read_text())["pid"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    for _ in range(10 * PATIENCE):
        if not Path(f"/proc/{owner}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{owner}").exists() and (here / "r.partial" / "one.txt").exists()


def test_help_is_quick_and_light(here):
    took = []
    for _ in range(3):
        began = time.perf_counter()
        code, out, _ = braintune(here, "--help")
        took.append(time.perf_counter() - began)
    assert code == 0 and all(
        word in out for word in ("quickstart", "run", "list", "check", "report")
    )
    assert min(took) < 2  # 0.4 s on an idle machine
    light = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "import sys, braintune_nb.cli; print([m for m in ('torch', 'pandas', 'matplotlib',"
                " 'papermill', 'transformers') if m in sys.modules])"
            ),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert light.stdout.strip() == "[]", light.stderr


def test_small_commands(here, capsys, monkeypatch):
    from braintune_nb import __version__

    monkeypatch.chdir(here)

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            main(list(words))
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    assert call("--version")[:2] == (0, __version__ + "\n")
    code, out, _ = call("list")
    assert code == 0 and all(name in out for name in experiments())
    code, out, _ = call("run", "tiny.ipynb", "--help-parameters")
    assert code == 0 and "step = speed" in out and "str | None" in out
    assert call("run", "nonsense")[0] == 2
    code, _, err = call("check", "alice", ".")
    assert code == 2 and "did you mean alice2016" in err
    code, _, err = call("check", "alice2016", "absent")
    assert code == 1 and "does not exist" in err
    code, _, err = call("report", ".")
    assert code == 1 and "no finished run" in err


def test_check_counts_errors(here, monkeypatch, capsys):
    from types import SimpleNamespace

    import braintune_nb.cli as cli

    found = [
        "UTS01 lacks 2 of 9 stories",
        {"severity": "warning", "file": "s33.csv", "what": "All rows are zero"},
        {"severity": "note", "file": "b", "what": "22 usable participants"},
    ]
    monkeypatch.setattr(
        cli, "import_module", lambda name: SimpleNamespace(check_lebel2023=lambda folder: found)
    )
    with pytest.raises(SystemExit) as stop:
        main(["check", "lebel2023", str(here)])
    out = capsys.readouterr().out
    assert (
        stop.value.code == 1
        and "1 error, 2 other findings" in out
        and "All rows are zero" in out
        and "s33.csv" in out
        and "lacks 2 of 9" in out
    )
    found[:] = found[1:]
    with pytest.raises(SystemExit) as stop:
        main(["check", "lebel2023", str(here)])
    assert (stop.value.code or 0) == 0


@pytest.mark.parametrize("dataset", ["lebel2023", "bilingual", "alice2016"])
def test_check_of_an_empty_folder_is_an_error(here, monkeypatch, capsys, dataset):
    "The real checkers, through the real command."
    (here / "data").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["check", dataset, str(here / "data")])
    assert stop.value.code == 1 and "0 errors" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "kind, text, value",
    [
        ("int", "-3", -3),
        ("float", "2", 2.0),
        ("bool", "off", False),
        ("str", "1", "1"),
        ("str | None", "none", None),
        ("int | str", "4", 4),
        ("int | str", "x4", "x4"),
        ("list[float]", "1,2.5", [1.0, 2.5]),
        ("list[str]", "['a,b', 'c']", ["a,b", "c"]),
        ("tuple[int, ...]", "(1, 2)", [1, 2]),
        ("dict", "{'a': 1}", {"a": 1}),
        ("Literal['fixed', 'paper']", "paper", "paper"),
        ("list[int] | None", "None", None),
        ("list[int]", "", []),
    ],
)
def test_values(kind, text, value):
    got = parse_value("x", text, {"type": kind, "default": "0", "help": ""})
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "kind, text",
    [
        ("int", "1e3"),
        ("int", ""),
        ("float", "nan"),
        ("float", "inf"),
        ("float", "1,5"),
        ("bool", "1"),
        ("Literal['a']", "b"),
        ("list[int]", "1;2"),
        ("list[int]", "[1, 2"),
        ("dict", "[1]"),
        ("None", "x"),
        ("Path", "x"),
        ("int", "__import__('os')"),
    ],
)
def test_values_refused(kind, text):
    with pytest.raises(ParameterError):
        parse_value("x", text, {"type": kind, "default": "0", "help": ""})


# ---- where a run lies, who works there, and what stays when it fails


def test_a_refused_parameter_leaves_nothing_and_the_corrected_command_works(here):
    for label in ("early", "refused", "unread", "late"):
        words = ("run", "tiny.ipynb", "-p", "label", label, "--out", "deep/r")
        code, _, err = braintune(here, *words)
        assert code == (1 if label == "unread" else 2), err
        assert "kept for a second try" not in err and "Traceback" not in err
        assert [p.name for p in here.iterdir()] == ["tiny.ipynb"], label
    code, _, err = braintune(here, "run", "tiny.ipynb", "--out", "deep/r")
    assert code == 0, err
    names = ["notebook.ipynb", "one.txt", "run.json", "summary.json"]
    assert sorted(p.name for p in (here / "deep/r").iterdir()) == names


def test_the_record_holds_the_notebooks_own_parameters(here):
    code, _, err = braintune(here, "run", "tiny.ipynb", "-p", "layers", "5", "--out", "r")
    assert code == 0, err
    assert json.loads((here / "r/run.json").read_text())["parameters"] == {
        "seed": 0,
        "rate": 0.5,
        "layers": [5],
        "label": None,
        "motion": True,
    }


@pytest.mark.parametrize("label", ["full", "rust"])
def test_a_full_disk_is_said_so_and_the_same_command_continues(here, label):
    code, _, err = braintune(here, "run", "tiny.ipynb", "-p", "label", label, "--out", "r")
    assert code == 1 and err.startswith("braintune: The disk is full"), err
    assert "Traceback" not in err and "kept for a second try" in err
    assert (here / "r.partial/one.txt").exists()


def test_nothing_a_file_holds_is_obeyed_by_the_terminal(here):
    code, out, err = braintune(here, "run", "tiny.ipynb", "-p", "label", "escape", "--out", "r")
    assert code == 1
    for text in (out, err):
        assert not {"\x1b", "\x07", "\x9b"} & set(text.replace("\x1b[A", ""))
    assert "story \\x1b]0;owned\\x07 \\x1b[2J" in out and "a\\x1b[2Jb" in err


def test_names_of_folders_are_shown_and_not_obeyed(tmp_path, monkeypatch, capsys):
    odd = tmp_path / "da\x1b[31mta"
    (odd / "derivative").mkdir(parents=True)

    def check(folder):
        said = warnings.formatwarning(f"{folder}: silent", UserWarning, "a.py", 1, "")
        print(said, file=sys.stderr)
        return [f"{folder} is odd"]

    monkeypatch.setattr(cli, "_data_function", lambda module, name: check)
    before = warnings.formatwarning
    with pytest.raises(SystemExit):
        main(["check", "lebel2023", str(odd)])
    out, err = capsys.readouterr()
    assert "da\\x1b[31mta" in out.replace("\n", "") and "da\\x1b[31mta: silent" in err
    assert "\x1b" not in out + err and warnings.formatwarning is before


def test_places_that_cannot_be_a_run_are_refused_at_once(here, monkeypatch, capsys):
    (here / "file").write_text("x")
    (here / "big").mkdir()
    (here / "link").symlink_to("big")
    (here / "mine.partial").mkdir()
    (here / "mine.partial/thesis.txt").write_text("precious")
    before = sorted(here.rglob("*"))
    monkeypatch.chdir(here)
    monkeypatch.setattr(
        papermill, "execute_notebook", lambda *a, **k: pytest.fail("the notebook was run")
    )
    for out, message in {
        "file/sub": "below a file",
        "file/deep/sub": "below a file",
        "link": "cannot be a link",
        "mine": "no unfinished run",
        "x" * 250: "too long",
    }.items():
        with pytest.raises(SystemExit) as stop:
            main(["run", "tiny.ipynb", "--out", out])
        assert stop.value.code == 1 and message in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before


def test_a_second_command_is_refused_at_once_and_a_killed_one_is_taken_over(here):
    words = ("run", "tiny.ipynb", "-p", "label", "slow", "--out", "r")
    first = start(here, *words)
    while not (here / "r.partial/.command.json").exists():
        time.sleep(0.02)  # the notebook has not begun yet
    code, out, err = braintune(here, *words)
    assert code == 1 and out == "" and f"process {first.pid}" in err, err
    while first.stdout.readline() != "stage one\n":
        pass
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    code, out, err = braintune(here, "run", "tiny.ipynb", "-p", "label", "other", "--out", "r")
    assert code == 1 and "other parameters" in err and "working on" not in err
    again = start(here, *words)
    while not again.stdout.readline().startswith("in "):
        pass  # the notebook goes on in the folder
    os.killpg(again.pid, signal.SIGKILL)
    assert "stage one" not in again.communicate()[0]


def test_data_that_change_between_two_tries_are_refused_by_name(here):
    (here / "data.txt").write_text("noise")
    words = ("run", "tiny.ipynb", "-p", "label", "bad", "--out", "r")
    assert braintune(here, *words)[0] == 1
    (here / "data.txt").write_text("right")
    (here / "mended").touch()
    code, _, err = braintune(here, *words)
    assert code == 1 and "changed since this run was begun" in err and "data.txt" in err
    (here / "data.txt").write_text("noise")
    code, _, err = braintune(here, *words)
    assert code == 0, err
    assert list(json.loads((here / "r/run.json").read_text())["inputs"]) == [str(here / "data.txt")]


@pytest.fixture
def unreported(here, monkeypatch, capsys):
    "A finished run without its report, the folders that got one, and the command."
    import braintune_nb.report.page as page
    from braintune_nb.core import Run

    shown = dict(seed=7, rate=0.5, layers=[1, 2], label=None, motion=True)
    leaf = {"language": {"raw": {"mean": 0.25, "ci_low": None}}}
    summary = dict(gain=leaf, gain_permuted=leaf, alignment={"tuned": leaf})
    Run.start(here / "r", shown).finish(summary)
    made = []
    write = lambda f: made.append(f) or (f / "report.html").write_text("x") and f
    monkeypatch.setattr(page, "report", write)
    monkeypatch.setattr(page, "sentences", lambda *a: [])
    monkeypatch.chdir(here)

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            main(["run", "tiny.ipynb", *words, "--out", "r"])
        return stop.value.code or 0, *capsys.readouterr()

    return here / "r", made, call


def test_a_run_that_lacks_only_its_report_gets_it(unreported):
    folder, made, call = unreported
    code, _, err = call("-p", "seed", "8")
    assert code == 1 and "braintune report" in err and not made
    (folder / ".command.json").write_text("{}")  # left by the command that was killed
    code, out, _ = call("-p", "seed", "7")
    assert code == 0 and made == [folder] and "+0.250" in out and "but for notebook" in out
    assert "seed = 7" in (folder / "notebook.ipynb").read_text()
    names = ["notebook.ipynb", "report.html", "run.json", "summary.json"]
    assert sorted(p.name for p in folder.iterdir()) == names
    for left in (".command.json", ".report.html.0123456789ab.html"):  # killed in the last step
        (folder / left).write_text("{}")
    code, out, _ = call("-p", "seed", "7")
    assert code == 0 and "but for its last step" in out and made == [folder]
    assert sorted(p.name for p in folder.iterdir()) == names
    code, _, err = call("-p", "seed", "7")
    assert code == 1 and "never overwritten" in err and made == [folder]


def test_parameters_of_the_command_are_read_as_those_of_the_notebook(here):
    from braintune_nb.cli import check_parameters

    assert check_parameters(here / "tiny.ipynb", {"seed": "7"}) == {"seed": 7}


def test_a_file_that_is_no_notebook_is_a_parameter_error(here):
    for text in ("", "[]", "{}", '{"cells": [{}]}', '{"cells": 3}'):
        (here / "odd.ipynb").write_text(text)
        with pytest.raises(ParameterError, match="not a notebook"):
            known_parameters(here / "odd.ipynb")
