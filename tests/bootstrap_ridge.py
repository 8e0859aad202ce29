"""The bootstrap ridge of papers A and B, written from its formulas and as they run it: float64, one
singular value decomposition a draw, one product a penalty.

Reference for tests/test_ridge.py and tests/bench/ridge.py. `alpha` is the square root of the
penalty; responses and features are z-scored; no intercept."""

import numpy as np


def scores(X, Y, alphas, train, held):
    """Signed root of R² = 1 - Var(residual) / ((1 + Var(y)) / 2) for every penalty, (A, V);
    singular values below 1e-10 are cut."""
    U, S, Vt = np.linalg.svd(X[train], full_matrices=False)
    keep = S > 1e-10
    U, S, Vt = U[:, keep], S[keep], Vt[keep]
    left, right = X[held] @ Vt.T, U.T @ Y[train]
    out = np.empty((len(alphas), Y.shape[1]))
    for i, alpha in enumerate(alphas):
        residual = Y[held] - (left * (S / (S**2 + alpha**2))) @ right
        share = 1 - residual.var(0) / ((1 + Y[held].var(0)) / 2)
        out[i] = np.sign(share) * np.sqrt(np.abs(share))
    return out


def weights(X, Y, alpha):
    "V diag(S / (S² + alpha²)) U' Y with one alpha a voxel, (F, V)."
    U, S, Vt = np.linalg.svd(X, full_matrices=False)
    right, out = U.T @ Y, np.empty((X.shape[1], Y.shape[1]))
    for a in np.unique(alpha):
        out[:, alpha == a] = (Vt.T * (S / (S**2 + a**2))) @ right[:, alpha == a]
    return out


def fit(X, Y, alphas, folds):
    "Chosen alpha (V,), mean score a penalty (A, V), weights (F, V)."
    mean = np.mean([scores(X, Y, alphas, train, held) for train, held in folds], axis=0)
    alpha = np.asarray(alphas)[mean.argmax(0)]
    return alpha, mean, weights(X, Y, alpha)
