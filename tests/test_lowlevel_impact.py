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

PARTS = ["unique_model", "shared", "unique_low"]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*widen the grid")
        yield


# ---- residual features


def test_residual_features_agree_with_a_transcription_of_the_formulas():
    rng = np.random.default_rng(0)
    low = zscore(rng.standard_normal((120, 5)))
    model = zscore(
        low @ rng.standard_normal((5, 7)) * np.linspace(0, 2, 7) + rng.standard_normal((120, 7))
    )
    penalties, loss = np.logspace(-6, 9, 16), np.zeros((16, 7))
    for held in np.array_split(np.arange(120), 10):
        rest = np.setdiff1d(np.arange(120), held)
        for i, a in enumerate(penalties):
            w = np.linalg.inv(low[rest].T @ low[rest] + a * np.eye(5)) @ low[rest].T @ model[rest]
            loss[i] += ((model[held] - low[held] @ w) ** 2).sum(0) / (
                (model[held] - model[held].mean(0)) ** 2
            ).sum(0)
    best = penalties[loss.argmin(0)]
    expected = np.stack(
        [
            model[:, j]
            - low @ np.linalg.inv(low.T @ low + best[j] * np.eye(5)) @ low.T @ model[:, j]
            for j in range(7)
        ],
        1,
    )
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
        planted["low"],
        planted["model"],
        planted["responses"],
        groups,
        regions,
        test=99,
        stories=planted["stories"],
        **settings,
    )
    return planted, {m: t.reset_index(drop=True) for m, t in table.groupby("method")}, voxels


@pytest.mark.parametrize("structure", ["contained", "correlated", "lagged"])
@pytest.mark.parametrize("rho", [0, 0.4, 0.8])
def test_planted_parts_are_recovered(structure, rho):
    if structure == "lagged" and rho == 0:
        pytest.skip("nothing is shared, so nothing can be late")
    shares = (
        [0, 0.5, 1]
        if structure == "correlated"
        else (
            [(0.75, 0, 0.25), (0, 0, 1)]
            if rho == 0
            else [(0.75, 0.25, 0), (0.25, 0.5, 0.25), (0, 0.75, 0.25)]
        )
    )
    planted, table, _ = recovered(structure, rho, shares)
    points = 100 * table["partition"][PARTS].div(table["partition"].explained, axis=0)
    print(structure, rho, points.round(1).values.tolist())
    assert (
        np.abs(points.values - 100 * planted["truth"]).max() < 7
    )  # one seed; five points are held by the mean over seeds
    assert (table["partition"].explained > 0.24).all()


def test_planted_population_values_follow_from_the_covariances():
    """The closed forms of the chapter against the linear regression of a very long, noiseless
    recording."""
    for structure, rho, shares in [
        ("contained", 0.4, [(0.5, 0.25, 0.25)]),
        ("correlated", 0.8, [0.25]),
        ("lagged", 0.8, [(0.25, 0.5, 0.25)]),
    ]:
        p = lowlevel.planted_impact(
            shares,
            rho,
            structure,
            n_stories=4,
            length=10_000,
            voxels=64,
            explained=1 - 1e-9,
            extra=(0, 0),
            seed=1,
        )
        x = {
            k: (
                np.concatenate(
                    [lowlevel.story_design(p[k][p["stories"] == s]) for s in range(4)]
                ).astype(float)
            )
            for k in ("low", "model")
        }
        y = p["responses"].astype(float)

        def explained(z):
            return 1 - ((y - z @ np.linalg.lstsq(z, y, rcond=1e-8)[0]) ** 2).sum(0).mean() / len(y)

        both, low, model = (
            explained(np.hstack([x["low"], x["model"]])),
            explained(x["low"]),
            explained(x["model"]),
        )
        np.testing.assert_allclose(
            [both - low, low + model - both, both - model], p["truth"][0], atol=0.02
        )


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
        v["unique_model"] + v["unique_low"] + v["shared"], v["r2_both"], atol=1e-6
    )
    np.testing.assert_allclose(v["split_low"] + v["split_model"], v["r2_both"], atol=5e-3)
    np.testing.assert_allclose(r["unique_model"] + r["shared"], v["r2_model"], atol=1e-6)


def test_the_ceiling_divides_r_and_its_square_divides_the_parts():
    planted = lowlevel.planted_impact([(0.5, 0.25, 0.25)], n_stories=8, voxels=6)
    guess = lowlevel.impact_predictions(
        planted["low"],
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
    for k in (*PARTS, "split_low"):
        np.testing.assert_allclose(
            normal["partition"][k], [*(4 * raw["partition"][k][:4]), np.nan, np.nan]
        )


# ---- nothing of the scored rows is used


def test_scored_responses_move_no_prediction_and_each_label_takes_its_turn():
    p = lowlevel.planted_impact([(0.5, 0.5, 0)], n_stories=6, length=80, voxels=4)
    groups, y = p["stories"] // 2, p["responses"]
    changed = y.copy()
    changed[groups == 2] = np.random.default_rng(0).standard_normal(changed[groups == 2].shape)
    call = lambda y, test: lowlevel.impact_predictions(
        p["low"], p["model"], y, groups, test, stories=p["stories"]
    )
    one, two, nested = call(y, 2), call(changed, 2), call(y, None)
    assert set(one) == {"model", "low", "both", "both_low", "both_model", "residual"}
    for k in one:
        np.testing.assert_array_equal(one[k], two[k])
        assert (
            np.isnan(one[k][groups != 2]).all()
            and np.isfinite(one[k][groups == 2]).all()
            and np.isfinite(nested[k]).all()
        )
        np.testing.assert_allclose(nested[k][groups == 2], one[k][groups == 2], atol=1e-4)


def test_the_scored_rows_of_the_features_do_not_move_the_residual_weights():
    p = lowlevel.planted_impact([(0.5, 0.5, 0)], n_stories=4, length=80, voxels=2)
    train = np.flatnonzero(p["stories"] < 3)
    other = p["model"].copy()
    other[p["stories"] == 3] *= -5
    a, b = (lowlevel.residual_features(p["low"], m, train) for m in (p["model"], other))
    np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_allclose(a[0][train], b[0][train], atol=1e-6)


def test_the_residual_encoding_is_the_road_of_the_paper():
    """Residual weights from the training stories, delays and z-scores of the residual by story,
    one ridge."""
    p = lowlevel.planted_impact([(0.5, 0.5, 0)], n_stories=6, length=80, voxels=4)
    stories, groups = p["stories"], p["stories"] // 2
    train, held = groups < 2, groups == 2
    by_story = lambda x, what: np.concatenate([what(x[stories == s]) for s in range(6)])
    low, model = (by_story(p[k], zscore) for k in ("low", "model"))
    residual = lowlevel.residual_features(low, model, np.flatnonzero(train))[0]
    x = by_story(residual, lowlevel.story_design)
    fit = lowlevel.BandedRidge().fit(x[train], p["responses"][train], groups[train])
    got = lowlevel.impact_predictions(
        p["low"], p["model"], p["responses"], groups, 2, stories, methods=("residual",)
    )
    assert set(got) == {"model", "residual"}
    np.testing.assert_allclose(got["residual"][held], fit.predict(x[held]), atol=0.02)


def test_percentages_follow_from_the_region_means():
    planted, table, voxels = recovered("contained", 0.4, [(0.5, 0.5, 0)])
    v, row = {k: x.mean() for k, x in voxels["partition"].items()}, table["partition"].iloc[0]
    np.testing.assert_allclose(
        row.percentage, 100 * (1 - np.sqrt(v["unique_model"] / v["r2_model"]))
    )
    np.testing.assert_allclose(
        [row.residual, row.percentage_variance],
        [np.sqrt(v["unique_model"]), 100 * v["shared"] / v["r2_model"]],
    )
    v, row = {k: x.mean() for k, x in voxels["residual"].items()}, table["residual"].iloc[0]
    np.testing.assert_allclose(
        [row.percentage, row.percentage_variance],
        [
            100 * (v["r_model"] - v["r_residual"]) / v["r_model"],
            100 * (v["r2_model"] - v["r2_residual"]) / v["r2_model"],
        ],
    )
    np.testing.assert_allclose(lowlevel.signed_root(np.array([-0.04, 0.25])), [-0.2, 0.5])


# ---- from a data set


def small_dataset():
    p = lowlevel.planted_impact(
        [(0.5, 0.5, 0), (0, 0, 1)], n_stories=6, length=120, voxels=3, explained=0.8
    )
    space = Space("toy", "voxel", np.arange(6), {"shared": p["kind"] == 0, "low": p["kind"] == 1})
    stories = {
        f"s{i}": Story(
            f"s{i}",
            "en",
            Events(np.arange(9.0), np.arange(9.0) + 0.5, ("w",) * 9),
            regular_clock(120, 2.0),
        )
        for i in range(6)
    }
    rng, recordings = np.random.default_rng(0), {}
    for i, s in stories.items():
        y = p["responses"][p["stories"] == int(i[1])]
        repeats = (
            np.stack([y + 0.1 * rng.standard_normal(y.shape) for _ in range(4)]).astype(np.float32)
            if i == "s5"
            else None
        )
        recordings[i] = Recording(
            "P1", s, y if repeats is None else repeats.mean(0), space, repeats
        )
    by_story = lambda k: {f"s{i}": p[k][p["stories"] == i] for i in range(6)}
    return Dataset("toy", stories, {"P1": recordings}), by_story("low"), by_story("model")


def test_story_impact_is_the_road_of_the_data_set():
    data, low, model = small_dataset()
    sections = {n: whole_story(s) for n, s in data.stories.items()}
    table, voxels = lowlevel.story_impact(
        data,
        "P1",
        low,
        model,
        [sections[f"s{i}"] for i in range(4)],
        [sections["s4"], sections["s5"]],
    )
    assert (
        list(table.roi) == ["shared", "low"] * 2
        and set(table.participant) == {"P1"}
        and voxels["partition"]["shared"].shape == (6,)
    )
    odd = {n: r for n, r in data.recordings["P1"].items()}
    y = np.concatenate(
        [
            zscore(
                odd[f"s{i}"].responses.astype(float) if i < 5 else odd["s5"].repeats[1::2].mean(0)
            ).astype(np.float32)
            for i in range(6)
        ]
    )
    stories = np.repeat(np.arange(6), 120)
    guess = lowlevel.impact_predictions(
        np.concatenate([low[f"s{i}"] for i in range(6)]),
        np.concatenate([model[f"s{i}"] for i in range(6)]),
        y,
        stories,
        [4, 5],
    )
    np.testing.assert_allclose(
        voxels["partition"]["r_both"],
        score.correlation(guess["both"][stories > 3], y[stories > 3]),
        atol=1e-5,
    )
    assert table[(table.method == "partition") & (table.roi == "low")].unique_low.item() > 0.3


def test_a_voxel_missing_in_a_scored_story_is_nan_and_not_zero():
    data, low, model = small_dataset()
    data.recordings["P1"]["s4"].responses[7, 2] = np.nan
    sections = [whole_story(s) for s in data.stories.values()]
    table, voxels = lowlevel.story_impact(data, "P1", low, model, sections[:4], sections[4:5])
    for scores in voxels.values():
        for x in scores.values():
            np.testing.assert_array_equal(np.isnan(x), np.arange(6) == 2)
    assert table.n.tolist() == [2, 3] * 2


def test_participants_together_have_the_numbers_they_have_alone():
    data, low, model = small_dataset()
    other = {
        n: replace(
            r,
            participant="P2",
            responses=-2 * r.responses[:, :4][:, ::-1] + 0.1,
            repeats=None if r.repeats is None else r.repeats[..., :4],
            space=Space("less", "voxel", np.arange(4), {"first": np.arange(4) < 2}),
        )
        for n, r in data.recordings["P1"].items()
    }
    data = replace(data, recordings=data.recordings | {"P2": other})
    sections, top = (
        [whole_story(s) for s in data.stories.values()],
        dict(P1=np.full(6, 0.9), P2=np.full(4, 0.5)),
    )
    table, voxels = lowlevel.story_impact(
        data, ["P1", "P2"], low, model, sections[:4], sections[4:], top
    )
    for p in ("P1", "P2"):
        alone, mine = lowlevel.story_impact(data, p, low, model, sections[:4], sections[4:], top[p])
        for method in mine:
            for k, x in mine[method].items():
                np.testing.assert_allclose(voxels[p][method][k], x, atol=1e-5, err_msg=f"{p} {k}")
        pd.testing.assert_frame_equal(
            table[table.participant == p].reset_index(drop=True), alone, atol=1e-3
        )


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
