"""Talking with a finished run: in a terminal, or on a page in the browser."""
