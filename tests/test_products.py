"""Products that a processor gets wrong without a word: planted below everything that the package
calls, found before they are used, and replaced by float32."""

import warnings

import numpy as np
import pytest
import torch
from speech_models import RATE, model, sound
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from braintune_nb import core
from braintune_nb.core import fast_linear, wrong_product
from braintune_nb.encode import ridge
from braintune_nb.features import speech
from braintune_nb.features.speech import window_states
from braintune_nb.model import backbone as chapter30
from braintune_nb.model import text_inputs as chapter41
from braintune_nb.model.backbone import CheckedProducts
from braintune_nb.model.text_inputs import fast_products

HALF, EXACT = torch.bfloat16, torch.float32
routes = pytest.mark.parametrize(
    "route", ("oneDNN", "autocast")
)  # autocast is what a GPU and tuning use


def grouped(op, args):
    "What PyTorch 2.13 gets wrong on processors with AMX."
    at = {
        torch.ops.aten.convolution.default: 8,
        torch.ops.aten.conv1d.default: 6,
        torch.ops.aten.conv2d.default: 6,
    }  # the last two without autograd
    return (
        op in at
        and len(args) > at[op]
        and args[at[op]] > 1
        and args[1].dtype == HALF
        and args[1].shape[-1] % 2 == 0
    )


def grouped_backward(op, args):
    return (
        op is torch.ops.aten.convolution_backward.default and args[2].dtype == HALF and args[9] > 1
    )


def linear(number):
    "Every linear layer in one number, whichever library computes it."
    ops = [
        torch.ops.aten.addmm.default,
        torch.ops.aten.mm.default,
        torch.ops.aten.linear.default,
        *([torch.ops.mkldnn._linear_pointwise.default] if fast_linear() else []),
    ]
    if number == EXACT:
        ops = ops[3:]  # float32 of PyTorch itself is what everything is measured by
    return lambda op, args: op in ops and args[0].dtype == number


def attention(op, args):
    return "scaled_dot_product" in str(op) and "backward" not in str(op) and args[0].dtype == HALF


class Wrong(TorchDispatchMode):
    "A processor that returns noise for some products; `fault` says which."

    def __init__(self, fault):
        super().__init__()
        self.fault, self.hits = fault, 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **kwargs or {})
        if not self.fault(op, args):
            return out
        self.hits += 1
        noise = lambda t: (
            torch.randn_like(t) * 4 * t.float().std()
            if torch.is_tensor(t) and t.is_floating_point() and t.numel() > 1
            else t
        )
        return tuple(map(noise, out)) if isinstance(out, (tuple, list)) else noise(out)


@pytest.fixture(autouse=True)
def nothing_tried(monkeypatch):
    monkeypatch.setattr(core, "_TRIED", {})


def blind(monkeypatch, function=F.conv1d):
    "The package without the check of one function."
    real = chapter30.product_is_wrong
    for module in (chapter30, chapter41, speech):
        monkeypatch.setattr(
            module, "product_is_wrong", lambda f, *a, **k: f is not function and real(f, *a, **k)
        )


def r(a, b):
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def states(backbone, fault, precision="bfloat16"):
    "(states of all layers, warnings of wrong products) on a processor with a fault."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Wrong(fault) as wrong:
            found = window_states(backbone, sound(0.8), RATE, window=0.5, precision=precision)[0]
    return (
        found,
        [str(w.message) for w in caught if "is wrong on this machine" in str(w.message)],
        wrong.hits,
    )


def least_r(states, exact):
    "Of any layer."
    return min(r(a, b) for a, b in zip(states, exact))


def assert_tried_once(backbone, found):
    "Tried once, said once, never used."
    again, said, hits = states(backbone, grouped)
    # tried once, said once, never used
    assert not said and not hits and np.array_equal(again, found)


@routes
@pytest.mark.parametrize("name", ("wav2vec2", "hubert stable", "wavlm"))
def test_states_are_right_where_grouped_convolutions_are_not(name, route, monkeypatch):
    if route == "autocast":
        monkeypatch.setattr(speech, "_onednn", None)
    backbone = model(name)
    exact = window_states(backbone, sound(0.8), RATE, window=0.5)[0]
    healthy = window_states(backbone, sound(0.8), RATE, window=0.5, precision="bfloat16")[0]
    monkeypatch.setattr(core, "_TRIED", {})
    found, said, _ = states(backbone, grouped)
    # an old processor may lack products in bfloat16 as well
    (said,) = [s for s in said if "conv1d" in s]
    assert said.startswith("encoder.pos_conv_embed.conv: conv1d of 16 x 8 x 16 weights in bfloat16")
    assert "r = " in said and abs(found - exact).max() <= 2 * abs(healthy - exact).max()
    assert least_r(found, exact) > 0.998
    assert_tried_once(backbone, found)
    assert states(model(name), grouped)[1]  # another model with the same layer says it again
    blind(monkeypatch)
    assert least_r(states(backbone, grouped)[0], exact) < 0.9


@routes
@pytest.mark.parametrize("name", ("wav2vec2", "wavlm", "whisper"))
def test_states_are_right_where_linear_layers_or_attention_are_not(name, route, monkeypatch):
    if route == "autocast":
        monkeypatch.setattr(speech, "_onednn", None)
    elif speech._onednn is None:
        pytest.skip("PyTorch without oneDNN")
    backbone = model(name)
    exact = window_states(backbone, sound(0.8), RATE, window=0.5)[0]
    found, said, _ = states(backbone, linear(HALF))
    assert (
        said
        and any("linear of 32 x 16 weights" in s for s in said)
        and min(r(a, b) for a, b in zip(found, exact)) > 0.998
    )
    core._TRIED.clear()
    found, said, _ = states(backbone, attention)
    assert min(r(a, b) for a, b in zip(found, exact)) > 0.998
    if name != "wavlm":
        assert any("scaled_dot_product_attention" in s for s in said)


def test_float32_of_onednn_is_tried_as_well(monkeypatch):
    if speech._onednn is None:
        pytest.skip("PyTorch without oneDNN")
    backbone = model("wav2vec2")
    exact = window_states(backbone, sound(0.8), RATE, window=0.5)[0]
    monkeypatch.setattr(core, "_TRIED", {})
    found, said, _ = states(backbone, linear(EXACT), precision="float32")
    assert abs(found - exact).max() <= 2e-5 and any("in float32 (oneDNN)" in s for s in said)
    layer, x = torch.nn.Linear(40, 30), torch.randn(9, 40)
    monkeypatch.setattr(core, "_TRIED", {})
    with (
        pytest.warns(UserWarning, match="0: linear of 30 x 40 weights in float32"),
        Wrong(linear(EXACT)),
        fast_products(torch.nn.Sequential(layer)),
    ):
        y = layer(x)
    assert torch.allclose(y, layer(x), atol=1e-5)


def convolution_gradient(fault, half, memory_gb):
    "Gradient of the weights of the grouped convolution, with a fault in products."
    from test_speech_inputs import block, inputs_of, tuner

    backbone = model("wav2vec2")
    inputs = inputs_of(block(range(4, 12)), backbone, delays=(0,))
    tuned = tuner(backbone, memory_gb=memory_gb)
    with warnings.catch_warnings(), Wrong(fault):
        warnings.simplefilter("ignore")
        with torch.autocast("cpu", HALF, enabled=half):
            out = inputs.read(tuned)
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    weights = [p for n, p in backbone.model.named_parameters() if "pos_conv_embed" in n]
    return torch.cat([p.grad.flatten() for p in weights if p.grad is not None])


@pytest.mark.parametrize("fault", (grouped, grouped_backward))
def test_gradients_are_right_in_both_passes(fault, monkeypatch):
    "Also where activations are computed twice, and where the fault is in the second pass alone."
    exact = convolution_gradient(lambda *_: False, False, 9.0)
    monkeypatch.setattr(core, "_TRIED", {})
    for memory_gb in (9.0, 0.0):
        assert r(convolution_gradient(fault, True, memory_gb), exact) > 0.98
    blind(monkeypatch)
    assert r(convolution_gradient(fault, True, 9.0), exact) < 0.8


class TextLoss:
    "The loss of a text tuner for random responses, and what is said meanwhile."

    def __init__(self):
        from test_text_tuning import made, told

        from braintune_nb.data.splits import whole_story
        from braintune_nb.model.text_inputs import section_inputs

        self.backbone = made()
        self.inputs = section_inputs(whole_story(told()), self.backbone, 6)
        shape = self.tuner()(self.inputs)["P1"].shape
        generator = torch.Generator().manual_seed(0)
        self.target = {"P1": torch.randn(shape, generator=generator)}

    def tuner(self):
        from braintune_nb.model.tuner import BrainTuner

        return BrainTuner(self.backbone, {"P1": 4}, dropout=0.0, seed=1)

    def __call__(self, precision, fault):
        from braintune_nb.loss import get_loss
        from braintune_nb.train.loop import MicrobatchLoss

        part = MicrobatchLoss(self.tuner(), get_loss("mse"), precision=precision)
        with warnings.catch_warnings(record=True) as caught, Wrong(fault):
            warnings.simplefilter("always")
            value = float(part(self.inputs, self.target)[0])
        return value, [str(w.message) for w in caught]


def test_tuning_in_bfloat16_tries_heads_and_backbone(monkeypatch):
    "Everything that a visit computes runs inside the check: heads too, outside the backbone."
    loss = TextLoss()
    exact, _ = loss("float32", lambda *_: False)
    found, said = loss("bfloat16", linear(HALF))
    assert abs(found - exact) < 0.01 * exact and any(s.startswith("tuner.heads.0") for s in said)
    blind(monkeypatch, F.linear)
    assert abs(loss("bfloat16", linear(HALF))[0] - exact) > 0.02 * exact


def test_wrong_products_by_kind():
    x = ((20, 30), (10, 30))
    exact = lambda a, b: a @ b.T

    def low(a, b):
        return a.to(HALF) @ b.to(HALF).T

    assert wrong_product(low, exact, x, HALF, key=0) is None
    assert (
        wrong_product(lambda a, b: low(a, b) * 1.1, exact, x, HALF, key=1) > 0.99
    )  # right pattern, wrong size
    assert np.isnan(wrong_product(lambda a, b: low(a, b) * torch.nan, exact, x, HALF, key=2))
    assert (
        wrong_product(lambda a, b: low(a, b.detach()) + 0 * b.sum(), exact, x, HALF, key=3)
        is not None
    )  # right forward, no gradient of b
    assert wrong_product(low, exact, x, EXACT, key=4) > 0.999  # bfloat16 that calls itself float32
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        assert wrong_product(low, exact, x, HALF, key=5) is None
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_product_that_does_not_exist_here_is_a_wrong_one(monkeypatch):
    def missing(*_):
        raise RuntimeError("could not create a primitive descriptor")

    assert np.isnan(
        wrong_product(missing, torch.matmul, ((4, 3), (3, 2)), HALF, key=0)
    ) and np.isnan(wrong_product(missing, torch.matmul, ((4, 3), (3, 2)), HALF, key=0))
    if speech._onednn is None:
        return
    backbone, op = model("wav2vec2"), speech._onednn
    exact = window_states(backbone, sound(0.8), RATE, window=0.5)[0]
    monkeypatch.setattr(
        speech, "_onednn", lambda x, *rest: missing() if x.dtype == HALF else op(x, *rest)
    )
    found, said, _ = states(backbone, lambda *_: False)
    assert (
        min(r(a, b) for a, b in zip(found, exact)) > 0.998
        and all("no numbers" in s for s in said)
        and len(said) >= 4
    )


def test_float64_and_what_is_outside_autocast_are_left_alone():
    layer, x = torch.nn.Conv1d(4, 4, 4, groups=2), torch.randn(1, 4, 20)
    with CheckedProducts(layer):
        assert (
            torch.equal(layer(x), layer._conv_forward(x, layer.weight, layer.bias))
            and not core._TRIED
        )
        with torch.autocast("cpu", HALF):
            assert layer(x).dtype == HALF and len(core._TRIED) == 1
            assert (
                F.linear(x[..., :4].double(), torch.eye(4).double()).dtype == torch.float64
                and len(core._TRIED) == 1
            )
            assert (
                F.conv1d(x, weight=layer.weight, groups=2).dtype == HALF and len(core._TRIED) == 1
            )


def test_ridge_chooses_in_float32_where_bfloat16_is_wrong():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 20)).astype(np.float32)
    folds = ridge.label_folds(np.repeat([0, 1, 2], 20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        design = ridge.RidgeDesign(x, folds, [1.0, 10.0], precision="bfloat16")
    assert design.low == HALF
    core._TRIED.clear()
    with pytest.warns(UserWarning, match="chosen in float32"), Wrong(linear(HALF)):
        design = ridge.RidgeDesign(x, folds, [1.0, 10.0], precision="bfloat16")
    assert design.low == EXACT and all(p["operator"].dtype == EXACT for p in design.parts)
