"""Attacks: find text embeddings or tokens that make a model, pruned or not, draw given images."""

from dori_fast.attack.base import Attack
from dori_fast.attack.dori import Dori
from dori_fast.attack.result import AttackResult, TokensResult
from dori_fast.attack.stopping import LossBelow, Progress
from dori_fast.attack.tokens import Tokens

__all__ = ["Attack", "AttackResult", "Dori", "LossBelow", "Progress", "Tokens", "TokensResult"]
