"""The real parts behind the ports of `shared/ports.py`, each beside a fake that passes the same contract suite."""
