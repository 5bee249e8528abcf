"""Time, threads and many conversations: one device thread steps all open slots, everybody else sends it work."""
