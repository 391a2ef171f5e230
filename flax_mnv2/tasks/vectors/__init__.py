"""What the jobs share whose labels are a vector for each image: multi-label classification and regression."""
