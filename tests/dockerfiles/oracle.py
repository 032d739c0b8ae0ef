"""Prints, for each Dockerfile named on standard input, what BuildKit's parser makes of it: one JSON document a line.

Uses the module `dockerfile` of PyPI, a thin layer over BuildKit's own Go code.
"""

import json
import sys

import dockerfile


def parse(path):
    with open(path, "rb") as file:
        text = file.read().decode()
    try:
        commands = dockerfile.parse_string(text)
    except dockerfile.GoParseError as error:
        return {"error": str(error)}
    return {
        "instructions": [
            {
                "name": command.cmd.lower(),
                "trigger": (command.sub_cmd or "").lower(),
                "exec_form": command.json,
                "start_line": command.start_line,
                "end_line": command.end_line,
                "flags": list(command.flags),
                "args": list(command.value),
                "heredocs": [[doc.name, doc.file_descriptor, doc.content] for doc in command.heredocs],
            }
            for command in commands
        ]
    }


for line in sys.stdin:
    print(json.dumps(parse(line.rstrip("\n"))), flush=True)
