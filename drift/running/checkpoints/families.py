"""Which family a model belongs to, from the model type in its configuration."""

from __future__ import annotations

__all__ = ["family_of"]

_FAMILIES = {
    "gemma": "Gemma",
    "llama": "Llama",
    "mistral": "Mistral",
    "mixtral": "Mistral",
    "olmo": "OLMo",
    "phi": "Phi",
    "qwen": "Qwen",
}


def family_of(model_type: str) -> str:
    """Name of the family, such as ``Llama`` for ``llama``; a model type that is in none is its own family."""
    return next((family for start, family in _FAMILIES.items() if model_type.lower().startswith(start)), model_type)
