"""Sessions themselves: who comes in, who runs, how they end and what is left of them."""
