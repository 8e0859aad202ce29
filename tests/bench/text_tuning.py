"""End-to-end tuning of a text model on the tuning stories of Negi et al. (2025): steps, seconds and
peak memory of an epoch, against one window at a time.

python tests/bench/text_tuning.py [--threads 2] [--windows 0] [--only same|epoch] (--windows 1200: a
reduced epoch, about 240 words of each story, labelled so) python tests/bench/text_tuning.py --sweep
16 32 64 128 256 (words in a batch: printed, not written)

The stories are real, those five of the seven tuning stories whose TextGrids and scanner logs are
public (github.com/denizenslab/brain-informed-fine-tuning, under BRAINTUNE_DATA/moth): about 9,100
words, each with a window of 20 words that ends on it. The RESPONSES ARE SIMULATED: a random vector
for each word, through the Lanczos filter and delays of 2 and 3 TRs, mixed into `--columns` columns,
with as much noise as signal. The model is a BERT of base size (12 layers, 768 wide) with random
weights and the library's default configuration, save that dropout is 0, so that programs can have
the same losses; its words are cut by the wordpiece tokenizer of MiniLM (that of bert-base-uncased).
The loss is NT-Xent, every story a step.

`same windows`: one section of `--plain` words (300) of the first story, `--steps` steps, each arm
in a process of its own, in turn in every round; seconds are the median over steps after the first.
`epoch`: one optimiser epoch over all stories, by the arms that are not slow. For one window at a
time the epoch is EXTRAPOLATED from its seconds a window (`measured` = no); its memory is not, since
it keeps every activation. One window at a time is the published program written again: a forward
pass of the whole model for each window, the graph of all of them kept, the same filter, z-score,
delays, head and loss, one backward pass a story (theirs: one an epoch). Speed-ups are medians over
rounds, of seconds and of processor seconds, which other work on the machine disturbs less. Peak
memory is VmHWM of the process. Written to nbs/experiments/results/text_tuning_speed.csv; rows of
arms that were not measured this time stay."""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from bench_rows import losses_of, peak_megabytes, rounded, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "nbs/experiments/results"
STORIES = ("alternateithicatom", "avatar", "howtodraw", "legacy", "undertheinfluence")
PLAIN = "one window at a time"
ARMS = {  # arm -> how it is run; memory_gb: above it activations are computed twice
    PLAIN: dict(plain=True),
    "batches": dict(products=False, place=False, memory_gb=1e3),
    "batches, oneDNN products": dict(place=False, memory_gb=1e3),
    "batches, oneDNN, last block at the word": dict(memory_gb=1e3),
    "the same, activations twice": dict(memory_gb=0.0),
    "the same in bfloat16": dict(memory_gb=1e3, precision="bfloat16"),
    "the same in bfloat16, activations twice": dict(memory_gb=0.0, precision="bfloat16"),
}
EPOCH = {  # of the whole stories; with 2 GB for activations (the default), or 8
    "float32, 2 GB": dict(memory_gb=2.0),
    "float32, 8 GB": dict(memory_gb=8.0),
    "bfloat16, 2 GB": dict(memory_gb=2.0, precision="bfloat16"),
    "bfloat16, 8 GB": dict(memory_gb=8.0, precision="bfloat16"),
}
SHOWN = (
    "arm",
    "measured",
    "windows",
    "seconds",
    "windows_per_second",
    "speedup",
    "processor_speedup",
    "peak_mb",
    "first_loss",
    "last_loss",
    "largest_loss_difference",
)


# ---- what is tuned, and on what


def base_model(seed):
    "BERT of base size with random weights, and a real tokenizer."
    import torch
    from transformers import BertConfig, BertModel

    from braintune_nb.model.backbone import Backbone, load_backbone

    tokenizer = load_backbone("minilm").tokenizer
    torch.manual_seed(seed)
    model = BertModel(
        BertConfig(
            vocab_size=len(tokenizer), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        ),
        add_pooling_layer=False,
    )
    return Backbone(model.eval(), tokenizer, "bert-base, random", None, 12, 768, 512, False)


def told(name, n_words=0):
    "A story, or its first words."
    from braintune_nb.core import data_root
    from braintune_nb.data.bilingual import moth_story
    from braintune_nb.data.stories import first_part

    story = moth_story(data_root() / "moth", name)
    return (
        first_part(
            story, float(story.words.offset[min(n_words, len(story.words)) - 1]) + story.clock.tr
        )
        if n_words
        else story
    )


def responses(story, columns, seed):
    "SIMULATED: words have random vectors; filter, delays, a random mixture, noise."
    import hashlib

    import numpy as np
    import torch

    from braintune_nb.align.delays import delay
    from braintune_nb.align.resample import story_weights

    vector = lambda word: np.random.default_rng(
        int(hashlib.sha256(word.lower().encode()).hexdigest()[:8], 16)
    ).normal(size=16)
    drive = story_weights(story) @ np.stack([vector(w) for w in story.words.text])
    signal = (0.6 * delay(drive, (2,)) + 0.4 * delay(drive, (3,))) @ np.random.default_rng(
        seed
    ).normal(size=(16, columns))
    y = signal / signal.std(0) + np.random.default_rng([seed, len(story.words)]).normal(
        size=signal.shape
    )
    return torch.as_tensor((y - y.mean(0)) / y.std(0), dtype=torch.float32)


class OneByOne:
    "The published program, written again: one window at a time, the graph of all of them kept."

    def __init__(self, tuner):
        self.tuner = tuner

    def predict(self, inputs):
        import torch

        from braintune_nb.align.delays import delay

        model, states = self.tuner.model, []
        for ids, mask, at in zip(inputs.token_ids, inputs.attention_mask, inputs.position):
            k = int(mask.sum())
            states.append(
                model(input_ids=ids[None, :k], attention_mask=mask[None, :k]).last_hidden_state[
                    0, at
                ]
            )
        x = inputs.weights @ torch.stack(states)
        return self.tuner.heads[0](
            delay((x - x.mean(0)) / (x.std(0) + 1e-6), self.tuner.delays)[inputs.keep]
        )


class Ours:
    def __init__(self, tuner, precision):
        self.tuner, self.precision = tuner, precision

    def predict(self, inputs):
        import torch

        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.tuner(inputs)["P1"].float()


def change_backbone(how, args):
    "Switch off what the arm does without."
    from braintune_nb.model import text_inputs

    if not how.get("products", True):
        text_inputs._onednn = None
    if not how.get("place", True):
        text_inputs._LIKE_BERT = ()
    if args.batch:
        text_inputs.word_states = (
            lambda model, inputs, layer, memory_gb, f=text_inputs.word_states: f(
                model, inputs, layer, args.batch, memory_gb
            )
        )


def pairs_of(backbone, args):
    "Inputs of each section, and responses to it."
    from braintune_nb.data.splits import whole_story
    from braintune_nb.model import text_inputs

    whole = args.windows // len(STORIES) if args.windows else 0
    stories = (
        [told(STORIES[0], args.plain)] if args.part == "same" else [told(n, whole) for n in STORIES]
    )
    return [
        (
            text_inputs.section_inputs(whole_story(s), backbone),
            responses(s, args.columns, args.seed),
        )
        for s in stories
    ]


def optimizer_of(tuner, args):
    "AdamW of the backbone and, ten times as fast, the heads."
    import torch

    return torch.optim.AdamW(
        [
            dict(
                params=[p for p in tuner.model.parameters() if p.requires_grad],
                lr=args.learning_rate,
            ),
            dict(params=list(tuner.heads.parameters()), lr=10 * args.learning_rate),
        ],
        weight_decay=1e-3,
    )


def step(tuner, loop, loss, optimizer, inputs, y):
    "One step of training; its loss."
    import torch

    value = loss(loop.predict(inputs), y)
    value.backward()
    torch.nn.utils.clip_grad_norm_(tuner.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(value.detach())


def tuner_of(backbone, args, how):
    "A tuner that trains all of the backbone."
    from braintune_nb.model.release import BrainTuner

    tuner = BrainTuner(
        backbone,
        {"P1": args.columns},
        dropout=0.0,
        seed=args.seed,
        memory_gb=how.get("memory_gb", 2.0),
    ).train()
    del backbone
    tuner.freeze("all")
    return tuner


def timed_steps(pairs, args, steps, tuner, loop, loss, optimizer):
    "Seconds of each step, seconds of the processor, and losses."
    seconds, used, losses = [], [], []
    for inputs, y in pairs * (steps if args.part == "same" else 1):
        start, cpu = time.perf_counter(), time.process_time()
        losses.append(step(tuner, loop, loss, optimizer, inputs, y))
        seconds.append(time.perf_counter() - start)
        used.append(time.process_time() - cpu)
    return seconds, used, losses


def one(arm, args):
    "Seconds and losses of the steps of one arm, and the peak memory of this process."
    import torch

    from braintune_nb.loss import get_loss

    torch.set_num_threads(args.threads)
    how = (ARMS | EPOCH)[arm]
    change_backbone(how, args)
    backbone = base_model(args.seed)
    pairs = pairs_of(backbone, args)

    tuner = tuner_of(backbone, args, how)
    loop, loss = (
        (OneByOne(tuner) if how.get("plain") else Ours(tuner, how.get("precision", "float32"))),
        get_loss("ntxent_over_time", mask_within=0),
    )
    optimizer = optimizer_of(tuner, args)
    steps = 2 if how.get("plain") else args.steps
    seconds, used, losses = timed_steps(pairs, args, steps, tuner, loop, loss, optimizer)
    found = dict(seconds=seconds, used=used, losses=losses, mb=peak_megabytes())
    found["windows"] = [len(i.position) for i, _ in pairs]
    found["tokens"] = [int(i.attention_mask.sum()) for i, _ in pairs]
    print(json.dumps(found))


def measured(arm, part, batch, args):
    "What an arm prints in a process of its own."
    given = dict(one=arm, part=part, batch=batch) | {
        k: getattr(args, k)
        for k in ("threads", "windows", "plain", "steps", "columns", "learning_rate", "seed")
    }
    env = os.environ | {
        k: str(args.threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    text = subprocess.run(
        [sys.executable, __file__]
        + [str(x) for k, v in given.items() for x in (f"--{k.replace('_', '-')}", v)],
        env=env,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return json.loads(text.splitlines()[-1])


def run(arm, part, args, batch=0):
    found = measured(arm, part, batch, args)
    found["windows_in_all"] = sum(found["windows"])
    timed = slice(1, None) if part == "same" else slice(None)
    join = (
        (lambda x: sorted(x)[len(x) // 2]) if part == "same" else sum
    )  # median of steps; sum of the epoch's steps
    found["s"], found["cpu"] = join(found["seconds"][timed]), join(found["used"][timed])
    print(
        f"{part:6s} {arm:44s} {found['windows_in_all']:6d} windows {found['s']:9.2f} s"
        f" ({found['cpu']:.2f} of the processor) {found['mb']:7.0f} MB  losses"
        f" {' '.join(f'{v:.4f}' for v in found['losses'])}",
        file=sys.stderr,
        flush=True,
    )
    return found


# ---- all of them


def speeds(found, plain):
    "Median seconds, windows in a second, and times faster than one window at a time."
    import numpy as np

    def median_ratio(key):
        a_window = lambda f: f[key] / f["windows_in_all"]
        return float(np.median([a_window(p) / a_window(f) for p, f in zip(plain, found)]))

    seconds = float(np.median([f["s"] for f in found]))
    return dict(
        seconds=seconds,
        windows_per_second=found[-1]["windows_in_all"] / seconds,
        speedup=median_ratio("s"),
        processor_speedup=median_ratio("cpu"),
        peak_mb=max(f["mb"] for f in found),
    )


def row_of(args, part, arm, how, found, plain, measured="yes"):
    last = found[-1]
    return dict(
        part=part,
        arm=arm,
        measured=measured,
        device="cpu",
        threads=args.threads,
        precision=how.get("precision", "float32"),
        memory_gb=how.get("memory_gb", float("nan")),
        stories=len(last["windows"]),
        windows=last["windows_in_all"],
        tokens=sum(last["tokens"]),
        steps=len(last["losses"]),
        rounds=len(found),
        columns=args.columns,
        seed=args.seed,
        language="en",
        responses="simulated",
        **speeds(found, plain),
        **losses_of(last["losses"], plain[0]["losses"], part.startswith("same")),
    )


def curve_of(rows):
    "Losses of the first arm in full precision that is not read one by one."
    curve = []
    for r in rows:
        if r["precision"] == "float32" and r["arm"] != PLAIN:
            curve = [float(v) for v in r["losses"].split()]
            break
    return curve


def same_windows(args):
    arms = {a: how for a, how in ARMS.items() if not args.arms or a in (PLAIN, *args.arms)}
    found = {arm: [] for arm in arms}
    for _ in range(args.rounds):
        for arm in arms:
            found[arm].append(run(arm, "same", args))
    rows = [
        row_of(args, "same windows", arm, how, found[arm], found[PLAIN])
        for arm, how in arms.items()
    ]
    curve = curve_of(rows)
    for row in rows:
        if row["precision"] == "bfloat16" and curve:
            row["largest_loss_difference"] = max(
                abs(a - float(b)) for a, b in zip(curve, row["losses"].split())
            )  # bfloat16 beside float32, all steps
    return rows, found[PLAIN]


def extrapolated(plain, found):
    "The epoch one window at a time, from the seconds of the windows that were measured."
    share = found["windows_in_all"] / plain["windows_in_all"]
    seconds = {k: plain[k] * share for k in ("s", "cpu")}
    return found | seconds | dict(mb=float("nan"), losses=[float("nan")])


def compare_losses(rows):
    "The largest difference from the losses of the first arm, into the rows."
    first = rows[0]["losses"].split()
    for row in rows:
        pairs = zip(first, row["losses"].split())
        row["largest_loss_difference"] = max(abs(float(a) - float(b)) for a, b in pairs)


def epoch(args, plain):
    arms = {a: EPOCH[a] for a in args.epoch_arms or EPOCH}
    part = "epoch" + (", reduced" if args.windows else "")
    found = {arm: [run(arm, "epoch", args)] for arm in arms}
    rows = [row_of(args, part, arm, how, found[arm], plain[:1]) for arm, how in arms.items()]
    compare_losses(rows)
    whole = extrapolated(plain[0], next(iter(found.values()))[0])
    told = f"no, extrapolated from {plain[0]['windows_in_all']} windows"
    one_by_one = row_of(args, part, PLAIN, {}, [whole], plain[:1], told)
    return [one_by_one | dict(steps=len(STORIES)), *rows]


def save(rows):
    "Into the table; rows of what was not measured now stay."
    path = RESULTS / "text_tuning_speed.csv"
    text = [rounded(row, 6) for row in rows]
    if path.is_file():
        with open(path, newline="") as f:
            before = [r for r in csv.DictReader(f) if list(r) == list(text[0])]
        new = {(r["part"], r["arm"]) for r in text}
        text = [r for r in before if (r["part"], r["arm"]) not in new] + text
    with open(path, "w", newline="") as f:
        out = csv.DictWriter(f, text[0], lineterminator="\n")
        out.writeheader()
        out.writerows(text)


def parsed():
    "What was asked for on the command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        choices=("same", "epoch"),
        help="epoch alone measures one window at a time again, for the ratio",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--windows", type=int, default=0, help="words of the epoch, shared by the stories; 0: all"
    )
    parser.add_argument(
        "--plain",
        type=int,
        default=300,
        help="words of the section that is also read one window at a time",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=4,
        help="of 'same windows'; the first is not timed, and one window at a time takes two",
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epoch-arms", nargs="+", choices=tuple(EPOCH))
    parser.add_argument("--columns", type=int, default=1000, help="voxels")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sweep", type=int, nargs="+", help="words in a batch to try")
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=tuple(ARMS),
        help="of 'same windows' and of the sweep; one window at a time is always among the first",
    )
    parser.add_argument("--batch", type=int, default=0, help=argparse.SUPPRESS)
    for hidden in ("--one", "--part"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args()


def sweep(args):
    "Try numbers of words in a batch."
    for batch in args.sweep:
        for arm in args.arms or (
            "batches, oneDNN, last block at the word",
            "the same in bfloat16",
        ):
            print(batch, end=" ", file=sys.stderr)
            run(arm, "same", args, batch)


def main():
    args = parsed()
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not (Path(os.environ.get("BRAINTUNE_DATA", "")) / "moth").is_dir():
        sys.exit(
            "BRAINTUNE_DATA/moth is missing: TextGrids/ and reports/ of"
            " github.com/denizenslab/brain-informed-fine-tuning (MIT)"
        )
    if args.one:
        return one(args.one, args)
    if args.sweep:
        sweep(args)
        return
    if args.only == "epoch":
        plain = [run(PLAIN, "same", args)]
    else:
        rows, plain = same_windows(args)
        print(table(rows, SHOWN))
        save(rows)
    if args.only != "same":
        rows = epoch(args, plain)
        print(table(rows, SHOWN))
        save(rows)


if __name__ == "__main__":
    main()
