"""The vocabulary of the word model, in the order of its ids."""

WORDS = ["<eos>", "<pad>", "<unk>", *["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"]]
