"""Conversations: in a terminal, and what the server shares with it."""
