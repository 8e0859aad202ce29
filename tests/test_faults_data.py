"""Bad input of every kind: one error type a kind, which names the file, the place, what was found
and expected, and the next step."""

import re
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from braintune_nb.clock import Clock, Trim, nominal_clock, read_scanner_log, regular_clock
from braintune_nb.core import (
    BraintuneError,
    ClockError,
    DataError,
    MissingData,
    ParameterError,
    SplitError,
)
from braintune_nb.data.alice2016 import (
    check_alice2016,
    load_alice2016,
    load_alice_predictors,
)
from braintune_nb.data.recordings import Dataset, Recording, Space, highpass, regress_out
from braintune_nb.data.splits import Section, Split, blocks, story_folds
from braintune_nb.data.stories import (
    Events,
    Story,
    joins_without_blanks,
    language_of,
    read_textgrid,
    read_word_table,
    shown_words,
    words_from_tier,
    write_textgrid,
)

SPACE = Space("toy", "region", np.arange(2))
WORDS = Events([0.5, 600.0], [1.0, 601.0], ("once", "end"))


@pytest.fixture
def grid(tmp_path):
    "A sound grid in long form, to be spoilt."
    return write_textgrid(
        tmp_path / "a.TextGrid",
        {
            "phone": Events([0.0, 1.0], [1.0, 2.0], ("a", "b")),
            "word": Events([0.0, 1.5], [1.5, 2.0], ("one", "two")),
        },
    )


def spoil(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))
    return path


def refused(call, error=DataError, **contains):
    """The error of `call`, checked: its type is exact, it has a next step, and each named part
    contains the text."""
    with pytest.raises(BraintuneError) as caught:
        call()
    assert type(caught.value) is error, caught.value
    assert caught.value.next_step, caught.value
    for part, text in contains.items():
        assert text in str(getattr(caught.value, part)), (part, str(caught.value))
    return caught.value


# ---------------------------------------------------------------- TextGrids


def test_textgrid_that_stops_in_mid_file(grid):
    whole = grid.read_text()
    grid.write_text(whole[: whole.index('text = "two"')])
    refused(
        lambda: read_textgrid(grid),
        what="stops in the middle",
        file=str(grid),
        place=f"line {grid.read_text().count(chr(10)) + 1}",
        found="end of the file",
        expected="label of interval 2 of the 2 that tier 'word' declares",
        next_step="fetch",
    )


def test_textgrid_that_stops_inside_a_label(grid):
    whole = grid.read_text()
    grid.write_text(whole[: whole.index('two"') + 2])
    refused(lambda: read_textgrid(grid), what="stops in the middle", place="line", found='"tw')


@pytest.mark.parametrize(
    "declared, what, expected",
    [
        (9, "does not hold what it declares", "interval 3 of the 9 that tier 'phone'"),
        (1, "more than it declares", "1 in tier 'phone'"),
    ],
)
def test_declared_size_is_not_the_parsed_count(grid, declared, what, expected):
    spoil(grid, "intervals: size = 2", f"intervals: size = {declared}")
    refused(lambda: read_textgrid(grid), what=what, file=str(grid), place="line", expected=expected)


@pytest.mark.parametrize(
    "declared, what", [(3, "stops in the middle"), (1, "more than it declares")]
)
def test_declared_number_of_tiers_is_wrong(grid, declared, what):
    spoil(grid, "\nsize = 2", f"\nsize = {declared}")
    refused(lambda: read_textgrid(grid), what=what, place="line")


@pytest.mark.parametrize("declared, what", [(3, "declares"), (1, "more than it declares")])
def test_short_form_with_a_wrong_size(tmp_path, declared, what):
    path = write_textgrid(
        tmp_path / "s.TextGrid",
        {"w": Events([0.0, 1.0], [1.0, 2.0], ("a", "b")), "v": Events([0.0], [2.0], ("c",))},
        form="short",
    )
    spoil(path, '"w"\n0.0\n2.0\n2\n', f'"w"\n0.0\n2.0\n{declared}\n')
    refused(lambda: read_textgrid(path), what=what, place="line")


@pytest.mark.parametrize(
    "old, new, what",
    [
        ('text = "one"', 'text = "one', "not closed"),
        ("xmin = 1.5", "xmin = 1,5", "cannot be read"),
        ('text = "one"', 'label = "one"', "cannot be read"),
        ('class = "IntervalTier"', 'class = "Tier"', "unknown class"),
        ('File type = "ooTextFile"', "hello", "not a TextGrid"),
        ('"TextGrid"', '"Pitch 1"', "not a TextGrid"),
    ],
)
def test_textgrid_with_one_wrong_line(grid, old, new, what):
    refused(lambda: read_textgrid(spoil(grid, old, new)), what=what, file=str(grid), place="line")


HEAD = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 6
tiers? <exists>
size = {tiers}
item []:
    item [1]:
        class = "IntervalTier"
        name = "word"
        xmin = 0
        xmax = 6
        intervals: size = {size}
"""


def intervals(*rows, start=1):
    "Lines of intervals in long form."
    return "".join(
        f"        intervals [{i}]:\n            xmin = {a}\n            xmax = {b}\n"
        f'            text = "{label}"\n'
        for i, (a, b, label) in enumerate(rows, start)
    )


ROWS = (0, 1.5, "ein"), (1.5, 4, "Hund"), (4, 6, "bellt")


def hand_made(path, body=None, size=3, tiers=1):
    "A grid of three words, or of other lines."
    path.write_text(HEAD.format(size=size, tiers=tiers) + (body or intervals(*ROWS)))
    return path


@pytest.mark.parametrize("size", ["3.7", "-1", "1e999", "3.0", "+3", "9" * 400])
def test_a_size_is_a_whole_number(tmp_path, size):
    path = hand_made(tmp_path / "a.TextGrid", size=size)
    refused(lambda: read_textgrid(path), place="line 14", expected="a whole number")
    path = hand_made(tmp_path / "b.TextGrid", tiers=size)
    refused(lambda: read_textgrid(path), place="line 7", expected="a whole number")


@pytest.mark.parametrize(
    "old, new, found",
    [
        ("intervals [2]", "intervals [3]", "number [3]"),
        ("            xmin = 1.5\n            xmax = 4\n", "            xmax = 4\n", "xmax"),
        (
            "            xmin = 1.5\n            xmax = 4",
            "            xmax = 4\n            xmin = 1.5",
            "xmax",
        ),
        (
            '            text = "Hund"\n',
            '            text = "Hund"\n            text = "Katze"\n',
            "Katze",
        ),
        ('class = "IntervalTier"', 'name = "IntervalTier"', "name"),
        ("xmin = 4", "xmin = 1e999", "inf"),
        ("xmin = 4", "xmin = ４", "４"),
        ("xmax = 4", "xmax = 1", "1.5 to 1 s"),
        ("xmax = 4", "xmax = 400", "1.5 to 400 s"),
    ],
)
def test_lines_of_a_long_grid_that_contradict_each_other(tmp_path, old, new, found):
    path = hand_made(tmp_path / "a.TextGrid")
    assert read_textgrid(path).tier("word").offset.tolist() == [1.5, 4, 6]
    refused(lambda: read_textgrid(spoil(path, old, new)), found=found, file=str(path))


@pytest.mark.parametrize(
    "rows, note",
    [
        ([(0, 1.5, "a"), (2, 6, "b")], "gaps between intervals, the largest 0.5000 s at 1.500 s"),
        ([(0, 1.5, "a"), (1.5, 5, "b")], "ends of the tier are not reached, the largest 1.0000 s"),
        ([(0, 1.5, "a"), (1.5, 1.5, "b"), (1.5, 6, "c")], "1 intervals without duration"),
        ([(0, 3, "a"), (3, 9, "b")], "1 intervals or points lie outside the bounds"),
        ([(0, 1.5, "a"), (1, 6, "b")], "1 real overlaps kept as they are, the largest 0.5000 s"),
    ],
)
def test_odd_times_are_read_and_said(tmp_path, rows, note):
    path = hand_made(tmp_path / "a.TextGrid", intervals(*rows), len(rows))
    grid = read_textgrid(path)
    said = grid.tier("word")
    assert list(zip(said.onset, said.offset, said.text)) == rows
    assert any(note in n for n in grid.notes) and any(note in n for n in said.notes)
    assert any(note in n for n in words_from_tier(said).notes)


def test_milliseconds_in_a_grid_are_said(tmp_path):
    rows = [(300.0 * i, 300.0 * (i + 1), f"w{i}") for i in range(6)]
    path = hand_made(tmp_path / "a.TextGrid", intervals(*rows), 6)
    assert any("milliseconds" in n for n in read_textgrid(path).notes)


def test_indentation_costs_nothing(tmp_path):
    body = intervals(*((i, i + 1, f"w{i}") for i in range(12_000)))
    deep = re.sub("(?m)^ +", " " * 260, body)
    seconds = []
    for lines in (body, deep):
        path = hand_made(tmp_path / "a.TextGrid", lines, 12_000)
        began = time.process_time()
        assert len(read_textgrid(path).tier("word")) == 12_000
        seconds.append(time.process_time() - began)
    assert seconds[1] < 3 * seconds[0] + 0.2, seconds


@pytest.mark.parametrize("mark", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_only_line_feeds_end_a_line(tmp_path, mark):
    path = hand_made(tmp_path / "a.TextGrid")
    spoil(path, "Hund", f"Hu{mark}nd")
    assert read_textgrid(path).tier("word").text[1] == f"Hu{mark}nd"


SAID = Events([0.0, 0.5, 1.5], [0.5, 1.5, 2.0], ("once", "upon", "again"))
SOUNDS = Events(
    np.arange(8) / 4, np.arange(1, 9) / 4, ("W", "AH1", "N", "S", "sil", "AH0", "P", "AA2")
)
IPA = Events(np.arange(8) / 4, np.arange(1, 9) / 4, ("w", "ʌ", "n", "tʃʰ", "", "ə", "aɪ", "ɜː"))


@pytest.mark.parametrize(
    "names",
    [
        ("words", "phones"),
        ("word", "phone"),
        ("Ann - words", "Ann - phones"),
        ("ORT-MAU", "MAU"),
        ("story_words", "story_phonemes"),
        ("talker", "more"),
        ("1", "2"),
    ],
)
@pytest.mark.parametrize("sounds", [SOUNDS, IPA])
@pytest.mark.parametrize("turned", [False, True])
def test_words_are_never_phones(tmp_path, names, sounds, turned):
    tiers = list(zip(names, (SAID, sounds)))
    write_textgrid(tmp_path / "a.TextGrid", dict(tiers[::-1] if turned else tiers))
    grid = read_textgrid(tmp_path / "a.TextGrid")
    for fallback in (0, 1):
        assert grid.tier("word", fallback).text == SAID.text
        assert grid.tier("phone", fallback).text == sounds.text
    said = names == ("word", "phone") or any(repr(names[0]) in n for n in grid.notes)
    assert said and (names == ("word", "phone")) == (not grid.tier("word", 1).notes)


@pytest.mark.parametrize(
    "tiers, what",
    [
        ({"a": SOUNDS}, "no tier 'word'"),
        ({"a": SOUNDS, "b": IPA}, "no tier 'word'"),
        ({"a": SAID, "b": SAID}, "Several tiers"),
        ({"Ann - words": SAID, "Bob - words": SAID}, "Several tiers"),
        ({"phone": SAID}, "no tier 'word'"),
        ({"utterance": Events([0.0], [2.0], ("once upon a time",))}, "no tier 'word'"),
        ({"count": Events([0.0, 1.0], [1.0, 2.0], ("1", "2"))}, "no tier 'word'"),
    ],
)
def test_where_the_words_cannot_be_told(tmp_path, tiers, what):
    write_textgrid(tmp_path / "a.TextGrid", tiers)
    refused(lambda: read_textgrid(tmp_path / "a.TextGrid").tier("word", 1), what=what)


def test_swapped_names_are_said(tmp_path):
    many = Events(np.arange(40.0), np.arange(1.0, 41.0), ("DH", "AH0", "F", "AA1") * 10)
    write_textgrid(tmp_path / "a.TextGrid", {"word": many})
    (note,) = read_textgrid(tmp_path / "a.TextGrid").tier("word").notes
    assert note == "the labels of 'word' look like phones"


@pytest.mark.parametrize(
    "events, what",
    [
        (Events([0.0, np.nan], [1.0, 2.0], "ab"), "not numbers"),
        (Events([0.0, 1.0], [1.0, np.inf], "ab"), "not numbers"),
        (Events([-0.5, 1.0], [1.0, 2.0], "ab"), "before 0"),
        (Events([0.0, 1.0], [1.0, 1.0], "ab"), "without duration"),
        (Events([0.0, 2.0], [1.0, 1.5], "ab"), "without duration"),
        (Events([1.0, 1.0], [1.0, 1.0], "ab"), "not in order"),
        (Events([0.0], [1.0], ("a\nxmin = 3",)), "label"),
        (Events([0.0], [1.0], ("a\rb",)), "label"),
        (Events([0.0], [1.0], ("\ud800",)), "label"),
        (Events([], [], ()), "nothing to write"),
    ],
)
@pytest.mark.parametrize("form", ["long", "short"])
def test_writer_refuses_what_praat_cannot_read(tmp_path, events, what, form):
    refused(lambda: write_textgrid(tmp_path / "o.TextGrid", {"w": events}, form), what=what)
    assert not list(tmp_path.iterdir())


def test_writer_knows_forms_and_encodings(tmp_path):
    refused(lambda: write_textgrid(tmp_path / "o", {"w": SAID}, "wide"), ParameterError)
    refused(lambda: write_textgrid(tmp_path / "o", {"w": SAID}, "long", "cp1252"), ParameterError)


def test_unknown_tier_lists_the_names(grid):
    refused(
        lambda: read_textgrid(grid).tier("words"),
        found="'phone', 'word'",
        expected="'words'",
        file=str(grid),
    )


def test_unknown_presets(grid):
    refused(lambda: read_textgrid(grid, "best"), ParameterError, found="best")
    refused(
        lambda: words_from_tier(read_textgrid(grid).tier("word"), "best"),
        ParameterError,
        expected="fixed",
    )


def test_writer_refuses_overlap(tmp_path):
    refused(
        lambda: write_textgrid(
            tmp_path / "o.TextGrid", {"w": Events([0.0, 0.5], [1.0, 2.0], ("a", "b"))}
        ),
        place="tier 'w'",
        found="1.0000 s",
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content, what",
    [
        (b"/annex/objects/MD5E-s9--00.TextGrid\n", "git-annex pointer"),
        (b"../../.git/annex/objects/zz/MD5E-s9--00", "git-annex pointer"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git-lfs pointer"),
        (b"<!DOCTYPE html>\n<html>", "HTML page"),
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"RIFF\xe4\x93\x07\xffWAVEfmt ", "not text"),
    ],
)
@pytest.mark.parametrize("reader", [read_textgrid, read_scanner_log, read_word_table])
def test_what_is_not_the_file(tmp_path, reader, content, what):
    path = tmp_path / "file"
    path.write_bytes(content)
    refused(lambda: reader(path), what=what, file=str(path))


def test_absent_files_and_dangling_links(tmp_path):
    refused(lambda: read_textgrid(tmp_path / "no"), MissingData, file="no")
    (tmp_path / "link").symlink_to("../.git/annex/objects/zz")
    refused(lambda: read_scanner_log(tmp_path / "link"), what="never fetched", found="annex")


# ---------------------------------------------------------------- logs, word tables


@pytest.mark.parametrize(
    "text, error, what",
    [
        ("0 first trigger\n2 trigger\nx trigger\n", DataError, "no time"),
        ("0 first trigger\n2 trigger\n", ClockError, "when the sound started"),
        ("1 sound-start\n2 word a\n", DataError, "no triggers"),
        ("0 first trigger\n1 sound-start\n4 trigger\n2 trigger\n", ClockError, "run backwards"),
    ],
)
def test_faulty_logs(tmp_path, text, error, what):
    (tmp_path / "a.report").write_text(text)
    refused(lambda: read_scanner_log(tmp_path / "a.report"), error, what=what, file="a.report")


LOG = "".join(f"{2 * i}.250 trigger\n" for i in range(20)) + "7.5 sound-start\n"


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("38.250", "3825000.0", dict(what="More triggers are missing", file="a.report")),
        ("38.250", "1600000000", dict(what="More triggers are missing", found="799999")),
        ("8.250", "8_0.250", dict(place="line 5", found="8_0.250")),
        ("8.250", "nan", dict(place="line 5", what="no time")),
        ("8.250", "8.25s", dict(place="line 5", what="no time")),
        ("\n8.250 trigger", "\n8.250", dict(place="line 5", what="no label")),
        ("8.250 trigger", "8.250 trigge", dict(place="line 5", what="nearly a known one")),
        ("7.5 sound-start", "7.5 soundstart", dict(what="nearly a known one")),
        ("7.5 sound-start", "inf sound-start", dict(what="no time")),
        ("7.5 sound-start", "7.5 sound-start\n8 START:", dict(found="[7.5, 8.0]")),
        ("7.5 sound-start", "7.5 sound-start\n7 sound-stop", dict(found="7.5 to 7 s")),
        ("7.5 sound-start", "-90 sound-start", dict(found="starts at -90 s")),
        ("7.5 sound-start", "7500 sound-start", dict(found="starts at 7500 s")),
        ("10.250", "10.900", dict(found="uneven triggers: 2.65 s after 8.25 s")),
        ("8.250 trigger", "8.250 first trigger", dict(what="begin twice", place="line 5")),
    ],
)
def test_logs_that_make_no_sense(tmp_path, old, new, told):
    path = tmp_path / "a.report"
    path.write_text(LOG)
    assert read_scanner_log(path).notes == ()
    with pytest.raises((DataError, ClockError)) as caught:
        read_scanner_log(spoil(path, old, new))
    refused(lambda: read_scanner_log(path), type(caught.value), **told)


def test_a_log_in_milliseconds(tmp_path):
    path = tmp_path / "a.report"
    path.write_text("".join(f"{2000 * i} trigger\n" for i in range(20)) + "7500 sound-start\n")
    refused(lambda: read_scanner_log(path), ClockError, found="a TR of 2000 s")


@pytest.mark.parametrize(
    "old, new, note",
    [
        ("8.250 trigger\n10.250 trigger\n", "", "2 of 20 triggers were missing and are filled in"),
        ("8.250 trigger\n", "8.250 trigger\n8.253 trigger\n", "1 triggers stood within a quarter"),
        ("8.250 trigger\n", "7.950 trigger\n8.250 trigger\n", "1 triggers stood within a quarter"),
    ],
)
def test_what_is_repaired_in_a_log_is_said(tmp_path, old, new, note):
    path = tmp_path / "a.report"
    path.write_text(LOG)
    whole = read_scanner_log(path)
    log = read_scanner_log(spoil(path, old, new))
    np.testing.assert_allclose(log.triggers, whole.triggers, atol=1e-12)
    assert (log.tr, log.sound_start) == (2.0, 7.5) and log.notes[0].startswith(note)
    clock = log.clock()
    assert clock.notes == log.notes == clock.trimmed(Trim(silence=3)).notes
    np.testing.assert_allclose(clock.times, 0.25 + 2 * np.arange(20) - 7.5 + 1)


@pytest.mark.parametrize("start, said", [(-30, True), (-1.9, True), (-1.5, False), (0.25, False)])
def test_a_sound_that_starts_before_the_first_trigger(tmp_path, start, said):
    "The first trigger of this log is at 0.25 s, and its TR is 2 s."
    path = tmp_path / "a.report"
    path.write_text(LOG.replace("7.5", str(start)))
    log = read_scanner_log(path)
    assert log.sound_start == start
    note = f"the sound starts {0.25 - start:.1f} s before the first trigger"
    assert log.clock().notes == ((note,) if said else ())


def test_gaps_that_were_filled_have_no_say_in_the_tr(tmp_path):
    times = [*np.arange(0, 20, 2), 28.6, *np.arange(30.6, 50, 2)]
    lines = "".join(f"{t:.3f} trigger\n" for t in times) + "7.5 sound-start\n"
    (tmp_path / "a.report").write_text(lines)
    log = read_scanner_log(tmp_path / "a.report")
    assert (log.tr, log.inserted, len(log.triggers)) == (pytest.approx(2.0), 4, len(times) + 4)


def test_labels_are_exact(tmp_path):
    path = tmp_path / "a.report"
    path.write_text("0.0 Starting scanner task\n0.1\tendless\n" + LOG.replace(" ", "\t"))
    log = read_scanner_log(path)
    assert (log.sound_start, log.sound_stop, len(log.triggers)) == (7.5, None, 20)


@pytest.mark.parametrize("mark", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_only_line_feeds_end_a_line_of_logs_and_tables(tmp_path, mark):
    (tmp_path / "a.report").write_text(LOG + f"9 word ab{mark}9.5 trigger\n")
    assert len(read_scanner_log(tmp_path / "a.report").triggers) == 20
    (tmp_path / "w.csv").write_text(f"onset,offset,text\n0.5,1,a{mark}b\n1,2,c\n")
    assert read_word_table(tmp_path / "w.csv").text == (f"a{mark}b", "c")


def test_log_without_words(tmp_path):
    (tmp_path / "a.report").write_text("0 first trigger\n2 trigger\n2.5 sound-start\n")
    refused(lambda: shown_words(read_scanner_log(tmp_path / "a.report")), what="prints no words")


@pytest.mark.parametrize(
    "rows, what, place",
    [
        ("0.5,0.7,a\n1.5,1.7,b\n1.0,1.2,c\n", "run backwards", "line 4"),
        ("0.5,,a\n", "no time", "line 2"),
        ("0.5,0.2,a\n", "ends before", "line 2"),
        ("0.5,0.7,a\n0.9\n", "too short", "line 3"),
        ('0.5,0.7,"a\nb"\nx,1,c\n', "no time", "line 4"),
        ("", "no words", "None"),
    ],
)
def test_faulty_word_tables(tmp_path, rows, what, place):
    (tmp_path / "w.csv").write_text("onset,offset,text\n" + rows)
    refused(lambda: read_word_table(tmp_path / "w.csv"), what=what, place=place, file="w.csv")


@pytest.mark.parametrize(
    "rows, what, place",
    [
        ('0.5,0.7,"a\n1,1.2,b\n2,2.2,c\n', "not closed", "line 2"),
        ('0.5,0.7,a\n1,1.2,"\n2,2.2,b\n3,3.2,"\n', "breaks off", "line 3"),
        ('0.5,0.7,sa"id\n', "inside a cell", "line 2"),
        ('0.5,0.7,"sa"id\n', "inside a cell", "line 2"),
        ("0.5,0.7,10,000\n", "too long", "line 2"),
        ("0.5,0.7,a\n1,1.2\n", "too short", "line 3"),
        ("0.5,0.7,a\nnan,nan,b\n", "no time", "line 3"),
        ("0.5,inf,a\n", "no time", "line 2"),
        ("1e999,1e999,a\n", "no time", "line 2"),
        ("0_5,7,a\n", "no time", "line 2"),
        ("0.5,0.7, \n1,2,\n", "No row of a word table has a word", "line 2"),
    ],
)
def test_word_tables_that_lose_words(tmp_path, rows, what, place):
    (tmp_path / "w.csv").write_text("onset,offset,text\n" + rows)
    refused(lambda: read_word_table(tmp_path / "w.csv"), what=what, place=place, file="w.csv")


def test_words_without_text_are_said(tmp_path):
    (tmp_path / "w.csv").write_text("onset,offset,text\n0,1,a\n1,2,\n2,3, \n")
    words = read_word_table(tmp_path / "w.csv")
    assert words.text == ("a", "", " ")
    assert words.notes == ("2 words without text, the first on line 3",)


def test_word_table_with_a_column_twice(tmp_path):
    (tmp_path / "w.csv").write_text("onset,offset,text,onset\n0,1,a,2\n")
    refused(lambda: read_word_table(tmp_path / "w.csv"), what="several columns 'onset'")


WRITTEN = ["he", 'said "hi', '"', "a, b", "10,000", "null"]


@pytest.mark.parametrize("suffix, sep", [("csv", ","), ("tsv", "\t")])
@pytest.mark.parametrize("quoting", [0, 1, 2])
def test_word_tables_as_pandas_writes_them(tmp_path, suffix, sep, quoting):
    onset = 0.5 * np.arange(6)
    frame = pd.DataFrame(dict(onset=onset, offset=onset + 0.25, text=WRITTEN))
    path = tmp_path / f"w.{suffix}"
    frame.to_csv(path, sep=sep, index=False, quoting=quoting)
    words = read_word_table(path)
    assert words.text == tuple(WRITTEN) and words.onset.tolist() == onset.tolist()
    assert bool(words.notes) == (suffix == "tsv")


def test_a_lone_quote_in_a_table_with_tabs_is_a_letter(tmp_path):
    (tmp_path / "w.tsv").write_text('onset\toffset\ttext\n0\t1\t"\n1\t2\thi"\n2\t3\t5"x\n')
    words = read_word_table(tmp_path / "w.tsv")
    assert words.text == ('"', 'hi"', '5"x') and not words.notes


def test_word_table_in_milliseconds(tmp_path):
    rows = "".join(f"{120 + 300 * i},{300 + 300 * i},w{i}\n" for i in range(40))
    (tmp_path / "w.csv").write_text("onset,offset,text\n" + rows)
    error = refused(lambda: read_word_table(tmp_path / "w.csv"), ClockError, file="w.csv")
    assert "300 s" in error.found and "1000 times" in error.found


def test_word_table_without_the_column(tmp_path):
    (tmp_path / "w.csv").write_text("start,stop,word\n0,1,a\n")
    refused(
        lambda: read_word_table(tmp_path / "w.csv"), found="start, stop, word", expected="onset"
    )


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize(
    "text, error, told",
    [
        ("[]", SplitError, dict(what="holds no split")),
        ("5", SplitError, dict(what="holds no split")),
        ("null", SplitError, dict(what="holds no split")),
        ("[{}]", SplitError, dict(what="holds no split")),
        ('{"train": []}', SplitError, dict(found="train")),
        ('{"tuning": 5}', SplitError, dict(place="tuning", found="5")),
        ('{"tuning": null}', SplitError, dict(place="tuning")),
        ('{"tuning": {"a": 1}}', SplitError, dict(place="tuning")),
        ('{"tuning": "lion"}', SplitError, dict(expected="('lion',)")),
        ('{"tuning": [1, 2]}', SplitError, dict(place="tuning")),
        ('{"tuning": [["lion"]]}', SplitError, dict(place="tuning")),
        ('{"tuning": [" "]}', SplitError, dict(place="tuning")),
        ('{"tuning": ["\\ud800"]}', SplitError, dict(place="tuning")),
        ('{"shared": 5}', SplitError, dict(place="shared")),
        ('{"test": ["lion", "lion"]}', SplitError, dict(what="twice", place="test")),
        ('{"test": ["lion"], "tuning": ["lion"]}', SplitError, dict(what="overlap", found="lion")),
        (
            '{"tuning_participants": ["p1"], "held_out_participants": ["p1"]}',
            SplitError,
            dict(what="has tuned the model"),
        ),
    ],
)
def test_files_that_are_no_split(tmp_path, text, error, told):
    (tmp_path / "s.json").write_text(text)
    refused(lambda: Split.load(tmp_path / "s.json"), error, file="s.json", **told)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"tuning": [' + "1" * 5000 + "]}", "{", ""])
def test_a_split_file_that_is_no_json(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(DataError) as caught:
        Split.load(tmp_path / "s.json")
    assert str(tmp_path) in str(caught.value.file)


def test_tuning_and_encoding_may_share_where_it_says_why(tmp_path):
    split = Split(tuning=["lion"], encoding=["lion"], shared="as in the paper")
    assert Split.load(split.save(tmp_path / "s.json")) == split
    refused(lambda: replace(split, test=["lion"]).check([]), SplitError, what="does not exist")


# ---------------------------------------------------------------- stories, recordings


def spoken(n=100, step=0.5, scale=1.0):
    onset = (0.12 + step * np.arange(n)) * scale
    return Events(onset, onset + 0.2 * scale, [f"w{i}" for i in range(n)])


@pytest.mark.parametrize(
    "words, clock, phones, what",
    [
        (spoken(scale=1000), regular_clock(120, 2.0, 1.0), None, "not in seconds"),
        (spoken(step=15), regular_clock(60, 2.0, 1.0), None, "next to nothing"),
        (spoken(), regular_clock(30, 2000.0, 1.0), None, "TRs of a story are not in seconds"),
        (spoken(), Clock(2000.0 * np.arange(30), 2.0), None, "TRs of a story are not in seconds"),
    ],
)
def test_milliseconds_for_seconds(words, clock, phones, what):
    refused(lambda: Story("s", "en", words, clock, phones), ClockError, what=what, place="'s'")


def test_the_ratio_of_a_story_and_its_run_is_named():
    words, clock = spoken(step=15), regular_clock(60, 2.0, 1.0)
    error = refused(lambda: Story("s", "en", words, clock), ClockError)
    assert "8.0% of the words, which last 12.6 times as long" in error.found


def test_a_run_that_covers_a_part_is_said_by_the_data_set():
    story = Story("s", "en", spoken(), regular_clock(5, 2.0, 1.0))
    assert story.notes == ("the TRs cover 20% of the words",)
    data = Dataset("d", {"s": story}, {}, notes=("first",))
    assert data.notes == ("first", "s: the TRs cover 20% of the words")
    assert replace(data, name="e").notes == data.notes


@pytest.mark.parametrize(
    "tag, language, joined",
    [
        ("zh", "zh", True),
        ("zh-TW", "zh", True),
        ("zh-Hant-HK", "zh", True),
        ("cmn-Hans-CN", "zh", True),
        ("zh-yue", "yue", True),
        ("zh-min-nan", "nan", True),
        ("zh-min-nan-Hant-TW", "nan", True),
        ("zh-min-nan-Latn", "nan", False),
        ("zh-hakka", "hak", True),
        ("zh-cdo", "cdo", True),
        ("zh-guoyu", "zh", True),
        ("min", "min", False),
        ("yue-HK", "yue", True),
        ("ja-JP", "ja", True),
        ("zh-Latn", "zh", False),
        ("en-GB", "en", False),
        ("es-419", "es", False),
        ("ko", "ko", False),
    ],
)
def test_tags_of_languages(tag, language, joined):
    assert (language_of(tag), joins_without_blanks(tag)) == (language, joined)
    assert Story("s", tag, spoken(), regular_clock(30, 2.0, 1.0)).language == tag


def test_a_tag_that_names_several_languages():
    "`zh-min` is Southern, Eastern, Northern, Central or Pu-Xian Min: none of them is Mandarin."
    assert language_of("zh-min") not in ("zh", "min")
    story = Story("s", "en", spoken(), regular_clock(30, 2.0, 1.0))
    for tag in ("zh-min", "zh-min-TW"):
        refused(lambda: replace(story, language=tag), ParameterError, found=repr(tag))


@pytest.mark.parametrize("tag", ["English", "zh_TW", "", "z", "ZH"])
def test_what_is_no_tag(tag):
    story = Story("s", "en", spoken(), regular_clock(30, 2.0, 1.0))
    refused(lambda: replace(story, language=tag), ParameterError, found=repr(tag))


def test_log_whose_triggers_do_not_match_the_responses(tmp_path):
    (tmp_path / "tale.report").write_text(
        "".join(f"{2.0045 * i:.6f} trigger\n" for i in range(306)) + "10.03 sound-start\n"
    )
    story = Story("tale", "en", WORDS, read_scanner_log(tmp_path / "tale.report").clock())
    error = refused(
        lambda: Recording(
            "UTS01", story, np.zeros((291, 2), np.float32), SPACE, source="UTS01/tale.hf5"
        ),
        ClockError,
        found="291 rows",
        expected="306 TRs",
        file="UTS01/tale.hf5",
        place=str(tmp_path / "tale.report"),
        next_step="10 + 5 trim",
    )
    assert "UTS01" in error.what and "'tale'" in error.what
    Recording(
        "UTS01",
        replace(story, clock=story.clock.trimmed(Trim(5, 5, 5))),
        np.zeros((291, 2), np.float32),
        SPACE,
    )


@pytest.mark.parametrize(
    "change, what",
    [
        (dict(responses=np.zeros((9, 2))), "Responses"),
        (dict(responses=np.zeros((8, 3))), "Responses"),
        (dict(repeats=np.zeros((2, 7, 2))), "Repeats"),
        (dict(motion=np.zeros((10, 6))), "Motion"),
    ],
)
def test_arrays_that_do_not_fit(change, what):
    story = Story("tale", "en", Events([0.5], [1.0], ("once",)), regular_clock(8, 2.0))
    refused(
        lambda: Recording("p", story, **{"responses": np.zeros((8, 2)), "space": SPACE, **change}),
        ClockError,
        what=what,
    )


@pytest.mark.parametrize(
    "words, clock, error, what",
    [
        (Events([], [], ()), regular_clock(5, 2.0), DataError, "no words"),
        (
            Events([0.0, np.nan], [1.0, 2.0], ("a", "b")),
            regular_clock(5, 2.0),
            DataError,
            "not numbers",
        ),
        (Events([1.0], [0.5], ("a",)), regular_clock(5, 2.0), DataError, "ends before it starts"),
        (
            Events([5.0, 1.0], [6.0, 2.0], ("a", "b")),
            regular_clock(5, 2.0),
            DataError,
            "run backwards",
        ),
        (Events([5000.0], [6000.0], ("a",)), regular_clock(5, 2.0), ClockError, "do not overlap"),
    ],
)
def test_stories_that_cannot_be(words, clock, error, what):
    refused(lambda: Story("s", "en", words, clock), error, what=what)


def test_small_refusals():
    refused(
        lambda: Story("s", "English", WORDS, regular_clock(9, 2.0)), ParameterError, found="English"
    )
    refused(lambda: Clock([1.0, 1.0], 2.0), ClockError, what="rise")
    refused(lambda: regular_clock(5, 2.0).trimmed(Trim(3, 0, 2)), ClockError, what="no TR")
    refused(lambda: nominal_clock(5), ClockError, what="no TRs")
    refused(lambda: Dataset("d", {}, {"p": {"tale": None}}), what="no story")
    refused(lambda: Space("s", "blob", np.arange(2)), ParameterError, found="blob")
    refused(lambda: Space("s", "voxel", np.arange(2), {"a": np.ones(3, bool)}), what="does not fit")
    refused(lambda: highpass(np.zeros((9, 1)), 2.0, 4.0), ParameterError, what="too short")
    refused(
        lambda: regress_out(np.zeros((9, 1)), np.zeros((8, 1))), ClockError, what="differ in rows"
    )


# ---------------------------------------------------------------- splits


def test_split_refusals(tmp_path):
    story = Story("tale", "en", WORDS, regular_clock(362, 2.0))
    parts = blocks(story, 3, gap_seconds=10)
    refused(
        lambda: Split(tuning=["tale/1"], test=["tale/2"]).check(parts),
        SplitError,
        what="too close",
        found="10.0 s",
        place="'tale/1' in tuning",
    )
    refused(
        lambda: Split(tuning=["tale"], test=["tale/2"]).check(
            [Section("tale", story, np.arange(362)), *parts]
        ),
        SplitError,
        what="overlap",
    )
    refused(
        lambda: Split(test=["other"]).check(parts), SplitError, found="other", expected="tale/1"
    )
    refused(
        lambda: Split(tuning_participants=["a"], held_out_participants=["a"]).check(parts),
        SplitError,
        found="a",
    )
    refused(lambda: Split(test="tale"), SplitError, what="list of names")
    refused(lambda: blocks(story, 40), SplitError, found="40 blocks")
    refused(lambda: story_folds([story], 2), SplitError, found="1 different")
    (tmp_path / "s.json").write_text('{"train": []}')
    refused(lambda: Split.load(tmp_path / "s.json"), SplitError, found="train")


# ---------------------------------------------------------------- Alice


@pytest.fixture
def alice(tmp_path):
    "A folder in the layout of Brennan et al. 2016 with noise for brains; s33 constant, as there."
    rng, responses = np.random.default_rng(0), tmp_path / "responses"
    onset = 20.05 + 0.34 * np.arange(2127)
    write_textgrid(
        tmp_path / "stimuli/a.TextGrid", {"word": Events(onset, onset + 0.25, ["word"] * 2127)}
    )
    for radius in ("6mm", "10mm"):
        (responses / radius).mkdir(parents=True)
    for participant in ("s18", "s33"):
        scale = participant != "s33"
        for radius in ("6mm", "10mm"):
            np.savetxt(
                responses / radius / f"{participant}-timecourses.txt",
                scale * rng.normal(100, 3, (362, 6)),
            )
        for kind in ("rate", "sndpwr"):
            np.savetxt(responses / f"{participant}-{kind}.txt", scale * rng.random(362))
        np.savetxt(responses / f"{participant}-rp_x.txt", rng.normal(size=(372, 6)))
    np.savetxt(
        responses / "sept18-generic-predictors-under-hrf-with-logfrqhal.txt", rng.random((372, 12))
    )
    return tmp_path


def test_the_all_zero_participant_is_refused_by_name(alice):
    error = refused(
        lambda: load_alice2016(alice, participants=["s18", "s33"]),
        what="participant s33 are constant",
        file="s33-timecourses.txt",
        found="all zeros",
        next_step="leave this participant out",
    )
    assert "LATL" in error.place
    dataset = load_alice2016(alice)
    assert dataset.participants == ("s18",) and "s33" in dataset.notes[0]
    refused(lambda: load_alice_predictors(alice, ["s33"]), what="word-rate file")
    assert [f["severity"] for f in check_alice2016(alice)] == ["warning"] * 3 + ["note"]


@pytest.mark.parametrize(
    "name, change, what",
    [
        (
            "6mm/s18-timecourses.txt",
            lambda t: "\n".join(t.splitlines()[:-1]),
            "wrong number of rows",
        ),
        ("6mm/s18-timecourses.txt", lambda t: t.replace(" ", "\n", 1), "wrong number of columns"),
        ("6mm/s18-timecourses.txt", lambda t: "nan" + t[t.index(" ") :], "not finite"),
        ("6mm/s18-timecourses.txt", lambda t: "x" + t[1:], "not a number"),
        ("s18-rp_x.txt", lambda t: "\n".join(t.splitlines()[10:]), "wrong number of rows"),
    ],
)
def test_damaged_alice_tables(alice, name, change, what):
    path = alice / "responses" / name
    path.write_text(change(path.read_text()))
    refused(lambda: load_alice2016(alice), what=what, file=path.name)
    findings = check_alice2016(alice)
    assert (
        any(f["severity"] == "error" and what in f["what"] for f in findings)
        and "0 usable" in findings[-1]["what"]
    )


def test_alice_folders_that_are_not_there(alice, tmp_path):
    refused(lambda: load_alice2016(alice / "no"), MissingData, next_step="BRAINTUNE_DATA")
    refused(lambda: load_alice2016(alice, participants=["s99"]), found="s99", expected="s18")
    refused(lambda: load_alice2016(alice, radius="7mm"), ParameterError, found="7mm")
    (alice / "responses/s18-rp_x.txt").rename(alice / "responses/moved.txt")
    refused(lambda: load_alice2016(alice), what="one movement file", place="s18")
    next((alice / "stimuli").glob("*")).unlink()
    refused(lambda: load_alice2016(alice), MissingData, what="transcript")
    assert check_alice2016(alice)[0]["severity"] == "error"
