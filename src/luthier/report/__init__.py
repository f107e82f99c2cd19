"""What people see of runs and artifacts: terminal views and the HTML page."""

from luthier.report.closing import closing_table, done_json, stage_closing
from luthier.report.comparison import compare_versions, comparison_table
from luthier.report.inspection import RowChoice, inspect_dataset, print_rows
from luthier.report.lineage import lineage_json, lineage_tree
from luthier.report.listing import (
    artifact_rows,
    artifact_table,
    plan_json,
    plan_table,
    show_artifact,
)
from luthier.report.page import write_report
from luthier.report.summary import Summary, summarise

__all__ = [
    "RowChoice",
    "Summary",
    "artifact_rows",
    "artifact_table",
    "closing_table",
    "compare_versions",
    "comparison_table",
    "done_json",
    "inspect_dataset",
    "lineage_json",
    "lineage_tree",
    "plan_json",
    "plan_table",
    "print_rows",
    "show_artifact",
    "stage_closing",
    "summarise",
    "write_report",
]
