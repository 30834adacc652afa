"""The model without weights: materialise one block from the checkpoint, and let it go again.

Which stored tensor belongs to which parameter, and how it is converted, is asked of transformers' own
loading code, so that renamed and fused weights come out as ``from_pretrained`` would make them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as hf_logging

from autoprune.errors import ModelError
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.internals import (
    LoadStateDictConfig,
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    get_model_conversion_mapping,
    rename_source_key,
    revert_weight_conversion,
)
from autoprune.storage.quantised import quantisation_of
from autoprune.storage.ties import settle_ties
from autoprune.storage.weight_files import tensors_in

STORED = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass
class Skeleton:
    """A model on the meta device beside the checkpoint that fills it.

    ``owners`` maps each stored tensor to the parameter (or the first of several) that it goes to;
    ``converted`` are those that are not only renamed but fused, split or transposed at load.
    """

    model: PreTrainedModel
    checkpoint: Checkpoint
    storage_dtype: torch.dtype  # of most weights
    device: torch.device
    owners: dict[str, str]
    converted: set[str]
    mapping: list[Any] = field(repr=False)

    def stored_under(self, prefix: str) -> list[str]:
        """Stored tensors whose parameter lies under ``prefix`` (a module name)."""
        return [name for name, owner in self.owners.items() if owner.startswith(prefix + ".")]

    @property
    def used(self) -> set[str]:
        """Stored tensors that become parameters; others are tables and masks, or belong to no part of the model."""
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return {name for name, owner in self.owners.items() if owner in parameters}

    def stored_as(self, prefix: str) -> dict[str, torch.dtype]:
        """The dtypes in which the parameters under ``prefix`` are stored, by their names in that module."""
        words, names = self.checkpoint.dtypes(), self.stored_under(prefix)
        return {self.owners[name][len(prefix) + 1 :]: STORED[words[name]] for name in names if words[name] in STORED}

    def fill(self, stored: dict[str, Tensor]) -> None:
        """Gives the parameters that these stored tensors belong to their values, on the device."""
        dtype = self.model.dtype
        config = LoadStateDictConfig(
            device_map={"": self.device},
            dtype=dtype,
            dtype_plan=self.model._get_dtype_plan(dtype),
            weight_mapping=self.mapping,
        )
        with quiet_transformers():
            info, _ = convert_and_load_state_dict_in_model(self.model, dict(stored), config)
        if info.mismatched_keys or info.conversion_errors:
            trouble = next(iter(info.mismatched_keys or info.conversion_errors))
            name = trouble if isinstance(trouble, str) else trouble[0]  # with the two shapes
            raise ModelError(f"{self.checkpoint.directory}: {name} does not fit the model that config.json describes")

    def check_filled(self, module: nn.Module, name: str) -> None:
        """Raises: ModelError naming a parameter that the checkpoint left empty."""
        for parameter_name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_meta:
                raise ModelError(
                    f"{self.checkpoint.directory}: the weights hold nothing for {name}.{parameter_name}; "
                    "the checkpoint is incomplete or of another model"
                )
        for parameter in module.parameters():
            parameter.requires_grad_(False)

    def empty(self, module: nn.Module) -> None:
        """Lets the weights of a module go; its buffers stay."""
        for child in module.modules():
            for name, parameter in child._parameters.items():
                if parameter is not None:
                    child._parameters[name] = nn.Parameter(
                        torch.empty_like(parameter, device="meta"), requires_grad=False
                    )

    def as_stored(self, parameters: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors laid out as parameters (by full name) -> as the checkpoint lays them out, by its names.

        Raises: ModelError if that gives a tensor that the checkpoint does not have.
        """
        plain = {self.owners[name]: name for name in stored if name not in self.converted}
        result = {plain[name]: tensor for name, tensor in parameters.items() if name in plain}
        fused = {name: tensor for name, tensor in parameters.items() if name not in plain}
        if fused:
            result |= {
                self._known(name, stored): tensor
                for name, tensor in revert_weight_conversion(self.model, fused).items()
            }
        if odd := [name for name, tensor in result.items() if tensor.shape != stored[name].shape]:
            raise ModelError(
                f"{self.checkpoint.directory}: {odd[0]} is stored in a layout that autoprune can't write back"
            )
        return result

    def _known(self, name: str, stored: Mapping[str, Tensor]) -> str:
        prefix = self.model.base_model_prefix + "."
        for candidate in (name, prefix + name, name.removeprefix(prefix)):
            if candidate in stored:
                return candidate
        raise ModelError(
            f"{self.checkpoint.directory}: pruned weights would have to be stored as {name}, which the checkpoint does"
            " not have"
        )


def build_skeleton(checkpoint: Checkpoint, dtype: str, device: torch.device, *, trust_remote_code: bool) -> Skeleton:
    """Builds the model on the meta device (buffers are real) and finds each stored tensor's owner.

    Raises: ModelError if config.json can't be understood or describes no causal language model.
    """
    model = hollow_model(
        checkpoint.directory,
        running_dtype(checkpoint, dtype, trust_remote_code=trust_remote_code),
        trust_remote_code=trust_remote_code,
    )
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    mapping = get_model_conversion_mapping(model)
    owners, converted = _owners(model, checkpoint, mapping)
    settle_ties(model, checkpoint, owners, model.dtype)
    model._weight_conversions = [entry for entry in mapping if entry.was_used()]  # type: ignore[assignment]
    return Skeleton(model, checkpoint, storage_dtype(checkpoint), device, owners, converted, mapping)


def hollow_model(directory: Path, dtype: torch.dtype, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model that config.json describes, its parameters on the meta device, its buffers real.

    Raises: ModelError if config.json can't be understood or describes no causal language model.
    """
    config = read_config(directory, trust_remote_code)
    try:
        with init_empty_weights(include_buffers=False):
            model = _auto_class(config).from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        model.get_input_embeddings(), model.config.get_text_config().vocab_size  # without them it reads no token ids
    except Exception as error:  # whatever a model's own code makes of an entry that it does not expect
        raise ModelError(
            f"{directory}: transformers can't build a causal language model from config.json: {type(error).__name__}:"
            f" {error}"
        ) from error
    _compute_buffers(model)
    return model.eval().requires_grad_(False)


def _auto_class(config: PreTrainedConfig) -> Any:
    """What builds the model: a shell around a language model may have no causal language model of its own."""
    shell = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if shell else AutoModelForCausalLM


def _compute_buffers(model: PreTrainedModel) -> None:
    """Computes buffers that no checkpoint holds (tables of positions, …) once more, in torch's default precision.

    While the model was built its own precision was the default one. ``from_pretrained`` computes them afterwards, by
    the same call, and a table computed in bfloat16 differs. Parameters are on the meta device and not touched by it.
    """
    for module in model.modules():
        module.__dict__.pop("_is_hf_initialized", None)
    model.initialize_weights()


def read_config(directory: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's configuration. Raises: ModelError if it can't be read or understood."""
    try:
        (directory / "config.json").read_bytes()
    except OSError as error:
        raise ModelError(
            f"{directory / 'config.json'} can't be read ({error.strerror}); check the file and its permissions"
        ) from error
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:  # every family checks its own entries in its own way
        hint = " (it brings its own code: --trust_remote_code runs it)" if "trust_remote_code" in str(error) else ""
        raise ModelError(
            f"{directory / 'config.json'} describes no model that transformers knows{hint}: {type(error).__name__}:"
            f" {error}"
        ) from error
    text = config.get_text_config()
    stated = {"quantization_config": getattr(config, "quantization_config", None)}
    stated["text_config"] = {"quantization_config": getattr(text, "quantization_config", None)}
    if quantisation_of(stated, directory):  # what is read are dequantised weights
        for part in (config, text):
            part.__dict__.pop("quantization_config", None)
    return config


def storage_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype that most stored weights have. Raises: ModelError for quantised checkpoints."""
    shapes, counts = checkpoint.shapes(), dict[str, int]()
    for name, word in checkpoint.dtypes().items():
        counts[word] = counts.get(word, 0) + prod(shapes[name])
    word = max(counts, key=lambda name: counts[name])
    if word not in STORED:
        raise ModelError(
            f"{checkpoint.directory}: its weights are stored as {word}, which is quantised; prune the original"
            " float16, bfloat16 or float32 model"
        )
    return STORED[word]


def running_dtype(checkpoint: Checkpoint, word: str, *, trust_remote_code: bool = False) -> torch.dtype:
    """What the model runs in: ``word``, and for ``auto`` what ``from_pretrained`` chooses. That is the dtype that
    config.json states, else that of the first floating-point tensor of the first file.

    Raises: ModelError for quantised checkpoints, and as ``read_config`` does.
    """
    stored = storage_dtype(checkpoint)
    if word != "auto":
        return getattr(torch, word)
    if type(checkpoint) is not Checkpoint:  # dequantised weights run in what they are dequantised to
        return stored
    config = read_config(checkpoint.directory, trust_remote_code)
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    part = config.get_text_config() if getattr(causal, "config_class", None) is not type(config) else config
    stated = getattr(part, "dtype", None)
    if isinstance(stated, torch.dtype) and stated in STORED.values():
        return stated
    if isinstance(stated, torch.dtype) and not stated.is_floating_point:
        raise ModelError(
            f"{checkpoint.directory / 'config.json'} says that the weights are {str(stated).removeprefix('torch.')},"
            " in which no model runs; make its dtype float32, bfloat16 or float16, or remove the entry"
        )
    words = checkpoint.dtypes()
    first = next((words[name] for name in tensors_in(checkpoint.files[0]) if words[name] in STORED), None)
    return STORED[first] if first else stored


def _owners(model: PreTrainedModel, checkpoint: Checkpoint, mapping: Sequence[Any]) -> tuple[dict[str, str], set[str]]:
    state = model.state_dict()
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    owners, converted = {}, set()
    for name in checkpoint.shards:
        owner, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if owner not in state and name in state:
            owner = name
        elif converter is not None:
            converted.add(name)
        owners[name] = owner
    return owners, converted


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers from drawing progress bars of its own."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()
