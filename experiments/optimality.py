"""Is ReLU the best decoder? The paper calls its autoencoder near-optimal among recent proposals.

Those proposals are JumpReLU (Rajamanoharan et al. 2024), top-k (Gao et al. 2024) and batch top-k
(Bussmann et al. 2024). Like ReLU, they answer feature i from its own pre-activation and let most
features be silent. They only differ in which ones. Two questions, and two parts:

`rug`      On a large rug the pre-activation is y = x + s z, with Gaussian z. Each proposal is then
           a straight line above a threshold θ, with 0 below it. ReLU's line has to meet 0 at θ;
           the others may jump. Which line is best, and what does it gain?
`trained`  The same proposals trained from the same start with their own decoders. What is left of
           that gain?

Found, on the rug: ReLU is the best JumpReLU up to a few times the critical ratio r_c. Above that a
jump gains, a factor of 1.8 at r = 0.25, p = 0.001, and more where features are rarer. Trained, at
r = 0.25: no decoder gains anything at p = 0.045, and none gains more than 9 % at p = 0.02, 0.01 and
0.002. A jump on the rug takes 3, 13 and 36 % off there. At 2 r_c ReLU is the best of the four.

1. The best straight line    `best_line`, `line_above`, `jump_loss`, `crossing_ratio`
2. Decoders on a rug         `keep_largest`, `losses`
3. Trained                   `Selective`: `TopK`, `BatchTopK`, `JumpReLU`, by hand
4. What is measured, 5. and drawn
"""
import math
from typing import NamedTuple

import numpy as np

import forge
import rug
import theory
import train
from experiments import command


# ------------------------------------------------ 1. The best straight line above a threshold

def best_line(m, v):
    """(removed, slope, height) of the line slope · w + height that is nearest to x in mean square.

    With m_k = E w^k and v_k = E x w^k over the w that are kept, a line through 0 removes v₁²/m₂
    from the loss E x². What it leaves of v₀, and what the height takes of it, is

        rest = v₀ − v₁ m₁/m₂,    height = rest / (m₀ − m₁²/m₂),    removed = v₁²/m₂ + rest · height.

    The slope follows from the normal equation m₂ slope + m₁ height = v₁.
    """
    rest = v[0] - v[1] * m[1] / m[2]
    height = rest / (m[0] - m[1]**2 / m[2])
    slope = (v[1] - height * m[1]) / m[2]
    removed = v[1]**2 / m[2] + rest * height
    return removed, slope, height


def line_above(theta, s, p):
    """(loss, slope, height) of the best slope · w + height where w = y − θ > 0, with 0 elsewhere.

    For `best_line`, with R_k(m) = E ReLU(m + s z)^k from theory.moments, where R_k' = k R_{k−1},
    and with the difference ΔR_k = R_k(1 − θ) − R_k(−θ),

        m_k = E[w^k; w > 0]   = (1 − p) R_k(−θ) + p ΔR_{k+1}/(k + 1)
        v_k = E[x w^k; w > 0] = p {R_{k+1}(1 − θ)/(k + 1) − ΔR_{k+2}/[(k + 1)(k + 2)]}.

    theta: a number or an array. The loss is exact to about 1e-16 p.
    """
    # `off` and `on` are moments of w at u = 0 and u = 1. An integral over u is a difference.
    off = theory.moments(-theta, s)
    on = theory.moments(1 - theta, s)
    rise = [with_signal - without for with_signal, without in zip(on, off)]
    m = [(1 - p) * off[k] + p * rise[k + 1] / (k + 1)
         for k in range(3)]
    v = [p * (on[1] - rise[2] / 2), p * (on[2] / 2 - rise[3] / 6)]
    removed, slope, height = best_line(m, v)
    return p / 3 - removed, slope, height


def jump_loss(r, p):
    """(loss, θ) of the best JumpReLU: the best straight line above the best threshold, 0 below it.

    The line is the best one for its θ. So, to first order, only those y matter that change sides
    when θ moves: with f the density of y and h the line's height at θ,

        dL/dθ = f(θ) h (2 E[x | y = θ] − h).

    So at the best θ either h = 0, and this is ReLU, as its slope and bias are the best ones, too.
    Or h = 2 E[x | y = θ]: a jump to where the line is as wrong as 0 is. For s > 10 ReLU clips
    nothing, and the linear model is best. Raises ValueError for r or p outside (0, 1].
    """
    s = theory.noise_per_signal(r, p)
    if s > 10:
        return theory.linear_loss(r, p), -p / 2 * (1 / r - 1)

    # At a jump false alarms are as dense as signals, φ(θ/s)/s ≈ p, and θ/s is well below `highest`.
    # No noise is below −10 s, so that θ = −10 s stands for all that are lower. There may be one
    # minimum of each kind, and the grid is fine enough to tell them apart.
    highest = 8 + math.sqrt(-2 * math.log(p))
    theta = s * theory.maximise(lambda t: -line_above(s * t, s, p)[0], -10, highest, 2000, 2)
    loss, _, _ = line_above(theta, s, p)
    return max(float(loss), 0.0), theta


def crossing_ratio(p):
    """The r from which on a jump beats ReLU, by bisection over the noise s.

    It is 1 for p = 1, where no jump does.

    What happens as p → 0? Just above θ, signals 1 + s z fall off like e^{−κw/s}, κ = (θ − 1)/s, and
    false alarms s z like e^{−τw/s}, τ = θ/s. With such moments, and x = 1 for signals, the best
    line removes more than any line through 0 as long as κ/τ < 0.1782. About equally many of both
    pass, so τ² = 2 ln(1/p) + κ², and r/r_c → (1 − κ/τ)/(1 + κ/τ) = 0.6975. That is *below* r_c,
    where both remove about p^0.033 of Var x. Raises ValueError for p outside (0, 1].
    """
    # With so little noise a jump gains, and with so much it does not.
    low = 0.01 * (1 - p)
    high = 0.4
    variance = theory.variance(p)
    for _ in range(30):
        s = (low + high) / 2
        r = variance / (variance + s**2)
        if jump_loss(r, p)[0] < (1 - 1e-9) * theory.optimum(r, p).loss:
            low = s
        else:
            high = s
    return r


# ------------------------------------------------------------------------ 2. Decoders on a rug

ENTRIES = 2**24  # how many features are sampled: samples · n_sparse

def keep_largest(y, x):
    """Top-k: the best straight line of the k largest y of each sample, 0 for the others.

    y, x: pre-activations and features, (batch, n_sparse). The line and k are fitted to them.
    """
    order = np.argsort(-y, axis=1)
    y_ranked = np.take_along_axis(y, order, axis=1)
    x_ranked = np.take_along_axis(x, order, axis=1)

    # The moments of the k largest, for all k from 2 on at once.
    k = np.arange(2, y.shape[1] + 1)
    products = [y_ranked, y_ranked**2, x_ranked, x_ranked * y_ranked]
    sums = [np.cumsum(part.mean(axis=0, dtype=float))[1:] for part in products]
    removed, slope, height = best_line([k, *sums[:2]], sums[2:])

    best = np.argmax(removed)
    kept = y >= y_ranked[:, k[best] - 1, None]
    return np.where(kept, slope[best] * y + height[best], 0)


def losses(y, x, r, p):
    """The loss of each decoder on each sample, {name: (batch,)}.

    y, x: pre-activations and features, (batch, n_sparse). ReLU and JumpReLU are the theory's for
    this r and p, top-k is fitted. Another decoder is another entry of `outputs`.
    """
    best = theory.optimum(r, p)
    theta = jump_loss(r, p)[1]
    _, slope, height = line_above(theta, theory.noise_per_signal(r, p), p)
    outputs = {
        "ReLU": np.maximum(best.a * y + best.b, 0),
        "JumpReLU": np.where(y > theta, slope * (y - theta) + height, 0),
        "top-k": keep_largest(y, x),
    }
    return {name: np.square(output - x).mean(axis=1) for name, output in outputs.items()}


def on_rug(n_sparse, r, p):
    """Losses over ReLU's on one rug, {name: (ratio, error)}, for JumpReLU and top-k.

    All decoders see the same samples.
    """
    forged = forge.rug_at(n_sparse, r, p, seed=0)
    best = theory.optimum(r, p)
    x = rug.sample(ENTRIES // n_sparse, n_sparse, p, seed=1, stream=rug.EVALUATION)
    y = (forged.preactivation(x) - best.b) / best.a  # a rug's pre-activation is a y + b

    # The quotient of two means scatters like loss − ratio · relu.
    found = losses(y, x, r, p)
    relu = found.pop("ReLU")
    ratios = {}
    for name, loss in found.items():
        ratio = loss.mean() / relu.mean()
        scatter = np.std(loss - ratio * relu) / relu.mean()
        ratios[name] = ratio, scatter / math.sqrt(len(x))
    return ratios


# ---------------------------------------------------------------------------------- 3. Trained

class Selective(rug.Autoencoder):
    """f(x) = z where z is kept, 0 elsewhere. ReLU keeps z > 0, a subclass what its `kept` says:
    from z, (batch, n_sparse), it makes a bool array of the same shape.

    Backward is rug.Autoencoder's with [z > 0] replaced by [z is kept]: what is kept passes the
    gradient on, and the others pass none. How the choice itself changes is left out, except where
    a subclass has further parameters for it.
    """

    def kept_in_training(self, z):
        """What is kept in training, where the whole batch can be seen."""
        return self.kept(z)

    def further_gradients(self, z, d_output):
        """Gradients of further parameters, a list; d_output is dL/df, shaped like z."""
        return []

    def forward(self, x):
        """f(x), shaped like x, (batch, n_sparse)."""
        z = self.preactivation(x)
        return z * self.kept(z)

    def loss_and_gradients(self, x):
        """As in rug.Autoencoder: (loss, gradients), in the order of `parameters`."""
        # Forward.
        hidden = x @ self.encoder                # (batch, n_dense)
        z = hidden @ self.decoder.T + self.bias
        kept = self.kept_in_training(z)
        error = z * kept - x
        loss = float(np.mean(error**2, dtype=np.float64))

        # Backward.
        d_output = 2 / error.size * error        # (batch, n_sparse)
        dz = d_output * kept
        d_bias = dz.sum(axis=0)
        d_decoder = dz.T @ hidden
        d_encoder = x.T @ (dz @ self.decoder)
        others = self.further_gradients(z, d_output)
        return loss, type(self.parameters)(d_encoder, d_decoder, d_bias, *others)


class TopK(Selective):
    """Keeps the k largest z of each sample, if they are positive (Gao et al. 2024)."""

    k = 1

    def kept(self, z):
        place = z.shape[1] - self.k
        kth_largest = np.partition(z, place, axis=1)[:, place, None]
        return z >= np.maximum(kth_largest, 0)


class BatchTopK(Selective):
    """Keeps the k · batch largest z of a training batch (Bussmann et al. 2024).

    Afterwards it keeps what is above a fixed threshold: the running mean, over training batches, of
    the smallest z that was kept.
    """

    k = 1
    threshold = 0.0

    def kept(self, z):
        return z >= self.threshold

    def kept_in_training(self, z):
        place = z.size - self.k * len(z)
        smallest = max(float(np.partition(z, place, axis=None)[place]), 0.0)
        self.threshold += 0.01 * (smallest - self.threshold)
        return z >= smallest


class JumpParameters(NamedTuple):
    """rug.Parameters and the thresholds."""

    encoder: np.ndarray
    decoder: np.ndarray
    bias: np.ndarray
    threshold: np.ndarray  # (n_sparse,)


class JumpReLU(Selective):
    """Keeps z > θ, with a threshold θ for each feature (Rajamanoharan et al. 2024).

    For one sample the loss only jumps with θ, so its derivative is 0 or infinite. The loss of many
    samples is smooth: moving θ up by dθ silences the z in (θ, θ + dθ). A window of some width ε
    around θ estimates how many these are, and what they lose,

        dL/dθ ≈ Σ dL/df · (−θ/ε) [|z − θ| < ε/2],

    summed over the samples. Half of the window is silent, so f is θ/2 there on average, and
    −θ dL/df is 2θ (x − θ/2). That is what silencing costs: x² in the place of (θ − x)².
    """

    width = 0.1  # ε

    def __init__(self, encoder, decoder, bias, threshold=0.01):
        super().__init__(encoder, decoder, bias)
        self.threshold = np.full_like(self.bias, threshold)

    @property
    def parameters(self):
        return JumpParameters(self.encoder, self.decoder, self.bias, self.threshold)

    def kept(self, z):
        return z > self.threshold

    def further_gradients(self, z, d_output):
        near = np.abs(z - self.threshold) < self.width / 2
        return [-self.threshold / self.width * (d_output * near).sum(axis=0)]


BATCH = 256  # samples a step
ARCHITECTURES = {"ReLU": rug.Autoencoder, "top-k": TopK, "batch top-k": BatchTopK,
                 "JumpReLU": JumpReLU}


def train_network(name, value, n_sparse, r, p, steps, seed):
    """The loss, on fresh samples, of a network trained with k or kernel width `value`.

    The same seed gives all architectures the same start and the same batches.
    """
    n_dense = round(r * n_sparse)
    start = rug.linear_start(n_sparse, n_dense, p, np.random.default_rng(seed))
    model = ARCHITECTURES[name](*start)
    trainer = rug.PlainTrainer(n_sparse, n_dense, p, BATCH, seed, model)

    # The trainer has its own copy of the model, of which k and the width are no parameters.
    if name == "JumpReLU":
        trainer.model.width = value
    else:
        trainer.model.k = value

    rates = rug.learning_rates(steps, rug.peak_rate(n_sparse, n_dense, p))
    progress = train.Progress(steps, f"r {r:g}, p {p:g}, {name} {value}, step")
    train.train(trainer, rates, report=progress.show)
    return rug.evaluate(trainer.model, p, 2 * ENTRIES // n_sparse, seed=0).loss


# --------------------------------------------------------------------------- 4. What is measured

# `trained`: the size of the networks, and the (r, p) to train at. `rug` is always the same.
SCALES = {
    "quick": (256, [(0.25, 0.02)]),
    "laptop": (512, [(0.25, 0.045), (0.0625, 0.01), (0.25, 0.01), (0.25, 0.002)]),
}

# The p of the first table and of the curves.
PS = 0.5, 0.2, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5

# The rugs to sample: n_sparse, r and p. The last r is 3 r_c. Where features are rare, interference
# is Gaussian only on larger rugs.
RUGS = [(8192, 0.25, 0.03), (8192, 0.25, 0.01), (65536, 0.25, 0.001), (65536, 0.0138, 0.001)]

# Training: k, in units of the mean number of features that are on, and the kernel's width. Both are
# chosen on seed 0 with half of the steps, and the seeds that count are others.
K_FACTORS = 0.9, 1.5, 2.5, 5
WIDTHS = 0.03, 0.1, 0.3
SEEDS = 1, 2


def predictions(p):
    """A line of the first table: what is computed for a large rug at p."""
    critical = theory.critical_ratio(p)
    best = [jump_loss(0.25, p)[0], theory.bayes_loss(0.25, p), theory.oracle_loss(0.25, p)]

    # How far JumpReLU can be from Bayes: the largest quotient along r.
    ratios = critical * np.geomspace(0.5, 20, 30)
    over_bayes = [jump_loss(r, p)[0] / theory.bayes_loss(r, p)
                  for r in ratios if r < 1]
    over_relu = np.divide(best, theory.optimum(0.25, p).loss)
    return [p, crossing_ratio(p) / critical, *over_relu, max(over_bayes)]


def measure_rug(scale):
    """What is predicted for a large rug, one p a row, and what is sampled on some rugs."""
    predicted = np.array([predictions(p) for p in PS])
    samples = {setting: on_rug(*setting) for setting in RUGS}
    return predicted, samples


class Trained(NamedTuple):
    """One architecture, trained at one (r, p)."""

    r: float
    p: float
    name: str
    relu_over_theory: float
    over_relu: float  # loss over trained ReLU's, the mean over seeds
    error: float      # of that mean, from how the seeds scatter
    on_rug: float     # the same ratio on a rug
    scan: dict        # {k or width: loss}, seed 0, half of the steps


def measure_trained(scale):
    """All Trained, one setting after the other."""
    n_sparse, settings = scale
    results = []
    for r, p in settings:
        results += train_at(n_sparse, r, p)
    return results


def train_at(n_sparse, r, p):
    """Choose k and the kernel's width at one (r, p), then train all architectures."""
    steps = rug.default_steps(p)
    ks = [math.ceil(factor * n_sparse * p) for factor in K_FACTORS]
    relu = [train_network("ReLU", 0, n_sparse, r, p, steps, seed) for seed in SEEDS]

    # The same decoders on a large rug. There batch top-k's fixed threshold makes it a JumpReLU.
    best = theory.optimum(r, p).loss
    jump = jump_loss(r, p)[0] / best
    top_k, _ = on_rug(65536 if p < 0.005 else 8192, r, p)["top-k"]

    results = []
    for name, values, forged in [("JumpReLU", WIDTHS, jump), ("batch top-k", ks, jump),
                                 ("top-k", ks, top_k)]:
        scan = {value: train_network(name, value, n_sparse, r, p, steps // 2, 0)
                for value in values}
        chosen = min(scan, key=scan.get)
        found = [train_network(name, chosen, n_sparse, r, p, steps, seed) for seed in SEEDS]
        ratios = np.divide(found, relu)
        error = ratios.std(ddof=1) / math.sqrt(len(SEEDS))
        results.append(Trained(r, p, name, np.mean(relu) / best,
                               ratios.mean(), error, forged, scan))
    return results


# ---------------------------------------------------------------------------------- 5. and drawn

COLOURS = {"JumpReLU": command.COLOURS["jump"], "batch top-k": command.COLOURS["projector"],
           "top-k": command.COLOURS["top-k"], "Bayes": command.COLOURS["bayes"],
           "oracle": command.COLOURS["oracle"]}
MARKERS = {"JumpReLU": "o", "batch top-k": "s", "top-k": "D"}


def draw_rug(folder, results):
    """Two tables; losses against p, and a map of where a jump gains."""
    predicted, samples = results
    print("\nOn a large rug, by formula, at r = 0.25 except where r is named. A jump gains above\n"
          "the ratio r in the second column. The last column is the largest quotient along r.")
    header = ["p", "a jump gains from r/r_c", "JumpReLU / ReLU", "Bayes / ReLU", "oracle / ReLU",
              "JumpReLU / Bayes"]
    lines = [[f"{number:.4g}" for number in line] for line in predicted]
    train.print_table(header, lines)

    lines = []
    for setting, ratios in samples.items():
        line = [f"{number:g}" for number in setting]
        line += [f"{ratio:.3f} ± {error:.3f}" for ratio, error in ratios.values()]
        lines.append(line)
    print("Sampled on one rug each: loss over ReLU's, on the same samples.")
    train.print_table(["n_sparse", "r", "p", "JumpReLU", "top-k"], lines)

    figure, (left, right) = train.subplots(1, 2, figsize=(9.5, 4.2))
    draw_curves(left, predicted, samples)
    draw_map(right, predicted)
    train.save_figure(figure, f"{folder}/optimality.png")


def draw_curves(axes, predicted, samples):
    """Losses over ReLU's against p: predicted as curves, sampled as points."""
    p, _, *curves, _ = predicted.T
    for name, curve in zip(("JumpReLU", "Bayes", "oracle"), curves):
        axes.plot(p, curve, color=COLOURS[name], label=name)
    for name in ("JumpReLU", "top-k"):
        points = [(p, *ratios[name]) for (_, r, p), ratios in samples.items() if r == 0.25]
        axes.errorbar(*zip(*points), fmt=MARKERS[name], color=COLOURS[name],
                      label=f"{name}, sampled")
    axes.set(xscale="log", ylim=(0, 1.4), xlabel="p", ylabel="loss / ReLU's loss",
             title="Decoders on a large rug, r = 0.25")
    axes.legend(frameon=False, ncols=2)


def draw_map(axes, predicted):
    """Where a jump beats ReLU."""
    p = predicted[:, 0]
    crossing = predicted[:, 1]
    axes.plot(p, crossing, color=COLOURS["JumpReLU"])
    axes.text(1e-3, 4, "a jump beats ReLU")
    axes.text(1e-3, 1, "ReLU is the best JumpReLU")
    axes.set(xscale="log", ylim=(0, 5), xlabel="p", ylabel="r / critical ratio $r_c$",
             title="Where a jump beats ReLU, on a large rug")


def draw_trained(folder, results):
    """Trained networks beside the same decoders on a rug: a table and a picture."""
    figure, axes = train.subplots(figsize=(8, 4.4))
    lines = []
    for number, found in enumerate(results):
        scan = [f"{value:g}: {loss:.3g}" for value, loss in found.scan.items()]
        lines.append([f"{found.r:g}", f"{found.p:g}", f"{found.relu_over_theory:.3f}", found.name,
                      f"{found.over_relu:.3f} ± {found.error:.3f}", f"{found.on_rug:.3f}",
                      ", ".join(scan)])

        # Three architectures stand side by side; they are filled if trained, hollow on a rug.
        place = number // 3 + 0.2 * (number % 3 - 1)
        look = {"color": COLOURS[found.name], "marker": MARKERS[found.name], "ls": "none"}
        axes.errorbar(place, found.over_relu, found.error, **look)
        axes.plot(place, found.on_rug, markerfacecolor="none", **look)

    print("\nTrained: loss over trained ReLU's, ± from seed to seed, and the same on a rug. The\n"
          "scan of k, or of the kernel's width, is on another seed, with half of the steps.")
    train.print_table(["r", "p", "ReLU / theory", "decoder", "loss / ReLU's", "on a rug",
                       "k or width: its loss in the scan"], lines)
    axes.axhline(1, color=command.COLOURS["theory"])
    axes.legend(axes.lines[:6:2], MARKERS, frameon=False)
    axes.set_xticks(range(len(results) // 3),
                    [f"r = {found.r:g}\np = {found.p:g}" for found in results[::3]])
    axes.set(ylabel="loss / ReLU's loss", title="Filled: trained, over trained ReLU.\n"
             "Hollow: the same decoder on a large rug, over ReLU on that rug")
    train.save_figure(figure, f"{folder}/optimality-trained.png")


if __name__ == "__main__":
    command.run("optimality", __doc__, SCALES, {"rug": (measure_rug, draw_rug),
                                                "trained": (measure_trained, draw_trained)})
