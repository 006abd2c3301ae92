"""Files of any bytes are taken, or refused in one line: test_files.py replays attacks, fuzz_files.py looks for more."""
