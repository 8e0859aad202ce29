"""The tiny text model that ships: it passes its gates, loads as any model does, and the probes and
knobs do what they say."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from braintune_nb.core import ModelError, RunError, read_json
from braintune_nb.simulate import text_model as sb
from braintune_nb.simulate.language import TEMPLATES, make_lexicon, translate, write_story

source = Path(__file__).parent.parent / "nbs" / "weights" / "tiny_text"
lexicon = make_lexicon(seed=0)


@pytest.fixture(scope="module")
def shipped():
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    return AutoModelForMaskedLM.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(
        source
    )


@pytest.fixture(scope="module")
def gates(shipped):
    return sb.measure_gates(*shipped, lexicon, contexts=8, draws=4)


def test_the_shipped_weights_pass_the_gates(gates):
    sb.check_gates(gates)
    high = max(row["meaning"]["high"] for language in ("en", "zh") for row in gates[language])
    assert (
        high < 0.2
        and min(row["identity"] for language in ("en", "zh") for row in gates[language]) > 0.9
    )
    assert all(
        abs(s) < 0.06 for s in gates["translation_similarity"]
    )  # link 0: no translation either


def test_the_card_states_what_is_measured(gates):
    stored = read_json(source / "gates.json")["gates"]
    card = (source / "README.md").read_text(encoding="utf8")
    assert "license: apache-2.0" in card
    for language in ("en", "zh"):
        for row, now in zip(stored[language], gates[language]):
            assert f"{row['meaning']['high']:+.3f}" in card and f"{row['identity']:.3f}" in card
            assert (
                abs(row["meaning"]["r"] - now["meaning"]["r"]) < 0.1
                and abs(row["identity"] - now["identity"]) < 0.08
            )
    sb.check_gates(stored)


def test_files_are_small_and_hold_no_pickle():
    names = {p.name for p in source.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "README.md",
        "gates.json",
    } <= names
    assert not any(n.endswith((".bin", ".pt", ".pkl")) for n in names)
    assert sum(p.stat().st_size for p in source.iterdir()) < 5e6


def test_the_package_holds_the_same_weights():
    packaged = resources.files("braintune_nb") / "weights" / "tiny_text"
    if not packaged.is_dir():
        pytest.skip("the package has no weights yet: run tools/export.py")
    for path in source.iterdir():
        assert (packaged / path.name).read_bytes() == path.read_bytes(), path.name


def test_plain_automodel_loads_it_whole():
    from transformers import AutoModel, AutoTokenizer

    model, info = AutoModel.from_pretrained(source, output_loading_info=True)
    assert not info["missing_keys"]
    assert len(AutoTokenizer.from_pretrained(source)) == model.config.vocab_size
    long = torch.randint(5, 1000, (1, 200))
    assert torch.isfinite(
        model(input_ids=long).last_hidden_state
    ).all()  # contexts longer than in training


def test_unbroken_chinese_comes_back_as_words(shipped):
    tokenizer = shipped[1]
    words = sorted(
        {w for pair in TEMPLATES for w in pair[1].split() if w[0] not in "NVA"}
        | set(lexicon.words["zh"])
    )
    pairs = [(a, b) for a in words for b in words]
    found = tokenizer.backend_tokenizer.encode_batch(
        [a + b for a, b in pairs], add_special_tokens=False
    )
    assert [p for p, e in zip(pairs, found) if tuple(e.tokens) != p] == []
    text = translate(write_story(lexicon, "s", "en", 3000, seed=1, kind="mixed"), lexicon, "zh")
    assert tuple(tokenizer.tokenize("".join(text.words[:250]))) == text.words[:250]


def test_english_forms_do_not_leak(shipped):
    for word in ("farm", "farmer", "waterfall", "motorcycle", "cooked"):
        assert shipped[1].tokenize(word) == [word]
    assert shipped[1].tokenize("Zebra") == [
        "z",
        "##e",
        "##b",
        "##r",
        "##a",
    ]  # other words are spelled


def test_meaning_interval_covers_under_the_null():
    "200 data sets without meaning: the 95 % interval misses 0 in about 5 %."
    concept, missed = np.arange(288), []
    for seed in range(200):
        book, rng = make_lexicon(seed=seed), np.random.default_rng([seed, 1])
        found = sb.meaning_probe(concept, rng.standard_normal((288, 24)), book)
        missed.append(not found["low"] <= 0 <= found["high"])
    assert np.mean(missed) < 0.10, np.mean(missed)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_meaning_probe_finds_planted_meaning(share):
    rng = np.random.default_rng(0)
    states = rng.standard_normal((288, 32)) + share * lexicon.meaning @ rng.standard_normal((8, 32))
    assert sb.meaning_probe(np.arange(288), states, lexicon)["low"] > 0.1


def test_gates_refuse_by_name(gates):
    import copy

    for change, words in [
        (lambda g: g["en"][1]["meaning"].update(high=0.5), "en, layer 1: meaning of held-out"),
        (lambda g: g["zh"][0].update(identity=0.1), "zh, layer 0: identity"),
        (lambda g: g["zh"][2].update(category=0.4), "category of unseen nouns"),
        (lambda g: g["perplexity"].update(model=1e4), "perplexity"),
    ]:
        bad = copy.deepcopy(gates)
        change(bad)
        with pytest.raises(ModelError, match=words):
            sb.check_gates(bad)


def test_shipped_weights_are_not_replaced_by_accident(shipped, gates):
    with pytest.raises(RunError, match="overwrite=True"):
        sb.save_text_model(source, *shipped, gates, {})


@pytest.mark.parametrize("knob", ["dose", "link"])
def test_knobs_put_knowledge_into_the_model(knob):
    model, tokenizer, _ = sb.pretrain_text(lexicon, **SMALL, **{knob: 1.0})
    concept, english = sb.concept_states(model, tokenizer, lexicon, "en", 2)
    if knob == "dose":
        score = np.mean(
            [sb.meaning_probe(concept, english[0], make_lexicon(s))["r"] for s in range(6)]
        )
        print("held-out meaning at dose 1:", score)
        assert score > 0.05
    else:
        other, chinese = sb.concept_states(model, tokenizer, lexicon, "zh", 2)
        found = sb.translation_similarity(
            sb.mean_states(concept, english[0]), sb.mean_states(other, chinese[0]), lexicon
        )
        print("translation similarity at link 1:", found)
        assert found > 0.04


SMALL = dict(steps=800, width=64, layers=1, batch=64, entries=6000, learning_rate=4e-3, asked=0.4)
