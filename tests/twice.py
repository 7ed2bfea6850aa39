"""Which files of ours a process has loaded under more than one name. Its source is also put into other processes."""

import os
import sys

ROOMS = ("bench.py", "conf", "measure", "optimeter", "optimizers", "reports", "workloads")


def loaded_twice() -> list[str]:
    """The files of the project, or of the installed package, that more than one module was made from."""
    modules = {id(module): module for module in list(sys.modules.values())}
    files = [getattr(module, "__file__", None) for module in modules.values()]
    ours = sorted(os.path.realpath(file) for file in files if file and is_ours(os.path.realpath(file)))
    return [file for file, following in zip(ours, ours[1:]) if file == following]  # noqa: B905, RUF007 (plain Python)


def is_ours(file: str) -> bool:
    """Whether it lies in a checkout's rooms, or in an installed package's folder."""
    package = os.path.realpath(sys.modules["optimeter"].__file__ or "")
    checkout = os.path.dirname(os.path.dirname(package))
    return os.path.relpath(file, checkout).split(os.sep)[0] in ROOMS
