"""ONNX models that must be refused: one function an attack, named after it.

Ways out of the model's directory, tensors in every place that a model has for them, numbers that
lie, operators that are not onnxruntime's own, and what is no model. Beside the model lie `data`
(64 bytes), `link` (a symbolic link to it), `folder` and `pipe`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto
from onnx import helper as make

from malformed.gguf import Attack

DATA_SIZE = 64
GOOD = {"location": "data", "offset": "0", "length": "64"}


def attacks() -> list[Callable[[], Attack]]:
    """Every attack of this module."""
    return [
        function
        for name, function in globals().items()
        if getattr(function, "__annotations__", {}).get("return") == "Attack"
        and not name.startswith("_")
    ]


def model(*nodes: NodeProto, initializers: tuple[TensorProto, ...] = ()) -> ModelProto:
    """A model of nodes that nobody checks."""
    return make.make_model(make.make_graph(list(nodes), "g", [], [], list(initializers)))


def external(entries: Mapping[str, str], name: str = "w") -> TensorProto:
    """A tensor of 16 numbers whose bytes are elsewhere."""
    tensor = TensorProto(
        name=name, data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL
    )
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def _attack(content: ModelProto, refusal: str) -> Attack:
    return Attack(content.SerializeToString(), refusal)


def _located(location: str) -> Attack:
    content = model(initializers=(external({"location": location}),))
    shown = location if location.isprintable() else ascii(location)[1:-1]
    return _attack(content, f"tensor `w`: external data is in `{shown}`, which is not a plain name")


def _entries(refusal: str, **changes: str) -> Attack:
    content = model(initializers=(external({**GOOD, **changes}),))
    return _attack(content, f"tensor `w`: external data {refusal}")


BAD = external({"location": "../bad"}, "bad")
_REFUSED = "tensor `bad`: external data is in `../bad`, which is not a plain name"


def _with_node(attribute: AttributeProto) -> ModelProto:
    node = make.make_node("Constant", [], ["c"], name="n")
    node.attribute.append(attribute)
    return model(node)


# Ways out of the directory


def path_to_the_parent() -> Attack:
    return _located("../data")


def path_that_is_absolute() -> Attack:
    return _located("/etc/passwd")


def path_to_a_device() -> Attack:
    return _located("/dev/zero")


def path_of_a_folder() -> Attack:
    return _located("folder/data")


def path_of_windows() -> Attack:
    return _located("..\\data")


def path_with_a_drive() -> Attack:
    return _located("C:data")


def path_to_memory() -> Attack:
    return _located("*/_ORT_MEM_ADDR_/*")


def path_with_a_null() -> Attack:
    return _located("data\0.txt")


def path_of_a_dot() -> Attack:
    return _located(".")


def path_that_is_empty() -> Attack:
    return _located("")


def path_of_a_windows_device() -> Attack:
    return _located("nul")


def path_that_is_not_utf_8() -> Attack:
    content = model(initializers=(external({"location": "dataX"}),)).SerializeToString()
    refusal = "external data is in `data\\xff`, which is not a plain name"
    return Attack(content.replace(b"dataX", b"data\xff"), refusal)


def path_of_a_link() -> Attack:
    content = model(initializers=(external({"location": "link"}),))
    return _attack(content, "external data is in `link`, which is not a regular file")


def path_of_a_directory() -> Attack:
    content = model(initializers=(external({"location": "folder"}),))
    return _attack(content, "external data is in `folder`, which is not a regular file")


def path_of_a_pipe() -> Attack:
    content = model(initializers=(external({"location": "pipe"}),))
    return _attack(content, "external data is in `pipe`, which is not a regular file")


def path_of_no_file() -> Attack:
    content = model(initializers=(external({"location": "other"}),))
    return _attack(content, "external data is in `other`, which is not one of the model's files")


def path_missing() -> Attack:
    content = model(initializers=(external({"offset": "0"}),))
    return _attack(content, "external data is in ``, which is not a plain name")


# Numbers that lie


def offset_beyond_the_file() -> Attack:
    return _entries("is at 65 to 129 of `data`, which has 64 bytes", offset="65")


def length_beyond_the_file() -> Attack:
    return _entries("is at 0 to 65 of `data`, which has 64 bytes", length="65")


def offset_that_overflows() -> Attack:
    largest = str(2**63 - 1)
    return _entries("is at 9,223,372,036,854,775,807 to", offset=largest, length=largest)


def offset_of_many_digits() -> Attack:
    digits = "1" * 5000
    return _entries(f"has offset `{digits[:61]}...`, which is not a number", offset=digits)


def offset_that_is_negative() -> Attack:
    return _entries("has offset `-1`, which is not a number", offset="-1")


def offset_with_a_sign_and_space() -> Attack:
    return _entries("has offset ` +1`, which is not a number", offset=" +1")


def offset_of_other_digits() -> Attack:
    return _entries("has offset `٣`, which is not a number", offset="٣")


def length_in_hexadecimal() -> Attack:
    return _entries("has length `0x10`, which is not a number", length="0x10")


def key_that_is_not_known() -> Attack:
    return _entries("has the key `__class__`", __class__="x")


def key_twice() -> Attack:
    tensor = external(GOOD)
    tensor.external_data.add(key="location", value="../data")
    return _attack(model(initializers=(tensor,)), "external data has the key `location` twice")


def data_in_two_places() -> Attack:
    tensor = external(GOOD)
    tensor.raw_data = bytes(64)
    refusal = "tensor `w`: has its bytes in the model and in external data"
    return _attack(model(initializers=(tensor,)), refusal)


def data_that_denies_to_be_external() -> Attack:
    tensor = external(GOOD)
    tensor.data_location = TensorProto.DEFAULT
    refusal = "tensor `w`: names external data and says that it has none"
    return _attack(model(initializers=(tensor,)), refusal)


def strings_in_external_data() -> Attack:
    tensor = external(GOOD)
    tensor.data_type = TensorProto.STRING
    return _attack(model(initializers=(tensor,)), "tensor `w`: has strings")


def shape_that_is_negative() -> Attack:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[-1, 4])
    return _attack(model(initializers=(tensor,)), "tensor `w`: shape [-1, 4] has a negative")


# Every place that a tensor can have


def tensor_of_an_attribute() -> Attack:
    return _attack(_with_node(AttributeProto(name="value", t=BAD)), _REFUSED)


def tensor_of_an_attribute_of_many() -> Attack:
    return _attack(_with_node(AttributeProto(name="value", tensors=[BAD])), _REFUSED)


def tensor_of_a_subgraph() -> Attack:
    graph = GraphProto(initializer=[BAD])
    return _attack(_with_node(AttributeProto(name="body", g=graph)), _REFUSED)


def tensor_of_a_subgraph_of_subgraphs() -> Attack:
    graph = GraphProto(initializer=[BAD])
    for _ in range(10):
        node = NodeProto(op_type="If", attribute=[AttributeProto(name="then_branch", g=graph)])
        graph = GraphProto(node=[node])
    return _attack(_with_node(AttributeProto(name="body", graphs=[graph])), _REFUSED)


def tensor_of_a_function() -> Attack:
    content = model()
    function = content.functions.add(name="f", domain="com.microsoft")
    function.node.add(op_type="Constant").attribute.add(name="value").t.CopyFrom(BAD)
    return _attack(content, _REFUSED)


def tensor_of_a_default_in_a_function() -> Attack:
    content = model()
    function = content.functions.add(name="f", domain="com.microsoft")
    function.attribute_proto.add(name="value").t.CopyFrom(BAD)
    return _attack(content, _REFUSED)


def tensor_of_training() -> Attack:
    content = model()
    content.training_info.add().initialization.initializer.append(BAD)
    return _attack(content, _REFUSED)


def tensor_of_a_training_algorithm() -> Attack:
    content = model()
    content.training_info.add().algorithm.initializer.append(BAD)
    return _attack(content, _REFUSED)


def _sparse(**parts: TensorProto) -> SparseTensorProto:
    return SparseTensorProto(dims=[100], **parts)


_SPARSE = "tensor `w`: is part of a sparse tensor, which cannot have external data"


def values_of_a_sparse_initializer() -> Attack:
    content = model()
    content.graph.sparse_initializer.append(_sparse(values=external(GOOD)))
    return _attack(content, _SPARSE)


def indices_of_a_sparse_initializer() -> Attack:
    content = model()
    content.graph.sparse_initializer.append(_sparse(indices=external(GOOD)))
    return _attack(content, _SPARSE)


def values_of_a_sparse_constant() -> Attack:
    sparse = _sparse(values=external(GOOD))
    return _attack(_with_node(AttributeProto(name="sparse_value", sparse_tensor=sparse)), _SPARSE)


def indices_of_sparse_constants() -> Attack:
    sparse = _sparse(indices=external(GOOD))
    attribute = AttributeProto(name="sparse_values", sparse_tensors=[sparse])
    return _attack(_with_node(attribute), _SPARSE)


def values_of_a_sparse_tensor_of_a_subgraph() -> Attack:
    graph = GraphProto(sparse_initializer=[_sparse(values=external(GOOD))])
    return _attack(_with_node(AttributeProto(name="body", g=graph)), _SPARSE)


# Operators


def operator_of_another_domain() -> Attack:
    content = model(make.make_node("Run", [], ["c"], name="n", domain="evil.corp"))
    return _attack(content, "node `n`: is of the domain `evil.corp`")


def operator_of_another_domain_in_a_subgraph() -> Attack:
    graph = GraphProto(node=[NodeProto(op_type="Run", domain="ai.onnx.contrib")])
    content = _with_node(AttributeProto(name="body", g=graph))
    return _attack(content, "node `Run`: is of the domain `ai.onnx.contrib`")


def operator_of_a_domain_that_looks_alike() -> Attack:
    content = model(make.make_node("Run", [], ["c"], name="n", domain="com.microsoft\u200b"))
    return _attack(content, "node `n`: is of the domain `com.microsoft\\u200b`")


def operator_of_a_domain_in_capitals() -> Attack:
    content = model(make.make_node("Run", [], ["c"], name="n", domain="AI.ONNX"))
    return _attack(content, "node `n`: is of the domain `AI.ONNX`")


def function_of_another_domain() -> Attack:
    content = model()
    content.functions.add(name="f", domain="evil.corp")
    return _attack(content, "function `f`: is of the domain `evil.corp`")


def operator_that_is_a_program() -> Attack:
    content = model(make.make_node("EPContext", [], ["c"], name="n", domain="com.microsoft"))
    return _attack(content, "node `n`: operator EPContext holds a program for one processor")


def operator_that_is_a_program_in_a_function() -> Attack:
    content = model()
    function = content.functions.add(name="f", domain="com.microsoft")
    function.node.add(op_type="EPContext", domain="com.microsoft", name="n")
    return _attack(content, "node `n`: operator EPContext holds a program for one processor")


def operator_that_runs_python() -> Attack:
    content = model(make.make_node("PythonOp", [], ["c"], name="n", domain="com.microsoft"))
    return _attack(content, "node `n`: operator PythonOp runs Python")


# What is no model


def nothing_of_a_model() -> Attack:
    return _attack(ModelProto(ir_version=10), "file: has no graph")


def text() -> Attack:
    return Attack(b"version https://git-lfs.github.com/spec/v1\n", "file: is not a protocol buffer")


def field_that_is_not_known() -> Attack:
    # field 999 of the model, a string
    content = model().SerializeToString() + b"\xba\x3e\x03abc"
    return Attack(content, "model: has a field that is not known")


def field_of_a_tensor_that_is_not_known() -> Attack:
    tensor = TensorProto.FromString(TensorProto(name="w").SerializeToString() + b"\xba\x3e\x01a")
    return _attack(model(initializers=(tensor,)), "tensor `w`: has a field that is not known")


def graphs_nested_too_deep() -> Attack:
    graph = b""
    for _ in range(200):
        attribute = b"\x32" + _size(graph) + graph  # field 6: a graph
        node = b"\x2a" + _size(attribute) + attribute  # field 5: an attribute
        graph = b"\x0a" + _size(node) + node  # field 1: a node
    return Attack(b"\x3a" + _size(graph) + graph, "file: is not a protocol buffer")


def _size(content: bytes) -> bytes:
    size, encoded = len(content), b""
    while size >= 128:
        encoded += bytes([size % 128 + 128])
        size //= 128
    return encoded + bytes([size])
