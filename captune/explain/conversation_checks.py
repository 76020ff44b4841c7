"""The checks of `captune explain` for a transformers model.

Nothing here renders a prompt for training or generation: `captune.explain.conversation` records both sides, and these
functions compare them with each other and with the conversation that the model's chat template documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from captune.common import closing_text, error_text, opened_block, without_empty_blocks
from captune.errors import CaptuneError
from captune.explain.checks import (
    Check,
    Decoded,
    Expected,
    InputToken,
    Status,
    TargetTrace,
    complete_caption,
    length_limit,
    loss_mask,
    piece_text,
    same_prompt,
    stop_ends,
)
from captune.model import HuggingFaceTokenizer
from captune.vlm import ImageTextModel, PackedRow

__all__ = ["Sides", "conversation_checks"]

_ROLES = ("assistant", "model")


@dataclass(frozen=True)
class Sides:
    """What was recorded of training and generation.

    Attributes:
        model: the model.
        image: of the sample.
        captions: all of the sample.
        trace: inputs and targets of training.
        prompt: inputs of generation before its first new token.
        training: all tensors that `forward` gets.
        generation: all tensors that `generate` gets.
        decoded: result of decoding when the model outputs the targets.
        expected: the expected values; its `stop_ids` are those at which `generate` stops.
    """

    model: ImageTextModel
    image: Image.Image
    captions: tuple[str, ...]
    trace: TargetTrace
    prompt: tuple[InputToken, ...]
    training: Mapping[str, Tensor]
    generation: Mapping[str, Tensor]
    decoded: Decoded
    expected: Expected


def conversation_checks(sides: Sides, tokenizer: HuggingFaceTokenizer, others: Sequence[str] = ()) -> list[Check]:
    """Compare training with generation and with the documented conversation.

    Args:
        sides: what was recorded.
        tokenizer: of the model.
        others: further captions whose conversations are checked.

    Returns:
        One result per check.
    """
    results: list[tuple[str, tuple[Status, str]]] = [
        ("same prompt", same_prompt(sides.trace, sides.prompt, tokenizer)),
        ("same image", _same_image(sides)),
        ("conversation", _conversation(sides, tokenizer, others)),
        ("one BOS", _one_bos(sides, tokenizer)),
        ("image tokens", _image_tokens(sides)),
        ("token types", _token_types(sides)),
        ("reasoning", _reasoning(sides, tokenizer)),
        ("loss mask", loss_mask(sides.trace)),
        ("packed row", _packed_row(sides)),
        ("complete caption", complete_caption(sides.decoded, sides.expected)),
        ("end of turn", _end_of_turn(sides, tokenizer)),
        ("stop ends decoding", stop_ends(sides.trace, sides.decoded, sides.expected)),
        ("padding", _padding(sides)),
        ("length limit", length_limit(sides.trace, sides.expected)),
    ]
    return [Check(name, status, reason) for name, (status, reason) in results]


def _same_image(sides: Sides) -> tuple[Status, str]:
    """Whether pixels and sizes are those of generation."""
    names = [name for name, value in sides.generation.items() if not _is_per_token(value, len(sides.prompt))]
    for name in names:
        trained, generated = sides.training.get(name), sides.generation[name]
        if trained is None:
            return "FAIL", f"training has no {name}"
        if trained.shape != generated.shape or not torch.equal(trained, generated.to(trained.dtype)):
            return "FAIL", f"{name} differs: {list(trained.shape)} in training, {list(generated.shape)} in generation"
    shapes = ", ".join(f"{name} {list(sides.generation[name].shape)}" for name in names)
    return "ok", f"training and generation get the same {shapes}"


def _is_per_token(value: Tensor, length: int) -> bool:
    return value.ndim >= 2 and not value.is_floating_point() and value.shape[1] == length


def _conversation(sides: Sides, tokenizer: HuggingFaceTokenizer, others: Sequence[str]) -> tuple[Status, str]:
    """Whether the ids of the documented conversation begin with the prompt and the targets."""
    model = sides.model
    if not model.conversation.is_documented:
        return "ok", "the family documents none; the caption follows the prompt"
    notes: dict[str, None] = {}
    for caption in dict.fromkeys((sides.expected.caption, *others)):
        try:
            ids = _documented_ids(sides, caption)
            targets = model.conversation.target_ids(caption)
        except CaptuneError as error:
            return "FAIL", error_text(error)
        prompt = [int(token.id or 0) for token in sides.trace.prompt]
        row = prompt + list(targets)
        ids = ids[: len(prompt)] + [token for token in ids[len(prompt) :] if model.conversation.is_target(token)]
        first = next((n for n, pair in enumerate(zip(row, ids, strict=False)) if pair[0] != pair[1]), len(ids))
        if first >= len(row):
            continue
        if first == len(row) - 1:
            symbol = piece_text(tokenizer, row[-1])
            notes[f"the template writes no end of turn that stops generation, so training adds {symbol!r}"] = None
        elif _text(tokenizer, ids).startswith(_text(tokenizer, row[:-1])):
            notes["white space differs from the conversation that the template renders"] = None
        else:
            other = f"'{piece_text(tokenizer, ids[first])}'" if first < len(ids) else "nothing more"
            return "FAIL", (
                f"the template renders {caption[:40]!r} in a conversation with {other} at index {first}, training has "
                f"'{piece_text(tokenizer, row[first])}'"
            )
    if notes:
        return "note", "; ".join(notes)
    return "ok", f"prompt and caption have the ids of the documented conversation, also of {len(others)} other captions"


def _text(tokenizer: HuggingFaceTokenizer, ids: Sequence[int]) -> str:
    """The text of ids with special tokens and without white space."""
    return "".join(str(tokenizer.library.decode(ids, skip_special_tokens=False)).split())


def _documented_ids(sides: Sides, caption: str) -> list[int]:
    """Ids of the conversation with an answer, as the chat template renders it."""
    conversation = sides.model.conversation
    inputs = conversation.inputs
    if not inputs.has_template:
        complete = conversation.complete(sides.image, caption)
        return [int(token) for token in complete["input_ids"][0]]
    prompt = inputs.prompt(conversation.instruction) or ""
    texts = [inputs.conversation(conversation.instruction, caption, role) for role in _ROLES]
    rendered = next((text for text in texts if text.startswith(prompt)), None)
    if rendered is None:
        # An empty block of reasoning may be rendered in one of both only; see the check of reasoning.
        rendered = next((text for text in texts if _plain(text).startswith(_plain(prompt))), texts[0])
        if _plain(rendered).startswith(_plain(prompt)):
            rendered = prompt + closing_text(opened_block(prompt)) + _plain(rendered)[len(_plain(prompt)) :].lstrip()
    made = inputs.batch([sides.image], rendered, is_continued=False)
    return [int(token) for token in made["input_ids"][0]]


def _plain(text: str) -> str:
    """A text without empty blocks of reasoning."""
    return without_empty_blocks(text)


def _one_bos(sides: Sides, tokenizer: HuggingFaceTokenizer) -> tuple[Status, str]:
    bos = tokenizer.bos_id
    if bos is None or sides.model.conversation.is_encoder_decoder:
        return "ok", "the prompt begins without one"
    # ChatML models use the token that begins each turn as BOS.
    rendered = sides.model.conversation.inputs.prompt(sides.model.conversation.instruction) or ""
    written = rendered.count(str(tokenizer.library.bos_token))
    for side, tokens in (("training", sides.trace.prompt), ("generation", sides.prompt)):
        ids = [token.id for token in tokens]
        if ids.count(bos) > max(1, written) or ids[:2] == [bos, bos]:
            return "FAIL", f"{side} has {ids.count(bos)}; the rendered prompt writes {written}"
    count = [token.id for token in sides.prompt].count(bos)
    return "ok", "none" if not count else "one" if count == 1 else f"{count}, as the template writes them"


def _image_tokens(sides: Sides) -> tuple[Status, str]:
    """Whether the processor made all image tokens, and both sides have them."""
    counts = [sum(token.slot is not None for token in side) for side in (sides.trace.prompt, sides.prompt)]
    if counts[0] != counts[1]:
        return "FAIL", f"training has {counts[0]}, generation {counts[1]}"
    ids = {token.id for token in sides.prompt if token.slot is not None}
    if cut := [target for target in sides.trace.targets if target in ids]:
        return "FAIL", f"{len(cut)} image tokens are targets"
    if not counts[1]:
        return "ok", "none in the text; the model puts the image before it"
    inputs = sides.model.conversation.inputs
    short = inputs.batch([sides.image], inputs.prompt("?"))["input_ids"][0].tolist()
    if (total := sum(token in ids for token in short)) != counts[1]:
        return (
            "FAIL",
            f"the prompt has {counts[1]} of the {total} image tokens of a short one; {total - counts[1]} are cut",
        )
    text = sides.model.model.config.get_text_config()
    positions, length = getattr(text, "max_position_embeddings", None), len(sides.trace.steps[-1].context)
    if isinstance(positions, int) and length > positions:
        return "note", f"the row has {length} tokens, the model was trained on up to {positions}"
    return "ok", f"{counts[1]} on both sides; nothing is truncated"


def _token_types(sides: Sides) -> tuple[Status, str]:
    """Whether inputs with a number per token reach the model, for prompt and caption."""
    model, length = sides.model, len(sides.prompt)
    names = [
        name
        for name, value in sides.generation.items()
        if _is_per_token(value, length) and name not in ("input_ids", "attention_mask", "decoder_input_ids")
    ]
    complete = {} if model.conversation.is_encoder_decoder else model.conversation.complete(
        sides.image, sides.expected.caption
    )  # fmt: skip
    for name in names:
        value, generated = sides.training.get(name), sides.generation[name]
        if value is None:
            return "FAIL", f"training has no {name}, which the processor returns"
        if not torch.equal(value[:, :length], generated):
            return "FAIL", f"{name} of the prompt differs between training and generation"
        documented = complete.get(name)
        if documented is not None and documented.ndim == value.ndim and documented.shape[1] > length:
            count = min(value.shape[1], documented.shape[1])
            if not torch.equal(value[:, :count], documented[:, :count]):
                return "FAIL", f"{name} of the caption differs from that of the documented conversation"
    return "ok", f"{', '.join(names)} for every token" if names else "the processor returns none"


def _reasoning(sides: Sides, tokenizer: HuggingFaceTokenizer) -> tuple[Status, str]:
    """Whether a block of reasoning that the prompt opens is closed before the caption."""
    prompt = sides.model.conversation.inputs.prompt(sides.model.conversation.instruction) or ""
    opened = opened_block(prompt)
    if not opened:
        has_block = without_empty_blocks(prompt) != prompt
        return "ok", "the prompt holds an empty block" if has_block else "the prompt has none"
    closing = closing_text(opened).rstrip()
    text = tokenizer.library.decode(list(sides.trace.targets), skip_special_tokens=False)
    if not text.lstrip().startswith(closing):
        return "FAIL", f"the prompt opens {opened}, and the caption is trained on as its content"
    return "ok", f"the prompt opens {opened}, and training closes it before the caption"


def _packed_row(sides: Sides) -> tuple[Status, str]:
    """Whether each caption of the image's packed row has the context of its plain row."""
    model = sides.model
    if model.decoder is None:
        return "ok", f"not used: {model.undivided}"
    length = len(sides.trace.prompt)
    captions = [model.conversation.target_ids(text) for text in sides.captions]
    row = PackedRow.of(length, captions)
    expected = [(list(ids[:number]), target) for ids in captions for number, target in enumerate(ids)]
    for (before, target), state, actual in zip(expected, row.states.tolist(), row.targets.tolist(), strict=True):
        columns = [n for n in row.visible[state].nonzero().flatten().tolist() if n >= length]
        context = [row.ids[column - length] for column in columns]
        if context != before or actual != target or row.columns[columns].tolist() != list(
            range(length, length + len(before))
        ):  # fmt: skip
            return "FAIL", f"a caption is predicted from {len(context)} tokens of captions, not its {len(before)}"
    total = length + len(row.ids)
    return "ok", f"{len(captions)} captions in {total} tokens, each predicted from the prompt and itself only"


def _end_of_turn(sides: Sides, tokenizer: HuggingFaceTokenizer) -> tuple[Status, str]:
    """Whether the targets hold one end of turn, at their end, which stops generation."""
    stops, targets = set(sides.expected.stop_ids), sides.trace.targets
    ends = [number for number, target in enumerate(targets) if target in stops]
    names = ", ".join(piece_text(tokenizer, stop) for stop in sorted(stops)) or "nothing"
    if not ends:
        last = piece_text(tokenizer, targets[-1])
        return "FAIL", f"the targets end in '{last}', and generation stops at {names}"
    if ends != [len(targets) - 1]:
        return "FAIL", f"the targets have {len(ends)} ends of turn, the first after {ends[0]} tokens"
    return "ok", f"{sides.expected.stop_symbol!r} is in the loss once, and stops generation"


def _padding(sides: Sides) -> tuple[Status, str]:
    """Whether padding is no target, and the end of turn is one even where it has the id of padding."""
    pad = int(sides.model.processor.tokenizer.pad_token_id)
    targets = sides.trace.targets
    if pad in targets[:-1] or (targets[-1] == pad and pad not in sides.expected.stop_ids):
        return "FAIL", f"the padding id {pad} is a target"
    if targets[-1] == pad:
        return "ok", f"the end of turn has the id of padding, {pad}; padded tokens are left out by their position"
    return "ok", f"the padding id {pad} is no target"
