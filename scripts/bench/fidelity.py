"""How faithful a conversion is: its weights to the source's, its logits to two references.

1. Every weight of the ONNX model, dequantised by this script, against `gguf.quants.dequantize` of the
   source: equal to the bit in float32, and where an offset is added within 4e-7 of the block's
   largest magnitude.
2. On 2,000 tokens of bench/golden/text.txt (windows of 500, each after the model's first token if it
   has one): KL divergence to llama.cpp's logits and agreement of the most likely token. Without
   llama-cpp-python they are those of a golden file, which there is of one model: the 48 most likely
   tokens of each position and the rest as one, so that KL is a lower bound.
3. Both against an exact float32 evaluation of the same weights (scripts/float32_*.py).

Usage: python scripts/bench/fidelity.py [--gguf FILE --model DIRECTORY]
       (pip install '.[test]'; optional, and needed for another model: llama-cpp-python)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gguf
import numpy as np
import onnx
import onnxruntime as ort
from tokenizers import Tokenizer

from float32_gemma3 import Gemma3
from float32_llama import Llama
from golden_logits import N_TOKENS, TEXT, WINDOW, Buckets, kl_divergence, load, log_softmax
from report import Report, installed_model, model_arguments

if TYPE_CHECKING:
    from numpy.typing import NDArray


KL_BAR, RATIO_BAR = 0.01, 1.2

Forward = Callable[[Sequence[int]], "NDArray[np.float32]"]
"""Takes a window of tokens; returns the logits that follow each: (T, V)."""


class Exact(Protocol):
    """An evaluation in float32 of a model's weights."""

    @classmethod
    def read(cls, path: Path) -> Exact:
        """Read a GGUF file."""

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """Return the logits that follow each token: (T, V)."""


EXACT: dict[str, type[Exact]] = {"llama": Llama, "gemma3": Gemma3}


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
    """The GGUF tensors whose rows make an ONNX weight, or several of that name one after the other."""
    if not any(part in weight for part in PARTS):
        return ["output.weight" if weight.startswith("lm_head") else "token_embd.weight"]
    layer = next(word for word in weight.split(".") if word.isdigit())
    (parts,) = [names for part, names in PARTS.items() if part in weight]
    return [f"blk.{layer}.{name}.weight" for name in parts]


def interleaved(reader: gguf.GGUFReader) -> dict[str, int]:
    """How many heads the matrices have whose rows llama.cpp has in another order than Hugging Face."""
    if architecture_of(reader) != "llama":
        return {}
    keys = {"attn_q": "head_count", "attn_k": "head_count_kv"}
    return {
        kind: int(reader.fields[f"llama.attention.{key}"].contents()) for kind, key in keys.items()
    }


def architecture_of(reader: gguf.GGUFReader) -> str:
    """The architecture that a GGUF file names."""
    return str(reader.fields["general.architecture"].contents())


def weight_errors(source: Path, directory: Path) -> Iterator[tuple[bool, float]]:
    """Yield for each matrix whether it has an offset, and its largest error relative to a block."""
    found = Initializers(directory)
    reader = gguf.GGUFReader(source)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    heads = interleaved(reader)
    left: dict[str, list[str]] = {}
    for node in found.nodes:
        if node.op_type != "MatMulNBits":
            continue
        ours, block_size = matrix(found, node)
        base = node.input[1].rpartition("_")[0] if node.input[1][-1].isdigit() else node.input[1]
        names = left.setdefault(base, source_names(base))
        theirs = np.empty((0, ours.shape[1]), np.float32)
        while len(theirs) < len(ours):
            theirs = np.concatenate((theirs, source_matrix(tensors, names.pop(0), heads)))
        largest = np.abs(theirs).reshape(len(theirs), -1, block_size).max(axis=-1)
        error = np.abs(ours - theirs).reshape(len(theirs), -1, block_size).max(axis=-1)
        relative = error / np.where(largest, largest, 1)
        yield f"{node.input[1]}.2" in found, float(relative.max())


def first_tokens(source: Path) -> list[int]:
    """The token that every text begins with, if the model has one."""
    fields = gguf.GGUFReader(source).fields
    adds = fields.get("tokenizer.ggml.add_bos_token")
    if adds is None or not adds.contents():
        return []
    return [int(fields["tokenizer.ggml.bos_token_id"].contents())]


def onnx_forward(directory: Path) -> Forward:
    """Our conversion."""
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

    def forward(tokens: Sequence[int]) -> NDArray[np.float32]:
        ids = np.array([tokens], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), **past}
        logits: NDArray[np.float32] = session.run(["logits"], feed)[0][0]
        return logits

    return forward


def exact_forward(source: Path) -> Forward:
    """The same from NumPy."""
    kind = architecture_of(gguf.GGUFReader(source))
    model = EXACT[kind].read(source)
    return lambda tokens: model.logits(list(tokens))


def logits(forward: Forward, first: list[int], tokens: list[int]) -> Iterator[NDArray[np.float32]]:
    """Yield the logits that follow each token, window by window."""
    for start in range(0, len(tokens), WINDOW):
        yield forward([*first, *tokens[start : start + WINDOW]])[len(first) :]


def some_log_p(
    forward: Forward, first: list[int], tokens: list[int]
) -> Iterator[NDArray[np.float64]]:
    """Yield log-probabilities, a few positions at a time: a large vocabulary takes much memory."""
    for window in logits(forward, first, tokens):
        for start in range(0, len(window), 50):
            yield log_softmax(window[start : start + 50])


def all_log_p(forward: Forward, first: list[int], tokens: list[int]) -> NDArray[np.float64]:
    """Return the log-probabilities that follow each token: (T, V)."""
    return np.concatenate(list(some_log_p(forward, first, tokens)))


def agreement(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The share of positions (T, V) with the same most likely token, in percent."""
    return 100 * float((a.argmax(axis=-1) == b.argmax(axis=-1)).mean())


@dataclass
class Comparison:
    """One engine's logits to another's, over the whole vocabulary."""

    divergences: list[float] = field(default_factory=list)
    agreements: list[bool] = field(default_factory=list)

    def add(self, p: NDArray[np.float64], q: NDArray[np.float64]) -> None:
        """Add positions: log-probabilities (T, V) of the reference and of the other."""
        self.divergences += kl_divergence(p, q).tolist()
        self.agreements += (p.argmax(axis=-1) == q.argmax(axis=-1)).tolist()

    @property
    def kl(self) -> float:
        """Mean KL(reference || other)."""
        return float(np.mean(self.divergences))

    @property
    def agreement(self) -> float:
        """The share of positions with the same most likely token, in percent."""
        return 100 * float(np.mean(self.agreements))


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
    text = TEXT.read_text(encoding="utf-8")
    ours = tokenizer.encode(text, add_special_tokens=False).ids[: len(tokens)]
    equal = sum(a == b for a, b in zip(ours, tokens, strict=True))
    report.at_least("tokens equal to llama.cpp's", equal, len(tokens), form="d")


def report_golden(report: Report, source: Path, directory: Path) -> None:
    """Compare with the golden file, and with exact arithmetic."""
    tokens, golden = load()
    report_tokens(report, directory, tokens)
    ours = all_log_p(onnx_forward(directory), [], tokens)
    kl = kl_divergence(golden.log_p, Buckets.of(golden.ids, ours).log_p).mean()
    top = 100 * float((ours.argmax(axis=-1) == golden.ids[:, 0]).mean())
    report.add("probability of the golden file's named tokens", golden.mass)
    report.at_most("KL(llama.cpp || ours), golden", kl, KL_BAR, form=".4f")
    report.at_least("top-1 agreement with llama.cpp", top, 90, form=".1f", unit=" %")
    exact = all_log_p(exact_forward(source), [], tokens)
    report.add("KL(exact || ours)", kl_divergence(exact, ours).mean(), form=".4f")
    top = agreement(exact, ours)
    report.add("top-1 agreement of ours with exact", top, form=".1f", unit=" %")
    named = Buckets.of(golden.ids, exact).log_p
    our_kl = kl_divergence(named, Buckets.of(golden.ids, ours).log_p).mean()
    their_kl = kl_divergence(named, golden.log_p).mean()
    report.add("KL(exact || llama.cpp)", their_kl, form=".4f")
    report.at_most("ours / theirs", our_kl / their_kl, RATIO_BAR, form=".2f")


def report_llama_cpp(report: Report, source: Path, directory: Path) -> None:
    """Compare with llama.cpp, and both with exact arithmetic, over the whole vocabulary."""
    from make_golden_logits import LlamaCpp  # noqa: PLC0415  needs llama-cpp-python

    engine, first = LlamaCpp(source), first_tokens(source)
    tokens = engine.tokens(TEXT.read_bytes())[:N_TOKENS]
    report_tokens(report, directory, tokens)
    engines = (engine.logits, onnx_forward(directory), exact_forward(source))
    to_theirs, ours_to_exact, theirs_to_exact = Comparison(), Comparison(), Comparison()
    parts = [some_log_p(forward, first, tokens) for forward in engines]
    for theirs, ours, exact in zip(*parts, strict=True):
        to_theirs.add(theirs, ours)
        ours_to_exact.add(exact, ours)
        theirs_to_exact.add(exact, theirs)
    report.at_most("KL(llama.cpp || ours)", to_theirs.kl, KL_BAR, form=".4f")
    share = to_theirs.agreement
    report.at_least("top-1 agreement with llama.cpp", share, 90, form=".1f", unit=" %")
    for name, comparison in (("ours", ours_to_exact), ("llama.cpp", theirs_to_exact)):
        report.add(f"KL(exact || {name})", comparison.kl, form=".4f")
        share = comparison.agreement
        report.add(f"top-1 agreement of {name} with exact", share, form=".1f", unit=" %")
    ratio = ours_to_exact.kl / theirs_to_exact.kl
    report.at_most("ours / theirs", ratio, RATIO_BAR, form=".2f")


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
    if importlib.util.find_spec("llama_cpp"):
        report_llama_cpp(report, source, directory)
    elif arguments.gguf:
        print("llama-cpp-python is not installed: logits are not compared")
    else:
        report_golden(report, source, directory)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
