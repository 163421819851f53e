"""What a dictionary loses, and what each of its features stands for."""
