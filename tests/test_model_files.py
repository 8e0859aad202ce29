"""Folders of models that must not be read: pickles behind an index, code of their own, weights that
are no numbers, impossible limits, releases that were changed."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from braintune_nb.core import ModelError
from braintune_nb.data.transcripts import Events
from braintune_nb.features.text import text_inputs
from braintune_nb.model.backbone import load_backbone, load_speech_backbone
from braintune_nb.model.release import BrainTuner


@pytest.fixture
def folder(tmp_path):
    "The tiny text model as a folder of its own."
    tiny, path = load_backbone("tiny"), tmp_path / "model"
    tiny.model.save_pretrained(path)
    tiny.tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def release(tmp_path):
    "A released tuner of two participants."
    tuner = BrainTuner(load_backbone("tiny"), {"P1": 3, "P2": 4}, seed=1)
    return tuner.save_pretrained(tmp_path / "release")


def change(path, **entries):
    "Other entries in a JSON file."
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


# ---- what lies behind an index


def indexed(folder, file):
    "An index that names `file` for every weight."
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_an_index_of_this_folder_is_followed(folder):
    before = load_backbone(str(folder)).model.get_input_embeddings().weight
    indexed(folder, "part.safetensors")
    assert torch.equal(load_backbone(str(folder)).model.get_input_embeddings().weight, before)


@pytest.mark.parametrize(
    "file",
    [
        "pytorch_model.bin",
        "../outside.safetensors",
        "/tmp/outside.safetensors",
        "sub/part.safetensors",
        "part.safetensors/../../x.safetensors",
        "",
    ],
)
def test_an_index_that_leads_elsewhere_is_refused_before_anything_is_read(
    folder, file, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", never)
    indexed(folder, file)
    with pytest.raises(ModelError, match="leads out of the folder") as caught:
        load_backbone(str(folder))
    assert "model.safetensors.index.json" in str(caught.value)


def test_an_index_that_names_a_missing_file(folder):
    indexed(folder, "gone.safetensors")
    with pytest.raises(ModelError, match="file of weights is missing"):
        load_backbone(str(folder))


@pytest.mark.parametrize("map_", [None, {}, [], "x", {"a": 3}])
def test_an_index_without_files(folder, map_):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": map_}))
    with pytest.raises(ModelError, match="index of the weights names no files"):
        load_backbone(str(folder))


# ---- code of a model folder


@pytest.mark.parametrize("loader", ["load_backbone", "load_speech_backbone"])
def test_code_of_a_model_folder_is_never_run(folder, loader, tmp_path):
    flag = tmp_path / "ran"
    maps = {"AutoConfig": "own.C", "AutoModel": "own.M", "AutoTokenizer": ["own.T", None]}
    change(folder / "config.json", model_type="own", auto_map=maps)
    (folder / "own.py").write_text(f"open({str(flag)!r}, 'w')\n")
    code = f"from braintune_nb.model.backbone import {loader} as load\nload({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], input="y\ny\n", capture_output=True, text=True
    )
    assert not flag.exists() and "ModelError" in done.stderr and "[y/N]" not in done.stdout


# ---- weights that are no numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(folder, value):
    weights = load_file(folder / "model.safetensors")
    name = next(k for k, w in weights.items() if w.ndim == 2 and "embed" not in k)
    weights[name][3, :2] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="2 of .* values are NaN or infinite") as caught:
        load_backbone(str(folder))
    assert name.split(".", 1)[1] in str(caught.value)


def test_speech_weights_that_are_no_numbers(tmp_path):
    tiny = load_speech_backbone("tiny_speech")
    with torch.no_grad():
        next(iter(tiny.model.encoder.layers[0].parameters()))[0] = torch.nan
    tiny.model.save_pretrained(tmp_path)
    tiny.extractor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="NaN or infinite"):
        load_speech_backbone(str(tmp_path))


# ---- limits of tokens


def words(n):
    return Events(np.arange(n), np.arange(n) + 0.5, tuple("the dog and the cat".split() * n)[:n])


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_minus_one_means_no_limit(folder, file):
    key = "max_position_embeddings" if file == "config.json" else "model_max_length"
    before = load_backbone(str(folder))
    change(folder / file, **{key: -1})
    if file == "config.json":
        from braintune_nb.model.backbone import token_limit

        assert token_limit(-1, key, folder) == token_limit(None, key, folder) == 10**6
        return
    after = load_backbone(str(folder))
    assert after.max_length == before.model.config.max_position_embeddings
    whole = text_inputs(words(6), after, 4, "en")
    assert (whole.token_ids == text_inputs(words(6), before, 4, "en").token_ids).all()


@pytest.mark.parametrize("value", [0, -2, "512", 0.5, [20], True])
def test_impossible_limits_are_refused(value):
    from braintune_nb.model.backbone import token_limit

    with pytest.raises(ModelError, match="limit of tokens is impossible"):
        token_limit(value, "config.json, max_position_embeddings", "folder")


def test_a_model_without_room_for_a_word(folder):
    change(folder / "tokenizer_config.json", model_max_length=1)
    with pytest.raises(ModelError, match="cannot read a single word"):
        load_backbone(str(folder))


# ---- releases that were changed


def test_a_release_is_read_as_it_was_written(release):
    tuner = BrainTuner.from_pretrained(str(release))
    files = tuner.release.facts["files"]
    assert {"heads.safetensors", "backbone/config.json", "backbone/model.safetensors"} <= set(files)
    (release / "README.md").write_text("a card that somebody edited")
    assert BrainTuner.from_pretrained(str(release)).outputs == {"P1": 3, "P2": 4}


def scale_heads(folder, factor):
    path = folder / "heads.safetensors"
    save_file({k: v * factor for k, v in load_file(path).items()}, path)


CHANGES = {
    "heads.safetensors": lambda folder: scale_heads(folder, -1),
    "backbone/config.json": lambda folder: change(
        folder / "backbone/config.json", num_attention_heads=1, activation="relu"
    ),
    "backbone/tokenizer.json": lambda folder: change(
        folder / "backbone/tokenizer.json", added_tokens=[]
    ),
    "backbone/extra.json": lambda folder: (folder / "backbone/extra.json").write_text("{}"),
    "tuner.json": lambda folder: change(folder / "tuner.json", modality="speech"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_release_is_refused_file_by_file(release, name):
    CHANGES[name](release)
    with pytest.raises(ModelError, match="not the one that was released|was changed") as caught:
        BrainTuner.from_pretrained(str(release))
    assert name in str(caught.value)


def test_a_lost_file_of_a_release_is_named(release):
    (release / "backbone/tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="no such file") as caught:
        BrainTuner.from_pretrained(str(release))
    assert "tokenizer_config.json" in str(caught.value)


def test_a_copy_of_a_release_is_as_good(release, tmp_path):
    shutil.copytree(release, tmp_path / "copy")
    (tmp_path / "copy" / ".DS_Store").write_bytes(b"x")
    assert BrainTuner.from_pretrained(str(tmp_path / "copy")).outputs == {"P1": 3, "P2": 4}
