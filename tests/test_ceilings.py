"""Noise ceilings against other implementations and the truth, in blocks, across stories; split
scores and layer tables."""

import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from conftest import ROOT

from braintune_nb.core import DataError, ParameterError, SplitError
from braintune_nb.encode import ceiling, score


def voxels(rho=0.25, R=4, T=120, V=40, seed=0):
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((T, V))
    return rho**0.5 * signal + (1 - rho) ** 0.5 * rng.standard_normal((R, T, V)), signal


def standard(y):
    return scipy.stats.zscore(y, axis=1, ddof=1)


# ---- against others


@pytest.mark.parametrize("R, T", [(2, 20), (3, 300), (10, 100)])
@pytest.mark.parametrize("unit, level", [(1, 0), (1e-3, 5), (40, 1000)])
def test_explainable_variance_agrees_with_voxelwise_tutorials(R, T, unit, level):
    theirs = pytest.importorskip(
        "voxelwise_tutorials.utils", reason="voxelwise_tutorials is not installed"
    ).explainable_variance
    y = unit * voxels(np.linspace(0, 1, 40), R, T)[0] + level
    for bias in (True, False):
        for z in (True, False):
            np.testing.assert_allclose(
                ceiling.explainable_variance(y, bias, z), theirs(y, bias, z), atol=1e-11
            )


def test_ccmax_agrees_with_a_transcription_of_the_released_formulas():
    y = standard(voxels(0.02, 5)[0])
    N, ybar = 5, y.mean(0)
    SP = (N * np.var(ybar, axis=0, ddof=1) - 1) / (N - 1)
    with np.errstate(invalid="ignore"):
        released = np.nan_to_num(1 / np.sqrt(1 + (1 / N) * (1 / SP - 1)))
    ours = ceiling.ccmax(y)
    np.testing.assert_allclose(np.where(SP > 0, released, np.nan), ours)
    assert np.isnan(ours[SP <= 0]).all() and (SP <= 0).any()


def test_a15_trimmed_repeats_are_not_taken_for_z_scored():
    y = standard(np.cumsum(voxels()[0], 1))  # slow, so that a trim changes the variance
    with pytest.raises(DataError, match="of 40 columns"):
        ceiling.ccmax(y[:, 40:])
    assert np.isfinite(ceiling.ccmax(y[:, 40:], zscored=False)).any()
    assert np.isfinite(ceiling.ccmax(standard(y[:, 40:]))).any()


def test_the_ceiling_belongs_to_the_mean_that_is_scored():
    y, signal = voxels(0.3, 5, 400, 300)
    y[0] += 3 * np.random.default_rng(1).standard_normal(y[0].shape)  # one bad repeat
    raw, z = (
        score.correlation(signal, y.mean(0)).mean(),
        score.correlation(signal, standard(y).mean(0)).mean(),
    )
    assert z > raw + 0.1
    assert (
        abs(np.nanmean(ceiling.ccmax(y, zscored=False)) - raw) < 0.03
        and abs(np.nanmean(ceiling.ccmax(standard(y))) - z) < 0.03
    )


def test_total_power_is_taken_or_measured():
    y = scipy.stats.zscore(voxels(T=20)[0], axis=1)  # variance 20 / 19 with ddof 1
    assert (ceiling.signal_power(y)[1] == 1).all()
    np.testing.assert_allclose(ceiling.signal_power(3 * y, zscored=False)[1], 9 * 20 / 19)


def test_contradicting_repeats_have_no_ceiling():
    y = standard(np.stack([voxels()[0][0]] * 2) * np.array([1, -1])[:, None, None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for got in (
            ceiling.ccmax(y),
            ceiling.split_half_ceiling(y),
            ceiling.story_ceiling(y, "a").values,
        ):
            assert np.isnan(got).all()


def test_an_odd_number_of_repeats_is_stepped_up_by_what_is_left_out():
    y = voxels(0.3, 3, 300, 400)[0]
    assert abs(np.nanmean(ceiling.split_half_ceiling(y)) - (3 * 0.3 / (1 + 2 * 0.3)) ** 0.5) < 0.01
    np.testing.assert_allclose(
        ceiling.split_half_ceiling(y) ** 2, ceiling.spearman_brown(ceiling.split_half(y, "all"), 3)
    )


@pytest.mark.parametrize(
    "R, splits", [(2, "odd-even"), (3, "all"), (5, "odd-even"), (6, "all"), (7, 9)]
)
def test_split_half_by_covariances_is_the_correlation_of_means(R, splits):
    y = voxels(0.2, R)[0] * 7 + 100
    halves = ceiling.half_splits(R, splits, seed=3)
    expected = np.mean([score.correlation(y[a].mean(0), y[b].mean(0)) for a, b in halves], 0)
    np.testing.assert_allclose(ceiling.split_half(y, splits, seed=3), expected, atol=1e-10)
    assert all(len(set(a) | set(b)) == 2 * (R // 2) for a, b in halves)


def test_all_splits_are_all_and_distinct():
    for R, count in ((4, 3), (5, 15), (8, 35)):
        found = {frozenset(map(frozenset, half)) for half in ceiling.half_splits(R, "all").tolist()}
        assert len(found) == len(ceiling.half_splits(R, "all")) == count


def test_leave_one_participant_out_by_covariances():
    y = voxels(0.3, 6)[0]
    r, own = (
        ceiling.leave_one_participant_out(y),
        ceiling.leave_one_participant_out(y, corrected=True),
    )
    for i in range(6):
        rest = np.delete(y, i, 0)
        np.testing.assert_allclose(r[i], score.correlation(y[i], rest.mean(0)), atol=1e-12)
        np.testing.assert_allclose(
            own[i],
            r[i] / ceiling.expected_correlation(ceiling.explainable_variance(rest), 5),
            atol=1e-10,
        )
    with pytest.raises(ParameterError, match="R >= 3"):
        ceiling.leave_one_participant_out(y[:2], corrected=True)


# ---- blocks

ESTIMATES = {
    "ccmax": lambda y, b: ceiling.ccmax(y, False, b),
    "power": lambda y, b: np.stack(ceiling.signal_power(y, False, b)),
    "explainable": lambda y, b: ceiling.explainable_variance(y, block=b),
    "halves": lambda y, b: ceiling.split_half(y, "all", block=b),
    "people": lambda y, b: ceiling.leave_one_participant_out(y, True, b),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_blocks_memory_maps_and_precision_agree(name, tmp_path):
    y = voxels()[0].astype(np.float32)
    np.save(tmp_path / "y.npy", y)
    whole = ESTIMATES[name](y, None)
    for block in (1, 7, 40):
        np.testing.assert_allclose(
            ESTIMATES[name](np.load(tmp_path / "y.npy", mmap_mode="r"), block), whole, atol=1e-12
        )
    assert whole.dtype == np.float64


def test_an_open_hdf5_data_set_is_read_in_blocks(tmp_path):
    import h5py

    y = voxels()[0]
    with h5py.File(tmp_path / "y.h5", "w") as f:
        f["y"] = y
        np.testing.assert_allclose(
            ceiling.explainable_variance(f["y"], block=9), ceiling.explainable_variance(y)
        )
        np.testing.assert_allclose(
            ceiling.story_ceiling(f["y"], "a", (3, 0)).values,
            ceiling.story_ceiling(y[[3, 0]], "a").values,
        )


def test_memory_does_not_grow_with_the_columns(tmp_path):
    import tracemalloc

    y = np.lib.format.open_memmap(
        tmp_path / "y.npy", "w+", np.float32, (4, 50, 60_000)
    )  # 48 MB in float32
    y[:] = np.random.default_rng(0).standard_normal((4, 50, 1))
    for f in (
        lambda: ceiling.explainable_variance(y, block=500),
        lambda: ceiling.split_half(y, "all", block=500),
        lambda: score.correlation(y[0], y[1], 500),
    ):
        tracemalloc.start()
        f()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12e6, peak


# ---- where a ceiling is not defined


def zscored(y):
    "Over time, NaN where a column is constant."
    with np.errstate(all="ignore"):
        return (y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True, ddof=1)


def test_constant_and_missing_columns_are_nan_in_every_ceiling():
    y = voxels(0.5)[0]
    y[:, :, 0], y[1, :, 1], y[2, 5, 2] = 7.0, 7.0, np.nan
    z = zscored(y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {
            name: kind.reliability(z if name == "ccmax" else y)
            for name, kind in ceiling.CEILINGS.items()
        }
        found |= {"people": ceiling.leave_one_participant_out(y, True)}
    for name, x in found.items():
        x = np.atleast_2d(x)
        assert np.isnan(x[:, [0, 2]]).all() and not np.isinf(x).any(), name
        assert np.isfinite(x[:, 3:]).mean() > 0.9, name
    # a half survives a constant repeat
    assert np.isnan(found["explainable variance"][1])
    assert np.isfinite(found["split half, odd-even"][1])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda y: ceiling.explainable_variance(y[:1]), "R >= 2"),
        (lambda y: ceiling.split_half(y[0]), "(R, T, V)"),
        (lambda y: ceiling.ccmax(y[:, :2]), "T >= 3"),
        (lambda y: ceiling.split_half(y, "odd"), "unknown kind of splits"),
        (lambda y: ceiling.split_half(y, 0), "unknown kind of splits"),
        (lambda y: ceiling.half_splits(22, "all"), "352,716"),
        (lambda y: ceiling.story_ceiling(y, "a", (0, 4)), "distinct repeats"),
        (lambda y: ceiling.story_ceiling(y, "a", (0, 0)), "distinct repeats"),
        (lambda y: ceiling.story_ceiling(y, "a", (0,)), "R >= 2"),
    ],
)
def test_faults_are_named(call, message):
    with pytest.raises(ParameterError) as error:
        call(voxels()[0])
    assert message in str(error.value)


# ---- not the repeats that are scored


def test_a14_a_ceiling_refuses_the_repeats_that_made_it():
    y, signal = voxels(0.4, 6, 300, 100)
    limit = ceiling.story_ceiling(y, "wheretheressmoke", used=(0, 2, 4), scored=3)
    r = score.correlation(signal, y[1::2].mean(0))
    assert abs(limit.normalise(r, "wheretheressmoke", (1, 3, 5)).mean() - 1) < 0.02
    with pytest.raises(SplitError, match=r"repeats \[2\]"):
        limit.normalise(r, "wheretheressmoke", (1, 2, 5))
    with pytest.raises(ParameterError, match="another number"):
        limit.normalise(r, "life", (0,))
    np.testing.assert_array_equal(
        limit.normalise(r, "life", (0, 2, 4)), limit.normalise(r, "wheretheressmoke", (1, 3, 5))
    )  # another story has other repeats
    changed = y.copy()
    changed[1::2] = 3 - changed[1::2] ** 3
    np.testing.assert_array_equal(
        ceiling.story_ceiling(changed, "wheretheressmoke", (0, 2, 4), 3).values, limit.values
    )


@pytest.mark.parametrize("name", ceiling.CEILINGS)
def test_every_kind_finds_the_truth_and_nan_elsewhere(name):
    y = standard(voxels(0.3, 6, 300, 400, seed=2)[0])
    limit = ceiling.story_ceiling(y, "a", scored=4, name=name)
    assert (
        abs(limit.values.mean() - (4 * 0.3 / (1 + 3 * 0.3)) ** 0.5) < 0.015
        and limit.formula == ceiling.CEILINGS[name].formula
    )
    noise = ceiling.story_ceiling(standard(voxels(0, 6, 300, 400)[0]), "a", name=name).values
    assert 0.35 < np.isnan(noise).mean() < 0.65 and not (noise <= 0).any()


# ---- the table of the known truth


def test_the_tracked_table_is_what_the_script_makes():
    sys.path.insert(0, str(ROOT / "tests/bench"))
    import ceilings as bench

    tracked = pd.read_csv(ROOT / "nbs/experiments/results/ceilings.csv")
    assert tracked.groupby(["noise", "rho", "repeats", "trs", "ceiling"]).seed.nunique().eq(5).all()
    assert set(tracked.ceiling) == {
        *ceiling.CEILINGS,
        "explainable variance, other story",
        bench.PEOPLE,
    }
    assert (
        set(tracked.noise) == set(bench.NOISES)
        and set(tracked.repeats) == set(bench.REPEATS)
        and set(tracked.trs) == set(bench.TRS)
        and set(tracked.rho) == set(bench.RHOS)
    )
    made = bench.table(noises=("ar1",), rhos=(0.1,), repeats=(5,), trs=(100,), voxels=300, seeds=1)
    old = tracked.merge(made[["noise", "rho", "repeats", "trs", "ceiling", "seed"]])
    pd.testing.assert_frame_equal(old, made[old.columns], check_dtype=False, rtol=0.01, atol=1e-3)


# ---- split scores and layers


def bands(K=3, T=80, V=9, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((T, V))
    y -= y.mean(0)
    return 0.3 * y + 0.5 * rng.standard_normal((K, T, V)), y


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_split_scores_agree_with_himalaya_and_add_up(backend):
    from himalaya import scoring
    from himalaya.backend import get_backend, set_backend

    parts, y = bands()
    before = get_backend().name
    try:
        set_backend(backend)
        ours = score.r2_split(parts, y, block=4), score.correlation_split(parts, y, block=4)
        theirs = [
            get_backend().to_numpy(f(y, parts))
            for f in (scoring.r2_score_split, scoring.correlation_score_split)
        ]
    finally:
        set_backend(before)
    for a, b, whole in zip(ours, theirs, (score.r2, score.correlation)):
        np.testing.assert_allclose(a, b, atol=1e-12)
        np.testing.assert_allclose(a.sum(0), whole(parts.sum(0), y), atol=1e-12)


def test_split_scores_are_nan_where_undefined_and_take_float32():
    parts, y = bands()
    parts, y = parts.astype(np.float32), y.astype(np.float32)
    y -= y.mean(0)
    y[:, 1], parts[0, 3, 4] = 0, np.inf
    parts[:, :, 6] = [[1.0], [2.0], [3.0]]  # a constant joint prediction: himalaya says 0
    for f in (score.r2_split, score.correlation_split):
        assert np.isnan(f(parts, y)).all(0).nonzero()[0].tolist() == [1, 4, 6]
    with pytest.raises(ParameterError, match="8 columns with a mean"):
        score.r2_split(
            parts[..., :9][..., [0, 2, 3, 5, 7, 8, 0, 2]], y[:, [0, 2, 3, 5, 7, 8, 0, 2]] + 1
        )


def test_layer_table_keeps_the_same_columns_in_every_layer():
    regions = {"a": np.array([True, True, True, False]), "b": np.array([False, False, True, True])}
    r = np.array([[0.1, 0.2, 0.3, 0.4], [0.2, np.nan, 0.6, 0.8]])
    table = score.layer_table(
        r, [0.5, 0.5, 0.5, np.nan], regions, layers=["low", "high"], arm="tuned"
    )
    assert (
        list(table.n) == [2, 1, 2, 1]
        and list(table.layer) == ["low", "low", "high", "high"]
        and set(table.arm) == {"tuned"}
    )
    np.testing.assert_allclose(table.raw, [0.2, 0.3, 0.4, 0.6])
    np.testing.assert_allclose(table.normalized, [0.4, 0.6, 0.8, 1.2])  # not clipped
