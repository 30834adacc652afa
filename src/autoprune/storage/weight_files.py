"""Which files of a directory hold the weights: those that ``from_pretrained`` would read, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

from safetensors import SafetensorError, safe_open

from autoprune.errors import ModelError
from autoprune.recipe.checks import may_be_a_path

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
NAMED = "transformers_weights"  # the entry of config.json that names another file than these two
CONVERSION = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer;"
    " AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(NEW_DIR);"
    " AutoTokenizer.from_pretrained(MODEL).save_pretrained(NEW_DIR)"
)
_SHARD = re.compile(r"model-\d+-of-(\d+)\.safetensors")


def weight_files(directory: Path) -> dict[str, list[str]]:
    """The weight files' names in the order in which they are read, each with the tensors in it.

    Of a tensor that is in two of them, the later one counts.
    Raises: ModelError naming the file that is missing, truncated or of the wrong kind.
    """
    found = _found(directory)
    if not found.endswith(".index.json"):
        return {found: tensors_in(directory / found)}
    index = _read_index(directory / found)
    names = sorted(set(index.values()))
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise ModelError(
            f"{directory}: shard {missing[0]} is missing ({len(missing)} of {len(names)}); the download was not"
            " finished, fetch it again"
        )
    files = {name: tensors_in(directory / name) for name in names}
    held = {tensor for tensors in files.values() for tensor in tensors}
    if absent := [name for name in index if name not in held]:
        raise ModelError(
            f"{directory / found} says that {absent[0]} is in {index[absent[0]]}, but it is not; fetch the checkpoint"
            " again"
        )
    return files


def files_wanted(directory: Path, there: Collection[str]) -> list[str]:
    """The names of a model's weight files, of those that are to be had; ``directory`` holds its small files already.

    Raises: ModelError if its index is damaged.
    """
    found = named_weights(directory) or next((name for name in (SINGLE, INDEX) if name in there), None)
    if found is None:
        return []
    if found.endswith(".index.json"):
        return sorted(set(_read_index(directory / found).values()))
    return [found]


def has_weights(directory: Path) -> bool:
    """Whether any weights are here, readable or not; without them a directory only describes a model."""
    return any(directory.glob("*.safetensors")) or any(directory.glob("*.bin")) or (directory / INDEX).is_file()


def read_json(path: Path) -> Any:
    """A JSON file, None if it can't be read: whoever needs what is in it says so."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def named_weights(directory: Path) -> str | None:
    """The weight file that config.json names. Raises: ModelError if it is none of this directory."""
    config = read_json(directory / "config.json")
    name = config.get(NAMED) if isinstance(config, dict) else None
    if name is None:
        return None
    if not _is_inside(name) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise ModelError(
            f"{directory / 'config.json'}: {NAMED} is {str(name)[:80]!r}, which is no safetensors file of this"
            " directory; mend or remove the entry"
        )
    return str(name)


def adapter_files(directory: Path) -> list[str]:
    """The files of a PEFT adapter that lies in a directory."""
    return sorted(path.name for kind in ("config", "model") for path in directory.glob(f"adapter_{kind}.*"))


def refuse_adapter(directory: Path) -> None:
    """Raises: ModelError if the directory holds an adapter and no model, or one that transformers would apply to the
    model beside it, because peft is installed.
    """
    if not (directory / "adapter_config.json").is_file():
        return
    beside = (directory / "config.json").is_file()
    if beside and find_spec("peft") is None:
        return
    found = read_json(directory / "adapter_config.json")
    base = found.get("base_model_name_or_path", "BASE") if isinstance(found, dict) else "BASE"
    what = (
        "a PEFT adapter beside the weights, which from_pretrained applies to them"
        if beside
        else "a PEFT adapter (adapter_config.json), which is no model of its own"
    )
    raise ModelError(
        f"{directory} holds {what}. Merge it once, in"
        " Python: from peft import AutoPeftModelForCausalLM; from transformers import AutoTokenizer;"
        f" AutoPeftModelForCausalLM.from_pretrained({str(directory)!r}).merge_and_unload().save_pretrained(NEW_DIR);"
        f" AutoTokenizer.from_pretrained({str(base)[:200]!r}).save_pretrained(NEW_DIR). Then give NEW_DIR"
        + (", or move adapter_config.json away to prune the weights without it" if beside else "")
    )


def tensors_in(path: Path) -> list[str]:
    """The tensors of one shard. Raises: ModelError if it is truncated or no safetensors file."""
    try:
        with safe_open(path, framework="pt") as shard:
            return list(shard.keys())
    except PermissionError as error:
        raise ModelError(f"{path} may not be read ({error.strerror}); check its permissions") from error
    except RuntimeError as error:  # torch's, which is how it says that too many files are open
        if "unable to open" not in str(error):
            raise
        raise ModelError(f"{path} can't be opened ({str(error).rpartition(': ')[2]})") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is truncated or no safetensors file ({error}); fetch it again") from error


def _found(directory: Path) -> str:
    """The single file or the index, as transformers looks for them: where both are there, it reads the single one."""
    if named := named_weights(directory):
        if not (directory / named).is_file():
            raise ModelError(f"{directory}: {named}, which config.json names as {NAMED}, is missing; fetch it again")
        return named
    for name in (SINGLE, INDEX):
        if (directory / name).is_file():
            return name
        if (directory / name).is_symlink():
            raise ModelError(
                f"{directory / name} is a link to {(directory / name).readlink()}, which is not there; fetch it again"
            )
    if shards := sorted(path.name for path in directory.iterdir() if _SHARD.fullmatch(path.name)):
        raise ModelError(_no_index(directory, shards))
    if any(directory.glob("*.bin")):
        raise ModelError(
            f"{directory} holds weights as .bin files: pickles, which can run code and which autoprune does not open."
            f" Convert them once, in Python: {CONVERSION}. Then give NEW_DIR"
        )
    raise ModelError(
        f"{directory}: neither {SINGLE} nor {INDEX} is here, so there are no weights to read. From the hub only"
        f" safetensors are fetched; a model that has only .bin files there is converted once, in Python: {CONVERSION}"
    )


def _no_index(directory: Path, shards: Sequence[str]) -> str:
    wanted = int(_SHARD.fullmatch(shards[0])[1])  # type: ignore[index]  # all of them match
    return (
        f"{directory}: {len(shards)} of {wanted} shards are here ({shards[0]}, …), but not {INDEX}, which says what"
        " the model consists of; fetch that file too"
    )


def _read_index(path: Path) -> dict[str, str]:
    """Tensor -> file. Raises: ModelError if it is of another form."""
    try:
        index = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ModelError(f"{path} is no index of a sharded checkpoint ({error}); fetch it again") from error
    for tensor, name in index.items():
        if not _is_inside(name):
            raise ModelError(
                f"{path} is damaged: the file of {str(tensor)[:80]} is {str(name)[:40]!r}, which is no file of this"
                " directory; fetch it again"
            )
    if not index:
        raise ModelError(f"{path} is no index of a sharded checkpoint (it names no tensor); fetch it again")
    return index


def _is_inside(name: object) -> TypeGuard[str]:
    """Whether it may be the name of a file in the model's directory, or in a folder of it."""
    if not isinstance(name, str) or not name.strip() or not may_be_a_path(name):
        return False
    return bool(Path(name).name) and not Path(name).is_absolute() and ".." not in Path(name).parts
