"""What a run leaves: an artifact with its card, published once, traced both ways, trained again, collected at last."""
