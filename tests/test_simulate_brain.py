"Simulated brains and the simulated experiment: known parts, known ceilings, known seeds."

from dataclasses import replace

import numpy as np
import pytest

from braintune_nb.align.delays import delay
from braintune_nb.clock import regular_clock
from braintune_nb.core import MissingData, ParameterError, RunError
from braintune_nb.data.recordings import zscore
from braintune_nb.data.stories import Events, Story
from braintune_nb.encode.ceiling import ccmax
from braintune_nb.simulate import experiment as E
from braintune_nb.simulate.brain import (
    HZ,
    LAGS,
    SIZES,
    BrainParameters,
    analytic_ceiling,
    convolve,
    displaced,
    hrf,
    lag_windows,
    latent_covariance,
    load_surface,
    make_brain,
    presentations,
    private_meaning,
    signal_parts,
    surface_columns,
    surface_space,
)
from braintune_nb.simulate.experiment import (
    Size,
    load_simulated,
    oracle_features,
    segment_rows,
    simulate_experiment,
)
from braintune_nb.simulate.language import Text, make_lexicon

SURFACE = load_surface()
COLUMNS = surface_columns(SURFACE)
SPACE = surface_space(SURFACE, COLUMNS)
LANGUAGE = SPACE.regions["language"]
TIMES = 11 + 2.0 * np.arange(150)


@pytest.fixture(scope="module")
def world():
    "Smooth random latents, their windows and their covariance."
    rng = np.random.default_rng(0)
    tracks = {k: rng.standard_normal((3200, n or 8)).astype(np.float32) for k, n in SIZES.items()}
    return {k: lag_windows(t, TIMES) for k, t in tracks.items()}, latent_covariance(
        [tracks], [TIMES]
    )


def person(world, number=0, seed=0, **knobs):
    return make_brain(
        f"p{number}", number, SURFACE, COLUMNS, world[1], BrainParameters(**knobs), seed
    )


@pytest.mark.parametrize(
    "bad",
    [
        dict(map_share=1.1),
        dict(latent_overlap=-0.1),
        dict(language_sharing=2),
        dict(acoustics=0.81),
        dict(autocorrelation=1),
        dict(snr=0),
        dict(repeats=1),
        dict(peak=(8, 4)),
        dict(misregistration=-1),
        dict(meaning=float("nan")),
        dict(cue=1.5),
    ],
)
def test_knobs_out_of_range_are_refused(bad):
    with pytest.raises(ParameterError, match="out of range"):
        BrainParameters(**bad)


def test_surface_comes_without_a_download(monkeypatch):
    import socket

    def refuse(*a, **k):
        raise AssertionError("network used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    surface = load_surface()
    assert len(surface.parcel) == 20_484 and np.array_equal(surface.parcel, SURFACE.parcel)
    assert (surface.distance[surface.parcel >= 0] == 0).all() and (
        surface.distance[surface.parcel < 0] > 0
    ).all()
    assert np.bincount(surface.parcel[surface.parcel >= 0]).min() > 20
    assert len(SPACE.labels) == len(COLUMNS) and sum(SPACE.regions.values()).max() == 1


@pytest.mark.parametrize("peak", [4.0, 5.5, 8.0])
def test_hrf_peaks_where_it_says(peak):
    assert (
        abs(LAGS[hrf(peak).argmax()] - peak) < 0.15
        and abs(hrf(peak).sum() - 1) < 1e-9
        and hrf(peak).min() < 0
    )


def test_convolution_agrees_with_scipy():
    from scipy.signal import fftconvolve

    track = np.random.default_rng(1).standard_normal((900, 3))
    times = np.arange(3, 90, 2.0)
    ours = convolve(lag_windows(track, times), [5.0, 7.0])
    for j, p in enumerate((5.0, 7.0)):
        assert np.allclose(
            ours[j],
            fftconvolve(track, hrf(p)[:, None], axes=0)[(times * HZ).astype(int)],
            atol=1e-5,
        )


def test_a_response_is_the_sum_of_its_parts(world):
    brain = person(world)
    y, motion, parts = presentations(brain, world[0], 2, 2.0, BrainParameters(), 3)
    assert (
        np.allclose(zscore(sum(parts.values())), y[0], atol=1e-4)
        and motion.shape == (150, 6)
        and y.shape == (2, 150, len(COLUMNS))
    )
    assert np.allclose(y.mean(1), 0, atol=1e-4) and np.allclose(y.std(1), 1, atol=1e-3)


def test_same_seed_same_brain(world):
    same = lambda a, b: np.array_equal(
        presentations(a, world[0], 2, 2.0, BrainParameters(), 3)[0],
        presentations(b, world[0], 2, 2.0, BrainParameters(), 3)[0],
    )
    assert (
        same(person(world), person(world))
        and not same(person(world), person(world, 1))
        and not same(person(world), person(world, seed=1))
    )


def test_without_meaning_only_meaning_is_gone(world):
    without, with_ = (
        presentations(person(world, meaning=m), world[0], 2, 2.0, BrainParameters(meaning=m), 3)[2]
        for m in (0.0, 1.0)
    )
    assert (
        (without["meaning"] == 0).all()
        and (without["topic"] == 0).all()
        and with_["topic"][:, LANGUAGE].var() > 0.05
    )
    for name in ("noise", "motion", "drift", "rate", "unmodelled", "spectrum", "phones"):
        assert np.array_equal(without[name], with_[name]), name


def test_parts_have_the_variance_of_the_knobs(world):
    brain = person(world, word_rate=0.5, unmodelled=0.3, peak=(6.0, 6.0))
    parts = signal_parts(brain, world[0])
    group = np.array(SURFACE.group + ("rest",))[brain.parcel]
    assert abs(parts["rate"][:, group == "language"].var(0).mean() - 0.5) < 0.05
    assert abs(parts["unmodelled"][:, group == "auditory"].var(0).mean() - 0.3) < 0.05
    assert abs(parts["spectrum"][:, group == "auditory"].var(0).mean() - 1) < 0.05
    assert abs(parts["phones"][:, group == "superior_temporal"].var(0).mean() - 1) < 0.05
    assert all((p[:, group == "rest"] == 0).all() for p in parts.values())


def topic_map(world, n, seed, share):
    "Weights of a person in language columns."
    made = person(world, n, seed, map_share=share, misregistration=0)
    return made.weights["topic"][:, LANGUAGE]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_map_share_is_the_correlation_of_maps(world, share):
    def maps(n):
        return np.concatenate([topic_map(world, n, seed, share) for seed in range(3)], 1)

    a, b = maps(0), maps(1)
    assert abs((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()) - share) < 0.12


def test_misregistration_in_mm():
    for mm in (0.0, 4.0, 8.0):
        moved = [
            np.linalg.norm(displaced(SURFACE.sphere[::50], mm, [s]) - SURFACE.sphere[::50], axis=1)
            for s in range(12)
        ]
        assert abs(np.sqrt((np.array(moved) ** 2).mean()) - mm) < 0.15 * mm + 1e-6


def test_private_meanings_correlate_as_the_knobs_say():
    lexicon = make_lexicon(0)
    r = lambda a, b, **k: np.corrcoef(
        private_meaning(lexicon, *a, BrainParameters(**k), 0).ravel(),
        private_meaning(lexicon, *b, BrainParameters(**k), 0).ravel(),
    )[0, 1]
    assert np.array_equal(private_meaning(lexicon, "zh", 3, BrainParameters(), 0), lexicon.meaning)
    for value in (0.0, 0.5):
        assert (
            abs(r(("en", 0), ("en", 1), latent_overlap=value) - value) < 0.1
            and abs(r(("en", 0), ("zh", 0), language_sharing=value) - value) < 0.1
        )


def test_implied_ceiling_agrees_with_repeats(world):
    knobs = BrainParameters(repeats=8)
    brain = person(world, repeats=8)
    y, _, parts = presentations(brain, world[0], 8, 2.0, knobs, 3)
    implied = analytic_ceiling(brain, sum(parts[k] for k in brain.weights), 8, knobs)
    halves = [np.isin(np.arange(8), c) for c in ((0, 1, 2, 3), (0, 2, 4, 6), (0, 3, 5, 6))]
    r = np.mean([(zscore(y[h].mean(0)) * zscore(y[~h].mean(0))).mean(0) for h in halves], 0)
    inside = brain.parcel >= 0
    assert (
        abs(np.sqrt(np.clip(2 * r / (1 + r), 0, None))[inside].mean() - implied[inside].mean())
        < 0.04
    )


def test_noise_is_autocorrelated(world):
    for a in (0.0, 0.5):
        noise = zscore(
            presentations(
                person(world, autocorrelation=a),
                world[0],
                2,
                2.0,
                BrainParameters(autocorrelation=a),
                3,
            )[2]["noise"]
        )
        assert abs((noise[1:] * noise[:-1]).mean() - a) < 0.03


def test_segment_rows_by_hand():
    topic = np.repeat([0, 1], 40)
    words = Events(np.arange(80.0), np.arange(80.0) + 0.9, ("w",) * 80)
    text = Text("s", "en", words.text, np.zeros(80, int), topic, topic, topic, topic == 1, topic)
    story = Story("s", "en", words, regular_clock(45, 2.0, 1.0))
    times = story.clock.times
    assert np.array_equal(
        times[segment_rows(text, story, False)], times[(times >= 18) & (times <= 43.9)]
    )
    assert np.array_equal(
        times[segment_rows(text, story, True)], times[(times >= 58) & (times <= 83.9)]
    )


def stacked_oracle(truth, dataset, names, which):
    "Delayed z-scored features of an oracle, story by story."
    each = [zscore(oracle_features(truth, dataset.stories[n], which)) for n in names]
    return np.concatenate([delay(x) for x in each]).astype(np.float32)


def language_responses(recordings, names):
    "Responses of language columns, story by story."
    heard = [recordings[n] for n in names]
    return np.concatenate([r.responses[:, r.space.regions["language"]] for r in heard])


def fit_and_score(folder, participants, which="meaning", language="en"):
    """Mean r in language columns of an oracle, refitted for each participant on all but the
    test stories."""
    from himalaya.ridge import RidgeCV

    dataset, truth = load_simulated(folder)
    chosen = lambda role: [n for n in truth.roles[role] if dataset.stories[n].language == language]
    train, test = chosen("tuning") + chosen("encoding") + chosen("validation"), chosen("test")
    x, tx = (stacked_oracle(truth, dataset, names, which) for names in (train, test))
    scores = []
    for p in participants:
        y, ty = (language_responses(dataset.recordings[p], names) for names in (train, test))
        model = RidgeCV(alphas=np.logspace(1, 5, 6), solver_params=dict(warn=False)).fit(x, y)
        scores.append((zscore(model.predict(tx)) * zscore(ty)).mean())
    return float(np.mean(scores))


SMALL = Size(2, 2, 1, 1, 1, 420)


def test_private_maps_transfer_after_refitting_and_private_meanings_do_not(tmp_path):
    base = dict(word_rate=0.0, onset=0.0, acoustics=0.0, unmodelled=0.0, motion=0.0, snr=1.0)
    maps = simulate_experiment(tmp_path / "maps", SMALL, 3, BrainParameters(map_share=0.0, **base))
    latents = simulate_experiment(
        tmp_path / "latents", SMALL, 3, BrainParameters(latent_overlap=0.0, **base)
    )
    shared, private = (
        fit_and_score(maps, ("sim01", "sim02")),
        fit_and_score(latents, ("sim01", "sim02")),
    )
    assert shared > 0.4 and private < 0.5 * shared, (shared, private)


def test_meaning_is_shared_between_languages_as_the_knob_says(tmp_path):
    base = dict(word_rate=0.0, onset=0.0, acoustics=0.0, unmodelled=0.0, motion=0.0, snr=1.0)
    scores = {
        s: fit_and_score(
            simulate_experiment(
                tmp_path / str(s),
                SMALL,
                4,
                BrainParameters(language_sharing=s, **base),
                languages=("zh",),
                layout="bilingual",
            ),
            ("sim01",),
            language="zh",
        )
        for s in (0.0, 1.0)
    }
    assert scores[1.0] > 0.4 and scores[0.0] < 0.5 * scores[1.0], scores


def test_quickstart_ceiling_is_between_04_and_08(tmp_path):
    quick = replace(E.SIZES["quickstart"], tuning=1, validation=1, encoding=1)
    dataset, truth = load_simulated(simulate_experiment(tmp_path / "q", quick, seed=11))
    assert len(dataset.participants) == 8 and all(
        80 < len(dataset.stories[n].clock) < 140 for n in truth.roles["test"]
    )
    language = dataset.recordings["sim01"]["test01"].space.regions["language"]
    implied = np.mean(
        [truth.participants[p]["ceiling"][language].mean() for p in dataset.participants]
    )
    measured = np.mean(
        [
            np.nan_to_num(ccmax(dataset.recordings[p][n].repeats[..., language])).mean()
            for p in dataset.participants
            for n in truth.roles["test"]
        ]
    )
    assert 0.4 < implied < 0.8 and 0.4 < measured < 0.8 and abs(implied - measured) < 0.08, (
        implied,
        measured,
    )


def test_an_experiment_is_whole_or_absent(tmp_path, monkeypatch):
    tiny = Size(1, 1, 1, 1, 1, 260)

    def stop(*a, **k):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(E, "_write_truth", stop)
        with pytest.raises(KeyboardInterrupt):
            simulate_experiment(tmp_path / "x", tiny)
    assert not (tmp_path / "x").exists()
    folder = simulate_experiment(tmp_path / "x", tiny)
    with pytest.raises(RunError, match="not empty"):
        simulate_experiment(folder, tiny)
    (folder / "truth" / "lexicon.npz").unlink()
    with pytest.raises(MissingData, match="truth is missing"):
        load_simulated(folder)


def test_real_shapes_on_request(tmp_path):
    folder = simulate_experiment(tmp_path / "v", Size(1, 1, 1, 1, 1, 260), columns=30_000)
    recording = load_simulated(folder)[0].recordings["sim01"]["test01"]
    assert (
        recording.responses.shape[1] == 30_000
        and recording.space.kind == "voxel"
        and recording.responses.dtype == np.float32
    )


@pytest.mark.parametrize(
    "more,message",
    [
        (dict(size="big"), "Unknown size"),
        (dict(layout="bids"), "Unknown layout"),
        (dict(languages=("fr",)), "Unknown languages"),
        (dict(columns="many"), "Unknown choice"),
    ],
)
def test_bad_requests_are_named(tmp_path, more, message):
    with pytest.raises(ParameterError, match=message):
        simulate_experiment(tmp_path / "x", **{"size": Size(1, 1, 1, 1, 1, 260), **more})
