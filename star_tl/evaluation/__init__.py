"""What steering did: samples, scores, statistics, strength, sweeps, conversations."""
