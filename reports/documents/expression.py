"""Arithmetic in text: numbers, + − × ÷, powers, brackets, and names that the caller resolves; nothing else."""

import ast
import operator
from collections.abc import Callable
from typing import Any

OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
LARGEST_POWER = 64  # so that no text can keep the machine busy
Find = Callable[[tuple[str, ...]], Any]


def evaluate(text: str, find: Find | None = None) -> float | None:
    """The value; `find` gives that of a dotted name, by its parts, and None makes the whole None, as ÷ 0 does.

    Raises ValueError for anything but arithmetic.
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is no arithmetic") from error
    try:
        return _value(tree, find)
    except (ZeroDivisionError, OverflowError):
        return None


def _value(node: ast.expr, find: Find | None) -> float | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand, find)
        return None if value is None else -value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _value(node.left, find), _value(node.right, find)
        if left is None or right is None:
            return None
        if isinstance(node.op, ast.Pow) and abs(right) > LARGEST_POWER:
            raise ValueError(f"{ast.unparse(node)}: a power over {LARGEST_POWER}")
        result = OPERATORS[type(node.op)](left, right)
        return None if isinstance(result, complex) else result
    if find and isinstance(node, (ast.Name, ast.Attribute)):
        found = find(_path(node))
        return found if isinstance(found, (int, float)) else None
    raise ValueError(f"{ast.unparse(node)} is no arithmetic")


def _path(node: ast.expr) -> tuple[str, ...]:
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        return (*_path(node.value), node.attr)
    raise ValueError(f"{ast.unparse(node)} is no name")
