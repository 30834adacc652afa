"""A trained model, real texts and real task sets, where the folder beside the checkout has them: our numbers are those
of plain programs.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

import autoprune

SAMPLES: int | None = 10  # of every task; None for all
CHARACTERS: int | None = 60_000  # of WikiText-2; None for all
# As lm-evaluation-harness's own tasks, but for where their data lies.
TASKS = {
    "arc_easy": (
        """
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices.label.index(answerKey)}}"
doc_to_choice: "{{choices.text}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
    ),
    "boolq": (
        """
doc_to_text: "{{passage}}\\nQuestion: {{question}}?\\nAnswer:"
doc_to_target: label
doc_to_choice: ["no", "yes"]
metric_list: [{metric: acc}]
"""
    ),
    "rte": (
        """
doc_to_text: "{{sentence1}}\\nQuestion: {{sentence2}} True or False?\\nAnswer:"
doc_to_target: label
doc_to_choice: ["True", "False"]
metric_list: [{metric: acc}]
"""
    ),
    "winogrande": (
        """
doc_to_text: !function preprocess_winogrande.doc_to_text
doc_to_target: !function preprocess_winogrande.doc_to_target
doc_to_choice: !function preprocess_winogrande.doc_to_choice
metric_list: [{metric: acc}]
"""
    ),
}


@pytest.fixture(scope="module")
def realdata(shared: Path) -> Path:
    """The folder, or no test."""
    if not (shared / "realdata").is_dir():
        pytest.skip("../shared/realdata is not here")
    return shared / "realdata"


def write_tasks(folder: Path, realdata: Path) -> Path:
    """The four task sets as YAML files for ``--tasks_path``."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    shutil.copy(Path(spec.submodule_search_locations[0]) / "tasks/winogrande/preprocess_winogrande.py", folder)
    for name, form in TASKS.items():
        data = (
            f"data_files: {{validation: {realdata / 'tasks' / name / 'validation.jsonl'}}}, cache_dir:"
            f" {folder / 'cache'}"
        )
        head = (
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{{data}}}\noutput_type:"
            " multiple_choice\nvalidation_split: validation"
        )
        (folder / f"{name}.yaml").write_text(f"{head}{form}metadata: {{version: 1.0}}\n", encoding="utf-8")
    return folder


@pytest.mark.filterwarnings("ignore")  # the harness and the datasets library warn about themselves
def test_accuracies_are_those_of_the_harness(realdata: Path, tmp_path: Path) -> None:
    """To the last digit, on the checkpoint that was just written."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    folder = write_tasks(tmp_path, realdata)
    options: dict[str, Any] = {
        "tasks": list(TASKS),
        "tasks_path": folder,
        "limit": SAMPLES,
        "save_zeroshot": tmp_path / "out",
        "save_model": tmp_path / "m",
    }
    row = autoprune.prune(realdata / "stories260K", prune_method="magnitude", sparsity_ratio=0.5, **options).row
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    model = {"model": "hf", "model_args": f"pretrained={tmp_path / 'm'}", "device": "cpu"}
    raw = lm_eval.simple_evaluate(**model, tasks=list(TASKS), task_manager=manager, limit=SAMPLES)["results"]
    assert row.zeroshot is not None
    assert [task.task for task in row.zeroshot.tasks] == list(TASKS)
    for task in row.zeroshot.tasks:
        assert task.metrics == {metric: raw[task.task][f"{metric},none"] for metric in task.metrics}
        assert task.errors == {metric: raw[task.task][f"{metric}_stderr,none"] for metric in task.errors}


@torch.no_grad()
def plain_perplexity(directory: Path, text: str, seqlen: int) -> float:
    """The papers' protocol, written down once more without any of the project's code."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    losses = []
    for start in range(0, len(ids) - seqlen + 1, seqlen):
        window = ids[start : start + seqlen]
        logits = model(input_ids=window[None], use_cache=False).logits[0]
        losses.append(functional.cross_entropy(logits[:-1], window[1:]))
    return math.exp(torch.stack(losses).double().mean())


def test_perplexity_is_that_of_a_plain_loop(realdata: Path, tmp_path: Path) -> None:
    """On the beginning of WikiText-2's test text. In memory and streamed."""
    text = (realdata / "text/wikitext2/test.joined.txt").read_text(encoding="utf-8")[:CHARACTERS]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    plain = plain_perplexity(realdata / "stories260K", text, 512)
    (ours,) = autoprune.evaluate(realdata / "stories260K", eval_data=tmp_path / "text.txt", seqlen=512)
    assert ours.perplexity == pytest.approx(plain, rel=1e-6)
    size = len(text.encode()) * ours.tokens / ours.provenance["tokens"]
    assert ours.provenance["bits_per_byte"] == pytest.approx(
        math.log2(ours.perplexity) * ours.windows * 511 / size, rel=0.02
    )


PUBLISHED = [  # of the authors' programs, on the recorded calibration tokens
    ({"prune_method": "magnitude"}, 41.9),
    ({"prune_method": "wanda"}, 18.4),
    ({"prune_method": "sparsegpt"}, 18.8),
    ({"prune_method": "wanda", "prune_barber": True, "prune_granularity": "block", "threshold": 0.1}, 13.2),
    ({"prune_method": "wanda", "prune_barber": True, "prune_granularity": "layer", "threshold": 0.1}, 14.5),
    ({"prune_method": "wanda", "prune_barber": True, "prune_granularity": "output1", "threshold": 0.1}, 17.5),
]


@pytest.fixture(scope="module")
def last_stories(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 64 windows of 128 tokens of the last 150 stories joined by newlines."""
    lines = (realdata / "text/tinystories/stories.jsonl").read_text(encoding="utf-8").splitlines()[-150:]
    text = "\n".join(next(iter(json.loads(line).values())) for line in lines)
    ids = AutoTokenizer.from_pretrained(realdata / "stories260K")(text, verbose=False)["input_ids"][: 64 * 128]
    path = tmp_path_factory.mktemp("stories") / "last.safetensors"
    save_file({"input_ids": torch.tensor(ids).view(64, 128)}, path)
    return path


@pytest.mark.parametrize(
    ("options", "published"),
    [({"sparsity_ratio": 0}, 4.24), *PUBLISHED],
    ids=lambda value: str(value) if isinstance(value, float) else "",
)
def test_perplexities_are_those_of_the_authors_programs(
    realdata: Path, shared: Path, last_stories: Path, options: dict[str, Any], published: float
) -> None:
    texts = {
        "calibration_data": shared / "goldens/stories260K/calibration.safetensors",
        "eval_data": last_stories,
        "nsamples": 32,
        "seqlen": 128,
    }
    result = autoprune.prune(realdata / "stories260K", **{"sparsity_ratio": 0.5, **options, **texts})
    assert result.perplexity["last.safetensors"] == pytest.approx(published, rel=0.02)
