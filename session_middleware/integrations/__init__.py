"""One file for each outside protocol; each needs an optional extra, and none imports another."""
