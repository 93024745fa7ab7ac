"""Position schemes as their papers write them: one pair, one head, one distance at a time, in float64."""

import math

import numpy as np

from gpt_jax import config


def rope(c: config.Rope, x: np.ndarray, position: int, length: int) -> np.ndarray:
    """Su et al. 2021, eq. 13 for each plane: the pair as a complex number, times e^(i·m·θ)."""
    y, width = x.copy(), int(c.fraction * len(x)) // 2 * 2
    for i in range(width // 2):
        a, b = (2 * i, 2 * i + 1) if c.interleaved else (i, i + width // 2)
        turned = complex(x[a], x[b]) * np.exp(1j * position * frequency(c, i, width, length)) * attention_factor(c)
        y[a], y[b] = turned.real, turned.imag
    return y


def frequency(c: config.Rope, i: int, width: int, length: int) -> float:
    """Radians that pair i of `width` elements turns from one position to the next."""
    plain = c.theta ** (-2 * i / width)
    match c.scaling:
        case None:
            return plain
        case config.LinearScaling(factor):
            return plain / factor
        case config.DynamicNtk(factor, original):
            # Peng et al. 2023, eq. 7 and 16: b' = b · s^(d/(d−2)), s by the length at hand
            longest = max(length, original)
            return (c.theta * (factor * longest / original - factor + 1) ** (width / (width - 2))) ** (-2 * i / width)
        case config.Yarn():
            share = interpolated_share(c.scaling, c.theta, i, width)
            return plain / c.scaling.factor * share + plain * (1 - share)
        case config.Llama3Scaling(factor, low, high, original):
            wavelength = 2 * math.pi / plain
            if wavelength < original / high:
                return plain
            if wavelength > original / low:
                return plain / factor
            smooth = (original / wavelength - low) / (high - low)
            return (1 - smooth) * plain / factor + smooth * plain
        case config.LongRope(short, long, original):
            return 1 / ((long if length > original else short)[i] / plain)
    raise AssertionError(c.scaling)


def interpolated_share(c: config.Yarn, theta: float, i: int, width: int) -> float:
    """Peng et al. 2023, appendix: 0 up to the pair that turns `beta_fast` times in the original length, 1 from the one
    that turns `beta_slow` times, linear between.
    """

    def pair_turning(times: float) -> float:
        return width / 2 * math.log(c.original_length / (2 * math.pi * times), theta)

    first, last = pair_turning(c.beta_fast), pair_turning(c.beta_slow)
    if c.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    return min(1.0, max(0.0, (i - first) / (last - first)))


def attention_factor(c: config.Rope) -> float:
    match c.scaling:
        case config.Yarn(factor=s) | config.LongRope(factor=s) if c.scaling.attention_factor is None:
            if isinstance(c.scaling, config.LongRope):
                return math.sqrt(1 + math.log(s) / math.log(c.scaling.original_length))  # Ding et al. 2024, eq. in 3.4
            if c.scaling.mscale is None:
                return 0.1 * math.log(s) + 1  # Peng et al. 2023, eq. 22
            return (0.1 * c.scaling.mscale * math.log(s) + 1) / (0.1 * c.scaling.mscale_all_dim * math.log(s) + 1)
        case config.Yarn() | config.LongRope():
            return c.scaling.attention_factor
    return 1.0


def alibi_slopes(heads: int, bias_max: float = 8) -> list[float]:
    """Press et al. 2021, section 3, and its footnote's rule where H is no power of two."""
    if heads & (heads - 1) == 0:
        return [2 ** (-bias_max * h / heads) for h in range(1, heads + 1)]
    below = 2 ** int(math.log2(heads))
    return alibi_slopes(below, bias_max) + alibi_slopes(2 * below, bias_max)[::2][: heads - below]


def bfloat16(x: float) -> float:
    """To the nearest of 8 significant bits."""
    exponent = math.frexp(x)[1]
    return math.ldexp(round(math.ldexp(x, 8 - exponent)), exponent - 8)


def t5_bucket(distance: int, buckets: int, max_distance: int) -> int:
    """Raffel et al. 2020, section 2.1: range k of the far half begins at m·(max/m)^(k/n), with m near buckets and n far
    ones. Distance 0 for what lies ahead.
    """
    near = buckets // 2
    if distance < near:
        return max(distance, 0)
    far = buckets - near
    begun = [k for k in range(far) if distance**far >= near ** (far - k) * max_distance**k * (1 - 1e-9)]
    return near + begun[-1]


def bias(c: config.PositionConfig | None, table: np.ndarray | None, h: int, heads: int, query: int, key: int) -> float:
    """What head h of 0 … H−1 adds to the score of a key at one position for the query at another."""
    distance = query - key
    match c:
        case config.Alibi(bias_max, scale, rounded):
            slope = alibi_slopes(heads, bias_max)[h]
            if rounded:  # key's and query's own term; the query's makes no difference to softmax
                slope, query, key = bfloat16(slope), bfloat16(query), bfloat16(key)
                return -scale * abs(bfloat16(slope * query) - bfloat16(slope * key))
            return -scale * slope * abs(distance)
        case config.T5Bias(buckets, max_distance):
            assert table is not None
            return float(table[t5_bucket(distance, buckets, max_distance), h])
    return 0.0
