"""Files that survive a crash: atomic writes, the lock, the append-only failure log. Knows no model."""
