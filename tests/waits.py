"""How long tests wait."""

HANGS = 3600
"""Seconds: what has not come by then never will. No more than a guard; nothing takes a tenth of it, even on a busy
machine, so that a bound that says something is a promise of the product's and stands as a number in its test.
"""
