"""Replacements for slow functions in the released code of other papers; one file per peer."""
