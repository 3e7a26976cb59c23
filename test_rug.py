"""The tests of the four files: every claim against something independent of the code.

Finite differences, closed forms, plain NumPy, Monte Carlo within its error, exact algebra, 30-digit
values of the optimum. `python -m pytest -q` runs these and those of experiments/.
"""
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import forge
import rug
import theory
import train

HERE = Path(__file__).parent

# r, p, the optimum (loss, a, b, sigma), Bayes elementwise, oracle filter: in 30-digit arithmetic
REFERENCE = [
    (0.25, 0.045, 4.8557980886e-3, 1.2892146, -0.44583397, 0.26882907, 4.4802691e-3, 1.2204007e-3),
    (0.1, 0.01, 9.9629899422e-4, 1.5249401, -0.59761204, 0.26313503, 8.8578961e-4, 2.0494759e-4),
    (0.5, 0.1, 6.3757367333e-3, 1.2065038, -0.27883348, 0.21185511, 5.6250070e-3, 2.1054166e-3),
    (0.05, 0.03, 8.5485359816e-3, 0.44991162, -0.28364068, 0.19389312, 8.3695337e-3, 1.7151675e-3),
    (0.8, 0.3, 8.8355317013e-3, 1.0772529, -0.11317371, 0.14994725, 7.6998920e-3, 4.3510091e-3),
    (0.02, 0.001, 7.3641673802e-5, 1.6783467, -0.64117080, 0.21441550, 6.0162594e-5, 1.2554600e-5),
    (0.3, 0.6, 7.6097362644e-2, 0.33335389, 0.18982082, 0.16888468, 7.5222610e-2, 3.7628955e-2),
    (0.002, 1e-4, 9.8842710815e-6, 1.9412133, -0.90601708, 0.25034944, 8.2678841e-6, 1.2757434e-6)]

def random_model(n_sparse, n_dense, dtype=np.float64):
    rng = np.random.default_rng(0)
    shapes = (n_sparse, n_dense), (n_sparse, n_dense), n_sparse
    return rug.Autoencoder(*(rng.standard_normal(shape).astype(dtype) for shape in shapes))

def trained(n_sparse, n_dense, p, steps, **settings):
    trainer = rug.Trainer(n_sparse, n_dense, p, **settings)
    for step in range(steps):
        trainer.step(train.learning_rate(step, steps, train.peak_rate(n_sparse)))
    return trainer

# ------------------------------------------------------------------------------------------- rug.py
@pytest.mark.parametrize("p", [0.003, 0.045, 0.5, 1.0])
def test_samples_follow_the_sparse_law(p):
    x = rug.sample(2000, 700, p, seed=5).dense().astype(np.float64)
    on = x > 0  # u = 0 has probability 2⁻²⁴
    assert abs(on.mean() - p) <= 4 * np.sqrt(p * (1 - p) / x.size) + 1e-6
    for power, mean in ((1, p / 2), (2, p / 3), (4, p / 5)):
        deviation = np.sqrt(p / (2 * power + 1) - mean**2)
        assert abs((x**power).mean() - mean) < 4 * deviation / np.sqrt(x.size)
    values = np.sort(x[on])
    kolmogorov = np.abs(values - (np.arange(len(values)) + 0.5) / len(values)).max()
    assert kolmogorov < 1.95 / np.sqrt(len(values))  # exceeded once in a thousand samples
    centred = x - p / 2
    for shifted in (centred[:, :-1] * centred[:, 1:], centred[:-1] * centred[1:]):
        assert abs(shifted.mean()) < 4 * (p / 3 - p**2 / 4) / np.sqrt(shifted.size)
    assert np.ptp(on.mean(axis=0)) <= 10 * np.sqrt(p * (1 - p) / len(x))  # no feature privileged

def test_a_sample_depends_on_seed_step_and_row_alone():
    whole = rug.sample(40, 300, 0.1, seed=3, step=7).dense()
    assert (rug.sample(15, 300, 0.1, seed=3, step=7).dense() == whole[:15]).all()
    assert not (rug.sample(40, 300, 0.1, seed=4, step=7).dense() == whole).all()
    assert not (rug.sample(40, 300, 0.1, seed=3, step=8).dense() == whole).all()
    trainer = rug.Trainer(300, 20, 0.1, batch=40, seed=3, threads=3)
    trainer.step(1e-3)
    drawn = np.concatenate([part.dense() for part in trainer.x])
    assert (drawn == rug.sample(40, 300, 0.1, seed=3).dense()).all()

def test_gradients_match_finite_differences():
    model, x = random_model(9, 4), np.random.default_rng(1).random((6, 9))
    _, gradients = model.loss_and_gradients(x)
    for name, gradient in gradients._asdict().items():
        array = getattr(model, name)
        for index in np.ndindex(array.shape):
            kept, losses = array[index], []
            for change in (1e-6, -1e-6):
                array[index] = kept + change
                z = x @ model.encoder @ model.decoder.T + model.bias
                losses.append(np.mean((np.maximum(z, 0) - x)**2) / 2e-6)
            array[index] = kept
            assert gradient[index] == pytest.approx(losses[0] - losses[1], rel=1e-5, abs=1e-9)

def test_adam_is_adam():
    trainer = rug.PlainTrainer(12, 5, 0.3, batch=20, seed=2)
    weights = [array.astype(float) for array in trainer.weights]
    means, squares = ([np.zeros_like(array) for array in weights] for _ in range(2))
    for t in range(1, 4):
        x = rug.sample(20, 12, 0.3, seed=2, step=t - 1).dense().astype(float)
        loss, gradients = rug.Autoencoder(*weights).loss_and_gradients(x)
        assert trainer.step(0.01) == pytest.approx(loss, rel=1e-5)
        for k, g in enumerate(gradients):
            means[k] = 0.9 * means[k] + 0.1 * g
            squares[k] = 0.999 * squares[k] + 0.001 * g**2
            root = np.sqrt(squares[k] / (1 - 0.999**t)) + 1e-7
            weights[k] -= 0.01 * means[k] / (1 - 0.9**t) / root
            assert np.allclose(trainer.means[k], means[k], rtol=1e-2, atol=1e-6)
            assert np.allclose(trainer.squares[k], squares[k], rtol=1e-2, atol=1e-10)
            assert np.abs(trainer.weights[k] - weights[k]).max() < 2e-4  # of steps of 0.01

@pytest.mark.parametrize("n_sparse, n_dense, p, batch, threads, shift", [
    (40, 7, 0.1, 33, 1, 0), (600, 40, 0.05, 128, 3, 0), (600, 40, 0.05, 128, 2, -0.4),
    (17, 5, 1.0, 8, 2, 0), (1, 1, 0.5, 3, 1, 0), (64, 64, 0.3, 50, 4, -0.6)])
def test_the_fast_path_is_the_plain_path(n_sparse, n_dense, p, batch, threads, shift):
    plain = rug.PlainTrainer(n_sparse, n_dense, p, batch, seed=2)
    fast = rug.Trainer(n_sparse, n_dense, p, batch, seed=2, threads=threads)
    for trainer in (plain, fast):
        trainer.weights.bias[:] += shift
    for t in range(3):
        assert fast.step(0.01) == pytest.approx(plain.step(0.01), rel=1e-5)
        if t == 0:  # Adam's mean is 0.1 of the first gradient
            assert all(fast.sparse) == (shift < 0)  # both kinds of products are tried
            for mine, its in zip(fast.means, plain.means):
                assert np.allclose(mine, its, rtol=1e-4, atol=1e-5 * np.abs(its).max())
    for mine, its in zip(fast.weights, plain.weights):
        assert np.abs(mine - its).max() < 2e-4

def test_threads_change_only_the_rounding():
    losses = []
    for threads in (1, 2, 3, 1):
        trainer = rug.Trainer(200, 30, 0.05, batch=100, threads=threads)
        losses.append([trainer.step(2e-3) for _ in range(60)])
    assert np.allclose(losses[0], losses[1:3], rtol=1e-4) and losses[0] == losses[3]

def test_the_linear_start_is_the_best_linear_one():
    n, d, p = 900, 300, 0.1
    model = rug.Trainer(n, d, p, batch=1).model
    w = (model.decoder @ model.encoder.T).astype(float)
    assert np.allclose(np.diag(w), 0.25, atol=1e-6)  # r/(1 + r)
    assert np.allclose(w.sum(axis=1) * p / 2 + model.bias, p / 2, atol=1e-6)
    x = rug.sample(2000, n, p, seed=1).dense() - p / 2
    losses = [np.mean((gain * x @ w.T - x)**2) for gain in (0.9, 1, 1.1)]
    expected = theory.variance(p) * (0.75**2 + 0.25**2 * 3)
    assert min(losses) == losses[1] == pytest.approx(expected, rel=0.02)
    for n, d, p in ((128, 1, 0.6), (512, 5, 0.1), (2048, 61, 0.4), (999, 800, 0.6), (256, 8, 0.02)):
        trainer = rug.Trainer(n, d, p)
        assert not rug.dead_features(trainer.model, p).any()
        assert trainer.step(1e-9) < 1.02 * theory.variance(p)

def test_the_paper_start_is_uniform():
    for array, fan_in in zip(rug.Trainer(900, 400, 0.1, init="paper").weights, (900, 400, 400)):
        assert array.std() == pytest.approx((3 * fan_in)**-0.5, rel=0.1)
        assert np.abs(array).max() <= fan_in**-0.5

def test_evaluate_knows_its_error():
    zero, p = np.zeros((50, 1)), 0.3
    constant = rug.Autoencoder(zero, zero, np.full(50, p / 2))  # it loses Var x
    losses, errors = np.transpose([rug.evaluate(constant, p, 500, seed) for seed in range(200)])
    deviations = (losses - (p / 3 - p**2 / 4)) / errors
    assert abs(deviations.mean()) < 4 / 200**0.5 and 0.8 < deviations.std() < 1.2

def test_evaluation_uses_every_sample_once_and_none_of_training():
    seen = []
    class Watcher:
        n_sparse = 2**20
        def forward(self, x):
            seen.extend(tuple(np.flatnonzero(row)[:3]) for row in x)
            return x
    assert rug.evaluate(Watcher(), 1e-4, 6, seed=0) == (0, 0)
    for step in range(20):
        rows = rug.sample(6, 2**20, 1e-4, 0, step).dense()
        seen.extend(tuple(np.flatnonzero(row)[:3]) for row in rows)
    assert len(set(seen)) == 6 + 20 * 6

def test_dead_features_are_counted():
    model = rug.Autoencoder(np.eye(4), np.diag([1, -1, 1, 0]), np.array([-0.5, -0.1, -1.1, 0.1]))
    assert rug.dead_features(model, 0.2).tolist() == [False, True, True, False]

def test_a_network_as_wide_as_its_input_learns_the_identity():
    trainer = trained(6, 6, 0.3, 1500, batch=256)
    assert rug.evaluate(trainer.model, 0.3, 4096, seed=1).loss < 1e-6
    x = rug.sample(256, 6, 0.3, seed=0, step=1500).dense().astype(float)
    plain = rug.Autoencoder(*(array.astype(float) for array in trainer.weights))
    assert trainer.step(1e-9) == pytest.approx(plain.loss_and_gradients(x)[0], rel=1e-2)
    assert np.allclose(trainer.model.decoder @ trainer.model.encoder.T, np.eye(6), atol=0.01)

def test_two_features_on_one_unit_learn_a_digon():
    """Each silences the other, and they lose less than the p²/6 of W = [[1, −1], [−1, 1]]."""
    model = trained(2, 1, 0.1, 2000, batch=512).model
    w = model.decoder @ model.encoder.T
    assert (np.diag(w) > 0.9).all() and w[0, 1] < 0 and w[1, 0] < 0
    assert 0.1**2 / 9 < rug.evaluate(model, 0.1, 2**17, seed=1).loss < 0.1**2 / 6

@pytest.mark.parametrize("n_sparse, p", [
    (2**10, 0.05), (2**17, 0.05), (2**19, 1e-3), (2**20, 1e-4)])
def test_the_loss_is_summed_in_float32_without_harm(n_sparse, p):
    trainer = rug.Trainer(n_sparse, 3, p, batch=4, init="linear" if p > 1e-4 else "paper")
    start = rug.Autoencoder(*(array.astype(float) for array in trainer.weights))
    x = rug.sample(4, n_sparse, p, 0).dense().astype(float)
    assert trainer.step(1e-3) == pytest.approx(np.mean((start.forward(x) - x)**2), rel=1e-5)

def test_the_order_of_imports_does_not_matter():
    """BLAS has one thread even if NumPy came first (nothing is printed: not NumPy's OpenBLAS)."""
    code = ("import numpy as np; import rug, ctypes, glob\n"
            "for path in glob.glob(np.__path__[0] + '.libs/libscipy_openblas64*'):\n"
            "    print(ctypes.CDLL(path).scipy_openblas_get_num_threads64_())")
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout in ("1\n", "")

# ---------------------------------------------------------------------------------------- theory.py
@pytest.mark.parametrize("r, p, loss, a, b, sigma, bayes, oracle", REFERENCE)
def test_theory_matches_thirty_digit_values(r, p, loss, a, b, sigma, bayes, oracle):
    best = theory.optimum(r, p)
    assert best.loss == pytest.approx(loss, rel=1e-8)
    assert (best.a, best.b, best.sigma) == pytest.approx((a, b, sigma), rel=1e-6)
    assert theory.symmetric_loss(*best[1:], p) == pytest.approx(loss, rel=1e-8)
    assert theory.linear_loss(r, p) == pytest.approx((p / 3 - p**2 / 4) * (1 - r))
    assert theory.bayes_loss(r, p) == pytest.approx(bayes, rel=1e-6)
    assert theory.oracle_loss(r, p) == pytest.approx(oracle, rel=1e-6)

@pytest.mark.parametrize("a, b, sigma, p", [
    (1.3, -0.4, 0.27, 0.05), (0.0, 0.2, 0.3, 0.5), (-0.7, 0.3, 0.01, 1.0), (0.9, 0.1, 0.0, 0.3),
    (0.02, -0.1, 1.5, 0.2)])
def test_symmetric_loss_is_what_sampling_finds(a, b, sigma, p):
    rng = np.random.default_rng(0)
    x = rng.random(10**6) * (rng.random(10**6) < p)
    errors = (np.maximum(a * x + b + sigma * rng.standard_normal(10**6), 0) - x)**2
    predicted = theory.symmetric_loss(a, b, sigma, p)
    assert predicted == pytest.approx(errors.mean(), abs=4 * errors.std() / 1e3)

@pytest.mark.parametrize("mean, std", [(0.3, 0.5), (-1.0, 0.4), (2.0, 0), (-2.0, 0), (0.0, 1.0)])
def test_relu_moments_are_what_sampling_finds(mean, std):
    output = np.maximum(mean + std * np.random.default_rng(1).standard_normal(10**6), 0)
    for moment, values in zip(theory.relu_moments(mean, std), (output, output**2)):
        assert moment == pytest.approx(values.mean(), abs=4 * values.std() / 1e3 + 1e-12)

def test_no_nearby_parameters_do_better_than_the_optimum():
    for r, p, *_ in REFERENCE:
        best = theory.optimum(r, p)
        for da, db in np.random.default_rng(0).normal(0, 0.05, (20, 2)):
            a, sigma = best.a * (1 + da), best.sigma * (1 + da)
            nearby = theory.symmetric_loss(a, best.b + db * best.sigma, sigma, p)
            assert nearby >= best.loss * (1 - 1e-9)

@pytest.mark.parametrize("r, p", [(0.25, 0.045), (0.6, 0.2), (0.05, 0.03)])
def test_bayes_and_oracle_are_conditional_variances(r, p):
    """The best function of y leaves the variance of x at given y, here in small bins of y."""
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
            bounds = [theory.oracle_loss(r, p), theory.bayes_loss(r, p), theory.optimum(r, p).loss,
                      theory.linear_loss(r, p)]
            for low, high in zip(bounds, bounds[1:]):
                assert low <= high * (1 + 2e-8) + 1e-15, (r, p, bounds)
    assert theory.optimum(1.0, 0.3) == (0, 1, 0, 0)
    assert theory.bayes_loss(1, 0.3) == 0 == theory.oracle_loss(1, 0.3)
    assert theory.optimum(0.3, 1.0).loss == pytest.approx(0.7 / 12, rel=0.02)  # little to clip

def test_the_noise_floor_holds_and_less_noise_is_better():
    w = random_model(30, 6).decoder @ random_model(30, 6).encoder.T
    assert np.trace(w)**2 <= 6 * (w**2).sum()  # hence Σ_{j≠i} W_ij² ≥ a² (1/r − 1)
    for p in (1e-4, 0.045, 0.5, 0.95):
        losses = [theory.optimum(r, p).loss for r in np.geomspace(1e-3, 1, 60)]
        assert all(more > less for more, less in zip(losses, losses[1:]))

def test_the_scaling_law_is_the_limit():
    tiny = 1e-80
    for above in (2, 3, 10):
        r = above * theory.critical_ratio(tiny)
        limit = theory.scaling_loss(r, tiny)
        assert theory.optimum(r, tiny).loss == pytest.approx(limit, rel=0.025)
    gaps = [theory.scaling_loss(10 * r, p) / theory.optimum(10 * r, p).loss - 1
            for r, p in ((theory.critical_ratio(p), p) for p in (1e-12, 1e-20, 1e-40, 1e-80))]
    assert gaps == sorted(gaps, reverse=True)
    bayes = theory.bayes_loss(4 * theory.critical_ratio(tiny), tiny) / theory.variance(tiny)
    assert bayes == pytest.approx(0.5**3, rel=0.05)  # t³
    below, p = 0.5 * theory.critical_ratio(1e-6), 1e-6
    assert theory.scaling_loss(below, p) == theory.variance(p)
    assert theory.optimum(below, p).loss > 0.98 * theory.variance(p)
    assert theory.critical_ratio(0.01) == pytest.approx(2 / 300 * np.log(100))

def test_macroscopics_of_a_known_matrix(monkeypatch):
    monkeypatch.setattr(theory, "BLOCK_ENTRIES", 200)  # several blocks of rows
    model, p = random_model(30, 8), 0.2
    w = model.decoder @ model.encoder.T
    others = [np.delete(w[i], i) for i in range(30)]
    expected = {
        "a": np.diag(w), "bias": model.bias,
        "effective_bias": model.bias + 0.1 * np.array([row.sum() for row in others]),
        "sigma": [np.sqrt((p / 3 - p**2 / 4) * (row**2).sum()) for row in others],
        "lyapunov": [(np.abs(row)**3).sum() / (row**2).sum()**1.5 for row in others],
        "skewness": [((row - row.mean())**3).mean() / row.std()**3 for row in others]}
    for name, values in expected.items():
        found = getattr(theory.feature_statistics(model, p), name)
        mean_and_spread = getattr(theory.macroscopics(model, p), name)
        assert found == pytest.approx(np.array(values), rel=1e-9)
        assert mean_and_spread == pytest.approx((np.mean(values), np.std(values)), rel=1e-9)

# ----------------------------------------------------------------------------------------- forge.py
@pytest.mark.parametrize("n", [1, 2, 8, 128])
def test_walsh_hadamard_is_the_matrix(n):
    matrix = np.array([[(-1)**bin(i & j).count("1") for j in range(n)] for i in range(n)])
    x = np.random.default_rng(0).integers(-50, 50, (3, n))
    kept = x.copy()
    assert (forge.walsh_hadamard(x) == x @ matrix).all() and (x == kept).all()
    assert (forge.walsh_hadamard(forge.walsh_hadamard(x)) == n * x).all()
    assert (forge.walsh_hadamard(x.astype(np.int8)) == x @ matrix).all()  # no overflow

def test_the_rug_is_exactly_symmetric():
    n_sparse, n_dense, p = 64, 24, 0.1
    forged = forge.persian_rug(n_sparse, n_dense, p, seed=3)
    dense, i = forged.autoencoder(), np.arange(n_sparse)
    w = dense.decoder.astype(float) @ dense.encoder.T
    assert np.allclose(w, forged.a * forged.kernel[i[:, None] ^ i], atol=1e-6)
    assert np.linalg.matrix_rank(w, tol=1e-4) == n_dense
    assert np.allclose(w @ w, forged.a * n_sparse / n_dense * w, atol=1e-4)  # a scaled projector
    assert np.allclose(w.sum(axis=1), 0, atol=1e-5)
    numbers, best = theory.macroscopics(dense, p), theory.optimum(n_dense / n_sparse, p)
    assert all(spread < 1e-6 for _, spread in numbers)
    for name, value in (("a", best.a), ("effective_bias", best.b), ("sigma", best.sigma)):
        assert getattr(numbers, name)[0] == pytest.approx(value, rel=1e-5)
    x = rug.sample(20, n_sparse, p, seed=0).dense()
    assert np.allclose(forged.forward(x), dense.forward(x), atol=1e-5)
    assert np.allclose(forged.encode(x), x @ dense.encoder, atol=1e-5)
    assert all(0 not in forge.persian_rug(8, 6, p, seed).rows for seed in range(10))
    whole = forge.persian_rug(16, 16, p, seed=0)
    assert np.allclose(whole.forward(x[:, :16]), x[:, :16], atol=1e-6)

def test_row_0_adds_to_the_third_cumulant_of_the_interference():
    for rows in (forge.persian_rug(128, 32, 0.045, seed).rows for seed in range(5)):
        kernels = [forge.walsh_hadamard(np.bincount(some, minlength=128))[1:] / 32
                   for some in (rows, [0, *rows[1:]])]
        third_without, third_with = ((kernel**3).sum() for kernel in kernels)
        assert third_with - third_without > 0.5 * 3 / 32 * (kernels[0]**2).sum()

@pytest.mark.parametrize("n_sparse, r, p", [
    (8192, 0.25, 0.045), (8192, 0.5, 0.3), (65536, 0.1, 0.01)])
def test_a_large_rug_reaches_the_theory(n_sparse, r, p):
    forged = forge.persian_rug(n_sparse, round(n_sparse * r), p, seed=0)
    loss, error = rug.evaluate(forged, p, 2**23 // n_sparse, seed=1)
    predicted = theory.optimum(forged.n_dense / n_sparse, p).loss
    assert 4 * error < 0.05 * predicted
    assert loss == pytest.approx(predicted, abs=0.01 * predicted + 4 * error)

def test_the_random_projector_is_a_projector_near_the_theory():
    p, model = 0.045, forge.random_projector(2048, 512, 0.045, seed=0)
    assert np.allclose(model.encoder.T @ model.encoder, np.eye(512), atol=1e-4)
    numbers, best = theory.macroscopics(model, p), theory.optimum(0.25, p)
    assert numbers.a[0] == pytest.approx(best.a, rel=1e-4)
    assert numbers.effective_bias == pytest.approx((best.b, 0), rel=1e-4, abs=1e-5)
    assert rug.evaluate(model, p, 4000, seed=0).loss == pytest.approx(best.loss, rel=0.05)

# --------------------------------------------------------------------------------- files and faults
@pytest.mark.parametrize("kind", [rug.PlainTrainer, rug.Trainer])
def test_resumed_training_is_uninterrupted_training(kind, tmp_path):
    threads = {} if kind is rug.PlainTrainer else {"threads": 3}
    whole, part = (kind(64, 16, 0.1, batch=50, seed=4, init="paper", **threads) for _ in range(2))
    for trainer in (*[whole] * 7, *[part] * 3):
        trainer.step(3e-3)
    part.save(tmp_path / "checkpoint", steps=7)
    rest = kind.load(tmp_path / "checkpoint")
    for _ in range(4):
        rest.step(3e-3)
    assert rest.losses == whole.losses and rest.notes == {"steps": 7}
    assert all(getattr(rest, name) == getattr(whole, name) for name in kind.SETTINGS)
    for ours, theirs in zip(rest.state, whole.state):
        assert all((mine == its).all() for mine, its in zip(ours, theirs))

def test_models_survive_the_disk(tmp_path):
    for dtype in (np.float32, np.float64):
        model = random_model(12, 5, dtype)
        model.save(tmp_path / "model.npz", seed=3)
        loaded = rug.Autoencoder.load(tmp_path / "model.npz")
        assert loaded.encoder.dtype == dtype
        for name in rug.Parameters._fields:
            assert (getattr(loaded, name) == getattr(model, name)).all()
    assert os.listdir(tmp_path) == ["model.npz"]

class Malice:  # what a pickle could do
    __reduce__ = lambda self: (os.mkdir, ("harm",))

def test_damaged_and_foreign_files_are_refused_and_run_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rug.Trainer(8, 2, 0.5, batch=2).save(tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    random_model(4, 2).save(tmp_path / "model")
    contents = {"empty": b"", "text": b"hello", "half": good[:len(good) // 2], "cut": good[:-30],
                "flipped": good[:500] + bytes([good[500] ^ 255]) + good[501:],
                "model": (tmp_path / "model").read_bytes(), "pickled": pickle.dumps(Malice())}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            rug.Trainer.load(tmp_path / name)
    with np.load(tmp_path / "good") as data:
        arrays = dict(data)
    for change in ({"bias": np.full((3, 8), NAN, np.float32)}, {"bias": np.zeros(9, np.float32)},
                   {"encoder": np.zeros((3, 8, 2))}, {"p": 2.0}, {"p": np.array([0.5, 0.5])},
                   {"losses": np.array([Malice()], object)}, {"n_sparse": 2**30, "n_dense": 2**20}):
        np.savez(tmp_path / "changed.npz", **{**arrays, **change})
        with pytest.raises(ValueError):
            rug.Trainer.load(tmp_path / "changed.npz")
    with pytest.raises(OSError):
        rug.Autoencoder.load(tmp_path / "missing.npz")
    assert not (tmp_path / "harm").exists()

def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "model.npz"
    random_model(4, 2).save(path)
    before = path.read_bytes()
    with pytest.raises(OSError, match="model.npz could not be written: No space"):
        with rug.replacing(path) as file:
            file.write(b"half")
            raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt):
        with rug.replacing(path):
            raise KeyboardInterrupt
    with pytest.raises(ValueError, match="numbers or strings"):
        MODEL.save(path, lr=None)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.npz"]

def test_a_diverging_run_stops_and_its_last_checkpoint_stays(tmp_path):
    trainer = rug.Trainer(16, 4, 0.3, batch=8)
    trainer.step(1e-3)
    trainer.weights.bias[:] = np.nan
    with pytest.raises(ValueError, match="--lr 0.5"):
        train.train(trainer, 2, 0.5, tmp_path / "checkpoint", 1.0)
    assert not os.listdir(tmp_path)
    least, noise = theory.variance(0.3), np.random.default_rng(0).normal(0, 1e-4, 400)
    for level, steps in ((0.97, 400), (1.03, 1000)):  # better than Var x; in its first half
        trainer.losses = list(level * least + noise)
        train.check_loss(trainer, steps, 0.5)
    with pytest.raises(ValueError, match="--lr 0.5 .*at most"):
        train.check_loss(trainer, 400, 0.5)

# ------------------------------------------------------------------------------- mistaken arguments
NAN, INF = float("nan"), float("inf")
FRACTION, SEED = (0, -0.1, 1.1, NAN, "x", None, [0.5]), (-1, 0.5, None)
COUNT = 0, -1, 2.5, "8", None, 2**40
MODEL = rug.Autoencoder(np.ones((4, 2)), np.ones((4, 2)), np.ones(4))
MATRIX = np.ones(4), np.ones((2, 4)), np.full((4, 2), NAN), np.ones((4, 2)) * 1j, "x", None
P, R, DRAW = {"p": (0.5, FRACTION)}, {"r": (0.5, FRACTION)}, {"seed": (0, SEED)}
A_MODEL = {"model": (MODEL, (None, 3))}
SIZES = {"n_sparse": (16, COUNT), "n_dense": (4, (*COUNT, 17)), **P, **DRAW}
CALLS = [  # function, {argument: (a good value, bad ones)}
    (rug.sample, {"batch": (2, COUNT), "n_sparse": (5, COUNT), "step": (0, SEED)} | P | DRAW),
    (rug.Autoencoder, {"encoder": (np.ones((4, 2)), MATRIX), "decoder": (np.ones((4, 2)), MATRIX),
                       "bias": (np.ones(4), (np.ones(3), np.full(4, INF), "x", None))}),
    (MODEL.forward, {"x": (np.ones((3, 4)), (np.ones((3, 5)), np.ones((0, 4)), "x", None))}),
    (MODEL.loss_and_gradients, {"x": (np.ones((3, 4)), (np.ones(4), np.ones((3, 4)) * 1j))}),
    (rug.evaluate, A_MODEL | P | {"samples": (4, COUNT)} | DRAW),
    (rug.dead_features, A_MODEL | P),
    (rug.Trainer, SIZES | {"batch": (4, COUNT), "init": ("linear", ("tied", 3, None, ["paper"])),
                           "threads": (1, (0, -1, 1.5, "2", 10**6))}),
    *((kind(8, 2, 0.5, batch=2).step, {"lr": (0.1, (0, -1, NAN, INF, "x", None, 10**400))})
      for kind in (rug.Trainer, rug.PlainTrainer)),
    (theory.relu_moments, {"mean": (0.0, (NAN, "x", None)), "std": (1.0, (-1, NAN, "x"))}),
    (theory.symmetric_loss, {"a": (1.0, (NAN, "x", [1.0, 2.0])), "b": (0.0, (INF, None)),
                             "sigma": (0.1, (-1, NAN))} | P),
    *((function, R | P) for function in (
        theory.optimum, theory.noise_per_signal, theory.linear_loss, theory.bayes_loss,
        theory.oracle_loss, theory.scaling_loss)),
    (theory.variance, P), (theory.critical_ratio, P),
    (theory.feature_statistics, A_MODEL | P), (theory.macroscopics, A_MODEL | P),
    (forge.walsh_hadamard, {"x": (np.ones(8), (np.ones(6), np.ones((2, 0)), 3.0, "abcd", None))}),
    (forge.persian_rug, SIZES | {"n_sparse": (16, (*COUNT, 12))}), (forge.random_projector, SIZES)]

@pytest.mark.parametrize("function, arguments", CALLS)
def test_mistakes_are_named(function, arguments):
    good = {name: value for name, (value, _) in arguments.items()}
    function(**good)
    for name, (_, bad) in arguments.items():
        for value in bad:
            with pytest.raises(ValueError, match="must be|must have") as mistake:
                function(**good | {name: value})
            said = str(mistake.value)
            assert name in said or "transform" in said, said

def test_sizes_that_do_not_fit_are_named():
    for call in (lambda: rug.sample(2**20, 2**30, 0.5, 0), lambda: rug.Trainer(10**7, 10**6, 0.5),
                 forge.persian_rug(2**20, 2**19, 0.5, 0).autoencoder):
        with pytest.raises((ValueError, MemoryError), match="iB"):  # Windows has NumPy's own
            call()
    assert rug.sample(np.int8(99), np.int8(99), 0.5, 0).dense().size == 99**2  # no overflow

# --------------------------------------------------------------------------------- the command line
def run(*arguments, **options):
    return subprocess.Popen([sys.executable, HERE / "train.py", *map(str, arguments)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

@pytest.mark.parametrize("arguments, message", [
    ("--p 0", "p must be"), ("--p nan", "p must be"), ("--ratio 1.5", "ratio must be"),
    ("--n-sparse 2.5", "n_sparse must be"), ("--steps 0", "steps must"), ("--lr -1", "lr must"),
    ("--batch x", "batch must be"), ("--threads 0", "threads must"), ("--seed -1", "seed must be"),
    ("--init best", "init must be"), ("--ratio 0.0001", "n_dense must be"), ("--see 3", "--see"),
    ("--n-sparse 9999999 --ratio 0.5", "iB"), ("--resume", "checkpoint"), ("paper", "paper"),
    ("--lr 1e20 --n-sparse 16 --steps 50", "--lr"), ("--plain --threads 2", "--threads"),
    ("--plain --lr 1e20 --n-sparse 16 --steps 50", "--lr"), ("--out taken/here", "taken")])
def test_the_command_line_refuses_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SystemExit) as stop:
        train.main(arguments.split(" "))
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and message in errors and errors.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "taken"]

@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(train, "LARGE", 64)
    monkeypatch.setattr(train, "enough", lambda n_sparse: 4096)

@pytest.mark.parametrize("settings", [
    "--n-sparse 1 --ratio 1 --batch 1 --threads 8", "--n-sparse 9 --ratio 0.12 --p 1",
    "--n-sparse 16 --ratio 1 --batch 3 --threads 40", "--n-sparse 20 --p 1e-6"])
def test_extremes(settings, small, tmp_path, capsys):
    train.main([*settings.split(), "--steps", "3", "--out", str(tmp_path)])
    assert "nan" not in capsys.readouterr().out

def test_the_main_job(tmp_path):
    job = run("--n-sparse", 40, "--steps", 60, "--plain", "--out", tmp_path, cwd=tmp_path)
    output, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    for words in ("step 60/60", "Persian rug, n_sparse 32, 8 draws", "n_sparse 8192",
                  "optimal linear", "oracle filter", "effective bias", "Dead features"):
        assert words in output
    for name in ("loss", "weights", "rug", "ratio"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    model = rug.Autoencoder.load(tmp_path / "runs" / "model.npz")
    loss, error = rug.evaluate(model, 0.045, 2**16, seed=99)
    found = float(output.split("trained, n_sparse 40")[1].split()[0])
    assert found == pytest.approx(loss, abs=6 * error)

@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_an_interrupted_job_goes_on_to_the_same_weights(small, tmp_path):
    job = run("--n-sparse", 32, "--steps", 3000, "--batch", 64, "--threads", 3, "--out", tmp_path)
    for line in job.stdout:
        if line.startswith("step"):
            break
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 130 and f"--resume --out {tmp_path}" in errors
    assert 1 <= len(rug.Trainer.load(tmp_path / "runs" / "checkpoint.npz").losses) < 3000
    with pytest.raises(SystemExit):
        train.main(["--resume", "--p", "0.3", "--out", str(tmp_path)])
    train.main(["--resume", "--out", str(tmp_path)])  # with 3 threads, as before
    model = rug.Autoencoder.load(tmp_path / "runs" / "model.npz")
    again = trained(32, 8, 0.045, 3000, batch=64, threads=3).model
    assert (model.decoder == again.decoder).all()
