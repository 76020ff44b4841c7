"""A scene's record as vectors: the meeting point of seeing and speaking in the toy's pretraining.

Every field of a record (setting, sky, count, kind, colour, ...) has a slot, and every value of a field a fixed random
vector. Pictures are taught to give these vectors, the language model is taught to speak about them, and so each can
learn without the other. The real BLIP-2 does the same in its first stage with the features of captions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from captune.toy.scenes import ACTIONS, COLORS, COMPANION_WEIGHTS, PROP_COLORS, SETTINGS, SKIES, Scene

__all__ = ["FIELDS", "FieldCodes"]


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


_ALL_COLORS = _distinct(color for colors in COLORS.values() for color in colors)
# field -> its values; "" where a scene has nothing there.
FIELDS: dict[str, tuple[str, ...]] = {
    "setting": SETTINGS,
    "sky": SKIES,
    "count": ("1", "2", "3"),
    "kind": tuple(ACTIONS),
    "color": _ALL_COLORS,
    "action": _distinct(action for actions in ACTIONS.values() for action in actions),
    "prop color": ("", *_distinct(color for colors in PROP_COLORS.values() for color in colors)),
    "side": ("", "left", "right"),
    "size": ("", "small", "large"),
    "companion color": _ALL_COLORS,
    "companion kind": ("", *COMPANION_WEIGHTS),
}


def _values(scene: Scene) -> tuple[str, ...]:
    subject, companion = scene.subject, scene.companion
    beside = (
        ("", "", "", "") if companion is None else (companion.side, companion.size, companion.color, companion.kind)
    )
    return (
        scene.setting, scene.sky, str(subject.count), subject.kind, subject.color, subject.action, subject.prop_color,
        *beside,
    )  # fmt: skip


class FieldCodes:
    """Fixed vectors for the values of all fields.

    Args:
        width: F, length of a vector; each has mean 0 and variance 1, like the output of a LayerNorm.
        seed: of the vectors.
    """

    def __init__(self, width: int, seed: int) -> None:
        self._ids: dict[tuple[str, str], int] = {}
        for field, values in FIELDS.items():
            for value in values:
                self._ids[field, value] = len(self._ids)
        generator = torch.Generator().manual_seed(seed)
        self._vectors = F.layer_norm(torch.randn(len(self._ids), width, generator=generator), (width,))

    def ids(self, scene: Scene) -> list[int]:
        """Indices of the scene's values, one for each field."""
        return [self._ids[field, value] for field, value in zip(FIELDS, _values(scene), strict=True)]

    def vectors(self, ids: Tensor) -> Tensor:
        """Vectors (B, Q, F) of indices (B, Q), Q being the number of fields."""
        return self._vectors[ids]

    def loss(self, features: Tensor, ids: Tensor) -> Tensor:
        """How far features (B, Q, F) are from the vectors of `ids` (B, Q).

        The squared distance says where to go, the cross-entropy over each field's values makes haste: with the
        distance alone the same accuracy takes more than twice as many steps.
        """
        distance = F.mse_loss(features, self.vectors(ids))
        haste = torch.stack([F.cross_entropy(*scored) for scored in self._scores(features, ids)]).sum()
        return distance + 0.5 * haste

    def _scores(self, features: Tensor, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each field, scores (B, values) of all its values and the index (B,) of the right one."""
        first = 0
        for slot, values in enumerate(FIELDS.values()):
            scores = features[:, slot] @ self._vectors[first : first + len(values)].T
            yield scores / 8, ids[:, slot] - first
            first += len(values)

    def accuracy(self, features: Tensor, ids: Tensor) -> dict[str, float]:
        """How often features (B, Q, F) lie nearest to the right value of their field, field by field."""
        return {
            field: float((scores.argmax(dim=1) == right).float().mean())
            for field, (scores, right) in zip(FIELDS, self._scores(features, ids), strict=True)
        }
