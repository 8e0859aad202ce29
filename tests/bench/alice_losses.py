"""Real text at work: MiniLM tuned end to end on *Alice* with four losses, against features + ridge
and the banded model: nbs/experiments/results/alice_losses.csv.

python tests/bench/alice_losses.py [--folder FOLDER] [--losses ntxent_over_time mse ...] [--epochs
4] [--read-layer 4] [--threads 1]

22 listeners to twelve minutes of one story (Brennan et al. 2016, CC BY 4.0, under
BRAINTUNE_DATA/alice2016), six regions, motion regressed out: the plan of chapter 89. Sixteen
listeners tune; each half of the story tunes once and the other half is scored, a block left out at
a time. Rows are listeners, those that tuned and those that are new, and the two average listeners.
Every loss has its own permuted control, of as many epochs as gave its tuned arm the best weights.
Models: `low` word rate and sound power; `features + ridge` MiniLM's states alone; `pretrained`
both, banded; `tuned` and `permuted` the same banded model on tuned states. Intervals: listeners and
stretches of the story together (chapter 78). One tuning seed: differences between losses are not
tested by anything here. A tuning that is stored in FOLDER is not made again."""

import argparse
import csv
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "nbs/experiments/results"
LOSSES = ("ntxent_over_time", "mse", "correlation_over_time", "hybrid_over_time")


def stored(file, make):
    "Arrays of a file, made if it is not there."
    from braintune_nb.core import read_arrays, write_arrays

    if not file.exists():
        write_arrays(file, **make())
    return read_arrays(file)


def tuned(args, plan, model, preset, loss, arm, stop=None):
    "(participant -> (T, V), logs) of one loss and arm, both rounds."
    from braintune_nb.core import read_json, write_json
    from braintune_nb.experiment.tuning import arm_predictions, plan_features, tune_arm

    file = args.folder / f"{loss}_{arm}_{args.seed}.npz"

    def make():
        features, logs, start = [], [], time.perf_counter()
        for number in range(len(plan.rounds)):
            tuner, log = tune_arm(
                plan,
                number,
                model,
                preset,
                arm,
                args.seed,
                args.read_layer,
                "blocks",
                "bfloat16",
                "cpu",
                stop[number] if stop else None,
                progress=False,
            )
            features.append(plan_features(plan, tuner.backbone, args.layers, preset))
            logs.append(dict(arm=arm, seed=args.seed, round=number, log=log))
        write_json(file.with_suffix(".json"), dict(logs=logs, seconds=time.perf_counter() - start))
        print(f"{loss} {arm}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        return arm_predictions(plan, features)[0]

    return stored(file, make), read_json(file.with_suffix(".json"))


def low_predictions(plan):
    "Word rate and sound power alone."
    import numpy as np

    from braintune_nb.analyses.alignment import encode_arm, story_designs

    people = [*plan.participants, *plan.groups]
    low = replace(plan, lowlevel=None)
    designs, out = (
        story_designs(
            {n: x[None] for n, x in plan.lowlevel.items()}, plan.dataset.stories, (1, 2, 3, 4), None
        ),
        {},
    )
    for this in low.rounds:
        for p, a in encode_arm(designs, low.dataset, people, this.folds).items():
            out.setdefault(p, []).append(a.chosen)
    return {p: np.concatenate(x) for p, x in out.items()}


def rows_of(loss, summary, arms, extra):
    """Gains over the pretrained banded model, and r, for listeners, groups of them and average
    listeners."""
    rows = []
    parts = (
        {"all listeners": summary}
        | {k: summary["by_group"][k] for k in summary["by_group"]}
        | summary["average_listeners"]
    )
    for subset, part in parts.items():
        for arm in arms:
            if arm == "pretrained" or arm not in part["gain_arms"] and arm != "tuned":
                continue
            found = part["gain"] if arm == "tuned" else part["gain_arms"][arm]
            for region, kinds in found.items():
                g = kinds["raw"]
                r = (
                    part["alignment"][arm][region]["raw"]["mean"]
                    if "alignment" in part
                    else float("nan")
                )
                rows.append(
                    dict(
                        loss=loss,
                        arm=arm,
                        subset=subset,
                        region=region,
                        language="en",
                        value=g["mean"],
                        ci_low=g["ci_low"],
                        ci_high=g["ci_high"],
                        n=g["n"],
                        r=r,
                        r_pretrained=(
                            part["alignment"]["pretrained"][region]["raw"]["mean"]
                            if "alignment" in part
                            else float("nan")
                        ),
                    )
                    | extra
                )
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("alice_losses"))
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=LOSSES)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--read-layer", type=int, default=4)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(args.threads)
    from braintune_nb.core import data_root
    from braintune_nb.experiment.plan import alice_plan, plan_summary
    from braintune_nb.experiment.presets import choose_preset
    from braintune_nb.experiment.runner import best_epochs
    from braintune_nb.experiment.tuning import arm_predictions, plan_features
    from braintune_nb.model.backbone import load_backbone

    folder = (data_root() or Path("")) / "alice2016"
    if not folder.is_dir():
        sys.exit(
            "BRAINTUNE_DATA/alice2016 is missing: Brennan et al. 2016, CC BY 4.0, see `braintune"
            " check alice2016`"
        )
    args.folder.mkdir(parents=True, exist_ok=True)
    plan, model = alice_plan(folder), load_backbone("minilm")
    base = choose_preset(model)
    features = plan_features(plan, model, args.layers, base)
    common = {
        "pretrained": [
            stored(args.folder / "pretrained.npz", lambda: arm_predictions(plan, [features] * 2)[0])
        ],
        "features + ridge": [
            stored(
                args.folder / "alone.npz",
                lambda: arm_predictions(replace(plan, lowlevel=None), [features] * 2)[0],
            )
        ],
        "low": [stored(args.folder / "low.npz", lambda: low_predictions(plan))],
    }
    rows = []
    for loss in args.losses:
        preset = choose_preset(model, loss=loss, epochs=args.epochs, learning_rate=1e-4)
        arms = dict(common)
        brain, record = tuned(args, plan, model, preset, loss, "tuned")
        stop = best_epochs(record["logs"])
        control, _ = tuned(args, plan, model, preset, loss, "permuted", stop)
        arms |= {"tuned": [brain], "permuted": [control]}
        extra = dict(
            tuning_seed=args.seed,
            epochs=args.epochs,
            best_epochs=" ".join(map(str, stop)),
            steps=record["logs"][0]["log"][-1]["step"],
            read_layer=args.read_layer,
            layers=" ".join(map(str, args.layers)),
            precision="bfloat16",
            first_train_loss=record["logs"][0]["log"][0]["train_loss"],
            last_train_loss=record["logs"][0]["log"][-1]["train_loss"],
            validation_correlation=max(
                r["validation_correlation"] or 0.0 for r in record["logs"][0]["log"]
            ),
            tuning_seconds=record["seconds"],
        )
        found = rows_of(loss, plan_summary(plan, arms), arms, extra)
        rows += [r for r in found if r["arm"] in ("tuned", "permuted") or loss == args.losses[0]]
        for r in found:
            if r["arm"] in ("tuned", "permuted") and r["subset"] in (
                "all listeners",
                "new participants",
            ):
                print(
                    f"{loss:22s} {r['arm']:9s} {r['subset']:18s} {r['region']:8s} gain"
                    f" {r['value']:+.4f} [{r['ci_low']:+.4f}, {r['ci_high']:+.4f}]",
                    flush=True,
                )
    for r in rows:
        if r["arm"] not in ("tuned", "permuted"):
            r |= dict.fromkeys(
                (
                    "loss",
                    "best_epochs",
                    "steps",
                    "first_train_loss",
                    "last_train_loss",
                    "validation_correlation",
                    "tuning_seconds",
                    "epochs",
                    "precision",
                    "read_layer",
                ),
                "",
            )
    with open(RESULTS / "alice_losses.csv", "w", newline="") as f:
        out = csv.DictWriter(f, rows[0], lineterminator="\n")
        out.writeheader()
        out.writerows(
            {k: f"{v:.5f}" if isinstance(v, float) else v for k, v in r.items()} for r in rows
        )


if __name__ == "__main__":
    main()
