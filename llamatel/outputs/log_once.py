"""Log a message once per key, and again only after a reset."""

from __future__ import annotations

import logging
from threading import Lock

_MAX_KEYS = 256


class LogOnce:
    """Wraps a logger: each key is logged once until ``reset``. Thread-safe; keys beyond 256 are not logged."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lock = Lock()
        self._logged: set[str] = set()

    def info(self, key: str, message: str, *args: object) -> bool:
        """Log at INFO if ``key`` was not logged yet; True if this call logged it."""
        return self._log(logging.INFO, key, message, args)

    def warning(self, key: str, message: str, *args: object) -> bool:
        """Log at WARNING if ``key`` was not logged yet; True if this call logged it."""
        return self._log(logging.WARNING, key, message, args)

    def error(self, key: str, message: str, *args: object, exc_info: bool | BaseException = False) -> bool:
        """Log at ERROR if ``key`` was not logged yet; True if this call logged it."""
        return self._log(logging.ERROR, key, message, args, exc_info)

    def reset(self, key: str) -> bool:
        """Allow ``key`` to be logged again; True if it had been logged, so that a recovery message is due."""
        with self._lock:
            if key not in self._logged:
                return False
            self._logged.discard(key)
            return True

    def _log(
        self,
        level: int,
        key: str,
        message: str,
        args: tuple[object, ...],
        exc_info: bool | BaseException = False,
    ) -> bool:
        with self._lock:
            if key in self._logged or len(self._logged) >= _MAX_KEYS:
                return False
            self._logged.add(key)
        self._logger.log(level, message, *args, exc_info=exc_info, stacklevel=3)
        return True
