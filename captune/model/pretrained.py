"""A captioner on disk and on the hub: loaded with its processor, saved with its card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel

from captune.data.atomic import temporary_folder
from captune.model.model_card import model_card, upload_folder
from captune.model.processor import MiniGPT4Processor
from captune.model.sketch import TensorSketch, sketch
from captune.weights.files import TOWERS, stored_tensors, weight_files
from captune.weights.strict import load_strictly

__all__ = ["PretrainedCaptioner"]


class PretrainedCaptioner(PreTrainedModel):  # type: ignore[misc]  # transformers has no types here
    """What `MiniGPT4` has of a `PreTrainedModel`, with a processor at its side.

    Attributes:
        processor: images and words to batches, and ids to captions.
    """

    processor: MiniGPT4Processor | None = None
    absent: tuple[TensorSketch, ...] = ()

    def freeze(self) -> Self:
        """Leave what is trained trainable, and nothing else."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Self:
        """Load a model and its processor.

        Args:
            pretrained_model_name_or_path: a folder that `save_pretrained` wrote, its hub id, or a checkpoint of a
                training run (a folder or hub id), which brings what was trained and names the model it belongs to.
            args: of transformers' `from_pretrained`.
            kwargs: of transformers' `from_pretrained`: `dtype`, `device_map`, `quantization_config` (it concerns the
                language model alone), `revision`, ...; for a checkpoint also `base_model`, where its model is now;
                `parts`, which of "vision", "qformer" and "llm" are loaded, all by default.

        Returns:
            The model in eval mode.

        Raises:
            WeightsError: a file is broken; a tensor is missing, of another shape or not of this model; or a checkpoint
                belongs to other frozen parts.
        """
        from captune.model.adapter import fetched_adapter, load_adapter
        from captune.model.quantization import language_only

        hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir") if name in kwargs}
        checkpoint = fetched_adapter(pretrained_model_name_or_path, **hub)
        if checkpoint is not None:
            # The hub's settings are those of the checkpoint; its model may lie elsewhere.
            given = {name: value for name, value in kwargs.items() if name != "revision"}
            adapted: Self = load_adapter(checkpoint, cls, *args, **given)
            return adapted
        if kwargs.get("quantization_config") is not None:
            kept = ["vision", "qformer", "projection", "llm.lm_head", "lm_head"]
            kwargs["quantization_config"] = language_only(kwargs["quantization_config"], kept)
        model = load_strictly(
            lambda path, **options: super(PretrainedCaptioner, cls).from_pretrained(path, *args, **options),
            pretrained_model_name_or_path,
            f"The model {pretrained_model_name_or_path}",
            **kwargs,
        )
        if "vision" not in kwargs.get("parts", ("vision",)):
            model.absent = _towers(pretrained_model_name_or_path)
        model.processor = MiniGPT4Processor.from_pretrained(pretrained_model_name_or_path, model.config, **hub)
        loaded: Self = model.freeze().eval()
        return loaded

    def save_pretrained(
        self,
        save_directory: str | Path,
        *args: Any,
        metrics: Mapping[str, float] | None = None,
        signature: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write config, weights (safetensors), the processor's files and a model card into a folder.

        Args:
            save_directory: the folder; made when it is not there.
            args: of transformers' `save_pretrained`.
            metrics: for the card: name to value.
            signature: of the metrics, without which they are not shown.
            kwargs: of transformers' `save_pretrained`: `max_shard_size`, ...
        """
        super().save_pretrained(str(save_directory), *args, **kwargs)
        if self.processor is not None:
            self.processor.save_pretrained(Path(save_directory))
        card = model_card(self, metrics=metrics, signature=signature)
        (Path(save_directory) / "README.md").write_text(card, encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        signature: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload captioner",
        **kwargs: Any,
    ) -> str:
        """Put the model, its processor and its card on the hub.

        Args:
            repo_id: `user/name`; made when it is not there.
            metrics: for the card: name to value.
            signature: of the metrics, without which they are not shown.
            private: whether a new repository is private.
            token: of the hub; by default the one that `hf auth login` stored.
            commit_message: of the upload.
            kwargs: of `save_pretrained`.

        Returns:
            Address of the commit.

        Raises:
            ToolError: the hub refused.
        """
        with temporary_folder("upload") as folder:
            self.save_pretrained(folder, metrics=metrics, signature=signature, **kwargs)
            return upload_folder(folder, repo_id, private=private, token=token, message=commit_message)


def _towers(path: str | Path) -> tuple[TensorSketch, ...]:
    """Sketches of a model's towers as they lie on the disk."""
    stored = (item for file in weight_files(path) for item in stored_tensors(file, TOWERS))
    return sketch((name, tensor) for name, tensor in stored if tensor.is_floating_point())
