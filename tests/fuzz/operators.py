"""What an operator is, and how one is registered; see README.md.

An operator is a function (content, rng) -> content; what the content is depends on its family:
bytes, text (the encoding is kept), numbers (text), json (text, or a tree), table (rows of cells),
and for the binary formats the path of the file, which is changed in place.
`Skip` says that an operator has nothing to do in this file; another one is drawn then.
"""

from dataclasses import dataclass


class Skip(Exception):
    "This operator finds nothing to change here."


@dataclass(frozen=True)
class Operator:
    "One way to spoil a file."

    family: str
    name: str
    change: object  # (content, rng) -> content
    blind: str = ""  # why no reader could see it, where the file it makes is another valid one


OPERATORS: dict = {}  # name -> Operator

# Why a changed file may be beyond any reader; an "undetectable" without a reason fails the test.
SAME = "it says the same in another legal way, or the change lies in what the format does not use"
VALUE = (
    "another number of the right kind is another valid file: only who made the recording could tell"
)
LABEL = "a label is free text: any other text is another valid label"
FEWER = "the format states no count and keeps no hash: a shorter or longer file is valid too"
CHOICE = "the format allows several such parts, and nothing in the file says which one was meant"


def operator(family, name, blind=""):
    "Register a function as an operator."

    def keep(change):
        if name in OPERATORS:
            raise ValueError(f"two operators are called {name!r}")
        OPERATORS[name] = Operator(family, name, change, blind)
        return change

    return keep


def simple(family, blind, **changes):
    "Register several functions at once, name (with _ for blanks) -> function."
    for name, change in changes.items():
        operator(family, name.replace("_", " "), blind)(change)


def pick(rng, values):
    "One of them."
    values = list(values)
    if not values:
        raise Skip
    return values[int(rng.integers(len(values)))]


def some(rng, n):
    "A position below `n`."
    if n < 1:
        raise Skip
    return int(rng.integers(n))
