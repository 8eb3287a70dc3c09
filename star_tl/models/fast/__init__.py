"""Llama's forward, gradient and decode step written out, from the HookedTransformer's own weights."""
