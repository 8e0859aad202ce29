"""Data efficiency, scaling and plans that leave something out: known curves, censoring, the
subspace control, and the road from brains to a ratio."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from braintune_nb.analyses.alignment import encode_arm, shared_subspace_model
from braintune_nb.analyses.generalization import (
    cross_validated,
    held_out_dataset,
    participant_folds,
    story_wise,
)
from braintune_nb.analyses.learning_curves import (
    Curves,
    EncodingArm,
    efficiency,
    efficiency_table,
    encoding_curves,
    fitted_curve,
    isotonic,
    join_curves,
    needed,
    ratio_text,
    saturating,
    scaling,
    story_orders,
    subset_groups,
    subset_sizes,
    table_curves,
    tuning_subsets,
)
from braintune_nb.core import DataError, ParameterError, SplitError
from braintune_nb.encode.score import correlation

sys.path.insert(0, str(Path(__file__).parent / "bench"))
from efficiency import brains, drawn_curves, law, true_ratio  # noqa: E402

quiet = pytest.mark.filterwarnings("ignore:.*warnings while fitting")


def story_weights(stories, rng):
    "How often each story is drawn: all once, then 100 draws with replacement."
    return (
        np.concatenate(
            [
                np.ones((1, stories)),
                rng.multinomial(stories, np.full(stories, 1 / stories), size=100),
            ]
        )
        / stories
    )


def scores_of_laws(arms, m, subset, rng, noise, people, stories, draws, weights):
    "Arm -> scores by participant, amount, draw, draw of stories, region, kind."
    scores = {}
    for arm, f in arms.items():
        x = (f(m)[:, None, None] + subset)[None] + rng.normal(0, noise, (people, 1, 1, stories))
        scores[arm] = np.einsum(
            "pkds,ns->pkdn", np.broadcast_to(x, (people, len(m), draws, stories)), weights
        )[..., None, None] * np.array([1, 2.0])
    return scores


def made_curves(
    arms,
    minutes=(8, 16, 32, 64, 128),
    people=4,
    stories=5,
    draws=10,
    noise=0.004,
    seed=0,
    tuning=None,
):
    "Curves from laws: arm -> function of the minutes."
    rng, m = np.random.default_rng(seed), np.array(minutes, float)
    free = (1 - m / m[-1])[:, None, None]
    subset = rng.normal(0, 0.001, (len(m), draws, 1)) * free
    weights = story_weights(stories, rng)
    scores = scores_of_laws(arms, m, subset, rng, noise, people, stories, draws, weights)
    return Curves(
        scores,
        tuple(range(1, len(m) + 1)),
        m,
        tuple(f"p{i}" for i in range(people)),
        ("language",),
        stories,
        1,
        tuning or {},
    )


# ---- fits


SHAPES = {
    "root": law,
    "logarithm": lambda m: 0.1 + 0.05 * np.log(m / 8),
    "power": lambda m: 0.4 - 0.3 * (m / 8) ** -0.7,
    "flat": lambda m: 0.2 + 0 * m,
}


@pytest.mark.parametrize("f", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("fit", ["saturating", "isotonic"])
def test_a_fit_follows_curves_it_does_not_know(f, fit):
    m = np.array([8.0, 16, 32, 64, 128])
    grid, values = fitted_curve(m, f(m), fit)
    assert (np.diff(values) >= -1e-12).all() and grid[0] == 8 and grid[-1] == pytest.approx(128)
    at = lambda x: np.interp(np.log(x), np.log(grid), values)
    assert np.abs(at(m) - f(m)).max() < (1e-9 if fit == "isotonic" else 0.02)
    between = np.sqrt(m[1:] * m[:-1])
    assert np.abs(at(between) - f(between)).max() < (0.012 if fit == "isotonic" else 0.02)


def test_saturating_is_least_squares():
    from scipy.optimize import curve_fit

    rng, m = np.random.default_rng(1), np.array([8.0, 16, 32, 64, 128])
    form = lambda m, a, h, c: a / np.sqrt(1 + (h / m) ** c)
    for _ in range(5):
        y = form(m, 0.3, rng.uniform(5, 60), rng.uniform(0.6, 1.5)) + rng.normal(0, 0.01, 5)
        ours = saturating(m, y)
        best, _ = curve_fit(form, m, y, p0=ours, bounds=((0, 8e-4, 0.25), (2, 512, 2)))
        assert ((y - form(m, *ours)) ** 2).sum() <= ((y - form(m, *best)) ** 2).sum() * 1.01 + 1e-8


def test_falling_curves_become_flat():
    m = [1.0, 2, 4, 8]
    assert np.allclose(fitted_curve(m, [0.4, 0.3, 0.2, 0.1], "isotonic")[1], 0.25) and np.allclose(
        fitted_curve(m, [0.4, 0.3, 0.2, 0.1])[1], 0.25, atol=1e-4
    )
    assert np.allclose(isotonic([[1, 3, 2, 4], [2, 2, 2, 2]]), [[1, 2.5, 2.5, 4], [2, 2, 2, 2]])


def test_needed_is_where_the_curve_first_reaches_the_target():
    grid, values = np.array([1.0, 2, 4, 8]), np.array([0.1, 0.2, 0.2, 0.4])
    amount, side = needed(grid, np.stack([values] * 5), np.array([0.05, 0.1, 0.2, 0.3, 0.5]))
    assert side.tolist() == [
        -1,
        -1,
        0,
        0,
        1,
    ]  # reached at the smallest size counts as censored: it may need less
    assert amount.tolist() == pytest.approx([1, 1, 2, np.sqrt(32), 8])


# ---- the ratio


@pytest.mark.parametrize("fit", ["saturating", "isotonic"])
@pytest.mark.parametrize("share", [0.8, 0.9, 1.0])
def test_a_planted_ratio_comes_back(fit, share):
    e = efficiency(
        made_curves(dict(pretrained=law, arm=lambda m: law(2 * m)), noise=0.001),
        "arm",
        share,
        fit=fit,
    )
    assert (
        e["ratio"] == pytest.approx(2, rel=0.12)
        and e["censored"] == ""
        and e["ratio_low"] < 2.1
        and e["ratio_high"] > 1.9
        and e["n"] == 4
    )
    assert e["minutes_reference"] == pytest.approx(
        128 if share == 1 else 30 / ((0.3 / (share * law(128))) ** 2 - 1), rel=0.06
    )


def test_the_target_is_the_fitted_value_not_the_noisy_maximum():
    bumpy = lambda m: law(m) + np.where(m == 64, 0.05, 0)
    e = efficiency(made_curves(dict(pretrained=bumpy, arm=law), noise=1e-6), "arm", 1.0)
    assert law(128) < e["target"] < bumpy(np.array([64.0]))[0] - 0.005


def test_censoring_opens_the_interval_and_never_extrapolates():
    c = made_curves(
        dict(
            pretrained=law,
            quick=lambda m: law(50 * m),
            slow=lambda m: 0.8 * law(m),
            both=lambda m: law(m + 1000),
        ),
        noise=0.001,
    )
    quick, slow = efficiency(c, "quick", 0.9), efficiency(c, "slow", 0.9)
    assert (quick["censored"], quick["minutes"], quick["ratio_high"], quick["n_at_least"]) == (
        "at least",
        8,
        np.inf,
        4,
    ) and 1 < quick["ratio_low"] <= quick["ratio"]
    assert (slow["censored"], slow["minutes"], slow["ratio_low"], slow["n_at_most"]) == (
        "at most",
        128,
        0,
        4,
    ) and slow["ratio_high"] < 1
    high = replace(
        c, scores={a: x + 0.5 for a, x in c.scores.items()}
    )  # the reference, too, is at 80 % of its target from the start
    both = efficiency(high, "quick", 0.8)
    assert (both["censored"], both["ratio_low"], both["ratio_high"]) == (
        "undetermined",
        0,
        np.inf,
    ) and "anything" in ratio_text(both)


def test_a_limit_is_open_where_many_draws_are_censored_though_the_estimate_is_not():
    c = made_curves(dict(pretrained=law, arm=lambda m: law(1.7 * m)), noise=0.01, seed=5)
    e = efficiency(c, "arm", 1.0)  # the t interval alone ends at 1.03, within what was measured
    assert (
        e["draws_at_most"] > 0.025
        and e["ratio_low"] == 0
        and e["censored"] == ""
        and e["ratio"] > 1.4
    )


def test_counting_the_tuning_adds_its_minutes():
    c = made_curves(
        dict(pretrained=law, arm=lambda m: law(4 * m)), tuning=dict(arm=100.0), noise=0.001
    )
    free, paid = (efficiency(c, "arm", 0.9, count_tuning=k) for k in (False, True))
    assert (
        paid["ratio"] == pytest.approx(free["minutes_reference"] / (free["minutes"] + 100))
        and paid["ratio_high"] < 1 < free["ratio_low"]
    )
    capped = efficiency(
        made_curves(
            dict(pretrained=law, arm=lambda m: law(90 * m)), tuning=dict(arm=10.0), noise=0.001
        ),
        "arm",
        0.9,
        count_tuning=True,
    )
    assert (
        capped["censored"] == "at least"
        and np.isfinite(capped["ratio_high"])
        and capped["ratio_high"] >= capped["minutes_reference"] / 10 * 0.999
    )
    table = efficiency_table(c)
    assert len(table) == 6 and table.counts_tuning.sum() == 3


def test_the_same_test_draws_go_to_both_arms():
    rows = [
        (a, p, k, 8.0 * k, d, s, 0.05 * np.log2(k) + 0.3 + 0.2 * i + shift)
        for a, shift in (("pretrained", 0), ("arm", 0.02))
        for p in "pq"
        for k in (1, 2, 4)
        for d in range(3)
        for i, s in enumerate("stuv")
    ]
    c = table_curves(
        pd.DataFrame(
            rows, columns=["arm", "participant", "stories", "minutes", "draw", "test_story", "r"]
        ),
        n=50,
    )
    difference = c.scores["arm"] - c.scores["pretrained"]
    assert np.allclose(difference[..., 0], 0.02) and c.scores["arm"][..., 0].std(3).min() > 0.01


def test_the_subset_draws_are_nested():
    """A draw that shifts every curve widens the interval, whatever the number of people; ten
    draws are not ten samples."""
    c = made_curves(dict(pretrained=law, arm=lambda m: law(2 * m)), noise=0.001)
    shaken = np.array(c.scores["arm"])
    shaken += np.random.default_rng(0).normal(0, 0.02, (1, 5, 10, 1, 1, 1))
    noisy = replace(c, scores=dict(pretrained=c.scores["pretrained"], arm=shaken))
    assert efficiency(noisy, "arm", 0.9)["se"] > 2 * efficiency(c, "arm", 0.9)["se"]


def test_one_participant_and_nan_participants():
    c = made_curves(dict(pretrained=law, arm=lambda m: law(2 * m)))
    alone = replace(c, scores={a: x[:1] for a, x in c.scores.items()}, participants=("p0",))
    assert (
        efficiency(alone, "arm", 0.9)["ratio_low"] < 2 < efficiency(alone, "arm", 0.9)["ratio_high"]
    )
    holes = {
        a: np.where(np.arange(4)[:, None, None, None, None, None] == 2, np.nan, x)
        for a, x in c.scores.items()
    }
    assert efficiency(replace(c, scores=holes), "arm", 0.9)["n"] == 3
    with pytest.raises(DataError, match="no participant has finite"):
        efficiency(replace(c, scores={a: x * np.nan for a, x in c.scores.items()}), "arm")


@pytest.mark.parametrize("ratio, people, stories", [(1, 6, 5), (2, 6, 5)])
def test_small_calibration(ratio, people, stories):
    """40 data sets; the full table is made by tests/bench/efficiency.py. With 95 % intervals
    more than 6 misses of 40 have a chance of 0.3 %."""
    truth, found = (
        true_ratio(ratio, 0.9),
        [
            efficiency(
                drawn_curves(ratio, people, stories, np.random.default_rng([7, ratio, i])),
                "arm",
                0.9,
            )
            for i in range(40)
        ],
    )
    assert sum(not e["ratio_low"] <= truth <= e["ratio_high"] for e in found) <= 6
    assert np.median([e["ratio"] for e in found]) == pytest.approx(truth, rel=0.12)
    if ratio > 1:
        assert sum(e["ratio_low"] > 1 for e in found) > 30


# ---- from brains to a ratio


def noisy_recordings(stories, x, basis, rng, participants=6):
    "Responses of people whose weights lie in one subspace."
    from braintune_nb.data.recordings import Recording, Space

    heard, V = {}, 4
    space = Space("made", "region", np.arange(V))
    for i, w in enumerate(basis @ rng.standard_normal((participants, basis.shape[1], V))):
        p = f"p{i}"
        made = lambda n: (0.4 * x[n] @ w + rng.standard_normal((len(x[n]), V))).astype(np.float32)
        heard[p] = {
            n: Recording(p, s, made(n), space, None, None, "made") for n, s in stories.items()
        }
    return heard


@quiet
def test_subspace_control_reaches_with_a_fraction_what_full_ridge_needs():
    """The toy of the rules of evidence, small: frozen features, no tuning at all; other
    people's weights span the subspace."""
    from braintune_nb.data.recordings import Dataset

    rng, F, R, T = np.random.default_rng(2), 160, 3, 100
    base, arms, encoding, test = brains(1, 1, rng, F=F, T=T, encoding=24, test=4)
    x = arms["pretrained"].designs[0]
    basis = np.linalg.qr(rng.standard_normal((F, R)))[0]
    dataset = Dataset("made", base.stories, noisy_recordings(base.stories, x, basis, rng), "made")
    model = shared_subspace_model([x], dataset, ["p0", "p1", "p2"], encoding[:8], rank=8)
    curves = encoding_curves(
        dict(pretrained=EncodingArm([x]), shared_subspace=EncodingArm([x], model=model)),
        dataset,
        ["p3", "p4", "p5"],
        [(encoding[8:], test)],
        sizes=(1, 2, 4, 8, 16),
        n_draws=4,
        n=50,
        progress=False,
    )
    # one story: 73 TRs used; ridge on all features needs 900
    e = efficiency(curves, "shared_subspace", 0.9)
    assert e["ratio"] > 8 and e["ratio_low"] > 5 and e["n_above_one"] == 3


@quiet
@pytest.mark.parametrize("k", [1, 3])
def test_ridge_learns_with_rows_over_features(k):
    dataset, arms, encoding, test = brains(k, 3, np.random.default_rng(k), F=60, T=60)
    curves = encoding_curves(
        arms,
        dataset,
        dataset.participants,
        [(encoding, test)],
        sizes=(1, 2, 4, 7, 12),
        n_draws=5,
        n=50,
        progress=False,
    )
    e = efficiency(curves, "arm", 0.9)
    assert e["ratio_low"] < k < e["ratio_high"] and (k == 1 or e["ratio_low"] > 1.2)


@quiet
def test_the_full_subset_is_the_alignment_of_encode_arm():
    dataset, arms, encoding, test = brains(2, 2, np.random.default_rng(5), F=20)
    curves = encoding_curves(
        dict(pretrained=arms["pretrained"]),
        dataset,
        dataset.participants,
        [(encoding[:4], test)],
        sizes=(2, 4),
        n_draws=2,
        n=10,
        progress=False,
    )
    fitted = encode_arm(
        arms["pretrained"].designs, dataset, dataset.participants, [(encoding[:4], test)]
    )
    for i, p in enumerate(dataset.participants):
        y = np.concatenate([dataset.recordings[p][s.name].responses for s in test])
        y = np.concatenate([(x - x.mean(0)) / x.std(0) for x in np.split(y, len(test))])
        assert curves.scores["pretrained"][i, -1, 0, 0, 0, 0] == pytest.approx(
            correlation(fitted[p].chosen, y).mean(), abs=2e-3
        )


def test_pieces_of_one_story_are_purged():
    from braintune_nb.clock import regular_clock
    from braintune_nb.data.splits import whole_story
    from braintune_nb.data.stories import Events, Story

    for tr, drop in ((2.0, 9), (1.5, 12)):
        g = subset_groups(
            [
                whole_story(
                    Story(
                        "s",
                        "en",
                        Events(np.arange(2.0), np.arange(2.0) + 0.5, ("a", "b")),
                        regular_clock(100, tr),
                    )
                )
            ]
        )
        assert (g < 0).sum() == 3 * drop and all(
            (g[i : i + drop] < 0).all()
            for i in np.flatnonzero(np.diff((g < 0).astype(int)) == 1) + 1
        )


@quiet
def test_arms_measured_one_by_one_get_the_same_subsets_and_test_draws():
    dataset, arms, encoding, test = brains(2, 2, np.random.default_rng(9), F=12)
    one, two = (
        encoding_curves(
            {name: arms["pretrained"]},
            dataset,
            dataset.participants,
            [(encoding[:5], test)],
            sizes=(3, 4, 5),
            n_draws=3,
            n=20,
            progress=False,
        )
        for name in ("pretrained", "again")
    )
    both = join_curves([one, two])
    assert (
        np.array_equal(both.scores["pretrained"][..., 0], both.scores["again"][..., 0])
        and both.scores["again"][:, 0, :, 0, 0, 0].std(1).min() > 0
    )
    assert efficiency(both, "again", 0.9, fit="isotonic")["ratio"] == 1


@pytest.fixture(scope="module")
def small():
    "Features of two participants' stories, folds, and the curves of arms with few draws."
    dataset, arms, encoding, test = brains(2, 2, np.random.default_rng(6), F=12, T=60)
    settings = dict(sizes=(2, 3), n_draws=2, n=10, progress=False)
    run = lambda arms, folds=[(encoding[:4], test)], **more: encoding_curves(
        arms, dataset, dataset.participants, folds, **(settings | more)
    )
    return arms["pretrained"].designs[0], encoding, test, run


def mean_r(scores):
    "Over participants and draws, by size."
    return scores[:, :, :, 0, 0, 0].mean((0, 2))


def noise_like(x):
    "Features without signal, as many as there are, and two more."
    rng = np.random.default_rng(0)
    noise = {n: rng.standard_normal(v.shape).astype(np.float32) for n, v in x.items()}
    low = {n: rng.standard_normal((len(v), 2)).astype(np.float32) for n, v in x.items()}
    return noise, low


@quiet
def test_layers_bands_and_extra_stories(small):
    x, encoding, _, run = small
    noise, low = noise_like(x)
    c = run(
        dict(
            pretrained=EncodingArm([noise, x]),
            noise=EncodingArm([noise]),
            more=EncodingArm([x], extra=tuple(encoding[4:])),
        )
    )
    r = {a: mean_r(v) for a, v in c.scores.items()}
    # the layer with signal is chosen; extra stories help
    assert r["pretrained"][1] > 0.3 > 0.1 > abs(r["noise"][1])
    assert r["more"][0] > r["pretrained"][0]
    banded = run(dict(pretrained=EncodingArm([x])), lowlevel=low)
    assert abs(mean_r(banded.scores["pretrained"])[1] - r["pretrained"][1]) < 0.1


@quiet
def test_folds_and_blocks_within_two_stories(small):
    x, encoding, test, run = small
    crossed = run(dict(pretrained=EncodingArm([x])), cross_validated(encoding[:6], 2))
    assert crossed.n_blocks == 6 and crossed.scores["pretrained"].shape == (2, 2, 2, 11, 1, 2)
    blocks = run(dict(pretrained=EncodingArm([x])), [(encoding[:4], test[:2])])
    assert (blocks.n_blocks, blocks.n_stories) == (8, 2)


def test_what_would_mislead_is_refused():
    dataset, arms, encoding, test = brains(2, 2, np.random.default_rng(7), F=12)
    run = lambda arms=arms, folds=[(encoding, test)], **more: encoding_curves(
        arms, dataset, dataset.participants, folds, progress=False, **more
    )
    with pytest.raises(SplitError, match="both fits and scores"):
        run(dict(pretrained=EncodingArm(arms["pretrained"].designs, extra=tuple(test[:1]))))
    some = {k: v for k, v in arms["pretrained"].designs[0].items() if k != "s3"}
    with pytest.raises(ParameterError, match="lacks features"):
        run(dict(pretrained=EncodingArm([some])))
    with pytest.raises(ParameterError, match="unknown way"):
        run(penalty="none")
    with pytest.raises(ParameterError, match="one band"):
        run(penalty="full", lowlevel={})
    with pytest.raises(ParameterError, match="at least two draws"):
        run(n_draws=1)


def test_what_cannot_be_cut_or_reached_is_refused():
    _, _, encoding, _ = brains(2, 2, np.random.default_rng(7), F=12)
    with pytest.raises(ParameterError, match="too short to be cut"):
        subset_groups([replace(encoding[0], rows=np.arange(40))])
    with pytest.raises(ParameterError, match="outside"):
        efficiency(made_curves(dict(pretrained=law)), "pretrained", 1.2)


def test_saved_curves_come_back(tmp_path):
    c = made_curves(dict(pretrained=law, arm=law), tuning=dict(arm=12.5))
    back = Curves.load(c.save(tmp_path / "curves.npz"))
    assert (
        np.allclose(back.scores["arm"], c.scores["arm"], atol=1e-6)
        and back.tuning_minutes == c.tuning_minutes
        and back.participants == c.participants
        and back.sizes == c.sizes
    )
    a, b = efficiency(back, "arm", 0.9), efficiency(c, "arm", 0.9)
    assert (
        a["log_ratio"] == pytest.approx(b["log_ratio"], abs=1e-4)
        and back.table().shape == c.table().shape
    )


# ---- subsets, folds, plans


def test_orders_are_random_nested_and_repeatable():
    orders = story_orders([f"s{i}" for i in range(20)], 12, seed=1)
    assert (
        len(set(orders)) == 12
        and len({o[0] for o in orders}) > 4
        and orders == story_orders([f"s{i}" for i in range(20)], 12, seed=1)
    )
    assert (
        subset_sizes(25)[-1] == 25
        and subset_sizes(25)[0] == 1
        and all(b > a for a, b in zip(subset_sizes(25), subset_sizes(25)[1:]))
    )
    with pytest.raises(ParameterError, match="two encoding stories"):
        subset_sizes(1)


def test_people_are_new_once():
    for n in (0, 2, 3):
        folds = participant_folds([f"p{i}" for i in range(7)], n, seed=2)
        assert sorted(p for _, new in folds for p in new) == [f"p{i}" for i in range(7)] and len(
            folds
        ) == (n or 7)


def test_subsets_of_tuning_stories():
    plan = tuning_subsets([f"t{i}" for i in range(8)], (1, 2, 4, 8), 3)
    assert len(plan) <= 10 and len([row for row in plan if row["size"] == 8]) == 1
    assert plan[-1]["draws"] == [0, 1, 2]


def test_tuning_scaling():
    rng = np.random.default_rng(0)
    rows = [
        (p, s, d, a, 0.2 + 0.015 * np.log2(a) + rng.normal(0, 0.002) + 0.05 * i)
        for i, p in enumerate("pqrst")
        for s in "xyzw"
        for d in range(3)
        for a in (1, 2, 4, 8)
    ]
    columns = ["participant", "test_story", "draw", "amount", "r"]
    found = scaling(pd.DataFrame(rows, columns=columns))["per_doubling"]
    assert found["ci_low"] < 0.015 < found["ci_high"]
    assert found["ci_high"] - found["ci_low"] < 0.01
    assert found["covers"] == "participants and stories and seeds"
    with pytest.raises(DataError, match="needed once"):
        scaling(pd.DataFrame(rows[:-1], columns=columns))


@dataclass(frozen=True)
class MadeRound:
    tuning: list
    validation: list
    folds: list


@dataclass(frozen=True)
class MadePlan:
    dataset: object
    rounds: list
    tuning_participants: tuple
    held_out_participants: tuple
    note: str = ""


MadePlan.participants = property(
    lambda self: (*self.tuning_participants, *self.held_out_participants)
)


@pytest.fixture(scope="module")
def plan_of_three():
    "A plan that tunes with two of three participants and three stories; all stories of its data."
    dataset, _, encoding, test = brains(2, 3, np.random.default_rng(8), F=12)
    rounds = [MadeRound(encoding[:3], encoding[3:4], [(encoding[4:8], test)])]
    return MadePlan(dataset, rounds, ("p0", "p1"), ("p2",)), encoding, test


def test_story_wise_plans_score_every_story_that_did_not_tune(plan_of_three):
    plan, encoding, test = plan_of_three
    folds = story_wise(plan, 2).rounds[0].folds
    scored = [s.name for _, t in folds for s in t]
    assert sorted(scored) == sorted(s.name for s in (*encoding[4:8], *test))
    used = {s.name for e, t in folds for s in (*e, *t)}
    assert not {s.name for s in encoding[:4]} & used


def test_stories_that_tuned_or_are_too_few_cannot_be_scored(plan_of_three):
    encoding = plan_of_three[1]
    with pytest.raises(SplitError, match="cannot be scored"):
        cross_validated(encoding[:5], tuned=encoding[:1])
    with pytest.raises(SplitError, match="Too few stories"):
        cross_validated(encoding[:2], 2)


def test_another_dataset_is_left_out_of_tuning(plan_of_three):
    plan, encoding, test = plan_of_three
    rounds = [MadeRound(encoding[12:], [], [(encoding[8:12], test[:2])])]
    other = replace(plan.dataset, name="other")
    target = MadePlan(other, rounds, ("p0",), ("p1", "p2"))
    with pytest.raises(SplitError, match="stands in the other"):
        held_out_dataset(replace(plan, rounds=[MadeRound(test[:1], [], [])]), target)
    moved = held_out_dataset(plan, target)
    assert moved.tuning_participants == () and moved.held_out_participants == ("p0", "p1", "p2")
    assert moved.rounds[0].tuning == [] and "tuned on made" in moved.note


# ---- the tracked calibration


def test_the_tracked_calibration_holds_what_the_chapter_says():
    table = pd.read_csv(
        Path(__file__).parents[1] / "nbs/experiments/results/efficiency_calibration.csv"
    )
    equal = table[table.planted == 1]
    assert (
        set(table.part) == {"table", "ridge"}
        and (equal.datasets >= 100).all()
        and {1, 2, 5} == set(table.planted)
    )
    assert (table.ci_low <= 0.05).all(), (
        "an interval misses significantly more than 5 % of the data sets"
    )
    seen = table[(table.part == "table") & (table.at_least + table.at_most < 0.1)]
    assert np.allclose(seen.median_ratio, seen.true_ratio, rtol=0.08) and len(seen) >= 12
