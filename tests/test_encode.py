"""Scores, ceilings, ridge and nulls against independent implementations, with invariants and
faults."""

import numpy as np
import pytest
import scipy.stats
from ridge_problems import one_thread, problem  # noqa: F401 (a fixture works by its name)

from braintune_nb.core import DataError, ParameterError
from braintune_nb.encode import ceiling, inference, score, subspace

# ---- scores


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_correlation_agrees_with_scipy(dtype):
    rng = np.random.default_rng(1)
    x, y = (rng.standard_normal((50, 7)).astype(dtype) * 3 + 100 for _ in range(2))
    expected = [
        scipy.stats.pearsonr(x[:, v].astype(float), y[:, v].astype(float)).statistic
        for v in range(7)
    ]
    np.testing.assert_allclose(score.correlation(x, y, block=3), expected, atol=1e-6)
    np.testing.assert_allclose(
        score.correlation(np.stack([x, -x]), y)[1], -np.array(expected), atol=1e-6
    )


def test_correlation_is_one_with_itself_and_nan_where_constant_or_missing():
    y = np.random.default_rng(2).standard_normal((20, 4))
    y[:, 1], y[3, 2] = 0.1, np.nan
    np.testing.assert_allclose(score.correlation(y, 5 * y - 2), [1, np.nan, np.nan, 1])


def test_r2_agrees_with_sklearn():
    from sklearn.metrics import r2_score

    rng = np.random.default_rng(3)
    y, p = rng.standard_normal((2, 40, 5))
    np.testing.assert_allclose(score.r2(p, y), r2_score(y, p, multioutput="raw_values"))


def test_a15_no_infinite_or_clipped_alignment():
    got = score.normalised_alignment([0.2, 0.2, 0.2, 0.2], [0.0, -0.1, np.nan, 0.1])
    np.testing.assert_allclose(got, [np.nan, np.nan, np.nan, 2])


# ---- ceilings


def test_ccmax_agrees_with_a_slow_loop():
    y = np.random.default_rng(4).standard_normal((5, 80, 20)) + np.random.default_rng(
        5
    ).standard_normal((80, 20))
    for v, got in enumerate(ceiling.ccmax(y, zscored=False)):
        N, ybar = 5, y[:, :, v].mean(0)
        TP = np.mean([np.var(y[n, :, v], ddof=1) for n in range(N)])
        SP = (N * np.var(ybar, ddof=1) - TP) / (N - 1)
        expected = 1 / np.sqrt(1 + (TP / SP - 1) / N) if SP > 0 else np.nan
        np.testing.assert_allclose(got, expected)


def test_explainable_variance_agrees_with_the_tutorials_formula():
    y = np.random.default_rng(6).standard_normal((4, 60, 9)) + np.random.default_rng(
        7
    ).standard_normal((60, 9))
    z = scipy.stats.zscore(y, axis=1)
    residual = z - z.mean(0)
    expected = 1 - np.mean(np.var(residual, axis=1), axis=0)
    np.testing.assert_allclose(ceiling.explainable_variance(y, bias_correction=False), expected)
    np.testing.assert_allclose(ceiling.explainable_variance(y), expected - (1 - expected) / 3)


def ceilings_of(y):
    "Name -> ceiling of the mean over the repeats."
    z = (y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True)
    halves = ceiling.split_half(y)
    return {
        "ccmax": ceiling.ccmax(z),
        "measured power": ceiling.ccmax(3 * y, zscored=False),
        "split half": np.sqrt(ceiling.spearman_brown(halves)),
        "odd repeats": ceiling.expected_correlation(ceiling.explainable_variance(y[::2]), len(y)),
        "people": ceiling.average_ceiling(y, n=20),
    }


@pytest.mark.parametrize("rho", [0.1, 0.3])
@pytest.mark.parametrize("R", [4, 10])
def test_every_ceiling_finds_the_truth(rho, R):
    rng = np.random.default_rng(int(100 * rho) + R)
    signal = rng.standard_normal((300, 800))
    y = rho**0.5 * signal + (1 - rho) ** 0.5 * rng.standard_normal((R, 300, 800))
    truth = np.sqrt(R * rho / (1 + (R - 1) * rho))
    for name, got in ceilings_of(y).items():
        bias, spread, undefined = np.nanmean(got) - truth, np.nanstd(got), np.isnan(got).mean()
        print(f"{rho=} {R=} {name}: {bias=:+.3f} {spread=:.3f} {undefined=:.2f}")
        assert abs(bias) < 0.03, name


def test_ceilings_are_nan_where_undefined():
    y = np.random.default_rng(8).standard_normal((3, 100, 50))
    y[:, :, 0] = 7
    for got in (
        ceiling.ccmax(y, zscored=False),
        ceiling.expected_correlation(ceiling.explainable_variance(y)),
        ceiling.odd_even_ceiling(y)[0],
    ):
        assert (
            np.isnan(got[0])
            and np.isnan(got).mean() > 0.2
            and not np.isinf(got).any()
            and not (got == 0).any()
        )
    with pytest.raises(DataError, match="zscored=False"):
        ceiling.ccmax(y[:, :, 1:] * 2)
    with pytest.raises(ParameterError, match="R >= 3"):
        ceiling.odd_even_ceiling(y[:2])


def test_mask_and_ceiling_ignore_the_scored_repeats():
    y = np.random.default_rng(9).standard_normal((6, 100, 30))
    changed = y.copy()
    changed[1::2] *= -3
    np.testing.assert_array_equal(
        ceiling.odd_even_ceiling(y)[0], ceiling.odd_even_ceiling(changed)[0]
    )


# ---- shared subspace


def test_weight_basis_is_the_svd_of_all_weights():
    rng = np.random.default_rng(5)
    weights, scores = (
        [rng.standard_normal((30, n)) for n in (40, 25)],
        [
            rng.random(40),
            rng.random(25) - 0.3,
        ],
    )
    stacked = np.hstack([w * np.clip(s, 0, None) for w, s in zip(weights, scores)])
    expected = np.linalg.svd(stacked)[0][:, :5]
    got = subspace.weight_basis(weights, scores, rank=5, block=7)
    np.testing.assert_allclose(np.abs((got * expected).sum(0)), 1, atol=1e-4)
    with pytest.raises(DataError, match="can be predicted"):
        subspace.weight_basis(weights, [-s - 1 for s in scores])


def test_reduced_rank_weights_predict():
    X, Y, groups = problem()
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 8)))[0]
    model = subspace.SubspaceRidge(basis, (2, 8)).fit(X, Y, groups)
    np.testing.assert_allclose(X @ model.coef_ + Y.mean(0), model.predict(X), atol=1e-3)
    assert model.rank_ == 8 and model.cv_scores_by_rank_[8] > model.cv_scores_by_rank_[2]


# ---- nulls and p-values


def test_c20_fdr_with_gaps_nan_and_nothing_passing():
    p = np.array([0.2, 0.001, np.nan, 0.026, 0.027, 0.03])
    np.testing.assert_array_equal(
        np.nan_to_num(inference.fdr(p), nan=1) <= 0.05, [False, True, False, True, True, True]
    )
    assert (inference.fdr([0.9, 0.5]) > 0.05).all() and np.isnan(
        inference.fdr([np.nan, np.nan])
    ).all()


def test_c20_p_is_never_zero():
    assert inference.permutation_p([9.0], np.zeros((99, 1)))[0] == 0.01


def test_shift_null_maximum_over_layers_and_blocks_of_columns():
    rng = np.random.default_rng(7)
    p, y, groups = (
        rng.standard_normal((3, 60, 5)),
        rng.standard_normal((60, 5)),
        np.repeat(["a", "b"], 30),
    )
    each = np.stack([inference.circular_shift_null(x, y, 20, 3, 1, groups) for x in p])
    np.testing.assert_allclose(
        inference.circular_shift_null(p, y, 20, 3, 1, groups, block=2), each.max(0), atol=1e-6
    )
    got = inference.voxel_test(p, y, "circular_shift", 20, 3, groups)
    r = score.correlation(p, y)
    np.testing.assert_allclose(got.r, r.max(0), atol=1e-6)
    np.testing.assert_allclose(got.p, inference.permutation_p(r.max(0), each.max(0)))
    np.testing.assert_array_equal(got.layer, r.argmax(0))


def test_constant_columns_have_no_p():
    rng = np.random.default_rng(8)
    y = rng.standard_normal((60, 3))
    y[:, 1] = 2
    with pytest.warns(UserWarning, match="1 \\(constant\\)"):
        got = inference.voxel_test(rng.standard_normal((60, 3)), y, n=20)
    assert np.isnan(got.p[1]) and np.isnan(got.q[1]) and np.isfinite(got.q[[0, 2]]).all()


def test_block_permutation_moves_whole_blocks_within_stories():
    p = np.arange(40.0)[:, None]
    y = np.random.default_rng(9).standard_normal((40, 1))
    null = inference.block_permutation_null(p, y, 5, n=30, seed=1, groups=np.repeat([0, 1], 20))
    rng, possible = np.random.default_rng(1), []
    for _ in range(30):
        possible.append(
            np.concatenate(
                [start + 5 * b + np.arange(5) for start in (0, 20) for b in rng.permutation(4)]
            )
        )
    np.testing.assert_allclose(
        null[:, 0], [np.corrcoef(p[o, 0], y[:, 0])[0, 1] for o in possible], atol=1e-5
    )


@pytest.fixture(scope="module")
def drawn():
    "Sums of three participants by block, the story of each block, regions, and two bootstraps."
    rng = np.random.default_rng(10)
    labels, owner = inference.block_labels(np.repeat([0, 1], 60), 12)
    sums = []
    for x in rng.standard_normal((3, 120, 8)):
        predicted = np.stack([x + rng.standard_normal(x.shape) for _ in range(2)])
        sums.append(inference.block_sums(predicted, x, labels))
    regions = {"a": np.arange(8) < 3, "b": np.arange(8) >= 3}
    limits = np.where(np.arange(8) == 0, np.nan, 0.8)
    again = dict(regions=[regions] * 3, ceilings=limits, stories=owner, n=200, seed=5)
    return sums, owner, regions, [inference.crossed_bootstrap(sums, **again) for _ in range(2)]


def test_bootstrap_is_the_same_for_the_same_seed(drawn):
    *_, (one, two) = drawn
    assert one == two


def test_bootstrap_honours_masks_seeds_and_ceilings(drawn):
    sums, *_, (one, _) = drawn
    r = np.stack([inference.correlation_from_sums(s.sum(1)).mean(0) for s in sums])
    raw, normalized = one["a"]["raw"], one["a"]["normalized"]
    assert np.isclose(raw["mean"], r[:, :3].mean())
    assert np.isclose(normalized["mean"], r[:, 1:3].mean() / 0.8)
    other = one["b"]["raw"]
    assert raw["n"] == 3 and other["ci_low"] < other["mean"] < other["ci_high"]


def test_bootstrap_of_one_participant_covers_stimuli(drawn):
    sums, owner, regions, _ = drawn
    alone = inference.crossed_bootstrap(sums[:1], regions=regions, stories=owner, n=200)["a"]["raw"]
    assert alone["covers"] == "stimuli" and alone["n"] == 1 and np.isfinite(alone["ci_low"])
