"""The names of this room under their old address, until all who use them have moved."""

from optimeter.measure.records.folder import Place
from optimeter.measure.records.naming import (
    CONFIG,
    LOG,
    OLD,
    PART,
    REPORT,
    RESULT,
    STEPS,
    VOLATILE,
    flat,
    run_id,
    slug,
)
from optimeter.measure.records.read import Record, read_records
from optimeter.measure.records.schema import FAILED, FINISHED, SCHEMA, STATUSES
from optimeter.measure.records.write import in_short, to_json, to_line, write_atomically

__all__ = [
    "CONFIG",
    "FAILED",
    "FINISHED",
    "LOG",
    "OLD",
    "PART",
    "REPORT",
    "RESULT",
    "SCHEMA",
    "STATUSES",
    "STEPS",
    "VOLATILE",
    "Place",
    "Record",
    "flat",
    "in_short",
    "read_records",
    "run_id",
    "slug",
    "to_json",
    "to_line",
    "write_atomically",
]
