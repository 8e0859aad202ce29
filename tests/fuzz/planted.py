"""How much the harness sees: `python tests/fuzz/planted.py --out tests/fuzz/tables/planted.csv`.

Each fault of planted.json is put into a copy of the package, and the harness reads that copy:
first a hundred inputs, then more, until one is wrong that is not wrong with the package as it is.
`--prove` only shows, for each fault, a file of which the planted package says something else.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FAULTS = json.loads((HERE / "planted.json").read_text(encoding="utf8"))
COLUMNS = ("number", "target", "file", "breaks", "seed", "inputs", "wrong", "outcomes")
COLUMNS += ("first", "operators", "found")
STEPS = 100, 300, 1000  # inputs


def arguments(words=None):
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    parser.add_argument("--only", type=int, action="append", help="number of a fault; repeatable")
    parser.add_argument("--out", type=Path, help="table of results")
    parser.add_argument("--root", type=Path, default=HERE.parents[1], help="checkout to copy")
    parser.add_argument("--prove", action="store_true", help="only show that answers change")
    return parser.parse_args(words)


def copied(root, folder):
    "A copy of the package of a checkout, in a folder of its own."
    shutil.rmtree(folder, ignore_errors=True)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(root) / "braintune_nb", folder / "braintune_nb", ignore=skip)
    return folder


def plant(fault, copy):
    "Put one fault into a copy; its text must stand there once."
    path = copy / "braintune_nb" / fault["file"]
    source = path.read_text(encoding="utf8")
    if source.count(fault["old"]) != 1:
        raise SystemExit(f"{fault['file']} holds {source.count(fault['old'])} times {fault['old']}")
    path.write_text(source.replace(fault["old"], fault["new"]), encoding="utf8")
    return copy


# ---- is it a fault?


def answer(fault, copy, folder):
    "What the package in `copy` says about the spoilt file of a fault, as text."
    command = [sys.executable, __file__, "--answer", str(copy), str(folder), json.dumps(fault)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return done.stdout


def say_answer(copy, folder, told):
    "Spoil the file, read it, and print what was read: in a process of its own."
    import numpy as np
    import run

    fault, folder = json.loads(told), Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    run.prepare(copy, folder)
    import seeds
    import targets

    made = {s.name: s for s in seeds.make_seeds(folder / "seeds", fault["target"])}
    seed = made[fault["seed"]]
    path = seed.root / seed.file
    exec(fault["spoil"], dict(path=path))
    np.set_printoptions(threshold=sys.maxsize)
    try:
        print(targets.read(seed.target, path, seed.root, seed.context))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")


def prove(faults, root, folder):
    "Show what clean and planted package say about one file of each fault."
    alike = []
    for number, fault in faults:
        clean = answer(fault, copied(root, folder / "clean"), folder / "read")
        planted = answer(fault, plant(fault, copied(root, folder / "planted")), folder / "read")
        changed = first_change(clean, planted)
        print(f"{number:3} {fault['target']}: {changed or 'the same'}")
        alike += [] if changed else [number]
    return alike


def first_change(a, b):
    "The words around the first place where two texts differ; '' where they are the same."
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    start = max(0, at - 15)
    show = lambda text: " ".join(text[start : at + 65].split()) or "nothing"
    return "" if a == b else f"{show(a)}  ->  {show(b)}"


# ---- does the harness see it?


def wrong_inputs(target, copy, seed, inputs):
    "Number of an input -> its row, of what the harness calls wrong; goes on from fewer inputs."
    from run import WRONG

    out = copy / f"{target}.csv"
    words = ["--root", copy, "--target", target, "--inputs", inputs]
    words += ["--seed", seed, "--workers", 1, "--out", out]
    command = [sys.executable, HERE / "run.py", *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    rows = read_rows(out.with_suffix(".inputs.csv"))
    return {int(row["index"]): row for row in rows if row["outcome"] in WRONG}


def tried(fault, seed, plain, copy):
    "What is wrong with the fault and not without it, and after how many inputs it was looked at."
    for inputs in STEPS:
        clean = wrong_inputs(fault["target"], plain, seed, inputs)
        planted = wrong_inputs(fault["target"], copy, seed, inputs)
        new = [planted[i] for i in sorted(planted) if i not in clean]
        if new:
            break
    return new, inputs


def result(number, fault, seed, new, inputs):
    "A row of the table."
    first = new[0] if new else dict(index="", operators="")
    outcomes = sorted({row["outcome"] for row in new})
    row = {name: fault[name] for name in ("target", "file", "breaks")}
    row |= dict(number=number, seed=seed, inputs=inputs, wrong=len(new))
    row |= dict(outcomes=" ".join(outcomes), first=first["index"])
    return row | dict(operators=first["operators"], found=int(bool(new)))


def results(faults, options, folder):
    "Yield a row for each fault, which is printed too."
    plain = copied(options.root, folder / "clean")
    for number, fault in faults:
        copy = plant(fault, copied(options.root, folder / "planted"))
        new, inputs = tried(fault, options.seed, plain, copy)
        row = result(number, fault, options.seed, new, inputs)
        print({k: v for k, v in row.items() if k != "file"}, flush=True)
        yield row


def main(words=None):
    "The command; returns the rows."
    options = arguments(words)
    chosen = [(i, f) for i, f in enumerate(FAULTS, 1) if i in (options.only or range(1, 1000))]
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        if options.prove:
            return prove(chosen, options.root, Path(folder))
        rows = list(results(chosen, options, Path(folder)))
    print(f"{sum(row['found'] for row in rows)} of {len(rows)} faults are found")
    if options.out:
        write_rows(options.out, rows)
    return rows


def write_rows(path, rows):
    "Write rows in order of their faults; those of other faults stay."
    held = {row["number"]: row for row in read_rows(path)} if path.exists() else {}
    held |= {str(row["number"]): row for row in rows}
    with open(path, "w", newline="", encoding="utf8") as f:
        table = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(held[number] for number in sorted(held, key=int))


def read_rows(path):
    with open(path, newline="", encoding="utf8") as f:
        return list(csv.DictReader(f))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        say_answer(*sys.argv[2:])
    else:
        main()
