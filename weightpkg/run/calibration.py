"""How large keys and values of a model become, measured once: the scales of a cache in 8 bits.

The model reads a fixed text, and the largest magnitude of each channel, with a margin, is what its
scale covers. Keys are rotated by their position: two channels that rotate together turn into each
other, so each of them gets the length of the pair, which no position changes.

Scales are kept beside the graphs, in a file like theirs: named by what they depend on, with its own
digest in front. One that is damaged is made again.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weightpkg.errors import RunError, StoreError
from weightpkg.run.attention import layer_of
from weightpkg.run.loading import MODEL_FILE, choose, keep, parse, read_kept
from weightpkg.run.providers import require_int8_cache
from weightpkg.run.scales import Scales
from weightpkg.run.session import ModelConfig, Session
from weightpkg.run.tokenizing import read_tokenizer, tokenizing

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
"""Goes up with every change of the text, of the margin, and of what is measured."""

MARGIN = 1.1
"""Measured: less cuts more of other texts, more has coarser steps; see docs/decisions."""

_MOST_TOKENS = 1024
# what says which weights they are (the manifest has the digests of all files), and how texts become tokens
_READ = (MODEL_FILE, "weightpkg.toml", "genai_config.json")
_LARGE = ("model.onnx.data", "tokenizer.json")

TEXT = """The lighthouse keeper wrote down the weather every evening: wind from the north-west, 14 knots, \
visibility eight miles. "Nothing to report," he added, and closed the book. In 1969 people first walked on the \
Moon; since then 12 of them have, and none after December 1972. Why? It was expensive (about $25.4 billion), and \
the race was over.

def mean(values: list[float]) -> float:
    \"\"\"Return the arithmetic mean.\"\"\"
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)

for (int i = 0; i < n; ++i) { total += a[i] * b[i]; }  // O(n)
{"id": 48213, "name": "Müller & Söhne", "tags": ["a", "b"], "price": -19.99, "ok": true, "next": null}
SELECT city, COUNT(*) FROM visits WHERE day >= '2021-03-01' GROUP BY city HAVING COUNT(*) > 10;
<p class="note">3.14159 &lt; 22/7 = 3.142857</p> x^2 + y^2 = z^2, e = 2.71828, 0xFF == 255, 10^-9, 1,000,000

Der schnelle braune Fuchs springt über den faulen Hund, und niemand weiß, warum. Les enfants jouaient près de la \
rivière pendant que leur grand-mère préparait le dîner. El tren de las siete llegó tarde otra vez; los viajeros \
esperaban en silencio. Wczoraj padał deszcz, a dzisiaj świeci słońce. Bugün hava çok güzel.
Вчера вечером мы долго говорили о книгах и о том, что будет завтра. Η θάλασσα ήταν ήρεμη το πρωί.
今天天气很好,我们去公园散步吧。学习一门新的语言需要时间和耐心。東京の冬は乾燥していて、空がとても青い。
오늘은 도서관에서 친구를 만났다. كان الطقس جميلا أمس فذهبنا إلى السوق. נסענו ברכבת אל העיר. यह किताब बहुत रोचक है। \
วันนี้อากาศดีมาก 🙂🚀

User: List three uses of copper.
Assistant: 1. Electrical wiring 2. Water pipes 3. Roofing. Copper conducts heat and electricity well, does not \
rust, and can be recycled again and again without becoming worse.
User: the the the the the   !!!???   AAAA bbbb ---- ==== 0000000000
"""  # noqa: RUF001  letters of other scripts are meant


def calibrated(
    directory: Path,
    config: ModelConfig,
    *,
    threads: int = 0,
    device: str = "auto",
    cache: Path | None = None,
) -> Scales:
    """Return the scales of a model: those that were kept, or measured now, which takes some seconds.

    Args:
        directory: of the model.
        config: its configuration.
        threads: how many to compute with; 0 is one for each core that this process may use.
        device: where the model shall run.
        cache: where scales and graphs are kept; None keeps nothing.

    Raises:
        RunError: the device's provider takes no such cache, or the model cannot be run.
    """
    try:
        content = (directory / MODEL_FILE).read_bytes()
        kept = cache / f"{_key(directory)}.scales" if cache is not None else None
    except OSError as error:
        raise RunError(f"`{directory}` cannot be read: {error.strerror}") from error
    require_int8_cache(choose(content, device).chosen)
    shape = (config.n_layers, 2, config.n_kv_heads, config.head_size)
    if kept is not None and (found := read_kept(kept)) is not None:
        with suppress(ValueError):
            return Scales.parse(found, shape)
    session = Session(directory, config, threads=threads, device=device, cache=cache)
    scales = _measured(directory, content, session)
    if kept is not None:
        with suppress(StoreError, OSError):  # the next load measures again, and that is all
            keep(scales.to_bytes(), kept)
    return scales


def _key(directory: Path) -> str:
    """What scales depend on. Large files are not read, as this is done at each load."""
    digest = hashlib.sha256(f"{VERSION} {MARGIN}".encode())
    for name in _READ:
        path = directory / name
        digest.update(hashlib.sha256(path.read_bytes() if path.exists() else b"").digest())
    for name in _LARGE:
        if (path := directory / name).exists():
            status = path.stat()
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _measured(directory: Path, content: bytes, session: Session) -> Scales:
    config = session.config
    tokenizer = read_tokenizer(directory)
    with tokenizing():
        tokens = list(tokenizer.encode(TEXT).ids)
    session.forward(tokens[: min(_MOST_TOKENS, config.context_length)])
    partners = rotating_partners(content, config)
    cached = session.cached()
    largest = [
        (_largest(np.hypot(keys, keys[..., others])), _largest(next(cached)))
        for keys, others in zip(cached, partners, strict=False)
    ]
    return Scales.for_largest(MARGIN * np.array(largest, np.float32))


def _largest(part: NDArray[np.generic]) -> NDArray[np.float32]:
    """part: (G, T, D) -> the largest magnitudes, (G, D)."""
    found: NDArray[np.float32] = np.abs(part).max(axis=1).astype(np.float32)
    return found


def rotating_partners(content: bytes, config: ModelConfig) -> list[NDArray[np.intp]]:
    """Return for each layer with which channel each rotates: (D,); where none does, that is no harm."""
    dims = {}
    model = parse(content)
    for tensor in model.graph.initializer:
        dims[tensor.name] = tuple(tensor.dims)
    partners = [np.arange(config.head_size)] * config.n_layers
    for node in model.graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        layer = layer_of(node)
        cos = node.input[7] if len(node.input) > 7 else ""
        half = dims.get(cos, (0, config.head_size // 2))[1]
        settings = {attribute.name: attribute.i for attribute in node.attribute}
        partners[layer] = _pairs(
            config.head_size, half, is_interleaved=bool(settings.get("rotary_interleaved"))
        )
    return partners


def _pairs(head_size: int, half: int, *, is_interleaved: bool) -> NDArray[np.intp]:
    """The channel that each one of a head rotates with; those behind both halves stay alone.

    >>> _pairs(6, 2, is_interleaved=False).tolist(), _pairs(6, 2, is_interleaved=True).tolist()
    ([2, 3, 0, 1, 4, 5], [1, 0, 3, 2, 4, 5])
    """
    channels = np.arange(head_size)
    rotating = channels[: 2 * half]
    channels[: 2 * half] = rotating ^ 1 if is_interleaved else np.roll(rotating, half)
    return channels
