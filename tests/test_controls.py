"""Control arms: what they keep, what they break, and the defect of the published block shuffle."""
import numpy as np
import pytest
import torch

from braintune_nb.core import ModelError, ParameterError
from braintune_nb.train.controls import circular_shift_index, permute_blocks, weight_noise


@pytest.mark.parametrize("block, least", [(10, None), (10, 25), (15, 45), (7, 20), (1, 3)])
def test_a13_every_row_is_used_once_and_moves_far_at_every_length(block, least):
    far = block if least is None else least
    for n in [*range(2 * far + 2 * block, 2 * far + 4 * block), 291, 363, 500]:
        for seed in range(3):
            index = permute_blocks(n, block, seed, least)
            assert index.dtype.kind == "i" and sorted(index) == list(range(n))
            assert np.abs(index - np.arange(n)).min() >= far


def test_a13_stories_of_13_to_28_blocks_leave_no_block_in_place():
    "The released rule kept 2.5 to 8 blocks of such stories where they were."
    for n_blocks in range(13, 29):
        for seed in range(5):
            index = permute_blocks(15 * n_blocks, 15, seed, minimum_displacement=15 * (n_blocks // 3))
            assert np.abs(index - np.arange(15 * n_blocks)).min() >= 15 * (n_blocks // 3)


def test_blocks_keep_their_inner_order_and_edges_move():
    breaks = [set(np.flatnonzero(np.diff(permute_blocks(100, 10, s)) != 1) % 10) for s in range(30)]
    assert all(len(np.flatnonzero(np.diff(permute_blocks(100, 10, s)) != 1)) <= 11 for s in range(30))
    assert len(set.union(*breaks)) == 10                                # every position is an edge in some draw


def test_all_distances_occur_and_seeds_differ():
    draws = np.stack([permute_blocks(200, 10, s) for s in range(300)])
    assert len(np.unique(draws, axis=0)) == 300
    counts = np.bincount(draws[:, 50] // 10, minlength=20)             # which block lands on row 50
    assert (counts > 0).sum() == 19 and counts.max() < 3 * 300 / 20     # any but its own, no favourite


def test_a_permuted_target_no_longer_follows_the_original():
    "Slow signals too: the mean correlation of a smooth series with its permuted self is near zero."
    draw = np.random.default_rng(0)
    r = []
    for s in range(60):
        x = np.convolve(draw.normal(size=310), np.ones(8), "valid")
        r.append(np.corrcoef(x, x[permute_blocks(len(x), 10, s)])[0, 1])
    assert abs(np.mean(r)) < 3 * np.std(r) / 60 ** 0.5 + 0.03


def test_impossible_requests_are_refused():
    with pytest.raises(ParameterError, match="12 rows in blocks of 10"): permute_blocks(12, 10, minimum_displacement=8)
    with pytest.raises(ParameterError, match="shorter blocks"): permute_blocks(5, 10)
    with pytest.raises(ParameterError, match="40 rows or more"): circular_shift_index(39, minimum_displacement=20)


@pytest.mark.parametrize("n, least", [(20, 10), (50, 4), (363, 20)])
def test_circular_shift_keeps_its_distance_both_ways(n, least):
    for seed in range(50):
        index = circular_shift_index(n, seed, least)
        shift = (index[0] - 0) % n
        assert sorted(index) == list(range(n)) and least <= shift <= n - least
        assert ((index - np.arange(n)) % n == shift).all()


def test_weight_noise_keeps_norms_and_nothing_else():
    torch.manual_seed(0)
    pretrained = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.LayerNorm(30))
    tuned = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.LayerNorm(30))
    noisy, again, other = weight_noise(pretrained, tuned, 1), weight_noise(pretrained, tuned, 1), weight_noise(pretrained, tuned, 2)
    for p, t, n, a, o in zip(*(m.parameters() for m in (pretrained, tuned, noisy, again, other))):
        assert torch.allclose((n - p).norm(), (t - p).norm(), rtol=1e-4, atol=1e-7) and torch.equal(n, a)
        if not torch.equal(p, t): assert not torch.equal(n, o)
    change, noise = ((m[0].weight - pretrained[0].weight).detach().flatten() for m in (tuned, noisy))
    assert abs(float(torch.cosine_similarity(change, noise, dim=0))) < 0.12
    with pytest.raises(ModelError, match="0.weight"): weight_noise(pretrained, torch.nn.Sequential(torch.nn.Linear(4, 3)))
