"""The front page's numbers from a finished quickstart.

    braintune quickstart --out RUN
    python tests/bench/quickstart_table.py RUN

writes nbs/experiments/results/quickstart.csv.
"""

import sys
from pathlib import Path

import pandas as pd

from braintune_nb.core import read_json

ROOT = Path(__file__).resolve().parents[2]
ARMS = {
    "tuned": "gain",
    "permuted": "gain_permuted",
    "tuned minus permuted": "gain_over_permuted",
    "tuned minus shared_subspace": "gain_over_shared_subspace",
}  # arm -> key of summary.json


def rows(summary):
    "One row an arm and region, in the schema of tracked tables."
    for arm, key in ARMS.items():
        for region, scores in summary[key].items():
            raw = scores["raw"]
            interval = {name: round(raw[name], 6) for name in ("ci_low", "ci_high")}
            place = dict(simulation_seed=0, tuning_seed=0, size="listening", language="en and zh")
            own = dict(arm=arm, region=region, subset="all", value=round(raw["mean"], 6))
            yield place | own | interval | dict(n=raw["n"])


if __name__ == "__main__":
    table = pd.DataFrame(rows(read_json(Path(sys.argv[1]) / "summary.json")))
    table.to_csv(ROOT / "nbs/experiments/results/quickstart.csv", index=False)
    print(table[table.region == "language"].to_string(index=False))
