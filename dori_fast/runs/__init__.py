"""Everything that reads many rows and leaves a run directory: scans, calibrations, methods by row.

The functions that users call are names of the package itself: ``df.scan``, ``df.calibrate``,
``df.estimate``, ``df.verify`` and ``df.status``. Nothing is imported here, so that a look at the
status of a run needs none of the libraries that scoring needs.
"""
