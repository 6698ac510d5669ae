"""Rotary position embedding: the tables of cosines and sines, the same bits on every machine.

RoFormer, https://arxiv.org/abs/2104.09864, section 3.4. The libraries' cos, sin and pow differ in
the last place between processors and systems, and a conversion must not: the frequencies are
computed in decimal, and the tables by a fixed sequence of float64 additions and multiplications,
which IEEE 754 defines to the bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import TYPE_CHECKING

import numpy as np

from weightpkg.errors import UnsupportedArchitectureError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DECIMAL = Context(prec=40)
_PI = Decimal("3.141592653589793238462643383279502884197")

# pi/2 in three parts of at most 33 bits, so that multiples of the first two are exact
# (Cody and Waite, "Software Manual for the Elementary Functions", 1980).
_HALF_PI = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21)
_SIN = (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800, 1 / 6227020800)
_COS = (1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800, 1 / 479001600, -1 / 87178291200)


def inverse_frequencies(theta: float, size: int) -> NDArray[np.float64]:
    """Return theta ** (-2 i / size) for i in 0 .. size/2, correctly rounded: (size/2,) float64."""
    base = _DECIMAL.ln(Decimal(theta))
    powers = [
        _DECIMAL.exp(_DECIMAL.divide(base * (-2 * i), Decimal(size))) for i in range(size // 2)
    ]
    return np.array([float(power) for power in powers], np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """How frequencies are made smaller than those that a model was first trained with.

    All are divided by `factor`; or, by YaRN (https://arxiv.org/abs/2309.00071, section 3.2), only
    those that turn less than `beta_slow` times in the original context, those that turn more than
    `beta_fast` times stay, and there is a ramp between them. Cosines and sines are multiplied by
    `attention_factor`. Where the ramp begins and ends is rounded to whole frequencies if `truncate`.
    """

    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True


def scaled_frequencies(theta: float, size: int, scaling: AnyScaling) -> NDArray[np.float64]:
    """Return `inverse_frequencies`, scaled: (size/2,) float64."""
    frequencies = inverse_frequencies(theta, size)
    if not isinstance(scaling, Scaling):
        return scaling.scaled(frequencies)
    if scaling.original_max_position_embeddings is None:
        return frequencies / scaling.factor
    original = scaling.original_max_position_embeddings
    first = float(_place_of_turns(scaling.beta_fast, theta, size, original))
    last = float(_place_of_turns(scaling.beta_slow, theta, size, original))
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0.0), min(last, size - 1.0)
    ramp = (np.arange(size // 2) - first) / max(last - first, 0.001)
    share: NDArray[np.float64] = np.clip(ramp, 0.0, 1.0)
    return frequencies / scaling.factor * share + frequencies * (1.0 - share)


def _place_of_turns(turns: float, theta: float, size: int, positions: int) -> Decimal:
    """Return which frequency, not a whole number, turns so many times within the positions."""
    cycle = _DECIMAL.multiply(2 * _PI, Decimal(turns))
    length = _DECIMAL.ln(_DECIMAL.divide(Decimal(positions), cycle))
    return _DECIMAL.divide(length * size, 2 * _DECIMAL.ln(Decimal(theta)))


def yarn_attention_factor(factor: float, scale: float = 1.0) -> float:
    """Return 0.1 * scale * ln(factor) + 1, or 1 if the factor is below 1."""
    return float(_DECIMAL.ln(Decimal(max(factor, 1.0))) * Decimal(scale) / 10 + 1)


def long_attention_factor(factor: float, original: int) -> float:
    """Return sqrt(1 + ln(factor) / ln(original)), or 1 if the factor is not above 1."""
    if factor <= 1:
        return 1.0
    share = _DECIMAL.divide(_DECIMAL.ln(Decimal(factor)), _DECIMAL.ln(Decimal(original)))
    return float(_DECIMAL.sqrt(1 + share))


def divided(
    frequencies: NDArray[np.float64], factors: NDArray[np.float32], source: str
) -> NDArray[np.float64]:
    """Return frequencies / factors, each (D/2,); `source` names the file in errors.

    Raises:
        UnsupportedArchitectureError: a factor is not positive.
    """
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise UnsupportedArchitectureError(
            f"`{source}`: a factor of the rotary frequencies is not positive"
        )
    return frequencies / factors.astype(np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama3Scaling:
    """Long waves are stretched by `factor`, short ones are not, and those between by degrees.

    A wave's length is in positions; its bounds are the context of the first training divided by
    `low_freq_factor` and `high_freq_factor`.
    https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/modeling_rope_utils.py
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: float

    def is_sound(self) -> bool:
        """Whether all numbers are positive and the bounds are two."""
        low, high = self.low_freq_factor, self.high_freq_factor
        numbers = (self.factor, low, high, self.original_context)
        return all(math.isfinite(n) and n > 0 for n in numbers) and low < high

    @property
    def attention_factor(self) -> float:
        """What cosines and sines are multiplied by."""
        return 1.0

    def scaled(self, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
        """frequencies: (D/2,) -> the same after scaling."""
        turns = self.original_context * frequencies / (2 * np.pi)
        share = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        share = np.clip(share, 0, 1)
        return frequencies / self.factor * (1 - share) + frequencies * share


@dataclass(frozen=True, kw_only=True, slots=True)
class LongScaling:
    """Each frequency is divided by a factor of its own, of those for the whole context.

    LongRoPE, https://arxiv.org/abs/2402.13753 (docs/decisions/long-rope.md).
    """

    factors: tuple[float, ...]
    attention_factor: float

    def scaled(self, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
        """frequencies: (D/2,) -> the same after scaling."""
        return frequencies / np.array(self.factors, np.float32).astype(np.float64)


AnyScaling = Scaling | Llama3Scaling | LongScaling


def cos_sin(
    frequencies: NDArray[np.float64], start: int, stop: int, factor: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cos and sin of position * frequency, times a factor: (stop - start, D/2) float32."""
    cos, sin = cos_sin_float64(frequencies, np.arange(start, stop))
    return (cos * factor).astype(np.float32), (sin * factor).astype(np.float32)


def cos_sin_float64(
    frequencies: NDArray[np.float64], positions: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return cos and sin of position * frequency, each (len(positions), D/2), within 1e-11."""
    angle = positions.astype(np.float64)[:, None] * frequencies
    quarter = np.floor(angle * (2 / np.pi) + 0.5)
    rest = angle
    for part in _HALF_PI:
        rest = rest - quarter * part
    square = rest * rest
    sine, cosine = rest * _polynomial(_SIN, square), _polynomial(_COS, square)
    turn = quarter.astype(np.int64) & 3
    cos: NDArray[np.float64] = np.choose(turn, (cosine, -sine, -cosine, sine))
    sin: NDArray[np.float64] = np.choose(turn, (sine, cosine, -sine, -cosine))
    return cos, sin


def _polynomial(coefficients: tuple[float, ...], x: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total
