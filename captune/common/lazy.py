"""Names of a package that are imported on first use, so that a light command imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from captune.common.libraries import quiet_imports

__all__ = ["lazy_names"]


def lazy_names(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package (PEP 562).

    Args:
        package: the package's name.
        modules: from each module, relative to the package, to the names that the package exports from it.
    """
    sources = {name: module for module, names in modules.items() for name in names}

    def import_name(name: str) -> Any:
        if name not in sources:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        with quiet_imports():
            value = getattr(import_module(f"{package}.{sources[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return import_name
