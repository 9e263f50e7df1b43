"""What can be said of an image, and by whom: certificates, attacks and estimates."""
