"""The pinned base: its tokens, its weights in torch, and what it answers itself to the shipped prompts."""
