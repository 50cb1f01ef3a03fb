"""Problems: what is minimized, on whose data."""
