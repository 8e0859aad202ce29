"""The road of real data for several people: other voxels, other stories, one split; and arms at
matched steps."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from braintune_nb.cli import main
from braintune_nb.core import ParameterError, Run
from braintune_nb.data.bilingual import write_bilingual
from braintune_nb.data.lebel2023 import write_lebel2023
from braintune_nb.data.recordings import Dataset, Space
from braintune_nb.data.splits import Split
from braintune_nb.data.surface import Mapper, load_mapper, save_mapper
from braintune_nb.experiment.plan import (
    check_participants,
    load_plan,
    plan_summary,
    plan_voxel_mask,
    require_intervals,
    scored_responses,
    simulated_plan,
)
from braintune_nb.experiment.presets import change_preset, choose_preset
from braintune_nb.experiment.runner import (
    best_epochs,
    map_scores,
    release_model,
    run_arm,
    run_encoding_arms,
)
from braintune_nb.experiment.tuning import arm_targets, tune_arm, tuning_pairs, tuning_sections
from braintune_nb.model.backbone import load_backbone
from braintune_nb.report.maps import save_maps
from braintune_nb.simulate.experiment import Size, load_simulated, simulate_experiment
from braintune_nb.train.conditions import ARMS, TUNED_ARMS

LENGTHS = {"UTS01": 40, "UTS02": 37, "UTS03": 34}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return simulate_experiment(
        tmp_path_factory.mktemp("plans") / "two",
        Size(3, 3, 1, 2, 2, 300),
        seed=5,
        languages=("en", "zh"),
    )


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny")


@pytest.fixture(scope="module")
def roles(made):
    _, truth = load_simulated(made)
    return truth.roles


def shortened(plan, n):
    "The plan with the first `n` rows of each test story."
    cut = lambda part: [replace(s, rows=s.rows[:n]) for s in part]
    folds = [(encoding, cut(test)) for encoding, test in plan.rounds[0].folds]
    return replace(plan, rounds=[replace(plan.rounds[0], folds=folds)])


def test_a_plan_that_is_too_small_for_intervals_is_refused_before_anything_is_tuned(made, tiny):
    short = shortened(simulated_plan(made), 29)  # an interval needs two stretches of 15 TRs
    with pytest.raises(ParameterError, match="116 TRs: 4 stretches in 4 stories"):
        require_intervals(short)
    no_run_yet = None
    with pytest.raises(ParameterError, match="too short for an interval"):
        run_encoding_arms(no_run_yet, short, tiny, choose_preset(tiny), [2])


def test_what_the_plan_accepts_can_be_scored(made):
    "The fewest rows that pass have an interval; one row less is refused by the scores as well."
    plan = replace(simulated_plan(made), truth=None)
    enough, short = shortened(plan, 30), shortened(plan, 29)
    require_intervals(enough)
    same = [scored_responses(enough)]
    scores = plan_summary(enough, dict(pretrained=same, tuned=same), draws=50)
    assert scores["gain"]["language"]["raw"]["mean"] == 0
    with pytest.raises(ParameterError, match="too short for an interval"):
        plan_summary(short, dict(pretrained=same, tuned=same), draws=50)


def of_people(dataset, languages, missing=()):
    """The dataset as if everybody had voxels of their own, without regions; `missing`:
    (participant, story) that was not recorded."""

    def small(name, p, by):
        space = Space(f"{name}, voxels", "voxel", np.arange(LENGTHS[name]))
        cut = lambda y: None if y is None else np.ascontiguousarray(y[..., : LENGTHS[name]])
        return {
            n: replace(
                r, participant=name, responses=cut(r.responses), repeats=cut(r.repeats), space=space
            )
            for n, r in by.items()
            if r.story.language in languages and (name, n) not in missing
        }

    recordings = {
        name: small(name, p, by) for name, (p, by) in zip(LENGTHS, dataset.recordings.items())
    }
    return Dataset(
        "people",
        {n: s for n, s in dataset.stories.items() if s.language in languages},
        recordings,
        "simulated",
    )


@pytest.fixture(scope="module")
def real(made, roles, tmp_path_factory):
    "(folder like ds003020 in which UTS02 missed a tuning story, split file)"
    top, english = tmp_path_factory.mktemp("real"), {}
    for role, names in roles.items():
        english[role] = [n for n in names if n.endswith("_en")]
    folder = write_lebel2023(
        top / "ds003020",
        of_people(load_simulated(made)[0], ("en",), {("UTS02", english["tuning"][0])}),
    )
    for sidecar in (folder / "braintune").glob("*_space.npz"):
        sidecar.unlink()  # as published: no names of columns
    Split(**english, tuning_participants=("UTS01", "UTS02"), held_out_participants=("UTS03",)).save(
        top / "split.json"
    )
    return folder, top / "split.json"


# ---- who takes part


def test_participants_that_are_named_are_those_of_the_plan(real):
    folder, split = real
    assert (
        load_plan("lebel2023", str(folder), str(split)).tuning_participants,
        load_plan("lebel2023", str(folder), str(split)).held_out_participants,
    ) == (("UTS01", "UTS02"), ("UTS03",))
    chosen = load_plan("lebel2023", str(folder), str(split), tune="UTS03, UTS01")
    assert (chosen.tuning_participants, chosen.held_out_participants) == (
        ("UTS03", "UTS01"),
        ("UTS02",),
    )
    alone = load_plan("lebel2023", str(folder), str(split), "UTS01", "UTS03")
    assert (
        alone.tuning_participants,
        alone.held_out_participants,
        sorted(alone.dataset.recordings),
    ) == (
        ("UTS01",),
        ("UTS03",),
        ["UTS01", "UTS03"],
    )  # nobody else is read
    held = load_plan("lebel2023", str(folder), str(split), new="UTS02")
    assert (held.tuning_participants, held.held_out_participants) == (("UTS01",), ("UTS02",))
    with pytest.raises(ParameterError, match="cannot tune and be held out"):
        load_plan("lebel2023", str(folder), str(split), "UTS01", "UTS01,UTS02")


def test_a_tuning_story_may_be_missing_for_one_but_not_for_all(real):
    folder, split = real
    plan = load_plan("lebel2023", str(folder), str(split))
    assert (
        sum(len(plan.dataset.recordings[p]) for p in ("UTS01", "UTS02"))
        == 2 * len(plan.dataset.stories) - 1
    )
    first = plan.rounds[0].tuning[0].story.name
    with pytest.raises(ParameterError, match="Nobody who tunes heard") as caught:
        load_plan("lebel2023", str(folder), str(split), tune="UTS02", new="UTS03")
    assert caught.value.found == first
    dataset = plan.dataset
    only = replace(
        dataset,
        recordings=dataset.recordings
        | {
            "UTS02": {
                n: r
                for n, r in dataset.recordings["UTS02"].items()
                if n not in Split.load(split).tuning
            }
        },
    )
    with pytest.raises(ParameterError, match="heard no tuning story"):
        check_participants(only, Split.load(split))


def all_predictions(run, plan, tiny, preset):
    "Of the encoding arms, and of two that are tuned."
    _, predictions, _ = run_encoding_arms(run, plan, tiny, preset, [2])
    for arm in ("tuned", "permuted"):
        predictions[arm] = [run_arm(run, plan, tiny, preset, arm, 0, [2])[0]]
    run_arm(run, plan, tiny, preset, "single_participant:UTS02", 0, [2])
    return predictions


def saved_maps(run, plan, predictions):
    "Scores by participant, written where the report finds them."
    maps = map_scores(plan, predictions)
    for name, parts in maps.items():
        save_maps(run.path(f"scores/{name}.npz"), *parts)
    return maps


def released_card(run, plan, preset, predictions, tiny):
    "The README of the release."
    release_model(run, plan, preset, plan_summary(plan, predictions), tiny)
    return (run.path("model") / "README.md").read_text()


def test_people_with_other_voxels_and_stories_tune_one_model(real, tiny, tmp_path):
    folder, split = real
    plan, preset = load_plan("lebel2023", str(folder), str(split)), choose_preset(tiny, epochs=1)
    run = Run.start(tmp_path / "run", dict(seed=0))
    predictions = all_predictions(run, plan, tiny, preset)
    maps = saved_maps(run, plan, predictions)
    maps = map_scores(plan, predictions)
    shapes = {name: parts[1]["tuned"].shape for name, parts in maps.items()}
    assert shapes == {f"maps_{p}": (1, n) for p, n in LENGTHS.items()}
    card = released_card(run, plan, preset, predictions, tiny)
    assert "Licence of the data: CC0" in card or "lebel2023" not in card
    assert all(len(plan_voxel_mask(plan, p)) == n for p, n in LENGTHS.items())


def test_recordings_of_a_simulation_have_one_map(made, tiny, tmp_path):
    plan = simulated_plan(made)
    nothing = {
        p: (
            np.random.default_rng(0).normal(
                size=(len(plan.stories), len(next(iter(plan.dataset.recordings[p].values())).space))
            )
        )
        for p in plan.participants
    }
    assert list(map_scores(plan, dict(pretrained=[nothing], tuned=[nothing]))) == ["maps"]


@pytest.mark.parametrize("modality", ["reading", "listening"])
def test_a_bilingual_folder_gives_a_plan_in_both_modalities(made, roles, tmp_path, modality):
    dataset = load_simulated(made)[0]
    write_bilingual(
        tmp_path / "gin",
        replace(
            dataset, recordings={p: by for p, by in dataset.recordings.items() if p != "sim03"}
        ),
        modality,
    )
    Split(**roles, tuning_participants=("sim01",), held_out_participants=("sim02",)).save(
        tmp_path / "split.json"
    )
    plan = load_plan(
        "bilingual", str(tmp_path / "gin"), str(tmp_path / "split.json"), modality=modality
    )
    assert {s.language for s in plan.dataset.stories.values()} == {
        "en",
        "zh",
    } and plan.dataset.stories["test01_zh"].clock.tr == pytest.approx(2.0, abs=0.01)
    other = {"reading": "listening", "listening": "reading"}[modality]
    with pytest.raises(Exception, match="There are no responses here"):
        load_plan("bilingual", str(tmp_path / "gin"), str(tmp_path / "split.json"), modality=other)


def write_mappers(folder):
    "Random mappers to 30 vertices; vertex i is not covered in person i."
    folder.mkdir()
    rng = np.random.default_rng(2)
    for i, (p, n) in enumerate(LENGTHS.items()):
        size = (30, n)
        weights = rng.uniform(size=size) * (rng.uniform(size=size) < 0.2)
        weights = sparse.csr_array(weights * (np.arange(30) != i)[:, None])
        mapper = Mapper(weights.astype(np.float32), "toy", np.arange(30))
        save_mapper(mapper, folder / f"{p}_mappers.npz")
    return folder


def on_the_surface(folder, split, mappers, out):
    "The plan of the data that the command has brought to the surface."
    with pytest.raises(SystemExit) as left:
        main(["surface", str(folder), str(out), "--mappers", str(mappers)])
    assert left.value.code in (0, None)
    return load_plan("lebel2023", str(out), str(split))


def assert_mapped(before, after, mappers):
    "Responses on the surface are the product with the weights of the mapper, uncovered left out."
    old, new = (d.recordings["UTS02"]["encode01_en"].responses for d in (before, after))
    weights = load_mapper(mappers / "UTS02_mappers.npz").weights.toarray()[3:]
    np.testing.assert_allclose(new, old @ weights.T, atol=1e-4)


def test_people_brought_to_one_surface_share_a_head(real, tiny, tmp_path):
    folder, split = real
    mappers = write_mappers(tmp_path / "mappers")
    native = load_plan("lebel2023", str(folder), str(split))
    shared = choose_preset(tiny, epochs=1, heads="shared")
    with pytest.raises(ParameterError, match="same columns"):
        tune_arm(native, 0, tiny, shared, progress=False)
    plan = on_the_surface(folder, split, mappers, tmp_path / "surface")
    sizes = {len(r.space) for by in plan.dataset.recordings.values() for r in by.values()}
    assert sizes == {27} and list(plan.region_masks["UTS01"]) == ["all"]
    assert_mapped(native.dataset, plan.dataset, mappers)
    tuner, log = tune_arm(plan, 0, tiny, shared, progress=False)
    assert len(tuner.heads) == 1 and np.isfinite(log[-1]["train_loss"])


# ---- matched steps


def test_weights_that_nothing_validated_are_the_last():
    log = lambda *r: dict(log=[dict(validation_correlation=x) for x in r])
    assert best_epochs([log(None, None, None), log(0.1, 0.3, 0.2), log(None, 0.1, None)]) == [
        3,
        2,
        2,
    ]


@pytest.mark.parametrize("change", [dict(), dict(keep="last", patience=0)])
def test_controls_take_the_steps_of_the_tuned_arm_without_validation_too(
    made, tiny, tmp_path, change
):
    plan = simulated_plan(made, regions=("language",))
    if not change:
        plan = replace(plan, rounds=[replace(r, validation=[]) for r in plan.rounds])
    preset, run = (
        change_preset(choose_preset(tiny, epochs=3), **change),
        Run.start(tmp_path / "run", dict(seed=0)),
    )
    steps = {
        arm: run_arm(run, plan, tiny, preset, arm, 0, [2])[2][0]["log"][-1]["step"]
        for arm in (
            "tuned",
            "permuted",
            "other_story",
            "word_codes",
            "stimulus_tuned",
            "head_only",
            "shared_response",
        )
    }
    assert set(steps.values()) == {3 * len(plan.rounds[0].tuning)}, steps


@pytest.mark.parametrize("participants", ["joint", "batch", "story"])
def test_arms_with_one_target_take_the_steps_of_all_participants_in_turn(made, tiny, participants):
    plan = simulated_plan(made, regions=("language",))
    preset = choose_preset(tiny, epochs=1, participants=participants)
    steps = {
        arm: tune_arm(plan, 0, tiny, preset, arm, 0, progress=False, teacher=tiny)[1][-1]["step"]
        for arm in (
            "tuned",
            "single_participant:sim01",
            "averaged_responses",
            "lm_tuned",
            "stimulus_tuned",
            "word_codes",
        )
    }
    assert set(steps.values()) == {
        len(plan.rounds[0].tuning)
        * (1 if participants == "joint" else len(plan.tuning_participants))
    }, steps


# ---- ablations are arms


def test_every_ablation_is_an_arm_with_its_setting(made, tiny):
    plan = simulated_plan(made, regions=("language",))
    preset = choose_preset(tiny, epochs=1, participants="batch")
    changed = [name for name in TUNED_ARMS if ARMS[name].overrides]
    assert {n for n in changed if ARMS[n].stops == "matched"} == {"shared_response"}
    made_by = {
        arm: tune_arm(plan, 0, tiny, preset, arm, 0, progress=False) for arm in ("tuned", *changed)
    }
    rows, people = len(plan.rounds[0].tuning), len(plan.tuning_participants)
    assert {arm: log[-1]["step"] for arm, (_, log) in made_by.items()} == dict.fromkeys(
        made_by, rows * people
    )
    assert {arm: (t.kind, t.adapter is not None) for arm, (t, _) in made_by.items()} == dict(
        tuned=("participant", False),
        shared_response=("shared", False),
        averaged_losses=("participant", False),
        separate_heads=("participant", False),
        nonlinear_head=("nonlinear", False),
        lora=("participant", True),
    )


def test_a_shared_response_is_common_to_the_people_and_fitted_where_they_tune(made):
    plan = simulated_plan(made, regions=("language",))
    sections = tuning_sections(plan, 0, choose_preset(load_backbone("tiny")))
    targets = arm_targets(plan, sections, "shared_response")
    first, second = plan.tuning_participants[:2]
    together = lambda targets, p: np.concatenate([t[p] for t in targets])
    alike = lambda targets: np.mean(
        [
            np.corrcoef(x, y)[0, 1]
            for x, y in list(zip(together(targets, first).T, together(targets, second).T))[:10]
        ]
    )
    assert (
        together(targets, first).shape == together(targets, second).shape
        and alike(targets) > alike(arm_targets(plan, sections, "tuned")) + 0.1
    )


def test_zeros_can_be_set(tiny):
    assert (
        choose_preset(tiny, "paper", patience=0).tune.patience == 5
        and choose_preset(tiny, "paper", dict(patience=0, standardise=False)).tune.patience == 0
    )
    with pytest.raises(ParameterError, match="no such setting"):
        choose_preset(tiny, "paper", dict(patient=0))


def test_a_story_that_nobody_of_an_arm_heard_is_left_out(real, tiny):
    folder, split = real
    plan = load_plan("lebel2023", str(folder), str(split))
    sections, preset = plan.rounds[0].tuning, choose_preset(tiny)
    assert len(tuning_pairs(plan, sections, tiny, preset, "single_participant:UTS02")) == len(
        sections
    ) - 1 and len(tuning_pairs(plan, sections, tiny, preset, "single_participant:UTS01")) == len(
        sections
    )
