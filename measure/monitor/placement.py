"""Where a model lies: one device, whose clock can time all of its work."""

from itertools import chain

import torch
from torch import nn

from optimeter.measure.devices import Device, UnknownDevice, device_for


def device_of(model: nn.Module, given: Device | str | torch.device | None = None) -> Device:
    """The device of all parameters and buffers, `given` where its kind cannot be told from them.

    Raises ValueError in one line for a device that is not known, for several, and for another than the given one.
    """
    places = _places(model)
    if len(places) > 1:
        listed = ", ".join(f"{name} on {place}" for place, name in places.items())
        raise ValueError(f"the model lies on several devices, which no single clock times ({listed}); move it to one")
    place = next(iter(places))
    device = device_for(place if given is None else given)
    if device.torch.type != place.type or device.torch.index not in (None, place.index):
        raise ValueError(f"the model lies on {place}, not on {device.torch}; leave `device` out, or move the model")
    return device if isinstance(given, Device) else type(device)(place)


def _places(model: nn.Module) -> dict[torch.device, str]:
    """The devices of a model's parameters and buffers, each with the first tensor on it; frozen ones count, too."""
    places: dict[torch.device, str] = {}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        places.setdefault(tensor.device, name)
    for place, name in places.items():
        try:
            device_for(place)
        except UnknownDevice as unknown:
            raise UnknownDevice(f"{name}: {unknown}") from None
    return places
