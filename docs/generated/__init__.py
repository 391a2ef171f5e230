"""What of the documentation is written from the code when the site is built."""
