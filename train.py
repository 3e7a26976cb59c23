"""python train.py: train the autoencoder, predict its loss, forge the rug, compare them, draw.

The whole argument in one run, on one setting (n_sparse, ratio, p): training finds weights W;
theory.py predicts the loss of the best symmetric W from three numbers; forge.py makes such a W
without training, a Persian rug; all are measured on fresh samples, beside the best linear model and
what better activations could make of the rug. Tables go to the terminal, pictures to figures/, the
model and a checkpoint to runs/.

In reading order: settings, training, comparing, drawing, the main job, tools.
"""
import argparse
import math
import os
import signal
import sys
import time
from collections import namedtuple

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap

import forge
import rug
import theory

matplotlib.use("Agg")  # draw into files: no window, no display needed

SETTINGS = {"n_sparse": 512, "ratio": 0.25, "p": 0.045, "batch": 1024, "init": "linear",
            "seed": 0, "steps": None, "lr": None}  # None: `default_steps` and `peak_rate`
LARGE = 8192     # n_sparse of the rug that stands for "large": its loss is the theory's within 1 %
DRAWS = 8        # forged models of each kind: their rows are random, and their losses scatter
SAVE_EVERY = 10  # seconds between checkpoints

# The models' colours, mostly Okabe and Ito's (2008), which the colour-blind tell apart
COLOURS = {"trained": "#d55e00", "theory": "#0072b2", "rug": "#a3182b", "projector": "#cc79a7",
           "linear": "#666666", "bayes": "#009e73", "oracle": "#e69f00", "published": "#56b4e9",
           "jump": "#5d3a9b", "priority": "#000000", "digon": "#8a6d00", "regular": "#f0e442",
           "mixture": "#33bbee"}
RUG_COLOURS = LinearSegmentedColormap.from_list(
    "rug", ["#0b1f3a", "#1f4e79", "#3b8686", "#f1e2c4", "#d9822b", "#a3182b", "#4a0a12"])
CURVES = {"linear": ("optimal linear", theory.linear_loss),
          "theory": ("symmetric theory", lambda r, p: theory.optimum(r, p).loss),
          "bayes": ("Bayes elementwise", theory.bayes_loss),
          "oracle": ("oracle filter", theory.oracle_loss)}

# ---------------------------------------------------------------------------------------- training
def peak_rate(n_sparse):
    """The default peak learning rate, for n_sparse 12 to 4096, r 0.01 to 0.8 and p 0.001 to 0.6:
    there half of it ends no lower. The numbers stand in experiments/README.md."""
    return 60e-3 / math.sqrt(n_sparse)

def default_steps(p):
    """The default number of training steps: more where features are on less often, at least 1000.

    Four times as many lower the loss by 2 to 4 % (p 0.01 and 0.1; see experiments/README.md)."""
    return round(4000 * max(0.25, math.sqrt(0.045 / p)))

def learning_rate(step, steps, peak):
    """Half a cosine wave from `peak` at step 0 down to 0 after the last step."""
    return peak * (1 + math.cos(math.pi * step / steps)) / 2

def train(trainer, steps, peak, checkpoint, predicted):
    """The training loop: until `trainer` has done `steps` steps, saved every few seconds.

    ValueError if the run diverges. Ctrl-C lets the running step end and saves before it is raised.
    """
    stop = []
    usual = signal.signal(signal.SIGINT, lambda *_: stop.append(True))
    progress, saved = Progress(steps), time.monotonic()
    try:
        while len(trainer.losses) < steps and not stop:
            trainer.step(learning_rate(len(trainer.losses), steps, peak))
            check_loss(trainer, steps, peak)
            if time.monotonic() - saved > SAVE_EVERY:
                save(trainer, steps, peak, checkpoint)
                saved = time.monotonic()
            loss = np.mean(trainer.losses[-50:])
            progress.show(len(trainer.losses), f"loss {loss:.6f}  theory {predicted:.6f}")
        save(trainer, steps, peak, checkpoint)
    finally:
        signal.signal(signal.SIGINT, usual)
    if stop:
        raise KeyboardInterrupt

def save(trainer, steps, peak, checkpoint):
    """Save what is needed to go on; ValueError if there is nothing to go on from."""
    finite = all(np.isfinite(weight).all() for weight in trainer.weights)
    rug.require(finite, f"weights at --lr {peak:g}", "NaN or infinity", "finite; try a smaller one")
    trainer.save(checkpoint, steps=steps, lr=peak)

def check_loss(trainer, steps, peak):
    """ValueError if training has diverged: a loss that is not finite or far above its start or, in
    the second half and by four standard errors, above Var x."""
    losses, done, least = trainer.losses, len(trainer.losses), theory.variance(trainer.p)
    where, hint = f"at step {done} with --lr {peak:g}", "(try a smaller one)"
    near = losses[-1] < 100 * losses[0] + 1  # not if it is NaN
    rug.require(near, f"loss {where}", losses[-1], f"finite and not far above its start {hint}")
    if done >= 200 and 2 * done >= steps and done % 50 == 0:
        mean, error = np.mean(losses[-100:]), np.std(losses[-100:]) / 10
        rug.require(mean - 4 * error <= least, f"loss {where}", float(mean),
                    f"at most {least:.6g}, what answering p/2 for every feature loses {hint}")

# --------------------------------------------------------------------------------------- comparing
Row = namedtuple("Row", "key name r loss error")  # of the table; error 0: computed, not measured

def enough(n_sparse):
    """Samples to evaluate a model with: they give the loss of the default one to 0.3 %."""
    return min(2**20, max(256, 2**25 // n_sparse))

def rug_at(n_sparse, ratio, p, seed):
    """The Persian rug whose n_dense/n_sparse is as near to `ratio` as n_sparse allows."""
    return forge.persian_rug(n_sparse, min(n_sparse, max(1, round(ratio * n_sparse))), p, seed)

def compare(model, numbers, p, seed):
    """Rows for the trained model with its Statistics, for forged ones, and to hold against them."""
    n_sparse, r = model.n_sparse, model.n_dense / model.n_sparse
    def forged(key, name, make):
        """Mean over draws, all measured on the same samples, and its spread with their error."""
        models = [make(seed + draw) for draw in range(DRAWS)]
        samples = enough(models[0].n_sparse) // DRAWS
        losses, errors = zip(*(rug.evaluate(one, p, samples, seed) for one in models))
        error = math.hypot(np.std(losses), np.mean(errors))
        ratio = models[0].n_dense / models[0].n_sparse
        size = f"n_sparse {models[0].n_sparse}" + (f", r {ratio:.4g}" if ratio != r else "")
        return Row(key, f"{name}, {size}, {DRAWS} draws", ratio, np.mean(losses), error)
    beside = 2**round(math.log2(n_sparse))  # the nearest power of two
    own = theory.symmetric_loss(numbers.a[0], numbers.effective_bias[0], numbers.sigma[0], p)
    estimate = rug.evaluate(model, p, enough(n_sparse), seed)
    rows = [Row("trained", f"trained, n_sparse {n_sparse}", r, *estimate),
            Row("own", "theory at the trained a, b, σ", r, own, 0.0),
            forged("rug", "Persian rug", lambda draw: rug_at(beside, r, p, draw))]
    if beside != LARGE:
        rows.append(forged("large rug", "Persian rug", lambda draw: rug_at(LARGE, r, p, draw)))
    rows.append(forged("projector", "random projector", lambda draw: forge.random_projector(
        n_sparse, model.n_dense, p, draw)))
    return rows + [Row(key, name, r, loss(r, p), 0.0) for key, (name, loss) in CURVES.items()]

def print_results(rows, numbers, p):
    """Two tables: the Rows, and the large-scale numbers of models (name → Statistics)."""
    lines = []
    for row in rows:
        best, error = theory.optimum(row.r, p).loss, f"{row.error:.1g}" if row.error else ""
        over = f"{row.loss / best:.4f}" if best else "–"  # n_dense = n_sparse
        over += f" ± {row.error / best:.4f}" if best and row.error else ""
        lines.append([row.name, f"{row.loss:.4g}", error, over])
    print_table(["loss per feature", "loss", "±", "over theory"], lines)
    print("±: standard error of sampling; for forged models with the spread over draws.\n")
    fields = {"a": "a", "effective_bias": "effective bias", "sigma": "σ", "lyapunov": "Λ",
              "skewness": "skewness"}
    lines = [[name] + ["{:.3f} ± {:.3f}".format(*getattr(found, field)) for field in fields]
             for name, found in numbers.items()]
    print_table(["mean ± spread over features", *fields.values()], lines)

# ----------------------------------------------------------------------------------------- drawing
def draw_loss(path, losses, rows):
    """The loss curve, with the theory's lines."""
    figure, axes = plt.subplots(figsize=(8, 4.2))
    window = max(1, len(losses) // 200)
    means = np.array(losses[:len(losses) // window * window]).reshape(-1, window).mean(axis=1)
    steps = (np.arange(len(means)) + 0.5) * window
    axes.plot(steps, means, color=COLOURS["trained"])
    axes.margins(y=0.12)
    label(axes, steps[-1], means[-1], "trained", COLOURS["trained"], offset=(-4, -14), ha="right")
    for row in rows:
        if row.key in CURVES and row.loss > 0:
            axes.axhline(row.loss, color=COLOURS[row.key], lw=1)
            label(axes, len(losses), row.loss, row.name, COLOURS[row.key], ha="right",
                  offset=(-4, -11 if row.key == "bayes" else 3))
    axes.set(xlabel="training step", ylabel="loss per feature", title="Training, and the theory",
             yscale="log" if means.min() > 0 else "linear")
    save_figure(figure, path)

def draw_weights(path, models):
    """Corners of W with the bias as one more column, and histograms of its first 1024 rows below;
    models: {title: rug.Autoencoder}."""
    found = {title: model.decoder[:1024] @ model.encoder.T for title, model in models.items()}
    largest = max(np.abs(w[:30, :30]).max() for w in found.values())
    figure, grid = plt.subplots(2, 2, figsize=(10, 7.2), height_ratios=(3, 1), layout="constrained")
    for (above, below), (title, w) in zip(grid.T, found.items()):
        corner, bias = w[:30, :30], models[title].bias[:30, None]
        shown = np.hstack([corner, np.full_like(bias, np.nan), bias])
        image = above.imshow(shown, cmap="RdBu_r", vmin=-largest, vmax=largest)
        above.set(title=title, xlabel="feature j (in); last column: bias", ylabel="feature i (out)")
        bins = np.arange(min(-1, w.min()), max(2, w.max()) + 0.025, 0.025)
        below.hist(w[~np.eye(*w.shape, dtype=bool)], bins, color="#888888")
        below.hist(np.diag(w), bins, color="#b2182b")
        below.set(yscale="log", ylim=(0.7, None), ylabel="count",
                  xlabel="W[i, j], off the diagonal (grey) and on it (red)")
    figure.colorbar(image, ax=grid[0], label="W[i, j] = decoder[i] · encoder[j]", shrink=0.85)
    save_figure(figure, path)

def draw_rug(path, r, p, seed):
    """The rug itself, 256 features, four pixels a weight."""
    forged, i = rug_at(256, r, p, seed), np.arange(4 * 256) // 4
    largest = 0.75 * np.abs(forged.kernel[1:]).max()  # what is larger takes the last colour
    with rug.replacing(path) as file:
        plt.imsave(file, forged.kernel[i[:, None] ^ i], format="png", cmap=RUG_COLOURS,
                   vmin=-largest, vmax=largest)
    print(f"→ {path}")

MARKERS = {"trained": {"marker": "o"}, "rug": {"marker": "x"}, "projector": {"marker": "+"},
           "large rug": {"marker": "o", "ms": 14, "mfc": "none"}}  # drawn around the other rug

def draw_ratio(path, rows, p):
    """Loss against r at this p: linear, theory, Bayes as curves, what this run found as points."""
    ratios = np.geomspace(min(rows[0].r, p) / 4, 1, 120)
    figure, axes = plt.subplots(figsize=(8, 4.6))
    for key, place, offset in (("linear", 100, (6, 6)), ("theory", 78, (6, 0)),
                               ("bayes", 68, (-100, -14))):
        name, loss = CURVES[key]
        losses = [loss(ratio, p) for ratio in ratios]
        axes.plot(ratios, losses, color=COLOURS[key], zorder=1)
        label(axes, ratios[place], losses[place], name, COLOURS[key], offset=offset)
    for row in rows:
        if row.key in MARKERS:
            axes.plot(row.r, row.loss, color=COLOURS[row.key.split()[-1]], label=row.name, ls="",
                      **{"ms": 8, "mew": 1.5} | MARKERS[row.key])
    critical = theory.critical_ratio(p)
    if ratios[0] < critical < 1:
        axes.axvline(critical, color="#999999", lw=0.8, ls=":")
        label(axes, critical, 0, "critical ratio $r_c$", "#666666")
    axes.set(xscale="log", xlabel="ratio r = n_dense / n_sparse", ylabel="loss per feature",
             ylim=(0, None), title=f"Loss against r at p = {p:g}")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.06), frameon=False, fontsize=9)
    save_figure(figure, path)

# ------------------------------------------------------------------------------------ the main job
def new_trainer(kind, given):
    """(trainer, steps, peak rate) for the settings `given` on the command line."""
    settings = SETTINGS | given
    steps, peak, ratio = (settings.pop(name) for name in ("steps", "lr", "ratio"))
    rug.require_positive("ratio", ratio, 1)
    n_sparse = rug.require_integer("n_sparse", settings["n_sparse"], 1)
    rug.require_integer("seed", settings["seed"], 0, 2**62)  # forged draws take the next ones
    trainer = kind(n_dense=round(ratio * n_sparse), **settings)
    steps = default_steps(trainer.p) if steps is None else rug.require_integer("steps", steps, 1)
    peak = peak_rate(n_sparse) if peak is None else peak
    rug.require_positive("lr", peak, 1e30)
    return trainer, steps, float(peak)

def resumed_trainer(kind, given, checkpoint):
    """(trainer, steps, peak rate) of the run that was interrupted; `given` must agree with it."""
    threads = {"threads": given.pop("threads")} if "threads" in given else {}
    trainer = kind.load(checkpoint, **threads)
    steps, peak = trainer.notes.get("steps"), trainer.notes.get("lr")
    rug.require(steps and peak, f"{checkpoint}: steps and lr", (steps, peak), "those of a run")
    kept = vars(trainer) | {"steps": steps, "lr": peak}
    if "ratio" in given:
        rug.require_positive("ratio", given["ratio"], 1)
        given["n_dense"] = round(given.pop("ratio") * trainer.n_sparse)
    for name, value in given.items():
        rug.require(value == kept[name], f"{name} of the run to resume", value, f"{kept[name]}")
    return trainer, steps, peak

def main_job(out=".", plain=False, resume=False, **given):
    """Train, compare, say what it means, draw."""
    rug.require(not plain or "threads" not in given, "--threads with --plain", "set", "left out")
    figures, runs = folder(out, "figures"), folder(out, "runs")
    checkpoint = os.path.join(runs, "checkpoint.npz")
    kind = rug.PlainTrainer if plain else rug.Trainer
    trainer, steps, peak = (resumed_trainer(kind, given, checkpoint) if resume
                            else new_trainer(kind, given))
    n_sparse, p, seed = trainer.n_sparse, trainer.p, trainer.seed
    r = trainer.n_dense / n_sparse
    best = theory.optimum(r, p)
    settings = {name: getattr(trainer, name) for name in trainer.SETTINGS}
    print(", ".join(f"{name} {value}" for name, value in settings.items())
          + f", steps {steps}, lr {peak:.3g}. The first step may compile loops.", flush=True)
    train(trainer, steps, peak, checkpoint, best.loss)
    model = trainer.model
    model.save(os.path.join(runs, "model.npz"), steps=steps, lr=peak, **settings)
    print("Measuring all models on fresh samples …\n", flush=True)
    numbers = theory.macroscopics(model, p)
    rows = compare(model, numbers, p, seed)
    beside = rug_at(2**round(math.log2(n_sparse)), r, p, seed).autoencoder()
    ideal = theory.Statistics(*((x, 0.0) for x in (best.a, best.b, best.b, best.sigma, 0, 0)))
    print_results(rows, {"trained": numbers, "Persian rug": theory.macroscopics(beside, p),
                         "symmetric theory": ideal}, p)
    print(f"Dead features of the trained model: {rug.dead_features(model, p).sum()}.")
    draw_loss(os.path.join(figures, "loss.png"), trainer.losses, rows)
    draw_weights(os.path.join(figures, "weights.png"), {
        f"trained, n_sparse {n_sparse}": model, f"Persian rug, n_sparse {beside.n_sparse}": beside})
    draw_rug(os.path.join(figures, "rug.png"), r, p, seed)
    draw_ratio(os.path.join(figures, "ratio.png"), rows, p)
    print(f"Model: {runs}/model.npz.")

# -------------------------------------------------------------------------------------- the tools
class Progress:
    """How far a long job is: one line rewritten on a terminal, one every five seconds elsewhere."""
    def __init__(self, total, unit="step"):
        self.total, self.unit, self.next, self.start = total, unit, 0.0, None
        self.terminal = sys.stdout.isatty()

    def show(self, done, text):
        """Report `done` of `total`, unless the last report is too recent."""
        now = time.monotonic()
        self.start = self.start or (now, done)  # after the first step: it may include compilation
        if now < self.next and done < self.total:
            return
        self.next = now + (0.1 if self.terminal else 5)
        rate = (done - self.start[1]) / max(now - self.start[0], 1e-9)
        left = f"{(self.total - done) / rate:.0f} s left" if rate else "…"
        line = f"{self.unit} {done}/{self.total}  {text}  {rate:.3g} {self.unit}s/s  {left}"
        end = "\n" if done >= self.total or not self.terminal else ""
        print(f"\r\x1b[2K{line}" if self.terminal else line, end=end, flush=True)

def print_table(header, lines):
    """Columns as wide as their widest cell, the first one aligned left, the others right."""
    widths = [max(len(line[k]) for line in [header, *lines]) for k in range(len(header))]
    for line in [header, ["─" * width for width in widths], *lines]:
        cells = [cell.rjust(width) for cell, width in zip(line, widths)]
        print("  ".join([line[0].ljust(widths[0]), *cells[1:]]))
    print()

def label(axes, x, y, text, colour, offset=(4, 4), **options):
    """Write `text` next to the point (x, y) in the colour of what it names."""
    axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", color=colour, fontsize=9,
                  **options)

def save_figure(figure, path):
    """Write a picture on white ground, which reads well on a light page and on a dark one."""
    with rug.replacing(path) as file:
        figure.savefig(file, format="png", dpi=110, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    print(f"→ {path}")

def folder(*parts):
    """The path of a folder, made if need be; OSError if it can't be."""
    os.makedirs(os.path.join(*parts), exist_ok=True)
    return os.path.join(*parts)

class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line; a flag that isn't given leaves no trace."""
    def __init__(self, **options):
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        """Say it in one line, and leave."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)

    def run(self, job, arguments, again):
        """job(**flags); a mistake becomes one line and status 2, Ctrl-C a line: how to go on."""
        sys.stdout.reconfigure(errors="replace")  # a terminal without σ shows a question mark
        given = vars(self.parse_args(arguments))
        try:
            job(**given)
        except (ValueError, OSError, MemoryError, RuntimeError) as mistake:
            self.error(str(mistake) or "out of memory")
        except KeyboardInterrupt:
            print(f"\nInterrupted; what is done is kept. To go on: {again(given)}", file=sys.stderr)
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
beyond the main job, each with a --help of its own:
  python -m experiments.paper       the paper's figures
  python -m experiments.optimality  one look: ReLU beside JumpReLU, top-k, Bayes, the oracle
  python -m experiments.passes      a second look: decoding again, to exact recovery
  python -m experiments.exact       the loss of given weights without the Gaussian
  python -m experiments.descent     training on the theory, without a sample
  python -m experiments.phases      when features are dropped
  python -m experiments.codes       codes that beat the rug, and what they cost
  python -m experiments.bench       what a step costs

example: python train.py --n-sparse 2048 --ratio 0.1 --p 0.01 --out /tmp/rug""")
    for flag, name, text in (
            ("--n-sparse", "N", "number of features, 1 or more (default 512)"),
            ("--ratio", "R", "n_dense/n_sparse, in (0, 1] (default 0.25)"),
            ("--p", "P", "probability that a feature is on, in (0, 1] (default 0.045)"),
            ("--steps", "N", "training steps, 1 or more (default 4000 at p 0.045, more below)"),
            ("--lr", "X", "peak learning rate (default 60e-3/√n_sparse); falls as half a cosine"),
            ("--batch", "N", "samples a step, 1 or more (default 1024)"),
            ("--seed", "N", "of weights, data and forged rows, 0 or more (default 0)"),
            ("--init", "NAME", "linear, the best linear start (default), or paper, the published"),
            ("--threads", "N", "threads, 1 or more (default: one a core)"),
            ("--out", "DIR", "where figures/ and runs/ go (default: here)")):
        kind = str if flag in ("--out", "--init") else number
        parser.add_argument(flag, metavar=name, type=kind, help=text)
    parser.add_argument("--plain", action="store_true", help="train in plain NumPy, slower")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in "
                        "DIR/runs, with its settings and threads, to the bits of an unbroken run")
    parser.run(main_job, arguments, lambda given: "python train.py --resume --out "
               + given.get("out", ".") + " --plain" * given.get("plain", False))

if __name__ == "__main__":
    main()
