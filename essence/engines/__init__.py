"""How one stage is started: the same spec, whatever surrounds it."""

from essence.engines import local

ENGINES = {"local": local}
"""Engine name -> module. A module offers `environment`, `image`, `render` and a class for a running stage."""
