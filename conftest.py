"""What all tests of the repository share."""

import signal

# A runner started in the background of a shell, or under nohup, ignores SIGINT, and every child would inherit that. A
# handler is not inherited: children of the tests then start with the default and can be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
