"""The settings of the six stages, as they stand in a spec, a stage's key and a manifest.

Every field changes a result, so every field is in the key. What only changes speed (threads, where files lie) is not
here but in `Resources`. There are no defaults: values come from `experiments/*.toml` and the protocol table
(`essence/protocol.py`), so that a number can be found in one place.
"""

from essence.settings.base import Record
from essence.settings.data import (
    LSP,
    DecontaminationSettings,
    DownloadSettings,
    PositionsRecord,
    PublishedRows,
    RowFormat,
    RowsSettings,
    Sections,
    Source,
    Span,
    TokenizeSettings,
    ViewSettings,
)
from essence.settings.evaluation import (
    AnswerType,
    BenchmarkSettings,
    GenerateSettings,
    GraderName,
    GradeSettings,
    GradingSettings,
    SamplingSettings,
)
from essence.settings.spec import (
    SETTINGS,
    AnySettings,
    EnvironmentName,
    LossResources,
    ProtocolName,
    Resources,
    Spec,
    StageName,
)
from essence.settings.training import (
    Divergence,
    LoopSettings,
    LoraSettings,
    ObjectiveSettings,
    OptimizerSettings,
    Parallel,
    ParallelSettings,
    TeacherChoice,
    TeacherForm,
    TeacherPlacement,
    TeacherSettings,
    TrainSettings,
)

__all__ = [
    "LSP",
    "SETTINGS",
    "AnswerType",
    "AnySettings",
    "BenchmarkSettings",
    "DecontaminationSettings",
    "Divergence",
    "DownloadSettings",
    "EnvironmentName",
    "GenerateSettings",
    "GradeSettings",
    "GraderName",
    "GradingSettings",
    "LoopSettings",
    "LoraSettings",
    "LossResources",
    "ObjectiveSettings",
    "OptimizerSettings",
    "Parallel",
    "ParallelSettings",
    "PositionsRecord",
    "ProtocolName",
    "PublishedRows",
    "Record",
    "Resources",
    "RowFormat",
    "RowsSettings",
    "SamplingSettings",
    "Sections",
    "Source",
    "Span",
    "Spec",
    "StageName",
    "TeacherChoice",
    "TeacherForm",
    "TeacherPlacement",
    "TeacherSettings",
    "TokenizeSettings",
    "TrainSettings",
    "ViewSettings",
]
