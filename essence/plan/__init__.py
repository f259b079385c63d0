"""From the TOML files to cells, and from cells to keyed stages, their cost and their memory."""
