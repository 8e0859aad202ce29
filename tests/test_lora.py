"""Low-rank adapters: every family, the formula, dropout and modes (B-07), seeds (D-04),
checkpoints, merging."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers as tf
from speech_models import SMALL, whisper_settings

from braintune_nb.core import ModelError, ParameterError
from braintune_nb.model.adapter import (
    Adapter,
    adapter_targets,
    add_adapter,
    base_unchanged,
    has_adapter,
    merged,
    trainable_fraction,
)
from braintune_nb.model.backbone import SPEECH_KINDS, CheckedProducts, load_speech_backbone

KINDS = (
    "wav2vec2",
    "hubert",
    "wavlm",
    "whisper",
    "bert",
    "roberta",
    "distilbert",
    "gpt2",
    "llama",
    "gpt_neox",
    "modernbert",
    "mpnet",
    "opt",
)
TEXT = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    vocab_size=20,
    pad_token_id=0,
)
SIZES = dict(
    wav2vec2=SMALL,
    hubert=SMALL,
    wavlm=SMALL,
    bert=TEXT,
    roberta=TEXT,
    llama=TEXT,
    gpt_neox=TEXT,
    mpnet=TEXT,
    modernbert=TEXT,
    distilbert=dict(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=20),
    gpt2=dict(n_embd=16, n_layer=2, n_head=2, vocab_size=20),
    opt=dict(
        hidden_size=16,
        word_embed_proj_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        vocab_size=20,
    ),
    whisper=whisper_settings(positions=50),
)


def made(kind, **more):
    "A small random model of a family in eval mode, and something for it to read."
    torch.manual_seed(0)
    model = tf.AutoModel.from_config(tf.AutoConfig.for_model(kind, **SIZES[kind] | more)).eval()
    draw = torch.Generator().manual_seed(1)
    if kind == "whisper":
        return model.encoder, torch.randn(2, 80, 100, generator=draw)
    return model, (
        torch.randn(2, 4000, generator=draw)
        if kind in SPEECH_KINDS
        else torch.randint(3, 20, (2, 7), generator=draw)
    )


def out(model, x):
    return model(x).last_hidden_state


def stir(model, scale=0.05):
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=draw) * scale)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_starts_as_it_was_and_is_reached(kind):
    model, x = made(kind)
    before, cls = out(model, x).detach(), type(model)
    n = add_adapter(model, Adapter())
    own = [p for name, p in model.named_parameters() if "lora_" in name]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert type(model) is cls
    assert n == sum(p.numel() for p in own) == sum(p.numel() for p in trained)
    torch.testing.assert_close(out(model, x), before, atol=1e-5, rtol=0)
    stir(model)
    out(model, x).square().mean().backward()
    for name, p in model.named_parameters():
        if "lora_" in name:
            assert p.grad is not None and p.grad.abs().max() > 0, name
        else:
            assert p.grad is None, name


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_folds_in(kind):
    model, x = made(kind)
    before, names = out(model, x).detach(), list(model.state_dict())
    add_adapter(model, Adapter())
    stir(model)
    changed, plain = out(model, x).detach(), merged(model)
    assert (changed - before).abs().max() > 1e-3
    torch.testing.assert_close(out(plain, x), changed, atol=1e-5, rtol=0)
    assert list(plain.state_dict()) == names and not has_adapter(plain) and has_adapter(model)
    assert all(p.requires_grad for p in plain.parameters())
    assert not any(type(m).__module__.startswith("peft") for m in plain.modules())
    assert not hasattr(plain, "peft_config")


def test_the_formula():
    "y = W x + b + alpha / r B A x, with numbers written out."
    model, _ = made("bert")
    add_adapter(model, Adapter(rank=3, alpha=7, targets=("query",)))
    stir(model)
    layer, x = model.encoder.layer[1].attention.self.query, torch.randn(5, 16)
    w, b, low, high = (
        t.detach().numpy()
        for t in (
            layer.base_layer.weight,
            layer.base_layer.bias,
            layer.lora_A["default"].weight,
            layer.lora_B["default"].weight,
        )
    )
    np.testing.assert_allclose(
        layer(x).detach().numpy(), x.numpy() @ (w + 7 / 3 * high @ low).T + b, atol=1e-5
    )
    np.testing.assert_allclose(
        merged(model).encoder.layer[1].attention.self.query.weight.detach().numpy(),
        w + 7 / 3 * high @ low,
        atol=1e-6,
    )


def test_rank_8_is_0625_per_cent_of_wav2vec2_base():
    """On the real configuration with random weights; 589,824 as counted in the released code of
    paper B."""
    model = tf.Wav2Vec2Model(tf.Wav2Vec2Config())
    assert sum(p.numel() for p in model.parameters()) == 94_371_712
    assert add_adapter(model, Adapter()) == 589_824
    assert round(100 * trainable_fraction(model), 3) == 0.625


def test_wavlm_attention_equals_the_librarys_also_with_padding():
    "The rewritten attention gives the library's states, with and without padded sound."
    model, x = made("wavlm", feat_extract_norm="layer")
    mask = torch.ones(2, 4000, dtype=torch.long)
    mask[1, 2600:] = 0
    before = [model(x).last_hidden_state, model(x, attention_mask=mask).last_hidden_state]
    add_adapter(model, Adapter())
    real = model._get_feature_vector_attention_mask(before[1].shape[1], mask).bool()
    torch.testing.assert_close(model(x).last_hidden_state, before[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        model(x, attention_mask=mask).last_hidden_state[real], before[1][real], atol=1e-5, rtol=0
    )
    assert not torch.allclose(before[0][real], before[1][real])


def test_peft_alone_is_not_used_by_wavlm():
    "Why the attention is rewritten: around WavLM's projections, peft's layers change nothing."
    from peft import LoraConfig, inject_adapter_in_model

    model, x = made("wavlm")
    before = out(model, x)
    inject_adapter_in_model(
        LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "out_proj"]), model
    )
    moved = out(stir(model.eval(), 3.0), x)
    torch.testing.assert_close(moved, before, atol=1e-6, rtol=0)
    assert not moved.requires_grad  # what is trained is not on the road


@pytest.mark.parametrize("kind", ["hubert", "wavlm", "gpt2"])
def test_b07_dropout_follows_train_and_eval(kind):
    model, x = made(
        kind,
        **{
            k: 0.0
            for k in (
                "hidden_dropout",
                "attention_dropout",
                "feat_proj_dropout",
                "activation_dropout",
                "layerdrop",
                "mask_time_prob",
                "embd_pdrop",
                "resid_pdrop",
                "attn_pdrop",
            )
            if hasattr(tf.AutoConfig.for_model(kind), k)
        },
    )
    add_adapter(model, Adapter(dropout=0.5))
    stir(model)
    assert torch.equal(out(model, x), out(model, x))  # put into a model in eval mode
    model.train()
    assert not torch.equal(out(model, x), out(model, x))
    model.eval()
    assert torch.equal(out(model, x), out(model, x))
    assert not any(m.training for m in model.modules())
    base_unchanged(model.train())
    assert not torch.equal(out(model, x), out(model, x)) and not model.training
    base_unchanged(model.eval())
    assert torch.equal(out(model, x), out(model, x))


def test_d04_initial_weights_come_from_their_own_seed():
    "Whatever was drawn before; the global generator stays where it was."
    first = []
    for seed, burn in ((3, 0), (3, 5), (4, 0)):
        model, _ = made("hubert")
        torch.randn(burn)
        state = torch.random.get_rng_state()
        add_adapter(model, Adapter(), seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        first.append(model.encoder.layers[0].attention.q_proj.lora_A["default"].weight)
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_only_the_chosen_blocks_and_targets():
    model, _ = made("hubert")
    n = add_adapter(
        model, Adapter(rank=2, targets=("v_proj", "feed_forward.output_dense")), blocks=[1]
    )
    assert n == 2 * (16 + 16) + 2 * (32 + 16)
    assert {name.split(".lora")[0] for name, p in model.named_parameters() if p.requires_grad} == {
        "encoder.layers.1.attention.v_proj",
        "encoder.layers.1.feed_forward.output_dense",
    }


def test_seven_blocks_are_not_the_seven_convolutions():
    model, x = made("hubert", num_hidden_layers=7)
    assert len(model.feature_extractor.conv_layers) == 7 and len(adapter_targets(model)) == 28
    add_adapter(model, Adapter(targets=("q_proj",)), blocks=[6])
    assert {name.split(".lora")[0] for name, p in model.named_parameters() if p.requires_grad} == {
        "encoder.layers.6.attention.q_proj"
    }


def test_refusals_say_what_there_is():
    model, _ = made("hubert")
    with pytest.raises(ModelError, match="attention.q_proj"):
        add_adapter(model, Adapter(targets=("query",)))
    with pytest.raises(ModelError, match="some of 0 to 1"):
        add_adapter(model, Adapter(), blocks=[0, 5])
    assert not has_adapter(model) and all(
        p.requires_grad for p in model.parameters()
    )  # nothing was half done
    add_adapter(model, Adapter())
    with pytest.raises(ModelError, match="already"):
        add_adapter(model, Adapter())
    unknown = tf.AutoModel.from_config(
        tf.AutoConfig.for_model(
            "fnet", hidden_size=16, num_hidden_layers=2, intermediate_size=32, vocab_size=20
        )
    )
    with pytest.raises(ModelError, match="linear layers of a block: intermediate.dense"):
        add_adapter(unknown, Adapter())
    for bad in (
        dict(rank=0),
        dict(rank=2.5),
        dict(alpha=0),
        dict(dropout=-0.1),
        dict(targets="q_proj"),
    ):
        with pytest.raises(ParameterError):
            Adapter(**bad)


def test_a_block_without_known_names_lists_its_layers():
    model, _ = made("bert")
    for block in model.encoder.layer:
        block.attention.self.strange = block.attention.self.query
        del block.attention.self.query
    with pytest.raises(ModelError, match="attention.self.strange"):
        adapter_targets(model)
    assert len(adapter_targets(model, ("strange",))) == 2


def fresh(seed):
    model, x = made("wavlm")
    add_adapter(model, Adapter(), seed=seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1.0), x


def step(model, optimizer, x):
    optimizer.zero_grad()
    out(model, x).square().mean().backward()
    optimizer.step()


def test_a_checkpoint_of_the_adapted_model_goes_round(tmp_path):
    "The loop's checkpoint holds names and tensors; optimiser and weights come back bit for bit."
    from braintune_nb.train.checkpoint import load_checkpoint, save_checkpoint

    model, optimizer, scheduler, x = fresh(1)
    for _ in range(3):
        step(model, optimizer, x)
    save_checkpoint(tmp_path, model, optimizer, scheduler, dict(step=3))
    again, other, third, _ = fresh(7)
    load_checkpoint(tmp_path, again, other, third)
    assert torch.equal(out(again, x), out(model, x))
    step(model, optimizer, x)
    step(again, other, x)
    assert torch.equal(out(again, x), out(model, x))


def test_base_size_trains_only_what_it_should_and_in_bfloat16():
    "Autocast over the adapted WavLM: the position bias is of another precision than the queries."
    for kind in ("wavlm", "hubert"):
        model, x = made(kind)
        add_adapter(model, Adapter())
        stir(model)
        with torch.autocast("cpu", torch.bfloat16), CheckedProducts(model):
            y = out(model, x)
        y.float().square().mean().backward()
        torch.testing.assert_close(y.float(), out(model, x), atol=0.1, rtol=0.1)
        assert all(p.grad is None for name, p in model.named_parameters() if "lora_" not in name)


def test_speech_backbones_of_the_package_take_one():
    config = tf.HubertConfig(**SMALL)
    backbone = load_speech_backbone(config, random_weights=True)
    add_adapter(backbone.model, Adapter())
    assert len(backbone.blocks) == 2 and has_adapter(backbone.model)


def test_importing_the_chapter_does_not_import_peft():
    code = "import sys, braintune_nb.model.adapter; assert 'peft' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_peft_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match="pip install peft"):
        add_adapter(made("bert")[0], Adapter())


def adapter_pairs(backbone, words):
    "Inputs of three stories and random responses to them."
    from braintune_nb.clock import regular_clock
    from braintune_nb.data.splits import whole_story
    from braintune_nb.data.stories import Events, Story
    from braintune_nb.model.text_inputs import section_inputs

    draw, pairs, onset = np.random.default_rng(0), [], np.arange(0, 40, 1.0)
    for i in range(3):
        text = [words[k] for k in draw.integers(12, size=40)]
        clock = regular_clock(20, 2.0, first=1.0)
        story = Story(f"s{i}", "en", Events(onset, onset + 0.5, text), clock)
        inputs = section_inputs(whole_story(story), backbone, n_words=4)
        pairs.append((inputs, {"P1": torch.tensor(draw.normal(size=(20, 5))).float()}))
    return pairs


def two_epochs(backbone, pairs, folder):
    "A tuner with an adapter after two epochs, or as the folder has it."
    from braintune_nb.loss import get_loss
    from braintune_nb.model.tuner import BrainTuner
    from braintune_nb.train.loop import TuneSettings, tune

    tuner = BrainTuner(backbone, {"P1": 5}, seed=1, adapter=Adapter(rank=2))
    settings = TuneSettings(epochs=2, learning_rate=1e-2, device="cpu", patience=0)
    given = dict(folder=folder, progress=False)
    tune(tuner, pairs[:2], pairs[2:], get_loss("mse"), settings, **given)
    return tuner


def test_the_loop_moves_the_adapter_and_heads_and_nothing_else(tmp_path):
    """Two epochs on a text tuner: base weights stay the pretrained ones, corrections move, and
    the finished run is read back bit for bit."""
    from braintune_nb.core import content_hash
    from braintune_nb.simulate.text_model import toy_backbone

    words = [f"w{i}" for i in range(12)]
    backbone = toy_backbone(words, width=16)
    pairs, start = adapter_pairs(backbone, words), backbone.model.state_dict()
    tuner = two_epochs(backbone, pairs, tmp_path)
    now = tuner.model.state_dict()
    base = {k.replace(".base_layer", ""): v for k, v in now.items() if "lora_" not in k}
    assert base.keys() == start.keys() and all(torch.equal(v, start[k]) for k, v in base.items())
    assert any(v.abs().max() > 0 for k, v in now.items() if "lora_B" in k)
    hashed = lambda t: content_hash({k: v.tolist() for k, v in t.state_dict().items()})
    # finished: read back
    assert hashed(two_epochs(backbone, pairs, tmp_path)) == hashed(tuner)
