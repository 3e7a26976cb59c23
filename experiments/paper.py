"""The paper's figures again: what it claims of large networks, measured.

loss-vs-ratio, -p   loss over Var x along r and along p: trained, forged, theory
symmetry            how far the features of a trained network differ, over (r, p)
size, distance      loss over theory against n_sparse, and against training steps
starts              which features die under the published start
scaling, rug        the optimum near its limit law; rugs, and ever smaller corners of one

Networks are trained from the linear start, all sizes for as many steps at the same (r, p): `few`,
1000 √(0.045/p) and at least 250, at full scale the published 45,000. Rugs are means over draws of
their rows, ± spread and sampling error. "Theory" is the symmetric optimum; "dropping" is
`theory.dropping_loss`, what theory allows by dropping features.
"""
import math
from collections import namedtuple
from functools import partial

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import forge
import rug
import theory
import train
from experiments import sweep
from theory import dropping_loss, kept_fraction

RATIOS = (0.01, 0.1, 0.3, 0.5, 0.8)        # a panel each in loss-vs-p
PS = (0.001, 0.01, 0.05, 0.1, 0.4, 0.6)    # a panel each in loss-vs-ratio
SETTINGS = ((0.25, 0.045), (0.1, 0.01), (0.5, 0.1))
GRID = tuple(np.linspace(0.002001, 0.8, 20).tolist())  # the published one
SHADES = ("#fdae61", "#d55e00", "#5c1500", "#b2abd2", "#5e3c99")  # of trained networks, by n_sparse


def few(p):
    """The steps of training at p that the numbers in README.md were made with."""
    return round(4000 * max(0.25, math.sqrt(0.045 / p))) // 4


# steps: of training at p; longest: of `distance`, by n_sparse; forged_to, trained_to: n_sparse
Scale = namedtuple("Scale", "sizes steps ratios ps draws trained_to forged_to start_steps longest")
FEWER = (0.01, 0.03, *RATIOS[1:])
SCALES = {
    "laptop": Scale((64, 256, 1024), few, FEWER, PS, 4, 2048, 2**20, 16000,
                    {512: 32000, 2048: 4000, 8192: 1000}),
    "quick": Scale((32, 64, 128), few, FEWER, PS, 2, 256, 2**14, 2000,
                   {64: 4000, 128: 4000, 256: 2000}),
    "full": Scale((128, 256, 512, 1024, 2048), lambda p: 45000, GRID, GRID, 8, 8192, 2**20, 45000,
                  {512: 64000, 2048: 64000, 8192: 64000})}


def best(point):
    """The symmetric optimum's loss at the point's own ratio."""
    return theory.optimum(point.ratio, point.p).loss


def lost(point, results):
    """The share of features, at least, that died though theory keeps them; forged ones don't."""
    dead = results[point]["dead"].mean() if point.steps else 0
    return max(0.0, dead - (1 - kept_fraction(point.ratio, point.p)))


def plot_losses(axes, x, groups, results, reference=best, **style):
    """Loss over reference(point), (groups, 2): mean of each group (draws, seeds), and its spread
    with the standard error of the samples, which all of a group share."""
    found = []
    for points in groups:
        losses, errors = (np.array([results[point][name] for point in points])
                          / reference(points[0]) for name in ("loss", "error"))
        found.append((losses.mean(), np.hypot(losses.std(), errors.mean())))
    axes.errorbar(x, *np.transpose(found), **{"fmt": "o-", "ms": 4} | style)
    return np.array(found)


# ----------------------------------------------------------------------- loss over (r, p), symmetry

def models(scale, kind, n_sparse, r, p):
    """The Points of a kind at (r, p): one network, or forged models, one a draw."""
    if kind == "linear":
        return [sweep.Point.at(kind, n_sparse, r, p, scale.steps(p))]
    return [sweep.Point.at(kind, n_sparse, r, p, seed=draw) for draw in range(scale.draws)]


def plane(scale, ratios, ps):
    """All Points of the (r, p) figures: {name: groups of Points, one a setting}."""
    kinds = [("trained", "linear", n) for n in scale.sizes] + [("rug", "rug", train.LARGE)]
    return {f"{name}, n_sparse {n}": [models(scale, kind, n, r, p) for r in ratios for p in ps]
            for name, kind, n in kinds}


def draw_losses(folder, scale, results, along):
    """Loss over Var x along "ratio" at each of PS, or along "p" at each of RATIOS."""
    panels, others = (PS, scale.ratios) if along == "ratio" else (RATIOS, scale.ps)
    figure, axes = train.subplots(2, 3, figsize=(11, 6.8), sharey=True)
    curves = {**train.CURVES, "mixture": ("theory, features dropped", dropping_loss)}
    for panel, value in zip(axes.flat, panels):
        fine = np.geomspace(min(others) * 0.9, max(others) * 1.1, 30)
        settings = [(x, value) if along == "ratio" else (value, x) for x in fine]
        for key, (name, loss) in curves.items():
            panel.plot(fine, [loss(*at) / theory.variance(at[1]) for at in settings], label=name,
                       color=sweep.COLOURS[key])
        groups = plane(scale, *((others, [value]) if along == "ratio" else ([value], others)))
        for (name, some), shade in zip(groups.items(), [*SHADES[:len(groups) - 1], None]):
            forged = "rug" in name
            plot_losses(panel, [getattr(points[0], along) for points in some], some, results,
                        lambda point: theory.variance(point.p), label=name,
                        fmt="^" if forged else "o", color=sweep.COLOURS["rug"] if forged else shade)
        title = f"p = {value:g}" if along == "ratio" else f"r = {value:g}"
        panel.set(xscale="log", title=title, xlabel=along, ylabel="loss / Var x")
    named = panel.get_legend_handles_labels()
    figure.legend(*named, loc="outside lower center", ncols=4, frameon=False)
    for empty in axes.flat[len(panels):]:
        empty.remove()
    train.save_figure(figure, f"{folder}/paper-loss-vs-{along}.png")
    lines = []
    ratios, ps = (others, PS) if along == "ratio" else (RATIOS, others)
    for name, some in plane(scale, ratios, ps).items():
        points = sum(some, [])
        losses, bounds = np.array([results[point]["loss"] for point in points]), np.array(
            [(best(point), dropping_loss(point.ratio, point.p)) for point in points]).T
        lines.append([name, *(f"{f(losses / bound):.3f}" for bound in bounds
                              for f in (np.min, np.median, np.max)),
                      f"{max(lost(point, results) for point in points):.1%}"])
    train.print_table([f"loss along {along} over", "theory: least", "median", "most",
                       "dropping: least", "median", "most", "lost, at most"], lines)


def draw_symmetry(folder, scale, results):
    """Heat maps over (r, p), a row for each n_sparse: how features differ, and ν from a Gaussian.
    White dots: theory drops features there; red crosses: over 1 % died that theory keeps."""
    measures = {"std $W_{ii}$ / mean": lambda found: found["a"].std() / abs(found["a"].mean()),
                "std $b_i$": lambda found: found["bias"].std(),
                "std effective bias": lambda found: found["effective_bias"].std(),
                "std $\\sigma_i^2$ / mean": lambda found: np.std(found["sigma"]**2)
                / np.mean(found["sigma"]**2),
                "mean $\\Lambda_i$": lambda found: found["lyapunov"].mean(),
                "KS distance of $\\nu_i$": lambda found: found["distance"].mean()}
    points = [[[models(scale, "linear", n, r, p)[0] for p in scale.ps] for r in scale.ratios]
              for n in scale.sizes]
    kept = np.array([[kept_fraction(r, p) for p in scale.ps] for r in scale.ratios])
    rows, lines = len(scale.sizes), []
    figure, axes = train.subplots(rows, 6, figsize=(14, 2.3 * rows + 1))
    for column, (name, measure) in zip(axes.T, measures.items()):
        maps = np.array([[[measure(results[point]) for point in row] for row in size]
                         for size in points])
        limits = max(maps.min(), 1e-4), maps.max()
        for panel, values, size in zip(column, maps, points):
            image = panel.imshow(values, norm=LogNorm(*limits), origin="lower", aspect="auto")
            died = [[lost(point, results) > 0.01 for point in row] for row in size]
            for marked, marker in ((kept < 0.999, "w."), (died, "rx")):
                panel.plot(*np.nonzero(marked)[::-1], marker, ms=5)
            for axis, ticks in ((panel.xaxis, scale.ps), (panel.yaxis, scale.ratios)):
                places = range(0, len(ticks), -(-len(ticks) // 6))
                axis.set_ticks(places, [f"{ticks[k]:.3g}" for k in places], fontsize=7)
        column[0].set_title(name, fontsize=10)
        column[-1].set_xlabel("p")
        bar = figure.colorbar(image, ax=list(column), location="bottom", aspect=12, format="%.2g",
                              ticks=np.geomspace(*limits, 4))
        bar.minorticks_off()
        lines.append([name] + [f"{np.median(values[kept > 0.999]):.3f}" for values in maps])
    for panel, n in zip(axes[:, 0], scale.sizes):
        panel.set_ylabel(f"n_sparse {n}\nratio r")
    train.save_figure(figure, f"{folder}/paper-symmetry.png")
    train.print_table(["median where no feature is to be dropped, n_sparse",
                       *map(str, scale.sizes)], lines)


# -------------------------------------------------------------------------- size, distance, starts

def sizes(scale):
    """{(kind, setting): groups of Points, one a size}."""
    tops = {"linear": scale.trained_to, "rug": scale.forged_to,
            "projector": min(2048, scale.trained_to)}
    return {(kind, at): [models(scale, kind, 32 << k, *at) for k in range((top // 32).bit_length())]
            for kind, top in tops.items() for at in SETTINGS}


def draw_size(folder, scale, results):
    """Loss over theory against n_sparse."""
    figure, axes = train.subplots(1, 3, figsize=(12, 4.2), sharey=True)
    for (kind, (r, p)), groups in sizes(scale).items():
        panel, n = axes[SETTINGS.index((r, p))], [points[0].n_sparse for points in groups]
        name = "trained" if kind == "linear" else kind
        found = plot_losses(panel, n, groups, results, color=sweep.COLOURS[name], label=name)
        print(f"{name}, r {r}, p {p}, loss over theory at n_sparse", ", ".join(
            f"{size}: {mean:.3f} ± {spread:.3f}" for size, (mean, spread) in zip(n, found)))
        panel.axhline(1, color=sweep.COLOURS["theory"], lw=1)
        panel.set(xscale="log", yscale="log", xlabel="n_sparse",
                  title=f"r = {r:g}, p = {p:g}; trained {scale.steps(p)} steps")
        panel.set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
    axes[0].set_ylabel("loss / symmetric theory (line)")
    axes[0].legend(frameon=False)
    train.save_figure(figure, f"{folder}/paper-size.png")


def distances(scale):
    """{n_sparse: groups of one Point, of growing budgets} at the first of SETTINGS."""
    return {n: [[sweep.Point.at("linear", n, *SETTINGS[0], 250 << k)]
                for k in range((top // 250).bit_length())] for n, top in scale.longest.items()}


def draw_distance(folder, scale, results):
    """Loss over theory and the skewness of W against steps, each point a training of its own."""
    figure, (left, right) = train.subplots(1, 2, figsize=(11, 4.2))
    for (n, groups), shade in zip(distances(scale).items(), SHADES):
        steps = [points[0].steps for points in groups]
        found = plot_losses(left, steps, groups, results, color=shade, label=f"n_sparse {n}")
        skewness = [results[points[0]]["skewness"].mean() for points in groups]
        right.plot(steps, skewness, "o-", ms=4, color=shade)
        print(f"n_sparse {n}, loss over theory and skewness at", ", ".join(
            f"{step} steps: {loss:.4f} ± {error:.4f}, {skew:.2f}"
            for step, (loss, error), skew in zip(steps, found, skewness)))
    left.axhline(1, color=sweep.COLOURS["theory"], lw=1)
    left.set(xscale="log", xlabel="training steps", ylabel="loss / symmetric theory (line)")
    right.set(xscale="log", xlabel="training steps", ylabel="skewness of $W_{ij}$, mean over rows")
    left.legend(frameon=False)
    train.save_figure(figure, f"{folder}/paper-distance.png")


STARTS = {"linear": ("linear start, peak 60e-3/√n_sparse", sweep.COLOURS["trained"]),
          "paper": ("published start and rate, 3e-3/√n_sparse", sweep.COLOURS["published"])}


def starts(scale, kind):
    """Groups of Points, two seeds each, one a p."""
    return [[sweep.Point.at(kind, min(256, scale.trained_to), 0.25, p, scale.start_steps, seed)
             for seed in (0, 1)] for p in PS]


def draw_starts(folder, scale, results):
    """Dead fraction and loss over theory against p for both starts; ±: two seeds."""
    figure, (above, below) = train.subplots(2, 1, figsize=(7, 5.4), sharex=True)
    for kind, (name, colour) in STARTS.items():
        groups = starts(scale, kind)
        dead = [[100 * results[point]["dead"].mean() for point in points] for points in groups]
        above.errorbar(PS, np.mean(dead, axis=1), np.std(dead, axis=1), fmt="o-", ms=4,
                       color=colour, label=name)
        for p, share, loss in zip(PS, dead, plot_losses(below, PS, groups, results, color=colour)):
            print(f"{name}, p {p:g}: {np.mean(share):.1f} ± {np.std(share):.1f} % dead, "
                  "loss over theory {:.3f} ± {:.3f}".format(*loss))
    below.axhline(1, color=sweep.COLOURS["theory"], lw=1)
    below.annotate("symmetric theory", (PS[-1], 1), xytext=(4, 4), textcoords="offset points",
                   color=sweep.COLOURS["theory"], ha="right")
    above.legend(frameon=False)
    above.set(ylabel="dead features, %",
              title=f"r = 0.25, n_sparse {groups[0][0].n_sparse}, {scale.start_steps} steps")
    below.set(ylabel="loss / symmetric theory", xscale="log", yscale="log", xlabel="p")
    train.save_figure(figure, f"{folder}/paper-starts.png")


# ----------------------------------------------------------------------------------- scaling, rug

def draw_scaling(folder, scale, results):
    """The symmetric optimum over Var x against r/r_c, and its limit law."""
    figure, axes = train.subplots(figsize=(7.5, 4.6))
    multiples = np.geomspace(0.2, 30, 100)
    for k, p in enumerate((1e-2, 1e-3, 1e-4, 1e-5, 1e-6)):
        r_c, var = theory.critical_ratio(p), theory.variance(p)
        some = multiples[multiples * r_c < 1]
        axes.plot(some, [theory.optimum(x * r_c, p).loss / var for x in some], label=f"p = {p:g}",
                  color=colormaps["Blues"](0.35 + 0.13 * k))
        ratio = theory.optimum(3 * r_c, p).loss / theory.scaling_loss(3 * r_c, p)
        print(f"p {p:g}: optimum over limit law at 3 r_c {ratio:.3f}")
    axes.plot(multiples, [theory.scaling_loss(x * r_c, p) / var for x in multiples], "k--", lw=1.2,
              label="limit p → 0")
    axes.set(xscale="log", xlabel="$r / r_c$, with $r_c = (2/3)\\, p \\ln(1/p)$", ylim=(0, 1.05),
             ylabel="loss / Var x")
    axes.legend(frameon=False)
    train.save_figure(figure, f"{folder}/paper-scaling.png")


def draw_rugs(folder, scale, results):
    """W of forged models with several n_dense, and ever smaller corners of one of them."""
    figure = Figure(figsize=(8.06, 5.72), dpi=100)  # 256 × 256 pixels each: whole ones a weight
    cases = [(256, n, 256) for n in (8, 32, 128)] + [(512, 64, size) for size in (128, 32, 8)]
    for k, (n_sparse, n_dense, size) in enumerate(cases):
        left, low = 10 + 265 * (k % 3), 10 + 286 * (1 - k // 3)
        axes = figure.add_axes([left / 806, low / 572, 256 / 806, 256 / 572])
        kernel, i = forge.persian_rug(n_sparse, n_dense, 0.045, seed=1).kernel, np.arange(size)
        largest = 0.75 * np.abs(kernel[1:]).max()
        axes.imshow(kernel[i[:, None] ^ i], train.RUG_COLOURS.resampled(9), vmin=-largest,
                    vmax=largest, interpolation="nearest")
        corner = "" if size == n_sparse else f", corner of {size}"
        axes.set_title(f"n_sparse {n_sparse}, n_dense {n_dense}{corner}", fontsize=8, pad=4)
        axes.set_axis_off()
    print(f"n_sparse 512, n_dense 64: {len(np.unique(kernel))} values in {512**2} weights")
    with rug.replacing(f"{folder}/paper-rug.png") as file:
        figure.savefig(file, format="png", facecolor="white", pil_kwargs={"optimize": True})
    print(f"→ {folder}/paper-rug.png")


def flatten(groups):
    """All Points of some figure's groups."""
    return [point for some in groups for group in some for point in group]


FIGURES = {
    "loss-vs-ratio": (lambda scale: flatten(plane(scale, scale.ratios, PS).values()),
                      partial(draw_losses, along="ratio")),
    "loss-vs-p": (lambda scale: flatten(plane(scale, RATIOS, scale.ps).values()),
                  partial(draw_losses, along="p")),
    "symmetry": (lambda scale: flatten(plane(scale, scale.ratios, scale.ps).values()),
                 draw_symmetry),
    "size": (lambda scale: flatten(sizes(scale).values()), draw_size),
    "distance": (lambda scale: flatten(distances(scale).values()), draw_distance),
    "starts": (lambda scale: flatten(starts(scale, kind) for kind in STARTS), draw_starts),
    "scaling": (lambda scale: [], draw_scaling), "rug": (lambda scale: [], draw_rugs)}


if __name__ == "__main__":
    sweep.run("paper", __doc__, FIGURES, SCALES)
