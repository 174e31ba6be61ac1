"""Benchmarks for asv: times of whole calls on one thread, with the checks off and on."""
