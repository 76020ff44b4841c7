"""JSON and YAML texts from files: every fault of a text is a `ValueError`, also nesting without end.

Python's readers raise `RecursionError` where a text is nested a thousand deep, and YAML's aliases let a few hundred
bytes stand for billions of values; whoever reads a file here need not think of either.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

__all__ = ["load_json", "load_yaml"]

_MAX_DEPTH = 100
_MAX_VALUES = 1_000_000
_TOO_DEEP = "it is nested too deeply"


def load_json(text: str | bytes, **settings: Any) -> Any:
    """Parse JSON.

    Args:
        text: the document.
        settings: of `json.loads`.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text, **settings)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def load_yaml(text: str, loader: type[yaml.SafeLoader] | None = None) -> Any:
    """Parse a YAML document.

    Args:
        text: the document.
        loader: constructs the values; YAML's safe loader by default.

    Raises:
        ValueError: it is not YAML, nested too deeply, or its aliases stand for too many values.
    """
    import yaml

    try:
        reader = (loader or yaml.SafeLoader)(text)
        try:
            node = reader.get_single_node()
            if node is None:
                return None
            _count(node, {}, 1)
            return reader.construct_document(node)
        finally:
            reader.dispose()
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Values that a node stands for when every alias is written out."""
    if depth > _MAX_DEPTH:
        raise ValueError(_TOO_DEEP)
    if id(node) in known:
        return known[id(node)]
    children = node.value if isinstance(node.value, list) else []
    nodes = [node for child in children for node in (child if isinstance(child, tuple) else (child,))]
    count = 1 + sum(_count(child, known, depth + 1) for child in nodes)
    if count > _MAX_VALUES:
        raise ValueError(f"its aliases stand for more than {_MAX_VALUES:,} values")
    known[id(node)] = count
    return count
