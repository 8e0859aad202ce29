"""eSpeak NG through ctypes: words out equal words in, times rise, the same words give the same
samples."""

import numpy as np
import pytest

from braintune_nb.core import DataError, ParameterError
from braintune_nb.data.stories import Events
from braintune_nb.simulate import speech as S
from braintune_nb.simulate.language import make_lexicon, translate, write_story
from braintune_nb.simulate.speech import RATE, VOICES, revoice, speak


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_word_of_the_lexicon_gets_a_time(language):
    words = make_lexicon(0).words[language]
    said = speak(words, language)
    assert said.words.text == tuple(words)
    assert (np.diff(said.words.onset) > 0).all() and (said.words.offset > said.words.onset).all()
    assert (said.words.onset[1:] >= said.words.offset[:-1] - 1e-9).all()


@pytest.mark.parametrize(
    "language,voice", [("en", v) for v in VOICES] + [("zh", v) for v in VOICES[::2]]
)
def test_stories_in_all_voices(language, voice):
    lexicon = make_lexicon(1)
    text = write_story(lexicon, "s", "en", 150, 7, "mixed")
    text = text if language == "en" else translate(text, lexicon, language)
    said = speak(text.words, language, voice, text.sentence)
    assert (
        len(said.words) == len(text)
        and said.audio.dtype == np.float32
        and abs(said.audio).max() <= 1
    )
    assert said.words.offset[-1] <= said.duration and said.phones.offset[-1] <= said.duration + 0.01
    first = np.searchsorted(said.phones.onset, said.words.onset - 1e-6)
    assert (said.phones.onset[np.minimum(first, len(said.phones) - 1)] < said.words.offset).all(), (
        "a word without a phone"
    )


def test_same_words_same_samples_whatever_was_spoken_before():
    words = "the old king walked to the house of a friend".split()
    one = speak(words, "en", "f2")
    speak(("我们", "去", "银行"), "zh", "m3")
    speak(words, "en", "plain", words_per_minute=200)
    two = speak(words, "en", "f2")
    assert np.array_equal(one.audio, two.audio) and np.array_equal(one.words.onset, two.words.onset)
    assert not np.array_equal(speak(words, "en", "m3").audio[:1000], one.audio[:1000])


def test_sentences_are_followed_by_silence():
    words = "the dog sleeps the cat walks home".split()
    said = speak(words, "en", sentence=[0, 0, 0, 1, 1, 1, 1])
    gap = slice(int((said.words.offset[2] + 0.05) * RATE), int((said.words.onset[3] - 0.02) * RATE))
    assert said.words.onset[3] - said.words.offset[2] > 0.15
    assert (said.audio[gap] ** 2).mean() < 1e-3 * (said.audio**2).mean()


def test_pairs_that_espeak_joins_stay_two_words():
    said = speak("dogs in the house of a cat and of the king".split())
    assert len(said.words) == 11 and np.diff(said.words.onset).min() > 0.03


TEXT = ("我们", "去", "银行")


@pytest.fixture
def spoken():
    "Where the words stand in the text, and what espeak tells of it: place and time."
    _, spans = S._text_of(TEXT, None)
    starts = [spans[1, 0], spans[2, 0], spans[2, 0] + 1]
    places = [0, 1, *starts]
    return spans, [(1, place, 100 * i, "") for i, place in enumerate(places)]


def words_of(spans, events):
    return S._words_of(TEXT, spans, events, np.array([0.9]), 1000, "zh")


def test_events_are_merged_by_text_position(spoken):
    words = words_of(*spoken)
    assert np.allclose(words.onset, [0, 0.2, 0.3]) and np.allclose(words.offset, [0.2, 0.3, 0.9])


def test_words_without_time_and_times_that_do_not_rise_are_refused(spoken):
    spans, events = spoken
    with pytest.raises(DataError, match="gave a word no time"):
        words_of(spans, events[:2] + events[3:])
    for place, time, words in (
        (spans[1, 1], 200, "gave a word no time"),
        (spans[1, 0], 0, "do not rise"),
    ):
        with pytest.raises(DataError, match=words):
            words_of(spans, events[:2] + [(1, place, time, "")] + events[3:])


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        ((["hello"], "fr"), ParameterError, "Unknown language"),
        ((["hello"], "en", "elvis"), ParameterError, "Unknown voice"),
        (([], "en"), DataError, "Nothing to say"),
        ((["hello", " "], "en"), DataError, "Nothing to say"),
        ((["we", "...", "go"], "en"), DataError, "no time"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        speak(*arguments)


def test_gain_scales_words_and_refuses_clipping():
    words = "doctor walks home now".split()
    plain, loud = speak(words), speak(words, gain=[0, 0, -6.0206, 0])
    inside = slice(
        int((plain.words.onset[2] + 0.02) * RATE), int((plain.words.offset[2] - 0.02) * RATE)
    )
    assert np.allclose(2 * loud.audio[inside], plain.audio[inside], atol=1e-5)
    assert np.allclose(
        loud.audio[: inside.start - 1000], plain.audio[: inside.start - 1000], atol=1e-6
    )
    with pytest.raises(ParameterError, match="louder"):
        speak(words, gain=[30, 0, 0, 0])


def test_revoice_keeps_the_times_of_the_grid():
    grid = Events([0.5, 1.2, 3.0], [1.1, 1.9, 3.08], ("doctor", "walks", "hippopotamus"))
    said = revoice(grid)
    assert said.words is grid and said.source.startswith("revoiced") and "1 of 3" in said.source
    power = lambda a, b: float((said.audio[int(a * RATE) : int(b * RATE)] ** 2).mean())
    assert (
        power(0, 0.45) < 1e-9
        and power(2.2, 2.9) < 1e-9
        and power(0.55, 1.0) > 1e-4
        and power(3.05, 3.2) > 1e-5
    )
    for a, b in zip(grid.onset, grid.offset):
        assert ((said.phones.onset >= a - 0.01) & (said.phones.onset < b + 0.1)).any()
    assert np.array_equal(said.audio, revoice(grid).audio)
    with pytest.raises(DataError, match="cannot say"):
        revoice(Events([0.5], [1.0], ("...",)))
