"""Residual method and variance partition: a slow transcription, planted truth at small size, and
the tracked table."""

import importlib.util
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from braintune_nb.analyses import lowlevel
from braintune_nb.clock import regular_clock
from braintune_nb.core import DataError, ParameterError
from braintune_nb.data.recordings import Dataset, Recording, Space, zscore
from braintune_nb.data.splits import blocks, whole_story
from braintune_nb.data.stories import Events, Story
from braintune_nb.encode import score

PARTS = ["unique_model", "shared", "unique_lowlevel"]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*widen the grid")
        yield


# ---- residual features


def penalties_by_folds(low, model):
    "The penalty of each column that leaves the least error in ten folds."
    penalties, loss = np.logspace(-6, 9, 16), np.zeros((16, 7))
    for held in np.array_split(np.arange(120), 10):
        rest = np.setdiff1d(np.arange(120), held)
        for i, a in enumerate(penalties):
            w = np.linalg.inv(low[rest].T @ low[rest] + a * np.eye(5)) @ low[rest].T @ model[rest]
            loss[i] += ((model[held] - low[held] @ w) ** 2).sum(0) / (
                (model[held] - model[held].mean(0)) ** 2
            ).sum(0)
    return penalties[loss.argmin(0)]


def test_residual_features_agree_with_a_transcription_of_the_formulas():
    rng = np.random.default_rng(0)
    low = zscore(rng.standard_normal((120, 5)))
    model = zscore(
        low @ rng.standard_normal((5, 7)) * np.linspace(0, 2, 7) + rng.standard_normal((120, 7))
    )
    best = penalties_by_folds(low, model)
    residual = lambda j: (
        model[:, j] - low @ (np.linalg.inv(low.T @ low + best[j] * np.eye(5)) @ low.T @ model[:, j])
    )
    expected = np.stack([residual(j) for j in range(7)], 1)
    got, chosen = lowlevel.residual_features(low, model)
    np.testing.assert_allclose(chosen, best)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert chosen[0] > 100 * chosen[-1]  # a column that has nothing of them is left alone


# ---- known truth, small


def recovered(structure, rho, shares, seed=0, **settings):
    planted = lowlevel.planted_impact(shares, rho, structure, n_stories=24, voxels=16, seed=seed)
    groups = np.where(planted["stories"] < 14, planted["stories"] // 3, 99)
    regions = {str(i): planted["kind"] == i for i in range(len(shares))}
    table, voxels = lowlevel.lowlevel_impact(
        planted["lowlevel"],
        planted["model"],
        planted["responses"],
        groups,
        regions,
        test=99,
        stories=planted["stories"],
        **settings,
    )
    return planted, {m: t.reset_index(drop=True) for m, t in table.groupby("method")}, voxels


def planted_shares(structure, rho):
    "What the voxels of each kind hold."
    if structure == "correlated":
        return [0, 0.5, 1]
    if rho == 0:
        return [(0.75, 0, 0.25), (0, 0, 1)]
    return [(0.75, 0.25, 0), (0.25, 0.5, 0.25), (0, 0.75, 0.25)]


@pytest.mark.parametrize("structure", ["contained", "correlated", "lagged"])
@pytest.mark.parametrize("rho", [0, 0.4, 0.8])
def test_planted_parts_are_recovered(structure, rho):
    if structure == "lagged" and rho == 0:
        pytest.skip("nothing is shared, so nothing can be late")
    shares = planted_shares(structure, rho)
    planted, table, _ = recovered(structure, rho, shares)
    points = 100 * table["partition"][PARTS].div(table["partition"].explained, axis=0)
    print(structure, rho, points.round(1).values.tolist())
    assert (
        np.abs(points.values - 100 * planted["truth"]).max() < 7
    )  # one seed; five points are held by the mean over seeds
    assert (table["partition"].explained > 0.24).all()


def explained(y, z):
    "Variance explained in the long run, in the sample."
    left = y - z @ np.linalg.lstsq(z, y, rcond=1e-8)[0]
    return 1 - (left**2).sum(0).mean() / len(y)


def designs(planted, n_stories):
    "Both sets of features as the regression reads them, one story after another."
    stories = [planted["stories"] == s for s in range(n_stories)]
    one = lambda x: np.concatenate([lowlevel.story_design(x[s]) for s in stories]).astype(float)
    return one(planted["lowlevel"]), one(planted["model"])


@pytest.mark.parametrize(
    "structure, rho, shares",
    [
        ("contained", 0.4, [(0.5, 0.25, 0.25)]),
        ("correlated", 0.8, [0.25]),
        ("lagged", 0.8, [(0.25, 0.5, 0.25)]),
    ],
)
def test_planted_population_values_follow_from_the_covariances(structure, rho, shares):
    """The closed forms of the chapter against the linear regression of a very long, noiseless
    recording."""
    long = dict(n_stories=4, length=10_000, voxels=64, explained=1 - 1e-9, extra=(0, 0), seed=1)
    p = lowlevel.planted_impact(shares, rho, structure, **long)
    x, y = designs(p, 4), p["responses"].astype(float)
    both, low, model = explained(y, np.hstack(x)), explained(y, x[0]), explained(y, x[1])
    parts = [both - low, low + model - both, both - model]
    np.testing.assert_allclose(parts, p["truth"][0], atol=0.02)


def test_the_papers_percentage_is_of_correlations_and_blind_to_lags():
    _, table, _ = recovered("contained", 0.8, [(0.5, 0.5, 0)])
    assert (
        abs(table["residual"].percentage[0] - 29.3) < 5
        and abs(table["residual"].percentage_variance[0] - 50) < 7
        and abs(table["partition"].percentage_variance[0] - 50) < 7
    )
    _, late, _ = recovered("lagged", 0.8, [(0.5, 0.5, 0)])
    assert (
        late["residual"].percentage_variance[0] < 15
        and abs(late["partition"].percentage_variance[0] - 50) < 7
    )


def test_parts_add_up_voxel_by_voxel():
    planted, _, voxels = recovered("contained", 0.4, [(0.5, 0.25, 0.25)])
    v, r = voxels["partition"], voxels["residual"]
    np.testing.assert_allclose(
        v["unique_model"] + v["unique_lowlevel"] + v["shared"], v["r2_both"], atol=1e-6
    )
    np.testing.assert_allclose(v["split_lowlevel"] + v["split_model"], v["r2_both"], atol=5e-3)
    np.testing.assert_allclose(r["unique_model"] + r["shared"], v["r2_model"], atol=1e-6)


def test_the_ceiling_divides_r_and_its_square_divides_the_parts():
    planted = lowlevel.planted_impact([(0.5, 0.25, 0.25)], n_stories=8, voxels=6)
    guess = lowlevel.impact_predictions(
        planted["lowlevel"],
        planted["model"],
        planted["responses"],
        planted["stories"] // 2,
        test=3,
        stories=planted["stories"],
    )
    raw, normal = (
        lowlevel.impact_voxels(guess, planted["responses"], c)
        for c in (None, np.array([0.5, 0.5, 0.5, 0.5, np.nan, 0]))
    )
    np.testing.assert_allclose(
        normal["residual"]["r_model"][:4], 2 * raw["residual"]["r_model"][:4]
    )
    for k in (*PARTS, "split_lowlevel"):
        np.testing.assert_allclose(
            normal["partition"][k], [*(4 * raw["partition"][k][:4]), np.nan, np.nan]
        )


# ---- nothing of the scored rows is used


@pytest.fixture(scope="module")
def predicted():
    "Predictions of the third label, the same with other scored responses, and of each label."
    p = lowlevel.planted_impact([(0.5, 0.5, 0)], n_stories=6, length=80, voxels=4)
    groups, y = p["stories"] // 2, p["responses"]
    changed = y.copy()
    changed[groups == 2] = np.random.default_rng(0).standard_normal(changed[groups == 2].shape)
    call = lambda y, test: lowlevel.impact_predictions(
        p["lowlevel"], p["model"], y, groups, test, stories=p["stories"]
    )
    return groups == 2, call(y, 2), call(changed, 2), call(y, None)


def test_scored_responses_move_no_prediction(predicted):
    scored, one, two, _ = predicted
    assert set(one) == {"model", "lowlevel", "both", "both_lowlevel", "both_model", "residual"}
    for k in one:
        np.testing.assert_array_equal(one[k], two[k])
        assert np.isnan(one[k][~scored]).all() and np.isfinite(one[k][scored]).all()


def test_each_label_takes_its_turn(predicted):
    scored, one, _, nested = predicted
    for k in one:
        assert np.isfinite(nested[k]).all()
        np.testing.assert_allclose(nested[k][scored], one[k][scored], atol=1e-4)


def test_the_scored_rows_of_the_features_do_not_move_the_residual_weights():
    p = lowlevel.planted_impact([(0.5, 0.5, 0)], n_stories=4, length=80, voxels=2)
    train = np.flatnonzero(p["stories"] < 3)
    other = p["model"].copy()
    other[p["stories"] == 3] *= -5
    a, b = (lowlevel.residual_features(p["lowlevel"], m, train) for m in (p["model"], other))
    np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_allclose(a[0][train], b[0][train], atol=1e-6)


def residual_design(p, train):
    "What is left of the model's features, with the weights of the training stories, delayed."
    by_story = lambda x, what: np.concatenate([what(x[p["stories"] == s]) for s in range(6)])
    low, model = by_story(p["lowlevel"], zscore), by_story(p["model"], zscore)
    residual = lowlevel.residual_features(low, model, np.flatnonzero(train))[0]
    return by_story(residual, lowlevel.story_design)


def test_the_residual_encoding_is_the_road_of_the_paper():
    """Residual weights from the training stories, delays and z-scores of the residual by story,
    one ridge."""
    p = lowlevel.planted_impact([(0.5, 0.5, 0)], n_stories=6, length=80, voxels=4)
    groups = p["stories"] // 2
    train, held = groups < 2, groups == 2
    x = residual_design(p, train)
    fit = lowlevel.BandedRidge().fit(x[train], p["responses"][train], groups[train])
    got = lowlevel.impact_predictions(
        p["lowlevel"], p["model"], p["responses"], groups, 2, p["stories"], methods=("residual",)
    )
    assert set(got) == {"model", "residual"}
    np.testing.assert_allclose(got["residual"][held], fit.predict(x[held]), atol=0.02)


@pytest.fixture(scope="module")
def region():
    "Means over the voxels of one region by method, and its row of the table by method."
    _, table, voxels = recovered("contained", 0.4, [(0.5, 0.5, 0)])
    mean = lambda found: {k: x.mean() for k, x in found.items()}
    return {m: mean(found) for m, found in voxels.items()}, {m: t.iloc[0] for m, t in table.items()}


def test_percentages_of_the_partition_follow_from_the_region_means(region):
    v, row = region[0]["partition"], region[1]["partition"]
    percentage = 100 * (1 - np.sqrt(v["unique_model"] / v["r2_model"]))
    np.testing.assert_allclose(row.percentage, percentage)
    np.testing.assert_allclose(
        [row.residual, row.percentage_variance],
        [np.sqrt(v["unique_model"]), 100 * v["shared"] / v["r2_model"]],
    )


def test_percentages_of_the_residual_follow_from_the_region_means(region):
    v, row = region[0]["residual"], region[1]["residual"]
    np.testing.assert_allclose(
        [row.percentage, row.percentage_variance],
        [
            100 * (v["r_model"] - v["r_residual"]) / v["r_model"],
            100 * (v["r2_model"] - v["r2_residual"]) / v["r2_model"],
        ],
    )
    np.testing.assert_allclose(lowlevel.signed_root(np.array([-0.04, 0.25])), [-0.2, 0.5])


# ---- from a data set


def toy_story(name):
    "Nine words and 120 TRs."
    words = Events(np.arange(9.0), np.arange(9.0) + 0.5, ("w",) * 9)
    return Story(name, "en", words, regular_clock(120, 2.0))


def toy_recording(rng, story, y, space, repeated):
    "Responses of one participant; to the repeated story four noisy times."
    if not repeated:
        return Recording("P1", story, y, space, None)
    times = [y + 0.1 * rng.standard_normal(y.shape) for _ in range(4)]
    repeats = np.stack(times).astype(np.float32)
    return Recording("P1", story, repeats.mean(0), space, repeats)


def small_dataset():
    "A data set of one participant and six stories; low-level and model features of each story."
    p = lowlevel.planted_impact(
        [(0.5, 0.5, 0), (0, 0, 1)], n_stories=6, length=120, voxels=3, explained=0.8
    )
    space = Space(
        "toy", "voxel", np.arange(6), {"shared": p["kind"] == 0, "lowlevel": p["kind"] == 1}
    )
    stories = {f"s{i}": toy_story(f"s{i}") for i in range(6)}
    by_story = lambda k: {f"s{i}": p[k][p["stories"] == i] for i in range(6)}
    rng, y = np.random.default_rng(0), by_story("responses")
    recordings = {n: toy_recording(rng, s, y[n], space, n == "s5") for n, s in stories.items()}
    return Dataset("toy", stories, {"P1": recordings}), by_story("lowlevel"), by_story("model")


def in_order(by_story):
    "Features of the six stories, one after another."
    return np.concatenate([by_story[f"s{i}"] for i in range(6)])


def assert_one_participant_and_two_regions(table, voxels):
    assert list(table.region) == ["shared", "lowlevel"] * 2 and set(table.participant) == {"P1"}
    assert voxels["partition"]["shared"].shape == (6,)
    assert (
        table[(table.method == "partition") & (table.region == "lowlevel")].unique_lowlevel.item()
        > 0.3
    )


def scored_responses(data):
    "z-scored responses, story by story; of the repeated story the mean of every second time."
    by = data.recordings["P1"]
    y = [by[f"s{i}"].responses.astype(float) for i in range(5)] + [by["s5"].repeats[1::2].mean(0)]
    return np.concatenate([zscore(one).astype(np.float32) for one in y])


def test_story_impact_is_the_road_of_the_data_set():
    data, low, model = small_dataset()
    sections = [whole_story(data.stories[f"s{i}"]) for i in range(6)]
    table, voxels = lowlevel.story_impact(data, "P1", low, model, sections[:4], sections[4:])
    assert_one_participant_and_two_regions(table, voxels)
    y, stories = scored_responses(data), np.repeat(np.arange(6), 120)
    low, model = in_order(low), in_order(model)
    guess = lowlevel.impact_predictions(low, model, y, stories, [4, 5])
    expected = score.correlation(guess["both"][stories > 3], y[stories > 3])
    np.testing.assert_allclose(voxels["partition"]["r_both"], expected, atol=1e-5)


def test_a_voxel_missing_in_a_scored_story_is_nan_and_not_zero():
    data, low, model = small_dataset()
    data.recordings["P1"]["s4"].responses[7, 2] = np.nan
    sections = [whole_story(s) for s in data.stories.values()]
    table, voxels = lowlevel.story_impact(data, "P1", low, model, sections[:4], sections[4:5])
    for scores in voxels.values():
        for x in scores.values():
            np.testing.assert_array_equal(np.isnan(x), np.arange(6) == 2)
    assert table.n.tolist() == [2, 3] * 2


def other_participant(r):
    "Fewer voxels of the same responses, turned round, scaled and moved."
    return replace(
        r,
        participant="P2",
        responses=-2 * r.responses[:, :4][:, ::-1] + 0.1,
        repeats=None if r.repeats is None else r.repeats[..., :4],
        space=Space("less", "voxel", np.arange(4), {"first": np.arange(4) < 2}),
    )


def two_participants():
    "The data set with the other participant."
    data, low, model = small_dataset()
    other = {n: other_participant(r) for n, r in data.recordings["P1"].items()}
    return replace(data, recordings=data.recordings | {"P2": other}), low, model


def test_participants_together_have_the_numbers_they_have_alone():
    data, low, model = two_participants()
    sections = [whole_story(s) for s in data.stories.values()]
    top = dict(P1=np.full(6, 0.9), P2=np.full(4, 0.5))
    table, voxels = lowlevel.story_impact(
        data, ["P1", "P2"], low, model, sections[:4], sections[4:], top
    )
    for p in ("P1", "P2"):
        alone, mine = lowlevel.story_impact(data, p, low, model, sections[:4], sections[4:], top[p])
        for method, found in mine.items():
            for k, want in found.items():
                np.testing.assert_allclose(voxels[p][method][k], want, atol=1e-5, err_msg=k)
        own = table[table.participant == p].reset_index(drop=True)
        pd.testing.assert_frame_equal(own, alone, atol=1e-3)


def test_blocks_of_a_story_keep_their_past():
    data, low, model = small_dataset()
    halves = blocks(data.stories["s0"], 3, 8.0)
    whole = [whole_story(data.stories[f"s{i}"]) for i in (1, 2)]
    table, _ = lowlevel.story_impact(
        data, "P1", low, model, [*whole, halves[0], halves[1]], [halves[2]], cutoff=128.0
    )
    assert (
        np.isfinite(table.full).all() and (table[table.method == "partition"].explained > 0.2).all()
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda low, model: low.pop("s4"), "has no low-level features"),
        (lambda low, model: model.update(s0=model["s0"][:7]), "differ in rows"),
        (lambda low, model: low.update(s1=np.full((120, 2), np.nan)), "not finite"),
    ],
)
def test_faults_of_a_data_set_are_named(change, message):
    data, low, model = small_dataset()
    if message == "not finite":
        low = {k: v[:, :2] for k, v in low.items()}
    change(low, model)
    sections = [whole_story(s) for s in data.stories.values()]
    with pytest.raises((DataError, ParameterError), match=message):
        lowlevel.story_impact(data, "P1", low, model, sections[:4], sections[4:])


# ---- the tracked tables


def test_the_tracked_table_holds_the_bound_in_every_cell():
    table = pd.read_csv(ROOT / "nbs/experiments/results/variance_partition.csv")
    truth = table[table.study == "truth"]
    assert (
        truth.seed.nunique() >= 5
        and set(truth.rho) == {0, 0.4, 0.8}
        and set(truth.structure) == {"contained", "correlated", "lagged"}
    )
    contained = truth[(truth.structure == "contained") & (truth.rho > 0)]
    assert {0, 25, 50, 75} <= set(contained.true_unique_model) and {0, 25, 50, 75} <= set(
        contained.true_shared
    )
    error = (
        truth[PARTS]
        .sub(truth[[f"true_{p}" for p in PARTS]].values)
        .groupby([truth.structure, truth.rho, truth.kind])
        .mean()
    )
    assert (error.abs() < 5).all(axis=None), error.abs().max()


def test_the_bench_measures_what_the_table_says():
    spec = importlib.util.spec_from_file_location(
        "variance_partition", ROOT / "tests/bench/variance_partition.py"
    )
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    rows, planted, groups = bench.measure("contained", 0.4, 0, 16, fit=12, score=12)
    assert len(rows) == len(bench.kinds("contained", 0.4)) == 13
    stored = (
        pd.read_csv(ROOT / "nbs/experiments/results/variance_partition.csv")
        .query("study == 'truth' and structure == 'contained' and rho == .4")
        .groupby("kind")[PARTS]
        .mean()
    )
    np.testing.assert_allclose(pd.DataFrame(rows)[PARTS], stored, atol=8)
    assert (bench.in_sample(planted, groups) - pd.DataFrame(rows).unique_model).mean() > 1
