"""Are the outputs stored in the notebooks those of the code as it is now?

Library and tutorial notebooks are stored executed. Beside its outputs each keeps, in
`metadata.braintune.executed`, a hash over the syntax trees of its code cells and of every module of
the package that it imports, directly or through others: layout and comments do not count.

python tools/outputs.py            execute the notebooks whose outputs are stale
python tools/outputs.py --check    only list them; exit status 1 if there are any
python tools/outputs.py --all      execute all of them
python tools/outputs.py NAME ...   execute those whose file name contains NAME"""

import argparse
import ast
import hashlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "braintune_nb"
INLINE = "module://matplotlib_inline.backend_inline"  # or pictures are not stored
DATA = {"model.backbone": "weights"}  # a module whose results depend on files of the package


def notebooks(root: Path = ROOT) -> list[Path]:
    "The notebooks that are stored executed, in reading order."
    patterns = (
        "[0-9]*.ipynb",
        "tutorials/*.ipynb",
        "howto/*.ipynb",
        "findings/*.ipynb",
        "reference/*.ipynb",
    )
    found = [p for pattern in patterns for p in sorted((root / "nbs").glob(pattern))]
    return [p for p in found if p.name[0] not in "._"]


def code_cells(nb) -> list[str]:
    return [c.source for c in nb.cells if c.cell_type == "code" and c.source.strip()]


def _parse(source: str) -> ast.Module:
    "Syntax tree of a cell, without IPython's own lines."
    lines = ["pass" if line.lstrip()[:1] in ("%", "!") else line for line in source.split("\n")]
    return ast.parse(
        "\n".join("" if line == "pass" and not line[:1].isspace() else line for line in lines)
    )


def imported(tree: ast.AST, package: str) -> set[str]:
    "Dotted names that `tree`, code of `package`, imports from braintune_nb."
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{a.name}" for a in node.names)}
    return {n for n in names if n.split(".")[0] == PACKAGE}


def module_files(root: Path, names: set[str]) -> dict[str, Path]:
    "Modules reached from `names`, each with its file."
    found, waiting = {}, list(names)
    while waiting:
        name = waiting.pop()
        path = root / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in found or not path.exists():
            continue
        found[name] = path
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        waiting += imported(ast.parse(path.read_text(encoding="utf8")), package)
    return found


def syntax(tree: ast.AST) -> list:
    """The tree as nested lists, without places, empty fields and the layout of docstrings:
    equal code, equal list."""
    if not isinstance(tree, ast.AST):
        return [syntax(item) for item in tree] if isinstance(tree, list) else repr(tree)
    fields = [(name, value) for name, value in ast.iter_fields(tree) if value not in (None, [])]
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        fields = [
            (
                "value",
                " ".join(tree.value.split()) if getattr(tree, "docstring", False) else tree.value,
            )
        ]
    return [type(tree).__name__, *((name, syntax(value)) for name, value in fields)]


def meaning(source: str) -> str:
    """What `source` does, as text: two sources that differ in layout and comments alone give
    the same."""
    tree = _parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            first.value.docstring = True
    return repr(syntax(tree))


def fingerprint(path: Path, root: Path = ROOT) -> str:
    "Hash over the syntax of the notebook at `path` and of all that it imports from the package."
    cells = code_cells(nbformat.read(path, as_version=4))
    names = set()
    for cell in cells:
        names |= imported(_parse(cell), "")
    files = module_files(root, names)
    digest = hashlib.sha256()
    for cell in cells:
        digest.update(f"cell {meaning(cell)}\n".encode())
    for name in sorted(files):
        digest.update(f"{name}\n{meaning(files[name].read_text(encoding='utf8'))}\n".encode())
    for folder in sorted(DATA[n] for n in DATA if f"{PACKAGE}.{n}" in files):
        for p in sorted((root / PACKAGE / folder).rglob("*")):
            if p.is_file():
                digest.update(p.name.encode() + p.read_bytes())
    return digest.hexdigest()[:24]


def stored(path: Path) -> str | None:
    return nbformat.read(path, as_version=4).metadata.get("braintune", {}).get("executed")


def draws(source: str) -> bool:
    "Whether a cell makes a figure that stays open, by itself and not in a function."
    if re.search(r"^#\|\s*exports?\b", source, re.M) or "plt.close(" in source:
        return False
    waiting, calls = [_parse(source)], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Call):
            calls.add(ast.unparse(node.func))
        if not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            waiting += ast.iter_child_nodes(node)
    return bool(calls & {"plt.subplots", "plt.figure", "plt.show"})


def blind(path: Path) -> bool:
    "Whether a cell of the notebook at `path` draws and has no picture stored."
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and draws(cell.source):
            if not any("image/png" in o.get("data", {}) for o in cell.outputs):
                return True
    return False


def stale(root: Path = ROOT) -> list[Path]:
    "Notebooks whose stored outputs were made by other code than that of now, or lack pictures."
    return [p for p in notebooks(root) if stored(p) != fingerprint(p, root) or blind(p)]


def smaller(picture: str, colours: int = 64) -> str:
    "A PNG in base64 with fewer colours: a third of the bytes, and nothing that an eye misses."
    import base64
    import io

    from PIL import Image

    drawn, packed = Image.open(io.BytesIO(base64.b64decode(picture))), io.BytesIO()
    few = drawn.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    few.save(packed, "PNG", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def pack_pictures(nb) -> None:
    "Store the pictures of a notebook with fewer colours; those that have few already stay."
    for output in (o for cell in nb.cells for o in cell.get("outputs", [])):
        picture = output.get("data", {}).get("image/png")
        if picture and len(packed := smaller(picture)) < 0.8 * len(picture):
            output["data"]["image/png"] = packed


def execute(path: Path, root: Path = ROOT) -> None:
    "Run the notebook at `path`, clean it, and write it with its fingerprint."
    from nbclient import NotebookClient
    from nbdev.clean import nbdev_clean
    from traitlets.config import Config

    before, nb = fingerprint(path, root), nbformat.read(path, as_version=4)
    with (
        tempfile.TemporaryDirectory() as sockets
        # over TCP every kernel prints a warning; relative addresses would lie in two working
        # folders
    ):
        quiet = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        NotebookClient(
            nb,
            timeout=1800,
            kernel_name="python3",
            config=quiet,
            resources={"metadata": {"path": str(path.parent)}},
        ).execute()
    nb.metadata["braintune"] = {"executed": before}
    pack_pictures(nb)
    nbformat.write(nb, path)
    nbdev_clean.__wrapped__(str(path))


def prepare() -> None:
    "One thread, this package before any other, no warnings about missing widgets."
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["MPLBACKEND"] = INLINE
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's, where no widgets are
    if not os.environ.get("BRAINTUNE_DATA"):
        print("BRAINTUNE_DATA is not set: chapters show no real data", file=sys.stderr)


def asked_for(asked: argparse.Namespace) -> list[Path]:
    "The notebooks with one of the names, all of them, or those whose outputs are stale."
    if asked.name:
        named = lambda path: any(part in path.name for part in asked.name)
        return [p for p in notebooks() if named(p)]
    return notebooks() if asked.all else stale()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--all", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.check:
        for path in (old := stale()):
            print(f"stale outputs: {path.relative_to(ROOT)}")
        return bool(old)
    chosen = asked_for(asked)
    prepare()
    os.chdir(ROOT)
    for path in chosen:
        start = time.time()
        execute(path)
        print(f"{path.relative_to(ROOT)}: {time.time() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
