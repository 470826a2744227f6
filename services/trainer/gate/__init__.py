"""The offline test before any user sees a version: better on what held-out users corrected, no worse elsewhere."""
