"""Reports of a prune, a search or a recovery: values -> ``report.json`` -> a page -> ``report.html``."""

from pruneengine.evaluation.measures import Measures
from pruneengine.report.write import report_files, write_report

__all__ = ["Measures", "report_files", "write_report"]
