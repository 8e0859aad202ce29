"""Known truth of chapter analyses.lowlevel: planted unique and shared parts against what the two
methods say.

python tests/bench/variance_partition.py [--seeds 10] [--voxels 16] [--out
nbs/experiments/results/variance_partition.csv] python tests/bench/variance_partition.py --alice
writes variance_partition_alice.csv beside it; needs BRAINTUNE_DATA (Brennan et al. 2016) and MiniLM

`study` truth: 40 stories of 300 TRs, 24 to fit and 16 to score, every structure, correlation and
planted share; `study` length: fewer stories to fit, with the in-sample difference beside the
held-out one; `study` width: more model columns that drive nothing. All parts are points of
explained variance: 100 x part / R² of the joint model. A row is a kind of voxel in one seed (mean
over its voxels). About six minutes on one core."""

import argparse
import itertools
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from braintune_nb.analyses.alignment import story_design
from braintune_nb.analyses.lowlevel import (
    impact_predictions,
    impact_table,
    impact_voxels,
    lowlevel_impact,
    planted_impact,
)
from braintune_nb.encode.banded import BandedRidge, ratio_grid

PARTS = ("unique_model", "shared", "unique_lowlevel")
LEVELS = (0, 25, 50, 75)


def kinds(structure, rho):
    "What is planted: (unique, shared, unique low) in shares, or the share of meaning."
    if structure == "correlated":
        return [0, 0.25, 0.5, 0.75, 1]
    return [
        (u / 100, s / 100, (100 - u - s) / 100)
        for u, s in itertools.product(LEVELS, LEVELS)
        if u + s <= 100 and (s == 0 or rho > 0)
    ]


def percentages(p, r, truth):
    "Planted and found parts in percent of what is explained, by both methods."
    found = {f"true_{k}": 100 * t for k, t in zip(PARTS, truth)}
    found |= {k: 100 * p[k] / p.explained for k in PARTS}
    return found | dict(
        split_model=100 * p.split_model / p.explained,
        percentage=r.percentage,
        percentage_variance=r.percentage_variance,
        residual_unique=100 * r.unique_model / p.explained,
        partition_percentage=p.percentage,
        partition_percentage_variance=p.percentage_variance,
    )


def impact_of(planted, groups, stories):
    "Both methods by kind of voxel."
    guess = impact_predictions(
        planted["lowlevel"],
        planted["model"],
        planted["responses"],
        groups,
        test=99,
        stories=stories,
    )
    return impact_table(
        impact_voxels(guess, planted["responses"]),
        {i: planted["kind"] == i for i in range(len(planted["truth"]))},
    ).set_index(["method", "region"])


def folds_of(stories, fit):
    "At most six folds to choose the penalties, one set of scored stories."
    return np.where(stories < fit, stories * min(fit, 6) // fit, 99)


def measure(structure, rho, seed, voxels, fit=24, score=16, length=300, extra=16):
    "One simulated recording: a row per kind of voxel."
    size = dict(n_stories=fit + score, length=length, voxels=voxels, seed=seed, extra=(extra, 4))
    planted = planted_impact(kinds(structure, rho), rho, structure, **size)
    stories = planted["stories"]
    groups = folds_of(stories, fit)
    table = impact_of(planted, groups, stories)
    rows, columns = [], 4 * (planted["lowlevel"].shape[1] + planted["model"].shape[1])
    for i, truth in enumerate(planted["truth"]):
        p, r = (table.loc[(method, i)] for method in ("partition", "residual"))
        row = dict(
            structure=structure,
            rho=rho,
            kind=i,
            fit=fit * length,
            score=score * length,
            columns=columns,
            seed=seed,
            explained=100 * p.explained / 0.3,
        )
        row |= percentages(p, r, truth)
        rows.append(row)
    return rows, planted, groups


def explained(x, y):
    "Share of the variance, by least squares scored on the rows it was fitted to."
    gram, cross = x.T @ x, x.T @ y
    stable = gram + 1e-8 * np.trace(gram) / len(gram) * np.eye(len(gram))
    return (cross * np.linalg.solve(stable, cross)).sum(0) / (y**2).sum(0)


def in_sample(planted, groups):
    """Unique part of the model in points of explained variance, by least squares scored on the
    rows it was fitted to."""
    rows = groups < 99
    scored = [planted["stories"] == s for s in np.unique(planted["stories"][rows])]
    design = lambda x: np.concatenate([story_design(x[s]) for s in scored]).astype(np.float64)
    low_x, model_x = design(planted["lowlevel"]), design(planted["model"])
    y = planted["responses"][rows].astype(np.float64)

    both, low = explained(np.hstack([low_x, model_x]), y), explained(low_x, y)
    by = lambda e: np.array([e[planted["kind"] == i].mean() for i in range(len(planted["truth"]))])
    return 100 * by(both - low) / by(both)


OTHER_SOLVERS = {
    "both_himalaya_same_ratios": lambda: BandedRidge(solver="random_search", ratios=ratio_grid(2)),
    "both_himalaya_60_draws": lambda: BandedRidge(solver="random_search"),
}


def low_features(folder, story):
    "Name -> low-level features and their delays."
    from braintune_nb.data.alice2016 import load_alice_predictors
    from braintune_nb.features.lowlevel import word_rate

    predictors = load_alice_predictors(folder).values()
    mean = lambda k: np.mean([p[k] for p in predictors], 0)
    convolved = np.stack([mean("word_rate"), mean("sound_power")], 1)
    return {
        "word rate and sound power, convolved": (convolved, (0,)),
        "word rate, delayed": (word_rate(story), (1, 2, 3, 4)),
    }


def cleaned(recording, motion, tr, cutoff):
    "z-scored responses without slow drifts, and without motion where that is asked for."
    from braintune_nb.data.recordings import highpass, regress_out, zscore

    y = highpass(np.asarray(recording.responses, np.float64), tr, cutoff)
    steps = np.diff(recording.motion, axis=0, prepend=recording.motion[:1])
    m = highpass(np.c_[recording.motion, steps].astype(np.float64), tr, cutoff)
    return zscore(regress_out(y, m) if motion else y)


def both_methods(low, states, average, groups, data, delays, tr, cutoff):
    "Both methods, and the other solvers of the partition."
    table, _ = lowlevel_impact(
        low,
        states,
        average,
        groups,
        data.recordings["s18"]["alice"].space,
        stories=np.zeros(len(groups)),
        low_delays=delays,
        tr=tr,
        cutoff=cutoff,
    )
    space = data.recordings["s18"]["alice"].space
    settings = dict(
        stories=np.zeros(len(groups)),
        low_delays=delays,
        tr=tr,
        cutoff=cutoff,
        methods=("partition",),
    )
    for column, make in OTHER_SOLVERS.items():
        other, _ = lowlevel_impact(low, states, average, groups, space, make=make, **settings)
        table.loc[table.method == "partition", column] = other.both.to_numpy()
    return table


def alice_states(folder):
    "The data, the story, states of its words and the block of each row."
    from braintune_nb.data.alice2016 import load_alice2016
    from braintune_nb.data.splits import blocks
    from braintune_nb.features.text import text_features
    from braintune_nb.model.backbone import load_backbone

    data, story = load_alice2016(folder), load_alice2016(folder).stories["alice"]
    states = text_features(story, load_backbone("minilm"), [2], n_words=20)[0]
    groups = np.full(len(story.clock), -1)
    for i, section in enumerate(blocks(story, 6, 20.0)):
        groups[section.rows] = i
    return data, story, states, groups


def alice(tr=2.0, cutoff=128.0):
    """Average listener of Alice, MiniLM layer 2: both methods, both kinds of low-level
    features, with and without motion regression; a row per region and method."""
    from braintune_nb.core import data_root
    from braintune_nb.data.recordings import zscore

    folder = data_root() / "alice2016"
    data, story, states, groups = alice_states(folder)
    lows = low_features(folder, story)
    out = []
    for motion in (True, False):
        clean = lambda recording: cleaned(recording, motion, tr, cutoff)

        average = zscore(sum(clean(data.recordings[p]["alice"]) for p in data.participants)).astype(
            np.float32
        )
        for name, (low, delays) in lows.items():
            table = both_methods(low, states, average, groups, data, delays, tr, cutoff)
            out.append(table.assign(motion_regression=motion, low_level=name))
            print(f"motion {motion}, {name}", file=sys.stderr, flush=True)
    return pd.concat(out)


def parsed():
    "What was asked for on the command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--voxels", type=int, default=16)
    parser.add_argument(
        "--out",
        default=str(
            Path(__file__).resolve().parents[2] / "nbs/experiments/results/variance_partition.csv"
        ),
    )
    parser.add_argument("--alice", action="store_true", help="the real data instead")
    return parser.parse_args()


def truth_rows(args, out, start):
    "Known parts: every structure and size of what is shared."
    for structure, rho in [
        ("contained", 0),
        ("contained", 0.4),
        ("contained", 0.8),
        ("correlated", 0),
        ("correlated", 0.4),
        ("correlated", 0.8),
        ("lagged", 0.4),
        ("lagged", 0.8),
    ]:
        for seed in range(args.seeds):
            out += [
                dict(study="truth") | row for row in measure(structure, rho, seed, args.voxels)[0]
            ]
        print(
            f"{structure} {rho}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True
        )
    return out


def length_rows(args, out, start):
    "Recordings of other lengths."
    for fit in (2, 4, 8, 16, 32):
        for seed in range(args.seeds):
            rows, planted, groups = measure("contained", 0.4, 100 + seed, args.voxels, fit=fit)
            out += [
                dict(study="length") | row | dict(in_sample_unique=i)
                for row, i in zip(rows, in_sample(planted, groups))
            ]
        print(f"{fit * 300} TRs: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return out


def width_rows(args, out, start):
    "Features with more columns that hold nothing."
    for extra in (64, 160):
        for seed in range(-(-args.seeds // 2)):
            out += [
                dict(study="width") | row
                for row in measure("contained", 0.4, 200 + seed, args.voxels, extra=extra)[0]
            ]
        print(
            f"{extra} idle latents: {time.perf_counter() - start:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return out


def alice_table(args):
    "The table of the real data, written and shown."
    table = alice().round(4)
    table.to_csv(Path(args.out).with_name("variance_partition_alice.csv"), index=False)
    print(
        table.groupby(["motion_regression", "low_level", "method"])[
            [
                "full",
                "lowlevel",
                "both",
                "both_himalaya_same_ratios",
                "both_himalaya_60_draws",
                "residual",
                "unique_model",
                "shared",
                "unique_lowlevel",
                "percentage",
            ]
        ]
        .mean()
        .round(3)
        .to_string()
    )


def main():
    args = parsed()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # kinds of voxel that are at the edge by design
    if args.alice:  # a few minutes, most of it himalaya's draws
        alice_table(args)
        return
    start, out = time.perf_counter(), []
    out = truth_rows(args, out, start)
    out = length_rows(args, out, start)
    out = width_rows(args, out, start)
    table = pd.DataFrame(out)
    table.round(2).to_csv(args.out, index=False)
    report(table)


def report(table):
    "Print the largest error of any cell, of any seed, and the bias by length."
    truth = table[table.study == "truth"]
    error = pd.DataFrame({k: truth[k] - truth[f"true_{k}"] for k in PARTS}).join(
        truth[["structure", "rho", "kind", "seed"]]
    )
    cell = error.groupby(["structure", "rho", "kind"])[list(PARTS)].mean()
    print(
        "largest error of a cell (mean over seeds), points of explained variance:\n",
        cell.abs().groupby(["structure", "rho"]).max().round(1),
    )
    print(
        "largest error of a single seed:\n",
        error.groupby(["structure", "rho"])[list(PARTS)].agg(lambda x: x.abs().max()).round(1),
    )
    length = table[table.study != "truth"]
    bias = (
        pd.DataFrame(
            {
                "held out": length.unique_model - length.true_unique_model,
                "in sample": length.in_sample_unique - length.true_unique_model,
                "explained": length.explained,
            }
        )
        .groupby([length.fit, length["columns"]])
        .mean()
    )
    print(
        "unique part of the model, error by TRs to fit and columns of the joint model; joint R² as"
        " percentage of what can be explained:\n",
        bias.round(1),
    )


if __name__ == "__main__":
    main()
