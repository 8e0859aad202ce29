"""Control arms: what they keep, what they break, and the defect of the published block shuffle."""

import numpy as np
import pytest
import torch

from braintune_nb.core import DataError, ModelError, ParameterError
from braintune_nb.train.conditions import (
    ARMS,
    TemporalFilter,
    arms_table,
    circular_shift_index,
    fit_temporal_filter,
    permute_blocks,
    weight_noise,
)


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
            index = permute_blocks(
                15 * n_blocks, 15, seed, minimum_displacement=15 * (n_blocks // 3)
            )
            assert np.abs(index - np.arange(15 * n_blocks)).min() >= 15 * (n_blocks // 3)


def test_blocks_keep_their_inner_order_and_edges_move():
    breaks = [set(np.flatnonzero(np.diff(permute_blocks(100, 10, s)) != 1) % 10) for s in range(30)]
    assert all(
        len(np.flatnonzero(np.diff(permute_blocks(100, 10, s)) != 1)) <= 11 for s in range(30)
    )
    assert len(set.union(*breaks)) == 10  # every position is an edge in some draw


def test_all_distances_occur_and_seeds_differ():
    draws = np.stack([permute_blocks(200, 10, s) for s in range(300)])
    assert len(np.unique(draws, axis=0)) == 300
    counts = np.bincount(draws[:, 50] // 10, minlength=20)  # which block lands on row 50
    assert (counts > 0).sum() == 19 and counts.max() < 3 * 300 / 20  # any but its own, no favourite


def test_a_permuted_target_no_longer_follows_the_original():
    "Slow signals too: the mean correlation of a smooth series with its permuted self is near zero."
    draw = np.random.default_rng(0)
    r = []
    for s in range(60):
        x = np.convolve(draw.normal(size=310), np.ones(8), "valid")
        r.append(np.corrcoef(x, x[permute_blocks(len(x), 10, s)])[0, 1])
    assert abs(np.mean(r)) < 3 * np.std(r) / 60**0.5 + 0.03


def test_impossible_requests_are_refused():
    with pytest.raises(ParameterError, match="12 rows in blocks of 10"):
        permute_blocks(12, 10, minimum_displacement=8)
    with pytest.raises(ParameterError, match="shorter blocks"):
        permute_blocks(5, 10)
    with pytest.raises(ParameterError, match="40 rows or more"):
        circular_shift_index(39, minimum_displacement=20)


@pytest.mark.parametrize("n, least", [(20, 10), (50, 4), (363, 20)])
def test_circular_shift_keeps_its_distance_both_ways(n, least):
    for seed in range(50):
        index = circular_shift_index(n, seed, least)
        shift = (index[0] - 0) % n
        assert sorted(index) == list(range(n)) and least <= shift <= n - least
        assert ((index - np.arange(n)) % n == shift).all()


def test_weight_noise_keeps_norms_and_nothing_else():
    torch.manual_seed(0)
    pretrained, tuned = (
        torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.LayerNorm(30)) for _ in range(2)
    )
    noisy, again, other = (weight_noise(pretrained, tuned, seed) for seed in (1, 1, 2))
    models = (pretrained, tuned, noisy, again, other)
    for p, t, n, a, o in zip(*(m.parameters() for m in models)):
        assert torch.allclose((n - p).norm(), (t - p).norm(), rtol=1e-4, atol=1e-7)
        assert torch.equal(n, a)
        assert torch.equal(p, t) or not torch.equal(n, o)
    start = pretrained[0].weight
    change, noise = ((m[0].weight - start).detach().flatten() for m in (tuned, noisy))
    assert abs(float(torch.cosine_similarity(change, noise, dim=0))) < 0.12


def test_weight_noise_needs_models_of_one_shape():
    small, large = torch.nn.Linear(4, 3), torch.nn.Linear(40, 30)
    with pytest.raises(ModelError, match="0.weight"):
        weight_noise(torch.nn.Sequential(large, torch.nn.LayerNorm(30)), torch.nn.Sequential(small))


# ---- the list of arms


REQUIRED = """pretrained matched_data_ridge all_layers head_only shared_subspace group_average
temporal_filter permuted other_story word_codes weight_noise stimulus_tuned joint lm_tuned
speech_target""".split()
ABLATIONS = """single_participant averaged_losses averaged_responses separate_heads nonlinear_head
shared_response lora""".split()
TRAINED = {"backbone", "heads", "filter", "noise", "nothing", "low-rank adapters"}


def test_every_arm_says_what_it_rules_out_and_the_required_ones_are_there():
    assert set(REQUIRED + ABLATIONS) < set(ARMS)
    assert all(name == arm.name for name, arm in ARMS.items())
    assert all(arm.rules_out for name, arm in ARMS.items() if name != "tuned")
    table = arms_table(["joint", "tuned"])
    assert list(table.name) == ["joint", "tuned"] and "own objective" in table.targets[0]
    with pytest.raises(ParameterError, match="Unknown arm"):
        arms_table(["tuned", "tuned2"])


def test_facts_of_the_arms_fit_together():
    arms = ARMS.values()
    assert {arm.trained for arm in arms} == TRAINED
    # what is trained is trained on something
    assert all((arm.targets == "none") == (arm.trained in ("nothing", "noise")) for arm in arms)
    assert {arm.kind for arm in arms} == {"tuned", "encoding", "weights", "reference"}
    assert all((arm.stops != "") == (arm.kind == "tuned") for arm in arms)
    assert len({arm.colour for arm in arms if arm.colour}) == 4


# ---- the temporal filter


WIDTHS = dict(P1=7, P2=3)


def brains(kernel, widths=WIDTHS, stories=4, H=5, T=150, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    x = {f"s{i}": rng.normal(size=(T, H)).astype(np.float32) for i in range(stories)}
    maps = {p: rng.normal(size=(H, v)) for p, v in widths.items()}
    late = lambda y: sum(
        k * np.vstack([np.zeros((i, y.shape[1])), y[: len(y) - i]]) for i, k in enumerate(kernel)
    )
    y = {n: {} for n in x}
    for n, f in x.items():
        for p, m in maps.items():
            y[n][p] = late(f) @ m + noise * rng.normal(size=(T, m.shape[1]))
    return x, y


@pytest.mark.parametrize("kernel", [[0, 0, 1, 0], [0.1, 0.5, 1, -0.3]])
def test_filter_finds_the_response_and_its_error_is_the_noise(kernel):
    x, y = brains(kernel)
    found, log = fit_temporal_filter(x, y, taps=4, shared=True, penalty=1e-4)
    assert np.allclose(found.taps.detach().numpy()[:, 0], kernel, atol=0.05)
    responses = [a for its in y.values() for a in its.values()]
    share = sum(a.size for a in responses) / sum((a**2).sum() for a in responses)
    assert abs(log[-1] - share) < 0.05 * share and np.diff(log).max() < 1e-3


@pytest.mark.parametrize("kernel", [[0, 0, 1, 0], [0.1, 0.5, 1, -0.3]])
def test_filters_of_each_feature_find_the_response(kernel):
    x, y = brains(kernel)
    each, _ = fit_temporal_filter(x, y, taps=4, penalty=1e-4)
    r = [np.corrcoef(each.taps[:, h].detach(), kernel)[0, 1] for h in range(5)]
    assert each.taps.shape == (4, 5) and np.mean(r) > 0.97


def test_filter_is_causal_within_the_story_and_differentiable():
    filtered = TemporalFilter(3, taps=4)
    with torch.no_grad():
        filtered.taps.copy_(torch.randn(4, 3))
    x = torch.randn(20, 3)
    y = filtered(x)
    y.square().sum().backward()
    assert filtered.taps.grad.abs().min() > 0
    later = x.clone()
    later[12:] += 5
    assert torch.allclose(filtered(later)[:12], y[:12]) and not torch.allclose(
        filtered(later)[12:], y[12:]
    )
    by_hand = sum(
        filtered.taps[k].detach().numpy() * np.pad(x.numpy(), ((k, 0), (0, 0)))[:20]
        for k in range(4)
    )
    assert np.allclose(filtered.transform(x.numpy()), by_hand, atol=1e-5)


def test_people_may_have_heard_different_stories_and_what_does_not_fit_is_refused():
    x, y = brains([0, 1, 0.5])
    part = {"s0": {"P1": y["s0"]["P1"]}, "s1": y["s1"], "s2": {"P2": y["s2"]["P2"]}, "s3": y["s3"]}
    assert np.allclose(
        fit_temporal_filter(x, part, taps=3, shared=True)[0].taps.detach()[:, 0],
        [0, 1, 0.5],
        atol=0.1,
    )
    with pytest.raises(DataError, match="149 rows"):
        fit_temporal_filter(x, {"s0": {"P1": y["s0"]["P1"][1:]}})
    with pytest.raises(DataError, match="no features"):
        fit_temporal_filter(x, {"s9": y["s0"]})
