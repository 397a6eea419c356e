"""The stages as functions: settings, records, and the refusals that come before or after the work."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edgeft
from edgeft import calibration, stages
from edgeft.errors import BudgetError, ConfigError, DataError, MissingDependencyError, ModelError
from edgeft.recipe import Finetune, Quantize
from edgeft.types import FloatModel

SIZE = 8


class Tiny(nn.Module):
    """Two convolutions and a head: bright upper half or bright lower half."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8 * 16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(self.two(self.one(x)), 1))


def batches(count: int, *, batch_size: int = 8, seed: int = 0) -> DataLoader:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.normal(0, 0.3, (count, 1, SIZE, SIZE)).astype(np.float32)
    images[labels == 0, :, : SIZE // 2] += 1
    images[labels == 1, :, SIZE // 2 :] += 1
    return DataLoader(
        TensorDataset(torch.from_numpy(images), torch.from_numpy(labels)), batch_size=batch_size
    )


@pytest.fixture
def model() -> FloatModel:
    torch.manual_seed(0)
    preprocessing = edgeft.ImagePreprocessing(size=SIZE, resize=SIZE, channels=1, mean=(0.0,), std=(1.0,))
    return FloatModel(module=Tiny().eval(), preprocessing=preprocessing, labels=("up", "down"))


def few(samples: int = 16) -> calibration.CalibrationRecipe:
    """Return the shipped extremes of fewer samples."""
    return calibration.load("minmax").model_copy(update={"samples": samples})


def test_the_record_says_what_was_done(model: FloatModel):
    tuned = stages.finetune(model, batches(32), batches(8, seed=1), epochs=2, augment="none", seed=7)
    (record,) = tuned.history
    assert (record.name, record.seed) == ("finetune", 7)
    assert record.config["epochs"] == 2 and record.config["learning_rate"] == Finetune().learning_rate
    assert record.seconds > 0 and "torch" in record.versions
    assert len(record.results["epochs"]) == 2
    assert 0 <= record.results["val_accuracy"] <= 1


def test_keywords_go_over_the_given_config(model: FloatModel):
    tuned = stages.finetune(model, batches(16), batches(8), Finetune(epochs=5, augment="none"), epochs=1)
    assert len(tuned.history[0].results["epochs"]) == 1
    assert tuned.history[0].config["augment"] == "none"


def test_method_none_takes_the_network_as_it_is(model: FloatModel):
    kept = stages.finetune(model, batches(16), batches(8), method="none")
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, kept.module.state_dict()[name])
    assert "epochs" not in kept.history[0].results
    assert kept.module is not model.module


def test_the_same_seed_gives_the_same_weights(model: FloatModel):
    first, second = (
        stages.finetune(model, batches(32), batches(8), epochs=2, augment="none").module.state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epoch": 1}, "did you mean 'epochs'"),
        ({"epochs": "two"}, "'two'"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_work(model: FloatModel, settings: dict, told: str):
    def never() -> None:
        raise AssertionError("a batch was asked for")
        yield

    with pytest.raises(ConfigError) as raised:
        stages.finetune(model, never(), never(), **settings)
    assert told in str(raised.value) and "edgeft.finetune" in raised.value.message


def test_diverged_training_is_an_error_with_advice(model: FloatModel):
    with torch.no_grad():
        model.module.head.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN") as raised:
        stages.finetune(model, batches(16), batches(8), method="none")
    assert "learning rate" in raised.value.hint


def test_calibration_takes_exactly_what_it_asks_for(model: FloatModel):
    seen = []

    def counted() -> object:
        for inputs, labels in batches(40, batch_size=10):
            seen.append(len(inputs))
            yield inputs, labels

    program = stages.quantize(
        model, batches(16), batches(8), method="ptq", calibration=few(16), samples=counted(), augment="none"
    )
    assert seen == [10, 10], "no batch more than needed is read"
    assert program.history[-1].results["val_accuracy_float"] >= 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_quantization_aware_training_is_on_the_given_device(model: FloatModel):
    settings = {"calibration": few(16), "augment": "none", "epochs": 1, "device": "cuda"}
    with pytest.raises(MissingDependencyError, match="device 'cuda'"):
        stages.quantize(model, batches(16), batches(8), method="qat", **settings)
    assert stages.quantize(model, batches(16), batches(8), method="ptq", **settings).layers


def test_unlabelled_batches_calibrate_too(model: FloatModel):
    unlabelled = [inputs for inputs, _ in batches(16)]
    labelled = stages.quantize(
        model, batches(16), batches(8), method="ptq", calibration=few(16), samples=batches(16)
    )
    program = stages.quantize(
        model, batches(16), batches(8), method="ptq", calibration=few(16), samples=unlabelled
    )
    assert program.activations == labelled.activations


def test_too_few_samples_are_an_error_not_a_shorter_calibration(model: FloatModel):
    with pytest.raises(DataError, match="asks for 16 samples, there are 12"):
        stages.quantize(
            model, batches(16), batches(8), method="ptq", calibration=few(16), samples=batches(12)
        )


def test_a_missed_accuracy_limit_says_by_how_much(model: FloatModel):
    tuned = stages.finetune(
        model, batches(64), batches(40, seed=1), epochs=3, augment="none", learning_rate=1e-2
    )
    assert tuned.history[0].results["val_accuracy"] > 0.9
    # Ranges from inputs that are far too small clip everything: the program loses for real.
    tiny = [inputs * 1e-3 for inputs, _ in batches(16)]
    settings = Quantize(method="ptq", max_accuracy_drop=0.01)
    with pytest.raises(BudgetError, match=r"loses 0\.\d+ on the validation split") as raised:
        stages.quantize(tuned, batches(64), batches(40, seed=1), settings, calibration=few(16), samples=tiny)
    assert "qat" in raised.value.hint
    fine = stages.quantize(
        tuned, batches(64), batches(40, seed=1), settings, calibration=few(16), samples=batches(16)
    )
    assert fine.history[-1].results["val_accuracy"] > 0.9


@pytest.mark.parametrize("count", [1, 31, 32, 33, 64, 65])
def test_predictions_come_in_order_whatever_the_batches(model: FloatModel, count: int):
    inputs = next(iter(batches(count, batch_size=count)))[0].numpy()
    logits = stages.predict_program(model.module, inputs)
    assert logits.shape == (count, 2) and logits.dtype == np.float32
    one_by_one = np.concatenate(
        [stages.predict_program(model.module, inputs[i : i + 1]) for i in range(count)]
    )
    np.testing.assert_allclose(logits, one_by_one, atol=1e-5)


def test_history_accumulates_and_the_input_keeps_its_own(model: FloatModel):
    tuned = stages.finetune(model, batches(16), batches(8), epochs=1, augment="none")
    again = stages.finetune(tuned, batches(16), batches(8), epochs=1, augment="none")
    assert [len(each.history) for each in (model, tuned, again)] == [0, 1, 2]
    assert again.history[0] is tuned.history[0]
