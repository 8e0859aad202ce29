"""From voxels to vertices: mappers with known answers, files, refusals, memory; images; simulated
people with other voxels; parcels that tune; ceilings."""

import tracemalloc
import warnings
from dataclasses import replace

import h5py
import nibabel
import numpy as np
import pytest
from scipy import sparse

from braintune_nb.clock import regular_clock
from braintune_nb.core import DataError, MissingData, ParameterError
from braintune_nb.data.parcels import PARCEL_GROUPS, load_parcels, make_parcels, parcel_space
from braintune_nb.data.recordings import Recording, Space
from braintune_nb.data.stories import Events, Story
from braintune_nb.data.surface import (
    TUNING_PARCELS,
    Mapper,
    apply_mapper,
    ceiling_mask,
    coarser_mapper,
    hemisphere_counts,
    load_mapper,
    parcel_mask,
    pick_vertices,
    save_mapper,
    surface_mapper,
    surface_meshes,
    volume_to_surface,
)

STORY = Story("tale", "en", Events([0.5], [1.0], ("once",)), regular_clock(40, 2.0))


def recording(x, who="P1", columns=None, **more):
    return Recording(
        who,
        STORY,
        x.astype(np.float32),
        Space(f"{who} voxels", "voxel", np.arange(x.shape[1]) if columns is None else columns),
        **more,
    )


def random_mapper(vertices, n, seed=0, **more):
    weights = sparse.random_array(
        (vertices, n), density=0.2, rng=np.random.default_rng(seed), dtype=np.float32, format="csr"
    ).toarray()
    weights[[1, vertices // 2]] = 0  # two vertices without a voxel
    return Mapper(sparse.csr_array(weights), "toy", np.arange(vertices), **more)


# ---- one product, in blocks


def assert_dense_product(mapper, covered, y, x, heard):
    "Where voxels reach, the responses and repeats are the product with the weights."
    product = lambda x: (x.astype(np.float32) @ mapper.weights.toarray().T)[..., covered]
    np.testing.assert_allclose(y.responses[:, covered], product(x), atol=1e-5)
    np.testing.assert_allclose(y.repeats[..., covered], product(heard.repeats), atol=1e-5)


@pytest.mark.parametrize("block_gb", [1e-8, 1e-6, 1.0])
@pytest.mark.parametrize("on_disk", [False, True])
def test_any_block_gives_the_dense_product(block_gb, on_disk, tmp_path):
    draw = np.random.default_rng(1)
    mapper, x = random_mapper(30, 50), draw.normal(size=(40, 50))
    repeats, motion = draw.normal(size=(3, 40, 50)).astype(np.float32), draw.normal(size=(40, 6))
    heard = recording(x, repeats=repeats, motion=motion, source="a.hf5")
    y = apply_mapper(heard, mapper, block_gb=block_gb, out=tmp_path / "y.npy" if on_disk else None)
    covered = mapper.covered
    assert (~covered).sum() == 2
    assert_dense_product(mapper, covered, y, x, heard)
    assert (
        np.isnan(y.responses[:, ~covered]).all() and isinstance(y.responses, np.memmap) == on_disk
    )
    assert y.motion is heard.motion and y.participant == "P1" and "a.hf5" in y.source


def test_a_round_trip_gives_back_the_voxels():
    "A permutation with positive factors, there and back."
    draw = np.random.default_rng(2)
    order, factor, x = draw.permutation(60), draw.uniform(0.5, 2, 60), draw.normal(size=(40, 60))
    there = Mapper(
        sparse.csr_array((factor.astype(np.float32), (np.arange(60), order)), shape=(60, 60)),
        "toy",
        np.arange(60),
    )
    back = Mapper(
        sparse.csr_array((1 / factor.astype(np.float32), (order, np.arange(60))), shape=(60, 60)),
        "toy",
        np.arange(60),
    )
    np.testing.assert_allclose(
        apply_mapper(apply_mapper(recording(x), there), back).responses, x, atol=1e-5
    )


def test_memory_is_that_of_a_block(tmp_path):
    "40 MB of responses from a memory map into a memory map, less than 10 MB at once."
    big = np.lib.format.open_memmap(
        tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(400, 25_000)
    )
    big[:, ::7] = 1.5
    story = replace(STORY, clock=regular_clock(400, 2.0))
    mapper = Mapper(
        sparse.csr_array(
            (np.ones(1000, np.float32), (np.arange(1000), np.arange(1000) * 7)),
            shape=(1000, 25_000),
        ),
        "toy",
        np.arange(1000),
    )
    heard = Recording(
        "P1",
        story,
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        Space("v", "voxel", np.arange(25_000)),
    )
    tracemalloc.start()
    y = apply_mapper(heard, mapper, out=tmp_path / "y.npy", block_gb=0.004)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6, f"{peak / 1e6:.0f} MB"
    assert y.responses.shape == (400, 1000) and (y.responses == 1.5).all()


def test_choosing_vertices_first_is_the_same_as_choosing_after():
    mapper, x = random_mapper(30, 50), np.random.default_rng(3).normal(size=(40, 50))
    chosen = np.random.default_rng(4).random(30) < 0.3
    np.testing.assert_array_equal(
        apply_mapper(recording(x), pick_vertices(mapper, chosen)).responses,
        apply_mapper(recording(x), mapper).responses[:, chosen],
    )


def test_a_nan_voxel_reaches_only_its_vertices():
    mapper, x = random_mapper(30, 50), np.random.default_rng(3).normal(size=(40, 50))
    clean = apply_mapper(recording(x), mapper).responses
    x[7, 11] = np.nan
    y = apply_mapper(recording(x), mapper).responses
    touched = mapper.weights.toarray()[:, 11] != 0
    assert np.isnan(y[7, touched]).all() and touched.any()
    y[7, touched] = clean[7, touched]
    np.testing.assert_array_equal(y, clean)


@pytest.mark.parametrize(
    "voxels, columns, words",
    [
        (51, None, "51 voxels in the recording"),
        (49, None, "49 voxels in the recording"),
        (50, np.r_[np.arange(49), 77], "1 of 50 voxel numbers"),
    ],
)
def test_another_participants_voxels_are_refused_with_both_numbers(voxels, columns, words):
    mapper = random_mapper(30, 50, voxels=np.arange(50))
    with pytest.raises(DataError, match=words) as error:
        apply_mapper(recording(np.ones((40, voxels)), columns=columns), mapper)
    assert "50" in str(error.value) and "P1" in str(error.value)


def test_regions_come_with_a_space():
    mapper, parcels = (
        random_mapper(4, 50),
        make_parcels(["A1", "V1", "A1", "???"], list("LLRR"), "toy"),
    )
    y = apply_mapper(
        recording(np.ones((40, 50))), mapper, parcel_space(parcels, groups=dict(auditory=["A1"]))
    )
    assert y.space.regions["auditory"].tolist() == [True, False, True, False]


# ---- files


def parts_of(matrix):
    "The arrays of a sparse matrix, as mapper files have them."
    return dict(
        data=matrix.data, indices=matrix.indices, indptr=matrix.indptr, shape=np.array(matrix.shape)
    )


def write_hdf(mapper, path):
    "In the layout of one maker."
    with h5py.File(path, "w") as f:
        for k, v in parts_of(mapper.weights).items():
            f[f"voxel_to_fsaverage_{k}"] = v
        f["roi_mask_AC"] = np.zeros(3)
    return path


def write_sides(mapper, path):
    "In the layout of another one, which keeps all voxels of the image; the mask of those used."
    volume, mask = np.zeros((40, 5, 3, 2), np.float32), np.zeros((5, 3, 2), bool)
    mask.ravel()[np.random.default_rng(0).permutation(30)[:12]] = True
    volume[:, mask] = mapper.weights.toarray()
    rows, arrays = volume.reshape(40, -1), {}
    for side, half in (("left", rows[:15]), ("right", rows[15:])):
        arrays |= {f"{side}_{k}": v for k, v in parts_of(sparse.csr_array(half)).items()}
    np.savez(path, shape=np.array(mask.shape), **arrays)
    return mask


def test_files_of_three_makers(tmp_path):
    mapper = random_mapper(40, 12)
    mask = write_sides(mapper, tmp_path / "line_nearest.npz")
    sides = load_mapper(tmp_path / "line_nearest.npz", mask=mask)
    np.testing.assert_array_equal(sides.voxels, np.flatnonzero(mask))
    for read in (
        load_mapper(write_hdf(mapper, tmp_path / "S01_mappers.hdf")),
        sides,
        load_mapper(save_mapper(mapper, tmp_path / "own.npz")),
    ):
        np.testing.assert_array_equal(read.weights.toarray(), mapper.weights.toarray())


# what a pickle begins like
PICKLE = b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94."


def test_files_that_are_no_mappers_say_so(tmp_path):
    with pytest.raises(MissingData, match="no such mapper"):
        load_mapper(tmp_path / "absent.npz")
    (tmp_path / "x.hdf").write_bytes(b"not hdf")
    (tmp_path / "x.npz").write_bytes(b"not npz")
    (tmp_path / "p.npz").write_bytes(PICKLE)
    with pytest.raises(DataError, match="not a mapper file"):
        load_mapper(tmp_path / "x.hdf")
    with pytest.raises(DataError, match="broken"):
        load_mapper(tmp_path / "x.npz")
    with pytest.raises(DataError):
        load_mapper(tmp_path / "p.npz")


def test_broken_files_say_so(tmp_path):
    m = random_mapper(6, 4).weights
    for words, change in (
        ("do not fit together", dict(shape=np.array([6, 2]))),
        ("do not fit together", dict(indptr=m.indptr[:-1])),
        ("do not fit together", dict(indices=m.indices + 9)),
        ("no numbers", dict(data=m.data * np.nan)),
    ):
        np.savez(tmp_path / "bad.npz", **(parts_of(m) | change))
        with pytest.raises(DataError, match=words):
            load_mapper(tmp_path / "bad.npz")


def test_sums_and_means_are_told_apart():
    W = sparse.csr_array(np.array([[0.5, 0.5], [1, 3], [0, 0]], np.float32))
    mapper = Mapper(W, "toy", np.arange(3))
    assert (
        not mapper.normalised
        and "sums (weights of a vertex add up to 1 to 4)" in str(mapper)
        and "1 vertices without" in str(mapper)
    )
    assert mapper.as_means().normalised and "weighted means" in str(mapper.as_means())
    with pytest.raises(DataError, match="cannot be made a mean"):
        Mapper(-W, "toy", np.arange(3)).as_means()


def test_a_fine_mapper_serves_a_coarse_mesh():
    "The first vertices of each hemisphere; fsaverage5 in fsaverage6 and fsaverage4 in fsaverage5."
    n = 40_962
    fine = Mapper(
        sparse.csr_array(np.arange(1, 2 * n + 1, dtype=np.float32)[:, None]),
        "fsaverage6",
        np.arange(2 * n),
    )
    five = coarser_mapper(fine, "fsaverage5")
    assert (
        five.weights.toarray()[:, 0].tolist() == [*range(1, 10_243), *range(n + 1, n + 10_243)]
        and five.vertices[-1] == 20_483
    )
    np.testing.assert_array_equal(
        coarser_mapper(five, "fsaverage4").weights.toarray(),
        coarser_mapper(fine, "fsaverage4").weights.toarray(),
    )
    with pytest.raises(ParameterError, match="coarser"):
        coarser_mapper(five, "fsaverage6")
    with pytest.raises(ParameterError, match="whole mesh"):
        coarser_mapper(pick_vertices(five, [1, 2]), "fsaverage4")


# ---- images

AFFINE = np.array([[6.0, 0, 0, -90], [0, 6, 0, -126], [0, 0, 6, -72], [0, 0, 0, 1]])
GRID = (31, 37, 32)


def millimetres():
    return (
        np.stack(np.meshgrid(*map(np.arange, GRID), indexing="ij"), -1) @ AFFINE[:3, :3]
        + AFFINE[:3, 3]
    )


def test_a_vertex_reads_its_own_millimetres():
    "Linear fields are exact; also with the image flipped left to right in memory."
    middle = np.concatenate(
        [(np.asarray(i.coordinates) + np.asarray(o.coordinates)) / 2 for i, o in surface_meshes()]
    )
    own = nibabel.Nifti1Image(millimetres().astype(np.float32), AFFINE)
    flipped = nibabel.Nifti1Image(
        np.ascontiguousarray(own.get_fdata()[::-1]),
        AFFINE @ np.array([[-1, 0, 0, GRID[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    )
    for image in (own, flipped):
        np.testing.assert_allclose(volume_to_surface(image)[0].T, middle, atol=1e-3)
    mapper = surface_mapper(nibabel.Nifti1Image(np.ones(GRID, np.int8), AFFINE))
    assert mapper.normalised and mapper.covered.all()
    np.testing.assert_allclose(mapper.weights @ own.get_fdata().reshape(-1, 3), middle, atol=1e-3)


def test_blocks_of_volumes_change_nothing():
    image = nibabel.Nifti1Image(
        np.random.default_rng(0).normal(size=(*GRID, 5)).astype(np.float32), AFFINE
    )
    np.testing.assert_array_equal(
        volume_to_surface(image, volumes=2)[0], volume_to_surface(image)[0]
    )


def test_outside_is_nan_and_not_zero():
    left = (millimetres()[..., 0] < 0).astype(np.int8)
    image = nibabel.Nifti1Image(np.ones((*GRID, 2), np.float32), AFFINE)
    rows, space = volume_to_surface(image, mask=nibabel.Nifti1Image(left, AFFINE))
    assert (
        np.isnan(rows[:, 10_242:]).mean() > 0.95
        and np.isnan(rows[:, :10_242]).mean() < 0.02
        and np.nanmax(rows) == np.nanmin(rows) == 1
    )
    mapper = surface_mapper(nibabel.Nifti1Image(left, AFFINE))
    y = apply_mapper(
        Recording(
            "P1",
            replace(STORY, clock=regular_clock(2, 2.0)),
            np.ones((2, int(left.sum())), np.float32),
            Space("left", "voxel", np.flatnonzero(left)),
        ),
        mapper,
    ).responses
    assert np.isnan(y[:, 10_242:]).mean() > 0.95 and np.allclose(y[:, mapper.covered], 1)


def test_a_vertex_with_less_than_half_of_its_weight_is_not_made_up():
    left = (millimetres()[..., 0] < 0).astype(np.int8)
    share = (
        surface_mapper(nibabel.Nifti1Image(np.ones(GRID, np.int8), AFFINE)).weights @ left.ravel()
    )
    covered = surface_mapper(nibabel.Nifti1Image(left, AFFINE)).covered
    clear = abs(share - 0.5) > 1e-4
    np.testing.assert_array_equal(covered[clear], share[clear] >= 0.5)
    assert ((share > 0) & (share < 0.5)).sum() > 50


def test_balls_of_a_radius():
    image = nibabel.Nifti1Image(millimetres().astype(np.float32), AFFINE)
    pial = np.concatenate([np.asarray(o.coordinates) for _, o in surface_meshes()])
    for kind in ("ball", "line"):
        assert np.abs(volume_to_surface(image, kind=kind, radius=2.0)[0].T - pial).max() < 1.5


def save_mesh(mesh, path):
    "A surface as a GIFTI file."
    points = nibabel.gifti.GiftiDataArray(
        np.asarray(mesh.coordinates, np.float32), intent="NIFTI_INTENT_POINTSET"
    )
    faces = nibabel.gifti.GiftiDataArray(
        np.asarray(mesh.faces, np.int32), intent="NIFTI_INTENT_TRIANGLE"
    )
    nibabel.save(nibabel.gifti.GiftiImage(darrays=[points, faces]), path)
    return str(path)


def test_own_surfaces(tmp_path):
    from nilearn.datasets import load_fsaverage

    image = nibabel.Nifti1Image(millimetres().astype(np.float32), AFFINE)
    meshes, files = load_fsaverage("fsaverage5"), {}
    for side in ("left", "right"):
        files[side] = [
            save_mesh(meshes[part].parts[side], tmp_path / f"{side}_{part}.gii")
            for part in ("white_matter", "pial")
        ]
    own, standard = volume_to_surface(image, files)[0], volume_to_surface(image)[0]
    np.testing.assert_allclose(own, standard, atol=1e-4)


def test_what_is_no_image_or_elsewhere(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="over time"):
        volume_to_surface(nibabel.Nifti1Image(np.ones(GRID), AFFINE))
    away = AFFINE.copy()
    away[:3, 3] = 900
    with pytest.raises(DataError, match="meets no vertex"):
        volume_to_surface(nibabel.Nifti1Image(np.ones((*GRID, 1), np.float32), away))
    with pytest.raises(DataError, match="meets no vertex"):
        surface_mapper(nibabel.Nifti1Image(np.ones(GRID, np.int8), away))
    monkeypatch.setenv("BRAINTUNE_DATA", str(tmp_path))
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(MissingData, match="white_left.gii.gz"):
        surface_meshes("fsaverage7")


def write_prince(folder, rows):
    "One run of random images and the word table of its section; the file and a mask of all voxels."
    from braintune_nb.data.littleprince import prince_runs

    affine, grid = AFFINE * np.array([[2, 2, 2, 1]] * 3 + [[1, 1, 1, 1]]), (16, 19, 16)
    values = np.random.default_rng(0).normal(size=(*grid, rows)).astype(np.float32)
    path = folder / prince_runs()["sub-EN057"][5]
    path.parent.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    (folder / "annotation/EN").mkdir(parents=True)
    lines = [f"once,{1.5 * k},{1.5 * k + 1},5" for k in range(300)]
    table = "\n".join(["word,onset,offset,section", *lines])
    (folder / "annotation/EN/lppEN_word_information.csv").write_text(table)
    return path, nibabel.Nifti1Image(np.ones(grid, np.int8), affine)


def test_the_little_princes_layout_goes_to_the_surface(tmp_path):
    """Images written in the layout of ds003643 with the published number of volumes, loaded as
    that chapter does, mapped, against nilearn on the image."""
    from braintune_nb.data.images import labels_on
    from braintune_nb.data.littleprince import PRINCE_ROWS, load_littleprince

    rows = PRINCE_ROWS["EN"][4]
    path, mask = write_prince(tmp_path, rows)
    data = load_littleprince(tmp_path, ["sub-EN057"], mask=mask, cache=tmp_path / "cache")
    mapper = surface_mapper(labels_on(mask, path))
    heard = data.recordings["sub-EN057"]["lppEN_section5"]
    y = apply_mapper(heard, mapper, out=tmp_path / "y.npy")
    direct = volume_to_surface(nibabel.load(path).slicer[..., :9])[0]
    found, expected = y.responses[:9, mapper.covered], direct[:, mapper.covered]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert y.space.name == "fsaverage5" and y.responses.shape == (rows, 20_484)


def test_real_images_of_ds003643(real_data):
    runs = sorted((real_data / "ds003643").glob("derivatives/*/func/*_bold.nii.gz"))
    if not runs:
        pytest.skip(
            "no images of ds003643 in BRAINTUNE_DATA (openneuro.org/datasets/ds003643,"
            " derivatives/sub-*/func)"
        )
    rows, _ = volume_to_surface(nibabel.load(runs[0]).slicer[..., :6])
    assert np.isfinite(rows).mean() > 0.9 and np.nanstd(rows) > 0


# ---- simulated people on a surface


def mean_of_nearest(tree_of, at, vertices):
    "A mapper: each vertex is the mean of the three voxels nearest to it."
    from scipy.spatial import cKDTree

    nearest = cKDTree(at).query(tree_of, k=3)[1]
    weights = np.full(nearest.size, 1 / 3, np.float32)
    places = np.repeat(np.arange(len(vertices)), 3), nearest.ravel()
    matrix = sparse.csr_array((weights, places), shape=(len(vertices), len(at)))
    return Mapper(matrix, "fsaverage5", vertices)


@pytest.fixture(scope="module")
def mapped():
    "Smooth responses on the surface, mappers of two people, and what they give for their voxels."
    from scipy.spatial import cKDTree

    from braintune_nb.simulate.brain import load_surface, surface_columns

    surface = load_surface()
    vertices, draw = surface_columns(surface), np.random.default_rng(5)
    tree_of = surface.sphere[vertices]
    # what everybody's cortex does
    smooth = draw.normal(size=(40, 6)) @ np.cos(draw.normal(size=(6, 3)) @ tree_of.T / 25)
    mappers, found = {}, {}
    for who, n in dict(P1=3000, P2=3700).items():
        at = tree_of[draw.integers(len(vertices), size=n)] + draw.normal(size=(n, 3)) * 2
        native = smooth[:, cKDTree(tree_of).query(at)[1]]
        mappers[who] = mean_of_nearest(tree_of, at, vertices)
        found[who] = apply_mapper(recording(native, who), mappers[who])
    return smooth, mappers, found


def test_people_with_other_voxels_are_near_the_truth_on_the_surface(mapped):
    "Simulated responses on fsaverage5, seen through 3,000 and 3,700 voxels of their own."
    smooth, mappers, found = mapped
    for who, own in found.items():
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(own.responses.T, smooth.T)]
        assert mappers[who].normalised and np.median(r) > 0.98 and np.min(r) > 0.5
    for who, other in dict(P1=3700, P2=3000).items():
        with pytest.raises(DataError, match="3,[07]00 voxels in the recording"):
            apply_mapper(recording(np.ones((40, other)), who), mappers[who])


def test_people_with_other_voxels_share_a_head_after_mapping(mapped):
    from braintune_nb.model.tuner import BrainTuner
    from braintune_nb.simulate.text_model import toy_backbone

    _, mappers, found = mapped
    np.testing.assert_array_equal(found["P1"].space.columns, found["P2"].space.columns)
    sizes = {p: len(r.space) for p, r in found.items()}
    tuner = BrainTuner(toy_backbone(["a", "b"]), sizes, heads="shared")
    assert len(list(tuner.heads)) == 1 and tuner.heads[0].out_features == len(mappers["P1"].covered)


# ---- which vertices


@pytest.fixture(scope="module")
def toy_parcels():
    "Six parcels a hemisphere, their names, and those among them whose columns tune."
    names = ["A1", "44", "V1", "A4", "PGi", "???"]
    known = {n for g in TUNING_PARCELS for n in PARCEL_GROUPS[g]}
    parcels = make_parcels(names * 2, ["L"] * 6 + ["R"] * 6, "toy")
    return names, parcels, [n for n in names if n in known]


def test_parcel_masks_follow_names_on_any_part_of_the_mesh(toy_parcels):
    names, parcels, wanted = toy_parcels
    everything = Space("toy", "vertex", np.arange(12))
    mask = parcel_mask(everything, parcels, wanted)
    assert mask.tolist() == [n in wanted for n in names] * 2
    assert hemisphere_counts(everything, parcels, mask) == dict(L=4, R=4)
    part = Space("toy", "vertex", np.array([11, 8, 3, 0]))
    assert parcel_mask(part, parcels, wanted).tolist() == [False, False, True, True]


def test_columns_without_parcels_are_refused(toy_parcels):
    _, parcels, wanted = toy_parcels
    with pytest.raises(ParameterError, match="no parcel"):
        # the groups have parcels that this toy lacks
        parcel_mask(Space("toy", "vertex", np.arange(12)), parcels)
    with pytest.raises(DataError, match="12 in all"):
        parcel_mask(Space("x", "vertex", np.array([12])), parcels, wanted)
    with pytest.raises(DataError, match="region"):
        parcel_mask(Space("x", "region", np.arange(3)), parcels, wanted)


def test_real_labels_paper_b_counts_are_not_those_of_its_list(real_data):
    files = sorted((real_data / "glasser").glob("fsaverage6/*.label.gii"))
    if len(files) != 2:
        pytest.skip("needs fsaverage6 Glasser labels in BRAINTUNE_DATA/glasser")
    parcels = load_parcels(*files)
    space = Space("fsaverage6", "vertex", np.arange(len(parcels)))
    count = lambda *groups: tuple(
        hemisphere_counts(space, parcels, parcel_mask(space, parcels, groups)).values()
    )
    assert count(*TUNING_PARCELS) == (6312, 6445) and count("late language, released") == (
        3001,
        3479,
    )
    assert 4 * sum(count(*TUNING_PARCELS)) > 1.6 * (14_370 + 15_802)


# ---- ceilings


@pytest.fixture(scope="module")
def noisy_repeats():
    "Ten times a story in 60 voxels, the later ones with more signal."
    draw = np.random.default_rng(0)
    signal = draw.normal(size=(1, 200, 60)) * np.linspace(0, 1, 60)
    return (signal + draw.normal(size=(10, 200, 60))).astype(np.float32)


def test_the_choice_remembers_its_repeats_and_warns(noisy_repeats):
    from braintune_nb.encode.ceiling import story_ceiling

    ceiling = story_ceiling(noisy_repeats, "smoke", used=range(0, 10, 2), scored=5)
    chosen = ceiling_mask(ceiling, 0.4)
    assert chosen.story == "smoke" and chosen.repeats == (0, 2, 4, 6, 8)
    assert chosen.mask[40:].all() and chosen.mask[:4].sum() <= 1
    assert "repeats 0, 2, 4, 6, 8" in str(chosen)
    for scored in (None, (4, 5)):
        with pytest.warns(UserWarning, match="'smoke', which is scored"):
            assert chosen.warn("smoke", scored)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not chosen.warn("smoke", (1, 3)) and not chosen.warn("life")


def test_a_choice_by_what_is_scored_warns_and_one_without_provenance_is_refused(noisy_repeats):
    from braintune_nb.encode.ceiling import story_ceiling

    with pytest.warns(UserWarning, match="too high"):
        ceiling_mask(story_ceiling(noisy_repeats, "smoke", scored=10), scored="smoke")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ceiling_mask(story_ceiling(noisy_repeats, "smoke"), scored=("life",))
    for bad in (np.ones(3), (np.ones(3), dict(name="x")), None):
        with pytest.raises(ParameterError, match="provenance"):
            ceiling_mask(bad)


def test_a14_choosing_on_the_scored_repeats_inflates_the_score():
    """Every column is equally reliable and the model is perfect: columns chosen on the scored
    repeats score higher than they do on fresh ones, columns chosen on other repeats do not."""
    from braintune_nb.encode.ceiling import story_ceiling
    from braintune_nb.encode.score import correlation

    draw = np.random.default_rng(1)
    signal = draw.normal(size=(80, 6000))
    repeats = (np.sqrt(0.1) * signal + np.sqrt(0.9) * draw.normal(size=(6, 80, 6000))).astype(
        np.float32
    )
    score = lambda used, mask: correlation(
        signal[:, mask], repeats[list(used)].mean(0)[:, mask]
    ).mean()
    chosen = ceiling_mask(story_ceiling(repeats, "s", used=(0, 1), scored=2), 0.5).mask
    assert 500 < chosen.sum() < 5500
    assert score((0, 1), chosen) > score((2, 3), chosen) + 0.01
    assert abs(score((2, 3), chosen) - score((2, 3), ~chosen)) < 0.01
