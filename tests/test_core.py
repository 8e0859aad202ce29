"""Run folders, atomic files and hashes: what survives a kill, a second process, odd values and bad
names."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from braintune_nb.core import (
    BraintuneError,
    DataError,
    MissingData,
    ParameterError,
    Run,
    RunError,
    content_hash,
    read_arrays,
    read_json,
    to_plain,
    write_arrays,
    write_atomic,
    write_json,
)

ROOT = Path(__file__).resolve().parents[1]


def python(code, *words, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


WORKER = """
    import sys, time
    from braintune_nb.core import Run
    run = Run.start(sys.argv[1], {"seed": 1})
    if not run.done("first"):
        with run.stage("first"): run.path("first.txt").write_text("kept")
    print("in the second stage", flush=True)
    with run.stage("second"): time.sleep(float(sys.argv[2]))
    run.finish({})
"""


def test_killed_run_continues_at_the_last_stage(tmp_path):
    worker = python(WORKER, tmp_path / "r", 60)
    assert worker.stdout.readline().startswith("in the second")
    with pytest.raises(RunError, match=f"process {worker.pid}"):
        Run.start(tmp_path / "r", {"seed": 1})  # alive: hands off
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    run = Run.start(tmp_path / "r", {"seed": 1})
    assert (
        run.resumed
        and run.done("first")
        and not run.done("second")
        and run.path("first.txt").read_text() == "kept"
    )
    record = read_json(run.finish({}) / "run.json")
    assert len(record["sessions"]) == 2 and set(record["stages"]) == {"first"}


def test_seconds_and_memory_are_measured(tmp_path):
    run = Run.start(tmp_path / "r", {})
    child = subprocess.Popen(
        [sys.executable, "-c", "x = bytearray(300 * 2**20)\nimport time; time.sleep(1)"]
    )
    child.wait()
    summary = read_json(run.finish({}) / "summary.json")
    assert 1 <= summary["seconds"] < 30
    assert summary["peak_memory_mb"] > 300  # the child's memory is counted


def test_other_parameters_are_refused_and_named(tmp_path):
    Run.start(tmp_path / "r", {"seed": 1, "loss": "mse", "out": "a"})
    with pytest.raises(RunError) as error:
        Run.start(tmp_path / "r", {"seed": 2, "loss": "mse", "out": "b"})
    assert (
        "seed=1" in str(error.value)
        and "seed=2" in str(error.value)
        and "loss" not in str(error.value)
    )
    assert error.value.next_step
    assert Run.start(tmp_path / "r", {"loss": "mse", "seed": 1}).resumed is False


def test_finished_and_foreign_folders_are_refused(tmp_path):
    done = Run.start(tmp_path / "r", {"seed": 1}).finish({"x": 1})
    before = {p.name: p.read_bytes() for p in done.iterdir()}
    with pytest.raises(RunError, match="--out"):
        Run.start(done, {"seed": 1})
    assert {p.name: p.read_bytes() for p in done.iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="is not a run"):
        Run.start(tmp_path / "mine", {})
    (tmp_path / "empty").mkdir()
    assert Run.start(tmp_path / "empty", {}).finish({}).name == "empty"


def test_folder_that_fills_up_meanwhile_is_not_overwritten(tmp_path):
    run = Run.start(tmp_path / "r", {})
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "other.txt").write_text("x")
    with pytest.raises(RunError):
        run.finish({})
    assert (tmp_path / "r" / "other.txt").read_text() == "x" and (
        tmp_path / "r.partial" / "summary.json"
    ).exists()


def test_stage_that_fails_is_not_done(tmp_path):
    run = Run.start(tmp_path / "r", {})
    with pytest.raises(ZeroDivisionError):
        with run.stage("fit"):
            1 / 0
    assert not run.done("fit")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_path_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(RunError, match="outside"):
        Run.start(tmp_path / "r", {}).path(name)


def test_record_holds_what_the_design_asks(tmp_path):
    (tmp_path / "in.txt").write_text("abc")
    run = Run.start(
        tmp_path / "r", {"seed": np.int64(4), "rate": np.float32(0.5), "folder": Path("/data")}
    )
    run.input(tmp_path / "in.txt")
    with pytest.raises(MissingData):
        run.input(tmp_path / "absent")
    record = read_json(run.finish({}) / "run.json")
    assert {
        "parameters",
        "seed",
        "package",
        "git",
        "libraries",
        "inputs",
        "hardware",
        "seconds",
        "peak_memory_mb",
    } <= set(record)
    assert record["seed"] == 4 and record["parameters"] == {
        "seed": 4,
        "rate": 0.5,
        "folder": "/data",
    }
    assert record["inputs"][str(tmp_path / "in.txt")] == content_hash(tmp_path / "in.txt")


def test_write_atomic_survives_sigkill(tmp_path):
    "A writer killed in the middle leaves the old file whole."
    write_atomic(tmp_path / "a.txt", "old")
    writer = python(
        """
        import sys, time
        from braintune_nb.core import write_atomic
        def slow(path): path.write_text("half"); print("writing", flush=True); time.sleep(60)
        write_atomic(sys.argv[1], slow)
    """,
        tmp_path / "a.txt",
    )
    assert writer.stdout.readline() == "writing\n"
    writer.kill()
    writer.wait()
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize(
    "value", [0, -1.5, "é\n", None, True, [], {}, {"a": [1, {"b": [None, 2.5]}]}]
)
def test_json_round_trip(tmp_path, value):
    assert read_json(write_json(tmp_path / "x.json", value)) == value


def test_json_decisions(tmp_path):
    write_json(tmp_path / "x.json", {"z": np.array([1.0, np.nan]), "a": (np.bool_(True),)})
    assert (
        tmp_path / "x.json"
    ).read_text() == '{\n "a": [\n  true\n ],\n "z": [\n  1.0,\n  null\n ]\n}\n'
    for value in (math.inf, -math.inf, np.float32("inf")):
        with pytest.raises(ParameterError, match=r"\$\.b\[1\]"):
            write_json(tmp_path / "x.json", {"b": [0, value]})
    with pytest.raises(ParameterError, match="set"):
        to_plain({1, 2})
    assert json.loads((tmp_path / "x.json").read_text())["z"] == [
        1,
        None,
    ]  # the failures above left it alone


def test_arrays_never_pickle(tmp_path):
    x = {
        "r": np.arange(6, dtype="float32").reshape(2, 3),
        "names": np.array(["a", "bc"]),
        "ok": np.array([True]),
    }
    back = read_arrays(write_arrays(tmp_path / "x", **x))
    assert all((back[k] == v).all() and back[k].dtype == v.dtype for k, v in x.items())
    (tmp_path / "y.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:50])
    with pytest.raises(DataError, match="broken"):
        read_arrays(tmp_path / "y.npz")


def test_hash_depends_on_content_and_boundaries(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "f").write_text("x")
    assert content_hash(tmp_path / "one") == content_hash(tmp_path / "two")
    (tmp_path / "two" / "sub" / "f").rename(tmp_path / "two" / "f")
    assert content_hash(tmp_path / "one") != content_hash(
        tmp_path / "two"
    )  # same bytes, another place in the folder
    keys = [
        content_hash(*p)
        for p in (
            (1, 2),
            (12,),
            ("1", 2),
            ([1, 2],),
            (b"1", b"2"),
            (b"12",),
            (np.array([1, 2]),),
            (np.array([1.0, 2.0]),),
            (np.array([[1, 2]]),),
        )
    ]
    assert len(set(keys)) == len(keys)
    with pytest.raises(ParameterError):
        content_hash(np.array([object()]))
    code = (
        "from braintune_nb.core import content_hash; print(content_hash({'b': 1, 'a': [2, None]}))"
    )
    other = python(code)
    assert other.communicate()[0].strip() == content_hash({"a": [2, None], "b": 1})


def test_core_is_light():
    "The command line imports core first: no torch, pandas or matplotlib."
    heavy = python(
        "import sys, braintune_nb.core; print([m for m in ('torch', 'pandas', 'matplotlib',"
        " 'nilearn', 'scipy', 'transformers') if m in sys.modules])"
    ).communicate()[0]
    assert heavy.strip() == "[]"


def test_every_error_is_ours():
    import braintune_nb.core as core

    kinds = [
        v for v in vars(core).values() if isinstance(v, type) and issubclass(v, BraintuneError)
    ]
    assert len(kinds) == 8
    for kind in kinds:
        assert (
            str(kind("a", file="f", found=1, expected=2, next_step="n"))
            == "a\n  file: f\n  found: 1\n  expected: 2\n  next step: n"
        )
