"""Sessions: admission, leases, expiry, endings, privacy."""
