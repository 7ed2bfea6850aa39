"""What makes two classes of one name the same class: the version of their package, or their source files."""

import ast
import inspect
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType

from optimeter.measure.jobs.answers import Identity
from optimeter.measure.jobs.build import resolve
from optimeter.measure.jobs.environment import installed
from optimeter.measure.jobs.parts import Config
from optimeter.workloads.core.workload import Workload, content_hash, packaged

OURS = ("optimeter",)
distributions = cache(packages_distributions)


def identity(part: str, spec: Config, listed_only: bool = False) -> Identity:
    """The `sources` by hash, the `package` by version and the `data` by hash that stand behind a class.

    Of a workload also which of its arguments shape its model, and which follow the optimizer.

    An installed package is not imported for it, but for a workload. A module of the user's or of ours is, and those
    that it uses are followed as far as they are the user's or ours too.
    """
    top = spec["_target_"].partition(".")[0]
    if part == "measure" and top in OURS:  # how we measure does not make another run
        return {"sources": {}, "package": None, "data": {}}
    spec_of_top = PathFinder.find_spec(top)
    if spec_of_top and spec_of_top.origin and not _is_editable(top, Path(spec_of_top.origin)):
        found: Identity = {"sources": {}, "package": package_version(top), "data": {}}
        return found | traits(resolve(part, spec, listed_only)) if part == "workload" else found
    cls = resolve(part, spec, listed_only)
    data = {name: content_hash(packaged(name)) for name in getattr(cls, "data", ())}
    libraries = {name: installed(name) for name in getattr(cls, "libraries", ())}
    found = {"sources": sources(cls.__module__), "package": package_version(top), "data": data} | traits(cls)
    return found | ({"libraries": libraries} if libraries else {})


def traits(cls: type) -> Identity:
    """Of a workload which of its arguments shape its model, and which follow the optimizer; {} of other classes."""
    return {"shaped_by": list(cls.shaped_by), "follows": list(cls.follows)} if issubclass(cls, Workload) else {}


def sources(module: str) -> dict[str, str]:
    """Module → hash of its file: this one and all that it uses, as far as they are not installed."""
    files: dict[str, str] = {}
    seen: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        path = getattr(sys.modules.get(name), "__file__", None)
        if name in seen or not path or not _is_editable(name, Path(path)):
            continue
        seen.add(name)
        files[name] = content_hash(Path(path))
        queue += imported(sys.modules[name])
    return files


@cache
def imported(module: ModuleType) -> list[str]:
    """The full names of what a module's source imports, wherever in it, as modules or from them."""
    package = module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]
    names = []
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            with suppress(ImportError):  # a relative import that leads out of the package
                source = resolve_name("." * node.level + source, package) if node.level else source
            names += [source, *_members(source, node.names)]
    return names


def _members(source: str, aliases: Iterable[ast.alias]) -> list[str]:
    return [f"{source}.{alias.name}" for alias in aliases]


def _is_editable(module: str, path: Path) -> bool:
    """Ours, or not inside an installed package or the standard library, whose versions stand in the record."""
    installed = any(part in ("site-packages", "dist-packages") for part in path.parts)
    standard = path.is_relative_to(Path(inspect.__file__).parent) and not installed
    return module.partition(".")[0] in OURS or not (installed or standard)


def package_version(top: str) -> str | None:
    """The distribution that a top-level package is from, with its version; None where it is from none."""
    for distribution in distributions().get(top, ()):
        with suppress(PackageNotFoundError):
            return f"{distribution} {version(distribution)}"
    return None
