"""How faithful a conversion is: its weights to the source's, its logits to two references.

1. Every weight of the ONNX model, dequantised by this script, against `gguf.quants.dequantize` of the
   source: equal to the bit in float32, and where an offset is added within 4e-7 of the block's
   largest magnitude.
2. On 2,000 tokens of bench/golden/text.txt (windows of 500): KL divergence to llama.cpp's logits and
   agreement of the most likely token. The golden file has the 48 most likely tokens of each position
   and the rest as one, so that KL is a lower bound; with llama-cpp-python the full one is shown too.
3. Both against an exact float32 evaluation of the same weights (scripts/float32_llama.py).

Usage: python scripts/bench/fidelity.py    (pip install '.[test]'; optional: llama-cpp-python)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gguf
import numpy as np
import onnx
import onnxruntime as ort
from tokenizers import Tokenizer

from float32_llama import Llama
from golden_logits import N_TOKENS, TEXT, WINDOW, Buckets, kl_divergence, load, log_softmax
from report import Report, installed_model, model_arguments

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Initializers:
    """The initializers of a model, read from its data file by this script alone."""

    def __init__(self, directory: Path) -> None:
        model = onnx.load(directory / "model.onnx", load_external_data=False)
        self.nodes = list(model.graph.node)
        self._protos = {proto.name: proto for proto in model.graph.initializer}
        self._data = np.memmap(directory / "model.onnx.data", np.uint8, "r")

    def __getitem__(self, name: str) -> NDArray[Any]:
        proto = self._protos[name]
        if not proto.external_data:
            return onnx.numpy_helper.to_array(proto)
        place = {entry.key: entry.value for entry in proto.external_data}
        start, size = int(place["offset"]), int(place["length"])
        dtype = onnx.helper.tensor_dtype_to_np_dtype(proto.data_type)
        return self._data[start : start + size].view(dtype).reshape(tuple(proto.dims))

    def __contains__(self, name: str) -> bool:
        return name in self._protos


def matrix(found: Initializers, node: onnx.NodeProto) -> tuple[NDArray[np.float32], int]:
    """Dequantise a MatMulNBits node with its offsets: (N, K) float32, and its block size."""
    settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    packed, scale = found[node.input[1]].astype(np.int16), found[node.input[2]]
    middle = 1 << (settings["bits"] - 1)
    if settings["bits"] == 4:
        packed = np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:2], -1)
    weights = scale[..., None] * (packed - middle).astype(np.float32)
    offset_name = f"{node.input[1]}.2"
    if offset_name in found:
        offset = found[offset_name] / np.float32(settings["block_size"])
        weights = weights + offset.T[..., None]
    return weights.reshape(settings["N"], settings["K"]), settings["block_size"]


def source_matrix(
    tensors: dict[str, gguf.ReaderTensor], name: str, heads: dict[str, int]
) -> NDArray[np.float32]:
    """Dequantise a GGUF tensor, rows in Hugging Face's order."""
    tensor = tensors[name]
    weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    kind = name.split(".")[-2]
    if kind in heads:
        rows, width = weights.shape
        pairs = weights.reshape(heads[kind], rows // heads[kind] // 2, 2, width)
        weights = pairs.swapaxes(1, 2).reshape(rows, width)
    return weights


PARTS = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "gate_up": ("ffn_gate", "ffn_up"),
    "o_proj": ("attn_output",),
    "down_proj": ("ffn_down",),
}


def source_names(weight: str) -> list[str]:
    """The GGUF tensors whose rows make an ONNX weight."""
    if not any(part in weight for part in PARTS):
        return ["output.weight" if weight.startswith("lm_head") else "token_embd.weight"]
    layer = next(word for word in weight.split(".") if word.isdigit())
    (parts,) = [names for part, names in PARTS.items() if part in weight]
    return [f"blk.{layer}.{name}.weight" for name in parts]


def weight_errors(source: Path, directory: Path) -> Iterator[tuple[bool, float]]:
    """Yield for each matrix whether it has an offset, and its largest error relative to a block."""
    found = Initializers(directory)
    reader = gguf.GGUFReader(source)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    counts = {
        kind: int(reader.fields[f"llama.attention.{key}"].contents())
        for kind, key in (("attn_q", "head_count"), ("attn_k", "head_count_kv"))
    }
    for node in found.nodes:
        if node.op_type != "MatMulNBits":
            continue
        ours, block_size = matrix(found, node)
        names = source_names(node.input[1])
        theirs = np.concatenate([source_matrix(tensors, name, counts) for name in names])
        largest = np.abs(theirs).reshape(len(theirs), -1, block_size).max(axis=-1)
        error = np.abs(ours - theirs).reshape(len(theirs), -1, block_size).max(axis=-1)
        relative = error / np.where(largest, largest, 1)
        yield f"{node.input[1]}.2" in found, float(relative.max())


def onnx_logits(directory: Path, tokens: list[int]) -> NDArray[np.float32]:
    """Return the logits that follow each token, window by window: (T, V)."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(directory / "model.onnx", options)
    decoder = json.loads((directory / "genai_config.json").read_bytes())["model"]["decoder"]
    empty = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)
    past = {
        f"past_key_values.{i}.{part}": empty
        for i in range(decoder["num_hidden_layers"])
        for part in ("key", "value")
    }
    rows = []
    for start in range(0, len(tokens), WINDOW):
        ids = np.array([tokens[start : start + WINDOW]], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), **past}
        rows.append(session.run(["logits"], feed)[0][0])
    return np.concatenate(rows)


def exact_logits(source: Path, tokens: list[int]) -> NDArray[np.float32]:
    """The same from NumPy."""
    model = Llama.read(source)
    windows = range(0, len(tokens), WINDOW)
    return np.concatenate([model.logits(tokens[start : start + WINDOW]) for start in windows])


def agreement(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The share of positions (T, V) with the same most likely token, in percent."""
    return 100 * float((a.argmax(axis=-1) == b.argmax(axis=-1)).mean())


def report_weights(report: Report, source: Path, directory: Path) -> None:
    """Compare every weight with the source's."""
    errors = list(weight_errors(source, directory))
    plain = [error for has_offset, error in errors if not has_offset]
    offset = [error for has_offset, error in errors if has_offset]
    report.add("matrices without offset", len(plain), form="d")
    report.at_most("  largest error of a weight", max(plain, default=0.0), 0.0, form=".1e")
    report.add("matrices with offset", len(offset), form="d")
    name = "  largest error, of the block's largest"
    report.at_most(name, max(offset, default=0.0), 4e-7, form=".1e")


def report_tokens(report: Report, directory: Path, tokens: list[int]) -> None:
    """Compare the tokenizer with llama.cpp's."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ours = tokenizer.encode(TEXT.read_text(encoding="utf-8")).ids[:N_TOKENS]
    equal = sum(a == b for a, b in zip(ours, tokens, strict=True))
    report.at_least("tokens equal to llama.cpp's", equal, N_TOKENS, form="d")


def report_golden(report: Report, ours: NDArray[np.float64], golden: Buckets) -> None:
    """Compare logits with the golden file."""
    kl = kl_divergence(golden.log_p, Buckets.of(golden.ids, ours).log_p).mean()
    top = 100 * float((ours.argmax(axis=-1) == golden.ids[:, 0]).mean())
    report.add("probability of the golden file's named tokens", golden.mass)
    report.at_most("KL(llama.cpp || ours), golden", kl, 0.01, form=".4f")
    report.at_least("top-1 agreement with llama.cpp", top, 90, form=".1f", unit=" %")


def report_exact(
    report: Report,
    ours: NDArray[np.float64],
    exact: NDArray[np.float64],
    theirs: NDArray[np.float64] | None,
    golden: Buckets,
) -> None:
    """Compare both engines with exact arithmetic, over the whole vocabulary where that is known."""
    our_kl = kl_divergence(exact, ours).mean()
    report.add("KL(exact || ours)", our_kl, form=".4f")
    report.add("top-1 agreement of ours with exact", agreement(exact, ours), form=".1f", unit=" %")
    if theirs is None:
        print("llama-cpp-python is not installed: its part is taken from the golden file")
        named = Buckets.of(golden.ids, exact).log_p
        our_kl = kl_divergence(named, Buckets.of(golden.ids, ours).log_p).mean()
        their_kl = kl_divergence(named, golden.log_p).mean()
    else:
        their_kl = kl_divergence(exact, theirs).mean()
        theirs_to_ours = kl_divergence(theirs, ours).mean()
        agreed = agreement(exact, theirs)
        report.add("KL(llama.cpp || ours), whole vocabulary", theirs_to_ours, form=".4f")
        report.add("top-1 agreement of llama.cpp with exact", agreed, form=".1f", unit=" %")
    report.add("KL(exact || llama.cpp)", their_kl, form=".4f")
    report.at_most("ours / theirs", our_kl / their_kl, 1.3, form=".2f")


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    model_arguments(parser)
    arguments = parser.parse_args()
    source, directory = (arguments.gguf, arguments.model) if arguments.gguf else installed_model()
    report = Report()
    report_weights(report, source, directory)
    tokens, golden = load()
    report_tokens(report, directory, tokens)
    ours = log_softmax(onnx_logits(directory, tokens))
    report_golden(report, ours, golden)
    theirs = None
    if importlib.util.find_spec("llama_cpp"):
        from make_golden_logits import llama_cpp_logits  # noqa: PLC0415  needs llama-cpp-python

        theirs = log_softmax(llama_cpp_logits(source)[1])
    exact = log_softmax(exact_logits(source, tokens))
    report_exact(report, ours, exact, theirs, golden)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
