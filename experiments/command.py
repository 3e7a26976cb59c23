"""The command line of a chapter: `python -m experiments.NAME`, with a scale and a folder.

A chapter is one question. It has parts, and each part has two functions: measure(scale) computes
all that is to be known and returns it, draw(folder, results) prints tables and saves pictures. So
what is computed can be read, called and tested without a picture. To add a chapter of your own,
write these two functions, and end the file with

    command.run("name", __doc__, {"quick": 1000}, {"name": (measure, draw)})

Chapters that train many models call sweep.run instead.
"""
import matplotlib.style

import rug
import train

# Colours of things that several chapters show. Names that the main job has are its own.
COLOURS = train.COLOURS | {
    "published": "#56b4e9", "jump": "#5d3a9b", "top-k": "#000000",
    "priority": "#000000", "digon": "#8a6d00", "mixture": "#33bbee"}

# From small to large, for what comes in sizes, and readable on white.
SHADES = "#fdae61", "#f46d43", "#d73027", "#a50026", "#5c0011"


def parser_of(name, doc, scales, parts):
    """The train.Parser of a chapter, with --scale, --out and, if there are several, its parts."""
    parser = train.Parser(prog=f"python -m experiments.{name}", description=doc)
    names = ", ".join(scales)
    parser.add_argument("--scale", metavar="NAME", default=next(iter(scales)),
                        help=f"how much to compute: {names} (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", default="out",
                        help="folder for figures/ and runs/ (default: %(default)s). `--out "
                             "experiments` makes the pictures of experiments/README.md")
    if len(parts) > 1:
        parser.add_argument("part", nargs="?", default="all",
                            help=f"all (the default) or one of {', '.join(parts)}")
    return parser


def choose(scale, scales, part, parts):
    """What the two words of a command line stand for: a value of `scales`, some of `parts`."""
    rug.require(scale in scales, "scale", scale, "one of " + ", ".join(scales))
    rug.require(part in ("all", *parts), "part", part, "one of all, " + ", ".join(parts))
    return scales[scale], parts if part == "all" else {part: parts[part]}


def run(name, doc, scales, parts, arguments=None):
    """Run a chapter from the command line.

    scales: {name: what `measure` gets}, the default first. parts: {name: (measure, draw)}, see the
    top of this file.
    """
    def job(scale, out, part="all"):
        value, chosen = choose(scale, scales, part, parts)
        figures = train.folder(out, "figures")
        try:
            with matplotlib.style.context("default"), rug.one_blas_thread():
                for measure, draw in chosen.values():
                    draw(figures, measure(value))
        except KeyboardInterrupt:
            raise KeyboardInterrupt("Only what was drawn is kept.") from None

    parser_of(name, doc, scales, parts).run(job, arguments)


def refuse(name):
    """What happens to a reader who runs a file that is no chapter: one line, and status 2."""
    train.Parser(prog=f"python -m experiments.{name}").error(
        "this is no chapter, but what chapters share; experiments/README.md lists them")


if __name__ == "__main__":
    refuse("command")
