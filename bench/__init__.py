"""Evidence: parity, latency, accuracy, and what is installed."""
