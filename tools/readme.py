"""README.md is `nbs/index.ipynb`: the same words, with image paths that work from the top folder.

`python tools/readme.py` writes it; `--check` only says whether it is up to date.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTICE = (
    "<!-- Made from nbs/index.ipynb by tools/readme.py: edit that notebook, not this file. -->\n"
)


def _from_top(match: re.Match) -> str:
    "A link of the notebook, seen from the folder above: `images/x.png` -> `nbs/images/x.png`."
    before, target, after = match.groups()
    if re.match(r"[a-z]+:|#|/", target):
        return match.group(0)
    target = target.removeprefix("../") if target.startswith("../") else f"nbs/{target}"
    return f"{before}{target}{after}"


def readme(notebook: Path) -> str:
    "The Markdown of `notebook` with its links made relative to the folder above."
    from nbformat import read

    text = "\n\n".join(
        c.source for c in read(notebook, as_version=4).cells if c.cell_type == "markdown"
    )
    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)  # what is fenced is left alone
    linked = [
        p if i % 2 else re.sub(r"(\]\(|(?:src|href)=\")([^)\s\"]+)([)\"\s])", _from_top, p)
        for i, p in enumerate(parts)
    ]
    return NOTICE + "\n" + re.sub(r"\n{3,}", "\n\n", "".join(linked)).strip() + "\n"


if __name__ == "__main__":
    new, path = readme(ROOT / "nbs/index.ipynb"), ROOT / "README.md"
    if "--check" in sys.argv[1:]:
        sys.exit(
            None
            if path.read_text(encoding="utf8") == new
            else "README.md differs from nbs/index.ipynb: run python tools/readme.py"
        )
    path.write_text(new, encoding="utf8")
