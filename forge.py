"""Weights without training: the Persian rug, and what to hold against it.

By `theory.optimum` the best symmetric W is a scaled projector, W = (a/r) P, whose diagonal is a everywhere and whose
off-diagonal is small, dense and alike for all features. Nothing asks for randomness beyond that.

walsh_hadamard     the fast transform behind the rug
persian_rug        n_dense rows of a Hadamard matrix: exactly symmetric, and self-similar to look at
random_projector   a random subspace: in the limit the same loss, and nothing to look at
digons             pairs of features in opposite directions: at n_dense = n_sparse/2 better than the rug
priority_code      not symmetric at all: louder features silence quieter ones; better than the rug wherever that is good
side_by_side       several models as one; `tile`: copies of one

Uses rug.py for the models and theory.py for a and b.
"""
from numbers import Real

import numpy as np

import rug
import theory


def walsh_hadamard(x):
    """x H along the last axis, H_ki = (−1)^popcount(k & i) the Hadamard matrix in Sylvester's order; a new array.

    O(n log n) for n = x.shape[-1], which must be a power of two (ValueError). H is symmetric and H H = n.
    """
    x = np.asarray(x)
    rug.require(x.dtype.kind in "fiu", "x", x.dtype.name, "real numbers")
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
        rug.require(x.dtype.kind == "f", "x", x.dtype.name, "floating-point numbers")
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
    n_sparse = rug.require_integer("n_sparse", n_sparse, 1)
    rug.require(n_sparse & (n_sparse - 1) == 0, "n_sparse of a Hadamard matrix", n_sparse, "a power of two")
    n_dense = rug.require_integer("n_dense", n_dense, 1, n_sparse)
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
    n_sparse = rug.require_integer("n_sparse", n_sparse, 1)
    n_dense = rug.require_integer("n_dense", n_dense, 1, n_sparse)
    rug.require_integer("seed", seed, 0, 2**63 - 1)
    rug.require_memory(f"a basis of {n_sparse} × {n_dense}", 24 * n_sparse * n_dense)
    best = theory.optimum(n_dense / n_sparse, p)
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n_sparse, n_dense)))[0]
    decoder = best.a * n_sparse / n_dense * q
    mean_interference = p / 2 * (decoder @ q.sum(axis=0) - np.einsum("ij,ij->i", decoder, q))
    return rug.Autoencoder(*(array.astype(np.float32) for array in (q, decoder, best.b - mean_interference)))


def side_by_side(models):
    """One rug.Autoencoder of several, each on features and hidden units of its own. ValueError if none or too large."""
    rug.require(isinstance(models, (list, tuple)) and len(models) > 0 and all(isinstance(model, rug.Autoencoder) for model in models), "models", models,
                "one or more rug.Autoencoders")
    n_sparse, n_dense = (sum(getattr(model, name) for model in models) for name in ("n_sparse", "n_dense"))
    rug.require_memory(f"a model of {n_sparse} × {n_dense}", 16 * n_sparse * n_dense)
    dtype = np.result_type(*(model.encoder for model in models))
    encoder, decoder = np.zeros((2, n_sparse, n_dense), dtype)
    row = column = 0
    for model in models:
        place = slice(row, row + model.n_sparse), slice(column, column + model.n_dense)
        encoder[place], decoder[place] = model.encoder, model.decoder
        row, column = place[0].stop, place[1].stop
    return rug.Autoencoder(encoder, decoder, np.concatenate([model.bias for model in models]).astype(dtype))


def tile(model, copies):
    """`copies` of a rug.Autoencoder down the diagonal: copies times the features and hidden units, the same loss."""
    copies = rug.require_integer("copies", copies, 1)
    rug.require(isinstance(model, rug.Autoencoder), "model", model, "a rug.Autoencoder")
    rug.require_memory(f"{copies} copies", 16 * copies**2 * model.n_sparse * model.n_dense)
    return side_by_side([model] * copies)


def digons(n_sparse, c=1.0):
    """The rug.Autoencoder of n_sparse/2 pairs, W = [[1, −c], [−1/c, 1]] each, no bias. ValueError for odd n_sparse.

    A feature is disturbed only when its partner is on as well: loss theory.digon_loss(p, c), least at c = 1/3.
    """
    n_sparse = rug.require_integer("n_sparse", n_sparse, 2)
    rug.require(n_sparse % 2 == 0, "n_sparse of digons", n_sparse, "even")
    rug.require_fraction("c", c)
    return tile(rug.Autoencoder(np.array([[1], [-c]]), np.array([[1], [-1 / c]]), np.zeros(2)), n_sparse // 2)


def priority_block(n, separation, closed):
    """n ≥ 2 features in two hidden units, each quieter than the one before by the factor `separation` and turned further:

        e_i = s_i (cos θ_i, sin θ_i),   θ_i = π i/n,   s_i = separation^((n−1)/2 − i),   i = 0 … n − 1.

    Decoder row i is orthogonal to e_{i−1} (d_0 to e_1), with d_i · e_i = 1. Hence W_ij is hugely negative for the louder
    j < i − 1, 0 for j = i − 1, and of the order of separation^(i−j) for the quieter j > i.
    Closed (from n = 4 on), the features 0 … n − 2 fill the half-plane, θ_i = π i/(n−2), and the last one points the other
    way, at −π/2: orthogonal to both e_0 and e_{n−2}, it is silenced by one feature less.
    """
    closed = closed and n > 3
    i, turn = np.arange(n), np.pi / (n - 2 if closed else n)
    angle, scale = turn * i, separation**((n - 1) / 2 - i)[:, None]
    before = np.where(i > 0, angle - turn, turn - np.pi)  # d_i is this direction, turned by π/2
    if closed:
        angle[-1] = -np.pi / 2
    # Rounded, for the zeros to be exact: scales differ by more than float64 has digits.
    encoder = scale * np.stack([np.cos(angle), np.sin(angle)], axis=1).round(15)
    decoder = np.stack([-np.sin(before), np.cos(before)], axis=1).round(15) / (scale * np.sin(angle - before)[:, None])
    return rug.Autoencoder(encoder, decoder, np.zeros(n))


def priority_code(n_sparse, n_dense, separation=100, closed=False):
    """Features spread as evenly as they go over n_dense // 2 blocks; a hidden unit left over takes a digon.

    In a block, a feature that is on silences all quieter ones but the next; what is not silenced is exact. The loss is
    theory.priority_loss as separation → ∞; `closed` blocks lose less. Returns a float64 rug.Autoencoder. ValueError for
    n_dense not in 1 … n_sparse, a separation ≤ 1 or too large for float64, or more than a digon in n_dense = 1.
    """
    n_sparse = rug.require_integer("n_sparse", n_sparse, 1)
    n_dense = rug.require_integer("n_dense", n_dense, 1, n_sparse)
    rug.require(n_dense > 1 or n_sparse <= 2, "n_sparse of a priority code with n_dense 1", n_sparse, "1 or 2")
    rug.require(isinstance(separation, Real) and 1 < separation < 1e300, "separation", separation, "a number above 1, below 1e300")
    separation = float(separation)
    digon = digons(2) if n_sparse > n_dense else rug.Autoencoder(*np.ones((2, 1, 1)), np.zeros(1))
    left = [digon] * (n_dense % 2)
    blocks, features = n_dense // 2, n_sparse - sum(model.n_sparse for model in left)
    largest = -(-features // max(blocks, 1))
    rug.require(largest * np.log10(separation) < 300, f"separation of {largest} features in two hidden units", separation,
                f"below {10**(300 / max(largest, 1)):.4g}, as float64 ends at 1e308")
    sizes = [(features + k) // blocks for k in range(blocks)]
    return side_by_side([priority_block(size, separation, closed) for size in sizes] + left)
