"""What others get: folders of dictionaries with their cards, here and on the Hub."""
