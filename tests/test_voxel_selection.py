"""Voxel sets: what chooses them never sees what it is tested on, and what chose them is never
scored."""

import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from braintune_nb.clock import regular_clock
from braintune_nb.core import DataError, ParameterError, SplitError, write_arrays
from braintune_nb.data.parcels import parcel_group
from braintune_nb.data.recordings import Dataset, Recording, Space
from braintune_nb.data.splits import whole_story
from braintune_nb.data.stories import Events, Story
from braintune_nb.encode import voxel_selection
from braintune_nb.encode.banded import BandedRidge
from braintune_nb.encode.score import correlation
from braintune_nb.encode.voxel_selection import (
    KINDS,
    VoxelSet,
    language_voxels,
    planted_selection,
    read_parcels,
    semantic_predictions,
    semantic_test,
    semantic_voxels,
    whole_brain,
)

TABLE = pd.read_csv(ROOT / "nbs/experiments/results/selection_calibration.csv")


def data(planted):
    return [planted[k] for k in ("lowlevel", "model", "responses", "groups")]


@pytest.fixture(scope="module")
def planted():
    return planted_selection(
        0.3, kinds=("nothing", "semantic"), voxels=10, n_stories=5, length=80, explained=0.3, seed=4
    )


def predicted(planted, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return semantic_predictions(*data(planted), **settings)


@pytest.mark.parametrize(
    "settings",
    [{}, dict(training="in_sample"), dict(both=True)],
    ids=["cross-fitted", "in sample", "both"],
)
def test_a_story_never_predicts_itself(planted, settings):
    "Other responses in a story leave its own prediction as it is, and change those of the others."
    changed = dict(planted, responses=planted["responses"].copy())
    rows = planted["groups"] == 2
    changed["responses"][rows] = np.random.default_rng(0).standard_normal(
        changed["responses"][rows].shape
    )
    before, after = (
        predicted(planted, folds=5, **settings)[0],
        predicted(changed, folds=5, **settings)[0],
    )
    np.testing.assert_allclose(after[rows], before[rows], atol=1e-5)
    assert all(np.abs(after - before)[planted["groups"] == g].max() > 1e-3 for g in (0, 1, 3, 4))


def test_that_test_would_see_a_leak(planted, monkeypatch):
    "With the held-out story among those that fit, its prediction follows it."
    whole = lambda self, X, Y, groups, rows=None: fit(self, X, Y, groups, None)
    fit = BandedRidge.fit
    monkeypatch.setattr(BandedRidge, "fit", whole)
    with pytest.raises(AssertionError):
        test_a_story_never_predicts_itself(planted, {})


def test_held_out_residuals_come_from_a_fit_on_other_stories(planted):
    from braintune_nb.align.delays import delay
    from braintune_nb.data.recordings import zscore
    from braintune_nb.encode.banded import Design

    low, _, y, groups = data(planted)
    design = Design(
        np.concatenate([zscore(delay(low[groups == g], (1, 2, 3, 4))) for g in range(5)]),
        normalise=True,
    )
    guess = (
        BandedRidge(ratios=np.ones((1, 1)))
        .fit(design, y, groups, rows=np.flatnonzero(groups != 2))
        .predict(np.flatnonzero(groups == 2))
    )
    np.testing.assert_allclose(
        predicted(planted, folds=5)[1][groups == 2], zscore(y[groups == 2] - guess), atol=2e-3
    )


def test_in_sample_residuals_are_smaller_and_the_selection_does_not_mind(planted):
    cross, inside = (predicted(planted, folds=5, training=t) for t in ("cross_fitted", "in_sample"))
    np.testing.assert_allclose(cross[1], inside[1], atol=1e-5)  # held-out residuals are the same
    assert np.abs(correlation(*cross) - correlation(*inside)).mean() < 0.06


def test_semantic_voxels_are_found_and_others_are_not():
    planted = planted_selection(0.6, voxels=12, seed=3)
    test = semantic_test(*data(planted), n=400, folds=3)
    kept = {k: test.significant[planted["kind"] == k].mean() for k in KINDS}
    assert kept["semantic"] > 0.8 and kept["nothing"] <= 0.2 and kept["acoustic"] <= 0.25, kept


def test_a_missing_low_level_space_lets_acoustic_voxels_in():
    planted = planted_selection(
        0.6, kinds=("acoustic",), voxels=30, hidden=4, explained=0.3, seed=3
    )
    whole = planted_selection(0.6, kinds=("acoustic",), voxels=30, explained=0.3, seed=3)
    assert (
        semantic_test(*data(planted), n=400, folds=3).r.mean()
        > 0.15
        > 0.05
        > semantic_test(*data(whole), n=400, folds=3).r.mean()
    )


def test_calibration_table_says_what_the_chapter_says():
    assert {"seed", "language"} <= set(TABLE)
    empty = TABLE[(TABLE.part == "empty") & (TABLE.kind == "any")]
    assert (empty.datasets >= 100).all() and (empty.kept <= 0.05).all()
    assert (
        TABLE[(TABLE.part == "empty") & (TABLE.kind == "nothing")]
        .uncorrected.between(0.03, 0.06)
        .all()
    )
    mixed = (
        TABLE[(TABLE.part == "mixed") & (TABLE.variant == "cross_fitted")]
        .set_index(["rho", "hidden", "kind"])
        .kept
    )
    assert (
        (mixed.loc[:, 0, "semantic"] > 0.95).all()
        and (mixed.loc[:, 0, "acoustic"] < 0.08).all()
        and mixed[0.6, 2, "acoustic"] > 0.2 > 0.1 > mixed[0.6, 2, "nothing"]
    )
    assert mixed[0.6, 0, "both"] < mixed[0.3, 0, "both"] < mixed[0, 0, "both"]  # over-correction


# ---- sets


def reader(languages=("en", "zh"), V=12, names=("a", "b", "c", "d", "e")):
    rng, stories, recordings = np.random.default_rng(1), {}, {}
    space = Space(
        "v",
        "voxel",
        np.arange(V),
        {"language": np.arange(V) < 5},
        tuple("left" if i % 2 else "right" for i in range(V)),
    )
    for language in languages:
        for name in names:
            at = 11 + 0.5 * np.arange(150)
            s = stories[f"{name}_{language}"] = Story(
                f"{name}_{language}",
                language,
                Events(at, at + 0.4, ("word",) * 150),
                regular_clock(60, 2.0, 11.0),
                identity=name,
            )
            recordings[s.name] = Recording(
                "p", s, rng.standard_normal((60, V)).astype(np.float32), space
            )
    return Dataset("toy", stories, {"p": recordings})


def test_the_same_story_in_another_language_is_refused():
    dataset = reader()
    sections = [whole_story(dataset.stories[f"{n}_en"]) for n in "abcd"]
    with pytest.raises(SplitError, match="chosen on a story that is scored"):
        semantic_voxels(dataset, sections, {}, {}, scored=[dataset.stories["d_zh"]])
    chosen = VoxelSet("semantic", {"p": dict(en=np.ones(12, bool))}, "", ("a", "b"))
    with pytest.raises(SplitError, match="b_zh"):
        chosen.check({"b_zh": whole_story(dataset.stories["b_zh"])})
    assert chosen.check([dataset.stories["c_en"]]) is chosen


def test_whole_brain_leaves_out_dead_columns_language_by_language():
    dataset = reader()
    dataset.recordings["p"]["c_zh"].responses[:, 3] = 7
    dataset.recordings["p"]["b_en"].responses[4, 9] = np.nan
    masks = whole_brain(dataset).masks["p"]
    assert np.flatnonzero(~masks["zh"]).tolist() == [3] and np.flatnonzero(
        ~masks["en"]
    ).tolist() == [9]
    assert whole_brain(dataset).columns(need="all")["p"].sum() == 10


def test_regions_and_labels_by_name_only():
    dataset = reader()
    assert language_voxels(dataset, ["language", "left"]).columns()["p"].sum() == 5 + 4
    with pytest.raises(ParameterError, match="language"):
        language_voxels(dataset, "Language")


def test_a_file_that_is_no_set(tmp_path):
    with pytest.raises(DataError, match="not a voxel set"):
        VoxelSet.load(write_arrays(tmp_path / "x.npz", weights=np.ones(3)))


def test_names_with_colons_survive(tmp_path):
    chosen = VoxelSet("s", {"sub:01": {"en": np.array([True, False])}}, "h", ("a",))
    assert VoxelSet.load(chosen.save(tmp_path / "s.npz")).masks["sub:01"]["en"].tolist() == [
        True,
        False,
    ]


def test_parcels_from_annot_and_table(tmp_path):
    import nibabel

    labels, table = np.zeros(10_242, int), np.array([[1, 2, 3, 0], [200, 20, 20, 0]])
    labels[100:180] = 1
    for side in ("lh", "rh"):
        nibabel.freesurfer.write_annot(
            str(tmp_path / f"{side}.language.annot"),
            labels,
            table,
            ["unknown", "IFG"],
            fill_ctab=True,
        )
    parcels = read_parcels((tmp_path / "lh.language.annot", tmp_path / "rh.language.annot"))
    assert parcel_group(parcels, "L_IFG").sum() == 80 and parcel_group(parcels, "IFG").sum() == 160
    pd.DataFrame(dict(parcel=["IFG", "", "PTL"], side=["L", "L", "R"])).to_csv(
        tmp_path / "t.csv", index=False
    )
    assert read_parcels(tmp_path / "t.csv").names == ("IFG", "PTL")
    with pytest.raises(DataError, match="not known"):
        read_parcels(__file__)
    with pytest.raises(DataError, match="another mesh"):
        (tmp_path / "lh.X.label").write_text("#\n1\n999999 0 0 0 1\n")
        read_parcels([tmp_path / "lh.X.label"])


def test_planted_selection_refuses_impossible_wishes():
    with pytest.raises(ParameterError, match="hidden"):
        planted_selection(hidden=5)
    assert voxel_selection.KINDS["both"] == (0.5, 0.5)
