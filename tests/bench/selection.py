"""Calibration of chapter encode.selection: which voxels the two-stage test keeps when it is known
what they follow.

python tests/bench/selection.py [--null 200] [--mixed 100] [--out
nbs/experiments/results/selection_calibration.csv]

`empty`: data sets in which no voxel follows anything; the share of data sets with any voxel kept is
the false discovery rate, and should be 5 % or less. With 400 permutations three of 60 voxels must
reach the smallest p before one can be kept; with 2,000 one is enough, so those cells tell whether
the level is used up, and how heavy the tail is (`uncorrected_001`: p <= 0.001). `mixed`: voxels
that follow nothing, acoustics, meaning, or both, at several correlations of meaning and acoustics,
with all of acoustics on the low-level side or half of it (`hidden` 2 of 4 dimensions). Variants:
training residuals cross-fitted or in sample, `one split` (stories 3 and 6 are tested, the others
fit), and `both` (low-level predictions taken out of the semantic features too). A row is one kind
of voxel in one cell, over all data sets; `any` rows count data sets. Six stories of 100 TRs, 15
voxels a kind, 400 permutations unless `draws` says otherwise. About ten minutes on one core. Cells
that the file already holds are kept; delete it to begin anew."""

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from braintune_nb.encode.inference import voxel_test
from braintune_nb.encode.voxel_selection import KINDS, planted_selection, semantic_predictions

VARIANTS = {"cross_fitted": {}, "in_sample": dict(training="in_sample"), "both": dict(both=True)}
SPLIT = {"one split": dict(fold=2)}


def tests(planted, blocks, variant, draws=400, seed=0):
    "block length -> VoxelTest, from one pair of predictions."
    data = [planted[k] for k in ("lowlevel", "model", "responses", "groups")]
    prediction, residual = semantic_predictions(*data, folds=3, **(VARIANTS | SPLIT)[variant])
    rows = np.isfinite(residual).all(1)
    return {
        b: voxel_test(
            prediction[rows],
            residual[rows],
            "block_permutation",
            draws,
            seed,
            planted["groups"][rows],
            b,
        )
        for b in blocks
    }


def means_of(out, draws, variant, hidden, rho, part):
    "Means over the data sets, with what the cell is."
    table = pd.DataFrame(out)
    mean = table.groupby(["block_length", "kind"], sort=False).mean().reset_index()
    mean.insert(1, "draws", draws)
    mean.insert(0, "variant", variant)
    mean.insert(0, "hidden", hidden)
    mean.insert(0, "rho", rho)
    mean.insert(0, "part", part)
    return mean


def rows_of(t, kind, kinds, block):
    "Rates in one data set: of any voxel, and of each kind of voxel."
    false = t.significant[np.isin(kind, ("nothing", "acoustic"))].sum()
    rows = [
        dict(
            block_length=block,
            kind="any",
            kept=float(t.significant.any()),
            uncorrected=float((t.p <= 0.05).any()),
            uncorrected_001=float((t.p <= 0.001).any()),
            r=float(t.r.mean()),
            false_share=false / max(1, t.significant.sum()),
        )
    ]
    for name in kinds:
        at = kind == name
        rows.append(
            dict(
                block_length=block,
                kind=name,
                kept=t.significant[at].mean(),
                uncorrected=(t.p[at] <= 0.05).mean(),
                uncorrected_001=(t.p[at] <= 0.001).mean(),
                r=t.r[at].mean(),
                false_share=np.nan,
            )
        )
    return rows


def cell(
    part,
    rho,
    hidden,
    variant,
    datasets,
    blocks,
    draws=400,
    explained=0.2,
    kinds=tuple(KINDS),
    voxels=15,
    length=100,
    first=0,
):
    "Rows of one cell."
    out = []
    for seed in range(first, first + datasets):
        planted = planted_selection(rho, kinds, voxels, 6, length, explained, hidden, seed=seed)
        for block, t in tests(planted, blocks, variant, draws, seed).items():
            out += rows_of(t, planted["kind"], kinds, block)
    mean = means_of(out, draws, variant, hidden, rho, part)
    return mean.assign(
        datasets=datasets, seed=f"{first}-{first + datasets - 1}", language="planted"
    )


def parsed():
    "What was asked for on the command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--null", type=int, default=200)
    parser.add_argument("--mixed", type=int, default=40)
    parser.add_argument(
        "--out",
        default=str(
            Path(__file__).resolve().parents[2]
            / "nbs/experiments/results/selection_calibration.csv"
        ),
    )
    return parser.parse_args()


def all_cells(args):
    "Every combination that is measured: part, planted values, variant, data sets, blocks."
    cells = [
        ("empty", rho, 0, v, args.null, (5, 10, 20), dict(kinds=("nothing",), voxels=60))
        for rho in (0.0, 0.6)
        for v in VARIANTS
    ]
    cells += [
        (
            "empty, 2000 draws",
            0.6,
            0,
            v,
            80,
            (10,),
            dict(kinds=("nothing",), voxels=60, draws=2000, first=100),
        )
        for v in ("cross_fitted", "one split")
    ]
    cells += [
        ("mixed", rho, hidden, v, args.mixed, (10,), {})
        for rho, hidden in ((0.6, 0), (0.3, 0), (0.6, 2), (0.0, 0))
        for v in VARIANTS
    ]
    return cells


def cells_in(parts):
    "The cells that a table has."
    key = ["part", "rho", "hidden", "variant"]
    return set(parts[0][key].drop_duplicates().itertuples(index=False, name=None))


def main():
    args = parsed()
    torch.set_num_threads(1)
    warnings.simplefilter(
        "ignore"
    )  # voxels without signal sit at the edge of the penalties by design
    start, parts, done = time.perf_counter(), [], set()
    if Path(args.out).exists():
        parts = [pd.read_csv(args.out)]
        done = cells_in(parts)
    cells = all_cells(args)
    for part, rho, hidden, variant, n, blocks, more in sorted(cells, key=lambda c: c[0] != "mixed"):
        if (part, rho, hidden, variant) in done:
            continue
        parts.append(cell(part, rho, hidden, variant, n, blocks, **more))
        print(
            f"{part} rho {rho} hidden {hidden} {variant}: {time.perf_counter() - start:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        pd.concat(parts).round(4).to_csv(args.out, index=False)
    report(pd.concat(parts))


def report(table):
    "Print the share of null data sets with any voxel kept, and the kinds that are kept."
    empty = table.part.str.startswith("empty")
    print(
        "data sets without an effect in which a voxel is kept:\n",
        table[empty & (table.kind == "any")]
        .pivot_table(index=["draws", "rho", "variant"], columns="block_length", values="kept")
        .round(3),
    )
    mixed = table[~empty]
    print(
        "share kept:\n",
        mixed[mixed.kind != "any"]
        .pivot_table(index=["part", "rho", "hidden", "variant"], columns="kind", values="kept")
        .round(3),
    )
    print(
        "false share of what is kept (nothing or acoustic):\n",
        mixed[mixed.kind == "any"]
        .pivot_table(index=["part", "rho", "hidden"], columns="variant", values="false_share")
        .round(3),
    )


if __name__ == "__main__":
    main()
