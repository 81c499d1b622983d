"""What everything stands on: whole files, this machine and what it is fast in, very many strings."""
