"""Whether a model in memory can be pruned, and saved afterwards: judged before any work, every hindrance by name."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from types import MethodType
from typing import Any

from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel

from autoprune.errors import ModelError
from autoprune.machine.devices import choose_device

SHARDED = ("torch.distributed", "deepspeed", "fairscale")
REMEDY = "or give the model's directory or hub id, which autoprune reads block by block"


def check_held(model: nn.Module, *, save: bool) -> None:
    """Raises: ModelError naming what stands in the way: an adapter, a wrapper, no head or one for masked tokens,
    weights that are quantised, kept elsewhere or made in inference mode, and with ``save`` whatever
    ``save_pretrained`` would refuse in the end.
    """
    name = type(model).__name__
    for hindrance in (
        _adapter(model), _wrapper(model), _quantised(model), _elsewhere(model), _no_head(model), _masked(model),
        _inference(model), _made_up(model),
    ):  # fmt: skip
        if hindrance:
            raise ModelError(f"{name} in memory {hindrance}")
    if save:
        check_savable(model)


def check_as_asked(model: nn.Module, dtype: str, device: str) -> None:
    """Raises: ModelError if the model, which is used as it is, is not in the precision or place that was asked for;
    RecipeError for a device that isn't there.
    """
    first = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    here = str(first.dtype).removeprefix("torch.")
    if dtype not in ("auto", here):
        raise ModelError(
            f"--dtype {dtype}: {type(model).__name__} in memory is {here} and used as it is; convert it first"
            f" (model.to(torch.{dtype})), or leave --dtype out"
        )
    if device != "auto" and choose_device(device).type != first.device.type:
        raise ModelError(
            f"--device {device}: {type(model).__name__} in memory is on {first.device} and used there; move it first"
            f" (model.to({device!r})), or leave --device out"
        )


def check_savable(model: Any) -> None:
    """Raises: ModelError if the model can't be saved as it is."""
    name = type(model).__name__
    if not hasattr(model, "save_pretrained"):
        raise ModelError(
            f"{name} has no save_pretrained, so --save_model can't write it; leave save_model out and save"
            " result.model yourself"
        )
    if hindrance := _shared(model) or _built_by_hand(model):
        raise ModelError(f"{name} in memory {hindrance}")
    generation = getattr(model, "generation_config", None)
    if hasattr(model, "can_generate") and model.can_generate():
        if generation is None:
            raise ModelError(
                f"{name} in memory has no generation_config, without which save_pretrained fails; set one, such as"
                " model.generation_config = transformers.GenerationConfig(), or leave out save_model"
            )
        try:
            generation.validate(strict=True)
        except ValueError as error:
            first = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{name} in memory has a generation_config that save_pretrained refuses ({first}); mend it, such as"
                " model.generation_config = type(model.generation_config)(), or leave out save_model"
            ) from error
    try:
        with tempfile.TemporaryDirectory() as place:
            copy.deepcopy(model.config).save_pretrained(place)
    except OSError:  # of the place, which says nothing of the model
        pass
    except Exception as error:  # of the library's own rules, and of those of each family
        raise ModelError(
            f"{name} in memory has a config that save_pretrained refuses ({' '.join(str(error).split())[:240]}); mend"
            " the entry, or leave out save_model"
        ) from error


def _made_up(model: nn.Module) -> str | None:
    """A layer whose weight is computed from other tensors, so that zeros in it would not stay."""
    for path, part in model.named_modules():
        if isinstance(part, (nn.Linear, nn.Embedding)) and not isinstance(part._parameters.get("weight"), Tensor):
            return (
                f"computes the weight of {path} from other tensors (torch.nn.utils.prune, weight_norm or another"
                " parametrisation); make it plain first, with torch.nn.utils.prune.remove or"
                " torch.nn.utils.parametrize.remove_parametrizations"
            )
    return None


def _built_by_hand(model: Any) -> str | None:
    """What of a model is not as its configuration describes it: from_pretrained would not load that again."""
    try:
        with init_empty_weights():
            described = type(model)._from_config(copy.deepcopy(model.config))
    except Exception:  # of a class that is built in its own way: then nobody can tell
        return None
    there, meant = _shapes(model), _shapes(described)
    for name in (*meant, *there):
        if there.get(name) != meant.get(name):
            what = "is not there" if name not in there else "is more" if name not in meant else "has another shape"
            return (
                f"was changed by hand: by its config, {name} {what}, and from_pretrained would not load what"
                " save_pretrained writes; mend model.config, or leave out save_model"
            )
    return None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters(remove_duplicate=False)}


def _shared(model: Any) -> str | None:
    """One tensor under several names, of which the model's class says nothing."""
    names, known = dict[int, str](), getattr(model, "all_tied_weights_keys", {})
    told = {*known, *known.values()}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        other = names.setdefault(id(tensor), name)
        if other != name and not {name, other} <= told:
            return (
                f"has one tensor in two places, {other} and {name}, which save_pretrained refuses; give each its own"
                " (nn.Parameter(tensor.clone())), or leave out save_model"
            )
    return None


def _adapter(model: nn.Module) -> str | None:
    wrapped = type(model).__module__.split(".")[0] == "peft"
    inside = any(type(part).__module__.split(".")[0] == "peft" for part in model.modules())
    if wrapped or inside or getattr(model, "_hf_peft_config_loaded", False):
        return (
            "holds a PEFT adapter, and save_pretrained would write the adapter alone, without a single pruned weight."
            " Merge it first: model = peft_model.merge_and_unload()"
        )
    return None


def _wrapper(model: nn.Module) -> str | None:
    """A module around the model, which hides its configuration and saves nothing."""
    if hasattr(getattr(model, "config", None), "get_text_config") and "_orig_mod" not in model._modules:
        return None
    inner = next((path for path, part in model.named_modules() if path and isinstance(part, PreTrainedModel)), None)
    if inner is None:
        return "is no transformers model: it has no configuration; load one with AutoModelForCausalLM.from_pretrained"
    return f"is a wrapper around a model; give the model itself: model.{inner}"


def _quantised(model: nn.Module) -> str | None:
    method = _method_of(model)
    for path, part in model.named_modules():
        if isinstance(getattr(part, "weight", None), MethodType):  # as torch.ao packs them
            method = method or f"{path} is a {type(part).__name__}"
        for name, tensor in _own(part):
            whole = f"{path}.{name}" if path else name
            kind = type(tensor.data)
            if kind.__module__.startswith(SHARDED):
                return f"is spread over processes ({whole} is a {kind.__name__}); gather it first, {REMEDY}"
            if kind is not Tensor or tensor.dtype.itemsize < 2 or name == "qweight":
                word = kind.__name__ if kind is not Tensor else str(tensor.dtype).removeprefix("torch.")
                method = method or f"{whole} is {word} in a {type(part).__name__}"
    if method is None:
        return None
    return (
        f"holds quantised weights ({method}), which can't be pruned; prune the original float16, bfloat16 or float32"
        " model, or model.dequantize() first where its library can do that"
    )


def _own(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own weights; packed ones are buffers in some libraries."""
    yield from part.named_parameters(recurse=False)
    yield from ((name, tensor) for name, tensor in part.named_buffers(recurse=False) if name in ("qweight", "weight"))


def _method_of(model: Any) -> str | None:
    quantizer = getattr(model, "hf_quantizer", None)
    found = getattr(quantizer, "quantization_config", None)
    found = found or getattr(getattr(model, "config", None), "quantization_config", None)
    if not found or getattr(model, "is_quantized", None) is False:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(method, "value", method) or type(found).__name__)


def _elsewhere(model: nn.Module) -> str | None:
    """Weights that are not where the model computes: on the meta device, or moved there and back by hooks."""
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            return f"keeps {path} elsewhere (offloaded, or never loaded); load it without device_map, {REMEDY}"
    for path, part in model.named_modules():
        hook = getattr(part, "_hf_hook", None)
        if getattr(hook, "offload", False):
            return f"keeps the weights of {path or 'its modules'} elsewhere; load it without offloading, {REMEDY}"
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        return f"lies on several devices ({', '.join(devices)}); load it onto one, {REMEDY}"
    return None


def _no_head(model: Any) -> str | None:
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        head = None
    if head is None:
        return (
            "has no language-model head, so it predicts no tokens; load it with"
            " AutoModelForCausalLM.from_pretrained instead of AutoModel"
        )
    return None


def _masked(model: nn.Module) -> str | None:
    """Such models look at the tokens behind the one that they predict."""
    kind: Any = type(getattr(model, "config", None))
    fills, writes = (mapping.get(kind, None) for mapping in (MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING))
    if type(model) is fills and fills is not writes:
        return (
            "fills in masked tokens and sees those that follow, so it is no causal language model and has no"
            " perplexity; autoprune prunes models that AutoModelForCausalLM loads"
        )
    return None


def _inference(model: nn.Module) -> str | None:
    if (tensor := next((name for name, p in model.named_parameters() if p.is_inference()), None)) is not None:
        return (
            f"was made under torch.inference_mode(), after which torch lets nobody change or train {tensor}; load it"
            " outside of it"
        )
    return None
