"""Conversions of a checkpoint as whole processes: wall time, peak memory, and what is written.

The checkpoint is a random Llama of SmolLM2's size (134,515,008 weights) in bfloat16 and in float32, so
that figures can be had without a download. Others, measured on two cores of the kind that the bars
were set on: onnxruntime-genai 0.18.0's builder takes 13.0 s and 1.58 GB to make int4 of the first,
optimum-onnx 0.1.0 takes 55.7 s and 3.0 GB to make float32 of it; both need torch.

Usage: python scripts/bench/checkpoint.py [--runs 3]
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measure import median, run
from report import Report

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
}
LAYER = {
    "input_layernorm": (576,),
    "mlp.down_proj": (576, 1536),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "post_attention_layernorm": (576,),
    "self_attn.k_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "self_attn.q_proj": (576, 576),
    "self_attn.v_proj": (192, 576),
}


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor's name and shape."""
    yield "model.embed_tokens.weight", (49152, 576)
    for i in range(30):
        for name, shape in LAYER.items():
            yield f"model.layers.{i}.{name}.weight", shape
    yield "model.norm.weight", (576,)


def write_checkpoint(directory: Path, dtype: str) -> None:
    """Write the checkpoint in `F32` or `BF16`."""
    import numpy as np  # noqa: PLC0415  what measures must be small, and so is another process

    directory.mkdir()
    width, header, end = {"F32": 4, "BF16": 2}[dtype], {}, 0
    for name, shape in shapes():
        start, end = end, end + width * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in shapes():
            values = random.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))
            half = (values.view(np.uint32) >> 16).astype(np.uint16)
            file.write((values if dtype == "F32" else half).tobytes())
    (directory / "config.json").write_text(json.dumps(CONFIG))
    vocabulary = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    (directory / "tokenizer.json").write_text(json.dumps(vocabulary))


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_checkpoint(Path(arguments.write[0]), arguments.write[1])
        return 0
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        for dtype, quantize, bar_s in (
            ("F32", "", 4.0),
            ("BF16", "", 6.0),
            ("BF16", "q4", 13.0),
            ("BF16", "q8", 13.0),
        ):
            source = Path(folder) / dtype
            if not source.exists():
                writer = [sys.executable, __file__, "--write", str(source), dtype]
                subprocess.run(writer, check=True)
            command = [sys.executable, "-m", "weightpkg", "-q", "convert", str(source)]
            command += ["-o", str(output)]
            command += ["--quantize", quantize] if quantize else []
            measured = []
            for _ in range(arguments.runs + 1):
                shutil.rmtree(output, ignore_errors=True)
                measured.append(run(command))
            name = f"{dtype} to {quantize or 'float32'}"
            report.at_most(f"{name}, wall time", median(measured[1:], "wall_s"), bar_s, form=".2f", unit=" s")  # fmt: skip
            peak = median(measured[1:], "peak_bytes") / 1e6
            report.at_most(f"{name}, peak memory", peak, 300, form=".0f", unit=" MB")
            size = sum(f.stat().st_size for f in output.iterdir() if f.stat().st_nlink == 1)
            report.add(f"{name}, bytes written", size / 1e6, form=".1f", unit=" MB")
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
