"""Released code of other papers, with its slow functions swapped for ours; one file per peer."""
