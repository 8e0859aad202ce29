"""Streamed permutation tests, tests over people and their calibration: against definitions, other
libraries and the tracked results of tests/bench/inference.py."""

import csv
import importlib.util
import tracemalloc
import warnings

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats
from scipy.signal import lfilter

from braintune_nb.core import ParameterError
from braintune_nb.encode import group, inference
from braintune_nb.encode.score import correlation

NULLS = ("circular_shift", "block_permutation")


def data(seed=0, T=120, V=9, layers=None):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((layers, T, V) if layers else (T, V)),
        rng.standard_normal((T, V)),
        np.repeat([3, 1, 2], [T // 2, T // 4, T // 4]),
    )


def held(kind, x, y, n, seed, groups):
    "The whole null, (n, V)."
    if kind == "circular_shift":
        return inference.circular_shift_null(x, y, n, seed, 1, groups)
    return inference.block_permutation_null(x, y, 7, n, seed, groups)


# ---- the streamed test


def assert_counts_of_the_null(got, null, r, n):
    "Counts, p, q and the 95th percentile of the whole null."
    np.testing.assert_array_equal(got.b, (null >= r - 2e-6).sum(0))
    np.testing.assert_allclose(got.p, inference.permutation_p(r, null))
    np.testing.assert_allclose(got.q, stats.false_discovery_control(got.p))
    np.testing.assert_allclose(got.null_95, np.sort(null, 0)[int(np.ceil(0.95 * n)) - 1])


@pytest.mark.parametrize("kind", NULLS)
@pytest.mark.parametrize("layers", [None, 3])
@pytest.mark.parametrize("n", [30, 300])
def test_streamed_counts_are_those_of_the_whole_null(kind, layers, n):
    x, y, groups = data(1, layers=layers)
    got = inference.voxel_test(x, y, kind, n, 5, groups, block_length=7, memory=2e4 + 60 * n)
    null, r = held(kind, x, y, n, 5, groups), correlation(x, y)
    r = r.max(0) if layers else r
    assert 1 <= got.block < 9
    np.testing.assert_allclose(got.r, r, atol=1e-6)
    assert_counts_of_the_null(got, null, r, n)
    if layers:
        np.testing.assert_array_equal(got.layer, correlation(x, y).argmax(0))


@pytest.mark.parametrize("kind", NULLS)
def test_both_roads_give_the_same_draws(kind, monkeypatch):
    x, y, groups = (a.astype(np.float32) if a.dtype.kind == "f" else a for a in data(2, T=160))
    whole = held(kind, x, y, 100, 3, groups)
    if kind == "circular_shift":
        np.testing.assert_allclose(held(kind, x, y, 60, 3, groups)[:, 0].mean(), 0, atol=0.05)
    monkeypatch.setattr(inference, "_tabled", lambda *a: False)
    np.testing.assert_allclose(held(kind, x, y, 100, 3, groups), whole, atol=1e-6)


def test_scores_of_shifts_are_the_same_in_parts():
    x, y, groups = data(2, T=160)
    rows, shifts = inference.draw_shifts(groups, 100, 3, 1)
    standard = lambda a: inference._standard(a.astype(np.float32), np.concatenate(rows))[0]
    p, q = (standard(a)[: len(rows[0])] for a in (x, y))
    parts = [inference._shift_scores(p, q, shifts[i : i + 50, 0]) for i in (0, 50)]
    whole = inference._shift_scores(p, q, shifts[:, 0])
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-6)


def test_equal_arrangements_count_as_equal():
    wave = np.tile(np.arange(10.0) % 7, 12)[
        :, None
    ]  # shifts by 10, 20, ... give the observed prediction again
    y = np.random.default_rng(0).standard_normal((120, 1)) + wave
    got = inference.voxel_test(wave, y, n=119)
    assert got.b[0] == 11 and got.p[0] == 12 / 120
    blocks = np.repeat([1.0, 1, 1, 2], 20)[
        :, None
    ]  # 3! of the 4! orders leave the picture as it is
    same = inference.voxel_test(
        blocks,
        np.random.default_rng(1).standard_normal((80, 1)) + 3 * blocks,
        "block_permutation",
        4000,
        block_length=20,
    )
    assert abs(same.p[0] - 6 / 24) < 0.03


def test_offset_and_length_do_not_cost_precision():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((20000, 3))
    y = 0.1 * x + rng.standard_normal((20000, 3))
    far = (x + 1e4).astype(np.float32)
    got = inference.voxel_test(far, 5000 + 40 * y, n=100, groups=np.repeat([0, 1], 10000))
    np.testing.assert_allclose(got.r, correlation(far, y), atol=2e-6)


@pytest.fixture(scope="module")
def with_untested_voxels():
    "Predictions of two layers and responses, four voxels of which cannot be tested; the test."
    x, y, groups = data(4, layers=2)
    x[:, :, 2], x[0, :, 3], x[1, 5, 4], y[7, 5], y[:, 6] = 1.5, 1.5, np.nan, np.inf, -3
    words = r"1 \(prediction not finite\), 1 \(responses not finite\), 2 \(constant\)"
    with pytest.warns(UserWarning, match=words):
        return x, y, groups, inference.voxel_test(x, y, n=50, groups=groups)


def test_voxels_without_a_test_are_named_and_counted(with_untested_voxels):
    *_, got = with_untested_voxels
    assert {k: v.tolist() for k, v in got.excluded.items()} == {
        "prediction not finite": [4],
        "responses not finite": [5],
        "constant": [2, 6],
    }
    none = np.isin(np.arange(9), [2, 4, 5, 6])
    for a in (got.r, got.p, got.q, got.null_95):
        np.testing.assert_array_equal(np.isnan(a), none)
    assert not got.significant[none].any()
    assert "not tested: 1 (prediction not finite)" in str(got)


def test_a_layer_without_variation_has_no_vote(with_untested_voxels):
    x, y, groups, got = with_untested_voxels
    alone = inference.voxel_test(x[1, :, 3:4], y[:, 3:4], n=50, groups=groups)
    assert got.layer[3] == 1
    np.testing.assert_allclose(got.p[3], alone.p[0])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(n=0), "needs draws"),
        (dict(null="shuffle"), "unknown null"),
        (dict(alpha=0), "between 0 and 1"),
        (dict(memory=10), "one voxel alone"),
        (dict(groups=None, n=400), "too few TRs"),
        (dict(groups=np.full(120, -1)), "no TR is left"),
        (dict(groups=np.zeros(50)), "one story label a TR"),
        (dict(null="block_permutation", block_length=15), "fewer than three blocks"),
        (dict(min_shift=20), "too few TRs"),
        (dict(responses=np.ones((120, 8))), "must both be"),
        (dict(responses=np.ones(120)), "must both be"),
    ],
)
def test_bad_input_of_the_voxel_test(change, message):
    x, y, groups = data(5)
    with pytest.raises(ParameterError, match=message):
        inference.voxel_test(**dict(prediction=x, responses=y, groups=groups, n=50) | change)


@pytest.mark.parametrize("kind", NULLS)
def test_memory_is_what_was_planned(kind, tmp_path):
    T, V, rng = 1200, 3000, np.random.default_rng(6)
    x, y = (np.memmap(tmp_path / name, np.float32, "w+", shape=(T, V)) for name in "xy")
    x[:], y[:] = (rng.standard_normal((T, V), dtype=np.float32) for _ in "xy")
    groups = np.repeat(np.arange(4), 300)
    inference.voxel_test(x[:, :9], y[:, :9], kind, groups=groups)
    tracemalloc.start()
    got = inference.voxel_test(x, y, kind, 1000, groups=groups, memory=8e6, progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (
        got.bytes <= 8e6 and peak < 1.25 * got.bytes + 2e6 and peak < 0.7 * 1000 * V * 4
    )  # never the null of every voxel


# ---- false discoveries (the tracked table has more)


def ar1(rng, phi, T, V):
    return lfilter([(1 - phi**2) ** 0.5], [1, -phi], rng.standard_normal((T + 30, V)), axis=0)[30:]


@pytest.mark.parametrize("kind", NULLS)
def test_findings_without_an_effect(kind, sets=120, V=30):
    rng = np.random.default_rng(7)
    runs = lambda: np.concatenate([ar1(rng, 0.6, 150, sets * V) for _ in range(3)])
    x, y = runs(), runs()
    p = inference.voxel_test(
        x, y, kind, 999, groups=np.repeat([0, 1, 2], 150), block_length=15, progress=False
    ).p
    findings = lambda values: sum(
        (inference.fdr(own) <= 0.05).any() for own in values.reshape(sets, V)
    )
    iid = stats.pearsonr(x, y, alternative="greater").pvalue
    any_ours, any_iid = findings(p), findings(iid)
    print(
        f"\n{kind}: data sets with a finding {any_ours / sets:.3f}; formula for independent samples"
        f" {any_iid / sets:.3f}"
    )
    assert any_ours <= stats.binom.ppf(0.999, sets, 0.05) < any_iid


# ---- corrected p-values (C-20)


def test_c20_benjamini_hochberg_by_definition():
    rng = np.random.default_rng(8)
    for m in (1, 2, 7, 40):
        p = np.round(rng.random(m) ** 2, 2 if m == 40 else 5)  # ties among forty
        ranks = np.sort(p) <= 0.05 * np.arange(1, m + 1) / m
        cut = np.sort(p)[np.flatnonzero(ranks).max()] if ranks.any() else -1
        np.testing.assert_array_equal(inference.fdr(p) <= 0.05 + 1e-12, p <= cut)
    passing_with_a_gap = [0.001, 0.013, 0.0149, 0.9]
    assert (inference.fdr(passing_with_a_gap) <= 0.02).sum() == 3


def test_c20_no_p_is_zero():
    x, y, groups = data(9)
    got = inference.voxel_test(y, y, n=99, groups=groups)
    assert (
        (got.p == 0.01).all() and (got.q == 0.01).all() and got.least() == 2
    )  # 9 voxels / .05 / 100
    assert (
        inference.sign_flip(np.ones(30), n=999)["p"] == 0.001
        and inference.sign_flip(np.ones(4))["p"] == 0.125
    )


def test_holm_steps_down_over_the_tests_that_exist():
    p = np.random.default_rng(10).random(12) ** 3
    p[4] = p[5]
    order, least, want = np.argsort(p, kind="stable"), 0.0, {}
    for k, i in enumerate(order):
        least = max(least, min(1.0, p[i] * (12 - k)))
        want[int(i)] = least
    got = inference.holm(dict(enumerate(p)) | {"none": np.nan})
    assert list(got) == [*range(12), "none"] and np.isnan(got.pop("none"))
    assert got == {i: pytest.approx(want[i], rel=1e-12) for i in range(12)}
    assert inference.holm({}) == {} and np.isnan(inference.holm({"a": np.nan})["a"])


# ---- people


def test_sign_flip_is_the_exact_permutation_test():
    rng = np.random.default_rng(11)
    for P in (2, 5, 9):
        x = rng.standard_normal(P) + 0.5
        exact = stats.permutation_test(
            (x,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
        )
        assert np.isclose(inference.sign_flip(x)["p"], exact.pvalue)
    x = rng.standard_normal(16) + 0.4
    drawn = (np.abs(rng.choice([-1, 1], (20000, 16)) @ x) >= abs(x.sum())).mean()
    assert abs(inference.sign_flip(x)["p"] - drawn) < 0.01 and inference.sign_flip(x)["n"] == 2**15


@pytest.fixture(scope="module")
def regions():
    "Values of eight participants in three regions, one value missing, and the rows of the table."
    rng = np.random.default_rng(12)
    values = {k: rng.standard_normal(8) + m for k, m in (("a", 1.5), ("b", 0.2), ("c", 0))}
    values["c"][2] = np.nan
    limits = {k: np.stack([v - 1, v + 1], -1) for k, v in values.items()}
    return values, group.group_region_tests(values, limits)


def test_one_row_a_region(regions):
    values, got = regions
    for k, v in values.items():
        v, row = v[np.isfinite(v)], got[k]
        above, below = (v > 1).sum(), (v < -1).sum()
        assert np.isclose(row["p_t"], stats.ttest_1samp(v, 0).pvalue)
        assert np.isclose(row["p_wilcoxon"], stats.wilcoxon(v).pvalue)
        assert (row["n"], row["missing"]) == (len(v), 8 - len(v))
        assert (row["n_significant"], row["alone_negative"]) == (above, below)
        assert np.isclose(row["p_alone"], stats.binom.sf(above - 1, len(v), 0.025))


def test_p_of_regions_are_corrected_together(regions):
    _, got = regions
    for p in ("p_t", "p_wilcoxon", "p_flip"):
        holm = inference.holm({k: r[p] for k, r in got.items()})
        assert {k: r[p + "_holm"] for k, r in got.items()} == holm


def test_a_region_of_one_participant_is_refused():
    with pytest.raises(ParameterError, match="two or more participants"):
        group.group_region_tests({"a": [np.nan, 1.0]})


def sums_of(rng, people, seeds, labels, gain=0.3):
    common = rng.standard_normal((len(labels), 6))
    noise = lambda: rng.standard_normal(common.shape)
    sums = []
    for _ in range(people):
        predicted = np.stack([common + 0.5 * noise() for _ in range(seeds)])
        sums.append(inference.block_sums(predicted, gain * common + noise(), labels))
    return sums


@pytest.fixture(scope="module")
def own_limits():
    "Scores of five participants by block, how many blocks there are, and limits of each alone."
    rng = np.random.default_rng(13)
    labels, owner = inference.block_labels(np.repeat([0, 1], 80), 16)
    scores = inference.region_scores(sums_of(rng, 5, 1, labels, 0.12), stories=owner, n=300)
    return scores, len(owner), group.participant_intervals(scores, len(owner), 2)


def test_own_limits_are_those_the_crossed_table_counts(own_limits):
    scores, blocks, limits = own_limits
    count = group.prevalence(limits[:, :, 0])
    table = inference.score_table(scores, ["all"], blocks, 2)["all"]["raw"]
    counted = count["positive"][0], count["negative"][0]
    assert counted == (table["n_positive"], table["n_negative"]) and 0 < counted[0] < 5


def test_own_limits_are_those_of_each_participant_alone(own_limits):
    scores, blocks, limits = own_limits
    for p in range(5):
        mean, draws = scores[p : p + 1, 0, 0, 0], scores[p : p + 1, 1:, 0, 0]
        alone = inference.crossed_interval(mean, draws, blocks, 2)
        np.testing.assert_allclose(limits[p, 0, 0], [alone["ci_low"], alone["ci_high"]])
    assert np.isnan(limits[..., 1, :]).all() and (group.prevalence(limits)["n"] == [[5, 0]]).all()


@pytest.fixture(scope="module")
def seeded():
    "Sums of four participants and three seeds, the story of each block, values with shared seeds."
    rng = np.random.default_rng(14)
    labels, owner = inference.block_labels(np.repeat([0, 1], 80), 16)
    arm = sums_of(rng, 4, 3, labels)
    x = rng.standard_normal((4, 5, 1)) + 0.3 * rng.standard_normal((1, 1, 3)) + np.zeros((4, 5, 3))
    return arm, owner, x


def test_copied_seeds_leave_the_crossed_interval(seeded):
    arm, owner, _ = seeded
    table = lambda a: inference.crossed_bootstrap(a, stories=owner, n=200)["all"]["raw"]
    one, many = table(arm), table([np.concatenate([x] * 5) for x in arm])
    for k in ("mean", "ci_low", "ci_high", "n", "df"):
        assert np.isclose(one[k], many[k])


def test_seeds_are_nested_not_samples(seeded):
    x = seeded[2]
    many = np.concatenate([x] * 9, 2)
    plain, own, copies = (group.random_effects_interval(v) for v in (x.mean(2), x, many))
    assert plain["se"] < copies["se"] < own["se"]
    assert plain["mean"] == pytest.approx(copies["mean"])
    # people and stories are treated alike
    both = group.random_effects_interval(np.swapaxes(x, 0, 1))
    assert both["se"] == pytest.approx(own["se"])
    assert (both["participants"], both["stories"]) == (5, 4)


def test_the_interaction_is_taken_off_once():
    rng = np.random.default_rng(16)
    se2 = [
        group.random_effects_interval(
            rng.standard_normal((4, 1))
            + rng.standard_normal((1, 5))
            + 3 * rng.standard_normal((4, 5))
        )["se"]
        ** 2
        for _ in range(600)
    ]
    assert (
        0.85 < np.mean(se2) / (1 / 4 + 1 / 5 + 9 / 20) < 1.25
    )  # 1.5 if it counted twice; never negative, so a little above 1


def test_interval_over_people_and_stories_covers(sets=400):
    rng, miss, cells = np.random.default_rng(15), 0, 0
    for _ in range(sets):
        x = (
            rng.standard_normal((4, 1, 1))
            + rng.standard_normal((1, 5, 1))
            + 0.4 * rng.standard_normal((1, 1, 3))
            + 0.5 * rng.standard_normal((4, 5, 3))
        )
        got = group.random_effects_interval(x)
        miss += not got["ci_low"] <= 0 <= got["ci_high"]
        cells += stats.ttest_1samp(x.ravel(), 0).pvalue <= 0.05
    print(f"\nmissed: crossed {miss / sets:.3f}, every cell a sample {cells / sets:.3f}")
    assert miss <= stats.binom.ppf(0.999, sets, 0.05) < cells


# ---- the tracked calibration


def bench(root):
    spec = importlib.util.spec_from_file_location(
        "bench_inference", root / "tests" / "bench" / "inference.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tracked(root):
    with open(root / "nbs" / "experiments" / "results" / "inference_calibration.csv") as f:
        return list(csv.DictReader(f))


def test_the_bench_runs_and_its_columns_are_those_tracked(root, tmp_path):
    module, rows = bench(root), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows += module.voxel_rows(
            "ar0.5+hrf",
            2,
            60,
            4,
            0,
            methods=[("iid", None), ("circular_shift", None), ("block_permutation", 10)],
            V=10,
            n=99,
        )
        rows += module.layer_rows(2, 0, layers=2, V=5, n=50, trs=40)
        rows += module.participant_rows(4, 0.0, 0.0, 2, 60, 20, 3, 0, n=20)
        rows += module.values_rows(4, 3, 2, 5, 0)
        rows += module.test_rows(4, "normal", 3, 0, regions=2)
    assert all(r["ci_low"] <= r["rate"] <= r["ci_high"] for r in rows) and {
        k for r in rows for k in r
    } <= set(tracked(root)[0])


def nominal(row):
    return round(float(row["rate"]) * int(row["datasets"])) <= stats.binom.ppf(
        0.999, int(row["datasets"]), 0.05
    )


FAIR_NOISE = ("ar0.3", "ar0.5", "ar0.7", "ar0.5+hrf")


def own_null(row):
    "Whether the row is of one of our nulls with a block that is not too short."
    return row["method"] in NULLS and row["block_length"] != "5"


@pytest.fixture(scope="module")
def findings_of_voxels():
    "Tracked rates of any finding among voxels."
    rows = tracked(ROOT)
    return [r for r in rows if r["part"] == "voxels" and r["check"].startswith("any finding")]


def test_the_tracked_rates_of_findings_are_nominal(findings_of_voxels):
    fair = [r for r in findings_of_voxels if r["remedy"] or r["noise"] in FAIR_NOISE]
    ours = [r for r in fair if own_null(r)]
    assert len(ours) >= 36 and all(map(nominal, ours)), [r for r in ours if not nominal(r)]
    assert not any(map(nominal, (r for r in fair if r["method"] == "iid")))


def test_the_tracked_rates_show_what_is_not_nominal(findings_of_voxels):
    named = lambda name: next(r for r in findings_of_voxels if r["method"].endswith(name))
    assert nominal(named("maximum in each draw")) and not nominal(named("null of one layer"))
    late = [r for r in findings_of_voxels if r["noise"].endswith(("onset", "trend"))]
    # and the chapter says so
    assert not any(nominal(r) for r in late if not r["remedy"])


def test_the_tracked_shares_of_false_findings_are_nominal(root):
    rows = tracked(root)
    assert min(int(r["datasets"]) for r in rows) >= 100
    false = [r for r in rows if r["check"].startswith("false share")]
    assert all(float(r["rate"]) <= 0.05 for r in false if own_null(r))


def test_the_tracked_rates_of_intervals_are_nominal(root):
    rows = tracked(root)
    crossed = [r for r in rows if r["method"] == "crossed_interval"]
    intervals = [r for r in crossed if r["check"].endswith("true gain")]
    assert {r["participants"] for r in intervals} == {"4", "8"}
    assert all(map(nominal, intervals)), [r for r in intervals if not nominal(r)]
    random = [r for r in rows if r["method"] == "random_effects_interval"]
    assert all(nominal(r) for r in random if r["seeds"] == "3")


def test_speed_was_measured_in_one_run(root):
    with open(root / "nbs" / "experiments" / "results" / "inference_speed.csv") as f:
        rows = list(csv.DictReader(f))
    assert min(float(r["times_faster"]) for r in rows if r["times_faster"]) > 15
    assert all(
        float(r["megabytes"]) <= 1.2 * float(r["planned"])
        for r in rows
        if r["tool"] == "voxel_test"
    )


def test_degrees_of_freedom_of_the_crossed_interval():
    rng = np.random.default_rng(17)
    values, shared = rng.standard_normal(4), rng.standard_normal(500)
    for scale in (0.01, 0.5, 1.0, 30.0):  # blocks count little, alike, alone
        got = inference.crossed_interval(values, values[:, None] + scale * shared, 12, 2)
        people, blocks = values.var(ddof=1) / 4, 12 / 10 * scale**2 * shared.var(ddof=1)
        df = max((people + blocks) ** 2 / (people**2 / 3 + blocks**2 / 10) - 2, 3)
        assert np.isclose(got["se"] ** 2, people + blocks) and np.isclose(got["df"], df)
        assert np.isclose(got["ci_high"] - got["mean"], stats.t.ppf(0.975, df) * got["se"])
