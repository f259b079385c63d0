"""What every record of the kit has in common."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A record that refuses unknown keys and is never changed after it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
