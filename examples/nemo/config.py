"""Loaded by NeMo Guardrails from this folder: `LLMRails(RailsConfig.from_path("examples/nemo"))`."""

from promptguard.middleware.nemo import init

__all__ = ["init"]
