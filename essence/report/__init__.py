"""From finished manifests to the table, the figures and the page."""
