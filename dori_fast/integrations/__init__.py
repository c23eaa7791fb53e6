"""Faster stock diffusers pipelines, and faster released code of other papers."""

from dori_fast.integrations.peers.patching import patch, unpatch
from dori_fast.integrations.peers.swap import Patch
from dori_fast.integrations.pipeline import accelerate, restore
from dori_fast.integrations.session import Report

__all__ = ["Patch", "Report", "accelerate", "patch", "restore", "unpatch"]
