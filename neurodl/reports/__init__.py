"""Reports: from scores to one page that can be read, sent and printed."""

from neurodl.reports.html import Report, report
from neurodl.reports.submissions import submission
from neurodl.reports.tables import best_layers, exclusions, roi_table, target_means

__all__ = [
    "Report",
    "best_layers",
    "exclusions",
    "report",
    "roi_table",
    "submission",
    "target_means",
]
