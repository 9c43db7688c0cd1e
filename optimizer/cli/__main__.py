"""`python -m optimizer.cli`, for processes that start others of their own Python."""

from optimizer.cli.main import main

main()
