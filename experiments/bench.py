"""What a training step costs, part by part, beside the one product that has to be dense.

Each kernel of rug.py is called by itself on the arrays of a network that has trained for a while:
the share of active outputs, which decides the cost, falls meanwhile. Medians in milliseconds, batch
1024; other work on the machine counts. Below: how far 700 steps get, and in what time.
"""
import time

import numpy as np

import rug
import train
from experiments import sweep

SETTINGS = ((512, 0.25, 0.045, 400), (2048, 0.25, 0.01, 120), (8192, 0.05, 0.03, 25))  # and warm-up


def median_ms(task, prepare=lambda: None, times=15):
    """Median milliseconds of `task()`, each after an untimed `prepare()`; the first is left out."""
    seconds = []
    for _ in range(times + 1):
        prepare()
        start = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds[1:]))


def warm_trainer(n_sparse, ratio, p, steps, threads):
    """A trainer after `steps` steps at half the usual rate."""
    trainer = rug.Trainer(n_sparse, round(ratio * n_sparse), p, threads=threads)
    for _ in range(steps):
        trainer.step(sweep.peak_rate(n_sparse) / 2)
    return trainer


def parts(trainer):
    """{part: milliseconds a step} of a trainer with one thread."""
    encoder, decoder, bias = trainer.model.parameters
    x = trainer.x[0]
    dz = trainer.dz[0]
    hidden = trainer.hidden
    silent = trainer.mostly_silent[0]
    x_by_feature = trainer.x_by_feature[0]
    dz_by_feature = trainer.dz_by_feature[0]
    transposed = [(x, x_by_feature)]
    if silent:
        transposed.append((dz, dz_by_feature))
    seed = np.uint64(trainer.seed)
    step = np.uint64(len(trainer.losses) - 1)

    # Weights and Adam's means are not touched; x and the transposed lists are written again with
    # the same numbers.
    z = hidden @ decoder.T
    z_work = np.empty_like(z)
    dz_work = rug.empty_csr(*z.shape)
    d_bias = np.zeros_like(bias)
    out = np.zeros_like(hidden)
    gradient = np.zeros_like(encoder)
    weight, mean, square = np.zeros((3, encoder.size), np.float32)

    def residual():
        rug.residual(z_work, bias, x, dz_work, trainer.row_losses, d_bias)

    def gradients():
        if silent:
            rug.add_product(dz, decoder, out)
            rug.add_product(dz_by_feature, hidden, gradient)
        else:
            np.matmul(trainer.z, decoder, out=out)
            np.matmul(trainer.z.T, hidden, out=gradient)
        rug.add_product(x_by_feature, trainer.d_hidden, gradient)

    def adam():
        flat = gradient.reshape(-1)
        rug.compiled_adam(weight, flat, mean, square, 1, 1e-3, np.float32(1))

    with rug.one_blas_thread():
        return {"sample": median_ms(lambda: rug.draw_rows(seed, step, 0, trainer.p, x)),
                "encode": median_ms(lambda: rug.add_product(x, encoder, out)),
                "decode": median_ms(lambda: np.matmul(hidden, decoder.T, out=z_work)),
                "residual": median_ms(residual, prepare=lambda: np.copyto(z_work, z)),
                "transpose": median_ms(lambda: [rug.transpose(*pair) for pair in transposed]),
                "gradients": median_ms(gradients),
                "adam": 2 * median_ms(adam)}  # of encoder and decoder


def draw(folder, scale, results):
    """Print the tables."""
    lines = []
    for n_sparse, ratio, p, warm_up in SETTINGS[:scale]:
        alone, shared = (warm_trainer(n_sparse, ratio, p, warm_up, threads)
                         for threads in (1, rug.cores()))
        share = alone.dz[0].starts[-1] / alone.z.size
        cost = parts(alone)
        step = median_ms(lambda: alone.step(1e-6))
        lines.append([f"({n_sparse}, {ratio}, {p})", f"{share:.0%}",
                      *(f"{ms:.2f}" for ms in (*cost.values(), step)),
                      f"{step / cost['decode']:.2f}",
                      f"{median_ms(lambda: shared.step(1e-6)):.2f}"])
    train.print_table(["(n_sparse, r, p), one thread", "active", *cost, "step", "step / decode",
                       f"step, {rug.cores()} threads"], lines)

    trainer = rug.Trainer(512, 128, 0.045)
    start = time.perf_counter()
    for step in range(700):
        trainer.step(rug.learning_rate(step, 700, sweep.peak_rate(512)))
    spent = time.perf_counter() - start
    loss, error = rug.evaluate(trainer.model, 0.045, 2**15, seed=1)
    print(f"700 steps at (512, 0.25, 0.045): loss {loss:.5f} ± {error:.5f} after {spent:.1f} s.")


if __name__ == "__main__":
    sweep.run("bench", __doc__, {"bench": (lambda scale: [], draw)}, {"laptop": 3, "quick": 2})
