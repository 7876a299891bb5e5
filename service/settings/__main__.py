"""`python -m service.settings` checks the settings and does nothing else."""
