"""essence: truncate, train, evaluate, record, compare.

    experiments/*.toml -> plan -> engines -> [ stages: data -> distill -> evaluation ] -> record -> report
                         (host, no torch)     (inside an environment)                       (host)

A package imports only packages above it in this list (`tests/test_layout.py`):

    errors, paths, files, text, signals   messages; local paths; atomic files and hashes; numbers as people read them
    settings, progress     what a stage is given; how far it is
    memory_limit           how much main memory a stage may take
    sizes                  arithmetic on parameters, FLOPs and memory (no torch)
    data, models           rows to tokens to views; model folders and the one door that loads them
    distill, evaluation    the method; completions to an accuracy
    record                 what a run leaves, and its verification
    stages                 what runs inside an environment
    plan, engines          TOML to cells to stages; what starts a stage
    report, commands       records to claims and pages; one file for each task of tasks.py

docs/design.md maps the modules of each package.
"""

__version__ = "0.1.0"
