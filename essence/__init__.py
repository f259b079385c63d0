"""essence: truncate, train, evaluate, record, compare.

Host side (plans, starts, records; never imports torch): experiment, pins, plan, runner, commands, engines, report.
Stage side (does the work inside an environment): stages, distill, scoring, tiny.
Both sides: errors, settings, store, record. Between the sides there are only files.
"""

__version__ = "0.1.0"
