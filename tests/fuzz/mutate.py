"""Seeded mutation: a pristine seed, a number, and a spoilt copy with operators known by name."""

import shutil
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import mutate_binary as binary
import mutate_text as text
import numpy as np
from operators import OPERATORS, Skip, pick

# family -> how its operators are applied to a draft
CHANGES = dict(
    bytes=text.change_bytes,
    whole=text.change_bytes,
    place=text.change_place,
    text=text.change_text,
    encoding=text.change_text,
    numbers=text.change_text,
    grid=text.change_text,
    log=text.change_text,
    json=text.change_json,
    table=text.change_table,
    hdf5=binary.change_hdf5,
    nifti=binary.change_nifti,
    image=binary.change_image,
    gifti=binary.change_gifti,
    surface=binary.change_surface,
    annot=binary.change_annot,
    parcels=binary.rewritten_annot,
    wav=binary.change_wav,
    samples=binary.change_samples,
    release=binary.change_release,
)

COMMON = dict(bytes=2, whole=1, place=0.3)
TEXT = COMMON | dict(text=3, encoding=2, numbers=4)
JSON = COMMON | dict(text=1, encoding=1, numbers=1, json=7)
# target -> family -> how often
FAMILIES = dict(
    textgrid=TEXT | dict(grid=6),
    scanner_log=TEXT | dict(log=6),
    word_table=TEXT | dict(table=7),
    split_json=JSON,
    respdict_json=JSON,
    hdf5_lebel=COMMON | dict(hdf5=7),
    hdf5_bilingual=COMMON | dict(hdf5=7),
    nifti=COMMON | dict(nifti=4, image=4),
    gifti=COMMON | dict(gifti=4, surface=3, text=1),
    annot=COMMON | dict(annot=4, parcels=2),
    sound=COMMON | dict(wav=4, samples=4),
    confounds_tsv=TEXT | dict(table=7),
    release=COMMON | dict(json=2, release=7),
    run_json=JSON,
    summary_json=JSON,
)


@dataclass
class Draft:
    "A copy of a seed that is being spoilt."

    target: str
    root: Path
    path: Path
    context: dict = field(default_factory=dict)


def names_of(target):
    "Family -> names of its operators, for one target."
    named = lambda family: [o.name for o in OPERATORS.values() if o.family == family]
    return {family: named(family) for family in FAMILIES[target]}


def generator(seed, target, index):
    "The random numbers of one input, alike on every machine."
    return np.random.default_rng([seed, zlib.crc32(target.encode()), index])


def draw(target, rng):
    "An operator, by family and then by name."
    weights = FAMILIES[target]
    share = np.array(list(weights.values()), float)
    family = list(weights)[int(rng.choice(len(share), p=share / share.sum()))]
    return OPERATORS[pick(rng, names_of(target)[family])]


def apply(draft, chosen, rng):
    "One operator, on the draft's file or, in a folder, on any of its files."
    if not draft.path.is_file() and draft.path != draft.root:
        raise Skip
    file = draft.path
    if draft.path == draft.root and chosen.family != "release":
        kinds = (".json",) if chosen.family == "json" else ("",)
        file = binary.a_file(draft.root, rng, *kinds)
    CHANGES[chosen.family](Draft(draft.target, draft.root, file, draft.context), chosen.change, rng)


def content_of(root):
    "Everything in a folder, to see whether anything changed."
    found = {}
    for path in sorted(root.rglob("*")):
        held = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(root))] = path.read_bytes() if held else path.is_symlink()
    return found


LARGEST = 8 * 2**20  # bytes of an input: what is wrong shall be wrong with a small file


def size_of(content):
    return sum(len(c) for c in content.values() if isinstance(c, bytes))


def one_change(draft, rng, again=False, tries=40):
    """Draw operators until one changes something; its name.

    `again`: the file is spoilt already, so that operators which cannot open it are passed over.
    """
    before, kept = content_of(draft.root), draft.root.with_name(draft.root.name + ".kept")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(draft.root, kept, symlinks=True)
    for _ in range(tries):
        chosen = draw(draft.target, rng)
        try:
            apply(draft, chosen, rng)
            after = content_of(draft.root)
            if after != before and size_of(after) < LARGEST:
                return chosen.name
        except Skip:
            pass
        except Exception:
            if not again:
                raise
        if content_of(draft.root) != before:
            shutil.rmtree(draft.root)
            shutil.copytree(kept, draft.root, symlinks=True)
    raise Skip


def mutate(seeds, seed, index, folder):
    "Make input number `index` in `folder`: (seed, draft, operators; none: an untouched copy)."
    target = seeds[0].target
    rng = generator(seed, target, index)
    chosen = seeds[int(rng.integers(len(seeds)))]
    root = Path(folder) / "input"
    if root.exists():
        shutil.rmtree(root)
    shutil.copytree(chosen.root, root, symlinks=True)
    draft = Draft(target, root, root / chosen.file if chosen.file else root, chosen.context)
    count = int(rng.choice([0, 1, 2, 3], p=[0.03, 0.77, 0.15, 0.05]))
    names = []
    for _ in range(count):
        try:
            names.append(one_change(draft, rng, again=bool(names)))
        except Skip:
            break
    return chosen, draft, tuple(names)
