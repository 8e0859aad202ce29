"""What stands in for a brain: timing, noise and sharing of the targets, exchange of stories, shared
response model against its published properties."""

import importlib.util

import numpy as np
import pytest
import torch
import transformers as tf
from speech_models import SMALL

from braintune_nb.clock import regular_clock
from braintune_nb.core import DataError, ParameterError
from braintune_nb.data.recordings import Dataset, Recording, Space, zscore
from braintune_nb.data.stories import Events, Story
from braintune_nb.features.speech import speech_features
from braintune_nb.model.backbone import load_backbone, load_speech_backbone
from braintune_nb.train.control_targets import (
    SharedResponse,
    ar1_noise,
    averaged_targets,
    group_average,
    haemodynamic_response,
    lexical_targets,
    matched_snr,
    other_stories,
    representation_targets,
    response_weights,
    word_codes,
)

WORDS = "the dog saw a cat and ran home over old hills".split()


def told(name, n_words=300, seed=0, identity=None, language="en", tr=2.0):
    rng = np.random.default_rng(seed)
    onset = np.cumsum(rng.uniform(0.2, 0.5, n_words))
    return Story(
        name,
        language,
        Events(onset, onset + 0.2, tuple(WORDS[i] for i in rng.integers(len(WORDS), size=n_words))),
        regular_clock(int(onset[-1] / tr), tr, first=1.0),
        identity=identity,
    )


# ---- timing


@pytest.mark.parametrize("peak", [4.0, 5.0, 6.5])
def test_the_response_peaks_when_it_says_and_never_before_the_event(peak):
    t = np.linspace(-20, 60, 8001)
    h = haemodynamic_response(t, peak)
    assert abs(t[h.argmax()] - peak) < 0.1 and (h[t < 0] == 0).all() and h.min() < -0.005
    assert abs(np.trapezoid(h, t) - 1) < 1e-3


def test_weights_follow_any_clock():
    times = np.array([0.3, 2.3045, 4.309, 9.0, 30.0])
    w = response_weights([1.0, 4.309], times)
    assert (
        np.allclose(w[:, 0], haemodynamic_response(times - 1.0))
        and (w[times <= 4.309, 1] == 0).all()
    )


@pytest.mark.parametrize("lag", [1, 3])
def test_a_word_reaches_its_target_after_the_peak_whatever_the_tr(lag):
    tr = 1.5
    story = Story("one", "en", Events([10.0], [10.2], ("dog",)), regular_clock(30, tr, first=0.75))
    y = lexical_targets([story], 5, snr=1e8, peak=lag * tr)["one"]
    at = np.abs(y).argmax(0)
    assert np.abs(story.clock.times[at] - (10.1 + lag * tr)).max() <= tr / 2 + 1e-6


# ---- other models


def test_text_states_become_targets():
    story, tiny = told("s", 30), load_backbone("tiny")
    y = representation_targets([story], tiny, layers=[0, 2])["s"]
    assert y.shape == (len(story.clock), 2 * tiny.width)
    assert y.dtype == np.float32 and np.abs(y.mean(0)).max() < 1e-4


def test_speech_states_become_targets():
    story, draw = told("s", 30), np.random.default_rng(0)
    config = tf.HubertConfig(**SMALL | dict(num_hidden_layers=3))
    speech = load_speech_backbone(config, random_weights=True, seed=2)
    sound = draw.normal(size=int(16000 * (story.duration + 1))).astype(np.float32) * 0.1
    options = dict(window=1.0, stride=0.5, chunk=0.5, audio=sound, sampling_rate=16000, cache=None)
    x = np.concatenate(speech_features(story, speech, [1, 3], **options), 1)
    y = representation_targets([story], speech, layers=[1, 3], **options)["s"]
    weights = response_weights(story.clock.times, story.clock.times).astype(np.float32)
    assert np.allclose(y, zscore(weights @ x), atol=1e-3)


def test_components_are_one_basis_for_all_stories_and_hold_most_of_the_variance():
    stories, tiny = [told("a", 120, 1), told("b", 150, 2)], load_backbone("tiny")
    full, few = (representation_targets(stories, tiny, columns=c) for c in (None, 20))
    x = np.concatenate(list(full.values()))
    from sklearn.decomposition import PCA

    both = PCA(20).fit(x)  # of both stories together, not of the first
    for name in ("a", "b"):
        r = np.mean(zscore(both.transform(full[name])) * few[name], 0)
        assert np.abs(r[:4]).min() > 0.999
    assert np.mean((x @ both.components_.T) ** 2) * 20 / np.mean(x**2) / x.shape[1] > 0.8
    assert np.allclose(few["a"].std(0), 1, atol=1e-3) and few["b"].shape == (
        len(stories[1].clock),
        20,
    )
    with pytest.raises(ParameterError, match="no story"):
        representation_targets([], tiny)


# ---- random words


def test_codes_belong_to_word_types_and_say_nothing_about_likeness():
    codes = word_codes(["Dog", "dog.", "'dog'", "dogs", "狗", "狗。", "—"], 2000, seed=3)
    assert (
        np.array_equal(codes[0], codes[1])
        and np.array_equal(codes[0], codes[2])
        and np.array_equal(codes[4], codes[5])
    )
    r = np.corrcoef(codes[[0, 3, 4, 6]])
    assert np.abs(r[np.triu_indices(4, 1)]).max() < 0.08 and abs(codes.std() - 1) < 0.03
    assert not np.array_equal(word_codes(["dog"], 5, seed=1), word_codes(["dog"], 5, seed=2))


@pytest.mark.parametrize("ceiling", [0.3, 0.5, 0.8])
def test_targets_have_the_ceiling_that_was_asked_for(ceiling):
    story = told("s", 6000, 4)
    a, b = (
        lexical_targets([story], 40, snr=matched_snr(ceiling), noise_seed=k)["s"] for k in (0, 1)
    )
    assert abs(np.mean(zscore(a) * zscore(b)) - ceiling**2) < 0.03
    clean = lexical_targets([story], 40, snr=1e9)["s"]
    assert abs(np.mean(zscore(a) * clean) - ceiling) < 0.03


def test_noise_is_new_for_every_participant_and_story_and_columns_may_differ_in_ceiling():
    stories = [told("a", 200, 1), told("b", 200, 1)]
    y = lexical_targets(stories, 30, snr=0.0)
    n = min(map(len, y.values()))
    assert (
        abs(np.mean(y["a"][:n] * y["b"][:n])) < 0.1
    )  # same words and times, no signal asked for: nothing in common
    snr = np.r_[np.zeros(15), np.full(15, 1e6)]
    a, b = (lexical_targets(stories[:1], 30, snr=snr, noise_seed=k)["a"] for k in (0, 1))
    r = np.mean(zscore(a) * zscore(b), 0)
    assert r[15:].min() > 0.99 and abs(r[:15].mean()) < 0.1


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_ar1_noise_is_stationary(rho):
    x = ar1_noise(400, 3000, rho, 0)
    assert np.abs(x.var(1) - 1).max() < 0.15
    assert np.allclose(
        [np.mean(x[k:] * x[: len(x) - k]) for k in (1, 2, 5)], [rho, rho**2, rho**5], atol=0.02
    )


# ---- other stories


def assert_one_road_through_the_source(b, length, source):
    "As many rows as the story has, in order, from the start again where the source is shorter."
    assert len(b.index) == length and b.index.min() >= 0 and b.index.max() < source
    steps = np.diff(b.index)
    assert set(steps) <= {1, 1 - source} and (steps != 1).sum() == b.seams
    assert b.seams == 0 or source < length and b.index[0] == 0


def random_stories(rng):
    "Eight stories of random lengths, two of each identity."
    return [
        told(f"s{i}", int(n), i, identity=f"s{i // 2}")
        for i, n in enumerate(rng.integers(100, 400, 8))
    ]


def test_stories_are_exchanged_one_for_one_over_many_draws():
    rng = np.random.default_rng(0)
    for seed in range(30):
        stories = random_stories(rng)
        plan, length = other_stories(stories, seed), {s.name: len(s.clock) for s in stories}
        identity = {s.name: s.identity for s in stories}
        assert sorted(b.source for b in plan.values()) == sorted(length)
        assert all(identity[n] != identity[b.source] for n, b in plan.items())
        for name, b in plan.items():
            assert_one_road_through_the_source(b, length[name], length[b.source])
    sources = lambda seed: tuple(b.source for b in other_stories(stories, seed).values())
    assert len({sources(seed) for seed in range(20)}) > 3


def test_a_story_much_longer_than_its_source_is_given_it_several_times():
    plan = other_stories([told("long", 900, 1), told("short", 100, 2)])
    n, m = len(told("long", 900, 1).clock), len(told("short", 100, 2).clock)
    assert plan["long"].seams == (n - 1) // m and np.array_equal(
        plan["long"].index, np.arange(n) % m
    )
    assert plan["short"].seams == 0


def test_other_stories_keep_the_response_and_break_the_link():
    rng = np.random.default_rng(3)
    stories = [told(f"s{i}", 800, i) for i in range(4)]
    brain = {
        s.name: zscore(
            response_weights(s.words.midpoint, s.clock.times) @ word_codes(s.words.text, 20)
            + 0.01 * rng.normal(size=(len(s.clock), 20))
        )
        for s in stories
    }
    plan = other_stories(stories, 1)
    r = [np.mean(zscore(brain[b.source][b.index]) * brain[n]) for n, b in plan.items()]
    assert np.abs(r).max() < 0.12


# ---- the group


def words_in_columns(stories, v):
    "Responses that hold the words of each story."
    return {
        n: zscore(response_weights(s.words.midpoint, s.clock.times) @ word_codes(s.words.text, v))
        for n, s in stories.items()
    }


def dataset(people=3, v=12, shift=0, seed=0, n_words=500):
    rng = np.random.default_rng(seed)
    stories = {n: told(n, n_words, i) for i, n in enumerate(("s1", "s2", "s3"))}
    signal = words_in_columns(stories, v)
    space = Space("line", "vertex", np.arange(v))
    noisy = lambda y, p: np.roll(y, p * shift, 1) + rng.normal(size=y.shape) + 3 * p
    recordings = {}
    for p in range(people):
        made = {n: noisy(y, p).astype(np.float32) for n, y in signal.items()}
        recordings[f"P{p}"] = {n: Recording(f"P{p}", stories[n], y, space) for n, y in made.items()}
    return Dataset("d", stories, recordings)


def test_the_scored_person_never_enters_the_average():
    d = dataset()
    a = group_average(d, "s1", leave_out="P1")
    d.recordings["P1"]["s1"].responses[:] = 1e6 * np.random.default_rng(0).normal(
        size=d.recordings["P1"]["s1"].responses.shape
    )
    assert np.array_equal(group_average(d, "s1", leave_out=("P1",)), a)
    assert not np.allclose(group_average(d, "s1"), a, atol=0.1)
    del d.recordings["P2"]["s1"]  # did not hear it
    assert np.allclose(
        group_average(d, "s1", leave_out="P1"),
        zscore(zscore(d.recordings["P0"]["s1"].responses)),
        atol=1e-4,
    )
    with pytest.raises(DataError, match="Nobody is left"):
        group_average(d, "s1", ["P1"], "P1")


def test_averaging_is_over_people_with_equal_columns_in_numpy_and_torch():
    d = dataset()
    z = {p: zscore(r["s1"].responses) for p, r in d.recordings.items()}
    a, b = averaged_targets(z), averaged_targets({p: torch.as_tensor(y) for p, y in z.items()})
    assert all(np.array_equal(a[p], a["P0"]) for p in a) and torch.is_tensor(b["P0"])
    assert np.allclose(a["P0"], group_average(d, "s1"), atol=1e-3) and np.allclose(
        b["P1"].numpy(), a["P1"], atol=1e-4
    )
    with pytest.raises(DataError, match="equal columns"):
        averaged_targets({"a": z["P0"], "b": z["P1"][:-1]})


# ---- shared response model


def recordings(d, names=("s1", "s2")):
    chosen = lambda r: {n: r[n].responses for n in names}
    return {p: chosen(r) for p, r in d.recordings.items()}


def test_maps_are_orthonormal_the_error_never_rises_and_the_seed_is_kept():
    model = SharedResponse(5, iterations=30, tolerance=0, seed=1).fit(recordings(dataset(shift=2)))
    assert all(np.allclose(w.T @ w, np.eye(5), atol=1e-4) for w in model.maps.values())
    assert np.diff(model.errors).max() < 1e-6 and model.errors[-1] < model.errors[0]
    again = SharedResponse(5, iterations=30, tolerance=0, seed=1).fit(recordings(dataset(shift=2)))
    assert np.array_equal(again.shared, model.shared)


def test_as_many_time_courses_as_columns_lose_nothing():
    d = dataset(v=6)
    model = SharedResponse(6).fit(recordings(d))
    y = d.recordings["P1"]["s3"].responses
    assert np.allclose(model.inverse("P1", model.transform("P1", y)), zscore(y), atol=1e-4)


def mean_agreement(y, pairs):
    "Mean r of the columns of pairs of participants."
    return np.mean([np.mean(zscore(y[a]) * zscore(y[b])) for a, b in pairs])


def test_shared_time_courses_of_a_held_out_story_agree_where_columns_do_not():
    """Chen et al. 2015: fitted on some data, matched on other data; also for a person who was
    added afterwards."""
    d = dataset(people=4, v=30, shift=7)
    its = recordings(d)
    model = SharedResponse(12).fit({p: its[p] for p in ("P0", "P1", "P2")}).add("P3", its["P3"])
    y = {p: r["s3"].responses for p, r in d.recordings.items()}
    columns = mean_agreement(y, [(a, b) for a in y for b in y if a < b])
    common = {p: model.transform(p, responses) for p, responses in y.items()}
    shared = mean_agreement(common, [(a, b) for a in y for b in y if a < b])
    new = mean_agreement(common, [("P3", p) for p in ("P0", "P1", "P2")])
    print(f"columns {columns:.3f}, shared {shared:.3f}, new {new:.3f}")
    assert abs(columns) < 0.1 and shared > 0.35 and new > 0.3


def test_people_without_a_common_story_are_refused():
    its = recordings(dataset())
    with pytest.raises(DataError, match="same stories"):
        SharedResponse(3).fit({"P0": its["P0"], "P1": {"s2": its["P1"]["s2"]}})
    with pytest.raises(DataError, match="same stories"):
        SharedResponse(3).fit({"P0": its["P0"]})
    with pytest.raises(ParameterError, match="at most 12"):
        SharedResponse(13).fit(its)
    model = SharedResponse(3).fit(its)
    with pytest.raises(DataError, match="1 missing"):
        model.add("P9", {"s1": its["P0"]["s1"]})
    with pytest.raises(ParameterError, match="add"):
        model.inverse("P9", np.zeros((4, 3)))


@pytest.mark.skipif(importlib.util.find_spec("fastsrm") is None, reason="fastsrm is not installed")
def test_the_same_minimum_as_fastsrm():
    from fastsrm.srm import detsrm

    its = recordings(dataset(people=4, v=20, shift=5))
    model = SharedResponse(6, iterations=300, tolerance=1e-9).fit(its)
    x = np.stack([model._stacked(y).T for y in its.values()])
    maps, shared = detsrm(x, 6, n_iter=300, random_state=0, tol=1e-7)
    error = sum(((a - w @ shared) ** 2).sum() for a, w in zip(x, maps)) / (x**2).sum()
    print(f"error: ours {model.errors[-1]:.6f}, fastsrm {error:.6f}")
    assert abs(model.errors[-1] - error) < 0.01 * error
