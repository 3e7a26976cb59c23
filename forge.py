"""Weights without training: the Persian rug, and what to hold against it.

By `theory.optimum` the best symmetric W is a scaled projector, W = (a/r) P, whose diagonal is a everywhere and whose
off-diagonal is small, dense and alike for all features. Nothing asks for randomness beyond that.

walsh_hadamard     the fast transform behind the rug
persian_rug        n_dense rows of a Hadamard matrix: exactly symmetric, and self-similar to look at
random_projector   a random subspace: in the limit the same loss, and nothing to look at
digons             pairs of features in opposite directions: at n_dense = n_sparse/2 and small p better than the rug
tile               copies of a model side by side

Uses rug.py for the models and theory.py for a and b.
"""
import numpy as np

import rug
import theory


def walsh_hadamard(x):
    """x H along the last axis, H_ki = (−1)^popcount(k & i) the Hadamard matrix in Sylvester's order; a new array.

    O(n log n) for n = x.shape[-1], which must be a power of two (ValueError). H is symmetric and H H = n.
    """
    x = np.asarray(x)
    n = x.shape[-1] if x.ndim else 0
    rug.require(n and n & (n - 1) == 0, "length of the transform", n, "a power of two")
    x = x.copy()
    for _ in range(n.bit_length() - 1):
        # Each round turns the lowest bit i of the index into the bit k that replaces it, and moves that to the top;
        # after log₂ n rounds every bit is done and back in its place.
        even, odd = x[..., ::2], x[..., 1::2]
        x = np.concatenate([even + odd, even - odd], axis=-1)
    return x


class PersianRug:
    """f(x) = ReLU(W x + b) with W = (a/n_dense) H_Sᵀ H_S, S a set of n_dense rows of the Hadamard matrix H.

    W[i, j] = a · kernel[i ^ j]: as H_ki H_kj = H_k,i^j, every row of W holds the same numbers in another order, so
    the large-scale numbers of all features are exactly equal. Nothing of size n_sparse × n_dense is stored.

    rows: S, (n_dense,) int; a, bias: the numbers all features share; kernel: (n_sparse,) float64, kernel[0] = 1.
    """

    def __init__(self, n_sparse, rows, a, bias, kernel):
        self.n_sparse, self.n_dense, self.rows = n_sparse, len(rows), rows
        self.a, self.bias, self.kernel = a, bias, kernel

    def forward(self, x):
        """f(x) for x (batch, n_sparse) by two fast transforms and a mask, O(n_sparse log n_sparse) a sample."""
        x = np.asarray(x)
        rug.require(x.ndim == 2 and x.shape[1] == self.n_sparse, "x's shape", x.shape, f"(batch, {self.n_sparse})")
        hidden = np.zeros_like(x)
        hidden[:, self.rows] = walsh_hadamard(x)[:, self.rows] * x.dtype.type(self.a / self.n_dense)
        return np.maximum(walsh_hadamard(hidden) + x.dtype.type(self.bias), 0)

    def autoencoder(self):
        """The same model as a dense rug.Autoencoder: W_in = H_S, W_out = (a/n_dense) H_Sᵀ. ValueError if too large."""
        rug.require_memory(f"a dense rug of {self.n_sparse} × {self.n_dense}", 8 * self.n_sparse * self.n_dense)
        chosen = np.zeros((self.n_dense, self.n_sparse), np.float32)
        chosen[np.arange(self.n_dense), self.rows] = 1
        encoder = walsh_hadamard(chosen).T
        return rug.Autoencoder(encoder, self.a / self.n_dense * encoder, np.full(self.n_sparse, self.bias))


def persian_rug(n_sparse, n_dense, p, seed):
    """The PersianRug with a and b from theory.optimum(n_dense/n_sparse, p) and randomly chosen rows S.

    Unless n_dense = n_sparse, S leaves out row 0 of H, which is all ones and would add a/n_dense to every W_ij: a little
    more loss. Then Σ_j W_ij = 0, so that the interference has mean μ = (p/2)(0 − a); b − μ makes the effective bias b.
    Raises ValueError if n_sparse is no power of two or n_dense not in 1 … n_sparse.
    """
    rug.require_integer("n_sparse", n_sparse, 1)
    rug.require(n_sparse & (n_sparse - 1) == 0, "n_sparse of a Hadamard matrix", n_sparse, "a power of two")
    rug.require_integer("n_dense", n_dense, 1, n_sparse)
    rug.require_integer("seed", seed, 0, 2**63 - 1)
    best = theory.optimum(n_dense / n_sparse, p)
    rng = np.random.default_rng(seed)
    rows = np.arange(n_sparse) if n_dense == n_sparse else 1 + rng.choice(n_sparse - 1, n_dense, replace=False)
    kernel = walsh_hadamard(np.bincount(rows, minlength=n_sparse)) / n_dense
    mean_interference = p / 2 * best.a * (kernel.sum() - kernel[0])
    return PersianRug(n_sparse, rows, best.a, best.b - mean_interference, kernel)


def random_projector(n_sparse, n_dense, p, seed):
    """The rug.Autoencoder with W = (a/r) Q Qᵀ, Q a uniformly random orthonormal basis: QR of a Gaussian matrix.

    a and b are theory.optimum's; each feature's bias is b minus the mean of its own interference.
    Raises ValueError for n_dense not in 1 … n_sparse, p outside (0, 1], or a basis too large for memory.
    """
    rug.require_integer("n_sparse", n_sparse, 1)
    rug.require_integer("n_dense", n_dense, 1, n_sparse)
    rug.require_integer("seed", seed, 0, 2**63 - 1)
    rug.require_memory(f"a basis of {n_sparse} × {n_dense}", 24 * n_sparse * n_dense)
    best = theory.optimum(n_dense / n_sparse, p)
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n_sparse, n_dense)))[0]
    decoder = best.a * n_sparse / n_dense * q
    mean_interference = p / 2 * (decoder @ q.sum(axis=0) - np.einsum("ij,ij->i", decoder, q))
    return rug.Autoencoder(*(array.astype(np.float32) for array in (q, decoder, best.b - mean_interference)))


def digons(n_sparse):
    """The rug.Autoencoder of n_sparse/2 pairs, W = [[1, −1], [−1, 1]] each, no bias. ValueError for odd n_sparse.

    A feature is lost only when its partner is on as well, and then the larger one gets through: loss p²/6.
    """
    rug.require_integer("n_sparse", n_sparse, 2)
    rug.require(n_sparse % 2 == 0, "n_sparse of digons", n_sparse, "even")
    pair = rug.Autoencoder(np.array([[1], [-1]]), np.array([[1], [-1]]), np.zeros(2))
    return tile(pair, n_sparse // 2)


def tile(model, copies):
    """`copies` of a rug.Autoencoder down the diagonal: copies times the features and hidden units, the same loss."""
    rug.require_integer("copies", copies, 1)
    n_sparse, n_dense = copies * model.n_sparse, copies * model.n_dense
    rug.require_memory(f"a model of {n_sparse} × {n_dense}", 8 * n_sparse * n_dense)
    one = np.eye(copies, dtype=np.float32)
    return rug.Autoencoder(np.kron(one, model.encoder), np.kron(one, model.decoder), np.tile(model.bias, copies))
