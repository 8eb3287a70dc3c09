"""An OpenAI-compatible server: requests with different vectors in one running batch."""
