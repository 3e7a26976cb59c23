"""The tests of the experiments, in the order of the chapters in experiments/README.md.

Every claim is compared with something independent of the code: a closed form, finite differences,
quadrature, brute force, or samples within their standard error. A test's name is its claim.
"""
import functools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from pytest import raises

import forge
import rug
import theory
import train
from experiments import bench, capacity, codes, command, descent, exact
from experiments import optimality, paper, passes, rows, sweep
from experiments.sweep import Point

cases = pytest.mark.parametrize
approx = functools.partial(pytest.approx, rel=1e-6, abs=0)


# ------------------------------------------------------------------------ Command and sweep

POINT = Point.at("linear", 8, 0.25, 0.3, 20)
POINTS = [POINT._replace(seed=seed) for seed in range(3)]


@pytest.fixture
def here(monkeypatch):
    """Points are measured in this process, as workers take seconds to start, and roughly."""
    evaluate = rug.evaluate

    def roughly(model, p, samples, seed):
        return evaluate(model, p, 99, seed)

    monkeypatch.setattr(rug, "evaluate", roughly)
    monkeypatch.setattr(sweep, "LARGE", 0)


def chapter(folder, *flags, points=POINTS, measure=lambda scale, found: None):
    """Run a chapter that needs some points, and list the files that it leaves."""
    def needed(scale):
        return points

    def draw(folder, results):
        pass

    part = needed, measure, draw
    parts = {"one": part, "two": part}
    sweep.run("name", "", {"quick": 0}, parts, [*flags, "--out", str(folder)])
    return sorted(folder.glob("runs/points/*"))


def test_two_shards_leave_what_the_third_needs(here, tmp_path):
    first = chapter(tmp_path, "--shard", "1/3", measure=None)  # a shard measures nothing else
    second = chapter(tmp_path, "--shard", "2/3", measure=None)
    third = chapter(tmp_path)
    assert len(first) == 1
    assert len(second) == 2
    assert len(third) == 3


def test_damaged_points_are_measured_again(here, tmp_path):
    files = chapter(tmp_path)
    before = [file.read_bytes() for file in files]
    files[0].write_bytes(before[0][:100])
    files[1].write_bytes(before[2])  # a whole file of another point
    chapter(tmp_path)
    assert [file.read_bytes() for file in files] == before


@cases("flags, anew", [
    ([], False),
    (["--fresh"], True),
])
def test_only_fresh_measures_anew(flags, anew, here, tmp_path, capsys):
    file = chapter(tmp_path)[0]
    time = file.stat().st_mtime_ns
    file.with_suffix(".npz.part").touch()  # a checkpoint that can't be read
    chapter(tmp_path, *flags)
    assert (file.stat().st_mtime_ns > time) == anew
    assert "Starting anew" not in capsys.readouterr().out


def test_a_failing_point_does_not_stop_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "LARGE", 10)
    failing = POINT._replace(rate=1e6)  # in a worker
    large = failing._replace(n_sparse=16)  # in this process
    with raises(SystemExit):
        chapter(tmp_path, points=[failing, large, POINT])
    errors = capsys.readouterr().err
    assert failing.name() in errors
    assert large.name() in errors
    assert sweep.read(POINT, tmp_path / "runs" / "points")


@cases("kind, rates", [
    ("paper", [3e-3 / 4, 3e-3 / 4]),
    ("linear", [30e-3, 15e-3]),
])
def test_rates_are_the_published_ones_or_ours(kind, rates):
    point = Point.at(kind, 16, 0.25, 0.3, steps=2)
    assert point.rates() == approx(rates)


def test_an_interrupted_point_is_the_network_it_names(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 0)
    point = Point("paper", 12, 3, 0.3, 40, 0.01, seed=3)
    file = tmp_path / "paper-12-3-0.3-40-0.01-3.npz"
    trainer = rug.Trainer(12, 3, 0.3, seed=3, init="paper", threads=1)
    train.train(trainer, [0.01] * 40)
    steps = []

    def kill(step, text):
        steps.append(step)
        if len(steps) == 25:
            raise KeyboardInterrupt

    with raises(KeyboardInterrupt):
        sweep.measure_point(point, tmp_path, report=kill)
    sweep.measure_point(point, tmp_path, report=kill)
    decoder = np.load(file)["decoder"]
    assert (decoder == trainer.model.decoder).all()
    assert steps[25] > 24
    assert [*tmp_path.iterdir()] == [file]


@cases("sign", [1, -1])
def test_the_distance_from_a_gaussian_looks_at_both_sides(sign):
    # 0 nine times and 1 once have mean 0.1, deviation 0.3. Their distribution function jumps from 0
    # to 0.9 at 0, where the Gaussian's is Φ(−1/3). With the other sign it jumps from 0.1 to 1.
    values = sign * np.eye(10, 1)
    expected = 0.9 - theory.normal_cdf(-1 / 3)
    assert sweep.distance_from_gaussian(values) == approx(expected)


@cases("arguments, message", [
    ("--scale huge", "scale must be"),
    ("--shard 3/2", "shard must"),
    ("three", "part must be"),
])
def test_mistakes_are_refused_in_one_line(arguments, message, here, tmp_path, capsys):
    with raises(SystemExit):
        chapter(tmp_path, *arguments.split())
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


@cases("points, flags, said", [
    ([], [], "Nothing is kept."),
    (POINTS, [], "the same command goes on."),
    (POINTS, ["--fresh"], "the same command without --fresh goes on."),
])
def test_what_is_said_after_ctrl_c_is_true(points, flags, said, here, tmp_path, capsys):
    def interrupted(scale, found):
        raise KeyboardInterrupt

    with raises(SystemExit):
        chapter(tmp_path, *flags, points=points, measure=interrupted)
    assert capsys.readouterr().err.endswith(f"{said}\n")
    assert any(tmp_path.glob("runs")) == bool(points)


@cases("flags, drawn", [
    ([], "2.0"),
    (["--scale", "b"], "3.0"),
])
def test_the_chosen_part_is_measured_and_drawn(flags, drawn, tmp_path, capsys):
    parts = {"one": (math.sqrt, print), "two": None}
    arguments = ["one", *flags, "--out", str(tmp_path)]
    command.run("name", "", {"a": 4, "b": 9}, parts, arguments)
    assert capsys.readouterr().out.endswith(f"figures {drawn}\n")


@cases("module, said", [
    ("paper rug", "in 262144 weights"),
    ("sweep", "no chapter"),
])
def test_no_window_is_needed(module, said, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://no_such_module")
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(rug.__file__))
    words = [sys.executable, *f"-m experiments.{module}".split()]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert said in done.stdout + done.stderr


# ------------------------------------------------------------------------------------- Paper

def test_all_parts_of_paper_draw(here, tmp_path, monkeypatch, capsys):
    tiny = paper.Scale(
        sizes=(8, 16),
        ratios=(0.5,),
        ps=(0.1, 0.2, 0.3, 0.6),
        steps=lambda p: 20,
        draws=2,
        forged_to=64,
        ends={8: 2, 16: 1},
        end_steps={"linear": 64, "paper": 80})
    monkeypatch.setattr(train, "LARGE", 64)
    monkeypatch.setattr(paper, "START_SIZE", 8)
    monkeypatch.setattr(paper, "STRONG", 1)
    arguments = ["--out", str(tmp_path)]
    sweep.run("paper", "", {"tiny": tiny}, paper.PARTS, arguments)
    drawn = {file.stem for file in tmp_path.glob("figures/*.png")}
    assert drawn == {f"paper-{name}" for name in [*paper.PARTS, "family"]}
    assert "nan" not in capsys.readouterr().out


def test_losses_and_numbers_are_averaged_over_seeds():
    best = theory.optimum(0.25, 0.3).loss
    alive = {"loss": best, "error": 4 * best, "dead": np.zeros(2)}
    dead = {"loss": 7 * best, "error": 4 * best, "dead": np.ones(2)}
    found = dict(zip(POINTS, [alive, dead]))
    columns = paper.averages(found, paper.dead_share)
    assert columns["loss over theory"][POINT] == approx((4, 5))  # 5² = 3² + 4²
    assert columns["dead, %"][POINT] == approx((50, 50))


def test_a_curve_is_over_theory_and_passes_it():
    # The loss falls from twice the theory by 1/100 a step, so it is 0.95 of it at step 105.
    best = theory.optimum(0.25, 0.3).loss
    over = 2 - np.arange(200) / 100
    steps, means = paper.curve(POINT, {"losses": best * over})
    assert means == approx(2 - (steps - 0.5) / 100)
    assert 105 <= paper.passing_step(steps, means) < 112


def test_what_skewness_takes_off_to_first_order():
    # If a = 0, the loss is E R² − p E R + p/3 with R = ReLU(b + σz). Twice differentiated by b,
    # E R is φ(b/σ)/σ, and E R² is 2 Φ(b/σ). So the third derivative is as below, and it counts
    # κ₃/6 times, where κ₃ is σ³ times the skewness.
    b = -0.4
    sigma = 0.27
    slope = theory.normal_density(b / sigma) / sigma
    third = slope * (2 + POINT.p * b / sigma**2)
    result = {"a": np.zeros(1), "effective_bias": b, "sigma": sigma, "nu_skewness": -0.6}
    found = paper.shape_numbers(POINT, result)["of which skewness takes off"]
    best = theory.optimum(0.25, POINT.p)
    assert found * best.loss == approx(0.1 * sigma**3 * third, rel=1e-3)


def test_the_structure_of_given_weights():
    # W = [[2, −1, 0], [−0.5, 2, 0], [0.1, 0.1, 0]], so a/r = (4/3)/(2/3) = 2.
    w = np.array([
        [2, -1],
        [-0.5, 2],
        [0.1, 0.1]])
    result = {"encoder": np.eye(3, 2), "decoder": w, "bias": np.zeros(3)}
    singular = np.linalg.svd(w, compute_uv=False) / 2
    expected = [
        singular.mean(),
        singular.std(),
        -1.123 / 16,  # cubes
        2 / 3,        # strong entries a row
        -0.75,        # their mean
        1.25 / 1.27,  # and their share of the squares
        -1,
        0]            # features with an entry below −0.9 · 4/3
    found = paper.structure_numbers(POINT, result)
    assert [*found.values()] == approx(expected)


# -------------------------------------------------------------------------------- Optimality

@cases("p", [1e-20, 0.1, 1.0])
@cases("r", [1e-12, 1e-5, 0.1, 1.0])
def test_a_jump_is_between_relu_and_bayes(r, p):
    loss, _ = optimality.jump_loss(r, p)
    relu = theory.optimum(r, p).loss
    digits = 1e-8 * relu + 1e-14 * p
    assert theory.bayes_loss(r, p) - digits <= loss <= relu + digits


@cases("step, gains", [(0.999, False), (1.02, True)])
def test_a_jump_gains_just_above_the_crossing_ratio(step, gains):
    r = step * optimality.crossing_ratio(1e-3)
    loss, _ = optimality.jump_loss(r, 1e-3)
    assert (loss < 0.9999 * theory.optimum(r, 1e-3).loss) == gains


@cases("r", [0.25, 0.02])
def test_the_jump_is_the_best_line_above_a_threshold(r):
    # One long sample of a Gaussian channel: its best k is the best threshold.
    p = 0.005
    x = rug.sample(1, 2**21, p, seed=0)
    noise = np.random.default_rng(0).standard_normal(x.shape)
    y = x + theory.noise_per_signal(r, p) * noise
    found = optimality.losses(y, x, r, p)
    jump, _ = optimality.jump_loss(r, p)
    assert found["JumpReLU"] == approx(found["top-k"], rel=0.01)
    assert found["JumpReLU"] == approx(jump, rel=0.04)


def test_top_k_on_a_rug_finds_k_and_the_line():
    y = np.random.default_rng(0).standard_normal((40, 20))
    x = np.zeros_like(y)
    for row, signal in zip(y, x):
        largest = np.argsort(row)[-3:]
        signal[largest] = 2 * row[largest] + 1
    assert optimality.keep_largest(y, x) == approx(x, abs=1e-9)


def test_a_rug_is_nearly_a_gaussian_channel(monkeypatch):
    monkeypatch.setattr(optimality, "ENTRIES", 2**22)
    ratio, error = optimality.on_rug(65536, 0.25, 0.01)["JumpReLU"]
    jump, _ = optimality.jump_loss(0.25, 0.01)
    relu = theory.optimum(0.25, 0.01)
    assert ratio == approx(jump / relu.loss, abs=3 * error)
    assert error < 0.02


def model_of(kind):
    """A small network of an architecture."""
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((2, 9, 4)) / 2
    model = kind(*weights, rng.standard_normal(9) / 5)
    model.k = 3
    return model


ARCHITECTURES = [optimality.TopK, optimality.BatchTopK, optimality.JumpReLU]


@cases("name", ["encoder", "decoder", "bias"])
@cases("kind", ARCHITECTURES)
def test_gradients_of_weights_are_finite_differences(kind, name):
    model = model_of(kind)
    x = rug.sample(7, 9, 0.5, seed=0)
    _, gradients = model.loss_and_gradients(x)
    weight = getattr(model, name)
    direction = np.random.default_rng(2).standard_normal(weight.shape)

    # So small a step that no output is newly kept or dropped.
    weight += 1e-6 * direction
    above, _ = model.loss_and_gradients(x)
    weight -= 2e-6 * direction
    below, _ = model.loss_and_gradients(x)
    slope = np.sum(getattr(gradients, name) * direction)
    assert slope == approx((above - below) / 2e-6, rel=1e-5)


def test_a_threshold_follows_the_slope_of_the_smoothed_loss():
    # The mean of the loss over a window of thresholds has a slope: the difference of the loss
    # between the ends of the window, over its width. All features are on, so that z has no atoms.
    model = model_of(optimality.JumpReLU)
    model.width = 0.02
    x = rug.sample(2**17, 9, 1.0, seed=0)
    losses = []
    for threshold in (0.24, 0.26, 0.25):
        model.threshold[:] = threshold
        error = model.forward(x) - x
        losses.append(np.mean(error**2, axis=0) / 9)
    slope = (losses[1] - losses[0]) / 0.02
    _, gradients = model.loss_and_gradients(x)
    assert gradients.threshold == approx(slope, abs=0.05 * np.abs(slope).max())


@cases("kind, expected", [
    (optimality.TopK, [[1, 0], [0, 0]]),       # 1 a sample, if positive
    (optimality.BatchTopK, [[1, 1], [0, 0]]),  # 2 of all
])
def test_top_k_keeps_the_largest_in_training_and_afterwards(kind, expected):
    model = model_of(kind)
    model.k = 1
    z = np.array([[3, 2], [-1, -2]])
    for _ in range(1000):
        kept = model.kept_in_training(z)
    assert np.array_equal(kept, expected)
    assert np.array_equal(model.kept(z), expected)


def test_batch_top_k_learns_its_threshold_in_training():
    model = model_of(optimality.BatchTopK)
    model.loss_and_gradients(rug.sample(7, 9, 0.5, seed=0))
    assert model.threshold > 0


def test_top_k_that_keeps_all_trains_like_relu(monkeypatch):
    monkeypatch.setattr(optimality, "ENTRIES", 2**18)
    top_k = optimality.train_network("top-k", 16, 16, 0.25, 0.3, 50, 3)

    relu = rug.PlainTrainer(16, 4, 0.3, optimality.BATCH, seed=3)
    train.train(relu, rug.learning_rates(50, rug.peak_rate(16)))
    expected = rug.evaluate(relu.model, 0.3, 2**15, seed=0)
    assert top_k == approx(expected.loss, rel=1e-4)


# ------------------------------------------------------------------------------------ Passes

def test_posterior_is_bayes_rule():
    s = 0.2
    p = 0.045
    y = np.array([-0.6, 0.1, 1.2])
    # Sum over the values of x, a fine grid; 0 has the share 1 − p.
    x = np.linspace(0, 1, 10**6)
    prior = np.full(10**6, p / 10**6)
    prior[0] = 1 - p
    weight = prior * theory.normal_density((y[:, None] - x) / s) / s
    density = weight.sum(axis=1)
    mean = weight @ x / density
    variance = weight @ x**2 / density - mean**2
    # The density of y given x is ∝ e^{xy/s²}, so dE[x | y]/dy = Var(x | y)/s².
    expected = mean, variance / s**2, density
    found = passes.posterior(y, s, p)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_posterior_keeps_its_digits_for_tiny_noise():
    y = np.array([0.3, 1.0])
    _, slope, _ = passes.posterior(y, 1e-9, 0.045)
    # At 0.3 nothing cuts the Gaussian around y. At 1 half of it is left, of variance 1 − 2/π.
    assert slope == approx([1, 1 - 2 / math.pi])


@cases("r", [0.5, 1e-7])
def test_each_prediction_is_bayes_elementwise(r):
    v = theory.variance(0.3)
    for loss in passes.predicted_losses(r, 0.3, 4):
        # bayes_loss knows y = x + s z at the ratio where (1/ratio − 1) Var x is s².
        s2 = (1 / r - 1) * v
        ratio = 1 / (1 + s2 / theory.variance(0.3))
        assert loss == approx(theory.bayes_loss(ratio, 0.3), rel=1e-5)
        # The noise of y is taken out of the error of the estimate.
        v = 1 / (1 / loss - 1 / s2)


@cases("p", [1e-4, 0.5])
def test_recovery_begins_at_the_recovery_ratio(p):
    ratio = passes.recovery_ratio(p)
    assert passes.predicted_losses(1.01 * ratio, p, 200)[-1] < 1e-6 * p
    assert passes.predicted_losses(0.99 * ratio, p, 200)[-1] > 0.01 * p


def test_decoded_losses_are_the_predicted_ones():
    forged = forge.rug_at(2**16, 0.5, 0.3, seed=1)
    x = rug.sample(2, 2**16, 0.3, seed=3)
    estimates = passes.decode(forged, forged.encode(x), 0.3, 5)
    losses = np.mean((estimates - x)**2, axis=(1, 2))
    # The passes amplify what two samples have by chance, such as 0.4 % more features on.
    assert losses == approx(passes.predicted_losses(0.5, 0.3, 5), rel=0.05)


@cases("r", [0.25, 1])
def test_nothing_is_decoded_as_nothing(r):
    forged = forge.rug_at(1024, r, 0.045, seed=1)
    hidden = np.zeros((1, forged.n_dense))
    estimates = passes.decode(forged, hidden, 0.045, 5)
    assert np.abs(estimates[-1]).max() < 1e-9


# ------------------------------------------------------------------------------------- Exact

@cases("bias", [0.2, -0.5, -4.0])
def test_the_exact_loss_is_what_sampling_finds(bias):
    rng = np.random.default_rng(0)
    encoder, decoder = rng.standard_normal((2, 40, 3))
    model = rug.Autoencoder(encoder, decoder, np.full(40, bias))
    loss, error = rug.evaluate(model, 0.1, 2**17, seed=5)
    assert exact.exact_loss(model, 0.1) == approx(loss, abs=4 * error)


@cases("a", [1e-5, 2e-3, 0.5])
@cases("bias", [-4.0, -0.3, 1.0])
def test_a_lone_feature_has_its_closed_form(a, bias):
    # E (x − ReLU(a x + bias))², with the integral over the value u by a fine midpoint rule.
    u = (np.arange(100_000) + 0.5) / 100_000
    output = np.maximum(a * u + bias, 0)
    on = np.mean((output - u)**2)
    off = max(bias, 0)**2
    loss = exact.exact_feature(a, bias, np.empty(0), 0.3)
    assert loss == approx(0.3 * on + 0.7 * off, abs=1e-7)


@cases("size", [9e-7, 9e-3])
def test_many_tiny_weights_act_as_a_gaussian(size):
    # 200 weights are −size and 300 are +size. Smaller ones than 1e-6 act by their mean alone.
    w = np.repeat([-size, size], [200, 300])
    mean = 0.25 * w.sum()
    sigma = np.sqrt(500 * theory.variance(0.5)) * size
    expected = theory.symmetric_loss(1.0, mean - 0.1, sigma, 0.5)
    assert exact.exact_feature(1.0, -0.1, w, 0.5) == approx(expected, rel=1e-4)


def test_a_rug_would_have_the_theorys_loss_if_it_were_gaussian():
    model = forge.rug_at(64, exact.RATIO, exact.P, 0).autoencoder()
    gaussian, loss, sampled, error = exact.losses_over_theory(model)
    assert gaussian == approx(1)
    assert loss == approx(sampled, abs=4 * error)


# ----------------------------------------------------------------------------------- Descent

MIXED = np.linspace(0.05, 1, 9)  # 9 features that differ in how often they are on
NUMBERS = 0.6 * np.random.default_rng(0).standard_normal(81)


def of_numbers(numbers):
    """Loss and gradients, with 81 numbers as the weights of the 9 features and 4 hidden units."""
    encoder, decoder = numbers[:72].reshape(2, 9, 4)
    model = rug.Parameters(encoder, decoder, numbers[72:])
    return descent.gaussian_loss_and_gradients(model, MIXED)


def test_the_gaussian_loss_is_that_of_the_symmetric_formula():
    # From W itself: mean and variance of the interference Σ_{j≠i} W_ij x_j are sums over j.
    encoder, decoder = NUMBERS[:72].reshape(2, 9, 4)
    w = decoder @ encoder.T
    a = w.diagonal()
    others = w - np.diag(a)
    b = NUMBERS[72:] + others @ (MIXED / 2)
    sigma = np.sqrt(others**2 @ (MIXED / 3 - MIXED**2 / 4))
    losses = map(theory.symmetric_loss, a, b, sigma, MIXED)
    loss, _ = of_numbers(NUMBERS)
    assert loss == approx(np.mean([*losses]))


def test_gaussian_gradients_are_finite_differences():
    differences = []
    for h in 1e-5 * np.eye(81):
        above, _ = of_numbers(NUMBERS + h)
        below, _ = of_numbers(NUMBERS - h)
        differences.append((above - below) / 2e-5)
    _, gradients = of_numbers(NUMBERS)
    found = np.concatenate([*map(np.ravel, gradients)])
    assert found == approx(differences, rel=1e-5, abs=1e-8)


def test_slopes_bear_small_numbers():
    a = np.array([0, 1e-5, 1.2, 0.5])
    sigma = np.array([0.3, 0.3, 0, 1e-9])
    slopes = descent.gaussian_slopes(a, 0.1, sigma, 0.3)
    assert np.isfinite(slopes).all()


def test_no_interference_is_no_noise():
    # Rounding makes the variance of some features' interference less than 0.
    rotation = np.linalg.qr(NUMBERS.reshape(9, 9)).Q
    model = rug.Parameters(rotation, rotation, np.zeros(9))
    loss, _ = descent.gaussian_loss_and_gradients(model, MIXED)
    assert loss < 1e-9


@cases("n_dense", [48, 13])
def test_descent_ends_at_the_least_loss(n_dense):
    # With 48 hidden units all features are kept. With 13 it is better to drop some, by 5 %.
    _, losses = descent.descend(128, n_dense, 0.1, 1000)
    expected = theory.dropping_loss(n_dense / 128, 0.1)
    assert losses[-1] == approx(expected, rel=0.01)


def test_rare_features_move_in_spite_of_epsilon():
    _, gradients = descent.TheoryTrainer(64, 16, 1e-6).loss_and_gradients()
    assert np.median(np.abs(gradients.encoder)) > 100 * rug.EPSILON


# ---------------------------------------------------------------------------------- Capacity

PS = np.geomspace(0.3, 0.005, 8)
EIGHT = np.arange(1.0, 9.0)


@cases("n_dense", [100, 200, 500])
@cases("weights", [np.ones(8), EIGHT])
def test_no_other_shares_have_a_lower_loss(weights, n_dense):
    # Duality: Σ min_ℓ [c L*(ℓ) + λ ℓ] − λ n_dense is a lower bound, whatever the price λ is.
    grid = np.linspace(0, 1, 201)
    losses = [capacity.optima(grid, np.full(201, p)).loss
              for p in PS]
    prices = np.geomspace(2e-3, 0.2, 2000)
    costs = weights[:, None] * losses + prices[:, None, None] * grid
    least = 100 * costs.min(axis=2).sum(axis=1)
    bounds = least - prices * n_dense

    many = np.repeat(weights, 100)
    shares, found = capacity.allocate(np.repeat(PS, 100), n_dense, many)

    assert found @ many == approx(bounds.max(), rel=1e-4)
    assert shares.sum() == approx(n_dense)


@cases("p, n_dense", [
    (0.005, 100),
    (0.95, 3890),
])
def test_equal_features_are_dropped_as_by_the_theory(p, n_dense):
    _, losses = capacity.allocate(np.full(4096, p), n_dense)
    assert losses.mean() == approx(theory.dropping_loss(n_dense / 4096, p))


def test_features_without_weight_get_what_others_leave():
    shares, _ = capacity.allocate(PS, 5, 1.0 * (EIGHT > 5))
    assert shares[5:] == approx(1)
    assert shares.sum() == approx(5)


def test_tables_of_many_p_are_interpolated():
    p = np.geomspace(0.3, 0.005, 20)
    fitted = np.array(capacity.tables(p))
    computed = np.array(capacity.tables(p[5:8]))
    assert fitted[:, 5:8] == approx(computed, rel=1e-4)


def test_capacity_is_what_a_linear_decoder_recovers():
    # ℓ_i = 1 − least E(x_i − d·h)²/Var x_i. A hidden unit that repeats another adds nothing.
    encoder = np.random.default_rng(0).standard_normal((8, 3))
    encoder[:, 2] = encoder[:, 0]
    deviation = np.sqrt(PS / 3 - PS**2 / 4)
    whitened = encoder * deviation[:, None]
    decoder = np.linalg.pinv(whitened, rcond=1e-9)  # of the least squares
    error = whitened @ decoder - np.eye(8)
    missed = np.sum(error**2, axis=0)
    model = rug.Parameters(encoder, encoder, PS)
    assert capacity.capacities(model, PS) == approx(1 - missed)


@cases("n_dense", [10, 40, 70])
def test_forged_weights_have_their_capacities_and_losses(n_dense):
    p = np.repeat(PS, 10)
    shares, losses = capacity.allocate(p, n_dense)
    model = capacity.forge(p, shares, seed=0)
    loss, _ = descent.gaussian_loss_and_gradients(model, p)
    assert capacity.capacities(model, p) == approx(shares, abs=1e-6)
    assert loss == approx(losses.mean(), rel=1e-3)


def test_weights_count_in_training(capsys):
    p = np.full(32, 0.03)
    weights = np.repeat([16.0, 1.0], 16)
    model = capacity.train_weighted(p, 8, weights, 400, report=print)
    losses = capacity.sampled_losses(model, p).mean(axis=0)
    # In training the largest weight counts as 1.
    *_, last = capsys.readouterr().out.split()
    assert np.mean(weights / 16 * losses) == approx(float(last), rel=0.05)


# -------------------------------------------------------------------------------------- Rows

@cases("r, p, rho", [
    (0.25, 0.045, 1.0),
    (0.6, 0.1, 2 / 3),
])
def test_paired_loss_is_what_quadrature_finds(r, p, rho):
    # x and its partner x' are 0 or a node in (0, 1), and z is on a fine grid.
    nodes, weights = np.polynomial.legendre.leggauss(60)
    x = np.append((nodes + 1) / 2, 0)
    chance = np.append(p / 2 * weights, 1 - p)
    z = np.linspace(-8, 8, 4001)
    density = 0.004 * theory.normal_density(z)

    # The effective bias already has the mean of the partner in it.
    best = rows.paired_loss(r, p, rho)
    rest = 1 / r - 1 - rho**2
    s = np.sqrt(rest * theory.variance(p))
    partner = rho * (x - p / 2)
    own = x[:, None, None]
    y = own - partner[:, None] + s * z
    output = np.maximum(best.a * y + best.b, 0)
    squares = (output - own)**2 @ density
    assert best.loss == approx(chance @ squares @ chance)


def test_without_a_partner_the_paired_loss_is_the_symmetric_one():
    best = theory.optimum(0.25, 0.045)
    assert rows.paired_loss(0.25, 0.045, 0) == approx(best, rel=1e-4)


def test_pairs_in_half_the_units_are_digons():
    # At a = 1 and t = 0 only min(u, v) is lost, if both are on: a loss of p²/6. The best a is a bit
    # larger: E[u (u − v)⁺] = 1/8 and E (u − v)⁺² = 1/12.
    p = 0.01
    signal, power = rows.paired_terms(0.0, 1.0, 0.0, p)
    alone = p * (1 - p) / 3
    assert signal == approx(alone + p**2 / 8)
    assert power == approx(alone + p**2 / 12)
    best = rows.paired_loss(0.5, p)
    assert best.loss == approx(p**2 / 6, rel=1e-3)


@cases("r", [0.25, 0.7])
def test_the_paired_optimum_is_the_least_over_the_partners_weight(r):
    rhos = np.linspace(0, min(1, 1 / r - 1), 9)
    least = min(rows.paired_loss(r, 0.1, rho).loss for rho in rhos)
    assert rows.paired_optimum(r, 0.1).loss == approx(least)


@cases("masks, share", [
    (1, 1 / 2),
    (7, 29 / 128),
])
def test_masks_are_sum_free_below_their_density_only(masks, share):
    most = round(1024 * share)
    free = rows.sum_free(1024, most, masks, seed=0)
    crowded = rows.sum_free(1024, most + 9, masks, seed=0)
    assert abs(rows.triples(free, 1024)) < 1e-12
    assert rows.triples(crowded, 1024) > 1e-4


def test_triples_are_a_count():
    chosen = rows.sum_free(64, 20, masks=0, seed=1).tolist()
    count = sum(s ^ t in chosen for s in chosen for t in chosen)
    assert rows.triples(chosen, 64) == approx(count / 400)


@cases("a, bias", [
    (1.03, 1.03),
    (0.97, 0.97),
    (1, 0.9),
])
def test_a_chosen_rug_has_the_best_a_and_bias(a, bias):
    best = rows.masked_rug(256, 0.25, 0.3, masks=4)
    other = forge.PersianRug(256, best.rows, a * best.a, bias * best.bias)
    assert rows.rug_loss(other, 0.3) > rows.rug_loss(best, 0.3)


def test_a_large_rug_of_pairs_has_the_paired_loss():
    forged = rows.masked_rug(2**14, 0.25, 0.045, masks=1)
    expected = rows.paired_loss(0.25, 0.045).loss
    assert rows.rug_loss(forged, 0.045) == approx(expected, rel=0.01)


def test_search_lowers_the_loss():
    start = rows.masked_rug(128, 0.25, 0.3, masks=0)
    found = rows.search(start, 0.3, swaps=30, seed=0)
    assert rows.rug_loss(found, 0.3) < 0.99 * rows.rug_loss(start, 0.3)
    assert len({*found.rows} - {0}) == 32


def test_numbers_of_a_small_matrix():
    # W = [[2, −2, 0], [−1, 2, 0], [0, 0, 0]], a = 4/3. Its singular values s₁, s₂ have the product
    # det = 2 and s₁² + s₂² = 13. So s₁ + s₂ = √17 and s₁ − s₂ = 3.
    decoder = np.array([
        [2.0, -2],
        [-1, 2],
        [0, 0]])
    model = rug.Autoencoder(np.eye(3, 2), decoder, np.zeros(3))
    _, leaning, strong, asymmetry, spread = rows.numbers(model, 0.5)
    assert leaning == approx(-9 / 16)  # −(8 + 1) over 8 + 8
    assert strong == approx(2 / 3)
    assert asymmetry == approx(math.sqrt(2 / 5))
    assert spread == approx(3 / math.sqrt(17))


# ------------------------------------------------------------------------------------- Codes

@cases("p", [0.01, 1.0])
@cases("c", [0.4, 1.0])
def test_digons_have_the_loss_of_their_formula(p, c):
    loss = exact.exact_loss(codes.digons(2, c), p)
    assert loss == approx(codes.digon_loss(p, c), abs=1e-9)


def test_in_three_units_the_loudest_silences_the_quietest_beside_a_digon():
    # By hand, s = 10: e_A = (s, 0), e_B = (1, √3)/2, e_C = (−1, √3)/(2s), and rows of W_out at
    # right angles to e_B, e_A, e_B: d_A = (1, −1/√3)/s, d_B = (0, 2/√3), d_C = (−s, s/√3).
    model = codes.priority_code(5, 3, 10)
    w = model.decoder @ model.encoder.T
    expected = [
        [1, 0, -0.01],
        [0, 1, 0.1],
        [-100, 0, 1]]
    assert np.abs(w[:3, :3] - expected).max() < 1e-12
    assert w[3:, 3:].tolist() == [[1, -1], [-1, 1]]


@cases("closed", [False, True])
@cases("n_sparse, n_dense, p", [
    (8, 2, 0.045),
    (17, 8, 0.2),
    (3, 3, 1.0),
])
def test_the_priority_code_has_the_loss_of_its_formula(n_sparse, n_dense, p, closed):
    model = codes.priority_code(n_sparse, n_dense, 10_000, closed)
    loss, error = rug.evaluate(model, p, 2**21 // n_sparse, seed=3)
    predicted = codes.priority_loss(n_dense / n_sparse, p, closed)
    assert predicted == approx(loss, rel=1e-4, abs=4 * error + 1e-16)


def test_a_mixture_has_the_mean_loss_of_its_codes():
    known = [
        ("identity", 1, 0.0),
        ("digon", 0.5, 0.01),
        ("drop", 0, 1.0)]
    loss, kinds = codes.envelope(0.6, known)
    assert loss == approx(0.008)
    assert kinds == ["digon", "identity"]


def test_best_mixtures_hold_the_best_digons_and_closed_priority_codes():
    # Of the digons' loss p² (c²/3 − c³/6 + 1/3 − c/6)/2 the least over c is 25/27 of p²/6.
    priority = codes.priority_loss(0.1, 0.1, True)
    digons = 25 / 27 * 0.1**2 / 6
    assert codes.mixture_loss(0.5, 0.1) == approx(digons)
    assert codes.mixture_loss(0.1, 0.1) == approx(priority)


@rug.one_blas_thread()
def test_a_forced_projector_has_the_numbers_of_the_theory_and_a_lower_loss():
    model = codes.forced_projector(128, 32, 0.045, seed=0)
    best = theory.optimum(0.25, 0.045)
    found = theory.macroscopics(model, 0.045)
    w = model.decoder @ model.encoder.T / best.a
    strong = w[np.abs(w + 0.52) < 0.1]
    assert found.effective_bias.mean == approx(best.b)
    assert len(strong) == approx(6 * 128, rel=0.05)
    assert exact.exact_loss(model, 0.045) < 0.9 * best.loss

    # The singular values of W are n_dense times a/r, so the gain is a √(Var x/r) = σ/√(1 − r).
    gain = codes.noise_gain(model, 0.045)
    assert gain == approx(best.sigma / math.sqrt(0.75))


# ------------------------------------------------------------------------------------- Bench

def test_the_parts_of_a_step_are_timed_and_change_no_weights():
    trainer = bench.warm_trainer(64, 0.25, 0.05, 300, threads=1)
    before = np.copy(trainer.model.decoder)
    assert min(bench.parts(trainer).values()) > 0
    assert (trainer.model.decoder == before).all()


# ------------------------------------------------------------------------------ All chapters

def raises_about(name):
    """What is inside must raise a ValueError that names a mistake."""
    return raises(ValueError, match=f"^{name} must")


def test_mistakes_are_named():
    forged = forge.rug_at(64, 0.25, 0.05, seed=1)
    with raises_about("hidden's shape"):
        passes.decode(forged, np.zeros((1, 15)), 0.05, 1)
    with raises_about("steps"):
        descent.descend(8, 2, 0.5, steps=0)
    with raises_about("rho"):
        rows.paired_loss(0.6, 0.1, 0.7)
    with raises_about("masks"):
        rows.sum_free(64, 8, masks=7, seed=0)
    with raises_about("separation"):
        codes.priority_code(8, 2, separation=1)


def test_mistakes_of_allocate_are_named():
    with raises_about("p"):
        capacity.allocate(0 * PS, 2)
    with raises_about("n_dense"):
        capacity.allocate(PS, 9)
    with raises_about("weights"):
        capacity.allocate(PS, 2, 0 * PS)


@cases("shares", [PS, EIGHT])
def test_mistakes_of_forge_are_named(shares):
    with raises_about("capacities"):
        capacity.forge(PS, shares, seed=0)


WEIGHTS = NUMBERS[:36].reshape(12, 3)
RESULT = {"encoder": WEIGHTS, "decoder": WEIGHTS, "bias": NUMBERS[:12], "a": NUMBERS}
FOUND = dict.fromkeys(codes.points(()), RESULT)


@cases("chapter, arguments", [
    (exact, [(12,), FOUND]),
    (descent, [(40, 20)]),
    (capacity, [((8,), 20), {POINT: RESULT}]),
    (codes, [(16,), FOUND]),
])
def test_chapters_measure_and_draw(chapter, arguments, tmp_path, monkeypatch, capsys):
    law = PS, 4, np.ones(8)
    monkeypatch.setattr(capacity, "mixtures", lambda n_sparse: {"power law": law})
    monkeypatch.setattr(codes, "PS", PS[:2])
    monkeypatch.setattr(codes, "RATIOS", PS[:2])
    chapter.draw(tmp_path, chapter.measure(*arguments))
    assert any(tmp_path.glob("*.png"))
    assert "nan" not in capsys.readouterr().out
