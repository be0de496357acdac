"""Numbers of things, as a person would write them."""

__all__ = ["counted", "unused_samples"]


def counted(number: int, noun: str) -> str:
    """Return ``number`` with its noun, in the plural where it needs one.

    Example:
        >>> counted(1, "task"), counted(1200, "task")
        ('1 task', '1,200 tasks')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def unused_samples(*, num_duplicates: int, num_left_over: int, num_test_examples: int = 0) -> str:
    """Return what becomes of the samples of a task that are in no prompt, with a leading "; ", or nothing.

    Example:
        >>> unused_samples(num_duplicates=1, num_left_over=2)
        '; not used: 1 duplicate, 2 left over'
    """
    kinds = [
        counted(num_duplicates, "duplicate") if num_duplicates else "",
        counted(num_test_examples, "test example") + " of the zoo" if num_test_examples else "",
        f"{num_left_over} left over" if num_left_over else "",
    ]
    said = ", ".join(filter(None, kinds))
    return f"; not used: {said}" if said else ""
