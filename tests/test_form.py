"""The form of the code base: each rule is a function that lists what breaks it, used twice, on the
tree and on something made wrong.

A rule that nothing ever broke may be looking in the wrong place, so every one has a test that makes
it fail."""

import ast
import csv
import io
import re
import shutil
import subprocess
import sys
import tokenize
from configparser import ConfigParser

import nbformat
import pytest
import yaml
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import density, export, outputs, readme, site

NBS = ROOT / "nbs"
LIBRARY = sorted(NBS.glob("[0-9]*.ipynb"))
TUTORIALS = [
    p for f in ("tutorials", "howto", "reference") for p in sorted((NBS / f).glob("*.ipynb"))
]
EXPERIMENTS = sorted((NBS / "experiments").glob("*.ipynb"))
every = pytest.mark.parametrize(
    "path", [NBS / "index.ipynb", *LIBRARY, *TUTORIALS, *EXPERIMENTS], ids=lambda p: p.stem
)
library = pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.stem)
experiments = pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def trees(path, exported=None):
    "(source, tree) of the code cells at `path`; only the exported or only the other ones if asked."
    for cell in read(path).cells:
        if cell.cell_type != "code":
            continue
        is_exported = bool(re.search(r"^#\|\s*exports?\b", cell.source, re.M))
        if exported is None or exported == is_exported:
            yield cell.source, outputs._parse(cell.source)


def made(folder, *cells, name="20_made.ipynb"):
    "A notebook for making a rule fail: `md:` starts a markdown cell, everything else is code."
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nb = new_notebook(
        cells=[new_markdown_cell(c[3:]) if c.startswith("md:") else new_code_cell(c) for c in cells]
    )
    nbformat.write(nb, path)
    return path


# ---- words first


def opening(path):
    first = read(path).cells[0]
    if first.cell_type != "markdown" or not re.match(r"# \S.*\n+> \S", first.source):
        return ["the first cell is not '# title' and '> subtitle'"]
    return []


@every
def test_title_and_subtitle_first(path):
    assert opening(path) == []


def test_title_and_subtitle_are_missed(tmp_path):
    assert opening(made(tmp_path, "#| default_exp x", "md:# Title\n\n> Subtitle"))
    assert opening(made(tmp_path, "md:# Title\n\nNo subtitle"))
    assert not opening(made(tmp_path, "md:# Title\n\n> Subtitle"))


# ---- size


def size(path, limit=200_000):
    return [f"{path.stat().st_size / 1000:.0f} kB"] if path.stat().st_size > limit else []


@every
def test_small(path):
    assert size(path) == []


def test_a_large_notebook_is_seen(tmp_path):
    assert size(made(tmp_path, "x = '" + "a" * 200_000 + "'"))


# ---- stored outputs show what every reader would see


def machine_paths(path):
    "Stored texts that name a place on the machine that executed the notebook."
    texts = [o.get("text", "") for c in read(path).cells for o in c.get("outputs", [])]
    return [t[:200] for t in texts if re.search(r"/site-packages/|/tmp/|/ipykernel_", t)]


@every
def test_stored_outputs_name_no_place_of_this_machine(path):
    assert machine_paths(path) == []


def test_places_of_this_machine_are_seen(tmp_path):
    path = made(tmp_path, "x = 1")
    notebook = read(path)
    warned = nbformat.v4.new_output("stream", text="/tmp/ipykernel_7/1.py:3: UserWarning: no")
    notebook.cells[-1].outputs = [warned]
    nbformat.write(notebook, path)
    assert len(machine_paths(path)) == 1


# ---- lines that can be read (ruff lays the code out; these are the rules that it lacks)

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCRIPTS = sorted(
    p
    for folder in ("tests", "tools")
    for p in (ROOT / folder).rglob("*.py")
    if "build" not in p.parts
)
sources = pytest.mark.parametrize(
    "path",
    [NBS / "index.ipynb", *LIBRARY, *TUTORIALS, *EXPERIMENTS, *SCRIPTS],
    ids=lambda p: p.stem,
)


def code_of(path):
    "(source, tree) of everything at `path` that Python reads."
    if path.suffix == ".ipynb":
        yield from trees(path)
    else:
        source = path.read_text(encoding="utf8")
        yield source, ast.parse(source)


def long_lines(path, limit=100):
    "Lines of code, comments included, that are longer than `limit`."
    return [line for source, _ in code_of(path) for line in source.split("\n") if len(line) > limit]


def inside_itself(tree, kinds):
    "Nodes of `kinds` that hold another node of `kinds`, as code."
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, kinds):
            inner = [n for n in ast.walk(node) if n is not node and isinstance(n, kinds)]
            wrong += [ast.unparse(node)] if inner else []
    return wrong


def large_functions(tree, nodes=250, lines=60):
    "Functions with more than so many nodes of the syntax tree, or lines."
    wrong = []
    for node in ast.walk(tree):
        if not isinstance(node, FUNCTIONS):
            continue
        size, height = sum(1 for _ in ast.walk(node)), node.end_lineno - node.lineno + 1
        if size > nodes or height > lines:
            wrong.append(f"{node.name}: {size} nodes, {height} lines")
    return wrong


def packed(path):
    "What makes the code at `path` hard to read."
    wrong = [f"long line: {line.strip()}" for line in long_lines(path)]
    for _, tree in code_of(path):
        wrong += [f"comprehension in one: {c}" for c in inside_itself(tree, COMPREHENSIONS)]
        wrong += [f"condition in one: {c}" for c in inside_itself(tree, (ast.IfExp,))]
        wrong += [f"large: {f}" for f in large_functions(tree)]
    return wrong


def private_imports(tree):
    "Names with a leading underscore that are taken from another module of the package."
    return [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("braintune_nb")
        for alias in node.names
        if re.match(r"_(?!_)", alias.name)
    ]


def allowed():
    """Notebook or script -> how many places may still break these rules: a debt that only shrinks.

    A file that is not listed may have none.
    """
    table = csv.DictReader((ROOT / "tests/form_debt.csv").read_text(encoding="utf8").splitlines())
    return {row["file"]: int(row["places"]) for row in table}


@sources
def test_code_is_not_packed(path):
    found = packed(path)
    limit = allowed().get(str(path.relative_to(ROOT)), 0)
    assert len(found) <= limit, "\n".join(found)
    assert len(found) == limit, f"write {len(found)} for {limit} into tests/form_debt.csv"


@sources
def test_no_private_name_is_imported(path):
    assert [name for _, tree in code_of(path) for name in private_imports(tree)] == []


def test_packed_code_is_seen(tmp_path):
    lines = "\n".join(f"    x{i} = {i}" for i in range(60))
    path = made(
        tmp_path,
        "x = '" + "a" * 100 + "'",
        "[[a for a in b] for b in c]",
        "1 if a else (2 if b else 3)",
        f"def tall():\n{lines}",
        "def dense():\n    return [" + "(a + b) * c, " * 45 + "]",
    )
    kinds = [w.split(":")[0] for w in packed(path)]
    assert kinds.count("comprehension in one") == kinds.count("condition in one") == 1
    assert [w for w in packed(path) if w.startswith("large: tall")] == [
        "large: tall: 242 nodes, 61 lines"
    ]
    assert [w for w in packed(path) if w.startswith("large: dense")]
    assert len(long_lines(path)) == 2 and packed(made(tmp_path, "x = [a for a in b]")) == []
    tree = ast.parse("from braintune_nb.core import _x, __version__, y\nfrom other import _z")
    assert private_imports(tree) == ["braintune_nb.core._x"]


def ruff(*arguments):
    "What ruff prints about the whole tree; nothing where all is well."
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout + done.stderr if done.returncode else ""


def test_the_package_keeps_its_bounds():
    "What stands in a line and in a function, as `python tools/density.py` tables it."
    assert density.broken(density.measures(ROOT / "braintune_nb")) == []


def test_broken_bounds_are_seen(tmp_path):
    body = "\n".join(f"    x{i} = {i}" for i in range(61))
    rows = "[[a for a in b] for b in c]"
    (tmp_path / "made.py").write_text(f"def tall():\n{body}\n\n\ny = '{'a' * 100}'\n{rows}\n")
    (tmp_path / "test_left_out.py").write_text(f"z = '{'a' * 200}'\n")
    found = density.measures(tmp_path)
    assert found["function, most lines"] == 62 and found["functions"] == 1
    assert found["lines of code"] == 64 and found["lines over 100 characters, %"] == 100 / 64
    assert [b.split(":")[0] for b in density.broken(found)] == [
        "lines over 100 characters, %",
        "comprehensions in comprehensions, per 100 lines",
        "function, median lines",
        "function, 90th percentile of lines",
        "function, most lines",
    ]
    assert density.percentile([1, 2, 3, 4], 0.5) == 2 and density.percentile([7], 0.9) == 7


def test_ruff_finds_nothing():
    assert ruff("check", "--output-format=concise", ".") == ""


def test_ruff_would_change_nothing():
    assert ruff("format", "--check", ".") == ""


def test_a_run_in_the_clone_is_no_part_of_it(tmp_path):
    "The README's first command leaves a folder, whose model card ruff would lay out anew."
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for name in ("braintune_quickstart", "braintune_tune_text.partial", "braintune_nb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text("a run")
    seen = ["git", "status", "--porcelain", "--untracked-files=all"]
    found = subprocess.run(seen, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert found.split() == ["??", ".gitignore", "??", "braintune_nb/README.md"]


# ---- imports


def numbers():
    "Module -> number of its chapter."
    return {site.page_name(p.name): int(p.name.split("_")[0]) for p in LIBRARY}


def star_imports(path):
    nodes = [n for _, t in trees(path) for n in ast.walk(t) if isinstance(n, ast.ImportFrom)]
    return [ast.unparse(n) for n in nodes if n.names[0].name == "*"]


def upward_imports(path, known):
    """Imports that do not point to a lower number; a cell that is not exported may import its
    own chapter."""
    own, wrong = int(path.name.split("_")[0]), []
    for exported in (True, False):
        for _, tree in trees(path, exported):
            for name in sorted(outputs.imported(tree, "")):
                number = known.get(name.removeprefix("braintune_nb."))
                if number is not None and (number > own or (exported and number == own)):
                    wrong.append(f"{name} is {number}")
    return wrong


@every
def test_no_star_imports(path):
    assert star_imports(path) == []


@library
def test_imports_point_to_lower_numbers(path):
    assert upward_imports(path, numbers()) == []


def orchestration(path):
    "Imports by which a method or a task would know of experiments and reports."
    if not re.search(r"_(analyses|tasks)\.", path.name):
        return []
    names = set().union(*(outputs.imported(tree, "") for _, tree in trees(path, True)))
    above = ("experiment", "report", "cli")
    return sorted(n for n in names if n.removeprefix("braintune_nb.").split(".")[0] in above)


@library
def test_methods_and_tasks_know_nothing_of_experiments(path):
    assert orchestration(path) == []


def test_a_method_that_knows_experiments_is_seen(tmp_path):
    cell = "#| export\ndef f():\n    from braintune_nb.experiment.plan import ExperimentPlan"
    path = made(tmp_path, cell, name="88_tasks.made.ipynb")
    assert orchestration(path) == [
        "braintune_nb.experiment.plan",
        "braintune_nb.experiment.plan.ExperimentPlan",
    ]
    assert orchestration(made(tmp_path, cell, name="93_experiment.made.ipynb")) == []


def test_wrong_imports_are_seen(tmp_path):
    known = {"core": 0, "model.tuner": 43}
    path = made(
        tmp_path,
        "#| export\nfrom numpy import *",
        "def f():\n    from braintune_nb.model import tuner",
        "import braintune_nb.core",
    )
    assert star_imports(path) == ["from numpy import *"]
    assert upward_imports(path, known) == ["braintune_nb.model.tuner is 43"]


# ---- references to other chapters


def bare_references(path):
    "Chapters that the prose names by number without a link, and links that lead nowhere."
    wrong = []
    for cell in read(path).cells:
        if cell.cell_type != "markdown":
            continue
        text = re.sub(r"```.*?```", "", cell.source, flags=re.S)
        wrong += re.findall(r"(?<!\[)\b[Cc]hapters? \d\d\b", text)
        for link in re.findall(r"\]\(([^)#\s:]+\.ipynb)(?:#[^)]*)?\)", text):
            if not (path.parent / link).exists():
                wrong.append(link)
    return wrong


@every
def test_references_to_chapters_are_links(path):
    assert bare_references(path) == []


def test_bare_references_are_seen(tmp_path):
    path = made(tmp_path, "md:# T\n\nSee chapter 12 and [chapter 13](13_gone.ipynb), not `x`.")
    assert bare_references(path) == ["chapter 12", "13_gone.ipynb"]
    assert bare_references(made(tmp_path, "md:See [chapter 20](20_made.ipynb).")) == []


# ---- one spelling for one thing

MISSPELT = re.compile(
    r"\b(?:normaliz|standardiz|regulariz|initializ|summariz|optimiz|recogniz)\w*|\bbehavior\w*"
    r"|\b(?:colors?|gray|voxel-wise|brain tuning|micro ?batch(?:es)?|all ?reduce|neighbors?)\b"
    r"|\bheld out (?=participants?|stor|TRs?\b|data|rows|blocks|concepts|words|columns)",
    re.I,
)


def misspelt(path):
    "Words of the prose that the book spells otherwise; code, links and titles of papers aside."
    wrong = []
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|https?:\S+", "", cell.source, flags=re.S)
            wrong += MISSPELT.findall(text)
    return wrong


@every
def test_one_spelling(path):
    assert misspelt(path) == []


def test_misspelt_words_are_seen(tmp_path):
    path = made(tmp_path, "md:# T\n\nGray colors, normalized on held out stories by microbatch.")
    assert [w.strip().lower() for w in misspelt(path)] == [
        *("gray", "colors", "normalized", "held out", "microbatch")
    ]
    path = made(tmp_path, "md:A `color`, held-out stories, stories held out, normalised, grey.")
    assert misspelt(path) == []


# ---- documented parameters


def comment_lines(source):
    "Line number -> whether the comment stands alone on it."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        t.start[0]: t.line.strip().startswith("#") for t in tokens if t.type == tokenize.COMMENT
    }


def without_comment(source, parameters):
    """Names of `parameters` (name, first line, last line) that no comment explains, at their
    end or on the line above."""
    comments, ends = comment_lines(source), [last for _, _, last in parameters]
    return [
        name
        for name, first, last in parameters
        if not ((last in comments and ends.count(last) == 1) or comments.get(first - 1, False))
    ]


def arguments(node):
    "(name, first line, last line) of the parameters of a function."
    a, found = node.args, []
    positional = a.posonlyargs + a.args
    defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
    for arg, default in [
        *zip(positional, defaults),
        *zip(a.kwonlyargs, a.kw_defaults),
        (a.vararg, None),
        (a.kwarg, None),
    ]:
        described = arg is not None and arg.annotation and ast.unparse(arg.annotation)
        if described and re.search(r"_option\(['\"]|help=['\"]", described):
            continue  # an option of the command line, described by its help
        if arg is not None and arg.arg not in ("self", "cls"):
            found.append((arg.arg, arg.lineno, (default or arg).end_lineno))
    return found


def is_dataclass(node):
    return any("dataclass" in ast.unparse(d) for d in node.decorator_list)


def fields_of(node):
    "(name, first line, last line) of the public fields of a data class."
    if not is_dataclass(node):
        return []
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    public = [n for n in fields if not n.target.id.startswith("_")]
    return [(n.target.id, n.lineno, n.end_lineno) for n in public]


def undocumented_function(source, node, name, docstring=True):
    "What a function lacks."
    wrong = [f"{name}: no docstring"] if docstring and not ast.get_docstring(node) else []
    return wrong + [f"{name}: no comment on {p}" for p in without_comment(source, arguments(node))]


def undocumented_class(source, node):
    "What a class, its fields, its public methods and its `__init__` lack."
    wrong = [] if ast.get_docstring(node) else [f"{node.name}: no docstring"]
    bare = without_comment(source, fields_of(node))
    wrong += [f"{node.name}: no comment on {p}" for p in bare]
    for method in node.body:
        if not isinstance(method, FUNCTIONS):
            continue
        name, first = f"{node.name}.{method.name}", method.name == "__init__"
        if first or not method.name.startswith("_"):
            wrong += undocumented_function(source, method, name, docstring=not first)
    return wrong


def undocumented(source, tree):
    """Public functions, methods, classes and data class fields of a cell that lack a docstring
    or a parameter comment."""
    wrong = []
    for node in tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef):
                wrong += undocumented_class(source, node)
            else:
                wrong += undocumented_function(source, node, node.name)
    return wrong


@library
def test_everything_public_is_documented(path):
    assert [
        w for source, tree in trees(path, exported=True) for w in undocumented(source, tree)
    ] == []


def test_missing_documentation_is_seen():
    source = """
def bare(x): return x

def halfway(
    x,  # (T, V)
    y=(1,
       2),
    *rest,
):
    "Docstring."

def command(
    told: Annotated[str, _option("What it is.")],
    place: Annotated[str, typer.Argument(help="Where it is.")],
    silent: Annotated[str, typer.Option()],
):
    "Docstring."

def shared(x, y):  # one comment for two
    "Docstring."

@dataclass
class Box:
    "Docstring."
    width: float  # m
    height: float
    def area(self, scale): "Docstring."
    def _hidden(self, anything): pass

class Model:
    def __init__(self, size): pass
"""
    assert undocumented(source, ast.parse(source)) == [
        "bare: no docstring",
        "bare: no comment on x",
        "halfway: no comment on y",
        "halfway: no comment on rest",
        "command: no comment on silent",
        "shared: no comment on x",
        "shared: no comment on y",
        "Box: no comment on height",
        "Box.area: no comment on scale",
        "Model: no docstring",
        "Model.__init__: no comment on size",
    ]


# ---- experiments


def experiment_faults(path):
    wrong, tagged = [], [c for c in read(path).cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        wrong.append(f"{len(tagged)} cells are tagged 'parameters' (did nbdev_clean eat the tag?)")
    for cell in tagged:
        for line in filter(str.strip, cell.source.split("\n")):
            if not re.match(r"\w+: [^=]+ = .+\s# \S", line) and not line.startswith("#"):
                wrong.append(f"not 'name: type = value  # help': {line}")
    for _, tree in trees(path):
        wrong += [f"defines {n.name}" for n in ast.walk(tree) if isinstance(n, site.DEFINITION)]
    if any(c.get("outputs") for c in read(path).cells):
        wrong.append("outputs are stored")
    return wrong


@experiments
def test_experiments_hold_parameters_and_no_logic(path):
    assert experiment_faults(path) == []


def test_faulty_experiments_are_seen(tmp_path):
    path = made(tmp_path, "md:# E\n\n> e", "seed: int = 0  # seed", "def f(): pass")
    assert experiment_faults(path) == [
        "0 cells are tagged 'parameters' (did nbdev_clean eat the tag?)",
        "defines f",
    ]
    nb = read(path)
    nb.cells[1].metadata["tags"] = ["parameters"]
    nb.cells[1].source += "\nfolds = 5"
    nb.cells[2].source, nb.cells[2].outputs = "1", [nbformat.v4.new_output("stream", text="1")]
    nbformat.write(nb, path)
    assert experiment_faults(path) == [
        "not 'name: type = value  # help': folds = 5",
        "outputs are stored",
    ]


def project(folder):
    "A project of our own settings in `folder`, with one notebook."
    (folder / "settings.ini").write_bytes((ROOT / "settings.ini").read_bytes())
    path = made(folder, "md:# E\n\n> e", "seed: int = 0  # seed", name="nbs/20_made.ipynb")
    nb = read(path)
    nb.cells[1].metadata = {"tags": ["parameters"], "jupyter": {"source_hidden": True}}
    nb.metadata["braintune"], nb.metadata["language_info"] = {"executed": "abc"}, {"name": "python"}
    nbformat.write(nb, path)
    return path


def clean(folder):
    subprocess.run(
        [sys.executable, "-c", "from nbdev.clean import nbdev_clean; nbdev_clean()"],
        cwd=folder,
        check=True,
    )


def test_clean_keeps_the_parameters_tag_and_the_record_of_execution(tmp_path):
    path = project(tmp_path)
    clean(tmp_path)
    assert dict(read(path).cells[1].metadata) == {"tags": ["parameters"]}
    assert dict(read(path).metadata) == {"braintune": {"executed": "abc"}}


def test_clean_would_eat_both_without_our_settings(tmp_path):
    path = project(tmp_path)
    settings = tmp_path / "settings.ini"
    settings.write_text(re.sub(r"^allowed_\w+ = .*\n", "", settings.read_text(), flags=re.M))
    clean(tmp_path)
    assert not read(path).cells[1].metadata and "braintune" not in read(path).metadata


# ---- what is generated equals its source


def test_readme_is_the_index():
    assert readme.readme(NBS / "index.ipynb") == (ROOT / "README.md").read_text(encoding="utf8")


def test_a_changed_index_changes_the_readme(tmp_path):
    text = readme.readme(
        made(
            tmp_path,
            "md:# T\n\n> s\n\n![map](images/a.png) [c](20_x.ipynb#here) [l](../LICENSE)"
            " [w](https://x.org/a)",
            "1 + 1",
        )
    )
    assert (
        "![map](nbs/images/a.png) [c](nbs/20_x.ipynb#here) [l](LICENSE) [w](https://x.org/a)"
        in text
        and "1 + 1" not in text
    )


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```", "", text, flags=re.S))
    assert [
        link for link in links if not re.match(r"[a-z]+:", link) and not (ROOT / link).exists()
    ] == []


def test_readme_gives_the_two_commands():
    blocks = re.findall(
        r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf8"), flags=re.M | re.S
    )
    assert blocks[:2] == [
        "pip install -c constraints.txt . && braintune quickstart\n",
        "pip install -c constraints.txt -e '.[dev]' && pytest\n",
    ]


def test_site_file_lists_the_chapters():
    assert site.listed(ROOT / "_quarto.yml") == site.contents(NBS), (
        "run python tools/site.py --list"
    )
    assert (NBS / "_quarto.yml").resolve() == (ROOT / "_quarto.yml").resolve()


def test_a_missing_chapter_is_seen(tmp_path):
    (tmp_path / "_quarto.yml").write_bytes((ROOT / "_quarto.yml").read_bytes())
    for p in [*LIBRARY, *TUTORIALS, *EXPERIMENTS]:
        made(tmp_path, "1", name=str(p.relative_to(ROOT)))
    site.write_list(tmp_path)
    assert site.listed(tmp_path / "_quarto.yml") == site.contents(tmp_path / "nbs")
    made(tmp_path, "1", name="nbs/29_new.ipynb")
    assert site.listed(tmp_path / "_quarto.yml") != site.contents(tmp_path / "nbs")
    site.write_list(tmp_path)
    assert site.listed(tmp_path / "_quarto.yml") == site.contents(tmp_path / "nbs")


def test_the_package_holds_copies_of_experiments_and_weights():
    assert export.differences() == [], "run python tools/export.py"


def test_different_copies_are_seen(tmp_path):
    made(tmp_path, "1", name="nbs/experiments/tune.ipynb")
    (tmp_path / "nbs/weights/tiny").mkdir(parents=True)
    (tmp_path / "nbs/weights/tiny/config.json").write_text("{}")
    assert export.differences(tmp_path) == [
        "experiments/tune.ipynb: missing in the package",
        "weights/tiny/config.json: missing in the package",
    ]
    export.copy(tmp_path)
    assert export.differences(tmp_path) == []
    (tmp_path / "braintune_nb/weights/tiny/config.json").write_text("{ }")
    (tmp_path / "braintune_nb/experiments/old.ipynb").write_text("")
    assert export.differences(tmp_path) == [
        "experiments/old.ipynb: left over in the package",
        "weights/tiny/config.json: differs from nbs/",
    ]
    export.copy(tmp_path)
    assert export.differences(tmp_path) == []


# ---- stale outputs


def staged(folder):
    "A package of two modules and a chapter that uses one of them, which uses the other."
    for name, text in {
        "__init__.py": "",
        "a.py": "X = 1\n",
        "b.py": "def f():\n    from .a import X\n    return X\n",
        "c.py": "Y = 1\n",
    }.items():
        (folder / "braintune_nb").mkdir(exist_ok=True)
        (folder / "braintune_nb" / name).write_text(text)
    path = made(
        folder, "md:# T", "%time\nfrom braintune_nb.b import f", "f()", name="nbs/20_made.ipynb"
    )
    nb = read(path)
    nb.metadata["braintune"] = {"executed": outputs.fingerprint(path, folder)}
    nbformat.write(nb, path)
    return path


def test_stale_outputs_are_seen(tmp_path):
    path = staged(tmp_path)
    assert outputs.stale(tmp_path) == []
    (tmp_path / "braintune_nb/c.py").write_text("Y = 2\n")  # not imported
    assert outputs.stale(tmp_path) == []
    (tmp_path / "braintune_nb/a.py").write_text(
        "# %% new id\nX = 1\n"
    )  # only nbdev's marks changed
    assert outputs.stale(tmp_path) == []
    (tmp_path / "braintune_nb/a.py").write_text("X = 2\n")  # imported through b
    assert outputs.stale(tmp_path) == [path]
    (tmp_path / "braintune_nb/a.py").write_text("X = 1\n")
    nb = read(path)
    nb.cells[2].source = "f() + 1"
    nbformat.write(nb, path)
    assert outputs.stale(tmp_path) == [path]


def test_a_cell_that_draws_without_a_picture_is_stale(tmp_path):
    path = made(
        tmp_path, "md:# T", "fig, ax = plt.subplots()\nax.plot(3)", name="nbs/20_made.ipynb"
    )
    assert outputs.blind(path)
    nb = read(path)
    picture = {"image/png": "iVBORw0KGgo="}
    nb.cells[1].outputs = [nbformat.v4.new_output("display_data", picture)]
    nbformat.write(nb, path)
    assert not outputs.blind(path)
    for quiet in ("def f():\n    plt.subplots()", "#| export\nplt.subplots()", "plt.plot", "1"):
        assert not outputs.draws(quiet)
    assert outputs.draws("for a in 1, 2:\n    plt.figure()") and outputs.draws("plt.show()")
    assert not outputs.draws("plt.figure()\nplt.close('all')")


# ---- trust

PICKLE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
PICKLE_CALLS = {"torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"}


def pickle_readers(tree):
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wrong += [a.name for a in node.names if a.name.split(".")[0] in PICKLE_MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLE_MODULES:
            wrong.append(node.module)
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in PICKLE_CALLS or ast.unparse(node.func).endswith(
                ".to_pickle"
            ):
                wrong.append(ast.unparse(node.func))
            wrong += [
                "allow_pickle"
                for k in node.keywords
                if k.arg == "allow_pickle"
                and not (isinstance(k.value, ast.Constant) and k.value.value is False)
            ]
    return wrong


def test_nothing_reads_a_pickle():
    scripts = [
        p for folder in ("braintune_nb", "tools", "tests") for p in (ROOT / folder).rglob("*.py")
    ]
    found = {
        str(p.relative_to(ROOT)): pickle_readers(ast.parse(p.read_text(encoding="utf8")))
        for p in scripts
    }
    for p in [*LIBRARY, *TUTORIALS, *EXPERIMENTS]:
        found[p.stem] = [w for _, tree in trees(p) for w in pickle_readers(tree)]
    assert {k: v for k, v in found.items() if v} == {}


def test_pickle_readers_are_seen():
    assert pickle_readers(ast.parse("import joblib")) == ["joblib"]
    assert pickle_readers(ast.parse("from pickle import load")) == ["pickle"]
    assert pickle_readers(ast.parse("torch.load(f, weights_only=True)")) == ["torch.load"]
    assert pickle_readers(ast.parse("np.load(f, allow_pickle=x)")) == ["allow_pickle"]
    assert pickle_readers(ast.parse("np.load(f, allow_pickle=False)")) == []


def tracked():
    "Files under version control, or all files where this is no clone."
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git clone")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_pickled_files():
    assert [
        p.name
        for p in tracked()
        if p.suffix in {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".bin", ".ckpt"}
    ] == []


def test_only_the_build_script_knows_what_lies_beside_the_clone():
    beside = ("../" + "shared").encode()
    assert [str(p.relative_to(ROOT)) for p in tracked() if beside in p.read_bytes()] in (
        [],
        [".ci/run"],
    )


# ---- what is installed


def pins(text):
    return dict(
        re.fullmatch(r"([\w.-]+)==(\S+)", line).groups()
        for line in text.split("\n")
        if line and line[0] != "#"
    )


def canonical(name):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


def requirements():
    "Names in setup.py's lists, without the extra that needs a compiler."
    tree = ast.parse((ROOT / "setup.py").read_text())
    lists = {
        n.targets[0].id: n.value
        for n in tree.body
        if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)
    }
    core = ast.literal_eval(lists["core"].func.value).split("\n")
    extras = [c for name in ("docs", "dev") for c in ast.walk(lists[name])]
    names = core + [c.value for c in extras if isinstance(c, ast.Constant)]
    return {canonical(e) for e in names}


def test_every_requirement_is_pinned():
    pinned = {canonical(name) for name in pins((ROOT / "constraints.txt").read_text())}
    assert requirements() - pinned == set() and {"setuptools", "nbdev", "torch"} <= pinned
    assert (
        f'setuptools=={pins((ROOT / "constraints.txt").read_text())["setuptools"]}"'
        in (ROOT / "pyproject.toml").read_text()
    )


def test_settings_agree():
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf8")
    facts = settings["DEFAULT"]
    assert (
        facts["allowed_cell_metadata_keys"] == "tags"
        and "braintune" in facts["allowed_metadata_keys"].split()
    )
    assert "Apache License" in (ROOT / "LICENSE").read_text() and facts["license"] == "apache2"
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yaml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
