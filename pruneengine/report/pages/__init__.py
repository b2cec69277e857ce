"""Pages of a report: the plain values of ``report.json`` -> sections."""
