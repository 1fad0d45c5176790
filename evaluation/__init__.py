"""How sure a result is, and what to annotate next."""
