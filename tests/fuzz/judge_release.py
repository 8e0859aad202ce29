"""Judge of a released model: a folder of safetensors, JSON and arrays."""

import hashlib
import io
import math
import os
import re
import struct
import zipfile

import numpy as np
from judge_base import (
    HEX64,
    PEOPLE,
    as_floats,
    integral,
    judge,
    need,
    plain_hash,
    read_bytes,
    real,
    split_of,
    strict_json,
)

TENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
TENSORS |= {"I8": "i1", "U8": "u1", "BOOL": "?", "BF16": "<u2", "U16": "<u2", "U32": "<u4"}
FACTS = frozenset(
    "format modality settings backbone split data training inputs licence base_model language "
    "datasets limits adapter".split()
)
SETTINGS = frozenset("outputs layer delays heads dropout standardise pooling head_rank".split())
FOREIGN = re.compile(r"\.(py|pyc|so|sh|bin|pt|pth|ckpt|pkl|pickle|joblib|h5|msgpack|npy)$", re.I)
UNHASHED = ("tuner.json", "README.md")  # the record itself cannot hold its own hash


def _tensor_table(data):
    "Header of a safetensors file without its notes, and the bytes behind it."
    need(len(data) >= 8, "a safetensors file without a header")
    (length,) = struct.unpack("<Q", data[:8])
    need(2 <= length <= min(len(data) - 8, 100 * 2**20), "the length of a safetensors header")
    need(data[8:9] == b"{", "a safetensors header that is not JSON")
    header = strict_json(data[8 : 8 + length].rstrip(b" "))
    notes = header.pop("__metadata__", {})
    need(isinstance(notes, dict), "metadata of a safetensors file")
    need(all(isinstance(v, str) for v in notes.values()), "metadata that are not text")
    return header, data[8 + length :]


def _tensor_place(name, about, body):
    "Type, shape, and first and last byte of one tensor."
    kind, shape, span = about["dtype"], about["shape"], about["data_offsets"]
    need(kind in TENSORS, f"the type {kind} of {name}"[:80])
    need(isinstance(shape, list) and all(map(integral, shape)), f"the shape of {name}"[:80])
    need(isinstance(span, list) and len(span) == 2 and all(map(integral, span)), "offsets")
    size = math.prod(shape) * np.dtype(TENSORS[kind]).itemsize
    need(0 <= span[0] <= span[1] <= len(body), f"{name} lies outside the file"[:80])
    need(min(shape, default=1) >= 0 and span[1] - span[0] == size, f"size of {name}"[:80])
    return kind, shape, span


def _tensor(name, raw, kind, shape):
    "Numbers of one tensor, all finite."
    array = np.frombuffer(raw, TENSORS[kind])
    if kind == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind == "f":
        need(np.isfinite(array).all(), f"{name} holds NaN or infinity"[:80])
    return array.reshape(shape)


def safetensors(data):
    "Name -> array of a safetensors file; its header and bytes account for every byte."
    header, body = _tensor_table(data)
    spans, arrays = [], {}
    for name, about in header.items():
        need(isinstance(about, dict) and set(about) == {"dtype", "shape", "data_offsets"}, name)
        kind, shape, span = _tensor_place(name, about, body)
        spans.append(tuple(span))
        arrays[name] = _tensor(name, body[span[0] : span[1]], kind, shape)
    spans.sort()
    edges = [0, *(edge for span in spans for edge in span), len(body)]
    need(all(a == b for a, b in zip(edges[::2], edges[1::2])), "bytes that belong to no tensor")
    return arrays


def npz(data):
    "Name -> array of an .npz that holds no objects."
    arrays = {}
    need(data[:4] == b"PK\x03\x04", "an .npz that is no archive")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        need(len(set(names)) == len(names), "two arrays of one name")
        need(archive.comment == b"" and archive.start_dir > 0, "an archive with a comment")
        need(sum(member.file_size for member in members) < 64 * 2**20, "huge arrays")
        for member in members:
            need(member.filename.endswith(".npy"), "an archive of other things than arrays")
            file = io.BytesIO(archive.read(member))
            array = np.lib.format.read_array(file, allow_pickle=False)
            need(not file.read(1), "data after an array")
            arrays[member.filename.removesuffix(".npy")] = array
    need(data[-22:-18] == b"PK\x05\x06", "data after the archive")
    return arrays


def _files(folder):
    "Relative path -> path of everything but hidden files; no links, nothing foreign."
    need(folder.is_dir() and not folder.is_symlink(), "not a folder")
    found, total = {}, 0
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        names = [name for name in names if name[0] != "."]
        for name in (*folders, *names):
            path = folder.__class__(root) / name
            relative = path.relative_to(folder).as_posix()
            need(not path.is_symlink(), f"{relative} is a link"[:80])
            need(not FOREIGN.search(name), f"{relative} may run code"[:80])
        for name in names:
            path = folder.__class__(root) / name
            found[path.relative_to(folder).as_posix()] = path
            total += path.stat().st_size
            need(len(found) < 200 and total < 64 * 2**20, "a release too large to judge")
    return found


def _check_hashes(files, hashes):
    "Every file that has a hash has the right content, and there is no other."
    need(isinstance(hashes, dict), "hashes are not an object")
    for name, digest in hashes.items():
        if name in UNHASHED:
            continue
        need(isinstance(digest, str) and HEX64.fullmatch(digest), f"the hash of {name}"[:80])
        need(name in files, f"{name} is missing"[:80])
        found = hashlib.sha256(files[name].read_bytes()).hexdigest()
        need(found == digest, f"{name} is not what was released"[:80])
    extra = sorted(set(files) - set(hashes) - set(UNHASHED))
    need(not extra, f"files that were not released: {', '.join(extra)}"[:80])


def _columns(settings):
    "Participant -> columns of the head."
    outputs = settings["outputs"]
    need(isinstance(outputs, list) and outputs, "no participants")
    for one in outputs:
        need(isinstance(one, list) and len(one) == 2 and isinstance(one[0], str), "participants")
        need(integral(one[1]) and one[1] > 0, f"columns of {one[0][:20]!r}")
    columns = dict(outputs)
    need(len(columns) == len(outputs), "a participant twice")
    return columns


def _check_told(backbone):
    "What the record says of the backbone."
    need(isinstance(backbone, dict), "the backbone")
    for key in ("layers", "width", "parameters"):
        need(integral(backbone.get(key)) and backbone[key] > 0, f"{key} of the backbone")
    need(isinstance(backbone.get("model_type"), str), "the type of the backbone")
    need(HEX64.fullmatch(str(backbone.get("weights"))), "the hash of the weights")


def _check_settings(settings, layers):
    "Delays, the layer that is read, and dropout."
    delays = settings["delays"]
    need(isinstance(delays, list) and delays and all(map(integral, delays)), "delays")
    layer = settings["layer"]
    need(not integral(layer) or abs(layer) <= layers, "a layer that is not there")
    need(real(settings["dropout"]) and 0 <= settings["dropout"] < 1, "dropout")


def _facts(files):
    "tuner.json and the columns of each participant's head."
    need("tuner.json" in files, "no tuner.json")
    facts = strict_json(read_bytes(files["tuner.json"]))
    need(isinstance(facts, dict) and FACTS <= set(facts), "keys of tuner.json are missing")
    need(integral(facts["format"]) and facts["format"] >= 1, "the format of tuner.json")
    need(facts["modality"] in ("text", "speech"), "the modality")
    settings, backbone = facts["settings"], facts["backbone"]
    need(isinstance(settings, dict) and SETTINGS <= set(settings), "settings are missing")
    columns = _columns(settings)
    _check_told(backbone)
    _check_settings(settings, backbone["layers"])
    return facts, columns


def _check_backbone(files, facts):
    "An ordinary folder of weights and JSON whose configuration is that of the record."
    need("backbone/config.json" in files, "no backbone/config.json")
    config, told = strict_json(read_bytes(files["backbone/config.json"])), facts["backbone"]
    need(isinstance(config, dict), "the configuration of the backbone")
    need("auto_map" not in config, "a configuration that asks for foreign code")
    need(config.get("model_type") == told["model_type"], "another type of model")
    known = {
        "layers": "num_hidden_layers n_layers n_layer num_layers encoder_layers".split(),
        "width": "hidden_size d_model dim n_embd".split(),
    }
    for key, names in known.items():
        stated = [config[name] for name in names if name in config]
        need(not stated or told[key] in stated, f"another number of {key}")
    for name, path in files.items():
        if name.startswith("backbone/") and name.endswith(".json"):
            strict_json(read_bytes(path))
    _check_weights(files)


def _check_weights(files):
    "Weights in one file, or in those that an index names."
    index = "backbone/model.safetensors.index.json"
    weights = [n for n in files if n.startswith("backbone/") and n.endswith(".safetensors")]
    need(weights, "no weights")
    held = {}
    for name in weights:
        tensors = safetensors(read_bytes(files[name]))
        need(not set(tensors) & set(held), "a weight in two files")
        held |= dict.fromkeys(tensors, name.removeprefix("backbone/"))
    if index in files:
        stated = strict_json(read_bytes(files[index]))
        need(isinstance(stated, dict) and stated.get("weight_map") == held, "the index of weights")
    else:
        need(weights == ["backbone/model.safetensors"], "weights under another name")


def _check_pairs(heads):
    "A weight of the same length beside each bias."
    for name, bias in heads.items():
        if name.startswith("heads.") and name.endswith(".bias"):
            weight = heads.get(name[: -len("bias")] + "weight")
            need(weight is not None and weight.shape[:1] == bias.shape, f"weight beside {name}")


def _check_heads(files, facts, columns):
    "Read-outs whose last sizes are the participants' columns."
    need("heads.safetensors" in files, "no heads.safetensors")
    heads = safetensors(read_bytes(files["heads.safetensors"]))
    sizes, inputs = set(columns.values()), len(facts["settings"]["delays"])
    biases = [a for n, a in heads.items() if re.fullmatch(r"heads\.\d+(\.\d)?\.bias", n)]
    need(biases and all(n.startswith(("heads.", "pool.")) for n in heads), "names of the heads")
    need(sizes <= {len(b) for b in biases if b.ndim == 1}, "sizes of the heads")
    _check_pairs(heads)
    if facts["settings"]["heads"] in ("participant", "shared"):
        width = facts["backbone"]["width"] * inputs
        weights = [a for n, a in heads.items() if re.fullmatch(r"heads\.\d+\.weight", n)]
        need(all(w.shape[1:] == (width,) for w in weights), "width of the heads")
    return heads


def _pair(files, name, kind):
    "The list of NAME.json and the arrays of NAME.npz; both or neither are there."
    have = [f"{name}.{end}" in files for end in ("json", "npz")]
    need(all(have) or not any(have), f"half of {name} is missing")
    if not all(have):
        return [], {}
    entries = strict_json(read_bytes(files[f"{name}.json"]))
    listed = isinstance(entries, list) and all(isinstance(e, dict) for e in entries)
    need(listed and entries, f"{name}.json is not a list of {kind}")
    return entries, npz(read_bytes(files[f"{name}.npz"]))


def _parts_of(entry, i):
    "Part of space number `i` -> name of its array."
    needed = {"name", "kind", "rois", "labels", "participants"}
    need(needed <= set(entry), "a space without its facts")
    need(entry["kind"] in ("vertex", "voxel", "region"), "the kind of a space")
    parts = {"columns": f"{i}_columns"}
    parts |= {"rois": f"{i}_rois"} if entry["rois"] else {}
    return parts | ({"labels": f"{i}_labels"} if entry["labels"] else {})


def _check_space(entry, held):
    "Numbers of columns that differ, and masks and labels of as many columns."
    number = held["columns"]
    need(number.ndim == 1 and number.dtype.kind in "iu", "columns are not whole numbers")
    need(len(np.unique(number)) == len(number), "a column stands twice")
    if "rois" in held:
        expected = (len(entry["rois"]), len(number))
        masks = held["rois"].shape == expected and held["rois"].dtype == bool
        need(masks and len(set(entry["rois"])) == len(entry["rois"]), "regions of a space")
    need("labels" not in held or held["labels"].shape == number.shape, "labels of a space")


def _spaces(files, columns):
    "participant -> what each column is."
    entries, arrays = _pair(files, "space", "spaces")
    used, spaces = set(), {}
    for i, entry in enumerate(entries):
        parts = _parts_of(entry, i)
        need(set(parts.values()) <= set(arrays), "an array of a space is missing")
        used |= set(parts.values())
        held = {key: arrays[name] for key, name in parts.items()}
        _check_space(entry, held)
        for who in entry["participants"]:
            need(columns.get(who) == len(held["columns"]), f"columns of {str(who)[:20]!r}")
            need(who not in spaces, "a participant in two spaces")
            spaces[who] = {"name": entry["name"], "kind": entry["kind"], **held}
    need(used == set(arrays), "arrays that belong to no space")
    return spaces


def _ceilings(files, columns):
    "participant -> (values with NaN where there is none, definition)."
    entries, arrays = _pair(files, "ceilings", "ceilings")
    need(set(arrays) == {str(i) for i in range(len(entries))}, "arrays of the ceilings")
    ceilings = {}
    for i, entry in enumerate(entries):
        who, values = entry.get("participant"), arrays[str(i)]
        need({"participant", "name", "story", "repeats"} <= set(entry), "a ceiling's definition")
        need(who not in ceilings, "two ceilings of one participant")
        need(values.dtype.kind == "f" and values.shape == (columns.get(who),), "a ceiling's size")
        as_floats(values[~np.isnan(values)], "a ceiling")
        rest = {key: value for key, value in entry.items() if key != "participant"}
        ceilings[who] = (values, rest)
    return ceilings


def _numbers(files):
    "Rows of the table of results."
    if "numbers.json" not in files:
        return []
    table = strict_json(read_bytes(files["numbers.json"]))
    need(isinstance(table, dict) and set(table) == {"columns", "rows"}, "the table of results")
    names, rows = table["columns"], table["rows"]
    need(isinstance(names, list) and isinstance(rows, list), "the table of results")
    need(len(set(map(str, names))) == len(names), "a column of results twice")
    for row in rows:
        need(isinstance(row, dict) and set(row) <= set(names), "a row of results")
        low, value, high = (row.get(key) for key in ("low", "value", "high"))
        if all(map(real, (low, value, high))):
            need(low <= value <= high, "a result outside its interval")
    in_order = lambda row: {name: row[name] for name in names if name in row}
    return list(map(in_order, rows))


def _check_known(files, facts, context):
    "No file but those of a release, each with its content."
    known = set("heads.safetensors space.npz space.json ceilings.npz ceilings.json".split())
    known |= {"split.json", "numbers.json", *UNHASHED}
    own = facts.get("files", facts.get("hashes"))
    known |= set(context.get("hashes") or ()) | set(own if isinstance(own, dict) else ())
    extra = [name for name in files if name not in known and not name.startswith("backbone/")]
    need(not extra, f"unknown files: {', '.join(extra)}"[:80])
    for hashes in (context.get("hashes"), own):
        if hashes is not None:
            _check_hashes(files, hashes)


def _split(files, facts, context):
    "The split of a release, or None."
    split = None
    if "split.json" in files:
        people = tuple(context.get("people", PEOPLE))
        split = split_of(strict_json(read_bytes(files["split.json"])), people)
    need((split is None) == (facts["split"] is None), "a split in one place only")
    need(split is None or plain_hash(split) == facts["split"], "the split and its hash")
    return split


@judge
def judge_release(path, context):
    "Value: facts, heads {name: array}, spaces, ceilings, split (or None), numbers."
    files = _files(path)
    facts, columns = _facts(files)
    _check_known(files, facts, context)
    _check_backbone(files, facts)
    return {
        "facts": facts,
        "split": _split(files, facts, context),
        "numbers": _numbers(files),
        "heads": _check_heads(files, facts, columns),
        "spaces": _spaces(files, columns),
        "ceilings": _ceilings(files, columns),
    }
