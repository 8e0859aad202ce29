"""Judges of the fuzz harness: strict readers of every format, written without the product's code.

`judge_<target>(path, context) -> Verdict`; see the section 'Judges' of README.md.
"""

import difflib
import math
import re

import numpy as np
from judge_base import (
    HEX64,
    NUMBER,
    PEOPLE,
    ROLES,
    Refused,
    Verdict,
    decode,
    integral,
    judge,
    need,
    number,
    numbers,
    plain_hash,
    plain_lines,
    read_bytes,
    real,
    split_of,
    strict_json,
)
from judge_files import (
    judge_annot,
    judge_gifti,
    judge_hdf5_bilingual,
    judge_hdf5_lebel,
    judge_nifti,
    judge_sound,
)
from judge_release import judge_release

# ---- TextGrid: Praat reads free-standing numbers, quoted strings and flags; all else is comment

TOKEN = re.compile(
    rf"""(?P<string>"(?:[^"]|"")*+"(?=\s|\Z))
    |(?P<number>{NUMBER.pattern}(?=\s|\Z))
    |(?P<flag><\S*)
    |(?P<comment>![^\n]*)
    |(?P<key>(?:xmin|xmax|text|mark|name|class|number|time|size)(?=\s|\Z))
    |\[(?P<index>[0-9]{{1,9}})\]:?(?=\s|\Z)
    |(?P<word>\S+)""",
    re.X,
)
TINY = 1e-6  # s, by which neighbours may overlap or leave a gap
MOST = 700_000  # values in a TextGrid


class _Tokens:
    "Values of a TextGrid with the key and the index that stand before each, if any."

    def __init__(self, text):
        self.rows, self.at = [], 0
        key = index = None
        end = 0
        for match in TOKEN.finditer(text):
            kind, word = match.lastgroup, match.group()
            if kind == "key":
                key = word
            elif kind == "index":
                index = int(match["index"])
            elif kind == "comment":
                end = match.end()
            elif kind == "word":
                quote = word[0] == '"'
                need(not quote, "a label is not closed, or its quotes are not doubled")
                need(word[0] not in "+-.0123456789", f"{word[:20]!r} is not a decimal number")
            else:
                self.rows.append((kind, word, key, index))
                key, index, end = None, None, match.end()
                need(len(self.rows) <= MOST, "too many values")
        need(not text[end:].strip(), "data after the last value")

    def take(self, kind, what, keys=(), index=None):
        "The next value: of this kind, and with no key or index that says otherwise."
        need(self.at < len(self.rows), f"the file ends before {what}")
        found, word, key, place = self.rows[self.at]
        need(found == kind, f"a {found} in place of {what}")
        need(key is None or not keys or key in keys, f"the key {key!r} in place of {what}")
        need(index is None or place is None or place == index, f"{what} has the number {place}")
        self.at += 1
        if kind == "string":
            return word[1:-1].replace('""', '"')
        return number(word, what) if kind == "number" else word

    def count(self, what, keys=()):
        "A whole number."
        need(self.at < len(self.rows), f"the file ends before {what}")
        need(re.fullmatch("[0-9]{1,9}", self.rows[self.at][1]), f"{what} is not a whole number")
        return int(self.take("number", what, keys))


def _tier(tokens, position):
    "Name, kind, bounds and rows of one tier with a declared size."
    kind = tokens.take("string", "a tier's class", ("class",), position)
    need(kind in ("IntervalTier", "TextTier"), f"the class {kind!r} of a tier")
    name = tokens.take("string", "a tier's name", ("name",))
    start = tokens.take("number", "a tier's xmin", ("xmin",))
    end = tokens.take("number", "a tier's xmax", ("xmax",))
    rows, point = [], kind == "TextTier"
    for i in range(1, tokens.count("a tier's size", ("size",)) + 1):
        onset = tokens.take("number", "a time", ("number", "time") if point else ("xmin",), i)
        offset = onset if point else tokens.take("number", "an xmax", ("xmax",))
        label = tokens.take("string", "a label", ("mark", "text") if point else ("text",))
        rows.append((onset, offset, label))
    return name, kind, (start, end), rows


def _chronological(tokens, bounds):
    "All headers, then rows that name their tier."
    heads = []
    for _ in range(tokens.count("the number of tiers")):
        need(tokens.at < len(tokens.rows), "fewer tiers than declared")
        kind = tokens.take("string", "a tier's class")
        need(kind in ("IntervalTier", "TextTier"), f"the class {kind!r} of a tier")
        name = tokens.take("string", "a tier's name")
        limits = (tokens.take("number", "a tier's xmin"), tokens.take("number", "a tier's xmax"))
        heads.append((name, kind, limits, []))
    while tokens.at < len(tokens.rows):
        index = tokens.count("the number of a tier")
        need(1 <= index <= len(heads), f"a row of tier {index}, which does not exist")
        onset = tokens.take("number", "a time")
        point = heads[index - 1][1] == "TextTier"
        offset = onset if point else tokens.take("number", "the end of an interval")
        heads[index - 1][3].append((onset, offset, tokens.take("string", "a label")))
    return heads


def _check_tier(name, kind, limits, rows, bounds):
    "A tier lies within the grid; intervals follow one another without a gap; points rise."
    start, end = limits
    need(bounds[0] - TINY <= start < end <= bounds[1] + TINY, f"bounds of tier {name!r}")
    check = _check_points if kind == "TextTier" else _check_intervals
    check(name, start, end, rows)


def _check_points(name, start, end, rows):
    "Points rise, within their tier."
    times = [row[0] for row in rows]
    need(all(a < b for a, b in zip(times, times[1:])), f"points of {name!r} do not rise")
    inside = not times or start - TINY <= times[0] and times[-1] <= end + TINY
    need(inside, f"a point outside tier {name!r}")


def _check_intervals(name, start, end, rows):
    "Intervals follow one another from the start of their tier to its end."
    need(rows, f"interval tier {name!r} without an interval")
    need(all(a < b for a, b, _ in rows), f"an interval of {name!r} that ends before it starts")
    edges = [(start, rows[0][0]), *((a[1], b[0]) for a, b in zip(rows, rows[1:]))]
    need(all(abs(a - b) <= TINY for a, b in edges), f"a gap or an overlap in tier {name!r}")
    need(abs(rows[-1][1] - end) <= TINY, f"tier {name!r} does not reach its end")


def _bounds(tokens):
    "Whether the grid is in the chronological form, and its bounds in s."
    kind = tokens.take("string", "the file type")
    if kind == "ooTextFile":
        need(tokens.take("string", "the object class", ("class",)) == "TextGrid", "object class")
    else:
        need(kind == "Praat chronological TextGrid text file", "file type")
    bounds = (tokens.take("number", "xmin", ("xmin",)), tokens.take("number", "xmax", ("xmax",)))
    need(bounds[0] < bounds[1], "xmax is not after xmin")
    return kind != "ooTextFile", bounds


def _tiers(tokens, chronological, bounds):
    "Name, kind, bounds and rows of every tier."
    if chronological:
        return _chronological(tokens, bounds)
    need(tokens.take("flag", "<exists>") == "<exists>", "no flag <exists>")
    count = tokens.count("the number of tiers", ("size",))
    return [_tier(tokens, i) for i in range(1, count + 1)]


@judge
def judge_textgrid(path, context):
    "Value: xmin, xmax, kinds {tier: class}, tiers {tier: [(onset, offset, label), ...]}; s."
    text = plain_lines(decode(read_bytes(path), context.get("encoding")))
    head = re.match(r'\s*(?:File type = )?"(ooTextFile|Praat chronological TextGrid[^"]*)"', text)
    need(head, "the header of a TextGrid is missing")
    tokens = _Tokens(text)
    chronological, bounds = _bounds(tokens)
    tiers = _tiers(tokens, chronological, bounds)
    need(tokens.at == len(tokens.rows), "more values than the tiers declare")
    need(tiers, "no tiers")
    need(len({tier[0] for tier in tiers}) == len(tiers), "two tiers of one name")
    for tier in tiers:
        _check_tier(*tier, bounds)
    _check_unit(bounds[1], context)
    return {
        "xmin": bounds[0],
        "xmax": bounds[1],
        "kinds": {name: kind for name, kind, _, _ in tiers},
        "tiers": {name: rows for name, _, _, rows in tiers},
    }


def _check_unit(last, context):
    "Milliseconds for seconds, or the transcript of another story."
    told = context.get("duration")
    need(not told or 0.1 < last / told < 10, f"times up to {last:g}, a story of {told} s")


# ---- scanner logs

UNEVEN = 0.25  # share of a TR by which a gap may differ from the usual one
KNOWN = ("trigger", "first trigger", "init-trigger", "sound-start", "sound-stop", "START:", "END:")


def _log_kind(label):
    "'trigger', 'start', 'stop' or 'other' of a log's label; what is nearly one of them is refused."
    low, first = label.lower(), label.split(maxsplit=1)[0] if label else ""
    need(first, "a line without a label")
    if low in ("trigger", "init-trigger") or low.startswith("first"):
        return "trigger"
    if low == "sound-start" or label.startswith("START"):
        return "start"
    if low == "sound-stop" or label.startswith("END"):
        return "stop"
    if first in ("word", "Finished:"):
        return "other"
    for known in KNOWN:
        for said in (first[:20], label[:20]):
            like = difflib.SequenceMatcher(None, said, known).ratio() >= 0.75
            need(not like, f"the label {label[:20]!r} is almost {known!r}")
    return "other"


def _log_events(text):
    "Times by kind, as they stand in the log."
    found = {"trigger": [], "start": [], "stop": [], "other": []}
    kinds, others = {}, 0
    for line in plain_lines(text).split("\n"):
        words = line.strip().split(maxsplit=1)
        if not words:
            continue
        seconds, label = number(words[0], "a time"), words[1] if len(words) > 1 else ""
        if label not in kinds:
            kinds[label] = _log_kind(label)
            others += kinds[label] == "other" and not label.startswith("word")
            need(others < 300, "hundreds of different labels")
        first = label.lower().startswith(("first", "init-trigger")) and kinds[label] == "trigger"
        need(not first or not found["trigger"], "a first trigger that is not the first")
        found[kinds[label]].append(seconds)
    return found


def _usual_gap(triggers, context):
    "Median gap of triggers that are even, rise and are as many as the caller knows; s."
    need(len(triggers) >= 2, "fewer than two triggers")
    gaps = np.diff(triggers)
    need((gaps > 0).all(), "triggers run backwards")
    usual = float(np.median(gaps))
    uneven = np.abs(gaps - usual) > UNEVEN * usual
    need(not uneven.any(), f"uneven triggers: a gap of {gaps[uneven.argmax()]:.4g} s")
    need(0.1 <= usual <= 20, f"a TR of {usual:g} s")
    if context.get("tr"):
        need(abs(usual - context["tr"]) <= 0.02 * context["tr"], f"a TR of {usual:g} s")
    if context.get("trs"):
        need(len(triggers) == context["trs"], f"{len(triggers)} triggers, not {context['trs']}")
    return usual


def _sound_times(found, triggers, usual):
    "Start and stop of the sound (None where it is not told), which lie where the scan does; s."
    need(len(found["start"]) == 1, f"{len(found['start'])} labels that start the sound")
    need(len(found["stop"]) <= 1, "several labels that stop the sound")
    start, stop = found["start"][0], found["stop"][0] if found["stop"] else None
    near = triggers[0] - 60 <= start < triggers[-1]
    need(near, "the sound starts outside the scan")
    need(stop is None or stop > start, "the sound stops before it starts")
    length = triggers[-1] + usual - triggers[0]
    need(stop is None or stop < triggers[-1] + length, "the sound stops long after the scan")
    return start, stop


@judge
def judge_scanner_log(path, context):
    "Value: triggers (T,), sound_start, sound_stop (None where not told), tr (mean gap); s."
    found = _log_events(decode(read_bytes(path), context.get("encoding")))
    triggers = np.array(found["trigger"])
    usual = _usual_gap(triggers, context)
    start, stop = _sound_times(found, triggers, usual)
    tr = float(np.diff(triggers).mean())
    return {"triggers": triggers, "sound_start": start, "sound_stop": stop, "tr": tr}


# ---- tables of words and of confounds


def _csv_rows(text, delimiter):
    "Cells of every line by RFC 4180; quotes only around a whole cell, doubled inside it."
    if '"' not in text:
        return [line.split(delimiter) for line in text.split("\n")]
    mark = re.escape(delimiter)
    cell = re.compile(rf'(?:"((?:[^"]|"")*+)"|([^"{mark}\n]*+))({mark}|\n|\Z)')
    rows, at, count = [[]], 0, 0
    while True:
        match = cell.match(text, at)
        need(match, f"a quote that is not closed or stands inside a cell, line {len(rows)}")
        quoted = match[1]
        need(quoted is None or "\n" not in quoted, f"a cell over several lines, line {len(rows)}")
        rows[-1].append(match[2] if quoted is None else quoted.replace('""', '"'))
        at, count = match.end(), count + 1
        need(count < 400_000, "too many cells")
        if match[3] == "\n":
            rows.append([])
        elif match[3] == "":
            return rows


def _tsv_rows(text, quoting):
    "Cells of every line; a cell in quotes has two readings unless `quoting` ('csv', 'none') says."
    if quoting == "csv":
        return _csv_rows(text, "\t")
    rows = [line.split("\t") for line in text.split("\n")]
    if quoting == "none" or '"' not in text:
        return rows
    try:
        other = _csv_rows(text, "\t")
    except Refused:
        return rows  # not CSV, so quotes are characters
    need(other == rows, "cells of a .tsv in quotes: part of the text, or around it?")
    return rows


def _table_of(path, context):
    "Rows of cells without empty lines."
    suffix = path.suffix.lower()
    delimiter = context.get("delimiter") or ("\t" if suffix == ".tsv" else ",")
    text = plain_lines(decode(read_bytes(path), context.get("encoding")))
    need(text.count("\n") < 300_000, "too many rows")
    tsv = delimiter == "\t"
    rows = _tsv_rows(text, context.get("quoting")) if tsv else _csv_rows(text, delimiter)
    rows = [row for row in rows if row != [""]]
    need(rows, "no rows")
    need(len({len(row) for row in rows}) == 1, "rows of different numbers of cells")
    return rows


def _word_columns(rows, context):
    "Positions of onset, offset and text; a header is taken off `rows`."
    columns = context.get("columns", ("onset", "offset", "text"))
    named = any(isinstance(c, str) for c in columns)
    if context.get("header", named):
        names = [cell.strip() for cell in rows.pop(0)]
        need(len(set(names)) == len(names), "two columns of one name")
        need(all(c in names for c in columns if isinstance(c, str)), "a column is missing")
        columns = [names.index(c) if isinstance(c, str) else c for c in columns]
    need(rows and max(columns) < len(rows[0]), "no words, or too few columns")
    return columns


def _word(row, columns):
    "Onset and offset in s, and text, of one row."
    onset, offset = (number(row[c].strip(" "), "a time") for c in columns[:2])
    text = row[columns[2]]
    need(text.strip(), "a word without text")
    need(onset <= offset, "a word ends before it starts")
    return onset, offset, text


@judge
def judge_word_table(path, context):
    "Value: words [(onset, offset, text), ...] in order; s."
    rows = _table_of(path, context)
    columns = _word_columns(rows, context)
    words, last = [], -math.inf
    for row in rows:
        words.append(_word(row, columns))
        need(words[-1][0] >= last - context.get("tolerance", 0.0), "times run backwards")
        last = words[-1][0]
    _check_unit(max(word[1] for word in words), context)
    return {"words": words}


def _check_column_names(names):
    "Each column has a plain name of its own."
    need(all(name.strip() == name != "" for name in names), "a column without a plain name")
    need(not any(NUMBER.fullmatch(name) for name in names), "numbers in place of names")
    need(len(set(names)) == len(names), "two columns of one name")


@judge
def judge_confounds_tsv(path, context):
    "Value: columns [names], table (T, M) float64; NaN only where row 1 says n/a."
    rows = _table_of(path, {"delimiter": "\t", "quoting": "none", **context})
    names = rows.pop(0)
    _check_column_names(names)
    need(rows, "no rows")
    if context.get("trs"):
        need(len(rows) == context["trs"], f"{len(rows)} rows, not {context['trs']}")
    need(len(rows) * len(names) <= 1_500_000, "too many cells")
    for row in rows[1:]:
        need("n/a" not in row, "n/a after row 1")
    missing = np.array([cell == "n/a" for cell in rows[0]])
    rows[0] = ["0" if cell == "n/a" else cell for cell in rows[0]]
    table = numbers([cell for row in rows for cell in row]).reshape(len(rows), len(names))
    table[0, missing] = math.nan
    return {"columns": names, "table": table}


# ---- JSON files


@judge
def judge_split_json(path, context):
    "Value: the seven fields of a split; lists of names, `shared` a text."
    people = tuple(context.get("people", PEOPLE))
    split = split_of(strict_json(read_bytes(path)), people)
    for i, one in enumerate(ROLES):
        for other in ROLES[i + 1 :]:
            excused = split["shared"] and (one, other) == ("tuning", "encoding")
            both = set(split[one]) & set(split[other])
            need(excused or not both, f"a section in {one} and in {other}")
    both = set(split[people[0]]) & set(split[people[1]])
    need(not both, "a new participant who tuned the model")
    if "sections" in context:
        named = {name for role in ROLES for name in split[role]}
        need(named <= set(context["sections"]), "a section that does not exist")
    return split


@judge
def judge_respdict_json(path, context):
    "Value: counts {story: TRs before any trim}."
    counts = strict_json(read_bytes(path))
    need(isinstance(counts, dict) and counts, "not an object of counts")
    for story, count in counts.items():
        need(story.strip(), "a story without a name")
        need(integral(count), f"the count of {story[:20]!r} is not a whole number")
        need(20 < count < 100_000, f"a story of {count} TRs")
    if "stories" in context:
        need(set(counts) == set(context["stories"]), "other stories than there are")
    if isinstance(context.get("trs"), dict):
        wrong = [s for s, n in context["trs"].items() if counts.get(s) != n]
        need(not wrong, f"counts of other runs: {wrong[:3]}")
    return {"counts": {story: int(count) for story, count in counts.items()}}


RUN_KEYS = frozenset(
    "package git python libraries hardware parameters seed parameters_hash seconds peak_memory_mb "
    "inputs stages sessions".split()
)


def _check_sessions(record):
    sessions = record["sessions"]
    need(isinstance(sessions, list) and sessions, "no sessions")
    for one in sessions:
        need(isinstance(one, dict) and {"began", "seconds", "peak_memory_mb"} <= set(one),
             "a session without its facts")  # fmt: skip
        need(isinstance(one["began"], str) and re.match(r"\d{4}-\d\d-\d\dT", one["began"]),
             "a session without a date")  # fmt: skip
        for key in ("seconds", "peak_memory_mb"):
            need(real(one[key]) and one[key] >= 0, f"{key} of a session")
    total = sum(one["seconds"] for one in sessions)
    need(total - 1 <= record["seconds"] <= total + 60, "seconds differ from those of the sessions")
    peak = max(one["peak_memory_mb"] for one in sessions)
    need(record["peak_memory_mb"] == peak, "peak memory differs from that of the sessions")


def _check_parameters(record):
    "Parameters hash to what is said of them, and hold the seed."
    need(record["parameters_hash"] == plain_hash(record["parameters"]), "parameters and their hash")
    parameters = record["parameters"]
    seed = parameters.get("seed", parameters.get("seeds"))
    need(record["seed"] == seed and type(record["seed"]) is type(seed), "seed and parameters")


@judge
def judge_run_json(path, context):
    "Value: the whole record; its parameters hash to `parameters_hash`."
    record = strict_json(read_bytes(path))
    need(isinstance(record, dict), "not an object")
    missing = sorted(RUN_KEYS - set(record))
    need(not missing, f"keys are missing: {', '.join(missing)}")
    for key in ("parameters", "inputs", "stages", "libraries", "hardware"):
        need(isinstance(record[key], dict), f"{key} is not an object")
    _check_parameters(record)
    for key in ("seconds", "peak_memory_mb"):
        need(real(record[key]) and record[key] >= 0, f"{key} is not a number from 0")
    for name, found in record["inputs"].items():
        digest = found if isinstance(found, str) else (found or {}).get("sha256", "")
        need(HEX64.fullmatch(digest), f"the hash of input {name[:40]!r}")
    _check_sessions(record)
    return record


ARMS = ("pretrained", "tuned", "permuted", "reduced_rank")
INTERVAL = ("mean", "ci_low", "ci_high")


def _check_numbers(node, place, depth=0):
    "Every interval of a tree of scores is in order; every leaf is a number or null."
    need(depth < 30, "nested too deeply")
    if not isinstance(node, dict):
        need(node is None or real(node), f"{place} is not a number")
        return
    if "mean" in node:
        _check_interval(node, place)
        return
    for key, child in node.items():
        _check_numbers(child, f"{place}.{key}"[-60:], depth + 1)


def _check_interval(node, place):
    "Mean and interval of one leaf are in order."
    for key in INTERVAL:
        need(node.get(key) is None or real(node[key]), f"{place}.{key} is not a number")
    low, mean, high = (node.get(key) for key in ("ci_low", "mean", "ci_high"))
    need(None in (low, mean) or low <= mean, f"{place}: the interval is above its mean")
    need(None in (mean, high) or mean <= high, f"{place}: the interval is below its mean")
    n = node.get("n")
    need(n is None or integral(n) and n > 0, f"{place}.n is not a count")
    need(n is not None or low is None, f"{place}: an interval without n")
    if place.endswith(".raw") and place.startswith("alignment"):
        need(mean is None or -1 <= mean <= 1, f"{place}: a correlation of {mean}")


def _check_arms(summary, context):
    "Every arm that must be there, of which the last needs several people."
    people = summary.get("participants")
    tuned = people.get("tuning") if isinstance(people, dict) else None
    alone = isinstance(tuned, list) and len(tuned) == 1
    arms = context.get("arms", ARMS)  # the last of them needs several people
    for arm in arms:
        lacking = arm not in summary["alignment"] and not (alone and arm == arms[-1])
        need(not lacking, f"the arm {arm} is missing")


def _check_regions(summary):
    "All arms and gains are of the same regions."
    regions = [set(of) if isinstance(of, dict) else None for of in summary["alignment"].values()]
    need(all(r and r == regions[0] for r in regions), "arms with different regions")
    for key in ("gain", "gain_permuted"):
        need(set(summary[key]) == regions[0], f"regions of {key} and of alignment")


@judge
def judge_summary_json(path, context):
    "Value: the whole summary."
    summary = strict_json(read_bytes(path))
    need(isinstance(summary, dict), "not an object")
    for key in ("alignment", "gain", "gain_permuted", "ceiling"):
        need(isinstance(summary.get(key), dict), f"{key} is not an object")
    _check_arms(summary, context)
    _check_regions(summary)
    for key in ("alignment", "gain", "gain_permuted", "gain_arms", "ceiling"):
        _check_numbers(summary.get(key), key)
    for key in ("seconds", "peak_memory_mb"):
        need(real(summary.get(key)) and summary[key] >= 0, f"{key} is not a number from 0")
    return summary


JUDGES = {
    "textgrid": judge_textgrid,
    "scanner_log": judge_scanner_log,
    "word_table": judge_word_table,
    "split_json": judge_split_json,
    "respdict_json": judge_respdict_json,
    "hdf5_lebel": judge_hdf5_lebel,
    "hdf5_bilingual": judge_hdf5_bilingual,
    "nifti": judge_nifti,
    "gifti": judge_gifti,
    "annot": judge_annot,
    "sound": judge_sound,
    "confounds_tsv": judge_confounds_tsv,
    "release": judge_release,
    "run_json": judge_run_json,
    "summary_json": judge_summary_json,
}
__all__ = ["JUDGES", "Verdict", *(f"judge_{target}" for target in JUDGES)]
