"""Refuses answers that would give a broken project: the last gate, for a replay skips the questions.

Standard library only: this runs under the interpreter that cookiecutter was installed with.
Answers enter as a JSON string inside a string literal, so that none of them can become code.
"""

from __future__ import annotations

import json
import sys

ANSWERS = json.loads({{ cookiecutter | jsonify | jsonify }})
TEMPLATE = json.loads({{ template_folder | jsonify | jsonify }})

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # the template's folder is not ours to write to
    sys.path.insert(0, TEMPLATE)
    from firstlight_template.answers import answers_fault

    fault = answers_fault(ANSWERS)
    if fault:
        print(f"firstlight: {fault}", file=sys.stderr)
        sys.exit(1)
