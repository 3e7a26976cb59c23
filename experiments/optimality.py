"""What one look leaves: ReLU beside the best decoders of a feature's own pre-activation.

The paper calls its autoencoder near-optimal among recently proposed architectures. Those (JumpReLU
and gated: Rajamanoharan et al. 2024; top-k: Gao et al. 2024; batch top-k: Bussmann et al. 2024)
decode feature i from y_i alone, on a large rug y = x + s z, z Gaussian. What they make of y is a
straight line above a threshold θ, else 0: JumpReLU; a gate tied to its magnitude, which is two
thresholds on y; top-k, whose θ moves with the sample or batch; and ReLU, whose line meets 0 at θ.

Found: ReLU is the best JumpReLU up to r = 3.8, 3.3, 2.4, 1.9 r_c at p = 0.1, 0.01, 1e-3, 1e-4.
Above, a jump gains: at r = 0.25 a factor of 1.8 at p = 1e-3, 3.0 at 1e-4. At all r and p JumpReLU
is within 18 % of Bayes, the best elementwise decoder; ReLU within a constant at fixed r/r_c only.
Nothing comes near the oracle, unless p → 0 at fixed r. Top-k's moving θ gains up to 5 % at 3 r_c,
as each sample has its own noise, and costs up to 19 % at r = 0.25, as the number of signals varies.
"""
import math

import numpy as np

import forge
import rug
import theory
import train
from experiments import sweep

# ----------------------------------------------------- 1. the best straight line above a threshold

def best_line(m, v):
    """(removed, slope, height) of the line slope · w + height that is nearest to x in mean square.
    With m_k = E w^k and v_k = E x w^k over the kept w, the normal equations leave E x² − removed,
    removed = v₁²/m₂ + (v₀ − v₁ m₁/m₂)²/(m₀ − m₁²/m₂): by a line through 0, and by its height."""
    rest = v[0] - v[1] * m[1] / m[2]
    height = rest / (m[0] - m[1]**2 / m[2])
    return v[1]**2 / m[2] + rest * height, (v[1] - height * m[1]) / m[2], height


def line_above(theta, s, p):
    """(loss, slope, height) of the best slope · w + height where w = y − θ > 0, with 0 elsewhere.

    For `best_line`, with R_k(m) = E ReLU(m + s z)^k, R_k' = k R_{k−1}, ΔR_k = R_k(1−θ) − R_k(−θ),
        m_k = E[w^k; w > 0] = (1 − p) R_k(−θ) + p ΔR_{k+1}/(k + 1),
        v_k = E[x w^k; w > 0] = p {R_{k+1}(1−θ)/(k + 1) − ΔR_{k+2}/[(k + 1)(k + 2)]}.
    Where little noise is kept, p/3 − removed would have no digits left. But then the line is nearly
    y, so fit what y leaves, x − y = −s z, instead: with f the density of y, by parts over z,
        v₀ = −s² f(θ),    v₁ = −s² m₀,    and E[x²; w < 0] + s² E[z²; w > 0] in place of p/3.
    theta: a number or an array, from −10 s to 30 s; s ≤ 10.
    """
    on, off = theory.moments(1 - theta, s), theory.moments(-theta, s)
    rise = [with_signal - without for with_signal, without in zip(on, off)]
    m = [(1 - p) * off[k] + p * rise[k + 1] / (k + 1) for k in range(3)]
    below, below_one = theory.moments(theta, s), theory.moments(theta - 1, s)
    missed = p * ((below[3] - below_one[3]) / 3 - below_one[2] - below_one[1])
    at_zero, at_one = theory.normal_density(theta / s), theory.normal_density((theta - 1) / s)
    noise = s**2 * (m[0] + (1 - p) * theta / s * at_zero + p * s * (at_one - at_zero))
    density = (1 - p) * at_zero / s + p * (below[0] - below_one[0])
    quiet = s**2 * m[0] < p
    v0 = np.where(quiet, -s**2 * density, p * (on[1] - rise[2] / 2))
    v1 = np.where(quiet, -s**2 * m[0], p * (on[2] / 2 - rise[3] / 6))
    removed, slope, height = best_line(m, (v0, v1))
    return np.where(quiet, missed + noise, p / 3) - removed, slope + quiet, height + quiet * theta


def jump_loss(r, p):
    """(loss, θ) of the best JumpReLU: the best straight line above the best threshold, 0 below it.

    The line is the best one for its θ, so to first order only those y matter that change sides:
    with f the density of y and h the line's height at θ,
        dL/dθ = f(θ) h (2 E[x | y = θ] − h).
    So at the best θ either h = 0, and as the normal equations are those of the best a and b, this
    is ReLU; or h = 2 E[x | y = θ], a jump to where the line is as wrong as 0 is. There may be one
    minimum of each kind. As h → −∞ for θ → −∞, some threshold is better than none, if by less than
    floats can tell: θ = −10 s stands for all below it. For s > 10 the line is the linear model's,
    which meets 0 below that. r = 1 gives loss 0. Raises ValueError for r or p outside (0, 1].
    """
    s = theory.noise_per_signal(r, p)
    if s == 0 or s > 10:
        return theory.linear_loss(r, p), -p / 2 * (1 / r - 1)
    # At a jump false alarms are as dense as signals, φ(θ/s)/s ≈ p: θ/s is well below this bound.
    highest = 8 + math.sqrt(-2 * math.log(p))
    jump = s * theory.maximise(lambda t: -line_above(s * t, s, p)[0], -10, highest, 2000, 2)
    best = theory.optimum(r, p)
    relu = max(-best.b / best.a, -10 * s)
    return min((float(line_above(theta, s, p)[0]), theta) for theta in (jump, relu))


def crossing_ratio(p):
    """The r from which on a jump beats ReLU, by bisection over the noise s; 1 for p = 1: none does.

    p → 0: just above θ, signals 1 + s z fall off like e^{−κw/s}, κ = (θ − 1)/s, and false alarms
    s z like e^{−τw/s}, τ = θ/s. With such moments, and x = 1 for signals, the best line removes
    more than any line through 0 as long as κ/τ < 0.1782. As about equally many of both pass,
    τ² = 2 ln(1/p) + κ², hence r/r_c → (1 − κ/τ)/(1 + κ/τ) = 0.6975. That is *below* r_c, where
    both remove about p^0.033 of Var x. Raises ValueError for p outside (0, 1].
    """
    low, high, variance = 0.01 * (1 - p), 0.4, theory.variance(p)
    for _ in range(30):
        s = (low + high) / 2
        r = variance / (variance + s**2)
        jumps = jump_loss(r, p)[0] < (1 - 1e-9) * theory.optimum(r, p).loss
        low, high = (s, high) if jumps else (low, s)
    return r


# ------------------------------------------------------------------- 2. the same decoders on a rug

def keep_largest(y, x, group):
    """The best straight line of the k largest y of each `group` samples, else 0, for the best k.
    y, x: pre-activations and features, (batch, n_sparse). k and the line are fitted to them."""
    grouped = y.reshape(-1, group * y.shape[1])
    order = np.argsort(-grouped, axis=1)
    ranked = np.take_along_axis(grouped, order, axis=1)
    signal = np.take_along_axis(x.reshape(grouped.shape), order, axis=1)
    y1, y2, x1, xy = (np.cumsum(part.mean(axis=0, dtype=float))[1:] for part in
                      (ranked, ranked**2, signal, signal * ranked))
    removed, slope, height = best_line((np.arange(2, len(y1) + 2), y1, y2), (x1, xy))
    best = np.argmax(removed)  # of k = 2, 3, …: the best k is best + 2
    kept = grouped >= ranked[:, best + 1, None]
    return np.where(kept, slope[best] * grouped + height[best], 0).reshape(y.shape)


def losses(y, x, r, p):
    """The loss of each decoder on each sample, {name: (batch,)}, for pre-activations y and features
    x, both (batch, n_sparse), else ValueError. ReLU, JumpReLU and the posterior means are theory's;
    "one θ" is a JumpReLU fitted to y and x like top-k. To add a decoder, add it to outputs."""
    fine = np.ndim(y) == 2 and np.shape(y) == np.shape(x) and len(y) % 16 == 0
    rug.require(fine, "shapes of y, x", (np.shape(y), np.shape(x)), "(16 m, n_sparse) for both")
    s, best, theta = theory.noise_per_signal(r, p), theory.optimum(r, p), jump_loss(r, p)[1]
    _, slope, height = line_above(theta, s, p)
    grid = np.linspace(y.min(), y.max(), 4000)
    f1, m1 = theory.posterior_mass(grid, s)
    if_on = np.clip(m1 / np.maximum(f1, 1e-300), 0, 1)
    chance = p * f1 / np.maximum((1 - p) * theory.normal_density(grid / s) / s + p * f1, 1e-300)
    outputs = {"ReLU": np.maximum(best.a * y + best.b, 0),
               "JumpReLU": np.where(y > theta, slope * (y - theta) + height, 0),
               "one θ": keep_largest(y, x, len(y)), "batch top-k (16)": keep_largest(y, x, 16),
               "top-k": keep_largest(y, x, 1), "Bayes": np.interp(y, grid, chance * if_on),
               "oracle": np.where(x > 0, np.interp(y, grid, if_on), 0)}
    return {name: np.square(output - x).mean(axis=1) for name, output in outputs.items()}


def sampled(n_sparse, r, p, entries):
    """Losses over ReLU's on one rug, {name: (ratio, standard error)}, and a line of the table."""
    model = forge.rug_at(n_sparse, r, p, seed=0)
    r = model.n_dense / n_sparse
    best = theory.optimum(r, p)
    x = rug.sample(entries // n_sparse, n_sparse, p, seed=1)
    y = (model.preactivation(x) - best.b) / best.a  # in theory.py, a rug outputs ReLU(a y + b)
    found = losses(y, x, r, p)
    relu = found.pop("ReLU")
    line, ratios = [f"{n_sparse}", f"{r:.4g}", f"{p:g}", f"{relu.mean() / best.loss:.3f}"], {}
    for name, loss in {**found, "top-k − one θ": found["top-k"] - found["one θ"]}.items():
        ratio = loss.mean() / relu.mean()
        error = np.std(loss - ratio * relu, ddof=1) / relu.mean() / math.sqrt(len(x))
        predicted = f" ({PREDICTED[name](r, p) / best.loss:.3f})" if name in PREDICTED else ""
        ratios[name] = ratio, error
        line.append(f"{ratio:.4f} ± {error:.4f}{predicted}")
    return ratios, line


# ---------------------------------------------------------------------------- 3. tables and picture
PREDICTED = {"ReLU": lambda r, p: theory.optimum(r, p).loss, "Bayes": theory.bayes_loss,
             "JumpReLU": lambda r, p: jump_loss(r, p)[0], "oracle": theory.oracle_loss}
COLOURS = {"ReLU": train.COLOURS["theory"], "Bayes": train.COLOURS["bayes"], "top-k": "#000000",
           "JumpReLU": sweep.COLOURS["jump"], "oracle": train.COLOURS["oracle"]}
# p and n_sparse: where features are rare, interference is Gaussian only on larger rugs.
SIZES = {0.1: 8192, 0.03: 8192, 0.01: 8192, 0.003: 65536, 0.001: 65536}


def print_factors():
    """Loss over loss as p falls (nan: r > 1, or no digits). Limits at fixed r/r_c = 1/t²: Var x
    (3/4 t² + 1/4 t³) for ReLU, Var x t³ for JumpReLU and Bayes, p s² for the oracle."""
    ps, multiples = (0.4, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-8, 1e-16, 1e-90), [1.5, 2, 3, 5, 10]
    for above, below in (("ReLU", "Bayes"), ("JumpReLU", "Bayes"), ("ReLU", "oracle")):
        lines = []
        for p in ps:
            rs = [0.5, *np.append(multiples, np.geomspace(0.5, 20, 40)) * theory.critical_ratio(p)]
            bounds = [PREDICTED[below](min(r, 1), p) for r in rs]
            factors = [PREDICTED[above](r, p) / bound if bound > 1e-12 * p else math.nan
                       for r, bound in zip(rs, bounds)]
            factors[6:] = [np.nanmax(factors[1:])]
            lines.append([f"{p:g}"] + [f"{factor:.3f}" for factor in factors])
        train.print_table([f"{above} / {below}, p", "r = 0.5", *(f"{m:g} r_c" for m in multiples),
                           "most at 0.5 … 20 r_c"], lines)
    print("Limits: ReLU / Bayes", ", ".join(f"{0.75 * m**0.5 + 0.25:.3f}" for m in multiples),
          "and ½ ln(1/p); JumpReLU / Bayes 1; ReLU / oracle (1/2 + t/6) ln(1/p) and ½ ln(1/p).")
    crossings = [f"{crossing_ratio(p) / theory.critical_ratio(p):.3f} at p = {p:g}" for p in ps]
    print("A jump gains from r/r_c =", ", ".join(crossings) + "; limit 0.6975.")


def draw(folder, scale, results):
    """Tables; losses against p at fixed r and at fixed r/r_c; a map of what a jump gains."""
    entries, side = scale
    figure, (*panels, ground) = train.subplots(1, 3, figsize=(15, 4.6))
    at = {"at r = 0.25": lambda p: 0.25, "at r = 3 $r_c$": lambda p: 3 * theory.critical_ratio(p)}
    progress, lines = train.Progress(len(at) * len(SIZES), "rug"), []
    ps = np.geomspace(1e-8, 0.9, 80)
    for axes, (title, ratio) in zip(panels, at.items()):
        for name, loss in PREDICTED.items():
            factors = [loss(ratio(p), p) / theory.optimum(ratio(p), p).loss for p in ps]
            axes.plot(ps, factors, color=COLOURS[name], label=name)
        for p, n_sparse in SIZES.items():
            ratios, line = sampled(n_sparse, ratio(p), p, entries)
            lines.append(line)
            progress.show(len(lines), f"n_sparse {n_sparse}, p {p:g}")
            for name, marker in zip(("JumpReLU", "Bayes", "oracle", "top-k"), "ooox"):
                axes.errorbar(p, *ratios[name], fmt=marker, ms=5, color=COLOURS[name])
        axes.set(xscale="log", ylim=(0, 1.1), xlabel="p", ylabel="loss / ReLU's", title=title)
    axes.plot([], [], "kx", label="top-k (points: sampled on rugs)")
    axes.legend(frameon=False)
    lines += [sampled(n_sparse, 0.25, 0.01, entries)[1] for n_sparse in (512, 2048, 32768)]
    print("\nLosses over ReLU's, on the same samples of a rug (predicted):")
    train.print_table(["n_sparse", "r", "p", "ReLU / theory", *list(ratios)], lines)
    print_factors()
    ps, rs = np.geomspace(1e-5, 0.95, side), np.geomspace(1e-4, 0.999, side)
    gain = [[jump_loss(r, p)[0] / theory.optimum(r, p).loss for p in ps] for r in rs]
    image = ground.pcolormesh(ps, rs, gain, cmap="Purples_r", vmin=0, vmax=1)
    ground.clabel(ground.contour(ps, rs, gain, [0.5], colors="white"), fmt="½")
    ground.plot(ps, [crossing_ratio(p) for p in ps], "r", label="from here on a jump gains")
    ground.plot(ps, [theory.critical_ratio(p) for p in ps], "k--", label="$r_c$")
    ground.set(xscale="log", yscale="log", ylim=(1e-4, 1), xlabel="p", ylabel="ratio r")
    ground.legend(loc="lower right")
    figure.colorbar(image, ax=ground, label="JumpReLU's loss / ReLU's")
    train.save_figure(figure, f"{folder}/optimality.png")


if __name__ == "__main__":
    sweep.run("optimality", __doc__, {"optimality": (lambda scale: [], draw)},
              {"quick": (2**22, 30), "laptop": (2**24, 60)})
