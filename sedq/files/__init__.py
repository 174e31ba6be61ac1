"""Files: models, archives with digests, safe replacing, and tables that are protected and scrubbed where they lie."""

from sedq.files._scrub import FileReport, open_table, protect_file, scrub_file

__all__ = ["FileReport", "open_table", "protect_file", "scrub_file"]
