"""From words or keywords to the frozen configuration of a command, and the help on them."""
