"""The places that break the rules of form: `python tools/form.py [NAME ...]` lists them.

`python tools/form.py --write` counts them into tests/form_debt.csv, which may only shrink.
"""

import csv
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def debt(parts: list[str]) -> dict[str, list[str]]:
    "File -> places of it that break a rule, for files that have any and all `parts` in the name."
    from test_form import EXPERIMENTS, LIBRARY, SCRIPTS, TUTORIALS, packed

    names = {str(p.relative_to(ROOT)): p for p in (*LIBRARY, *TUTORIALS, *EXPERIMENTS, *SCRIPTS)}
    asked = lambda name: all(part in name for part in parts)
    found = {name: packed(p) for name, p in names.items() if asked(name)}
    return {name: places for name, places in found.items() if places}


if __name__ == "__main__":
    write = "--write" in sys.argv[1:]
    places = debt([] if write else sys.argv[1:])
    if write:
        with open(ROOT / "tests/form_debt.csv", "w", newline="", encoding="utf8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("file", "places"))
            rows.writerows((name, len(found)) for name, found in sorted(places.items()))
    for name, found in () if write else sorted(places.items()):
        print(name, *found, sep="\n    ")
