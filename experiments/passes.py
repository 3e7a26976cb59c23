"""Looking again: how much of x do the rug's hidden vectors hold, if they are read more than once?

The autoencoder looks once. ReLU decodes feature i from its own pre-activation, and the interference
of the other features is noise to it. But a decoder that has guessed these features can subtract
what they add, and look again: now there is less noise, so it guesses better. This is orthogonal
approximate message passing (Ma, Ping 2017; Rangan, Schniter, Fletcher 2019).

Found: above a threshold in r the loss goes to 0, so the hidden vectors of a large rug hold all of
x. Measured losses follow the prediction within their scatter, down to 1e-17 of Var x. The threshold
is near the critical ratio for small p, and 2.5 times it at p = 0.5. Small rugs need a few more
passes for some samples, and near the threshold a third of the samples of 512 features is not
recovered.

1. One look at a feature     `posterior`: where the posterior mean is computed
2. The prediction            `predicted_losses`, `recovery_ratio`
3. The decoder               `decode`, and `look_again`: where the noise of a pass is measured
4. What is measured          large rugs, smaller ones, a mistaken p, noise in the hidden units
5. Tables and picture
"""
import math
from typing import NamedTuple

import numpy as np

import forge
import rug
import theory
import train
from experiments import command


# --------------------------------------------------------------------- 1. One look at a feature

SILENT = 1e-15  # least deviation of noise: beside 1, less is lost in rounding
REACH = 35      # deviations of noise that float64 can tell the probability of


def posterior(y, s, p):
    """The posterior mean η(y) = E[x | y] for y = x + s z, its derivative η′(y), the density of y.

    z ~ N(0, 1). With f₀ and f₁ the densities of y if the feature is off and if it is on,

        on = p f₁ / ((1 − p) f₀ + p f₁)            the probability that it is on
        M  = m₁ / f₁                               its mean, if on (see `theory.posterior_mass`)
        η  = on M.

    y enters the posterior of x as the factor e^{xy/s²}, hence η′ = Var(x | y)/s². If on, x is
    Gaussian around y, cut to [0, 1]. With α = y/s and β = (y − 1)/s, its variance V obeys

        V/s² = 1 − (α φ(α) − β φ(β))/f₁ − ((φ(α) − φ(β))/f₁)²
        η′   = on V/s² + on (1 − on) M²/s².

    The variance is not E x² − (E x)², which has no digits left if s is small: in units of s all
    stays accurate, for s from SILENT to about 100. y and s: arrays that go together, or numbers.
    Returns three arrays, shaped like y.
    """
    # Noise is never beyond REACH: there f₁ is no longer a number above 0.
    y = np.clip(y, -REACH * s, 1 + REACH * s)
    f1, m1 = theory.posterior_mass(y, s)
    at_0 = theory.normal_density(y / s)        # φ(α)
    at_1 = theory.normal_density((y - 1) / s)  # φ(β)

    # Is it on? The densities are divided by p, which may be tiny.
    off = (1 - p) / p * at_0 / s
    on = f1 / (f1 + off)

    # If so, what is its value?
    mean = m1 / f1
    variance = 1 - (y * at_0 - (y - 1) * at_1) / (s * f1) - ((at_0 - at_1) / f1)**2
    slope = on * variance + on * off / (f1 + off) * (mean / s)**2
    return on * mean, slope, p * (f1 + off)


# ------------------------------------------------------------------------------ 2. The prediction

def mean_slope(s, p):
    """δ(s) = E η′(y) = mmse/s², where mmse is the mean square error of η(y).

    (mmse = p/3 − E η² would lose its digits where it is small.)
    """
    if s > 100:  # so much noise that the best guess is linear in y
        return 1 / (1 + s**2 / theory.variance(p))

    def weighted(y):
        _, slope, density = posterior(y, s, p)
        return slope * density

    return theory.integrate_over_signal(weighted, s, p)


def predicted_losses(r, p, passes):
    """The loss after each of 1 … passes passes, as n_sparse → ∞: a list.

    v is the mean square error that a pass starts from. With v₁ = Var x,

        s² = (1/r − 1) v          the noise of the pass, as in `theory.noise_per_signal`
        L  = δ(s) s²              its loss; that of the first pass is `theory.bayes_loss`
        v  ← L/(1 − δ(s))         the next pass starts from here (see `look_again`).

    In the limit p → 0 at fixed r/r_c this has a closed form. Signals are found if they exceed
    t = s √(2 ln(1/p)), which noise does for few of the silent features. With s² → v/r,
    Var x → p/3 and r_c = (2/3) p ln(1/p),

        t² = (r_c/r) (v/Var x),      L = p ∫₀ᵗ u² du = Var(x) t³  if t < 1,  else Var x.

    For r < r_c the first pass (v = Var x) finds nothing, and no other does. For r > r_c, L/s² → 0
    and the next v is L. Then v/Var x is a power of r_c/r. Its exponents are e₁ = 0 and
    e_{k+1} = (3/2)(1 + e_k), that is e_{k+1} + 3 = (3/2)(e_k + 3). The result is

        L_k/Var x → (r_c/r)^{3 (1.5^k − 1)}.

    ValueError for r or p outside (0, 1], passes < 1.
    """
    r = theory.fraction("r", r)
    p = theory.fraction("p", p)
    v = theory.variance(p)
    losses = []
    for _ in range(rug.whole_number("passes", passes, 1)):
        s = math.sqrt((1 / r - 1) * v)
        delta = mean_slope(s, p) if s > SILENT else 0.0
        losses.append(delta * s**2)
        v = losses[-1] / (1 - delta)
    return losses


def recovery_ratio(p):
    """The smallest r from which the predicted losses go to 0: the maximum of δ(s) over s.

    The next v is less than v if δ s²/(1 − δ) < s² r/(1 − r), that is if δ(s) < r. As the next v
    rises with v (by d(1/mmse)/d(1/s²) = E Var(x|y)²/mmse² ≥ 1), v falls until δ(s) = r, or to 0 if
    no s has that. Larger s than the first pass's can't stop it: there δ ≤ Var x/(Var x + s²), that
    of the linear guess, which is less than r.

    δ(0) = p. For r from p to this ratio hidden vectors still tell x (Wu, Verdú 2010), but not to
    this decoder. In the limit p → 0 of `predicted_losses`, δ = r_c min(t, 1/t²). Its maximum is r_c
    at t = 1. Noise blurs that kink by s = 1/√(2 ln(1/p)), so the limit is met slowly.

    ValueError for p outside (0, 1].
    """
    p = theory.fraction("p", p)

    def slopes(log_s):
        return np.array([mean_slope(s, p) for s in np.exp(log_s)])

    log_s = theory.maximise(slopes, math.log(1e-6), math.log(10), points=60, rounds=3)
    return max(mean_slope(math.exp(log_s), p), p)


# --------------------------------------------------------------------------------- 3. The decoder

def decode(forged, hidden, p, passes):
    """Estimates of x from a rug's hidden vectors alone: a list, (batch, n_sparse) for each pass.

    hidden: (batch, n_dense), of `forged.encode(x)`; encoding in float32 ends progress at 3e-15 of
    Var x. ValueError unless forged is a forge.PersianRug, hidden finite numbers, p in (0, 1] and
    passes ≥ 1.
    """
    rug.require(isinstance(forged, forge.PersianRug), "forged", forged, "a forge.PersianRug")
    hidden = theory.reals("hidden", hidden)
    rug.require(hidden.shape[1:] == (forged.n_dense,), "hidden's shape", hidden.shape,
                f"(batch, {forged.n_dense})")
    p = theory.fraction("p", p)
    return [each.estimate for each in look_again(forged, hidden, p, passes)]


class Pass(NamedTuple):
    """What a pass sees, and what it answers."""

    y: np.ndarray         # x and noise, (batch, n_sparse)
    s: np.ndarray         # the deviation of this noise, (batch, 1)
    estimate: np.ndarray  # E[x | y], (batch, n_sparse)


def look_again(forged, hidden, p, passes):
    """The passes of `decode` themselves: a list of Pass. Two fast transforms each.

    The first guess is x̂ = p/2. Let v be the mean square of the x_i − x̂_i, as good as independent
    for all i, and P = H_Sᵀ H_S / n_sparse, the rug's projector. A pass takes

        d = P (x − x̂)             what the guess does not explain; E ‖d‖² = v n_dense tells v
        y = x̂ + d/r               that is y_i = x_i + s z_i with s² = (1/r − 1) v
        η(y) = E[x | y]           the estimate
        x̂ ← (η − δ y)/(1 − δ)     the next guess; δ is the mean of η′.

    The second line is the look of the autoencoder, taken at x − x̂ in the place of x, so its noise
    is that of `theory.noise_per_signal` with v in the place of Var x. Why is η not the next guess?
    Its error has a part in common with the noise y − x, and would not be fresh noise in the next
    look. By Stein's lemma
    E (η − x)(y − x) = δ s² = mmse. So (η − x) − δ (y − x), which is 1 − δ times the error of the
    next guess, has nothing in common with y − x. That error has the variance mmse/(1 − δ).
    """
    r = forged.n_dense / forged.n_sparse
    guess = np.full((len(hidden), forged.n_sparse), p / 2)
    least = theory.variance(p) / 4
    history = []
    for _ in range(rug.whole_number("passes", passes, 1)):
        # Subtract from the hidden vector what the guess explains; the rest, spread out, is d.
        spread = np.zeros(guess.shape)
        spread[:, forged.rows] = hidden - forged.encode(guess)
        d = forge.walsh_hadamard(spread) / forged.n_sparse

        # Measure the noise of this pass, in each sample. As the rug leaves row 0 of H out, d does
        # not show the mean of x − x̂, and nothing at all of x = 0. So v has a least value.
        v = np.sum(d**2, axis=1, keepdims=True) / forged.n_dense
        v = np.maximum(v, least)
        least = v / forged.n_sparse
        s = np.maximum(np.sqrt((1 / r - 1) * v), SILENT)

        # Look at each feature, and answer its posterior mean.
        y = guess + d / r
        estimate, slope, _ = posterior(y, s, p)
        history.append(Pass(y, s, estimate))

        # Take out what the estimate has in common with the noise. Above the threshold δ is less
        # than r (see `recovery_ratio`), so more than that is chance, and is cut off.
        delta = np.minimum(slope.mean(axis=1, keepdims=True), 0.99 * r)
        guess = (estimate - delta * y) / (1 - delta)
    return history


# ---------------------------------------------------------------------------- 4. What is measured

class Setting(NamedTuple):
    """Rugs whose samples are decoded, and what the decoder does not know."""

    r: float
    p: float
    n_sparse: int = 65536
    passes: int = 12
    samples: int = 1       # of each rug
    p_factor: float = 1.0  # the decoder takes p for this many times what it is
    noise: float = 0.0     # in the hidden units, in units of their root mean square


# Large rugs, for the picture.
LARGE = {
    "r 0.1, p 0.045, 65536 features": Setting(0.1, 0.045),
    "r 0.5, p 0.3, 65536 features": Setting(0.5, 0.3),
    "r 0.25, p 0.045, 65536 features": Setting(0.25, 0.045),
    "r 0.1, p 0.01, 65536 features": Setting(0.1, 0.01),
    "r 0.03, p 0.001, 262144 features": Setting(0.03, 0.001, 262144),
}

# Smaller ones, far above the threshold in r, 0.104, and near it; then with something amiss.
FAR = Setting(0.25, 0.045, 8192, passes=40, samples=4)
NEAR = FAR._replace(r=0.125)
OTHERS = {
    "r 0.25, p 0.045, 8192 features": FAR,
    "r 0.25, p 0.045, 512 features": FAR._replace(n_sparse=512, samples=64),
    "r 0.125, p 0.045, 8192 features": NEAR,
    "r 0.125, p 0.045, 512 features": NEAR._replace(n_sparse=512, samples=64),
    "r 0.25, p 0.045, 8192, p taken twice as large": FAR._replace(p_factor=2.0),
    "r 0.125, p 0.045, 8192, p taken twice as large": NEAR._replace(p_factor=2.0),
    "r 0.25, p 0.045, 8192, hidden noise 0.01": FAR._replace(noise=0.01),
    "r 0.25, p 0.045, 8192, hidden noise 0.1": FAR._replace(noise=0.1),
}
RECOVERED = 1e-6  # a sample is recovered if its loss over Var x is less


def decode_rug(setting, seed):
    """Draw a rug and samples, encode, decode. The loss over Var x: (passes, samples)."""
    forged = forge.rug_at(setting.n_sparse, setting.r, setting.p, seed)
    x = rug.sample(setting.samples, setting.n_sparse, setting.p, seed).astype(float)

    # Spoil the hidden units, if that is asked for.
    hidden = forged.encode(x)
    noise = np.random.default_rng(seed).standard_normal(hidden.shape)
    hidden += setting.noise * np.std(hidden) * noise

    estimates = decode(forged, hidden, setting.p_factor * setting.p, setting.passes)
    losses = [np.mean((estimate - x)**2, axis=1) for estimate in estimates]
    return np.array(losses) / theory.variance(setting.p)


def measure(rugs):
    """The example; {name: (predicted losses, measured ones (rugs, passes, samples))}, all over
    Var x; and several p with the recovery ratio at each."""
    # The example: one hidden vector, read four times.
    forged = forge.rug_at(8192, 0.25, 0.045, seed=0)
    x = rug.sample(1, 8192, 0.045, seed=0).astype(float)
    example = x[0], look_again(forged, forged.encode(x), 0.045, passes=4)

    losses = {}
    settings = LARGE | OTHERS
    progress = train.Progress(len(settings), "setting")
    for name, setting in settings.items():
        predicted = np.array(predicted_losses(setting.r, setting.p, setting.passes))
        measured = np.array([decode_rug(setting, seed) for seed in range(rugs)])
        losses[name] = predicted / theory.variance(setting.p), measured
        progress.show(len(losses), name)

    p = np.geomspace(1e-12, 0.5, 16)
    return example, losses, (p, np.array([recovery_ratio(each) for each in p]))


# -------------------------------------------------------------------------- 5. Tables and picture

EXAMPLE = 242, 5549, 128, 263  # features picked by hand: strong, off, middling, weak


def print_example(x, history):
    """What each pass sees of four features, and what it guesses from that."""
    lines = []
    for i in EXAMPLE:
        looks = [f"{each.y[0, i]:.2f} → {each.estimate[0, i]:.2f}" for each in history]
        lines.append([f"{x[i]:.2f}", *looks])
    lines.append(["noise s", *(f"{each.s[0, 0]:.2f}" for each in history)])
    train.print_table(["x", "pass 1: sees → guesses", "pass 2", "pass 3", "pass 4"], lines)


def print_losses(losses):
    """Measured losses over predicted ones, and how many samples are not recovered."""
    lines = []
    for name, (predicted, measured) in losses.items():
        line = [name]
        over = measured[:, :12].mean(axis=2) / predicted[:12]
        for k in (1, 2, 5, 12):
            line.append(f"{over[:, k - 1].mean():.3g} ± {over[:, k - 1].std():.1g}")
        line += [f"{np.median(measured[:, 11]) / predicted[11]:.2g}",
                 f"{measured[:, -1].mean():.1e}"]
        lost = 100 * np.mean(measured[:, -1] > RECOVERED, axis=1)
        line.append(f"{lost.mean():.0f} ± {lost.std():.0f}")
        lines.append(line)
    train.print_table(["loss over predicted", "pass 1", "pass 2", "pass 5", "pass 12",
                       "median of 12", "loss / Var x at the end", "% not recovered"], lines)
    print("±: how far one rug lies from their mean. The end: pass 12 of the large rugs, else 40.\n"
          f"Not recovered: samples whose loss over Var x is above {RECOVERED} at the end.\n")


def draw(folder, results):
    """Two tables; a picture of the loss against passes, and of the threshold over p."""
    example, losses, (p, ratios) = results
    print_example(*example)
    print_losses(losses)

    figure, (left, right) = train.subplots(1, 2, figsize=(9.5, 4.6))
    for k, name in enumerate(LARGE):
        predicted, measured = losses[name]
        left.plot(range(1, 13), predicted, color=f"C{k}", label=name)
        left.plot(range(1, 13), measured.mean(axis=(0, 2)), "o", color=f"C{k}", mfc="none")
    left.set(xlabel="pass", ylabel="loss / Var x", yscale="log", ylim=(1e-23, 3),
             title="Each pass finds more of x\n(lines: predicted, circles: measured)")
    left.legend(loc="lower left")

    right.plot(p, ratios / p, color="black", label="threshold / p")
    right.plot(p, 2 / 3 * np.log(1 / p), "--", color="black", label="critical ratio $r_c$ / p")
    right.set(xlabel="p", ylabel="r / p", xscale="log", ylim=0,
              title="Above the threshold in r\nthe passes recover x exactly")
    right.legend(loc="lower left")
    train.save_figure(figure, f"{folder}/passes.png")


if __name__ == "__main__":  # scales: rugs of each setting
    command.run("passes", __doc__, {"quick": 8, "laptop": 32}, {"passes": (measure, draw)})
