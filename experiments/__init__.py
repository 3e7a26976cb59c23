"""What goes beyond the main job, one question a file: `python -m experiments.NAME --help`."""
