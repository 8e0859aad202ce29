"""What the silent defects of the released code of Negi et al. (2025) cost, on SIMULATED readers:
one tuning for each defect, everything else as in `fixed`.

python tests/bench/text_defects.py [--simulations 3] [--size quickstart] [--folder FOLDER]

The tiny text model with the preset `small` and contexts of 20 words, the language region of all
participants, scored on the simulated test stories with right features and right responses: a defect
acts on the tuning alone. `gain` is tuned minus pretrained with the interval of chapter 78
(participants and stretches of the test stories), `share_of_moments_wrong` the share of tuning rows
whose response belongs to another moment. The 28 % of the published stories follow from their
lengths; here the share follows from those of the simulated ones. Written to
nbs/experiments/results/text_defects.csv. A tuning that is stored in FOLDER (default: a temporary
one) is not made again."""

import argparse
import csv
import os
import sys
import tempfile
from pathlib import Path

from bench_rows import five_digits

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "nbs/experiments/results"
DEFECTS = {  # defect -> fields of the preset
    "none": {},
    "one step an epoch (C-03)": dict(accumulate=10**6),
    "delays 0 to 3 TRs (C-04)": dict(delays=(0, 1, 2, 3)),
    "padding or separator read (C-02)": dict(reading=dict(pooled="released")),
    "filter in seconds (C-06)": dict(reading=dict(lanczos="released")),
    "responses of other moments (C-01)": dict(story_order="stacked"),
    "C-01, C-02, C-04 and C-06": dict(
        delays=(0, 1, 2, 3),
        reading=dict(pooled="released", lanczos="released"),
        story_order="stacked",
    ),
    "all five": dict(
        accumulate=10**6,
        delays=(0, 1, 2, 3),
        reading=dict(pooled="released", lanczos="released"),
        story_order="stacked",
    ),
}


def wrong_share(plan):
    "Share of tuning rows that `stacked_targets` gives the response of another moment."
    import numpy as np

    from braintune_nb.experiment.tuning import brain_targets, stacked_targets

    p, sections = plan.tuning_participants[:1], plan.rounds[0].tuning
    own, stacked = (
        [brain_targets(plan, s, p)[p[0]] for s in sections],
        [t[p[0]] for t in stacked_targets(plan, sections, p)],
    )
    return float(np.mean(np.concatenate([(a != b).any(1) for a, b in zip(own, stacked)])))


SHOWN = {"tuned": "none", "permuted": "none, permuted brains"}  # arm -> defect


def row_of(name, log, s, share):
    "Steps, wrong moments, r and gain of one arm."
    from braintune_nb.experiment.runner import best_epochs

    gain = s["gain"] if name == "tuned" else s["gain_arms"][name]
    g, mean = gain["language"]["raw"], lambda arm: s["alignment"][arm]["language"]["raw"]["mean"]
    return dict(
        steps=log[-1]["step"],
        best_epoch=best_epochs([dict(log=log)])[0],
        share_of_moments_wrong=share if DEFECTS.get(name, {}).get("story_order") else 0.0,
        r_pretrained=mean("pretrained"),
        r=mean(name),
        value=g["mean"],
        ci_low=g["ci_low"],
        ci_high=g["ci_high"],
        n_positive=g["n_positive"],
        n=g["n"],
    )


def rows_of(simulation_seed, args, logs, s, share):
    "A row for every arm."
    rows = []
    for name in ("tuned", *(d for d in DEFECTS if d != "none"), "permuted"):
        labels = dict(
            simulation_seed=simulation_seed,
            tuning_seed=args.seed,
            language="en",
            size=args.size,
            defect=SHOWN.get(name, name),
        )
        rows.append(labels | row_of(name, logs[name], s, share))
    return rows


def tell(simulation_seed, name, last):
    "Steps and seconds of one arm."
    print(
        f"simulation {simulation_seed}  {name:40s} {last['step']} steps, {last['seconds']:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def store(file, plan, model, preset, arm, seed, stop, predict):
    "Predictions and log of one arm, in files."
    from braintune_nb.core import write_arrays, write_json
    from braintune_nb.experiment.tuning import tune_arm

    tuner, log = tune_arm(plan, 0, model, preset, arm, seed, stop_epoch=stop, progress=False)
    write_json(file.with_suffix(".json"), log)
    write_arrays(file, **predict(tuner.backbone))


def reading(plan, model):
    "The preset of the tuning, and what predicts responses from a model."
    from braintune_nb.experiment.presets import choose_preset
    from braintune_nb.experiment.runner import layer_numbers
    from braintune_nb.experiment.tuning import arm_predictions, plan_features

    base, layers = choose_preset(model, n_words=20), layer_numbers(model)
    return base, lambda m: arm_predictions(plan, [plan_features(plan, m, layers, base)])[0]


def arm_file(args, simulation_seed, folder, name):
    "Where the predictions of one arm are kept."
    short = "".join(c for c in name if c.isalnum())
    return folder / f"{args.size}_{simulation_seed}_{args.seed}_{short}.npz"


def arms_and_logs(args, simulation_seed, folder, plan):
    "Predictions and log of every arm."
    from braintune_nb.core import read_arrays, read_json
    from braintune_nb.experiment.presets import change_preset
    from braintune_nb.experiment.runner import best_epochs
    from braintune_nb.model.backbone import load_backbone

    model = load_backbone("tiny")
    base, predict = reading(plan, model)
    arms, logs = {"pretrained": [predict(model)]}, {}

    def tuned(name, preset, arm="tuned", stop=None):
        file = arm_file(args, simulation_seed, folder, name)
        if not file.exists():
            store(file, plan, model, preset, arm, args.seed, stop, predict)
        arms[name], logs[name] = [read_arrays(file)], read_json(file.with_suffix(".json"))
        tell(simulation_seed, name, logs[name][-1])

    for name, changes in DEFECTS.items():
        tuned("tuned" if name == "none" else name, change_preset(base, **changes))
    tuned("permuted", base, "permuted", best_epochs([dict(log=logs["tuned"])])[0])
    return arms, logs


def measure(args, simulation_seed, folder):
    "Rows of one simulated experiment."
    from braintune_nb.experiment.plan import plan_summary, simulated_plan
    from braintune_nb.simulate.experiment import cached_simulation

    plan = simulated_plan(cached_simulation(args.size, simulation_seed, {}))
    arms, logs = arms_and_logs(args, simulation_seed, folder, plan)
    return rows_of(simulation_seed, args, logs, plan_summary(plan, arms), wrong_share(plan))


def parsed():
    "What was asked for on the command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--simulations", type=int, default=3, help="simulated experiments, seeds from 0"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the tuning")
    parser.add_argument("--size", default="quickstart")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--table", type=Path, default=RESULTS / "text_defects.csv")
    return parser.parse_args()


def main():
    args = parsed()
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row for k in range(args.simulations) for row in measure(args, k, folder)]
    with open(args.table, "w", newline="") as f:
        out = csv.DictWriter(f, rows[0], lineterminator="\n")
        out.writeheader()
        out.writerows(five_digits(r) for r in rows)
    for r in rows:
        print(
            f"{r['simulation_seed']}  {r['defect']:40s} gain {r['value']:+.4f}"
            f" [{r['ci_low']:+.4f}, {r['ci_high']:+.4f}]"
        )


if __name__ == "__main__":
    main()
