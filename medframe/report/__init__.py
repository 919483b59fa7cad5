"""The report of a run, or of several side by side: one HTML page that needs nothing but itself."""
