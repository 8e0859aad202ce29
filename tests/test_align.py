"Resampling, delays and windows against independent constructions."

import numpy as np
import pytest
import torch

from braintune_nb.align.delays import delay
from braintune_nb.align.resample import LANCZOS_PRESETS, average_weights, lanczos_weights, resample
from braintune_nb.align.windows import sample_windows, word_windows
from braintune_nb.core import ClockError, DataError, ParameterError


def slow_lanczos(source, target, scale, a, normalise):
    "Two loops over the printed formula; shares nothing with the library."
    W = np.zeros((len(target), len(source)))
    for j, u in enumerate(target):
        for i, t in enumerate(source):
            x = scale * (u - t)
            near = a * np.sin(np.pi * x) * np.sin(np.pi * x / a) / (np.pi * x) ** 2 if x else 1.0
            W[j, i] = near if abs(x) < a else 0.0
        if normalise and W[j].sum() > 0:
            W[j] /= W[j].sum()
    return W


@pytest.mark.parametrize("preset", LANCZOS_PRESETS)
@pytest.mark.parametrize("tr, lobes, cutoff", [(2.0045, 3, 1.0), (1.5, 2, 0.7)])
def test_lanczos_equals_a_slow_loop(preset, tr, lobes, cutoff):
    rng = np.random.default_rng(3)
    target = -9.026 + tr * np.arange(60)
    source = rng.permutation(
        np.r_[rng.uniform(-30, 140, 150), target[5], target[5] + tr / 2, target[8] + 3 * tr]
    )  # any order, on centres and edges
    scale = (
        cutoff / tr
        if preset != "released"
        else cutoff * (source.max() - source.min()) / (target[-1] - target[0])
    )
    expected = slow_lanczos(source, target, scale, lobes, preset == "released")
    np.testing.assert_allclose(
        lanczos_weights(source, target, tr, lobes, cutoff, preset), expected, atol=1e-12
    )
    np.testing.assert_allclose(
        lanczos_weights(source, target, tr, lobes, cutoff, preset, sparse=True).toarray(),
        expected,
        atol=1e-12,
    )


def test_lanczos_is_invariant_to_the_order_of_words_and_to_a_shift_of_the_clock():
    rng = np.random.default_rng(5)
    source, target, X, order = (
        rng.uniform(0, 80, 120),
        2.0 * np.arange(40),
        rng.normal(size=(120, 3)),
        rng.permutation(120),
    )
    there = resample(X, lanczos_weights(source, target, 2.0))
    np.testing.assert_allclose(
        resample(X[order], lanczos_weights(source[order], target, 2.0)), there, atol=1e-12
    )
    np.testing.assert_allclose(
        resample(X, lanczos_weights(source + 1000, target + 1000, 2.0)), there, atol=1e-9
    )


def test_numpy_and_torch_agree_and_gradients_are_right():
    rng = np.random.default_rng(7)
    W = lanczos_weights(rng.uniform(0, 60, 90), 2.0 * np.arange(30), 2.0)
    X = rng.normal(size=(90, 4))
    assert np.abs(resample(torch.from_numpy(X), W).numpy() - resample(X, W)).max() < 1e-6
    single = resample(torch.from_numpy(X).float(), W)
    assert single.dtype == torch.float32 and np.abs(single.numpy() - resample(X, W)).max() < 1e-5
    assert torch.autograd.gradcheck(lambda x: resample(x, W), torch.from_numpy(X).requires_grad_())


def test_C06_cutoff_follows_the_TR_and_no_row_explodes():
    """C-06: lobes in seconds pass 1 Hz whatever the TR, and rows of small sum are blown up by
    normalising."""
    for tr in (1.5, 2.0, 3.0):
        target = tr * np.arange(40)
        source = np.arange(-40, 160, 0.1)
        W = lanczos_weights(source, target, tr)
        middle = W[10:30]
        np.testing.assert_allclose(middle.sum(1), tr / 0.1, rtol=0.01)  # words per TR
        too_fast = np.sin(
            2 * np.pi * source / (tr * 0.7)
        )  # above the cut-off, far above what rows can carry
        assert np.abs(middle @ too_fast).max() < 0.03 * tr / 0.1
        assert np.ptp(source[np.flatnonzero(W[20])]) <= 6 * tr + 1e-9  # support: three TRs each way
    lonely = lanczos_weights(np.array([10.0, 13.1]), 2.0 * np.arange(10), 2.0)
    assert np.abs(lonely).max() <= 1.0


def test_average_counts_each_word_once_with_a_jittered_clock():
    rng = np.random.default_rng(11)
    target = np.cumsum(2.0045 + rng.uniform(-1e-3, 1e-3, 50))
    source = np.sort(
        np.r_[rng.uniform(target[0] - 1, target[-1] + 1, 300), (target[1:] + target[:-1]) / 2]
    )
    total = average_weights(source, target, 2.0045, total=True)
    assert (total.sum(0) == 1).all()
    mean, filled = average_weights(source, target, 2.0045), total.sum(1) > 0
    np.testing.assert_allclose(mean.sum(1), filled, atol=1e-12)


def test_average_leaves_out_words_in_a_hole_of_the_clock():
    target = np.r_[1.0, 3.0, 5.0, 21.0, 23.0]
    assert average_weights([12.0, 20.5], target, 2.0).sum() == 1.0


def independent_delay(X, delays, stories):
    "Row by row, asking for each row where its past is."
    rows = []
    for t in range(len(X)):
        rows.append(
            np.concatenate(
                [
                    (
                        X[t - d]
                        if t - d >= 0 and stories[t - d] == stories[t]
                        else np.zeros(X.shape[1])
                    )
                    for d in delays
                ]
            )
        )
    return np.array(rows)


def test_C04_delays_equal_an_independent_construction_and_stop_at_stories():
    "C-04: delays applied after concatenation let stories bleed into each other."
    rng = np.random.default_rng(13)
    stories = np.repeat(["c", "a", "b", "d"], [7, 2, 1, 12])
    X = rng.normal(size=(22, 3))
    for delays in ((1, 2, 3, 4), (4, 0, 2), (6,)):
        expected = independent_delay(X, delays, stories)
        np.testing.assert_array_equal(delay(X, delays, stories), expected)
        np.testing.assert_array_equal(delay(torch.from_numpy(X), delays, stories).numpy(), expected)
    a, b = delay(X, stories=stories), X.copy()
    b[:7] = 99.0  # another story changes ...
    np.testing.assert_array_equal(
        delay(b, stories=stories)[7:], a[7:]
    )  # ... and no row of the rest does
    assert torch.autograd.gradcheck(
        lambda x: delay(x, (1, 3), stories), torch.from_numpy(X).requires_grad_()
    )


def test_A07_windows_have_one_length_with_a_real_scanner():
    "A-07: truncated edges make a 3 s window every 220 TRs."
    for rate in (16000, 22050, 100):
        windows = sample_windows(-9.026 + 2.0045 * np.arange(2000), 2.0045, rate)
        assert (
            np.ptp(windows[:, 1] - windows[:, 0]) <= 1 and (windows[1:, 0] == windows[:-1, 1]).all()
        )


@pytest.mark.parametrize("n_words", [1, 7, 20, 500])
def test_windows_end_on_their_word(n_words):
    for i, (start, stop) in enumerate(word_windows(range(60), n_words)):
        assert stop == i + 1 and stop - start == min(n_words, i + 1)


@pytest.mark.parametrize(
    "call, error, says",
    [
        (lambda: lanczos_weights([], [1.0], 2.0), DataError, "nothing to resample"),
        (lambda: lanczos_weights([1.0], [3.0, 1.0], 2.0), ClockError, "must rise"),
        (lambda: lanczos_weights([1.0], 2.0045 * np.arange(9), 2.0), ClockError, "2.0045"),
        (
            lambda: lanczos_weights([1.0], [1.0, 3.0], 2.0, lobes=0),
            ParameterError,
            "at least one lobe",
        ),
        (lambda: delay(np.ones((3, 1)), stories=["a", "b"]), DataError, "One story label per row"),
        (lambda: delay(np.ones((3, 1)), stories=["a", "b", "a"]), DataError, "not together"),
    ],
)
def test_bad_input_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()
