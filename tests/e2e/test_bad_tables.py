"""What can be wrong with tables, texts, model files and methods: one clear message, and nothing is begun."""

import json
import re
import time
from pathlib import Path

import pytest
from command_line import assert_is_one_clear_message, run_edgeft
from tiny_tasks import (
    WORDS,
    write_bert,
    write_fruit,
    write_keras_files,
    write_pictures,
    write_recipe,
    write_sentences,
    write_tokenizer,
)

from edgeft import extras

FRUIT = 'kind = "tabular-classification"\ndata = "fruit.csv"'
TEXTS = 'kind = "text-classification"\ndata = "sentences.jsonl"'
MLP = 'source = "builtin:mlp"'
RETRAIN = '[finetune]\nmethod = "retrain"\nepochs = 3'


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    """A table that is fine, to be broken."""
    return write_fruit(tmp_path / "fruit.csv", counts=(12, 12, 12))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return write_bert(tmp_path_factory.mktemp("models") / "bert")


def refused(
    folder: Path,
    *,
    task: str = FRUIT,
    model: str = MLP,
    stages: str = RETRAIN,
    evaluate: str = "",
    code: int = 2,
) -> str:
    """Run a recipe that must be refused before any work; return the message."""
    recipe = write_recipe(folder, "bad", task=task, model=model, stages=stages, evaluate=evaluate)
    done = run_edgeft("run", recipe.name, cwd=folder)
    message = assert_is_one_clear_message(done, code)
    assert not list((folder / "runs").rglob("stages/*")), "nothing was begun"
    assert "  -> " in message or "did you mean" in message, "it says what to do"
    return message


# -- tables and texts -----------------------------------------------------------------------------------------


def test_a_label_column_that_is_not_there(fruit: Path):
    message = refused(fruit.parent, task=f'{FRUIT}\nlabel_column = "lable"')
    assert "no column 'lable' (did you mean 'label'?)" in message
    assert "weight, colour, length, label" in message and "task.label_column" in message


def test_one_class_only(tmp_path: Path):
    write_fruit(tmp_path / "fruit.csv", counts=(30, 0, 0))
    message = refused(tmp_path)
    assert "1 class(es) in column 'label' ('apple')" in message and "at least 2" in message


@pytest.mark.parametrize("cell", ["nan", "inf", ""])
def test_a_feature_that_is_no_finite_number(fruit: Path, cell: str):
    lines = fruit.read_text().splitlines()
    lines[5] = ",".join([cell, *lines[5].split(",")[1:]])
    fruit.write_text("\n".join(lines))
    message = refused(fruit.parent)
    assert "fruit.csv:6: column 'weight'" in message and 'bad_samples = "skip"' in message


def test_an_empty_label(fruit: Path):
    fruit.write_text(fruit.read_text().replace(",banana\n", ",\n", 1))
    message = refused(fruit.parent)
    assert re.search(r"fruit.csv:\d+: column 'label': the label is empty", message)


def test_a_row_with_too_many_cells(fruit: Path):
    fruit.write_text(fruit.read_text().replace(",banana\n", ",banana,7\n", 1))
    assert "5 cell(s); the header has 4 columns" in refused(fruit.parent)


def test_a_test_table_that_is_the_training_table(fruit: Path):
    message = refused(fruit.parent, task=f'{FRUIT}\ntest_data = "./fruit.csv"')
    assert "train and test are the same file" in message


def test_a_table_for_the_wrong_kind_of_task(fruit: Path):
    message = refused(fruit.parent, task='data = "fruit.csv"')
    assert "'path'" in message or "tabular-classification" in message


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (b'["what is it ?", "question"]\n', "each line is one JSON object"),
        (b'{"text": "what is it ?", "label": \n', "not JSON"),
        (b'{"text": "what is it ?", "label": ["question"]}\n', "holds a list"),
        ('{"text": "où est-il ?", "label": "question"}\n'.encode("latin1"), "byte 0xf9 is not UTF-8"),
    ],
    ids=["no object", "cut", "list", "latin1"],
)
def test_a_line_that_is_no_sample(bert: Path, tmp_path: Path, broken: bytes, said: str):
    table = write_sentences(tmp_path / "sentences.jsonl", count=30)
    lines = table.read_bytes().splitlines(keepends=True)
    table.write_bytes(b"".join([*lines[:3], broken, *lines[3:]]))
    message = refused(tmp_path, task=TEXTS, model=f'source = "hf:{bert}"', stages="[finetune]")
    assert "sentences.jsonl:4" in message and said in message


# -- models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [[*WORDS, "more", "words"], WORDS[::-1]], ids=["larger vocabulary", "other order"]
)
def test_a_tokenizer_of_another_model(bert: Path, tmp_path: Path, words: list[str]):
    write_sentences(tmp_path / "sentences.jsonl", count=30)
    write_tokenizer(tmp_path, words)
    model = f'source = "hf:{bert}"\ntokenizer = "tokenizer.json"'
    message = refused(tmp_path, task=TEXTS, model=model, stages="[finetune]")
    assert "tokenizer" in message and "another vocabulary" in message


def test_a_file_that_is_no_tokenizer(bert: Path, tmp_path: Path):
    write_sentences(tmp_path / "sentences.jsonl", count=30)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "words": WORDS}))
    model = f'source = "hf:{bert}"\ntokenizer = "tokenizer.json"'
    message = refused(tmp_path, task=TEXTS, model=model, stages="[finetune]")
    assert "tokenizer.json" in message


def test_a_hub_name_without_a_network_is_refused_soon(bert: Path, tmp_path: Path):
    write_sentences(tmp_path / "sentences.jsonl", count=30)
    recipe = write_recipe(
        tmp_path, "bad", task=TEXTS, model='source = "hf:prajjwal1/bert-tiny"', stages="[finetune]"
    )
    started = time.monotonic()
    # An address that nobody answers at stands for no network, and an empty folder for an empty cache.
    done = run_edgeft(
        "run", recipe.name, cwd=tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "hub")
    )
    assert time.monotonic() - started < 30
    message = assert_is_one_clear_message(done, 2)
    assert "the hub does not give it" in message and "hf:FOLDER" in message
    assert not list((tmp_path / "runs").rglob("stages/*"))


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_a_keras_file_with_a_layer_of_its_own(tmp_path_factory: pytest.TempPathFactory, suffix: str):
    if not (extras.is_installed("keras") and extras.is_installed("h5py")):
        pytest.skip("needs keras and h5py")
    folder = tmp_path_factory.mktemp("keras")
    write_keras_files(folder)
    write_pictures(folder, edge=16)
    message = refused(
        folder, task='data = "photos.csv"', model=f'source = "keras:custom.{suffix}"', stages="[finetune]"
    )
    assert f"custom.{suffix}" in message and "Doubled" in message


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ('[finetune]\nmethod = "none"\n[prune]', "cannot be pruned"),
        ("[finetune]", "cannot be trained"),
    ],
    ids=["prune", "finetune"],
)
def test_an_exported_program_is_neither_trained_nor_pruned(tmp_path: Path, stages: str, said: str):
    import torch

    from edgeft.models import networks

    write_pictures(tmp_path)
    program = torch.export.export(
        networks.resnet8(2).eval(),
        (torch.zeros(2, 3, 32, 32),),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    torch.export.save(program, tmp_path / "net.pt2")
    message = refused(tmp_path, task='data = "photos.csv"', model='source = "pt2:net.pt2"', stages=stages)
    assert "pt2:net.pt2" in message and said in message


# -- methods, metrics -----------------------------------------------------------------------------------------


def test_a_metric_that_is_not_there(fruit: Path):
    (fruit.parent / "own.py").write_text("def mean_cost(labels, probabilities):\n    return 0.0\n")
    message = refused(fruit.parent, evaluate='metrics = ["own.py:mean_costs"]')
    assert "no function 'mean_costs' (did you mean 'mean_cost'?)" in message


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('warmup_epochs = 1\nschedule = "one-cycle"', "brings its own warm-up"),
        ("warmup_epochs = 3", "the training has 3 epochs"),
        ("train_blocks = 1", "nothing pretrained"),
        ("feature_weight = 0.5", "follows no teacher"),
    ],
    ids=["one-cycle", "warm-up", "blocks", "features"],
)
def test_settings_that_contradict_each_other(fruit: Path, lines: str, said: str):
    assert said in refused(fruit.parent, stages=f"{RETRAIN}\n{lines}")


def test_unfreezing_where_nothing_is_trained(fruit: Path):
    weights = "fruit.safetensors"
    _save_mlp(fruit.parent / weights)
    message = refused(
        fruit.parent,
        model=f'{MLP}\nweights = "{weights}"',
        stages='[finetune]\nmethod = "none"\nunfreeze_every = 2',
    )
    assert "finetune.unfreeze_every" in message and '"none"' in message


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ('source = "builtin:mlp"\nweights = "gone.safetensors"', "gone.safetensors"),
        ('source = "builtin:mpl"', "did you mean 'mlp'"),
    ],
    ids=["weights", "name"],
)
def test_a_teacher_that_is_not_there(fruit: Path, teacher: str, said: str):
    weights = "fruit.safetensors"
    _save_mlp(fruit.parent / weights)
    message = refused(
        fruit.parent,
        model=f'{MLP}\nweights = "{weights}"',
        stages=f'[finetune]\nmethod = "distill"\n[finetune.teacher]\n{teacher}',
    )
    assert said in message


def _save_mlp(path: Path) -> None:
    from safetensors.torch import save_file

    from edgeft.models import networks

    save_file(networks.MLP(5, 3).state_dict(), path)
