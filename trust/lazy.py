"""Packages whose names are imported when they are first asked for (PEP 562).

All that `import trust` brings takes a second. A command is there before that, so that whoever interrupts it meanwhile
gets one line and no traceback; and what takes only a room of a package does not wait for the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def face_of(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package: its names are those of its module `face`, and its modules."""

    def find(name: str) -> Any:
        if find_spec(f"{package}.{name}") is not None:
            return import_module(f"{package}.{name}")
        face = import_module(f"{package}.face")
        if name not in face.__all__ and name != "__all__":
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, getattr(face, name))  # found without us from now on
        return getattr(face, name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *import_module(f"{package}.face").__all__})

    return find, names
