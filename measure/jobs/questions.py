"""Questions to child processes about the classes that a sweep names: the parent imports none of them."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from optimeter.measure.jobs.answers import Answer, Answers, Machine, Part, Question
from optimeter.measure.jobs.isolate import run_isolated
from optimeter.measure.jobs.outcomes import Refused
from optimeter.measure.jobs.parts import Config, key, parts_of


def by_device(question: Question, configs: Sequence[Config]) -> dict[str, Answers]:
    """What `ask` finds out, for each device that the configurations name."""
    together: dict[str, list[Config]] = {}
    for config in configs:
        together.setdefault(config["device"], []).append(config)
    return {device: ask(question, jobs) for device, jobs in together.items()}


def ask(question: Question, configs: Sequence[Config]) -> Answers:
    """Import every class that the configurations name in a child process, and ask `question` about it.

    If a class ends the child, it is marked as crashed (its own run will tell why) and another child goes on with the
    rest. Raises Refused if a class or its arguments cannot be.
    """
    parts = distinct(configs)
    limits = [config["limit_seconds"] for config in configs]
    limit = None if None in limits or not limits else max(limits)
    machine: Machine = {}
    known: dict[str, Answer] = {}
    with tempfile.TemporaryDirectory(prefix="optimeter-") as folder:
        log = Path(folder, "questions.log")
        while len(known) < len(parts):
            waiting = [name for name in parts if name not in known]
            answers: list[Machine | Answer] = []
            outcome = run_isolated(
                question,
                [parts[name] for name in waiting],
                configs[0]["device"],
                log=log,
                limit_seconds=limit,
                on_message=answers.append,
            )
            if not answers:
                raise Refused(f"a child process cannot start: {outcome.describe()}: {last_line(log)}")
            machine = cast(Machine, answers[0])
            known |= zip(waiting, cast(list[Answer], answers[1:]), strict=False)
            if len(answers) <= len(waiting):
                known[waiting[len(answers) - 1]] = {"crashed": outcome.describe()}
    refuse(answer["refused"] for answer in known.values() if "refused" in answer)
    return Answers(machine, known)


def distinct(configs: Iterable[Config]) -> dict[str, Part]:
    """Each part that the configurations name, once."""
    parts: dict[str, Part] = {}
    for config in configs:
        for part, spec in parts_of(config):
            parts[key(part, spec)] = (part, spec, bool(config["replay"]))
    return parts


def refuse(refusals: Iterable[str]) -> None:
    """Raise Refused with the first of them, if there is one."""
    first, *rest = [*refusals, None]
    if first:
        raise Refused(first + (f" (and {len(rest) - 1} more)" if len(rest) > 1 else ""))


def last_line(path: Path) -> str:
    """What a program printed last."""
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")
