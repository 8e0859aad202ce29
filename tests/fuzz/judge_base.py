"""What all judges share: verdict, strict text and JSON, and a child process as a guard."""

import hashlib
import json
import math
import os
import re
import resource
import select
import signal
import struct
import time
import warnings
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import numpy as np

LARGEST_FILE = 64 * 2**20  # bytes; judges are meant for files below 5 MB
LARGEST_ARRAY = 12 * 2**20  # numbers in one array: 96 MB as float64
NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Verdict:
    "What a strict reader says of a file."

    valid: bool  # True: the bytes mean exactly `value`; False: refuse it, or at least say something
    value: dict | None  # content as plain Python and NumPy; None where not valid
    reason: str  # why not, in a few words; '' where valid


class Refused(Exception):
    "A strict reader stops here."


def need(condition, reason):
    "Refuse unless `condition`."
    if not condition:
        raise Refused(reason)


def judge(read):
    "A judge from a strict reader: never raises, whatever the bytes."

    @wraps(read)
    def judged(path, context=None):
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                return Verdict(True, read(Path(path), dict(context or {})), "")
        except Refused as error:
            return Verdict(False, None, str(error))
        except RecursionError:
            return Verdict(False, None, "nested too deeply")
        except MemoryError:
            return Verdict(False, None, "asks for too much memory")
        except Exception as error:  # libraries raise what they like on foreign bytes
            return Verdict(False, None, f"cannot be read: {type(error).__name__}: {error}"[:160])

    return judged


def read_bytes(path):
    "All bytes of a plain file that is neither empty nor huge."
    need(path.is_file(), "there is no such file")
    need(0 < path.stat().st_size <= LARGEST_FILE, "the file is empty or far too large")
    return path.read_bytes()


def _zeros(part):
    "Share of zero bytes at the beginning of some."
    return part[:200].count(0) / max(1, len(part[:200]))


def decode(data, encoding=None):
    "Text of bytes: by mark, else as told, else UTF-16 that shows itself, else UTF-8."
    if data[:3] == b"\xef\xbb\xbf":
        found = "utf-8-sig"
    elif data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        found = "utf-16"
    elif encoding:
        found = encoding
    elif len(data) > 3 and _zeros(data[1::2]) > 0.25 > _zeros(data[::2]):
        found = "utf-16-le"
    elif len(data) > 3 and _zeros(data[::2]) > 0.25 > _zeros(data[1::2]):
        found = "utf-16-be"
    else:
        found = "utf-8"
    try:
        text = data.decode(found)
    except UnicodeError:
        raise Refused(f"bytes that are not {found}") from None
    need("\x00" not in text, "a NUL character in a text")
    if found.replace("-", "").lower() in ("latin1", "iso88591"):
        need(not re.search("[\x7f-\x9f]", text), "control characters in Latin-1")
    return text


def plain_lines(text):
    "Line ends as \\n; only CR, LF and CR LF end a line."
    return text.replace("\r\n", "\n").replace("\r", "\n")


def number(text, what="a number"):
    "A finite decimal number, as every format here writes it: no nan, no inf, no underscores."
    need(
        len(text) < 60 and NUMBER.fullmatch(text), f"{what} is not a decimal number: {text[:20]!r}"
    )
    value = float(text)
    need(math.isfinite(value), f"{what} is too large: {text[:20]!r}")
    return value


def numbers(words):
    "Finite decimal numbers as float64, fast."
    strange = re.search(r"[^-+.0-9eE\n]", "\n".join(words))
    need(not strange, f"not a decimal number: {strange and strange.group()!r}")
    try:
        values = np.array(list(map(float, words)))
    except ValueError:
        raise Refused("not a decimal number") from None
    need(np.isfinite(values).all(), "a number that is too large")
    return values


def integral(value):
    "Whether a JSON value is a whole number (375.0 is one, True is not)."
    whole = isinstance(value, float) and value.is_integer()
    return (isinstance(value, int) or whole) and not isinstance(value, bool)


def real(value):
    "Whether a JSON value is a number."
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _pairs(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Refused("a key stands twice in one object")
    return found


def _constant(name):
    raise Refused(f"{name} is not JSON")


def _float(text):
    value = float(text)
    need(math.isfinite(value), f"a number too large for JSON readers: {text[:20]}")
    return value


def strict_json(data):
    "JSON by RFC 8259: no NaN, no key twice, no lone surrogate, nothing after the end."
    text = decode(data)
    try:
        value = json.loads(
            text, object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float
        )
    except json.JSONDecodeError as error:
        raise Refused(f"not JSON: {error}"[:100]) from None
    except ValueError:
        raise Refused("a whole number with thousands of digits") from None
    if re.search(r"\\u[dD][89a-fA-F]", text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeError:
            raise Refused("half a surrogate pair in a string") from None
    return value


def plain_hash(value):
    "Hash of plain content as the product records it (described in the chapter on core)."
    inner = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return hashlib.sha256(f"plain:{inner};".encode()).hexdigest()


ROLES = ("tuning", "validation", "encoding", "test")
PEOPLE = ("tune_participants", "new_participants")


def split_of(record, people=PEOPLE):
    "A split with every key, from what its file holds; `people`: the names of its two last lists."
    need(isinstance(record, dict), "not an object")
    unknown = sorted(set(record) - {*ROLES, *people, "shared"})
    need(not unknown, f"unknown keys: {', '.join(unknown)}"[:80])
    split = {}
    for role in (*ROLES, *people):
        names = record.get(role, [])
        listed = isinstance(names, list) and all(isinstance(n, str) and n.strip() for n in names)
        need(listed, f"{role} is not a list of names")
        need(len(set(names)) == len(names), f"a name stands twice in {role}")
        split[role] = list(names)
    split["shared"] = record.get("shared", "")
    need(isinstance(split["shared"], str), "shared is not a text")
    return split


def as_floats(array, what):
    "Real numbers as float64, every one finite."
    need(array.size <= LARGEST_ARRAY, f"{what} is too large to judge")
    values = np.asarray(array, np.float64)
    need(np.isfinite(values).all(), f"{what} holds NaN or infinity")
    return values


def _send(pipe, arrays):
    "Names, types and shapes as JSON, then the bytes."
    about = [(k, a.dtype.str, a.shape) for k, a in arrays.items()]
    head = json.dumps(about).encode()
    with os.fdopen(pipe, "wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for array in arrays.values():
            out.write(np.ascontiguousarray(array).tobytes())


def _child(pipe, read, memory):
    "Read under limits of memory and processor time; leave without any clean-up of the parent's."
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (2, 3))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            arrays = read()
        except Refused as error:
            arrays = {"refused": np.frombuffer(str(error).encode() or b"?", np.uint8)}
        except BaseException as error:
            text = f"cannot be read: {type(error).__name__}: {error}"[:160]
            arrays = {"refused": np.frombuffer(text.encode(), np.uint8)}
        _send(pipe, arrays)
    finally:
        os._exit(0)


def guarded(read, seconds=5.0, memory=400 * 2**20):
    "Arrays by name that `read` returns in a child process, which may crash, hang or eat memory."
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _child(theirs, read, memory)
    os.close(theirs)
    parts, end = [], time.monotonic() + seconds
    try:
        while select.select([ours], [], [], max(0.0, end - time.monotonic()))[0]:
            part = os.read(ours, 2**20)
            if not part:
                break
            parts.append(part)
    finally:
        os.close(ours)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return _received(b"".join(parts))


def _received(data):
    need(len(data) >= 8, "the library crashed, hung or ran out of memory on it")
    (length,) = struct.unpack("<Q", data[:8])
    arrays, at = {}, 8 + length
    need(len(data) >= at, "the library hung on it")
    for name, kind, shape in json.loads(data[8:at]):
        size = math.prod(shape) * np.dtype(kind).itemsize
        need(len(data) >= at + size, "the library hung on it")
        array = np.frombuffer(data[at : at + size], kind)
        arrays[name], at = array.reshape(shape), at + size
    if "refused" in arrays:
        raise Refused(arrays["refused"].tobytes().decode())
    return arrays
