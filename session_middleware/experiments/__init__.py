"""Running a recorded session again, and comparing two sessions."""
