"""What beats the Persian rug? Codes of the same architecture that are not symmetric.

Digons put two features on one hidden unit, in opposite directions. Priority codes put several on
two, at steeply falling scales: a feature that is on silences the quieter ones. Trained blocks are
small autoencoders, the best of five seeds by exact loss; copies (`tile`) bound larger optima.

Found at r 0.25, p 0.045, rug 0.00486: code 0.00165; trained 12 in 3 0.0021, 64 in 16 0.0030, 512 in
128 0.0035, the larger the higher, but for 8 in 2, which mostly ends at 0.0044. At (0.5, 0.001) the
rug loses 7.6 times the best mixture. A code as good as the rug has separation 3.51 and a nuclear
norm of 1780 a feature (rug 1.3); noise of 1e-4 of the hidden units' size is too much for any code.
"""
import math
from functools import lru_cache
from numbers import Real

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, SymLogNorm

import forge
import rug
import theory
import train
from experiments import exact, sweep


def tile(model, copies):
    """`copies` of a rug.Autoencoder down the diagonal: the same loss."""
    copies = rug.whole_number("copies", copies, 1)
    rug.require(isinstance(model, rug.Autoencoder), "model", type(model).__name__, "an Autoencoder")
    encoder, decoder = (np.kron(np.eye(copies), part) for part in (model.encoder, model.decoder))
    return rug.Autoencoder(encoder, decoder, np.tile(model.bias, copies))


def digons(n_sparse, c=1.0):
    """n_sparse/2 pairs, W = [[1, −c], [−1/c, 1]], no bias; ValueError for odd n_sparse."""
    n_sparse = rug.whole_number("n_sparse", n_sparse, 2)
    rug.require(n_sparse % 2 == 0, "n_sparse of digons", n_sparse, "even")
    c = theory.fraction("c", c)
    pair = rug.Autoencoder(np.array([[1], [-c]]), np.array([[1], [-1 / c]]), np.zeros(2))
    return tile(pair, n_sparse // 2)


def digon_loss(p, c=1.0):
    """The loss of `digons`, derived here: if both are on, at u and v, they lose min(u, c v) and
    min(v, u/c), of mean squares c²/3 − c³/6 and 1/3 − c/6; else nothing. Even digons, c = 1, lose
    p²/6, the best, c = 1/3, 25/27 of that. Raises ValueError for p or c outside (0, 1]."""
    p = theory.fraction("p", p)
    c = theory.fraction("c", c)
    return p**2 / 2 * (c**2 / 3 - c**3 / 6 + 1 / 3 - c / 6)


def priority_block(n, separation, closed):
    """Encoder and decoder, both (n, 2), of n ≥ 2 features in two hidden units (derived here):

        e_i = s_i (cos θ_i, sin θ_i),  θ_i = π i/n,  s_i = separation^((n−1)/2 − i),  i = 0 … n − 1.

    d_i is orthogonal to e_{i−1} (d_0 to e_1), and d_i · e_i = 1. So W_ij is hugely negative for
    the louder j < i − 1, 0 for j = i − 1, of the order of separation^(i−j) for the quieter j > i.
    Closed (n > 3): the features 0 … n − 2 fill the half-plane, θ_i = π i/(n−2), and the last one
    points the other way, at −π/2, orthogonal to both e_0 and e_{n−2}: one less can silence it.
    """
    # Rounded, for the zeros to be exact: scales differ by more than float64 has digits.
    turns = np.append(np.arange(n - 1) / (n - 2), -0.5) if closed else np.arange(n) / n  # θ_i/π
    direction = np.exp(1j * math.pi * turns).round(15)
    decoder = 1j * np.append(direction[1], direction[:-1])  # the one before, turned by π/2
    encoder = float(separation)**((n - 1) / 2 - np.arange(n)) * direction
    decoder /= (encoder * decoder.conj()).real
    return encoder.view(float).reshape(n, 2), decoder.view(float).reshape(n, 2)


def priority_code(n_sparse, n_dense, separation=100, closed=False):
    """The rug.Autoencoder of n_dense // 2 priority blocks; a hidden unit left over has a digon.
    What isn't silenced is exact up to 1/separation. Raises ValueError for n_dense outside
    2 … n_sparse (1 … n_sparse if n_sparse ≤ 2), a separation ≤ 1 or one too large for float64."""
    n_sparse = rug.whole_number("n_sparse", n_sparse, 1)
    n_dense = rug.whole_number("n_dense", n_dense, 2 if n_sparse > 2 else 1, n_sparse)
    alone = n_dense % 2 * min(2, n_sparse - n_dense + 1)  # features on the hidden unit left over
    sizes = [(n_sparse - alone + k) // (n_dense // 2) for k in range(n_dense // 2)]
    limit = 10**(300 / max(sizes, default=1))
    fits = isinstance(separation, Real) and 1 < separation < limit
    rug.require(fits, "separation", separation, f"a number above 1 and below {limit:.4g}")
    encoder, decoder = np.zeros((2, n_sparse, n_dense))
    for k, (size, end) in enumerate(zip(sizes, np.cumsum(sizes))):
        place = slice(end - size, end), slice(2 * k, 2 * k + 2)
        encoder[place], decoder[place] = priority_block(size, separation, closed and size > 3)
    encoder[n_sparse - alone:, -1] = decoder[n_sparse - alone:, -1] = [1, -1][:alone]
    return rug.Autoencoder(encoder, decoder, np.zeros(n_sparse))


def priority_loss(r, p, closed=False):
    """The loss of priority_code as separation → ∞, for even n_dense; ValueError as in theory.py:

        L = (p/3) mean_i S_max(i−1, 0),   S_k = 1 − (1 − p)^k,   i = 0 … n − 1,   n = 2/r,

    as i is lost if one of the louder 0 … i − 2 is on, else exact. The last feature of a closed
    block, n > 3, has S_{n−3}. If 2/r is not whole, blocks have the whole numbers around it.
    As p → 0 at fixed κ = r/p, L → Var x [1 − (κ/2)(1 − e^{−2/κ})]: no critical ratio, no ln(1/p).
    """
    p = theory.fraction("p", p)
    r = theory.fraction("r", r)
    fewer, larger = divmod(2 / r, 1)
    n, log_off = fewer + np.arange(2), math.log1p(-min(p, 1 - 1e-16))
    last = np.logical_and(closed, n > 3)
    n = n - last  # the others of a block lose Σ_{k=1}^{n−2} S_k; if p n is small, by its series
    series = p * (n - 1) * (n - 2) / 2 * (1 - p * (n - 3) / 3)
    lost = np.where(p * n < 1e-4, series, n - 1 + np.expm1((n - 1) * log_off) / p)
    lost -= last * np.expm1((n - 2) * log_off)
    return float(p / 3 * r / 2 * ((1 - larger) * lost[0] + larger * lost[1]))


def envelope(r, codes):
    """The least loss at ratio r of a mixture of two codes, and their names, larger share first: the
    lower convex envelope of codes, {name: (ratio, loss)}, as a mixture's are means over features.
    Raises ValueError unless r is in (0, 1] and within the codes' ratios."""
    r = theory.fraction("r", r)
    mixtures = []
    for first, (low, lost) in codes.items():
        for second, (high, loses) in codes.items():
            if low <= r <= high and low < high:
                share = (r - low) / (high - low)
                names = (first, second) if share < 0.5 else (second, first)
                mixtures.append(((1 - share) * lost + share * loses, names))
    rug.require(mixtures, "r", r, "within the ratios of the codes")
    return min(mixtures)


@lru_cache
def known_codes(p):
    """{name: (ratio, loss)} of what is mixed at this p; the first word of a name is its kind."""
    codes = dict(drop=(0, theory.variance(p)), identity=(1, 0), digon=(0.5, digon_loss(p, 1 / 3)))
    for n in (3, 4):  # triangle, tetrahedron: W = gain × cosines, the best gain and bias of a grid
        models = [rug.Autoencoder((n * np.eye(n) - 1) / (n - 1), gain * np.eye(n), np.full(n, bias))
                  for gain in np.linspace(0.65, 1.1, 10) for bias in np.linspace(0, 0.45, 19)]
        codes[f"regular {n}"] = 1 - 1 / n, min(exact.exact_loss(model, p) for model in models)
    sizes, ratios = (*range(3, 50), *range(50, 201, 10)), np.geomspace(max(p / 2, 2e-3), 0.98, 60)
    codes |= {f"priority {n}": (2 / n, priority_loss(2 / n, p, closed=True)) for n in sizes}
    return codes | {f"rug {r:.3f}": (r, theory.optimum(r, p).loss) for r in ratios}


# ------------------------------------------------------------------------- tables and pictures
AT = 0.25, 0.045  # r and p of most of what follows
BLOCKS = [(n, *AT) for n in (8, 12, 16, 64)] + [
    (16, r, p) for r, p in ((0.125, 0.01), (0.25, 0.01), (0.5, 0.01), (0.5, 0.3))]


def needs(steps):
    """The models to train: five seeds of each block, and a few larger networks."""
    models = [(*block, steps, seed) for block in BLOCKS for seed in range(5)]
    models += (128, *AT, steps), (512, *AT, steps), (2048, *AT, steps // 8)
    return [sweep.Point.at("linear", *model) for model in models]


def by_loss(results):
    """{(n_sparse, n_dense, p): all seeds' results, by exact loss if weights are kept}; a table."""
    trained, lines = {}, []
    for point, found in results.items():
        if "encoder" in found:
            model = rug.Autoencoder(found["encoder"], found["decoder"], found["bias"])
            found |= {"loss": exact.exact_loss(model, point.p), "model": model}
        trained.setdefault(point[1:4], []).append(found)
    for (n, m, p), seeds in trained.items():
        seeds.sort(key=lambda found: found["loss"])
        losses = [seeds[0]["loss"], seeds[len(seeds) // 2]["loss"], theory.dropping_loss(m / n, p),
                  priority_loss(m / n, p), priority_loss(m / n, p, closed=True)]
        lines.append([f"{n} in {m}, p {p:g}"] + [f"{loss:.6f}" for loss in losses])
    train.print_table(["trained", "best", "median", "rug", "priority code", "closed"], lines)
    return trained


def draw_winners(path, trained):
    """Loss over r at three p, and a map over (r, p) of what wins."""
    curves = {"linear": ("optimal linear", theory.linear_loss),
              "theory": ("rug, features dropped", theory.dropping_loss),
              "bayes": ("Bayes elementwise on the rug", theory.bayes_loss),
              "priority": ("closed priority code", lambda r, p: priority_loss(r, p, closed=True)),
              "mixture": ("best mixture", lambda r, p: envelope(r, known_codes(p))[0])}
    figure, grid = train.subplots(2, 2, figsize=(11, 8.5))
    for axes, p in zip(grid.flat, (0.01, 0.045, 0.3)):
        var, ratios = theory.variance(p), np.geomspace(max(p / 4, 0.01), 0.98, 60)
        for kind, (name, loss) in curves.items():
            losses, style = [loss(r, p) / var for r in ratios], "--" if kind == "mixture" else "-"
            axes.loglog(ratios, losses, style, color=sweep.COLOURS[kind], label=name)
        blocks = [(m / n, trained[n, m, p][0]["loss"] / var) for n, m, its in trained if its == p]
        axes.plot(*np.transpose(blocks), "o", color=sweep.COLOURS["trained"], label="trained")
        axes.set(ylim=(p / 20, 1.3), title=f"p = {p:g}", xlabel="ratio r", ylabel="loss / Var x")
    grid[0, 0].legend(frameon=False, fontsize=8)
    axes, kinds = grid[1, 1], ("priority", "digon", "regular", "rug")
    ps, ratios = np.geomspace(1e-3, 0.9, 15), 0.5 * 1.9**(np.arange(-30, 6) / 5)
    winner, gain = np.empty((2, len(ratios), len(ps)))
    for k, m in np.ndindex(winner.shape):
        loss, names = envelope(ratios[k], known_codes(ps[m]))
        parts = [name.split()[0] for name in names if name not in ("drop", "identity")]
        winner[k, m] = kinds.index(parts[0])
        gain[k, m] = theory.dropping_loss(ratios[k], ps[m]) / loss
    colours = ListedColormap([sweep.COLOURS[kind] for kind in kinds])
    image = axes.pcolormesh(ps, ratios, winner, cmap=colours, vmin=-0.5, vmax=3.5)
    figure.colorbar(image, ax=axes, ticks=range(4)).set_ticklabels(kinds)
    axes.clabel(axes.contour(ps, ratios, gain, (1.1, 1.5, 2, 3, 4, 6), colors="white"))
    axes.set(xscale="log", yscale="log", xlabel="p", ylabel="ratio r",
             title="main part of the best mixture; lines: rug / best")
    k, m = np.unravel_index(gain.argmax(), gain.shape)
    print(f"Rug / best: at least {gain[k, m]:.2f}, at r {ratios[k]:.2g}, p {ps[m]:.2g}.\n")
    train.save_figure(figure, path)


def draw_block(path, block):
    """W of the trained block of 12 features in 3 hidden units beside the forged one."""
    figure, both = train.subplots(1, 2, figsize=(11, 4.8))
    models = {"trained, 12 in 3": block, "forged, separation 10": priority_code(12, 3, 10)}
    for axes, (name, model) in zip(both, models.items()):
        w = model.decoder @ model.encoder.T
        order = np.argsort(np.linalg.norm(w, axis=1) / np.linalg.norm(w, axis=0))  # loudest first
        image = axes.imshow(w[order][:, order], "RdBu_r", SymLogNorm(0.1, vmin=-100, vmax=100))
        axes.set(title=name, xlabel="feature j, by falling loudness", ylabel="feature i")
    figure.colorbar(image, ax=both, label="W[i, j]")
    train.save_figure(figure, path)


def noisy_losses(model, levels):
    """The losses with Gaussian noise in the hidden units, `levels` over their root mean square."""
    x = rug.sample(2**20 // model.n_sparse, model.n_sparse, AT[1], seed=1)
    hidden = x @ model.encoder
    noise = np.sqrt(np.mean(hidden**2)) * np.random.default_rng(0).standard_normal(hidden.shape)
    z = ((hidden + level * noise) @ model.decoder.T + model.bias for level in levels)
    return np.array([np.mean((np.maximum(each, 0) - x)**2) for each in z])


def draw_costs(path, trained):
    """Why training misses the code (above), and what the code costs (below)."""
    figure, grid = train.subplots(2, 2, figsize=(11, 8.5), sharey=True)
    (sizes, rates), (noise, norms) = grid
    p, symmetric, lines = AT[1], theory.optimum(*AT).loss, []
    for (n, m, its), seeds in trained.items():
        if (m / n, its) == AT:
            means = seeds[len(seeds) // 2]["losses"].reshape(-1, 50).mean(axis=1)
            colour = colormaps["Dark2"](len(sizes.lines))
            sizes.plot(50 * np.arange(1, len(means) + 1), means, color=colour, label=f"{n} in {m}")
    factors, after, code = 10.0**-np.arange(6), [], priority_code(64, 16, 10)
    for factor in factors:
        trainer = rug.Trainer(64, 16, p, init=code)
        for step in range(1500):
            trainer.step(rug.learning_rate(step, 1500, factor * sweep.peak_rate(64)))
        after.append(exact.exact_loss(trainer.model, p))
    rates.plot(factors, after, "o-", color=sweep.COLOURS["trained"])
    print("from the code, loss at falling rates:", ", ".join(f"{loss:.5f}" for loss in after), "\n")
    levels, scales = 10.0**np.arange(-12, 1), np.geomspace(3, 4, 30)
    losses = [-exact.exact_loss(priority_code(8, 2, separation), p) for separation in scales]
    even = np.interp(-symmetric, losses, scales)  # the separation where the code equals the rug
    models = {"rug": forge.rug_at(256, *AT, 0).autoencoder(),
              "trained, 12 in 3": trained[12, 3, p][0]["model"],
              **{f"separation {s:.3g}": priority_code(8, 2, s) for s in (2, even, 5, 10, 30)}}
    for k, (name, model) in enumerate(models.items()):
        losses = noisy_losses(model, levels)
        norm = np.linalg.norm(model.decoder @ model.encoder.T, "nuc") / model.n_sparse
        colour = sweep.COLOURS.get(name.split(",")[0], colormaps["Greys"](0.2 + 0.12 * k))
        noise.plot(levels, losses, color=colour, label=name)
        norms.plot(norm, losses[0], "o", color=colour)
        ahead = max(levels[losses < symmetric], default=0)
        lines.append([name, f"{losses[0]:.5f}", f"{norm:.4g}", f"{ahead:.0g}"])
    train.print_table(["", "loss", "norm / n_sparse", "ahead of the rug up to noise"], lines)
    labels = ("training step, median seed", "rate / usual rate, starting from the code",
              "noise in the hidden units / their root mean square", "nuclear norm of W / n_sparse")
    for axes, label in zip(grid.flat, labels):
        axes.set(xscale="log", yscale="log", ylim=(1e-3, 0.1), xlabel=label, ylabel="loss")
        axes.axhline(symmetric, color=sweep.COLOURS["theory"], ls="--", label="symmetric theory")
        axes.axhline(priority_loss(*AT), color="black", ls="--", label="priority code")
    sizes.legend(frameon=False)
    figure.legend(*noise.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    train.save_figure(figure, path)


def draw(folder, steps, results):
    """The tables; pictures of who wins where, of a trained block, and of what codes cost."""
    trained = by_loss(results)
    draw_winners(f"{folder}/codes.png", trained)
    draw_block(f"{folder}/codes-block.png", trained[12, 3, AT[1]][0]["model"])
    draw_costs(f"{folder}/codes-cost.png", trained)


if __name__ == "__main__":
    sweep.run("codes", __doc__, {"codes": (needs, draw)}, {"quick": 4000, "laptop": 8000})
