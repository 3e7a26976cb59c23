"""Many models, each made and measured once and kept as a file; and the command line of experiments.

A Point says what to make. Its file, in runs/points, carries what its numbers depend on: the point
itself (kind, sizes, p, steps, rate, seed) and a hash of the code that trains, forges and measures,
without comments. Change one of them, and the point is measured anew. (The last bits of networks
above n_sparse 512 depend on the number of cores, too, and all on NumPy and Numba.) A sweep can be
stopped, killed and shared: files are written whole or not at all, a long training leaves a
checkpoint beside its file-to-be, and `--shard K/N` measures every N-th point only.
"""
import ast
import hashlib
import inspect
import math
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from typing import NamedTuple

import numpy as np

import forge
import rug
import theory
import train

FORGED = {"rug": forge.persian_rug, "projector": forge.random_projector}
STORED_TO = 64  # n_sparse up to which the weights themselves are kept

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
        rate = 3e-3 / math.sqrt(n_sparse) if kind == "paper" else train.peak_rate(n_sparse)
        return Point(kind, n_sparse, n_dense, p, steps, rate if steps else 0.0, seed)

    @property
    def ratio(self):
        """n_dense/n_sparse as it is."""
        return self.n_dense / self.n_sparse

    def name(self):
        """The point in one word."""
        return "-".join(map(str, (*self[:5], self.seed)))

    def identity(self):
        """Everything that the result depends on, as text."""
        return f"{tuple(self)!r} by {code_version()}"

    def file(self, folder):
        """Where the result is kept."""
        digest = hashlib.sha256(self.identity().encode()).hexdigest()[:12]
        return os.path.join(folder, f"{self.name()}-{digest}.npz")

    def cost(self):
        """Seconds on one core, roughly: for the order, the progress line and the estimate."""
        products = 4e-8 * (1 + 2 * self.p) * self.n_sparse * self.n_dense
        return 1 + self.steps * (2e-4 + 3e-6 * self.n_sparse + products)

@lru_cache
def code_version():
    """A hash of the code that makes and measures models, without its comments and docstrings."""
    digest = hashlib.sha256(repr((STORED_TO, *FORGED)).encode())
    for part in (rug, theory, forge, train.learning_rate, make_model, measure,
                 distance_from_gaussian):
        tree = ast.parse(inspect.getsource(part))
        for node in ast.walk(tree):
            documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            if documented and ast.get_docstring(node):
                node.body[0].value.value = ""
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()

# ------------------------------------------------------------------------------- making, measuring
def make_model(point, threads=None, report=lambda step: None, part=""):
    """The model of a Point and the losses on the way to it.

    part: the file for checkpoints of a long training, and to go on from if it is there.
    """
    if point.kind in FORGED:
        return FORGED[point.kind](*point[1:4], point.seed), []
    trainer, saved = None, time.monotonic()
    if os.path.exists(part):
        try:
            trainer = rug.Trainer.load(part, threads=threads or rug.cores())
        except (ValueError, OSError) as damage:
            print(f"Starting anew: {damage}", flush=True)
    trainer = trainer or rug.Trainer(*point[1:4], seed=point.seed, init=point.kind, threads=threads)
    while len(trainer.losses) < point.steps:
        step = len(trainer.losses)
        constant = point.kind == "paper"
        trainer.step(point.rate if constant else train.learning_rate(step, point.steps, point.rate))
        report(step + 1)
        if part and time.monotonic() - saved > train.SAVE_EVERY:
            trainer.save(part)
            saved = time.monotonic()
    return trainer.model, trainer.losses

def measure(point, folder, threads=1, report=lambda step: None):
    """Make the model of a Point, measure it, and keep what tables and pictures need."""
    file = point.file(folder)
    model, losses = make_model(point, threads, report, file + ".part")
    loss, error = rug.evaluate(model, point.p, max(8, 2**23 // point.n_sparse), seed=1)
    rug.require(math.isfinite(loss), f"loss of {point}", loss, "finite")
    result = {"loss": loss, "error": error, "losses": losses}
    if point.steps:
        w = model.decoder[:32] @ model.encoder.T
        np.fill_diagonal(w, 0)  # the first features' interference on fresh samples
        samples = max(64, min(8192, 2**24 // point.n_sparse))
        x = rug.sample(samples, point.n_sparse, point.p, seed=2).dense()
        result |= theory.feature_statistics(model, point.p)._asdict()
        result |= {"dead": rug.dead_features(model, point.p),
                   "distance": distance_from_gaussian(x @ w.T)}
        if point.n_sparse <= STORED_TO:
            result |= {"encoder": model.encoder, "decoder": model.decoder}
    notes = {"threads": threads or rug.cores()}
    rug.save_npz(file, "point", notes, identity=point.identity(), **result)
    if os.path.exists(file + ".part"):
        os.remove(file + ".part")

def read(point, folder):
    """The result of a Point, or None if there is none; a damaged file counts as none."""
    try:
        result = rug.load_npz(point.file(folder), "point", ("identity", "loss", "error", "losses"))
        found = str(result["identity"])
        rug.require(found == point.identity(), point.file(folder), found, point.identity())
        return result
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as damage:
        print(f"Measuring a damaged point again: {damage}", flush=True)
        return None

def distance_from_gaussian(values):
    """Kolmogorov–Smirnov distance of each column of values, (samples, columns), from the Gaussian
    of its own mean and deviation. Samples of a Gaussian have about 0.6/√samples."""
    values = np.sort(theory.as_floats("values", values), axis=0)
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

def sweep(points, folder):
    """Measure what has no result yet: small models one a process, large ones with all cores."""
    missing = [point for point in points if read(point, folder) is None]
    missing.sort(key=Point.cost, reverse=True)
    large = [point for point in missing if point.steps and point.n_sparse > 512]
    work = sum(point.cost() for point in missing)
    print(f"{len(points)} models, {len(points) - len(missing)} of them done before; the rest takes "
          f"roughly {work / rug.cores() / 60:.1f} min on {rug.cores()} cores.", flush=True)
    if not missing:
        return
    progress, done = train.Progress(math.ceil(work), "core-second"), 0.0
    progress.show(0, "starting")
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which processes inherit as they start
    workers = ProcessPoolExecutor(rug.cores(), multiprocessing.get_context("spawn"), worker_starts)
    futures = {workers.submit(measure, point, folder): point
               for point in missing if point not in large}
    signal.signal(signal.SIGINT, usual)
    try:
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

def run(doc, figures, scales, arguments=None):
    """The command line of an experiment whose docstring is `doc`. figures: {name: (needs, draw)};
    needs(scale) lists the Points whose results draw(folder, scale, results) makes a table and
    pictures of. scales: {name: what needs and draw get}, the default first."""
    parser = train.Parser(description=doc)
    add, first = parser.add_argument, next(iter(scales))
    add("--scale", help=f"{' or '.join(scales)} (default: {first})")
    add("--out", help="folder that figures/ and runs/ go to (default: experiments)")
    if any(needs(scales[first]) for needs, _ in figures.values()):
        add("--shard", help="K/N: measure only every N-th model from the K-th on, draw nothing")
    if len(figures) > 1:
        add("figure", nargs="?", help="one of " + ", ".join(figures) + " (default: all)")

    def job(figure="all", scale=first, out="experiments", shard=None):
        rug.require(figure in ("all", *figures), "figure", figure, "one of " + ", ".join(figures))
        rug.require(scale in scales, "scale", scale, "one of " + ", ".join(scales))
        k, n = (int(x) if x.isdecimal() else 0 for x in (shard or "1/1").partition("/")[::2])
        rug.require(1 <= k <= n, "shard", shard, "K/N with 1 ≤ K ≤ N, such as 2/8")
        chosen = figures.values() if figure == "all" else [figures[figure]]
        points = {point for needs, _ in chosen for point in needs(scales[scale])}
        points = sorted(points, key=lambda point: (point.cost(), point))[k - 1::n]
        folder, drawn = train.folder(out, "runs/points"), train.folder(out, "figures")
        if points:
            sweep(points, folder)
        if shard:
            print("This shard is done. When all are, run the same command without --shard.")
            return
        for needs, draw in chosen:
            results = {point: read(point, folder) for point in needs(scales[scale])}
            rug.require(None not in results.values(), "code", "changed meanwhile", "left as it is")
            draw(drawn, scales[scale], results)

    parser.run(job, arguments, lambda given: "the same command")
