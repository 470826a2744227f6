"""Error rates of the gate, by simulation and with adapters that learned nothing."""
