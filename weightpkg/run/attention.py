"""What attention is told of its keys and values: scales of 8 bits, and where windows begin; pure.

Both are changes of a graph at load time, as those of `tuning`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightpkg.run.tuning import Constants, integers, replace_nodes
from weightpkg.run.windows import METADATA, START, Windows

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from weightpkg.run.scales import Scales

VERSION = 2
"""Goes up with every change of what is made of a graph."""

_POSITIONS, _SINKS = 9, 11  # inputs of GroupQueryAttention


def with_int8_cache(model: ModelProto, scales: Scales) -> bool:
    """Keep keys and values in int8, with a scale for each channel; return whether anything changed."""
    from onnx import TensorProto, helper  # noqa: PLC0415  only where a graph is changed

    graph, kept = model.graph, set()
    constants = Constants(graph)
    for node in graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        layer = layer_of(node)
        names = [
            constants.add(f"{part}_scale.{layer}", steps[None, :, None, :])
            for part, steps in zip(("key", "value"), scales.steps[layer], strict=True)
        ]
        inputs = [*node.input, *[""] * 14][:12]
        node.ClearField("input")
        node.input.extend([*inputs, *names])
        settings = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        node.attribute.extend(helper.make_attribute(*each) for each in settings.items())
        node.attribute.append(helper.make_attribute("kv_cache_bit_width", 8))
        kept |= {*node.input[3:5], *node.output[1:3]}
    for value in (*graph.input, *graph.output):
        if value.name in kept:
            value.type.tensor_type.elem_type = TensorProto.INT8
    return bool(kept)


def without_claims(model: ModelProto) -> bool:
    """Remove what a file says of windows' buffers, which only we make; return whether it did."""
    kept = [each for each in model.metadata_props if each.key != METADATA]
    has_claims = len(kept) < len(model.metadata_props)
    if has_claims:
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
    return has_claims


def with_window_caches(model: ModelProto) -> bool:
    """Let layers with a window have buffers that begin at `window_start`; return whether there are any.

    `window_start` is (B,). Positions are counted back from each row's last one: rows have no padding.
    """
    from onnx import TensorProto, helper  # noqa: PLC0415  only where a graph is changed

    graph = model.graph
    local = [node for node in graph.node if _window(node) > 0]
    if not local:
        return False
    graph.input.append(helper.make_tensor_value_info(START, TensorProto.INT32, ["batch_size"]))
    names, nodes = {node.name for node in local}, []
    for node in graph.node:
        if node.name in names:
            if node is local[0]:
                nodes += _relative_lengths(node, Constants(graph))
            _look_from_start(node)
        nodes.append(node)
    windows = Windows(
        size=max(map(_window, local)),
        layers=tuple(map(layer_of, local)),
        head_size=_head_size(model, local[0]),
        is_tiled=not any(_is_whole(node) for node in local),
    )
    model.metadata_props.add(key=METADATA, value=windows.to_json())
    replace_nodes(graph, nodes)
    return True


def _window(node: NodeProto) -> int:
    return integers(node).get("local_window_size", -1)


def _is_whole(node: NodeProto) -> bool:
    """Whether the kernel makes all products of an attention node before the softmax of any."""
    softcap = any(each.name == "softcap" and each.f > 0 for each in node.attribute)
    return softcap or (len(node.input) > _SINKS and bool(node.input[_SINKS]))


def _head_size(model: ModelProto, node: NodeProto) -> int:
    (past,) = [value for value in model.graph.input if value.name == node.input[3]]
    return int(past.type.tensor_type.shape.dim[3].dim_value)


def _relative_lengths(node: NodeProto, constants: Constants) -> list[NodeProto]:
    """Nodes that make lengths of the buffers from those of the text, and positions of the tokens.

    last: (B,) -> window_last: (B,), window_total: its largest and 1, window_positions: (B, T).
    """
    import numpy as np  # noqa: PLC0415  only where a graph is changed
    from onnx import TensorProto, helper  # noqa: PLC0415  the same

    last = node.input[5]
    zero, one = (constants.add(f"{n}", np.array(n, np.int64)) for n in (0, 1))
    one32 = constants.add("one32", np.array(1, np.int32))
    axis = constants.add("axis", np.array([1], np.int64))
    make = helper.make_node
    return [
        make("Sub", [last, START], ["tuned.window_last"]),
        make("ReduceMax", ["tuned.window_last"], ["tuned.window_most"], keepdims=0),
        make("Add", ["tuned.window_most", one32], ["tuned.window_total"]),
        make("Shape", ["input_ids"], ["tuned.window_shape"]),
        make("Gather", ["tuned.window_shape", one], ["tuned.window_count"]),
        make("Range", [zero, "tuned.window_count", one], ["tuned.window_places"]),
        make("Cast", [last], ["tuned.window_end"], to=int(TensorProto.INT64)),
        make("Sub", ["tuned.window_end", "tuned.window_count"], ["tuned.window_before"]),
        make("Add", ["tuned.window_before", one], ["tuned.window_begin"]),
        make("Unsqueeze", ["tuned.window_begin", axis], ["tuned.window_begins"]),
        make("Add", ["tuned.window_begins", "tuned.window_places"], ["tuned.window_positions"]),
    ]


def _look_from_start(node: NodeProto) -> None:
    inputs = [*node.input, *[""] * 10][: max(10, len(node.input))]
    inputs[5:7] = ["tuned.window_last", "tuned.window_total"]
    if integers(node).get("do_rotary"):
        inputs[_POSITIONS] = "tuned.window_positions"
    while not inputs[-1]:
        inputs.pop()
    node.ClearField("input")
    node.input.extend(inputs)


def layer_of(node: NodeProto) -> int:
    """Return which layer a GroupQueryAttention is of, by the name of its cache."""
    return int(node.input[3].split(".")[1])
