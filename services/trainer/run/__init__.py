"""One run: its row in the table, its process from the outside and from within, and what its stages share."""
