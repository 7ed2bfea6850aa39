"""The memory ledger: every byte that an optimizer holds, counted storage by storage and labelled by role.

Naive counts are wrong by up to eight times: a tensor subclass reports its apparent size, a shared code table is
counted once a parameter, and state outside `optimizer.state` is missed.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optimeter.measure.devices import HOST
from optimeter.measure.records.schema import Parameters

FIRST_MOMENT, SECOND_MOMENT = "first_moment", "second_moment"
ROLES = {
    FIRST_MOMENT: ("exp_avg", "state1", "absmax1", "momentum_buffer"),
    SECOND_MOMENT: (
        *("exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col", "max_exp_avg_sq"),
        *("square_avg", "variance", "row_var", "col_var", "state2", "absmax2"),
    ),
    "context": ("c_optim",),  # what an optimizer remembers of losses and gradient directions
    "code_tables": (
        *("signed_map", "unsigned_map", "signed_borders", "unsigned_borders"),
        *("qmap", "qmap1", "qmap2", "dynamic", "udynamic"),
    ),
}
ROLE_OF = {key: role for role, keys in ROLES.items() for key in keys}
EIGHT_BITS = {torch.uint8, torch.int8} | {
    getattr(torch, name)
    for name in dir(torch)
    if name.startswith("float8_") and isinstance(getattr(torch, name), torch.dtype)
}
OPAQUE = (str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device, torch.Generator)
PLAIN = (Tensor, np.ndarray, Mapping, list, tuple)
CALLABLES = (ModuleType, FunctionType, MethodType, BuiltinFunctionType)


@dataclass(frozen=True)
class Ledger:
    """What an optimizer holds beside parameters and gradients, in bytes; each storage is counted once."""

    state_bytes: int
    by_role: dict[str, int]
    by_dtype: dict[str, int]
    share_8bit: float  # of the trainable elements: those whose state rests in 8 bits or fewer
    # By type of device, not compared: a paged state lies on the host, and its prediction on the GPU.
    by_device: dict[str, int] = field(default_factory=dict, compare=False)


def ledger(optimizer: Optimizer, model: nn.Module | None = None, roles: Mapping[str, str] | None = None) -> Ledger:
    """Walk `optimizer` and count; `roles` maps further state keys to roles.

    Tensors of `model` and of the parameter groups (and their gradients) are not the optimizer's and stay out.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    theirs = [*parameters, *(model.parameters() if model else ()), *(model.buffers() if model else ())]
    counted = {storage for tensor in theirs for storage in storages(tensor)}
    counted |= {storage for tensor in theirs if tensor.grad is not None for storage in storages(tensor.grad)}
    by_role: dict[str, int] = defaultdict(int)
    by_dtype: dict[str, int] = defaultdict(int)
    by_device: dict[str, int] = defaultdict(int)
    for path, held in walk(optimizer):
        for storage, (size, dtype) in storages(held).items():
            if storage not in counted:
                counted.add(storage)
                by_role[role_of(path, roles or {})] += size
                by_dtype[dtype] += size
                by_device[held.device.type if isinstance(held, Tensor) else HOST] += size
    elements = sum(p.numel() for p in parameters)
    small = sum(p.numel() for p in parameters if rests_in_8_bits(p, optimizer.state.get(p)))
    return Ledger(sum(by_role.values()), dict(by_role), dict(by_dtype), small / max(elements, 1), dict(by_device))


def walk(root: Any) -> Iterator[tuple[tuple[str, ...], Tensor | np.ndarray]]:
    """Every tensor or array reachable from `root` through containers and attributes, with the names that lead to it."""
    seen: set[int] = set()
    queue: deque[tuple[tuple[str, ...], Any]] = deque([((), root)])
    while queue:
        path, value = queue.popleft()
        if isinstance(value, (*OPAQUE, *CALLABLES)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (Tensor, np.ndarray)):
            yield path, value
            kept = vars(value).items() if isinstance(value, nn.Parameter) else ()  # state may lie on a parameter
            queue.extend(((*path, name), part) for name, part in kept if isinstance(part, PLAIN))
        else:
            queue.extend(((*path, name) if name else path, part) for name, part in parts(value))


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a container or object holds, each with its name ("" where it has none)."""
    if isinstance(value, Mapping):
        yield from ((key if isinstance(key, str) else "", part) for key, part in list(value.items()))
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from (("", part) for part in list(value))
    elif isinstance(value, partial):
        yield from (("", part) for part in (*value.args, *value.keywords.values()))
    for name in getattr(type(value), "__slots__", ()) or ():
        yield from [(name, getattr(value, name))] if isinstance(name, str) and hasattr(value, name) else []
    yield from list(getattr(value, "__dict__", {}).items())


def leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors inside a tensor subclass or a sparse tensor; a plain tensor is its own leaf."""
    if tensor.layout == torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
    elif type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from leaves(getattr(tensor, name))
    else:
        yield tensor


def storages(held: Tensor | np.ndarray) -> dict[int, tuple[int, str]]:
    """Identity → (bytes, dtype) of the storages behind a tensor or array.

    Identity is the storage's C++ address: every fake tensor has data pointer 0.
    """
    if isinstance(held, np.ndarray):
        owner = held
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        return {id(owner): (owner.nbytes, str(owner.dtype))}
    return {
        leaf.untyped_storage()._cdata: (leaf.untyped_storage().nbytes(), str(leaf.dtype).removeprefix("torch."))
        for leaf in leaves(held)
    }


def role_of(path: Iterable[str], roles: Mapping[str, str]) -> str:
    """The role of a tensor from the names that lead to it: the last one with a known role, else the last one."""
    names = list(path)
    for name in reversed(names):
        name = name.removesuffix("_scale")  # of 8-bit codes: what belongs to a moment has its role
        role = roles.get(name) or ROLE_OF.get(name)
        if role:
            return role
    return names[-1] if names else "other"


def rests_in_8_bits(p: Tensor, state: Any) -> bool:
    """Whether the parameter's state holds codes of 8 bits or fewer, at least half as many as it has elements."""
    tensors = (held for _, held in walk(state) if isinstance(held, Tensor))
    return any(leaf.dtype in EIGHT_BITS and 2 * leaf.numel() >= p.numel() for held in tensors for leaf in leaves(held))


def tensor_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the storages behind some tensors, each counted once."""
    found: dict[int, tuple[int, str]] = {}
    for tensor in tensors:
        if tensor is not None:
            found |= storages(tensor)
    return sum(size for size, _ in found.values())


def parameter_counts(model: nn.Module) -> Parameters:
    """How many elements a model has, how many are trained, and what all of them take."""
    parameters = list(model.parameters())
    return Parameters(
        count=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        bytes=tensor_bytes(parameters),
    )
