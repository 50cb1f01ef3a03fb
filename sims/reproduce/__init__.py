"""The papers' experiments run again: one file per study, one page for all.

``report.reproduce`` runs studies and writes the page; ``command`` is its command line.
"""
