"""Flags come from the recipe's dataclasses, mean what they mean there, and are read before torch."""

from __future__ import annotations

import dataclasses
import re

import pytest

from autoprune.cli.flags import Parser, add_flags, given
from autoprune.cli.main import main
from autoprune.errors import RecipeError
from autoprune.recipe.commands import Command
from autoprune.recipe.recipe import groups, recipe_from_flat

NAMES = {field.name for group in groups() for field in dataclasses.fields(group.type)}
# Issue 2, point 2: the flags of the classic entry point.
CLASSIC = {
    "model",
    "prune_method",
    "sparsity_ratio",
    "sparsity_type",
    "prune_barber",
    "prune_granularity",
    "threshold",
    "prune_metric",
    "retain_reconstruction",
    "save_model",
    "save_ppl",
    "save_zeroshot",
    "delete",
    "seed",
    "nsamples",
    "seqlen",
    "cache_dir",
    "datasets_cache_dir",
    "calibration_data",
    "eval_data",
    "dtype",
    "device",
    "ignore",
}


def parser(**options: object) -> Parser:
    made = Parser(prog="main.py", allow_abbrev=False)
    add_flags(made, **options)  # type: ignore[arg-type]
    return made


def read(line: str) -> dict[str, object]:
    return given(parser().parse_args(line.split()))


def test_every_option_is_a_flag_and_every_flag_an_option() -> None:
    flags = {action.dest for action in parser()._actions} - {"help"}
    assert flags == NAMES
    assert CLASSIC <= NAMES


def test_only_what_was_given_is_passed_on() -> None:
    assert read("--model m") == {"model": "m"}
    line = "--model m --sparsity_ratio .5 --nsamples 7 --quiet --ignore a --ignore b,c --eval_data x,y --seed -1"
    expected = {
        "sparsity_ratio": 0.5,
        "nsamples": 7,
        "quiet": True,
        "ignore": ("a", "b,c"),
        "eval_data": ("x", "y"),
        "seed": -1,
    }
    assert read(line) == {"model": "m", **expected}


def test_flags_and_python_make_the_same_recipe() -> None:
    flags = recipe_from_flat(
        read("--model m --sparsity_type 2:4 --prune_barber --threshold 0.1 --eval_data x,y --device cpu")
    )
    assert flags == recipe_from_flat(
        {
            "model": "m",
            "sparsity_type": "2:4",
            "prune_barber": True,
            "threshold": 0.1,
            "eval_data": ["x", "y"],
            "device": "cpu",
        }
    )


def test_help_shows_every_flag_its_choices_and_its_default() -> None:
    text = " ".join(parser().format_help().split())
    assert all(f"--{name}" in text for name in NAMES)
    for part in (
        "{block,layer,output1,input1}",
        "{WD,W,D}",
        "{auto,float32,bfloat16,float16}",
        "(default wikitext2,ptb,c4)",
        "(default 128)",
        "90 % of",
    ):
        assert part in text, part
    assert "SUPPRESS" not in text
    assert "None" not in text


def test_part_of_the_groups_and_a_positional_model() -> None:
    made = parser(command=Command("some", ("model", "run"), without=()), positional="model")
    assert given(made.parse_args(["m", "--quiet"])) == {"model": "m", "quiet": True}
    with pytest.raises(RecipeError, match="unrecognized arguments: --seed"):
        made.parse_args(["m", "--seed", "1"])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--model",
        "--model m --seed x",
        "--model m --sparsity_ratio 1e999",
        "--model m --dtype f",
        "--model m --quit",
        "--model m n",
    ],
)
def test_wrong_flags_are_errors_of_the_user(line: str) -> None:
    with pytest.raises(RecipeError, match=r"`main\.py --help` lists the flags"):
        read(line)


@pytest.mark.parametrize(
    ("word", "meant"),
    [("--sparsity-ratio", "--sparsity_ratio"), ("--trheshold", "--threshold"), ("--step", "--steps")],
)
def test_misspelt_flags_are_told_what_they_may_have_been(word: str, meant: str) -> None:
    parser = Parser(allow_abbrev=False)
    add_flags(parser)
    with pytest.raises(RecipeError, match=f"did you mean {meant}\\?"):
        parser.parse_args(["--model", "m", word, "0.5"])


def test_a_flag_of_another_command_is_not_called_misspelt() -> None:
    parser = Parser(prog="autoprune eval", allow_abbrev=False)
    add_flags(parser, Command("eval", ("evaluation",), without=("compare",)))
    with pytest.raises(RecipeError, match=r"unrecognized arguments: --compare \(a flag of other commands\)"):
        parser.parse_args(["--compare"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("prun demo", r"COMMAND 'prun' is unknown \(did you mean prune\?\); choose from .*`autoprune --help`"),
        ("prune m --prune_granularity blok", r"--prune_granularity 'blok' is unknown \(did you mean block\?\)"),
        ("prune m --sparsity-ratio 0.5", r"did you mean --sparsity_ratio\?\); `autoprune prune --help`"),
        ("shrink m out --block 2", r"did you mean --blocks\?\); `autoprune shrink --help`"),
        ("speed m --round 9", r"did you mean --rounds\?"),
        ("speed m --eval_data x", r"a flag of other commands\); `autoprune speed --help`"),
        ("report x --format markdwn", r"--format 'markdwn' is unknown; choose from md, csv, latex, html"),
    ],
)
def test_every_command_knows_its_own_flags_and_words(line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert re.search(says, capsys.readouterr().err)


def test_an_unknown_step_is_told_what_it_may_have_been() -> None:
    with pytest.raises(RecipeError, match=r"--steps 'wnda' is unknown \(did you mean wanda\?\)"):
        recipe_from_flat({"model": "m", "sparsity": "2:4", "steps": "wnda"})


@pytest.mark.parametrize("width", ["60", "80"])
@pytest.mark.parametrize("command", ["", "prune", "eval", "compare", "shrink", "speed", "bench"])
def test_help_begins_with_an_example_and_fits(
    command: str, width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "for example:"
    assert lines[1].startswith(f"  autoprune {command}".rstrip())
    assert any(line.startswith("usage: ") for line in lines[:6])
    assert max(map(len, lines)) <= int(width)
    if command == "prune":
        assert lines.count("") < 40 and "usage: autoprune prune [MODEL] [OUT] [FLAGS]" in lines
