"""What happens in child processes: looking at the classes that a sweep names, and making one run.

The parent never imports torch, a user's module or a rival's package: whatever these do, they do it here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimeter.measure.jobs.outcomes import Refused, Unsupported
from optimeter.measure.jobs.parts import about, parts_of
from optimeter.measure.records.record import in_short

Send = Callable[[Any], None]
Part = tuple[str, dict[str, Any], bool]  # optimizer, workload or baseline, its configuration, from a replayed record


def identify(parts: list[Part], device: str, send: Send) -> None:
    """Send the facts of the machine, then the `identity` of each part, in their order."""
    from optimeter.measure.devices import resolve
    from optimeter.measure.jobs.environment import describe
    from optimeter.measure.jobs.sources import identity

    try:
        found = resolve(device)
        send({"device": found.name, "device_name": found.label(), "environment": describe(found)})
    except ValueError as reason:
        send({"device": None, "reason": str(reason), "device_name": None, "environment": describe(None)})
    for part in parts:
        send(_answer("identity", identity, part))


def look(parts: list[Part], device: str, send: Send) -> None:
    """Send {}, then the `target` of each part, in their order, its class imported, its arguments checked and tried."""
    send({})
    for part in parts:
        send(_answer("target", _target_of, part))


def _target_of(kind: str, spec: dict[str, Any], listed_only: bool) -> str:
    from optimeter.measure.jobs.build import build_workload, check_arguments, optimizer_builder, resolve

    cls = resolve(kind, spec, listed_only)
    check_arguments(kind, cls, spec)
    if kind == "workload":
        build_workload(spec, listed_only)
    else:
        _try_arguments(cls.__name__, optimizer_builder(spec, listed_only))
    return f"{cls.__module__}.{cls.__qualname__}"


def _try_arguments(name: str, build: Callable[..., Any]) -> None:
    """Raise Refused for values that the constructor says it cannot take; whatever else happens, a run will tell."""
    import torch

    try:
        build([("weight", torch.nn.Parameter(torch.ones(2, 2)))])
    except ValueError as error:
        line = str(error).partition("\n")[0]
        raise Refused(f"optimizer: {line if line.startswith(name) else f'{name}: {line}'}") from error
    except Exception:
        return


def _answer(name: str, question: Callable[..., Any], part: Part) -> dict[str, Any]:
    """What `question` finds out, under `name`; or `refused` or `unsupported` with the reason."""
    from optimeter.measure.jobs.sources import package_version

    try:
        return {name: question(*part)}
    except Refused as refusal:
        return {"refused": str(refusal)}
    except Unsupported as reason:
        return {"unsupported": str(reason), "package": package_version(part[1]["_target_"].partition(".")[0])}
    except (ValueError, TypeError) as error:
        return {"refused": f"{part[0]}: {error}"}


def make(payload: dict[str, Any], folder: Path, send: Send) -> dict[str, Any]:
    """Build what the configuration names and measure it: the blocks of the record, whatever happens."""
    import traceback

    from optimeter.workloads.core.workload import NoTask

    try:
        return _measure(payload, folder, send)
    except (Unsupported, NoTask) as reason:  # not every NotImplementedError: torch raises it for a kernel that it lacks
        return {"status": "unsupported", "reason": str(reason)}
    except Exception as error:
        traceback.print_exc()  # to log.txt
        return {"status": "oom" if _out_of_memory(error) else "error", "reason": in_short(error)}


def _measure(payload: dict[str, Any], folder: Path, send: Send) -> dict[str, Any]:
    from optimeter.measure.jobs.build import build_workload, optimizer_builder, resolve
    from optimeter.measure.memory.peaks import compiled
    from optimeter.measure.methods.train import Training
    from optimeter.measure.records.record import STEPS, to_line

    config, listed_only = payload["config"], payload["listed_only"]
    build = optimizer_builder(config["optimizer"], listed_only)
    workload = build_workload(config["workload"], listed_only)
    check_pair(config, resolve("optimizer", config["optimizer"], listed_only), workload)
    settings = settings_of(config, payload["device"])
    if config["measure"]["kind"] == "plan":
        from optimeter.measure.methods.plan import plan

        return plan(workload, build, settings)
    if config["measure"]["kind"] == "step":
        return _compare_steps(config, listed_only, workload, settings, send)
    with open(folder / STEPS, "w", encoding="utf-8", buffering=1 << 14) as steps:
        if config["measure"]["kind"] == "overhead":
            from optimeter.measure.methods.overhead import overhead

            blocks = _watched(settings.device, lambda: overhead(workload, build, settings, config["measure"], send))
            return blocks | {"weights": workload.provenance() or None}

        def progress(news: Any) -> None:
            steps.flush()  # a crash loses a fifth of a second of lines, not a buffer of them
            send(news)

        training = Training(workload, build, settings, lambda line: steps.write(to_line(line)), progress)
        weights = {"weights": workload.provenance() or None}
        return _watched(settings.device, training.run) | weights | {"compiled": compiled()}


def _watched(device: str, measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The blocks that `measured` returns and what was seen of the device meanwhile."""
    from optimeter.measure.devices import device_for

    with device_for(device).watch() as watch:
        blocks = measured()
    return blocks | {"gpu": watch.summary()}


def _compare_steps(
    config: dict[str, Any], listed_only: bool, workload: Any, settings: Any, send: Send
) -> dict[str, Any]:
    """The record's blocks for measure=step; raises Unsupported where the baseline cannot be run here."""
    from optimeter.measure.jobs.build import optimizer_builder
    from optimeter.measure.memory.peaks import compiled
    from optimeter.measure.methods.contestant import Side
    from optimeter.measure.methods.step import BASELINE, CANDIDATE, compare_steps

    names = {"optimizer": config["choices"]["optimizer"], "baseline": config["baseline"]}
    specs = {part: spec for part, spec in parts_of(config) if part in names}
    sides = {}
    for part, spec in specs.items():
        said = about(spec)
        if part == "baseline" and (reason := workload.unsuitable(said)):
            raise Unsupported(f"baseline={names[part]}: {reason}; choose another baseline")
        try:
            build = optimizer_builder(spec, listed_only, part)
        except Unsupported as reason:
            raise Unsupported(f"{part}={names[part]}: {reason}") from reason
        side = Side(names[part], build, said["closure"], bool(said["hessian_every"]), said["roles"])
        sides[CANDIDATE if part == "optimizer" else BASELINE] = side
    blocks = _watched(settings.device, lambda: compare_steps(workload, sides, settings, config["measure"], send))
    return blocks | {"compiled": compiled()}


def check_pair(config: dict[str, Any], cls: type, workload: Any) -> None:
    """Raise Unsupported where an optimizer of this class cannot train this workload."""
    optimizer = about(config["optimizer"])
    if reason := workload.unsuitable(optimizer):
        raise Unsupported(reason)
    if config["measure"]["kind"] in ("step", "plan"):
        return  # no training: neither curvature nor a norm is asked for
    if optimizer["hessian_every"] and (reason := no_curvature(cls, workload)):
        raise Unsupported(reason)
    if config["clip_norm"] is not None and workload.gradients == "sparse":
        raise Unsupported("clip_norm needs dense gradients, and this workload's are sparse")


def no_curvature(cls: type, workload: Any) -> str | None:
    """Why the run loop cannot estimate curvature for an optimizer of this class on this workload, or None."""
    from optimeter.workloads.core.workload import Workload

    if not hasattr(cls, "update_hessian") or not hasattr(cls, "curvature_from"):
        return f"about.hessian_every is set, but {cls.__name__} has no update_hessian(loss, samples) and curvature_from"
    if cls.curvature_from == "sampled_loss" and type(workload).sampled_loss is Workload.sampled_loss:
        return "it estimates curvature from labels that the model draws, and this workload has no sampled_loss for that"
    return None


def settings_of(config: dict[str, Any], device: str) -> Any:
    """The run loop's settings from the configuration."""
    import torch

    from optimeter.measure.methods.settings import Settings

    names = ("steps", "seed", "schedule", "warmup_steps", "clip_norm", "accumulate", "eval_every", "record_every")
    optimizer = about(config["optimizer"])
    return Settings(
        **{name: config[name] for name in names},
        device=device,
        dtype=getattr(torch, config["dtype"]),
        sample_every=config["measure"].get("sample_every", "auto"),
        closure=optimizer["closure"],
        hessian_every=optimizer["hessian_every"],
        roles=optimizer["roles"],
    )


def estimate(payload: dict[str, Any], folder: Path | None, send: Send) -> dict[str, Any]:
    """For `dry`: the plan of a run, or why it cannot run."""
    from optimeter.measure.jobs.build import build_workload, optimizer_builder, resolve
    from optimeter.measure.methods.plan import plan

    config, listed_only = payload["config"], payload["listed_only"]
    try:
        build = optimizer_builder(config["optimizer"], listed_only)
        workload = build_workload(config["workload"], listed_only)
        check_pair(config, resolve("optimizer", config["optimizer"], listed_only), workload)
        return plan(workload, build, settings_of(config, payload["device"]))["plan"]
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
