"""Types where data crosses processes and disk: a type checker has something to check there."""

import ast
from collections.abc import Iterator

from tests.conftest import PROJECT

PLACES = ("bench.py", "conf/*.py", "measure/jobs/*.py", "measure/records/*.py")
ALIASES = ("JSON", "Config")  # of Any, and of a dict of Any: a part of a configuration can be anything


def annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Those of parameters, of what is returned, and of variables."""
    for node in ast.walk(tree):
        kinds = (getattr(node, "annotation", None), getattr(node, "returns", None))
        yield from (kind for kind in kinds if isinstance(kind, ast.expr))


def names(annotation: ast.expr) -> set[str]:
    """What an annotation names; a text is one too."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    return {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}


def written() -> list[set[str]]:
    """The names in each annotation."""
    paths = [path for place in PLACES for path in sorted(PROJECT.glob(place))]
    assert len(paths) > 25
    return [names(annotation) for path in paths for annotation in annotations(ast.parse(path.read_text()))]


def test_few_annotations_are_any() -> None:
    every = written()
    assert sum("Any" in found for found in every) < len(every) / 20


def test_few_annotations_are_any_by_another_name() -> None:
    every = written()
    assert sum(not found.isdisjoint(("Any", *ALIASES)) for found in every) < 0.15 * len(every)
