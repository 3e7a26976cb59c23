"""Weights without training: the Persian rug, and a random projector to hold against it.

By `theory.optimum` the best symmetric W is a scaled projector, W = (a/r) P, whose diagonal is a
everywhere and whose off-diagonal is small, dense and alike for all features. Nothing asks for
randomness beyond that, so W can be written down.

walsh_hadamard     the fast transform behind the rug
persian_rug        n_dense rows of a Hadamard matrix: exactly symmetric, and self-similar to look at
random_projector   a random subspace: in the limit the same loss, and nothing to look at

Uses rug.py for the models and theory.py for a and b. Source of the rug: arXiv:2410.12101.
"""
import numpy as np

import rug
import theory

def walsh_hadamard(x):
    """x H along the last axis, H_ki = (−1)^popcount(k & i) the Hadamard matrix, Sylvester's order.

    A new array, in O(n log n) for n = x.shape[-1]; ValueError unless n is a power of two.
    H is symmetric and H H = n.
    """
    x = np.asarray(x)
    rug.require(x.dtype.kind in "fiu", "x", x.dtype.name, "real numbers")
    n = x.shape[-1] if x.ndim else 0
    rug.require(n and n & (n - 1) == 0, "length of the transform", n, "a power of two")
    x = x.astype(np.int64) if x.dtype.kind in "iu" else x.copy()  # small integers would overflow
    for _ in range(n.bit_length() - 1):
        # Each round turns the lowest bit i of the index into the bit k that replaces it, and moves
        # that to the top; after log₂ n rounds every bit is done and back in its place.
        even, odd = x[..., ::2], x[..., 1::2]
        x = np.concatenate([even + odd, even - odd], axis=-1)
    return x

class PersianRug:
    """f(x) = ReLU(W x + b), W = (a/n_dense) H_Sᵀ H_S, S a set of n_dense rows of Hadamard's H.

    W[i, j] = a · kernel[i ^ j]: as H_ki H_kj = H_k,i^j, every row of W holds the same numbers in
    another order, so the large-scale numbers of all features are exactly equal. Nothing of size
    n_sparse × n_dense is stored: 2²⁰ features fit on a laptop.

    rows: S, (n_dense,) int; a, bias: the numbers all features share; kernel: (n_sparse,) float64,
    with kernel[0] = 1.
    """

    def __init__(self, n_sparse, rows, a, bias, kernel):
        self.n_sparse, self.n_dense, self.rows = n_sparse, len(rows), rows
        self.a, self.bias, self.kernel = a, bias, kernel

    def encode(self, x):
        """Hidden vectors H_S x, (batch, n_dense), of x (batch, n_sparse): one fast transform."""
        x = rug.require_batch(x, self.n_sparse)
        return walsh_hadamard(x if x.dtype.kind == "f" else x.astype(float))[:, self.rows]

    def forward(self, x):
        """f(x) for x (batch, n_sparse): two fast transforms, O(n_sparse log n_sparse) a sample."""
        hidden = self.encode(x)
        spread = np.zeros((len(hidden), self.n_sparse), hidden.dtype)
        spread[:, self.rows] = hidden * hidden.dtype.type(self.a / self.n_dense)
        return np.maximum(walsh_hadamard(spread) + hidden.dtype.type(self.bias), 0)

    def autoencoder(self):
        """The same model as a dense rug.Autoencoder: W_in = H_S, W_out = (a/n_dense) H_Sᵀ.

        Raises ValueError if it would not fit into memory.
        """
        what = f"a dense rug of {self.n_sparse} × {self.n_dense}"
        rug.require_memory(what, 8 * self.n_sparse * self.n_dense)
        chosen = np.zeros((self.n_dense, self.n_sparse), np.float32)
        chosen[np.arange(self.n_dense), self.rows] = 1
        encoder = walsh_hadamard(chosen).T
        bias = np.full(self.n_sparse, self.bias)
        return rug.Autoencoder(encoder, self.a / self.n_dense * encoder, bias)

def persian_rug(n_sparse, n_dense, p, seed):
    """The PersianRug with a and b from theory.optimum(n_dense/n_sparse, p) and random rows S.

    Unless n_dense = n_sparse, S leaves out row 0 of H, which is all ones. Theory would not mind it,
    but it adds +a/n_dense to every W_ij and so 3 (a/n_dense) Σ_j W_ij² to Σ_j W_ij³, the third
    cumulant of the interference: noise that leans to the side which ReLU lets through. Without it
    Σ_j W_ij = 0, so the interference has mean μ = (p/2)(0 − a); b − μ makes the effective bias b.
    Raises ValueError if n_sparse is no power of two, n_dense not in 1 … n_sparse, or seed < 0.
    """
    n_sparse = rug.require_integer("n_sparse", n_sparse, 1)
    rug.require(n_sparse & (n_sparse - 1) == 0, "n_sparse of a rug", n_sparse, "a power of two")
    n_dense = rug.require_integer("n_dense", n_dense, 1, n_sparse)
    rng = np.random.default_rng(rug.require_integer("seed", seed, 0, 2**63 - 1))
    best = theory.optimum(n_dense / n_sparse, p)
    whole = n_dense == n_sparse
    rows = np.arange(n_sparse) if whole else 1 + rng.choice(n_sparse - 1, n_dense, replace=False)
    kernel = walsh_hadamard(np.bincount(rows, minlength=n_sparse)) / n_dense
    mean_interference = p / 2 * best.a * (kernel.sum() - kernel[0])
    return PersianRug(n_sparse, rows, best.a, best.b - mean_interference, kernel)

def random_projector(n_sparse, n_dense, p, seed):
    """The rug.Autoencoder with W = (a/r) Q Qᵀ, Q a random orthonormal basis (QR of a Gaussian).

    a and b are theory.optimum's; each feature's bias is b minus the mean of its own interference.
    Raises ValueError for n_dense not in 1 … n_sparse, p outside (0, 1], or a basis too large.
    """
    n_sparse = rug.require_integer("n_sparse", n_sparse, 1)
    n_dense = rug.require_integer("n_dense", n_dense, 1, n_sparse)
    rng = np.random.default_rng(rug.require_integer("seed", seed, 0, 2**63 - 1))
    rug.require_memory(f"a basis of {n_sparse} × {n_dense}", 24 * n_sparse * n_dense)
    best = theory.optimum(n_dense / n_sparse, p)
    q = np.linalg.qr(rng.standard_normal((n_sparse, n_dense)))[0]
    decoder = best.a * n_sparse / n_dense * q
    mean_interference = p / 2 * (decoder @ q.sum(axis=0) - np.einsum("ij,ij->i", decoder, q))
    weights = q, decoder, best.b - mean_interference
    return rug.Autoencoder(*(array.astype(np.float32) for array in weights))
