"""Small models and settings that the situations share; what stands beside the tests can be imported by them.

A situation is something that people bring or do, found in a public report of another project (named beside it) or tried by
hand. What must come of it is the right result or a refusal in one line.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
