"""The first and the last layer of packed rows, without what nobody reads.

First layer: no gradient is wanted of text. Its tokens are embeddings that are not trained, so what comes back through
their queries, keys and values ends there. The tokens up to the image's last one are run first; then the text behind it,
cut off from its embeddings, looks at their keys and values.

Last layer: of all prompt tokens but the last one only keys and values are read (see `captune.model.layer_call`).

Both take causal attention for granted, as packed rows do: a token's keys and values depend on nothing behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from captune.model.language_model import decoder_layers
from captune.model.layer_call import Growing, LayerCall, intercepted, states_of, with_states
from captune.model.prompt import IMAGE_SLOT
from captune.training.packing import PackedBatch

__all__ = ["ends_in_parts"]


@contextmanager
def ends_in_parts(llm: Any, batch: PackedBatch) -> Iterator[None]:
    """Within the block the first and the last layer do only what is read of them; for one forward over a batch.

    Args:
        llm: a causal language model.
        batch: packed rows.

    Raises:
        ConfigError: the layers do not stand in one list.
    """
    layers = decoder_layers(llm)
    seen, unread = _image_end(batch), int(batch.columns.min())
    with ExitStack() as stack:
        if unread:
            stack.enter_context(intercepted(layers[-1], partial(_prompt_read, unread)))
        if seen and len(layers) > 1 and not _trains_embeddings(llm, layers):
            stack.enter_context(intercepted(layers[0], partial(_image_first, seen)))
        yield


def _image_end(batch: PackedBatch) -> int:
    """How many tokens of the rows, which share a prompt, end with the last one of the image; 0 without an image."""
    places = (batch.input_ids[0] == IMAGE_SLOT).nonzero()
    return int(places.max()) + 1 if len(places) else 0


def _trains_embeddings(llm: Any, layers: Any) -> bool:
    """Whether something outside of the layers is trained, so that text needs its gradient."""
    inside = {id(parameter) for parameter in layers.parameters()}
    return any(parameter.requires_grad and id(parameter) not in inside for parameter in llm.parameters())


def _image_first(seen: int, call: LayerCall) -> Any:
    """What the first layer returns; no gradient goes back to what is behind the first `seen` tokens."""
    cache = _cache_of(call, 0)
    columns = cache.length + seen
    first = call.part(slice(None, seen)).seeing(columns)(cache)
    rest = call.part(slice(seen, None)).detached()(cache)
    return with_states(rest, torch.cat([states_of(first), states_of(rest)], dim=1))


def _prompt_read(unread: int, call: LayerCall) -> Any:
    """What the last layer returns, but that the first `unread` tokens' states are those it was given."""
    cache = _cache_of(call, -1)
    call.part(slice(None, unread)).read(cache)
    rest = call.part(slice(unread, None))(cache)
    return with_states(rest, torch.cat([call.states[:, :unread], states_of(rest)], dim=1))


def _cache_of(call: LayerCall, number: int) -> Growing:
    """What stands for the cache in one layer, with the text in front of the rows, where that is not in them."""
    return Growing(None if call.cache is None else call.cache.layers[number])
