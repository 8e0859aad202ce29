"""Time and peak memory of VoxelwiseRidge beside himalaya and scikit-learn in the same run, and growth in T, F and V.

python tests/bench/ridge.py [--repeats 3] [--growth] [--threads 1]

Every fit runs in a process of its own; memory is the peak resident size above that after data and libraries were loaded. Absolute seconds depend on the machine: read the ratios.
scikit-learn has no penalty a voxel under grouped folds, so its entry is the loop a user would write: Ridge for every fold and penalty, then Ridge per chosen penalty.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings


def fit_ours(X, Y, groups, alphas):
    from braintune_nb.encode.ridge import VoxelwiseRidge
    return lambda: VoxelwiseRidge(alphas).fit(X, Y, groups).best_alphas_


def fit_himalaya(X, Y, groups, alphas, kernel=False):
    from himalaya.kernel_ridge import KernelRidgeCV
    from himalaya.ridge import RidgeCV
    from sklearn.model_selection import PredefinedSplit
    cv = PredefinedSplit(groups)
    model = KernelRidgeCV(alphas=alphas, kernel="linear", cv=cv) if kernel else RidgeCV(alphas=alphas, cv=cv)
    return lambda: model.fit(X, Y).best_alphas_


def fit_himalaya_kernel(*args): return fit_himalaya(*args, kernel=True)


def fit_sklearn(X, Y, groups, alphas):
    import numpy as np
    from sklearn.linear_model import Ridge
    def run():
        loss = np.zeros((len(alphas), Y.shape[1]))
        for g in np.unique(groups):
            for a, alpha in enumerate(alphas):
                model = Ridge(alpha=alpha, fit_intercept=False).fit(X[groups != g], Y[groups != g])
                loss[a] += ((Y[groups == g] - model.predict(X[groups == g]))**2).mean(0)
        best = np.asarray(alphas)[loss.argmin(0)]
        for alpha in np.unique(best): Ridge(alpha=alpha, fit_intercept=False).fit(X, Y[:, best == alpha])
        return best
    return run


FITS = dict(ours=fit_ours, himalaya=fit_himalaya, himalaya_kernel=fit_himalaya_kernel, sklearn=fit_sklearn)


def one(name, T, F, V, threads):
    "Fit once in this process; print seconds, peak megabytes and the mean log10 penalty."
    import numpy as np
    import torch
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((T, F), dtype=np.float32)
    Y = X[:, :20] @ rng.standard_normal((20, V), dtype=np.float32) * np.linspace(0, 1, V, dtype=np.float32) + 3 * rng.standard_normal((T, V), dtype=np.float32)
    X -= X.mean(0); Y -= Y.mean(0)
    run = FITS[name](X, Y, np.arange(T) * 4 // T, np.logspace(0, 8, 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    best = np.asarray(run())
    seconds = time.perf_counter() - start
    print(json.dumps(dict(seconds=seconds, mb=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, alpha=float(np.log10(best).mean()))))


def measure(name, T, F, V, threads, repeats):
    env = os.environ | {k: str(threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, __file__, "--one", name, str(T), str(F), str(V), "--threads", str(threads)]
    found = [json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.splitlines()[-1]) for _ in range(repeats)]
    return min(f["seconds"] for f in found), max(f["mb"] for f in found), found[0]["alpha"]


def compare(T, F, V, names, threads, repeats):
    "Rounds go through all solvers in turn, so that a busy machine is busy for everyone."
    rounds = [{n: measure(n, T, F, V, threads, 1) for n in names} for _ in range(repeats)]
    print(f"\nT = {T}, F = {F}, V = {V}, 20 penalties, 4 folds, {threads} thread(s), best of {repeats}")
    print(f"{'solver':18}{'seconds':>9}{'x ours':>8}{'peak MB':>9}{'x ours':>8}{'mean log10 penalty':>20}")
    best = {n: (min(r[n][0] for r in rounds), max(r[n][1] for r in rounds), rounds[0][n][2]) for n in names}
    for n, (s, mb, alpha) in best.items(): print(f"{n:18}{s:9.2f}{s / best['ours'][0]:8.2f}{mb:9.0f}{mb / max(best['ours'][1], 1):8.2f}{alpha:20.3f}", flush=True)


def growth(threads):
    base = dict(T=600, F=256, V=2000)
    print(f"\ngrowth of VoxelwiseRidge from T = 600, F = 256, V = 2000\n{'':12}{'seconds':>9}{'peak MB':>9}")
    for change in [{}] + [{k: base[k] * m} for k in base for m in (2, 4)]:
        seconds, mb, _ = measure("ours", **(base | change), threads=threads, repeats=2)
        print(f"{', '.join(f'{k} = {v}' for k, v in change.items()) or 'base':12}{seconds:9.2f}{mb:9.0f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--growth", action="store_true")
    args = parser.parse_args()
    if args.one: one(args.one[0], *map(int, args.one[1:]), args.threads)
    else:
        compare(600, 512, 1000, list(FITS), args.threads, args.repeats)
        compare(300, 1536, 1000, list(FITS), args.threads, args.repeats)
        compare(2400, 512, 4000, ["ours", "himalaya", "himalaya_kernel"], args.threads, 1)
        if args.growth: growth(args.threads)
