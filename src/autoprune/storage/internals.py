"""What autoprune uses of transformers without being promised that it stays: a new version is looked at here first.

Beside these names: ``_get_dtype_plan``, ``_weight_conversions`` and ``_keys_to_ignore_on_load_unexpected`` of models,
``_compiled_call``, which ``generate`` leaves in a model that it has compiled, ``_compile_all_devices``, and
``transformers.pytorch_utils.Conv1D``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CompileConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import LoadStateDictConfig

__all__ = [
    "LoadStateDictConfig",
    "WeightConverter",
    "WeightRenaming",
    "compiled_everywhere",
    "convert_and_load_state_dict_in_model",
    "get_model_conversion_mapping",
    "gguf_config",
    "gguf_conversion",
    "rename_source_key",
    "revert_weight_conversion",
]


def gguf_config(path: Path) -> dict[str, Any]:
    """What the header of a GGUF file says of the model, by transformers' names."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    return dict(load_gguf_checkpoint(str(path), return_tensors=False)["config"])


def gguf_conversion(model: Any, architecture: str, config: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    """What changes the layout of a GGUF file's tensors to transformers', and their names by those in the file."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config)
    return processor, get_gguf_hf_weights_map(model, processor)


def compiled_everywhere() -> CompileConfig:
    """Lets ``generate`` compile on every device; by itself it does so on accelerators alone."""
    config = CompileConfig()
    config._compile_all_devices = True  # type: ignore[assignment]  # declared as None there
    return config
