"""Bad input on the speech road, end to end: files on disk, the loader of ds003020, speech features
and the tuner's inputs, the training loop.

Every refusal must be one of the package's errors and name the file (or the story), what was found,
what was expected, and the next step."""

import json
import warnings

import h5py
import numpy as np
import pytest
import soundfile
import transformers as tf
from speech_models import SMALL, whisper_settings

from braintune_nb.core import (
    BraintuneError,
    ClockError,
    DataError,
    MissingData,
    ModelError,
    ParameterError,
)
from braintune_nb.data.audio import read_audio
from braintune_nb.data.lebel2023 import (
    check_lebel2023,
    lebel_clock,
    load_lebel2023,
    published_shapes,
    write_lebel2023,
)
from braintune_nb.data.recordings import Dataset, Recording, Space
from braintune_nb.data.splits import Split, whole_story
from braintune_nb.data.stories import Events, Story
from braintune_nb.experiment.plan import check_participants
from braintune_nb.features.speech import speech_features
from braintune_nb.model.backbone import load_backbone, load_speech_backbone
from braintune_nb.model.speech_inputs import speech_inputs

tf.utils.logging.set_verbosity_error()
tf.utils.logging.disable_progress_bar()
RNG = np.random.default_rng(7)
SECONDS, TRS = 56.0, 20  # sound of a story; rows of a response file (11 to 49 s)


def config(kind=tf.Wav2Vec2Config, layers=2, width=16, **more):
    return kind(**SMALL | dict(hidden_size=width, num_hidden_layers=layers) | more)


@pytest.fixture(scope="module")
def backbone():
    return load_speech_backbone(config(), random_weights=True, seed=3)


def toy_story(name, audio=None):
    onset = 0.5 * np.arange(100)
    return Story(
        name,
        "en",
        Events(onset, onset + 0.4, ("word",) * 100),
        lebel_clock(TRS + 20),
        Events(onset, onset + 0.2, ("AH0",) * 100),
        audio,
    )


def sound(path, seconds=SECONDS, rate=16000, channels=1, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, RNG.uniform(-0.1, 0.1, (int(seconds * rate), channels)), rate, **more)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two participants, two stories, three voxels, in the layout of ds003020, as others write
    it (no file of ours says what the sound is)."""
    space, where = Space("voxels", "voxel", np.arange(3)), tmp_path / "ds003020"
    stories = {n: toy_story(n, sound(tmp_path / "raw" / f"{n}.wav")) for n in ("souls", "legacy")}
    recordings = {}
    for p in ("P1", "P2"):
        y = {n: RNG.standard_normal((TRS, 3)).astype(np.float32) for n in stories}
        recordings[p] = {n: Recording(p, s, y[n], space) for n, s in stories.items()}
    write_lebel2023(where, Dataset("toy", stories, recordings))
    (where / "braintune.json").unlink()
    return where


def load(folder, **choice):
    return load_lebel2023(folder, cache=folder.parent / "cache", **choice)


def refusal(kind, call, *, says, file=None):
    "The error of `call`: of the right kind, with file or place, found, expected or a next step."
    with pytest.raises(BraintuneError) as caught:
        call()
    error = caught.value
    assert isinstance(error, kind), f"{type(error).__name__}: {error}"
    for part in says:
        assert part in str(error), f"{part!r} is not in: {error}"
    assert error.file or error.place, f"no file and no place: {error}"
    assert error.found is not None, f"nothing found: {error}"
    assert error.expected is not None or error.next_step, f"neither expected nor next step: {error}"
    if file is not None:
        assert str(file) in str(error.file), f"{error.file} is not {file}"
    return error


def test_the_fixture_is_sound(folder, backbone):
    "Without a fault everything passes, so that a refusal below is about the fault."
    dataset = load(folder)
    assert dataset.notes == () and check_lebel2023(folder) == []
    story = dataset.stories["souls"]
    assert speech_features(story, backbone, [1], window=2.0, stride=1.0, cache=None).shape == (
        1,
        TRS,
        16,
    )
    assert len(speech_inputs(whole_story(story), backbone, window=2.0)) == TRS


# ---- sound of another form ----


@pytest.mark.parametrize("rate, channels", [(44100, 2), (44100, 1), (16000, 2), (8000, 1)])
def test_sound_of_another_form_is_converted_and_said(folder, backbone, rate, channels):
    path = sound(folder / "stimuli" / "souls.wav", rate=rate, channels=channels)
    before = path.read_bytes()
    dataset = load(folder)
    [note] = dataset.notes
    assert (
        "souls.wav" in note and f"{rate} Hz, {channels} channel" in note and "16000 Hz mono" in note
    )
    story = dataset.stories["souls"]
    samples, found = read_audio(story.audio)
    assert (
        (found, samples.ndim) == (16000, 1)
        and abs(len(samples) / found - SECONDS) < 0.01
        and path.read_bytes() == before
    )
    assert speech_features(story, backbone, [1], window=2.0, stride=1.0, cache=None).shape == (
        1,
        TRS,
        16,
    )
    assert load(folder).stories["souls"].audio == story.audio  # converted once


def test_a_tone_survives_the_conversion(folder):
    "440 Hz on the left and nothing on the right: half the height at 440 Hz, nowhere else."
    t = np.arange(int(SECONDS * 44100)) / 44100
    soundfile.write(
        folder / "stimuli" / "souls.wav",
        np.stack([0.5 * np.sin(2 * np.pi * 440 * t), 0 * t], 1),
        44100,
    )
    samples, rate = read_audio(load(folder).stories["souls"].audio)
    spectrum = np.abs(np.fft.rfft(samples[rate : 9 * rate])) / (4 * rate)
    assert (
        np.argmax(spectrum) / 8 == pytest.approx(440, abs=0.2)
        and spectrum.max() == pytest.approx(0.25, rel=0.02)
        and np.sort(spectrum)[-8] < 0.01
    )


def test_the_tuner_s_inputs_convert_and_warn_where_no_loader_did(folder, backbone):
    story = toy_story("souls", sound(folder / "stimuli" / "souls.wav", rate=44100, channels=2))
    with pytest.warns(UserWarning, match="44100 Hz, 2 channel.*16000 Hz"):
        inputs = speech_inputs(whole_story(story), backbone, window=2.0)
    assert len(inputs) == TRS
    refusal(
        ParameterError,
        lambda: speech_features(story, backbone, [1], cache=None),
        says=["44100 Hz", "16000 Hz", "read_audio"],
    )


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "cannot be read"),
        (b"RIFF but not a sound file", "cannot be read"),
        (b"/annex/objects/MD5E-s1234--0123456789abcdef.wav\n", "git-annex pointer"),
    ],
)
def test_something_else_under_the_name_of_a_sound(folder, content, says):
    (folder / "stimuli" / "souls.wav").write_bytes(content)
    refusal(
        (DataError, MissingData),
        lambda: load(folder),
        says=[says] if says != "cannot be read" else [],
        file="souls.wav",
    )


def test_sound_with_nan(folder, backbone):
    path = folder / "stimuli" / "souls.wav"
    samples = RNG.uniform(-0.1, 0.1, int(SECONDS * 16000)).astype(np.float32)
    samples[16000 * 20] = np.nan
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    story = load(folder).stories["souls"]
    calls = (
        lambda: speech_features(story, backbone, [1], cache=None),
        lambda: speech_inputs(whole_story(story), backbone, window=2.0),
    )
    for call in calls:
        error = refusal(DataError, call, says=["NaN", "souls"])
        assert "1 of" in str(error.found) and "20.000 s" in str(error.found) and error.next_step
        if call is calls[0]:
            assert error.file == story.audio


# ---- sound and words that do not fit ----


@pytest.mark.parametrize("mode", ["features", "windows", "chunks"])
def test_sound_shorter_than_its_textgrid(folder, backbone, mode):
    sound(folder / "stimuli" / "souls.wav", seconds=40)
    dataset = load(folder)
    assert any("souls" in n and "40.00 s" in n and "49.90 s" in n for n in dataset.notes)
    assert any("souls" in f and "40.00 s" in f for f in check_lebel2023(folder))
    story = dataset.stories["souls"]
    call = (
        (lambda: speech_features(story, backbone, [1], cache=None))
        if mode == "features"
        else (lambda: speech_inputs(whole_story(story), backbone, mode=mode, window=2.0))
    )
    error = refusal(
        ClockError, call, says=["sound ends before the last word", "'souls'", "40.00 s", "49.90 s"]
    )
    assert error.next_step and (mode != "features" or error.file == story.audio)


def test_half_a_second_of_sound_may_be_missing(folder, backbone):
    "Recordings are cut close to the last word; that is no fault."
    sound(folder / "stimuli" / "souls.wav", seconds=49.6)
    assert (
        speech_features(
            load(folder).stories["souls"], backbone, [1], window=2.0, stride=1.0, cache=None
        ).shape[1]
        == TRS
    )


def test_a_clock_that_runs_long_past_the_sound(folder, backbone):
    n = 120
    story = toy_story("souls", folder / "stimuli" / "souls.wav")
    long = Story(story.name, "en", story.words, lebel_clock(n + 20), story.phones, story.audio)
    refusal(
        ClockError,
        lambda: speech_features(long, backbone, [1], cache=None),
        says=[
            "clock runs long past the sound",
            "56.00 s",
            f"{lebel_clock(n + 20).times[-1] + 1:.2f} s",
        ],
    )


def test_no_sound_at_all(folder, backbone):
    (folder / "stimuli" / "souls.wav").unlink()
    story = load(folder).stories["souls"]  # words are there: a text model can use them
    for call in (
        lambda: speech_features(story, backbone, [1], cache=None),
        lambda: speech_inputs(whole_story(story), backbone),
    ):
        with pytest.raises(MissingData, match="has no audio") as caught:
            call()
        assert caught.value.place == "souls" and caught.value.next_step


# ---- responses ----


def test_a_story_missing_for_one_participant(folder):
    (folder / "derivative/preprocessed_data/P2/legacy.hf5").unlink()
    dataset = load(folder)
    assert sorted(dataset.recordings["P1"]) == ["legacy", "souls"] and sorted(
        dataset.recordings["P2"]
    ) == ["souls"]
    assert dataset.notes == ("P2 has no responses to 1 of 2 stories: legacy",) and any(
        "P2 lacks 1 of 2 stories: legacy" in f for f in check_lebel2023(folder)
    )
    refusal(
        MissingData,
        lambda: load(folder, stories=["souls", "legacy"]),
        says=["P2, legacy"],
        file="P2/legacy.hf5",
    )
    with pytest.raises(ParameterError, match="did not hear stories") as caught:
        check_participants(
            dataset, Split(("souls",), (), ("legacy",), ("legacy",), ("P1",), ("P2",))
        )
    assert (
        caught.value.place == "P2"
        and "legacy" in str(caught.value.found)
        and caught.value.next_step
    )


def overwrite(folder, participant, name, data):
    with h5py.File(folder / f"derivative/preprocessed_data/{participant}/{name}.hf5", "w") as f:
        f["data"] = data


def test_nan_voxels_are_kept_and_said_and_never_fitted_in_silence(folder):
    from braintune_nb.encode.ridge import RidgeCV

    data = RNG.standard_normal((TRS, 3)).astype(np.float32)
    data[4, 1] = np.nan
    overwrite(folder, "P1", "souls", data)
    dataset = load(folder)
    assert dataset.notes == ("P1, souls: 1 columns hold NaN; they are kept as they are",)
    y = dataset.recordings["P1"]["souls"].responses
    assert np.isnan(y[4, 1]) and np.isnan(y).sum() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = RidgeCV().fit(
            RNG.standard_normal((TRS, 2)).astype(np.float32),
            np.asarray(y),
            groups=np.repeat([0, 1], TRS // 2),
        )
    assert np.flatnonzero(np.isnan(fitted.best_alphas_)).tolist() == [1]


def test_nan_voxels_stop_the_tuning_loop(folder, backbone):
    import torch

    from braintune_nb.loss import get_loss
    from braintune_nb.model.tuner import BrainTuner
    from braintune_nb.train.loop import TuneSettings, tune

    story = load(folder).stories["souls"]
    inputs, targets = (
        speech_inputs(whole_story(story), backbone, window=1.0),
        torch.from_numpy(RNG.standard_normal((TRS, 3)).astype(np.float32)),
    )
    targets[4, 1] = torch.nan
    tuner = BrainTuner(backbone, {"P1": 3})
    refusal(
        DataError,
        lambda: tune(
            tuner,
            [(inputs, {"P1": targets})],
            None,
            get_loss("mse"),
            TuneSettings(epochs=1),
            progress=False,
        ),
        says=["NaN", "souls, P1"],
    )


def test_a_voxel_count_that_is_not_the_registered_one(folder, tmp_path):
    "In a folder whose respdict.json is the published one, UTS05 must have 99,322 voxels."
    stories = published_shapes()["UTS01"]
    rows, story = stories["legacy"][1], "legacy"
    (folder / "derivative/respdict.json").write_text(
        json.dumps({n: T + 20 for n, (_, T, _) in stories.items()})
    )
    for who in ("P1", "P2"):
        [f.unlink() for f in (folder / "derivative/preprocessed_data" / who).iterdir()]
        (folder / "derivative/preprocessed_data" / who).rmdir()
    for space in (folder / "braintune").glob("*"):
        space.unlink()
    (folder / "derivative/preprocessed_data/UTS05").mkdir()
    overwrite(folder, "UTS05", story, np.zeros((rows, 7), np.float32))
    error = refusal(
        DataError,
        lambda: load(folder),
        says=["UTS05", "7 columns", "99322 columns"],
        file="UTS05/legacy.hf5",
    )
    assert "braintune/UTS05_space.npz" in error.next_step and any(
        "7 columns" in f for f in check_lebel2023(folder)
    )


def test_a_voxel_count_that_changes_between_stories(folder):
    overwrite(folder, "P2", "souls", np.zeros((TRS, 4), np.float32))
    refusal(DataError, lambda: load(folder), says=["P2", "4", "3"])


def test_rows_that_do_not_fit_respdict(folder):
    overwrite(folder, "P1", "legacy", np.zeros((TRS - 1, 3), np.float32))
    refusal(
        ClockError,
        lambda: load(folder),
        says=["legacy", f"{TRS - 1} rows", f"{TRS} rows"],
        file="P1/legacy.hf5",
    )


def test_a_response_file_that_was_cut_off(folder):
    path = folder / "derivative/preprocessed_data/P1/souls.hf5"
    path.write_bytes(path.read_bytes()[:700])
    refusal(DataError, lambda: load(folder), says=["HDF5"], file="P1/souls.hf5")


# ---- checkpoints ----


def saved(folder, model, about):
    "Weights of one model beside the configuration of another."
    model.save_pretrained(folder)
    about.save_pretrained(folder)
    tf.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def whisper():
    return tf.WhisperModel(tf.WhisperConfig(**whisper_settings()))


MISSING = dict(
    wav2vec2_as_wavlm=(lambda: tf.Wav2Vec2Model(config()), lambda: config(tf.WavLMConfig)),
    two_layers_as_three=(lambda: tf.Wav2Vec2Model(config()), lambda: config(layers=3)),
    whisper_as_wav2vec2=(whisper, config),
)
FOREIGN = dict(
    wavlm_as_wav2vec2=(lambda: tf.WavLMModel(config(tf.WavLMConfig)), config),
    three_layers_as_two=(lambda: tf.Wav2Vec2Model(config(layers=3)), config),
    layer_norm_as_group_norm=(lambda: tf.Wav2Vec2Model(config(feat_extract_norm="layer")), config),
)


@pytest.mark.parametrize("name", MISSING)
def test_checkpoint_that_lacks_weights(tmp_path, name):
    model, about = (make() for make in MISSING[name])
    error = refusal(
        ModelError,
        lambda: load_speech_backbone(saved(tmp_path / name, model, about)),
        says=["lacks weights", "missing"],
        file=name,
    )
    assert "random_weights=True" in error.next_step


@pytest.mark.parametrize("name", FOREIGN)
def test_checkpoint_of_another_architecture(tmp_path, name):
    model, about = (make() for make in FOREIGN[name])
    error = refusal(
        ModelError,
        lambda: load_speech_backbone(saved(tmp_path / name, model, about)),
        says=["no place", "such as", "Wav2Vec2Model"],
        file=name,
    )
    assert "same source" in error.next_step


def test_checkpoint_of_another_width(tmp_path):
    refusal(
        ModelError,
        lambda: load_speech_backbone(
            saved(tmp_path / "wide", tf.Wav2Vec2Model(config()), config(width=32))
        ),
        says=["another size", "more such weights", "by config.json"],
        file="wide",
    )


def test_speech_model_where_a_text_model_is_wanted():
    refusal(
        ModelError,
        lambda: load_backbone("tiny_speech"),
        says=["This is a speech model", "load_speech_backbone"],
        file="tiny_speech",
    )


def test_text_model_where_a_speech_model_is_wanted(tmp_path):
    tf.BertModel(
        tf.BertConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    ).save_pretrained(tmp_path / "bert")
    refusal(
        ModelError,
        lambda: load_speech_backbone(tmp_path / "bert"),
        says=["not a speech model", "bert"],
        file="bert",
    )


@pytest.mark.parametrize(
    "head",
    [
        lambda: tf.Wav2Vec2ForCTC(config(vocab_size=8)),
        lambda: tf.Wav2Vec2ForPreTraining(
            config(codevector_dim=16, proj_codevector_dim=16, num_codevectors_per_group=4)
        ),
    ],
    ids=["ctc", "pretraining"],
)
def test_a_head_on_top_is_no_fault(tmp_path, head):
    """Published checkpoints carry heads of pretraining or recognition; they are left aside,
    with a note."""
    model = head()
    loaded = load_speech_backbone(saved(tmp_path / "whole", model, model.config))
    assert any("without a place" in n for n in loaded.notes)


# ---- real sound ----


def test_real_clips_pass(real_data, backbone):
    """Clips in several formats, rates and languages (LibriSpeech, AISHELL, LJSpeech, AMI,
    Common Voice; public)."""
    from braintune_nb.tasks.speech import Spoken

    clips = [
        f
        for f in sorted((real_data / "speech_clips").rglob("*"))
        if f.suffix in (".wav", ".flac", ".mp3")
    ]
    if not clips:
        pytest.skip("no speech_clips in BRAINTUNE_DATA (wenet, lhotse and praatIO repositories)")
    sounds = [read_audio(f, 16000)[0][: 16000 * 3] for f in clips]
    spoken = Spoken(
        tuple(sounds),
        np.arange(len(clips)),
        np.zeros(len(clips)),
        np.array([len(s) / 16000 for s in sounds]),
    )
    states = spoken.states(backbone, [2])
    assert (
        len(clips) >= 10
        and states.shape == (1, len(clips), 16)
        and np.isfinite(states).all()
        and len(np.unique(states.round(4), axis=1)) == 1
    )
