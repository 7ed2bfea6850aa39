"""Real English that every Python carries: the topics of CPython's own manual, 465 kB in all.

The text differs a little between patch versions of Python: a workload that reads it lists TOPICS in its `data`, so
that its hash is part of a run's identity.
"""

import ast

from optimeter.workloads.core.workload import packaged

TOPICS = "pydoc_data/topics.py"
HELD_OUT_EVERY = 10  # every tenth topic, in alphabetical order


def topics() -> list[str]:
    """The text of each topic, in alphabetical order; the module is parsed as data, not run."""
    source = packaged(TOPICS).read_text(encoding="utf-8")
    assignment = next(node for node in ast.parse(source).body if isinstance(node, (ast.Assign, ast.AnnAssign)))
    texts = ast.literal_eval(assignment.value)  # type: ignore[arg-type]
    return [texts[name] for name in sorted(texts)]
