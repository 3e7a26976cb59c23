"""Are a network's large-scale numbers enough to train it? Descend on the loss computed from them.

theory.py's Gaussian loss of a feature depends on W through a_i, b_i and σ_i alone. Here its mean
over features is differentiated and descended on, without one sample. Found: at r 0.25, p 0.045 it
ends at the symmetric optimum, all features alike, and loses 3 % more on samples at n_sparse 512. At
r 0.05, p 0.03 it splits them in two, keeps 44 % and ends 6.7 % below that optimum (why: phases.py).
"""
import math

import numpy as np

import rug
import theory
import train
from experiments import sweep


def gaussian_slopes(a, b, sigma, p):
    """The derivatives of theory.symmetric_loss by a, b and σ², elementwise.

    With R_k(m) = E ReLU(m + σz)^k and D_k = [R_k(b+a) − R_k(b)]/a, R_k' = k R_{k−1} integrates to
        S = ∫₀¹ u R₁(au+b) du = [R₂(b+a) − D₃/3]/(2a),
        L = p/3 − 2p S + (1−p) R₂(b) + p D₃/3,
        ∂L/∂a = 2p S − 2p [R₁(b+a) − 2S]/a,
        ∂L/∂b = 2(1−p) R₁(b) + p D₂ − 2p [R₁(b+a) − D₂/2]/a,
    and as ∂R_k/∂σ² is half the second derivative by m,
        ∂L/∂σ² = (1−p) R₀(b) + p D₁ − p [R₀(b+a) − D₁]/a.
    An |a| below σ/1000 counts as σ/1000, to keep digits; so small a signal is drowned anyway.
    """
    a = np.copysign(np.maximum(np.abs(a), 1e-3 * sigma + 1e-12), a)
    on = theory.moments(b + a, sigma)
    off = theory.moments(b, sigma)
    d1, d2, d3 = ((above - below) / a for above, below in zip(on[1:], off[1:]))
    signal = (on[2] - d3 / 3) / (2 * a)
    by_a = 2 * p * signal - 2 * p * (on[1] - 2 * signal) / a
    by_b = 2 * (1 - p) * off[1] + p * d2 - 2 * p * (on[1] - d2 / 2) / a
    by_square = (1 - p) * off[0] + p * d1 - p * (on[0] - d1) / a
    return by_a, by_b, by_square


def gaussian_loss_and_gradients(model, p):
    """The mean of the features' Gaussian losses and its derivatives: (loss, rug.Parameters).

    With E the encoder, D the decoder, e = Σ_j E_j and the Gram matrix G = EᵀE (n_dense, n_dense),
        a_i = D_i·E_i,   σ_i² = Var(x) (D_i G D_iᵀ − a_i²),   b_i + μ_i = b_i + (p/2)(D_i·e − a_i).
    The chain rule back from α = ∂L/∂a, β = ∂L/∂b and γ = Var(x) ∂L/∂σ² of each feature reads, with
    o_i = α_i − 2 γ_i a_i − β_i p/2 and H = Σ_i γ_i D_iᵀD_i,
        ∂L/∂E_i = o_i D_i + 2 E_i H + (p/2) Σ_k β_k D_k,
        ∂L/∂D_i = o_i E_i + 2 γ_i D_i G + β_i (p/2) e,          ∂L/∂b_i = β_i.
    model: `.encoder`, `.decoder`, `.bias`. Raises ValueError if it has none or p is outside (0, 1].
    """
    encoder, decoder, bias = theory.weights_of(model)
    variance = theory.variance(p)
    interfering = decoder @ (encoder.T @ encoder)  # D G, (n_sparse, n_dense)
    everything = encoder.sum(axis=0)               # e, (n_dense,)
    a = np.einsum("ij,ij->i", decoder, encoder, dtype=float)
    squares = np.einsum("ij,ij->i", decoder, interfering, dtype=float) - a * a
    sigma = np.sqrt(variance * np.maximum(squares, 0))
    effective_bias = bias + p / 2 * (decoder @ everything - a)

    loss = float(theory.symmetric_loss(a, effective_bias, sigma, p).mean())
    alpha, beta, gamma = gaussian_slopes(a, effective_bias, sigma, p)
    gamma = variance * gamma
    own = alpha - 2 * gamma * a - beta * p / 2

    # All of the mean loss, (n_sparse, 1), and in the weights' own precision.
    own, beta, gamma = ((slope / len(a)).astype(encoder.dtype)[:, None]
                        for slope in (own, beta, gamma))
    d_encoder = (own * decoder + 2 * encoder @ ((gamma * decoder).T @ decoder)
                 + p / 2 * (beta * decoder).sum(axis=0))
    d_decoder = own * encoder + 2 * gamma * interfering + p / 2 * beta * everything
    return loss, rug.Parameters(d_encoder, d_decoder, beta[:, 0])


def descent_rate(n_sparse, n_dense):
    """The peak rate: a twentieth of the starting weights' standard deviation.

    Measured at n_sparse 96 … 512, r 0.05 … 0.5, p 0.01 … 0.3: 1500 steps end within 0.4 % of the
    optimum, or below it. Half as much is slow at p = 0.01. Adam moves many features alike, and with
    them the mean interference: twice as much kills 10 % of the features at (512, 0.05, 0.03), six
    times all at (512, 0.5, 0.3); at 2048, 1500 steps end up to 3 % above the optimum at any rate.
    """
    return 0.05 / math.sqrt(n_sparse + n_dense)


def descend(n_sparse, n_dense, p, steps, seed=0, report=lambda done, text: None):
    """The model after `steps` steps down its own Gaussian loss, and the losses, (steps,).

    It starts where rug.Trainer does. Adam's ε asks for scaling up the gradients, of the order of
    p/n_sparse. report(done, text) is called after each step. ValueError for steps < 1, and for
    sizes, p and seed that rug.PlainTrainer does not take.
    """
    n_sparse = rug.whole_number("n_sparse", n_sparse, 1)
    n_dense = rug.whole_number("n_dense", n_dense, 1, n_sparse)
    p = theory.fraction("p", p)
    steps = rug.whole_number("steps", steps, 1)
    rng = np.random.default_rng(rug.whole_number("seed", seed, 0))

    start = rug.STARTS["linear"](n_sparse, n_dense, p, rng)
    model = rug.Autoencoder(*(array.astype(np.float32) for array in start))
    means = [np.zeros_like(weight) for weight in model.parameters]
    squares = [np.zeros_like(weight) for weight in model.parameters]
    scale = n_sparse / p
    peak = descent_rate(n_sparse, n_dense)
    losses = []
    with rug.one_blas_thread():  # the products are small: more threads would mostly wait
        for step in range(steps):
            loss, gradients = gaussian_loss_and_gradients(model, p)
            lr = rug.learning_rate(step, steps, peak)
            for weight, gradient, mean, square in zip(model.parameters, gradients, means, squares):
                rug.adam(weight, scale * gradient, mean, square, step + 1, lr)
            losses.append(loss)
            report(step + 1, f"loss {loss:.6f}")
    return model, np.array(losses)


def draw(folder, scale, results):
    """Descend at two (r, p): a table of what is reached; the losses on the way, and the W_ii."""
    (n_sparse, steps), lines = scale, []
    figure, (left, right) = train.subplots(1, 2, figsize=(11, 4))
    for ratio, p, colour in ((0.25, 0.045, "#0072b2"), (0.05, 0.03, "#d55e00")):
        name, n_dense = f"r {ratio:g}, p {p:g}", round(ratio * n_sparse)
        model, losses = descend(n_sparse, n_dense, p, steps, report=train.Progress(steps).show)
        best, a = theory.optimum(n_dense / n_sparse, p), theory.feature_statistics(model, p).a
        loss, error = np.divide(rug.evaluate(model, p, 2**25 // n_sparse, seed=1), best.loss)
        dead = rug.dead_features(model, p)
        lines.append([name, f"{best.a:.3f}", f"{a.mean():.3f} ± {a.std():.3f}",
                      f"{np.mean(a > best.a / 2):.1%}", f"{dead.mean():.1%}",
                      f"{losses[-1] / best.loss:.4f}", f"{loss:.4f} ± {error:.4f}"])
        left.plot(losses / best.loss, color=colour, label=name)
        right.hist(a, np.arange(-0.1, 1.5, 0.04), color=colour)
        right.axvline(best.a, color=colour, ls="--", lw=1)
    train.print_table([f"n_sparse {n_sparse}, {steps} steps", "optimum's a", "W_ii ± spread",
                       "kept", "dead", "loss / optimum's: computed", "on samples"], lines)
    left.axhline(1, color=train.COLOURS["linear"], lw=1)
    left.legend(frameon=False)
    left.set(xlabel="step", ylabel="computed loss / symmetric optimum's", title="No sample needed")
    right.set(title="All features alike, or split in two", yscale="log", ylim=(0.7, 2 * n_sparse),
              xlabel="$W_{ii}$ (dashed: the symmetric optimum's a)", ylabel="features")
    train.save_figure(figure, f"{folder}/descent.png")


if __name__ == "__main__":
    sweep.run("descent", __doc__, {"descent": (lambda scale: [], draw)},
              {"quick": (512, 1500), "laptop": (1024, 3000)})
