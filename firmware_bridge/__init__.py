"""From live leads on a wire to decisions."""
