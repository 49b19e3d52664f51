"""Files in any state: what is whole, and saving it."""
