"""The upgrade report: analysis, drawings, page."""
