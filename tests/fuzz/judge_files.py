"""Judges of binary files: HDF5, NIfTI, GIFTI, FreeSurfer annotations, sound."""

import base64
import hashlib
import io
import math
import re
import struct
import xml.etree.ElementTree as ET
import zlib

import numpy as np
from judge_base import (
    LARGEST_ARRAY,
    as_floats,
    guarded,
    judge,
    need,
    numbers,
    read_bytes,
)

# ---- HDF5: read by h5py in a child process, since its C library may crash on foreign bytes

FLOAT32_MAX = float(np.finfo(np.float32).max)


def _check_superblock(data):
    "The file begins with its signature and ends where it says."
    need(data[:8] == b"\x89HDF\r\n\x1a\n", "no HDF5 signature at byte 0")
    version = data[8] if len(data) > 60 else 99
    need(version <= 3, "an unknown superblock")
    old = version < 2
    need(data[13 if old else 9] == 8, "addresses that are not of 8 bytes")
    at = {0: 24, 1: 28}.get(version, 12)
    base, _, end = struct.unpack("<3Q", data[at : at + 24])
    need(base == 0 and end == len(data), f"{len(data)} bytes, {end} by the superblock")


def _check_storage(name, dataset, size):
    "Every number of a dataset lies in this very file."
    import h5py

    layout = dataset.id.get_create_plist().get_layout()
    need(layout != h5py.h5d.VIRTUAL, f"{name} is virtual")
    need(dataset.id.get_create_plist().get_external_count() == 0, f"{name} lies in other files")
    if layout == h5py.h5d.CHUNKED:
        expected = math.prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks))
        need(dataset.id.get_num_chunks() == expected, f"{name} has chunks that were never written")
    if layout == h5py.h5d.CONTIGUOUS:
        offset, stored = dataset.id.get_offset(), dataset.id.get_storage_size()
        whole = offset is not None and stored == dataset.nbytes and offset + stored <= size
        need(whole, f"{name} was never written, or not to its end")


def _check_kind(name, dataset):
    "A dataset of real numbers, neither empty nor huge."
    import h5py

    need(isinstance(dataset, h5py.Dataset), f"{name} is not a dataset")
    need(dataset.dtype.kind in "fiu", f"{name} is of type {dataset.dtype}")
    need(dataset.shape, f"{name} is a single number")
    need(0 < math.prod(dataset.shape) <= LARGEST_ARRAY // 2, f"shape of {name}")


def _hdf5_arrays(path, size):
    "Name -> array of a flat HDF5 file of real numbers."
    import h5py

    arrays = {}
    with h5py.File(path, "r") as file:
        names = list(file)
        need(names, "it holds nothing")
        need(len(names) < 500, "hundreds of datasets")
        for name in names:
            need(isinstance(file.get(name, getlink=True), h5py.HardLink), f"{name} is a link")
            dataset = file[name]
            _check_kind(name, dataset)
            _check_storage(name, dataset, size)
            arrays[name] = dataset[()]
        need(sum(a.nbytes for a in arrays.values()) < 100 * 2**20, "too large to judge")
    return {k: np.asarray(a, a.dtype.newbyteorder("=")) for k, a in arrays.items()}


def _read_hdf5(path):
    data = read_bytes(path)
    _check_superblock(data)
    return guarded(lambda: _hdf5_arrays(path, len(data)))


def _responses(name, array):
    "Finite float64 that also fit into float32."
    values = as_floats(array, name)
    need(np.abs(values).max() <= FLOAT32_MAX, f"{name} holds numbers beyond float32")
    return values


def _need_different(parts, what):
    "No part is a copy of another."
    keys = [(p.shape, hashlib.sha256(np.ascontiguousarray(p).tobytes()).digest()) for p in parts]
    need(len(set(keys)) == len(keys), f"two {what} are the same")


def _check_shape(name, shape, context, trs):
    "Rows and columns as the caller knows them."
    need(not trs or shape[-2] == trs, f"{name} has {shape[-2]} rows, not {trs}")
    voxels = context.get("voxels")
    need(not voxels or shape[-1] == voxels, f"{name} has {shape[-1]} columns, not {voxels}")


@judge
def judge_hdf5_lebel(path, context):
    "Value: data (T, V) and repeats (R, T, V) or None, float64."
    arrays = _read_hdf5(path)
    need("data" in arrays, "no dataset 'data'")
    unknown = sorted(set(arrays) - {"data", "individual_repeats"})
    need(not unknown, f"unknown datasets: {', '.join(unknown)}"[:80])
    data = _responses("data", arrays["data"])
    need(data.ndim == 2, f"data has {data.ndim} axes")
    _check_shape("data", data.shape, context, context.get("trs"))
    if "individual_repeats" not in arrays:
        need(not context.get("repeats"), "no repeats")
        return {"data": data, "repeats": None}
    repeats = _responses("individual_repeats", arrays["individual_repeats"])
    need(repeats.ndim == 3 and repeats.shape[1:] == data.shape, "repeats of another shape")
    count = context.get("repeats")
    need(not count or len(repeats) == count, f"{len(repeats)} repeats, not {count}")
    _need_different(repeats, "repeats")
    return {"data": data, "repeats": repeats}


def _check_run(name, array, role, context):
    "One run: its axes, its length, and the rows that the trim keeps."
    start, end = context.get("trim", (10, 10))
    need(array.ndim == (3 if role == "val" else 2), f"{name} has {array.ndim} axes")
    trs = context.get("trs")
    _check_shape(name, array.shape, context, trs.get(name) if isinstance(trs, dict) else trs)
    rows = array.shape[-2]
    need(rows > start + end, f"{name} has only {rows} rows")
    kept = array[..., start : rows - end, :]
    _responses(name, kept)
    _need_different(kept if role == "val" else [kept], "repeats")


@judge
def judge_hdf5_bilingual(path, context):
    "Value: runs {key: (T, V) or (R, T, V)} float64; NaN only in rows that the trim drops."
    role = context.get("role", "val" if path.stem.endswith("_val") else "trn")
    runs = {}
    for name, array in _read_hdf5(path).items():
        _check_run(name, array, role, context)
        runs[name] = np.asarray(array, np.float64)
    columns = {array.shape[-1] for array in runs.values()}
    need(len(columns) == 1, "runs with different columns")
    _need_different(list(runs.values()), "runs")
    return {"runs": runs}


# ---- NIfTI-1 and NIfTI-2 in one file

NIFTI_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
TIME_UNITS = {8: 1.0, 16: 1e-3, 24: 1e-6}


def _inflate(data, limit, wbits, what):
    "Exactly one compressed stream, with the right check sum and nothing behind it."
    out, rest = _one_stream(data, limit, wbits, what)
    need(not rest, f"data after the end of {what}")
    return out


def _one_stream(data, limit, wbits, what):
    "Content of the first compressed stream, and what follows it."
    stream = zlib.decompressobj(wbits)
    try:
        out = stream.decompress(data, limit + 1)
    except zlib.error:
        need(False, f"{what} is damaged")
    need(len(out) <= limit, f"{what} is larger than it should be")
    if not stream.eof:  # the end mark may still wait for its turn
        out += stream.decompress(stream.unconsumed_tail, 1)
    need(stream.eof and len(out) <= limit, f"{what} stops in the middle")
    return out, stream.unused_data


def _gunzip(data, limit):
    "Content of a gzip file: its members, one after the other, and zero bytes as padding."
    parts = []
    while data:
        out, data = _one_stream(data, limit, 31, "the gzip stream")
        parts.append(out)
        limit -= len(out)
        data = data if data.strip(b"\0") else b""
    return b"".join(parts)


def _nifti_header(data):
    "Header as a NumPy record, its size and byte order."
    from nibabel import nifti1, nifti2

    for size, module, magic in ((348, nifti1, b"n+1"), (540, nifti2, b"n+2")):
        for order in "<>":
            if data[:4] == struct.pack(f"{order}i", size) and len(data) >= size + 4:
                header = np.frombuffer(data[:size], module.header_dtype.newbyteorder(order))[0]
                need(bytes(header["magic"]) == magic, "magic")
                eol = header["eol_check"].tolist() if size == 540 else [13, 10, 26, 10]
                need(eol in ([13, 10, 26, 10], [0] * 4), "line ends changed on the way")
                return header, size, order
    need(False, "not a NIfTI header")


def _turned(header, sizes):
    "The affine of a qform: a quaternion, the handedness of the grid, and its place."
    from nibabel.quaternions import quat2mat

    affine = np.eye(4)
    b, c, d = (float(header[f"quatern_{axis}"]) for axis in "bcd")
    rest = 1 - (b * b + c * c + d * d)
    need(rest >= -1e-5, "a quaternion longer than 1")
    handed = float(header["pixdim"][0])
    need(handed in (-1.0, 0.0, 1.0), "qfac is neither 1 nor -1")
    turn = quat2mat([math.sqrt(max(rest, 0.0)), b, c, d])
    affine[:3, :3] = turn * (sizes * [1, 1, handed or 1.0])
    affine[:3, 3] = [header[f"qoffset_{axis}"] for axis in "xyz"]
    return affine


def _nifti_affine(header):
    "The affine by the standard: sform, else qform, else voxel sizes."
    sizes = np.asarray(header["pixdim"][1:4], float)
    need(np.isfinite(sizes).all() and (sizes > 0).all(), "voxel sizes")
    codes = int(header["qform_code"]), int(header["sform_code"])
    need(all(0 <= code <= 5 for code in codes), "an unknown code of a coordinate system")
    affine = np.eye(4)
    if codes[1]:
        affine[:3] = [header[f"srow_{axis}"] for axis in "xyz"]
    elif codes[0]:
        affine = _turned(header, sizes)
    else:
        affine = np.diag([*sizes, 1.0])
    need(np.isfinite(affine).all(), "an affine that is not finite")
    need(abs(np.linalg.det(affine[:3, :3])) > 1e-9, "an affine without volume")
    return affine


def _nifti_extensions(data, size, start):
    "Between header and data lie extensions of the stated sizes and nothing else."
    flag, at = data[size : size + 4], size + 4
    if flag[0] == 0:
        return
    while at < start:
        need(at + 8 <= start, "an extension that is cut")
        length = max(struct.unpack(f"{o}i", data[at : at + 4])[0] for o in "<>")
        lengths = [struct.unpack(f"{o}i", data[at : at + 4])[0] for o in "<>"]
        fitting = [n for n in lengths if n >= 16 and n % 16 == 0 and at + n <= start]
        need(fitting, f"an extension of {length} bytes")
        at += min(fitting)


def _nifti_shape(header):
    "Lengths of three or four axes; axes of length 1 at the end say nothing."
    dim = [int(n) for n in header["dim"]]
    need(3 <= dim[0] <= 7, f"{dim[0]} axes")
    shape = tuple(dim[1 : dim[0] + 1])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    need(len(shape) < 5, f"shape {shape}")
    need(all(n > 0 for n in shape), f"shape {shape}")
    return shape


def _nifti_stored(data, header, size, order, shape):
    "Numbers as they stand in the file, which ends with them."
    kind = NIFTI_TYPES.get(int(header["datatype"]))
    need(kind, f"data type {header['datatype']}")
    dtype = np.dtype(order + kind)
    need(int(header["bitpix"]) == 8 * dtype.itemsize, "bits a voxel and data type")
    start = float(header["vox_offset"])
    need(start.is_integer() and start >= size + 4, f"data from byte {start}")
    start, count = int(start), math.prod(shape)
    need(count <= LARGEST_ARRAY, "too large to judge")
    found = len(data) - start
    need(found == count * dtype.itemsize, f"{found} bytes of data, {count * dtype.itemsize} told")
    _nifti_extensions(data, size, start)
    return np.frombuffer(data, dtype, count, start).reshape(shape, order="F")


def _nifti_values(data):
    "Scaled values, header, and shape of an image."
    header, size, order = _nifti_header(data)
    shape = _nifti_shape(header)
    values = _nifti_stored(data, header, size, order, shape)
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isnan(slope) and math.isnan(inter):  # nibabel's own way to say 'not scaled'
        slope, inter = 0.0, 0.0
    need(math.isfinite(slope) and math.isfinite(inter), "a scaling that is not finite")
    values = as_floats(values, "the image")
    if slope != 0:
        values = as_floats(values * slope + inter, "the scaled image")
    return values, header, shape


def _nifti_tr(header, context):
    "TR in s; a header that gives no unit of time means seconds."
    code = int(header["xyzt_units"]) & 0x38
    need(code in (0, *TIME_UNITS), "the unit of time")
    tr = float(header["pixdim"][4]) * TIME_UNITS.get(code, 1.0)
    need(math.isfinite(tr) and tr >= 0, f"a TR of {tr}")
    told = context.get("tr")
    need(not told or tr == 0 or abs(tr - told) < 1e-3, f"a TR of {tr:g} s, not {told}")
    return tr


def _check_volumes(shape, context):
    "Responses have several volumes, as many as the caller knows."
    need(len(shape) == 4, "responses have four axes")
    trs = context.get("trs")
    need(not trs or shape[3] == trs, f"{shape[3]} volumes, not {trs}")
    need(shape[3] > 1, "a single volume")


def _nifti_labels(values, kind, context):
    "Labels, or a mask, as whole numbers."
    need(values.ndim == 3, "a mask has three axes")
    whole = np.rint(values)
    need((np.abs(values - whole) < 1e-4).all(), "labels that are not whole numbers")
    need((whole >= 0).all() and whole.max() < 2**31, "labels out of range")
    need(whole.any(), "an empty mask")
    need(kind != "mask" or whole.max() == 1, "a mask of other numbers than 0 and 1")
    voxels = context.get("voxels")
    need(not voxels or np.count_nonzero(whole) == voxels, "another number of voxels")
    return whole.astype(np.int64)


@judge
def judge_nifti(path, context):
    "Value: data (X, Y, Z, T) float64, affine, tr; of a mask or labels: data (X, Y, Z) int, affine."
    data = read_bytes(path)
    zipped = path.name.endswith(".gz")
    if zipped:
        need(data[:2] == b"\x1f\x8b", "not gzip")
        data = _gunzip(data, 8 * LARGEST_ARRAY + 4096)
    values, header, shape = _nifti_values(data)
    kind = context.get("kind", "responses" if len(shape) == 4 else "labels")
    need("shape" not in context or tuple(context["shape"]) == shape[:3], f"a grid of {shape[:3]}")
    affine = _nifti_affine(header)
    if kind == "responses":
        _check_volumes(shape, context)
        return {"data": values, "affine": affine, "tr": _nifti_tr(header, context)}
    return {"data": _nifti_labels(values, kind, context), "affine": affine}


# ---- GIFTI

GIFTI_TYPES = {"NIFTI_TYPE_UINT8": "u1", "NIFTI_TYPE_INT32": "i4", "NIFTI_TYPE_FLOAT32": "f4"}
GIFTI_TYPES |= {"NIFTI_TYPE_FLOAT64": "f8", "NIFTI_TYPE_INT16": "i2", "NIFTI_TYPE_INT8": "i1"}
NOT_A_SERIES = ("LABEL", "POINTSET", "TRIANGLE", "NODE_INDEX", "RGB_VECTOR", "RGBA_VECTOR")


def _whole(text, what):
    need(text is not None and re.fullmatch("[0-9]{1,9}", text), f"{what} is not a whole number")
    return int(text)


def _gifti_shape(told):
    "Lengths of one or two axes."
    axes = _whole(told.get("Dimensionality"), "Dimensionality")
    need(1 <= axes <= 2 and f"Dim{axes}" not in told, f"{axes} axes")
    shape = tuple(_whole(told.get(f"Dim{i}"), f"Dim{i}") for i in range(axes))
    need(0 < math.prod(shape) <= LARGEST_ARRAY // 2, f"shape {shape}")
    return shape


def _gifti_ascii(text, kind, count):
    "Numbers of an array in plain text."
    words = text.split()
    need(len(words) == count, f"{len(words)} numbers, {count} told")
    values = numbers(words)
    if kind[0] in "iu":
        limits = np.iinfo(kind)
        need((values == np.rint(values)).all(), "whole numbers")
        need(limits.min <= values.min() and values.max() <= limits.max, "out of range")
    return values.astype(kind)


def _gifti_binary(text, told, kind, count):
    "Numbers of an array in base64, packed or not."
    encoding = told.get("Encoding")
    need(encoding in ("Base64Binary", "GZipBase64Binary"), f"encoding {encoding}"[:60])
    endian = {"LittleEndian": "<", "BigEndian": ">"}.get(told.get("Endian"))
    need(endian, "the byte order")
    raw = base64.b64decode("".join(text.split()), validate=True)
    size = count * np.dtype(kind).itemsize
    if encoding[0] == "G":
        raw = _inflate(raw, size, 15, "compressed data")
    need(len(raw) == size, f"{len(raw)} bytes, {size} told")
    return np.frombuffer(raw, endian + kind).astype(kind)


def _gifti_array(element):
    "Values of one DataArray in their own type."
    told = element.attrib
    kind = GIFTI_TYPES.get(told.get("DataType"))
    need(kind, f"data type {told.get('DataType')}"[:60])
    shape = _gifti_shape(told)
    order = {"RowMajorOrder": "C", "ColumnMajorOrder": "F"}.get(told.get("ArrayIndexingOrder"))
    need(order or len(shape) == 1, "the order of indices")
    blocks = element.findall("Data")
    need(len(blocks) == 1 and not len(blocks[0]), "not one Data in an array")
    text, count = blocks[0].text or "", math.prod(shape)
    if told.get("Encoding") == "ASCII":
        values = _gifti_ascii(text, kind, count)
    else:
        values = _gifti_binary(text, told, kind, count)
    return values.reshape(shape, order=order or "C")


def _gifti_root(path):
    data = read_bytes(path)
    need(b"<!ENTITY" not in data, "entities of its own")
    need(data.count(b"<") < 100_000, "too many elements")
    try:
        root = ET.fromstring(data)
    except ET.ParseError as error:
        need(False, f"not XML: {error}"[:80])
    need(root.tag == "GIFTI", f"a {root.tag[:20]}, not GIFTI")
    need(re.fullmatch(r"1(\.\d+)?", root.get("Version", "")), "the version")
    known = {"MetaData", "LabelTable", "DataArray"}
    need({child.tag for child in root} <= known, "an unknown element")
    arrays = root.findall("DataArray")
    count = _whole(root.get("NumberOfDataArrays"), "NumberOfDataArrays")
    need(len(arrays) == count, f"{len(arrays)} arrays, {count} told")
    need(arrays, "no arrays")
    return root, arrays


def _label_table(root):
    "Key -> name of a table whose keys and names all differ."
    need(len(root.findall("LabelTable")) == 1, "not one table of labels")
    names = {}
    for label in root.find("LabelTable"):
        need(label.tag == "Label", "an unknown element of the table")
        text = label.get("Key", label.get("Index"))
        need(text is not None and re.fullmatch("-?[0-9]{1,9}", text), "a key of the table")
        need(int(text) not in names, "a key stands twice in the table")
        names[int(text)] = (label.text or "").strip()
    need(names and all(names.values()), "a label without a name")
    need(len(set(names.values())) == len(names), "two labels of one name")
    return names


def _gifti_labels(root, arrays, context):
    "Name of every vertex by the file's own table."
    need(len(arrays) == 1, f"{len(arrays)} maps of labels")
    names = _label_table(root)
    keys = _gifti_array(arrays[0])
    if keys.ndim == 2 and 1 in keys.shape:
        keys = keys.reshape(-1)
    need(keys.ndim == 1 and keys.dtype.kind in "iu", "labels are one column of whole numbers")
    lost = sorted(set(np.unique(keys).tolist()) - set(names))
    need(not lost, f"numbers without a name: {lost[:4]}")
    voxels = context.get("voxels")
    need(not voxels or len(keys) == voxels, f"{len(keys)} vertices, not {voxels}")
    labels = [names[k] for k in keys.tolist()]
    return {"labels": labels, "keys": keys.astype(np.int64), "names": names}


def _gifti_series(arrays, context):
    "(T, V) of arrays that are a volume each, or of a single one of V x T."
    tables = [_gifti_array(a) for a in arrays]
    need(len({t.shape for t in tables}) == 1, "volumes of different size")
    if len(tables) == 1 and tables[0].ndim == 2:
        data = as_floats(tables[0], "responses").T  # Dim0 counts vertices
    else:
        need(tables[0].ndim == 1 or 1 in tables[0].shape, "several tables")
        data = as_floats(np.stack([t.reshape(-1) for t in tables]), "responses")
    trs, voxels = context.get("trs"), context.get("voxels")
    need(not trs or len(data) == trs, f"{len(data)} volumes, not {trs}")
    need(not voxels or data.shape[1] == voxels, f"{data.shape[1]} vertices, not {voxels}")
    return data


@judge
def judge_gifti(path, context):
    "Value: data (T, V) float64; of a label file: labels [name of each vertex], keys (V,), names."
    root, arrays = _gifti_root(path)
    intents = {a.get("Intent", "").removeprefix("NIFTI_INTENT_") for a in arrays}
    need(len(intents) == 1 and "" not in intents, "arrays of different intents")
    (intent,) = intents
    labels = path.name.endswith(".label.gii")
    kind = context.get("kind", "labels" if labels else "responses")
    if kind != "responses":
        need(intent == "LABEL", f"the intent {intent[:30]} of labels")
        return _gifti_labels(root, arrays, context)
    need(intent not in NOT_A_SERIES, f"the intent {intent[:30]} of responses")
    return {"data": _gifti_series(arrays, context)}


# ---- FreeSurfer annotations


class _Bytes:
    "Big-endian fields of a file, one after the other."

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        need(0 <= size <= len(self.data) - self.at, "the file stops in the middle")
        self.at += size
        return self.data[self.at - size : self.at]

    def int(self):
        return struct.unpack(">i", self.take(4))[0]

    def text(self):
        "A length, and so many bytes of which the last is NUL."
        raw = self.take(self.int())
        need(raw and raw[-1] == 0 and b"\0" not in raw[:-1], "a name without its end")
        return raw[:-1].decode("utf-8")


def _vertex_colours(file, context):
    "Colour number of each vertex, (V,)."
    n = file.int()
    need(n > 0, f"{n} vertices")
    pairs = np.frombuffer(file.take(8 * n), ">i4").reshape(n, 2)
    need((pairs[:, 0] == np.arange(n)).all(), "vertices out of order")
    voxels = context.get("voxels")
    need(not voxels or n == voxels, f"{n} vertices, not {voxels}")
    return pairs[:, 1]


def _colour_name(file, names):
    "Colour number and name of one entry, which no entry before it has."
    name = file.text()
    need(name.strip() and name not in names.values(), f"the name {name[:20]!r} of an entry")
    colour = [file.int() for _ in range(4)]
    need(all(0 <= c <= 255 for c in colour[:3]), "a colour out of range")
    key = colour[0] + (colour[1] << 8) + (colour[2] << 16)
    need(key not in names, "two entries of one colour")
    return key, name


def _colour_names(file):
    "Colour number -> name of a table of version 2, or of the older kind."
    need(file.int() == 1, "no table of colours")
    entries = file.int()
    new = entries < 0
    need(not new or entries == -2, f"version {-entries} of the table")
    largest = file.int() if new else entries
    need(0 < largest < 100_000, f"a table of {largest}")
    file.take(file.int())  # where the table came from
    count = file.int() if new else entries
    need(0 < count <= largest, f"{count} entries in a table of {largest}")
    names, seen = {}, set()
    for i in range(count):
        index = file.int() if new else i
        need(0 <= index < largest and index not in seen, f"the entry {index}")
        seen.add(index)
        key, name = _colour_name(file, names)
        names[key] = name
    return names


@judge
def judge_annot(path, context):
    "Value: labels [name of each vertex; '???' where it has none], names {colour number: name}."
    file = _Bytes(read_bytes(path))
    colours = _vertex_colours(file, context)
    names = _colour_names(file)
    need(file.at == len(file.data), "data after the end")
    lost = sorted(set(np.unique(colours).tolist()) - set(names) - {0})
    need(not lost, f"colours without an entry: {lost[:3]}")
    return {"labels": [names.get(k, "???") for k in colours.tolist()], "names": names}


# ---- sound


def _wav_chunk(data, at):
    "Name and length of the chunk that begins at byte `at`."
    need(at + 8 <= len(data), "a chunk that is cut")
    name, length = data[at : at + 4], struct.unpack("<I", data[at + 4 : at + 8])[0]
    need(all(32 <= c < 127 for c in name), "a chunk without a name")
    need(at + 8 + length <= len(data), f"the chunk {name.decode()!r} is cut")
    return name, length


def _wav_chunks(data):
    "Name -> content of the chunks of a RIFF file, which fill it exactly."
    need(data[:4] == b"RIFF" and data[8:12] == b"WAVE", "not a RIFF WAVE file")
    size = struct.unpack("<I", data[4:8])[0]
    need(size + 8 == len(data), f"{len(data)} bytes, {size + 8} by the header")
    chunks, at = {}, 12
    while at < len(data):
        name, length = _wav_chunk(data, at)
        need(name not in chunks or name not in (b"fmt ", b"data", b"fact"), "a chunk twice")
        chunks[name] = data[at + 8 : at + 8 + length]
        at += 8 + length
        at += length % 2 if at < len(data) else 0
    return chunks


def _wav_format(about):
    "Kind of the samples (1: whole numbers, 3: floats), channels, rate, bytes of a block, bits."
    need(len(about) in (16, 18, 40), f"a fmt of {len(about)} bytes")
    kind, channels, rate, speed, block, bits = struct.unpack("<HHIIHH", about[:16])
    if kind == 0xFFFE:
        need(len(about) == 40, "an extended format without its extension")
        extra, valid, _, kind = struct.unpack("<HHIH", about[16:26])
        need(extra == 22 and valid == bits, "an extended format")
        need(about[26:] == bytes.fromhex("000000001000800000aa00389b71"), "an unknown format")
    allowed = {1: (8, 16, 24, 32), 3: (32, 64)}.get(kind, ())
    need(bits in allowed, f"format {kind} with {bits} bits")
    need(1 <= channels <= 64, f"{channels} channels")
    need(block == channels * bits // 8 and speed == rate * block, "sizes in the header")
    return kind, channels, rate, block, bits


def _unpacked(raw, kind, bits):
    "Samples of all channels, one after the other, from -1 to 1."
    if kind == 3:
        return np.frombuffer(raw, f"<f{bits // 8}").astype(np.float64)
    if bits == 8:
        return (np.frombuffer(raw, np.uint8).astype(np.float64) - 128) / 128
    if bits == 24:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0] / 2.0**31
    return np.frombuffer(raw, f"<i{bits // 8}") / 2.0 ** (bits - 1)


def _wav_samples(chunks):
    "Samples (N, C) from -1 to 1, and rate."
    need(b"fmt " in chunks and b"data" in chunks, "no fmt or no data")
    raw = chunks[b"data"]
    kind, channels, rate, block, bits = _wav_format(chunks[b"fmt "])
    need(raw and len(raw) % block == 0, f"{len(raw)} bytes of samples in blocks of {block}")
    if b"fact" in chunks and kind == 3:
        told = chunks[b"fact"][:4]
        need(told == struct.pack("<I", len(raw) // block), "samples counted in the header")
    return _unpacked(raw, kind, bits).reshape(-1, channels), rate


def _stream_info(data):
    "Rate, channels, bits a sample and samples a channel of a FLAC file."
    need(data[:4] == b"fLaC" and data[4] & 0x7F == 0, "not a FLAC file")
    need(int.from_bytes(data[5:8], "big") == 34 and len(data) > 42, "STREAMINFO")
    packed = int.from_bytes(data[18:26], "big")
    rate, channels = packed >> 44, (packed >> 41 & 7) + 1
    bits, frames = (packed >> 36 & 31) + 1, packed & (2**36 - 1)
    need(frames, "a length that is not told")
    need(bits in (8, 16, 24), f"{bits} bits")
    need(frames * channels <= LARGEST_ARRAY // 4, "too many samples")
    return rate, channels, bits, frames


def _flac_samples(data):
    "Samples (N, C) from -1 to 1, and rate; decoded by libsndfile in a child, checked by its MD5."
    rate, channels, bits, frames = _stream_info(data)

    def read():
        import soundfile

        samples, _ = soundfile.read(io.BytesIO(data), dtype="int32", always_2d=True)
        return {"samples": samples}

    samples = guarded(read)["samples"]
    need(samples.shape == (frames, channels), f"{samples.shape} samples, {frames} told")
    plain = samples >> (32 - bits)
    raw = plain.astype("<i4").view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()
    digest = data[26:42]
    need(digest == bytes(16) or hashlib.md5(raw).digest() == digest, "samples and their MD5")
    return plain / 2.0 ** (bits - 1), rate


def _check_channels(samples):
    "Channels whose mean is sound: none is a trigger, and they do not cancel."
    if samples.shape[1] < 2:
        return
    levels = [len(np.unique(channel[:200_000])) for channel in samples.T]
    need(min(levels) > 3 or max(levels) <= 100, "a channel that is no sound")
    loud = np.sqrt((samples**2).mean(0)).max()
    mean = np.sqrt((samples.mean(1) ** 2).mean())
    need(loud == 0 or mean > 0.05 * loud, "channels that cancel")


@judge
def judge_sound(path, context):
    "Value: samples (N, C) float64 from -1 to 1, rate (Hz)."
    data = read_bytes(path)
    need(len(data) > 44, "too short for sound")
    wav = data[:4] == b"RIFF" or path.suffix.lower() == ".wav"
    need(len(data) <= 2 * LARGEST_ARRAY, "too large to judge")
    samples, rate = _wav_samples(_wav_chunks(data)) if wav else _flac_samples(data)
    need(1000 <= rate <= 768_000, f"a rate of {rate} Hz")
    need("rate" not in context or rate == context["rate"], f"a rate of {rate} Hz")
    samples = as_floats(samples, "the sound")
    need(np.abs(samples).max() <= 4, "samples far beyond full scale")
    _check_channels(samples)
    seconds = len(samples) / rate
    told = context.get("duration")
    need(not told or seconds >= told - 0.5, f"{seconds:.2f} s of sound for a story of {told} s")
    return {"samples": samples, "rate": rate}
