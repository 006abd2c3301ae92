"""``fastmeta bench``: operations and whole steps, timed against what a user would write instead.

Outputs are compared before anything is timed; variants run interleaved in one process and medians are reported.
"""
