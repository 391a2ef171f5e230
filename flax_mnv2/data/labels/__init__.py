"""What masks and label files of many tools say: names, colours and values of classes, and how often each occurs."""
