"""Numbers of every form give the right value or are refused by name, at every function that takes
them; where a voxel is constant in one fold; confounds with holes."""

import warnings

import array_matrix
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from braintune_nb import arrays
from braintune_nb.align.resample import average_weights, lanczos_weights, resample
from braintune_nb.core import DataError, ParameterError
from braintune_nb.data.recordings import regress_out
from braintune_nb.encode.banded import BandedRidge
from braintune_nb.encode.inference import block_sums, correlation_from_sums
from braintune_nb.encode.ridge import RidgeCV, label_folds, make_folds

EXACT = {"tolerance": 0, "precision": "float32"}


@pytest.mark.parametrize("entry", array_matrix.ENTRIES)
def test_no_bug_in_the_matrix(entry):
    found = array_matrix.row(entry)
    assert not {k: v for k, v in found.items() if v.startswith("bug")}
    assert all(found[kind] == "refused" for kind in array_matrix.REFUSED)


# ---- the door itself


def test_a_memory_map_is_not_copied_and_a_whole_number_map_is_read_in_blocks(tmp_path):
    np.save(tmp_path / "y.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
    np.save(tmp_path / "i.npy", np.arange(12, dtype=np.int16).reshape(4, 3))
    y, i = (np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in "yi")
    assert np.shares_memory(arrays.as_array(y), y) and np.shares_memory(arrays.as_table(y), y)
    table = arrays.as_table(i)
    assert isinstance(table, arrays.Table) and table[:, 1:].tolist() == [
        [1, 2],
        [4, 5],
        [7, 8],
        [10, 11],
    ]


def test_tensors_stay_when_asked_and_keep_their_gradient():
    x = torch.arange(3.0, requires_grad=True)
    assert arrays.as_array(x, torch_stays=True) is x
    assert arrays.as_array(torch.tensor([True, False]), torch_stays=True).dtype == torch.float64
    assert arrays.as_array(torch.tensor([1.5], dtype=torch.float16)).dtype == np.float32


@pytest.mark.parametrize(
    "bad, words",
    [
        (pd.DataFrame({"when": pd.to_datetime(["2020-01-01"])}), "column 'when'"),
        (pd.DataFrame({"kind": pd.Categorical(["a"])}), "column 'kind'"),
        (np.array([None, 1.0], object), "NoneType"),
        (np.array([("a", 1)], dtype=[("x", "U1"), ("y", int)]), "records"),
        (torch.zeros(2, dtype=torch.complex64), "Complex data"),
        (torch.zeros(2, device="meta"), "without plain numbers"),
        (np.array(["1.5"]), "element type"),
        ({"a": 1}, "dict"),
    ],
)
def test_what_is_no_number_is_refused(bad, words):
    with pytest.raises(arrays.NotNumbers, match=words):
        arrays.as_array(bad, "features")


def test_labels_that_are_missing_leave_their_row_out():
    rows = [held.tolist() for _, held in label_folds(np.ma.masked_equal([0, 0, 9, 1, 1], 9))]
    assert rows == [[0, 1], [3, 4]]
    rows = [held.tolist() for _, held in label_folds(pd.Series([0, 0, None, 1, 1]))]
    assert rows == [[0, 1], [3, 4]]
    assert arrays.as_labels(np.ma.masked_equal(np.array([1, 5], "u1"), 5)).tolist() == [1, -1]


# ---- resampling


def test_counts_keep_their_numbers_when_resampled():
    rng = np.random.default_rng(0)
    times, tr = np.sort(rng.uniform(0, 120, 300)), 1 + 2.0 * np.arange(60)
    W, A = lanczos_weights(times, tr, 2.0), average_weights(times, tr, 2.0)
    for dtype in (int, np.uint8, np.float16, "i2", ">i4"):
        np.testing.assert_allclose(resample(np.ones((300, 1), dtype), W), W.sum(1)[:, None])
    full = A.sum(1) > 0
    np.testing.assert_allclose(resample(np.full((300, 1), 3), A)[full], 3)
    np.testing.assert_allclose(resample(torch.ones(300, 1, dtype=torch.int64), W)[:, 0], W.sum(1))


# ---- confounds


def test_the_first_row_of_a_derivative_may_be_missing_and_no_other():
    rng = np.random.default_rng(0)
    x, c = rng.standard_normal((50, 3)), rng.standard_normal((50, 4))
    c[0, 2:] = np.nan
    filled = np.where(np.isnan(c), c[1:].mean(0), c)
    design = np.c_[np.ones(50), filled]
    expected = x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
    np.testing.assert_allclose(regress_out(x, pd.DataFrame(c)), expected, atol=1e-12)
    np.testing.assert_allclose(regress_out(x, c[:, 0]), regress_out(x, c[:, :1]), atol=1e-12)
    c[5, 1] = np.inf
    with pytest.raises(DataError, match="column 1, row 5"):
        regress_out(x, c)


# ---- a voxel that is constant within one fold


def _dead(T=240, F=10, V=6):
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(4), T // 4)
    X = rng.standard_normal((T, F))
    Y = 0.5 * X @ rng.standard_normal((F, V)) + rng.standard_normal((T, V))
    Y[g == 2, 0] = 0.7
    return X, Y, g


def _mean_r2(X, y, g, alphas, folds):
    "Mean held-out R² of each penalty over some folds, by scikit-learn."
    out = np.zeros(len(alphas))
    for k in folds:
        for a, alpha in enumerate(alphas):
            guess = Ridge(alpha=alpha).fit(X[g != k], y[g != k]).predict(X[g == k])
            out[a] += (1 - ((y[g == k] - guess) ** 2).mean() / y[g == k].var()) / len(folds)
    return out


def test_a_fold_in_which_a_voxel_is_constant_has_no_say():
    X, Y, g = _dead()
    alphas = np.logspace(0, 4, 9)
    with pytest.warns(
        UserWarning, match=r"1 of 6 voxels are constant in a fold.*fold 2 \(columns 0"
    ):
        model = RidgeCV(alphas, **EXACT).fit(X, Y, g)
    by_hand = _mean_r2(X, Y[:, 0], g, alphas, (0, 1, 3))
    np.testing.assert_allclose(model.cv_table_[:, 0], by_hand, atol=1e-4)
    assert model.best_alphas_[0] == alphas[by_hand.argmax()]
    assert model.constant_folds_[2].tolist() == [0] and not len(model.excluded_["constant"])


@pytest.mark.parametrize("scoring", ["r2", "correlation", "signed_root_r2"])
@pytest.mark.parametrize("value", [0.0, 2.5, -3.7])
def test_no_score_explodes(scoring, value):
    X, Y, g = _dead()
    Y[g == 2, 0] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = RidgeCV(scoring=scoring).fit(X, Y, g)
        banded = BandedRidge().fit(X, Y, g)
    assert np.abs(model.cv_table_).max() < 10 and np.abs(banded.cv_scores_).max() < 10


def test_a_voxel_that_is_constant_in_every_fold_is_left_out():
    X, Y, g = _dead()
    Y[:, 0] = g
    for model in (RidgeCV(), BandedRidge()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(X, Y, g)
        assert (
            model.excluded_["constant"].tolist() == [0] and np.isnan(model.predict(X)[:, 0]).all()
        )


def test_where_a_dead_block_is_scored_it_is_left_out_of_every_arm():
    rng = np.random.default_rng(0)
    y, one, other = rng.standard_normal((3, 60, 2))
    y[20:40, 0] = 0.7
    labels, alive = np.repeat([0, 1, 2], 20), np.r_[0:20, 40:60]
    for prediction in (one, other):
        r = correlation_from_sums(block_sums(prediction, y, labels).sum(0))
        assert abs(r[0] - np.corrcoef(prediction[alive, 0], y[alive, 0])[0, 1]) < 1e-12
        assert abs(r[1] - np.corrcoef(prediction[:, 1], y[:, 1])[0, 1]) < 1e-12


# ---- offsets and sizes


@pytest.mark.parametrize("F", [15, 400])
def test_large_offsets_change_nothing_in_float64(F):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, F))
    Y = X[:, :15] @ rng.standard_normal((15, 6)) + 2 * rng.standard_normal((300, 6))
    model = RidgeCV([1.0, 10.0, 100.0], **EXACT).fit(X, Y)
    far = RidgeCV([1.0, 10.0, 100.0], **EXACT).fit(X + 1e8, Y - 1e8)
    np.testing.assert_array_equal(model.best_alphas_, far.best_alphas_)
    np.testing.assert_allclose(far.predict(X + 1e8) + 1e8, model.predict(X), atol=1e-4)
    np.testing.assert_allclose(far.score(X + 1e8, Y - 1e8), model.score(X, Y), atol=1e-6)


@pytest.mark.parametrize("F", [15, 400])
def test_a_column_of_time_stamps_is_a_trend(F):
    rng = np.random.default_rng(0)
    X = np.c_[rng.standard_normal((300, F)), 1.6e9 + 2 * np.arange(300)]
    y = X[:, :15] @ rng.standard_normal(15) + 0.05 * np.arange(300) + rng.standard_normal(300)
    guess = RidgeCV([10.0], **EXACT).fit(X, y).predict(X)
    exact = Ridge(alpha=10.0).fit(X - X.mean(0), y).predict(X - X.mean(0))
    np.testing.assert_allclose(guess, exact, atol=0.01)
    assert exact.std() > 4


def test_numbers_too_large_for_float32_are_refused_or_left_out_by_name():
    X, Y, g = _dead()
    for make in (RidgeCV, BandedRidge):
        with pytest.raises(DataError, match="too large"):
            make().fit(X if make is RidgeCV else {"a": X}, Y * 1e25, g)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = make().fit(X, np.c_[Y, Y[:, 1] * 1e25], g)
        assert model.excluded_["too_large"].tolist() == [6]
    with pytest.raises(DataError, match="features are too large"):
        RidgeCV().fit(X * 1e25, Y, g)


# ---- what cv and alphas may be


@pytest.mark.filterwarnings("ignore")
def test_a_generator_of_folds_and_a_single_penalty_work():
    X, Y, _ = _dead()
    by_list = RidgeCV(cv=list(KFold(5).split(X))).fit(X, Y)
    by_generator = RidgeCV(cv=KFold(5).split(X)).fit(X, Y)
    np.testing.assert_array_equal(by_list.cv_table_, by_generator.cv_table_)
    assert (RidgeCV(10.0).fit(X, Y).best_alphas_ == 10).all()


WRONG = [
    (lambda X, Y: RidgeCV(cv=[]).fit(X, Y), "cv holds no folds"),
    (lambda X, Y: RidgeCV([]).fit(X, Y), "alphas must be positive"),
    (lambda X, Y: RidgeCV(10.0**i for i in range(3)).fit(X, Y), "generator"),
    (lambda X, Y: RidgeCV(cv="five").fit(X, Y), "does not make folds"),
    (lambda X, Y: make_folds([([0, 1], [2, -1])], 4), "do not exist"),
    (lambda X, Y: RidgeCV().fit(X[:, :0], Y), "0 feature"),
    (lambda X, Y: RidgeCV().fit(X, Y[:, :0]), "at least one voxel"),
    (
        lambda X, Y: RidgeCV().fit(X, Y).predict(np.where(X == X[3, 0], np.nan, X)),
        "NaN or infinity",
    ),
    (lambda X, Y: BandedRidge().fit(X, Y).predict(np.array([0, 240])), "no such row"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call, words", WRONG)
def test_what_cannot_be_used_is_said(call, words):
    with pytest.raises((ParameterError, DataError), match=words):
        call(*_dead()[:2])


@pytest.mark.parametrize("centred", [False, True])
def test_the_user_s_features_are_not_changed_and_not_needed_afterwards(centred):
    X, Y, g = _dead(F=300)
    X = X.astype(np.float32)
    before, new = X.copy(), X[:5].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = RidgeCV(fit_intercept=centred).fit(X, Y, g)
    guess = model.predict(new)
    np.testing.assert_array_equal(X, before)
    X[:] = 0
    np.testing.assert_array_equal(model.predict(new), guess)
