"""python train.py: train the autoencoder, predict its loss, forge the rug, compare them, draw.

The whole argument in one run, on one setting (n_sparse, ratio, p): training finds weights W; theory.py predicts the
loss of the best symmetric W from three numbers; forge.py makes such a W without training, a Persian rug; all are
measured on fresh samples, beside the best linear model and what better activations could make of the rug. Tables go to
the terminal, pictures to figures/, the model and a checkpoint to runs/.

`python train.py --help` explains the settings and names the other jobs.
"""
import os
import signal

if __name__ == "__main__":  # Ctrl-C while the libraries load: nothing is lost, and no traceback is due
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"\nInterrupted.\n"), os._exit(130)))

import rug  # before NumPy is imported, as it holds BLAS to one thread
import argparse
import glob
import itertools
import math
import multiprocessing
import platform
import re
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple
from unittest import mock

import matplotlib
import numba
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, LogNorm, SymLogNorm

import forge
import theory

matplotlib.use("Agg")  # draw into files: no window, no display needed

SETTINGS = {"n_sparse": 512, "ratio": 0.25, "p": 0.045, "steps": 4000, "batch": 1024, "lr": None, "init": "tied",
            "seed": 0}
SAVE_EVERY = 10      # seconds between checkpoints
FORGED_LARGE = 8192  # n_sparse of the rug that stands for "large": its loss is the theory's within about 1 %

# One colour for each model in every picture; they stay apart for the colour-blind (Okabe, Ito 2008).
COLOURS = {"trained": "#d55e00", "theory": "#0072b2", "rug": "#a3182b", "large rug": "#a3182b", "projector": "#cc79a7",
           "linear": "#666666", "bayes": "#009e73", "oracle": "#e69f00", "published": "#56b4e9", "priority": "#000000",
           "digon": "#8a6d00", "regular": "#5d3a9b"}
RUG_COLOURS = LinearSegmentedColormap.from_list(
    "rug", ["#0b1f3a", "#1f4e79", "#3b8686", "#f1e2c4", "#d9822b", "#a3182b", "#4a0a12"])
CURVES = {"linear": ("optimal linear", theory.linear_loss), "bayes": ("Bayes elementwise", theory.bayes_loss),
          "theory": ("symmetric theory", lambda r, p: theory.optimum(r, p).loss),
          "oracle": ("oracle filter", theory.oracle_loss)}


# ------------------------------------------------------------------------------------------------ training


def peak_rate(n_sparse):
    """The default peak learning rate for n_sparse 12 … 4096 and p 0.01 … 0.3.

    0.6 times as much trains a little worse; 2.5 times as much kills all features at n_sparse 2048, p = 0.3.
    """
    return 60e-3 / math.sqrt(n_sparse)


def descent_rate(n_sparse, n_dense):
    """The default peak rate for descending on the theory: at n_sparse 512 1.7 times as much is well, 3.3 times kills features.

    From n_sparse 1024 on it falls: Adam moves all features alike, and their sum, the mean interference, moves the more.
    """
    return 60e-3 / math.sqrt(n_dense * max(n_sparse / 1024, 1))


@np.errstate(all="ignore")  # a run that diverges shows it by its loss
def descend(trainer, lr):
    """One step down the theory's own loss, in the place of Trainer.step: no sample, large-scale statistics only.

    The gradients, of the order of p/n_sparse, are scaled up: Adam's steps don't depend on that, but for its ε.
    """
    loss, slopes = theory.gaussian_loss_and_gradients(trainer.weights, trainer.p)
    return trainer.follow(lr, loss, [slope * np.float32(trainer.n_sparse / trainer.p) for slope in slopes])


def learning_rate(step, steps, peak):
    """Half a cosine wave from `peak` at step 0 down to 0 after the last step."""
    return peak * (1 + math.cos(math.pi * step / steps)) / 2


def duration(seconds):
    """A time to read: 45 s, 12 min, 3.4 h."""
    size, unit = (1, "s") if seconds < 120 else (60, "min") if seconds < 7200 else (3600, "h")
    return f"{seconds / size:.0f} {unit}"


class Progress:
    """How far a long job is: one line rewritten on a terminal, a new line every five seconds elsewhere."""

    def __init__(self, total, unit="step"):
        self.total, self.unit, self.began, self.next = total, unit, time.monotonic(), 0.0
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
            left = f"{duration((self.total - done) / rate)} left" if rate else "…"
        filled = 24 * done // self.total
        bar = f"{'█' * filled}{'░' * (24 - filled)} " if self.terminal else ""
        line = f"{bar}{self.unit} {done}/{self.total}  {text}  {rate:.3g} {self.unit}s/s  {left}"
        end = "\n" if done >= self.total or not self.terminal else ""
        print(f"\r\x1b[2K{line}" if self.terminal else line, end=end, flush=True)


def check_loss(trainer, steps, peak):
    """ValueError if training has diverged: a loss that is not finite or far above its start, or, from half of the steps on,
    one above Var x, what answering p/2 for every feature would lose, by more than four standard errors."""
    losses, done, least = trainer.losses, len(trainer.losses), theory.variance(trainer.p)
    rug.require(losses[-1] < 100 * losses[0] + 1, f"loss at step {done} with --lr {peak:g}", losses[-1],
                "finite and not far above its start (a smaller --lr helps)")
    if done >= 200 and 2 * done >= steps and done % 50 == 0:
        mean, error = np.mean(losses[-100:]), np.std(losses[-100:]) / 10
        rug.require(mean - 4 * error <= least, f"loss at step {done} with --lr {peak:g}", float(mean),
                    f"at most {least:.6g}, what answering p/2 for every feature loses (a smaller --lr helps)")


def train(trainer, steps, peak, checkpoint, predicted, step=rug.Trainer.step):
    """The training loop: until `trainer` has done `steps` steps, with a checkpoint every few seconds and at the end.

    step(trainer, rate) is Trainer.step or `descend`. Raises ValueError if the run diverges. Ctrl-C lets the running step end, saves, and then raises KeyboardInterrupt.
    """
    def save():
        for name, weight in trainer.weights._asdict().items():
            rug.require(np.isfinite(weight).all(), f"{name} after step {len(trainer.losses)} with --lr {peak:g}", "NaN or infinite",
                        "finite (a smaller --lr helps)")
        trainer.save(checkpoint, steps=steps, lr=peak)

    stop = []
    usual = signal.signal(signal.SIGINT, lambda *_: stop.append(True))
    try:
        progress, saved = Progress(steps), time.monotonic()
        while len(trainer.losses) < steps and not stop:
            step(trainer, learning_rate(len(trainer.losses), steps, peak))
            check_loss(trainer, steps, peak)
            if time.monotonic() - saved > SAVE_EVERY:
                save()
                saved = time.monotonic()
            progress.show(len(trainer.losses), f"loss {np.mean(trainer.losses[-50:]):.6f}  theory {predicted:.6f}")
        save()
    finally:
        signal.signal(signal.SIGINT, usual)
    if stop:
        raise KeyboardInterrupt


# --------------------------------------------------------------------------------------------- comparing


class Row(NamedTuple):
    """A line of the table: a model or bound at ratio r, its loss, standard error (0 if computed), and theory's loss."""
    key: str
    name: str
    r: float
    loss: float
    error: float
    theory: float

    def over_theory(self):
        """Loss over theory, with its error; a dash where theory's loss is 0."""
        if self.theory == 0:
            return "–"
        return f"{self.loss / self.theory:.4f}" + (f" ± {self.error / self.theory:.4f}" if self.error else "")


def enough(n_sparse):
    """Samples to evaluate a model with: they give the loss of the default one to 0.3 %."""
    return min(2**20, max(256, 2**25 // n_sparse))


def rug_at(n_sparse, ratio, p, seed):
    """The Persian rug whose n_dense/n_sparse is as near to `ratio` as n_sparse allows."""
    return forge.persian_rug(n_sparse, min(n_sparse, max(1, round(ratio * n_sparse))), p, seed)


def compare(model, numbers, p, seed):
    """Rows for the trained model with its Statistics `numbers`, for the forged models and for what to compare with; its rug."""
    n_sparse, n_dense = model.n_sparse, model.n_dense
    r = n_dense / n_sparse

    def sampled(key, name, model):
        own = model.n_dense / model.n_sparse
        estimate = rug.evaluate(model, p, enough(model.n_sparse), seed)
        note = "" if own == r else f", r = {own:.4g}"
        return Row(key, f"{name}, n_sparse {model.n_sparse}{note}", own, *estimate, theory.optimum(own, p).loss)

    def computed(key, name, loss):
        return Row(key, name, r, loss, 0.0, theory.optimum(r, p).loss)

    forged = rug_at(2**round(math.log2(n_sparse)), r, p, seed)  # the nearest power of two
    rows = [sampled("trained", "trained", model), computed("theory", "symmetric theory", theory.optimum(r, p).loss),
            computed("own", "theory at trained a, b, σ", theory.symmetric_loss(
                numbers.a[0], numbers.effective_bias[0], numbers.sigma[0], p)), sampled("rug", "Persian rug", forged)]
    if forged.n_sparse != FORGED_LARGE:
        rows.append(sampled("large rug", "Persian rug", rug_at(FORGED_LARGE, r, p, seed)))
    rows.append(sampled("projector", "random projector", forge.random_projector(n_sparse, n_dense, p, seed)))
    rows += [computed(key, *CURVES[key][:1], CURVES[key][1](r, p)) for key in ("linear", "bayes", "oracle")]
    return rows, forged


def print_table(header, lines):
    """Columns as wide as their widest cell, the first one aligned left, the others right."""
    widths = [max(len(line[k]) for line in [header] + lines) for k in range(len(header))]
    for line in [header, ["─" * width for width in widths]] + lines:
        print("  ".join([line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]))
    print()


def print_losses(rows):
    """The Rows as a table."""
    print_table(["loss per feature", "loss", "± error", "over theory"],
                [[row.name, f"{row.loss:.4g}", f"{row.error:.1g}" if row.error else "", row.over_theory()] for row in rows])


def print_results(rows, numbers, dead):
    """Both tables: losses, and the large-scale numbers of the models in `numbers` (name → Statistics)."""
    print_losses(rows)
    print_numbers(numbers)
    print(f"Dead features of the trained model: {dead}.")


def print_numbers(numbers):
    """The large-scale numbers of models (name → Statistics), as a table."""
    fields = {"a": "a", "effective_bias": "effective bias", "sigma": "σ", "lyapunov": "Λ", "skewness": "skewness"}
    print_table(["mean ± spread over features"] + list(fields.values()),
                [[name] + [f"{mean:.3f} ± {spread:.3f}" for mean, spread in
                           (getattr(statistics, field) for field in fields)] for name, statistics in numbers.items()])


def conclusions(rows, skewness, p):
    """What the numbers of this run say, as three plain sentences; `skewness` is that of the trained W."""
    found = {row.key: row for row in rows}
    trained, forged, best = found["trained"], found.get("large rug", found["rug"]), found["theory"].loss
    if best == 0:
        return ["With n_dense = n_sparse nothing has to be shared: theory's loss is 0."]
    few = p * FORGED_LARGE < 50
    first = (f"Forged without training, the rug with n_sparse {FORGED_LARGE} loses {forged.over_theory()} times what theory "
             "computes from three numbers, a, the effective bias b and σ" +
             (f"; with only {p * FORGED_LARGE:.2g} features on at a time its interference is not Gaussian." if few else "."))
    gaussian = theory.dropping_loss(trained.r, p)
    second = f"The trained network loses {trained.over_theory()} times that"
    if gaussian < 0.999 * best:
        second += f", where theory allows {gaussian / best:.4f} by dropping features"
    if trained.loss + 2 * trained.error < gaussian:
        second += (": less than Gaussian interference allows, which with the trained a, b, σ would lose "
                   f"{found['own'].loss:.4g}. W's skewness of {skewness:.1f} is what theory doesn't see: large negative "
                   "interference is free while ReLU hides it")
    third = (f"An elementwise activation better than ReLU could get the rug to {found['bayes'].loss / best:.2f} times "
             f"theory's loss, knowing which features are on to {found['oracle'].loss / best:.2f} times; the best linear "
             f"model loses {found['linear'].loss / best:.2f} times that.")
    return [first, second + ".", third]


# ------------------------------------------------------------------------------------------------ drawing


def save_figure(figure, path):
    """Write a picture on white ground, which reads well on a light page and on a dark one."""
    with rug.replacing(path) as file:
        figure.savefig(file, format="png", dpi=110, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    print(f"→ {path}")


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
    axes.set(xlabel="training step", ylabel="loss per feature", yscale="log" if means.min() > 0 else "linear",
             title="The trained loss passes the symmetric optimum" if means[-1] < rows[1].loss else
             "The trained loss and the symmetric optimum")
    save_figure(figure, path)


def weight_summary(model):
    """What `draw_weights` shows of a model: the 30 × 30 corner of W, its bias, W_ii, and a histogram of the other W_ij."""
    counts, edges = np.zeros(80, int), np.linspace(-1, 1, 81)
    for start in range(0, model.n_sparse, 1024):
        w = model.decoder[start:start + 1024] @ model.encoder.T
        w[np.arange(len(w)), start + np.arange(len(w))] = np.inf
        counts += np.histogram(w, edges)[0]
    corner = model.decoder[:30] @ model.encoder[:30].T
    return {"corner": corner, "corner_bias": model.bias[:30], "counts": counts,
            "diagonal": np.einsum("ij,ij->i", model.decoder, model.encoder)}


def draw_weights(path, models):
    """Corners of W with the bias as one more column, on one colour scale, and histograms below; models: title → summary."""
    largest = max(np.abs(found["corner"]).max() for found in models.values())
    figure, grid = plt.subplots(2, 2, figsize=(10, 7.2), height_ratios=(3, 1), layout="constrained")
    for (above, below), (title, found) in zip(grid.T, models.items()):
        gap = np.full((len(found["corner"]), 1), np.nan)
        shown = np.hstack([found["corner"], gap, found["corner_bias"][:, None]])
        image = above.imshow(shown, cmap="RdBu_r", vmin=-largest, vmax=largest)
        above.set(title=title, xlabel="feature j (in); last column: bias", ylabel="feature i (out)")
        edges = np.linspace(-1, 1, 81)
        below.stairs(found["counts"], edges, fill=True, color="#888888")
        bins = np.arange(0, max(2, found["diagonal"].max()), 0.025)
        below.hist(found["diagonal"], bins, color="#b2182b")
        below.set(yscale="log", ylim=(0.7, None), xlabel="W[i, j], off the diagonal (grey) and on it (red)", ylabel="count")
    figure.colorbar(image, ax=grid[0], label="W[i, j] = decoder[i] · encoder[j]", shrink=0.85)
    save_figure(figure, path)


def draw_rug(path, r, p, seed):
    """The rug itself, 256 features, four pixels a weight."""
    forged, i = rug_at(256, r, p, seed), np.arange(4 * 256) // 4
    largest = 0.75 * np.abs(forged.kernel[1:]).max()  # what is larger, the diagonal above all, takes the last colour
    with rug.replacing(path) as file:
        plt.imsave(file, forged.kernel[i[:, None] ^ i], format="png", cmap=RUG_COLOURS, vmin=-largest, vmax=largest)


def draw_ratio(path, rows, p):
    """Loss against r at this p: linear, theory and Bayes as curves, what this run measured as points."""
    ratios = np.geomspace(min(rows[0].r, p) / 4, 1, 120)
    figure, axes = plt.subplots(figsize=(8, 4.6))
    for key, place, offset in (("linear", 100, (6, 6)), ("theory", 78, (6, 6)), ("bayes", 68, (-100, -14))):
        losses = [CURVES[key][1](ratio, p) for ratio in ratios]
        axes.plot(ratios, losses, color=COLOURS[key], zorder=1)
        label_line(axes, ratios[place], losses[place], CURVES[key][0], COLOURS[key], offset=offset)
    for row, marker in zip([row for row in rows if row.key not in (*CURVES, "own")], "o^vs" if len(rows) == 9 else "o^s"):
        axes.plot(row.r, row.loss, marker, color=COLOURS[row.key], label=row.name, ms=7, markeredgecolor="white", zorder=2)
    critical = theory.critical_ratio(p)
    if ratios[0] < critical < 1:
        axes.axvline(critical, color="#999999", lw=0.8, ls=":")
        label_line(axes, critical, 0, "critical ratio $r_c$", "#666666", offset=(4, 4))
    axes.set(xscale="log", xlabel="ratio r = n_dense / n_sparse", ylabel="loss per feature", ylim=(0, None),
             title=f"Loss against r at p = {p:g}")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.06), frameon=False, fontsize=9)
    save_figure(figure, path)


# --------------------------------------------------------------------------------------------- the main job


def start_trainer(given, checkpoint, default_rate):
    """(trainer, steps, peak rate) for the settings `given` on the command line, new or from the checkpoint."""
    resume, threads = given.pop("resume", False), given.pop("threads", None)
    if not resume:
        settings = {**SETTINGS, **given}
        steps, peak, ratio = (settings.pop(name) for name in ("steps", "lr", "ratio"))
        rug.require_integer("steps", steps, 1)
        rug.require(peak is None or isinstance(peak, (int, float)) and 0 < peak <= 1e30, "lr", peak, "a positive number, at most 1e30")
        rug.require_fraction("ratio", ratio)
        rug.require_integer("n_sparse", settings["n_sparse"], 1)
        theory.variance(settings["p"])  # its ValueError, before anything is changed
        trainer = rug.Trainer(n_dense=round(ratio * settings["n_sparse"]), threads=threads, **settings)
        if os.path.exists(checkpoint):  # nobody's interrupted run is lost by forgetting --resume
            kept = next(name for k in itertools.count(1) for name in [f"{checkpoint}.previous{k}"] if not os.path.exists(name))
            os.replace(checkpoint, kept)
            print(f"The checkpoint that was here is now {kept}.")
        return trainer, steps, peak or default_rate(trainer)
    trainer = rug.Trainer.load(checkpoint, threads)
    steps, peak = trainer.notes.get("steps"), trainer.notes.get("lr")
    rug.require(isinstance(steps, int) and steps >= len(trainer.losses) > 0 and isinstance(peak, float) and peak > 0,
                f"{checkpoint}: steps and lr", (steps, peak), "those of a run of train.py")
    kept = {**{name: getattr(trainer, name) for name in rug.Trainer.SETTINGS}, "steps": steps, "lr": peak}
    if "ratio" in given:
        rug.require_fraction("ratio", given["ratio"])
        given["n_dense"] = round(given.pop("ratio") * trainer.n_sparse)
    for name, value in given.items():
        rug.require(value == kept[name], f"{name} of the run to resume", value, f"{kept[name]} as in {checkpoint}")
    return trainer, steps, peak


def writable(out, name):
    """The path of the folder `name` in `out`, made if need be, and without what killed runs left half-written an hour ago.

    OSError or ValueError if nothing can be written there."""
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    rug.require(os.access(folder, os.W_OK), "folder", folder, "writable")
    for entry in os.scandir(folder):
        if re.search(r"\.(npz|png|part)\.[0-9a-f]{8}\.tmp$", entry.name):
            with suppress(OSError):  # another run may have been faster
                if time.time() - entry.stat().st_mtime > 3600:
                    os.remove(entry)
    return folder


def main_job(given):
    """Train, compare, say what it means, draw."""
    out = given.pop("out", ".")
    runs, figures = writable(out, "runs"), writable(out, "figures")
    checkpoint = os.path.join(runs, "checkpoint.npz")
    trainer, steps, peak = start_trainer(given, checkpoint, lambda trainer: peak_rate(trainer.n_sparse))
    n_sparse, n_dense, p, seed = trainer.n_sparse, trainer.n_dense, trainer.p, trainer.seed
    predicted = theory.optimum(n_dense / n_sparse, p)
    print(f"Training ReLU(W_out W_in x + b): n_sparse {n_sparse}, n_dense {n_dense}, p {p:g}, batch {trainer.batch}, "
          f"lr {peak:.3g}, init {trainer.init}, seed {seed}, {trainer.threads} threads.\nThe first step compiles the hot "
          "loops, which takes some seconds when it is done for the first time.")
    train(trainer, steps, peak, checkpoint, predicted.loss)
    model = trainer.model
    model.save(os.path.join(runs, "model.npz"), p=p, steps=steps, lr=peak, batch=trainer.batch, init=trainer.init, seed=seed,
               threads=trainer.threads)
    print("Measuring all models on fresh samples …\n", flush=True)
    numbers = theory.macroscopics(model, p)
    rows, forged = compare(model, numbers, p, seed)
    if forged.n_sparse != n_sparse:
        print(f"A Hadamard matrix needs a power of two: the rug beside n_sparse {n_sparse} has {forged.n_sparse}.\n")
    ideal = theory.Statistics((predicted.a, 0), (predicted.b, 0), (predicted.b, 0), (predicted.sigma, 0), (0, 0), (0, 0))
    print_results(rows, {"trained": numbers, "Persian rug": theory.macroscopics(forged.autoencoder(), p),
                         "symmetric theory": ideal}, int(rug.dead_features(model, p).sum()))
    print("\n".join(conclusions(rows, numbers.skewness[0], p)))
    draw_loss(os.path.join(figures, "loss.png"), trainer.losses, rows)
    draw_weights(os.path.join(figures, "weights.png"), {
        f"trained, n_sparse {n_sparse}": weight_summary(model),
        f"Persian rug, n_sparse {forged.n_sparse}": weight_summary(forged.autoencoder())})
    draw_rug(os.path.join(figures, "rug.png"), n_dense / n_sparse, p, seed)
    draw_ratio(os.path.join(figures, "ratio.png"), rows, p)
    print(f"Also {figures}/rug.png. Model: {runs}/model.npz.")


# ------------------------------------------------------------------------------------ training on the theory


def draw_descent(path, losses, diagonal, r, p):
    """The computed loss while descending, and the W_ii in the end, with theory's lines."""
    best = theory.optimum(r, p)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot(losses, color=COLOURS["trained"], label="descending on the theory")
    left.axhline(best.loss, color=COLOURS["theory"], lw=1, label="symmetric optimum")
    if theory.kept_fraction(r, p) < 1:
        left.axhline(theory.dropping_loss(r, p), color=COLOURS["theory"], ls="--", lw=1, label="with features dropped")
    left.set(yscale="log" if best.loss else "linear", xlabel="step", ylabel="loss per feature, computed")
    left.legend(frameon=False)
    width = 0.02 * max(abs(diagonal).max(), best.a)  # and a bin around the optimum's a
    bins = best.a + width * (np.arange(-102, 103) + 0.5)
    right.hist(diagonal, bins[(bins > diagonal.min() - 3 * width) & (bins < diagonal.max() + 3 * width)], color=COLOURS["trained"])
    right.set(xlabel="$W_{ii}$ (line: the symmetric optimum's a)", ylabel="features", xlim=(min(0, diagonal.min() - width), None))
    right.axvline(best.a, color=COLOURS["theory"], lw=1)
    save_figure(figure, path)


def theory_job(given):
    """Descend on the theory, then measure what was reached on samples."""
    alien = set(given) & {"batch", "init", "threads"}
    rug.require(not alien, "flags of `theory`", ", ".join(alien), "those of `python train.py theory --help`")
    out = given.pop("out", ".")
    runs, figures = writable(out, "runs"), writable(out, "figures")
    checkpoint = os.path.join(runs, "theory-checkpoint.npz")
    trainer, steps, peak = start_trainer({**({} if "resume" in given else {"steps": 1500, "batch": 1}), **given}, checkpoint,
                                         lambda trainer: descent_rate(trainer.n_sparse, trainer.n_dense))
    n_sparse, p, r = trainer.n_sparse, trainer.p, trainer.n_dense / trainer.n_sparse
    best, kept = theory.optimum(r, p), theory.kept_fraction(r, p)
    print(f"Descending on the theory: n_sparse {n_sparse}, n_dense {trainer.n_dense}, p {p:g}, lr {peak:.3g}, seed {trainer.seed}.")
    began = time.monotonic()
    train(trainer, steps, peak, checkpoint, best.loss, descend)
    spent, model = time.monotonic() - began, trainer.model
    model.save(os.path.join(runs, "theory-model.npz"), p=p, steps=steps, lr=peak, seed=trainer.seed, trained_on="theory")
    numbers = theory.macroscopics(model, p)
    sampled, exact = rug.evaluate(model, p, enough(n_sparse), trainer.seed), n_sparse <= 1024
    losses = {"symmetric optimum": (best.loss, 0.0),
              f"the same, {kept:.1%} of the features kept": (theory.dropping_loss(r, p) if kept < 1 else math.nan, 0.0),
              f"reached by descending, {steps} steps": (trainer.losses[-1], 0.0),
              "these weights without the Gaussian": (theory.exact_loss(model, p) if exact else math.nan, 0.0),
              "these weights on samples": sampled}
    print()
    print_losses([Row("", name, r, *loss, best.loss) for name, loss in losses.items() if math.isfinite(loss[0])])
    print_numbers({"reached": numbers, "symmetric optimum": theory.Statistics(
        (best.a, 0), (best.b, 0), (best.b, 0), (best.sigma, 0), (0, 0), (0, 0))})
    diagonal = theory.feature_statistics(model, p).a
    print(f"{kept_share(diagonal, r, p):.1%} of the features kept (theory: {kept:.1%}), {rug.dead_features(model, p).sum()} dead; "
          f"{spent:.1f} s of training in all.")
    draw_descent(os.path.join(figures, "theory.png"), trainer.losses, diagonal, r, p)
    print(f"Model: {runs}/theory-model.npz.")


# --------------------------------------------------------------------------- the paper's figures: the sweep


# What is kept of a trained model beside its loss
TRAINED = (*theory.Statistics._fields, "dead", "losses", "distance", "corner", "corner_bias", "counts", "diagonal")


FORGED = {"rug": partial(forge.persian_rug, seed=0), "projector": partial(forge.random_projector, seed=0),
          "digons": lambda n_sparse, n_dense, p: forge.digons(n_sparse)}


class Point(NamedTuple):
    """One model to make and measure. Its result is one file, so a sweep can stop, go on and be shared."""
    kind: str  # "trained" (tied start), "published" (the paper's start), "block" (best of five), "theory" or of FORGED
    n_sparse: int
    n_dense: int
    p: float
    steps: int

    @staticmethod
    def at(kind, n_sparse, ratio, p, steps=0):
        """The Point whose n_dense/n_sparse is as near to `ratio` as n_sparse allows."""
        return Point(kind, n_sparse, min(n_sparse, max(1, round(ratio * n_sparse))), p, steps)

    def name(self):
        """All that names it in one word."""
        return "-".join(map(str, self))

    def file(self, folder):
        """Where the result is kept."""
        return os.path.join(folder, self.name() + ".npz")

    def model(self):
        """What a legend calls it."""
        return f"{self.kind}, n_sparse {self.n_sparse}" + (f", {self.steps} steps" if self.steps else "")

    def cost(self):
        """Seconds on one core, roughly: for the order, the progress line and the estimate before a long sweep."""
        if self.steps:
            step = 2e-4 + 3e-6 * self.n_sparse + 4e-8 * (1 + 2 * self.p) * self.n_sparse * self.n_dense
            if self.kind == "theory":
                step = 2e-4 + 1e-10 * self.n_sparse * self.n_dense**2
            return 1 + self.steps * step * (5 if self.kind == "block" else 1)
        return 1 + 1e-10 * self.n_sparse * self.n_dense**2 * (self.kind == "projector")

    def failed(self, result):
        """Whether features died and are missed: such a point is not what training finds. Where theory itself would drop
        features, the loss tells the two apart."""
        return (self.steps > 0 and result["dead"].mean() > 0.005
                and result["loss"] > theory.dropping_loss(self.n_dense / self.n_sparse, self.p))


def start_point(point, seed, threads, part):
    """The Trainer of a Point: new, or as far as it was when it was last kept in the file `part`."""
    settings = dict(zip(rug.Trainer.SETTINGS, (*point[1:4], 1 if point.kind == "theory" else 1024, seed,
                                               "paper" if point.kind == "published" else "tied")))
    if os.path.exists(part):
        try:
            trainer = rug.Trainer.load(part, threads)
            found = {name: getattr(trainer, name) for name in settings}
            rug.require(found == settings and len(trainer.losses) <= point.steps, f"{part}: settings", found, settings)
            return trainer
        except (ValueError, OSError) as damage:
            print(f"Starting anew: {damage}", flush=True)
    return rug.Trainer(**settings, threads=threads)


def make_model(point, threads=None, report=lambda step: None, file=""):
    """The model of a Point and the losses on the way to it: forged, or trained with the default schedule.

    file: of the result; what is done of a long training is kept beside it, and gone on from.
    """
    if point.kind in FORGED:
        return FORGED[point.kind](*point[1:4]), []
    step, peak = ((descend, descent_rate(*point[1:3])) if point.kind == "theory" else
                  (rug.Trainer.step, peak_rate(point.n_sparse)))
    found, saved, seeds = [], time.monotonic(), 5 if point.kind == "block" else 1
    for seed in range(seeds):
        part = f"{file}.{seed}.part" if file else ""
        trainer = start_point(point, seed, threads, part)
        while len(trainer.losses) < point.steps:
            step(trainer, learning_rate(len(trainer.losses), point.steps, peak))
            report(len(trainer.losses))
            if part and (time.monotonic() - saved > SAVE_EVERY or seeds > 1 and len(trainer.losses) == point.steps):
                trainer.save(part)
                saved = time.monotonic()
        found.append((np.mean(trainer.losses[-100:]), seed, trainer))
    best = min(found)[2]
    return best.model, best.losses


def measure_point(point, folder, threads=1, report=lambda step: None):
    """Make the model of a Point, measure it, and keep what the pictures need."""
    file = point.file(folder)
    model, losses = make_model(point, threads, report, file)
    loss, error = rug.evaluate(model, point.p, max(8, 2**23 // point.n_sparse), seed=1)
    rug.require(math.isfinite(loss), f"loss of the model {point.name()}", loss, "finite")
    result = {"loss": loss, "error": error, "theory": theory.optimum(point.n_dense / point.n_sparse, point.p).loss}
    if point.steps:
        w = model.decoder[:32] @ model.encoder.T
        np.fill_diagonal(w, 0)
        x = rug.sample(max(64, min(8192, 2**24 // point.n_sparse)), point.n_sparse, point.p, seed=2).dense()
        result.update(theory.feature_statistics(model, point.p)._asdict(), dead=rug.dead_features(model, point.p), losses=losses,
                      distance=theory.distance_from_gaussian(x @ w.T), **weight_summary(model))
    rug.save_npz(file, "point", {"seeds": "training 0 (a block: 0 … 4), evaluation 1, interference 2", "threads": threads or rug.cores()},
                 point=np.array(list(map(str, point))), **result)
    for part in glob.glob(glob.escape(file) + ".*.part"):
        os.remove(part)


def read_point(point, folder):
    """The result of a Point, or None if there is none; a damaged file is reported and counts as none."""
    try:
        names = ("point", "loss", "error", "theory", *(TRAINED if point.steps else ()))
        result = rug.load_npz(point.file(folder), "point", names)
        rug.require(result["point"].tolist() == list(map(str, point)), point.file(folder), result["point"].tolist(), f"of {point}")
        each = (*theory.Statistics._fields, "dead", "diagonal")  # one value for each feature
        for name in names[1:]:
            value, shape = result[name], () if name in names[1:4] else (point.n_sparse,) if name in each else result[name].shape
            rug.require(value.dtype.kind in "fib" and value.shape == shape and np.isfinite(value).all(),
                        f"{point.file(folder)}: {name}", (value.dtype.name, value.shape), f"finite numbers {shape}")
        return result
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as damage:
        print(f"Computing a damaged point again: {damage}", flush=True)
        return None


def leave_with_parent():
    """In a worker process: leave Ctrl-C to the parent, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


@contextmanager
def without_interrupts():
    """Ctrl-C waits till the end; a process that is started in here never sees it."""
    masked = hasattr(signal, "pthread_sigmask")  # not on Windows
    if masked:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if masked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def run_sweep(points, folder):
    """Measure the points that have no result yet: small models one a process, then large ones with all threads."""
    missing = sorted((point for point in points if read_point(point, folder) is None), key=Point.cost, reverse=True)
    large = [point for point in missing if point.steps and point.n_sparse > 512]
    work = sum(point.cost() for point in missing)
    print(f"{len(points)} models, {len(points) - len(missing)} of them done before; the rest takes roughly "
          f"{duration(work / rug.cores())} on {rug.cores()} cores.", flush=True)
    if not missing:
        return
    progress, done = Progress(math.ceil(work), "core-second"), 0.0
    progress.show(0, "starting")
    workers = ProcessPoolExecutor(rug.cores(), multiprocessing.get_context("spawn"), leave_with_parent)
    try:
        with without_interrupts():  # workers that are being started would answer with tracebacks
            futures = {workers.submit(measure_point, point, folder): point for point in missing if point not in large}
        for future in as_completed(futures):
            future.result()
            done += futures[future].cost()
            progress.show(int(done), futures[future].name())
    finally:
        with without_interrupts():
            workers.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():  # after Ctrl-C: they would finish their points first
                worker.terminate()
    for point in large:
        measure_point(point, folder, None, lambda step: progress.show(
            int(done + point.cost() * step / point.steps), point.name()))
        done += point.cost()
    progress.show(progress.total, "done")


# ------------------------------------------------------------------------ the paper's figures: the pictures


class Scale(NamedTuple):
    """How large a sweep is."""
    sizes: tuple     # n_sparse of the (r, p) maps …
    steps: tuple     # … and the training steps for each
    ratios: tuple
    ps: tuple
    size_steps: int  # training steps of the figures `size`, `starts` and `weights`
    trained_to: int  # largest n_sparse of `size`, trained …
    forged_to: int   # … and forged
    block_steps: int  # training steps of `codes`


PAPER_GRID = tuple(float(f"{value:.4g}") for value in np.geomspace(0.002, 0.8, 20))
RATIOS = (0.01, 0.1, 0.3, 0.5, 0.8)              # a panel each in loss-vs-p
PS = (0.001, 0.01, 0.05, 0.1, 0.4, 0.6)          # a panel each in loss-vs-ratio
SETTINGS_BY_SIZE = ((0.25, 0.045), (0.1, 0.01), (0.5, 0.1))
SCALES = {"quick": Scale((32, 64, 128), (1000, 1000, 1000), (0.01, 0.03, *RATIOS[1:]), PS, 1500, 256, 2**14, 4000),
          "laptop": Scale((128, 512, 2048), (2000, 2000, 500), (0.01, 0.03, *RATIOS[1:]), PS, 2000, 4096, 2**20, 6000),
          "full": Scale((128, 512, 2048, 8192), (10000,) * 4, PAPER_GRID, PAPER_GRID, 10000, 8192, 2**20, 10000)}


def doubling(low, high):
    """low, 2 low, 4 low, … up to high."""
    return [low << k for k in range((high // low).bit_length())]


def paper_rug(path, scale, results):
    """W of forged models with several n_dense, and ever smaller corners of one of them."""
    figure = plt.figure(figsize=(8.06, 5.72), dpi=100)  # 256 × 256 pixels for each: whole pixels for every weight
    cases = [(256, n_dense, 256) for n_dense in (8, 32, 128)] + [(512, 64, size) for size in (128, 32, 8)]
    for k, (n_sparse, n_dense, size) in enumerate(cases):
        axes = figure.add_axes([(10 + 265 * (k % 3)) / 806, (10 + 286 * (1 - k // 3)) / 572, 256 / 806, 256 / 572])
        forged, i = forge.persian_rug(n_sparse, n_dense, 0.045, seed=1), np.arange(size)
        largest = 0.75 * np.abs(forged.kernel[1:]).max()
        axes.imshow(forged.kernel[i[:, None] ^ i], cmap=RUG_COLOURS.resampled(9), vmin=-largest, vmax=largest,
                    interpolation="nearest")
        corner = "" if size == n_sparse else f", corner of {size}"
        axes.set_title(f"n_sparse {n_sparse}, n_dense {n_dense}{corner}", fontsize=8, pad=4)
        axes.set_axis_off()
    with rug.replacing(path) as file:
        figure.savefig(file, format="png", facecolor="white", pil_kwargs={"optimize": True})
    plt.close(figure)
    print(f"→ {path}")
    print(f"n_sparse 512, n_dense 64: {512**2} weights, {len(np.unique(forged.kernel))} different values, all from the "
          "random choice of 64 rows.")


def paper_weights(path, scale, results):
    """A trained W beside the rug's: corner, bias, and the distributions of the entries."""
    (point, result), = results.items()
    forged = rug_at(point.n_sparse, 0.25, 0.045, seed=0).autoencoder()
    draw_weights(path, {f"trained, n_sparse {point.n_sparse}": result,
                        f"Persian rug, n_sparse {point.n_sparse}": weight_summary(forged)})
    for name in ("a", "bias", "skewness"):
        print(f"{name} of the trained model ({point.steps} steps): {result[name].mean():.3f} ± {result[name].std():.3f}")


def sweep(scale, ratios, ps):
    """The Points at each (r, p): trained models of each size, and a large rug."""
    return [point for r in ratios for p in ps for point in
            [Point.at("trained", n_sparse, r, p, steps) for n_sparse, steps in zip(scale.sizes, scale.steps)]
            + [Point.at("rug", FORGED_LARGE, r, p)]]


def paper_losses(path, scale, results, along):
    """Loss over Var x against r at each of PS (along = "r"), or against p at each of RATIOS; without what died."""
    panels, others = (PS, scale.ratios) if along == "r" else (RATIOS, scale.ps)
    good = {point: result for point, result in results.items() if not point.failed(result)}
    figure, grid = plt.subplots(2, 3, figsize=(11, 6.8), sharey=True, layout="constrained")
    for axes, value in zip(grid.flat, panels):
        fine = np.geomspace(min(others) * 0.9, max(others) * 1.1, 60)
        settings = [(x, value) if along == "r" else (value, x) for x in fine]
        for key in ("linear", "bayes", "theory"):
            name, bound = CURVES[key]
            axes.plot(fine, [bound(r, p) / theory.variance(p) for r, p in settings], color=COLOURS[key], label=name)
        points = sweep(scale, others, [value]) if along == "r" else sweep(scale, [value], others)
        for model, marker in zip(dict.fromkeys(point.model() for point in points), "os^Dx"):
            some = [point for point in points if point in good and point.model() == model]
            axes.plot([point.n_dense / point.n_sparse if along == "r" else point.p for point in some],
                      [good[point]["loss"] / theory.variance(point.p) for point in some],
                      marker, color=COLOURS[model.split(",")[0]], ms=5, label=model)
        axes.set(xscale="log", title=f"{'p' if along == 'r' else 'r'} = {value:g}", ylabel="loss / Var x",
                 xlabel="ratio r = n_dense / n_sparse" if along == "r" else "p, the probability that a feature is on")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    for empty in grid.flat[len(panels):]:
        empty.set_visible(False)
    save_figure(figure, path)
    for model in dict.fromkeys(point.model() for point in results):
        some = [100 * (result["loss"] / result["theory"] - 1) for point, result in good.items() if point.model() == model]
        died = sum(point.model() == model for point in results) - len(some)
        print(f"{model}: loss over theory {np.median(some or [np.nan]):+.1f} % in the median of {len(some)} points, "
              f"{min(some, default=np.nan):+.1f} % to {max(some, default=np.nan):+.1f} %; left out: {died} that lost features which theory keeps")


def paper_symmetry(path, scale, results):
    """Heat maps over (r, p), a row for each n_sparse: how far features differ, and ν from a Gaussian."""
    measures = {"std $W_{ii}$ / mean": lambda found: found["a"].std() / abs(found["a"].mean()),
                "std $b_i$": lambda found: found["bias"].std(),
                "std effective bias": lambda found: found["effective_bias"].std(),
                "std $\\sigma_i^2$ / mean": lambda found: (found["sigma"]**2).std() / (found["sigma"]**2).mean(),
                "mean $\\Lambda_i$": lambda found: found["lyapunov"].mean(),
                "KS distance of $\\nu_i$": lambda found: found["distance"].mean()}
    rows = len(scale.sizes)
    figure, grid = plt.subplots(rows, 6, figsize=(14, 2.3 * rows + 1), layout="constrained", squeeze=False)
    points = [[[Point.at("trained", n_sparse, r, p, steps) for p in scale.ps] for r in scale.ratios]
              for n_sparse, steps in zip(scale.sizes, scale.steps)]
    died = np.array([[[point.failed(results[point]) for point in row] for row in size] for size in points])
    kept = np.array([[theory.kept_fraction(r, p) > 0.999 for p in scale.ps] for r in scale.ratios])
    for column, (name, measure) in zip(grid.T, measures.items()):
        maps = np.array([[[measure(results[point]) for point in row] for row in size] for size in points])
        maps[died] = np.nan  # blank: not what training finds
        limits = max(np.nanmin(maps), 1e-4), np.nanmax(maps)
        for axes, values, n_sparse in zip(column, maps, scale.sizes):
            image = axes.imshow(values, norm=LogNorm(*limits), cmap="viridis", origin="lower", aspect="auto")
            for axis, ticks in ((axes.xaxis, scale.ps), (axes.yaxis, scale.ratios)):
                every = -(-len(ticks) // 6)
                axis.set_ticks(range(0, len(ticks), every), [f"{tick:g}" for tick in ticks[::every]], fontsize=7)
            axes.set_ylabel(f"n_sparse {n_sparse}\nratio r" if column[0] is grid[0, 0] else "")
        column[0].set_title(name, fontsize=10)
        column[-1].set_xlabel("p")
        bar = figure.colorbar(image, ax=list(column), location="bottom", aspect=12,
                              ticks=np.geomspace(*limits, 4), format="%.2g")
        bar.minorticks_off()
        medians = [f"{np.nanmedian(values[kept]):.3f} at {n_sparse}" for values, n_sparse in zip(maps, scale.sizes)]
        print(f"{name.replace('$', '')}, median over the (r, p) where no feature should be dropped: {', '.join(medians)}")
    save_figure(figure, path)


def paper_size(path, scale, results):
    """Loss over theory against n_sparse: trained, rug and projector."""
    figure, grid = plt.subplots(1, 3, figsize=(12, 4.2), sharey=True, layout="constrained")
    for axes, (r, p) in zip(grid, SETTINGS_BY_SIZE):
        for kind, marker in (("projector", "s-"), ("rug", "^-"), ("trained", "o-")):
            points = [point for point in results if point.kind == kind and point.p == p and not point.failed(results[point])]
            ratios = [float(results[point]["loss"] / results[point]["theory"]) for point in points]
            errors = [float(results[point]["error"] / results[point]["theory"]) for point in points]
            sizes = [point.n_sparse for point in points]
            axes.errorbar(sizes, ratios, errors, fmt=marker, color=COLOURS[kind], label=kind, ms=4)
            print(f"r {r}, p {p}, {kind}: loss over theory " + ", ".join(
                f"{ratio:.3f} ± {error:.3f} at {point.n_sparse}" for ratio, error, point in zip(ratios, errors, points)))
        axes.axhline(1, color=COLOURS["theory"], lw=1)
        axes.set(xscale="log", yscale="log", xlabel="n_sparse", title=f"r = {r:g}, p = {p:g}")
        axes.set_yticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])
    grid[0].set_ylabel("loss / symmetric theory")
    grid[0].legend(frameon=False)
    save_figure(figure, path)


def paper_starts(path, scale, results):
    """Dead fraction and loss over theory against p, for the tied and the published start."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 5.4), sharex=True, layout="constrained")
    for kind, name in (("trained", "tied start"), ("published", "published start")):
        points = [point for point in results if point.kind == kind]
        dead = [results[point]["dead"].mean() for point in points]
        ratios = [results[point]["loss"] / results[point]["theory"] for point in points]
        for axes, values in ((above, dead), (below, ratios)):
            axes.plot([point.p for point in points], values, "o-", color=COLOURS[kind])
            label_line(axes, PS[1], values[1], name, COLOURS[kind])
        print(f"{name}, n_sparse {points[0].n_sparse}, {points[0].steps} steps: " + ", ".join(
            f"p {point.p:g}: {100 * share:.0f} % dead, {ratio:.2f} of theory"
            for point, share, ratio in zip(points, dead, ratios)))
    below.axhline(1, color=COLOURS["theory"], lw=1)
    above.set(ylabel="dead features, share", title=f"r = 0.25, n_sparse {points[0].n_sparse}: the start decides what dies")
    below.set(ylabel="loss / symmetric theory", xscale="log", yscale="log", xlabel="p, the probability that a feature is on")
    save_figure(figure, path)


def paper_scaling(path, scale, results):
    """The symmetric optimum over Var x against r/r_c, and its limit law."""
    figure, axes = plt.subplots(figsize=(7.5, 4.6))
    over_critical = np.geomspace(0.2, 30, 100)
    for k, p in enumerate((1e-2, 1e-3, 1e-4, 1e-5, 1e-6)):
        ratios = over_critical[over_critical * theory.critical_ratio(p) < 1] * theory.critical_ratio(p)
        losses = [theory.optimum(r, p).loss / theory.variance(p) for r in ratios]
        axes.plot(ratios / theory.critical_ratio(p), losses, color=plt.get_cmap("Blues")(0.35 + 0.13 * k), label=f"p = {p:g}")
        for multiple in (0.5, 3):
            r = multiple * theory.critical_ratio(p)
            over_limit = theory.optimum(r, p).loss / theory.scaling_loss(r, p)
            print(f"p {p:g}, r = {multiple} r_c: optimum over limit law {over_limit:.4f}")
    limit = [theory.scaling_loss(x * theory.critical_ratio(1e-6), 1e-6) / theory.variance(1e-6) for x in over_critical]
    axes.plot(over_critical, limit, "k--", lw=1.2, label="limit p → 0")
    axes.set(xscale="log", xlabel="$r / r_c$, with $r_c = (2/3)\\, p \\ln(1/p)$", ylabel="loss / Var x", ylim=(0, 1.05))
    axes.legend(frameon=False)
    save_figure(figure, path)


def paper_optimality(path, scale, results):
    """The symmetric optimum over the Bayes elementwise loss, and over the oracle filter's, against r."""
    figure, both = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for axes, bound, name in zip(both, (theory.bayes_loss, theory.oracle_loss), ("Bayes elementwise", "oracle filter")):
        for k, p in enumerate((1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.4)):
            ratios = np.geomspace(p, 0.95, 60)
            factors = [theory.optimum(r, p).loss / bound(r, p) for r in ratios]
            axes.plot(ratios, factors, color=plt.get_cmap("viridis")(k / 6), label=f"p = {p:g}")
            print(f"p {p:g}: ReLU over {name} from {min(factors):.2f} to {max(factors):.2f}, at r = 0.5 "
                  f"{theory.optimum(0.5, p).loss / bound(0.5, p):.2f}")
            r = 3 * theory.critical_ratio(p)
            if r < 1:
                print(f"p {p:g}, at r = 3 r_c: {theory.optimum(r, p).loss / bound(r, p):.2f}")
        axes.set(xscale="log", xlabel="ratio r = n_dense / n_sparse", ylabel=f"symmetric optimum / {name}")
    both[0].legend(frameon=False)
    save_figure(figure, path)


FIGURES = {  # name: the models that it needs, and how it is drawn
    "rug": (lambda scale: [], paper_rug),
    "weights": (lambda scale: [Point.at("trained", min(512, scale.trained_to), 0.25, 0.045, scale.size_steps)],
                paper_weights),
    "loss-vs-ratio": (lambda scale: sweep(scale, scale.ratios, PS), partial(paper_losses, along="r")),
    "loss-vs-p": (lambda scale: sweep(scale, RATIOS, scale.ps), partial(paper_losses, along="p")),
    "symmetry": (lambda scale: [point for point in sweep(scale, scale.ratios, scale.ps) if point.kind == "trained"],
                 paper_symmetry),
    "size": (lambda scale: [Point.at(kind, n_sparse, r, p, scale.size_steps * (kind == "trained"))
                            for kind, to in (("trained", scale.trained_to), ("rug", scale.forged_to),
                                             ("projector", min(4096, scale.trained_to)))
                            for r, p in SETTINGS_BY_SIZE for n_sparse in doubling(32, to)], paper_size),
    "starts": (lambda scale: [Point.at(kind, min(256, scale.trained_to), 0.25, p, scale.size_steps)
                              for kind in ("trained", "published") for p in PS], paper_starts),
    "scaling": (lambda scale: [], paper_scaling),
    "optimality": (lambda scale: [], paper_optimality),
}


# ------------------------------------------------------------------------------------------- beyond the paper


def draw_exact(path, scale, results):
    """One table: theory's optimum, the Gaussian loss at each feature's own a, b, σ, the exact loss, a large sample."""
    lines, laws, sizes = [], {}, [n_sparse for n_sparse in (128, 512, 1024) if n_sparse <= 4 * scale.trained_to]
    points = [Point.at(kind, n_sparse, 0.5 if kind == "digons" else 0.25, 0.045, scale.size_steps * (kind == "trained"))
              for kind, some in (("trained", sizes[:2]), ("rug", sizes), ("digons", sizes[:1])) for n_sparse in some]
    progress = Progress(len(points), "model")
    for point in points:
        progress.show(len(lines), point.model())
        model = make_model(point)[0]
        model = model.autoencoder() if point.kind == "rug" else model
        numbers, best = theory.feature_statistics(model, point.p), theory.optimum(point.n_dense / point.n_sparse, point.p).loss
        gaussian = theory.gaussian_losses(numbers.a, numbers.effective_bias, numbers.sigma, point.p).mean()
        began = time.perf_counter()
        exact = theory.exact_loss(model, point.p)
        spent = time.perf_counter() - began
        sampled = rug.evaluate(model, point.p, 2**25 // point.n_sparse, seed=1)
        lines.append([point.model()] + [f"{loss:.6f}" for loss in (best, gaussian, exact)] +
                     [f"{sampled.loss:.6f} ± {sampled.error:.6f}", f"{(exact - sampled.loss) / sampled.error:+.1f}", f"{spent:.1f}"])
        x = rug.sample(2**14, point.n_sparse, point.p, seed=2).dense()
        w = model.decoder[:32] @ model.encoder.T
        np.fill_diagonal(w, 0)
        laws[point[:2]] = (x @ w.T - point.p / 2 * w.sum(axis=1)) / numbers.sigma[:32]
    progress.show(len(points), "done")
    print_table(["r 0.25 (digons 0.5), p 0.045", "theory's optimum", "Gaussian at own a, b, σ", "exact", "sampled",
                 "exact − sampled, errors", "exact takes, s"], lines)
    figure, axes = plt.subplots(figsize=(8, 4.4))
    for kind in ("trained", "rug"):
        axes.hist(laws[kind, sizes[:2][-1]].ravel(), np.arange(-10, 7, 0.1), density=True, histtype="step", color=COLOURS[kind], label=kind)
    y = np.arange(-6, 6, 0.05)
    axes.plot(y, theory.normal_density(y), color=COLOURS["theory"], lw=1, label="Gaussian")
    axes.set(yscale="log", ylim=(1e-6, 2), xlabel="(ν − mean) / σ", ylabel="density",
             title=f"The interference in a trained network, in a rug, and in the theory; n_sparse {sizes[:2][-1]}")
    axes.legend(frameon=False)
    save_figure(figure, path)


PHASE_PS, MULTIPLES = (0.03, 0.1, 0.3), (0.4, 0.6, 0.8, 1.25, 1.6)  # p, and r over the tangent ratio r*


def kept_share(diagonal, r, p):
    """The share of features with a W_ii above half of what theory gives to those that it keeps."""
    return np.mean(diagonal > theory.optimum(min(r / theory.kept_fraction(r, p), 1.0), p).a / 2)


def phase_point(scale, kind, multiple, p):
    """The Point at r = multiple · r*(p)."""
    return Point.at(kind, min(512, scale.trained_to), multiple * theory.tangent_ratio(p), p, scale.size_steps)


def draw_phases(path, scale, results):
    """Map of the predicted fraction of dropped features with the trained ones on it; histograms of W_ii at one p."""
    ps, ratios = np.geomspace(0.005, 0.6, 24), np.geomspace(0.01, 1, 200)
    tangents = np.array([theory.tangent_ratio(p) for p in ps])
    figure, axes = plt.subplot_mosaic([["trained", "theory", "above"], ["trained", "theory", "below"]], figsize=(13, 5.6),
                                      layout="constrained")
    names = {"trained": "trained on samples", "theory": "trained on the theory"}
    for kind, name in names.items():
        image = axes[kind].pcolormesh(ps, ratios, 1 - np.minimum(1, ratios[:, None] / tangents), cmap="viridis", vmin=0, vmax=1)
        axes[kind].plot(ps, tangents, "w", lw=2)
        some = [point for point in results if point.kind == kind]
        axes[kind].scatter([point.p for point in some], [point.n_dense / point.n_sparse for point in some], 130,
                           [1 - kept_share(results[point]["a"], point.n_dense / point.n_sparse, point.p) for point in some],
                           cmap="viridis", vmin=0, vmax=1, edgecolors="white", linewidths=1.5)
        axes[kind].set(xscale="log", yscale="log", xlabel="p", ylabel="ratio r", title=f"{name}, n_sparse {some[0].n_sparse}")
    figure.colorbar(image, ax=axes["theory"], label="dropped features: predicted (ground), found (discs)")
    for place, multiple in (("above", 1.6), ("below", 0.6)):
        for kind, name in names.items():
            axes[place].hist(results[phase_point(scale, kind, multiple, 0.03)]["a"], np.arange(-0.5, 2.5, 0.04),
                             histtype="step", color=COLOURS[kind], label=name)
        axes[place].set(xlabel="$W_{ii}$", ylabel="features", title=f"{place} the line: p = 0.03, r = {multiple} r*")
    axes["above"].legend(frameon=False, fontsize=8)
    save_figure(figure, path)
    print_table(["p", "r*", "r* / r_c"], [[f"{p:g}", f"{theory.tangent_ratio(p):.4g}",
                f"{theory.tangent_ratio(p) / theory.critical_ratio(p):.3f}"] for p in (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-5, 1e-10, 1e-100)])
    lines = []
    for p, multiple in itertools.product(PHASE_PS, MULTIPLES):
        points = [phase_point(scale, kind, multiple, p) for kind in names]
        r = points[0].n_dense / points[0].n_sparse
        lines.append([f"{p:g}", f"{r:.4f}", f"{r / theory.tangent_ratio(p):.2f}", f"{1 - theory.kept_fraction(r, p):.2f}"] + [
            cell for point in points for cell in (
                f"{1 - kept_share(results[point]['a'], r, p):.2f}",
                f"{results[point]['loss'] / theory.dropping_loss(r, p):.3f} ± {results[point]['error'] / theory.dropping_loss(r, p):.3f}")])
    print_table(["p", "r", "r / r*", "dropped: predicted", "trained on samples", "loss / predicted", "trained on theory",
                 "loss / predicted"], lines)


def turned(angles):
    """Unit vectors in the plane at these multiples of a whole turn."""
    return np.stack([np.cos(2 * np.pi * angles), np.sin(2 * np.pi * angles)], axis=1)


REGULAR = {"triangle": turned(np.arange(3) / 3), "pentagon": turned(np.arange(5) / 5),
           "tetrahedron": np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5}


def regular_loss(directions, p):
    """The exact loss of features in these directions, W = g × cosines, at the best gain g and bias: look around, go on."""
    def loss(gain, bias):
        return theory.exact_loss(rug.Autoencoder(directions, gain * directions, np.full(len(directions), bias)), p)

    best, step = (loss(1.0, 0.0), 1.0, 0.0), 0.2
    while step > 0.005:
        around = [(best[1] + step * g, best[2] + step * b) for g, b in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        found = min((loss(*place), *place) for place in around)
        best, step = (found, step) if found < best else (best, step / 2)
    return best[0]


def known_codes(p):
    """{name: (ratio, loss)} of all that can be mixed at this p; the first word of a name is its kind."""
    codes = {"drop": (0.0, theory.variance(p)), "identity": (1.0, 0.0), "digon": (0.5, theory.digon_loss(p, 1 / 3))}
    codes |= {f"priority {n}": (2 / n, theory.priority_loss(2 / n, p, closed=True))
              for n in (*range(3, 50), 60, 80, 100, 150, 200, 1000)}
    codes |= {f"regular {name}": (e.shape[1] / len(e), regular_loss(e, p)) for name, e in REGULAR.items()}
    return codes | {f"rug {r:.3f}": (r, theory.optimum(r, p).loss) for r in np.geomspace(max(p, 2e-3), 0.98, 30)}


AT = (0.25, 0.045)  # r and p of most of what follows
MAP = (14, 40)  # cells of the map over p and r
NOISE = 10.0**np.arange(-12, 1)  # in the hidden units, over their root mean square
BLOCK_SIZES = (8, 12, 16, 24, 32, 64)
CODE_PS = (0.01, 0.045, 0.3)


def block_points(scale):
    """Small blocks to train: one (r, p) at several sizes, and one size at several (r, p)."""
    steps = scale.block_steps
    return [Point.at("block", n_sparse, 0.25, 0.045, steps) for n_sparse in BLOCK_SIZES] + [
        Point.at("block", 16, r, p, steps) for r in (0.125, 0.25, 0.5) for p in CODE_PS if (r, p) != (0.25, 0.045)]


def code_points(scale):
    """Models that `codes` needs: the blocks, and networks of growing size."""
    return block_points(scale) + [
        Point.at("trained", n_sparse, 0.25, 0.045, scale.block_steps // (8 if n_sparse > 2 * scale.trained_to else 1))
        for n_sparse in (12, 32, 128, 512, 2048)]


def draw_codes(path, scale, results):
    """Who wins where, a trained block beside a forged one, and what the advantage costs: three pictures."""
    found = next(result for point, result in results.items() if point[:3] == ("block", 12, 3))
    left, singular, right = np.linalg.svd(found["corner"].astype(float))
    root = np.sqrt(singular[:3])  # of all factors of W those with the least norms
    block = rug.Autoencoder(right[:3].T * root, left[:, :3] * root, found["corner_bias"].astype(float))
    draw_blocks(path[:-4] + "-block.png", block, results)
    draw_costs(path[:-4] + "-cost.png", block, scale, results)
    draw_winners(path, scale, results)


def draw_winners(path, scale, results):
    """Loss over r at three p, and a map over (r, p) of the winner."""
    figure, grid = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axes, p in zip(grid.flat, CODE_PS):
        codes, ratios, var = known_codes(p), np.geomspace(max(p / 4, 0.01), 0.98, 60), theory.variance(p)
        curves = {"optimal linear": (COLOURS["linear"], partial(theory.linear_loss, p=p)),
                  "rug, features dropped": (COLOURS["theory"], partial(theory.dropping_loss, p=p)),
                  "Bayes elementwise on the rug": (COLOURS["bayes"], partial(theory.bayes_loss, p=p)),
                  "priority code": ("#999999", partial(theory.priority_loss, p=p)),
                  "closed priority code": (COLOURS["priority"], partial(theory.priority_loss, p=p, closed=True)),
                  "best mixture": ("#56b4e9", lambda r, codes=codes: theory.envelope(r, codes)[0])}
        for name, (colour, loss) in curves.items():
            axes.plot(ratios, [loss(r) / var for r in ratios], "--" if name == "best mixture" else "-", color=colour, label=name)
        points = {("digon", "D", "digons, c = 1/3"): [code for name, code in codes.items() if name == "digon"],
                  ("regular", "p", "triangle, tetrahedron, pentagon"): [code for name, code in codes.items() if "regular" in name],
                  ("trained", ".", "trained blocks, 8 to 64 features"): [
                      (point.n_dense / point.n_sparse, results[point]["loss"]) for point in block_points(scale) if point.p == p]}
        for (kind, marker, name), some in points.items():
            axes.plot([r for r, _ in some], [loss / var for _, loss in some], marker, color=COLOURS[kind], label=name)
        axes.set(xscale="log", yscale="log", ylim=(p / 20, 1.3), xlabel="ratio r", ylabel="loss / Var x", title=f"p = {p:g}")
        print_table([f"p = {p:g}, loss / Var x at r ="] + [f"{r:g}" for r in SHOWN_RATIOS], [
            [name] + [f"{loss(r) / var:.4f}" for r in SHOWN_RATIOS] for name, (_, loss) in curves.items()]
            + [["  which mixes"] + [", ".join(theory.envelope(r, codes)[1]) for r in SHOWN_RATIOS]])
    grid[0, 0].legend(frameon=False, fontsize=8)
    draw_map(grid[1, 1])
    save_figure(figure, path)


def draw_map(axes):
    """A map over (r, p) of the code with the largest part in the best mixture, beside dropped and exact features, with lines
    of the rug's loss over the mixture's."""
    kinds = ("linear", "rug", "regular", "digon", "priority")
    ps, ratios = np.geomspace(1e-3, 0.9, MAP[0]), np.geomspace(0.01, 0.98, MAP[1])
    winners, gains = np.empty((2, len(ratios), len(ps)))
    for (k, r), (m, codes) in itertools.product(enumerate(ratios), enumerate(map(known_codes, ps))):
        loss, names = theory.envelope(r, codes)
        kind = next((name.split()[0] for name in names if name not in ("drop", "identity")), "linear")
        winners[k, m], gains[k, m] = kinds.index(kind), theory.dropping_loss(r, ps[m]) / loss
    axes.pcolormesh(ps, ratios, winners, cmap=ListedColormap([COLOURS[kind] for kind in kinds]), vmin=-0.5, vmax=4.5)
    axes.clabel(axes.contour(ps, ratios, gains, (1.1, 1.5, 2, 3, 4), colors="white", linewidths=1))
    for k, kind in enumerate(kinds):
        if k in winners:
            axes.plot([], [], "s", color=COLOURS[kind], label=kind)
    axes.set(xscale="log", yscale="log", xlabel="p", ylabel="ratio r", title="best code beside dropped and exact features; lines: rug / mixture")
    axes.legend(fontsize=8, loc="lower left")
    print(f"rug over best mixture: at most {gains.max():.2f} for r ≥ {ratios[0]:g}, p ≥ {ps[0]:g}")


SHOWN_RATIOS = (0.02, 0.05, 0.1, 0.2, 0.25, 0.4, 0.5, 0.7, 0.9)


def draw_blocks(path, block, results):
    """W of the trained block of 12 features in 3 hidden units, and of the priority code of that size, loudest first."""
    models = {"trained": block, "forged, separation 10": forge.priority_code(12, 3, 10)}
    figure, both = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    for axes, (name, model) in zip(both, models.items()):
        w = model.decoder @ model.encoder.T
        loudness = np.sqrt(np.linalg.norm(w, axis=0) / np.linalg.norm(w, axis=1))  # no change of basis changes W
        order = np.argsort(-loudness)
        image = axes.imshow(w[np.ix_(order, order)], cmap="RdBu_r", norm=SymLogNorm(0.1, vmin=-100, vmax=100))
        axes.set(title=f"{name}: 12 features in 3 hidden units", xlabel="feature j, by falling loudness", ylabel="feature i")
        ordered = np.sign(w[np.ix_(order, order)])
        print(f"{name}: negative W_ij, quieter from louder {np.mean(ordered[np.tril_indices(12, -1)] < 0):.0%}, louder from quieter "
              f"{np.mean(ordered[np.triu_indices(12, 1)] < 0):.0%}; loudness √(‖column‖/‖row‖) {', '.join(f'{x:.2g}' for x in loudness[order])}; W_ij from {w.min():.3g} to "
              f"{(w - 2 * np.diag(np.diag(w))).max():.3g} off the diagonal")
    figure.colorbar(image, ax=both, label="W[i, j]")
    save_figure(figure, path)
    for point, result in results.items():
        if point.kind == "block":
            r = point.n_dense / point.n_sparse
            forged = [theory.exact_loss(forge.priority_code(*point[1:3], 1000, closed), point.p) for closed in (False, True)]
            print(f"best of five trained blocks, {point.n_sparse} in {point.n_dense}, p {point.p:g}: loss {result['loss']:.5f} ± "
                  f"{result['error']:.5f}, rug (with dropping) {theory.dropping_loss(r, point.p):.5f}, priority code of "
                  f"that size {forged[0]:.5f}, closed {forged[1]:.5f}")


class NoisyHidden:
    """A model whose hidden units get Gaussian noise, of `level` times their own root mean square."""

    def __init__(self, model, level, p):
        self.model, self.n_sparse, self.rng = model, model.n_sparse, np.random.default_rng(0)
        hidden = rug.sample(4096, model.n_sparse, p, seed=3).dense() @ model.encoder
        self.deviation = level * np.sqrt(np.mean(hidden**2))

    def forward(self, x):
        """f(x) with noise."""
        hidden = x @ self.model.encoder
        hidden = hidden + self.deviation * self.rng.standard_normal(hidden.shape)
        return np.maximum(hidden @ self.model.decoder.T + self.model.bias, 0)


def draw_costs(path, block, scale, results):
    """Why training misses the code, and what it costs: four panels, all at the r and p of AT."""
    figure, ((steps, rates), (noise, norms)) = plt.subplots(2, 2, figsize=(11, 8), layout="constrained", sharey=True)
    draw_sizes(steps, results)
    draw_rates(rates, scale.size_steps)
    draw_noise(noise, block)
    draw_norms(norms, block)
    for level, kind, name in ((theory.optimum(*AT).loss, "theory", "symmetric theory"),
                              (theory.priority_loss(*AT), "priority", "priority code, separation ∞")):
        label_line(steps, 50, level, name, COLOURS[kind], offset=(0, -11))
        for axes in (steps, rates, noise, norms):
            axes.axhline(level, color=COLOURS[kind], lw=1, ls="--")
    for axes in (steps, noise, norms):
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def draw_sizes(axes, results):
    """Loss against steps for networks of growing size."""
    some = [point for point in results if point.kind == "trained"]
    for k, point in enumerate(some):
        losses = results[point]["losses"]
        means = losses[:len(losses) // 50 * 50].reshape(-1, 50).mean(axis=1)
        axes.plot(50 * np.arange(1, len(means) + 1), means, color=plt.get_cmap("autumn")(k / len(some)),
                  label=f"n_sparse {point.n_sparse}")
        print(f"trained, n_sparse {point.n_sparse}, {point.steps} steps: {results[point]['loss']:.5f} ± {results[point]['error']:.5f}")
    axes.set(xscale="log", xlabel="training step", ylabel="loss per feature", title="training from the tied start")


def draw_rates(axes, steps):
    """What training makes of the code at smaller and smaller rates."""
    p, factors, after = AT[1], 10.0**-np.arange(9), []
    for factor in factors:
        trainer, code = rug.Trainer(64, 16, p), forge.priority_code(64, 16, 10)
        for mine, its in zip(trainer.weights, (code.encoder, code.decoder, code.bias)):
            mine[:] = its
        for step in range(steps):
            trainer.step(learning_rate(step, steps, factor * peak_rate(64)))
        loss, error = rug.evaluate(trainer.model, p, 2**15, seed=1)
        after.append(loss)
        print(f"{steps} steps from the code (separation 10, n_sparse 64) at {factor:g} of the usual rate: {loss:.5f} ± {error:.5f}")
    axes.plot(factors, after, "o-", color=COLOURS["trained"])
    axes.set(xscale="log", xlabel="rate over the usual one", title=f"{steps} steps of training from the code, separation 10")


def draw_noise(axes, block):
    """Loss against the noise in the hidden units: rug, trained block, codes of several separations."""
    (r, p), levels = AT, NOISE
    models = {"rug": rug_at(256, r, p, 0).autoencoder(), "trained block, 12 in 3": forge.tile(block, 21)} | {
        f"code, separation {s}": forge.priority_code(256, 64, s) for s in (2, 3, 5, 10, 30, 100)}
    for k, (name, model) in enumerate(models.items()):
        losses, errors = np.transpose([rug.evaluate(NoisyHidden(model, level, p), p, 2**12, seed=1) for level in (0, *levels)])
        axes.plot(levels, losses[1:], color=COLOURS.get(name.split()[0], plt.get_cmap("Greys")(0.2 + 0.11 * k)), label=name)
        rugs = losses if name == "rug" else rugs
        better = [level for level, mine, its in zip((0, *levels), losses, rugs) if mine < its]
        print(f"{name}: loss without noise {losses[0]:.5f} ± {errors[0]:.5f}, with noise of 0.1 {losses[-2]:.3g} ± {errors[-2]:.1g}"
              + ("" if name == "rug" else f"; better than the rug up to a noise of {better[-1]:.2g}" if better else "; never better than the rug"))
    axes.set(xscale="log", ylabel="loss per feature", xlabel="noise in the hidden units / their root mean square",
             title="252 to 256 features, noise in the hidden units")


def draw_norms(axes, block):
    """Exact loss against the norm of the weights: the code at many separations, the trained block, the rug."""
    (r, p), separations = AT, np.geomspace(1.2, 1000, 60)

    def nuclear(model):
        """The nuclear norm of W over n_sparse: half the least ‖encoder‖² + ‖decoder‖² that make this W."""
        return np.linalg.norm(model.decoder @ model.encoder.T, "nuc") / model.n_sparse

    codes = [forge.priority_code(8, 2, s) for s in separations]
    losses, norms = [theory.exact_loss(code, p) for code in codes], [nuclear(code) for code in codes]
    best, exact = theory.optimum(r, p), theory.exact_loss(block, p)
    axes.plot(norms, losses, color=COLOURS["priority"], label="code")
    axes.plot(nuclear(block), exact, "o", color=COLOURS["trained"], label="trained block, 12 in 3")
    axes.plot(best.a, best.loss, "o", color=COLOURS["rug"], label="rug")
    axes.set(xscale="log", yscale="log", ylim=(1e-3, 0.1), xlabel="nuclear norm of W / n_sparse", title="separations 1.2 to 1000")
    k = next(k for k, loss in enumerate(losses) if loss < best.loss)
    print(f"exact losses and nuclear norms over n_sparse: rug {best.loss:.5f}, {best.a:.3g}; trained block, 12 in 3 {exact:.5f}, "
          f"{nuclear(block):.3g}; the code is better than the rug from separation {separations[k]:.2g} on, {norms[k]:.3g}")


def draw_bounds(path, scale, results):
    """The optimum over Bayes elementwise: at fixed r/r_c it has a limit, at fixed r it grows as p falls."""
    ps, ratios = (0.1, 1e-2, 1e-3, 1e-4, 1e-6), (0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.8)
    for name, bound in (("Bayes elementwise", theory.bayes_loss), ("oracle filter", theory.oracle_loss)):
        print_table([f"ReLU / {name} at r ="] + [f"{r:g}" for r in ratios], [
            [f"p = {p:g}"] + [f"{theory.optimum(r, p).loss / bound(r, p):.3f}" for r in ratios] for p in ps])

    def factor(r, p):
        return theory.optimum(r, p).loss / theory.bayes_loss(r, p)

    def limit(multiple):  # 3/(4t) + 1/4 with t² = r_c/r
        return 0.75 * math.sqrt(multiple) + 0.25

    multiples, deep = (1.5, 2, 3, 5, 10), (1e-2, 1e-4, 1e-8, 1e-16, 1e-32, 1e-64, 1e-90)
    print_table(["ReLU / Bayes at r / r_c ="] + [f"{multiple:g}" for multiple in multiples], [
        [f"p = {p:g}"] + [f"{factor(multiple * theory.critical_ratio(p), p):.3f}" for multiple in multiples] for p in deep]
        + [["3/(4t) + 1/4"] + [f"{limit(multiple):.3f}" for multiple in multiples]])
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    fine = np.geomspace(0.5, 20, 60)
    for k, p in enumerate((1e-2, 1e-4, 1e-8, 1e-16, 1e-32, 1e-64)):
        some = fine[fine * theory.critical_ratio(p) < 0.9]
        left.plot(some, [factor(multiple * theory.critical_ratio(p), p) for multiple in some],
                  color=plt.get_cmap("Blues")(0.3 + 0.11 * k), label=f"p = {p:g}")
    left.plot(fine[fine > 1], [limit(multiple) for multiple in fine[fine > 1]], "k--", label="limit $3/(4t) + 1/4$")
    left.set(xscale="log", xlabel="$r / r_c$", ylabel="ReLU / Bayes elementwise", title="at fixed $r / r_c$: a constant, approached slowly")
    falling = np.geomspace(0.1, 1e-12, 40)
    for r, style in ((0.5, "-"), (0.1, "--"), (0.01, ":")):
        right.plot(np.log(1 / falling), [factor(r, p) for p in falling], style, color=COLOURS["theory"], label=f"r = {r:g}")
    right.plot(np.log(1 / falling), np.log(1 / falling) / 2, color="k", lw=1, label="½ ln(1/p)")
    right.set(xlabel="ln(1/p)", title="at fixed r: it grows like ½ ln(1/p)")
    left.legend(frameon=False)
    right.legend(frameon=False)
    save_figure(figure, path)
    print("; ".join(f"at r = 0.5, p = {p:g}: {factor(0.5, p):.3f}, ½ ln(1/p) = {math.log(1 / p) / 2:.3f}" for p in (1e-4, 1e-8, 1e-12)))


BEYOND = {  # job: the models that it needs, and how it is drawn
    "exact": (lambda scale: [], draw_exact),
    "phases": (lambda scale: [phase_point(scale, kind, multiple, p) for kind in ("trained", "theory") for p in PHASE_PS
                              for multiple in MULTIPLES], draw_phases),
    "codes": (code_points, draw_codes),
    "bounds": (lambda scale: [], draw_bounds),
}

# ----------------------------------------------------------------------------------- the jobs that make figures


JOBS = {"paper": "Make the paper's figures again: all, or one of " + ", ".join(FIGURES) + ".",
        "exact": "The loss of given weights without sampling and without the Gaussian, and what makes up a trained one.",
        "phases": "Below which ratio features are dropped: predicted, and in training on samples and on the theory.",
        "codes": "Codes that beat the rug: digons, priority codes, trained blocks; why training misses them; what they cost.",
        "bounds": "How far ReLU is from the best elementwise activation and from the oracle filter, as a table."}


def figures_job(job, given):
    """Measure what the chosen figures need and, unless this is one shard of several, draw them."""
    known = {"out", "name", "scale", "shard"}
    rug.require(set(given) <= known, f"flags of `{job}`", ", ".join(given), "among " + ", ".join(sorted(known)))
    out, name, scale, shard = (given.get(key, usual) for key, usual in
                               (("out", "."), ("name", "all"), ("scale", "laptop" if job == "paper" else "quick"), ("shard", None)))
    rug.require(name in ("all", *FIGURES), "figure", name, "one of all, " + ", ".join(FIGURES))
    rug.require(scale in SCALES, "scale", scale, "one of " + ", ".join(SCALES))
    k, n = (int(part) if part.isdecimal() else 0 for part in (shard or "1/1").partition("/")[::2])
    rug.require(1 <= k <= n, "shard", shard, "K/N with 1 ≤ K ≤ N, such as 2/8")
    points_folder, figures = writable(out, "runs/points"), writable(out, "figures")
    chosen = {job: BEYOND[job]} if job in BEYOND else {"paper-" + figure: FIGURES[figure] for figure in FIGURES if name in ("all", figure)}
    points = {point for needs, _ in chosen.values() for point in needs(SCALES[scale])}
    points = sorted(points, key=lambda point: (point.cost(), point))
    rug.require(points or not shard, f"shard of `{job}`, which trains nothing that is kept", shard, "left out")
    run_sweep(points[k - 1::n], points_folder)
    if shard:
        print(f"Shard {shard} is done. When all are, run the same command without --shard.")
        return
    for figure, (needs, draw) in chosen.items():
        print(f"\n{figure}")
        path = os.path.join(figures, figure + ".png")
        draw(path, SCALES[scale], {point: read_point(point, points_folder) for point in needs(SCALES[scale])})


# --------------------------------------------------------------------------------------------- the benchmark

BENCH_SETTINGS = ((512, 0.25, 0.045, 400), (2048, 0.25, 0.01, 120), (8192, 0.05, 0.03, 25))  # and the steps to warm up


def warm_trainer(n_sparse, n_dense, p, steps, threads=None):
    """A trainer after `steps` steps: the share of active outputs, which decides the cost, falls while it trains."""
    trainer = rug.Trainer(n_sparse, n_dense, p, threads=threads)
    for _ in range(steps):
        trainer.step(peak_rate(n_sparse) / 2)
    return trainer


def median_ms(task, times=20):
    """Median milliseconds of `task()`, after one call to warm up."""
    task()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds))


def step_ms(trainer, times=20):
    """Median milliseconds of a step that hardly changes the weights."""
    return median_ms(lambda: trainer.step(1e-6), times)


def parts_of_a_step(trainer, times):
    """Milliseconds a step that each part of a one-threaded trainer's step takes, by timing rug.py's kernels."""
    seconds = dict.fromkeys(("sample", "encode", "decode", "residual", "transpose", "gradients", "adam"), 0.0)
    encoder, decoder, _ = trainer.weights
    parts = {"draw_rows": lambda *_: "sample", "add_product": lambda *given: "encode" if given[3] is encoder else "gradients",
             **{name: lambda *_, name=name: name for name in ("residual", "transpose", "adam")}}

    def timed(function, part):
        def call(*given, **named):
            start = time.perf_counter()
            result = function(*given, **named)
            seconds[part(*given)] += time.perf_counter() - start
            return result
        return call

    multiply = timed(np.matmul, lambda *given: "decode" if given[1].base is decoder else "gradients")
    with (mock.patch.multiple(rug, **{name: timed(getattr(rug, name), part) for name, part in parts.items()}),
          mock.patch.object(np, "matmul", multiply)):
        for _ in range(times):
            trainer.step(1e-6)
    return {part: 1e3 * total / times for part, total in seconds.items()}


def bench_job(given):
    """Print what a step costs, part by part, and how it grows; what theory and forge cost."""
    rug.require(not given, "flags of `bench`", ", ".join(given), "none")
    print(f"{rug.cores()} cores, Python {platform.python_version()}, NumPy {np.__version__}, Numba {numba.__version__}; "
          "milliseconds, batch 1024, medians; other work on the machine counts.\n", flush=True)
    lines = []
    for n_sparse, ratio, p, warm_up in BENCH_SETTINGS:
        trainer = warm_trainer(n_sparse, round(ratio * n_sparse), p, warm_up, threads=1)
        parts = parts_of_a_step(trainer, 10)
        floor = median_ms(lambda: np.matmul(trainer.hidden, trainer.weights.decoder.T, out=trainer.dz))
        one, active = step_ms(trainer), trainer.dz_sparse[0].indptr[-1] / trainer.dz.size
        many = step_ms(warm_trainer(n_sparse, trainer.n_dense, p, warm_up))
        lines.append([f"({n_sparse}, {ratio}, {p})", f"{100 * active:.0f} %" if trainer.fits[0] else "dense"]
                     + [f"{value:.2f}" for value in (*parts.values(), one, floor)] + [f"{one / floor:.2f}", f"{many:.2f}"])
    print_table(["(n_sparse, r, p), one thread", "active", *parts, "step", "decode alone", "ratio",
                 f"{rug.cores()} threads"], lines)

    def growth(name, cases):
        costs = [step_ms(warm_trainer(*case, 60, threads), 10) for case, threads in cases.values()]
        print_table([name, *map(str, cases)], [["ms a step", *(f"{cost:.2f}" for cost in costs)]])

    growth("threads, at (512, 0.25, 0.045)", {k: ((512, 128, 0.045), k) for k in range(1, rug.cores() + 1)})
    growth("n_sparse, at n_dense 128, p 0.03", {n: ((n, 128, 0.03), None) for n in doubling(256, 4096)})
    growth("n_dense, at n_sparse 1024, p 0.03", {n: ((1024, n, 0.03), None) for n in doubling(32, 512)})
    growth("p, at n_sparse 1024, n_dense 128", {p: ((1024, 128, p), None) for p in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)})
    start = time.perf_counter()
    for r, p in itertools.product(PAPER_GRID, PAPER_GRID):
        theory.optimum(r, p)
    print(f"theory.optimum on a 20 × 20 grid: {time.perf_counter() - start:.2f} s.\n")
    sizes = [2**k for k in range(10, 21, 2)]
    costs = []
    for n_sparse in sizes:
        forged, x = rug_at(n_sparse, 0.25, 0.045, 0), rug.sample(8, n_sparse, 0.045, 0).dense()
        costs.append(median_ms(lambda: forged.forward(x), 5) / 8)
    print_table(["the rug's forward pass at n_sparse", *map(str, sizes)], [
        ["ms a sample", *(f"{cost:.3f}" for cost in costs)],
        ["ns over n log₂ n", *(f"{1e6 * cost / n / math.log2(n):.2f}" for cost, n in zip(costs, sizes))]])
    start = time.perf_counter()
    model = make_model(Point("trained", 512, 128, 0.045, 700))[0]
    spent = time.perf_counter() - start
    loss, error = rug.evaluate(model, 0.045, 2**15, seed=1)
    print(f"700 steps from scratch at (512, 0.25, 0.045): evaluated loss {loss:.5f} ± {error:.5f} after {spent:.1f} s.")


# ----------------------------------------------------------------------------------------- what a file holds


@np.errstate(all="ignore")
def show_job(given):
    """Print what a file of ours holds and how it came about."""
    rug.require(set(given) == {"file"}, "flags of `show`", ", ".join(set(given) - {"file"}), "none")
    data = rug.load_npz(given["file"], None)
    rug.require("kind" in data, f"{given['file']}: kind of file", "unknown", "one that train.py has written")
    print(f"{given['file']}: {data.pop('kind')}\n")
    single = {name.removeprefix("note_"): value.item() for name, value in data.items() if value.ndim == 0}
    print_table(["", "value"], [[name, f"{value}"] for name, value in single.items()])
    print_table(["array", "type", "shape", "least", "mean", "largest"], [
        [name, value.dtype.name, str(value.shape)] + ([f"{x:.4g}" for x in (value.min(), value.mean(), value.max())]
        if value.size and value.dtype.kind in "fiub" else ["", " ".join(map(str, value)) if value.dtype.kind == "U" else "", ""])
        for name, value in data.items() if value.ndim])


# ------------------------------------------------------------------------------------------ the command line


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message):
        """Say it, and exit with status 2."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def number(text):
    """A flag's value as int or float if it is one; if not, whoever uses it says what is allowed."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def add_settings(parser, steps, rate):
    """The flags that the main job and `theory` share."""
    add = parser.add_argument
    add("--n-sparse", type=number, metavar="N", help="number of features, 1 or more (default 512)")
    add("--ratio", type=number, metavar="R", help="n_dense/n_sparse, in (0, 1] (default 0.25)")
    add("--p", type=number, metavar="P", help="probability that a feature is on, in (0, 1] (default 0.045)")
    add("--steps", type=number, metavar="N", help=f"training steps, 1 or more (default {steps})")
    add("--lr", type=number, metavar="X", help=f"peak learning rate, positive (default {rate}); falls as a cosine")
    add("--seed", type=number, metavar="N", help="of weights and data, 0 or more (default 0)")
    add("--resume", action="store_true", help="go on from the checkpoint in DIR/runs, with its settings, to the weights of an "
        "uninterrupted run (bitwise, with as many threads)")
    add("--out", metavar="DIR", help="where figures/ and runs/ go (default: here)")


def make_parser():
    """The command line; a flag that isn't given is absent from the result, so that --resume can tell."""
    parser = Parser(prog="train.py", allow_abbrev=False, argument_default=argparse.SUPPRESS,
                    description=__doc__.split("\n\n")[1],
                    epilog="Example: python train.py --n-sparse 2048 --ratio 0.1 --p 0.01 --out /tmp/rug")
    add = parser.add_argument
    jobs = parser.add_subparsers(dest="job", metavar="[JOB]", help="another job: " + ", ".join((*JOBS, "theory", "bench", "show"))
                                 + ". `python train.py JOB --help` explains it")
    jobs.add_parser("bench", description="Measure what a training step costs here, part by part, and how it grows.")
    show = jobs.add_parser("show", description="Print what a model, checkpoint or measured point holds and how it was made: command, "
                           "version, seeds, threads.")
    show.add_argument("file", metavar="FILE", help="an .npz file from a runs folder")
    descent = jobs.add_parser("theory", allow_abbrev=False, argument_default=argparse.SUPPRESS, description="Train on the theory "
                              "alone: descend on the loss computed from every feature's a, b and σ, with no sample at all; then "
                              "measure the weights on samples.")
    add_settings(parser, 4000, "60e-3/√n_sparse")
    add_settings(descent, 1500, "60e-3/√n_dense, less from n_sparse 1024 on")
    add("--batch", type=number, metavar="N", help="samples a step, 1 or more (default 1024)")
    add("--init", metavar="NAME", help="tied: no feature starts dead (default); paper: the published start")
    add("--threads", type=number, metavar="N", help="threads, 1 or more (default: one a core)")
    for name, what in JOBS.items():
        command = jobs.add_parser(name, allow_abbrev=False, argument_default=argparse.SUPPRESS, description=what +
                                  " Measured models are kept in DIR/runs/points, so a run that was interrupted goes on where it was.")
        if name == "paper":
            command.add_argument("name", nargs="?", metavar="NAME", help="the figure (default: all)")
        command.add_argument("--scale", metavar="SCALE", help="quick, laptop or full (the paper's grids; weeks on 2 cores); default: "
                             + ("laptop, within an hour" if name == "paper" else "quick, within 90 s"))
        command.add_argument("--shard", metavar="K/N", help="measure only every N-th model from the K-th on, and draw nothing")
        command.add_argument("--out", metavar="DIR", help="where figures/ and runs/ go (default: here)")
    return parser


def main(arguments=None):
    """Parse, run, and turn mistakes into one line on stderr with exit status 2."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # a closed one is None
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without σ shows a question mark instead
    parser = make_parser()
    given = vars(parser.parse_args(arguments))
    job = given.pop("job", None)
    again = f"python train.py {job + ' ' if job else ''}--resume --out {given.get('out', '.')}" if job in (None, "theory") else "the same command"
    message = f"\nInterrupted; what is done is kept. To go on: {again}\n"

    def leave(*_):
        """Ctrl-C outside of training: files are written whole or not at all, so there is nothing to wait for, and an
        exception could be raised where Python only prints and forgets it."""
        with suppress(RuntimeError, OSError, ValueError):
            sys.stdout.flush()
        os.write(2, message.encode())
        os._exit(130)

    usual = signal.signal(signal.SIGINT, leave)
    try:
        {None: main_job, "theory": theory_job, "bench": bench_job, "show": show_job}.get(job, partial(figures_job, job))(dict(given))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain once more at its end
        parser.error("nobody reads the output any more; what is done is kept")
    except (ValueError, OSError, MemoryError, RuntimeError) as mistake:  # the last: no more threads or worker processes
        parser.error(str(mistake) or "out of memory")
    except KeyboardInterrupt:  # `train` has let its step end, and saved
        sys.stderr.write(message)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, usual)


if __name__ == "__main__":
    try:
        main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is nothing left to interrupt
