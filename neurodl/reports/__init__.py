"""Reports: from scores to one page that can be read, sent and printed."""

from neurodl.reports.collection import Collection
from neurodl.reports.html import Report
from neurodl.reports.making import report
from neurodl.reports.submissions import submission
from neurodl.reports.tables import best_layers, exclusions, roi_table, target_means

__all__ = [
    "Collection",
    "Report",
    "best_layers",
    "exclusions",
    "report",
    "roi_table",
    "submission",
    "target_means",
]
