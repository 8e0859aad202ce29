"""The tuner and the loop: differentiable road, defects of published loops, faults, other
architectures."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from braintune_nb.align.delays import delay
from braintune_nb.align.resample import resample, story_weights
from braintune_nb.clock import regular_clock
from braintune_nb.core import (
    ClockError,
    DataError,
    ModelError,
    ParameterError,
    RunError,
    SplitError,
)
from braintune_nb.data.recordings import Recording, Space
from braintune_nb.data.splits import Section, whole_story
from braintune_nb.data.stories import Events, Story
from braintune_nb.features.text import hidden_states, read_states, text_inputs
from braintune_nb.loss import get_loss
from braintune_nb.model.release import BrainTuner
from braintune_nb.model.text_inputs import section_inputs, word_states
from braintune_nb.model.tuner import section_targets
from braintune_nb.simulate.text_model import toy_backbone
from braintune_nb.train.loop import TuneSettings, learning_rate_factor, tune, validate

WORDS = [f"w{i}" for i in range(12)]
mse = get_loss("mse")


def toy_story(seed, n=16, name=None):
    draw = np.random.default_rng(seed)
    onset = np.arange(0, 2 * n, 1.0)
    return Story(
        name or f"story {seed}",
        "en",
        Events(onset, onset + 0.5, [WORDS[i] for i in draw.integers(12, size=2 * n)]),
        regular_clock(n, 2.0, first=1.0),
    )


@pytest.fixture(scope="module")
def backbone():
    return toy_backbone(WORDS, width=16)


@pytest.fixture(scope="module")
def pairs(backbone):
    draw = np.random.default_rng(1)
    made = []
    for i in range(5):
        inputs = section_inputs(whole_story(toy_story(i, 14 + i)), backbone, n_words=4)
        y = {p: torch.tensor(draw.normal(size=(14 + i, 5))).float() for p in ("P1", "P.2")}
        made.append((inputs, y))
    return made


def run(backbone, training, validation, tuner=None, folder=None, loss=mse, l2=0.0, **settings):
    tuner = tuner or BrainTuner(backbone, {"P1": 5, "P.2": 5}, seed=1)
    chosen = TuneSettings(
        **{**dict(epochs=3, learning_rate=1e-3, device="cpu", patience=0), **settings}
    )
    return (
        tune(tuner, training, validation, loss, chosen, folder=folder, progress=False, l2=l2),
        tuner,
    )


def weights(tuner):
    return torch.cat([p.detach().cpu().flatten() for p in tuner.parameters()])


# ---- the road from tokens to TRs


def test_features_equal_the_encoding_road(backbone):
    """The tuner's features are those of text_inputs, hidden_states, resample, z-score and
    delay, one after the other."""
    story = toy_story(3)
    states = hidden_states(backbone, text_inputs(story.words, backbone, 4), [2])[0]
    x = resample(states, story_weights(story))
    x = delay((x - x.mean(0)) / (x.std(0, ddof=1) + 1e-6), (1, 2, 3, 4))
    tuner = BrainTuner(backbone, {"P1": 5}).eval()
    np.testing.assert_allclose(
        tuner.features(section_inputs(whole_story(story), backbone, 4)).detach().numpy(),
        x,
        atol=1e-4,
    )


def test_a_block_sees_its_own_past_and_c04_no_other_story(backbone):
    """Words that end long before a block change nothing but contexts; words before the story's
    start do not exist."""
    story = toy_story(4, 30)
    block = Section("late", story, np.arange(20, 28))
    inputs = section_inputs(block, backbone, n_words=1)
    assert inputs.first == 16 and len(inputs) == 8
    early = section_inputs(Section("early", story, np.arange(0, 6)), backbone, n_words=1)
    assert early.first == 0 and early.weights.shape[0] == 6
    tuner = BrainTuner(backbone, {"P1": 2}).eval()
    features = tuner.features(early).reshape(6, 4, 16)
    for d in (1, 2, 3, 4):
        assert features[:d, d - 1].abs().max() == 0 and features[d:, d - 1].abs().max() > 0


def test_c04_predictions_of_a_story_do_not_depend_on_other_sections(backbone, pairs):
    tuner = BrainTuner(backbone, {"P1": 5}).eval()
    alone = tuner(pairs[1][0])["P1"]
    tuner(pairs[0][0])
    assert torch.equal(tuner(pairs[1][0])["P1"], alone)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "llama"])
def test_stopping_early_gives_the_same_state_in_other_architectures(kind):
    from transformers import AutoConfig, AutoModel

    size = dict(
        bert=dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16),
        distilbert=dict(dim=16, n_layers=3, n_heads=2, hidden_dim=16),
        gpt2=dict(n_embd=16, n_layer=3, n_head=2),
        llama=dict(
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=16,
        ),
    )[kind]
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=30, **size)).eval()
    template = section_inputs(whole_story(toy_story(0)), toy_backbone(WORDS, width=16), n_words=5)
    template = dataclasses.replace(
        template,
        **{k: getattr(template, k).flip(0) for k in ("token_ids", "attention_mask", "position")},
    )  # short contexts last
    for layer in range(4):
        plain = read_states(
            model, template.token_ids, template.attention_mask, template.position, layer
        )
        torch.testing.assert_close(
            word_states(model, template, layer, batch=5), plain, atol=1e-5, rtol=1e-4
        )


def test_recomputed_activations_replay_dropout(backbone, pairs):
    """In training mode, with dropout in the backbone: the same loss and gradient with and
    without recomputation."""
    grads = []
    for memory_gb in (0.0, 5.0):
        tuner = BrainTuner(backbone, {"P1": 5, "P.2": 5}, seed=1, memory_gb=memory_gb).train()
        torch.manual_seed(3)
        mse(tuner(pairs[0][0])["P1"], pairs[0][1]["P1"]).backward()
        grads.append(
            torch.cat([p.grad.flatten() for p in tuner.model.parameters() if p.grad is not None])
        )
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-4)


def test_participants_with_odd_names_and_different_columns_survive_disk(backbone, pairs, tmp_path):
    outputs = {"sub-01.left": 3, "Ω / 7": 4, "heads": 2}
    tuner = BrainTuner(backbone, outputs, layer=1, delays=(0, 2)).eval()
    tuner.save_pretrained(tmp_path / "model")
    again = BrainTuner.from_pretrained(tmp_path / "model")
    assert (
        again.outputs == outputs
        and list(again.outputs) == list(outputs)
        and again.layer == 1
        and again.delays == (0, 2)
    )
    assert all(torch.equal(tuner(pairs[0][0])[p], again(pairs[0][0])[p]) for p in outputs)
    assert not list((tmp_path / "model").rglob("*.bin")) and not list(
        (tmp_path / "model").rglob("*.pt")
    )


def test_a_folder_without_weights_or_with_other_heads_is_refused(backbone, tmp_path):
    tuner = BrainTuner(backbone, {"P1": 3})
    tuner.save_pretrained(tmp_path / "a")
    BrainTuner(backbone, {"P1": 4}).save_pretrained(tmp_path / "b")
    (tmp_path / "a" / "heads.safetensors").write_bytes(
        (tmp_path / "b" / "heads.safetensors").read_bytes()
    )
    with pytest.raises(ModelError, match="do not fit"):
        BrainTuner.from_pretrained(tmp_path / "a")
    (tmp_path / "b" / "backbone" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        BrainTuner.from_pretrained(tmp_path / "b")


# ---- the loop: defects of published ones


def test_a02_targets_come_by_the_name_of_the_story_and_list_order_is_nothing(backbone, pairs):
    space = Space("two", "region", np.arange(2))
    a, b = toy_story(7, name="a"), toy_story(8, name="b")
    recordings = {
        "P1": {
            s.name: Recording("P1", s, np.full((16, 2), v, np.float32), space)
            for s, v in ((b, 2), (a, 1))
        }
    }
    assert section_targets(whole_story(a), recordings, standardise=False)["P1"].unique().item() == 1
    forwards, backwards = (
        run(backbone, list(order), pairs[4:])[1] for order in (pairs[:4], pairs[3::-1])
    )
    assert torch.equal(weights(forwards), weights(backwards))


def test_a04_the_backbone_moves_from_the_first_step(backbone, pairs):
    before = BrainTuner(backbone, {"P1": 5, "P.2": 5}, seed=1)
    _, after = run(backbone, pairs[:1], None, epochs=1, warmup=1.0)
    assert not torch.equal(
        before.model.embeddings.word_embeddings.weight,
        after.model.embeddings.word_embeddings.weight,
    )


def test_a08_validation_is_in_eval_mode_every_time(backbone, pairs):
    seen = []
    tuner = BrainTuner(backbone, {"P1": 5, "P.2": 5}, seed=1)
    tuner.model.register_forward_pre_hook(
        lambda m, _: seen.append((m.training, torch.is_grad_enabled()))
    )
    run(backbone, pairs[:3], pairs[3:], tuner=tuner)
    assert seen == ([(True, True)] * 3 + [(False, False)] * 2) * 3
    tuner.train()
    assert validate(tuner, pairs[3:], mse) == validate(tuner, pairs[3:], mse) and tuner.training


@pytest.mark.parametrize("total, warmup", [(2460, 0.1), (40, 0.1), (7, 0.5), (5, 0.0), (1, 0.1)])
def test_b01_the_rate_peaks_at_the_end_of_warm_up_and_ends_at_zero(total, warmup):
    rate = [learning_rate_factor(k, total, warmup) for k in range(total + 1)]
    assert rate[-1] == 0 and min(rate[:-1]) > 0 and max(rate) == 1
    assert rate.index(1) == max(0, round(total * warmup) - 1) and all(
        x >= y for x, y in zip(rate[round(total * warmup) :], rate[round(total * warmup) + 1 :])
    )


def test_b01_the_schedule_is_counted_from_the_loop(backbone, pairs):
    log, _ = run(backbone, pairs[:4], None, epochs=5, accumulate=3)
    assert (
        log[-1]["step"] == 5 * math.ceil(4 / 3)
        and log[-1]["learning_rate"] == 0.0
        and log[0]["learning_rate"] > 0.5e-3
    )


def test_c01_lengths_that_do_not_fit_are_refused_with_both_numbers(backbone, pairs):
    inputs, targets = pairs[0]
    with pytest.raises(ClockError, match=r"(?s)\(13, 5\).*\(14, 5\)"):
        run(backbone, [(inputs, {"P1": targets["P1"][1:]})], None)
    with pytest.raises(SplitError, match="validation sections must be there"):
        run(backbone, pairs[:2], [])
    with pytest.raises(SplitError, match="each once"):
        run(backbone, pairs[:1] * 2, None)
    with pytest.raises(DataError, match="Nobody"):
        run(backbone, [(inputs, {})], None)
    with pytest.raises(SplitError, match="in training and in validation"):
        run(backbone, pairs[:2], pairs[:1])


def test_c03_one_step_a_section_and_all_participants_in_one_forward(backbone, pairs):
    calls = []
    tuner = BrainTuner(backbone, {"P1": 5, "P.2": 5}, seed=1)
    tuner.model.register_forward_pre_hook(lambda *_: calls.append(1))
    log, _ = run(backbone, pairs[:4], None, tuner=tuner, epochs=2)
    assert [row["step"] for row in log] == [4, 8] and len(calls) == 8


def test_accumulated_sections_make_the_gradient_of_their_mean(backbone, pairs):
    "Without dropout, two sections in one step equal a step on the mean of both losses."
    plain = toy_backbone(WORDS, width=16)
    for m in plain.model.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.0
    make = lambda: BrainTuner(plain, {"P1": 5, "P.2": 5}, seed=1, dropout=0.0)
    _, tuned = run(
        plain,
        pairs[:2],
        None,
        tuner=make(),
        epochs=1,
        accumulate=2,
        clip=1e9,
        weight_decay=0.0,
        warmup=0.0,
    )
    reference = make().train()
    sum(mse(reference(i)[p], y[p]) for i, y in pairs[:2] for p in y).div(4).backward()
    for a, b, start in zip(
        tuned.heads.parameters(), reference.heads.parameters(), make().heads.parameters()
    ):
        torch.testing.assert_close(
            a - start, -1e-3 * b.grad / (b.grad.abs() + 1e-8), atol=1e-5, rtol=1e-3
        )  # Adam's first step


def test_best_weights_come_back_and_patience_stops(backbone, pairs, tmp_path):
    log, tuner = run(
        backbone,
        pairs[:3],
        pairs[3:],
        epochs=30,
        learning_rate=5e-3,
        head_learning_rate=5e-2,
        patience=3,
        folder=tmp_path,
    )
    r = [row["validation_correlation"] for row in log]
    assert len(log) < 30 and max(r) not in r[-3:] and len(log) == r.index(max(r)) + 4
    assert (
        validate(tuner, sorted(pairs[3:], key=lambda p: p[0].name), mse)[1] == max(r)
        and not tuner.training
    )
    again, same = run(
        backbone,
        pairs[:3],
        pairs[3:],
        epochs=30,
        learning_rate=5e-3,
        head_learning_rate=5e-2,
        patience=3,
        folder=tmp_path,
    )
    assert again == log and torch.equal(
        weights(same), weights(tuner)
    )  # a finished folder answers at once


def test_frozen_backbone_stays_and_seeds_matter(backbone, pairs):
    start = BrainTuner(backbone, {"P1": 5, "P.2": 5}, seed=1)
    _, frozen = run(backbone, pairs[:3], None, train_layers="none")
    assert all(
        torch.equal(a, b) for a, b in zip(start.model.parameters(), frozen.model.parameters())
    )
    assert not torch.equal(start.heads[0].weight, frozen.heads[0].weight)
    one, same, other = (weights(run(backbone, pairs[:3], None, seed=s)[1]) for s in (4, 4, 5))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_another_run_of_the_folder_is_refused_and_a_loss_that_explodes_too(
    backbone, pairs, tmp_path
):
    run(backbone, pairs[:2], None, folder=tmp_path, epochs=1)
    for change in (
        dict(learning_rate=2e-3),
        dict(loss=get_loss("correlation_over_time")),
        dict(l2=0.1),
    ):
        with pytest.raises(RunError, match="other settings"):
            run(backbone, pairs[:2], None, folder=tmp_path, **{"epochs": 1, **change})
    moved = [(pairs[0][0], {"P1": pairs[0][1]["P1"] + 1}), pairs[1]]
    with pytest.raises(RunError, match="other settings"):
        run(backbone, moved, None, folder=tmp_path, epochs=1)
    with pytest.raises(RunError, match="not finite"):
        run(backbone, pairs[:2], None, loss=lambda a, b: mse(a, b) * math.inf)


def test_settings_that_cannot_train_are_refused():
    for wrong in (
        dict(epochs=0),
        dict(warmup=1.5),
        dict(learning_rate=0),
        dict(precision="int8"),
        dict(accumulate=0),
        dict(refresh=0),
        dict(optimizer="sgd"),
        dict(schedule="planned"),
    ):
        with pytest.raises(ParameterError):
            TuneSettings(**wrong)
    assert len(dataclasses.fields(TuneSettings)) <= 17


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precisions_train_on_the_cpu(backbone, pairs, precision):
    log, _ = run(
        backbone, pairs[:3], pairs[3:], precision=precision, epochs=6, head_learning_rate=1e-2
    )
    assert log[-1]["train_loss"] < log[0]["train_loss"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_precisions_train_on_cuda_and_resume(backbone, pairs, precision, tmp_path):
    log, tuner = run(
        backbone,
        pairs[:3],
        pairs[3:],
        precision=precision,
        device="cuda",
        epochs=6,
        head_learning_rate=1e-2,
        folder=tmp_path,
    )
    assert log[-1]["train_loss"] < log[0]["train_loss"] and next(tuner.parameters()).is_cuda
    again, _ = run(
        backbone,
        pairs[:3],
        pairs[3:],
        precision=precision,
        device="cuda",
        epochs=6,
        head_learning_rate=1e-2,
        folder=tmp_path,
    )
    assert again == log
