"""How objects show themselves: a few lines of text, and a card of HTML with a small picture in a notebook."""
