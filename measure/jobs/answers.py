"""What a sweep's process and its children tell each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

from optimeter.measure.jobs.parts import Config, key

Part: TypeAlias = tuple[str, Config, bool]  # its name, its configuration, whether it is from a replayed record


class Machine(TypedDict, total=False):
    """The facts of a machine, or why the device cannot be."""

    device: str  # as torch calls its type
    device_name: str  # the card's, or "cpu"
    environment: Config  # the record's block
    refused: str


class Identity(TypedDict, total=False):
    """What makes a class the same one; of a workload also what of its arguments reports must know."""

    target: str  # of a class that could not be looked at
    sources: dict[str, str]  # module → hash of its file
    package: str | None  # the distribution with its version
    data: dict[str, str]  # file → hash
    libraries: dict[str, str | None]  # distribution → version
    shaped_by: list[str]
    follows: list[str]


class Answer(TypedDict, total=False):
    """What a child found out about one class: one of the first two, or why neither."""

    identity: Identity
    target: str
    refused: str
    unsupported: str
    package: str | None  # of a class that is unsupported
    crashed: str


class Estimate(TypedDict, total=False):
    """One of these lines: the plan of a run, why it cannot run, or why nobody knows."""

    planned: str
    unsupported: str
    unknown: str


class Payload(TypedDict):
    """What the process of a run is given."""

    config: Config
    device: str
    listed_only: bool  # only classes that a replayed configuration may name


Question: TypeAlias = Callable[[list[Part], str, Callable[[Machine | Answer], None]], None]  # parts, device, send


@dataclass(frozen=True)
class Answers:
    """What children found out for one device."""

    machine: Machine  # or {}
    parts: dict[str, Answer]  # `key` of a part → what was found

    def identity(self, part: str, spec: Config) -> Identity:
        """What makes a class the same one; of a class that is missing or ends its process, its name and version."""
        answer = self.parts[key(part, spec)]
        return answer.get("identity") or {"target": spec["_target_"], "package": answer.get("package")}
