"""The page docs/record.md, from the record's definition: `python -m optimeter.measure.records.document` writes it."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_origin

from optimeter.measure.records.fields import JSON, types_of
from optimeter.measure.records.lines import Line
from optimeter.measure.records.schema import SCHEMA, STATUSES, Result, Status

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "record.md"
HEAD = f"""# The record

Each run has a folder, `runs/NAME/OPTIMIZER-WORKLOAD-ID/`, with `config.yaml` (the configuration, which `replay=FOLDER`
makes again), `steps.jsonl` (a line a step), `log.txt` and, written last, `result.json`: the record. While it is being
made the folder's name ends in `.part`.

This page is made from the definition, `measure/records/schema.py`: `python -m optimeter.measure.records.document`
writes it anew. The schema is {SCHEMA}. Records of schema 1 are read as what they would be now; a record of a newer
schema, or a file that is no record, is named in a line and left out. Within a schema keys may be added: what a reader
does not know it passes over.

- Sizes are in bytes and times in seconds, unless the unit says otherwise; a unit of 1 is a ratio.
- Every key is written. A block in which there is nothing is null. What is null for a reason has it in `missing`.
- Numbers are finite: what is not is null, and `missing` tells what it was.
- `status` is one of {", ".join(f"`{status}`" for status in STATUSES)}.
"""


def page() -> str:
    """docs/record.md."""
    parts = [HEAD]
    for root, name in ((Result, "result.json"), (Line, "steps.jsonl")):
        for block, paths in blocks_of(root, name).items():
            parts += [section(block, paths)]
    return "\n".join(parts)


def blocks_of(root: type, name: str) -> dict[type, list[str]]:
    """A block and all that it holds, at any depth → the paths at which each stands."""
    blocks: dict[type, list[str]] = {root: [name]}
    waiting: list[tuple[type, str]] = [(root, "" if root is Result else "line.")]
    while waiting:
        outer, path = waiting.pop(0)
        for key, kind in types_of(outer).items():
            block, suffix = _block_in(kind)
            if block:
                inner = f"{path}{key}{suffix}"
                waiting += [] if block in blocks else [(block, f"{inner}.")]
                blocks.setdefault(block, []).append(inner)
    return blocks


def _block_in(kind: object) -> tuple[type | None, str]:
    """The block that a key holds, if it does, and what its path is followed by."""
    suffixes: dict[object, str] = {list: "[]", dict: ".*"}
    for part in (kind, *get_args(kind)):
        if isinstance(part, type) and is_dataclass(part):
            return part, suffixes.get(get_origin(kind), "")
    return None, ""


def section(block: type, paths: list[str]) -> str:
    """What the page says of a block."""
    also = ", ".join(f"`{path}`" for path in paths[1:])
    lines = [f"## `{paths[0]}`", "", block.__doc__ or "", *([f"The same keys: {also}."] if also else []), ""]
    lines += ["| key | type | unit | meaning |", "|---|---|---|---|"]
    for key in fields(block):
        kind, unit = in_words(types_of(block)[key.name]), key.metadata["unit"]
        lines.append(f"| `{key.name}` | {kind} | {unit} | {key.metadata['meaning']} |")
    return "\n".join([*lines, ""])


def in_words(kind: object) -> str:
    """A type in words: "number or null"."""
    if kind in WORDS:
        return WORDS[kind]
    if is_dataclass(kind):
        return "block"
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is list:
        return f"list of {in_words(arguments[0])}s"
    if origin is dict:
        return f"object: key → {in_words(arguments[1])}"
    return f"{in_words(arguments[0])} or null"


WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", JSON: "anything", Status: "text"}


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
