"""Texts out of tables: formats, encodings, the static length, leaks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from edgeft import data, recipe
from edgeft.errors import DataError
from edgeft.preprocessing import TextPreprocessing

DATA = os.environ.get("EDGEFT_TEST_DATA")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "who", "is", "the", "moon", "king"]


@pytest.fixture(scope="module")
def template() -> TextPreprocessing:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return TextPreprocessing(tokenizer=tokenizer.to_str(), max_length=0, pad_id=0)


def question_lines(count: int, start: int = 0) -> list[str]:
    pairs = [("thing", f"What is the moon {n} ?") for n in range(start, start + count)]
    pairs += [("person", f"Who is the king {n} ?") for n in range(start, start + count)]
    return ["label\ttext", *(f"{label}\t{text}" for label, text in pairs)]


def task(name: str = "q.tsv", **options) -> recipe.Task:
    return recipe.Task(kind="text-classification", data=name, **options)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    (tmp_path / "q.tsv").write_text("\n".join(question_lines(20)), encoding="utf-8")
    return tmp_path


def test_texts_are_tokenized_to_a_length_from_the_training_split(questions: Path, template) -> None:
    splits = data.load(task(), template, base=questions, seed=0)
    assert splits.classes == ("person", "thing")
    assert splits.preprocessing.max_length == 8  # six words, two special tokens
    inputs = splits.train.inputs([3, 0])
    assert inputs.dtype == np.int32 and inputs.shape == (2, 8)
    assert (
        inputs.tolist()
        == splits.preprocessing.encode([splits.train.preview(3), splits.train.preview(0)]).tolist()
    )


def test_val_and_test_do_not_choose_the_length(tmp_path: Path, template) -> None:
    (tmp_path / "train.tsv").write_text("\n".join(question_lines(20)))
    (tmp_path / "test.tsv").write_text(
        "\n".join([*question_lines(2, start=50), "thing\tWhat is " + "the " * 99])
    )
    splits = data.load(task("train.tsv", test_data="test.tsv"), template, base=tmp_path, seed=0)
    assert splits.preprocessing.max_length == 8
    given = TextPreprocessing(tokenizer=template.tokenizer, max_length=5, pad_id=0)
    assert data.load(task("train.tsv"), given, base=tmp_path, seed=0).train.inputs([0]).shape == (1, 5)


def test_quotes_in_a_tsv_are_characters(tmp_path: Path, template) -> None:
    lines = question_lines(6)
    lines[3] = 'thing\t"What is the moon ?'
    (tmp_path / "q.tsv").write_text("\n".join(lines))
    splits = data.load(task(), template, base=tmp_path, seed=0)
    everything = [
        part.preview(i) for part in (splits.train, splits.val, splits.test) for i in range(len(part))
    ]
    assert len(everything) == 12 and '"What is the moon ?' in everything


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_the_format_does_not_matter(tmp_path: Path, template, suffix: str) -> None:
    rows = [line.split("\t") for line in question_lines(6)]
    if suffix == ".jsonl":
        lines = [json.dumps({"label": label, "text": text}) for label, text in rows[1:]]
    else:
        lines = [{".csv": ",", ".tsv": "\t"}[suffix].join(row) for row in rows]
    (tmp_path / f"q{suffix}").write_text("\n".join(lines))
    (tmp_path / "other.tsv").write_text("\n".join(question_lines(6)))
    one, other = (
        data.load(task(name), template, base=tmp_path, seed=0) for name in (f"q{suffix}", "other.tsv")
    )
    assert one.fingerprint == other.fingerprint


def test_a_manifest_brings_the_texts_back(questions: Path, template) -> None:
    splits = data.load(task(), template, base=questions, seed=5)
    manifest = json.loads(json.dumps(data.to_manifest(splits)))
    again = data.from_manifest(manifest, task(), splits.preprocessing, base=questions)
    assert again.fingerprint == splits.fingerprint
    assert np.array_equal(again.test.inputs([1]), splits.test.inputs([1]))
    path = questions / "q.tsv"
    path.write_text(path.read_text().replace(splits.test.preview(1), "What is that ?"))
    with pytest.raises(DataError, match="changed or is gone"):
        data.from_manifest(manifest, task(), splits.preprocessing, base=questions)


def test_rows_that_are_added_later_are_not_part_of_a_stored_split(questions: Path, template) -> None:
    splits = data.load(task(), template, base=questions, seed=5)
    before = data.scan(task(), questions).listing
    with (questions / "q.tsv").open("a") as file:
        file.write("\nthing\tWhat is new ?")
    again = data.from_manifest(data.to_manifest(splits), task(), splits.preprocessing, base=questions)
    assert again.fingerprint == splits.fingerprint and data.scan(task(), questions).listing != before


def test_texts_that_differ_in_case_or_spaces_are_leaks(tmp_path: Path, template) -> None:
    (tmp_path / "train.tsv").write_text("\n".join(question_lines(20)))
    (tmp_path / "test.tsv").write_text(
        "\n".join([*question_lines(2, start=50), "thing\twhat IS the  moon 7 ? "])
    )
    splits = data.load(task("train.tsv", test_data="test.tsv"), template, base=tmp_path, seed=0)
    assert data.to_manifest(splits)["leaks"] == ["test.tsv:6"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label\ttexts\nthing\tx\n", r"q\.tsv: there is no column 'text' \(did you mean 'texts'\?\)"),
        ("Label\ttext\nthing\tx\n", r"there is no column 'label' \(did you mean 'Label'\?\)"),
        ("\n".join([*question_lines(5), "thing\t  "]), r"q\.tsv:12: column 'text': the text is empty"),
        ("\n".join([*question_lines(5), "\tWhat ?"]), r"q\.tsv:12: column 'label': the label is empty"),
        ("\n".join([*question_lines(5), "thing\tWhat\tWho ?"]), r"q\.tsv:12: 3 cell\(s\); the header has 2"),
        ("\n".join(question_lines(20)[:15]), r"1 class\(es\) in column 'label' \('thing'\)"),
        ("", "the table is empty"),
        ("label\ttext\n", "the table has no rows"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "q.tsv").write_text(content)
    with pytest.raises(DataError, match=message):
        data.scan(task(), tmp_path)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_in_another_encoding_is_named_with_the_line(tmp_path: Path, encoding: str) -> None:
    lines = question_lines(5)
    lines[4] = "thing\tWhat is crème brûlée ?"
    (tmp_path / "q.tsv").write_bytes("\n".join(lines).encode(encoding))
    line = {"latin-1": 5, "utf-16": 1}[encoding]
    with pytest.raises(DataError, match=rf"q\.tsv:{line}: byte 0x\w\w is not UTF-8") as error:
        data.scan(task(), tmp_path)
    assert "UTF-8" in error.value.hint


def test_a_csv_with_an_open_quote_is_refused(tmp_path: Path) -> None:
    rows = "".join(f'{label},"text {n}"\n' for n in range(5) for label in "ab")
    (tmp_path / "q.csv").write_text("label,text\n" + rows + 'a,"never closed\n')
    with pytest.raises(DataError, match=r"q\.csv:12: not a row of a table"):
        data.scan(task("q.csv"), tmp_path)


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="EDGEFT_TEST_DATA is not set")
def test_trec_is_read_whole(template) -> None:
    trec = task("text/trec6_train.tsv", test_data="text/trec6_test.tsv")
    found = data.scan(trec, Path(DATA))
    lines = (Path(DATA) / "text" / "trec6_train.tsv").read_text(encoding="utf-8").count("\n")
    assert {name: sum(counts.values()) for name, counts in found.counts.items()} == {
        "train": lines - 1,
        "test": 500,
    }
    splits = data.load(trec, template, base=Path(DATA), seed=0)
    assert splits.classes == ("0", "1", "2", "3", "4", "5") and splits.preprocessing.max_length == 32
