"""The keys of MiniGPT-4's YAML files, and what the original did with each."""

from __future__ import annotations

__all__ = [
    "ARCHS",
    "DATASET_KEYS",
    "IGNORED_RUN_KEYS",
    "KEYS_IN_CHECKPOINT",
    "MODEL_KEYS",
    "NOT_NEEDED_IN_RUN",
    "PLAIN_DATASETS",
    "READ_BY",
    "RUN_KEYS",
    "SECTIONS",
    "VISION_KEYS",
]


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


SECTIONS = _keys("model datasets run preprocess evaluation_datasets")
ARCHS = {"minigpt4": "minigpt4", "mini_gpt4": "minigpt4", "minigpt_v2": "minigpt_v2"}
"""Names of the architectures; the first files of MiniGPT-4 spell theirs otherwise."""

_READ_BY_BOTH = _keys("""
    arch model_type ckpt llama_model vit_model image_size freeze_vit vit_precision drop_path_rate use_grad_checkpoint
    low_resource max_txt_len end_sym prompt_template
""")
READ_BY = {
    "minigpt4": _READ_BY_BOTH
    | _keys("prompt_path q_former_model has_qformer freeze_qformer num_query_token device_8bit"),
    "minigpt_v2": _READ_BY_BOTH | _keys("lora_r lora_alpha chat_template use_grad_checkpoint_llm max_context_len"),
}
"""What each model's `from_config` takes; everything else in `model:` was dropped without a word."""
MODEL_KEYS = frozenset[str]().union(
    *READ_BY.values(),
    _keys("lora_target_modules lora_dropout prompt img_size load_pretrained pretrained load_finetuned finetuned"),
)
KEYS_IN_CHECKPOINT = _keys("""
    llama_model vit_model q_former_model has_qformer num_query_token image_size max_txt_len end_sym lora_r lora_alpha
""")
"""What a captune model's folder says by itself."""

PLAIN_DATASETS = _keys("laion cc_sbu cc_sbu_align")
"""Datasets without instructions of their own; only for these the original looked at `prompt_path`."""
DATASET_KEYS = _keys("batch_size vis_processor text_processor sample_ratio type build_info data_type")
VISION_KEYS = _keys("name image_size mean std min_scale max_scale")

IGNORED_RUN_KEYS = {
    "lr_decay_rate": "the cosine does not read it",
    "batch_size_eval": "it evaluated nothing in training",
    "world_size": "torchrun's environment replaces it",
    "dist_url": "torchrun's environment replaces it",
    "max_len": "it generated nothing in training",
    "min_len": "it generated nothing in training",
    "num_beams": "it generated nothing in training",
    "inference_method": "it generated nothing in training",
    "num_ans_candidates": "it generated nothing in training",
    "k_test": "it ranked nothing in training",
    "report_metric": "it evaluated nothing in training",
    "train_dataset_ratios": "the epoch-based runner does not read it",
}
NOT_NEEDED_IN_RUN = {
    "num_workers": "images are read once, before training",
    "amp": "frozen parts are in model.dtype, what is trained is in float32, and no loss is scaled",
    "device": "a GPU is used where there is one",
    "distributed": "torchrun says so",
    "dist_backend": "it follows from the device",
    "use_dist_eval_sampler": "every process evaluates its share",
    "runner": "there is one training loop",
    "task": "captions are the only task",
    "job_name": "the output folder names the run",
}
RUN_KEYS = (
    frozenset(IGNORED_RUN_KEYS)
    | frozenset(NOT_NEEDED_IN_RUN)
    | _keys("""
    lr_sched init_lr min_lr warmup_lr warmup_steps weight_decay beta2 max_epoch iters_per_epoch batch_size_train
    accum_grad_iters seed output_dir log_freq wandb_log resume_ckpt_path evaluate train_splits valid_splits test_splits
""")
)
