"""Banded ridge and its designs against himalaya, with invariants and faults."""

import warnings

import numpy as np
import pytest
from ridge_problems import one_thread, problem  # noqa: F401 (a fixture works by its name)

from braintune_nb.core import DataError, ParameterError
from braintune_nb.encode import banded, score


def banded_problem(seed=3, T=120, V=24):
    rng = np.random.default_rng(seed)
    bands = {"low": rng.standard_normal((T, 6)) * 5, "model": rng.standard_normal((T, 200))}
    Y = np.hstack(
        [
            bands["low"] @ rng.standard_normal((6, V // 2)) / 12,
            bands["model"] @ rng.standard_normal((200, V // 2)) / 14,
        ]
    ) + rng.standard_normal((T, V))
    return bands, Y.astype(np.float32), np.repeat(np.arange(4), T // 4)


# ---- one band is plain ridge


@pytest.mark.filterwarnings("ignore:.*widen the grid")
@pytest.mark.parametrize("F", [40, 300])
def test_one_band_agrees_with_himalayas_ridge(F):
    from himalaya.ridge import RidgeCV
    from sklearn.model_selection import PredefinedSplit

    X, Y, groups = problem(F=F)
    alphas = np.logspace(0, 5, 11)
    ours = banded.BandedRidge(alphas).fit(
        banded.Design(X), Y, groups
    )  # a plain Design: penalties on the features as given
    assert ours.design_.dual == (F > len(X))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = RidgeCV(alphas=alphas, cv=PredefinedSplit(groups)).fit(X, Y)
    np.testing.assert_allclose(ours.best_alphas_, theirs.best_alphas_, rtol=1e-4)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(ours.cv_scores_, 1 + theirs.cv_scores_ / Y.var(0), atol=1e-4)
    assert (ours.ratios_ == 1).all()


def test_primal_dual_blocks_and_memory_map_agree(tmp_path):
    X, Y, groups = problem()
    base = banded.BandedRidge(dual=False).fit(X, Y, groups)
    np.save(tmp_path / "y.npy", Y)
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r", allow_pickle=False)
    other = banded.BandedRidge(dual=True, block=7).fit(X, mapped, groups)
    np.testing.assert_array_equal(base.best_alphas_, other.best_alphas_)
    np.testing.assert_allclose(base.predict(X), other.predict(X), atol=1e-3)
    np.testing.assert_allclose(base.coef_, other.coef_, atol=1e-3)


def test_rows_restrict_the_fit():
    bands, Y, groups = banded_problem()
    rows = np.flatnonzero(groups > 0)
    part = banded.BandedRidge().fit(banded.Design(bands, normalise=True), Y, groups, rows=rows)
    gone = np.where(groups > 0, groups, -1)
    np.testing.assert_array_equal(
        part.coef_, banded.BandedRidge().fit(banded.Design(bands, normalise=True), Y, gone).coef_
    )
    changed = Y.copy()
    changed[groups == 0] = np.nan
    np.testing.assert_array_equal(
        part.coef_,
        banded.BandedRidge().fit(banded.Design(bands, normalise=True), changed, gone).coef_,
    )


# ---- himalaya


RATIOS = [[0.01, 0.99], [0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]


def by_himalaya(kernels, Y, groups, alphas, ratios):
    "Logarithms of the weights of the kernels, and dual weights."
    from himalaya.kernel_ridge import solve_multiple_kernel_ridge_random_search
    from sklearn.model_selection import PredefinedSplit

    return solve_multiple_kernel_ridge_random_search(
        kernels,
        Y.astype(np.float64),
        n_iter=ratios,
        alphas=alphas,
        cv=PredefinedSplit(groups),
        return_weights="dual",
        progress_bar=False,
    )[:2]


@pytest.mark.parametrize("dual", [True, False])
def test_banded_ridge_agrees_with_himalaya(dual):
    bands, Y, groups = banded_problem()
    alphas = np.logspace(-2, 3, 9)
    ratios = np.array(RATIOS)
    Y = Y - Y.mean(0)
    ours = banded.BandedRidge(alphas, ratios, dual=dual).fit(bands, Y, groups)
    kernels = np.stack([(x @ x.T).double().numpy() for x in ours.design_.x]).astype(np.float64)
    deltas, dual_weights = by_himalaya(kernels, Y, groups, alphas, ratios)
    np.testing.assert_allclose(ours.ratios_ / ours.best_alphas_, np.exp(deltas), rtol=1e-3)
    theirs = sum(np.exp(d) * (k @ dual_weights) for d, k in zip(deltas, kernels))
    np.testing.assert_allclose(ours.predict(bands), theirs, atol=2e-3)


@pytest.mark.parametrize("dual", [True, False])
def test_both_solvers_agree_on_the_same_ratios(dual):
    bands, Y, groups = banded_problem()
    grid, search = (
        banded.BandedRidge(ratios=RATIOS, dual=dual, solver=s).fit(bands, Y, groups)
        for s in ("grid", "random_search")
    )
    same = np.isclose(grid.best_alphas_, search.best_alphas_, rtol=1e-3)
    same &= np.isclose(grid.ratios_, search.ratios_, atol=1e-4).all(0)
    assert same.mean() > 0.95  # ties may fall either way in float32
    np.testing.assert_allclose(grid.cv_scores_, search.cv_scores_, atol=1e-3)
    for what in (
        lambda m: m.predict(bands),
        lambda m: m.coef_,
        lambda m: m.predict(np.arange(9)),
        lambda m: m.split_scores(bands, Y)["low"],
    ):
        got, expected = what(search), what(grid)
        np.testing.assert_allclose(got[..., same], expected[..., same], atol=5e-3)


def rows_of(bands, rows):
    return {k: x[rows] for k, x in bands.items()}


@pytest.mark.parametrize("dual", [True, False])
def test_grid_and_random_search_predict_equally_well(dual):
    bands, Y, groups = banded_problem(T=240, V=60)
    now, new = rows_of(bands, slice(180)), rows_of(bands, slice(180, None))
    fit = lambda s: banded.BandedRidge(dual=dual, solver=s, n_iter=20, seed=1).fit(
        now, Y[:180], groups[:180]
    )
    grid, search = fit("grid"), fit("random_search")
    r = [m.score(new, Y[180:]).mean() for m in (grid, search)]
    cv = [m.cv_scores_.mean() for m in (grid, search)]
    print(f"dual {dual}: grid of 7 and random search of 20, held-out r {r}, R² {cv}")
    assert abs(r[0] - r[1]) < 0.01 and cv[0] > cv[1] - 0.005
    assert np.array_equal(search.coef_, fit("random_search").coef_)


def test_random_search_leaves_himalayas_backend_as_it_was():
    from himalaya.backend import get_backend, set_backend

    bands, Y, groups = banded_problem()
    set_backend("numpy")
    model = banded.BandedRidge(solver="random_search", n_iter=3).fit(bands, Y, groups)
    model.split_scores(bands, Y)
    assert get_backend().__name__ == "himalaya.backend.numpy"


# ---- parts


@pytest.mark.parametrize("solver", ["grid", "random_search"])
def test_penalties_of_bands(solver):
    bands, Y, groups = banded_problem()
    model = banded.BandedRidge(solver=solver).fit(bands, Y, groups)
    assert model.ratios_[0, :12].mean() > 0.8 and model.ratios_[1, 12:].mean() > 0.6
    np.testing.assert_allclose(model.ratios_.sum(0), 1, atol=1e-3)
    assert np.isinf(model.penalties_[model.ratios_ == 0]).all()
    assert np.isfinite(model.penalties_[model.ratios_ > 0]).all()


@pytest.mark.parametrize("solver", ["grid", "random_search"])
def test_parts_of_bands_add_up(solver):
    bands, Y, groups = banded_problem()
    model = banded.BandedRidge(solver=solver).fit(bands, Y, groups)
    predicted = model.predict(bands)
    r2 = sum(model.split_scores(bands, Y).values())
    np.testing.assert_allclose(r2, score.r2(predicted, Y), atol=2e-3)
    r = sum(model.split_scores(bands, Y, "correlation").values())
    np.testing.assert_allclose(r, score.correlation(predicted, Y), atol=2e-3)
    wide = np.hstack([x - x.mean(0) for x in bands.values()])
    np.testing.assert_allclose(wide @ model.coef_ + Y.mean(0), predicted, atol=2e-3)


def test_no_band_holds_the_mean():
    bands, Y, groups = banded_problem()
    model = banded.BandedRidge().fit(bands, Y + 7, groups)
    for part in model.predict_bands(bands).values():
        np.testing.assert_allclose(part.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(
        sum(model.predict_bands(bands).values()) + model.mean_, model.predict(bands), atol=1e-4
    )


def test_split_scores_agree_with_the_formulas():
    bands, Y, groups = banded_problem()
    model = banded.BandedRidge().fit(bands, Y, groups)
    y, parts = Y - Y.mean(0), {k: p - p.mean(0) for k, p in model.predict_bands(bands).items()}
    whole = sum(parts.values())
    for k, p in parts.items():
        np.testing.assert_allclose(
            model.split_scores(bands, Y)[k], (p * (2 * y - whole)).sum(0) / (y**2).sum(0), atol=1e-4
        )
        np.testing.assert_allclose(
            model.split_scores(bands, Y, "correlation")[k],
            (p * y).mean(0) / y.std(0) / whole.std(0),
            atol=1e-4,
        )


def test_scale_of_a_band_does_not_matter():
    bands, Y, groups = banded_problem()
    model, other = (
        banded.BandedRidge().fit(b, Y, groups)
        for b in (bands, {"low": bands["low"] * 1000, "model": bands["model"] + 5})
    )
    np.testing.assert_allclose(
        model.predict(bands),
        other.predict({"low": bands["low"] * 1000, "model": bands["model"] + 5}),
        atol=5e-3,
    )


# ---- designs and nested predictions


@pytest.mark.parametrize("dual", [True, False])
def test_moved_design_is_the_design_of_moved_features(dual):
    bands, Y, groups = banded_problem()
    order = np.roll(np.arange(120), 31)
    base = banded.Design(bands, normalise=True, keep=True, dual=dual)
    banded.nested_prediction(
        banded.BandedRidge(), base, Y, groups
    )  # fills what the moved design must not use
    moved = base.moved("model", order)
    fresh = banded.Design(bands | {"model": bands["model"][order]}, normalise=True, dual=dual)
    got = [banded.nested_prediction(banded.BandedRidge(), d, Y, groups) for d in (moved, fresh)]
    np.testing.assert_allclose(*got, atol=2e-3)


def test_kept_eigendecompositions_do_not_go_stale():
    bands, Y, groups = banded_problem()
    design = banded.Design(bands, normalise=True, keep=True)
    first = banded.nested_prediction(banded.BandedRidge(), design, Y, groups)
    banded.nested_prediction(banded.BandedRidge(), design, Y[::-1].copy(), groups)
    banded.BandedRidge(ratios=[[0.3, 0.7]]).fit(design, Y, groups // 2)
    np.testing.assert_array_equal(
        first, banded.nested_prediction(banded.BandedRidge(), design, Y, groups)
    )


def test_nothing_of_a_held_out_group_reaches_its_prediction():
    bands, Y, groups = banded_problem()
    changed = Y.copy()
    changed[groups == 2] += (
        np.random.default_rng(0).standard_normal(changed[groups == 2].shape) * 10
    )
    a, b = (banded.nested_prediction(banded.BandedRidge(), bands, y, groups) for y in (Y, changed))
    np.testing.assert_array_equal(a[groups == 2], b[groups == 2])
    assert np.abs(a - b)[groups != 2].max() > 0.1


def test_nested_prediction_of_a_plain_model():
    class Plain:
        "Least squares behind the plain interface."

        def fit(self, X, Y, groups):
            assert len(X) == len(groups) == 120
            self.w = np.linalg.lstsq(X, Y, rcond=None)[0]
            return self

        def predict(self, X):
            return X @ self.w

    X, Y, groups = problem()
    got = banded.nested_prediction(Plain(), X, Y, groups)
    for g in range(4):
        np.testing.assert_allclose(
            got[groups == g],
            X[groups == g] @ np.linalg.lstsq(X[groups != g], Y[groups != g], rcond=None)[0],
            atol=1e-4,
        )
    np.testing.assert_allclose(
        banded.nested_prediction(Plain(), banded.Design(X), Y, groups), got, atol=1e-4
    )


def test_nested_prediction_of_ridgecv_is_banded_ridge_with_one_band():
    from braintune_nb.encode.ridge import RidgeCV

    X, Y, groups = problem()
    plain = banded.nested_prediction(RidgeCV([10.0], precision="float32"), X, Y, groups)
    one = banded.nested_prediction(
        banded.BandedRidge([10.0]), banded.Design(X, keep=True), Y, groups
    )
    assert (
        score.correlation(plain, one)[1:].min() > 0.99
    )  # RidgeCV centres features on the training rows, a Design on all of its rows
    assert score.correlation(plain, Y)[-5:].min() > 0.8


def test_one_band_needs_no_ratios():
    X, Y, groups = problem()
    plain = banded.BandedRidge().fit(X, Y, groups)
    for other in (
        banded.BandedRidge(ratios=[[0.3, 0.7]]),
        banded.BandedRidge(solver="random_search"),
    ):
        assert len(other.ratio_table(1)) == 1
        np.testing.assert_allclose(other.fit(X, Y, groups).predict(X), plain.predict(X), atol=5e-3)


# ---- bad input


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = call()
    return got, [str(w.message) for w in caught]


def with_bad_columns(Y):
    "Two columns that are not finite and one that is constant."
    bad = Y.copy()
    bad[3, 5], bad[7, 11], bad[:, 2] = np.nan, np.inf, 0.1
    return bad


def all_results(model, bands, Y):
    "Everything that a fitted model says of each column."
    splits = [model.split_scores(bands, Y, m) for m in ("r2", "correlation")]
    told = [model.coef_, model.ratios_, model.cv_scores_, model.best_alphas_]
    told += [model.predict(bands), model.score(bands, Y)]
    return told + [s[k] for s in splits for k in bands]


@pytest.mark.parametrize("solver", ["grid", "random_search"])
@pytest.mark.parametrize("dual", [True, False])
def test_nan_and_constant_columns_are_named(dual, solver):
    bands, Y, groups = banded_problem()
    make = banded.BandedRidge(dual=dual, solver=solver, n_iter=5, block=10)
    model, messages = warned(lambda: make.fit(bands, with_bad_columns(Y), groups))
    (message,) = messages
    assert "3 of 24 columns" in message and "1 are constant (first: 2)" in message
    assert "2 hold values that are not finite (first: 5, 11)" in message
    np.testing.assert_array_equal(np.flatnonzero(model.left_out_), [2, 5, 11])
    assert model.excluded_["constant"].tolist() == [2]
    assert model.excluded_["not_finite"].tolist() == [5, 11]


@pytest.mark.parametrize("solver", ["grid", "random_search"])
@pytest.mark.parametrize("dual", [True, False])
def test_nan_and_constant_columns_are_left_out(dual, solver):
    bands, Y, groups = banded_problem()
    make = lambda: banded.BandedRidge(dual=dual, solver=solver, n_iter=5, block=10)
    model, _ = warned(lambda: make().fit(bands, with_bad_columns(Y), groups))
    fine, gone = make().fit(bands, Y, groups), model.left_out_
    for a, b in zip(all_results(model, bands, Y), all_results(fine, bands, Y), strict=True):
        assert np.isnan(a[..., gone]).all()
        np.testing.assert_allclose(a[..., ~gone], b[..., ~gone], atol=1e-4)
    assert np.isfinite(model.at_edge_["lowest"])


def test_split_scores_of_constant_new_responses_are_nan():
    bands, Y, groups = banded_problem()
    flat = Y.copy()
    flat[:, 4] = 3
    for measure in ("r2", "correlation"):
        assert (
            np.isnan(
                banded.BandedRidge().fit(bands, Y, groups).split_scores(bands, flat, measure)["low"]
            ).sum()
            == 1
        )


def test_an_edge_of_the_grid_is_reported_with_its_share():
    X, Y, groups = problem(T=400, F=20)
    Y = (Y * 0.2 + X[:, :1]).astype(np.float32)  # strong signal: a small penalty is best
    assert warned(lambda: banded.BandedRidge().fit(X, Y, groups))[1] == []
    _, messages = warned(lambda: banded.BandedRidge(np.logspace(2, 4, 5)).fit(X, Y, groups))
    assert (
        len(messages) == 1
        and "100% of the 30 voxels" in messages[0]
        and "lowest penalty, 100: widen the grid" in messages[0]
    )
    noise = np.random.default_rng(0).standard_normal(Y.shape)
    assert (
        warned(lambda: banded.BandedRidge().fit(X, noise, groups))[1] == []
    )  # noise belongs at the largest penalty
    assert (
        warned(lambda: banded.BandedRidge([1.0]).fit(X, Y, groups))[1] == []
    )  # one penalty is a choice, not a grid


FAULTS = [
    (lambda X, Y, g: banded.BandedRidge([0, 1]).fit(X, Y, g), "must be positive"),
    (lambda X, Y, g: banded.BandedRidge(solver="x").fit(X, Y, g), "unknown solver"),
    (lambda X, Y, g: banded.BandedRidge().fit(X, Y, g * 0), "at least two groups"),
    (lambda X, Y, g: banded.BandedRidge().fit(X, Y, np.arange(40)), "Too few rows"),
    (
        lambda X, Y, g: banded.BandedRidge().fit(X, Y, np.where(np.arange(40) < 2, 0, 1)),
        "Too few rows",
    ),
    (lambda X, Y, g: banded.BandedRidge().fit(X, Y[None], g), "share T"),
    (lambda X, Y, g: banded.BandedRidge().fit(X, Y[:9], g), "share T"),
    (lambda X, Y, g: banded.BandedRidge().fit(X, Y * np.nan, g), "no column"),
    (
        lambda X, Y, g: banded.BandedRidge().fit(np.where(X == X[0, 0], np.nan, X), Y, g),
        "not finite",
    ),
    (lambda X, Y, g: banded.Design({"a": X, "b": X[:9]}), "same T in every band"),
    (
        lambda X, Y, g: banded.BandedRidge().fit({"a": X}, Y, g).predict({"b": X}),
        "do not match",
    ),
    (
        lambda X, Y, g: banded.BandedRidge(ratios=[[1.0]]).fit({"a": X, "b": X}, Y, g),
        "summing to 1",
    ),
    (
        lambda X, Y, g: banded.BandedRidge(ratios=[[2, -1]]).fit({"a": X, "b": X}, Y, g),
        "not negative",
    ),
    (
        lambda X, Y, g: banded.BandedRidge().fit({"a": X}, Y, g).split_scores(X, Y, "covariance"),
        "unknown measure",
    ),
    (
        lambda X, Y, g: banded.BandedRidge().fit({"a": X}, Y, g).split_scores(X, Y[:9]),
        r"must both be \(T, V\)",
    ),
    (
        lambda X, Y, g: banded.nested_prediction(object(), {"a": X, "b": X}, Y, g),
        "takes one band",
    ),
]


@pytest.mark.parametrize("call, message", FAULTS)
def test_faults_are_named(call, message):
    with pytest.raises((ParameterError, DataError), match=message):
        call(*problem(T=40, F=5, V=3))
