"""Classification metrics against scikit-learn, the error rates of their intervals, galleries, users' metrics."""

import base64
import dataclasses
import json
import time

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from edgeft import records
from edgeft.errors import ConfigError, MeasurementError
from edgeft.measure import classification, gallery, user_metric
from edgeft.measure.statistics import auc_interval, score_interval, wilson_interval
from edgeft.types import ClassificationMetrics


def made_up(samples: int, classes: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and labels of a classifier that is the better, the higher its sharpness."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    logits = rng.normal(size=(samples, classes)) + sharpness * np.eye(classes)[labels]
    return logits.astype(np.float32), labels


def named(classes: int) -> tuple[str, ...]:
    return tuple(f"class {k}" for k in range(classes))


@pytest.mark.parametrize(("classes", "sharpness"), [(2, 1.0), (6, 2.0), (40, 3.0)])
def test_every_figure_is_scikit_learns(classes, sharpness):
    logits, labels = made_up(700, classes, sharpness)
    found = classification.metrics(logits, labels, classes=named(classes))
    predictions = logits.argmax(axis=1)
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(classes), zero_division=0
    )
    assert [c.precision.value for c in found.per_class] == pytest.approx(precision.tolist())
    assert [c.recall.value for c in found.per_class] == pytest.approx(recall.tolist())
    assert [c.f1.value for c in found.per_class] == pytest.approx(f1.tolist())
    assert [c.support for c in found.per_class] == support.tolist()
    assert found.macro_precision.value == pytest.approx(precision.mean())
    assert found.macro_recall.value == pytest.approx(recall.mean())
    assert found.macro_f1.value == pytest.approx(f1.mean())
    assert found.accuracy.value == sklearn_metrics.accuracy_score(labels, predictions)
    assert found.balanced_accuracy.value == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(labels, predictions)
    )
    np.testing.assert_array_equal(
        found.confusion, sklearn_metrics.confusion_matrix(labels, predictions, labels=range(classes))
    )
    if classes == 2:
        margin = logits[:, 1] - logits[:, 0]
        assert found.roc_auc.value == pytest.approx(sklearn_metrics.roc_auc_score(labels, margin))
    else:
        assert found.roc_auc is None
    if classes > 5:
        expected = sklearn_metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(classes))
        assert found.top5_accuracy.value == pytest.approx(expected)
    else:
        assert found.top5_accuracy is None


def test_ties_of_scores_count_half_in_the_roc_area():
    labels = np.array([0, 0, 1, 1, 1, 0])
    logits = np.array([[0, 1], [0, 2], [0, 2], [0, 3], [0, 1], [0, 1]], np.float32)
    found = classification.metrics(logits, labels, classes=named(2)).roc_auc
    assert found.value == pytest.approx(sklearn_metrics.roc_auc_score(labels, logits[:, 1]))


def test_calibration_error_is_that_of_guo_et_al():
    logits, labels = made_up(500, 4, 1.5)
    shares = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(axis=1, keepdims=True)
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    expected, occupied = 0.0, []
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        occupied.append(int(inside.sum()))
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    found = classification.metrics(logits, labels, classes=named(4))
    assert found.calibration_error.value == pytest.approx(expected)
    assert [bin_.samples for bin_ in found.reliability] == occupied
    weights = np.array(occupied) / 500
    assert sum(w * b.accuracy for w, b in zip(weights, found.reliability, strict=True)) == pytest.approx(
        found.accuracy.value
    )


def test_a_division_by_zero_is_zero_and_marked():
    # Class 1 is never predicted, 2 has no samples but a prediction, 3 has neither.
    labels = np.array([0, 0, 1])
    logits = np.eye(4, dtype=np.float32)[[0, 2, 0]]
    found = classification.metrics(logits, labels, classes=named(4))
    assert [c.undefined for c in found.per_class] == [
        (),
        ("precision",),
        ("recall",),
        ("precision", "recall", "f1"),
    ]
    assert (found.per_class[3].f1.value, found.per_class[3].f1.low, found.per_class[3].f1.high) == (0, 0, 1)
    predictions = logits.argmax(axis=1)
    assert found.macro_f1.value == pytest.approx(
        sklearn_metrics.f1_score(labels, predictions, average="macro", zero_division=0)
    )
    assert found.balanced_accuracy.value == 0.25, "over the classes that have samples"


def test_intervals_enclose_their_values_and_shrink_with_samples():
    def widths(samples: int) -> np.ndarray:
        found = classification.metrics(*made_up(samples, 6, 2.0), classes=named(6))
        figures = [
            found.accuracy, found.balanced_accuracy, found.macro_precision, found.macro_recall, found.macro_f1,
            found.top5_accuracy, found.calibration_error, *(c.f1 for c in found.per_class),
        ]  # fmt: skip
        assert all(0 <= f.low <= f.value <= f.high <= 1 for f in figures)
        return np.array([f.high - f.low for f in figures])

    assert (widths(4000) < 0.5 * widths(400)).all()


def test_a_perfect_classifier_is_not_certainly_perfect():
    labels = np.repeat(np.arange(4), 25)
    found = classification.metrics(20 * np.eye(4, dtype=np.float32)[labels], labels, classes=named(4))
    for figure in (found.balanced_accuracy, found.macro_f1, found.macro_precision):
        # As much as 100 right answers of 100 tell of a proportion.
        assert (figure.value, figure.low) == (1.0, pytest.approx(wilson_interval(100, 100)[0]))
    assert 0.8 < found.per_class[0].f1.low < 0.95


def test_intervals_hold_as_often_as_they_say():
    """95 % intervals of figures whose true values are known, over many data sets."""
    classes, per_class, trials = 4, 25, 300
    truth = np.array([[0.94, 0.02, 0.02, 0.02], [0.1, 0.8, 0.1, 0.0], [0, 0.05, 0.95, 0], [0.03, 0, 0, 0.97]])
    recall = np.diag(truth)
    f1 = 2 * recall / (1 + truth.sum(axis=0))
    labels = np.repeat(np.arange(classes), per_class)
    rng, held = np.random.default_rng(5), np.zeros(2)
    for trial in range(trials):
        predictions = np.concatenate([rng.choice(classes, per_class, p=row) for row in truth])
        logits = np.eye(classes, dtype=np.float32)[predictions]
        found = classification.metrics(logits, labels, classes=named(classes), seed=trial)
        for i, (figure, true) in enumerate(
            ((found.balanced_accuracy, recall.mean()), (found.macro_f1, f1.mean()))
        ):
            held[i] += figure.low <= true <= figure.high
    assert (held / trials > 0.92).all() and (held / trials < 0.995).all(), held / trials


def test_roc_intervals_hold_as_often_as_they_say():
    from scipy import stats

    m, n, shift, trials = 40, 30, 1.8, 1000
    true = stats.norm.cdf(shift / np.sqrt(2))
    rng, held = np.random.default_rng(3), 0
    for _ in range(trials):
        positive, negative = rng.normal(shift, size=m), rng.normal(size=n)
        low, high = auc_interval(float((positive[:, None] > negative).mean()), m, n)
        held += low <= true <= high
    assert 0.93 < held / trials < 0.985, held / trials
    low, high = auc_interval(1.0, m, n)
    assert 0.85 < low < 0.99 and high == 1.0
    assert auc_interval(0.0, m, n) == pytest.approx((0.0, 1.0 - low), abs=1e-6)


def test_the_score_interval_is_wilsons_at_whole_numbers():
    for k, n in ((0, 9), (5, 9), (9, 9), (97, 100)):
        assert score_interval(k / n, n) == pytest.approx(wilson_interval(k, n))


def test_the_calibration_interval_knows_that_resampling_adds_error():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, size=(400, 3)).astype(np.float32)
    shares = classification.probabilities(logits)
    labels = np.array(
        [rng.choice(3, p=row) for row in shares]
    )  # calibrated by construction: the true error is 0
    found = classification.metrics(logits, labels, classes=named(3)).calibration_error
    assert found.low < 0.25 * found.value and found.high >= found.value


def test_the_same_seed_gives_the_same_intervals():
    logits, labels = made_up(200, 3, 1.0)
    first, again, other = (
        classification.metrics(logits, labels, classes=named(3), seed=seed).macro_f1 for seed in (1, 1, 2)
    )
    assert first == again and first != other


def test_many_classes_and_samples_take_no_time():
    logits, labels = made_up(10_000, 100, 3.0)
    started = time.perf_counter()
    classification.metrics(logits, labels, classes=named(100))
    assert time.perf_counter() - started < 4, "about 1 s on an idle core"


def test_metrics_survive_a_stay_on_disk(tmp_path):
    logits, labels = made_up(50, 2, 1.0)
    found = classification.metrics(logits, labels, classes=named(2))
    stored = json.loads(json.dumps(records.encode(found, tmp_path)))
    read = records.decode(ClassificationMetrics, stored, tmp_path)
    np.testing.assert_array_equal(read.confusion, found.confusion)
    assert read.confusion.dtype == np.int64
    nothing = np.zeros(0)
    assert dataclasses.replace(read, confusion=nothing) == dataclasses.replace(found, confusion=nothing)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 2)), [], "0 logits"),
        (np.zeros((2, 2)), [0], "2 logits, 1 labels"),
        (np.full((1, 2), np.nan), [0], "not finite"),
        (np.zeros((2, 2)), [0, 2], "the same classes"),
        (np.zeros((2, 3)), [0, 1], "the same classes"),
    ],
)
def test_what_does_not_fit_is_refused(logits, labels, message):
    with pytest.raises(MeasurementError, match=message):
        classification.metrics(logits, np.array(labels, np.int64), classes=named(2))


class Previews:
    """Samples of which every other is a picture."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels, self.ids = labels, [f"{i:064x}" for i in range(len(labels))]

    def name(self, index: int) -> str:
        return f"file {index}"

    def preview(self, index: int) -> bytes | str:
        return f"text {index}" if index % 2 else b"\x89PNG" + bytes([index])


def test_the_hardest_are_those_of_highest_loss():
    logits = np.array([[5, 0], [0, 5], [0, 1], [2, 0]], np.float32)
    labels = np.array([0, 0, 0, 1])
    assert classification.hardest(logits, labels, 3).tolist() == [1, 3, 2]
    assert classification.hardest(logits, labels).tolist() == [1, 3, 2, 0]


def test_confusions_are_the_most_frequent_mistakes():
    matrix = np.array([[9, 1, 0], [4, 9, 0], [0, 2, 99]])
    assert classification.confusions(matrix, 2) == ((1, 0), (2, 1))
    assert classification.confusions(matrix) == ((1, 0), (2, 1), (0, 1)), "what never happened is not listed"
    assert classification.confusions(np.eye(3, dtype=np.int64)) == ()


def test_a_gallery_shows_what_the_model_took_each_sample_for():
    labels = np.array([0, 0, 1, 1, 1])
    logits = np.array([[4, 0], [0, 1], [3, 0], [5, 0], [0, 2]], np.float32)
    found = gallery.collect(logits, labels, Previews(labels), classes=("cat", "dog"), hardest=2, per_pair=1)
    worst, second = found.hardest
    assert (worst.index, worst.name, worst.label, worst.prediction) == (3, "file 3", "dog", "cat")
    assert worst.probability == pytest.approx(1 / (1 + np.exp(-5)))
    assert worst.label_probability == pytest.approx(1 - worst.probability)
    assert (worst.text, worst.png) == ("text 3", "")
    assert base64.b64decode(second.png) == b"\x89PNG\x02" and second.text == ""
    most, other = found.confusions
    assert (most.label, most.prediction, most.count, most.support) == ("dog", "cat", 2, 3)
    assert [e.index for e in most.exhibits] == [3], "the surest mistake first"
    assert (other.label, other.prediction, other.count, other.support) == ("cat", "dog", 1, 2)


METRICS = """
from dataclasses import dataclass

import numpy as np

@dataclass
class Cost:
    miss: "float" = 5.0

def cost(labels, probabilities):
    wrong = probabilities.argmax(axis=1) != labels
    labels[:] = 0
    return np.float32(Cost().miss * wrong.mean())

def several(labels, probabilities):
    return {"samples": len(labels), "sure": (probabilities.max(axis=1) > 0.9).mean()}

def broken(labels, probabilities):
    counts = {}
    return counts["missing"]

def texts(labels, probabilities):
    return {"a": "high"}

def nan(labels, probabilities):
    return float("nan")

def array(labels, probabilities):
    return probabilities
"""
LABELS = np.array([0, 1, 1])
SHARES = np.array([[0.95, 0.05], [0.6, 0.4], [0.2, 0.8]])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "metrics.py").write_text(METRICS)
    return tmp_path


def test_a_users_metric_gives_numbers_by_name(folder):
    cost, several = user_metric.load_all(["metrics.py:cost", "metrics.py:several"], folder)
    labels = LABELS.copy()
    assert cost(labels, SHARES) == {"cost": pytest.approx(5 / 3)}
    np.testing.assert_array_equal(labels, LABELS)
    assert several(LABELS, SHARES) == {"several.samples": 3.0, "several.sure": pytest.approx(1 / 3)}
    assert len(cost.sha256) == 64 and cost.sha256 == several.sha256
    (folder / "metrics.py").write_text(METRICS + "\n# another\n")
    assert user_metric.load("metrics.py:cost", folder).sha256 != cost.sha256


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("metrics.py", r"got 'metrics.py'; allowed is path/to/file.py:function"),
        ("metrics:cost", "allowed is path/to/file.py:function"),
        ("absent.py:cost", r"absent\.py: cannot be read \(No such file"),
        ("metrics.py:costs", r"has no function 'costs' \(did you mean 'cost'\?\); there are: .*several"),
        ("metrics.py:np", "has no function 'np'"),
        ("syntax.py:f", r"syntax\.py, line 2: the file raised SyntaxError"),
        (
            "dies.py:f",
            r"dies\.py, line 3: the file raised ModuleNotFoundError: No module named 'no_such_package'",
        ),
    ],
)
def test_a_users_metric_that_cannot_be_loaded_is_a_clear_error(folder, spec, message):
    (folder / "syntax.py").write_text("x = 1\ndef f(:\n")
    (folder / "dies.py").write_text("\n\nimport no_such_package\n")
    with pytest.raises(ConfigError, match=message):
        user_metric.load(spec, folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"metrics\.py, line 20: broken\(labels, probabilities\) raised KeyError: 'missing'"),
        ("texts", "texts returned 'high' under 'a'; allowed are a finite number"),
        ("nan", "nan returned nan; allowed are a finite number"),
        ("array", "array returned a ndarray; allowed are"),
    ],
)
def test_a_users_metric_that_misbehaves_is_a_clear_error(folder, name, message):
    metric = user_metric.load(f"metrics.py:{name}", folder)
    with pytest.raises(ConfigError, match=message):
        metric(LABELS, SHARES)


def test_two_users_metrics_of_one_name_are_refused(folder):
    (folder / "other.py").write_text(METRICS)
    with pytest.raises(ConfigError, match="more than one function is called 'cost'"):
        user_metric.load_all(["metrics.py:cost", "other.py:cost"], folder)
