"""Records as text: JSON and YAML that every reader understands, written whole or not at all."""

import json
import math
import os
from pathlib import Path

from optimeter.measure.records.fields import JSON, from_plain, to_plain
from optimeter.measure.records.schema import Findings, Result


def to_json(result: Result) -> str:
    """result.json, without NaN: what is not finite becomes null, and "missing" has its path with the reason."""
    missing = dict(result.missing)
    clean = finite({"schema": result.schema, **to_plain(result)}, missing)
    return json.dumps(clean | {"missing": missing}, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def check(findings: Findings) -> None:
    """Raise Malformed where something is not of its key's type: a measure of one's own may have found anything."""
    from_plain(Findings, finite(to_plain(findings), {}))


def to_line(line: dict[str, JSON]) -> str:
    """One line of steps.jsonl; what is not finite is null and named under "not_finite"."""
    missing: dict[str, str] = {}
    clean = finite(line, missing)
    if missing:
        clean |= {"not_finite": sorted(missing)}
    return json.dumps(clean, allow_nan=False) + "\n"


def to_yaml(config: dict[str, JSON]) -> str:
    """config.yaml: plain YAML, without the anchors and aliases that PyYAML uses for what is there twice."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    return yaml.dump(config, Dumper=Plain, sort_keys=False, allow_unicode=True)


def finite(value: JSON, missing: dict[str, str], path: str = "") -> JSON:
    """A copy of `value` with null for every number that is not finite; their paths and values go into `missing`."""
    if isinstance(value, dict):
        return {name: finite(part, missing, f"{path}.{name}".lstrip(".")) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part, missing, f"{path}[{index}]") for index, part in enumerate(value)]
    if not isinstance(value, float):
        return value
    if math.isfinite(value):
        return float(value)  # numpy's are floats too
    missing[path] = f"not finite: {value}"
    return None


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either the old one or the new one, whatever happens."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def in_short(error: BaseException) -> str:
    """What went wrong, in a line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
