"""How one stage is started: the same spec, whatever surrounds it."""
