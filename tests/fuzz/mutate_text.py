"""Operators on bytes, places, text, numbers, JSON, tables, TextGrids and scanner logs."""

import csv
import gzip
import io
import json
import re
import unicodedata

import numpy as np
from operators import CHOICE, FEWER, LABEL, SAME, VALUE, Skip, operator, pick, simple, some

# ---- bytes of any file


def flip_bit(b, rng):
    at = some(rng, len(b))
    return b[:at] + bytes([b[at] ^ (1 << int(rng.integers(8)))]) + b[at + 1 :]


def flip_header_bit(b, rng):
    at = some(rng, min(len(b), 512))
    return b[:at] + bytes([b[at] ^ (1 << int(rng.integers(8)))]) + b[at + 1 :]


def replace_byte(b, rng):
    at = some(rng, len(b))
    return b[:at] + bytes([int(rng.integers(256))]) + b[at + 1 :]


def extreme_byte(b, rng):
    at = some(rng, min(len(b), 2048))
    return b[:at] + pick(rng, [b"\x00", b"\xff", b"\x7f", b"\x80"]) + b[at + 1 :]


def zero_run(b, rng):
    at = some(rng, len(b))
    n = int(rng.integers(1, 65))
    return b[:at] + bytes(len(b[at : at + n])) + b[at + n :]


def cut_anywhere(b, rng):
    return b[: some(rng, len(b))]


def cut_near_end(b, rng):
    return b[: max(0, len(b) - int(rng.integers(1, 33)))]


def drop_run(b, rng):
    at = some(rng, len(b))
    return b[:at] + b[at + int(rng.integers(1, 129)) :]


def double_run(b, rng):
    at = some(rng, len(b))
    n = int(rng.integers(1, 129))
    return b[: at + n] + b[at:]


def insert_bytes(b, rng):
    at = some(rng, len(b) + 1)
    return b[:at] + rng.integers(0, 256, int(rng.integers(1, 9)), dtype=np.uint8).tobytes() + b[at:]


def swap_runs(b, rng):
    n = int(rng.integers(1, 65))
    i, j = sorted((some(rng, len(b)), some(rng, len(b))))
    if j < i + n:
        raise Skip
    return b[:i] + b[j : j + n] + b[i + n : j] + b[i : i + n] + b[j + n :]


def append_bytes(b, rng):
    return b + rng.integers(0, 256, int(rng.integers(1, 65)), dtype=np.uint8).tobytes()


def wide_field(b, rng):
    "A whole number of 2, 4 or 8 bytes in the first kilobyte is set to a limit."
    size = pick(rng, [2, 4, 8])
    at = some(rng, min(len(b), 1024) - size)
    value = pick(rng, [0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1])
    return b[:at] + value.to_bytes(size, pick(rng, ["little", "big"])) + b[at + size :]


simple(
    "bytes",
    VALUE,
    flip_a_bit=flip_bit,
    flip_a_bit_of_the_header=flip_header_bit,
    replace_a_byte=replace_byte,
    set_a_byte_to_a_limit=extreme_byte,
    set_bytes_to_zero=zero_run,
    remove_bytes=drop_run,
    repeat_bytes=double_run,
    insert_bytes=insert_bytes,
    exchange_two_runs_of_bytes=swap_runs,
    set_a_field_to_a_limit=wide_field,
)
simple("bytes", FEWER, cut_the_file_anywhere=cut_anywhere, cut_off_the_last_bytes=cut_near_end)
simple("bytes", SAME, append_bytes=append_bytes)

simple(
    "whole",
    "",
    empty_file=lambda b, rng: b"",
    nothing_but_zeros=lambda b, rng: bytes(len(b)),
    nothing_but_blanks=lambda b, rng: b" \n\n",
    an_annex_pointer=lambda b, rng: (
        b"../../.git/annex/objects/Xk/7P/MD5E-s812--0a1b.dat/MD5E-s812--0a1b.dat\n"
    ),
    an_lfs_pointer=lambda b, rng: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    ),
    a_web_page=lambda b, rng: b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n",
    a_picture=lambda b, rng: b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    random_bytes=lambda b, rng: rng.integers(0, 256, 400, dtype=np.uint8).tobytes(),
    the_file_twice=lambda b, rng: b + b,
    packed_with_gzip=lambda b, rng: gzip.compress(b, mtime=0),
)


def change_bytes(draft, change, rng):
    draft.path.write_bytes(change(draft.path.read_bytes(), rng))


# ---- the place of the file


def place(name):
    return operator("place", name)


@place("no file")
def absent(path, rng):
    path.unlink()


@place("a link to nothing")
def dangling(path, rng):
    path.unlink()
    path.symlink_to(path.with_name("nothing.here"))


@place("a folder in place of the file")
def folder_instead(path, rng):
    path.unlink()
    path.mkdir()


def change_place(draft, change, rng):
    change(draft.path, rng)


# ---- text


def encoding_of(content):
    "Encoding by its mark or its zero bytes."
    if content[:3] == b"\xef\xbb\xbf":
        return "utf-8-sig"
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if content[1:200:2].count(0) > 60:
        return "utf-16-le"
    return "utf-16-be" if content[:200:2].count(0) > 60 else "utf-8"


def change_text(draft, change, rng):
    content = draft.path.read_bytes()
    encoding = encoding_of(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        raise Skip from None
    changed = change(text, rng)
    if isinstance(changed, str):
        changed = changed.encode(encoding, "surrogatepass")
    draft.path.write_bytes(changed)


def lines_of(text):
    return text.split("\n")


def on_lines(change):
    "An operator on the list of lines."

    def changed(text, rng):
        lines = lines_of(text)
        change(lines, rng)
        return "\n".join(lines)

    return changed


def drop_line(lines, rng):
    del lines[some(rng, len(lines) - 1)]


def drop_lines(lines, rng):
    at = some(rng, len(lines) - 1)
    del lines[at : at + int(rng.integers(2, 8))]


def double_line(lines, rng):
    at = some(rng, len(lines) - 1)
    lines.insert(at, lines[at])


def swap_neighbours(lines, rng):
    at = some(rng, len(lines) - 2)
    lines[at], lines[at + 1] = lines[at + 1], lines[at]


def swap_lines(lines, rng):
    i, j = some(rng, len(lines) - 1), some(rng, len(lines) - 1)
    if lines[i] == lines[j]:
        raise Skip
    lines[i], lines[j] = lines[j], lines[i]


def cut_line(lines, rng):
    at = some(rng, len(lines) - 1)
    lines[at] = lines[at][: some(rng, max(1, len(lines[at])))]


def blank_line(lines, rng):
    lines.insert(some(rng, len(lines)), pick(rng, ["", "   ", "\t"]))


def join_lines(lines, rng):
    at = some(rng, len(lines) - 2)
    lines[at : at + 2] = [lines[at] + " " + lines[at + 1]]


def note_line(lines, rng):
    lines.insert(
        some(rng, len(lines)),
        pick(rng, ["# made by hand", "! made by hand", "// made by hand", ";;"]),
    )


def word_line(lines, rng):
    lines.insert(
        some(rng, len(lines)), pick(rng, ["xyzzy", "0", '"', "12.5 trigger", "end of file"])
    )


for name, change in dict(
    drop_a_line=drop_line,
    drop_lines=drop_lines,
    repeat_a_line=double_line,
    exchange_neighbouring_lines=swap_neighbours,
    exchange_two_lines=swap_lines,
    cut_a_line=cut_line,
    join_two_lines=join_lines,
    a_line_of_comment=note_line,
    a_line_of_something_else=word_line,
).items():
    simple("text", FEWER, **{name: on_lines(change)})
simple("text", SAME, an_empty_line=on_lines(blank_line))

STRANGE = [
    "\x00",
    "\x07",
    "\x1b[31m",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x85",
    "\xa0",
    "\u2028",
    "\u2029",
    "\ufeff",
    "\u200b",
    "\u202e",
]
STRANGE += [
    '"',
    "'",
    "\\",
    "\t",
    ",",
    "<",
    "&",
    "%",
    "\ud800",
    "ß",
    "Ω",
    "🎧",
    "\r",
    "\n",
    "=",
    "[",
    "}",
    "-",
    ".",
]


def strange_character(text, rng):
    at = some(rng, len(text) + 1)
    return text[:at] + pick(rng, STRANGE) + text[at:]


def drop_character(text, rng):
    at = some(rng, len(text))
    return text[:at] + text[at + 1 :]


def other_letter(text, rng):
    at = pick(rng, [m.start() for m in re.finditer("[aceopxyHTE]", text)])
    return text[:at] + dict(zip("aceopxyHTE", "асеорхуНТЕ"))[text[at]] + text[at + 1 :]


def other_case(text, rng):
    return pick(rng, [text.upper(), text.lower(), text.swapcase()])


def drop_quote(text, rng):
    at = pick(rng, [m.start() for m in re.finditer('"', text)])
    return text[:at] + text[at + 1 :]


def curly_quotes(text, rng):
    if '"' not in text:
        raise Skip
    return text.replace('"', "“")


def deep_indent(text, rng):
    lines = lines_of(text) * pick(rng, [1, 20])
    return "\n".join(" " * 400 + line for line in lines)


def long_line(text, rng):
    lines = lines_of(text)
    at = some(rng, len(lines))
    lines[at] += pick(rng, ["x", " ", '"', "9", "[", "\t,"]) * 60_000
    return "\n".join(lines)


def many_lines(text, rng):
    lines = lines_of(text)
    at = some(rng, len(lines))
    return "\n".join(lines[:at] + lines[at : at + 1] * 20_000 + lines[at + 1 :])


simple(
    "text",
    LABEL,
    a_strange_character=strange_character,
    drop_a_character=drop_character,
    a_letter_of_another_alphabet=other_letter,
    drop_a_quote=drop_quote,
    other_capitals=other_case,
)
simple("text", SAME, indent_by_400_blanks=deep_indent)
simple("text", FEWER, a_line_of_60000_characters=long_line, a_line_20000_times=many_lines)
simple("text", LABEL, curly_quotes=curly_quotes)

simple(
    "encoding",
    SAME,
    as_UTF16=lambda t, rng: t.encode("utf-16", "surrogatepass"),
    as_UTF16_without_mark=lambda t, rng: t.encode(
        pick(rng, ["utf-16-le", "utf-16-be"]), "surrogatepass"
    ),
    as_UTF8_with_mark=lambda t, rng: t.encode("utf-8-sig", "surrogatepass"),
    as_UTF8=lambda t, rng: t.encode("utf-8", "surrogatepass"),
    as_Windows_text=lambda t, rng: t.replace("\n", "\r\n"),
    as_old_Mac_text=lambda t, rng: t.replace("\n", "\r"),
    mixed_line_ends=lambda t, rng: "".join(c + pick(rng, ["\n", "\r\n"]) for c in t.split("\n")),
    no_line_end_at_the_end=lambda t, rng: t.rstrip("\n"),
    blanks_at_line_ends=lambda t, rng: t.replace("\n", "  \n"),
    composed_letters_taken_apart=lambda t, rng: unicodedata.normalize("NFD", t),
)
simple(
    "encoding",
    LABEL,
    as_UTF32=lambda t, rng: t.encode("utf-32", "surrogatepass"),
    as_Latin1=lambda t, rng: t.encode("latin-1", "replace"),
    as_a_Chinese_code_page=lambda t, rng: t.encode("gb18030", "replace"),
    decoded_wrongly=lambda t, rng: t.encode("utf-8", "replace").decode("latin-1"),
)


# ---- numbers in text

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.])")


def number_places(text):
    return list(NUMBER.finditer(text))


def put(text, match, new):
    return text[: match.start()] + new + text[match.end() :]


def on_number(change):
    "An operator on one number: (text of the number, rng) -> other text."

    def changed(text, rng):
        found = pick(rng, number_places(text))
        new = change(found[0], rng)
        if new == found[0]:
            raise Skip
        return put(text, found, new)

    return changed


def all_numbers(change):
    "The same on every number."
    return lambda text, rng: NUMBER.sub(lambda m: change(m[0], rng), text)


def digit_more(x, rng):
    return x + str(int(rng.integers(10)))


def other_digit(x, rng):
    at = pick(rng, [i for i, c in enumerate(x) if c.isdigit()])
    return x[:at] + str(int(rng.integers(10))) + x[at + 1 :]


simple(
    "numbers",
    VALUE,
    a_number_with_another_digit=on_number(other_digit),
    a_number_with_a_digit_more=on_number(digit_more),
    a_number_without_its_point=on_number(lambda x, rng: x.replace(".", "")),
    a_number_with_the_other_sign=on_number(lambda x, rng: x[1:] if x[0] == "-" else "-" + x),
    a_number_times_1000=on_number(lambda x, rng: repr(float(x) * 1000)),
    a_number_plus_a_little=on_number(
        lambda x, rng: repr(float(x) + pick(rng, [1e-9, 1e-7, 1e-4, 0.01]))
    ),
    a_number_plus_a_billion=on_number(lambda x, rng: repr(float(x) + 1.6e9)),
    a_number_becomes_0=on_number(lambda x, rng: "0"),
    a_number_that_is_huge=on_number(
        lambda x, rng: pick(rng, ["1e300", "9" * 25, "2147483648", "1e15"])
    ),
    a_number_that_is_tiny=on_number(lambda x, rng: pick(rng, ["1e-320", "1e-40", "-0.0"])),
    a_whole_number_with_a_fraction=on_number(
        lambda x, rng: x + pick(rng, [".7", ".5"]) if "." not in x else x
    ),
)
simple(
    "numbers",
    LABEL,
    not_a_number=on_number(lambda x, rng: pick(rng, ["nan", "NaN", "-nan", "n/a", "NA", "null"])),
    infinity=on_number(lambda x, rng: pick(rng, ["inf", "-inf", "Infinity", "1e999", "-1e999"])),
    a_decimal_comma=on_number(lambda x, rng: x.replace(".", ",")),
    a_number_in_strange_digits=on_number(
        lambda x, rng: x.translate(str.maketrans("0123456789", "０１２３４５６７８９"))
    ),
    a_number_with_underscores=on_number(lambda x, rng: f"{x[:1]}_{x[1:] or '0'}"),
    a_number_with_a_unit=on_number(lambda x, rng: x + pick(rng, [" s", "ms", "s", "f", "L"])),
    a_number_in_base_16=on_number(lambda x, rng: hex(int(float(x))) if float(x) >= 0 else x),
    no_number=on_number(lambda x, rng: pick(rng, ["", "-", "?", "--"])),
    two_numbers_for_one=on_number(lambda x, rng: f"{x} {x}"),
    a_number_of_5000_digits=on_number(lambda x, rng: "1" * 5000),
)
simple(
    "numbers",
    VALUE,
    milliseconds_for_seconds=all_numbers(lambda x, rng: repr(float(x) * 1000)),
    all_decimal_commas=all_numbers(lambda x, rng: x.replace(".", ",")),
    all_numbers_rounded=all_numbers(lambda x, rng: f"{float(x):.1f}"),
    all_numbers_shifted=all_numbers(lambda x, rng: repr(float(x) + 500)),
)


# ---- JSON


def paths_of(tree, at=()):
    "Every place in a tree, the root first."
    yield at
    if isinstance(tree, (dict, list)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from paths_of(value, (*at, key))


def get(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def with_value(tree, path, value):
    if not path:
        return value
    get(tree, path[:-1])[path[-1]] = value
    return tree


def change_json(draft, change, rng):
    "`change` takes text, or a tree (then its name ends in _tree)."
    try:
        text = draft.path.read_text(encoding="utf8")
        tree = json.loads(text)
    except (ValueError, OSError):
        raise Skip from None
    changed = change(text if getattr(change, "on_text", False) else tree, rng)
    if not isinstance(changed, str) or not getattr(change, "on_text", False):
        changed = json.dumps(changed, indent=1, ensure_ascii=False)
    draft.path.write_bytes(changed.encode("utf8", "surrogatepass"))


def at_leaf(change, kinds=(str, int, float, bool, type(None))):
    "An operator on one value of a tree that is no container."

    def changed(tree, rng):
        path = pick(rng, [p for p in paths_of(tree) if p and isinstance(get(tree, p), kinds)])
        return with_value(tree, path, change(get(tree, path), rng))

    return changed


def at_dict(change):
    "An operator on one dictionary of a tree, changed in place."

    def changed(tree, rng):
        path = pick(
            rng, [p for p in paths_of(tree) if isinstance(get(tree, p), dict) and get(tree, p)]
        )
        change(get(tree, path), rng)
        return tree

    return changed


def at_list(change):
    "The same on one list."

    def changed(tree, rng):
        path = pick(
            rng, [p for p in paths_of(tree) if isinstance(get(tree, p), list) and get(tree, p)]
        )
        change(get(tree, path), rng)
        return tree

    return changed


def drop_key(d, rng):
    del d[pick(rng, d)]


def rename_key(d, rng):
    key = pick(rng, d)
    new = pick(rng, [key + "s", key.upper(), " " + key, key[:-1], key + "\x1b[2J", "__class__", ""])
    d[new] = d.pop(key)


def extra_key(d, rng):
    d[pick(rng, ["comment", "version", "x" * 300, "\x00"])] = pick(rng, [None, 5, "text", [1], -3])


def swap_values(d, rng):
    a, b = pick(rng, d), pick(rng, d)
    if d[a] == d[b]:
        raise Skip
    d[a], d[b] = d[b], d[a]


def other_type(x, rng):
    values = [
        None,
        True,
        False,
        0,
        -1,
        7,
        2.5,
        "text",
        "",
        [],
        {},
        [x],
        {"a": x},
        str(x),
        [[1, 2], [3]],
        "null",
        10**30,
    ]
    return pick(rng, [v for v in values if type(v) is not type(x)])


def other_number(x, rng):
    values = [x + 1, x - 1, -x, x * 1000, x / 3, 0, 2**31, 2**63, 1e300, -5, 0.5, x + 0.25]
    return pick(rng, [v for v in values if v != x])


def other_text(x, rng):
    values = [
        x + "x",
        x[:-1],
        x.upper(),
        "",
        "../" + x,
        "/etc/passwd",
        x + "\x1b[31m",
        "x" * 500,
        x + "\u202e",
        " " + x,
        "ä" + x,
    ]
    return pick(rng, [v for v in values if v != x])


def drop_item(items, rng):
    del items[some(rng, len(items))]


def double_item(items, rng):
    items.append(pick(rng, items))


def empty_it(items, rng):
    items.clear()


def turn_list(items, rng):
    if items == items[::-1]:
        raise Skip
    items.reverse()


def add_item(items, rng):
    items.insert(some(rng, len(items) + 1), pick(rng, [None, 3, "text", [], {}, True]))


def leaf_from_elsewhere(tree, rng):
    "One text or number takes the place of another."
    leaves = {
        p: get(tree, p) for p in paths_of(tree) if isinstance(get(tree, p), (str, int, float))
    }
    path = pick(rng, leaves)
    alike = [v for v in leaves.values() if type(v) is type(leaves[path]) and v != leaves[path]]
    return with_value(tree, path, pick(rng, alike))


def item_from_elsewhere(tree, rng):
    "An item of one list stands in another list too."
    lists = [found for p in paths_of(tree) if isinstance(found := get(tree, p), list)]
    items = pick(rng, lists)
    others = [item for found in lists if found is not items for item in found]
    items.insert(some(rng, len(items) + 1), pick(rng, others))
    return tree


NUMBERS_ONLY = (int, float)
simple(
    "json",
    VALUE,
    json_another_number=at_leaf(other_number, NUMBERS_ONLY),
    json_another_text=at_leaf(other_text, (str,)),
    json_two_values_exchanged=at_dict(swap_values),
    json_a_value_of_another_place=leaf_from_elsewhere,
    json_an_item_of_another_list=item_from_elsewhere,
    json_a_list_without_an_item=at_list(drop_item),
    json_an_item_twice=at_list(double_item),
    json_an_item_more=at_list(add_item),
    json_a_list_turned_round=at_list(turn_list),
    json_an_empty_list=at_list(empty_it),
    json_another_type=at_leaf(other_type),
    json_a_container_of_another_type=lambda tree, rng: with_value(
        tree,
        path := pick(
            rng, [p for p in paths_of(tree) if p and isinstance(get(tree, p), (dict, list))]
        ),
        other_type(get(tree, path), rng),
    ),
    json_a_number_as_text=at_leaf(lambda x, rng: str(x), NUMBERS_ONLY),
)
simple(
    "json",
    "a key that the format does not require, or does not know, may be there or not",
    json_without_a_key=at_dict(drop_key),
    json_a_key_renamed=at_dict(rename_key),
    json_a_key_more=at_dict(extra_key),
)
simple(
    "json",
    "an empty split is legal",
    json_another_root=lambda tree, rng: pick(
        rng, [None, 5, "text", [tree], [], {}, list(tree)[:2], True, 1.5]
    ),
)


def textual(change):
    change.on_text = True
    return change


def literal(words):
    "Replace one value by text that JSON, or Python's reading of it, treats in its own way."

    def changed(text, rng):
        found = pick(rng, list(re.finditer(r"(?<=: )[^,\n\]}{\[]+", text)))
        return put(text, found, pick(rng, words))

    return textual(changed)


def double_key(text, rng):
    found = pick(rng, list(re.finditer(r'"(\w+)": [^,\n\]}{\[]+(?=[,\n])', text)))
    value = pick(rng, ["1", '"other"', "null", found[0].split(": ", 1)[1]])
    return text[: found.start()] + f'"{found[1]}": {value}, ' + text[found.start() :]


def deep(text, rng):
    depth = pick(rng, [500, 100_000])
    if rng.random() < 0.5:
        return "[" * depth + "]" * depth
    found = pick(rng, list(re.finditer(r"(?<=: )[^,\n\]}{\[]+", text)))
    return put(text, found, "[" * depth + "]" * depth)


simple("json", "", json_NaN_or_infinity=literal(["NaN", "Infinity", "-Infinity"]))
simple("json", VALUE, json_a_number_beyond_floats=literal(["1e999", "-1e999", "1" * 400, "1e-400"]))
simple("json", "", json_a_number_of_5000_digits=literal(["1" * 5000]))
simple("json", LABEL, json_a_lone_surrogate=literal(['"\\ud800"', '"\\u0000"', '"\\u001b[2J"']))
simple(
    "json",
    "",
    json_not_JSON=literal(
        ["'text'", "None", "True", "undefined", "01", "+1", ".5", "0x10", '"tab\there"']
    ),
)
simple("json", CHOICE, json_a_key_twice=textual(double_key))
FREE = "what the format leaves free, such as a key that it does not know, may be any tree"
simple("json", FREE, json_nested_deeply=textual(deep))
simple(
    "json",
    "",
    json_a_comma_too_many=textual(lambda t, rng: re.sub(r"(\s*[}\]])", r",\1", t, count=1)),
    json_a_comment=textual(lambda t, rng: t.replace("{", "{ // note\n", 1)),
    json_two_documents=textual(lambda t, rng: t + "\n" + t),
    json_cut=textual(lambda t, rng: t[: some(rng, len(t))]),
)
simple(
    "json",
    SAME,
    json_written_in_one_line=textual(lambda t, rng: json.dumps(json.loads(t), ensure_ascii=True)),
)


# ---- tables


def change_table(draft, change, rng):
    delimiter = draft.context.get("delimiter", "\t")
    text = draft.path.read_bytes().decode("utf8", "replace")
    rows = Rows(r for r in csv.reader(io.StringIO(text), delimiter=delimiter) if r)
    rows.delimiter = delimiter
    if len(rows) < 4:
        raise Skip
    changed = change(rows, rng)
    changed = changed if isinstance(changed, str) else as_text(rows)
    draft.path.write_bytes(changed.encode("utf8", "surrogatepass"))


class Rows(list):
    "Rows of cells, the header first, with the delimiter of the file."


def as_text(rows, quoting=csv.QUOTE_MINIMAL, delimiter=None):
    out = io.StringIO()
    csv.writer(
        out, delimiter=delimiter or rows.delimiter, quoting=quoting, lineterminator="\n"
    ).writerows(rows)
    return out.getvalue()


def row_at(rows, rng):
    return rows[1 + some(rng, len(rows) - 1)]


def drop_cell(rows, rng):
    row = row_at(rows, rng)
    del row[some(rng, len(row))]


def add_cell(rows, rng):
    row = row_at(rows, rng)
    row.insert(some(rng, len(row) + 1), pick(rng, ["", "0.5", "word", "9"]))


def add_last_cell(rows, rng):
    row_at(rows, rng).append(pick(rng, ["", "0.5", "word"]))


def swap_cells(rows, rng):
    row = row_at(rows, rng)
    i, j = some(rng, len(row)), some(rng, len(row))
    if row[i] == row[j]:
        raise Skip
    row[i], row[j] = row[j], row[i]


def empty_cell(rows, rng):
    row = row_at(rows, rng)
    row[some(rng, len(row))] = pick(rng, ["", " ", "n/a", "NaN", "null"])


def odd_cell(rows, rng):
    row = row_at(rows, rng)
    words = [
        "nan",
        "inf",
        "-1",
        "1e999",
        "1_0",
        "０.５",
        "=1+1",
        '"',
        "\x1b[31m",
        "-5.5",
        "1,5",
        "0.1.2",
        "+",
        "1e5",
        " 0.7 ",
    ]
    row[some(rng, len(row))] = pick(rng, words)


def empty_column(rows, rng):
    at = some(rng, len(rows[0]))
    for row in rows[1:]:
        row[at] = pick(rng, ["n/a", ""])


def swap_columns(rows, rng):
    i, j = some(rng, len(rows[0])), some(rng, len(rows[0]))
    if i == j:
        raise Skip
    for row in rows[pick(rng, [0, 1]) :]:
        row[i], row[j] = row[j], row[i]


def swap_names(rows, rng):
    i, j = some(rng, len(rows[0])), some(rng, len(rows[0]))
    if i == j:
        raise Skip
    rows[0][i], rows[0][j] = rows[0][j], rows[0][i]


def rename_column(rows, rng):
    at = some(rng, len(rows[0]))
    old = rows[0][at]
    rows[0][at] = pick(
        rng, [old + "s", old.upper(), " " + old, "", "start", old + "\ufeff", rows[0][at - 1]]
    )


def scale_column(rows, rng):
    at = some(rng, len(rows[0]))
    factor = pick(rng, [1000, 0.001, -1])
    for row in rows[1:]:
        try:
            row[at] = repr(float(row[at]) * factor)
        except ValueError:
            raise Skip from None


def first_n_a(rows, rng):
    at = some(rng, len(rows[0]))
    for row in rows[1 : 1 + pick(rng, [1, 1, 2, 5])]:
        row[at] = "n/a"


def same_column(rows, rng):
    at = some(rng, len(rows[0]))
    for row in rows[2:]:
        row[at] = rows[1][at]


def copy_column(rows, rng):
    at = some(rng, len(rows[0]))
    for i, row in enumerate(rows):
        row.append(row[at] + ("_again" if i == 0 else ""))


for name, change in dict(
    a_row_with_a_cell_less=drop_cell,
    a_row_with_a_cell_more=add_cell,
    a_row_with_a_cell_more_at_its_end=add_last_cell,
    two_cells_of_a_row_exchanged=swap_cells,
    an_empty_cell=empty_cell,
    an_odd_cell=odd_cell,
    a_column_of_n_a=empty_column,
    two_columns_exchanged=swap_columns,
    two_names_of_columns_exchanged=swap_names,
    a_column_renamed=rename_column,
    a_column_times_a_factor=scale_column,
    n_a_in_the_first_rows=first_n_a,
    a_constant_column=same_column,
    a_column_twice=copy_column,
    no_header=lambda rows, rng: rows.pop(0) and None,
    the_header_twice=lambda rows, rng: rows.insert(
        pick(rng, [1, len(rows) // 2, len(rows)]), list(rows[0])
    ),
    no_rows=lambda rows, rng: rows.__delitem__(slice(1, None)),
    rows_turned_round=lambda rows, rng: rows.__setitem__(slice(1, None), rows[:0:-1]),
    a_row_twice=lambda rows, rng: rows.insert(1, list(row_at(rows, rng))),
    a_row_less=lambda rows, rng: rows.remove(row_at(rows, rng)),
    a_blank_row=lambda rows, rng: rows.insert(1 + some(rng, len(rows)), [""] * len(rows[0])),
).items():
    simple("table", FEWER if "row" in name or "header" in name else VALUE, **{name: change})


def open_quote(rows, rng):
    "A quote that opens and never closes, in one cell."
    lines = as_text(rows).split("\n")
    at = 1 + some(rng, len(lines) - 2)
    cells = lines[at].split(rows.delimiter)
    cells[some(rng, len(cells))] = pick(rng, ['"', '"hello', 'a"b'])
    lines[at] = rows.delimiter.join(cells)
    return "\n".join(lines)


def line_in_cell(rows, rng):
    row = row_at(rows, rng)
    row[some(rng, len(row))] = "two\nlines"


def blanks_in_cells(rows, rng):
    for row in rows[1:]:
        row[:] = [f" {cell} " for cell in row]


simple(
    "table",
    SAME,
    every_cell_in_quotes=lambda rows, rng: as_text(rows, csv.QUOTE_ALL),
    another_delimiter=lambda rows, rng: as_text(rows, delimiter=pick(rng, ";|\t, ")),
)
simple(
    "table",
    LABEL,
    an_open_quote=open_quote,
    a_line_end_in_a_cell=line_in_cell,
    blanks_around_cells=blanks_in_cells,
)


# ---- TextGrids (text)

TIMES = re.compile(r"(xmin|xmax|number) = ([\d.]+)")


def grid_times(text, rng):
    found = list(TIMES.finditer(text))
    return pick(rng, found[4:] if len(found) > 5 else found)


def swap_times(text, rng):
    "An interval that runs backwards."
    found = pick(rng, list(re.finditer(r"xmin = ([\d.]+)( *\n *)xmax = ([\d.]+)", text))[2:])
    return put(text, found, f"xmin = {found[3]}{found[2]}xmax = {found[1]}")


def swap_keys(text, rng):
    found = pick(rng, list(re.finditer(r"xmin = ([\d.]+)( *\n *)xmax = ([\d.]+)", text)))
    return put(text, found, f"xmax = {found[3]}{found[2]}xmin = {found[1]}")


def move_time(text, rng):
    found = grid_times(text, rng)
    step = pick(rng, [1e-7, 1e-5, 0.001, 0.05, 0.5, 100]) * pick(rng, [1, -1])
    return put(text, found, f"{found[1]} = {max(0, float(found[2]) + step):.7f}")


INTERVAL = re.compile(
    r"[ ]*(intervals|points) \[(\d+)\]:?\n(?:[ ]*(?:xmin|xmax|number) = [^\n]*\n)+"
    r"[ ]*(?:text|mark) = [^\n]*\n"
)


def drop_interval(text, rng):
    return put(text, pick(rng, list(INTERVAL.finditer(text))), "")


def drop_interval_and_count(text, rng):
    "A gap that the declared size agrees with."
    found = pick(rng, list(INTERVAL.finditer(text)))
    sizes = [
        m
        for m in re.finditer(r"(intervals|points): size = (\d+)", text)
        if m.start() < found.start()
    ]
    if not sizes:
        raise Skip
    rest = text[: found.start()] + text[found.end() :]
    return put(rest, sizes[-1], f"{sizes[-1][1]}: size = {int(sizes[-1][2]) - 1}")


def double_interval(text, rng):
    found = pick(rng, list(INTERVAL.finditer(text)))
    return put(text, found, found[0] * 2)


def wrong_index(text, rng):
    found = pick(rng, list(re.finditer(r"(intervals|points|item) \[(\d+)\]", text)))
    return put(text, found, f"{found[1]} [{pick(rng, [0, 999, -1, '', int(found[2]) + 1])}]")


def wrong_size(text, rng):
    found = pick(rng, list(re.finditer(r"size = (\d+)", text)))
    n = int(found[1])
    sizes = [n + 1, n - 1, 0, -1, f"{n}.7", "1e999", "1e9", "nan", "9" * 30, f"{n}.0", ""]
    return put(
        text,
        found,
        f"size = {pick(rng, sizes)}",
    )


def early_end(text, rng):
    found = pick(rng, list(re.finditer(r"xmax = ([\d.]+)", text))[:2])
    return put(text, found, f"xmax = {float(found[1]) * pick(rng, [0.5, 2, 1.01, 0])}")


def two_labels(text, rng):
    found = pick(rng, list(re.finditer(r"\n[ ]*(text|mark) = [^\n]*", text)))
    return put(text, found, found[0] * 2)


def no_label(text, rng):
    found = pick(rng, list(re.finditer(r"\n[ ]*(text|mark) = [^\n]*", text)))
    return put(
        text,
        found,
        pick(
            rng,
            [
                "",
                found[0].split("=")[0] + "= ",
                found[0].replace("=", ""),
                found[0].replace('"', ""),
            ],
        ),
    )


def label_inside(text, rng):
    found = pick(rng, list(re.finditer(r'(?:text|mark) = "([^"\n]*)"', text)))
    inner = pick(
        rng,
        [
            'say "no"',
            '"',
            '""',
            "xmin = 3",
            "\n        intervals [3]:\n",
            "<exists>",
            "! note",
            "a\nb",
            "\\",
            '" "',
        ],
    )
    return put(text, found, found[0].split("=")[0] + f'= "{inner}"')


def same_names(text, rng):
    names = re.findall(r'name = "([^"]*)"', text)
    if len(names) < 2:
        raise Skip
    return text.replace(f'name = "{names[1]}"', f'name = "{names[0]}"')


def other_name(text, rng):
    found = pick(rng, list(re.finditer(r'name = "([^"]*)"', text)))
    name = pick(rng, ["", "Word", "spk - words", "words ", "x" * 300, "phones", "\x1b[2J"])
    return put(text, found, f'name = "{name}"')


def other_class(text, rng):
    found = pick(rng, list(re.finditer(r'"(IntervalTier|TextTier)"', text)))
    new = pick(
        rng,
        ["TextTier" if found[1] == "IntervalTier" else "IntervalTier", "Tier", "", "intervaltier"],
    )
    return put(text, found, f'"{new}"')


def no_tiers(text, rng):
    return text.replace("<exists>", pick(rng, ["<absent>", "<exist>", "exists", "<>"]))


def other_kind(text, rng):
    return text.replace(
        '"TextGrid"', pick(rng, ['"PitchTier"', '"textgrid"', '"TextGrid 2"', '"Sound"']), 1
    )


def praat_tidy(text, rng):
    "As other programs write the long form: no blanks around =, no indent, a blank at line ends."
    change = pick(rng, ["equals", "indent", "end"])
    if change == "equals":
        return re.sub(r"^(\s*\w+) = ", r"\1=", text, flags=re.M)
    return (
        re.sub(r"^[ ]+", "", text, flags=re.M) if change == "indent" else re.sub(r"\n", " \n", text)
    )


def many_indented(text, rng):
    "A grid of thousands of intervals, each line far to the right, as some programs write it."
    rows = []
    for i in range(1, 5001):
        lines = (f"intervals [{i}]:", f"xmin = {i - 1}", f"xmax = {i}", f'text = "w{i}"')
        rows += [" " * 280 + line for line in lines]
    head = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", "xmax = 5000"]
    head += ["tiers? <exists>", "size = 1", "item []:", "    item [1]:"]
    head += ['class = "IntervalTier"', 'name = "word"', "xmin = 0", "xmax = 5000"]
    return "\n".join([*head, "intervals: size = 5000", *rows]) + "\n"


def swap_tiers(text, rng):
    parts = re.split(r"(?=    item \[\d+\]:\n)", text)
    if len(parts) < 3:
        raise Skip
    return (
        parts[0]
        + parts[2].replace("item [2]", "item [1]")
        + parts[1].replace("item [1]", "item [2]")
    )


for name, (change, blind) in dict(
    grid_an_interval_backwards=(swap_times, ""),
    grid_keys_exchanged=(swap_keys, ""),
    grid_a_time_moved=(move_time, VALUE),
    grid_an_interval_less=(drop_interval, ""),
    grid_an_interval_less_and_counted=(drop_interval_and_count, ""),
    grid_an_interval_twice=(double_interval, ""),
    grid_a_wrong_index=(wrong_index, ""),
    grid_a_wrong_size=(wrong_size, SAME),
    grid_another_end=(early_end, VALUE),
    grid_two_labels=(two_labels, ""),
    grid_no_label=(no_label, ""),
    grid_an_awkward_label=(label_inside, LABEL),
    grid_two_tiers_of_one_name=(same_names, CHOICE),
    grid_another_name_of_a_tier=(other_name, LABEL),
    grid_another_class=(other_class, ""),
    grid_without_tiers=(no_tiers, "a grid may say that it has no tiers"),
    grid_another_kind_of_object=(other_kind, ""),
    grid_tiers_exchanged=(swap_tiers, "tiers have names, their order is free"),
    grid_written_by_another_program=(praat_tidy, SAME),
    grid_of_5000_indented_intervals=(many_indented, "it is a valid grid, though a large one"),
).items():
    simple("grid", blind, **{name: change})


# ---- scanner logs (text)


def trigger_lines(lines):
    return [i for i, line in enumerate(lines) if "trigger" in line]


def on_log(change):
    def changed(text, rng):
        lines = text.rstrip("\n").split("\n")
        change(lines, rng)
        return "\n".join(lines) + "\n"

    return changed


def time_of(line):
    return float(line.split()[0])


def retime(line, seconds):
    return f"{seconds:.6f} {line.split(' ', 1)[1]}"


def log_hole(lines, rng):
    found = trigger_lines(lines)
    at = 1 + some(rng, len(found) - 8)
    for i in found[at : at + pick(rng, [1, 2, 6, 7])][::-1]:
        del lines[i]


def log_bounce(lines, rng):
    i = pick(rng, trigger_lines(lines))
    lines.insert(i + 1, f"{time_of(lines[i]) + pick(rng, [0.001, 0.004, 0.05, 0.3]):.6f} trigger")


def log_too_many(lines, rng):
    found = trigger_lines(lines)
    k = some(rng, len(found) - 1)
    first, second = (time_of(lines[i]) for i in found[k : k + 2])
    time = first + rng.uniform(0.02, 0.98) * (second - first)
    lines.insert(found[k] + 1, f"{time:.6f} trigger")


def log_epoch(lines, rng):
    for i in trigger_lines(lines) if rng.random() < 0.5 else [pick(rng, trigger_lines(lines))]:
        lines[i] = retime(lines[i], time_of(lines[i]) + 1.6e9)


def log_digit(lines, rng):
    i = pick(rng, trigger_lines(lines))
    lines[i] = retime(lines[i], time_of(lines[i]) * pick(rng, [10, 10_000, 0.1]))


def log_late(lines, rng):
    i = pick(rng, trigger_lines(lines)[1:])
    lines[i] = retime(lines[i], time_of(lines[i]) + pick(rng, [-0.9, -0.3, 0.02, 0.3, 0.9]))


def log_label(lines, rng):
    i = pick(rng, trigger_lines(lines))
    lines[i] = (
        lines[i].split(" ")[0]
        + " "
        + pick(
            rng,
            [
                "TRIGGER",
                "trigger.",
                "trig",
                "pulse",
                "5",
                "",
                "Trigger ",
                "first volume",
                "init-trigger",
            ],
        )
    )


def log_start_line(lines, rng):
    text = pick(
        rng,
        [
            "0.0 Starting scanner task",
            "1.5 start of protocol",
            "0.5 START",
            "20.0 sound-start",
            "3.25 sound-start",
            "50.0 sound-start again",
        ],
    )
    lines.insert(some(rng, len(lines)), text)
    lines.sort(key=time_of)


def log_no_start(lines, rng):
    lines[:] = [line for line in lines if "start" not in line.lower()]


def log_move_start(lines, rng):
    i = pick(rng, [i for i, line in enumerate(lines) if "start" in line.lower()])
    lines[i] = retime(lines[i], pick(rng, [-50.0, 0.0, 30.5, 5000.0, 1e9]))


def log_end_line(lines, rng):
    text = pick(
        rng, ["0.25 ending checks", "1.0 end", "3.5 sound-stop", "55.5 END", "-4.0 sound-stop"]
    )
    lines.append(text)
    lines.sort(key=time_of)


def log_unsorted(lines, rng):
    order = rng.permutation(len(lines)) if rng.random() < 0.3 else np.roll(np.arange(len(lines)), 1)
    lines[:] = [lines[i] for i in order]


def log_few(lines, rng):
    keep = pick(rng, [0, 1, 2, 3])
    found = trigger_lines(lines)
    lines[:] = [line for i, line in enumerate(lines) if i not in found[keep:]]


def log_double(lines, rng):
    i = pick(rng, trigger_lines(lines))
    lines.insert(i, lines[i])


def log_two_runs(lines, rng):
    end = max(map(time_of, lines)) + pick(rng, [2.0, 30.0, 600.0])
    lines += [retime(line, time_of(line) + end) for line in list(lines)]


for name, (change, blind) in dict(
    log_triggers_missing=(log_hole, ""),
    log_a_bounced_trigger=(log_bounce, ""),
    log_a_trigger_too_many=(log_too_many, ""),
    log_epoch_times=(log_epoch, ""),
    log_a_time_with_a_digit_wrong=(log_digit, ""),
    log_a_trigger_late=(log_late, VALUE),
    log_another_label=(log_label, LABEL),
    log_another_line_with_start=(log_start_line, LABEL),
    log_without_a_start=(log_no_start, ""),
    log_the_start_elsewhere=(log_move_start, VALUE),
    log_a_line_with_end=(log_end_line, VALUE),
    log_in_another_order=(log_unsorted, SAME),
    log_few_triggers=(log_few, FEWER),
    log_a_trigger_twice=(log_double, ""),
    log_two_runs_in_one=(log_two_runs, ""),
    log_with_tabs=(
        lambda lines, rng: lines.__setitem__(
            slice(None), [line.replace(" ", "\t", 1) for line in lines]
        ),
        SAME,
    ),
    log_with_commas=(
        lambda lines, rng: lines.__setitem__(
            slice(None), [line.replace(" ", ",", 1) for line in lines]
        ),
        "",
    ),
    log_with_a_heading=(
        lambda lines, rng: lines.insert(
            0, pick(rng, ["time label", "# log of the scanner", "seconds\tevent"])
        ),
        "",
    ),
    log_in_milliseconds=(
        lambda lines, rng: lines.__setitem__(
            slice(None), [retime(line, 1000 * time_of(line)) for line in lines]
        ),
        VALUE,
    ),
).items():
    simple("log", blind, **{name: on_log(change)})
