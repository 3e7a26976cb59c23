"""The autoencoder f(x) = ReLU(W_out W_in x + b): its data, its gradients and its training, by hand.

Read this file first, from top to bottom; it imports none of the others.

1. the data       `sample` draws sparse batches without ever touching the zeros
2. the model      `Autoencoder`: forward and backward in plain NumPy, the truth that the rest is tested against
3. its quality    `evaluate` and `dead_features`, on fresh samples
4. the hot loops  the same mathematics compiled, with sparse products wherever a factor is sparse
5. the trainer    `Trainer`: one step = sample, forward, backward, Adam, shared by a few threads
6. the files      .npz, written atomically, read without pickle

Features come first in memory: `encoder[j]` is column j of W_in and `decoder[i]` is row i of W_out, both of
shape (n_sparse, n_dense), so W[i, j] = decoder[i] · encoder[j]. Left out on purpose: every layer, optimiser
and activation function but the ones that the paper (arXiv:2410.12101) needs.
"""
import os

# What BLAS reads when NumPy is first imported; a setting of the user's own stands. Its threads would spin while ours
# work, so it gets one.
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(_name, "1")

import math
import platform
import subprocess
import sys
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from numbers import Integral, Real
from typing import NamedTuple

import numba
import numpy as np


def kernel(function):
    """Compile a hot loop once, and keep it on disk if there is a place for that.

    Without the GIL, so that threads run at once; x/0 is infinity, as in NumPy (Python's exception would keep loops from
    being vectorised); sums may be reordered, but NaN and infinity keep their meaning.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the checkout nor the home folder can be written to
        return numba.njit(**options)(function)


def require(condition, name, value, allowed):
    """Raise the ValueError for a mistaken argument: its name, its value and what is allowed."""
    if not condition:
        value = value.item() if isinstance(value, np.generic) else value
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def require_integer(name, value, low, high=2**31 - 1):
    """`value` as Python's int, which can't overflow; ValueError unless it is a whole number in low … high."""
    require(isinstance(value, Integral) and low <= value <= high, name, value, f"a whole number in {low} … {high}")
    return int(value)


def require_fraction(name, value):
    """ValueError unless `value` is a number in (0, 1]."""
    require(isinstance(value, Real) and 0 < value <= 1, name, value, "a number in (0, 1]")


def require_memory(what, n_bytes):
    """ValueError that says how large `what` is, unless `n_bytes` fit into this machine's memory."""
    if hasattr(os, "sysconf"):  # where it is missing (Windows) NumPy's own MemoryError has to do
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        require(n_bytes <= memory, f"memory for {what}", f"{n_bytes / 2**30:,.1f} GiB",
                f"at most this machine's {memory / 2**30:,.1f} GiB")


# ---------------------------------------------------------------------------------------------- 1. the data


class Sparse(NamedTuple):
    """Rows of a sparse matrix (CSR): row k holds values[indptr[k]:indptr[k + 1]] in columns indices[the same]."""
    indptr: np.ndarray   # (rows + 1,) int64
    indices: np.ndarray  # (entries,) int32
    values: np.ndarray   # (entries,) float32
    columns: int

    @staticmethod
    def empty(rows, columns, entries):
        """Room for `entries` entries in all. Pages of memory that are never written cost none."""
        return Sparse(np.zeros(rows + 1, np.int64), np.empty(entries, np.int32), np.empty(entries, np.float32), columns)

    def dense(self):
        """The same as an array (rows, columns) float32."""
        x = np.zeros((len(self.indptr) - 1, self.columns), np.float32)
        entries = slice(0, self.indptr[-1])
        x[np.repeat(np.arange(len(x)), np.diff(self.indptr)), self.indices[entries]] = self.values[entries]
        return x


@kernel
def scramble(bits):
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): 64 bits in, 64 well-mixed bits out."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@kernel
def draw_rows(seed, step, first, n_sparse, p, indptr, indices, values):
    """Fill rows first, first + 1, … of the batch that (seed, step) names.

    The number of silent features before the next active one is geometric, floor(ln u / ln(1 − p)), so the loop
    jumps from one active feature to the next. Each row has a generator of its own, started from (seed, step, row).
    """
    entry, inverse_log = 0, 1 / math.log1p(-p)  # −0 for p = 1: then no feature is skipped
    for k in range(len(indptr) - 1):
        state = scramble(scramble(scramble(seed) + step) + np.uint64(first + k))
        j = -1
        while True:
            state += np.uint64(0x9E3779B97F4A7C15)
            bits = scramble(state)  # the upper 40 bits decide the jump, the lower 24 (a float32 holds no more) the value
            jump = math.log((float(bits >> np.uint64(24)) + 0.5) * 2.0**-40) * inverse_log
            if jump >= n_sparse - 1 - j:
                break
            j += 1 + int(jump)
            indices[entry] = j
            values[entry] = np.float32(bits & np.uint64(0xFFFFFF)) * np.float32(2.0**-24)
            entry += 1
        indptr[k + 1] = entry


def sample(batch, n_sparse, p, seed, step=0):
    """Draw samples x_i = c_i u_i with c_i ~ Bernoulli(p) and u_i ~ Uniform[0, 1), all independent.

    Returns `batch` Sparse rows; `.dense()` gives them as (batch, n_sparse). Row k depends on (seed, step, k) alone.
    Raises ValueError for p outside (0, 1], batch or n_sparse < 1, seed or step < 0.
    """
    batch, n_sparse = require_integer("batch", batch, 1), require_integer("n_sparse", n_sparse, 1)
    require_fraction("p", p)
    require_integer("seed", seed, 0, 2**63 - 1)
    require_integer("step", step, 0, 2**63 - 1)
    require_memory(f"a batch of {batch} × {n_sparse}", 8 * batch * n_sparse)
    x = Sparse.empty(batch, n_sparse, batch * n_sparse)
    draw_rows(np.uint64(seed), np.uint64(step), 0, n_sparse, float(p), *x[:3])
    entries = x.indptr[-1]
    return Sparse(x.indptr, x.indices[:entries].copy(), x.values[:entries].copy(), n_sparse)


# --------------------------------------------------------------------------------------------- 2. the model


class Gradients(NamedTuple):
    """Derivatives of the loss, each of the shape of its parameter."""
    encoder: np.ndarray
    decoder: np.ndarray
    bias: np.ndarray


class Autoencoder:
    """f(x) = ReLU(W x + b) with W = W_out W_in of rank n_dense, in plain NumPy.

    encoder: columns of W_in, decoder: rows of W_out, both (n_sparse, n_dense); bias: (n_sparse,). float32, or
    float64 if all three are. Raises ValueError for wrong shapes and for entries that are not finite.
    """

    def __init__(self, encoder, decoder, bias):
        arrays = [np.asarray(array) for array in (encoder, decoder, bias)]
        for name, array in zip(Gradients._fields, arrays):
            require(array.dtype.kind in "fiu", name, array.dtype.name, "real numbers")
        dtype = np.float64 if all(array.dtype == np.float64 for array in arrays) else np.float32
        with np.errstate(over="ignore"):
            arrays = [np.ascontiguousarray(array, dtype).reshape(array.shape) for array in arrays]
        shape = arrays[0].shape
        require(len(shape) == 2 and 1 <= shape[1] <= shape[0], "encoder's shape", shape,
                "(n_sparse, n_dense) with 1 ≤ n_dense ≤ n_sparse")
        for name, array, expected in zip(Gradients._fields, arrays, (shape, shape, shape[:1])):
            require(array.shape == expected, f"{name}'s shape", array.shape, expected)
            require(np.isfinite(array).all(), name, array.dtype.name, "finite real numbers without NaN")
        self.encoder, self.decoder, self.bias = arrays
        self.n_sparse, self.n_dense = shape

    def forward(self, x):
        """f(x) for x (batch, n_sparse); the same shape."""
        return self._forward(x)[1]

    def _forward(self, x):
        x = np.asarray(x)
        require(x.dtype.kind in "fiub", "x", x.dtype.name, "real numbers")
        require(x.ndim == 2 and x.size > 0 and x.shape[1] == self.n_sparse, "x's shape", x.shape,
                f"(batch, {self.n_sparse}) with a batch of 1 or more")
        hidden = x @ self.encoder                                          # (batch, n_dense)
        return hidden, np.maximum(hidden @ self.decoder.T + self.bias, 0)  # (batch, n_sparse)

    def loss_and_gradients(self, x):
        """L = mean of (f(x) − x)² over samples and features, and its derivatives.

        With z = h W_outᵀ + b and h = x W_inᵀ the chain rule reads, from the output back to the input,
            dL/dz = 2 (f(x) − x) [z > 0] / (batch n_sparse),
            dL/dW_out = (dL/dz)ᵀ h,   dL/db = Σ_batch dL/dz,   dL/dh = dL/dz W_out,   dL/dW_in = (dL/dh)ᵀ x.
        x: (batch, n_sparse). Returns (loss, Gradients); W_in's derivative has the encoder's shape.
        """
        hidden, output = self._forward(x)
        error = output - x                                                 # (batch, n_sparse)
        d_pre = 2 / error.size * error * (output > 0)                      # (batch, n_sparse)
        d_hidden = d_pre @ self.decoder                                    # (batch, n_dense)
        gradients = Gradients(np.asarray(x).T @ d_hidden, d_pre.T @ hidden, d_pre.sum(axis=0))
        return float(np.mean(error**2, dtype=np.float64)), gradients

    def save(self, path, **notes):
        """Write the weights to `path` (.npz), atomically; notes: numbers or strings that say how they came about."""
        save_npz(path, "autoencoder", notes, encoder=self.encoder, decoder=self.decoder, bias=self.bias)

    @staticmethod
    def load(path):
        """The model saved at `path`. ValueError or OSError if it is missing, damaged or not a model."""
        data = load_npz(path, "autoencoder", Gradients._fields)
        return Autoencoder(**{name: data[name] for name in Gradients._fields})


# ------------------------------------------------------------------------------------------- 3. its quality

EVALUATION_STEPS = 2**62  # evaluation draws its batches from steps that no training reaches


class Estimate(NamedTuple):
    """A sampled mean and its standard error."""
    loss: float
    error: float


def evaluate(model, p, samples, seed):
    """The loss of `model` on fresh samples: mean of (f(x) − x)² per feature, and its standard error.

    model: anything with `.n_sparse` and `.forward(x)` for x (batch, n_sparse). Returns an Estimate; its error is
    NaN for one sample. Raises ValueError for p outside (0, 1], samples < 1, seed < 0.
    """
    require(callable(getattr(model, "forward", None)) and hasattr(model, "n_sparse"), "model", model, "one with n_sparse and forward(x)")
    require_integer("model's n_sparse", model.n_sparse, 1)
    samples = require_integer("samples", samples, 1)
    at_once = max(1, 2**21 // model.n_sparse)
    losses = []  # of each sample: samples are independent, features of one sample are not
    for start in range(0, samples, at_once):
        x = sample(min(at_once, samples - start), model.n_sparse, p, seed, EVALUATION_STEPS + start).dense()
        losses.append(np.square(model.forward(x) - x).mean(axis=1, dtype=np.float64))
    losses = np.concatenate(losses)
    error = losses.std(ddof=1) / math.sqrt(samples) if samples > 1 else math.nan
    return Estimate(float(losses.mean()), float(error))


def dead_features(model, p, samples=256, seed=0):
    """Which features no gradient reaches any more: (n_sparse,) bool.

    A feature is dead if its output is 0 in every one of `samples` samples, even when the feature itself is turned
    fully on (x_i = 1). A feature that answers with a positive constant is not dead: it was dropped on purpose.
    """
    require(isinstance(model, Autoencoder), "model", model, "an Autoencoder")
    require_integer("samples", samples, 1)
    x = sample(samples, model.n_sparse, p, seed, EVALUATION_STEPS - 1).dense()
    diagonal = np.einsum("ij,ij->i", model.decoder, model.encoder)
    pre = (x @ model.encoder) @ model.decoder.T + model.bias
    turned_on = pre + (1 - x) * diagonal
    return np.maximum(pre, turned_on).max(axis=0) <= 0


# ----------------------------------------------------------------------------------------- 4. the hot loops


@kernel
def add_product(indptr, indices, values, table, out):
    """out += A · table for sparse rows A: out[k] += Σ_e values[e] · table[indices[e]] over the entries e of row k.

    All of training's products but the decode have a sparse factor and can be done by this: the hidden vectors
    x W_inᵀ, their gradients dz W_out, and the weight gradients dzᵀ h and xᵀ dh with A transposed.
    """
    for k in range(len(indptr) - 1):
        row, entry, end = out[k], indptr[k], indptr[k + 1]
        while entry + 4 <= end:  # four at a time: out's row is read and written a quarter as often
            v0, v1, v2, v3 = values[entry], values[entry + 1], values[entry + 2], values[entry + 3]
            t0, t1 = table[indices[entry]], table[indices[entry + 1]]
            t2, t3 = table[indices[entry + 2]], table[indices[entry + 3]]
            for d in range(len(row)):
                row[d] += v0 * t0[d] + v1 * t1[d] + v2 * t2[d] + v3 * t3[d]
            entry += 4
        while entry < end:
            value, source = values[entry], table[indices[entry]]
            for d in range(len(row)):
                row[d] += value * source[d]
            entry += 1


@kernel
def residual(z, bias, x_indptr, x_indices, x_values, indptr, indices, values, losses, bias_gradient):
    """From z = h W_outᵀ, in place, to dz = (f(x) − x) [f(x) > 0]; the factor 2/(batch n_sparse) waits for Adam.

    z: (rows, n_sparse). Adds Σ_rows dz to bias_gradient, writes each row's squared error to losses, and the
    non-zero entries of dz as sparse rows. Returns False if those rows have no room for so many entries.
    """
    n_sparse = z.shape[1]
    entry, fits = 0, True
    for k in range(z.shape[0]):
        row, total = z[k], np.float32(0)
        for i in range(n_sparse):
            output = row[i] + bias[i]
            row[i] = np.float32(0) if output <= 0 else output  # written so that NaN stays NaN
        for e in range(x_indptr[k], x_indptr[k + 1]):
            i, x = x_indices[e], x_values[e]
            if row[i] > 0:
                row[i] -= x
            else:
                total += x * x  # an error without a gradient
        for i in range(n_sparse):
            total += row[i] * row[i]
            bias_gradient[i] += row[i]
        losses[k] = total
        fits = fits and entry + n_sparse <= len(indices)
        if fits:
            for i in range(n_sparse):  # write always, keep if not zero: no branch on what is as good as random
                indices[entry] = i
                values[entry] = row[i]
                entry += row[i] != 0
        indptr[k + 1] = entry
    return fits


@kernel
def transpose(indptr, indices, values, t_indptr, t_indices, t_values):
    """The transpose of sparse rows, by counting how many entries each column has."""
    t_indptr[:] = 0
    for entry in range(indptr[-1]):
        t_indptr[indices[entry] + 1] += 1
    t_indptr[:] = np.cumsum(t_indptr)
    for k in range(len(indptr) - 1):
        for entry in range(indptr[k], indptr[k + 1]):
            i = indices[entry]
            t_indices[t_indptr[i]] = k
            t_values[t_indptr[i]] = values[entry]
            t_indptr[i] += 1
    for i in range(len(t_indptr) - 1, 0, -1):  # each start has run on to the next one's place: shift them back
        t_indptr[i] = t_indptr[i - 1]
    t_indptr[0] = 0


@kernel
def adam(weight, mean, square, gradient, scale, rate, root):
    """One step of Adam (Kingma, Ba 2015), β = (0.9, 0.999), ε = 1e-7, on flat arrays, with g = scale · gradient:

        m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²,   w ← w − lr m̂ / (√v̂ + ε),

    m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ) at step t; rate = lr / (1 − β₁ᵗ) and root = 1 / √(1 − β₂ᵗ).
    """
    beta1, beta2, epsilon, one = np.float32(0.9), np.float32(0.999), np.float32(1e-7), np.float32(1)
    for k in range(len(weight)):
        g = scale * gradient[k]
        mean[k] = beta1 * mean[k] + (one - beta1) * g
        square[k] = beta2 * square[k] + (one - beta2) * g * g
        weight[k] -= rate * mean[k] / (np.sqrt(square[k]) * root + epsilon)


# ------------------------------------------------------------------------------------------- 5. the trainer


def tied_start(n_sparse, n_dense, rng):
    """Encoder = decoder = 0.7 N(0, 1)/√n_dense, bias 0: every W_ii starts near 0.5, so no feature starts dead."""
    encoder = 0.7 / math.sqrt(n_dense) * rng.standard_normal((n_sparse, n_dense))
    return encoder, encoder.copy(), np.zeros(n_sparse)


def paper_start(n_sparse, n_dense, rng):
    """The published start: everything uniform in ±1/√fan_in. Half of the W_ii are negative, and some stay so."""
    return (rng.uniform(-1, 1, (n_sparse, n_dense)) / math.sqrt(n_sparse),
            rng.uniform(-1, 1, (n_sparse, n_dense)) / math.sqrt(n_dense),
            rng.uniform(-1, 1, n_sparse) / math.sqrt(n_dense))


STARTS = {"tied": tied_start, "paper": paper_start}
DENSE_FROM = 1 / 5  # share of active outputs from which dense products win; measured 1/10 (AVX-512) to 1/3 (AVX2)
BLOCK = 256         # features whose gradients are computed before Adam consumes them: they stay in the cache


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slices(n, parts):
    """0 … n − 1 as `parts` consecutive slices of nearly equal length."""
    bounds = [n * k // parts for k in range(parts + 1)]
    return [slice(start, stop) for start, stop in zip(bounds, bounds[1:])]


class Trainer:
    """Trains an autoencoder on endless fresh data; the loop over `.step(lr)` is the caller's.

    A step has two parts, each shared among the threads without anything to merge: first by samples (draw, encode,
    decode, residual, gradient of the hidden vectors), then by features (gradients of the weights, Adam).
    Batches depend on (seed, step) alone: another number of threads changes the rounding, nothing else.

    n_sparse, n_dense, batch ≥ 1, n_dense ≤ n_sparse; p in (0, 1]; seed ≥ 0; init: "tied" or "paper";
    threads: 1 or more, None for one a core. Raises ValueError otherwise, or if memory would not do.
    """

    SETTINGS = ("n_sparse", "n_dense", "p", "batch", "seed", "init")
    STATE = [(kind, name) for kind in ("weights", "means", "squares") for name in Gradients._fields]

    def __init__(self, n_sparse, n_dense, p, batch=1024, seed=0, init="tied", threads=None):
        n_sparse = require_integer("n_sparse", n_sparse, 1)
        n_dense = require_integer("n_dense", n_dense, 1, n_sparse)
        require_fraction("p", p)
        batch, seed = require_integer("batch", batch, 1), require_integer("seed", seed, 0, 2**63 - 1)
        require(isinstance(init, str) and init in STARTS, "init", init, "one of " + ", ".join(STARTS))
        threads = min(require_integer("threads", cores() if threads is None else threads, 1, 1024), batch, n_sparse)
        require_memory(f"training n_sparse {n_sparse}, n_dense {n_dense}, batch {batch}",
                       4 * (6 * n_sparse * n_dense + (2 + 4 * p) * batch * n_sparse + threads * (BLOCK * n_dense + n_sparse)))
        self.n_sparse, self.n_dense, self.p = n_sparse, n_dense, float(p)
        self.batch, self.seed, self.init, self.threads = batch, seed, init, threads
        start = STARTS[init](n_sparse, n_dense, np.random.default_rng(seed))
        self.weights = Gradients(*(array.astype(np.float32) for array in start))
        self.means = Gradients(*(np.zeros_like(array) for array in self.weights))    # Adam's m
        self.squares = Gradients(*(np.zeros_like(array) for array in self.weights))  # Adam's v
        self.losses = []  # the loss of every step so far
        # Every array that a step writes to, once and for all:
        self.rows, self.features = slices(self.batch, self.threads), slices(n_sparse, self.threads)
        self.hidden = np.empty((self.batch, n_dense), np.float32)
        self.d_hidden = np.empty((self.batch, n_dense), np.float32)
        self.dz = np.empty((self.batch, n_sparse), np.float32)
        self.row_losses = np.empty(self.batch, np.float32)
        self.d_bias = np.empty((self.threads, n_sparse), np.float32)
        self.fits = [True] * self.threads
        sizes = [rows.stop - rows.start for rows in self.rows]
        full = [size * n_sparse for size in sizes]
        some = [int(DENSE_FROM * entries) + n_sparse for entries in full]
        self.x = [Sparse.empty(size, n_sparse, room) for size, room in zip(sizes, full)]
        self.x_by_feature = [Sparse.empty(n_sparse, size, room) for size, room in zip(sizes, full)]
        self.dz_sparse = [Sparse.empty(size, n_sparse, room) for size, room in zip(sizes, some)]
        self.dz_by_feature = [Sparse.empty(n_sparse, size, room) for size, room in zip(sizes, some)]
        self.gradient = np.empty((self.threads, BLOCK, n_dense), np.float32)
        self.pool = ThreadPoolExecutor(self.threads)

    @property
    def model(self):
        """A copy of the model as it is now."""
        return Autoencoder(*(array.copy() for array in self.weights))

    def step(self, lr):
        """Train on one fresh batch at learning rate `lr` and return the batch's loss before the step.

        Raises ValueError unless lr is positive and at most 1e30. Interrupting it leaves the weights half updated.
        """
        rates = self._rates(lr)
        self._share(self._by_samples)
        self._share(self._by_features, *rates)
        self.losses.append(self.row_losses.sum(dtype=np.float64) / (self.batch * self.n_sparse))
        return self.losses[-1]

    def follow(self, lr, loss, gradients):
        """One step of Adam along `gradients` that were found elsewhere, without a sample; `loss` is recorded.

        Raises ValueError unless lr is positive and at most 1e30 and the gradients have their parameters' shapes.
        """
        require(isinstance(gradients, (tuple, list)), "gradients", gradients, "those of encoder, decoder and bias")
        shapes = [np.shape(gradient) for gradient in gradients]
        require(shapes == [weight.shape for weight in self.weights], "gradients' shapes", shapes, "those of encoder, decoder and bias")
        for weight, mean, square, gradient in zip(self.weights, self.means, self.squares, gradients):
            adam(weight.reshape(-1), mean.reshape(-1), square.reshape(-1), gradient.reshape(-1), np.float32(1), *self._rates(lr))
        self.losses.append(loss)
        return loss

    def _rates(self, lr):
        """What `adam` needs at the next step t: lr / (1 − β₁ᵗ) and 1 / √(1 − β₂ᵗ)."""
        require(isinstance(lr, Real) and 0 < lr <= 1e30, "lr", lr, "a positive number, at most 1e30")
        t = len(self.losses) + 1
        return np.float32(lr / (1 - 0.9**t)), np.float32(1 / math.sqrt(1 - 0.999**t))

    def _share(self, task, *arguments):
        """task(k, …) for each thread k at once; k = 0 on this thread."""
        others = [self.pool.submit(task, k, *arguments) for k in range(1, self.threads)]
        task(0, *arguments)
        for other in others:
            other.result()

    @np.errstate(over="ignore", invalid="ignore")  # a run that diverges shows it by its loss
    def _by_samples(self, k):
        """Thread k's samples: from drawing x to the gradient of the hidden vectors."""
        rows, x, dz_sparse = self.rows[k], self.x[k], self.dz_sparse[k]
        hidden, d_hidden, dz = self.hidden[rows], self.d_hidden[rows], self.dz[rows]
        draw_rows(np.uint64(self.seed), np.uint64(len(self.losses)), rows.start, self.n_sparse, self.p, *x[:3])
        hidden[:] = 0
        add_product(*x[:3], self.weights.encoder, hidden)
        np.matmul(hidden, self.weights.decoder.T, out=dz)
        self.d_bias[k] = 0
        self.fits[k] = residual(dz, self.weights.bias, *x[:3], *dz_sparse[:3], self.row_losses[rows], self.d_bias[k])
        if self.fits[k]:
            d_hidden[:] = 0
            add_product(*dz_sparse[:3], self.weights.decoder, d_hidden)
            transpose(*dz_sparse[:3], *self.dz_by_feature[k][:3])
        else:
            np.matmul(dz, self.weights.decoder, out=d_hidden)
        transpose(*x[:3], *self.x_by_feature[k][:3])

    @np.errstate(over="ignore", invalid="ignore")
    def _by_features(self, k, rate, root):
        """Thread k's features: gradients of encoder, decoder and bias rows, and Adam on each."""
        scale = np.float32(2 / (self.batch * self.n_sparse))

        def update(name, part, gradient):
            weight, mean, square = (getattr(arrays, name)[part].reshape(-1)
                                    for arrays in (self.weights, self.means, self.squares))
            adam(weight, mean, square, gradient.reshape(-1), scale, rate, root)

        def add_transposed(columns, part, table, gradient):
            for rows, (indptr, indices, values, _) in zip(self.rows, columns):
                add_product(indptr[part.start:part.stop + 1], indices, values, table[rows], gradient)

        features = self.features[k]
        for start in range(features.start, features.stop, BLOCK):
            part = slice(start, min(start + BLOCK, features.stop))
            gradient = self.gradient[k, :part.stop - part.start]
            if all(self.fits):
                gradient[:] = 0
                add_transposed(self.dz_by_feature, part, self.hidden, gradient)
            else:
                np.matmul(self.dz[:, part].T, self.hidden, out=gradient)
            update("decoder", part, gradient)
            gradient[:] = 0
            add_transposed(self.x_by_feature, part, self.d_hidden, gradient)
            update("encoder", part, gradient)
        update("bias", features, self.d_bias[:, features].sum(axis=0))

    def save(self, path, **notes):
        """Write all that is needed to go on (weights, Adam's moments, losses, settings) to `path`, atomically.

        notes: numbers or strings of the caller's, given back by `load` as `.notes`.
        """
        arrays = {f"{kind}_{name}": getattr(getattr(self, kind), name) for kind, name in self.STATE}
        settings = {name: getattr(self, name) for name in self.SETTINGS}
        save_npz(path, "trainer", notes | {"threads": self.threads}, losses=np.array(self.losses), **arrays, **settings)

    @staticmethod
    def load(path, threads=None):
        """The trainer saved at `path`: with as many threads, its steps are bitwise those of the saved trainer.

        ValueError or OSError if the file is missing, damaged or not a trainer's.
        """
        data = load_npz(path, "trainer", Trainer.SETTINGS + ("losses",) + tuple(f"{kind}_{name}" for kind, name in Trainer.STATE))
        settings = {name: data[name].item() for name in Trainer.SETTINGS if data[name].ndim == 0}
        require(len(settings) == len(Trainer.SETTINGS), f"{path}: settings", "arrays", "single values")
        shape = settings["n_sparse"], settings["n_dense"]
        for kind, name in Trainer.STATE:  # before anything is made of the settings' size
            stored, expected = data[f"{kind}_{name}"], shape[:1] if name == "bias" else shape
            require(stored.shape == expected and stored.dtype == np.float32 and np.isfinite(stored).all(),
                    f"{path}: {kind}_{name}", (stored.dtype.name, stored.shape), f"finite float32 {expected}")
        losses = data["losses"]
        require(losses.ndim == 1 and losses.dtype == np.float64 and np.isfinite(losses).all(), f"{path}: losses",
                (losses.dtype.name, losses.shape), "finite float64 (steps,)")
        trainer = Trainer(**settings, threads=threads)
        for kind, name in Trainer.STATE:
            getattr(getattr(trainer, kind), name)[:] = data[f"{kind}_{name}"]
        trainer.losses = losses.tolist()
        trainer.notes = {name[5:]: data[name].item() for name in data if name.startswith("note_") and data[name].ndim == 0}
        return trainer


# --------------------------------------------------------------------------------------------- 6. the files


@lru_cache
def provenance():
    """What a result depends on beside its settings: command, version of this code, Python, packages, machine."""
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=os.path.dirname(os.path.abspath(__file__)),
                             capture_output=True, text=True, timeout=10)
        revision = git.stdout.strip() or "unknown"
    except (OSError, subprocess.SubprocessError):
        revision = "unknown"
    return {"command": " ".join(sys.argv), "revision": revision, "python": platform.python_version(), "numpy": np.__version__,
            "numba": numba.__version__, "platform": platform.platform(), "cores": cores()}


@contextmanager
def replacing(path):
    """A binary file to write. Only when all of it is on the disk does it take the place of `path`: a crash, a full disk or
    an exception leaves what was there. Raises OSError with the path in it."""
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"  # nobody else's, even on a disk shared by several machines
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as mistake:
        raise OSError(f"{path} could not be written: {mistake.strerror or mistake}; what was there before is untouched") from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def save_npz(path, kind, notes, **arrays):
    """Write arrays as .npz under exactly `path`, with the caller's `notes` (numbers or strings) and the provenance."""
    arrays |= {"note_" + name: value for name, value in (provenance() | notes).items()}
    for name, array in arrays.items():
        require(np.asarray(array).dtype.kind in "fiubU", name, array, "numbers or strings")
    with replacing(path) as file:
        np.savez(file, kind=kind, **arrays)


def load_npz(path, kind, names=()):
    """The arrays that `save_npz` wrote to `path`, by name. Never unpickles, so a file can't run code.

    Raises OSError if there is no such file; ValueError if it is damaged, claims to hold more than it does (so that no
    memory is asked for before the claim is checked), is of another kind (None: any) or lacks one of `names`.
    """
    require(isinstance(path, (str, os.PathLike)), "path", path, "that of a file")
    require(os.path.isfile(path) or not os.path.exists(path), "path", str(path), "a file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            require(all(member.compress_type == zipfile.ZIP_STORED for member in members)
                    and sum(member.file_size for member in members) <= os.path.getsize(path), "contents", "larger or compressed",
                    "stored as they are")
            data = {member.filename.removesuffix(".npy"): read_array(archive, member) for member in members}
    except OSError:
        raise
    except Exception as mistake:  # zipfile and NumPy have many ways to say that bytes are wrong
        raise ValueError(f"{path} is damaged or not an .npz file: {mistake}") from None
    found = str(data.get("kind", "unknown"))
    require(kind in (None, found), f"{path}: kind of file", found, kind)
    missing = [name for name in names if name not in data]
    require(not missing, f"{path}: missing arrays", missing, "none")
    return data


def read_array(archive, member):
    """The array in a member of a ZipFile, if its header, its length and its checksum are right; ValueError otherwise."""
    with archive.open(member) as stream:
        require(np.lib.format.read_magic(stream) == (1, 0), member.filename, "another version", "NumPy's format 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        content = stream.read()  # as long as the file at most; checks the sum at its end
    require(not dtype.hasobject and not fortran and dtype.itemsize * math.prod(shape) == len(content), member.filename,
            (str(dtype), shape, len(content)), "an array of numbers or strings as long as its content")
    if dtype.kind == "U":
        points = np.frombuffer(content, np.uint32 if dtype.isnative else np.dtype(np.uint32).newbyteorder())
        require((points <= sys.maxunicode).all(), member.filename, "text that is none", "Unicode")
    return np.frombuffer(content, dtype).reshape(shape).copy()
