"""Do the paper's figures come out again, and where does training end?

Each part makes many models, trained and forged ones, measures them on fresh samples and compares
them with the theory, which is the least loss of a symmetric W with Gaussian interference.

loss       the loss over r and over p: trained networks, rugs, theory
size       the loss over theory, and how far features differ, against n_sparse
starts     which features die from the published start
ends       where training ends: below the theory, and why
rug        forged weights, and ever smaller corners of them

In `loss` and `size` networks of all sizes are trained for the same small number of steps, a quarter
of rug.default_steps(p) (at full scale for the published 45,000). `ends` trains until hardly
anything changes. What was found there: training passes the theory's loss on its way down, larger
networks later. From 512 features on it ends at about three quarters of it, with weights that the
theory can't tell from a rug's.
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

import forge
import rug
import theory
import train
from experiments import sweep
from experiments.command import COLOURS, SHADES

# Pairs (r, p): the main job's, and one where features are on more rarely.
USUAL = (0.25, 0.045)
RARE = (0.1, 0.01)
SETTINGS = (USUAL, RARE, (0.5, 0.1))


class Scale(NamedTuple):
    """How much to compute."""

    sizes: tuple      # n_sparse of the networks of `loss`; `size` goes to twice the largest
    ratios: tuple     # their r: multiples of 1/n_sparse, so that all sizes have the same
    ps: tuple         # their p
    steps: Callable   # their training steps and those of `size`, a function of p
    draws: int        # forged models of each kind
    forged_to: int    # the largest n_sparse of the rugs of `size`
    ends: dict        # n_sparse in `ends`, and how many seeds of each
    end_steps: dict   # training steps there from each start; `starts` has those of "linear"


def few(p):
    """A quarter of the usual number of training steps."""
    return rug.default_steps(p) // 4


def published(p):
    """The number of training steps in the paper's code."""
    return 45000


RATIOS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 13 / 16)
PS = (0.001, 0.01, 0.1, 0.6)
GRID = tuple(np.linspace(0.002001, 0.8, 20).tolist())  # the published one, of both r and p
QUICK = Scale((32, 64, 128), RATIOS, PS, few, 2, 2**14,
              {64: 2, 128: 2, 256: 1}, {"linear": 1000, "paper": 4000})
LAPTOP = Scale((64, 256, 1024), (1 / 64, *RATIOS), PS, few, 4, 2**20,
               {128: 2, 256: 2, 512: 2, 1024: 2, 2048: 1}, {"linear": 8000, "paper": 45000})
FULL = Scale((128, 256, 512, 1024, 2048), GRID, GRID, published, 8, 2**20,
             {512: 3, 1024: 3, 2048: 2, 4096: 2, 8192: 1}, {"linear": 64000, "paper": 45000})
SCALES = {"quick": QUICK, "laptop": LAPTOP, "full": FULL}


# ------------------------------------------------------------------------ What all parts need
#
# Numbers are kept by settings, {Point with seed 0: (mean, error)}: seeds are averaged over.

NAMES = {"linear": "trained, our start", "paper": "trained, published start",
         "rug": "Persian rug", "projector": "random projector"}
KIND_COLOURS = COLOURS | {"linear": COLOURS["trained"], "paper": COLOURS["published"]}


def seeds(count, kind, n_sparse, r, p, steps=0):
    """Points that differ only in their seed: trained networks, or draws of a forged model."""
    return [sweep.Point.at(kind, n_sparse, r, p, steps, seed) for seed in range(count)]


def by_settings(found):
    """The results of Points that differ only in their seed: {Point with seed 0: [result, …]}."""
    groups = {}
    for point, result in found.items():
        groups.setdefault(point._replace(seed=0), []).append(result)
    return groups


def best_loss(point):
    """The theory's loss at a Point's own r and p."""
    return theory.optimum(point.ratio, point.p).loss


def mean_losses(found):
    """Losses over theory. The error combines deviation between seeds and error of sampling."""
    rows = {}
    for point, results in by_settings(found).items():
        # Models of all seeds are measured on the same samples, so these errors don't average out.
        measured = [(result["loss"], result["error"]) for result in results]
        losses, errors = np.transpose(measured) / best_loss(point)
        error = math.hypot(losses.std(), errors.mean())
        rows[point] = losses.mean(), error
    return rows


def averages(found, numbers_of):
    """Means and deviations over seeds: of the loss, and of numbers_of(point, result).

    Those are {title: number}. Returns {title: {Point with seed 0: (mean, deviation)}}.
    """
    columns = {"loss over theory": mean_losses(found)}
    # Results come by Point, and a table by title: turn them round.
    for point, results in by_settings(found).items():
        numbers = [numbers_of(point, result) for result in results]
        for title in numbers[0]:
            values = [row[title] for row in numbers]
            rows = columns.setdefault(title, {})
            rows[point] = np.mean(values), np.std(values)
    return columns


def where(rows, **settings):
    """Those of the rows, {Point: numbers}, whose Points have these settings."""
    return {point: row for point, row in rows.items()
            if all(getattr(point, name) == value for name, value in settings.items())}


def draw_curve(panel, name, rows, fmt="o-", **style):
    """Rows {Point: (mean, error)} as a curve over one of the settings of a Point."""
    x = [getattr(point, name) for point in rows]
    means, errors = np.transpose([*rows.values()])
    panel.errorbar(x, means, errors, fmt=fmt, capsize=3, **style)


def draw_kinds(panel, name, rows):
    """A curve for each kind of Point."""
    for kind in dict.fromkeys(point.kind for point in rows):
        same = where(rows, kind=kind)
        draw_curve(panel, name, same, color=KIND_COLOURS[kind], label=NAMES[kind])


def print_numbers(columns):
    """A table of `averages`, a line for each Point."""
    lines = []
    for point in columns["loss over theory"]:
        line = [f"{NAMES[point.kind]}, {point.n_sparse}", f"({point.ratio:.3g}, {point.p:g})",
                f"{point.steps}"]
        for rows in columns.values():
            mean, error = rows[point]
            cell = f"{mean:.4g} ± {error:.2g}" if error else f"{mean:.4g}"
            line.append(cell.replace("nan ± nan", "–"))  # what was not reached
        lines.append(line)
    train.print_table(["model, n_sparse", "(r, p)", "steps", *columns], lines)


# ------------------------------------------------------------------------- The loss over r and p

def plane(scale):
    """The Points of `loss`: trained networks and large rugs over r and p."""
    points = []
    for r in scale.ratios:
        for p in scale.ps:
            for n_sparse in scale.sizes:
                points += seeds(1, "linear", n_sparse, r, p, scale.steps(p))
            points += seeds(scale.draws, "rug", train.LARGE, r, p)
    return points


def measure_loss(scale, found):
    """`mean_losses`."""
    return mean_losses(found)


def draw_loss(folder, losses):
    """Loss over Var x along r at four p; losses: `mean_losses`."""
    figure, axes = train.subplots(2, 2, figsize=(9.5, 8.6), sharey=True)
    ps = sorted({point.p for point in losses})
    panels = dict(zip(ps[::len(ps) // 4], axes.flat))
    for p, panel in panels.items():
        draw_theory(panel, p)

    # One colour a size. The largest is the rug.
    sizes = sorted({point.n_sparse for point in losses})
    colours = [*SHADES[:len(sizes) - 1], COLOURS["rug"]]
    for n_sparse, colour in zip(sizes, colours):
        rows = where(losses, n_sparse=n_sparse)
        name = f"{NAMES[next(iter(rows)).kind]}, n_sparse {n_sparse}"
        for p, panel in panels.items():
            # In units of Var x the curves of all p can be compared.
            over_variance = {}
            for point, row in where(rows, p=p).items():
                over_variance[point] = np.multiply(row, best_loss(point) / theory.variance(p))
            marker = "^" if n_sparse == train.LARGE else "o"
            draw_curve(panel, "ratio", over_variance, marker, color=colour, label=name)
        means = [mean for mean, _ in rows.values()]
        print(f"{name}, {len(means)} (r, p): loss over theory {np.median(means):.3f} (median), "
              f"{max(means):.3f} (most)")
    named = panel.get_legend_handles_labels()
    figure.legend(*named, loc="outside lower center", ncols=2)
    train.save_figure(figure, f"{folder}/paper-loss.png")


def draw_theory(panel, p):
    """What theory.py computes over r, in units of Var x."""
    r = np.geomspace(0.01, 0.95, 50)
    for key, (label, loss) in train.CURVES.items():
        values = [loss(x, p) / theory.variance(p) for x in r]
        panel.plot(r, values, color=COLOURS[key], label=label)
    panel.set(xscale="log", title=f"p = {p:.3g}", xlabel="ratio r = n_dense / n_sparse",
              ylabel="loss / Var x")


# ----------------------------------------------------------------------------------------- Size

def doubling_sizes(scale):
    """The Points of `size`: n_sparse doubles from 32 on."""
    points = []
    for n_sparse in [2**k for k in range(5, 21)]:
        for r, p in SETTINGS:
            if n_sparse <= 2 * scale.sizes[-1]:
                points += seeds(1, "linear", n_sparse, r, p, scale.steps(p))
                points += seeds(scale.draws, "projector", n_sparse, r, p)
            if n_sparse <= scale.forged_to:
                points += seeds(scale.draws, "rug", n_sparse, r, p)
    return points


def asymmetries(point, result):
    """How far the features of a trained network differ, {title: number} for `averages`."""
    diagonal = result["a"]
    noise = result["sigma"]**2
    diagonal_spread = diagonal.std() / diagonal.mean()
    noise_spread = noise.std() / noise.mean()
    return {"spread of W_ii, over mean": diagonal_spread,
            "spread of σ_i², over mean": noise_spread,
            "ν_i: distance from a Gaussian": result["distance"].mean()}


def measure_size(scale, found):
    """(`mean_losses` of all, `averages` of the asymmetries of trained networks)."""
    return mean_losses(found), averages(where(found, kind="linear"), asymmetries)


def draw_size(folder, results):
    """Loss over theory against n_sparse at three (r, p), and asymmetries at the first of them."""
    losses, columns = results
    figure, axes = train.subplots(2, 2, figsize=(9.5, 8.6))
    for panel, (r, p) in zip(axes.flat, SETTINGS):
        panel.axhline(1, color=COLOURS["theory"], label="theory")
        draw_kinds(panel, "n_sparse", where(losses, p=p))
        panel.set(title=f"r = {r:g}, p = {p:g}", yscale="log", ylabel="loss / theory")
        # Plain numbers on the logarithmic axis.
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.4, 2, 3, 5, 7)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())
    axes[0, 1].legend()

    last = axes[1, 1]
    # The first column is the loss, which the other panels show.
    titles = [*columns][1:]
    for title, style in zip(titles, ("o-", "s--", "^:")):
        rows = where(columns[title], p=USUAL[1])
        draw_curve(last, "n_sparse", rows, style, label=title, color=COLOURS["trained"])
    last.set(title=f"features become alike: (r, p) = {USUAL}", yscale="log")
    last.legend()
    for panel in axes.flat:
        panel.set_xscale("log", base=2)
        panel.set_xlabel("n_sparse")
    train.save_figure(figure, f"{folder}/paper-size.png")
    print_numbers({"loss over theory": losses})
    print_numbers(columns)


# --------------------------------------------------------------------------------------- Starts

START_SIZE = 256
START_PS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def starts(scale):
    """The Points of `starts`: both starts, two seeds each, at r = 0.25 and all START_PS."""
    points = []
    for kind in ("linear", "paper"):
        for p in START_PS:
            points += seeds(2, kind, START_SIZE, 0.25, p, scale.end_steps["linear"])
    return points


def dead_share(point, result):
    """{title: number} for `averages`."""
    return {"dead, %": 100 * result["dead"].mean()}


def measure_starts(scale, found):
    """`averages` of losses and dead features."""
    return averages(found, dead_share)


def draw_starts(folder, columns):
    """Dead features against p, for both starts."""
    figure, panel = train.subplots(figsize=(8, 4.5))
    draw_kinds(panel, "p", columns["dead, %"])
    panel.set(xscale="log", xlabel="p, how often a feature is on", ylabel="dead features, %",
              title="From the published start, features that are rarely on die (r = 0.25)")
    panel.legend()
    train.save_figure(figure, f"{folder}/paper-starts.png")
    print_numbers(columns)


# ------------------------------------------------------------------------ Where training ends
#
# The theory's optimum is not one matrix but a family: all scaled projectors with an equal diagonal
# have the same a, b and σ. The Gaussian loss can't tell them apart, but the next cumulant can.

PASSED = 0.95  # of the theory: a run that is lower has left it
STRONG = -0.3  # entries of W below this are called strong
END_PANELS = (("linear", USUAL), ("paper", USUAL), ("linear", RARE))


def ends(scale):
    """The Points of `ends`: shorter runs of the middle size, then long ones for all END_PANELS."""
    points = []
    # The rates of the shorter runs have come down to 0 as well.
    middle = [*scale.ends][len(scale.ends) // 2]
    for halvings in range(5, 0, -1):
        points += seeds(1, "linear", middle, *USUAL, scale.end_steps["linear"] >> halvings)

    for n_sparse, count in scale.ends.items():
        for kind, (r, p) in END_PANELS:
            points += seeds(count, kind, n_sparse, r, p, scale.end_steps[kind])
    return points


def curve(point, result):
    """The course of a training: middles of windows that grow with the step, and mean losses there.

    The losses of batches, over theory. Both are arrays (windows,). The first batch, which has seen
    no training, is left out.
    """
    losses = result["losses"] / best_loss(point)
    # Equal steps of the logarithm: early on a window is a single batch, and later many.
    edges = np.unique(np.geomspace(1, len(losses), 120).astype(int))
    means = np.add.reduceat(losses, edges[:-1]) / np.diff(edges)
    return (edges[1:] + edges[:-1]) / 2, means


def passing_step(steps, losses):
    """The step of the first window below PASSED; NaN if there is none."""
    below = np.flatnonzero(losses < PASSED)
    return steps[below[0]] if len(below) else math.nan


def end_numbers(point, result):
    """Where a run ends, {title: number} for `averages`."""
    passed = passing_step(*curve(point, result))
    skewness = result["nu_skewness"].mean()
    return {f"passes {PASSED} at": passed, "skewness of ν": skewness} | dead_share(point, result)


def third_derivative(a, b, sigma, p):
    """∂³L/∂b³ of theory.symmetric_loss, elementwise, by differences of four values.

    This is what skewness of ν is worth. If ν has the third cumulant κ₃ and none beyond, then the
    mean of a smooth function g(ν) is the Gaussian one plus κ₃/6 times the mean of its third
    derivative, to first order. Let g be the squared error of the output. It depends on ν + b, so
    differentiating by ν is differentiating by b:

        ΔL = (κ₃/6) ∂³L/∂b³.

    The derivative is positive wherever ReLU clips. So a negative κ₃ is a gain.
    """
    h = 0.003
    losses = [theory.symmetric_loss(a, b + k * h, sigma, p) for k in (-2, -1, 1, 2)]
    return np.tensordot([-1, 2, -2, 1], losses, 1) / (2 * h**3)


def shape_numbers(point, result):
    """What the shape of ν is worth, {title: number}: the loss beside that of a Gaussian ν."""
    best = best_loss(point)
    sigma = result["sigma"]
    # A Gaussian ν with the network's own a, b and σ, feature by feature.
    statistics = result["a"], result["effective_bias"], sigma, point.p
    gaussian = theory.symmetric_loss(*statistics) / best
    # What its third cumulant changes, to first order.
    third_cumulant = result["nu_skewness"] * sigma**3
    first_order = third_cumulant / 6 * third_derivative(*statistics) / best
    return {"if ν were Gaussian": gaussian.mean(),
            "of which skewness takes off": -first_order.mean()}


def singular_values(model):
    """The n_dense singular values of W that need not be 0, in units of a/r.

    With decoder = Q R and encoder = Q' R', W = Q (R R'ᵀ) Q'ᵀ has those of the small R R'ᵀ.
    """
    decoder = np.linalg.qr(model.decoder.astype(float)).R
    encoder = np.linalg.qr(model.encoder.astype(float)).R
    unit = model.diagonal.mean() * model.n_sparse / model.n_dense
    return np.linalg.svd(decoder @ encoder.T, compute_uv=False) / unit


def off_diagonal(model):
    """W in float64 with 0 on its diagonal."""
    w = model.decoder.astype(float) @ model.encoder.T
    np.fill_diagonal(w, 0)
    return w


def structure_numbers(point, result):
    """What a trained W is like beyond a, b and σ, {title: number}."""
    model = sweep.model_of(result)
    singular = singular_values(model)
    # The strong entries, their share of the noise, and whether W is symmetric where they are.
    w = off_diagonal(model)
    strong = w < STRONG
    entries = w[strong]
    share = np.sum(entries**2) / np.sum(w**2)
    mirrored = np.corrcoef(entries, w.T[strong])[0, 1]
    # Which features have an opposite, as all have in a paired rug?
    opposed = w.min(axis=1) < -0.9 * model.diagonal.mean()
    return {"singular values / (a/r)": singular.mean(),
            "their spread": singular.std(),
            "Σ W_ij³ / a³": np.sum(w**3) / np.sum(model.diagonal**3),
            f"entries < {STRONG} a row": len(entries) / len(w),
            "their mean": entries.mean(),
            "share of Σ W_ij²": share,
            "corr. with W_ji": mirrored,
            "features with an opposite": opposed.mean()}


# Edges between the values of a rug, which are multiples of 2/n_dense.
FAMILY_BINS = np.arange(-40, 17) / 32 + 1 / 1024


def family(point, trained):
    """Three members of the family: {name: (singular values, histogram, loss over theory)}.

    The histogram is the share of the W_ij / a, j ≠ i, in each of FAMILY_BINS.
    """
    settings = point.n_sparse, point.n_dense, point.p
    models = {"random projector": forge.random_projector(*settings, seed=0),
              "Persian rug": forge.persian_rug(*settings, seed=0).autoencoder(),
              "trained": trained}
    members = {}
    for name, model in models.items():
        loss, _ = rug.evaluate(model, point.p, 4096, seed=1)
        # In units of a, so that models with different a can be compared.
        others = ~np.eye(point.n_sparse, dtype=bool)
        entries = off_diagonal(model)[others] / model.diagonal.mean()
        counts, _ = np.histogram(entries, FAMILY_BINS)
        members[name] = singular_values(model), counts / entries.size, loss / best_loss(point)
    return members


def measure_ends(scale, found):
    """{"curves", "family" and three tables}: see `curve`, `family`, `averages`."""
    curves = {}
    for point, result in where(found, seed=0).items():
        if point.steps == scale.end_steps[point.kind]:
            curves[point] = curve(point, result)

    # The largest networks' weights are not kept. The largest of those that are comes last.
    kept = {point: result for point, result in found.items() if "encoder" in result}
    largest = [*where(kept, kind="linear", p=USUAL[1])][-1]
    return {"curves": curves,
            "ends": averages(found, end_numbers),
            "shapes": averages(found, shape_numbers),
            "structures": averages(kept, structure_numbers),
            "family": family(largest, sweep.model_of(kept[largest]))}


def draw_ends(folder, results):
    """Loss over steps, and the skewness of ν at the end; tables of all runs; the family."""
    curves = results["curves"]
    losses = results["ends"]["loss over theory"]
    figure, axes = train.subplots(2, 2, figsize=(9.5, 8.6))
    for panel, (kind, (r, p)) in zip(axes.flat, END_PANELS):
        panel.axhline(1, color=COLOURS["theory"], label="theory")
        for point, shade in zip(where(curves, kind=kind, p=p), SHADES):
            panel.plot(*curves[point], color=shade, label=f"n_sparse {point.n_sparse}")
        # The loss of a batch scatters. What a run ends with is measured on many fresh samples.
        draw_curve(panel, "steps", where(losses, kind=kind, p=p), "o", color="black",
                   label="end of a run")
        panel.set(xscale="log", ylim=(0.5, 1.5), xlabel="training step",
                  ylabel="loss / theory", title=f"{NAMES[kind]}: r = {r:g}, p = {p:g}")
    axes[0, 0].legend()

    last = axes[1, 1]
    skewness = results["ends"]["skewness of ν"]
    long_runs = where(curves, p=USUAL[1])
    draw_kinds(last, "n_sparse", {point: skewness[point] for point in long_runs})
    last.set_xscale("log", base=2)
    last.set(xlabel="n_sparse", ylabel="skewness of ν",
             title=f"ν leans to the left: (r, p) = {USUAL}")
    last.legend()
    train.save_figure(figure, f"{folder}/paper-ends.png")
    draw_family(f"{folder}/paper-family.png", results["family"])
    for name in ("ends", "shapes", "structures"):
        print_numbers(results[name])


def draw_family(path, members):
    """Three scaled projectors: their entries, with their singular values and losses as text."""
    figure, panel = train.subplots(figsize=(9, 5.5))
    for name, (singular, shares, loss) in members.items():
        label = (f"{name}: loss {loss:.2f} of theory, "
                 f"singular values {singular.mean():.2f} ± {singular.std():.2f} a/r")
        colour = COLOURS[name.split()[-1]]
        panel.stairs(shares, FAMILY_BINS, color=colour, label=label)
    panel.set(title=f"Alike for the theory, but not in their entries: (r, p) = {USUAL}, "
              f"n_dense = {len(singular)}", yscale="log", xlabel="$W_{ij} / a$, j ≠ i",
              ylabel="share of the entries, in bins of 1/32")
    figure.legend(loc="outside lower center")
    train.save_figure(figure, path)


# ------------------------------------------------------------------------------------------ Rug

def measure_rug(scale, found):
    """W of a rug, in units of a: (512, 512)."""
    kernel = forge.persian_rug(512, 64, 0.045, seed=1).kernel
    i = np.arange(len(kernel))
    return kernel[i[:, None] ^ i]


def draw_rug(folder, w):
    """A rug, and ever smaller corners of it."""
    figure, axes = train.subplots(2, 2, figsize=(9.5, 9.9))
    largest = 0.75 * np.abs(w[0, 1:]).max()  # the few larger ones share the last colour
    for panel, size in zip(axes.flat, (512, 128, 32, 8)):
        panel.imshow(w[:size, :size], train.RUG_COLOURS, vmin=-largest, vmax=largest)
        panel.set_title(f"the first {size} × {size} weights")
        panel.set_axis_off()
    train.save_figure(figure, f"{folder}/paper-rug.png")
    print(f"{len(np.unique(w))} values in {w.size} weights")


PARTS = {"loss": (plane, measure_loss, draw_loss),
         "size": (doubling_sizes, measure_size, draw_size),
         "starts": (starts, measure_starts, draw_starts),
         "ends": (ends, measure_ends, draw_ends),
         "rug": (lambda scale: [], measure_rug, draw_rug)}


if __name__ == "__main__":
    sweep.run("paper", __doc__, SCALES, PARTS)
