"""Weights without training: the Persian rug, and a random projector to compare it with.

By `theory.optimum` the best symmetric W with Gaussian interference is a scaled projector, (a/r) P,
with the same diagonal a for all features. Many matrices are that. This file writes down three, two
exactly and one nearly, without training.

1. The transform           `walsh_hadamard`, products with Hadamard's matrix in O(n log n)
2. The Persian rug         `persian_rug`: all features exactly alike, and self-similar to look at
3. The paired rug          `paired_rug`: its rows are chosen, and it comes near trained weights
4. A random projector      `random_projector`: alike only on average, and nothing to look at

Uses rug.py for the models and theory.py for a and b, which only the paired rug gets from samples.
Source of the rug: arXiv:2410.12101.
"""
import math

import numpy as np

import rug
import theory


# -------------------------------------------------------------------------------- 1. The transform

def walsh_hadamard(x):
    """x H along the last axis, for Hadamard's matrix H_ki = (−1)^popcount(k & i).

    k & i has a bit where both k and i have one, and popcount counts these bits. So H_ki is a
    product with one factor for each bit of the index, and the sum over i can be done a bit at a
    time: log₂ n rounds of n additions instead of n² additions. H is symmetric, and H H is n times
    the identity.

    float32 stays float32; all else is transformed as float64. Returns a new array, shaped like x.
    ValueError unless the last axis is a power of two long.
    """
    x = np.asarray(x)
    rug.require(x.dtype.kind in "fiub", "x", x.dtype.name, "real numbers")
    n = x.shape[-1] if x.ndim else 0
    rug.require(n > 0 and n & (n - 1) == 0, "length of x's last axis", n, "a power of two")
    x = np.array(x, np.float32 if x.dtype == np.float32 else np.float64)

    # Each round sums over the lowest bit of i: the sum is even + odd if the same bit of k is 0, and
    # even − odd if it is 1. Concatenating makes this bit of k the highest of the index, and so the
    # next bit of i becomes the lowest. After log₂ n rounds each bit is done and back in its place.
    #
    #     n = 4, index       00     01     10     11
    #     at first           x0     x1     x2     x3
    #     round 1         x0+x1  x2+x3  x0-x1  x2-x3
    #     round 2         x0+x1+x2+x3  x0-x1+x2-x3  x0+x1-x2-x3  x0-x1-x2+x3
    for _ in range(n.bit_length() - 1):
        even = x[..., ::2]
        odd = x[..., 1::2]
        x = np.concatenate([even + odd, even - odd], axis=-1)
    return x


# ------------------------------------------------------------------------------ 2. The Persian rug

class PersianRug:
    """f(x) = ReLU(W x + b) with W = (a/n_dense) H_Sᵀ H_S: H_S is Hadamard's H, but only the rows S.

    Why are all features alike? ⊕ is "exclusive or", bit by bit: i ⊕ j has a bit where just one of i
    and j has it. A bit of k that both i and j have gives (−1)² = 1, so only bits of i ⊕ j count:

        H[k, i] H[k, j] = H[k, i ⊕ j]
        W[i, j] = (a/n_dense) Σ_{k∈S} H[k, i] H[k, j] = (a/n_dense) Σ_{k∈S} H[k, i ⊕ j]
                = a · kernel[i ⊕ j]

    Every row of W holds the same numbers, in another order. And as i ⊕ j works bit by bit, W looks
    like itself at every scale: the rug.

    rows: S, (n_dense,) int, all different. a, bias: what all features share. kernel: (n_sparse,)
    float64, with kernel[0] = 1. Nothing of size n_sparse × n_dense is kept, so 2²⁰ features fit on
    a laptop.
    """

    def __init__(self, n_sparse, rows, a, bias):
        self.n_sparse = n_sparse
        self.n_dense = len(rows)
        self.rows = rows
        self.a = a
        self.diagonal = a
        self.bias = bias
        chosen = np.bincount(rows, minlength=n_sparse)
        self.kernel = walsh_hadamard(chosen) / self.n_dense

    def __repr__(self):
        return f"PersianRug(n_sparse={self.n_sparse}, n_dense={self.n_dense})"

    def encode(self, x):
        """The hidden vectors H_S x, (batch, n_dense), of x (batch, n_sparse): one transform."""
        x = rug.batch_of_samples(x, self.n_sparse)
        return walsh_hadamard(x)[:, self.rows]

    def preactivation(self, x):
        """z = W x + b, shaped like x, (batch, n_sparse): two transforms, no matrix."""
        hidden = self.encode(x)
        spread = np.zeros((len(hidden), self.n_sparse), hidden.dtype)
        spread[:, self.rows] = hidden * (self.a / self.n_dense)
        return walsh_hadamard(spread) + self.bias

    def forward(self, x):
        """f(x) = ReLU(z), shaped like x, (batch, n_sparse)."""
        return np.maximum(self.preactivation(x), 0)

    def autoencoder(self):
        """The same model as a dense rug.Autoencoder: W_in = H_S, W_out = (a/n_dense) H_Sᵀ."""
        chosen = np.zeros((self.n_dense, self.n_sparse), np.float32)
        chosen[np.arange(self.n_dense), self.rows] = 1
        encoder = walsh_hadamard(chosen).T
        decoder = self.a / self.n_dense * encoder
        return rug.Autoencoder(encoder, decoder, np.full(self.n_sparse, self.bias))


def persian_rug(n_sparse, n_dense, p, seed):
    """The PersianRug with a and b from theory.optimum and n_dense random rows of H.

    Row 0 of H is all ones and stays out (unless n_dense = n_sparse). For the theory it is a row
    like any other, as a and σ don't change. But it adds the same +a/n_dense to every W_ij. The
    third cumulant of the interference is κ₃(x) Σ_{j≠i} W_ij³, with κ₃(x) = (p/4)(1 − p)². For other
    rows this sum is near 0; row 0 adds mainly 3 (a/n_dense) Σ W_ij² to it. So the interference
    leans to the positive side, which ReLU lets through.

    The bias follows from the theory's effective bias, b = bias + μ. Every row of H but row 0 has as
    many −1 as +1. So without row 0 the rows of W sum to 0, their entries j ≠ i sum to −a, and the
    interference has the mean μ = −a p/2. With all rows W is the identity, and μ = 0.

    Raises ValueError unless n_sparse is a power of two, 1 ≤ n_dense ≤ n_sparse, p is in (0, 1] and
    seed ≥ 0.
    """
    n_sparse = rug.whole_number("n_sparse", n_sparse, 1)
    rug.require(n_sparse & (n_sparse - 1) == 0, "n_sparse of a rug", n_sparse, "a power of two")
    n_dense = rug.whole_number("n_dense", n_dense, 1, n_sparse)
    rng = np.random.default_rng(rug.whole_number("seed", seed, 0))

    if n_dense == n_sparse:
        rows = np.arange(n_sparse)
    else:
        rows = 1 + rng.choice(n_sparse - 1, n_dense, replace=False)

    best = theory.optimum(n_dense / n_sparse, p)
    forged = PersianRug(n_sparse, rows, best.a, best.b)
    mean_interference = p / 2 * best.a * forged.kernel[1:].sum()
    forged.bias = float(best.b - mean_interference)
    return forged


def rug_at(n_sparse, ratio, p, seed):
    """The `persian_rug` that is nearest to a size and a ratio n_dense/n_sparse.

    The logarithm of n_sparse is rounded to a power of two, n_dense to a whole number above 0.
    """
    return persian_rug(*rug_sizes(n_sparse, ratio), p, seed)


def rug_sizes(n_sparse, ratio):
    """The n_sparse and n_dense of `rug_at`."""
    n_sparse = 2**round(math.log2(rug.whole_number("n_sparse", n_sparse, 1)))
    n_dense = max(1, round(theory.fraction("ratio", ratio) * n_sparse))
    return n_sparse, n_dense


# --------------------------------------------------------------------------- 3. The paired rug

def paired_rug(n_sparse, ratio, p, seed):
    """A PersianRug whose rows are chosen and not drawn: random ones among those of odd number.

    An odd k has its lowest bit, so H[k, i ⊕ 1] = −H[k, i]. With such rows only, the kernel is −1 at
    1: the features 2i and 2i + 1 are opposites, W[2i, 2i + 1] = −a. The squares in a row of W add
    up to the same as before. The partner now has a large share of them, the other features have
    less. And what the partner does is harmless, because it pushes a feature that is off further
    down, where ReLU hides it. Only if both are on they disturb each other. (Up to r = 1/2 no scaled
    projector with an equal diagonal has an interference that leans further to the negative side:
    see experiments/rows.py.)

    a and the bias are fitted to samples (`fit`). If n_dense is above n_sparse/2, all odd rows are
    taken and random ones of the others. Sizes are rounded as by `rug_at`, with the same errors.
    """
    n_sparse, n_dense = rug_sizes(n_sparse, ratio)
    rng = np.random.default_rng(rug.whole_number("seed", seed, 0))

    # Odd rows have places from 0 to 1, even ones from 1 to 2, and row 0 is the last.
    even = 1 - np.arange(n_sparse) % 2
    place = even + rng.random(n_sparse)
    place[0] = 2
    rows = np.argsort(place)[:n_dense]
    return fit(PersianRug(n_sparse, rows, 1.0, 0.0), p, seed)


def fit(forged, p, seed):
    """Give a PersianRug with a = 1 and bias 0 the a and the bias of the least loss on samples.

    As in theory.optimum: with a threshold t the output is a ReLU(z − t), for each t the best a is
    A/B, and the best t has the largest A²/B. Now A = E x ReLU(z − t) and B = E ReLU(z − t)² are
    means over samples.
    """
    x = rug.sample(max(4, 2**20 // forged.n_sparse), forged.n_sparse, p, seed)
    z = forged.preactivation(x)

    def signal_and_power(t):
        output = np.maximum(z - t, 0)
        return np.mean(x * output), np.mean(output**2) + 1e-30  # not 0, if all outputs are

    def removed(thresholds):
        terms = [signal_and_power(t) for t in thresholds]
        return [signal**2 / power for signal, power in terms]

    # The best t is between 0 and the symmetric optimum's, or up to two deviations of ν beyond.
    best = theory.optimum(forged.n_dense / forged.n_sparse, p)
    symmetric = -best.b / best.a
    reach = 2 * best.sigma / best.a
    low = min(symmetric, 0) - reach
    high = max(symmetric, 0) + reach
    t = theory.maximise(removed, low, high, points=13, rounds=3)
    signal, power = signal_and_power(t)
    a = float(signal / power)
    return PersianRug(forged.n_sparse, forged.rows, a, -a * t)


# ------------------------------------------------------------------------- 4. A random projector

def random_projector(n_sparse, n_dense, p, seed):
    """The rug.Autoencoder with W = (a/r) Q Qᵀ, the columns of Q a random orthonormal basis.

    Q comes from the QR decomposition of a Gaussian matrix, so that no direction is preferred. a and
    b are theory.optimum's; each feature's bias is b less the mean of its own interference.

    Raises ValueError unless 1 ≤ n_dense ≤ n_sparse, p is in (0, 1] and seed ≥ 0.
    """
    n_sparse = rug.whole_number("n_sparse", n_sparse, 1)
    n_dense = rug.whole_number("n_dense", n_dense, 1, n_sparse)
    rng = np.random.default_rng(rug.whole_number("seed", seed, 0))
    best = theory.optimum(n_dense / n_sparse, p)

    encoder = np.linalg.qr(rng.standard_normal((n_sparse, n_dense))).Q
    decoder = best.a * n_sparse / n_dense * encoder
    others = encoder.sum(axis=0) - encoder  # row i: the sum of all rows but i
    mean_interference = p / 2 * (decoder * others).sum(axis=1)
    bias = best.b - mean_interference
    return rug.Autoencoder(encoder.astype(np.float32), decoder, bias)
