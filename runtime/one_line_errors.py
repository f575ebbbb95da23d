"""How commands end on errors: one line, and an exit status."""

import atexit
import functools
import gc
import sys
from collections.abc import Callable
from typing import Any

from runtime.interruption import orderly_end
from runtime.terminal import say

USER_ERROR = 2
SOME_REJECTED = 3


def one_line_errors(*roots: type[Exception]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Prints errors of these classes as one line on stderr and exits with 2.

    Ctrl-C and SIGTERM end the command as ``orderly_end`` says.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            # Python would look through all that PyTorch made for circles, a second or two, before
            # the process is gone.
            atexit.register(gc.freeze)
            with orderly_end():
                try:
                    return command(*args, **kwargs)
                except ModuleNotFoundError as error:
                    _fail(f"{error.name} is not installed. pip install 'esm2-engines[export]'")
                except BrokenPipeError:
                    raise
                except roots as error:
                    _fail(str(error))
                except MemoryError:
                    _fail("out of memory. Try a smaller model, or a smaller --max-tokens of embed")

        return wrapped

    return decorate


def _fail(message: str) -> None:
    say(f"error: {message}", err=True, fg="red")
    sys.exit(USER_ERROR)
