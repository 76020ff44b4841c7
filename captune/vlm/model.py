"""A transformers image-text-to-text model in training: which parts are trained, and their state.

LoRA is injected into the text decoder only, by peft; the projector is trained as one of its `modules_to_save`. The
vision tower is frozen unless it is named: what the trained parameters may not change is proved by autograd, which must
not connect them with the image features.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from captune.captioner import TransformersBackend, probe_images
from captune.common import error_text
from captune.config import LoraConfig
from captune.errors import CaptuneError, MissingExtraError, WeightsError
from captune.transformers_compat import set_activation_checkpointing
from captune.vlm.caption_loss import CaptionLoss
from captune.vlm.conversation import Conversation, PromptRow
from captune.vlm.decoder import Decoder
from captune.vlm.image_features import FeatureCall, ImageFeatures, find_feature_call
from captune.vlm.trained_parts import language_prefixes, linear_layers, projector_path, target_pattern
from captune.weights import frozen_fingerprint

__all__ = ["ImageTextModel"]

CAPTION_START = "a photo of"
"""The prompt of families that caption without one."""
_PROBE_CAPTION = "A photo."


class ImageTextModel:
    """A transformers model that is tuned.

    Args:
        model: an image-text-to-text model.
        processor: of the model.
        name: path or hub id, for messages and records.
        instruction: of samples without a separate instruction; by default the family's, or the beginning of a caption
            for families without one.

    Attributes:
        backend: captions with the model.
        conversation: makes rows of prompts and captions.
        decoder: the text decoder; None if it cannot pack captions.
        losses: of an image's captions.
        undivided: why the decoder cannot pack captions; empty if it may.
        features_depend_on_prompt: whether image features differ between instructions.
        adapter: peft's wrapper of the model; None without LoRA.

    Raises:
        WeightsError: the model cannot be trained, or its processor refuses an ordinary image; with the reason.
    """

    def __init__(self, model: Any, processor: Any, *, name: str, instruction: str | None = None) -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self._build(model.eval(), processor, name, instruction)
        try:
            self.conversation.prompt(probe_images()[0].resize((320, 240)))
        except CaptuneError:
            raise
        except Exception as error:  # processors of hundreds of families raise anything
            raise WeightsError(
                f"The processor of {name} refuses an ordinary image ({type(error).__name__}: {error_text(error)}), so "
                "the model can be neither tuned nor captioned with in this release of transformers."
            ) from error

    def _build(self, model: Any, processor: Any, name: str, instruction: str | None) -> None:
        self.model, self.processor, self.name = model, processor, name
        self.backend = TransformersBackend(model, processor, name=name, instruction=instruction)
        inputs = self.backend.inputs
        if self.backend.instruction is None and inputs.takes_text and not inputs.encodes_text:
            # BLIP, BLIP-2 and GIT caption without a prompt, but a caption of training has to follow one.
            self.backend = TransformersBackend(model, processor, name=name, instruction=CAPTION_START)
        self.conversation = Conversation(model, self.backend.inputs, self.backend.instruction)
        self.decoder: Decoder | None = None
        self.undivided = ""
        if self.conversation.is_encoder_decoder:
            self.undivided = "an encoder-decoder has one row per caption"
        else:
            try:
                self.decoder = Decoder(model)
            except (WeightsError, AttributeError, IndexError) as error:
                self.undivided = str(error)
        self.losses = CaptionLoss(
            model,
            self.decoder,
            None,
            int(processor.tokenizer.pad_token_id),
            is_encoder_decoder=self.conversation.is_encoder_decoder,
        )
        self.adapter: Any = None
        self.features_depend_on_prompt = False

    def copy_around(self, model: Any) -> ImageTextModel:
        """The same around a copy of the model, with the same trained parts."""
        other = object.__new__(type(self))
        other._build(model, self.processor, self.name, self.conversation.instruction)
        return other

    # Trained parts

    def add_lora(self, lora: LoraConfig, *, projector: bool = False, seed: int = 0) -> None:
        """Inject LoRA into the decoder; all other weights stay frozen.

        Args:
            lora: rank, alpha, dropout and targets: last parts of the names of linear layers, or "all-linear".
            projector: train the projector too.
            seed: of the initial matrices.

        Raises:
            WeightsError: the decoder has no such layers, or the model no projector.
            MissingExtraError: peft is not installed.
        """
        try:
            from peft import LoraConfig as PeftLoraConfig
            from peft import get_peft_model
        except ImportError as error:
            raise MissingExtraError("LoRA", "train") from error
        targets = linear_layers(self.model, self._decoder_path, lora.targets, self.name)
        settings = PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=target_pattern(self.model, self._decoder_path, targets),
            modules_to_save=[self.projector_path.rpartition(".")[2]] if projector else None,
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.name,
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            self.adapter = get_peft_model(self.model, settings, autocast_adapter_dtype=False)
        adapted = {name.rpartition(".lora_A")[0] for name, _ in self.model.named_parameters() if ".lora_A." in name}
        if outside := sorted(name for name in adapted if not name.startswith(f"{self._decoder_path}.")):
            raise WeightsError(f"LoRA reached '{outside[0]}' of {self.name}, which is no part of its text decoder.")

    def train_parts(self, *, language_model: bool = False, vision_tower: bool = False) -> None:
        """Train complete parts.

        Args:
            language_model: every weight of the text decoder and encoder, their embeddings and the head.
            vision_tower: every weight before these, the projector's among them.
        """
        tops, vision = language_prefixes(self.model, self._decoder_path)
        for name, parameter in self.model.named_parameters():
            is_text = name.startswith(tops) and not name.startswith(vision)
            parameter.requires_grad_(language_model if is_text else vision_tower)

    @property
    def _decoder_path(self) -> str:
        if self.decoder is not None:
            return self.decoder.path
        part = self.model.get_decoder()
        return next(str(name) for name, module in self.model.named_modules() if module is part)

    @property
    def projector_path(self) -> str:
        """Name of the module between vision tower and decoder.

        Raises:
            WeightsError: the model has none that is known by its name.
        """
        return projector_path(self.model, self._decoder_path, self.name)

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and tensors of the trained parameters."""
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def trained_state(self) -> dict[str, Tensor]:
        """Copies of the trained parameters, on the CPU in float32."""
        return {name: p.detach().to("cpu", torch.float32).clone() for name, p in self.trained_parameters()}

    @torch.no_grad()
    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Set the trained parameters.

        Raises:
            WeightsError: names or shapes differ.
        """
        parameters = dict(self.trained_parameters())
        if state.keys() != parameters.keys():
            differing = sorted(state.keys() ^ parameters.keys())[0]
            raise WeightsError(f"The trained tensors belong to other parameters of {self.name}; see '{differing}'.")
        for name, parameter in parameters.items():
            parameter.copy_(state[name])

    def frozen_fingerprint(self) -> str:
        """Fingerprint of the frozen parameters; LoRA does not change it."""
        return frozen_fingerprint(self.model)

    @property
    def training(self) -> bool:
        """Whether dropout of the trained parts is active."""
        return bool(self.model.training)

    def train(self, mode: bool = True) -> ImageTextModel:
        """Set the mode of the trained parts; frozen parts stay in eval mode, without dropout."""
        self.model.eval()
        self.model.training = mode
        for name, module in self.model.named_modules():
            if ".lora_dropout" in name or getattr(module, "gradient_checkpointing", False):
                module.training = mode
        return self

    def eval(self) -> ImageTextModel:
        """Set all parts to eval mode."""
        return self.train(False)

    def checkpoint_activations(self) -> None:
        """Recompute the decoder's activations in the backward pass (activation checkpointing)."""
        for module in self.model.get_decoder().modules():
            if isinstance(module, GradientCheckpointingLayer):
                set_activation_checkpointing(module, True)

    # Image features

    def find_features(self) -> bool:
        """Find the function that computes image features; returns whether features can replace images."""
        image = probe_images()[0]
        prompt = self.conversation.prompt(image)
        targets = self.conversation.target_ids(_PROBE_CAPTION)
        first: FeatureCall | None = None
        # Where the projector is trained, the features are those before it.
        for before_projector in (False, True):
            call = find_feature_call(
                self.model,
                lambda count: self.losses.probe(prompt, targets, count),
                before_projector=before_projector,
            )
            self.losses.feature_call = call
            if call is not None and not self.features_are_trained():
                self._test_dependence_on_prompt(image)
                return True
            first = first or call
        self.losses.feature_call = first
        return False

    def _test_dependence_on_prompt(self, image: Image.Image) -> None:
        """A Q-Former may read the instruction."""
        texts = [self.conversation.instruction, "Is there a dog?"]
        if self.conversation.inputs.takes_text and self.conversation.instruction is not None:
            pair = [self.encode(image, text).tensors for text in texts]
            self.features_depend_on_prompt = any(not torch.equal(*tensors) for tensors in zip(*pair, strict=True))

    def features_are_trained(self) -> bool:
        """Whether image features depend on trained parameters, so that they must be computed in every step."""
        with torch.enable_grad():
            features = self._record(self.conversation.prompt(probe_images()[0]))
        return any(value.requires_grad for value in features)

    def require_unadapted_features(self) -> None:
        """Check by autograd that no LoRA changes image features; their function was found.

        Raises:
            WeightsError: one does; names its layer.
        """
        lora = [(name, parameter) for name, parameter in self.trained_parameters() if ".lora_" in name]
        with torch.enable_grad():
            features = self._record(self.conversation.prompt(probe_images()[0]))
        connected = [value.sum() for value in features if value.requires_grad]
        if not lora or not connected:
            return
        total = torch.stack([value.float() for value in connected]).sum()
        gradients = torch.autograd.grad(total, [parameter for _, parameter in lora], allow_unused=True)
        for (name, _), gradient in zip(lora, gradients, strict=True):
            if gradient is not None:
                raise WeightsError(
                    f"LoRA in '{name.partition('.lora_')[0]}' of {self.name} changes the image features, so it is in "
                    "the vision tower; set train.lora.targets to layers of the text decoder."
                )

    def feature_tensors(self) -> dict[str, Tensor]:
        """The parameters and buffers on which image features depend, by name.

        These are all outside of the decoder and the head, and those inside that the function of the features reads.
        """
        call: FeatureCall | None = self.losses.feature_call
        assert call is not None
        head = self.model.get_output_embeddings()
        inside = set() if head is None else {id(parameter) for parameter in head.parameters()}
        state: dict[str, Tensor] = self.model.state_dict(keep_vars=True)
        inside |= {id(tensor) for name, tensor in state.items() if name.startswith(f"{self._decoder_path}.")}
        with torch.no_grad():
            read = call.tensors_read(lambda: self._run(self.conversation.prompt(probe_images()[0])))
        return {name: tensor for name, tensor in state.items() if id(tensor) in read or id(tensor) not in inside}

    @torch.no_grad()
    def encode(self, image: Image.Image, instruction: str | None = None) -> ImageFeatures:
        """The features of an image.

        Args:
            image: the image.
            instruction: the prompt, on which features depend if `features_depend_on_prompt`.

        Raises:
            WeightsError: they have another structure than those of other images.
        """
        values = self._record(self.conversation.prompt(image, instruction))
        return ImageFeatures(tuple(value.detach() for value in values), image.size)

    def _record(self, prompt: PromptRow) -> tuple[Tensor, ...]:
        call: FeatureCall | None = self.losses.feature_call
        assert call is not None
        with call.recorded(stop=True) as values:
            self._run(prompt)
        return call.tensors_of(values[0])

    def _run(self, prompt: PromptRow) -> None:
        """Run the model's forward on a prompt with its pixels."""
        self.losses.plain(prompt, [self.conversation.target_ids(_PROBE_CAPTION)])

    # Losses

    def loss(
        self,
        image: Image.Image | ImageFeatures,
        captions: Sequence[str],
        instruction: str | None = None,
        *,
        packed: bool = False,
    ) -> Tensor:
        """Summed negative log-likelihood of an image's captions, in nats.

        Args:
            image: the image, or its features.
            captions: of the image.
            instruction: the prompt; by default that of the model.
            packed: compute all captions in one row after one copy of prompt and image.

        Raises:
            DataError: a caption is longer than the model's positions.
        """
        targets = [self.conversation.target_ids(caption, instruction) for caption in captions]
        if isinstance(image, ImageFeatures):
            prompt, features = self.conversation.prompt_of_size(image.size, instruction), image
        else:
            prompt, features = self.conversation.prompt(image, instruction), None
        self._require_fit(prompt, captions, targets)
        compute = self.losses.packed if packed else self.losses.plain
        return compute(prompt, targets, features)

    def batch_loss(
        self,
        features: Sequence[ImageFeatures],
        captions: Sequence[Sequence[str]],
        instructions: Sequence[str | None],
    ) -> Tensor:
        """Summed loss of several images in one forward, with one packed row for each.

        Args:
            features: of B images, which `can_share_batch`.
            captions: of each image.
            instructions: of each image; None is that of the model.
        """
        targets = [
            [self.conversation.target_ids(caption, instruction) for caption in texts]
            for texts, instruction in zip(captions, instructions, strict=True)
        ]
        prompts = [
            self.conversation.prompt_of_size(one.size, instruction)
            for one, instruction in zip(features, instructions, strict=True)
        ]
        for prompt, texts, ids in zip(prompts, captions, targets, strict=True):
            self._require_fit(prompt, texts, ids)
        return self.losses.packed_batch(prompts, targets, features)

    def _require_fit(self, prompt: PromptRow, captions: Sequence[str], targets: Sequence[Sequence[int]]) -> None:
        for caption, ids in zip(captions, targets, strict=True):
            self.conversation.require_fit(prompt, caption, ids)

    def can_share_batch(
        self, sizes: tuple[tuple[int, int], tuple[int, int]], instructions: tuple[str | None, str | None]
    ) -> bool:
        """Whether images of two sizes with their instructions can be computed by one `batch_loss`."""
        one, other = map(self.conversation.prompt_of_size, sizes, instructions)
        return self.losses.can_share_batch(one, other)
