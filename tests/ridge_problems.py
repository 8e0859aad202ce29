"""What several tests of ridge regressions start from."""

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(T=160, F=40, V=30, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((T, F)).astype(np.float32)
    Y = (
        X @ rng.standard_normal((F, V)) * np.linspace(0, 0.4, V) + rng.standard_normal((T, V))
    ).astype(np.float32)
    return X - X.mean(0), Y - Y.mean(0), np.repeat(np.arange(4), T // 4)
