"""The analytic loss: what a symmetric autoencoder reaches, found without training or sampling.

Output i of the autoencoder is ReLU(W_ii x_i + ν_i + bias_i). The second term is the *interference*

    ν_i = Σ_{j≠i} W_ij x_j,

what the other features leak into output i. x_i itself is left out of it, so x_i and ν_i are
independent, and the loss of feature i depends on W only through W_ii and the law of ν_i.

If many W_ij of similar size contribute, ν_i is nearly Gaussian. A Gaussian has a mean and a
deviation and nothing else, so three numbers are left of the whole row:

    a = W_ii        σ² = Var(ν_i) = Var(x) Σ_{j≠i} W_ij²        b = bias_i + μ_i,  μ_i = E ν_i

The mean μ_i = (p/2) Σ_{j≠i} W_ij is a constant, and so is the bias. The output sees only their sum
b, the *effective bias*. If all features have the same a, b and σ, W is called symmetric, and the
loss of one feature is the loss of the model.

1. The numbers of a given W      `feature_statistics`, `macroscopics`
2. The loss of given a, b, σ     `symmetric_loss`, in closed form
3. Its minimum at ratio r        `optimum`: here the rank of W enters
4. Dropping features             `tangent_ratio`, `kept_fraction`, `dropping_loss`
5. What to compare it with       `linear_loss`, `bayes_loss`, `oracle_loss`
6. The limit of high sparsity    `critical_ratio`, `scaling_loss`
7. Tools                         normal distribution, search, checks

Two things are easily overlooked. First, the optimum is the least loss of a symmetric W with
*Gaussian* interference. A network whose interference is not Gaussian can be better, and trained
ones are.

Second, it is reached not by one matrix but by many: every scaled projector with an equal diagonal
has the same a and σ. The Persian rug is one of them, and a random projector is nearly one. A
trained W is another: still very nearly a scaled projector, but with a few strongly negative entries
in each row. Three numbers cannot see those, and ReLU hides what they do.

Losses are per feature, E ‖x − f(x)‖² / n_sparse. r = n_dense/n_sparse, and p is the probability
that a feature is on. Functions of r and p raise ValueError outside (0, 1] and compute in float64.
`optimum` is exact to about 1e-16 p. Source: arXiv:2410.12101, derived anew. This file imports none
of the others.
"""
import functools
import math
from collections import namedtuple
from numbers import Real
from typing import NamedTuple

import numpy as np

# What help(theory) shows.
__all__ = """feature_statistics macroscopics relu_moments symmetric_loss optimum noise_per_signal
tangent_ratio kept_fraction dropping_loss linear_loss bayes_loss oracle_loss critical_ratio
scaling_loss variance""".split()


def of_ratio_and_p(function):
    """Let a function of r and p get them as floats, checked by `fraction`."""
    @functools.wraps(function)
    def checked(r, p):
        return function(fraction("r", r), fraction("p", p))
    return checked


def variance(p):
    """Var x = p/3 − p²/4 of a feature x = c u, c ~ Bernoulli(p), u ~ Uniform[0, 1].

    This is also the loss of a model that answers every feature with its mean, p/2.
    """
    p = fraction("p", p)
    return p / 3 - p**2 / 4


# ---------------------------------------------------------------- 1. The numbers of a given W

class FeatureStatistics(NamedTuple):
    """Numbers of each feature i, arrays (n_sparse,); sums are over j ≠ i."""

    a: np.ndarray               # W_ii
    bias: np.ndarray            # bias_i
    effective_bias: np.ndarray  # bias_i + (p/2) Σ W_ij
    sigma: np.ndarray           # deviation of ν_i, √(Var(x) Σ W_ij²)
    lyapunov: np.ndarray        # Λ_i = Σ |W_ij|³ / (Σ W_ij²)^{3/2}
    nu_skewness: np.ndarray     # of ν_i, E (ν_i − μ_i)³ / σ_i³


class Spread(NamedTuple):
    """A mean over features, and the standard deviation between features."""

    mean: float
    spread: float


# The FeatureStatistics of a whole model: a Spread of each.
Macroscopics = namedtuple("Macroscopics", FeatureStatistics._fields)

BLOCK_ENTRIES = 2**22  # entries of W that are in memory at once


def feature_statistics(model, p):
    """The FeatureStatistics of a model with `.encoder`, `.decoder` and `.bias`.

    How Gaussian is ν? Λ answers: if k features interfere equally strongly, and no others, it is
    1/√k. By Lyapunov's theorem ν is nearly Gaussian if Λ E|x − E x|³ / (Var x)^{3/2} is small. For
    small p the moments are about p/4 and p/3, so this is 1.3 Λ/√p: many features must interfere,
    and many of those must be on at a time.

    Which way does it lean? The third cumulant of a sum is the sum of the third cumulants, so
    E (ν_i − μ_i)³ = κ₃(x) Σ W_ij³, where κ₃(x) = E (x − E x)³ = (p/4)(1 − p)².

    Λ and the skewness are 0 where nothing interferes. Raises ValueError for p outside (0, 1] and
    for a model without these arrays.
    """
    p = fraction("p", p)
    encoder, decoder, bias = (reals("model", array) for array in weights_of(model))
    n_sparse = len(bias)
    a = np.einsum("ij,ij->i", decoder, encoder)

    # Sums over j ≠ i of W_ij, its square, its cube and its absolute cube, some rows at a time.
    total, squares, cubes, absolute_cubes = np.empty((4, n_sparse))
    block = max(1, BLOCK_ENTRIES // n_sparse)
    for start in range(0, n_sparse, block):
        rows = slice(start, min(start + block, n_sparse))
        w = decoder[rows] @ encoder.T  # (rows, n_sparse)
        np.fill_diagonal(w[:, rows], 0)
        total[rows] = w.sum(axis=1)
        squares[rows] = (w**2).sum(axis=1)
        cubes[rows] = (w**3).sum(axis=1)
        absolute_cubes[rows] = (np.abs(w)**3).sum(axis=1)

    safe_squares = np.maximum(squares, 1e-200)  # where nothing interferes, 0/safe_squares is 0
    x_skewness = p / 4 * (1 - p)**2 / variance(p)**1.5
    return FeatureStatistics(
        a=a,
        bias=bias,
        effective_bias=bias + p / 2 * total,
        sigma=np.sqrt(variance(p) * squares),
        lyapunov=absolute_cubes / safe_squares**1.5,
        nu_skewness=x_skewness * cubes / safe_squares**1.5)


def macroscopics(model, p):
    """The Macroscopics of a model: the mean of its W_ii is `.a.mean`."""
    numbers = feature_statistics(model, p)
    return Macroscopics(*(Spread(float(x.mean()), float(x.std())) for x in numbers))


# --------------------------------------------------------------- 2. The loss of given a, b, sigma

def moments(mean, std):
    """R_0 … R_3 of ReLU(y), y Gaussian: R_k = E y^k [y > 0]. Elementwise; std may be 0.

    With h = mean/std, Φ the normal distribution and φ its density,

        R_0 = Φ(h)
        R_1 = mean R_0 + std φ(h)
        R_2 = mean R_1 + std² R_0
        R_3 = mean R_2 + 2 std² R_1

    The last two follow by parts, from y = mean + std z and φ' = −z φ. Their use: the derivative of
    R_k by the mean is k R_{k−1}, so that integrals over the mean are again such moments.
    """
    h = mean / np.maximum(std, 1e-100)
    zeroth = normal_cdf(h)
    first = mean * zeroth + std * normal_density(h)
    second = mean * first + std**2 * zeroth
    third = mean * second + 2 * std**2 * first
    return zeroth, first, second, third


def relu_moments(mean, std):
    """E ReLU(y) and E ReLU(y)² for Gaussian y, elementwise; std = 0 means y = mean.

    Raises ValueError for a negative std and for numbers that are not finite.
    """
    _, first, second, _ = moments(reals("mean", mean), reals("std", std, 0))
    return first[()], second[()]


def symmetric_loss(a, b, sigma, p):
    """The loss of a feature with diagonal a, effective bias b, interference of deviation sigma:

        L = (1 − p) E ReLU(b + σz)² + p ∫₀¹ E (u − ReLU(au + b + σz))² du,      z ~ N(0, 1).

    The first term is a feature that is off and answered all the same, the second one that is on
    with value u. Expanding the squares leaves p/3 − 2 A + B, in the terms of `signal_and_power`.

    Elementwise. Raises ValueError for p outside (0, 1], a negative sigma or numbers not finite.
    """
    p = fraction("p", p)
    a, b, sigma = np.broadcast_arrays(reals("a", a), reals("b", b), reals("sigma", sigma, 0))
    signal, power = signal_and_power(a, b, sigma, p)
    return p / 3 - 2 * signal + power


NODES, WEIGHTS = np.polynomial.legendre.leggauss(20)  # ∫₋₁¹ f(x) dx = Σ WEIGHTS · f(NODES)


def signal_and_power(a, b, sigma, p):
    """A = E[x f] and B = E f² for the output f = ReLU(a x + b + σz), for arrays of one shape.

    Averaged over z these are integrals of the moments R_k over the value u of the feature:

        A = p ∫₀¹ u R_1(au + b) du,      B = (1 − p) R_2(b) + p ∫₀¹ R_2(au + b) du.

    As R_k' = k R_{k−1}, the second integral is a difference, and the first follows by parts:

        ∫ R_2(au + b) du = [R_3(a + b) − R_3(b)] / 3a
        ∫ u R_1(au + b) du = [R_2(a + b) − ∫ R_2(au + b) du] / 2a

    The differences cancel to nothing if a is small beside b or σ. But R_k(m) only bends where m is
    within a few σ of 0. If au + b runs through less than σ/2, or stays 10σ away from 0, 20 nodes of
    Gauss and Legendre integrate it to all digits.
    """
    _, _, second_on, third_on = moments(a + b, sigma)
    _, _, second_off, third_off = moments(b, sigma)
    no_bend = (np.abs(a) <= sigma / 2) | (np.abs(b) > np.abs(a) + 10 * sigma)
    divisor = np.where(no_bend, 1, a)
    power_on = np.asarray((third_on - third_off) / (3 * divisor))
    overlap = np.asarray((second_on - power_on) / (2 * divisor))

    if no_bend.any():
        u = (1 + NODES) / 2
        mean = a[no_bend, None] * u + b[no_bend, None]  # (places, 20)
        _, first, second, _ = moments(mean, sigma[no_bend, None])
        power_on[no_bend] = second @ WEIGHTS / 2
        overlap[no_bend] = (u * first) @ WEIGHTS / 2
    return p * overlap, (1 - p) * second_off + p * power_on


# ---------------------------------------------------------------------- 3. Its minimum at ratio r

class Optimum(NamedTuple):
    """The least loss of a symmetric W with Gaussian interference, and its a, effective b and σ."""

    loss: float
    a: float
    b: float
    sigma: float


@of_ratio_and_p
def noise_per_signal(r, p):
    """s = σ/a at its least: s² = (1/r − 1) Var x. This is where the rank of W enters.

    A diagonal of a makes the trace n_sparse a. W has at most rank n_dense = r n_sparse. With P the
    projector onto the row space of W, W P = W and tr W = tr WP ≤ ‖W‖ ‖P‖ = ‖W‖ √n_dense (Cauchy and
    Schwarz, Frobenius norms). So ‖W‖² ≥ n_sparse a²/r, with equality if W is the scaled projector
    (a/r) P. Of that sum of squares the diagonal has n_sparse a². The rest, a² (1/r − 1) for each
    row on average, interferes.
    """
    return math.sqrt((1 / r - 1) * variance(p))


# For `optimum`. Its threshold t is searched in units of the noise s, on a grid.
LARGE_NOISE = 10      # s from which ReLU clips nothing: the best linear t/s is −15 or less there
GRID = 400            # points: enough to tell local maxima apart
ROUNDS = 4            # each round's grid is 200 times finer than the one before
MARGIN_BELOW = 10     # the lowest t/s is twice the best linear one, less this
MARGIN_ABOVE = 8      # the highest t/s is where noise is as rare as signals, plus this


@of_ratio_and_p
def optimum(r, p):
    """The Optimum of `symmetric_loss` over a > 0 and b, with the least σ = a s that r allows.

    (Less noise is better: the tests see the loss fall with s.) Write b = −a t: the bias, in
    units of the signal, becomes a threshold t. Then the output is a ReLU(x + s z − t), linear in a,
    so the loss is a parabola in a. With A(t) and B(t) the signal and the power for a = 1,

        L = p/3 − 2 a A(t) + a² B(t),

    least at a = A/B, where L = p/3 − A²/B. Only t is left to search. r = 1 gives loss 0.
    """
    s = noise_per_signal(r, p)
    if s == 0 or s > LARGE_NOISE:  # no noise or too much: in both cases the linear model is best
        return Optimum(linear_loss(r, p), r, p / 2 * (1 - r), r * s)

    def terms(t):
        return signal_and_power(np.ones_like(t), -t, np.full_like(t, s), p)

    def removed(v):
        signal, power = terms(s * np.sinh(v))
        return signal**2 / power

    # The best t lies between the linear model's, whose ReLU clips nothing, and s √(2 ln 1/p), where
    # noise exceeds the threshold as rarely as features are on. With t/s = sinh v the grid is dense
    # around 0 and reaches far.
    linear = -p / 2 * (1 / r - 1) / s
    rare = math.sqrt(-2 * math.log(p))
    low = math.asinh(2 * linear - MARGIN_BELOW)
    high = math.asinh(rare + MARGIN_ABOVE)
    t = s * math.sinh(maximise(removed, low, high, GRID, ROUNDS))

    signal, power = (float(value) for value in terms(np.array(t)))
    a = signal / power
    loss = max(p / 3 - signal * a, 0.0)
    return Optimum(loss, a, -a * t, a * s)


# -------------------------------------------------------------------------- 4. Dropping features

def tangent_ratio(p):
    """r*, the ratio below which dropping some features beats treating all alike.

    A dropped feature is answered by its mean and costs Var x. Let L*(r) be the loss of `optimum`.
    Keep a fraction q of the features; they then have the ratio r/q, and the loss is

        q L*(r/q) + (1 − q) Var x.

    Plotted over r, this is a point on the straight line from (0, Var x) to (r/q, L*(r/q)). The best
    of these lines is the steepest. It touches the curve L*, at the r* where (Var x − L*(r))/r is
    largest. For r < r* keep q = r/r*. As p → 0, r* → 1.95 r_c (see `critical_ratio`).
    """
    return _tangent_ratio(fraction("p", p))


@functools.lru_cache
def _tangent_ratio(p):
    def gain_per_ratio(log_ratios):
        ratios = np.minimum(np.exp(log_ratios), 1)
        return np.array([(variance(p) - optimum(r, p).loss) / r for r in ratios])

    lowest = max(p / 30, 2e-100)
    return math.exp(maximise(gain_per_ratio, math.log(lowest), 0.0, points=40, rounds=4))


@of_ratio_and_p
def kept_fraction(r, p):
    """The fraction of features that is best to keep: r/r*, at most 1."""
    return min(1.0, r / tangent_ratio(p))


@of_ratio_and_p
def dropping_loss(r, p):
    """The loss if `kept_fraction` of the features are kept: at most `optimum`'s."""
    kept = kept_fraction(r, p)
    loss = optimum(min(r / kept, 1.0), p).loss
    return kept * loss + (1 - kept) * variance(p)


# ------------------------------------------------------------------- 5. What to compare it with
#
# Here y = c u + s z is what the best W shows of a feature: its own value, and noise.

NO_DIGITS = 1e4  # s beyond which a signal of size 1 is lost in rounding, and the best is linear


@of_ratio_and_p
def linear_loss(r, p):
    """The best linear model with a bias, Var x (1 − r): it keeps n_dense directions of n_sparse."""
    return variance(p) * (1 - r)


def posterior_mass(y, s):
    """For y = u + s z, an array: its density f₁(y), and m₁(y) = E[u | y] f₁(y)."""
    nearer = np.minimum(y, 1 - y)  # f₁ is the same at y and 1 − y, and here its digits don't cancel
    f1 = normal_cdf(nearer / s) - normal_cdf((nearer - 1) / s)
    m1 = y * f1 + s * (normal_density(y / s) - normal_density((y - 1) / s))
    return f1, m1


def integrate_over_signal(f, s, p):
    """∫ f(y) dy over all y = c u + s z, for an f that takes an array.

    Gauss and Legendre's rule in intervals of s around 0 and 1, where f bends.
    """
    reach = 10 + math.ceil(math.sqrt(-2 * math.log(p)))
    steps = s * np.arange(-reach, reach + 1)
    edges = np.unique(np.concatenate([steps, 1 + steps]))
    half = np.diff(edges)[:, None] / 2
    middle = (edges[1:] + edges[:-1])[:, None] / 2
    return float(np.sum(half * WEIGHTS * f(middle + half * NODES)))


@of_ratio_and_p
def bayes_loss(r, p):
    """The best that any activation function can do with y = c u + s z.

    It answers the posterior mean E[x | y]. With f₀ the density of y if the feature is off, f₁ if it
    is on, and m₁ = E[u | y, on] f₁,

        L = p/3 − E (E[x | y])² = p/3 − ∫ (p m₁)² / ((1 − p) f₀ + p f₁) dy.
    """
    s = noise_per_signal(r, p)
    if s == 0 or s > NO_DIGITS:
        return linear_loss(r, p)

    def removed(y):
        f1, m1 = posterior_mass(y, s)
        f0 = normal_density(y / s) / s
        return (p * m1)**2 / np.maximum((1 - p) * f0 + p * f1, 1e-300)

    return p / 3 - integrate_over_signal(removed, s, p)


@of_ratio_and_p
def oracle_loss(r, p):
    """The oracle filter: the best function of y_i, if told whether feature i is on.

    L = p/3 − p ∫ m₁²/f₁ dy, with f₁ and m₁ as in `bayes_loss`. Decoders that first select features
    (gates, thresholds, top-k) and then look at y_i lose at least this much, as long as being
    selected tells nothing about x_i but that it is on. They are not told, so they lose more.
    """
    s = noise_per_signal(r, p)
    if s == 0 or s > NO_DIGITS:  # the best linear answer, if on: u has the variance 1/12
        return p / 12 * s**2 / (s**2 + 1 / 12)

    def removed(y):
        f1, m1 = posterior_mass(y, s)
        return m1 * np.clip(m1 / np.maximum(f1, 1e-300), 0, 1)

    return p / 3 - p * integrate_over_signal(removed, s, p)


# ---------------------------------------------------------------- 6. The limit of high sparsity

def critical_ratio(p):
    """r_c = (2/3) p ln(1/p): as p → 0, a symmetric model with r < r_c removes no variance."""
    p = fraction("p", p)
    return 2 / 3 * p * math.log(1 / p)


@of_ratio_and_p
def scaling_loss(r, p):
    """The limit of `optimum` as p → 0 at fixed r/r_c > 1: Var x (3/4 t² + 1/4 t³), t² = r_c/r.

    Nearly all features are off. To keep them silent the threshold must be where noise is as rare as
    features are: t = s √(2 ln 1/p), which is √(r_c/r) as s² → p/(3r). s → 0, so noise no longer
    blurs the features that are on, and they are heard if u > t:

        A = p ∫_t^1 u (u − t) du = (p/6) (1 − t)² (2 + t)
        B = p ∫_t^1 (u − t)² du  = (p/3) (1 − t)³
        A²/B                     = (p/12) (1 − t) (2 + t)²

    and L = p/3 − A²/B is the formula above. For r < r_c, t > 1: nothing is heard, and L = Var x.
    The limit is met slowly, as 1/ln(1/p) falls slowly.
    """
    t = math.sqrt(min(critical_ratio(p) / r, 1.0))
    return variance(p) * (0.75 * t**2 + 0.25 * t**3)


# -------------------------------------------------------------------------------------- 7. Tools

_erfc = np.frompyfunc(math.erfc, 1, 1)  # NumPy has none


def normal_cdf(x):
    """Φ(x), the standard normal distribution function, elementwise."""
    return np.asarray(0.5 * _erfc(-np.asarray(x) / math.sqrt(2)), dtype=float)


def normal_density(x):
    """φ(x) = exp(−x²/2) / √(2π), elementwise."""
    return np.exp(-0.5 * np.square(x)) / math.sqrt(2 * math.pi)


def maximise(f, low, high, points, rounds):
    """Where in [low, high] f is largest: on a grid, then on a finer one around its best point.

    f takes an array; `points` must be enough to tell its local maxima apart.
    """
    for _ in range(rounds):
        x = np.linspace(low, high, points)
        best = int(np.argmax(f(x)))
        low = x[max(best - 1, 0)]
        high = x[min(best + 1, points - 1)]
    return float(x[best])


def fraction(name, value):
    """`value` as a float, so that all computes in float64; ValueError unless it is in (0, 1].

    Below 1e-100 floats would run out of range.
    """
    single = isinstance(value, Real) or (isinstance(value, np.ndarray) and value.ndim == 0)
    if not (single and 1e-100 <= value <= 1):
        raise ValueError(f"{name} must be a number in (0, 1], at least 1e-100, got {value!r}")
    return float(value)


def reals(name, value, least=-math.inf):
    """`value` as float64; ValueError unless it is numbers, all finite and none below `least`."""
    array = np.asarray(value)
    numbers = array.dtype.kind in "fiu"
    if not numbers or not np.isfinite(array).all() or (array < least).any():
        bound = f" and at least {least:g}" if least > -math.inf else ""
        got = f"{array.dtype} {array.shape}" if array.ndim else repr(value)
        raise ValueError(f"{name} must be finite real numbers{bound}, got {got}")
    return array.astype(np.float64)


def weights_of(model):
    """A model's encoder and decoder, both (n_sparse, n_dense), and bias, (n_sparse,).

    Raises ValueError if it doesn't have them.
    """
    names = "encoder", "decoder", "bias"
    if not all(hasattr(model, name) for name in names):
        raise ValueError("model must have an encoder, a decoder and a bias; of a PersianRug take "
                         f".autoencoder(). Got a {type(model).__name__}")
    return [getattr(model, name) for name in names]
