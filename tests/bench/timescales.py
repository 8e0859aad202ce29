"""Known truth of chapter features.timescales: do slow parcels prefer long bands? Oracle meaning
tracks on simulated brains.

python tests/bench/timescales.py [--seeds 3] [--size 2,6,1,2,5,700] [--snr 1.5] [--out
nbs/experiments/results/timescales_oracle.csv]

The true meaning of every word (zero for function words) is split into bands of the word axis and
brought to the TRs; a ridge per band is fitted on the tuning and encoding stories and scored on the
test stories. A row is a language parcel of one side in one simulated experiment and one language: r
of each band, mean over participants and voxels, and `preference`, log2 of (r of 64-128 and 128-256)
over (r of 8-16, 16-32 and 32-64), each a root of summed squares. The simulation knows how slow a
parcel is (`slow`: share of the variance of meaning that follows the running topic, memory 30
words). The signal-to-noise ratio is above that of the other simulated experiments, since the
question is about the filters and not about the noise. Minutes."""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from braintune_nb.align.delays import delay
from braintune_nb.data.recordings import highpass, zscore
from braintune_nb.encode.ridge import RidgeCV
from braintune_nb.encode.score import correlation
from braintune_nb.features.timescales import timescale_bands, timescale_features
from braintune_nb.simulate.brain import PARCELS
from braintune_nb.simulate.experiment import load_simulated

SHORT, LONG = ("8-16", "16-32", "32-64"), ("64-128", "128-256")


def role_features(dataset, truth, language, bands, **settings):
    "Stories that fit, stories that are scored, features of each story in each band."
    stories = {n: s for n, s in dataset.stories.items() if s.language == language}
    role = lambda name: [n for n in truth.roles[name] if n in stories]
    fit, score = role("tuning") + role("encoding"), role("test")
    features = {
        n: timescale_features(stories[n], truth.meaning[n], bands, **settings)
        for n in (*fit, *score)
    }
    return fit, score, features


def cleaned(x, story, cutoff):
    "z-scored, without slow drifts."
    return zscore(highpass(np.asarray(x, np.float64), story.clock.tr, cutoff))


def stack(names, what):
    "What is said of each story, one after another."
    return np.concatenate([what(n) for n in names]).astype(np.float32)


def ridge():
    return RidgeCV(tolerance=0, precision="float32")


def scores_of(model, new, train, test, groups):
    "r of every band."
    predicted = [ridge().fit(model[k], train, groups).predict(new[k]) for k in model]
    return np.stack([correlation(y, test) for y in predicted])


def story_of_rows(fit, dataset):
    "The story of each TR."
    lengths = [len(dataset.stories[n].clock) for n in fit]
    return np.repeat(np.arange(len(fit)), lengths)


def band_scores(dataset, truth, language, bands, people, cutoff=128.0, **settings):
    "participant -> r of every band, (B, V)."
    fit, score, features = role_features(dataset, truth, language, bands, **settings)
    clean = lambda x, n: cleaned(x, dataset.stories[n], cutoff)
    groups = story_of_rows(fit, dataset)
    model, new = {}, {}
    for b in bands:
        delayed = lambda n: clean(delay(features[n][b.name], (1, 2, 3, 4)), n)
        model[b.name] = ridge().design(stack(fit, delayed), groups)
        new[b.name] = stack(score, delayed)
    out = {}
    for p in people:
        heard = lambda n: clean(dataset.recordings[p][n].responses, n)
        out[p] = scores_of(model, new, stack(fit, heard), stack(score, heard), groups)
    return out


def preference(r):
    "log2 of what long bands predict over what short ones do; r: band name -> mean r."
    size = lambda names: np.sqrt(sum(max(r[n], 0) ** 2 for n in names))
    return float(np.log2(size(LONG) / size(SHORT)))


def of_parcel(truth, bands, r, people, number):
    "Preference, number of voxels and mean r of each band in one parcel."
    at = {p: truth.participants[p]["parcel"] == number for p in people}
    mean = np.concatenate([r[p][:, at[p]] for p in people], 1).mean(1)
    by_band = {b.name: x for b, x in zip(bands, mean)}
    voxels = int(sum(m.sum() for m in at.values()))
    found = {f"r_{k}": x for k, x in by_band.items()}
    return dict(preference=preference(by_band), voxels=voxels) | found


def rows(folder, people=None, **settings):
    "One row a language parcel, language, and kind of filter."
    dataset, truth = load_simulated(folder)
    slow, bands, out = {p[0]: p[4] for p in PARCELS if p[1] == "language"}, timescale_bands(), []
    people = list(dataset.participants)[:people]
    for language in dict.fromkeys(s.language for s in dataset.stories.values()):
        for causal in (False, True):
            r = band_scores(dataset, truth, language, bands, people, causal=causal, **settings)
            for j, name in enumerate(truth.parcels):
                parcel, _, side = name.rpartition(" ")
                if parcel not in slow:
                    continue
                found = of_parcel(truth, bands, r, people, j)
                labels = dict(
                    seed=truth.seed, language=language, causal=causal, parcel=parcel, side=side
                )
                out.append(labels | dict(slow=slow[parcel]) | found)
    return out


def main():
    from braintune_nb.simulate.experiment import cached_simulation

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", default="2,6,1,2,5,700")
    parser.add_argument("--snr", type=float, default=1.5)
    parser.add_argument(
        "--out",
        default=str(
            Path(__file__).resolve().parents[2] / "nbs/experiments/results/timescales_oracle.csv"
        ),
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, out = time.perf_counter(), []
    for seed in range(args.seeds):
        out += rows(cached_simulation(args.size, seed, dict(snr=args.snr), ("en", "zh")))
        print(f"seed {seed}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    table = pd.DataFrame(out)
    table.round(4).to_csv(args.out, index=False)
    report(table)


def report(table):
    "Print the correlation of slow share and preferred period over the ten parcels."
    for (causal, seed, language), part in table.groupby(["causal", "seed", "language"]):
        print(
            f"causal {causal}, seed {seed}, {language}: correlation of slow share and preference"
            f" {np.corrcoef(part.slow, part.preference)[0, 1]:.2f}; preference"
            f" {part[part.slow == 0.2].preference.mean():.2f} (slow share 0.2) to"
            f" {part[part.slow == 0.7].preference.mean():.2f} (0.7)"
        )


if __name__ == "__main__":
    main()
