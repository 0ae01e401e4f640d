"""How much memory a trace takes under a limit, and what the limit costs in time."""
