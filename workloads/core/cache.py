"""Tensors that take a while to make, made once and kept: a trained base, encoded photographs.

They lie under $OPTIMETER_CACHE (default ~/.cache/optimeter), named after a hash of all that they depend on. They are
made in a process of their own, so that the run that needs them first is measured like all the others.
"""

import fcntl
import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from optimeter.workloads.core.workload import content_hash, packaged

# Where `optimeter` is found. It is not imported for it, as all that its names lead to would be a source of each run.
ROOT = str(Path(__file__).absolute().parents[3])
# Not `-m`: the working folder must not come first, where a folder named torch may be.
COMMAND = (
    "import sys; sys.path.insert(0, sys.argv[1]); from optimeter.workloads.core import cache; cache.main(*sys.argv[2:])"
)
DIGEST = "sha256"
apart = False  # whether this process was started to make something: what that needs is made here too


@dataclass(frozen=True)
class Kept:
    """Tensors by name, and the hash of their content, which differs where another machine computed them otherwise."""

    tensors: dict[str, Tensor]
    sha256: str


def folder() -> Path:
    """Where things are kept."""
    return Path(os.environ.get("OPTIMETER_CACHE") or Path.home() / ".cache" / "optimeter").absolute()


def kept(
    make: Callable[..., dict[str, Tensor]], /, *, data: Iterable[str], libraries: Iterable[str], **arguments: Any
) -> Kept:
    """What the module-level function `make` returns for `arguments` (plain values), from the cache or made now.

    `data` are files of packages and `libraries` distributions that it depends on; its code is that of its module and
    of those modules of `workloads` that this imports. Raises RuntimeError where it cannot be made, in one line.
    """
    function = f"{make.__module__}.{make.__qualname__}"
    recipe = {
        "function": function,
        "arguments": arguments,
        "data": {name: content_hash(packaged(name)) for name in data},
        "versions": {name: version(name) for name in ("torch", *libraries)},
        "sources": sources(make.__module__),
    }
    text = json.dumps(recipe, sort_keys=True)
    path = folder() / f"{make.__name__}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    found = _read(path)
    if found is None:
        with _lock(path):
            found = _read(path)  # another process may have made it while this one waited
            if found is None:
                if apart:
                    _write(make(**arguments), path)
                else:
                    _make_apart(function, arguments, path)
                found = _read(path)
    if found is None:
        raise RuntimeError(f"{path} cannot be read back; is the disk full?")
    return found


def sources(module: str) -> dict[str, str]:
    """The hash of each file of `workloads` that `module` is made of, other than this one and the packages' own."""
    files, queue = {}, [module]
    while queue:
        name = queue.pop()
        path = Path(str(sys.modules[name].__file__))
        if name in files or name in (__name__, "optimeter.workloads", "optimeter.workloads.core.workload"):
            continue
        files[name] = content_hash(path)
        words = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
        queue += [line[1] for line in words if line[:1] == ["from"] and line[1].startswith("optimeter.workloads.")]
    return files


def _read(path: Path) -> Kept | None:
    """What is kept there; None, and a line saying so, where the file is not what was written."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            expected = (file.metadata() or {}).get(DIGEST)
    except (OSError, SafetensorError) as error:
        _say(f"{path} cannot be read ({error}): it is made again")
        return None
    digest = digest_of(tensors)
    if digest == expected:
        return Kept(tensors, digest)
    _say(f"{path} is damaged: it is made again")
    return None


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold `path` against others that would make it too; they wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_apart(function: str, arguments: Mapping[str, Any], path: Path) -> None:
    """Call the function in a fresh process, which writes `path`; what it says goes where ours does."""
    _say(f"making {path}, once")
    command = [sys.executable, "-P", "-c", COMMAND, ROOT, function, json.dumps(dict(arguments)), str(path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    sys.stderr.write(done.stderr)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        raise RuntimeError(f"{function} failed: {last}")


def main(function: str, arguments: str, path: str) -> None:
    """In the fresh process: make the tensors and write the file."""
    global apart
    apart = True
    module, _, name = function.rpartition(".")
    _write(getattr(importlib.import_module(module), name)(**json.loads(arguments)), Path(path))


def _write(made: Mapping[str, Tensor], path: Path) -> None:
    """Write the file, whole or not at all."""
    from safetensors.torch import save

    tensors = {key: tensor.detach().contiguous() for key, tensor in made.items()}
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(save(tensors, metadata={DIGEST: digest_of(tensors)}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
