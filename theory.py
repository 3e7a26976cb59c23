"""The analytic loss: what a symmetric autoencoder reaches, without training or sampling anything.

Row i of the pre-activation is W_ii x_i + ν_i + b_i, with the interference ν_i = Σ_{j≠i} W_ij x_j.
x_i is left out of ν_i, so the two are independent, and the loss of feature i depends on W only
through W_ii and the law of ν_i. If many W_ij of similar size contribute, ν_i is nearly Gaussian,
and then three numbers decide:

    a = W_ii,     σ² = Var(x) Σ_{j≠i} W_ij²,     b = b_i + μ_i  with  μ_i = (p/2) Σ_{j≠i} W_ij.

μ_i is the mean of ν_i, a constant like the bias b_i: only their sum, the effective bias b, matters.
If the three are the same for all i, they decide the loss of the whole model.

1. the loss of given a, b, σ      `relu_moments`, `symmetric_loss`
2. its minimum at ratio r         `optimum`
3. what to compare it with        `linear_loss`, `bayes_loss`, `oracle_loss`
4. its limit at high sparsity     `critical_ratio`, `scaling_loss`
5. the same numbers of a given W  `feature_statistics`, `macroscopics`
6. the tools                      normal distribution, quadrature, one-dimensional search, checks

Losses are per feature, E ‖x − f(x)‖² / n_sparse. r is n_dense/n_sparse and p the probability that
a feature is on; functions of p and r raise ValueError outside (0, 1]. Everything is float64; losses
are exact to about 1e-16 p. Source: arXiv:2410.12101, derived anew. Imports none of the others.
"""
import math
from numbers import Real
from typing import NamedTuple

import numpy as np

def variance(p):
    """Var x = p/3 − p²/4 of a feature x = c u, c ~ Bernoulli(p), u ~ Uniform[0, 1].

    rug.draw_rows draws this law of x; here its moments are in every integral over u.
    """
    require_fractions(p=p)
    return p / 3 - p**2 / 4

# ---------------------------------------------------------------- 1. the loss of given a, b, sigma
def moments(mean, std):
    """R_k = E ReLU(mean + std z)^k for k = 0 … 3 and z ~ N(0, 1), elementwise; R_k' = k R_{k−1}."""
    h = mean / np.maximum(std, 1e-100)
    cdf, density, square = normal_cdf(h), std * normal_density(h), std * std
    return (cdf,
            mean * cdf + density,
            (mean**2 + square) * cdf + mean * density,
            (mean**3 + 3 * mean * square) * cdf + (mean**2 + 2 * square) * density)

def relu_moments(mean, std):
    """First and second moment of ReLU(y) for Gaussian y, elementwise: with h = mean/std,

        E ReLU(y) = mean Φ(h) + std φ(h),
        E ReLU(y)² = (mean² + std²) Φ(h) + mean std φ(h).

    std = 0 means y = mean. Raises ValueError for a negative std or numbers that are not finite.
    """
    _, first, second, _ = moments(as_floats("mean", mean), as_floats("std", std, 0))
    return (first, second) if np.ndim(first) else (float(first), float(second))

def symmetric_loss(a, b, sigma, p):
    """The loss of a feature with diagonal a, effective bias b and interference of deviation sigma:

        L = (1 − p) E ReLU(b + σz)² + p ∫₀¹ E (u − ReLU(a u + b + σz))² du,      z ~ N(0, 1).

    Raises ValueError if p is outside (0, 1], sigma negative, or a number not single and finite.
    """
    require_fractions(p=p)
    numbers = as_floats("a", a), as_floats("b", b), as_floats("sigma", sigma, 0)
    for name, number in zip(("a", "b", "sigma"), numbers):
        if number.ndim:
            raise ValueError(f"{name} must be a single number, got shape {number.shape}")
    a, b, sigma = map(float, numbers)

    def when_on(u):
        first, second = relu_moments(a * u + b, sigma)
        return u**2 - 2 * u * first + second

    # The integrand bends only where a u + b is within a few σ of 0; intervals of one σ resolve it.
    bend = (sigma * np.arange(-9, 10) - b) / a if a else np.empty(0)
    edges = np.clip(np.concatenate([bend, [0, 1]]), 0, 1)
    return (1 - p) * relu_moments(b, sigma)[1] + p * integrate(when_on, edges)

# ----------------------------------------------------------------------- 2. its minimum at ratio r
class Optimum(NamedTuple):
    """The best symmetric model: its loss, diagonal a, effective bias b, and deviation σ of ν."""
    loss: float
    a: float
    b: float
    sigma: float

def noise_per_signal(r, p):
    """s = σ/a at its least: s² = (1/r − 1) Var x. Here the rank of W enters.

    A diagonal of a everywhere makes the trace n_sparse a. With Q the projector on the n_dense
    directions that W sees, tr W = tr W Q ≤ ‖W‖ ‖Q‖ = ‖W‖ √n_dense (Cauchy–Schwarz), so that
    ‖W‖² ≥ n_sparse a²/r, with equality for a scaled projector W = (a/r) P. Of it n_sparse a² is the
    diagonal's; the rest interferes, and L* falls with it.
    """
    require_fractions(p=p, r=r)
    return math.sqrt((1 / r - 1) * variance(p))

def optimum(r, p):
    """The Optimum of `symmetric_loss` over a and b, with the least interference that r allows.

    Write b = −a t and σ = a s. The output a ReLU(x + s z − t) is linear in a, so the loss is
        L = p/3 − 2 a A(t) + a² B(t),
        A = p E[u ReLU(u + s z − t)],      B = E ReLU(x + s z − t)².
    Hence a = A/B and L = p/3 − A²/B, and only t is left to search. With R_k(m) = E ReLU(m + s z)^k,
    R_k' = k R_{k−1} gives both integrals over u in closed form:
        A = p { R₂(1−t)/2 − [R₃(1−t) − R₃(−t)]/6 },
        B = (1 − p) R₂(−t) + (p/3) [R₃(1−t) − R₃(−t)].
    r = 1 gives loss 0.
    """
    s = noise_per_signal(r, p)
    if s == 0 or s > 10:  # in so much noise the linear answer is best, and A below has no digits
        return Optimum(linear_loss(r, p), r, p / 2 * (1 - r), r * s)

    def signal_and_power(t):
        _, _, second_on, third_on = moments(1 - t, s)
        _, _, second_off, third_off = moments(-t, s)
        rise = third_on - third_off
        return p * (second_on / 2 - rise / 6), (1 - p) * second_off + p / 3 * rise

    def removed(v):
        signal, power = signal_and_power(s * np.sinh(v))
        return signal**2 / power

    # t/s = sinh v runs from well below the value that an unclipped, linear model takes to well
    # above √(2 ln 1/p), where noise exceeds the threshold more rarely than features are on.
    linear, rare = -p / 2 * (1 / r - 1) / s, math.sqrt(-2 * math.log(p))
    low, high = math.asinh(2 * linear - 10), math.asinh(rare + 8)
    t = s * math.sinh(maximise(removed, low, high, points=400, rounds=4))
    signal, power = (float(value) for value in signal_and_power(t))
    a = signal / power
    return Optimum(max(p / 3 - signal * a, 0.0), a, -a * t, a * s)

# ---------------------------------------------------------------------- 3. what to compare it with
def linear_loss(r, p):
    """The best linear model with a bias: it loses all but r n_sparse directions, Var(x) (1 − r)."""
    require_fractions(p=p, r=r)
    return variance(p) * (1 - r)

def posterior_mass(y, s):
    """f₁(y), the density of y = u + s z, and m₁(y) = E[u | y] f₁(y); y is an array."""
    below = normal_cdf(y / s) - normal_cdf((y - 1) / s)
    above = normal_cdf((1 - y) / s) - normal_cdf(-y / s)  # the same, and exact where both Φ near 1
    f1 = np.where(y < 0.5, below, above)
    return f1, y * f1 + s * (normal_density(y / s) - normal_density((y - 1) / s))

def integrate_over_signal(f, s, p):
    """∫ f(y) dy over all y = c u + s z, in intervals of s around 0 and 1, where integrands bend."""
    reach = 10 + math.ceil(math.sqrt(-2 * math.log(p)))
    steps = s * np.arange(-reach, reach + 1)
    return integrate(f, np.concatenate([steps, 1 + steps]))

def bayes_loss(r, p):
    """The best that any elementwise activation can do on the pre-activation y = c u + s z.

    That is to answer the posterior mean: L = p/3 − ∫ (p m₁)² / ((1−p) f₀ + p f₁) dy, with the
    densities f₀ of y given c = 0 and f₁ given c = 1, and m₁ = E[u | y, c = 1] f₁.
    """
    s = noise_per_signal(r, p)
    if s == 0 or s > 1e6:  # in so much noise the best answer is linear, and f₁ has no digits left
        return linear_loss(r, p)

    def removed(y):
        f1, m1 = posterior_mass(y, s)
        return (p * m1)**2 / np.maximum((1 - p) * normal_density(y / s) / s + p * f1, 1e-300)

    return p / 3 - integrate_over_signal(removed, s, p)

def oracle_loss(r, p):
    """The oracle filter: the best function of y_i and of whether feature i is on, as if told.

    L = p/3 − p ∫ m₁²/f₁ dy, with m₁ and f₁ as in `bayes_loss`. A bound for gates, thresholds and
    top-k choices that are followed by a function of y_i alone; none of them attains it.
    """
    s = noise_per_signal(r, p)
    if s == 0 or s > 1e6:  # in so much noise only the mean of u is known, and f₁ has no digits left
        return p / 12 if s else 0.0

    def removed(y):
        f1, m1 = posterior_mass(y, s)
        return m1 * np.clip(m1 / np.maximum(f1, 1e-300), 0, 1)

    return p / 3 - p * integrate_over_signal(removed, s, p)

# -------------------------------------------------------------------- 4. its limit at high sparsity
def critical_ratio(p):
    """r_c = (2/3) p ln(1/p): as p → 0, a symmetric model with r < r_c removes no variance."""
    require_fractions(p=p)
    return 2 / 3 * p * math.log(1 / p)

def scaling_loss(r, p):
    """The limit p → 0 at fixed r/r_c: Var(x) (3/4 t² + 1/4 t³), t² = r_c/r, above r_c; else Var(x).

    To keep the many silent features silent, the threshold must be t = s √(2 ln(1/p)) → √(r_c/r).
    With s → 0, A = p ∫_t^1 u (u − t) du and B = p (1 − t)³/3, so L = p/3 − (p/12) (1 − t) (2 + t)².
    """
    require_fractions(p=p, r=r)
    t = math.sqrt(min(critical_ratio(p) / r, 1.0))
    return variance(p) * (0.75 * t**2 + 0.25 * t**3)

# ---------------------------------------------------------------- 5. the same numbers of a given W
BLOCK_ENTRIES = 2**22  # entries of W that are looked at together

class Statistics(NamedTuple):
    """The large-scale numbers, of each feature or, from `macroscopics`, as pairs (mean, spread)."""
    a: np.ndarray               # W_ii
    bias: np.ndarray            # b_i
    effective_bias: np.ndarray  # b_i + μ_i,  μ_i = (p/2) Σ_{j≠i} W_ij
    sigma: np.ndarray           # √(Var(x) Σ_{j≠i} W_ij²)
    lyapunov: np.ndarray        # Λ_i = Σ_{j≠i} |W_ij|³ / (Σ_{j≠i} W_ij²)^{3/2}; by Lyapunov's
    #                             theorem ν is nearly Gaussian if Λ E|x|³/(Var x)^{3/2}, ~ Λ/√p, ≪ 1
    skewness: np.ndarray        # of the W_ij, j ≠ i: negative if large interference mostly silences

def feature_statistics(model, p):
    """Statistics of each feature, arrays (n_sparse,); model: `.encoder`, `.decoder`, `.bias`.

    Λ and the skewness are 0 where nothing interferes. Raises ValueError for p outside (0, 1].
    """
    require_fractions(p=p)
    encoder, decoder, bias = (as_floats("model", array) for array in parameters(model))
    n_sparse = len(bias)
    others = max(n_sparse - 1, 1)
    a = np.einsum("ij,ij->i", decoder, encoder)
    total, squares, cubes, cubed_deviations = np.empty((4, n_sparse))  # sums over j ≠ i
    for start in range(0, n_sparse, max(1, BLOCK_ENTRIES // n_sparse)):
        rows = np.arange(start, min(start + max(1, BLOCK_ENTRIES // n_sparse), n_sparse))
        w = decoder[rows] @ encoder.T  # (rows, n_sparse)
        w[np.arange(len(rows)), rows] = 0
        total[rows], squares[rows] = w.sum(axis=1), np.sum(w**2, axis=1)
        cubes[rows] = np.sum(np.abs(w)**3, axis=1)
        deviation = w - w.sum(axis=1, keepdims=True) / others
        deviation[np.arange(len(rows)), rows] = 0
        cubed_deviations[rows] = np.sum(deviation**3, axis=1)
    central = np.maximum(squares - total**2 / others, 0)  # Σ (W_ij − mean)²
    lyapunov, skewness = np.zeros((2, n_sparse))
    np.divide(cubes, squares**1.5, out=lyapunov, where=squares > 0)
    np.divide(math.sqrt(others) * cubed_deviations, central**1.5, out=skewness,
              where=central > 1e-12 * squares)
    sigma = np.sqrt(variance(p) * squares)
    return Statistics(a, bias, bias + p / 2 * total, sigma, lyapunov, skewness)

def macroscopics(model, p):
    """(mean, spread) over features of each of the Statistics: the mean of W_ii is `.a[0]`."""
    numbers = feature_statistics(model, p)
    return Statistics(*((float(values.mean()), float(values.std())) for values in numbers))

# ------------------------------------------------------------------------------------- 6. the tools
_erfc = np.frompyfunc(math.erfc, 1, 1)

def normal_cdf(x):
    """Φ(x), the standard normal distribution function, elementwise."""
    return np.asarray(0.5 * _erfc(-np.asarray(x, float) / math.sqrt(2)), dtype=float)

def normal_density(x):
    """φ(x) = exp(−x²/2) / √(2π), elementwise."""
    return np.exp(-0.5 * np.square(x)) / math.sqrt(2 * math.pi)

def integrate(f, edges, nodes=20):
    """∫ f by Gauss–Legendre quadrature between each two neighbouring `edges`; f takes an array."""
    x, weight = np.polynomial.legendre.leggauss(nodes)
    edges = np.unique(edges)
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    return float(np.sum(half * weight * f(middle + half * x)))

def maximise(f, low, high, points, rounds):
    """The place in [low, high] where f is largest: on a grid, then on a finer one around its best.

    f takes an array; `points` must be enough to tell its local maxima apart.
    """
    for _ in range(rounds):
        x = np.linspace(low, high, points)
        best = int(np.argmax(f(x)))
        low, high = x[max(best - 1, 0)], x[min(best + 1, points - 1)]
    return float(x[best])

def require_fractions(**named):
    """ValueError unless each is a number in (0, 1]; below 1e-100 floats run out of digits."""
    for name, value in named.items():
        if not (isinstance(value, Real) and 1e-100 <= value <= 1):
            raise ValueError(f"{name} must be a number in (0, 1], at least 1e-100, got {value!r}")

def as_floats(name, value, least=-math.inf):
    """`value` as float64; ValueError unless it is numbers, all finite and none below `least`."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or not np.isfinite(array).all() or (array < least).any():
        bound = f", {least:g} or larger" if least > -math.inf else ""
        got = f"{array.dtype} of shape {array.shape}" if array.ndim else repr(value)
        raise ValueError(f"{name} must be finite and real{bound}, got {got}")
    return array.astype(float)

def parameters(model):
    """A model's encoder, decoder, both (n_sparse, n_dense), and bias (n_sparse,), as they are.

    Raises ValueError if it has none.
    """
    arrays = [getattr(model, name, None) for name in ("encoder", "decoder", "bias")]
    shapes = [np.shape(array) for array in arrays]
    if len(shapes[0]) != 2 or shapes[1] != shapes[0] or shapes[2] != shapes[0][:1]:
        raise ValueError("model must have an encoder and a decoder (n_sparse, n_dense) and a bias "
                         f"(n_sparse,), got a {type(model).__name__} with shapes {shapes}")
    return arrays
