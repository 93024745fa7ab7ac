"""What happened inside, and what it costs."""
