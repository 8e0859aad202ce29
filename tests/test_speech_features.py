"""Speech-window features against the slow way, one window at a time through the library's own
model, and everything that must not change them."""

import csv
import functools
import sys

import numpy as np
import pytest
import speech_models
import torch
import transformers as tf
from conftest import ROOT
from speech_models import LAYERS, MODELS, RATE, config, model

from braintune_nb.align.resample import lanczos_weights
from braintune_nb.clock import regular_clock
from braintune_nb.core import (
    ClockError,
    DataError,
    MissingData,
    ModelError,
    ParameterError,
    data_root,
)
from braintune_nb.data.audio import read_audio
from braintune_nb.data.stories import Story
from braintune_nb.data.transcripts import Events
from braintune_nb.features import speech
from braintune_nb.features.speech import (
    PRESETS,
    frame_times,
    speech_features,
    window_edges,
    window_states,
)
from braintune_nb.model.backbone import load_speech_backbone, weights_hash

every_model = pytest.mark.parametrize("name", MODELS)


def sound(seconds=1.3, seed=0):
    return speech_models.sound(seconds, seed)


def slow(backbone, audio, window=0.5, stride=0.1):
    "(L + 1, N, H), windows one by one by the definition."
    rows, stop = [], 1
    while round(stop * stride * RATE) <= len(audio):
        end = round(stop * stride * RATE)
        piece = audio[max(0, end - round((window + 0.1) * RATE)) : end]
        stop += 1
        if len(piece) < 400:
            continue
        ready = backbone.extractor(piece, sampling_rate=RATE, return_tensors="pt")
        values = ready["input_features" if backbone.kind == "whisper" else "input_values"]
        with torch.no_grad():
            states = backbone.model(values, output_hidden_states=True).hidden_states
        last = (
            (int(np.ceil(len(piece) / 160)) - 1) // 2
            if backbone.kind == "whisper"
            else states[0].shape[1] - 1
        )
        rows.append(torch.stack([s[0, last] for s in states]).numpy())
    return np.stack(rows, axis=1)


def story(audio_seconds=1.3, **more):
    return Story(
        "tones",
        "en",
        Events(np.array([0.1, 0.6]), np.array([0.5, audio_seconds]), ("one", "two")),
        regular_clock(5, 0.4, -0.3),
        **more,
    )


# ---- equal to the definition


@every_model
def test_equal_to_the_slow_loop(name):
    backbone, audio = model(name), sound()
    expected = slow(backbone, audio)
    assert expected.shape == (LAYERS + 1, 13, 16) and expected.std() > 0.1
    for layers in (None, [3], [2], [1], [0], [2, 0], [0, 3, 1, 3]):
        found, times = window_states(backbone, audio, RATE, layers, window=0.5, batch_size=3)
        assert (
            found.dtype == np.float32
            and abs(found - expected[range(LAYERS + 1) if layers is None else layers]).max() <= 2e-5
        ), layers
    assert np.allclose(times, np.arange(1, 14) / 10)


@every_model
def test_the_other_kernels_give_the_same(name, monkeypatch):
    backbone, audio = model(name), sound()
    found, _ = window_states(backbone, audio, RATE, [1, 3], window=0.5)
    monkeypatch.setattr(speech, "_onednn", None)
    other, _ = window_states(backbone, audio, RATE, [1, 3], window=0.5)
    assert not np.array_equal(found, np.zeros_like(found)) and abs(found - other).max() <= 2e-5


@every_model
@pytest.mark.parametrize("batch", (1, 2, 5, 64))
def test_batches_do_not_matter(name, batch):
    backbone, audio = model(name), sound(1.0)
    assert (
        abs(
            window_states(backbone, audio, RATE, window=0.3, batch_size=batch)[0]
            - window_states(backbone, audio, RATE, window=0.3, batch_size=4)[0]
        ).max()
        <= 1e-5
    )


def test_short_sound_and_the_shortest():
    backbone = model("hubert")
    audio = sound(0.25)
    assert abs(window_states(backbone, audio, RATE)[0] - slow(backbone, audio, 16.0)).max() <= 2e-5
    states, times = window_states(backbone, audio[:400], RATE, chunk=0.025, stride=0.025)
    assert states.shape == (4, 1, 16) and times.tolist() == [0.025]
    assert window_states(backbone, audio[:1599], RATE)[0].shape == (
        4,
        0,
        16,
    )  # shorter than the first chunk: no windows
    with pytest.raises(DataError, match="too short"):
        window_states(backbone, audio[:399], RATE)


def test_without_normalisation_of_windows():
    backbone, audio = (
        model("wav2vec2", extractor=tf.Wav2Vec2FeatureExtractor(do_normalize=False)),
        sound() + 0.2,
    )
    assert (
        not backbone.normalised
        and abs(window_states(backbone, audio, RATE, window=0.5)[0] - slow(backbone, audio)).max()
        <= 5e-5
    )
    assert (
        abs(
            window_states(model("wav2vec2 stable"), audio * 2, RATE, window=0.5)[0]
            - window_states(model("wav2vec2 stable"), audio, RATE, window=0.5)[0]
        ).max()
        <= 1e-3
    )  # normalised: loudness cancels
    quiet = model("wav2vec2 stable", extractor=tf.Wav2Vec2FeatureExtractor(do_normalize=False))
    assert (
        abs(
            window_states(quiet, audio * 2, RATE, window=0.5)[0]
            - window_states(quiet, audio, RATE, window=0.5)[0]
        ).max()
        > 1e-3
    )


def test_a_silent_stretch_stays_finite():
    audio = sound()
    audio[:8000] = 0
    for name in ("wav2vec2", "whisper"):
        assert np.isfinite(window_states(model(name), audio, RATE, window=0.2)[0]).all()


@every_model
def test_the_future_does_not_matter(name):
    backbone, audio = model(name), sound()
    changed = audio.copy()
    changed[round(0.9 * RATE) :] = 0
    a, b = (window_states(backbone, x, RATE, window=0.4)[0] for x in (audio, changed))
    assert abs(a[:, :9] - b[:, :9]).max() <= 1e-6 and abs(a[:, 9:] - b[:, 9:]).max() > 1e-3
    changed = audio.copy()
    changed[: round(0.3 * RATE)] = (
        0  # the window is .4 + .1 s: from .8 s on, nothing before .3 s is in it
    )
    assert (
        abs(a[:, 7:] - window_states(backbone, changed, RATE, window=0.4)[0][:, 7:]).max() <= 1e-6
    )


def test_coarser_strides_keep_windows():
    backbone, audio = model("hubert"), sound()
    fine, at = window_states(backbone, audio, RATE, [2], window=0.5)
    coarse, times = window_states(backbone, audio, RATE, [2], window=0.5, stride=0.3)
    assert np.allclose(times, at[2::3]) and abs(coarse - fine[:, 2::3]).max() <= 1e-5


@pytest.fixture(scope="module")
def frames_of():
    "Name -> a model, its states every .2 s of windows of .5 s, and their times."

    @functools.cache
    def of(name):
        made, cut = model(name), dict(window=0.5, stride=0.4, every=0.2, batch_size=3)
        return made, *window_states(made, sound(), RATE, **cut)

    return of


@every_model
def test_several_frames_of_a_window(name, frames_of):
    backbone, found, times = frames_of(name)
    last, ends = window_states(backbone, sound(), RATE, window=0.5, stride=0.4)
    assert np.allclose(times, [0.2, 0.4, 0.6, 0.8, 1.0, 1.2])
    assert np.allclose(ends, [0.4, 0.8, 1.2]) and abs(found[:, 1::2] - last).max() <= 2e-5


@every_model
def test_a_frame_of_a_window_is_the_library_s_own(name, frames_of):
    "The window that ends at .8 s; its frame .2 s earlier is 10 frames before the last."
    backbone, found, _ = frames_of(name)
    piece = sound()[round(0.2 * RATE) : round(0.8 * RATE)]
    ready = backbone.extractor(piece, sampling_rate=RATE, return_tensors="pt")
    values = ready["input_features" if backbone.kind == "whisper" else "input_values"]
    with torch.no_grad():
        states = backbone.model(values, output_hidden_states=True).hidden_states
    end = 29 if backbone.kind == "whisper" else states[0].shape[1] - 1
    assert abs(found[:, 2] - torch.stack([s[0, end - 10] for s in states]).numpy()).max() <= 2e-5


@every_model
def test_features_are_frames_at_the_rate_of_the_scanner(name, frames_of):
    backbone, found, times = frames_of(name)
    options = dict(window=0.5, stride=0.4, every=0.2, layers=[2], batch_size=3)
    given = dict(audio=sound(), sampling_rate=RATE, cache=None)
    features = speech_features(story(), backbone, **given, **options)[0]
    weights = lanczos_weights(times, story().clock.times, 0.4)
    assert abs(features - weights @ found[2]).max() <= 2e-5


def test_frames_before_the_first_are_left_out():
    backbone, audio = model("hubert"), sound()
    times = window_states(backbone, audio, RATE, [1], window=0.5, stride=0.1, every=0.02)[1]
    assert times.min() >= 0.025 and np.allclose(np.diff(times), 0.02) and np.isclose(times[-1], 1.3)
    times, kept = frame_times(window_edges(RATE, RATE, stride=0.1), RATE, 0.1, 0.02)
    assert kept[1:].all() and kept[0].tolist() == [False, True, True, True, True]
    for every in (0.03, 0.2, 0, -0.1):
        with pytest.raises(ParameterError, match="whole part"):
            window_states(backbone, audio, RATE, every=every)


def test_window_edges():
    edges = window_edges(60 * RATE, RATE)
    length = edges[:, 1] - edges[:, 0]
    assert (
        len(edges) == 600
        and (np.diff(edges[:, 1]) == 1600).all()
        and (length[:161] == 1600 * np.arange(1, 162)).all()
        and (length[160:] == 257600).all()
    )
    assert (
        window_edges(RATE, RATE, stride=0.01)[0] == [0, 480]
    ).all()  # 160 and 320 samples are too few
    for wrong in (dict(stride=0), dict(chunk=-0.1), dict(window=-1)):
        with pytest.raises(ParameterError, match="positive"):
            window_edges(RATE, RATE, **wrong)


@every_model
@pytest.mark.parametrize("kernels", ("oneDNN", "autocast"))  # autocast is what a GPU uses
def test_bfloat16_is_close(name, kernels, monkeypatch):
    backbone, audio = model(name), sound()
    if kernels == "autocast":
        monkeypatch.setattr(speech, "_onednn", None)
    exact, rough = (
        window_states(backbone, audio, RATE, window=0.5, precision=p)[0]
        for p in ("float32", "bfloat16")
    )
    assert rough.dtype == np.float32 and 1e-5 < abs(rough - exact).max()
    assert min(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(exact, rough)) > 0.998
    with pytest.raises(ParameterError, match="float32, bfloat16"):
        window_states(backbone, audio, RATE, window=0.5, precision="float16")


def test_the_sum_through_the_blocks_stays_float32_in_bfloat16():
    for name in MODELS:
        backbone, seen = model(name), []
        handle = backbone.blocks[1].register_forward_pre_hook(
            lambda block, inputs: seen.append(inputs[0].dtype)
        )
        window_states(backbone, sound(0.6), RATE, [3], window=0.2, precision="bfloat16")
        handle.remove()
        assert set(seen) == {torch.float32}, name


# ---- the model is given back as it was


def test_the_model_is_left_alone():
    backbone = model("wav2vec2")
    backbone.model.train()
    before = weights_hash(backbone.model)
    first, _ = window_states(backbone, sound(), RATE, [2], window=0.5)
    second, _ = window_states(backbone, sound(), RATE, [2], window=0.5)
    assert (
        backbone.model.training
        and np.array_equal(first, second)
        and weights_hash(backbone.model) == before
    )  # dropout was off
    assert not any(m._forward_pre_hooks for m in backbone.model.modules())

    class Broken(RuntimeError):
        pass

    def fail(*_):
        raise Broken

    handle = backbone.blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(Broken):
        window_states(backbone, sound(), RATE, [3], window=0.5)
    handle.remove()
    assert backbone.model.training and not any(
        m._forward_pre_hooks for m in backbone.model.modules()
    )
    assert backbone.model(torch.from_numpy(sound()[None])).last_hidden_state.requires_grad


def test_gradients_and_results_do_not_depend_on_global_state():
    backbone = model("hubert")
    torch.manual_seed(1)
    first, _ = window_states(backbone, sound(), RATE, window=0.5)
    torch.manual_seed(2)
    second, _ = window_states(backbone, sound(), RATE, window=0.5)
    assert np.array_equal(first, second)


# ---- a story


def test_features_are_the_resampled_states():
    backbone, audio, s = model("whisper"), sound(), story()
    states, times = window_states(backbone, audio, RATE, [1, 3], window=0.5)
    expected = np.stack([lanczos_weights(times, s.clock.times, s.clock.tr) @ x for x in states])
    for batch in (1, 4, 64):
        found = speech_features(
            s,
            backbone,
            [1, 3],
            window=0.5,
            audio=audio,
            sampling_rate=RATE,
            batch_size=batch,
            cache=None,
        )
        assert (
            found.shape == (2, 5, 16)
            and found.dtype == np.float32
            and abs(found - expected).max() <= 2e-5
        )


CHANGES = [
    dict(layers=[2]),
    dict(window=0.4),
    dict(stride=0.2),
    dict(chunk=0.2),
    dict(stride=0.2, every=0.1),
    dict(precision="bfloat16"),
    dict(preset="released"),
]


def test_cache_depends_on_everything(tmp_path):
    backbone, audio = model("hubert"), sound()
    options = dict(layers=[1], window=0.5, audio=audio, sampling_rate=RATE, cache=tmp_path)
    other_clock = Story("tones", "en", story().words, regular_clock(6, 0.4, -0.3))
    changes = [(story(), change) for change in ({}, *CHANGES, dict(audio=audio * 1.01))]
    for i, (s, change) in enumerate([*changes, (other_clock, {})]):
        speech_features(s, backbone, **options | change)
        assert len(list(tmp_path.glob("*.npy"))) == i + 1, change


def test_cache_is_read_until_the_weights_change(tmp_path, monkeypatch):
    backbone = model("hubert")
    options = dict(layers=[1], window=0.5, audio=sound(), sampling_rate=RATE, cache=tmp_path)
    first = speech_features(story(), backbone, **options)
    monkeypatch.setattr(speech, "_run", None)  # from here on nothing can be computed
    again = speech_features(story(), backbone, **options, batch_size=9, progress=True)
    assert np.array_equal(again, first)
    with torch.no_grad():
        backbone.blocks[2].feed_forward.output_dense.bias[1] += 1e-4
    with pytest.raises(TypeError):
        speech_features(story(), backbone, **options)


def test_an_interrupted_story_leaves_nothing_and_done_ones_stay(tmp_path, monkeypatch):
    backbone, options = (
        model("hubert"),
        dict(layers=[2], window=0.5, sampling_rate=RATE, cache=tmp_path),
    )
    done = speech_features(story(), backbone, audio=sound(seed=1), **options)
    run = speech._run

    def interrupted(*args):
        yield next(run(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(speech, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        speech_features(story(), backbone, audio=sound(seed=2), **options)
    assert len(list(tmp_path.iterdir())) == 1
    assert np.array_equal(speech_features(story(), backbone, audio=sound(seed=1), **options), done)


def test_default_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINTUNE_CACHE", str(tmp_path))
    speech_features(story(), model("hubert"), [0], window=0.2, audio=sound(), sampling_rate=RATE)
    assert len(list((tmp_path / "speech").glob("*.npy"))) == 1


def test_sound_files_give_the_features_of_their_sound(tmp_path):
    import soundfile

    audio, backbone = sound(), model("hubert")
    path = tmp_path / "told.wav"
    soundfile.write(path, audio, RATE, subtype="FLOAT")
    options = dict(layers=[2], window=0.5, cache=None)
    given = speech_features(story(), backbone, audio=audio, sampling_rate=RATE, **options)
    assert np.array_equal(speech_features(story(audio=path), backbone, **options), given)
    soundfile.write(path, np.stack([audio, -audio / 2], axis=1), 22050, subtype="FLOAT")
    with pytest.raises(ParameterError, match=r"22050 Hz(.|\n)*16000 Hz"):
        speech_features(story(audio=path), backbone, **options)


def test_sound_files_are_read_and_resampled(tmp_path):
    import soundfile

    audio, path = sound(), tmp_path / "told.wav"
    soundfile.write(path, np.stack([audio, -audio / 2], axis=1), 22050, subtype="FLOAT")
    samples, rate = read_audio(path)
    assert rate == 22050 and np.allclose(samples, audio / 4, atol=1e-6)
    samples, rate = read_audio(path, sampling_rate=16000)
    assert rate == 16000 and abs(len(samples) - len(audio) * 16000 / 22050) <= 1
    with pytest.raises(MissingData):
        read_audio(tmp_path / "absent.wav")
    path.write_bytes(b"not a sound")
    with pytest.raises(DataError, match="cannot be read"):
        read_audio(path)


# ---- bad input


def test_bad_sound_is_refused():
    backbone, audio = model("hubert"), sound()
    broken = audio.copy()
    broken[1600] = np.nan
    for wrong, error, text in (
        (audio[None], DataError, "one channel"),
        ((audio * 32767).astype(np.int16), DataError, "floating-point"),
        (broken, DataError, r"1 of 20800 samples, the first at 0.100 s"),
        (audio[:0], DataError, "too short"),
    ):
        with pytest.raises(error, match=text):
            window_states(backbone, wrong, RATE)
    with pytest.raises(ParameterError, match=r"8000 Hz(.|\n)*16000 Hz"):
        window_states(backbone, audio, 8000)
    with pytest.raises(ModelError, match="no such layer"):
        window_states(backbone, audio, RATE, [1, 4])
    with pytest.raises(ParameterError, match="No layers"):
        window_states(backbone, audio, RATE, [])


def test_whisper_refuses_windows_longer_than_it_reads():
    backbone, audio = model("whisper"), sound(3.0)
    assert window_states(backbone, audio, RATE, [1], window=1.9)[0].shape == (1, 30, 16)
    with pytest.raises(ParameterError, match="2.1 s(.|\n)*at most 2 s"):
        window_states(backbone, audio, RATE, [1], window=2.0)


def test_sound_that_does_not_fit_its_story():
    backbone, options = (
        model("hubert"),
        dict(audio=sound(), sampling_rate=RATE, cache=None, window=0.2, layers=[1]),
    )
    with pytest.raises(ClockError, match="before the last word"):
        speech_features(story(1.9), backbone, **options)
    long = Story("long", "en", story().words, regular_clock(40, 1.0, 0.5))
    with pytest.raises(ClockError, match=r"1.30 s, TRs to 40.00 s"):
        speech_features(long, backbone, **options)
    assert speech_features(long, backbone, overrun=60.0, **options).shape == (1, 40, 16)
    with pytest.raises(MissingData, match="no audio"):
        speech_features(story(), backbone, cache=None)


# ---- loading


KINDS = ("wav2vec2", "hubert", "wavlm", "whisper")


def saved_model(kind, folder):
    "A random model in a folder, without its feature extractor."
    whole = tf.AutoModel.from_config(config(kind))
    whole.save_pretrained(folder)
    return whole.encoder if kind == "whisper" else whole


def add_extractor(kind, folder):
    load_speech_backbone(config(kind), random_weights=True).extractor.save_pretrained(folder)


def edit_weights(folder, keep):
    "Only the weights whose names are kept."
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    spare = {k: v for k, v in load_file(path).items() if keep(k)}
    save_file(spare, path, metadata={"format": "pt"})
    return list(spare)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_models_load(kind, tmp_path):
    saved = saved_model(kind, tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_speech_backbone(tmp_path)  # no feature extractor beside it
    add_extractor(kind, tmp_path)
    found = load_speech_backbone(tmp_path)
    assert weights_hash(found.model) == weights_hash(saved)
    assert found.kind == kind and found.folder == tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_models_do_not_load(kind, tmp_path):
    saved_model(kind, tmp_path)
    add_extractor(kind, tmp_path)
    # some weights may be missing
    spare = lambda k: not k.endswith("masked_spec_embed") and "decoder." not in k
    kept = edit_weights(tmp_path, spare)
    notes = load_speech_backbone(tmp_path).notes
    assert any("masked_spec_embed" in n for n in notes) == (kind != "whisper")
    gone = next(k for k in kept if "layers.2" in k)
    edit_weights(tmp_path, lambda k: k != gone)
    with pytest.raises(ModelError, match="lacks weights"):
        load_speech_backbone(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"a program")
    with pytest.raises(ModelError, match="pickles are never read"):
        load_speech_backbone(tmp_path)
    random = load_speech_backbone(tmp_path, random_weights=True)
    assert random.notes == ("random weights, seed 0",)


def test_refused_names(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hf download nobody/no-such-model"):
        load_speech_backbone("nobody/no-such-model")
    with pytest.raises(ModelError, match="no such folder"):
        load_speech_backbone(tmp_path / "absent")
    with pytest.raises(ModelError, match="not a speech model"):
        load_speech_backbone("tiny")
    with pytest.raises(ModelError, match="does not fit"):
        load_speech_backbone(
            config("hubert"), random_weights=True, extractor=tf.WhisperFeatureExtractor()
        )


def test_random_weights_have_their_own_seed():
    state = torch.random.get_rng_state()
    a, b, c = (
        weights_hash(load_speech_backbone(config("wavlm"), random_weights=True, seed=s).model)
        for s in (1, 1, 2)
    )
    assert a == b != c and torch.equal(torch.random.get_rng_state(), state)


# ---- real speech, and the table of the bench


def test_real_speech():
    root = data_root()
    path = root and root / "speech_clips/wenet/librispeech-1995-1837-0001.wav"
    if not path or not path.is_file():
        pytest.skip("no BRAINTUNE_DATA with LibriSpeech 1995-1837-0001 (openslr.org/12)")
    audio, rate = read_audio(path)
    backbone, audio = model("wav2vec2"), audio[: 3 * rate]
    assert (
        rate == RATE
        and abs(
            window_states(backbone, audio, rate, window=0.8)[0] - slow(backbone, audio, 0.8)
        ).max()
        <= 2e-5
    )


def results(name):
    with open(ROOT / "nbs/experiments/results" / name, newline="") as f:
        return list(csv.DictReader(f))


def test_the_fast_preset_is_what_the_table_says():
    assert PRESETS["paper"] == dict(
        window=16.0, chunk=0.1, stride=0.1, every=None, precision="float32"
    )
    fast = PRESETS["fast"]
    [row] = [
        r
        for r in results("windows_choices.csv")
        if r["precision"] == fast["precision"]
        and float(r["stride"]) == fast["stride"]
        and r["every"] == str(fast["every"] or "last frame")
    ]
    assert float(row["base_speedup"]) >= 8 and abs(float(row["alignment_difference"])) < 0.002


def test_the_table_of_speeds():
    rows = {r["arm"]: r for r in results("windows_speed.csv")}
    assert (
        float(rows["all layers"]["max_abs_difference"]) <= 1e-4
        and float(rows["layers 2 5 7 8"]["max_abs_difference"]) <= 1e-4
    )
    assert float(rows["layers 2 5 7 8"]["processor_speedup"]) >= 1.4


def test_the_bench_counts_its_arithmetic():
    sys.path.insert(0, str(ROOT / "tests/bench"))
    try:
        import windows
    finally:
        sys.path.pop(0)
    assert (
        round(windows.gflop(tf.Wav2Vec2Config(), 12, False)) == 248
    )  # of which attention 24, convolutions 79
    assert (
        windows.gflop(tf.Wav2Vec2Config(), 12, True) < 237
        and windows.gflop(tf.Wav2Vec2Config(), 8, True) < 184
    )
