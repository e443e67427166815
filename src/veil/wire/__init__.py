"""What both sides say to each other: messages, their bytes and limits, errors, and how long to wait."""
