"""What does a given W lose, if its interference has the law that it has, and not a Gaussian one?

The characteristic function of ν_i = Σ_{j≠i} W_ij x_j is a product; inverting it gives the loss of
feature i without a sample. Found at n_sparse 512: a trained network's own a, b, σ would lose 14 %
more than the theory's optimum, but as its interference leans to the negative side, which ReLU
hides, it loses 26 % less. A rug's tails cost it 0.3 % in the draw shown, 3 % on average over draws.
"""
import cmath
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import forge
import rug
import theory
import train
from experiments import sweep

RATIO, P = 0.25, 0.045


def exact_losses(model, p):
    """The loss of each feature, (n_sparse,), from the law of its own interference ν.

    As the x_j are independent, the moment generating function of ν is a product,
        M(s) = E e^{sν} = Π_j [1 − p + p (e^{s w_j} − 1)/(s w_j)],      w_j = W_ij,
    and on a line Re s > 0 Laplace's inversion gives
        E ReLU(m + ν)^k = k!/(2πi) ∫ e^{sm} M(s) s^{−k−1} ds.
    Averaged over x_i, with g₀(y) = ∫₀¹ e^{yu} du and g₁(y) = ∫₀¹ u e^{yu} du, the terms of
    (x_i − ReLU(a x_i + b + ν))² become, with s = c + iτ,
        L = p/3 + (2/π) ∫₀^∞ Re{ M(s) e^{sb} [(1 − p + p g₀(sa))/s³ − p g₁(sa)/s²] } dτ.
    The error is about 1e-9, or 2e-8 T² (T: `exact_feature`) if single values of ν have a
    probability of their own. Weights below 1e-6 act by their mean. model: `.encoder`, `.decoder`,
    `.bias`. Raises ValueError for p outside (0, 1], or unless W is finite and below 1e100.
    """
    p = theory.fraction("p", p)
    encoder, decoder, bias = (theory.reals("model", part) for part in theory.weights_of(model))

    def loss(i):
        w = decoder[i] @ encoder.T
        largest = np.abs(w).max()
        rug.require(largest < 1e100, "model's largest |W_ij|", largest, "below 1e100")
        a, w[i] = w[i], 0.0
        small = np.abs(w) < 1e-6
        return exact_feature(a, bias[i] + p / 2 * w[small].sum(), w[~small], p)

    with rug.one_blas_thread(), ThreadPoolExecutor(rug.cores()) as pool:
        return np.array(list(pool.map(loss, range(len(bias)))))


def exact_loss(model, p):
    """The mean over features of `exact_losses`: what an endless sample would find."""
    return float(exact_losses(model, p).mean())


@rug.compiled
def exact_feature(a, b, w, p):
    """The loss of a feature with diagonal a, bias b and other weights w, as in `exact_losses`.

    The trapezoidal rule with steps of π/T sees ν through a window of width 2T. T is 1.5 times what
    a⁺ + b + ν exceeds with a probability of e⁻²⁵ at most (Chernoff: ν < [ln M(θ) + 25]/θ for any
    θ > 0), or 12.5/θ at the best θ if that is more. With c = 12.5/T the rest counts as little.
    """
    top, best, scale = math.inf, 0.0, max(1.0, abs(a), np.append(w, 0.0).max())
    for k in range(-80, 81):
        theta = 2.0**(k / 2) / scale
        log_mgf = np.log(1 - p + p * np.expm1(theta * w) / (theta * w)).sum()
        bound = b + max(a, 0.0) + (log_mgf + 25) / theta
        if bound < top:
            top, best = bound, theta
    if top <= 0:
        return p / 3  # it never answers
    window = max(1.5 * top, 12.5 / best)
    shift, step, total = 12.5 / window, math.pi / window, 0.0
    power, turn = np.exp((shift + 0j) * w), np.exp(1j * step * w)  # e^{s w}, and on to the next s
    for k in range(2048):  # the frequencies at which ν's characteristic function is computed
        s = complex(shift, k * step)
        mgf = complex(1.0)  # M(s)
        for j in range(len(w)):
            mgf *= 1 - p + p * (power[j] - 1) / (s * w[j])
            power[j] *= turn[j]
        y, on, off = s * a, cmath.exp(s * (a + b)), cmath.exp(s * b)
        if abs(y) > 1e-3:
            g0 = (on - off) / y  # e^{sb} g₀(sa)
            g1 = (on - g0) / y
        else:
            g0, g1 = off * (1 + y / 2 + y**2 / 6), off * (0.5 + y / 3 + y**2 / 8)
        value = (mgf / s**2 * (((1 - p) * off + p * g0) / s - p * g1)).real
        total += value if k else value / 2
    return p / 3 + 2 / window * total


def make(kind, n_sparse, steps):
    """A trained network, a rug, or digons: two features of opposite sign on each hidden unit."""
    if kind == "rug":
        return forge.rug_at(n_sparse, RATIO, P, seed=0).autoencoder()
    if kind == "digons":
        pairs = np.kron(np.eye(n_sparse // 2), [[1], [-1]])
        return rug.Autoencoder(pairs, pairs, np.zeros(n_sparse))
    return sweep.make_model(sweep.Point.at("linear", n_sparse, RATIO, P, steps))[0]


def draw(folder, scale, results):
    """A table of the losses; the density of the interference of 32 features, in units of its σ."""
    (sizes, steps), lines, bins = scale, [], np.arange(-8, 6, 0.2)
    cases = [*((kind, n) for kind in ("trained", "rug") for n in sizes), ("digons", 128)]
    progress = train.Progress(len(cases), "model")
    figure, axes = train.subplots(figsize=(8, 4.4))
    for kind, n_sparse in cases:
        model = make(kind, n_sparse, steps)
        best, own = theory.optimum(model.n_dense / n_sparse, P), theory.feature_statistics(model, P)
        gaussian = theory.symmetric_loss(own.a, own.effective_bias, own.sigma, P).mean()
        loss, error = rug.evaluate(model, P, 2**25 // n_sparse, seed=1)
        computed = best.loss, gaussian, exact_loss(model, P)
        lines.append([f"{kind}, n_sparse {n_sparse}", *(f"{number:.6f}" for number in computed),
                      f"{loss:.6f} ± {error:.6f}", f"{(computed[-1] - loss) / error:+.1f}"])
        progress.show(len(lines), lines[-1][0])
        if n_sparse == max(sizes):
            x = rug.sample(2**15, n_sparse, P, seed=2)
            w = model.decoder[:32] @ model.encoder.T
            np.fill_diagonal(w, 0)
            values = (x @ w.T - P / 2 * w.sum(axis=1)) / own.sigma[:32]
            axes.hist(values.ravel(), bins, density=True, histtype="step",
                      color=train.COLOURS[kind], label=kind)
    train.print_table([f"p {P}, r {RATIO} (digons 0.5)", "theory's optimum",
                       "Gaussian, own a, b, σ", "exact", "sampled", "exact − sampled, in ±"], lines)
    axes.plot(bins, theory.normal_density(bins), color=train.COLOURS["theory"], label="theory")
    axes.set(yscale="log", ylim=(1e-5, 2), xlabel="(ν − mean) / σ", ylabel="density",
             title="Interference: a rug's is Gaussian but for its tails, a trained one leans left")
    axes.legend(frameon=False, title=f"n_sparse {max(sizes)}")
    train.save_figure(figure, f"{folder}/exact.png")


if __name__ == "__main__":
    sweep.run("exact", __doc__, {"exact": (lambda scale: [], draw)},
              {"quick": ((128, 512), 1500), "laptop": ((128, 512, 2048), 4000)})
