"""What happens in child processes: looking at the classes that a sweep names, and making one run.

The parent never imports torch, a user's module or a rival's package: whatever these do, they do it here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from optimeter.measure.jobs.answers import Answer, Estimate, Machine, Part, Payload
from optimeter.measure.jobs.news import checked_line, checked_progress
from optimeter.measure.jobs.outcomes import Refused, Unsupported
from optimeter.measure.jobs.parts import Config, about, others
from optimeter.measure.records.environment import Gpu
from optimeter.measure.records.fields import JSON, from_plain
from optimeter.measure.records.naming import STEPS
from optimeter.measure.records.schema import Result
from optimeter.measure.records.write import check, in_short, to_line

if TYPE_CHECKING:
    from optimeter.measure.jobs.build import Build
    from optimeter.measure.methods import Measure, Recipe, Settings, Trial
    from optimeter.measure.methods.base import News
    from optimeter.measure.records.schema import Findings

Tell = Callable[[Machine | Answer], None]
Report = Callable[["News"], None]


def identify(parts: list[Part], device: str, send: Tell) -> None:
    """Send the facts of the machine, then the `identity` of each part, in their order."""
    send(_machine(device))
    for part in parts:
        send(_answer(part, _identity_of))


def _machine(name: str) -> Machine:
    """The facts of this machine, or why the device cannot be: it is `refused`, never replaced."""
    from optimeter.measure.devices import resolve
    from optimeter.measure.jobs.environment import describe

    try:
        device = resolve(name)
    except ValueError as reason:
        return {"refused": f"device={name}: {reason}"}
    return {"device": device.name, "device_name": device.label(), "environment": describe(device)}


def _identity_of(part: str, spec: Config, listed_only: bool) -> Answer:
    from optimeter.measure.jobs.sources import identity

    return {"identity": identity(part, spec, listed_only)}


def look(parts: list[Part], device: str, send: Tell) -> None:
    """Send {}, then the `target` of each part, in their order, its class imported, its arguments checked and tried."""
    send({})
    for part in parts:
        send(_answer(part, _target_of))


def _target_of(part: str, spec: Config, listed_only: bool) -> Answer:
    from optimeter.measure.jobs.build import build_measure, build_workload, check_arguments, optimizer_builder, resolve

    cls = resolve(part, spec, listed_only)
    check_arguments(part, cls, spec)
    if part == "workload":
        build_workload(spec, listed_only)
    elif part == "measure":
        build_measure(spec, listed_only)
    else:
        _try_arguments(part, cls.__name__, optimizer_builder(spec, listed_only, part))
    return {"target": f"{cls.__module__}.{cls.__qualname__}"}


def _try_arguments(part: str, name: str, build: "Build") -> None:
    """Raise Refused for values that the constructor says it cannot take; whatever else happens, a run will tell."""
    import torch

    try:
        build([("weight", torch.nn.Parameter(torch.ones(2, 2)))])
    except ValueError as error:
        line = str(error).partition("\n")[0]
        raise Refused(f"{part}: {line if line.startswith(name) else f'{name}: {line}'}") from error
    except Exception:
        return


def _answer(part: Part, question: Callable[[str, Config, bool], Answer]) -> Answer:
    """What `question` finds out; or `refused` or `unsupported` with the reason."""
    from optimeter.measure.jobs.build import headed
    from optimeter.measure.jobs.sources import package_version

    try:
        return question(*part)
    except Refused as refusal:
        return {"refused": str(refusal)}
    except Unsupported as reason:
        return {"unsupported": str(reason), "package": package_version(part[1]["_target_"].partition(".")[0])}
    except (ValueError, TypeError) as error:
        return {"refused": headed(part[0], error)}


def make(payload: Payload, folder: Path, send: Report) -> Result:
    """Build what the configuration names and measure it: the record as far as it can be told here, whatever happens."""
    import traceback

    from optimeter.workloads.core.workload import NoTask

    try:
        return _measure(payload, folder, send)
    except (Unsupported, NoTask) as reason:  # not every NotImplementedError: torch raises it for a kernel that it lacks
        return Result(status="unsupported", reason=str(reason))
    except Exception as error:
        traceback.print_exc()  # to log.txt
        return Result(status="oom" if _out_of_memory(error) else "error", reason=in_short(error))


def _measure(payload: Payload, folder: Path, send: Report) -> Result:
    """Measure, and add what the record has of every measure: the device's watch, provenance, the line that ends it."""
    from optimeter.measure.jobs.build import build_measure
    from optimeter.measure.methods.peaks import compiled

    measure = build_measure(payload["config"]["measure"], payload["listed_only"])
    with open(folder / STEPS, "w", encoding="utf-8", buffering=1 << 14) as steps:

        def progress(news: "News") -> None:
            steps.flush()  # a crash loses a fifth of a second of lines, not a buffer of them
            send(checked_progress(news))

        trial = trial_of(payload, lambda line: steps.write(to_line(checked_line(line))), progress)
        if reason := measure.fits(trial):
            raise Unsupported(reason)
        with trial.device.watch() as watch:
            findings = measure.run(trial)
    check(findings)
    summarise(findings, measure)
    seen = watch.summary()
    if seen is None:
        findings.missing = {**findings.missing, "gpu": str(watch.reason)}
    return Result.of(
        findings,
        gpu=from_plain(Gpu, seen or {}),
        weights=dict(trial.workload.provenance() or {}),
        compiled=compiled(),
    )


def summarise(findings: "Findings", measure: "Measure") -> None:
    """Add the line that ends the run; where the measure cannot say it, why. What was found stays."""
    import traceback

    try:
        lines = (measure.line(findings) or "").splitlines()
        findings.summary = lines[0] if lines else None
    except Exception as error:
        traceback.print_exc()  # to log.txt
        findings.missing = {**findings.missing, "summary": in_short(error)}


def trial_of(
    payload: Payload, write: Callable[[dict[str, JSON]], object], progress: Callable[["News"], object]
) -> "Trial":
    """What a measure is given; raises Unsupported where the baseline cannot be built here."""
    from optimeter.measure.devices import device_for
    from optimeter.measure.jobs.build import build_workload
    from optimeter.measure.methods import Trial

    config, listed_only = payload["config"], payload["listed_only"]
    specs = {"optimizer": config["optimizer"], **others(config["measure"])}
    names = config["choices"]
    recipes = {part: recipe_of(names[part], spec, listed_only, part) for part, spec in specs.items()}
    return Trial(
        workload=build_workload(config["workload"], listed_only),
        optimizer=recipes.pop("optimizer"),
        settings=settings_of(config),
        device=device_for(payload["device"]),
        others=recipes,
        write=write,
        progress=progress,
    )


def recipe_of(name: str, spec: Config, listed_only: bool, part: str) -> "Recipe":
    """How to build one optimizer."""
    from optimeter.measure.jobs.build import optimizer_builder, resolve
    from optimeter.measure.methods import Recipe

    said = about(spec)
    try:
        cls = resolve(part, spec, listed_only)
        build = optimizer_builder(spec, listed_only, part)
    except Unsupported as reason:
        raise Unsupported(str(reason) if part == "optimizer" else f"{part}={name}: {reason}") from reason
    keys = ("closure", "hessian_every", "gradients", "roles")
    return Recipe(name, build, cls, **{key: said[key] for key in keys})


def settings_of(config: Config) -> "Settings":
    """How to train, from the configuration."""
    import torch

    from optimeter.measure.methods import Settings

    names = ("steps", "seed", "schedule", "warmup_steps", "clip_norm", "accumulate", "eval_every", "record_every")
    return Settings(**{name: config[name] for name in names}, dtype=getattr(torch, config["dtype"]))


def estimate(payload: Payload, send: Report) -> Estimate:
    """For `dry`: the plan of a run in a line, or why it cannot run."""
    from optimeter.measure.jobs.build import build_measure
    from optimeter.measure.methods import Plan
    from optimeter.measure.methods.base import ignore

    try:
        trial = trial_of(payload, ignore, ignore)
        if reason := build_measure(payload["config"]["measure"], payload["listed_only"]).fits(trial):
            return {"unsupported": reason}
        plan = Plan()
        return {"planned": plan.line(plan.run(trial))}
    except Unsupported as reason:
        return {"unsupported": str(reason)}
    except Exception as error:
        return {"unknown": in_short(error)}


OUT_OF_MEMORY = (
    "can't allocate memory",  # torch's CPU allocator
    "CUDA error: out of memory",  # outside torch's allocator, as for pinned memory
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def _out_of_memory(error: Exception) -> bool:
    import torch

    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(words in str(error) for words in OUT_OF_MEMORY)
