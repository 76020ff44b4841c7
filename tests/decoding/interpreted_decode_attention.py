"""The decode-attention kernel in Triton's interpreter, which runs on any processor: see `test_decode_attention`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captune.decoding import DecodingOptions, Request, capabilities, engine, generate_ids
from captune.decoding.cuda_graph import GraphedStep
from captune.decoding.decode_attention import attend
from captune.model import MiniGPT4


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("size", [16, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_attention(groups: int, size: int, dtype: torch.dtype) -> None:
    """Rows of one column, of a block, of more; heads that share keys; widths that are no power of two."""
    torch.manual_seed(0)
    heads, width = 4, 150
    columns = torch.tensor([0, 63, 64, 149])
    # As a layer gives them: heads were the third dimension.
    query = torch.randn(len(columns), 1, heads, size, dtype=dtype).transpose(1, 2)
    keys, values = (torch.randn(len(columns), groups, width, size, dtype=dtype) for _ in range(2))
    output, _ = attend(torch.nn.Module(), query, keys, values, None, columns=columns, scaling=0.4)
    mask = (torch.arange(width) <= columns.unsqueeze(1)).view(-1, 1, 1, width)
    repeated = (states.repeat_interleave(heads // groups, 1) for states in (keys, values))
    expected = torch.nn.functional.scaled_dot_product_attention(query, *repeated, mask, scale=0.4)
    assert output.shape == (len(columns), 1, heads, size)
    half = dtype == torch.bfloat16
    torch.testing.assert_close(
        output.transpose(1, 2), expected, rtol=2e-2 if half else 1e-5, atol=1e-2 if half else 1e-6
    )


def test_what_comes_after_a_row_is_not_read() -> None:
    query = torch.randn(1, 2, 1, 16)
    keys, values = torch.randn(1, 2, 80, 16), torch.randn(1, 2, 80, 16)
    columns = torch.tensor([66])
    output, _ = attend(torch.nn.Module(), query, keys, values, None, columns=columns)
    keys[:, :, 67:], values[:, :, 67:] = torch.nan, torch.inf
    again, _ = attend(torch.nn.Module(), query, keys, values, None, columns=columns)
    assert torch.equal(output, again)


@pytest.mark.parametrize("beams", [1, 2])
def test_captions_are_the_same(
    model: MiniGPT4, features: Tensor, beams: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert model.processor is not None
    prompt = model.processor.layout.prompt("Say").ids
    requests = [Request(n, prompt, features[n : n + 1]) for n in range(6)]
    options = DecodingOptions(max_new_tokens=8, batch_size=3, beams=beams)
    expected = generate_ids(model, requests, options)
    used = 0

    class Watched(GraphedStep):
        def _run(self) -> Tensor:
            nonlocal used
            used += self._uses_decode_attention
            return super()._run()

    monkeypatch.setattr(capabilities, "has_kernel", lambda device: True)
    monkeypatch.setattr(engine, "GraphedStep", Watched)
    monkeypatch.setattr(engine, "graph_capture_for", lambda llm: lambda run: run)
    monkeypatch.setattr(capabilities, "_TESTED_DECODE_ATTENTION", {})
    assert generate_ids(model, requests, options) == expected
    assert used >= 2
    assert not caplog.records
