"""Small valid files of every target, written without the package wherever a format is public."""

import csv
import hashlib
import io
import json
import math
import wave
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

TR, TRIM_LEBEL, TRIM_BILINGUAL = (
    2.0,
    20,
    (10, 10),
)  # s; TRs that respdict counts beyond a file; rows
WORDS = "the old king said 'go' and nobody moved for a while until two birds began to sing".split()
CHINESE = "老 国王 说 走 吧 没有 人 动 直到 两 只 鸟 开始 唱歌".split()


@dataclass(frozen=True)
class Seed:
    "A folder that the product reads, its file that is mutated, and what the reader is told."

    target: str
    name: str
    root: Path  # pristine folder
    file: str  # relative path of the file that is mutated; '' where any file of the folder may be
    context: dict = field(default_factory=dict)


def timed_words(words=WORDS, start=0.31, n=None):
    "Rows (onset, offset, label) with pauses between some of them."
    rows, at = [], start
    for i in range(n or len(words)):
        length = 0.11 + 0.013 * (i % 7)
        rows.append((round(at, 4), round(at + length, 4), words[i % len(words)]))
        at += length + (0.37 if i % 4 == 3 else 0)
    return rows


def phones_of(words):
    "Two phones a word."
    rows = []
    for i, (onset, offset, _) in enumerate(words):
        middle = round(onset + 0.4 * (offset - onset), 4)
        rows += [(onset, middle, f"K{i % 3}"), (middle, offset, "AH1")]
    return rows


def filled(rows, end):
    "The same with empty intervals in the gaps, from 0 to `end`."
    whole, at = [], 0.0
    for onset, offset, label in rows:
        if onset > at:
            whole.append((at, onset, ""))
        whole.append((onset, offset, label))
        at = offset
    return whole + ([(at, end, "")] if end > at else [])


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


def long_grid(tiers, end, start=0):
    "A TextGrid in the long form; a tier of pairs (time, mark) is a point tier."
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", f"xmin = {start}"]
    lines += [f"xmax = {end}", "tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, rows) in enumerate(tiers, 1):
        lines += long_tier(number, name, rows, start, end)
    return "\n".join(lines) + "\n"


def long_tier(number, name, rows, start, end):
    "Lines of one tier of the long form."
    point = len(rows[0]) == 2
    kind, what = ("TextTier", "points") if point else ("IntervalTier", "intervals")
    lines = [f"    item [{number}]:", f'        class = "{kind}"']
    lines += [f"        name = {quoted(name)}", f"        xmin = {start}"]
    lines += [f"        xmax = {end}", f"        {what}: size = {len(rows)}"]
    for i, row in enumerate(rows, 1):
        times = ["number"] if point else ["xmin", "xmax"]
        lines.append(f"        {what} [{i}]:")
        lines += [f"            {key} = {value}" for key, value in zip(times, row)]
        lines.append(f"            {'mark' if point else 'text'} = {quoted(row[-1])}")
    return lines


def short_grid(tiers, end, start=0):
    "The same in the short form."
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", str(start), str(end)]
    lines += ["<exists>", str(len(tiers))]
    for name, rows in tiers:
        kind = "TextTier" if len(rows[0]) == 2 else "IntervalTier"
        lines += [f'"{kind}"', quoted(name), str(start), str(end), str(len(rows))]
        for row in rows:
            lines += [*map(str, row[:-1]), quoted(row[-1])]
    return "\n".join(lines) + "\n"


def chronological_grid(tiers, end, start=0):
    "The same in the chronological form."
    lines = ['"Praat chronological TextGrid text file"', f"{start} {end}   ! Time domain."]
    lines += [f"{len(tiers)}   ! Number of tiers."]
    lines += [f'"IntervalTier" {quoted(name)} {start} {end}' for name, _ in tiers]
    events = [(*row, i) for i, (_, rows) in enumerate(tiers, 1) for row in rows]
    for onset, offset, label, i in sorted(events, key=lambda e: (e[0], e[3])):
        lines += [f"{i} {onset} {offset}", quoted(label)]
    return "\n".join(lines) + "\n"


def tiers_of_words(end):
    "Tiers of phones and words, of labels that are awkward and legal, of Chinese words, as of MFA."
    words = timed_words(n=24)
    odd = list(words)
    odd[3], odd[5] = (*odd[3][:2], 'he said "no"'), (*odd[5][:2], "two\nlines")
    odd[7] = (*odd[7][:2], "naïve – Ω")
    chinese = timed_words(CHINESE, n=20)
    phones = filled(phones_of(words), end)
    two = [("phone", phones), ("word", filled(words, end))]
    strange = [("word", filled(odd, end)), ("tone", [(0.5, "H*"), (1.25, "L-L%")])]
    mfa = [("words", filled(words, end)), ("phones", phones)]
    return two, strange, [("word", filled(chinese, end))], mfa


def grids():
    "Name -> text and encoding of TextGrids in three forms."
    end = 8.0
    two, strange, chinese, mfa = tiers_of_words(end)
    late = [("word", [(2.5, 3.0, "a"), (3.0, 3.75, ""), (3.75, 4.5, "b")])]
    return {
        "long": (long_grid(two, end), "utf-8"),
        "long_quotes_points": (long_grid(strange, end), "utf-8"),
        "long_utf16": (long_grid(chinese, end), "utf-16"),
        "long_mfa": (long_grid(mfa, end), "utf-8"),
        "long_late_start": (long_grid(late, 4.5, 2.5), "utf-8"),
        "short": (short_grid(two, end), "utf-8"),
        "short_quotes_points": (short_grid(strange, end), "utf-8"),
        "short_utf16be": (short_grid(chinese, end), "utf-16-be"),
        "chronological": (chronological_grid(two, end), "utf-8"),
        "chronological_bom": (chronological_grid(mfa, end), "utf-8-sig"),
    }


def textgrids(folder):
    "TextGrids in three forms, several encodings, with labels that are awkward and legal."
    for name, (text, encoding) in grids().items():
        (folder / name).mkdir(parents=True)
        (folder / name / "story.TextGrid").write_bytes(text.encode(encoding))
        yield Seed("textgrid", name, folder / name, "story.TextGrid")


def log_lines(n=30, tr=TR, first="first trigger", label="trigger", start=10.03):
    "Rows (seconds, label) of a scanner log."
    rows = [(tr * i, first if i == 0 else label) for i in range(n)]
    return sorted([*rows, (start, "sound-start")])


def scanner_logs(folder):
    "Logs of two labs, with and without the words that were shown."
    plain = log_lines()
    stopped = sorted([*log_lines(40, 2.0045), (71.37, "sound-stop")])
    init = log_lines(25, 1.5, "init-trigger", "trigger", 6.25)
    shown = [(12.4 + 0.41 * i, f"word {w}") for i, w in enumerate(WORDS)]
    read = [(t, "START" if k == "sound-start" else k) for t, k in log_lines(32, 2.0045)]
    read = sorted([*read, *shown, (60.5, "END")])
    for name, rows in dict(plain=plain, stopped=stopped, init=init, reading=read).items():
        (folder / name).mkdir(parents=True)
        text = "".join(f"{t:.6f} {label}\n" for t, label in rows)
        (folder / name / "story.report").write_text(text)
        yield Seed("scanner_log", name, folder / name, "story.report")


def table_text(header, rows, delimiter):
    "A table as the csv module writes it."
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerows([header, *rows])
    return out.getvalue()


def tables_of_words():
    "Name -> header, rows and delimiter of word tables."
    words, names = timed_words(n=26), ["onset", "offset", "text"]
    speech = [list(w) for w in words]
    speech[4][2], speech[9][2], speech[11][2] = 'he said "go"', "ten, or so", "naïve"
    more = [[i, w[2], w[0], w[1], "NN"] for i, w in enumerate(words)]
    chinese = [[c, a, b] for a, b, c in timed_words(CHINESE)]
    return {
        "comma.csv": (names, [*map(list, words)], ","),
        "quoted.csv": (names, speech, ","),
        "tab.tsv": (names, [*map(list, words)], "\t"),
        "more.tsv": (["number", "text", "onset", "offset", "pos"], more, "\t"),
        "chinese.csv": (["text", "onset", "offset"], chinese, ","),
    }


def word_tables(folder):
    "Word tables with commas and tabs, quoted cells, other columns."
    for name, (header, rows, delimiter) in tables_of_words().items():
        (folder / name).mkdir(parents=True)
        (folder / name / name).write_text(table_text(header, rows, delimiter), encoding="utf8")
        yield Seed("word_table", name, folder / name, name, {"delimiter": delimiter})


def splits(folder):
    "Splits with all roles, with few of them, with a reason for sharing."
    from targets import split_keys

    keys = split_keys()
    roles = (["avatar", "legacy"], ["naked"], ["souls", "alice/1"], ["wheretheressmoke"])
    whole = dict(zip(keys, (*roles, ["UTS01", "UTS02"], ["UTS03"], "")))
    few = dict(tuning=["a_en", "b_en"], test=["c_en"])
    shared = whole | dict(encoding=["avatar", "legacy"], shared="the authors' own split")
    for name, record in dict(whole=whole, few=few, shared=shared).items():
        (folder / name).mkdir(parents=True)
        (folder / name / "split.json").write_text(json.dumps(record, indent=1))
        yield Seed("split_json", name, folder / name, "split.json", {"people": keys[4:6]})


def story_grid(path, seconds):
    "A TextGrid with tiers `phone` and `word` that covers `seconds`."
    path.parent.mkdir(parents=True, exist_ok=True)
    words = [(k + 0.1, k + 0.6, WORDS[int(k) % len(WORDS)]) for k in range(int(seconds) - 1)]
    end = float(math.ceil(seconds))
    tiers = [("phone", filled(phones_of(words), end)), ("word", filled(words, end))]
    path.write_text(long_grid(tiers, end))


def responses(rows, columns, seed, offset=0.0):
    "Numbers that are all different, (rows, columns)."
    return np.random.default_rng(seed).standard_normal((rows, columns)) + offset


def write_hdf5(path, **arrays):
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as f:
        for name, array in arrays.items():
            f[name] = array


LEBEL_ROWS = {"souls": 24, "naked": 19}  # story -> T
PREPROCESSED = "derivative/preprocessed_data/UTS01"


def lebel_folder(root, dtype=np.float64, repeats=False):
    "Two stories of one participant in the layout of ds003020."
    counts = {story: rows + TRIM_LEBEL for story, rows in LEBEL_ROWS.items()}
    (root / "derivative").mkdir(parents=True)
    (root / "derivative" / "respdict.json").write_text(json.dumps(counts))
    for k, (story, rows) in enumerate(LEBEL_ROWS.items()):
        story_grid(root / "derivative" / "TextGrids" / f"{story}.TextGrid", 2 * rows + 12)
        arrays = dict(data=responses(rows, 7, 10 + k).astype(dtype))
        if repeats and story == "souls":
            each = [responses(rows, 7, 40 + i) for i in range(3)]
            arrays["individual_repeats"] = np.stack(each).astype(dtype)
            arrays["data"] = arrays["individual_repeats"].mean(0).astype(dtype)
        write_hdf5(root / PREPROCESSED / f"{story}.hf5", **arrays)
    return root


def respdicts(folder):
    "respdict.json in a folder whose stories it counts."
    root = lebel_folder(folder / "two")
    counts = {story: rows + TRIM_LEBEL for story, rows in LEBEL_ROWS.items()}
    yield Seed(
        "respdict_json",
        "two",
        root,
        "derivative/respdict.json",
        {"rows": LEBEL_ROWS, "trs": counts},
    )


def hdf5_lebel(folder):
    "Responses of one story, with and without repeats."
    settings = {"double": (np.float64, False), "single": (np.float32, False)}
    settings |= {"repeats": (np.float64, True), "repeats_single": (np.float32, True)}
    settings |= {"mapped": (np.float64, False), "mapped_repeats": (np.float32, True)}
    for name, (dtype, repeats) in settings.items():
        root = lebel_folder(folder / name, dtype, repeats)
        told = {"trs": LEBEL_ROWS["souls"], "voxels": 7, "mapped": name.startswith("mapped")}
        yield Seed("hdf5_lebel", name, root, f"{PREPROCESSED}/souls.hf5", told)


BILINGUAL_ROWS = {"souls": 44, "naked": 37, "wheretheressmoke": 31}  # story -> triggers


def bilingual_folder(root, dtype):
    "Three stories of one participant in the layout of the bilingual narratives."
    for story, rows in BILINGUAL_ROWS.items():
        story_grid(root / "en" / "TextGrids" / f"{story}.TextGrid", 2 * rows - 45)
        (root / "en" / "reports").mkdir(parents=True, exist_ok=True)
        text = "".join(f"{t:.6f} {label}\n" for t, label in log_lines(rows, 2.0, start=20.0))
        (root / "en" / "reports" / f"{story}.report").write_text(text)
    trn = {
        s: responses(BILINGUAL_ROWS[s], 6, 70 + i).astype(dtype)
        for i, s in enumerate(("souls", "naked"))
    }
    val = np.stack([responses(BILINGUAL_ROWS["wheretheressmoke"], 6, 80 + i) for i in range(2)])
    write_hdf5(root / "en" / "subject01_listening_fmri_data_trn.hdf", **trn)
    write_hdf5(
        root / "en" / "subject01_listening_fmri_data_val.hdf", wheretheressmoke=val.astype(dtype)
    )
    return root


def hdf5_bilingual(folder):
    "The file of stories heard once, and the one of the story heard twice."
    for role in ("trn", "val"):
        for name, dtype in dict(double=np.float64, single=np.float32).items():
            root = bilingual_folder(folder / f"{role}_{name}", dtype)
            told = {"role": role, "trs": BILINGUAL_ROWS, "trim": TRIM_BILINGUAL, "voxels": 6}
            file = f"en/subject01_listening_fmri_data_{role}.hdf"
            yield Seed("hdf5_bilingual", f"{role}_{name}", root, file, told)


AFFINE = np.array([[-3.0, 0, 0, 12.5], [0, 3.0, 0, -20.25], [0, 0, 4.0, -7.5], [0, 0, 0, 1]])


def niftis(folder):
    "Runs over time: floats, scaled integers, big-endian, packed and not."
    import nibabel

    data = responses(4 * 5, 3 * 9, 5, 100.0).reshape(4, 5, 3, 9)
    whole = np.round(data * 10).astype(np.int16)
    for name, array in dict(float32=data.astype("f4"), float64=data, int16=whole).items():
        image = nibabel.Nifti1Image(array, AFFINE)
        image.header.set_xyzt_units("mm", "sec")
        image.header["pixdim"][4] = 1.5
        yield save_image(folder, f"{name}.nii", image)
    image = nibabel.Nifti1Image(data, AFFINE)
    image.set_data_dtype(np.int16)
    yield save_image(folder, "scaled.nii.gz", image)
    big = nibabel.Nifti1Image(data.astype(">f4"), AFFINE, nibabel.Nifti1Header(endianness=">"))
    yield save_image(folder, "big.nii", big)
    two = nibabel.Nifti2Image(data.astype("f4"), AFFINE)
    two.header.set_xyzt_units("mm", "msec")
    two.header["pixdim"][4] = 1500
    yield save_image(folder, "two.nii", two)


def label_images(folder):
    "Parcels and a mask on the grid of a run, which lies beside them."
    import nibabel

    draw = np.random.default_rng(12)
    parcels = draw.integers(0, 5, (4, 5, 3))
    run = nibabel.Nifti1Image(responses(60, 4, 6).reshape(4, 5, 3, 4).astype("f4"), AFFINE)
    made = dict(parcels=parcels.astype("i2"), parcels_float=parcels.astype("f4"))
    made |= dict(mask=(parcels > 1).astype("u1"))
    for name, values in made.items():
        seed = save_image(folder, f"{name}.nii", nibabel.Nifti1Image(values, AFFINE))
        run.to_filename(seed.root / "grid.nii")
        told = {"affine": AFFINE, "kind": "mask" if name == "mask" else "labels"}
        yield Seed("nifti", seed.name, seed.root, seed.file, told)


def label_surface(folder):
    "Labels of one hemisphere as GIFTI."
    import nibabel
    from nibabel.gifti import GiftiDataArray, GiftiImage, GiftiLabel, GiftiLabelTable

    table, draw = GiftiLabelTable(), np.random.default_rng(13)
    for key, name in enumerate(PARCELS):
        label = GiftiLabel(key, 0.1 * key, 0.2, 0.3, 1.0)
        label.label = name
        table.labels.append(label)
    values = draw.integers(0, len(PARCELS), 30).astype("i4")
    array = GiftiDataArray(values, "NIFTI_INTENT_LABEL", "NIFTI_TYPE_INT32")
    (folder / "labels").mkdir(parents=True)
    path = folder / "labels" / "lh.parcels.label.gii"
    nibabel.save(GiftiImage(darrays=[array], labeltable=table), path)
    yield Seed("gifti", "labels", folder / "labels", path.name, {"kind": "labels"})


def save_image(folder, name, image):
    "One image in a folder of its own."
    (folder / name).mkdir(parents=True)
    file = "run.nii.gz" if name.endswith("gz") else "run.nii"
    image.to_filename(folder / name / file)
    if file.endswith("gz"):
        pack(folder / name / file)
    return Seed("nifti", name, folder / name, file, {"affine": AFFINE})


def pack(path):
    "Pack again without the time of writing, so that the same seed gives the same bytes."
    import gzip

    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), mtime=0))


def giftis(folder):
    "A pair of hemispheres over time, the left one mutated, in three encodings."
    import nibabel
    from nibabel.gifti import GiftiDataArray, GiftiImage

    codes = dict(
        packed="GIFTI_ENCODING_B64GZ", binary="GIFTI_ENCODING_B64BIN", ascii="GIFTI_ENCODING_ASCII"
    )
    for name, code in codes.items():
        (folder / name).mkdir(parents=True)
        for k, side in enumerate("LR"):
            values = responses(8, 11, 20 + k).astype("f4")
            arrays = [
                GiftiDataArray(row, "NIFTI_INTENT_TIME_SERIES", "NIFTI_TYPE_FLOAT32", code)
                for row in values
            ]
            nibabel.save(GiftiImage(darrays=arrays), folder / name / f"run_hemi-{side}.func.gii")
        told = {"other": "run_hemi-R.func.gii", "trs": 8, "vertices": 11}
        yield Seed("gifti", name, folder / name, "run_hemi-L.func.gii", told)


PARCELS = ["Unknown", "L_A1_ROI", "L_44_ROI", "L_STSda_ROI", "L_V1_ROI"]


def colour_table(rgb):
    "(N, 5) red, green, blue, nothing, and the number of each colour."
    number = rgb @ [1, 256, 65536]
    return np.column_stack([rgb, np.zeros(len(rgb), int), number])


def annots(folder):
    "Labels of one hemisphere, with and without vertices outside."
    import nibabel

    draw = np.random.default_rng(3)
    colours = colour_table(draw.integers(1, 255, (len(PARCELS), 3)))
    labels = draw.integers(1, len(PARCELS), 40)
    outside = labels.copy()
    outside[4:9] = 0
    names = [n.replace("L_V1_ROI", "Medial_wall") for n in PARCELS]
    for name, values, table in (("whole", labels, PARCELS), ("outside", outside, names)):
        (folder / name).mkdir(parents=True)
        path = folder / name / "lh.parcels.annot"
        nibabel.freesurfer.write_annot(path, values, colours, table, fill_ctab=False)
        right = [n.replace("L_", "R_") for n in table]
        other = folder / name / "rh.parcels.annot"
        nibabel.freesurfer.write_annot(other, values[::-1], colours, right, fill_ctab=False)
        told = {"other": other.name, "voxels": len(values)}
        yield Seed("annot", name, folder / name, "lh.parcels.annot", told)


def tone(n=1600, channels=1, rate=8000):
    "A sound that never repeats a value by chance, (n, channels), between -1 and 1."
    t = np.arange(n)[:, None] / rate
    wobble = 0.3 * np.sin(2 * np.pi * 221 * t * (1 + 0.1 * t)) + 0.2 * np.sin(2 * np.pi * 57.3 * t)
    return wobble * (1 - 0.25 * np.arange(channels)) + 0.01 * np.arange(channels)


def write_wave(path, values, rate=8000, width=2):
    "Whole numbers of `width` bytes, by the standard library."
    whole = np.round(values * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    raw = whole.astype("<i8").reshape(-1, 1).view("u1")[:, :width]
    with wave.open(str(path), "wb") as f:
        f.setparams((values.shape[1], width, rate, 0, "NONE", ""))
        f.writeframes(np.ascontiguousarray(raw).tobytes())


def sounds(folder):
    "Sound in whole numbers and floats, one and two channels, WAV and FLAC."
    import soundfile

    for name, (channels, width) in dict(
        mono16=(1, 2), stereo16=(2, 2), mono24=(1, 3), mono32=(1, 4)
    ).items():
        (folder / name).mkdir(parents=True)
        write_wave(folder / name / "story.wav", tone(channels=channels), width=width)
        yield Seed("sound", name, folder / name, "story.wav")
    for name, kind in dict(float="FLOAT", double="DOUBLE").items():
        (folder / name).mkdir(parents=True)
        soundfile.write(folder / name / "story.wav", tone(), 16000, kind)
        clear_peak(folder / name / "story.wav")
        yield Seed("sound", name, folder / name, "story.wav")
    (folder / "flac").mkdir(parents=True)
    soundfile.write(folder / "flac" / "story.flac", tone(channels=2), 16000, "PCM_16")
    yield Seed("sound", "flac", folder / "flac", "story.flac")


def clear_peak(path):
    "Take the time of writing out of a float WAV (bytes 8 to 12 of its PEAK chunk)."
    raw = bytearray(path.read_bytes())
    at = raw.find(b"PEAK")
    if at > 0:
        raw[at + 12 : at + 16] = bytes(4)
    path.write_bytes(bytes(raw))


def confounds(folder):
    "Confounds as fMRIPrep writes them: no number in the first row of derivatives."
    values = responses(20, 4, 8)
    names = ["trans_x", "rot_z", "global_signal", "csf"]
    full = [list(map(repr, row)) for row in values.tolist()]
    header = [*names, "trans_x_derivative1", "framewise_displacement"]
    steps = np.diff(values[:, 0])
    first = [[*full[0], "n/a", "n/a"]]
    rest = [[*row, repr(float(d)), repr(abs(float(d)))] for row, d in zip(full[1:], steps)]
    for name, (head, rows) in dict(plain=(names, full), derivatives=(header, first + rest)).items():
        (folder / name).mkdir(parents=True)
        path = folder / name / "run_desc-confounds_timeseries.tsv"
        path.write_text(table_text(head, rows, "\t"))
        yield Seed("confounds_tsv", name, folder / name, path.name)


def leaf(mean, n=3):
    return dict(mean=mean, ci_low=mean - 0.0123, ci_high=mean + 0.0211, n=n)


REGIONS = ("language", "auditory")


def both(x):
    return dict(raw=leaf(round(x, 6)), normalized=leaf(round(2.1 * x, 6)))


def by_region(first, step):
    "Region -> scores, each larger than the one before."
    return {roi: both(first + step * j) for j, roi in enumerate(REGIONS)}


def summary_record(seconds):
    "What the report needs of a summary, with numbers that are all different."
    from targets import arms

    align = {arm: by_region(0.11 + 0.017 * i, 0.031) for i, arm in enumerate(arms())}
    found = dict(alignment=align, gain=by_region(0.017, 0.003))
    found |= dict(gain_permuted=by_region(-0.0021, 0.0007))
    ceiling = {roi: 0.61 + 0.07 * j for j, roi in enumerate(REGIONS)}
    found |= dict(ceiling=ceiling, interval="over participants")
    people = dict(tuning=["UTS01", "UTS02"], new=["UTS03"])
    found |= dict(participants=people, limits=["one backbone"])
    return found | dict(seconds=seconds, peak_memory_mb=512.25)


def run_record(seconds):
    "run.json as a finished run leaves it."
    hardware = dict(system="Linux", processor="x86_64", cores=2, memory_mb=16000)
    parameters = dict(
        backbone="tiny", dataset="simulated", seed=3, arms="tuned,permuted", layers=""
    )
    session = dict(began="2026-01-05T10:11:12+0000", seconds=seconds, peak_memory_mb=512.25)
    found = dict(
        package="0.1.0", git=None, python="3.12.3", libraries=dict(numpy="2.3.1", torch="2.13.0")
    )
    found |= dict(hardware=hardware, parameters=parameters, seed=3, parameters_hash="")
    found |= dict(seconds=seconds, peak_memory_mb=512.25, inputs={"/data/split.json": "ab" * 32})
    return found | dict(
        stages=dict(pretrained=dict(seconds=1.25), tuned_seed3=dict(seconds=2.5)),
        sessions=[session],
    )


def timeless(root, seconds):
    "Take time, memory and machine out of a run, so that the same seed gives the same files."
    from braintune_nb.core import content_hash

    known, summary = run_record(seconds), {}
    for name in ("summary.json", "run.json"):
        held = json.loads((root / name).read_text())
        for key in (
            "seconds",
            "peak_memory_mb",
            "hardware",
            "libraries",
            "python",
            "git",
            "sessions",
        ):
            if key in held:
                held[key] = known[key]
        for stage in held.get("stages", {}).values():
            stage["seconds"] = 1.25
        if held.pop("record_hash", None):  # a version that holds its files to their hashes
            held["summary_hash"] = content_hash(summary)
            held["record_hash"] = content_hash(held)
        summary = held
        text = json.dumps(held, sort_keys=True, indent=1, ensure_ascii=False)
        (root / name).write_text(text + "\n")


def runs(folder, target):
    "A finished run, written by the product, so that it is of the version under test."
    from targets import arms, finished_run

    file = {"run_json": "run.json", "summary_json": "summary.json"}[target]
    root = finished_run(folder / "run", run_record(61.5)["parameters"], summary_record(61.5))
    timeless(root, 61.5)
    yield Seed(target, "run", root, file, {"arms": arms()})
    if target == "summary_json":
        small = summary_record(7.25)
        small["alignment"].pop(arms()[-1])
        small["participants"] = dict(tuning=["UTS01"], new=[])
        root = finished_run(folder / "alone", run_record(7.25)["parameters"], small)
        timeless(root, 7.25)
        yield Seed(target, "alone", root, file, {"arms": arms()})


def hashes_of(folder):
    "Relative path -> SHA-256 of every file."
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
    names = [p.relative_to(folder).as_posix() for p in files]
    return {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in zip(names, files)}


def releases(folder):
    "Releases of a text and a speech model, written by the product under test."
    from targets import saved_release, split_keys

    for name in ("text", "speech"):
        other = saved_release(folder / f"{name}_other", name, 7)
        root = saved_release(folder / name, name, 3)
        told = {"hashes": hashes_of(root), "people": split_keys()[4:6], "other": str(other)}
        yield Seed("release", name, root, "", told)


MAKERS = {
    "textgrid": textgrids,
    "scanner_log": scanner_logs,
    "word_table": word_tables,
    "split_json": splits,
    "respdict_json": respdicts,
    "hdf5_lebel": hdf5_lebel,
    "hdf5_bilingual": hdf5_bilingual,
    "nifti": lambda folder: [*niftis(folder), *label_images(folder)],
    "gifti": lambda folder: [*giftis(folder), *label_surface(folder)],
    "annot": annots,
    "sound": sounds,
    "confounds_tsv": confounds,
    "release": releases,
    "run_json": lambda folder: runs(folder, "run_json"),
    "summary_json": lambda folder: runs(folder, "summary_json"),
}


def make_seeds(folder, target):
    "All seeds of a target, in a folder that is made."
    folder = Path(folder) / target
    folder.mkdir(parents=True, exist_ok=True)
    return list(MAKERS[target](folder))
