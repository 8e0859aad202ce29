"Contexts, positions and states of every family of text model, on small random models built here."

import shutil

import numpy as np
import pytest
import torch

from braintune_nb.clock import regular_clock
from braintune_nb.core import DataError, ModelError
from braintune_nb.data.stories import Events, Story
from braintune_nb.features.text import hidden_states, read_states, text_features, text_inputs
from braintune_nb.model.backbone import load_backbone, transformer_blocks

ENGLISH = (
    "the cat saw an unbelievable bird and the bird saw the cat again while rain fell on the old"
    " quiet house near the river".split()
)
CHINESE = "我们 昨天 在 河边 看见 一 只 猫 和 很 多 鸟 下 雨 了".split()
FAMILIES = ("bert", "distilbert", "roberta", "gpt2", "llama")


def events(words):
    return Events(0.4 * np.arange(len(words)), 0.4 * np.arange(len(words)) + 0.3, tuple(words))


def word_pieces(family):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    raw, special = (
        Tokenizer(models.WordPiece(unk_token="[UNK]")),
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
    )
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=130, special_tokens=special)
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    return raw, trainer, names, ("[CLS] $A [SEP]", ["[CLS]", "[SEP]"])


def pairs_of_letters(family):
    "With an end token that must not be used."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=130, special_tokens=["<unk>", "<s>", "</s>"])
    names = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    return raw, trainer, names, ("<s> $A </s>", ["<s>", "</s>"])


def pairs_of_bytes(family):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special, frame = ["<|endoftext|>"], None
    names = dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    if family == "roberta":
        special, frame = ["<s>", "<pad>", "</s>"], ("<s> $A </s>", ["<s>", "</s>"])
        names = dict(pad_token="<pad>", cls_token="<s>", sep_token="</s>")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet)
    return raw, trainer, names, frame


def tokenizer_of(family):
    "A small trained tokenizer with the habits of its family."
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    kind = pairs_of_letters if family == "llama" else pairs_of_bytes
    if "bert" in family and family != "roberta":
        kind = word_pieces
    raw, trainer, names, frame = kind(family)
    raw.train_from_iterator([" ".join(ENGLISH), "".join(CHINESE)] * 3, trainer)
    if frame:
        single, around = frame
        raw.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(t, raw.token_to_id(t)) for t in around]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


def model_of(family, vocabulary):
    "A random model of three layers."
    import transformers as tf

    torch.manual_seed(0)
    small = dict(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=32,
        vocab_size=vocabulary,
    )
    if family == "bert":
        return tf.BertModel(tf.BertConfig(**small, max_position_embeddings=64))
    if family == "distilbert":
        return tf.DistilBertModel(
            tf.DistilBertConfig(
                dim=24,
                n_layers=3,
                n_heads=4,
                hidden_dim=32,
                vocab_size=vocabulary,
                max_position_embeddings=64,
            )
        )
    if family == "roberta":
        return tf.RobertaModel(
            tf.RobertaConfig(**small, max_position_embeddings=66, pad_token_id=1)
        )
    if family == "gpt2":
        return tf.GPT2Model(
            tf.GPT2Config(n_embd=24, n_layer=3, n_head=4, vocab_size=vocabulary, n_positions=64)
        )
    return tf.LlamaModel(tf.LlamaConfig(**small, max_position_embeddings=64))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = {}
    for family in FAMILIES:
        tokenizer = tokenizer_of(family)
        out[family] = tmp_path_factory.mktemp(family)
        model_of(family, len(tokenizer)).save_pretrained(out[family])
        tokenizer.save_pretrained(out[family])
    return out


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request, folders):
    return load_backbone(folders[request.param])


def pieces(backbone, inputs, i):
    return backbone.tokenizer.convert_ids_to_tokens(
        inputs.token_ids[i, inputs.attention_mask[i].bool()].tolist()
    )


def test_loading_knows_layers_width_length_and_direction(backbone):
    assert (backbone.layers, backbone.width, backbone.max_length) == (3, 24, 64)
    assert backbone.causal == (backbone.folder.name[:4] in ("gpt2", "llam"))
    assert len(transformer_blocks(backbone.model)) == 3 and not backbone.model.training


def decoded(backbone, ids):
    "The text of tokens without blanks and marks of pieces."
    text = backbone.tokenizer.decode(ids, skip_special_tokens=True)
    return text.replace("##", "").replace(" ", "")


def assert_text_of_context(backbone, ids, at, word, words, i, n_words):
    "The context up to the word, whole, and nothing after it."
    text = decoded(backbone, ids[: at + 1])
    assert text.endswith(word), (text, word)
    # the whole context, and nothing after the word
    assert text == "".join(words[max(0, i + 1 - n_words) : i + 1])


@pytest.mark.parametrize("words, language", [(ENGLISH, "en"), (CHINESE, "zh")])
@pytest.mark.parametrize("n_words", [1, 4, 20])
def test_C02_the_state_read_is_that_of_the_current_word(backbone, words, language, n_words):
    """C-02: index -1 of a padded, right-truncated context is [PAD] or [SEP]; the current word
    is never seen."""
    inputs = text_inputs(events(words), backbone, n_words, language)
    special = set(backbone.tokenizer.all_special_ids)
    end = [] if backbone.causal else [backbone.tokenizer.sep_token_id]  # decoders: no end token
    for i, word in enumerate(words):
        ids, at = inputs.token_ids[i].tolist(), int(inputs.position[i])
        assert inputs.attention_mask[i, at] == 1 and ids[at] not in special
        assert_text_of_context(backbone, ids, at, word, words, i, n_words)
        after = ids[at + 1 : int(inputs.attention_mask[i].sum())]
        assert after == end


def test_C02_changing_the_current_word_changes_its_state_and_only_later_ones(backbone):
    other = list(ENGLISH)
    other[9] = "fell"
    a, b = (
        hidden_states(backbone, text_inputs(events(w), backbone, 6), [-1])[0]
        for w in (ENGLISH, other)
    )
    moved = np.abs(a - b).max(1) > 1e-6
    assert moved.tolist() == [9 <= i < 15 for i in range(len(ENGLISH))]


def test_D01_a_batch_equals_one_by_one_and_any_order(backbone):
    "D-01: positions of the first batch were reused for all others."
    inputs = text_inputs(events(ENGLISH), backbone, 9)
    whole = hidden_states(backbone, inputs, batch_size=5)
    single = np.concatenate(
        [
            hidden_states(backbone, inputs.rows(torch.tensor([i])), batch_size=1)
            for i in range(len(inputs))
        ],
        1,
    )
    np.testing.assert_allclose(whole, single, atol=2e-6)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(
        hidden_states(backbone, inputs.rows(order), batch_size=7),
        whole[:, order.numpy()],
        atol=2e-6,
    )
    assert np.abs(whole[-1][1:] - whole[-1][:-1]).max(1).min() > 1e-3


def test_states_come_from_the_token_sequence_of_the_tokenizer_itself(backbone):
    """Independent road for the last word: one string, the tokenizer's own frame, plain
    transformers call."""
    inputs = text_inputs(events(ENGLISH), backbone, 8)
    tokenizer = backbone.tokenizer
    lead = " " if type(tokenizer.backend_tokenizer.pre_tokenizer).__name__ == "ByteLevel" else ""
    ids = tokenizer(lead + " ".join(ENGLISH[-8:])).input_ids
    if backbone.causal:
        ids = [k for k in ids if k not in (tokenizer.bos_token_id, tokenizer.eos_token_id)]
        ids = [tokenizer.bos_token_id] + ids
    at = len(ids) - 1 - (not backbone.causal)
    with torch.no_grad():
        states = backbone.model(
            input_ids=torch.tensor([ids]), output_hidden_states=True
        ).hidden_states
    for layer, state in zip(hidden_states(backbone, inputs), states):
        np.testing.assert_allclose(layer[-1], state[0, at].numpy(), atol=2e-6)


def test_layers_by_number(backbone):
    inputs = text_inputs(events(ENGLISH), backbone, 5)
    every = hidden_states(backbone, inputs)
    assert every.shape == (4, len(ENGLISH), 24) and every.dtype == np.float32
    np.testing.assert_array_equal(hidden_states(backbone, inputs, [-1, 0, 2]), every[[3, 0, 2]])
    read = (inputs.token_ids, inputs.attention_mask, inputs.position)
    for layer in (0, 1, 3, -1, -2):
        state = read_states(backbone.model, *read, layer)
        np.testing.assert_allclose(state.detach().numpy(), every[layer], atol=2e-6)
    with pytest.raises(ModelError, match="no such layer"):
        hidden_states(backbone, inputs, [4])


def test_gradients_reach_the_blocks_below_a_layer(backbone):
    inputs = text_inputs(events(ENGLISH), backbone, 5)
    read = (inputs.token_ids, inputs.attention_mask, inputs.position)
    read_states(backbone.model, *read, 2).square().sum().backward()
    moved = lambda p: p.grad is not None and p.grad.abs().sum() > 0
    reached = [any(map(moved, b.parameters())) for b in transformer_blocks(backbone.model)]
    backbone.model.zero_grad(set_to_none=True)
    assert reached == [True, True, False]


def test_long_contexts_lose_their_oldest_pieces_and_say_so(backbone):
    words = ENGLISH * 8
    inputs = text_inputs(events(words), backbone, 150)
    assert inputs.truncated > 0 and inputs.token_ids.shape[1] <= backbone.max_length == int(
        inputs.attention_mask.sum(1).max()
    )
    kept = (
        backbone.tokenizer.decode(inputs.token_ids[-1], skip_special_tokens=True)
        .replace(" ##", "")
        .replace("##", "")
    )
    assert "".join(words).endswith(kept.replace(" ", "")) and len(kept) > 50
    assert np.isfinite(hidden_states(backbone, inputs.rows(torch.arange(170, 184)))).all()
    assert text_inputs(events(words), backbone, 3).truncated == 0


def test_a_word_reads_the_same_wherever_it_stands_in_its_context(backbone):
    inputs = text_inputs(events(["bird", "bird"]), backbone, 2)
    body = [
        k
        for k in inputs.token_ids[1, inputs.attention_mask[1].bool()].tolist()
        if k not in backbone.tokenizer.all_special_ids
    ]
    assert body[: len(body) // 2] == body[len(body) // 2 :]


@pytest.mark.parametrize(
    "words, language, between", [(ENGLISH[:7], "en", " "), (CHINESE, "zh", "")]
)
def test_chinese_words_are_joined_without_blanks_and_english_ones_with(
    backbone, words, language, between
):
    inputs = text_inputs(events(words), backbone, 20, language)
    lead = (
        " "
        if language == "en"
        and type(backbone.tokenizer.backend_tokenizer.pre_tokenizer).__name__ == "ByteLevel"
        else ""
    )
    plain = backbone.tokenizer(lead + between.join(words), add_special_tokens=False).input_ids
    row = inputs.token_ids[-1, inputs.attention_mask[-1].bool()].tolist()
    assert row[1:] == plain + ([] if backbone.causal else [backbone.tokenizer.sep_token_id])
    assert row[0] == (
        backbone.tokenizer.bos_token_id if backbone.causal else backbone.tokenizer.cls_token_id
    )


def test_words_that_leave_no_token_are_refused(backbone):
    for bad in ("", " "):
        with pytest.raises(DataError, match="word 2 at 0.80 s"):
            text_inputs(events(["the", "cat", bad, "saw"]), backbone)


def toy_story():
    return Story("toy", "en", events(ENGLISH), regular_clock(6, 2.0, first=1.0))


def test_a_story_at_the_rate_of_the_scanner(backbone):
    story = toy_story()
    features = text_features(story, backbone, [1, -1], 4, cache=None)
    assert features.shape == (2, 6, 24) and features.dtype == np.float32
    states = hidden_states(backbone, text_inputs(story.words, backbone, 4), [1, -1])
    u = (story.clock.times[:, None] - story.words.midpoint) / 2.0
    lanczos = np.where(abs(u) <= 3, np.sinc(u) * np.sinc(u / 3), 0)
    np.testing.assert_allclose(features, np.einsum("tn,lnf->ltf", lanczos, states), atol=1e-4)


def test_features_of_a_story_are_kept_until_the_weights_change(backbone, tmp_path):
    made = lambda: text_features(toy_story(), backbone, [1, -1], 4, cache=tmp_path)
    features = made()
    (stored,) = tmp_path.glob("*.npy")
    stamp = stored.stat().st_mtime_ns
    np.testing.assert_array_equal(made(), features)
    assert stored.stat().st_mtime_ns == stamp
    weights = next(backbone.model.parameters())
    with torch.no_grad():
        weights.mul_(1.5)
    try:
        moved = made()  # other weights, other key
    finally:
        with torch.no_grad():
            weights.div_(1.5)
    assert np.abs(moved - features).max() > 1e-3 and len(list(tmp_path.glob("*.npy"))) == 2


def test_words_outside_the_scan_are_context_but_no_row(folders):
    backbone = load_backbone(folders["gpt2"])
    clock = regular_clock(4, 2.0, first=41.0)
    early = Events(
        np.r_[0.0, 40 + 0.4 * np.arange(8)],
        np.r_[0.3, 40.3 + 0.4 * np.arange(8)],
        ("cat", *ENGLISH[:8]),
    )
    changed = Events(early.onset, early.offset, ("saw", *ENGLISH[:8]))
    a, b = (text_features(Story("s", "en", w, clock), backbone, [-1], 5) for w in (early, changed))
    assert np.abs(a - b).max() > 1e-4  # heard long before the scan, still in the context
    a, b = (text_features(Story("s", "en", w, clock), backbone, [0], 5) for w in (early, changed))
    np.testing.assert_allclose(a, b, atol=1e-6)  # but its own state enters no row


def test_random_weights_are_fresh_seeded_and_leave_the_generator_alone(folders):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, same, other, trained = (
        load_backbone(folders["bert"], **k)
        for k in (
            dict(random_weights=True, seed=1),
            dict(random_weights=True, seed=1),
            dict(random_weights=True, seed=2),
            {},
        )
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    weight = lambda b: transformer_blocks(b.model)[0].attention.self.query.weight
    assert (
        torch.equal(weight(one), weight(same))
        and not torch.equal(weight(one), weight(other))
        and not torch.equal(weight(one), weight(trained))
    )
    assert "random weights, seed 1" in one.notes


# ---- what cannot be used
# -------------------------------------------------------------------------------------------


@pytest.fixture
def copy(folders, tmp_path):
    return lambda family: shutil.copytree(folders[family], tmp_path / family)


def test_a_folder_without_weights_is_refused(copy):
    folder = copy("bert")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights") as error:
        load_backbone(folder)
    assert str(folder) in str(error.value) and "next step" in str(error.value)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickles are never read"):
        load_backbone(folder)


def test_a_tokenizer_that_does_not_fit_its_model_is_refused(copy, folders):
    folder = copy("bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["gpt2"] / name, folder / name)
    with pytest.raises(ModelError, match="does not fit its model"):
        load_backbone(folder)


def test_missing_weights_are_refused_and_heads_are_noted(copy):
    from safetensors.torch import load_file, save_file

    folder = copy("bert")
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file(
        {k: v for k, v in weights.items() if "layer.1.attention" not in k}, file, {"format": "pt"}
    )
    with pytest.raises(ModelError, match="lacks weights of the model"):
        load_backbone(folder)
    save_file(
        {k: v for k, v in weights.items() if "pooler" not in k}
        | {"cls.head.weight": torch.ones(2, 2)},
        file,
        {"format": "pt"},
    )
    assert "cls.head.weight" in load_backbone(folder).notes[0]


def test_broken_and_foreign_files_are_refused(copy, tmp_path):
    folder = copy("llama")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_backbone(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no config.json"):
        load_backbone(tmp_path / "empty")
    with pytest.raises(ModelError, match="no such folder"):
        load_backbone(tmp_path / "absent")


def test_encoder_decoder_and_unreachable_hub(tmp_path, monkeypatch):
    from transformers import T5Config

    T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=20).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="Encoder-decoder"):
        load_backbone(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hf download nobody/no-such-model --local-dir"):
        load_backbone("nobody/no-such-model")


def test_a_tokenizer_that_knows_no_word_is_refused(folders):
    backbone = load_backbone(folders["bert"])
    with pytest.raises(ModelError, match="does not know the words"):
        text_inputs(events("жук ёж".split()), backbone)
    assert 0 < text_inputs(events(ENGLISH[:5] + ["жук"]), backbone).unknown < 0.5
