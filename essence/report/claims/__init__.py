"""The claims of the paper, measured on results, each with one computed word."""
