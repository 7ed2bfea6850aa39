"""Reading records back: every one is checked, and what is none is named in a line and left out."""

import json
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from optimeter.measure.records.convert import config_to_current, to_current
from optimeter.measure.records.fields import JSON, Malformed, described, from_plain
from optimeter.measure.records.naming import CONFIG, OLD, PART, RESULT, STEPS
from optimeter.measure.records.schema import CONFIGURATION, Result
from optimeter.measure.records.write import finite

MIB = 1 << 20
BLOCK = MIB >> 2  # bytes read at once
LARGEST_RESULT, LARGEST_CONFIG = 64 * MIB, MIB  # bytes; real ones have some thousands
DEEPEST_YAML = 32  # levels
RUNNING = "no result yet: it is running, or bench.py was killed"


class Unreadable(ValueError):
    """A file that should be of a record and is not; the text is one line: its path and what is wrong."""

    def __init__(self, path: Path | str, problem: str) -> None:
        line = "".join(letter if letter.isprintable() else " " for letter in f"{path}: {problem}")
        super().__init__(line)


@dataclass
class Record:
    """A run that was read back; of an unfinished one `result` has what its configuration tells."""

    folder: Path
    result: Result = field(repr=False)

    @property
    def name(self) -> str:
        """The folder's name, unique in its sweep."""
        return self.folder.name

    def steps(self) -> list[dict[str, JSON]]:
        """The lines of steps.jsonl; what is not a step, as a torn last line of a run that was killed, is left out."""
        try:
            text = read_file(self.folder / STEPS).decode("utf-8", errors="replace")
        except (FileNotFoundError, Unreadable):
            return []
        lines = map(_line, text.splitlines())
        return [line for line in lines if isinstance(line, dict) and "step" in line]


def _line(text: str) -> JSON:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_records(root: Path) -> list[Record]:
    """Every record under `root`, by folder; one that cannot be read is named on stderr, in a line, and left out.

    A run without a result counts as interrupted.
    """
    records = []
    for folder in sorted(map(Path, run_folders(root)), key=lambda folder: folder.parts):
        try:
            check_name(folder)
            records.append(Record(folder, read_result(folder)))
        except Unreadable as problem:
            print(problem, file=sys.stderr)
    return records


def check_name(folder: Path) -> None:
    """Raise Unreadable for a folder that no page could name."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise Unreadable(folder, "its name is not UTF-8") from None


def run_folders(root: Path) -> Iterator[str]:
    """Every folder from `root` downwards with a result or a configuration in it; links are not followed."""
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        names = set()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    names.add(entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except FileNotFoundError:
            continue
        except OSError as error:
            print(Unreadable(folder, str(error.strerror)), file=sys.stderr)
        if not names.isdisjoint((RESULT, CONFIG)) and not folder.endswith(OLD):
            yield folder


def read_result(folder: Path) -> Result:
    """The result in a run's folder, or what is known of a run that has none yet. Raises Unreadable."""
    path = os.path.join(folder, RESULT)
    try:
        text = read_file(path, LARGEST_RESULT).decode("utf-8")
    except FileNotFoundError:
        return unfinished(folder)
    except UnicodeDecodeError as error:
        raise Unreadable(path, "it is not UTF-8") from error
    try:
        return checked(_parsed(text))
    except Malformed as problem:
        raise Unreadable(path, str(problem)) from problem


def checked(plain: object) -> Result:
    """A result from plain JSON of any schema; raises Malformed for what is none."""
    if not isinstance(plain, dict):
        raise Malformed(f"is {described(plain)}, not an object")
    result = from_plain(Result, to_current(plain))
    if result.config:
        check_config(result.config)
        for part in ("optimizer", "workload"):
            if not result.config.get(part):
                raise Malformed("is missing", f"config.{part}")
    return result


def check_config(config: dict[str, JSON]) -> None:
    """Raise Malformed where what everyone looks up in a configuration is not what it should be."""
    for name, kind in CONFIGURATION.items():
        if name in config and not isinstance(config[name], kind):
            raise Malformed(f"is {described(config[name])}", f"config.{name}")
    for part in ("optimizer", "workload", "measure"):
        target = config.get(part, {}).get("_target_", "")
        if not isinstance(target, str):
            raise Malformed(f"is {described(target)}, not the name of a class", f"config.{part}._target_")
    for choice in (config.get("choices") or {}).values():
        if not isinstance(choice, str):
            raise Malformed(f"has {described(choice)} for a name", "config.choices")


def _parsed(text: str) -> JSON:
    try:
        plain = json.loads(text)
    except RecursionError:
        raise Malformed("is nested too deep") from None
    except ValueError as error:
        raise Malformed(f"is not JSON: {error}" if text.strip() else "is empty") from None
    if "\\ud" in text or "\\uD" in text:  # it may be half a character, which no file can hold
        try:
            json.dumps(plain, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            raise Malformed("has half a character in a text") from None
    return plain


def unfinished(folder: Path) -> Result:
    """What the configuration tells of a run without a result. Raises Unreadable."""
    try:
        config = read_config(folder)
    except FileNotFoundError:
        raise Unreadable(folder, f"there is neither {RESULT} nor {CONFIG}") from None
    optimizer, _, workload = folder.name.removesuffix(PART).partition("-")
    names = {"optimizer": optimizer, "workload": workload} | (config.get("choices") or {})
    parts = all(config.get(part) for part in ("optimizer", "workload"))
    return Result(
        status="interrupted",
        reason=RUNNING,
        seed=config.get("seed"),
        measure=names.get("measure"),
        optimizer=names["optimizer"],
        workload=names["workload"],
        config=config if parts else {},
    )


def read_config(folder: Path) -> dict[str, JSON]:
    """The configuration in a run's folder (or at the path of a YAML file), in today's form.

    Raises FileNotFoundError, and Unreadable for what is no plain YAML of a run.
    """
    path = folder if folder.suffix == ".yaml" else folder / CONFIG
    data = read_file(path, LARGEST_CONFIG)
    try:
        config = _parsed_yaml(data.decode("utf-8"))
        if not isinstance(config, dict):
            raise Malformed(f"is {described(config)}, not a mapping")
        from_plain(dict[str, JSON], finite(config, {}))
        check_config(config)
    except UnicodeDecodeError as error:
        raise Unreadable(path, "it is not UTF-8") from error
    except Malformed as problem:
        raise Unreadable(path, str(problem)) from problem
    return config_to_current(config)


def _parsed_yaml(text: str) -> JSON:
    """Plain YAML: tags and aliases, which can run code or fill the memory, are refused."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise Malformed("has YAML anchors or aliases, which are not read")
            if tag := getattr(event, "tag", None):
                raise Malformed(f"has the YAML tag {tag!r}, which is not read")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_YAML:
                raise Malformed(f"is nested deeper than {DEEPEST_YAML} levels")
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, Malformed):
            raise
        raise Malformed(f"is not YAML: {' '.join(str(error).split())}") from None


def read_file(path: Path | str, limit: int | None = None) -> bytes:
    """The bytes of a file; raises FileNotFoundError where there is none, Unreadable for what is no file of that size.

    A named pipe is not waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise Unreadable(path, "it is a link to nothing") from None
        raise
    except OSError as error:
        raise Unreadable(path, str(error.strerror)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(path, f"it is {KINDS.get(stat.S_IFMT(status.st_mode), 'something else')}, not a file")
        if limit is not None and status.st_size > limit:
            raise Unreadable(path, f"it has {status.st_size:,} bytes; no record has more than {limit:,}")
        return _all_of(descriptor)
    except OSError as error:
        raise Unreadable(path, str(error.strerror)) from error
    finally:
        os.close(descriptor)


def _all_of(descriptor: int) -> bytes:
    blocks = []
    while block := os.read(descriptor, BLOCK):
        blocks.append(block)
    return b"".join(blocks)


KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
