"""What is in a zoo: norms, likeness, outliers."""
