"""How the product reads each target: its public reader is called, its answer made plain.

Names of modules change; functions are found by name wherever the package under test keeps them.
"""

import importlib
import inspect
import re
import warnings
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Reading:
    "What the product made of a file."

    value: object
    notes: tuple = ()


class Renamed(Exception):
    "The package under test has no function of these names: `targets.py` has to learn the new one."


def find(*names, near="", optional=False):
    "The function that has one of these names, in a module with `near` in its name."
    from braintune_nb._modidx import d

    for name in names:
        for module, symbols in d["syms"].items():
            if f"{module}.{name}" in symbols and near in module:
                found = getattr(importlib.import_module(module), name.split(".")[0], None)
                if found is not None:
                    return found
        found = OLD.get(name)
        for module in found or ():
            try:
                here = importlib.import_module(f"braintune_nb.{module}")
            except ModuleNotFoundError:
                continue
            if hasattr(here, name):
                return getattr(here, name)
    if optional:
        return None
    raise Renamed(" or ".join(names))


# re-exported or method-bearing names that the index of symbols does not list
OLD = {
    "Split": ("data.splits",),
    "BrainTuner": ("model.tuner",),
    "Run": ("core",),
    "Space": ("data.recordings",),
    "Ceiling": ("encode.ceiling",),
}


def base_error():
    "The one class that a reader may raise."
    from braintune_nb.core import BraintuneError

    return BraintuneError


# ---- what each reader is asked for: (file or folder, folder, context) -> Reading


def read_textgrid(path, root, context):
    grid = find("read_textgrid")(path)
    tiers = {name: rows_of(events) for name, events in grid.tiers.items()}
    return Reading(dict(tiers=tiers, kinds=dict(grid.kinds)), tuple(grid.notes))


def rows_of(events):
    return list(zip(events.onset.tolist(), events.offset.tolist(), events.text))


def read_scanner_log(path, root, context):
    log = find("read_scanner_log")(path)
    log.clock()
    value = dict(triggers=log.triggers.tolist(), tr=float(log.tr))
    value |= dict(sound_start=log.sound_start, sound_stop=log.sound_stop)
    return Reading(value, tuple(getattr(log, "notes", ())))


def read_word_table(path, root, context):
    events = find("read_word_table")(path)
    rows = [dict(onset=a, offset=b, text=c) for a, b, c in rows_of(events)]
    return Reading(rows, tuple(getattr(events, "notes", ())))


def read_split(path, root, context):
    split = find("Split").load(path)
    if not split.hash:
        raise AssertionError("a split without a hash")
    return Reading({k: list(v) if isinstance(v, tuple) else v for k, v in asdict(split).items()})


def read_respdict(path, root, context):
    data = find("load_lebel2023")(root, stories=list(context["rows"]))
    return Reading({name: len(s.clock) + 20 for name, s in data.stories.items()}, tuple(data.notes))


def read_lebel(path, root, context):
    reader = find("read_or_map", optional=True)
    module = reader and importlib.import_module(reader.__module__)
    limit = getattr(module, "MAP_ABOVE", None)
    if module and context["mapped"]:  # the way of large files, for small ones
        module.MAP_ABOVE = 0
    try:
        data = find("load_lebel2023")(root, stories=["naked", "souls"])
    finally:
        if module:
            module.MAP_ABOVE = limit
    one = data.recordings["UTS01"]["souls"]
    value = dict(data=np.array(one.responses))
    if one.repeats is not None:
        value["individual_repeats"] = np.array(one.repeats)
    return Reading(value, tuple(data.notes))


def read_bilingual(path, root, context):
    data = find("load_bilingual")(root)
    value = {}
    for name, one in data.recordings["subject01"].items():
        val = name.startswith("wheretheressmoke")
        if val == (context["role"] == "val"):
            value[name.removesuffix("_en")] = np.array(one.repeats if val else one.responses)
            if val:
                value[f"mean of {name.removesuffix('_en')}"] = np.array(one.responses)
    return Reading(value, tuple(data.notes))


def read_nifti(path, root, context):
    import nibabel

    labels_on, image_table = find("labels_on"), find("image_table")
    if "kind" in context:
        image = labels_on(path, root / "grid.nii", **as_mask(labels_on, context))
        return Reading(dict(labels=np.asarray(image.dataobj), affine=np.asarray(image.affine)))
    shape, affine, volumes = find("image_grid")(path)
    tr = find("image_tr")(path)
    ones = nibabel.Nifti1Image(np.ones((4, 5, 3), np.int8), context["affine"])
    mask = labels_on(ones, path)
    table = np.array(image_table(path, mask, False))
    inside = np.asarray(mask.dataobj) != 0
    whole = np.full((*shape, len(table)), np.nan, np.float32)
    whole[inside] = table.T
    value = dict(data=whole, affine=np.asarray(affine), tr=tr, inside=inside, volumes=volumes)
    return Reading(value)


def as_mask(reader, context):
    "The argument by which loaders say that an image is a mask, where there is one."
    known = "mask" in inspect.signature(reader).parameters
    return dict(mask=context["kind"] == "mask") if known else {}


def read_gifti(path, root, context):
    if "kind" in context:
        return Reading(dict(labels=[str(x) for x in find("vertex_labels")(path)]))
    table = find("surface_table")([path, root / context["other"]])
    return Reading(dict(data=np.array(table)[:, : -context["vertices"]]))


def read_annot(path, root, context):
    labels = [str(x) for x in find("vertex_labels")(path)]
    parcels = find("load_parcels")(path, root / context["other"])
    left = parcels.labels.tolist()[: len(labels)]
    return Reading(dict(labels=labels, parcels=left), tuple(getattr(parcels, "notes", ())))


def read_sound(path, root, context):
    seconds = find("sound_format")(path)
    samples, rate, *more = find("read_audio")(path)
    notes = tuple(n for n in more if isinstance(n, str) and n)
    value = dict(samples=np.array(samples), rate=rate, seconds=seconds[2])
    if seconds[1] > 1:  # the copy in one channel that loaders keep, at the rate it has
        value["kept"] = np.array(find("read_audio")(find("sound_at")(path, rate)[0])[0])
    return Reading(value, notes)


class Absent(Exception):
    "The package has no reader for this file, and what others make of it is nothing it could read."


def read_confounds(path, root, context):
    own = find("read_confounds", optional=True)
    notes = ()
    if own is not None:
        table = own(path)
        notes = tuple(getattr(table, "notes", getattr(table, "attrs", {}).get("notes", ())))
    else:
        table = others_confounds(path)
    names, array = [str(c) for c in getattr(table, "columns", ())], np.asarray(table, float)
    x = np.random.default_rng(0).standard_normal((len(array), 3))
    left = np.asarray(find("regress_out")(x, array))
    return Reading(dict(columns=names, rows=array, residuals=left), notes)


def others_confounds(path):
    "What people do where the package has no reader: pandas, as long as the table holds numbers."
    import pandas as pd

    try:
        table = pd.read_csv(path, sep="\t")
    except Exception as error:
        raise Absent from error
    if not len(table) or any(kind.kind not in "fiu" for kind in table.dtypes):
        raise Absent
    return table


def read_release(path, root, context):
    tuner = find("BrainTuner").from_pretrained(root)
    state = {k: v.detach().float().numpy() for k, v in tuner.state_dict().items()}
    r = tuner.release
    spaces = {p: plain(asdict(s)) for p, s in r.spaces.items()}
    ceilings = {p: (np.asarray(v), d) for p, (v, d) in r.ceilings.items()}
    value = dict(facts=r.facts, spaces=spaces, ceilings=ceilings, numbers=list(r.numbers))
    value |= dict(split=plain(asdict(r.split)) if r.split else None, weights=state)
    value |= dict(reads=pieces(tuner))
    return Reading(value, tuple(tuner.backbone.notes))


def pieces(tuner):
    "What the tokenizer or extractor of a release makes of an input that is always the same."
    b = tuner.backbone
    if hasattr(b, "tokenizer"):
        return b.tokenizer("w1 w3 w2 nothing w11", add_special_tokens=True).input_ids
    wave = np.sin(np.arange(800) / 7).astype(np.float32)
    return np.asarray(b.extractor(wave, sampling_rate=b.sampling_rate)["input_values"][0])


def plain(value):
    "Arrays stay, tuples become lists, data classes dictionaries."
    if is_dataclass(value):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def read_run(path, root, context):
    summary, record = find("read_run", near="report")(root)
    find("collect", near="report")([root])
    find("limits", "limitations", near="report")(summary, record)
    return Reading(record)


def read_summary(path, root, context):
    summary, record = find("read_run", near="report")(root)
    for names in (("alignment_table", "summary_alignment"), ("gain_table",), ("split_tables",)):
        find(*names, near="report")(summary)
    for roi in summary["gain"]:
        find("sentences", near="report")(summary, roi)
    find("limits", "limitations", near="report")(summary, record)
    return Reading(summary)


READERS = {
    "textgrid": read_textgrid,
    "scanner_log": read_scanner_log,
    "word_table": read_word_table,
    "split_json": read_split,
    "respdict_json": read_respdict,
    "hdf5_lebel": read_lebel,
    "hdf5_bilingual": read_bilingual,
    "nifti": read_nifti,
    "gifti": read_gifti,
    "annot": read_annot,
    "sound": read_sound,
    "confounds_tsv": read_confounds,
    "release": read_release,
    "run_json": read_run,
    "summary_json": read_summary,
}


# warnings of the libraries below that say nothing about the file
CHATTER = (
    DeprecationWarning,
    PendingDeprecationWarning,
    FutureWarning,
    ImportWarning,
    ResourceWarning,
)


def read(target, path, root, context):
    "The product's reading of one file; warnings that a user would see count as notes."
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = READERS[target](Path(path), Path(root), context)
    said = tuple(str(w.message) for w in heard if not issubclass(w.category, CHATTER))
    return Reading(found.value, (*found.notes, *said))


# ---- what is compared: the judge's answer in the form of the reader's


def same_form(draft, found, wanted, base):
    "(reader's value, judge's value) in one form; `base`: the reader's value of the untouched file."
    change = FORMS.get(draft.target)
    return change(draft, found, wanted, base) if change else (found, wanted)


def form_textgrid(draft, found, wanted, base):
    return found, {k: wanted[k] for k in ("tiers", "kinds")}


def form_log(draft, found, wanted, base):
    wanted = dict(wanted, triggers=list(map(float, wanted["triggers"])))
    if abs(found["tr"] - wanted["tr"]) < 0.02 * abs(wanted["tr"]):  # mean or median
        wanted["tr"] = found["tr"]
    return found, wanted


def form_words(draft, found, wanted, base):
    return [(r["onset"], r["offset"], r["text"]) for r in found], wanted["words"]


def form_counts(draft, found, wanted, base):
    return found, {story: n for story, n in wanted["counts"].items() if story in found}


def form_lebel(draft, found, wanted, base):
    if wanted["repeats"] is None:
        return found, dict(data=wanted["data"])
    return found, dict(data=wanted["data"], individual_repeats=wanted["repeats"])


def form_bilingual(draft, found, wanted, base):
    start, end = draft.context["trim"]
    cut = {k: x[..., start : x.shape[-2] - end, :] for k, x in wanted["runs"].items()}
    if draft.context["role"] == "val":
        cut |= {f"mean of {k}": x.mean(0) for k, x in cut.items()}
    return found, cut


def form_nifti(draft, found, wanted, base):
    "Labels on another grid are resampled, which the judge does not do: nothing is compared then."
    if "labels" in found:
        wanted = dict(labels=wanted["data"], affine=wanted["affine"])
        here = wanted["labels"].shape == found["labels"].shape
        same = here and np.allclose(wanted["affine"], draft.context["affine"])
        return (found, wanted) if same else (found, found)
    if wanted["data"].shape == found["data"].shape:
        wanted = dict(wanted, data=np.where(found["inside"][..., None], wanted["data"], np.nan))
    return {k: found[k] for k in ("data", "affine", "tr")}, wanted


def form_gifti(draft, found, wanted, base):
    return found, dict(labels=wanted["labels"]) if "labels" in found else wanted


NO_PARCEL = r"\?\?\?|unknown|medial[\W_]?wall|background|corpus[\W_]?callosum"
NO_PARCEL = re.compile(NO_PARCEL, re.I)


def form_annot(draft, found, wanted, base):
    "Labels, and which vertices are in no parcel: those whose label means the medial wall."
    wall = [bool(NO_PARCEL.search(label)) for label in wanted["labels"]]
    mine = [label == "" for label in found["parcels"]]
    return dict(labels=found["labels"], wall=mine), dict(labels=wanted["labels"], wall=wall)


def form_sound(draft, found, wanted, base):
    mono = wanted["samples"].astype(np.float32).mean(1)
    seconds = len(mono) / wanted["rate"]
    kept = dict(kept=mono) if "kept" in found else {}
    return found, dict(samples=mono, rate=wanted["rate"], seconds=seconds, **kept)


def form_confounds(draft, found, wanted, base):
    found = {k: found[k] for k in ("columns", "rows")}
    return found, dict(columns=wanted["columns"], rows=wanted["table"])


def form_release(draft, found, wanted, base):
    "A release is valid only where nothing changed: its weights, and what it reads, are known."
    spaces = {who: space_arrays(space) for who, space in found["spaces"].items()}
    heads = {k: v for k, v in found["weights"].items() if not k.startswith("model.")}
    found = dict(found, spaces=spaces, heads=heads)
    known = base or found
    told = {who: space_arrays(space) for who, space in wanted["spaces"].items()}
    return found, dict(wanted, spaces=told, weights=known["weights"], reads=known["reads"])


def space_arrays(space):
    "Name, kind, columns, masks of regions one below the other, labels."
    held = {k: space[k] for k in ("name", "kind")} | dict(columns=np.asarray(space["columns"]))
    rois = space.get("regions", space.get("rois"))  # its name now, and that of older versions
    if rois is not None and len(rois):
        held["rois"] = np.stack(list(rois.values())) if isinstance(rois, dict) else rois
    if space.get("labels") is not None:
        held["labels"] = list(map(str, space["labels"]))
    return held


FORMS = dict(
    textgrid=form_textgrid,
    scanner_log=form_log,
    word_table=form_words,
    respdict_json=form_counts,
    hdf5_lebel=form_lebel,
    hdf5_bilingual=form_bilingual,
    nifti=form_nifti,
    gifti=form_gifti,
    annot=form_annot,
    sound=form_sound,
    confounds_tsv=form_confounds,
    release=form_release,
)


# ---- what only the product can write, and the names it uses


def split_keys():
    "Names of a split's parts: roles, then participants who tune and who are new, then the reason."
    return list(find("Split").__dataclass_fields__)


def arms():
    "Arms that every summary holds; the last one needs several people."
    tables = importlib.import_module(find("read_run", near="report").__module__)
    found = getattr(tables, "REQUIRED_ARMS", None) or tables.ARMS
    subspace = [a for a in found if a in ("shared_subspace", "reduced_rank")]
    return [a for a in found if a not in subspace] + subspace


def finished_run(folder, parameters, summary):
    "A run folder that the product began and finished."
    run = find("Run").start(folder, parameters)
    with run.stage("pretrained"):
        pass
    run.finish({k: v for k, v in summary.items() if k not in ("seconds", "peak_memory_mb")})
    return Path(folder)


def small_text(folder, words, seed):
    "A random BERT with one token a word, as a plain folder."
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    numbers = {word: i for i, word in enumerate([*special, *words])}
    raw = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    frame = [("[CLS]", 2), ("[SEP]", 3)]
    raw.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=frame)
    named = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **named, model_max_length=64)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    torch.manual_seed(seed)
    model = BertModel(BertConfig(vocab_size=len(numbers), max_position_embeddings=64, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def small_speech():
    "A random wav2vec2 of a few thousand weights."
    from transformers import Wav2Vec2Config

    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    more = dict(conv_dim=[8] * 7, num_conv_pos_embeddings=15, num_conv_pos_embedding_groups=2)
    return Wav2Vec2Config(**sizes, **more)


def small_backbone(folder, kind, seed):
    "A random text model in a folder beside `folder`, or a random speech model."
    if kind != "text":
        return find("load_speech_backbone")(small_speech(), random_weights=True, seed=seed)
    plain = folder.with_name(f"{folder.name}_plain")
    small_text(plain, [f"w{i}" for i in range(12)], seed)
    return find("load_backbone")(plain)


def release_parts():
    "Spaces, ceilings, split and numbers of two participants."
    space, ceiling, split = find("Space"), find("Ceiling"), find("Split")
    rois = {"language": np.array([True, False, True, True])}
    spaces = {"P1": space("P1 voxels", "voxel", np.array([3, 5, 9, 11]), rois)}
    spaces["P2"] = space("P2 regions", "region", np.array([1, 2, 4]), labels=("A1", "44", "STSda"))
    values = np.array([0.31, np.nan, 0.47, 0.53])
    ceilings = {"P1": ceiling(values, "spearman-brown", "rho", "wheretheressmoke", (0, 1, 2), 3)}
    roles = dict(tuning=("avatar",), encoding=("souls",), test=("wheretheressmoke",))
    split = split(**roles, **{split_keys()[4]: ("P1", "P2")})
    numbers = [
        dict(what="gain", value=0.0123, low=0.004, high=0.021),
        dict(what="ceiling", value=0.41),
    ]
    return dict(space=spaces, ceilings=ceilings, split=split, numbers=numbers)


def saved_release(folder, kind, seed):
    "A release with two participants, spaces, ceilings, split and numbers."
    backbone = small_backbone(folder, kind, seed)
    find("save_tuner")  # gives BrainTuner its method
    tuner = find("BrainTuner")(backbone, {"P1": 4, "P2": 3}, delays=(1, 2), seed=seed)
    more = dict(data="simulated", labels=("simulated",), language=("en",))
    tuner.save_pretrained(folder, **release_parts(), **more)
    return Path(folder)
