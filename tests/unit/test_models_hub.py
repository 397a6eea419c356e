"""Pretrained weights of library models: from torch's cache, or one clear message."""

import time
from pathlib import Path

import pytest
import torch

from edgeft import extras, models, recipe
from edgeft.errors import ModelError
from edgeft.models import hub

pytestmark = pytest.mark.skipif(not extras.is_installed("torchvision"), reason="torchvision is not installed")
MOBILENET = recipe.Model(source="torchvision:mobilenet_v2", input_size=64)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "checkpoints"


def build() -> models.BuiltModel:
    preprocessing = models.default_preprocessing(MOBILENET, base=Path())
    assert preprocessing is not None
    return models.build(MOBILENET, 5, base=Path(), seed=0, preprocessing=preprocessing)


def test_a_file_in_the_cache_is_used(cache: Path) -> None:
    network = extras.load("torchvision.models", "this test").mobilenet_v2()
    cache.mkdir()
    url = extras.load("torchvision.models", "this test").get_model_weights("mobilenet_v2").DEFAULT.url
    torch.save(network.state_dict(), cache / Path(url).name)
    built = build()
    assert torch.equal(built.module.features[0][0].weight, network.features[0][0].weight)
    assert built.account.fresh == ("classifier.1.weight", "classifier.1.bias")


def test_without_a_network_the_message_names_the_file(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    # A port of this machine that nobody listens on stands for a host that cannot be reached.
    monkeypatch.setattr(hub, "_torchvision_url", lambda *_: "http://127.0.0.1:9/mobilenet_v2-7ebf99e0.pth")
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"mobilenet_v2-7ebf99e0\.pth cannot be had") as caught:
        build()
    assert "model.weights" in caught.value.hint and time.monotonic() - started < 10
    assert not cache.exists(), "no half file is left"


def test_a_model_without_weights_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_torchvision_url", lambda *_: "")
    with pytest.raises(ModelError, match="the library knows none"):
        build()
