"""The command line: options in, library calls, results out. Everything a person reads is printed here."""
