"""The tokens of vision transformers (Dosovitskiy et al. 2021) as maps and as regions. D: numbers of a token."""

import math

from torch import Tensor

from captioning.errors import UserError


def tokens_to_map(tokens: Tensor, prefix: int) -> Tensor:
    """(B, prefix + h*w, D) -> (B, D, h, w) for a square grid; `prefix` counts class tokens and the like."""
    tokens = tokens[:, prefix:]  # B, h*w, D
    if tokens.shape[1] < 2:
        raise UserError("the encoder gives a vector only, no tokens of places in the image: leave out -conv")
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise UserError(f"the encoder's {tokens.shape[1]} tokens lie in no square grid: -tokens takes them without one")
    return tokens.transpose(1, 2).unflatten(2, (side, tokens.shape[1] // side))


def tokens_to_regions(tokens: Tensor) -> Tensor:
    """All tokens (B, T, D) as a map of one column, (B, D, T, 1): regions that lie in no grid."""
    return tokens.transpose(1, 2).unsqueeze(3)
