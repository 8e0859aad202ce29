"""Which kinds of array give the right numbers at which public function.

python tests/array_matrix.py     print the matrix and the counts

Every function that takes numbers is called with the same numbers in fifteen forms. A form that
holds real numbers has to give what plain float64 gives; one value that is masked has to be missing
in the result, with everything else as it was, or be refused by name; sparse, complex and text
arrays have to be refused by name. Everything else is a bug: a wrong value, a bare exception, a good
array that is refused. `tests/test_arrays.py` fails on the word."""

import tempfile
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from braintune_nb import arrays
from braintune_nb.align import delays, resample
from braintune_nb.core import BraintuneError
from braintune_nb.data import recordings
from braintune_nb.encode import banded, ceiling, group, inference, ridge, score, subspace
from braintune_nb.encode import voxel_selection as selection

OFFSET = 1e8
FOLDER = Path(tempfile.mkdtemp())


# ---- the forms


def _memory_map(x):
    file = FOLDER / f"{abs(hash(x.tobytes()))}.npy"
    np.save(file, x.astype(np.float32))
    return np.load(file, mmap_mode="r", allow_pickle=False)


def _frame(x):
    if x.ndim == 3:
        return [pd.DataFrame(part) for part in x]
    return pd.DataFrame(x) if x.ndim == 2 else pd.Series(x)


def _sparse(x):
    if x.ndim == 3:
        return [sp.csr_array(part) for part in x]
    return sp.csr_array(x) if x.ndim == 2 else sp.coo_array(x)


def _masked(x):
    hidden = np.zeros(x.shape, bool)
    hidden[(..., 3, 1) if x.ndim > 1 else 3] = True
    return np.ma.array(x, mask=hidden)


def _backwards(x):
    back = (slice(None, None, -1),) * x.ndim
    return np.ascontiguousarray(x[back])[back]


KINDS = {
    "whole": lambda x: x.astype(np.int64),
    "bool": lambda x: x.astype(bool),
    "float16": lambda x: x.astype(np.float16),
    "offset": lambda x: x + OFFSET,
    "masked": _masked,
    "endian": lambda x: x.astype(">f8"),
    "fortran": lambda x: np.asfortranarray(x, np.float32),
    "strides": _backwards,
    "memmap": _memory_map,
    "frame": _frame,
    "list": lambda x: x.tolist(),
    "torch": lambda x: torch.tensor(x, dtype=torch.bfloat16, requires_grad=True),
    "sparse": _sparse,
    "complex": lambda x: x * (1 + 0j),
    "text": lambda x: x.astype(str),
}


# ---- the functions: base numbers, what an offset does to the result, and the call

rng = np.random.default_rng(0)
T, F, V = 64, 4, 3
STORIES = np.repeat(np.arange(4), T // 4)
X = rng.integers(0, 9, (T, F)).astype(float)
Y = np.clip(np.rint(X @ rng.standard_normal((F, V)) / 3 + rng.standard_normal((T, V)) + 4), 0, 15)
GUESS = np.clip(np.rint(Y + 2 * rng.standard_normal((T, V))), 0, 15)
REPEATS = np.clip(np.rint(Y + 2 * rng.standard_normal((6, T, V))), 0, 15)
WORDS = np.sort(rng.uniform(0, 2 * T, T))
WEIGHTS = resample.lanczos_weights(WORDS, 1 + 2.0 * np.arange(T), 2.0)
PEOPLE = rng.integers(0, 9, 7).astype(float)
SHARES = rng.integers(0, 2, (9, 3)).astype(float)
BASIS = np.linalg.qr(rng.standard_normal((F, F)))[0]
EXACT = {"tolerance": 0, "precision": "float32"}
ARM = [inference.block_sums(GUESS, Y, STORIES * 4 + np.arange(T) % 16 // 4)] * 3

SAME, PLUS, LINEAR, NONE = "same", "plus", "linear", "none"


def _fit(model, x, y, *groups):
    return model.fit(x, y, *groups)


def _weights(x):
    return np.asarray(subspace.weight_basis([x], [np.ones(V)], 2)) ** 2


ENTRIES = {
    "zscore": (X, SAME, recordings.zscore),
    "highpass": (X, SAME, lambda x: recordings.highpass(x, 2.0)),
    "regress_out x": (X, SAME, lambda x: recordings.regress_out(x, Y)),
    "regress_out confounds": (Y, SAME, lambda x: recordings.regress_out(X, x)),
    "resample": (X, LINEAR, lambda x: resample.resample(x, WEIGHTS)),
    "delay": (X, LINEAR, lambda x: delays.delay(x, (1, 3), STORIES)),
    "correlation prediction": (GUESS, SAME, lambda x: score.correlation(x, Y)),
    "correlation responses": (Y, SAME, lambda x: score.correlation(GUESS, x)),
    "r2 prediction": (GUESS, NONE, lambda x: score.r2(x, Y)),
    "r2 responses": (Y, NONE, lambda x: score.r2(GUESS, x)),
    "correlation_split parts": (
        np.stack([GUESS, Y]),
        SAME,
        lambda x: score.correlation_split(x, Y),
    ),
    "normalised_alignment r": (PEOPLE, NONE, lambda x: score.normalised_alignment(x, PEOPLE + 1)),
    "normalised_alignment ceiling": (
        PEOPLE,
        NONE,
        lambda x: score.normalised_alignment(PEOPLE, x),
    ),
    "region_means": (
        PEOPLE,
        PLUS,
        lambda x: score.region_means(x, {"all": np.ones(len(PEOPLE), bool)})["all"]["mean"],
    ),
    "signal_power": (REPEATS, SAME, lambda x: np.stack(ceiling.signal_power(x, False))),
    "ccmax": (REPEATS, SAME, lambda x: ceiling.ccmax(x, False)),
    "explainable_variance": (REPEATS, SAME, ceiling.explainable_variance),
    "split_half": (REPEATS, SAME, ceiling.split_half),
    "split_half_ceiling": (REPEATS, SAME, ceiling.split_half_ceiling),
    "leave_one_participant_out": (REPEATS, SAME, ceiling.leave_one_participant_out),
    "average_ceiling": (REPEATS, SAME, ceiling.average_ceiling),
    "odd_even_ceiling": (REPEATS, SAME, lambda x: ceiling.odd_even_ceiling(x)[0]),
    "story_ceiling": (REPEATS, SAME, lambda x: ceiling.story_ceiling(x, "tale").values),
    "spearman_brown": (PEOPLE, NONE, ceiling.spearman_brown),
    "expected_correlation": (PEOPLE, NONE, ceiling.expected_correlation),
    "RidgeCV.fit X": (X, SAME, lambda x: _fit(ridge.RidgeCV(**EXACT), x, Y).predict(x)),
    "RidgeCV.fit y": (Y, PLUS, lambda x: _fit(ridge.RidgeCV(**EXACT), X, x).predict(X)),
    "RidgeCV.score y": (Y, SAME, lambda x: _fit(ridge.RidgeCV(**EXACT), X, Y).score(X, x)),
    "RidgeCV alphas": (PEOPLE + 1, NONE, lambda x: _fit(ridge.RidgeCV(x), X, Y).predict(X)),
    "RidgeDesign": (
        X,
        SAME,
        lambda x: _fit(ridge.RidgeCV(**EXACT), ridge.RidgeCV(**EXACT).design(x), Y).predict(x),
    ),
    "BandedRidge.fit X": (X, SAME, lambda x: _fit(banded.BandedRidge(), x, Y, STORIES).predict(x)),
    "BandedRidge.fit y": (Y, PLUS, lambda x: _fit(banded.BandedRidge(), X, x, STORIES).predict(X)),
    "BandedRidge band": (
        X,
        SAME,
        lambda x: _fit(banded.BandedRidge(), {"a": x, "b": Y}, Y, STORIES).predict(
            {"a": x, "b": Y}
        ),
    ),
    "BandedRidge.score y": (
        Y,
        SAME,
        lambda x: _fit(banded.BandedRidge(), X, Y, STORIES).score(X, x),
    ),
    "BandedRidge.split_scores y": (
        Y,
        SAME,
        lambda x: _fit(banded.BandedRidge(), X, Y, STORIES).split_scores(X, x)["features"],
    ),
    "nested_prediction X": (
        X,
        SAME,
        lambda x: banded.nested_prediction(banded.BandedRidge(), x, Y, STORIES),
    ),
    "nested_prediction y": (
        Y,
        PLUS,
        lambda x: banded.nested_prediction(ridge.RidgeCV(**EXACT), X, x, STORIES),
    ),
    "SubspaceRidge.fit X": (
        X,
        SAME,
        lambda x: _fit(subspace.SubspaceRidge(BASIS, (2,), **EXACT), x, Y).predict(x),
    ),
    "SubspaceRidge.fit y": (
        Y,
        PLUS,
        lambda x: _fit(subspace.SubspaceRidge(BASIS, (2,), **EXACT), X, x).predict(X),
    ),
    "weight_basis": (X[:, :V], NONE, _weights),
    "circular_shift_null": (GUESS, SAME, lambda x: inference.circular_shift_null(x, Y, 5)),
    "block_permutation_null": (Y, SAME, lambda x: inference.block_permutation_null(GUESS, x, 8, 5)),
    "voxel_test prediction": (
        GUESS,
        SAME,
        lambda x: inference.voxel_test(x, Y, n=19, progress=False).r,
    ),
    "voxel_test responses": (
        Y,
        SAME,
        lambda x: inference.voxel_test(GUESS, x, n=19, progress=False).r,
    ),
    "permutation_p": (
        SHARES,
        NONE,
        lambda x: inference.permutation_p(np.full(3, 0.5), x),
    ),
    "fdr": (SHARES, NONE, inference.fdr),
    "block_sums": (Y, SAME, lambda x: inference.block_sums(GUESS, x, STORIES)),
    "correlation_from_sums": (
        np.rint(ARM[0]),
        NONE,
        lambda x: inference.correlation_from_sums(x),
    ),
    "sign_flip": (PEOPLE, NONE, lambda x: inference.sign_flip(x)["p"]),
    "participant_test": (PEOPLE, PLUS, lambda x: inference.participant_test(x)["mean"]),
    "group_region_tests": (
        PEOPLE,
        PLUS,
        lambda x: group.group_region_tests({"all": x})["all"]["mean"],
    ),
    "random_effects_interval": (
        SHARES,
        PLUS,
        lambda x: group.random_effects_interval(x)["mean"],
    ),
    "semantic_predictions model": (X, SAME, lambda x: _semantic(x, Y)),
    "semantic_predictions responses": (Y, SAME, lambda x: _semantic(X, x)),
    "as_array": (X, PLUS, arrays.as_array),
}


def _semantic(model, responses):
    low = np.arange(T)[:, None] % 5
    return selection.semantic_predictions(low, model, responses, STORIES, None, folds=4)[0]


# ---- the judgement

# what these document for a value that is missing: left out of a mean, or a weight of zero
MISSING = {
    "region_means": lambda x: np.delete(x, 3).mean(),
    "group_region_tests": lambda x: np.delete(x, 3).mean(),
    "weight_basis": lambda x: _weights(np.where(np.ma.getmaskarray(_masked(x)), 0, x)),
}
REFUSED = ("sparse", "complex", "text")


def _plain(result):
    if torch.is_tensor(result):
        result = result.detach().numpy()
    return np.asarray(result, float)


def _close(found, wanted):
    size = np.nanmax(np.abs(wanted), initial=1.0)
    return np.allclose(found, wanted, rtol=1e-4, atol=1e-4 * size, equal_nan=True)


@cache
def _plain_result(entry, numbers="base"):
    "What an entry gives for plain float64 numbers, computed once for all kinds."
    base, _, call = ENTRIES[entry]
    asked = {"bool": base.astype(bool).astype(float), "offset": base + OFFSET}
    return _plain(call(asked.get(numbers, np.ones_like(base) if numbers == "ones" else base)))


def _right(kind, entry, found):
    "Whether the result is that of plain float64 numbers."
    base, rule, _ = ENTRIES[entry]
    if kind == "masked" and entry in MISSING:
        return _close(found, MISSING[entry](base))
    if kind == "masked":  # missing somewhere, and nothing else has moved
        holes, wanted = np.isnan(found), _plain_result(entry)
        return 0 < holes.sum() < holes.size and _close(np.where(holes, wanted, found), wanted)
    if kind != "offset":
        return _close(found, _plain_result(entry, "bool" if kind == "bool" else "base"))
    wanted = _plain_result(entry, "offset" if rule == NONE else "base")
    if rule == PLUS:
        found = found - OFFSET
    if rule == LINEAR:
        found = found - OFFSET * _plain_result(entry, "ones")
    return _close(found, wanted)


def judge(kind, entry):
    "'right', 'refused', or 'bug: ...' for one form at one function."
    base, rule, call = ENTRIES[entry]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = _plain(call(KINDS[kind](base)))
        except BraintuneError as error:
            allowed = kind in (*REFUSED, "masked") or (kind == "offset" and rule == NONE)
            return "refused" if allowed else f"bug: refused, {error.what}"
        except Exception as error:
            return f"bug: {type(error).__name__}, {error}".replace("\n", " ")[:120]
        if kind in REFUSED:
            return "bug: taken"
        return "right" if _right(kind, entry, found) else "bug: another value"


def row(entry):
    "kind -> judgement of one function."
    return {kind: judge(kind, entry) for kind in KINDS}


def matrix():
    "function -> kind -> judgement."
    return {entry: row(entry) for entry in ENTRIES}


if __name__ == "__main__":
    found = matrix()
    table = pd.DataFrame(found).T
    print(table.map(lambda word: word.split(":")[0]).to_string())
    counts = table.map(lambda word: word.split(":")[0]).stack().value_counts()
    print("\n" + ", ".join(f"{n} {word}" for word, n in counts.items()), "of", table.size)
    for entry, words in found.items():
        for kind, word in words.items():
            if word.startswith("bug"):
                print(f"{entry}, {kind}: {word}")
