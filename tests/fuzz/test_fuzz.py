"""Spoilt files: each gives a typed error, the right value or a note (`GROUPS`: how many)."""

import csv
import subprocess
import sys
from pathlib import Path

import judge
import mutate
import numpy as np
import pytest
import run
import seeds
import targets
from operators import OPERATORS, Skip

HERE = Path(__file__).resolve().parent
CHEAP = ["textgrid", "word_table", "split_json", "gifti", "annot", "sound"]
GROUPS = {  # targets, inputs of each: about two minutes of processor time in all
    "quick": (
        ["textgrid", "scanner_log", "word_table", "confounds_tsv", "split_json", "respdict_json"]
        + ["nifti", "gifti", "annot", "sound", "run_json", "summary_json"],
        300,
    ),
    "slow": (["hdf5_lebel", "hdf5_bilingual", "release"], 100),
}


def whole(made):
    return made[2], mutate.content_of(made[1].root)


@pytest.mark.parametrize("target", CHEAP)
def test_the_same_numbers_give_the_same_input(target, tmp_path):
    files = seeds.make_seeds(tmp_path, target)
    made = [whole(mutate.mutate(files, 5, i, tmp_path / "a")) for i in range(12)]
    again = [whole(mutate.mutate(files, 5, i, tmp_path / "b")) for i in range(12)]
    other = [whole(mutate.mutate(files, 6, i, tmp_path / "b")) for i in range(12)]
    assert made == again and made != other
    assert len({names for names, _ in made}) > 6


def some_change(name, family, folder, files):
    "Whether an operator changes one of the seeds of a target."
    for k in range(24):
        chosen = files[k % len(files)]
        root = folder / name.replace(" ", "_") / str(k)
        run.shutil.copytree(chosen.root, root)
        draft = mutate.Draft(chosen.target, root, root / chosen.file, chosen.context)
        try:
            mutate.apply(draft, OPERATORS[name], np.random.default_rng([k, 11]))
        except Skip:
            continue
        if mutate.content_of(root) != mutate.content_of(chosen.root):
            return True
    return False


IDLE = {  # what has nothing to do in the small files of a target
    "scanner_log": {"drop a quote", "curly quotes"},
    "split_json": {
        "json another number",
        "json a number as text",
        "a number without its point",
        "all decimal commas",
        "no line end at the end",
    },
}
ONE_ENCODING = {"as Latin1", "as a Chinese code page", "decoded wrongly", "as UTF8"}
ONE_ENCODING |= {"composed letters taken apart", "json a list turned round"}
ONE_ENCODING |= {"a whole number with a fraction", "a decimal comma"}


@pytest.mark.parametrize("target", ["textgrid", "scanner_log", "word_table", "split_json", "annot"])
def test_every_operator_changes_something(target, tmp_path):
    files = seeds.make_seeds(tmp_path / "seeds", target)
    names = [(n, f) for f, its in mutate.names_of(target).items() for n in its if f != "whole"]
    idle = {n for n, f in names if not some_change(n, f, tmp_path, files)}
    assert idle - ONE_ENCODING <= IDLE.get(target, set())


def test_the_operators_are_listed():
    assert run.operator_list() in (HERE / "README.md").read_text(encoding="utf8")


@pytest.mark.parametrize("target", list(seeds.MAKERS))
def test_untouched_files_are_right(target, tmp_path, monkeypatch):
    "Every seed is valid to the judge and means what the reader says; notices renamed readers too."
    monkeypatch.setenv("BRAINTUNE_CACHE", str(tmp_path / "cache"))
    files = seeds.make_seeds(tmp_path / "seeds", target)
    for seed in files:
        path = seed.root / seed.file if seed.file else seed.root
        reading = targets.read(target, path, seed.root, seed.context)
        verdict = getattr(judge, f"judge_{target}")(path, seed.context)
        assert verdict.valid, (seed.name, verdict.reason)
        draft = mutate.Draft(target, seed.root, path, seed.context)
        pair = targets.same_form(draft, reading.value, verdict.value, reading.value)
        assert run.difference(*pair) is None, seed.name


def wrong_readers(truth):
    "Outcome -> a reader of word tables that has it."
    error = targets.base_error()

    def refuse(message):
        def reader(path, root, context):
            raise error("Wrong", file=path) if message else error("Wrong")

        return reader

    def shifted(*notes):
        rows = [row | dict(onset=row["onset"] + 0.5) for row in truth.value]
        return lambda path, root, context: targets.Reading(rows, notes)

    return {
        "typed": refuse(True),
        "bare": refuse(False),
        "memory": lambda path, root, context: np.empty(2**40).sum(),
        "hang": lambda path, root, context: [None for _ in iter(int, 1)],
        "noted": shifted("the times look late"),
        "silent_wrong": shifted(),
    }


def test_each_outcome_is_told_from_the_others(monkeypatch, tmp_path):
    "Readers that are wrong in known ways, one for each outcome."
    files = [s for s in seeds.make_seeds(tmp_path / "seeds", "word_table") if s.name == "comma.csv"]
    right = targets.READERS["word_table"]
    truth = targets.read("word_table", files[0].root / files[0].file, files[0].root, {})
    readers = wrong_readers(truth) | {"right": right}
    monkeypatch.setattr(run, "LIMIT", 0.5)
    settings, found = dict(commit="", seed=3), {}
    for outcome, reader in readers.items():
        monkeypatch.setitem(targets.READERS, "word_table", reader)
        rows = run.run_target(files, {"comma.csv": truth}, settings, [1], tmp_path, 1)
        found[outcome] = next(rows)["outcome"]
    assert found.pop("right") in ("typed", "right", "undetectable", "silent_wrong")
    assert found == {outcome: outcome for outcome in found}


@pytest.mark.parametrize("group", list(GROUPS))
def test_nothing_wrong_passes_in_silence(group, tmp_path):
    targets_of, each = GROUPS[group]
    words = [word for target in targets_of for word in ("--target", target)]
    words += ["--inputs", str(each * len(targets_of)), "--out", str(tmp_path / "table.csv")]
    command = [sys.executable, HERE / "run.py", "--seed", "1", "--workers", "1", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with open(tmp_path / "table.inputs.csv", newline="", encoding="utf8") as f:
        rows = list(csv.DictReader(f))
    wrong = [r for r in rows if r["outcome"] in run.WRONG]
    assert not wrong, f"{len(wrong)} of {len(rows)} inputs went wrong\n" + told(wrong[:20])
    assert len(rows) == each * len(targets_of) and not run.unexplained(rows)


def told(rows):
    "Each wrong outcome, and the command that shows it again."
    again = "python tests/fuzz/run.py --seed 1 --target {target} --only {index} --keep FOLDER"
    line = "{outcome}: " + again + "\n    {operators}: {detail}"
    return "\n".join(line.format(**row) for row in rows)
