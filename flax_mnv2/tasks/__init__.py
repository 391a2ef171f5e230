"""What differs between jobs: an abstract ``Task``, one folder per job, and the table of them."""
