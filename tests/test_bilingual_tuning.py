"""Two languages in one plan: balance, heads, quadrants, monolingual readers, linked backbones, and
one tuning for several brains."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from braintune_nb.core import DataError, ParameterError, Run, SplitError
from braintune_nb.experiment.languages import (
    in_languages,
    language_rows,
    only_regions,
    readers_apart,
    shared_tuning_rows,
    tuning_rows,
)
from braintune_nb.experiment.plan import (
    finite_columns,
    plan_summary,
    plan_voxel_mask,
    restrict_languages,
    scored_responses,
    simulated_plan,
)
from braintune_nb.experiment.presets import change_preset, choose_preset
from braintune_nb.experiment.runner import (
    SubRun,
    arm_models,
    load_any_backbone,
    release_model,
    run_arm,
    run_encoding_arms,
)
from braintune_nb.experiment.tuning import (
    arm_predictions,
    arm_targets,
    brain_targets,
    common_stories,
    plan_features,
    tune_arm,
    tuning_pairs,
    tuning_sections,
)
from braintune_nb.model.backbone import load_backbone
from braintune_nb.model.release import BrainTuner
from braintune_nb.simulate.experiment import Size, cached_simulation, simulate_experiment
from braintune_nb.simulate.text_model import link_gates, linked_backbone
from braintune_nb.train.participants import epoch_steps, participant_of, story_of


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return only_regions(
        simulated_plan(
            simulate_experiment(
                tmp_path_factory.mktemp("told") / "two",
                Size(4, 4, 1, 2, 2, 300),
                seed=3,
                languages=("en", "zh"),
            )
        ),
        ("language", "auditory"),
    )


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny")


def language_of(sections):
    return {s.story.language for s in sections}


# ---- balance


def test_an_epoch_holds_as_many_steps_and_trs_of_either_language(plan):
    sections = in_languages(plan, "en,zh").rounds[0].tuning
    trs = dict.fromkeys(("en", "zh"), 0)
    for section in sections:
        trs[section.story.language] += len(section)
    assert (
        trs["en"] == trs["zh"] == min(tuning_rows(plan).values())
        and tuning_rows(plan)["en"] != tuning_rows(plan)["zh"]
    )
    for epoch in range(3):
        steps = epoch_steps([(s.name, ("p",)) for s in sections], epoch=epoch)
        seen = [sections[i].story.language for step in steps for i, _ in step]
        assert seen.count("en") == seen.count("zh") == 4


def test_equal_trs_use_no_story_twice_and_one_language_alone_costs_the_same(plan):
    both = in_languages(plan, "en,zh", equal=True)
    stories = [s.story.identity for s in both.rounds[0].tuning]
    budget = min(tuning_rows(plan).values())
    assert len(stories) == len(set(stories)) == 4 and sum(tuning_rows(both).values()) <= budget
    assert [sum(tuning_rows(in_languages(plan, l, equal=True)).values()) for l in ("en", "zh")] == [
        budget
    ] * 2


def test_what_was_shortened_is_said(plan):
    assert (
        f"{min(tuning_rows(plan).values())} TRs in en" in in_languages(plan, "en,zh").note
        and "Tuned on en." in in_languages(plan, "en").note
    )


# ---- heads


def test_every_participant_and_language_has_a_head_that_learns(plan, tiny, tmp_path):
    preset = choose_preset(tiny, epochs=1, language_heads=True)
    both = in_languages(plan, "en,zh")
    fresh, _ = tune_arm(
        both,
        0,
        tiny,
        change_preset(preset, head_learning_rate=1e-12, learning_rate=1e-12),
        progress=False,
    )
    tuner, log = tune_arm(both, 0, tiny, preset, progress=False)
    assert sorted(tuner.outputs) == [
        "sim01:en",
        "sim01:zh",
        "sim02:en",
        "sim02:zh",
    ] and np.isfinite(log[0]["validation_correlation"])
    assert all((a.weight - b.weight).abs().max() > 1e-4 for a, b in zip(tuner.heads, fresh.heads))
    shared, _ = tune_arm(both, 0, tiny, replace(preset, language_heads=False), progress=False)
    assert sorted(shared.outputs) == ["sim01", "sim02"] and {
        participant_of(h) for h in tuner.outputs
    } == set(shared.outputs)


@pytest.fixture(scope="module", params=[("shared", 2), ("individual", 6), ("nonlinear", 2)])
def of_both_languages(plan, tiny, request):
    "Kind of heads, how many there are, the tuner after an epoch in both languages, what it reads."
    heads, n = request.param
    preset = choose_preset(tiny, epochs=1, heads=heads, language_heads=True)
    tuner, _ = tune_arm(in_languages(plan, "en,zh"), 0, tiny, preset, progress=False)
    x = torch.randn(7, tiny.width * 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = tuner.read_out(x, list(tuner.outputs))
    return heads, n, tuner, x, y


def test_a_head_is_shared_by_the_readers_of_a_language(of_both_languages):
    heads, n, tuner, _, y = of_both_languages
    groups = {f"sim0{i}:{l}": l for i in (1, 2) for l in ("en", "zh")}
    assert len(tuner.heads) == n and tuner.groups == groups
    assert not torch.allclose(y["sim01:en"], y["sim01:zh"])
    assert torch.equal(y["sim01:zh"], y["sim02:zh"]) == (heads != "individual")


def test_heads_of_languages_survive_a_release(of_both_languages, tmp_path):
    *_, tuner, x, y = of_both_languages
    tuner.save_pretrained(tmp_path / "release")
    again = BrainTuner.from_pretrained(tmp_path / "release")
    with torch.no_grad():
        read = again.read_out(x, list(again.outputs))
    assert all(torch.equal(v, y[p]) for p, v in read.items())


def test_a_section_is_predicted_by_heads_of_its_language_only(plan, tiny):
    preset = choose_preset(tiny, language_heads=True)
    both = in_languages(plan, "en,zh")
    for arm in (
        "tuned",
        "permuted",
        "averaged_responses",
        "single_participant:sim02",
        "other_story",
        "word_codes",
    ):
        for inputs, targets in tuning_pairs(both, both.rounds[0].tuning, tiny, preset, arm):
            assert {name.partition(":")[2] for name in targets} == {story_of(inputs.name)[-2:]}, arm


def test_the_release_knows_the_columns_of_every_head(plan, tiny, tmp_path):
    both = in_languages(plan, "en,zh")
    preset = choose_preset(tiny, epochs=1, language_heads=True)
    run = Run.start(tmp_path / "run", dict(seed=0))
    _, predictions, _ = run_encoding_arms(run, both, tiny, preset, [2])
    for arm in ("tuned", "permuted"):
        predictions[arm] = [run_arm(run, both, tiny, preset, arm, 0, [2])[0]]
    release_model(run, both, preset, plan_summary(both, predictions), tiny)
    tuner = BrainTuner.from_pretrained(run.path("model"))
    columns = int(plan_voxel_mask(both, "sim01").sum())
    assert (
        tuner.outputs["sim01:zh"] == columns
        and "sim01:zh" in (run.path("model") / "README.md").read_text()
    )


# ---- quadrants


def test_no_story_and_no_translation_is_on_both_sides_of_a_fold(plan):
    four = in_languages(plan, "en", encode="all")
    assert len(four.rounds[0].folds) == 2
    for encoding, test in four.rounds[0].folds:
        assert len(language_of(encoding)) == 1 and language_of(test) == {"en", "zh"}
        assert {s.story.identity for s in encoding}.isdisjoint({s.story.identity for s in test})


def test_a_translation_in_the_encoding_stories_is_refused(plan):
    r = plan.rounds[0]
    (english, test), (chinese, test_zh) = r.folds
    leaky = replace(
        plan, rounds=[replace(r, folds=[([*english, test[0]], [test[0]]), (chinese, test_zh)])]
    )
    with pytest.raises(SplitError, match="same story"):
        in_languages(leaky, "en", encode="all")


def test_each_quadrant_is_predicted_by_the_model_of_its_language(plan, tiny):
    four, within = in_languages(plan, "en", encode="all"), in_languages(plan, "en")
    features = plan_features(within, tiny, [2], choose_preset(tiny))
    a, b = (arm_predictions(p, [features])[0]["sim03"] for p in (four, within))
    same = four.quadrants[:, 0] == four.quadrants[:, 1]
    assert np.array_equal(a[same], b) and not np.allclose(a[~same][: len(b) // 2], b[: len(b) // 2])


def test_what_is_scored_within_languages_has_no_quadrants(plan):
    within = in_languages(plan, "en")
    noise = {
        p: x * 0 + np.random.default_rng(1).standard_normal(x.shape)
        for p, x in scored_responses(within).items()
    }
    own = plan_summary(within, dict(pretrained=[noise], tuned=[scored_responses(within)]))
    aligned = own["by_language"]["zh"]["alignment"]["tuned"]["language"]["raw"]["mean"]
    assert aligned == pytest.approx(1) and "by_quadrant" not in own


# ---- readers of one language


def test_the_monolingual_arm_reads_one_language_and_costs_the_same(plan, tiny):
    both, preset = in_languages(plan, "en,zh", equal=True), choose_preset(tiny)
    assert (
        arm_models(both, "monolingual") == ["monolingual:en", "monolingual:zh"]
        and arm_models(in_languages(plan, "en"), "monolingual") == []
    )
    for language in ("en", "zh"):
        sections = tuning_sections(both, 0, preset, f"monolingual:{language}")
        assert (
            language_of(sections) == {language}
            and sum(map(len, sections)) == sum(map(len, both.rounds[0].tuning))
            and len(sections) == 4
        )
        targets = arm_targets(both, sections, f"monolingual:{language}")
        assert all(
            np.array_equal(y["sim01"], brain_targets(both, s)["sim01"])
            for s, y in zip(sections, targets)
        )


def test_readers_of_one_language_tune_and_readers_of_the_other_are_scored(plan, tiny):
    apart = readers_apart(plan, "zh", "en")
    assert apart.tuning_participants == ("sim01", "sim02") and apart.participants == (
        "sim03",
        "sim04",
    )
    assert language_of(apart.rounds[0].tuning) == {"zh"} and all(
        language_of(t) == {"en"} for _, t in apart.rounds[0].folds
    )
    scored = scored_responses(apart)
    arms = {
        "pretrained": [{p: y + 0 for p, y in scored.items()}],
        "tuned": [{p: y + 1 for p, y in scored.items()}],
    }
    summary = plan_summary(apart, arms, block_length=8)
    assert list(summary["by_group"]) == ["new participants"] and {
        r["language"] for r in language_rows(apart, summary)
    } == {"en"}
    assert set(arm_targets(apart, apart.rounds[0].tuning, "word_codes")[0]) == {
        "sim01",
        "sim02",
    }  # though they are not scored


def two_arms(plan):
    "Predictions that hold 0.2 and 0.5 of the responses, with the same noise."
    rng, scored = np.random.default_rng(0), scored_responses(plan)
    noise = {p: rng.standard_normal(y.shape) for p, y in scored.items()}
    made = lambda k: {p: k * y + noise[p] for p, y in scored.items()}
    return {"pretrained": made(0.2), "tuned": made(0.5)}


def test_bilingual_newcomers_count_as_readers_of_one_language(plan, tiny):
    """English responses of a simulated bilingual know nothing of Chinese: the untuned language
    of new participants is the gain of monolingual readers."""
    apart, english = readers_apart(plan, "en", "zh"), in_languages(plan, "en")
    rows, whole, part = english.quadrants[:, 1] == "zh", {}, {}
    for arm, predicted in two_arms(english).items():
        whole[arm] = [predicted]
        part[arm] = [{p: y[rows] for p, y in predicted.items() if p in apart.participants}]
    in_chinese = plan_summary(english, whole)["by_language"]["zh"]
    one, two = in_chinese["by_group"]["new participants"], plan_summary(apart, part)
    gain, wanted = (x["gain"]["language"]["raw"]["mean"] for x in (one, two))
    assert gain == pytest.approx(wanted)


def test_readers_of_one_language_tune_on_what_bilinguals_tune_on(plan):
    apart, english = readers_apart(plan, "en", "zh"), in_languages(plan, "en")
    one, other = (arm_targets(x, x.rounds[0].tuning, "tuned") for x in (apart, english))
    assert all(np.array_equal(a["sim01"], b["sim01"]) for a, b in zip(one, other))


def test_mixed_readers_share_what_they_have_read(plan):
    mixed = replace(
        plan, dataset=restrict_languages(plan.dataset, dict(sim01=("en",), sim02=("en", "zh")))
    )
    people, sections = common_stories(mixed, mixed.rounds[0])
    assert people == ["sim01", "sim02"] and language_of(sections) == {"en"}
    assert common_stories(plan, plan.rounds[0])[1] == plan.rounds[0].tuning
    with pytest.raises(ParameterError, match="Nobody reads that"):
        restrict_languages(plan.dataset, dict(sim01=("de",)))


# ---- voxel sets


def test_a_voxel_set_tunes_and_is_scored(plan):
    chosen = {
        p: np.arange(len(plan.region_masks[p]["language"])) % 3 == 1 for p in plan.participants
    }
    own = replace(plan, voxel_mask=chosen)
    assert (
        np.array_equal(
            plan_voxel_mask(own, "sim02"), chosen["sim02"] & finite_columns(own, "sim02")
        )
        and "selected" in own.region_masks["sim04"]
    )
    with pytest.raises(ParameterError, match="everybody"):
        replace(plan, voxel_mask={p: c for p, c in chosen.items() if p != "sim03"})
    with pytest.raises(ParameterError, match="shape"):
        replace(plan, voxel_mask=chosen | dict(sim03=chosen["sim03"][1:]))


# ---- linked backbones


def link_weights(backbone):
    return backbone.model.embeddings.word_embeddings.weight.detach().clone()


def assert_links_differ(none, half, whole):
    "Weights and gates of three links: the more link, the more alike are translations."
    assert not torch.allclose(link_weights(whole), link_weights(half))
    assert not torch.allclose(link_weights(half), link_weights(none))
    gates = [link_gates(b) for b in (none, half, whole)]
    found = [g["translation_similarity"] for g in gates]
    assert found[0] < found[1] < found[2] and all(g["meaning_high"] < 0.3 for g in gates)


def test_linked_backbones_are_made_once_and_differ(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BRAINTUNE_CACHE", str(tmp_path))
    whole = linked_backbone(1.0, steps=3)
    assert "translation_similarity" in capsys.readouterr().out
    file = whole.folder / "model.safetensors"
    before = file.stat().st_mtime_ns
    again, half = linked_backbone(1.0, steps=3), linked_backbone(0.5, steps=3)
    none = linked_backbone()
    assert file.stat().st_mtime_ns == before
    assert torch.equal(link_weights(whole), link_weights(again))
    assert len(list((tmp_path / "backbones").iterdir())) == 2
    assert_links_differ(none, half, whole)
    assert none.folder == load_backbone("tiny").folder  # no link: the shipped weights
    with pytest.raises(ParameterError, match="no tiny model"):
        load_any_backbone("tiny:lin=1")


def test_sizes_may_be_six_numbers():
    with pytest.raises(ParameterError, match="six numbers"):
        cached_simulation("1,2,3")


# ---- one tuning, several brains


def backwards(recording):
    "A recording whose responses run backwards."
    repeats = None if recording.repeats is None else recording.repeats[:, ::-1]
    return replace(recording, responses=recording.responses[::-1], repeats=repeats)


def with_backward_stories(plan, language):
    "The plan with the responses to all stories of one language turned round."
    turned = lambda by: {n: backwards(r) for n, r in by.items() if n.endswith(language)}
    recordings = {p: by | turned(by) for p, by in plan.dataset.recordings.items()}
    return replace(plan, dataset=replace(plan.dataset, recordings=recordings))


@pytest.fixture(scope="module")
def english_language_areas(plan):
    return only_regions(in_languages(plan, "en"), ("language",))


def tuned_once(folder, plans, tiny, **more):
    "Rows of several brains and one tuning."
    run = SubRun(Run.start(folder, dict(seed=0)), "a")
    return shared_tuning_rows(run, plans, tiny, choose_preset(tiny, epochs=1), [2], **more)


def test_one_tuning_serves_all_brains_that_differ_in_what_is_scored_only(
    english_language_areas, tiny, tmp_path
):
    english = english_language_areas
    plans = {1.0: english, 0.0: with_backward_stories(english, "zh")}
    rows = tuned_once(tmp_path / "run", plans, tiny, link=0.5)
    gain = lambda sharing, language: [
        r["value"] for r in rows if (r["sharing"], r["language"]) == (sharing, language)
    ]
    assert gain(1.0, "en") == gain(0.0, "en") and gain(1.0, "zh") != gain(0.0, "zh")
    assert {r["link"] for r in rows} == {0.5}
    groups = {"tuning participants", "new participants"}
    assert {r["subset"] for r in rows} == {"all", "seen", "unseen"} | groups


def test_brains_that_differ_in_what_tunes_are_refused(english_language_areas, tiny, tmp_path):
    english = english_language_areas
    with pytest.raises(DataError, match="responses that tune"):
        plans = {1.0: english, 0.0: with_backward_stories(english, "en")}
        tuned_once(tmp_path / "run", plans, tiny)
