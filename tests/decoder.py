"""A converted decoder fed directly, with its cache passed by hand."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort

if TYPE_CHECKING:
    from numpy.typing import NDArray

Cache = dict[str, "NDArray[np.float32]"]


@dataclass(frozen=True, slots=True)
class Decoder:
    """The graph of a tiny model, loaded."""

    session: ort.InferenceSession

    @classmethod
    def load(cls, directory: Path) -> Decoder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        return cls(ort.InferenceSession(directory / "model.onnx", options))

    @classmethod
    def exact(cls, directory: Path) -> Decoder:
        """Load with activations in float32 instead of 8 bits, so that only rounding differs."""
        copy = directory.with_name(f"{directory.name}-exact")
        path = Path(shutil.copytree(directory, copy)) / "model.onnx"
        model = onnx.load(path, load_external_data=False)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 1
        path.chmod(0o644)
        path.write_bytes(model.SerializeToString())
        return cls.load(path.parent)

    def run(
        self,
        ids: NDArray[np.int64],
        past: Cache | None = None,
        lengths: list[int] | None = None,
        **feed: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], Cache]:
        """ids: (B, T) -> logits (B, T, V), and the cache; lengths: of each row, if they differ."""
        past = past or self._empty(len(ids))
        total = ids.shape[1] + next(iter(past.values())).shape[2]
        mask = np.arange(total) < np.array(lengths or [total] * len(ids))[:, None]
        everything = {"input_ids": ids, "attention_mask": mask.astype(np.int64), **past, **feed}
        names = [name.replace("past_key_values", "present") for name in past]
        logits, *present = self.session.run(["logits", *names], everything)
        return logits, dict(zip(past, present, strict=True))

    def _empty(self, batch: int) -> Cache:
        inputs = {value.name: value.shape for value in self.session.get_inputs()}
        return {
            name: np.zeros((batch, shape[1], 0, shape[3]), np.float32)
            for name, shape in inputs.items()
            if name.startswith("past_key_values")
        }
