"""The layouts of ds003020 and of the bilingual narratives: what is written is read, what is wrong
is named."""

import json

import h5py
import numpy as np
import pytest

from braintune_nb.clock import Trim, regular_clock
from braintune_nb.core import ClockError, DataError, MissingData
from braintune_nb.data.bilingual import (
    check_bilingual,
    load_bilingual,
    write_bilingual,
    write_scanner_log,
)
from braintune_nb.data.files import read_array
from braintune_nb.data.lebel2023 import (
    check_lebel2023,
    lebel_clock,
    load_lebel2023,
    write_lebel2023,
)
from braintune_nb.data.recordings import Dataset, Recording, Space
from braintune_nb.data.stories import Events, Story
from braintune_nb.simulate.brain import BrainParameters
from braintune_nb.simulate.experiment import Size, load_simulated, simulate_experiment

TINY = Size(2, 1, 1, 1, 1, 260)
TEXTS = dict(en=("people", "are", "don't", '"raised"'), zh=("人们", "长大", "了", "银行"))


def made_story(rng, layout, base, language, n, k):
    "A story of 120 words; the second is longer by one TR."
    onset = np.sort(rng.uniform(0, 60, 120)).round(3) + 0.01 * np.arange(120)
    words = Events(onset, onset + 0.009, TEXTS[language] * 30)
    phones = Events(onset, onset + 0.004, ("AA1",) * 120)
    clock = regular_clock(n + k, 2.0045, 11.0 + 0.017 * k)
    if layout == "lebel2023":
        clock = lebel_clock(n + k + 20)
    return Story(f"{base}_{language}", language, words, clock, phones, identity=base)


def made_recording(rng, participant, story):
    "Responses of four vertices; of one story with its repeats."
    r = rng.standard_normal((3, len(story.clock), 4)).astype(np.float32)
    regions = dict(language=np.array([1, 0, 0, 1], bool))
    space = Space("fsaverage5", "vertex", np.array([1, 4, 9, 16]), regions, ("a", "b", "b", "a"))
    repeats = r if story.identity == "smoke" else None
    motion = rng.standard_normal((len(story.clock), 6)).astype(np.float32)
    return Recording(participant, story, r.mean(0), space, repeats, motion)


def make(layout, seed=0, n=23):
    "Two stories (one with repeats) in two languages, two participants."
    rng, stories, recordings = np.random.default_rng(seed), {}, {}
    for language in ("en", "zh"):
        for k, base in enumerate(("souls", "smoke")):
            story = made_story(rng, layout, base, language, n, k)
            stories[story.name] = story
    for p in ("UTS01", "UTS02"):
        recordings[p] = {name: made_recording(rng, p, s) for name, s in stories.items()}
    return Dataset("toy", stories, recordings)


LAYOUTS = dict(
    lebel2023=(write_lebel2023, load_lebel2023, check_lebel2023),
    bilingual=(write_bilingual, load_bilingual, check_bilingual),
)


def same_story(s, t):
    assert (s.language, s.identity, s.words.text) == (t.language, t.identity, t.words.text)
    for x, y in (
        (s.words.onset, t.words.onset),
        (s.words.offset, t.words.offset),
        (s.phones.onset, t.phones.onset),
        (s.clock.times, t.clock.times),
    ):
        assert np.allclose(x, y, atol=2e-6)
    assert s.phones.text == t.phones.text and abs(s.clock.tr - t.clock.tr) < 1e-7


def same_recording(r, q):
    assert np.allclose(r.responses, q.responses, atol=1e-6)
    assert np.array_equal(r.motion, q.motion) and q.responses.dtype == np.float32
    assert (r.repeats is None) == (q.repeats is None)
    assert r.repeats is None or np.array_equal(r.repeats, q.repeats)
    assert np.array_equal(r.space.columns, q.space.columns) and r.space.labels == q.space.labels
    assert np.array_equal(r.space.regions["language"], q.space.regions["language"])


def same(a, b):
    assert set(a.stories) == set(b.stories) and set(a.recordings) == set(b.recordings)
    for name, s in a.stories.items():
        same_story(s, b.stories[name])
    for p, its in a.recordings.items():
        for name, r in its.items():
            same_recording(r, b.recordings[p][name])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_written_is_read_in_both_languages(layout, tmp_path):
    write, load, check = LAYOUTS[layout]
    dataset = make(layout)
    same(dataset, load(write(tmp_path, dataset)))
    assert check(tmp_path) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_simulated_experiment_is_read_by_the_adapters(layout, tmp_path):
    folder = simulate_experiment(tmp_path / "x", TINY, 2, BrainParameters(), ("en", "zh"), layout)
    _, load, check = LAYOUTS[layout]
    dataset, truth = load_simulated(folder)
    same(dataset, load(folder))
    assert check(folder) == [] and {s.language for s in dataset.stories.values()} == {"en", "zh"}
    for name, story in dataset.stories.items():
        assert (
            story.audio.exists()
            and truth.texts[name].words == story.words.text
            and len(truth.seen_rows[name]) == len(story.clock)
        )
    assert all(
        (r.repeats is not None) == (n in truth.roles["test"])
        for its in dataset.recordings.values()
        for n, r in its.items()
    )


def test_plain_ds003020_without_our_own_files(tmp_path):
    write_lebel2023(tmp_path, make("lebel2023"))
    (tmp_path / "braintune.json").unlink()
    for f in (tmp_path / "braintune").iterdir():
        f.unlink()
    recording = load_lebel2023(tmp_path, ["UTS02"], ["souls_en"]).recordings["UTS02"]["souls_en"]
    assert (
        recording.space.kind == "voxel"
        and recording.space.regions == {}
        and recording.motion is None
        and recording.story.language == "en"
        and recording.story.identity == "souls_en"
    )


def test_participants_and_stories_by_name(tmp_path):
    write_lebel2023(tmp_path, make("lebel2023"))
    part = load_lebel2023(tmp_path, ["UTS02"], ["smoke_zh"])
    assert part.participants == ("UTS02",) and tuple(part.stories) == ("smoke_zh",)
    (tmp_path / "derivative/preprocessed_data/UTS02/souls_en.hf5").unlink()
    assert any(
        "UTS02 has no responses to 1 of 4 stories" in n for n in load_lebel2023(tmp_path).notes
    )
    assert any("UTS02 lacks 1 of 4 stories: souls_en" in f for f in check_lebel2023(tmp_path))
    with pytest.raises(MissingData, match="souls_en"):
        load_lebel2023(tmp_path, stories=["souls_en"])


def responses(folder, layout):
    return (
        (folder / "derivative/preprocessed_data/UTS01/souls_en.hf5", "data")
        if layout == "lebel2023"
        else (folder / "en/UTS01_listening_fmri_data_trn.hdf", "souls")
    )


def change(path, key, function):
    with h5py.File(path, "r+") as f:
        data = f[key][:]
        del f[key]
        f[key] = function(data)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "function",
    [lambda x: x[1:], lambda x: np.concatenate([x, x[:5]])],
    ids=["one short", "five long"],
)
def test_wrong_number_of_rows_names_both_numbers(layout, function, tmp_path):
    write, load, check = LAYOUTS[layout]
    write(tmp_path, make(layout))
    path, key = responses(tmp_path, layout)
    full = 23 if layout == "lebel2023" else 43
    change(path, key, function)
    wrong = len(function(np.zeros(full)))
    with pytest.raises(
        ClockError, match="respdict.json" if layout == "lebel2023" else "scanner log"
    ) as error:
        load(tmp_path)
    assert (
        str(wrong) in str(error.value.found)
        and str(full) in str(error.value.expected)
        and str(path) in str(error.value)
    )
    assert any(str(wrong) in f for f in check(tmp_path))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["text pointer", "dead link", "cut short"])
def test_content_that_is_not_there(layout, kind, tmp_path):
    write, load, check = LAYOUTS[layout]
    write(tmp_path, make(layout))
    path, _ = responses(tmp_path, layout)
    content = path.read_bytes()
    path.unlink()
    if kind == "text pointer":
        path.write_text("/annex/objects/MD5E-s20--00.hf5\n")
    if kind == "dead link":
        path.symlink_to("../../.git/annex/objects/aa/bb/MD5E-s20--00.hf5")
    if kind == "cut short":
        path.write_bytes(content[:600])
    message = "not a readable HDF5 file" if kind == "cut short" else "git-annex pointer"
    with pytest.raises(DataError, match=message):
        load(tmp_path)
    assert any(message in f for f in check(tmp_path))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_story_or_participant_is_named(layout, tmp_path):
    write, load, _ = LAYOUTS[layout]
    write(tmp_path, make(layout))
    with pytest.raises(MissingData, match="avatar"):
        load(tmp_path, stories=["avatar"])
    with pytest.raises(MissingData, match="UTS09"):
        load(tmp_path, participants=["UTS09"])
    grid = tmp_path / (
        "derivative/TextGrids/souls_en.TextGrid"
        if layout == "lebel2023"
        else "en/TextGrids/souls.TextGrid"
    )
    grid.unlink()
    with pytest.raises(MissingData, match="souls"):
        load(tmp_path)


def test_story_that_respdict_does_not_know(tmp_path):
    write_lebel2023(tmp_path, make("lebel2023"))
    path = tmp_path / "derivative/respdict.json"
    counts = json.loads(path.read_text())
    del counts["smoke_en"]
    path.write_text(json.dumps(counts))
    with pytest.raises(ClockError, match="smoke_en"):
        load_lebel2023(tmp_path)
    assert "respdict.json does not know smoke_en" in check_lebel2023(tmp_path)
    path.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_lebel2023(tmp_path)


def test_repeats_that_do_not_fit(tmp_path):
    write_lebel2023(tmp_path, make("lebel2023"))
    change(
        tmp_path / "derivative/preprocessed_data/UTS01/smoke_en.hf5",
        "individual_repeats",
        lambda x: x[:, 1:],
    )
    with pytest.raises(ClockError, match="Repeats do not fit"):
        load_lebel2023(tmp_path)


def test_the_layout_of_ds003020_refuses_other_clocks(tmp_path):
    with pytest.raises(ClockError, match="cannot hold this clock"):
        write_lebel2023(tmp_path, make("bilingual"))


def test_float64_is_read_as_float32_and_nan_is_kept(tmp_path):
    write_lebel2023(tmp_path, make("lebel2023"))
    path = tmp_path / "derivative/preprocessed_data/UTS01/souls_en.hf5"

    def spoil(x):
        x = x.astype(np.float64)
        x[3, 2] = np.nan
        return x

    change(path, "data", spoil)
    assert read_array(path, "data").dtype == np.float32
    dataset = load_lebel2023(tmp_path)
    assert np.isnan(dataset.recordings["UTS01"]["souls_en"].responses[3, 2]) and any(
        "1 columns hold NaN" in n for n in dataset.notes
    )
    with pytest.raises(DataError, match="lacks a dataset"):
        read_array(path, "responses")


def test_a_lost_trigger_is_put_back(tmp_path):
    dataset = make("bilingual")
    write_bilingual(tmp_path, dataset)
    log = tmp_path / "en/reports/souls.report"
    lines = [l for l in log.read_text().splitlines() if l.endswith("trigger")]
    log.write_text(log.read_text().replace(lines[20] + "\n", ""))
    assert np.allclose(
        load_bilingual(tmp_path).stories["souls_en"].clock.times,
        dataset.stories["souls_en"].clock.times,
        atol=1e-6,
    )
    log.write_text(log.read_text().replace(lines[-1] + "\n", "").replace(lines[-2] + "\n", ""))
    with pytest.raises(ClockError, match="41 rows|do not fit the scanner log"):
        load_bilingual(tmp_path)


def test_clock_comes_from_the_log_not_from_a_constant(tmp_path):
    write_bilingual(tmp_path, make("bilingual"))
    write_scanner_log(tmp_path / "en/reports/souls.report", regular_clock(23, 1.5, 9.25))
    clock = load_bilingual(tmp_path).stories["souls_en"].clock
    assert abs(clock.tr - 1.5) < 1e-8 and abs(clock.times[0] - 9.25) < 1e-6


def test_other_trims_and_numbered_runs(tmp_path):
    dataset = make("bilingual")
    write_bilingual(tmp_path, dataset, trim=Trim(2, 1, 4))
    same(dataset, load_bilingual(tmp_path, trim=Trim(2, 1, 4)))
    for p in dataset.participants:
        change_key = tmp_path / f"en/{p}_listening_fmri_data_trn.hdf"
        with h5py.File(change_key, "r+") as f:
            f.move("souls", "story_01")
    assert (
        "souls_en"
        in load_bilingual(tmp_path, trim=Trim(2, 1, 4), names={"story_01": "souls"}).stories
    )


def test_nan_in_kept_rows_is_a_finding(tmp_path):
    write_bilingual(tmp_path, make("bilingual"))

    def spoil(x):
        x[15, 1] = np.nan
        return x

    change(tmp_path / "zh/UTS02_listening_fmri_data_trn.hdf", "souls", spoil)
    assert any("1 columns hold NaN" in f for f in check_bilingual(tmp_path))
