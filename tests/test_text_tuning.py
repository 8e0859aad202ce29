"""The end-to-end road of text tuning against a slow one written for the test: one window at a time,
a dense Lanczos filter of two loops, z-score and delays by hand, all in float64."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from braintune_nb.clock import regular_clock
from braintune_nb.core import ParameterError
from braintune_nb.data.splits import Section, blocks, whole_story
from braintune_nb.data.stories import Events, Story
from braintune_nb.loss import get_loss
from braintune_nb.model import text_inputs
from braintune_nb.model.adapter import Adapter
from braintune_nb.model.backbone import load_backbone, transformer_blocks
from braintune_nb.model.release import BrainTuner
from braintune_nb.model.text_inputs import section_inputs, word_states
from braintune_nb.simulate.text_model import toy_backbone
from braintune_nb.train.loop import TuneSettings, tune

WORDS = "the wind and sun walked home slowly over old hills until evening came".split()
SIZES = dict(
    bert=dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24),
    roberta=dict(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=24,
        pad_token_id=0,
    ),
    electra=dict(
        hidden_size=16,
        embedding_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
    ),
    distilbert=dict(dim=16, n_layers=3, n_heads=2, hidden_dim=24),
    gpt2=dict(n_embd=16, n_layer=3, n_head=2),
    llama=dict(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
    ),
)
SIZES["xlm-roberta"] = SIZES["roberta"]


def made(kind="bert", seed=0):
    "A small random backbone of a family, with the words as its vocabulary."
    from transformers import AutoConfig, AutoModel

    template = toy_backbone(WORDS, width=16, layers=3, seed=seed)
    torch.manual_seed(seed)
    model = AutoModel.from_config(
        AutoConfig.for_model(kind, vocab_size=len(WORDS) + 4, initializer_range=0.2, **SIZES[kind])
    ).eval()
    return dataclasses.replace(template, model=model, name=kind, causal=kind in ("gpt2", "llama"))


def told(seed=0, n=18, words=70):
    """A story with uneven words, some of them before and after the scan, and a TR that is no
    round number."""
    draw = np.random.default_rng(seed)
    onset = np.sort(draw.uniform(-4, 2.0045 * n + 6, words))
    return Story(
        f"told {seed}",
        "en",
        Events(
            onset,
            onset + draw.uniform(0.1, 0.4, words),
            [WORDS[i] for i in draw.integers(len(WORDS), size=words)],
        ),
        regular_clock(n, 2.0045, first=0.7),
    )


# ---- the slow road


def slow_states(model, backbone, story, n_words, layer):
    "One window at a time, through the whole model."
    rows = []
    for i in range(len(story.words)):
        ids = backbone.tokenizer(
            " ".join(story.words.text[max(0, i + 1 - n_words) : i + 1])
        ).input_ids
        if backbone.causal:
            ids = ids[:-1]  # no end token: the story goes on
        at = len(ids) - (1 if backbone.causal else 2)
        rows.append(
            model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][
                0, at
            ]
        )
    return torch.stack(rows)


def slow_lanczos(story, scale, normalise=False):
    times, words = story.clock.times, (story.words.onset + story.words.offset) / 2
    out = torch.zeros(len(times), len(words), dtype=torch.float64)
    for t in range(len(times)):
        for n in range(len(words)):
            x = (times[t] - words[n]) * scale
            if abs(x) < 1e-12:
                out[t, n] = 1
            elif abs(x) <= 3:
                out[t, n] = (
                    3 * math.sin(math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x) ** 2
                )
        if normalise and out[t].sum() > 0:
            out[t] /= out[t].sum()
    return out


def slow_features(states, weights, first, rows, delays):
    "z-score over rows `first` to the last one, explicit delays; zeros before the story."
    x = weights @ states
    part = x[first : max(rows) + 1]
    part = (part - part.mean(0)) / (part.std(0, unbiased=True) + 1e-6)
    zero = torch.zeros(x.shape[1], dtype=x.dtype)
    delayed = lambda r: torch.cat([part[r - d - first] if r - d >= first else zero for d in delays])
    return torch.stack([delayed(r) for r in rows])


def slow_correlation(p, y):
    "r of two columns."
    a, b = p - p.mean(), y - y.mean()
    return (a * b).sum() / (a.norm() * b.norm())


def slow_contrast(p, y):
    "Of predictions with responses, those of the two rows before and after left out."
    alike = lambda i, j: p[i] @ y[j] / (p[i].norm() * y[j].norm()) / 0.5
    terms = []
    for i in range(len(p)):
        s = torch.stack([alike(i, j) for j in range(len(y)) if j == i or abs(i - j) > 2])
        terms.append(torch.log(torch.exp(s).sum()) - alike(i, i))
    return torch.stack(terms).mean()


def slow_loss(name, p, y):
    "The four losses of paper C as formulas."
    r = torch.stack([slow_correlation(p[:, v], y[:, v]) for v in range(p.shape[1])])
    square = ((p - y) ** 2).sum() / p.numel()
    if name == "mse":
        return square
    if name == "correlation_over_time":
        return 1 - r.mean()
    if name == "hybrid_over_time":
        return 0.5 * (1 - r.mean()) + 0.5 * square
    return slow_contrast(p, y)


LOSSES = dict(
    mse={},
    correlation_over_time={},
    hybrid_over_time=dict(weight=0.5),
    ntxent_over_time=dict(temperature=0.5, mask_within=2),
)


def slow_prediction(slow, backbone, story, rows, n_words, delays, over):
    "Of the rows of a section, every word's window read for itself."
    states = slow_states(slow.model, backbone, story, n_words, slow.layer)
    first = 0 if over == "story" else max(0, min(rows) - max(delays))
    last = len(story.clock) - 1 if over == "story" else max(rows)
    lanczos = slow_lanczos(story, 1 / story.clock.tr)
    x = slow_features(states, lanczos, first, list(range(first, last + 1)), delays)
    return x[[r - first for r in rows]] @ slow.heads[0].weight.T + slow.heads[0].bias


def gradient(tuner):
    "Of all weights, in one row; 0 where there is none."
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in tuner.parameters()]
    return torch.cat([g.flatten().double() for g in grads])


def both_roads(
    backbone,
    story,
    rows,
    loss,
    n_words=6,
    layer=-1,
    delays=(1, 2, 3, 4),
    memory_gb=2.0,
    over="section",
    whole_gradient=True,
):
    """(prediction, gradient of every backbone weight) of the tuner in float32 and of the slow
    road in float64."""
    tuner = BrainTuner(
        backbone, {"P1": 5}, layer=layer, delays=delays, dropout=0.0, seed=3, memory_gb=memory_gb
    ).eval()
    target = torch.as_tensor(np.random.default_rng(5).normal(size=(len(rows), 5)))
    inputs = section_inputs(
        Section("part", story, np.asarray(rows)), backbone, n_words, delays, over=over
    )
    ours = tuner(inputs)["P1"]
    get_loss(loss, **LOSSES[loss])(ours, target.float()).backward()

    slow = copy.deepcopy(tuner).double()
    slow.zero_grad()
    theirs = slow_prediction(slow, backbone, story, rows, n_words, delays, over)
    slow_loss(loss, theirs, target).backward()
    return ours.detach().double(), theirs.detach(), gradient(tuner), gradient(slow)


def same(ours, theirs, g, h):
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert h.norm() > 0 and (g - h).norm() <= 1e-3 * h.norm(), float((g - h).norm() / h.norm())


@pytest.mark.parametrize("loss", LOSSES)
def test_predictions_and_gradients_of_a_whole_story(loss):
    same(*both_roads(made(), told(), list(range(18)), loss))


@pytest.mark.parametrize("kind", SIZES)
def test_other_families(kind):
    for layer in (1, -1):
        same(*both_roads(made(kind), told(2), list(range(18)), "ntxent_over_time", layer=layer))


@pytest.mark.parametrize("memory_gb", [0.0, 6e-5, 1.0])
def test_a_block_with_its_past_and_any_budget_of_memory(memory_gb):
    same(
        *both_roads(
            made(),
            told(1),
            list(range(6, 15)),
            "hybrid_over_time",
            delays=(1, 3),
            memory_gb=memory_gb,
        )
    )


def test_the_tiny_backbone_with_its_own_tokenizer():
    backbone = load_backbone("tiny")
    words = [w for w in backbone.tokenizer.get_vocab() if w.isalpha()][:40]
    draw = np.random.default_rng(3)
    story = dataclasses.replace(
        told(3),
        words=dataclasses.replace(
            told(3).words, text=tuple(words[i] for i in draw.integers(len(words), size=70))
        ),
    )
    same(*both_roads(backbone, story, list(range(18)), "ntxent_over_time", n_words=10))


# ---- z-score over the story


def test_over_the_story_a_block_predicts_what_the_whole_story_does():
    backbone, story = made(), told(4, 24, 90)
    tuner = BrainTuner(backbone, {"P1": 4}, dropout=0.0).eval()
    whole = tuner(section_inputs(whole_story(story), backbone, 6))["P1"]
    for part in np.array_split(np.arange(24), 3):
        section = Section("part", story, part)
        torch.testing.assert_close(
            tuner(section_inputs(section, backbone, 6, over="story"))["P1"],
            whole[part],
            atol=2e-5,
            rtol=1e-4,
        )
        assert (
            tuner(section_inputs(section, backbone, 6))["P1"] - whole[part]
        ).abs().max() > 0.01  # over the section: another mean and deviation
    ours, theirs, g, h = both_roads(backbone, story, list(range(8, 16)), "mse", over="story")
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (
        0.3 < float(torch.nn.functional.cosine_similarity(g, h, dim=0)) < 0.999999
    )  # the words elsewhere have no gradient: near, not equal


def test_over_the_story_gradients_flow_through_the_blocks_own_words_alone():
    backbone, story = made(), told(4, 24, 90)
    inputs = section_inputs(Section("part", story, np.arange(8, 16)), backbone, 6, over="story")
    embedded = copy.deepcopy(backbone.model)
    states = word_states(embedded, inputs, 3)
    own = inputs.own
    assert 0 < own.sum() < len(own)
    with torch.no_grad():
        plain = torch.stack(
            [
                embedded(input_ids=t[m.bool()][None]).last_hidden_state[0, p]
                for t, m, p in zip(inputs.token_ids, inputs.attention_mask, inputs.position)
            ]
        )
    torch.testing.assert_close(states, plain, atol=1e-5, rtol=1e-4)
    g = torch.autograd.grad(
        states[~own].sum() + 0 * states.sum(),
        [p for n, p in embedded.named_parameters() if "pooler" not in n],
        allow_unused=True,
    )
    assert all(x is None or not x.any() for x in g)


# ---- steps


def pairs_of(backbone, sections, **more):
    draw = np.random.default_rng(0)
    return [
        (
            section_inputs(s, backbone, 5, **more),
            {"P1": torch.as_tensor(draw.normal(size=(len(s), 4)), dtype=torch.float32)},
        )
        for s in sections
    ]


def test_blocks_of_a_story_are_steps_and_stories_can_be_gathered():
    backbone, stories = made(), [told(i, 24, 80) for i in range(2)]
    settings = dict(epochs=2, learning_rate=1e-3, patience=0, device="cpu")

    def steps(sections, **more):
        tuner = BrainTuner(backbone, {"P1": 4}, seed=1)
        return tune(
            tuner,
            pairs_of(backbone, sections),
            None,
            get_loss("mse"),
            TuneSettings(**settings | more),
            progress=False,
        )[-1]["step"]

    parts = [
        Section(f"{s.name}.{i}", s, rows)
        for s in stories
        for i, rows in enumerate(np.array_split(np.arange(24), 4))
    ]
    assert steps([whole_story(s) for s in stories]) == 4  # a story is a step
    assert steps(parts) == 16  # four blocks of a story are four
    assert (
        steps(parts, accumulate=4) == 4 and steps(parts, accumulate=10**6) == 2
    )  # gathered, and the released one step an epoch (C-03)


def tuner_without_dropout(backbone):
    tuner = BrainTuner(backbone, {"P1": 4}, dropout=0.0, seed=1)
    for m in tuner.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.0
    return tuner


def gradients_apart(pairs, tuner):
    "Gradients of each section alone."
    apart = []
    for inputs, targets in pairs:
        tuner.zero_grad()
        get_loss("mse")(tuner(inputs)["P1"], targets["P1"]).backward()
        apart.append([None if p.grad is None else p.grad.clone() for p in tuner.parameters()])
    return apart


def keep_gradients(optimizer, seen):
    "The gradients that a step would use, by the identity of their weights."
    weights = [p for g in optimizer.param_groups for p in g["params"]]
    seen |= {id(p): p.grad.clone() for p in weights if p.grad is not None}


def test_gathered_sections_give_the_mean_of_their_gradients(monkeypatch):
    backbone, seen = made(), {}
    pairs = pairs_of(backbone, [whole_story(told(i, 16)) for i in range(3)])
    tuner = tuner_without_dropout(backbone)
    apart = gradients_apart(pairs, tuner)
    tuner.zero_grad()
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: keep_gradients(self, seen))
    tune(
        tuner,
        pairs,
        None,
        get_loss("mse"),
        TuneSettings(epochs=1, accumulate=3, clip=1e9, device="cpu"),
        progress=False,
    )
    compared = [
        (seen[id(p)], torch.stack(g).mean(0))
        for p, g in zip(tuner.parameters(), zip(*apart))
        if id(p) in seen
    ]
    assert len(compared) > 40
    for got, mean in compared:
        assert (got - mean).norm() <= 1e-4 * mean.norm() + 1e-7


def test_a_tuning_and_a_scored_block_of_one_story_are_purged():
    story = told(5, 60, 200)
    a, b = blocks(story, 2, 18.0)
    assert (b.rows.min() - a.rows.max()) * story.clock.tr >= 18
    near = lambda s: set(
        np.flatnonzero(
            (
                slow_lanczos(story, 1 / story.clock.tr).numpy()[
                    np.arange(max(0, s.rows.min() - 4), s.rows.max() + 1)
                ]
                != 0
            ).any(0)
        ).tolist()
    )
    assert len(near(a) & near(b)) < 0.1 * len(
        near(a)
    )  # what is left comes through lobes and delays


# ---- defects of the released code


@pytest.fixture(scope="module")
def as_released():
    "A backbone, a story, inputs as the released program has them, and the words that are read."
    backbone, story = made(), told(6)
    inputs = section_inputs(whole_story(story), backbone, 20, pooled="released")
    words = np.flatnonzero((slow_lanczos(story, 1 / story.clock.tr) != 0).any(0).numpy())
    return backbone, story, inputs, words


def test_c02_inputs_are_those_of_the_tokenizer(as_released):
    backbone, story, inputs, words = as_released
    settings = dict(truncation=True, max_length=20, padding="max_length")
    ids = [
        backbone.tokenizer(" ".join(story.words.text[max(0, i - 19) : i + 1]), **settings)
        for i in words
    ]
    assert inputs.token_ids.tolist() == [x["input_ids"] for x in ids]
    assert inputs.attention_mask.tolist() == [x["attention_mask"] for x in ids]


def test_c02_padding_or_separator_is_read(as_released):
    backbone, _, inputs, _ = as_released
    read, tokenizer = inputs.token_ids[:, -1], backbone.tokenizer
    assert set(read.tolist()) == {tokenizer.pad_token_id, tokenizer.sep_token_id}
    states = word_states(backbone.model, inputs, 3, batch=7)
    ready = dict(input_ids=inputs.token_ids, attention_mask=inputs.attention_mask)
    with torch.no_grad():
        theirs = backbone.model(**ready).last_hidden_state[:, -1]
    torch.testing.assert_close(states.detach(), theirs, atol=1e-5, rtol=1e-4)


def test_c02_the_word_itself_is_never_seen(as_released):
    "A word is read only when it is two words old."
    backbone, story, inputs, words = as_released
    text = list(story.words.text)
    text[60] = "evening" if text[60] != "evening" else "sun"
    other = dataclasses.replace(story, words=dataclasses.replace(story.words, text=tuple(text)))
    again = section_inputs(whole_story(other), backbone, 20, pooled="released")
    moved = (again.token_ids != inputs.token_ids).any(1)
    assert not moved[list(words).index(60)] and moved[list(words).index(63)]


def test_c06_released_filter():
    backbone, story = made(), told(7)
    t, w = story.clock.times, story.words.midpoint
    weights = section_inputs(whole_story(story), backbone, 5, lanczos="released").weights
    slow = slow_lanczos(story, (w.max() - w.min()) / (t.max() - t.min()), normalise=True)
    torch.testing.assert_close(weights.double(), slow[:, (slow != 0).any(0)], atol=1e-6, rtol=1e-5)


def counting_recording(story, i, space):
    "Responses that count the rows: from 100 times i on, and from -50 on."
    from braintune_nb.data.recordings import Recording

    rows = np.arange(len(story.clock))
    return Recording(
        "P1", story, np.stack([rows + 100 * i, rows - 50.0], 1).astype(np.float32), space
    )


@pytest.fixture(scope="module")
def counting_plan():
    "A plan of five stories with responses that count; its sections by the names of stories."
    from braintune_nb.data.recordings import Dataset, Space
    from braintune_nb.experiment.plan import ExperimentPlan, TuningFold

    stories = {n: dataclasses.replace(told(i, 10 + i), name=n) for i, n in enumerate("abcde")}
    space = Space("two", "region", np.arange(2))
    heard = {n: counting_recording(s, i, space) for i, (n, s) in enumerate(stories.items())}
    part = lambda names: [whole_story(stories[n]) for n in names]
    data = Dataset("toy", stories, {"P1": heard}, "", "")
    fold = TuningFold(part("ca"), part("d"), [(part("b"), part("e"))])
    return ExperimentPlan(data, [fold], ("P1",), ()), part


def first_column(targets):
    return [t["P1"][:, 0] for t in targets]


def test_c01_responses_of_all_stories_stand_beside_the_features_of_some(counting_plan):
    from braintune_nb.experiment.tuning import brain_targets, stacked_targets

    plan, part = counting_plan
    own = first_column(brain_targets(plan, s) for s in part("ca"))
    stacked = first_column(stacked_targets(plan, part("ca")))
    np.testing.assert_array_equal(own[1], stacked[1])  # the first story by name is right
    # tuning and encoding stories by name
    whole = np.concatenate(first_column(brain_targets(plan, s) for s in part("abc")))
    # the second one gets what follows: story b, and the first row of c
    np.testing.assert_array_equal(stacked[0], whole[10:22])
    assert (stacked[0] != own[0]).all()


def test_c01_halves_of_a_story_get_the_responses_of_the_whole(counting_plan):
    from braintune_nb.experiment.tuning import arm_targets, stacked_targets

    plan, part = counting_plan
    story, stacked = part("c")[0].story, first_column(stacked_targets(plan, part("ca")))[0]
    halves = [Section("c.1", story, np.arange(5)), Section("c.2", story, np.arange(5, 12))]
    halved = np.concatenate(first_column(stacked_targets(plan, halves)))
    np.testing.assert_array_equal(halved, stacked)
    targets = arm_targets(plan, part("ca"), "tuned", stacked=True)
    np.testing.assert_array_equal(first_column(targets)[0], stacked)


def test_c01_validation_keeps_its_own_responses(counting_plan):
    from braintune_nb.experiment.presets import TEXT_PRESETS
    from braintune_nb.experiment.tuning import brain_targets, stacked_targets

    plan, part = counting_plan
    own = brain_targets(plan, part("d")[0])["P1"]
    np.testing.assert_array_equal(stacked_targets(plan, part("d"))[0]["P1"], own)
    released = TEXT_PRESETS["released_c"]
    assert released.story_order == "stacked" and released.reading["pooled"] == "released"
    assert released.tune.accumulate > 1000


def test_unknown_readings_are_refused():
    with pytest.raises(ParameterError, match="section, story; word, released"):
        section_inputs(whole_story(told()), made(), pooled="last")
    with pytest.raises(ParameterError, match="fixed, paper, released"):
        section_inputs(whole_story(told()), made(), lanczos="sharp")


# ---- speed without another number


def states_and_gradients(backbone, inputs, block):
    "States of the words at the last layer, and the gradients of its block."
    backbone.model.zero_grad()
    states = word_states(backbone.model, inputs, backbone.model.config.num_hidden_layers)
    states.square().sum().backward()
    return states.detach(), [p.grad.clone() for p in block.parameters()]


@pytest.mark.parametrize("kind, wide", [("bert", "intermediate"), ("distilbert", "ffn.lin1")])
def test_only_the_place_of_the_word_is_computed_in_the_block_that_is_read(monkeypatch, kind, wide):
    backbone, sizes = made(kind), []
    inputs = section_inputs(whole_story(told()), backbone, 6)
    block = transformer_blocks(backbone.model)[-1]
    block.get_submodule(wide).register_forward_pre_hook(
        lambda m, a: sizes.append(tuple(a[0].shape))
    )
    states, gradients = states_and_gradients(backbone, inputs, block)
    assert all(len(s) == 2 for s in sizes) and sum(s[0] for s in sizes) == len(inputs.position)
    monkeypatch.setattr(text_inputs, "_LIKE_BERT", ())
    plain, expected = states_and_gradients(backbone, inputs, block)
    assert len(sizes[-1]) == 3
    torch.testing.assert_close(states, plain, atol=1e-5, rtol=1e-4)
    for got, right in zip(gradients, expected):
        torch.testing.assert_close(got, right, atol=1e-3, rtol=1e-3)


def test_adapters_are_trained_in_the_block_that_is_read():
    backbone = made()
    tuner = BrainTuner(backbone, {"P1": 4}, adapter=Adapter(rank=2), dropout=0.0, seed=2)
    tuner.freeze("all")
    with torch.no_grad():
        for n, p in tuner.model.named_parameters():
            if "lora_" in n:
                p.add_(0.1)
    inputs = section_inputs(whole_story(told()), backbone, 6)
    got = tuner.eval()(inputs)["P1"]
    folded = BrainTuner(tuner.backbone, {"P1": 4}, dropout=0.0, seed=2).eval()
    torch.testing.assert_close(got, folded(inputs)["P1"], atol=1e-4, rtol=1e-4)
    got.square().mean().backward()
    last = [p.grad for n, p in tuner.model.named_parameters() if "layer.2." in n and "lora_" in n]
    assert last and all(g is not None and g.abs().sum() > 0 for g in last)


def test_dropout_is_the_same_kept_or_computed_again():
    backbone = made()
    inputs, found = section_inputs(whole_story(told()), backbone, 6), []
    for memory_gb in (0.0, 1e-4, 5.0):
        tuner = BrainTuner(backbone, {"P1": 4}, seed=1, memory_gb=memory_gb).train()
        torch.manual_seed(3)
        tuner(inputs)["P1"].square().mean().backward()
        found.append(
            torch.cat([p.grad.flatten() for p in tuner.model.parameters() if p.grad is not None])
        )
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, atol=1e-6, rtol=1e-4)


@pytest.fixture
def computed(monkeypatch):
    "Sizes of the blocks that are computed twice, and once."
    twice, once = [], []
    real, plain = text_inputs.checkpoint, text_inputs._states_at
    again = lambda f, *a, **k: twice.append(a[1].shape) or real(plain, *a, **k)
    monkeypatch.setattr(text_inputs, "checkpoint", again)
    monkeypatch.setattr(text_inputs, "_states_at", lambda *a: once.append(a[1].shape) or plain(*a))
    return twice, once


def test_what_fits_is_kept_and_it_is_what_the_backward_pass_comes_to_first(computed):
    backbone, (twice, once) = made(), computed
    inputs = section_inputs(whole_story(told()), backbone, 6)
    gb = lambda shapes: sum(
        text_inputs.activation_gb(tuple(s), backbone.model.config, 3) for s in shapes
    )
    read = lambda gigabytes: word_states(backbone.model, inputs, 3, batch=16, memory_gb=gigabytes)
    read(0.0)
    budget, whole = 0.6 * gb(twice), list(twice)
    twice.clear()
    read(budget)
    assert twice + once == whole and 0 < gb(once) <= budget < gb([twice[-1], *once])
    with torch.no_grad():
        read(0.0)
    assert len(once) > len(whole)  # without gradients nothing is computed twice


def test_bfloat16_follows_the_float32_loss():
    backbone, curves = made(), []
    pairs = pairs_of(backbone, [whole_story(told(i, 16)) for i in range(3)])
    for precision in ("float32", "bfloat16"):
        tuner = BrainTuner(backbone, {"P1": 4}, dropout=0.0, seed=1)
        curves.append(
            [
                r["train_loss"]
                for r in tune(
                    tuner,
                    pairs,
                    None,
                    get_loss("mse"),
                    TuneSettings(
                        epochs=6,
                        learning_rate=1e-3,
                        head_learning_rate=1e-2,
                        precision=precision,
                        device="cpu",
                        patience=0,
                    ),
                    progress=False,
                )
            ]
        )
    assert curves[0][-1] < curves[0][0] - 0.02 and max(abs(a - b) for a, b in zip(*curves)) < 0.02


def test_linear_layers_go_to_onednn_in_the_forward_and_the_second_pass(monkeypatch):
    if text_inputs._onednn is None:
        pytest.skip("PyTorch without oneDNN")
    backbone, called = made(), []
    monkeypatch.setattr(
        text_inputs, "_onednn", lambda *a, op=text_inputs._onednn: called.append(1) or op(*a)
    )
    inputs = section_inputs(whole_story(told()), backbone, 6)
    states = word_states(backbone.model, inputs, 3, memory_gb=0.0)
    forward = len(called)
    states.square().sum().backward()
    assert (
        forward >= 18 and len(called) >= 4 * forward - 2
    )  # again, and two products each (the first block's input too)
