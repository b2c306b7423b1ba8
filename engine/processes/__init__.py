"""How many processes a run has, how they meet, and how they end."""
