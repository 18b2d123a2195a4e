#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  omegaconf 2.3.1, hydra-core 1.3.8.
# Guess:     `granularity: 2:4` in a YAML file is the string "2:4", as `granularity=2:4` on Hydra's
#            command line is.
# Behaviour: YAML 1.1 knows numbers in base 60. The file gives the integer 124 (2 minutes and 4
#            seconds), the command line the string. Likewise 4:8 is 248 and 1:16 is 76; 0:4 stays a
#            string. A number with a leading zero is octal in the file and a string on the command
#            line: 010 is 8 here and "010" there.
# Seen:      YAML: 2:4 -> 124, 4:8 -> 248, 010 -> 8. Override: '2:4', '4:8', '010'.
exec "$(dirname "$0")/run_with" omegaconf==2.3.1 hydra-core==1.3.8 <<'PYTHON'
from importlib.metadata import version

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from expect import expect

print(f"omegaconf {version('omegaconf')}, hydra-core {version('hydra-core')}")
parser = OverridesParser.create()
for text, number in {"2:4": 124, "4:8": 248, "1:16": 76, "010": 8}.items():
    from_file = OmegaConf.create(f"value: {text}").value
    from_shell = parser.parse_override(f"value={text}").value()
    expect(
        f"{text}: file {from_file!r}, command line {from_shell!r}",
        from_file == number and from_shell == text,
    )
quoted = OmegaConf.create('value: "2:4"').value
expect(f"in quotes: {quoted!r}", quoted == "2:4")
zero = OmegaConf.create("value: 0:4").value
expect(f"0:4 in a file: {zero!r}", zero == "0:4")
PYTHON
