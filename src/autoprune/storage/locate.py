"""From the user's word for a model to a directory on disk."""

from __future__ import annotations

from pathlib import Path

from autoprune.errors import ModelError

DEMO = Path(__file__).resolve().parent.parent / "demo"  # the model and the texts that the project ships
PATTERNS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py"]


def locate(word: str, cache_dir: str | None = None) -> Path:
    """The directory of a model: ``demo``, a local directory, or a hub id, which is fetched into the cache; or a local
    GGUF file.

    Raises: ModelError saying what was looked for and what to do.
    """
    if not word:
        raise ModelError("--model is missing: give a hub id, a local directory, or `demo`")
    if word == "demo":
        return DEMO
    path = Path(word).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.exists():
        raise ModelError(f"--model {word}: this is a file; give the directory that holds config.json and the weights")
    if word.startswith((".", "/", "~")) or word.count("/") > 1:
        raise ModelError(f"--model {word}: there is no such directory")
    return _download(word, cache_dir)


def _download(repo: str, cache_dir: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    advice = f"--model {repo}: there is no such local directory, and the hub"
    try:
        return Path(snapshot_download(repo, cache_dir=cache_dir, allow_patterns=PATTERNS))
    except GatedRepoError as error:
        raise ModelError(
            f"{advice} asks for permission: accept the model's terms on its page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{advice} knows no model of that name; check the spelling, or log in with `hf auth login` if it is"
            " private"
        ) from error
    except HFValidationError as error:
        raise ModelError(
            f"{advice} can't have a model of that name; give an id such as huggyllama/llama-7b"
        ) from error
    except (
        Exception
    ) as error:  # LocalEntryNotFoundError, or one of the HTTP library's own, which changes between its versions
        raise ModelError(
            f"{advice} can't be reached ({type(error).__name__}); download the model elsewhere and give its directory,"
            " or use the model shipped here: --model demo"
        ) from error
