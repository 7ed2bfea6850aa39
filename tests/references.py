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


def came(p: Array, gradients: Sequence[Array], lr=2e-4, betas=(0.9, 0.999, 0.9999), eps=(1e-30, 1e-16), d=1.0) -> Array:
    """Algorithm 2 of the paper; a vector keeps its second moment whole and has no confidence term."""
    outer = lambda x: np.outer(x.mean(1), x.mean(0)) / x.mean() if x.ndim == 2 else x  # noqa: E731
    m, v, s = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for g in gradients:
        v = betas[1] * v + (1 - betas[1]) * (g**2 + eps[0])
        u = g / np.sqrt(outer(v))
        u = u / max(1, np.sqrt(np.mean(u**2)) / d)
        m = betas[0] * m + (1 - betas[0]) * u
        s = betas[2] * s + (1 - betas[2]) * ((u - m) ** 2 + eps[1])
        p = p - lr * (m / np.sqrt(outer(s)) if p.ndim == 2 else m)
    return p


def lamb(
    p: Array,
    gradients: Sequence[Array],
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.01,
    phi=(0.0, np.inf),
    bias_correction=True,
    grad_averaging=True,
    adam_w_mode=True,
    always_adapt=True,
    trust_clip=False,
    max_grad_norm=np.inf,
) -> Array:
    """Algorithm 2 of the paper, for one tensor, with the variants by their names."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        g = g * min(1, max_grad_norm / np.linalg.norm(g))
        g = g if adam_w_mode else g + weight_decay * p
        m = betas[0] * m + (1 - betas[0] if grad_averaging else 1) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = (m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)) if bias_correction else (m, v)
        update = m_hat / (np.sqrt(v_hat) + eps) + (weight_decay * p if adam_w_mode else 0)
        ratio = np.clip(np.linalg.norm(p), *phi) / np.linalg.norm(update) if weight_decay or always_adapt else 1
        p = p - lr * (min(ratio, 1) if trust_clip else ratio) * update
    return p


def sophia(p: Array, gradients: Sequence[Array], estimates: dict[int, Array], lr, gamma, betas=(0.96, 0.99)) -> Array:
    """Algorithm 3 of the paper with decay 0.1; `estimates`: step, counted from 1 → ĥ before it."""
    m, h = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        if t in estimates:
            h = betas[1] * h + (1 - betas[1]) * estimates[t]
        p = p - lr * 0.1 * p
        p = p - lr * np.clip(m / np.maximum(gamma * h, 1e-12), -1, 1)
    return p
