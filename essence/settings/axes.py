"""The axes of the matrix: the fields that say what a cell is, wherever it is spoken of (plan, record, report)."""

from essence.settings.base import Record
from essence.settings.data import Sections, Span
from essence.settings.spec import ProtocolName


class CellAxes(Record):
    """One training of the matrix."""

    dataset: str
    teacher: str
    student: str
    lsp: float
    span: Span
    sections: Sections
    protocol: ProtocolName
    seed: int
    train_rows: int | None
    token_budget: int | None

    def axes(self) -> dict[str, str | int | float | None]:
        """The fields alone, in this order."""
        return {name: getattr(self, name) for name in CellAxes.model_fields}
