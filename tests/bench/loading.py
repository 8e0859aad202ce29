"""First conversion of a response file against reading its bytes, and later loads against the HDF5
file.

python tests/bench/loading.py [--rows 710] [--columns 81126] [--rounds 11] [--seed 0] [--folder DIR]

A file like those of ds003020 is made (float64, in one piece; by default twice as long as souls of
UTS01: 461 MB). In every round all arms run in turn, each in a process of its own, so that a busy
machine is busy for everyone. Before each arm every file is dropped from the system's memory
(posix_fadvise), so that all of them read from the disk:

read the bytes of the HDF5 file, 4 MB at a time, into nothing convert memory_map for the first time
(one pass; the kept file is left to the system to write) convert+sync the same until the kept file
is on the disk hdf5 h5py, whole dataset into a float32 array hdf5 rows h5py, row by row into a
float32 array map memory_map for the second time: what a load of the data set does map, all used the
same, then every number is read once

Peak memory is the growth of the resident size over that before the arm (Linux: the high-water mark
is reset before it); pages of a memory map that were touched count, though the system can take them
back. Ratios are medians over rounds. Written to nbs/experiments/results/loading.csv."""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_rows import rounded, table

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "nbs/experiments/results/loading.csv"
ARMS = ("read", "convert", "convert+sync", "hdf5", "hdf5 rows", "map", "map, all used")


def drop(path):
    "Write a file out and drop it from the system's memory."
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make(path, rows, columns, seed):
    import h5py
    import numpy as np

    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as f:
        data = f.create_dataset("data", (rows, columns), "f8")
        for k in range(0, rows, 10):
            data[k : k + 10] = rng.standard_normal((min(10, rows - k), columns))


def act(arm, path, kept):
    "What is measured."
    import h5py
    import numpy as np

    from braintune_nb.data.files import memory_map

    if arm == "read":
        room = bytearray(2**22)
        with open(path, "rb", buffering=0) as f:
            while f.readinto(room):
                pass
    elif arm.startswith("hdf5"):
        with h5py.File(path, "r") as f:
            data = f["data"]
            x = np.empty(data.shape, np.float32)
            if arm == "hdf5":
                data.read_direct(x)
            else:
                for k in range(len(x)):
                    x[k] = data[k]
    else:
        x, _ = memory_map(path, "data", kept)
        if arm == "convert+sync":
            drop(x.filename)
        if arm == "map, all used":
            for k in range(0, len(x), 8):
                x[k : k + 8].sum()


def resident(what):
    "VmRSS or VmHWM of this process, MB."
    return (
        next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith(what)
        )
        / 1024
    )


def measure(arm, path, kept):
    import h5py  # noqa: F401  (imports are not measured)
    import numpy as np

    import braintune_nb.data.files  # noqa: F401

    with h5py.File(path, "r") as f:
        f["data"][0, :10], np.ones(9).sum()
    for p in (path, *kept.glob("*.npy")):
        drop(p)
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # sets the high-water mark to what is resident now
    memory = resident("VmRSS")
    began, used = time.perf_counter(), time.process_time()
    act(arm, path, kept)
    return dict(
        seconds=time.perf_counter() - began,
        processor=time.process_time() - used,
        peak_mb=resident("VmHWM") - memory,
    )


def rounds(path, folder, n):
    found = {arm: [] for arm in ARMS}
    for k in range(n):
        for arm in ARMS:
            kept = folder / ("again" if arm.startswith("convert") else "kept")
            if arm.startswith("convert"):
                shutil.rmtree(kept, ignore_errors=True)
            out = subprocess.run(
                [sys.executable, __file__, "--arm", arm, "--file", str(path), "--kept", str(kept)],
                capture_output=True,
                text=True,
                check=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            found[arm].append(json.loads(out.stdout))
            print(f"round {k + 1}, {arm}: {found[arm][-1]['seconds']:.3f} s", file=sys.stderr)
    return found


def summarise(found, size, settings):
    def ratio(arm, base, what="seconds"):
        return statistics.median(b[what] / a[what] for a, b in zip(found[arm], found[base]))

    for arm, runs in found.items():
        seconds = [r["seconds"] for r in runs]
        yield dict(
            arm=arm,
            **settings,
            source_mb=size / 1e6,
            rounds=len(runs),
            seconds=statistics.median(seconds),
            seconds_low=min(seconds),
            seconds_high=max(seconds),
            processor_seconds=statistics.median(r["processor"] for r in runs),
            peak_mb=max(r["peak_mb"] for r in runs),
            times_reading=1 / ratio(arm, "read"),
            faster_than_hdf5=ratio(arm, "hdf5"),
            faster_than_hdf5_rows=ratio(arm, "hdf5 rows"),
        )


def parsed():
    "What was asked for on the command line."
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("--rows", 710), ("--columns", 81126), ("--rounds", 11), ("--seed", 0)):
        p.add_argument(name, type=int, default=value)
    (
        p.add_argument("--folder"),
        p.add_argument("--arm"),
        p.add_argument("--file", type=Path),
        p.add_argument("--kept", type=Path),
    )
    return p.parse_args()


SHOWN = (
    "arm",
    "seconds",
    "processor_seconds",
    "peak_mb",
    "times_reading",
    "faster_than_hdf5",
    "faster_than_hdf5_rows",
)


def write(rows):
    "Into the table of results."
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    with open(RESULT, "w", newline="") as f:
        out = csv.DictWriter(f, rows[0], lineterminator="\n")
        out.writeheader()
        out.writerows(rounded(row, 4) for row in rows)


def main():
    a = parsed()
    if a.arm:
        print(json.dumps(measure(a.arm, a.file, a.kept)))
        return
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        folder = Path(folder)
        path = folder / "souls.hf5"
        make(path, a.rows, a.columns, a.seed)
        subprocess.run(
            [
                sys.executable,
                __file__,
                "--arm",
                "convert",
                "--file",
                str(path),
                "--kept",
                str(folder / "kept"),
            ],
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        rows = list(
            summarise(
                rounds(path, folder, a.rounds),
                path.stat().st_size,
                dict(seed=a.seed, rows=a.rows, columns=a.columns),
            )
        )
    write(rows)
    print(table(rows, SHOWN))


if __name__ == "__main__":
    main()
