"""Text to shards: reading, cleaning, tokenising and encoding parallel corpora with Apache Beam."""
