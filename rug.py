"""The autoencoder f(x) = ReLU(W_out W_in x + b): its data, gradients and training. Read it first.

1. the data            `sample`: sparse batches, drawn without touching the zeros
2. the model           `Autoencoder`: forward and backward
3. training, plain     `PlainTrainer`: sample, forward, backward, Adam in NumPy; the truth for 5
4. the quality         `evaluate` and `dead_features`, on fresh samples
5. training, compiled  `Trainer`: the same in loops that skip zeros, shared by threads
6. files and checks    .npz files, what an argument may be, one BLAS thread

Features come first in memory: `encoder[j]` is column j of W_in and `decoder[i]` is row i of W_out,
both (n_sparse, n_dense), so W[i, j] = decoder[i] · encoder[j]. A sparse sample's hidden vector is
then a sum of few rows of the encoder, and a silent output touches no row of the decoder.
"""
import ctypes
import glob
import math
import os
import uuid
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from numbers import Integral, Real
from typing import NamedTuple

import numba
import numpy as np

# -------------------------------------------------------------------------------------- 1. the data
class Sparse(NamedTuple):
    """Rows of a sparse matrix (CSR): row k holds entries indptr[k] … indptr[k + 1] − 1."""
    indptr: np.ndarray   # (rows + 1,) int64
    indices: np.ndarray  # (entries,) int32: the column of each; or with room for more
    values: np.ndarray   # (entries,) float32
    columns: int

    def dense(self):
        """The same as an array (rows, columns) float32."""
        x = np.zeros((len(self.indptr) - 1, self.columns), np.float32)
        row, end = np.repeat(np.arange(len(x)), np.diff(self.indptr)), self.indptr[-1]
        x[row, self.indices[:end]] = self.values[:end]
        return x

def empty_rows(rows, columns):
    """Sparse with room for every entry. Pages of memory that are never written cost none."""
    indices, values = np.empty(rows * columns, np.int32), np.empty(rows * columns, np.float32)
    return Sparse(np.zeros(rows + 1, np.int64), indices, values, columns)

def sample(batch, n_sparse, p, seed, step=0):
    """Draw samples x_i = c_i u_i with c_i ~ Bernoulli(p) and u_i ~ Uniform[0, 1), all independent.

    Returns `batch` Sparse rows, `.dense()` (batch, n_sparse); row k depends on (seed, step, k)
    alone. ValueError for p outside (0, 1], batch or n_sparse < 1, seed or step < 0.
    """
    batch, n_sparse = require_integer("batch", batch, 1), require_integer("n_sparse", n_sparse, 1)
    seed, step = require_integer("seed", seed, 0, 2**63), require_integer("step", step, 0, 2**63)
    require_memory(f"a batch of {batch} × {n_sparse}", 8 * batch * n_sparse)
    x = empty_rows(batch, n_sparse)
    draw_rows(np.uint64(seed), np.uint64(step), 0, require_positive("p", p, 1), x)
    entries = slice(x.indptr[-1])
    return x._replace(indices=x.indices[entries].copy(), values=x.values[entries].copy())

# Hot loops are compiled once, and kept on disk where the checkout can be written to: without the
# GIL, so that threads run at once; x/0 is infinity; sums may be reordered, but NaN stays NaN.
compiled = numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"},
                      cache=os.access(os.path.dirname(os.path.abspath(__file__)), os.W_OK))

@compiled
def scramble(bits):
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): 64 bits in, 64 well-mixed bits out."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))

@compiled
def draw_rows(seed, step, first, p, x):
    """Fill x with rows first, first + 1, … of the batch that (seed, step) names.

    The number of silent features before the next active one is geometric, floor(ln u / ln(1 − p)):
    the loop jumps from one to the next. Each row has a generator of its own."""
    entry, inverse_log = 0, 1 / math.log1p(-p)  # −0 for p = 1: then no feature is skipped
    for k in range(len(x.indptr) - 1):
        state = scramble(scramble(scramble(seed) + step) + np.uint64(first + k))
        j = -1
        while True:
            state += np.uint64(0x9E3779B97F4A7C15)
            bits = scramble(state)  # the upper 40 decide the jump, the lower 24 the value
            jump = math.log((float(bits >> np.uint64(24)) + 0.5) * 2.0**-40) * inverse_log
            if jump >= x.columns - 1 - j:
                break
            j += 1 + int(jump)
            x.indices[entry] = j
            x.values[entry] = np.float32(bits & np.uint64(0xFFFFFF)) * np.float32(2.0**-24)
            entry += 1
        x.indptr[k + 1] = entry

# ------------------------------------------------------------------------------------- 2. the model
Parameters = namedtuple("Parameters", "encoder decoder bias")  # or gradients, or Adam's moments

class Autoencoder:
    """f(x) = ReLU(W x + b) with W = W_out W_in of rank n_dense.
    encoder: columns of W_in, decoder: rows of W_out, both (n_sparse, n_dense); bias: (n_sparse,).
    float32, or float64 if all three are. ValueError for wrong shapes or numbers that aren't finite.
    """
    def __init__(self, encoder, decoder, bias):
        arrays = [np.asarray(array) for array in (encoder, decoder, bias)]
        dtype = np.float64 if all(array.dtype == np.float64 for array in arrays) else np.float32
        shape = arrays[0].shape
        require(len(shape) == 2 and 1 <= shape[1] <= shape[0], "encoder's shape", shape,
                "(n_sparse, n_dense) with 1 ≤ n_dense ≤ n_sparse")
        for name, array, expected in zip(Parameters._fields, arrays, (shape, shape, shape[:1])):
            require(array.shape == expected, f"{name}'s shape", array.shape, expected)
            finite = array.dtype.kind in "fiu" and (abs(array) <= np.finfo(dtype).max).all()
            require(finite, name, array.dtype.name, f"finite real numbers within {dtype.__name__}")
        self.encoder, self.decoder, self.bias = (np.ascontiguousarray(a, dtype) for a in arrays)
        self.n_sparse, self.n_dense = shape

    def forward(self, x):
        """f(x) for x (batch, n_sparse); the same shape."""
        x = require_batch(x, self.n_sparse)
        return np.maximum(x @ self.encoder @ self.decoder.T + self.bias, 0)

    def loss_and_gradients(self, x):
        """L = mean of (f(x) − x)² over samples and features, and its derivatives.

        With z = h W_outᵀ + b and h = x W_inᵀ the chain rule reads, from the output to the input,
            dL/dz = 2 (f(x) − x) [z > 0] / (batch n_sparse),
            dL/dW_out = (dL/dz)ᵀ h,      dL/db = Σ_batch dL/dz,
            dL/dh = dL/dz W_out,         dL/dW_in = (dL/dh)ᵀ x.
        x: (batch, n_sparse). Returns (loss, Parameters); W_in's derivative has the encoder's shape.
        """
        x = require_batch(x, self.n_sparse)
        hidden = x @ self.encoder                                    # (batch, n_dense)
        output = np.maximum(hidden @ self.decoder.T + self.bias, 0)  # (batch, n_sparse)
        error = output - x
        loss = float(np.mean(error**2, dtype=np.float64))
        dz = 2 / error.size * error * (output > 0)                   # (batch, n_sparse)
        d_hidden = dz @ self.decoder                                 # (batch, n_dense)
        return loss, Parameters(x.T @ d_hidden, dz.T @ hidden, dz.sum(axis=0))

    def save(self, path, **notes):
        """Write the weights to `path` (.npz), atomically; notes: how they came about."""
        save_npz(path, "Autoencoder", notes, **vars(self))

    @staticmethod
    def load(path):
        """The model saved at `path`; ValueError or OSError if missing, damaged or not a model."""
        data = load_npz(path, "Autoencoder", Parameters._fields)
        return Autoencoder(*(data[name] for name in Parameters._fields))

# --------------------------------------------------------------------- 3. training, in plain NumPy
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-7  # Adam's, with the ε of the published training code

def linear_start(n_sparse, n_dense, p, rng):
    """The best linear autoencoder with random tied weights: it begins below Var x everywhere.

    Rows of encoder = decoder have random directions and length √g: W_ii = g, E W_ij² = g²/n_dense,
    and a linear output loses Var x [(1 − g)² + g²/r] on average, least at g = r/(1 + r). The bias
    makes the mean input give the mean output: b_i = (p/2) (1 − Σ_j W_ij).
    """
    encoder = rng.standard_normal((n_sparse, n_dense))
    gain = n_dense / (n_sparse + n_dense)
    encoder *= math.sqrt(gain) / np.linalg.norm(encoder, axis=1, keepdims=True)
    return Parameters(encoder, encoder.copy(), p / 2 * (1 - encoder @ encoder.sum(axis=0)))

def paper_start(n_sparse, n_dense, p, rng):
    """The published start: all uniform in ±1/√fan_in. Half of the W_ii are negative; some stay."""
    return Parameters(rng.uniform(-1, 1, (n_sparse, n_dense)) / math.sqrt(n_sparse),
                      rng.uniform(-1, 1, (n_sparse, n_dense)) / math.sqrt(n_dense),
                      rng.uniform(-1, 1, n_sparse) / math.sqrt(n_dense))

STARTS = {"linear": linear_start, "paper": paper_start}

class PlainTrainer:
    """Trains an autoencoder on endless fresh data; the loop over `.step(lr)` is the caller's.
    n_sparse, n_dense, batch ≥ 1, n_dense ≤ n_sparse; p in (0, 1]; seed ≥ 0; init: one of STARTS.
    ValueError otherwise, or if memory would not do. `.losses`: of every step so far.
    """
    SETTINGS = ("n_sparse", "n_dense", "p", "batch", "seed", "init")

    def __init__(self, n_sparse, n_dense, p, batch=1024, seed=0, init="linear"):
        self.n_sparse = n_sparse = require_integer("n_sparse", n_sparse, 1)
        self.n_dense = n_dense = require_integer("n_dense", n_dense, 1, n_sparse)
        self.batch, self.init = require_integer("batch", batch, 1), init
        self.seed, self.p = require_integer("seed", seed, 0, 2**63), require_positive("p", p, 1)
        require(init in list(STARTS), "init", init, "one of " + ", ".join(STARTS))
        require_memory(f"training {n_sparse} × {n_dense} with batch {batch}",
                       24 * n_sparse * n_dense + 12 * batch * n_sparse)
        start = STARTS[init](n_sparse, n_dense, self.p, np.random.default_rng(self.seed))
        self.weights = Parameters(*(array.astype(np.float32) for array in start))
        self.means = Parameters(*map(np.zeros_like, self.weights))    # Adam's m
        self.squares = Parameters(*map(np.zeros_like, self.weights))  # Adam's v
        self.state = Parameters(*zip(self.weights, self.means, self.squares))
        self.losses = []

    @np.errstate(over="ignore", invalid="ignore")  # a run that diverges shows it by its loss
    def step(self, lr):
        """Train on one fresh batch at rate `lr`, in (0, 1e30]; returns its loss before the step."""
        x = sample(self.batch, self.n_sparse, self.p, self.seed, step=len(self.losses)).dense()
        return self.follow(lr, *Autoencoder(*self.weights).loss_and_gradients(x))

    def follow(self, lr, loss, gradients):
        """Record `loss`, and take one step of Adam (Kingma, Ba 2015) along the gradients g:

            m ← β₁ m + (1 − β₁) g,      v ← β₂ v + (1 − β₂) g²,
            w ← w − lr m̂ / (√v̂ + ε)  with  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)  at step t.
        """
        require_positive("lr", lr, 1e30)
        self.losses.append(loss)
        t = len(self.losses)
        for w, m, v, g in zip(self.weights, self.means, self.squares, gradients):
            m[:] = BETA1 * m + (1 - BETA1) * g
            v[:] = BETA2 * v + (1 - BETA2) * g**2
            w -= lr * (m / (1 - BETA1**t)) / (np.sqrt(v / (1 - BETA2**t)) + EPSILON)
        return loss

    @property
    def model(self):
        """A copy of the model as it is now."""
        return Autoencoder(*(array.copy() for array in self.weights))

    def save(self, path, **notes):
        """Write all that is needed to go on, atomically; `load` gives notes back as `.notes`."""
        settings = {name: getattr(self, name) for name in self.SETTINGS}
        save_npz(path, type(self).__name__, notes, losses=np.array(self.losses), **settings,
                 **self.state._asdict())

    @classmethod
    def load(cls, path, **changed):
        """The trainer saved at `path`, to go on bitwise; `changed` settings differ. ValueError or
        OSError if the file is missing, damaged or not this kind of trainer's."""
        data = load_npz(path, cls.__name__, (*cls.SETTINGS, "losses", *Parameters._fields))
        trainer = cls(**{name: data[name].tolist() for name in cls.SETTINGS} | changed)
        for name, arrays in trainer.state._asdict().items():
            found = data[name].dtype.name, data[name].shape
            fine = found == ("float32", np.shape(arrays)) and np.isfinite(data[name]).all()
            require(fine, f"{path}: {name}", found, f"finite float32 {np.shape(arrays)}")
            for array, stored in zip(arrays, data[name]):
                array[:] = stored
        trainer.losses = data["losses"].astype(float).reshape(-1).tolist()
        trainer.notes = {name.removeprefix("note_"): value.tolist() for name, value in data.items()
                         if name.startswith("note_")}
        return trainer

# ----------------------------------------------------------------------------------- 4. the quality
EVALUATION_STEPS = 2**62  # evaluation draws its batches from steps that no training reaches
Estimate = namedtuple("Estimate", "loss error")  # a sampled mean and its standard error

def evaluate(model, p, samples, seed):
    """The loss of `model` on fresh samples, an Estimate: mean of (f(x) − x)² per feature.
    model: anything with `.n_sparse` and `.forward(x)` for x (batch, n_sparse). The error of one
    sample is NaN. ValueError for p outside (0, 1], samples < 1, seed < 0.
    """
    require(hasattr(model, "forward"), "model", model, "one with n_sparse and forward(x)")
    samples = require_integer("samples", samples, 1)
    at_once = max(1, 2**21 // model.n_sparse)
    losses = []  # of each sample: samples are independent, features of one sample are not
    for start in range(0, samples, at_once):
        batch = min(at_once, samples - start)
        x = sample(batch, model.n_sparse, p, seed, EVALUATION_STEPS + start).dense()
        losses.append(np.square(model.forward(x) - x).mean(axis=1, dtype=np.float64))
    losses = np.concatenate(losses)
    error = losses.std(ddof=1) / math.sqrt(samples) if samples > 1 else math.nan
    return Estimate(float(losses.mean()), float(error))

def dead_features(model, p, samples=256, seed=0):
    """Which features no gradient reaches, (n_sparse,) bool: f(x)_i is 0 in each sample, even with
    x_i turned to 1. They die of a start with W_ii < 0, and of high rates (Adam moves all alike)."""
    require(isinstance(model, Autoencoder), "model", model, "an Autoencoder")
    x = sample(samples, model.n_sparse, p, seed, EVALUATION_STEPS - 1).dense()
    z = x @ model.encoder @ model.decoder.T + model.bias
    turned_on = z + (1 - x) * np.einsum("ij,ij->i", model.decoder, model.encoder)
    return np.maximum(z, turned_on).max(axis=0) <= 0

# ---------------------------------------------------------------------------- 5. training, compiled
DENSE_FROM = 1 / 5  # share of active outputs from which dense products win; measured 1/10 … 1/3
BLOCK = 256         # features whose gradients are made before Adam takes them: they stay in cache

@compiled
def add_product(rows, table, out):
    """out += A · table for sparse rows A: out[k] += Σ_e values[e] · table[indices[e]], e in row k.

    All of training's products but the decode have a sparse factor and can be done by this: the
    hidden vectors x W_inᵀ, their gradients dz W_out, and dzᵀ h and xᵀ dh with A transposed.
    """
    indptr, indices, values = rows.indptr, rows.indices, rows.values
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

@compiled
def residual(z, bias, x, active, losses, d_bias):
    """From z = h W_outᵀ (rows, n_sparse), in place, to dz = (f(x) − x) [f(x) > 0], f = ReLU(z + b).

    Adds Σ_rows dz to d_bias; writes each row's squared error to losses, and the entries of dz that
    are not 0 to the sparse rows `active`. The factor 2/(batch n_sparse) of dL/dz waits for Adam.
    """
    n_sparse, entry = z.shape[1], 0
    for k in range(len(z)):
        output, missed = z[k], np.float32(0)
        for i in range(n_sparse):  # the row of z becomes f(x); written so that NaN stays NaN
            before = output[i] + bias[i]
            output[i] = np.float32(0) if before <= 0 else before
        for e in range(x.indptr[k], x.indptr[k + 1]):  # where x is on, f(x) becomes the error …
            i, value = x.indices[e], x.values[e]
            if output[i] > 0:
                output[i] -= value
            else:
                missed += value * value  # … or, if f(x) is 0, an error without a gradient
        dz, total = output, missed  # elsewhere x = 0 and f(x) is the error: the row now holds dz
        for i in range(n_sparse):
            total += dz[i] * dz[i]
            d_bias[i] += dz[i]
        losses[k] = total
        for i in range(n_sparse):  # always written, kept if dz is not 0: nothing to branch on
            active.indices[entry] = i
            entry += dz[i] != 0
        for e in range(active.indptr[k], entry):
            active.values[e] = dz[active.indices[e]]
        active.indptr[k + 1] = entry

@compiled
def transpose(rows):
    """The transpose of sparse rows: count each column's entries, then hand out their places."""
    n_rows, entries = len(rows.indptr) - 1, rows.indptr[-1]
    indices, values = np.empty(entries, np.int32), np.empty(entries, np.float32)
    place = np.zeros(rows.columns + 2, np.int64)
    for entry in range(entries):
        place[rows.indices[entry] + 2] += 1
    place[:] = np.cumsum(place)  # column i begins at place[i + 1], which now runs on to its end
    for k in range(n_rows):
        for entry in range(rows.indptr[k], rows.indptr[k + 1]):
            i = rows.indices[entry] + 1
            indices[place[i]], values[place[i]] = k, rows.values[entry]
            place[i] += 1
    return Sparse(place[:-1], indices, values, n_rows)

@compiled
def adam(weight, mean, square, gradient, scale, rate, root):
    """`PlainTrainer.follow` with g = scale · gradient, rate = lr/(1 − β₁ᵗ), root = 1/√(1 − β₂ᵗ)."""
    beta1, beta2, one = np.float32(BETA1), np.float32(BETA2), np.float32(1)
    for k in range(len(weight)):
        g = scale * gradient[k]
        mean[k] = beta1 * mean[k] + (one - beta1) * g
        square[k] = beta2 * square[k] + (one - beta2) * g * g
        weight[k] -= rate * mean[k] / (np.sqrt(square[k]) * root + np.float32(EPSILON))

class Trainer(PlainTrainer):
    """PlainTrainer's training in compiled loops, shared by threads.
    A step has two parts, each split among threads with nothing to merge: by samples, then by
    features. It differs from plain training by rounding alone, and with the same number of threads
    it gives the same bits. threads: 1 or more, None for one a core.
    """
    SETTINGS = (*PlainTrainer.SETTINGS, "threads")

    def __init__(self, n_sparse, n_dense, p, batch=1024, seed=0, init="linear", threads=None):
        super().__init__(n_sparse, n_dense, p, batch, seed, init)
        n_sparse, n_dense, batch = self.n_sparse, self.n_dense, self.batch
        threads = require_integer("threads", cores() if threads is None else threads, 1, 1024)
        self.threads = threads = min(threads, batch, n_sparse)
        self.pool = ThreadPoolExecutor(threads)
        self.rows, self.features = ([slice(n * k // threads, n * (k + 1) // threads)
                                     for k in range(threads)] for n in (batch, n_sparse))
        self.hidden, self.d_hidden = np.empty((2, batch, n_dense), np.float32)
        self.dz, self.d_bias = (np.empty((n, n_sparse), np.float32) for n in (batch, threads))
        self.row_losses = np.empty(batch, np.float32)
        self.gradient = np.empty((threads, BLOCK, n_dense), np.float32)
        sizes = [rows.stop - rows.start for rows in self.rows]
        self.x, self.active = ([empty_rows(size, n_sparse) for size in sizes] for _ in range(2))
        self.x_by_feature, self.active_by_feature = [None] * threads, [None] * threads
        self.sparse = [None] * threads  # whether few outputs are active, fewer than DENSE_FROM

    def step(self, lr):
        """As PlainTrainer's. Interrupting it leaves the weights half updated."""
        lr, t = require_positive("lr", lr, 1e30), len(self.losses) + 1
        rate, root = np.float32(lr / (1 - BETA1**t)), np.float32(1 / math.sqrt(1 - BETA2**t))
        for task in (self._by_samples, lambda k: self._by_features(k, rate, root)):
            others = [self.pool.submit(task, k) for k in range(1, self.threads)]
            task(0)  # on this thread
            for other in others:
                other.result()
        self.losses.append(self.row_losses.sum(dtype=np.float64) / (self.batch * self.n_sparse))
        return self.losses[-1]

    @np.errstate(over="ignore", invalid="ignore")
    def _by_samples(self, k):
        """Thread k's samples: from drawing x to the gradient of the hidden vectors."""
        rows, x, active = self.rows[k], self.x[k], self.active[k]
        hidden, d_hidden, dz = self.hidden[rows], self.d_hidden[rows], self.dz[rows]
        draw_rows(np.uint64(self.seed), np.uint64(len(self.losses)), rows.start, self.p, x)
        hidden[:] = 0
        add_product(x, self.weights.encoder, hidden)
        np.matmul(hidden, self.weights.decoder.T, out=dz)  # still z; the one product that is dense
        self.d_bias[k] = 0
        residual(dz, self.weights.bias, x, active, self.row_losses[rows], self.d_bias[k])
        self.sparse[k] = active.indptr[-2] <= int(DENSE_FROM * dz.size)
        if self.sparse[k]:
            d_hidden[:] = 0
            add_product(active, self.weights.decoder, d_hidden)
            self.active_by_feature[k] = transpose(active)
        else:
            np.matmul(dz, self.weights.decoder, out=d_hidden)
        self.x_by_feature[k] = transpose(x)

    @np.errstate(over="ignore", invalid="ignore")
    def _by_features(self, k, rate, root):
        """Thread k's features: gradients of encoder, decoder and bias rows, and Adam on each."""
        scale = np.float32(2 / (self.batch * self.n_sparse))

        def update(name, part, gradient):
            arrays = (array[part].reshape(-1) for array in getattr(self.state, name))
            adam(*arrays, gradient.reshape(-1), scale, rate, root)
        features = self.features[k]
        for start in range(features.start, features.stop, BLOCK):
            part = slice(start, min(start + BLOCK, features.stop))
            gradient = self.gradient[k, :part.stop - part.start]
            for name, columns, table in (("decoder", self.active_by_feature, self.hidden),
                                         ("encoder", self.x_by_feature, self.d_hidden)):
                if name == "decoder" and not all(self.sparse):
                    np.matmul(self.dz[:, part].T, table, out=gradient)
                else:
                    gradient[:] = 0
                    for rows, (indptr, *entries) in zip(self.rows, columns):
                        own = Sparse(indptr[part.start:part.stop + 1], *entries)
                        add_product(own, table[rows], gradient)
                update(name, part, gradient)
        update("bias", features, self.d_bias[:, features].sum(axis=0))

def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

# ------------------------------------------------------------------------------ 6. files and checks
@contextmanager
def replacing(path):
    """A binary file that takes the place of `path` once it is whole; OSError names `path`."""
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"  # nobody else's, even on a shared disk
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as mistake:
        raise OSError(f"{path} could not be written: {mistake.strerror or mistake}") from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)

def save_npz(path, kind, notes, **arrays):
    """Write arrays, and notes as "note_…", as .npz under exactly `path`, whole or not at all."""
    arrays |= {"note_" + name: value for name, value in notes.items()}
    plain = all(np.asarray(array).dtype.kind in "fiubU" for array in arrays.values())
    require(plain, f"notes for {path}", notes, "numbers or strings")
    with replacing(path) as file:
        np.savez(file, kind=kind, **arrays)

def load_npz(path, kind, names):
    """The arrays that `save_npz` wrote to `path`, by name. Never unpickles: no file can run code.

    OSError if there is no such file; ValueError if it is damaged, of another kind or lacks `names`.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            data = dict(archive)
    except OSError:
        raise
    except Exception as mistake:  # zipfile and NumPy have many ways to say that bytes are wrong
        raise ValueError(f"{path} is damaged or no .npz file: {mistake}") from None
    found = str(data.get("kind", "unknown")), sorted({*names} - {*data})
    require(found == (kind, []), f"{path}: kind of file and missing arrays", found, (kind, []))
    return data

def require(condition, name, value, allowed):
    """Raise the ValueError for a mistaken argument: its name, its value and what is allowed."""
    if not condition:
        value = value.item() if isinstance(value, np.generic) else value
        raise ValueError(f"{name} must be {allowed}, got {value!r}")

def require_integer(name, value, low, high=2**31 - 1):
    """`value` as Python's int, which can't overflow; ValueError unless whole and in low … high."""
    whole = isinstance(value, Integral) and low <= value <= high
    require(whole, name, value, f"a whole number in {low} … {high}")
    return int(value)

def require_positive(name, value, most):
    """`value` as a float; ValueError unless it is a number in (0, most]."""
    fine = isinstance(value, Real) and 0 < value <= most
    require(fine, name, value, f"a number in (0, {most:g}]")
    return float(value)

def require_batch(x, n_sparse):
    """`x` as an array; ValueError unless it is real numbers (batch, n_sparse), batch 1 or more."""
    x = np.asarray(x)
    real = x.dtype.kind in "fiub" and x.ndim == 2 and len(x) > 0 and x.shape[1] == n_sparse
    require(real, "x", (x.dtype.name, x.shape), f"real numbers (batch, {n_sparse}), batch ≥ 1")
    return x

def require_memory(what, n_bytes):
    """ValueError that says how large `what` is, unless `n_bytes` fit into this machine's memory."""
    if hasattr(os, "sysconf"):  # where it is missing (Windows) NumPy's own MemoryError has to do
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        require(n_bytes <= most, f"memory for {what}", f"{n_bytes / 2**30:.1f} GiB",
                f"at most this machine's {most / 2**30:.1f} GiB")

# BLAS would start threads of its own, which spin while ours wait for the core. This holds the
# OpenBLAS of NumPy's wheels to one, whatever was imported first; other BLAS are left as they are.
for _folder in (np.__path__[0] + ".libs", os.path.join(np.__path__[0], ".dylibs")):
    for _blas in map(ctypes.CDLL, glob.glob(os.path.join(_folder, "*openblas*"))):
        for _name in ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads"):
            getattr(_blas, _name, lambda threads: None)(1)
