"""Where sessions go: screens, files, networks; session.py says what a sink is."""
