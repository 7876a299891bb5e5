"""`python -m service.settings` only checks the settings."""
