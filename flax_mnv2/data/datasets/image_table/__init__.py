"""Images with a table of labels or numbers: a CSV, or a JSON file for each image; folder, tar or zip."""
