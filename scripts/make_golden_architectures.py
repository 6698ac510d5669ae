"""Make the golden logits in tests/archs/*.toml with transformers.

Usage: pip install torch==2.13.0 transformers==5.23.0 gguf==0.19.0, then
python scripts/make_golden_architectures.py [NAME ...]

The weights are drawn as the tests draw them, under their GGUF names, and given to transformers
under its own, by the table that llama.cpp's converter uses, and with what that converter does to
some of them undone. So a mistake in weightpkg's own tables and layouts shows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from factories import TinyModel  # noqa: E402  it is found by the line above

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_TOKENS = 20
EVERY = 16
"""Of the vocabulary, which is more than is needed to tell a wrong model from a right one."""

Undo = Callable[[str, "NDArray[np.float32]", Mapping[str, int]], "NDArray[np.float32]"]


def as_it_is(_: str, values: NDArray[np.float32], __: Mapping[str, int]) -> NDArray[np.float32]:
    """Return the tensor unchanged."""
    return values


def interleaved(
    name: str, values: NDArray[np.float32], sizes: Mapping[str, int]
) -> NDArray[np.float32]:
    """Put the halves of each head of q and k behind each other again."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for part, key in heads.items():
        if part in name:
            pairs = values.reshape(sizes[key], -1, 2, *values.shape[1:])
            return pairs.swapaxes(1, 2).reshape(values.shape)
    return values


def turned_experts(
    name: str, values: NDArray[np.float32], _: Mapping[str, int]
) -> NDArray[np.float32]:
    """Turn the matrices of gpt-oss's experts round."""
    return values.swapaxes(1, 2) if name.endswith(("gate_up_proj", "down_proj")) else values


def transposed(name: str, values: NDArray[np.float32], _: Mapping[str, int]) -> NDArray[np.float32]:
    """Turn the matrices of GPT-2's layers round."""
    return values.T if ".c_" in name else values


def grouped(
    name: str, values: NDArray[np.float32], sizes: Mapping[str, int]
) -> NDArray[np.float32]:
    """Put each key's and value's rows behind those of their queries."""
    if "query_key_value" not in name:
        return values
    heads, groups, width = sizes["num_attention_heads"], sizes["num_kv_heads"], values.shape[1]
    size = width // heads
    q, k, v = np.split(values, (width, width + groups * size))
    parts = [part.reshape(groups, -1, size, width) for part in (q, k, v)]
    return np.concatenate(parts, axis=1).reshape(values.shape)


def behind_padding(
    name: str, values: NDArray[np.float32], sizes: Mapping[str, int]
) -> NDArray[np.float32]:
    """Put RoBERTa's rows for padding, which no token has, before those of positions again."""
    if "position_embeddings" not in name:
        return values
    missing = sizes["max_position_embeddings"] - len(values)
    return np.concatenate((np.zeros((missing, values.shape[1]), np.float32), values))


def without_one(
    name: str, values: NDArray[np.float32], _: Mapping[str, int]
) -> NDArray[np.float32]:
    """Take away the 1 that Gemma's norms add to their weights themselves."""
    return values - np.float32(1) if name.endswith("norm.weight") else values


UNDO: dict[str, Undo] = {
    "bert": behind_padding,
    "falcon": grouped,
    "gemma2": without_one,
    "gemma3": without_one,
    "gpt-oss": turned_experts,
    "gpt2": transposed,
    "granite": interleaved,
    "llama": interleaved,
    "smollm3": interleaved,
}
"""What llama.cpp's converter did to tensors, backwards: called with transformers' name."""


def main() -> None:
    """Write the section `golden` of each page, or of those that are named."""
    for path in sorted((ROOT / "tests" / "archs").glob("*.toml")):
        if path.stem in sys.argv[1:] or not sys.argv[1:]:
            model = TinyModel.read(path)
            page = path.read_text(encoding="utf-8").partition("[golden]")[0]
            path.write_text(page + golden(model), encoding="utf-8")
            print(f"{path.name}: {path.stat().st_size:,} bytes")


def golden(model: TinyModel) -> str:
    """Return the section."""
    numbers = embeddings if "pooling_type" in model.metadata else next_tokens
    made = f"[golden] # transformers {transformers.__version__}, torch {torch.__version__}"
    return "\n".join((made, *numbers(model), ""))


def next_tokens(model: TinyModel) -> list[str]:
    """The logits that follow each token."""
    tokens = np.random.default_rng(model.seed).integers(3, 302, N_TOKENS)
    columns = list(range(0, model.shapes["token_embd.weight"][0], EVERY))
    return [
        f"tokens = {tokens.tolist()}",
        f"columns = {columns}",
        *rows("logits", logits(model, tokens)),
    ]


def embeddings(model: TinyModel) -> list[str]:
    """Two texts, of which the second has 7 tokens: some of the last hidden states, and the vectors."""
    tokens = np.random.default_rng(model.seed).integers(5, 302, 2 * N_TOKENS)
    ids = torch.from_numpy(tokens.reshape(2, -1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    network = loaded(model, transformers.AutoModel, **WITHOUT_POOLER.get(model.name, {}))
    features = {"input_ids": torch.where(mask > 0, ids, network.config.pad_token_id)}
    if getattr(network.config, "type_vocab_size", 1) > 1:
        features["token_type_ids"] = ids % 2
    with torch.no_grad():
        hidden = network(**features, attention_mask=mask).last_hidden_state
    pooled = POOLINGS[model.metadata["pooling_type"]](hidden, mask)
    vectors = torch.nn.functional.normalize(pooled)
    return [
        f"tokens = {tokens.tolist()}",
        *rows("hidden", hidden[:, :7:3, ::4].flatten(0, 1).numpy()),
        *rows("embedding", vectors.numpy()),
    ]


WITHOUT_POOLER = {
    "bert": {"add_pooling_layer": False},
    "bert-roberta": {"add_pooling_layer": False},
}
POOLINGS: dict[Any, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    1: lambda x, mask: (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
    2: lambda x, _: x[:, 0],
    3: lambda x, mask: x[torch.arange(len(x)), mask.sum(1) - 1],
}
"""As llama.cpp numbers them."""


def rows(name: str, values: NDArray[np.float32]) -> list[str]:
    """Lines of an array of TOML."""
    lines = ["  [" + ", ".join(f"{x:.6g}" for x in row) + "]," for row in values]
    return [f"{name} = [", *lines, "]"]


def logits(model: TinyModel, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the logits that follow each token, of some of the vocabulary."""
    network = loaded(model, transformers.AutoModelForCausalLM)
    with torch.no_grad():
        output = network(torch.from_numpy(tokens[None])).logits[0]
    result: NDArray[np.float32] = output.numpy()[:, ::EVERY]
    return result


def loaded(model: TinyModel, kind: Any, **keywords: Any) -> Any:
    """Return transformers' model of a page."""
    # TOML has no null: an empty text stands for it
    settings: dict[str, Any] = {key: None if x == "" else x for key, x in model.config.items()}
    for name, values in model.weights().items():
        if name.startswith("rope_factors_"):  # a tensor there, a setting here
            key = name.removeprefix("rope_factors_").removesuffix(".weight")
            settings["rope_parameters"][f"{key}_factor"] = values.tolist()
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    network = kind.from_config(config, attn_implementation="eager", **keywords)
    network.load_state_dict(state(model, list(network.state_dict())))
    return network.eval()


def split_state(model: TinyModel, names: list[str]) -> dict[str, torch.Tensor]:
    """Return the weights of Nomic BERT, which GGUF has by the names of its own code."""
    weights, found = model.weights(), {}
    for name in names:
        stem, _, last = name.rpartition(".")
        whole, _, part = stem.rpartition(".self_attn.")
        if part in NOMIC_QKV:
            i = whole.rpartition(".")[2]
            values = np.split(weights[f"blk.{i}.attn_qkv.weight"], 3)[NOMIC_QKV.index(part)]
        else:
            for own, stored in NOMIC_NAMES.items():
                stem = stem.replace(own, stored)
            values = weights[f"{stem}.{last}"]
        found[name] = torch.from_numpy(values.copy())
    return found


NOMIC_QKV = ("q_proj", "k_proj", "v_proj")
NOMIC_NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "layers.": "blk.",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "attn_output_norm",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
    "post_mlp_layernorm": "layer_output_norm",
}


def state(model: TinyModel, names: list[str]) -> dict[str, torch.Tensor]:
    """Return the weights by transformers' names; each is used."""
    if model.architecture == "nomic-bert":
        return split_state(model, names)
    weights = model.weights()
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    n_layers = max(int(name.split(".")[1]) for name in weights if name.startswith("blk.")) + 1
    table = gguf.get_tensor_name_map(kinds[model.architecture], n_layers)
    undo = UNDO.get(model.architecture, as_it_is)
    sizes = {key: value for key, value in model.config.items() if isinstance(value, int)}
    found = {}
    unused = {name for name in weights if not name.startswith("rope_")}
    for name in names:
        whole, _, head = name.partition(".norms.")  # of one head; stacked in the file
        stored = [stored_name(table, f"{whole}.weight" if head else name)]
        if stored[0] not in weights:
            stored = [stored_name(table, part) for part in parts(name)]
        unused.difference_update(stored)
        values = [weights[part] for part in stored]
        single = values[0][int(head.partition(".")[0])] if head else values[0]
        joined = single if len(values) == 1 else join(model.architecture, name, values)
        found[name] = torch.from_numpy(undo(name, joined, sizes).copy())
    if unused:
        raise SystemExit(f"{model.name}: transformers has no use for {sorted(unused)}")
    return found


def stored_name(table: gguf.TensorNameMap, name: str) -> str:
    """Return the GGUF name of a tensor, or nothing."""
    path = name.removesuffix("_bias") + ".bias" if name.endswith("_bias") else name
    if not path.endswith((".weight", ".bias")):
        path += ".weight"
    found: str | None = table.get_name(path, try_suffixes=(".weight", ".bias"))
    return found or ""


def parts(name: str) -> list[str]:
    """Return the names of what a tensor of transformers consists of in the file."""
    if name == "lm_head.weight":
        return ["model.embed_tokens.weight"]
    wholes = {"gate_up_proj": ("gate_proj", "up_proj"), "kv_b_proj": ("k_b_proj", "v_b_proj")}
    return [name.replace(key, part) for key in wholes if key in name for part in wholes[key]]


def join(architecture: str, name: str, values: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return one tensor of several, each with one matrix or bias for each expert or head."""
    if "kv_b_proj" in name:
        keys, values_ = values
        heads = np.concatenate((keys.swapaxes(1, 2), values_), axis=1)
        return heads.reshape(-1, heads.shape[2])
    if architecture == "gpt-oss":  # rows of both in turn
        return np.stack(values, axis=2).reshape(len(values[0]), -1, *values[0].shape[2:])
    return np.concatenate(values, axis=1)


if __name__ == "__main__":
    main()
