"""The revisions, oldest first by file name. A published one is never changed."""
