"""Speech inputs of the tuner against the plain way: one window at a time through the library's own
model, and everything that must not change them."""

import csv
import multiprocessing
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import speech_models
import torch
import transformers as tf
from conftest import ROOT
from speech_models import LAYERS, MODELS, RATE, config

from braintune_nb.align.windows import audio_windows, ending_windows
from braintune_nb.clock import regular_clock
from braintune_nb.core import (
    ClockError,
    DataError,
    MissingData,
    ModelError,
    ParameterError,
    RunError,
)
from braintune_nb.data.splits import Section, whole_story
from braintune_nb.data.stories import Story
from braintune_nb.data.transcripts import Events
from braintune_nb.model import speech_inputs as chapter42
from braintune_nb.model import text_inputs
from braintune_nb.model.backbone import load_speech_backbone
from braintune_nb.model.speech_inputs import plan_cache, speech_inputs

every_model = pytest.mark.parametrize(
    "name", [n for n in MODELS if n not in ("wav2vec2 stable adapter", "wav2vec2 biased")]
)


def model(name, normalised=True):
    "A random model, its windows normalised or not."
    plain = normalised or MODELS[name][0] == "whisper"
    return speech_models.model(
        name, extractor=None if plain else tf.Wav2Vec2FeatureExtractor(do_normalize=False)
    )


def sound(seconds=5.0, seed=0):
    return speech_models.sound(seconds, seed)


def story(n=12, tr=0.4, first=-0.3, end=4.6, audio=None, name="tones"):
    return Story(
        name,
        "en",
        Events(np.array([0.1, end - 0.5]), np.array([0.5, end]), ("one", "two")),
        regular_clock(n, tr, first),
        audio=audio,
    )


def tuner(backbone, layer=-1, pool=None, memory_gb=2.0):
    mean = lambda x, mask: (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return SimpleNamespace(
        model=backbone.model, layer=backbone.layer(layer), pool=pool or mean, memory_gb=memory_gb
    )


def block(rows, s=None):
    return Section("block", s or story(), np.asarray(rows))


def inputs_of(section, backbone, seconds=5.0, **more):
    return speech_inputs(
        section, backbone, **(dict(window=0.8, audio=sound(seconds), sampling_rate=RATE) | more)
    )


def slow_states(backbone, piece):
    """Hidden states of all layers and frames of one window, (L + 1, K, H), through the
    library's own forward pass."""
    ready = backbone.extractor(piece, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        states = backbone.model(
            **{k: v for k, v in ready.items() if k != "attention_mask"}, output_hidden_states=True
        ).hidden_states
    frames = -(-len(piece) // 320) if backbone.kind == "whisper" else states[0].shape[1]
    return torch.stack([s[0, :frames] for s in states])


# ---- windows


def slow_window(backbone, s, t):
    "States of all layers of the window that ends with TR t, silence before the story."
    padded = np.concatenate([np.zeros(2 * RATE, np.float32), sound()])
    end = round((s.clock.times[t] + 0.2) * RATE) + 2 * RATE
    return slow_states(backbone, padded[end - round(0.8 * RATE) : end])


@every_model
def test_windows_are_the_library_s_own_hidden_states(name):
    backbone, s = model(name), story()
    inputs = inputs_of(block(range(4, 12), s), backbone, delays=(1, 3))
    windows = [slow_window(backbone, s, t) for t in range(1, 12)]
    for layer in range(LAYERS + 1):
        expected = torch.stack([states[layer].mean(0) for states in windows])
        with torch.no_grad():
            found = inputs.read(tuner(backbone, layer))
        assert found.shape == (11, 16) and found.dtype == torch.float32
        assert (found - expected).abs().max() <= 2e-5, layer
    assert inputs.weights is None and inputs.first == 1 and len(inputs) == 8
    assert inputs.keep.tolist() == list(range(3, 11))


def test_the_pool_gets_frames_and_mask():
    seen = []

    def pool(x, mask):
        seen.append((x.shape, mask.shape, mask.dtype, bool(mask.all())))
        return x.amax(1)

    for name, frames in (("wav2vec2", 39), ("whisper", 40)):
        backbone = model(name)
        inputs = inputs_of(block([8, 9]), backbone, delays=(0,))
        found = inputs.read(tuner(backbone, 2, pool))
        assert seen.pop() == ((2, frames, 16), (2, frames), torch.bool, True)
        expected = slow_states(
            backbone,
            sound()[
                round((-0.3 + 8 * 0.4 + 0.2 - 0.8) * RATE) : round((-0.3 + 8 * 0.4 + 0.2) * RATE)
            ],
        )[2].amax(0)
        assert (found[0] - expected).abs().max() <= 2e-5
        assert inputs.first == 8 and inputs.keep.tolist() == [0, 1]


def test_whisper_pools_over_the_frames_that_sound_covers():
    """A-16: not one less, and none of the silence that fills up to 2 s here (30 s in the real
    model)."""
    backbone = model("whisper")
    assert [backbone.frame_grid.count(n) for n in (320, 321, 12800, 12960)] == [1, 2, 40, 41]
    inputs = inputs_of(block([9]), backbone, delays=(0,))
    whole = slow_states(backbone, sound()[round(2.7 * RATE) : round(3.5 * RATE)])
    assert (
        whole.shape[1] == 40
        and (inputs.read(tuner(backbone))[0] - whole[3].mean(0)).abs().max() <= 2e-5
    )


@every_model
def test_exactly_these_samples(name):
    """Row t reads [end - window, end) and nothing else: sound changed on either side of it
    leaves its state alone, sound inside does not."""
    backbone, s, audio = model(name), story(), sound()
    end = round((s.clock.times[8] + s.clock.tr / 2) * RATE)
    start = end - round(0.8 * RATE)
    read = lambda audio: (
        speech_inputs(block([8], s), backbone, (0,), window=0.8, audio=audio, sampling_rate=RATE)
        .read(tuner(backbone))
        .detach()
    )
    first = read(audio)
    for changed, same in (
        (slice(0, start), True),
        (slice(end, None), True),
        (slice(start, start + 200), False),
        (slice(end - 120, end), backbone.kind != "whisper" and None),
    ):
        other = audio.copy()
        other[changed] = np.random.default_rng(1).uniform(-0.5, 0.5, len(other[changed]))
        if same is not None:
            assert torch.equal(read(other), first) == same, changed


def test_before_the_story_there_is_silence():
    "A-06: zeros, never the first second again."
    backbone, s = model("hubert"), story(first=-0.1)
    found = inputs_of(block([0, 1], s), backbone, delays=(0,)).read(tuner(backbone)).detach()
    for t in range(2):
        n = round((s.clock.times[t] + 0.2) * RATE)
        expected = slow_states(
            backbone, np.concatenate([np.zeros(round(0.8 * RATE) - n, np.float32), sound()[:n]])
        )[3].mean(0)
        assert (found[t] - expected).abs().max() <= 2e-5


@pytest.mark.parametrize("tr", (2.0, 2.0045, 1.5))
def test_real_clocks_give_windows_of_one_length(tr):
    """A-07: with real scanner times the released program makes windows of another length every
    220 TRs and fails."""
    times = -9.026 + tr * np.arange(363)
    edges = ending_windows(times, tr, RATE)
    assert set(edges[:, 1] - edges[:, 0]) == {160000}
    assert abs(edges[:, 1] / RATE - (times + tr / 2)).max() <= 0.5 / RATE


@pytest.mark.parametrize("tr", (2.0, 2.0045, 1.5))
def test_states_of_real_clocks_are_those_of_their_windows(tr):
    backbone, s = model("wav2vec2"), story(40, tr, -tr / 2 - 0.013, 40 * tr - 3)
    audio = sound(40 * tr)
    inputs = speech_inputs(
        block([30, 31, 32], s), backbone, (1, 2), window=2 * tr, audio=audio, sampling_rate=RATE
    )
    end = round((s.clock.times[30] + tr / 2) * RATE)
    expected = slow_states(backbone, audio[end - round(2 * tr * RATE) : end])[3].mean(0)
    with torch.no_grad():
        found = inputs.read(tuner(backbone))[2]
    assert (found - expected).abs().max() <= 2e-5 and inputs.keep.tolist() == [2, 3, 4]


def read_section(audio, **more):
    "States of eight TRs of a section, read by wav2vec2."
    backbone = model("wav2vec2")
    inputs = inputs_of(block(range(4, 12)), backbone, delays=(0,), audio=audio, **more)
    return inputs.read(tuner(backbone)).detach()


def test_normalisation_is_per_window():
    """A-09: the state of a window must not depend on its neighbours in the batch; the released
    way is there by name."""
    audio = sound() / 8  # room for a stretch fifty times as loud
    loud = audio.copy()
    loud[: round(1.5 * RATE)] *= 50
    assert torch.equal(read_section(audio)[-1], read_section(loud)[-1])
    quiet, noisy = (read_section(a, normalise="batch")[-1] for a in (audio, loud))
    assert (quiet - noisy).abs().max() > 1e-3


def test_the_released_normalisation_is_per_batch():
    backbone, audio = model("wav2vec2"), sound() / 8
    edges = ending_windows(story().clock.times[4:12], 0.4, RATE, 0.8)
    batch = audio_windows(audio, edges, RATE)
    together = torch.from_numpy((batch - batch.mean()) / np.sqrt(batch.var() + 1e-7))
    with torch.no_grad():
        expected = backbone.model(together).last_hidden_state.mean(1)
    assert (read_section(audio, normalise="batch") - expected).abs().max() <= 2e-5


# ---- chunks


def frame_middle(backbone):
    "Middle of the first frame, in samples."
    return 0.0 if backbone.kind == "whisper" else 199.5


def frames_between(backbone, begin, end):
    "Frames whose middle lies between two samples."
    middle = frame_middle(backbone)
    return [g for g in range(-100, 1000) if begin <= g * 320 + middle < end]


def slow_chunks(backbone, frames):
    "States of the frames in chunks of at most 1 s (3.6 s: four equal ones), 0.2 s on both sides."
    silence = np.zeros(RATE, np.float32)
    padded, each, states = np.concatenate([silence, sound(), silence]), -(-len(frames) // 4), []
    for i in range(0, len(frames), each):
        start = (frames[i] - 10) * 320 + RATE
        length = 320 * (each + 20) if backbone.kind == "whisper" else 320 * (each + 19) + 400
        found = slow_states(backbone, padded[start : start + length])[2]
        states += list(found[10 : 10 + min(each, len(frames) - i)])
    return torch.stack(states)


def seconds_of(backbone, frames):
    "Where the middle of each frame stands."
    return np.array([(g * 320 + frame_middle(backbone)) / RATE for g in frames])


def assert_means_of_frames(inputs, times, seconds):
    "The weights of each TR are those of the mean over the frames whose middle it holds."
    for weights, time in zip(inputs.weights, times, strict=True):
        inside = (time - 0.2 <= seconds) & (seconds < time + 0.2)
        assert np.allclose(weights, inside / inside.sum(), atol=1e-7)


@every_model
def test_frames_of_each_model(name):
    grid = model(name, normalised=False).frame_grid
    assert (grid.hop, grid.centre) == (320, frame_middle(model(name)))


@every_model
@pytest.mark.parametrize("cache", (None, True))
def test_chunks(name, cache, tmp_path):
    """Each frame once, in order of time, from a chunk with context on both sides; TRs are means
    of the frames whose middle they hold."""
    backbone, s = model(name, normalised=False), story(first=-0.305)
    cut = dict(mode="chunks", chunk=1.0, context=0.2, cache=tmp_path if cache else None)
    inputs = inputs_of(block(range(4, 12), s), backbone, delays=(1,), **cut)
    times = s.clock.times[3:12]
    frames = frames_between(backbone, *((times[[0, -1]] + (-0.2, 0.2)) * RATE))
    with torch.no_grad():
        states = inputs.read(tuner(backbone, 2))
    assert states.shape == (len(frames), 16) and tuple(inputs.weights.shape) == (9, len(frames))
    assert (states - slow_chunks(backbone, frames)).abs().max() <= 3e-5
    assert_means_of_frames(inputs, times, seconds_of(backbone, frames))


def test_chunk_settings_are_checked():
    backbone = model("wav2vec2")
    for wrong in (dict(chunk=0), dict(context=-1)):
        with pytest.raises(ParameterError, match="positive length"):
            inputs_of(block([5]), backbone, mode="chunks", **wrong)
    with pytest.raises(ParameterError, match="windows, chunks"):
        inputs_of(block([5]), backbone, mode="both")
    with pytest.raises(ParameterError, match="window, batch"):
        inputs_of(block([5]), backbone, normalise="story")


# ---- gradients, memory, products


def gradients(backbone, inputs, layer, **more):
    for p in backbone.model.parameters():
        p.requires_grad_(True)
        p.grad = None
    states = inputs.read(tuner(backbone, layer, **more))
    (states * torch.linspace(-1, 1, states.numel()).view(states.shape)).sum().backward()
    return {k: p.grad.clone() for k, p in backbone.model.named_parameters() if p.grad is not None}


def of_front_end(key):
    "Whether a weight stands before the blocks."
    return "feature_extractor" in key or key.startswith(("conv1", "conv2", "embed_positions"))


def block_number(key):
    "The number of the block that a weight belongs to."
    if "layers." not in key or "conv_layers" in key:
        return None
    return int(key.split("layers.")[1].split(".")[0])


def largest_relative_difference(found, plain):
    "Among gradients that are not tiny."
    largest = {k: g.abs().max() for k, g in plain.items()}
    return max(
        (found[k] - plain[k]).abs().max() / (top + 1e-9) for k, top in largest.items() if top > 1e-4
    )


@every_model
@pytest.mark.parametrize("mode", ("windows", "chunks"))
def test_gradients_reach_the_blocks_and_not_the_front_end(name, mode, tmp_path):
    backbone = model(name)
    section, more = block(range(6, 12)), dict(delays=(0,), mode=mode, chunk=1.0, context=0.2)
    plain = gradients(backbone, inputs_of(section, backbone, **more), 2)
    assert not any(map(of_front_end, plain))
    assert {block_number(k) for k in plain} - {None} == {0, 1}
    assert backbone.kind == "whisper" or any(k.startswith("feature_projection") for k in plain)
    for again in (
        inputs_of(section, backbone, **more, cache=tmp_path),
        inputs_of(section, backbone, **more, batch=1),
    ):
        for memory_gb in (0, 2.0):
            found = gradients(backbone, again, 2, memory_gb=memory_gb)
            assert found.keys() == plain.keys()
            assert largest_relative_difference(found, plain) <= 1e-3


def library_states(s, backbone):
    "States of the last layer by the library's own forward pass."
    edges = ending_windows(s.clock.times[[9, 10]], 0.4, RATE, 0.8)
    ready = backbone.extractor(
        list(audio_windows(sound(), edges, RATE)), sampling_rate=RATE, return_tensors="pt"
    )
    return backbone.model(
        ready["input_features" if backbone.kind == "whisper" else "input_values"],
        output_hidden_states=True,
    ).hidden_states[-1]


@every_model
def test_gradients_are_those_of_the_library_s_forward_pass(name):
    backbone, s = model(name), story()
    inputs = inputs_of(block([9, 10]), backbone, delays=(0,))
    found = gradients(backbone, inputs, LAYERS)
    for p in backbone.model.parameters():
        p.grad = None
    hidden = library_states(s, backbone)
    states = hidden[:, : inputs.frames].mean(1)
    (states * torch.linspace(-1, 1, states.numel()).view(states.shape)).sum().backward()
    plain = {k: p.grad for k, p in backbone.model.named_parameters() if p.grad is not None}
    largest = max(g.abs().max() for g in plain.values())
    assert max((found[k] - plain[k]).abs().max() for k in found) <= 1e-5 * largest


def test_recomputation_replays_dropout():
    backbone = model("wav2vec2")
    backbone.model.train()
    inputs, results = inputs_of(block(range(6, 12)), backbone, delays=(0,), batch=2), []
    for memory_gb in (0, 2.0):
        torch.manual_seed(3)
        results.append(gradients(backbone, inputs, 3, memory_gb=memory_gb))
    assert max((results[0][k] - results[1][k]).abs().max() for k in results[0]) <= 1e-4
    assert backbone.model.training and backbone.model.encoder.training


def test_no_masking_and_no_layerdrop_in_training():
    kind, more = MODELS["wav2vec2"]
    quiet = dict(
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.9,
        mask_time_prob=0.5,
    )
    for name in ("wav2vec2", "wavlm", "hubert"):
        backbone = load_speech_backbone(config(name, **quiet), random_weights=True, seed=1)
        inputs = inputs_of(block(range(6, 12)), backbone, delays=(0,))
        still = inputs.read(tuner(backbone)).detach()
        backbone.model.train()
        assert all(torch.equal(inputs.read(tuner(backbone)).detach(), still) for _ in range(5)), (
            name
        )


needs_onednn = pytest.mark.skipif(chapter42._onednn is None, reason="PyTorch without oneDNN")


def random_product():
    "Inputs, weights, biases of a layer, and the gradient of what it gives."
    generator, sizes = torch.Generator().manual_seed(0), ((3, 50, 40), (30, 40), (30,), (3, 50, 30))
    return [torch.randn(s, generator=generator) for s in sizes]


@needs_onednn
def test_products_and_their_gradients():
    *given, g = random_product()
    results = []
    for mode in (chapter42.fast_products(), chapter42.nullcontext()):
        leaves = [t.clone().requires_grad_() for t in given]
        with mode:
            y = torch.nn.functional.linear(*leaves)
        y.backward(g)
        results.append([y.detach(), *(t.grad for t in leaves)])
    for a, c in zip(*results):
        assert (a - c).abs().max() <= 1e-5 * c.abs().max()


@needs_onednn
def test_fast_products_are_taken_only_where_they_are_right(monkeypatch):
    x, w, *_ = random_product()
    called, op = [], text_inputs._onednn
    monkeypatch.setattr(text_inputs, "_onednn", lambda *a: called.append(1) or op(*a))
    frozen = torch.nn.Linear(40, 30).requires_grad_(False)
    with chapter42.fast_products():
        leaf = x.clone().requires_grad_()
        frozen(leaf).sum().backward()
        assert len(called) == 2  # no product for weights that are not trained
        torch.nn.functional.linear(x, w, bias=None)
        with torch.autocast("cpu", torch.bfloat16):
            assert frozen(x).dtype == torch.bfloat16
        assert frozen.double()(x.double()).dtype == torch.float64
    assert len(called) == 3


@every_model
@pytest.mark.parametrize("cached", (False, True))
def test_autocast_is_close(name, cached, tmp_path):
    backbone = model(name)
    inputs = inputs_of(
        block(range(4, 12)), backbone, delays=(0,), cache=tmp_path if cached else None
    )
    exact = inputs.read(tuner(backbone)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        rough = inputs.read(tuner(backbone, memory_gb=0))
    rough.sum().backward()
    assert rough.dtype == torch.float32 and (rough.detach() - exact).abs().max() > 1e-5
    assert np.corrcoef(rough.detach().ravel(), exact.ravel())[0, 1] > 0.99
    assert all(
        torch.isfinite(p.grad).all() for p in backbone.model.parameters() if p.grad is not None
    )


# ---- the cache


def assert_planned_size(backbone, section, folder, stored):
    "One file in the cache, as large as planned."
    (file,) = folder.iterdir()
    size = plan_cache([section], backbone, window=0.8, cache=folder, stored=stored)
    assert 0 <= file.stat().st_size - size <= 256


STORED = dict(float32=1e-5, float16=5e-3, bfloat16=5e-2)  # number format -> relative error


def states_alike(fresh, backbone, kept, stored):
    "States of both inputs differ by rounding only; those that were kept."
    with torch.no_grad():
        a, b = fresh.read(tuner(backbone)), kept.read(tuner(backbone))
    assert (a - b).abs().max() <= STORED[stored] * a.abs().max()
    return b


@every_model
@pytest.mark.parametrize("stored", STORED)
def test_cached_is_computed(name, stored, tmp_path, monkeypatch):
    backbone, section = model(name), block(range(2, 12))
    fresh = inputs_of(section, backbone)
    kept = inputs_of(section, backbone, cache=tmp_path, stored=stored)
    assert_planned_size(backbone, section, tmp_path, stored)
    assert kept.sound is None
    b = states_alike(fresh, backbone, kept, stored)
    for what in ("_fill", "_front"):  # from here on nothing can be computed
        monkeypatch.setattr(chapter42, what, None)
    again = inputs_of(section, backbone, cache=tmp_path, stored=stored)
    with torch.no_grad():
        assert torch.equal(again.read(tuner(backbone)), b)
    assert again.key() == kept.key()
    with pytest.raises(TypeError):
        inputs_of(block(range(2, 11)), backbone, cache=tmp_path, stored=stored)


def test_one_pass_over_the_story_serves_all_windows(tmp_path):
    """Layer-norm front ends without normalisation: overlapping windows share frames, exactly;
    where hops do not fit TRs, each phase has its own."""
    for tr, shared in (
        (0.4, True),
        (0.405, False),
        (0.41, True),
    ):  # 20 hops; 20.25: four phases, which do not overlap; 20.5: two
        s, size = story(12, tr, -0.3), 10 * 79
        for name in ("wav2vec2 stable", "hubert stable", "wavlm stable"):
            backbone = model(name, normalised=False)
            kept, fresh = (
                inputs_of(block(range(2, 12), s), backbone, delays=(0,), window=1.6, cache=c)
                for c in (tmp_path, None)
            )
            assert (len(kept.table) < size) == shared and len(kept.table) <= size, tr
            with torch.no_grad():
                assert (
                    kept.read(tuner(backbone)) - fresh.read(tuner(backbone))
                ).abs().max() <= 1e-5
    for backbone in (
        model("wav2vec2 stable"),
        model("wav2vec2", normalised=False),
    ):  # normalised windows; group norm over the window
        assert (
            len(
                inputs_of(
                    block(range(2, 12)), backbone, delays=(0,), window=1.6, cache=tmp_path
                ).table
            )
            == size
        )
    assert chapter42._shared(model("wav2vec2 stable", False), "window") and not chapter42._shared(
        model("wav2vec2 stable", False), "batch"
    )


def plain_key(backbone, rows=range(4, 12), **more):
    return inputs_of(block(rows), backbone, **more).key()


def test_keys_depend_on_everything(tmp_path):
    backbone = model("hubert")
    first = plain_key(backbone)
    changes = [
        dict(window=0.7),
        dict(delays=(1,)),
        dict(mode="chunks"),
        dict(mode="chunks", context=1.0),
        dict(mode="chunks", chunk=1.0),
        dict(normalise="batch"),
        dict(audio=sound() * np.float32(1.001)),
        dict(cache=tmp_path, stored="float16"),
        dict(rows=range(4, 11)),
    ]
    keys = [plain_key(backbone, **change) for change in changes]
    keys.append(inputs_of(block(range(4, 12), story(first=-0.2)), backbone).key())
    keys += [plain_key(other) for other in (model("wav2vec2"), model("hubert", False))]
    with torch.no_grad():
        next(backbone.model.feature_extractor.parameters())[0] += 0.1
    keys.append(plain_key(backbone))
    assert len({first, *keys}) == len(keys) + 1


def test_keys_do_not_depend_on_the_tuned_part_or_how_it_is_computed(tmp_path):
    backbone = model("hubert")
    first = plain_key(backbone)
    with torch.no_grad():
        # the model itself is not part of it: tuning changes it
        backbone.blocks[0].feed_forward.output_dense.bias += 1
    for more in (dict(), dict(cache=tmp_path), dict(batch=3, progress=True)):
        assert plain_key(backbone, **more) == first


def test_a_changed_front_end_is_refused(tmp_path):
    backbone, other = model("wavlm"), model("wavlm")
    inputs = inputs_of(block([8]), backbone, cache=tmp_path)
    inputs.read(tuner(other))
    with torch.no_grad():
        other.model.feature_extractor.conv_layers[3].conv.weight[2] += 0.01
    with pytest.raises(
        ModelError, match=r"another front end(.|\n)*speech_inputs\(section, tuner.backbone"
    ):
        inputs.read(tuner(other))


def test_no_room(tmp_path, monkeypatch):
    backbone, section = model("hubert"), block(range(4, 12))
    monkeypatch.setattr(chapter42.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000))
    with pytest.raises(RunError, match=r"0.00 GB free(.|\n)*0.00 GB in float32(.|\n)*float16"):
        plan_cache([section], backbone, window=0.8, cache=tmp_path)
    with pytest.raises(RunError, match="no room"):
        inputs_of(section, backbone, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_plan_of_a_study():
    "28,000 TRs of 10 s at the size of wav2vec2-base."
    backbone = load_speech_backbone(
        tf.Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_conv_pos_embedding_groups=2,
        ),
        random_weights=True,
    )
    s = story(28_000, 2.0, 1.0, 100.0)
    try:
        size = plan_cache([whole_story(s)], backbone, delays=(0,), cache="/")
    except RunError as error:
        assert "28.61 GB in float32" in str(error)
    else:
        assert size == 28_000 * 499 * 512 * 4


def test_an_interrupted_cache_leaves_nothing(tmp_path, monkeypatch):
    backbone, front, calls = model("hubert"), chapter42._front, []

    def stops(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return front(*args)

    monkeypatch.setattr(chapter42, "_front", stops)
    with pytest.raises(KeyboardInterrupt):
        inputs_of(block(range(2, 12)), backbone, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_numbers_too_large_for_float16(tmp_path, monkeypatch):
    backbone = model("hubert")
    monkeypatch.setattr(chapter42, "_front", lambda *a, front=chapter42._front: 1e6 * front(*a))
    with pytest.raises(DataError, match="more than float16 can hold"):
        inputs_of(block([5]), backbone, cache=tmp_path, stored="float16")
    inputs_of(block([5]), backbone, cache=tmp_path, stored="bfloat16")
    assert len(list(tmp_path.iterdir())) == 1


def _worker(folder, barrier, queue):
    torch.set_num_threads(1)
    backbone = model("wav2vec2")
    barrier.wait()
    inputs = inputs_of(block(range(2, 12)), backbone, cache=folder)
    with torch.no_grad():
        queue.put((inputs.key(), float(inputs.read(tuner(backbone)).sum())))


def test_two_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_worker, args=(tmp_path, barrier, queue)) for _ in range(2)]
    for w in workers:
        w.start()
    found = [queue.get(timeout=120) for _ in workers]
    for w in workers:
        w.join()
    assert found[0] == found[1] and len(list(tmp_path.iterdir())) == 1


def test_default_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINTUNE_CACHE", str(tmp_path))
    inputs_of(block([5]), model("hubert"), cache=True)
    assert len(list((tmp_path / "frontend").glob("*.npy"))) == 1


# ---- sound that does not fit


@pytest.fixture
def stereo(tmp_path):
    "A stereo file at 44,100 Hz, and its first channel."
    import soundfile
    import soxr

    high, path = soxr.resample(sound(), RATE, 44100, quality="VHQ"), tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([high, 0.5 * high], axis=1), 44100, subtype="FLOAT")
    return path, high


def test_a_stereo_file_at_another_rate_is_resampled_and_says_so(stereo):
    backbone, (path, high), told = model("hubert"), stereo, dict(window=0.8)
    with pytest.warns(UserWarning, match=r"stereo.wav: 44100 Hz, 2 channel\(s\).*16000 Hz"):
        inputs = speech_inputs(block(range(6, 12), story(audio=path)), backbone, (0,), **told)
    mono = dict(audio=0.75 * sound(), sampling_rate=RATE)
    right = speech_inputs(block(range(6, 12)), backbone, (0,), **told, **mono)
    with torch.no_grad():
        assert (inputs.read(tuner(backbone)) - right.read(tuner(backbone))).abs().max() < 0.05
    with pytest.warns(UserWarning, match="44100 Hz to 16000 Hz"):
        speech_inputs(block([6]), backbone, **told, audio=high, sampling_rate=44100)


def test_a_mono_file_at_the_right_rate_is_taken_as_it_is(tmp_path):
    import soundfile

    backbone, path = model("hubert"), tmp_path / "right.wav"
    soundfile.write(path, sound(), RATE, subtype="FLOAT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = speech_inputs(block(range(6, 12), story(audio=path)), backbone, (0,), window=0.8)
    assert right.key() == inputs_of(block(range(6, 12)), backbone, delays=(0,)).key()


def test_sound_that_is_too_short_names_both_numbers():
    backbone = model("hubert")
    with pytest.raises(ClockError, match=r"sound to 3.00 s(.|\n)*at least 4.60 s"):
        inputs_of(block([5]), backbone, seconds=3.0)  # shorter than its TextGrid
    long = story(200)
    with pytest.raises(ClockError, match=r"5.00 s, TRs to 79.50 s"):
        inputs_of(block([5], long), backbone)
    found = (
        inputs_of(block([190], long), backbone, delays=(0,), overrun=80.0)
        .read(tuner(backbone))
        .detach()
    )
    assert (
        found - slow_states(backbone, np.zeros(round(0.8 * RATE), np.float32))[3].mean(0)
    ).abs().max() <= 2e-5
    with pytest.raises(ClockError, match=r"sound to 5.00 s, window 2 to 5.30 s"):
        audio_windows(sound(), ending_windows([4.3, 4.7, 5.1], 0.4, RATE, 0.8), RATE, place="tones")


def test_bad_sound_is_refused():
    backbone, broken = model("hubert"), sound()
    broken[1600] = np.nan
    for wrong, text in (
        (sound()[None], "one channel"),
        ((sound() * 32767).astype(np.int16), "floating-point"),
        (broken, "NaN"),
    ):
        with pytest.raises(DataError, match=text):
            inputs_of(block([5]), backbone, audio=wrong)
    with pytest.raises(MissingData, match="has no audio"):
        speech_inputs(block([5]), backbone)
    with pytest.raises(ParameterError, match="Whisper cannot read windows that long"):
        inputs_of(block([5]), model("whisper"), window=2.1)
    with pytest.raises(DataError, match="does not have"):
        inputs_of(block([12]), backbone)


def test_to_moves_what_the_tuner_uses():
    inputs = inputs_of(block([5, 6]), model("hubert"), mode="chunks").to("meta")
    assert (
        inputs.keep.device.type == inputs.weights.device.type == "meta"
        and inputs_of(block([5]), model("hubert")).to("meta").weights is None
    )


# ---- in the tuner and the loop


def switch_dropout_off(backbone):
    for module in backbone.model.modules():
        for what in ("p", "dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, what, None), float):
                setattr(module, what, 0.0)


def assert_only_blocks_moved(own, before, backbone):
    "Blocks of the tuned model, nothing of the model that it was made of."
    moved = {k for k, v in own.model.state_dict().items() if not torch.equal(v, before[k])}
    assert any("layers.2." in k for k in moved) and not any(map(of_front_end, moved))
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())


def tuned_losses(backbone, mode, cache):
    "Losses of eight epochs; the front end and the pretrained model stay as they were."
    from braintune_nb.loss import get_loss
    from braintune_nb.model.tuner import BrainTuner
    from braintune_nb.train.loop import TuneSettings, tune

    delays = (0,) if mode == "windows" else (1, 2)
    own = BrainTuner(backbone, {"P1": 5}, delays=delays, seed=3, dropout=0.0)
    cut = dict(mode=mode, chunk=1.0, context=0.2, cache=cache)
    inputs = inputs_of(block(range(4, 12)), backbone, delays=own.delays, **cut)
    target = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    before = {k: v.clone() for k, v in own.model.state_dict().items()}
    settings = TuneSettings(epochs=8, learning_rate=1e-4, head_learning_rate=1e-2)
    pairs = [(inputs, {"P1": target})]
    log = tune(own, pairs, None, get_loss("mse"), settings, progress=False)
    assert_only_blocks_moved(own, before, backbone)
    return [row["train_loss"] for row in log]


@pytest.mark.parametrize("name", ("wav2vec2", "whisper"))
@pytest.mark.parametrize("mode", ("windows", "chunks"))
def test_in_the_tuner(name, mode, tmp_path):
    "Tuned with gradients through the blocks, the same with and without the cache."
    backbone = model(name)
    switch_dropout_off(backbone)
    logs = [tuned_losses(backbone, mode, cache) for cache in (None, tmp_path)]
    assert logs[0][-1] < logs[0][0] and np.allclose(*logs, atol=1e-4)


# ---- the table of the bench


def speeds():
    with open(ROOT / "nbs/experiments/results/tuning_speed.csv", newline="") as f:
        return {(r["model"], r["arm"]): r for r in csv.DictReader(f)}


def test_the_table_of_speeds():
    rows = speeds()
    cached, half = rows["base", "cached front end"], rows["base", "cached front end, bfloat16"]
    assert (
        float(cached["largest_loss_difference"]) <= 1e-4
        and float(half["largest_loss_difference"]) <= 0.05
    )
    assert float(cached["processor_speedup"]) >= 1.3 and float(half["processor_speedup"]) >= 2.5
    for model_name, k in (("base", 3), ("tiny", 3), ("tiny", 8)):
        assert float(rows[model_name, f"{k} jointly"]["processor_speedup"]) >= 0.6 * k, (
            model_name,
            k,
        )


def test_the_bench_counts_its_arithmetic():
    sys.path.insert(0, str(ROOT / "tests/bench"))
    try:
        import tuning
    finally:
        sys.path.pop(0)
    base = tf.Wav2Vec2Config()
    assert (
        round(tuning.gflop(base, 160000, True) - tuning.gflop(base, 160000, False)) == 49
        and round(tuning.gflop(base, 160000, False)) == 297
    )
    section, seconds = tuning.section_of(4)
    assert len(section.rows) == 4 and ending_windows(
        section.story.clock.times[section.rows], 2.0, RATE
    )[[0, -1], [0, 1]].tolist() == [2 * RATE, seconds * RATE]
