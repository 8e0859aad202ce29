"""Damaged label files, surfaces, images, tables and releases: a typed error that names the file,
or the right numbers and a word about what is odd."""

import gzip
import json
import struct
import warnings

import h5py
import nibabel
import numpy as np
import pytest

from braintune_nb.core import (
    BraintuneError,
    DataError,
    ModelError,
    read_finished,
    read_json,
    write_arrays,
)
from braintune_nb.data.audio import read_audio
from braintune_nb.data.files import memory_map
from braintune_nb.data.images import image_values, labels_on, open_image, read_gifti
from braintune_nb.data.parcels import vertex_labels
from braintune_nb.data.recordings import read_confounds
from braintune_nb.data.stories import read_word_table
from braintune_nb.model.release import BrainTuner, read_release
from braintune_nb.simulate.text_model import toy_backbone

COLOURS = [(10, 200, 3), (70, 8, 91), (25, 5, 25)]
NAMES = [b"L_A1_ROI\0", b"L_55b_ROI\0", b"???\0"]
NUMBERS = [r + 256 * g + 65536 * b for r, g, b in COLOURS]


def number(value):
    return int(value).to_bytes(4, "big", signed=True)


def annot(path, vertices=(1, 0, 2, 1), order=None, names=NAMES, colours=COLOURS, size=3, end=b""):
    "An annotation field by field; `vertices`: entries of the table."
    numbers = [r + 256 * g + 65536 * b for r, g, b in colours]
    content = number(len(vertices))
    for place, entry in zip(order or range(len(vertices)), vertices):
        content += number(place) + number(numbers[entry] if entry < 9 else entry)
    content += number(1) + number(-2) + number(size) + number(5) + b"toy.\0" + number(len(names))
    for i, (name, colour) in enumerate(zip(names, colours)):
        content += number(i) + number(len(name)) + name
        content += b"".join(map(number, (*colour, 0)))
    path.write_bytes(content + end)
    return path


def heard(read):
    "What a call returns, and the warnings that a user sees."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return read(), " ".join(str(w.message) for w in said)


def test_a_whole_annotation_is_read_like_nibabel_reads_it(tmp_path):
    path = annot(tmp_path / "lh.toy.annot", vertices=(1, 0, 2, 1, 1, 0))
    found, said = heard(lambda: vertex_labels(path).tolist())
    numbers, _, names = nibabel.freesurfer.read_annot(path)
    assert found == [names[i].decode() for i in numbers] and said == ""
    assert found == ["L_55b_ROI", "L_A1_ROI", "???", "L_55b_ROI", "L_55b_ROI", "L_A1_ROI"]


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(order=[0, 2, 1, 3]), "one by one"),
        (dict(vertices=(1, 0, 759005)), "759005"),
        (dict(colours=[(10, 200, 3), (70, 8, 91), (70, 8, 91)]), "one colour"),
        (dict(colours=[(10, 200, 3), (70, 8, 91), (300, 8, 91)]), "a colour of 300"),
        (dict(size=2), "3 entries in a table of 2"),
        (dict(names=[b"L_A1_ROI\0", b"\xff\xfe\0", b"???\0"]), "UnicodeDecodeError"),
    ],
)
def test_a_damaged_annotation_is_refused(tmp_path, change, words):
    path = annot(tmp_path / "lh.toy.annot", **change)
    with pytest.raises(DataError, match=words) as error:
        vertex_labels(path)
    assert str(path) in str(error.value)


def test_counts_of_an_annotation_that_ask_for_gigabytes(tmp_path):
    content = annot(tmp_path / "lh.toy.annot").read_bytes()
    for at in (0, 44, 48, 57, 65):  # vertices, size and name of the table, entries, a name
        path = tmp_path / "lh.large.annot"
        path.write_bytes(content[:at] + number(2**31 - 7) + content[at + 4 :])
        with pytest.raises(DataError, match="lh.large.annot"):
            vertex_labels(path)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(end=b"more"), "4 bytes behind the table"),
        (dict(names=[b"L_A1_ROI\0", b"L_A1_ROI\0", b"???\0"]), "labels of one name"),
        (dict(names=[b"L_A1_ROI\0", b" \0", b"???\0"]), "without one"),
        (dict(names=[b"L_A1_ROI\0", b"L_55b_ROI", b"???\0"]), "without an end"),
    ],
)
def test_oddities_of_an_annotation_are_told(tmp_path, change, words):
    found, said = heard(lambda: vertex_labels(annot(tmp_path / "lh.toy.annot", **change)).tolist())
    assert found[1:3] == ["L_A1_ROI", "???"] and words in said, (found, said)


def surface(path, **changes):
    array = nibabel.gifti.GiftiDataArray(
        np.float32([4, 5.5, -3]), intent="NIFTI_INTENT_TIME_SERIES"
    )
    nibabel.save(nibabel.gifti.GiftiImage(darrays=[array]), path)
    text = path.read_text()
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "old, new, words",
    [
        ('Version="1.0"', 'Version="2"', "version '2'"),
        ('Endian="LittleEndian"', 'Endian="big"', "orders of bytes"),
        ('Endian="LittleEndian"', "", "0 times Endian"),
        ('Encoding="GZipBase64Binary"', "", "0 times Encoding"),
        ('Dim0="3"', 'Dim0="-1"', "a size of"),
        ('NumberOfDataArrays="1"', 'NumberOfDataArrays="\uff11"', "a size of"),
        ("<GIFTI", '<!DOCTYPE GIFTI [<!ENTITY a "b">]><GIFTI', "words of its own"),
    ],
)
def test_what_gifti_does_not_know_is_refused(tmp_path, old, new, words):
    assert read_gifti(surface(tmp_path / "a.func.gii")).darrays[0].data.tolist() == [4, 5.5, -3]
    with pytest.raises(DataError, match=words):
        read_gifti(surface(tmp_path / "a.func.gii", change=(old, new)))


def test_only_a_map_of_labels_is_read_as_labels(tmp_path):
    with pytest.raises(DataError, match="1 maps: time series"):
        vertex_labels(surface(tmp_path / "a.label.gii"))


AFFINE = np.diag([2.0, 3, 4, 1])


def test_what_lies_behind_a_packed_image_is_told(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4) + 1
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    for name, more, words in (("a", b"", ""), ("b", b"seven..", "7 bytes behind the image")):
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(gzip.compress(content + more))
        found, said = heard(lambda path=path: image_values(path))
        assert (found == values).all() and (words in said if words else not said), said


def test_voxels_without_a_size_are_refused(tmp_path):
    image = nibabel.Nifti1Image(np.ones((2, 3, 4), np.float32), AFFINE)
    nibabel.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[80:84] = np.float32(np.nan).tobytes()  # pixdim[1]
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(DataError, match="no size"):
        open_image(tmp_path / "a.nii")


def test_one_file_with_the_header_of_two_is_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4), np.float32), AFFINE), tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(content[:344] + b"ni1\0" + content[348:])
    with pytest.raises(DataError, match="two files"):
        open_image(tmp_path / "a.nii")


def test_a_mask_of_other_numbers_than_0_and_1_is_told(tmp_path):
    run = nibabel.Nifti1Image(np.ones((2, 3, 4, 5), np.float32), AFFINE)
    nibabel.save(run, tmp_path / "run.nii")
    inside = np.zeros((2, 3, 4), np.int16)
    inside[1, 1:, 2] = 1
    for factor, offset, words in ((1, 0, ""), (255, 0, "0, 255"), (1, 5, "5, 6"), (0, 1, "1")):
        mask = nibabel.Nifti1Image((factor * inside + offset).astype(np.int16), AFFINE)
        found, said = heard(lambda mask=mask: labels_on(mask, tmp_path / "run.nii", mask=True))
        assert (np.asarray(found.dataobj) == factor * inside + offset).all()
        assert f"the numbers {words}:" in said if words else not said, said
        assert not heard(lambda mask=mask: labels_on(mask, tmp_path / "run.nii"))[1]


def test_floats_of_another_kind_than_the_processors_are_converted(tmp_path):
    "Single precision whose first digit is stored, not implied: NumPy gives it the same name."
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_norm(h5py.h5t.NORM_NONE)
    with h5py.File(tmp_path / "a.h5", "w") as f:
        space = h5py.h5s.create_simple((2, 3))
        made = h5py.h5d.create(f.id, b"data", kind, space)
        made.write(space, space, np.float32([[1.5, -2, 3], [0.25, 5, 6]]))
        f["plain"] = np.float32([[1.5, -2, 3], [0.25, 5, 6]])
    for key in ("data", "plain"):
        found, missing = memory_map(tmp_path / "a.h5", key, tmp_path)
        assert np.array(found).tolist() == [[1.5, -2, 3], [0.25, 5, 6]] and missing == 0


def test_confounds_are_numbers_in_latin_digits(tmp_path):
    path = tmp_path / "a_desc-confounds_timeseries.tsv"
    path.write_text("trans_x\trot_z\n0.5\t2\n1.25\t-3\n", encoding="utf8")
    assert read_confounds(path).to_numpy().tolist() == [[0.5, 2], [1.25, -3]]
    path.write_text("trans_x\trot_z\n0.5\t2\n1.25\t\uff13\n", encoding="utf8")
    with pytest.raises(DataError, match="line 3, column 'rot_z'"):
        read_confounds(path)


def test_json_that_is_nested_without_end_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[" * 40 + "7" + "]" * 40)
    assert read_json(tmp_path / "a.json")[0][0] != 7
    for depth in (150, 5000, 200_000):
        (tmp_path / "a.json").write_text('{"a":' * depth + "7" + "}" * depth)
        with pytest.raises(DataError, match="not JSON"):
            read_json(tmp_path / "a.json")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    tuner = BrainTuner(toy_backbone(["wind", "rain", "sun"]), {"P1": 3})
    from braintune_nb.data.recordings import Space

    space = Space("three", "vertex", np.array([3, 5, 9]), dict(a=np.array([True, False, True])))
    return tuner.save_pretrained(
        tmp_path_factory.mktemp("release") / "out",
        space=space,
        numbers=[dict(what="gain", value=1)],
    )


@pytest.mark.parametrize(
    "name, content",
    [
        ("space.json", "[3]"),
        ("space.json", "true"),
        ("numbers.json", "[]"),
        ("space.npz", None),
        ("heads.safetensors", "nothing"),
        ("backbone/config.json", "{"),
        ("backbone/config.json", '{"model_type": "bert", "torch_dtype": "no"}'),
        ("backbone/tokenizer.json", "{}"),
        ("backbone/model.safetensors", "nothing"),
    ],
)
def test_a_changed_release_names_the_file_that_changed(release, tmp_path, name, content):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(release, folder)
    if content is None:
        write_arrays(folder / name, other=np.arange(3))
    else:
        (folder / name).write_text(content)
    with pytest.raises(BraintuneError) as error:
        BrainTuner.from_pretrained(folder)
    assert name in str(error.value) or str(folder / name).rpartition("/")[0] in str(error.value)


def test_a_changed_record_of_a_release_is_refused_before_anything_is_read(release, tmp_path):
    facts = json.loads((release / "tuner.json").read_text())
    for change in (dict(settings=7), dict(files=None), dict(split="0" * 64)):
        (tmp_path / "tuner.json").write_text(json.dumps(facts | change))
        with pytest.raises(ModelError, match="record of a release was changed"):
            read_release(tmp_path)
    (tmp_path / "tuner.json").write_text("[1]")
    with pytest.raises(DataError, match="holds no record"):
        read_release(tmp_path)


def test_zero_bytes_and_endless_numbers_in_a_table(tmp_path):
    path = tmp_path / "words.csv"
    good = "onset,offset,text\n0.5,1.25,one\n1.5,2.75,two\n"
    path.write_text(good)
    events = read_word_table(path)
    assert (events.onset.tolist(), list(events.text)) == ([0.5, 1.5], ["one", "two"])
    for old, new in (("two", "tw\0"), ("2.75", "2.75" + "0" * 5000)):
        path.write_text(good.replace(old, new))
        with pytest.raises(DataError, match="words.csv"):
            read_word_table(path)


def wav(path, samples, bits=16, kind=1, counted=None):
    "A WAV file field by field; `counted`: samples by its chunk `fact`."
    about = struct.pack("<HHIIHH", kind, 1, 8000, 8000 * samples.itemsize, samples.itemsize, bits)
    parts = {b"fmt ": about, b"data": samples.tobytes()}
    if counted is not None:
        parts[b"fact"] = struct.pack("<I", counted)
    body = b"".join(name + struct.pack("<I", len(part)) + part for name, part in parts.items())
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body)
    return path


def test_odd_headers_of_sound_are_told(tmp_path):
    whole = (np.sin(np.arange(4000) / 9) * 12000).astype("<i2")
    floats = (whole / 2.0**15).astype("<f4")
    for made, words in (
        (wav(tmp_path / "a.wav", whole), ""),
        (wav(tmp_path / "b.wav", whole, bits=12), "samples of 12 bits"),
        (wav(tmp_path / "c.wav", floats, 32, 3, counted=4000), ""),
        (wav(tmp_path / "d.wav", floats, 32, 3, counted=4100), "4100 samples by its header, 4000"),
    ):
        (samples, rate, *_), said = heard(lambda made=made: read_audio(made))
        assert rate == 8000 and np.allclose(np.ravel(samples), floats, atol=1e-6)
        assert words in said if words else not said, said


def test_a_record_of_a_run_without_a_hash_still_holds_its_parameters(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    old = dict(parameters=dict(seed=3), seconds=7.5, peak_memory_mb=90)
    (tmp_path / "run.json").write_text(json.dumps(old))
    (_, record), said = heard(lambda: read_finished(tmp_path))
    assert record == old and "holds no hash" in said
    for key in old:
        (tmp_path / "run.json").write_text(json.dumps({k: v for k, v in old.items() if k != key}))
        with pytest.raises(DataError, match=key), pytest.warns(UserWarning, match="no hash"):
            read_finished(tmp_path)
