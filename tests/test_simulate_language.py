"Simulated language: what is exchangeable, what is not, and what a story may never use."

import numpy as np
import pytest

from braintune_nb.core import ParameterError
from braintune_nb.simulate import language as sl

lexicon = sl.make_lexicon(seed=0)


def information(a, b):
    joint = np.zeros((14, 14))
    np.add.at(joint, (a, b), 1)
    joint /= joint.sum()
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float((joint[joint > 0] * np.log2(joint[joint > 0] / expected[joint > 0])).sum())


def neighbour_information(words, language):
    "Mutual information (bits) of the categories of successive nouns, minus that of shuffled nouns."
    number = {w: c for c, w in enumerate(lexicon.words[language])}
    known = [number[w] for w in words if w in number]
    category = np.array([lexicon.category[n] for n in known if lexicon.word_class[n] == "noun"])

    rng = np.random.default_rng(0)
    shuffled = [information(category[:-1], rng.permutation(category[1:])) for _ in range(40)]
    return information(category[:-1], category[1:]) - np.mean(shuffled), 3 * np.std(shuffled)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_exchangeable_text_has_no_category_statistics_and_stories_have(language):
    plain = [
        w for s in sl.exchangeable_sentences(lexicon, language, 3000, seed=1, pairs=0.0) for w in s
    ]
    excess, limit = neighbour_information(plain, language)
    assert abs(excess) < limit
    dosed = [
        w
        for s in sl.exchangeable_sentences(lexicon, language, 3000, seed=1, dose=0.5, pairs=0.0)
        for w in s
    ]
    assert neighbour_information(dosed, language)[0] > 0.1
    story = sl.write_story(lexicon, "s", language, 8000, seed=1).words
    assert neighbour_information(story, language)[0] > 1.0


def test_exchangeable_text_uses_every_concept_evenly():
    sentences = sl.exchangeable_sentences(lexicon, "en", 6000, seed=2, pairs=0.0)
    number = {w: c for c, w in enumerate(lexicon.words["en"])}
    count = np.bincount([number[w] for s in sentences for w in s if w in number], minlength=288)
    nouns = lexicon.word_class == "noun"
    assert count.min() > 0
    assert (
        abs(count[nouns & lexicon.held_out].mean() / count[nouns & ~lexicon.held_out].mean() - 1)
        < 0.05
    )
    assert count[nouns].std() < 1.3 * np.sqrt(count[nouns].mean())  # as even as chance allows


@pytest.mark.parametrize("link", [0.0, 0.5, 1.0])
def test_link_is_the_share_of_translated_concepts(link):
    linked = sl.linked_concepts(lexicon, link)
    assert linked.sum() == round(288 * link)
    assert (sl.linked_concepts(lexicon, 0.25) <= sl.linked_concepts(lexicon, 0.75)).all()
    number = {w: c for language in ("en", "zh") for c, w in enumerate(lexicon.words[language])}
    right = {True: [], False: []}
    for sentence in sl.exchangeable_sentences(lexicon, "en", 1500, seed=3, link=link, pairs=1.0):
        ascii_ = [number[w] for w in sentence if w in number and w.isascii()]
        chinese = {number[w] for w in sentence if w in number and not w.isascii()}
        for c in ascii_:
            right[bool(linked[c])].append(c in chinese)
    if link > 0:
        assert all(right[True])
    if link < 1:
        assert np.mean(right[False]) < 0.1


def test_link_and_dose_together_draw_from_what_is_left():
    assert (
        len(sl.exchangeable_sentences(lexicon, "zh", 800, seed=4, dose=1.0, link=0.95, pairs=1.0))
        == 800
    )


@pytest.mark.parametrize("seed", range(5))
def test_seen_stories_never_use_held_out_concepts(seed):
    book = sl.make_lexicon(seed=seed)
    for language in ("en", "zh"):
        story = sl.write_story(book, "s", language, 1000, seed=seed)
        used = story.concept[story.concept >= 0]
        assert not book.held_out[used].any() and not story.held_out.any()
        mixed = sl.write_story(book, "m", language, 1000, seed=seed, kind="mixed")
        assert (book.held_out[mixed.concept] == mixed.held_out)[mixed.concept >= 0].all()
        assert 0.25 < mixed.held_out.mean() < 0.75
        assert not set(story.theme) & set(mixed.theme) and not set(story.template) & set(
            mixed.template
        )


def test_cue_puts_seen_concepts_into_held_out_segments():
    story = sl.write_story(
        lexicon,
        "m",
        "en",
        6000,
        seed=1,
        kind="mixed",
        cue=0.4,
        new_topics=False,
        new_templates=False,
    )
    content = (story.concept >= 0) & story.held_out
    assert abs((~lexicon.held_out[story.concept[content]]).mean() - 0.4) < 0.06
    assert max(story.theme) < 14 and max(story.template) < 10


@pytest.mark.parametrize("seed", range(3))
def test_translation_keeps_concepts_topics_and_sentences(seed):
    story = sl.write_story(lexicon, "m", "zh", 800, seed=seed, kind="mixed")
    other = sl.translate(story, lexicon, "en")
    assert sl.translate(other, lexicon, "zh").words == story.words
    for s in range(story.sentence.max() + 1):
        a, b = (sorted(t.concept[(t.sentence == s) & (t.concept >= 0)]) for t in (story, other))
        assert len(set(a) ^ set(b)) == 0
        assert {t.topic[t.sentence == s][0] for t in (story, other)} == {
            story.topic[story.sentence == s][0]
        }
    assert list(story.concept[story.concept >= 0]) != list(
        other.concept[other.concept >= 0]
    )  # word order differs


def test_topics_last_five_to_eight_sentences_and_change():
    story = sl.write_story(lexicon, "s", "en", 5000, seed=2)
    lengths = [
        len(set(story.sentence[story.topic == t])) for t in range(story.topic.max())
    ]  # the last may be cut
    assert min(lengths) >= 5 and max(lengths) <= 8
    themes = [story.theme[story.topic == t][0] for t in range(story.topic.max() + 1)]
    assert all(a != b for a, b in zip(themes, themes[1:])) and set(themes) == set(range(14))


def test_meaning_has_the_stated_share_of_category():
    for within in (0.0, 0.5, 1.0):
        book = sl.make_lexicon(seed=1, n_meaning=60, within=within)
        residual = np.concatenate(
            [
                book.meaning[book.category == c] - book.meaning[book.category == c].mean(0)
                for c in range(14)
            ]
        )
        found = residual.var() * 16 / 15 / book.meaning[book.word_class == "noun"].var()
        assert abs(found - within) < 0.06, (within, found)
    assert not np.array_equal(sl.make_lexicon(1).meaning, sl.make_lexicon(2).meaning)
    assert np.array_equal(sl.make_lexicon(3).meaning, sl.make_lexicon(3).meaning)


def test_topic_track_is_slow_and_meets_a_slow_loop():
    story = sl.write_story(lexicon, "s", "en", 300, seed=5)
    track, x = sl.topic_track(story, lexicon, 12.5), sl.meaning_track(story, lexicon)
    for n in (3, 57, 240):
        weight = np.exp(-(n - np.arange(n + 1)) / 12.5) * (story.concept[: n + 1] >= 0)
        np.testing.assert_allclose(
            track[n], weight @ x[: n + 1] / weight.sum(), rtol=1e-4, atol=1e-5
        )


def test_bad_parameters_are_refused():
    for call in (
        lambda: sl.make_lexicon(held_out_share=0.9),
        lambda: sl.write_story(lexicon, "s", "fr", 10, 0),
        lambda: sl.linked_concepts(lexicon, 1.5),
        lambda: sl.exchangeable_sentences(lexicon, "en", 10, 0, dose=-1),
    ):
        with pytest.raises(ParameterError):
            call()
