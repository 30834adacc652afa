"""What a run has finished, kept beside its shards, so that `--resume` can go on at the last finished block."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from autoprune.core.sparsity import Target, target_from
from autoprune.errors import OutputError
from autoprune.events import BlockResult
from autoprune.results.codec import dump_json, first_difference, to_jsonable
from autoprune.results.outcome import LayerOutcome, SubBlockOutcome
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.manifest import FORMAT
from autoprune.storage.result import JOURNAL, STATE, Workplace
from autoprune.storage.shards import CheckpointWriter
from autoprune.storage.weight_files import read_json


@dataclass
class Notebook:
    """Notes of one run in its workplace: what it depends on, and what it found on the way."""

    workplace: Workplace
    about: dict[str, Any]

    def begin(self) -> None:
        """A new run: notes what it depends on."""
        self.workplace.write(STATE, dump_json({"format": FORMAT} | self.about))

    def goes_on(self) -> bool:
        """Whether an unfinished run has noted anything; if not, this one begins.

        Raises: OutputError if the unfinished run was another one, quoting the first thing that differs.
        """
        try:
            before = dict(json.loads((self.workplace.path / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self.begin()  # killed before anything was noted: there is nothing to go on from
            return False
        if (number := before.pop("format", 1)) != FORMAT:
            raise OutputError(
                f"--resume: the unfinished run beside {self.workplace.target} is of another version of autoprune (its"
                f" journal is of format {number}, and this version goes on with format {FORMAT}); finish it with that"
                " version, or start again with --overwrite"
            )
        now = json.loads(dump_json(self.about))
        if difference := first_difference(before, now):
            raise OutputError(
                f"--resume: the unfinished run beside {self.workplace.target} was another one: {difference}; "
                "repeat its command, or start again with --overwrite"
            )
        return True

    def note(self, name: str, found: Any) -> None:
        """Notes plain values under a name, for the run that goes on with this one."""
        self.workplace.write(f"{JOURNAL}{name}.json", dump_json(found))

    def noted(self, name: str) -> Any:
        """What ``note`` was given; None if nothing was."""
        return read_json(self.workplace.path / f"{JOURNAL}{name}.json")


@dataclass
class Journal(Notebook):
    """The record of one pruning run: what it depends on, and every block's outcome.

    Earlier passes' blocks are kept too (``journal-pass-0-block-00003.safetensors``) when a later pass follows on
    hidden states of its own: to resume, every stream runs again through the blocks that it saw.
    """

    writer: CheckpointWriter

    def resume(self, blocks: int) -> list[BlockResult]:
        """The outcomes of the blocks that are finished, in order from block 0.

        Raises: OutputError if the unfinished run was another one, quoting the first thing that differs.
        """
        finished: list[BlockResult] = []
        for index in range(blocks if self.goes_on() else 0):
            result = self._read(index)
            if result is None or not self.writer.has_block(index):
                break
            finished.append(result)
        return finished

    def finish(self, result: BlockResult) -> None:
        """Notes a block whose shard is on disk."""
        self.workplace.write(_record(result.block), dump_json(to_jsonable(result)))

    def keep_survey(self, targets: Mapping[str, Target], notes: Mapping[str, Any]) -> None:
        """Notes what the steps' surveys found, for they are not made again."""
        words = {name: {"kind": type(target).__name__, **vars(target)} for name, target in targets.items()}
        self.workplace.write(SURVEY, dump_json({"targets": words, "notes": notes}))

    def survey(self) -> tuple[Mapping[str, Target], dict[str, Any]] | None:
        """What ``keep_survey`` was given; None if it was not."""
        try:
            raw = json.loads((self.workplace.path / SURVEY).read_text(encoding="utf-8"))
        except OSError:
            return None
        return {name: target_from(**words) for name, words in raw["targets"].items()}, raw["notes"]

    def keep_pass(self, number: int, index: int, tensors: dict[str, Tensor]) -> None:
        """Keeps a block as an earlier pass left it."""
        self.workplace.save(_pass(number, index), tensors)

    def pass_block(self, number: int, index: int) -> dict[str, Tensor]:
        """A block as an earlier pass left it, by stored names."""
        return Checkpoint.one(self.workplace.path / _pass(number, index))

    def keep_finished(self, index: int, tensors: dict[str, Tensor]) -> None:
        """Keeps a block as steps on the whole model left it, beside the one that the walk wrote."""
        self.workplace.save(_whole(index), tensors)

    def mark_finished(self, notes: Mapping[str, Mapping[str, float]]) -> None:
        """All blocks are kept: from now on they count, and the walk's don't."""
        self.workplace.write(WHOLE, dump_json({"notes": notes}))

    def finished(self) -> dict[str, dict[str, float]] | None:
        """What ``mark_finished`` was given; None if it was not."""
        try:
            return dict(json.loads((self.workplace.path / WHOLE).read_text(encoding="utf-8"))["notes"])
        except OSError:
            return None

    def put_finished(self) -> None:
        """Writes the blocks that were kept; may be stopped and repeated."""
        for path in sorted(self.workplace.path.glob(f"{JOURNAL}whole-block-*.safetensors")):
            self.writer.write_block(int(path.stem.rpartition("-")[2]), Checkpoint.one(path))
            path.unlink()

    def _read(self, index: int) -> BlockResult | None:
        try:
            raw = json.loads((self.workplace.path / _record(index)).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        layers = tuple(LayerOutcome(**layer) for layer in raw["layers"])
        return BlockResult(
            raw["block"],
            raw["blocks"],
            raw["name"],
            layers,
            tuple(SubBlockOutcome(**sub) for sub in raw["sub_blocks"]),
            tuple(raw.get("trained", ())),
        )


SURVEY = f"{JOURNAL}survey.json"
WHOLE = f"{JOURNAL}whole.json"


def _record(index: int) -> str:
    return f"{JOURNAL}block-{index:05d}.json"


def _whole(index: int) -> str:
    return f"{JOURNAL}whole-block-{index:05d}.safetensors"


def _pass(number: int, index: int) -> str:
    return f"{JOURNAL}pass-{number}-block-{index:05d}.safetensors"
