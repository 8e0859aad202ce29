"""scikit-learn's own checks on the three ridge estimators, beside himalaya's RidgeCV.

The list is what `estimator_checks_generator` yields for the tags that a regressor has by default;
no check is expected to fail.
`python tests/test_estimators.py` prints the share that pass."""

import copy
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

from braintune_nb.encode.banded import BandedRidge
from braintune_nb.encode.ridge import RidgeCV
from braintune_nb.encode.subspace import SubspaceRidge

ESTIMATORS = RidgeCV, BandedRidge, SubspaceRidge
CHECKS = [pair for make in ESTIMATORS for pair in estimator_checks_generator(make())]


def _name(value):
    return getattr(getattr(value, "func", value), "__name__", type(value).__name__)


@pytest.mark.parametrize("estimator, check", CHECKS, ids=_name)
def test_scikit_learn_s_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def problem():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 8))
    return X, X @ rng.standard_normal((8, 3)) + rng.standard_normal((120, 3))


@pytest.mark.parametrize("make", ESTIMATORS)
def test_no_tag_switches_a_check_off(make):
    tags = make().__sklearn_tags__()
    assert not (tags.no_validation or tags.non_deterministic or tags.regressor_tags.poor_score)
    assert tags.target_tags.required and tags.estimator_type == "regressor"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", ESTIMATORS)
def test_names_pickles_and_fits(make):
    X, Y = problem()
    frame = pd.DataFrame(X, columns=[f"f{i}" for i in range(8)])
    model = make().fit(frame, Y)
    assert model.feature_names_in_.tolist() == frame.columns.tolist() and model.n_features_in_ == 8
    again = copy.deepcopy(model)  # scikit-learn's own checks pickle
    np.testing.assert_array_equal(again.predict(frame), model.predict(frame))
    with pytest.raises(NotFittedError):
        clone(model).predict(frame)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", ESTIMATORS)
def test_pipelines_and_searches(make):
    X, Y = problem()
    piped = make_pipeline(StandardScaler(), make()).fit(X, Y[:, 0])
    assert piped.predict(X).shape == (120,) and 0.5 < piped.score(X, Y[:, 0]) <= 1
    search = GridSearchCV(make(), {"alphas": [[1e-3], [1e6]]}, cv=3).fit(X, Y[:, 0])
    assert search.best_params_ == {"alphas": [1e-3]}
    r2 = GridSearchCV(make(), {"alphas": [[1e-3], [1e6]]}, cv=3, scoring="r2").fit(X, Y)
    assert r2.best_params_ == {"alphas": [1e-3]}
    assert cross_val_score(make(), X, Y[:, 0], cv=3).shape == (3,)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", ESTIMATORS)
def test_a_vector_is_one_voxel(make):
    X, Y = problem()
    one, many = make().fit(X, Y[:, 1]), make().fit(X, Y[:, 1:2])
    np.testing.assert_allclose(one.predict(X), many.predict(X)[:, 0], rtol=1e-12)
    assert one.coef_.shape == (8,) and many.coef_.shape == (8, 1)
    assert isinstance(one.score(X, Y[:, 1]), float)
    assert one.predict(X).dtype == np.float64
    assert make().fit(X, Y[:, 1].astype(np.float32)).predict(X).dtype == np.float32


if __name__ == "__main__":
    import himalaya.ridge

    for name, make in [(m.__name__, m) for m in ESTIMATORS] + [
        ("himalaya", himalaya.ridge.RidgeCV)
    ]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = [r["status"] for r in check_estimator(make(), on_fail=None, on_skip=None)]
        tried = [status for status in found if status != "skipped"]
        print(f"{name:14s} {tried.count('passed')} of {len(tried)} checks pass")
