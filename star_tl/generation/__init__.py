"""Writing replies under hooks, and how likely a reply is."""
