"""What a machine changes in a graph, so that its kernels are used as well as they can be; pure.

A converted graph is the same on every machine. Two things differ between machines:

- On x86 processors without VNNI, onnxruntime's int8 kernels for 8-bit blocks, and for blocks of 16,
  do less arithmetic in a second than its float32 product does (58 and 55 against 90 Gflop/s a core,
  onnxruntime 1.31, Zen 3). So where many tokens enter at once, the weights are dequantised first, one
  matrix at a time, and only then. Both read the same bytes of the same file.
- CUDA has grouped-query attention in half precision only, so keys and values are kept in float16
  there, and everything else stays in float32.

Kernels: https://github.com/microsoft/onnxruntime/blob/001d12d2623fd411ce0f83d05abb5e82304a3389/docs/OperatorKernels.md
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from weightpkg.hardware import Cpu

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto

VERSION = 1
"""Goes up with every change of what is made of a graph."""

_VNNI = {"avx512-vnni", "avx-vnni", "amx-int8"}
_MANY = 96  # tokens from which dequantising pays: measured equal at 64, a fifth faster at 128
_MICROSOFT = "com.microsoft"


def wants_float_prefill(cpu: Cpu, architecture: str) -> bool:
    """Whether 8-bit blocks are slower than float32 on a processor, as long as there are many tokens.

    >>> wants_float_prefill(Cpu(features=("avx2", "fma")), "x86_64")
    True
    >>> wants_float_prefill(Cpu(features=("avx2", "avx-vnni")), "x86_64")
    False
    """
    is_x86 = architecture.lower() in {"x86_64", "amd64"}
    return is_x86 and "avx2" in cpu.features and not _VNNI & set(cpu.features)


def with_float_prefill(model: ModelProto) -> bool:
    """Have large steps multiply dequantised weights; return whether anything changed.

    Each product becomes an `If` on the number of tokens; the head is left out, as it sees few rows.
    """
    import numpy as np  # noqa: PLC0415  only where a graph is changed
    from onnx import helper  # noqa: PLC0415  the same

    graph = model.graph
    slow = [node for node in graph.node if _is_slow(node, graph)]
    if not slow:
        return False
    constants = _Constants(graph)
    limit = constants.add("limit", np.array([_MANY], np.int64))
    count = helper.make_node("Shape", ["input_ids"], ["tuned.count"], start=1, end=2)
    many = helper.make_node("GreaterOrEqual", ["tuned.count", limit], ["tuned.is_many"])
    names = {node.name for node in slow}
    nodes = [_either(node, constants) if node.name in names else node for node in graph.node]
    _replace_nodes(graph, [count, many, *nodes])
    return True


def with_half_attention(model: ModelProto) -> bool:
    """Keep keys and values in float16, and attend in it; return whether anything changed."""
    from onnx import TensorProto  # noqa: PLC0415  only where a graph is changed

    graph = model.graph
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    kept = {name for node in attention for name in (*node.input[3:5], *node.output[1:3])}
    for value in (*graph.input, *graph.output):
        if value.name in kept:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    casts: dict[str, NodeProto] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            nodes += _half(node, casts)
        else:
            nodes.append(node)
    _replace_nodes(graph, nodes)
    return bool(attention)


def _is_slow(node: NodeProto, graph: GraphProto) -> bool:
    if node.op_type != "MatMulNBits" or len(node.input) > 3:
        return False
    sizes = _integers(node)
    return (sizes["bits"], sizes["block_size"]) != (4, 32) and (
        sizes["bits"] == 8 or sizes["block_size"] == 16
    ) and not _makes_logits(node, graph)  # fmt: skip


def _makes_logits(node: NodeProto, graph: GraphProto) -> bool:
    """Whether a product is the head: what it makes is an output, perhaps after an Add or Identity."""
    outputs, names = {value.name for value in graph.output}, {*node.output}
    for other in graph.node:
        if other.op_type in {"Add", "Identity", "Div", "Mul", "Tanh"} and names & {*other.input}:
            names |= {*other.output}
    return bool(names & outputs)


def _either(node: NodeProto, constants: _Constants) -> NodeProto:
    """Return an `If`: dequantise and multiply where there are many tokens, otherwise the node."""
    import numpy as np  # noqa: PLC0415  only where a graph is changed
    from onnx import NodeProto, TensorProto, helper  # noqa: PLC0415  the same

    x, q, scale = node.input[:3]
    sizes, (y,) = _integers(node), node.output
    rows, bits, block_size = sizes["N"], sizes["bits"], sizes["block_size"]
    flat = constants.reshaped(q, (rows, sizes["K"] * bits // 8))
    middle = 0x88 if bits == 4 else 0x80
    shape = (rows, -(-(sizes["K"] // block_size) * bits // 8))
    zeros = constants.add(f"zeros.{bits}.{shape}", np.full(shape, middle, np.uint8))
    every = constants.add(f"rows.{rows}", np.arange(rows))
    weight = helper.make_node(
        "GatherBlockQuantized",
        [flat, every, scale, zeros],
        [f"{y}.weight"],
        domain=_MICROSOFT,
        bits=bits,
        block_size=block_size,
        quantize_axis=1,
    )
    product = helper.make_node(
        "FusedMatMul", [x, f"{y}.weight"], [f"{y}.many"], domain=_MICROSOFT, transB=1
    )
    few = NodeProto()
    few.CopyFrom(node)
    few.output[0] = f"{y}.few"

    def branch(name: str, nodes: list[NodeProto]) -> GraphProto:
        result = helper.make_tensor_value_info(f"{y}.{name}", TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [result])

    return helper.make_node(
        "If",
        ["tuned.is_many"],
        [y],
        name=f"{node.name}.either",
        then_branch=branch("many", [weight, product]),
        else_branch=branch("few", [few]),
    )


def _half(node: NodeProto, casts: dict[str, NodeProto]) -> list[NodeProto]:
    """Return an attention node between casts; what several share is cast once."""
    from onnx import NodeProto, TensorProto, helper  # noqa: PLC0415  only where a graph is changed

    nodes: list[NodeProto] = []
    half = NodeProto()
    half.CopyFrom(node)
    floats = [i for i in (0, 1, 2, 7, 8, 11) if i < len(node.input) and node.input[i]]
    for i in floats:
        name = node.input[i]
        if name not in casts:
            casts[name] = helper.make_node(
                "Cast", [name], [f"{name}.half"], to=int(TensorProto.FLOAT16)
            )
            nodes.append(casts[name])
        half.input[i] = f"{name}.half"
    (output, *_) = node.output
    half.output[0] = f"{output}.half"
    back = helper.make_node("Cast", [f"{output}.half"], [output], to=int(TensorProto.FLOAT))
    return [*nodes, half, back]


class _Constants:
    """Initializers that are added to a graph, each once."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._by_name = {tensor.name: tensor for tensor in graph.initializer}

    def add(self, name: str, array: NDArray[np.generic]) -> str:
        from onnx import numpy_helper  # noqa: PLC0415  only where a graph is changed

        name = f"tuned.{name}"
        if name not in self._by_name:
            self._by_name[name] = numpy_helper.from_array(array, name)
            self._graph.initializer.append(self._by_name[name])
        return name

    def reshaped(self, name: str, shape: tuple[int, ...]) -> str:
        """Give an initializer's bytes, wherever they are, another shape and name."""
        tensor, new = self._by_name[name], f"tuned.{name}"
        if new not in self._by_name:
            self._by_name[new] = self._graph.initializer.add()
            self._by_name[new].CopyFrom(tensor)
            self._by_name[new].name = new
            del self._by_name[new].dims[:]
            self._by_name[new].dims.extend(shape)
        return new


def _integers(node: NodeProto) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def _replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    nodes = list(nodes)
    del graph.node[:]
    graph.node.extend(nodes)
