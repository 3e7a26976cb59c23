"""Which rows of Hadamard's matrix make the best rug, and why are trained networks better than it?

The Persian rug draws its rows at random. But all its features are exactly alike for every choice of
rows, and a and σ don't depend on the choice. So the rows are free, and the theory of theory.py
can't see them. What they change is the shape of the interference ν.

Found at (r, p) = (0.25, 0.045), where a trained network of 512 features has 0.73 of the theory's
loss: rows that are odd under one mask give every feature one exact opposite, and have 0.76 at 512
features and 0.74, which is computed below, in large rugs. Rows with the most odd parities under
four masks have 0.74 and 0.73, and rows found by swapping 0.72 at 512. Forged weights are then as
good as trained ones. Not everywhere: at (0.25, 0.01) pairs have 0.72, a trained network of 512
features has 0.565.

1. The theorem             `triples`, and which rows lean ν to the side that ReLU hides
2. Pairs, in closed form   `paired_loss`, `paired_optimum`
3. Forging                 `sum_free`, `chosen_rug`
4. Searching               `search`: swap rows, one by one
5. Trained networks        `numbers`: what of this does training find, and what does it cost?
6. What is shown           tables and pictures
"""
import math
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.polynomial import Polynomial

import forge
import rug
import theory
import train
from experiments import command, exact, sweep

RATIO = 0.25
P = 0.045
MASKS = {
    "random rows": 0,
    "pairs": 1,
    "4 masks": 4,
    "7 masks": 7,
    "10 masks": 10}
SHOWN = "random rows", "pairs", "4 masks"


# --------------------------------------------------------------------------------- 1. The theorem

def triples(rows, n_sparse):
    """The share of pairs (s, t) of rows S whose sum s ⊕ t is in S, too.

    Why it counts. ν = Σ_{j≠i} W_ij x_j has the third cumulant κ₃(x) Σ_{j≠i} W_ij³ with κ₃(x) > 0.
    If it is negative, ν has its longer tail on the negative side, where ReLU hides it. In a rug
    W_ij = a w[i ⊕ j], and w[m] = Σ_{s∈S} H[s, m] / n_dense is the kernel. Multiply three of them:

        w[m]³ = Σ_{s,t,u∈S} H[s, m] H[t, m] H[u, m] / n_dense³ = Σ_{s,t,u} H[s⊕t⊕u, m] / n_dense³.

    Every row of H but row 0 sums to 0. So summed over all m only the triples with s ⊕ t ⊕ u = 0
    remain, that is s ⊕ t = u, and each counts n_sparse. With the share of such pairs (s, t),

        Σ_m w[m]³ = share · n_sparse / n_dense,      Σ_{m≠0} w[m]³ = share/r − 1.

    Random rows have a share of about r: no leaning. If no sum of two rows of S is in S, then S is
    called *sum-free*, and the sum is −1. An example: all numbers k with an odd number of ones.
    The sum of two of them has an even number of ones.

    No other projector does better. Let P be a projector with the diagonal r. Its eigenvalues are 0
    and 1, so it is positive semidefinite. By Schur's product theorem so is the matrix of the cubes
    P_ij³, and the sum of all entries of such a matrix is at least 0. Without the diagonal it is at
    least −n_sparse r³. For W = (a/r) P the mean over i of Σ_{j≠i} W_ij³ is at least −a³.
    """
    kernel = forge.PersianRug(n_sparse, rows, 1.0, 0.0).kernel
    return float(len(rows) / n_sparse * np.sum(kernel**3))


# ------------------------------------------------------------------------ 2. Pairs, in closed form

def paired_loss(r, p, rho=1.0):
    """The least loss if each feature has one partner with the weight −ρ a: a theory.Optimum.

    Take rows k that are odd under a mask, which means that k & mask has an odd number of ones. Then
    w[mask] = −1: each feature i has a partner i ⊕ mask with the weight −a. In general, let a share
    (1 + ρ)/2 of the rows be odd. Take the partner x' out of the Gaussian noise. Per unit of a,

        y = x − ρ x' + s z,      s² = (1/r − 1 − ρ²) Var x,      0 ≤ ρ ≤ 1, ρ ≤ 1/r − 1,

    and the output is a ReLU(y − t). As in theory.optimum, L = p/3 − max_t A(t)²/B(t) for the A and
    B of `paired_terms`, at a = A/B. In the effective bias is the mean of all interference, in σ all
    its variance: b = −a (t + ρ p/2), σ² = a² (1/r − 1) Var x.

    ρ = 0 is theory.optimum. Raises ValueError for r or p outside (0, 1], and for another ρ.
    """
    noise = theory.noise_per_signal(r, p)
    largest = min(1, 1 / r - 1)
    rug.require(0 <= rho <= largest, "rho", rho, "in 0 … min(1, 1/r − 1)")
    if noise > theory.LARGE_NOISE:  # the best is linear, as in theory.optimum
        return theory.optimum(r, p)

    # Around 0 the loss changes with ρ³, so a small ρ stands for 0, where the formulas are 0/0.
    rho = max(rho, 1e-4)
    others = max(1 / r - 1 - rho**2, 0)
    s = math.sqrt(others * theory.variance(p))

    def removed(v):
        t = noise * np.sinh(v)
        signal, power = paired_terms(t, rho, s, p)
        return signal**2 / np.maximum(power, 1e-300)

    # As in theory.optimum, t = noise · sinh v. This range of v holds all that is searched there.
    v = theory.maximise(removed, -6, 5, theory.GRID, theory.ROUNDS)
    t = noise * math.sinh(v)
    signal, power = paired_terms(t, rho, s, p)
    a = float(signal / power)
    loss = p / 3 - a * float(signal)
    effective_bias = -a * (t + rho * p / 2)
    return theory.Optimum(loss, a, effective_bias, a * noise)


def paired_terms(t, rho, s, p):
    """A(t) = E[x ReLU(y − t)] and B(t) = E ReLU(y − t)² for y = x − ρ x' + s z, elementwise in t.

    theory.signal_and_power has them without a partner, from R_k(m) = E ReLU(m + s z)^k. Now average
    R_k over the partner, too. As R_k' = k R_{k−1}, an integral over its value is a difference:

        Q_k(m) = E R_k(m − ρ x') = (1 − p) R_k(m) + p [R_{k+1}(m) − R_{k+1}(m − ρ)]/((k + 1) ρ).

    Q_k' = k Q_{k−1} as well. So A and B are the same differences as there, with Q in place of R:

        ∫₀¹ Q₂(u − t) du = [Q₃(1 − t) − Q₃(−t)]/3
        A = (p/2) [Q₂(1 − t) − ∫ Q₂],      B = (1 − p) Q₂(−t) + p ∫ Q₂.

    R₄ = m R₃ + 3 s² R₂ by parts, like those before it in theory.moments.
    """
    def moments(mean):
        _, _, second, third = theory.moments(mean, s)
        fourth = mean * third + 3 * s**2 * second
        return np.array([second, third / 3, fourth / 12])

    def averaged(mean):
        there = moments(mean)
        integral = there - moments(mean - rho)
        off = (1 - p) * there[:2]
        on = p / rho * integral[1:]
        return off + on

    second_off, third_off = averaged(-t)
    second_on, third_on = averaged(1 - t)
    power_on = third_on - third_off
    signal = p / 2 * (second_on - power_on)
    power = (1 - p) * second_off + p * power_on
    return signal, power


def paired_optimum(r, p):
    """The least `paired_loss` over ρ: a theory.Optimum.

    On a grid of (r, p) it was at ρ = 0 or at the largest ρ that r allows, except for p around 0.8,
    where another ρ has up to 0.3 % less. So only these two are compared.
    """
    r = theory.fraction("r", r)
    without = paired_loss(r, p, 0)
    paired = paired_loss(r, p, min(1, 1 / r - 1))
    return min(without, paired)


# -------------------------------------------------------------------------------------- 3. Forging

def sum_free(n_sparse, n_dense, masks, seed):
    """The n_dense rows with the most odd parities under some masks, ties at random.

    A row k is odd under a mask if k & mask has an odd number of ones. Here the masks are all bits,
    all but the lowest, all but the lowest two, … (other independent masks only name the features
    anew). 0 masks give random rows. Row 0 is taken last.

    When are they sum-free? Let each row have at least w odd parities under k masks. Two rows have
    at least 2w − k odd places in common, and there their sum is even. So the sum has at most
    2 (k − w) odd parities. That is less than w if w > 2k/3: for (k, w) = (1, 1), (4, 3), (7, 5),
    (10, 7), if r is at most the share of such rows, 1/2, 5/16, 29/128, 176/1024.

    Raises ValueError unless 2^masks ≤ n_sparse.
    """
    rug.whole_number("masks", masks, 0, n_sparse.bit_length() - 1)
    # Shifted by j bits, row k has lost its j lowest ones: what is left is its parity under a mask.
    odd = np.zeros(n_sparse, int)
    for lowest in range(masks):
        odd += np.bitwise_count(np.arange(n_sparse) >> lowest) % 2

    # Sort by parities, and where they are equal, at random.
    ties = np.random.default_rng(seed).random(n_sparse)
    ties[0] = -1
    rising = np.lexsort((ties, odd))
    return rising[::-1][:n_dense]


def rug_loss(forged, p):
    """The exact loss of a forge.PersianRug, from one row, as all are alike."""
    w = forged.a * forged.kernel[1:]
    return exact.exact_feature(forged.a, forged.bias, w, p)


def chosen_rug(n_sparse, n_dense, p, rows):
    """The forge.PersianRug with these rows, an array (n_dense,), and the best a and bias for them.

    Write bias = −a t as in theory.optimum. For each t the exact loss is a parabola in a,
    L(a) = p/3 − 2 a A + a² B, and L(1) and L(2) tell A and B. Both are smooth functions of t, so
    polynomials through nine values around the theory's t tell them for all t near it. The best t is
    where A²/B is largest, and a = A/B. n_dense must be below n_sparse.
    """
    best = theory.optimum(n_dense / n_sparse, p)
    w = forge.PersianRug(n_sparse, rows, 1.0, 0.0).kernel[1:]

    # The theory's effective bias, less the mean of the interference, and a range around it.
    middle = p / 2 * w.sum() - best.b / best.a
    deviation = best.sigma / best.a
    ts = middle + deviation * np.linspace(-1, 2, 9)
    powers = []
    signals = []
    for t in ts:
        loss = exact.exact_feature(1.0, -t, w, p)
        doubled = exact.exact_feature(2.0, -2 * t, 2 * w, p)
        power = (doubled - 2 * loss + p / 3) / 2
        powers.append(power)
        signals.append((p / 3 + power - loss) / 2)
    power_at = Polynomial.fit(ts, powers, 8)
    signal_at = Polynomial.fit(ts, signals, 8)

    def removed(t):
        return signal_at(t)**2 / power_at(t)

    t = theory.maximise(removed, ts[0], ts[-1], points=50, rounds=3)
    a = signal_at(t) / power_at(t)
    return forge.PersianRug(n_sparse, rows, a, -a * t)


# ------------------------------------------------------------------------------------ 4. Searching

def search(forged, p, swaps, seed):
    """Try to swap a row for another, `swaps` times; keep what lowers the exact loss.

    Which one? A positive weight w[m] costs more than a negative one. As a guess at how fast the
    loss grows with it take e^{5 w[m]}. Row k adds H[k, m]/n_dense
    to w[m], so the transform of these prices tells how much each row costs. Out goes the dearest
    row, in comes the cheapest, or, not to try the same ones again, one of the next few. Every 25
    swaps a and the bias are chosen anew.
    """
    rng = np.random.default_rng(seed)
    for step in range(swaps):
        if step % 25 == 0:
            forged = chosen_rug(forged.n_sparse, forged.n_dense, p, forged.rows)

        # All rows, the cheapest first. Row 0 raises every weight, so it is the dearest of all.
        price = np.exp(5 * forged.kernel)
        order = np.argsort(forge.walsh_hadamard(price))
        inside = np.isin(order, forged.rows)
        dear = order[inside][-20:]
        cheap = order[~inside][:20]
        dearest = dear[-min(rng.geometric(0.4), len(dear))]
        cheapest = cheap[min(rng.geometric(0.4), len(cheap)) - 1]

        # Swap two of them, if that helps.
        rows = np.where(forged.rows == dearest, cheapest, forged.rows)
        swapped = forge.PersianRug(forged.n_sparse, rows, forged.a, forged.bias)
        gain = rug_loss(forged, p) - rug_loss(swapped, p)
        if gain > 0:
            forged = swapped
    return chosen_rug(forged.n_sparse, forged.n_dense, p, forged.rows)


# ---------------------------------------------------------------------------- 5. Trained networks

def numbers(model, p):
    """What is different in W: five numbers of a model with `.encoder`, `.decoder` and `.bias`.

    loss        the exact loss, over the theory's optimum
    leaning     Σ_{j≠i} W_ij³ / Σ_i W_ii³: at least −1 for a scaled projector of equal diagonal
    strong      how many W_ij of a row are below −0.3
    asymmetry   ‖W − Wᵀ‖/‖W‖ without the diagonal: √2 if W_ij and W_ji have nothing in common
    spread      the deviation of the n_dense singular values over their mean: 0 for a projector
    """
    w = model.decoder @ model.encoder.T
    n_sparse = len(w)
    # W has rank n_dense, so the other singular values are 0.
    singular = np.linalg.svd(w, compute_uv=False)[:model.n_dense]
    diagonal = w.diagonal().copy()
    np.fill_diagonal(w, 0)

    best = theory.optimum(model.n_dense / n_sparse, p)
    loss = exact.exact_loss(model, p) / best.loss
    leaning = np.sum(w**3) / np.sum(diagonal**3)
    strong = np.sum(w < -0.3) / n_sparse
    asymmetry = np.linalg.norm(w - w.T) / np.linalg.norm(w)
    spread = singular.std() / singular.mean()
    return loss, leaning, strong, asymmetry, spread


# ------------------------------------------------------------------------------- 6. What is shown

class Scale(NamedTuple):
    """How much to compute."""

    trained: tuple  # n_sparse of the trained networks
    rugs: tuple     # n_sparse of the rugs
    swaps: int      # of a search


QUICK = Scale((128, 256, 512), (2**10, 2**13, 2**16), 300)
LAPTOP = Scale((128, 256, 512, 1024, 2048), (2**10, 2**13, 2**16, 2**20), 1000)
SCALES = {"quick": QUICK, "laptop": LAPTOP}

# Other (r, p) than the usual one.
ELSEWHERE = (0.1, P), (0.4, P), (RATIO, 0.01), (0.1, 0.01)


def points(scale):
    """Trained networks: several sizes at (r, p) = (0.25, 0.045), and 512 features elsewhere."""
    models = [(n_sparse, RATIO, P) for n_sparse in scale.trained]
    models += [(512, r, p) for r, p in ELSEWHERE]
    networks = []
    for n_sparse, r, p in models:
        steps = rug.default_steps(p)
        networks.append(sweep.Point.at("linear", n_sparse, r, p, steps))
    return networks


def masked_rug(n_sparse, r, p, masks):
    """The `chosen_rug` with the rows of `sum_free`."""
    n_dense = round(r * n_sparse)
    rows = sum_free(n_sparse, n_dense, masks, seed=0)
    return chosen_rug(n_sparse, n_dense, p, rows)


def measure(scale, found):
    """Two tables {(model, n_sparse, r, p): row}, with the columns RUGS and WEIGHTS."""
    settings = [(n_sparse, RATIO, P) for n_sparse in scale.rugs]
    settings += [(8192, r, p) for r, p in ELSEWHERE]
    progress = train.Progress(len(settings), "size of rugs")

    # Rugs of all kinds, from one row.
    rugs = {}
    for n_sparse, r, p in settings:
        losses = []
        for masks in MASKS.values():
            forged = masked_rug(n_sparse, r, p, masks)
            losses.append(rug_loss(forged, p))
        losses.append(paired_optimum(r, p).loss)
        best = theory.optimum(r, p)
        rugs["rug", n_sparse, r, p] = np.array(losses) / best.loss
        progress.show(len(rugs), f"n_sparse {n_sparse}")

    # Small models, from all of W: rugs, the best that a search finds, trained networks.
    weights = {}
    for name in SHOWN:
        forged = masked_rug(512, RATIO, P, MASKS[name])
        model = forged.autoencoder()
        weights[name, 512, RATIO, P] = numbers(model, P)
    for n_sparse, p in ((256, P), (512, P), (512, 0.01)):
        start = masked_rug(n_sparse, RATIO, p, masks=0)
        forged = search(start, p, scale.swaps, seed=0)
        model = forged.autoencoder()
        weights["searched", n_sparse, RATIO, p] = numbers(model, p)
    for point, result in found.items():
        name = "trained", point.n_sparse, round(point.ratio, 2), point.p
        weights[name] = numbers(sweep.model_of(result), point.p)
    return rugs, weights


RUGS = [*MASKS, "paired theory"]
WEIGHTS = ["loss", "leaning", "strong", "asymmetry", "spread"]


def draw(folder, results):
    """Two tables and three pictures."""
    for table, header in zip(results, (RUGS, WEIGHTS)):
        lines = []
        for name, row in table.items():
            cells = [f"{x:.3f}" for x in row]
            lines.append([", ".join(map(str, name)), *cells])
        train.print_table(["model, n_sparse, r, p", *header], lines)

    draw_rugs(f"{folder}/rows.png")
    draw_losses(f"{folder}/rows-loss.png", *results)
    draw_leaning(f"{folder}/rows-leaning.png", results[1])


def draw_rugs(path):
    """W of three rugs of 256 features side by side, a pixel a weight."""
    figure = Figure(figsize=(806 / 110, 290 / 110))  # saved with 110 dots an inch
    i = np.arange(256)
    for k, name in enumerate(SHOWN):
        rows = sum_free(256, 64, MASKS[name], seed=0)
        kernel = forge.PersianRug(256, rows, 1.0, 0.0).kernel
        # The few larger weights share the last colour of their side.
        image = kernel[i[:, None] ^ i].clip(-0.25, 0.25)
        figure.figimage(image, 10 + 265 * k, 5, cmap=train.RUG_COLOURS)
        figure.text(0.17 + 0.33 * k, 0.93, name, ha="center")
    train.save_figure(figure, path)


def least_paired_loss(r, p):
    """The loss of `paired_optimum`."""
    return paired_optimum(r, p).loss


CURVES = train.CURVES | {"paired": ("paired theory", least_paired_loss)}


def draw_losses(path, rugs, weights):
    """The loss over the theory against r: curves, rugs of pairs, trained networks."""
    figure, axes = train.subplots(figsize=(9.5, 4.8))
    ratios = np.linspace(0.02, 0.6, 59)
    for key, (name, loss) in CURVES.items():
        over = [loss(r, P) / theory.optimum(r, P).loss for r in ratios]
        colour = command.COLOURS[key]
        axes.plot(ratios, over, color=colour, label=name)

    # Rugs of pairs as squares, trained networks as dots.
    pairs = [(name[2], row[1]) for name, row in rugs.items() if name[3] == P]
    colour = command.COLOURS["paired"]
    axes.plot(*zip(*pairs), "s", ms=9, mfc="none", color=colour, label="rugs of pairs")
    trained = []
    for (name, _, r, p), row in weights.items():
        if name == "trained" and p == P:
            trained.append((r, row[0]))
    colour = command.COLOURS["trained"]
    axes.plot(*zip(*trained), "o", color=colour, label="trained networks")
    axes.set(ylim=(0, 1.3), xlabel="ratio r = n_dense / n_sparse", ylabel="loss over theory",
             title=f"Rugs of pairs come near trained networks, p = {P}")
    figure.legend(loc="outside right center")
    train.save_figure(figure, path)


def draw_leaning(path, weights):
    """The loss of trained networks and rugs against the leaning of their interference."""
    figure, axes = train.subplots(figsize=(8.5, 6))
    axes.axvline(-1, color="gray")
    for (name, n_sparse, r, p), (loss, leaning, *_) in weights.items():
        if (r, p) == (RATIO, P):
            colour = command.COLOURS.get(name, "black")
            axes.plot(leaning, loss, "o", color=colour)
            side = "left" if name == "trained" else "right"
            axes.text(leaning, loss, f"  {name}, {n_sparse}  ", va="center", ha=side)
    axes.set(xlim=(-1.5, 0.3), xlabel="leaning: the mean of Σ W_ij³ / a³ over j ≠ i "
             "(line: the least of a projector)", ylabel="loss over theory",
             title=f"Chosen rows lean ν to the left, as training does, r = {RATIO}, p = {P}")
    train.save_figure(figure, path)


if __name__ == "__main__":
    parts = {"rows": (points, measure, draw)}
    sweep.run("rows", __doc__, SCALES, parts)
