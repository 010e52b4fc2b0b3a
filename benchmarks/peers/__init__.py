"""One training program per library, all of the same work; each runs alone, in the environment of its own library."""
