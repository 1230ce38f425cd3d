"""Sphinx configuration: Markdown pages through MyST."""

project = "dynamo"
extensions = ["myst_parser"]
html_theme = "furo"
myst_heading_anchors = 3
exclude_patterns = ["build"]
suppress_warnings = ["misc.highlighting_failure"]
