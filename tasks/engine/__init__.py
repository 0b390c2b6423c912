"""Cache keys, locks, the artifact store, shards, Ray and settings, which every stage shares."""
