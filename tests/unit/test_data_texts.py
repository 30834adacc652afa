"""Sources -> documents: every kind of local file, and every error a user can cause."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from data_fixtures import refused, write_jsonl, write_parquet

from autoprune.data.texts import Corpus, parse_source, read_corpus
from autoprune.errors import DataError

FLAG = "--calibration_data"


def read(path: Path | str, purpose: Any = "calibration", cache: Path | None = None) -> Corpus:
    return read_corpus(parse_source(str(path), FLAG), purpose, str(cache) if cache else None)


class TestParseSource:
    @pytest.mark.parametrize("word", ["c4", "wikitext2", "ptb"])
    def test_named(self, word: str) -> None:
        source = parse_source(word, FLAG)
        assert (source.kind, source.name, source.path) == (word, word, None)

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("a.txt", "txt"),
            ("a.TXT", "txt"),
            ("a.jsonl", "jsonl"),
            ("a.jsonl.gz", "jsonl"),
            ("a.json.gz", "jsonl"),
            ("a.json", "jsonl"),
            ("a.parquet", "parquet"),
            ("a.safetensors", "tokens"),
            ("train.first1MB.raw.txt", "txt"),
        ],
    )
    def test_local_kinds(self, tmp_path: Path, name: str, kind: str) -> None:
        (tmp_path / name).write_text("x")
        source = parse_source(str(tmp_path / name), FLAG)
        assert (source.kind, source.file, source.name) == (kind, tmp_path / name, str(tmp_path / name))

    def test_hub_words(self) -> None:
        source = parse_source("owner/set-1.0_x", FLAG)
        assert (source.kind, source.repo, source.config) == ("hub", "owner/set-1.0_x", None)
        source = parse_source("owner/set:conf.ig-1", FLAG)
        assert (source.kind, source.repo, source.config) == ("hub", "owner/set", "conf.ig-1")

    def test_named_sets_win_over_files_of_that_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "c4").mkdir()
        monkeypatch.chdir(tmp_path)
        assert parse_source("c4", FLAG).kind == "c4"

    def test_missing_file(self) -> None:
        refused(
            lambda: parse_source("texts/absent.txt", "--eval_data"),
            "--eval_data",
            "texts/absent.txt",
            "no such file",
            "check the path",
        )

    def test_directory(self, tmp_path: Path) -> None:
        refused(
            lambda: parse_source(str(tmp_path), FLAG),
            FLAG,
            str(tmp_path),
            "is a directory",
            "name one file inside",
            ".jsonl",
        )

    def test_unknown_suffix(self, tmp_path: Path) -> None:
        for name, *parts in (
            ("notes.md", "call it .txt if it is plain text", ".parquet"),
            ("notes", "call it .txt if it is plain text", ".jsonl if it is JSON lines"),
            ("corpus.txt.gz", "it is compressed; unpack it"),
            ("corpus.jsonl.zst", "it is compressed; unpack it"),
        ):
            path = tmp_path / name
            path.write_text("x")
            refused(lambda path=path: parse_source(str(path), FLAG), FLAG, path.name, *parts)

    @pytest.mark.parametrize(("name", "between"), [("it's, a table.csv", ","), ("table.TSV", "\t")])
    def test_the_remedy_for_tables_works(self, tmp_path: Path, name: str, between: str) -> None:
        path = tmp_path / name
        path.write_text(f'text{between}label\n"the quick, brown\nfox"{between}1\n')
        with pytest.raises(DataError, match="tables are read as parquet") as caught:
            parse_source(str(path), FLAG)
        code = str(caught.value).split("in Python: ")[1].split(" and give ")[0]
        exec(code)
        assert list(read(Path(f"{path}.parquet")).documents) == ["the quick, brown\nfox"]

    def test_unknown_word(self) -> None:
        refused(
            lambda: parse_source("wikitext", FLAG), FLAG, "wikitext", "did you mean wikitext2?", "owner/name", ".txt"
        )
        assert "did you mean" not in refused(lambda: parse_source("zzz", FLAG), "zzz", "c4, wikitext2, ptb")

    @pytest.mark.parametrize("word", ["", "  "])
    def test_empty_word(self, word: str) -> None:
        refused(lambda: parse_source(word, FLAG), FLAG, "is empty", "c4, wikitext2, ptb")


class TestTxt:
    def test_one_document_byte_for_byte(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_bytes("  één\r\n\r\nzwei\u2028drei\n".encode())
        corpus = read(path)
        assert list(corpus.documents) == ["  één\r\n\r\nzwei\u2028drei\n"] == [corpus.text]
        assert corpus.provenance == {
            "source": "a.txt",
            "kind": "txt",
            "purpose": "calibration",
            "file": "a.txt",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "documents": 1,
        }

    def test_byte_order_mark_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
        assert list(read(tmp_path / "a.txt").documents) == ["hello"]

    def test_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
        refused(lambda: read(tmp_path / "latin.txt"), FLAG, "latin.txt", "not UTF-8 at byte offset 3", "iconv")

    def test_empty_and_blank(self, tmp_path: Path) -> None:
        (tmp_path / "empty.txt").write_bytes(b"")
        refused(lambda: read(tmp_path / "empty.txt"), FLAG, "empty.txt", "empty (0 bytes)")
        (tmp_path / "blank.txt").write_text(" \n\t\n")
        refused(
            lambda: read(tmp_path / "blank.txt"),
            FLAG,
            "blank.txt",
            "only white space",
            "give a source that holds text",
        )

    def test_vanished_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("x")
        source = parse_source(str(tmp_path / "a.txt"), FLAG)
        source.file.unlink()
        refused(
            lambda: read_corpus(source, "calibration", None), "a.txt", "can't be read", "No such file", "permissions"
        )

    def test_token_files_hold_no_documents(self, tmp_path: Path) -> None:
        (tmp_path / "a.safetensors").write_bytes(b"x")
        with pytest.raises(ValueError, match="token ids and no documents"):
            read(tmp_path / "a.safetensors")


class TestJsonLines:
    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.json.gz", "a.jsonl.gz"])
    def test_documents(self, tmp_path: Path, name: str) -> None:
        path = write_jsonl(
            tmp_path / name, [{"id": "1", "text": "één"}, {"text": "", "id": 2}, {"text": "two\u2028lines\n"}]
        )
        corpus = read(path, "evaluation")
        assert list(corpus.documents) == ["één", "", "two\u2028lines\n"]
        assert corpus.joiner == "\n\n"
        assert corpus.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert corpus.provenance["documents"] == 3

    def test_blank_lines_and_byte_order_mark_are_skipped(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "b"}')
        assert list(read(tmp_path / "a.jsonl").documents) == ["a", "b"]

    def test_the_only_string_field(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", [{"n": 1, "story": "a"}, {"story": "b", "note": "c"}])
        assert list(read(path).documents) == ["a", "b"]

    def test_undecided_field(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", [{"story": "a", "title": "b", "n": 1}])
        refused(lambda: read(path), FLAG, "a.jsonl", "line 1", "story (str), title (str), n (int)", "rename", "`text`")
        path = write_jsonl(tmp_path / "b.jsonl", [{"text": ["a"], "id": "x"}])
        refused(lambda: read(path), "text (list), id (str)")
        path = write_jsonl(tmp_path / "c.jsonl", [{}])
        refused(lambda: read(path), "has the fields none")

    def test_later_line_without_text(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": None}])
        refused(
            lambda: read(path), "a.jsonl", "line 2", "no string in field `text`", "text (NoneType)", "mend or remove"
        )

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            (b'{"text": ', "is not JSON"),
            (b'{"n": ' + b"1" * 5000 + b"}", "is not JSON"),
            (b'["a"]', "holds list, not an object"),
            (b'"a"', "holds str, not an object"),
            (b'{"text": "caf\xe9"}', "is not UTF-8 at byte 13 of the line"),
            (b'{"text": "a\\ud800"}', "lone surrogate (character 1 of the text)"),
        ],
    )
    def test_malformed_line(self, tmp_path: Path, line: bytes, expected: str) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
        refused(lambda: read(tmp_path / "a.jsonl"), FLAG, "a.jsonl", "line 3", expected)

    def test_pretty_printed_array(self, tmp_path: Path) -> None:
        """What it is told to do works, zipped or not, of records and of strings."""
        for name, text in (("a.json", '[\n  {"text": "a"}\n]'), ("b.json.gz", '["a"]'), ("c.jsonl", ' ["a"]')):
            file = tmp_path / name
            file.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
            with pytest.raises(DataError, match="it is one JSON list, not an object in every line") as caught:
                read(file)
            program = re.search(r"in Python: (.*)\. Then give", str(caught.value))
            assert program is not None
            subprocess.run([sys.executable, "-c", program[1]], check=True)
            assert list(read(tmp_path / f"{name.partition('.')[0]}.lines.jsonl").documents) == ["a"]

    def test_damaged_gzip(self, tmp_path: Path) -> None:
        (tmp_path / "a.json.gz").write_text('{"text": "plain"}')
        refused(lambda: read(tmp_path / "a.json.gz"), "a.json.gz", "damaged or not gzip", "drop .gz")
        whole = gzip.compress(json.dumps({"text": "x" * 1000}).encode())
        (tmp_path / "b.json.gz").write_bytes(whole[:-9])
        refused(lambda: read(tmp_path / "b.json.gz"), "b.json.gz", "damaged or not gzip", "download it again")

    def test_nothing_in_it(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text("\n\n")
        refused(lambda: read(tmp_path / "a.jsonl"), "a.jsonl", "no documents", "give a source")
        refused(lambda: read(write_jsonl(tmp_path / "b.jsonl.gz", [])), "b.jsonl.gz", "no documents")
        refused(
            lambda: read(write_jsonl(tmp_path / "c.jsonl", [{"text": " "}, {"text": "\n"}])),
            "only white space in 2 documents",
        )


class TestParquet:
    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
    def test_text_column(self, tmp_path: Path, kind: pa.DataType) -> None:
        path = write_parquet(tmp_path / "a.parquet", id=["x", "y"], text=pa.array(["één", "b"]).cast(kind))
        corpus = read(path)
        assert list(corpus.documents) == ["één", "b"]
        assert corpus.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_folder_names_are_no_columns(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "text=en" / "a.parquet", n=[1], sentence=["a"])
        assert list(read(path).documents) == ["a"]

    def test_undecided_column(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", title=["a"], body=["b"], n=[1])
        refused(lambda: read(path), "a.parquet", "title (string), body (string), n (int64)", "rename the column")
        path = write_parquet(tmp_path / "b.parquet", text=[1], id=["b"])
        refused(lambda: read(path), "text (int64), id (string)")

    def test_missing_text(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", text=["a", None, "b"])
        refused(lambda: read(path), "a.parquet", "`text` holds no text in row 1", "remove")

    def test_damaged_or_without_rows(self, tmp_path: Path) -> None:
        (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing more")
        refused(lambda: read(tmp_path / "a.parquet"), "a.parquet", "not a readable parquet file", "again")
        refused(lambda: read(write_parquet(tmp_path / "b.parquet", text=pa.array([], pa.string()))), "no documents")


def test_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "datasets", "pyarrow", "huggingface_hub"]
    code = f"import sys, autoprune.data.texts; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_real_wikitext_rows_join_to_the_papers_text(shared: Path) -> None:
    folder = shared / "realdata/text/wikitext2"
    if not folder.is_dir():
        pytest.skip("the real texts are not here")
    rows = read(folder / "wikitext-2-raw-v1.test.jsonl", "evaluation")
    joined = read(folder / "test.joined.txt", "evaluation")
    assert len(rows.documents) == 4358
    assert rows.text == joined.text
