"""One file for each protocol that a front-end speaks; wire.py says what such a file offers."""
