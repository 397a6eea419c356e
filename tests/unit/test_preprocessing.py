"""Texts and table rows become model inputs; every kind travels through its dictionary and files."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from edgeft import preprocessing
from edgeft.errors import ConfigError, DataError
from edgeft.preprocessing import (
    CategoricalColumn,
    ImagePreprocessing,
    NumericColumn,
    TabularPreprocessing,
    TextPreprocessing,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "mat"]


def word_tokenizer(cut_at: int = 0) -> str:
    """Return the tokenizer.json of a lower-case word tokenizer that frames texts by [CLS] and [SEP]."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    if cut_at:
        tokenizer.enable_truncation(cut_at)
    return tokenizer.to_str()


def text_preprocessing(max_length: int = 6, cut_at: int = 0) -> TextPreprocessing:
    return TextPreprocessing(tokenizer=word_tokenizer(cut_at), max_length=max_length, pad_id=0)


def test_texts_are_framed_filled_up_and_cut() -> None:
    encoded = text_preprocessing().encode(["The cat", "the dog sat on the mat", ""])
    assert encoded.dtype == np.int32
    assert encoded.tolist() == [[2, 4, 5, 3, 0, 0], [2, 4, 1, 6, 7, 3], [2, 3, 0, 0, 0, 0]]
    assert text_preprocessing().encode([]).shape == (0, 6)


def test_an_encoding_does_not_depend_on_the_texts_beside_it() -> None:
    texts = ["the cat", "cat sat on the mat"]
    together = text_preprocessing().encode(texts)
    assert together.tolist() == [text_preprocessing().encode([text])[0].tolist() for text in texts]


def test_the_length_is_what_most_texts_fit_into() -> None:
    template = text_preprocessing(max_length=0)
    usual = ["the cat sat on the mat the cat"] * 199  # 8 words and 2 special tokens
    assert template.count_tokens(usual[:1]).tolist() == [10]
    assert template.fitted([*usual, "the " * 300]).max_length == 16
    assert template.fitted([*usual[:50], "the " * 300]).max_length == 304
    assert template.fitted(["the " * 3000]).max_length == 512
    assert text_preprocessing(max_length=0, cut_at=12).fitted(usual).max_length == 12
    assert text_preprocessing(max_length=6).fitted(usual).max_length == 6


def test_a_length_that_is_not_chosen_or_too_small_is_an_error() -> None:
    with pytest.raises(ConfigError, match="max_length is not chosen"):
        text_preprocessing(max_length=0).encode(["the cat"])
    with pytest.raises(ConfigError, match="max_length 2 leaves no room beside the tokenizer's 2"):
        text_preprocessing(max_length=2).encode(["the cat"])


@pytest.mark.parametrize("content", ["", "{}", '{"model": {"type": "Unheard"}}'])
def test_what_is_no_tokenizer_is_refused(content: str) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(ConfigError, match=r"not a tokenizer\.json"):
        TextPreprocessing(tokenizer=content, max_length=8, pad_id=0).encode(["the cat"])


def test_a_text_preprocessing_comes_back_with_its_tokenizer_only() -> None:
    original = text_preprocessing()
    stored = json.loads(json.dumps(original.to_dict()))
    assert word_tokenizer() not in json.dumps(stored)
    assert preprocessing.from_dict(stored, original.files()) == original
    with pytest.raises(ConfigError, match=r"tokenizer\.json is missing"):
        preprocessing.from_dict(stored)
    with pytest.raises(ConfigError, match=r"tokenizer\.json is not the tokenizer"):
        preprocessing.from_dict(stored, {"tokenizer.json": word_tokenizer(cut_at=9)})


ROWS = [
    {"age": "20", "colour": "red", "constant": "0.1"},
    {"age": "40", "colour": "blue", "constant": "0.1"},
    {"age": "60", "colour": "red", "constant": "0.1"},
]


@pytest.fixture
def table() -> TabularPreprocessing:
    return TabularPreprocessing.fitted(ROWS, ["age", "colour", "constant"], {"age", "constant"})


def test_numbers_are_standardised_and_categories_one_hot(table) -> None:
    features = table.encode(ROWS)
    assert features.dtype == np.float32 and table.input_shape == (4,)
    assert features[:, 0].mean() == pytest.approx(0, abs=1e-7)
    assert features[:, 0].std() == pytest.approx(1)
    assert features[:, 1:3].tolist() == [[0, 1], [1, 0], [0, 1]]  # blue, red
    assert np.abs(features[:, 3]).max() < 1e-6


def test_an_unseen_category_is_all_zeros(table) -> None:
    assert table.encode([{**ROWS[0], "colour": "green"}])[0, 1:3].tolist() == [0, 0]


@pytest.mark.parametrize(
    "cell", ["", "  ", "nan", "NaN", "inf", "-Infinity", "1e400", "twelve", "1,5", "1_000"]
)
def test_what_is_no_number_is_named_by_row_and_column(table, cell: str) -> None:
    with pytest.raises(DataError, match="row 2: column 'age'"):
        table.encode([ROWS[0], {**ROWS[0], "age": cell}])
    with pytest.raises(DataError, match="b: column 'age'"):
        table.encode([ROWS[0], {**ROWS[0], "age": cell}], names=["a", "b"])


def test_an_empty_category_and_a_missing_column_are_errors(table) -> None:
    with pytest.raises(DataError, match="row 1: column 'colour' is empty"):
        table.encode([{**ROWS[0], "colour": " "}])
    with pytest.raises(DataError, match="row 1: the column 'constant' is missing"):
        table.encode([{"age": "1", "colour": "red"}])


@pytest.mark.parametrize(
    "original",
    [
        ImagePreprocessing(size=8, resize=9, channels=1, mean=(0.5,), std=(0.25,)),
        TabularPreprocessing(
            columns=(
                NumericColumn(name="a", mean=0.1, std=3.7),
                CategoricalColumn(name="b", categories=("x", "y")),
            )
        ),
    ],
)
def test_a_preprocessing_comes_back_from_json(original) -> None:
    assert preprocessing.from_dict(json.loads(json.dumps(original.to_dict())), original.files()) == original


def test_embedded_pictures_are_pixels_as_they_are() -> None:
    picture = ImagePreprocessing(size=2, resize=2, channels=1, mean=(0.5,), std=(0.25,))
    embedded = dataclasses.replace(picture, embedded=True)
    pixels = np.array([[[[0], [255]], [[7], [128]]]], np.uint8)
    assert embedded.normalize(pixels).dtype == np.float32
    np.testing.assert_array_equal(embedded.normalize(pixels), pixels.transpose(0, 3, 1, 2))
    assert embedded.to_dict()["embedded"] is True and preprocessing.from_dict(embedded.to_dict()) == embedded
    assert "embedded" not in picture.to_dict(), "readers of older versions do not know the key"


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown kind 'sound'; allowed are image, text and table"):
        preprocessing.from_dict({"kind": "sound"})


def test_preprocessing_imports_neither_torch_nor_tokenizers() -> None:
    code = (
        "import sys, edgeft.preprocessing; sys.exit(bool({'torch', 'tokenizers', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
