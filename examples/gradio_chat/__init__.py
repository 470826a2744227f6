"""A Gradio chat whose like buttons send feedback."""
