"""From a full-precision model to one integer graph."""
