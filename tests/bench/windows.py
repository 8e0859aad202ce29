"""Speech-window features against a plain loop over windows, and what cheaper choices change.

python tests/bench/windows.py [--threads 2] [--windows 3] [--rounds 3] [--seeds 2] [--only
speed|choices] python tests/bench/windows.py --device cuda --peak-float32 67 --peak-bfloat16 989
(TFLOP/s of the card; written for a GPU, not yet run on one)

`speed`: a model of the size of wav2vec2-base with random weights (12 layers, 768 wide) reads full
windows of 16.1 s of eSpeak speech. Every measurement runs in a process of its own, all arms in turn
in every round, so that a busy machine is busy for everyone; the speed-up is the median over rounds
of plain seconds / own seconds (processor_speedup: of processor seconds, which a busy machine
disturbs less). Memory is the peak resident size above that after model and sound were loaded.
Sharing of work by a coarser stride is not in this table. Written to
nbs/experiments/results/windows_speed.csv.

`choices`: a SMALL wav2vec2 (random weights, 3 layers, 48 wide), because 0.1 s strides of whole
stories at base size take days on a processor: features of a simulated listening experiment (eSpeak
stories, brains whose auditory parcels follow the spectrum and whose superior temporal parcels
follow the phones) at 0.1 s in float32 and cheaper ones; correlation of the features at the TRs, and
alignment of ridge models on held-out stories. The speed-up column is that of the base-size model:
measured seconds per window times the number of windows. Written to
nbs/experiments/results/windows_choices.csv."""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_rows import rounded, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "nbs/experiments/results"
LENGTH = 16.1  # s of a full window
UP_TO_8 = [2, 5, 7, 8]
ARMS = {  # name -> layers (None: all 13), precision, windows at once
    "plain loop": (None, "float32", 1),
    "all layers": (None, "float32", 1),
    "layers 2 5 7 8": (UP_TO_8, "float32", 1),
    "all layers, 4 at once": (None, "float32", 4),
    "all layers, bfloat16": (None, "bfloat16", 1),
    "layers 2 5 7 8, bfloat16": (UP_TO_8, "bfloat16", 1),
}
CHOICES = [
    (p, s, e)
    # precision, stride (s), frames read every (s) of each window; None: the last frame alone
    for p, s, e in (
        ("float32", 0.1, None),
        ("float32", 0.2, None),
        ("float32", 0.5, None),
        ("float32", 1.0, None),
        ("float32", 2.0, None),
        ("bfloat16", 0.5, None),
        ("float32", 0.5, 0.1),
        ("float32", 1.0, 0.1),
        ("float32", 2.0, 0.1),
        ("bfloat16", 0.5, 0.1),
        ("bfloat16", 1.0, 0.1),
    )
]
LISTENING = dict(participants=4, tuning=1, validation=1, encoding=5, test=2, words=240)


def write(name, rows):
    RESULTS.mkdir(parents=True, exist_ok=True)
    with open(RESULTS / name, "w", newline="") as f:
        out = csv.DictWriter(f, rows[0], lineterminator="\n")
        out.writeheader()
        out.writerows(rounded(row, 6) for row in rows)


# ---- speed at base size


def base_model(seed):
    from transformers import Wav2Vec2Config

    from braintune_nb.model.backbone import load_speech_backbone

    return load_speech_backbone(Wav2Vec2Config(), random_weights=True, seed=seed)


def spoken(seconds, seed=0):
    "eSpeak speech of at least that length, cut to it."
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


def gflop(config, deepest, last_only):
    """Arithmetic of one full window: multiplications and additions of convolutions, products
    and attention."""
    frames, total, channels = int(LENGTH * 16000), 0.0, 1
    for width, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride):
        frames = (frames - kernel) // stride + 1
        total += 2.0 * frames * kernel * channels * width
        channels = width
    h, inner = config.hidden_size, config.intermediate_size
    total += (
        2.0 * frames * channels * h
        + 2.0
        * frames
        * h
        * h
        * config.num_conv_pos_embeddings
        / config.num_conv_pos_embedding_groups
    )
    block = 2.0 * frames * (4 * h * h + 2 * h * inner) + 4.0 * frames * frames * h
    last = 2.0 * frames * 2 * h * h if last_only else block
    return (total + (deepest - 1) * block + last) / 1e9


def plain_loop(backbone, audio, edges):
    "One window at a time through the library's model, all hidden states, the last frame of each."
    import numpy as np
    import torch

    device, states = next(backbone.model.parameters()).device, []
    for start, stop in edges:
        values = backbone.extractor(
            audio[start:stop], sampling_rate=16000, return_tensors="pt"
        ).input_values.to(device)
        with torch.no_grad():
            hidden = backbone.model(values, output_hidden_states=True).hidden_states
        states.append(torch.stack([h[0, -1] for h in hidden]).cpu().numpy())
    return np.stack(states, axis=1)


def measured(run, edges, cuda):
    "States of all windows, seconds of a window, of the processor too, and peak megabytes."
    import torch

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(edges[:1])
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start, used = time.perf_counter(), time.process_time()
    states = run(edges)
    if cuda:
        torch.cuda.synchronize()
    seconds, used = (
        (time.perf_counter() - start) / len(edges),
        (time.process_time() - used) / len(edges),
    )
    peak = (
        torch.cuda.max_memory_allocated() / 2**20
        if cuda
        else (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    )
    return used, states, seconds, peak


def one(arm, args):
    """One measurement in this process: seconds per window and peak megabytes; the states go to
    a file."""
    import numpy as np
    import torch

    from braintune_nb.features.speech import window_edges, window_states

    torch.set_num_threads(args.threads)
    layers, precision, batch = ARMS[arm]
    n = max(args.windows, batch)
    backbone, audio = base_model(args.seed), spoken(LENGTH * n, args.seed)
    backbone.model.to(args.device)
    edges = window_edges(len(audio), 16000, stride=LENGTH)
    cuda = args.device.startswith("cuda")

    def run(edges):
        if arm == "plain loop":
            return plain_loop(backbone, audio, edges)
        return window_states(
            backbone,
            audio[: edges[-1, 1]],
            16000,
            layers,
            stride=LENGTH,
            batch_size=batch if not cuda else None,
            precision=precision,
        )[0]

    used, states, seconds, peak = measured(run, edges, cuda)
    np.save(args.out, states[:, : args.windows], allow_pickle=False)
    print(json.dumps(dict(seconds=seconds, used=used, mb=peak)))


def measure(arm, args, folder):
    out = folder / f"{list(ARMS).index(arm)}.npy"
    command = [sys.executable, __file__, "--one", arm, "--out", str(out)] + [
        str(x)
        for k in ("threads", "windows", "seed", "device")
        for x in (f"--{k}", getattr(args, k))
    ]
    env = os.environ | {
        k: str(args.threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    return json.loads(
        subprocess.run(
            command, env=env, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.splitlines()[-1]
    )


def measure_rounds(args, found, folder):
    "Every arm in turn, so many times."
    for r in range(args.rounds):
        for arm in ARMS:
            found[arm].append(measure(arm, args, Path(folder)))
            print(
                f"round {r + 1}/{args.rounds}  {arm:26s} {found[arm][-1]['seconds']:.3f} s a"
                " window",
                file=sys.stderr,
            )


SPEED = """arm gflop_per_window seconds_per_window audio_seconds_per_second speedup
processor_speedup arithmetic gflop_per_second peak_mb max_abs_difference
feature_correlation""".split()
CHOSEN = """precision stride every base_speedup base_audio_seconds_per_second feature_correlation
alignment alignment_difference standard_error auditory superior_temporal""".split()


def median_ratio(plain, found, key):
    "How many times less the arm needs, round by round."
    import numpy as np

    return float(np.median([p[key] / f[key] for p, f in zip(plain, found)]))


def deviation(states, exact):
    "Largest difference and mean correlation of states."
    import numpy as np

    pairs = zip(states.reshape(-1, 768), exact.reshape(-1, 768))
    return dict(
        max_abs_difference=float(abs(states - exact).max()),
        feature_correlation=float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])),
    )


def row_of(args, arm, found, states, config):
    "The row of one arm."
    layers, precision, _ = ARMS[arm]
    plain, seconds = found["plain loop"], min(f["seconds"] for f in found[arm])
    exact = states["plain loop"][layers] if layers else states["plain loop"]
    work = gflop(config, max(layers or [12]), arm != "plain loop")
    peak = getattr(args, f"peak_{precision}")
    return labels_of(args, arm, precision) | dict(
        gflop_per_window=work,
        seconds_per_window=seconds,
        audio_seconds_per_second=0.1 / seconds,
        speedup=median_ratio(plain, found[arm], "seconds"),
        processor_speedup=median_ratio(plain, found[arm], "used"),
        arithmetic=gflop(config, 12, False) / work,
        gflop_per_second=work / seconds,
        share_of_peak=work / seconds / 1e3 / peak if peak else float("nan"),
        peak_mb=max(f["mb"] for f in found[arm]),
        **deviation(states[arm], exact),
    )


def labels_of(args, arm, precision):
    "What was measured, where and how often."
    asked = {k: getattr(args, k) for k in ("windows", "rounds", "seed")}
    return dict(arm=arm, device=args.device, threads=args.threads, precision=precision, **asked)


def speed(args):
    import numpy as np
    from transformers import Wav2Vec2Config

    config, found, states = Wav2Vec2Config(), {arm: [] for arm in ARMS}, {}
    with tempfile.TemporaryDirectory() as folder:
        measure_rounds(args, found, folder)
        for i, arm in enumerate(ARMS):
            states[arm] = np.load(Path(folder) / f"{i}.npy", allow_pickle=False)
    rows = []
    for arm in ARMS:
        rows.append(row_of(args, arm, found, states, config))
    write("windows_speed.csv", rows)
    print(table(rows, SPEED))
    return rows


# ---- cheaper choices, small model


def small_model(seed):
    from transformers import Wav2Vec2Config

    from braintune_nb.model.backbone import load_speech_backbone

    config = Wav2Vec2Config(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=96,
        conv_dim=[32] * 7,
        num_conv_pos_embeddings=128,
        num_conv_pos_embedding_groups=4,
    )
    return load_speech_backbone(config, random_weights=True, seed=seed)


def states_of(precision, every, stride, exact, name, kept, backbone, story, layers, choice, start):
    "States and times of one story: part of the finest ones, kept in a file, or computed."
    import numpy as np

    from braintune_nb.data.audio import read_audio
    from braintune_nb.features.speech import window_states

    if precision == "float32" and every is None and stride > 0.1:
        step = round(stride / 0.1)
        states, times = exact[name][0][:, step - 1 :: step], exact[name][1][step - 1 :: step]
    elif kept.exists():
        with np.load(kept, allow_pickle=False) as f:
            states, times = f["states"], f["times"]
    else:
        states, times = window_states(
            backbone,
            *read_audio(story.audio),
            layers,
            stride=stride,
            every=every,
            batch_size=4,
            precision=precision,
        )
        np.savez(kept, states=states, times=times)
        print(
            f"{choice} {name}: {states.shape[1]} moments, {time.perf_counter() - start:.0f} s",
            file=sys.stderr,
        )
    return states, times


def features_of(backbone, stories, layers, choice, folder, exact):
    """story -> features (L, T, H). Coarser strides in float32 are exactly some of the windows
    of the fine one, so they are taken from there."""
    import numpy as np

    from braintune_nb.align.resample import lanczos_weights

    precision, stride, every = choice
    out, start = {}, time.perf_counter()
    for name, story in stories.items():
        kept = folder / f"{precision}_{stride}_{every}_{name}.npz"
        states, times = states_of(
            precision, every, stride, exact, name, kept, backbone, story, layers, choice, start
        )
        if choice == CHOICES[0]:
            exact[name] = states, times
        weights = lanczos_weights(times, story.clock.times, story.clock.tr)
        out[name] = np.stack([weights @ layer for layer in states])
    return out


def alignments(features, dataset, encoding, test):
    """Correlation on the held-out stories, mean over the columns of two regions: (layers,
    participants, regions)."""
    import numpy as np

    from braintune_nb.align.delays import delay
    from braintune_nb.encode.ridge import RidgeCV
    from braintune_nb.encode.score import correlation

    design = lambda names, layer: stack(delay(features[n][layer]) for n in names)
    groups = np.repeat(np.arange(len(encoding)), [features[n].shape[1] for n in encoding])

    def score(x, new, p):
        recorded = dataset.recordings[p]
        heard = lambda names: stack(recorded[n].responses for n in names)
        fit = RidgeCV(tolerance=0, precision="float32").fit(x, heard(encoding), groups)
        return region_means_of(correlation(fit.predict(new), heard(test)), recorded)

    scores = []
    for layer in range(len(features[encoding[0]])):
        x, new = design(encoding, layer), design(test, layer)
        scores.append([score(x, new, p) for p in dataset.participants])
    return np.array(scores)


def stack(parts):
    "Stories under each other, each z-scored."
    import numpy as np

    from braintune_nb.data.recordings import zscore

    return np.concatenate([zscore(x) for x in parts]).astype(np.float32)


def region_means_of(r, recorded):
    "Mean correlation of the two regions that speech is heard with."
    from braintune_nb.encode.score import region_means

    means = region_means(r, next(iter(recorded.values())).space, ["auditory", "superior_temporal"])
    return [m["mean"] for m in means.values()]


def compared(seed, out, stories, dataset, encoding, test):
    "choice -> (correlation of features with the finest ones, alignments)."
    import numpy as np

    exact, result = out[CHOICES[0]], {}
    for key, features in out.items():
        similar = [
            np.corrcoef(a, b)[0, 1]
            for n in stories
            for x, y in zip(features[n], exact[n])
            for a, b in zip(x.T, y.T)
        ]
        result[key] = float(np.mean(similar)), alignments(features, dataset, encoding, test)
        print(
            f"seed {seed} {key}: features {result[key][0]:.4f}, alignment"
            f" {result[key][1].mean():.4f}",
            file=sys.stderr,
        )
    return result


def choices_of(seed, args, layers=(1, 2, 3)):
    "choice -> (correlation of features, alignments) of one simulated experiment."
    import torch

    from braintune_nb.simulate.experiment import Size, load_simulated, simulate_experiment

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.keep or temporary) / f"seed{seed}"
        if not (folder / "listening").exists():
            simulate_experiment(
                folder / "listening", Size(**LISTENING), seed=seed, columns="parcels"
            )
        dataset, truth = load_simulated(folder / "listening")
        encoding, test = list(truth.roles["encoding"]), list(truth.roles["test"])
        stories, backbone, states = (
            {n: dataset.stories[n] for n in encoding + test},
            small_model(seed),
            {},
        )
        out = {
            choice: features_of(backbone, stories, layers, choice, folder, states)
            for choice in CHOICES
        }
    return compared(seed, out, stories, dataset, encoding, test)


def choices(args, measured):
    "Rows of all choices, from simulated experiments and the measured arms."
    timed = {row["arm"]: row for row in measured}
    seeds = range(args.seed, args.seed + args.seeds)
    found = [choices_of(seed, args) for seed in seeds]
    finest, rows = [f[CHOICES[0]] for f in found], []
    for choice in CHOICES:
        precision, stride, every = choice
        labels = dict(model="small", precision=precision, stride=stride)
        labels |= dict(every=every or "last frame", seed=args.seed, seeds=args.seeds)
        speed = speed_columns(precision, stride, timed, args.busy)
        tested, means = choice_columns([f[choice] for f in found], finest)
        rows.append(labels | tested | speed | means)
    write("windows_choices.csv", rows)
    print(table(rows, CHOSEN))


def speed_columns(precision, stride, timed, busy):
    "How much faster a choice is with the base model, from the measured arms."
    arm = timed["all layers" if precision == "float32" else "all layers, bfloat16"]
    ratio = float(arm["processor_speedup" if busy else "speedup"])
    return dict(
        base_speedup=ratio * stride / 0.1,
        base_audio_seconds_per_second=stride / float(arm["seconds_per_window"]),
    )


def choice_columns(own, finest):
    "How many participants there are; features and alignment of a choice beside the finest one."
    import numpy as np

    # (seeds, layers, participants, regions)
    difference = np.stack([a[1] - b[1] for a, b in zip(own, finest)])
    each = difference.mean((1, 3)).ravel()
    return dict(participants=len(each)), dict(
        feature_correlation=float(np.mean([similar for similar, _ in own])),
        alignment=float(np.mean([r.mean() for _, r in own])),
        alignment_difference=float(each.mean()),
        standard_error=float(each.std(ddof=1) / np.sqrt(len(each))),
        auditory=float(difference[..., 0].mean()),
        superior_temporal=float(difference[..., 1].mean()),
    )


def parsed():
    "What was asked for on the command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--windows", type=int, default=3, help="full windows of each speed measurement"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=2, help="simulated experiments")
    parser.add_argument("--only", choices=("speed", "choices"))
    parser.add_argument(
        "--busy",
        action="store_true",
        help="speed-up of `choices` from processor seconds, on a machine with other work",
    )
    parser.add_argument(
        "--keep", help="folder for the states of `choices`, so that an interrupted run goes on"
    )
    parser.add_argument("--device", default="cpu", help="cuda: coded, not yet run")
    parser.add_argument(
        "--peak-float32", type=float, help="TFLOP/s of the device, for the share of peak"
    )
    parser.add_argument("--peak-bfloat16", type=float)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = parsed()
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if args.one:
        return one(args.one, args)
    if args.only == "choices":
        with open(RESULTS / "windows_speed.csv", newline="") as f:
            measured = list(csv.DictReader(f))
    else:
        measured = speed(args)
    if args.only != "speed":
        choices(args, measured)


if __name__ == "__main__":
    main()
