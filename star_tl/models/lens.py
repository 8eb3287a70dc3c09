"""What star_tl takes from TransformerLens, where both of its lines have it: 3, and 4, which removed HookedTransformer.

On 4 the names of what was removed are still here, so that everything can be imported, and no model is one of these.
What the bridge alone needs is in both lines and imported where it is used.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS
from transformer_lens.utilities.multi_gpu import get_device_for_block_index

from star_tl.errors import StarError

HAS_HOOKED_TRANSFORMER: bool = find_spec("transformer_lens.HookedTransformer") is not None

if TYPE_CHECKING or HAS_HOOKED_TRANSFORMER:
    from transformer_lens import HookedTransformer
    from transformer_lens.components.abstract_attention import AbstractAttention
    from transformer_lens.config.hooked_transformer_config import HookedTransformerConfig
    from transformer_lens.loading_from_pretrained import (
        fill_missing_keys,
        get_pretrained_model_config,
        get_pretrained_state_dict,
    )
else:

    class HookedTransformer:
        """Stands for the class that TransformerLens 4 removed; it has no instances."""

        def __init__(self, *args: object, **more: object) -> None:
            require_hooked_transformer()

    AbstractAttention = HookedTransformerConfig = None
    fill_missing_keys = get_pretrained_model_config = get_pretrained_state_dict = None

__all__ = [
    "AbstractAttention",
    "HAS_HOOKED_TRANSFORMER",
    "HookedTransformer",
    "HookedTransformerConfig",
    "SUPPORTED_ACTIVATIONS",
    "TransformerBridge",
    "TransformerLensKeyValueCache",
    "TransformerLensKeyValueCacheEntry",
    "fill_missing_keys",
    "get_device_for_block_index",
    "get_pretrained_model_config",
    "get_pretrained_state_dict",
    "require_hooked_transformer",
]


def require_hooked_transformer() -> None:
    """Raises StarError where the installed TransformerLens has no HookedTransformer."""
    if not HAS_HOOKED_TRANSFORMER:
        raise StarError(
            f"TransformerLens {version('transformer_lens')} has no HookedTransformer: "
            "pip install 'transformer_lens>=3.9,<4', or use backend='bridge'."
        )
