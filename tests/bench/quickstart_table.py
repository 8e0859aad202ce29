"""The front page's numbers and picture from a finished run of a quickstart's kind.

    braintune run tune_text -p permutations 0 --out RUN
    python tests/bench/quickstart_table.py RUN

(or `braintune quickstart --out RUN`, with `--speech` or without) writes the rows of this size into
nbs/experiments/results/quickstart.csv, where rows of other sizes stay, and, for a text model,
nbs/images/quickstart.png.
"""

import sys
from pathlib import Path

import pandas as pd
from PIL import Image

from braintune_nb.core import read_json

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "nbs/experiments/results/quickstart.csv"
LABELS = ("simulation_seed", "size")
ENDS = ("ci_low", "ci_high", "n")


def rows(summary, parameters):
    "One row an arm and region, and one a control: tuned minus this control."
    labels = {name: parameters[name] for name in LABELS}
    labels |= dict(tuning_seed=parameters["seed"])
    labels["language"] = parameters.get("languages", "en").replace(",", " and ")
    named = {arm: by for arm, by in summary["gain_arms"].items() if "oracle" not in arm}
    named |= {f"tuned minus {control}": by for control, by in summary["over"].items()}
    for arm, by in named.items():
        for region, scores in by.items():
            raw = scores["raw"]
            own = dict(arm=arm, region=region, subset="all", value=round(raw["mean"], 6))
            yield labels | own | {name: round(raw[name], 6) for name in ENDS}


def picture(figures):
    "The gain of every arm above the map of the tuned one."
    parts = [Image.open(figures / f"{name}.png") for name in ("gain", "map_gain_of_tuned")]
    width, height = max(p.width for p in parts), sum(p.height for p in parts)
    whole = Image.new("RGB", (width, height), "white")
    for part, top in zip(parts, (0, parts[0].height)):
        whole.paste(part.convert("RGB"), ((width - part.width) // 2, top))
    return whole


if __name__ == "__main__":
    run = Path(sys.argv[1])
    parameters = read_json(run / "run.json")["parameters"]
    new = pd.DataFrame(rows(read_json(run / "summary.json"), parameters))
    old = pd.read_csv(TABLE)
    kept = old[old["size"] != parameters["size"]]
    pd.concat([kept, new], ignore_index=True)[old.columns].to_csv(TABLE, index=False)
    if "languages" not in parameters:
        picture(run / "figures").save(ROOT / "nbs/images/quickstart.png")
    print(new[new.region == "language"].to_string(index=False))
