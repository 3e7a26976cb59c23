"""What does a training step cost, part by part?

The compiled loops of rug.py are called by themselves, on the arrays of a network that has trained
for a while: the share of outputs that are on decides the cost, and falls in training. Beside these
parts stand a whole step of one thread, which also draws samples, and one of all cores. Times are
medians in milliseconds, for a batch of 1024. Other work on the machine makes them longer.

The decode is the only product that has to be dense, so it is the floor under a step.
"""
import time

import numpy as np

import rug
import train
from experiments import command

# n_sparse, r, p, and steps of training before: until few outputs are on.
SETTINGS = [
    (512, 0.25, 0.045, 400),
    (2048, 0.25, 0.01, 120)]


def median_ms(task, prepare=lambda: None):
    """Median milliseconds of 15 calls of `task()`, each after an untimed `prepare()`."""
    seconds = []
    for _ in range(15):
        prepare()
        start = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - start)
    return 1e3 * np.median(seconds)


def warm_trainer(n_sparse, ratio, p, steps, threads):
    """A rug.Trainer after `steps` steps at half the usual rate."""
    trainer = rug.Trainer(n_sparse, round(ratio * n_sparse), p, threads=threads)
    train.train(trainer, [rug.peak_rate(n_sparse) / 2] * steps)
    return trainer


def parts(trainer):
    """{part: milliseconds a step} of a trainer with one thread, most of whose outputs are off."""
    encoder, decoder, bias = trainer.model.parameters
    hidden = trainer.hidden
    x = trainer.x[0]
    dz = trainer.dz[0]
    by_feature = trainer.x_by_feature[0]

    # Room for what the parts write. The weights of the trainer stay as they are.
    out = np.zeros_like(hidden)
    gradient = np.zeros_like(encoder)
    flat = np.zeros((4, 2 * encoder.size), np.float32)  # for Adam, encoder and decoder at once

    def decode():
        np.matmul(hidden, decoder.T, out=trainer.z)

    def residual():
        rug.residual(trainer.z, bias, x, dz, trainer.row_losses, trainer.d_bias[0])

    def gradients():
        rug.add_product(dz, decoder, out)
        rug.transpose(dz, by_feature)
        rug.add_product(by_feature, hidden, gradient)
        rug.transpose(x, by_feature)
        rug.add_product(by_feature, trainer.d_hidden, gradient)

    # Before each call z is decoded anew, because the residual writes over it.
    tasks = {
        "encode": lambda: rug.add_product(x, encoder, out),
        "decode": decode,
        "residual": residual,
        "gradients": gradients,
        "Adam": lambda: rug.compiled_adam(*flat, 1, 1e-3, np.float32(1))}
    times = {}
    for name, task in tasks.items():
        times[name] = median_ms(task, prepare=decode)
    return times


def measure(settings):
    """{setting: {part: milliseconds}}, and of a whole step."""
    results = {}
    for setting in settings:
        alone = warm_trainer(*setting, threads=1)
        shared = warm_trainer(*setting, threads=rug.cores())
        costs = parts(alone)
        costs["step"] = median_ms(lambda: alone.step(1e-6))
        costs["step, all cores"] = median_ms(lambda: shared.step(1e-6))
        results[setting] = costs
    return results


def draw(folder, results):
    """Print the table."""
    lines = []
    for setting, costs in results.items():
        lines.append([str(setting)] + [f"{ms:.2f}" for ms in costs.values()])
    train.print_table(["(n_sparse, r, p, steps before)", *costs], lines)


if __name__ == "__main__":
    command.run("bench", __doc__, {"quick": SETTINGS}, {"bench": (measure, draw)})
