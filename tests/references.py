"""The optimizers' formulas once more, slow and obvious, in NumPy and double precision."""

from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def adam(p: Array, gradients: Sequence[Array], lr: float, betas=(0.9, 0.999), eps=1e-8, l2=0.0, decay=0.0) -> Array:
    """Adam with L2 inside the gradient (`l2`), or AdamW's decoupled `decay`."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        g = g + l2 * p
        p = p - lr * decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        p = p - lr * m_hat / (np.sqrt(v_hat) + eps)
    return p


def adafactor(p: Array, gradients: Sequence[Array], eps=(1e-30, 1e-3), d=1.0) -> Array:
    """Algorithms 4 (matrices) and 5 (vectors) of the paper, with its relative step and scale."""
    rms = lambda x: np.sqrt(np.mean(x**2))  # noqa: E731
    if p.ndim == 2:
        row, column = np.zeros(p.shape[0]), np.zeros(p.shape[1])
    v = np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        alpha = max(eps[1], rms(p)) * min(1e-2, 1 / np.sqrt(t))
        beta2 = 1 - t**-0.8
        if p.ndim == 2:
            row = beta2 * row + (1 - beta2) * (g**2 + eps[0]).sum(1)
            column = beta2 * column + (1 - beta2) * (g**2 + eps[0]).sum(0)
            v = np.outer(row, column) / row.sum()
        else:
            v = beta2 * v + (1 - beta2) * (g**2 + eps[0])
        u = g / np.sqrt(v)
        p = p - alpha * u / max(1, rms(u) / d)
    return p


def sparse_adam(p: Array, touched: Sequence[tuple[Array, Array]], lr: float, betas=(0.9, 0.999), eps=1e-8) -> Array:
    """Adam on some rows at a time: (row numbers, their gradients) for each step."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    p = p.copy()
    for t, (rows, g) in enumerate(touched, start=1):
        m[rows] = betas[0] * m[rows] + (1 - betas[0]) * g
        v[rows] = betas[1] * v[rows] + (1 - betas[1]) * g**2
        step = lr * np.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
        p[rows] = p[rows] - step * m[rows] / (np.sqrt(v[rows]) + eps)
    return p
