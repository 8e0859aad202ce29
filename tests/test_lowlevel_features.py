"""Low-level features against independent computations: scipy's spectra, loops over TRs, 3-D Gabor
filters, real tiers and simulated stories."""

import re
import tracemalloc
import warnings
from collections import Counter

import numpy as np
import pytest
import scipy.signal
import soundfile

from braintune_nb.align.resample import lanczos
from braintune_nb.clock import read_scanner_log, regular_clock
from braintune_nb.core import DataError, MissingData, ParameterError
from braintune_nb.data.stories import Story, shown_words
from braintune_nb.data.transcripts import Events, bad_words, read_textgrid, words_from_tier
from braintune_nb.features import lowlevel as L
from braintune_nb.features import orthography as S
from braintune_nb.features import phones as P
from braintune_nb.simulate.language import make_lexicon, translate, write_story
from braintune_nb.simulate.speech import speak


def story(phones=None, language="en", n_tr=10, tr=2.0, words=None, first=None, **more):
    words = words or Events([0.0], [n_tr * tr], ("w",))
    return Story(
        "s",
        language,
        words,
        regular_clock(n_tr, tr, first=tr / 2 if first is None else first),
        phones,
        **more,
    )


def loop_lanczos(times, values, clock):
    "The filter of chapter 20 written as two loops over TRs and events."
    out = np.zeros((len(clock.times), values.shape[1]))
    for t, now in enumerate(clock.times):
        for k, when in enumerate(times):
            out[t] += lanczos(np.array([(now - when) / clock.tr]))[0] * values[k]
    return out


# ---- power spectrum


def slaney(hertz):
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)


def slaney_inverse(mel):
    return mel * 200 / 3 if mel < 15 else 1000 * np.exp((mel - 15) * np.log(6.4) / 27)


def mel_edges():
    "Where 40 mel bands from 60 to 7,000 Hz begin, peak and end."
    return [slaney_inverse(m) for m in np.linspace(slaney(60), slaney(7000), 42)]


def mel_filters(hertz):
    "Weight of each frequency in each of the bands."
    edges = mel_edges()
    triangles = (edges[b : b + 3] for b in range(40))
    return np.array([np.interp(hertz, e, [0, 1, 0], left=0, right=0) for e in triangles])


def spectrum_of_scipy(rate, sound):
    "Power in dB of 40 mel bands by frame, and the middle of each frame in s."
    win, hop = round(0.025 * rate), round(0.01 * rate)
    n_fft = 2 ** int(np.ceil(np.log2(2 * win)))
    padded = np.r_[np.zeros((win - hop) // 2), sound, np.zeros(win)]
    hertz, _, power = scipy.signal.spectrogram(
        padded,
        rate,
        scipy.signal.windows.hann(win, sym=False),
        win,
        win - hop,
        n_fft,
        detrend=False,
        scaling="density",
        mode="psd",
    )
    n = -(-len(sound) // hop)
    level = 10 * np.log10(mel_filters(hertz) @ power[:, :n] * (hertz[1] - hertz[0]) + 1e-8) + 80
    return level, (np.arange(n) * hop - (win - hop) // 2 + win / 2) / rate


def summed_by_tr(level, middle, hop, rate):
    "Levels summed over the frames of each of five TRs of 1.5 s, per second."
    want = np.array(
        [
            level[:, (middle >= k * 1.5) & (middle < (k + 1) * 1.5)].sum(1) * hop / rate / 1.5
            for k in range(5)
        ]
    )
    return want


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100])
def test_power_spectrum_equals_scipy(rate):
    rng = np.random.default_rng(rate)
    sound = (rng.standard_normal(rate * 7) * np.repeat(rng.random(70), rate // 10) * 0.1)[
        : rate * 7 - 123
    ]
    heard = story(n_tr=5, tr=1.5)
    got = L.power_spectrum(
        heard, sound, rate, bands=40, fmin=60, fmax=7000, method="sum", block=137
    )
    hop, edges = round(0.01 * rate), mel_edges()
    level, middle = spectrum_of_scipy(rate, sound)
    want = summed_by_tr(level, middle, hop, rate)
    assert np.abs(got.values - want).max() < 2e-3 and want.min() > 5
    assert got.names[0] == f"{edges[1]:.0f} Hz" and got.names[-1] == f"{edges[-2]:.0f} Hz"


@pytest.mark.parametrize("frequency", [80, 440, 1000, 2500, 6000])
def test_the_band_of_a_pure_tone_is_the_largest_and_amplitude_is_in_decibels(frequency):
    tone = np.sin(2 * np.pi * frequency * np.arange(16_000 * 8) / 16_000) * np.repeat(
        [0.8, 0.08], 16_000 * 4
    )
    found = L.power_spectrum(story(n_tr=4), tone, 16_000, method="sum")
    centre = np.array([float(name.split()[0]) for name in found.names])
    assert (found.values.argmax(1) == np.abs(centre - frequency).argmin()).all()
    assert abs(found.values[0].max() - found.values[3].max() - 20) < 0.05


def test_lanczos_of_a_steady_sound_is_its_mean_and_silence_around_it_is_zero():
    noise = np.random.default_rng(0).standard_normal(16_000 * 60) * 0.05
    heard = story(n_tr=50, words=Events([0.0], [60.0], ("w",)), first=-19.0)
    filtered, mean = (
        L.power_spectrum(heard, noise, 16_000, method=method).values
        for method in ("lanczos", "sum")
    )
    assert (
        np.abs(filtered[15:34] - mean[15:34]).max() < 0.5
        and (mean[[0, 5, 45]] == 0).all()
        and np.abs(filtered[[0, 5, 45]]).max() < 1e-6
    )
    assert mean[20].min() > 20


def test_memory_of_the_spectrum_does_not_grow_with_the_story(tmp_path):
    peaks = []
    for minutes in (1, 6):
        sound = (np.random.default_rng(0).standard_normal(8000 * 60 * minutes) * 1000).astype(
            np.int16
        )
        soundfile.write(tmp_path / "a.wav", sound, 8000)
        del sound
        heard = story(n_tr=30 * minutes, audio=tmp_path / "a.wav")
        L.power_spectrum(heard, fmax=4000)
        tracemalloc.start()
        L.power_spectrum(heard, fmax=4000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0], peaks


@pytest.mark.parametrize(
    "fault,kind,words",
    [
        (dict(audio=np.zeros((9, 2)), sampling_rate=16_000), DataError, "one channel"),
        (dict(audio=np.zeros(9)), ParameterError, "sampling rate"),
        (dict(audio="gone.wav"), MissingData, "no such file"),
        (dict(), MissingData, "has no audio"),
        (dict(audio=np.zeros(16_000), sampling_rate=8000), DataError, "pass fmax=4000"),
        (
            dict(audio=np.zeros(16_000), sampling_rate=16_000, method="average"),
            ParameterError,
            "lanczos or sum",
        ),
        (
            dict(audio=np.zeros(16_000), sampling_rate=16_000, preset="new"),
            ParameterError,
            "lanczos or sum",
        ),
    ],
)
def test_bad_sound_is_refused(fault, kind, words):
    with pytest.raises(kind, match=words):
        L.power_spectrum(story(), **fault)


def test_a_file_that_is_no_sound_is_refused(tmp_path):
    (tmp_path / "a.wav").write_text("no sound")
    with pytest.raises(DataError, match="cannot be read"):
        L.power_spectrum(story(), tmp_path / "a.wav")


# ---- phones


def random_tier(seed, n=300, labels=None):
    rng = np.random.default_rng(seed)
    labels = labels or [
        p + (str(rng.integers(3)) if p[0] in "AEIOU" else "") for p in P.ARPABET
    ] + ["sp", "br", "{NS}", ""]
    length = rng.uniform(0.03, 0.12, n)
    onset = np.r_[0, np.cumsum(length)[:-1]]
    return Events(onset, onset + length, tuple(rng.choice(labels, n)))


def by_hand(tier):
    "Phones as a list of runs between pauses, each a list of (onset, offset, phone)."
    runs = [[]]
    for a, b, label in zip(tier.onset, tier.offset, tier.text):
        bare = re.sub(r"\d", "", label).strip("{}").upper()
        if bare in P.ARTICULATION:
            runs[-1].append((a, b, bare))
        else:
            runs.append([])
    return runs


def ngrams_by_hand(run, n):
    "(start, end, label) of each n phones in a row."
    windows = (run[i : i + n] for i in range(len(run) - n + 1))
    label = lambda window: "-".join(p for _, _, p in window)
    return [(w[0][0], w[-1][1], label(w)) for w in windows]


COUNTS = {1: P.phone_counts, 2: P.diphone_counts, 3: P.triphone_counts}


def counted_story(n):
    "A random story, all n-grams of its phones found by hand, and the labels that occur."
    tier = random_tier(n)
    told = story(tier, n_tr=15)
    flat = [item for run in by_hand(tier) for item in ngrams_by_hand(run, n)]
    return told, flat, P.collect_vocabulary([told], n)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_counts_equal_counting_by_hand(n):
    told, flat, vocabulary = counted_story(n)
    assert vocabulary == tuple(sorted({label for _, _, label in flat}))
    counts = COUNTS[n](told, vocabulary, "sum")
    for t in range(15):
        here = Counter(label for a, b, label in flat if 2 * t <= (a + b) / 2 < 2 * t + 2)
        assert {name: value for name, value in zip(counts.names, counts.values[t]) if value} == here
    assert counts.values.sum() > 50  # a histogram is never zero everywhere (U-03)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_filtered_counts_equal_a_loop(n):
    told, flat, vocabulary = counted_story(n)
    labels = np.array([label for _, _, label in flat])
    onehot = (labels[:, None] == np.array(vocabulary)).astype(float)
    want = loop_lanczos([(a + b) / 2 for a, b, _ in flat], onehot, told.clock)
    assert np.abs(COUNTS[n](told, vocabulary).values - want).max() < 1e-4


def test_pauses_that_a_reader_dropped_still_part_pairs():
    tier = random_tier(5)
    with_labels = P.ngrams(P.story_phones(story(tier)), 2)
    dropped = tier.keep(
        [label.strip("{}").lower() not in bad_words["fixed"] for label in tier.text]
    )
    assert P.ngrams(P.story_phones(story(dropped)), 2).text == with_labels.text
    assert len(P.ngrams(P.story_phones(story(dropped)), 2, cross_silence=True)) == len(dropped) - 1


def test_totals_agree_across_sets():
    told = story(random_tier(6), n_tr=15)
    phones = P.phone_counts(told)
    assert np.allclose(phones.values.sum(1), P.phone_rate(told).values[:, 0], atol=1e-4)
    made = P.articulation(told)
    by_loop = np.zeros_like(made.values)
    for i, phone in enumerate(P.ARPABET):
        for gesture in P.ARTICULATION[phone]:
            by_loop[:, made.names.index(gesture)] += phones.values[:, i]
    assert np.allclose(made.values, by_loop, atol=1e-4)
    every = made.values[
        :, [made.names.index(g) for g in ("voiced", "unvoiced", "front", "central", "back")]
    ].sum(1)
    assert (every >= phones.values.sum(1) - 0.5).all()


def test_every_phone_has_place_manner_voice_or_height_and_backness():
    place, manner, voice = (
        set("bilabial labiodental dental alveolar postalveolar palatal velar glottal".split()),
        set("plosive affricate fricative nasal lateral approximant".split()),
        {"voiced", "unvoiced"},
    )
    height, back = {"high", "mid", "low"}, {"front", "central", "back"}
    for phone, made in P.ARTICULATION.items():
        made = set(made)
        if made & voice:
            assert (
                len(made & place) == 1 + (phone == "W")
                and len(made & manner) == 1
                and len(made & voice) == 1
                and not made & (height | back)
            ), phone
        else:
            assert made & height and made & back and made <= height | back, phone
    for a, b in ("PB", "TD", "KG", "FV", "SZ", ("TH", "DH"), ("SH", "ZH"), ("CH", "JH")):
        assert set(P.ARTICULATION[a]) ^ set(P.ARTICULATION[b]) == voice


def test_released_articulation_is_the_published_table(real_data):
    import json

    theirs = json.loads((real_data / "deep-fmri-dataset/em_data/articulationdict.json").read_text())
    assert {k: set(v) for k, v in P.RELEASED_ARTICULATION.items()} == {
        k: set(v) for k, v in theirs.items()
    }
    told = story(random_tier(7), n_tr=15)
    ours, published = (
        P.articulation(told, method="sum"),
        P.articulation(told, method="sum", preset="released"),
    )
    differ = {
        name
        for i, name in enumerate(ours.names)
        if not np.array_equal(ours.values[:, i], published.values[:, i])
    }
    assert differ == {"high", "mid", "bilabial"} and ours.names == published.names


BAD_TIERS = [
    (lambda e: None, "has no phones"),
    (lambda e: Events(e.onset, e.offset, ("ʃ",) * 4 + e.text[4:]), "'ʃ' 4 times"),
    (lambda e: Events(e.onset, e.offset, ("sp",) * len(e)), "nothing but pauses"),
    (lambda e: Events(e.onset[::-1], e.offset[::-1], e.text), "run backwards"),
    (lambda e: Events(e.onset, e.onset - 0.01, e.text), "ends before it starts"),
    (lambda e: Events(np.r_[np.nan, e.onset[1:]], e.offset, e.text), "not numbers"),
    (lambda e: Events(e.onset * 1000, e.offset * 1000, e.text), "different times"),
]


@pytest.mark.parametrize("change,words", BAD_TIERS)
def test_bad_tiers_are_refused_by_every_set(change, words):
    wrong = story(change(random_tier(8)), n_tr=15)
    for counts in (
        P.phone_counts,
        lambda s: P.diphone_counts(s, ("A-B",)),
        lambda s: P.triphone_counts(s, ("A-B-C",)),
        P.articulation,
        P.phone_rate,
        lambda s: P.collect_vocabulary([s]),
    ):
        with pytest.raises(DataError, match=words):
            counts(wrong)


def test_a_few_odd_labels_are_left_out_counted_and_treated_as_silence():
    tier = random_tier(9, 400, ["K", "AE1", "T"])
    odd = Events(tier.onset, tier.offset, tier.text[:100] + ("UN",) + tier.text[101:])
    phones = P.story_phones(story(odd, n_tr=15))
    assert (
        phones.left_out == {"UN": 1}
        and len(phones.events) == 399
        and list(np.flatnonzero(~phones.follows)) == [0, 100]
    )
    with pytest.raises(DataError, match="'UN' 1 times"):
        P.story_phones(story(odd, n_tr=15), unknown=0)


def test_short_pauses_with_a_label_part_pairs_and_stop_closures_do_not():
    tier = Events([0, 0.1, 0.105, 0.2], [0.1, 0.105, 0.2, 0.3], ("K", "sp", "AE1", "T"))
    assert list(P.story_phones(story(tier)).follows) == [False, False, True]
    closure = Events([0, 0.144, 0.5], [0.1, 0.3, 0.6], ("A", "t", "i"))  # 44 ms, then 200 ms
    assert list(P.story_phones(story(closure, "zh")).follows) == [False, True, False]
    assert list(P.story_phones(story(closure, "zh"), gap=0.02).follows) == [False, False, False]


def test_unseen_runs_of_the_test_story_are_counted():
    first, second = story(random_tier(10), n_tr=15), story(random_tier(11), n_tr=15)
    vocabulary = L.lowlevel_vocabulary([first], ("diphones", "triphones", "phones", "articulation"))
    assert set(vocabulary) == {"diphones", "triphones"}
    found = L.lowlevel_sets(second, ("diphones",), vocabulary=vocabulary, method="sum")["diphones"]
    runs = P.ngrams(P.story_phones(second), 2).text
    assert (
        found.left_out
        == {k: n for k, n in Counter(runs).items() if k not in vocabulary["diphones"]}
        and found.left_out
    )
    assert found.values.sum() + sum(found.left_out.values()) == len(runs)
    with pytest.warns(UserWarning, match=f"occur {sum(found.left_out.values())} times"):
        L.lowlevel_features(second, ("diphones",), vocabulary=vocabulary)


# ---- tones

MARKS, LETTERS = "āáǎàa", ("˥˥", "˧˥", "˨˩˦", "˥˩", "˨")


WAYS_TO_WRITE = {
    "numbers": lambda tone: f"ma{tone + 1}",
    "marks": lambda tone: f"m{MARKS[tone]}",
    "letters": lambda tone: f"a{LETTERS[tone]}",
}
written = pytest.mark.parametrize("write", WAYS_TO_WRITE.values(), ids=WAYS_TO_WRITE)


def tone_sequence(write):
    "200 random tones, one a tenth of a second, and the story of one syllable a word that has them."
    rng = np.random.default_rng(0)
    # one unmarked syllable alone is not known to be neutral
    sequence = rng.integers(4 if "ā" in write(0) else 5, size=200)
    onset = np.arange(200) * 0.1
    words = Events(onset, onset + 0.1, tuple(write(t) for t in sequence))
    return sequence, onset, story(words, "zh")


@written
def test_tones_of_a_random_story(write):
    sequence, _, told = tone_sequence(write)
    found = P.tones(told, method="sum")
    for t in range(10):
        here = sequence[20 * t : 20 * t + 20]
        assert list(found.values[t]) == [int((here == k).sum()) for k in range(5)]


@written
def test_words_of_two_syllables_have_the_tones_of_both(write):
    sequence, onset, told = tone_sequence(write)
    pairs = tuple(write(a) + write(b) for a, b in zip(sequence[::2], sequence[1::2]))
    twos = Events(onset[::2], onset[::2] + 0.2, pairs)
    assert np.array_equal(P.tones(told, twos, "sum").values, P.tones(told, method="sum").values)


@pytest.mark.parametrize("labels", [("ma", "ba"), ("马", "吧"), ("m", "n"), ("ma3",) + ("ba",) * 9])
def test_labels_without_tones_are_refused(labels):
    onset = np.arange(len(labels)) * 0.5
    with pytest.raises(DataError, match="do not show the tones"):
        P.tones(story(Events(onset, onset + 0.5, labels), "zh"))


# ---- simulated stories


@pytest.fixture(scope="module", params=["en", "zh"])
def spoken(request):
    lexicon, made = make_lexicon(0), []
    for seed in (1, 2):
        text = write_story(lexicon, f"s{seed}", "en", 150, seed, "mixed")
        text = text if request.param == "en" else translate(text, lexicon, request.param)
        said = speak(text.words, request.param, "plain", text.sentence)
        made.append(
            (
                said,
                Story(
                    f"s{seed}",
                    request.param,
                    said.words,
                    regular_clock(int(said.duration / 2) + 1, 2.0, first=1.0),
                    said.phones,
                ),
            )
        )
    return made


COUNTED = (
    "phones",
    "diphones",
    "triphones",
    "phone_rate",
    "letter_count",
    "word_length",
    "word_length_std",
    "word_rate",
)


def test_simulated_stories_have_all_sets_of_phones_and_words(spoken):
    (_, told), (_, other) = spoken
    sets = COUNTED + (("articulation", "letters") if told.language == "en" else ())
    vocabulary = L.lowlevel_vocabulary([told, other], sets)
    found = L.lowlevel_sets(told, sets, vocabulary=vocabulary, method="sum")
    phones = P.story_phones(told)
    assert phones.left_out == {} and all(not one.left_out for one in found.values())
    assert found["phones"].values.sum() == found["phone_rate"].values.sum() == len(phones.events)
    assert found["diphones"].values.sum() == phones.follows.sum() > 0.9 * len(phones.events)
    assert found["word_rate"].values.sum() == len(told.words)
    if told.language == "en":
        assert set(phones.events.text) <= set(P.ARPABET)
        assert found["articulation"].names == P.GESTURES


def test_spectrum_of_simulated_stories_follows_their_sound_power(spoken):
    (said, told), _ = spoken
    spectrum = L.power_spectrum(told, said.audio, said.rate, method="sum").values
    power = L.sound_power(told, said.audio, said.rate)[:, 0]
    assert spectrum.shape == (len(told.clock.times), 80)
    assert np.corrcoef(spectrum.mean(1), power)[0, 1] > 0.6


def test_espeak_is_not_read_as_arpabet():
    said = speak("the dog thought this boy shot the thing with a measure of joy".split())
    told = story(said.phones, n_tr=5)
    text = " ".join(P.story_phones(told).events.text)
    for heard in (
        "DH AH",
        "D AA G",
        "TH AO T",
        "DH IH S",
        "B OY",
        "SH AA T",
        "TH IH NG",
        "M EH ZH ER",
        "JH OY",
    ):
        assert heard in text, (heard, text)
    with pytest.raises(DataError, match="not in the inventory"):
        P.story_phones(told, script="arpabet")


def spoken_as(words, tier):
    "Word -> the phones of each time that it was said."
    said = {}
    for a, b, word in zip(words.onset, words.offset, words.text):
        here = slice(*np.searchsorted(tier.midpoint, [a, b]))
        said.setdefault(re.sub(r"[^a-z']", "", word), []).append(tier.text[here])
    return said


def espeak_words_and_phones(asked):
    "The words by espeak, ten a sentence, and the phones of the story made of them."
    heard = speak(asked, "en", sentence=np.arange(len(asked)) // 10)
    phones = P.story_phones(
        Story(
            "s",
            "en",
            heard.words,
            regular_clock(int(heard.duration / 2) + 1, 2.0, first=1.0),
            heard.phones,
        )
    ).events
    return heard, phones


def phones_of_words(heard, phones):
    "Phones of each word that was heard."
    owner = np.searchsorted(heard.words.onset, phones.midpoint, side="right") - 1
    each = [[] for _ in heard.words.text]
    for phone, i in zip(phones.text, owner):
        each[i].append(phone)
    return [tuple(found) for found in each]


def test_espeak_phones_agree_with_those_of_an_aligner(real_data):
    grid = read_textgrid(real_data / "moth/TextGrids/souls.TextGrid")
    tier = P.story_phones(story(grid.tier("phone"), n_tr=400)).events
    said = spoken_as(words_from_tier(grid.tier("word")), tier)
    asked = [word for word, found in said.items() if len(word) > 2 and len(found) > 2]
    heard, phones = espeak_words_and_phones(asked)
    spoken = phones_of_words(heard, phones)
    usual = [Counter(said[word]).most_common(1)[0][0] for word in asked]
    wrong, total = sum(map(S._edits, spoken, usual)), sum(map(len, usual))
    print(f"{len(asked)} words, {total} phones, {wrong / total:.1%} edits")
    assert len(asked) > 80 and wrong / total < 0.2


def test_espeak_does_not_say_the_tones():
    said = speak("妈 麻 马 骂 我们 去 银行".split(), "zh")
    with pytest.raises(DataError, match="do not show the tones"):
        P.tones(Story("zh", "zh", said.words, regular_clock(3, 2.0, first=1.0), said.phones))


# ---- shown words


def filter_axes(fps, size, x, y):
    "Frames, each pixel's distance from the centre, and the time of each frame."
    frames = int(fps * 2 / 3)
    right, down = np.meshgrid(
        np.linspace(0, size[1] / size[0], size[1]) - x, np.linspace(0, 1, size[0]) - y
    )
    time = np.arange(frames) - frames // 2 + 1.0
    return frames, right, down, time


def explicit_filter(size, fps, frequency, speed, direction, x, y, envelope):
    "A 3-D Gabor (frames, height, width) that drifts in `direction`, sine and cosine, written out."
    frames, right, down, time = filter_axes(fps, size, x, y)
    along = right * np.cos(np.deg2rad(direction)) - down * np.sin(np.deg2rad(direction))
    space = np.exp(-(right**2 + down**2) / (2 * envelope**2))
    tau = np.exp(-((time / frames) ** 2) / (2 * 0.3**2))
    wave = 2 * np.pi * (frequency * along[None] - speed * time[:, None, None] / fps)
    norm = (2 if frequency else 1) / space.sum() / tau.sum()
    envelope = norm * space * tau[:, None, None]
    return envelope * np.sin(wave), envelope * np.cos(wave)


FILTERS = [(0, 0, 0), (0, 4, 0), (2, 2, 90), (4, 0, 45), (4, 4, 225), (8, 2, 315)]


def assert_energy_is_that_of_the_windows(frames, film, sine, cosine, got, i):
    for t in range(frames, 30 - frames):
        window = film[t - frames // 2 + 1 : t + frames // 2 + 1]
        want = np.hypot((window * sine).sum(), (window * cosine).sum())
        assert abs(got[t, i] - want) < 1e-4, (t, got[t, i], want)


@pytest.mark.parametrize("which", FILTERS)
def test_motion_energy_equals_explicit_filters(which):
    rng, fps = np.random.default_rng(3), 12
    film = rng.random((30, 24, 36))
    bank = [b for b in S.gabor_bank(1.5) if b[:3] == which][:2]
    got = S.gabor_energy(film, bank, fps)
    frames = int(fps * 2 / 3)
    for i, b in enumerate(bank):
        sine, cosine = explicit_filter((24, 36), fps, *b)
        assert_energy_is_that_of_the_windows(frames, film, sine, cosine, got, i)


def drifting_grating(direction, frequency, speed):
    "40 frames of a grating that drifts at 15 frames a second."
    down, right = np.mgrid[0:1:40j, 0:1:40j]
    along = right * np.cos(np.deg2rad(direction)) - down * np.sin(np.deg2rad(direction))
    film = np.stack(
        [
            0.5 + 0.5 * np.sin(2 * np.pi * (frequency * along - speed * k / 15) + 1)
            for k in range(40)
        ]
    )
    return film


@pytest.mark.parametrize("direction", [0, 90, 135, 270])
@pytest.mark.parametrize("frequency,speed", [(2, 2), (4, 4), (4, 2), (8, 4)])
def test_drifting_gratings_find_their_filter(direction, frequency, speed):
    film = drifting_grating(direction, frequency, speed)
    bank = [b for b in S.gabor_bank(1.0) if b[3:5] == (0.5, 0.5) and b[0]]
    answer = S.gabor_energy(film, bank, 15)[15:25].mean(0)
    assert (
        bank[answer.argmax()][:3] == (frequency, speed, direction)
        and abs(answer.max() - 0.5) < 0.05
    )
    opposite = next(
        i for i, b in enumerate(bank) if b[:3] == (frequency, speed, (direction + 180) % 360)
    )
    assert answer[opposite] < 0.25 * answer.max()


def for_pymoten(bank):
    "Our filters as the other package writes them."
    theirs = [
        dict(
            centerh=x,
            centerv=y,
            direction=(direction + 180) % 360 if speed else direction,
            spatial_freq=f,
            spatial_env=e,
            temporal_freq=speed,
            temporal_env=0.3,
            filter_temporal_width=10,
            aspect_ratio=1.5,
            stimulus_fps=15,
            spatial_phase_offset=0.0,
        )
        for f, speed, direction, x, y, e in bank
    ]
    return theirs


def weight_of_filter(core, filter):
    "How much more a filter of the other package weighs than ours."
    parts = [np.asarray(a) for a in core.mk_3d_gabor((32, 48), **filter)]
    return np.hypot(parts[0], parts[1]).sum() * np.hypot(parts[2], parts[3]).sum() / 2


def test_motion_energy_equals_pymoten():
    core = pytest.importorskip("moten.core", reason="pymoten is not installed; it is no dependency")
    film = np.random.default_rng(4).random((30, 32, 48)).astype(np.float32)
    bank = [b for b in S.gabor_bank(1.5) if b[0] in (2, 4)]
    got = S.gabor_energy(film, bank, 15)
    theirs = for_pymoten(bank)
    sine, cosine = core.raw_project_stimulus(film, theirs)
    want = np.hypot(np.asarray(sine), np.asarray(cosine))
    for i, filter in enumerate(theirs):
        scale = weight_of_filter(core, filter)
        assert np.abs(got[:-1, i] * scale - want[1:, i]).max() < 2e-3 * want[:, i].max(), bank[i]


def test_the_pyramid_has_the_places_of_pymoten():
    core = pytest.importorskip("moten.core", reason="pymoten is not installed; it is no dependency")
    _, theirs = core.mk_moten_pyramid_params(
        15,
        filter_temporal_width=10,
        aspect_ratio=6.0,
        temporal_frequencies=[0, 2, 4],
        spatial_frequencies=[2, 4, 8],
    )

    def key(values):
        return tuple(np.round(values, 6))

    assert {key(b) for b in S.gabor_bank(6.0, (2, 4, 8))} == {
        key((f, t, d, x, y, e)) for x, y, d, f, e, t, *_ in theirs
    }


@pytest.fixture(scope="module")
def screen():
    "Seconds, onsets and text of 60 words in a row from second 3 on; mixture of their frames."
    rng = np.random.default_rng(5)
    length = rng.uniform(0.02, 0.4, 60)
    onset = 3 + np.r_[0, np.cumsum(length)[:-1]]
    text = tuple(rng.choice(["a", "of", "the", "cat"], 60))
    return length, onset, text, S.frame_mixture(Events(onset, onset + length, text), 15)


def test_frames_are_the_words_that_stood_on_the_screen(screen):
    length, onset, text, (words, mixing, middle) = screen
    fine = np.arange(0, onset[-1] + 2, 1e-4) + 0.5e-4
    inside = np.searchsorted(onset, fine, side="right") - 1
    for k in (0, 14, 15, 40, 77):
        here = inside[(fine >= middle[k] - 1 / 30) & (fine < middle[k] + 1 / 30)]
        shares = Counter(text[i] for i in here if i >= 0 and k >= 15)
        found = dict(zip(words, mixing[[k]].toarray()[0]))
        assert all(abs(found[word] - shares[word] / len(here)) < 0.01 for word in words)


def test_frames_hold_each_word_as_long_as_it_stood(screen):
    length, _, text, (words, mixing, _) = screen
    seconds = [length[np.array(text) == word].sum() for word in words]
    assert np.allclose(mixing.sum(0) / 15, seconds, atol=1e-4)


def test_long_words_move_more_than_short_ones():
    onset = np.r_[np.arange(0, 20, 0.4), np.arange(30, 50, 0.4)]
    told = story(words=Events(onset, onset + 0.2, ("a",) * 50 + ("extraordinary",) * 50), n_tr=26)
    energy = S.motion_energy(told, method="sum").values
    assert (
        energy.shape == (26, 63)
        and (energy[17:23].mean(0) > energy[2:8].mean(0)).all()
        and (energy[12:14] == 0).all()
    )
    spread = S.motion_energy(told, pool=False, method="sum")
    assert len(set(spread.names)) == spread.values.shape[1] == len(S.gabor_bank(6.0))


def test_glyphs_that_a_font_lacks_are_named():
    with pytest.raises(DataError, match=r"(?s)DejaVuSans.ttf.*'银' in 2 words.*'行' in 1 words"):
        S.render_words(("bank", "银行", "银"))
    with pytest.raises(DataError, match="'ж' in 1 words"):
        S.render_words(("жук",), font=S.default_font().replace("DejaVuSans.ttf", "cmr10.ttf"))
    assert S.render_words(("жук", "café")).sum((1, 2)).min() > 50
    with pytest.raises(DataError, match="has no ink"):
        S.word_similarity((" ",), ("a",))


def test_chinese_words_are_drawn_with_a_font_that_has_them(tmp_path):
    ttLib = pytest.importorskip("fontTools.ttLib")
    made = ttLib.TTFont(
        S.default_font()
    )  # a font in which three Latin letters stand for characters
    for table in made["cmap"].tables:
        if table.isUnicode():
            table.cmap.update(
                {
                    ord(c): table.cmap[ord(x)]
                    for c, x in zip("银行我", "MOI")
                    if ord(x) in table.cmap
                }
            )
    made.save(tmp_path / "made.ttf")
    font = str(tmp_path / "made.ttf")
    assert np.array_equal(S.render_words(("银行", "我"), font), S.render_words(("MO", "I")))
    told = story(
        language="zh", words=Events([0.0, 0.5, 1.0], [0.5, 1.0, 1.5], ("银行", "我", "银行"))
    )
    found = L.lowlevel_features(
        told,
        ("motion_energy", "orthographic_similarity"),
        settings=dict(motion_energy=dict(font=font), orthographic_similarity=dict(font=font)),
    )
    assert found["motion_energy"].max() > 0.3 and found["orthographic_similarity"].max() > 0.3
    with pytest.raises(DataError, match="'银' in 1 words"):
        S.motion_energy(told)


def similarity_to_the_words_before(text):
    "Mean correlation of each word's image with those of the three words before it."
    images = dict(zip(text, S.render_words(text)))

    def corr(a, b):
        return np.corrcoef(images[a].ravel(), images[b].ravel())[0, 1]

    before = lambda i: range(max(0, i - 3), i)
    mean = lambda i: np.mean([corr(text[i], text[j]) for j in before(i)]) if i else 0
    return np.array([mean(i) for i in range(len(text))])


def test_orthographic_similarity_equals_a_loop():
    rng = np.random.default_rng(6)
    text = tuple(rng.choice(["the", "then", "house", "mouse", "I"], 40))
    onset = np.arange(40) * 0.5
    told = story(words=Events(onset, onset + 0.5, text))
    value = similarity_to_the_words_before(text)
    summed = S.orthographic_similarity(told, method="sum").values[:, 0]
    assert np.allclose(summed, value.reshape(10, 4).sum(1), atol=1e-4)
    filtered = loop_lanczos(onset + 0.25, value[:, None], told.clock)
    assert np.allclose(S.orthographic_similarity(told).values, filtered, atol=1e-4)


def test_edits_of_known_pairs():
    for a, b, n in (
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("", "abc", 3),
        ("same", "same", 0),
        ("银行", "银子", 1),
    ):
        assert S._edits(a, b) == S._edits(b, a) == n


# ---- words


@pytest.fixture(scope="module")
def counted_words():
    "A story of 60 random words, and those of each of its ten TRs."
    rng = np.random.default_rng(7)
    text = tuple(rng.choice(["I", "don't", "know", "extraordinary", "1989", "house,"], 60))
    onset = np.sort(rng.uniform(0, 20, 60))
    told = story(words=Events(onset, onset + 0.01, text))
    middle = onset + 0.005
    spans = ((middle >= 2 * t) & (middle < 2 * t + 2) for t in range(10))
    return told, [list(np.array(text)[here]) for here in spans]


def test_lengths_equal_counting_by_hand(counted_words):
    told, spans = counted_words
    for t, here in enumerate(spans):
        lengths = [len(re.sub(r"\W", "", w)) for w in here]
        mean, std = (np.mean(lengths), np.std(lengths)) if here else (0, 0)
        assert np.isclose(L.letter_count(told, "sum").values[t, 0], sum(lengths))
        assert np.isclose(L.word_length(told).values[t, 0], mean, atol=1e-5)
        assert np.isclose(L.word_length_std(told).values[t, 0], std, atol=1e-3)


def test_letters_equal_counting_by_hand(counted_words):
    told, spans = counted_words
    letters = L.letters(told, method="sum")
    assert L.letters(told).names == letters.names
    for t, here in enumerate(spans):
        count = Counter(c for w in here for c in w.lower() if "a" <= c <= "z")
        assert {n: v for n, v in zip(letters.names, letters.values[t]) if v} == count


# ---- real data

MOTH = dict(
    alternateithicatom=(7021, 6684, 6350),
    souls=(6206, 5805, 5405),
    wheretheressmoke=(5595, 5255, 4926),
)


def moth_story(real_data, name):
    "A story of the Moth recordings and the log of its scan."
    grid = read_textgrid(real_data / f"moth/TextGrids/{name}.TextGrid")
    log = read_scanner_log(real_data / f"moth/reports/{name}.report")
    words, phones = words_from_tier(grid.tier("word")), grid.tier("phone")
    return Story(name, "en", words, log.clock(), phones), log


@pytest.mark.parametrize("name", MOTH)
def test_phones_of_moth_tiers(real_data, name):
    told, _ = moth_story(real_data, name)
    lengths = [len(run) for run in by_hand(told.phones)]
    assert tuple(np.maximum(0, np.subtract(lengths, k)).sum() for k in range(3)) == MOTH[name]
    phones = P.story_phones(told)
    assert tuple(len(P.ngrams(phones, n)) for n in (1, 2, 3)) == MOTH[name]
    counts = P.phone_counts(told, method="sum").values
    assert (counts.sum(0) > 0).all() and counts.sum() >= len(phones.events) - 5


@pytest.mark.parametrize("name", MOTH)
def test_words_on_the_screen_of_moth_stories(real_data, name):
    told, log = moth_story(real_data, name)
    shown = shown_words(log)
    energy = S.motion_energy(told, shown.keep(np.arange(len(shown)) < 200))
    assert energy.values.shape == (len(told.clock.times), 63) and energy.values.max() > 0.5


def test_alice_has_words_but_no_phones(real_data):
    grid = read_textgrid(next((real_data / "alice2016").rglob("*.TextGrid")))
    words = words_from_tier(grid.tier("word"))
    alice = Story("alice", "en", words, regular_clock(362, 2.0, first=21.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = L.lowlevel_features(
            alice,
            ("word_rate", "letter_count", "letters", "word_length", "word_length_std"),
            method="sum",
        )
    inside = (words.midpoint >= 20) & (words.midpoint < 744)
    assert (
        found["word_rate"].sum() == inside.sum()
        and 3 < found["letter_count"].sum() / found["word_rate"].sum() < 5
    )
    with pytest.raises(DataError, match="has no phones"):
        L.lowlevel_features(alice, ("articulation",))


@pytest.mark.parametrize(
    "path,script,words",
    [
        ("bobby_phones", None, "1 of 13: 'PT' 1 times"),
        ("mary", None, "'œ' 1 times"),
        ("mary", "own", None),
    ],
)
def test_praat_clips(real_data, path, script, words):
    tier = read_textgrid(real_data / f"speech_clips/praatio/{path}.TextGrid").tier("phone")
    clip = story(tier, n_tr=2, tr=1.0)
    if words:
        with pytest.raises(DataError, match=words):
            P.story_phones(clip, script=script)
    else:
        assert len(P.story_phones(clip, script=script).events) == 14
        spectrum = L.power_spectrum(
            clip, real_data / "speech_clips/praatio/mary.wav", method="sum"
        ).values
        assert spectrum.shape == (2, 80) and spectrum.max() > 20
