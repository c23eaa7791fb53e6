"""Runs over many rows that leave a run directory: scans, calibrations, methods row by row.

Users call these functions by names of the package itself: ``df.scan``, ``df.calibrate``,
``df.estimate``, ``df.verify`` and ``df.status``. Nothing is imported here, so that the status of a
run needs none of the libraries that scoring needs.
"""
