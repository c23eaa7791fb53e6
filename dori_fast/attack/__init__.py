"""Attacks: find text embeddings that make a model draw given pictures, pruned or not."""

from dori_fast.attack.dori import Dori
from dori_fast.attack.result import AttackResult, TokensResult
from dori_fast.attack.stopping import LossBelow, Progress
from dori_fast.attack.tokens import Tokens

__all__ = ["AttackResult", "Dori", "LossBelow", "Progress", "Tokens", "TokensResult"]
