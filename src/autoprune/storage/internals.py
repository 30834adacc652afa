"""What autoprune uses of transformers without being promised that it stays: a new version is looked at here first.

Beside these names: ``_get_dtype_plan``, ``_weight_conversions`` and ``_keys_to_ignore_on_load_unexpected`` of models,
and ``transformers.pytorch_utils.Conv1D``.
"""

from __future__ import annotations

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)
from transformers.modeling_utils import LoadStateDictConfig

__all__ = [
    "TENSOR_PROCESSORS",
    "LoadStateDictConfig",
    "TensorProcessor",
    "WeightConverter",
    "WeightRenaming",
    "convert_and_load_state_dict_in_model",
    "get_gguf_hf_weights_map",
    "get_model_conversion_mapping",
    "load_gguf_checkpoint",
    "rename_source_key",
    "revert_weight_conversion",
]
