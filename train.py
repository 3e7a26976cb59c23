"""python train.py: train the autoencoder, predict its loss, forge the rug, compare them, draw.

The whole argument in one run, on one setting (n_sparse, ratio, p): training finds weights W; theory.py predicts the
loss of the best symmetric W from three numbers; forge.py makes such a W without training, a Persian rug; all are
measured on fresh samples beside the bounds that no symmetric model passes. Tables go to the terminal, pictures to
figures/, the model and a checkpoint to runs/. `python train.py --help` explains the settings.
"""
import rug  # first, as it holds BLAS to one thread before NumPy is imported
import argparse
import math
import os
import signal
import sys
import time
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap

import forge
import theory

matplotlib.use("Agg")  # draw into files: no window, no display needed

SETTINGS = {"n_sparse": 512, "ratio": 0.25, "p": 0.045, "steps": 4000, "batch": 1024, "lr": None, "init": "tied",
            "seed": 0}
SAVE_EVERY = 10      # seconds between checkpoints
FORGED_LARGE = 8192  # n_sparse of the rug that stands for "large": its loss is the theory's within about 1 %

# One colour for each model in every picture; they stay apart for the colour-blind (Okabe, Ito 2008).
COLOURS = {"trained": "#d55e00", "theory": "#0072b2", "rug": "#a3182b", "projector": "#cc79a7", "linear": "#666666",
           "bayes": "#009e73", "oracle": "#e69f00"}
RUG_COLOURS = LinearSegmentedColormap.from_list(
    "rug", ["#0b1f3a", "#1f4e79", "#3b8686", "#f1e2c4", "#d9822b", "#a3182b", "#4a0a12"])


# ------------------------------------------------------------------------------------------------ training


def peak_rate(n_sparse):
    """The default peak learning rate: measured to train well for n_sparse 12 … 4096 and p 0.01 … 0.3."""
    return 60e-3 / math.sqrt(n_sparse)


def learning_rate(step, steps, peak):
    """Half a cosine wave from `peak` at step 0 down to 0 after the last step."""
    return peak * (1 + math.cos(math.pi * step / steps)) / 2


class Progress:
    """How far a long job is: one line rewritten on a terminal, a new line every five seconds elsewhere."""

    def __init__(self, total):
        self.total, self.began, self.next = total, time.monotonic(), 0.0
        self.start = None  # (time, steps done) at the first report: the first step may include compilation
        self.terminal = sys.stdout.isatty()

    def show(self, done, text):
        """Report `done` of `total` steps, unless the last report is too recent."""
        now = time.monotonic()
        self.start = self.start or (now, done)
        if now < self.next and done < self.total:
            return
        self.next = now + (0.1 if self.terminal else 5)
        rate = (done - self.start[1]) / max(now - self.start[0], 1e-9)
        if done >= self.total:
            left = f"{now - self.began:.1f} s in all"
        else:
            left = f"{(self.total - done) / rate:.0f} s left" if rate else "…"
        filled = 24 * done // self.total
        bar = f"{'█' * filled}{'░' * (24 - filled)} " if self.terminal else ""
        line = f"{bar}step {done}/{self.total}  {text}  {rate:.0f} steps/s  {left}"
        end = "\n" if done >= self.total or not self.terminal else ""
        print(f"\r\x1b[2K{line}" if self.terminal else line, end=end, flush=True)


def train(trainer, steps, peak, checkpoint, predicted):
    """The training loop: until `trainer` has done `steps` steps, with a checkpoint every few seconds and at the end.

    Ctrl-C lets the running step end, saves, and then raises KeyboardInterrupt.
    """
    stop = []
    usual = signal.signal(signal.SIGINT, lambda *_: stop.append(True))
    try:
        progress, saved = Progress(steps), time.monotonic()
        while len(trainer.losses) < steps and not stop:
            trainer.step(learning_rate(len(trainer.losses), steps, peak))
            if time.monotonic() - saved > SAVE_EVERY:
                trainer.save(checkpoint, steps=steps, lr=peak)
                saved = time.monotonic()
            progress.show(len(trainer.losses), f"loss {np.mean(trainer.losses[-50:]):.6f}  theory {predicted:.6f}")
        trainer.save(checkpoint, steps=steps, lr=peak)
    finally:
        signal.signal(signal.SIGINT, usual)
    if stop:
        raise KeyboardInterrupt


# --------------------------------------------------------------------------------------------- comparing


class Row(NamedTuple):
    """A line of the table: a loss per feature, its standard error (0 if computed), and theory's loss at its ratio."""
    key: str
    name: str
    loss: float
    error: float
    theory: float

    def ratio(self):
        """Loss over theory, with its error; a dash where theory's loss is 0."""
        if self.theory == 0:
            return "–"
        error = f" ± {self.error / self.theory:.4f}" if self.error else ""
        return f"{self.loss / self.theory:.4f}{error}"


def nearest_power_of_two(n):
    """The power of two nearest to n on a logarithmic scale."""
    return 2 ** round(math.log2(n))


def rug_at(n_sparse, ratio, p, seed):
    """The Persian rug whose n_dense/n_sparse is as near to `ratio` as n_sparse allows."""
    return forge.persian_rug(n_sparse, min(n_sparse, max(1, round(ratio * n_sparse))), p, seed)


def measure(model, p, seed):
    """Its sampled loss: about 2²⁵ numbers, which gives the default model's loss to 0.3 %."""
    return rug.evaluate(model, p, max(256, 2**25 // model.n_sparse), seed)


def compare(model, p, seed):
    """Rows for the trained model, the forged ones and the bounds, and the rug of the model's size."""
    n_sparse, n_dense = model.n_sparse, model.n_dense
    r = n_dense / n_sparse
    predicted = theory.optimum(r, p).loss
    small = rug_at(nearest_power_of_two(n_sparse), r, p, seed)
    rugs = [small] if small.n_sparse == FORGED_LARGE else [small, rug_at(FORGED_LARGE, r, p, seed)]
    rows = [Row("trained", f"trained, n_sparse {n_sparse}", *measure(model, p, seed), predicted),
            Row("theory", "symmetric theory", predicted, 0, predicted)]
    for forged in rugs:
        own = forged.n_dense / forged.n_sparse
        note = "" if own == r else f", r = {own:.4g}"
        rows.append(Row("rug", f"Persian rug, n_sparse {forged.n_sparse}{note}", *measure(forged, p, seed),
                        theory.optimum(own, p).loss))
    projector = forge.random_projector(n_sparse, n_dense, p, seed)
    rows.append(Row("projector", f"random projector, n_sparse {n_sparse}", *measure(projector, p, seed), predicted))
    for key, name, bound in (("linear", "optimal linear", theory.linear_loss),
                             ("bayes", "Bayes elementwise", theory.bayes_loss),
                             ("oracle", "oracle filter", theory.oracle_loss)):
        rows.append(Row(key, name, bound(r, p), 0, predicted))
    return rows, small


def print_table(header, lines):
    """Columns as wide as their widest cell, the first one aligned left, the others right."""
    widths = [max(len(line[k]) for line in [header] + lines) for k in range(len(header))]
    for line in [header, ["─" * width for width in widths]] + lines:
        print("  ".join([line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]))
    print()


def print_results(rows, numbers, dead):
    """Both tables: losses, and the large-scale numbers of the models in `numbers` (name → Statistics)."""
    print_table(["loss per feature", "loss", "± error", "over theory"],
                [[row.name, f"{row.loss:.6f}", f"{row.error:.6f}" if row.error else "", row.ratio()] for row in rows])
    fields = {"a": "a", "effective_bias": "effective bias", "sigma": "σ", "lyapunov": "Λ", "skewness": "skewness"}
    print_table(["mean ± spread over features"] + list(fields.values()),
                [[name] + [f"{mean:.3f} ± {spread:.3f}" for mean, spread in
                           (getattr(statistics, field) for field in fields)] for name, statistics in numbers.items()])
    print(f"Dead features of the trained model: {dead}.")


def conclusions(rows, skewness):
    """What the numbers say, as three plain sentences; `skewness` is the trained W's."""
    loss = {row.key: row for row in rows}  # of two rugs, the last and larger one
    trained, forged, best = loss["trained"], loss["rug"], loss["theory"].loss
    if best == 0:
        return ["With n_dense = n_sparse nothing has to be shared: theory's loss is 0."]
    sentences = [f"Forged without training, the {forged.name} has {forged.ratio()} times the loss that theory computes "
                 "from three numbers: a, the effective bias and σ."]
    share = trained.loss / best
    if share < 1:
        sentences.append(
            f"The trained network is {100 * (1 - share):.0f} % better than that, which Gaussian interference doesn't allow: "
            f"its weights have skewness {skewness:.1f}. Large negative interference costs nothing while ReLU hides it, and "
            "training finds that out; in the same number of steps a larger network finds less of it.")
    else:
        sentences.append(f"The trained network is {100 * (share - 1):.0f} % worse than that: more steps, or a larger "
                         "n_sparse, bring it closer.")
    sentences.append(
        f"On the symmetric model's pre-activation no elementwise activation gets below {loss['bayes'].loss / best:.2f} "
        f"times ReLU's loss, and no gate below {loss['oracle'].loss / best:.2f} times; the best linear model has "
        f"{loss['linear'].loss / best:.1f} times.")
    return sentences


# ------------------------------------------------------------------------------------------------ drawing


def save_figure(figure, path):
    """Write a picture on white ground, which reads well on a light page and on a dark one."""
    figure.savefig(path, dpi=110, facecolor="white", bbox_inches="tight")
    plt.close(figure)


def label_line(axes, x, y, text, colour, **options):
    """Write `text` next to the point (x, y) in the colour of what it names."""
    axes.annotate(text, (x, y), xytext=options.pop("offset", (4, 4)), textcoords="offset points", color=colour,
                  fontsize=9, **options)


def draw_loss(path, losses, rows):
    """The loss curve, with the theory's lines."""
    figure, axes = plt.subplots(figsize=(8, 4.2))
    window = max(1, len(losses) // 200)
    means = np.array(losses[:len(losses) // window * window]).reshape(-1, window).mean(axis=1)
    steps = (np.arange(len(means)) + 0.5) * window
    axes.plot(steps, means, color=COLOURS["trained"])
    label_line(axes, steps[-1], means[-1], "trained", COLOURS["trained"], offset=(-4, -14), ha="right")
    for row in rows:
        if row.key in ("linear", "theory", "bayes", "oracle") and row.loss > 0:
            axes.axhline(row.loss, color=COLOURS[row.key], lw=1)
            below = row.key == "bayes"
            label_line(axes, len(losses), row.loss, row.name, COLOURS[row.key], offset=(-4, -11 if below else 3), ha="right")
    axes.margins(y=0.12)
    axes.set(xlabel="training step", ylabel="loss per feature", yscale="log",
             title="The trained loss passes the symmetric optimum" if means[-1] < rows[1].loss else
             "The trained loss and the symmetric optimum")
    save_figure(figure, path)


def draw_weights(path, model, forged):
    """The 30 × 30 corner of the trained W beside the rug's, on one colour scale."""
    size = min(30, model.n_sparse, forged.n_sparse)
    i = np.arange(size)
    corners = {f"trained, n_sparse {model.n_sparse}": model.decoder[:size] @ model.encoder[:size].T,
               f"Persian rug, n_sparse {forged.n_sparse}": forged.a * forged.kernel[i[:, None] ^ i]}
    largest = max(np.abs(corner).max() for corner in corners.values())
    figure, both = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
    for axes, (title, corner) in zip(both, corners.items()):
        image = axes.imshow(corner, cmap="RdBu_r", vmin=-largest, vmax=largest)
        axes.set(title=title, xlabel="feature j (in)", ylabel="feature i (out)")
    figure.colorbar(image, ax=both, label="W[i, j] = decoder[i] · encoder[j]", shrink=0.85)
    save_figure(figure, path)


def draw_rug(path, r, p, seed):
    """The rug itself, 256 features, four pixels a weight."""
    forged = rug_at(256, r, p, seed)
    i = np.arange(256)
    weights = forged.kernel[i[:, None] ^ i]
    largest = 0.75 * np.abs(forged.kernel[1:]).max()  # what is larger, the diagonal above all, takes the last colour
    pixels = np.repeat(np.repeat(weights, 4, axis=0), 4, axis=1)
    plt.imsave(path, pixels, cmap=RUG_COLOURS, vmin=-largest, vmax=largest)


def draw_ratio(path, model, rows, p):
    """Loss against r at this p: linear, theory and Bayes as curves, what this run measured as points."""
    r = model.n_dense / model.n_sparse
    ratios = np.geomspace(min(r, p) / 4, 1, 120)
    names = {row.key: row.name for row in rows}
    figure, axes = plt.subplots(figsize=(8, 4.6))
    for key, bound, place, offset in (("linear", theory.linear_loss, 100, (6, 6)),
                                      ("theory", lambda r, p: theory.optimum(r, p).loss, 78, (6, 6)),
                                      ("bayes", theory.bayes_loss, 68, (-100, -14))):
        losses = [bound(ratio, p) for ratio in ratios]
        axes.plot(ratios, losses, color=COLOURS[key], zorder=1)
        label_line(axes, ratios[place], losses[place], names[key], COLOURS[key], offset=offset)
    for row, marker in zip([row for row in rows if row.error], "o^vs"):
        axes.plot(r, row.loss, marker, color=COLOURS[row.key], label=row.name, ms=7, markeredgecolor="white", zorder=2)
    critical = theory.critical_ratio(p)
    if ratios[0] < critical < 1:
        axes.axvline(critical, color="#999999", lw=0.8, ls=":")
        label_line(axes, critical, 0, "critical ratio $r_c$", "#666666", offset=(4, 4))
    axes.set(xscale="log", xlabel="ratio r = n_dense / n_sparse", ylabel="loss per feature", ylim=(0, None),
             title=f"Loss against r at p = {p:g}")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.08), frameon=False, fontsize=9)
    save_figure(figure, path)


# --------------------------------------------------------------------------------------------- the main job


def start_trainer(given, checkpoint):
    """(trainer, steps, peak rate) for the settings `given` on the command line, new or from the checkpoint."""
    resume, threads = given.pop("resume"), given.pop("threads", None)
    if not resume:
        settings = {**SETTINGS, **given}
        steps, peak = settings.pop("steps"), settings.pop("lr")
        rug.require_integer("steps", steps, 1)
        rug.require(peak is None or 0 < peak < math.inf, "lr", peak, "a positive finite number")
        ratio = settings.pop("ratio")
        rug.require_fraction("ratio", ratio)
        rug.require_integer("n_sparse", settings["n_sparse"], 1)
        n_dense = round(ratio * settings["n_sparse"])
        rug.require(n_dense >= 1, f"n_dense = ratio {ratio} × n_sparse {settings['n_sparse']}", n_dense, "at least 1")
        trainer = rug.Trainer(n_dense=n_dense, threads=threads, **settings)
        if os.path.exists(checkpoint):  # nobody's interrupted run is lost by forgetting --resume
            os.replace(checkpoint, checkpoint + ".previous")
        return trainer, steps, peak or peak_rate(trainer.n_sparse)
    trainer = rug.Trainer.load(checkpoint, threads)
    steps, peak = trainer.notes.get("steps"), trainer.notes.get("lr")
    rug.require(steps and peak, f"{checkpoint}: steps and lr", (steps, peak), "those of a run of train.py")
    kept = {**{name: getattr(trainer, name) for name in rug.Trainer.SETTINGS}, "steps": steps, "lr": peak}
    if "ratio" in given:
        given["n_dense"] = round(given.pop("ratio") * trainer.n_sparse)
    for name, value in given.items():
        rug.require(value == kept[name], f"{name} of the run to resume", value, f"{kept[name]} as in {checkpoint}")
    return trainer, steps, peak


def main_job(given):
    """Train, compare, say what it means, draw."""
    out = given.pop("out")
    runs, figures = os.path.join(out, "runs"), os.path.join(out, "figures")
    checkpoint = os.path.join(runs, "checkpoint.npz")
    for folder in (runs, figures):
        os.makedirs(folder, exist_ok=True)
        rug.require(os.access(folder, os.W_OK), "folder", folder, "writable")
    trainer, steps, peak = start_trainer(given, checkpoint)
    n_sparse, n_dense, p, seed = trainer.n_sparse, trainer.n_dense, trainer.p, trainer.seed
    predicted = theory.optimum(n_dense / n_sparse, p)
    print(f"Training ReLU(W_out W_in x + b): n_sparse {n_sparse}, n_dense {n_dense}, p {p:g}, batch {trainer.batch}, "
          f"lr {peak:.3g}, init {trainer.init}, seed {seed}, {trainer.threads} threads.\nThe first step compiles the hot "
          "loops, which takes some seconds when it is done for the first time.")
    train(trainer, steps, peak, checkpoint, predicted.loss)
    model = trainer.model
    model.save(os.path.join(runs, "model.npz"))
    print("Measuring all models on fresh samples …\n", flush=True)
    rows, forged = compare(model, p, seed)
    if forged.n_sparse != n_sparse:
        print(f"A Hadamard matrix needs a power of two: the rug beside n_sparse {n_sparse} has {forged.n_sparse}.\n")
    ideal = theory.Statistics((predicted.a, 0), (predicted.b, 0), (predicted.b, 0), (predicted.sigma, 0), (0, 0), (0, 0))
    numbers = {"trained": theory.macroscopics(model, p), "Persian rug": theory.macroscopics(forged.autoencoder(), p),
               "symmetric theory": ideal}
    print_results(rows, numbers, int(rug.dead_features(model, p).sum()))
    print("\n".join(conclusions(rows, numbers["trained"].skewness[0])))
    draw_loss(os.path.join(figures, "loss.png"), trainer.losses, rows)
    draw_weights(os.path.join(figures, "weights.png"), model, forged)
    draw_rug(os.path.join(figures, "rug.png"), n_dense / n_sparse, p, seed)
    draw_ratio(os.path.join(figures, "ratio.png"), model, rows, p)
    print(f"Pictures: {figures}/loss.png, weights.png, rug.png, ratio.png. Model: {runs}/model.npz.")


# ------------------------------------------------------------------------------------------ the command line


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message):
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def make_parser():
    """The command line; a flag that isn't given is absent from the result, so that --resume can tell."""
    parser = Parser(prog="train.py", description=__doc__.split("\n\n")[1], argument_default=argparse.SUPPRESS,
                    epilog="Example: python train.py --n-sparse 2048 --ratio 0.1 --p 0.01 --out /tmp/rug")
    add = parser.add_argument
    add("--n-sparse", type=int, metavar="N", help="number of features, 1 or more (default 512)")
    add("--ratio", type=float, metavar="R", help="n_dense/n_sparse, in (0, 1] (default 0.25)")
    add("--p", type=float, metavar="P", help="probability that a feature is on, in (0, 1] (default 0.045)")
    add("--steps", type=int, metavar="N", help="training steps, 1 or more (default 4000)")
    add("--batch", type=int, metavar="N", help="samples a step, 1 or more (default 1024)")
    add("--lr", type=float, metavar="X", help="peak learning rate, positive (default 60e-3/√n_sparse); falls as a cosine")
    add("--init", metavar="NAME", help="tied: no feature starts dead (default); paper: the published start")
    add("--seed", type=int, metavar="N", help="of weights and data, 0 or more (default 0)")
    add("--threads", type=int, metavar="N", help="threads, 1 or more (default: one a core)")
    add("--out", default=".", metavar="DIR", help="where figures/ and runs/ go (default: here)")
    add("--resume", action="store_true", default=False,
        help="go on from DIR/runs/checkpoint.npz, with its settings, to the weights of an uninterrupted run")
    return parser


def main(arguments=None):
    """Parse, run, and turn mistakes into one line on stderr with exit status 2."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without σ shows a question mark instead
    parser = make_parser()
    given = vars(parser.parse_args(arguments))
    out = given["out"]
    try:
        main_job(given)
    except (ValueError, OSError, MemoryError) as mistake:
        parser.error(str(mistake))
    except KeyboardInterrupt:
        print(f"\nInterrupted; the checkpoint is kept. To go on: python train.py --resume --out {out}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
