"""The configuration: YAML files for Hydra, and the only code that turns them into checked values."""

from pathlib import Path

from optimeter.measure.jobs.outcomes import Refused, Unsupported

__all__ = ["CONF", "Refused", "Unsupported"]

CONF = Path(__file__).resolve().parent
