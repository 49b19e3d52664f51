"""What was said and done: messages, calls, runs, and what is asked of all of them."""
