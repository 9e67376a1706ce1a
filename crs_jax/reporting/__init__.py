"""The parts of `report.html`, a section of the page to a file."""
