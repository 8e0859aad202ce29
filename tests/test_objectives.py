"""The model's own objective: chance and perfect scores, what is hidden, what moves, what the
checkpoint gives back."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf
from speech_models import SMALL

from braintune_nb.clock import regular_clock
from braintune_nb.core import DataError, ModelError, ParameterError, seed_everything
from braintune_nb.data.splits import whole_story
from braintune_nb.data.stories import Events, Story
from braintune_nb.model.adapter import Adapter
from braintune_nb.model.backbone import load_backbone, load_speech_backbone
from braintune_nb.model.speech_inputs import speech_inputs
from braintune_nb.model.text_inputs import section_inputs
from braintune_nb.model.tuner import BrainTuner
from braintune_nb.simulate.text_model import toy_backbone
from braintune_nb.train.objectives import (
    ContrastiveSpeech,
    FrameLabels,
    MaskedClusters,
    OwnText,
    draw_mask,
    draw_pieces,
    masked_states,
    own_objective,
)


def speech_config(kind, **more):
    Config = dict(wav2vec2=tf.Wav2Vec2Config, hubert=tf.HubertConfig, wavlm=tf.WavLMConfig)[kind]
    return Config(
        **SMALL,
        feat_extract_norm="layer",
        num_codevectors_per_group=10,
        codevector_dim=8,
        proj_codevector_dim=8,
        num_negatives=20,
        **more,
    )


@pytest.fixture(scope="module")
def story():
    rng = np.random.default_rng(0)
    onset = np.cumsum(rng.uniform(0.2, 0.5, 60))
    words = Events(
        onset,
        onset + 0.2,
        tuple(np.array("the dog saw a cat and ran".split())[rng.integers(7, size=60)]),
    )
    return Story(
        "s",
        "en",
        words,
        regular_clock(8, 2.0, first=1.0),
        Events(onset, onset + 0.15, tuple(np.array(["a", "t", "n"])[rng.integers(3, size=60)])),
    )


@pytest.fixture(scope="module")
def sound(story):
    t = np.arange(int(16000 * story.duration) + 16000) / 16000
    return (
        np.sin(2 * np.pi * 300 * t) * np.abs(np.sin(5 * t))
        + 0.05 * np.random.default_rng(1).standard_normal(len(t))
    ).astype(np.float32)


@pytest.fixture(scope="module")
def heard(story, sound):
    def make(kind, mode="windows", **more):
        backbone = load_speech_backbone(speech_config(kind, **more), random_weights=True, seed=1)
        return backbone, speech_inputs(
            whole_story(story),
            backbone,
            mode=mode,
            window=2.0,
            chunk=4.0,
            context=0.5,
            audio=sound,
            sampling_rate=16000,
        )

    return make


def moved(tuner, objective, inputs, steps=3):
    "Largest change of each weight of the backbone after some steps."
    start = {n: p.detach().clone() for n, p in tuner.model.named_parameters()}
    tuner.train()
    optimizer = torch.optim.SGD(
        [p for p in [*tuner.model.parameters(), *objective.parameters()] if p.requires_grad], lr=0.1
    )
    for _ in range(steps):
        optimizer.zero_grad()
        objective.loss(tuner, inputs).backward()
        optimizer.step()
    return {
        n: (p.detach() - start[n]).abs().max().item() for n, p in tuner.model.named_parameters()
    }


# ---- text


CAUSAL = dict(
    vocab_size=30,
    n_embd=16,
    n_layer=2,
    n_head=2,
    n_positions=40,
    bos_token_id=2,
    eos_token_id=3,
    resid_pdrop=0,
    embd_pdrop=0,
    attn_pdrop=0,
)


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    "A causal model with random weights in a folder, with the tokenizer of twelve words."
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("causal")
    torch.manual_seed(0)
    whole = tf.GPT2LMHeadModel(tf.GPT2Config(**CAUSAL)).eval()
    whole.save_pretrained(folder)
    words = "[PAD] [UNK] [BOS] [EOS] the dog saw a cat and ran".split()
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(unk_token="[UNK]", pad_token="[PAD]", bos_token="[BOS]")
    tf.PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(folder)
    return whole, load_backbone(folder)


def test_a_causal_model_is_asked_for_the_next_token_only(causal, story):
    "Against cross-entropy written out."
    whole, backbone = causal
    inputs = section_inputs(whole_story(story), backbone)
    tuner = BrainTuner(backbone, {"P": 2}, dropout=0.0).eval()
    own = own_objective(backbone, stride=7)
    assert own.note == "next token; head of the checkpoint"
    assert not list(own.parameters())  # the head is the tied embeddings
    ids, mask = inputs.token_ids[::7], inputs.attention_mask[::7]
    with torch.no_grad():
        logits = whole(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
        asked = mask[:, 1:] == 1
        expected = -logits.gather(-1, ids[:, 1:, None])[..., 0][asked].mean()
        assert torch.allclose(own.loss(tuner, inputs), expected, atol=1e-5)


def test_a_causal_model_cannot_see_the_next_token(causal, story):
    "A later token changes no earlier prediction (D-02)."
    whole, backbone = causal
    ids = section_inputs(whole_story(story), backbone).token_ids[::7]
    other = ids.clone()
    other[:, -1] = 5
    with torch.no_grad():
        one, two = (whole(input_ids=x).logits[:, :-1] for x in (other, ids))
    assert torch.allclose(one, two, atol=1e-5)


def move_both(tuner, whole):
    "The same change in both: embeddings and, through the tie, the output layer."
    for p in tuner.model.parameters():
        p.add_(0.01 * torch.randn_like(p))
    whole.distilbert.load_state_dict(tuner.model.state_dict())


def test_masked_text_follows_the_tuner_and_its_tied_embeddings(story):
    backbone = load_backbone("tiny")
    inputs = section_inputs(whole_story(story), backbone)
    tuner, own = BrainTuner(backbone, {"P": 2}, dropout=0.0), OwnText(backbone, stride=1)
    whole = tf.AutoModelForMaskedLM.from_pretrained(backbone.folder).eval()
    with torch.no_grad():
        move_both(tuner, whole)
        torch.manual_seed(0)
        given, target = own._asked(inputs.token_ids, inputs.attention_mask)
        torch.manual_seed(0)
        np.random.seed(0)
        ready = dict(input_ids=given, attention_mask=inputs.attention_mask, labels=target)
        assert torch.allclose(own.loss(tuner.eval(), inputs), whole(**ready).loss, atol=1e-5)
    change = moved(tuner, own, inputs)
    assert min(v for n, v in change.items() if "position" not in n) > 0
    names = {n for n, _ in own.named_parameters()}
    assert not any("distilbert" in n or "projector/weight" in n for n in names)


def test_a_tokenizer_without_mask_is_refused_and_nothing_to_ask_is_told(story):
    with pytest.raises(ModelError, match="mask token"):
        OwnText(toy_backbone(story.words.text))
    own = OwnText(load_backbone("tiny"))
    with pytest.raises(DataError, match="no token to ask"):
        own._asked(torch.tensor([[2, 3]]), torch.ones(1, 2, dtype=torch.long))


def test_what_the_mask_leaves_out_is_never_asked_for():
    own = OwnText(load_backbone("tiny"), asked=0.9)
    ids = torch.arange(40, 80).repeat(30, 1)
    mask = torch.ones_like(ids)
    mask[:, 25:] = 0
    given, target = own._asked(ids, mask)
    assert (
        (target[:, 25:] == -100).all()
        and torch.equal(given[:, 25:], ids[:, 25:])
        and (target[:, :25] >= 0).float().mean() > 0.8
    )


# ---- speech


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
@pytest.mark.parametrize("mode", ["windows", "chunks"])
def test_the_gradient_reaches_all_that_may_move_and_nothing_else(kind, mode, heard):
    backbone, inputs = heard(kind, mode)
    tuner = BrainTuner(backbone, {"P": 2}, dropout=0.0)
    tuner.freeze("all")
    own = own_objective(
        backbone, [inputs], pieces=3, length=5, **({} if kind == "wav2vec2" else dict(clusters=4))
    )
    seed_everything(0)
    for name, change in moved(tuner, own, inputs).items():
        frozen = name.startswith("feature_extractor") or name == "masked_spec_embed"
        quiet = name.endswith(
            ("k_proj.bias", "gru_rel_pos_const")
        )  # softmax does not see a shift of all keys; the gate of WavLM moves by less than rounding
        assert (change == 0) if frozen else (change > 0 or quiet), name


def test_only_the_chosen_layers_or_adapters_move(heard):
    backbone, inputs = heard("wav2vec2")
    own, tuner = (
        ContrastiveSpeech(backbone, pieces=3, length=5),
        BrainTuner(backbone, {"P": 2}, dropout=0.0),
    )
    tuner.freeze(1)
    change = moved(tuner, own, inputs)
    assert {n.split("layers.")[1][0] for n, v in change.items() if v > 0} == {"1"}
    light = BrainTuner(backbone, {"P": 2}, dropout=0.0, adapter=Adapter(rank=2))
    light.freeze("all")
    change = moved(light, own, inputs)
    assert {"lora" in n for n, v in change.items() if v > 0} == {True}


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_a_hidden_frame_is_hidden_from_the_loss_of_everything_but_its_own_target(kind, heard):
    backbone, inputs = heard(kind)
    front, _ = draw_pieces(backbone, inputs, None)
    np.random.seed(1)
    hidden = draw_mask(front.shape[:2], 0.5, 10)
    with torch.no_grad():
        changed = torch.where(hidden[..., None], torch.randn_like(front), front)
        assert torch.equal(
            masked_states(backbone.model, changed, hidden)[0],
            masked_states(backbone.model, front, hidden)[0],
        )
        assert not torch.allclose(
            masked_states(backbone.model, changed)[0],
            masked_states(backbone.model, front)[0],
            atol=1e-3,
        )


def test_nothing_hidden_is_the_models_own_forward_pass(heard):
    for kind in ("wav2vec2", "hubert", "wavlm"):
        backbone, inputs = heard(kind)
        values = np.stack(
            backbone.extractor(
                [inputs.sound[s : s + inputs.samples] for s in inputs.starts], sampling_rate=16000
            )["input_values"]
        )
        with torch.no_grad():
            front, chosen = draw_pieces(backbone, inputs, None)
            assert torch.allclose(
                masked_states(backbone.model, front)[0],
                backbone.model(torch.from_numpy(values)).last_hidden_state,
                atol=1e-4,
            )
        assert chosen.tolist() == list(range(len(inputs.starts)))


def test_pieces_and_masks_are_drawn_in_training_and_fixed_in_validation(heard):
    backbone, inputs = heard("hubert")
    tuner, own = (
        BrainTuner(backbone, {"P": 2}),
        MaskedClusters(backbone, [inputs], clusters=4, pieces=3, length=5),
    )
    tuner.eval()
    with torch.no_grad():
        seed_everything(1)
        first = own.loss(tuner, inputs)
        seed_everything(2)
        state = np.random.get_state()[1].copy(), torch.get_rng_state()
        assert own.loss(tuner, inputs) == first
        assert np.array_equal(np.random.get_state()[1], state[0]) and torch.equal(
            torch.get_rng_state(), state[1]
        )  # the generators of the run are left alone
        tuner.train()
        seed_everything(3)
        a = own.loss(tuner, inputs)
        b = own.loss(tuner, inputs)
        seed_everything(3)
        again = own.loss(tuner, inputs)
    assert a == again and a != b
    assert draw_pieces(tuner.eval(), inputs, 3)[1].tolist() == [0, 4, 7]


def test_spans_have_their_length_and_share():
    np.random.seed(0)
    hidden = draw_mask((200, 499), 0.65, 10).numpy()
    edges = np.diff(np.pad(hidden.astype(int), ((0, 0), (1, 1))), axis=1)
    lengths = np.concatenate([np.flatnonzero(e == -1) - np.flatnonzero(e == 1) for e in edges])
    assert lengths.min() >= 10 and 0.44 < hidden.mean() < 0.52  # wav2vec 2.0 reports about 49 %
    assert draw_mask((50, 30), 0.01, 10).sum(1).min() > 10  # two spans at least


def test_contrastive_loss_is_chance_without_information_and_falls_with_it(heard):
    "States that say nothing: log of the number of candidates; states that are the target: near 0."
    backbone, inputs = heard("wav2vec2")
    own, tuner = (
        ContrastiveSpeech(backbone, pieces=4, length=5),
        BrainTuner(backbone, {"P": 2}, dropout=0.0).eval(),
    )
    own.whole.config.diversity_loss_weight = 0.0
    for p in own.whole.project_hid.parameters():
        torch.nn.init.zeros_(p)
    with torch.no_grad():
        value = own.loss(tuner, inputs).item()
    assert (
        np.log(2) < value <= np.log(21) + 1e-3
    )  # identical candidates are left out, so at most 21 count


def test_cluster_loss_is_the_written_out_one_and_asks_each_piece_for_its_own_clusters(heard):
    backbone, inputs = heard("hubert")
    own, tuner = (
        MaskedClusters(backbone, [inputs], clusters=4, pieces=3, length=5),
        BrainTuner(backbone, {"P": 2}, dropout=0.0).eval(),
    )
    with torch.no_grad():
        value = own.loss(tuner, inputs)
        np.random.seed(0)
        hidden = draw_mask((3, inputs.frames), 0.8, 5)
        states = masked_states(tuner.model, inputs.front(np.array([0, 4, 7]), tuner.model), hidden)[
            0
        ]
        score = torch.cosine_similarity(own.project(states)[:, :, None], own.codes, dim=-1) / 0.1
        labels = torch.from_numpy(own._labels["s"][[0, 4, 7]]).long()
        expected = -score.log_softmax(-1).gather(-1, labels[..., None])[..., 0][hidden].mean()
    assert abs(value - expected) < 1e-4


def test_clusters_stay_those_of_the_pretrained_model_and_chance_is_log_of_their_number(heard):
    backbone, inputs = heard("wavlm")
    own, tuner = (
        MaskedClusters(backbone, [inputs], clusters=5, pieces=None, length=5),
        BrainTuner(backbone, {"P": 2}, dropout=0.0).eval(),
    )
    labels = copy.deepcopy(own._labels)
    with torch.no_grad():
        own.codes.copy_(own.codes[:1].expand_as(own.codes))  # all codes alike
        assert abs(own.loss(tuner, inputs).item() - np.log(5)) < 1e-5
    moved(tuner, own, inputs)
    assert all(np.array_equal(labels[k], own._labels[k]) for k in labels)
    again = MaskedClusters(backbone, [inputs], clusters=5, length=5)
    assert (
        np.array_equal(again._labels["s"], labels["s"])
        and again.key() == MaskedClusters(backbone, [inputs], clusters=5, length=5).key()
    )
    with pytest.raises(ParameterError, match="not clustered"):
        own.loss(tuner, replace(inputs, name="t"))


def pretraining_losses(backbone, inputs, story):
    "The loss of pretraining in each window."
    from braintune_nb.simulate.speech_model import pretraining_heads, pretraining_loss

    heads, losses = pretraining_heads(backbone.folder), []
    for start in inputs.starts:
        sound = torch.from_numpy(inputs.sound[start : start + inputs.samples])
        states = backbone.model(sound[None]).last_hidden_state[0]
        frames = backbone.frame_grid.times(len(states), 16000) * 16000
        times = (inputs.begin + start + frames) / 16000
        labels = heads.labels(story.words, story.phones, "en", times)
        losses.append(pretraining_loss(heads, states, labels))
    return losses


def test_the_tiny_models_own_loss_is_that_of_its_pretraining(story, sound):
    backbone = load_speech_backbone("tiny_speech")
    inputs = speech_inputs(
        whole_story(story), backbone, window=2.0, audio=sound, sampling_rate=16000
    )
    own = own_objective(backbone, stories={"s": story}, pieces=None)
    tuner = BrainTuner(backbone, {"P": 2}, dropout=0.0).eval()
    assert isinstance(own, FrameLabels)
    with torch.no_grad():
        wanted = torch.stack(pretraining_losses(backbone, inputs, story)).mean()
        assert abs(own.loss(tuner, inputs) - wanted) < 0.02
    with pytest.raises(ParameterError, match="no phones"):
        own.loss(tuner, replace(inputs, name="t"))


# ---- where it comes from


def test_a_checkpoint_with_a_quantizer_gives_it_back_and_one_without_says_so(tmp_path, heard):
    backbone, _ = heard("wav2vec2")
    torch.manual_seed(5)
    whole = tf.Wav2Vec2ForPreTraining(speech_config("wav2vec2"))
    whole.save_pretrained(tmp_path / "full")
    backbone.extractor.save_pretrained(tmp_path / "full")
    whole.wav2vec2.save_pretrained(tmp_path / "bare")
    backbone.extractor.save_pretrained(tmp_path / "bare")
    kept, fresh = (ContrastiveSpeech(load_speech_backbone(tmp_path / n)) for n in ("full", "bare"))
    assert (
        torch.equal(kept.whole.quantizer.codevectors, whole.quantizer.codevectors)
        and kept.whole.quantizer.temperature == 0.5
    )
    assert "fresh" in fresh.note and fresh.whole.quantizer.temperature == 2.0
    again = ContrastiveSpeech(load_speech_backbone(tmp_path / "bare"))
    assert (
        fresh.key()
        == again.key()
        != ContrastiveSpeech(load_speech_backbone(tmp_path / "bare"), seed=1).key()
    )
    assert not any(n.startswith("whole.wav2vec2") for n, _ in kept.named_parameters())


def test_models_that_cannot_hide_frames_or_belong_elsewhere_are_refused(heard):
    backbone, inputs = heard("hubert")
    with pytest.raises(ModelError, match="other models"):
        ContrastiveSpeech(backbone)
    with pytest.raises(ModelError, match="other models"):
        MaskedClusters(heard("wav2vec2")[0], [inputs])
    plain, more = heard("hubert", mask_time_prob=0.0, mask_feature_prob=0.0)
    with pytest.raises(ModelError, match="no vector for hidden frames"):
        MaskedClusters(plain, [more])
    with pytest.raises(DataError, match="15 frames"):
        draw_mask((2, 15), 0.5, 10)


def test_an_objective_trains_in_the_loop_alone_and_beside_the_brain(heard):
    from braintune_nb.loss import get_loss
    from braintune_nb.train.loop import TuneSettings, tune

    backbone, inputs = heard("wav2vec2")
    targets = {"P": torch.randn(len(inputs), 2)}
    for brain, weight in ((0.0, 1.0), (1.0, 0.1)):
        tuner, own = (
            BrainTuner(backbone, {"P": 2}, dropout=0.0),
            ContrastiveSpeech(backbone, pieces=3, length=5),
        )
        start, code = (
            tuner.heads[0].weight.detach().clone(),
            own.whole.project_hid.weight.detach().clone(),
        )
        log = tune(
            tuner,
            [(inputs, targets)],
            None,
            get_loss("mse"),
            TuneSettings(epochs=3, head_learning_rate=1e-2, device="cpu"),
            progress=False,
            objective=own,
            objective_weight=weight,
            brain_weight=brain,
        )
        assert len(log) == 3 and np.isfinite(log[-1]["objective_loss"])
        assert not torch.equal(own.whole.project_hid.weight, code) and torch.equal(
            tuner.heads[0].weight, start
        ) == (brain == 0)
