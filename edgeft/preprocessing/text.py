"""Text preprocessing: a tokenizer's own file and one static length."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from edgeft import extras
from edgeft.errors import ConfigError

TOKENIZER_FILE = "tokenizer.json"
"""What the tokenizer is called where it is stored, beside the dictionary of `TextPreprocessing.to_dict`."""

_LONGEST = 512  # what encoders of BERT's family have positions for
_COVERED = 0.99  # share of the training texts that a chosen length holds whole
_STEP = 8  # chosen lengths are multiples of it: vector kernels like them, and near sets get equal shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPreprocessing:
    """How a text becomes a row of token ids: tokenized, cut to `max_length`, filled up with `pad_id`.

    Special tokens, normalisation and the side that is cut or filled are the tokenizer's own. The network takes
    what equals `pad_id` as padding, so that one input (N, T) is all it needs.

    Args:
        tokenizer: Contents of a ``tokenizer.json`` of Hugging Face's tokenizers package.
        max_length: Tokens per text, special tokens included; 0 leaves it to `fitted`.
        pad_id: Token id of padding.
    """

    tokenizer: str
    max_length: int
    pad_id: int

    kind: ClassVar[Literal["text"]] = "text"
    input_dtype: ClassVar[Literal["int32"]] = "int32"

    def __post_init__(self) -> None:
        if self.max_length < 0 or self.pad_id < 0:
            raise ConfigError(
                f"preprocessing: got max_length {self.max_length} and pad_id {self.pad_id}; allowed is 0 or more"
            )

    @property
    def input_shape(self) -> tuple[int]:
        """Shape of one model input as (T,). Raises `ConfigError` while `max_length` is not chosen."""
        if not self.max_length:
            raise ConfigError(
                "preprocessing: max_length is not chosen yet",
                "set it, or take `fitted(texts)` of training texts",
            )
        return (self.max_length,)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included; the network's embedding needs at least so many rows."""
        return int(_open(self.tokenizer).get_vocab_size())

    @property
    def length_limit(self) -> int:
        """Most tokens that `fitted` chooses: where the tokenizer itself cuts, else 512."""
        truncation = _open(self.tokenizer).truncation
        return int(truncation["max_length"]) if truncation else _LONGEST

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """Turn N texts into model inputs (N, T) int32.

        Raises:
            ConfigError: `max_length` is not chosen, too small for the special tokens, or the tokenizer is none.
            MissingDependencyError: The tokenizers package is not installed.
        """
        (length,) = self.input_shape
        tokenizer = _sized(self.tokenizer, length, self.pad_id)
        ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        return np.array(ids, dtype=np.int32).reshape(len(texts), length)

    def count_tokens(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the uncut number of tokens of each text, special tokens included, shape (N,)."""
        encodings = _unsized(self.tokenizer).encode_batch(list(texts))
        return np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)

    def fitted(self, texts: Sequence[str]) -> TextPreprocessing:
        """Return this with a `max_length` that 99 % of `texts` fit into, or this itself if it has one.

        The length is a multiple of 8, and at most `length_limit`.

        Args:
            texts: Training texts, at least one; others would leak into the choice.
        """
        if self.max_length:
            return self
        covering = int(np.quantile(self.count_tokens(texts), _COVERED, method="higher"))
        return replace(self, max_length=min(-(-covering // _STEP) * _STEP, self.length_limit))

    def files(self) -> dict[str, str]:
        """Return the files that belong beside `to_dict`: name -> contents."""
        return {TOKENIZER_FILE: self.tokenizer}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; `from_dict` reads it back together with `files`."""
        return {
            "kind": self.kind,
            "max_length": self.max_length,
            "pad_id": self.pad_id,
            "tokenizer": TOKENIZER_FILE,
            "tokenizer_sha256": _digest(self.tokenizer),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], files: Mapping[str, str]) -> TextPreprocessing:
        """Read what `to_dict` and `files` wrote.

        Raises:
            ConfigError: The tokenizer is missing or is another one.
        """
        name = data["tokenizer"]
        if name not in files:
            raise ConfigError(
                f"preprocessing: the file {name} is missing", "it belongs beside the preprocessing"
            )
        if _digest(files[name]) != data["tokenizer_sha256"]:
            raise ConfigError(
                f"preprocessing: {name} is not the tokenizer that the preprocessing was made with "
                f"(SHA-256 {_digest(files[name])[:12]}, expected {data['tokenizer_sha256'][:12]})",
                "put the original file back",
            )
        return cls(tokenizer=files[name], max_length=data["max_length"], pad_id=data["pad_id"])


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _open(content: str) -> Any:
    tokenizers = extras.load("tokenizers", "preprocessing of texts")
    try:
        # Not `from_str`: that one raises a bare Exception.
        return tokenizers.Tokenizer.from_buffer(content.encode())
    except ValueError as error:
        raise ConfigError(
            f"tokenizer: not a {TOKENIZER_FILE} that this version of tokenizers reads ({error})",
            "give the tokenizer.json that belongs to the model (saved by AutoTokenizer.save_pretrained)",
        ) from error


@lru_cache(maxsize=4)
def _unsized(content: str) -> Any:
    """Return a tokenizer that neither cuts nor fills."""
    tokenizer = _open(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@lru_cache(maxsize=4)
def _sized(content: str, length: int, pad_id: int) -> Any:
    """Return a tokenizer that cuts and fills to `length`, on the sides that its file names."""
    tokenizer = _open(content)
    cut, fill = tokenizer.truncation or {}, tokenizer.padding or {}
    special = tokenizer.num_special_tokens_to_add(False)
    if length <= special:
        raise ConfigError(
            f"preprocessing: max_length {length} leaves no room beside the tokenizer's {special} special tokens",
            "raise model.max_length",
        )
    tokenizer.enable_truncation(length, direction=cut.get("direction", "right"))
    tokenizer.enable_padding(length=length, pad_id=pad_id, direction=fill.get("direction", "right"))
    return tokenizer
