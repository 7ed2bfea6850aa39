"""The configuration: YAML files for Hydra, and the only code that turns them into checked values and objects."""

from pathlib import Path

CONF = Path(__file__).resolve().parent


class Refused(Exception):
    """Bad input: one line that names what is wrong and the fix. Nothing has been written."""


class Unsupported(Exception):
    """This run cannot be made here, and why: a missing package, gradients of the other kind."""
