"""What committees ask, answered from records: facts with their manifests, questions of venues, text and LaTeX."""
