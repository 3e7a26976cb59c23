"""What is the loss of a given W, if its interference has the law that it has, not a Gaussian one?

The interference ν_i = Σ_{j≠i} W_ij x_j of feature i is a sum of independent terms. So its moment
generating function is a product, and inverting it by Laplace's formula gives the loss of the
feature, without the Gaussian of theory.py and without a sample.

Found at (r, p) = (0.25, 0.045), with one network of each size: with Gaussian interference, the own
a, b and σ of a trained network of 512 features would have a loss 14 % above the theory's. Its exact
loss is 27 % below it, because its interference leans to the negative side, which ReLU hides. Rugs
have the theory's a, b and σ. Their interference has longer tails on both sides, and so a small
one's loss is above the theory.
"""
import cmath
import math

import numpy as np

import forge
import rug
import theory
import train
from experiments import sweep

RATIO = 0.25
P = 0.045


# ------------------------------------------------------------------------------ 1. The exact loss

def exact_losses(model, p):
    """The loss of each feature, (n_sparse,), from the law of its own interference.

    Row i of W has the diagonal a = W_ii and other weights w_j = W_ij. The loss of feature i is
    E (x_i − ReLU(a x_i + b_i + ν_i))², and `exact_feature` says how it is computed.

    model: one with `.encoder`, `.decoder` and `.bias`, all finite. Raises ValueError for another
    model, and for p outside (0, 1].
    """
    p = theory.fraction("p", p)
    encoder, decoder, bias = (theory.reals("model", part) for part in theory.weights_of(model))
    w = decoder @ encoder.T
    return np.array([exact_feature(w[i, i], bias[i], np.delete(w[i], i), p)
                     for i in range(len(w))])


def exact_loss(model, p):
    """The mean over features of `exact_losses`: what an endless sample would find."""
    return exact_losses(model, p).mean()


@rug.compiled
def exact_feature(a, b, w, p):
    """The loss of a feature with diagonal a, bias b and other weights w, an array.

    Why Laplace? A feature x_j is off with probability 1 − p, and else uniform in [0, 1]. So

        E e^{s w_j x_j} = 1 − p + p (e^{s w_j} − 1)/(s w_j),

    and as the x_j are independent, M(s) = E e^{sν} is the product of these over j. To come from
    exponentials to ReLU, integrate along a line s = c + iτ with a fixed c > 0 (the *shift*):

        ReLU(y)^k = k!/(2πi) ∫ e^{sy} s^{−k−1} ds,        k = 1, 2.

    Put y = a x + b + ν, and average over ν and x. With the averages over a feature that is on,

        G₀ = ∫₀¹ e^{s(au+b)} du,        G₁ = ∫₀¹ u e^{s(au+b)} du,

    the three terms of E (x − ReLU(y))² become

        L = p/3 + (2/π) ∫₀^∞ Re{ M(s) [((1 − p) e^{sb} + p G₀)/s³ − p G₁/s²] } dτ.

    The integral becomes a sum over τ = 0, π/T, 2π/T, …, where the first term counts half. `window`
    says what T and the shift are for. The error is about 1e-9, or 1e-7 T² if single values of ν
    have a probability of their own (3e-5 if besides a = b = 0, which no model here has). Weights
    below 1e-6 in size act by their mean alone: they would lose their digits in e^{s w} − 1.
    """
    small = np.abs(w) < 1e-6
    b += p / 2 * w[small].sum()
    w = w[~small]
    width = window(a, b, w, p)
    shift = 12.5 / width
    step = math.pi / width

    power = np.exp((shift + 0j) * w)  # e^{s w_j}, for the first s
    turn = np.exp(1j * step * w)      # what takes it to the next s
    total = 0.0
    for k in range(2048):
        s = complex(shift, k * step)
        mgf = np.prod(1 - p + p * (power - 1) / (s * w))  # M(s)
        power *= turn
        on, weighted = averages(s, a, b)
        term = mgf * (((1 - p) * cmath.exp(s * b) + p * on) / s**3 - p * weighted / s**2)
        term *= min(1, 2 - k / 1024)  # the second half fades out, or what is left out would ring
        total += term.real if k else term.real / 2

        # Terms fall at least as 1/τ², so all that are to come add up to less than |s term|.
        if abs(s * term) < 1e-14:
            break
    return p / 3 + 2 / width * total


@rug.compiled
def averages(s, a, b):
    """G₀ and G₁ of `exact_feature`: the means of e^{s(au+b)} and u e^{s(au+b)} over u in [0, 1]."""
    y = s * a
    start = cmath.exp(s * b)
    if abs(y) < 1e-3:  # the differences below would cancel: take their series instead
        return start * (1 + y / 2 + y**2 / 6), start * (0.5 + y / 3 + y**2 / 8)
    end = cmath.exp(s * (a + b))
    mean = (end - start) / y
    return mean, (end - mean) / y


@rug.compiled
def window(a, b, w, p):
    """T for `exact_feature`.

    A sum with steps π/T sees y through a window of width 2T: it counts y + 2T, y + 4T, … as if they
    were y, with weights e^{−2cT}, e^{−4cT}, …, and y − 2T, y − 4T, … with the inverse weights. With
    the shift c = 12.5/T the former have weights of e^{−25} and less. The latter are large, but they
    count only where ReLU lets them through, y > 2T.

    So T must be more than y ever is. By Chernoff's bound, ν exceeds `bound(θ)` with a probability
    of at most e^{−25}, for any θ > 0. As θ grows, this bound first falls and then rises, so
    doubling θ finds its least value. T is 1.5 times what y then is at most, or 12.5/θ if that is
    more. (Both numbers were found by trying: the tests compare with closed forms.)
    """
    theta = 1e-16
    while bound(2 * theta, w, p) < bound(theta, w, p):
        theta *= 2
    largest = max(a, 0.0) + b + bound(theta, w, p)
    return max(1.5 * largest, 12.5 / theta, 1e-9)


@rug.compiled
def bound(theta, w, p):
    """(ln M(θ) + 25)/θ. By Chernoff ν exceeds it with a probability of e^{−25} at most."""
    log_mgf = np.log(1 - p + p * np.expm1(theta * w) / (theta * w)).sum()
    return (log_mgf + 25) / theta


# -------------------------------------------------------------------- 2. Trained and forged models

def points(sizes):
    """A trained network of each size."""
    return [sweep.Point.at("linear", n_sparse, RATIO, P, rug.default_steps(P))
            for n_sparse in sizes]


def measure(sizes, found):
    """{name: (Gaussian, exact, sampled, error)} of trained networks and rugs, over the theory."""
    results = {}
    for n_sparse, result in zip(sizes, found.values()):
        results[f"trained, n_sparse {n_sparse}"] = losses_over_theory(sweep.model_of(result))
        results[f"rug, n_sparse {n_sparse}"] = losses_over_theory(
            forge.rug_at(n_sparse, RATIO, P, 0).autoencoder())
    return results


def losses_over_theory(model):
    """The loss if ν were Gaussian, the exact loss, the sampled loss and its error.

    "Gaussian" is what the theory computes from the model's own a, b and σ.
    """
    own = theory.feature_statistics(model, P)
    gaussian = theory.symmetric_loss(own.a, own.effective_bias, own.sigma, P).mean()
    sampled = rug.evaluate(model, P, 2**24 // model.n_sparse, 1)
    return np.array([gaussian, exact_loss(model, P), *sampled]) / theory.optimum(RATIO, P).loss


# ----------------------------------------------------------------------------- 3. What is shown

HEADER = ["loss over theory", "if ν were Gaussian", "exact", "sampled", "±"]


def draw(folder, results):
    """The table, and the same losses as a picture."""
    losses = np.array([*results.values()])  # (models, 4)
    train.print_table(HEADER, [[name, *(f"{x:.4f}" for x in row)]
                               for name, row in zip(results, losses)])

    figure, axes = train.subplots(figsize=(9, 3.6))
    axes.axvline(1)
    for k, marker in enumerate("Dox"):
        axes.plot(losses[:, k], [*results], marker, label=HEADER[k + 1])
    axes.set(xlabel=f"loss over the theory's optimum, r = {RATIO}, p = {P}",
             title="A trained network is better than its a, b and σ")
    axes.legend()
    train.save_figure(figure, f"{folder}/exact.png")


if __name__ == "__main__":
    sweep.run("exact", __doc__, {"quick": (128, 512), "laptop": (512, 2048)},
              {"exact": (points, measure, draw)})
