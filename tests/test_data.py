"""Transcripts, logs, word tables, recordings, splits and Alice: oracles, invariants, and every real
file at hand."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from braintune_nb.clock import (
    Trim,
    insert_missing_triggers,
    nominal_clock,
    read_scanner_log,
    regular_clock,
)
from braintune_nb.core import DataError, SplitError, data_root
from braintune_nb.data.alice2016 import (
    REGIONS,
    alice_participants,
    check_alice2016,
    linguistic_names,
    load_alice2016,
    load_alice_linguistic,
    load_alice_predictors,
    motion_regressors,
)
from braintune_nb.data.files import read_text
from braintune_nb.data.recordings import (
    cosine_drift,
    highpass,
    regress_out,
    zscore,
)
from braintune_nb.data.splits import Section, Split, blocks, story_folds, whole_story
from braintune_nb.data.stories import (
    Events,
    Story,
    read_textgrid,
    read_word_table,
    shown_words,
    words_from_tier,
    write_textgrid,
)

SOURCES = {
    "moth": "TextGrids and logs of github.com/denizenslab/brain-informed-fine-tuning (MIT)",
    "alice2016": "Brennan et al. 2016 (CC BY 4.0)",
    "narratives_21styear": (
        "github.com/subbareddy248/lingprop-brain-alignment (MIT), Narratives ds002345 (CC0)"
    ),
    "speech_clips/praatio": "test files of github.com/timmahrt/praatIO (MIT)",
    "ds003020": "OpenNeuro ds003020 (CC0)",
}


def real(name):
    "Folder of real data, or skip and name its public source."
    root = data_root()
    if root is None or not (root / name).is_dir():
        pytest.skip(f"real data absent: {SOURCES[name]}; set BRAINTUNE_DATA")
    return root / name


def grids(name):
    return sorted(real(name).rglob("*.TextGrid"))


def tale(n=362, tr=2.0, name="alice", **kwargs):
    return Story(
        name, "en", Events([0.5, 3.0], [1.0, 3.5], ("once", "upon")), regular_clock(n, tr), **kwargs
    )


# ---------------------------------------------------------------- TextGrids

LABELS = [
    "plain",
    'say "hi"',
    '"',
    '""',
    "two\nlines",
    "",
    "声音",
    "ʃəm",
    "xmin = 3",
    "!not a comment",
    "<exists>",
    "12.5",
    "intervals [2]:",
    "a\\b",
    " padded ",
]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]


def random_tiers():
    "All labels as intervals, one after another, and as points."
    rng = np.random.default_rng(7)
    edges = np.concatenate([[0.0], np.sort(rng.random(len(LABELS))) * 10 + 0.1])
    events = Events(edges[:-1], edges[1:], LABELS)
    return {"word": events, 'click "x"': Events(edges[1:], edges[1:], LABELS)}


@pytest.mark.parametrize("form", ["long", "short"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_round_trip_of_any_label(tmp_path, form, encoding, newline):
    tiers = random_tiers()
    path = write_textgrid(tmp_path / "a.TextGrid", tiers, form, encoding)
    path.write_bytes(path.read_bytes().decode(encoding).replace("\n", newline).encode(encoding))
    grid = read_textgrid(path)
    assert (grid.form, list(grid.tiers), grid.notes) == (form, list(tiers), ())
    assert list(grid.kinds.values()) == ["IntervalTier", "TextTier"]
    for name, want in tiers.items():
        got = grid.tier(name)
        np.testing.assert_array_equal([got.onset, got.offset], [want.onset, want.offset])
        assert got.text == tuple(LABELS)


def chronological(grid):
    "The chronological form of a grid, written by hand."
    quote = lambda s: '"' + s.replace('"', '""') + '"'
    heads = [f'"{grid.kinds[n]}" {quote(n)} 0 9' for n in grid.tiers]
    rows = [
        (
            e.onset[i],
            k + 1,
            f"{k + 1} {float(e.onset[i])}"
            + (f" {float(e.offset[i])}" if grid.kinds[n] == "IntervalTier" else ""),
            quote(e.text[i]),
        )
        for k, (n, e) in enumerate(grid.tiers.items())
        for i in range(len(e))
    ]
    return (
        "\n".join(
            [
                '"Praat chronological TextGrid text file"',
                "0 9 ! time",
                f"{len(heads)}",
                *heads,
                *(f"{a}\n{b}" for _, _, a, b in sorted(rows)),
            ]
        )
        + "\n"
    )


@pytest.fixture
def small(tmp_path):
    "One small grid: interval tiers with a point tier between them."
    word = Events([0.0, 1.5, 4.25], [1.5, 4.25, 9.0], ('say "x"', "b\nc", "d"))
    return {
        "word": word,
        "bell": Events([2.0, 3.0], [2.0, 3.0], ("ding", "")),
        "phone": Events([0.0, 8.5], [8.5, 9.0], ("e", "f")),
    }


def test_chronological_equals_long(tmp_path, small):
    grid = read_textgrid(write_textgrid(tmp_path / "a.TextGrid", small))
    (tmp_path / "c.TextGrid").write_text(chronological(grid))
    other = read_textgrid(tmp_path / "c.TextGrid")
    assert other.form == "chronological" and list(other.tiers) == list(grid.tiers)
    for name in grid.tiers:
        assert other.tier(name).text == grid.tier(name).text
        np.testing.assert_array_equal(other.tier(name).onset, grid.tier(name).onset)


@pytest.mark.parametrize("form", ["long", "short", "chronological"])
def test_a_grid_cut_anywhere_is_refused(tmp_path, small, form):
    path = write_textgrid(
        tmp_path / "a.TextGrid", small, "long" if form == "chronological" else form
    )
    text = chronological(read_textgrid(path)) if form == "chronological" else path.read_text()
    whole = text.rstrip()
    for cut in range(0, len(whole), 2):
        path.write_text(whole[:cut])
        with pytest.raises(DataError) as caught:
            read_textgrid(path)
        assert caught.value.file is not None and caught.value.next_step
    path.write_text(whole)
    assert [len(e) for e in read_textgrid(path).tiers.values()] == [3, 2, 2]


def test_two_tiers_of_one_name_are_both_kept(tmp_path, small):
    path = write_textgrid(tmp_path / "a.TextGrid", small)
    path.write_text(path.read_text().replace('name = "phone"', 'name = "word"'))
    assert list(read_textgrid(path).tiers) == ["word", "bell", "word (2)"]


def test_absent_tiers(tmp_path):
    (tmp_path / "a.TextGrid").write_text(
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 3\ntiers?'
        " <absent>\n"
    )
    assert read_textgrid(tmp_path / "a.TextGrid").tiers == {}


WORDS = dict(
    alternateithicatom=2174,
    avatar=1464,
    howtodraw=1963,
    legacy=1892,
    myfirstdaywiththeyankees=2785,
    odetostepfather=2674,
    souls=1867,
    undertheinfluence=1637,
    wheretheressmoke=1792,
)
FIXED = {**WORDS, "avatar": 1463, "legacy": 1891, "odetostepfather": 2669, "wheretheressmoke": 1836}
TRIGGERS = dict(
    alternateithicatom=363,
    avatar=387,
    howtodraw=374,
    legacy=420,
    myfirstdaywiththeyankees=378,
    odetostepfather=424,
    souls=375,
    undertheinfluence=324,
    wheretheressmoke=306,
)


def test_moth_word_counts():
    count = lambda path, preset: len(
        words_from_tier(read_textgrid(path, preset).tier("word"), preset)
    )
    assert {p.stem: count(p, "released") for p in grids("moth")} == WORDS
    assert {p.stem: count(p, "fixed") for p in grids("moth")} == FIXED


def test_moth_smoke_is_read_whole():
    path = real("moth") / "TextGrids/wheretheressmoke.TextGrid"
    grid = read_textgrid(path)
    assert (
        len(grid.tier("word")) == 2308
        and grid.counts["malformed"] == 44
        and any("44 labels" in note for note in grid.notes)
    )
    released = read_textgrid(path, "released")
    assert len(released.tier("word")) == 2308 - 44 and released.counts["dropped"] == 44


def test_released_reading_cuts_labels_at_a_quote():
    empty = {
        p.stem: (
            words_from_tier(read_textgrid(p, "released").tier("word"), "released").text.count("")
        )
        for p in grids("moth")
    }
    assert {k: v for k, v in empty.items() if v} == dict(
        alternateithicatom=10, odetostepfather=5, undertheinfluence=5, avatar=1, legacy=1, souls=1
    )


def test_moth_overlaps_are_counted():
    counts = {p.stem: read_textgrid(p).counts for p in grids("moth")}
    assert all(c["tiny overlaps"] > 0 for c in counts.values())
    assert {name: c["overlaps"] for name, c in counts.items() if "overlaps" in c} == {
        "odetostepfather": 1
    }


@pytest.fixture(scope="module")
def moth():
    "Story -> its scanner log."
    reports = sorted((real("moth") / "reports").glob("*.report"))
    return {p.stem: read_scanner_log(p) for p in reports}


def test_moth_logs(moth):
    count = {name: len(log.triggers) for name, log in moth.items()}
    assert count == TRIGGERS
    assert {name: n - Trim(5, 5, 10).kept(n) for name, n in count.items()} == dict.fromkeys(
        count, 20
    )
    for log in moth.values():
        assert log.inserted == 0 and abs(log.tr - 2.0045) < 2e-5
        assert abs(log.sound_start - 10.028) < 2e-3
        np.testing.assert_allclose(log.clock().times, log.triggers - log.sound_start + log.tr / 2)


def test_moth_logs_have_the_rows_of_respdict(moth):
    respdict = json.loads((real("ds003020") / "derivative/respdict.json").read_text())
    more = {name: respdict[name] - len(log.triggers) for name, log in moth.items()}
    assert {name: n for name, n in more.items() if n} == {"wheretheressmoke": 5}


def early(path, log):
    "How much earlier than in the TextGrid the words were shown, s, and how many words differ."
    from difflib import SequenceMatcher

    text, shown = words_from_tier(read_textgrid(path).tier("word")), shown_words(log)
    strip = lambda words: [w.strip(".,?!\"'") for w in words]
    blocks = SequenceMatcher(
        None, strip(shown.text), strip(text.text), autojunk=False
    ).get_matching_blocks()
    pairs = np.array([(m.a + k, m.b + k) for m in blocks for k in range(m.size)])
    return text.onset[pairs[:, 1]] - shown.onset[pairs[:, 0]], len(text) - len(pairs)


def test_words_on_screen_agree_with_the_transcript_but_for_smoke():
    """The log prints the words that were shown. Only wheretheressmoke lost words (the 44
    malformed ones), and with them 9.8 s; words that open a quotation were shown as blanks."""
    for path in grids("moth"):
        log = read_scanner_log(real("moth") / "reports" / f"{path.stem}.report")
        seconds, missing = early(path, log)
        if path.stem == "wheretheressmoke":
            assert missing == 44 and 9.7 < seconds.max() < 9.8 and abs(seconds[0]) < 0.02
        else:
            assert (
                missing
                == {"alternateithicatom": 10, "undertheinfluence": 5, "souls": 1}.get(path.stem, 0)
                and np.abs(seconds).max() < 0.02
            ), (path.stem, missing, np.abs(seconds).max())
        assert len(
            Story(
                path.stem, "en", words_from_tier(read_textgrid(path).tier("word")), log.clock()
            ).clock
        ) == len(log.triggers)


@pytest.mark.parametrize("folder", ["moth", "alice2016", "speech_clips/praatio"])
def test_every_textgrid_loads(folder):
    for path in grids(folder):
        grid = read_textgrid(path)
        assert grid.tiers and all(len(e) for e in grid.tiers.values()), path
        assert path.read_text().count("ntervals [") in (
            0,
            sum(len(e) for n, e in grid.tiers.items() if grid.kinds[n] == "IntervalTier"),
        ), path


def assert_same_tier(entries, ours, where):
    "The labels and times of the other library."
    if not (isinstance(entries[0], tuple) and len(entries[0]) == 3):
        assert [t for _, t in entries] == list(ours.text)
        return
    rows = zip(ours.onset, ours.offset, ours.text)
    got = [(a, b, t.strip()) for a, b, t in rows if t.strip()]
    said = [(a, b, t) for a, b, t in entries if t.strip()]
    assert [t for *_, t in said] == [t for *_, t in got], where
    np.testing.assert_allclose([x[:2] for x in said], [x[:2] for x in got], atol=1e-6)


def test_praatio_agrees_where_it_reads():
    textgrid = pytest.importorskip("praatio.textgrid")
    compared = 0
    for path in [*grids("speech_clips/praatio"), *grids("alice2016"), *grids("moth")]:
        try:
            theirs = textgrid.openTextgrid(
                str(path), includeEmptyIntervals=True, duplicateNamesMode="rename"
            )
        except Exception:
            continue  # praatio 6.2.2 refuses all Moth grids
        ours = read_textgrid(path)
        for name, want in zip(theirs.tierNames, ours.tiers.values()):
            assert_same_tier(theirs.getTier(name).entries, want, (path, name))
            compared += 1
    assert compared >= 15


# ---------------------------------------------------------------- logs and clocks


@pytest.mark.parametrize("seed", range(5))
def test_missing_triggers_come_back(seed):
    rng = np.random.default_rng(seed)
    full = 2.0045 * np.arange(300) + rng.normal(0, 0.003, 300)
    lost = np.sort(rng.choice(np.arange(1, 299), 40, replace=False))
    back = insert_missing_triggers(np.delete(full, lost))
    assert len(back) == 300
    np.testing.assert_allclose(back, full, atol=0.02)


def test_a_complete_log_is_left_alone():
    full = 1.5 * np.arange(50) + np.random.default_rng(1).normal(0, 0.1, 50)
    np.testing.assert_array_equal(insert_missing_triggers(full), full)


def test_simulated_clock_gives_the_published_lengths():
    published = Trim(5, 5, 5)
    for n in (311, 363, 450):
        clock = nominal_clock(n).trimmed(published)
        assert len(clock) == n - 20 and clock.times[0] == 11.0 and clock.tr == 2.0


# ---------------------------------------------------------------- other files


def test_21st_year_loads():
    folder = real("narratives_21styear")
    table = folder / "stimulus_resources/21styear_align.csv"
    with pytest.raises(DataError, match="line 2677"):
        read_word_table(table, 2, 3, 1)
    words = read_word_table(table, 2, 3, 1, tolerance=1.0)
    log = read_scanner_log(folder / "stimulus_resources/21styear.report")
    assert (len(words), int((np.diff(words.onset) < 0).sum())) == (8267, 3)
    assert (len(log.triggers), log.tr, log.sound_start, log.sound_stop, log.inserted) == (
        2250,
        1.5,
        21.0,
        3359.0,
        0,
    )
    story = Story(
        "21styear",
        "en",
        Events(words.onset - log.sound_start, words.offset - log.sound_start, words.text),
        log.clock(),
    )
    assert len(story.clock) == 2250 and story.duration == pytest.approx(3338.05)


def test_21st_year_annotations_load():
    folder = real("narratives_21styear")
    words = read_word_table(
        folder / "stimulus_resources/21styear_align.csv", 2, 3, 1, tolerance=1.0
    )
    labels = pd.read_csv(
        folder / "stimulus_resources/balanced_21styear_probing_labels.csv", keep_default_na=False
    )
    depth = pd.read_csv(
        folder / "21styear_treedepth.txt", sep="\t", header=None, quoting=3, keep_default_na=False
    )
    chunks = [
        line.split()
        for line in read_text(folder / "21styear_chunking_spacy.txt").splitlines()
        if line
    ]
    sentences = read_text(folder / "phrasal_syntax_21styear.txt").strip().split("\n\n")
    assert len(labels) == len(words) and depth.shape[1] == 3 and {len(c) for c in chunks} == {3}
    assert all(
        len(line.split("\t")) == 10
        for s in sentences
        for line in s.splitlines()
        if not line.startswith("#")
    )
    assert len(read_text(folder / "21styear_transcript.txt").split()) > 8000


def test_praatio_sound_files_last_as_long_as_their_grids():
    soundfile = pytest.importorskip("soundfile")
    for name in ("bobby", "mary"):
        seconds = soundfile.info(str(real("speech_clips/praatio") / f"{name}.wav")).duration
        for path in real("speech_clips/praatio").glob(f"{name}*.TextGrid"):
            assert max(e.offset.max() for e in read_textgrid(path).tiers.values()) <= seconds + 1e-3


# ---------------------------------------------------------------- recordings


def test_highpass_against_nilearn():
    clean = pytest.importorskip("nilearn.signal").clean
    x = np.cumsum(np.random.default_rng(2).normal(size=(362, 5)), 0)
    theirs = clean(x, detrend=False, standardize=None, filter="cosine", high_pass=1 / 128, t_r=2.0)
    np.testing.assert_allclose(highpass(x, 2.0), theirs - theirs.mean(0), atol=1e-8)


def test_highpass_is_a_projection_and_keeps_fast_signals():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 3)) + 1000
    once = highpass(x, 1.5, 60.0)
    np.testing.assert_allclose(highpass(once, 1.5, 60.0), once, atol=1e-10)
    np.testing.assert_allclose(cosine_drift(200, 1.5, 60.0).T @ once, 0, atol=1e-9)
    np.testing.assert_allclose(highpass(x.astype(np.float32), 1.5, 60.0), once, atol=2e-3)
    assert cosine_drift(200, 1.5, 60.0).shape[1] == 1 + int(2 * 200 * 1.5 / 60)


def test_regress_out_against_least_squares():
    rng = np.random.default_rng(4)
    x, c = rng.normal(size=(90, 4)), rng.normal(size=(90, 6)) * 1e-4 + 5
    design = np.c_[c, np.ones(90)]
    np.testing.assert_allclose(
        regress_out(x, c), x - design @ np.linalg.lstsq(design, x, rcond=None)[0], atol=1e-8
    )
    np.testing.assert_allclose(regress_out(x, np.zeros((90, 2))), x - x.mean(0), atol=1e-12)


def test_zscore_leaves_no_nan_for_a_constant_column():
    "U-05: dividing by a standard deviation of 0."
    z = zscore(np.c_[np.full(9, 7.0), np.arange(9.0)])
    assert np.isfinite(z).all() and (z[:, 0] == 0).all() and z[:, 1].std() == pytest.approx(1)


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize(
    "n, gap, tr, total",
    [(6, 20, 2.0, 362), (3, 18, 1.5, 200), (2, 0, 2.0045, 40), (5, 7.3, 2.0045, 101)],
)
def test_blocks_are_contiguous_disjoint_and_purged(n, gap, tr, total):
    parts = blocks(tale(total, tr), n, gap)
    assert len(parts) == n and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts[0].rows[0] == 0 and parts[-1].rows[-1] == total - 1
    for a, b in zip(parts, parts[1:]):
        assert (np.diff(a.rows) == 1).all()
        assert b.times[0] - a.times[-1] - tr >= gap - 1e-6
    Split(tuning=[parts[0].name], test=[parts[1].name]).check(parts, purge=gap)


def test_split_check_against_brute_force():
    """A split of blocks is accepted exactly if every pair of rows in different roles is purge +
    TR apart."""
    rng, story, accepted = np.random.default_rng(0), tale(120), 0
    for _ in range(300):
        starts = np.sort(rng.choice(100, 3, replace=False))
        parts = [
            Section(f"b{i}", story, np.arange(s, s + rng.integers(3, 15)))
            for i, s in enumerate(starts)
        ]
        roles = rng.permutation(["tuning", "validation", "test"])
        split = Split(**{role: [part.name] for role, part in zip(roles, parts)})
        fine = all(
            np.abs(a.times[:, None] - b.times).min() - 2.0 >= 18
            for i, a in enumerate(parts)
            for b in parts[i + 1 :]
        )
        try:
            split.check(parts)
            passed = True
        except SplitError:
            passed = False
        assert passed == fine
        accepted += passed
    assert 10 < accepted < 290


def test_same_story_in_another_language_is_the_same_story():
    en, zh = tale(name="lion-en", identity="lion"), tale(name="lion-zh", identity="lion")
    zh = replace(zh, language="zh")
    for roles in (("tuning", "test"), ("encoding", "test"), ("tuning", "validation")):
        with pytest.raises(SplitError, match="same story"):
            Split(**{roles[0]: ["lion-en"], roles[1]: ["lion-zh"]}).check([en, zh])
    Split(tuning=["lion-en", "lion-zh"]).check([en, zh])
    assert all(set(test) != {"lion-en"} for _, test in story_folds([en, zh, tale(name="fox")], 2))


def test_split_file_round_trip(tmp_path):
    split = Split(("a", "b"), ("c",), ("d",), ("e",), ("p1",), ("p2",), "as published")
    assert (
        Split.load(split.save(tmp_path / "deep/split.json")) == split
        and Split.load(tmp_path / "deep/split.json").hash == split.hash
    )
    assert replace(split, test=("f",)).hash != split.hash
    assert split.check([whole_story(tale(name=n)) for n in "abcde"]) == split


# ---------------------------------------------------------------- Alice


def test_alice_participants_and_words():
    dataset = load_alice2016(real("alice2016"))
    assert (
        len(dataset.participants) == 22
        and "s33" not in dataset.participants
        and any("s33" in note for note in dataset.notes)
    )
    story = dataset.stories["alice"]
    assert (
        len(story.words),
        story.words.text[:3],
        story.clock.times[0],
        story.clock.times[-1],
    ) == (2127, ("alice", "was", "beginning"), 20.0, 742.0)
    assert "s33" in alice_participants(real("alice2016"))
    table = dataset.describe()
    assert set(table.trs) == {362} and set(table["columns"]) == {6}


def test_alice_arrays_are_the_files():
    folder = real("alice2016")
    for radius in ("6mm", "10mm"):
        dataset = load_alice2016(folder, radius)
        for participant, recordings in dataset.recordings.items():
            r = recordings["alice"]
            np.testing.assert_allclose(
                r.responses,
                np.loadtxt(folder / "responses" / radius / f"{participant}-timecourses.txt"),
                rtol=1e-6,
            )
            np.testing.assert_allclose(
                r.motion, np.loadtxt(next((folder / "responses").glob(f"{participant}-rp_*")))[10:]
            )
            assert r.space.labels == REGIONS and motion_regressors(r.motion).shape == (362, 12)


def test_alice_predictors():
    folder = real("alice2016")
    predictors, linguistic = load_alice_predictors(folder), load_alice_linguistic(folder)
    assert (
        len(predictors) == 22
        and linguistic.shape == (362, 12)
        and list(linguistic) == list(linguistic_names)
    )
    for pair in predictors.values():
        assert np.corrcoef(pair["word_rate"], predictors["s18"]["word_rate"])[0, 1] > 0.9999
        assert np.corrcoef(pair["word_rate"], pair["sound_power"])[0, 1] < 0.9
    shifted = pd.read_csv(
        next((folder / "responses").glob("sept18*")), sep=r"\s+", header=None
    ).to_numpy()
    fits = [
        np.corrcoef(shifted[k : k + 362, 0], predictors["s18"]["word_rate"])[0, 1]
        for k in range(11)
    ]
    assert np.argmax(fits) == 10 and fits[10] > 0.97  # the ten discarded volumes lie at the start
    np.testing.assert_array_equal(linguistic.to_numpy(), shifted[10:])


def test_alice_check_lists_what_is_wrong():
    findings = check_alice2016(real("alice2016"))
    assert [f["severity"] for f in findings] == ["warning"] * 3 + ["note"] and all(
        "s33" in f["what"] for f in findings[:3]
    )
    assert "22 usable participants" in findings[-1]["what"]
