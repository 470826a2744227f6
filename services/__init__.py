"""The six services. None imports another; all they share is the log, the artifact store and `shared/`."""
