"""TensorFlow Lite's metadata, read slot by slot as metadata_schema.fbs of tflite-support numbers them; no converter."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from typing import Any

import flatbuffers
import numpy as np
import pytest
from flatbuffers import number_types
from flatbuffers.table import Table

from edgeft.exporters import tflite_metadata
from edgeft.preprocessing import ImagePreprocessing, NumericColumn, TabularPreprocessing

PICTURE = ImagePreprocessing(
    size=32, resize=36, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
FIRST_SLOT = 4


class Reader:
    """A table whose fields are asked for by slot."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def _offset(self, slot: int) -> int:
        return int(self.table.Offset(FIRST_SLOT + 2 * slot))

    def has(self, slot: int) -> bool:
        return bool(self._offset(slot))

    def number(self, slot: int, flags: Any) -> int:
        return int(self.table.Get(flags, self._offset(slot) + self.table.Pos))

    def text(self, slot: int) -> str:
        return str(self.table.String(self._offset(slot) + self.table.Pos).decode())

    def child(self, slot: int) -> Reader:
        position = self.table.Indirect(self._offset(slot) + self.table.Pos)
        return Reader(Table(self.table.Bytes, position))

    def children(self, slot: int) -> list[Reader]:
        start, count = self.table.Vector(self._offset(slot)), self.table.VectorLen(self._offset(slot))
        positions = [self.table.Indirect(start + 4 * index) for index in range(count)]
        return [Reader(Table(self.table.Bytes, position)) for position in positions]

    def floats(self, slot: int) -> list[float]:
        values = self.table.GetVectorAsNumpy(number_types.Float32Flags, self._offset(slot))
        return [float(value) for value in values]


def read(content: bytes) -> tuple[Reader, Reader, Reader]:
    """Return the model's table, and those of its input and output."""
    assert flatbuffers.util.BufferHasIdentifier(content, 0, b"M001")
    root = flatbuffers.encode.Get(flatbuffers.packer.uoffset, content, 0)
    model = Reader(Table(bytearray(content), root))
    (graph,) = model.children(3)
    (source,), (sink,) = graph.children(2), graph.children(3)
    return model, source, sink


def test_pixels_are_normalised_in_units_of_0_to_255():
    model, source, _ = read(tflite_metadata.describe(PICTURE))
    assert model.text(7) == "1.0.0"
    assert source.child(3).number(0, number_types.Uint8Flags) == 2  # ImageProperties
    image = source.child(3).child(1)
    assert image.number(0, number_types.Int8Flags) == 1  # RGB
    size = image.child(1)
    assert [size.number(slot, number_types.Uint32Flags) for slot in (0, 1)] == [32, 32]
    (unit,) = source.children(4)
    assert unit.number(0, number_types.Uint8Flags) == 1  # NormalizationOptions
    np.testing.assert_allclose(unit.child(1).floats(0), [123.675, 116.28, 103.53], rtol=1e-6)
    np.testing.assert_allclose(unit.child(1).floats(1), [58.395, 57.12, 57.375], rtol=1e-6)
    pixels = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1).repeat(3, axis=3)
    low, high = PICTURE.normalize(pixels)[:, :, 0, 0]
    np.testing.assert_allclose(source.child(5).floats(1), low, rtol=1e-6)
    np.testing.assert_allclose(source.child(5).floats(0), high, rtol=1e-6)


def test_a_network_that_normalises_by_itself_takes_pixels_as_they_are():
    _, source, _ = read(tflite_metadata.describe(dataclasses.replace(PICTURE, embedded=True)))
    (unit,) = source.children(4)
    assert (unit.child(1).floats(0), unit.child(1).floats(1)) == ([0.0] * 3, [1.0] * 3)
    assert source.child(5).floats(0) == [255.0] * 3


def test_the_output_names_its_file_of_labels():
    _, _, sink = read(tflite_metadata.describe(PICTURE))
    (labels,) = sink.children(6)
    assert labels.text(0) == "labels.txt"
    assert labels.number(2, number_types.Int8Flags) == 2  # TENSOR_AXIS_LABELS


def test_other_inputs_are_features_without_a_normalisation():
    table = TabularPreprocessing(columns=(NumericColumn(name="x", mean=1.0, std=2.0),))
    _, source, _ = read(tflite_metadata.describe(table))
    assert source.child(3).number(0, number_types.Uint8Flags) == 1  # FeatureProperties
    assert not source.has(4)


@pytest.mark.parametrize("offset", [0, 4097])
def test_labels_lie_uncompressed_behind_the_model(offset: int):
    labels = ("äpfel", "two words")
    packed = tflite_metadata.associated_files(labels, offset)
    assert packed == tflite_metadata.associated_files(labels, offset)
    with zipfile.ZipFile(io.BytesIO(b"\x00" * offset + packed)) as archive:
        (entry,) = archive.infolist()
        assert entry.compress_type == zipfile.ZIP_STORED and entry.header_offset == offset
        assert archive.read("labels.txt").decode() == "äpfel\ntwo words\n"
