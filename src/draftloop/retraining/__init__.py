"""The parts of one unattended run: what it has and finds out, how it trains, and how it judges."""
