"""Many models, each made and measured once and kept as a file; and the chapters' command line.

A Point says what to make. Its file, in runs/points, is named by the point's settings (kind, sizes,
p, steps, rate, seed) and by nothing else. So a file outlives a change of the code, and --fresh
measures anew. (The last bits of networks above n_sparse 512 depend on the number of cores, too, and
all on NumPy and Numba.) A sweep can be stopped, killed and shared: files are written whole or not
at all, a long training leaves a checkpoint beside its file-to-be, and `--shard K/N` measures every
N-th point only.
"""
import math
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import NamedTuple

import matplotlib.style
import numpy as np

import forge
import rug
import theory
import train

# The numbers in README.md were measured at this peak rate, times 1/√n_sparse. The main job's own,
# rug.peak_rate, is higher; here it stays as it was, so that each command still prints its numbers.
PEAK = 60e-3

FORGED = {"rug": forge.persian_rug, "projector": forge.random_projector}
STORED_TO = 64  # n_sparse up to which the weights themselves are kept

COLOURS = train.COLOURS | {
    "published": "#56b4e9", "jump": "#5d3a9b", "priority": "#000000", "digon": "#8a6d00",
    "regular": "#f0e442", "mixture": "#33bbee"}


def peak_rate(n_sparse):
    """The peak learning rate of the chapters' networks: PEAK/√n_sparse."""
    return PEAK / math.sqrt(n_sparse)


class Point(NamedTuple):
    """One model to make and measure."""

    kind: str      # a start, to train from it ("paper": at a constant rate), or one of FORGED
    n_sparse: int
    n_dense: int
    p: float
    steps: int     # 0 if forged
    rate: float    # the peak, or only, learning rate
    seed: int      # of weights and data, or of the forged rows

    @staticmethod
    def at(kind, n_sparse, ratio, p, steps=0, seed=0):
        """The Point with n_dense/n_sparse next to `ratio`; "paper" has the published rate, too."""
        n_dense = min(n_sparse, max(1, round(ratio * n_sparse)))
        rate = 3e-3 / math.sqrt(n_sparse) if kind == "paper" else peak_rate(n_sparse)
        return Point(kind, n_sparse, n_dense, p, steps, rate if steps else 0.0, seed)

    @property
    def ratio(self):
        """n_dense/n_sparse as it is."""
        return self.n_dense / self.n_sparse

    def name(self):
        """All settings, in one word."""
        return "-".join(map(str, self))

    def file(self, folder):
        """Where the result is kept."""
        return os.path.join(folder, f"{self.name()}.npz")

    def checkpoint(self, folder):
        """Where a long training is saved meanwhile."""
        return self.file(folder) + ".part"

    def cost(self):
        """Seconds on one core, roughly: for the order, the progress line and the estimate."""
        products = 4e-8 * (1 + 2 * self.p) * self.n_sparse * self.n_dense
        return 1 + self.steps * (2e-4 + 3e-6 * self.n_sparse + products)


# ------------------------------------------------------------------------------- making, measuring

def make_model(point, threads=None, report=lambda step: None, checkpoint=""):
    """The model of a Point and the losses on the way to it.

    checkpoint: the file to save a long training in, and to go on from if it is there.
    """
    if point.kind in FORGED:
        return FORGED[point.kind](*point[1:4], point.seed), []

    trainer = rug.Trainer(*point[1:4], seed=point.seed, init=point.kind, threads=threads)
    if os.path.exists(checkpoint):
        try:
            trainer = rug.Trainer.load(checkpoint)
        except (ValueError, OSError) as damage:
            print(f"Starting anew: {damage}", flush=True)

    saved = time.monotonic()
    for step in range(len(trainer.losses), point.steps):
        constant = point.kind == "paper"
        rate = point.rate if constant else rug.learning_rate(step, point.steps, point.rate)
        trainer.step(rate)
        report(step + 1)
        if checkpoint and time.monotonic() - saved > train.SAVE_EVERY:
            trainer.save(checkpoint)
            saved = time.monotonic()
    return trainer.model, trainer.losses


def measure(point, folder, threads=1, report=lambda step: None):
    """Make the model of a Point, measure it, and keep what tables and pictures need."""
    checkpoint = point.checkpoint(folder)
    model, losses = make_model(point, threads, report, checkpoint)
    loss, error = rug.evaluate(model, point.p, max(8, 2**23 // point.n_sparse), seed=1)
    rug.require(math.isfinite(loss), f"loss of {point.name()}", loss, "finite")

    result = {"loss": loss, "error": error, "losses": losses}
    if point.steps:
        result |= theory.feature_statistics(model, point.p)._asdict()
        result["dead"] = rug.dead_features(model, point.p)
        result["distance"] = distance_from_gaussian(interference(model, point.p))
        if point.n_sparse <= STORED_TO:
            result |= {"encoder": model.encoder, "decoder": model.decoder}

    used = threads or rug.cores()
    rug.save_npz(point.file(folder), "point", point=point.name(), threads=used, **result)
    if os.path.exists(checkpoint):
        os.remove(checkpoint)


def interference(model, p):
    """The interference ν of the first features, 32 at most, on fresh samples: (samples, 32)."""
    w = model.decoder[:32] @ model.encoder.T
    np.fill_diagonal(w, 0)
    samples = max(64, min(8192, 2**24 // model.n_sparse))
    x = rug.sample(samples, model.n_sparse, p, seed=2, stream=rug.EVALUATION)
    return x @ w.T


def read(point, folder):
    """The result of a Point, or None if there is none; a damaged file counts as none."""
    file = point.file(folder)
    try:
        result = rug.load_npz(file, "point", ("point", "loss", "error", "losses"))
        found = str(result["point"])
        rug.require(found == point.name(), f"what {file} holds", found, point.name())
        return result
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as damage:
        print(f"Measuring a damaged point again: {damage}", flush=True)
        return None


def forget(point, folder):
    """Remove what is kept of a Point: its result, and the checkpoint of its training."""
    for file in (point.file(folder), point.checkpoint(folder)):
        if os.path.exists(file):
            os.remove(file)


def distance_from_gaussian(values):
    """Kolmogorov–Smirnov distance of each column of values, (samples, columns), from the Gaussian
    of its own mean and deviation. Samples of a Gaussian have about 0.6/√samples."""
    values = np.sort(theory.reals("values", values), axis=0)
    enough = values.ndim == 2 and len(values) > 1
    rug.require(enough, "values' shape", values.shape, "(samples, columns) with 2 samples or more")
    cdf = theory.normal_cdf((values - values.mean(axis=0)) / values.std(axis=0))
    steps = np.arange(len(values) + 1)[:, None] / len(values)
    return np.maximum(cdf - steps[:-1], steps[1:] - cdf).max(axis=0)


# --------------------------------------------------------------------------------------- the sweep

def worker_starts():
    """In a worker process, which Ctrl-C does not reach: end when the parent is gone."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def measure_in_worker(point, folder):
    """`measure` on one core: there is a worker process for each of the others."""
    with rug.one_blas_thread():
        measure(point, folder)


def sweep(points, folder):
    """Measure what has no result yet: small models one a process, large ones with all cores."""
    missing = [point for point in points if read(point, folder) is None]
    missing.sort(key=Point.cost, reverse=True)
    large = [point for point in missing if point.steps and point.n_sparse > 512]
    work = sum(point.cost() for point in missing)
    before = len(points) - len(missing)
    hint = " (--fresh measures them anew)" if before else ""
    print(f"{len(points)} models, {before} of them done before{hint}; the rest takes roughly "
          f"{work / rug.cores() / 60:.1f} min on {rug.cores()} cores.", flush=True)
    if not missing:
        return

    progress = train.Progress(math.ceil(work), "core-second")
    progress.show(0, "starting")
    done = 0.0

    workers = ProcessPoolExecutor(rug.cores(), multiprocessing.get_context("spawn"), worker_starts)
    try:
        usual = signal.signal(signal.SIGINT, signal.SIG_IGN)  # processes inherit it as they start
        try:
            futures = {workers.submit(measure_in_worker, point, folder): point
                       for point in missing if point not in large}
        finally:
            signal.signal(signal.SIGINT, usual)
        for future in as_completed(futures):
            future.result()
            done += futures[future].cost()
            progress.show(int(done), futures[future].name())
    finally:
        workers.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():  # after Ctrl-C, in the midst of points
            worker.terminate()

    for point in large:
        measure(point, folder, None, lambda step: progress.show(
            int(done + point.cost() * step / point.steps), point.name()))
        done += point.cost()


# -------------------------------------------------------------------------------- the command line

def run(name, doc, figures, scales, arguments=None):
    """The command line of the chapter `name`, whose docstring is `doc`.

    figures: {name: (needs, draw)}; needs(scale) lists the Points whose results
    draw(folder, scale, results) makes a table and pictures of. scales: {name: what needs and draw
    get}, the default first.
    """
    first = next(iter(scales))
    parser = train.Parser(prog=f"python -m experiments.{name}", description=doc)
    parser.add_argument("--scale", metavar="NAME", default=first,
                        help=f"{' or '.join(scales)} (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", default="out", help="folder that figures/ and "
                        "runs/ go to (default: %(default)s); `--out experiments` draws anew the "
                        "pictures that experiments/README.md shows")
    if any(needs(scales[first]) for needs, _ in figures.values()):
        parser.add_argument("--shard", metavar="K/N", help="measure only every N-th model from the "
                            "K-th on, draw nothing")
        parser.add_argument("--fresh", action="store_true", help="measure models anew that were "
                            "measured before: after a change of the code")
    if len(figures) > 1:
        parser.add_argument("figure", nargs="?", default="all",
                            help=f"one of {', '.join(figures)} (default: %(default)s)")

    def job(scale, out, shard=None, fresh=False, figure="all"):
        rug.require(figure in ("all", *figures), "figure", figure, f"one of {', '.join(figures)}")
        rug.require(scale in scales, "scale", scale, f"one of {', '.join(scales)}")
        k, n = shard_numbers(shard)
        chosen = list(figures.values()) if figure == "all" else [figures[figure]]
        points = {point for needs, _ in chosen for point in needs(scales[scale])}
        points = sorted(points, key=lambda point: (point.cost(), point))[k - 1::n]
        folder = train.folder(out, "runs", "points") if points else None
        drawn = train.folder(out, "figures")

        try:
            if fresh:
                for point in points:
                    forget(point, folder)
            if points:
                sweep(points, folder)
            if shard is not None:
                print("This shard is done. When all are, run the same command without --shard.")
                return
            with matplotlib.style.context("default"), rug.one_blas_thread():
                for needs, draw in chosen:
                    results = {point: read(point, folder) for point in needs(scales[scale])}
                    gone = [point.file(folder) for point in results if results[point] is None]
                    rug.require(not gone, "files of models", gone, "left alone until all is drawn")
                    draw(drawn, scales[scale], results)
        except KeyboardInterrupt:
            again = "the same command without --fresh" if fresh else "the same command"
            kept = f"Models measured so far are kept; {again} goes on."
            raise KeyboardInterrupt(kept if points else "Nothing is kept.") from None

    parser.run(job, arguments)


def shard_numbers(shard):
    """K and N of a --shard "K/N"; 1 and 1 for None. ValueError unless 1 ≤ K ≤ N."""
    if shard is None:
        return 1, 1
    parts = shard.split("/")
    numbers = [int(part) for part in parts if part.isdecimal()]
    fits = len(parts) == len(numbers) == 2 and 1 <= numbers[0] <= numbers[1]
    rug.require(fits, "shard", shard, "K/N with 1 ≤ K ≤ N, such as 2/8")
    return numbers


if __name__ == "__main__":
    train.Parser(prog="python -m experiments.sweep").error(
        "this is no chapter, but what chapters share; experiments/README.md lists them")
