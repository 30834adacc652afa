"""What a transformer looks like from outside: blocks, layers, shared inputs, and the loop over them."""
