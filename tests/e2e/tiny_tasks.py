"""Tasks small enough to learn in seconds: a table, texts, pictures and networks, and recipes for them."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from command_line import environment
from PIL import Image

ONE = ("cpu-onnxruntime",)
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40)}
_VOCABULARY = """
[PAD] [UNK] [CLS] [SEP] who what where when which how is was are were the a an of in on at to and or do does did you he
she it they we run runs ran see sees saw make makes made dog cat river city king song book star tree road please not
? ! .
"""
WORDS = _VOCABULARY.split()

_CALIBRATION = """
schema = 1
id = "few"
title = "The extremes of a few samples"
observer = "minmax"
samples = 16
sampling = "stratified"
"""
_NETWORKS = '''
"""Two small networks for coloured pictures."""

from collections import OrderedDict

from torch import nn


def _network(width, classes):
    return nn.Sequential(OrderedDict(
        stem=nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        block=nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        head=nn.Linear(2 * width, classes),
    ))


def build(classes):
    return _network(8, classes)


def large(classes):
    return _network(16, classes)
'''
_KERAS = """
import os
os.environ["KERAS_BACKEND"] = "torch"
import keras
from keras import layers as L

keras.utils.set_random_seed(0)


class Doubled(L.Layer):
    def call(self, x):
        return 2 * x


def network(*extra):
    return keras.Sequential([
        L.Input((16, 16, 3)), L.Rescaling(1 / 255),
        L.Conv2D(16, 3, strides=2, padding="same", use_bias=False), L.BatchNormalization(), L.ReLU(), *extra,
        L.Conv2D(32, 3, strides=2, padding="same", use_bias=False), L.BatchNormalization(), L.ReLU(),
        L.GlobalAveragePooling2D(), L.Dense(5, activation="softmax"),
    ])


for suffix in ("h5", "keras"):
    network().save(f"net.{suffix}")
    network(Doubled()).save(f"custom.{suffix}")
"""


def write_recipe(
    folder: Path,
    name: str,
    *,
    task: str,
    model: str,
    stages: str,
    targets: Sequence[str] = ONE,
    evaluate: str = "",
) -> Path:
    """Write NAME.toml, a recipe with the given lines in its sections and a short measurement."""
    (folder / "few.toml").write_text(_CALIBRATION)
    path = folder / f"{name}.toml"
    path.write_text(f"""
name = "{name}"
targets = {json.dumps(list(targets))}
[task]
{task}
[model]
{model}
{stages}
[evaluate]
{evaluate}
[measure]
rounds = 2
min_runs = 5
min_seconds = 0.02
""")
    return path


def write_fruit(path: Path, counts: tuple[int, int, int] = (40, 40, 40)) -> Path:
    """Write a table of apples, bananas and melons that two numbers and a category tell apart, nearly."""
    draw = random.Random(0)
    kinds = {
        "apple": (150, 7, ("red", "green")),
        "banana": (140, 9, ("yellow", "green")),
        "melon": (180, 12, ("green", "yellow")),
    }
    lines = ["weight,colour,length,label"]
    for (name, (weight, length, colours)), count in zip(kinds.items(), counts, strict=True):
        lines += [
            f"{draw.gauss(weight, 15):.1f},{draw.choice(colours)},{draw.gauss(length, 1.5):.2f},{name}"
            for _ in range(count)
        ]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_sentences(path: Path, count: int = 180) -> Path:
    """Write questions, orders and statements as JSON lines: the last token tells which."""
    draw = random.Random(0)
    words, ends = WORDS[10:-3], {"question": "?", "order": "!", "statement": "."}
    lines = []
    for index in range(count):
        label = list(ends)[index % len(ends)]
        sentence = " ".join(draw.choices(words, k=draw.randint(3, 9)))
        lines.append(json.dumps({"text": f"{sentence} {ends[label]}", "label": label}))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> None:
    """Write a tokenizer.json that knows these words."""
    import tokenizers

    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def write_bert(folder: Path) -> Path:
    """Write a random two-layer BERT with its tokenizer, as `save_pretrained` does."""
    import torch

    from edgeft import extras

    transformers = extras.load("transformers", "tests")
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_pictures(folder: Path, count: int = 20, edge: int = 32) -> Path:
    """Write noisy pictures of two colours, and photos.csv that names them; return that."""
    lines = ["path,label"]
    (folder / "pictures").mkdir()
    for label, (name, colour) in enumerate(COLOURS.items()):
        for index in range(count):
            noise = np.random.default_rng([index, label]).integers(-40, 40, (edge, edge, 3))
            path = folder / "pictures" / f"{name}-{index}.png"
            Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8)).save(path)
            lines.append(f"pictures/{path.name},{name}")
    table = folder / "photos.csv"
    table.write_text("\n".join(lines) + "\n")
    (folder / "networks.py").write_text(_NETWORKS)
    return table


def write_keras_files(folder: Path) -> None:
    """Write net.h5, net.keras and, with a layer of a user's own, custom.h5 and custom.keras."""
    subprocess.run(
        [sys.executable, "-c", _KERAS], cwd=folder, env=environment(), capture_output=True, check=True
    )
