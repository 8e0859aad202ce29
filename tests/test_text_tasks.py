"""Text tasks and the small reader: planted answers are found, faults are named, test texts stay
apart."""

import csv

import numpy as np
import pandas as pd
import pytest
import torch

from braintune_nb.core import DataError, MissingData, ParameterError, write_json
from braintune_nb.experiment.encoding_controls import noisy_backbone
from braintune_nb.experiment.text_families import (
    change_rows,
    family_tasks,
    pretrain_reader,
    reader_corpus,
    text_arms,
)
from braintune_nb.model.backbone import load_backbone
from braintune_nb.simulate.language import make_lexicon
from braintune_nb.tasks.probe import (
    Measure,
    check_task,
    compare_arms,
    item_scores,
    probe,
    task_table,
)
from braintune_nb.tasks.text import (
    concept_contexts,
    early_documents,
    forgetting_measure,
    form_states,
    logistic_probe,
    ntrex_documents,
    paraphrase_measure,
    pos_task,
    read_conllu,
    readable,
    real_texts,
    retrieval_measure,
    similarity_measure,
    simulated_passages,
    tatoeba_pairs,
    text_items,
    translation_measure,
    written_category_task,
)


@pytest.fixture(scope="module")
def lexicon():
    return make_lexicon(0)


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny")


def balanced(right, task):
    table = item_scores(right, task)
    return float((table.score * table.weight).sum())


# ---- planted answers


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_model_that_knows_categories_places_unseen_concepts(lexicon, language):
    """Random weights whose embeddings hold the category: every new noun is placed; without it,
    chance."""
    task = written_category_task(lexicon, language, concept_contexts(lexicon, language, 3))
    check_task(task)
    for planted in (True, False):
        model = load_backbone("tiny", random_weights=True, seed=4)
        weight, pieces = model.model.get_input_embeddings().weight.data, model.tokenizer.get_vocab()
        if planted:
            for c, word in enumerate(lexicon.words[language]):
                weight[pieces[word], lexicon.category[c]] += 20 * weight.std()
        right = probe(task.spans.states(model, [0])[0], task)
        unseen, seen = balanced(right["_unseen"], task), balanced(right["_seen"], task)
        if planted:
            assert unseen > 0.95 and seen > 0.95
        else:
            assert unseen < 0.2 and seen < 0.15


def test_spelling_tells_what_it_can(lexicon):
    """Nouns that share a character in one fold: spelling alone stays near chance; without that,
    Chinese vehicles give themselves away."""
    task = written_category_task(lexicon, "zh", concept_contexts(lexicon, "zh", 3))
    right = probe(form_states(task.spans), task)
    assert balanced(right["_seen"], task) < 0.15 and balanced(right["_known"], task) > 0.95
    words = dict(zip(task.spans.words, form_states(task.spans)))
    assert (words["汽车"] * words["火车"]).sum() > (
        words["狗"] * words["猫"]
    ).sum() + 1  # a blank at either end is shared by all


def test_a_model_that_translates_finds_words_and_sentences(lexicon):
    twins = load_backbone("tiny", random_weights=True, seed=5)
    weight, pieces = twins.model.get_input_embeddings().weight.data, twins.tokenizer.get_vocab()
    for en, zh in zip(lexicon.words["en"], lexicon.words["zh"]):
        weight[pieces[zh]] = weight[pieces[en]]
    contexts = {l: concept_contexts(lexicon, l, 2) for l in ("en", "zh")}
    words = translation_measure(lexicon, contexts).score(twins, [0])
    assert (
        words.score.eq(1).all()
        and set(words.task) == {"word_translation_seen", "word_translation_unseen"}
        and set(words.language) == {"en>zh", "zh>en"}
    )
    assert words.groupby(["task", "language"]).size().to_dict() == {
        ("word_translation_seen", l): 168 for l in ("en>zh", "zh>en")
    } | {("word_translation_unseen", l): 56 for l in ("en>zh", "zh>en")}
    assert paraphrase_measure(lexicon, 8).score(twins, [0]).score.mean() > 0.6


def test_the_masked_loss_is_that_of_the_model_class(tiny, lexicon):
    "Against transformers' own class on the same hidden words."
    from transformers import AutoModelForMaskedLM

    from braintune_nb.data.stories import Events
    from braintune_nb.features.text import text_inputs
    from braintune_nb.train.objectives import OwnText

    passages = simulated_passages(lexicon, ("en",), 3, 60)
    rows = forgetting_measure(tiny, passages).score(tiny, None)
    whole = AutoModelForMaskedLM.from_pretrained(tiny.folder).eval()
    inputs = text_inputs(
        Events(np.arange(60), np.arange(60) + 0.5, tuple(passages["en"][1])), tiny, 20
    )
    objective = OwnText(tiny)
    torch.manual_seed(0)
    np.random.seed(0)
    given, target = objective._asked(inputs.token_ids[::20], inputs.attention_mask[::20])
    with torch.no_grad():
        loss = whole(
            input_ids=given, attention_mask=inputs.attention_mask[::20], labels=target
        ).loss
    assert (
        rows.score[1] == pytest.approx(float(loss), abs=1e-4)
        and len(rows) == 3
        and rows.weight.sum() == pytest.approx(1)
    )


def write_pairs(folder):
    "50 pairs of random sentences with a similarity, in the layout of the real ones."
    folder = folder / "stsb-multi-mt" / "data"
    folder.mkdir(parents=True)
    rng, words = np.random.default_rng(1), "dog cat horse cow sun moon".split()
    said = lambda: " ".join(rng.choice(words, 3))
    rows = [(said(), said(), rng.integers(0, 6)) for _ in range(50)]
    with open(folder / "stsb-en-test.csv", "w", encoding="utf8", newline="") as f:
        csv.writer(f).writerows(rows)
    return rows


def cosines(a, b):
    "Of each row of one with the row of the other."
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_similarity_is_spearman(tiny, tmp_path):
    "The mean over items is the rank correlation itself."
    from scipy.stats import spearmanr

    from braintune_nb.features.text import span_states

    rows = write_pairs(tmp_path)
    table = similarity_measure(tmp_path, "en", 50).score(tiny, [1])
    order = np.sort(np.random.default_rng([0, 933]).permutation(50))
    chosen = [rows[i] for i in order]
    a, b = (span_states(tiny, texts, layers=[1])[0] for texts in list(zip(*chosen))[:2])
    mean = np.r_[a, b].mean(0)
    cosine = cosines(a - mean, b - mean)
    r = spearmanr(cosine, [row[2] for row in chosen]).statistic
    assert (table.score * table.weight).sum() == pytest.approx(r, abs=1e-6)


# ---- what is apart, and what cannot be read


def sentence(words, labels):
    start = np.cumsum([0, *(len(w) + 1 for w in words[:-1])])
    return dict(
        text=" ".join(words),
        words=[(w, l, int(a), int(a) + len(w)) for w, l, a in zip(words, labels, start)],
        joined=0,
    )


@pytest.fixture
def bank():
    "60 sentences of five random words, and the generator that drew them."
    rng = np.random.default_rng(2)
    words, tags = "dog cat saw heard big red".split(), ["NOUN", "VERB"]
    return [sentence(list(rng.choice(words, 5)), list(rng.choice(tags, 5))) for _ in range(60)], rng


def test_a_sentence_is_never_in_training_and_test(bank):
    sentences, rng = bank
    # the second: a file that is its own test
    for task in (
        pos_task("en", sentences, n_train=30, n_test=20),
        pos_task("en", sentences, sentences, 30, 30),
    ):
        check_task(task)
        texts = np.array(task.spans.texts)
        for train, tests in task.folds:
            assert not set(texts[task.items[train]]) & set(texts[task.items[tests[""]]])
    features = np.eye(2)[task.labels] + 0.01 * rng.standard_normal((len(task.labels), 2))
    assert balanced(logistic_probe(features, task)[""], task) == pytest.approx(1)


def test_long_sentences_are_left_out(bank):
    long = sentence(["word"] * 60, ["NOUN"] * 60)
    task = pos_task("en", [*bank[0], long], n_train=40, n_test=20)
    assert max(map(len, task.spans.texts)) < 200


@pytest.mark.parametrize(
    "line, message",
    [
        ("1\tdog\t_\tNOUN\t_\t_\t_\t_\t_\t_\t_\n", "ten columns"),
        ("1\tcat\t_\tNOUN\t_\t_\t_\t_\t_\t_\n\n", "do not make the sentence"),
        ("1\tdog\t_\tNOUN\t_\t_\t_\t_\t_\t_", "ends inside"),
    ],
)
def test_faulty_treebanks_are_named(tmp_path, line, message):
    (tmp_path / "x.conllu").write_text("# text = dog\n" + line, encoding="utf8")
    with pytest.raises(DataError, match=message):
        read_conllu(tmp_path / "x.conllu")


def test_what_cannot_be_read_is_left_out_and_named(tiny, lexicon):
    tasks = [
        paraphrase_measure(lexicon, 4),
        retrieval_measure(
            "tatoeba",
            dict(en=["We should go to sleep", "Nobody knows"], zh=["我该去睡觉了", "没人知道"]),
        ),
        Measure("similarity", dict(fr=["déjà vu"]), None),
    ]
    kept, table = readable(tiny, tasks)
    assert [t.name for t in kept] == ["paraphrase"]
    rows = table.set_index(["task", "language"])
    assert (
        rows.unknown["tatoeba", "en"] == 0 and not rows["read"]["tatoeba", "en"]
    )  # spelled, not read
    assert (
        rows.unknown["tatoeba", "zh"] > 0.3
        and rows.unknown["similarity", "fr"] > 0.3
        and rows["read"]["paraphrase", "zh"]
    )


def test_arms_of_runs_and_their_faults(tiny, tmp_path):
    run = tmp_path / "run"
    for part in ("model/backbone", "backbones/permuted"):
        tiny.model.save_pretrained(run / part)
        tiny.tokenizer.save_pretrained(run / part)
    with pytest.raises(MissingData, match="no finished run"):
        text_arms(runs=[run])
    write_json(run / "run.json", dict(parameters=dict(backbone="tiny")))
    arms = text_arms(dict(random=["random:tiny", "random:tiny"]), [run, run])
    assert {a: len(m) for a, m in arms.items()} == dict(random=2, pretrained=1, tuned=2, permuted=2)
    with pytest.raises(ParameterError, match="by name"):
        text_arms("tiny")


def test_seeds_are_averaged_item_by_item_and_arms_compared(tiny, lexicon):
    measure, blank = (
        paraphrase_measure(lexicon, 4),
        [load_backbone("tiny", random_weights=True, seed=s) for s in (0, 1)],
    )
    items = text_items(dict(pretrained=tiny, random=blank), [measure], progress=False)
    alone = [
        task_table(text_items(dict(x=b), [measure], progress=False)).score.to_numpy() for b in blank
    ]
    np.testing.assert_allclose(
        task_table(items).query("arm == 'random'").score, np.mean(alone, 0), atol=1e-12
    )
    assert compare_arms(items).arm.unique().tolist() == ["random"] and set(items.layer) == {"band"}


def test_a_random_move_changes_layers_like_random_moves(tiny, lexicon):
    "An arm that is itself weight noise of the length of another."
    far = load_backbone("tiny", random_weights=True, seed=9)
    rows = change_rows(
        dict(pretrained=[tiny], tuned=[noisy_backbone(tiny, far, 77)], random=[far]), lexicon, n=60
    )
    tuned = rows[(rows.arm == "tuned") & (rows.language != "en-zh")]
    assert (
        set(tuned.measure) == {"cka", "rsa"}
        and set(rows.arm) == {"pretrained", "tuned"}
        and set(rows.text) == {"simulated"}
    )
    assert (tuned.value - tuned.moved).abs().max() < 0.15
    assert len(rows[rows.language == "en-zh"]) == 6


# ---- the reader and its texts


WORDS = dict(
    en="dog cat sun moon tree".split(),
    zh=list("狗猫日月木"),
    de="Hund Katze Sonne Mond Baum".split(),
    fr="chien chat soleil lune arbre".split(),
)


def joined(said, language):
    return ("" if language == "zh" else " ").join(said)


def write_tatoeba(folder, say):
    "Pairs with English; the last two English sentences are the same."
    for l, code in dict(zh="cmn", de="deu", fr="fra").items():
        for c, k in (("eng", "en"), (code, l)):
            lines = [say(k) for _ in range(19)] + ["twice" if k == "en" else say(k)] * 2
            path = folder / f"tatoeba_laser/tatoeba.{code}-eng.{c}"
            path.write_text("\n".join(lines) + "\n", encoding="utf8")


def write_ntrex_and_stsb(folder, say, rng):
    "Documents of five sentences, and pairs with a similarity, in four languages."
    for l, name in dict(en="src.eng", zh="ref.zho-CN", de="ref.deu", fr="ref.fra").items():
        lines = [f"{l}{i} {say(l)}" for i in range(30)]
        path = folder / f"ntrex/NTREX-128/newstest2019-{name}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf8")
        for part in ("train", "test"):
            path = folder / f"stsb-multi-mt/data/stsb-{l}-{part}.csv"
            with open(path, "w", encoding="utf8", newline="") as f:
                csv.writer(f).writerows([(say(l), say(l), rng.integers(6)) for _ in range(30)])
    names = [f"doc{i // 5}" for i in range(30)]
    (folder / "ntrex/DOCUMENT_IDS.tsv").write_text("\n".join(names) + "\n", encoding="utf8")


def treebank_sentence(said, language):
    "As treebanks write it: text, then a line a word with its part of speech."
    lines = [f"# text = {joined(said, language)}"]
    for i, w in enumerate(said):
        tag = "NOUN" if w in WORDS[language][:3] else "VERB"
        space = "SpaceAfter=No" if language == "zh" or i == 5 else "_"
        lines.append("\t".join([f"{i + 1}", w, "_", tag, *["_"] * 5, space]))
    return "\n".join(lines) + "\n\n"


def write_treebank(path, language, n, rng):
    rows = [treebank_sentence(rng.choice(WORDS[language], 6), language) for _ in range(n)]
    path.write_text("".join(rows), encoding="utf8")


@pytest.fixture
def texts(tmp_path):
    "A folder in the layout of the real texts, with a few made-up sentences."
    rng = np.random.default_rng(3)
    say = lambda l: joined(rng.choice(WORDS[l], 6), l)
    corpora = ("tatoeba_laser", "ntrex/NTREX-128", "stsb-multi-mt/data")
    for folder in (*corpora, "ud_ewt", "ud_gsdsimp", "ud_pud"):
        (tmp_path / folder).mkdir(parents=True)
    write_tatoeba(tmp_path, say)
    write_ntrex_and_stsb(tmp_path, say, rng)
    for part in ("dev", "test"):
        write_treebank(tmp_path / f"ud_ewt/en_ewt-ud-{part}.conllu", "en", 40, rng)
        write_treebank(tmp_path / f"ud_gsdsimp/zh_gsdsimp-ud-{part}.conllu", "zh", 40, rng)
    for l in WORDS:
        write_treebank(tmp_path / f"ud_pud/{l}_pud-ud-test.conllu", l, 310, rng)
    return tmp_path


def test_the_reader_never_reads_a_test_document(texts):
    corpus, (said, documents) = reader_corpus(texts), ntrex_documents(texts, ("en", "zh"))
    assert early_documents(documents) == [f"doc{i}" for i in range(4)]
    assert [s for s in said["en"][20:] if s in corpus["en"]] == [] and set(said["zh"][:20]) <= set(
        corpus["zh"]
    )
    pairs = tatoeba_pairs(texts, "zh")
    assert len(pairs["en"]) == len(pairs["zh"]) == 20 and pairs["en"].count("twice") == 1
    (texts / "ntrex/NTREX-128/newstest2019-ref.deu.txt").write_text("one\n", encoding="utf8")
    with pytest.raises(DataError, match="not in step"):
        reader_corpus(texts)
    with pytest.raises(MissingData, match="not here"):
        tatoeba_pairs(texts / "no", "zh")


def small_reader(texts, name):
    "A tiny reader of the texts, pretrained for three steps."
    small = dict(steps=3, width=16, layers=1, size=300, batch=4, progress=False)
    return load_backbone(pretrain_reader(reader_corpus(texts), folder=texts / name, **small))


def test_the_same_texts_make_the_same_reader(texts):
    first, second = (small_reader(texts, name) for name in ("a", "b"))
    pairs = zip(first.model.parameters(), second.model.parameters())
    assert all(torch.equal(p, q) for p, q in pairs)


REAL = dict(pos=4, tatoeba=3, ntrex=3, similarity=4, loss_masked_real=4)  # tasks of each kind


def test_all_tasks_are_made(texts, lexicon):
    reader = small_reader(texts, "a")
    tasks = family_tasks(reader, lexicon, texts, n_sentences=20, n_pairs=20)
    names = pd.Series([t.name for t in tasks]).value_counts()
    assert names[["category", *REAL]].to_dict() == dict(category=2) | REAL
    kept, _ = readable(reader, [t for t in tasks if t.name in REAL])
    table = task_table(text_items(dict(pretrained=reader), kept, progress=False))
    assert set(table.unit) >= {"sentences", "documents", "pairs", "passages"}
    assert table.score.notna().all() and (table[table.task == "pos"].chance == 0.5).all()
    assert table[table.task == "ntrex"].n.eq(2).all()


def test_folders_without_real_texts_are_left_out(texts, capsys):
    assert real_texts(str(texts)) == texts and real_texts(str(texts / "ud_pud")) is None
    assert "left out" in capsys.readouterr().out
