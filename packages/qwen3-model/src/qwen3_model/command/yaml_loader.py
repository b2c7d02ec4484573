"""YAML as people write it for training: `1e-6` is a number, a key given twice is an error."""

import re

import yaml

from qwen3_model.errors import ConfigError

NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""What escapes can put into a text although no name of a file and no encoding has it."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's floats and JSON's pairs of escapes, without silently overwritten keys."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        value = super().construct_scalar(node)
        if not NO_TEXT.search(value):
            return value
        # JSON escapes a character beyond U+FFFF as the two halves that UTF-16 has of it.
        joined = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if "\0" in value or joined.count("\ufffd") > value.count("\ufffd"):
            raise yaml.constructor.ConstructorError(
                None, None, "a text has U+0000 or half a character in it", node.start_mark
            )
        return joined

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not a text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# In PyYAML's YAML 1.1, 1e-6 lacks its dot and is a string (pattern: YAML 1.2.2, section 10.3.2).
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str) -> object:
    """Return the value of the YAML `text`.

    Raises:
        ConfigError: The text is not YAML; the message names `where`, line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise ConfigError(f"{position}: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        position = f"{where}, line {text.count(chr(10), 0, error.position) + 1}"
        raise ConfigError(f"{position}: character #x{error.character:04x} is not allowed in YAML") from None
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where} is not YAML: {error}") from None
