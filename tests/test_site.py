"""The site that CI publishes, as a reader meets it: links, images, search, signatures; looked at in
headless Chromium.

BRAINTUNE_SITE names a site that is built already; without it the site is built once for all
workers."""

import html
import os
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote_plus, unquote, urlsplit

import nbformat
import pytest
from conftest import ROOT

from tools import site as builder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The folder with the built site."
    if os.environ.get("BRAINTUNE_SITE"):
        return Path(os.environ["BRAINTUNE_SITE"]).resolve()
    if not find_spec("jupyter_book"):
        pytest.skip("jupyter-book is not installed: pip install -e '.[docs]'")
    from filelock import FileLock

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with FileLock(shared / "site.lock"):
        if (shared / "site.failed").exists():
            pytest.fail("the site was not built: the first error says why")
        (shared / "site.failed").touch()
        if not (shared / "site").exists():
            builder.build(ROOT, shared / "site")
        (shared / "site.failed").unlink()
    return shared / "site"


class Page(HTMLParser):
    "Addresses that a page points to, and the names inside it that can be pointed to."

    def __init__(self, text):
        super().__init__()
        self.targets, self.ids, self.words = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if given.get("id"):
            self.ids.add(given["id"])
        for key in ("href", "src"):
            if given.get(key) is not None:
                self.targets.append(given[key])

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)


def broken_links(folder):
    "Links and images of the pages in `folder` that lead to no file, or to no place in it."
    pages = {
        p.resolve(): Page(p.read_text(encoding="utf8"))
        for p in folder.rglob("*.html")
        if "_static" not in p.parts
    }
    wrong = []
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not there.is_file():
                wrong.append(f"{path.name} -> {target}")
            elif (
                parts.fragment
                and there in pages
                and unquote(parts.fragment) not in pages[there].ids
            ):
                wrong.append(f"{path.name} -> {target}")
    return wrong


# ---- without a browser


def test_no_broken_link_or_image(site):
    assert len(list(site.glob("*.html"))) > 10 and broken_links(site) == []


def test_broken_links_are_seen(tmp_path):
    (tmp_path / "b.html").write_text('<h1 id="here">x</h1>')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">1</a><a href="b.html#gone">2</a><a href="c.html">3</a><img'
        ' src="d.png"><a href="#">4</a><a href="https://x.org/y">5</a>'
    )
    assert broken_links(tmp_path) == [
        "a.html -> b.html#gone",
        "a.html -> c.html",
        "a.html -> d.png",
    ]


@pytest.mark.parametrize(
    "notebook", sorted((ROOT / "nbs").glob("[0-9]*.ipynb")), ids=lambda p: p.stem
)
def test_every_public_name_has_its_signature_and_anchor(site, notebook):
    page = Page((site / f"{builder.page_name(notebook.name)}.html").read_text(encoding="utf8"))
    text, wrong = re.sub(r"\s+", " ", page.text), []
    for cell in nbformat.read(notebook, as_version=4).cells:
        found, source = builder.directives(cell.source) if cell.cell_type == "code" else (set(), "")
        for node in builder.definitions(source) if found & {"export", "exports"} else []:
            if re.sub(r"\s+", " ", builder.signature(source, node)) not in text:
                wrong.append(f"{node.name}: signature")
            if (
                re.sub(r"[^a-z0-9]+", "-", builder.label(notebook.name, node.name).lower()).strip(
                    "-"
                )
                not in page.ids
            ):
                wrong.append(f"{node.name}: anchor")
    assert wrong == []


def cells(*sources):
    return nbformat.v4.new_notebook(
        cells=[
            (
                nbformat.v4.new_markdown_cell(s[3:])
                if s.startswith("md:")
                else nbformat.v4.new_code_cell(s)
            )
            for s in sources
        ]
    )


def test_a_page_shows_code_without_machinery():
    nb = cells(
        "md:# T\n\n> s\n\n- skip_exec: true",
        "#| default_exp x",
        "#| export\nimport os",
        "#| hide\nsecret = 1",
        "#| export\n@wraps(f)\ndef double(\n    x: int,  # a number\n) -> int:  # twice it\n   "
        " 'Twice `x`.'\n    return hidden_body",
        "md:See `double` and [next](21_y.ipynb#a), not ``double``.\n```\n`double`\n```",
        "#| echo: false\nplot()",
        "show_doc(double)",
    )
    notebooks = {"20_x.ipynb": nb}
    page = builder.page("20_x.ipynb", nb, builder.symbols(notebooks), {"20_x.ipynb", "21_y.ipynb"})
    text = "\n".join(c.source for c in page.cells)
    for gone in ("skip_exec", "default_exp", "import os", "secret", "hidden_body", "#|"):
        assert gone not in text
    assert (
        "(x.double)=\n## `double`" in text
        and "x: int,  # a number\n) -> int:  # twice it\n    'Twice `x`.'" in text
        and "@wraps(f)" in text
    )
    assert (
        "See [`double`](#x.double) and [next](y.ipynb#a), not ``double``.\n```\n`double`\n```"
        in text
    )
    assert page.cells[-2].metadata["tags"] == ["remove-input"]


def test_letters_of_papers_and_numbers_of_defects_lead_to_their_key():
    pages = {"reference/2_papers.ipynb", "reference/3_released_defects.ipynb"}
    key = "reference/released_defects.ipynb"
    assert builder.keyed("defect A-13 of paper B", "", pages) == (
        f"defect [A-13]({key}) of [paper B](reference/papers.ipynb)"
    )
    assert builder.keyed("(C-03)", "tutorials", pages) == f"([C-03](../{key}))"
    for same in ("[A-13](x.md)", "`A-13`", "AA-13", "A-130", "paper Bag", "[paper B](x.md)"):
        assert builder.keyed(same, "", pages) == same
    assert builder.keyed("A-13", "reference", pages) == "A-13"
    assert builder.keyed("A-13", "", set()) == "A-13"


def test_experiments_show_what_the_findings_say_of_them():
    said = cells(
        "md:# F\n\n> f",
        "md:## One\n\nExperiment: [`a`](../experiments/a.ipynb).\n\nWhy.",
        "plot()",
        "md:Read [on](#two).\n\n## Two\n\nNothing.",
    )
    books = {"findings/1_f.ipynb": said, "experiments/a.ipynb": cells("md:# A\n\n> a")}
    builder.add_findings(books)
    text = [c.source for c in books["experiments/a.ipynb"].cells]
    on = "Read [on](../findings/1_f.ipynb#two).\n\n"
    assert text[1:] == ["## What was found", "### One\n\nWhy.", "plot()", on]
    assert len(said.cells) == 4 and "Experiment" in said.cells[1].source  # as it was


def test_the_sidebar_fits_a_screen():
    sections = {p["section"]: len(p["contents"]) for p in builder.listed(ROOT / "_quarto.yml")}
    shown = sum(1 if name in builder.FOLDED else n for name, n in sections.items())
    assert 1 + shown <= 25, shown  # the front page is one


def test_a_warning_stops_the_build(tmp_path):
    if not find_spec("jupyter_book"):
        pytest.skip("jupyter-book is not installed")
    for name, text in {"index.ipynb": "# Front", "20_x.ipynb": "# X\n\n[nowhere](gone.md)"}.items():
        (tmp_path / "nbs").mkdir(exist_ok=True)
        nbformat.write(cells(f"md:{text}"), tmp_path / "nbs" / name)
    (tmp_path / "_quarto.yml").write_bytes((ROOT / "_quarto.yml").read_bytes())
    builder.write_list(tmp_path)
    with pytest.raises(RuntimeError, match="gone.md"):
        builder.build(tmp_path, tmp_path / "out" / "site")
    assert not (tmp_path / "out" / "site").exists()


# ---- in Chromium

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync"
    " --virtual-time-budget=10000 --enable-logging=stderr --dump-dom"
).split()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    "Function: address -> (page as Chromium leaves it, what its console said)."
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if not program:
        pytest.skip("no chromium on this machine: the pages are not looked at in a browser")
    profile = tmp_path_factory.mktemp("profile")

    def look(address):
        done = subprocess.run(
            [
                program,
                *FLAGS,
                f"--user-data-dir={profile}",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                address,
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.stdout, [line for line in done.stderr.split("\n") if ":CONSOLE" in line]

    return look


@pytest.fixture
def serve():
    "Function: folder -> (its address, list that gathers what was asked for and is not there)."
    running = []

    def start(folder):
        missing = []

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=str(folder))

            def log_message(self, *args):
                pass

            def send_error(self, code, *args):
                if not self.path.endswith("favicon.ico"):
                    missing.append(self.path)
                super().send_error(code, *args)

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}", missing

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def results(browser, address, query):
    "Titles that the search page of the site at `address` finds for `query`."
    page, _ = browser(f"{address}/search.html?q={quote_plus(query)}")
    found = re.search(r'<ul class="search">(.*?)</ul>', page, re.S)
    return (
        [html.unescape(t) for t in re.findall(r"<li[^>]*><a[^>]*>(.*?)</a>", found[1], re.S)]
        if found
        else []
    )


def test_search_finds_the_noise_ceiling(site, browser, serve):
    address, _ = serve(site)
    found = results(browser, address, "noise ceiling")
    assert found and any("eiling" in title for title in found), found
    assert results(browser, address, "qqzzxxyy") == []


def test_no_page_asks_for_something_that_is_missing(site, browser, serve):
    address, missing = serve(site)
    wrong = []
    for page in [
        site / "index.html",
        *sorted(site.glob("*.*.html")),
        *sorted(site.glob("tutorials/*.html")),
    ]:
        dom, console = browser(f"{address}/{page.relative_to(site).as_posix()}")
        if "</article>" not in dom:
            wrong.append(f"{page.name} is empty")
        wrong += [
            f"{page.name}: {line}" for line in console if "Uncaught" in line and "127.0.0.1" in line
        ]
    assert wrong == [] and missing == []


def test_a_missing_image_and_a_broken_script_are_seen(tmp_path, browser, serve):
    (tmp_path / "a.html").write_text('<img src="gone.png"><script>undefined_name()</script>')
    address, missing = serve(tmp_path)
    _, console = browser(f"{address}/a.html")
    assert missing == ["/gone.png"] and any("Uncaught" in line for line in console)


def test_a_function_shows_its_parameter_comments(site, browser, serve):
    address, _ = serve(site)
    dom, _ = browser(f"{address}/align.delays.html#align-delays-delay")
    text = Page(dom).text
    block = text[text.index("def delay(") :]
    assert re.search(r"features\W.*# .*\(T, F\).*\n\s*delays.*# ", block[: block.index('"')]), (
        block[:400]
    )
