"""From recordings to a full-precision model."""
