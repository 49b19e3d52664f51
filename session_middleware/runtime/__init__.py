"""The runs that are active in this process: their contexts, leases, queue, background work and hooks."""
