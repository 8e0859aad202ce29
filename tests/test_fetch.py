"""Fetching from a file server on this machine: what is kept, what is refused, and what is said;
files converted once."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import h5py
import numpy as np
import pytest
import soundfile

from braintune_nb.core import DataError, MissingData, ParameterError
from braintune_nb.data import fetch, files, lebel2023
from braintune_nb.data.audio import sound_at
from braintune_nb.data.fetch import RECORD, fetch_files, plan_fetch, read_registry
from braintune_nb.data.files import memory_map, sampled_hash
from braintune_nb.data.lebel2023 import (
    TEST_STORY,
    VOXELS,
    check_lebel2023,
    fetch_lebel2023,
    lebel_clock,
    load_lebel2023,
    published_shapes,
    write_lebel2023,
)
from braintune_nb.data.recordings import Dataset, Recording, Space
from braintune_nb.data.stories import Events, Story

FILES = {
    "README": b"made for a test\n",
    "derivative/respdict.json": b'{"souls": 375}',
    "derivative/UTS01/souls.hf5": bytes(range(256)) * 700,
    "derivative/UTS01/avatar.hf5": bytes(reversed(range(256))) * 500,
}
BIG = "derivative/UTS01/souls.hf5"


class Server(ThreadingHTTPServer):
    "Hands out `files`; `faults` names a path's fault; `asked` lists what was asked for."

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.asked = dict(files), {}, []
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self.path.lstrip("/")
        self.server.asked.append(path)
        fault, content = self.server.faults.get(path), self.server.files.get(path)
        if callable(fault):
            fault = fault()
        if fault in (404, 403, 503) or content is None:
            return self.send_error(fault or 404)
        if isinstance(fault, bytes):
            content = fault
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "breaks":
            self.wfile.write(content[: len(content) // 2])
            return
        if fault == "hangs":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            time.sleep(20)
        with contextlib.suppress(ConnectionError):  # who asked has had enough
            self.wfile.write(content)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(FILES)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "made.csv"
    path.write_text(
        "path,bytes,md5\n"
        + "".join(f"{n},{len(d)},{hashlib.md5(d).hexdigest()}\n" for n, d in FILES.items())
    )
    return path


@pytest.fixture
def get(server, table, tmp_path):
    return lambda *a, **k: fetch_files(
        table, *a, **{"data_dir": tmp_path, "base_url": server.address, "progress": False, **k}
    )


def tree(folder):
    return (
        {
            str(p.relative_to(folder)): p.read_bytes()
            for p in folder.rglob("*")
            if p.is_file() and p.name != RECORD
        }
        if folder.exists()
        else {}
    )


# ---- what arrives


def test_all_files_arrive_and_nothing_else(get, server):
    assert tree(get()) == FILES and sorted(server.asked) == sorted(FILES)


def test_a_second_call_asks_for_nothing(get, server):
    get()
    server.asked.clear()
    assert tree(get()) == FILES and server.asked == []


def test_an_interrupted_fetch_is_resumed_file_by_file(get, server, tmp_path):
    server.faults[BIG] = "breaks"
    with pytest.raises(DataError, match="arrived short") as error:
        get()
    assert (
        BIG in str(error.value)
        and str(len(FILES[BIG])) in error.value.expected
        and "repeat the command" in error.value.next_step
    )
    assert set(tree(tmp_path / "made")) == {
        "README",
        "derivative/respdict.json",
    }  # no half file, nothing under way
    server.faults.clear()
    server.asked.clear()
    assert tree(get()) == FILES and server.asked == [BIG, "derivative/UTS01/avatar.hf5"]


def test_a_connection_that_breaks_is_tried_again(get, server):
    answers = iter(["breaks", 503, None])
    server.faults[BIG] = lambda: next(answers)
    assert tree(get([BIG])) == {BIG: FILES[BIG]} and server.asked == [BIG] * 3


OTHER = FILES[BIG][:-1] + b"!"
POINTER = "git-annex or git-lfs pointer"
LFS = b"version https://git-lfs.github.com/spec/v1\n"
WRONG = {  # what comes, the error, its words, and what it says was found
    "hash": (OTHER, DataError, "another content", hashlib.md5(OTHER).hexdigest()),
    "short": (FILES[BIG][:-9], DataError, "arrived short", str(len(FILES[BIG]) - 9)),
    "long": (FILES[BIG] + b"more", DataError, "longer than it is", str(len(FILES[BIG]) + 4)),
    "annex": (b"/annex/objects/MD5E-s179200--00aa.hf5\n", DataError, POINTER, "MD5E-s179200"),
    "lfs": (LFS, DataError, POINTER, "git-lfs"),
    "page": (b"<!doctype html><title>Log in</title>", DataError, "a web page", "36 bytes"),
    "404": (404, MissingData, "does not hand out", "HTTP 404"),
    "403": (403, MissingData, "does not hand out", "HTTP 403"),
}


@pytest.mark.parametrize("fault, kind, words, found", WRONG.values(), ids=WRONG)
def test_what_a_server_may_do_wrong(get, server, tmp_path, fault, kind, words, found):
    server.faults[BIG] = fault
    with pytest.raises(kind, match=words) as error:
        get([BIG])
    assert (
        found in error.value.found
        and str(error.value.file).endswith(BIG)
        and error.value.expected
        and error.value.next_step
    )
    assert tree(tmp_path / "made") == {}


def test_a_server_that_is_not_there(get):
    with pytest.raises(MissingData, match="cannot be reached") as error:
        get([BIG], base_url="http://127.0.0.1:9", tries=2)
    assert "continues" in error.value.next_step


def test_a_killed_fetch_leaves_no_half_file(server, table, tmp_path):
    server.faults[BIG] = "hangs"
    code = (
        f"from braintune_nb.data.fetch import fetch_files; fetch_files({str(table)!r},"
        f" data_dir={str(tmp_path)!r}, base_url={server.address!r}, progress=False)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "NO_PROXY": "127.0.0.1"}
    )
    while BIG not in server.asked:
        time.sleep(0.05)
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert BIG not in tree(tmp_path / "made") and list((tmp_path / "made").glob(".fetching-*"))
    server.faults.clear()
    server.asked.clear()
    assert (
        tree(fetch_files(table, data_dir=tmp_path, base_url=server.address, progress=False))
        == FILES
    )
    assert server.asked == [BIG, "derivative/UTS01/avatar.hf5"] and not list(
        (tmp_path / "made").glob(".fetching-*")
    )


# ---- what is there already


@pytest.mark.parametrize(
    "there, found",
    [
        (b"short", "5 bytes"),
        (FILES[BIG][:-1] + b"?", "MD5 "),
        (b"/annex/objects/MD5E-s1--0.hf5\n", "pointer"),
        ("link", "pointer"),
        ("nowhere", "link to nothing"),
    ],
    ids=["size", "hash", "pointer", "annex link", "dead link"],
)
def test_a_file_that_does_not_verify_is_not_overwritten(get, server, tmp_path, there, found):
    path = tmp_path / "made" / BIG
    path.parent.mkdir(parents=True)
    if there == "link":
        path.symlink_to("../../.git/annex/objects/aa/MD5E-s1--0.hf5")
    elif there == "nowhere":
        path.symlink_to("gone.hf5")
    else:
        path.write_bytes(there)
    with pytest.raises(DataError, match="is not what the registry says") as error:
        get()
    assert (
        found in error.value.found
        and hashlib.md5(FILES[BIG]).hexdigest() in error.value.expected
        and "replace=True" in error.value.next_step
        and server.asked == []
    )
    assert path.is_symlink() or path.read_bytes() == there
    assert tree(get(replace=True)) == FILES and not path.is_symlink()


def test_a_failed_replacement_keeps_the_old_file(get, server, tmp_path):
    path = tmp_path / "made" / BIG
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    server.faults[BIG] = FILES[BIG][:-2]
    with pytest.raises(DataError, match="arrived short"):
        get(replace=True)
    assert path.read_bytes() == b"mine"


def test_verified_files_are_not_read_again_until_they_change(get, table, tmp_path, monkeypatch):
    folder, read = get(), []
    monkeypatch.setattr(
        fetch,
        "md5_of",
        lambda path: read.append(path.name) or hashlib.md5(path.read_bytes()).hexdigest(),
    )
    assert plan_fetch(table, data_dir=tmp_path).missing == [] and read == []
    (folder / BIG).write_bytes(FILES[BIG][:-1] + b"!")
    os.utime(folder / BIG, ns=(1, 1))
    assert list(plan_fetch(table, data_dir=tmp_path).wrong) == [BIG] and read == ["souls.hf5"]
    read.clear()
    plan_fetch(table, data_dir=tmp_path, reread=True)
    assert len(read) == 4
    (folder / RECORD).write_text("{broken")
    assert list(plan_fetch(table, data_dir=tmp_path).wrong) == [BIG]


def other_bytes(path):
    "Another content of the same size and age."
    old = path.stat()
    path.write_bytes(FILES[BIG][:-1] + b"!")
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))


def test_a_record_is_no_evidence(get, server, table, tmp_path):
    "Neither one that came with a copy of the folder, nor one that is older than the file."
    folder = get()
    wrong = lambda: plan_fetch(table, data_dir=tmp_path).wrong
    record = json.loads((folder / RECORD).read_text())
    other_bytes(folder / BIG)
    assert wrong() == {BIG: f"MD5 {hashlib.md5(FILES[BIG][:-1] + b'!').hexdigest()}"}
    about, right = (folder / BIG).stat(), hashlib.md5(FILES[BIG]).hexdigest()
    entries = (
        [about.st_size, about.st_mtime_ns, right],
        {"key": record[BIG]["key"], "md5": right},
        {"md5": right},
        "verified",
        None,
    )
    records = [json.dumps({**record, BIG: told}) for told in entries]
    for text in (*records, "[]", "3", "null", '{"a": 1, "a": 2}'):
        (folder / RECORD).write_text(text)
        assert list(wrong()) == [BIG], text


def test_a_download_stops_at_the_registered_size(get, server, tmp_path):
    "A server that never ends does not fill the disk."
    server.faults[BIG] = FILES[BIG] + bytes(30_000_000)
    largest = []
    watch = threading.Thread(target=watch_sizes, args=(tmp_path / "made", largest), daemon=True)
    watch.start()
    with pytest.raises(DataError, match="longer than it is") as error:
        get([BIG])
    assert int(error.value.found.split()[0]) <= len(FILES[BIG]) + 2**16
    largest.append(None)
    watch.join()
    assert max(filter(None, largest), default=0) <= len(FILES[BIG])
    assert tree(tmp_path / "made") == {}


def watch_sizes(folder, largest):
    while None not in largest:
        for path in folder.rglob("*"):
            try:
                largest.append(path.stat().st_size if path.is_file() else 0)
            except OSError:
                pass


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "http://[::bad/p", "ftp://x/y", "p", "http://", "http:///p"]
)
def test_what_is_no_address_of_the_web_is_refused(tmp_path, address):
    with pytest.raises(ParameterError, match="no address of the web"):
        fetch.fetch_recorded({"p": address}, tmp_path / "e", progress=False, tries=1)
    assert not (tmp_path / "e" / "p").exists()


def test_fetched_files_have_the_permissions_of_any_file(get, tmp_path):
    old = os.umask(0o027)
    try:
        folder = get()
    finally:
        os.umask(old)
    assert {p.stat().st_mode & 0o777 for p in folder.rglob("*") if p.is_file()} == {0o640}


def test_a_registry_that_is_no_text(tmp_path):
    (tmp_path / "r.csv").write_bytes(b"path,bytes,md5\nf\xff,1," + b"0" * 32 + b"\n")
    with pytest.raises(DataError, match="not a table"):
        read_registry(tmp_path / "r.csv")


# ---- room


def full(monkeypatch, free):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**12, 10**12 - free, free)
    )


def test_no_room_is_said_before_the_server_is_asked(get, server, tmp_path, monkeypatch):
    full(monkeypatch, 3000)
    with pytest.raises(DataError, match="no room") as error:
        get()
    assert (
        "GB free" in error.value.found
        and "4 files" in error.value.expected
        and server.asked == []
        and not (tmp_path / "made").exists()
    )


def test_a_disk_that_fills_up_on_the_way(get, tmp_path, monkeypatch):
    def replace(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch.os, "replace", replace)
    with pytest.raises(DataError, match="disk is full"):
        get([BIG])
    assert tree(tmp_path / "made") == {}


def test_no_room_for_a_memory_map(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "x.hf5", "w") as f:
        f["data"] = np.ones((100, 50))
    full(monkeypatch, 10_000)
    with pytest.raises(DataError, match="no room for the memory map"):
        memory_map(tmp_path / "x.hf5", "data", tmp_path / "kept")


# ---- registries


@pytest.mark.parametrize(
    "line",
    [
        "../x,1," + "a" * 32,
        "/etc/x,1," + "a" * 32,
        "a/../../x,1," + "a" * 32,
        "x,one," + "a" * 32,
        "x,1,aa",
        "x,-1," + "a" * 32,
        "x,1",
    ],
)
def test_a_bad_registry_names_the_line(tmp_path, line):
    (tmp_path / "r.csv").write_text(f"path,bytes,md5\nok,3,{'b' * 32}\n{line}\n")
    with pytest.raises(DataError, match="cannot be used") as error:
        read_registry(tmp_path / "r.csv")
    assert error.value.place == "line 3"


def test_a_link_does_not_lead_out_of_the_folder(get, server, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "made/derivative").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="leads out of"):
        get()
    assert not list((tmp_path / "elsewhere").iterdir()) and server.asked == []


def test_unknown_names(get):
    with pytest.raises(ParameterError, match="did you mean README"):
        get(["READMEE"])
    with pytest.raises(ParameterError, match="no registry"):
        fetch_files("ds999999")


@pytest.mark.parametrize(
    "dataset, count, size", [("ds003020", 792, 137_202_807_786), ("ds003643", 1089, None)]
)
def test_shipped_registries(dataset, count, size):
    files = read_registry(dataset)
    assert (
        len(files) == count
        and list(files) == sorted(files)
        and (size is None or sum(f.size for f in files.values()) == size)
    )


# ---- ds003020 with the registry's own hashes


def test_small_public_files_with_their_real_hashes(real_data, server, tmp_path):
    source = real_data / "ds003020"
    server.files = {
        p: (source / p).read_bytes() for p in lebel2023.LEBEL_ALWAYS if (source / p).is_file()
    }
    if len(server.files) < 5:
        pytest.skip(
            "the small files of ds003020 (openneuro.org/datasets/ds003020) are not all under"
            " BRAINTUNE_DATA"
        )
    settings = dict(
        stories=["souls"], what=(), data_dir=tmp_path, base_url=server.address, progress=False
    )
    folder = fetch_lebel2023(["UTS01"], **settings)
    assert (
        tree(folder) == server.files
        and json.loads((folder / "derivative/respdict.json").read_text())["souls"] == 375
    )
    (folder / "derivative/respdict.json").unlink()
    server.faults["derivative/respdict.json"] = server.files["derivative/respdict.json"].replace(
        b"375", b"376"
    )
    with pytest.raises(DataError, match="another content"):
        fetch_lebel2023(["UTS01"], **settings)


def test_the_plan_is_printed_first(tmp_path, capsys):
    fetch_lebel2023(["UTS04"], None, ["responses"], data_dir=tmp_path, dry_run=True)
    assert capsys.readouterr().out.startswith("ds003020: 31 files, 9.4") and not list(
        tmp_path.iterdir()
    )


# ---- the published shapes are enforced


def as_published(folder, columns, participant="UTS05", repeats=5, story=TEST_STORY):
    "A folder with the counts of the published data set and one story of `columns` columns."
    rng, clock = np.random.default_rng(5), lebel_clock(published_shapes()["UTS01"][story][1] + 20)
    onset = 0.5 * np.arange(1000.0)
    told = Story(story, "en", Events(onset, onset + 0.4, ("where",) * 1000), clock)
    r = rng.standard_normal((repeats, len(clock), columns)).astype(np.float32)
    write_lebel2023(
        folder,
        Dataset(
            "x",
            {story: told},
            {
                participant: {
                    story: Recording(
                        participant,
                        told,
                        r.mean(0),
                        Space("v", "voxel", np.arange(columns)),
                        r if repeats > 1 else None,
                    )
                }
            },
        ),
    )
    (folder / "braintune.json").unlink()
    (folder / f"braintune/{participant}_space.npz").unlink()
    (folder / "derivative/respdict.json").write_text(
        json.dumps({s: T + 20 for s, (_, T, _) in published_shapes()["UTS01"].items()})
    )
    return folder


def test_a_wrong_number_of_voxels_is_refused(tmp_path):
    as_published(tmp_path, 6)
    with pytest.raises(DataError, match="do not have the voxels") as error:
        load_lebel2023(tmp_path)
    assert (error.value.found, error.value.expected, error.value.place) == (
        "6 columns",
        "99322 columns",
        TEST_STORY,
    )
    assert any("99322" in f for f in check_lebel2023(tmp_path))


@pytest.mark.parametrize("repeats", [1, 4, 6])
def test_a_wrong_number_of_repeats_is_refused(tmp_path, monkeypatch, repeats):
    monkeypatch.setitem(VOXELS, "UTS05", 6)
    as_published(tmp_path, 6, repeats=repeats)
    with pytest.raises(DataError, match="5 repeats"):
        load_lebel2023(tmp_path)


def test_the_right_shapes_are_taken_and_uts04_lacks_no_story(tmp_path, monkeypatch):
    for who in ("UTS04", "UTS05"):
        monkeypatch.setitem(VOXELS, who, 6)
    as_published(tmp_path, 6, "UTS05", 1, "life")
    as_published(tmp_path, 6)
    as_published(tmp_path, 6, "UTS04")
    assert check_lebel2023(tmp_path) == [] and set(load_lebel2023(tmp_path, ["UTS05"]).stories) == {
        "life",
        TEST_STORY,
    }


def test_large_files_become_memory_maps_with_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setitem(VOXELS, "UTS05", 6)
    as_published(tmp_path / "x", 6)
    plain = load_lebel2023(tmp_path / "x", cache=tmp_path / "kept").recordings["UTS05"][TEST_STORY]
    assert not list((tmp_path / "kept").rglob("*.npy"))
    monkeypatch.setattr(files, "MAP_ABOVE", 100)
    mapped = load_lebel2023(tmp_path / "x", cache=tmp_path / "kept").recordings["UTS05"][TEST_STORY]
    assert isinstance(mapped.responses, np.memmap) and isinstance(mapped.repeats, np.memmap)
    assert np.array_equal(plain.responses, mapped.responses) and np.array_equal(
        plain.repeats, mapped.repeats
    )


# ---- files converted once


@pytest.mark.parametrize(
    "shape, dtype, settings",
    [
        ((37, 11), "f8", {}),
        ((3, 20, 7), "f8", {}),
        ((37, 11), "f4", {}),
        ((37, 11), ">f8", {}),
        ((37, 11), "f2", {}),
        ((3, 20, 7), "f8", dict(chunks=(1, 6, 7))),
        ((37, 11), "f8", dict(compression="gzip")),
    ],
)
@pytest.mark.parametrize("block", [100, 2**22])
def test_every_storage_gives_the_same_numbers(tmp_path, monkeypatch, shape, dtype, settings, block):
    monkeypatch.setattr(files, "BLOCK", block)
    x = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    x[..., 4:, 3] = np.nan
    with h5py.File(tmp_path / "x.hf5", "w") as f:
        f["other"] = np.arange(13.0)
        f.create_dataset("data", data=x, **settings)
    mapped, nan = memory_map(tmp_path / "x.hf5", "data", tmp_path)
    assert nan == 1 and np.array_equal(mapped, x.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("values", [[[3.0, np.inf], [np.nan, -np.inf]], [[3.0, 4e38], [np.nan, 1]]])
def test_infinities_are_refused_and_not_taken_for_nan(tmp_path, values):
    with h5py.File(tmp_path / "x.hf5", "w") as f:
        f["data"] = np.array(values)
    with pytest.raises(DataError, match="infinite in single precision") as error:
        memory_map(tmp_path / "x.hf5", "data", tmp_path / "kept")
    assert error.value.place == "data, row 0, column 1"
    assert not list((tmp_path / "kept").iterdir())


def test_a_changed_source_is_converted_again(tmp_path):
    path = tmp_path / "x.hf5"
    for value in (1.5, 2.5):
        with h5py.File(path, "w") as f:
            f["data"] = np.full((5, 4), value)
        assert (memory_map(path, "data", tmp_path)[0] == value).all()


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-8], lambda b: b[:200] + bytes(len(b) - 200), lambda b: b""],
    ids=["short", "zeros", "empty"],
)
def test_a_damaged_conversion_is_made_again(tmp_path, damage):
    x = np.random.default_rng(2).standard_normal((200, 300))
    with h5py.File(tmp_path / "x.hf5", "w") as f:
        f["data"] = x
    memory_map(tmp_path / "x.hf5", "data", tmp_path)
    (kept,) = tmp_path.glob("*.npy")
    kept.write_bytes(damage(kept.read_bytes()))
    assert np.array_equal(memory_map(tmp_path / "x.hf5", "data", tmp_path)[0], x.astype(np.float32))


def test_a_source_that_ends_early(tmp_path):
    with h5py.File(tmp_path / "x.hf5", "w") as f:
        f["data"] = np.ones((200, 300))
    os.truncate(tmp_path / "x.hf5", 100_000)
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        memory_map(tmp_path / "x.hf5", "data", tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


def test_conversion_takes_the_memory_of_a_block(tmp_path):
    code = textwrap.dedent(f"""
        import resource, h5py, numpy as np
        from braintune_nb.data.files import memory_map
        path = {str(tmp_path / "x.hf5")!r}
        with h5py.File(path, "w") as f:
            data = f.create_dataset("data", (400, 20000), "f8")
            for k in range(0, 400, 50): data[k:k + 50] = 1.25
        with h5py.File(path) as f: f["data"][:1]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory_map(path, "data", {str(tmp_path / "kept")!r})
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)""")
    extra = float(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
    )
    assert extra < 12, extra  # MB, for a file of 64 MB: a block of 4 MB and its half in float32


def assert_made_once(folder, made):
    "The same file is there when it is asked for again."
    first = made.stat().st_mtime_ns
    assert sound_at(folder / "x.wav", folder=folder)[0].stat().st_mtime_ns == first


@pytest.mark.parametrize("rate, channels", [(44100, 2), (22050, 1), (16000, 2), (8000, 1)])
def test_any_sound_becomes_16_khz_mono(tmp_path, rate, channels):
    tone = lambda rate: np.sin(2 * np.pi * 300 * np.arange(2 * rate) / rate)
    loudness = [0.2, 0.4][:channels]
    soundfile.write(tmp_path / "x.wav", np.stack([a * tone(rate) for a in loudness], 1), rate)
    path, note = sound_at(tmp_path / "x.wav", folder=tmp_path)
    samples, found = soundfile.read(path)
    assert found == 16000 and samples.shape == (32000,)
    assert f"{rate} Hz" in note and path.suffix == ".au"
    wanted = np.mean(loudness) * tone(16000)
    assert np.abs(samples - wanted)[500:-500].max() < 2e-3
    assert_made_once(tmp_path, path)


def test_sound_that_ends_early_or_is_no_sound(tmp_path, monkeypatch):
    monkeypatch.setitem(VOXELS, "UTS05", 6)
    as_published(tmp_path, 6)
    (tmp_path / "stimuli").mkdir()
    wav = tmp_path / f"stimuli/{TEST_STORY}.wav"
    soundfile.write(wav, np.zeros(16000 * 9), 16000)
    assert any(
        "sound ends at 9.00 s, the last word at 499.90 s" in n
        for n in load_lebel2023(tmp_path).notes
    )
    assert any("sound ends at 9.00 s" in f for f in check_lebel2023(tmp_path))
    wav.write_bytes(b"not a sound at all")
    with pytest.raises(DataError, match="sound file cannot be read"):
        load_lebel2023(tmp_path)
    wav.write_text("/annex/objects/MD5E-s9--0.wav\n")
    with pytest.raises(DataError, match="git-annex pointer"):
        load_lebel2023(tmp_path)


def test_keys_see_every_part_of_small_files_and_samples_of_large_ones(tmp_path):
    path = tmp_path / "x"
    for size in (0, 1, 5000, 10**6):
        content = bytes(np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8))
        path.write_bytes(content)
        first = sampled_hash(path)
        for place in {0: (), 1: (0,), 5000: (0, 2500, 4999)}.get(size, (0, size - 1)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            assert sampled_hash(path) != first
        path.write_bytes(content + b"x")
        assert sampled_hash(path) != first


# ---- the command


def call(capsys, *words):
    from braintune_nb.cli import main

    with pytest.raises(SystemExit) as stop:
        main([str(w) for w in words])
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def test_the_command_fetches_and_verifies(real_data, server, tmp_path, capsys):
    source = real_data / "ds003020"
    server.files = {
        p: (source / p).read_bytes() for p in lebel2023.LEBEL_ALWAYS if (source / p).is_file()
    }
    if len(server.files) < 5:
        pytest.skip(
            "the small files of ds003020 (openneuro.org/datasets/ds003020) are not all under"
            " BRAINTUNE_DATA"
        )
    words = (
        "fetch",
        "lebel2023",
        "--participant",
        "UTS01",
        "--story",
        "souls",
        "--what",
        "textgrids",
        "--data-dir",
        tmp_path,
        "--base-url",
        server.address,
    )
    code, out, err = call(capsys, *words)
    assert (
        code == 1 and "HTTP 404" in err and "souls.TextGrid" in err and "6 files" in out
    )  # the grid is not among the small files
    code, out, err = call(capsys, *words, "--dry-run")
    assert code == 0 and "6 files" in out and "1 of them" in out


@pytest.mark.parametrize(
    "words, code, said",
    [
        (("fetch", "lebel"), 2, "did you mean lebel2023"),
        (("fetch", "lebel2023"), 2, "--participant"),
        (("fetch", "lebel2023", "--participant", "UTS77"), 2, "UTS77"),
        (("fetch", "lebel2023", "--participant", "UTS04", "--story", "life"), 1, "did not hear"),
        (("fetch", "littleprince", "--participant", "sub-EN057", "--story", "x"), 2, "1 to 9"),
        (
            ("fetch", "lebel2023", "--participant", "UTS01", "--what", "sound"),
            2,
            "responses, textgrids",
        ),
    ],
)
def test_the_command_refuses(capsys, tmp_path, words, code, said):
    found, _, err = call(capsys, *words, "--data-dir", tmp_path)
    assert found == code and said in err
