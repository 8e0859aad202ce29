"""ds002345: words in seconds of the sound, clocks from the events of a run, both spaces, and a
registry from a clone."""

import hashlib
import os
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import nibabel
import numpy as np
import pytest
import soundfile

from braintune_nb.core import ClockError, DataError, MissingData, ParameterError
from braintune_nb.data.fetch import read_registry, registry_of_clone
from braintune_nb.data.images import surface_table
from braintune_nb.data.narratives import (
    check_narratives,
    fetch_narratives,
    load_narratives,
    narratives_run,
    narratives_told,
    narratives_words,
    sound_onset,
)

AFFINE = np.diag([3.0, 3, 3, 1])


def mask():
    inside = np.zeros((4, 4, 3), np.int16)
    inside[1:3, 1, :] = 1
    inside[3, 3, 2] = 5
    return nibabel.Nifti1Image(inside, AFFINE)


def write_words(folder, story):
    "50 words, one that was not found, and one in quotes."
    grid = folder / narratives_told(story)[0]
    grid.parent.mkdir(parents=True, exist_ok=True)
    words = [f"It's,it's,{1.2 * k + 0.25:.2f},{1.2 * k + 0.9:.2f}" for k in range(50)]
    grid.write_text("\n".join([*words, "gone,gone,,", '"Well, no",well,60.5,61.0']))


def write(folder, who, story="black", rows=60, start=12.0, tr=1.5, seed=0):
    values = np.random.default_rng([seed, rows]).standard_normal((4, 4, 3, rows)).astype(np.float32)
    events, image = (folder / p for p in narratives_run(who, story))
    for p in (events, image):
        p.parent.mkdir(parents=True, exist_ok=True)
    events.write_text(
        "onset\tduration\ttrial_type\tstim_file\n"
        f"{start - 3}\t1.0\tfixation\tn/a\n"
        f"{start}\t60.0\tstory\t{story}_audio.wav\n"
        f"{start + 20}\t9.0\tstory\t{story}_audio.wav\n"
    )
    nii = nibabel.Nifti1Image(values, AFFINE)
    nii.header.set_zooms((3, 3, 3, tr))
    nii.header.set_xyzt_units("mm", "sec")
    nibabel.save(nii, image)
    write_words(folder, story)
    return values


def test_the_clock_is_that_of_each_storys_own_events(tmp_path):
    a, b = (
        write(tmp_path, "sub-256", "black", start=12.0),
        write(tmp_path, "sub-256", "21styear", rows=64, start=0.0, seed=1),
    )
    found = load_narratives(tmp_path, mask=mask(), cache=tmp_path)
    assert np.allclose(
        found.stories["black"].clock.times, np.arange(60) * 1.5 + 0.75 - 12
    ) and np.allclose(found.stories["21styear"].clock.times, np.arange(64) * 1.5 + 0.75)
    for name, values in (("black", a), ("21styear", b)):
        assert np.array_equal(
            found.recordings["sub-256"][name].responses, values[np.asarray(mask().dataobj) > 0].T
        )
    assert (
        any("1 words were not found" in n for n in found.notes)
        and found.stories["black"].words.text[-1] == "Well, no"
        and check_narratives(tmp_path) == []
    )


def test_numbered_runs_share_words_and_are_stories_of_their_own(tmp_path):
    write(tmp_path, "sub-256", "notthefallintact_run-1")
    write(tmp_path, "sub-256", "notthefallintact_run-2", rows=70)
    assert [
        len(s.clock)
        for s in load_narratives(tmp_path, mask=mask(), cache=tmp_path).stories.values()
    ] == [60, 70]


def test_parcels(tmp_path):
    values = write(tmp_path, "sub-256")
    r = load_narratives(tmp_path, parcels=mask(), cache=tmp_path).recordings["sub-256"]["black"]
    assert r.space.labels == ("1", "5") and np.allclose(
        r.responses[:, 0], values[np.asarray(mask().dataobj) == 1].mean(0), atol=1e-6
    )


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(rows=61), "61 volumes"),
        (dict(start=13.5), "sound at 13.5 s"),
        (dict(tr=2.0), "another TR"),
        (dict(tr=1.49), "another TR"),
    ],
)
def test_runs_that_do_not_fit_together(tmp_path, change, words):
    write(tmp_path, "sub-256")
    write(tmp_path, "sub-260", **change)
    with pytest.raises(ClockError, match=words):
        load_narratives(tmp_path, mask=mask(), cache=tmp_path)


def test_a_run_that_ends_before_its_story(tmp_path):
    write(tmp_path, "sub-256", rows=40)
    with pytest.raises(ClockError, match="ends before its story") as error:
        load_narratives(tmp_path, mask=mask(), cache=tmp_path)
    assert (
        "to 48.0 s" in error.value.found
        and "61.0 s" in error.value.expected
        and "40 volumes" in check_narratives(tmp_path)[0]
    )


def test_tables_that_are_not_what_they_should_be(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,1,2\nc,d,1\n")
    with pytest.raises(DataError, match="line 2"):
        narratives_words(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("a,b,soon,2\n")
    with pytest.raises(DataError, match="'soon'"):
        narratives_words(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("a,b,,\n")
    with pytest.raises(DataError, match="no words"):
        narratives_words(tmp_path / "a.csv")
    (tmp_path / "e.tsv").write_text("onset\tduration\ttrial_type\tstim_file\n0\t1\trest\tn/a\n")
    with pytest.raises(ClockError, match="when its sound began"):
        sound_onset(tmp_path / "e.tsv")
    with pytest.raises(MissingData):
        sound_onset(tmp_path / "none.tsv")


@pytest.mark.parametrize(
    "text, message",
    [
        ('a,a,1,1.2\n"b,b,2,2.2\nc",c,3,3.2\n', "breaks off"),
        ('a,a,1,1.2\n"b,b,2,2.2\n', "not closed"),
        ("a,a,1,1.2\nb,b,2,inf\n", "line 2"),
        ("a,a,1_0,11\n", "has no time"),
        ("a,a,1,\nb,b,2,2.2\n", "has no time"),
        ("a,a,5,5.2\nb,b,3.9,4.2\n", "backwards"),
        ("".join(f"w,w,{400 * k},{400 * k + 200}\n" for k in range(9)), "not in seconds"),
    ],
)
def test_word_times_that_are_wrong_are_refused_by_line(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises((DataError, ClockError), match=message):
        narratives_words(tmp_path / "a.csv")


def test_words_may_start_a_little_before_the_one_above(tmp_path):
    (tmp_path / "a.csv").write_text(f'a,a,5,5.2\n"{"x" * 200_000}, y",b,4.5,5.3\nlost,,,\n')
    words, lost = narratives_words(tmp_path / "a.csv")
    assert words.onset.tolist() == [5, 4.5] and len(words.text[1]) == 200_003 and lost == 1


@pytest.mark.parametrize(
    "rows, message",
    [
        ("nan\t6\ts\ta.wav\n", "no onset"),
        ("1_2\t6\ts\ta.wav\n", "no onset"),
        ("12\t6\ts\n", "line 2"),
        ('3\t1\t"x\tn/a\n12\t60\ts"\ta.wav\n', "on one line"),
    ],
)
def test_events_that_are_wrong_are_refused(tmp_path, rows, message):
    (tmp_path / "e.tsv").write_text("onset\tduration\ttrial_type\tstim_file\n" + rows)
    with pytest.raises(DataError, match=message):
        sound_onset(tmp_path / "e.tsv")


def test_hidden_files_are_left_out_and_said_and_a_channel_is_chosen(tmp_path):
    write(tmp_path, "sub-256")
    image = tmp_path / narratives_run("sub-256", "black")[1]
    image.with_name(f"._{image.name}").write_bytes(b"\0\5\x16\7")
    sound = np.stack([np.full(16_000, 0.25), np.linspace(-0.5, 0.5, 16_000)], 1)
    soundfile.write(tmp_path / narratives_told("black")[1], sound, 16_000, subtype="FLOAT")
    found = load_narratives(tmp_path, mask=mask(), cache=tmp_path, channel=1)
    assert f"1 hidden files or folders are left out: ._{image.name}" in found.notes
    assert any("number 1 of them" in note for note in found.notes)
    kept = soundfile.read(found.stories["black"].audio)[0]
    assert np.abs(kept - sound[:, 1]).max() < 0.02
    assert [f["what"] for f in check_narratives(tmp_path)] == [found.notes[0]]


def test_what_is_missing_is_named(tmp_path):
    write(tmp_path, "sub-256")
    with pytest.raises(MissingData, match="sub-300"):
        load_narratives(tmp_path, ["sub-300"])
    with pytest.raises(MissingData, match="pieman"):
        load_narratives(tmp_path, ["sub-256"], ["pieman"])
    with pytest.raises(ParameterError, match="fsaverage6"):
        load_narratives(tmp_path, space="native")
    (tmp_path / narratives_run("sub-256", "black")[0]).unlink()
    with pytest.raises(MissingData, match="events.tsv"):
        load_narratives(tmp_path)
    assert (
        "events.tsv" in check_narratives(tmp_path)[0]
        and "no runs under" in check_narratives(tmp_path / "empty")[0]
    )


def test_hemispheres_must_have_one_length(tmp_path):
    for side, rows in (("L", 5), ("R", 6)):
        nibabel.save(
            nibabel.gifti.GiftiImage(
                darrays=[nibabel.gifti.GiftiDataArray(np.ones(4, np.float32)) for _ in range(rows)]
            ),
            tmp_path / f"{side}.func.gii",
        )
    with pytest.raises(DataError, match="Hemispheres differ"):
        surface_table([tmp_path / "L.func.gii", tmp_path / "R.func.gii"], tmp_path)


def files_in(folder):
    return [p for p in folder.rglob("*") if p.is_file()]


def clone_of(source, clone):
    "The tables as they are; everything else as links of git-annex."
    for p in files_in(source):
        there = clone / p.relative_to(source)
        there.parent.mkdir(parents=True, exist_ok=True)
        if p.suffix == ".tsv":
            there.write_bytes(p.read_bytes())
            continue
        key = f"MD5E-s{p.stat().st_size}--{hashlib.md5(p.read_bytes()).hexdigest()}{p.suffix}"
        there.symlink_to(f"../.git/annex/objects/a/b/{key}/{key}")
    return clone


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def served(folder):
    "The address of a server of a folder."
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_fetched_with_the_registry_of_a_clone(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    source, registry = tmp_path / "source", tmp_path / "ds002345.csv"
    write(source, "sub-256")
    (source / "stimuli/black_audio.wav").write_bytes(b"sound")
    assert registry_of_clone(clone_of(source, tmp_path / "clone"), registry) == 0
    assert len(read_registry(registry)) == 4
    with served(source) as address:
        settings = dict(data_dir=tmp_path / "data", base_url=address, progress=False)
        folder = fetch_narratives(registry, ["sub-256"], ["black"], **settings)
        assert folder == tmp_path / "data/ds002345"
        for p in files_in(source):
            assert (folder / p.relative_to(source)).read_bytes() == p.read_bytes()
        with pytest.raises(ParameterError, match="not in the registry"):
            fetch_narratives(registry, ["sub-300"], ["black"], **settings)


def test_a_clone_without_sizes_and_md5_is_refused(tmp_path):
    (tmp_path / "sha").mkdir()
    os.symlink(".git/annex/objects/x/SHA256E-s5--00.wav", tmp_path / "sha/a.wav")
    with pytest.raises(DataError, match="no sizes and MD5"):
        registry_of_clone(tmp_path / "sha", tmp_path / "sha.csv")
