"""What beats the Persian rug? Weights of the same network that don't treat all features alike.

The theory's optimum is the least loss of a *symmetric* W with Gaussian interference. This chapter
looks at weights outside of that class, forged ones and trained ones:

    digon             two features on one hidden unit, in opposite directions
    priority code     many features on two hidden units: one that is on silences the quieter ones
    forced projector  a random projector with about six strongly negative entries in each row

Copies of a small code make a code of any size, with the same loss. Two codes side by side make a
mixture, and its loss is a mean of theirs. So what a small code reaches, large networks could reach.

Found at r = 0.25, p = 0.045, where the loss of the rug is 0.00486: the priority code has 0.00165.
Trained networks lie between the two, and from 12 features on the larger ones lie higher. At
r = 0.5, p = 0.001 the loss of the rug is 7.6 times that of the best digons. What priority codes
cost is that the slightest noise in the hidden units destroys them.

1. Digons           `tile`, `digons`, `digon_loss`
2. Priority codes   `priority_block`, `priority_code`, `priority_loss`
3. Mixtures         `known_codes`, `envelope`, `mixture_loss`
4. By force         `forced_projector`
5. The chapter      what is measured, tables and pictures
"""
import functools
import math
from numbers import Real

import numpy as np
from matplotlib.colors import ListedColormap, SymLogNorm

import forge
import rug
import theory
import train
from experiments import command, exact, rows, sweep


# --------------------------------------------------------------------------------- 1. Digons

def tile(model, copies):
    """`copies` of a rug.Autoencoder side by side, each on features of its own: the same loss."""
    copies = rug.whole_number("copies", copies, 1)
    encoder = np.kron(np.eye(copies), model.encoder)
    decoder = np.kron(np.eye(copies), model.decoder)
    return rug.Autoencoder(encoder, decoder, np.tile(model.bias, copies))


def digons(n_sparse, c=1.0):
    """The rug.Autoencoder of n_sparse/2 digons, each with W = [[1, −c], [−1/c, 1]] and no bias.

    Raises ValueError for an odd n_sparse, and for c outside (0, 1].
    """
    n_sparse = rug.whole_number("n_sparse", n_sparse, 2)
    rug.require(n_sparse % 2 == 0, "n_sparse of digons", n_sparse, "even")
    c = theory.fraction("c", c)

    # One hidden unit, which the first feature moves up and the second one down.
    encoder = np.array([[1], [-c]])
    decoder = np.array([[1], [-1 / c]])
    return tile(rug.Autoencoder(encoder, decoder, np.zeros(2)), n_sparse // 2)


def digon_loss(p, c=1.0):
    """The loss of `digons`.

    If only one of the two features is on, it is decoded exactly. If both are on, with values u and
    v, the outputs are ReLU(u − c v) and ReLU(v − u/c), so that the errors are min(u, c v) and
    min(v, u/c). For u and v uniform in [0, 1] their mean squares are

        E min(u, c v)² = c²/3 − c³/6,        E min(v, u/c)² = 1/3 − c/6.

    The loss is p² times their mean. Even digons, c = 1, have p²/6. The best, c = 1/3, have 25/27 of
    that. Raises ValueError for p or c outside (0, 1].
    """
    p = theory.fraction("p", p)
    c = theory.fraction("c", c)
    first = c**2 / 3 - c**3 / 6
    second = 1 / 3 - c / 6
    return p**2 * (first + second) / 2


# -------------------------------------------------------------------------- 2. Priority codes

def priority_block(n, separation, closed):
    """Encoder and decoder, both (n, 2), of n ≥ 2 features in two hidden units.

    Column i of W_in turns slowly and shrinks fast, with s = separation:

        e_i = s^((n−1)/2 − i) (cos θ_i, sin θ_i),      θ_i = π i/n,      i = 0 … n − 1.

    Row i of W_out is at a right angle to the column before, d_i ⟂ e_{i−1} (and d_0 ⟂ e_1), and has
    d_i · e_i = 1. Then W_ij = d_i · e_j is

        1                     for j = i
        0                     for the feature before, j = i − 1
        negative, about −s²   for the one before that, j = i − 2, and more so for louder ones
        2/s at most           for the quieter ones, j > i

    So feature i is decoded exactly, up to 2/s, unless one of 0 … i − 2 is on: then its output is 0.
    Three features A, B, C with s = 10 have

        W = [[   1, 0, −0.01],
             [   0, 1,  0.1 ],
             [−100, 0,  1   ]]

    A on silences C. Nothing else is ever disturbed by more than 0.1.

    Closed, for n > 3: the features 0 … n − 2 fill the half-plane, θ_i = π i/(n − 2), and the last
    one points to −π/2. It is at a right angle to the one before and to e_0 as well, so there is one
    feature less that can silence it.
    """
    limit = 10**(300 / n)
    fits = isinstance(separation, Real) and 1 < separation < limit
    rug.require(fits, "separation", separation, f"a number above 1 and below {limit:.4g}")

    i = np.arange(n)
    angle = np.pi * i / n
    if closed:
        angle = np.pi * i / (n - 2)
        angle[-1] = -np.pi / 2

    # Rounded, so that the sine of π is exactly 0: scales are so far apart that the usual 1e-16 in
    # its place would be heard.
    cosine = np.cos(angle)
    sine = np.sin(angle).round(15)
    scale = float(separation)**((n - 1) / 2 - i)
    direction = np.stack([cosine, sine], axis=1)
    encoder = scale[:, None] * direction

    # The direction of the feature before, turned by a right angle, and then d_i · e_i = 1.
    turned = np.stack([-sine, cosine], axis=1)
    before = np.append(1, i[:-1])
    decoder = turned[before]
    decoder /= np.sum(decoder * encoder, axis=1, keepdims=True)
    return encoder, decoder


def priority_code(n_sparse, n_dense, separation=100, closed=False):
    """The rug.Autoencoder of n_dense // 2 priority blocks, which share the features evenly.

    If n_dense is odd, a hidden unit is left over: it gets a digon, or one feature if n_dense =
    n_sparse. Raises ValueError for n_dense outside 2 … n_sparse (1 … n_sparse if n_sparse ≤ 2), and
    for a separation that is not above 1 or too large for float64.
    """
    n_sparse = rug.whole_number("n_sparse", n_sparse, 1)
    n_dense = rug.whole_number("n_dense", n_dense, 2 if n_sparse > 2 else 1, n_sparse)
    alone = n_dense % 2 * min(2, n_sparse - n_dense + 1)  # features on the hidden unit left over

    # Each block has its own features and its own two hidden units.
    encoder = np.zeros((n_sparse, n_dense))
    decoder = np.zeros((n_sparse, n_dense))
    for k, block in enumerate(rug.shares(n_sparse - alone, n_dense // 2)):
        n = block.stop - block.start
        hidden = slice(2 * k, 2 * k + 2)
        weights = priority_block(n, separation, closed and n > 3)
        encoder[block, hidden], decoder[block, hidden] = weights

    # The hidden unit left over.
    ends = np.array([1, -1])[:alone]
    encoder[n_sparse - alone:, -1] = ends
    decoder[n_sparse - alone:, -1] = ends
    return rug.Autoencoder(encoder, decoder, np.zeros(n_sparse))


def priority_loss(r, p, closed=False):
    """The loss of `priority_code` for large separations and even n_dense.

    A block has n = 2/r features. Feature i is lost if one of the features 0 … i − 2 is on. This has
    the probability S_{i−1} for i ≥ 1, and S_0 = 0 for i = 0. Else it is exact:

        L = (p/3) (S_0 + S_0 + S_1 + … + S_{n−2}) / n,        S_k = 1 − (1 − p)^k.

    The last feature of a closed block, n > 3, has S_{n−3} in the place of S_{n−2}. If 2/r is no
    whole number, there are blocks of the two sizes next to it. As p → 0 at fixed κ = r/p,

        L → Var x [1 − (κ/2) (1 − e^{−2/κ})],

    without a critical ratio. Raises ValueError for r or p outside (0, 1].
    """
    p = theory.fraction("p", p)
    r = theory.fraction("r", r)
    n, share_of_larger = divmod(2 / r, 1)
    smaller = silenced(n, p, closed)
    larger = silenced(n + 1, p, closed)
    lost = smaller + share_of_larger * (larger - smaller)
    return p / 3 * lost * r / 2


def silenced(n, p, closed):
    """How many features of a block of n are silenced, on average: S_0 + S_0 + S_1 + … + S_{n−2}.

    The geometric series gives (n − 1) − (1 − (1 − p)^{n−1})/p, in floats with an error of 1e-16 n.
    """
    log_off = math.log1p(-min(p, 1 - 1e-16))
    total = n - 1 + math.expm1((n - 1) * log_off) / p
    if closed and n > 3:
        total -= p * math.exp((n - 3) * log_off)  # S_{n−2} − S_{n−3}
    return total


# -------------------------------------------------------------------------------- 3. Mixtures

@functools.cache
def known_codes(p):
    """All codes that can be mixed, a list of (kind, ratio, loss).

    "drop" is features that are answered by their mean, "identity" is features with a hidden unit of
    their own. Paired rugs are those of rows.py, with the largest ρ that r allows.
    """
    codes = [("drop", 0, theory.variance(p)),
             ("digon", 0.5, digon_loss(p, c=1 / 3)),
             ("identity", 1, 0)]
    # The corners of the priority codes' curve are at whole numbers of features in a block.
    for n in range(3, 101):
        loss = priority_loss(2 / n, p, closed=True)
        codes.append(("priority", 2 / n, loss))
    for r in np.geomspace(0.01, 0.98, 60):
        codes.append(("rug", r, theory.optimum(r, p).loss))
        paired = rows.paired_loss(r, p, rho=min(1, 1 / r - 1))
        codes.append(("paired", r, paired.loss))
    return codes


def envelope(r, codes):
    """The least loss at ratio r of a mixture of two codes, and their kinds, larger share first.

    codes: a list of (kind, ratio, loss). If a share q of the features is in the second code, ratio
    and loss of the mixture are means with the weights 1 − q and q. So all mixtures of two codes lie
    on a straight line over the ratio, and the best of all lines are the lower convex envelope.

    Raises ValueError for r beyond the ratios of the codes.
    """
    mixtures = []
    for first, low, first_loss in codes:
        for second, high, second_loss in codes:
            if low <= r <= high and low < high:
                share = (r - low) / (high - low)
                loss = first_loss + share * (second_loss - first_loss)
                kinds = [first, second] if share < 0.5 else [second, first]
                mixtures.append((loss, kinds))
    return min(mixtures)


def mixture_loss(r, p):
    """The loss of the best mixture of known codes."""
    return envelope(r, known_codes(p))[0]


# -------------------------------------------------------------------------------- 4. By force

ENTRY = -0.52  # W_ij of neighbours over W_ii. At r = 1/4 no projector has six below −0.7 in a row
ROUNDS = 100


def forced_projector(n_sparse, n_dense, p, seed):
    """The rug.Autoencoder of a projector with about six strongly negative entries in each row.

    Trained networks have such rows. Here they are made by alternating projection: write the wanted
    numbers into a matrix, take the nearest projector, and repeat. Which features are neighbours is
    random. b is the theory's, and so nearly are a and σ: the diagonal of the projector is nearly r.
    """
    rng = np.random.default_rng(seed)
    r = n_dense / n_sparse

    # Neighbours on three random rings through all features: six of each feature.
    neighbours = np.zeros((n_sparse, n_sparse), bool)
    for _ in range(3):
        ring = rng.permutation(n_sparse)
        neighbours[ring, np.roll(ring, 1)] = True
    neighbours |= neighbours.T

    # The projector nearest to a symmetric matrix is the one on its top eigenvectors.
    basis = np.linalg.qr(rng.standard_normal((n_sparse, n_dense))).Q
    for _ in range(ROUNDS):
        projector = basis @ basis.T
        projector[neighbours] = ENTRY * r
        np.fill_diagonal(projector, r)
        basis = np.linalg.eigh(projector).eigenvectors[:, -n_dense:]

    # The theory's a and b, and for each feature the bias that makes b its effective bias.
    best = theory.optimum(r, p)
    decoder = best.a / r * basis
    diagonal = (decoder * basis).sum(axis=1)
    mean_interference = p / 2 * (decoder @ basis.sum(axis=0) - diagonal)
    bias = best.b - mean_interference
    return rug.Autoencoder(basis, decoder, bias)


# ------------------------------------------------------------------------------ 5. The chapter

P = 0.045    # of most of what follows, with r = 0.25
RARE = 0.01  # a second p

# What is trained, at both p: n_sparse and n_dense.
TRAINED = [
    (8, 2), (12, 3), (16, 4),
    (64, 16), (128, 32), (512, 128),
    (16, 2), (16, 8)]

# Of the map; the ratios of the curves, too.
PS = np.geomspace(1e-3, 0.9, 16)
RATIOS = 0.5 * 1.08**np.arange(-41, 9)  # from 0.02 to 0.93
KINDS = ["priority", "digon", "paired", "rug"]

CURVES = {"linear": ("optimal linear", theory.linear_loss),
          "theory": ("rug, with features dropped", theory.dropping_loss),
          "bayes": ("Bayes elementwise on the rug", theory.bayes_loss),
          "priority": ("priority code", priority_loss),
          "mixture": ("best mixture", mixture_loss)}


def points(sizes):
    """All networks to train."""
    chosen = []
    for p in (P, RARE):
        steps = rug.default_steps(p)
        for n_sparse, n_dense in TRAINED:
            for seed in range(5 if n_sparse < 100 else 1):
                point = sweep.Point.at("linear", n_sparse, n_dense / n_sparse, p, steps, seed)
                chosen.append(point)
    return chosen


def measure(sizes, found):
    """Losses of the networks in `found` and of forced projectors with n_sparse in `sizes`; two
    codes of the same size to look at; the map of what wins."""
    # All losses are computed from the weights, without the Gaussian and without samples.
    trained = {}
    for point, result in found.items():
        loss = exact.exact_loss(sweep.model_of(result), point.p)
        trained.setdefault(point[1:4], []).append(loss)

    forced = {}
    for n in sizes:
        setting = n, n // 4, P
        for seed in range(2):
            model = forced_projector(*setting, seed)
            loss = exact.exact_loss(model, P)
            forced.setdefault(setting, []).append(loss)

    # A trained and a forged code of one size.
    point = sweep.Point.at("linear", 12, 0.25, P, rug.default_steps(P))
    blocks = {"12 features in 3 hidden units, trained": sweep.model_of(found[point]),
              "A forged priority code of the same size": priority_code(12, 3, separation=10)}
    return {
        "trained": trained, "forced": forced,
        "blocks": blocks, "map": winners()}


def noise_gain(model, p):
    """How much stronger noise is in the pre-activations z than it was in the hidden units h.

    Let each hidden unit have noise of δ times their root mean square. On average over the outputs,
    the noise of z then has the variance (δ²/(n_dense n_sparse)) E‖h‖² ‖W_out‖². As E‖h‖² is Var x
    ‖W_in‖² or more, the deviation is at least δ times

        √(Var x/(n_dense n_sparse)) ‖W_in‖ ‖W_out‖  ≥  √(Var x/(n_dense n_sparse)) ‖W‖_*,

    where ‖W‖_* is the nuclear norm, the sum of the singular values: it is the least of
    ‖W_in‖ ‖W_out‖ over all ways to write W as a product. This last number is returned.
    """
    nuclear = np.linalg.norm(model.decoder @ model.encoder.T, "nuc")
    return nuclear * math.sqrt(theory.variance(p) / model.encoder.size)


def winners():
    """(kind, gain) over RATIOS and PS. kind: which code is the larger part of the best mixture, as
    its place in KINDS. gain: the loss of the rug over that of the mixture."""
    kind, gain = np.empty((2, len(RATIOS), len(PS)))
    for i, r in enumerate(RATIOS):
        for j, p in enumerate(PS):
            loss, mixed = envelope(r, known_codes(p))
            # Dropped features, and those with a hidden unit of their own, are no code.
            winning = [name for name in mixed if name in KINDS]
            kind[i, j] = KINDS.index(winning[0])
            gain[i, j] = theory.dropping_loss(r, p) / loss
    return kind, gain


def draw(folder, results):
    """The tables and pictures."""
    print_losses("trained", results["trained"])
    print_losses("forced", results["forced"])
    draw_losses(f"{folder}/codes.png", results["trained"])
    draw_map(f"{folder}/codes-map.png", *results["map"])
    draw_block(f"{folder}/codes-block.png", results["blocks"])


def print_losses(title, losses):
    """A table of losses, {(n_sparse, n_dense, p): of all seeds}, beside the rug's."""
    lines = []
    for (n_sparse, n_dense, p), seeds in losses.items():
        # Seeds may end in different places, so the median stands for them.
        median = np.median(seeds)
        over = median / theory.dropping_loss(n_dense / n_sparse, p)
        lines.append([f"{n_sparse} in {n_dense}, p {p}", f"{median:.6f}",
                      f"{min(seeds):.6f} … {max(seeds):.6f}", f"{over:.3f}"])
    train.print_table([title, "median loss", "all seeds", "median over rug"], lines)


def draw_losses(path, trained):
    """Loss against r at two p, {(n_sparse, n_dense, p): losses of trained networks}."""
    figure, both = train.subplots(1, 2, figsize=(9.5, 5))
    figure.suptitle("The rug is not the best code. Circles: trained networks; diamond: digons")
    for axes, p in zip(both, (P, RARE)):
        for kind, (name, loss) in CURVES.items():
            values = [loss(r, p) for r in RATIOS]
            style = "--" if kind == "mixture" else "-"
            colour = command.COLOURS[kind]
            axes.loglog(RATIOS, values, style, color=colour, label=name)
        axes.plot(0.5, digon_loss(p, c=1 / 3), "D", color=command.COLOURS["digon"])

        # One circle for each seed.
        for (n_sparse, n_dense, at), seeds in trained.items():
            if at == p:
                ratio = [n_dense / n_sparse] * len(seeds)
                colour = command.COLOURS["trained"]
                axes.plot(ratio, seeds, "o", mfc="none", color=colour)
        axes.set(title=f"p = {p}", xlabel="ratio r", ylabel="loss per feature")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    train.save_figure(figure, path)


def draw_map(path, kind, gain):
    """What wins at each (r, p), and by how much."""
    print(f"On the map the loss of the rug is at most {gain.max():.2f} times the best mixture's.")
    figure, axes = train.subplots(figsize=(7.5, 5))
    axes.set(xscale="log", yscale="log", xlabel="p", ylabel="ratio r",
             title="The larger part of the best mixture\nlines: loss of the rug over the mixture's")
    colours = ListedColormap([command.COLOURS[name] for name in KINDS])
    image = axes.pcolormesh(PS, RATIOS, kind, cmap=colours, alpha=0.5)
    figure.colorbar(image, ticks=range(len(KINDS))).set_ticklabels(KINDS)
    lines = axes.contour(PS, RATIOS, gain, (1.2, 2, 3, 4, 6), colors="black")
    axes.clabel(lines)
    train.save_figure(figure, path)


def draw_block(path, blocks):
    """W of two codes of 12 features in 3 hidden units, {title: rug.Autoencoder}."""
    figure, both = train.subplots(1, 2, figsize=(9.5, 4.6))
    for axes, (title, model) in zip(both, blocks.items()):
        # The loudest first: those that disturb others much, and are disturbed little.
        w = model.decoder @ model.encoder.T
        spoken = np.linalg.norm(w, axis=0)
        heard = np.linalg.norm(w, axis=1)
        order = np.argsort(heard / spoken)
        w = w[order][:, order]

        scale = SymLogNorm(0.1, vmin=-100, vmax=100)
        image = axes.imshow(w, "RdBu_r", scale)
        axes.set(title=f"{title}\nnoise gain {noise_gain(model, P):.2g}",
                 xlabel="feature j, the loudest first", ylabel="feature i")
    figure.colorbar(image, ax=both, label="$W_{ij}$")
    train.save_figure(figure, path)


if __name__ == "__main__":
    scales = {"quick": (256, 512), "laptop": (256, 512, 1024)}
    sweep.run("codes", __doc__, scales, {"codes": (points, measure, draw)})
