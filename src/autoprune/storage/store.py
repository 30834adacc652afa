"""Where a run's weights come from and go to: a checkpoint on disk, or a model in memory."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.core.problem import LayerSolution
from autoprune.errors import AutoPruneError, ModelError
from autoprune.machine.allocator import return_what_is_free
from autoprune.model.anatomy import Anatomy, BlockAnatomy, examine
from autoprune.model.walk import Store
from autoprune.storage.ahead import ReadAhead
from autoprune.storage.applied import apply_solutions
from autoprune.storage.complete import not_loaded, unplaced
from autoprune.storage.skeleton import Skeleton
from autoprune.storage.ties import tie
from autoprune.storage.values import ValueCheck

Writer = Callable[[int, dict[str, Tensor]], None]  # block index, stored tensors
PassWriter = Callable[[int, int, dict[str, Tensor]], None]  # pass number, block index, stored tensors


class MemoryStore(Store):
    """A model that is in memory already; pruning changes it in place."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.anatomy = examine(model)
        self.device = next(self.anatomy.blocks[0].module.parameters()).device
        self.storage_dtype: torch.dtype | None = None
        self.resident = True

    @property
    def left_alone(self) -> tuple[str, ...]:
        """What lies beside the language model, such as an image encoder; it stays as it is."""
        return beside(self.anatomy)

    def embed(self, ids: Tensor) -> object:
        """Runs ids through the model without its head."""
        return run_base(self.model, ids.to(self.device))

    def logits(self, ids: Tensor) -> Tensor:
        """Runs the whole model."""
        return self.model(input_ids=ids.to(self.device), use_cache=False).logits


class CheckpointStore(Store):
    """A checkpoint on disk: one block in memory at a time, or with ``resident`` all of them, once loaded.

    Finished blocks go to the writer as they are stored; tensors that no method touched go unchanged.
    """

    def __init__(self, skeleton: Skeleton, *, resident: bool) -> None:
        self.skeleton, self.model = skeleton, skeleton.model
        self.anatomy = examine(skeleton.model)
        self.device, self.storage_dtype = skeleton.device, skeleton.storage_dtype
        self.resident = resident
        self._write: Writer | None = None
        self._keep_pass: PassWriter | None = None
        self._values: ValueCheck | None = None
        self._loaded: set[int] = set()
        self._stored: dict[str, Tensor] = {}
        self._ahead = ReadAhead(skeleton.checkpoint) if self.device.type == "cuda" and not resident else None
        self._load_outside(with_head=resident)

    def write_to(self, write: Writer, keep_pass: PassWriter) -> None:
        """From now on finished blocks are handed to ``write``, and blocks between two passes to ``keep_pass``."""
        self._write, self._keep_pass = write, keep_pass

    @contextlib.contextmanager
    def judged_by(self, values: ValueCheck) -> Iterator[None]:
        """While it lasts, ``values`` sees the stored tensors of every block that is loaded."""
        self._values = values
        try:
            yield
        finally:
            self._values = None

    @property
    def outside(self) -> list[str]:
        """Stored tensors that belong to no block: embeddings, norms, head, and whatever the model has no place for."""
        inside = tuple(f"{block.name}." for block in self.anatomy.blocks)
        return [name for name, owner in self.skeleton.owners.items() if not owner.startswith(inside)]

    @property
    def left_alone(self) -> tuple[str, ...]:
        """What lies beside the language model, such as an image encoder, or in the checkpoint alone; it stays as it
        is.

        Raises: ModelError if whole blocks are in the checkpoint alone.
        """
        return self._alone(unplaced(self.skeleton, self.anatomy.name, len(self.anatomy.blocks)))

    @property
    def recorded_alone(self) -> tuple[str, ...]:
        """The same and all other tensors that the model does not load, such as tables of positions that it computes
        itself.
        """
        return self._alone(not_loaded(self.skeleton))

    def _alone(self, extra: list[str]) -> tuple[str, ...]:
        folders = {
            name[:end]
            for name in {*self.skeleton.owners}.difference(extra)
            for end, letter in enumerate(name)
            if letter == "."
        }
        groups = Counter(_first_outside(name, folders) for name in extra)
        return (
            *beside(self.anatomy),
            *(f"{group} ({count} tensors that only the checkpoint has)" for group, count in groups.items()),
        )

    def embed(self, ids: Tensor) -> object:
        """Runs ids through the model without its head."""
        return run_base(self.model, ids.to(self.device))

    def logits(self, ids: Tensor) -> Tensor:
        """Runs the whole model; its head is loaded when it is first needed."""
        self.load_head()
        return self.model(input_ids=ids.to(self.device), use_cache=False).logits

    def load_head(self) -> None:
        """Reads the head unless it is there."""
        head = self.model.get_output_embeddings()
        if head is not None and any(p.is_meta for p in head.parameters()):
            self._load_outside(with_head=True)

    def stored_as(self, block: BlockAnatomy) -> dict[str, torch.dtype]:
        """The dtypes in which the block's parameters are stored, by their names in the block."""
        return self.skeleton.stored_as(block.name)

    def load(self, index: int) -> None:
        """Reads the block from the checkpoint unless it is there.

        Raises: ModelError if the checkpoint does not hold all of it.
        """
        if index in self._loaded:
            return
        read = self._ahead.take(index) if self._ahead else None
        self._stored = read if read is not None else self.skeleton.checkpoint.read(self._names_of(index))
        if self._values is not None:
            self._values.see(self._stored)
        self.load_stored(index, self._stored)

    def load_stored(self, index: int, stored: Mapping[str, Tensor]) -> None:
        """The block's weights are these, by their stored names."""
        block = self.anatomy.blocks[index]
        self.skeleton.fill(dict(stored))
        self.skeleton.check_filled(block.module, block.name)
        self._loaded.add(index)

    def dense_block(self, index: int) -> dict[str, Tensor]:
        """The block as the checkpoint holds it, by stored names, whatever is loaded."""
        return self.skeleton.checkpoint.read(self._names_of(index))

    def read_ahead(self, index: int) -> None:
        """Begins to read a block that will be loaded next, where that is of use."""
        if self._ahead and index not in self._loaded:
            self._ahead.begin(index, self._names_of(index))

    def passed(
        self,
        number: int,
        block: BlockAnatomy,
        solutions: Mapping[str, LayerSolution],
        others: Mapping[str, Tensor],
    ) -> None:
        """Keeps the block as an earlier pass leaves it, so that the run can be resumed."""
        if self._keep_pass is not None:
            self._keep_pass(
                number, block.index, apply_solutions(self.skeleton, block, self._stored_of(block), solutions, others)
            )

    def finish(
        self, block: BlockAnatomy, solutions: Mapping[str, LayerSolution], others: Mapping[str, Tensor]
    ) -> None:
        """Writes the block as it is stored, with the solutions in it."""
        if self._write is not None:
            self._write(block.index, apply_solutions(self.skeleton, block, self._stored_of(block), solutions, others))

    def _stored_of(self, block: BlockAnatomy) -> dict[str, Tensor]:
        """The block's tensors as the checkpoint holds them; a resident store that loaded it earlier reads them once
        more.
        """
        if not self._stored:
            self._stored = self.skeleton.checkpoint.read(self._names_of(block.index))
        return self._stored

    def _names_of(self, index: int) -> list[str]:
        return self.skeleton.stored_under(self.anatomy.blocks[index].name)

    def release(self, index: int) -> None:
        """Lets the block's weights go, unless the store is resident."""
        self._stored = {}
        if not self.resident:
            self.skeleton.empty(self.anatomy.blocks[index].module)
            self._loaded.discard(index)
            return_what_is_free()

    def is_loaded(self, index: int) -> bool:
        """Whether the block's weights are in memory."""
        return index in self._loaded

    def release_all(self) -> None:
        """Lets the weights of all blocks go."""
        for index in tuple(self._loaded):
            self.release(index)

    def _load_outside(self, *, with_head: bool) -> None:
        head = self.model.get_output_embeddings()
        skip = {id(p) for p in head.parameters()} if head is not None and not with_head else set()
        tied = {id(p) for p in self.model.get_input_embeddings().parameters()}
        state = dict(self.model.named_parameters(remove_duplicate=False))
        placed = self.model.state_dict().keys()
        missing = [n for n in self.outside if (held := state.get(self.skeleton.owners[n])) is None or held.is_meta]
        wanted = [
            n
            for n in missing
            if self.skeleton.owners[n] in placed and id(state.get(self.skeleton.owners[n])) not in skip - tied
        ]
        self.skeleton.fill(self.skeleton.checkpoint.read(wanted))
        tie(self.model)
        block_modules = {id(m) for block in self.anatomy.blocks for m in block.module.modules()}
        for name, module in self.model.named_modules():
            if id(module) not in block_modules and (with_head or module is not head):
                self._check_own(name, module)

    def _check_own(self, name: str, module: nn.Module) -> None:
        shallow = nn.Module()
        shallow._parameters, shallow._buffers = dict(module._parameters), dict(module._buffers)
        self.skeleton.check_filled(shallow, name)


def beside(anatomy: Anatomy) -> tuple[str, ...]:
    """The parts of a model that lie beside its language model, in words."""
    return tuple(f"{name} ({count:,} parameters)" for name, count in anatomy.aside)


def _first_outside(name: str, folders: Collection[str]) -> str:
    """The shortest beginning of a dotted name that is no folder of the model, with ``*`` for the numbers before its
    last word.
    """
    parts = name.split(".")
    depth = next((i for i in range(1, len(parts)) if ".".join(parts[:i]) not in folders), len(parts))
    return ".".join(["*" if part.isdigit() else part for part in parts[: depth - 1]] + [parts[depth - 1]])


def run_base(model: Any, ids: Tensor) -> object:
    """The model without its head, if it has one that can be left out.

    Raises: ModelError if it does not run on token ids alone.
    """
    base = getattr(model, "base_model", model)
    try:
        return base(input_ids=ids, use_cache=False)
    except (AutoPruneError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the model's own code does with what is missing
        raise ModelError(
            f"{type(model).__name__} does not run on token ids alone ({type(error).__name__}: {error}), so autoprune"
            " can't prune it"
        ) from error
