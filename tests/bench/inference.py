"""Speed and calibration of the permutation tests and intervals of `encode.inference` and
`encode.participants`.

python tests/bench/inference.py --speed voxel_test beside a loop over np.roll, in one run: seconds,
peak memory, ratio -> inference_speed.csv python tests/bench/inference.py --calibrate false
positives, power and coverage on simulated data without and with an effect ->
inference_calibration.csv python tests/bench/inference.py --calibrate --only intervals --datasets
100 --out some.csv one part again; the rows of the other part are kept

Results go to nbs/experiments/results/. Speed: every test runs in a process of its own; memory is
its peak private size above that after the data were made (Linux); one thread, ratios from processor
seconds, which a busy machine changes least. Calibration: rates of a yes-or-no outcome carry the
exact binomial 95 % interval, means over data sets their t interval. Seeds follow from --seed and
the row's own settings."""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zlib
from functools import cache
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "nbs" / "experiments" / "results"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402

# ---- speed


class Peak:
    """Highest private memory (RssAnon, without the pages of mapped files) while the block runs,
    in MB above that at its start; sampled every 3 ms."""

    def now(self):
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("RssAnon")) / 1024

    def watch(self):
        while not self.done.wait(0.003):
            self.top = max(self.top, self.now())

    def __enter__(self):
        self.first = self.top = self.now()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        self.megabytes = self.top - self.first


def shuffled(rng, rows, length):
    "The rows of each story, its blocks in another order."
    moved = []
    for s in rows:
        blocks = [s[i : i + length] for i in range(0, len(s), length)]
        moved += [blocks[j] for j in rng.permutation(len(blocks))]
    return np.concatenate(moved)


def random_array(rng, path, shape, mapped):
    "Noise, drawn 500 rows at a time; in memory, or in a file that is read as it is needed."
    if not mapped:
        return filled(rng, np.empty(shape, np.float32))
    filled(rng, np.memmap(path, np.float32, "w+", shape=shape))
    return np.memmap(path, np.float32, "r", shape=shape)


def filled(rng, out):
    "The array with noise in it."
    flat = out.reshape(-1, out.shape[-1])
    for i in range(0, len(flat), 500):
        flat[i : i + 500] = rng.standard_normal(flat[i : i + 500].shape, dtype=np.float32)
    return out


def naive(prediction, responses, n, groups, kind, length):
    """What one writes first: standardise, move the rows of each story, multiply, keep all
    draws, count."""
    from braintune_nb.encode.inference import draw_shifts

    x, y = ((a - a.mean(0)) / a.std(0) / len(a) ** 0.5 for a in (prediction, responses))
    rows, shifts = draw_shifts(groups, n, 0, 1)
    rng, null, r = np.random.default_rng(0), np.empty((n, x.shape[1]), np.float32), (x * y).sum(0)
    for i in range(n):
        if kind == "circular_shift":
            moved = np.concatenate([np.roll(x[s], k, 0) for s, k in zip(rows, shifts[i])])
        else:
            moved = x[shuffled(rng, rows, length)]
        null[i] = (moved * y).sum(0)
    return ((null >= r).sum(0) + 1) / (n + 1)


def warm_up(x, y):
    "Both nulls once, on a few voxels."
    from braintune_nb.encode.inference import voxel_test

    few = np.asarray(x[..., :200, :2]), np.asarray(y[:200, :2])
    for kind in ("circular_shift", "block_permutation"):
        voxel_test(*few, kind, 100, progress=False)


def measured(tool, kind, x, y, n, groups):
    "Seconds, megabytes, and the share of small p, of one tool."
    from braintune_nb.encode.inference import voxel_test

    start, cpu, planned = time.perf_counter(), time.process_time(), None
    with Peak() as peak:
        if tool == "naive":
            p = naive(x, y, n, groups, kind, 20)
        else:
            test = voxel_test(x, y, kind, n, groups=groups, progress=False)
            p, planned = test.p, round(test.bytes / 2**20)
    return dict(
        cpu_seconds=round(time.process_time() - cpu, 3),
        wall_seconds=round(time.perf_counter() - start, 3),
        megabytes=round(peak.megabytes),
        planned=planned,
        share_below_5_percent=float((p <= 0.05).mean()),
    )


def one_speed(tool, kind, stories, trs, voxels, n, layers, mapped):
    "Run once in this process; print seconds and peak megabytes above the data."

    rng, T = np.random.default_rng(0), stories * trs
    groups = np.repeat(np.arange(stories), trs)
    with tempfile.TemporaryDirectory() as folder:
        shape = (T, voxels)
        x = random_array(rng, Path(folder) / "x", (layers,) * (layers > 1) + shape, mapped)
        y = random_array(rng, Path(folder) / "y", shape, mapped)
        warm_up(x, y)
        print(json.dumps(measured(tool, kind, x, y, n, groups)))


SPEED = [  # tool, null, stories, TRs a story, voxels, draws, layers, memory map
    ("voxel_test", "circular_shift", 10, 300, 2000, 1000, 1, 0),
    ("naive", "circular_shift", 10, 300, 2000, 1000, 1, 0),
    ("voxel_test", "block_permutation", 10, 300, 2000, 1000, 1, 0),
    ("naive", "block_permutation", 10, 300, 2000, 1000, 1, 0),
    ("voxel_test", "circular_shift", 10, 300, 2000, 10000, 1, 0),
    ("voxel_test", "circular_shift", 10, 300, 2000, 1000, 6, 0),
    ("voxel_test", "circular_shift", 84, 333, 500, 1000, 1, 0),
    ("naive", "circular_shift", 84, 333, 500, 1000, 1, 0),
    ("voxel_test", "circular_shift", 84, 333, 8000, 1000, 1, 1),
    ("voxel_test", "block_permutation", 84, 333, 8000, 1000, 1, 1),
]


CASE = ("tool", "null", "stories", "trs", "voxels", "draws", "layers", "memory_map")


def timed(case):
    "The row of one case, measured in a process of its own."
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(case)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    row = dict(zip(CASE, case)) | json.loads(done.stdout)
    size = row["stories"] * row["trs"] * row["voxels"] * row["layers"]
    row["ns_per_tr_voxel_layer"] = round(row["cpu_seconds"] / size * 1e9, 2)
    print(row, file=sys.stderr)
    return row | dict(seed=0)


def speed(out):
    rows = [timed(case) for case in SPEED]
    same = lambda row: tuple(row[k] for k in CASE[1:-1])
    naive_seconds = {same(row): row["cpu_seconds"] for row in rows if row["tool"] == "naive"}
    for row in rows:
        slow = None if row["tool"] == "naive" else naive_seconds.get(same(row))
        row["times_faster"] = "" if slow is None else round(slow / row["cpu_seconds"], 1)
    write(out, rows)


# ---- simulated voxels


@cache
def hrf():
    "Two gamma functions at a TR of 2 s, 16 points, length 1."
    from scipy.stats import gamma

    t = np.arange(0, 32, 2.0)
    h = gamma.pdf(t, 6) - gamma.pdf(t, 16) / 6
    return h / np.sqrt((h**2).sum())


def smooth(rng, T, n):
    "Features after the haemodynamic response: (T, n), variance 1."
    from scipy.signal import lfilter

    return lfilter(hrf(), 1, rng.standard_normal((T + 16, n)), axis=0)[16:]


def noise(rng, kind, T, n):
    """AR(1) of the coefficient in its name, plus smooth stimulus signal that no model has
    ('+hrf'), or what repeats in every story: an answer to its onset, a trend: (T, n)."""
    from scipy.signal import lfilter

    phi, *more = kind.removeprefix("ar").split("+")
    x = lfilter(
        [(1 - float(phi) ** 2) ** 0.5], [1, -float(phi)], rng.standard_normal((T + 50, n)), axis=0
    )[50:]
    if more == ["hrf"]:
        x = (x + smooth(rng, T, n)) / 2**0.5
    return x + (every_story(more[0], T) if more and more != ["hrf"] else 0)


def every_story(kind, T):
    """What comes back in every story at the same place: a transient of 10 s at its onset, or a
    trend; (T, 1)."""
    return dict(onset=3 * np.exp(-np.arange(T) / 5), trend=0.6 * np.linspace(-1.7, 1.7, T))[kind][
        :, None
    ]


def one_story(rng, trs, features, weights, kind, common, V):
    "Predictions of each layer and the noise of one story."
    p = smooth(rng, trs, features) @ weights / features**0.5
    if kind.endswith(("onset", "trend")):
        p = p + every_story(kind.split("+")[1], trs)
    y = common**0.5 * noise(rng, kind, trs, 1) + (1 - common) ** 0.5 * noise(rng, kind, trs, V)
    return p, y


def voxels(rng, kind, stories, trs, V, true=0.0, r=0.2, layers=1, common=0.3, features=8):
    """One data set: prediction ([layers,] T, V) from shared smooth features, responses (T, V),
    truth (V,). Voxels share a part of the noise, as brains do."""
    parts = []
    truth = np.arange(V) < round(true * V)
    weights = rng.standard_normal((layers, features, V))
    for _ in range(stories):
        p, y = one_story(rng, trs, features, weights, kind, common, V)
        parts.append((p, np.where(truth, r * p[0] + (1 - r**2) ** 0.5 * y, y)))
    p, y = (np.concatenate(a, -2) for a in zip(*parts))
    return p if layers > 1 else p[0], y, truth


def binomial(hits, n):
    from scipy.stats import binomtest

    ci = binomtest(int(hits), int(n)).proportion_ci()
    return dict(rate=round(hits / n, 4), ci_low=round(ci.low, 4), ci_high=round(ci.high, 4))


def average(x):
    from scipy.stats import t

    x = np.asarray(x, float)
    half = t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
    return dict(
        rate=round(x.mean(), 4), ci_low=round(x.mean() - half, 4), ci_high=round(x.mean() + half, 4)
    )


METHODS = [
    ("iid", None),
    ("circular_shift", None),
    *(("block_permutation", b) for b in (5, 10, 20, 30)),
]


REMEDY = {"first 20 TRs left out": "onset", "line removed in each story": "trend"}


def number_of_draws(method, stories, trs, n):
    "As many as asked for; a single story has no more shifts."
    if method == "iid":
        return ""
    return trs - 1 if method == "circular_shift" and stories == 1 else n


def p_of(x, y, name, length, n, groups, seed):
    "p of every voxel by one method."
    from scipy.stats import pearsonr

    from braintune_nb.encode.inference import voxel_test

    if name == "iid":
        return pearsonr(x[groups >= 0], y[groups >= 0], alternative="greater").pvalue
    return voxel_test(x, y, name, n, seed, groups, length, progress=False).p


def count(out, own, truth):
    "What the p of one data set add to the rates."
    from braintune_nb.encode.inference import fdr

    found = fdr(own) <= 0.05
    out["any"].append(found[~truth].any())
    out["size"].append((own[~truth] <= 0.05).mean())
    out["fdp"].append(found[~truth].sum() / max(1, found.sum()))
    if truth.any():
        out["power"].append(found[truth].mean())


def without_trend(x, stories, trs):
    "The rows of each story without a straight line."
    from scipy.signal import detrend

    return detrend(x.reshape(stories, trs, -1), axis=1).reshape(x.shape)


def rates(row, out, true, r):
    "The rows of one method."
    if true == 0:
        found = binomial(sum(out["any"]), row["datasets"])
        yield dict(check="any finding at q <= 0.05, no effect", nominal=0.05, **row, **found)
    else:
        yield dict(
            check="false share of the findings at q <= 0.05",
            nominal=round(0.05 * (1 - true), 4),
            **row,
            **average(out["fdp"]),
        )
        power = average(out["power"])
        yield dict(check=f"true voxels found at r = {r:g}", nominal="", **row, **power)
    size = average(out["size"])
    yield dict(check="voxels without effect at p <= 0.05", nominal=0.05, **row, **size)


def many_sets(chunk, datasets, start, rng, kind, stories, trs, V, true, r, remedy):
    "Predictions and responses of a chunk of data sets side by side; the truth of each."
    size = min(chunk, datasets - start)
    sets = [voxels(rng, kind, stories, trs, V, true, r) for _ in range(size)]
    *arrays, truths = zip(*sets)
    # the draws do not depend on the column: many data sets at once, new draws every chunk
    x, y = (np.concatenate(a, 1) for a in arrays)
    if REMEDY.get(remedy) == "trend":
        x, y = (without_trend(a, stories, trs) for a in (x, y))
    return truths, x, y


def count_chunk(methods, stories, trs, n, x, y, groups, base, start, truths, got, V):
    "What a chunk of data sets adds to the rates of every method."
    for name, length in methods:
        draws = number_of_draws(name, stories, trs, n)
        p = p_of(x, y, name, length, draws, groups, base + start)
        for i, truth in enumerate(truths):
            count(got[name, length], p[i * V : (i + 1) * V], truth)


def table_of_rates(stories, trs, true, remedy, got, n, kind, datasets, seed, r):
    "The rows of all methods."
    sizes = dict(stories=stories, trs=trs, share_true=true, remedy=remedy)
    for (name, length), out in got.items():
        draws = number_of_draws(name, stories, trs, n)
        row = dict(method=name, block_length=length or "", draws=draws, noise=kind, **sizes)
        yield from rates(row | dict(datasets=datasets, seed=seed), out, true, r)


def voxel_rows(
    kind,
    stories,
    trs,
    datasets,
    seed,
    true=0.0,
    methods=METHODS,
    V=60,
    n=1999,
    chunk=50,
    r=0.2,
    remedy="",
):
    """Rates of every method on the same data sets: any finding without an effect; with one,
    false share of the findings and true voxels found."""
    base = zlib.crc32(f"{kind} {stories} {trs} {true}{remedy}".encode()) + seed
    rng = np.random.default_rng(base)
    got = {m: dict(any=[], size=[], fdp=[], power=[]) for m in methods}
    groups = np.repeat(np.arange(stories), trs)
    if REMEDY.get(remedy) == "onset":
        groups[np.tile(np.arange(trs) < 20, stories)] = -1
    for start in range(0, datasets, chunk):
        truths, x, y = many_sets(
            chunk, datasets, start, rng, kind, stories, trs, V, true, r, remedy
        )
        count_chunk(methods, stories, trs, n, x, y, groups, base, start, truths, got, V)
    yield from table_of_rates(stories, trs, true, remedy, got, n, kind, datasets, seed, r)


def layer_p(x, y, n, seed, groups):
    "p by a null that chooses a layer too, and by one that does not."
    from braintune_nb.encode.inference import circular_shift_null, permutation_p, voxel_test

    best = voxel_test(x, y, n=n, seed=seed, groups=groups, progress=False)
    one = circular_shift_null(x[0], y, n, seed, groups=groups)
    return {"maximum in each draw": best.p, "null of one layer": permutation_p(best.r, one)}


def layer_table(stories, trs, layers, datasets, n, seed, found, size):
    "Rates of both nulls."
    sizes = dict(stories=stories, trs=trs, layers=layers, datasets=datasets, draws=n, seed=seed)
    for name, any_found in found.items():
        row = dict(method=f"circular_shift, {name}", noise="ar0.5", **sizes, nominal=0.05)
        rate = binomial(sum(any_found), datasets)
        yield dict(check="any finding at q <= 0.05, no effect", **row, **rate)
        yield dict(check="voxels without effect at p <= 0.05", **row, **average(size[name]))


def layer_rows(datasets, seed, layers=6, V=60, n=1999, stories=3, trs=300):
    "The best of six layers against a null that chooses too, and one that does not."
    from braintune_nb.encode.inference import fdr

    rng, groups = np.random.default_rng(seed + 77), np.repeat(np.arange(stories), trs)
    found, size = {}, {}
    for i in range(datasets):
        x, y, _ = voxels(rng, "ar0.5", stories, trs, V, layers=layers)
        for name, p in layer_p(x, y, n, i, groups).items():
            found.setdefault(name, []).append((fdr(p) <= 0.05).any())
            size.setdefault(name, []).append((p <= 0.05).mean())
    yield from layer_table(stories, trs, layers, datasets, n, seed, found, size)


# ---- simulated participants


def experiment(rng, participants, gain=0.0, spread=0.1, stories=3, trs=80, length=20, V=4):
    """Block sums of two arms, each with a direction of its own; `gain` is the mean preference
    of brains for the first, `spread` its scatter over participants. length 0: one block a story."""
    from braintune_nb.encode.inference import block_labels, block_sums

    labels, owner = block_labels(np.repeat(np.arange(stories), trs), length or trs)

    def all_stories(make, V):
        return np.concatenate([make(rng, trs, V) for _ in range(stories)])

    signal, first, second = (all_stories(smooth, 1) for _ in range(3))
    arms = [], []
    for _ in range(participants):
        lean = gain + spread * rng.standard_normal()
        brain = (
            signal
            + (0.3 + lean) * first
            + (0.3 - lean) * second
            + 2 * all_stories(lambda r, t, v: noise(r, "ar0.5+hrf", t, v), V)
        )
        for arm, own in zip(arms, (first, second)):
            arm.append(block_sums(np.repeat(signal + 0.5 * own, V, 1), brain, labels))
    return *arms, owner if length else None


def draws(arms, owner, n, seed):
    from braintune_nb.encode.inference import region_scores

    a, b = (region_scores(arm, stories=owner, n=n, seed=seed)[:, :, 0, :1] for arm in arms)
    return (a - b)[:, :, None]  # (P, n + 1, 1 region, 1 kind)


def truth(seed, gain, spread, **size):
    "Mean score difference over many participants and much stimulus."
    rng = np.random.default_rng(seed + 5)
    size = size | dict(trs=20 * size["trs"])
    drawn = (experiment(rng, 20, gain, spread, **size) for _ in range(6))
    return float(np.mean([draws((a, b), o, 1, 0)[:, 0].mean() for a, b, o in drawn]))


def limits_by_method(rng, scores, count, strata, n):
    "Method -> 95 % limits of the gain."
    from braintune_nb.encode.inference import crossed_interval

    participants = len(scores)
    got = crossed_interval(scores[:, 0, 0, 0], scores[:, 1:, 0, 0], count, strata)
    picked = rng.integers(participants, size=(n, participants))
    means = scores[:, 1:, 0, 0][picked, np.arange(n)[:, None]].mean(1)
    return {
        "crossed_interval": (got["ci_low"], got["ci_high"]),
        "participants-only t": (got["participants_low"], got["participants_high"]),
        "plain crossed percentile": np.quantile(means, [0.025, 0.975]),
    }


def misses(rng, participants, gain, spread, size, aim, count, strata, datasets, n):
    "Times that each interval misses the aim, gains found, own intervals that miss, n-of-N found."
    from braintune_nb.encode.group import participant_intervals, prevalence

    miss, own, found, alone = {}, [], 0, 0
    for i in range(datasets):
        *arms, owner = experiment(rng, participants, gain, spread, **size)
        scores = draws(arms, owner, n, i)
        limits = limits_by_method(rng, scores, count, strata, n)
        for name, (a, b) in limits.items():
            miss[name] = miss.get(name, 0) + (not a <= aim <= b)
        found += limits["crossed_interval"][0] > 0
        each = participant_intervals(scores, count, strata)
        own.append(((each[..., 0] > aim) | (each[..., 1] < aim)).mean())
        alone += prevalence(each)["p_positive"][0, 0] <= 0.05
    return miss, own, found, alone


def participants_table(miss, row, datasets, gain, found, spread, own, alone):
    "The rows of one experiment."
    check = "95 % interval misses the true gain"
    for name, k in miss.items():
        yield dict(check=check, method=name, nominal=0.05, **row, **binomial(k, datasets))
    if gain:
        one = dict(check="gain found", method="crossed_interval", nominal="")
        yield one | row | binomial(found, datasets)
    elif (
        spread == 0
    ):  # with a spread participants differ truly, and their own intervals should leave 0
        one = dict(check=check, method="participant_intervals, each participant", nominal=0.05)
        yield one | row | average(own)
        one = dict(check="n-of-N at p <= 0.05, no effect", method="prevalence", nominal=0.05)
        yield one | row | binomial(alone, datasets)


def participant_rows(participants, gain, spread, stories, trs, length, datasets, seed, n=200):
    """How often 95 % intervals miss the true gain: crossed, participants only, plain crossed
    percentile, and each participant's own."""
    key = f"{participants} {gain} {spread} {stories} {trs} {length}"
    rng = np.random.default_rng(zlib.crc32(key.encode()) + seed)
    size = dict(stories=stories, trs=trs, length=length)
    aim = truth(seed, gain, spread, **size) if gain else 0.0
    blocks, strata = stories * max(1, trs // length if length else 1), stories if length else 1
    miss, own, found, alone = misses(
        rng, participants, gain, spread, size, aim, blocks, strata, datasets, n
    )
    size["block_length"] = size.pop("length") or "story"
    row = dict(participants=participants, gain=gain, spread=spread, **size, blocks=blocks)
    row |= dict(datasets=datasets, draws=n, seed=seed)
    yield from participants_table(miss, row, datasets, gain, found, spread, own, alone)


def crossed_values(rng, participants, stories, seeds):
    "Values made of participants, stories, seeds and their interaction."
    return (
        rng.standard_normal((participants, 1, 1))
        + rng.standard_normal((1, stories, 1))
        + 0.5 * rng.standard_normal((1, 1, seeds))
        + rng.standard_normal((participants, stories, 1))
        + 0.5 * rng.standard_normal((participants, stories, seeds))
    )


def count_misses(x, miss, names):
    "Which intervals miss the mean 0."
    from scipy.stats import t

    from braintune_nb.encode.group import random_effects_interval

    got = random_effects_interval(x)
    miss[names[0]] += not got["ci_low"] <= 0 <= got["ci_high"]
    for name, v in ((names[1], x.mean((1, 2))), (names[2], x.ravel())):
        miss[name] += abs(v.mean()) > t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / len(v) ** 0.5


def values_rows(participants, stories, seeds, datasets, seed):
    """Scores made of participants, stories, seeds and their interaction: how often intervals
    miss the mean."""

    rng = np.random.default_rng(zlib.crc32(f"{participants} {stories} {seeds}".encode()) + seed)
    names = (
        "random_effects_interval",
        "seeds averaged, t over participants",
        "every seed and story a sample, t",
    )
    miss = dict.fromkeys(names, 0)
    for _ in range(datasets):
        x = crossed_values(rng, participants, stories, seeds)
        count_misses(x, miss, names)
    size = dict(
        participants=participants, stories=stories, seeds=seeds, datasets=datasets, seed=seed
    )
    for name, k in miss.items():
        one = dict(check="95 % interval misses the true mean", method=name, nominal=0.05)
        yield one | size | binomial(k, datasets)


def drawing(rng, shape):
    "The function that draws values of one shape."
    return dict(
        normal=lambda s: rng.standard_normal(s),
        heavy=lambda s: rng.standard_t(3, s),
        skewed=lambda s: rng.exponential(size=s) - 1,
    )[shape]


def count_regions(datasets, make, participants, regions, tests, size, family):
    "Tests that find something in the first region, and in any of them."
    from braintune_nb.encode.group import group_region_tests

    for _ in range(datasets):
        x = (make((participants, 1)) + make((participants, regions))) / 2**0.5
        got = group_region_tests({f"r{j}": x[:, j] for j in range(regions)})
        for k in tests:
            size[k] += got["r0"][k] <= 0.05
            family[k] += min(r[k + "_holm"] for r in got.values()) <= 0.05


def test_rows(participants, shape, datasets, seed, regions=6):
    """Participants' values with mean 0: coverage of the t interval, size of each test, and of
    Holm over correlated regions."""

    rng = np.random.default_rng(zlib.crc32(f"{participants} {shape}".encode()) + seed)
    make = drawing(rng, shape)
    tests = ("p_t", "p_wilcoxon", "p_flip")
    size, family = dict.fromkeys(tests, 0), dict.fromkeys(tests, 0)
    count_regions(datasets, make, participants, regions, tests, size, family)
    row = dict(noise=shape, participants=participants, datasets=datasets, seed=seed, nominal=0.05)
    for k in tests:
        for check, times in (
            ("one region at p <= 0.05, no effect", size[k]),
            ("any of six regions after Holm, no effect", family[k]),
        ):
            yield dict(check=check, method=k, **row, **binomial(times, datasets))


def intervals(datasets, seed):
    jobs = [
        (participant_rows, (participants, 0.0, spread, 3, 80, 20, datasets, seed))
        for participants in (4, 8)
        for spread in (0.0, 0.1, 0.3)
    ]
    jobs += [
        (participant_rows, (participants, 0.15, 0.1, 3, 80, 20, datasets, seed))
        for participants in (4, 8)
    ]
    jobs += [
        (participant_rows, (participants, 0.0, spread, 3, 300, 20, datasets, seed))
        for participants in (4, 8)
        for spread in (0.0, 0.1)
    ]
    jobs += [
        (participant_rows, (participants, 0.0, 0.1, stories, 100, 0, datasets, seed))
        for participants in (4, 8)
        for stories in (4, 8)
    ]
    jobs += [
        (values_rows, (participants, stories, seeds, 4 * datasets, seed))
        for participants in (4, 8)
        for stories in (3, 8)
        for seeds in (1, 3)
    ]
    return jobs + [
        (test_rows, (participants, shape, 2 * datasets, seed))
        for participants in (4, 8)
        for shape in ("normal", "heavy", "skewed")
    ]


def write(path, rows):
    columns = list(dict.fromkeys(k for row in rows for k in row))
    with open(path, "w", newline="") as f:
        w = csv.DictWriter(f, columns, restval="")
        w.writeheader()
        w.writerows(rows)
    print(",".join(columns))
    for row in rows:
        print(",".join(str(row.get(k, "")) for k in columns))
    print(f"wrote {path}", file=sys.stderr)


def voxel_jobs(datasets, seed):
    "The checks of voxel tests: noise, number of stories, length, effects, remedies, layers."
    noises = ("ar0.3", "ar0.5", "ar0.7", "ar0.5+hrf", "ar0.5+onset", "ar0.5+trend")
    sizes = [(kind, 3, 300, datasets, seed) for kind in noises]
    sizes += [("ar0.5", stories, trs, datasets, seed) for stories, trs in ((1, 300), (10, 300))]
    sizes += [("ar0.5", 3, 100, datasets, seed)]
    sizes += [(kind, 3, 300, datasets, seed, 0.2) for kind in noises[:3]]
    sizes += [("ar0.5", 1, 300, datasets, seed, 0.2)]
    sizes += [
        (f"ar0.5+{what}", 3, 300, datasets, seed, 0.0, METHODS, 60, 1999, 50, 0.2, remedy)
        for remedy, what in REMEDY.items()
    ]
    return [*((voxel_rows, size) for size in sizes), (layer_rows, (datasets, seed))]


def calibrate(out, datasets, seed, only):
    from tqdm import tqdm

    warnings.simplefilter("ignore")
    jobs = []
    if only in (None, "voxels"):
        jobs += voxel_jobs(datasets, seed)
    if only in (None, "intervals"):
        jobs += intervals(datasets, seed)
    rows = [
        dict(part="voxels" if job in (voxel_rows, layer_rows) else "intervals", **row)
        for job, args in tqdm(jobs, "checks")
        for row in job(*args)
    ]
    if only and out.exists():
        with open(out, newline="") as f:
            kept = [row for row in csv.DictReader(f) if row["part"] != only]
        rows = rows + kept if only == "voxels" else kept + rows
    write(out, rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--datasets", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["voxels", "intervals"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        one_speed(*json.loads(a.one))
    if a.speed:
        speed(a.out or RESULTS / "inference_speed.csv")
    if a.calibrate:
        calibrate(a.out or RESULTS / "inference_calibration.csv", a.datasets, a.seed, a.only)
    if not (a.one or a.speed or a.calibrate):
        parser.print_help()


if __name__ == "__main__":
    main()
