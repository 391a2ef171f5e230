"""What training does to images: pure functions of bytes and a generator."""
