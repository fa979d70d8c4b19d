"""Claims of the lecture, each a program with a verdict: ``cNN_name.py`` reads experiments, checks and draws."""
