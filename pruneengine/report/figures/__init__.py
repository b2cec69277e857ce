"""Figures of a report page, as SVG."""
