"""The API page: one HTML document, rendered from the OpenAPI document, that loads nothing from anywhere."""

from collections.abc import Iterator
from html import escape
from typing import Any, Final

import msgspec

from gateway.api.problems import STATUS_OF, meaning_of
from protocol.errors import ErrorCode

_STYLE: Final = """
:root { color-scheme:light dark;
  --ink:#1d2733; --dim:#5b6b7c; --line:#dde4ea; --paper:#fff; --tint:#f5f8fa; --tide:#0b6e8f }
@media (prefers-color-scheme:dark) {
  :root { --ink:#dfe7ee; --dim:#93a4b5; --line:#2b3946; --paper:#111920; --tint:#18222b; --tide:#5cc3e6 } }
* { box-sizing:border-box }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.55 system-ui,sans-serif }
main { max-width:56rem; margin:0 auto; padding:2.5rem 1.25rem 5rem }
h1 { margin:0; font-size:2rem; color:var(--tide) } h1 small { font-size:1rem; color:var(--dim); font-weight:normal }
h2 { margin:2.75rem 0 .75rem; padding-bottom:.35rem; border-bottom:1px solid var(--line) }
h3 { margin:1.1rem 0 .4rem; font-size:.95rem; color:var(--dim) }
a { color:var(--tide) } code,pre { font:.88em/1.5 ui-monospace,monospace }
p code,td code { background:var(--tint); padding:.1em .3em }
pre { margin:.4rem 0; padding:.8rem 1rem; background:var(--tint); border:1px solid var(--line); border-radius:6px;
  overflow-x:auto }
details { margin:.5rem 0; border:1px solid var(--line); border-radius:6px }
details > :not(summary) { margin-left:1rem; margin-right:1rem }
summary { padding:.55rem .8rem; cursor:pointer } summary:hover { background:var(--tint) }
.method { display:inline-block; min-width:4.4em; font:bold .8em ui-monospace,monospace; color:var(--tide) }
.what { color:var(--dim); font-size:.92em } summary .what { display:block; padding-left:3.7rem }
table { border-collapse:collapse; width:100%; margin:.4rem 0 1rem; font-size:.92em; display:block; overflow-x:auto }
th,td { text-align:left; vertical-align:top; padding:.35rem .7rem .35rem 0; border-bottom:1px solid var(--line) }
th { color:var(--dim); font-weight:600 } nav a { margin-right:1.1rem }
"""

_Schema = dict[str, Any]


def render_page(document: _Schema, address: str) -> str:
    """The page for an OpenAPI document of a node that listens on ``address`` (``http://HOST:PORT``)."""
    info = document["info"]
    about = "".join(f"<p>{escape(part)}</p>" for part in str(info["description"]).split("\n\n"))
    parts = [
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])} at {escape(address)}</small></h1>",
        '<nav><p><a href="/openapi.json">OpenAPI document</a><a href="/health/ready">Readiness</a>'
        '<a href="/metrics">Metrics</a><a href="#errors">Errors</a><a href="#schemas">Schemas</a></p></nav>',
        about,
        _getting_started(address),
        *_operations(document),
        _errors(),
        *_schemas(document),
        "</main></body></html>\n",
    ]
    return "\n".join(parts)


def chat_commands(address: str) -> tuple[str, str]:
    """Two commands that chat with each other through the node at ``address`` (``http://HOST:PORT``)."""
    return f"tidegate chat --as alice --to bob --url {address}", f"tidegate chat --as bob --to alice --url {address}"


def _getting_started(address: str) -> str:
    commands = escape("\n".join(chat_commands(address)))
    curl = escape(f'curl -H "Authorization: Bearer $(tidegate token alice)" {address}/v1/conversations')
    return (
        "<h2 id=start>Try it</h2><p>Chat from two terminals:</p>"
        f"<pre>{commands}</pre><p>Or ask over HTTP, with a development token:</p><pre>{curl}</pre>"
    )


def _operations(document: _Schema) -> Iterator[str]:
    for tag in document["tags"]:
        yield f"<h2>{escape(tag['name'])}</h2>"
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    yield _operation(method.upper(), path, operation)


def _operation(method: str, path: str, operation: _Schema) -> str:
    parts = [
        f"<details id={escape(operation['operationId'])}><summary><span class=method>{method}</span>"
        f"<code>{escape(path)}</code><span class=what>{escape(operation['summary'])}</span></summary>"
    ]
    if operation.get("security"):
        parts.append("<p>Needs <code>Authorization: Bearer TOKEN</code>.</p>")
    if operation.get("parameters"):
        rows = (
            (f"<code>{escape(one['name'])}</code>", one["in"], _type(one["schema"]), escape(one.get("description", "")))
            for one in operation["parameters"]
        )
        parts.append("<h3>Parameters</h3>" + _table(("name", "in", "type", ""), rows))
    if "requestBody" in operation:
        (content,) = operation["requestBody"]["content"].values()
        parts.append(f"<h3>Body</h3><p>{_type(content['schema'])}</p>")
    answers = (
        (f"<code>{status}</code>", _contents(response), _meaning(response))
        for status, response in operation["responses"].items()
    )
    parts.append("<h3>Answers</h3>" + _table(("status", "content", ""), answers) + "</details>")
    return "".join(parts)


def _contents(response: _Schema) -> str:
    return ", ".join(
        _type(content["schema"]) if "$ref" in content["schema"] else escape(media_type)
        for media_type, content in response.get("content", {}).items()
    )


def _meaning(response: _Schema) -> str:
    """Error codes, linked to the table that explains them, or what the status says."""
    codes = response.get("x-error-codes")
    if codes is None:
        return escape(response["description"])
    return ", ".join(f"<a href=#{code}>{code}</a>" for code in codes)


def _errors() -> str:
    rows = (
        (
            f"<code id={code.name}>{code.name}</code>",
            str(int(STATUS_OF[code])),
            "yes" if code.retry else "no",
            escape(meaning_of(code)),
        )
        for code in ErrorCode
    )
    return (
        "<h2 id=errors>Errors</h2><p>A refused request is answered with a <a href=#Problem>Problem</a>, as "
        "<code>application/problem+json</code>. Where repeating may help, <code>Retry-After</code> says when.</p>"
        + _table(("code", "status", "repeat?", "meaning"), rows)
    )


def _schemas(document: _Schema) -> Iterator[str]:
    yield "<h2 id=schemas>Schemas</h2>"
    for name, schema in document["components"]["schemas"].items():
        required = set(schema.get("required", ()))
        rows = (
            (
                f"<code>{escape(field)}</code>",
                _type(described),
                "required" if field in required else _default(described),
                escape(_description(described)),
            )
            for field, described in schema.get("properties", {}).items()
        )
        about = escape(" ".join(str(schema.get("description", "")).split()))
        table = _table(("field", "type", "", ""), rows)
        yield (
            f"<details open id={escape(name)}><summary><code>{escape(name)}</code></summary><p class=what>{about}</p>"
            f"{table}</details>"
        )


def _description(schema: _Schema) -> str:
    alternatives = [schema, *schema.get("anyOf", ())]
    return next((str(one["description"]) for one in alternatives if "description" in one), "")


def _default(schema: _Schema) -> str:
    if "default" not in schema or schema["default"] is None:
        return "optional"
    return f"<code>{escape(msgspec.json.encode(schema['default']).decode())}</code>"


_BOUNDS: Final = (
    ("minimum", "at least {:,}"),
    ("maximum", "at most {:,}"),
    ("minLength", "at least {:,} characters"),
    ("maxLength", "at most {:,} characters"),
    ("maxItems", "at most {:,} items"),
    ("maxProperties", "at most {:,} keys"),
)


def _type(schema: _Schema) -> str:
    """A schema in a few words, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href=#{name}>{name}</a>"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(str(one))}</code>" for one in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(str(schema['const']))}</code>"
    words = escape(str(schema.get("type", "anything")))
    if isinstance(schema.get("items"), dict):
        words = f"array of {_type(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        words = f"map of {_type(schema['additionalProperties'])}"
    bounds = ", ".join(text.format(schema[key]) for key, text in _BOUNDS if key in schema)
    return f"{words}, {bounds}" if bounds else words


def _table(head: tuple[str, ...], rows: Any) -> str:
    titles = "".join(f"<th>{title}</th>" for title in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>" if body else ""
