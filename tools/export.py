"""Everything that is generated into the package: modules, experiment notebooks, tiny weights,
registries.

`nbdev_export` writes the modules; this script calls it and then copies `nbs/experiments/*.ipynb`,
`nbs/weights/*/*`, `nbs/registry/*.csv` and the template of reports into `braintune_nb/`, so that
`braintune run`, `braintune fetch` and `braintune report` work from a wheel. Running it twice
changes nothing."""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    ("experiments", "*.ipynb"),
    ("weights", "*/*"),
    ("registry", "*.csv"),
    ("report", "*.j2"),
)  # folder under nbs/ and under the package, files in it


def sources(nbs: Path, folder: str, pattern: str) -> dict[Path, Path]:
    "Relative path -> file, for the files of `nbs/folder` that go into the package."
    found = {
        p.relative_to(nbs / folder): p for p in sorted((nbs / folder).glob(pattern)) if p.is_file()
    }
    hidden = lambda name: any(part[0] in "._" for part in name.parts)
    return {name: p for name, p in found.items() if not hidden(name)}


def copied(target: Path) -> list[Path]:
    "Files in a folder of the package that are copies; modules that stand beside them are not."
    return [p for p in target.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]


def differences(root: Path = ROOT) -> list[str]:
    "Files of the package that are missing, changed or left over against `nbs/`."
    wrong = []
    for folder, pattern in COPIED:
        wanted, target = sources(root / "nbs", folder, pattern), root / "braintune_nb" / folder
        present = {p.relative_to(target) for p in copied(target)}
        wrong += [
            f"{folder}/{name}: left over in the package" for name in sorted(present - set(wanted))
        ]
        for name, source in wanted.items():
            if name not in present:
                wrong.append(f"{folder}/{name}: missing in the package")
            elif (target / name).read_bytes() != source.read_bytes():
                wrong.append(f"{folder}/{name}: differs from nbs/")
    return wrong


def copy(root: Path = ROOT) -> None:
    "Make the copies in the package equal to `nbs/`."
    for folder, pattern in COPIED:
        target = root / "braintune_nb" / folder
        for old in copied(target):
            old.unlink()
        for name, source in sources(root / "nbs", folder, pattern).items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / name)


if __name__ == "__main__":
    from nbdev.doclinks import nbdev_export

    os.chdir(ROOT)
    nbdev_export.__wrapped__()
    copy()
