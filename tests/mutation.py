"""Do the visible tests of a chapter see a fault in its code?

Draws small faults (another comparison, sign, number, condition, argument) in the exported cells of
chapters, one at a time, runs the chapter from top to bottom as its reader would, and says whether a
cell failed. Messages of errors, docstrings and code that only draws pictures are left alone.

python tests/mutation.py                       five faults in each of the twelve chapters
python tests/mutation.py --chapter 72_encode   only there
python tests/mutation.py --seed 1 --out FILE   other faults; the table as CSV
python tests/mutation.py --only 89:3           one fault again, shown as a difference"""

import argparse
import ast
import atexit
import copy
import csv
import difflib
import importlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = ("06", "12", "32", "43", "50", "72", "89", "90", "91", "92", "93", "94")
FLAGS = {"#| export", "#| exporti"}
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
DRAWS = ("plt.", "ax.", "axes[", "fig.", "figure.", "sns.")  # code that only draws
SPEAKS = ("raise ", "warnings.warn", "print(", "_need(", "need(")  # what is said, and not done


def exported(cell) -> bool:
    "Whether a cell goes into the package."
    lines = cell.source.splitlines()
    return cell.cell_type == "code" and any(line.strip() in FLAGS for line in lines)


def silent(statement: ast.stmt) -> bool:
    "Whether a statement only draws or speaks: a fault there is not one of computing."
    text = ast.unparse(statement)
    return text.startswith(DRAWS + SPEAKS)


def statements(tree: ast.Module):
    "Simple statements inside functions, and the heads of compound ones, in order."
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.stmt) and node is not function and not silent(node):
                yield node


def own_nodes(statement: ast.stmt):
    "Expressions of a statement itself, not of the statements below it."
    below = [n for n in ast.iter_child_nodes(statement) if not isinstance(n, ast.stmt)]
    while below:
        node = below.pop(0)
        yield node
        speaks = isinstance(node, ast.Call) and ast.unparse(node).startswith(SPEAKS)
        if not isinstance(node, ast.JoinedStr) and not speaks:
            below += list(ast.iter_child_nodes(node))


def fault_of(node: ast.AST) -> str | None:
    "Which fault can be planted at a node; None where there is none."
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        return "comparison"
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in OPERATIONS:
        return "operation"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        return "sign"
    if isinstance(node, ast.IfExp):
        return "condition"
    if isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        return "number"
    if isinstance(node, ast.Call) and len(node.args) > 1:
        return "arguments"
    return None


def places(tree: ast.Module) -> list[tuple[ast.AST, str]]:
    "Every (node, fault) of a cell, in order."
    found, seen = [], set()
    for statement in statements(tree):
        for node in own_nodes(statement):
            kind = fault_of(node)
            if kind and id(node) not in seen:
                seen.add(id(node))
                found.append((node, kind))
    return found


def plant(node: ast.AST, kind: str) -> None:
    "Plant a fault at a node of a tree, which is changed in place."
    if kind == "comparison":
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif kind == "operation":
        node.op = OPERATIONS[type(node.op)]()
    elif kind == "condition":
        node.body, node.orelse = node.orelse, node.body
    elif kind == "number":
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    else:
        node.args[0], node.args[1] = node.args[1], node.args[0]


class Without(ast.NodeTransformer):
    "Drop the `not` or the minus of one node."

    def __init__(self, node):
        self.node = node

    def visit_UnaryOp(self, node):
        return node.operand if node is self.node else self.generic_visit(node)


def faulty(source: str, number: int) -> tuple[str, str]:
    "(source of a cell with its fault of that number, kind of the fault)."
    tree = ast.parse(source)
    node, kind = places(tree)[number]
    if isinstance(node, ast.UnaryOp):
        tree = Without(node).visit(tree)
    else:
        plant(node, kind)
    directives = [line for line in source.splitlines() if line.startswith("#|")]
    return "\n".join([*directives, ast.unparse(ast.fix_missing_locations(tree))]), kind


def candidates(notebook) -> list[tuple[int, int]]:
    "(cell, number of the fault in it) of everything that can be planted in a chapter."
    found = []
    for c, cell in enumerate(notebook.cells):
        if exported(cell):
            found += [(c, n) for n in range(len(places(ast.parse(cell.source))))]
    return found


def runs(path: Path) -> None:
    "Run a notebook in this process; exit status 1 where a cell fails."
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    from nbdev.test import test_nb

    passed, _ = test_nb(path, skip_flags=["slow"], basepath=ROOT)
    os._exit(0 if passed else 1)


def outcome(notebook, where: Path, limit: float) -> tuple[str, float]:
    "('seen' | 'missed' | 'seen: too long', seconds) of one run."
    nbformat.write(notebook, where)
    start = time.time()
    process = multiprocessing.get_context("fork").Process(target=runs, args=(where,))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        return "seen: too long", time.time() - start
    return ("missed" if process.exitcode == 0 else "seen"), time.time() - start


def change(before: str, after: str) -> str:
    "What a fault changed, in one line."
    lines = difflib.unified_diff(
        ast.unparse(ast.parse(before)).splitlines(),
        ast.unparse(ast.parse(after)).splitlines(),
        n=0,
        lineterm="",
    )
    lines = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return "  ".join(" ".join(line.split()) for line in lines)[:240]


def planted(path: Path, notebook, place: tuple[int, int], limit: float) -> dict:
    "Outcome of one fault in a chapter."
    cell, number = place
    source = notebook.cells[cell].source
    changed = copy.deepcopy(notebook)
    changed.cells[cell].source, kind = faulty(source, number)
    state, _ = outcome(changed, path, limit)
    told = change(source, changed.cells[cell].source)
    return dict(cell=cell, kind=kind, outcome=state, change=told)


def chapter(path: Path, numbers: list[int], asked: argparse.Namespace):
    "Rows of the faults of these numbers, drawn in one chapter."
    notebook = nbformat.read(path, as_version=4)
    drawn = candidates(notebook)
    random.Random(f"{path.name[:2]} {asked.seed}").shuffle(drawn)
    where = path.with_name(f"_mutant_{os.getpid()}.ipynb")  # beside it: relative paths hold
    try:
        state, seconds = outcome(notebook, where, 1800)
        if state != "missed":
            raise SystemExit(f"{path.name} fails as it is")
        for number in numbers:
            row = planted(where, notebook, drawn[number], asked.spare + 5 * seconds)
            yield dict(chapter=path.stem, number=number, **row)
    finally:
        where.unlink(missing_ok=True)


def arguments_of(words: list[str]) -> argparse.Namespace:
    "What the command line asks for."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chapter", nargs="*", default=list(CHAPTERS))
    parser.add_argument("--count", type=int, default=5, help="faults a chapter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="CHAPTER:NUMBER, one fault again")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--spare", type=float, default=60, help="seconds beyond five usual runs")
    return parser.parse_args(words)


def prepare() -> None:
    "One cache for all runs, and the large libraries loaded once, before the processes fork."
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["BRAINTUNE_CACHE"] = tempfile.mkdtemp(prefix="braintune-mutation-")
    atexit.register(shutil.rmtree, os.environ["BRAINTUNE_CACHE"], ignore_errors=True)
    sys.path.insert(0, str(ROOT))
    for library in ("torch", "transformers"):
        importlib.import_module(library)


def line(row: dict) -> str:
    "A row as it is printed."
    head = f"{row['chapter'][:28]:28} {row['number']:3} {row['outcome']:14}"
    return f"{head} {row['kind']:10} {row['change']}"


def write(rows: list[dict], out: Path) -> None:
    "The table of outcomes as CSV."
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(words: list[str]) -> int:
    asked = arguments_of(words)
    chosen, numbers = asked.chapter, list(range(asked.count))
    if asked.only:
        name, number = asked.only.split(":")
        chosen, numbers = [name], [int(number)]
    prepare()
    rows = []
    for path in [p for name in chosen for p in sorted((ROOT / "nbs").glob(f"{name}*.ipynb"))]:
        for row in chapter(path, numbers, asked):
            rows.append(row)
            print(line(row), flush=True)
    seen = sum(row["outcome"].startswith("seen") for row in rows)
    print(f"{seen} of {len(rows)} faults seen")
    if asked.out:
        write(rows, asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
