"""Record the inputs of the language model, and the inputs that each target of the loss depends on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from captune.explain.checks import InputToken, TargetToken
from captune.model import MiniGPT4
from captune.transformers_compat import CACHE_ARGUMENT

__all__ = ["ForwardCall", "InputRecorder", "LossRecorder", "record_llm_inputs"]


@dataclass(eq=False)
class ForwardCall:
    """One forward of the language model: (B, T, D) vectors, (B, T) positions and mask, and the cache's keys."""

    embeddings: Tensor
    positions: Tensor
    kept: Tensor
    past: int
    keys: Tensor | None


class InputRecorder:
    """Records the inputs of the language model.

    Attributes:
        calls: the forward calls so far.
    """

    def __init__(self, model: MiniGPT4, features: Tensor) -> None:
        self._model = model
        self.calls: list[ForwardCall] = []
        weights = model.get_input_embeddings().weight
        assert isinstance(weights, Tensor)
        self._words = {row.tobytes(): index for index, row in enumerate(weights.detach().numpy())}
        with torch.no_grad():
            self._image = model.project(features)[0]

    def record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the language model."""
        embeddings = kwargs.get("inputs_embeds")
        if embeddings is None:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            embeddings = self._model.get_input_embeddings()(ids)
        cache = kwargs.get(CACHE_ARGUMENT)
        past = 0 if cache is None else int(cache.get_seq_length())
        keys = None
        if cache is not None and past and torch.is_grad_enabled():
            layer = cache.layers[0]
            keys = layer.keys = layer.keys.detach().clone().requires_grad_()
        length = embeddings.shape[1]
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(past, past + length).expand(len(embeddings), -1)
        mask = kwargs.get("attention_mask")
        kept = torch.ones(embeddings.shape[:2], dtype=torch.bool)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            kept = mask[:, -length:].bool()
        self.calls.append(ForwardCall(embeddings, positions.expand(len(embeddings), -1), kept, past, keys))

    def tokens(self, call: ForwardCall, row: int, columns: Sequence[int]) -> list[InputToken]:
        """The input tokens at some columns of a row."""
        vectors = call.embeddings[row].detach()
        return [self._token(vectors[column], int(call.positions[row, column])) for column in columns]

    def _token(self, vector: Tensor, position: int) -> InputToken:
        word = self._words.get(vector.numpy().tobytes())
        if word is not None:
            return InputToken(word, None, position)
        distances = (self._image - vector).abs().amax(dim=1)
        slot = int(distances.argmin())
        # The same product in another batch may be rounded differently.
        return InputToken(None, slot if float(distances[slot]) < 1e-5 else None, position)

    def before(self, call: ForwardCall) -> list[InputToken]:
        """The tokens in the cache of a call, from the call that filled it."""
        if not call.past:
            return []
        earlier = self.calls[: self.calls.index(call)]
        filling = next((c for c in reversed(earlier) if c.past == 0 and c.embeddings.shape[1] == call.past), None)
        if filling is None:
            return [InputToken(None, None, position) for position in range(call.past)]
        return self.tokens(filling, 0, range(call.past))


class LossRecorder(TorchFunctionMode):
    """Records the targets of the loss, and the inputs that the logit of each depends on.

    Attributes:
        steps: the targets so far.
    """

    def __init__(self, inputs: InputRecorder) -> None:
        super().__init__()
        self._inputs = inputs
        self.steps: list[TargetToken] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        settings = kwargs or {}
        if func is F.cross_entropy:
            ignored = settings.get("ignore_index", -100)
            for logits, target in zip(args[0], args[1].tolist(), strict=True):
                if target != ignored:
                    self.steps.append(TargetToken(self._context(logits[target]), target))
        return func(*args, **settings)

    def _context(self, logit: Tensor) -> tuple[InputToken, ...]:
        """The tokens with a gradient of a logit, cached ones first."""
        call = self._inputs.calls[-1]
        inputs = [call.embeddings] if call.keys is None else [call.embeddings, call.keys]
        gradients = torch.autograd.grad(logit, inputs, retain_graph=True)
        has_gradient = gradients[0].abs().amax(dim=2) > 0
        row = int(has_gradient.any(dim=1).nonzero()[0])
        tokens = self._inputs.tokens(call, row, has_gradient[row].nonzero().flatten().tolist())
        if call.keys is None:
            return tuple(tokens)
        cached = self._inputs.before(call)
        used = gradients[1][row].abs().amax(dim=(0, 2)) > 0
        return (*(token for token, yes in zip(cached, used.tolist(), strict=True) if yes), *tokens)


@contextmanager
def record_llm_inputs(model: MiniGPT4, features: Tensor) -> Iterator[InputRecorder]:
    """Record the inputs of a model's language model.

    Args:
        model: on the CPU.
        features: (1, Q, F), of one image.
    """
    recorder = InputRecorder(model, features)
    handle = model.llm.register_forward_pre_hook(recorder.record, with_kwargs=True)
    try:
        yield recorder
    finally:
        handle.remove()
