"""What people have, turned into prompts: text files, JSON lines in several formats, logs of clients. Knows no model."""
