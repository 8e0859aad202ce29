"""Calibration of the data-efficiency ratio of `analyses.learning_curves` on synthetic truth.

python tests/bench/efficiency.py both parts -> nbs/experiments/results/efficiency_calibration.csv
(about ten minutes of one core) python tests/bench/efficiency.py --only table --datasets 50 --out
some.csv one part, fewer data sets

Two parts. `table`: scores drawn from a known learning curve, with participants, test stories and
subsets that vary, and participants and stories that differ in the ratio; many data sets, both fits.
`ridge`: the whole road on simulated brains. The slow arm's F features hold F/k informative
directions, the fast
arm is those directions alone: ridge learns with T/F, so it needs k times fewer TRs. The two equal
arms share the informative features and differ in features that are noise. Each row: how often the
95 % interval misses the true log ratio (exact binomial limits), the median estimate, and how many
estimates and limits are censored or open. Seeds follow from --seed, the row's own settings and the
number of the data set."""

import argparse
import csv
import sys
import warnings
import zlib
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "nbs" / "experiments" / "results"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402

SIZES, MINUTES = (1, 2, 4, 8, 16), 10.0
HALF = 30.0  # min at which the curve of the reference has 1/sqrt(2) of what it tends to


def law(minutes):
    return 0.3 / np.sqrt(1 + HALF / minutes)


def story_weights(stories, rng, n):
    "How often each story is drawn: all once, then n draws with replacement."
    return (
        np.concatenate(
            [np.ones((1, stories)), rng.multinomial(stories, np.full(stories, 1 / stories), size=n)]
        )
        / stories
    )


def drawn_scores(
    ratio, rng, participants, stories, minutes, skill, story, both, shape, draws, free
):
    "Scores of both arms by participant, size, draw and story."
    faster = np.exp(
        np.log(ratio)
        + rng.normal(0, 0.15, (participants, 1, 1, 1))
        + rng.normal(0, 0.15, (1, 1, 1, stories))
    )
    scores = {}
    for arm, k in (("pretrained", 1.0), ("arm", faster)):
        r = (
            law(minutes[None, :, None, None] * k)
            * skill
            * story
            * (1 + both + rng.normal(0, 0.02, (1, shape[1], draws, 1)) * free)
        )
        r = (
            r
            + rng.normal(0, 0.008, (participants, 1, 1, stories))
            + rng.normal(0, 0.005, (participants, shape[1], 1, stories))
            + rng.normal(0, 0.01, shape) * free
        )
        scores[arm] = r
    return scores


def with_draws_of_stories(scores, weights):
    "Mean scores by draw of the stories, raw; normalised ones are not known."
    drawn = {a: np.einsum("pkds,ns->pkdn", x, weights)[..., None, None] for a, x in scores.items()}
    return {a: np.concatenate([x, np.full_like(x, np.nan)], -1) for a, x in drawn.items()}


def drawn_curves(ratio, participants, stories, rng, draws=10, n=100):
    """Curves of two arms; the log ratio varies with participants and stories (standard deviation
    0.15 each), scores with participants, stories, subsets and noise."""
    from braintune_nb.analyses.learning_curves import Curves

    minutes, shape = np.array(SIZES) * MINUTES, (participants, len(SIZES), draws, stories)
    skill, story = (
        rng.normal(1, 0.2, (participants, 1, 1, 1)),
        rng.normal(1, 0.15, (1, 1, 1, stories)),
    )
    free = (1 - np.array(SIZES) / SIZES[-1])[
        None, :, None, None
    ]  # at full size all subsets are one
    both = rng.normal(0, 0.04, (1, shape[1], draws, 1)) * free
    scores = drawn_scores(
        ratio, rng, participants, stories, minutes, skill, story, both, shape, draws, free
    )
    weights = story_weights(stories, rng, n)
    both_kinds = with_draws_of_stories(scores, weights)
    names = tuple(map(str, range(participants)))
    return Curves(both_kinds, SIZES, minutes, names, ("all",), stories)


def true_ratio(ratio, share, n=20000):
    "Ratio of the curves averaged over the population of participants and stories."
    minutes = np.geomspace(1, 40 * SIZES[-1] * MINUTES, 4000)
    spread = np.exp(np.log(ratio) + np.random.default_rng(1).normal(0, 0.15 * 2**0.5, n))
    mean = np.array([law(m * spread).mean() for m in minutes])
    target = share * law(SIZES[-1] * MINUTES)
    return HALF / ((0.3 / target) ** 2 - 1) / np.interp(target, mean, minutes)


def two_words(name, T):
    "A story of two words and T TRs."
    from braintune_nb.clock import regular_clock
    from braintune_nb.data.stories import Events, Story

    words = Events(np.arange(2.0), np.arange(2.0) + 0.5, ("a", "b"))
    return Story(name, "en", words, regular_clock(T, 2.0))


def features_with_noise(told, rng, T, R, F):
    "Features that hold the signal, and twice the same with columns that hold none."
    inside = {n: rng.standard_normal((T, R)).astype(np.float32) for n in told}
    draw = lambda: {n: rng.standard_normal((T, F - R)).astype(np.float32) for n in told}
    pad = lambda noise: {n: np.concatenate([inside[n], noise[n]], 1) for n in told}
    padded = [pad(noise) for noise in (draw(), draw())]
    return inside, padded


def add_participants(participants, rng, R, V, snr, inside, T, told, space, heard):
    "Responses of participants with weights of their own."
    from braintune_nb.data.recordings import Recording

    for i in range(participants):
        w, who = rng.standard_normal((R, V)) * (snr / R) ** 0.5, f"p{i}"
        y = {n: (x @ w + rng.standard_normal((T, V))).astype(np.float32) for n, x in inside.items()}
        heard[who] = {
            n: Recording(who, s, y[n], space, None, None, "made") for n, s in told.items()
        }


def brains(k, participants, rng, F=60, T=54, V=4, encoding=12, test=5, snr=0.3):
    "(dataset, arms, encoding sections, test sections): features of two arms whose ratio is k."
    from braintune_nb.analyses.learning_curves import EncodingArm
    from braintune_nb.data.recordings import Dataset, Space
    from braintune_nb.data.splits import whole_story

    told = {f"s{i}": two_words(f"s{i}", T) for i in range(encoding + test)}
    R, space = int(F / k) if k > 1 else F // 2, Space("made", "region", np.arange(V))
    inside, padded = features_with_noise(told, rng, T, R, F)
    arms = dict(
        pretrained=EncodingArm([padded[0]]), arm=EncodingArm([inside if k > 1 else padded[1]])
    )
    heard = {}
    add_participants(participants, rng, R, V, snr, inside, T, told, space, heard)
    sections = [whole_story(s) for s in told.values()]
    return Dataset("made", told, heard, "made"), arms, sections[:encoding], sections[encoding:]


def measured_curves(k, participants, rng, **settings):
    from braintune_nb.analyses.learning_curves import encoding_curves

    dataset, arms, encoding, test = brains(k, participants, rng, **settings)
    return encoding_curves(
        arms,
        dataset,
        dataset.participants,
        [(encoding, test)],
        sizes=(1, 2, 4, 7, 12),
        n=100,
        progress=False,
    )


def estimates(found):
    "Quantiles of the ratio, and how often it is said to be above or below 1, or cut off."
    share = lambda test: round(float(np.mean([test(e) for e in found])), 4)
    ratios = np.array([e["ratio"] for e in found])
    return dict(
        median_ratio=round(float(np.median(ratios)), 3),
        ratio_10=round(float(np.quantile(ratios, 0.1)), 3),
        ratio_90=round(float(np.quantile(ratios, 0.9)), 3),
        says_above_1=share(lambda e: e["ratio_low"] > 1),
        says_below_1=share(lambda e: e["ratio_high"] < 1),
        at_least=share(lambda e: e["censored"] == "at least"),
        at_most=share(lambda e: e["censored"] == "at most"),
        open_below=share(lambda e: e["ratio_low"] == 0),
        open_above=share(lambda e: not np.isfinite(e["ratio_high"])),
    )


def rate_row(found, truth, **names):
    "Misses of the interval and of the plain bootstrap, with exact limits; estimates and censoring."
    from scipy.stats import binomtest

    n = len(found)
    miss = [e for e in found if not e["ratio_low"] <= truth <= e["ratio_high"]]
    plain = [e for e in found if not e["boot_low"] <= truth <= e["boot_high"]]
    limits = binomtest(len(miss), n).proportion_ci()
    return names | dict(
        datasets=n,
        true_ratio=round(truth, 3),
        misses=round(len(miss) / n, 4),
        ci_low=round(limits.low, 4),
        ci_high=round(limits.high, 4),
        misses_plain_bootstrap=round(len(plain) / n, 4),
        **estimates(found),
    )


def add_estimates(fits, shares, found, curves, i):
    "The ratio by every fit and at every share."
    from braintune_nb.analyses.learning_curves import efficiency

    for fit in fits:
        for share in shares:
            found.setdefault((fit, share), []).append(
                efficiency(curves, "arm", share, fit=fit, seed=i)
            )


def calibrate(part, ratio, participants, stories, datasets, seed, fits, shares):
    "Rows of one setting."

    start = zlib.crc32(f"{part} {ratio} {participants} {stories}".encode())
    found = {}
    for i in range(datasets):
        rng = np.random.default_rng([seed, start, i])
        curves = (
            drawn_curves(ratio, participants, stories, rng)
            if part == "table"
            else measured_curves(ratio, participants, rng, test=stories)
        )
        add_estimates(fits, shares, found, curves, i)
        if sys.stderr.isatty() or i % 50 == 49:
            print(
                f"{part} ratio {ratio:g}, {participants} participants, {stories} stories:"
                f" {i + 1}/{datasets}",
                file=sys.stderr,
            )
    return [
        rate_row(
            e,
            true_ratio(ratio, share) if part == "table" else float(ratio),
            part=part,
            planted=ratio,
            participants=participants,
            test_stories=stories,
            fit=fit,
            share=share,
            seed=seed,
        )
        for (fit, share), e in found.items()
    ]


def all_settings():
    "Part, ratio, participants, stories, data sets, fits and shares of every row."
    return [
        ("table", k, *ps, 100 if k == 1 else 50, ("saturating", "isotonic"), (0.8, 0.9, 1.0))
        for ps in ((4, 4), (8, 6))
        for k in (1, 2, 5)
    ] + [
        ("ridge", k, 4, 5, n, ("saturating", "isotonic"), (0.8, 0.9, 1.0))
        for k, n in ((1, 100), (2, 25), (5, 25))
    ]


SHOWN = """part planted participants test_stories fit share true_ratio median_ratio misses
misses_plain_bootstrap says_above_1 says_below_1 open_below open_above""".split()


def shown(row):
    return "  ".join(f"{k}={row[k]}" for k in SHOWN)


def write(a, rows):
    with open(a.out, "w", newline="") as f:
        w = csv.DictWriter(f, list(rows[-1]))
        w.writeheader()
        w.writerows(rows)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--only", choices=["table", "ridge"])
    p.add_argument(
        "--datasets",
        type=int,
        default=0,
        help="of every setting; 0: 100 with equal arms, otherwise 50 for table and 25 for ridge",
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=RESULTS / "efficiency_calibration.csv")
    a = p.parse_args()
    warnings.simplefilter("ignore")  # penalties at the edge of the grid, in single small subsets
    rows = []
    if a.out.exists() and a.only:
        with open(a.out) as f:
            rows = [r for r in csv.DictReader(f) if r["part"] != a.only]
    settings = all_settings()
    for part, k, participants, stories, n, fits, shares in settings:
        if a.only in (None, part):
            rows += calibrate(part, k, participants, stories, a.datasets or n, a.seed, fits, shares)
        if rows:
            write(a, rows)
    print(*(shown(r) for r in rows), sep="\n")


if __name__ == "__main__":
    main()
