"""What runs inside an environment: `python -m essence.stages STAGE --spec spec.json`, one module per stage."""
