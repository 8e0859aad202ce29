"""The site: chapters of `nbs/` as pages of a Jupyter Book, from the outputs that are stored in
them.

python tools/site.py           build into _site/ (any warning stops it)
python tools/site.py --list    write the chapters found in nbs/ into the sidebar of _quarto.yml

Nothing is executed. nbdev's own page builder runs every module again to ask each function for its
signature; here the signature is read from the cell that defines it, so a page costs milliseconds
and needs no optional library."""

import ast
import copy
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import yaml
from nbformat.v4 import new_markdown_cell

ROOT = Path(__file__).resolve().parents[1]
PARTS = (  # first number of a part, its name
    (0, "Data"),
    (20, "Times and places"),
    (27, "Models and features"),
    (34, "The simulated experiment"),
    (40, "Tuning"),
    (70, "Encoding"),
    (78, "Analyses"),
    (86, "Downstream tasks"),
    (89, "Experiments on a plan"),
    (95, "Reports and command line"),
    (98, "Experiments on a plan"),
    (99, "Reports and command line"),
)
BEFORE = (("tutorials", "Tutorials"), ("howto", "How-to"))  # folders that stand before the chapters
AFTER = (
    ("findings", "Findings"),
    ("experiments", "Experiments"),
    ("reference", "Reference"),
)  # and after them
FOLDED = {name for _, name in (*PARTS, *AFTER)} - {"Findings"}  # one entry of the sidebar each
KEYS = {
    r"(?<![\[\w`/-])([ABCD]-\d\d)(?![\]\w])": "reference/3_released_defects.ipynb",
    r"(?<![\[\w`])([Pp]apers? [ABCD])(?![\]\w])": "reference/2_papers.ipynb",
}  # what chapters name by a letter: the page that holds the key
EXTENSIONS = [
    "sphinx_togglebutton",
    "sphinx_copybutton",
    "myst_nb",
    "jupyter_book",
    "sphinx_external_toc",
    "sphinx_design",
    "sphinx_comments",
    "sphinx_book_theme",
]  # those of Jupyter Book that the pages use
STYLE = """
.bd-main .bd-content .bd-article-container { max-width: 66rem; }
div.highlight pre { font-size: 0.75rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.bd-article td, .bd-article th { font-size: 0.85rem; padding: 0.3rem 0.4rem; }
.bd-article td code { white-space: normal; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  .bd-article td, .bd-article th { font-size: 0.72rem; padding: 0.2rem; overflow-wrap: anywhere; }
}
.bd-article h1 { font-size: 2rem; }
.bd-article h2 { font-size: 1.5rem; }
.bd-article h3 { font-size: 1.15rem; }
"""
DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


# ---- which pages, in which order


def contents(nbs: Path) -> list[dict]:
    "The sidebar that fits the notebooks in `nbs`: sections with their pages, in reading order."
    parts = {name: [] for _, name in PARTS}
    for p in sorted(nbs.glob("[0-9]*_*.ipynb")):
        number = int(p.name.split("_")[0])
        parts[[name for first, name in PARTS if first <= number][-1]].append(p.name)

    def folder(name):
        found = sorted((nbs / name).glob("*.ipynb"))
        return [f"{name}/{p.name}" for p in found if p.name[0] not in "._"]

    sections = {name: folder(place) for place, name in BEFORE}
    sections |= parts
    sections |= {name: folder(place) for place, name in AFTER}
    return [{"section": name, "contents": pages} for name, pages in sections.items() if pages]


def listed(quarto: Path) -> list[dict]:
    "The sidebar that the site file holds, without its front page."
    items = yaml.safe_load(quarto.read_text(encoding="utf8"))["website"]["sidebar"]["contents"]
    return [item for item in items if item != "index.ipynb"]


def write_list(root: Path = ROOT) -> None:
    """Put the chapters of `nbs/` into `_quarto.yml`; the lines above the sidebar's contents
    stay as they are."""
    path = root / "_quarto.yml"
    head, mark, _ = path.read_text(encoding="utf8").partition("    contents:\n")
    lines = ["      - index.ipynb"]
    for part in contents(root / "nbs"):
        lines += [
            f"      - section: {part['section']}",
            "        contents:",
            *(f"          - {name}" for name in part["contents"]),
        ]
    path.write_text(head + mark + "\n".join(lines) + "\n", encoding="utf8")


def page_name(notebook: str) -> str:
    "`20_align.resample.ipynb` -> `align.resample`: addresses carry no number."
    folder, _, name = notebook.rpartition("/")
    return "/".join(filter(None, [folder, re.sub(r"^\d+[a-z]?_", "", name).removesuffix(".ipynb")]))


# ---- one notebook to one page


def directives(source: str) -> tuple[set[str], str]:
    "The `#|` lines of a cell, and the cell without them."
    lines = source.split("\n")
    found = {
        re.sub(r"\s+", " ", m.group(1)).strip()
        for line in lines
        if (m := re.match(r"\s*#\|\s*(.+)", line))
    }
    return found, "\n".join(line for line in lines if not re.match(r"\s*#\|", line)).strip("\n")


def definitions(source: str) -> list[ast.stmt]:
    "Public functions and classes of a cell."
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []  # a cell with IPython's own lines defines nothing public
    return [
        node for node in tree.body if isinstance(node, DEFINITION) and not node.name.startswith("_")
    ]


def signature(source: str, node: ast.stmt) -> str:
    "The lines of `source` that declare `node`, with the parameter comments, and its docstring."
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    documented = ast.get_docstring(node) is not None
    last = (
        node.body[0].end_lineno
        if documented or isinstance(node, ast.ClassDef)
        else node.body[0].lineno - 1
    )
    return "\n".join(source.split("\n")[first - 1 : max(last, node.lineno)])


def symbols(notebooks: dict[str, nbformat.NotebookNode]) -> dict[str, str]:
    "Name -> label of its definition, for every public name that only one module defines."
    labels = {}
    for name, nb in notebooks.items():
        for cell in nb.cells:
            found, source = directives(cell.source) if cell.cell_type == "code" else (set(), "")
            if found & {"export", "exports"}:
                for node in definitions(source):
                    labels.setdefault(node.name, []).append(label(name, node.name))
    return {name: where[0] for name, where in labels.items() if len(where) == 1}


def label(notebook: str, name: str) -> str:
    return f"{page_name(notebook)}.{name}"


def repository(root: Path = ROOT) -> str:
    "Address under which the files of the repository can be read."
    settings = ConfigParser(delimiters=["="])
    settings.read(root / "settings.ini", encoding="utf8")
    return settings["DEFAULT"]["git_url"] + "/blob/main/"


def to_repository(match: re.Match, folder: str) -> str:
    "A link to a file that is no page of the site, such as a table or the licence, as an address."
    place = os.path.normpath(Path("nbs") / folder / match[2])
    if match[2].endswith((".ipynb", ".png", ".svg")) or not (ROOT / place).is_file():
        return match[0]
    return f"{match[1]}{repository()}{place})"


def to_page(link: re.Match, folder: str, pages: set[str]) -> str:
    "A link to a notebook as a link to its page."
    name = link[2].removeprefix("../")
    outside = link[2].startswith("../")
    if (name if outside or not folder else f"{folder}/{link[2]}") not in pages:
        return link[0]
    return f"{link[1]}{'../' if outside else ''}{page_name(name)}.ipynb{link[3] or ''})"


def linked(line: str, known: dict[str, str], folder: str, pages: set[str]) -> str:
    "A line of prose with its links."
    line = re.sub(
        r"(\]\()([^)\s#:]+\.ipynb)(#[^)\s]*)?\)", lambda m: to_page(m, folder, pages), line
    )
    line = re.sub(r"(\]\()([^)\s#:]+)\)", lambda m: to_repository(m, folder), line)
    return re.sub(
        r"(?<![\[`\w])`([A-Za-z_][\w.]*?)(\(\))?`(?![`\]\w])",
        lambda m: f"[{m[0]}](#{known[m[1]]})" if m[1] in known else m[0],
        keyed(line, folder, pages),
    )


def prose(text: str, known: dict[str, str], folder: str, pages: set[str]) -> str:
    "Markdown with links from `names` to their definitions, and from notebooks to their pages."

    lines, fenced = [], False
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("#"):
            line = linked(line, known, folder, pages)
        lines.append(line)
    return "\n".join(lines)


def keyed(line: str, folder: str, pages: set[str]) -> str:
    "A line in which letters of papers and numbers of defects are links to their key."
    if folder == "reference":
        return line
    for pattern, page in KEYS.items():
        if page in pages:
            address = f"{'../' if folder else ''}{page_name(page)}.ipynb"
            line = re.sub(pattern, lambda m, a=address: f"[{m[1]}]({a})", line)
    return line


def documented(notebook: str, source: str, nodes: list, depth: int) -> str:
    "Heading and anchors of the definitions of one cell."
    anchors = "\n".join(f"({label(notebook, node.name)})=" for node in nodes)
    return f"{anchors}\n{'#' * min(depth + 1, 6)} {', '.join(f'`{node.name}`' for node in nodes)}"


TAGS = {
    "echo: false": "remove-input",
    "output: false": "remove-output",
    "code-fold: true": "hide-input",
}


def hidden(keys: set[str], found: list[str], source: str) -> bool:
    "Whether a code cell does not stand on the page."
    if keys & {"hide", "default_exp", "hide_input"} or "include: false" in found:
        return True
    return not source.strip() or "nbdev_export()" in source


def block(texts: list[str]) -> nbformat.NotebookNode:
    "A cell that shows code that does not run."
    return new_markdown_cell("\n\n".join(f"```python\n{text}\n```" for text in texts))


def add_tags(cell: nbformat.NotebookNode, found: list[str]) -> None:
    "What the directives hide of a cell, as tags of the book."
    tags = [tag for directive, tag in TAGS.items() if directive in found]
    cell.metadata["tags"] = [*cell.metadata.get("tags", []), *tags]


def code(notebook: str, cell, depth: int, sources: dict[str, str]) -> list:
    "The cells that stand on the page for one code cell."
    found, source = directives(cell.source)
    keys = {f.split(" ")[0] for f in found}
    if hidden(keys, found, source):
        return []
    shown = re.match(r"show_doc\(([\w.]+)", source)
    if shown:
        return [block([sources[shown[1]]])] if shown[1] in sources else []
    nodes = definitions(source) if keys & {"export", "exports"} else []
    head = [new_markdown_cell(documented(notebook, source, nodes, depth))] if nodes else []
    if keys & {"export", "exporti"}:
        return [*head, block([signature(source, n) for n in nodes])] if nodes else []
    add_tags(cell, found)
    cell.source = source
    return head + [cell]


def signatures(nb: nbformat.NotebookNode) -> dict[str, str]:
    "Public functions, classes and methods of a notebook -> their signature."
    found = {}
    for cell in nb.cells:
        source = directives(cell.source)[1] if cell.cell_type == "code" else ""
        for node in definitions(source):
            found[node.name] = signature(source, node)
            methods = [m for m in node.body if isinstance(m, DEFINITION[:2])]
            found |= {f"{node.name}.{m.name}": signature(source, m) for m in methods}
    return found


def page(
    notebook: str, nb: nbformat.NotebookNode, known: dict[str, str], pages: set[str]
) -> nbformat.NotebookNode:
    "The notebook as it is shown: no machinery, every public definition under a heading of its own."
    sources = signatures(nb)
    cells, depth = [], 1
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == "code":
            cells += code(notebook, cell, depth, sources)
            continue
        if cell.cell_type != "markdown":
            continue
        if i == 0:
            cell.source = re.sub(
                r"^- (skip_\w+|title|description|output-file):.*\n?", "", cell.source, flags=re.M
            )
        cell.source = prose(cell.source, known, notebook.rpartition("/")[0], pages)
        outside = re.sub(r"^```.*?^```$", "", cell.source, flags=re.M | re.S)
        for heading in re.findall(r"^(#+) ", outside, flags=re.M):
            depth = len(heading)
        cells.append(cell)
    nb.cells = cells
    nb.metadata.pop("widgets", None)
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    return nb


# ---- what experiments found


def sections_of(nb: nbformat.NotebookNode) -> list[list]:
    "The cells of a page under each of its second-level headings."
    sections = []
    for cell in nb.cells:
        if cell.cell_type != "markdown":
            sections[-1:] = [[*part, cell] for part in sections[-1:]]
            continue
        for text in re.split(r"^(?=## )", cell.source, flags=re.M):
            if text.startswith("## "):
                sections.append([])
            if sections and text.strip():
                sections[-1].append(new_markdown_cell(text))
    return sections


def add_findings(notebooks: dict[str, nbformat.NotebookNode]) -> None:
    "Sections of the findings, shown again at the end of the experiments that they link to."
    found = {}
    for name in [n for n in notebooks if n.startswith("findings/")]:
        for cells in sections_of(notebooks[name]):
            for experiment in re.findall(r"\(\.\./(experiments/\w+\.ipynb)\)", cells[0].source):
                found.setdefault(experiment, []).extend((name, cell) for cell in cells)
    for name in set(found) & set(notebooks):
        notebooks[name].cells.append(new_markdown_cell("## What was found"))
        for page, cell in copy.deepcopy(found[name]):
            if cell.cell_type == "markdown":
                cell.source = re.sub(r"^Experiments?: .*\n*", "", cell.source, flags=re.M)
                cell.source = re.sub(r"^## ", "### ", cell.source).replace("](#", f"](../{page}#")
            notebooks[name].cells.append(cell)


# ---- all pages to a site


def overview(name: str, pages: list[str], book: Path) -> str:
    "File of a page that lists the pages of a folded section with their first two lines."
    lines = [f"# {name}", ""]
    for page in pages:
        first = nbformat.read(book / page, as_version=4).cells[0].source
        title = re.search(r"^# (.+)", first, flags=re.M)[1]
        subtitle = re.search(r"^> (.+)", first, flags=re.M)
        lines.append(f"* [{title}]({page}): {subtitle[1] if subtitle else ''}")
    file = re.sub(r"\W+", "_", name.lower()) + ".md"
    (book / file).write_text("\n".join(lines) + "\n", encoding="utf8")
    return file


def table_of_contents(parts: list[dict], book: Path) -> list[dict]:
    "The sidebar of the book: chapters of the method folded, so that it fits on a screen."
    captions = {name: "Method" for _, name in PARTS} | {name: name for _, name in (*BEFORE, *AFTER)}
    toc = {}
    for part in parts:
        name = part["section"]
        pages = [f"{page_name(page)}.ipynb" for page in part["contents"]]
        entries = [{"file": page} for page in pages]
        if name in FOLDED:
            entries = [{"file": overview(name, pages, book), "sections": entries}]
        toc.setdefault(captions.get(name, name), []).extend(entries)
    return [{"caption": caption, "chapters": entries} for caption, entries in toc.items()]


def settings(root: Path) -> dict:
    "Settings of the book."
    website = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf8"))["website"]
    return {
        "title": website["title"],
        "author": website["description"],
        "copyright": "2026 onwards",
        "only_build_toc_files": True,
        "execute": {"execute_notebooks": "off"},
        "html": {
            "use_issues_button": False,
            "use_repository_button": False,
            "home_page_in_navbar": False,
            "extra_footer": "",
        },
        "sphinx": {
            "config": {
                "extensions": EXTENSIONS,
                "html_show_copyright": False,
                "html_copy_source": False,
                "html_static_path": ["_static"],
                "html_css_files": ["chapters.css"],
                "nb_merge_streams": True,
                "nb_output_stderr": "remove",
                "nb_render_markdown_format": "myst",
                "myst_linkify_fuzzy_links": False,
                "myst_heading_anchors": 3,
                "html_theme_options": {
                    "use_download_button": False,
                    "show_toc_level": 2,
                    "navigation_with_keys": False,
                    "navbar_start": [],
                    "navbar_persistent": [],
                    "logo": {"text": website["title"]},
                },
            }
        },
    }


def write_settings(book: Path, toc: dict, config: dict) -> None:
    "Style, table of contents and settings of the book."
    (book / "_static").mkdir()
    (book / "_static" / "chapters.css").write_text(STYLE.lstrip(), encoding="utf8")
    (book / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False), encoding="utf8")
    (book / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf8")


def write_book(root: Path, book: Path) -> None:
    "Pages, table of contents and settings of the book in folder `book`."
    parts = listed(root / "_quarto.yml")
    names = ["index.ipynb", *(name for part in parts for name in part["contents"])]
    notebooks = {name: nbformat.read(root / "nbs" / name, as_version=4) for name in names}
    known = symbols(notebooks)
    add_findings(notebooks)
    for name, nb in notebooks.items():
        target = book / f"{page_name(name)}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(page(name, nb, known, set(names)), target)
    if (root / "nbs/images").is_dir():
        shutil.copytree(root / "nbs/images", book / "images")
    toc = {"format": "jb-book", "root": "index.ipynb", "parts": table_of_contents(parts, book)}
    config = settings(root)
    write_settings(book, toc, config)


def build(root: Path, site: Path) -> None:
    "Build the site of `root` into the folder `site`; a warning stops it."
    book = site.with_name("_book")
    if book.exists():
        shutil.rmtree(book)
    book.mkdir(parents=True)
    write_book(root, book)
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(book),
        "-W",
        "--keep-going",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    if done.returncode:
        said = [
            line for line in log.split("\n") if "WARNING" in line or "ERROR" in line
        ] or log.split("\n")[-30:]
        raise RuntimeError("the site was not built:\n" + "\n".join(said))
    if site.exists():
        shutil.rmtree(site)
    shutil.move(book / "_build" / "html", site)
    (site / ".nojekyll").touch()


if __name__ == "__main__":
    if "--list" in sys.argv[1:]:
        write_list()
    else:
        build(ROOT, ROOT / "_site")
