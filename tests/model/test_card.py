"""The header of a model card, which the hub reads."""

from __future__ import annotations

from huggingface_hub import ModelCard

from captune.model import CardDetails, card_header


def test_smoothing_is_no_evaluation_result() -> None:
    def results(**metrics: float) -> dict[str, float]:
        details = CardDetails(metrics=metrics, signature="data:toy", data="toy", split="test")
        card = ModelCard("\n".join(card_header("photos", details, library="peft", task="image-to-text", tags=())))
        return {result.metric_name: result.metric_value for result in card.data.eval_results or []}

    scores = {"CIDEr": 0.5, "BLEU-4": 3e-9, "CHAIR-s": 0.0}
    assert results(**scores) == {"CIDEr": 0.5, "CHAIR-s": 0.0}
    assert results(**{"BLEU-4": 3e-9}) == {}
