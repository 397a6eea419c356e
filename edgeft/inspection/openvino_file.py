"""OpenVINO IR: an .xml with the graph and a .bin with the constants; OpenVINO itself is not needed."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.errors import ModelError
from edgeft.inspection.files import damaged
from edgeft.inspection.records import Graph, Node, Tensor, Value

_DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "boolean": "bool",
    "fp64": "float64", "fp32": "float32", "fp16": "float16", "bool": "bool",
}  # fmt: skip


def parse(path: Path) -> Graph:
    """Read an .xml file, and the size of its .bin. Raises `ModelError`."""
    weights = path.with_suffix(".bin")
    try:
        root = ET.parse(path).getroot()  # noqa: S314 - no entities: expat refuses those that multiply
        if root.tag != "net" or root.find("layers") is None:
            raise ModelError(
                f"{path}: not an OpenVINO model (its root is <{root.tag}>)", "give an IR's .xml file"
            )
        layers = list(root.iterfind("layers/layer"))
        edges = {_end(edge, "to"): _end(edge, "from") for edge in root.iterfind("edges/edge")}
        graph = _graph(path, root, layers, edges)
        needed = max((_stored_end(layer) for layer in layers), default=0)
    except (ET.ParseError, OSError, KeyError, ValueError, AttributeError) as error:
        raise damaged(path, error) from error
    if needed and (not weights.is_file() or weights.stat().st_size < needed):
        found = f"{weights.stat().st_size:,} bytes long" if weights.is_file() else "missing"
        raise ModelError(
            f"{path}: its constants take {needed:,} bytes of {weights.name}, which is {found}",
            "copy both files of the model again",
        )
    return graph


def _graph(path: Path, root: ET.Element, layers: list[ET.Element], edges: dict[str, str]) -> Graph:
    values: dict[str, Value] = {}
    nodes: list[Node] = []
    constants = _Constants(path.with_suffix(".bin"), layers)
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    read_by: dict[str, int] = {}
    for layer in layers:
        kind, ports = layer.attrib["type"], list(layer.iterfind("output/port"))
        sources = [edges[_port(layer, port)] for port in layer.iterfind("input/port")]
        data = layer.find("data")
        attributes = data.attrib if data is not None else {}
        for port in ports:
            stored = int(attributes["size"]) if kind == "Const" else 0
            values[_port(layer, port)] = Value(dtype=_dtype(port.attrib["precision"]), stored_bytes=stored)
        if kind == "Parameter":
            inputs.append(_tensor(layer, ports[0]))
            read_by[_port(layer, ports[0])] = len(inputs) - 1
        elif kind == "Result":
            outputs.append(_tensor(layer, layer.find("input/port")))
        elif kind != "Const":
            if kind == "FakeQuantize" and sources[0] in read_by:
                place = read_by[sources[0]]
                inputs[place] = _quantized(inputs[place], constants, sources, int(attributes["levels"]))
            nodes.append(
                Node(
                    kind=kind,
                    name=layer.attrib["name"],
                    inputs=sources,
                    outputs=[_port(layer, port) for port in ports],
                    levels=int(attributes.get("levels", 0)) if kind == "FakeQuantize" else 0,
                )
            )
    weights = path.with_suffix(".bin")
    info = root.find("rt_info")
    metadata = dict(_leaves(info)) if info is not None else {}
    runtime = metadata.pop("Runtime_version", "") or metadata.get("MO_version", "")
    opsets = sorted({layer.attrib.get("version", "") for layer in layers} - {""})
    return Graph(
        format="openvino",
        version=f"IR version {root.attrib['version']}; {', '.join(opsets)}",
        producer=f"OpenVINO {runtime}" if runtime else "",
        files=(path, weights) if weights.is_file() else (path,),
        nodes=nodes,
        values=values,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        metadata=metadata,
    )


class _Constants:
    """The few numbers of the .bin that are looked at: the ends of quantized ranges."""

    def __init__(self, path: Path, layers: list[ET.Element]) -> None:
        self._path = path
        self._places = {
            _port(layer, port): data.attrib
            for layer in layers
            for port in layer.iterfind("output/port")
            if layer.attrib["type"] == "Const" and (data := layer.find("data")) is not None
        }

    def scalar(self, name: str) -> float | None:
        """Return the only number of a float32 constant, or None for anything else."""
        place = self._places.get(name, {})
        if place.get("element_type") != "f32" or place.get("size") != "4" or not self._path.is_file():
            return None
        with self._path.open("rb") as stream:
            stream.seek(int(place["offset"]))
            content = stream.read(4)
        return float(np.frombuffer(content, "<f4")[0]) if len(content) == 4 else None


def _quantized(tensor: Tensor, constants: _Constants, sources: list[str], levels: int) -> Tensor:
    """Return an input with the scale of the FakeQuantize that reads it; its zero point is that of unsigned integers."""
    low, high = constants.scalar(sources[1]), constants.scalar(sources[2])
    if low is None or high is None or high <= low:
        return tensor
    scale = (high - low) / (levels - 1)
    return dataclasses.replace(tensor, scale=scale, zero_point=round(-low / scale))


def _end(edge: ET.Element, which: str) -> str:
    return f"{edge.attrib[f'{which}-layer']}:{edge.attrib[f'{which}-port']}"


def _port(layer: ET.Element, port: ET.Element) -> str:
    return f"{layer.attrib['id']}:{port.attrib['id']}"


def _dtype(name: str) -> str:
    """Return the usual name of an IR's precision: FP32, I8, u8, i64, ..."""
    name = name.lower()
    if name in _DTYPES:
        return _DTYPES[name]
    return name.replace("u", "uint").replace("i", "int") if name[1:].isdigit() else name


def _tensor(layer: ET.Element, port: ET.Element | None) -> Tensor:
    if port is None:
        raise ValueError(f"layer {layer.attrib['name']!r} has no port")
    shape: list[Any] = [int(dim.text or "0") for dim in port.iterfind("dim")]
    return Tensor(
        name=port.attrib.get("names", layer.attrib["name"]).split(",")[0],
        shape=tuple("?" if size < 0 else size for size in shape),
        dtype=_dtype(port.attrib["precision"]),
    )


def _stored_end(layer: ET.Element) -> int:
    """Return where a constant ends in the .bin; 0 for anything else."""
    data = layer.find("data")
    if layer.attrib["type"] != "Const" or data is None:
        return 0
    return int(data.attrib["offset"]) + int(data.attrib["size"])


def _leaves(element: ET.Element, prefix: str = "") -> list[tuple[str, str]]:
    """Return the metadata as ``section.key`` and value."""
    found = []
    for child in element:
        key = prefix + (child.attrib["name"] if child.tag == "info" and "name" in child.attrib else child.tag)
        if "value" in child.attrib:
            found.append((key, child.attrib["value"]))
        found += _leaves(child, f"{key}.")
    return found
