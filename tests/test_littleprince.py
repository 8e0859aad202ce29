"ds003643: runs to sections, volumes against the README, columns under a mask or in parcels."

import nibabel
import numpy as np
import pytest
import soundfile

from braintune_nb.core import ClockError, DataError, MissingData, ParameterError
from braintune_nb.data.images import image_table, labels_on
from braintune_nb.data.littleprince import (
    PRINCE_ROWS,
    PRINCE_SOUND,
    check_littleprince,
    load_littleprince,
    prince_paths,
    prince_runs,
    prince_sound,
    prince_words,
)

AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
GAPPED = "sub-CN013"  # a participant whose run numbers have a gap


def image(values):
    return nibabel.Nifti1Image(values, AFFINE)


@pytest.fixture
def mask():
    inside = np.zeros((6, 5, 4), np.int16)
    inside[1:3, 1:4, 2] = 4
    inside[4, 2:4, 0] = 9
    return image(inside)


def write_run(folder, who, section, rows=None):
    rows = rows or PRINCE_ROWS[who[4:6]][section - 1]
    values = (
        np.random.default_rng([section, len(who), rows])
        .standard_normal((6, 5, 4, rows))
        .astype(np.float32)
    )
    path = folder / prince_runs()[who][section]
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image(values), path)
    return values


def write_words(folder, code, extra=()):
    path = folder / f"annotation/{code}/lpp{code}_word_information.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f'{k},"w{k}, {s}",w,{1.2 * k + 0.1:.2f},{1.2 * k + 0.9:.2f},{s}'
        for s in range(1, 10)
        for k in range(400)
    ]
    path.write_text(
        "\n".join([",word,lemma,onset,offset,section", *rows, *extra]), encoding="utf-8"
    )
    return path


@pytest.fixture
def folder(tmp_path):
    for code in ("EN", "CN"):
        write_words(tmp_path, code)
    return tmp_path


def test_sections_are_ranks_of_runs_in_the_registry_not_of_the_files_that_are_there(folder, mask):
    numbers = [int(p.partition("_run-")[2][:2]) for p in prince_runs()[GAPPED].values()]
    assert numbers != list(range(numbers[0], numbers[0] + 9)) and numbers == sorted(numbers)
    made = {s: write_run(folder, GAPPED, s) for s in (2, 9)}  # two of nine are there
    found = load_littleprince(folder, mask=mask, cache=folder).recordings[GAPPED]
    assert set(found) == {"lppCN_section2", "lppCN_section9"}
    for s, values in made.items():
        assert np.array_equal(
            found[f"lppCN_section{s}"].responses, values[np.asarray(mask.dataobj) > 0].T
        )


def test_columns_lead_back_to_voxels(folder, mask):
    values = write_run(folder, "sub-EN057", 3)
    recording = load_littleprince(folder, ["sub-EN057"], [3], mask=mask, cache=folder).recordings[
        "sub-EN057"
    ]["lppEN_section3"]
    assert (
        recording.space.kind == "voxel"
        and len(recording.space) == 8
        and recording.responses.dtype == np.float32
    )
    for column in (0, 3, 7):
        assert np.array_equal(
            recording.responses[:, column],
            values.reshape(-1, values.shape[-1])[recording.space.columns[column]],
        )


def test_parcels_are_means_and_have_names(folder, mask):
    values = write_run(folder, "sub-EN057", 3)
    recording = load_littleprince(
        folder, parcels=mask, labels={4: "STS", 9: "IFG"}, cache=folder
    ).recordings["sub-EN057"]["lppEN_section3"]
    assert recording.space.labels == ("STS", "IFG") and recording.space.kind == "region"
    for k, number in enumerate((4, 9)):
        assert np.allclose(
            recording.responses[:, k], values[np.asarray(mask.dataobj) == number].mean(0), atol=1e-6
        )


def test_mask_and_parcels_of_one_image_are_not_confused_in_the_cache(folder, mask):
    write_run(folder, "sub-EN057", 3)
    for settings, columns in ((dict(mask=mask), 8), (dict(parcels=mask), 2), (dict(mask=mask), 8)):
        assert (
            load_littleprince(folder, cache=folder, **settings)
            .recordings["sub-EN057"]["lppEN_section3"]
            .responses.shape[1]
            == columns
        )
    with pytest.raises(ParameterError, match="not both"):
        load_littleprince(folder, mask=mask, parcels=mask)


def test_the_default_mask_is_the_brain_of_mni152(folder):
    full = nibabel.Nifti1Image(
        np.random.default_rng(0).standard_normal((46, 55, 46, 265)).astype(np.float32),
        np.diag([4.0, 4, 4, 1])
        + np.array([[0, 0, 0, -90], [0, 0, 0, -126], [0, 0, 0, -72], [0, 0, 0, 0.0]]),
    )
    path = folder / prince_runs()["sub-EN057"][5]
    path.parent.mkdir(parents=True)
    nibabel.save(full, path)
    recording = load_littleprince(folder, cache=folder).recordings["sub-EN057"]["lppEN_section5"]
    assert 25_000 < len(recording.space) < 32_000 and np.array_equal(
        recording.responses[0], np.asarray(full.dataobj)[..., 0].ravel()[recording.space.columns]
    )


def test_rows_are_at_the_mid_points_of_volumes_that_start_with_the_sound(folder, mask):
    write_run(folder, "sub-EN057", 1)
    write_run(folder, GAPPED, 1)
    stories = load_littleprince(folder, mask=mask, cache=folder).stories
    assert stories["lppEN_section1"].identity == stories[
        "lppCN_section1"
    ].identity == "lpp_section1" and (
        stories["lppEN_section1"].language,
        stories["lppCN_section1"].language,
    ) == (
        "en",
        "zh",
    )
    for name, code in (("lppEN_section1", "EN"), ("lppCN_section1", "CN")):
        clock = stories[name].clock
        assert (
            clock.times[0] == 1
            and clock.tr == 2
            and len(clock) == PRINCE_ROWS[code][0]
            and clock.times[-1] + 1 >= PRINCE_SOUND[code][0] - 1
        )


@pytest.mark.parametrize("rows", [278, 281, 286])
def test_a_run_of_another_length_is_refused(folder, mask, rows):
    write_run(folder, "sub-EN057", 1, rows)
    with pytest.raises(ClockError, match="not as long as the section") as error:
        load_littleprince(folder, mask=mask, cache=folder)
    assert f"{rows} volumes" in error.value.found and "282 volumes" in error.value.expected
    assert any(f"{rows} volumes" in str(f) for f in check_littleprince(folder))


def test_words(folder):
    path = write_words(
        folder,
        "EN",
        ["0, ,x,1.0,2.0,1", "0,,x,1.0,2.0,1", "0,null,x,500.0,501.0,9", "0,NA,x,502.0,503.0,9"],
    )
    words, blank = prince_words(path)
    assert (
        blank == 2
        and sorted(words) == list(range(1, 10))
        and words[1].text[:2] == ("w0, 1", "w1, 1")
        and words[9].text[-2:] == ("null", "NA")
    )  # words, not missing values
    path.write_text(path.read_text().replace("1.30,2.10,4", "1.30,,4"))
    with pytest.raises(DataError, match="has no time") as error:
        prince_words(path)
    assert error.value.place == "line 1203"


@pytest.mark.parametrize(
    "row, message",
    [
        ('0,"a,x,500,501,9\n0,b",x,502,503,9', "breaks off"),
        ('0,"a,x,500,501,9', "not closed"),
        ("0,a,x,500,501,9,7", "7 columns"),
        ("0,a,x,500,501,12", "no section"),
        ("0,a,x,500,501,inf", "no section"),
        ("0,a,x,500,501,1.5", "no section"),
        ("0,a,x,500,True,9", "has no time"),
        ("0,a,x,500,nan,9", "has no time"),
        ("0,a,x,3,4,9", "backwards"),
        ("0,a,x,500,499,9", "ends before it starts"),
    ],
)
def test_rows_that_are_wrong_are_refused_by_line(folder, row, message):
    path = write_words(folder, "EN", [row])
    with pytest.raises(DataError, match=message) as error:
        prince_words(path)
    assert error.value.place == "line 3602"


def test_a_channel_is_chosen(folder, mask):
    write_run(folder, "sub-EN057", 1)
    (folder / "stimuli").mkdir()
    sound = np.stack([np.zeros(16_000), np.linspace(-0.5, 0.5, 16_000)], 1)
    soundfile.write(folder / prince_sound("EN", 1), sound, 16_000, subtype="FLOAT")
    found = load_littleprince(folder, mask=mask, cache=folder, channel=1)
    kept = soundfile.read(found.stories["lppEN_section1"].audio)[0]
    assert np.abs(kept - sound[:, 1]).max() < 0.02
    assert any("number 1 of them" in note for note in found.notes)


def test_sound_is_converted_and_told(folder, mask):
    write_run(folder, "sub-EN057", 1)
    (folder / "stimuli").mkdir()
    soundfile.write(folder / prince_sound("EN", 1), np.zeros((44100, 2)), 44100)
    found = load_littleprince(folder, mask=mask, cache=folder)
    assert soundfile.info(found.stories["lppEN_section1"].audio).samplerate == 16000 and any(
        "44100 Hz, 2 channels" in n for n in found.notes
    )


def test_columns_that_do_not_vary_are_told(folder, mask):
    values = write_run(folder, "sub-EN057", 1)
    values[1, 1, 2] = 0
    nibabel.save(image(values), folder / prince_runs()["sub-EN057"][1])
    assert any(
        "1 of 8 columns do not vary" in n
        for n in load_littleprince(folder, mask=mask, cache=folder).notes
    )


def test_what_is_missing_is_named(folder, mask):
    with pytest.raises(MissingData, match="no runs here"):
        load_littleprince(folder)
    assert "no runs here" in check_littleprince(folder)[0]
    write_run(folder, "sub-EN057", 1)
    with pytest.raises(MissingData, match="sub-FR001"):
        load_littleprince(folder, ["sub-FR001"])
    with pytest.raises(MissingData, match="run-16"):
        load_littleprince(folder, ["sub-EN057"], [1, 2])
    with pytest.raises(ParameterError, match="sub-XX001"):
        load_littleprince(folder, ["sub-XX001"])
    with pytest.raises(ParameterError, match="1 to 9"):
        prince_paths(["sub-EN057"], [10])
    assert [f["severity"] for f in check_littleprince(folder)] == ["note"]
    (folder / "annotation/EN/lppEN_word_information.csv").unlink()
    with pytest.raises(MissingData, match="word_information"):
        load_littleprince(folder, mask=mask)


def test_images_that_cannot_be_used(folder, mask):
    write_run(folder, "sub-EN057", 1)
    path = folder / prince_runs()["sub-EN057"][1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-5000])
    with pytest.raises(DataError, match="cannot be read to its end"):
        image_table(path, labels_on(mask, path), False, folder)
    assert not list((folder / "responses").glob("*.npy"))
    far = nibabel.Nifti1Image(
        np.ones((3, 3, 3), np.int16),
        np.diag([2.0, 2, 2, 1]) + np.array([[0, 0, 0, 5000], [0] * 4, [0] * 4, [0] * 4]),
    )
    path.write_bytes(whole)
    with pytest.raises(DataError, match="does not meet"):
        labels_on(far, path)
    nibabel.save(image(np.ones((6, 5, 4), np.float32)), path)
    with pytest.raises(DataError, match="not an image over time"):
        load_littleprince(folder, mask=mask)


def test_runs_of_a_participant_share_a_grid(folder, mask):
    write_run(folder, "sub-EN057", 1)
    values = write_run(folder, "sub-EN057", 2)
    nibabel.save(
        nibabel.Nifti1Image(values, AFFINE + np.eye(4)), folder / prince_runs()["sub-EN057"][2]
    )
    with pytest.raises(DataError, match="not on the grid"):
        load_littleprince(folder, mask=mask, cache=folder)
