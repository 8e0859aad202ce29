"""The fuzz harness: `python tests/fuzz/run.py --inputs 30000 --seed 1 --out table.csv`."""

import argparse
import csv
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUTCOMES = (
    "typed",
    "right",
    "noted",
    "undetectable",
    "bare",
    "hang",
    "memory",
    "silent_wrong",
    "harness",
    "absent",
)
WRONG = ("bare", "hang", "memory", "silent_wrong", "harness")
LIMIT, MEMORY, GROWTH = 10.0, 3 * 2**30, 2**30  # s; bytes of address space; bytes resident
CACHED = ("nifti", "gifti", "hdf5_lebel")  # targets of which the product keeps a converted copy
COLUMNS = ("commit", "seed", "target", "index", "file", "operators", "outcome", "valid", "detail")


def arguments(words=None):
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--inputs", type=int, default=4500, help="how many, spread evenly over the targets"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    parser.add_argument(
        "--out", type=Path, help="table of outcomes; table.inputs.csv beside it lists every input"
    )
    parser.add_argument(
        "--target", action="append", help="one target; repeat for more (default: all)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument(
        "--root", type=Path, default=HERE.parents[1], help="checkout whose package is read"
    )
    parser.add_argument(
        "--only", type=int, help="one input of one target, in this process, told at length"
    )
    parser.add_argument("--keep", type=Path, help="with --only: folder that keeps the input")
    parser.add_argument("--operators", action="store_true", help="print the operators, and stop")
    parser.add_argument(
        "--show", type=int, default=40, help="kinds of wrong outcome that are printed"
    )
    return parser.parse_args(words)


def prepare(root, folder):
    "Settings that must stand before the package is imported."
    os.environ |= dict(
        OMP_NUM_THREADS="1", MPLBACKEND="Agg", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
    )
    os.environ |= dict(
        TRANSFORMERS_VERBOSITY="critical", BRAINTUNE_CACHE=str(Path(folder) / "cache")
    )
    sys.path[:0] = [str(Path(root).resolve()), str(HERE)]


def commit_of(root):
    "Short hash of a checkout, with a plus where its package has changes."

    def git(*words):
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True
        ).stdout.strip()

    return git("rev-parse", "--short=9", "HEAD") + (
        "+" if git("status", "--porcelain", "braintune_nb") else ""
    )


# ---- one input


def difference(a, b):
    "Where two plain values differ, in words; None where they are the same."
    try:
        return first_difference(a, b)
    except RecursionError:  # lists in lists in lists
        return None if a == b else "$: somewhere deep inside"


def first_difference(a, b, at="$"):
    "Where two plain values differ, a level at a time."
    import numpy as np

    if isinstance(a, dict) and isinstance(b, dict):
        return object_difference(a, b, at)
    arrays = isinstance(a, np.ndarray) or isinstance(b, np.ndarray)
    if arrays and all(isinstance(x, (np.ndarray, list, tuple)) for x in (a, b)):
        return array_difference(np.asarray(a), np.asarray(b), at)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return list_difference(a, b, at)
    return None if same_leaf(a, b) else f"{at}: {a!r:.60} for {b!r:.60}"


def object_difference(a, b, at):
    if set(a) != set(b):
        return f"{at}: keys {sorted(map(repr, set(a) ^ set(b)))[:4]}"
    found = (first_difference(a[key], b[key], f"{at}.{key!s:.40}") for key in b)
    return next(filter(None, found), None)


def list_difference(a, b, at):
    if len(a) != len(b):
        return f"{at}: {len(a)} items for {len(b)}"
    found = (first_difference(x, y, f"{at}[{i}]") for i, (x, y) in enumerate(zip(a, b)))
    return next(filter(None, found), None)


def same_leaf(a, b):
    "Whether two numbers or texts are the same; 1 is 1.0, and neither is True."
    import numpy as np

    number = (int, float, np.integer, np.floating)
    if isinstance(a, (bool, np.bool_)) or isinstance(b, (bool, np.bool_)):
        return type(a) in (bool, np.bool_) and type(b) in (bool, np.bool_) and bool(a) == bool(b)
    if isinstance(a, number) and isinstance(b, number):
        try:
            return a == b or (a != a and b != b) or abs(a - b) <= 1e-9 * max(abs(a), abs(b))
        except OverflowError:  # a whole number beyond floats
            return False
    return type(a) is type(b) and a == b


def array_difference(a, b, at):
    import numpy as np

    if a.shape != b.shape:
        return f"{at}: shape {a.shape} for {b.shape}"
    if a.dtype.kind not in "fiub" or b.dtype.kind not in "fiub":
        return None if a.dtype.kind == b.dtype.kind and (a == b).all() else f"{at}: other content"
    with np.errstate(all="ignore"):
        x, y = a.astype(float), b.astype(float)
        close = np.isclose(x, y, rtol=2e-6, atol=1e-30, equal_nan=True) | (np.abs(x - y) < 1e-37)
    if close.all():
        return None
    i = np.unravel_index(int((~close).argmax()), close.shape)
    place = f"{at}{list(map(int, i))}: {x[i]:.6g} for {y[i]:.6g}"
    return f"{place}, {int((~close).sum())} of {close.size} differ"


def out_of_memory(error):
    "Whether an error, or its cause, says that there was no memory."
    while error is not None:
        words = str(error).lower()
        if (
            isinstance(error, MemoryError)
            or "allocate memory" in words
            or "unable to allocate" in words
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def names_the_file(error, draft):
    "Whether the message names the file, or a file of its folder."
    said = str(error)
    return str(draft.root) in said or draft.path.name in said


def told(error):
    "An error in one line."
    import traceback

    frames = [f for f in traceback.extract_tb(error.__traceback__) if "braintune_nb" in f.filename]
    where = f" in {Path(frames[-1].filename).stem}.{frames[-1].name}" if frames else ""
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}{where}: {line:.160}"


def peak(reset=False):
    "Resident memory, in bytes, at its highest since the last reset."
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def product(draft, targets):
    "(reading, outcome so far, detail) of the product."
    before = peak(reset=True)
    try:
        reading, outcome, detail = (
            targets.read(draft.target, draft.path, draft.root, draft.context),
            "",
            "",
        )
    except targets.Renamed:
        raise
    except targets.Absent:
        return None, "absent", "the package has no reader of this"
    except Exception as error:
        reading, detail = None, told(error)
        typed = isinstance(error, targets.base_error())
        if typed and names_the_file(error, draft):
            outcome = "typed"
        elif typed:
            outcome, detail = "bare", "names no file: " + detail
        else:
            outcome = "memory" if out_of_memory(error) else "bare"
    if peak() - before > GROWTH:
        outcome, detail = "memory", f"{(peak() - before) / 2**30:.1f} GB for a small file; {detail}"
    return reading, outcome, detail


def against(reading, verdict, base, draft, names, targets):
    "(outcome, detail) of a reading that ended without an error."
    plain, other = base and base.value, f"invalid: {verdict.reason}"
    if verdict.valid:
        other = difference(*targets.same_form(draft, reading.value, verdict.value, plain))
    if other is None:
        untouched = base is None or difference(reading.value, plain) is None
        return ("right" if untouched or not names else "undetectable"), ""
    new = [n for n in reading.notes if base is None or n not in base.notes]
    if new and names:
        return "noted", f"{other} | note: {new[0]}"
    return "silent_wrong", other


def warm(draft, chosen, targets):
    "Let the product read the untouched file at the same place first: what it kept must not serve."
    spoilt = draft.root.with_name("spoilt")
    shutil.rmtree(spoilt, ignore_errors=True)
    draft.root.rename(spoilt)
    shutil.copytree(chosen.root, draft.root)
    try:
        targets.read(draft.target, draft.path, draft.root, draft.context)
    except Exception:
        pass
    shutil.rmtree(draft.root)
    spoilt.rename(draft.root)


def one(seeds, bases, settings, index, folder, say=lambda phase: None):
    "Make, read and judge one input: a row of the list of inputs."
    import mutate
    import targets

    say("making")
    chosen, draft, names = mutate.mutate(seeds, settings["seed"], index, folder)
    if draft.target in CACHED:
        warm(draft, chosen, targets)
    row = dict(settings, target=draft.target, index=index, file=chosen.name, valid="")
    row |= dict(operators=" + ".join(names))
    say("reading")
    found = product(draft, targets)
    say("judging")
    row |= judged(found, bases[chosen.name], chosen, draft, names)
    shutil.rmtree(os.environ["BRAINTUNE_CACHE"], ignore_errors=True)
    return row | dict(detail=" ".join(row["detail"].split())[:300])


def judged(found, base, chosen, draft, names):
    "Outcome and detail of what the product found, and whether the judge thinks the file valid."
    import judge
    import targets

    (reading, outcome, detail), told = found, {}
    if outcome in ("typed", "") and (reading is not None or names == ()):
        context = dict(draft.context, original=chosen.root / chosen.file)
        verdict = getattr(judge, f"judge_{draft.target}")(draft.path, context)
        told["valid"] = int(verdict.valid)
        if reading is not None:
            outcome, detail = against(reading, verdict, base, draft, names, targets)
    if not names and outcome == "typed":
        outcome, detail = "bare", "an untouched file is refused: " + detail
    return told | dict(outcome=outcome, detail=detail)


# ---- workers


def work(pipe, seeds, bases, settings, indices, folder):
    "A worker: one input after the other, each announced before it is read."
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.environ["BRAINTUNE_CACHE"] = str(Path(folder) / "cache")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for index in indices:
        try:
            row = one(
                seeds, bases, settings, index, folder, lambda phase: pipe.send((index, phase, None))
            )
        except Exception as error:
            row = dict(
                settings, target=seeds[0].target, index=index, outcome="harness", detail=told(error)
            )
        pipe.send((index, "done", row))
    pipe.close()


class Worker:
    "A process with its own folder; it is replaced when it hangs or dies."

    def __init__(self, context, seeds, bases, settings, indices, folder):
        self.given = (seeds, bases, settings)
        self.context, self.folder, self.left = context, Path(folder), list(indices)
        self.tried = set()
        self.start()

    def start(self):
        "Go on with what is left."
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.pipe, theirs = self.context.Pipe(duplex=False)
        self.process = self.context.Process(
            target=work, args=(theirs, *self.given, self.left, self.folder), daemon=True
        )
        self.process.start()
        theirs.close()
        self.index, self.phase, self.since, self.spent = None, "starting", time.monotonic(), 0.0

    def processor(self):
        "Seconds of processor time that the process has used."
        try:
            words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return float("inf")
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def is_late(self):
        "Whether an input has had its time: on a busy machine, time that the process could use."
        waited = time.monotonic() - self.since
        return waited > 6 * LIMIT or (waited > LIMIT and self.processor() - self.spent > LIMIT / 2)

    def stop(self):
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def lost(self, outcome, detail):
        "The row of an input that took its worker along; the next worker begins behind it."
        index = self.left[0] if self.index is None else self.index
        phase = self.phase
        self.stop()
        seeds, _, settings = self.given
        if phase not in ("reading", "starting"):
            outcome, detail = "harness", f"{detail} while {phase}"
        self.left = [i for i in self.left if i != index]
        row = dict(settings, target=seeds[0].target, index=index, outcome=outcome, detail=detail)
        row |= described(self.given, index, self.folder)
        self.start()
        return row

    def late(self):
        "Give a slow input a second try, since the machine may be busy; then a row."
        index = self.index
        if index in self.tried:
            return self.lost("hang", f"more than {LIMIT:g} s")
        self.tried.add(index)
        self.stop()
        self.start()
        return None

    def heard(self):
        "The next row, if there is one."
        try:
            index, phase, row = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return (
                self.lost("bare", f"the process died: exit code {self.process.exitcode}")
                if self.left
                else None
            )
        self.index, self.phase, self.since = index, phase, time.monotonic()
        self.spent = self.processor()
        if row is not None:
            self.left.remove(index)
            self.index = None
        return row


def described(given, index, folder):
    "Which seed and operators an input has."
    import mutate

    try:
        chosen, _, names = mutate.mutate(given[0], given[2]["seed"], index, Path(folder) / "again")
    except Exception:
        return {}
    return dict(file=chosen.name, operators=" + ".join(names))


def run_target(seeds, bases, settings, indices, folder, workers):
    "Yield a row for every index of one target."
    import multiprocessing
    from multiprocessing.connection import wait

    context = multiprocessing.get_context("fork")
    parts = [indices[i::workers] for i in range(workers)]
    crew = [
        Worker(context, seeds, bases, settings, p, Path(folder) / f"worker{i}")
        for i, p in enumerate(parts)
        if p
    ]
    while crew:
        ready = wait([w.pipe for w in crew], timeout=1)
        for worker in list(crew):
            row = None
            if worker.pipe in ready:
                row = worker.heard()
            elif worker.is_late():
                row = worker.late()
            if row is not None:
                yield row
            if not worker.left:
                worker.stop()
                crew.remove(worker)


# ---- the whole


def plain_readings(seeds, targets):
    "What the product says about every untouched seed: {name: Reading or None}."
    found = {}
    for seed in seeds:
        path = seed.root / seed.file if seed.file else seed.root
        try:
            found[seed.name] = targets.read(seed.target, path, seed.root, seed.context)
        except targets.Renamed:
            raise
        except Exception:
            found[seed.name] = None
    return found


def done_before(path, settings):
    "Rows of an interrupted run; another commit or seed is refused."
    if not path or not path.exists():
        return []
    with open(path, newline="", encoding="utf8") as f:
        rows = list(csv.DictReader(f))
    other = {(r["commit"], r["seed"]) for r in rows} - {(settings["commit"], str(settings["seed"]))}
    if other:
        raise SystemExit(
            f"{path} holds inputs of another commit or seed {sorted(other)}: give another --out"
        )
    return [r | dict(index=int(r["index"])) for r in rows]


def clean(row):
    "A row for the list: no control characters in it."
    plain = lambda text: "".join(c if c.isprintable() else "?" for c in text)
    return {k: plain(str(row.get(k, ""))) for k in COLUMNS}


def table_of(rows, settings, chosen):
    "Outcomes by target, with a last row of all."
    lines = []
    for target in [*chosen, "all"]:
        counts = Counter(r["outcome"] for r in rows if target in (r["target"], "all"))
        mine = {outcome: counts[outcome] for outcome in OUTCOMES}
        about = {k: settings[k] for k in ("commit", "seed")}
        lines.append(about | dict(target=target, inputs=sum(mine.values())) | mine)
    return lines


def show(lines, rows, limit):
    "Print the table and the kinds of wrong outcome."
    names = ("target", "inputs", *OUTCOMES)
    widths = [max(len(n), 14 if n == "target" else 6) for n in names]
    for line in [dict(zip(names, names)), *lines]:
        first, *rest = (str(line[n]) for n in names)
        print("  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]))
    kinds = sorted(wrong_kinds(rows).items(), key=lambda kind: -len(kind[1]))
    for (outcome, target, operators, detail), mine in kinds[:limit]:
        place = f"{target} #{mine[0]['index']}"
        print(f"{len(mine):5} {outcome:12} {place}: {operators or '-'}: {detail}")


def wrong_kinds(rows):
    "(outcome, target, operators, beginning of the detail) -> rows of that kind."
    kinds = {}
    for r in rows:
        if r["outcome"] in WRONG:
            kind = r["outcome"], r["target"], r.get("operators", ""), r["detail"][:70]
            kinds.setdefault(kind, []).append(r)
    return kinds


def unexplained(rows):
    "Operators that made other valid files and give no reason why nobody could see it."
    from mutate import OPERATORS

    found = Counter()
    for r in rows:
        if r["outcome"] == "undetectable":
            names = r["operators"].split(" + ")
            if not any(OPERATORS[n].blind for n in names):
                found[r["target"], r["operators"]] += 1
    return found


def operator_list():
    "All operators, family by family, as markdown."
    from mutate import FAMILIES
    from operators import OPERATORS

    lines = []
    for family in dict.fromkeys(o.family for o in OPERATORS.values()):
        targets = [t for t, weights in FAMILIES.items() if family in weights]
        whose = "all targets" if len(targets) == len(FAMILIES) else ", ".join(targets)
        lines += [
            "",
            f"### {family} ({whose})",
            "",
            "| operator | beyond any reader, because |",
            "|---|---|",
        ]
        mine = [o for o in OPERATORS.values() if o.family == family]
        lines += [f"| {o.name} | {o.blind or '(must be seen)'} |" for o in mine]
    return "\n".join(lines[1:]) + "\n"


def tell_one(options, settings, seeds, bases, folder):
    "One input, at length."
    kept = options.keep or Path(folder) / "kept"
    kept.mkdir(parents=True, exist_ok=True)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    row = one(seeds, bases, settings, options.only, kept)
    for name in COLUMNS:
        print(f"{name}: {row[name]}")
    if options.keep:
        print(f"input: {kept / 'input'}")


def all_rows(chosen, have, share, settings, folder, workers):
    "Yield a row for each of the `share` inputs of every target but those that are there."
    import seeds as seed_files
    import targets

    for target in chosen:
        left = [i for i in range(share) if (target, i) not in have]
        seeds = seed_files.make_seeds(Path(folder) / "seeds", target) if left else []
        bases = plain_readings(seeds, targets)
        yield from run_target(seeds, bases, settings, left, folder, workers)


def keep_rows(rows, listed, total, found):
    "Add rows to a list as they are found, to its file if there is one, and to a bar."
    from tqdm import tqdm

    tqdm.monitor_interval = 0
    with open(listed or os.devnull, "a", newline="", encoding="utf8") as log:
        writer = csv.DictWriter(log, COLUMNS, lineterminator="\n")
        if not rows:
            writer.writeheader()
        with tqdm(total=total, initial=len(rows), unit="input", mininterval=2) as bar:
            for row in found:
                rows.append(clean(row) | dict(index=row["index"]))
                writer.writerow(clean(row))
                log.flush()
                bar.set_postfix_str(row["target"])
                bar.update()


def write_table(path, lines):
    with open(path, "w", newline="", encoding="utf8") as f:
        out = csv.DictWriter(f, list(lines[0]), lineterminator="\n")
        out.writeheader()
        out.writerows(lines)


def whole_run(options, settings, chosen, folder):
    "Read all inputs, go on where an earlier run was killed, print the table and return it."
    listed = options.out and options.out.with_suffix(".inputs.csv")
    rows, share = done_before(listed, settings), -(-options.inputs // len(chosen))
    have = {(r["target"], r["index"]) for r in rows}
    found = all_rows(chosen, have, share, settings, folder, options.workers)
    keep_rows(rows, listed, share * len(chosen), found)
    lines = table_of(rows, settings, chosen)
    if options.out:
        write_table(options.out, lines)
    show(lines, rows, options.show)
    for (target, operators), n in unexplained(rows).items():
        print(f"{n} undetectable without a reason: {target}: {operators}")
    return lines


def main(words=None):
    "The command; returns the table."
    options = arguments(words)
    settings = dict(commit=commit_of(options.root), seed=options.seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        prepare(options.root, folder)
        import nilearn.image  # noqa: F401  a slow import that readers put off: not the input's time
        import seeds as seed_files
        import targets

        if options.operators:
            return print(operator_list(), end="")
        chosen = options.target or list(seed_files.MAKERS)
        if options.only is None:
            return whole_run(options, settings, chosen, folder)
        seeds = seed_files.make_seeds(Path(folder) / "seeds", chosen[0])
        return tell_one(options, settings, seeds, plain_readings(seeds, targets), folder)


if __name__ == "__main__":
    main()
