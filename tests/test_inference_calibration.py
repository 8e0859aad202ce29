"""False-positive rates and coverage of intervals and nulls on simulated experiments without an
effect, at small size. Run with -s to see the numbers."""

import numpy as np
import pytest
from scipy.stats import binom

from braintune_nb.encode.inference import (
    block_labels,
    block_permutation_null,
    block_sums,
    circular_shift_null,
    crossed_bootstrap,
    permutation_p,
)
from braintune_nb.encode.score import correlation


def slow(rng, T, V, length=8):
    white = rng.standard_normal((T + length - 1, V))
    return sum(white[i : i + T] for i in range(length)) / length**0.5


def experiment(rng, people, gain=0.0, spread=0.1, T=240, V=4):
    """Two arms whose predictions each hold a direction of their own; `gain` is the mean
    preference of brains for the first, `spread` its scatter over people."""
    labels, owner = block_labels(np.repeat([0, 1, 2], T // 3), 20)
    signal, first, second = (slow(rng, T, 1) for _ in range(3))
    arms = [], []
    for _ in range(people):
        lean = gain + spread * rng.standard_normal()
        brain = signal + (0.3 + lean) * first + (0.3 - lean) * second + 2 * slow(rng, T, V)
        for arm, own in zip(arms, (first, second)):
            arm.append(block_sums(np.repeat(signal + 0.5 * own, V, 1), brain, labels))
    return *arms, owner


def percentile(result_arms, owner, rng, n=200):
    "What a plain crossed bootstrap over people and blocks with percentile limits would say."
    from braintune_nb.encode import inference

    counts = inference._draw_counts(owner, n, rng)
    mask = np.ones((1, result_arms[0][0].shape[-1]), bool)
    scores = np.stack(
        [
            (
                inference._region_draws(a, counts, mask, None)
                - inference._region_draws(b, counts, mask, None)
            )[1:, 0, 0]
            for a, b in zip(*result_arms)
        ]
    )
    people = rng.integers(len(scores), size=(n, len(scores)))
    return np.quantile(scores[people, np.arange(n)[:, None]].mean(1), [0.025, 0.975])


def outside(low, high):
    "Whether an interval leaves 0 out."
    return not low <= 0 <= high


def false_positives(people, spread, n):
    "Shares of n data sets without a gain in which an interval leaves 0 out, by kind of interval."
    rng = np.random.default_rng(people + int(100 * spread))
    wrong = {"crossed": 0, "alone": 0, "plain": 0, "own": 0}
    for seed in range(n):
        a, b, owner = experiment(rng, people, spread=spread)
        got = crossed_bootstrap(a, b, stories=owner, n=200, seed=seed)["all"]["raw"]
        wrong["crossed"] += outside(got["ci_low"], got["ci_high"])
        wrong["alone"] += outside(got["participants_low"], got["participants_high"])
        wrong["plain"] += outside(*percentile((a, b), owner, rng))
        wrong["own"] += (got["n_positive"] + got["n_negative"]) / people
    crossed, alone, plain, own = (count / n for count in wrong.values())
    return crossed, alone, plain, own


@pytest.mark.parametrize("people", [5, 8])
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3])
def test_false_positives_of_the_crossed_interval(people, spread, n=150):
    crossed, alone, plain, own = false_positives(people, spread, n)
    print(
        f"\n{people} people, spread {spread}: false positives crossed {crossed:.3f},"
        f" people-only t {alone:.3f}, plain crossed percentile {plain:.3f}; own block"
        f" intervals that exclude 0 {own:.3f}"
    )
    assert round(crossed * n) <= binom.ppf(0.999, n, 0.05)
    if spread == 0:
        assert own <= 0.09


@pytest.mark.parametrize("people", [5, 8])
def test_coverage_of_a_true_gain(people, n=120):
    rng = np.random.default_rng(30 + people)
    long = [experiment(rng, 40, gain=0.15, spread=0.1, T=3000) for _ in range(4)]
    truth = np.mean(
        [crossed_bootstrap(a, b, stories=o, n=2)["all"]["raw"]["mean"] for a, b, o in long]
    )
    hits = power = 0
    for seed in range(n):
        a, b, owner = experiment(rng, people, gain=0.15, spread=0.1)
        got = crossed_bootstrap(a, b, stories=owner, n=200, seed=seed)["all"]["raw"]
        hits += got["ci_low"] <= truth <= got["ci_high"]
        power += got["ci_low"] > 0
    print(
        f"\n{people} people: true gain {truth:.3f}, covered {hits / n:.3f}, found {power / n:.3f}"
    )
    assert hits >= binom.ppf(0.001, n, 0.95)


@pytest.mark.parametrize("null", ["shift", "block"])
def test_nulls_hold_their_level_and_distant_shifts_do_not(null):
    rng = np.random.default_rng(1)
    groups = np.repeat([0, 1, 2], 100)
    runs = lambda: np.concatenate([slow(rng, 100, 1200) for _ in range(3)])
    x, y = runs(), runs()
    r = correlation(x, y)
    rate = lambda draws: (permutation_p(r, draws) <= 0.05).mean()
    if null == "block":
        got = rate(block_permutation_null(x, y, 20, 200, groups=groups))
        print(f"\nblock permutation: {got:.3f}")
    else:
        got, far = (
            rate(circular_shift_null(x, y, 200, groups=groups)),
            [rate(circular_shift_null(x, y, 200, min_shift=m, groups=groups)) for m in (20, 40)],
        )
        print(
            f"\ncircular shift: {got:.3f}; smallest shift 20 and 40 of 100 TRs: {far[0]:.3f},"
            f" {far[1]:.3f}"
        )
        assert far[1] > far[0] > 0.06
    assert 0.025 < got < 0.075


def test_maximum_over_layers_holds_its_level():
    rng = np.random.default_rng(2)
    groups = np.repeat([0, 1, 2], 100)
    layers, y = np.stack([slow(rng, 300, 500) for _ in range(6)]), slow(rng, 300, 500)
    best = correlation(layers, y).max(0)
    chosen = (
        permutation_p(best, circular_shift_null(layers, y, 150, groups=groups)) <= 0.05
    ).mean()
    naive = (
        permutation_p(best, circular_shift_null(layers[0], y, 150, groups=groups)) <= 0.05
    ).mean()
    print(
        f"\nbest of 6 layers: null with the same choice {chosen:.3f}, null of one layer {naive:.3f}"
    )
    assert chosen < 0.08 < naive
