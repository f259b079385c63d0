"""The paper's claims as data, measured on the results of runs, each with one computed word."""
