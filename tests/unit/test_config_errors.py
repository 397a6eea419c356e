"""Strict configuration: whatever is wrong, one message names the file, the key and what would be right."""

import os
from pathlib import Path

import pytest

from edgeft import calibration, extras, recipe, resources, schema, target
from edgeft.errors import ConfigError, ExitCode, MissingDependencyError, nearest

MINIMAL = """
schema = 1
name = "flowers"
targets = ["cpu-litert"]
[task]
data = "data/flowers"
[model]
source = "builtin:edge-tiny"
"""


def load(tmp_path: Path, text: str) -> recipe.Recipe:
    file = tmp_path / "flowers.toml"
    file.write_text(text)
    return recipe.load(file)


def refusal(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "flowers.toml") in caught.value.message
    assert caught.value.exit_code == ExitCode.USAGE
    return caught.value


def test_an_absent_section_skips_its_stage(tmp_path):
    loaded = load(tmp_path, MINIMAL)
    assert loaded.finetune is None and loaded.prune is None and loaded.quantize is None
    assert loaded.measure.rounds >= 2


def test_the_effective_recipe_reads_back_the_same(tmp_path):
    text = MINIMAL + '[finetune]\nepochs = 3\n[prune]\nbudget = { macs = 0.5 }\n[quantize]\nmethod = "ptq"\n'
    loaded = load(tmp_path, text)
    assert load(tmp_path, loaded.to_toml()) == loaded
    assert "label_smoothing = 0.0" in loaded.to_toml()


@pytest.mark.parametrize("name", ['a"b', "back\\slash", "new\nline", "tab\there", "über"])
def test_every_string_survives_the_round_trip(tmp_path, name):
    loaded = load(tmp_path, MINIMAL)
    changed = loaded.model_copy(update={"task": loaded.task.model_copy(update={"data": name})})
    assert load(tmp_path, changed.to_toml()) == changed


def test_an_unknown_key_names_its_place_and_the_nearest(tmp_path):
    error = refusal(tmp_path, MINIMAL + "[finetune]\nepoch = 3\n")
    assert "unknown key 'finetune.epoch' (did you mean 'epochs'?)" in error.message
    assert "learning_rate" in error.hint


def test_an_unknown_section_and_a_nested_key_are_found_too(tmp_path):
    assert "'quantise' (did you mean 'quantize'?)" in refusal(tmp_path, MINIMAL + "[quantise]\n").message
    error = refusal(tmp_path, MINIMAL + "[prune]\nbudget = { mac = 0.5 }\n")
    assert "'prune.budget.mac' (did you mean 'macs'?)" in error.message


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ('[finetune]\nepochs = "3"\n', ["finetune.epochs", "'3'"]),
        ("[finetune]\nepochs = 0\n", ["finetune.epochs", "greater than or equal to 1", "got 0"]),
        ("[finetune]\nepochs = 2.5\n", ["finetune.epochs", "2.5"]),
        ('[quantize]\nmethod = "qta"\n', ["quantize.method", "'qat'", "'ptq'", "'qta'"]),
        ("[prune]\nbudget = { macs = 1.5 }\n", ["prune.budget.macs", "less than or equal to 1", "1.5"]),
        ('[gate]\naccuracy_margin = "small"\n', ["gate.accuracy_margin", "'small'"]),
        ("[finetune]\nlearning_rate = nan\n", ["finetune.learning_rate", "nan"]),
    ],
)
def test_a_wrong_value_names_key_and_value(tmp_path, section, told):
    message = refusal(tmp_path, MINIMAL + section).message
    assert [part for part in told if part not in message] == []


def test_a_whole_number_may_stand_for_a_fraction(tmp_path):
    assert load(tmp_path, MINIMAL + "[finetune]\nlearning_rate = 1\n").finetune.learning_rate == 1.0


@pytest.mark.parametrize("missing", ["targets", "task", "model"])
def test_a_missing_key_is_named(tmp_path, missing):
    lines = {"targets": 'targets = ["cpu-litert"]\n', "task": '[task]\ndata = "data/flowers"\n'}
    gone = lines.get(missing, '[model]\nsource = "builtin:edge-tiny"\n')
    assert f"key {missing!r} is missing" in refusal(tmp_path, MINIMAL.replace(gone, "")).message


def test_several_faults_are_told_at_once(tmp_path):
    message = refusal(tmp_path, MINIMAL + "[finetune]\nepoch = 3\nbatch_size = 0\n").message
    assert "finetune.epoch" in message and "finetune.batch_size" in message


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name = "flowers"', 'name = "../up"', "letters, digits"),
        ('["cpu-litert"]', "[]", "targets"),
        ('["cpu-litert"]', '["cpu-litert", "cpu-litert"]', "every target may be named once"),
        ("schema = 1", "schema = 2", "schema"),
        (
            'data = "data/flowers"',
            'data = "x"\nval_fraction = 0.6\ntest_fraction = 0.35',
            "a tenth for training",
        ),
    ],
)
def test_values_that_contradict_are_refused(tmp_path, old, new, told):
    assert told in refusal(tmp_path, MINIMAL.replace(old, new)).message


def test_bad_toml_names_the_line(tmp_path):
    message = refusal(tmp_path, "schema = 1\nname = \n").message
    assert "not valid TOML" in message and "line 2" in message


def test_a_file_that_is_no_text_or_absent_or_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        recipe.load(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        recipe.load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        recipe.load(tmp_path / "binary.toml")


@pytest.mark.parametrize("name", resources.names("targets"))
def test_every_shipped_target_loads(name):
    profile = target.load(name)
    assert profile.id == name
    for module in profile.runtime.requires:
        assert "pip install" in extras.missing_error(module, "this target").hint


@pytest.mark.parametrize("name", resources.names("calibration"))
def test_every_shipped_calibration_recipe_loads(name):
    assert calibration.load(name).id == name


def test_what_is_shipped():
    assert resources.names("targets") == (
        "cpu-litert", "cpu-litert-arm", "cpu-onnxruntime", "cpu-onnxruntime-arm", "cpu-onnxruntime-avx2",
        "cpu-openvino", "cpu-openvino-arm", "cpu-openvino-avx2", "gpu-cuda-onnxruntime", "gpu-cuda-torch",
        "gpu-intel-openvino", "mcu-tflm", "npu-ethos-u55-128", "npu-ethos-u55-256", "npu-ethos-u65-256",
        "npu-ethos-u65-512", "npu-ethos-u85-1024", "npu-ethos-u85-256", "npu-intel-openvino",
        "npu-qualcomm-htp-v73", "npu-qualcomm-htp-v75",
    )  # fmt: skip
    assert resources.names("calibration") == (
        "equalized", "minmax", "moving-average", "mse", "percentile", "random", "smooth-quant",
    )  # fmt: skip


def test_every_recipe_of_the_checkout_loads():
    folder = Path(__file__).resolve().parents[2] / "bench" / "recipes"
    paths = sorted(folder.glob("*.toml"))
    assert "demo.toml" in [path.name for path in paths]
    for path in paths:
        for name in recipe.load(path).targets:
            target.load(name, folder)


def test_an_unknown_target_names_the_nearest_and_all():
    with pytest.raises(ConfigError) as caught:
        target.load("cpu-onnxruntme")
    assert "did you mean 'cpu-onnxruntime'?" in caught.value.message
    assert "cpu-openvino" in caught.value.message


def test_a_bare_name_is_never_read_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("")
    text = resources.find("targets", "cpu-litert").read_text()
    (tmp_path / "cpu-litert.toml").write_text(text.replace("threads = 1", "threads = 7"))
    assert target.load("cpu-litert").runtime.threads == 1
    with pytest.raises(ConfigError, match="unknown target 'mine'"):
        target.load("mine", tmp_path)
    assert target.load("./cpu-litert.toml", tmp_path).runtime.threads == 7
    assert target.load("cpu-litert.toml", tmp_path).runtime.threads == 7


def test_a_path_is_relative_to_the_recipe_and_its_id_is_its_name(tmp_path):
    text = resources.find("targets", "cpu-litert").read_text()
    (tmp_path / "board.toml").write_text(text)
    with pytest.raises(ConfigError, match="id is 'cpu-litert', the file is named 'board'"):
        target.load("board.toml", tmp_path)
    (tmp_path / "board.toml").write_text(text.replace('id = "cpu-litert"', 'id = "board"'))
    assert target.load("board.toml", tmp_path).id == "board"
    with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist"):
        target.load("nowhere.toml", tmp_path)


def test_prune_limits_suit_every_target():
    profiles = [target.load("cpu-litert"), target.load("cpu-onnxruntime")]
    limits = target.PruneLimits(channel_multiple=12, min_channels=4)
    other = profiles[0].model_copy(update={"prune": limits})
    common = target.common_prune_limits([*profiles, other])
    assert common.channel_multiple == 24 and common.min_channels == 8
    assert common.multiple_of_depthwise == 48  # 16 on ONNX Runtime, whose kernels take as many at a time


def test_a_missing_package_is_exit_code_5_with_the_pip_line():
    profile = target.load("cpu-openvino")
    absent = profile.runtime.model_copy(update={"requires": ["numpy", "no_such_runtime"]})
    with pytest.raises(
        MissingDependencyError, match=r"target cpu-openvino needs .*no_such_runtime"
    ) as caught:
        target.require_packages(profile.model_copy(update={"runtime": absent}))
    assert caught.value.exit_code == ExitCode.MISSING
    assert "pip install" in caught.value.hint
    assert "edgeft[openvino]" in extras.missing_error("openvino", "x").hint


def test_loading_an_absent_package_is_the_same_error():
    with pytest.raises(MissingDependencyError, match="this test needs"):
        extras.load("no_such_package.inner", "this test")
    assert extras.load("json", "this test").dumps({}) == "{}"
    assert not extras.is_installed("no_such_package") and extras.is_installed("numpy")


def test_versions_leave_out_what_is_absent():
    found = extras.versions("numpy", "no_such_package")
    assert list(found) == ["numpy"] and found["numpy"][0].isdigit()


def test_nearest_prefers_names_that_begin_like_the_word():
    allowed = ["npu-ethos-u85-256", "npu-ethos-u55-128", "npu-ethos-u55-256"]
    assert nearest("npu-ethos-u55", allowed) == " (did you mean 'npu-ethos-u55-128'?)"


def test_nearest_says_nothing_rather_than_nonsense():
    assert nearest("epoch", ["epochs", "seed"]) == " (did you mean 'epochs'?)"
    assert nearest("zzz", ["epochs", "seed"]) == ""


def test_validation_of_plain_data_names_its_origin():
    with pytest.raises(ConfigError, match="command line: key 'task' is missing"):
        schema.validate({"targets": ["x"], "model": {"source": "y"}}, recipe.Recipe, "command line")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_a_configuration_error(tmp_path):
    file = tmp_path / "secret.toml"
    file.write_text(MINIMAL)
    file.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read"):
        recipe.load(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            MINIMAL.replace('data = "data/flowers"', 'kind = "text-classification"\ndata = "t.csv"'),
            "is for pictures; task.kind is 'text-classification'",
        ),
        (
            MINIMAL + '[quantize]\nengine = "neural-compressor"\n',
            'needs quantize.engine = "edgeft"',
        ),
    ],
)
def test_embedded_preprocessing_is_refused_where_it_cannot_be_exact(tmp_path, text, message):
    assert message in refusal(tmp_path, text + '[export]\npreprocess = "embedded"\n').message
