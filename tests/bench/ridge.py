"""Time and peak memory of RidgeCV beside himalaya's RidgeCV and the bootstrap ridge of papers A and
B in the same run, same folds, same grid.

python tests/bench/ridge.py the two comparison sizes with 15 and 30 penalties (an hour on two cores,
nearly all of it the peers) python tests/bench/ridge.py --quick one small size, for a look python
tests/bench/ridge.py --growth how time and memory grow in T, F, V and the number of penalties python
tests/bench/ridge.py --steps what shared filters and bfloat16 each bring python tests/bench/ridge.py
--device cuda the same on an accelerator, and the full size 9,461 x 3,072 x 95,556 (not run so far:
no GPU was at hand)

Every fit runs in a process of its own; memory is the peak of the fit above what data and libraries
hold (Linux). Rounds go through all solvers in turn. Read the ratios, not the seconds. Features have
a power-law spectrum, voxels a signal-to-noise from nothing to strong. Writes
nbs/experiments/results/ridge_speed.csv, ridge_growth.csv or ridge_steps.csv."""

import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "nbs" / "experiments" / "results"
SIZES = [(3000, 1536, 6000), (6000, 3072, 10000)]


def data(T, F, V, extra=500):
    "Features and responses of T training and `extra` test rows."
    rng = np.random.default_rng(0)
    X = (
        rng.standard_normal((T + extra, F), dtype=np.float32)
        * np.arange(1, F + 1, dtype=np.float32) ** -0.5
    )
    X = X @ np.linalg.qr(rng.standard_normal((F, F), dtype=np.float32))[0]
    X /= X.std()
    Y = X @ rng.standard_normal((F, V), dtype=np.float32)
    Y *= np.linspace(0, 0.5, V, dtype=np.float32) / Y.std()
    Y += rng.standard_normal((T + extra, V), dtype=np.float32)
    mean, scale = Y[:T].mean(0), Y[:T].std(0)
    return X - X[:T].mean(0), (Y - mean) / scale


def ours(alphas, folds, device, **settings):
    from braintune_nb.encode.ridge import RidgeCV

    return RidgeCV(alphas, folds, "r2", fit_intercept=False, device=device, **settings)


def exact(*args):
    return ours(*args, tolerance=0, precision="float32")


def filters(*args):
    return ours(*args, precision="float32")


def bfloat16(*args):
    return ours(*args, tolerance=0, precision="bfloat16")


def himalaya(alphas, folds, device):
    from himalaya.backend import set_backend
    from himalaya.ridge import RidgeCV
    from himalaya.scoring import r2_score

    set_backend("torch_cuda" if device != "cpu" else "torch")
    return RidgeCV(
        alphas=np.asarray(alphas, np.float32), cv=folds, solver_params=dict(score_func=r2_score)
    )


class Bootstrap:
    "The papers' ridge as they run it, in float64."

    def __init__(self, alphas, folds):
        self.alphas, self.folds = np.sqrt(alphas), folds

    def fit(self, X, Y):
        import bootstrap_ridge

        alpha, _, self.coef_ = bootstrap_ridge.fit(X, Y, self.alphas, self.folds)
        self.best_alphas_ = alpha**2
        return self

    def predict(self, X):
        return X @ self.coef_


def bootstrap(alphas, folds, device):
    return Bootstrap(alphas, folds)


def ours_paper(alphas, folds, device):
    from braintune_nb.encode.ridge import RidgeCV

    return RidgeCV(alphas, folds, "signed_root_r2", fit_intercept=False, device=device)


def memory(what):
    "Resident megabytes of this process now (VmRSS) or at the peak (VmHWM); Linux."
    return (
        int(
            next(
                l
                for l in pathlib.Path("/proc/self/status").read_text().splitlines()
                if l.startswith(what)
            ).split()[1]
        )
        / 1024
    )


def write_scores(out, model, guess, Y, T):
    "Penalties and test correlations."
    z = lambda a: (a - a.mean(0)) / np.maximum(a.std(0), 1e-12)
    np.savez(out, alpha=np.asarray(model.best_alphas_, np.float64), r=(z(guess) * z(Y[T:])).mean(0))


def penalties_and_folds(name, T, n_alphas):
    "Those of the paper, or those of the chapter."
    from braintune_nb.encode.ridge import block_folds, chunk_folds

    if name in ("bootstrap", "ours_paper"):
        return np.logspace(1, 4, n_alphas) ** 2, chunk_folds(T)
    return np.logspace(0, 7, n_alphas), block_folds(T, 5)


def measured_fit(model, X, T, Y, device):
    "Predictions of the test rows, seconds and peak megabytes."
    import torch

    before = memory("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text(
        "5"
    )  # forget the peak that making the data left
    start = time.perf_counter()
    model.fit(X[:T], Y[:T])
    guess = model.predict(X[T:])
    guess = guess.cpu().numpy() if torch.is_tensor(guess) else guess
    seconds = time.perf_counter() - start
    mb = memory("VmHWM") - before
    if device != "cpu":
        mb = torch.cuda.max_memory_allocated() / 2**20
    return guess, seconds, mb


def one(name, T, F, V, n_alphas, threads, device, out):
    """Fit once in this process and predict the test rows; print seconds, peak megabytes, and
    write penalties and test correlations."""
    import torch

    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    X, Y = data(T, F, V)
    alphas, folds = penalties_and_folds(name, T, n_alphas)
    if name == "bootstrap":
        X, Y = X.astype(np.float64), Y.astype(np.float64)
    model = globals()[name](alphas, folds, device)
    guess, seconds, mb = measured_fit(model, X, T, Y, device)
    write_scores(out, model, guess, Y, T)
    print(json.dumps(dict(seconds=seconds, mb=mb)))


def measure(name, T, F, V, n_alphas, threads, device):
    env = os.environ | {
        k: str(threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/fit.npz"
        command = [
            sys.executable,
            __file__,
            "--one",
            name,
            *map(str, (T, F, V, n_alphas)),
            "--threads",
            str(threads),
            "--device",
            device,
            "--out",
            out,
        ]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
        with np.load(out) as z:
            return json.loads(done.stdout.splitlines()[-1]) | dict(alpha=z["alpha"], r=z["r"])


def differences(a, b):
    "Seconds, memory and correlations of ours and of a peer."
    return dict(
        seconds=round(a["seconds"], 2),
        peer_seconds=round(b["seconds"], 2),
        times_faster=round(b["seconds"] / a["seconds"], 2),
        mb=round(a["mb"]),
        peer_mb=round(b["mb"]),
        memory_share=round(a["mb"] / b["mb"], 3),
        same_alpha=round(float(np.isclose(a["alpha"], b["alpha"], rtol=1e-3).mean()), 4),
        r=round(float(a["r"].mean()), 5),
        peer_r=round(float(b["r"].mean()), 5),
        largest_r_difference=round(float(np.abs(a["r"] - b["r"]).max()), 5),
    )


def compare(T, F, V, n_alphas, pairs, threads, device, repeats):
    "Rows of the table: each peer against ours; best of `repeats`."
    rows = []
    for mine, peer in pairs:
        found = {}
        for i in range(repeats):
            for name in dict.fromkeys((mine, peer)):
                print(f"  {name} ...", file=sys.stderr, flush=True)
                new = measure(name, T, F, V, n_alphas, threads, device)
                if name not in found or new["seconds"] < found[name]["seconds"]:
                    found[name] = new
        rows.append(
            dict(
                T=T,
                F=F,
                V=V,
                alphas=n_alphas,
                threads=threads,
                device=device,
                solver=mine,
                peer=peer,
                **differences(found[mine], found[peer]),
            )
        )
        print("  ".join(f"{k}={v}" for k, v in rows[-1].items()), flush=True)
    return rows


def growth(threads, device):
    base, rows = dict(T=2000, F=1024, V=4000, n_alphas=15), []
    for change in [{}] + [{k: base[k] * m} for k in base for m in (2, 4)] + [dict(F=4096, T=1000)]:
        size = base | change
        found = measure("ours", **size, threads=threads, device=device)
        rows.append(
            size
            | dict(
                threads=threads,
                device=device,
                seconds=round(found["seconds"], 2),
                mb=round(found["mb"]),
            )
        )
        print("  ".join(f"{k}={v}" for k, v in rows[-1].items()), flush=True)
    return rows


def steps(threads, device):
    rows = []
    for n in (15, 30):
        for name in ("exact", "filters", "bfloat16", "ours"):
            found = min(
                (measure(name, 3000, 1536, 6000, n, threads, device) for _ in range(2)),
                key=lambda f: f["seconds"],
            )
            rows.append(
                dict(
                    T=3000,
                    F=1536,
                    V=6000,
                    alphas=n,
                    threads=threads,
                    device=device,
                    solver=name,
                    seconds=round(found["seconds"], 2),
                    mb=round(found["mb"]),
                    r=round(float(found["r"].mean()), 5),
                )
            )
            print("  ".join(f"{k}={v}" for k, v in rows[-1].items()), flush=True)
    return rows


def write(name, rows):
    from datetime import date

    with open(RESULTS / name, "w", newline="") as f:
        table = csv.DictWriter(f, ["date", "hardware", *rows[0]])
        table.writeheader()
        cpu = (
            next(
                (
                    l.split(":")[1].strip()
                    for l in open("/proc/cpuinfo")
                    if l.startswith("model name")
                ),
                "",
            )
            if os.path.exists("/proc/cpuinfo")
            else ""
        )
        table.writerows(
            [
                dict(date=date.today().isoformat(), hardware=f"{cpu}, {os.cpu_count()} cores") | r
                for r in rows
            ]
        )
    print("wrote", RESULTS / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--steps", action="store_true")
    args = parser.parse_args()
    if args.one:
        one(args.one[0], *map(int, args.one[1:]), args.threads, args.device, args.out)
    elif args.growth:
        write("ridge_growth.csv", growth(args.threads, args.device))
    elif args.steps:
        write("ridge_steps.csv", steps(args.threads, args.device))
    elif args.quick:
        compare(
            800,
            400,
            1500,
            15,
            [("ours", "himalaya"), ("exact", "himalaya"), ("ours_paper", "bootstrap")],
            args.threads,
            args.device,
            2,
        )
    else:
        rows = []
        for size, repeats in zip(SIZES, (3, 1)):  # rounds; the smaller size is soon done
            for n in (15, 30):
                rows += compare(
                    *size, n, [("ours", "himalaya")], args.threads, args.device, repeats
                )
            rows += compare(
                *size, 15, [("ours_paper", "bootstrap")], args.threads, args.device, repeats
            )
        if args.device != "cpu":
            rows += compare(
                9461, 3072, 95556, 15, [("ours", "himalaya")], args.threads, args.device, 1
            )
        write("ridge_speed.csv", rows)
