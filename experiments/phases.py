"""When should features be dropped, and does training find that out?

The theory's loss L*(r) is not convex in r. Below a ratio r*(p), theory.tangent_ratio, it lies above
a straight line to the point (0, Var x): better, then, to keep a fraction r/r* of the features, at
ratio r*, and to answer the mean p/2 for the others. A map holds that against networks trained on
samples and on the theory's own loss (descent.py).

Found, at n_sparse 256: above r* nothing is dropped. At 0.4 r*, where 60 % should be, training drops
54 … 64 %, descent 46 … 54 %. Nearer to r* they don't follow: instead of 20 % at 0.8 r* training
drops 2, 0 and 28 % (p = 0.03, 0.1, 0.3), descent none. That costs little: descent ends at most 3 %
above the predicted loss. Training ends 4 … 52 % below it, as its interference isn't Gaussian.
"""
import math

import numpy as np
from matplotlib.figure import Figure

import rug
import theory
import train
from experiments import descent, sweep
from theory import dropping_loss, kept_fraction, tangent_ratio


def dropped(diagonal, r, p):
    """The share of features whose W_ii is below half of what the theory gives to those it keeps."""
    return np.mean(diagonal < theory.optimum(min(r / kept_fraction(r, p), 1.0), p).a / 2)


PS, MULTIPLES = (0.03, 0.1, 0.3), (0.4, 0.6, 0.8, 1.25, 1.6)  # p, and r over r*(p)
COLOURS = {"trained on samples": train.COLOURS["trained"],
           "descended on the theory": train.COLOURS["theory"]}


def points(scale):
    """The networks to train, {(p, r/r*): sweep.Point}."""
    n_sparse, steps = scale
    return {(p, multiple): sweep.Point.at("linear", n_sparse, multiple * tangent_ratio(p), p, steps)
            for p in PS for multiple in MULTIPLES}


def draw(folder, scale, results):
    """Tables of r*, and of what was dropped and lost; the map."""
    train.print_table(["p", "r*", "r* / r_c"], [
        [f"{p:g}", f"{tangent_ratio(p):.4g}", f"{tangent_ratio(p) / theory.critical_ratio(p):.3f}"]
        for p in (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-5, 1e-10, 1e-100)])
    lines, diagonals, progress = [], {}, train.Progress(len(PS) * len(MULTIPLES), "descent")
    for place, point in points(scale).items():
        p, r, result = point.p, point.ratio, results[point]
        model, losses = descent.descend(point.n_sparse, point.n_dense, p, point.steps)
        sampled = rug.evaluate(model, p, 2**23 // point.n_sparse, seed=1)
        diagonals[place] = result["a"], theory.feature_statistics(model, p).a
        shares = [1 - kept_fraction(r, p), *(dropped(a, r, p) for a in diagonals[place])]
        over = np.array([result["loss"], result["error"], losses[-1], *sampled])
        over /= dropping_loss(r, p)
        lines.append([f"{p:g}", f"{r:.4f}", f"{r / tangent_ratio(p):.2f}",
                      *(f"{share:.2f}" for share in shares), "{:.3f} ± {:.3f}".format(*over[:2]),
                      f"{over[2]:.3f}", "{:.3f} ± {:.3f}".format(*over[3:])])
        progress.show(len(lines), f"p {p:g}, r {r:.3f}")
    train.print_table(["p", "r", "r / r*", "dropped: predicted", "trained", "descended",
                       "loss / predicted: trained", "descended", "and on samples"], lines)
    draw_map(f"{folder}/phases.png", points(scale), diagonals)


def draw_map(path, points, diagonals):
    """Predicted and found shares of dropped features, and histograms of W_ii on both sides of r*.
    diagonals: {(p, r/r*): W_ii of the trained model, of the descended one}."""
    ps, ratios = np.geomspace(0.005, 0.6, 100), np.geomspace(0.01, 1, 200)
    some = np.geomspace(0.005, 0.6, 8)  # r* is smooth in p
    tangents = np.interp(np.log(ps), np.log(some), [math.log(tangent_ratio(p)) for p in some])
    tangents, shades = np.exp(tangents), {"cmap": "viridis", "vmin": 0, "vmax": 1}
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    axes = figure.subplot_mosaic("012;013")
    for k, (name, colour) in enumerate(COLOURS.items()):
        left = axes[str(k)]
        predicted = np.maximum(0, 1 - ratios[:, None] / tangents)
        ground = left.pcolormesh(ps, ratios, predicted, **shades)
        left.loglog(ps, tangents, "w", lw=2)
        left.annotate("r*", (ps[15], tangents[15]), xytext=(-14, 4), textcoords="offset points",
                      color="white")
        for place, point in points.items():
            found = dropped(diagonals[place][k], point.ratio, point.p)
            left.scatter(point.p, point.ratio, 130, found, edgecolors="white", **shades)
        left.set(xlabel="p", ylabel="ratio r", title=f"{name}, n_sparse {point.n_sparse}")
        for panel, side, multiple in (("2", "above", 1.6), ("3", "below", 0.6)):
            axes[panel].hist(diagonals[0.03, multiple][k], np.arange(-0.5, 2.5, 0.04),
                             histtype="step", color=colour, label=name)
            axes[panel].set(xlabel="$W_{ii}$", ylabel="features",
                            title=f"{side} the line: p = 0.03, r = {multiple} r*")
    figure.colorbar(ground, ax=axes["1"], label="dropped: predicted (ground), found (discs)")
    axes["2"].legend(frameon=False, fontsize=8)
    train.save_figure(figure, path)


if __name__ == "__main__":
    sweep.run("phases", __doc__, {"phases": (lambda scale: list(points(scale).values()), draw)},
              {"quick": (256, 1500), "laptop": (512, 2000)})
