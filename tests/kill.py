"""Kill whole commands with SIGKILL at random moments, start them again until they are done, and
compare what they leave, bit for bit, with a run that nobody disturbed.

    python tests/kill.py                                 # tune_text, tune_speech, tune_bilingual
    python tests/kill.py tune_text --kills 20 --seed 3   # one command

The moments are spread evenly over the whole command, from its first import to the report: each
kill falls at random within its share of the time that the undisturbed run took. Every kill has a
folder and a cache of its own, so the simulated data are generated anew each time. What is killed
is drawn as well: the command with its kernel, the kernel alone, or the command alone.

Compared are all files but the executed notebook, the page and run.json; in JSON and tables, fields
of time and memory are left out; of run.json, the parameters and the hashes of the inputs. The exit
status is the number of kills after which something differed."""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ["-p", "size", "smoke", "-p", "epochs", "1"]
COMMANDS = {
    "tune_text": SMOKE,
    "tune_speech": [*SMOKE, "-p", "languages", "en,zh"],
    "tune_bilingual": ["-p", "size", "4,4,1,2,2,300", "-p", "epochs", "1"],
}
TIME = re.compile("seconds|memory|began|host|pid")  # names of fields that may differ
APART = {"run.json", "notebook.ipynb", "report.html"}  # compared in part, or not at all
PATIENCE = 900  # s for one start of a command


def start(command, out, cache):
    "The command as a user types it, with one thread, in a cache of its own."
    settings = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "BRAINTUNE_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
    }
    words = [sys.executable, "-m", "braintune_nb.cli", "run", command, *COMMANDS[command]]
    log = open(f"{out}.log", "ab")
    return subprocess.Popen(
        [*words, "--out", str(out)],
        env={**os.environ, **settings},
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=out.parent,
        start_new_session=True,
    )


def kill(process, whom):
    "SIGKILL to the command, to its kernel, or to both; the kernel first, so that it cannot clean up."
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(process.pid).children(recursive=True)
        for child in children if whom != "command" else []:
            with contextlib.suppress(psutil.Error):
                child.send_signal(signal.SIGKILL)
    if whom != "kernel":
        process.send_signal(signal.SIGKILL)
    process.wait(timeout=PATIENCE)
    return process.returncode


def finish(command, out, cache, tries=8):
    "Start the command again until it is done; the number of starts."
    for number in range(1, tries + 1):
        if (out / "run.json").exists() and (out / "report.html").exists():
            return number - 1
        if start(command, out, cache).wait(timeout=PATIENCE) != 0:
            time.sleep(2)  # a kernel that lost its command may still hold the folder for a moment
    if not (out / "report.html").exists():
        raise RuntimeError(f"{command} does not finish: {Path(f'{out}.log').read_text()[-2000:]}")
    return tries


def timeless(value):
    "JSON without the fields of time and memory."
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not TIME.search(k)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def inputs(record, cache):
    "Hashes of the inputs by name, wherever the cache lies."
    return {k.replace(str(cache), "CACHE"): v for k, v in record["inputs"].items()}


def content(path):
    "What a file holds, so that equal content compares equal."
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            return {k: (stored[k].dtype.str, stored[k].tobytes()) for k in stored.files}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(one, other, caches):
    "Names of files, or parts of run.json, that differ between two finished runs."
    files = [
        {p.relative_to(f).as_posix(): p for p in f.rglob("*") if p.is_file()} for f in (one, other)
    ]
    wrong = sorted(set(files[0]) ^ set(files[1]))
    for name in sorted(set(files[0]) & set(files[1]) - APART):
        if content(files[0][name]) != content(files[1][name]):
            wrong.append(name)
    records = [json.loads((f / "run.json").read_text()) for f in (one, other)]
    if records[0]["parameters"] != records[1]["parameters"]:
        wrong.append("run.json: parameters")
    if inputs(records[0], caches[0]) != inputs(records[1], caches[1]):
        wrong.append("run.json: inputs")
    return wrong


def moments(kills, seed):
    "(share of the whole time, whom) of every kill, in random order."
    draw = random.Random(seed)
    shares = [(k + draw.random()) / kills for k in range(kills)]
    draw.shuffle(shares)
    return [(share, draw.choice(["both", "both", "kernel", "command"])) for share in shares]


def try_command(command, kills, seed, work):
    "Rows (share, whom, whether the kill hit, starts after it, what differs) of one command."
    whole, cache = work / "whole", work / "cache"
    began = time.monotonic()
    finish(command, whole, cache)
    seconds = time.monotonic() - began
    files = sum(p.is_file() for p in whole.rglob("*"))
    print(f"{command}: {seconds:.0f} s undisturbed, {files} files", flush=True)
    rows = []
    for number, (share, whom) in enumerate(moments(kills, seed)):
        out, own = work / f"killed{number}", work / f"cache{number}"
        process = start(command, out, own)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=share * seconds)
        hit = process.poll() is None
        if hit:
            kill(process, whom)
        starts = finish(command, out, own)
        wrong = differences(whole, out, (cache, own))
        rows.append((share, whom, hit, starts, wrong))
        told = "same" if not wrong else f"DIFFERS: {', '.join(wrong)}"
        done = "" if hit else " (it was done before)"
        print(
            f"  {number + 1:3d}  {share:6.1%} {whom:8s}{done} {starts} starts  {told}", flush=True
        )
        if not wrong:
            shutil.rmtree(out)
        shutil.rmtree(own, ignore_errors=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("commands", nargs="*", default=list(COMMANDS), help=", ".join(COMMANDS))
    parser.add_argument("--kills", type=int, default=5, help="of each command")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, help="folder to work in [default: a temporary one]")
    asked = parser.parse_args()
    work, rows = asked.work or Path(tempfile.mkdtemp(prefix="braintune-kill-")), []
    for number, command in enumerate(asked.commands):
        (work / command).mkdir(parents=True, exist_ok=True)
        rows += try_command(command, asked.kills, asked.seed + number, work / command)
    hits, wrong = sum(row[2] for row in rows), sum(bool(row[4]) for row in rows)
    print(f"{len(rows)} kills, {hits} before the end, {wrong} ended differently")
    if not asked.work and not wrong:
        shutil.rmtree(work)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
