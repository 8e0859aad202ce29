"""Speech tasks: nothing leaks, chance is where it is said to be, intervals hold, items pair,
forgetting is seen; re-voiced stories carry their label."""

import shutil

import numpy as np
import pytest
import torch

from braintune_nb.core import DataError, MissingData, ParameterError, SplitError, write_json
from braintune_nb.data.bilingual import moth_story
from braintune_nb.data.stories import first_part
from braintune_nb.model.backbone import load_speech_backbone
from braintune_nb.simulate.language import make_lexicon
from braintune_nb.simulate.speech import LABEL, RATE, is_revoiced, revoiced
from braintune_nb.simulate.speech_model import NEW_VOICES, TRAINING_VOICES, pretraining_heads
from braintune_nb.tasks import speech as st
from braintune_nb.tasks.probe import (
    Task,
    category_folds,
    compare_arms,
    item_interval,
    item_scores,
    load_arms,
    probe,
    task_items,
    task_table,
    upper_middle,
)
from braintune_nb.tasks.speech import (
    Spoken,
    context_word_task,
    digit_task,
    head_measure,
    isolated_words,
    new_sentences,
    phone_task,
    spoken_category_task,
    spoken_sentences,
    word_task,
)

LEXICON = make_lexicon(0)


@pytest.fixture(scope="module")
def tiny():
    return load_speech_backbone("tiny_speech")


@pytest.fixture(scope="module")
def alone():
    return {
        language: isolated_words(LEXICON, language, (TRAINING_VOICES[0], NEW_VOICES[0]))
        for language in ("en", "zh")
    }


@pytest.fixture(scope="module")
def sentences():
    return {language: spoken_sentences(LEXICON, language, 60, 30) for language in ("en", "zh")}


def score(right, task):
    table = item_scores(right, task)
    return float((table.score * table.weight).sum())


# ---- nothing leaks ----


@pytest.mark.parametrize("language", ["en", "zh"])
def test_category_folds_keep_shared_pieces_together(language):
    """No test noun shares a character (English: four letters) with a training noun of its
    category; every noun has one fold."""
    fold, n = category_folds(LEXICON, language), 1 if language == "zh" else 4
    assert ((fold >= 0) == (LEXICON.word_class == "noun")).all() and set(fold) == {-1, 0, 1, 2, 3}
    cut = lambda word: {word[i : i + n] for i in range(len(word) - n + 1)}
    pieces = [cut(w) for w in LEXICON.words[language]]
    for i in np.flatnonzero(fold >= 0):
        for j in np.flatnonzero((LEXICON.category == LEXICON.category[i]) & (fold != fold[i])):
            assert not pieces[i] & pieces[j], (
                LEXICON.words[language][i],
                LEXICON.words[language][j],
            )


def four_tasks(language, alone, sentences):
    "Categories, words, words in context and phones."
    return [
        spoken_category_task(LEXICON, language, alone[language]),
        word_task(LEXICON, language, alone[language]),
        context_word_task(LEXICON, language, sentences[language]),
        phone_task(language, sentences[language]),
    ]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_splits_share_neither_voice_nor_concept_nor_text(alone, sentences, language):
    tasks = four_tasks(language, alone, sentences)
    for task in tasks:
        voice = task.spans.about["voice"]
        for train, tests in task.folds:
            for part, rows in tests.items():
                assert not set(voice[train]) & set(voice[rows])
                assert set(voice[rows]) <= set(NEW_VOICES)
                assert set(voice[train]) <= set(TRAINING_VOICES)
                if part in ("_heard", "_unheard"):
                    assert not set(task.items[train]) & set(task.items[rows])
                if "text" in task.spans.about:
                    text = task.spans.about["text"]
                    assert not set(text[train]) & set(text[rows])


def test_labels_do_not_depend_on_order_or_run(sentences):
    """Labels are sorted and made once: the same in a second build, and the number of a label
    means the same phone in both halves (A-19)."""
    task, again = (
        phone_task("en", sentences["en"]),
        phone_task("en", spoken_sentences(LEXICON, "en", 60, 30)),
    )
    assert (
        task.names == again.names == tuple(sorted(task.names))
        and (task.labels == again.labels).all()
    )
    ((train, tests),) = task.folds
    for rows in (train, tests[""]):
        assert all(
            task.names[l] == p for l, p in zip(task.labels[rows], task.spans.about["phone"][rows])
        )


def test_other_seeds_are_other_sentences():
    a, b = (new_sentences(LEXICON, "zh", 40, False, seed)[0] for seed in (0, 1))
    assert len({" ".join(w) for w in a}) == 40 and a != b
    assert not {" ".join(w) for w in a} & {
        " ".join(w) for w in new_sentences(LEXICON, "zh", 40, True, 0)[0]
    }


def test_spans_lie_on_their_words(alone):
    "The loud part of an isolated word is inside its span."
    spoken = alone["zh"]
    for k in range(0, len(spoken), 37):
        s = spoken.sounds[spoken.utterance[k]] ** 2
        a, b = int(spoken.start[k] * RATE), int(spoken.stop[k] * RATE)
        assert s[a:b].sum() > 0.95 * s.sum() and len(s) % int(st.STEP * RATE) == 0


# ---- chance, intervals, scale ----


def known_null(alone, task, rng):
    "States that know the concept and nothing about its category."
    return rng.standard_normal((288, 16))[task.spans.about["concept"]] + 0.3 * rng.standard_normal(
        (len(task.labels), 16)
    )


def test_chance_is_where_it_is_said_to_be(alone):
    task, rng = spoken_category_task(LEXICON, "zh", alone["zh"]), np.random.default_rng(1)
    got = {part: [] for part in ("_heard", "_unheard", "_known")}
    for _ in range(8):
        for part, right in probe(known_null(alone, task, rng), task).items():
            got[part].append(score(right, task))
    for part in ("_heard", "_unheard"):
        assert abs(np.mean(got[part]) - 1 / 14) < 3 * np.std(got[part]) / 8**0.5 + 0.01, (
            part,
            np.mean(got[part]),
        )
    assert np.mean(got["_known"]) > 0.2  # the same states, concepts that the probe was told about


def test_meaning_in_the_states_is_found(alone):
    task, rng = spoken_category_task(LEXICON, "en", alone["en"]), np.random.default_rng(2)
    planted = (
        known_null(alone, task, rng)
        + 3 * rng.standard_normal((22, 16))[LEXICON.category[task.spans.about["concept"]]]
    )
    right = probe(planted, task)
    for part in right:
        assert score(right[part], task) > 0.8, part


def test_the_scale_of_features_does_not_matter(alone):
    "Tuning may rescale a model; the score must not notice."
    with pytest.raises(SplitError, match="no folds for the penalty"):
        probe(np.zeros((576, 2)), word_task(LEXICON, "en", alone["en"]))  # one training voice
    task, rng = (
        word_task(
            LEXICON, "en", isolated_words(LEXICON, "en", (*TRAINING_VOICES[:2], NEW_VOICES[0]))
        ),
        np.random.default_rng(3),
    )
    x = known_null(alone, task, rng)
    a, b = (probe(y, task)[""] for y in (x, x * 10.0 ** rng.uniform(-4, 4, 16) + 5))
    tested = np.isfinite(a)
    assert (
        tested.sum() == 288
        and (np.isfinite(b) == tested).all()
        and np.mean(a[tested] == b[tested]) > 0.99
    )


def test_balanced_weights():
    "Accuracy of a class with one item weighs as much as that of a class with nine."
    labels = np.array([0] * 9 + [1])
    task = Task(
        "t",
        "en",
        Spoken((), np.arange(10), np.zeros(10), np.zeros(10)),
        labels,
        ("a", "b"),
        np.arange(10),
        "items",
        np.arange(10),
        (),
        {},
    )
    assert score(np.r_[np.ones(9), 0], task) == pytest.approx(0.5) and score(
        np.r_[np.zeros(9), 1], task
    ) == pytest.approx(0.5)


@pytest.mark.parametrize("n, p", [(44, 0.5), (56, 0.2), (168, 0.07)])
def test_the_interval_over_items_covers(n, p):
    rng, inside = np.random.default_rng(4), 0
    for i in range(200):
        x = rng.binomial(2, p, n) / 2
        _, low, high = item_interval(x, np.ones(n), draws=400, seed=i)
        inside += low <= p <= high
    assert 0.89 <= inside / 200 <= 0.99


def test_no_choice_on_the_test_rows(monkeypatch):
    """The search sees training rows only, in folds that keep groups together: here each concept
    is said by two training voices."""
    from sklearn.model_selection import GridSearchCV

    task, seen = (
        spoken_category_task(
            LEXICON, "en", isolated_words(LEXICON, "en", (*TRAINING_VOICES[:2], NEW_VOICES[0]))
        ),
        [],
    )
    fit = GridSearchCV.fit

    def watch(self, x, y, groups=None, **more):
        for a, b in self.cv.split(x, y, groups):
            assert not set(groups[a]) & set(groups[b])
        seen.append(len(x))
        return fit(self, x, y, groups=groups, **more)

    monkeypatch.setattr(GridSearchCV, "fit", watch)
    probe(np.random.default_rng(5).standard_normal((len(task.labels), 4)), task)
    assert seen == [len(train) for train, _ in task.folds]


# ---- arms ----


@pytest.fixture(scope="module")
def three_models(sentences):
    "One task, models of two arms, the second with two seeds, and the score of every item."
    task = context_word_task(LEXICON, "en", sentences["en"])
    arms = load_arms(dict(pretrained="tiny_speech", random=["random:tiny_speech"] * 2))
    return task, arms, task_items(arms, [task], "all", progress=False)


def test_the_band_is_the_mean_of_its_layers(tiny, three_models):
    items = three_models[2]
    layers = {"band", *(str(l) for l in range(1, tiny.layers + 1))}
    assert set(task_table(items).layer) == layers
    own = items[items.layer.isin([str(l) for l in upper_middle(tiny.layers)])]
    mean = own.groupby(["arm", "item"], as_index=False).score.mean()
    band = items[items.layer == "band"].merge(mean, on=["arm", "item"])
    assert np.allclose(band.score_x, band.score_y)
    assert len(task_table(items[items.layer == "band"])) == 2


def test_arms_are_compared_item_by_item(three_models):
    items = three_models[2]
    table, compared = task_table(items), compare_arms(items)
    band = table[table.layer == "band"]
    a, b = band.set_index("arm").score.loc[["pretrained", "random"]]
    row = compared[compared.layer == "band"].iloc[0]
    assert row.difference == pytest.approx(b - a) and row.ci_high < 0 and row.n == band.n.iloc[0]


def test_tables_average_seeds(three_models):
    task, arms, items = three_models
    table = task_table(items)
    probed = [probe(task.spans.states(m, [1])[0], task)[""] for m in arms["random"]]
    single = [score(p, task) for p in probed]
    row = table[(table.layer == "1") & (table.arm == "random")].iloc[0]
    assert row.score == pytest.approx(np.mean(single)) and single[0] != single[1]


def test_arms_that_cannot_be_compared_are_refused(three_models):
    items = three_models[2]
    one = items[(items.arm == "random") & (items.layer == "band")].index[:1]
    with pytest.raises(DataError, match="same items"):
        compare_arms(items.drop(one))
    with pytest.raises(ParameterError, match="no such arm"):
        compare_arms(items, "tuned")


def test_trained_model_knows_words_and_phones_and_not_meaning(tiny, alone, sentences):
    for language in ("en", "zh"):
        x, y = (
            alone[language].states(tiny, [-1])[0],
            sentences[language].states(tiny, [-1])[0],
        )
        right = probe(x, spoken_category_task(LEXICON, language, alone[language]))
        task, words, phones = (
            spoken_category_task(LEXICON, language, alone[language]),
            context_word_task(LEXICON, language, sentences[language]),
            phone_task(language, sentences[language]),
        )
        assert score(probe(y, words)[""], words) > 0.7 and score(probe(y, phones)[""], phones) > 0.6
        assert score(right["_known"], task) > 0.35 and score(right["_heard"], task) < 0.25


def test_forgetting_is_seen(tiny):
    """Old heads on a model whose last block was disturbed: worse; on the model itself: as good
    as its card says."""
    import copy
    from dataclasses import replace

    measure = head_measure(pretraining_heads(tiny.folder), LEXICON, ("en",), passages=2)
    moved = replace(tiny, model=copy.deepcopy(tiny.model))
    with torch.no_grad():
        for p in moved.blocks[-1].parameters():
            p += (
                2 * p.std() * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
                if p.numel() > 1
                else 0
            )
    a, b = (measure.score(m, None).set_index(["task", "item"]) for m in (tiny, moved))
    assert (
        (a.weight.groupby("task").sum() - 1).abs().max() < 1e-9
        and (a.score > 0.6).all()
        and (b.score < a.score - 0.05).all()
    )


def test_runs_of_tune_speech_are_read(tiny, tmp_path):
    for seed in (0, 1):
        run = tmp_path / f"run{seed}"
        for place in ("model/backbone", "backbones/permuted"):
            shutil.copytree(tiny.folder, run / place)
        (
            run / "backbones/tuned"
        ).mkdir()  # left empty by the experiment, which keeps the tuned model elsewhere
        write_json(run / "run.json", dict(parameters=dict(backbone="tiny_speech", seed=seed)))
    arms = load_arms({"random": "random:tiny_speech"}, [tmp_path / "run0", tmp_path / "run1"])
    assert {k: len(v) for k, v in arms.items()} == dict(random=1, pretrained=1, tuned=2, permuted=2)
    shutil.rmtree(tmp_path / "run1/model")
    with pytest.raises(MissingData, match="no tuned model"):
        load_arms(runs=[tmp_path / "run1"])
    with pytest.raises(MissingData, match="no finished run"):
        load_arms(runs=[tmp_path / "nothing"])


# ---- real speech ----


def test_real_digits(real_data, tiny):
    task = digit_task(real_data / "fsdd" / "recordings")
    assert (
        len(task.labels) == 600
        and len(task.folds) == 6
        and [len(t[""]) for _, t in task.folds] == [100] * 6
    )
    got = score(probe(task.spans.states(tiny, [2])[0], task)[""], task)
    assert got > 0.4, got


def test_folders_without_digits(tmp_path):
    with pytest.raises(MissingData, match="no spoken digits"):
        digit_task(tmp_path)
    import soundfile

    soundfile.write(tmp_path / "hello.wav", np.zeros(800), 8000)
    with pytest.raises(DataError, match="does not say digit"):
        digit_task(tmp_path)


def power_of_words(story):
    "Mean square of the sound of each word."
    import soundfile

    sound, rate = soundfile.read(story.audio)
    spans = zip(story.words.onset, story.words.offset)
    return np.array([np.mean(sound[int(a * rate) : int(b * rate)] ** 2) for a, b in spans])


def test_unknown_stories_are_refused_with_the_known_ones(real_data):
    with pytest.raises(MissingData, match="denizenslab") as caught:
        moth_story(real_data / "moth", "soul")
    assert "souls" in caught.value.found


def test_revoiced_stories_carry_their_label(real_data, tmp_path):
    """The malformed TextGrid of one story included; the words keep their times to the sample,
    and the clock is the scanner's."""
    for name, trs in (("wheretheressmoke", 306), ("souls", 375)):
        story = moth_story(real_data / "moth", name)
        assert len(story.clock) == trs and abs(story.clock.tr - 2.0045) < 1e-4
        part = revoiced(first_part(story, 30), tmp_path)
        assert is_revoiced(part) and LABEL in part.audio.name
        kept = story.words.onset[story.words.offset <= 30]
        assert part.words.onset.tolist() == kept.tolist()
        assert np.mean(power_of_words(part) > 1e-5) > 0.95
        assert not is_revoiced(story)
