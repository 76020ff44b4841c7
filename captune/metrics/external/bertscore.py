"""BERTScore: greedy matching of contextual embeddings of the tokens of caption and reference.

    R = sum over tokens x of the reference of w(x) * max over tokens y of the caption of cos(x, y) / sum of w(x)
    P = the same with caption and reference exchanged
    F = 2 P R / (P + R)

Each of the three is the maximum over the references of an image. The weights w are 1, or with `bertscore_idf`
log((N + 1) / (n + 1)) for a token that n of the N references have; special tokens weigh 0. Rescaling maps a score x to
(x - b) / (1 - b) with the published mean b of unrelated sentences.

Source: Zhang et al., "BERTScore: Evaluating Text Generation with BERT" (ICLR 2020). The package `bert-score` matches
the embeddings, and has the table of layers and the baselines; its tokenization fails with transformers 5, so that
captune tokenizes and loads the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from captune.common import first_line
from captune.errors import MetricInputError, MissingExtraError
from captune.metrics.metric import Column, MeanOfImages
from captune.metrics.options import ScoringOptions
from captune.metrics.references import PredictionBatch, ReferenceIndex

if TYPE_CHECKING:
    import torch

__all__ = ["BertScore", "BertScorer"]

_IMAGES_AT_ONCE = 256
"""Images whose embeddings are in memory at once."""

_SHIFTED_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "longformer", "xlm-roberta-xl"})
"""Architectures whose positions begin after the padding token."""

_PREFIX_SPACE = frozenset({"roberta", "gpt2", "longformer"})
"""Architectures whose first word is tokenized like the others, as in the original."""


class BertScore(MeanOfImages):
    """F1, precision and recall of BERTScore."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column("BERTScore", description="Similarity to the closest reference by embeddings of tokens (F1)."),
        Column("BERTScore-P", description="Share of the caption that the closest reference has, by embeddings."),
        Column("BERTScore-R", description="Share of the closest reference that the caption has, by embeddings."),
    )

    def __init__(self, options: ScoringOptions) -> None:
        super().__init__(options)
        self._scorer: BertScorer | None = None
        self._notes = {"captions": "", "references": ""}

    @classmethod
    def check_requirements(cls, options: ScoringOptions) -> None:
        """Raise if the package is not installed, or the folder of the model or its layer is unknown."""
        if any(find_spec(name) is None for name in ("torch", "transformers", "bert_score")):
            raise MissingExtraError("BERTScore", "bertscore")
        name = options.bertscore
        is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
        if is_path and not Path(name).is_dir():
            raise MetricInputError(
                f"--bertscore is {name}, and there is no such folder; give that of a model, or a hub id."
            )

    def prepare(self, references: ReferenceIndex) -> None:
        """Load the model, and count the tokens of the references if they are weighted."""
        self._scorer = BertScorer.from_pretrained(
            self.options.bertscore, self.options.bertscore_layer, rescale=self.options.bertscore_rescale
        )
        texts = [text for group in references.captions.values() for text in group]
        if self.options.bertscore_idf:
            self._scorer.weigh(texts)
        self._notes["references"] = self._scorer.truncation_note(texts, "references")

    def statistics(self, predictions: PredictionBatch) -> NDArray[np.float64]:
        """F1, precision and recall of each image, (N, 3)."""
        assert self._scorer is not None
        captions = list(predictions.captions)
        self._notes["captions"] = self._scorer.truncation_note(captions, "captions")
        return self._scorer.score(captions, predictions.reference_captions)[:, [2, 0, 1]]

    def notes(self) -> Sequence[str]:
        """The captions and the references beyond the model's limit, if there are any."""
        return [note for note in self._notes.values() if note]

    def signature(self) -> Mapping[str, str]:
        """Model, layer, weights, rescaling and the version of the package."""
        assert self._scorer is not None
        return {"bertscore": self._scorer.signature}


class BertScorer:
    """A model with its tokenizer, and the layer whose embeddings are compared.

    Args:
        model: of transformers, with `output_hidden_states`.
        tokenizer: of the model.
        name: of the model, for the signature.
        layer: index of the hidden states; 0 are the embeddings before the first layer.
        baseline: (3,) values that P, R and F are rescaled by, or None.
        rescale: name of the baseline, for the signature.
        device: where to compute; the first GPU if there is one, else the CPU.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        layer: int,
        baseline: NDArray[np.float64] | None = None,
        rescale: str | None = None,
        device: str | None = None,
    ) -> None:
        import torch

        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = _HiddenStates(model.to(self.device).float().eval(), layer)
        self._tokenizer = _Tokenizer(tokenizer, _token_limit(model.config, tokenizer))
        self._name, self._layer, self._baseline, self._rescale = name, layer, baseline, rescale
        self._weights: dict[int, float] | None = None

    @classmethod
    def from_pretrained(
        cls, name: str, layer: int | None = None, *, rescale: str | None = None, device: str | None = None
    ) -> BertScorer:
        """Load a model.

        Args:
            name: folder or Hugging Face id.
            layer: index of the hidden states; by default that of the published table.
            rescale: language of a published baseline, such as "en".
            device: where to compute.

        Raises:
            MissingExtraError: bert-score, transformers or torch is not installed.
            MetricInputError: there is no such model, it is broken, the layer is unknown or out of range, or there is no
                baseline.
        """
        try:
            import bert_score
            from bert_score.utils import model2layers
            from transformers import AutoConfig, AutoModel, AutoTokenizer

            from captune.weights import quiet
        except ImportError as error:
            raise MissingExtraError("BERTScore", "bertscore") from error
        published = _published_name(name, model2layers)
        if layer is None and published is None:
            raise MetricInputError(
                f"BERTScore: the published table has no layer for '{name}'; give it with --bertscore-layer N "
                "(bertscore_layer=N)."
            )
        layer = model2layers[published] if layer is None else layer
        baseline = None
        if rescale is not None:
            folder = Path(bert_score.__file__).parent / "rescale_baseline"
            baseline = _baseline(folder, rescale, published, layer, name)
        try:
            with quiet():
                config = AutoConfig.from_pretrained(name)
                prefix = {"add_prefix_space": True} if config.model_type in _PREFIX_SPACE else {}
                tokenizer = AutoTokenizer.from_pretrained(name, **prefix)
                model, loaded = AutoModel.from_pretrained(name, output_loading_info=True)
        except Exception as error:  # broken files raise nearly anything
            raise MetricInputError(
                f"The model '{name}' of BERTScore cannot be loaded ({first_line(error)}); give a folder with a text "
                "encoder (--bertscore FOLDER)."
            ) from error
        if missing := sorted(key for key in loaded["missing_keys"] if "pooler" not in key):
            raise MetricInputError(
                f"The model '{name}' of BERTScore has no weights for {missing[0]} and {len(missing) - 1:,} others; "
                "give a complete model."
            )
        model = getattr(model, "encoder", model) if getattr(config, "is_encoder_decoder", False) else model
        layers = int(getattr(config, "num_hidden_layers", layer))
        if not 0 <= layer <= layers:
            raise MetricInputError(
                f"BERTScore: layer {layer} of '{name}' is out of range; it has layers 0 to {layers}."
            )
        shown = Path(name).resolve().name if Path(name).is_dir() else name
        return cls(model, tokenizer, name=shown, layer=layer, baseline=baseline, rescale=rescale, device=device)

    @property
    def signature(self) -> str:
        """Such as "roberta-large,L17,idf=no,rescale=en,bert-score0.3.13"."""
        weights = "no" if self._weights is None else "references"
        package = f"bert-score{version('bert-score')}"
        return f"{self._name},L{self._layer},idf={weights},rescale={self._rescale or 'no'},{package}"

    def weigh(self, references: Sequence[str]) -> None:
        """Weight tokens by their inverse document frequency in the references.

        Raises:
            MetricInputError: there are fewer than two references.
        """
        from bert_score.utils import get_idf_dict

        texts = [text for text in references if text.strip()]
        if len(texts) < 2:
            raise MetricInputError("BERTScore: weights of one reference are all 0; leave out --bertscore-idf.")
        self._weights = get_idf_dict(texts, self._tokenizer, nthreads=0)

    def score(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """Precision, recall and F1 of N captions, (N, 3): for each the maximum over the references.

        A caption or reference without text has 0 before rescaling.
        """
        rows = np.zeros((len(captions), 3))
        for start in range(0, len(captions), _IMAGES_AT_ONCE):
            part = slice(start, start + _IMAGES_AT_ONCE)
            rows[part] = self._score_part(captions[part], references[part])
        return rows if self._baseline is None else (rows - self._baseline) / (1 - self._baseline)

    def _score_part(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        from bert_score.utils import bert_cos_score_idf

        pairs = [
            (row, caption, reference)
            for row, caption in enumerate(captions)
            for reference in references[row]
            if caption.strip() and reference.strip()
        ]
        best = np.zeros((len(captions), 3))
        if not pairs:
            return best
        weights = self._weights
        if weights is None:
            weights = defaultdict(lambda: 1.0, dict.fromkeys(self._tokenizer.special_tokens, 0.0))
        scores = bert_cos_score_idf(
            self._model,
            [reference for _, _, reference in pairs],
            [caption for _, caption, _ in pairs],
            self._tokenizer,
            weights,
            device=self.device,
        )
        values = np.nan_to_num(scores.double().numpy())
        best[[row for row, _, _ in pairs]] = -np.inf
        np.maximum.at(best, [row for row, _, _ in pairs], values)
        return best

    def truncation_note(self, texts: Sequence[str], kind: str) -> str:
        """One sentence on the texts beyond the model's limit; "" if there are none.

        Args:
            texts: captions or references.
            kind: "captions" or "references".
        """
        lengths = np.array([self._tokenizer.length(text) for text in texts])
        beyond = np.maximum(lengths - self._tokenizer.model_max_length, 0)
        if not beyond.any():
            return ""
        count, share = int(np.count_nonzero(beyond)), beyond.sum() / lengths.sum()
        return (
            f"BERTScore reads {self._tokenizer.model_max_length} tokens of a text: {count:,} of {len(texts):,} {kind} "
            f"{'is' if count == 1 else 'are'} longer, and {share:.1%} of their text is not scored."
        )


def _token_limit(config: Any, tokenizer: Any) -> int:
    """Tokens that the model reads; many tokenizers state no limit."""
    limit = int(getattr(config, "max_position_embeddings", None) or 512)
    if config.model_type in _SHIFTED_POSITIONS:
        limit -= int(config.pad_token_id) + 1
    return min(limit, int(tokenizer.model_max_length))


def _published_name(name: str, published: Mapping[str, Any]) -> str | None:
    """The published model of a hub id, or of a folder that is named like it."""
    last = Path(name).resolve().name if Path(name).is_dir() else name
    return name if name in published else next((key for key in published if key.split("/")[-1] == last), None)


def _baseline(folder: Path, language: str, published: str | None, layer: int, name: str) -> NDArray[np.float64]:
    """Published baselines of P, R and F.

    Raises:
        MetricInputError: there is none for the language, model or layer.
    """
    languages = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if language not in languages:
        raise MetricInputError(
            f"BERTScore: there is no baseline for the language '{language}'; there are {', '.join(languages)}."
        )
    path = folder / language / f"{published}.tsv"
    rows = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2) if path.is_file() else np.zeros((0, 4))
    selected = rows[rows[:, 0] == layer]
    if not len(selected):
        raise MetricInputError(
            f"BERTScore: there is no baseline for layer {layer} of '{name}' in the language '{language}'; leave out "
            "--bertscore-rescale."
        )
    values: NDArray[np.float64] = selected[0, 1:]
    return values


class _Tokenizer:
    """A tokenizer of transformers 5 with the methods of earlier releases that bert-score calls."""

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self._tokenizer = tokenizer
        self.model_max_length = limit
        self.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.special_tokens = [token for token in (tokenizer.sep_token_id, tokenizer.cls_token_id) if token is not None]

    def encode(self, text: str, **_: Any) -> list[int]:
        """The tokens of a text, at most `model_max_length`."""
        tokens: list[int] = self._tokenizer(text, truncation=True, max_length=self.model_max_length)["input_ids"]
        return tokens

    def length(self, text: str) -> int:
        """Tokens of a text without a limit."""
        return len(self._tokenizer(text.strip(), truncation=False, verbose=False)["input_ids"])


class _HiddenStates:
    """A model that returns the hidden states of one layer; the layers after it are not computed where possible."""

    def __init__(self, model: Any, layer: int) -> None:
        self._model, self._layer = model, layer
        layers = getattr(getattr(model, "encoder", None), "layer", None)
        # In BERT and RoBERTa nothing follows the last layer.
        if layers is not None and layer > 0 and model.config.model_type in ("bert", "roberta", "xlm-roberta"):
            model.encoder.layer = layers[:layer]

    def __call__(self, tokens: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        output = self._model(tokens, attention_mask=attention_mask, output_hidden_states=True)
        return (output.hidden_states[self._layer],)

    def eval(self) -> None:
        """Does nothing: the model is in eval mode."""

    def parameters(self) -> Any:
        """The parameters of the model."""
        return self._model.parameters()
