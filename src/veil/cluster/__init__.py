"""Replicas of bundles on a Ray cluster's nodes, behind one front address. Rows go straight to a replica."""
