"""What a machine changes in a graph, so that its kernels are used as well as they can be; pure.

A converted graph is the same on every machine, and computes all rows of all layers. Of what follows the
last layer's attention a runner wants only the rows whose logits it asks for. And two things differ
between machines:

- On x86 processors without VNNI, onnxruntime's int8 kernels for 8-bit blocks, and for blocks of 16,
  do less arithmetic in a second than its float32 product does (58 and 55 against 90 Gflop/s a core,
  onnxruntime 1.31, Zen 3). So where many tokens enter at once, the weights are dequantised first, one
  matrix at a time, and only then. Both read the same bytes of the same file.
- CUDA has grouped-query attention in half precision only, so keys and values are kept in float16
  there, and everything else stays in float32.

Kernels: https://github.com/microsoft/onnxruntime/blob/001d12d2623fd411ce0f83d05abb5e82304a3389/docs/OperatorKernels.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from weightpkg.hardware import Cpu

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto

VERSION = 3
"""Goes up with every change of what is made of a graph."""

_VNNI = {"avx512-vnni", "avx-vnni", "amx-int8"}
_MANY = 96  # tokens from which dequantising pays: measured equal at 64, a fifth faster at 128
_MICROSOFT = "com.microsoft"
_ROWS = "logits_to_keep"
# of what these are given (B, T, ...), each row of what they make depends on the same row only
_BY_ROW = {
    "Add", "AveragePool", "Div", "FastGelu", "FusedMatMul", "Gelu", "Identity",
    "LayerNormalization", "MatMul", "MatMulNBits", "Mul", "QuickGelu", "Sigmoid",
    "SimplifiedLayerNormalization", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization", "Split", "Sub", "Tanh",
}  # fmt: skip
_MAKES_ROWS = _BY_ROW | {"GroupQueryAttention", "Gather", "GatherBlockQuantized"}


def wants_float_prefill(cpu: Cpu, architecture: str) -> bool:
    """Whether 8-bit blocks are slower than float32 on a processor, as long as there are many tokens.

    >>> wants_float_prefill(Cpu(features=("avx2", "fma")), "x86_64")
    True
    >>> wants_float_prefill(Cpu(features=("avx2", "avx-vnni")), "x86_64")
    False
    """
    is_x86 = architecture.lower() in {"x86_64", "amd64"}
    return is_x86 and "avx2" in cpu.features and not _VNNI & set(cpu.features)


def with_short_end(model: ModelProto) -> bool:
    """Take the rows that logits are asked for as early as possible; return whether anything changed.

    The slice before the head moves up through all that works row by row and that nothing else needs:
    to the attention of the last layer, and to what goes round it. llama.cpp does the same:
    https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-graph.cpp `build_inp_out_ids`
    """
    from onnx import helper  # noqa: PLC0415  only where a graph is changed

    graph = model.graph
    nodes, makers = list(graph.node), _makers(graph)
    start, cut = _cut(graph, makers)
    early = _early(graph, makers, cut)
    if not early:
        return False
    rows: dict[str, NodeProto] = {}
    for i in sorted(early):
        for at, name in enumerate(nodes[i].input):
            if makers.get(name, cut) not in {*early, cut}:
                rows[name] = helper.make_node(
                    "Slice", [name, *nodes[cut].input[1:]], [f"{name}.rows"]
                )
                nodes[i].input[at] = f"{name}.rows"
    nodes[cut] = helper.make_node("Identity", nodes[cut].input[:1], nodes[cut].output)
    nodes.insert(0, nodes.pop(start))
    replace_nodes(graph, [n for node in nodes for n in (node, *map(rows.get, node.output)) if n])
    return True


def with_float_prefill(model: ModelProto) -> bool:
    """Have large steps multiply dequantised weights; return whether anything changed.

    Each product becomes an `If` on the number of tokens; those that see few rows are left out.
    """
    import numpy as np  # noqa: PLC0415  only where a graph is changed
    from onnx import helper  # noqa: PLC0415  the same

    graph, few = model.graph, _few_rows(model.graph)
    slow = [node for node in graph.node if _is_slow(node) and node.output[0] not in few]
    if not slow:
        return False
    constants = Constants(graph)
    limit = constants.add("limit", np.array([_MANY], np.int64))
    count = helper.make_node("Shape", ["input_ids"], ["tuned.count"], start=1, end=2)
    many = helper.make_node("GreaterOrEqual", ["tuned.count", limit], ["tuned.is_many"])
    names = {node.name for node in slow}
    nodes = [_either(node, constants) if node.name in names else node for node in graph.node]
    replace_nodes(graph, [count, many, *nodes])
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
    replace_nodes(graph, nodes)
    return bool(attention)


def _makers(graph: GraphProto) -> dict[str, int]:
    """Which node makes what."""
    return {name: i for i, node in enumerate(graph.node) for name in node.output if name}


def _cut(graph: GraphProto, makers: Mapping[str, int]) -> tuple[int, int]:
    """Return the nodes that say where the rows begin whose logits are asked for, and that take them."""
    starts = {node.output[0] for node in graph.node if [*node.input] == [_ROWS]}
    for i, node in enumerate(graph.node):
        if node.op_type == "Slice" and node.input[1] in starts:
            return makers[node.input[1]], i
    return -1, -1


def _early(graph: GraphProto, makers: Mapping[str, int], cut: int) -> set[int]:
    """Return the nodes before a slice that may as well come after it."""
    users: dict[str, set[int]] = {value.name: {-1} for value in graph.output}
    for i, node in enumerate(graph.node):
        for name in filter(None, node.input):
            users.setdefault(name, set()).add(i)

    early: set[int] = set()
    for i in range(cut - 1, -1, -1):
        uses = {user for name in graph.node[i].output for user in users.get(name, ())}
        made_by = [graph.node[makers[x]].op_type for x in graph.node[i].input if x in makers]
        if uses and uses <= {*early, cut} and _is_by_row(graph.node[i], made_by):
            early.add(i)
    return early


def _is_by_row(node: NodeProto, made_by: Sequence[str]) -> bool:
    """Whether a node works row by row. made_by: the operators that make its inputs; weights are not made."""
    sizes = integers(node)
    if node.op_type not in _BY_ROW or not set(made_by) <= _MAKES_ROWS:
        return False
    axis = sizes.get("axis", 0 if node.op_type == "Split" else -1)
    if sizes.get("transA") or axis in {0, 1}:
        return False
    return "MatMul" not in node.op_type or len(made_by) == 1


def _few_rows(graph: GraphProto) -> set[str]:
    """Return all that is computed only for the rows whose logits are asked for."""
    few = {_ROWS}
    for node in graph.node:
        if few & {*node.input}:
            few |= {*node.output}
    return few


def _is_slow(node: NodeProto) -> bool:
    if node.op_type != "MatMulNBits" or len(node.input) > 3:
        return False
    sizes = integers(node)
    return (sizes["bits"], sizes["block_size"]) != (4, 32) and (
        sizes["bits"] == 8 or sizes["block_size"] == 16
    )


def _either(node: NodeProto, constants: Constants) -> NodeProto:
    """Return an `If`: dequantise and multiply where there are many tokens, otherwise the node."""
    import numpy as np  # noqa: PLC0415  only where a graph is changed
    from onnx import NodeProto, TensorProto, helper  # noqa: PLC0415  the same

    x, q, scale = node.input[:3]
    sizes, (y,) = integers(node), node.output
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


class Constants:
    """Initializers that are added to a graph, each once."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._by_name = {tensor.name: tensor for tensor in graph.initializer}

    def add(self, name: str, array: NDArray[np.generic]) -> str:
        """Add an array, if it is not there; return its name."""
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


def integers(node: NodeProto) -> dict[str, int]:
    """Return a node's attributes that are whole numbers; others are 0."""
    return {attribute.name: attribute.i for attribute in node.attribute}


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Let a graph have these nodes, in this order."""
    nodes = list(nodes)
    del graph.node[:]
    graph.node.extend(nodes)
