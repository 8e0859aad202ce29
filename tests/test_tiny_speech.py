"""The tiny speech model that ships: it passes its gates, loads as any model does, and the probes
and heads do what they say."""

import copy
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from braintune_nb.core import MissingData, ModelError, RunError, read_json
from braintune_nb.data.stories import Events
from braintune_nb.model.backbone import FrameGrid, load_speech_backbone
from braintune_nb.simulate import speech_model as sb
from braintune_nb.simulate.language import make_lexicon
from braintune_nb.simulate.speech import RATE, speak
from braintune_nb.simulate.text_model import meaning_probe

source = Path(__file__).parent.parent / "nbs" / "weights" / "tiny_speech"
lexicon = make_lexicon(seed=0)


@pytest.fixture(scope="module")
def shipped():
    return load_speech_backbone(source).model, sb.pretraining_heads(source)


@pytest.fixture(scope="module")
def stored():
    return read_json(source / "gates.json")["gates"]


@pytest.fixture(scope="module")
def gates(shipped):
    return sb.measure_speech_gates(*shipped, lexicon, contexts=2, draws=2)


def test_the_shipped_weights_pass_the_gates(gates):
    for language in ("en", "zh"):
        assert (
            min(gates["phone"][language].values()) > 0.85
            and min(gates["word"][language].values()) > 0.7
        )
        assert (
            gates[language][-1]["identity"] > 0.8
            and gates[language][-1]["identity_new_voices"] > 0.75
        )
        assert max(row["meaning"]["high"] for row in gates[language]) < 0.2
    assert all(abs(s) < 0.06 for s in gates["translation_similarity"])


def test_the_card_states_what_is_measured(gates, stored):
    sb.check_speech_gates(stored)
    card = (source / "README.md").read_text(encoding="utf8")
    assert "license: apache-2.0" in card
    for language in ("en", "zh"):
        for voice, share in stored["phone"][language].items():
            assert f"{share:.3f}" in card and abs(share - gates["phone"][language][voice]) < 0.02
        for row, now in zip(stored[language], gates[language]):
            assert (
                f"{row['meaning']['high']:+.3f}" in card
                and f"{row['identity_new_voices']:.3f}" in card
            )
            assert (
                abs(row["meaning"]["r"] - now["meaning"]["r"]) < 0.1
                and abs(row["identity_new_voices"] - now["identity_new_voices"]) < 0.1
            )


def test_files_are_small_and_hold_no_pickle():
    names = {p.name for p in source.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
        "heads.safetensors",
        "heads.json",
        "README.md",
        "gates.json",
    } <= names
    assert not any(n.endswith((".bin", ".pt", ".pkl")) for n in names)
    assert sum(p.stat().st_size for p in source.iterdir()) < 5e6


def test_the_package_holds_the_same_weights():
    packaged = resources.files("braintune_nb") / "weights" / "tiny_speech"
    if not packaged.is_dir():
        pytest.skip("the package has no weights yet: run tools/export.py")
    for path in source.iterdir():
        assert (packaged / path.name).read_bytes() == path.read_bytes(), path.name


def test_it_loads_by_name_and_with_plain_automodel():
    from transformers import AutoModel

    model, info = AutoModel.from_pretrained(source, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    b = load_speech_backbone("tiny_speech")
    assert (b.kind, b.normalised, b.sampling_rate, b.notes) == ("wav2vec2", False, 16000, ())
    assert sum(p.numel() for p in b.model.parameters()) <= 1.2e6


def test_the_front_end_is_local(shipped):
    "Its output for a stretch of sound does not depend on what surrounds it, so it can be kept."
    speech = speak(lexicon.words["zh"][:8], "zh", "m7")
    grid = FrameGrid.of_convolutions(shipped[0].config)
    sound = torch.from_numpy(speech.audio)[None]
    with torch.no_grad():
        whole = shipped[0].feature_extractor(sound)
        part = shipped[0].feature_extractor(sound[:, 7 * grid.hop : 11 * grid.hop + grid.receptive])
    assert torch.allclose(whole[:, :, 7:12], part, atol=1e-4)
    assert (
        whole.shape[2]
        == grid.count(sound.shape[1])
        == int(shipped[0]._get_feat_extract_output_lengths(sound.shape[1]))
    )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_frames_are_labelled_by_what_sounds(shipped, language):
    "Shifted labels fit worse: the clock of the labels is that of the states."
    model, heads = shipped
    speech = sb.speak_corpus(lexicon, language, 1, seed=7, voices=("f5",), vary=False)[0]
    states, times = sb.passage_states(model, speech)
    share = {
        shift: sb.frames_right(
            heads, states[-1], heads.labels(speech.words, speech.phones, language, times + shift)
        )["phone"]
        for shift in (-0.08, -0.04, 0.0, 0.04, 0.08)
    }
    assert max(share, key=share.get) == 0.0 and share[0.0] > 0.9, share


def test_it_hears_much_more_than_fresh_weights(shipped):
    model, heads = shipped
    fresh = load_speech_backbone(source, random_weights=True).model
    results = {
        name: sb.spoken_states(m, lexicon, "en", 1, 3000, ("m7",), heads)
        for name, m in (("shipped", model), ("fresh", fresh))
    }
    assert results["shipped"]["phone"]["m7"] > 0.85 and results["fresh"]["phone"]["m7"] < 0.3


def test_it_hears_long_chunks_and_not_only_clips(shipped):
    model, heads = shipped
    passages = sb.speak_corpus(lexicon, "en", 3, seed=11, voices=("f5",), vary=False)
    audio = np.concatenate([s.audio for s in passages])[: 40 * 16000]
    with torch.no_grad():
        states = model(torch.from_numpy(audio)[None]).last_hidden_state[0]
    times, speech = FrameGrid.of_convolutions(model.config).times(len(states), RATE), passages[0]
    inside = times < speech.duration
    right = sb.frames_right(
        heads,
        states[torch.from_numpy(inside)],
        heads.labels(speech.words, speech.phones, "en", times[inside]),
    )
    assert right["phone"] > 0.9 and right["word"] > 0.75, right


def test_the_pretraining_loss_is_low_where_it_should_be_and_has_gradients(shipped):
    model, heads = shipped
    model = copy.deepcopy(model)
    speech = sb.speak_corpus(lexicon, "en", 1, seed=12, vary=False)[0]
    states = model(torch.from_numpy(speech.audio)[None]).last_hidden_state[0]
    labels = heads.labels(
        speech.words,
        speech.phones,
        "en",
        FrameGrid.of_convolutions(model.config).times(len(states), RATE),
    )
    loss = sb.pretraining_loss(heads, states, labels)
    wrong = sb.pretraining_loss(heads, states, {k: np.roll(v, 50) for k, v in labels.items()})
    loss.backward()
    assert loss.item() < 1.2 < 5 < wrong.item()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() for p in model.encoder.parameters()
    )


def test_made_up_words_are_other(shipped):
    model, heads = shipped
    rng = np.random.default_rng(0)
    words = [sb.invented("en", lexicon, rng) for _ in range(24)]
    speech = speak(words, "en", "f2")
    states, times = sb.passage_states(model, speech)
    with torch.no_grad():
        found = heads.word(states[-1]).argmax(1).numpy()
    spoken = sb.at_times(speech.words, [1] * len(words), times) == 1
    assert heads.words[1] == "other" and (found[spoken] == 1).mean() > 0.5, (
        found[spoken] == 1
    ).mean()


def test_gates_refuse_by_name(stored):
    for change, words in [
        (lambda g: g["en"][1]["meaning"].update(high=0.5), "en, layer 1: meaning of held-out"),
        (lambda g: g["phone"]["zh"].update(m7=0.1), "zh, voice m7: frames whose phone"),
        (lambda g: g["zh"][2].update(category=0.5), "category of unseen nouns"),
        (lambda g: g["en"][-1].update(identity_new_voices=0.2), "identity of words in new voices"),
        (lambda g: g["zh"][0].update(meaning_draws=0.3), "meaning over other draws"),
    ]:
        bad = copy.deepcopy(stored)
        change(bad)
        with pytest.raises(ModelError, match=words):
            sb.check_speech_gates(bad)


def test_shipped_weights_are_not_replaced_by_accident(shipped, stored):
    with pytest.raises(RunError, match="overwrite=True"):
        sb.save_speech_model(source, *shipped, stored, {})


def test_a_folder_without_heads_is_named(tmp_path):
    with pytest.raises(MissingData, match="pretraining heads"):
        sb.pretraining_heads(tmp_path)


def test_same_seed_same_corpus():
    a, b, c = (sb.speak_corpus(lexicon, "zh", 2, seed) for seed in (3, 3, 4))
    assert [s.words.text for s in a] == [s.words.text for s in b] != [s.words.text for s in c]
    assert all(np.allclose(x.words.onset, y.words.onset, atol=0.02) for x, y in zip(a, b))


def test_events_between_frames_are_silence():
    events = Events(np.array([1.0, 3.0]), np.array([2.0, 4.0]), ("a", "b"))
    assert sb.at_times(events, [5, 7], np.array([0.0, 1.0, 1.99, 2.0, 3.5, 9.0])).tolist() == [
        0,
        5,
        5,
        0,
        7,
        0,
    ]


def test_a_model_that_is_taught_meaning_fails_the_probe_it_should_fail(shipped):
    """The positive control: 200 further steps with the meaning of all concepts in the loss, and
    held-out meaning is read."""
    model, heads = copy.deepcopy(shipped[0]), copy.deepcopy(shipped[1])
    sb.pretrain_speech(
        lexicon,
        200,
        1,
        dose=10.0,
        passages=15,
        batch_seconds=36.0,
        masked=0.0,
        start=(model, heads),
    )
    score = {}
    for name, m in (("shipped", shipped[0]), ("taught", model)):
        found = [sb.spoken_states(m, lexicon, language, 1, 1000) for language in ("en", "zh")]
        score[name] = np.mean(
            [meaning_probe(f["concept"], f["states"][-1], lexicon)["r"] for f in found]
        )
    print("held-out meaning:", score)
    assert score["taught"] > score["shipped"] + 0.05 and score["taught"] > 0.08, score
