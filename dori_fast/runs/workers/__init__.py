"""Workers that score leases, in this process, in others or on a Ray cluster."""
