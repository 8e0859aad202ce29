"""Files made by hand and what a strict reader says of them: the exact content, or why not."""

import gzip
import hashlib
import io
import json
import struct
import time
import zlib
from base64 import b64encode

import h5py
import nibabel
import numpy as np
import pytest
import soundfile
from judge import JUDGES


def same(a, b):
    "Whether two values are equal, arrays and NaN within them included."
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(
            np.asarray(a), np.asarray(b), equal_nan=np.asarray(a).dtype.kind == "f"
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def verdict(target, folder, name, content, context=None):
    "The judge's verdict on `content`: text, bytes, or a function that writes the path."
    path = folder / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return JUDGES[target](path, context or {})


def accept(target, folder, name, content, expected, context=None):
    found = verdict(target, folder, name, content, context)
    assert found.valid, found.reason
    for key, value in expected.items():
        assert same(found.value[key], value), (key, found.value[key])


def refuse(target, folder, name, content, reason, context=None):
    found = verdict(target, folder, name, content, context)
    assert not found.valid and found.value is None
    assert reason in found.reason, found.reason


# ---- TextGrid

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 3.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "word"
        xmin = 0
        xmax = 3.5
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 1.25
            text = "say ""hi"" ! <now>"
        intervals [2]:
            xmin = 1.25
            xmax = 3.5
            text = "zwölf"
    item [2]:
        class = "TextTier"
        name = "click"
        xmin = 0
        xmax = 3.5
        points: size = 2
        points [1]:
            number = 0.5
            mark = "k"
        points [2]:
            number = 2.75
            mark = ""
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
2
<exists>
1
"IntervalTier"
"word"
0
2
2
0
0.5
"once"
0.5
2
"two
lines"
"""
IN_TIME = """"Praat chronological TextGrid text file"
0 2.5   ! Time domain.
2   ! Number of tiers.
"IntervalTier" "word" 0 2.5
"TextTier" "bell" 0 2.5
1 0 0.75
"once"
2 0.5
"ding"
1 0.75 2.5
"upon"
"""
WORDS = [(0.0, 1.25, 'say "hi" ! <now>'), (1.25, 3.5, "zwölf")]
CLICKS = [(0.5, 0.5, "k"), (2.75, 2.75, "")]


@pytest.mark.parametrize(
    "code", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"]
)
def test_textgrid_long(tmp_path, code):
    tiers = {"word": WORDS, "click": CLICKS}
    expected = {"tiers": tiers, "xmin": 0.0, "xmax": 3.5}
    expected["kinds"] = {"word": "IntervalTier", "click": "TextTier"}
    data = LONG.replace("\n", "\r\n").encode(code)
    context = {"encoding": "latin-1"} if code == "latin-1" else {}
    accept("textgrid", tmp_path, "a.TextGrid", data, expected, context)


def test_textgrid_short_and_chronological(tmp_path):
    rows = [(0.0, 0.5, "once"), (0.5, 2.0, "two\nlines")]
    accept("textgrid", tmp_path, "a.TextGrid", SHORT, {"tiers": {"word": rows}})
    old = SHORT.replace("File type = ", "").replace("Object class = ", "")
    accept("textgrid", tmp_path, "a.TextGrid", old, {"tiers": {"word": rows}})
    rows = {"word": [(0.0, 0.75, "once"), (0.75, 2.5, "upon")], "bell": [(0.5, 0.5, "ding")]}
    accept("textgrid", tmp_path, "a.TextGrid", IN_TIME, {"tiers": rows})


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("xmax = 1.25", "xmax = 1.5", "gap or an overlap"),
        ("xmin = 1.25", "xmin = 1.3", "gap or an overlap"),
        ("xmax = 1.25", "xmax = -1.25", "ends before it starts"),
        ("intervals [2]", "intervals [3]", "has the number 3"),
        ("intervals: size = 2", "intervals: size = 3", "in place of"),
        ("intervals: size = 2", "intervals: size = 1", "in place of"),
        ("intervals: size = 2", "intervals: size = 1.7", "not a whole number"),
        ("points: size = 2", "points: size = 1", "more values"),
        ("points: size = 2", "points: size = 3", "the file ends before"),
        ("size = 2\nitem", "size = 1e999\nitem", "not a whole number"),
        ('"zwölf"', '"zwölf', "not closed"),
        ('"zwölf"', '""zwölf"', "not doubled"),
        ('"zwölf"', '"zwölf" "drei"', "the class"),
        ("xmin = 1.25", "xmax = 1.25", "the key 'xmax'"),
        ("number = 2.75", "number = 0.25", "do not rise"),
        ("number = 2.75", "number = 3.75", "outside"),
        ("number = 2.75", "number = nan", "in place of a time"),
        ('name = "click"', 'name = "word"', "two tiers"),
        ("<exists>", "<absent>", "<exists>"),
        ('"TextTier"', '"Text"', "class"),
        ('mark = ""\n', 'mark = ""\nleft over', "after the last value"),
        ("ooTextFile", "ooBinaryFile", "header"),
        ("zwölf", "zw\x00lf", "NUL"),
    ],
)
def test_textgrid_refused(tmp_path, old, new, reason):
    assert old in LONG
    refuse("textgrid", tmp_path, "a.TextGrid", LONG.replace(old, new, 1), reason)


def test_textgrid_cut_or_in_another_code(tmp_path):
    refuse("textgrid", tmp_path, "a.TextGrid", LONG.encode("latin-1"), "not utf-8")
    refuse("textgrid", tmp_path, "a.TextGrid", LONG.encode("utf-16")[:-301], "not utf-16")
    refuse("textgrid", tmp_path, "a.TextGrid", SHORT[:-12], "ends before a label")
    refuse("textgrid", tmp_path, "a.TextGrid", SHORT[:-2], "not closed")
    long = LONG.replace("xmin = 0", "xmin = -1e999", 1)
    refuse("textgrid", tmp_path, "a.TextGrid", long, "too large")
    refuse("textgrid", tmp_path, "a.TextGrid", LONG, "a story of", {"duration": 3500.0})
    refuse("textgrid", tmp_path, "a.TextGrid", b"", "empty")


# ---- scanner logs

LOG = "0.0 first trigger\n2.0 trigger\n3.1 START: word  -0.006\n3.5 word ONCE\n4.0 trigger\n"
LOG += "6.0 trigger\n7.4 END: Word presentation.\n9.0 Finished: Closing display.\n"


def test_scanner_log(tmp_path):
    expected = dict(triggers=np.array([0.0, 2, 4, 6]), sound_start=3.1, sound_stop=7.4, tr=2.0)
    accept("scanner_log", tmp_path, "a.report", LOG, expected, {"trs": 4, "tr": 2.0})
    accept("scanner_log", tmp_path, "a.report", "0.0 Starting scanner task\n" + LOG, expected)
    text = "1e0\tinit-trigger\r\n2.5\ttrigger\r\n4\ttrigger\r\n1.5\tsound-start"
    expected = dict(triggers=np.array([1, 2.5, 4]), sound_start=1.5, sound_stop=None, tr=1.5)
    accept("scanner_log", tmp_path, "a.report", text, expected)
    text = (
        "0 trigger\n2.004 trigger\n3 sound-start\n4.012 trigger\n5.9 sound-stop\n6.01 trigger\n\n"
    )
    expected = dict(triggers=np.array([0, 2.004, 4.012, 6.01]), sound_start=3.0, sound_stop=5.9)
    accept("scanner_log", tmp_path, "a.report", text.encode("utf-16"), expected)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("4.0 trigger\n", "", "uneven"),
        ("4.0 trigger", "4.9 trigger", "uneven"),
        ("4.0 trigger", "4.0 trigger\n4.004 trigger", "uneven"),
        ("6.0 trigger", "60000.0 trigger", "uneven"),
        ("4.0 trigger", "1.0 trigger", "backwards"),
        ("4.0 trigger", "nan trigger", "not a decimal"),
        ("4.0 trigger", "4_0.0 trigger", "not a decimal"),
        ("4.0 trigger", "1e999 trigger", "too large"),
        ("6.0 trigger", "6.0 trxgger", "almost"),
        ("6.0 trigger", "6.0 rigger", "almost"),
        ("3.1 START", "3.1 STXRT", "almost"),
        ("6.0 trigger", "6.0", "without a label"),
        ("3.1 START: word  -0.006\n", "", "0 labels that start"),
        ("3.5 word ONCE", "3.5 START: word", "2 labels that start"),
        ("3.1 START", "31.0 START", "outside the scan"),
        ("7.4 END", "2.4 END", "stops before"),
        ("4.0 trigger", "4.0 first trigger", "not the first"),
    ],
)
def test_scanner_log_refused(tmp_path, old, new, reason):
    refuse("scanner_log", tmp_path, "a.report", LOG.replace(old, new, 1), reason)


def test_scanner_log_of_another_scan(tmp_path):
    refuse("scanner_log", tmp_path, "a.report", LOG, "4 triggers, not 5", {"trs": 5})
    refuse("scanner_log", tmp_path, "a.report", LOG, "a TR of 2", {"tr": 1.5})
    refuse("scanner_log", tmp_path, "a.report", "0 trigger\n1 sound-start\n", "fewer than two")


# ---- tables

CSV = 'onset,offset,text\n0.5,0.75,Once\n1,1.25,null\n1.5,2.25,"upon, ""a"""\n'
TSV = "onset\toffset\ttext\n0.5\t0.75\t\"\n1.0\t1.25\tb'\n"


def test_word_table(tmp_path):
    words = [(0.5, 0.75, "Once"), (1.0, 1.25, "null"), (1.5, 2.25, 'upon, "a"')]
    accept("word_table", tmp_path, "a.csv", CSV, {"words": words})
    accept("word_table", tmp_path, "a.tsv", TSV, {"words": [(0.5, 0.75, '"'), (1.0, 1.25, "b'")]})
    text = "This,this,21.5,21.75\nis,is,21.25,21.5"
    words = [(21.5, 21.75, "This"), (21.25, 21.5, "is")]
    accept(
        "word_table",
        tmp_path,
        "a.csv",
        text,
        {"words": words},
        dict(columns=(2, 3, 0), tolerance=1),
    )
    quoted = TSV.replace('"', '"""hi"')
    words = [(0.5, 0.75, '"hi'), (1.0, 1.25, "b'")]
    accept("word_table", tmp_path, "a.tsv", quoted, {"words": words}, {"quoting": "csv"})


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Once", '"Once', "not closed"),
        ("Once\n1,1.25,null", '"Once\n1,1.25,null"', "several lines"),
        ("Once", 'On"ce', "inside a cell"),
        ("Once", "Once,more", "different numbers of cells"),
        ("0.75,Once", "0.75", "different numbers of cells"),
        ("0.5,", ",", "not a decimal"),
        ("0.5,", "nan,", "not a decimal"),
        ("0.5,", "inf,", "not a decimal"),
        ("0.5,", "1e400,", "too large"),
        ("0.5,0.75", "0.5,0.25", "ends before"),
        ("1,1.25", "0.4,1.25", "backwards"),
        ("Once", "", "without text"),
        ("offset", "onset", "one name"),
        ("offset", "end", "a column is missing"),
    ],
)
def test_word_table_refused(tmp_path, old, new, reason):
    refuse("word_table", tmp_path, "a.csv", CSV.replace(old, new, 1), reason)


def test_word_table_of_quotes_or_milliseconds(tmp_path):
    refuse("word_table", tmp_path, "a.tsv", TSV.replace('"', '"hi"'), "part of the text, or around")
    refuse("word_table", tmp_path, "a.csv", CSV, "a story of 0.003", {"duration": 0.003})
    refuse("word_table", tmp_path, "a.csv", "onset,offset,text\n", "no words")
    refuse("word_table", tmp_path, "a.csv", CSV.encode() + b"\xff", "not utf-8")


CONFOUNDS = "trans_x\tcsf\tfd\n0.5\t-2e-1\tn/a\n1\t3.25\t0.125\n"


def test_confounds(tmp_path):
    table = np.array([[0.5, -0.2, np.nan], [1, 3.25, 0.125]])
    expected = {"columns": ["trans_x", "csf", "fd"], "table": table}
    accept("confounds_tsv", tmp_path, "a.tsv", CONFOUNDS, expected, {"trs": 2})
    accept(
        "confounds_tsv", tmp_path, "a.tsv", "a\n1.5\n", dict(columns=["a"], table=np.array([[1.5]]))
    )
    text = "a\tb\r\n1\t2\r\n3\t4"
    accept("confounds_tsv", tmp_path, "a.tsv", text, {"table": np.array([[1.0, 2], [3, 4]])})


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("3.25", "n/a", "n/a after row 1"),
        ("3.25", "nan", "not a decimal"),
        ("3.25", "", "not a decimal"),
        ("3.25\t", "", "different numbers"),
        ("3.25\t", "3.25\t\t", "different numbers"),
        ("csf", "trans_x", "one name"),
        ("csf", "", "plain name"),
        (
            "trans_x\tcsf\tfd\n",
            "",
            "numbers in place",
        ),
        ("3.25", "3,25", "not a decimal"),
        ("3.25", '"3.25"', "not a decimal"),
    ],
)
def test_confounds_refused(tmp_path, old, new, reason):
    refuse("confounds_tsv", tmp_path, "a.tsv", CONFOUNDS.replace(old, new, 1), reason)


def test_confounds_of_another_run(tmp_path):
    refuse("confounds_tsv", tmp_path, "a.tsv", CONFOUNDS, "2 rows, not 3", {"trs": 3})
    refuse("confounds_tsv", tmp_path, "a.tsv", "a\tb\n", "no rows")


# ---- JSON

SPLIT = dict(tuning=["a", "b"], validation=[], encoding=["c"], test=["d"], tune_participants=["p1"])
SPLIT |= dict(new_participants=["p2"], shared="")


def test_split(tmp_path):
    accept("split_json", tmp_path, "s.json", json.dumps(SPLIT), SPLIT, {"sections": list("abcd")})
    filled = {**dict.fromkeys(SPLIT, []), "shared": "", "test": ["d"]}
    accept("split_json", tmp_path, "s.json", '{"test": ["d"]}', filled)
    both = {**SPLIT, "encoding": ["a"], "shared": "as in the paper"}
    accept("split_json", tmp_path, "s.json", json.dumps(both), both)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"tuning": ["a"], "test": ["a"]}', "in tuning and in test"),
        ('{"tuning": ["a"], "encoding": ["a"]}', "in tuning and in encoding"),
        ('{"tuning": ["a", "a"]}', "twice"),
        ('{"tuning": "a"}', "not a list"),
        ('{"tuning": [1]}', "not a list of names"),
        ('{"tuning": [""]}', "not a list of names"),
        ('{"training": ["a"]}', "unknown keys"),
        ('{"test": ["a"], "test": ["b"]}', "stands twice in one object"),
        ('{"tune_participants": ["p"], "new_participants": ["p"]}', "who tuned"),
        ('{"shared": true}', "shared"),
        ('["a"]', "not an object"),
        ('{"test": ["a"]', "not JSON"),
        ('{"test": ["a"]}}', "not JSON"),
        ('{"test": ["\\ud800"]}', "surrogate"),
        ("[" * 100_000, "deep"),
    ],
)
def test_split_refused(tmp_path, text, reason):
    refuse("split_json", tmp_path, "s.json", text, reason)


def test_respdict(tmp_path):
    accept("respdict_json", tmp_path, "r.json", '{"souls": 375}', {"counts": {"souls": 375}})
    text = '\ufeff{"a": 30, "b": 31.0}'
    accept("respdict_json", tmp_path, "r.json", text, {"counts": {"a": 30, "b": 31}})
    context = {"trs": {"a": 40}, "stories": ["a", "b"]}
    accept(
        "respdict_json",
        tmp_path,
        "r.json",
        '{"a":40,"b":21}',
        {"counts": dict(a=40, b=21)},
        context,
    )
    refuse("respdict_json", tmp_path, "r.json", '{"a":41,"b":21}', "other runs", context)
    refuse("respdict_json", tmp_path, "r.json", '{"a":40}', "other stories", context)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": "375"}', "not a whole number"),
        ('{"a": 375.5}', "not a whole number"),
        ('{"a": true}', "not a whole number"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1e999}', "too large"),
        ('{"a": 20}', "20 TRs"),
        ('{"a": -375}', "-375 TRs"),
        ('{"a": 375000000}', "TRs"),
        ('{"a": 30, "a": 31}', "twice"),
        ("[375]", "not an object"),
        ("{}", "not an object"),
        ('{"a": ' + "3" * 5000 + "}", "thousands of digits"),
    ],
)
def test_respdict_refused(tmp_path, text, reason):
    refuse("respdict_json", tmp_path, "r.json", text, reason)


def hash_of(value):
    inner = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return hashlib.sha256(f"plain:{inner};".encode()).hexdigest()


def run_record(given, **change):
    record = dict(package="0.1", git="8b45", python="3.11", libraries={}, hardware={}, stages={})
    record |= dict(parameters=given, parameters_hash=hash_of(given), inputs={"a": "0f" * 32})
    record["seed"] = given.get("seed", given.get("seeds"))
    record["sessions"] = [dict(began="2026-01-31T10:00:00+0000", seconds=5.5, peak_memory_mb=80.5)]
    return {**record, "seconds": 5.75, "peak_memory_mb": 80.5, **change}


def test_run(tmp_path):
    for parameters in ({"seed": 3, "layers": [1, 2]}, {"seeds": [0, 1]}, {"name": "ö"}):
        record = run_record(parameters)
        accept("run_json", tmp_path, "run.json", json.dumps(record), record)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"parameters": {"seed": 4}}, "parameters and their hash"),
        ({"parameters": []}, "not an object"),
        ({"seed": 4}, "seed and parameters"),
        ({"seed": 3.0}, "seed and parameters"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": "5"}, "seconds"),
        ({"seconds": 500.0}, "those of the sessions"),
        ({"peak_memory_mb": 81}, "peak memory"),
        ({"inputs": {"a": "0f"}}, "hash of input"),
        ({"sessions": []}, "no sessions"),
        ({"sessions": [{}]}, "without its facts"),
    ],
)
def test_run_refused(tmp_path, change, reason):
    text = json.dumps(run_record({"seed": 3}, **change))
    refuse("run_json", tmp_path, "run.json", text, reason)


def test_run_cut_or_without_a_key(tmp_path):
    record = run_record({"seed": 3})
    refuse("run_json", tmp_path, "run.json", json.dumps(record)[:-9], "not JSON")
    del record["git"]
    refuse("run_json", tmp_path, "run.json", json.dumps(record), "keys are missing: git")


def summary_of(**change):
    scores = lambda m: {"raw": dict(mean=m, ci_low=m - 0.125, ci_high=m + 0.125, n=8)}  # noqa: E731
    arms = dict(pretrained=0.25, tuned=0.375, permuted=0.125, reduced_rank=0.5)
    summary = {"alignment": {arm: {"language": scores(m)} for arm, m in arms.items()}}
    summary |= {"gain": {"language": scores(0.125)}, "gain_permuted": {"language": scores(-0.125)}}
    return {**summary, "ceiling": {"language": 0.5}, "seconds": 3.5, "peak_memory_mb": 99, **change}


def test_summary(tmp_path):
    alone = summary_of(participants={"tuning": ["p"]})
    del alone["alignment"]["reduced_rank"]
    for summary in (summary_of(), summary_of(ceiling={"language": None}), alone):
        accept("summary_json", tmp_path, "s.json", json.dumps(summary), summary)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"mean": 0.375', '"mean": 0.625', "below its mean"),
        ('"mean": 0.375', '"mean": 0.0', "above its mean"),
        ('"mean": 0.375', '"mean": "0.375"', "not a number"),
        ('"mean": 0.375', '"mean": NaN', "not JSON"),
        ('"mean": 0.25', '"mean": 0.25, "mean": 0.25', "twice"),
        ('"n": 8', '"n": -8', "not a count"),
        ('"n": 8', '"m": 8', "without n"),
        ('"permuted"', '"permutxd"', "permuted is missing"),
        ('"gain"', '"gaim"', "gain is not an object"),
        ('"gain": {"language"', '"gain": {"languagx"', "regions"),
        ('"tuned": {"language"', '"tuned": {"languagx"', "different regions"),
        ('"seconds": 3.5', '"seconds": null', "seconds"),
    ],
)
def test_summary_refused(tmp_path, old, new, reason):
    text = json.dumps(summary_of())
    assert old in text
    refuse("summary_json", tmp_path, "s.json", text.replace(old, new, 1), reason)


# ---- HDF5

X = np.arange(24.0).reshape(8, 3) / 4
LONGER = np.arange(66.0).reshape(22, 3) / 8
R = np.stack([X, X + 1])


def hdf5(**arrays):
    def write(path):
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array

    return write


def test_hdf5_lebel(tmp_path):
    context = {"trs": 8, "voxels": 3}
    accept("hdf5_lebel", tmp_path, "a.hf5", hdf5(data=X), {"data": X, "repeats": None}, context)
    both = hdf5(data=X.astype(">f4"), individual_repeats=R)
    accept("hdf5_lebel", tmp_path, "a.hf5", both, {"data": X, "repeats": R}, {"repeats": 2})
    whole = np.arange(24, dtype="i2").reshape(8, 3)

    def packed(path):
        with h5py.File(path, "w", libver="latest") as file:
            file.create_dataset(
                "data", data=whole, chunks=(3, 2), compression="gzip", fletcher32=True
            )

    accept("hdf5_lebel", tmp_path, "a.hf5", packed, {"data": whole.astype(float)})


def odd(make):
    def write(path):
        with h5py.File(path, "w") as file:
            make(file)

    return write


def virtual(file):
    layout = h5py.VirtualLayout((8, 3), "f8")
    layout[:] = h5py.VirtualSource("none.h5", "d", (8, 3))
    file.create_virtual_dataset("data", layout)


def half_written(file):
    file.create_dataset("data", (8, 3), "f4", chunks=(4, 3))[:4] = X[:4]


def with_nan(array, *place):
    changed = array.copy()
    changed[place] = np.nan
    return changed


BAD_HDF5 = [
    (hdf5(responses=X), "no dataset 'data'"),
    (hdf5(data=X, individual_repeatz=R), "unknown datasets"),
    (hdf5(data=X[0]), "1 axes"),
    (hdf5(data=with_nan(X, 2, 1)), "NaN"),
    (hdf5(data=np.where(X == 1, np.inf, X)), "infinity"),
    (hdf5(data=np.where(X == 1, 1e300, X)), "beyond float32"),
    (hdf5(data=X + 1j), "type complex128"),
    (hdf5(data=X.astype("S5")), "type |S5"),
    (hdf5(data=X[:, :0]), "shape"),
    (hdf5(data=X, individual_repeats=R[:, 1:]), "another shape"),
    (hdf5(data=X, individual_repeats=R[:0]), "shape"),
    (hdf5(data=X, individual_repeats=with_nan(R, 1, 2, 0)), "NaN"),
    (hdf5(data=X, individual_repeats=R[[0, 0]]), "are the same"),
    (hdf5(), "holds nothing"),
    (odd(virtual), "virtual"),
    (odd(half_written), "never written"),
    (odd(lambda f: f.create_dataset("data", (8, 3), "f8")), "never written"),
    (
        odd(lambda f: f.create_dataset("data", (8, 3), "f4", external=[("x", 0, 96)])),
        "other files",
    ),
    (odd(lambda f: f.__setitem__("data", h5py.SoftLink("/no"))), "is a link"),
    (odd(lambda f: f.create_group("data")), "not a dataset"),
    (odd(lambda f: f.create_dataset("data", (8, 2**58), "f4", chunks=(1, 99))), "shape"),
]


@pytest.mark.parametrize(("make", "reason"), BAD_HDF5)
def test_hdf5_lebel_refused(tmp_path, make, reason):
    refuse("hdf5_lebel", tmp_path, "a.hf5", make, reason)


def test_hdf5_bytes(tmp_path):
    path = tmp_path / "a.hf5"
    hdf5(data=X)(path)
    data = path.read_bytes()
    refuse("hdf5_lebel", tmp_path, "a.hf5", data[:-1], "by the superblock")
    refuse("hdf5_lebel", tmp_path, "a.hf5", data + b"\0", "by the superblock")
    refuse("hdf5_lebel", tmp_path, "a.hf5", b"\x89HDF", "signature")
    refuse("hdf5_lebel", tmp_path, "a.hf5", data, "8 rows, not 9", {"trs": 9})
    refuse("hdf5_lebel", tmp_path, "a.hf5", data, "3 columns, not 4", {"voxels": 4})
    refuse("hdf5_lebel", tmp_path, "a.hf5", data, "no repeats", {"repeats": 5})


def test_hdf5_bilingual(tmp_path):
    padded = LONGER.copy()
    padded[:10] = padded[-10:] = np.nan
    accept("hdf5_bilingual", tmp_path, "p_trn.hdf", hdf5(souls=LONGER), {"runs": {"souls": LONGER}})
    two = {"avatar": padded, "souls": LONGER[:21]}
    context = {"trs": {"avatar": 22}, "voxels": 3}
    accept("hdf5_bilingual", tmp_path, "p_trn.hdf", hdf5(**two), {"runs": two}, context)
    repeats = {"smoke": np.stack([LONGER, LONGER * 2])}
    accept("hdf5_bilingual", tmp_path, "p_val.hdf", hdf5(**repeats), {"runs": repeats})


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("p_trn.hdf", hdf5(), "holds nothing"),
        ("p_trn.hdf", hdf5(souls=LONGER[None]), "3 axes"),
        ("p_val.hdf", hdf5(souls=LONGER), "2 axes"),
        ("p_trn.hdf", hdf5(souls=with_nan(LONGER, 10, 0)), "NaN"),
        ("p_trn.hdf", hdf5(souls=LONGER[:20]), "only 20 rows"),
        ("p_trn.hdf", hdf5(a=LONGER, b=LONGER[:, 1:]), "different columns"),
        ("p_trn.hdf", hdf5(a=LONGER, b=LONGER), "two runs are the same"),
        ("p_val.hdf", hdf5(a=np.stack([LONGER] * 2)), "two repeats are the same"),
        ("p_trn.hdf", odd(lambda f: f.create_group("souls")), "not a dataset"),
    ],
)
def test_hdf5_bilingual_refused(tmp_path, name, make, reason):
    refuse("hdf5_bilingual", tmp_path, name, make, reason)


# ---- NIfTI

VOLUMES = np.arange(48, dtype="i2").reshape(2, 3, 4, 2, order="F")
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
MASK = np.zeros((2, 3, 4), "u1")
MASK[1, 2, 1:3] = 1, 3


def nifti(values, kind=nibabel.Nifti1Image, tr=1.5, **fields):
    "Bytes of an image with some fields of its header changed."
    image = kind(values, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    if values.ndim == 4:
        image.header["pixdim"][4] = tr
    data = image.to_bytes()
    header = kind.header_class.from_fileobj(io.BytesIO(data), check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + data[len(header.binaryblock) :]


def test_nifti(tmp_path):
    context = {"trs": 2, "tr": 1.5, "shape": (2, 3, 4)}
    expected = dict(data=VOLUMES.astype(float), affine=AFFINE, tr=1.5)
    accept("nifti", tmp_path, "a.nii", nifti(VOLUMES), expected, context)
    accept(
        "nifti",
        tmp_path,
        "a.nii.gz",
        gzip.compress(nifti(VOLUMES.astype(">f4"))),
        expected,
        context,
    )
    expected = {"data": VOLUMES * 0.5 + 1, "affine": AFFINE}
    accept("nifti", tmp_path, "b.nii", nifti(VOLUMES, scl_slope=0.5, scl_inter=1), expected)
    expected = {"data": MASK.astype(int), "affine": AFFINE}
    accept("nifti", tmp_path, "m.nii", nifti(MASK), expected, {"voxels": 2})
    accept("nifti", tmp_path, "m.nii", nifti(MASK.astype("f4"), nibabel.Nifti2Image), expected)


BAD_NIFTI = [
    (nifti(VOLUMES)[:-1], "bytes of data"),
    (nifti(VOLUMES) + b"\0", "bytes of data"),
    (nifti(VOLUMES, dim=[4, 2, 3, 4, 3, 1, 1, 1]), "bytes of data"),
    (nifti(VOLUMES, dim=[4, 2, 3, -4, 2, 1, 1, 1]), "shape"),
    (nifti(VOLUMES, dim=[8, 2, 3, 4, 2, 1, 1, 1]), "8 axes"),
    (nifti(VOLUMES, dim=[5, 2, 3, 4, 1, 2, 1, 1]), "shape (2, 3, 4, 1, 2)"),
    (nifti(VOLUMES, datatype=32), "data type 32"),
    (nifti(VOLUMES, bitpix=8), "bits a voxel"),
    (nifti(VOLUMES, magic=b"ni1"), "magic"),
    (nifti(VOLUMES, scl_slope=np.inf, scl_inter=0), "scaling"),
    (nifti(VOLUMES, vox_offset=353.5), "data from byte"),
    (nifti(VOLUMES, pixdim=[1, 0, 2, 2, 1.5, 1, 1, 1]), "voxel sizes"),
    (nifti(VOLUMES, srow_x=[0, 0, 0, 0]), "affine without volume"),
    (nifti(VOLUMES, srow_x=[np.nan, 0, 0, 0]), "not finite"),
    (nifti(with_nan(VOLUMES.astype("f4"), 1, 1, 1, 1)), "NaN"),
    (nifti(VOLUMES, sizeof_hdr=349), "not a NIfTI header"),
    (nifti(MASK * 0), "empty mask"),
    (nifti(MASK.astype("f4") / 2), "not whole numbers"),
    (nifti(with_nan(MASK.astype("f4"), 0, 0, 0)), "NaN"),
]


@pytest.mark.parametrize(("data", "reason"), BAD_NIFTI)
def test_nifti_refused(tmp_path, data, reason):
    refuse("nifti", tmp_path, "a.nii", data, reason)


def test_nifti_of_another_run_or_damaged_gzip(tmp_path):
    data = nifti(VOLUMES)
    refuse("nifti", tmp_path, "a.nii", data, "2 volumes, not 3", {"trs": 3})
    refuse("nifti", tmp_path, "a.nii", data, "a TR of 1.5 s", {"tr": 2.0})
    refuse("nifti", tmp_path, "a.nii", data, "three axes", {"kind": "mask"})
    packed = gzip.compress(data)
    refuse("nifti", tmp_path, "a.nii.gz", packed[:-3], "stops in the middle")
    refuse("nifti", tmp_path, "a.nii.gz", packed + packed, "bytes of data")
    refuse("nifti", tmp_path, "a.nii.gz", packed + b"\0\0x", "damaged")
    refuse("nifti", tmp_path, "a.nii.gz", packed[:-8] + b"1234" + packed[-4:], "damaged")
    refuse("nifti", tmp_path, "a.nii.gz", data, "not gzip")
    refuse("nifti", tmp_path, "a.nii.gz", gzip.compress(bytes(200 * 2**20), 1), "larger")


def test_gzip_of_several_members_and_axes_of_length_one(tmp_path):
    "RFC 1952: a file is a series of members; gzip's manual: zero bytes behind them are padding."
    data, expected = nifti(VOLUMES), dict(data=VOLUMES.astype(float), affine=AFFINE, tr=1.5)
    two = gzip.compress(data[:400]) + gzip.compress(data[400:]) + bytes(512)
    accept("nifti", tmp_path, "a.nii.gz", two, expected)
    long = nifti(VOLUMES, dim=[5, 2, 3, 4, 2, 1, 1, 1])
    accept("nifti", tmp_path, "a.nii", long, expected)


# ---- GIFTI

TIMES_VERTICES = np.array([[0.5, -2, 3], [4, 5.25, 6]], "f4")


def gifti_attributes(array):
    "What a DataArray says of an array."
    names = {"f": "FLOAT32", "i": "INT32", "u": "UINT8"}
    kind = f"NIFTI_TYPE_{names[array.dtype.kind]}"
    told = dict(Intent="NIFTI_INTENT_TIME_SERIES", DataType=kind)
    told |= dict(ArrayIndexingOrder="RowMajorOrder", Dimensionality=array.ndim)
    told |= {f"Dim{i}": n for i, n in enumerate(array.shape)}
    told |= dict(Encoding="GZipBase64Binary", Endian="LittleEndian", ExternalFileName="")
    return told | {"ExternalFileOffset": ""}


def gifti_body(array, told):
    "The numbers of an array in the encoding that is told."
    if told["Encoding"] == "ASCII":
        return " ".join(map(str, array.ravel().tolist()))
    raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return b64encode(zlib.compress(raw) if told["Encoding"][0] == "G" else raw).decode()


def gifti(*arrays, table="", count=None, **change):
    "GIFTI with one DataArray for each array."
    text = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE GIFTI SYSTEM "gifti.dtd">\n'
    text += f'<GIFTI Version="1.0" NumberOfDataArrays="{count or len(arrays)}">{table}'
    for array in arrays:
        told = gifti_attributes(array) | change
        attributes = " ".join(f'{k}="{v}"' for k, v in told.items())
        text += f"<DataArray {attributes}><Data>{gifti_body(array, told)}</Data></DataArray>"
    return text + "</GIFTI>\n"


TABLE = (
    '<LabelTable><Label Key="0" Red="0">???</Label><Label Key="5">V1 &amp; V2</Label></LabelTable>'
)
KEYS = np.array([5, 0, 5, 5], "i4")


def test_gifti(tmp_path):
    expected = {"data": TIMES_VERTICES.astype(float)}
    context = {"trs": 2, "voxels": 3}
    for encoding in ("GZipBase64Binary", "Base64Binary", "ASCII"):
        text = gifti(*TIMES_VERTICES, Encoding=encoding)
        accept("gifti", tmp_path, "a.func.gii", text, expected, context)
    accept("gifti", tmp_path, "a.func.gii", gifti(TIMES_VERTICES.T.copy()), expected, context)
    text = gifti(KEYS, table=TABLE, Intent="NIFTI_INTENT_LABEL")
    labels = dict(labels=["V1 & V2", "???", "V1 & V2", "V1 & V2"], names={0: "???", 5: "V1 & V2"})
    accept("gifti", tmp_path, "a.label.gii", text, labels, {"voxels": 4})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (gifti(*TIMES_VERTICES, count=3), "2 arrays, 3 told"),
        (gifti(), "no arrays"),
        (gifti(TIMES_VERTICES[0], TIMES_VERTICES[1, :2]), "different size"),
        (gifti(*TIMES_VERTICES, Dim0=4), "12 bytes, 16 told"),
        (gifti(*TIMES_VERTICES, Dim0=2), "larger"),
        (gifti(*TIMES_VERTICES, DataType="NIFTI_TYPE_COMPLEX64"), "data type"),
        (gifti(*TIMES_VERTICES, Endian="Middle"), "byte order"),
        (gifti(TIMES_VERTICES, ArrayIndexingOrder=""), "order of indices"),
        (gifti(*TIMES_VERTICES, Encoding="ExternalFileBinary"), "encoding"),
        (gifti(*TIMES_VERTICES, Intent="NIFTI_INTENT_LABEL"), "the intent"),
        (gifti(with_nan(TIMES_VERTICES[0], 1)), "NaN"),
        (gifti(*TIMES_VERTICES)[:-20], "not XML"),
        (gifti(*TIMES_VERTICES) + "more", "not XML"),
        (gifti(*TIMES_VERTICES).replace("<Data>", "<Data>!", 1), "cannot be read"),
        (
            gifti(*TIMES_VERTICES).replace("<!DOCTYPE", '<!DOCTYPE a [<!ENTITY b "c">]><!'),
            "entities",
        ),
    ],
)
def test_gifti_refused(tmp_path, text, reason):
    refuse("gifti", tmp_path, "a.func.gii", text, reason)


def test_gifti_labels_refused(tmp_path):
    def of(table=TABLE, keys=KEYS, intent="LABEL"):
        return gifti(keys, table=table, Intent=f"NIFTI_INTENT_{intent}")

    for text, reason in [
        (of(keys=KEYS + 1), "without a name: [1, 6]"),
        (of(TABLE.replace('"5"', '"0"')), "stands twice"),
        (of(TABLE.replace("???", "V1 &amp; V2")), "two labels of one name"),
        (of(TABLE.replace("???", "")), "without a name"),
        (of(""), "table"),
        (of(intent="SHAPE"), "the intent"),
        (of(keys=KEYS.astype("f4")), "whole numbers"),
    ]:
        refuse("gifti", tmp_path, "a.label.gii", text, reason)


# ---- annotations


def annot(labels, table, order=None, version=-2, size=None, tag=1, end=b""):
    "Bytes of an .annot: colour numbers, and rows (index, name, r, g, b, flag)."
    ints = lambda *n: struct.pack(f">{len(n)}i", *n)  # noqa: E731
    words = lambda s: ints(len(s) + 1) + s.encode() + b"\0"  # noqa: E731
    order = range(len(labels)) if order is None else order
    data = ints(len(labels), *(n for pair in zip(order, labels, strict=True) for n in pair), tag)
    data += ints(version, size or len(table)) if version < 0 else ints(len(table))
    data += words("colours.txt") + (ints(len(table)) if version < 0 else b"")
    for index, name, *colour in table:
        data += (ints(index) if version < 0 else b"") + words(name) + ints(*colour)
    return data + end


COLOURS = [(0, "unknown", 1, 0, 0, 0), (1, "V1", 0, 2, 0, 0), (2, "A1", 0, 0, 3, 0)]


def test_annot(tmp_path):
    three = {1: "unknown", 512: "V1", 3 << 16: "A1"}
    expected = {"labels": ["V1", "V1", "unknown", "A1"], "names": three}
    accept("annot", tmp_path, "lh.annot", annot([512, 512, 1, 3 << 16], COLOURS), expected)
    accept(
        "annot", tmp_path, "lh.annot", annot([512, 512, 1, 3 << 16], COLOURS, version=1), expected
    )
    accept("annot", tmp_path, "lh.annot", annot([0, 512], COLOURS), {"labels": ["???", "V1"]})


BAD_ANNOT = [
    (annot([512, 513], COLOURS), "without an entry: [513]"),
    (annot([512, 1], COLOURS)[:-2], "stops in the middle"),
    (annot([512, 1], COLOURS, end=b"\0"), "data after the end"),
    (annot([512, 1], COLOURS, order=[1, 0]), "out of order"),
    (annot([512, 1], COLOURS, tag=0), "no table"),
    (annot([512, 1], COLOURS, version=-3), "version 3"),
    (annot([512, 1], COLOURS, size=2), "3 entries in a table of 2"),
    (annot([512], [*COLOURS, (3, "V1", 9, 0, 0, 0)]), "the name 'V1'"),
    (annot([512], [*COLOURS, (3, "V2", 0, 2, 0, 0)]), "one colour"),
    (annot([512], [*COLOURS, (2, "V2", 9, 2, 0, 0)], size=9), "the entry 2"),
    (annot([512], [*COLOURS, (3, "V2", 256, 2, 0, 0)]), "out of range"),
    (annot([], COLOURS), "0 vertices"),
    (struct.pack(">i", 2**31 - 1), "stops in the middle"),
]


@pytest.mark.parametrize(("data", "reason"), BAD_ANNOT)
def test_annot_refused(tmp_path, data, reason):
    refuse("annot", tmp_path, "lh.annot", data, reason)
    refuse("annot", tmp_path, "lh.annot", annot([512], COLOURS), "1 vertices, not 2", {"voxels": 2})


# ---- sound


def wav(raw, kind=1, channels=1, rate=8000, bits=16, riff=0, data=0, more=b"", **head):
    "Bytes of a WAV; `riff` and `data` are added to the sizes that the headers tell."
    block = channels * bits // 8
    about = struct.pack(
        "<HHIIHH", kind, channels, rate, head.get("speed", rate * block), block, bits
    )
    body = b"WAVEfmt " + struct.pack("<I", 16) + about + more
    body += b"data" + struct.pack("<I", len(raw) + data) + raw
    return b"RIFF" + struct.pack("<I", len(body) + riff) + body


PCM = np.array([0, 16384, -32768, 8192, -4096, 1024], "<i2")
SOUND = PCM / 32768


def flac(path):
    soundfile.write(path, PCM.reshape(-1, 2), 16000, "PCM_16", format="FLAC")


def test_sound(tmp_path):
    raw = PCM.tobytes()
    accept("sound", tmp_path, "a.wav", wav(raw), {"samples": SOUND[:, None], "rate": 8000})
    listed = wav(raw, channels=2, more=b"LIST\x03\0\0\0abc\0")
    accept("sound", tmp_path, "a.wav", listed, {"samples": SOUND.reshape(3, 2)})
    floats = wav(SOUND.astype("<f4").tobytes(), kind=3, bits=32)
    accept("sound", tmp_path, "a.wav", floats, {"samples": SOUND[:, None]})
    three = b"".join(int(n * 2**23).to_bytes(3, "little", signed=True) for n in SOUND)
    accept("sound", tmp_path, "a.wav", wav(three, bits=24), {"samples": SOUND[:, None]})
    eight = wav(bytes([128, 192, 0]), bits=8)
    accept("sound", tmp_path, "a.wav", eight, {"samples": np.array([[0], [0.5], [-1]])})
    accept("sound", tmp_path, "a.flac", flac, {"samples": SOUND.reshape(3, 2), "rate": 16000})


WAVE = PCM.tobytes()
LOUD = np.array([0, 1e4, -2e4], "<f4").tobytes()
NANS = np.array([0, np.nan, 0.5], "<f4").tobytes()
AGAINST = (np.sin(np.arange(400)) * 9000).astype("<i2")
TICKS = np.where(np.arange(400) % 50, 0, 9000).astype("<i2")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (wav(WAVE)[:-4], "bytes, 56 by the header"),
        (wav(WAVE) + b"\0\0", "by the header"),
        (wav(WAVE, data=4), "'data' is cut"),
        (wav(WAVE, riff=-36)[:56], "by the header"),
        (wav(WAVE[:-1]), "bytes of samples in blocks"),
        (wav(b"", more=b"junk\4\0\0\0abcd"), "bytes of samples"),
        (wav(WAVE, rate=16000, speed=16000), "sizes in the header"),
        (wav(WAVE, kind=2), "format 2"),
        (wav(WAVE, bits=12), "12 bits"),
        (wav(WAVE, channels=0), "0 channels"),
        (wav(WAVE, rate=2**30), "a rate of 1073741824"),
        (wav(LOUD, kind=3, bits=32), "beyond full scale"),
        (wav(NANS, kind=3, bits=32), "NaN"),
        (wav(np.stack([AGAINST, -AGAINST], 1).tobytes(), channels=2), "cancel"),
        (wav(np.stack([AGAINST, TICKS], 1).tobytes(), channels=2), "no sound"),
        (b"RIFX" + wav(WAVE)[4:], "not a RIFF"),
    ],
)
def test_sound_refused(tmp_path, data, reason):
    refuse("sound", tmp_path, "a.wav", data, reason)


def test_flac_refused(tmp_path):
    flac(tmp_path / "a.flac")
    data = (tmp_path / "a.flac").read_bytes()
    refuse("sound", tmp_path, "a.flac", data[:-5], "", {})
    changed = bytearray(data)
    changed[26] ^= 1
    refuse("sound", tmp_path, "a.flac", bytes(changed), "MD5")
    changed = bytearray(data)
    changed[25] += 1
    refuse("sound", tmp_path, "a.flac", bytes(changed), "")
    refuse("sound", tmp_path, "a.flac", b"\0" + data, "not a FLAC")
    refuse("sound", tmp_path, "a.flac", data, "a rate of 16000 Hz", {"rate": 8000})
    refuse("sound", tmp_path, "a.flac", data, "for a story of", {"duration": 2.0})


# ---- release


def tensors(**arrays):
    "Bytes of a safetensors file of float32."
    header, body = {}, b""
    for name, array in arrays.items():
        raw = array.astype("<f4").tobytes()
        span = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": span}
        body += raw
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + body


HEADS = {"heads.0.weight": np.arange(12.0).reshape(3, 4), "heads.0.bias": np.array([0.5, 1, 2])}
INNER = {"layer.weight": np.array([[1.0, 2], [3, 4]])}
NUMBERS = {
    "columns": ["what", "value", "low", "high"],
    "rows": [dict(what="gain", value=0.5, low=0.25, high=1)],
}


def facts_of(**change):
    settings = dict(outputs=[["P1", 3]], layer=1, delays=[1, 2], heads="participant", dropout=0.0)
    settings |= dict(standardise=True, pooling="mean", head_rank=8)
    facts = dict.fromkeys(
        "data training inputs licence base_model language datasets limits adapter".split()
    )
    inner = dict(name="tiny", model_type="bert", layers=2, width=2, parameters=4, weights="ab" * 32)
    return {**facts, "format": 1, "modality": "text", "settings": settings, "backbone": inner,
            "split": hash_of(SPLIT), **change}  # fmt: skip


def release_files():
    "Name -> content of the files of a whole release that are text or weights."
    config = dict(model_type="bert", num_hidden_layers=2, hidden_size=2)
    space = dict(name="mesh", kind="vertex", rois=["language"], labels=False, participants=["P1"])
    ceiling = dict(participant="P1", name="EV", story="d", repeats=[0, 1])
    return {
        "tuner.json": json.dumps(facts_of()),
        "split.json": json.dumps(SPLIT),
        "numbers.json": json.dumps(NUMBERS),
        "space.json": json.dumps([space]),
        "ceilings.json": json.dumps([ceiling]),
        "README.md": "# A model\n",
        "heads.safetensors": tensors(**HEADS),
        "backbone/config.json": json.dumps(config),
        "backbone/model.safetensors": tensors(**INNER),
    }


def release(path, **change):
    "A whole release; `change` maps a file's name to other bytes, or None to leave it out."
    (path / "backbone").mkdir(parents=True)
    np.savez(path / "space.npz", **{"0_columns": [7, 9, 11], "0_rois": [[True, False, True]]})
    np.savez(path / "ceilings.npz", **{"0": np.array([0.5, np.nan, 0.25])})
    for name, content in {**release_files(), **change}.items():
        (path / name).unlink(missing_ok=True)
        if content is not None:
            (path / name).write_bytes(content.encode() if isinstance(content, str) else content)


def released(tmp_path, **change):
    path = tmp_path / "release"
    release(path, **change)
    return path


def test_release(tmp_path):
    found = JUDGES["release"](released(tmp_path), {})
    assert found.valid, found.reason
    value = found.value
    assert same(value["facts"], facts_of()) and same(value["split"], SPLIT)
    assert same(value["heads"], HEADS) and same(value["numbers"], NUMBERS["rows"])
    assert same(value["spaces"]["P1"]["columns"], np.array([7, 9, 11]))
    assert same(value["spaces"]["P1"]["rois"], np.array([[True, False, True]]))
    assert same(value["ceilings"]["P1"][0], np.array([0.5, np.nan, 0.25]))


def test_hidden_files_are_no_part_of_a_release(tmp_path):
    "The Hub puts .gitattributes beside every model, macOS .DS_Store into every folder it shows."
    more = {".gitattributes": "x", "backbone/.DS_Store": "x", "README.md": b"\xff"}
    found = JUDGES["release"](released(tmp_path, **more), {})
    assert found.valid and same(found.value["heads"], HEADS), found.reason


def test_release_with_less_and_with_hashes(tmp_path):
    optional = [
        "split.json",
        "numbers.json",
        "space.json",
        "space.npz",
        "ceilings.json",
        "ceilings.npz",
    ]
    bare = dict.fromkeys([*optional, "README.md"])
    path = released(tmp_path, **bare, **{"tuner.json": json.dumps(facts_of(split=None))})
    found = JUDGES["release"](path, {})
    assert found.valid, found.reason
    assert (found.value["split"], found.value["spaces"], found.value["numbers"]) == (None, {}, [])
    hashes = {
        p.relative_to(path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in path.rglob("*.*")
    }
    found = JUDGES["release"](path, {"hashes": hashes})
    assert found.valid, found.reason
    (path / "heads.safetensors").write_bytes(tensors(**{k: -v for k, v in HEADS.items()}))
    assert JUDGES["release"](path, {}).value["heads"]["heads.0.bias"].tolist() == [-0.5, -1, -2]
    assert "not what was released" in JUDGES["release"](path, {"hashes": hashes}).reason


BAD_RELEASE = [
    ({"tuner.json": None}, "no tuner.json"),
    ({"tuner.json": json.dumps(facts_of(format="1"))}, "format"),
    (
        {"tuner.json": json.dumps(facts_of(files={"heads.safetensors": "00" * 32}))},
        "not what was",
    ),
    ({"split.json": json.dumps({**SPLIT, "test": ["x"]})}, "split and its hash"),
    ({"split.json": None}, "one place only"),
    ({"heads.safetensors": None}, "no heads"),
    ({"heads.safetensors": tensors(**HEADS)[:-1]}, "outside the file"),
    ({"heads.safetensors": tensors(**HEADS) + b"\0"}, "belong to no tensor"),
    ({"heads.safetensors": tensors(**{"heads.0.bias": np.ones(3)})}, "weight beside"),
    (
        {"heads.safetensors": tensors(**{k: v[:2] for k, v in HEADS.items()})},
        "sizes of the heads",
    ),
    (
        {"heads.safetensors": tensors(**{**HEADS, "heads.0.bias": np.array([1, np.nan, 2])})},
        "NaN",
    ),
    ({"heads.safetensors": struct.pack("<Q", 2**40) + b"{}"}, "length of a safetensors"),
    ({"backbone/config.json": '{"model_type": "gpt2"}'}, "another type"),
    ({"backbone/config.json": '{"model_type": "bert", "num_hidden_layers": 3}'}, "layers"),
    ({"backbone/config.json": '{"model_type": "bert", "auto_map": {}}'}, "foreign code"),
    ({"backbone/pytorch_model.bin": b"x"}, "may run code"),
    ({"backbone/model.safetensors": None}, "no weights"),
    ({"space.npz": None}, "half of space"),
    ({"space.json": "[]"}, "not a list"),
    ({"space.npz": b"PK\x05\x06" + bytes(18)}, "no archive"),
    ({"numbers.json": json.dumps(NUMBERS).replace("0.25", "0.75")}, "outside its interval"),
    ({"extra.json": "{}"}, "unknown files"),
]


@pytest.mark.parametrize(("change", "reason"), BAD_RELEASE)
def test_release_refused(tmp_path, change, reason):
    found = JUDGES["release"](released(tmp_path, **change), {})
    assert not found.valid and reason in found.reason, found.reason


def test_utf_16_without_a_mark_shows_itself_behind_chinese_words(tmp_path):
    text = "onset,offset,text\n0.5,1.25,\u6625\u5929\u6765\u4e86\n1.5,2.0,two\n"
    expected = {"words": [(0.5, 1.25, "\u6625\u5929\u6765\u4e86"), (1.5, 2.0, "two")]}
    for code in ("utf-16-le", "utf-16-be"):
        accept("word_table", tmp_path, "a.csv", text.encode(code), expected)
        words = "\u6625\u5929\n" + text
        refuse("word_table", tmp_path, "a.csv", words.encode(code), "cells")


# ---- whatever the bytes


GOOD = {
    "textgrid": ("a.TextGrid", LONG),
    "scanner_log": ("a.report", LOG),
    "word_table": ("a.csv", CSV),
    "confounds_tsv": ("a.tsv", CONFOUNDS),
    "split_json": ("s.json", json.dumps(SPLIT)),
    "respdict_json": ("r.json", '{"souls": 375}'),
    "run_json": ("run.json", json.dumps(run_record({"seed": 3}))),
    "summary_json": ("s.json", json.dumps(summary_of())),
    "hdf5_lebel": ("a.hf5", hdf5(data=X, individual_repeats=R)),
    "hdf5_bilingual": ("p_trn.hdf", hdf5(souls=LONGER)),
    "nifti": ("a.nii", nifti(VOLUMES)),
    "gifti": ("a.func.gii", gifti(*TIMES_VERTICES)),
    "annot": ("lh.annot", annot([512, 1], COLOURS)),
    "sound": ("a.wav", wav(WAVE)),
}


@pytest.mark.parametrize("target", sorted(GOOD))
def test_no_bytes_make_a_judge_raise(tmp_path, target):
    name, content = GOOD[target]
    assert verdict(target, tmp_path, name, content).valid
    path, rng = tmp_path / name, np.random.default_rng(7)
    good = path.read_bytes()
    for _ in range(25):
        data = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        data = bytes(data[: rng.integers(len(data))] if rng.integers(3) == 0 else data)
        found = verdict(target, tmp_path, name, data)
        assert found.valid == (found.value is not None) == (found.reason == "")
    assert not JUDGES[target](tmp_path, {}).valid
    assert not JUDGES[target](tmp_path / "none", {}).valid


@pytest.mark.parametrize(
    ("target", "name", "content"),
    [
        ("textgrid", "a.TextGrid", LONG + '" "" ' * 900_000),
        ("textgrid", "a.TextGrid", LONG.replace("zwölf", '""' * 2_000_000)),
        ("textgrid", "a.TextGrid", SHORT + "0 " * 2_000_000),
        ("scanner_log", "a.report", "".join(f"{i} {i}trigger\n" for i in range(200_000))),
        ("scanner_log", "a.report", "".join(f"{i} trigger\n" for i in range(350_000))),
        ("word_table", "a.csv", CSV + '"",' * 1_500_000),
        ("word_table", "a.csv", CSV + "9,9,abcdefghij\n" * 290_000),
        ("confounds_tsv", "a.tsv", "a\tb\tc\n" + "1.5\t2.75\t33\n" * 290_000),
        ("respdict_json", "r.json", '{"a":' * 800_000),
        ("gifti", "a.func.gii", gifti(np.zeros(1_200_000, "f4"), Encoding="ASCII")),
    ],
)
def test_no_bytes_make_a_judge_hang(tmp_path, target, name, content):
    path = tmp_path / name
    path.write_text(content)
    assert path.stat().st_size < 6_000_000
    start = time.process_time()
    JUDGES[target](path, {})
    assert time.process_time() - start < 4  # one second on a quiet machine
