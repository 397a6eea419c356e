"""``hf:PATH_OR_NAME``: encoders and image classifiers of transformers, behind one input tensor and plain logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeft import extras
from edgeft.errors import ModelError
from edgeft.models import hf_files, surgery, weight_files
from edgeft.models.account import BuiltModel, LoadAccount
from edgeft.preprocessing import ImagePreprocessing, TextPreprocessing

_CLASSES = {"text": "AutoModelForSequenceClassification", "image": "AutoModelForImageClassification"}
# What transformers raises for folders and files that it cannot use.
_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError)


class TextClassifier(nn.Module):
    """A transformers sequence classifier that takes token ids alone: what equals `pad_id` is not attended to."""

    def __init__(self, network: nn.Module, pad_id: int) -> None:
        super().__init__()
        self.network = network
        self.pad_id = pad_id

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map token ids (N, T) int32 to logits (N, K)."""
        mask = (ids != self.pad_id).to(torch.int64)
        logits: torch.Tensor = self.network(input_ids=ids, attention_mask=mask).logits
        return logits


class PooledTextClassifier(nn.Module):
    """A sentence encoder, the mean over its tokens without padding, and a linear ``head`` (Reimers & Gurevych 2019)."""

    def __init__(self, network: nn.Module, pad_id: int, width: int, classes: int) -> None:
        super().__init__()
        self.network = network
        self.pad_id = pad_id
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, classes)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map token ids (N, T) int32 to logits (N, K)."""
        mask = (ids != self.pad_id).to(torch.int64)
        states = self.network(input_ids=ids, attention_mask=mask).last_hidden_state
        kept = mask.unsqueeze(-1).to(states.dtype)
        mean = (states * kept).sum(1) / kept.sum(1).clamp(min=1.0)
        logits: torch.Tensor = self.head(self.dropout(mean))
        return logits


class ImageClassifier(nn.Module):
    """A transformers image classifier that takes and returns plain tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, C, H, W) to logits (N, K)."""
        logits: torch.Tensor = self.network(pixel_values=x).logits
        return logits


def build(
    name: str,
    classes: int,
    *,
    base: Path,
    seed: int,
    preprocessing: ImagePreprocessing | TextPreprocessing,
    example: torch.Tensor,
    weights: Path | None = None,
    fresh: bool = False,
    keep_head: bool = False,
) -> BuiltModel:
    """Build a classifier from a folder of transformers; a folder of a backbone alone gets a fresh head.

    A folder of sentence-transformers that averages over tokens is pooled that way.

    Args:
        name: Folder (relative to `base`) or hub name.
        classes: Size of the head.
        base: Folder of the recipe.
        seed: Of the fresh values.
        preprocessing: Complete; texts: its `pad_id` marks padding.
        example: An input, to find the head with.
        weights: Other weights for the same network.
        fresh: Use no weights at all.
        keep_head: Take the head from the folder too.

    Raises:
        ModelError: The folder cannot be used, the tokenizer does not fit it, or it has no head to keep.
    """
    folder = hf_files.resolve(name, base)
    source = f"hf:{name}"
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        try:
            module, missing, unexpected = _network(folder, classes, preprocessing, fresh=fresh)
        except _ERRORS as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(f"model.source {source}: transformers cannot load it ({reason})") from error
    if isinstance(preprocessing, TextPreprocessing):
        _check_vocabulary(module, preprocessing, source)
        # Whether the whole length fits is the caller's check; a few tokens show the order of the layers.
        example = example[:, :4]
    head = surgery.find_head(module.eval(), example)
    own_head = {f"{head}.{parameter}" for parameter, _ in module.get_submodule(head).named_parameters()}
    if weights is not None and not fresh:
        tensors = weight_files.read(weights)
        label = f"model.weights: {weights.name} for {source}"
        account = weight_files.load(module, tensors, head, keep_head=keep_head, label=label)
        return BuiltModel(module=module, head=head, account=account)
    if keep_head and not fresh and missing & own_head:
        raise ModelError(
            f"model.source {source} has no trained head for {classes} classes: {', '.join(sorted(missing & own_head))}",
            "train one (finetune.method), or give the folder of a model that was trained for these classes",
        )
    notes = []
    if not fresh and not keep_head:
        surgery.replace_head(module, classes, seed, example=example)
        if own_head <= missing:
            notes.append(f"{source} is a backbone: its head {head!r} is fresh")
        missing |= own_head
    if isinstance(module, PooledTextClassifier):
        notes.append("tokens are averaged, as the folder's sentence-transformers pooling says")
    names = [tensor for tensor, _ in module.named_parameters()]
    account = LoadAccount(
        loaded=() if fresh else tuple(n for n in names if n not in missing),
        left_out=tuple(sorted(unexpected)),
        fresh=tuple(names) if fresh else tuple(n for n in names if n in missing),
        notes=tuple(notes),
    )
    return BuiltModel(
        module=module,
        head=_whole_head(head, missing) if not fresh else head,
        account=account,
    )


def _network(
    folder: Path, classes: int, preprocessing: ImagePreprocessing | TextPreprocessing, *, fresh: bool
) -> tuple[nn.Module, set[str], set[str]]:
    """Return the network, and the names of its fresh tensors and of the file's unused ones."""
    # What every class of transformers imports when it is asked for, torchao too: here, where that is quiet.
    extras.load("transformers.modeling_utils", f"source hf:{folder.name}")
    transformers = extras.load("transformers", f"source hf:{folder.name}")
    text = isinstance(preprocessing, TextPreprocessing)
    pooled = text and _averages_tokens(folder)
    factory = (
        transformers.AutoModel if pooled else getattr(transformers, _CLASSES["text" if text else "image"])
    )
    # Plain matrix products: torch's fused attention has no counterpart in the exported formats.
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, num_labels=classes)
    if fresh:
        network, info = factory.from_config(config, attn_implementation="eager"), {}
    else:
        network, info = factory.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            attn_implementation="eager",
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    unused = set(info.get("unexpected_keys", ()))
    if pooled and getattr(network, "pooler", None) is not None:
        unused |= {f"pooler.{name}" for name, _ in network.pooler.named_parameters()}
        network.pooler = None
    mismatched = {entry if isinstance(entry, str) else entry[0] for entry in info.get("mismatched_keys", ())}
    missing = {f"network.{name}" for name in {*info.get("missing_keys", ()), *mismatched}}
    if not isinstance(preprocessing, TextPreprocessing):
        return ImageClassifier(network), missing, unused
    if pooled:
        head = {"head.weight", "head.bias"}
        wrapped = PooledTextClassifier(network, preprocessing.pad_id, config.hidden_size, classes)
        return wrapped, missing | head, unused
    return TextClassifier(network, preprocessing.pad_id), missing, unused


def _whole_head(head: str, missing: set[str]) -> str:
    """Return the part of the network that holds the head and all else that is fresh, where there is one.

    RoBERTa's head is two layers, classifier.dense and classifier.out_proj: fresh, both belong to it.
    """
    owners = [name.rpartition(".")[0].split(".") for name in missing] + [head.split(".")]
    shared = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*owners, strict=False))]
    return ".".join(shared) if len(shared) > 1 else head


def _averages_tokens(folder: Path) -> bool:
    pooling = folder / "1_Pooling" / "config.json"
    return pooling.is_file() and bool(hf_files.read_json(pooling).get("pooling_mode_mean_tokens"))


def _check_vocabulary(module: nn.Module, preprocessing: TextPreprocessing, source: str) -> None:
    network: Any = module.get_submodule("network")
    table: Any = network.get_input_embeddings()
    rows = int(table.num_embeddings)
    if preprocessing.vocab_size > rows:
        raise ModelError(
            f"model.tokenizer has {preprocessing.vocab_size} tokens and {source} embeds {rows}: they do not match",
            "give the tokenizer that belongs to the model, or leave model.tokenizer out",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' load report and progress bars: the account says it."""
    logging = extras.load("transformers.utils.logging", "source hf:")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
