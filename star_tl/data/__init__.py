"""What goes in: contrastive pairs, chats and their spans, prompts from dialogue files."""
