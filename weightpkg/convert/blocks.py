"""The parts that models are made of: functions that add nodes to a graph.

Letters in shapes: B batch, T tokens, S tokens so far (past and new), V vocabulary, E hidden size,
K inputs of a matrix, N its outputs, H heads, G key/value heads, D head size, F feed-forward size.

Weights stay as the file has them. A block weight is `scale * (q - 2**(bits-1)) + offset`; the first
part is one MatMulNBits node. Where there is an offset, it is the same for the whole block, so its
part of the product is (mean of x over the block) times (offset * block_size): a second, small
product, and exact, as the sizes are powers of two. Folding it into MatMulNBits as a float zero point
is exact as well but over 60 times slower on the CPU, and rounding it to an integer ruins the model
(docs/decisions/offset-form.md).

Operators: https://github.com/microsoft/onnxruntime/blob/v1.23.0/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from weightpkg.convert import rope
from weightpkg.convert.graph import External, Graph, Payload, Tensor, Value
from weightpkg.convert.weights import alike, same_layout
from weightpkg.tensor import BlockLayout, Blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpkg.convert.weights import Weight, Weights

MICROSOFT = "com.microsoft"

# Activations are rounded to 8 bits a block, as llama.cpp does; level 1 (float32) is 90 times slower.
ACCURACY_LEVEL = 4

_FLOAT32 = np.dtype(np.float32)
_UINT8 = np.dtype(np.uint8)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight in the graph. shape: (N, K).

    Of blocks, q: (N, k_blocks, bytes) uint8, scale: (N, k_blocks) float32 and, where the layout has
    offsets, offset: (k_blocks, N) float32, times block_size. Of a dense weight (`layout` None),
    q: (N, K) float32 and nothing else. columns: (K,) int32, which input each column is of, None where
    they are in the inputs' order.
    """

    shape: tuple[int, int]
    layout: BlockLayout | None
    q: External
    scale: External | None = None
    offset: External | None = None
    columns: Value | None = None


def add_matrix(graph: Graph, name: str, weights: Sequence[Weight]) -> Matrix:
    """Promise a matrix made of weights of one layout, row upon row."""
    rows, width = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    layout = weights[0].layout
    if not isinstance(layout, BlockLayout):
        if (place := weights[0].place) is not None:  # the others lie behind it
            tensor = Tensor(_FLOAT32, (rows, width))
            return Matrix(
                (rows, width), None, graph.in_place(name, tensor, place.file, place.offset)
            )
        payload = Payload(
            (Tensor(_FLOAT32, (rows, width)),),
            lambda: (piece for weight in weights for piece in weight.slices()),  # type: ignore[misc]
        )
        return Matrix((rows, width), None, graph.external(name, payload)[0])
    k_blocks = width // layout.block_size
    tensors = [
        Tensor(_UINT8, (rows, k_blocks, layout.block_size * layout.bits // 8)),
        Tensor(_FLOAT32, (rows, k_blocks)),
    ]
    if layout.has_offset:
        tensors.append(Tensor(_FLOAT32, (k_blocks, rows)))
    payload = Payload(tuple(tensors), lambda: _block_slices(weights, rows, k_blocks))
    q, scale, *offset = graph.external(name, payload)
    columns = None
    if (order := weights[0].columns) is not None:
        columns = graph.constant(order.astype(np.int32), f"{name}.columns")
    return Matrix((rows, width), layout, q, scale, offset[0] if offset else None, columns)


def _block_slices(
    weights: Sequence[Weight], rows: int, k_blocks: int
) -> Iterator[NDArray[np.generic]]:
    """Yield all of q slice by slice, and then the scales and offsets collected on the way."""
    scale = np.empty((rows, k_blocks), np.float32)
    offset: NDArray[np.float32] | None = None
    start = 0
    for weight in weights:
        for blocks in weight.slices():
            assert isinstance(blocks, Blocks)  # noqa: S101  the layout says so
            stop = start + len(blocks.q)
            scale[start:stop] = blocks.scale
            if blocks.offset is not None:
                offset = np.empty((k_blocks, rows), np.float32) if offset is None else offset
                offset[:, start:stop] = blocks.offset.T * np.float32(blocks.layout.block_size)
            start = stop
            yield blocks.q
    yield scale
    if offset is not None:
        yield offset


def linear(graph: Graph, x: Value, matrix: Matrix) -> Value:
    """x: (B, T, K) -> (B, T, N)."""
    x = in_order(graph, x, matrix)
    y = product(graph, x, matrix)
    if matrix.layout is None or matrix.offset is None:
        return y
    means = block_mean(graph, x, matrix.layout)
    return add(graph, y, graph.op("MatMul", (means, matrix.offset.value))[0])


def in_order(graph: Graph, x: Value, matrix: Matrix) -> Value:
    """x: (B, T, K) -> the same in the order of the matrix's columns."""
    if matrix.columns is None:
        return x
    return graph.op("Gather", (x, matrix.columns), attributes={"axis": -1})[0]


def product(graph: Graph, x: Value, matrix: Matrix) -> Value:
    """x: (B, T, K), in the order of the columns -> (B, T, N), without the offsets of blocks."""
    if matrix.layout is None:
        inputs = (x, matrix.q.value)
        return graph.op("FusedMatMul", inputs, domain=MICROSOFT, attributes={"transB": 1})[0]
    rows, width = matrix.shape
    layout = matrix.layout
    assert matrix.scale is not None  # noqa: S101  blocks have scales
    (y,) = graph.op(
        "MatMulNBits",
        (x, matrix.q.value, matrix.scale.value),
        domain=MICROSOFT,
        attributes={
            "K": width,
            "N": rows,
            "bits": layout.bits,
            "block_size": layout.block_size,
            "accuracy_level": ACCURACY_LEVEL,
        },
    )
    return y


def block_mean(graph: Graph, x: Value, layout: BlockLayout) -> Value:
    """x: (B, T, K) -> means over each block (B, T, k_blocks)."""
    # to AveragePool T is channels and K is length: one node where Reshape and ReduceSum are two
    size = [layout.block_size]
    return graph.op("AveragePool", (x,), attributes={"kernel_shape": size, "strides": size})[0]


def project(graph: Graph, x: Value, weight: Weight, bias: Weight | None = None) -> Value:
    """x: (B, T, K) -> (B, T, N), with a weight, and perhaps a bias, that nothing else uses."""
    y = linear(graph, x, add_matrix(graph, weight.name, [weight]))
    return y if bias is None else add_bias(graph, y, [bias])


def add_bias(graph: Graph, y: Value, biases: Sequence[Weight]) -> Value:
    """y: (B, T, N) -> y + the biases, one beside the other."""
    values = np.concatenate([bias.dense() for bias in biases])
    return graph.op("Add", (y, graph.constant(values, biases[0].name)))[0]


def projections(
    graph: Graph, x: Value, weights: Sequence[Weight], name: str, biases: Sequence[Weight] = ()
) -> tuple[Value, ...]:
    """x: (B, T, K) -> (B, T, N) for each weight; neighbours of one layout share one product."""
    values: list[Value] = []
    for group in alike(weights):
        y = linear(graph, x, add_matrix(graph, name, group))
        if biases:
            y = add_bias(graph, y, biases[len(values) :][: len(group)])
        values += split(graph, y, [weight.shape[0] for weight in group])
    return tuple(values)


def split(graph: Graph, y: Value, widths: Sequence[int]) -> tuple[Value, ...]:
    """y: (B, T, N) -> (B, T, width) for each width."""
    if len(widths) == 1:
        return (y,)
    sizes = graph.constant(np.array(widths, np.int64), "sizes")
    return graph.op("Split", (y, sizes), outputs=len(widths), attributes={"axis": -1})


def token_inputs(graph: Graph) -> tuple[Value, Value]:
    """Declare `input_ids` (B, T) int64 and `attention_mask` (B, S) int64."""
    ids = graph.input("input_ids", np.int64, ("batch_size", "sequence_length"))
    return ids, graph.input("attention_mask", np.int64, ("batch_size", "total_sequence_length"))


def embedding(graph: Graph, ids: Value, matrix: Matrix) -> Value:
    """ids: (B, T) int64 -> (B, T, K), rows of the (N, K) matrix."""
    if matrix.layout is None:
        (x,) = graph.op("Gather", (matrix.q.value, ids))
        return x
    rows, width = matrix.shape
    layout = matrix.layout
    packed = graph.share(matrix.q, (rows, width * layout.bits // 8), np.uint8)
    assert matrix.scale is not None  # noqa: S101  blocks have scales
    (x,) = graph.op(
        "GatherBlockQuantized",
        (packed, ids, matrix.scale.value, _zero_points(graph, matrix.shape, layout)),
        domain=MICROSOFT,
        attributes={"bits": layout.bits, "block_size": layout.block_size, "quantize_axis": 1},
    )
    if matrix.offset is None:
        return x
    return _add_block_offsets(graph, x, ids, matrix.offset.value, layout)


def _zero_points(graph: Graph, shape: tuple[int, int], layout: BlockLayout) -> Value:
    """The middle of the range for every block, spelled out: what it is by default varies by EP."""
    rows, k_blocks = shape[0], shape[1] // layout.block_size
    width = -(-k_blocks * layout.bits // 8)
    middle = 0x88 if layout.bits == 4 else 0x80
    some = np.full((min(rows, 4096), width), middle, np.uint8)
    starts = range(0, rows, len(some))
    tensor = Tensor(_UINT8, (rows, width))
    payload = Payload((tensor,), lambda: (some[: rows - start] for start in starts))
    return graph.external("zero_points", payload)[0].value


def _add_block_offsets(
    graph: Graph, x: Value, ids: Value, offset: Value, layout: BlockLayout
) -> Value:
    """x: (B, T, K), offset: (k_blocks, V) times block_size -> x + offset of each row's blocks."""
    (columns,) = graph.op("Gather", (offset, ids), attributes={"axis": 1})  # (k_blocks, B, T)
    (per_block,) = graph.op("Transpose", (columns,), attributes={"perm": (1, 2, 0)})
    size = graph.constant(np.array(layout.block_size, np.float32), "block_size")
    (per_block,) = graph.op("Div", (per_block, size))  # (B, T, k_blocks)
    axes = graph.constant(np.array([3], np.int64), "axes")
    (per_block,) = graph.op("Unsqueeze", (per_block, axes))  # (B, T, k_blocks, 1)
    blocked = graph.constant(np.array([0, 0, -1, layout.block_size], np.int64), "shape")
    (split,) = graph.op("Reshape", (x, blocked))  # (B, T, k_blocks, block_size)
    (total,) = graph.op("Add", (split, per_block))
    flat = graph.constant(np.array([0, 0, -1], np.int64), "shape")
    return graph.op("Reshape", (total, flat))[0]  # (B, T, K)


def rms_norm(graph: Graph, x: Value, weight: Weight, epsilon: float) -> Value:
    """x: (..., E) -> x / sqrt(mean of its squares + epsilon) * weight."""
    gamma = graph.constant(weight.dense(), weight.name)
    attributes = {"axis": -1, "epsilon": epsilon, "stash_type": 1}
    return graph.op("SimplifiedLayerNormalization", (x, gamma), attributes=attributes)[0]


def rms_norm_heads(graph: Graph, x: Value, weight: Weight, n_heads: int, epsilon: float) -> Value:
    """x: (B, T, H*D) -> rms_norm of each head's D values."""
    apart = graph.constant(np.array([0, 0, n_heads, -1], np.int64), "shape")
    (heads,) = graph.op("Reshape", (x, apart))  # (B, T, H*D) -> (B, T, H, D)
    normed = rms_norm(graph, heads, weight, epsilon)
    together = graph.constant(np.array([0, 0, -1], np.int64), "shape")
    return graph.op("Reshape", (normed, together))[0]  # (B, T, H, D) -> (B, T, H*D)


def add_rms_norm(
    graph: Graph, x: Value, update: Value | None, weight: Weight, epsilon: float
) -> tuple[Value, Value]:
    """x, update: (B, T, E) -> rms_norm(x + update), x + update; with no update, of x alone."""
    if update is None:
        return rms_norm(graph, x, weight, epsilon), x
    gamma = graph.constant(weight.dense(), weight.name)
    name = f"{weight.name}.output"
    normed, total = graph.op(
        "SkipSimplifiedLayerNormalization",
        (x, update, gamma),
        outputs=(name, None, None, f"{name}.sum"),
        domain=MICROSOFT,
        attributes={"epsilon": epsilon},
    )
    return normed, total


def layer_norm(graph: Graph, x: Value, vectors: Sequence[Weight], epsilon: float) -> Value:
    """x: (B, T, E) -> (B, T, E), of mean 0 and variance 1 over E, times a weight, plus perhaps a bias."""
    constants = [graph.constant(vector.dense(), vector.name) for vector in vectors]
    attributes = {"axis": -1, "epsilon": epsilon}
    return graph.op("LayerNormalization", (x, *constants), attributes=attributes)[0]


def add_layer_norm(
    graph: Graph, x: Value, update: Value | None, vectors: Sequence[Weight], epsilon: float
) -> tuple[Value, Value]:
    """x, update: (B, T, E) -> layer_norm(x + update), x + update; with no update, of x alone.

    vectors: the norm's weight, and perhaps its bias, each (E,).
    """
    if update is not None:
        x = add(graph, x, update)
    return layer_norm(graph, x, vectors, epsilon), x


def add(graph: Graph, x: Value, update: Value) -> Value:
    """x, update: (B, T, E) -> x + update."""
    return graph.op("Add", (x, update))[0]


def scaled(graph: Graph, x: Value, factor: float) -> Value:
    """x: any shape -> x * factor."""
    return graph.op("Mul", (x, graph.constant(np.array(factor, np.float32), "factor")))[0]


def swiglu(graph: Graph, gate: Value, up: Value) -> Value:
    """gate, up: (B, T, F) -> silu(gate) * up."""
    (sigmoid,) = graph.op("Sigmoid", (gate,))
    (activated,) = graph.op("Mul", (gate, sigmoid))
    return graph.op("Mul", (activated, up))[0]


def gelu(graph: Graph, x: Value) -> Value:
    """x: any shape -> x * Phi(x), Phi the cumulative normal distribution."""
    return graph.op("Gelu", (x,), domain=MICROSOFT)[0]


def gelu_tanh(graph: Graph, x: Value) -> Value:
    """x: any shape -> gelu(x), approximated by a hyperbolic tangent as many models are trained."""
    return graph.op("FastGelu", (x,), domain=MICROSOFT)[0]


def geglu(graph: Graph, gate: Value, up: Value) -> Value:
    """gate, up: (B, T, F) -> gelu_tanh(gate) * up."""
    return graph.op("Mul", (gelu_tanh(graph, gate), up))[0]


def swiglu_mlp(graph: Graph, x: Value, gate_up: Sequence[Weight], down: Weight, name: str) -> Value:
    """x: (B, T, E) -> down(silu(gate(x)) * up(x)), (B, T, E)."""
    gate, up = projections(graph, x, gate_up, name)
    return project(graph, swiglu(graph, gate, up), down)


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """What the attention layers of one model share.

    sequence_lengths: (B,) int32, last position of each row; total: scalar int32, S;
    cos, sin: (max positions, D/2) float32, or fewer columns where only the first part of a head
    rotates, or None where attention does not rotate. Products of q and k are multiplied by `scale`, or divided
    by sqrt(D), and then kept within `softcap`. A token sees `window` positions, its own included.
    sinks: (H,) float32, a product for each head that takes its share of the softmax and has no value.
    What rotates together are neighbours if `is_interleaved`, otherwise both halves of a head.
    """

    sequence_lengths: Value
    total: Value
    cos: Value | None
    sin: Value | None
    n_heads: int
    n_kv_heads: int
    head_size: int
    scale: float | None = None
    softcap: float | None = None
    window: int | None = None
    sinks: Value | None = None
    is_interleaved: bool = False

    def attributes(self) -> dict[str, int | float]:
        """Those of GroupQueryAttention."""
        optional = {
            "scale": self.scale,
            "softcap": self.softcap,
            "local_window_size": self.window,
            "rotary_interleaved": int(self.is_interleaved) or None,
        }
        return {
            "num_heads": self.n_heads,
            "kv_num_heads": self.n_kv_heads,
            "do_rotary": int(self.cos is not None),
            **{name: value for name, value in optional.items() if value is not None},
        }


def attention_lengths(graph: Graph, attention_mask: Value) -> tuple[Value, Value]:
    """attention_mask: (B, S) int64 -> last position of each row (B,) int32, S as int32."""
    to_int32 = {"to": int(TensorProto.INT32)}
    axes = graph.constant(np.array([1], np.int64), "axes")
    (counts,) = graph.op("ReduceSum", (attention_mask, axes), attributes={"keepdims": 0})
    (last,) = graph.op("Sub", (counts, graph.constant(np.array([1], np.int64), "one")))
    (last,) = graph.op("Cast", (last,), attributes=to_int32)
    (total,) = graph.op("Shape", (attention_mask,), attributes={"start": 1, "end": 2})
    (total,) = graph.op("Squeeze", (total,))
    (total,) = graph.op("Cast", (total,), attributes=to_int32)
    return last, total


def rotary_tables(
    graph: Graph, frequencies: NDArray[np.float64], positions: int, factor: float = 1.0
) -> tuple[Value, Value]:
    """frequencies: (D/2,) -> cos and sin, each (positions, D/2), times a factor."""
    shape = (positions, len(frequencies))

    def add(name: str, which: int) -> Value:
        payload = Payload(
            (Tensor(_FLOAT32, shape),), lambda: _table_slices(frequencies, positions, factor, which)
        )
        return graph.external(name, payload)[0].value

    return add("cos", 0), add("sin", 1)


def _table_slices(
    frequencies: NDArray[np.float64], positions: int, factor: float, which: int
) -> Iterator[NDArray[np.generic]]:
    step = 8192
    for start in range(0, positions, step):
        yield rope.cos_sin(frequencies, start, min(start + step, positions), factor)[which]


def attention(
    graph: Graph,
    x: Value,
    qkv: Sequence[Weight],
    layer: int,
    shared: AttentionInputs,
    biases: Sequence[Weight] = (),
) -> Value:
    """x: (B, T, E) -> (B, T, H*D): grouped-query attention with rotary position embedding."""
    name = f"layer.{layer}.qkv"
    if not same_layout(qkv):
        return attend(graph, projections(graph, x, qkv, name, biases), layer, shared)
    heads = linear(graph, x, add_matrix(graph, name, qkv))
    return attend(graph, (add_bias(graph, heads, biases) if biases else heads,), layer, shared)


def attend(graph: Graph, qkv: Sequence[Value], layer: int, shared: AttentionInputs) -> Value:
    """q: (B, T, H*D), k and v: (B, T, G*D), or all in one -> (B, T, H*D).

    The cache of layer `i` enters as `past_key_values.i.{key,value}` (B, G, S_past, D) and leaves as
    `present.i.{key,value}` (B, G, S, D); a caller may bind both to one buffer.
    """
    cache = ("batch_size", shared.n_kv_heads, "past_sequence_length", shared.head_size)
    grown = ("batch_size", shared.n_kv_heads, "total_sequence_length", shared.head_size)
    past = [
        graph.input(f"past_key_values.{layer}.{part}", np.float32, cache)
        for part in ("key", "value")
    ]
    query = (*qkv, None, None)[:3]  # the operator takes q, k and v in one tensor as well
    rotary = () if shared.cos is None else (shared.cos, shared.sin)
    sinks = () if shared.sinks is None else (*((None,) * (4 - len(rotary))), shared.sinks)
    output, *present = graph.op(
        "GroupQueryAttention",
        (*query, *past, shared.sequence_lengths, shared.total, *rotary, *sinks),
        outputs=(f"layer.{layer}.attention", f"present.{layer}.key", f"present.{layer}.value"),
        domain=MICROSOFT,
        attributes=shared.attributes(),
    )
    for value in present:
        graph.output(value, np.float32, grown)
    return output


def last_positions(graph: Graph, x: Value) -> Value:
    """x: (B, T, E) -> (B, logits_to_keep, E), all of T where nobody feeds `logits_to_keep`."""
    everything = np.array([np.iinfo(np.int64).max], np.int64)
    keep = graph.optional_input("logits_to_keep", everything)
    (start,) = graph.op("Neg", (keep,))
    end = graph.constant(everything, "end")
    axes = graph.constant(np.array([1], np.int64), "axes")
    return graph.op("Slice", (x, start, end, axes))[0]


def add_head(graph: Graph, weights: Weights, embedding: Matrix) -> Matrix:
    """Promise the head's matrix; where it has no weights of its own, the embedding is it."""
    if "lm_head.weight" not in weights:
        return embedding
    output = weights.take("lm_head.weight", embedding.shape)
    return add_matrix(graph, output.name, [output])


def head(graph: Graph, x: Value, matrix: Matrix) -> Value:
    """x: (B, T, E) -> logits (B, logits_to_keep, V)."""
    return linear(graph, last_positions(graph, x), matrix)


def output_logits(graph: Graph, logits: Value, vocabulary: int) -> None:
    """logits: (B, logits_to_keep, V), which become the model's output."""
    (logits,) = graph.op("Identity", (logits,), outputs=("logits",))
    graph.output(logits, np.float32, ("batch_size", "logits_length", vocabulary))
