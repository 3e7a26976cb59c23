"""Many models, each made and measured once and kept as a file.

A Point says what to make. Its file, in DIR/runs/points, is named by the point's settings and by
nothing else, so a file outlives a change of the code; `--fresh` measures anew. A sweep can be
stopped, killed and shared: files are written whole or not at all, a long training leaves a
checkpoint beside its file-to-be, and `--shard K/N` measures every N-th point only. (What the file
does not name: the last bits of networks above 512 features depend on the number of threads.)

1. What to make      `Point`
2. One point         `make_model`, `measure_point`, `read`
3. All of them       `sweep`
4. A chapter         `run`: its command line
"""
import math
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, suppress
from typing import NamedTuple

import matplotlib.style
import numpy as np

import forge
import rug
import theory
import train
from experiments import command

FORGED = {"rug": forge.persian_rug, "projector": forge.random_projector}
KEPT = 2**20   # n_sparse · n_dense up to which the weights are kept: files of 8 MB at most
LARGE = 512    # n_sparse above which one model gets all cores


# ------------------------------------------------------------------------------ 1. What to make

class Point(NamedTuple):
    """One model to make and measure."""

    kind: str      # a start to train from ("linear", "paper"), or one of FORGED
    n_sparse: int
    n_dense: int
    p: float
    steps: int     # 0 if forged
    rate: float    # the peak rate of the schedule, or the constant rate of "paper"; 0 if forged
    seed: int      # of weights and data, or of the forged rows

    @staticmethod
    def at(kind, n_sparse, ratio, p, steps=0, seed=0):
        """The Point with n_dense/n_sparse next to `ratio`, at the usual rate of its kind."""
        n_dense = min(n_sparse, max(1, round(ratio * n_sparse)))
        published = 3e-3 / math.sqrt(n_sparse)
        rate = published if kind == "paper" else rug.peak_rate(n_sparse, n_dense, p)
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

    def rates(self):
        """The learning rate of each step: half a cosine, or constant as published."""
        if self.kind == "paper":
            return [self.rate] * self.steps
        return rug.learning_rates(self.steps, self.rate)

    def cost(self):
        """Seconds on one core, roughly: for the order, the progress line and the estimate."""
        products = 4e-8 * (1 + 2 * self.p) * self.n_sparse * self.n_dense
        return 1 + self.steps * (2e-4 + 3e-6 * self.n_sparse + products)


# -------------------------------------------------------------------------------- 2. One point

def make_model(point, threads=1, checkpoint="", report=lambda step, text: None):
    """The trained or forged model of a Point, and the losses of its training steps.

    checkpoint: the file to save a long training in, and to go on from if it is there.
    """
    if point.kind in FORGED:
        return FORGED[point.kind](point.n_sparse, point.n_dense, point.p, point.seed), []

    trainer = rug.Trainer(point.n_sparse, point.n_dense, point.p, seed=point.seed,
                          init=point.kind, threads=threads)
    if os.path.exists(checkpoint):
        try:
            trainer = rug.Trainer.load(checkpoint)
        except (ValueError, OSError) as damage:
            print(f"Starting anew: {damage}", flush=True)
    train.train(trainer, point.rates(), checkpoint, report)
    return trainer.model, trainer.losses


def measure_point(point, folder, threads=1, report=lambda step, text: None):
    """Make the model of a Point, measure it, and keep what tables and pictures need."""
    checkpoint = point.checkpoint(folder)
    model, losses = make_model(point, threads, checkpoint, report)
    loss, error = rug.evaluate(model, point.p, max(8, 2**23 // point.n_sparse), seed=1)

    # Forged models have nothing but a loss: the rest of them is known.
    result = {"loss": loss, "error": error, "losses": losses}
    if point.steps:
        result |= theory.feature_statistics(model, point.p)._asdict()
        result["dead"] = rug.dead_features(model, point.p)
        result["distance"] = distance_from_gaussian(interference(model, point.p))
        if point.n_sparse * point.n_dense <= KEPT:
            result |= {"encoder": model.encoder, "decoder": model.decoder}

    rug.save_npz(point.file(folder), "point", point=point.name(), **result)
    with suppress(FileNotFoundError):  # another command may have removed it
        os.remove(checkpoint)


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


def model_of(result):
    """The trained rug.Autoencoder of a point's result, if its weights are kept (see KEPT)."""
    return rug.Autoencoder(result["encoder"], result["decoder"], result["bias"])


def interference(model, p):
    """ν of the first features, 32 at most, on fresh samples: (samples, 32)."""
    w = model.decoder[:32] @ model.encoder.T
    np.fill_diagonal(w, 0)
    samples = max(64, min(8192, 2**24 // model.n_sparse))
    x = rug.sample(samples, model.n_sparse, p, seed=2, stream=rug.EVALUATION)
    return x @ w.T


def distance_from_gaussian(values):
    """How far each column of values, (samples, columns), is from the Gaussian of its own mean and
    deviation: the largest gap between their distribution functions (Kolmogorov and Smirnov).

    Samples of a Gaussian have about 0.6/√samples.
    """
    values = np.sort(theory.reals("values", values), axis=0)
    enough = values.ndim == 2 and len(values) > 1
    rug.require(enough, "values' shape", values.shape, "(samples, columns) with 2 samples or more")
    cdf = theory.normal_cdf((values - values.mean(axis=0)) / values.std(axis=0))

    # The samples' own distribution function jumps at each of them: look below and above the jump.
    jumps = np.arange(len(values) + 1)[:, None] / len(values)
    return np.maximum(cdf - jumps[:-1], jumps[1:] - cdf).max(axis=0)


# ------------------------------------------------------------------------------ 3. All of them

def begin_worker():
    """In a worker process, which Ctrl-C does not reach: end when the parent is gone."""
    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def measure_in_worker(point, folder):
    """`measure_point` on one core: there is a worker process for each of the others."""
    with rug.one_blas_thread():
        measure_point(point, folder)


def sweep(points, folder):
    """Measure what has no result yet: small models one a process, large ones with all cores.

    A point that fails does not stop the others (unless its process is killed). RuntimeError, in the
    end, names those that failed.
    """
    # Costly ones come first, so that in the end no core waits long for another.
    missing = [point for point in points if read(point, folder) is None]
    missing.sort(key=Point.cost, reverse=True)
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
    failed = []
    # If this loop is left early, closing ends the worker processes.
    with closing(small_ones(missing, folder)) as measured:
        for point, mistake in measured:
            done += point.cost()
            progress.show(int(done), point.name())
            if mistake is not None:
                failed.append(f"{point.name()} ({mistake})")

    # The large ones, one after the other, in this process.
    for point in missing:
        if is_large(point):
            def report(step, text):
                spent = point.cost() * step / point.steps
                progress.show(int(done + spent), f"{point.name()}  {text}")
            try:
                measure_point(point, folder, rug.cores(), report)
            except BrokenPipeError:  # nobody reads what is printed
                raise
            except (RuntimeError, ValueError, MemoryError, OSError) as mistake:
                failed.append(f"{point.name()} ({mistake})")
            done += point.cost()
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(points)} models failed: " + "; ".join(failed))


def is_large(point):
    """Whether a model is trained by all cores together instead of by one of them."""
    return point.steps > 0 and point.n_sparse > LARGE


def small_ones(missing, folder):
    """Measure the small Points, one a process; yields (point, what went wrong or None)."""
    small = [point for point in missing if not is_large(point)]
    if not small:
        return
    workers = ProcessPoolExecutor(rug.cores(), multiprocessing.get_context("spawn"), begin_worker)
    try:
        usual = signal.signal(signal.SIGINT, signal.SIG_IGN)  # processes inherit it as they start
        try:
            futures = {workers.submit(measure_in_worker, point, folder): point for point in small}
        finally:
            signal.signal(signal.SIGINT, usual)
        for future in as_completed(futures):
            yield futures[future], future.exception()
    finally:
        workers.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():  # after Ctrl-C, in the midst of points
            worker.terminate()


# -------------------------------------------------------------------------------- 4. A chapter

def run(name, doc, scales, parts, arguments=None):
    """Run a chapter that trains many models from the command line.

    As command.run, but parts: {name: (points, measure, draw)}. points(scale) lists the Points that
    the part needs, and measure(scale, found) gets their results, {point: result}.
    """
    parser = command.parser_of(name, doc, scales, parts)
    parser.add_argument("--shard", metavar="K/N",
                        help="measure only every N-th model from the K-th on, and draw nothing")
    parser.add_argument("--fresh", action="store_true", help="measure models anew that were "
                        "measured before, after a change of the code")

    def job(scale, out, shard, fresh, part="all"):
        value, chosen = command.choose(scale, scales, part, parts)
        k, n = shard_numbers(shard)
        # Neighbours in this order cost the same, so all shards take about as long.
        needed = {point for points, _, _ in chosen.values() for point in points(value)}
        shared = sorted(needed, key=lambda point: (point.cost(), point))[k - 1::n]
        folder = os.path.join(out, "runs", "points")
        figures = train.folder(out, "figures")

        try:
            if fresh:
                forget(shared, folder)
            if shared:
                sweep(shared, train.folder(folder))
            if shard is not None:
                print("This shard is done. When all are, run the same command without --shard.")
                return
            # All there is to train has been trained: each part reads its own.
            with matplotlib.style.context("default"), rug.one_blas_thread():
                for points, measure, draw in chosen.values():
                    found = {point: read(point, folder) for point in points(value)}
                    draw(figures, measure(value, found))
        except KeyboardInterrupt:
            again = "the same command without --fresh" if fresh else "the same command"
            kept = f"Models of the sweep measured so far are kept; {again} goes on."
            raise KeyboardInterrupt(kept if shared else "Nothing is kept.") from None

    parser.run(job, arguments)


def forget(points, folder):
    """Remove what is kept of Points: their results, and the checkpoints of their training."""
    for point in points:
        for file in (point.file(folder), point.checkpoint(folder)):
            with suppress(FileNotFoundError):
                os.remove(file)


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
    command.refuse("sweep")
