"""Run folders, atomic files and hashes: what survives a kill, a second process, odd values and bad
names."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
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
    note_read,
    read_arrays,
    read_json,
    respect_umask,
    to_plain,
    unlock_folder,
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


def test_hash_depends_on_content_and_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "f").write_text("x")
    assert content_hash(tmp_path / "one") == content_hash(tmp_path / "two")
    (tmp_path / "two" / "sub" / "f").rename(tmp_path / "two" / "f")
    # same bytes, another place in the folder
    assert content_hash(tmp_path / "one") != content_hash(tmp_path / "two")


def test_hash_depends_on_boundaries_and_types():
    arrays = (np.array([1, 2]), np.array([1.0, 2.0]), np.array([[1, 2]]))
    values = ((1, 2), (12,), ("1", 2), ([1, 2],), (b"1", b"2"), (b"12",), *((a,) for a in arrays))
    keys = [content_hash(*v) for v in values]
    assert len(keys) == 9 and len(set(keys)) == len(keys)
    with pytest.raises(ParameterError):
        content_hash(np.array([object()]))


def test_hash_is_the_same_in_another_process():
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


# ---- a run and its data, its place, its lock


@pytest.fixture
def session(tmp_path):
    "A run that has read two files and done one stage: its folder and the files."
    data, folder = tmp_path / "data", tmp_path / "r"
    files = data / "UTS01.hf5", data / "story.wav"
    for path in files:
        write_atomic(path, path.name * 1000)
    run = Run.start(folder, {"seed": 1})
    note_read(files[0])
    with run.stage("pretrained"):
        note_read(files[1])
    return folder, *files


def test_inputs_are_recorded_and_may_be_touched(session):
    folder, brain, sound = session
    inputs = read_json(folder.with_name("r.partial") / "state.json")["inputs"]
    assert set(inputs) == {str(brain), str(sound)}
    os.utime(sound)  # the same content at another time is the same input
    assert Run.start(folder, {"seed": 1}).resumed


def test_inputs_that_change_between_two_sessions_are_refused_by_name(session):
    folder, brain, _ = session
    old = brain.stat()
    write_atomic(brain, "uts01.hf5" * 1000)  # as long as before
    os.utime(brain, ns=(old.st_atime_ns, old.st_mtime_ns))  # and as old
    with pytest.raises(RunError, match="changed since") as caught:
        Run.start(folder, {"seed": 1})
    assert Path(caught.value.file) == brain and caught.value.next_step
    brain.unlink()
    with pytest.raises(RunError, match="is gone"):
        Run.start(folder, {"seed": 1})


def test_inputs_that_are_added_in_a_later_session_are_refused(session):
    folder, *files = session
    run = Run.start(folder, {"seed": 1})
    more = files[0].with_name("UTS02.hf5")
    write_atomic(more, "more")
    with pytest.raises(RunError, match="was added"):
        note_read(more)
    record = read_json(run.finish({}) / "run.json")
    assert record["inputs"] == {str(p): content_hash(p) for p in files}


def test_before_a_stage_is_done_the_data_may_be_mended(tmp_path):
    run = Run.start(tmp_path / "r", {"seed": 1})
    note_read(write_atomic(tmp_path / "log.txt", "broken"))
    run.save()
    note_read(write_atomic(tmp_path / "log.txt", "mended"))
    run = Run.start(tmp_path / "r", {"seed": 1})
    note_read(write_atomic(tmp_path / "log.txt", "better"))
    with run.stage("features"):
        pass
    with pytest.raises(RunError, match="changed since"):
        note_read(write_atomic(tmp_path / "log.txt", "other"))
    with pytest.raises(RunError, match="names another folder"):
        with run.stage("features"):
            pass
        os.environ["BRAINTUNE_DATA"], old = str(tmp_path), os.environ.get("BRAINTUNE_DATA")
        try:
            Run.start(tmp_path / "r", {"seed": 1})
        finally:
            os.environ.pop("BRAINTUNE_DATA")
            if old:
                os.environ["BRAINTUNE_DATA"] = old


RACER = """
    import sys, time
    from braintune_nb.core import BraintuneError, Run
    import filelock, psutil
    print("ready", flush=True); sys.stdin.readline()
    began = time.time()
    try:
        run = Run.start(sys.argv[1], {"a": 1})
        time.sleep(1.5)
        run.finish({"v": 1})
        print("finished")
    except BraintuneError as e:
        print("typed", time.time() - began < 1, str(e).replace(chr(10), " "))
"""


def test_two_at_once_one_works_and_one_is_refused(tmp_path):
    for turn in range(3):
        racers = [python(RACER, tmp_path / f"r{turn}", stdin=subprocess.PIPE) for _ in range(2)]
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        told = [racer.communicate(timeout=60)[0] for racer in racers]
        winner = racers[[t.startswith("finished") for t in told].index(True)]
        assert sorted(t.split()[0] for t in told) == ["finished", "typed"], told
        refused = next(t for t in told if t.startswith("typed"))
        assert "typed True Another process is working on this run" in refused
        assert f"process {winner.pid}" in refused
        assert [p.name for p in (tmp_path / f"r{turn}").iterdir() if p.name[0] == "."] == []
    assert not list(tmp_path.glob("*.partial"))


def test_folders_that_cannot_be_a_run(tmp_path):
    def refused(name, message):
        with pytest.raises(RunError, match=message):
            Run.start(tmp_path / name, {"seed": 1})

    (tmp_path / "big").mkdir()
    (tmp_path / "to_big").symlink_to("big")
    (tmp_path / "to_nothing").symlink_to("nothing")
    write_atomic(tmp_path / "file", "x")
    write_atomic(tmp_path / "mine.partial/thesis.txt", "precious")
    (tmp_path / "linked.partial").symlink_to("big")
    write_atomic(tmp_path / "flat.partial", "x")
    before = set(tmp_path.rglob("*"))
    refused("to_big", "cannot be a link")
    refused("to_nothing", "cannot be a link")
    refused("to_nothing/r", "below a file")
    refused("file/deep/r", "below a file")
    refused("mine", "no unfinished run")
    refused("linked", "Something else")
    refused("flat", "Something else")
    refused("x" * 250, "too long")
    refused("a\0b", "no name of a folder")
    assert set(tmp_path.rglob("*")) == before
    for bad in ("[]", "{}", "null", '{"key": 1}', "[" * 100_000, '{"key": "a", "key": "b"}'):
        write_atomic(tmp_path / "bad.partial/state.json", bad)
        refused("bad", "cannot be read")


def test_what_a_killed_writer_left_is_removed_when_the_run_goes_on(tmp_path):
    run = Run.start(tmp_path / "r", {"a": 1})
    run.path("scores/own.json").write_text("1")
    left = run.path("scores/.own.json.0123456789ab.json")
    left.write_text("hal")
    kept = run.path(".own.json")
    kept.write_text("2")
    with run.stage("scores"):
        pass
    unlock_folder(run.lock)
    again = Run.start(tmp_path / "r", {"a": 1})
    assert not left.exists() and kept.read_text() == "2" and again.done("scores")
    again.finish({})


def test_a_kill_at_the_end_leaves_a_finished_run(tmp_path, monkeypatch):
    "Nothing that is needed is removed before the folder has its name."
    run = Run.start(tmp_path / "r", {"seed": 1})
    with run.stage("hours of tuning"):
        run.path("model.txt").write_text("model of seed 1")
    monkeypatch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.finish({})
    monkeypatch.undo()
    with pytest.raises(RunError, match="other parameters"):
        Run.start(tmp_path / "r", {"seed": 2})
    again = Run.start(tmp_path / "r", {"seed": 1})
    assert again.done("hours of tuning")
    assert sorted(p.name for p in again.finish({}).iterdir()) == [
        "model.txt",
        "run.json",
        "summary.json",
    ]


def fails(number):
    "A writer that the system stops."

    def write(path):
        raise OSError(number, os.strerror(number), str(path))

    return write


@pytest.mark.parametrize(
    "number, message",
    [
        (errno.ENOSPC, "full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "only be read"),
        (errno.EACCES, "Permission"),
    ],
)
def test_a_disk_that_is_full_or_read_only_is_a_run_error(tmp_path, number, message):
    with pytest.raises(RunError, match=message) as caught:
        write_atomic(tmp_path / "a.txt", fails(number))
    assert caught.value.file == tmp_path / "a.txt" and caught.value.next_step


def test_other_errors_of_the_disk_stay_what_they_are(tmp_path):
    with pytest.raises(OSError, match="Input/output"):
        write_atomic(tmp_path / "a.txt", fails(errno.EIO))


@pytest.mark.parametrize(
    "error, kind, words",
    [
        (OSError(28, "No space"), RunError, "full"),
        (RuntimeError("HDF5: errno = 28, no room"), RunError, "full"),
        (
            PermissionError(13, "Permission denied", "data.hf5"),
            RunError,
            "Permission.*\n.*data.hf5",
        ),
        # a matter of the code, not of the disk
        (FileExistsError(17, "File exists", "x"), FileExistsError, "File exists"),
    ],
)
def test_a_full_disk_in_a_stage_is_a_run_error(tmp_path, error, kind, words):
    run = Run.start(tmp_path / "r", {})
    with pytest.raises(kind, match=words):
        with run.stage("features"):
            raise error
    assert not run.done("features")


def test_control_characters_are_shown_not_obeyed():
    error = DataError("Bad \x1b]0;title\x07", file="a\x1b[2J.wav", found="x\x9b1m", place="\ud800")
    assert str(error) == (
        "Bad \\x1b]0;title\\x07\n  file: a\\x1b[2J.wav\n  place: \\ud800\n  found: x\\x9b1m"
    )
    assert error.file == "a\x1b[2J.wav"  # the name itself stays what it is
    str(error).encode("utf8")


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, mask, mode):
    old = os.umask(mask)
    try:
        write_json(tmp_path / "a.json", 1)
        write_arrays(tmp_path / "b.npz", x=np.arange(3))
        (tmp_path / "c").write_text("x")
        (tmp_path / "c").chmod(0o600)
        respect_umask(tmp_path / "c")
        write_atomic(tmp_path / "d", lambda path: (path.write_text("x"), path.chmod(0o600)))
    finally:
        os.umask(old)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {mode}


def test_a_notebook_without_parameters_is_told():
    with pytest.raises(ParameterError, match="no cell of parameters"):
        Run.start("nowhere")
