"""What other libraries offer, under names of certood, and certood's detectors as theirs; each library is optional."""
