"""From a vector to hooks that add it at absolute token positions."""
