"""RidgeCV against himalaya, scikit-learn and the papers' formulas; memory maps, tensors, planning,
bad input."""

import warnings

import bootstrap_ridge
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from braintune_nb.core import DataError, ParameterError
from braintune_nb.encode import ridge
from braintune_nb.encode.ridge import RidgeCV, block_folds, paper_ridge

EXACT = dict(tolerance=0, precision="float32")
ALPHAS = np.logspace(0, 5, 11)


def problem(T=160, F=40, V=30, seed=0):
    rng = np.random.default_rng(seed)
    X = (
        rng.standard_normal((T, F))
        * np.arange(1, F + 1) ** -0.3
        @ np.linalg.qr(rng.standard_normal((F, F)))[0]
        * 3
        + 0.5
    ).astype(np.float32)
    Y = (
        X[:, :10] @ rng.standard_normal((min(10, F), V)) * np.linspace(0, 0.5, V)
        + 4 * rng.standard_normal((T, V))
        + 2
    ).astype(np.float32)
    return X, Y, np.repeat(np.arange(4), T // 4)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*widen the grid")
        yield


def by_himalaya(X, Y, folds, intercept, scoring):
    "The fitted ridge of the other library."
    from himalaya.ridge import RidgeCV as Himalaya
    from himalaya.scoring import correlation_score, r2_score

    score = dict(r2=r2_score, correlation=correlation_score)[scoring]
    settings = dict(fit_intercept=intercept, solver_params=dict(score_func=score))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Himalaya(alphas=ALPHAS, cv=folds, **settings).fit(X, Y)


def assert_same_model(ours, same, theirs, X, Y):
    "The same weights and predictions of the columns that have the same penalty."
    a, b = ours.coef_[:, same], np.asarray(theirs.coef_)[:, same]
    np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(theirs.coef_).max())
    a, b = ours.predict(X)[:, same], np.asarray(theirs.predict(X))[:, same]
    np.testing.assert_allclose(a, b, atol=2e-3 * Y.std())


def own_scores_at_their_penalties(theirs, ours):
    "Our score of each column at the penalty that the other library chose."
    row = np.searchsorted(ALPHAS, np.asarray(theirs.best_alphas_) * 0.999)
    return ours.cv_table_[row, range(30)]


@pytest.mark.parametrize("F", [40, 150, 300])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("scoring", ["r2", "correlation"])
@pytest.mark.parametrize("gap", [0, 5])
def test_agrees_with_himalaya(F, intercept, scoring, gap):
    X, Y, _ = problem(F=F)
    folds = block_folds(len(X), 5, gap)
    ours = RidgeCV(ALPHAS, folds, scoring, intercept, **EXACT).fit(X, Y)
    theirs = by_himalaya(X, Y, folds, intercept, scoring)
    assert ours.design_.dual == (F > len(X))
    table = own_scores_at_their_penalties(theirs, ours)
    # the same score at its penalty, and where ours is another, a tie
    np.testing.assert_allclose(table, theirs.cv_scores_, atol=5e-4)
    same = np.isclose(ours.best_alphas_, theirs.best_alphas_, rtol=1e-3)
    assert same.mean() > 0.85 and (ours.cv_scores_ - table).max() < 5e-4
    assert_same_model(ours, same, theirs, X, Y)


@pytest.mark.parametrize("F", [60, 500])
def test_the_fast_road_gives_nothing_away(F):
    X, Y, _ = problem(T=400, F=F, V=400)
    slow = RidgeCV(np.logspace(0, 6, 30), 5, **EXACT).fit(X, Y)
    for precision in ("float32", "bfloat16"):
        fast = RidgeCV(np.logspace(0, 6, 30), 5, precision=precision).fit(X, Y)
        assert fast.design_.mix.shape[1] < 12
        lost = (
            slow.cv_scores_
            - slow.cv_table_[
                np.searchsorted(slow.design_.alphas, fast.best_alphas_ * 0.999), np.arange(400)
            ]
        )
        assert 0 <= lost.mean() < 1e-4 and lost.max() < 1e-3, (precision, lost.mean(), lost.max())
        same = fast.best_alphas_ == slow.best_alphas_
        assert same.mean() > 0.85
        np.testing.assert_allclose(
            fast.coef_[:, same], slow.coef_[:, same], atol=1e-5
        )  # the final fit is exact


def test_the_bootstrap_of_papers_a_and_b():
    X, Y, _ = problem(T=311, F=60)
    X, Y = (X - X.mean(0)) / X.std(0), (Y - Y.mean(0)) / Y.std(0)
    ours = paper_ridge(311, seed=3, **EXACT).fit(X, Y)
    alpha, table, weights = bootstrap_ridge.fit(
        X.astype(np.float64), Y.astype(np.float64), np.logspace(1, 4, 15), ours.design_.folds
    )
    np.testing.assert_allclose(
        ours.cv_table_, table, atol=2e-3
    )  # a root has an infinite slope at 0
    np.testing.assert_allclose(np.sqrt(ours.best_alphas_), alpha, rtol=1e-6)
    np.testing.assert_allclose(ours.coef_, weights, atol=1e-5)
    assert len({tuple(h) for _, h in ours.design_.folds}) == 3


def test_alpha_that_is_not_squared_would_be_seen():
    X, Y, _ = problem(T=311, F=60)
    right, wrong = (
        RidgeCV(
            np.logspace(1, 4, 15) ** p, ridge.chunk_folds(311), "signed_root_r2", False, **EXACT
        ).fit(X, Y)
        for p in (2, 1)
    )
    assert np.abs(right.coef_ - wrong.coef_).max() > 0.01


def test_memory_map_tensor_hdf5_and_float64_are_the_same(tmp_path):
    import h5py

    X, Y, groups = problem()
    base = RidgeCV(ALPHAS).fit(X, Y, groups)
    np.save(tmp_path / "y.npy", Y)
    with h5py.File(tmp_path / "y.h5", "w") as f:
        f["data"] = Y
        for other in (
            np.load(tmp_path / "y.npy", mmap_mode="r", allow_pickle=False),
            torch.as_tensor(Y),
            f["data"],
            Y.astype(np.float64),
            np.asfortranarray(Y),
        ):
            got = RidgeCV(ALPHAS).fit(torch.as_tensor(X), other, groups)
            np.testing.assert_array_equal(got.best_alphas_, base.best_alphas_)
            np.testing.assert_allclose(got.coef_, base.coef_, atol=1e-5)


def test_blocks_of_voxels_change_nothing(monkeypatch):
    X, Y, groups = problem()
    base = RidgeCV(ALPHAS, **EXACT).fit(X, Y, groups)
    plan = base.plan_
    monkeypatch.setattr(
        ridge, "plan_ridge", lambda *a, **k: ridge.RidgePlan(plan.parts, 7, plan.limit)
    )
    other = RidgeCV(ALPHAS, **EXACT).fit(X, Y, groups)
    assert other.plan_.block == 7
    np.testing.assert_array_equal(base.best_alphas_, other.best_alphas_)
    np.testing.assert_allclose(base.coef_, other.coef_, atol=1e-6)
    np.testing.assert_allclose(
        other.score(X, Y),
        [np.corrcoef(a, b)[0, 1] for a, b in zip(base.predict(X).T, Y.T)],
        atol=1e-4,
    )
    out = np.full(Y.shape, np.nan, np.float32)
    assert other.predict(X, out=out) is out and np.isfinite(out).all()


def test_a_design_serves_several_participants():
    X, Y, groups = problem()
    model = RidgeCV(ALPHAS)
    design = model.design(X, groups)
    for y in (Y, Y[:, ::-1] * 2 + 1, Y[:, :3]):
        a, b = clone(model).fit(design, y), RidgeCV(ALPHAS).fit(X, y, groups)
        np.testing.assert_array_equal(a.coef_, b.coef_)


def test_rows_left_out_reach_nothing():
    X, Y, groups = problem()
    gone = np.where(groups == 2, -1, groups)
    base = RidgeCV(ALPHAS).fit(X, Y, gone)
    x, y = X.copy(), Y.copy()
    x[groups == 2] = 77
    y[groups == 2] = np.nan
    other = RidgeCV(ALPHAS).fit(x, y, gone)
    np.testing.assert_array_equal(base.coef_, other.coef_)
    only = RidgeCV(ALPHAS).fit(X[groups != 2], Y[groups != 2], groups[groups != 2])
    np.testing.assert_allclose(base.coef_, only.coef_, atol=1e-6)


def test_held_out_rows_and_gaps_reach_no_fold():
    """Changing the held-out rows and the gap of a fold leaves that fold's predictions alone:
    its score changes only as the responses do."""
    X, Y, _ = problem(V=3)
    train, held = block_folds(160, 4, gap=6)[1]
    changed = Y.copy()
    between = np.setdiff1d(np.arange(160), np.union1d(train, held))
    changed[between] += 50
    a, b = (
        RidgeCV([10.0, 100.0], [(train, held)], **EXACT).fit(X, y).cv_table_ for y in (Y, changed)
    )
    np.testing.assert_allclose(a, b, atol=5e-4)


def test_follows_scikit_learn():
    X, Y, groups = problem()
    model = RidgeCV(ALPHAS, 3, "correlation")
    assert (
        str(clone(model).get_params()) == str(model.get_params()) and model.set_params(cv=4).cv == 4
    )
    pipe = make_pipeline(StandardScaler(), RidgeCV(ALPHAS, 4)).fit(X, Y)
    assert pipe.predict(X).shape == Y.shape and pipe[-1].n_features_in_ == 40
    for cv in (KFold(4), LeaveOneGroupOut(), None, 2):
        got = RidgeCV(ALPHAS, cv).fit(X, Y, groups)
        assert len(got.design_.folds) == (2 if cv == 2 else 4)
    one = RidgeCV([30.0], **EXACT).fit(X, Y, groups)
    np.testing.assert_allclose(one.predict(X), Ridge(alpha=30).fit(X, Y).predict(X), atol=1e-3)


def test_planted_weights_are_recovered_and_noise_takes_the_largest_penalty():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((600, 50)).astype(np.float32)
    truth = rng.standard_normal((50, 20))
    Y = np.hstack(
        [X @ truth + 0.5 * rng.standard_normal((600, 20)), rng.standard_normal((600, 20))]
    )
    model = RidgeCV(np.logspace(-2, 6, 17)).fit(X, Y, np.arange(600) // 120)
    assert np.corrcoef(model.coef_[:, :20].ravel(), truth.ravel())[0, 1] > 0.999
    assert np.median(model.best_alphas_[:20]) < 30 and np.median(model.best_alphas_[20:]) >= 1e3
    assert np.abs(model.score(X[:200], Y[:200])[:20]).min() > 0.95


FAULTS = [
    (lambda X, Y, g: RidgeCV([0, 1]).fit(X, Y), "must be positive"),
    (lambda X, Y, g: RidgeCV().fit(X, Y, g * 0), "at least two groups"),
    (lambda X, Y, g: RidgeCV().fit(X, Y[None], g), "share T"),
    (lambda X, Y, g: RidgeCV().fit(X, Y[:-1], g), "share T"),
    (lambda X, Y, g: RidgeCV().fit(np.where(X == X[0, 0], np.nan, X), Y, g), "not finite"),
    (lambda X, Y, g: RidgeCV().fit(X, Y * np.nan, g), "no voxel can be fitted"),
    (lambda X, Y, g: RidgeCV(cv=30).fit(X, Y), "too few rows for the folds"),
    (lambda X, Y, g: RidgeCV(cv=[(range(10), range(9, 20))]).fit(X, Y), "1 in both"),
    (lambda X, Y, g: RidgeCV(memory=1e4).fit(X, Y), "does not fit in memory"),
    (lambda X, Y, g: RidgeCV().fit(X, Y, g).predict(X[:, :3]), "do not match"),
    (lambda X, Y, g: RidgeCV().fit(X, Y, g[:-1]), "one label a TR"),
]


@pytest.mark.parametrize("call, message", FAULTS)
def test_faults_are_named(call, message):
    with pytest.raises((ParameterError, DataError), match=message):
        call(*problem(T=40, F=5, V=3))


def test_excluded_voxels_are_named_counted_and_nan():
    X, Y, groups = problem()
    Y[:, 4] = 1.5
    Y[3, 9] = np.inf
    Y[:, 11] = 0
    with pytest.warns(
        UserWarning,
        match=r"3 of 30 voxels excluded: 2 constant \(columns 4, 11\); 1 not finite \(columns 9\)",
    ):
        model = RidgeCV(ALPHAS).fit(X, Y, groups)
    bad = np.zeros(30, bool)
    bad[[4, 9, 11]] = True
    for found in (model.best_alphas_, model.cv_scores_, model.predict(X)[0], model.coef_[0]):
        np.testing.assert_array_equal(np.isnan(found), bad)
    clean = RidgeCV(ALPHAS).fit(X, Y[:, ~bad], groups)
    np.testing.assert_allclose(model.coef_[:, ~bad], clean.coef_, atol=1e-6)


def test_grid_edges_are_reported():
    X, Y, groups = problem()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        low = RidgeCV([1e4, 1e5]).fit(X, Y, groups)
    assert (
        any("take the lowest penalty, 1e+04" in str(w.message) for w in caught)
        and low.at_edge_["lowest"] > 0.9
    )


def test_memory_stays_within_the_plan():
    "Peak memory of a fit in its own process, above data and libraries, against what the plan said."
    import subprocess
    import sys

    code = """
import numpy as np, resource
from braintune_nb.encode.ridge import RidgeCV
rng = np.random.default_rng(0)
X = rng.standard_normal((1200, 600), dtype=np.float32)
Y = rng.standard_normal((1200, 6000), dtype=np.float32)
RidgeCV([1., 10.]).fit(X[:50, :5], Y[:50, :3])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
plan = RidgeCV(np.logspace(0, 6, 15), 5).fit(X, Y).plan_
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024, sum(plan.parts.values()))
"""
    used, planned = map(
        float,
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
        ).stdout.split(),
    )
    print(f"{used / 2**20:.0f} MB used, {planned / 2**20:.0f} MB planned")
    assert used < 1.3 * planned + 50e6
