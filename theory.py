"""The analytic loss: what a symmetric autoencoder reaches, without training or sampling anything.

Row i of the pre-activation is W_ii x_i + ν_i + b_i, with the interference ν_i = Σ_{j≠i} W_ij x_j. If many W_ij of
similar size contribute, ν_i is nearly Gaussian, and then three numbers decide the loss of feature i:
    a = W_ii,   σ² = Var(x) Σ_{j≠i} W_ij²,   b = b_i + μ_i  with  μ_i = (p/2) Σ_{j≠i} W_ij   (the effective bias).
If they are the same for all i, they decide the loss of the whole model.

1. the loss of given a, b, σ      `relu_moments`, `symmetric_loss`
2. its minimum at ratio r         `optimum`
3. what to compare it with        `linear_loss`, `bayes_loss`, `oracle_loss`, `dropping_loss`, `digon_loss`
4. its limit at high sparsity     `critical_ratio`, `scaling_loss`
5. the same numbers of a given W  `feature_statistics`, `macroscopics`

Losses are per feature: E ‖x − f(x)‖² / n_sparse. r is n_dense/n_sparse and p the probability that a feature is on;
functions of p and r raise ValueError outside (0, 1]. Everything is float64. This file imports none of the others.
"""
import math
from numbers import Real
from typing import NamedTuple

import numpy as np

_erfc = np.frompyfunc(math.erfc, 1, 1)


def normal_cdf(x):
    """Φ(x), the standard normal distribution function, elementwise."""
    return np.asarray(0.5 * _erfc(-np.asarray(x, float) / math.sqrt(2)), dtype=float)


def normal_density(x):
    """φ(x) = exp(−x²/2) / √(2π), elementwise."""
    return np.exp(-0.5 * np.square(x)) / math.sqrt(2 * math.pi)


def integrate(f, edges, nodes=20):
    """∫ f by Gauss–Legendre quadrature on every interval between neighbouring `edges`; f takes an array."""
    x, weight = np.polynomial.legendre.leggauss(nodes)
    edges = np.unique(edges)
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    return float(np.sum(half * weight * f(middle + half * x)))


def maximise(f, low, high, points, rounds):
    """The place in [low, high] where f is largest: look on a grid, then on a finer one around its best point.

    f takes an array; `points` must be enough to tell its local maxima apart.
    """
    for _ in range(rounds):
        x = np.linspace(low, high, points)
        best = int(np.argmax(f(x)))
        low, high = x[max(best - 1, 0)], x[min(best + 1, points - 1)]
    return float(x[best])


def _check(p, r=1.0):
    for name, value in (("p", p), ("r", r)):
        if not (isinstance(value, Real) and 1e-100 <= value <= 1):  # below, floats run out of digits
            raise ValueError(f"{name} must be a number in (0, 1] and no less than 1e-100, got {value!r}")


def variance(p):
    """Var x = p/3 − p²/4 of a feature x = c u, c ~ Bernoulli(p), u ~ Uniform[0, 1]."""
    _check(p)
    return p / 3 - p**2 / 4


# ------------------------------------------------------------------------- 1. the loss of given a, b, sigma


def relu_moments(mean, std):
    """First and second moment of ReLU(y) for Gaussian y (elementwise for arrays): with h = mean/std,

        E ReLU(y) = mean Φ(h) + std φ(h),      E ReLU(y)² = (mean² + std²) Φ(h) + mean std φ(h).

    Raises ValueError for a negative or NaN std; std = 0 means y = mean.
    """
    if not np.all(np.asarray(std) >= 0):
        raise ValueError(f"std must be 0 or larger, got {std}")
    h = mean / np.maximum(std, 1e-100)
    cdf, density = normal_cdf(h), normal_density(h)
    first = mean * cdf + std * density
    second = (mean * mean + std * std) * cdf + mean * std * density
    return (first, second) if np.ndim(first) else (float(first), float(second))


def symmetric_loss(a, b, sigma, p):
    """The loss of a feature with diagonal a, effective bias b and Gaussian interference of deviation sigma:

        L = (1 − p) E ReLU(b + σz)² + p ∫₀¹ E (u − ReLU(a u + b + σz))² du,      z ~ N(0, 1).

    Raises ValueError if p is outside (0, 1], sigma negative or a number not finite.
    """
    _check(p)
    for name, value in (("a", a), ("b", b), ("sigma", sigma)):
        if not (isinstance(value, Real) and math.isfinite(value)):
            raise ValueError(f"{name} must be a finite number, got {value!r}")

    def when_on(u):
        first, second = relu_moments(a * u + b, sigma)
        return u**2 - 2 * u * first + second

    # The integrand bends only where a u + b is within a few σ of 0; intervals of one σ resolve it.
    bend = (sigma * np.arange(-9, 10) - b) / a if a else np.empty(0)
    edges = np.clip(np.concatenate([bend, [0, 1]]), 0, 1)
    return (1 - p) * relu_moments(b, sigma)[1] + p * integrate(when_on, edges)


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
    _check(p, r)
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

    def moments(m):
        cdf, density = normal_cdf(m / s), s * normal_density(m / s)
        return (m**2 + s**2) * cdf + m * density, (m**3 + 3 * m * s**2) * cdf + (m**2 + 2 * s**2) * density

    def signal_and_power(t):
        (second_on, third_on), (second_off, third_off) = moments(1 - t), moments(-t)
        rise = third_on - third_off
        return p * (second_on / 2 - rise / 6), (1 - p) * second_off + p / 3 * rise

    def removed(v):
        signal, power = signal_and_power(s * np.sinh(v))
        return signal**2 / power

    # t/s = sinh v runs from well below the value that an unclipped, linear model takes to well above √(2 ln 1/p),
    # where noise exceeds the threshold more rarely than features are on.
    linear, rare = -p / 2 * (1 / r - 1) / s, math.sqrt(-2 * math.log(p))
    t = s * math.sinh(maximise(removed, math.asinh(2 * linear - 10), math.asinh(rare + 8), points=400, rounds=4))
    signal, power = (float(value) for value in signal_and_power(t))
    a = signal / power
    return Optimum(max(p / 3 - signal * a, 0.0), a, -a * t, a * s)


# ------------------------------------------------------------------------------- 3. what to compare it with


def linear_loss(r, p):
    """The best linear model with a bias: it keeps r n_sparse directions and loses the rest, Var(x) (1 − r)."""
    _check(p, r)
    return variance(p) * (1 - r)


def _posterior_mass(y, s):
    """f₁(y), the density of y = u + s z, and m₁(y) = E[u | y] f₁(y)."""
    f1 = np.where(y < 0.5, normal_cdf(y / s) - normal_cdf((y - 1) / s), normal_cdf((1 - y) / s) - normal_cdf(-y / s))
    return f1, y * f1 + s * (normal_density(y / s) - normal_density((y - 1) / s))


def _integrate_over_signal(f, s, p):
    """∫ f(y) dy over all y = c u + s z, in intervals of s around 0 and 1, where densities and posterior bend."""
    reach = 10 + math.ceil(math.sqrt(-2 * math.log(p)))
    steps = s * np.arange(-reach, reach + 1)
    return integrate(f, np.concatenate([steps, 1 + steps]))


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


def kept_fraction(r, p):
    """The fraction q of features to keep, at ratio r/q, so that q L*(r/q) + (1 − q) Var x is least.

    With ρ = r/q in [r, 1] that loss is Var x − r (Var x − L*(ρ))/ρ. The best ρ is r itself, q = 1, if r is large
    enough; below the tangent point of L*'s convex envelope, q < 1: there a model that drops features wins.
    """
    _check(p, r)

    def gain(log_ratio):
        return np.array([(variance(p) - optimum(min(ratio, 1.0), p).loss) / ratio for ratio in np.exp(log_ratio)])

    return min(1.0, r / math.exp(maximise(gain, math.log(r), 0.0, points=40, rounds=4)))


def dropping_loss(r, p):
    """Keep the best fraction q of the features and answer p/2 for the others: the lower envelope of L*(r) and of the
    straight lines from it to the point (0, Var x)."""
    kept = kept_fraction(r, p)
    return kept * optimum(min(r / kept, 1.0), p).loss + (1 - kept) * variance(p)


def digon_loss(p):
    """p²/6: pairs of features on one hidden unit in opposite directions, W = [[1, −1], [−1, 1]], b = 0, r = 1/2."""
    _check(p)
    return p**2 / 6


# --------------------------------------------------------------------------- 4. its limit at high sparsity


def critical_ratio(p):
    """r_c = (2/3) p ln(1/p): as p → 0, a symmetric model with r below r_c removes none of the variance."""
    _check(p)
    return 2 / 3 * p * math.log(1 / p)


def scaling_loss(r, p):
    """The limit p → 0 at fixed r/r_c:  L = Var(x) (3/4 t² + 1/4 t³) with t² = r_c/r for r > r_c, else Var(x)."""
    _check(p, r)
    t = math.sqrt(min(critical_ratio(p) / r, 1.0))
    return variance(p) * (0.75 * t**2 + 0.25 * t**3)


# --------------------------------------------------------------------- 5. the same numbers of a given W


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
    encoder, decoder, bias = (np.asarray(array, float) for array in (model.encoder, model.decoder, model.bias))
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
    values = np.sort(values, axis=0)
    cdf = normal_cdf((values - values.mean(axis=0)) / values.std(axis=0))
    steps = np.arange(len(values) + 1)[:, None] / len(values)
    return np.maximum(cdf - steps[:-1], steps[1:] - cdf).max(axis=0)
