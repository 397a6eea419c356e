"""torch itself: .pt2 files (torch.export) on an NVIDIA GPU, one recorded CUDA graph, timed by the device's own events.

For machines that have torch and no other runtime beside the GPU. On ``cpu`` the same code runs without graph and
events, to see the file's answers.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .base import Array, BaseAdapter, Lane, MissingDeviceError, count, tensor

if TYPE_CHECKING:
    import torch

MAC_OPS = {
    "conv1d",
    "conv2d",
    "conv3d",
    "linear",
    "conv_transpose1d",
    "conv_transpose2d",
    "matmul",
    "addmm",
    "mm",
}
_WARM_UP_RUNS = 3


def devices() -> dict[str, str]:
    """Return the devices that torch drives here: name (``cuda:1`` for another than the first) -> what it is."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {"cpu": ""}  # no driver: importing torch to hear the same would take seconds
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": ""} | {f"cuda:{index}" if index else "cuda": name for index, name in enumerate(names)}


def signature(path: str) -> dict[str, list[dict[str, Any]]]:
    """Return the `inputs` and `outputs` that a file says it has. Raises RuntimeError if it is no program."""
    program = _load(path)
    found = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    given = program.graph_signature
    return {
        kind: [tensor(name, found[name].shape, _dtype(found[name])) for name in names]
        for kind, names in (("inputs", given.user_inputs), ("outputs", given.user_outputs))
    }


class _Graph(Lane):
    """A program whose run is recorded once and replayed; its inputs and outputs keep their place."""

    def __init__(self, module: Any, examples: Sequence[torch.Tensor], *, recorded: bool) -> None:
        torch: Any = importlib.import_module("torch")
        self._torch, self._module, self._inputs = torch, module, list(examples)
        self._on_gpu = examples[0].is_cuda
        self._outputs: list[torch.Tensor] = []
        self._graph: Any = None
        if recorded and self._on_gpu:
            # pytorch.org/docs/stable/notes/cuda.html#cuda-graphs: libraries initialise on a side stream, before it.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP_RUNS):
                    self._run()
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._run()

    def _run(self) -> None:
        with self._torch.inference_mode():
            found = self._module(*self._inputs)
        self._outputs = list(found) if isinstance(found, tuple | list) else [found]

    def place(self, natives: Sequence[Array]) -> None:
        for there, native in zip(self._inputs, natives, strict=True):
            there.copy_(self._torch.from_numpy(native))
        self._wait()

    def invoke(self) -> None:
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()
        self._wait()

    def invoke_ms(self) -> float:
        if not self._on_gpu:
            return super().invoke_ms()
        start, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()
        end.record()
        end.synchronize()
        elapsed_ms: float = start.elapsed_time(end)
        return elapsed_ms

    def fetch(self) -> list[Array]:
        return [output.cpu().numpy() for output in self._outputs]

    def _wait(self) -> None:
        if self._on_gpu:
            self._torch.cuda.synchronize()


class Adapter(BaseAdapter):
    """A program on one device; the option ``cuda_graph`` (``1``, the default, or ``0``) records its run."""

    def _open(self) -> Sequence[Lane]:
        import torch
        from torch.export.passes import move_to_device_pass

        if set(self.options) - {"cuda_graph"} or self.options.get("cuda_graph", "1") not in ("0", "1"):
            raise RuntimeError(f"torch: options {self.options}; allowed is cuda_graph = 0 or 1")
        if self.streams > 1:
            raise RuntimeError(
                f"torch: {self.streams} streams asked for; a recorded graph runs one at a time"
            )
        if self.device not in devices():
            raise MissingDeviceError(
                f"torch {torch.__version__}: no device {self.device!r} here, only {', '.join(devices())}"
            )
        torch.set_num_threads(self.threads)
        if self.device != "cpu":  # streams, events and the recording are those of the current one
            torch.cuda.set_device(self.device)
        # Shapes are fixed: the fastest kernel of each is looked for once.
        torch.backends.cudnn.benchmark = True
        program = _load(self.path)
        found = signature(self.path)
        for kind, specs in (("input", self.inputs), ("output", self.outputs)):
            self._check_count(kind, len(found[f"{kind}s"]), specs)
            for one, spec in zip(found[f"{kind}s"], specs, strict=True):
                self._check_io(kind, spec, one["shape"], one["dtype"])
        self._program = move_to_device_pass(program, self.device)
        examples = [
            torch.zeros(one["shape"], dtype=getattr(torch, one["dtype"]), device=self.device)
            for one in found["inputs"]
        ]
        recorded = self.options.get("cuda_graph", "1") == "1"
        return [_Graph(self._program.module(), examples, recorded=recorded)]

    def describe(self) -> dict[str, Any]:
        """Return the report; an op's precision is that of its first operand in the program."""
        import torch

        ops = [
            (node.target._schema.name.partition("::")[2], _dtype(node.args[0].meta["val"]))
            for node in self._program.graph.nodes
            if hasattr(node.target, "_schema") and node.args and hasattr(node.args[0], "meta")
        ]
        on_gpu = self.device != "cpu"
        return {
            "runtime": "torch",
            "version": torch.__version__,
            "device": f"{self.device} ({torch.cuda.get_device_name(self.device)})" if on_gpu else self.device,
            "mac_precision": count([dtype for name, dtype in ops if name in MAC_OPS]),
            "partitions": 1,
            "details": {
                "options": dict(self.options),
                "clock": "device events" if on_gpu else "wall clock",
                "input_output": "in the GPU's memory; copies are not timed" if on_gpu else "in memory",
                "ops": count([name for name, _ in ops]),
                "float_other_ops": sum(
                    dtype.startswith("float") for name, dtype in ops if name not in MAC_OPS
                ),
            },
        }


def _load(path: str) -> Any:
    import torch

    try:
        return torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, OSError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RuntimeError(f"{path}: not a whole torch.export file ({reason})") from error


def _dtype(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")
