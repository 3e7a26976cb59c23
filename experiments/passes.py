"""Looking again: the rug's hidden vectors hold all of x, if they are read more than once.

ReLU, like any activation, decodes feature i from its own pre-activation y_i, and takes what others
add to it for noise. A decoder that subtracts what it has found sees less of that, finds more, and
above a critical ratio ends at x itself, by orthogonal approximate message passing (Ma, Ping 2017;
Rangan, Schniter, Fletcher 2019): in two fast transforms a pass for the rug, or for any W.

Found, one rug each: sampled losses follow the prediction over 17 decades, and end by rounding. So
above about r_c hidden vectors lose nothing; what one look leaves is the decoder's doing. At r 0.25,
p 0.045, a p wrong by 2, or √u for u, costs less than a pass (at r 0.12, near the critical 0.104, p
twice as large or √u fail); hidden noise of share e leaves e²/5 of Var x; with v predicted instead
of measured some samples diverge. A trained W's hidden vectors give most samples back, too.
"""
import math

import numpy as np

import forge
import rug
import theory
import train
from experiments import sweep

# ------------------------------------------------------------------------ 1. one pass, one feature
NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)
REACH = 72       # e^(−REACH/2) = 2e-16: no density less than this times its peak counts
SILENT = 1e-150  # noise that counts as none: its square is about the least positive float


def posterior(y, s, p):
    """η(y) = E[x | y] for y = x + s z, its derivative η′, and the density of y; shaped like y.
    The posterior of x is x = 0 with some weight, and else N(y, s²) cut to [0, 1]. Its dependence on
    y is a factor e^{x y/s²}; hence η′(y) = Var(x | y)/s². s may be an array, too; 0 means y = x.
    Raises ValueError if y or s is not finite, s negative, or p outside (0, 1]."""
    p = theory.fraction("p", p)
    y, s = theory.reals("y", y), theory.reals("s", s, 0)
    out = np.empty((3, *y.shape))
    s = np.ascontiguousarray(np.broadcast_to(s, y.shape))
    posterior_loop(p, NODES, WEIGHTS, y.reshape(-1), s.reshape(-1), *out.reshape(3, -1))
    return out


@rug.compiled
def posterior_loop(p, nodes, weights, y, s, mean, slope, density):
    """`posterior` on flat arrays. In units of s, so that nothing over- or underflows."""
    for i in range(len(y)):
        peak = min(max(y[i], 0.0), 1.0)  # where N(y, s²) is highest on [0, 1]
        if s[i] < SILENT:
            mean[i], slope[i], density[i] = peak, 0.0, 0.0
            continue
        # At peak + s t it is ∝ e^{−t (t/2 + beyond)}: integrate as far as that matters.
        beyond, top = min(max((peak - y[i]) / s[i], -1e150), 1e150), peak / s[i]
        far = REACH / (abs(beyond) + math.sqrt(beyond * beyond + REACH))
        low, high = -min(far, top), min(far, (1 - peak) / s[i])
        half, middle = (high - low) / 2, (high + low) / 2
        mass, first, second = 0.0, 0.0, 0.0
        for k in range(len(nodes)):
            t = middle + half * nodes[k]
            weight = weights[k] * math.exp(-t * (t / 2 + beyond))
            mass += weight
            first += weight * nodes[k]
            second += weight * nodes[k] * nodes[k]
        first /= mass
        on_mean = top + middle + half * first
        on_variance = half * half * (second / mass - first * first)
        # (1 − p) f₀(y) and p f₁(y), the densities of y if off and if on, over φ(beyond)/s:
        off = (1 - p) * math.exp(-top * (top - 2 * beyond) / 2)
        on = p * s[i] * half * mass
        odds = min(off / max(on, 1e-300), 1e300)
        share = 1 / (1 + odds)
        mean[i] = share * s[i] * on_mean
        slope[i] = share * (on_variance + odds * share * on_mean * on_mean)
        density[i] = (off + on) / s[i] * math.exp(-beyond * beyond / 2) / math.sqrt(2 * math.pi)


# ------------------------------------------------------------------------------- 2. the prediction

def mean_slope(s, p):
    """δ(s) = E η′(y) = mmse/s². (p/3 − E η² for mmse would lose all digits where it is small.)"""
    return theory.integrate_over_signal(lambda y: np.prod(posterior(y, s, p)[1:], axis=0), s, p)


def state_evolution(r, p, passes):
    """Each pass's (v_k, L_k), the mean square error that it starts from and that of its estimate:
    v₁ = Var x,   s_k² = (1/r − 1) v_k,   L_k = δ(s_k) s_k²,   v_{k+1} = L_k/(1 − δ(s_k))."""
    r = theory.fraction("r", r)
    v, pairs = theory.variance(p), []
    for _ in range(rug.whole_number("passes", passes, 1)):
        s = math.sqrt(1 / r - 1) * math.sqrt(v)
        delta = mean_slope(s, p) if s >= SILENT else 0.0
        pairs.append((v, delta * s * s))
        v = delta * s * s / (1 - delta)
    return pairs


def predicted_losses(r, p, passes):
    """The loss after each of 1 … passes passes, as n_sparse → ∞: a list, by `state_evolution`.

    The first is `theory.bayes_loss`. ValueError for p or r outside (0, 1], passes < 1. In the limit
    p → 0 at fixed r/r_c, signals are found if they exceed t = s √(2 ln(1/p)), as noise does for few
    of the silent features. With s² → v/r, Var x → p/3 and r_c = (2/3) p ln(1/p),
        t² = (r_c/r) (v/Var x),      L = p ∫₀ᵗ u² du = Var(x) t³  if t < 1,  else Var x.
    For r < r_c the first pass (v = Var x) finds nothing, nor does any other. For r > r_c, L/s² → 0
    and v_{k+1} = L_k: the exponents of r_c/r in v_k/Var x are e₁ = 0, e_{k+1} = (3/2) (1 + e_k), or
    e_{k+1} + 3 = (3/2) (e_k + 3), so that L_k/Var x → (r_c/r)^{3 (1.5^k − 1)}.
    """
    return [loss for _, loss in state_evolution(r, p, passes)]


def recovery_ratio(p):
    """The smallest r from which the predicted losses go to 0: the maximum of δ(s) over s.

    v_{k+1} < v_k means δ s²/(1 − δ) < s² r/(1 − r), so δ(s) < r. As v_{k+1} rises with v_k (by
    d(1/mmse)/d(1/s²) = E Var(x|y)²/mmse² ≥ 1), v falls until δ(s) = r, or to 0 if no s has that.
    None above the first pass's has: δ ≤ Var x/(Var x + s²), the linear guess's, is below r there.
    δ(0) = p. For r from p to this ratio, hidden vectors still tell x (Wu, Verdú 2010), but not to
    this decoder. In the limit p → 0 above, δ = r_c min(t, 1/t²), with its maximum r_c at t = 1; as
    noise blurs that kink by s = 1/√(2 ln(1/p)), it is met slowly. ValueError for p outside (0, 1].
    """
    p = theory.fraction("p", p)
    slopes = np.vectorize(lambda log_s: mean_slope(math.exp(log_s), p))
    log_s = theory.maximise(slopes, math.log(1e-6), math.log(10), points=60, rounds=3)
    return max(float(slopes(log_s)), p)


# ---------------------------------------------------------------------------------- 3. the decoder

def decode(forged, hidden, p, passes, variances=None):
    """Estimates of x from a rug's hidden vectors alone: a list, (batch, n_sparse) for each pass.

    hidden: (batch, n_dense), of `forged.encode(x)`; so P x = H_Sᵀ hidden / n_sparse is known, and
    the rest is `look_again`. Encoding in float32 ends progress at 3e-15 of Var x. ValueError unless
    forged is a PersianRug, hidden finite numbers, p in (0, 1], passes ≥ 1, variances one a pass.
    """
    rug.require(isinstance(forged, forge.PersianRug), "forged", forged, "a forge.PersianRug")
    hidden, n_sparse = theory.reals("hidden", hidden), forged.n_sparse
    shaped = hidden.ndim == 2 and len(hidden) > 0 and hidden.shape[1] == forged.n_dense
    rug.require(shaped, "hidden's shape", hidden.shape, f"(batch ≥ 1, {forged.n_dense})")

    def residual(estimate):
        spread = np.zeros(estimate.shape)
        spread[:, forged.rows] = (hidden - forged.encode(estimate)) / n_sparse
        return forge.walsh_hadamard(spread)

    r = np.full(n_sparse, forged.n_dense / n_sparse)
    return look_again(residual, len(hidden), r, np.sqrt(1 / r - 1), p, passes, variances)


def look_again(residual, batch, diagonal, noise, p, passes, variances=None):
    """The passes for any W: a list of estimates (batch, n_sparse). The first starts at x̂ = p/2.

    residual(x̂) = W (x − x̂); diagonal: W_ii; noise: √(Σ_{j≠i} W_ij²)/|W_ii|; both (n_sparse,).
    With v the mean square of the x_i − x̂_i, as good as independent for all i, each pass takes
        d = W (x − x̂)                of E ‖d‖² = v ‖W‖², which tells v
        y = x̂ + d/diagonal           that is y_i = x_i + s_i z_i with s_i = noise_i √v
        η(y) = E[x | y]              the estimate that it returns
        x̂ ← (η − δ y)/(1 − δ)        the one to go on with; δ is the mean of η′.
    For a projector of diagonal r, ‖W‖² = n_sparse r and s² = (1/r − 1) v. By Stein's lemma
    E (η − x)(y − x) = δ s² = mmse, so the new error, ∝ (η − x) − δ (y − x), has nothing left in
    common with the old noise y − x, and the variance mmse/(1 − δ).

    v is measured in each sample: the next pass knows if one went wrong (`variances`: one v a pass
    to believe in instead). Without row 0 of H neither the mean of x − x̂ nor x = 0 show in d, so v
    is at least Var x/4, then 1/n_sparse of the last. δ > r, no use (`recovery_ratio`), is cut off.
    """
    passes = rug.whole_number("passes", passes, 1)
    given = np.shape(variances)
    rug.require(variances is None or given == (passes,), "variances' shape", given, (passes,))
    power = np.sum(np.square(diagonal) * (1 + np.square(noise)))  # ‖W‖²
    most = np.mean(1 / (1 + np.square(noise)))                    # r
    v = theory.variance(p) / 4 * len(diagonal)  # over n_sparse, the first pass's least v
    current, estimates = np.full((batch, len(diagonal)), p / 2), []
    for k in range(passes):
        d = residual(current)
        measured = np.sum(d**2, axis=1, keepdims=True) / power
        v = variances[k] if variances is not None else np.maximum(measured, v / len(diagonal))
        y = current + d / diagonal
        estimate, slope, _ = posterior(y, noise * np.sqrt(v), p)
        estimates.append(estimate)
        delta = np.minimum(slope.mean(axis=1, keepdims=True), most)
        current = (estimate - delta * y) / (1 - delta)
    return estimates


# --------------------------------------------------------------------------- 4. table and picture
R, P, SHOWN = 0.25, 0.045, (1, 2, 3, 5, 12, 40)
COLOURS = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00"
RUGS = ((65536, R, P), (65536, 0.1, 0.01), (65536, 0.5, 0.3), (65536, 0.1, P), (2**20, 0.03, 0.001),
        (512, R, P), (8192, R, P), (2**20, R, P))  # the first, one a colour, are in the picture


def cases(entries):
    """What to print: (name, x, estimates, predicted losses). First RUGS, then what is amiss."""
    for n_sparse, r, p in RUGS:
        forged, batch = forge.rug_at(n_sparse, r, p, seed=1), max(1, entries // n_sparse)
        x = rug.sample(batch, n_sparse, p, seed=2).astype(float)
        yield (f"n_sparse {n_sparse}, r {r:g}, p {p:g}", x, decode(forged, forged.encode(x), p, 12),
               predicted_losses(forged.n_dense / n_sparse, p, 12))
    rng = np.random.default_rng(0)
    x = rug.sample(entries // 2**15, 8192, P, seed=2).astype(float)
    for r in (R, 0.12):
        forged = forge.rug_at(8192, r, P, seed=1)
        believed, _ = zip(*state_evolution(r, P, SHOWN[-1]))
        for name, data, p, share, variances in (
                ("nothing amiss", x, P, 0, None), ("v as predicted", x, P, 0, believed),
                ("p thought twice as large", x, 2 * P, 0, None),
                ("p thought half as large", x, P / 2, 0, None), ("√u for u", x**0.5, P, 0, None),
                *((f"hidden noise {share}", x, P, share, None) for share in (0.001, 0.01, 0.1))):
            hidden = forged.encode(data)
            hidden += share * np.std(hidden) * rng.standard_normal(hidden.shape)
            estimates = decode(forged, hidden, p, SHOWN[-1], variances)
            yield f"n_sparse 8192, r {r:g}, {name}", data, estimates, ()
    model, x = sweep.make_model(sweep.Point.at("linear", 512, R, P, 1500))[0], x.reshape(-1, 512)
    encoder, basis = model.encoder.astype(float), np.linalg.qr(model.encoder.astype(float))[0]
    yield "n_sparse 512, trained: its ReLU", x, [model.forward(x)], ()
    for name, w in (("W", model.decoder @ encoder.T), ("projector", basis @ basis.T)):
        diagonal = np.diag(w)  # w x is W_out hidden, or E (EᵀE)⁻¹ hidden, E the encoder
        noise = np.sqrt(np.sum(w**2, axis=1) - diagonal**2) / np.abs(diagonal)
        known = lambda x_hat: (x - x_hat) @ w.T, len(x), diagonal, noise
        yield f"n_sparse 512, trained: its {name}", x, look_again(*known, P, SHOWN[-1]), ()


def print_losses(entries):
    """The table of losses over Var x, in brackets over the predicted ones; all losses."""
    lines, results = [], []
    for name, x, estimates, predicted in cases(entries):
        print(f"{name} …", flush=True)
        losses = np.array([np.mean((estimate - x)**2, axis=1) for estimate in estimates])
        means, median = losses.mean(axis=1), np.median(losses[-1])
        cells = [f"{loss / np.var(x):.1e}" for loss in means] + [""] * SHOWN[-1]
        for k, loss in enumerate(predicted):
            cells[k] += f" ({means[k] / loss:.2f})"
        lines.append([name, *(cells[k - 1] for k in SHOWN), f"{median / np.var(x):.1e}"])
        results.append(means)
    train.print_table(["loss / Var x", *(f"pass {k}" for k in SHOWN), "median sample"], lines)
    return results


def draw(folder, entries, _):
    """The table, and a picture: loss against passes, loss against r, the threshold against p."""
    figure, (by_pass, by_r, by_p) = train.subplots(1, 3, figsize=(15, 4.6))
    for colour, (n_sparse, r, p), losses in zip(COLOURS, RUGS, print_losses(entries)):
        predicted = np.array(predicted_losses(r, p, 12)) / theory.variance(p)
        by_pass.plot(range(1, 13), predicted, color=colour, label=f"r = {r:g}, p = {p:g}")
        by_pass.plot(range(1, 13), losses / theory.variance(p), "o", color=colour, mfc="none")
    by_pass.set(xlabel="pass", yscale="log", ylim=(1e-18, 3), title="Predicted; sampled: circles")
    ratios = np.geomspace(0.02, 0.99, 80)
    relu = np.array([theory.optimum(r, P).loss for r in ratios]) / theory.variance(P)
    by_r.plot(ratios, relu, "--", color="black", label="one look, ReLU")
    predicted = np.array([predicted_losses(r, P, 10) for r in ratios]) / theory.variance(P)
    for colour, k in zip(COLOURS, (1, 2, 3, 5, 10)):
        by_r.plot(ratios, predicted[:, k - 1], color=colour, label=f"pass {k}")
    by_r.axvline(recovery_ratio(P), color="#666666", ls=":", label="recovery_ratio")
    by_r.set(xlabel="r", xscale="log", yscale="log", ylim=(1e-10, 2), title=f"The same, p = {P:g}")
    p = np.geomspace(1e-12, 0.5, 30)
    by_p.plot(p, [recovery_ratio(each) / each for each in p], label="recovery_ratio")
    by_p.plot(p, 2 / 3 * np.log(1 / p), "--", label="r_c = (2/3) p ln(1/p)")
    by_p.set(xlabel="p", xscale="log", title="From here on x is recovered")
    for axes, ylabel in ((by_pass, "loss / Var x"), (by_r, "loss / Var x"), (by_p, "r / p")):
        axes.set(ylabel=ylabel)
        axes.legend(fontsize=8, loc="lower left")
    train.save_figure(figure, f"{folder}/passes.png")


if __name__ == "__main__":  # scales: entries of x to decode for a line of the table
    sweep.run("passes", __doc__, {"passes": (lambda scale: [], draw)},
              {"quick": 2**18, "laptop": 2**21})
