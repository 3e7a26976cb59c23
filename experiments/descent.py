"""Are a network's large-scale numbers enough to train it? Descend on the loss computed from them.

theory.py's Gaussian loss of a feature depends on the weights through three numbers only: a_i, σ_i
and the effective bias b_i. Its mean over the features is a function of the weights with a gradient
in closed form. Here Adam descends on it, and no sample is drawn. Features may differ in how often
they are on: p is a number or an array (n_sparse,).

Found, with 500 features: at r = 0.25, p = 0.045 the descent ends at the symmetric optimum, and all
features are alike. At r = 0.05, p = 0.03 the features part in two. 43 % are kept, the others are
dropped, and the loss is 6.7 % below that optimum. capacity.py tells why.
"""
import math

import numpy as np

import rug
import theory
import train
from experiments import command


# --------------------------------------------------------------------- The loss and its gradients

def gaussian_slopes(a, b, sigma, p):
    """The derivatives of theory.symmetric_loss by a, b and σ², elementwise.

    With R_k(m) = E ReLU(m + σz)^k and D_k = [R_k(b+a) − R_k(b)]/a, R_k' = k R_{k−1} integrates to

        S = ∫₀¹ u R₁(au+b) du = [R₂(b+a) − D₃/3]/(2a)
        L = p/3 − 2p S + (1−p) R₂(b) + p D₃/3

    and so

        ∂L/∂a = 2p (S − [R₁(b+a) − 2S]/a)
        ∂L/∂b = 2(1−p) R₁(b) + p (D₂ − [2 R₁(b+a) − D₂]/a)

    As ∂R_k/∂σ² is half the second derivative of R_k by m,

        ∂L/∂σ² = (1−p) R₀(b) + p (D₁ − [R₀(b+a) − D₁]/a)

    An |a| below σ/1000 counts as σ/1000, to keep digits. Noise drowns so small a signal anyway.
    """
    a = np.copysign(np.maximum(np.abs(a), 1e-3 * sigma + 1e-12), a)
    on = theory.moments(b + a, sigma)
    off = theory.moments(b, sigma)
    _, d1, d2, d3 = np.subtract(on, off) / a
    s = (on[2] - d3 / 3) / (2 * a)

    # First what a feature adds that is on, then what it adds while it is off.
    by_a = 2 * p * (s - (on[1] - 2 * s) / a)
    by_b = p * (d2 - (2 * on[1] - d2) / a)
    by_b += 2 * (1 - p) * off[1]
    by_square = p * (d1 - (on[0] - d1) / a)
    by_square += (1 - p) * off[0]
    return by_a, by_b, by_square


def gaussian_loss_and_gradients(model, p):
    """The mean of the features' Gaussian losses, and its gradients: (loss, rug.Parameters).

    E_j and D_i are rows of the encoder and the decoder, m_j = p_j/2 and v_j are the mean and the
    variance of feature j. The hidden vector has the mean h = Σ m_j E_j and the covariance matrix
    C = Σ v_j E_jᵀE_j, (n_dense, n_dense). Output i sees of them

        a_i = D_i·E_i
        σ_i² = D_i C D_iᵀ − v_i a_i²
        b_i = bias_i + D_i·h − m_i a_i

    Let α, β and γ be the derivatives of feature i's loss by a_i, b_i and σ_i². The chain rule back,
    with o_i = α_i − 2 γ_i v_i a_i − β_i m_i, is

        ∂L/∂E_j = o_j D_j + 2 v_j E_j Σ_i γ_i D_iᵀD_i + m_j Σ_i β_i D_i
        ∂L/∂D_i = o_i E_i + 2 γ_i D_i C + β_i h
        ∂L/∂bias_i = β_i

    model: one with `.encoder`, `.decoder` and `.bias`. p: a number or an array (n_sparse,). Raises
    ValueError if the model has none of these, and for p outside (0, 1].
    """
    encoder, decoder, bias = theory.weights_of(model)
    n_sparse = len(bias)
    p = np.broadcast_to(rug.probability(p, n_sparse), n_sparse)
    mean = p / 2
    variance = p / 3 - p**2 / 4

    # The three numbers of each feature, and the mean loss.
    hidden_mean = mean @ encoder
    covariance = (variance * encoder.T) @ encoder
    noisy = decoder @ covariance  # row i is D_i C
    a = (decoder * encoder).sum(axis=1)
    noise = (decoder * noisy).sum(axis=1) - variance * a**2
    sigma = np.sqrt(np.maximum(noise, 0))
    b = bias + decoder @ hidden_mean - mean * a
    signal, power = theory.signal_and_power(a, b, sigma, p)
    loss = float(np.mean(p / 3 - 2 * signal + power))

    # Backward. The loss is a mean, and each feature has 1/n_sparse of it.
    alpha, beta, gamma = np.divide(gaussian_slopes(a, b, sigma, p), n_sparse)
    own = (alpha - 2 * gamma * variance * a - beta * mean)[:, None]
    # For the encoder: its own feature, the noise in all outputs, and their means.
    d_encoder = own * decoder
    d_encoder += 2 * variance[:, None] * (encoder @ (gamma * decoder.T @ decoder))
    d_encoder += np.outer(mean, beta @ decoder)
    # For the decoder: the same three.
    d_decoder = own * encoder
    d_decoder += 2 * gamma[:, None] * noisy
    d_decoder += np.outer(beta, hidden_mean)
    return loss, rug.Parameters(d_encoder, d_decoder, beta)


# ------------------------------------------------------------------------------------ The descent

class TheoryTrainer(rug.PlainTrainer):
    """A PlainTrainer whose loss is computed by the theory. It draws no samples."""

    def loss_and_gradients(self):
        """The Gaussian loss, and its gradients times n_sparse / (mean of p).

        Gradients are of the order of p/n_sparse. The factor lifts them far above Adam's ε.
        """
        loss, gradients = gaussian_loss_and_gradients(self.model, self.p)
        scale = self.n_sparse / np.mean(self.p)
        return loss, rug.Parameters(*(scale * gradient for gradient in gradients))


def descend(n_sparse, n_dense, p, steps, report=lambda step, text: None):
    """The model after `steps` steps down its own Gaussian loss, and the losses, (steps,).

    It starts where rug.PlainTrainer does. report(step, text) is called after each step. Raises
    ValueError for steps < 1, and for sizes and p that rug.PlainTrainer does not take.

    The peak rate is a twentieth of the starting weights' standard deviation. Measured at n_sparse
    96 … 512, r 0.05 … 0.5, p 0.01 … 0.3: 1500 steps end within 0.4 % of the optimum, or below it.
    Half that rate is slow at p = 0.01. Adam moves many features alike, and with them the mean
    interference. So twice the rate kills 10 % of the features at (n_sparse, r, p) = (512, 0.05,
    0.03), and six times the rate kills all at (512, 0.5, 0.3).
    """
    trainer = TheoryTrainer(n_sparse, n_dense, p)
    steps = rug.whole_number("steps", steps, 1)
    peak = 0.05 / math.sqrt(n_sparse + n_dense)
    train.train(trainer, rug.learning_rates(steps, peak), report=report)
    return trainer.model, np.array(trainer.losses)


# --------------------------------------------------------------------------------- The experiment

PLACES = (0.25, 0.045), (0.05, 0.03)  # (r, p)


def measure(scale):
    """For each place: the model that was reached, the computed losses, the loss on samples."""
    n_sparse, steps = scale
    results = {}
    for r, p in PLACES:
        progress = train.Progress(steps)
        model, losses = descend(n_sparse, round(r * n_sparse), p, steps, report=progress.show)
        sampled = rug.evaluate(model, p, 2**25 // n_sparse, seed=1)
        results[r, p] = model, losses, sampled
    return results


def draw(folder, results):
    """A table of what was reached, and the losses on the way."""
    lines = []
    figure, axes = train.subplots(figsize=(7, 4))
    for (r, p), (model, losses, sampled) in results.items():
        best = theory.optimum(r, p)
        loss, error = np.divide(sampled, best.loss)
        kept = np.mean(model.diagonal > best.a / 2)
        name = f"r = {r}, p = {p}"
        axes.plot(losses / best.loss, label=name)
        lines.append([name, f"{losses[-1] / best.loss:.4f}", f"{loss:.4f} ± {error:.4f}",
                      f"{kept:.1%}"])

    axes.axhline(1, color="black", label="symmetric optimum")
    axes.legend(frameon=False)
    axes.set(xlabel="step", ylabel="computed loss / symmetric optimum's",
             title="One descent ends at the symmetric optimum, one below it")
    train.save_figure(figure, f"{folder}/descent.png")
    header = ["", "computed loss over theory", "on samples", "features kept"]
    train.print_table(header, lines)


if __name__ == "__main__":
    command.run("descent", __doc__, {"quick": (500, 1500)}, {"descent": (measure, draw)})
