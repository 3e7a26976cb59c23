"""python train.py: train the autoencoder, predict its loss, forge the rug, compare them, draw.

The whole argument in one run, at one setting (n_sparse, ratio, p). Training finds weights W.
theory.py computes the least loss of a symmetric W with Gaussian interference, without looking at
them. forge.py writes such a W down without training, the Persian rug. All of them are measured on
fresh samples. Why they differ shows in a few numbers of each W, and in the law of its interference.

In reading order: the main job with its training loop, comparing, pictures, the command line. Tables
go to the terminal, pictures to DIR/figures, weights to DIR/runs; DIR is `out` unless --out says
otherwise.
"""
import argparse
import io
import math
import os
import sys
import time
from typing import NamedTuple

import matplotlib.image
import matplotlib.style
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

import forge
import rug
import theory

LARGE = 8192     # n_sparse of the rug that stands for "large": at the defaults within 1 % of theory
DRAWS = 8        # forged models of each kind: their rows are random, and their losses scatter
SAVE_EVERY = 10  # seconds between checkpoints


# -------------------------------------------------------------------------------- The main job

def main_job(trainer, steps, peak, checkpoint, out):
    """Train, read off W's numbers, predict, forge, compare, draw: tables and pictures."""
    train(trainer, rug.learning_rates(steps, peak), checkpoint, Progress(steps).show)
    model = trainer.model
    p = trainer.p
    r = model.n_dense / model.n_sparse
    model.save(os.path.join(folder(out, "runs"), "model.npz"))

    # Read off W the few numbers that the theory knows of it.
    numbers = theory.macroscopics(model, p)

    # Predict the least loss of a symmetric W with Gaussian interference.
    best = theory.optimum(r, p)

    # Forge such a W, and one with chosen rows: of about the same size, as it is a power of two.
    forged = forge.rug_at(model.n_sparse, r, p, trainer.seed)
    paired = forge.paired_rug(model.n_sparse, r, p, trainer.seed)
    models = {"trained": model, "Persian rug": forged.autoencoder(),
              "paired rug": paired.autoencoder()}

    # Compare.
    print("Measuring all models on fresh samples …\n", flush=True)
    rows = compare(model, numbers, p, trainer.seed)
    print_losses(rows, p)
    print_numbers(models, best, p)
    print(f"Dead features of the trained model: {rug.dead_features(model, p).sum()}.")

    # Draw.
    values = {name: interference(each, p) for name, each in models.items()}
    with matplotlib.style.context("default"):
        figures = folder(out, "figures")
        draw_loss(f"{figures}/loss.png", trainer.losses, rows, p)
        draw_interference(f"{figures}/interference.png", values, best)
        draw_weights(f"{figures}/weights.png", models)
        draw_rug(f"{figures}/rug.png", forge.rug_at(256, r, p, trainer.seed))


def train(trainer, rates, checkpoint="", report=lambda step, text: None):
    """The training loop: until `trainer` has done a step at each of the `rates`.

    checkpoint: a file to save the trainer in, every few seconds and at the end; "" for none. An
    interrupt is not saved, as it may come in the middle of a step. report(step, text) is called
    after each step. Raises RuntimeError if the loss is above 10 or not a number: features are at
    most 1, so such a network doesn't learn.
    """
    saved = time.monotonic()
    try:
        for step in range(len(trainer.losses), len(rates)):
            loss = trainer.step(rates[step])
            if not loss < 10:  # true for NaN, too
                raise RuntimeError(f"training diverged: loss {loss:g} at step {step + 1}; "
                                   f"try a smaller rate (--lr) than {max(rates):g}")
            if checkpoint and time.monotonic() - saved > SAVE_EVERY:
                trainer.save(checkpoint)
                saved = time.monotonic()
            report(step + 1, f"loss {np.mean(trainer.losses[-50:]):.6f}")
    except BrokenPipeError:  # nobody reads what is printed: stop here, between two steps
        if checkpoint:
            trainer.save(checkpoint)
        raise
    if checkpoint:
        trainer.save(checkpoint)


def set_up(n_sparse, ratio, p, steps, lr, batch, seed, init, threads, out):
    """(trainer, steps, peak, checkpoint) for the flags of `main`.

    The checkpoint is named by all settings, so no run with other ones touches it. If it is there,
    the same command was interrupted, and the trainer goes on from it.
    """
    n_sparse = rug.whole_number("n_sparse", n_sparse, 1)
    rug.whole_number("seed", seed, 0, 2**31)  # forged models take the next ones
    n_dense = max(1, round(theory.fraction("ratio", ratio) * n_sparse))
    trainer = rug.Trainer(n_sparse, n_dense, p, batch, seed, init, threads)
    steps = rug.default_steps(trainer.p) if steps is None else steps
    rug.whole_number("steps", steps, 1)
    peak = rug.peak_rate(n_sparse, n_dense, trainer.p) if lr is None else lr
    rug.require_rate(peak)

    settings = {name: getattr(trainer, name) for name in trainer.SETTINGS}
    settings |= {"init": init, "steps": steps, "lr": peak}
    words = [f"{name}={value}" for name, value in settings.items()]
    print(*words, flush=True)
    checkpoint = os.path.join(folder(out, "runs"), "-".join(["unfinished", *words]) + ".npz")
    if os.path.exists(checkpoint):
        try:
            trainer = rug.Trainer.load(checkpoint)
            print(f"Going on from step {len(trainer.losses)}, where it was interrupted.")
        except ValueError as damage:
            print(f"Starting anew: {damage}")
    return trainer, steps, peak, checkpoint


# ----------------------------------------------------------------------------------- Comparing

# Colours: mostly Okabe and Ito's (2008), which the colour-blind tell apart.
COLOURS = {"trained": "#d55e00", "small rug": "#56b4e9", "rug": "#a3182b",
           "paired": "#7f2a8f", "projector": "#cc79a7", "linear": "#666666", "theory": "#0072b2",
           "bayes": "#009e73", "oracle": "#e69f00"}

# What theory.py computes, from above: name, and loss at (r, p).
CURVES = {"linear": ("optimal linear", theory.linear_loss),
          "theory": ("theory: symmetric W, Gaussian ν", lambda r, p: theory.optimum(r, p).loss),
          "bayes": ("Bayes elementwise", theory.bayes_loss),
          "oracle": ("oracle filter", theory.oracle_loss)}


class Row(NamedTuple):
    """One line of the comparison. The error is 0 if the loss is computed; a marker is drawn."""

    name: str
    r: float
    loss: float
    error: float = 0.0
    colour: str = ""
    marker: str = ""


def compare(trained, numbers, p, seed):
    """The Rows of the first table, for a trained model and its theory.Macroscopics."""
    n_sparse = trained.n_sparse
    n_dense = trained.n_dense
    r = n_dense / n_sparse
    draws = range(seed, seed + DRAWS)

    # A kind of model a line: name, colour and marker, and one model or several draws of it. Add
    # yours here: anything that has n_sparse, n_dense and forward(x). The trained one stays first.
    models = [
        ("trained", COLOURS["trained"], "o", [trained]),
        ("Persian rug", COLOURS["small rug"], "x",
         [forge.rug_at(n_sparse, r, p, k) for k in draws]),
        ("Persian rug", COLOURS["rug"], "+",
         [forge.rug_at(LARGE, r, p, k) for k in draws]),
        ("paired rug", COLOURS["paired"], "2",
         [forge.paired_rug(n_sparse, r, p, k) for k in draws]),
        ("paired rug", COLOURS["paired"], "3",
         [forge.paired_rug(LARGE, r, p, k) for k in draws]),
        ("random projector", COLOURS["projector"], "1",
         [forge.random_projector(n_sparse, n_dense, p, k) for k in draws]),
    ]
    rows = [measure(*line, p, seed) for line in models]

    # What a Gaussian ν with the trained network's own a, b and σ would lose.
    own = theory.symmetric_loss(numbers.a.mean, numbers.effective_bias.mean, numbers.sigma.mean, p)
    rows.insert(1, Row("theory at the trained a, b, σ", r, own))
    return rows + [Row(name, r, loss(r, p)) for name, loss in CURVES.values()]


def measure(name, colour, marker, models, p, seed):
    """The Row of one model, or of several draws of one kind: their mean loss. Its error combines
    the deviation between draws with the error of sampling."""
    n_sparse = models[0].n_sparse
    samples = max(8, enough(n_sparse) // len(models))
    estimates = [rug.evaluate(model, p, samples, seed) for model in models]
    losses, errors = np.transpose(estimates)
    error = math.hypot(losses.std(), errors.mean())
    draws = f", {len(models)} draws" if len(models) > 1 else ""
    name = f"{name}, n_sparse {n_sparse}{draws}"
    return Row(name, models[0].n_dense / n_sparse, float(losses.mean()), error, colour, marker)


def enough(n_sparse):
    """Samples to measure a kind of model with: 0.4 % at the defaults, in about a second."""
    return min(2**17, max(64, 2**24 // n_sparse))


def print_losses(rows, p):
    """The first table: losses, and how they compare with the theory's at the same r."""
    lines = []
    for row in rows:
        best = theory.optimum(row.r, p).loss
        error = f"{row.error:.1g}" if row.error else ""
        over = f"{row.loss / best:.3f}" if best else "–"  # best is 0 if n_dense = n_sparse
        if error and best:
            over += f" ± {row.error / best:.3f}"
        lines.append([row.name, f"{row.loss:.4g}", error, over])
    print_table(["loss per feature", "loss", "±", "over theory"], lines)
    print("±: error of sampling; for several draws, how far one lies from their mean.\n"
          "'theory at the trained a, b, σ': what a Gaussian ν with these numbers would lose. The\n"
          "difference from the line above it is what the shape of the trained ν is worth.\n")


def print_numbers(models, best, p):
    """The second table: the numbers of each W, {name: rug.Autoencoder}, and of the optimum."""
    lines = []
    for name, model in models.items():
        found = theory.macroscopics(model, p)
        gaussian = theory.Spread(*(x / math.sqrt(p) for x in found.lyapunov))
        cells = found.a, found.effective_bias, found.sigma, gaussian, found.nu_skewness
        lines.append([name] + [f"{x.mean:.3f} ± {x.spread:.3f}" for x in cells])
    lines.append(["theory", *(f"{x:.3f}" for x in (*best[1:], 0, 0))])
    print_table(["mean ± spread over features", "a", "effective bias b", "σ of ν", "Λ/√p of ν",
                 "skewness of ν"], lines)
    print("ν is near Gaussian if Λ/√p is small; skewness < 0: it leans to the side ReLU hides.\n")


# ------------------------------------------------------------------------------------ Pictures

RUG_COLOURS = LinearSegmentedColormap.from_list(
    "rug", ["#0b1f3a", "#1f4e79", "#3b8686", "#f1e2c4", "#d9822b", "#a3182b", "#4a0a12"])


def draw_loss(path, losses, rows, p):
    """Left: the loss in training, between the lines of the theory. Right: the same lines as curves
    over the ratio r, and all models of this run as points."""
    window = max(1, len(losses) // 100)
    means = np.convolve(losses, np.ones(window) / window, mode="valid")
    ratios = np.geomspace(min(rows[0].r, p) / 4, 1, 100)

    figure, (left, right) = subplots(1, 2, figsize=(12, 4.4), sharey=True)
    left.plot(np.arange(len(means)) + window / 2, means, color=COLOURS["trained"])
    for key, (name, loss) in CURVES.items():
        left.axhline(loss(rows[0].r, p), color=COLOURS[key], lw=1)
        right.plot(ratios, [loss(r, p) for r in ratios], color=COLOURS[key], label=name)
    for row in rows:
        if row.marker:
            right.plot(row.r, row.loss, row.marker, ms=10, color=row.colour, label=row.name,
                       fillstyle="none")
    left.set(xscale="log", xlabel="training step", ylabel="loss per feature", ylim=(0, None),
             title="The loss in training")
    right.set(xscale="log", xlabel="ratio r = n_dense / n_sparse",
              title=f"Loss against r, p = {p:g}, this run at r = {rows[0].r:.3g}")
    figure.legend(loc="outside right upper", frameon=False)
    save_figure(figure, path)


def interference(model, p):
    """ν of all features on fresh samples, in units of its σ around its mean: a flat array."""
    x = rug.sample(2**22 // model.n_sparse, model.n_sparse, p, 0, stream=rug.EVALUATION)
    nu = model.preactivation(x) - model.diagonal * x  # this has the bias in its mean
    nu = (nu - nu.mean(axis=0)) / (nu.std(axis=0) + 1e-12)
    return nu.ravel()


def draw_interference(path, values, best):
    """The law of the interference of three models, {name: `interference`}: trained and forged."""
    figure, axes = subplots(figsize=(8, 4.6))
    bins = np.arange(-8, 6, 0.2)
    for (name, nu), key in zip(values.items(), ("trained", "rug", "paired")):
        axes.hist(nu, bins, density=True, histtype="step", color=COLOURS[key], label=name)
    axes.plot(bins, theory.normal_density(bins), color=COLOURS["theory"], label="Gaussian")
    axes.axvline(-best.b / (best.sigma + 1e-12), color="#999999", ls=":",
                 label="right of it, ReLU lets\nν of an off feature through")
    axes.set(yscale="log", ylim=(1e-5, 2), xlabel="(ν − its mean) / its σ", ylabel="density",
             title="The law of the interference ν")
    axes.legend(loc="upper left", frameon=False)
    save_figure(figure, path)


def draw_weights(path, models):
    """Corners of W above, histograms of its first 1024 rows below; {title: rug.Autoencoder}."""
    found = {title: model.decoder[:1024] @ model.encoder.T for title, model in models.items()}
    figure, grid = subplots(2, len(found), figsize=(10, 5.4), height_ratios=(3, 1), sharey="row")
    for (above, below), (title, w) in zip(grid.T, found.items()):
        image = above.imshow(w[:30, :30], cmap="RdBu_r", vmin=-1.5, vmax=1.5)
        above.set(title=title, xlabel="feature j (in)", ylabel="feature i (out)")
        bins = np.linspace(-1.5, 2.5, 160)  # what lies beyond is counted at the ends
        w = np.clip(w, -1.5, 2.5)
        below.hist(w.ravel(), bins, color="#888888", label="all $W_{ij}$")
        below.hist(np.diag(w), bins, color="#b2182b", label="the diagonal, $W_{ii}$")
        below.set(yscale="log", ylim=(0.7, None), xlabel="entry of W", ylabel="count")
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  frameon=False)
    figure.colorbar(image, ax=grid[0], label="$W_{ij}$", shrink=0.85)
    save_figure(figure, path)


def draw_rug(path, forged):
    """The rug itself, W, four pixels a weight."""
    i = np.arange(4 * forged.n_sparse) // 4
    largest = 0.75 * np.abs(forged.kernel[1:]).max()  # the few larger ones share the last colour
    with rug.replacing(path) as file:
        matplotlib.image.imsave(file, forged.kernel[i[:, None] ^ i], format="png",
                                cmap=RUG_COLOURS, vmin=-largest, vmax=largest)
    print(f"→ {path}")


def subplots(rows=1, columns=1, figsize=None, **options):
    """A figure and its axes. It is only ever saved, so pyplot and its windows are not needed."""
    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def save_figure(figure, path):
    """Write a picture on white ground, which reads well on a light page and on a dark one."""
    with rug.replacing(path) as file:
        figure.savefig(file, format="png", dpi=110, facecolor="white")
    print(f"→ {path}")


# ---------------------------------------------------------------------------- The command line

class Progress:
    """Says how far a long job is and how long it will take, the more rarely the longer it takes."""

    def __init__(self, total, unit="step"):
        self.total = total
        self.unit = unit
        self.began = None  # time and steps of the first report: the first step may compile loops
        self.next = 0

    def show(self, done, text):
        """Print `done` of `total`, unless it was said a short while ago."""
        now = time.monotonic()
        if now < self.next and done < self.total:
            return
        self.began = self.began or (now, done)
        began, done_then = self.began
        spent = now - began
        self.next = now + max(2, spent / 10)
        left = spent / max(done - done_then, 1) * (self.total - done)
        left = f"{left:.0f} s left" if spent else ""
        print(f"{self.unit} {done}/{self.total}  {text}  {left}", flush=True)


def print_table(header, lines):
    """Columns as wide as their widest cell, the first aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *lines)]
    rule = ["─" * width for width in widths]
    for line in [header, rule, *lines]:
        cells = [cell.rjust(width) for cell, width in zip(line, widths)]
        cells[0] = line[0].ljust(widths[0])
        print("  ".join(cells))
    print()


def folder(*parts):
    """The path of a folder, made if need be; OSError if it can't be."""
    path = os.path.join(*parts)
    os.makedirs(path, exist_ok=True)
    return path


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and whose jobs end quietly."""

    def __init__(self, **options):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=formatter, **options)

    def error(self, message):
        """Say it in one line, and leave with status 2."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)

    def run(self, job, arguments):
        """job(**flags). A mistake becomes one line and status 2, Ctrl-C one line and 130."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal without σ shows a question mark
        flags = vars(self.parse_args(arguments))
        try:
            job(**flags)
        except BrokenPipeError:  # as in `python train.py | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except (ValueError, OSError, MemoryError, RuntimeError) as mistake:
            self.error(str(mistake) or "out of memory")
        except KeyboardInterrupt as interrupt:
            print(f"\nInterrupted. {interrupt}", file=sys.stderr)
            sys.exit(130)


def number(text):
    """A flag's value as int or float if it is one; if not, whoever uses it says what is allowed."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def main(arguments=None):
    """The command line of the main job."""
    parser = Parser(prog="train.py", description=__doc__.split("\n\n")[1], epilog="""\
example:
  python train.py --n-sparse 2048 --ratio 0.1 --p 0.01 --out /tmp/rug

beyond the main job, each with a --help of its own:
  python -m experiments.paper       the paper's figures, and where training ends
  python -m experiments.optimality  one look: ReLU beside JumpReLU, top-k, Bayes, the oracle
  python -m experiments.passes      a second look: decoding again, to exact recovery
  python -m experiments.exact       the loss of given weights without the Gaussian
  python -m experiments.descent     training on the theory, without a sample
  python -m experiments.capacity    features that are not alike: who gets how much
  python -m experiments.rows        which rows make a rug as good as a trained network
  python -m experiments.codes       other codes that beat the rug, and what they cost
  python -m experiments.bench       what a step costs""")
    flags = [
        ("--n-sparse", 512, "number of features, 1 or more (default %(default)s)"),
        ("--ratio", 0.25, "n_dense/n_sparse, in (0, 1] (default %(default)s)"),
        ("--p", 0.045, "probability that a feature is on, in (0, 1] (default %(default)s)"),
        ("--steps", None, "training steps, 1 or more (default: 2000 at p 0.045, at least 1500)"),
        ("--lr", None, "peak learning rate (default: `rug.peak_rate`); falls as half a cosine"),
        ("--batch", 1024, "samples a step, 1 or more (default %(default)s)"),
        ("--seed", 0, "of weights, data and forged rows, 0 or more (default %(default)s)"),
        ("--threads", None, "threads, 1 or more (default: one a core)"),
    ]
    for flag, default, text in flags:
        parser.add_argument(flag, metavar="X", type=number, default=default, help=text)
    parser.add_argument("--init", metavar="NAME", default="linear", help="where to start: linear "
                        "(default, see rug.linear_start) or paper, as published")
    parser.add_argument("--out", metavar="DIR", default="out", help="folder for figures/ and runs/ "
                        "(default: %(default)s). The next run replaces them, but not the "
                        "checkpoint of an interrupted one, from which the same command goes on")

    def job(out, **flags):
        trainer, steps, peak, checkpoint = set_up(out=out, **flags)
        try:
            main_job(trainer, steps, peak, checkpoint, out)
        except KeyboardInterrupt:
            saved = os.path.exists(checkpoint)
            advice = "The same command again goes on from the last checkpoint."
            raise KeyboardInterrupt(advice if saved else "Nothing was saved yet.") from None
        if os.path.exists(checkpoint):  # not if the same command ran twice at once
            os.remove(checkpoint)

    parser.run(job, arguments)


if __name__ == "__main__":
    main()
