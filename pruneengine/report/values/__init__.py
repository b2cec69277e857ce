"""Values of ``report.json``: results of a job as plain numbers, text, lists and mappings."""
