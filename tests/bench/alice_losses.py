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

from bench_rows import five_digits

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "nbs/experiments/results"
LOSSES = ("ntxent_over_time", "mse", "correlation_over_time", "hybrid_over_time")


def stored(file, make):
    "Arrays of a file, made if it is not there."
    from braintune_nb.core import read_arrays, write_arrays

    if not file.exists():
        write_arrays(file, **make())
    return read_arrays(file)


def tune_round(args, plan, number, model, preset, arm, stop):
    "(tuner, log) of one round."
    from braintune_nb.experiment.tuning import tune_arm

    return tune_arm(
        plan,
        number,
        model,
        preset,
        arm,
        args.seed,
        layer=args.read_layer,
        train_layers="blocks",
        precision="bfloat16",
        device="cpu",
        stop_epoch=stop[number] if stop else None,
        progress=False,
    )


def tuned(args, plan, model, preset, loss, arm, stop=None):
    "(participant -> (T, V), logs) of one loss and arm, both rounds."
    from braintune_nb.core import read_json, write_json
    from braintune_nb.experiment.tuning import arm_predictions, plan_features

    file = args.folder / f"{loss}_{arm}_{args.seed}.npz"

    def make():
        features, logs, start = [], [], time.perf_counter()
        for number in range(len(plan.rounds)):
            tuner, log = tune_round(args, plan, number, model, preset, arm, stop)
            features.append(plan_features(plan, tuner.backbone, args.layers, preset))
            logs.append(dict(arm=arm, seed=args.seed, round=number, log=log))
        seconds = time.perf_counter() - start
        write_json(file.with_suffix(".json"), dict(logs=logs, seconds=seconds))
        print(f"{loss} {arm}: {seconds:.0f} s", file=sys.stderr, flush=True)
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


def level(part, arm, region):
    "Mean r of an arm in a part of the listeners; NaN where only gains are known."
    if "alignment" not in part:
        return float("nan")
    return part["alignment"][arm][region]["raw"]["mean"]


def rows_of(loss, summary, arms, extra):
    """Gains over the pretrained banded model, and r, for listeners, groups of them and average
    listeners."""
    parts = {"all listeners": summary} | summary["by_group"] | summary["average_listeners"]
    rows = []
    for subset, part in parts.items():
        gains = part["gain_arms"] | {"tuned": part["gain"]}
        for arm in (a for a in arms if a in gains):
            for region, kinds in gains[arm].items():
                labels = dict(loss=loss, arm=arm, subset=subset, region=region, language="en")
                rows.append(labels | values_of(part, arm, region, kinds["raw"]) | extra)
    return rows


def values_of(part, arm, region, gain):
    "The gain with its interval, and the two r that it is the difference of."
    return dict(
        value=gain["mean"],
        ci_low=gain["ci_low"],
        ci_high=gain["ci_high"],
        n=gain["n"],
        r=level(part, arm, region),
        r_pretrained=level(part, "pretrained", region),
    )


def parsed():
    "What was asked for on the command line."
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
    return parser.parse_args()


def data_folder():
    "The data of Brennan et al.; ends the script where they are missing."
    from braintune_nb.core import data_root

    folder = (data_root() or Path("")) / "alice2016"
    if not folder.is_dir():
        sys.exit(
            "BRAINTUNE_DATA/alice2016 is missing: Brennan et al. 2016, CC BY 4.0, see `braintune"
            " check alice2016`"
        )
    return folder


def untuned(args, plan, model):
    "Predictions of the models that no loss changes."
    from braintune_nb.experiment.presets import choose_preset
    from braintune_nb.experiment.tuning import arm_predictions, plan_features

    features = [plan_features(plan, model, args.layers, choose_preset(model))] * 2
    alone = replace(plan, lowlevel=None)
    makers = {
        "pretrained": ("pretrained.npz", lambda: arm_predictions(plan, features)[0]),
        "features + ridge": ("alone.npz", lambda: arm_predictions(alone, features)[0]),
        "low": ("low.npz", lambda: low_predictions(plan)),
    }
    return {name: [stored(args.folder / file, make)] for name, (file, make) in makers.items()}


TUNED = ("tuned", "permuted")
OF_TUNING = (
    "loss best_epochs steps first_train_loss last_train_loss validation_correlation"
    " tuning_seconds epochs precision read_layer"
).split()


def tuning_columns(args, record, stop):
    "How the tuned arm of one loss was made."
    log = record["logs"][0]["log"]
    return dict(
        tuning_seed=args.seed,
        epochs=args.epochs,
        best_epochs=" ".join(map(str, stop)),
        steps=log[-1]["step"],
        read_layer=args.read_layer,
        layers=" ".join(map(str, args.layers)),
        precision="bfloat16",
        first_train_loss=log[0]["train_loss"],
        last_train_loss=log[-1]["train_loss"],
        validation_correlation=max(r["validation_correlation"] or 0.0 for r in log),
        tuning_seconds=record["seconds"],
    )


def measure(args, plan, model, loss, common):
    "Rows of one loss: tuned, permuted for as many epochs, and the untuned models."
    from braintune_nb.experiment.plan import plan_summary
    from braintune_nb.experiment.presets import choose_preset
    from braintune_nb.experiment.runner import best_epochs

    preset = choose_preset(model, loss=loss, epochs=args.epochs, learning_rate=1e-4)
    brain, record = tuned(args, plan, model, preset, loss, "tuned")
    stop = best_epochs(record["logs"])
    control, _ = tuned(args, plan, model, preset, loss, "permuted", stop)
    arms = common | {"tuned": [brain], "permuted": [control]}
    return rows_of(loss, plan_summary(plan, arms), arms, tuning_columns(args, record, stop))


def tell(rows):
    "Gains of all and of new listeners on the screen."
    for r in rows:
        if r["arm"] in TUNED and r["subset"] in ("all listeners", "new participants"):
            print(
                f"{r['loss']:22s} {r['arm']:9s} {r['subset']:18s} {r['region']:8s} gain"
                f" {r['value']:+.4f} [{r['ci_low']:+.4f}, {r['ci_high']:+.4f}]",
                flush=True,
            )


def write(rows):
    "The table; columns of tuning are empty for models that were not tuned."
    for r in rows:
        r |= {} if r["arm"] in TUNED else dict.fromkeys(OF_TUNING, "")
    with open(RESULTS / "alice_losses.csv", "w", newline="") as f:
        out = csv.DictWriter(f, rows[0], lineterminator="\n")
        out.writeheader()
        out.writerows(five_digits(r) for r in rows)


def main():
    args = parsed()
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(args.threads)
    from braintune_nb.experiment.plan import alice_plan
    from braintune_nb.model.backbone import load_backbone

    folder = data_folder()
    args.folder.mkdir(parents=True, exist_ok=True)
    plan, model = alice_plan(folder), load_backbone("minilm")
    common, rows = untuned(args, plan, model), []
    for loss in args.losses:
        found = measure(args, plan, model, loss, common)
        rows += [r for r in found if r["arm"] in TUNED or loss == args.losses[0]]
        tell(found)
    write(rows)


if __name__ == "__main__":
    main()
