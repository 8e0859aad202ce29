"""The front page's numbers and picture from a finished quickstart.

    braintune quickstart --out RUN
    python tests/bench/quickstart_table.py RUN

writes nbs/experiments/results/quickstart.csv and nbs/images/quickstart.png.
"""

import sys
from pathlib import Path

import pandas as pd
from PIL import Image

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


def picture(figures):
    "The gain of every arm above the map of the tuned one."
    parts = [Image.open(figures / f"{name}.png") for name in ("gain", "map_gain_of_tuned")]
    width, height = max(p.width for p in parts), sum(p.height for p in parts)
    whole = Image.new("RGB", (width, height), "white")
    for part, top in zip(parts, (0, parts[0].height)):
        whole.paste(part.convert("RGB"), ((width - part.width) // 2, top))
    return whole


if __name__ == "__main__":
    table = pd.DataFrame(rows(read_json(Path(sys.argv[1]) / "summary.json")))
    table.to_csv(ROOT / "nbs/experiments/results/quickstart.csv", index=False)
    picture(Path(sys.argv[1]) / "figures").save(ROOT / "nbs/images/quickstart.png")
    print(table[table.region == "language"].to_string(index=False))
