"""Representations: CKA, RSA and CSLS against independent formulas; sentence states of three kinds
of tokenizers; faults."""

import numpy as np
import pytest
import torch
import transformers as tf
from scipy.stats import t as student

from braintune_nb.analyses.state_similarity import (
    accuracy,
    centred,
    change_by_layer,
    cka,
    csls,
    jackknife,
    retrieval,
    rsa,
    rsa_null,
)
from braintune_nb.core import DataError, ParameterError
from braintune_nb.features.text import reading, span_states
from braintune_nb.model.backbone import Backbone, load_backbone

SAID = [
    "the dog saw a zebra",
    "she washed the horse",
    "a cat",
    "the small dog was very angry because it rained",
]


def song(x, y):
    """HSIC_1 of Song et al. (2012) from Gram matrices, as a sum over four different indices, by
    brute force."""
    k, l = x @ x.T, y @ y.T
    n, total = len(x), 0.0
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            total += k[i, j] * l[i, j] / (n * (n - 1))
            for q in range(n):
                if q in (i, j):
                    continue
                total -= 2 * k[i, j] * l[i, q] / (n * (n - 1) * (n - 2))
                for r in range(n):
                    if r not in (i, j, q):
                        total += k[i, j] * l[q, r] / (n * (n - 1) * (n - 2) * (n - 3))
    return total


@pytest.mark.parametrize("n, a, b", [(6, 3, 2), (8, 20, 30), (9, 1, 12)])
def test_cka_is_the_u_statistic(n, a, b):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, a)) + 2
    y = rng.standard_normal((n, b)) + x[:, :1]
    assert cka(x, y) == pytest.approx(song(x, y) / (song(x, x) * song(y, y)) ** 0.5, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cka_does_not_mind_rotation_scale_and_offset_but_minds_order(dtype):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((60, 8)).astype(dtype)
    turned = (7 * x @ np.linalg.qr(rng.standard_normal((8, 8)))[0] + 100).astype(dtype)
    assert cka(x, turned) == pytest.approx(1, abs=1e-3 if dtype == np.float32 else 1e-9)
    assert cka(x, x[::-1]) < 0.2
    assert cka(x, turned) == pytest.approx(cka(turned, x), abs=1e-9)


def test_released_pooling_would_say_nothing():
    "C-10: a set that is pooled to one row has no layout; here it is refused."
    with pytest.raises(DataError, match="Too few items"):
        cka(np.ones((1, 5)), np.ones((1, 5)))


def test_the_jackknife_of_a_mean_is_its_t_interval():
    x = np.random.default_rng(4).gamma(2.0, size=37)
    value, low, high = jackknife(lambda rows: x[rows].mean(), 37, groups=37)
    half = student.ppf(0.975, 36) * x.std(ddof=1) / 37**0.5
    assert (value, low, high) == pytest.approx(
        (x.mean(), x.mean() - half, x.mean() + half), abs=1e-9
    )


def test_rsa_null_is_centred_on_zero_and_rsa_of_itself_is_one():
    rng = np.random.default_rng(5)
    x, length = rng.standard_normal((40, 6)), rng.integers(3, 30, 40)
    assert rsa(x, x, [length]) == pytest.approx(1, abs=1e-9)
    null = rsa_null(x, rng.standard_normal((40, 6)), [length], draws=300)
    assert abs(null.mean()) < 0.03 and null.std() > 0.01
    with pytest.raises(DataError, match="same items"):
        rsa(x, x, [length[:5]])
    with pytest.raises(DataError, match="no direction"):
        rsa(np.ones((5, 3)), x[:5])


@pytest.mark.parametrize("k", [1, 3, 50])
def test_csls_by_brute_force(k):
    rng = np.random.default_rng(k)
    x, y = centred(rng.standard_normal((7, 3))), centred(rng.standard_normal((5, 3)))
    got = csls(x, y, k)
    for i in range(7):
        for j in range(5):
            near_x = np.sort([x[i] @ b for b in y])[::-1][:k].mean()
            near_y = np.sort([a @ y[j] for a in x])[::-1][:k].mean()
            assert got[i, j] == pytest.approx(2 * x[i] @ y[j] - near_x - near_y, abs=1e-12)


def random_pairs():
    rng = np.random.default_rng(6)
    x = rng.standard_normal((30, 5))
    return x, x + rng.standard_normal((30, 5)), np.arange(30) % 3


def test_retrieval_in_groups_is_retrieval_of_each_group():
    x, y, groups = random_pairs()
    whole = retrieval(x, y, groups=groups)
    for g in range(3):
        part = retrieval(x[groups == g], y[groups == g])
        assert (whole["forward"][groups == g] == part["forward"]).all()
        assert (whole["backward"][groups == g] == part["backward"]).all()
    assert (whole["chance"] == 0.1).all()
    with pytest.raises(DataError, match="group of one"):
        retrieval(x, y, groups=np.arange(30))


def test_retrieval_backwards_is_retrieval_of_the_others():
    x, y, groups = random_pairs()
    whole, back = retrieval(x, y, groups=groups), retrieval(y, x, groups=groups)
    assert (back["forward"] == whole["backward"]).all()


def test_retrieval_takes_the_best_of_all():
    x, y, _ = random_pairs()
    best = csls(centred(x), centred(y), 10).argmax(1) == np.arange(30)
    assert (retrieval(x, y)["forward"] == best).all() and 0 < best.sum() < 30


def test_the_wilson_interval_covers():
    rng = np.random.default_rng(7)
    intervals = [accuracy(rng.random(80) < 0.1)[1:] for _ in range(400)]
    inside = [low <= 0.1 <= high for low, high in intervals]
    assert 0.92 < np.mean(inside) < 0.99


# ---- sentence states


def byte_level(folder):
    "A random decoder with a byte-level tokenizer, which writes a blank into the piece after it."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    raw.post_processor = processors.ByteLevel(trim_offsets=True)
    raw.train_from_iterator(
        SAID * 20,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", pad_token="<s>")
    torch.manual_seed(0)
    model = tf.GPT2Model(
        tf.GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=12,
            n_layer=2,
            n_head=2,
            n_positions=40,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    return Backbone(model, tokenizer, "bytes", None, 2, 12, 40, True)


def by_hand(backbone, text, a, b, method):
    "States of the pieces whose own text lies in characters a to b, found by decoding prefixes."
    lead = "" if backbone.name == "tiny" else " "
    coded = backbone.tokenizer(lead + text, add_special_tokens=False, return_offsets_mapping=True)
    before = [backbone.tokenizer.cls_token_id] if backbone.name == "tiny" else [0]
    after = [backbone.tokenizer.sep_token_id] if backbone.name == "tiny" else []
    with torch.no_grad():
        hidden = torch.stack(
            backbone.model(
                input_ids=torch.tensor([before + coded.input_ids + after]),
                output_hidden_states=True,
            ).hidden_states
        )[:, 0, 1:]
    mine = [
        i
        for i, (first, end) in enumerate(coded.offset_mapping)
        if end - len(lead) > a and first - len(lead) < b
    ]
    return (
        hidden[:, mine[-1] if method == "last" else mine]
        .reshape(hidden.shape[0], -1, hidden.shape[2])
        .mean(1)
        .numpy()
    )


SPANS = [(0, 14, 19), (3, 4, 9), (2, 0, 5), (1, 0, 20), (0, 0, 3)]  # text, first and last character


@pytest.mark.parametrize("method", ["mean", "last"])
@pytest.mark.parametrize("kind", ["tiny", "bytes"])
def test_states_of_words_and_sentences(kind, method, tmp_path):
    backbone = load_backbone("tiny") if kind == "tiny" else byte_level(tmp_path)
    where = tuple(np.array(x) for x in zip(*SPANS))
    got = span_states(backbone, SAID, where, method=method)
    assert got.shape == (3, 5, backbone.width) and got.dtype == np.float32
    hand = [by_hand(backbone, SAID[s], a, b, method) for s, a, b in SPANS]
    np.testing.assert_allclose(got, np.stack(hand, 1), atol=1e-5)
    some = span_states(backbone, SAID, where, [-1, 0], method, batch_tokens=12)
    np.testing.assert_allclose(some, got[[2, 0]], atol=1e-5)
    assert not backbone.model.training and reading(backbone, SAID)["unknown"] == 0


def test_states_leave_the_mode_of_the_model_alone():
    tiny = load_backbone("tiny")
    tiny.model.train()
    span_states(tiny, SAID[:1])
    assert tiny.model.training
    with pytest.raises(DataError, match="leaves no token"):
        span_states(tiny, SAID, ([0], [3], [4]))
    assert tiny.model.training


def test_a_decoder_reads_its_past_alone(tmp_path):
    backbone, cut = byte_level(tmp_path), len("the dog")
    word = lambda text: span_states(backbone, [text], ([0], [4], [cut]))
    np.testing.assert_allclose(
        word("the dog saw a zebra"), word("the dog washed the horse"), atol=1e-6
    )
    np.testing.assert_allclose(
        span_states(backbone, ["the dog."], ([0], [7], [8])),
        span_states(backbone, ["the dog."], method="last"),
        atol=1e-6,
    )  # the blank in front is no character of the text
    tiny = load_backbone("tiny")
    assert (
        np.abs(
            span_states(tiny, [SAID[0]], ([0], [4], [cut]))
            - span_states(tiny, ["the dog washed the horse"], ([0], [4], [cut]))
        )[-1].max()
        > 1e-3
    )


def test_a_random_move_equals_its_own_kind():
    """A 'tuned' model that is itself a random move lies among the random moves; one that turned
    the states rigidly lies above."""
    rng = np.random.default_rng(8)
    before = rng.standard_normal((1, 100, 12))
    noise = lambda: before + 0.5 * rng.standard_normal(before.shape)
    table = change_by_layer(before, noise(), [noise() for _ in range(6)]).set_index("measure")
    for m in ("cka", "rsa"):
        assert (
            table.moved_low[m] - 0.03 < table.value[m] < table.moved_high[m] + 0.03
            and table.ci_low[m] < table.value[m] < table.ci_high[m]
        )
    with pytest.raises(ParameterError, match="moved as far"):
        change_by_layer(before, before, [])
    with pytest.raises(DataError, match="layers and items"):
        change_by_layer(before, before[:, :50], [before])
