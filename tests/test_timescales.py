"""Timescales: an independent filter, what adds up, and slow voxels that prefer long bands."""

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from braintune_nb.align.delays import delay
from braintune_nb.clock import regular_clock
from braintune_nb.core import DataError, ParameterError
from braintune_nb.data.recordings import zscore
from braintune_nb.data.stories import Events, Story
from braintune_nb.encode.ridge import RidgeCV
from braintune_nb.encode.score import correlation
from braintune_nb.features.timescales import (
    Band,
    band_gains,
    band_table,
    split_timescales,
    timescale_bands,
    timescale_features,
)
from braintune_nb.simulate.brain import convolve, lag_windows
from braintune_nb.simulate.language import make_lexicon, meaning_track, topic_track, write_story

BANDS = timescale_bands()


@pytest.mark.parametrize("overlap", [0, 0.5, 1])
@pytest.mark.parametrize("n", [256, 601, 900])
def test_the_same_as_a_filter_of_the_mirrored_story(n, overlap):
    "Fourier filter with the same gains, of the story followed by itself backwards."
    x = np.random.default_rng(n).standard_normal((n, 3)).cumsum(0)
    with np.errstate(divide="ignore"):
        gains = band_gains(1 / np.fft.rfftfreq(2 * n), BANDS, overlap)
    expected = [
        np.fft.irfft(np.fft.rfft(np.r_[x, x[::-1]], axis=0) * g[:, None], 2 * n, axis=0)[:n]
        for g in gains
    ]
    np.testing.assert_allclose(split_timescales(x, BANDS, overlap), expected, atol=1e-8)


def test_sharp_bands_are_orthogonal_and_keep_all_energy():
    x = np.random.default_rng(0).standard_normal((401, 4))
    parts = split_timescales(x, overlap=0)
    np.testing.assert_allclose((parts**2).sum(), (x**2).sum())
    assert (
        np.abs(np.einsum("anf,bnf->ab", parts, parts) - np.diag((parts**2).sum((1, 2)))).max()
        < 1e-9
    )


@pytest.mark.parametrize("causal", [False, True])
def test_bands_add_up_at_every_word(causal):
    x = np.random.default_rng(1).standard_normal((333, 7)).astype(np.float32)
    np.testing.assert_allclose(split_timescales(x, causal=causal).sum(0), x, atol=1e-5)


def test_causal_means_causal():
    x = np.random.default_rng(2).standard_normal((400, 2))
    for cut in (256, 300, 399):
        np.testing.assert_allclose(
            split_timescales(x[:cut], causal=True),
            split_timescales(x, causal=True)[:, :cut],
            atol=1e-10,
        )
    assert np.abs(split_timescales(x[:300])[6] - split_timescales(x)[6, :300]).max() > 0.01


def test_what_is_refused():
    x = np.zeros((300, 2))
    with pytest.raises(ParameterError, match="adjoin"):
        split_timescales(x, (Band(2, 8), Band(16, np.inf)))
    with pytest.raises(ParameterError, match="refuse, mirror"):
        split_timescales(x, short="pad")
    with pytest.raises(ParameterError, match="shorter than the longest"):
        split_timescales(x[:255])
    with pytest.raises(DataError, match="one row a word"):
        split_timescales(x[:, 0])


def story(n, rate, language="en", seed=0):
    at = 12 + np.random.default_rng(seed).uniform(0.6, 1.4, n).cumsum() / rate
    return Story(
        f"s{seed}_{language}",
        language,
        Events(at, at + 0.8 / rate, ("word",) * n),
        regular_clock(int(at[-1] / 2) + 8, 2.0, 1.0),
    )


def test_bands_in_seconds_follow_the_language():
    table = pd.DataFrame(band_table([story(800, 3.0), story(800, 2.0, "zh", 1)])).set_index(
        ["language", "band"]
    )
    assert table.shortest_s["zh", "16-32"] / table.shortest_s["en", "16-32"] == pytest.approx(
        1.5, rel=0.05
    )
    assert (
        (table.kept[:, "2-4"] < 0.05).all()
        and (table.kept[:, "64-128"] > 0.95).all()
        and table.kept["zh", "8-16"] > table.kept["en", "8-16"]
    )


def response_to(track, s, weights):
    "Voxels that follow a track of the words after a haemodynamic response."
    at = np.clip((s.words.onset * 10).astype(int), 0, None)
    held = np.zeros((int(s.clock.times[-1] * 10) + 1, 8))
    held[at[0] : at[-1]] = np.repeat(track[:-1], np.diff(at), 0)
    return zscore(convolve(lag_windows(held, s.clock.times), [5.0])[0] @ weights)


def delayed(bands):
    return {k: zscore(delay(x, (1, 2, 3, 4))) for k, x in bands.items()}


@pytest.fixture(scope="module")
def tracks():
    "Generator, responses to words and to a running topic, features by band, story of each TR."
    rng, lexicon = np.random.default_rng(0), make_lexicon(0)
    weights = rng.standard_normal((8, 12))
    fast, slow, features = [], [], []
    for i in range(6):
        text = write_story(lexicon, f"s{i}", "en", 700, i)
        s, words = story(len(text), 2.5, seed=i), meaning_track(text, lexicon)
        fast.append(response_to(words, s, weights))
        slow.append(response_to(topic_track(text, lexicon, 30), s, weights))
        features.append(delayed(timescale_features(s, words)))
    groups = np.repeat(np.arange(6), [len(x) for x in fast])
    return rng, np.concatenate(fast), np.concatenate(slow), features, groups


def band_r(features, band, y, groups):
    "Mean r of held-out stories, at least 0.001."
    train, x = groups < 4, np.concatenate([f[band] for f in features]).astype(np.float32)
    model = RidgeCV(tolerance=0, precision="float32").fit(x[train], y[train], groups[train])
    return max(1e-3, float(np.nanmean(correlation(model.predict(x[~train]), y[~train]))))


def test_slow_voxels_prefer_long_bands(tracks):
    """Voxels that follow words, a running topic, or both, in planted proportions, after a
    haemodynamic response, with noise."""
    rng, fast, slow, features, groups = tracks
    preference = []
    for share in (0.0, 0.3, 0.6, 0.9):
        y = np.sqrt(1 - share) * fast + np.sqrt(share) * slow
        y = (y + 0.5 * rng.standard_normal(y.shape)).astype(np.float32)
        size = lambda names: np.sqrt(sum(band_r(features, n, y, groups) ** 2 for n in names))
        preference.append(np.log2(size(("64-128", "128-256")) / size(("8-16", "16-32", "32-64"))))
    assert (np.diff(preference) > 0).all() and preference[-1] - preference[0] > 0.5, preference


def test_the_oracle_table_says_what_the_chapter_says():
    table = pd.read_csv(ROOT / "nbs/experiments/results/timescales_oracle.csv")
    assert {"seed", "language"} <= set(table) and table.seed.nunique() >= 3
    for _, part in table[~table.causal].groupby(["seed", "language"]):
        assert len(part) == 10 and np.corrcoef(part.slow, part.preference)[0, 1] > 0.4
        assert part[part.slow == 0.7].preference.mean() > part[part.slow == 0.2].preference.mean()
