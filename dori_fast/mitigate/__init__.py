"""Mitigation at inference: change the text's embedding before anything is drawn, not the model."""

from dori_fast.mitigate.significance import token_significance
from dori_fast.mitigate.wen import Mitigated, Wen

__all__ = ["Mitigated", "Wen", "token_significance"]
