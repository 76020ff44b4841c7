"""The configuration of a run: a YAML file in, `section.key=value` overrides, frozen and checked.

Every field carries its help in `sections`, once; `commented_yaml` writes it as comments into the configuration that a
run stores, and `configuration_reference` into docs/configuration.md.
"""

from captune.config.files import STORED_HEADING, convert_config, load_config, load_run_config, parse_config
from captune.config.sections import (
    DEFAULT_LORA,
    DataConfig,
    EvaluateConfig,
    LoraConfig,
    ModelConfig,
    OptimizationsConfig,
    RunConfig,
    TrainConfig,
    changed_settings,
    split_names,
)
from captune.config.stored_config import PATHS_FILE, load_stored_config, working_directory_record
from captune.config.templates import (
    LEARNING_RATES,
    Template,
    find_template,
    model_schedule,
    read_templates,
    scale_schedule,
)
from captune.config.writing import (
    ConfigKey,
    commented_yaml,
    configuration_keys,
    configuration_reference,
    configuration_schema,
)

__all__ = [
    "DEFAULT_LORA",
    "LEARNING_RATES",
    "PATHS_FILE",
    "STORED_HEADING",
    "ConfigKey",
    "DataConfig",
    "EvaluateConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizationsConfig",
    "RunConfig",
    "Template",
    "TrainConfig",
    "changed_settings",
    "commented_yaml",
    "configuration_keys",
    "configuration_reference",
    "configuration_schema",
    "convert_config",
    "find_template",
    "load_config",
    "load_run_config",
    "load_stored_config",
    "model_schedule",
    "parse_config",
    "read_templates",
    "scale_schedule",
    "split_names",
    "working_directory_record",
]
