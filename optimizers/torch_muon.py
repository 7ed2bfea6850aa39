"""torch's Muon where it is defined, torch's AdamW elsewhere: torch.optim.Muon refuses anything but matrices."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


class TorchMuon(Optimizer):
    """Matrices go to `torch.optim.Muon`, all other parameters to `torch.optim.AdamW`; both share one learning rate.

    `adjust_lr_fn="match_rms_adamw"` scales Muon's step to the size of AdamW's, which is what makes one rate fit both.
    State: Muon keeps 4 bytes a parameter in fp32, AdamW 8.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        adjust_lr_fn: str = "match_rms_adamw",
    ) -> None:
        params = list(params)
        if not all(isinstance(p, torch.Tensor) for p in params):
            raise TypeError("TorchMuon takes parameters, not groups of them: it makes its own")
        matrices = [p for p in params if p.dim() == 2]
        others = [p for p in params if p.dim() != 2]
        self.parts: list[Optimizer] = []
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        if matrices:
            self.parts.append(Muon(matrices, lr, weight_decay, momentum, nesterov, adjust_lr_fn=adjust_lr_fn))
        if others:
            self.parts.append(AdamW(others, lr=lr, weight_decay=weight_decay))
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self._share()

    def _share(self) -> None:
        """One state and one list of groups, so that schedulers, monitors and checkpoints see a single optimizer."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only the constructor's own: raises ValueError afterwards."""
        if self.parts:
            raise ValueError("TorchMuon makes its own groups: give all parameters to the constructor")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both parts; returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
