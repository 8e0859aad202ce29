"""Bias and spread of every noise ceiling on simulated voxels whose ceiling is known, by repeats,
signal-to-noise, length and noise.

python tests/bench/ceilings.py [--voxels 300] [--seeds 5] [--out
nbs/experiments/results/ceilings.csv]

A voxel is `rho` signal and 1 - rho noise, both of variance 1. The signal is autocorrelated as a
haemodynamic response makes it (AR(1), 0.7); the noise is white, AR(1) with the coefficient of
`simulate.brain`, or that plus its share of slow drift. Each ceiling is estimated on R repeats and
compared with the correlation that a perfect model reaches, in expectation, with the mean of R
repeats, sqrt(R rho / (1 + (R - 1) rho)). Then the perfect model's correlation is divided by it: on
R fresh repeats, and on the repeats that made it.

Columns: noise, rho, repeats, trs, ceiling, seed, truth; over voxels, bias (of the mean where
defined), spread (standard deviation), undefined (share of voxels without a ceiling). Normalised
alignment of the perfect model on fresh repeats, over voxels with a ceiling: median, mean, above_1
(share of voxels above 1), ratio (mean r over mean ceiling); pooled (mean r of all voxels over the
ceiling that the mean of rho gives). chosen (share of voxels with a ceiling above 0.4) and their
mean raw r on fresh repeats and on those that chose them, chosen_fresh, chosen_same. Repeats are
z-scored, except for the ceiling that measures the power."""

import argparse
import itertools
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.signal import lfilter

from braintune_nb.encode import ceiling
from braintune_nb.encode.score import correlation
from braintune_nb.simulate.brain import BrainParameters

KNOBS = BrainParameters()
NOISES = ("white", "ar1", "ar1 and drift")
RHOS, REPEATS, TRS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4), (2, 3, 5, 10), (100, 300)
PEOPLE = "leave one participant out"


def ar1(rng, shape, a):
    """First-order autoregressive series along the last axis but one, variance 1 after a start
    that is cut."""
    white = rng.standard_normal((*shape[:-2], shape[-2] + 30, shape[-1])) * np.sqrt(1 - a * a)
    return lfilter([1], [1, -a], white, axis=-2)[..., 30:, :]


def noise_of(kind, rng, R, T, V, tr=2.0):
    "Noise of R repeats, (R, T, V), variance 1."
    x = ar1(rng, (R, T, V), 0.0 if kind == "white" else KNOBS.autocorrelation)
    if kind != "ar1 and drift":
        return x
    period = (
        rng.uniform(130, 400, (R, 3, 1)) / tr
    )  # as in simulate.brain: three slow cosines a repeat
    waves = np.cos(2 * np.pi * (np.arange(T) / period + rng.uniform(0, 1, (R, 3, 1)))).transpose(
        0, 2, 1
    ) * np.sqrt(2 / 3)
    return (x + waves @ (rng.standard_normal((R, 3, V)) * np.sqrt(KNOBS.drift))) / np.sqrt(
        1 + KNOBS.drift
    )


def voxels(kind, rho, R, T, V, seed):
    """Signal (T, V); R repeats for the ceiling as they are and z-scored over time; R for the
    score; R of another story."""
    rng = np.random.default_rng([seed, NOISES.index(kind), int(1000 * rho), R, T])
    signal = ar1(rng, (T, V), 0.7)
    made, fresh = (
        np.sqrt(rho) * signal + np.sqrt(1 - rho) * noise_of(kind, rng, R, T, V) for _ in range(2)
    )
    other = np.sqrt(rho) * ar1(rng, (T, V), 0.7) + np.sqrt(1 - rho) * noise_of(kind, rng, R, T, V)
    return (
        signal,
        made,
        *(
            (y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True, ddof=1)
            for y in (made, fresh, other)
        ),
    )


def reliabilities(raw, made, other):
    "Reliability of one repeat by every ceiling that estimates it, (V,)."
    found = {
        name: kind.reliability(raw if "measured" in name else made)
        for name, kind in ceiling.CEILINGS.items()
    }
    return found | {"explainable variance, other story": ceiling.explainable_variance(other)}


def mean(x):
    return x.mean() if x.size else np.nan


def row(found, truth, fresh, same):
    """Bias and spread of one ceiling, and what dividing a perfect model's r by it gives; all
    (V,), or (P, V) for participants."""
    has = np.isfinite(found)
    share, chosen = fresh[has] / found[has], has & (found > 0.4)
    return dict(
        truth=truth,
        bias=mean(found[has]) - truth,
        spread=found[has].std(),
        undefined=1 - has.mean(),
        median=np.median(share),
        mean=share.mean(),
        above_1=(share > 1).mean(),
        ratio=fresh[has].mean() / found[has].mean(),
        chosen=chosen.mean(),
        chosen_fresh=mean(fresh[chosen]),
        chosen_same=mean(same[chosen]),
    )


def each_correlation(signal, participants):
    return np.stack([correlation(signal, y) for y in participants])


def true_ceiling(rho, R):
    "Of the mean over R repeats, each with that share of signal."
    return (R * rho / (1 + (R - 1) * rho)) ** 0.5


def cell(kind, rho, R, T, V, seed):
    "Rows of one simulation."
    signal, raw, made, fresh, other = voxels(kind, rho, R, T, V, seed)
    labels = dict(noise=kind, rho=rho, repeats=R, trs=T, seed=seed)
    perfect = [correlation(signal, y.mean(0)) for y in (fresh, made)]
    for name, single in reliabilities(raw, made, other).items():
        pooled = perfect[0].mean() / ceiling.expected_correlation(np.nanmean(single), R)
        found = row(ceiling.expected_correlation(single, R), true_ceiling(rho, R), *perfect)
        yield labels | dict(ceiling=name) | found | dict(pooled=float(pooled))
    if R >= 3:  # participants instead of repeats; the truth is the ceiling of one participant
        one = [each_correlation(signal, x) for x in (fresh, made)]
        found = row(ceiling.leave_one_participant_out(made, corrected=True), rho**0.5, *one)
        yield labels | dict(ceiling=PEOPLE) | found


def table(noises=NOISES, rhos=RHOS, repeats=REPEATS, trs=TRS, voxels=300, seeds=5, progress=False):
    "One row a simulation and ceiling."
    rows, start = [], time.time()
    grid = list(itertools.product(noises, rhos, repeats, trs, range(seeds)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i, (kind, rho, R, T, seed) in enumerate(grid):
            rows += cell(kind, rho, R, T, voxels, seed)
            if progress and i % 50 == 49:
                print(
                    f"{i + 1} of {len(grid)} simulations, {time.time() - start:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--voxels", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--out",
        default=Path(__file__).resolve().parents[2] / "nbs/experiments/results/ceilings.csv",
    )
    args = parser.parse_args()
    found = table(voxels=args.voxels, seeds=args.seeds, progress=True)
    found.to_csv(args.out, index=False, float_format="%.3g")
    shown = (
        found[(found.noise == "ar1") & (found.trs == 300)]
        .groupby(["ceiling", "repeats", "rho"])[
            ["bias", "spread", "undefined", "median", "mean", "ratio", "pooled", "above_1"]
        ]
        .mean()
    )
    print(shown.round(3).to_string())
