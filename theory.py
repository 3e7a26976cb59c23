"""The analytic loss: what a symmetric autoencoder reaches, without training or sampling anything.

Row i of the pre-activation is W_ii x_i + ν_i + b_i, with the interference ν_i = Σ_{j≠i} W_ij x_j. If many W_ij of
similar size contribute, ν_i is nearly Gaussian, and then three numbers decide the loss of feature i:
    a = W_ii,   σ² = Var(x) Σ_{j≠i} W_ij²,   b = b_i + μ_i  with  μ_i = (p/2) Σ_{j≠i} W_ij   (the effective bias).
If they are the same for all i, they decide the loss of the whole model.

1. the loss of given a, b, σ      `relu_moments`, `symmetric_loss`
2. its minimum at ratio r         `optimum`
3. what to compare it with        `linear_loss`, `bayes_loss`, `oracle_loss`, `dropping_loss`
4. its limit at high sparsity     `critical_ratio`, `scaling_loss`
5. codes that are not symmetric   `digon_loss`, `priority_loss`, `priority_limit`, `envelope`
6. the same numbers of a given W  `feature_statistics`, `macroscopics`
7. descending on them             `gaussian_loss_and_gradients`
8. the loss without the Gaussian  `exact_loss`

Losses are per feature: E ‖x − f(x)‖² / n_sparse. r is n_dense/n_sparse and p the probability that a feature is on;
functions of p and r raise ValueError outside (0, 1]. Everything is float64. This file imports none of the others.
"""
import cmath
import math
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from numbers import Real
from typing import NamedTuple

import numpy as np
from numba import njit

_erfc = np.frompyfunc(math.erfc, 1, 1)


def normal_cdf(x):
    """Φ(x), the standard normal distribution function, elementwise."""
    return np.asarray(0.5 * _erfc(-np.asarray(x, float) / math.sqrt(2)), dtype=float)


def normal_density(x):
    """φ(x) = exp(−x²/2) / √(2π), elementwise."""
    return np.exp(-0.5 * np.square(x)) / math.sqrt(2 * math.pi)


def _integrate(f, edges, nodes=20):
    """∫ f by Gauss–Legendre quadrature on every interval between neighbouring `edges`; f takes an array."""
    x, weight = np.polynomial.legendre.leggauss(nodes)
    edges = np.unique(edges)
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    return float(np.sum(half * weight * f(middle + half * x)))


def _maximise(f, low, high, points, rounds):
    """The place in [low, high] where f is largest: look on a grid, then on a finer one around its best point.

    f takes an array; `points` must be enough to tell its local maxima apart.
    """
    for _ in range(rounds):
        x = np.linspace(low, high, points)
        best = int(np.argmax(f(x)))
        low, high = x[max(best - 1, 0)], x[min(best + 1, points - 1)]
    return float(x[best])


def _check(p, **others):
    for name, value in {"p": p, **others}.items():
        if not (isinstance(value, Real) and 1e-100 <= value <= 1):  # below, floats run out of digits
            raise ValueError(f"{name} must be a number in (0, 1] and no less than 1e-100, got {value!r}")


def _numbers(name, value, least=-math.inf):
    """`value` as float64; ValueError unless it is numbers, all finite and none below `least`."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or not np.isfinite(array).all() or (array < least).any():
        raise ValueError(f"{name} must be finite and real" + (f", {least:g} or larger" if least > -math.inf else "") + f", got {value!r}")
    return array.astype(float)


def _weights(model):
    """A model's encoder, decoder, both (n_sparse, n_dense), and bias, (n_sparse,), as they are; ValueError if it has none."""
    arrays = [getattr(model, name, None) for name in ("encoder", "decoder", "bias")]
    shapes = [np.shape(array) for array in arrays]
    if len(shapes[0]) != 2 or shapes[1] != shapes[0] or shapes[2] != shapes[0][:1]:
        raise ValueError("model must have an encoder and a decoder (n_sparse, n_dense) and a bias (n_sparse,), "
                         f"got a {type(model).__name__} with shapes {shapes}")
    return arrays


def variance(p):
    """Var x = p/3 − p²/4 of a feature x = c u, c ~ Bernoulli(p), u ~ Uniform[0, 1]."""
    _check(p)
    return p / 3 - p**2 / 4


# ------------------------------------------------------------------------- 1. the loss of given a, b, sigma


def _moments(mean, std):
    """R_k = E ReLU(mean + std z)^k for k = 0 … 3, with z ~ N(0, 1). R_k grows with the mean at the rate k R_{k−1}."""
    h = mean / np.maximum(std, 1e-100)
    cdf, density, square = normal_cdf(h), std * normal_density(h), std * std
    return (cdf, mean * cdf + density, (mean**2 + square) * cdf + mean * density,
            (mean**3 + 3 * mean * square) * cdf + (mean**2 + 2 * square) * density)


def relu_moments(mean, std):
    """First and second moment of ReLU(y) for Gaussian y (elementwise for arrays): with h = mean/std,

        E ReLU(y) = mean Φ(h) + std φ(h),      E ReLU(y)² = (mean² + std²) Φ(h) + mean std φ(h).

    Raises ValueError for a negative std or numbers that are not finite; std = 0 means y = mean.
    """
    _, first, second, _ = _moments(_numbers("mean", mean), _numbers("std", std, 0))
    return (first, second) if np.ndim(first) else (float(first), float(second))


def symmetric_loss(a, b, sigma, p):
    """The loss of a feature with diagonal a, effective bias b and Gaussian interference of deviation sigma:

        L = (1 − p) E ReLU(b + σz)² + p ∫₀¹ E (u − ReLU(a u + b + σz))² du,      z ~ N(0, 1).

    Raises ValueError if p is outside (0, 1], sigma negative or a number not finite.
    """
    _check(p)
    a, b, sigma = (_numbers(name, value, least) for name, value, least in (
        ("a", a, -math.inf), ("b", b, -math.inf), ("sigma", sigma, 0)))
    if a.ndim or b.ndim or sigma.ndim:
        raise ValueError(f"a, b and sigma must be single numbers, got shapes {a.shape}, {b.shape} and {sigma.shape}")
    a, b, sigma = float(a), float(b), float(sigma)

    def when_on(u):
        first, second = relu_moments(a * u + b, sigma)
        return u**2 - 2 * u * first + second

    # The integrand bends only where a u + b is within a few σ of 0; intervals of one σ resolve it.
    bend = (sigma * np.arange(-9, 10) - b) / a if a else np.empty(0)
    edges = np.clip(np.concatenate([bend, [0, 1]]), 0, 1)
    return (1 - p) * relu_moments(b, sigma)[1] + p * _integrate(when_on, edges)


# --------------------------------------------------------------------------------- 2. its minimum at ratio r


class Optimum(NamedTuple):
    """The best symmetric model: its loss, diagonal a, effective bias b, and deviation σ of the interference."""
    loss: float
    a: float
    b: float
    sigma: float


def noise_per_signal(r, p):
    """s = σ/a at its least: s² = (1/r − 1) Var x.

    A diagonal of a everywhere makes the trace n_sparse a; the rank n_dense then forces ‖W‖² ≥ n_sparse a²/r, with
    equality for a scaled projector W = (a/r) P.
    """
    _check(p, r=r)
    return math.sqrt((1 / r - 1) * variance(p))


def optimum(r, p):
    """The minimum of `symmetric_loss` over a and b, with the least interference that n_dense = r n_sparse allows.

    Write b = −a t and σ = a s. The output a ReLU(x + s z − t) is linear in a, so L = p/3 − 2 a A(t) + a² B(t) with
    A = p E[u ReLU(u + sz − t)] and B = E ReLU(x + sz − t)². Hence a = A/B, L = p/3 − A²/B, and t is left to
    search. With R_k(m) = E ReLU(m + sz)^k, R_k' = k R_{k−1} gives both integrals over u in closed form:
        A = p { R₂(1−t)/2 − [R₃(1−t) − R₃(−t)]/6 },      B = (1 − p) R₂(−t) + (p/3) [R₃(1−t) − R₃(−t)].
    Returns an Optimum; r = 1 gives loss 0.
    """
    s = noise_per_signal(r, p)
    if s == 0:
        return Optimum(0.0, 1.0, 0.0, 0.0)

    def signal_and_power(t):
        (_, _, second_on, third_on), (_, _, second_off, third_off) = _moments(1 - t, s), _moments(-t, s)
        rise = third_on - third_off
        return p * (second_on / 2 - rise / 6), (1 - p) * second_off + p / 3 * rise

    def removed(v):
        signal, power = signal_and_power(s * np.sinh(v))
        return signal**2 / power

    # t/s = sinh v runs from well below the value that an unclipped, linear model takes to well above √(2 ln 1/p),
    # where noise exceeds the threshold more rarely than features are on.
    linear, rare = -p / 2 * (1 / r - 1) / s, math.sqrt(-2 * math.log(p))
    t = s * math.sinh(_maximise(removed, math.asinh(2 * linear - 10), math.asinh(rare + 8), points=400, rounds=4))
    signal, power = (float(value) for value in signal_and_power(t))
    a = signal / power
    return Optimum(max(p / 3 - signal * a, 0.0), a, -a * t, a * s)


# ------------------------------------------------------------------------------- 3. what to compare it with


def linear_loss(r, p):
    """The best linear model with a bias: it keeps r n_sparse directions and loses the rest, Var(x) (1 − r)."""
    _check(p, r=r)
    return variance(p) * (1 - r)


def _posterior_mass(y, s):
    """f₁(y), the density of y = u + s z, and m₁(y) = E[u | y] f₁(y)."""
    f1 = np.where(y < 0.5, normal_cdf(y / s) - normal_cdf((y - 1) / s), normal_cdf((1 - y) / s) - normal_cdf(-y / s))
    return f1, y * f1 + s * (normal_density(y / s) - normal_density((y - 1) / s))


def _integrate_over_signal(f, s, p):
    """∫ f(y) dy over all y = c u + s z, in intervals of s around 0 and 1, where densities and posterior bend."""
    reach = 10 + math.ceil(math.sqrt(-2 * math.log(p)))
    steps = s * np.arange(-reach, reach + 1)
    return _integrate(f, np.concatenate([steps, 1 + steps]))


def bayes_loss(r, p):
    """The best that any elementwise activation could do on the optimum's pre-activation y = c u + s z.

    That is to answer the posterior mean:  L = p/3 − ∫ (p m₁)² / ((1−p) f₀ + p f₁) dy,  with the densities f₀ of y
    given c = 0 and f₁ given c = 1, and m₁ = E[u | y, c = 1] f₁.
    """
    s = noise_per_signal(r, p)
    if s == 0:
        return 0.0

    def removed(y):
        f1, m1 = _posterior_mass(y, s)
        return (p * m1)**2 / np.maximum((1 - p) * normal_density(y / s) / s + p * f1, 1e-300)

    return p / 3 - _integrate_over_signal(removed, s, p)


def oracle_loss(r, p):
    """The best function of y_i and of whether feature i is on, as if an oracle had told: the oracle filter.

    L = p/3 − p ∫ m₁²/f₁ dy, with m₁ and f₁ as in `bayes_loss`. No gate, threshold or top-k choice that is followed by
    a function of y_i alone does better, as far as it knows no more about u_i than y_i does.
    """
    s = noise_per_signal(r, p)
    if s == 0:
        return 0.0

    def removed(y):
        f1, m1 = _posterior_mass(y, s)
        return m1 * np.clip(m1 / np.maximum(f1, 1e-300), 0, 1)

    return p / 3 - p * _integrate_over_signal(removed, s, p)


def tangent_ratio(p):
    """r*, where the straight line from (0, Var x) touches L*(r): there (Var x − L*(r))/r is largest.

    Below r*, L* lies above that line: a model that drops features and treats the others at ratio r* wins. As p → 0,
    r* → 1.95 r_c.
    """
    _check(p)
    return _tangent_ratio(float(p))


@lru_cache(1000)
def _tangent_ratio(p):
    def gain(log_ratio):
        return np.array([(variance(p) - optimum(r, p).loss) / r for r in np.minimum(np.exp(log_ratio), 1.0)])

    return math.exp(_maximise(gain, math.log(max(p / 30, 2e-100)), 0.0, points=40, rounds=4))


def kept_fraction(r, p):
    """The fraction q of features to keep, at ratio r/q, so that q L*(r/q) + (1 − q) Var x is least: r/r*, at most 1."""
    _check(p, r=r)
    return min(1.0, r / tangent_ratio(p))


def dropping_loss(r, p):
    """Keep the best fraction q of the features and answer p/2 for the others: the lower envelope of L*(r) and of the
    straight lines from it to the point (0, Var x)."""
    kept = kept_fraction(r, p)
    return kept * optimum(min(r / kept, 1.0), p).loss + (1 - kept) * variance(p)


# --------------------------------------------------------------------------- 4. its limit at high sparsity


def critical_ratio(p):
    """r_c = (2/3) p ln(1/p): as p → 0, a symmetric model with r below r_c removes none of the variance."""
    _check(p)
    return 2 / 3 * p * math.log(1 / p)


def scaling_loss(r, p):
    """The limit p → 0 at fixed r/r_c:  L = Var(x) (3/4 t² + 1/4 t³) with t² = r_c/r for r > r_c, else Var(x)."""
    _check(p, r=r)
    t = math.sqrt(min(critical_ratio(p) / r, 1.0))
    return variance(p) * (0.75 * t**2 + 0.25 * t**3)


# ----------------------------------------------------------------------- 5. codes that are not symmetric


def digon_loss(p, c=1.0):
    """Pairs of features on one hidden unit, r = 1/2, W = [[1, −c], [−1/c, 1]], b = 0, with 0 < c ≤ 1.

    Only if both are on, at u and v, is something lost: min(u, c v) of one, min(v, u/c) of the other. The mean squares add
    up to c²/3 − c³/6 + 1/3 − c/6, so that the even digon, c = 1, loses p²/6, and the best one, c = 1/3, 25/27 of that.
    """
    _check(p, c=c)
    return p**2 / 2 * (c**2 / 3 - c**3 / 6 + 1 / 3 - c / 6)


def priority_loss(r, p, closed=False):
    """The loss of forge.priority_code at infinite separation, for even n_dense (or, in the limit, any).

    In a block of n features on two hidden units, feature i = 0 … n − 1 is lost if one of its i − 1 louder features
    0 … i − 2 is on, else exact: L = (p/3) mean_i [1 − (1−p)^max(i−1, 0)]. In a closed block (n > 3) the last feature has
    n − 3 of them instead of n − 2. If 2/r is not whole, the blocks' sizes are the whole numbers around it. An odd n_dense
    leaves a hidden unit for a digon.
    """
    _check(p, r=r)

    def silenced(k):  # by one of k features
        return -math.expm1(k * math.log1p(-p)) if p < 1 else float(k > 0)

    def lost(n):  # Σ_{k=1}^{n−2} silenced(k), of which small x = p (n − 1) would leave no digits
        x = p * (n - 1)
        return n - 1 - silenced(n - 1) / p if x > 1e-4 else x * (n - 2) / 2 * (1 - p * (n - 3) / 3)

    def block(n):
        return lost(n - 1) + silenced(n - 3) if closed and n > 3 else lost(n)

    small, larger = divmod(2 / r, 1)
    return p / 3 * r / 2 * ((1 - larger) * block(small) + larger * block(small + 1))


def priority_limit(r, p):
    """The limit of priority_loss as p → 0 at fixed κ = r/p:  Var(x) [1 − (κ/2)(1 − e^{−2/κ})]. It knows no ln(1/p)."""
    _check(p, r=r)
    return variance(p) * (1 + r / p / 2 * math.expm1(-2 * p / r))


def envelope(r, codes):
    """The least loss at ratio r of a mixture of two codes over parts of the features; `codes`: {name: (ratio, loss)}.

    A fraction f of the features at ratio r₀ and the others at r₁ make r = f r₀ + (1−f) r₁ and lose f L₀ + (1−f) L₁: the
    lower convex envelope. Returns the loss and the names by falling share. ValueError if no two codes enclose r.
    """
    if not isinstance(codes, dict) or not all(np.shape(code) == (2,) for code in codes.values()):
        raise ValueError(f"codes must be a dictionary of (ratio, loss), got {codes!r}")
    if np.ndim(r):
        raise ValueError(f"r must be a single number, got {r!r}")
    names, (ratios, losses) = list(codes), np.array(list(codes.values()), float).reshape(-1, 2).T
    r, low, high = float(_numbers("r", r)), ratios[:, None], ratios[None, :]
    share = np.where(low < high, (high - r) / np.where(low < high, high - low, 1), 1.0)      # of the first code, and
    mixed = np.where((low <= r) & (r <= high), share * losses[:, None] + (1 - share) * losses, math.inf)  # every second
    if not np.isfinite(mixed).any():
        raise ValueError(f"r must be within the ratios of the codes, {sorted(ratios)}, got {r!r}")
    first, second = np.unravel_index(np.argmin(mixed), mixed.shape)
    parts = sorted([(share[first, second], first), (1 - share[first, second], second)], reverse=True)
    return float(mixed[first, second]), tuple(names[k] for part, k in parts if part > 1e-9)


# --------------------------------------------------------------------- 6. the same numbers of a given W


AT_ONCE = 2**22  # entries of W that are looked at together


class Statistics(NamedTuple):
    """The large-scale numbers, of each feature or, from `macroscopics`, as pairs (mean, spread)."""
    a: np.ndarray               # W_ii
    bias: np.ndarray            # b_i
    effective_bias: np.ndarray  # b_i + μ_i,  μ_i = (p/2) Σ_{j≠i} W_ij
    sigma: np.ndarray           # √(Var(x) Σ_{j≠i} W_ij²)
    lyapunov: np.ndarray        # Λ_i = Σ_{j≠i} |W_ij|³ / (Σ_{j≠i} W_ij²)^{3/2}; ν_i is nearly Gaussian if Λ_i ≪ √p
    skewness: np.ndarray        # of the W_ij, j ≠ i: negative if large interference mostly silences


def feature_statistics(model, p):
    """Statistics of each feature, arrays (n_sparse,), of a model with `.encoder`, `.decoder` and `.bias`.

    Λ and the skewness are 0 where nothing interferes. Raises ValueError for p outside (0, 1].
    """
    _check(p)
    encoder, decoder, bias = (_numbers("model", array) for array in _weights(model))
    n_sparse = len(bias)
    others = max(n_sparse - 1, 1)
    a = np.einsum("ij,ij->i", decoder, encoder)
    sums = np.empty((4, n_sparse))  # over j ≠ i of W_ij, W_ij², |W_ij|³ and of the cubed deviation from the mean
    block = max(1, AT_ONCE // n_sparse)
    for start in range(0, n_sparse, block):
        rows = np.arange(start, min(start + block, n_sparse))
        w = decoder[rows] @ encoder.T                                       # (block, n_sparse)
        w[np.arange(len(rows)), rows] = 0
        deviation = w - w.sum(axis=1, keepdims=True) / others
        deviation[np.arange(len(rows)), rows] = 0
        sums[:, rows] = w.sum(axis=1), np.sum(w**2, axis=1), np.sum(np.abs(w)**3, axis=1), np.sum(deviation**3, axis=1)
    total, squares, cubes, cubed_deviations = sums
    central = np.maximum(squares - total**2 / others, 0)  # Σ (W_ij − mean)²
    return Statistics(a, bias, bias + p / 2 * total, np.sqrt(variance(p) * squares),
                      np.divide(cubes, squares**1.5, out=np.zeros(n_sparse), where=squares > 0),
                      np.divide(math.sqrt(others) * cubed_deviations, central**1.5, out=np.zeros(n_sparse),
                                where=central > 1e-12 * squares))


def macroscopics(model, p):
    """Mean and spread (standard deviation) over features of each of the Statistics: the mean of W_ii is `.a[0]`."""
    return Statistics(*((float(values.mean()), float(values.std())) for values in feature_statistics(model, p)))


def distance_from_gaussian(values):
    """Kolmogorov–Smirnov distance of each column from the Gaussian of its own mean and deviation, (columns,).

    values: (samples, columns). Samples of a Gaussian have a distance of about 0.6/√samples.
    """
    values = np.sort(_numbers("values", values), axis=0)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"values must be of shape (samples, columns) with 2 samples or more, got {values.shape}")
    cdf = normal_cdf((values - values.mean(axis=0)) / values.std(axis=0))
    steps = np.arange(len(values) + 1)[:, None] / len(values)
    return np.maximum(cdf - steps[:-1], steps[1:] - cdf).max(axis=0)


# ------------------------------------------------------------------------------------ 7. descending on them


def _gaussian_terms(a, b, sigma, p):
    """symmetric_loss of each feature in closed form, and its derivatives by a, b and σ²; arrays (n_sparse,).

    With R_k(m) = E ReLU(m + σz)^k and D_k = [R_k(b+a) − R_k(b)]/a, integrating R_k' = k R_{k−1} over u gives
        S = ∫₀¹ u R₁(au+b) du = [R₂(b+a) − D₃/3]/(2a),      L = p/3 − 2p S + (1−p) R₂(b) + p D₃/3,
        ∂L/∂a = 2p S − 2p [R₁(b+a) − 2S]/a,                 ∂L/∂b = 2(1−p) R₁(b) + p D₂ − 2p [R₁(b+a) − D₂/2]/a,
    and as ∂R_k/∂σ² is half the second derivative by m,
        ∂L/∂σ² = (1−p) R₀(b) + p D₁ − p [R₀(b+a) − D₁]/a.
    An |a| below σ/1000 counts as σ/1000, to keep digits; so small a signal is drowned anyway.
    """
    a = np.copysign(np.maximum(np.abs(a), 1e-3 * sigma + 1e-12), a)
    on, off = _moments(b + a, sigma), _moments(b, sigma)
    d1, d2, d3 = ((above - below) / a for above, below in zip(on[1:], off[1:]))
    signal = (on[2] - d3 / 3) / (2 * a)
    return (p / 3 - 2 * p * signal + (1 - p) * off[2] + p * d3 / 3,
            2 * p * signal - 2 * p * (on[1] - 2 * signal) / a,
            2 * (1 - p) * off[1] + p * d2 - 2 * p * (on[1] - d2 / 2) / a,
            (1 - p) * off[0] + p * d1 - p * (on[0] - d1) / a)


def gaussian_losses(a, b, sigma, p):
    """symmetric_loss of each feature, for arrays (n_sparse,) of a, effective bias b and sigma; ValueError as there."""
    _check(p)
    return _gaussian_terms(_numbers("a", a), _numbers("b", b), _numbers("sigma", sigma, 0), p)[0]


def gaussian_loss_and_gradients(model, p):
    """The mean of the features' symmetric losses as a function of the weights, and its gradients; no sample needed.

    With E the encoder, D the decoder, e = Σ_j E_j and the Gram matrix G = EᵀE (n_dense, n_dense),
        a_i = D_i·E_i,   σ_i² = Var(x) (D_i G D_iᵀ − a_i²),   b_i + μ_i = b_i + (p/2)(D_i·e − a_i).
    The chain rule back from α = ∂L/∂a, β = ∂L/∂b and γ = Var(x) ∂L/∂σ² of each feature, with H = Σ_i γ_i D_iᵀD_i:
        ∂L/∂D_i = (α_i − 2 γ_i a_i − β_i p/2) E_i + 2 γ_i D_i G + β_i (p/2) e,
        ∂L/∂E_i = (α_i − 2 γ_i a_i − β_i p/2) D_i + 2 E_i H + (p/2) Σ_k β_k D_k,      ∂L/∂b_i = β_i.
    Everything costs O(n_sparse n_dense²). model: `.encoder`, `.decoder` and `.bias`; the products are of their type.
    Returns (loss, gradients), with the gradients' `.encoder`, `.decoder` and `.bias`. ValueError for p outside (0, 1].
    """
    _check(p)
    encoder, decoder, bias = _weights(model)
    interfering = decoder @ (encoder.T @ encoder)                              # D G, (n_sparse, n_dense)
    everything = encoder.sum(axis=0)                                           # e
    a = np.einsum("ij,ij->i", decoder, encoder, dtype=float)
    squares = np.einsum("ij,ij->i", decoder, interfering, dtype=float) - a * a
    effective = bias + p / 2 * (decoder @ everything - a)
    loss, alpha, beta, gamma = _gaussian_terms(a, effective, np.sqrt(variance(p) * np.maximum(squares, 0)), p)
    alpha, beta, gamma = (slope / len(a) for slope in (alpha, beta, variance(p) * gamma))
    own, beta, gamma = (slope.astype(encoder.dtype)[:, None] for slope in (
        alpha - 2 * gamma * a - beta * p / 2, beta, gamma))
    return float(loss.mean()), Slopes(
        own * decoder + 2 * encoder @ ((gamma * decoder).T @ decoder) + p / 2 * (beta * decoder).sum(axis=0),
        own * encoder + 2 * gamma * interfering + p / 2 * beta * everything, beta[:, 0])


Slopes = namedtuple("Slopes", ("encoder", "decoder", "bias"))  # of the shapes of the parameters


# ------------------------------------------------------------------------------ 8. the loss without the Gaussian


FREQUENCIES = 2048  # points of the grid on which the characteristic function is inverted


@njit(nogil=True, error_model="numpy")
def _exact_feature_loss(a, b, w, p):
    """The loss of a feature with diagonal a, bias b and the other weights w; see `exact_losses`."""
    top, best, scale = math.inf, 0.0, max(1.0, abs(a))
    for x in w:
        scale = max(scale, x)
    for k in range(-80, 81):  # the bound [ln M(θ) + 25]/θ at its least
        theta, log_mgf = 2.0**(k / 2) / scale, 0.0
        for x in theta * w:
            log_mgf += math.log(1 - p + p * (math.expm1(x) / x if x else 1.0)) if x < 700 else math.inf
        bound = b + max(a, 0.0) + (log_mgf + 25) / theta
        if bound < top:
            top, best = bound, theta
    if top <= 0:
        return p / 3  # it never answers
    window = max(1.5 * top, 12.5 / best)
    shift, step = 12.5 / window, math.pi / window
    power, turn = np.exp((shift + 0j) * w), np.exp(1j * step * w)  # e^{sw}, and what takes it to the next s
    total = 0.0
    for k in range(FREQUENCIES):
        s = complex(shift, k * step)
        mgf = complex(1.0)
        for j in range(len(w)):
            mgf *= 1 - p + p * (power[j] - 1) / (s * w[j])
            power[j] *= turn[j]
        y, on, off = s * a, cmath.exp(s * (a + b)), cmath.exp(s * b)
        if abs(y) > 1e-3:
            g0 = (on - off) / y  # e^{sb} g₀(sa)
            g1 = (on - g0) / y
        else:
            g0, g1 = off * (1 + y / 2 + y**2 / 6), off * (0.5 + y / 3 + y**2 / 8)
        value = (mgf / s**2 * (((1 - p) * off + p * g0) / s - p * g1)).real
        total += value if k else value / 2
    return p / 3 + 2 / window * total


def exact_losses(model, p):
    """The loss of each feature, (n_sparse,), from the law of its own interference: no Gaussian, no sample.

    The moment generating function of ν = Σ_j w_j x_j is a product, M(s) = E e^{sν} = Π_j [1 − p + p (e^{s w_j} − 1)/(s w_j)],
    and on a line Re s > 0 Laplace's inversion gives E ReLU(m + ν)^k = k!/(2πi) ∫ e^{sm} M(s) s^{−k−1} ds. Averaged over x_i,
    with g₀(y) = ∫₀¹ e^{yu} du and g₁(y) = ∫₀¹ u e^{yu} du, the terms of (x_i − ReLU(a x_i + b + ν))² become
        L = p/3 + (1/π) ∫₀^∞ Re{ 2 M(s) e^{sb} [ (1 − p + p g₀(sa))/s³ − p g₁(sa)/s² ] } dτ,      s = c + iτ.
    The trapezoidal rule with steps of π/T sees ν through a window of width 2T. T is 1.5 times what a⁺ + b + ν exceeds with
    a probability of e⁻²⁵ at most (Chernoff: ν < [ln M(θ) + 25]/θ for any θ > 0), or 12.5/θ at the best θ if that is more;
    with c = 12.5/T what lies outside counts as little. Weights below 1e-6 act by their mean. The error is about 1e-9, or
    2e-8 T² where single values of ν have a probability of their own. model: `.encoder`, `.decoder`, `.bias`; cost
    O(n_sparse²) for each of FREQUENCIES points, shared by threads. Raises ValueError for p outside (0, 1].
    """
    _check(p)
    encoder, decoder, bias = (_numbers("model", array) for array in _weights(model))
    p = float(p)

    def loss(i):
        w = decoder[i] @ encoder.T
        if not np.abs(w).max() < 1e100:
            raise ValueError(f"model must have W_ij below 1e100, got {np.abs(w).max():g}")
        a, w[i] = w[i], 0.0
        small = np.abs(w) < 1e-6
        return _exact_feature_loss(a, bias[i] + p / 2 * w[small].sum(), w[~small], p)

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(loss, range(len(bias)))))


def exact_loss(model, p):
    """The mean over features of `exact_losses`: what an endless sample would find."""
    return float(exact_losses(model, p).mean())
