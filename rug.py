"""The autoencoder f(x) = ReLU(W_out W_in x + b): its data, its gradients, its training.

Start here. There is no rug in this file yet: it holds the network that the paper is about, and
forge.py weaves the rug. Sections 1 to 4 are plain NumPy. Section 5 does the same again, faster, and
section 6 has the small checks that all of them use.

1. Data                   `sample`: most features are off, the others uniform in [0, 1)
2. The model              `Autoencoder`: forward and backward, by hand
3. Training               `adam`, where to start, how fast and how long, `PlainTrainer`
4. Quality                `evaluate` and `dead_features`, on fresh samples
5. The same, compiled     `Trainer`: loops that skip zeros, shared by threads
6. Files and checks       weights as .npz files, and what an argument may be

Features come first in memory: `encoder[j]` is column j of W_in and `decoder[i]` is row i of W_out.
Both arrays have the shape (n_sparse, n_dense). The network sees only the product W = W_out W_in,
and W[i, j] = decoder[i] · encoder[j] is what feature j adds to output i.

n_sparse is the number of features, n_dense the number of hidden units, p the probability that a
feature is on. "Sparse" describes the data; the hidden layer is narrow and dense.
"""
import ctypes
import functools
import glob
import math
import os
import shutil
import threading
import uuid
from contextlib import contextmanager
from numbers import Integral, Real
from queue import SimpleQueue
from typing import NamedTuple

import numba
import numpy as np

# What help(rug) shows.
__all__ = """sample Autoencoder adam linear_start paper_start peak_rate default_steps learning_rate
learning_rates PlainTrainer Trainer evaluate dead_features""".split()


# ---------------------------------------------------------------------------------------- 1. Data

# The stream is a part of the generator's seed, so training and evaluation never share samples. New
# weights are drawn with the seed alone, and `Trainer` has another generator altogether.
TRAINING = 1
EVALUATION = 2


def sample(batch, n_sparse, p, seed, step=0, stream=TRAINING):
    """Draw a batch of samples x_i = c_i u_i, c_i ~ Bernoulli(p), u_i ~ Uniform[0, 1).

    All c_i and u_i are independent. p is a number, or an array (n_sparse,) if features differ in
    how often they are on. The same (seed, step, stream) gives the same batch.

    Returns an array (batch, n_sparse) float32. Raises ValueError for p outside (0, 1], batch or
    n_sparse below 1, seed or step below 0.

    This is the law of x. `draw_rows` draws it too, and all formulas of theory.py are integrals over
    it: another law needs other formulas there.
    """
    shape = whole_number("batch", batch, 1), whole_number("n_sparse", n_sparse, 1)
    p = probability(p, n_sparse)
    key = whole_number("seed", seed, 0), whole_number("step", step, 0), stream

    # Which features are on, times their values.
    rng = np.random.default_rng(key)
    on = rng.random(shape) < p
    values = rng.random(shape, dtype=np.float32)
    return on * values


# ----------------------------------------------------------------------------------- 2. The model

class Parameters(NamedTuple):
    """Three arrays: weights, or their gradients, or their running means in Adam."""

    encoder: np.ndarray  # (n_sparse, n_dense), row j is column j of W_in
    decoder: np.ndarray  # (n_sparse, n_dense), row i is row i of W_out
    bias: np.ndarray     # (n_sparse,)


class Autoencoder:
    """f(x) = ReLU(W x + b) with W = W_out W_in, a matrix of rank n_dense.

    encoder, decoder: (n_sparse, n_dense); bias: (n_sparse,). They are kept as float32, or as
    float64 if all three are. Raises ValueError for shapes that don't fit together and for numbers
    that are not finite.
    """

    def __init__(self, encoder, decoder, bias):
        arrays = [np.asarray(array) for array in (encoder, decoder, bias)]
        double = all(array.dtype == np.float64 for array in arrays)
        dtype = np.float64 if double else np.float32

        shape = arrays[0].shape
        require(len(shape) == 2, "encoder's shape", shape, "(n_sparse, n_dense)")
        for name, array, expected in zip(Parameters._fields, arrays, (shape, shape, shape[:1])):
            require(array.shape == expected, f"{name}'s shape", array.shape, expected)
            finite = array.dtype.kind in "fiu" and (np.abs(array) <= np.finfo(dtype).max).all()
            found = "NaN, infinity or another type"
            require(finite, name, found, f"real numbers that {dtype.__name__} can hold")

        # In one piece of memory, row after row, as the compiled loops expect it.
        self.n_sparse, self.n_dense = shape
        self.encoder = np.ascontiguousarray(arrays[0], dtype)
        self.decoder = np.ascontiguousarray(arrays[1], dtype)
        self.bias = np.ascontiguousarray(arrays[2], dtype)

    def __repr__(self):
        return f"Autoencoder(n_sparse={self.n_sparse}, n_dense={self.n_dense})"

    @property
    def parameters(self):
        """The three arrays themselves, not copies."""
        return Parameters(self.encoder, self.decoder, self.bias)

    @property
    def diagonal(self):
        """W_ii, (n_sparse,)."""
        return np.einsum("ij,ij->i", self.decoder, self.encoder)

    def preactivation(self, x):
        """z = W x + b, shaped like x, (batch, n_sparse)."""
        x = batch_of_samples(x, self.n_sparse)
        hidden = x @ self.encoder  # (batch, n_dense)
        return hidden @ self.decoder.T + self.bias

    def forward(self, x):
        """f(x) = ReLU(z), shaped like x, (batch, n_sparse)."""
        return np.maximum(self.preactivation(x), 0)

    def loss_and_gradients(self, x):
        """The loss L = mean of (f(x) − x)² over samples and features, and its gradients.

        With h = W_in x and z = W_out h + b for each sample, the chain rule runs from the output
        back to the input (sums are over the samples of the batch):

            dL/dz     = 2 (f(x) − x) [z > 0] / (batch · n_sparse)
            dL/db     = Σ dL/dz
            dL/dW_out = Σ (dL/dz) hᵀ
            dL/dh     = W_outᵀ (dL/dz)
            dL/dW_in  = Σ (dL/dh) xᵀ

        Returns (loss, Parameters); each gradient has the shape of its own array.
        """
        x = batch_of_samples(x, self.n_sparse)

        # Forward, as above.
        hidden = x @ self.encoder              # (batch, n_dense)
        z = hidden @ self.decoder.T + self.bias
        error = np.maximum(z, 0) - x
        loss = float(np.mean(error**2, dtype=np.float64))

        # Backward through ReLU. Where its output is 0 it passes no gradient.
        dz = 2 / error.size * error * (z > 0)  # (batch, n_sparse)
        # Backward through the decoder and the bias, and then through the encoder.
        d_bias = dz.sum(axis=0)
        d_decoder = dz.T @ hidden
        d_hidden = dz @ self.decoder           # (batch, n_dense)
        d_encoder = x.T @ d_hidden
        return loss, Parameters(d_encoder, d_decoder, d_bias)

    def save(self, path):
        """Write the weights to `path` (.npz), whole or not at all."""
        save_npz(path, "Autoencoder", **self.parameters._asdict())

    @staticmethod
    def load(path):
        """The model saved at `path`; ValueError or OSError if it is missing or damaged."""
        data = load_npz(path, "Autoencoder", Parameters._fields)
        return Autoencoder(data["encoder"], data["decoder"], data["bias"])


# ------------------------------------------------------------------------------------ 3. Training

# Adam's constants. Change them here: compiled loops keep the values that they were compiled with.
BETA1 = 0.9     # how much of the running mean of gradients stays in each step
BETA2 = 0.999   # the same for the running mean of their squares
EPSILON = 1e-7  # as in the paper's training code


def adam(weight, gradient, mean, square, t, lr):
    """Step t = 1, 2, … of Adam (Kingma, Ba 2015) at rate lr; changes its arrays in place.

        m ← β₁ m + (1 − β₁) g
        v ← β₂ v + (1 − β₂) g²
        w ← w − lr m̂ / (√v̂ + ε),    m̂ = m / (1 − β₁ᵗ),    v̂ = v / (1 − β₂ᵗ)

    weight w, gradient g, mean m and square v have one shape; m and v start at 0, and the division
    by 1 − βᵗ makes up for that.
    """
    mean[:] = BETA1 * mean + (1 - BETA1) * gradient
    square[:] = BETA2 * square + (1 - BETA2) * gradient**2
    corrected_mean = mean / (1 - BETA1**t)
    corrected_square = square / (1 - BETA2**t)
    weight -= lr * corrected_mean / (np.sqrt(corrected_square) + EPSILON)


def linear_start(n_sparse, n_dense, p, rng):
    """Random tied weights with the best gain for a linear model: Parameters in float64.

    Tied means encoder = decoder. Let each row point in a random direction and have the length √g.
    Then W_ii = g exactly, and W_ij is random with E W_ij² = g²/n_dense. Leave ReLU away, and let
    the bias take care of the means. Then feature i has on average the loss

        Var x [(1 − g)² + Σ_{j≠i} E W_ij²]  ≈  Var x [(1 − g)² + g²/r],      r = n_dense/n_sparse.

    It is least at g = r/(1 + r), where it is Var x/(1 + r). ReLU can only help, because x ≥ 0. So
    training begins better than a model that answers the mean, whatever r and p are.

    The bias lets the mean input E x_j = p_j/2 give the mean output: b_i = p_i/2 − Σ_j W_ij p_j/2.
    All W_ii are positive, so that no feature starts with an output that it can never move (see
    `dead_features`).
    """
    # Gaussian rows have no preferred direction; then give each the length √g.
    encoder = rng.standard_normal((n_sparse, n_dense))
    gain = n_dense / (n_sparse + n_dense)  # g
    encoder *= math.sqrt(gain) / np.linalg.norm(encoder, axis=1, keepdims=True)

    # W times the mean input is two thin products; W itself is never made.
    mean = np.full(n_sparse, p / 2)
    bias = mean - encoder @ (encoder.T @ mean)
    return Parameters(encoder, encoder.copy(), bias)


def paper_start(n_sparse, n_dense, p, rng):
    """The start of the paper's code: uniform in ±1/√(number of inputs of the layer), so that half
    of the W_ii are negative."""
    encoder = rng.uniform(-1, 1, (n_sparse, n_dense)) / math.sqrt(n_sparse)
    decoder = rng.uniform(-1, 1, (n_sparse, n_dense)) / math.sqrt(n_dense)
    bias = rng.uniform(-1, 1, n_sparse) / math.sqrt(n_dense)
    return Parameters(encoder, decoder, bias)


STARTS = {"linear": linear_start, "paper": paper_start}


def peak_rate(n_sparse, n_dense=1, p=0.0):
    """The default peak learning rate. How it was found: end of experiments/README.md.

    With n_dense and p it is lower where many features act on an output at once. Adam moves every
    weight by about the rate, and early in training it moves all columns of W_in alike. With r and g
    as in `linear_start` the mean of z then moves by a multiple of rate · p n_sparse √(r g) in one
    step. If that is more than about the deviation of x, √(p/3), it overshoots, and features die. So
    rate · √n_sparse must be below a multiple of 1/√(p n_sparse r g) = 1/√(p n_dense g).
    """
    gain = n_dense / (n_sparse + n_dense)  # g
    highest = 0.6 / max(math.sqrt(np.mean(p) * n_dense * gain), 1e-9)
    return min(120e-3, highest) / math.sqrt(n_sparse)


def default_steps(p):
    """The default number of training steps: more where features are on less often."""
    return round(2000 * max(0.75, math.sqrt(0.045 / p)))


def learning_rate(step, steps, peak):
    """The rate at step 0, 1, …, steps − 1: half a cosine wave from `peak` down to almost 0."""
    return peak * (1 + math.cos(math.pi * step / steps)) / 2


def learning_rates(steps, peak):
    """The `learning_rate` of each step, a list."""
    return [learning_rate(step, steps, peak) for step in range(steps)]


class PlainTrainer:
    """Trains an autoencoder on endless fresh samples; you write the loop over `.step(lr)`:

        trainer = PlainTrainer(n_sparse=64, n_dense=16, p=0.045)
        for step in range(1000):
            trainer.step(learning_rate(step, 1000, peak_rate(64)))

    p: a number in (0, 1], or an array (n_sparse,). batch: samples a step. seed: of weights and
    samples. init: "linear" or "paper" (see STARTS), or an Autoencoder to start from.
    ValueError for sizes below 1, n_dense > n_sparse, seed < 0, another init.

    .model   the Autoencoder in training; it changes with every step
    .losses  the loss of each step so far
    """

    SETTINGS = ("n_sparse", "n_dense", "p", "batch", "seed")

    def __init__(self, n_sparse, n_dense, p, batch=1024, seed=0, init="linear"):
        self.n_sparse = whole_number("n_sparse", n_sparse, 1)
        self.n_dense = whole_number("n_dense", n_dense, 1, self.n_sparse)
        self.p = probability(p, self.n_sparse)
        self.batch = whole_number("batch", batch, 1)
        self.seed = whole_number("seed", seed, 0)

        if isinstance(init, Autoencoder):
            shape = self.n_sparse, self.n_dense
            require(init.encoder.shape == shape, "init's encoder", init.encoder.shape, shape)
            start = init.parameters
            kind = type(init)
        else:
            require(init in (*STARTS,), "init", init, " or ".join(STARTS) + " or an Autoencoder")
            rng = np.random.default_rng(self.seed)
            start = STARTS[init](self.n_sparse, self.n_dense, self.p, rng)
            kind = Autoencoder

        # A copy of the start, in float32, and Adam's two running means, which begin at 0.
        self.model = kind(*(np.array(array, np.float32) for array in start))
        self.means = start._make(map(np.zeros_like, self.model.parameters))
        self.squares = start._make(map(np.zeros_like, self.model.parameters))
        self.losses = []

    def __repr__(self):
        done = f"{len(self.losses)} steps done"
        return f"{type(self).__name__}(n_sparse={self.n_sparse}, n_dense={self.n_dense}, {done})"

    @np.errstate(over="ignore", invalid="ignore")  # whoever calls it sees NaN in the loss
    def step(self, lr):
        """Train on one fresh batch at rate lr > 0; useful ones are up to `peak_rate`.

        Returns the loss of that batch before the step.
        """
        require_rate(lr)
        loss, gradients = self.loss_and_gradients()
        self.losses.append(loss)
        arrays = zip(self.model.parameters, gradients, self.means, self.squares)
        for weight, gradient, mean, square in arrays:
            adam(weight, gradient, mean, square, len(self.losses), lr)
        return loss

    def loss_and_gradients(self):
        """Draw the next batch x; its loss, and the gradients of the weights."""
        x = sample(self.batch, self.n_sparse, self.p, self.seed, step=len(self.losses))
        return self.model.loss_and_gradients(x)

    def _arrays(self):
        """Weights, Adam's means and squares: everything that training changes, but the losses."""
        return [*self.model.parameters, *self.means, *self.squares]

    def save(self, path):
        """Write all that is needed to go on to the same bits, whole or not at all."""
        settings = {name: getattr(self, name) for name in self.SETTINGS}
        state = np.concatenate([array.ravel() for array in self._arrays()])
        save_npz(path, type(self).__name__, state=state, losses=np.array(self.losses), **settings)

    @classmethod
    def load(cls, path):
        """The trainer saved at `path`, to go on from there.

        ValueError or OSError if it is missing, damaged or of another kind of trainer.
        """
        data = load_npz(path, cls.__name__, [*cls.SETTINGS, "state", "losses"])
        size = int(3 * data["n_sparse"] * (2 * data["n_dense"] + 1))
        state = data["state"]
        fits = state.shape == (size,) and np.isfinite(state).all()
        require(fits, f"state in {path}", state.shape, f"({size},), and all finite")

        # A new trainer of the same settings, whose arrays are then filled one after the other.
        trainer = cls(**{name: data[name].tolist() for name in cls.SETTINGS})
        for array in trainer._arrays():
            array.flat[:] = state[:array.size]
            state = state[array.size:]
        trainer.losses = data["losses"].tolist()
        return trainer


# ------------------------------------------------------------------------------------- 4. Quality

class Estimate(NamedTuple):
    """A mean over samples, and its standard error."""

    loss: float
    error: float


def evaluate(model, p, samples, seed):
    """The loss of `model` on fresh samples that no training has seen, as an Estimate.

    model: anything with `.n_sparse` and `.forward(x)` for x (batch, n_sparse). p: a number or an
    array (n_sparse,). Raises ValueError for p outside (0, 1], samples < 1 or seed < 0.
    """
    require(hasattr(model, "forward"), "model", model, "one with n_sparse and forward(x)")
    samples = whole_number("samples", samples, 1)
    at_once = max(1, 2**21 // model.n_sparse)  # so that an array has about two million numbers

    # Samples are independent, but the features of one sample share their hidden units and are not.
    # So the error comes from how the losses of whole samples scatter.
    sample_losses = []
    for start in range(0, samples, at_once):
        batch = min(at_once, samples - start)
        x = sample(batch, model.n_sparse, p, seed, step=start, stream=EVALUATION)
        sample_losses.extend(np.square(model.forward(x) - x).mean(axis=1, dtype=np.float64))

    error = np.std(sample_losses, ddof=1) / math.sqrt(samples) if samples > 1 else math.nan
    return Estimate(float(np.mean(sample_losses)), float(error))


def dead_features(model, p, samples=256, seed=0):
    """Which features are dead: (n_sparse,) bool. A dead feature has output 0 in all the samples,
    even if x_i is turned to 1. Then ReLU passes no gradient, and training hardly brings it back.

    Features die of two causes. One is a start with W_ii < 0, as half of the paper's start has: then
    x_i lowers its own output, and the bias falls until nothing comes through. The other is too high
    a rate: Adam's steps have nearly the same size for every bias, and one step too far down makes
    the output 0 in every sample.

    model: an Autoencoder or a forge.PersianRug.
    """
    # A feature is alive if any sample makes its output positive, as it is or turned on.
    x = sample(samples, model.n_sparse, p, seed, stream=EVALUATION)
    z = model.preactivation(x)
    z_turned_on = z + (1 - x) * model.diagonal  # the same with x_i = 1
    return np.maximum(z, z_turned_on).max(axis=0) <= 0


# ----------------------------------------------------------------------- 5. The same, compiled
#
# What can be saved? In a batch of 1024 samples, 512 features and 128 hidden units with p = 0.045,
# x is 95 % zeros. Once trained, dz is 90 % zeros, because ReLU silences nine of ten outputs. Of the
# five products in a step four have x or dz as a factor and can skip those zeros:
#
#     hidden    = x @ encoder        skips zeros of x
#     z         = hidden @ decoder.T is dense, and the floor under the cost of a step
#     d_hidden  = dz @ decoder       skips zeros of dz
#     d_decoder = dz.T @ hidden      skips zeros of dz
#     d_encoder = x.T @ d_hidden     skips zeros of x
#
# Early in training most outputs are still on. Then the products with dz are dense as well.
# The loops below are compiled by Numba. Above each stands the NumPy line that it replaces.

SILENT_BELOW = 1 / 5  # if fewer outputs are on, loops are faster (measured: from 1/10 … 1/3 on)
BLOCK = 256           # features at a time: their gradients are still in cache when Adam takes them


def compiled(function):
    """Compile `function` with Numba when it is first called, and keep the result on disk.

    nogil: it runs without Python's lock, so that threads run at once. error_model: x/0 is infinity.
    fastmath: sums may be reordered, which makes them fast, but NaN stays NaN. Where nothing can be
    written, or the disk is full, the result is not kept.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    here = os.path.dirname(os.path.abspath(__file__))
    room = numba.config.CACHE_DIR or shutil.disk_usage(here).free > 2**24
    try:
        return numba.njit(cache=room, **options)(function)
    except RuntimeError:  # Numba found no folder that it may write to
        return numba.njit(**options)(function)


class CSR(NamedTuple):
    """A matrix whose few entries are listed row by row ("compressed sparse rows").

    The entries of row k are starts[k] … starts[k + 1] − 1; entry e is values[e], in column
    columns[e]. The two lists may have room for more entries than there are: a trainer's are made
    once and filled anew in each step, and how many entries a batch has is random.
    """

    starts: np.ndarray   # (rows + 1,) int64
    columns: np.ndarray  # (entries,) int32
    values: np.ndarray   # (entries,) float32
    n_columns: int

    def rows(self, part):
        """The rows of a slice `part`, without copying entries."""
        return self._replace(starts=self.starts[part.start:part.stop + 1])


def empty_csr(rows, n_columns):
    """A CSR without entries and with room for all; memory is only taken by what is written."""
    starts = np.zeros(rows + 1, np.int64)
    columns = np.empty(rows * n_columns, np.int32)
    values = np.empty(rows * n_columns, np.float32)
    return CSR(starts, columns, values, n_columns)


@compiled
def scramble(bits):
    """64 bits in, 64 well-mixed bits out: the finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@compiled
def draw_rows(seed, step, first, p, x):
    """`x = sample(…)`: the same law, other numbers. Fills x, a CSR, with the samples from number
    `first` of the batch on. p: (n_sparse,).

    Most features are off, so the loop jumps from one that is on to the next. The number of features
    between the two is geometric, ⌊ln u / ln(1 − p)⌋ for u uniform in (0, 1). If features differ, p
    is the largest, and a rarer feature j is turned on with the probability p_j/p where the jump
    ends. Row k of step t has a generator of its own, splitmix64 seeded by (seed, t, k), so threads
    may draw rows in any order.
    """
    largest = p.max()
    inverse_log = 1 / math.log1p(-largest) if largest < 1 else 0.0  # at 1 none is jumped over
    entry = 0
    for k in range(len(x.starts) - 1):
        state = scramble(scramble(scramble(seed) + step) + np.uint64(first + k))
        j = -1
        while True:
            # 64 fresh bits: the upper 40 decide the jump, the lower 24 the value.
            state += np.uint64(0x9E3779B97F4A7C15)
            bits = scramble(state)
            uniform = (float(bits >> np.uint64(24)) + 0.5) * 2.0**-40
            jump = math.log(uniform) * inverse_log
            if jump >= x.n_columns - 1 - j:
                break  # beyond the last feature
            j += 1 + int(jump)
            if p[j] < largest:
                state += np.uint64(0x9E3779B97F4A7C15)
                if float(scramble(state) >> np.uint64(24)) * 2.0**-40 >= p[j] / largest:
                    continue  # it stays off
            x.columns[entry] = j
            x.values[entry] = np.float32(bits & np.uint64(0xFFFFFF)) * np.float32(2.0**-24)
            entry += 1
        x.starts[k + 1] = entry


@compiled
def add_product(rows, table, out):
    """`out += rows @ table` for a CSR `rows`: out[k] gets the sum of value · table[column].

    table: (n_columns, n_dense), out: (rows, n_dense). This loop does all four products that skip
    zeros; those with dz.T and x.T get the transposed CSR.
    """
    for k in range(len(rows.starts) - 1):
        total = out[k]
        entry = rows.starts[k]
        end = rows.starts[k + 1]

        # Four entries at a time, so that `total` is read and written a quarter as often.
        while entry + 4 <= end:
            value0 = rows.values[entry]
            value1 = rows.values[entry + 1]
            value2 = rows.values[entry + 2]
            value3 = rows.values[entry + 3]
            row0 = table[rows.columns[entry]]
            row1 = table[rows.columns[entry + 1]]
            row2 = table[rows.columns[entry + 2]]
            row3 = table[rows.columns[entry + 3]]
            for d in range(len(total)):
                first_two = value0 * row0[d] + value1 * row1[d]
                total[d] += first_two + value2 * row2[d] + value3 * row3[d]
            entry += 4

        # The last three or fewer, one by one.
        while entry < end:
            value = rows.values[entry]
            row = table[rows.columns[entry]]
            for d in range(len(total)):
                total[d] += value * row[d]
            entry += 1


@compiled
def residual(z, bias, x, dz, row_losses, d_bias):
    """From z = hidden @ decoder.T to the gradient, row by row and in place:

        f = np.maximum(z + bias, 0)
        row_losses = ((f - x)**2).sum(axis=1)
        z = (f - x) * (f > 0)              # the gradient dz, but for a factor
        d_bias += z.sum(axis=0)

    What a row z[k] holds after each stage:

        at first         z, without the bias
        after stage 1    f(x), the output
        after stage 2    f(x) − x where f(x) > 0, else 0: the gradient
        stages 3, 4      only read it

    The factor 2/(batch · n_sparse) of the gradient is left to `compiled_adam`. z, (rows, n_sparse),
    keeps the gradient for dense products; the CSR dz receives its entries that are not 0.
    """
    n_sparse = z.shape[1]
    entry = 0
    for k in range(len(z)):
        row = z[k]

        # Stage 1: the output. Written so that NaN stays NaN.
        for i in range(n_sparse):
            before = row[i] + bias[i]
            row[i] = np.float32(0) if before <= 0 else before

        # Stage 2: where x is off, f(x) already is the error f(x) − x. Where x is on, subtract it.
        # If the output is 0 there, the error is −x: it counts in the loss, but has no gradient.
        loss = np.float32(0)
        for e in range(x.starts[k], x.starts[k + 1]):
            i = x.columns[e]
            if row[i] > 0:
                row[i] -= x.values[e]
            else:
                loss += x.values[e] * x.values[e]

        # Stage 3: the sums.
        for i in range(n_sparse):
            loss += row[i] * row[i]
            d_bias[i] += row[i]
        row_losses[k] = loss

        # Stage 4: list the entries that are not 0. Every i is written to the next free place, and
        # the next i overwrites it if the entry is 0. So there is no branch, which is faster.
        for i in range(n_sparse):
            dz.columns[entry] = i
            entry += row[i] != 0
        for e in range(dz.starts[k], entry):
            dz.values[e] = row[dz.columns[e]]
        dz.starts[k + 1] = entry


@compiled
def transpose(rows, out):
    """`out = rows.T` for two CSRs: count the entries of each column, then hand out their places."""
    # place[i + 1] is where the next entry of column i goes. If columns 0, 1, 2 have 2, 0 and 3
    # entries, place begins as [0, 0, 2, 2, 5]. When all are handed out, each place is at the end of
    # its column, where the next column begins: [0, 2, 2, 5, 5]. These are the new `starts`.
    place = np.zeros(rows.n_columns + 2, np.int64)
    for entry in range(rows.starts[-1]):
        place[rows.columns[entry] + 2] += 1
    place[:] = np.cumsum(place)
    for k in range(len(rows.starts) - 1):
        for entry in range(rows.starts[k], rows.starts[k + 1]):
            i = rows.columns[entry] + 1
            out.columns[place[i]] = k
            out.values[place[i]] = rows.values[entry]
            place[i] += 1
    out.starts[:] = place[:-1]


@compiled
def compiled_adam(weight, gradient, mean, square, t, lr, scale):
    """`adam(weight, scale * gradient, mean, square, t, lr)` for flat float32 arrays."""
    # Constants in float32, or the loop would compute in float64. Both corrections are factors.
    beta1 = np.float32(BETA1)
    beta2 = np.float32(BETA2)
    one = np.float32(1)
    rate = np.float32(lr / (1 - BETA1**t))                    # lr m̂ = rate · m
    inverse_root = np.float32(1 / math.sqrt(1 - BETA2**t))    # √v̂ = √v · inverse_root
    for k in range(len(weight)):
        g = scale * gradient[k]
        mean[k] = beta1 * mean[k] + (one - beta1) * g
        square[k] = beta2 * square[k] + (one - beta2) * g * g
        root = np.sqrt(square[k]) * inverse_root
        weight[k] -= rate * mean[k] / (root + np.float32(EPSILON))


class Trainer(PlainTrainer):
    """PlainTrainer's training in compiled loops, shared by threads.

    It differs from PlainTrainer in two things: `draw_rows` draws other samples of the same law,
    and sums are rounded in another order. The same seed and threads give the same bits.

    A step has two halves, and in each the threads write to different places:

        _by_samples    thread k has a share of the samples: it draws x, finds the loss and the
                       gradients dz and d_hidden
        _by_features   thread k has a share of the features: it sums their gradients over all
                       samples, and takes Adam's step

    Only the gradient of the bias is merged: in the first half each thread sums its own samples, in
    the second these sums are added up.

    threads: 1 or more; None for one a core.
    """

    SETTINGS = (*PlainTrainer.SETTINGS, "threads")

    def __init__(self, n_sparse, n_dense, p, batch=1024, seed=0, init="linear", threads=None):
        super().__init__(n_sparse, n_dense, p, batch, seed, init)
        plain = type(self.model) is Autoencoder
        require(plain, "init", init, "no subclass of Autoencoder; PlainTrainer takes these")
        self.p_of_each = np.full(self.n_sparse, self.p)
        # No thread should go without a sample or a feature.
        threads = whole_number("threads", cores() if threads is None else threads, 1, 1024)
        self.threads = min(threads, self.batch, self.n_sparse)

        self.rows = shares(self.batch, self.threads)         # each thread's samples
        self.features = shares(self.n_sparse, self.threads)  # each thread's features

        # Shared by all threads: each writes its own rows.
        self.hidden = np.empty((self.batch, self.n_dense), np.float32)
        self.d_hidden = np.empty((self.batch, self.n_dense), np.float32)
        self.z = np.empty((self.batch, self.n_sparse), np.float32)  # then dz: see `residual`
        self.row_losses = np.empty(self.batch, np.float32)

        # One for each thread: its sum over its samples, and room for the gradients of a block.
        self.d_bias = np.empty((self.threads, self.n_sparse), np.float32)
        self.gradient = np.empty((self.threads, BLOCK, self.n_dense), np.float32)
        # Its sparse matrices, with room for the case that nothing is 0.
        sizes = [rows.stop - rows.start for rows in self.rows]
        self.x = [empty_csr(size, self.n_sparse) for size in sizes]
        self.dz = [empty_csr(size, self.n_sparse) for size in sizes]
        self.x_by_feature = [empty_csr(self.n_sparse, size) for size in sizes]  # x transposed
        self.dz_by_feature = [empty_csr(self.n_sparse, size) for size in sizes]
        self.mostly_silent = [None] * self.threads  # whether few of its outputs are on

    def step(self, lr):
        """As PlainTrainer's. If it fails or is interrupted, load the trainer from a file again."""
        require_rate(lr)
        # All threads finish the first half before one begins the second.
        with one_blas_thread():
            self._share(self._by_samples)
            self._share(self._by_features, float(lr))
        total = self.row_losses.sum(dtype=np.float64)
        self.losses.append(float(total / (self.batch * self.n_sparse)))
        return self.losses[-1]

    def _share(self, half, *arguments):
        """Run half(k, *arguments) for k = 0 … threads − 1 at once."""
        done = SimpleQueue()

        def run(k):
            try:
                done.put(half(k, *arguments))
            except Exception as mistake:
                done.put(mistake)

        # Thread 0 is the caller's own.
        tasks = task_queue(os.getpid(), self.threads)
        for k in range(1, self.threads):
            tasks.put(functools.partial(run, k))
        run(0)
        mistakes = [done.get() for _ in range(self.threads)]
        for mistake in filter(None, mistakes):
            raise mistake

    @np.errstate(over="ignore", invalid="ignore")
    def _by_samples(self, k):
        """For thread k's samples: draw x, then forward, loss and backward to d_hidden."""
        rows = self.rows[k]
        x = self.x[k]
        dz = self.dz[k]
        z = self.z[rows]
        hidden = self.hidden[rows]
        d_hidden = self.d_hidden[rows]
        encoder, decoder, bias = self.model.parameters

        # x = sample(…)
        step = len(self.losses)
        draw_rows(np.uint64(self.seed), np.uint64(step), rows.start, self.p_of_each, x)
        # hidden = x @ encoder
        hidden[:] = 0
        add_product(x, encoder, hidden)
        # z = hidden @ decoder.T
        np.matmul(hidden, decoder.T, out=z)
        # the loss, and the gradient in place of z
        self.d_bias[k] = 0
        residual(z, bias, x, dz, self.row_losses[rows], self.d_bias[k])
        # d_hidden = dz @ decoder
        self.mostly_silent[k] = dz.starts[-1] <= SILENT_BELOW * z.size
        if self.mostly_silent[k]:
            d_hidden[:] = 0
            add_product(dz, decoder, d_hidden)
            transpose(dz, self.dz_by_feature[k])
        else:
            np.matmul(z, decoder, out=d_hidden)
        transpose(x, self.x_by_feature[k])

    @np.errstate(over="ignore", invalid="ignore")
    def _by_features(self, k, lr):
        """For thread k's features, a block at a time: gradients over all samples, and Adam."""
        features = self.features[k]
        for start in range(features.start, features.stop, BLOCK):
            block = slice(start, min(start + BLOCK, features.stop))
            gradient = self.gradient[k, :block.stop - block.start]

            # d_decoder = dz.T @ hidden; one thread without a list makes it dense for all
            if all(self.mostly_silent):
                gradient[:] = 0
                for rows, dz in zip(self.rows, self.dz_by_feature):
                    add_product(dz.rows(block), self.hidden[rows], gradient)
            else:
                np.matmul(self.z[:, block].T, self.hidden, out=gradient)
            self._adam("decoder", block, gradient, lr)

            # d_encoder = x.T @ d_hidden
            gradient[:] = 0
            for rows, x in zip(self.rows, self.x_by_feature):
                add_product(x.rows(block), self.d_hidden[rows], gradient)
            self._adam("encoder", block, gradient, lr)

        # d_bias = dz.sum(axis=0), of which each thread has summed its own samples
        self._adam("bias", features, self.d_bias[:, features].sum(axis=0), lr)

    def _adam(self, name, part, gradient, lr):
        """Adam's step for some features' rows of one array, "encoder", "decoder" or "bias"."""
        weight = getattr(self.model, name)[part]
        mean = getattr(self.means, name)[part]
        square = getattr(self.squares, name)[part]
        flat = [array.reshape(-1) for array in (weight, gradient, mean, square)]
        scale = np.float32(2 / (self.batch * self.n_sparse))  # the factor that `residual` left out
        compiled_adam(*flat, len(self.losses) + 1, lr, scale)


def shares(n, parts):
    """0 … n − 1 cut into slices of nearly equal length."""
    return [slice(n * k // parts, n * (k + 1) // parts) for k in range(parts)]


def cores():
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


@functools.lru_cache
def task_queue(process, threads):
    """A queue of functions, and threads that take and call them: one less than `threads`, as the
    caller is the last.

    They belong to a process and not to a trainer, because a forked child has none of its parent's
    threads. That also lets a trainer be copied and pickled. They are daemons, which nobody waits
    for, so that Ctrl-C ends the program at once.
    """
    tasks = SimpleQueue()

    def work():
        while True:
            tasks.get()()

    for _ in range(1, threads):
        threading.Thread(target=work, daemon=True).start()
    return tasks


@functools.lru_cache
def openblas_functions():
    """(get, set): the thread count of the OpenBLAS in NumPy's wheels; None if there is none."""
    for folder in (np.__path__[0] + ".libs", os.path.join(np.__path__[0], ".dylibs")):
        for path in glob.glob(os.path.join(glob.escape(folder), "*openblas*")):
            library = ctypes.CDLL(path)  # NumPy has it loaded: this only finds it
            for name in ("scipy_openblas_{}_num_threads64_", "scipy_openblas_{}_num_threads"):
                if hasattr(library, name.format("get")):
                    return library[name.format("get")], library[name.format("set")]
    return None


@contextmanager
def one_blas_thread():
    """Hold BLAS, which multiplies NumPy's matrices, to one thread for a while.

    Its own threads would spin while they wait for work, and slow ours down two to twenty times.
    """
    if openblas_functions() is None:
        yield
        return
    # Give back what was there, even if the step fails.
    get_threads, set_threads = openblas_functions()
    before = get_threads()
    set_threads(1)
    try:
        yield
    finally:
        set_threads(before)


# -------------------------------------------------------------------------- 6. Files and checks

@contextmanager
def replacing(path):
    """A binary file that takes the place of `path` once it is whole; OSError names `path`."""
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as mistake:
        reason = mistake.strerror or mistake
        raise OSError(f"{path} could not be written: {reason}") from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def save_npz(path, kind, **arrays):
    """Write arrays, numbers and strings as .npz under exactly `path`, whole or not at all."""
    with replacing(path) as file:
        np.savez(file, kind=kind, **arrays)


def load_npz(path, kind, names):
    """The arrays that `save_npz` wrote to `path`, {name: array}. No file can run code.

    OSError if there is no such file; ValueError if it is damaged, of another kind or lacks `names`.
    """
    with open(path, "rb") as file:
        try:
            data = dict(np.load(file, allow_pickle=False))
        except MemoryError:
            raise
        except Exception:  # zipfile and NumPy have many ways to say that bytes are wrong
            raise ValueError(f"{path} is damaged, or no file that this program wrote") from None
    whole = str(data.get("kind")) == kind and {*names} <= {*data}
    require(whole, f"what {path} holds", sorted(data), f"a whole {kind}: {', '.join(names)}")
    return data


def require(condition, name, value, allowed):
    """Raise the ValueError for a mistaken argument: its name, its value and what is allowed."""
    if not condition:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def whole_number(name, value, low, high=2**32 - 1):
    """`value` as an int; ValueError unless it is a whole number in low … high."""
    whole = isinstance(value, Integral) and low <= value <= high
    require(whole, name, value, f"a whole number in {low} … {high}")
    return int(value)


def probability(p, n_sparse):
    """p as a float, or as an array (n_sparse,) float64; ValueError unless all are in (0, 1]."""
    array = np.asarray(p)
    fits = array.dtype.kind in "fiu" and array.shape in ((), (n_sparse,))
    inside = fits and np.all((0 < array) & (array <= 1))
    require(inside, "p", p, f"a number in (0, 1], or an array ({n_sparse},) of such numbers")
    return array.astype(np.float64) if array.ndim else float(array)


def require_rate(lr):
    """ValueError unless a learning rate is a positive number that float32 can hold."""
    allowed = "a number above 0 and below 1e30, usefully up to rug.peak_rate"
    require(isinstance(lr, Real) and 0 < lr < 1e30, "lr", lr, allowed)


def batch_of_samples(x, n_sparse):
    """x as an array; ValueError unless it is numbers of shape (batch, n_sparse), batch ≥ 1."""
    x = np.asarray(x)
    right = x.dtype.kind in "fiub" and x.ndim == 2 and len(x) > 0 and x.shape[1] == n_sparse
    found = f"{x.dtype.name} {x.shape}"
    require(right, "x", found, f"numbers of shape (batch, {n_sparse}), batch ≥ 1")
    return x
