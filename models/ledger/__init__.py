"""The ledger of every label ever bought, under caps that hold under any concurrency."""
