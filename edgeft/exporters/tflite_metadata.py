"""The metadata of a .tflite file: what its tensors mean, how pixels are normalised, and the classes' names.

TensorFlow Lite's metadata (metadata_schema.fbs of tflite-support, file identifier ``M001``) is a flatbuffer in the
model's buffer ``TFLITE_METADATA``. The files that it refers to are members of a zip behind the model, which readers of
flatbuffers do not see. Android's task library, ML Binding and MediaPipe read both.
"""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import flatbuffers

from edgeft.preprocessing import ImagePreprocessing, Preprocessing

NAME: Final = "TFLITE_METADATA"
"""Of the entry in the model's table of metadata."""
LABELS: Final = "labels.txt"

_IDENTIFIER = b"M001"
_PARSER = "1.0.0"  # the oldest one that knows everything written here
_DATE = (1980, 1, 1, 0, 0, 0)
# Numbers of the schema: an axis's labels; the two colour spaces; the unions' members.
_AXIS_LABELS = 2
_COLOURS = {3: 1, 1: 2}
_FEATURES, _IMAGE = 1, 2
_NORMALIZATION = 1
_SAMPLES = {
    "image": "Picture",
    "text": "Token ids of a text",
    "table": "Row of a table: standardised numbers, and 0 or 1 per category",
}


def describe(preprocessing: Preprocessing) -> bytes:
    """Return the metadata of a classifier of one input and one output: a flatbuffer of type ModelMetadata."""
    write = _Writer()
    graph = write.table(
        10,
        {
            2: ("UOffsetTRelative", write.tables([_input(write, preprocessing)])),
            3: ("UOffsetTRelative", write.tables([_output(write)])),
        },
    )
    model = write.table(
        8,
        {
            0: ("UOffsetTRelative", write.text(f"{preprocessing.kind} classifier")),
            3: ("UOffsetTRelative", write.tables([graph])),
            7: ("UOffsetTRelative", write.text(_PARSER)),
        },
    )
    write.builder.Finish(model, _IDENTIFIER)
    return bytes(write.builder.Output())


def associated_files(labels: Sequence[str], offset: int) -> bytes:
    """Return the zip that goes behind a model of `offset` bytes: `labels.txt`, a class per line.

    Its members are stored, as the task library needs them, and without the time of day.
    """
    buffer = io.BytesIO()
    buffer.seek(offset)  # positions in a zip count from the beginning of the whole file
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        entry = zipfile.ZipInfo(LABELS, date_time=_DATE)
        entry.create_system = 3  # else the host's own
        entry.external_attr = (stat.S_IFREG | 0o644) << 16
        archive.writestr(entry, "".join(f"{label}\n" for label in labels))
    return buffer.getvalue()[offset:]


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes tables by the numbers of their slots; everything inside of a table is written before it."""

    builder: Any = field(default_factory=lambda: flatbuffers.Builder(1024))

    def table(self, slots: int, fields: dict[int, tuple[str, int]]) -> int:
        """Write a table of `slots` slots; `fields` maps each one that is filled to its type and value."""
        self.builder.StartObject(slots)
        for slot, (kind, value) in fields.items():
            getattr(self.builder, f"Prepend{kind}Slot")(slot, value, 0)
        return int(self.builder.EndObject())

    def text(self, value: str) -> int:
        """Write a string."""
        return int(self.builder.CreateString(value))

    def tables(self, offsets: Sequence[int]) -> int:
        """Write a vector of tables."""
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return int(self.builder.EndVector())

    def floats(self, values: Sequence[float]) -> int:
        """Write a vector of float32."""
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self.builder.PrependFloat32(value)
        return int(self.builder.EndVector())


def _input(write: _Writer, preprocessing: Preprocessing) -> int:
    fields = {
        0: ("UOffsetTRelative", write.text(preprocessing.kind)),
        1: ("UOffsetTRelative", write.text(_SAMPLES[preprocessing.kind])),
        3: ("UOffsetTRelative", _content(write, preprocessing)),
    }
    if isinstance(preprocessing, ImagePreprocessing):
        mean, std = _pixel_statistics(preprocessing)
        options = write.table(
            2, {0: ("UOffsetTRelative", write.floats(mean)), 1: ("UOffsetTRelative", write.floats(std))}
        )
        unit = write.table(2, {0: ("Uint8", _NORMALIZATION), 1: ("UOffsetTRelative", options)})
        fields[4] = ("UOffsetTRelative", write.tables([unit]))
        high = write.floats([(255 - m) / s for m, s in zip(mean, std, strict=True)])
        low = write.floats([-m / s for m, s in zip(mean, std, strict=True)])
        fields[5] = (
            "UOffsetTRelative",
            write.table(2, {0: ("UOffsetTRelative", high), 1: ("UOffsetTRelative", low)}),
        )
    return write.table(7, fields)


def _pixel_statistics(preprocessing: ImagePreprocessing) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation by channel, of pixels in 0..255, that the device has to apply."""
    if preprocessing.embedded:
        return [0.0] * preprocessing.channels, [1.0] * preprocessing.channels
    return [255 * m for m in preprocessing.mean], [255 * s for s in preprocessing.std]


def _content(write: _Writer, preprocessing: Preprocessing) -> int:
    if not isinstance(preprocessing, ImagePreprocessing):
        return write.table(3, {0: ("Uint8", _FEATURES), 1: ("UOffsetTRelative", write.table(0, {}))})
    size = write.table(2, {0: ("Uint32", preprocessing.size), 1: ("Uint32", preprocessing.size)})
    image = write.table(2, {0: ("Int8", _COLOURS[preprocessing.channels]), 1: ("UOffsetTRelative", size)})
    return write.table(3, {0: ("Uint8", _IMAGE), 1: ("UOffsetTRelative", image)})


def _output(write: _Writer) -> int:
    labels = write.table(
        5,
        {
            0: ("UOffsetTRelative", write.text(LABELS)),
            1: ("UOffsetTRelative", write.text("Classes, one per line, in the order of the logits")),
            2: ("Int8", _AXIS_LABELS),
        },
    )
    content = write.table(3, {0: ("Uint8", _FEATURES), 1: ("UOffsetTRelative", write.table(0, {}))})
    return write.table(
        7,
        {
            0: ("UOffsetTRelative", write.text("logits")),
            1: ("UOffsetTRelative", write.text("Logits of the classes; their softmax are probabilities")),
            3: ("UOffsetTRelative", content),
            6: ("UOffsetTRelative", write.tables([labels])),
        },
    )
