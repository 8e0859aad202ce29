"""Parcels by name: files, groups, spaces, the released defects, and the real Glasser files where
they are."""

import nibabel
import numpy as np
import pandas as pd
import pytest

from braintune_nb.core import DataError, ParameterError
from braintune_nb.data.parcels import (
    GROUP_SOURCES,
    MESHES,
    PARCEL_GROUPS,
    load_parcels,
    make_parcels,
    parcel_group,
    parcel_space,
    parcels_from_table,
    side_and_name,
    vertex_labels,
)
from braintune_nb.data.recordings import Space
from braintune_nb.encode.score import alignment_table, layer_table, region_means

NAMES = sorted(
    {name for names in PARCEL_GROUPS.values() for name in names} | {"VMV1", "VMV2", "PIT"}
)


def write_annot(path, numbers, names):
    table = np.zeros((len(names), 5), int)
    table[:, 0], table[:, 1] = np.arange(len(names)) % 256, np.arange(len(names)) // 256
    nibabel.freesurfer.write_annot(path, np.asarray(numbers), table, names, fill_ctab=True)


def write_gifti(path, numbers, names):
    image = nibabel.gifti.GiftiImage(
        darrays=[
            nibabel.gifti.GiftiDataArray(np.asarray(numbers, np.int32), intent="NIFTI_INTENT_LABEL")
        ]
    )
    for i, name in enumerate(names):
        label = nibabel.gifti.GiftiLabel(key=i)
        label.label = name
        image.labeltable.labels.append(label)
    nibabel.save(image, path)


def cortex(each=3):
    """A cortex with `each` vertices of every parcel of the groups a hemisphere, shuffled, and
    as many without a parcel."""
    rng = np.random.default_rng(0)
    short = np.repeat(["", *NAMES], each)
    labels = []
    for side in "LR":
        names = rng.permutation(short)
        labels += [f"{side}_{n}_ROI" if n else "???" for n in names]
    return make_parcels(labels, np.repeat(["L", "R"], len(short)), "made up")


# ---- names and groups


@pytest.mark.parametrize(
    "label, expected",
    [
        ("L_A1_ROI", ("L", "A1")),
        ("R_A1_ROI-rh", ("R", "A1")),
        ("lh.bankssts", ("L", "bankssts")),
        ("A1", ("", "A1")),
        ("RI", ("", "RI")),
        ("LO1", ("", "LO1")),
        ("R_LO1_ROI", ("R", "LO1")),
        ("L_7PL_ROI", ("L", "7PL")),
        ("L_p9-46v_ROI", ("L", "p9-46v")),
        ("p9-46v", ("", "p9-46v")),
        ("L_s6-8_ROI", ("L", "s6-8")),
        ("right_PFm", ("R", "PFm")),
    ],
)
def test_labels_are_taken_apart(label, expected):
    assert side_and_name(label) == expected


def test_a_group_has_every_vertex_of_its_parcels_on_both_sides():
    parcels = cortex()
    for group, names in PARCEL_GROUPS.items():
        mask = parcel_group(parcels, names)
        assert mask.sum() == 2 * 3 * len(names) and set(parcels.labels[mask]) == set(names)
        assert (
            parcel_group(parcels, names, "L").sum()
            == parcel_group(parcels, [f"R_{n}_ROI" for n in names]).sum()
            == 3 * len(names)
        )
    assert set(PARCEL_GROUPS) == set(GROUP_SOURCES)


def test_b08_visual_controls_are_taken_by_name_and_not_by_position():
    """The released code kept positions in a name-sorted list that begins with two labels for
    'none': 158, 159 for V1, V2 and 111, 112 for the word-form pair."""
    assert PARCEL_GROUPS["early visual"] == ("V1", "V2") and PARCEL_GROUPS["visual word form"] == (
        "PH",
        "TE2p",
    )
    parcels = cortex()
    for group, wrong in (("early visual", {"VMV1", "VMV2"}), ("visual word form", {"PIT"})):
        found = set(parcels.labels[parcel_group(parcels, PARCEL_GROUPS[group])])
        assert found == set(PARCEL_GROUPS[group]) and not found & wrong
    shuffled = make_parcels(
        parcels.labels[::-1], parcels.side[::-1], "reversed"
    )  # positions change, names do not
    np.testing.assert_array_equal(
        parcel_group(shuffled, PARCEL_GROUPS["early visual"]),
        parcel_group(parcels, PARCEL_GROUPS["early visual"])[::-1],
    )


def test_b08_on_the_real_list(real_data):
    names = [
        n.decode()
        for n in nibabel.freesurfer.read_annot(
            real_data / "glasser/fsaverage5/fsa5_lh_glasser_360.annot"
        )[2]
        if n != b"medialwall"
    ]
    positions = sorted(
        ["???"] * 2 + [f"{s}_{n}_ROI-{h}" for s, h in (("L", "lh"), ("R", "rh")) for n in names]
    )
    short = [side_and_name(x)[1] for x in positions]
    assert (
        [short[i] for i in (158, 159)] == ["VMV1", "VMV2"]
        and [short[i] for i in (111, 112)] == ["PH", "PIT"]
        and short[138] == "TE2p"
    )
    assert short[158 + 180] == "VMV1" and positions[158 + 180].startswith("R_")


@pytest.mark.parametrize(
    "name, near", [("a1", "A1"), ("TE2P", "TE2p"), ("STSv", "STSva"), ("IFSP", "IFSp")]
)
def test_an_unknown_parcel_names_what_is_near(name, near):
    with pytest.raises(ParameterError) as error:
        parcel_group(cortex(), ["A1", name])
    assert repr(name) in str(error.value) and near in str(error.value)


def test_empty_and_contradicting_names_are_refused():
    for names in ("", ["???"], ["zzzz"]):
        with pytest.raises(ParameterError, match="no parcel of this name"):
            parcel_group(cortex(), names)
    with pytest.raises(ParameterError, match="other side"):
        parcel_group(cortex(), ["R_A1"], "L")
    with pytest.raises(ParameterError, match="both sides"):
        parcel_group(cortex(), ["L_A1-rh"])


# ---- files


def files_of_parcels(folder):
    "The same parcels of eight vertices in files of five kinds, each as it is loaded."
    numbers, names = {"L": [1, 2, 0, 3], "R": [0, 3, 3, 1]}, ["???", "A1", "TE2p", "p9-46v"]
    for side, x in numbers.items():
        own = [n if n == "???" else f"{side}_{n}_ROI" for n in names]
        write_annot(folder / f"{side}.annot", x, own)
        write_gifti(folder / f"{side}.label.gii", x, names)
    both = np.array(numbers["L"] + numbers["R"])
    table = pd.DataFrame({"parcel": np.array(names)[both], "side": list("LLLLRRRR")})
    table.to_csv(folder / "t.csv", index=False)
    np.savetxt(folder / "n.csv", both, fmt="%d")
    return [
        load_parcels(folder / "L.annot", folder / "R.annot"),
        load_parcels(folder / "L.label.gii", folder / "R.label.gii"),
        parcels_from_table(folder / "t.csv"),
        parcels_from_table(table),
        parcels_from_table(folder / "n.csv", dict(enumerate(names))),
    ]


def test_every_kind_of_file_gives_the_same_parcels(tmp_path):
    found = files_of_parcels(tmp_path)
    labels = ["A1", "TE2p", "", "p9-46v", "", "p9-46v", "p9-46v", "A1"]
    for p in found:
        assert p.labels.tolist() == labels and p.outside == {"???": 2}
    for p in found[:4]:
        assert "".join(p.side) == "LLLLRRRR"
    assert "".join(found[4].side) == "" and len(parcel_group(found[4], "A1")) == 8


def test_faults_of_files_are_named(tmp_path):
    write_annot(tmp_path / "L.annot", [1, 0, 1], ["unknown", "L_A1_ROI"])
    write_annot(tmp_path / "R.annot", [1, 0], ["unknown", "R_A1_ROI"])
    write_gifti(tmp_path / "x.label.gii", [1, 5, 1], ["???", "A1"])
    (tmp_path / "x.label").write_text("")
    np.savetxt(tmp_path / "n.csv", [1, 0, 1], fmt="%d")
    for call, message in [
        (lambda: load_parcels(tmp_path / "L.annot", tmp_path / "R.annot"), "2 vertices right"),
        (lambda: load_parcels(tmp_path / "L.annot", tmp_path / "L.annot"), "2 columns on side R"),
        (lambda: vertex_labels(tmp_path / "x.label.gii"), "found: 5"),
        (lambda: vertex_labels(tmp_path / "x.label"), "kind of label file"),
        (lambda: vertex_labels(tmp_path / "no.annot"), "does not exist"),
        (lambda: parcels_from_table(tmp_path / "n.csv"), "does not name its parcels"),
        (lambda: parcels_from_table(tmp_path / "n.csv", {1: "A1"}), "1 rows"),
    ]:
        with pytest.raises(DataError) as error:
            call()
        assert message in str(error.value), error.value


def test_an_annot_vertex_without_a_label_belongs_to_no_parcel(tmp_path):
    write_annot(tmp_path / "L.annot", [0, -1, 1], ["unknown", "L_A1_ROI"])
    labels = vertex_labels(tmp_path / "L.annot")
    assert make_parcels(labels, "L", "x").labels.tolist()[2] == "A1" and make_parcels(
        labels, "L", "x"
    ).labels.tolist()[:2] == ["", ""]


@pytest.mark.parametrize(
    "name", ["???", "Medial_wall", "medialwall", "unknown", "L_???", "Background+", ""]
)
def test_the_medial_wall_has_many_names(name):
    p = make_parcels(["A1", name], "L", "x")
    assert (p.labels[1] == "") == (name != "Background+") and p.outside.get(name, 0) == (
        name != "Background+"
    )


# ---- spaces and scores


def test_groups_are_the_regions_of_scores():
    parcels = cortex()
    space = parcel_space(parcels, sides=True)
    assert (
        isinstance(space, Space)
        and len(space.regions) == 3 * len(PARCEL_GROUPS)
        and len(space) == len(parcels)
    )
    scores = np.where(parcels.labels == "A1", np.where(parcels.side == "L", 0.4, 0.2), 0.1)
    got = region_means(
        scores,
        space,
        ["primary auditory", "L primary auditory", "R primary auditory", "early auditory"],
    )
    np.testing.assert_allclose(
        [v["mean"] for v in got.values()], [0.3, 0.4, 0.2, (0.3 + 0.1 * 5) / 6]
    )
    table = alignment_table(
        scores, np.full(len(scores), 0.5), space, ["primary auditory"], participant="p"
    )
    np.testing.assert_allclose(
        table[["raw", "ceiling", "normalized"]].to_numpy(), [[0.3, 0.5, 0.6]]
    )
    sweep = layer_table(
        np.stack([scores, 2 * scores]),
        np.full(len(scores), 0.5),
        space,
        regions=["primary auditory"],
    )
    np.testing.assert_allclose(sweep.normalized, [0.6, 1.2])


def test_a_part_of_the_vertices_gets_its_part_of_the_masks():
    parcels = cortex()
    kept = np.random.default_rng(1).permutation(len(parcels))[:50]
    space = parcel_space(parcels, kept)
    for group, names in PARCEL_GROUPS.items():
        np.testing.assert_array_equal(space.regions[group], np.isin(parcels.labels[kept], names))
    left = parcel_space(parcels, np.arange(len(parcels) // 2))
    assert left.regions["late language"].sum() == 3 * len(PARCEL_GROUPS["late language"])
    assert parcel_space(parcels, [4, 4, 5]).kind == "voxel"


@pytest.mark.parametrize(
    "labels, data", [("fsaverage5", "fsaverage6"), ("fsaverage6", "fsaverage5")]
)
def test_labels_of_another_mesh_are_refused_with_both_numbers(labels, data):
    size = {name: 2 * n for n, name in MESHES.items()}
    parcels = make_parcels(
        np.resize(["A1", "V1"], size[labels]),
        np.repeat(["L", "R"], size[labels] // 2),
        "Glasser on " + labels,
    )
    for columns in (size[data], np.arange(size[data])):
        with pytest.raises(DataError) as error:
            parcel_space(parcels, columns, {"auditory": ["A1"]})
        assert f"{size[labels]:,} ({labels}, both" in str(
            error.value
        ) and f"{size[data]:,} ({data}, both" in str(error.value)


def test_real_glasser_files(real_data):
    five = load_parcels(*sorted((real_data / "glasser/fsaverage5").glob("*.annot")))
    six = load_parcels(*sorted((real_data / "glasser/fsaverage6").glob("*.label.gii")))
    for p, name, n in ((five, "fsaverage5", 10_242), (six, "fsaverage6", 40_962)):
        assert p.name == name and len(p) == 2 * n and len(p.names) == 180
        for side in "LR":
            assert len(set(p.labels[p.side == side]) - {""}) == 180
        space = parcel_space(p, 2 * n)
        assert all(mask.any() for mask in space.regions.values())
    assert (
        five.names == six.names
        and five.outside == {"medialwall": 1701}
        and six.outside == {"???": 6955}
    )
    with pytest.raises(DataError, match="fsaverage6"):
        parcel_space(five, 2 * 40_962)


def test_the_real_table_of_numbers_needs_its_names_and_shows_its_fault(real_data):
    """17 right vertices of the published fsaverage5 table carry 180, the number of the last
    left parcel: by name that cannot pass."""
    folder = real_data / "glasser/fsaverage5"
    names = [
        n.decode()
        for n in nibabel.freesurfer.read_annot(folder / "fsa5_lh_glasser_360.annot")[2][1:]
    ]
    table = {0: "medialwall"} | {
        180 * k + i + 1: f"{side}_{n}_ROI"
        for k, side in enumerate("LR")
        for i, n in enumerate(names)
    }
    with pytest.raises(DataError, match="does not name"):
        parcels_from_table(folder / "glasser_360_fsa5.csv")
    numbers = pd.DataFrame(
        {
            "parcel": np.loadtxt(folder / "glasser_360_fsa5.csv").astype(int).astype(str),
            "side": np.repeat(["L", "R"], 10_242),
        }
    )
    with pytest.raises(DataError, match="17 columns on side R"):
        parcels_from_table(numbers, table)
