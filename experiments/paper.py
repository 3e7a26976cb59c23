"""The paper's figures again: what it claims of large networks, measured.

loss-vs-ratio, loss-vs-p   loss over Var x along r and along p: trained, forged, theory
symmetry                   how far the features of a trained network differ, over (r, p)
size                       loss over theory against n_sparse: trained, rug, random projector
distance                   loss over theory, and skewness of W, against training steps
starts                     which features die under the published start
scaling                    the optimum near its limit law
rug                        rugs, and ever smaller corners of one

Networks are trained from the linear start, all sizes for as many steps at the same (r, p): a
quarter of `train.default_steps(p)`, at full scale the published 45,000. Rugs are means over draws
of their rows, ± the spread of the draws. "Theory" is the symmetric optimum; where dropping features
does better, the loss is compared with `phases.dropping_loss`, too.
"""
from collections import namedtuple
from functools import partial

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm

import forge
import rug
import theory
import train
from experiments import sweep
from experiments.phases import dropping_loss, kept_fraction
from experiments.sweep import Point

RATIOS = (0.01, 0.1, 0.3, 0.5, 0.8)        # a panel each in loss-vs-p
PS = (0.001, 0.01, 0.05, 0.1, 0.4, 0.6)    # a panel each in loss-vs-ratio
SETTINGS = ((0.25, 0.045), (0.1, 0.01), (0.5, 0.1))
GRID = tuple(np.linspace(0.002001, 0.8, 20).tolist())  # the published one
SHADES = ("#fdae61", "#d55e00", "#5c1500", "#b2abd2", "#5e3c99")  # of trained networks, by n_sparse

# steps: of training at p; longest: of `distance`, by n_sparse; forged_to, trained_to: n_sparse
Scale = namedtuple("Scale", "sizes steps ratios ps draws trained_to forged_to start_steps longest")
FEWER, QUARTER = (0.01, 0.03, *RATIOS[1:]), lambda p: train.default_steps(p) // 4
SCALES = {
    "laptop": Scale((64, 256, 1024), QUARTER, FEWER, PS, 4, 4096, 2**20, 16000,
                    {512: 32000, 2048: 8000, 8192: 1000}),
    "quick": Scale((32, 64, 128), QUARTER, FEWER, PS, 2, 256, 2**16, 2000,
                   {64: 4000, 128: 4000, 256: 2000}),
    "full": Scale((128, 256, 512, 1024, 2048), lambda p: 45000, GRID, GRID, 8, 8192, 2**20, 45000,
                  {512: 64000, 2048: 64000, 8192: 64000})}

def over(results, points, reference):
    """Mean and spread over `points` (draws, seeds) of loss/reference; one point: its own error."""
    losses = np.array([float(results[point]["loss"]) for point in points]) / reference
    alone = float(results[points[0]]["error"]) / reference
    return losses.mean(), losses.std() if len(points) > 1 else alone

def best(point):
    """The symmetric optimum's loss at the point's own ratio."""
    return theory.optimum(point.ratio, point.p).loss

def lost(point, result):
    """The share of features that died though theory keeps them."""
    return max(0.0, result["dead"].mean() - (1 - kept_fraction(point.ratio, point.p)))

# ----------------------------------------------------------------------- loss over (r, p), symmetry
def trained_at(scale, n_sparse, r, p):
    """The Point of a network at (r, p)."""
    return Point.at("linear", n_sparse, r, p, scale.steps(p))

def rugs_at(scale, n_sparse, r, p, kind="rug"):
    """The Points of forged models, one a draw."""
    return [Point.at(kind, n_sparse, r, p, seed=draw) for draw in range(scale.draws)]

def grid(scale, ratios, ps):
    """All Points of the (r, p) figures: {name: lists of Points, one list a setting}."""
    settings = [(r, p) for r in ratios for p in ps]
    return {f"trained, n_sparse {n}": [[trained_at(scale, n, *at)] for at in settings]
            for n in scale.sizes} | {
        f"rug, n_sparse {train.LARGE}": [rugs_at(scale, train.LARGE, *at) for at in settings]}

def draw_losses(folder, scale, results, along):
    """Loss over Var x along "ratio" at each of PS, or along "p" at each of RATIOS."""
    panels, others = (PS, scale.ratios) if along == "ratio" else (RATIOS, scale.ps)
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.8), sharey=True, layout="constrained")
    curves = {"optimal linear": ("-", "linear", theory.linear_loss),
              "Bayes elementwise": ("-", "bayes", theory.bayes_loss),
              "symmetric theory": ("-", "theory", lambda r, p: theory.optimum(r, p).loss),
              "theory, features dropped": ("--", "theory", dropping_loss)}
    for panel, value in zip(axes.flat, panels):
        fine = np.geomspace(min(others) * 0.9, max(others) * 1.1, 60)
        for name, (style, colour, loss) in curves.items():
            settings = [(x, value) if along == "ratio" else (value, x) for x in fine]
            panel.plot(fine, [loss(*at) / theory.variance(at[1]) for at in settings], style,
                       color=train.COLOURS[colour], label=name)
        groups = grid(scale, others, [value]) if along == "ratio" else grid(scale, [value], others)
        for (name, some), shade in zip(groups.items(), (*SHADES[:len(groups) - 1],
                                                        train.COLOURS["rug"])):
            shares = [over(results, points, theory.variance(points[0].p)) for points in some]
            panel.errorbar([getattr(points[0], along) for points in some], *np.transpose(shares),
                           fmt="^" if "rug" in name else "o", ms=4, color=shade, label=name)
        title = f"p = {value:g}" if along == "ratio" else f"r = {value:g}"
        panel.set(xscale="log", title=title, xlabel=along, ylabel="loss / Var x")
    named = panel.get_legend_handles_labels()
    figure.legend(*named, loc="outside lower center", ncols=4, frameon=False)
    for empty in axes.flat[len(panels):]:
        empty.set_visible(False)
    train.save_figure(figure, f"{folder}/paper-loss-vs-{along}.png")
    lines = []
    for name, some in grid(scale, *((others, PS) if along == "ratio" else (RATIOS, others))).items():
        points = [point for draws in some for point in draws]
        losses = np.array([float(results[point]["loss"]) for point in points])
        died = [lost(point, results[point]) for point in points if point.steps]
        lines.append([name] + [f"{q(losses / [bound(point) for point in points]):.3f}"
                               for bound in (best, lambda point: dropping_loss(point.ratio, point.p))
                               for q in (np.min, np.median, np.max)] + [f"{max(died, default=0):.1%}"])
    train.print_table(["all points: loss over", "theory: least", "median", "most",
                       "with dropping: least", "median", "most", "features lost, most"], lines)

def draw_symmetry(folder, scale, results):
    """Heat maps over (r, p), a row for each n_sparse: how features differ, and ν from a Gaussian.

    White dots: theory drops features there; red crosses: over 1 % died that theory keeps.
    """
    measures = {"std $W_{ii}$ / mean": lambda found: found["a"].std() / abs(found["a"].mean()),
                "std $b_i$": lambda found: found["bias"].std(),
                "std effective bias": lambda found: found["effective_bias"].std(),
                "std $\\sigma_i^2$ / mean": lambda found: (found["sigma"]**2).std()
                / (found["sigma"]**2).mean(),
                "mean $\\Lambda_i$": lambda found: found["lyapunov"].mean(),
                "KS distance of $\\nu_i$": lambda found: found["distance"].mean()}
    points = [[[trained_at(scale, n, r, p) for p in scale.ps] for r in scale.ratios]
              for n in scale.sizes]
    rows = len(scale.sizes)
    figure, axes = plt.subplots(rows, 6, figsize=(14, 2.3 * rows + 1), layout="constrained")
    kept = np.array([[kept_fraction(r, p) for p in scale.ps] for r in scale.ratios])
    lines = []
    for column, (name, measure) in zip(axes.T, measures.items()):
        maps = np.array([[[measure(results[point]) for point in row] for row in size]
                         for size in points])
        limits = max(maps.min(), 1e-4), maps.max()
        for panel, values, size in zip(column, maps, points):
            image = panel.imshow(values, norm=LogNorm(*limits), origin="lower", aspect="auto")
            died = np.array([[lost(point, results[point]) > 0.01 for point in row] for row in size])
            for marked, marker in ((kept < 0.999, "w."), (died, "rx")):
                panel.plot(*np.nonzero(marked)[::-1], marker, ms=5)
            for axis, ticks in ((panel.xaxis, scale.ps), (panel.yaxis, scale.ratios)):
                every = -(-len(ticks) // 6)
                names = [f"{tick:.3g}" for tick in ticks[::every]]
                axis.set_ticks(range(0, len(ticks), every), names, fontsize=7)
        column[0].set_title(name, fontsize=10)
        column[-1].set_xlabel("p")
        bar = figure.colorbar(image, ax=list(column), location="bottom", aspect=12, format="%.2g",
                              ticks=np.geomspace(*limits, 4))
        bar.minorticks_off()
        lines.append([name.replace("$", "")] + [f"{np.median(values[kept > 0.999]):.3f}"
                                                for values in maps])
    for panel, n in zip(axes[:, 0], scale.sizes):
        panel.set_ylabel(f"n_sparse {n}\nratio r")
    train.save_figure(figure, f"{folder}/paper-symmetry.png")
    header = ["median where theory drops no feature; n_sparse", *map(str, scale.sizes)]
    train.print_table(header, lines)

# -------------------------------------------------------------------------- size, distance, starts
def sizes(scale):
    """{(name, setting): lists of Points, one list a size}."""
    def doubling(top):
        return [32 << k for k in range((top // 32).bit_length())]
    return {("trained", at): [[trained_at(scale, n, *at)] for n in doubling(scale.trained_to)]
            for at in SETTINGS} | {
        (kind, at): [rugs_at(scale, n, *at, kind) for n in doubling(top)] for at in SETTINGS
        for kind, top in (("rug", scale.forged_to), ("projector", min(2048, scale.trained_to)))}

def draw_size(folder, scale, results):
    """Loss over theory against n_sparse; ±: rug and projector over draws, trained of sampling."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), sharey=True, layout="constrained")
    lines = []
    for (name, (r, p)), groups in sizes(scale).items():
        panel = axes[SETTINGS.index((r, p))]
        found = [over(results, points, best(points[0])) for points in groups]
        n = [points[0].n_sparse for points in groups]
        panel.errorbar(n, *np.transpose(found), fmt="o-", ms=4, label=name, color=train.COLOURS[name])
        lines.append([f"{name}, r {r}, p {p}", ", ".join(
            f"{size}: {mean:.3f} ± {spread:.3f}" for size, (mean, spread) in zip(n, found))])
        panel.axhline(1, color=train.COLOURS["theory"], lw=1)
        panel.set(xscale="log", yscale="log", xlabel="n_sparse",
                  title=f"r = {r:g}, p = {p:g}; trained {scale.steps(p)} steps")
        panel.set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
    axes[0].set_ylabel("loss / symmetric theory (line)")
    axes[0].legend(frameon=False)
    train.save_figure(figure, f"{folder}/paper-size.png")
    for name, text in lines:
        print(f"{name}, loss over theory at n_sparse {text}")

def distances(scale):
    """{n_sparse: Points of growing budgets} at the first of SETTINGS."""
    return {n: [Point.at("linear", n, *SETTINGS[0], 250 << k)
                for k in range((top // 250).bit_length())] for n, top in scale.longest.items()}

def draw_distance(folder, scale, results):
    """Loss over theory and the skewness of W against steps, each point a training of its own."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    lines = []
    for (n, points), shade in zip(distances(scale).items(), SHADES):
        steps = [point.steps for point in points]
        found = [over(results, [point], best(point)) for point in points]
        skewness = [results[point]["skewness"].mean() for point in points]
        left.errorbar(steps, *np.transpose(found), fmt="o-", ms=4, color=shade, label=f"n_sparse {n}")
        right.plot(steps, skewness, "o-", ms=4, color=shade)
        lines += [[str(n), str(step), f"{mean:.4f} ± {error:.4f}", f"{skew:.2f}"]
                  for step, (mean, error), skew in zip(steps, found, skewness)]
    left.axhline(1, color=train.COLOURS["theory"], lw=1)
    left.set(xscale="log", xlabel="training steps", ylabel="loss / symmetric theory (line)")
    right.set(xscale="log", xlabel="training steps", ylabel="skewness of $W_{ij}$, mean over rows")
    left.legend(frameon=False)
    train.save_figure(figure, f"{folder}/paper-distance.png")
    train.print_table(["n_sparse", "steps", "loss over theory", "skewness"], lines)

def starts(scale):
    """{(kind, p): Points, one a seed}: both starts, each with its own rate."""
    n_sparse = min(256, scale.trained_to)
    return {(kind, p): [Point.at(kind, n_sparse, 0.25, p, scale.start_steps, seed) for seed in (0, 1)]
            for kind in ("linear", "paper") for p in PS}

def draw_starts(folder, scale, results):
    """Dead fraction and loss over theory against p for both starts; ±: two seeds."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 5.4), sharex=True, layout="constrained")
    groups, lines = starts(scale), []
    for kind, name, colour in (("linear", "linear start, peak 60e-3/√n_sparse", "trained"),
                               ("paper", "published start and rate, 3e-3/√n_sparse", "published")):
        some = [groups[kind, p] for p in PS]
        dead = [[100 * results[point]["dead"].mean() for point in points] for points in some]
        dead = np.transpose([np.mean(dead, axis=1), np.std(dead, axis=1)])
        found = [over(results, points, best(points[0])) for points in some]
        above.errorbar(PS, *dead.T, fmt="o-", color=train.COLOURS[colour], label=name)
        below.errorbar(PS, *np.transpose(found), fmt="o-", color=train.COLOURS[colour])
        lines += [[name, f"{p:g}", "{:.1f} ± {:.1f} %".format(*share), "{:.3f} ± {:.3f}".format(*loss)]
                  for p, share, loss in zip(PS, dead, found)]
    below.axhline(1, color=train.COLOURS["theory"], lw=1)
    train.label(below, PS[-1], 1, "symmetric theory", train.COLOURS["theory"], ha="right")
    above.legend(frameon=False)
    above.set(ylabel="dead features, %",
              title=f"r = 0.25, n_sparse {some[0][0].n_sparse}, {scale.start_steps} steps")
    below.set(ylabel="loss / symmetric theory", xscale="log", yscale="log", xlabel="p")
    train.save_figure(figure, f"{folder}/paper-starts.png")
    train.print_table(["start", "p", "dead", "loss over theory"], lines)

# ----------------------------------------------------------------------------------- scaling, rug
def draw_scaling(folder, scale, results):
    """The symmetric optimum over Var x against r/r_c, and its limit law."""
    figure, axes = plt.subplots(figsize=(7.5, 4.6))
    multiples, ps, lines = np.geomspace(0.2, 30, 100), (1e-2, 1e-3, 1e-4, 1e-5, 1e-6), []
    for k, p in enumerate(ps):
        r_c, var = theory.critical_ratio(p), theory.variance(p)
        some = multiples[multiples * r_c < 1]
        axes.plot(some, [theory.optimum(x * r_c, p).loss / var for x in some], label=f"p = {p:g}",
                  color=plt.get_cmap("Blues")(0.35 + 0.13 * k))
        gaps = [theory.optimum(r, p).loss / theory.scaling_loss(r, p) for r in (0.5 * r_c, 3 * r_c)]
        lines.append([f"{p:g}", *(f"{gap:.4f}" for gap in gaps)])
    axes.plot(multiples, [theory.scaling_loss(x * r_c, p) / var for x in multiples], "k--", lw=1.2,
              label="limit p → 0")
    axes.set(xscale="log", xlabel="$r / r_c$, with $r_c = (2/3)\\, p \\ln(1/p)$", ylim=(0, 1.05),
             ylabel="loss / Var x")
    axes.legend(frameon=False)
    train.save_figure(figure, f"{folder}/paper-scaling.png")
    train.print_table(["optimum over limit law, p =", "at 0.5 r_c", "at 3 r_c"], lines)

def draw_rugs(folder, scale, results):
    """W of forged models with several n_dense, and ever smaller corners of one of them."""
    figure = plt.figure(figsize=(8.06, 5.72), dpi=100)  # 256 × 256 pixels each: whole ones a weight
    cases = [(256, n, 256) for n in (8, 32, 128)] + [(512, 64, size) for size in (128, 32, 8)]
    for k, (n_sparse, n_dense, size) in enumerate(cases):
        left, low = 10 + 265 * (k % 3), 10 + 286 * (1 - k // 3)
        axes = figure.add_axes([left / 806, low / 572, 256 / 806, 256 / 572])
        forged, i = forge.persian_rug(n_sparse, n_dense, 0.045, seed=1), np.arange(size)
        largest = 0.75 * np.abs(forged.kernel[1:]).max()
        axes.imshow(forged.kernel[i[:, None] ^ i], cmap=train.RUG_COLOURS.resampled(9),
                    vmin=-largest, vmax=largest, interpolation="nearest")
        corner = "" if size == n_sparse else f", corner of {size}"
        axes.set_title(f"n_sparse {n_sparse}, n_dense {n_dense}{corner}", fontsize=8, pad=4)
        axes.set_axis_off()
    with rug.replacing(f"{folder}/paper-rug.png") as file:
        figure.savefig(file, format="png", facecolor="white", pil_kwargs={"optimize": True})
    plt.close(figure)
    print(f"→ {folder}/paper-rug.png\nn_sparse 512, n_dense 64: {512**2} weights, "
          f"{len(np.unique(forged.kernel))} different values, from the choice of 64 rows.")

def flat(groups):
    """The Points in nested lists."""
    return sum((flat(group) if isinstance(group, list) else [group] for group in groups), [])

FIGURES = {
    "loss-vs-ratio": (lambda scale: flat(grid(scale, scale.ratios, PS).values()),
                      partial(draw_losses, along="ratio")),
    "loss-vs-p": (lambda scale: flat(grid(scale, RATIOS, scale.ps).values()),
                  partial(draw_losses, along="p")),
    "symmetry": (lambda scale: [trained_at(scale, n, r, p) for n in scale.sizes
                                for r in scale.ratios for p in scale.ps], draw_symmetry),
    "size": (lambda scale: flat(sizes(scale).values()), draw_size),
    "distance": (lambda scale: flat(distances(scale).values()), draw_distance),
    "starts": (lambda scale: flat(starts(scale).values()), draw_starts),
    "scaling": (lambda scale: [], draw_scaling),
    "rug": (lambda scale: [], draw_rugs)}

if __name__ == "__main__":
    sweep.run(__doc__, FIGURES, SCALES)
