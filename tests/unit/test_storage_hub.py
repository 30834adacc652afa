"""Models from the hub: only what is needed is fetched, and what was fetched is enough without a network."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import ones

from autoprune.errors import ModelError
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.locate import locate
from autoprune.storage.weight_files import INDEX, SINGLE

SHA, OTHER = "a" * 40, "b" * 40  # of main, and of a branch
BESIDE = ["config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "modeling_mine.py"]
FOLDERS = ["additional_chat_templates/tool.jinja", "code/layers.py"]
NEVER = [
    "consolidated.safetensors",
    "original/model-00001.safetensors",
    "onnx/model.onnx",
    "onnx/config.json",
    "pytorch_model.bin",
    "model.fp16.safetensors",
    "adapter_model.safetensors",
]


class Repo:
    """A stand-in for the hub with one repository; ``got`` are the files that were fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.got = folder, list[str]()
        self.branches = {"main": SHA, SHA: SHA}
        repo = self

        class Hub(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET(head=True)

            def do_GET(self, head: bool = False) -> None:
                body, more = repo.answer(self.path.split("?")[0], head)
                self.send_response(404 if "X-Error-Code" in more else 200)
                for key, value in {"Content-Length": str(len(body)), **more}.items():
                    self.send_header(key, value)
                self.end_headers()
                if not head:
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()

    def answer(self, path: str, head: bool) -> tuple[bytes, dict[str, str]]:
        files = {str(f.relative_to(self.folder)): f for f in sorted(self.folder.rglob("*")) if f.is_file()}
        digest = {name: hashlib.sha1(f.read_bytes()).hexdigest() for name, f in files.items()}
        after = re.split("/(?:resolve|tree|revision)/", path)[1:]
        wanted, _, name = after[0].partition("/") if after else ("main", "", "")
        if wanted not in self.branches:
            return b"", {"X-Error-Code": "RevisionNotFound"}
        commit = self.branches[wanted]
        if "/resolve/" in path:
            self.got += [] if head else [name]
            return files[name].read_bytes(), {"ETag": f'"{digest[name]}"', "X-Repo-Commit": commit}
        if "/tree/" in path:
            found = [{"type": "file", "path": n, "size": f.stat().st_size, "oid": digest[n]} for n, f in files.items()]
            return json.dumps(found).encode(), {}
        about = {"id": "org/tiny", "modelId": "org/tiny", "sha": commit, "private": False, "tags": [], "downloads": 0}
        return json.dumps({**about, "siblings": [{"rfilename": name} for name in files]}).encode(), {}


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repo]:
    for name in (*BESIDE, *FOLDERS, *NEVER):
        path = tmp_path / "repo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"name": name}) if name.endswith(".json") else name)
    save_file({"w": ones(2)}, tmp_path / "repo" / SINGLE)
    made = Repo(tmp_path / "repo")
    yield made
    made.stop()


def ask(repo: Repo, cache: Path, *revision: str) -> subprocess.CompletedProcess[str]:
    """``locate`` in a process of its own: where the hub is, its library asks once, when it is imported."""
    program = (
        "import sys; from autoprune.storage.locate import locate; from autoprune.errors import ModelError\n"
        "try: print(locate('org/tiny', *sys.argv[1:]))\n"
        "except ModelError as error: sys.exit(str(error))"
    )
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{repo.server.server_port}", "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", program, str(cache), *revision],
        capture_output=True,
        text=True,
        env={**os.environ, **hub, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(cache)},
    )


def fetch(repo: Repo, cache: Path, *revision: str) -> Path:
    done = ask(repo, cache, *revision)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def test_copies_of_the_weights_are_left_where_they_are(repo: Repo, tmp_path: Path) -> None:
    found = fetch(repo, tmp_path / "cache")
    assert sorted(set(repo.got)) == sorted([*BESIDE, *FOLDERS, SINGLE])
    assert Checkpoint.open(found).shards == {"w": SINGLE}


def test_shards_are_those_that_the_index_names(repo: Repo, tmp_path: Path) -> None:
    (tmp_path / "repo" / SINGLE).unlink()
    named = {"w": "model-00001-of-00001.safetensors", "v": "more/model-00002.safetensors"}
    (tmp_path / "repo/more").mkdir()
    for tensor, name in (*named.items(), ("u", "model-00002-of-00009.safetensors"), ("u", "more/x.safetensors")):
        save_file({tensor: ones(2)}, tmp_path / "repo" / name)
    (tmp_path / "repo" / INDEX).write_text(json.dumps({"weight_map": named}))
    found = fetch(repo, tmp_path / "cache")
    assert {name for name in repo.got if "safetensors" in name} == {INDEX, *named.values()}
    assert Checkpoint.open(found).shards == named


def test_a_named_weight_file_is_fetched(repo: Repo, tmp_path: Path) -> None:
    (tmp_path / "repo/config.json").write_text(json.dumps({"transformers_weights": "consolidated.safetensors"}))
    fetch(repo, tmp_path / "cache")
    assert {name for name in repo.got if "safetensors" in name} == {"consolidated.safetensors"}


def test_what_was_fetched_is_enough_without_a_network(repo: Repo, tmp_path: Path) -> None:
    """Even if others have fetched only some of the files."""
    first = fetch(repo, tmp_path / "cache")
    (first / "merges.txt").unlink()
    repo.stop()
    assert fetch(repo, tmp_path / "cache") == first


def test_a_revision_is_fetched_and_found_again_without_a_network(repo: Repo, tmp_path: Path) -> None:
    repo.branches |= {"trial": OTHER, OTHER: OTHER}
    assert fetch(repo, tmp_path / "cache").name == SHA
    assert fetch(repo, tmp_path / "cache", "trial").name == OTHER
    gone = ask(repo, tmp_path / "cache", "triall")
    assert "--revision triall: the hub has org/tiny, and no branch, tag or commit of that name" in gone.stderr
    repo.stop()
    for asked, commit in (("trial", OTHER), (OTHER, OTHER), ("main", SHA)):
        assert fetch(repo, tmp_path / "cache", asked).name == commit
    missing = ask(repo, tmp_path / "cache", "triall")
    assert "org/tiny was fetched before, but not this revision of it" in missing.stderr


@pytest.mark.parametrize("word", ["demo", "."])
def test_what_is_on_this_machine_has_no_revisions(word: str) -> None:
    with pytest.raises(ModelError, match="--revision main: only models on the hub have revisions"):
        locate(word, None, "main")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_cache_that_can_not_be_written_is_named(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(*_: object) -> Path:
        raise OSError(number, "No room", "/cache/blobs/x")

    monkeypatch.setattr("autoprune.storage.locate._fetch", full)
    with pytest.raises(ModelError, match=r"can't write to /cache/blobs/x \(No room\).*--cache_dir or HF_HOME"):
        locate("org/tiny")
