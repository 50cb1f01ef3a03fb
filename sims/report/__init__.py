"""``fedef report``: folders of runs and sweeps as one page that loads nothing."""
