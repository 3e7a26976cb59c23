"""Who gets how much of the hidden layer, if features are not alike?

Feature i is on with its own probability p_i and counts in the loss with its own weight c_i. The
theory survives: feature i has a *capacity* ℓ_i in 0 … 1, its share of the hidden units. All ℓ_i add
up to n_dense, and the feature's loss is the symmetric optimum with ℓ_i in the place of r. So the
best network shares a budget. Every feature takes capacity until one more unit would gain less than
a price, which is the same for all, and a feature that gains less from the start gets nothing.
Capacity in this sense is due to Scherlis et al. (arXiv:2210.01892), for a quadratic model.

`allocate` shares the budget, `capacities` measures what a network has given to each feature, and
`forge` makes weights with given capacities. All three meet networks trained on three mixtures of
features. Then a special case: features of equal p, some of which are dropped if there are few
hidden units.

Found, with one network of each kind: hidden units are shared nearly as predicted. With eight groups
of features, p from 0.3 to 0.005, and 512 features in 128 hidden units, the largest difference is
0.09 after 1000 steps, although the loss is 0.59 of the predicted one. Later the most frequent
features get less. Rarity decides only slowly who is kept: a feature that is on one sixtieth as
often gains a quarter as much from its first bit of capacity.
"""
import functools
import math

import numpy as np
from numpy.polynomial import chebyshev

import rug
import theory
import train
from experiments import descent, sweep


# ---------------------------------------------------------------------- 1. What capacity is worth

def price(capacity, p):
    """What one more unit of capacity takes off the loss of a feature, −∂L*/∂ℓ.

    The optimum's a and b are at their best already, so only the noise counts: as
    σ² = a² v (1/ℓ − 1), the price is ∂L/∂σ² · a² v/ℓ².
    """
    best = theory.optimum(capacity, p)
    _, _, by_square = descent.gaussian_slopes(best.a, best.b, best.sigma, p)
    return by_square * best.a**2 * theory.variance(p) / capacity**2


# The capacities in a table are r*^STEPS, from 1 down to r*, and densest near 1, where prices bend.
STEPS = np.linspace(0, 1, 60)**2


@functools.lru_cache(None)
def table(p):
    """ln r*, and the prices of the capacities r*^STEPS: (61,).

    Prices rise as capacities fall, because L* is convex from r* on. (Above p = 0.88 it is not quite
    so next to ℓ = 1. There prices differ by 2 % at most, and sorting them does no harm.)
    """
    tangent = theory.tangent_ratio(p)
    capacities = np.minimum(tangent**STEPS, 1 - 1e-6)
    prices = [price(capacity, p) for capacity in capacities]
    return np.array([math.log(tangent), *np.sort(prices)])


def tables(p):
    """Capacities from 1 down to r* for several p, and the price at each: two (len(p), 60).

    All is smooth in ln p. If there are more than 16, a polynomial through 16 of them gives the
    others: r* to about 1e-5 for p in 1e-4 … 0.5, and to 1e-3 at worst.
    """
    if len(p) <= 16:
        rows = np.array([table(one) for one in p])
    else:
        low, *_, high = np.sort(np.log(p))
        middle = (low + high) / 2
        half = (high - low) / 2
        nodes = chebyshev.chebpts1(16)
        known = [table(one) for one in np.exp(middle + half * nodes)]
        fit = chebyshev.chebfit(nodes, known, 15)
        rows = chebyshev.chebval((np.log(p) - middle) / half, fit).T
    capacities = np.exp(np.outer(rows[:, 0], STEPS))
    prices = np.maximum.accumulate(rows[:, 1:], axis=1)  # what is left of falling ones is rounding
    return capacities, prices


# ---------------------------------------------------------------------------- 2. Sharing it out

def allocate(p, n_dense, weights=None):
    """The capacities of all features at the optimum, and their losses: (n_sparse,) each.

    The capacities ℓ_i minimise Σ c_i L*(ℓ_i, p_i) and add up to n_dense. So what one more unit of
    capacity gains, −c_i ∂L*/∂ℓ, is the same price for all that are between r* and 1. L* is not
    convex: below r*, a straight line from (0, Var x) takes its place (see theory.tangent_ratio). On
    that line a unit gains as much as the line is steep. If this is below the price, a feature gets
    nothing, and answers its mean.

    Features of the same p_i and c_i form a group. If a group is on its line, as many of its
    features are kept as there is room for. What is then left over is less than one feature needs,
    and all kept ones share it.

    p: an array (n_sparse,). weights: c_i, (n_sparse,), default 1. Raises ValueError for p outside
    (0, 1], n_dense outside 1 … n_sparse, weights that are negative or all 0. 512 different p take
    seconds, and the time grows as their square.
    """
    n_sparse = np.size(p)
    p = rug.probability(p, n_sparse)
    n_dense = rug.whole_number("n_dense", n_dense, 1, n_sparse)
    weights = theory.reals("weights", np.ones(n_sparse) if weights is None else weights, 0)
    rug.require(weights.any(), "weights", weights, "above 0 for one feature at least")
    weights = np.maximum(weights, 1e-12 * weights.max())  # so that all prices are above 0

    groups, members, counts = np.unique(
        np.stack([p, weights]), axis=1, return_inverse=True, return_counts=True)
    different, place = np.unique(groups[0], return_inverse=True)
    capacities, prices = tables(different)
    capacities = capacities[place]
    prices = prices[place] * groups[1][:, None]
    least = capacities[:, -1]  # r* of each group
    highest = prices[:, -1]    # what a unit up to there is worth

    def wanted(level):
        """What a kept feature of each group takes if a unit costs `level`."""
        return np.array([np.interp(level, *rows) for rows in zip(prices, capacities)])

    # Who is kept? Those whose first r* are worth most come first. They have taken what they want
    # at that price before the next group is asked.
    kept = np.zeros(len(counts), int)
    for group in np.argsort(-highest):
        room = n_dense - kept @ wanted(highest[group])
        kept[group] = np.clip(room // least[group], 0, counts[group])

    # The price at which the kept ones want n_dense in all, by bisection.
    low = 0
    high = highest.max()
    for _ in range(100):
        middle = (low + high) / 2
        if kept @ wanted(middle) > n_dense:
            low = middle
        else:
            high = middle
    level = wanted(high)

    result = np.zeros(n_sparse)
    for group, number in enumerate(kept):
        result[np.flatnonzero(members == group)[:number]] = level[group]
    return result, optima(result, p).loss


optimum = functools.lru_cache(None)(theory.optimum)  # many features have the same


def optima(capacities, p):
    """The theory.Optimum of each feature, with arrays (n_sparse,) in it.

    Next to no capacity gives what no capacity should: a = 0, b = p/2, the loss Var x.
    """
    pairs = zip(np.maximum(capacities, 1e-100), p)
    return theory.Optimum(*np.transpose([optimum(*pair) for pair in pairs]))


# ------------------------------------------------------------------ 3. Measuring and forging it

def leverages(rows):
    """The diagonal of the projector onto the columns of `rows`: (n,) for (n, k)."""
    inverse = np.linalg.pinv(rows.T @ rows, rcond=1e-12, hermitian=True)
    return np.sum(rows @ inverse * rows, axis=1)


def capacities(model, p):
    """The capacity of each feature, ℓ_i = v_i E_i C⁻¹ E_iᵀ with C = Σ_j v_j E_jᵀE_j, (n_sparse,).

    E_i are the rows of the encoder and v_i the variances of the features. ℓ_i is in 0 … 1: how far
    a linear decoder can tell feature i from the others. They add up to the encoder's rank. p: a
    number or an array (n_sparse,). Raises ValueError for p outside (0, 1].
    """
    encoder, _, _ = theory.weights_of(model)
    p = rug.probability(p, len(encoder))
    deviation = np.sqrt(p / 3 - p**2 / 4)
    return leverages((deviation * encoder.T).T)


def rows_of(diagonal, n_dense, rng):
    """Orthonormal columns, (len(diagonal), n_dense), whose projector has the given diagonal.

    A row times k has the leverage ℓ' with ℓ'/(1 − ℓ') = k² ℓ/(1 − ℓ), if the other rows stay as
    they are. They don't, as all are scaled at once, so only the square root of k is taken. A few
    dozen rounds are enough. Raises RuntimeError if they are not.
    """
    rows = rng.standard_normal((len(diagonal), n_dense))
    rows *= np.sqrt(diagonal)[:, None]
    for _ in range(1000):
        reached = np.clip(leverages(rows), 1e-16, 1 - 1e-16)
        if np.allclose(reached, diagonal, rtol=0, atol=8e-7):
            return np.linalg.qr(rows).Q
        square = diagonal / (1 - diagonal) * (1 - reached) / reached
        rows *= square[:, None]**0.25
    raise RuntimeError("no projector with these capacities was found")


def forge(p, capacities, seed):
    """A rug.Autoencoder with these capacities, and the best decoder and biases by the theory.

    With Z the rows of `rows_of` and P = Z Zᵀ, it has W_ij = (a_i/ℓ_i) P_ij √(v_i/v_j). That is the
    least noise: σ_i² = a_i² v_i (1/ℓ_i − 1).

    p, capacities: arrays (n_sparse,). Raises ValueError unless p is in (0, 1], capacities are in
    0 … 1 and add up to a whole number above 0, which is n_dense, and seed ≥ 0.
    """
    p = rug.probability(p, np.size(p))
    capacities = theory.reals("capacities", capacities, 0)
    n_dense = max(1, round(capacities.sum()))
    whole = abs(capacities.sum() - n_dense) < 1e-6
    rug.require(whole and capacities.max() <= 1, "capacities", capacities,
                "in 0 … 1 and add up to a whole number above 0")
    rng = np.random.default_rng(rug.whole_number("seed", seed, 0))

    # Features without capacity have rows of zeros.
    kept = capacities > 0
    rows = np.zeros((len(p), n_dense))
    diagonal = np.minimum(capacities[kept], 1 - 1e-7)  # at 1, rows would grow without bound
    rows[kept] = rows_of(diagonal, n_dense, rng)

    # The decoder, and each bias less the mean of its interference.
    best = optima(capacities, p)
    mean = p / 2
    deviation = np.sqrt(p / 3 - p**2 / 4)
    gain = best.a * deviation / np.maximum(capacities, 1e-100)
    encoder = rows / deviation[:, None]
    decoder = rows * gain[:, None]
    interference = decoder @ (mean @ encoder) - mean * best.a
    return rug.Autoencoder(encoder, decoder, best.b - interference)


# ---------------------------------------------------------------------- 4. Networks that share it

class LoudTrainer(rug.PlainTrainer):
    """A PlainTrainer whose features are multiplied by `loudness`, (n_sparse,).

    A feature that is √c times as loud counts c times as much in the loss. As ReLU(k z) = k ReLU(z),
    nothing else changes: `train_weighted` gives the network back for features of loudness 1.
    """

    def loss_and_gradients(self):
        """Draw the next batch of loud features; its loss, and the gradients of the weights."""
        step = len(self.losses)
        x = rug.sample(self.batch, self.n_sparse, self.p, self.seed, step)
        return self.model.loss_and_gradients(self.loudness * x)


def train_weighted(p, n_dense, weights, steps, report):
    """The Autoencoder trained on Σ c_i (f_i − x_i)², with weights c_i over the largest."""
    # Equal weights need no loudness, and the compiled trainer is faster.
    kind = rug.Trainer if weights.max() == weights.min() else LoudTrainer
    trainer = kind(len(p), n_dense, p)
    trainer.loudness = np.sqrt(weights / weights.max()).astype(np.float32)
    rates = rug.learning_rates(steps, rug.peak_rate(len(p), n_dense, p.mean()))
    train.train(trainer, rates, report=report)

    # Features of loudness 1 need louder columns of W_in, and get quieter outputs.
    model = trainer.model
    model.encoder *= trainer.loudness[:, None]
    model.decoder /= trainer.loudness[:, None]
    model.bias /= trainer.loudness
    return model


def sampled_losses(model, p):
    """The loss of each feature in 32 batches of fresh samples, (32, n_sparse)."""
    batch = 2**18 // len(p)
    losses = []
    for step in range(32):
        x = rug.sample(batch, len(p), p, 1, step, rug.EVALUATION)
        error = model.forward(x) - x
        losses.append(np.mean(error**2, axis=0))
    return np.array(losses)


def mixtures(n_sparse):
    """The mixtures of features, {name: (p, n_dense, weights)}, the most frequent ones first.

    The power law, as of words, is p_i ∝ 1/i, but no p is above 0.3. Without this bound only about
    ln(n_sparse)/2 features would be on at a time, too few for a Gaussian interference.
    """
    i = np.arange(1, n_sparse + 1)
    law = 0.3 * np.minimum(1, n_sparse / 64 / i)
    groups = np.repeat(np.geomspace(0.3, 0.005, 8), n_sparse // 8)
    equal = np.ones(n_sparse)
    return {"weighted groups": (groups, n_sparse // 4, np.sqrt(0.3 / groups)),
            "groups": (groups, n_sparse // 4, equal),
            "power law": (law, n_sparse // 8, equal)}


def measure_mixture(p, n_dense, weights, steps, report):
    """Of each kind of model the capacities, (n_sparse,), and the losses, (batches, n_sparse)."""
    predicted, losses = allocate(p, n_dense, weights)
    models = {"trained": train_weighted(p, n_dense, weights, steps, report),
              "forged": forge(p, predicted, seed=0)}
    if weights.min() == weights.max():  # the loss of descent.py has no weights
        models["descended"], _ = descent.descend(len(p), n_dense, p, steps)

    found = {"predicted": (predicted, losses[None])}
    for kind, model in models.items():
        found[kind] = capacities(model, p), sampled_losses(model, p)
    return found


def points(scale):
    """Equal features: the networks to train, at each p below and above its r*."""
    networks = []
    for p in (0.03, 0.1, 0.3):
        for multiple in (0.4, 0.6, 0.8, 1.25):
            ratio = multiple * theory.tangent_ratio(p)
            steps = rug.default_steps(p)
            networks.append(sweep.Point.at("linear", 256, ratio, p, steps))
    return networks


def measure(scale, found):
    """What each kind of model has, {(mixture, n_sparse): {kind: …}}; how many features of equal p
    are dropped, a row for each of the `points`."""
    sizes, steps = scale
    mixed = {}
    for n_sparse in sizes:
        for name, mixture in mixtures(n_sparse).items():
            progress = train.Progress(steps, f"{name}, n_sparse {n_sparse}: step")
            mixed[name, n_sparse] = measure_mixture(*mixture, steps, progress.show)

    # Of the last one also what is predicted for half and for twice as many hidden units.
    p, n_dense, _ = mixture
    for factor in (0.5, 2):
        shares, losses = allocate(p, int(factor * n_dense))
        mixed[name, n_sparse][f"predicted, n_dense × {factor}"] = shares, losses[None]

    # Features of equal p are dropped if their W_ii, which is above 1 for the others, is below 1/2.
    equal = []
    for point, result in found.items():
        model, _ = descent.descend(point.n_sparse, point.n_dense, point.p, 1000)
        multiple = point.ratio / theory.tangent_ratio(point.p)
        trained = np.mean(result["a"] < 0.5)
        descended = np.mean(model.diagonal < 0.5)
        equal.append([point.p, multiple, max(0, 1 - multiple), trained, descended])
    return mixed, np.array(equal)


# -------------------------------------------------------------------------- 5. Tables and pictures

def draw(folder, results):
    """All tables and pictures."""
    mixed, equal = results
    print_shares(mixed)
    (name, n_sparse), found = list(mixed.items())[-1]  # the power law
    p, _, _ = mixtures(n_sparse)[name]
    draw_law(f"{folder}/capacity.png", p, found)
    draw_prices(f"{folder}/capacity-price.png")
    draw_dropped(f"{folder}/capacity-dropping.png", equal)


def print_shares(mixed):
    """A table: the weighted loss, and the mean capacity of each eighth of the features."""
    lines = []
    for (name, n_sparse), found in mixed.items():
        _, _, weights = mixtures(n_sparse)[name]
        _, predicted = found["predicted"]
        for kind, (shares, losses) in found.items():
            over = losses @ weights / (predicted @ weights)
            error = over.std() / math.sqrt(len(over))
            eighths = shares.reshape(8, -1).mean(axis=1)
            lines.append([f"{name}, {n_sparse}, {kind}", f"{over.mean():.3f} ± {error:.3f}",
                          *(f"{share:.3f}" for share in eighths)])
    train.print_table(["mixture, n_sparse, model", "loss / predicted", *"12345678"], lines)
    print("1 … 8: mean capacity of each eighth of the features, the most frequent ones first.\n")


# How the models of the power law are drawn.
STYLES = {"trained": "C1.", "forged": "C2x", "predicted": "C0-",
          "predicted, n_dense × 0.5": "C0--", "predicted, n_dense × 2": "C0:"}


def draw_law(path, p, found):
    """The capacities and the losses of the power law over p."""
    figure, (left, right) = train.subplots(1, 2, figsize=(9.5, 4.8))
    for kind, style in STYLES.items():
        shares, losses = found[kind]
        over_variance = losses.mean(axis=0) / (p / 3 - p**2 / 4)
        left.plot(p, shares, style, ms=4, label=kind)
        right.plot(p, over_variance, style, ms=4)

    left.set(ylabel="capacity of a feature", title="Who gets how much, at r = 1/8")
    right.set(ylabel="loss of a feature / Var x", title="What is left of its loss")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="p, how often a feature is on")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    train.save_figure(figure, path)


def draw_prices(path):
    """What one more unit of capacity gains, and the price at which the eight groups stop."""
    p = np.geomspace(0.3, 0.005, 8)
    lines = []
    figure, axes = train.subplots(figsize=(8, 4.4))
    for one, shares, gains in zip(p, *tables(p)):
        # Up to r* a unit gains what the straight line gives.
        first = gains[-1]
        axes.plot([*shares, 0], [*gains, first], label=f"p = {one:.3f}")
        log = math.log(1 / one)
        lines.append([f"{one:.3f}", f"{shares[-1]:.3f}", f"{first:.4f}", f"{first * log:.3f}"])
    capacities, _ = allocate(p, 2)
    level = price(capacities[0], p[0])
    train.print_table(["p", "r*", "first unit gains", "times ln(1/p)"], lines)

    axes.axhline(level, color="black", ls="--", label=f"price, {level:.4f}")
    axes.set(xlabel="capacity of a feature", ylabel="gain of one more unit of capacity",
             title="Each feature takes more until it gains less than the price, at r = 1/4")
    figure.legend(loc="outside right upper", frameon=False)
    train.save_figure(figure, path)


def draw_dropped(path, equal):
    """The shares of equal features that are dropped, below and above r*."""
    lines = [[f"{number:.2f}" for number in row] for row in equal]
    train.print_table(["p", "r / r*", "best to drop", "trained", "descended"], lines)

    _, multiple, _, trained, descended = equal.T
    figure, axes = train.subplots(figsize=(7, 4.4))
    axes.plot([0, 1, 1.4], [1, 0, 0], label="best")
    axes.plot(multiple, trained, "o", label="trained on samples")
    axes.plot(multiple, descended, "kx", label="descended on the theory")
    axes.legend(frameon=False, title="p = 0.03, 0.1, 0.3")
    axes.set(xlabel="r / r*", ylabel="share of features that are dropped",
             title="Above r* nothing is dropped, far below it about as much as is best")
    train.save_figure(figure, path)


if __name__ == "__main__":
    scales = {"quick": ((256, 512), 1000), "laptop": ((256, 512, 1024), 2000)}
    sweep.run("capacity", __doc__, scales, {"capacity": (points, measure, draw)})
