"""What the engine knows, for tools that exist: stock pipelines of diffusers keep their API."""

from dori_fast.integrations.pipeline import accelerate, restore
from dori_fast.integrations.session import Report

__all__ = ["Report", "accelerate", "restore"]
