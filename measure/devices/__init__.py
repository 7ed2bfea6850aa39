"""Devices: how to time work on one, count its memory and name it. A device is one file of this folder.

Nothing here loads torch before a device is asked for.
"""

from optimeter.measure.devices.base import (
    HOST,
    Allocator,
    Device,
    ReadBack,
    UnavailableDevice,
    UnknownDevice,
    Watch,
    device_for,
    names,
    on_host,
    register,
    resolve,
)

__all__ = [
    "HOST",
    "Allocator",
    "Device",
    "ReadBack",
    "UnavailableDevice",
    "UnknownDevice",
    "Watch",
    "device_for",
    "names",
    "on_host",
    "register",
    "resolve",
]
