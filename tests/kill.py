"""Kill whole commands with SIGKILL at random moments, start them again until they are done, and
compare what they leave, bit for bit, with a run that nobody disturbed.

    python tests/kill.py                                 # tune_text, tune_speech, tune_bilingual
    python tests/kill.py tune_text --kills 20 --seed 3   # one command
    python tests/kill.py --kills 17 --chain 3 --table nbs/experiments/results/kills.csv

The moments are spread evenly over the whole command, from its first import to the report: each
kill falls at random within its share of the processor time that the undisturbed run took, so that
a busy machine moves no kill; one kill of each command waits until the run is finished, and falls
before its report is made. With `--chain` a run is killed several times on its way. Every run has a
folder and a cache of its own, so the simulated data are generated anew each time. What is killed is
drawn as well: the command with its kernel, the kernel alone, or the command alone.

Compared are all files but the executed notebook, the page and run.json; in JSON and tables, fields
of time and memory are left out; of run.json, the parameters and the hashes of the inputs. The exit
status is the number of kills after which something differed."""

import argparse
import contextlib
import csv
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ["-p", "size", "3,2,1,2,1,420", "-p", "epochs", "1"]  # the least that has intervals
COMMANDS = dict.fromkeys(("tune_text", "tune_speech", "tune_bilingual"), SMOKE)
COLUMNS = "command run share stopped before_the_end starts value".split()
TIME = re.compile("seconds|memory|began|host|pid")  # names of fields that may differ
APART = {"run.json", "notebook.ipynb", "report.html"}  # compared in part, or not at all
PATIENCE = 3600  # s for one start of a command


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
    "SIGKILL to the command, its kernel, or both; the kernel first, so that it cannot clean up."
    children = []
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(process.pid).children(recursive=True)
    for child in children if whom != "command" else []:
        with contextlib.suppress(psutil.Error):
            child.send_signal(signal.SIGKILL)
    if whom != "kernel":
        process.send_signal(signal.SIGKILL)
    process.wait(timeout=PATIENCE)
    psutil.wait_procs(children, timeout=60)  # a kernel ends when it sees that its command is gone


def whole(out):
    "Whether a run has all that the command leaves."
    return all((out / name).exists() for name in ("run.json", "report.html", "notebook.ipynb"))


def finish(command, out, cache, least=0, tries=12):
    "Start the command again, `least` times or more, until it is done; the number of starts."
    for number in range(1, tries + 1):
        if number > least and whole(out):
            return number - 1
        if start(command, out, cache).wait(timeout=PATIENCE) != 0:
            time.sleep(2)  # a kernel that lost its command may still hold the folder for a moment
    if not whole(out):
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


def files_of(folder):
    "Name -> path of every file of a folder."
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def differences(one, other, caches):
    "Names of files, or parts of run.json, that differ between two finished runs."
    files = [files_of(one), files_of(other)]
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


def moments(kills, chain, seed):
    """For each run the kills on its way: (share of the processor time, whom), in order; the last
    share of all is None: after the run, before its report."""
    draw = random.Random(seed)
    whom = ["both", "both", "kernel", "command"]
    every = [((k + draw.random()) / (kills - 1), draw.choice(whom)) for k in range(kills - 1)]
    every.append((None, draw.choice(whom)))
    runs = -(-kills // chain)
    return [every[first::runs] for first in range(runs)]


def used(processes):
    "Seconds of processor time that a command and its kernel have used until now."
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:2])
    return total


def watch(process, reached):
    "Wait until `reached(seconds of processor time)` or the end; the seconds seen last."
    root, family, seconds = psutil.Process(process.pid), [], 0.0
    while process.poll() is None:
        if len(family) < 2:  # the kernel is started after a while
            with contextlib.suppress(psutil.Error):
                family = [root, *root.children(recursive=True)]
        seconds = max(seconds, used(family))
        if reached(seconds):
            break
        time.sleep(0.05)
    return seconds


def kill_on_the_way(command, out, cache, kills, whole):
    "Start a command once for each kill; (share, whom, whether it hit) of every one."
    rows, before = [], 0.0
    for share, whom in kills:
        process = start(command, out, cache)
        if share is None:
            watch(process, lambda _: (out / "run.json").exists())
        else:
            again = whole["imports"] if rows else 0.0
            until = again + (share - before) * whole["seconds"]
            watch(process, lambda now, until=until: now >= until)
            before = share
        hit = process.poll() is None
        if hit:
            kill(process, whom)
        rows.append(("finished" if share is None else f"{share:.3f}", whom, int(hit)))
    return rows


def try_run(command, work, number, kills, whole):
    "One run that is killed on its way and then finished: rows of COLUMNS, one a kill."
    out, own = work / f"killed{number}", work / f"cache{number}"
    tried = kill_on_the_way(command, out, own, kills, whole)
    starts = finish(command, out, own, least=tried[-1][2])
    wrong = differences(work / "undisturbed", out, (work / "cache", own))
    told = "same" if not wrong else f"DIFFERS: {', '.join(wrong)}"
    print(f"  {command} {number + 1:3d}  {tried}  {starts} starts after  {told}", flush=True)
    if not wrong:
        shutil.rmtree(out)
    shutil.rmtree(own, ignore_errors=True)
    return [(command, number + 1, *row, starts, len(wrong)) for row in tried]


def undisturbed(command, work):
    "Processor time (s) of a run that nobody kills, and of its beginning; made once in `work`."
    out, cache, about = work / "undisturbed", work / "cache", work / "seconds.json"
    if not about.exists():
        begun = []
        process = start(command, out, cache)
        state = out.with_name(f"{out.name}.partial") / "state.json"
        seconds = watch(process, lambda now: state.exists() and not begun and begun.append(now))
        finish(command, out, cache, tries=1)
        about.write_text(json.dumps(dict(seconds=seconds, imports=begun[0])))
    return json.loads(about.read_text())


def try_command(command, asked, seed, work):
    "Rows of COLUMNS, one a kill of one command."
    whole = undisturbed(command, work)
    files = sum(p.is_file() for p in (work / "undisturbed").rglob("*"))
    print(f"{command}: {whole['seconds']:.0f} s of processor time, {files} files", flush=True)
    with ThreadPoolExecutor(asked.jobs) as pool:
        tried = [
            pool.submit(try_run, command, work, number, kills, whole)
            for number, kills in enumerate(moments(asked.kills, asked.chain, seed))
        ]
        return [row for run in tried for row in run.result()]


def write_table(path, rows):
    "The rows as a table, after what it holds of other commands."
    kept = []
    if path.exists():
        with open(path, encoding="utf8", newline="") as stored:
            kept = [row for row in csv.reader(stored)][1:]
    commands = {row[0] for row in rows}
    with open(path, "w", encoding="utf8", newline="") as stored:
        table = csv.writer(stored, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows([row for row in kept if row[0] not in commands] + rows)


def arguments():
    "What the command line asks for."
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("commands", nargs="*", default=list(COMMANDS), help=", ".join(COMMANDS))
    parser.add_argument("--kills", type=int, default=5, help="of each command")
    parser.add_argument("--chain", type=int, default=1, help="kills on the way of one run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--table", type=Path, help="CSV file for moments and outcomes")
    parser.add_argument("--work", type=Path, help="folder to work in [default: a temporary one]")
    return parser.parse_args()


def main():
    asked = arguments()
    work, rows = asked.work or Path(tempfile.mkdtemp(prefix="braintune-kill-")), []
    for number, command in enumerate(asked.commands):
        (work / command).mkdir(parents=True, exist_ok=True)
        rows += try_command(command, asked, asked.seed + number, work / command)
    if asked.table:
        write_table(asked.table, rows)
    hits, wrong = sum(row[4] for row in rows), sum(row[6] > 0 for row in rows)
    print(f"{len(rows)} kills, {hits} before the end, {wrong} ended differently")
    if not asked.work and not wrong:
        shutil.rmtree(work)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
