"""What people see of runs and artifacts: terminal views and the HTML page."""

from luthier.report.closing import closing_table
from luthier.report.lineage import lineage_json, lineage_tree
from luthier.report.listing import artifact_rows, artifact_table, plan_table, show_artifact
from luthier.report.page import write_report
from luthier.report.summary import Summary, summarise

__all__ = [
    "Summary",
    "artifact_rows",
    "artifact_table",
    "closing_table",
    "lineage_json",
    "lineage_tree",
    "plan_table",
    "show_artifact",
    "summarise",
    "write_report",
]
