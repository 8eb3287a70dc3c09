"""Loading a language model as a HookedTransformer, and the embedded demo model."""

from star_tl.models.load import load_model

__all__ = ["load_model"]
