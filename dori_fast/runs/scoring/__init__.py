"""From rows to a table of scores and decisions; knows no files."""
