"""Do the visible tests of a chapter see a fault in its code?

Draws small faults (another comparison, operation, sign, number, condition, order of arguments) in
the functions that chapters export, one at a time, runs the chapter from top to bottom as its reader
would, and says which visible cell failed. Cells marked `hide` run and have no say. Left alone are
texts of errors and warnings, seeds, code that only draws, defaults of parameters, and changes that
cannot matter or always crash (`max(b, a)`, `isinstance(int, x)`).

python tests/mutation.py --seed 0             the draw of that seed in the twelve chapters
python tests/mutation.py --chapter 72 --count 9 --table NEW.csv     others, and another table
python tests/mutation.py --missed             those of the table again that nothing saw
python tests/mutation.py --list --chapter 89  what could be drawn
python tests/mutation.py --rate               the shares in the table; runs nothing

A seed draws no fault that another seed of the table drew before. In the table `first` is the
outcome when the fault was drawn, `outcome` that of the last run, and a `note` that begins with
'equivalent' says why no test can see the fault."""

import argparse
import ast
import csv
import hashlib
import importlib
import json
import os
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat
import psutil

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "mutation.csv"
COLUMNS = "seed chapter function line kind fault first outcome seen_by note".split()
CHAPTERS = ("06", "20", "61", "71", "78", "86", "89", "90", "91", "92", "93", "94")
COMPARISONS = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATIONS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
DRAWS = {"plt", "ax", "axes", "fig", "figure"}  # names in code that only draws
SPEAKS = re.compile(r"\w*Error|_?need|_?refuse\w*|print|warn")  # calls that only say something
SEEDS = {"default_rng", "manual_seed", "seed_everything"}  # calls whose numbers are seeds
UNSEEN = {"seed", "indent", "stacklevel", "figsize"}  # arguments that no result depends on
EITHER = {"min", "max", "minimum", "maximum", "array_equal", "allclose", "isclose"}  # a, b or b, a
CRASH = {"isinstance", "issubclass", "hasattr", "getattr", "setattr"}  # always fail the other way


@dataclass(frozen=True)
class Fault:
    "One fault that can be planted in a chapter."

    cell: int
    function: str
    line: int  # in the cell, from 1
    kind: str
    start: int  # characters of the cell
    end: int
    text: str  # what stands there instead
    told: str  # the line before and after

    def source(self, before: str) -> str:
        "The cell with the fault in it."
        return before[: self.start] + self.text + before[self.end :]


def exported(cell) -> bool:
    "Whether a cell goes into the package."
    return cell.cell_type == "code" and bool(re.search(r"^#\|\s*export[si]?\b", cell.source, re.M))


def flagged(cell, *flags: str) -> bool:
    "Whether a cell has one of these directives."
    return bool(re.search(rf"^#\|\s*({'|'.join(flags)})\s*$", cell.source, re.M))


def called(node: ast.AST) -> str:
    "Last name of what a call calls, or ''."
    function = getattr(node, "func", None)
    return getattr(function, "attr", getattr(function, "id", ""))


def parts(node: ast.AST):
    "Expressions directly below a node that can hold a fault."
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for below in value if isinstance(value, list) else [value]:
            if isinstance(below, ast.AST) and not isinstance(below, ast.stmt):
                yield below


def own_nodes(statement: ast.stmt):
    "Expressions of a statement itself, not of the statements below it."
    waiting = list(parts(statement))
    while waiting:
        node = waiting.pop(0)
        yield node
        speaks = SPEAKS.fullmatch(called(node)) or called(node) in SEEDS
        unseen = isinstance(node, ast.keyword) and node.arg in UNSEEN
        if not (isinstance(node, ast.JoinedStr) or speaks or unseen):
            waiting += parts(node)


def silent(statement: ast.stmt) -> bool:
    "Whether a statement only draws or speaks: a fault there is not one of computing."
    names = {node.id for node in own_nodes(statement) if isinstance(node, ast.Name)}
    says = isinstance(statement, ast.Expr) and SPEAKS.fullmatch(called(statement.value))
    return bool(isinstance(statement, ast.Raise) or says or names & DRAWS)


def statements(tree: ast.Module):
    "(name of the function, statement) of each statement in a function."
    waiting = [("", False, node) for node in tree.body]
    while waiting:
        name, within, node = waiting.pop(0)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            name, within = f"{name}.{node.name}".lstrip("."), isinstance(node, ast.FunctionDef)
        elif within and isinstance(node, ast.stmt) and not silent(node):
            yield name, node
        below = ast.iter_child_nodes(node)
        waiting += [
            (name, within, n) for n in below if isinstance(n, (ast.stmt, ast.ExceptHandler))
        ]


def swapped(node: ast.Call) -> bool:
    """Whether the first two arguments of a call can change places: not where a number would stand
    for a list, which only crashes."""
    if len(node.args) < 2 or called(node) in EITHER | CRASH or SPEAKS.fullmatch(called(node)):
        return False
    first, second = node.args[:2]
    return type(first) is type(second) and ast.dump(first) != ast.dump(second)


def of_texts(node: ast.BinOp | ast.BoolOp) -> bool:
    "Whether an operation joins texts, paths, lists or dictionaries: another one would only crash."
    sides = [node.left, node.right] if isinstance(node, ast.BinOp) else []
    return any(
        isinstance(side, (ast.JoinedStr, ast.List, ast.Tuple, ast.Dict, ast.DictComp))
        or called(side) == "dict"
        or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in sides
    )


def other_operation(node: ast.AST) -> ast.AST | None:
    "A sum, product or logical connection with another operator."
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS and not of_texts(node):
        return ast.BinOp(node.left, OPERATIONS[type(node.op)](), node.right)
    if isinstance(node, ast.BoolOp):
        return ast.BoolOp(OPERATIONS[type(node.op)](), node.values)
    return None


def other_operator(node: ast.AST) -> tuple[str, ast.AST] | None:
    "(kind, what stands there instead) where an operator, a sign or a condition can be wrong."
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        ops = [COMPARISONS[type(node.ops[0])](), *node.ops[1:]]
        return "comparison", ast.Compare(node.left, ops, node.comparators)
    if operation := other_operation(node):
        return "operation", operation
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        return "sign", node.operand
    if isinstance(node, ast.IfExp):
        return "condition", ast.IfExp(node.test, node.orelse, node.body)
    return None


def other(node: ast.AST) -> tuple[str, str] | None:
    "(kind, what stands there instead) of the fault that can be planted at a node, if one can."
    if found := other_operator(node):
        return found[0], f"({ast.unparse(found[1])})"
    if isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        new = not node.value if isinstance(node.value, bool) else node.value + 1
        return "number", repr(new)
    if isinstance(node, ast.Call) and swapped(node):
        args = [node.args[1], node.args[0], *node.args[2:]]
        return "arguments", ast.unparse(ast.Call(node.func, args, node.keywords))
    return None


def offset(lines: list[str], line: int, column: int) -> int:
    "Where a place of the syntax tree lies in the text, in characters."
    before = lines[line - 1].encode()[:column].decode()
    return sum(map(len, lines[: line - 1])) + len(before)


def planted(lines: list[str], node: ast.AST, new: tuple[str, str], where: tuple) -> Fault:
    "The fault that puts something else in the place of a node."
    start = offset(lines, node.lineno, node.col_offset)
    end = offset(lines, node.end_lineno, node.end_col_offset)
    before = "".join(lines[node.lineno - 1 : node.end_lineno])
    at = offset(lines, node.lineno, 0)
    after = before[: start - at] + new[1] + before[end - at :]
    told = " → ".join(" ".join(text.split()) for text in (before, after))
    return Fault(*where, node.lineno, new[0], start, end, new[1], told)


def faults_of(notebook) -> list[Fault]:
    "Every fault that can be planted in a chapter, in order."
    found = []
    for c, cell in enumerate(notebook.cells):
        if not exported(cell):
            continue
        lines = cell.source.splitlines(keepends=True)
        for function, statement in statements(ast.parse(cell.source)):
            for node in own_nodes(statement):
                if new := other(node):
                    found.append(planted(lines, node, new, (c, function)))
    return found


def identity(fault: Fault) -> tuple[str, str, str]:
    "What a fault is known by, wherever its cell stands."
    return fault.function, fault.kind, fault.told


def ranked(faults: list[Fault], chapter: str, seed: int) -> list[Fault]:
    "In the order in which a seed draws them; a change elsewhere in the chapter leaves it alone."
    seen, keys = Counter(), {}
    for fault in faults:
        seen[identity(fault)] += 1
        said = f"{seed} {chapter} {identity(fault)} {seen[identity(fault)]}"
        keys[fault] = hashlib.sha256(said.encode()).hexdigest()
    return sorted(faults, key=keys.get)


def failing_line(source: str, error: BaseException) -> str:
    "The line of a cell at which an error came up."
    frames = traceback.extract_tb(error.__traceback__)
    numbers = [f.lineno for f in frames if f.name == "<module>" and not Path(f.filename).is_file()]
    lines = source.splitlines()
    if numbers and numbers[0] <= len(lines):
        return lines[numbers[0] - 1].strip()
    return type(error).__name__


class Reader:
    "Runs a chapter as its reader would; without the pictures."

    def __init__(self, notebook, path: Path):
        from execnb.shell import CaptureShell

        self.cells, self.shell = notebook.cells, CaptureShell(path)
        self.shell.run("import matplotlib; matplotlib.use('agg')")

    def cell(self, number: int, source: str | None = None) -> str:
        "Run one cell; where it is visible and fails, its name and the line."
        cell = self.cells[number]
        if cell.cell_type != "code" or flagged(cell, "slow", "eval: false"):
            return ""
        source = cell.source if source is None else source
        self.shell.run(source)
        self.shell._run("import matplotlib.pyplot; matplotlib.pyplot.close('all')")
        if self.shell.exc is None or flagged(cell, "hide"):
            return ""
        return f"{cell.id}: {failing_line(source, self.shell.exc)}"

    def rest(self, number: int, source: str) -> str:
        "Run this source in place of a cell, and the cells after it, up to the first that fails."
        failed = self.cell(number, source)
        for after in range(number + 1, len(self.cells)):
            failed = failed or self.cell(after)
        return failed


class Files:
    "The temporary files of a chapter at one moment, to be put back."

    def __init__(self):
        self.live = Path(tempfile.gettempdir())
        self.kept = Path(tempfile.mkdtemp(dir=self.live.parent))
        shutil.copytree(self.live, self.kept / "files", symlinks=True)

    def restore(self) -> None:
        shutil.rmtree(self.live)
        (self.kept / "files").rename(self.live)
        self.kept.rmdir()


class Suspended:
    "A copy of the reader that waits just before the cell of its fault."

    def __init__(self, reader: Reader, fault: Fault):
        self.fault, self.files = fault, Files()
        start, self.start = os.pipe()
        self.answer, answer = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            os.setpgid(0, 0)
            os.close(self.start)
            if os.read(start, 1) != b"y":
                os._exit(0)
            source = fault.source(reader.cells[fault.cell].source)
            os.write(answer, json.dumps(reader.rest(fault.cell, source)).encode())
            os._exit(0)
        os.close(start)
        os.close(answer)

    def verdict(self, limit: float) -> tuple[str, str]:
        "(outcome, seen by) of the chapter with the fault; `limit`: processor seconds."
        self.files.restore()
        os.write(self.start, b"y")
        begin, process, ready = time.time(), psutil.Process(self.process), []
        while not ready and time.time() - begin < 20 * limit:
            if sum(process.cpu_times()[:2]) > limit:
                break
            ready, _, _ = select.select([self.answer], [], [], 1)
        said = os.read(self.answer, 1 << 16) if ready else b""
        if not ready:
            os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        if not said:
            return "seen", "the process died" if ready else f"no end within {limit:.0f} s"
        return ("seen" if json.loads(said) else "missed"), json.loads(said)

    def require_unseen(self, known: bool, limit: float) -> None:
        "Stop where a chapter that goes on without a fault fails; `known`: that it does not."
        if known:
            os.write(self.start, b"n")
            os.waitpid(self.process, 0)
            self.files.restore()
            return
        outcome, by = self.verdict(limit)
        if outcome == "seen":
            raise SystemExit(f"a chapter fails without a fault when it goes on from here: {by}")


def read_chapter(path: Path, faults: list[Fault], spare: float):
    """Run a chapter as it is, then with each fault from the fault's cell on: (fault, outcome, by).
    Where all are seen, so might be what changes nothing: that is tried last."""
    notebook = nbformat.read(path, as_version=4)
    first = min(faults, key=lambda fault: fault.cell)
    faults = [*faults, replace(first, kind="none", text="", end=0, start=0)]
    folder = os.getcwd()
    os.chdir(path.parent)
    try:
        waiting, seconds = suspended_faults(notebook, path, faults)
        yield from verdicts(waiting, spare + 5 * seconds)
    finally:
        os.chdir(folder)


def suspended_faults(notebook, path: Path, faults: list[Fault]) -> tuple[list, float]:
    "Forks of a clean run, each before the cell of its fault, and the processor seconds of the run."
    start, reader, waiting = time.process_time(), Reader(notebook, path), []
    for number in range(len(notebook.cells)):
        waiting += [Suspended(reader, f) for f in faults if f.cell == number]
        if failed := reader.cell(number):
            raise SystemExit(f"{path.name} fails as it is, in cell {failed}")
    seconds = time.process_time() - start
    print(f"{path.stem}: {seconds:.0f} s as it is", flush=True)
    return waiting, seconds


def verdicts(waiting: list, limit: float):
    "(fault, outcome, by) of each suspended fault; the unchanged fork comes last."
    missed = False
    for suspended in sorted(waiting, key=lambda s: s.fault.kind == "none"):
        if suspended.fault.kind == "none":
            suspended.require_unseen(missed, limit)
            continue
        outcome, by = suspended.verdict(limit)
        missed = missed or outcome == "missed"
        yield suspended.fault, outcome, by


def rows_of(table: Path) -> list[dict]:
    "The rows of a table, if it is there."
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf8") as file:
        return list(csv.DictReader(file))


def write(rows: list[dict], table: Path) -> None:
    "A table, sorted by seed and chapter."
    with table.open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (int(row["seed"]), row["chapter"])))


def matches(row: dict, chapter: str, fault: Fault) -> bool:
    "Whether a row of the table is of this fault."
    return (row["chapter"], row["function"], row["kind"], row["fault"]) == (
        chapter,
        *identity(fault),
    )


def chosen(path: Path, rows: list[dict], asked: argparse.Namespace) -> list[Fault]:
    "The faults of a chapter that are asked for."
    faults = faults_of(nbformat.read(path, as_version=4))
    known = lambda fault, among: any(matches(row, path.stem, fault) for row in among)
    if asked.missed:
        again = [
            row
            for row in rows
            if row["outcome"] == "missed" and not row["note"].startswith("equivalent")
        ]
        return [fault for fault in faults if known(fault, again)]
    others = [row for row in rows if int(row["seed"]) != asked.seed]
    fresh = [fault for fault in ranked(faults, path.stem, asked.seed) if not known(fault, others)]
    return fresh[: asked.count]


def noted(rows: list[dict], chapter: str, fault: Fault, outcome: str, by: str, seed: int) -> dict:
    "Put an outcome into the table; the row."
    row = next((row for row in rows if matches(row, chapter, fault)), None)
    if row is None:
        row = dict(seed=seed, chapter=chapter, first=outcome, note="")
        row |= dict(function=fault.function, kind=fault.kind, fault=fault.told)
        rows.append(row)
    row |= dict(line=fault.line, outcome=outcome, seen_by=by[:120])
    return row


def told_rates(rows: list[dict]) -> None:
    "Print the shares that were seen, by seed."
    for seed in sorted({int(row["seed"]) for row in rows}):
        mine = [row for row in rows if int(row["seed"]) == seed]
        real = [row for row in mine if not row["note"].startswith("equivalent")]
        first = sum(row["first"] == "seen" for row in real)
        last = sum(row["outcome"] == "seen" for row in real)
        print(
            f"seed {seed}: {len(mine)} faults, {len(mine) - len(real)} equivalent; of the other"
            f" {len(real)}, {first} ({first / len(real):.1%}) seen when drawn,"
            f" {last} ({last / len(real):.1%}) seen now"
        )


def arguments_of(words: list[str]) -> argparse.Namespace:
    "What the command line asks for."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chapter", nargs="*", default=list(CHAPTERS))
    parser.add_argument("--count", type=int, default=10, help="faults a chapter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--missed", action="store_true", help="those that nothing saw, again")
    parser.add_argument("--list", action="store_true", help="what can be drawn, in the drawn order")
    parser.add_argument("--rate", action="store_true", help="shares in the table, without a run")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument(
        "--spare", type=float, default=60, help="processor seconds beyond five usual runs"
    )
    return parser.parse_args(words)


def prepare() -> Path:
    "Temporary files and cache in a folder of their own; the large libraries loaded once."
    home = Path(tempfile.mkdtemp(prefix="braintune-mutation-"))
    (home / "live").mkdir()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ |= dict(
        TMPDIR=str(home / "live"),
        BRAINTUNE_CACHE=str(home / "cache"),
        TOKENIZERS_PARALLELISM="false",
        IN_TEST="1",
    )
    tempfile.tempdir = str(home / "live")
    sys.path.insert(0, str(ROOT))
    for library in ("torch", "transformers"):
        importlib.import_module(library)
    return home


def run(paths: list[Path], rows: list[dict], asked: argparse.Namespace) -> None:
    "Run the chapters with the faults asked for; the table is written after each."
    home = prepare()
    try:
        for path in paths:
            faults = chosen(path, rows, asked)
            for fault, outcome, by in read_chapter(path, faults, asked.spare) if faults else ():
                noted(rows, path.stem, fault, outcome, by, asked.seed)
                where = f"{path.stem[:2]} {fault.function}:{fault.line}"
                print(f"{where}  {outcome}  {fault.told}   | {by}", flush=True)
                write(rows, asked.table)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def main(words: list[str]) -> int:
    asked = arguments_of(words)
    rows = rows_of(asked.table)
    paths = [p for name in asked.chapter for p in sorted((ROOT / "nbs").glob(f"{name}_*.ipynb"))]
    if asked.list:
        for path in paths:
            faults = faults_of(nbformat.read(path, as_version=4))
            for fault in ranked(faults, path.stem, asked.seed):
                print(f"{path.stem[:2]} {fault.function}:{fault.line} {fault.kind}  {fault.told}")
        return 0
    if not asked.rate:
        run(paths, rows, asked)
    told_rates(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
