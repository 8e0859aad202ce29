"""Losses against SciPy, NumPy and torch.nn.functional, over dtype and settings, and the defects
they must not have."""

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from braintune_nb.core import ParameterError
from braintune_nb.loss import (
    LOSSES,
    correlation_over_time,
    correlation_over_voxels,
    get_loss,
    hybrid_over_time,
    l2_penalty,
    mse,
    ntxent_over_time,
)


def pair(t, v, seed=0, dtype=torch.float32):
    draw = np.random.default_rng(seed)
    y = draw.normal(size=(t, v)) * 2 + 3
    return torch.tensor(y + draw.normal(size=(t, v)), dtype=dtype), torch.tensor(y, dtype=dtype)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("t, v", [(40, 7), (13, 2), (25, 300)])
def test_finite_scalar_with_finite_gradient(name, t, v):
    prediction, target = pair(t, v)
    prediction.requires_grad_()
    value = get_loss(name)(prediction, target)
    value.backward()
    assert (
        value.ndim == 0
        and torch.isfinite(value)
        and torch.isfinite(prediction.grad).all()
        and prediction.grad.abs().max() > 0
    )


@pytest.mark.parametrize("name", LOSSES)
def test_finite_at_degenerate_predictions(name):
    "A head that starts at zero, a dead voxel: no NaN, in value or gradient."
    _, target = pair(30, 6)
    for prediction in (
        torch.zeros(30, 6),
        torch.full((30, 6), 0.1),
        target.clone().index_fill_(1, torch.tensor([2]), 0.7),
    ):
        prediction.requires_grad_()
        value = get_loss(name)(prediction, target)
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_is_best_and_order_of_columns_is_nothing(name):
    prediction, target = pair(60, 20)
    loss, order = get_loss(name), torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert loss(target, target) < loss(prediction, target)
    assert torch.allclose(
        loss(prediction, target), loss(prediction[:, order], target[:, order]), atol=1e-5
    )
    if name != "ntxent_over_time":
        assert abs(float(loss(target, target))) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_correlations_equal_scipy(dtype):
    prediction, target = (
        x + 2 * torch.arange(8, dtype=dtype) for x in pair(50, 8, seed=4, dtype=dtype)
    )
    p, t = prediction.double().numpy(), target.double().numpy()
    over_time = np.mean([scipy.stats.pearsonr(p[:, i], t[:, i])[0] for i in range(8)])
    over_voxels = np.mean([scipy.stats.pearsonr(p[i], t[i])[0] for i in range(50)])
    assert float(correlation_over_time(prediction, target)) == pytest.approx(
        1 - over_time, abs=1e-5
    )
    assert float(correlation_over_voxels(prediction, target)) == pytest.approx(
        1 - over_voxels, abs=1e-5
    )
    assert abs(over_time - over_voxels) > 0.01  # the axes are told apart by these data


def test_correlation_survives_a_large_mean():
    "Raw BOLD has a mean of hundreds: centring comes before squaring."
    prediction, target = pair(80, 5)
    shifted = float(correlation_over_time(prediction + 1000, target + 1000))
    assert shifted == pytest.approx(float(correlation_over_time(prediction, target)), abs=1e-3)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("near", [0, 1, 4])
def test_c05_ntxent_is_the_cross_entropy_of_the_masked_similarity(temperature, near):
    prediction, target = pair(30, 9, seed=2)
    similarity = F.cosine_similarity(prediction[:, None], target[None], dim=2) / temperature
    rows = torch.arange(30)
    near_by = ((rows[:, None] - rows).abs() <= near) & ~torch.eye(30, dtype=bool)
    expected = F.cross_entropy(similarity.masked_fill(near_by, -torch.inf), rows)
    assert torch.allclose(
        ntxent_over_time(prediction, target, temperature, near), expected, atol=1e-5
    )
    both = (expected + F.cross_entropy(similarity.masked_fill(near_by, -torch.inf).T, rows)) / 2
    assert torch.allclose(
        ntxent_over_time(prediction, target, temperature, near, symmetric=True), both, atol=1e-5
    )


def test_c05_the_released_order_of_sum_and_exponential_gives_another_number():
    prediction, target = pair(200, 9, seed=2)
    similarity = (F.normalize(prediction) @ F.normalize(target).T / 0.5).double()
    released = -torch.log(
        similarity.diag().exp()
        / (similarity.diag().exp() + (similarity.sum(1) - similarity.diag()).exp())
    ).mean()
    ours = float(ntxent_over_time(prediction, target, 0.5, 0))
    assert abs(float(released) - ours) > 10 and 0 < ours < np.log(200) + 4


def test_near_in_time_negatives_do_not_count():
    "A prediction that is one TR late is nearly right; with neighbours masked it costs less."
    draw = np.random.default_rng(0)
    slow = torch.tensor(
        np.apply_along_axis(np.convolve, 0, draw.normal(size=(120, 10)), np.ones(8), "same")
    ).float()
    assert (
        ntxent_over_time(slow.roll(1, 0), slow, 0.1, 10)
        < ntxent_over_time(slow.roll(1, 0), slow, 0.1, 0) - 0.3
    )


def test_c05_hybrid_parts_are_of_one_order_at_any_length():
    for t in (50, 2092):
        prediction, target = pair(t, 4, seed=1)
        target = (target - target.mean(0)) / target.std(0)
        assert float(hybrid_over_time(prediction * 0, target, 0.5)) == pytest.approx(1.0, abs=0.02)


def test_c05_the_penalty_leaves_biases_and_frozen_weights_alone():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    model[2].requires_grad_(False)
    assert l2_penalty(model, 0.5).item() == pytest.approx(
        0.5 * model[0].weight.square().sum().item(), rel=1e-6
    )


def test_unknown_names_settings_and_shapes_are_refused():
    with pytest.raises(ParameterError, match="hybrid_over_time, mse, ntxent_over_time"):
        get_loss("nt_xent")
    with pytest.raises(ParameterError, match="temperature, mask_within, symmetric"):
        get_loss("ntxent_over_time", tau=1)
    with pytest.raises(ParameterError, match="two axes"):
        mse(torch.ones(3), torch.ones(3))
    with pytest.raises(ParameterError, match="11 TRs"):
        get_loss("ntxent_over_time")(*pair(11, 3))
    assert torch.isfinite(get_loss("ntxent_over_time")(*pair(12, 3)))


@pytest.mark.parametrize("name", LOSSES)
def test_mixed_precision_is_computed_in_float32(name):
    prediction, target = pair(40, 600)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = get_loss(name)(prediction, target)
    tolerance = (
        0.02 if name == "ntxent_over_time" else 1e-5
    )  # its matrix product is autocast, its sums are not
    assert float(value) == pytest.approx(
        float(get_loss(name)(prediction, target)), rel=tolerance, abs=tolerance
    )
