"""The optimizers' formulas once more, slow and obvious, in NumPy and double precision."""

from collections.abc import Sequence
from statistics import NormalDist

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


def sparse_memory_efficient_adam(
    p: Array,
    gradients: Sequence[Array],
    drawn: Sequence[Sequence[int]],
    block_size: int,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    decay=1e-2,
    warmup=(1000, 0.1),
    fall=(10000, 0.1),
) -> Array:
    """AdamW on the blocks of a vector that each step draws, each with its own count of updates."""
    p = p.copy()
    m, v, count = np.zeros_like(p), np.zeros_like(p), np.zeros(-(-len(p) // block_size), dtype=int)
    for g, blocks in zip(gradients, drawn, strict=True):
        for b in blocks:
            count[b] += 1
            t = count[b]
            rate = lr * min(1, warmup[1] + (1 - warmup[1]) * t / warmup[0])
            if t > fall[0]:
                rate *= 1 - (1 - fall[1]) * min(1, (t - fall[0]) / fall[0])
            for i in range(b * block_size, min((b + 1) * block_size, len(p))):
                m[i] = betas[0] * m[i] + (1 - betas[0]) * g[i]
                v[i] = betas[1] * v[i] + (1 - betas[1]) * g[i] ** 2
                p[i] -= rate * decay * p[i]
                p[i] -= rate * np.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) * m[i] / (np.sqrt(v[i]) + eps)
    return p


def shampoo(
    p: Array,
    gradients: Sequence[Array],
    most: int,
    every: int,
    start: int,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    ridge=1e-6,
    decay=0.0,
) -> Array:
    """Blocked Shampoo for matrices: averaged statistics, roots now and then, the norm of Adam's step for each block."""
    p = p.copy()
    m, v = np.zeros_like(p), np.zeros_like(p)
    blocks = [np.s_[i : i + most, j : j + most] for i in range(0, p.shape[0], most) for j in range(0, p.shape[1], most)]
    left, right = [0.0] * len(blocks), [0.0] * len(blocks)
    left_root, right_root = [0.0] * len(blocks), [0.0] * len(blocks)

    def fourth_root(h: Array) -> Array:
        values, vectors = np.linalg.eigh(h)
        return vectors @ np.diag((values + ridge * values.max()) ** -0.25) @ vectors.T

    for t, g in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat = m / (1 - betas[0] ** t)
        adams = m_hat / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        p = p - lr * decay * p
        for b, block in enumerate(blocks):
            left[b] = betas[1] * left[b] + (1 - betas[1]) * g[block] @ g[block].T
            right[b] = betas[1] * right[b] + (1 - betas[1]) * g[block].T @ g[block]
            if t >= start and (t - start) % every == 0:
                left_root[b] = fourth_root(left[b] / (1 - betas[1] ** t))
                right_root[b] = fourth_root(right[b] / (1 - betas[1] ** t))
            step = adams[block]
            if t >= start:
                step = left_root[b] @ m_hat[block] @ right_root[b]
                step = step * np.linalg.norm(adams[block]) / np.linalg.norm(step)
            p[block] = p[block] - lr * step
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


class CameAMP:
    """Automagic_CameAMP for a group of tensors, element by element; `scales` and `context` make it the C-Optim one."""

    def __init__(self, tensors: Sequence[Array], scales=(), window=None, came=True, **settings: float) -> None:
        self.p = [p.copy() for p in tensors]
        self.scales, self.window, self.came = scales, window, came
        self.set = {"threshold": 0.95, "adaptation": 0.1, "decay": 5e-4, "W": 500, "eta": 2.0} | settings
        zeros = lambda: [np.zeros_like(p) for p in tensors]  # noqa: E731
        self.m, self.v, self.r, self.s = zeros(), zeros(), zeros(), zeros()
        self.slow = {k: zeros() for k in scales}
        self.sign = [np.zeros(p.shape, bool) for p in tensors]
        self.mask = [np.full(p.shape, self.set["lr"]) for p in tensors]
        self.peak, self.t = 1e-6, 0
        self.rows = [
            np.array([[1 / np.sqrt(np.sqrt(sum(x * x for x in row)) + self.set["eta"] ** -2)] for row in p])
            if p.ndim == 2
            else 1.0
            for p in tensors
        ]
        self.directions: list[Array] = []
        self.cosines: list[float] = []
        self.losses: list[float] = []
        self.multiplier, self.edge = 1.0, False

    def step(self, gradients: Sequence[Array], lr: float, loss: float | None = None) -> None:
        self.t += 1
        if self.window:
            self.watch(np.concatenate([g.reshape(-1) for g in gradients]), loss)
        every = np.concatenate([np.abs(g).reshape(-1) for g in gradients])
        self.rise, self.peak, self.lr = max(lr - self.peak, 0), max(lr, self.peak), lr
        for i, g in enumerate(gradients):
            self.one(i, g, every.sum(), every.mean(), every.std())

    def one(self, i: int, raw: Array, total: float, mean: float, std: float) -> None:
        t, W, p, m = self.t, self.set["W"], self.p[i], self.m[i]  # noqa: N806
        g = raw * (1 - np.abs(raw) / total)
        if self.came:
            self.v[i] = 0.99 * self.v[i] + 0.01 * (g**2 + 1e-30)
            h = g / np.sqrt(self.v[i])
            h = h / max(1, np.linalg.norm(h) / np.sqrt(h.size))
        else:
            h = np.clip(g, -(t**0.25), t**0.25)
        x = h
        for k in self.scales:
            if t % k == 0:
                self.slow[k][i] = 0.9 * self.slow[k][i] + 0.1 * h
        ticked = [k for k in self.scales if t >= k]
        if ticked:
            x = sum(self.slow[k][i] / (1 - 0.9 ** (t // k)) / k for k in ticked) / sum(1 / k for k in ticked)
        if t < W / 2:
            column = lambda y: y / np.maximum(np.sqrt((y**2).sum(0)), 1e-12)  # noqa: E731
            self.s[i] = 0.9 * self.s[i] + 0.1 * column(m) * column(x)
            m = expected = 0.9 * m + (1 + self.s[i]) / 2 * x
        else:
            beta = max(0.8 * 0.9995**t, 0.4)
            m = beta * m + (1 - beta) * x
            expected = 0.8 * m + 0.2 * x
        self.m[i] = m
        self.r[i] = 0.999 * self.r[i] + 0.001 * ((h - expected) ** 2 + 1e-16)
        u = m / np.sqrt(self.r[i])
        u = 0.9995**t * np.abs(u) * np.sign(g) + (1 - 0.9995**t) * u
        if t < W / 2:
            rest = u - (u * p).sum() / (p * p).sum() * p
            u = rest * np.linalg.norm(u) / np.linalg.norm(rest)
        if t < W:
            self.bump(i, raw)
        rate = self.mask[i] * self.rows[i] * self.lr / self.peak * self.multiplier
        if t < W / 2:
            p = p * (1 - rate * self.set["decay"] * 2 / (1 + np.exp(-4 * (np.abs(raw).mean() - mean) / std)))
        self.p[i] = p - rate * u

    def bump(self, i: int, g: Array) -> None:
        for place in np.ndindex(g.shape):
            same = (g[place] > 0) == self.sign[i][place]
            rate = self.mask[i][place] + self.rise + (self.set["bump"] if same else -self.set["bump"])
            self.mask[i][place] = min(max(rate, self.set["least"]), self.set["most"])
            self.sign[i][place] = g[place] > 0

    def watch(self, g: Array, loss: float | None) -> None:
        direction = g / np.linalg.norm(g)
        if self.directions:
            self.cosines = [*self.cosines, float(direction @ self.directions[-1])][-self.window :]
        self.directions.append(direction)
        self.losses = self.losses if loss is None else [*self.losses, loss][-self.window :]
        n, trouble = min(10, self.window // 2), []
        for history, sign in ((self.losses, 1), (self.cosines, -1)):
            if len(history) >= 2 * n:
                early, late = np.array(history[:-n]), np.array(history[-n:])
                error = early.std() * np.sqrt(1 / n + 1 / len(early)) + 1e-6 * abs(early).mean()
                trouble.append(sign * (late.mean() - early.mean()) / error)
        if trouble:
            z, border = sum(trouble) / np.sqrt(len(trouble)), NormalDist().inv_cdf(self.set["threshold"])
            self.edge = z > border
            recent = np.array(([0.0] * 10 + self.cosines)[-min(10, self.window) :])
            target = 0.5 + 0.3 * recent.mean() if self.edge else 1.2 if z < -border else 1.0
            self.multiplier += self.set["adaptation"] * (target - self.multiplier)


def custom_adamw(
    parameters: Sequence[Array],
    gradients: Sequence[Sequence[Array]],
    pairs: Sequence[tuple[int, int]] = (),
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    decay=1e-2,
    spd=0.1,
    adopt=True,
    grams=True,
    cautious=False,
    orthogonal=False,
    agr=True,
    tam=0.999,
    eta=21.0,
    curve=(1000, 0.7, 0.1),
) -> list[Array]:
    """Document 004's CustomAdamW over all parameters at once; `pairs` are the (A, B) places of LoRA factors.

    None in the place of a technique's number turns it off. Every A is read before any parameter moves.
    """
    now = [p.astype(float) for p in parameters]
    m, v = [0 * p for p in now], [0 * p for p in now]
    alignment = [0.0] * len(now)
    in_pairs = {place for pair in pairs for place in pair}
    for t, all_g in enumerate(gradients, start=1):
        last = list(now)
        for i, (p, loss_g) in enumerate(zip(last, all_g, strict=True)):
            g = loss_g
            if orthogonal:
                g = g - (p * g).sum() / (p * p).sum() * p
                g = g * np.linalg.norm(loss_g) / np.linalg.norm(g)
            if agr:
                g = g * (1 - np.abs(g) / np.abs(g).sum())
            damping = 1.0
            if tam is not None:
                lengths = np.linalg.norm(m[i]) * np.linalg.norm(g)
                alignment[i] = tam * alignment[i] + (1 - tam) * ((m[i] * g).sum() / lengths if lengths else 0)
                damping = 1e-8 + (1 + alignment[i]) / 2
            if adopt and t == 1:
                v[i] = g**2
                continue
            if adopt:
                c = (t - 1) ** 0.25
                m[i] = betas[0] * m[i] + (1 - betas[0]) * np.clip(damping * g / np.maximum(np.sqrt(v[i]), eps), -c, c)
                v[i] = betas[1] * v[i] + (1 - betas[1]) * g**2
                u = m[i]
            else:
                m[i] = betas[0] * m[i] + (1 - betas[0]) * damping * g
                v[i] = betas[1] * v[i] + (1 - betas[1]) * g**2
                u = m[i] / (1 - betas[0] ** t) / (np.sqrt(v[i] / (1 - betas[1] ** t)) + eps)
            if grams:
                u = np.sign(g) * np.abs(u)
            if cautious:
                u = u * (u * g > 0) * u.size / ((u * g > 0).sum() + 1)
            for a, b in pairs:
                if b == i and eta is not None:
                    rows = np.linalg.norm(p @ last[a], axis=1)
                    u = u / np.sqrt(rows + 1 / eta**2)[:, None]
            share = max(curve[2], curve[1] ** max(0, (t - curve[0]) / curve[0])) if curve and i in in_pairs else 1
            new = p - lr * decay * share * p - lr * u
            if spd is not None:
                anchor = 0 if i in in_pairs else parameters[i]
                far, was = np.linalg.norm(new - anchor), np.linalg.norm(p - anchor)
                if (loss_g * (p - anchor)).sum() > 0:
                    new = new - spd * np.clip((far - was) / far, 0, 1) * (new - anchor)
            now[i] = new
    return now
