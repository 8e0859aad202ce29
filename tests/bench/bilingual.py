"""Known truth for the bilingual analyses (chapters 82 and 83): does sharing come out as planted, is
a planted tuning-shift dimension found, and what do noise alone, unequal noise and shuffled
voxels produce?

python tests/bench/bilingual.py all parts -> nbs/experiments/results/bilingual_calibration.csv
(about 8 minutes on one thread) python tests/bench/bilingual.py --only clusters one part again; the
rows of the other parts are kept python tests/bench/bilingual.py --datasets 5 --out x.csv a quick
look

Every row is `datasets` simulated data sets, each with a seed of its own from --seed. Rates carry
the exact binomial 95 % interval, means their t interval; `spread` is the standard deviation over
data sets; `datasets` counts those with a value."""

import argparse
import csv
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "nbs" / "experiments" / "results" / "bilingual_calibration.csv"
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from braintune_nb.analyses.cross_language import (
    match_noise,
    noise_to_add,
    pooled_sharing,
    session_weights,
    weight_sharing,
)  # noqa: E402
from braintune_nb.analyses.tuning_shift import (
    cluster_test,
    released_shift,
    semantic_clusters,
    shift_moments,
    spins,
    split_null,
    tuning_shift,  # noqa: E402
    within_language,
)
from braintune_nb.clock import regular_clock  # noqa: E402
from braintune_nb.data.recordings import zscore  # noqa: E402
from braintune_nb.data.splits import whole_story  # noqa: E402
from braintune_nb.data.stories import Events, Story  # noqa: E402
from braintune_nb.encode.ceiling import explainable_variance  # noqa: E402

FIELDS = (
    "part",
    "case",
    "measure",
    "value",
    "ci_low",
    "ci_high",
    "spread",
    "datasets",
    "seed",
    "language",
)


def story(i, language, T):
    return Story(
        f"s{i}_{language}",
        language,
        Events(np.arange(9.0), np.arange(9.0) + 0.5, ("w",) * 9),
        regular_clock(T, 2.0),
        identity=f"s{i}",
    )


def row(part, case, measure, values, seed, rate):
    "One row of the table: a rate with its exact interval, or a mean with its t interval."
    from scipy.stats import binomtest, t

    x = np.asarray(values, float)
    x = x[np.isfinite(x)]
    if rate:
        value, (low, high) = x.mean(), binomtest(int(x.sum()), len(x)).proportion_ci()
    else:
        half = t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
        value, low, high = x.mean(), x.mean() - half, x.mean() + half
    return dict(
        zip(
            FIELDS,
            (
                part,
                case,
                measure,
                f"{value:.4f}",
                f"{low:.4f}",
                f"{high:.4f}",
                f"{x.std(ddof=1):.4f}",
                len(x),
                seed,
                "en zh",
            ),
        )
    )


# ---- sharing


def correlated_weights(rng, F, V, sharing):
    "Weights of two languages."
    w = {"en": rng.standard_normal((F, V))}
    w["zh"] = sharing * w["en"] + np.sqrt(1 - sharing**2) * rng.standard_normal((F, V))
    return w


def sessions_and_covariance(parts, x):
    "Sections, the session of each story, and the covariance of the features."
    sessions = {s.name: int(s.identity[1:]) % 2 for s in parts}
    return [whole_story(s) for s in parts], sessions, np.cov(np.concatenate(list(x.values())).T)


def noisy_signal(parts, x, w, rng, snr):
    "Responses with so much signal to the noise."
    signal = {s.name: x[s.name] @ w[s.language] for s in parts}
    sd = np.mean([y.std() for y in signal.values()])
    return {n: v / sd + rng.standard_normal(v.shape) / snr for n, v in signal.items()}


def planted_sharing(sharing, snr, steep, seed, F=15, V=60, T=60):
    """One participant, six stories in two languages and two sessions, weights that correlate by
    `sharing`; designs, responses, sections, sessions, covariance."""
    rng = np.random.default_rng([seed, 78])
    mix = np.linalg.qr(rng.standard_normal((F, F)))[0] * np.arange(1, F + 1.0) ** -steep
    w = correlated_weights(rng, F, V, sharing)
    parts = [story(i, l, T) for i in range(6) for l in ("en", "zh")]
    x = {s.name: zscore(rng.standard_normal((T, F)) @ mix.T).astype(np.float32) for s in parts}
    y = noisy_signal(parts, x, w, rng, snr)
    return x, y, *sessions_and_covariance(parts, x)


def own_spaces(sharing, snr, seed, M=8, V=60, T=60):
    """The languages have features of their own, correlated by `sharing`, and each voxel reads
    both with the same weights: sharing sits in the features, where ridge finds it too
    easily."""
    rng = np.random.default_rng([seed, 77])
    w, x, y = rng.standard_normal((M, V)), {}, {}
    parts = [story(i, l, T) for i in range(6) for l in ("en", "zh")]
    for s in parts:
        a = rng.standard_normal((T, M))
        b = sharing * a + np.sqrt(1 - sharing**2) * rng.standard_normal((T, M))
        x[s.name] = np.concatenate([a, b], 1).astype(np.float32)
        y[s.name] = (a if s.language == "en" else b) @ w / M**0.5 + rng.standard_normal(
            (T, V)
        ) / snr
    return x, y, *sessions_and_covariance(parts, x)


def held_out_score(x, held, w, mean):
    "Variance of the held-out rows that the weights of each penalty explain."
    return 1 - ((held - (x @ w + mean)) ** 2).sum(1) / ((held - held.mean(0)) ** 2).sum(0)


class QuickRidge:
    """Ridge with a penalty a voxel by leave-one-story-out R², as RidgeCV chooses it, for
    problems so small that its bookkeeping would take nine tenths of the time
    (tests/test_bilingual_analyses.py compares them)."""

    def __init__(self, alphas=np.logspace(0, 8, 17)):
        self.alphas = np.asarray(alphas)

    def solve(self, x, y):
        "Weights for every penalty, (A, F, V), and the means."
        mx, my = x.mean(0), y.mean(0)
        values, vectors = np.linalg.eigh((x - mx).T @ (x - mx))
        projected = vectors.T @ ((x - mx).T @ (y - my))
        return (
            vectors @ (projected[None] / (values[None, :, None] + self.alphas[:, None, None])),
            mx,
            my,
        )

    def fit(self, x, y, groups):
        x, y = np.asarray(x, float), np.asarray(y, float)
        weights, score = self.solve(x, y)[0], 0
        for g in np.unique(groups) if len(self.alphas) > 1 else ():
            w, mx, my = self.solve(x[groups != g], y[groups != g])
            score = score + held_out_score(x[groups == g] - mx, y[groups == g], w, my)
        best = np.argmax(score, 0) if len(self.alphas) > 1 else np.zeros(y.shape[1], int)
        self.coef_ = weights[best, :, np.arange(y.shape[1])].T
        return self


def sharing_measures(w, cov, fit):
    "What the weights of one fit say of the sharing."
    found = weight_sharing(w, cov)
    told = {"whitened": pooled_sharing(found), "plain": pooled_sharing(weight_sharing(w))}
    if fit == "least squares":
        told["uncorrected correlation"] = found["across"].mean()
        told["whitened, median of voxels"] = np.nanmedian(found["sharing"])
        told["voxels without a value"] = np.isnan(found["sharing"]).mean()
    return told


def all_measures(n, make, truth, snr, seed, models):
    "Measure -> its value in every data set."
    got = {}
    for i in range(n):
        x, y, parts, session, cov = make(truth, snr, seed + i)
        for fit, model in models.items():
            w = session_weights(x, y, parts, session, model)
            for measure, value in sharing_measures(w, cov, fit).items():
                got.setdefault(f"{fit}, {measure}", []).append(value)
    return got


def sharing_part(n, seed):
    "Least squares and ridge, plain and whitened; pooled over voxels, and the median of voxels."
    out, models = [], {"ridge": QuickRidge, "least squares": lambda: QuickRidge([1e-3])}
    kinds = {
        "correlated features": lambda *a: planted_sharing(*a[:2], 1.0, a[2]),
        "features of their own": own_spaces,
    }
    for kind, make in kinds.items():
        for snr in (0.25, 0.5, 1.0):
            for truth in (0.0, 0.5, 1.0) if kind != "features of their own" else (0.5,):
                got = all_measures(n, make, truth, snr, seed, models)
                case = f"sharing {truth:g}, snr {snr:g}, {kind}"
                out += [row("sharing", case, k, v, seed, False) for k, v in got.items()]
                print(case, flush=True)
    return out


# ---- tuning shift


def planted_features(rng, F, steep, zh_steep, stories, T):
    "Turn and scale of the features, the planted direction, a common one, stories, white features."
    turn = np.linalg.qr(rng.standard_normal((F, F)))[0]
    scale = {
        "en": np.arange(1, F + 1.0) ** -steep,
        "zh": np.arange(1, F + 1.0) ** -(steep if zh_steep is None else zh_steep),
    }
    direction, common = np.linalg.qr(rng.standard_normal((F, 2)))[0].T
    parts = [story(i, l, T) for i in range(stories) for l in ("en", "zh")]
    white = {s.name: rng.standard_normal((T, F)) * (scale[s.language] / scale["en"]) for s in parts}
    return turn, scale, direction, common, parts, white


def planted_weights(rng, F, V, common, shared, shift, amount, p, direction):
    "Amount of the shift in each voxel, and the weights of both languages."
    w = rng.standard_normal((F, V)) + 2 * common[:, None]
    other = shared * w + (1 - shared**2) ** 0.5 * rng.standard_normal((F, V))
    amount[p] = shift * rng.standard_normal(V)
    return {
        "en": w / np.linalg.norm(w, axis=0),
        "zh": other / np.linalg.norm(other, axis=0) - np.outer(direction, amount[p]),
    }


def noisy_response(rng, signal, missed, load, sd, common, locked):
    "z-scored responses: noise of voxels, noise that voxels share, and what the features miss."
    T, V = signal.shape
    noise = (1 - common - locked) ** 0.5 * rng.standard_normal((T, V))
    shared = common**0.5 * rng.standard_normal((T, 3)) + locked**0.5 * missed
    return zscore(signal + sd * (noise + shared @ load))


def heard(rng, parts, white, w, missed, noise, repeats):
    "Responses of one participant to every story, and to the repeats of two where there are any."
    V = w["en"].shape[1]
    load = (1 + rng.standard_normal((3, V))) / 6**0.5

    def one(s):
        signal, sd = white[s.name] @ w[s.language], noise["sd"][s.language]
        amounts = noise["common"], noise["locked"]
        return noisy_response(rng, signal, missed[s.name], load, sd, *amounts)

    told = {s.name: one(s) for s in parts}
    return told, repeated(one, parts[:2], repeats) if repeats else None


def repeated(one, stories, repeats):
    "Language -> responses to every repeat."
    times = lambda s: np.stack([one(s) for _ in range(repeats)])
    return {s.language: times(s) for s in stories}


def planted_shift(
    seed,
    shift=0.0,
    sd=(3.0, 3.0),
    participants=3,
    V=60,
    F=12,
    T=100,
    stories=8,
    shared=1.0,
    steep=0.7,
    common_noise=0.3,
    locked=0.1,
    zh_steep=None,
    repeats=0,
):
    """As in chapter 83, and: another spectrum of the Chinese features; repeats of one story a
    language, from which the signal-to-noise can be estimated."""
    rng = np.random.default_rng([seed, 79])
    planted = planted_features(rng, F, steep, zh_steep, stories, T)
    turn, scale, direction, common, parts, white = planted
    amount, told, again = {}, {}, {}
    noise = dict(sd=dict(zip(("en", "zh"), sd)), common=common_noise, locked=locked)
    missed = {s.name: rng.standard_normal((T, 3)) for s in parts}
    for p in (f"P{i + 1}" for i in range(participants)):
        w = planted_weights(rng, F, V, common, shared, shift, amount, p, direction)
        told[p], again[p] = heard(rng, parts, white, w, missed, noise, repeats)
    return *as_measured(white, direction, turn, scale, told, parts), amount, again


def as_measured(white, direction, turn, scale, told, parts):
    "Features as an experiment has them, responses, sections, and the planted direction."
    mixing = (turn * scale["en"]).T
    x = {n: (a @ mixing).astype(np.float32) for n, a in white.items()}
    return x, told, list(map(whole_story, parts)), np.linalg.solve(mixing, direction)


def ridge_weights(x, y, sections, language, alpha=100.0):
    "Ridge weights on the features as they are, as the released analysis takes them."
    part = [s.name for s in sections if s.story.language == language]
    a = np.concatenate([zscore(x[n].astype(np.float64)) for n in part])
    gram = a.T @ a + alpha * np.eye(a.shape[1])
    solve = lambda told: np.linalg.solve(gram, a.T @ np.concatenate([told[n] for n in part]))
    return {p: solve(told) for p, told in y.items()}


def matched(y, again, seed):
    "Noise added to the better language of each participant, as much as its repeats say."
    out = {}
    for i, (p, told) in enumerate(y.items()):
        rho = {
            l: float(np.clip(explainable_variance(r).mean(), 0.001, 0.999))
            for l, r in again[p].items()
        }
        out[p] = dict(told)
        for l, o in (("en", "zh"), ("zh", "en")):
            own = {k: t for k, t in told.items() if k.endswith(l)}
            out[p] |= match_noise(own, noise_to_add(rho[l], rho[o]), 0.0, seed + i)
    return out


SHIFTS = {
    "a dimension planted, amount 0.4": dict(shift=0.4),
    "a dimension planted, amount 0.2": dict(shift=0.2),
    "a dimension planted, amount 0.1": dict(shift=0.1),
    "nothing planted": {},
    "nothing planted, no noise in common": dict(common_noise=0.0, locked=0.0),
    "nothing planted, 300 voxels": dict(V=300),
    "weights differ without a dimension (sharing 0.5)": dict(shared=0.5),
    "nothing planted, Chinese features with another spectrum": dict(zh_steep=1.2),
    "nothing planted, Chinese twice as noisy": dict(sd=(2.5, 5.0), repeats=4),
    "nothing planted, Chinese twice as noisy, matched": dict(sd=(2.5, 5.0), repeats=4),
    "a dimension planted, amount 0.4, Chinese twice as noisy, matched": dict(
        shift=0.4, sd=(2.5, 5.0), repeats=4
    ),
    "a dimension planted, amount 0.4: en1 - en2": dict(shift=0.4),
}


def found_measures(f):
    "Rates of what the analysis finds."
    return {
        ("dimension found, p <= 0.05", True): f.p <= 0.05,
        ("languages differ, p <= 0.05", True): f.p_difference <= 0.05,
        ("any voxel at q <= 0.05", True): min(v.min() for v in f.voxel_q.values()) <= 0.05,
        ("some participant's dimension at q <= 0.05", True): min(
            r["q"] for r in f.participants.values()
        )
        <= 0.05,
    }


def planted_measures(f, x, parts, direction, amount):
    "How near what is found is to what was planted."
    stimulus = np.concatenate([x[s.name] for s in parts])
    r = lambda a, b: abs(np.corrcoef(a, b)[0, 1])
    return {
        ("|r| with the planted dimension", False): r(stimulus @ f.weights, stimulus @ direction),
        ("|r| of index and planted amount", False): np.mean(
            [r(f.index[p], amount[p]) for p in amount]
        ),
    }


def released_measures(f, x, y, parts):
    "What the released analysis says."
    weights = (ridge_weights(x, y, parts, language) for language in ("en", "zh"))
    r = released_shift(*weights, {p: np.full(len(v), 0.1) for p, v in f.index.items()})
    test = "released: t test over voxels, any participant p < 0.05"
    return {
        (test, True): min(r["p"].values()) < 0.05,
        ("released: variance of the first component", False): r["variance"],
    }


def shift_measures(case, settings, seed):
    "(measure, whether it is a rate) -> value in one data set."
    x, y, parts, direction, amount, again = planted_shift(seed, **settings)
    told = matched(y, again, seed) if case.endswith("matched") else y
    moments, pair = shift_moments(x, told, parts), ("en", "zh")
    if case.endswith("en2"):
        moments, pair = within_language(moments, "en", seed), ("en1", "en2")
    f = tuning_shift(moments, *pair, n=99, seed=seed, null="swapped")
    out = found_measures(f)
    if pair == ("en", "zh"):
        p = split_null(moments, *pair, 20, seed)["p"]
        out["stronger than halves of one language, p <= 0.05", True] = p <= 0.05
        if settings.get("shift"):
            out |= planted_measures(f, x, parts, direction, amount)
        out |= released_measures(f, x, y, parts)
    return out


def shift_part(n, seed):
    out = []
    for case, settings in SHIFTS.items():
        got = {}
        for i in range(n):
            for (measure, rate), value in shift_measures(case, settings, seed + i).items():
                got.setdefault((measure, rate), []).append(value)
        out += [row("shift", case, m, v, seed, rate) for (m, rate), v in got.items()]
        print(case, [(r["measure"], r["value"]) for r in out if r["case"] == case][:2], flush=True)
    return out


def shared_part(n, seed):
    "The other null: tuning shared, features, amplitude and residuals of each language as they are."
    out = []
    for case in (
        "a dimension planted, amount 0.4",
        "nothing planted",
        "nothing planted, Chinese features with another spectrum",
        "nothing planted, Chinese twice as noisy",
    ):
        found, differ = [], []
        for i in range(n):
            x, y, parts, *_ = planted_shift(seed + i, **SHIFTS[case])
            moments, pair = shift_moments(x, y, parts), ("en", "zh")
            f = tuning_shift(moments, *pair, n=99, seed=seed + i, null="shared")
            found.append(f.p <= 0.05)
            differ.append(f.p_difference <= 0.05)
        out += [
            row("shared null", case, "dimension found, p <= 0.05", found, seed, True),
            row("shared null", case, "languages differ, p <= 0.05", differ, seed, True),
        ]
        print(case, out[-2]["value"], out[-1]["value"], flush=True)
    return out


# ---- clusters


def planted_clusters(smooth, sharing, seed, number):
    "Clusters of the weights of two languages that share so much, with noise."
    a, b, e, g = (
        np.random.default_rng([seed + number, k]).standard_normal((6, 642)) for k in range(4)
    )
    unit = lambda m: m / m.std()
    first = unit(a @ smooth)
    second = sharing * first + (1 - sharing**2) ** 0.5 * unit(b @ smooth)
    noisy = (first + 0.5 * e, second + 0.5 * g)
    return [semantic_clusters(w, seed=number) for w in noisy]


def cluster_measures(pair, turned, shuffled):
    "(measure, whether it is a rate) -> value in one data set."
    out = {}
    for name, moves in (("spin", turned), ("voxels shuffled", shuffled)):
        t = cluster_test(*pair, moves)
        out[f"{name}: adjusted Rand index p <= 0.05", True] = t["p_ari"] <= 0.05
        out[f"{name}: matched share p <= 0.05", True] = t["p_match"] <= 0.05
        out[f"{name}: matched share under the null", False] = t["null_match"].mean()
    return out | {("matched share", False): t["match"], ("adjusted Rand index", False): t["ari"]}


def moves_of(sphere):
    "59 turns of the sphere, and as many permutations."
    turned = spins(sphere, np.zeros(642, bool), 59)
    shuffled = np.stack([np.random.default_rng(i).permutation(642) for i in range(59)])
    return turned, shuffled


def cluster_part(n, seed):
    from braintune_nb.simulate.brain import load_surface

    sphere = load_surface().sphere[:642]
    distance = 100 * np.arccos(np.clip(sphere @ sphere.T / 1e4, -1, 1))
    turned, shuffled = moves_of(sphere)
    out = []
    for width in (25.0,):
        smooth = np.exp(-(distance**2) / (2 * width**2))
        for sharing in (0.0, 0.5, 0.9):
            got = {}
            for i in range(n):
                pair = planted_clusters(smooth, sharing, seed, i)
                for key, value in cluster_measures(pair, turned, shuffled).items():
                    got.setdefault(key, []).append(value)
            case = f"sharing {sharing:g}, maps smooth over {width:g} mm"
            out += [row("clusters", case, m, v, seed, rate) for (m, rate), v in got.items()]
            print(case, flush=True)
    return out


PARTS = {
    "sharing": sharing_part,
    "shift": shift_part,
    "shared null": shared_part,
    "clusters": cluster_part,
}


def write(args, kept):
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as f:
        writer = csv.DictWriter(f, FIELDS)
        writer.writeheader()
        writer.writerows(kept)


def parsed(argv):
    "What was asked for on the command line."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--datasets", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def main(argv=None):
    args = parsed(argv)
    warnings.filterwarnings("ignore", message=".*widen the grid")
    kept = []
    if args.only and args.out.exists():
        with args.out.open() as f:
            kept = [r for r in csv.DictReader(f) if r["part"] != args.only]
    for name in [args.only] if args.only else PARTS:
        started = time.process_time()
        kept += PARTS[name](args.datasets, args.seed)
        print(f"{name}: {time.process_time() - started:.0f} processor seconds", flush=True)
    kept.sort(key=lambda r: list(PARTS).index(r["part"]))
    write(args, kept)
    return args.out


if __name__ == "__main__":
    main()
