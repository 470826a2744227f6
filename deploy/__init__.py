"""Ways to run Loopwright: `local` without containers; the other folders hold files for other tools."""
