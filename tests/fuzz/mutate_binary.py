"""The operators on HDF5, NIfTI, GIFTI, .annot, sound and release folders; see `mutate`."""

import gzip
import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
from operators import CHOICE, SAME, VALUE, Skip, pick, simple, some

# ---- HDF5: (open file without the dataset, its name, its numbers, rng) writes the dataset anew


def change_hdf5(draft, change, rng):
    import h5py

    try:
        with h5py.File(draft.path, "r") as f:
            kept = {name: f[name][()] for name in f}
    except (OSError, RuntimeError, KeyError):
        raise Skip from None
    name = pick(rng, sorted(kept))
    settings = {}
    draft.path.unlink()
    with h5py.File(draft.path, "w") as f:
        for other in kept:
            if other != name:
                f[other] = kept[other]
        change(f, name, kept[name], rng, **settings)


def as_type(dtype):
    return lambda f, name, x, rng: f.create_dataset(name, data=x.astype(dtype))


def scaled_as(dtype):
    return lambda f, name, x, rng: f.create_dataset(name, data=np.round(x * 1000).astype(dtype))


def stored(**settings):
    "The same numbers, laid out otherwise."

    def change(f, name, x, rng):
        chunks = tuple(max(1, n // 2) for n in x.shape)
        f.create_dataset(name, data=x, chunks=chunks, **settings)

    return change


def unwritten(fill=None, share=0.5):
    "Chunks that were never written."

    def change(f, name, x, rng):
        d = f.create_dataset(
            name, x.shape, x.dtype, chunks=(*x.shape[:-2], 4, x.shape[-1]), fillvalue=fill
        )
        n = int(x.shape[-2] * share) // 4 * 4
        if n:
            d[..., :n, :] = x[..., :n, :]

    return change


def never_written(f, name, x, rng):
    f.create_dataset(name, x.shape, x.dtype)


def virtual(source):
    def change(f, name, x, rng):
        import h5py

        layout = h5py.VirtualLayout(x.shape, x.dtype)
        if source == "half":
            f["hidden"] = x
            layout[..., : x.shape[-2] // 2, :] = h5py.VirtualSource(".", "hidden", x.shape)[
                ..., : x.shape[-2] // 2, :
            ]
        else:
            layout[:] = h5py.VirtualSource(source, "d", x.shape)
        f.create_virtual_dataset(name, layout)

    return change


def external(f, name, x, rng):
    f.create_dataset(
        name,
        x.shape,
        x.dtype,
        external=[(pick(rng, ["/etc/passwd", "nothing.raw", "/dev/zero"]), 0, x.nbytes)],
    )


def link(kind):
    def change(f, name, x, rng):
        import h5py

        f["elsewhere"] = x
        links = {"soft": h5py.SoftLink("/elsewhere"), "dangling": h5py.SoftLink("/no/such/data")}
        links |= {
            "external": h5py.ExternalLink("nothing.h5", "/data"),
            "round": h5py.SoftLink(f"/{name}"),
        }
        f[name] = links[kind]
        if kind == "hard":
            f[name] = f["elsewhere"]

    return change


def cell(*values):
    "One number is replaced."

    def change(f, name, x, rng):
        x = x.astype(float)
        x.flat[some(rng, x.size)] = pick(rng, values)
        f[name] = x

    return change


def region(value):
    "A column, a row or the whole is replaced by one number."

    def change(f, name, x, rng):
        x = x.copy()
        where = pick(
            rng, [(..., some(rng, x.shape[-1])), (..., some(rng, x.shape[-2]), slice(None)), (...,)]
        )
        x[where] = value
        f[name] = x

    return change


def shaped(change):
    return lambda f, name, x, rng: f.create_dataset(name, data=change(x, rng))


def odd_types(f, name, x, rng):
    import h5py

    kind = pick(rng, ["text", "vlen", "compound", "enum", "opaque", "complex", "bool", "reference"])
    if kind == "text":
        f[name] = np.round(x * 100).astype("S8")
    elif kind == "vlen":
        f.create_dataset(name, data=np.full(x.shape, "0.5", object), dtype=h5py.string_dtype())
    elif kind == "compound":
        f.create_dataset(name, x.shape, [("a", "f4"), ("b", "f4")])
    elif kind == "enum":
        f.create_dataset(name, x.shape, h5py.enum_dtype({"low": 0, "high": 1}, "i1"))
    elif kind == "opaque":
        f.create_dataset(name, data=np.zeros(x.shape, "V4"))
    elif kind == "complex":
        f[name] = x + 0.25j
    elif kind == "bool":
        f[name] = x > 0
    else:
        f.create_dataset(name, x.shape, h5py.ref_dtype)


def huge(f, name, x, rng):
    shapes = [(x.shape[-2], 2**40), (2**40, x.shape[-1]), (x.shape[-2], 2**31)]
    f.create_dataset(name, (*x.shape[:-2], *pick(rng, shapes)), "f4", chunks=(*x.shape[:-2], 1, 1))


def huge_axis(f, name, x, rng):
    f.create_dataset(name, (2**34, *x.shape[-2:]), "f4", chunks=(1, *x.shape[-2:]))


def group_instead(f, name, x, rng):
    f.create_group(name)["data"] = x


def empty_space(f, name, x, rng):
    import h5py

    f[name] = h5py.Empty("f8")


def no_dataset(f, name, x, rng):
    if len(f):
        f["other"] = x


def renamed(f, name, x, rng):
    f[
        pick(rng, [name.upper(), name + " ", name + "s", "DATA", "story_01", "\x1b[2J", ".hidden"])
    ] = x


def extra(f, name, x, rng):
    f[name] = x
    other = pick(rng, ["notes", "mask", "story_07", "more/data", name + "_2"])
    f[other] = pick(rng, [x, np.arange(3), "text"])


def shorter(x, rng):
    at = some(rng, x.shape[-2])
    return np.delete(x, slice(at, at + pick(rng, [1, 1, 3, 5, 10])), axis=-2)


def longer(x, rng):
    return np.concatenate([x, x[..., : pick(rng, [1, 2, 5, 10]), :]], axis=-2)


def repeats_copied(f, name, x, rng):
    if x.ndim != 3:
        raise Skip
    x = x.copy()
    x[1] = x[0]
    f[name] = x


def cut_axis(axis, n):
    return lambda x, rng: x[(slice(None),) * (x.ndim - axis) + (slice(0, n),)]


def reordered(x, rng):
    return np.roll(x, pick(rng, [1, 3, -2]), axis=pick(rng, [-1, -2]))


for name, (change, blind) in dict(
    hdf5_in_chunks_packed=(stored(compression="gzip", shuffle=True), SAME),
    hdf5_with_checksums=(stored(fletcher32=True), SAME),
    hdf5_packed_by_lzf=(stored(compression="lzf"), SAME),
    hdf5_big_endian=(as_type(">f8"), SAME),
    hdf5_single_precision=(as_type("f4"), VALUE),
    hdf5_half_precision=(as_type("f2"), VALUE),
    hdf5_whole_numbers=(scaled_as("i2"), VALUE),
    hdf5_whole_numbers_of_8_bytes=(scaled_as("i8"), VALUE),
    hdf5_bytes=(
        lambda f, name, x, rng: f.create_dataset(
            name, data=np.clip(x * 20 + 128, 0, 255).astype("u1")
        ),
        VALUE,
    ),
    hdf5_an_odd_type=(odd_types, ""),
    hdf5_chunks_never_written=(unwritten(), ""),
    hdf5_chunks_never_written_filled_with_NaN=(unwritten(np.nan), ""),
    hdf5_nothing_written=(never_written, ""),
    hdf5_virtual_without_source=(virtual("nothing.h5"), ""),
    hdf5_virtual_half=(virtual("half"), ""),
    hdf5_external_storage=(external, ""),
    hdf5_a_soft_link=(link("soft"), SAME),
    hdf5_a_link_to_nothing=(link("dangling"), ""),
    hdf5_an_external_link=(link("external"), ""),
    hdf5_a_link_to_itself=(link("round"), ""),
    hdf5_a_NaN=(cell(np.nan), ""),
    hdf5_an_infinity=(cell(np.inf, -np.inf), ""),
    hdf5_a_number_beyond_float32=(cell(1e300, -1e39, 3.5e38), ""),
    hdf5_a_large_number=(cell(1e30, 9.96921e36, -32768.0), VALUE),
    hdf5_zeros=(region(0.0), VALUE),
    hdf5_NaNs=(region(np.nan), ""),
    hdf5_constant=(region(3.25), VALUE),
    hdf5_rows_missing=(shaped(shorter), ""),
    hdf5_rows_more=(shaped(longer), ""),
    hdf5_columns_missing=(
        shaped(cut_axis(1, 4)),
        "a file on its own may have any number of columns",
    ),
    hdf5_no_columns=(shaped(cut_axis(1, 0)), ""),
    hdf5_no_rows=(shaped(cut_axis(2, 0)), ""),
    hdf5_turned_over=(shaped(lambda x, rng: np.swapaxes(x, -1, -2)), ""),
    hdf5_one_axis=(shaped(lambda x, rng: x.ravel()), ""),
    hdf5_an_axis_more=(shaped(lambda x, rng: x[None]), ""),
    hdf5_one_number=(shaped(lambda x, rng: x.flat[0]), ""),
    hdf5_no_repeats=(shaped(lambda x, rng: x[:0]), ""),
    hdf5_a_repeat_less=(
        shaped(lambda x, rng: x[:1] if x.ndim == 3 else x),
        "nothing in the file says how often a story was heard",
    ),
    hdf5_a_repeat_twice=(repeats_copied, ""),
    hdf5_rolled=(shaped(reordered), VALUE),
    hdf5_times_minus_one=(shaped(lambda x, rng: -x), VALUE),
    hdf5_with_an_offset=(shaped(lambda x, rng: x + 1e6), VALUE),
    hdf5_too_large_an_axis=(huge, ""),
    hdf5_too_many_repeats=(huge_axis, ""),
    hdf5_a_group_for_a_dataset=(group_instead, ""),
    hdf5_an_empty_space=(empty_space, ""),
    hdf5_without_a_dataset=(
        no_dataset,
        "a dataset of repeats, or another story, need not be there",
    ),
    hdf5_a_dataset_renamed=(renamed, "a dataset of repeats, or another story, need not be there"),
    hdf5_a_dataset_more=(extra, "other datasets are nobody's business"),
).items():
    simple("hdf5", blind, **{name: change})


# ---- NIfTI: (bytes of the unpacked file, rng) -> bytes


def change_nifti(draft, change, rng):
    packed = draft.path.name.endswith(".gz")
    raw = draft.path.read_bytes()
    try:
        raw = gzip.decompress(raw) if packed else raw
    except (OSError, EOFError, zlib.error):
        raise Skip from None
    if len(raw) < 348:
        raise Skip
    raw = change(bytearray(raw), rng)
    draft.path.write_bytes(gzip.compress(bytes(raw), mtime=0) if packed else bytes(raw))


# name -> (offset, format) in a header of NIfTI-1
FIELDS = dict(
    size=(0, "i"),
    ndim=(40, "h"),
    datatype=(70, "h"),
    bits=(72, "h"),
    data_at=(108, "f"),
    slope=(112, "f"),
)
FIELDS |= dict(
    inter=(116, "f"),
    units=(123, "B"),
    qform=(252, "h"),
    sform=(254, "h"),
    cal_max=(124, "f"),
    qfac=(76, "f"),
)
FIELDS |= {f"dim{i}": (40 + 2 * i, "h") for i in range(1, 8)} | {
    f"pixdim{i}": (76 + 4 * i, "f") for i in range(1, 8)
}
FIELDS |= {f"srow{i}": (280 + 4 * i, "f") for i in range(12)} | {
    f"quatern{i}": (256 + 4 * i, "f") for i in range(6)
}


def field(name, *values):
    "One field of the header is set, in the file's byte order; NIfTI-2 is left alone."

    def change(raw, rng):
        order = {348: "<", 0x5C010000: ">"}.get(int.from_bytes(raw[:4], "little"))
        if order is None:
            raise Skip
        at, kind = FIELDS[pick(rng, [k for k in FIELDS if re.fullmatch(name, k)])]
        value = pick(rng, values)
        if callable(value):
            value = value(struct.unpack_from(order + kind, raw, at)[0])
        struct.pack_into(order + kind, raw, at, value)
        return raw

    return change


def nifti_swap(raw, rng):
    "Only the header's byte order is turned, as a broken converter does."
    if raw[:4] not in (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c"):
        raise Skip
    for at in [0, 36]:
        raw[at : at + 4] = raw[at : at + 4][::-1]
    for at in range(40, 56, 2):
        raw[at : at + 2] = raw[at : at + 2][::-1]
    return raw


def nifti_magic(raw, rng):
    raw[344:348] = pick(rng, [b"ni1\0", b"n+2\0", b"\0\0\0\0", b"n+1 ", b"N+1\0"])
    return raw


def nifti_more(raw, rng):
    return raw + bytes(int(rng.integers(1, 400)))


def nifti_less(raw, rng):
    return raw[: len(raw) - int(rng.integers(1, 600))]


def change_image(draft, change, rng):
    "(nibabel image, rng) -> image, saved at the same place."
    import nibabel

    try:
        image = nibabel.load(draft.path, mmap=False)
        data = np.asarray(image.dataobj)
    except Exception:
        raise Skip from None
    changed = change(image, data, rng)
    changed.to_filename(draft.path)
    if draft.path.name.endswith(".gz"):
        draft.path.write_bytes(gzip.compress(gzip.decompress(draft.path.read_bytes()), mtime=0))


def rebuilt(change, dtype=None):
    "The same image with other data."

    def changed(image, data, rng):
        import nibabel

        new = change(data, rng)
        made = nibabel.Nifti1Image(new, image.affine)
        made.header.set_xyzt_units("mm", "sec")
        made.header["pixdim"][4] = 1.5
        if dtype:
            made.set_data_dtype(dtype)
        return made

    return changed


def with_cell(*values):
    def change(data, rng):
        data = data.astype("f4")
        data.flat[some(rng, data.size)] = pick(rng, values)
        return data

    return change


def moved(image, data, rng):
    import nibabel

    affine = image.affine.copy()
    kind = pick(rng, ["shift", "flip", "zero", "nan", "far"])
    if kind == "shift":
        affine[:3, 3] += 1.5
    elif kind == "flip":
        affine[0] *= -1
    elif kind == "zero":
        affine[:3, 2] = 0
    elif kind == "nan":
        affine[1, 3] = np.nan
    else:
        affine[:3, 3] += 1e6
    made = nibabel.Nifti1Image(data, image.affine)
    made.header["pixdim"][4] = 1.5
    made.header["qform_code"], made.header["sform_code"] = 0, 1
    made.header["srow_x"], made.header["srow_y"], made.header["srow_z"] = affine[:3]
    made._affine = None
    return made


for name, (change, blind) in dict(
    nifti_another_number_of_axes=(field("ndim", 3, 5, 0, 8, -1, 300), ""),
    nifti_another_length_of_an_axis=(
        field("dim[1-4]", lambda v: v + 1, lambda v: v - 1, 0, -4, 1),
        VALUE,
    ),
    nifti_a_huge_axis=(field("dim[1-4]", 32767), ""),
    nifti_another_later_axis=(field("dim[5-7]", 2, 0, -1, 32767), SAME),
    nifti_another_type=(
        field("datatype", 2, 4, 8, 16, 32, 64, 128, 256, 512, 0, 1, 9999, -1, 1536),
        VALUE,
    ),
    nifti_other_bits=(field("bits", 8, 16, 64, 0, -1, 1), SAME),
    nifti_data_elsewhere=(
        field("data_at", 0, 348, 353.5, 360, 1e9, -5, np.nan, np.inf, 352.9),
        VALUE,
    ),
    nifti_another_slope=(field("slope", 0.0, 2.0, -1.0, np.nan, np.inf, 1e30, 1e-40), VALUE),
    nifti_another_intercept=(field("inter", 5.0, np.nan, np.inf, -1e30), VALUE),
    nifti_another_TR=(field("pixdim4", 0.0, -1.5, 1500.0, np.nan, np.inf, 2.0, 1e-9), VALUE),
    nifti_another_voxel_size=(field("pixdim[1-3]", 0.0, -3.0, np.nan, 7.0), VALUE),
    nifti_other_units=(field("units", 0, 2, 16, 18, 24, 255, 10, 40), VALUE),
    nifti_another_form=(field("[qs]form", 0, 1, 4, -1, 999), VALUE),
    nifti_another_place=(
        field("srow.*|quatern.*", 0.0, np.nan, np.inf, 1e10, lambda v: v + 1),
        VALUE,
    ),
    nifti_another_size_of_header=(field("size", 0, 540, 349, -1), ""),
    nifti_a_display_range=(field("cal_max", np.nan, -5.0, 9.0), SAME),
    nifti_half_swapped=(nifti_swap, ""),
    nifti_another_magic=(nifti_magic, ""),
    nifti_bytes_more=(nifti_more, SAME),
    nifti_bytes_less=(nifti_less, ""),
).items():
    simple("nifti", blind, **{name: change})
for name, (change, blind) in dict(
    image_a_NaN=(rebuilt(with_cell(np.nan)), ""),
    image_an_infinity=(rebuilt(with_cell(np.inf, -np.inf)), ""),
    image_a_large_number=(rebuilt(with_cell(1e30, -1e30)), VALUE),
    image_beyond_float32=(
        rebuilt(lambda x, rng: with_cell(1e300)(x.astype(float), rng).astype(float) * 1e30),
        VALUE,
    ),
    image_in_bytes=(rebuilt(lambda x, rng: np.clip(x / 5, 0, 255).astype("u1")), VALUE),
    image_in_whole_numbers=(rebuilt(lambda x, rng: np.round(x).astype("i4")), VALUE),
    image_scaled=(rebuilt(lambda x, rng: x.astype(float), np.int16), VALUE),
    image_of_doubles=(rebuilt(lambda x, rng: x.astype("f8")), SAME),
    image_of_complex_numbers=(rebuilt(lambda x, rng: x.astype("c8") + 2j), ""),
    image_of_colours=(
        rebuilt(lambda x, rng: np.zeros(x.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "",
    ),
    image_without_time=(rebuilt(lambda x, rng: x[..., 0]), ""),
    image_with_one_volume=(rebuilt(lambda x, rng: x[..., :1]), VALUE),
    image_with_five_axes=(rebuilt(lambda x, rng: x[..., None]), SAME),
    image_with_volumes_in_the_fifth_axis=(rebuilt(lambda x, rng: x[:, :, :, None]), ""),
    image_of_zeros=(rebuilt(lambda x, rng: np.zeros(x.shape, "f4")), VALUE),
    image_with_a_volume_less=(rebuilt(lambda x, rng: x[..., 1:]), VALUE),
    image_with_a_volume_twice=(rebuilt(lambda x, rng: np.concatenate([x[..., :1], x], -1)), VALUE),
    image_with_axes_exchanged=(rebuilt(lambda x, rng: np.moveaxis(x, -1, 0)), VALUE),
    image_moved=(moved, VALUE),
).items():
    simple("image", blind, **{name: change})


# ---- GIFTI: XML as text


def change_gifti(draft, change, rng):
    text = draft.path.read_bytes().decode("utf8", "surrogateescape")
    draft.path.write_bytes(change(text, rng).encode("utf8", "surrogateescape"))


ARRAY = re.compile(r"<DataArray.*?</DataArray>", re.S)


def arrays_of(text):
    found = list(ARRAY.finditer(text))
    if not found:
        raise Skip
    return found


def swap_in(text, found, new):
    return text[: found.start()] + new + text[found.end() :]


def attribute(name, *values, count=1):
    "An attribute of one array, or of all where `count` is 0."

    def change(text, rng):
        found = list(re.finditer(rf'{name}="([^"]*)"', text))
        value = pick(rng, values)
        if count == 0:
            return re.sub(rf'{name}="[^"]*"', f'{name}="{value}"', text)
        one = pick(rng, found)
        return swap_in(text, one, f'{name}="{value}"')

    return change


def gifti_drop(text, rng):
    return swap_in(text, pick(rng, arrays_of(text)), "")


def gifti_drop_counted(text, rng):
    text = gifti_drop(text, rng)
    return re.sub(
        r'NumberOfDataArrays="\d+"', f'NumberOfDataArrays="{len(ARRAY.findall(text))}"', text
    )


def gifti_none(text, rng):
    return re.sub(r'NumberOfDataArrays="\d+"', 'NumberOfDataArrays="0"', ARRAY.sub("", text))


def gifti_double(text, rng):
    found = pick(rng, arrays_of(text))
    return swap_in(text, found, found[0] * 2)


def gifti_swap(text, rng):
    found = arrays_of(text)
    i = some(rng, len(found) - 1)
    a, b = found[i], found[i + 1]
    return text[: a.start()] + b[0] + text[a.end() : b.start()] + a[0] + text[b.end() :]


def gifti_data(change):
    "The text between <Data> and </Data> of one array."

    def changed(text, rng):
        found = pick(rng, list(re.finditer(r"<Data>(.*?)</Data>", text, re.S)))
        return swap_in(text, found, f"<Data>{change(found[1], rng)}</Data>")

    return changed


def gifti_entity(text, rng):
    kind = pick(rng, ["file", "laughs"])
    used = "a" if kind == "file" else "i"
    entities = '<!ENTITY a SYSTEM "file:///etc/passwd">'
    if kind == "laughs":
        chain = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi"))
        entities = '<!ENTITY a "ha">' + chain
    body = text.split("?>", 1)[-1]
    body = re.sub(r"<!DOCTYPE[^>]*>", "", body)
    body = re.sub(
        r"(<DataArray)",
        rf"<MetaData><MD><Name>x</Name><Value>&{used};</Value></MD></MetaData>\1",
        body,
        count=1,
    )
    return f'<?xml version="1.0"?>\n<!DOCTYPE GIFTI [{entities}]>{body}'


def change_surface(draft, change, rng):
    "(arrays (T, V), rng) -> image, saved at the same place."
    import nibabel

    try:
        x = np.stack([a.data for a in nibabel.load(draft.path).darrays])
    except Exception:
        raise Skip from None
    nibabel.save(change(x, rng), draft.path)


def surface(change, kind="NIFTI_TYPE_FLOAT32", intent="NIFTI_INTENT_TIME_SERIES"):
    def changed(x, rng):
        from nibabel.gifti import GiftiDataArray, GiftiImage

        code = pick(rng, ["GIFTI_ENCODING_B64GZ", "GIFTI_ENCODING_B64BIN", "GIFTI_ENCODING_ASCII"])
        made = change(x.copy(), rng)
        return GiftiImage(darrays=[GiftiDataArray(row, intent, kind, code) for row in made])

    return changed


def surface_cell(*values):
    def change(x, rng):
        if x.dtype.kind != "f":
            raise Skip
        x.flat[some(rng, x.size)] = pick(rng, values)
        return x

    return change


def float32(x):
    return np.ascontiguousarray(x, np.float32)


for name, (change, blind) in dict(
    gifti_another_encoding=(
        attribute(
            "Encoding",
            "ASCII",
            "Base64Binary",
            "GZipBase64Binary",
            "ExternalFileBinary",
            "Base85",
            "",
        ),
        VALUE,
    ),
    gifti_another_byte_order=(attribute("Endian", "BigEndian", "LittleEndian", "big", ""), VALUE),
    gifti_another_type=(
        attribute(
            "DataType",
            "NIFTI_TYPE_INT32",
            "NIFTI_TYPE_UINT8",
            "NIFTI_TYPE_FLOAT64",
            "NIFTI_TYPE_X",
            "16",
        ),
        VALUE,
    ),
    gifti_another_length=(
        attribute("Dim0", "10", "12", "0", "-1", "1e3", "99999999999", "11.5", ""),
        "",
    ),
    gifti_another_number_of_axes=(attribute("Dimensionality", "0", "2", "7", "-1", "x"), ""),
    gifti_another_order=(
        attribute("ArrayIndexingOrder", "ColumnMajorOrder", "RowMajorOrder", "x"),
        SAME,
    ),
    gifti_another_intent=(
        attribute(
            "Intent",
            "NIFTI_INTENT_LABEL",
            "NIFTI_INTENT_POINTSET",
            "NIFTI_INTENT_SHAPE",
            "x",
            "NIFTI_INTENT_NONE",
        ),
        "readers of responses do not look at intents",
    ),
    gifti_another_count=(attribute("NumberOfDataArrays", "7", "9", "0", "-1", "x"), ""),
    gifti_another_version=(attribute("Version", "1.1", "2", ""), SAME),
    gifti_an_array_less=(gifti_drop, ""),
    gifti_an_array_less_and_counted=(gifti_drop_counted, ""),
    gifti_no_arrays=(gifti_none, ""),
    gifti_an_array_twice=(gifti_double, ""),
    gifti_arrays_exchanged=(gifti_swap, VALUE),
    gifti_data_cut=(gifti_data(lambda d, rng: d[: some(rng, max(1, len(d)))]), ""),
    gifti_data_empty=(gifti_data(lambda d, rng: ""), ""),
    gifti_data_with_blanks=(gifti_data(lambda d, rng: f"\n   {d}\n  "), SAME),
    gifti_data_with_other_letters=(
        gifti_data(lambda d, rng: d[:5] + pick(rng, "*&;Aé/ 9").replace("&", "&amp;") + d[6:]),
        VALUE,
    ),
    gifti_entities=(gifti_entity, SAME),
).items():
    simple("gifti", blind, **{name: change})
for name, (change, blind) in dict(
    surface_one_array_of_vertices_by_time=(surface(lambda x, rng: [float32(x.T)]), SAME),
    surface_one_array_of_time_by_vertices=(surface(lambda x, rng: [float32(x)]), SAME),
    surface_a_NaN=(surface(surface_cell(np.nan)), ""),
    surface_an_infinity=(surface(surface_cell(np.inf, -np.inf)), ""),
    surface_a_large_number=(surface(surface_cell(1e30, -32768)), VALUE),
    surface_arrays_of_different_length=(surface(lambda x, rng: [*x[:-1], x[-1][:-1]]), ""),
    surface_a_vertex_less=(surface(lambda x, rng: x[:, 1:]), VALUE),
    surface_a_volume_less=(surface(lambda x, rng: x[1:]), ""),
    surface_whole_numbers=(
        surface(lambda x, rng: np.round(x * 100).astype("i4"), "NIFTI_TYPE_INT32"),
        VALUE,
    ),
    surface_bytes=(
        surface(lambda x, rng: np.clip(x * 20 + 100, 0, 255).astype("u1"), "NIFTI_TYPE_UINT8"),
        VALUE,
    ),
    surface_a_geometry=(
        surface(lambda x, rng: [float32(x[:3].T)], intent="NIFTI_INTENT_POINTSET"),
        "",
    ),
    surface_labels=(
        surface(lambda x, rng: [(x[0] > 0).astype("i4")], "NIFTI_TYPE_INT32", "NIFTI_INTENT_LABEL"),
        "",
    ),
    surface_zeros=(surface(lambda x, rng: x * 0), VALUE),
).items():
    simple("surface", blind, **{name: change})


# ---- .annot of FreeSurfer: big-endian whole numbers


def change_annot(draft, change, rng):
    raw = bytearray(draft.path.read_bytes())
    if len(raw) < 100:
        raise Skip
    draft.path.write_bytes(bytes(change(raw, rng)))


def annot_count(raw, rng):
    struct.pack_into(">i", raw, 0, pick(rng, [39, 41, 0, -1, 2**31 - 1, 20]))
    return raw


def vertices_in(raw):
    n = struct.unpack_from(">i", raw, 0)[0]
    if not 0 < n <= (len(raw) - 4) // 8:
        raise Skip
    return n


def annot_vertex(raw, rng):
    struct.pack_into(
        ">i", raw, 4 + 8 * some(rng, vertices_in(raw)), pick(rng, [0, 1, 39, 40, -1, 2**31 - 1])
    )
    return raw


def annot_order(raw, rng):
    "Vertices in another order, each with its own label: the same map."
    n = vertices_in(raw)
    pairs = np.frombuffer(bytes(raw[4 : 4 + 8 * n]), ">i4").reshape(n, 2)
    return raw[:4] + pairs[rng.permutation(n)].tobytes() + raw[4 + 8 * n :]


def annot_value(raw, rng):
    value = pick(rng, [0, 1, 12345, -1, 0x7FFFFFFF, 0xFFFFFF])
    struct.pack_into(">i", raw, 8 + 8 * some(rng, vertices_in(raw)), value)
    return raw


def annot_swap_values(raw, rng):
    n = vertices_in(raw)
    i, j = 8 + 8 * some(rng, n), 8 + 8 * some(rng, n)
    raw[i : i + 4], raw[j : j + 4] = raw[j : j + 4], raw[i : i + 4]
    return raw


def table_at(raw):
    return 4 + 8 * vertices_in(raw)


def annot_table_field(raw, rng):
    "A number at the head of the colour table: mark, version, size, or length of a name."
    at = table_at(raw) + 4 * pick(rng, [0, 1, 2, 3])
    struct.pack_into(">i", raw, at, pick(rng, [0, 1, -1, -2, -3, 3, 4, 6, 10_000, 2**31 - 1]))
    return raw


def annot_no_table(raw, rng):
    return (
        raw[: table_at(raw) + pick(rng, [0, 4])]
        if rng.random() < 0.5
        else raw[: table_at(raw)] + bytes(4)
    )


def annot_name(raw, rng):
    "A name is replaced by another of the same length."
    found = pick(rng, list(re.finditer(rb"L_\w+_ROI|Unknown|Medial_wall", bytes(raw))))
    n = len(found[0])
    words = [
        b"R" + found[0][1:],
        b"???".ljust(n, b"\0"),
        b"\xff\xfe".ljust(n, b"\xe9"),
        b"L_44_ROI".ljust(n, b"\0")[:n],
    ]
    words += [
        b"Medial_wall"[:n].ljust(n, b"\0"),
        b"\x1b[31m".ljust(n, b"x")[:n],
        b"".ljust(n, b"\0"),
        b" " * n,
    ]
    raw[found.start() : found.end()] = pick(rng, words)
    return raw


def annot_colour(raw, rng):
    "The colour of one parcel is changed, or made that of another."
    found = list(re.finditer(rb"(?:L_\w+_ROI|Unknown|Medial_wall)\x00", bytes(raw)))
    one, other = pick(rng, found), pick(rng, found)
    raw[one.end() : one.end() + 16] = pick(
        rng,
        [
            raw[other.end() : other.end() + 16],
            struct.pack(">4i", 1, 2, 3, 0),
            struct.pack(">4i", 300, -1, 0, 5),
        ],
    )
    return raw


def annot_little(raw, rng):
    n = len(raw) // 4 * 4
    return np.frombuffer(bytes(raw[:n]), ">i4").astype("<i4").tobytes() + raw[n:]


def rewritten_annot(draft, change, rng):
    "(labels, colours, names, rng) -> the three, written by nibabel."
    import nibabel

    try:
        labels, table, names = nibabel.freesurfer.read_annot(draft.path)
    except Exception:
        raise Skip from None
    labels, table, names = change(labels.copy(), table.copy(), [n.decode() for n in names], rng)
    nibabel.freesurfer.write_annot(draft.path, labels, table, names, fill_ctab=False)


def annot_wall(labels, table, names, rng):
    words = [
        "Background+FreeSurfer_Defined_Medial_Wall",
        "FreeSurfer_Defined_Medial_Wall",
        "medial wall",
        "MEDIAL_WALL",
        "unknown",
        "???",
        "corpuscallosum",
    ]
    names[0] = pick(rng, words)
    labels[: int(rng.integers(1, 9))] = 0
    return labels, table, names


def annot_other_side(labels, table, names, rng):
    change = pick(
        rng,
        [
            lambda n: n.replace("L_", "R_"),
            lambda n: n.replace("L_", "7Networks_RH_"),
            lambda n: n.replace("L_", "rh."),
        ],
    )
    return labels, table, [change(n) for n in names]


def annot_same_names(labels, table, names, rng):
    names[2] = names[1]
    return labels, table, names


def annot_names_moved(labels, table, names, rng):
    return labels, table, [names[0], *np.roll(names[1:], 1).tolist()]


for name, (change, blind) in dict(
    annot_another_count=(annot_count, ""),
    annot_another_vertex=(annot_vertex, SAME),
    annot_vertices_in_another_order=(annot_order, SAME),
    annot_another_value=(annot_value, VALUE),
    annot_two_values_exchanged=(annot_swap_values, VALUE),
    annot_another_field_of_the_table=(annot_table_field, SAME),
    annot_without_a_table=(annot_no_table, ""),
    annot_another_name=(annot_name, VALUE),
    annot_another_colour=(annot_colour, VALUE),
    annot_little_endian=(annot_little, ""),
).items():
    simple("annot", blind, **{name: change})
for name, (change, blind) in dict(
    parcels_another_medial_wall=(annot_wall, VALUE),
    parcels_of_the_other_side=(annot_other_side, VALUE),
    parcels_two_of_one_name=(annot_same_names, CHOICE),
    parcels_names_moved=(annot_names_moved, VALUE),
).items():
    simple("parcels", blind, **{name: change})


# ---- WAV: header and samples


def change_wav(draft, change, rng):
    raw = bytearray(draft.path.read_bytes())
    if raw[:4] != b"RIFF":
        raise Skip
    draft.path.write_bytes(bytes(change(raw, rng)))


def chunk(raw, name):
    at = bytes(raw).find(name, 12)
    if at < 0:
        raise Skip
    return at


def wav_format(offset, kind, *values):
    "A field of the chunk `fmt `."

    def change(raw, rng):
        at = chunk(raw, b"fmt ") + 8 + offset
        value = pick(rng, values)
        struct.pack_into("<" + kind, raw, at, value)
        return raw

    return change


def wav_size(name, *values):
    def change(raw, rng):
        at = 4 if name == b"RIFF" else chunk(raw, name) + 4
        value = pick(rng, values)
        old = struct.unpack_from("<I", raw, at)[0]
        struct.pack_into("<I", raw, at, (value(old) if callable(value) else value) % 2**32)
        return raw

    return change


def wav_junk(raw, rng):
    "A chunk before the sound, as editors write it; one of an odd length is padded."
    at = chunk(raw, b"data")
    body = pick(rng, [b"INFOISFT\x04\x00\x00\x00abcd", b"odd", b"x" * 5000])
    made = (
        pick(rng, [b"LIST", b"junk", b"bext"])
        + struct.pack("<I", len(body))
        + body
        + bytes(len(body) % 2)
    )
    struct.pack_into("<I", raw, 4, struct.unpack_from("<I", raw, 4)[0] + len(made))
    return raw[:at] + made + raw[at:]


def wav_cut(raw, rng):
    return raw[: len(raw) - pick(rng, [1, 2, 3, 500, 1601, len(raw) // 2])]


def wav_cut_counted(raw, rng):
    "Cut, with a header that agrees."
    at, n = chunk(raw, b"data"), pick(rng, [2, 4, 400, 1600])
    raw = raw[: len(raw) - n]
    struct.pack_into("<I", raw, at + 4, len(raw) - at - 8)
    struct.pack_into("<I", raw, 4, len(raw) - 8)
    return raw


def wav_name(raw, rng):
    at = pick(rng, [0, 8, chunk(raw, b"fmt "), chunk(raw, b"data")])
    raw[at : at + 4] = pick(rng, [b"RIFX", b"RF64", b"wave", b"fmt\0", b"DATA", b"\0\0\0\0"])
    return raw


def wav_trailing(raw, rng):
    return raw + pick(rng, [bytes(7), b"LIST", b"data" + struct.pack("<I", 8) + b"morebyte"])


def change_samples(draft, change, rng):
    "(samples (n, channels), Hz, rng) -> (samples, Hz, subtype), written as WAV."
    import soundfile

    try:
        x, rate = soundfile.read(draft.path, always_2d=True)
    except Exception:
        raise Skip from None
    x, rate, subtype = change(x, rate, rng)
    path = draft.path
    flac = path.suffix == ".flac" and subtype == "PCM_16" and x.shape[1] <= 8
    kind = "FLAC" if flac else "WAV"
    soundfile.write(path, x, rate, subtype, format=kind)
    at = path.read_bytes().find(b"PEAK")
    if at > 0:
        raw = path.read_bytes()
        path.write_bytes(raw[: at + 12] + bytes(4) + raw[at + 16 :])


def sample(*values):
    def change(x, rate, rng):
        at = some(rng, len(x))
        x[at : at + pick(rng, [1, 1, 40])] = pick(rng, values)
        return x, rate, "FLOAT"

    return change


def sound(change, subtype="FLOAT"):
    return lambda x, rate, rng: (change(x, rng), rate, subtype)


def beside(change):
    "The sound and a second channel made of it."
    return sound(lambda x, rng: np.column_stack([x[:, 0], change(x[:, 0], rng)]), "PCM_16")


def trigger_channel(x, rng):
    second = np.zeros(len(x))
    second[:: len(x) // 8] = 0.95
    return second


for name, (change, blind) in dict(
    wav_another_tag=(wav_format(0, "H", 0, 2, 3, 6, 7, 0x11, 0xFFFE, 85), VALUE),
    wav_other_channels=(wav_format(2, "H", 0, 2, 1, 7, 65535), VALUE),
    wav_another_rate=(wav_format(4, "I", 0, 1, 44100, 2**32 - 1, 2**31 - 1, 7999), VALUE),
    wav_another_byte_rate=(wav_format(8, "I", 0, 1, 2**32 - 1), SAME),
    wav_another_alignment=(wav_format(12, "H", 0, 1, 3, 8, 65535), SAME),
    wav_other_bits=(wav_format(14, "H", 0, 8, 24, 32, 64, 12, 65535), VALUE),
    wav_a_wrong_size_of_the_file=(wav_size(b"RIFF", 0, 2**32 - 1, 36, lambda n: n + 1000), SAME),
    wav_more_sound_promised=(
        wav_size(b"data", lambda n: n + 2, lambda n: 2 * n, lambda n: n + 400, 2**31),
        "",
    ),
    wav_less_sound_promised=(
        wav_size(b"data", lambda n: n - 2, lambda n: n // 2, lambda n: n - 1),
        "what follows the sound may be anything",
    ),
    wav_no_sound_promised=(wav_size(b"data", 0), ""),
    wav_a_stream_of_unknown_length=(wav_size(b"data", 2**32 - 1), SAME),
    wav_a_wrong_size_of_the_format=(wav_size(b"fmt ", 0, 2, 14, 18, 2**32 - 1), SAME),
    wav_a_chunk_before_the_sound=(wav_junk, SAME),
    wav_cut=(wav_cut, ""),
    wav_cut_and_counted=(
        wav_cut_counted,
        "a file whose header agrees with its end does not know that it was longer",
    ),
    wav_another_name_of_a_chunk=(wav_name, SAME),
    wav_bytes_behind_the_sound=(wav_trailing, SAME),
).items():
    simple("wav", blind, **{name: change})
for name, (change, blind) in dict(
    sound_a_NaN=(sample(np.nan), ""),
    sound_an_infinity=(sample(np.inf, -np.inf), ""),
    sound_a_huge_sample=(sample(1e30, 1e10), ""),
    sound_a_sample_above_1=(sample(1.0001, 1.5), VALUE),
    sound_in_whole_numbers_as_floats=(sound(lambda x, rng: np.round(x * 32768)), ""),
    sound_of_zeros=(sound(lambda x, rng: x * 0, "PCM_16"), VALUE),
    sound_constant=(sound(lambda x, rng: x * 0 + 0.25, "PCM_16"), VALUE),
    sound_very_soft=(sound(lambda x, rng: x * 1e-6), VALUE),
    sound_of_8_bits=(sound(lambda x, rng: x, "PCM_U8"), VALUE),
    sound_of_24_bits=(sound(lambda x, rng: x, "PCM_24"), VALUE),
    sound_as_telephones_have_it=(sound(lambda x, rng: x, "ULAW"), VALUE),
    sound_compressed=(sound(lambda x, rng: x[:, :1], "IMA_ADPCM"), VALUE),
    sound_without_samples=(sound(lambda x, rng: x[:0], "PCM_16"), ""),
    sound_of_one_sample=(sound(lambda x, rng: x[:1], "PCM_16"), VALUE),
    sound_twice_the_same=(beside(lambda x, rng: x), SAME),
    sound_that_cancels=(beside(lambda x, rng: -x), ""),
    sound_beside_silence=(beside(lambda x, rng: x * 0), ""),
    sound_beside_a_trigger=(beside(trigger_channel), ""),
    sound_of_many_channels=(
        sound(lambda x, rng: np.repeat(x[:, :1], 24, 1) * np.linspace(0.1, 1, 24), "PCM_16"),
        VALUE,
    ),
    sound_at_another_rate=(
        lambda x, rate, rng: (x, pick(rng, [1, 100, 44100, 192000, 15999]), "PCM_16"),
        VALUE,
    ),
    sound_with_an_offset=(sound(lambda x, rng: x * 0.5 + 0.4, "PCM_16"), VALUE),
    sound_clipped=(sound(lambda x, rng: np.clip(x * 10, -1, 1), "PCM_16"), VALUE),
).items():
    simple("samples", blind, **{name: change})


# ---- release folders


def change_release(draft, change, rng):
    change(draft.root, draft, rng)


def a_file(root, rng, *suffixes):
    found = sorted(
        p for p in root.rglob("*") if p.is_file() and (not suffixes or p.name.endswith(suffixes))
    )
    return pick(rng, found)


def release_drop(root, draft, rng):
    a_file(root, rng).unlink()


def release_exchange(root, draft, rng):
    "One file of another release of the same kind."
    path = a_file(root, rng)
    other = Path(draft.context["other"]) / path.relative_to(root)
    if not other.exists() or other.read_bytes() == path.read_bytes():
        raise Skip
    shutil.copy(other, path)


def release_extra(root, draft, rng):
    name = pick(
        rng,
        [
            "notes.txt",
            "backbone/extra.py",
            ".DS_Store",
            "._tuner.json",
            "backbone/adapter_config.json",
            "backbone/vocab.txt",
        ],
    )
    (root / name).write_text("import os\n" if name.endswith("py") else "{}")


def tensors(change):
    "(name -> array, rng) -> the same, for one file of weights."

    def changed(root, draft, rng):
        from safetensors import SafetensorError
        from safetensors.numpy import load_file, save_file

        path = a_file(root, rng, ".safetensors")
        try:
            held = load_file(path)
        except (SafetensorError, OSError, ValueError):
            raise Skip from None
        held = change(held, rng)
        save_file(
            {k: np.ascontiguousarray(v) for k, v in held.items()}, path, metadata={"format": "pt"}
        )

    return changed


def one_tensor(change):
    def changed(held, rng):
        name = pick(rng, sorted(held))
        held[name] = change(held[name], rng)
        return held

    return tensors(changed)


def one_weight(*values):
    def change(x, rng):
        x = x.copy()
        at = some(rng, x.size)
        value = pick(rng, values)
        x.flat[at] = value(x.flat[at]) if callable(value) else value
        return x

    return one_tensor(change)


def drop_tensor(held, rng):
    del held[pick(rng, sorted(held))]
    return held


def add_tensor(held, rng):
    held["extra.weight"] = np.ones((2, 3), np.float32)
    return held


def swap_tensors(held, rng):
    shapes = {}
    for name in sorted(held):
        shapes.setdefault(held[name].shape, []).append(name)
    a, b = pick(rng, [v[:2] for v in shapes.values() if len(v) > 1])
    if np.array_equal(held[a], held[b]):
        raise Skip
    held[a], held[b] = held[b], held[a]
    return held


def header(change):
    "(header of a .safetensors file as a tree, rng) -> tree."

    def changed(root, draft, rng):
        path = a_file(root, rng, ".safetensors")
        raw = path.read_bytes()
        n = int.from_bytes(raw[:8], "little")
        try:
            tree = json.loads(raw[8 : 8 + n])
        except ValueError:
            raise Skip from None
        text = json.dumps(change(tree, rng)).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + n :])

    return changed


def header_offsets(tree, rng):
    entry = tree[pick(rng, [k for k in tree if k != "__metadata__"])]
    a, b = entry["data_offsets"]
    entry["data_offsets"] = pick(
        rng, [[a + 4, b + 4], [b, a], [a, b - 4], [0, 2**50], [-4, b], [a, b, 0], "all"]
    )
    return tree


def header_shape(tree, rng):
    entry = tree[pick(rng, [k for k in tree if k != "__metadata__"])]
    entry["shape"] = pick(
        rng, [[2**40, 2**40], entry["shape"][::-1], [*entry["shape"], 1], [-1], [0], None]
    )
    return tree


def header_type(tree, rng):
    tree[pick(rng, [k for k in tree if k != "__metadata__"])]["dtype"] = pick(
        rng, ["F64", "F16", "I32", "BF16", "X9", None]
    )
    return tree


def header_length(root, draft, rng):
    path = a_file(root, rng, ".safetensors")
    raw = path.read_bytes()
    path.write_bytes(pick(rng, [2**62, 0, 7, 2**32, len(raw)]).to_bytes(8, "little") + raw[8:])


def pickle_index(root, draft, rng):
    "Weights behind an index that names a pickle (which raises if anything opens it)."
    backbone = root / "backbone"
    path = backbone / "model.safetensors"
    names = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    file = pick(
        rng, ["pytorch_model.bin", "../outside.bin", "/etc/passwd", "model-00001.safetensors"]
    )
    index = dict(metadata={}, weight_map={k: file for k in names if k != "__metadata__"})
    (backbone / "model.safetensors.index.json").write_text(json.dumps(index))
    (backbone / "pytorch_model.bin").write_bytes(b"cos\nabort\n(tR.")
    path.rename(backbone / "model-00001.safetensors")


def array_pickled(root, draft, rng):
    "An array of objects in space.npz: reading it would run a pickle."
    import zipfile

    path = a_file(root, rng, ".npz")
    with zipfile.ZipFile(path) as z:
        held = {n: z.read(n) for n in z.namelist()}
    name = pick(rng, sorted(held))
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (4,), }"
    text += b" " * (63 - (10 + len(text)) % 64) + b"\n"
    held[name] = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"cos\nabort\n(tR."
    with zipfile.ZipFile(path, "w") as z:
        for key, content in held.items():
            z.writestr(zipfile.ZipInfo(key), content)


def npz_changed(root, draft, rng):
    "Another number in space.npz or ceilings.npz."
    path = a_file(root, rng, ".npz")
    with np.load(path, allow_pickle=False) as f:
        held = {k: f[k].copy() for k in f.files}
    name = pick(rng, sorted(held))
    x = held[name]
    kind = pick(rng, ["value", "shape", "missing", "type"])
    if kind == "value" and x.dtype.kind in "fiub":
        x.flat[some(rng, x.size)] = pick(rng, [0, 1, 77])
    elif kind == "shape":
        held[name] = x[:-1]
    elif kind == "missing":
        del held[name]
    else:
        held[name] = x.astype("U8")
    np.savez(path, **held)


def config(**changes):
    "A setting of the backbone's configuration."

    def changed(root, draft, rng):
        path = root / "backbone" / "config.json"
        held = json.loads(path.read_text())
        name = pick(rng, [k for k in changes if k in held])
        value = pick(rng, changes[name])
        if held[name] == value:
            raise Skip
        held[name] = value
        path.write_text(json.dumps(held, indent=1))

    return changed


def vocabulary(root, draft, rng):
    path = root / "backbone" / "tokenizer.json"
    if not path.exists():
        raise Skip
    held = json.loads(path.read_text())
    words = held["model"]["vocab"]
    a, b = "w1", pick(rng, ["w2", "w3", "w11"])
    words[a], words[b] = words[b], words[a]
    path.write_text(json.dumps(held))


def tokenizer_setting(root, draft, rng):
    path = a_file(root / "backbone", rng, "tokenizer_config.json", "preprocessor_config.json")
    held = json.loads(path.read_text())
    changes = dict(
        model_max_length=[-1, 0, 3, 10**30, "many"],
        sampling_rate=[8000, 0, -1],
        do_normalize=[True, False],
    )
    changes |= dict(
        unk_token=["w3", None],
        return_attention_mask=[True],
        feature_size=[2, 0],
        auto_map=[{"AutoTokenizer": "extra.X"}],
    )
    name = pick(rng, [k for k in changes if k in held or k == "auto_map"])
    held[name] = pick(rng, changes[name])
    path.write_text(json.dumps(held))


def split_and_hash(root, draft, rng):
    "Another split, with a hash in tuner.json that is that of another file."
    path = root / "split.json"
    held = json.loads(path.read_text())
    held["test"] = ["another"]
    path.write_text(json.dumps(held, indent=1, sort_keys=True))


CONFIGS = dict(
    num_attention_heads=[1, 4, 3, 0],
    hidden_act=["relu", "silu", "nothing"],
    layer_norm_eps=[1e-3, 0.0],
    num_hidden_layers=[1, 3],
)
CONFIGS |= dict(
    max_position_embeddings=[-1, 32, 0],
    do_stable_layer_norm=[True],
    feat_extract_norm=["layer"],
    model_type=["bert2", "gpt2"],
)
CONFIGS |= dict(
    intermediate_size=[16, 64],
    vocab_size=[3, 40],
    architectures=[["Other"], None],
    num_conv_pos_embedding_groups=[1, 4, 0],
)
CONFIGS |= dict(dtype=["bfloat16", "float64"], hidden_size=[8, 32, 0])

for name, (change, blind) in dict(
    release_without_a_file=(release_drop, "files that nothing needs may be absent"),
    release_a_file_of_another=(release_exchange, "a file that both releases have alike"),
    release_a_file_more=(release_extra, SAME),
    release_a_weight_changed=(one_weight(lambda v: v + 1, lambda v: -v - 0.1, 0.0), ""),
    release_a_weight_changed_a_little=(one_weight(lambda v: v * (1 + 1e-6) + 1e-9), ""),
    release_a_NaN=(one_weight(np.nan), ""),
    release_an_infinity=(one_weight(np.inf, -np.inf), ""),
    release_a_huge_weight=(one_weight(1e30), ""),
    release_a_tensor_with_the_other_sign=(one_tensor(lambda x, rng: -x - 0.01), ""),
    release_a_tensor_turned_over=(one_tensor(lambda x, rng: x.T if x.ndim == 2 else x[::-1]), ""),
    release_a_tensor_of_zeros=(one_tensor(lambda x, rng: x * 0), SAME),
    release_a_tensor_of_another_type=(
        one_tensor(lambda x, rng: x.astype(pick(rng, ["f8", "f2", "i4"]))),
        SAME,
    ),
    release_a_tensor_shorter=(one_tensor(lambda x, rng: x[:-1]), ""),
    release_a_tensor_missing=(tensors(drop_tensor), ""),
    release_a_tensor_more=(tensors(add_tensor), ""),
    release_two_tensors_exchanged=(tensors(swap_tensors), ""),
    release_other_offsets=(header(header_offsets), ""),
    release_another_shape_in_the_header=(header(header_shape), ""),
    release_another_type_in_the_header=(header(header_type), ""),
    release_another_length_of_the_header=(header_length, ""),
    release_a_pickle_behind_an_index=(pickle_index, ""),
    release_a_pickled_array=(array_pickled, ""),
    release_another_array=(npz_changed, ""),
    release_another_configuration=(config(**CONFIGS), ""),
    release_another_vocabulary=(vocabulary, ""),
    release_another_setting_of_the_tokenizer=(tokenizer_setting, ""),
    release_another_split=(split_and_hash, ""),
).items():
    simple("release", blind, **{name: change})
