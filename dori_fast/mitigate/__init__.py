"""Mitigation at inference: change the text embedding before drawing, not the model."""

from dori_fast.mitigate.significance import token_significance
from dori_fast.mitigate.wen import Mitigated, Wen

__all__ = ["Mitigated", "Wen", "token_significance"]
