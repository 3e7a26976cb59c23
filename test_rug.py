"""The tests of rug.py, theory.py, forge.py and train.py, in this order.

Every claim is compared with something independent of the code: finite differences, closed forms,
plain NumPy, exact algebra, 30-digit values, or Monte Carlo within its standard error. A test's name
is its claim; a comment in its body derives what must be true. Some tables hold expressions as text,
so that a failing test is named by them.

`python -m pytest -q` runs these and those of experiments/.
"""
import copy
import doctest
import inspect
import io
import itertools
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from math import cos, inf, log, nan, pi, sqrt
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy import allclose, array_equal
from pytest import raises

import rug
import theory
import train
from forge import PersianRug, paired_rug, persian_rug, random_projector, rug_at, walsh_hadamard
from rug import Autoencoder, PlainTrainer, Trainer
from rug import dead_features, default_steps, evaluate, learning_rate, peak_rate, sample
from theory import bayes_loss, linear_loss, optimum, oracle_loss, scaling_loss, symmetric_loss
from theory import critical_ratio, dropping_loss, kept_fraction, tangent_ratio
from theory import feature_statistics, macroscopics, noise_per_signal, relu_moments

HERE = Path(__file__).resolve().parent
cases = pytest.mark.parametrize
approx = partial(pytest.approx, rel=1e-6, abs=0)  # or all numbers below 1e-12 are alike


def lines(text):
    """The lines of a table."""
    return text.strip().splitlines()


def table(text):
    """The rows of a table of numbers."""
    return [[eval(word) for word in line.split()] for line in lines(text)]


@pytest.fixture(autouse=True)
def one_blas_thread():
    """BLAS's own threads would only wait for those of the tests."""
    with rug.one_blas_thread():
        yield


def random_model(n_sparse, n_dense, dtype="float64"):
    """An Autoencoder with Gaussian weights."""
    rng = np.random.default_rng(0)
    shapes = [(n_sparse, n_dense), (n_sparse, n_dense), n_sparse]
    return Autoencoder(*(rng.standard_normal(shape).astype(dtype) for shape in shapes))


def in_float64(model):
    """A copy of an Autoencoder."""
    return Autoencoder(*(array.astype(float) for array in model.parameters))


def product(model):
    """W = W_out W_in in float64."""
    return model.decoder.astype(float) @ model.encoder.T


def variance(p):
    """Var x = E x² − (E x)², with E x = p/2 and E x² = p/3."""
    return p / 3 - p**2 / 4


def dense(rows):
    """A rug.CSR as an array."""
    counts = np.diff(rows.starts)
    k = np.repeat(np.arange(len(counts)), counts)
    array = np.zeros((len(counts), rows.n_columns), np.float32)
    array[k, rows.columns[:len(k)]] = rows.values[:len(k)]
    return array


def compiled_sample(batch, n_sparse, p, seed, step=0, first=0):
    """What rug.draw_rows draws."""
    x = rug.empty_csr(batch, n_sparse)
    p = np.full(n_sparse, p, float)
    rug.draw_rows(np.uint64(seed), np.uint64(step), first, p, x)
    return dense(x)


def drawn(trainer):
    """The batch of a Trainer's last step."""
    return np.concatenate([dense(rows) for rows in trainer.x])


def trained(trainer, steps):
    """The trainer after some steps at the default rate."""
    peak = peak_rate(trainer.n_sparse, trainer.n_dense, np.mean(trainer.p))
    for step in range(steps):
        trainer.step(learning_rate(step, steps, peak))
    return trainer


def same_weights(one, other):
    """Whether two Autoencoders agree in every bit."""
    return all(map(array_equal, one.parameters, other.parameters))


def assert_mean(values, expected):
    """Monte Carlo: is the mean of independent values as expected, within 4 standard errors?"""
    error = values.std() / sqrt(values.size)
    assert abs(values.mean() - expected) <= 4 * error + 1e-12


# ------------------------------------------------------------------------------- rug.py: the data

@pytest.fixture(scope="module", params=[
    *itertools.product([sample, compiled_sample], [0.003, 0.045, 0.5, 1.0]),
    *itertools.product([sample, compiled_sample], [np.linspace(0.01, 0.6, 700)]),
])
def law(request):
    """Samples, and the probability of each feature."""
    draw, p = request.param
    x = draw(2000, 700, p, seed=5)
    return x.astype(float), np.full(700, p)


def test_each_feature_is_on_with_its_own_probability(law):
    x, p = law
    on = x > 0
    assert_mean(on, p.mean())

    # The mean of n Bernoulli variables has the standard error √(p (1 − p) / n). In 2000 trials one
    # of 700 columns is 5 errors away by chance.
    error = np.sqrt(p * (1 - p) / len(x))
    assert np.all(abs(on.mean(axis=0) - p) <= 5 * error)


@cases("power", [1, 2, 4])
def test_samples_have_the_moments_of_the_law(law, power):
    # E x^k = p ∫₀¹ u^k du.
    x, p = law
    assert_mean(x**power, p.mean() / (power + 1))


def test_values_of_features_that_are_on_are_uniform(law):
    x, _ = law
    values = np.sort(x[x > 0])

    # Kolmogorov and Smirnov: the k-th of n sorted uniform numbers is near (k + 1/2)/n. By chance
    # the largest distance exceeds 1.95/√n once in a thousand times.
    n = len(values)
    expected = (np.arange(n) + 0.5) / n
    assert abs(values - expected).max() < 1.95 / sqrt(n)


def test_neighbouring_features_and_samples_are_uncorrelated(law):
    x, p = law
    centred = x - p / 2
    assert_mean(centred[:, :-1] * centred[:, 1:], 0)
    assert_mean(centred[:-1] * centred[1:], 0)


@cases("draw, last", [
    (sample, (rug.TRAINING, rug.EVALUATION)),
    (compiled_sample, (0, 1)),  # the row
])
def test_no_two_seeds_steps_streams_or_rows_share_samples(draw, last):
    # Two samples of 300 features, of which 30 are on, are never equal by chance.
    places = itertools.product(range(3), range(3), last)
    samples = {draw(1, 300, 0.1, *place).tobytes() for place in places}
    assert len(samples) == 3 * 3 * 2


def test_threads_draw_the_rows_of_one_batch():
    trainer = trained(Trainer(300, 20, 0.1, batch=40, seed=3, threads=3), 1)
    assert array_equal(drawn(trainer), compiled_sample(40, 300, 0.1, seed=3))


# ------------------------------------------------------------------------------ rug.py: the model

def test_forward_is_relu_of_w_x_plus_bias():
    model = random_model(9, 4)
    x = np.random.default_rng(1).random((6, 9))
    z = x @ product(model).T + model.bias
    assert allclose(model.forward(x), np.maximum(z, 0))
    assert allclose(model.diagonal, np.diag(product(model)))


def test_gradients_match_finite_differences():
    model = random_model(9, 4)
    x = np.random.default_rng(1).random((6, 9))
    loss, gradients = model.loss_and_gradients(x)

    def loss_after(array, index, change):
        array[index] += change
        output = np.maximum(x @ product(model).T + model.bias, 0)
        array[index] -= change
        return np.mean((output - x)**2)

    assert loss == approx(loss_after(model.bias, 0, 0))
    for array, gradient in zip(model.parameters, gradients):
        for index in np.ndindex(array.shape):
            rise = loss_after(array, index, 1e-6) - loss_after(array, index, -1e-6)
            assert gradient[index] == approx(rise / 2e-6, rel=1e-5, abs=1e-9)


@cases("p", [1e-9, 1])
def test_dead_features_are_those_that_nothing_turns_on(p):
    # Turned to 1, x_i gives W_ii + b_i: 0.5, −1.1, −0.1 and 0.1.
    w = np.diag([1, -1, 1, 0])
    bias = [-0.5, -0.1, -1.1, 0.1]
    dead = dead_features(Autoencoder(np.eye(4), w, bias), p)
    assert list(dead) == [False, True, True, False]


# ------------------------------------------------------------------------------- rug.py: training

@cases("scale", [1, 1e-7])  # at the second one the gradients are as small as ε
def test_adam_is_its_formula(scale):
    gradient = scale * np.random.default_rng(0).standard_normal(3)
    weight, mean, square = np.zeros((3, 3))
    expected = 0
    for t in range(1, 6):
        rug.adam(weight, gradient * (t == 1), mean, square, t, lr=0.01)

        # A single gradient enters m with the weight 0.1 and v with 0.001, and fades from there.
        m = 0.1 * 0.9**(t - 1) * gradient / (1 - 0.9**t)
        v = 0.001 * 0.999**(t - 1) * gradient**2 / (1 - 0.999**t)
        expected -= 0.01 * m / (np.sqrt(v) + 1e-7)
    assert allclose(weight, expected, rtol=1e-10, atol=0)


def test_the_learning_rate_falls_as_half_a_cosine():
    # (1 + cos 2x)/2 = cos² x
    for step in range(60):
        root = cos(pi * step / 120)
        assert learning_rate(step, 60, peak=8) == approx(8 * root**2)


def test_the_defaults_train_below_the_theory():
    trainer = trained(Trainer(64, 16, 0.045, batch=256), default_steps(0.045))
    loss = evaluate(trainer.model, 0.045, 2**14, seed=1).loss
    assert loss < 0.7 * optimum(0.25, 0.045).loss


def assert_steps(trainer, draw):
    """Compare three steps with plain gradients and `rug.adam`, in float64, on the same samples."""
    model = in_float64(trainer.model)
    means = [np.zeros_like(array) for array in model.parameters]
    squares = copy.deepcopy(means)
    for t in (1, 2, 3):
        loss = trainer.step(0.01)
        expected, gradients = model.loss_and_gradients(draw(trainer))
        assert loss == approx(expected, rel=1e-5)
        for arrays in zip(model.parameters, gradients, means, squares):
            rug.adam(*arrays, t, 0.01)
        if t == 1:  # Adam's mean is 0.1 of the first gradient
            for found, mean in zip(trainer.means, means):
                assert allclose(found, mean, rtol=1e-4, atol=1e-5 * abs(mean).max())
    for found, weight in zip(trainer.model.parameters, model.parameters):
        assert abs(found - weight).max() < 2e-4  # of three steps of 0.01


def test_the_default_rate_kills_nothing_where_many_features_act_together():
    # At 120e-3/√n_sparse two of three features die here, and the loss rises to 4 Var x.
    trainer = trained(Trainer(1024, 819, 0.3, batch=256), 60)
    assert max(trainer.losses) < variance(0.3)
    assert not dead_features(trainer.model, 0.3).any()


@cases("p", [0.3, np.linspace(0.1, 1, 12)])
def test_plain_steps_are_adam_on_the_gradients(p):
    trainer = PlainTrainer(12, 5, p, batch=20, seed=2)
    assert_steps(trainer, lambda trainer: sample(20, 12, p, 2, len(trainer.losses) - 1))


# The bias is shifted to silence outputs: none of them; so many that all threads skip zeros; or so
# many that one thread of four does.
@cases("n_sparse, n_dense, p, batch, threads, shift", table("""
40   7   0.1   33   1   0
40   7   0.1   1    1   0
600  40  0.05  128  3   0
600  40  0.05  128  2  -0.12
17   5   1.0   8    2   0
1    1   0.5   3    1   0
64   64  0.3   50   4  -0.6
64   16  0.1   40   4  -0.1
"""))
def test_the_fast_path_is_the_plain_path(n_sparse, n_dense, p, batch, threads, shift):
    trainer = Trainer(n_sparse, n_dense, p, batch, seed=2, threads=threads)
    trainer.model.bias[:] += shift
    assert_steps(trainer, drawn)

    # Loops replace a dense product where less than a fifth of the outputs are on.
    for rows, silent in zip(trainer.rows, trainer.mostly_silent):
        assert silent == (np.mean(trainer.z[rows] != 0) <= 0.2)


@cases("threads", [2, 3])
def test_threads_change_only_the_rounding(threads):
    alone, shared = (trained(Trainer(200, 30, 0.05, 100, threads=n), 60) for n in (1, threads))
    assert allclose(alone.losses, shared.losses, rtol=1e-4)


@cases("n_sparse, p", table("""
2**10  0.05
2**17  0.05
2**19  1e-3
2**20  1e-4
"""))
def test_summing_the_loss_in_float32_does_no_harm(n_sparse, p):
    trainer = Trainer(n_sparse, 3, p, batch=4, init="paper")
    start = in_float64(trainer.model)
    loss = trainer.step(1e-3)
    x = drawn(trainer).astype(float)
    assert loss == approx(np.mean((start.forward(x) - x)**2), rel=1e-5)


@cases("p", [0.1, np.linspace(0.01, 1, 900)])
def test_the_linear_start_maps_the_mean_to_the_mean(p):
    model = PlainTrainer(900, 300, p).model
    mean = np.full(900, p / 2)
    assert allclose(product(model) @ mean + model.bias, mean, atol=1e-6)


def test_the_linear_start_is_the_best_without_relu():
    # Then the loss over Var x is Σ_ij (W − I)_ij² / n. With W_ii = g and E Σ_j≠i W_ij² = g²/r it is
    # (1 − g)² + g²/r, least at g = r/(1 + r), here 1/4. So no other gain is better.
    w = product(Trainer(900, 300, 0.1).model)
    assert allclose(np.diag(w), 1 / 4, atol=1e-6)
    losses = []
    for gain in (0.9, 1, 1.1):
        error = gain * w - np.eye(900)
        losses.append(np.sum(error**2) / 900)
    assert losses[1] == min(losses)
    assert losses[1] == approx(0.75**2 + 0.25**2 * 3, rel=0.02)


@cases("n_sparse, n_dense, p", table("""
128   1    0.6
512   5    0.1
2048  61   0.4
999   800  0.6
256   8    0.02
"""))
def test_the_linear_start_is_alive_and_beats_the_mean(n_sparse, n_dense, p):
    trainer = Trainer(n_sparse, n_dense, p)
    assert not dead_features(trainer.model, p).any()
    assert trainer.step(1e-9) < 1.02 * variance(p)


def test_the_paper_start_is_uniform():
    # Uniform numbers in ±h have the deviation h/√3.
    model = Trainer(900, 400, 0.1, init="paper").model
    for array, fan_in in zip(model.parameters, [900, 400, 400]):
        assert array.std() == approx((3 * fan_in)**-0.5, rel=0.1)
        assert abs(array).max() <= fan_in**-0.5


def test_a_given_model_is_started_from_and_left_alone():
    given = random_model(12, 5, "float32")
    trainer = Trainer(12, 5, 0.3, init=given)
    assert same_weights(trainer.model, given)
    trainer.step(0.1)
    assert same_weights(given, random_model(12, 5, "float32"))


def test_the_compiled_trainer_refuses_another_kind_of_network():
    class Other(Autoencoder):
        """A network that the compiled loops don't know."""

    other = Other(*random_model(8, 2).parameters)
    assert isinstance(PlainTrainer(8, 2, 0.3, init=other).model, Other)
    with raises(ValueError, match="init must"):
        Trainer(8, 2, 0.3, init=other)


def test_a_network_of_full_width_learns_the_identity():
    model = trained(Trainer(6, 6, 0.3, batch=256), 1500).model
    assert evaluate(model, 0.3, 4096, seed=1).loss < 1e-6
    assert allclose(product(model), np.eye(6), atol=0.01)


def test_two_features_on_one_unit_learn_a_digon():
    model = trained(Trainer(2, 1, 0.1, batch=512), 2000).model
    w = product(model)
    assert w.diagonal().min() > 0.9
    assert np.sum(w < 0) == 2

    # Each silences the other. W = [[1, −1], [−1, 1]] has the loss p²/6, and others are better.
    loss = evaluate(model, 0.1, 2**17, seed=1).loss
    assert 0.1**2 / 9 < loss < 0.1**2 / 6


@cases("make", lines("""
sample(2, 30, 0.5, seed)
PlainTrainer(32, 8, 0.1, seed=seed).model.encoder
trained(Trainer(200, 30, 0.05, 100, seed, threads=3), 60).model.encoder
persian_rug(32, 8, 0.1, seed).rows
paired_rug(32, 0.25, 0.1, seed).rows
random_projector(32, 8, 0.1, seed).encoder
"""))
def test_the_seed_decides(make):
    def made(seed):
        return eval(make)

    assert array_equal(made(3), made(3))
    assert not array_equal(made(3), made(4))


# -------------------------------------------------------------------------------- rug.py: quality

MANY_P = np.linspace(0.01, 1, 50)


# The mean as an answer costs Var x. An answer x_i + x_0 costs E x_0² = p/3; all features of a
# sample then have the same error, so a sample counts as one number and not as fifty.
@cases("p, answer, expected", [
    (MANY_P, lambda x: 0 * x + MANY_P / 2, variance(MANY_P).mean()),
    (0.3, lambda x: x + x[:, :1], 0.3 / 3),
])
def test_evaluate_knows_its_error(p, answer, expected):
    model = SimpleNamespace(n_sparse=50, forward=answer)
    estimates = [evaluate(model, p, 500, seed) for seed in range(200)]
    losses, errors = np.transpose(estimates)
    deviations = (losses - expected) / errors
    assert abs(deviations.mean()) < 4 / sqrt(200)
    assert 0.8 < deviations.std() < 1.2


def test_evaluation_draws_samples_that_nothing_else_draws():
    # 2¹⁹ features are evaluated four samples at a time. Training draws batches of four here.
    seen = []
    model = SimpleNamespace(n_sparse=2**19, forward=lambda x: seen.append(x) or x)
    evaluate(model, 1e-4, 6, seed=0)
    seen += [sample(4, 2**19, 1e-4, 0, step) for step in range(6)]
    on = np.concatenate(seen) > 0
    assert len({*map(bytes, on)}) == len(on) == 6 + 6 * 4


# ---------------------------------------------------------------------------------- rug.py: files

@cases("make", lines("""
PlainTrainer(64, 16, 0.1, 50, 4, "paper")
PlainTrainer(64, 16, np.linspace(0.01, 1, 64), 50, 4)
Trainer(64, 16, 0.1, 50, 4, "paper", threads=3)
"""))
def test_a_loaded_trainer_goes_on_to_the_same_bits(make, tmp_path):
    trainer = trained(eval(make), 3)
    trainer.save(tmp_path / "checkpoint")
    loaded = type(trainer).load(tmp_path / "checkpoint")
    assert same_weights(trained(loaded, 4).model, trained(trainer, 4).model)
    assert loaded.losses == trainer.losses


@cases("copied", ["copy.deepcopy(trainer)", "pickle.loads(pickle.dumps(trainer))"])
def test_a_copied_trainer_goes_on_to_the_same_bits(copied):
    trainer = trained(Trainer(32, 8, 0.1, threads=3), 1)
    twin = eval(copied)
    assert same_weights(trained(trainer, 3).model, trained(twin, 3).model)


@cases("dtype", ["float32", "float64"])
def test_models_survive_the_disk(dtype, tmp_path):
    model = random_model(12, 5, dtype)
    model.save(tmp_path / "model.npz")
    loaded = Autoencoder.load(tmp_path / "model.npz")
    assert loaded.encoder.dtype == dtype
    assert same_weights(loaded, model)


class Malice:
    """What a pickle could do: make a folder."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def exchange(file, **arrays):
    """Put arrays in the place of some in an .npz file."""
    with np.load(file) as data:
        kept = dict(data)
    np.savez(file, **kept | arrays)


@cases("damage", lines("""
file.write_bytes(b"")
file.write_bytes(b"hello")
file.write_bytes(good[:len(good) // 2])
file.write_bytes(good[:-30])
file.write_bytes(good[:500] + bytes([good[500] ^ 255]) + good[501:])
file.write_bytes(pickle.dumps(Malice()))
exchange(file, losses=np.array([Malice()], object))
exchange(file, kind="Autoencoder")
exchange(file, state=np.full(3 * 8 * 5, nan))
exchange(file, p=np.array([0.5, 0.5]))
exchange(file, p=2.0)
"""))
def test_damaged_and_foreign_files_are_refused_unrun(damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = Path("file.npz")
    Trainer(8, 2, 0.5).save(file)
    good = file.read_bytes()
    eval(damage)
    with raises(ValueError):
        Trainer.load(file)
    assert os.listdir() == ["file.npz"]


def test_a_missing_file_is_an_oserror(tmp_path):
    with raises(OSError):
        Autoencoder.load(tmp_path / "missing.npz")


@cases("mistake", [OSError(28, "No space left on device"), KeyboardInterrupt("No space")])
def test_a_write_that_fails_leaves_what_was_there(mistake, tmp_path):
    path = tmp_path / "model.npz"
    path.write_bytes(b"before")
    with raises(type(mistake), match="No space"), rug.replacing(path) as file:
        file.write(b"half")
        raise mistake
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["model.npz"]


# --------------------------------------------------------------------------- theory.py: the losses

NODES, WEIGHTS = np.polynomial.legendre.leggauss(60)


def gauss_legendre(low, high):
    """Nodes and weights of the integral from low to high, arrays, along a new last axis."""
    half = (high - low)[..., None] / 2
    return low[..., None] + half * (1 + NODES), half * WEIGHTS


def relu_integral(mean, sigma, power):
    """E ReLU(mean + σz)^power: an integral over z from where ReLU bends to 12 deviations."""
    bend = np.clip(-mean / max(sigma, 1e-300), -12, 12)
    z, weights = gauss_legendre(bend, np.full_like(bend, 12))
    output = mean[..., None] + sigma * z
    density = np.exp(-z**2 / 2) / sqrt(2 * pi)
    return (weights * density * output**power).sum(axis=-1)


def loss_integral(a, b, sigma, p):
    """E (x − ReLU(ax + b + σz))²: for x = 0, and over x = u in pieces of σ/|a| around its bend."""
    bends = (sigma * np.arange(-12, 13) - b) / (a or 1e-300)
    edges = np.unique(np.clip([0, 1, *bends], 0, 1))
    u, weights = gauss_legendre(edges[:-1], edges[1:])
    mean = a * u + b
    output = relu_integral(mean, sigma, 1)
    power = relu_integral(mean, sigma, 2)
    on = u**2 - 2 * u * output + power
    off = relu_integral(np.array(b), sigma, 2)
    return (1 - p) * off + p * (weights * on).sum()


@cases("p", [1e-4, 0.045, 0.5, 1.0])
def test_symmetric_loss_is_the_integral(p):
    # Numbers of all sizes and signs, a third of them 0.
    rng = np.random.default_rng(0)
    size = 10**rng.uniform(-8, 1, (3, 60))
    a, b, sigma = size * rng.choice([-1, 0, 1], (3, 60))

    # In every other one au + b passes 0 within [0, 1], in a few σ or in a thousand.
    b[::2] = -a[::2] * rng.random(30)
    sigma[::2] = a[::2] * 10**rng.uniform(-3, 0, 30)
    expected = [loss_integral(*place, p) for place in zip(a, b, abs(sigma))]
    found = symmetric_loss(a, b, abs(sigma), p)
    assert allclose(found, expected, rtol=1e-9, atol=1e-14)


@cases("mean, std", table("""
 0.3  0.5
-1.0  0.4
 2.0  0
-2.0  0
 0.0  1.0
"""))
def test_relu_moments_are_the_integrals(mean, std):
    expected = [relu_integral(np.array(mean), std, power) for power in (1, 2)]
    assert relu_moments(mean, std) == approx(expected, rel=1e-10)


# In 30-digit arithmetic: r, p, the optimum's loss, a, b and σ, Bayes elementwise, oracle filter.
REFERENCE = table("""
0.25  0.045 4.8557980886e-3 1.2892146  -0.44583397 0.26882907 4.4802691e-3 1.2204007e-3
0.1   0.01  9.9629899422e-4 1.5249401  -0.59761204 0.26313503 8.8578961e-4 2.0494759e-4
0.5   0.1   6.3757367333e-3 1.2065038  -0.27883348 0.21185511 5.6250070e-3 2.1054166e-3
0.05  0.03  8.5485359816e-3 0.44991162 -0.28364068 0.19389312 8.3695337e-3 1.7151675e-3
0.8   0.3   8.8355317013e-3 1.0772529  -0.11317371 0.14994725 7.6998920e-3 4.3510091e-3
0.02  0.001 7.3641673802e-5 1.6783467  -0.64117080 0.21441550 6.0162594e-5 1.2554600e-5
0.3   0.6   7.6097362644e-2 0.33335389  0.18982082 0.16888468 7.5222610e-2 3.7628955e-2
0.002 1e-4  9.8842710815e-6 1.9412133  -0.90601708 0.25034944 8.2678841e-6 1.2757434e-6
""")


@cases("r, p, loss, a, b, sigma, bayes, oracle", REFERENCE)
def test_losses_match_thirty_digit_values(r, p, loss, a, b, sigma, bayes, oracle):
    best = optimum(r, p)
    assert best.loss == approx(loss, rel=1e-8)
    assert best[1:] == approx((a, b, sigma), rel=1e-6)
    assert bayes_loss(r, p) == approx(bayes, rel=1e-6)
    assert oracle_loss(r, p) == approx(oracle, rel=1e-6)
    assert linear_loss(r, p) == approx(variance(p) * (1 - r))


everywhere = cases("r, p", list(itertools.product(
    [1e-4, 1e-3, 0.02, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0],
    [1e-10, 1e-6, 1e-4, 0.01, 0.1, 0.5, 0.9, 1.0],
)))


@everywhere
def test_no_threshold_beats_the_optimum(r, p):
    # For b = −at and σ = as the loss is a parabola in a, L = p/3 − 2aA + a²B. Its values at a = 1
    # and a = 2 give A and B, and so its least value, p/3 − A²/B.
    s = noise_per_signal(r, p) + 1e-9
    t = s * np.sinh(np.linspace(-6, 3, 3001))
    loss_1 = symmetric_loss(1, -t, s, p)
    loss_2 = symmetric_loss(2, -2 * t, 2 * s, p)
    power = (loss_2 - 2 * loss_1 + p / 3) / 2
    overlap = (p / 3 + power - loss_1) / 2
    least = np.min(p / 3 - overlap**2 / np.maximum(power, 1e-12 * p))
    loss, *place = optimum(r, p)
    assert loss <= least + 1e-9 * p
    assert loss == approx(symmetric_loss(*place, p), rel=1e-8, abs=1e-15 * p)


@everywhere
def test_bounds_are_in_order(r, p):
    bounds = oracle_loss(r, p), bayes_loss(r, p), optimum(r, p).loss, linear_loss(r, p)
    for low, high in itertools.pairwise(bounds):
        assert low <= high * (1 + 2e-8) + 1e-15


@cases("r, p", table("""
0.25  0.045
0.6   0.2
0.05  0.03
"""))
def test_bayes_and_oracle_are_conditional_variances(r, p):
    rng = np.random.default_rng(0)
    n = 2**22
    on = rng.random(n) < p
    x = rng.random(n) * on
    y = x + noise_per_signal(r, p) * rng.standard_normal(n)

    # The best function of y leaves the variance of x at given y, here in small bins of y.
    def left(x, y):
        bins = np.array_split(x[np.argsort(y)], len(x) // 256)
        return np.mean([part.var(ddof=1) for part in bins])

    assert bayes_loss(r, p) == approx(left(x, y), rel=0.01)
    if_on = left(x[on], y[on])
    assert oracle_loss(r, p) == approx(p * if_on, rel=0.01)


def test_a_hidden_unit_for_each_feature_loses_nothing():
    assert optimum(1.0, 0.3) == (0, 1, 0, 0)
    assert bayes_loss(1, 0.3) == oracle_loss(1, 0.3) == 0


@cases("p", [1e-4, 0.045, 0.5, 0.95])
def test_less_noise_is_better(p):
    losses = [optimum(r, p).loss for r in np.geomspace(1e-3, 1, 60)]
    assert max(np.diff(losses)) < 0


def test_noise_has_a_floor():
    # (tr W)² ≤ rank · Σ W_ij², from which `noise_per_signal` follows.
    w = product(random_model(30, 6))
    assert np.trace(w)**2 <= 6 * np.sum(w**2)


TINY = 1e-80


@cases("above", [2, 3, 10])
def test_the_scaling_law_is_the_limit(above):
    r = above * critical_ratio(TINY)
    assert optimum(r, TINY).loss == approx(scaling_loss(r, TINY), rel=0.025)


def test_the_limit_is_approached():
    gaps = []
    for p in (1e-12, 1e-20, 1e-40, 1e-80):
        r = 10 * critical_ratio(p)
        gaps.append(scaling_loss(r, p) / optimum(r, p).loss)
    assert gaps == sorted(gaps, reverse=True)


def test_bayes_loses_only_signals_below_the_threshold():
    # In the limit that is Var x t³, with t² = r_c/r = 1/4.
    bayes = bayes_loss(4 * critical_ratio(TINY), TINY)
    assert bayes == approx(variance(TINY) / 8, rel=0.05)


def test_nothing_is_heard_below_the_critical_ratio():
    # r is half of r_c = (2/3) p ln(1/p).
    r = 1e-6 / 3 * log(1e6)
    assert critical_ratio(1e-6) == approx(2 * r)
    assert scaling_loss(r, 1e-6) == approx(variance(1e-6))
    assert optimum(r, 1e-6).loss > 0.98 * variance(1e-6)


@cases("p", [0.003, 0.03, 0.3])
@cases("over_tangent", [0.3, 0.9, 1.1])
def test_dropping_keeps_the_best_fraction(p, over_tangent):
    r = over_tangent * tangent_ratio(p)
    losses = []
    for q in np.linspace(r, 1, 120):
        best = optimum(min(r / q, 1), p).loss
        losses.append(q * best + (1 - q) * variance(p))
    assert dropping_loss(r, p) == approx(min(losses), rel=1e-3)
    assert (kept_fraction(r, p) < 1) == (over_tangent < 1)


@cases("p", [0.003, 0.3, 0.9])
def test_no_line_is_steeper_than_the_tangent(p):
    def slope(r):
        return (variance(p) - optimum(r, p).loss) / r

    ratios = np.geomspace(p / 100, 1, 300)
    assert slope(tangent_ratio(p)) > max(map(slope, ratios)) * (1 - 1e-7)


def test_the_tangent_ratio_has_its_limit():
    # With k = r/r_c and t² = 1/k, the steepest line from (0, Var x) to the scaling law.
    k = np.linspace(1.001, 4, 10000)
    gain = (1 - 0.75 / k - 0.25 / k**1.5) / k
    limit = k[gain.argmax()] * critical_ratio(1e-100)
    assert tangent_ratio(1e-100) == approx(limit, rel=0.01)


# ---------------------------------------------------------------------- theory.py: numbers of a W

def test_macroscopics_of_a_known_matrix(monkeypatch):
    monkeypatch.setattr(theory, "BLOCK_ENTRIES", 200)  # several blocks of rows
    model = random_model(30, 8)
    w = product(model)
    others = w[~np.eye(30, dtype=bool)].reshape(30, 29).T  # column i is row i without W_ii
    sigma = np.sqrt(variance(0.2) * sum(others**2))

    # Cumulants of a sum add up. The third of x is E x³ − 3 E x² E x + 2 (E x)³ = (p/4)(1 − p)².
    expected = theory.FeatureStatistics(
        a=np.diag(w),
        bias=model.bias,
        effective_bias=model.bias + 0.1 * sum(others),
        sigma=sigma,
        lyapunov=sum(abs(others)**3) / sum(others**2)**1.5,
        nu_skewness=0.05 * 0.8**2 * sum(others**3) / sigma**3)
    assert allclose(feature_statistics(model, 0.2), expected, rtol=1e-9)
    spreads = [(x.mean(), x.std()) for x in expected]
    assert allclose(macroscopics(model, 0.2), spreads, rtol=1e-9)


def test_interference_leans_as_predicted():
    model = random_model(6, 3)
    x = sample(2**20, 6, 0.2, seed=0).astype(float)
    nu = model.preactivation(x) - model.diagonal * x
    numbers = feature_statistics(model, 0.2)
    cubes = ((nu - numbers.effective_bias) / numbers.sigma)**3
    assert_mean(cubes[:, 0], numbers.nu_skewness[0])


def test_lyapunov_counts_equal_interferers():
    # Feature 0 hears k = 9 others equally loudly, Λ = 9/9^1.5. The others hear nothing.
    decoder = np.eye(10)
    decoder[0, 1:] = -0.3
    numbers = feature_statistics(Autoencoder(np.eye(10), decoder, np.zeros(10)), 0.1)
    assert numbers.lyapunov == approx([1 / 3] + [0] * 9)
    assert not numbers.nu_skewness[1:].any()


# ---------------------------------------------------------------------------------------- forge.py

P = 0.1
RUG = persian_rug(64, 24, P, seed=3)
RUG_W = product(RUG.autoencoder())
X = sample(20, 64, P, seed=0)


@cases("dtype", ["int8", "float16", "float32", "float64"])
@cases("bits", [0, 1, 3, 7])
def test_walsh_hadamard_is_the_matrix(bits, dtype):
    matrix = np.eye(1)
    for _ in range(bits):
        matrix = np.kron([[1, 1], [1, -1]], matrix)
    x = np.random.default_rng(0).integers(-50, 50, (3, 2**bits))
    narrow = x.astype(dtype)
    found = walsh_hadamard(narrow)
    assert array_equal(found, x @ matrix)  # int8 and float16 would overflow
    assert array_equal(narrow, x)
    assert (found.dtype == "float32") == (dtype == "float32")


def test_the_rug_is_a_kernel_of_i_xor_j():
    i = np.arange(64)
    assert allclose(RUG_W, RUG.a * RUG.kernel[i[:, None] ^ i], atol=1e-6)


def test_the_rug_is_a_scaled_projector():
    assert allclose(RUG_W @ RUG_W, RUG.a * 64 / 24 * RUG_W, atol=1e-4)
    assert np.linalg.matrix_rank(RUG_W, tol=1e-4) == 24
    assert allclose(RUG_W.sum(axis=1), 0, atol=1e-5)


def test_all_features_of_the_rug_have_the_optimal_numbers():
    numbers = macroscopics(RUG.autoencoder(), P)
    assert max(spread for _, spread in numbers) < 1e-6
    found = numbers.a.mean, numbers.effective_bias.mean, numbers.sigma.mean
    assert found == approx(optimum(24 / 64, P)[1:], rel=1e-5)


def test_two_transforms_are_the_dense_model():
    model = RUG.autoencoder()
    assert allclose(RUG.encode(X), X @ model.encoder, atol=1e-5)
    assert allclose(RUG.forward(X), model.forward(X), atol=1e-5)
    assert RUG.forward(X).dtype == np.float32
    assert array_equal(dead_features(RUG, P), dead_features(model, P))


def test_row_0_stays_out_unless_all_rows_are_in():
    for seed in range(10):
        assert min(persian_rug(8, 6, P, seed).rows) > 0
    whole = persian_rug(64, 64, P, seed=0)
    assert allclose(whole.forward(X), X, atol=1e-6)


@cases("seed", range(5))
def test_row_0_adds_to_the_third_cumulant(seed):
    rows = persian_rug(128, 32, 0.045, seed).rows
    without = PersianRug(128, rows, 1, 0).kernel[1:]
    rows[0] = 0
    having = PersianRug(128, rows, 1, 0).kernel[1:]

    # It adds 1/n_dense to every W_ij, and so about 3/n_dense Σ W_ij² to Σ W_ij³.
    gain = (having**3).sum() - (without**3).sum()
    assert gain > 0.5 * 3 / 32 * (without**2).sum()


@cases("n_sparse, r, p", table("""
8192   0.25  0.045
8192   0.5   0.3
65536  0.1   0.01
"""))
def test_a_large_rug_reaches_the_theory(n_sparse, r, p):
    forged = rug_at(n_sparse, r, p, seed=0)
    loss, error = evaluate(forged, p, 2**23 // n_sparse, seed=1)
    predicted = optimum(forged.n_dense / n_sparse, p).loss
    assert 4 * error < 0.05 * predicted
    assert loss == approx(predicted, abs=0.01 * predicted + 4 * error)


def test_rug_at_is_the_nearest_rug():
    assert repr(rug_at(100, 0.3, P, 0)) == "PersianRug(n_sparse=128, n_dense=38)"
    assert repr(rug_at(9, 1e-4, P, 0)) == "PersianRug(n_sparse=8, n_dense=1)"


def test_features_of_a_paired_rug_have_an_opposite():
    w = product(paired_rug(64, 24 / 64, P, seed=0).autoencoder())
    i = np.arange(64)
    assert allclose(w[i, i ^ 1], -w[i, i])
    assert allclose(w @ w, w[0, 0] * 64 / 24 * w, atol=1e-4)


def test_no_projector_has_less_third_cumulant_than_a_paired_rug():
    # P ∘ P ∘ P is positive semidefinite (Schur), so its entries sum to 0 or more, and those off the
    # diagonal to −Σ P_ii³ or more.
    for w in (RUG_W, product(random_projector(64, 24, P, seed=0))):
        assert (w**3).sum() > 0
    paired = product(paired_rug(64, 24 / 64, P, seed=0).autoencoder())
    assert (paired**3).sum() == approx(0, abs=1e-4)


@cases("r", [0.25, 0.5, 0.8])
def test_a_paired_rug_has_the_best_a_and_bias(r):
    forged = paired_rug(1024, r, P, seed=0)

    def loss(a, bias):
        model = PersianRug(1024, forged.rows, a, bias)
        return evaluate(model, P, 4096, seed=1).loss  # all on the same samples

    least = loss(forged.a, forged.bias)
    assert least < 0.9 * optimum(r, P).loss
    for step in (-0.1, 0.1):
        assert loss(forged.a + step, forged.bias) > least
        assert loss(forged.a, forged.bias + step / 3) > least


def test_above_one_half_a_paired_rug_has_all_odd_rows():
    assert {*range(1, 64, 2)} < {*paired_rug(64, 0.75, P, seed=0).rows}
    assert 0 not in paired_rug(64, 63 / 64, P, seed=0).rows
    assert allclose(paired_rug(64, 1, P, seed=0).forward(X), X, atol=1e-5)


def test_the_random_projector_is_a_projector_near_the_theory():
    model = random_projector(2048, 512, 0.045, seed=0)
    numbers = macroscopics(model, 0.045)
    best = optimum(0.25, 0.045)
    assert allclose(model.encoder.T @ model.encoder, np.eye(512), atol=1e-4)
    assert numbers.a.mean == approx(best.a, rel=1e-4)
    assert numbers.effective_bias == approx((best.b, 0), rel=1e-4, abs=1e-5)
    assert evaluate(model, 0.045, 4000, seed=0).loss == approx(best.loss, rel=0.05)


def test_no_direction_is_preferred_by_the_random_projector():
    # A uniform direction is that of a Gaussian vector: its entries, times √n, have the fourth
    # moment 3. That of other vectors is another.
    direction = random_projector(10**5, 1, 0.3, seed=0).encoder.astype(float)
    assert_mean(1e10 * direction**4, 3)


# ------------------------------------------------------------------------------ mistaken arguments

# Arguments, a good value of each, and wrong ones.
ARGUMENTS = lines("""
batch     2              0  -1  2.5  '8'  None  2**40
samples   4              0  -1  2.5  '8'  None  2**40
n_sparse  16             0  -1  2.5  '8'  None  2**40
n_dense   4              0  -1  2.5  '8'  None  2**40  17
threads   1              0  -1  1.5  '2'  10**6
seed      0              -1  0.5  None
step      0              -1  0.5  None
p         0.3            0  -0.1  1.1  nan  'x'  None  [0.5]
r         0.7            0  -0.1  1.1  nan  'x'  None  [0.5]
ratio     0.7            0  -0.1  1.1  nan  'x'  None  [0.5]
lr        0.1            0  -1  nan  inf  'x'  None  10**400
a         1.0            nan  'x'  None
b         0.5            inf  'x'  None
mean      0.0            nan  'x'  None
sigma     0.1            -1  nan  'x'
std       1.0            -1  nan  'x'
init      'linear'       'tied'  3  None  ['paper']
model     MODEL          None  3
encoder   np.ones((4,2)) np.ones(4)  np.ones((4,2))*nan  np.ones((4,2))*1j  'x'  None
decoder   np.ones((4,2)) np.ones(4)  np.ones((2,4)) np.ones((4,2))*nan  np.ones((4,2))*1j  'x'  None
bias      np.ones(4)     np.ones(3)  np.ones(4)*inf  'x'  None
x         np.ones((3,4)) np.ones((3,5))  np.ones((2,0))  3.0  'abcd'  None  np.ones((3,4))*1j
""")
FUNCTIONS = """
optimum noise_per_signal linear_loss bayes_loss oracle_loss
scaling_loss tangent_ratio kept_fraction dropping_loss theory.variance
critical_ratio symmetric_loss relu_moments feature_statistics
macroscopics
sample evaluate Autoencoder MODEL.forward MODEL.loss_and_gradients Trainer PlainTrainer
Trainer(8,2,0.5).step PlainTrainer(8,2,0.5).step
walsh_hadamard persian_rug rug_at paired_rug random_projector
""".split()
MODEL = random_model(4, 2)


@cases("function", FUNCTIONS)
def test_mistakes_are_named(function):
    function = eval(function)
    known = inspect.signature(function).parameters
    rows = [line.split() for line in ARGUMENTS if line.split()[0] in known]
    good = {name: eval(value) for name, value, *_ in rows}
    function(**good)
    for name, _, *wrong in rows:
        for value in wrong:
            with raises(ValueError, match=rf"\b{name}\b.* must "):
                function(**good | {name: eval(value)})


@cases("kind", [np.float32, np.float16, np.array])
@cases("call", lines("""
theory.variance(p)
critical_ratio(p)
symmetric_loss(1, -0.3, 0.2, p)
optimum(r, p)
linear_loss(r, p)
bayes_loss(r, p)
oracle_loss(r, p)
scaling_loss(r, p)
dropping_loss(r, p)
"""))
def test_theory_computes_in_float64(call, kind):
    r = kind(0.1)
    p = kind(0.03)
    narrow = eval(call)
    r = float(r)
    p = float(p)
    assert narrow == eval(call)


def test_a_rug_is_a_power_of_two_wide():
    with raises(ValueError, match="n_sparse of a rug must be a power of two"):
        persian_rug(12, 2, 0.5, seed=0)


# ---------------------------------------------------------------------------------------- train.py

FLAGS = "--n-sparse 32 --steps 20 --batch 64 --out".split()


@pytest.fixture
def small(monkeypatch):
    """Make the main job quick."""
    monkeypatch.setattr(train, "LARGE", 64)
    monkeypatch.setattr(train, "enough", lambda n_sparse: 4096)
    for name in ("draw_loss", "draw_interference", "draw_weights"):
        monkeypatch.setattr(train, name, lambda *arguments: None)


def test_the_spread_of_several_draws_is_in_their_error():
    # Answers of 0 and 1/2 have the losses p/3 and p/3 − p/2 + 1/4. Each is half of their difference
    # away from the mean.
    zero = np.zeros((256, 1))
    ones = np.ones(256)
    models = [Autoencoder(zero, zero, answer) for answer in (0 * ones, ones / 2)]
    row = train.measure("name", "colour", "marker", models, 0.3, seed=0)
    assert row.loss == approx(0.1 + 0.05, rel=0.01)
    assert row.error == approx(0.05, rel=0.02)


def test_draws_have_seeds_of_their_own(small):
    model = RUG.autoencoder()
    rows = train.compare(model, macroscopics(model, P), P, seed=3)
    draws = [rug_at(64, 24 / 64, P, seed) for seed in range(3, 11)]
    losses = [evaluate(forged, P, 4096 // 8, seed=3).loss for forged in draws]
    assert rows[2].loss == approx(np.mean(losses))


def test_both_paired_rugs_are_compared(small):
    model = RUG.autoencoder()
    rows = train.compare(model, macroscopics(model, P), P, seed=3)
    draws = [paired_rug(64, 24 / 64, P, seed) for seed in range(3, 11)]
    losses = [evaluate(forged, P, 4096 // 8, seed=3).loss for forged in draws]
    found = [row.loss for row in rows if row.name.startswith("paired")]
    assert found == approx([np.mean(losses)] * 2)  # LARGE is 64 here, too


def test_theory_at_the_trained_numbers_takes_the_effective_bias(small):
    # A rug's numbers are the optimum's, of which b is the effective bias.
    model = RUG.autoencoder()
    rows = train.compare(model, macroscopics(model, P), P, seed=0)
    own = [row.loss for row in rows if row.name.startswith("theory at")]
    assert own == approx([optimum(24 / 64, P).loss], rel=1e-6)


def test_a_loss_that_is_no_number_stops_training(tmp_path):
    trainer = Trainer(16, 4, 0.3)
    trainer.model.bias[:] = nan
    with raises(RuntimeError, match="diverged"):
        train.train(trainer, [0.5, 0.5], tmp_path / "checkpoint")
    assert not os.listdir(tmp_path)


# ------------------------------------------------------------------------------ the command line

def test_other_settings_have_another_checkpoint(tmp_path, monkeypatch):
    checkpoints = []

    def main_job(trainer, steps, peak, checkpoint, out):
        trainer.save(checkpoint)
        checkpoints.append(checkpoint)

    monkeypatch.setattr(train, "main_job", main_job)
    changes = lines("""
--threads 1
--threads 1 --n-sparse 64
--threads 1 --ratio 0.5
--threads 1 --p 0.1
--threads 1 --steps 21
--threads 1 --lr 0.01
--threads 1 --batch 65
--threads 1 --seed 1
--threads 1 --init paper
--threads 2
""")
    for flags in changes:
        train.main([*FLAGS, str(tmp_path), *flags.split()])
    assert len(set(checkpoints)) == len(changes)


@cases("line", lines("""
--p 0: p must be
--p nan: p must be
--ratio 1.5: ratio must be
--n-sparse 2.5: n_sparse must be
--steps 0: steps must be
--lr -1: lr must be
--batch x: batch must be
--threads 0: threads must be
--seed -1: seed must be
--init best: init must be
--see 3: --see
paper: paper
--n-sparse 9999999 --ratio 0.5: allocate
--lr 1e20 --n-sparse 16 --steps 50: --lr
--out taken/here: taken
"""))
def test_a_wrong_flag_gets_one_line(line, tmp_path, monkeypatch, capsys):
    flags, message = line.split(": ")
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file")
    with raises(SystemExit, match="2"):
        train.main(flags.split())
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.rglob("*.*"))  # a folder perhaps, but no file


def test_help_is_no_mistake():
    with raises(SystemExit, match="0"):
        train.main(["--help"])


@cases("flags", lines("""
--n-sparse 1 --ratio 1 --batch 1 --threads 8
--n-sparse 1
--n-sparse 9 --ratio 0.0001 --p 1
--n-sparse 16 --ratio 1 --batch 3 --threads 40
--n-sparse 20 --p 1e-6
"""))
def test_extreme_settings_give_numbers(flags, small, tmp_path, capsys):
    train.main([*FLAGS, str(tmp_path), *flags.split()])
    assert "nan" not in capsys.readouterr().out


@cases("stdout", [None, io.StringIO()])
def test_without_a_terminal_the_job_runs(stdout, small, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stdout)
    train.main([*FLAGS, str(tmp_path)])
    assert os.listdir(tmp_path / "runs") == ["model.npz"]


def test_the_tables_show_what_is_known(small, tmp_path, capsys):
    train.main([*FLAGS, str(tmp_path)])
    output = capsys.readouterr().out
    model = Autoencoder.load(tmp_path / "runs/model.npz")
    r, p, loss, a, b, sigma, bayes, oracle = REFERENCE[0]
    forged = macroscopics(rug_at(32, r, p, seed=0).autoencoder(), p)
    known = {
        "trained, n_sparse 32  ": [evaluate(model, p, 4096, seed=0).loss],
        "optimal linear": [(1 - r) * variance(p)],
        "theory: ": [loss],
        "Bayes elementwise": [bayes],
        "oracle filter": [oracle],
        "Persian rug  ": [a, b, sigma, forged.lyapunov.mean / sqrt(p)],
    }
    for name, numbers in known.items():
        line = next(line for line in lines(output) if line.startswith(name))
        found = np.array(re.findall(r"-?\d+\.\S+", line), float)
        found = found[::2]  # without the errors and spreads between them
        assert found[:len(numbers)] == approx(numbers, rel=2e-3)


# ------------------------------------------------------------------------------------- processes

def python(code, *arguments, **environment):
    """`python -c code` as a process in the folder of this file."""
    command = [sys.executable, "-c", inspect.cleandoc(code), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=HERE, env=os.environ | environment, stdout=pipe,
                            stderr=pipe, encoding="latin-1")


def run(code, *arguments, **environment):
    """What `python -c code` prints, if it ends well."""
    process = python(code, *arguments, **environment)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


def test_importing_changes_nothing():
    run("""
        import importlib, os, signal, sys, matplotlib, rug
        get_threads, set_threads = rug.openblas_functions() or (lambda: 2, print)
        set_threads(2)
        def state():
            rc = dict(matplotlib.rcParams)
            return rc, signal.getsignal(signal.SIGINT), os.getcwd(), get_threads()
        before = state()
        for name in ("rug", "theory", "forge", "train"):
            sys.modules.pop(name, None)
            importlib.import_module(name)
        assert state() == before
        assert "matplotlib.pyplot" not in sys.modules""", MPLBACKEND="svg")


def test_a_step_gives_blas_its_threads_back():
    run("""
        import rug
        get_threads, set_threads = rug.openblas_functions() or (lambda: 2, print)
        set_threads(2)
        rug.Trainer(32, 8, 0.1).step(1e-3)
        assert get_threads() == 2""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_child_steps_on():
    run("""
        import os, signal, rug
        trainer = rug.Trainer(32, 8, 0.1, threads=3)
        trainer.step(1e-3)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a child that hangs
            trainer.step(1e-3)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0""")


DRAW = """
import sys, warnings, rug
warnings.simplefilter("error")
trainer = rug.Trainer(40, 8, float(sys.argv[1]), batch=9, threads=2)
trainer.step(1e-3)
for x in trainer.x:
    entries = x.starts[-1]
    print(x.starts.tolist(), x.columns[:entries].tolist(), x.values[:entries].tolist())
"""


@cases("p", [0.2, 1])
def test_without_compiling_the_samples_are_the_same(p):
    assert run(DRAW, p, NUMBA_DISABLE_JIT="1") == run(DRAW, p, NUMBA_DISABLE_JIT="0")


def test_numba_caches_where_it_is_told_to(tmp_path):
    run("import numpy, rug; rug.scramble(numpy.uint64(1))", NUMBA_CACHE_DIR=str(tmp_path))
    assert list(tmp_path.rglob("*.nbi"))


def test_without_a_folder_for_its_cache_numba_compiles():
    output = run("""
        import numba, numpy
        njit = numba.njit
        def without_folder(cache=False, **options):
            if cache:
                raise RuntimeError("cannot cache function: no locator available")
            return njit(**options)
        numba.njit = without_folder
        import rug
        numba.njit = njit
        print(rug.scramble(numpy.uint64(0)))""")
    assert output == "0\n"  # shifts, exclusive or and products of 0


SMALL = """
import signal, sys, train
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
train.LARGE = 64
train.enough = lambda n_sparse: 256
train.SAVE_EVERY = float(sys.argv[1])
train.main(sys.argv[2:])
"""


def test_no_environment_changes_a_picture(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True")
    run(SMALL, 10, *FLAGS, tmp_path / "usual")
    output = run(SMALL, 10, *FLAGS, tmp_path / "odd", MATPLOTLIBRC=str(tmp_path),
                 TERM="dumb", MPLBACKEND="module://missing.module", PYTHONIOENCODING="ascii")
    assert "\x1b" not in output  # no escape codes
    for name in ("loss", "interference", "weights", "rug"):
        usual, odd = tmp_path.glob(f"*/figures/{name}.png")
        assert usual.read_bytes() == odd.read_bytes()


needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT or SIGPIPE")
LONG = "--n-sparse 32 --ratio 0.5 --p 0.1 --batch 64 --seed 5 --init paper --threads 2 --out"
LONG = LONG.split()


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that Ctrl-C ended after a checkpoint was there: its folder, and the ended process."""
    folder = tmp_path_factory.mktemp("run")
    process = python(SMALL, 0.05, *LONG, folder)
    while not list(folder.glob("runs/*.npz")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    return folder, process


@needs_signals
def test_an_interrupted_run_says_how_to_go_on(interrupted):
    _, process = interrupted
    assert process.returncode == 130
    assert process.stderr.read().strip() == (
        "Interrupted. The same command again goes on from the last checkpoint.")


@needs_signals
@cases("content, said", [(None, "Going on from step"), (b"damaged", "Starting anew")])
def test_the_same_command_again_ends_at_the_same_weights(
        content, said, interrupted, small, tmp_path, capsys):
    shutil.copytree(interrupted[0], tmp_path, dirs_exist_ok=True)
    if content:
        next(tmp_path.glob("runs/*.npz")).write_bytes(content)
    train.main([*LONG, str(tmp_path)])
    model = Autoencoder.load(tmp_path / "runs/model.npz")
    unbroken = trained(Trainer(32, 16, 0.1, 64, 5, "paper", 2), default_steps(0.1))
    assert same_weights(model, unbroken.model)
    assert said in capsys.readouterr().out
    assert os.listdir(tmp_path / "runs") == ["model.npz"]


@needs_signals
def test_an_early_interrupt_says_that_nothing_was_saved(tmp_path):
    process = python(SMALL, 1000, *LONG, tmp_path, "--steps", 10**6)
    for line in process.stdout:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].strip() == "Interrupted. Nothing was saved yet."
    assert process.returncode == 130


@needs_signals
def test_a_closed_pipe_ends_quietly_and_keeps_the_run(tmp_path):
    process = python(SMALL, 1000, *LONG, tmp_path, "--steps", 10**6)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 1
    assert list(tmp_path.glob("runs/unfinished*.npz"))


def test_the_examples_in_the_readme_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (HERE / "README.md").read_text("utf8").replace("```", "")
    examples = doctest.DocTestParser().get_doctest(text, {}, "README.md", None, 0)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, attempted = doctest.DocTestRunner(optionflags=options).run(examples)
    assert attempted > 0
    assert failed == 0
