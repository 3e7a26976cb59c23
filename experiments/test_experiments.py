"""The tests of the experiments, each against something independent of its code."""
import math
import os
import subprocess
import sys

import numpy as np
import pytest

import forge
import rug
import theory
import train
from experiments import bench, codes, descent, exact, optimality, paper, passes, phases, sweep


# --------------------------------------------------------------------------- exact, descent, phases

def random_model(n_sparse, n_dense, bias=None):
    rng = np.random.default_rng(0)
    bias = rng.standard_normal(n_sparse) if bias is None else np.full(n_sparse, bias)
    return rug.Autoencoder(*rng.standard_normal((2, n_sparse, n_dense)), bias)


@pytest.mark.parametrize("make, p", [
    (lambda: exact.make("trained", 128, 400), 0.045),
    (lambda: descent.descend(40, 3, 0.3, 300)[0], 0.3),
    (lambda: forge.persian_rug(128, 32, 0.045, 0).autoencoder(), 0.045),
    (lambda: forge.persian_rug(256, 26, 0.01, 0).autoencoder(), 0.01),
    (lambda: codes.digons(128), 0.2), (lambda: codes.priority_code(8, 2, 5), 0.045),
    (lambda: random_model(30, 7), 0.4), (lambda: random_model(1, 1), 1.0),
    *((lambda bias=bias: random_model(40, 3, bias), 0.1) for bias in (-0.5, -1.5, -4.0))])


def test_the_exact_loss_is_what_sampling_finds(make, p):
    model = make()
    loss, error = rug.evaluate(model, p, 2**25 // max(model.n_sparse, 64), seed=5)
    assert exact.exact_loss(model, p) == pytest.approx(loss, abs=4 * error)
    assert 4 * error < 0.03 * loss


def test_the_exact_loss_needs_no_gaussian():
    """Trained interference is far from Gaussian; and closed forms, where they exist, are met."""
    model = exact.make("trained", 128, 400)
    n = theory.feature_statistics(model, 0.045)
    gaussian = theory.symmetric_loss(n.a, n.effective_bias, n.sigma, 0.045).mean()
    assert gaussian > 1.2 * exact.exact_loss(model, 0.045)
    for p in (0.01, 0.3, 1.0):
        for c in (1.0, 1 / 3):  # if u and v are both on, min(u, c v) and min(v, u/c) are lost
            expected = p**2 / 2 * (c**2 / 3 - c**3 / 6 + 1 / 3 - c / 6)
            assert exact.exact_loss(codes.digons(4, c), p) == pytest.approx(expected, rel=1e-4)
    constant = rug.Autoencoder(*np.zeros((2, 3, 1)), np.array([0.2, 0.0, -0.3]))
    expected = [0.1 - 0.3 * 0.2 + 0.2**2, 0.1, 0.1]  # E (x − b)² where b > 0, else E x² = p/3
    assert exact.exact_losses(constant, 0.3) == pytest.approx(expected, abs=3e-8)
    for bias in (-0.5, -0.99, -1.5, -4.0):  # E (x − ReLU(x + b))²
        alone, off = rug.Autoencoder(*np.ones((2, 1, 1)), np.array([bias])), max(1 + bias, 0)
        expected = 0.3 * (1 / 3 + off**3 / 3 - 2 * (off**2 / 2 - off**3 / 6))
        assert exact.exact_loss(alone, 0.3) == pytest.approx(expected, abs=3e-8)
    huge = rug.Autoencoder(np.array([[1e15], [1.0]]), np.ones((2, 1)), np.zeros(2))
    assert np.isfinite(exact.exact_losses(huge, 0.5)).all()


def test_gaussian_gradients_match_finite_differences():
    def loss(flat):
        encoder, decoder = flat[:72].reshape(2, 9, 4)
        return descent.gaussian_loss_and_gradients(rug.Parameters(encoder, decoder, flat[72:]), 0.2)
    weights = 0.6 * np.random.default_rng(0).standard_normal(81)
    n = theory.feature_statistics(rug.Parameters(*weights[:72].reshape(2, 9, 4), weights[72:]), 0.2)
    own = theory.symmetric_loss(n.a, n.effective_bias, n.sigma, 0.2)
    assert loss(weights)[0] == pytest.approx(own.mean(), rel=1e-9)
    slopes = [(loss(weights + h)[0] - loss(weights - h)[0]) / 2e-5 for h in 1e-5 * np.eye(81)]
    gradients = np.concatenate([gradient.ravel() for gradient in loss(weights)[1]])
    assert gradients == pytest.approx(slopes, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("a, sigma", [(0.02, 0.3), (-0.005, 0.3), (1.3, 0.2)])
def test_gaussian_slopes_are_those_of_the_symmetric_loss(a, sigma):
    def loss(numbers):
        return theory.symmetric_loss(numbers[0], numbers[1], numbers[2]**0.5, 0.2)

    at = np.array([a, -0.1, sigma**2])
    slopes = [(loss(at + h) - loss(at - h)) / 2e-4 for h in 1e-4 * np.eye(3)]
    found = descent.gaussian_slopes(a, -0.1, sigma, 0.2)
    assert found == pytest.approx(slopes, rel=1e-3, abs=1e-6)


def test_gaussian_slopes_bear_small_numbers():
    a, sigma = np.array([[0.0, 0.3], [1e-5, 0.3], [-0.4, 0.1], [1.2, 0.0], [0.5, 1e-9]]).T
    assert np.isfinite(descent.gaussian_slopes(a, 0.1, sigma, 0.3)).all()


@pytest.mark.parametrize("n_sparse, r, p", [(128, 0.25, 0.045), (96, 0.5, 0.2)])
def test_descending_on_the_theory_ends_at_its_optimum(n_sparse, r, p):
    model, losses = descent.descend(n_sparse, round(r * n_sparse), p, 1000)
    best, n = theory.optimum(r, p), theory.macroscopics(model, p)
    assert losses[-1] == pytest.approx(best.loss, rel=1e-3)
    reached = n.a.mean, n.effective_bias.mean, n.sigma.mean
    assert reached == pytest.approx((best.a, best.b, best.sigma), rel=5e-3)
    assert n.a.spread < 0.01


def test_descent_drops_features_below_the_tangent_ratio():
    model, losses = descent.descend(96, 10, 0.1, 800)
    r, a = 10 / 96, theory.feature_statistics(model, 0.1).a
    assert losses[-1] < 0.97 * theory.optimum(r, 0.1).loss
    assert losses[-1] == pytest.approx(theory.dropping_loss(r, 0.1), rel=0.02)
    assert phases.dropped(a, r, 0.1) == pytest.approx(1 - theory.kept_fraction(r, 0.1), abs=0.15)
    assert phases.dropped(np.array([-0.1, 0.0, 0.1, 2.0]), r, 0.1) == 0.75


def test_exact_descent_and_phases_draw(tmp_path, capsys):
    exact.draw(str(tmp_path), ((32,), 20), {})
    descent.draw(str(tmp_path), (40, 20), {})
    found = {"a": np.linspace(0, 1, 24), "loss": 0.01, "error": 1e-4}
    phases.draw(str(tmp_path), (24, 10), dict.fromkeys(phases.points((24, 10)).values(), found))
    assert "nan" not in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"exact.png", "descent.png", "phases.png"}


@pytest.mark.parametrize("function, arguments", [
    (exact.exact_loss, {"model": random_model(4, 2), "p": 0.5}),
    (descent.gaussian_loss_and_gradients, {"model": random_model(4, 2), "p": 0.5}),
    (descent.descend, {"n_sparse": 8, "n_dense": 2, "p": 0.5, "steps": 1})])


def test_mistakes_of_exact_and_descent_are_named(function, arguments):
    function(**arguments)
    for name in arguments:
        for bad in (np.nan, "x", None, [np.inf]):
            with pytest.raises(ValueError, match=f"{name}.* must"):
                function(**arguments | {name: bad})


# -------------------------------------------------------------------------------------------- codes

@pytest.mark.parametrize("p, c", [(0.05, 1), (0.4, 1), (1.0, 1), (0.3, 1 / 3), (0.3, 0.8)])
def test_digons_lose_what_their_formula_says(p, c):
    estimate = rug.evaluate(codes.digons(10, c), p, 2**18, seed=0)
    assert codes.digon_loss(p, c) == pytest.approx(estimate.loss, abs=4 * estimate.error)
    assert codes.digon_loss(p) == pytest.approx(p**2 / 6)
    assert codes.digon_loss(p, c) >= codes.digon_loss(p, 1 / 3) == pytest.approx(25 / 27 * p**2 / 6)


def test_tiles_are_copies():
    rng = np.random.default_rng(0)
    block, x = rug.Autoencoder(*rng.random((2, 5, 2)), rng.random(5)), rng.random((4, 15))
    parts = [block.forward(part) for part in np.split(x, 3, axis=1)]
    assert np.allclose(codes.tile(block, 3).forward(x), np.concatenate(parts, axis=1))


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("n_sparse, n_dense, p", [
    (8, 2, 0.045), (64, 16, 0.2), (67, 16, 0.1), (100, 2, 0.003), (41, 40, 0.5), (6, 6, 0.4)])


def test_the_priority_code_loses_what_its_closed_form_says(n_sparse, n_dense, p, closed):
    model = codes.priority_code(n_sparse, n_dense, 1000 if n_sparse < 100 else 100, closed)
    estimate = rug.evaluate(model, p, 2**22 // max(n_sparse, 64), seed=3)
    predicted = codes.priority_loss(n_dense / n_sparse, p, closed)
    assert estimate.loss == pytest.approx(predicted, rel=2e-3, abs=4 * estimate.error + 1e-12)
    assert np.einsum("ij,ij->i", model.decoder, model.encoder) == pytest.approx(1)


def test_a_hidden_unit_left_over_takes_a_digon():
    estimate = rug.evaluate(codes.priority_code(30, 7, 1000), 0.1, 2**18, seed=3)
    blocks = 28 * codes.priority_loss(6 / 28, 0.1) + 2 * 0.1**2 / 6
    assert estimate.loss == pytest.approx(blocks / 30, abs=4 * estimate.error)
    assert rug.evaluate(codes.priority_code(5, 5), 0.3, 1000, seed=0).loss < 1e-20
    assert exact.exact_loss(codes.priority_code(2, 1), 0.3) == pytest.approx(0.015, rel=1e-4)


def test_priority_loss_is_a_sum_over_features_and_has_its_limit():
    for n, p in ((2, 0.3), (3, 0.3), (9, 1.0), (40, 0.01), (500, 1e-7)):
        for closed in (False, True):
            louder = [max(i - 1, 0) for i in range(n)]
            louder[-1] -= closed and n > 3
            lost = p / 3 * np.mean([1 - (1 - p)**k for k in louder])
            assert codes.priority_loss(2 / n, p, closed) == pytest.approx(lost, rel=1e-6, abs=1e-18)
    for kappa in (0.1, 1, 10):
        limit = theory.variance(1e-8) * (1 - kappa / 2 * (1 - np.exp(-2 / kappa)))
        assert codes.priority_loss(kappa * 1e-8, 1e-8) == pytest.approx(limit, rel=1e-4, abs=0)


def test_mixtures_are_the_lower_envelope():
    p, pairs = 0.1, codes.digons(4)
    parts = [np.block([[part, np.zeros((4, 4))], [np.zeros((4, 2)), np.eye(4)]])
             for part in (pairs.encoder, pairs.decoder)]  # digons beside exact features
    mixed = exact.exact_loss(rug.Autoencoder(*parts, np.zeros(8)), p)
    known = {"digon": (0.5, p**2 / 6), "identity": (1, 0), "drop": (0, theory.variance(p))}
    assert codes.envelope(0.75, known)[0] == pytest.approx(mixed, rel=1e-4)
    assert codes.envelope(0.9, known) == (pytest.approx(0.2 * p**2 / 6), ("identity", "digon"))


@pytest.mark.parametrize("n, gain, bias", [(3, 1.07, 0.03), (4, 1.08, 0.04)])
def test_regular_directions_are_at_their_best(n, gain, bias):
    cosines = np.where(np.eye(n), 1, -1 / (n - 1))
    places = (gain, bias), (1, 0), (1.1, 0.05), (1, 0.1), (1.2, -0.1)
    models = [rug.Autoencoder(cosines, g * np.eye(n), np.full(n, b)) for g, b in places]
    least = min(rug.evaluate(model, 0.3, 2**17, seed=1).loss for model in models)
    ratio = np.linalg.matrix_rank(cosines) / n
    assert codes.known_codes(0.3)[f"regular {n}"] == pytest.approx((ratio, least), rel=0.02)


# --------------------------------------------------------------------------------------- optimality

def test_jump_loss_is_the_least_over_a_grid_of_thresholds_and_the_line_meets_its_condition():
    nodes, weight = np.polynomial.legendre.leggauss(200)
    for r, p in ((0.25, 0.045), (0.25, 0.001), (0.5, 0.01), (0.03, 0.001), (0.9, 0.3), (0.5, 1.0)):
        s, u = math.sqrt((1 / r - 1) * (p / 3 - p**2 / 4)), (1 + nodes) / 2
        y, step = np.linspace(-6 * s, 1 + 6 * s, 8001, retstep=True)
        near = p * np.exp(-0.5 * ((y[:, None] - u) / s)**2) * weight / 2
        density, signal = (1 - p) * np.exp(-0.5 * (y / s)**2) + near.sum(axis=1), near @ u
        m0, m1, m2, v0, v1 = (np.cumsum(part[::-1])[:49:-1] for part in (
            density, y * density, y**2 * density, signal, y * signal))
        removed = v0**2 / m0 + (v1 - v0 * m1 / m0)**2 / (m2 - m1**2 / m0)
        least = p / 3 - removed.max() * step / (s * math.sqrt(2 * math.pi))
        loss, theta = optimality.jump_loss(r, p)
        assert loss / least == pytest.approx(1, rel=1e-4)
        slope, height = optimality.line_above(theta, s, p)[1:]
        jump = 2 * np.interp(theta, y, signal / density)  # 2 E[x | y = θ]
        assert min(abs(height), abs(height - jump)) < 1e-3 * slope * s


def test_a_jump_is_never_worse_than_relu_nor_better_than_bayes_and_wins_above_the_crossing():
    for p in (1e-80, 1e-20, 1e-6, 0.001, 0.1, 0.9, 1.0):
        for r in (1e-4, 0.003, 0.1, 0.5, 0.8, 0.999):
            loss, digits = optimality.jump_loss(r, p)[0], 1e-14 * p  # theory's are p/3 − …
            assert 0 < loss <= theory.optimum(r, p).loss * (1 + 1e-8) + digits
            assert loss >= theory.bayes_loss(r, p) * (1 - 1e-8) - digits
    assert optimality.jump_loss(0.5, 1e-80)[0] / (1e-160 / 3) == pytest.approx(1)  # p s²: noise
    r, best = optimality.crossing_ratio(1e-8), lambda r: theory.optimum(r, 1e-8).loss
    for k in np.linspace(0.99995, 1, 20):
        assert optimality.jump_loss(k * r, 1e-8)[0] / best(k * r) == pytest.approx(1, rel=1e-8)
    assert optimality.jump_loss(1.02 * r, 1e-8)[0] < 0.999 * best(1.02 * r)
    with pytest.raises(ValueError, match="r must be a number"):
        optimality.jump_loss([0.1], 0.1)


def test_decoders_lose_what_is_predicted_on_a_gaussian_channel_and_top_k_is_least_squares():
    rng, r, p = np.random.default_rng(0), 0.25, 0.01
    x = rng.random((256, 4096)) * (rng.random((256, 4096)) < p)
    y = x + theory.noise_per_signal(r, p) * rng.standard_normal(x.shape)
    sampled = optimality.losses(y, x, r, p)
    for name, loss in optimality.PREDICTED.items():
        assert abs(sampled[name].mean() - loss(r, p)) < 3 * sampled[name].std() / 16
    y, x, found = y[:4, :50], np.maximum(y[:4, :50] - 0.1, 0)**2, []
    for k in range(2, 51):  # by brute force
        kept = y >= np.sort(y, axis=1)[:, -k, None]
        line = np.polyfit(y[kept], x[kept], 1)
        found.append(np.sum((np.where(kept, np.polyval(line, y), 0) - x)**2))
    assert np.sum((optimality.keep_largest(y, x, 1) - x)**2) == pytest.approx(min(found))


# ------------------------------------------------------------------------------------------- passes

def test_posterior_is_bayes_rule_and_stays_finite():
    u = np.append((np.arange(100_000) + 0.5) / 100_000, 0)  # a fine grid, and a silent feature
    for s, p in ((0.01, 1e-6), (0.01, 1.0), (0.2, 0.045), (3.0, 0.5), (1e3, 0.045), (1e3, 1.0)):
        y = np.array([-30 * s, -2 * s, 0.0, 0.3, 1 + s, 1 + 30 * s])
        prior = np.append(np.full(100_000, p / 100_000), max(1 - p, 1e-300))
        log = np.log(prior) - (u - y[:, None])**2 / (2 * s * s)
        weight = np.exp(log - np.logaddexp.reduce(log, axis=1, keepdims=True))
        mean, slope, _ = passes.posterior(y, s, p)
        np.testing.assert_allclose(mean, weight @ u, rtol=1e-4)
        variances = np.sum(weight * (u - mean[:, None])**2, axis=1)
        np.testing.assert_allclose(slope, variances / s**2, rtol=1e-3)
    y = np.array([-1e300, -1, -1e-8, 0, 1e-10, 0.5, 1, 2, 1e10, 1e300])
    for s in (0, 1e-320, 1e-149, 1e-50, 1e-8, 1, 1e8, 1e300):
        for p in (1e-100, 0.5, 1):
            out = passes.posterior(y, s, p)
            assert np.isfinite(out).all() and (out >= 0).all() and (out[0] <= 1 + 1e-12).all()


def test_predicted_losses_and_recovery():
    x, w = np.polynomial.legendre.leggauss(60)
    for r, p in ((0.25, 0.045), (0.5, 0.3), (0.1, 0.01), (0.1, 0.045)):
        losses, v, z = passes.predicted_losses(r, p, 8), theory.variance(p), np.linspace(-9, 9, 241)
        assert losses[0] == pytest.approx(theory.bayes_loss(r, p), rel=1e-9)
        for loss in losses:  # E (η(x + s z) − x)², over x and z
            s = math.sqrt((1 / r - 1) * v)
            edges = np.array([0, min(15 * s, 0.5), max(1 - 15 * s, 0.5), 1])[:, None]
            half = np.diff(edges, axis=0) / 2
            u = np.append(edges[:-1] + half * (1 + x), 0)[:, None]
            y, (f1, m1) = u + s * z, theory.posterior_mass(u + s * z, s)
            eta = p * m1 / ((1 - p) * theory.normal_density(y / s) / s + p * f1)
            square = np.trapezoid((eta - u)**2 * theory.normal_density(z), z)
            truth = (1 - p) * square[-1] + p * (half * w).ravel() @ square[:-1]
            assert loss == pytest.approx(truth, rel=1e-4)
            v = 1 / (1 / loss - 1 / s**2)
    for p in (1e-4, 0.045, 0.5):
        above, below = 1.01 * passes.recovery_ratio(p), 0.99 * passes.recovery_ratio(p)
        assert passes.predicted_losses(above, p, 200)[-1] < 1e-6 * p
        assert passes.predicted_losses(below, p, 200)[-1] > 0.01 * p


def test_limit_of_high_sparsity():
    for p, off in ((1e-40, 0.08), (1e-100, 0.035)):
        losses = np.array(passes.predicted_losses(2 * theory.critical_ratio(p), p, 3))
        assert np.allclose(np.log2(theory.variance(p) / losses), [1.5, 3.75, 7.125], rtol=off)
        below = passes.predicted_losses(0.8 * theory.critical_ratio(p), p, 10)[-1]
        assert below > 0.99 * theory.variance(p)
        assert 0.95 < passes.recovery_ratio(p) / theory.critical_ratio(p) < 1


def test_decode():
    for n_sparse, r, p, k in ((2**16, 0.25, 0.045, 5), (2**13, 0.5, 0.3, 5), (2**10, 0.4, 0.05, 1)):
        forged = forge.persian_rug(n_sparse, round(r * n_sparse), p, seed=1)
        x = rug.sample(2**17 // n_sparse, n_sparse, p, seed=3).astype(float)
        losses = [np.mean((each - x)**2) for each in passes.decode(forged, forged.encode(x), p, 10)]
        np.testing.assert_allclose(losses[:k], passes.predicted_losses(r, p, k), rtol=0.15)
    assert losses[9] < 1e-6 * losses[0]
    zero = np.zeros((1, forged.n_dense), np.float32)
    assert np.abs(passes.decode(forged, zero, p, 5)[-1]).max() < 1e-9
    whole, x = forge.persian_rug(64, 64, p, seed=1), rug.sample(3, 64, p, seed=3)
    np.testing.assert_allclose(passes.decode(whole, whole.encode(x), p, 1)[0], x, atol=1e-6)
    for name, wrong in (("forged", (None, zero, p, 1)), ("hidden", (forged, zero + math.nan, p, 1)),
                        ("p", (forged, zero, 0, 1)), ("passes", (forged, zero, p, 0))):
        with pytest.raises(ValueError, match=f"^{name} "):
            passes.decode(*wrong)


# ------------------------------------------------------------------------------ sweep, paper, bench

@pytest.fixture
def tiny(monkeypatch):
    scale = paper.Scale((8, 16), lambda p: 20, (0.5,), (0.1, 0.6), 2, 32, 64, 20, {8: 500})
    monkeypatch.setitem(paper.SCALES, "tiny", scale)
    monkeypatch.setattr(train, "LARGE", 64)
    monkeypatch.setattr(paper, "PS", (0.1, 0.6))
    monkeypatch.setattr(paper, "RATIOS", (0.5,))


def test_a_sweep_is_shared_goes_on_and_measures_damaged_points_again(tiny, tmp_path, capsys):
    def run(*more):
        run_tiny(tmp_path, *more)
        return capsys.readouterr().out

    folder = tmp_path / "runs" / "points"
    assert "→" not in run("--shard", "1/2")
    first = len(list(folder.iterdir()))
    run("--shard", "2/2")
    every = sorted(folder.iterdir())
    assert first == -(-len(every) // 2)
    every[0].write_bytes(every[0].read_bytes()[:100])
    every[-1].write_bytes(every[1].read_bytes())  # a good file of another point
    kept = {path: path.stat().st_mtime_ns for path in every}
    output = run()
    assert output.count("damaged point again") == 2 and f"{len(every) - 2} of them done" in output
    again = {path for path in folder.iterdir() if path.stat().st_mtime_ns != kept[path]}
    assert again == {every[0], every[-1]}
    for name in paper.FIGURES:
        assert (tmp_path / "figures" / f"paper-{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert f"figures/paper-{name}.png" in output


@pytest.mark.parametrize("kind", ["linear", "paper"])
def test_a_point_is_the_model_that_it_names_even_if_interrupted(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 0)
    point = sweep.Point.at(kind, 12, 0.25, 0.3, 40, seed=3)
    sweep.measure(point, tmp_path)
    whole = sweep.read(point, tmp_path)
    trainer = rug.Trainer(12, 3, 0.3, seed=3, init=kind, threads=1)
    for step in range(40):
        rate = rug.learning_rate(step, 40, sweep.PEAK / 12**0.5)
        trainer.step(3e-3 / 12**0.5 if kind == "paper" else rate)
    assert (whole["decoder"] == trainer.model.decoder).all()
    estimate = rug.evaluate(trainer.model, 0.3, 2**17, seed=7)
    error = 5 * np.hypot(estimate.error, whole["error"])
    assert whole["loss"] == pytest.approx(estimate.loss, abs=error)
    os.remove(point.file(tmp_path))
    seen = []

    def kill(step):
        seen.append(step)
        if len(seen) == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.measure(point, tmp_path, report=kill)
    assert os.listdir(tmp_path) == [os.path.basename(point.file(tmp_path)) + ".part"]
    sweep.measure(point, tmp_path, report=seen.append)
    rest = sweep.read(point, tmp_path)
    assert seen[25] == 25 and len(os.listdir(tmp_path)) == 1  # step 25 was not kept, 24 were
    assert all(np.array_equal(whole[name], rest[name]) for name in whole)


def test_the_file_of_a_point_is_named_by_each_of_its_settings(tmp_path):
    point = sweep.Point.at("rug", 16, 0.25, 0.3)
    sweep.measure(point, tmp_path)
    assert sweep.read(point, tmp_path)
    others = {"kind": "projector", "n_sparse": 32, "n_dense": 5, "p": 0.2, "steps": 7, "rate": 0.1,
              "seed": 1}
    assert others.keys() == point._asdict().keys()
    files = {point.file(tmp_path)}
    for name, value in others.items():
        other = point._replace(**{name: value})
        files.add(other.file(tmp_path))
        assert sweep.read(other, tmp_path) is None
    assert len(files) == 1 + len(others)


def run_tiny(tmp_path, *more):
    """`python -m experiments.paper` at the scale of `tiny`."""
    sweep.run("paper", paper.__doc__, paper.FIGURES, paper.SCALES,
              [*more, "--scale", "tiny", "--out", str(tmp_path)])


def test_fresh_measures_anew_and_nothing_else_does(tiny, tmp_path, capsys):
    run_tiny(tmp_path, "distance")
    files = sorted((tmp_path / "runs" / "points").iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    assert files and "--fresh" not in capsys.readouterr().out

    run_tiny(tmp_path, "distance")
    assert f"{len(files)} of them done before (--fresh" in capsys.readouterr().out
    assert [file.stat().st_mtime_ns for file in files] == times

    part = files[0].with_name(files[0].name + ".part")
    part.write_text("a checkpoint of other code")
    run_tiny(tmp_path, "distance", "--fresh")
    output = capsys.readouterr().out
    assert " 0 of them done before" in output and "Starting anew" not in output
    assert all(file.stat().st_mtime_ns > time for file, time in zip(files, times))
    assert not part.exists()


def test_the_distance_from_a_gaussian():
    rng = np.random.default_rng(0)
    gaussian, uniform = rng.standard_normal((10000, 20)), rng.random((10000, 20))
    assert sweep.distance_from_gaussian(gaussian).max() < 1.2 / 100
    x = np.linspace(-3**0.5, 3**0.5, 4001)  # the largest gap of the distribution functions
    gap = np.abs((x / 3**0.5 + 1) / 2 - theory.normal_cdf(x)).max()
    assert sweep.distance_from_gaussian(uniform) == pytest.approx(gap, abs=0.02)
    with pytest.raises(ValueError, match="values"):
        sweep.distance_from_gaussian(np.ones(3))


@pytest.mark.parametrize("arguments, message", [
    ("--scale huge", "scale must be"), ("--shard 3/2", "shard must"), ("--shard x", "shard must"),
    ("--shard 1/2/3", "shard must"), ("nothing", "figure must be"), ("--hue red", "--hue"),
    ("--out taken/here", "taken")])


def test_the_command_line_of_experiments_refuses_in_one_line(
        arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SystemExit) as stop:
        sweep.run("paper", paper.__doc__, paper.FIGURES, paper.SCALES, arguments.split())
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and message in errors and errors.count("\n") == 1
    assert errors.startswith("python -m experiments.paper: ")


@pytest.mark.parametrize("kept, flags, said", [
    (False, [], "Nothing is kept."),
    (True, [], "Models measured so far are kept; the same command goes on."),
    (True, ["--fresh"], "Models measured so far are kept; the same command without --fresh goes on."
     )])
def test_what_is_said_after_ctrl_c_is_true(kept, flags, said, tmp_path, capsys):
    point = sweep.Point.at("rug", 16, 0.25, 0.3)

    def draw(folder, scale, results):
        raise KeyboardInterrupt

    figures = {"one": (lambda scale: [point] * kept, draw)}
    with pytest.raises(SystemExit) as stop:
        sweep.run("name", "A chapter.", figures, {"quick": 0}, ["--out", str(tmp_path), *flags])
    assert stop.value.code == 130
    assert capsys.readouterr().err.strip() == f"Interrupted. {said}"
    assert os.path.exists(point.file(tmp_path / "runs" / "points")) == kept


def run_module(name, *arguments):
    """`python -m experiments.NAME` as a reader runs it, where MPLBACKEND names no such module."""
    environment = os.environ | {"MPLBACKEND": "module://no_such_module"}
    above = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return subprocess.run([sys.executable, "-m", f"experiments.{name}", *arguments], cwd=above,
                          env=environment, capture_output=True, text=True)


def test_no_window_is_needed_to_draw(tmp_path):
    done = run_module("paper", "rug", "--scale", "quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figures" / "paper-rug.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "runs").exists()


def test_the_sweep_says_that_it_is_no_chapter():
    done = run_module("sweep")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "no chapter" in done.stderr and "experiments/README.md" in done.stderr


def test_the_parts_of_a_step_are_timed_on_its_own_arrays():
    trainer = bench.warm_trainer(64, 0.25, 0.05, 300, threads=1)
    before = [array.copy() for array in trainer.model.parameters]
    assert all(ms > 0 for ms in bench.parts(trainer).values())
    assert all((array == kept).all() for array, kept in zip(trainer.model.parameters, before))
