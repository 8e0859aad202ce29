"""Chapters 82 and 83 against independent references, invariants, and what the tracked calibration
promises."""

import csv
import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from scipy.stats import pearsonr

from braintune_nb.analyses.cross_language import (
    check_fold,
    cross_language_folds,
    improved_share,
    improved_test,
    least_squares,
    match_noise,
    noise_to_add,
    pooled_sharing,
    quadrant_folds,
    quadrant_predictions,
    quadrant_scores,
    quadrant_table,
    session_weights,
    weight_sharing,
    well_predicted,
    white_features,
    yoked,
)
from braintune_nb.analyses.tuning_shift import (
    cluster_test,
    first_direction,
    match_clusters,
    released_shift,
    shared_tuning,
    shift_moments,
    shift_of,
    spins,
    split_null,
    swapped_labels,
    tuning_shift,
    white_weights,
    within_language,
)
from braintune_nb.core import DataError, ParameterError, SplitError
from braintune_nb.data.recordings import zscore
from braintune_nb.data.splits import whole_story
from braintune_nb.encode.inference import block_labels, block_sums

sys.path.insert(0, str(ROOT / "tests" / "bench"))
import bilingual as bench  # noqa: E402

RESULTS = ROOT / "nbs" / "experiments" / "results" / "bilingual_calibration.csv"


def rows(part, case, measure):
    columns = ("value", "ci_low", "ci_high", "spread", "datasets")
    with RESULTS.open() as f:
        wanted = [
            r
            for r in csv.DictReader(f)
            if (r["part"], r["case"], r["measure"]) == (part, case, measure)
        ]
    numbers = lambda row: {k: float(row[k]) for k in columns}
    return [numbers(row) for row in wanted]


@pytest.fixture(scope="module")
def toy():
    rng = np.random.default_rng(0)
    stories = [bench.story(i, l, 50) for i in range(4) for l in ("en", "zh")]
    parts = {s.name: whole_story(s) for s in stories}
    x = {n: rng.standard_normal((50, 4)).astype(np.float32) for n in parts}
    y = {
        "P1": {n: x[n] @ rng.standard_normal((4, 6)) + rng.standard_normal((50, 6)) for n in parts}
    }
    train, test = (
        [parts[f"s{i}_{l}"] for i in range(3) for l in ("en", "zh")],
        [
            parts["s3_en"],
            parts["s3_zh"],
        ],
    )
    return x, y, train, test


# ---- quadrants


def ridge_of(names, x, y):
    "scikit-learn's ridge on z-scored stories."
    from sklearn.linear_model import Ridge

    features = np.concatenate([x[n] for n in names])
    return Ridge(alpha=10.0).fit(features, np.concatenate([zscore(y[n]) for n in names]))


def test_quadrants_against_scikit_learn(toy):
    """One fixed penalty: the same predictions as scikit-learn's ridge on the z-scored training
    stories of one language."""
    from braintune_nb.encode.ridge import RidgeCV

    x, y, train, test = toy
    folds = quadrant_folds(train, test)
    guess = quadrant_predictions(
        x, y, folds, lambda: RidgeCV(alphas=[10.0], tolerance=0, precision="float32")
    )
    scores = quadrant_scores(guess, y, folds)
    for a, b in itertools.product(("en", "zh"), repeat=2):
        model = ridge_of([s.name for s in train if s.story.language == a], x, y["P1"])
        predicted = model.predict(x[f"s3_{b}"])
        np.testing.assert_allclose(guess["P1", a, b], predicted, atol=1e-4)
        r = pearsonr(predicted[:, 2], y["P1"][f"s3_{b}"][:, 2])[0]
        np.testing.assert_allclose(scores["P1", a, b][2], r, atol=1e-4)


def test_a_translation_on_both_sides_is_refused(toy):
    x, y, train, test = toy
    for fold in (([train[0]], [train[1]]), ([train[1]], [train[0]])):
        with pytest.raises(SplitError, match="same story is fitted and scored"):
            check_fold(*fold)
    with pytest.raises(SplitError, match="s0 in both"):
        cross_language_folds(train, [train[0], *test])
    with pytest.raises(SplitError, match="same story"):
        quadrant_predictions(x, y, {("en", "zh"): ([train[0]], [train[1]])})


def test_scores_use_the_ceiling_of_the_scored_language(toy):
    x, y, train, test = toy
    folds = quadrant_folds(train, test)
    scores = quadrant_scores(quadrant_predictions(x, y, folds), y, folds)
    ceilings = {"P1": {"en": np.full(6, 0.5), "zh": np.full(6, 0.25)}}
    table = quadrant_table(scores, ceilings, {"P1": {"all": np.ones(6, bool)}}).set_index(
        ["train", "test"]
    )
    for a, b in itertools.product(("en", "zh"), repeat=2):
        assert table.loc[(a, b), "normalized"] == pytest.approx(
            np.mean(scores["P1", a, b]) / dict(en=0.5, zh=0.25)[b]
        )
    with pytest.raises(DataError, match="ceiling of the test language"):
        quadrant_table(scores, {"P1": {"zh": np.ones(6)}}, {"P1": {"all": np.ones(6, bool)}})


# ---- sharing


def test_sharing_by_hand():
    rng = np.random.default_rng(1)
    w = {(l, s): rng.standard_normal((9, 3)) for l in ("en", "zh") for s in (1, 2)}
    found = weight_sharing(w)
    r = lambda a, b: pearsonr(w[a][:, 1], w[b][:, 1])[0]
    across = np.mean([r(("en", 1), ("zh", 2)), r(("en", 2), ("zh", 1))])
    en, zh = (found["reliability"][l][1] for l in ("en", "zh"))
    assert found["across"][1] == pytest.approx(across)
    assert zh == pytest.approx(r(("zh", 1), ("zh", 2)))
    if min(en, zh) > 0:
        assert found["sharing"][1] == pytest.approx(across / (en * zh) ** 0.5)
    else:
        assert np.isnan(found["sharing"][1])


@pytest.mark.parametrize("truth", [0.0, 0.5, 1.0])
def test_sharing_comes_out_as_planted(truth):
    got = []
    for seed in range(6):
        x, y, parts, session, cov = bench.planted_sharing(truth, 0.5, 1.0, seed)
        got.append(pooled_sharing(weight_sharing(session_weights(x, y, parts, session), cov)))
    assert abs(np.mean(got) - truth) < 0.06


def test_ridge_finds_more_sharing_than_there_is():
    "Features of the two languages that are correlated: least squares is right, ridge far too high."
    from braintune_nb.encode.ridge import RidgeCV

    x, y, parts, session, cov = bench.own_spaces(0.5, 0.5, 0)
    share = lambda model: pooled_sharing(
        weight_sharing(session_weights(x, y, parts, session, model), cov)
    )
    assert (
        abs(share(None) - 0.5)
        < 0.1
        < share(lambda: RidgeCV(tolerance=0, precision="float32")) - 0.5
    )


def test_sharing_does_not_depend_on_units_of_the_features():
    x, y, parts, session, _ = bench.planted_sharing(0.5, 1.0, 0.0, 3)
    turn = np.random.default_rng(0).standard_normal((15, 15))
    share = lambda f: pooled_sharing(
        weight_sharing(session_weights(white_features(f, parts)[0], y, parts, session), np.eye(15))
    )
    turned = {n: a @ turn for n, a in x.items()}
    assert share(x) == pytest.approx(share(turned), abs=2e-3)


# ---- improved voxels


@pytest.fixture(scope="module")
def two_guesses():
    "Responses, two predictions that are equally good, and their sums by block."
    rng = np.random.default_rng(2)
    y = rng.standard_normal((200, 40))
    a, b = (y + 2 * rng.standard_normal((200, 40)) for _ in range(2))
    labels = block_labels(np.zeros(200), 10)[0]
    return y, a, labels, [block_sums(p, y, labels) for p in (a, b)]


def test_null_of_the_improved_share_is_centred_and_symmetric(two_guesses):
    *_, sums = two_guesses
    one, other = (improved_test(*s, np.ones(40, bool), 99) for s in (sums, sums[::-1]))
    assert one["share"] == pytest.approx(1 - other["share"])
    assert one["p"] == pytest.approx(other["p"]) and abs(one["null"].mean() - 0.5) < 0.05


def test_improved_share_does_not_depend_on_the_unit_of_a_prediction(two_guesses):
    y, a, labels, sums = two_guesses
    one = improved_test(*sums, np.ones(40, bool), 99)
    scaled = improved_test(block_sums(7 * a + 3, y, labels), sums[1], np.ones(40, bool), 99)
    np.testing.assert_allclose(scaled["null"], one["null"])


def test_improved_share_counts_a_tie_in_half():
    share = improved_share(np.array([0.2, 0.1]), np.array([0.2, 0.3]), np.ones(2, bool))["share"]
    assert share == 0.25


def test_voxels_are_not_picked_by_what_is_scored():
    one, other = ([whole_story(bench.story(1, l, 20))] for l in ("en", "zh"))
    with pytest.raises(SplitError):
        well_predicted(np.ones(2), one, other)


# ---- controls


def test_noise_brings_the_evidence_to_that_of_the_other_language():
    rng = np.random.default_rng(3)
    rho, target, rows, target_rows = 0.5, 0.2, 300, 150
    s2 = noise_to_add(rho, target, rows, target_rows)
    assert rho * rows / (1 - rho + s2) == pytest.approx(target * target_rows / (1 - target))
    same = {"a": rng.standard_normal((20, 3))}
    assert match_noise(same, 0.0)["a"] is same["a"] and noise_to_add(target, rho) == 0
    for bad in (0, 1, float("nan")):
        with pytest.raises(ParameterError):
            noise_to_add(bad, 0.2)


def test_a_yoked_story_keeps_clock_and_order():
    a, b = bench.story(0, "en", 40), replace(bench.story(0, "zh", 30))
    y = yoked(a, b)
    assert (
        y.clock is a.clock
        and y.words.text == b.words.text
        and (np.diff(y.words.onset) > 0).all()
        and y.identity == "s0"
    )
    with pytest.raises(SplitError):
        yoked(a, bench.story(0, "en", 40))


# ---- tuning shift


@pytest.fixture(scope="module")
def planted():
    return bench.planted_shift(5, 0.4)


def test_moments_give_the_least_squares_weights(planted):
    x, y, parts, *_ = planted
    m = shift_moments(x, y, parts, components=6)
    white, basis = white_features(x, parts, 6)
    en = [s.name for s in parts if s.story.language == "en"]
    a, b = np.concatenate([white[n] for n in en]), np.concatenate([zscore(y["P2"][n]) for n in en])
    w = np.linalg.lstsq(np.r_[a, np.eye(6)], np.r_[b, np.zeros((6, b.shape[1]))], rcond=None)[0]
    np.testing.assert_allclose(white_weights(m, np.array(m.language) == "en")["P2"], w, atol=1e-6)
    assert m.basis.shape == (12, 6) and basis.shape == (12, 6)


def test_p_counts_the_draws_by_hand(planted):
    x, y, parts, *_ = planted
    m = shift_moments(x, y, parts)
    f = tuning_shift(m, n=19, seed=4)
    label, people = np.array([l == "en" for l in m.language]), list(y)

    def share(is_first):
        d = shift_of(m, is_first, ~is_first)
        u = {p: first_direction(d, p) for p in people}
        return np.mean([((u[p] @ d[p]) ** 2).sum() / (d[p] ** 2).sum() for p in people])

    null = [share(s) for s in swapped_labels(m, "en", "zh", 19, 4)]
    assert f.share == pytest.approx(share(label)) and f.p == pytest.approx(
        (sum(v >= f.share for v in null) + 1) / 20
    )
    np.testing.assert_allclose(f.null, null)


def cosine(a, b):
    "Between the columns of two sets of weights."
    return (a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)


@pytest.fixture(scope="module")
def shared_draws(planted):
    "Moments, which of the stories are English, and 200 draws without a difference."
    x, y, parts, *_ = planted
    m = shift_moments(x, y, parts)
    first = np.array(m.language) == "en"
    return m, first, list(shared_tuning(m, first, 200, 1))


def test_shared_tuning_keeps_designs_and_removes_the_difference(shared_draws):
    "Averaged over draws both languages have the same direction."
    m, first, draws = shared_draws
    assert all(d.gram is m.gram for d in draws)
    mean = lambda f: np.mean([white_weights(d, f)["P1"] for d in draws], 0)
    real = [white_weights(m, f)["P1"] for f in (first, ~first)]
    assert cosine(mean(first), mean(~first)).min() > 0.98 and cosine(*real).mean() < 0.93


def test_shared_tuning_keeps_the_noise(shared_draws):
    "The spread over draws is that of the weights."
    m, first, draws = shared_draws
    noise = np.std([white_weights(d, first)["P1"] for d in draws], 0).mean()
    halves = [white_weights(m, first & (np.arange(16) // 2 % 2 == i))["P1"] for i in (0, 1)]
    assert noise == pytest.approx(np.std(np.subtract(*halves)) / 2, rel=0.25)


def test_an_unknown_null_is_refused(shared_draws):
    with pytest.raises(ParameterError, match="Unknown null"):
        tuning_shift(shared_draws[0], null="none")


def test_the_left_out_participant_does_not_make_the_dimension(planted):
    x, y, parts, *_ = planted
    m = shift_moments(x, y, parts)
    d = shift_of(m, np.array(m.language) == "en", np.array(m.language) == "zh")
    changed = dict(d, P1=10 * np.random.default_rng(0).standard_normal(d["P1"].shape))
    np.testing.assert_allclose(abs(first_direction(d, "P1") @ first_direction(changed, "P1")), 1)
    assert abs(first_direction(d) @ first_direction(changed)) < 0.99


def test_sign_follows_the_rule(planted):
    x, y, parts, direction, *_ = planted
    m = shift_moments(x, y, parts)
    for side in (1, -1):
        f = tuning_shift(m, n=3, anchor=side * direction)
        stimulus = np.concatenate([x[s.name] for s in parts])
        assert np.corrcoef(stimulus @ f.weights, stimulus @ (side * direction))[0, 1] > 0
    free = tuning_shift(m, n=3)
    d = shift_of(m, np.array(m.language) == "en", np.array(m.language) == "zh")
    assert np.mean([(free.dimension @ v).mean() for v in d.values()]) >= 0
    np.testing.assert_allclose(
        tuning_shift(m, "zh", "en", n=3, anchor=direction).dimension
        @ tuning_shift(m, n=3, anchor=direction).dimension,
        1,
    )


def test_nothing_is_found_where_both_languages_are_one(planted):
    "The same responses and features under both labels: no shift at all."
    x, y, parts, *_ = planted
    twin = lambda by: {n: by[n[:-2] + "en"] for n in by}
    f = tuning_shift(shift_moments(twin(x), {p: twin(v) for p, v in y.items()}, parts), n=19)
    assert f.p == 1 and f.p_difference == 1


def test_within_language_has_no_pairs(planted):
    x, y, parts, *_ = planted
    m = within_language(shift_moments(x, y, parts), "zh", 3)
    assert set(m.language) == {"zh1", "zh2"} and len(m.language) == 8
    labels = swapped_labels(m, "zh1", "zh2", 30)
    assert (labels.sum(1) == 4).all() and len({tuple(r) for r in labels}) > 15
    assert split_null(shift_moments(x, y, parts), "en", "zh", 5)["within"].shape == (10,)


def test_released_is_a_centred_principal_component():
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    made = lambda: {p: rng.standard_normal((5, 30)) for p in "ab"}
    a, b = made(), made()
    r = released_shift(a, b, {p: np.full(30, 0.25) for p in "ab"})
    unit = lambda w: w / np.linalg.norm(w, axis=0)
    d = np.concatenate([0.5 * (unit(a[p]) - unit(b[p])) for p in "ab"], 1)
    pca = PCA(1).fit(d.T)
    assert abs(pca.components_[0] @ r["dimension"]) == pytest.approx(1) and r[
        "variance"
    ] == pytest.approx(pca.explained_variance_ratio_[0])


# ---- clusters


def test_matching_against_all_permutations():
    rng = np.random.default_rng(1)
    a, b = rng.integers(4, size=(2, 60))
    best = max(np.mean(a == np.array(p)[b]) for p in itertools.permutations(range(4)))
    found = match_clusters(a, b)
    assert found["match"] == pytest.approx(best) and np.mean(found["second"] == a) == pytest.approx(
        best
    )
    assert (
        match_clusters(a, (a + 1) % 4)["match"] == 1 and match_clusters(a, (a + 1) % 4)["ari"] == 1
    )


def test_identity_is_the_most_extreme_of_all():
    rng = np.random.default_rng(2)
    points = rng.standard_normal((400, 3))
    labels = (points @ rng.standard_normal((3, 4))).argmax(1)
    t = cluster_test(labels, labels, spins(points, np.zeros(400, bool), 39, reach=20))
    assert t["p_ari"] == t["p_match"] == 1 / 40 and t["ari"] == 1
    with pytest.raises(DataError, match="cover the sphere"):
        spins(points[points[:, 2] > 1.5], np.zeros((points[:, 2] > 1.5).sum(), bool), 5)


# ---- what the tracked calibration says

pytestmark_results = pytest.mark.skipif(
    not RESULTS.exists(), reason="made by tests/bench/bilingual.py"
)


@pytestmark_results
def test_calibration_holds_its_promises():
    one = lambda case, measure, part="shift": rows(part, case, measure)[0]
    assert one("a dimension planted, amount 0.4", "dimension found, p <= 0.05")["value"] > 0.9
    for case in (
        "nothing planted",
        "nothing planted, 300 voxels",
        "a dimension planted, amount 0.4: en1 - en2",
    ):
        assert one(case, "dimension found, p <= 0.05")["ci_low"] <= 0.05
    assert (
        one("nothing planted", "released: t test over voxels, any participant p < 0.05")["ci_low"]
        > 0.2
    )
    assert (
        one("sharing 0, maps smooth over 25 mm", "spin: adjusted Rand index p <= 0.05", "clusters")[
            "ci_low"
        ]
        <= 0.05
        < 0.5
        < one(
            "sharing 0, maps smooth over 25 mm",
            "voxels shuffled: adjusted Rand index p <= 0.05",
            "clusters",
        )["ci_low"]
    )
    for truth in ("0", "0.5", "1"):
        assert (
            abs(
                one(
                    f"sharing {truth}, snr 0.5, correlated features",
                    "least squares, whitened",
                    "sharing",
                )["value"]
                - float(truth)
            )
            < 0.05
        )
    assert (
        one("sharing 0.5, snr 0.5, features of their own", "ridge, whitened", "sharing")["ci_low"]
        > 0.6
    )
    with RESULTS.open() as f:
        table = list(csv.DictReader(f))
    assert (
        {r["part"] for r in table} == {"sharing", "shift", "shared null", "clusters"}
        and min(int(r["datasets"]) for r in table if r["measure"] != "least squares, plain") >= 100
        and all(r["seed"] and r["language"] for r in table)
    )


def test_the_bench_runs(tmp_path):
    out = bench.main(["--only", "clusters", "--datasets", "2", "--out", str(tmp_path / "x.csv")])
    with out.open() as f:
        table = list(csv.DictReader(f))
    assert len(table) == 24 and {r["datasets"] for r in table} == {"2"}


@pytest.mark.parametrize("alphas", [None, [1e-3]])
def test_the_quick_ridge_of_the_bench_is_ridge(alphas):
    from braintune_nb.encode.ridge import RidgeCV

    x, y, parts, session, _ = bench.planted_sharing(0.5, 1.0, 1.0, 0)
    names, groups = [s.name for s in parts[::2]], np.repeat(np.arange(6), 60)
    a, b = np.concatenate([x[n] for n in names]), np.concatenate([y[n] for n in names])
    ours = RidgeCV(alphas=alphas, tolerance=0, precision="float32").fit(a, b, groups).coef_
    quick = (
        (bench.QuickRidge() if alphas is None else bench.QuickRidge(alphas)).fit(a, b, groups).coef_
    )
    np.testing.assert_allclose(quick, ours, atol=1e-3 * np.abs(ours).max())


def test_least_squares_is_least_squares():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((80, 5)).astype(np.float32), rng.standard_normal((80, 2))
    np.testing.assert_allclose(
        least_squares().fit(x, y, np.repeat([0, 1], 40)).coef_,
        np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=None)[0],
        atol=1e-4,
    )
