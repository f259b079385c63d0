"""From the manifests of a run to its results, cell by cell."""
