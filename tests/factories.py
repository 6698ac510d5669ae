"""Tiny model files, built in memory or written with the reference implementation.

`gguf_*` and `safetensors_*` functions make the pieces of a file by hand, so that a test can break
any of them;
`tiny_llama` and `tiny_gemma3` write complete random models as llama.cpp's converter would.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tomllib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from weightpkg.formats import gguf as gguf_reader
from weightpkg.formats.ggml import GGML_TYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

GGUFValue = str | int | float | bool | list[str] | list[int] | list[float] | list[bool]

UINT8, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 0, 4, 5, 6, 7, 8, 9
F32, Q4_0, Q8_0, I8 = 0, 2, 8, 24


@dataclass(frozen=True, slots=True)
class TensorBytes:
    """A tensor for `gguf_bytes`. shape: in the file's order, the row's length first."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    content: bytes


def gguf_header(n_tensors: int, n_metadata: int, *, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_metadata)


def gguf_string(text: str | bytes) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(content)) + content


def gguf_pair(key: str | bytes, type_id: int, value: bytes) -> bytes:
    """One metadata key, its value as bytes."""
    return gguf_string(key) + struct.pack("<I", type_id) + value


def gguf_array(element_type: int, count: int, elements: bytes) -> bytes:
    return struct.pack("<IQ", element_type, count) + elements


def gguf_tensor(
    name: str | bytes, shape: Sequence[int], type_id: int = F32, offset: int = 0
) -> bytes:
    """One tensor's place in the header; shape in the file's order, the row's length first."""
    dims = struct.pack(f"<I{len(shape)}q", len(shape), *shape)
    return gguf_string(name) + dims + struct.pack("<IQ", type_id, offset)


def padded(content: bytes, alignment: int = 32) -> bytes:
    return content + bytes(-len(content) % alignment)


def gguf_bytes(
    metadata: Mapping[str, GGUFValue] | None = None,
    tensors: Sequence[TensorBytes] = (),
    *,
    alignment: int = 32,
) -> bytes:
    """A valid file. An int becomes a uint32 (below 0 an int32), a float a float32, ints of an array
    int32s, as most metadata has them."""
    pairs = [gguf_pair(key, *_value(value)) for key, value in (metadata or {}).items()]
    content = gguf_header(len(tensors), len(pairs)) + b"".join(pairs)
    data = b""
    for tensor in tensors:
        content += gguf_tensor(tensor.name, tensor.shape, tensor.type_id, len(data))
        data += padded(tensor.content, alignment)
    return padded(content, alignment) + data if tensors else content


def _value(value: GGUFValue) -> tuple[int, bytes]:
    if isinstance(value, list) and value and type(value[0]) is int:
        return ARRAY, gguf_array(INT32, len(value), struct.pack(f"<{len(value)}i", *value))
    if isinstance(value, list):
        elements = [_value(element) for element in value]
        kind = elements[0][0] if elements else UINT8
        return ARRAY, gguf_array(kind, len(elements), b"".join(content for _, content in elements))
    if isinstance(value, str):
        return STRING, gguf_string(value)
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return (
            (INT32, struct.pack("<i", value)) if value < 0 else (UINT32, struct.pack("<I", value))
        )
    return FLOAT32, struct.pack("<f", value)


def safetensors_entry(dtype: str, shape: Sequence[int], start: int, stop: int) -> dict[str, object]:
    """What a header says of one tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def safetensors_file(header: object, data: bytes = b"") -> bytes:
    """A file of a header, as bytes or to be made JSON, and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors_bytes(
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]],
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A valid file of tensors (dtype, shape, bytes), in their order."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = safetensors_entry(dtype, shape, len(data), len(data) + len(content))
        data += content
    return safetensors_file(header, data)


CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MERGES = """
Ġ t, h e, i n, r e, o n, Ġ a, Ġt he, e r, a t, o r, e n, Ġ s, i s, Ġ w, Ġ o, a n, Ġ c, o u, i t,
e s, Ġ b, e d, in g, Ġ f, Ġ p, Ġ m, a l, Ġa n, Ġan d, a r, Ġ d, l e, i on, Ġt o, Ġ in, l l, Ġo f,
t h, Ġ h, u s, s k, sk y, b l
"""
MERGES = [merge.strip() for merge in _MERGES.split(",")]


def byte_alphabet() -> list[str]:
    """GPT-2's character for each byte: itself where it can be printed, else from 256 upwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def tiny_vocabulary() -> list[str]:
    """Special tokens, the byte alphabet, and what the merges make: 302 tokens."""
    return [*SPECIAL_TOKENS, *byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES)]


def pair_vocabulary(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tokens and merges that show where texts are split: neighbouring bytes merge if they may.

    Every byte is a token, and every two bytes that are neighbours in a text.
    """
    alphabet = byte_alphabet()
    letters = [[alphabet[byte] for byte in text.encode()] for text in texts]
    pairs = dict.fromkeys(pair for text in letters for pair in pairwise(text))
    return alphabet + ["".join(pair) for pair in pairs], [" ".join(pair) for pair in pairs]


HIDDEN_SIZE, INTERMEDIATE_SIZE, LAYERS, HEADS, KV_HEADS, HEAD_SIZE = 64, 96, 2, 4, 2, 16


def tiny_llama(
    path: Path,
    *,
    weights: str = "Q4_1",
    embedding: str = "Q8_0",
    output: str = "Q8_0",
    tied: bool = True,
    seed: int = 0,
    context_length: int = 128,
    overrides: Mapping[str, str] | None = None,
) -> Path:
    """Write a complete random Llama of some 80,000 weights; the same bytes for the same seed.

    Args:
        path: where to; returned.
        weights: the type of the layers' matrices, as `gguf.GGMLQuantizationType` calls it.
        embedding: the type of the embedding.
        output: the type of the head, where it has weights of its own.
        tied: whether the head uses the embedding's weights.
        seed: of the random numbers.
        context_length: how many positions the model has.
        overrides: other types of the tensors whose names contain a word, such as `attn_v`.
    """
    writer = gguf.GGUFWriter(path, "llama")
    _add_sizes(writer, context_length)
    _add_byte_level(writer)
    tensors = _tiny_tensors(weights, embedding, None if tied else output)
    _add_tensors(writer, tensors, seed, overrides or {})
    return _write(writer, path)


def _add_tensors(
    writer: gguf.GGUFWriter,
    tensors: Iterator[tuple[str, tuple[int, ...], str]],
    seed: int,
    overrides: Mapping[str, str],
) -> None:
    random = np.random.default_rng(seed)
    for name, shape, type_name in tensors:
        mean, spread = (1.0, 0.1) if len(shape) == 1 else (0.0, shape[1] ** -0.5)
        values = random.normal(mean, spread, shape).astype(np.float32)
        types = [other for word, other in overrides.items() if word in name]
        kind = gguf.GGMLQuantizationType[[type_name, *types][-1]]
        is_f64 = kind == gguf.GGMLQuantizationType.F64  # which `quantize` does not know
        stored: NDArray[np.generic] = (
            values.astype(np.float64) if is_f64 else gguf.quants.quantize(values, kind)
        )
        writer.add_tensor(name, stored, raw_dtype=kind)


def _write(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_sizes(writer: gguf.GGUFWriter, context_length: int) -> None:
    writer.add_type("model")
    writer.add_name("Tiny Llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(context_length)
    writer.add_embedding_length(HIDDEN_SIZE)
    writer.add_feed_forward_length(INTERMEDIATE_SIZE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tiny_vocabulary()))
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_quantization_version(2)


def _add_byte_level(writer: gguf.GGUFWriter) -> None:
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    tokens = tiny_vocabulary()
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(False)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL_TOKENS else normal for token in tokens])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tiny_tensors(
    weights: str, embedding: str, output: str | None
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape (out, in) and type of each tensor, in the order of llama.cpp's converter."""
    vocabulary, width, inner = len(tiny_vocabulary()), HIDDEN_SIZE, INTERMEDIATE_SIZE
    queries, keys = HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE
    yield "token_embd.weight", (vocabulary, width), embedding
    for i in range(LAYERS):
        yield f"blk.{i}.attn_norm.weight", (width,), "F32"
        yield f"blk.{i}.ffn_down.weight", (width, inner), weights
        yield f"blk.{i}.ffn_gate.weight", (inner, width), weights
        yield f"blk.{i}.ffn_up.weight", (inner, width), weights
        yield f"blk.{i}.ffn_norm.weight", (width,), "F32"
        yield f"blk.{i}.attn_k.weight", (keys, width), weights
        yield f"blk.{i}.attn_output.weight", (width, queries), weights
        yield f"blk.{i}.attn_q.weight", (queries, width), weights
        yield f"blk.{i}.attn_v.weight", (keys, width), weights
    yield "output_norm.weight", (width,), "F32"
    if output is not None:
        yield "output.weight", (vocabulary, width), output


GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
GEMMA_USER_DEFINED = ("\n", "\n\n", "\n\n\n", "\t", "  ", "   ", "    ", "<b>", "</b>")
GEMMA_LAYERS, WINDOW = 6, 5
_PIECES = """
▁t he in re on ▁a ▁the er at or en ▁s is ▁w ▁o an ▁c ou it es ▁b ed ing ▁f ▁p ▁m al ▁an ▁and ar ▁d le
ion ▁to ▁in ll ▁of th ▁h us sk ▁sky bl aa aaa aaaa ab abc bca ca 12 23 123 日本 本語 日本語 ▁日 éé --
"""
_CHARACTERS = "▁etainorshdlucmfpgwybvkxjqzTHEAIS.,'!?()=*+-#:0123456789éàüñßж日本語€δй½😀"


def gemma_vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types in the manner of a SentencePiece model: 400 tokens."""
    types = gguf.TokenType
    special = [(token, -1000.0, types.CONTROL) for token in GEMMA_SPECIAL]
    user = [(token, -1000.0, types.USER_DEFINED) for token in GEMMA_USER_DEFINED]
    bytewise = [(f"<0x{byte:02X}>", 0.0, types.BYTE) for byte in range(256)]
    pieces = dict.fromkeys([*_PIECES.split(), *_CHARACTERS])
    normal = [(token, -float(i), types.NORMAL) for i, token in enumerate(pieces)]
    tokens, scores, kinds = zip(*special, *user, *bytewise, *normal, strict=True)
    return list(tokens), list(scores), list(kinds)


def tiny_gemma3(
    path: Path,
    *,
    weights: str = "Q4_0",
    embedding: str = "Q8_0",
    output: str | None = None,
    overrides: Mapping[str, str] | None = None,
    context_length: int = 600,
) -> Path:
    """Write a complete random Gemma 3: five local layers with a window of 5, and a global one.

    Args:
        path: where to; returned.
        weights: the type of the layers' matrices, as `gguf.GGMLQuantizationType` calls it.
        embedding: the type of the embedding.
        output: the type of the head, where it has weights of its own.
        overrides: other types of the tensors whose names contain a word, such as `attn_v`.
        context_length: how many positions the model has.
    """
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_type("model")
    writer.add_context_length(context_length)
    writer.add_embedding_length(HIDDEN_SIZE)
    writer.add_block_count(GEMMA_LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE_SIZE)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_key_length(HEAD_SIZE)
    writer.add_value_length(HEAD_SIZE)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_sliding_window(WINDOW)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_quantization_version(2)
    _add_sentencepiece(writer)
    _add_tensors(writer, _gemma_tensors(weights, embedding, output), 0, overrides or {})
    return _write(writer, path)


def _add_sentencepiece(writer: gguf.GGUFWriter) -> None:
    tokens, scores, types = gemma_vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_BERT_WORDS = """
the sky is blue and other one not it isn ##n ##ing ##ed ##er ##s ##ky ##lue na ##ive caf ##e un ##ico ##de
stra ##sse ##ße in def re ##turn x ##y hello world user 日 本 語 你 好 世 界 テキスト ##スト 안녕 ##하세요 привет мир
emoji 😀 ##😀 [unused0] [unused1] i̇
"""
_BERT_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789ßéñøжди日"
_BERT_SIGNS = ".,'!?()[]{}*+-_#:;/\\<>=|&%$@~`^€«»…。、"


def bert_vocabulary() -> list[str]:
    """302 tokens in BERT's spelling, of text in small letters."""
    letters = [spelled for letter in _BERT_LETTERS for spelled in (letter, f"##{letter}")]
    unused = [f"[unused{i}]" for i in range(302)]
    words = [*BERT_SPECIAL, *_BERT_WORDS.split(), *letters, *_BERT_SIGNS, *unused]
    return list(dict.fromkeys(words))[:302]


def _add_wordpiece(writer: gguf.GGUFWriter) -> None:
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    tokens = bert_vocabulary()
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("bert-bge")
    writer.add_token_list([_phantom(token) for token in tokens])
    writer.add_token_types([control if token in BERT_SPECIAL else normal for token in tokens])
    writer.add_token_type_count(2)
    for name, token_id in (("pad", 0), ("unk", 1), ("bos", 2), ("sep", 3), ("mask", 4)):
        getattr(writer, f"add_{name}_token_id")(token_id)


def _phantom(token: str) -> str:
    """As llama.cpp spells it: what begins a word has a mark, what goes on with one has none."""
    if token in BERT_SPECIAL:
        return token
    return token[2:] if token.startswith("##") else f"▁{token}"


T5_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
REPLACEMENTS = {
    "\t": " ", "\n": " ", "\r": " ", "\u00a0": " ", "\u3000": " ", "\u2003": " ", "\u200b": " ",
    "ﬁ": "fi", "\uff21": "A", "①": "1", "½": "1\u20442", "e\u0301": "é", "…": "...", "\u00ad": "",
}  # fmt: skip


def unigram_vocabulary() -> list[tuple[str, float]]:
    """Tokens and scores as XLM-RoBERTa has them: fewer than 302, with no two ways of one score."""
    pieces = list(dict.fromkeys([*_PIECES.split(), *_CHARACTERS]))
    scored = [(token, -2.0 - 0.37 * i**0.5) for i, token in enumerate(pieces)]
    return [*((token, 0.0) for token in T5_SPECIAL), *scored, ("<mask>", 0.0)]


def _add_unigram(writer: gguf.GGUFWriter) -> None:
    types = gguf.TokenType
    kinds = dict.fromkeys([*T5_SPECIAL, "<mask>"], types.CONTROL) | {"<unk>": types.UNKNOWN}
    tokens, scores = zip(*unigram_vocabulary(), strict=True)
    unused = [f"[PAD{i}]" for i in range(len(tokens), 302)]  # as llama.cpp's converter fills up
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*tokens, *unused])
    writer.add_token_scores([*scores, *(-10000.0 for _ in unused)])
    used = [kinds.get(token, types.NORMAL) for token in tokens]
    writer.add_token_types([*used, *(types.UNUSED for _ in unused)])
    writer.add_add_space_prefix(True)
    writer.add_token_type_count(1)
    writer.add_remove_extra_whitespaces(True)
    writer.add_precompiled_charsmap(charsmap(REPLACEMENTS))
    for name, token_id in (
        ("bos", 0),
        ("pad", 1),
        ("eos", 2),
        ("unk", 3),
        ("mask", len(tokens) - 1),
    ):
        getattr(writer, f"add_{name}_token_id")(token_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def charsmap(replacements: Mapping[str, str]) -> bytes:
    """SentencePiece's table: a double array in which each node has 256 units of its own."""
    text, values = b"", {}
    for source, target in replacements.items():
        values[source.encode()] = len(text)
        text += target.encode() + b"\0"
    nodes = {prefix: i + 1 for i, prefix in enumerate(_prefixes(values))}
    units = [0] * 256 * (len(nodes) + 1)
    units[0] = _unit(0, 256 * nodes[b""])
    for prefix, node in nodes.items():
        base = 256 * node
        if prefix:
            place = 256 * nodes[prefix[:-1]] + prefix[-1]
            units[place] = _unit(place, base, prefix[-1], is_leaf=prefix in values)
        if prefix in values:
            units[base] = 1 << 31 | values[prefix]
    return struct.pack(f"<{len(units) + 1}I", 4 * len(units), *units) + text


def _prefixes(values: Mapping[bytes, int]) -> list[bytes]:
    return sorted({key[:i] for key in values for i in range(len(key) + 1)})


def _unit(place: int, base: int, label: int = 0, *, is_leaf: bool = False) -> int:
    return (place ^ base) << 10 | is_leaf << 8 | label


def vocabulary_only(path: Path, tokenizer: str) -> Path:
    """Write a file that has a tokenizer, by GGUF's name, and no tensors; return its path."""
    writer = gguf.GGUFWriter(path, "bert")
    _TOKENIZERS[tokenizer](writer)
    return _write(writer, path)


_TOKENIZERS = {
    "bert": _add_wordpiece,
    "gpt2": _add_byte_level,
    "llama": _add_sentencepiece,
    "t5": _add_unigram,
}


def _gemma_tensors(
    weights: str, embedding: str, output: str | None
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape (out, in) and type of each tensor: a Llama's, and the other norms."""
    vocabulary, width = len(gemma_vocabulary()[0]), HIDDEN_SIZE
    queries, keys, inner = HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE, INTERMEDIATE_SIZE
    yield "output_norm.weight", (width,), "F32"
    yield "token_embd.weight", (vocabulary, width), embedding
    for i in range(GEMMA_LAYERS):
        yield f"blk.{i}.attn_k.weight", (keys, width), weights
        yield f"blk.{i}.attn_k_norm.weight", (HEAD_SIZE,), "F32"
        yield f"blk.{i}.attn_norm.weight", (width,), "F32"
        yield f"blk.{i}.attn_output.weight", (width, queries), weights
        yield f"blk.{i}.attn_q.weight", (queries, width), weights
        yield f"blk.{i}.attn_q_norm.weight", (HEAD_SIZE,), "F32"
        yield f"blk.{i}.attn_v.weight", (keys, width), weights
        yield f"blk.{i}.ffn_down.weight", (width, inner), weights
        yield f"blk.{i}.ffn_gate.weight", (inner, width), weights
        yield f"blk.{i}.ffn_norm.weight", (width,), "F32"
        yield f"blk.{i}.ffn_up.weight", (inner, width), weights
        yield f"blk.{i}.post_attention_norm.weight", (width,), "F32"
        yield f"blk.{i}.post_ffw_norm.weight", (width,), "F32"
    if output is not None:
        yield "output.weight", (vocabulary, width), output


@dataclass(frozen=True, slots=True)
class TinyModel:
    """A random model of any architecture, as a page of `tests/archs` describes it.

    tokenizer: by GGUF's name; config: what transformers calls `config.json`; golden: what it makes
    of it.
    """

    name: str
    architecture: str
    tokenizer: str
    seed: int
    metadata: Mapping[str, GGUFValue]
    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, object]
    golden: Mapping[str, list[Any]]

    @classmethod
    def read(cls, path: Path) -> TinyModel:
        page = tomllib.loads(path.read_text(encoding="utf-8"))
        shapes = {
            name.format(i=i): tuple(shape)
            for name, shape in page["tensors"].items()
            for i in range(page["metadata"]["block_count"])
        }
        return cls(
            path.stem,
            page["architecture"],
            page.get("tokenizer", "gpt2"),
            page["seed"],
            page["metadata"],
            shapes,
            page["config"],
            page.get("golden", {}),
        )

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Draw every tensor: the same numbers for the same seed and name."""
        return {name: self._draw(name, shape) for name, shape in self.shapes.items()}

    def _draw(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        random = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        is_positive = "norm" in name or "rope" in name
        mean = 1.0 if is_positive and name.endswith("weight") else 0.0
        is_small = len(shape) == 1 or "norm" in name or name.endswith("bias")
        spread = 0.2 if is_small else shape[-1] ** -0.5
        return random.normal(mean, spread, shape).astype(np.float32)

    def write(
        self, path: Path, weights: Mapping[str, NDArray[np.float32]], types: Mapping[str, str]
    ) -> Path:
        """Write a GGUF file.

        Args:
            path: where to; returned.
            weights: its tensors.
            types: of matrices, by a word in their names, the last one that fits; others are F32.
        """
        writer = gguf.GGUFWriter(path, self.architecture)
        writer.add_type("model")
        for key, value in self.metadata.items():
            _add_value(writer, f"{self.architecture}.{key}", value)
        _TOKENIZERS[self.tokenizer](writer)
        for name, values in weights.items():
            is_matrix = values.ndim > 1 and "norm" not in name and name.endswith("weight")
            fitting = [kind for word, kind in types.items() if is_matrix and word in name]
            kind = gguf.GGMLQuantizationType[["F32", *fitting][-1]]
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        return _write(writer, path)


def _add_value(writer: gguf.GGUFWriter, key: str, value: GGUFValue) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def edit_gguf(
    path: Path,
    changes: Mapping[str, GGUFValue | None],
    *,
    drop: str = "",
    add: Sequence[TensorBytes] = (),
) -> Path:
    """Rewrite a file with other metadata (None: without the key), and other tensors."""
    with gguf_reader.GGUFFile.open(path) as file:
        metadata = {k: v for k, v in {**file.metadata, **changes}.items() if v is not None}
        type_ids = {kind.name: number for number, kind in GGML_TYPES.items()}
        tensors = [
            TensorBytes(
                tensor.name,
                tensor.shape[::-1],
                type_ids[tensor.type.name],
                file.rows(tensor, 0, tensor.size // tensor.row_bytes).tobytes(),
            )
            for tensor in file.tensors.values()
            if tensor.name != drop
        ]
    path.write_bytes(gguf_bytes(metadata, [*tensors, *add]))
    return path


def index_page(
    name: str,
    variants: Mapping[str, Sequence[Path]],
    *,
    architecture: str = "llama",
    form: str = "gguf",
    below: str = "",
) -> str:
    """The page of a model whose files lie in the index's own directory, or in one that is there."""
    page = f"""schema = 1
name = "{name}"
summary = "A model for tests"
task = "text-generation"
architecture = "{architecture}"
license = "MIT"
tags = ["tests"]
default-variant = "{next(iter(variants))}"

[[releases]]
version = "1.0"
date = 2026-01-02
changes = "first release"
"""
    for variant, paths in variants.items():
        page += f'\n[releases.variants.{variant}]\nformat = "{form}"\n'
        for path in paths:
            content = path.read_bytes()
            place = path.as_posix().rpartition(f"/{below}/")[2] if below else path.name
            page += f"""
[[releases.variants.{variant}.files]]
path = "{place}"
size = {len(content)}
sha256 = "{hashlib.sha256(content).hexdigest()}"
sources = ["file:{below and below + "/"}{place}"]
"""
    return page
