"""Brain-tuning of a speech model: windows per second and peak memory, against a plain
re-implementation of the published loop.

python tests/bench/tuning.py [--threads 2] [--steps 6] [--rounds 3] [--models base tiny] [--only
loop|participants] (--batch 2 --steps 2 --rounds 1 for a first look) python tests/bench/tuning.py
--models base --device cuda --batch 128 --peak-float32 67 --peak-bfloat16 989 (TFLOP/s of the card:
untested, no such machine was at hand)

One batch is a run of TRs of an eSpeak story: 10 s of sound each, that end with the TR. `base` is a
wav2vec2 of 12 layers, 768 wide, with random weights and the library's default configuration, save
that all dropout is 0, so that two programs can have the same losses; `tiny` is the package's own
tiny speech model. The plain loop hands the raw sound to the whole model in every step, pools by the
mean, predicts with one linear layer, and takes an Adam step on the mean squared error; its windows
are normalised one by one, as ours (the released program normalises the batch). Our arms start from
the same weights and see the same batch. Participants: K heads on one forward pass, against one pass
for each.

Every measurement runs in a process of its own, all arms in turn in every round; a step's time is
the median over all steps after the first, the speed-up the median over rounds of plain / own
(`processor_speedup`: of processor seconds, which other work on the machine disturbs less). Peak
memory is VmHWM of the whole process (on a GPU: of the tensors on it). Written to
nbs/experiments/results/tuning_speed.csv; rows of arms that were not measured this time stay."""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_rows import losses_of, peak_megabytes, rounded, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "nbs/experiments/results"
WINDOW, TR = 10.0, 2.0  # s
BATCH = dict(base=8, tiny=64)
LOOP = {  # arm -> how it is run; memory_gb: above it activations are computed twice
    "published loop": dict(plain=True),
    "cached front end, usual products": dict(cache="float32", products=False),
    "front end every step": dict(),
    "cached front end": dict(cache="float32"),
    "cached front end, float16 on disk": dict(cache="float16"),
    "cached front end, activations twice": dict(cache="float32", memory_gb=2.0),
    "cached front end, bfloat16": dict(cache="float32", precision="bfloat16"),
    "cached front end, bfloat16, activations twice": dict(
        cache="float32", precision="bfloat16", memory_gb=2.0
    ),
}
SHOWN = (
    "published loop",
    "cached front end",
    "cached front end, bfloat16",
)  # whose losses are printed beside each other
PARTICIPANTS = {
    f"{k} {how}": dict(cache="float32", people=k, turns=how == "in turn")
    for k in (1, 3, 8)
    for how in ("in turn", "jointly")
}
COLUMNS = (
    "model",
    "arm",
    "seconds_per_step",
    "windows_per_second",
    "speedup",
    "processor_speedup",
    "gflop_per_second",
    "peak_mb",
    "first_loss",
    "last_loss",
    "largest_loss_difference",
)


# ---- what is tuned, and on what


def backbone_of(name, seed):
    from transformers import Wav2Vec2Config

    from braintune_nb.model.backbone import load_speech_backbone

    if name == "base":
        return load_speech_backbone(quiet(Wav2Vec2Config()), random_weights=True, seed=seed)
    backbone = load_speech_backbone("tiny_speech")
    quiet(backbone.model.config)
    for module in backbone.model.modules():
        if type(module).__name__ == "Dropout":
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
        if type(module).__name__.endswith("Attention"):
            module.dropout = 0.0
    return backbone


def quiet(config):
    "No dropout, no masking: nothing is drawn in training."
    for key in (
        "hidden_dropout",
        "attention_dropout",
        "activation_dropout",
        "feat_proj_dropout",
        "layerdrop",
    ):
        setattr(config, key, 0.0)
    config.apply_spec_augment = False
    return config


def spoken(seconds, seed):
    "eSpeak speech of that length."
    import numpy as np

    from braintune_nb.simulate.speech import speak

    rng = np.random.default_rng(seed)
    words = (
        "the of a story people walk home where some old friends wait near an open window and talk"
        " about long summer days until nobody can remember why they came".split()
    )
    audio, n = np.zeros(0, np.float32), int(seconds * 16000)
    while len(audio) < n:
        audio = np.concatenate([audio, speak(rng.choice(words, 60).tolist()).audio])
    return audio[:n]


def section_of(batch):
    "A block of `batch` TRs whose windows all lie within the sound."
    import numpy as np

    from braintune_nb.clock import regular_clock
    from braintune_nb.data.splits import Section
    from braintune_nb.data.stories import Story
    from braintune_nb.data.transcripts import Events

    n = batch + round(WINDOW / TR)
    story = Story(
        "spoken",
        "en",
        Events(np.array([0.5]), np.array([n * TR - 1]), ("words",)),
        regular_clock(n, TR, TR / 2),
    )
    return Section("spoken", story, np.arange(n - batch, n)), n * TR


def gflop(config, samples, front):
    """Arithmetic of one window in a training step, multiplications and additions: front end (if
    it is run) forward, the rest forward and twice backward."""
    frames, channels, convolutions = samples, 1, 0.0
    for width, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride):
        frames = (frames - kernel) // stride + 1
        convolutions += 2.0 * frames * kernel * channels * width
        channels = width
    h, inner = config.hidden_size, config.intermediate_size
    block = 2.0 * frames * (4 * h * h + 2 * h * inner) + 4.0 * frames * frames * h
    rest = (
        2.0 * frames * channels * h
        + 2.0
        * frames
        * h
        * h
        * config.num_conv_pos_embeddings
        / config.num_conv_pos_embedding_groups
        + config.num_hidden_layers * block
    )
    return (convolutions * front + 3 * rest) / 1e9


# ---- one measurement in a process of its own


class PublishedLoop:
    """The published program, written again: whole model on raw sound, mean over frames, linear
    head (Moussa et al. 2025)."""

    def __init__(self, backbone, tuner, pieces, device):
        import torch

        self.model, self.head = backbone.model.to(device).train(), tuner.heads[0].to(device)
        self.model.feature_extractor._freeze_parameters()
        self.values = torch.cat(
            [
                torch.as_tensor(
                    backbone.extractor(p, sampling_rate=16000, return_tensors="np").input_values
                )
                for p in pieces
            ]
        ).to(device)

    def groups(self):
        return [p for p in self.model.parameters() if p.requires_grad], list(self.head.parameters())

    def step(self, targets, optimizer):
        import torch

        loss = torch.nn.functional.mse_loss(
            self.head(self.model(self.values).last_hidden_state.mean(1)), targets["P0"]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())


class Ours:
    """BrainTuner on SpeechInputs: every participant's loss from one forward pass, or one pass
    for each in turn."""

    def __init__(self, tuner, inputs, device, precision, turns):
        import torch

        self.tuner, self.inputs, self.turns = tuner.to(device).train(), inputs.to(device), turns
        self.tuner.freeze("all")
        self.mixed = lambda: torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")

    def groups(self):
        return [p for p in self.tuner.model.parameters() if p.requires_grad], list(
            self.tuner.heads.parameters()
        )

    def step(self, targets, optimizer):
        import torch

        losses = []
        for names in [[p] for p in targets] if self.turns else [list(targets)]:
            with self.mixed():
                predictions = self.tuner(self.inputs, names)
            loss = torch.stack(
                [torch.nn.functional.mse_loss(predictions[p].float(), targets[p]) for p in names]
            ).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return sum(losses) / len(losses)


def random_targets(tuner, args):
    "Random responses of everybody."
    import torch

    generator = torch.Generator().manual_seed(args.seed)
    return {
        p: torch.randn(args.batch, args.columns, generator=generator).to(args.device)
        for p in tuner.outputs
    }


def published_loop(section, audio, backbone, tuner, args):
    "One window at a time, as published."
    from braintune_nb.align.windows import audio_windows, ending_windows

    ends = section.story.clock.times[section.rows]
    windows = audio_windows(audio, ending_windows(ends, TR, 16000, WINDOW), 16000)
    return PublishedLoop(backbone, tuner, windows, args.device)


def built(
    args,
    plain=False,
    cache=None,
    memory_gb=1e3,
    precision="float32",
    products=True,
    people=1,
    turns=False,
):
    "The loop of an arm, and its targets."
    import numpy as np

    from braintune_nb.model import speech_inputs, text_inputs
    from braintune_nb.model.tuner import BrainTuner

    if not products:
        speech_inputs._onednn = text_inputs._onednn = None
    backbone, (section, _) = backbone_of(args.model, args.seed), section_of(args.batch)
    audio = np.load(Path(args.folder) / "audio.npy", allow_pickle=False)
    tuner = BrainTuner(
        backbone,
        {f"P{i}": args.columns for i in range(people)},
        delays=(0,),
        dropout=0.0,
        standardise=False,
        seed=args.seed,
        memory_gb=memory_gb,
    )
    targets = random_targets(tuner, args)
    if plain:
        return published_loop(section, audio, backbone, tuner, args), targets
    inputs = speech_inputs.speech_inputs(
        section,
        backbone,
        (0,),
        window=WINDOW,
        audio=audio,
        sampling_rate=16000,
        cache=cache and Path(args.folder) / "frontend",
        stored=cache or "float32",
    )
    return Ours(tuner, inputs, args.device, precision, turns), targets


def timed_steps(loop, targets, optimizer, args):
    "Seconds of each step, seconds of the processor, and losses."
    import torch

    cuda, seconds, used, losses = args.device.startswith("cuda"), [], [], []
    for _ in range(args.steps):
        if cuda:
            torch.cuda.synchronize()
        start, cpu = time.perf_counter(), time.process_time()
        losses.append(loop.step(targets, optimizer))
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        used.append(time.process_time() - cpu)
    return cuda, seconds, used, losses


def one(arm, args):
    "Seconds and losses of the steps of one arm, and the peak memory of this process."
    import torch

    torch.set_num_threads(args.threads)
    how = (LOOP | PARTICIPANTS)[arm]
    loop, targets = built(args, **how)
    if args.prepare:
        return
    body, heads = loop.groups()
    optimizer = torch.optim.Adam(
        [dict(params=body, lr=args.learning_rate), dict(params=heads, lr=args.head_learning_rate)]
    )
    cuda, seconds, used, losses = timed_steps(loop, targets, optimizer, args)
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else peak_megabytes()
    print(json.dumps(dict(seconds=seconds[1:], used=used[1:], losses=losses, mb=peak)))


def run(arm, args, model, folder, *more):
    given = dict(model=model, folder=folder, batch=args.batch or BATCH[model]) | {
        k: getattr(args, k)
        for k in (
            "threads",
            "steps",
            "seed",
            "device",
            "columns",
            "learning_rate",
            "head_learning_rate",
        )
    }
    command = [sys.executable, __file__, "--one", arm, *more] + [
        str(x) for k, v in given.items() for x in (f"--{k.replace('_', '-')}", v)
    ]
    env = os.environ | {
        k: str(args.threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    text = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    return None if more else json.loads(text.splitlines()[-1])


# ---- all of them


def medians(found, plain):
    "Median seconds of a step, and times faster than the arm it is compared with."
    import numpy as np

    middle = lambda f, what: float(np.median(f[what]))
    ratio = lambda what: float(
        np.median([middle(p, what) / middle(f, what) for p, f in zip(plain, found)])
    )
    steps = [s for f in found for s in f["seconds"]]
    return float(np.median(steps)), ratio("seconds"), ratio("used")


def arithmetic(args, how, config, batch, precision, seconds):
    "Floating-point operations of a step and in a second."
    passes = how.get("people", 1) if how.get("turns") else 1
    work = gflop(config, round(WINDOW * 16000), not how.get("cache")) * batch * passes
    peak = getattr(args, f"peak_{precision}")
    return dict(
        gflop_per_step=work,
        gflop_per_second=work / seconds,
        flop_utilisation=work / seconds / 1e3 / peak if peak else float("nan"),
        hours_of_30_epochs_of_9461_trs=30 * 9461 / (batch / seconds) / 3600,
    )


def row_of(args, model, arm, how, found, plain, config):
    batch, people = args.batch or BATCH[model], how.get("people", 1)
    precision = how.get("precision", "float32")
    seconds, speedup, processor_speedup = medians(found, plain)
    return dict(
        model=model,
        arm=arm,
        device=args.device,
        threads=args.threads,
        precision=precision,
        batch=batch,
        steps=args.steps,
        rounds=args.rounds,
        participants=people,
        columns=args.columns,
        seed=args.seed,
        seconds_per_step=seconds,
        windows_per_second=batch * people / seconds,
        speedup=speedup,
        processor_speedup=processor_speedup,
        **arithmetic(args, how, config, batch, precision, seconds),
        peak_mb=max(f["mb"] for f in found),
        **losses_of(found[0]["losses"], plain[0]["losses"], "people" not in how),
    )


def prepare_caches(arms, args, model, folder):
    "What the front end computes, kept once for each number format."
    for stored in {how.get("cache") for how in arms.values()} - {None}:
        run(
            next(a for a, how in arms.items() if how.get("cache") == stored),
            args,
            model,
            folder,
            "--prepare",
        )


def tell(model, r, args, arm, found):
    import numpy as np

    print(
        f"{model}, round {r + 1}/{args.rounds}  {arm:46s}"
        f" {np.median(found[arm][-1]['seconds']):8.3f} s a step"
        f" ({np.median(found[arm][-1]['used']):.3f} of the processor),"
        f" {found[arm][-1]['mb']:6.0f} MB",
        file=sys.stderr,
    )


def measure(args, model, arms, reference):
    "Rows of one table; `reference` names the arm that each is compared with."
    import numpy as np

    found, batch = {arm: [] for arm in arms}, args.batch or BATCH[model]
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        np.save(Path(folder) / "audio.npy", spoken(section_of(batch)[1], args.seed))
        prepare_caches(arms, args, model, folder)
        for r in range(args.rounds):
            for arm in arms:
                found[arm].append(run(arm, args, model, folder))
                tell(model, r, args, arm, found)
    config = backbone_of(model, args.seed).model.config
    return [
        row_of(args, model, arm, how, found[arm], found[reference(arm)], config)
        for arm, how in arms.items()
    ]


def curves(rows):
    "Losses of the steps beside each other."
    names, losses = [r["arm"] for r in rows], [r["losses"].split() for r in rows]
    return "\n".join(
        [f"losses of {rows[0]['model']}: " + " | ".join(names)]
        + [f"step {i + 1:3d}  " + "  ".join(step) for i, step in enumerate(zip(*losses))]
    )


def add_rates(parser):
    "Learning rates and the seed."
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--head-learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)


def parsed():
    "What was asked for on the command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=tuple(BATCH), default=list(BATCH))
    parser.add_argument("--only", choices=("loop", "participants"))
    parser.add_argument(
        "--arms", nargs="+", help="only these arms, and those they are compared with"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, help=f"windows of a step; default {BATCH}")
    parser.add_argument("--steps", type=int, default=6, help="the first is not timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--columns", type=int, default=1000, help="voxels of a participant")
    add_rates(parser)
    parser.add_argument("--device", default="cpu", help="cuda: untested")
    parser.add_argument(
        "--peak-float32", type=float, help="TFLOP/s of the device, for model FLOP utilisation"
    )
    parser.add_argument("--peak-bfloat16", type=float)
    parser.add_argument("--scratch", help="where the temporary cache lies")
    for hidden in ("--one", "--model", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen(args, arms, reference):
    "The arms asked for, and those they are compared with."
    if not args.arms:
        return arms
    compared = [reference(arm) for arm in args.arms if arm in arms]
    return {arm: how for arm, how in arms.items() if arm in args.arms or arm in compared}


def main():
    args = parsed()
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if args.one:
        return one(args.one, args)
    rows = []
    for model in args.models:
        for name, arms, reference in (
            ("loop", LOOP, lambda arm: "published loop"),
            ("participants", PARTICIPANTS, lambda arm: arm.replace("jointly", "in turn")),
        ):
            few = chosen(args, arms, reference) if args.only in (None, name) else {}
            if not few:
                continue
            rows += (part := measure(args, model, few, reference))
            print(table(part, COLUMNS))
            if arms is LOOP:
                print(curves([r for r in part if r["arm"] in SHOWN]))
            print()
            save(rows)


def save(rows):
    "Into the table; rows of what was not measured now stay."
    path, key = RESULTS / "tuning_speed.csv", lambda r: (r["model"], r["arm"])
    text = [rounded(row, 6) for row in rows]
    new = set(map(key, text))
    if path.is_file():
        with open(path, newline="") as f:
            before = [r for r in csv.DictReader(f) if list(r) == list(text[0])]
        text += [r for r in before if key(r) not in new]
    order = [(m, a) for m in BATCH for a in LOOP | PARTICIPANTS]
    RESULTS.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as f:
        out = csv.DictWriter(f, text[0], lineterminator="\n")
        out.writeheader()
        out.writerows(
            sorted((r for r in text if key(r) in order), key=lambda r: order.index(key(r)))
        )


if __name__ == "__main__":
    main()
