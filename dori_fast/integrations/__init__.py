"""What the engine knows, for tools that exist: stock pipelines keep their API, peers their code."""

from dori_fast.integrations.peers.patching import patch, unpatch
from dori_fast.integrations.peers.swap import Patch
from dori_fast.integrations.pipeline import accelerate, restore
from dori_fast.integrations.session import Report

__all__ = ["Patch", "Report", "accelerate", "patch", "restore", "unpatch"]
