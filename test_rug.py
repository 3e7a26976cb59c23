"""The tests: every claim of the code against something independent of it.

Finite differences, closed forms, plain NumPy, Monte Carlo within its standard error, exact algebra, and the
30-digit values of the optimum. Run with `python -m pytest -q`.
"""
import rug  # first, as it holds BLAS to one thread before NumPy is imported
import io
import os
import pickle
import re
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import forge
import theory
import train

HERE = Path(__file__).parent

# r, p, then the optimum of the symmetric theory (loss, a, b, sigma) and three bounds (linear, Bayes elementwise,
# oracle filter), computed with 30 digits.
REFERENCE = [
    (0.25, 0.045, 0.00485579808864, 1.289214633, -0.4458339672, 0.2688290743, 0.0108703125, 0.00448026905631, 0.00122040071891),
    (0.1, 0.01, 0.00099629899422, 1.524940071, -0.5976120372, 0.2631350264, 0.0029775, 0.000885789605263, 0.000204947594387),
    (0.5, 0.1, 0.00637573673327, 1.206503831, -0.2788334818, 0.2118551103, 0.0154166666667, 0.00562500698992, 0.00210541664084),
    (0.05, 0.03, 0.00854853598161, 0.4499116245, -0.2836406808, 0.1938931195, 0.00928625, 0.00836953370129, 0.00171516750311),
    (0.8, 0.3, 0.00883553170134, 1.077252878, -0.1131737068, 0.1499472546, 0.0155, 0.00769989197232, 0.00435100914476),
    (0.02, 0.001, 7.36416738015e-05, 1.678346713, -0.6411708004, 0.2144154982, 0.000326421666667, 6.01625937075e-05, 1.25545998918e-05),
    (0.3, 0.6, 0.0760973626436, 0.3333538873, 0.1898208185, 0.1688846815, 0.077, 0.0752226102022, 0.0376289547216),
    (0.002, 0.0001, 9.88427108153e-06, 1.941213319, -0.9060170779, 0.2503494382, 3.32641716667e-05, 8.26788409325e-06, 1.27574342539e-06),
]


def random_model(n_sparse, n_dense, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return rug.Autoencoder(*(rng.standard_normal(shape).astype(dtype) for shape in
                             ((n_sparse, n_dense), (n_sparse, n_dense), n_sparse)))


# ------------------------------------------------------------------------------------------------ rug.py


@pytest.mark.parametrize("p", [0.003, 0.045, 0.5, 1.0])
def test_samples_follow_the_sparse_law(p):
    x = rug.sample(2000, 700, p, seed=5).dense().astype(np.float64)
    n = x.size
    on = x > 0  # u = 0 has probability 2⁻²⁴
    assert abs(on.mean() - p) <= 4 * np.sqrt(p * (1 - p) / n) + 1e-6
    for power, mean in ((1, p / 2), (2, p / 3), (4, p / 5)):
        deviation = np.sqrt(p / (2 * power + 1) - mean**2)
        assert abs((x**power).mean() - mean) < 4 * deviation / np.sqrt(n)
    values = np.sort(x[on])
    kolmogorov = np.abs(values - (np.arange(len(values)) + 0.5) / len(values)).max()
    assert kolmogorov < 1.95 / np.sqrt(len(values))  # exceeded once in a thousand samples
    centred = x - p / 2
    variance = p / 3 - p**2 / 4
    for shifted in (centred[:, :-1] * centred[:, 1:], centred[:-1] * centred[1:]):  # neighbours, and rows
        assert abs(shifted.mean()) < 4 * variance / np.sqrt(shifted.size)
    assert np.ptp(on.mean(axis=0)) <= 10 * np.sqrt(p * (1 - p) / len(x))  # no feature is privileged


def test_a_sample_depends_on_seed_step_and_row_alone():
    whole = rug.sample(40, 300, 0.1, seed=3, step=7).dense()
    assert (rug.sample(15, 300, 0.1, seed=3, step=7).dense() == whole[:15]).all()
    assert not (rug.sample(40, 300, 0.1, seed=4, step=7).dense() == whole).all()
    assert not (rug.sample(40, 300, 0.1, seed=3, step=8).dense() == whole).all()
    trainer = rug.Trainer(300, 20, 0.1, batch=40, seed=3, threads=3)
    trainer.step(1e-3)
    assert (np.concatenate([part.dense() for part in trainer.x]) == rug.sample(40, 300, 0.1, seed=3).dense()).all()


def test_gradients_match_finite_differences():
    model, x = random_model(9, 4), np.random.default_rng(1).random((6, 9))
    _, gradients = model.loss_and_gradients(x)
    for name, gradient in zip(gradients._fields, gradients):
        array = getattr(model, name)
        for index in np.ndindex(array.shape):
            kept, losses = array[index], []
            for change in (1e-6, -1e-6):
                array[index] = kept + change
                losses.append(np.mean((np.maximum(x @ model.encoder @ model.decoder.T + model.bias, 0) - x)**2))
            array[index] = kept
            assert gradient[index] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("n_sparse, n_dense, p, batch, threads, shift", [
    (40, 7, 0.1, 33, 1, 0), (600, 40, 0.05, 128, 3, 0), (600, 40, 0.05, 128, 2, -0.4), (17, 5, 1.0, 8, 2, 0),
    (1, 1, 0.5, 3, 1, 0), (64, 64, 0.3, 50, 4, -0.6)])
def test_the_fast_path_is_the_plain_path(n_sparse, n_dense, p, batch, threads, shift):
    """Gradients of the first step, then three steps of Adam, against plain NumPy in float64."""
    trainer = rug.Trainer(n_sparse, n_dense, p, batch=batch, seed=2, threads=threads)
    trainer.weights.bias[:] += shift
    weights = [array.astype(np.float64) for array in trainer.model.__dict__.values() if isinstance(array, np.ndarray)]
    means, squares = ([np.zeros_like(array) for array in weights] for _ in range(2))
    for t in range(1, 4):
        loss, gradients = rug.Autoencoder(*weights).loss_and_gradients(
            rug.sample(batch, n_sparse, p, seed=2, step=t - 1).dense().astype(np.float64))
        assert trainer.step(0.01) == pytest.approx(loss, rel=1e-5)
        for k, gradient in enumerate(gradients):
            if t == 1:
                assert np.allclose(trainer.means[k] / 0.1, gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max())
            means[k] = 0.9 * means[k] + 0.1 * gradient
            squares[k] = 0.999 * squares[k] + 0.001 * gradient**2
            weights[k] -= 0.01 * (means[k] / (1 - 0.9**t)) / (np.sqrt(squares[k] / (1 - 0.999**t)) + 1e-7)
    for fast, plain in zip(trainer.weights, weights):
        assert np.abs(fast - plain).max() < 2e-4  # Adam's steps are 0.01: 2 % of one


def test_sparse_and_dense_products_are_both_taken():
    dense, sparse = (rug.Trainer(600, 40, 0.05, batch=128, threads=2) for _ in range(2))
    sparse.weights.bias[:] = -0.4
    for trainer in (dense, sparse):
        trainer.step(1e-3)
    assert not any(dense.fits) and all(sparse.fits)


def test_threads_change_only_the_rounding():
    losses = []
    for threads in (1, 2, 3, 1):
        trainer = rug.Trainer(200, 30, 0.05, batch=100, threads=threads)
        losses.append([trainer.step(2e-3) for _ in range(60)])
    assert np.allclose(losses[0], losses[1], rtol=1e-4) and np.allclose(losses[0], losses[2], rtol=1e-4)
    assert losses[0] == losses[3]


@pytest.mark.parametrize("init, spreads", [("tied", (0.7 / 400**0.5, 0.7 / 400**0.5, 0)),
                                           ("paper", (1 / 900**0.5 / 3**0.5, 1 / 400**0.5 / 3**0.5, 1 / 400**0.5 / 3**0.5))])
def test_starts(init, spreads):
    model = rug.Trainer(900, 400, 0.1, batch=1, init=init).model
    for array, spread in zip((model.encoder, model.decoder, model.bias), spreads):
        assert array.std() == pytest.approx(spread, rel=0.1) and abs(array.mean()) <= 0.1 * spread
    assert (model.encoder == model.decoder).all() == (init == "tied")


def test_evaluate_knows_its_error():
    class Constant:  # answers p/2, so its loss is Var x
        n_sparse = 50

        def forward(self, x):
            return np.full_like(x, 0.15)

    estimates = np.array([rug.evaluate(Constant(), 0.3, 500, seed) for seed in range(200)])
    deviations = (estimates[:, 0] - (0.3 / 3 - 0.3**2 / 4)) / estimates[:, 1]
    assert abs(deviations.mean()) < 4 / 200**0.5 and 0.8 < deviations.std() < 1.2


def test_evaluation_uses_every_sample_once_and_none_of_training():
    seen = []

    class Watcher:
        n_sparse = 2**20

        def forward(self, x):
            seen.extend(np.flatnonzero(row)[0] for row in x)
            return x

    assert rug.evaluate(Watcher(), 1e-4, 6, seed=0) == (0, 0)
    seen.extend(np.flatnonzero(row)[0] for row in rug.sample(6, 2**20, 1e-4, seed=0).dense())
    assert len(set(seen)) == 12


def test_dead_features_are_counted():
    model = rug.Autoencoder(np.eye(4), np.diag([1, -1, 1, 0]), np.array([-0.5, -0.1, -1.1, 0.1]))
    assert rug.dead_features(model, 0.2).tolist() == [False, True, True, False]


def test_a_network_as_wide_as_its_input_learns_the_identity():
    trainer = rug.Trainer(6, 6, 0.3, batch=256)
    for step in range(1500):
        trainer.step(train.learning_rate(step, 1500, train.peak_rate(6)))
    assert rug.evaluate(trainer.model, 0.3, 4096, seed=1).loss < 1e-6
    x = rug.sample(256, 6, 0.3, seed=0, step=1500).dense().astype(np.float64)
    plain = rug.Autoencoder(*(array.astype(np.float64) for array in trainer.weights)).loss_and_gradients(x)[0]
    assert trainer.step(1e-9) == pytest.approx(plain, rel=1e-2)  # a loss that is next to nothing, not a difference
    assert np.allclose(trainer.model.decoder @ trainer.model.encoder.T, np.eye(6), atol=0.01)


def test_two_features_on_one_unit_learn_a_digon():
    """Each silences the other, and they lose less than the p²/6 of W = [[1, −1], [−1, 1]]."""
    trainer = rug.Trainer(2, 1, 0.1, batch=512)
    for step in range(2000):
        trainer.step(train.learning_rate(step, 2000, train.peak_rate(2)))
    w = trainer.model.decoder @ trainer.model.encoder.T
    assert (np.diag(w) > 0.9).all() and w[0, 1] < 0 and w[1, 0] < 0
    estimate = rug.evaluate(trainer.model, 0.1, 2**17, seed=1)
    assert 0.1**2 / 9 < estimate.loss < 0.1**2 / 6


def test_the_rate_is_half_a_cosine():
    rates = [train.learning_rate(step, 8, 3.0) for step in range(8)]
    assert rates == pytest.approx([1.5 + 1.5 * np.cos(np.pi * k / 8) for k in range(8)])


def test_resumed_training_is_uninterrupted_training(tmp_path):
    whole, part = (rug.Trainer(64, 16, 0.1, batch=50, seed=4, init="paper", threads=2) for _ in range(2))
    for _ in range(7):
        whole.step(3e-3)
    for _ in range(3):
        part.step(3e-3)
    part.save(tmp_path / "checkpoint", steps=7)
    rest = rug.Trainer.load(tmp_path / "checkpoint", threads=2)
    for _ in range(4):
        rest.step(3e-3)
    assert rest.losses == whole.losses and rest.notes["steps"] == 7
    for ours, theirs in zip((*rest.weights, *rest.means, *rest.squares), (*whole.weights, *whole.means, *whole.squares)):
        assert (ours == theirs).all()


def test_models_survive_the_disk(tmp_path):
    for dtype in (np.float32, np.float64):
        model = random_model(12, 5, dtype)
        model.save(tmp_path / "model.npz")
        loaded = rug.Autoencoder.load(tmp_path / "model.npz")
        assert loaded.encoder.dtype == dtype
        for name in ("encoder", "decoder", "bias"):
            assert (getattr(loaded, name) == getattr(model, name)).all()
    assert os.listdir(tmp_path) == ["model.npz"]


def test_damaged_and_foreign_files_are_refused(tmp_path):
    rug.Trainer(8, 2, 0.5, batch=2).save(tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    random_model(4, 2).save(tmp_path / "model")
    contents = {"empty": b"", "text": b"hello", "truncated": good[:len(good) // 2], "cut": good[:-30],
                "flipped": good[:500] + bytes([good[500] ^ 255]) + good[501:], "model": (tmp_path / "model").read_bytes(),
                "pickled": pickle.dumps({"kind": "trainer"})}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            rug.Trainer.load(tmp_path / name)
    with np.load(tmp_path / "good") as data:
        arrays = dict(data)
    for change in ({"weights_bias": np.full(8, np.nan, np.float32)}, {"weights_bias": np.zeros(9, np.float32)},
                   {"means_encoder": np.zeros((8, 2))}, {"p": np.array(2.0)},
                   {"losses": np.array([{}], dtype=object)}, {"losses": np.array(0.1)}, {"p": np.array([0.5])}):
        np.savez(tmp_path / "changed.npz", **{**arrays, **change})
        with pytest.raises(ValueError):
            rug.Trainer.load(tmp_path / "changed.npz")
    with pytest.raises(OSError):
        rug.Autoencoder.load(tmp_path / "missing.npz")


# --------------------------------------------------------------------------------------------- theory.py


@pytest.mark.parametrize("r, p, loss, a, b, sigma, linear, bayes, oracle", REFERENCE)
def test_theory_matches_thirty_digit_values(r, p, loss, a, b, sigma, linear, bayes, oracle):
    best = theory.optimum(r, p)
    assert best.loss == pytest.approx(loss, rel=1e-8)
    assert (best.a, best.b, best.sigma) == pytest.approx((a, b, sigma), rel=1e-6)
    assert theory.symmetric_loss(a, b, sigma, p) == pytest.approx(loss, rel=1e-8)
    assert theory.linear_loss(r, p) == pytest.approx(linear, rel=1e-8)
    assert theory.bayes_loss(r, p) == pytest.approx(bayes, rel=1e-6)
    assert theory.oracle_loss(r, p) == pytest.approx(oracle, rel=1e-6)


@pytest.mark.parametrize("a, b, sigma, p", [(1.3, -0.4, 0.27, 0.05), (0.0, 0.2, 0.3, 0.5), (-0.7, 0.3, 0.01, 1.0),
                                            (0.9, 0.1, 0.0, 0.3), (0.02, -0.1, 1.5, 0.2)])
def test_symmetric_loss_is_what_sampling_finds(a, b, sigma, p):
    rng = np.random.default_rng(0)
    x = rng.random(10**6) * (rng.random(10**6) < p)
    output = np.maximum(a * x + b + sigma * rng.standard_normal(10**6), 0)
    errors = (output - x)**2
    assert theory.symmetric_loss(a, b, sigma, p) == pytest.approx(errors.mean(), abs=4 * errors.std() / 1e3)


@pytest.mark.parametrize("mean, std", [(0.3, 0.5), (-1.0, 0.4), (2.0, 0.0), (-2.0, 0.0), (0.0, 1.0)])
def test_relu_moments_are_what_sampling_finds(mean, std):
    output = np.maximum(mean + std * np.random.default_rng(1).standard_normal(10**6), 0)
    for moment, values in zip(theory.relu_moments(mean, std), (output, output**2)):
        assert moment == pytest.approx(values.mean(), abs=4 * values.std() / 1e3 + 1e-12)


def test_no_nearby_parameters_do_better_than_the_optimum():
    for r, p, *_ in REFERENCE:
        best = theory.optimum(r, p)
        for da, db in np.random.default_rng(0).normal(0, 0.05, (20, 2)):
            a = best.a * (1 + da)
            assert theory.symmetric_loss(a, best.b + db * best.sigma, a * best.sigma / best.a, p) >= best.loss * (1 - 1e-9)


@pytest.mark.parametrize("r, p", [(0.25, 0.045), (0.6, 0.2), (0.05, 0.03)])
def test_bayes_and_oracle_are_conditional_variances(r, p):
    """The best function of y leaves the variance of x at given y: sort samples by y, take the variance in small bins."""
    rng, n = np.random.default_rng(0), 2**22
    on = rng.random(n) < p
    x = rng.random(n) * on
    y = x + np.sqrt((1 / r - 1) * (p / 3 - p**2 / 4)) * rng.standard_normal(n)

    def left(x, y):
        bins = x[np.argsort(y)][:len(x) // 256 * 256].reshape(-1, 256)
        return bins.var(axis=1, ddof=1).mean()

    assert theory.bayes_loss(r, p) == pytest.approx(left(x, y), rel=0.01)
    assert theory.oracle_loss(r, p) == pytest.approx(p * left(x[on], y[on]), rel=0.01)


def test_bounds_are_in_order_everywhere():
    for r in (1e-4, 1e-3, 0.02, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0):
        for p in (1e-6, 1e-4, 0.01, 0.1, 0.5, 0.9, 1.0):
            bounds = [theory.oracle_loss(r, p), theory.bayes_loss(r, p), theory.optimum(r, p).loss, theory.linear_loss(r, p)]
            assert all(low <= high * (1 + 2e-8) + 1e-15 for low, high in zip(bounds, bounds[1:])), (r, p, bounds)
    assert theory.optimum(1.0, 0.3) == (0, 1, 0, 0) and theory.bayes_loss(1, 0.3) == 0 == theory.oracle_loss(1, 0.3)
    assert theory.optimum(0.3, 1.0).loss == pytest.approx(0.7 / 12, rel=0.02)  # all on: ReLU has little to clip


def test_the_scaling_law_is_the_limit():
    """At fixed r/r_c the computed optimum nears the law, slowly, as 1/ln(1/p); below r_c nothing is removed."""
    for above in (2, 3, 10):
        r, p = above * theory.critical_ratio(1e-80), 1e-80
        assert theory.optimum(r, p).loss == pytest.approx(theory.scaling_loss(r, p), rel=0.025)
    gaps = [theory.scaling_loss(r, p) / theory.optimum(r, p).loss - 1
            for r, p in ((10 * theory.critical_ratio(p), p) for p in (1e-12, 1e-20, 1e-40, 1e-80))]
    assert gaps == sorted(gaps, reverse=True)
    tiny, r = 1e-80, 4 * theory.critical_ratio(1e-80)
    assert theory.bayes_loss(r, tiny) / theory.variance(tiny) == pytest.approx(0.5**3, rel=0.05)  # t³
    p = 1e-6
    below = 0.5 * theory.critical_ratio(p)
    assert theory.scaling_loss(below, p) == theory.variance(p)
    assert theory.optimum(below, p).loss > 0.98 * theory.variance(p)
    assert theory.critical_ratio(0.01) == pytest.approx(2 / 300 * np.log(100))


def test_macroscopics_of_a_known_matrix(monkeypatch):
    monkeypatch.setattr(theory, "AT_ONCE", 200)  # several blocks of rows
    model, p = random_model(30, 8), 0.2
    w = model.decoder @ model.encoder.T
    others = [np.delete(w[i], i) for i in range(30)]
    expected = {
        "a": np.diag(w), "bias": model.bias, "effective_bias": model.bias + 0.1 * np.array([row.sum() for row in others]),
        "sigma": [np.sqrt((p / 3 - p**2 / 4) * (row**2).sum()) for row in others],
        "lyapunov": [(np.abs(row)**3).sum() / (row**2).sum()**1.5 for row in others],
        "skewness": [((row - row.mean())**3).mean() / row.std()**3 for row in others]}
    for name, values in expected.items():
        assert getattr(theory.feature_statistics(model, p), name) == pytest.approx(np.array(values), rel=1e-9)
        assert getattr(theory.macroscopics(model, p), name) == pytest.approx((np.mean(values), np.std(values)), rel=1e-9)


# ---------------------------------------------------------------------------------------------- forge.py


@pytest.mark.parametrize("n", [1, 2, 8, 128])
def test_walsh_hadamard_is_the_matrix(n):
    k = np.arange(n)
    matrix = np.array([[(-1)**bin(i & j).count("1") for j in k] for i in k])
    x = np.random.default_rng(0).integers(-50, 50, (3, n))
    kept = x.copy()
    assert (forge.walsh_hadamard(x) == x @ matrix).all() and (x == kept).all()
    assert (forge.walsh_hadamard(forge.walsh_hadamard(x)) == n * x).all()


def test_the_rug_is_exactly_symmetric():
    n_sparse, n_dense, p = 64, 24, 0.1
    forged = forge.persian_rug(n_sparse, n_dense, p, seed=3)
    dense = forged.autoencoder()
    w = dense.decoder.astype(np.float64) @ dense.encoder.T
    i = np.arange(n_sparse)
    assert np.allclose(w, forged.a * forged.kernel[i[:, None] ^ i], atol=1e-6)
    assert np.linalg.matrix_rank(w, tol=1e-4) == n_dense
    assert np.allclose(w @ w, forged.a * n_sparse / n_dense * w, atol=1e-4)  # a scaled projector
    assert np.allclose(w.sum(axis=1), 0, atol=1e-5)
    numbers, best = theory.macroscopics(dense, p), theory.optimum(n_dense / n_sparse, p)
    assert all(spread < 1e-6 for _, spread in numbers)
    assert (numbers.a[0], numbers.effective_bias[0], numbers.sigma[0]) == pytest.approx((best.a, best.b, best.sigma), rel=1e-5)
    x = rug.sample(20, n_sparse, p, seed=0).dense()
    assert np.allclose(forged.forward(x), dense.forward(x), atol=1e-5)
    assert all(abs(forge.persian_rug(8, 6, p, seed).kernel.sum()) < 1e-12 for seed in range(10))  # never row 0
    whole = forge.persian_rug(16, 16, p, seed=0)
    assert np.allclose(whole.forward(x[:, :16]), x[:, :16], atol=1e-6)


@pytest.mark.parametrize("n_sparse, r, p", [(8192, 0.25, 0.045), (8192, 0.5, 0.3), (65536, 0.1, 0.01)])
def test_a_large_rug_reaches_the_theory(n_sparse, r, p):
    estimate = rug.evaluate(forge.persian_rug(n_sparse, round(n_sparse * r), p, seed=0), p, 2**23 // n_sparse, seed=1)
    predicted = theory.optimum(round(n_sparse * r) / n_sparse, p).loss
    assert 4 * estimate.error < 0.05 * predicted
    assert estimate.loss == pytest.approx(predicted, abs=0.01 * predicted + 4 * estimate.error)


def test_the_random_projector_is_a_projector_near_the_theory():
    r, p = 0.25, 0.045
    model = forge.random_projector(2048, 512, p, seed=0)
    assert np.allclose(model.encoder.T @ model.encoder, np.eye(512), atol=1e-4)
    numbers, best = theory.macroscopics(model, p), theory.optimum(r, p)
    assert (numbers.a[0], numbers.effective_bias[0]) == pytest.approx((best.a, best.b), rel=1e-4)
    assert numbers.effective_bias[1] < 1e-5
    assert rug.evaluate(model, p, 4000, seed=0).loss == pytest.approx(best.loss, rel=0.05)


@pytest.mark.parametrize("p", [0.05, 0.4, 1.0])
def test_digons_lose_p_squared_over_six(p):
    estimate = rug.evaluate(forge.digons(10), p, 2**17, seed=0)
    assert estimate.loss == pytest.approx(p**2 / 6, abs=4 * estimate.error)
    assert theory.digon_loss(p) == pytest.approx(p**2 / 6)


def test_tiles_are_copies():
    block, x = random_model(5, 2, np.float32), np.random.default_rng(0).random((4, 15)).astype(np.float32)
    tiled = forge.tile(block, 3)
    assert tiled.encoder.shape == (15, 6)
    assert np.allclose(tiled.forward(x), np.concatenate([block.forward(part) for part in np.split(x, 3, axis=1)], axis=1),
                       atol=1e-6)


# --------------------------------------------------------------------------------------- beyond the paper


def test_below_the_tangent_ratio_dropping_features_wins():
    for p in (0.003, 0.03, 0.3):
        tangent = theory.tangent_ratio(p)
        for r in (0.3 * tangent, 0.9 * tangent, 1.1 * tangent):
            q = np.linspace(r, 1, 400)  # every fraction of features to keep
            losses = [share * theory.optimum(min(r / share, 1), p).loss + (1 - share) * theory.variance(p) for share in q]
            assert theory.dropping_loss(r, p) == pytest.approx(min(losses), rel=1e-3)
            assert (theory.kept_fraction(r, p) < 1) == (r < tangent)
    over = np.linspace(1.001, 4, 10000)  # the limit law's own tangent point: 1.95
    limit = over[np.argmax((1 - 0.75 / over - 0.25 / over**1.5) / over)]
    assert theory.tangent_ratio(1e-100) / theory.critical_ratio(1e-100) == pytest.approx(limit, rel=0.01)


def trained(n_sparse, n_dense, p, steps):
    trainer = rug.Trainer(n_sparse, n_dense, p)
    for step in range(steps):
        trainer.step(train.learning_rate(step, steps, train.peak_rate(n_sparse)))
    return trainer.model


@pytest.mark.parametrize("model, p", [
    (partial(trained, 128, 32, 0.045, 400), 0.045), (partial(trained, 40, 3, 0.3, 300), 0.3),
    (lambda: forge.persian_rug(128, 32, 0.045, 0).autoencoder(), 0.045), (lambda: forge.persian_rug(512, 51, 0.01, 0).autoencoder(), 0.01),
    (lambda: forge.digons(128), 0.2), (lambda: forge.priority_code(8, 2, 5), 0.045), (lambda: random_model(30, 7), 0.4),
    (lambda: random_model(1, 1), 1.0)])
def test_the_exact_loss_is_what_sampling_finds(model, p):
    model = model()
    estimate = rug.evaluate(model, p, 2**25 // max(model.n_sparse, 64), seed=5)
    assert theory.exact_loss(model, p) == pytest.approx(estimate.loss, abs=4 * estimate.error)
    assert 4 * estimate.error < 0.03 * estimate.loss


def test_the_exact_loss_needs_no_gaussian():
    """Trained interference is far from Gaussian; and where closed forms exist, the exact loss is them."""
    model = trained(128, 32, 0.045, 400)
    numbers = theory.feature_statistics(model, 0.045)
    gaussian = theory.gaussian_losses(numbers.a, numbers.effective_bias, numbers.sigma, 0.045).mean()
    assert gaussian > 1.2 * theory.exact_loss(model, 0.045)
    for p in (0.01, 0.3, 1.0):
        for c in (1.0, 1 / 3):
            assert theory.exact_loss(forge.digons(4, c), p) == pytest.approx(theory.digon_loss(p, c), rel=1e-4)
    constant = rug.Autoencoder(np.zeros((3, 1)), np.zeros((3, 1)), np.array([0.2, 0.0, -0.3]))
    expected = [0.3 / 3 - 0.3 * 0.2 + 0.2**2, 0.3 / 3, 0.3 / 3]  # E (x − b)² where b > 0, else E x²
    assert theory.exact_losses(constant, 0.3) == pytest.approx(expected, abs=3e-8)


@pytest.mark.parametrize("bias", [-0.5, -0.99, -1.5, -4.0])
def test_the_exact_loss_of_features_that_hardly_answer(bias):
    """W = 1 leaves E (x − ReLU(x + b))² in closed form; a random W with such a bias is sampled, and bounded."""
    alone, p = rug.Autoencoder(np.ones((1, 1)), np.ones((1, 1)), np.array([bias])), 0.3
    off = max(1 + bias, 0)  # answers 1 + b at most
    expected = p * (1 / 3 + off**3 / 3 - 2 * (off**2 / 2 - off**3 / 6))
    assert theory.exact_loss(alone, p) == pytest.approx(expected, abs=3e-8)
    model = random_model(40, 3)
    model.bias[:] = bias
    estimate = rug.evaluate(model, 0.1, 2**19, seed=1)
    assert theory.exact_loss(model, 0.1) == pytest.approx(estimate.loss, abs=4 * estimate.error)
    huge = rug.Autoencoder(np.array([[1e15], [1.0]]), np.ones((2, 1)), np.zeros(2))
    assert np.isfinite(theory.exact_losses(huge, 0.5)).all()


def test_gaussian_gradients_match_finite_differences():
    model, p = rug.Autoencoder(*(0.6 * array for array in random_model(9, 4).__dict__.values() if isinstance(array, np.ndarray))), 0.2
    loss, gradients = theory.gaussian_loss_and_gradients(model, p)
    numbers = theory.feature_statistics(model, p)
    assert loss == pytest.approx(np.mean([theory.symmetric_loss(*map(float, own), p) for own in zip(
        numbers.a, numbers.effective_bias, numbers.sigma)]), rel=1e-9)
    for name, gradient in zip(gradients._fields, gradients):
        array = getattr(model, name)
        for index in np.ndindex(array.shape):
            kept, losses = array[index], []
            for change in (1e-5, -1e-5):
                array[index] = kept + change
                losses.append(theory.gaussian_loss_and_gradients(model, p)[0])
            array[index] = kept
            assert gradient[index] == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("a, sigma", [(0.02, 0.3), (-0.005, 0.3), (1.3, 0.2)])
def test_gaussian_terms_have_the_right_slopes(a, sigma):
    def terms(a=a, b=-0.1, variance=sigma**2):
        return [float(term) for term in theory._gaussian_terms(a, b, np.sqrt(variance), 0.2)]

    for place, name, value in ((1, "a", a), (2, "b", -0.1), (3, "variance", sigma**2)):
        h = 1e-4
        slope = (terms(**{name: value + h})[0] - terms(**{name: value - h})[0]) / (2 * h)
        assert terms()[place] == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("a, sigma", [(0.0, 0.3), (1e-5, 0.3), (-0.4, 0.1), (1.2, 0.0), (0.5, 1e-9)])
def test_gaussian_losses_bear_small_numbers(a, sigma):
    loss = theory.gaussian_losses(np.array([a]), np.array([0.1]), np.array([sigma]), 0.3)[0]
    assert loss == pytest.approx(theory.symmetric_loss(a, 0.1, sigma, 0.3), rel=2e-3)


@pytest.mark.parametrize("n_sparse, r, p", [(128, 0.25, 0.045), (96, 0.5, 0.2)])
def test_descending_on_the_theory_ends_at_its_optimum(n_sparse, r, p):
    trainer = rug.Trainer(n_sparse, round(r * n_sparse), p, batch=1)
    for step in range(1000):
        train.descend(trainer, train.learning_rate(step, 1000, train.descent_rate(n_sparse, trainer.n_dense)))
    best, numbers = theory.optimum(r, p), theory.macroscopics(trainer.model, p)
    assert trainer.losses[-1] == pytest.approx(best.loss, rel=1e-3)
    assert (numbers.a[0], numbers.effective_bias[0], numbers.sigma[0]) == pytest.approx((best.a, best.b, best.sigma), rel=5e-3)
    assert numbers.a[1] < 0.01


def test_following_given_gradients_is_the_same_adam():
    stepping, following = (rug.Trainer(20, 6, 0.3, batch=64, threads=1) for _ in range(2))
    for step in range(3):
        x = rug.sample(64, 20, 0.3, seed=0, step=step).dense()
        stepping.step(1e-2)
        following.follow(1e-2, *following.model.loss_and_gradients(x))
    assert following.losses == pytest.approx(stepping.losses, rel=1e-5)
    for mine, its in zip(following.weights, stepping.weights):
        assert np.abs(mine - its).max() < 2e-4


@pytest.mark.parametrize("n_sparse, n_dense, p", [(8, 2, 0.045), (64, 16, 0.2), (67, 16, 0.1), (100, 2, 0.003), (41, 40, 0.5), (6, 6, 0.4)])
def test_the_priority_code_loses_what_its_closed_form_says(n_sparse, n_dense, p):
    for closed in (False, True):
        model = forge.priority_code(n_sparse, n_dense, 1000 if n_sparse < 100 else 100, closed)
        estimate = rug.evaluate(model, p, 2**23 // max(n_sparse, 64), seed=3)
        predicted = theory.priority_loss(n_dense / n_sparse, p, closed)
        assert estimate.loss == pytest.approx(predicted, rel=2e-3, abs=4 * estimate.error + 1e-12)
        assert np.einsum("ij,ij->i", model.decoder, model.encoder) == pytest.approx(1)
        assert model.encoder.shape == (n_sparse, n_dense)


def test_a_hidden_unit_left_over_takes_a_digon():
    model, p = forge.priority_code(30, 7, 1000), 0.1
    estimate = rug.evaluate(model, p, 2**18, seed=3)
    assert estimate.loss == pytest.approx((2 * theory.digon_loss(p) + 28 * theory.priority_loss(6 / 28, p)) / 30, abs=4 * estimate.error)
    assert rug.evaluate(forge.priority_code(5, 5), 0.3, 1000, seed=0).loss < 1e-20
    assert theory.digon_loss(0.3) == pytest.approx(0.015)
    assert theory.exact_loss(forge.priority_code(2, 1), 0.3) == pytest.approx(0.015, rel=1e-4)


def test_priority_loss_is_a_sum_over_features_and_has_its_limit():
    for n, p in ((2, 0.3), (3, 0.3), (9, 1.0), (40, 0.01), (500, 1e-7)):
        lost = [1 - (1 - p)**max(i - 1, 0) for i in range(n)]
        assert theory.priority_loss(2 / n, p) == pytest.approx(p / 3 * np.mean(lost), rel=1e-6, abs=1e-18)
        lost[-1] = 1 - (1 - p)**(n - 3) if n > 3 else lost[-1]
        assert theory.priority_loss(2 / n, p, closed=True) == pytest.approx(p / 3 * np.mean(lost), rel=1e-6, abs=1e-18)
    assert theory.priority_loss(2 / 7.25, 0.1) == pytest.approx(  # three blocks of 7 and one of 8
        (21 * theory.priority_loss(2 / 7, 0.1) + 8 * theory.priority_loss(2 / 8, 0.1)) / 29)
    for kappa in (0.1, 1, 10):
        assert theory.priority_loss(kappa * 1e-8, 1e-8) == pytest.approx(theory.priority_limit(kappa * 1e-8, 1e-8), rel=1e-4)
    assert theory.priority_limit(1e-3, 1e-3) / theory.variance(1e-3) == pytest.approx(1 - 0.5 * (1 - np.exp(-2)))


def test_uneven_digons_and_mixtures():
    losses = [theory.digon_loss(0.1, c) for c in np.linspace(0.01, 1, 1000)]
    assert min(losses) >= theory.digon_loss(0.1, 1 / 3) == pytest.approx(25 / 27 * theory.digon_loss(0.1))
    estimate = rug.evaluate(forge.digons(10, 1 / 3), 0.3, 2**20, seed=0)
    assert estimate.loss == pytest.approx(theory.digon_loss(0.3, 1 / 3), abs=4 * estimate.error)
    assert 8 * estimate.error < 0.0185 * theory.digon_loss(0.3) * 4
    p, mixed = 0.1, forge.side_by_side([forge.digons(4), rug.Autoencoder(np.eye(4), np.eye(4), np.zeros(4))])
    codes = {"digon": (0.5, theory.digon_loss(p)), "identity": (1.0, 0.0), "drop": (0.0, theory.variance(p))}
    assert theory.envelope(0.75, codes)[0] == pytest.approx(theory.exact_loss(mixed, p), rel=1e-4)
    assert theory.envelope(0.9, codes) == (pytest.approx(0.2 * theory.digon_loss(p)), ("identity", "digon"))


# ------------------------------------------------------------------------------- trust: files, faults, extremes


def header(shape, dtype="<f4"):
    """The first bytes of an .npy that claims to hold an array."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_small_integers_do_not_overflow(tmp_path):
    """NumPy's own integers would wrap around in n_sparse × batch, and compiled loops write past the end of their arrays."""
    size = np.int8(100)
    assert rug.sample(size, size, 0.5, np.int8(0)).dense().shape == (100, 100)
    trainer = rug.Trainer(size, np.int8(20), 0.5, batch=size, threads=np.int8(1))
    assert np.isfinite(trainer.step(1e-3)) and trainer.gradient.shape[2] == 20
    assert np.isfinite(rug.evaluate(trainer.model, 0.1, size, 3).loss) and forge.digons(size).n_sparse == 100
    with pytest.raises(ValueError, match="encoder must be finite"):
        rug.Autoencoder(np.full((2, 1), 1e300), np.ones((2, 1), np.float32), np.zeros(2))
    trainer.model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="lr must be numbers or strings"):
        trainer.model.save(tmp_path / "model", lr=None)
    assert rug.Autoencoder.load(tmp_path / "model").n_sparse == 100


def test_a_run_that_diverges_leaves_the_last_good_checkpoint(tmp_path, capsys):
    settings = ["--n-sparse", "16", "--batch", "8", "--out", str(tmp_path)]
    trainer = rug.Trainer(16, 4, 0.045, batch=8)
    trainer.step(1e-3)
    trainer.weights.bias[:] = np.nan
    with pytest.raises(ValueError, match="--lr 0.5"):
        train.train(trainer, 1, 0.5, tmp_path / "checkpoint", 1.0)
    assert not os.listdir(tmp_path)
    (tmp_path / "runs").mkdir()
    mine = tmp_path / "runs" / "notes.tmp"
    mine.write_text("mine")
    os.utime(mine, (0, 0))
    for _ in range(3):  # nobody's checkpoint is lost by starting again
        with pytest.raises(SystemExit):
            train.main([*settings, "--lr", "1e20", "--steps", "30"])
        rug.Trainer(16, 4, 0.045, batch=8).save(tmp_path / "runs" / "checkpoint.npz")
    assert mine.exists() and len(list((tmp_path / "runs").glob("checkpoint.npz.previous*"))) == 2


def test_hostile_files_run_no_code_and_take_no_memory(tmp_path):
    objects = np.array([Malice(tmp_path / "harm")], dtype=object)
    np.savez(tmp_path / "objects.npz", kind="autoencoder", encoder=objects, decoder=objects, bias=objects)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(objects[0]))
    np.save(tmp_path / "one.npy", np.ones(4))
    members = {"claim": header((10**12, 4)), "negative": header((-1, 4)), "short": header((4, 2)) + bytes(20), "promise": header((4, 2), "|O"),
               "text": b"hello", "nothing": b""}
    for name, content in members.items():
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as archive:
            for array in ("kind", "encoder", "decoder", "bias"):
                archive.writestr(f"{array}.npy", content)
    for array in ("kind", "init"):
        rug.Trainer(8, 2, 0.5, batch=2).save(tmp_path / "trainer.npz")
        with zipfile.ZipFile(tmp_path / "trainer.npz") as good, zipfile.ZipFile(tmp_path / f"{array}.npz", "w") as archive:
            for name in good.namelist():
                archive.writestr(name, header((), "<U1") + b"\xff" * 4 if name == f"{array}.npy" else good.read(name))
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("encoder.npy", header((2**27,)) + bytes(2**27))
    rug.Trainer(8, 2, 0.5, batch=2).save(tmp_path / "trainer.npz")
    with np.load(tmp_path / "trainer.npz") as data:
        np.savez(tmp_path / "large.npz", **{**data, "n_sparse": np.array(2**30), "n_dense": np.array(2**20)})
        np.savez(tmp_path / "batch.npz", **{**data, "batch": np.array(2**31 - 1)})
    tracemalloc.start()
    for path in tmp_path.iterdir():
        if path.name != "trainer.npz":
            for load in (rug.Autoencoder.load, rug.Trainer.load):
                with pytest.raises(ValueError, match=path.stem):
                    load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25 and not (tmp_path / "harm").exists()
    with pytest.raises(ValueError, match="path must be"):
        rug.load_npz(tmp_path, None)


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "model.npz"
    random_model(4, 2).save(path)
    before = path.read_bytes()
    with pytest.raises(OSError, match="model.npz could not be written: No space"):
        with rug.replacing(path) as file:
            file.write(b"half")
            raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt):
        with rug.replacing(path) as file:
            raise KeyboardInterrupt
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.npz"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of files")
def test_a_full_disk_is_named_and_the_last_checkpoint_stays(tmp_path):
    import resource
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20000, 20000))
    job = run("--n-sparse", 32, "--steps", 30, "--out", tmp_path, preexec_fn=limit)  # its pictures are too large
    _, errors = job.communicate(timeout=120)
    assert job.returncode == 2 and "could not be written" in errors and errors.count("\n") == 1
    assert len(rug.Trainer.load(tmp_path / "runs" / "checkpoint.npz").losses) == 30
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.png"))


def test_one_seed_one_result_and_its_file_says_how(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "FORGED_LARGE", 64)
    monkeypatch.setattr(train, "enough", lambda n_sparse: 4096)
    outputs, models = [], []
    for name in ("one", "two"):
        train.main(["--n-sparse", "24", "--steps", "40", "--seed", "7", "--threads", "2", "--out", str(tmp_path / name)])
        output = capsys.readouterr().out
        outputs.append(output[output.index("loss per feature"):output.index("→")])
        models.append(rug.load_npz(tmp_path / name / "runs" / "model.npz", "autoencoder"))
        trainer = rug.Trainer.load(tmp_path / name / "runs" / "checkpoint.npz")
    assert outputs[0] == outputs[1] and trainer.losses
    assert all((models[0][key] == models[1][key]).all() for key in ("encoder", "decoder", "bias"))
    train.main(["show", str(tmp_path / "one" / "runs" / "model.npz")])
    shown = capsys.readouterr().out
    for words in ("autoencoder", "seed", "threads", np.__version__, "command", "revision", "numba", "python", "(24, 6)", "cores"):
        assert words in shown


@pytest.mark.parametrize("settings", [
    "--n-sparse 1 --ratio 1 --batch 1 --threads 8", "--n-sparse 9 --ratio 0.12 --p 1", "--n-sparse 16 --ratio 1 --batch 3 --threads 40",
    "--n-sparse 20 --p 1e-6 --steps 3", "theory --n-sparse 1 --ratio 1 --p 1", "theory --n-sparse 30 --ratio 0.03 --p 1e-6"])
def test_extremes(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "FORGED_LARGE", 64)
    monkeypatch.setattr(train, "enough", lambda n_sparse: 4096)
    train.main([*settings.split(), "--steps", "5", "--out", str(tmp_path)])
    assert "nan" not in capsys.readouterr().out.replace("± nan", "")  # one sample or none on has no standard error


def test_a_million_features():
    trainer = rug.Trainer(2**20, 2, 1e-4, batch=3)
    losses = [trainer.step(1e-3) for _ in range(2)]
    assert losses[0] == pytest.approx(plain_loss(trainer, 0), rel=1e-5) and np.isfinite(losses[1])


def plain_loss(trainer, step):
    """The loss of the start on a batch, in float64."""
    start = rug.tied_start(trainer.n_sparse, trainer.n_dense, np.random.default_rng(trainer.seed))
    encoder, decoder, bias = (array.astype(np.float32).astype(float) for array in start)
    x = rug.sample(trainer.batch, trainer.n_sparse, trainer.p, trainer.seed, step).dense().astype(float)
    return np.mean((np.maximum(x @ encoder @ decoder.T + bias, 0) - x)**2)


@pytest.mark.parametrize("n_sparse, p", [(2**10, 0.05), (2**17, 0.05), (2**19, 1e-3)])
def test_the_loss_is_summed_in_float32_without_harm(n_sparse, p):
    trainer = rug.Trainer(n_sparse, 3, p, batch=4)
    assert trainer.step(1e-3) == pytest.approx(plain_loss(trainer, 0), rel=1e-5)


def test_a_diverging_run_is_told_by_its_loss():
    class Run:
        p, losses = 0.3, []

    least, noise = theory.variance(0.3), np.random.default_rng(0).normal(0, 1e-4, 400)
    for level, steps, stops in ((1.03, 400, True), (0.97, 400, False), (1.0, 400, False), (1.03, 1000, False)):
        Run.losses = list(level * least + noise)
        if stops:
            with pytest.raises(ValueError, match="--lr 0.5 .*answering p/2"):
                train.check_loss(Run, steps, 0.5)
        else:
            train.check_loss(Run, steps, 0.5)
    Run.losses = [0.1, float("nan")]
    with pytest.raises(ValueError, match="--lr 0.5"):
        train.check_loss(Run, 10, 0.5)


@pytest.mark.parametrize("kind", ["trained", "block", "theory"])
def test_an_interrupted_point_goes_on_where_it_was(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 0)
    point = train.Point(kind, 12, 3, 0.3, 40)
    train.measure_point(point, tmp_path)
    whole = train.read_point(point, tmp_path)
    os.remove(point.file(tmp_path))
    seen = []

    def kill(step):
        seen.append(step)
        if len(seen) == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.measure_point(point, tmp_path, report=kill)
    assert [name for name in os.listdir(tmp_path)] == ["block-12-3-0.3-40.npz.0.part".replace("block", kind)]
    train.measure_point(point, tmp_path, report=seen.append)
    rest = train.read_point(point, tmp_path)
    assert seen[25] == 25 and os.listdir(tmp_path) == [os.path.basename(point.file(tmp_path))]  # step 25 was not kept, 24 were
    assert all(np.array_equal(whole[name], rest[name]) for name in train.TRAINED + ("loss", "error"))
    (tmp_path / (os.path.basename(point.file(tmp_path)) + ".0.part")).write_bytes(b"damaged")
    assert len(train.start_point(point, 0, 1, point.file(tmp_path) + ".0.part").losses) == 0


def test_no_place_for_compiled_code_is_no_reason_to_fail(monkeypatch):
    usual = rug.numba.njit

    def without_cache(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return usual(**options)

    monkeypatch.setattr(rug.numba, "njit", without_cache)
    assert rug.kernel(lambda x: x + 1)(1) == 2


def test_ctrl_c_while_libraries_load(tmp_path):
    """train.py beside a rug.py that interrupts its own import."""
    (tmp_path / "train.py").write_bytes((HERE / "train.py").read_bytes())
    (tmp_path / "rug.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)\n")
    job = subprocess.run([sys.executable, tmp_path / "train.py"], capture_output=True, text=True)
    assert job.returncode == 130 and job.stderr == "\nInterrupted.\n"


def test_nobody_reads_the_output(tmp_path):
    job = run("bounds", "--out", tmp_path)
    job.stdout.close()
    errors = job.stderr.read()
    assert job.wait(timeout=60) == 2 and errors.count("\n") == 1 and "output" in errors


# -------------------------------------------------------------------------------------------- bad input


NAN, INF = float("nan"), float("inf")
BAD = {  # kinds of argument, and what none of that kind may be
    "fraction": (0, -0.1, 1.1, NAN, INF, "half", None, [0.5], 1j), "count": (0, -1, 2.5, NAN, INF, "8", None, 2**40, [8]),
    "seed": (-1, 0.5, NAN, "x", None, 2**70), "rate": (0, -1, NAN, INF, "fast", None, [0.1], 10**400, 1e31), "number": (NAN, INF, "x", None, 1j),
    "deviation": (-1, NAN, INF, "x", None), "separation": (1, 0, -2, NAN, INF, "far", None, 1e200, 10**400),
    "threads": (0, -1, 1.5, NAN, "2", 10**6), "init": ("random", 3, None, ["tied"]), "model": (None, 3, "model", np.ones((4, 2))),
    "power": (0, -4, 12, 2.0, NAN, "16", None, 2**40), "even": (0, -2, 7, NAN, "8", None),
    "matrix": (np.ones(4), np.ones((2, 4)), np.full((4, 2), NAN), np.full((4, 2), INF), np.ones((4, 2)) * 1j, "x", None, np.ones((0, 0))),
    "vector": (np.ones(3), np.ones((4, 1)), np.full(4, NAN), "x", None, np.ones(0)),
    "x": (np.ones((3, 5)), np.ones(4), np.ones((0, 4)), "x", None, np.ones((3, 4)) * 1j),
    "transform": (np.ones(6), np.ones((2, 0)), 3.0, "abcd", None), "codes": (None, 3, {"digon": 0.1}, {}),
    "values": (np.ones(3), np.ones((1, 3)), "x", None, np.full((3, 3), NAN)), "models": ([], [None], [3], None),
    "gradients": ([], [np.ones(2)] * 3, None), "path": ("/nowhere/at/all", "/dev/null", ".", None)}
R, P, SEED = {"r": (0.5, "fraction")}, {"p": (0.5, "fraction")}, {"seed": (0, "seed")}
SIZES = {"n_sparse": (16, "count"), "n_dense": (4, "count")}


def calls():
    """Every function that others may call, with good arguments and their kinds."""
    model, trainer = rug.Autoencoder(np.ones((4, 2)), np.ones((4, 2)), np.ones(4)), rug.Trainer(8, 2, 0.5, batch=2, threads=1)
    a_model = {"model": (model, "model")}
    yield rug.sample, {"batch": (2, "count"), "n_sparse": (5, "count")} | P | SEED | {"step": (0, "seed")}
    yield rug.Autoencoder, {"encoder": (np.ones((4, 2)), "matrix"), "decoder": (np.ones((4, 2)), "matrix"), "bias": (np.ones(4), "vector")}
    yield model.forward, {"x": (np.ones((3, 4)), "x")}
    yield model.loss_and_gradients, {"x": (np.ones((3, 4)), "x")}
    yield rug.Autoencoder.load, {"path": (None, "path")}
    yield rug.Trainer.load, {"path": (None, "path")}
    yield rug.evaluate, a_model | P | {"samples": (4, "count")} | SEED
    yield rug.dead_features, a_model | P | {"samples": (4, "count")} | SEED
    yield rug.Trainer, SIZES | P | {"batch": (4, "count")} | SEED | {"init": ("tied", "init"), "threads": (1, "threads")}
    yield trainer.step, {"lr": (0.1, "rate")}
    yield trainer.follow, {"lr": (0.1, "rate"), "loss": (1.0, None), "gradients": (trainer.weights, "gradients")}
    yield theory.relu_moments, {"mean": (0.0, "number"), "std": (1.0, "deviation")}
    yield theory.symmetric_loss, {"a": (1.0, "number"), "b": (0.0, "number"), "sigma": (0.1, "deviation")} | P
    yield theory.gaussian_losses, {"a": (1.0, "number"), "b": (0.0, "number"), "sigma": (0.1, "deviation")} | P
    for function in (theory.optimum, theory.noise_per_signal, theory.linear_loss, theory.bayes_loss, theory.oracle_loss, theory.kept_fraction,
                     theory.dropping_loss, theory.scaling_loss, theory.priority_loss, theory.priority_limit):
        yield function, R | P
    for function in (theory.variance, theory.critical_ratio, theory.tangent_ratio):
        yield function, P
    yield theory.digon_loss, P | {"c": (0.5, "fraction")}
    yield theory.envelope, {"r": (0.5, "number"), "codes": ({"a": (0.0, 1.0), "b": (1.0, 0.0)}, "codes")}
    for function in (theory.feature_statistics, theory.macroscopics, theory.gaussian_loss_and_gradients, theory.exact_losses, theory.exact_loss):
        yield function, a_model | P
    yield theory.distance_from_gaussian, {"values": (np.random.default_rng(0).random((9, 2)), "values")}
    yield forge.walsh_hadamard, {"x": (np.ones(8), "transform")}
    yield forge.persian_rug, {"n_sparse": (16, "power"), "n_dense": (4, "count")} | P | SEED
    yield forge.random_projector, SIZES | P | SEED
    yield forge.side_by_side, {"models": ([model], "models")}
    yield forge.tile, a_model | {"copies": (2, "count")}
    yield forge.digons, {"n_sparse": (8, "even"), "c": (0.5, "fraction")}
    yield forge.priority_code, SIZES | {"separation": (10, "separation")}


CALLS = list(calls())


@pytest.mark.parametrize("function, arguments", CALLS, ids=[function.__qualname__ for function, _ in CALLS])
def test_mistakes_are_named(function, arguments, monkeypatch):
    """Each argument in turn is each thing that it must not be; the ValueError names it and says what is allowed."""
    good = {name: value for name, (value, _) in arguments.items()}
    if "path" not in good:
        function(**good)
    for name, (_, kind) in arguments.items():
        for bad in BAD.get(kind, ()):
            if kind == "path":
                with pytest.raises((ValueError, OSError), match="nowhere|null|path must be"):
                    function(bad)
                continue
            with pytest.raises(ValueError, match="must be|must have") as mistake:
                function(**good | {name: bad})
            words = {"codes": "codes|ratios", "x": "x|transform", "bias": "bias", "threads": "threads"}.get(name, name)
            said = str(mistake.value)
            assert re.search(words, said) or "memory for" in said, (name, bad, said)


def test_sizes_that_do_not_fit_are_named():
    for call, message in [
            (lambda: rug.sample(2**20, 2**30, 0.5, 0), "memory for a batch"), (lambda: rug.Trainer(10**7, 10**6, 0.5), "GiB"),
            (lambda: rug.Trainer(8, 9, 0.5), r"n_dense must be .* 1 … 8"), (lambda: forge.priority_code(3, 1), "1 or 2"),
            (lambda: forge.persian_rug(2**20, 2**19, 0.5, 0).autoencoder(), "GiB"),
            (lambda: forge.persian_rug(16, 4, 0.5, 0).forward(np.ones((2, 8))), "x's shape"),
            (lambda: forge.priority_code(400, 2, 1e3), "separation of 400"),
            (lambda: theory.envelope(0.7, {"digon": (0.5, 0.1)}), "within the ratios")]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("arguments, message", [
    *((f"{flag} {bad}", f"{name} must be") for flag, name, values in (
        ("--p", "p", ("0", "-1", "2", "nan", "inf", "many", "")), ("--ratio", "ratio", ("0", "-1", "1.5", "nan", "x")),
        ("--n-sparse", "n_sparse", ("0", "-3", "2.5", "nan", "x", "99999999999")), ("--steps", "steps", ("0", "-1", "1.5", "nan", "x")),
        ("--batch", "batch", ("0", "-3", "1.5", "inf", "x")), ("--threads", "threads", ("0", "-1", "x", "100000")),
        ("--seed", "seed", ("-1", "0.5", "x")), ("--lr", "lr", ("0", "-1", "inf", "nan", "x")), ("--init", "init", ("best", "3")),
        ("theory --p", "p", ("0", "x")), ("theory --ratio", "ratio", ("2", "x")), ("theory --steps", "steps", ("0",)),
        ("paper --scale", "scale", ("huge", "")), ("paper --shard", "shard", ("3/2", "0/1", "x", "1/x")), ("phases --scale", "scale", ("huge",)))
      for bad in values),
    ("--ratio 0.0001", "n_dense must be"), ("--n-sparse 9999999 --ratio 0.5", "GiB"), ("--resume", "checkpoint"),
    ("--lr 1e8 --n-sparse 16 --steps 50", "--lr"), ("--lr 1e30 --n-sparse 16 --steps 50", "--lr"), ("show", "FILE"), ("show nothing", "nothing"),
    ("show /dev/null", "/dev/null"), ("paper nothing", "loss-vs-ratio"), ("--see=3", "--see"), ("--out /dev/null/here", "/dev/null/here"),
    ("--colour=red", "--colour"), ("theory --lr 1e30 --n-sparse 16 --steps 50", "--lr"), ("exact --shard 1/2", "shard"),
    ("--batch 64 theory", "flags of `theory`")])
def test_the_command_line_refuses_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train.main(arguments.split(" "))
    captured = capsys.readouterr()
    assert stop.value.code == 2 and message in captured.err
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# ------------------------------------------------------------------------------------ the command line


def run(*arguments, **options):
    return subprocess.Popen([sys.executable, HERE / "train.py", *map(str, arguments)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_the_main_job(tmp_path):
    """A small n_sparse that is no power of two: it trains, forges the rug at the nearest one, and draws."""
    job = run("--n-sparse", 40, "--steps", 60, "--seed", 2, "--out", tmp_path, cwd=tmp_path)
    output, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    for words in ("step 60/60", "the rug beside n_sparse 40 has 32", "Persian rug, n_sparse 8192", "optimal linear",
                  "oracle filter", "effective bias", "Dead features"):
        assert words in output
    for name in ("loss", "weights", "rug", "ratio"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    model = rug.Autoencoder.load(tmp_path / "runs" / "model.npz")
    trainer = rug.Trainer(40, 10, 0.045, seed=2)
    for step in range(60):
        trainer.step(train.learning_rate(step, 60, train.peak_rate(40)))
    assert (model.encoder == trainer.model.encoder).all()
    trained = float(output.split("trained, n_sparse 40")[1].split()[0])
    estimate = rug.evaluate(model, 0.045, 2**16, seed=99)
    assert trained == pytest.approx(estimate.loss, abs=6 * estimate.error)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_an_interrupted_job_goes_on_to_the_same_weights(tmp_path):
    settings = ("--n-sparse", 32, "--steps", 2000, "--batch", 64, "--out", tmp_path)
    job = run(*settings)
    for line in job.stdout:
        if line.startswith("step"):
            break
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 130 and "--resume" in errors
    done = len(rug.Trainer.load(tmp_path / "runs" / "checkpoint.npz").losses)
    assert 1 <= done < 2000
    wrong = run("--resume", "--p", 0.3, "--out", tmp_path)
    assert "0.045" in wrong.communicate(timeout=60)[1] and wrong.returncode == 2
    job = run("--resume", "--out", tmp_path)
    _, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    trainer = rug.Trainer(32, 8, 0.045, batch=64)
    for step in range(2000):
        trainer.step(train.learning_rate(step, 2000, train.peak_rate(32)))
    assert (rug.Autoencoder.load(tmp_path / "runs" / "model.npz").decoder == trainer.model.decoder).all()


# ---------------------------------------------------------------------- the paper's figures, the benchmark


@pytest.fixture
def tiny(monkeypatch):
    scale = train.Scale((8, 16), (20, 20), (0.5,), train.PS[3::2], 20, 64, 64, 20)
    monkeypatch.setitem(train.SCALES, "tiny", scale)
    monkeypatch.setattr(train, "FORGED_LARGE", 64)
    monkeypatch.setattr(train, "PS", train.PS[3::2])
    monkeypatch.setattr(train, "RATIOS", (0.5,))
    monkeypatch.setattr(train, "SETTINGS_BY_SIZE", train.SETTINGS_BY_SIZE[1:])
    monkeypatch.setattr(train, "regular_loss", lambda directions, p: theory.variance(p))  # tested by itself
    for name, fewer in (("PHASE_PS", (0.03,)), ("CODE_PS", (0.3,)), ("BLOCK_SIZES", (12,)), ("MAP", (3, 5)), ("NOISE", train.NOISE[-3:])):
        monkeypatch.setattr(train, name, fewer)
    return scale


def test_a_sweep_is_shared_goes_on_and_recomputes_what_is_damaged(tiny, tmp_path, capsys):
    def paper(*more):
        train.main(["paper", *more, "--scale", "tiny", "--out", str(tmp_path)])
        return capsys.readouterr().out

    folder = tmp_path / "runs" / "points"
    assert paper("--shard", "1/2").count("→") == 0
    first = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    paper("--shard", "2/2")
    every = sorted(folder.iterdir())
    assert len(first) == -(-len(every) // 2)
    damaged, foreign = every[0], every[-1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    foreign.write_bytes(every[1].read_bytes())  # a good file of another point
    kept = {path.name: path.stat().st_mtime_ns for path in every}
    output = paper()
    assert output.count("Computing a damaged point again") == 2 and f"{len(every) - 2} of them done before" in output
    assert {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != kept[path.name]} == {damaged.name, foreign.name}
    for name in train.FIGURES:
        picture = tmp_path / "figures" / f"paper-{name}.png"
        assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size < 200_000
        assert f"→ {picture}" in output


@pytest.mark.parametrize("name, gram", [("triangle", -1 / 2), ("tetrahedron", -1 / 3)])
def test_regular_solids_are_at_their_best(name, gram):
    directions, p = train.REGULAR[name], 0.3
    assert directions @ directions.T == pytest.approx(np.where(np.eye(len(directions)), 1, gram))
    best = train.regular_loss(directions, p)
    for gain, bias in ((1, 0), (1.1, 0.05), (1, 0.1), (1.2, -0.1)):
        model = rug.Autoencoder(directions, gain * directions, np.full(len(directions), bias))
        assert best <= rug.evaluate(model, p, 2**15, seed=1).loss * 1.01


def test_the_theory_job_descends_stops_and_goes_on(tmp_path, monkeypatch, capsys):
    settings = ["theory", "--n-sparse", "48", "--ratio", "0.1", "--p", "0.2", "--steps", "300", "--out"]
    train.main([*settings, str(tmp_path / "whole")])
    output = capsys.readouterr().out
    assert "of the features kept" in output and "without the Gaussian" in output and "nan" not in output
    assert (tmp_path / "whole" / "figures" / "theory.png").read_bytes()[:4] == b"\x89PNG"
    usual = train.descend

    def descend(trainer, lr):
        if len(trainer.losses) == 120:
            os.kill(os.getpid(), signal.SIGINT)
        return usual(trainer, lr)

    monkeypatch.setattr(train, "descend", descend)
    with pytest.raises(SystemExit) as stop:
        train.main([*settings, str(tmp_path / "parts")])
    assert stop.value.code == 130 and "theory --resume" in capsys.readouterr().err
    monkeypatch.setattr(train, "descend", usual)
    train.main(["theory", "--resume", "--out", str(tmp_path / "parts")])
    whole, parts = (rug.Autoencoder.load(tmp_path / name / "runs" / "theory-model.npz") for name in ("whole", "parts"))
    assert (whole.encoder == parts.encoder).all() and (whole.decoder == parts.decoder).all() and (whole.bias == parts.bias).all()


@pytest.mark.parametrize("job, words, pictures", [
    ("exact", ("Gaussian at own a", "rug, n_sparse 128"), ("exact",)), ("phases", ("r* / r_c", "dropped: predicted"), ("phases",)),
    ("codes", ("best mixture", "best of five trained blocks, 12 in 3", "from the code"), ("codes", "codes-block", "codes-cost")),
    ("bounds", ("3/(4t) + 1/4",), ("bounds",))])
def test_the_jobs_beyond_the_paper(job, words, pictures, tiny, tmp_path, capsys):
    train.main([job, "--scale", "tiny", "--out", str(tmp_path)])
    output = capsys.readouterr().out
    assert all(word in output for word in words) and "nan" not in output
    for name in pictures:
        assert f"→ {tmp_path / 'figures' / name}.png" in output
        assert (tmp_path / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_a_point_is_the_model_that_it_names(tiny, tmp_path):
    point = train.Point.at("published", 16, 0.5, 0.4, 20)
    train.measure_point(point, tmp_path)
    result = train.read_point(point, tmp_path)
    trainer = rug.Trainer(16, 8, 0.4, init="paper")
    for step in range(20):
        trainer.step(train.learning_rate(step, 20, train.peak_rate(16)))
    estimate = rug.evaluate(trainer.model, 0.4, 2**17, seed=7)
    assert result["loss"] == pytest.approx(estimate.loss, abs=5 * np.hypot(estimate.error, result["error"]))
    assert result["a"] == pytest.approx(theory.feature_statistics(trainer.model, 0.4).a, rel=1e-5)
    assert result["theory"] == pytest.approx(theory.optimum(0.5, 0.4).loss)
    assert train.read_point(point._replace(steps=21), tmp_path) is None


def test_the_distance_from_a_gaussian():
    rng = np.random.default_rng(0)
    gaussian, uniform = rng.standard_normal((10000, 20)), rng.random((10000, 20))
    assert theory.distance_from_gaussian(gaussian).max() < 1.2 / 100
    x = np.linspace(-3**0.5, 3**0.5, 4001)  # the largest gap between the two distribution functions, on a grid
    gap = np.abs((x / 3**0.5 + 1) / 2 - theory.normal_cdf(x)).max()
    assert theory.distance_from_gaussian(uniform) == pytest.approx(gap, abs=0.02)


def test_timing_a_step_changes_nothing():
    timed, plain = (rug.Trainer(64, 16, 0.1, batch=32, threads=1) for _ in range(2))
    parts = train.parts_of_a_step(timed, 3)
    assert timed.losses == [plain.step(1e-6) for _ in range(3)]
    assert set(parts) == {"sample", "encode", "decode", "residual", "transpose", "gradients", "adam"}
    assert all(spent > 0 for spent in parts.values())
