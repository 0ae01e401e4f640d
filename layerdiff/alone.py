"""Settings that belong to the whole process are changed by one thread at a time.

Random states, torch's kernels and fast paths, a module's hooks and buffers, warning filters and stdout have no thread
of their own. Whoever changes them for a while holds this lock, so that two traces at once, even of one module, neither
see nor leave behind what the other has set. What a thread that does not trace does meanwhile cannot be guarded.
"""

from __future__ import annotations

import threading

ALONE = threading.RLock()
