"""Bad input in two languages: each fault is refused by one error that names file, place, what was
found, what was expected, and the next step; and downloads of data sets that publish no hashes."""

import hashlib
import json
import shutil
import warnings

import h5py
import numpy as np
import pytest
import torch
from test_fetch import Server

from braintune_nb.clock import read_scanner_log, regular_clock
from braintune_nb.core import (
    BraintuneError,
    ClockError,
    DataError,
    MissingData,
    ModelError,
    ParameterError,
    SplitError,
)
from braintune_nb.data.bilingual import (
    MODALITIES,
    NEGI_ORDER,
    NEGI_STORIES,
    NEGI_TRIGGERS,
    bilingual_urls,
    check_bilingual,
    fetch_bilingual,
    fitting_runs,
    load_bilingual,
    negi_split,
    require_same_text,
    write_bilingual,
)
from braintune_nb.data.fetch import HASHES, changed_files, fetch_recorded, recorded_hashes
from braintune_nb.data.recordings import Dataset, Recording, Space
from braintune_nb.data.splits import Split
from braintune_nb.data.stories import Events, Story, read_word_table
from braintune_nb.data.text_checks import check_narratives_text, check_text, require_text
from braintune_nb.features.text import text_features, text_inputs
from braintune_nb.model.backbone import load_backbone
from braintune_nb.model.tuner import BrainTuner

ENGLISH = dict(
    souls=(
        "so a lot of people are raised with a religion and i am one of those people that grew up"
        " near the old river in a quiet town".split()
    ),
    smoke=(
        "where there is smoke there must be something burning said my father and he put out the"
        " fire before it reached our small house".split()
    ),
)
CHINESE = dict(
    souls="所以 很 多 人 从 小 就 有 信仰 我 也 是 其中 一 个 在 河边 的 小 镇 长大 那里 很 安静".split(),
    smoke=(
        "哪里 有 烟 哪里 就 一定 有 东西 在 烧 我 爸爸 说 他 在 火 烧 到 我们 家 之前 把 它 灭 了".split()
    ),
)
TEXTS = dict(en=ENGLISH, zh=CHINESE)


def events(words, step=0.4):
    return Events(step * np.arange(len(words)), step * np.arange(len(words)) + 0.3, tuple(words))


def told(base, language, n, repeats=3):
    return Story(
        f"{base}_{language}",
        language,
        events(TEXTS[language][base] * repeats),
        regular_clock(n, 2.0045, 11.02),
        Events([0.0], [0.2], ("a",)),
        identity=base,
    )


def made(columns=(4, 4), space=None, lengths=(("souls", 20), ("smoke", 23))):
    "Two stories in two languages, two participants; the second story has repeats."
    rng, stories = np.random.default_rng(8), {}
    for language in ("en", "zh"):
        for k, (base, n) in enumerate(lengths):
            s = told(base, language, n + (language == "zh"))
            stories[s.name] = s

    def recording(p, V, s):
        r = rng.standard_normal((2, len(s.clock), V)).astype(np.float32)
        return Recording(
            p,
            s,
            r.mean(0),
            Space(space or f"{p} voxels", "voxel", np.arange(V)),
            r if s.identity == "smoke" else None,
        )

    recordings = {}
    for k, V in enumerate(columns):
        who = f"subject0{k + 1}"
        recordings[who] = {n: recording(who, V, s) for n, s in stories.items()}
    return Dataset("toy", stories, recordings)


@pytest.fixture
def folder(tmp_path):
    return write_bilingual(tmp_path / "bilingual", made(), "reading")


def load(folder, **more):
    return load_bilingual(folder, modality="reading", **more)


def refused(call, error, **contains):
    """The error of `call`: its type is exact, it has a next step, and each named part contains
    the text."""
    with pytest.raises(BraintuneError) as caught:
        call()
    assert type(caught.value) is error and caught.value.next_step, caught.value
    for part, text in contains.items():
        assert text in str(getattr(caught.value, part)), (part, str(caught.value))
    return caught.value


def change(path, key, how):
    with h5py.File(path, "r+") as f:
        data = how(f[key][()])
        del f[key]
        f[key] = data


def printed(log, words, start=None):
    "A log that prints the words as it shows them."
    found = read_scanner_log(log)
    log.write_text(
        log.read_text()
        + "".join(
            f"{found.sound_start + t:.6f} word {w.upper()} -0.005\n"
            for t, w in zip(words.onset, words.text)
        )
    )
    lines = sorted(log.read_text().splitlines(), key=lambda line: float(line.split()[0]))
    log.write_text("\n".join(lines) + "\n")


# ---- two stories with one name


def test_one_key_in_trn_and_val(folder):
    path = folder / "en/subject01_reading_fmri_data_trn.hdf"
    with h5py.File(path, "r+") as f:
        f["smoke"] = np.zeros((43, 4), np.float32)
    error = refused(
        lambda: load(folder), DataError, what="name of one story", expected="one run a story"
    )
    assert {"subject01_reading_fmri_data_trn.hdf", "subject01_reading_fmri_data_val.hdf"} <= set(
        str(error).replace("/", " ").replace("\n", " ").split()
    ) and "smoke" in error.found
    assert any("name of one story" in f for f in check_bilingual(folder))


def test_two_runs_with_one_story_in_the_mapping(folder):
    (folder / "runs.json").write_text('{"souls": "tale", "smoke": "tale"}')
    refused(
        lambda: load(folder),
        DataError,
        file="runs.json",
        place="tale",
        found="souls, smoke",
        expected="one run a story",
    )
    refused(
        lambda: load(folder, names={"souls": "smoke"}),
        DataError,
        what="name of one story",
        place="smoke",
        found="souls",
    )


@pytest.mark.parametrize("text", ['["souls"]', '{"story_01": 3}'])
def test_a_mapping_that_is_none(folder, text):
    (folder / "en/runs.json").write_text(text)
    refused(lambda: load(folder), DataError, file="en/runs.json", expected="story_01")


def test_numbered_runs_are_not_guessed(folder):
    for path in folder.glob("*/*_trn.hdf"):
        with h5py.File(path, "r+") as f:
            f.move("souls", "story_01")
    error = refused(
        lambda: load(folder),
        DataError,
        what="nobody has said which story",
        place="story_01",
        next_step="story_01 fits souls",
    )
    assert (
        "runs.json" in error.expected
        and fitting_runs(folder, "en")["smoke"] == ["smoke"]
        and any("nobody has said" in f for f in check_bilingual(folder))
    )
    (folder / "runs.json").write_text('{"story_01": "souls"}')
    assert load(folder).stories["souls_zh"].identity == "souls" and check_bilingual(folder) == []
    (folder / "zh/runs.json").write_text(
        '{"story_01": "smoke2"}'
    )  # a wrong name is found by its missing log
    refused(lambda: load(folder), MissingData, file="smoke2.report")


def test_an_exchanged_name_is_found_by_its_length(folder):
    for path in folder.glob("en/*.hdf"):
        with h5py.File(path, "r+") as f:
            for key in list(f):
                f.move(key, dict(souls="story_01", smoke="story_02")[key])
    (folder / "en/runs.json").write_text('{"story_01": "smoke", "story_02": "souls"}')
    refused(
        lambda: load(folder, languages=("en",)),
        ClockError,
        what="do not fit the scanner log",
        place="story_0",
        expected="one a trigger",
    )


def test_lengths_alone_name_the_eleven_english_runs(tmp_path):
    with h5py.File(tmp_path / "x.hdf", "w") as f:
        for i, name in enumerate(NEGI_ORDER[:-1], 1):
            f[f"story_{i:02d}"] = np.zeros((NEGI_TRIGGERS[name], 1), np.float32)
    (tmp_path / "en").mkdir()
    (tmp_path / "x.hdf").rename(tmp_path / "en/subject01_listening_fmri_data_trn.hdf")
    assert [v for v in fitting_runs(tmp_path, "en", "listening").values()] == [
        [n] for n in NEGI_ORDER[:-1]
    ]
    error = refused(
        lambda: load_bilingual(tmp_path), DataError, next_step="story_03 fits howtodraw"
    )
    assert error.place == "story_01"


# ---- columns


def test_runs_of_one_participant_with_other_columns(folder):
    path = folder / "zh/subject02_reading_fmri_data_trn.hdf"
    change(path, "souls", lambda x: np.concatenate([x, x[:, :1]], 1))
    error = refused(
        lambda: load(folder),
        DataError,
        what="Runs of subject02 have different columns",
        file=str(path),
        place="souls",
        found="5 columns",
        expected="4 columns as in subject02_reading_fmri_data_",
    )
    assert "one head" in error.next_step
    change(
        folder / "zh/subject02_reading_fmri_data_val.hdf",
        "smoke",
        lambda x: np.concatenate([x, x], 2),
    )
    assert any("different columns" in f for f in check_bilingual(folder))


def test_columns_that_the_space_does_not_know(folder):
    with np.load(folder / "braintune/subject01_space.npz", allow_pickle=False) as f:
        parts = {k: f[k] for k in f.files}
    np.savez(folder / "braintune/subject01_space.npz", **{**parts, "columns": np.arange(9)})
    refused(
        lambda: load(folder),
        DataError,
        what="Columns of subject01",
        found="4 columns",
        expected="9 columns, by braintune/subject01_space.npz",
    )


def test_two_participants_with_other_columns_have_no_shared_head(tmp_path, tiny):
    data = load(write_bilingual(tmp_path, made(columns=(4, 6)), "reading"))
    outputs = {p: len(next(iter(its.values())).space) for p, its in data.recordings.items()}
    assert outputs == dict(subject01=4, subject02=6)
    refused(
        lambda: BrainTuner(tiny, outputs, heads="shared"),
        ParameterError,
        what="same columns",
        found="{'subject01': 4, 'subject02': 6}",
        expected="one V for all",
    )
    assert BrainTuner(tiny, outputs, heads="participant") is not None


# ---- logs, responses, texts of different stories


def test_log_and_responses_of_different_stories(folder):
    shutil.copy(folder / "en/reports/smoke.report", folder / "en/reports/souls.report")
    error = refused(
        lambda: load(folder),
        ClockError,
        what="do not fit the scanner log",
        file="en/subject01_reading_fmri_data_trn.hdf",
        place="souls",
        found="40 rows",
        expected="43 rows, one a trigger",
    )
    assert "of this story and language" in error.next_step and any(
        "40 rows" in f for f in check_bilingual(folder)
    )


OTHER_STORY = {"souls": "smoke", "smoke": "souls"}


def swap(reports):
    "The logs of two stories under each other's names."
    (reports / "souls.report").rename(reports / "x")
    (reports / "smoke.report").rename(reports / "souls.report")
    (reports / "x").rename(reports / "smoke.report")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_log_of_another_story_of_the_same_length(tmp_path, language):
    "Rows and triggers agree, so only the printed words can tell."
    folder = write_bilingual(tmp_path, made(lengths=(("souls", 20), ("smoke", 20))), "reading")
    data = load(folder)
    for base in ("souls", "smoke"):
        printed(
            folder / language / f"reports/{base}.report", data.stories[f"{base}_{language}"].words
        )
    assert len(load(folder).stories) == 4
    swap(folder / language / "reports")
    error = refused(
        lambda: load(folder),
        ClockError,
        what="shows another text",
        file=f"{language}/reports/",
        place=f"_{language}",
        next_step="of another story",
    )
    base = error.place.split("_")[0]
    wanted, found = TEXTS[language][base], TEXTS[language][OTHER_STORY[base]]
    assert " ".join(wanted[:6]) in error.expected and " ".join(found[:3]) in error.found


def test_log_of_the_other_language(folder):
    data = load(folder)
    printed(folder / "en/reports/souls.report", data.stories["souls_zh"].words)
    refused(
        lambda: load(folder), ClockError, what="shows another text", place="souls_en", found="所以"
    )


def test_a_scan_that_ends_before_its_story(tmp_path):
    data = made()
    long = Story(
        "souls_en",
        "en",
        events(ENGLISH["souls"] * 12),
        data.stories["souls_en"].clock,
        identity="souls",
    )
    folder = write_bilingual(
        tmp_path,
        Dataset(
            "x",
            {**data.stories, "souls_en": long},
            {
                "subject01": {
                    "souls_en": Recording(
                        "subject01",
                        long,
                        np.zeros((20, 4), np.float32),
                        Space("s", "voxel", np.arange(4)),
                    )
                }
            },
        ),
        "reading",
    )
    refused(
        lambda: load(folder),
        ClockError,
        what="ends before its story",
        file="souls.report",
        place="souls_en",
        expected="last word, at",
    )


def test_real_logs_fit_their_own_story_only(real_data):
    from braintune_nb.data.stories import read_textgrid, words_from_tier

    moth = real_data / "moth"
    if not moth.is_dir():
        pytest.skip("needs moth (github.com/denizenslab/brain-informed-fine-tuning)")
    words = {
        n: words_from_tier(read_textgrid(moth / f"TextGrids/{n}.TextGrid").tier("word"))
        for n in ("souls", "howtodraw", "wheretheressmoke")
    }
    logs = {n: read_scanner_log(moth / f"reports/{n}.report") for n in words}
    assert all(require_same_text(logs[n], words[n], n) > 0.94 for n in words)
    assert (
        len(logs["souls"].triggers) - len(logs["howtodraw"].triggers) == 1
    )  # one TR apart: lengths hardly tell
    refused(
        lambda: require_same_text(logs["souls"], words["howtodraw"], "howtodraw"),
        ClockError,
        what="shows another text",
    )


# ---- numbers that are none


def test_nan_in_kept_rows_is_told_and_in_dropped_rows_is_not(folder):
    assert load(folder).notes == () and check_bilingual(folder) == []
    path = folder / "zh/subject02_reading_fmri_data_trn.hdf"

    def spoil(x):
        x[15, 1:3] = np.nan
        return x

    change(path, "souls", spoil)
    assert load(folder).notes == (
        "subject02, souls_zh: 2 columns hold NaN; they are kept as they are",
    )
    assert check_bilingual(folder) == [f"{path}, souls: 2 columns hold NaN in rows that are kept"]


def test_rows_trimmed_twice_and_a_table_of_the_wrong_shape(folder):
    path = folder / "en/subject01_reading_fmri_data_val.hdf"
    change(path, "smoke", lambda x: x[:, 10:-10])
    refused(
        lambda: load(folder),
        ClockError,
        found="23 rows",
        expected="43 rows",
        next_step="trimmed before",
    )
    change(path, "smoke", lambda x: x[0])
    refused(
        lambda: load(folder),
        DataError,
        what="wrong shape",
        place="smoke",
        expected="(repeats, T, V)",
    )


# ---- one story on two sides of a split


def write_both_modalities(folder):
    "Stories that one participant has read and heard in two languages."
    rng, stories, recordings = np.random.default_rng(1), {}, {}
    for mode in MODALITIES:
        for s in made().stories.values():
            name = f"{s.identity}_{mode}_{s.language}"
            stories[name] = Story(name, s.language, s.words, s.clock, s.phones, identity=s.identity)
    for n, s in stories.items():
        y = rng.standard_normal((len(s.clock), 3)).astype(np.float32)
        recordings[n] = Recording("subject01", s, y, Space("s", "voxel", np.arange(3)))
    write_bilingual(folder, Dataset("x", stories, {"subject01": recordings}), MODALITIES)
    return stories


@pytest.mark.parametrize(
    "a, b",
    [
        ("souls_reading_en", "souls_listening_en"),
        ("souls_reading_en", "souls_reading_zh"),
        ("souls_listening_en", "souls_reading_zh"),
    ],
)
@pytest.mark.parametrize(
    "roles",
    [("tuning", "test"), ("tuning", "encoding"), ("validation", "test"), ("encoding", "test")],
)
def test_the_same_story_in_another_language_or_modality(tmp_path, a, b, roles):
    stories = write_both_modalities(tmp_path)
    (tmp_path / "braintune.json").unlink()  # the releases have no such file
    data = load_bilingual(tmp_path, modality=MODALITIES)
    assert set(data.stories) == set(stories) and check_bilingual(tmp_path) == []
    refused(
        lambda: Split(**{roles[0]: [a], roles[1]: [b]}).check(data.stories),
        SplitError,
        what="same story stands in two roles",
        place=a,
        found="souls",
    )
    assert Split(**{roles[0]: [a], roles[1]: ["smoke_listening_zh"]}).check(data.stories)
    assert len(load_bilingual(tmp_path, modality="listening").stories) == 4


def test_the_split_of_the_paper_holds_across_languages():
    stories = [
        Story(f"{b}_{l}", l, events(TEXTS[l]["souls"]), regular_clock(9, 2.0), identity=b)
        for b in NEGI_ORDER
        for l in ("en", "zh")
    ]
    for tune, score in [
        (("en",), None),
        (("en",), ("zh",)),
        (("zh",), ("en",)),
        (("en", "zh"), ("en", "zh")),
    ]:
        assert negi_split(tune, score).check(stories)
    assert (
        sorted(b for names in NEGI_STORIES.values() for b in names) == sorted(NEGI_ORDER)
        and len(NEGI_ORDER) == 11
    )
    assert [len(v) for v in NEGI_STORIES.values()] == [7, 3, 1]


# ---- text that a backbone cannot read


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny")


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    """A small random BERT whose vocabulary knows English letters and three Chinese characters,
    as that of the real one knows some hundreds."""
    import transformers as tf
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = [chr(c) for c in range(97, 123)]
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *letters,
        *(f"##{c}" for c in letters),
        *sorted(set(ENGLISH["souls"] + ENGLISH["smoke"]) - set(letters)),
        "我",
        "人",
        "小",
    ]
    raw = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("english")
    tf.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    tf.BertModel(
        tf.BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder)
    return load_backbone(folder)


def test_chinese_in_an_english_backbone_names_the_share(english):
    story = told("souls", "zh", 20)
    text = "".join(CHINESE["souls"] * 3)
    said = f"{np.mean([c not in '我人小' for c in text]):.1%} of the text falls to unknown tokens"
    error = refused(
        lambda: text_inputs(story.words, english, 20, "zh"),
        ModelError,
        what="does not know the words",
        place="english",
        next_step="of the story's language",
    )
    assert said in error.found and "'所以'" in error.found
    refused(lambda: text_features(story, english), ModelError, found=said)
    refused(
        lambda: require_text(story, english),
        ModelError,
        what="cannot encode",
        place="souls_zh",
        found=said,
    )


def test_a_text_that_is_partly_unknown_is_told(english):
    words = ENGLISH["souls"] + ["长大", "安静"]
    with pytest.warns(
        UserWarning,
        match=(
            r"does not know part of the text: 4\.\d% of the text falls to unknown tokens, 2 of 30"
            r" words unknown, such as '长大', '安静'"
        ),
    ):
        inputs = text_inputs(events(words), english)
    assert inputs.unknown == 2 / 30 and abs(inputs.unknown_text - 4 / len("".join(words))) < 1e-9
    (found,) = [f for f in check_text(words, "en", english) if "backbone" in f["title"]]
    assert (
        found["severity"] == "warning"
        and abs(found["share"] - inputs.unknown_text) < 1e-9
        and "长" in found["found"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text_inputs(events(ENGLISH["souls"]), english)
    assert check_text(ENGLISH["souls"], "en", english) == []


# ---- traditional and simplified


def test_a_mixture_of_traditional_and_simplified(tmp_path):
    data = made()
    words = list(data.stories["souls_zh"].words.text)
    words[20] = "長大"
    mixed = Story(
        "souls_zh",
        "zh",
        events(words),
        data.stories["souls_zh"].clock,
        source="souls.TextGrid",
        identity="souls",
    )
    error = refused(
        lambda: require_text(mixed),
        DataError,
        what="mixed",
        file="souls.TextGrid",
        place="souls_zh",
        found="'長大' (word 21 at 8.00 s)",
        expected="one form",
        next_step="one form",
    )
    assert "1 of " in error.found and "deciding characters traditional" in error.found
    its = {
        "souls_zh": Recording(
            "subject01", mixed, np.zeros((21, 2), np.float32), Space("s", "voxel", np.arange(2))
        )
    }
    folder = write_bilingual(
        tmp_path, Dataset("x", {"souls_zh": mixed}, {"subject01": its}), "reading"
    )
    (found,) = check_narratives_text(folder)
    assert (
        found["severity"] == "error"
        and found["file"].endswith("zh/TextGrids/souls.TextGrid")
        and "長大" in found["what"]
    )


def test_texts_of_two_stories_in_exchanged_languages(tmp_path):
    folder = write_bilingual(tmp_path, made(), "reading")
    assert check_narratives_text(folder) == []
    for name in ("souls", "smoke"):
        shutil.copy(
            folder / f"en/TextGrids/{name}.TextGrid", folder / f"zh/TextGrids/{name}.TextGrid"
        )
    found = check_narratives_text(folder)
    assert (
        {f["title"] for f in found} == {"The text is not in the script of its language"}
        and len(found) == 2
        and "Latin 100.0%" in found[0]["found"]
    )


# ---- a word missing from the table


def test_a_word_without_a_time_in_the_table(tmp_path):
    (tmp_path / "words.csv").write_text("onset,offset,text\n0.5,0.7,我们\n,,长大\n1.5,1.7,了\n")
    refused(
        lambda: read_word_table(tmp_path / "words.csv"),
        DataError,
        what="no time",
        file="words.csv",
        place="line 3",
        expected="onset and offset in seconds",
    )


def test_filled_triggers_are_told_by_loader_and_check(folder):
    log = sorted((folder / "en").rglob("*.report"))[0]
    lines = log.read_text().splitlines(keepends=True)
    at = [i for i, line in enumerate(lines) if line.split()[1:] == ["trigger"]]
    log.write_text("".join(line for i, line in enumerate(lines) if i not in at[3:5]))
    note = f"2 of {len(at) + 1} triggers were missing and are filled in"
    assert [n for n in load(folder).notes if n.endswith(note)], load(folder).notes
    assert [f for f in check_bilingual(folder) if f.endswith(note)]


def test_a_sound_that_starts_before_the_scan_is_told_by_loader_and_check(folder):
    logs = (folder / "en").rglob("*.report")
    log = max(logs, key=lambda path: path.stat().st_size)
    lines = [line.split(maxsplit=1) for line in log.read_text().splitlines()]
    first = min(float(at) for at, label in lines if label == "first trigger")
    kept = [f"{at} {label}\n" for at, label in lines if label != "sound-start"]
    log.write_text("".join([f"{first - 3:.3f} sound-start\n", *kept]))
    note = "the sound starts 3.0 s before the first trigger"
    assert [n for n in load(folder).notes if n.endswith(note)], load(folder).notes
    assert [f for f in check_bilingual(folder) if f.endswith(note)]


def test_a_word_without_text_in_the_table(tmp_path, tiny):
    rows = [
        f"{0.4 * i:.1f},{0.4 * i + 0.3:.1f},{'' if i == 4 else w}"
        for i, w in enumerate(CHINESE["souls"])
    ]
    (tmp_path / "words.csv").write_text("onset,offset,text\n" + "\n".join(rows) + "\n")
    story = Story(
        "souls_zh",
        "zh",
        read_word_table(tmp_path / "words.csv"),
        regular_clock(5, 2.0),
        source=str(tmp_path / "words.csv"),
    )
    refused(
        lambda: require_text(story),
        DataError,
        what="no text",
        file="words.csv",
        place="souls_zh",
        found="word 5 at 1.60 s",
    )
    refused(
        lambda: text_inputs(story.words, tiny, 20, "zh"),
        DataError,
        what="leaves no token",
        place="word 4 at 1.60 s",
    )


def test_a_word_without_a_vector_in_the_table(tmp_path):
    from braintune_nb.encode.voxel_selection import read_vectors, vector_features

    story = told("souls", "zh", 20)
    kinds = sorted(set(story.words.text))
    (tmp_path / "few.vec").write_text(
        f"{len(kinds) - 1} 2\n"
        + "".join(f"{w} {i}.5 {i * i}.25\n" for i, w in enumerate(kinds) if w != "长大"),
        encoding="utf8",
    )
    vectors = read_vectors(tmp_path / "few.vec", kinds)
    n = len(story.words)
    with pytest.warns(
        UserWarning,
        match=(
            rf"souls_zh: {story.words.text.count('长大')} of {n} words have no vector, such as 长大"
        ),
    ):
        assert np.isfinite(vector_features(story, vectors)).all()
    refused(
        lambda: vector_features(story, {w: v for w, v in vectors.items() if w in ("我", "很")}),
        DataError,
        what="no vector",
        place="souls_zh",
        found=f"of {n}",
        next_step="of the story's language",
    )
    (tmp_path / "few.vec").write_text("我 1 2\n很 3\n", encoding="utf8")
    with pytest.raises(
        DataError, match="(?s)another length.*few.vec.*line 2.*found: 1.*expected: 2"
    ):
        read_vectors(tmp_path / "few.vec", kinds)


# ---- data sets that publish no hashes


@pytest.fixture
def source(folder, monkeypatch):
    "A server with the narratives in our layout."
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(
        {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    )
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def get(source, tmp_path):
    return lambda **more: fetch_bilingual(
        ["subject01", "subject02"],
        ["souls", "smoke"],
        ("en", "zh"),
        **{"data_dir": tmp_path / "home", "base_url": source.address, "progress": False, **more},
    )


VAL = "zh/subject01_reading_fmri_data_val.hdf"


def test_hashes_are_recorded_on_first_use_and_nothing_is_asked_again(get, source):
    folder = get()
    record = json.loads((folder / HASHES).read_text())["files"]
    assert len(record) == len(source.asked) == 16
    assert (
        record[VAL]["md5"] == hashlib.md5(source.files[VAL]).hexdigest()
        and record[VAL]["bytes"] == len(source.files[VAL])
        and record[VAL]["from"] == f"{source.address}/{VAL}"
    )
    source.asked.clear()
    get()
    assert source.asked == [] and changed_files(folder) == {} and len(load(folder).stories) == 4


def test_an_interrupted_fetch_is_resumed_file_by_file(get, source, tmp_path):
    source.faults[VAL] = "breaks"
    refused(get, DataError, what="arrived short", file=VAL, next_step="repeat the command")
    folder, before = tmp_path / "home/bilingual", list(source.asked)
    assert (
        not (folder / VAL).exists()
        and VAL not in recorded_hashes(folder)
        and not list(folder.glob(".fetching-*"))
    )
    source.faults.clear()
    source.asked.clear()
    get()
    assert source.asked[0] == VAL and set(source.asked) == {VAL} | set(source.files) - set(
        before
    ) - {p for p in source.files if p.startswith("braintune")}


@pytest.mark.parametrize(
    "path, cut, words",
    [
        (VAL, 700, "cannot be read"),
        ("en/TextGrids/souls.TextGrid", 300, "cannot be read"),
        ("en/reports/souls.report", None, "cannot be read"),
    ],
)
def test_a_file_cut_short_whose_announced_length_agrees(get, source, tmp_path, path, cut, words):
    source.faults[path] = source.files[path][:-cut] if cut else source.files[path][:18]
    error = refused(
        get,
        DataError,
        what=words,
        file=path,
        expected="a whole file",
        next_step="nothing was recorded",
    )
    assert (
        error.found
        and not (tmp_path / "home/bilingual" / path).exists()
        and path not in recorded_hashes(tmp_path / "home/bilingual")
    )


@pytest.mark.parametrize(
    "fault, kind, words",
    [
        (b"/annex/objects/MD5E-s179200--00aa.hdf\n", DataError, "pointer"),
        (b"<!doctype html><title>Log in</title>", DataError, "web page"),
        (404, MissingData, "does not hand out"),
    ],
)
def test_what_is_no_file_is_not_recorded(get, source, tmp_path, fault, kind, words):
    source.faults[VAL] = fault
    refused(get, kind, what=words, file=VAL, place=source.address)
    assert VAL not in recorded_hashes(tmp_path / "home/bilingual")


def test_a_file_that_changed_here(get, source):
    folder = get()
    source.asked.clear()
    (folder / VAL).write_bytes((folder / VAL).read_bytes()[:-1] + b"!")
    recorded = hashlib.md5(source.files[VAL]).hexdigest()
    error = refused(
        get,
        DataError,
        what="has changed since its hash was recorded",
        file=VAL,
        found=hashlib.md5((folder / VAL).read_bytes()).hexdigest(),
        expected=recorded,
        next_step="replace=True",
    )
    assert HASHES in error.expected and "remove its entry" in error.next_step and source.asked == []
    assert list(changed_files(folder)) == [VAL] and any(
        VAL in f and "has changed" in f for f in check_bilingual(folder)
    )
    get(replace=True)
    assert (
        source.asked == [VAL]
        and changed_files(folder) == {}
        and recorded_hashes(folder)[VAL].md5 == recorded
    )


def test_a_file_that_changed_on_the_server(get, source):
    folder = get()
    (folder / VAL).unlink()
    source.files[VAL] = source.files[VAL][:-1] + b"!"
    error = refused(
        get,
        DataError,
        what="another content",
        file=VAL,
        found=hashlib.md5(source.files[VAL]).hexdigest(),
        next_step="another version",
    )
    assert recorded_hashes(folder)[VAL].md5 in error.expected and not (folder / VAL).exists()


def test_files_found_in_the_folder_are_recorded_after_a_look(get, source, tmp_path):
    (tmp_path / "home/bilingual/zh").mkdir(parents=True)
    (tmp_path / "home/bilingual" / VAL).write_bytes(source.files[VAL])
    folder = get()
    assert (
        VAL not in source.asked
        and json.loads((folder / HASHES).read_text())["files"][VAL]["from"] == "found in the folder"
    )
    shutil.rmtree(folder)
    (folder / "zh").mkdir(parents=True)
    (folder / VAL).write_bytes(source.files[VAL][:200])
    refused(get, DataError, what="cannot be read", file=VAL)
    (folder / VAL).write_text("../../.git/annex/objects/aa/MD5E-s1--0.hdf\n")
    refused(get, DataError, what="not data", found="pointer", next_step="git annex get")


def test_a_damaged_record_and_an_unknown_address(get, source, tmp_path):
    folder = get()
    for text in (
        '{"files": {"../x": {"bytes": 1, "md5": "0"}}}',
        '{"files": {"a": 3}}',
        '{"format": 1}',
    ):
        (folder / HASHES).write_text(text)
        with pytest.raises(DataError):
            get()
        assert check_bilingual(folder)
    source.asked.clear()
    refused(
        lambda: get(base_url=None, data_dir=tmp_path / "other"),
        ParameterError,
        what="No address is known",
        expected="zh responses, en textgrids, zh textgrids, en logs, zh logs",
        next_step="template",
    )
    refused(
        lambda: get(base_url=None, data_dir=tmp_path / "other", what=("responses",)),
        ParameterError,
        file=VAL.replace("val", "trn"),
        expected="zh responses",
    )
    with pytest.raises(ParameterError, match="responses, textgrids, logs, audio"):
        bilingual_urls(["subject01"], what=["films"])
    assert source.asked == [] and not (tmp_path / "other").exists()


def test_templates_of_addresses(source):
    urls = bilingual_urls(
        ["subject03"],
        ["souls"],
        ("en", "zh"),
        "reading",
        urls={
            "zh responses": source.address + "/r/{participant}-{role}.hdf",
            "textgrids": source.address + "/{language}_{story}.TextGrid",
            "en logs": source.address + "/{story}.report",
        },
    )
    assert urls["zh/subject03_reading_fmri_data_val.hdf"].endswith("/r/subject03-val.hdf") and urls[
        "zh/TextGrids/souls.TextGrid"
    ].endswith("/zh_souls.TextGrid")
    assert (
        urls["en/subject03_reading_fmri_data_trn.hdf"].startswith(
            "https://gin.g-node.org/denizenslab/"
        )
        and urls["zh/reports/souls.report"] is None
        and len(urls) == 8
    )


def test_a_path_that_leads_out_is_refused(tmp_path):
    with pytest.raises(DataError, match="leads out of its folder"):
        fetch_recorded({"../x": "http://127.0.0.1:9/x"}, tmp_path / "a", progress=False)
    assert not (tmp_path / "x").exists()


def test_the_command_fetches_and_checks(get, source, tmp_path, capsys, monkeypatch):
    from braintune_nb.cli import main

    words = [
        "fetch",
        "bilingual",
        "--data-dir",
        str(tmp_path / "cli"),
        "--base-url",
        source.address,
        "--language",
        "en",
        "--language",
        "zh",
        "--story",
        "souls",
        "--story",
        "smoke",
    ]
    for p in ("subject01", "subject02"):
        words += ["--participant", p]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert not stop.value.code and "16 to fetch" in capsys.readouterr().out
    folder = tmp_path / "cli/bilingual"
    with pytest.raises(SystemExit) as stop:
        main(["check", "bilingual", str(folder)])
    assert not stop.value.code and "0 errors" in capsys.readouterr().out
    text = (folder / "zh/TextGrids/souls.TextGrid").read_text()
    (folder / "zh/TextGrids/souls.TextGrid").write_text(text.replace("长大", "長大", 1))
    with pytest.raises(SystemExit) as stop:
        main(["check", "bilingual", str(folder)])
    out = capsys.readouterr().out
    assert (
        stop.value.code == 1
        and "2 errors" in out
        and "has changed since its hash" in out.replace("\n", " ")
        and "mixed" in out
    )
