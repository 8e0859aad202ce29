"""The tracked tables of a finished Alice run: python tests/bench/alice_tables.py RUN_FOLDER

Reads summary.json and run.json, writes nbs/experiments/results/alice_tuning.csv,
alice_listeners.csv and alice_run.json. The command of the run stands in the README."""

import json
import pathlib
import sys

import pandas as pd

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "nbs" / "experiments" / "results"


def tuning(summary):
    "One row a table, arm, region and kind of score."
    rows = []
    for table, key in (("alignment", "alignment"), ("gain", "gain_arms")):
        for arm, regions in sorted(summary[key].items()):
            for region, kinds in sorted(regions.items()):
                for kind in ("normalized", "raw"):
                    row = dict(table=table, arm=arm, region=region, kind=kind)
                    row |= dict(value=kinds[kind]["mean"])
                    rows.append(row | {k: kinds[kind][k] for k in ("ci_low", "ci_high", "n")})
    return pd.DataFrame(rows)


def listeners(summary):
    "One row a model and layer, with and without motion regression."
    rows = []
    for motion, found in sorted(summary["listeners"].items()):
        for r in found["table"]:
            row = dict(motion=motion) | {
                k: r[k]
                for k in (
                    "model",
                    "layer",
                    "average",
                    "average_normalised",
                    "left_out",
                    "own",
                    "gain_average",
                )
            }
            for kind in ("left_out", "own"):
                row |= {
                    f"gain_{kind}": r[f"gain_{kind}"]["mean"],
                    f"gain_{kind}_low": r[f"gain_{kind}"]["ci_low"],
                    f"gain_{kind}_high": r[f"gain_{kind}"]["ci_high"],
                }
            row |= {f"gain_block_{i}": g for i, g in enumerate(r["gain_by_block"], 1)} | {
                k: found[k] for k in ("null_95", "permutation_p", "inter_participant")
            }
            rows.append(row)
    return pd.DataFrame(rows)


def main(folder):
    folder = pathlib.Path(folder)
    summary, run = (
        json.loads((folder / name).read_text()) for name in ("summary.json", "run.json")
    )
    tuning(summary).to_csv(RESULTS / "alice_tuning.csv", index=False, float_format="%.4f")
    listeners(summary).to_csv(RESULTS / "alice_listeners.csv", index=False, float_format="%.4f")
    parameters = {
        k: "DIR" if k == "data_dir" else v
        for k, v in sorted(run["parameters"].items())
        if k != "out"
    }
    record = dict(
        parameters=parameters,
        git=run["git"],
        seconds=round(summary["seconds"]),
        peak_memory_mb=round(summary["peak_memory_mb"]),
        libraries={k: v for k, v in sorted(run["libraries"].items()) if v},
    )
    (RESULTS / "alice_run.json").write_text(json.dumps(record, indent=1))
    print(
        tuning(summary)
        .query("kind == 'raw' and table == 'gain'")
        .to_string(index=False, float_format="%.4f")
    )
    print(listeners(summary).to_string(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main(sys.argv[1])
