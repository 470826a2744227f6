"""A chat page with the feedback widget: its server, and what it serves."""
