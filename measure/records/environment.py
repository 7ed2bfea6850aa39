"""Where a run was made, as its record keeps it. No host, user or remote names."""

from dataclasses import dataclass

from optimeter.measure.records.fields import JSON, REQUIRED, key


@dataclass(kw_only=True, slots=True)
class Git:
    """The state of the project's source."""

    commit: str | None = key("Commit.")
    dirty: bool | None = key("Whether files differ from it.")
    difference_sha256: str | None = key("SHA-256 of the difference.")
    reason: str | None = key("Why there is nothing to tell.")


@dataclass(kw_only=True, slots=True)
class Cpu:
    """The processor."""

    model: str | None = key("Its name.")
    cores: int | None = key("Physical cores.", "cores")
    logical_cores: int | None = key("Logical cores.", "cores")
    memory_bytes: int | None = key("Main memory.", "bytes")
    governor: str | None = key("What governs its frequency.")
    threads: int | None = key("Threads that torch uses.", "threads")


@dataclass(kw_only=True, slots=True)
class Card:
    """The accelerator that a run used."""

    name: str | None = key("Its name.")
    memory_bytes: int | None = key("Its memory.", "bytes")
    capability: str | None = key("Compute capability.")
    cuda: str | None = key("Version of CUDA that torch was built with.")
    cudnn: int | None = key("Version of cuDNN.")
    driver: str | None = key("Version of the driver.")
    power_limit_watts: float | None = key("Power limit.", "W")
    other_processes: int | None = key("Other processes that compute on it.", "processes")
    details: dict[str, JSON] = key("What else a device tells of itself.", default=dict)
    reason: str | None = key("Why something is not told.")


@dataclass(kw_only=True, slots=True)
class Flags:
    """Switches of torch that change speed or numbers."""

    matmul_precision: str | None = key("Precision of float32 products.")
    cudnn_allow_tf32: bool | None = key("Whether cuDNN may compute in TF32.")
    cudnn_benchmark: bool | None = key("Whether cuDNN tries its algorithms.")
    deterministic: bool | None = key("Whether only deterministic algorithms are used.")


@dataclass(kw_only=True, slots=True)
class Environment:
    """Where a run was made."""

    optimeter: str | None = key("Version of the project.")
    git: Git = key("The state of its source.", default=Git)
    python: str | None = key("Version of Python.")
    system: str | None = key("System, its release, machine.")
    packages: dict[str, str] = key("Package → version.", default=dict)
    cpu: Cpu = key("The processor.", default=Cpu)
    gpu: Card = key("The accelerator, where the run used one.", default=Card)
    flags: Flags = key("Switches of torch.", default=Flags)
    variables: dict[str, str] = key("Environment variables that change speed or numbers.", default=dict)


@dataclass(kw_only=True, slots=True)
class Range:
    """A quantity that was sampled during the run."""

    min: float = key("Smallest.", default=REQUIRED)
    median: float = key("Median.", default=REQUIRED)
    max: float = key("Largest.", default=REQUIRED)


@dataclass(kw_only=True, slots=True)
class Gpu:
    """What the GPU did during a run, from samples a second apart."""

    samples: int | None = key("Number of samples.", "samples")
    reason: str | None = key("Why there are none, or no more.")
    throttle_reasons: int | None = key("NVML's bit mask of all reasons for lower clocks that were seen.")
    memory_bytes: Range | None = key("Memory in use on the whole card.", "bytes")
    power_watts: Range | None = key("Power.", "W")
    sm_clock_mhz: Range | None = key("Clock of the processors.", "MHz")
    memory_clock_mhz: Range | None = key("Clock of the memory.", "MHz")
    temperature_celsius: Range | None = key("Temperature.", "°C")
