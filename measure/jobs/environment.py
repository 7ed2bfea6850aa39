"""Where a run was made: source state, versions, processor, GPU, flags. No host, user or remote names."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from optimeter.measure.devices import Device
from optimeter.measure.records.fields import JSON

PROJECT = Path(__file__).resolve().parent.parent.parent
PACKAGES = (
    *("torch", "triton", "numpy", "hydra-core", "scikit-learn", "bitsandbytes", "torchao"),
    *("transformers", "diffusers", "peft", "schedulefree", "prodigyopt", "pytorch-optimizer"),
)
VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
    *("CUBLAS_WORKSPACE_CONFIG", "TORCHDYNAMO_DISABLE", "TRITON_INTERPRET"),
)

COMMIT, DIRTY = "OPTIMETER_COMMIT", "OPTIMETER_DIRTY"  # the second is 1 where files differ from the commit


def describe(device: Device | None) -> dict[str, JSON]:
    """The record's `environment` block; what cannot be told is None, or a dict with a `reason`."""
    import torch

    return {
        "optimeter": installed("optimeter"),
        "git": git_state(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
        "cpu": processor() | {"threads": torch.get_num_threads()},
        "gpu": device.describe() if device else None,
        "flags": {
            "matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        },
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def installed(package: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state() -> dict[str, JSON]:
    """Commit of the project, and whether and how its files differ from it.

    Of a copy that is not a clone whoever made it may say both, in variables of the environment: where such a copy has
    a repository, as one made to carry files has, its commit is another.
    """
    if said := os.environ.get(COMMIT):
        return {"commit": said, "dirty": os.environ.get(DIRTY) == "1", "source": COMMIT}
    try:
        if Path(_git("rev-parse", "--show-toplevel").strip()).resolve() != PROJECT:
            return {"reason": "the project is not run from its repository"}
        commit, changes = _git("rev-parse", "HEAD").strip(), _git("status", "--porcelain")
        difference = hashlib.sha256((_git("diff", "HEAD") + changes).encode()).hexdigest() if changes else None
        return {"commit": commit, "dirty": bool(changes), "difference_sha256": difference}
    except (OSError, subprocess.SubprocessError) as error:
        return {"reason": f"git: {type(error).__name__}"}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PROJECT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20, errors="replace").stdout


def processor() -> dict[str, JSON]:
    """Model, cores, memory in bytes and the frequency governor of the CPU."""
    import psutil

    return {
        "model": _first(_lines("/proc/cpuinfo"), "model name") or platform.processor() or None,
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "governor": next(iter(_lines("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")), None),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _first(lines: Iterable[str], key: str) -> str | None:
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def scrub(text: str) -> str:
    """`text` without the path of the home folder and of the working folder."""
    places = {str(PROJECT / "optimeter"): "optimeter", str(PROJECT): "optimeter"}
    for path, stand_in in (places | {os.getcwd(): ".", str(Path.home()): "~"}).items():
        if len(path) > 1:
            text = text.replace(path, stand_in)
    return text
