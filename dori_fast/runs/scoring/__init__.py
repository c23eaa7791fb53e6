"""From rows to a table of scores and decisions; reads and writes no files."""
